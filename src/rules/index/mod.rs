//! Which rules of a long chain can match a packet: [`Index`].
//!
//! A chain is walked in order, and most of its rules don't match. The index knows each rule's [`Bounds`] (what of it is a
//! plain comparison with the flow's own fields) and gives, for a packet's [`Key`], the first position at or after another
//! whose bounds hold. The walk then tests that rule itself, in full, with all it counts and does; so the index may name too
//! many rules and must never miss one.
//!
//! Made of two things. The bounds lie in [blocks](block), sixteen rules side by side, and a block is compared with a key in some
//! fifteen instructions. Above them is a tree of [`Node`]s: each cuts one field (an address word, a port, the protocol) at
//! up to [`PIVOTS`] places, also sixteen values in one comparison. A rule that lies across several cuts is either copied
//! into each part, as long as that adds little, or goes to the node's *rest*, which is searched as well: so a chain of
//! any shape takes memory in proportion to its rules. Small chains are one run of blocks and no tree.
//!
//! Positions are the chain's own, 0 for the first rule, and stand in the blocks; [`Index::insert`] and [`Index::remove`]
//! shift them in one pass over memory (10,000 rules: some 100 KiB).

mod block;
mod build;
mod change;
mod search;
#[cfg(test)]
mod tests;

pub use search::Scratch;

use block::Blocks;

/// What one rule asks of a flow. `N` is how many 32-bit words two addresses have: [`V4`] or [`V6`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds<const N: usize> {
    /// Source address, then destination address, host byte order, the most significant word first; with `masks`, any mask.
    pub values: [u32; N],
    /// The bits of the addresses that count.
    pub masks: [u32; N],
    /// First and last source port; a first above the last goes round over 65535.
    pub sport: (u16, u16),
    /// The same of the destination port.
    pub dport: (u16, u16),
    /// The protocol, if it matters.
    pub proto: Option<u8>,
    /// Interfaces that pass: every bit of [`Key::ports`] must be among them.
    pub ports: u8,
    /// Connection states that pass: [`Key::states`] must have one of them.
    pub states: u16,
}

/// Words of two IPv4 addresses.
pub const V4: usize = 2;
/// Words of two IPv6 addresses.
pub const V6: usize = 8;

impl<const N: usize> Bounds<N> {
    /// What every flow with some state is inside of.
    pub const ANY: Bounds<N> = Bounds {
        values: [0; N],
        masks: [0; N],
        sport: (0, u16::MAX),
        dport: (0, u16::MAX),
        proto: None,
        ports: u8::MAX,
        states: u16::MAX,
    };

    /// Whether a flow is inside, by the book: the measure of all else.
    pub fn hold(&self, key: &Key<N>) -> bool {
        let within = |(low, high): (u16, u16), port: u16| port.wrapping_sub(low) <= high.wrapping_sub(low);
        (0..N).all(|word| key.words[word] & self.masks[word] == self.values[word])
            && within(self.sport, key.sport)
            && within(self.dport, key.dport)
            && self.proto.is_none_or(|proto| proto == key.proto)
            && key.ports & !self.ports == 0
            && key.states & self.states != 0
    }

    /// The values of dimension `dim` that can hold, from the first to the last.
    fn span(&self, dim: usize) -> (u32, u32) {
        let range =
            |(low, high): (u16, u16)| if low <= high { (low.into(), high.into()) } else { (0, u16::MAX.into()) };
        if dim < N {
            let prefix = !u32::MAX.checked_shr(self.masks[dim].leading_ones()).unwrap_or(0);
            let low = self.values[dim] & prefix;
            return (low, low | !prefix);
        }
        match dim - N {
            0 => range(self.sport),
            1 => range(self.dport),
            _ => self.proto.map_or((0, u8::MAX.into()), |proto| (proto.into(), proto.into())),
        }
    }

    /// Dimensions a tree can cut: the addresses' words, the ports, the protocol.
    const DIMS: usize = N + 3;

    /// The last value of a dimension.
    const fn last(dim: usize) -> u32 {
        match dim {
            _ if dim < N => u32::MAX,
            _ if dim < N + 2 => u16::MAX as u32,
            _ => u8::MAX as u32,
        }
    }
}

/// What a packet has to compare with [`Bounds`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key<const N: usize> {
    /// Source address, then destination address, host byte order, the most significant word first.
    pub words: [u32; N],
    /// Source port, 0 where there is none.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// The connection's state, one bit.
    pub states: u16,
    /// Interfaces, one bit for the way in and one for the way out.
    pub ports: u8,
    /// The last header's protocol.
    pub proto: u8,
}

/// Room for the dimensions of either family: 11, and to a whole cache line.
const DIMS_MAX: usize = 16;

