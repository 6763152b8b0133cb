//! Asking an index: one packet at a time, or a batch whose memory is asked for ahead.

use super::block::LANES;
use super::build::DEPTH_MAX;
use super::{Branch, DIMS_MAX, Index, Key, NONE, Node, REST};
use crate::arch::{self, Lanes, LanesTask, with_lanes};

/// Blocks of a leaf that are compared all at once.
const SMALL_BLOCKS: usize = 4;
/// Keys looked at together.
const BATCH: usize = 64;
/// Rests that wait, of all keys of a batch.
const WAITING: usize = 512;

impl<const N: usize> Index<N> {
    /// The first position at or after `from` whose bounds hold `key`.
    pub fn next(&self, key: &Key<N>, from: u32) -> Option<u32> {
        let found = with_lanes(Next { index: self, key, from });
        (found != NONE).then_some(found)
    }

    /// The first position whose bounds hold, for each key; [`NONE`] where there is none.
    ///
    /// # Panics
    /// When there are fewer places for answers than keys.
    pub fn first_batch(&self, keys: &[Key<N>], found: &mut [u32]) {
        self.first_batch_with(keys, found, &mut Scratch::new());
    }

    /// The same for those who ask often: `scratch` is theirs to keep, and need not be written anew each time.
    ///
    /// # Panics
    /// As [`Index::first_batch`].
    pub fn first_batch_with(&self, keys: &[Key<N>], found: &mut [u32], scratch: &mut Scratch) {
        assert!(found.len() >= keys.len(), "a place for each answer");
        with_lanes(FirstBatch { index: self, keys, found, scratch });
    }

    #[inline(always)]
    fn step<L: Lanes>(&self, lanes: L, node: &Node, dims: &[u32; DIMS_MAX]) -> Branch {
        let value = dims[node.dim() % DIMS_MAX];
        let below = lanes.at_most(&node.cuts, value) & node.cuts[14] as u16;
        node.branches[below.count_ones() as usize & 15]
    }

    /// The first position in a leaf that is at least `from` and holds, if below `best`; else `best`.
    #[inline(always)]
    fn in_leaf<L: Lanes>(&self, lanes: L, leaf: Branch, key: &Key<N>, from: u32, best: u32) -> u32 {
        for index in leaf.blocks() {
            let positions = self.blocks.positions(index);
            if positions[0] >= best {
                return best;
            }
            let mut hits = self.blocks.block(index).hold(lanes, key);
            if from > positions[0] {
                hits &= !lanes.at_most(positions, from - 1);
            }
            if hits != 0 {
                return best.min(positions[hits.trailing_zeros() as usize]);
            }
        }
        best
    }

    /// The first position in a leaf of few blocks that holds. All are compared, and then it is seen which: a processor can't
    /// foresee in which a packet's rule is.
    #[inline(always)]
    fn in_small_leaf<L: Lanes>(&self, lanes: L, leaf: Branch, key: &Key<N>) -> u32 {
        let mut hits = 0u64;
        for (place, index) in leaf.blocks().enumerate() {
            hits |= u64::from(self.blocks.block(index).hold(lanes, key)) << (LANES * place);
        }
        if hits == 0 {
            return NONE;
        }
        let lane = hits.trailing_zeros() as usize;
        self.blocks.positions(leaf.blocks().start + lane / LANES)[lane % LANES]
    }

    /// The same in a whole branch.
    #[inline(always)]
    fn in_branch<L: Lanes>(&self, lanes: L, branch: Branch, key: &Key<N>, from: u32, best: u32) -> u32 {
        let dims = key.dims();
        let mut best = best;
        let mut waiting = [(Branch::EMPTY, NONE); DEPTH_MAX + 2];
        let mut count = 0;
        let mut branch = branch;
        loop {
            while branch.is_node() {
                let node = &self.nodes[branch.index()];
                if node.cuts[15] < best {
                    waiting[count] = (node.branches[REST], node.cuts[15]);
                    count += 1;
                }
                branch = self.step(lanes, node, &dims);
            }
            best = self.in_leaf(lanes, branch, key, from, best);
            loop {
                if count == 0 {
                    return best;
                }
                count -= 1;
                if waiting[count].1 < best {
                    branch = waiting[count].0;
                    break;
                }
            }
        }
    }
}

