//! From rules to a tree: which field to cut, where, and what to do with what lies across.
//!
//! Every dimension is tried. Its cuts are put where they part the rules evenly, a little aside where fewer rules lie across;
//! the dimension whose parts promise the cheapest search wins ([`effort`]). Deterministic, and O(rules * log²).

use super::block::{Blocks, LANES};
use super::{Bounds, Branch, DIMS_MAX, Index, LEAF_BLOCKS_MAX, NONE, Node, PIVOTS, REST};

/// Rules that are not worth a node.
const LEAF: usize = 32;
/// Rules that a part should have at least, for blocks to be used well.
const PART: usize = 10;
/// No path has more nodes, so that a search needs no more room than for that many rests.
pub(super) const DEPTH_MAX: usize = 24;

impl<const N: usize> Index<N> {
    /// An index of a chain's rules, the first at position 0.
    ///
    /// # Panics
    /// With more than four million rules or so.
    pub fn build(rules: &[Bounds<N>]) -> Index<N> {
        let rules: Vec<(u32, Bounds<N>)> = (0..).zip(rules.iter().copied()).collect();
        Self::build_from(&rules)
    }

    /// The same from rules that know their positions.
    pub(super) fn build_from(rules: &[(u32, Bounds<N>)]) -> Index<N> {
        let mut index = Index {
            root: Branch::EMPTY,
            nodes: Vec::new(),
            blocks: Blocks::default(),
            len: rules.len() as u32,
            changes: 0,
        };
        index.root = index.tree(rules, 0);
        index.blocks.shrink_to_fit();
        index.nodes.shrink_to_fit();
        index
    }

    /// A branch for these rules, which are in order, `depth` nodes below the root.
    pub(super) fn tree(&mut self, rules: &[(u32, Bounds<N>)], depth: usize) -> Branch {
        let spans: Vec<Vec<(u32, u32)>> =
            (0..Bounds::<N>::DIMS).map(|dim| rules.iter().map(|(_, bounds)| bounds.span(dim)).collect()).collect();
        let members = (0..rules.len() as u32).collect();
        let mut part = Part { members, whole: [(0, 0); DIMS_MAX], depth, room: rules.len() };
        for dim in 0..Bounds::<N>::DIMS {
            part.whole[dim] = (0, Bounds::<N>::last(dim));
        }
        let builder = Builder { rules, spans };
        builder.branch(self, part)
    }
}

/// Rules to make a branch of.
struct Part {
    /// Which rules, in order.
    members: Vec<u32>,
    /// The values a key can have here, in each dimension.
    whole: [(u32, u32); DIMS_MAX],
    /// Nodes above.
    depth: usize,
    /// Copies of rules that may be made here.
    room: usize,
}

struct Builder<'a, const N: usize> {
    rules: &'a [(u32, Bounds<N>)],
    /// By dimension and rule.
    spans: Vec<Vec<(u32, u32)>>,
}

/// A dimension's best cuts.
struct Cut {
    dim: usize,
    cuts: Vec<u32>,
    effort: f32,
}

/// What a search among so many rules costs, in blocks compared: all of them, or a tree's few nodes and a block.
fn effort(rules: usize) -> f32 {
    let blocks = rules as f32 / LANES as f32;
    if blocks <= 1.0 { blocks.max(0.5) } else { 1.0 + blocks.log2() }
}

