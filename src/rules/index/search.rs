//! Asking an index: one packet at a time, or a batch whose memory is asked for ahead.

use super::build::DEPTH_MAX;
use super::{Branch, DIMS_MAX, Index, Key, NONE, Node, REST};
use crate::arch::{self, Lanes, LanesTask, with_lanes};

/// Keys looked at together.
const BATCH: usize = 64;
/// Rests that wait, of all keys of a batch.
const WAITING: usize = 256;

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
        assert!(found.len() >= keys.len(), "a place for each answer");
        with_lanes(FirstBatch { index: self, keys, found });
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
        self.index.in_branch(lanes, self.index.root, self.key, self.from, NONE)
    }
}

struct FirstBatch<'a, const N: usize> {
    index: &'a Index<N>,
    keys: &'a [Key<N>],
    found: &'a mut [u32],
}

impl<const N: usize> LanesTask for FirstBatch<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for (keys, found) in self.keys.chunks(BATCH).zip(self.found.chunks_mut(BATCH)) {
            self.index.batch(lanes, keys, found);
        }
    }
}

/// A branch to search for one of a batch's keys.
#[derive(Clone, Copy)]
struct Item {
    branch: Branch,
    key: u32,
    /// No position in the branch is below.
    least: u32,
}

impl<const N: usize> Index<N> {
    /// All keys go down one node at a time, side by side, and what each will read next is asked for. The rests met on the way
    /// wait until the leaves are done, and go down likewise if a lower position is possible there.
    #[inline(always)]
    fn batch<L: Lanes>(&self, lanes: L, keys: &[Key<N>], found: &mut [u32]) {
        let mut dims = [[0; DIMS_MAX]; BATCH];
        let mut items = [Item { branch: self.root, key: 0, least: 0 }; WAITING];
        let mut waiting = [Item { branch: Branch::EMPTY, key: 0, least: 0 }; WAITING];
        for (at, key) in keys.iter().enumerate() {
            dims[at] = key.dims();
            items[at].key = at as u32;
            found[at] = NONE;
        }
        let mut count = keys.len();
        while count > 0 {
            let mut waits = 0;
            let mut below = true;
            while below {
                below = false;
                for item in &mut items[..count] {
                    if !item.branch.is_node() {
                        continue;
                    }
                    let node = &self.nodes[item.branch.index()];
                    let key = item.key as usize % BATCH;
                    if node.cuts[15] < found[key] {
                        let rest = Item { branch: node.branches[REST], key: item.key, least: node.cuts[15] };
                        if waits < WAITING {
                            self.prefetch(rest.branch);
                            waiting[waits] = rest;
                            waits += 1;
                        } else {
                            found[key] = self.in_branch(lanes, rest.branch, &keys[key], 0, found[key]);
                        }
                    }
                    item.branch = self.step(lanes, node, &dims[key]);
                    self.prefetch(item.branch);
                    below |= item.branch.is_node();
                }
            }
            for item in &items[..count] {
                let key = item.key as usize;
                found[key] = self.in_leaf(lanes, item.branch, &keys[key], 0, found[key]);
            }
            count = 0;
            for item in &waiting[..waits] {
                items[count] = *item;
                count += usize::from(item.least < found[item.key as usize]);
            }
        }
    }

    #[inline(always)]
    fn prefetch(&self, branch: Branch) {
        if branch.is_node() {
            if let Some(node) = self.nodes.get(branch.index()) {
                arch::prefetch(&node.cuts);
                arch::prefetch(&node.branches);
            }
        } else {
            self.blocks.prefetch(branch);
        }
    }
}
