//! Typed rules: what a rules file says, with every word understood. [`Ruleset`] > [`Chain`] > [`Rule`] > [`Match`], [`Target`].
//!
//! Built once by [`super::load`] and immutable after. Everything in it is checked: chain indices are valid, jumps make no
//! loop and are no deeper than [`MAX_DEPTH`], each match fits the rule's protocol. Names, masks and list orders are
//! canonical, so two files that mean the same give equal rulesets, and [`super::save`] gives the same text.

use super::diagnostic::{Diagnostics, Span};
use super::matches::Match;
use super::save::rule_text;
use super::set::{SetCell, SetTable};
use super::targets::Target;
use crate::wire::{Addr, Family};
use std::sync::Arc;

/// How many jumps may be open at once: the return stack's size, bounded when the file is loaded.
pub const MAX_DEPTH: usize = 32;

/// A table of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableName {
    /// filter: what may pass.
    Filter,
    /// raw: before conntrack.
    Raw,
    /// mangle: changes packets.
    Mangle,
    /// nat: translations of connections.
    Nat,
    /// security: after filter.
    Security,
}

impl TableName {
    /// All of them.
    pub const ALL: &[TableName] =
        &[TableName::Filter, TableName::Raw, TableName::Mangle, TableName::Nat, TableName::Security];

    /// As after `*`.
    pub const fn name(self) -> &'static str {
        match self {
            TableName::Filter => "filter",
            TableName::Raw => "raw",
            TableName::Mangle => "mangle",
            TableName::Nat => "nat",
            TableName::Security => "security",
        }
    }
}

/// Where in its way a packet meets rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Hook {
    /// Received, not routed yet.
    Prerouting,
    /// For the host.
    Input,
    /// Routed on.
    Forward,
    /// From the host.
    Output,
    /// About to leave.
    Postrouting,
}

impl Hook {
    /// The built-in chain's name.
    pub const fn chain_name(self) -> &'static str {
        match self {
            Hook::Prerouting => "PREROUTING",
            Hook::Input => "INPUT",
            Hook::Forward => "FORWARD",
            Hook::Output => "OUTPUT",
            Hook::Postrouting => "POSTROUTING",
        }
    }
}

/// Index of a chain in [`Ruleset::chains`].
pub type ChainIndex = usize;

/// The built-in chains, in the order they have in [`Ruleset::chains`]; all of them are always there.
pub const BUILTIN: [(TableName, Hook); BUILTIN_CHAINS] = [
    (TableName::Filter, Hook::Input),
    (TableName::Filter, Hook::Forward),
    (TableName::Filter, Hook::Output),
    (TableName::Raw, Hook::Prerouting),
    (TableName::Raw, Hook::Output),
    (TableName::Mangle, Hook::Prerouting),
    (TableName::Mangle, Hook::Input),
    (TableName::Mangle, Hook::Forward),
    (TableName::Mangle, Hook::Output),
    (TableName::Mangle, Hook::Postrouting),
    (TableName::Nat, Hook::Prerouting),
    (TableName::Nat, Hook::Input),
    (TableName::Nat, Hook::Output),
    (TableName::Nat, Hook::Postrouting),
    (TableName::Security, Hook::Input),
    (TableName::Security, Hook::Forward),
    (TableName::Security, Hook::Output),
];

/// How many built-in chains there are.
pub const BUILTIN_CHAINS: usize = 17;
/// filter INPUT.
pub const INPUT: ChainIndex = 0;
/// filter FORWARD.
pub const FORWARD: ChainIndex = 1;
/// filter OUTPUT.
pub const OUTPUT: ChainIndex = 2;
/// raw PREROUTING.
pub const RAW_PREROUTING: ChainIndex = 3;
/// mangle PREROUTING.
pub const MANGLE_PREROUTING: ChainIndex = 5;
/// mangle FORWARD.
pub const MANGLE_FORWARD: ChainIndex = 7;
/// mangle POSTROUTING.
pub const MANGLE_POSTROUTING: ChainIndex = 9;
/// nat PREROUTING.
pub const NAT_PREROUTING: ChainIndex = 10;
/// nat POSTROUTING.
pub const NAT_POSTROUTING: ChainIndex = 13;
/// security FORWARD.
pub const SECURITY_FORWARD: ChainIndex = 15;

/// The chains that a forwarded packet enters, in its order.
pub const PATH: [ChainIndex; 8] = [
    RAW_PREROUTING,
    MANGLE_PREROUTING,
    NAT_PREROUTING,
    MANGLE_FORWARD,
    FORWARD,
    SECURITY_FORWARD,
    MANGLE_POSTROUTING,
    NAT_POSTROUTING,
];