impl<const N: usize> Builder<'_, N> {
    fn branch(&self, index: &mut Index<N>, part: Part) -> Branch {
        if part.members.len() <= LEAF {
            return self.leaf(index, &part.members);
        }
        let best = (part.depth < DEPTH_MAX)
            .then(|| (0..Bounds::<N>::DIMS).filter_map(|dim| self.cut(&part, dim)))
            .and_then(|cuts| cuts.min_by(|a, b| a.effort.total_cmp(&b.effort)));
        match best {
            Some(cut) => self.node(index, part, &cut),
            None => self.leaf(index, &part.members),
        }
    }

    fn leaf(&self, index: &mut Index<N>, members: &[u32]) -> Branch {
        // What is more than a leaf can hold hangs below nodes that cut nothing.
        const MOST: usize = LEAF_BLOCKS_MAX * LANES;
        let (these, others) = members.split_at(members.len().min(MOST));
        let leaf = index.blocks.leaf(these.iter().map(|&rule| &self.rules[rule as usize]));
        if others.is_empty() {
            return leaf;
        }
        let rest = self.leaf(index, others);
        let mut node = Node::new(0, &[]);
        node.branches[0] = leaf;
        node.branches[REST] = rest;
        node.cuts[15] = self.rules[others[0] as usize].0;
        index.nodes.push(node);
        Branch::node(index.nodes.len() - 1)
    }

    fn node(&self, index: &mut Index<N>, part: Part, cut: &Cut) -> Branch {
        let mut node = Node::new(cut.dim, &cut.cuts);
        let mut parts = vec![Vec::new(); cut.cuts.len() + 1];
        let mut across = Vec::new();
        for &rule in &part.members {
            match node.reach(self.spans[cut.dim][rule as usize]) {
                (first, last) if first == last => parts[first].push(rule),
                (first, last) => across.push((rule, first, last)),
            }
        }
        let total = part.members.len();
        let copies = (total / 2).min(part.room / 2);
        let (rest, left) = spread(&mut parts, across, copies);
        let room = part.room - (copies - left);
        let share = |members: &Vec<u32>| room * members.len() / (total + copies);
        let at = index.nodes.len();
        index.nodes.push(node.clone());
        for (branch, mut members) in parts.into_iter().enumerate() {
            members.sort_unstable();
            let mut whole = part.whole;
            if branch > 0 {
                whole[cut.dim].0 = cut.cuts[branch - 1];
            }
            if branch < cut.cuts.len() {
                whole[cut.dim].1 = cut.cuts[branch] - 1;
            }
            let room = share(&members);
            node.branches[branch] = self.branch(index, Part { members, whole, depth: part.depth + 1, room });
        }
        node.cuts[15] = rest.first().map_or(NONE, |&rule| self.rules[rule as usize].0);
        let room = share(&rest);
        node.branches[REST] = self.branch(index, Part { members: rest, depth: part.depth + 1, room, ..part });
        index.nodes[at] = node;
        Branch::node(at)
    }

    /// The best cuts of a dimension, if any part the rules.
    fn cut(&self, part: &Part, dim: usize) -> Option<Cut> {
        let (first, last) = part.whole[dim];
        let inside = |&rule: &u32| {
            let (low, high) = self.spans[dim][rule as usize];
            (low > first || high < last).then(|| (low.max(first), high.min(last)))
        };
        let spans: Vec<(u32, u32)> = part.members.iter().filter_map(inside).collect();
        if spans.is_empty() {
            return None;
        }
        let wanted = (part.members.len() / PART).clamp(1, PIVOTS);
        let cuts = pick(&places(&spans, first, last), spans.len(), wanted);
        let mut parts = [0usize; PIVOTS + 1];
        let mut across = part.members.len() - spans.len();
        for &(low, high) in &spans {
            let branch = |value: u32| cuts.iter().map(|&cut| usize::from(cut <= value)).sum::<usize>();
            match (branch(low), branch(high)) {
                (low, high) if low == high => parts[low] += 1,
                _ => across += 1,
            }
        }
        let most = part.members.len() - part.members.len() / 16;
        if across > most || parts.iter().any(|&count| count > most) {
            return None;
        }
        let inside = (part.members.len() - across).max(1) as f32;
        let below: f32 = parts.iter().map(|&count| count as f32 / inside * effort(count)).sum();
        let beside = if across == 0 { 0.0 } else { effort(across) };
        Some(Cut { dim, cuts, effort: below + beside })
    }
}

/// A value to cut at.
#[derive(Clone, Copy)]
struct Place {
    value: u32,
    /// Spans that begin below.
    below: usize,
    /// Spans that begin below and end at it or above.
    across: usize,
}

/// The places where some span begins or ends, in order.
fn places(spans: &[(u32, u32)], first: u32, last: u32) -> Vec<Place> {
    let mut starts: Vec<u32> = spans.iter().map(|span| span.0).collect();
    let mut ends: Vec<u32> = spans.iter().filter(|span| span.1 < last).map(|span| span.1 + 1).collect();
    starts.sort_unstable();
    ends.sort_unstable();
    let mut places: Vec<Place> = Vec::new();
    let (mut started, mut ended) = (0, 0);
    while started < starts.len() || ended < ends.len() {
        let value = starts.get(started).copied().unwrap_or(u32::MAX).min(ends.get(ended).copied().unwrap_or(u32::MAX));
        let below = started;
        while ends.get(ended) == Some(&value) {
            ended += 1;
        }
        if value > first {
            places.push(Place { value, below, across: below - ended });
        }
        while starts.get(started) == Some(&value) {
            started += 1;
        }
    }
    places
}

/// The cuts, in order: all places if there are few, else those that part the spans evenly, more or less.
fn pick(places: &[Place], spans: usize, wanted: usize) -> Vec<u32> {
    /// How many places to either side are looked at.
    const ASIDE: usize = 48;
    /// How far from even a part may become for one span less that lies across.
    const WORTH: usize = 4;
    if places.len() <= wanted {
        return places.iter().map(|place| place.value).collect();
    }
    let mut cuts: Vec<u32> = (1..=wanted)
        .filter_map(|number| {
            let even = number * spans / (wanted + 1);
            let at = places.partition_point(|place| place.below < even);
            let near = at.saturating_sub(ASIDE)..(at + ASIDE).min(places.len());
            let off = |place: &&Place| place.across * WORTH + place.below.abs_diff(even);
            places[near].iter().min_by_key(off).map(|place| place.value)
        })
        .collect();
    cuts.dedup();
    cuts
}

/// Copies rules that lie across the cuts into the parts they reach, the narrowest first, as long as there is `room`. What is
/// left is the rest, in order, and room.
fn spread(parts: &mut [Vec<u32>], mut across: Vec<(u32, usize, usize)>, mut room: usize) -> (Vec<u32>, usize) {
    across.sort_by_key(|&(rule, first, last)| (last - first, rule));
    let mut rest = Vec::new();
    for (rule, first, last) in across {
        if last - first > room {
            rest.push(rule);
            continue;
        }
        room -= last - first;
        parts[first..=last].iter_mut().for_each(|part| part.push(rule));
    }
    rest.sort_unstable();
    (rest, room)
}
