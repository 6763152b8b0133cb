//! Rules side by side: [`Block`], sixteen [`Bounds`] with each field in a row of its own, and [`Blocks`], all of an index.
//!
//! Rules stand in a run of blocks by position, lowest first, without gaps; the lanes after the last are empty. An empty
//! lane passes no state, and its position is [`NONE`].

use super::{BLOCKS_MAX, Bounds, Branch, Key, LEAF_BLOCKS_MAX, NONE};
use crate::arch::{self, Lanes};
use core::ops::Range;

/// Rules in a block.
pub(super) const LANES: usize = 16;

/// The bounds of sixteen rules. 512 bytes for IPv4, 1280 for IPv6.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Block<const N: usize> {
    words: [Word; N],
    sport: Ports,
    dport: Ports,
    states: [u16; LANES],
    proto: [u8; LANES],
    /// 0xff, or 0 when any protocol passes.
    proto_mask: [u8; LANES],
    /// Interfaces that do not pass.
    not_ports: [u8; LANES],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Word {
    values: [u32; LANES],
    masks: [u32; LANES],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Ports {
    lows: [u16; LANES],
    /// Last minus first.
    spans: [u16; LANES],
}

impl Ports {
    const EMPTY: Ports = Ports { lows: [0; LANES], spans: [0; LANES] };

    fn set(&mut self, lane: usize, (low, high): (u16, u16)) {
        self.lows[lane] = low;
        self.spans[lane] = high.wrapping_sub(low);
    }

    fn get(&self, lane: usize) -> (u16, u16) {
        (self.lows[lane], self.lows[lane].wrapping_add(self.spans[lane]))
    }

    #[inline(always)]
    fn hold<L: Lanes>(&self, lanes: L, port: u16) -> u16 {
        lanes.within(&self.lows, &self.spans, port)
    }
}

impl<const N: usize> Block<N> {
    const EMPTY: Block<N> = Block {
        words: [Word { values: [0; LANES], masks: [0; LANES] }; N],
        sport: Ports::EMPTY,
        dport: Ports::EMPTY,
        states: [0; LANES],
        proto: [0; LANES],
        proto_mask: [0; LANES],
        not_ports: [0; LANES],
    };

    fn set(&mut self, lane: usize, bounds: &Bounds<N>) {
        for (word, (value, mask)) in self.words.iter_mut().zip(bounds.values.into_iter().zip(bounds.masks)) {
            (word.values[lane], word.masks[lane]) = (value, mask);
        }
        self.sport.set(lane, bounds.sport);
        self.dport.set(lane, bounds.dport);
        self.states[lane] = bounds.states;
        self.proto[lane] = bounds.proto.unwrap_or(0);
        self.proto_mask[lane] = if bounds.proto.is_some() { 0xff } else { 0 };
        self.not_ports[lane] = !bounds.ports;
    }

    fn get(&self, lane: usize) -> Bounds<N> {
        Bounds {
            values: core::array::from_fn(|word| self.words[word].values[lane]),
            masks: core::array::from_fn(|word| self.words[word].masks[lane]),
            sport: self.sport.get(lane),
            dport: self.dport.get(lane),
            proto: (self.proto_mask[lane] != 0).then_some(self.proto[lane]),
            ports: !self.not_ports[lane],
            states: self.states[lane],
        }
    }

    /// The lanes whose bounds hold `key`, one bit each.
    #[inline(always)]
    pub(super) fn hold<L: Lanes>(&self, lanes: L, key: &Key<N>) -> u16 {
        let word =
            |index: usize| lanes.masked_equal(&self.words[index].values, &self.words[index].masks, key.words[index]);
        // The upper half of each address tells most rules apart.
        let mut hits = word(0) & word(N / 2);
        for upper in 1..N / 4 {
            hits &= word(upper) & word(N / 2 + upper);
        }
        if N > 2 && hits == 0 {
            return 0;
        }
        for lower in (N / 4).max(1)..N / 2 {
            hits &= word(lower) & word(N / 2 + lower);
        }
        hits & self.sport.hold(lanes, key.sport)
            & self.dport.hold(lanes, key.dport)
            & lanes.some_common(&self.states, key.states)
            & lanes.masked_equal_u8(&self.proto, &self.proto_mask, key.proto)
            & lanes.none_common(&self.not_ports, key.ports)
    }
}

/// All blocks of an index, and which are free.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks<const N: usize> {
    blocks: Vec<Block<N>>,
    /// The position of each rule; dense, since it changes all over.
    positions: Vec<[u32; LANES]>,
    /// Free runs by length.
    free: Vec<Vec<u32>>,
    in_use: usize,
}

impl<const N: usize> Blocks<N> {
    pub(super) fn bytes(&self) -> usize {
        let free: usize = self.free.iter().map(|runs| runs.capacity() * size_of::<u32>()).sum();
        self.blocks.capacity() * size_of::<Block<N>>() + self.positions.capacity() * size_of::<[u32; LANES]>() + free
    }

    pub(super) fn shrink_to_fit(&mut self) {
        self.blocks.shrink_to_fit();
        self.positions.shrink_to_fit();
    }

    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// Whether they are more than the nearer caches hold (half a megabyte), so that asking ahead for them is worth it.
    #[inline(always)]
    pub(super) fn are_many(&self) -> bool {
        self.blocks.len() > (512 << 10) / size_of::<Block<N>>()
    }

    /// Blocks that were taken once and are of no use now.
    pub(super) fn unused(&self) -> usize {
        self.blocks.len() - self.in_use
    }