/// A rules file, understood and checked. Equality is by meaning: chains and rules, not warnings or places.
#[derive(Clone, Debug)]
pub struct Ruleset {
    /// IP version the file is for.
    pub family: Family,
    /// The file's name as the operator gave it.
    pub file: String,
    /// Interface names, by [`crate::device::PortId`].
    pub ports: Vec<String>,
    /// Chains of all tables: the [`BUILTIN`] ones, then user chains by table and name.
    pub chains: Vec<Chain>,
    /// The tables the file has, in its order.
    pub tables: Vec<TableName>,
    /// The sets that rules may name.
    pub(super) sets: Arc<SetTable>,
    /// Those that rules do name, held so that they stay.
    pub(super) named_sets: Vec<Arc<SetCell>>,
    pub(super) warnings: Diagnostics,
    pub(super) not_honoured: Diagnostics,
    /// Where the second line of the file begins, the third, and so on.
    pub(super) line_starts: Vec<usize>,
    /// Of which chains the file speaks; the host's others stay as the kernel has them.
    pub(super) spoken: Spoken,
    /// Of which chains changes have spoken since.
    pub(super) spoken_by_changes: Spoken,
    /// Of which chains changes to the rules before had spoken: these rules say it of them once more.
    pub(super) taken_back: Spoken,
    /// The kernel has what is its own of these rules.
    pub(super) given: bool,
    /// Places ([`Rule::span`]) from here on are not in the file but in texts that changed it.
    pub(super) file_end: usize,
    /// Where the next such text's places begin.
    pub(super) places: usize,
}

/// Of what of chains something is said.
#[derive(Clone, Debug, Default)]
pub(super) struct Spoken {
    /// Chains of which it is said which rules they have.
    pub(super) rules: Vec<ChainIndex>,
    /// Chains of which it is said what policy they have.
    pub(super) policies: Vec<ChainIndex>,
}

impl Spoken {
    /// This and the other, of built-in chains.
    pub(super) fn and(&self, other: &Spoken) -> Spoken {
        let both = |these: &[ChainIndex], those: &[ChainIndex]| {
            let mut all: Vec<ChainIndex> =
                these.iter().chain(those).copied().filter(|&it| it < BUILTIN_CHAINS).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        Spoken { rules: both(&self.rules, &other.rules), policies: both(&self.policies, &other.policies) }
    }
}

impl PartialEq for Ruleset {
    fn eq(&self, other: &Ruleset) -> bool {
        self.family == other.family && self.chains == other.chains
    }
}

impl Eq for Ruleset {}

impl Ruleset {
    /// Takes the place of `before`: what changes have said of the host's chains since those rules were read is taken back.
    pub fn take_back_changes(&mut self, before: &Ruleset) {
        self.taken_back = before.spoken_by_changes.clone();
    }

    /// The sets that rules may name.
    pub fn sets(&self) -> &Arc<SetTable> {
        &self.sets
    }

    /// What an expert would look at twice.
    pub fn warnings(&self) -> &Diagnostics {
        &self.warnings
    }

    /// What is understood, and cannot be done.
    pub fn not_honoured(&self) -> &Diagnostics {
        &self.not_honoured
    }

    /// The line of the file that a thing stands in, from 1; none for what is not in the file.
    pub fn line(&self, span: Span) -> Option<u32> {
        (span.end > 0 && span.start < self.file_end)
            .then(|| self.line_starts.partition_point(|&start| start <= span.start) as u32 + 1)
    }

    /// Whether the file has the table.
    pub fn has(&self, table: TableName) -> bool {
        self.tables.contains(&table)
    }

    /// Chains of one table, built-in ones first, with their indices.
    pub fn chains_of(&self, table: TableName) -> impl Iterator<Item = (ChainIndex, &Chain)> {
        self.chains.iter().enumerate().filter(move |(_, chain)| chain.table == table)
    }

