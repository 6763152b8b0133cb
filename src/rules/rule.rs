//! Typed rules: what a rules file says, with every word understood. [`Ruleset`] > [`Chain`] > [`Rule`] > [`Match`], [`Target`].
//!
//! Built once by [`super::load`] and immutable after. Everything in it is checked: chain indices are valid, jumps make no
//! loop and are no deeper than [`MAX_DEPTH`], each match fits the rule's protocol. Names, masks and list orders are
//! canonical, so two files that mean the same give equal rulesets, and [`super::save`] gives the same text.

use super::diagnostic::{Diagnostics, Span};
use crate::wire::{Addr, Family};

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

/// Index of a chain in [`Ruleset::chains`].
pub type ChainIndex = usize;

/// Index of INPUT in [`Ruleset::chains`].
pub const INPUT: ChainIndex = 0;
/// Index of FORWARD in [`Ruleset::chains`].
pub const FORWARD: ChainIndex = 1;
/// Index of OUTPUT in [`Ruleset::chains`].
pub const OUTPUT: ChainIndex = 2;
/// How many built-in chains the filter table has.
pub const BUILTIN_CHAINS: usize = 3;

/// A rules file, understood and checked. Equality is by meaning: chains and rules, not warnings or places.
#[derive(Clone, Debug)]
pub struct Ruleset {
    /// IP version the file is for.
    pub family: Family,
    /// The file's name as the operator gave it.
    pub file: String,
    /// Interface names, by [`crate::device::PortId`].
    pub ports: Vec<String>,
    /// Chains of the filter table: INPUT, FORWARD, OUTPUT, then user chains by name.
    pub chains: Vec<Chain>,
    /// Names of the other tables seen; they hold no rule.
    pub empty_tables: Vec<String>,
    pub(super) warnings: Diagnostics,
}

impl PartialEq for Ruleset {
    fn eq(&self, other: &Ruleset) -> bool {
        self.family == other.family && self.chains == other.chains
    }
}

impl Eq for Ruleset {}

impl Ruleset {
    /// What an expert would look at twice.
    pub fn warnings(&self) -> &Diagnostics {
        &self.warnings
    }

    /// Rules in all chains of the filter table.
    pub fn rule_count(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    /// The number that the rule's counter has: rules are counted through all chains, in order.
    pub fn counter_index(&self, chain: ChainIndex, rule: usize) -> usize {
        self.chains[..chain].iter().map(|chain| chain.rules.len()).sum::<usize>() + rule
    }

    /// Whether some rule of the forwarding path asks conntrack. Linux tracks only then.
    pub fn uses_conntrack(&self) -> bool {
        let tracks = |rule: &Rule| rule.matches.iter().any(|m| matches!(m, Match::State(_) | Match::Conntrack(_)));
        self.reachable_from(FORWARD).into_iter().any(|chain| self.chains[chain].rules.iter().any(tracks))
    }

    /// Chains that a packet entering `from` can reach, `from` first, in order of discovery.
    pub fn reachable_from(&self, from: ChainIndex) -> Vec<ChainIndex> {
        let mut found = vec![from];
        let mut next = 0;
        while let Some(&chain) = found.get(next) {
            next += 1;
            for target in self.chains[chain].rules.iter().filter_map(|rule| rule.target.chain()) {
                if !found.contains(&target) {
                    found.push(target);
                }
            }
        }
        found
    }
}

/// A chain of the filter table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Policy of a built-in chain; `None` for a user chain.
    pub policy: Option<Policy>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
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
    /// `-j` or `-g`
    pub target: Target,
    /// Where the target is named.
    pub target_span: Span,
}

impl Rule {
    /// Whether every packet matches.
    pub fn is_unconditional(&self) -> bool {
        let base = self.src.is_none() && self.dst.is_none() && self.proto.is_none() && self.fragment.is_none();
        let ports = self.in_interface.is_none() && self.out_interface.is_none();
        base && ports && self.matches.iter().all(|m| matches!(m, Match::Comment(_)))
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

/// A `-m` match and its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `-m tcp`
    Tcp(TcpMatch),
    /// `-m udp`
    Udp(UdpMatch),
    /// `-m icmp`, `-m icmp6`
    Icmp(IcmpMatch),
    /// `-m state`
    State(StateMatch),
    /// `-m conntrack`
    Conntrack(ConntrackMatch),
    /// `-m multiport`
    Multiport(MultiportMatch),
    /// `-m limit`
    Limit(LimitMatch),
    /// `-m comment`: matches always.
    Comment(String),
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// First.
    pub low: u16,
    /// Last; not below `low`.
    pub high: u16,
    /// `!`
    pub invert: bool,
}

impl PortRange {
    /// Every port.
    pub const ANY: PortRange = PortRange { low: 0, high: u16::MAX, invert: false };