struct Next<'a, const N: usize> {
    index: &'a Index<N>,
    key: &'a Key<N>,
    from: u32,
}

impl<const N: usize> LanesTask for Next<'_, N> {
    type Output = u32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> u32 {
        match self.index.root.is_node() {
            true => self.index.in_branch(lanes, self.index.root, self.key, self.from, NONE),
            false => self.index.in_leaf(lanes, self.index.root, self.key, self.from, NONE),
        }
    }
}

struct FirstBatch<'a, const N: usize> {
    index: &'a Index<N>,
    keys: &'a [Key<N>],
    found: &'a mut [u32],
    scratch: &'a mut Scratch,
}

impl<const N: usize> LanesTask for FirstBatch<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let root = self.index.root;
        if !root.is_node() && root.blocks().len() <= SMALL_BLOCKS {
            for (key, found) in self.keys.iter().zip(self.found) {
                *found = self.index.in_small_leaf(lanes, root, key);
            }
            return;
        }
        for (keys, found) in self.keys.chunks(BATCH).zip(self.found.chunks_mut(BATCH)) {
            self.index.batch(lanes, keys, found, self.scratch);
        }
    }
}

/// A branch to search for one of a batch's keys.
#[derive(Clone, Copy, Debug)]
struct Item {
    branch: Branch,
    /// Which key.
    key: u32,
}

impl Item {
    const NONE: Item = Item { branch: Branch::EMPTY, key: 0 };
}

/// What the search for a batch's keys writes down. Nothing in it is of use to the next.
#[derive(Debug)]
pub struct Scratch {
    /// By key.
    dims: [[u32; DIMS_MAX]; BATCH],
    queues: Queues,
}

impl Scratch {
    /// Room for any search.
    #[allow(clippy::new_without_default)] // of 18 KiB, nobody should make one in passing
    pub fn new() -> Scratch {
        let queues = Queues {
            nodes: [Item::NONE; WAITING],
            leaves: [Item::NONE; WAITING],
            rests: [(Item::NONE, 0); WAITING],
            node_count: 0,
            leaf_count: 0,
            rest_count: 0,
        };
        Scratch { dims: [[0; DIMS_MAX]; BATCH], queues }
    }
}

/// Items by what has to be done next. Every step writes an item to each queue that it might belong in and then counts it where
/// it does: a processor can't foresee where a packet's path ends, and a wrong guess costs as much as a node.
#[derive(Debug)]
struct Queues {
    nodes: [Item; WAITING],
    leaves: [Item; WAITING],
    /// Rests, for when the leaves are done, each with a position that none in it is below.
    rests: [(Item, u32); WAITING],
    node_count: usize,
    leaf_count: usize,
    rest_count: usize,
}

impl Queues {
    #[inline(always)]
    fn push(&mut self, item: Item, wanted: bool) {
        self.nodes[self.node_count % WAITING] = item;
        self.leaves[self.leaf_count % WAITING] = item;
        self.node_count += usize::from(wanted & item.branch.is_node());
        self.leaf_count += usize::from(wanted & !item.branch.is_node() & (item.branch != Branch::EMPTY));
    }
}

impl<const N: usize> Index<N> {
    /// All keys go down one node at a time, side by side, and what is read next is asked for. The rests met on the way wait until
    /// the leaves are done, and go down likewise if a lower position is possible there.
    #[inline(always)]
    fn batch<L: Lanes>(&self, lanes: L, keys: &[Key<N>], found: &mut [u32], scratch: &mut Scratch) {
        let Scratch { dims, queues } = scratch;
        let mut best = [NONE; BATCH];
        (queues.node_count, queues.leaf_count, queues.rest_count) = (0, 0, 0);
        self.enter(lanes, keys, dims, queues);
        while queues.node_count + queues.leaf_count > 0 {
            while queues.node_count > 0 {
                if queues.rest_count + queues.node_count > WAITING {
                    self.one_by_one(lanes, keys, queues, &mut best);
                    break;
                }
                self.step_all(lanes, dims, queues, &best);
            }
            if self.blocks.are_many() {
                self.prefetch_leaves(queues);
            }
            while queues.leaf_count > 0 {
                self.look_all(lanes, keys, queues, &mut best);
            }
            for at in 0..core::mem::take(&mut queues.rest_count) {
                let (item, least) = queues.rests[at];
                queues.push(item, least < best[item.key as usize % BATCH]);
            }
            self.prefetch_nodes(queues);
        }
        found[..keys.len()].copy_from_slice(&best[..keys.len()]);
    }