    /// Rules in all chains of all tables.
    pub fn rule_count(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    /// By chain, the counter's number of its first rule: [`Ruleset::counter_index`] for all of them at once.
    pub fn first_counters(&self) -> Vec<usize> {
        let mut counted = 0;
        let first = |chain: &Chain| {
            counted += chain.rules.len();
            counted - chain.rules.len()
        };
        self.chains.iter().map(first).collect()
    }

    /// The number that the rule's counter has: rules are counted through all chains, in order.
    pub fn counter_index(&self, chain: ChainIndex, rule: usize) -> usize {
        self.chains[..chain].iter().map(|chain| chain.rules.len()).sum::<usize>() + rule
    }

    /// Whether some rule of the file, wherever it stands, needs connections to be tracked. Linux tracks only then (the
    /// extension's `checkentry` asks for it).
    pub fn wants_conntrack(&self) -> bool {
        self.chains.iter().flat_map(|chain| &chain.rules).any(|rule| rule.wants_conntrack())
    }

    /// Whether connections of forwarded packets may be translated: whether nat has a rule that such a packet may meet.
    pub fn translates(&self) -> bool {
        [NAT_PREROUTING, NAT_POSTROUTING].iter().any(|&chain| !self.chains[chain].rules.is_empty())
    }

    /// Whether some rule of the file needs packets and bytes of connections to be counted (`nf_conntrack_acct`); Linux then
    /// turns that on.
    pub fn wants_accounting(&self) -> bool {
        self.chains.iter().flat_map(|chain| &chain.rules).any(|rule| rule.wants_accounting())
    }

    /// The first rule that gives a client something which all its connections share, so that one worker has to have them all: a
    /// mapping, or a block of ports. As `iptables-save` prints it.
    pub fn wants_one_worker(&self) -> Option<String> {
        self.chains.iter().find_map(|chain| {
            let rule = chain.rules.iter().find(|rule| rule.target.wants_one_worker())?;
            Some(rule_text(self.family, &chain.name, rule, &self.chains))
        })
    }

    /// By chain: whether a packet that enters one of these can come to it.
    pub(super) fn reached_from(&self, entries: impl IntoIterator<Item = ChainIndex>) -> Vec<bool> {
        let mut reached = vec![false; self.chains.len()];
        entries.into_iter().flat_map(|entry| self.reachable_from(entry)).for_each(|chain| reached[chain] = true);
        reached
    }

    /// Chains that a packet entering `from` can reach, `from` first, in order of discovery.
    pub fn reachable_from(&self, from: ChainIndex) -> Vec<ChainIndex> {
        let mut found = vec![from];
        let mut is_found = vec![false; self.chains.len()];
        is_found[from] = true;
        let mut next = 0;
        while let Some(&chain) = found.get(next) {
            next += 1;
            for target in self.chains[chain].rules.iter().filter_map(|rule| rule.target.chain()) {
                if !core::mem::replace(&mut is_found[target], true) {
                    found.push(target);
                }
            }
        }
        found
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Its table.
    pub table: TableName,
    /// Policy of a built-in chain; `None` for a user chain.
    pub policy: Option<Policy>,
    /// Its rules, in order; shared with rulesets that were made of this one by a change.
    pub rules: Vec<Arc<Rule>>,
    /// Where it is declared.
    pub span: Span,
}

/// What becomes of a packet that no rule of a built-in chain decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It passes.
    Accept,
    /// It is dropped.
    Drop,
}

/// One rule. All of it must match for the target to run.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// The rule's text.
    pub span: Span,
    /// `-s`
    pub src: Option<AddrMatch>,
    /// `-d`
    pub dst: Option<AddrMatch>,
    /// `-i`
    pub in_interface: Option<InterfaceMatch>,
    /// `-o`
    pub out_interface: Option<InterfaceMatch>,
    /// `-p`
    pub proto: Option<ProtoMatch>,
    /// `-f` (IPv4): second and later fragments. `Some(true)` is `! -f`.
    pub fragment: Option<bool>,
    /// `-m`, in the order first mentioned, which is the order of evaluation.
    pub matches: Vec<Match>,
    /// Where each is named.
    pub match_spans: Vec<Span>,
    /// `-j` or `-g`
    pub target: Target,
    /// Where the target is named.
    pub target_span: Span,
    /// A rule that iptables takes and that is not understood here, as its words without the chain it leads to; then the rest
    /// says nothing, but for that. Never in a chain that forwarded packets come to, once the file is loaded.
    pub opaque: Option<String>,
}

impl Rule {
    /// Whether it makes Linux count packets and bytes of connections.
    pub fn wants_accounting(&self) -> bool {
        self.matches.iter().any(|matched| matches!(matched, Match::Connbytes(_)))
    }

    /// Whether it makes Linux track connections.
    pub fn wants_conntrack(&self) -> bool {
        self.matches.iter().any(Match::wants_conntrack) || self.target.wants_conntrack()
    }

    /// Whether every packet matches.
    pub fn is_unconditional(&self) -> bool {
        let base = self.src.is_none() && self.dst.is_none() && self.proto.is_none() && self.fragment.is_none();
        let ports = self.in_interface.is_none() && self.out_interface.is_none();
        base && ports && self.matches.iter().all(|matched| matches!(matched, Match::Comment(_)))
    }
}

/// `-s`, `-d`: `(address & mask) == net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddrMatch {
    /// The network, host bits zero.
    pub net: Addr,
    /// Its mask; need not be contiguous.
    pub mask: Addr,
    /// `!`
    pub invert: bool,
}

/// `-i`, `-o`: a name, or with `+` at its end every name that begins so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceMatch {
    /// As written.
    pub name: String,
    /// `!`
    pub invert: bool,
}

impl InterfaceMatch {
    /// Whether the name `interface` fits, before `!`.
    pub fn covers(&self, interface: &str) -> bool {
        match self.name.strip_suffix('+') {
            Some(prefix) => interface.starts_with(prefix),
            None => interface == self.name,
        }
    }
}

/// `-p`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtoMatch {
    /// The protocol's number; never 0 (which means any).
    pub number: u8,
    /// `!`
    pub invert: bool,
}