    /// Whether `port` fits, `!` included.
    #[inline]
    pub const fn holds(&self, port: u16) -> bool {
        (self.low <= port && port <= self.high) != self.invert
    }
}

impl Default for PortRange {
    fn default() -> PortRange {
        PortRange::ANY
    }
}

/// `-m tcp`: needs all 20 bytes of a TCP header, or drops the packet (`tcp_mt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpMatch {
    /// `--sport`
    pub sport: PortRange,
    /// `--dport`
    pub dport: PortRange,
    /// `--tcp-flags`, `--syn`
    pub flags: TcpFlags,
    /// `--tcp-option`
    pub option: Option<TcpOption>,
}

/// `(flags & mask) == comp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpFlags {
    /// Which flags are looked at.
    pub mask: u8,
    /// Which of them must be set.
    pub comp: u8,
    /// `!`
    pub invert: bool,
}

/// `--tcp-option`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOption {
    /// The option's kind, not 0.
    pub kind: u8,
    /// `!`
    pub invert: bool,
}

/// `-m udp`: needs all 8 bytes of a UDP header, or drops the packet (`udp_mt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UdpMatch {
    /// `--sport`
    pub sport: PortRange,
    /// `--dport`
    pub dport: PortRange,
}

/// `-m icmp`, `-m icmp6`: needs 8 bytes of header, or drops the packet (`icmp_match`, `icmp6_match`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpMatch {
    /// The type. For IPv4, 255 is any type.
    pub kind: u8,
    /// The code, or `None` for any.
    pub code: Option<u8>,
    /// `!`
    pub invert: bool,
}

/// What `-m state` and `--ctstate` can ask for, as bits. The first five are [`crate::conntrack::CtInfo::state_bit`]'s.
pub mod state {
    /// INVALID
    pub const INVALID: u16 = 1;
    /// ESTABLISHED
    pub const ESTABLISHED: u16 = 1 << 1;
    /// RELATED
    pub const RELATED: u16 = 1 << 2;
    /// NEW
    pub const NEW: u16 = 1 << 3;
    /// UNTRACKED
    pub const UNTRACKED: u16 = 1 << 6;
    /// SNAT: the source was translated.
    pub const SNAT: u16 = 1 << 7;
    /// DNAT: the destination was translated.
    pub const DNAT: u16 = 1 << 8;
    /// The five states that exclude each other.
    pub const STATES: u16 = INVALID | ESTABLISHED | RELATED | NEW | UNTRACKED;
}

/// `-m state`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateMatch {
    /// Bits of [`state`], without SNAT and DNAT.
    pub states: u16,
    /// `!`
    pub invert: bool,
}

/// A set of bits asked for, with `!`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitMatch {
    /// Matches when any of these is set.
    pub bits: u16,
    /// `!`
    pub invert: bool,
}

/// `-m conntrack`. Without a connection (INVALID, UNTRACKED) only `--ctstate` is asked (`conntrack_mt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ConntrackMatch {
    /// `--ctstate`: bits of [`state`].
    pub state: Option<BitMatch>,
    /// `--ctstatus`: bits of [`crate::conntrack::CtStatus`]. NONE is no bit.
    pub status: Option<BitMatch>,
}

/// Which port `-m multiport` looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiportSide {
    /// `--sports`
    Source,
    /// `--dports`
    Destination,
    /// `--ports`: either.
    Either,
}

/// `-m multiport`: needs the first 4 bytes after the IP header, or drops the packet (`multiport_mt`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultiportMatch {
    /// Which port.
    pub side: MultiportSide,
    /// `!`
    pub invert: bool,
    /// Ports (both ends equal) and ranges, in the order written; at most 15, a range counting twice.
    pub ports: Vec<(u16, u16)>,
}

/// `-m limit`. The arithmetic is in [`super::limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitMatch {
    /// Time between two packets in 1/10000 s (`XT_LIMIT_SCALE`).
    pub average: u32,
    /// How many packets may come at once.
    pub burst: u32,
}