    /// All keys start at the root.
    #[inline(always)]
    fn enter<L: Lanes>(&self, lanes: L, keys: &[Key<N>], dims: &mut [[u32; DIMS_MAX]; BATCH], queues: &mut Queues) {
        let node = match self.root.is_node() {
            true => &self.nodes[self.root.index()],
            // Cuts nothing.
            false => &Node::new(0, &[]),
        };
        let root = if self.root.is_node() { None } else { Some(self.root) };
        for (at, (key, dims)) in keys.iter().zip(dims).enumerate() {
            *dims = key.dims();
            let branch = root.unwrap_or_else(|| self.step(lanes, node, dims));
            queues.push(Item { branch, key: at as u32 }, true);
            queues.rests[at] = (Item { branch: node.branches[REST], key: at as u32 }, node.cuts[15]);
        }
        queues.rest_count = if node.cuts[15] == NONE { 0 } else { keys.len() };
        self.prefetch_nodes(queues);
    }

    /// Each item that is at a node goes one further.
    #[inline(always)]
    fn step_all<L: Lanes>(&self, lanes: L, dims: &[[u32; DIMS_MAX]; BATCH], queues: &mut Queues, best: &[u32; BATCH]) {
        for at in 0..core::mem::take(&mut queues.node_count) {
            let item = queues.nodes[at % WAITING];
            let node = &self.nodes[item.branch.index()];
            let key = item.key as usize % BATCH;
            let least = node.cuts[15];
            queues.rests[queues.rest_count % WAITING] = (Item { branch: node.branches[REST], ..item }, least);
            queues.rest_count += usize::from(least < best[key]);
            queues.push(Item { branch: self.step(lanes, node, &dims[key]), ..item }, true);
        }
        self.prefetch_nodes(queues);
    }

    /// Each item that is at a leaf is compared with its first block, and goes on with the next if there was nothing.
    #[inline(always)]
    fn look_all<L: Lanes>(&self, lanes: L, keys: &[Key<N>], queues: &mut Queues, best: &mut [u32; BATCH]) {
        for at in 0..core::mem::take(&mut queues.leaf_count) {
            let item = queues.leaves[at % WAITING];
            let run = item.branch.blocks();
            let key = item.key as usize % BATCH;
            let positions = self.blocks.positions(run.start);
            let hits = self.blocks.block(run.start).hold(lanes, &keys[key]);
            let position = positions[hits.trailing_zeros() as usize % 16];
            let position = if hits == 0 { NONE } else { position };
            best[key] = best[key].min(position);
            let more = run.len() > 1;
            queues.leaves[queues.leaf_count % WAITING] = Item { branch: item.branch.without_first(), ..item };
            queues.leaf_count += usize::from((hits == 0) & more & (positions[15] < best[key]));
        }
    }

    /// The items at nodes when there is no more room for their rests.
    #[inline(never)]
    fn one_by_one<L: Lanes>(&self, lanes: L, keys: &[Key<N>], queues: &mut Queues, best: &mut [u32; BATCH]) {
        for item in &queues.nodes[..core::mem::take(&mut queues.node_count)] {
            let key = item.key as usize;
            best[key] = self.in_branch(lanes, item.branch, &keys[key], 0, best[key]);
        }
    }

    #[inline(always)]
    fn prefetch_nodes(&self, queues: &Queues) {
        for item in &queues.nodes[..queues.node_count] {
            if let Some(node) = self.nodes.get(item.branch.index()) {
                arch::prefetch(&node.cuts);
                arch::prefetch(&node.branches);
            }
        }
    }

    #[inline(always)]
    fn prefetch_leaves(&self, queues: &Queues) {
        for item in &queues.leaves[..queues.leaf_count] {
            self.blocks.prefetch(item.branch);
        }
    }
}