impl<const N: usize> Key<N> {
    /// Whether the other is the same; without a branch for each field.
    #[inline(always)]
    pub(super) fn is(&self, other: &Key<N>) -> bool {
        let words = (0..N).fold(0, |differ, word| differ | (self.words[word] ^ other.words[word]));
        let halves = (self.sport ^ other.sport) | (self.dport ^ other.dport) | (self.states ^ other.states);
        let bytes = (self.ports ^ other.ports) | (self.proto ^ other.proto);
        words | u32::from(halves) | u32::from(bytes) == 0
    }

    /// The value in each dimension.
    #[inline(always)]
    fn dims(&self) -> [u32; DIMS_MAX] {
        let mut dims = [0; DIMS_MAX];
        dims[..N].copy_from_slice(&self.words);
        dims[N] = self.sport.into();
        dims[N + 1] = self.dport.into();
        dims[N + 2] = self.proto.into();
        dims
    }
}

/// No rule.
pub const NONE: u32 = u32::MAX;

/// Cuts of a node.
const PIVOTS: usize = 14;
/// A node's branch for what lies across its cuts.
const REST: usize = 15;

/// One node of the tree: two cache lines side by side.
#[derive(Clone, Debug)]
#[repr(C, align(128))]
struct Node {
    /// The first [`PIVOTS`] words are cuts in rising order, a value equal to one belongs above it. Then, which of them are
    /// in use (one bit each) with the dimension above them; then, a position that none in the rest is below.
    cuts: [u32; 16],
    /// What lies below the first cut, between the cuts, above the last; then the rest.
    branches: [Branch; 16],
}

impl Node {
    fn new(dim: usize, cuts: &[u32]) -> Node {
        let mut node = Node { cuts: [u32::MAX; 16], branches: [Branch::EMPTY; 16] };
        node.cuts[..cuts.len()].copy_from_slice(cuts);
        node.cuts[14] = ((1 << cuts.len()) - 1) | ((dim as u32) << 16);
        node
    }

    #[inline(always)]
    fn dim(&self) -> usize {
        (self.cuts[14] >> 16) as usize
    }

    fn cuts_len(&self) -> usize {
        (self.cuts[14] as u16).count_ones() as usize
    }

    /// The branches a span reaches, first and last.
    fn reach(&self, (low, high): (u32, u32)) -> (usize, usize) {
        let cuts = &self.cuts[..self.cuts_len()];
        let branch = |value: u32| cuts.partition_point(|&cut| cut <= value);
        (branch(low), branch(high))
    }
}

/// Where to go on: a node, or a leaf, which is a run of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Branch(u32);

impl Branch {
    /// The leaf without blocks.
    const EMPTY: Branch = Branch(0);
    const IS_NODE: u32 = 1 << 31;
    /// A leaf's length stands above its first block.
    const LEN_SHIFT: u32 = 22;

    fn node(index: usize) -> Branch {
        Branch(index as u32 | Self::IS_NODE)
    }

    fn leaf(first: u32, blocks: usize) -> Branch {
        Branch(first | (blocks as u32) << Self::LEN_SHIFT)
    }

    #[inline(always)]
    fn is_node(self) -> bool {
        self.0 & Self::IS_NODE != 0
    }

    #[inline(always)]
    fn index(self) -> usize {
        (self.0 & !Self::IS_NODE) as usize
    }

    /// A leaf's blocks but the first. Of a leaf with one block it is nonsense.
    #[inline(always)]
    fn without_first(self) -> Branch {
        Branch(self.0.wrapping_add(1).wrapping_sub(1 << Self::LEN_SHIFT))
    }

    /// The blocks of a leaf.
    #[inline(always)]
    fn blocks(self) -> core::ops::Range<usize> {
        let first = (self.0 & ((1 << Self::LEN_SHIFT) - 1)) as usize;
        first..first + (self.0 >> Self::LEN_SHIFT) as usize
    }
}

/// Most blocks of a leaf.
const LEAF_BLOCKS_MAX: usize = 511;
/// Most blocks of all: what a [`Branch`] can name.
const BLOCKS_MAX: usize = 1 << Branch::LEN_SHIFT;

/// A chain's rules by what they ask of a flow. See the module's head.
#[derive(Clone, Debug)]
pub struct Index<const N: usize> {
    root: Branch,
    nodes: Vec<Node>,
    blocks: Blocks<N>,
    /// How many rules there are.
    len: u32,
    /// Changes since the tree was built.
    changes: u32,
}

impl<const N: usize> Index<N> {
    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory taken.
    pub fn bytes(&self) -> usize {
        self.blocks.bytes() + self.nodes.capacity() * size_of::<Node>()
    }

    /// Nodes, blocks in use, deepest path: what the tree came out as.
    pub fn shape(&self) -> (usize, usize, usize) {
        fn depth(nodes: &[Node], branch: Branch) -> usize {
            if !branch.is_node() {
                return 0;
            }
            1 + nodes[branch.index()].branches.iter().map(|&branch| depth(nodes, branch)).max().unwrap_or(0)
        }
        (self.nodes.len(), self.blocks.in_use(), depth(&self.nodes, self.root))
    }
}