/// What a rule does with a packet that matches.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Target {
    /// No `-j`: only counts.
    #[default]
    Count,
    /// Passes.
    Accept,
    /// Dropped.
    Drop,
    /// Goes on after the rule that called this chain; in a built-in chain, to the policy.
    Return,
    /// Dropped and answered.
    Reject(RejectWith),
    /// Logged; the next rule follows.
    Log(LogTarget),
    /// `-j CHAIN`
    Jump(ChainIndex),
    /// `-g CHAIN`: as a jump, but its end returns to where the last jump came from.
    Goto(ChainIndex),
}

impl Target {
    /// The chain it leads to.
    pub const fn chain(&self) -> Option<ChainIndex> {
        match self {
            Target::Jump(chain) | Target::Goto(chain) => Some(*chain),
            _ => None,
        }
    }

    /// Whether no later rule of the same chain sees a packet after it.
    pub const fn is_final(&self) -> bool {
        matches!(self, Target::Accept | Target::Drop | Target::Return | Target::Reject(_) | Target::Goto(_))
    }
}

/// `-j LOG`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTarget {
    /// `--log-prefix`, at most 29 bytes.
    pub prefix: String,
    /// `--log-level`, 0 (emerg) to 7 (debug); 4 (warning) by default.
    pub level: u8,
    /// Bits of [`log_flags`].
    pub flags: u8,
}

/// What `-j LOG` adds to a line (`NF_LOG_*`).
pub mod log_flags {
    /// `--log-tcp-sequence`
    pub const TCP_SEQUENCE: u8 = 0x01;
    /// `--log-tcp-options`
    pub const TCP_OPTIONS: u8 = 0x02;
    /// `--log-ip-options`
    pub const IP_OPTIONS: u8 = 0x04;
    /// `--log-uid`: nothing to say about a forwarded packet.
    pub const UID: u8 = 0x08;
    /// `--log-macdecode`
    pub const MACDECODE: u8 = 0x20;
}

/// How a rejected packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectWith {
    /// `tcp-reset`
    TcpReset,
    /// `icmp-net-unreachable`
    IcmpNetUnreachable,
    /// `icmp-host-unreachable`
    IcmpHostUnreachable,
    /// `icmp-proto-unreachable`
    IcmpProtoUnreachable,
    /// `icmp-port-unreachable`
    IcmpPortUnreachable,
    /// `icmp-net-prohibited`
    IcmpNetProhibited,
    /// `icmp-host-prohibited`
    IcmpHostProhibited,
    /// `icmp-admin-prohibited`
    IcmpAdminProhibited,
    /// `icmp6-no-route`
    Icmp6NoRoute,
    /// `icmp6-adm-prohibited`
    Icmp6AdmProhibited,
    /// `icmp6-addr-unreachable`
    Icmp6AddrUnreachable,
    /// `icmp6-port-unreachable`
    Icmp6PortUnreachable,
    /// `icmp6-policy-fail`
    Icmp6PolicyFail,
    /// `icmp6-reject-route`
    Icmp6RejectRoute,
}

impl RejectWith {
    /// The default: port unreachable.
    pub const fn default_for(family: Family) -> RejectWith {
        match family {
            Family::V4 => RejectWith::IcmpPortUnreachable,
            Family::V6 => RejectWith::Icmp6PortUnreachable,
        }
    }

    /// Type and code of the ICMP (IPv4) or ICMPv6 message to answer with; `None` for a TCP reset.
    pub const fn icmp(self) -> Option<(u8, u8)> {
        Some(match self {
            RejectWith::TcpReset => return None,
            RejectWith::IcmpNetUnreachable => (3, 0),
            RejectWith::IcmpHostUnreachable => (3, 1),
            RejectWith::IcmpProtoUnreachable => (3, 2),
            RejectWith::IcmpPortUnreachable => (3, 3),
            RejectWith::IcmpNetProhibited => (3, 9),
            RejectWith::IcmpHostProhibited => (3, 10),
            RejectWith::IcmpAdminProhibited => (3, 13),
            RejectWith::Icmp6NoRoute => (1, 0),
            RejectWith::Icmp6AdmProhibited => (1, 1),
            RejectWith::Icmp6AddrUnreachable => (1, 3),
            RejectWith::Icmp6PortUnreachable => (1, 4),
            RejectWith::Icmp6PolicyFail => (1, 5),
            RejectWith::Icmp6RejectRoute => (1, 6),
        })
    }

    /// The word after `--reject-with`.
    pub fn name(self) -> &'static str {
        super::names::REJECT_V4.iter().chain(super::names::REJECT_V6).find(|entry| entry.2 == self).map_or("", |e| e.0)
    }
}
