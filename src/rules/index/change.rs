//! One rule more, one rule less.
//!
//! A change costs one pass over all positions, and the rewriting of the leaves it is in. A leaf that grew too long is cut
//! again. What a tree was built for drifts away with many changes, so after as many as half its rules (and 1024) it is
//! built anew.

use super::block::LANES;
use super::{Bounds, Branch, Index, LEAF_BLOCKS_MAX, NONE, REST};

/// Blocks of a leaf before an insertion tries to cut it; from there on at each doubling.
const CUT_BLOCKS: usize = 4;

/// Where a branch stands: in a node, or at the root.
#[derive(Clone, Copy)]
struct Place {
    node: usize,
    branch: usize,
    depth: usize,
}

/// The node of a [`Place`] that is the root.
const ROOT: usize = usize::MAX;

impl<const N: usize> Index<N> {
    /// Puts a rule before the one at `position`; at the end if that is the length.
    ///
    /// # Panics
    /// When `position` is beyond the length.
    pub fn insert(&mut self, position: u32, bounds: &Bounds<N>) {
        assert!(position <= self.len, "no such position");
        self.blocks.open(position);
        for node in &mut self.nodes {
            node.cuts[15] += u32::from(node.cuts[15] >= position && node.cuts[15] != NONE);
        }
        self.len += 1;
        let place = self.descend(position, bounds);
        self.put(place, position, bounds);
        self.changed();
    }

    /// Takes the rule at `position` out.
    ///
    /// # Panics
    /// When there is none.
    pub fn remove(&mut self, position: u32) {
        assert!(position < self.len, "no such position");
        let block = self.blocks.find(position).expect("every position is in some block");
        let bounds =
            self.blocks.rules(block..block + 1).find(|rule| rule.0 == position).expect("it is in this block").1;
        self.take_out(Place { node: ROOT, branch: 0, depth: 0 }, position, &bounds);
        self.blocks.close(position);
        for node in &mut self.nodes {
            node.cuts[15] -= u32::from(node.cuts[15] > position && node.cuts[15] != NONE);
        }
        self.len -= 1;
        self.changed();
    }
}

impl<const N: usize> Index<N> {
    fn branch(&self, place: Place) -> Branch {
        match place.node {
            ROOT => self.root,
            node => self.nodes[node].branches[place.branch],
        }
    }

    fn set_branch(&mut self, place: Place, branch: Branch) {
        match place.node {
            ROOT => self.root = branch,
            node => self.nodes[node].branches[place.branch] = branch,
        }
    }

    /// The leaf that a rule belongs in.
    fn descend(&mut self, position: u32, bounds: &Bounds<N>) -> Place {
        let mut place = Place { node: ROOT, branch: 0, depth: 0 };
        while let branch = self.branch(place)
            && branch.is_node()
        {
            let node = &self.nodes[branch.index()];
            let (first, last) = node.reach(bounds.span(node.dim()));
            // A node without cuts has a leaf and what is too much for it.
            let full = node.cuts_len() == 0 && self.is_full(node.branches[0]);
            let to = if first == last && !full { first } else { REST };
            if to == REST {
                let least = &mut self.nodes[branch.index()].cuts[15];
                *least = position.min(*least);
            }
            place = Place { node: branch.index(), branch: to, depth: place.depth + 1 };
        }
        place
    }

    fn is_full(&self, leaf: Branch) -> bool {
        leaf.blocks().len() == LEAF_BLOCKS_MAX && self.blocks.used(leaf.blocks()) == LEAF_BLOCKS_MAX * LANES
    }

    /// Puts a rule into a leaf, which may grow or be cut.
    fn put(&mut self, place: Place, position: u32, bounds: &Bounds<N>) {
        let run = self.branch(place).blocks();
        let used = self.blocks.used(run.clone());
        if used < run.len() * LANES {
            self.blocks.insert(run, position, bounds);
            return;
        }
        let mut rules: Vec<(u32, Bounds<N>)> = self.blocks.rules(run.clone()).collect();
        let at = rules.partition_point(|&(other, _)| other < position);
        rules.insert(at, (position, *bounds));
        let blocks = run.len();
        self.blocks.give_back(run);
        let cut = blocks == LEAF_BLOCKS_MAX || blocks >= CUT_BLOCKS && blocks.is_power_of_two();
        let branch = if cut { self.tree(&rules, place.depth) } else { self.blocks.leaf(rules.iter()) };
        self.set_branch(place, branch);
    }

    /// Removes the rule at `position` wherever it is below `place`.
    fn take_out(&mut self, place: Place, position: u32, bounds: &Bounds<N>) {
        let branch = self.branch(place);
        if branch.is_node() {
            let node = &self.nodes[branch.index()];
            let (first, last) = node.reach(bounds.span(node.dim()));
            for branch_of in (first..=last).chain([REST]) {
                let below = Place { node: branch.index(), branch: branch_of, depth: place.depth + 1 };
                self.take_out(below, position, bounds);
            }
            return;
        }
        let run = branch.blocks();
        let before = self.blocks.used(run.clone());
        self.blocks.remove(run.clone(), position);
        if before % LANES == 1 && self.blocks.used(run.clone()) < before {
            // The last block is empty now.
            let last = run.end - 1;
            self.blocks.give_back(last..run.end);
            let left = if run.len() == 1 { Branch::EMPTY } else { Branch::leaf(run.start as u32, run.len() - 1) };
            self.set_branch(place, left);
        }
    }

    /// Counts a change, and builds anew when there were many.
    fn changed(&mut self) {
        const FEW: usize = 1024;
        self.changes += 1;
        let stale = self.changes as usize > FEW.max(self.len() / 2);
        if !stale && self.blocks.unused() <= self.blocks.in_use() + FEW {
            return;
        }
        let mut rules: Vec<Option<Bounds<N>>> = vec![None; self.len()];
        for (position, bounds) in self.blocks.all_rules() {
            rules[position as usize] = Some(bounds);
        }
        *self = Self::build(&rules.into_iter().flatten().collect::<Vec<_>>());
    }
}