    #[inline(always)]
    pub(super) fn block(&self, index: usize) -> &Block<N> {
        &self.blocks[index]
    }

    #[inline(always)]
    pub(super) fn positions(&self, index: usize) -> &[u32; LANES] {
        &self.positions[index]
    }

    /// Asks for what a look into a leaf reads first.
    #[inline(always)]
    pub(super) fn prefetch(&self, leaf: Branch) {
        let Some(block) = self.blocks.get(leaf.blocks().start) else { return };
        arch::prefetch(&self.positions[leaf.blocks().start]);
        for word in &block.words[..] {
            arch::prefetch(&word.values);
            arch::prefetch(&word.masks);
        }
        arch::prefetch(&block.sport);
        arch::prefetch(&block.dport);
        arch::prefetch(&block.states);
        arch::prefetch(&block.not_ports);
    }

    /// A run of `count` empty blocks.
    fn take(&mut self, count: usize) -> u32 {
        self.in_use += count;
        if let Some(first) = self.free.get_mut(count).and_then(Vec::pop) {
            return first;
        }
        let first = self.blocks.len();
        assert!(first + count <= BLOCKS_MAX && count <= LEAF_BLOCKS_MAX, "more rules than an index can have");
        self.blocks.resize(first + count, Block::EMPTY);
        self.positions.resize(first + count, [NONE; LANES]);
        first as u32
    }

    pub(super) fn give_back(&mut self, run: Range<usize>) {
        if run.is_empty() {
            return;
        }
        self.in_use -= run.len();
        for index in run.clone() {
            self.blocks[index].states = [0; LANES];
            self.positions[index] = [NONE; LANES];
        }
        if self.free.len() <= run.len() {
            self.free.resize(run.len() + 1, Vec::new());
        }
        self.free[run.len()].push(run.start as u32);
    }

    /// A leaf of these rules, which are in order.
    pub(super) fn leaf<'a>(&mut self, rules: impl ExactSizeIterator<Item = &'a (u32, Bounds<N>)>) -> Branch {
        if rules.len() == 0 {
            return Branch::EMPTY;
        }
        let count = rules.len().div_ceil(LANES);
        let first = self.take(count);
        for (at, (position, bounds)) in rules.enumerate() {
            let index = first as usize + at / LANES;
            self.blocks[index].set(at % LANES, bounds);
            self.positions[index][at % LANES] = *position;
        }
        Branch::leaf(first, count)
    }

    /// Rules in a run of blocks.
    pub(super) fn used(&self, run: Range<usize>) -> usize {
        let Some(last) = run.clone().last() else { return 0 };
        let tail = self.positions[last].iter().take_while(|&&position| position != NONE).count();
        (run.len() - 1) * LANES + tail
    }

    /// The rules in a run of blocks, in order.
    pub(super) fn rules(&self, run: Range<usize>) -> impl Iterator<Item = (u32, Bounds<N>)> + '_ {
        run.flat_map(move |index| (0..LANES).map(move |lane| (index, lane)))
            .filter(|&(index, lane)| self.positions[index][lane] != NONE)
            .map(|(index, lane)| (self.positions[index][lane], self.blocks[index].get(lane)))
    }

    /// All rules there are, some more than once.
    pub(super) fn all_rules(&self) -> impl Iterator<Item = (u32, Bounds<N>)> + '_ {
        self.rules(0..self.blocks.len())
    }

    /// Puts a rule where it belongs in a run that has an empty lane.
    pub(super) fn insert(&mut self, run: Range<usize>, position: u32, bounds: &Bounds<N>) {
        let at = |lane: usize| (run.start + lane / LANES, lane % LANES);
        let mut lane = self.used(run.clone());
        while lane > 0 {
            let (from, to) = (at(lane - 1), at(lane));
            if self.positions[from.0][from.1] < position {
                break;
            }
            self.shift(from, to);
            lane -= 1;
        }
        let (index, lane) = at(lane);
        self.blocks[index].set(lane, bounds);
        self.positions[index][lane] = position;
    }

    /// Takes the rule at `position` out of a run, if it is there.
    pub(super) fn remove(&mut self, run: Range<usize>, position: u32) {
        let at = |lane: usize| (run.start + lane / LANES, lane % LANES);
        let used = self.used(run.clone());
        let Some(found) = (0..used).find(|&lane| self.positions[at(lane).0][at(lane).1] == position) else { return };
        for lane in found + 1..used {
            self.shift(at(lane), at(lane - 1));
        }
        let (index, lane) = at(used - 1);
        self.blocks[index].states[lane] = 0;
        self.positions[index][lane] = NONE;
    }

    fn shift(&mut self, from: (usize, usize), to: (usize, usize)) {
        let bounds = self.blocks[from.0].get(from.1);
        self.blocks[to.0].set(to.1, &bounds);
        self.positions[to.0][to.1] = self.positions[from.0][from.1];
    }

    /// Makes room for a rule at `position`: those from there on go one further.
    pub(super) fn open(&mut self, position: u32) {
        for lane in self.positions.as_flattened_mut() {
            *lane += u32::from(*lane >= position && *lane != NONE);
        }
    }

    /// Closes the gap that a rule at `position` left.
    pub(super) fn close(&mut self, position: u32) {
        for lane in self.positions.as_flattened_mut() {
            *lane -= u32::from(*lane > position && *lane != NONE);
        }
    }

    /// A block that has the rule at `position`.
    pub(super) fn find(&self, position: u32) -> Option<usize> {
        self.positions.iter().position(|lanes| lanes.iter().fold(false, |found, &lane| found | (lane == position)))
    }
}
