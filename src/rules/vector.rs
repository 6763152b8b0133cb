//! The fast engine: [`RuleVector`], the FORWARD chain and all it can reach as one flat array of [`Row`]s.
//!
//! Compiled once from a [`Ruleset`] by the control thread, then shared read-only by all workers (only the buckets of
//! `limit` change, through atomics). Jumps are offsets; the chains open are on a stack of fixed depth, whose bound was
//! checked when the file was loaded. One row is compared without branching on what it asks: every row asks everything, with
//! masks and ranges that let pass what the rule does not care about.
//!
//! Order matters where a test does more than answer: `limit` spends credit, and a match that cannot read its header drops
//! the packet. So a row's pure tests stand in the row itself only up to the first such match; the rest are [`Op`]s, run in
//! order. A packet whose transport header is cut short takes the careful way: every match in order, as Linux does.
//!
//! [`RuleVector::trace`] also says what the verdict rests on, so that it may be kept for the connection's later packets.

use super::counter::RuleCounters;
use super::limit::Bucket;
use super::log::LogRequest;
use super::rule::{
    AddrMatch, BitMatch, ConntrackMatch, FORWARD, IcmpMatch, InterfaceMatch, LogTarget, MAX_DEPTH, Match,
    MultiportMatch, MultiportSide, Policy, PortRange, RejectWith, Rule, Ruleset, Target, TcpMatch, UdpMatch, state,
};
use super::trace::{Reads, Trace};
use super::{Context, Decision};
use crate::conntrack::{CtInfo, CtStatus};
use crate::device::PortId;
use crate::packet::{L4, Packet};
use crate::verdict::DropReason;
use crate::wire::{Addr, Family, proto, tcp, udp};
use core::ops::{BitAnd, BitXor};

/// DCCP's protocol number (RFC 4340).
const DCCP: u8 = 33;

/// An address as one machine word of its family.
trait Word: Copy + Eq + Default + BitAnd<Output = Self> + BitXor<Output = Self> {
    fn of(addr: Addr) -> Self;
}

impl Word for u32 {
    #[inline(always)]
    fn of(addr: Addr) -> u32 {
        addr.v4_bits()
    }
}

impl Word for u128 {
    #[inline(always)]
    fn of(addr: Addr) -> u128 {
        addr.bits()
    }
}

/// What a row does when it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Count,
    Accept,
    Drop,
    Return,
    Reject(RejectWith),
    /// Index of the target.
    Log(u32),
    /// Offset of the chain's first row.
    Jump(u32),
    /// Offset of the chain's first row.
    Goto(u32),
    /// Not a rule: the chain ends here.
    End,
}

/// A port range as first and length: `port - low <= span` in wrapping arithmetic.
#[derive(Clone, Copy, Debug)]
struct Span16 {
    low: u16,
    span: u16,
}

impl Span16 {
    const ANY: Span16 = Span16 { low: 0, span: u16::MAX };

    #[inline(always)]
    const fn holds(self, value: u16) -> bool {
        value.wrapping_sub(self.low) <= self.span
    }

    /// What both hold, or `None` when that is nothing.
    fn meet(self, low: u16, high: u16) -> Option<Span16> {
        let first = self.low.max(low);
        let last = (self.low + self.span).min(high);
        (first <= last).then(|| Span16 { low: first, span: last - first })
    }
}

/// `Row::invert` bits.
const INVERT_SRC: u8 = 1;
const INVERT_DST: u8 = 2;
const INVERT_PROTO: u8 = 4;
const INVERT_FLAGS: u8 = 8;

/// One rule, or the end of a chain. 48 bytes for IPv4.
#[derive(Clone, Debug)]
#[repr(C)]
struct Row<W> {
    src: W,
    src_mask: W,
    dst: W,
    dst_mask: W,
    sport: Span16,
    dport: Span16,
    /// State bits that pass.
    states: u16,
    /// Bit `p`: may come in by port `p`; bit `4 + p`: may go out by it.
    ports: u8,
    proto: u8,
    /// 0xff, or 0 when any protocol passes.
    proto_mask: u8,
    flags_mask: u8,
    flags_comp: u8,
    invert: u8,
    /// First of the rule's matches in `RuleVector::ops`.
    ops: u32,
    /// How many there are.
    ops_len: u8,
    /// How many of them the row's own fields stand for.
    inlined: u8,
    action: Action,
    counter: u32,
}

/// A match by itself, in the order of the rule.
#[derive(Clone, Debug)]
enum Op {
    Tcp(TcpMatch),
    Udp(UdpMatch),
    Icmp(IcmpMatch),
    /// State bits that pass.
    State(u16),
    Conntrack(ConntrackMatch),
    /// Index of the list.
    Multiport(u32),
    /// Index of the bucket.
    Limit(u32),
}

/// What a match said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Yes,
    No,
    /// It could not read what it needs.
    Hotdrop,
}

impl From<bool> for Answer {
    #[inline(always)]
    fn from(yes: bool) -> Answer {
        if yes { Answer::Yes } else { Answer::No }
    }
}

/// What the rows compare with, taken from the context once per packet.
#[derive(Clone, Copy)]
struct Facts<W> {
    src: W,
    dst: W,
    sport: u16,
    dport: u16,
    /// One bit of [`state::STATES`].
    state: u16,
    ports: u8,
    proto: u8,
    flags: u8,
    /// Whether every match that fits the protocol can read its header.
    readable: bool,
}

#[derive(Debug)]
enum Rows {
    V4(Box<[Row<u32>]>),
    V6(Box<[Row<u128>]>),
}

/// The compiled filter FORWARD hook of one IP version. See the module's head.
#[derive(Debug)]
pub struct RuleVector {
    rows: Rows,
    ops: Box<[Op]>,
    multiports: Box<[MultiportMatch]>,
    buckets: Box<[Bucket]>,
    logs: Box<[LogTarget]>,
    policy: Policy,
    rule_count: usize,
    uses_conntrack: bool,
}

impl RuleVector {
    /// Compiles the FORWARD chain of `ruleset` and the chains it reaches.
    pub fn compile(ruleset: &Ruleset) -> RuleVector {
        let mut parts = Parts::default();
        let rows = match ruleset.family {
            Family::V4 => Rows::V4(parts.rows(ruleset).into()),
            Family::V6 => Rows::V6(parts.rows(ruleset).into()),
        };
        RuleVector {
            rows,
            ops: parts.ops.into(),
            multiports: parts.multiports.into(),
            buckets: parts.buckets.into(),
            logs: parts.logs.into(),
            policy: ruleset.chains[FORWARD].policy.unwrap_or(Policy::Accept),
            rule_count: ruleset.rule_count(),
            uses_conntrack: ruleset.uses_conntrack(),
        }
    }

    /// Counters to evaluate with, all zero.
    pub fn counters(&self) -> RuleCounters {
        RuleCounters::with_rules(self.rule_count)
    }

    /// Rows, ends of chains included.
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::V4(rows) => rows.len(),
            Rows::V6(rows) => rows.len(),
        }
    }

    /// Whether there is no rule on the forwarding path.
    pub fn is_empty(&self) -> bool {
        self.len() <= 1
    }

    /// Whether some rule asks conntrack.
    pub fn uses_conntrack(&self) -> bool {
        self.uses_conntrack
    }

    /// The rules' word on a packet. Each rule that matches counts it; each LOG on the way calls `log`. No allocation.
    ///
    /// # Panics
    /// When `counters` are not this vector's, or the packet is of the other IP version: both are bugs.
    #[inline]
    pub fn evaluate(
        &self,
        context: &Context<'_>,
        counters: &mut RuleCounters,
        log: &mut dyn FnMut(&LogRequest<'_>),
    ) -> Decision {
        self.run_rows(context, counters, log, &mut ())
    }

    /// The same, and `trace` (blank before) tells what it rests on.
    ///
    /// # Panics
    /// As [`RuleVector::evaluate`].
    pub fn trace(
        &self,
        context: &Context<'_>,
        counters: &mut RuleCounters,
        log: &mut dyn FnMut(&LogRequest<'_>),
        trace: &mut Trace,
    ) -> Decision {
        self.run_rows(context, counters, log, trace)
    }

    #[inline]
    fn run_rows<R: Reads>(
        &self,
        context: &Context<'_>,
        counters: &mut RuleCounters,
        log: &mut dyn FnMut(&LogRequest<'_>),
        reads: &mut R,
    ) -> Decision {
        assert_eq!(counters.rules.len(), self.rule_count, "counters of another ruleset");
        match (&self.rows, context.packet.family) {
            (Rows::V4(rows), Family::V4) => self.walk(rows, context, counters, log, reads),
            (Rows::V6(rows), Family::V6) => self.walk(rows, context, counters, log, reads),
            (_, family) => panic!("an {family:?} packet at the other family's rules"),
        }
    }

    #[inline]
    fn walk<W: Word, R: Reads>(
        &self,
        rows: &[Row<W>],
        context: &Context<'_>,
        counters: &mut RuleCounters,
        log: &mut dyn FnMut(&LogRequest<'_>),
        reads: &mut R,
    ) -> Decision {
        let facts = Facts::<W>::of(context);
        let bytes = context.packet.l3_len;
        let mut stack = [0u32; MAX_DEPTH];
        let mut depth = 0;
        let mut at = 0usize;
        loop {
            let row = &rows[at];
            at += 1;
            let answer = match facts.readable {
                true => self.test(row, &facts, context, reads),
                false => {
                    reads.packet();
                    self.test_careful(row, &facts, context)
                }
            };
            match answer {
                Answer::No => continue,
                Answer::Hotdrop => return Decision::Drop(DropReason::RuleHotdrop),
                Answer::Yes => {}
            }
            if row.action != Action::End {
                counters.rules[row.counter as usize].count(bytes);
                reads.rule(row.counter);
            }
            match row.action {
                Action::Count => {}
                Action::Accept => return Decision::Accept,
                Action::Drop => return Decision::Drop(DropReason::RuleDrop),
                Action::Reject(with) => return Decision::Reject(with),
                Action::Log(index) => {
                    reads.packet();
                    log(&LogRequest { log: &self.logs[index as usize], context });
                }
                Action::Goto(to) => at = to as usize,
                Action::Jump(to) => {
                    stack[depth] = at as u32;
                    depth += 1;
                    at = to as usize;
                }
                Action::Return | Action::End if depth > 0 => {
                    depth -= 1;
                    at = stack[depth] as usize;
                }
                Action::Return | Action::End => {
                    counters.policies[FORWARD].count(bytes);
                    reads.policy();
                    return match self.policy {
                        Policy::Accept => Decision::Accept,
                        Policy::Drop => Decision::Drop(DropReason::PolicyDrop),
                    };
                }
            }
        }
    }

    /// The row against a packet whose headers can be read.
    #[inline(always)]
    fn test<W: Word, R: Reads>(&self, row: &Row<W>, facts: &Facts<W>, context: &Context<'_>, reads: &mut R) -> Answer {
        let flags = ((facts.flags & row.flags_mask) == row.flags_comp) != (row.invert & INVERT_FLAGS != 0);
        let ports = row.sport.holds(facts.sport) & row.dport.holds(facts.dport);
        let state = facts.state & row.states != 0;
        let of_the_flow = row.base(facts) & ports & state;
        if of_the_flow && row.asks_flags() {
            reads.packet();
        }
        if !(of_the_flow & flags) {
            return Answer::No;
        }
        match row.ops_len == row.inlined {
            true => Answer::Yes,
            false => self.run_ops(&self.ops[row.rest()], context, reads),
        }
    }

    /// The row against any packet: every match, in order.
    #[cold]
    #[inline(never)]
    fn test_careful<W: Word>(&self, row: &Row<W>, facts: &Facts<W>, context: &Context<'_>) -> Answer {
        if row.proto_mask != 0 && chain_is_broken(context.packet) {
            // `ip6_packet_match`: addresses and interfaces first, then the walk to the last header.
            let without_proto = Row { proto_mask: 0, proto: 0, invert: row.invert & !INVERT_PROTO, ..row.clone() };
            return if without_proto.base(facts) { Answer::Hotdrop } else { Answer::No };
        }
        match row.base(facts) {
            true => self.run_ops(&self.ops[row.all()], context, &mut ()),
            false => Answer::No,
        }
    }

    fn run_ops<R: Reads>(&self, ops: &[Op], context: &Context<'_>, reads: &mut R) -> Answer {
        for op in ops {
            match op {
                Op::Tcp(_) | Op::Limit(_) => reads.packet(),
                Op::Conntrack(_) => reads.status(),
                // Its ports are in no tuple.
                Op::Multiport(_) if context.packet.proto == DCCP => reads.packet(),
                Op::Udp(_) | Op::Icmp(_) | Op::State(_) | Op::Multiport(_) => {}
            }
            let answer = self.run(op, context);
            if answer != Answer::Yes {
                return answer;
            }
        }
        Answer::Yes
    }

    fn run(&self, op: &Op, context: &Context<'_>) -> Answer {
        let packet = context.packet;
        match op {
            Op::State(states) => (context.info.state_bit() & states != 0).into(),
            Op::Conntrack(matched) => conntrack(matched, context.info, context.status).into(),
            Op::Limit(index) => self.buckets[*index as usize].take(context.now).into(),
            Op::Tcp(matched) if usize::from(packet.l4_len) >= tcp::HEADER_LEN => run_tcp(matched, context),
            Op::Udp(matched) if usize::from(packet.l4_len) >= udp::HEADER_LEN => {
                (matched.sport.holds(packet.sport) && matched.dport.holds(packet.dport)).into()
            }
            Op::Icmp(matched) if packet.l4_len >= 8 => icmp(matched, packet).into(),
            Op::Multiport(index) if packet.l4_len >= 4 => {
                let (sport, dport) = ports_of(packet, context.frame);
                multiport(&self.multiports[*index as usize], sport, dport).into()
            }
            Op::Tcp(_) | Op::Udp(_) | Op::Icmp(_) | Op::Multiport(_) => Answer::Hotdrop,
        }
    }
}

impl<W: Word> Row<W> {
    /// Addresses, interfaces, protocol.
    #[inline(always)]
    fn base(&self, facts: &Facts<W>) -> bool {
        let src = ((facts.src & self.src_mask) == self.src) != (self.invert & INVERT_SRC != 0);
        let dst = ((facts.dst & self.dst_mask) == self.dst) != (self.invert & INVERT_DST != 0);
        let proto = ((facts.proto & self.proto_mask) == self.proto) != (self.invert & INVERT_PROTO != 0);
        let ports = facts.ports & self.ports == facts.ports;
        src & dst & proto & ports
    }

    /// Whether the row's own fields ask for TCP flags.
    #[inline(always)]
    fn asks_flags(&self) -> bool {
        self.flags_mask | self.flags_comp | self.invert & INVERT_FLAGS != 0
    }

    fn all(&self) -> core::ops::Range<usize> {
        self.ops as usize..self.ops as usize + usize::from(self.ops_len)
    }

    #[inline(always)]
    fn rest(&self) -> core::ops::Range<usize> {
        self.ops as usize + usize::from(self.inlined)..self.ops as usize + usize::from(self.ops_len)
    }

    /// Matches every packet.
    fn any(action: Action) -> Row<W> {
        Row {
            src: W::default(),
            src_mask: W::default(),
            dst: W::default(),
            dst_mask: W::default(),
            sport: Span16::ANY,
            dport: Span16::ANY,
            states: state::STATES,
            ports: 0xff,
            proto: 0,
            proto_mask: 0,
            flags_mask: 0,
            flags_comp: 0,
            invert: 0,
            ops: 0,
            ops_len: 0,
            inlined: 0,
            action,
            counter: 0,
        }
    }

    /// Takes one pure match into the row's own fields, if it fits there beside what is there already.
    fn inline(&mut self, op: &Op) -> bool {
        let (sport, dport, flags) = match op {
            Op::State(states) => {
                self.states &= states;
                return true;
            }
            Op::Tcp(tcp) if tcp.option.is_none() => (tcp.sport, tcp.dport, tcp.flags),
            Op::Udp(udp) => (udp.sport, udp.dport, Default::default()),
            // 255 is any type for IPv4 and an ordinary one for IPv6: left to the match itself.
            Op::Icmp(icmp) if !icmp.invert && icmp.kind != 255 => {
                let (low, high) = match icmp.code {
                    Some(code) => (code, code),
                    None => (0, u8::MAX),
                };
                let kind = u16::from(icmp.kind) << 8;
                (
                    PortRange::ANY,
                    PortRange { low: kind | u16::from(low), high: kind | u16::from(high), invert: false },
                    Default::default(),
                )
            }
            _ => return false,
        };
        if sport.invert || dport.invert {
            return false;
        }
        let free = self.flags_mask == 0 && self.flags_comp == 0 && self.invert & INVERT_FLAGS == 0;
        if flags != Default::default() && !free {
            return false;
        }
        let met = self.sport.meet(sport.low, sport.high).zip(self.dport.meet(dport.low, dport.high));
        let Some((sport, dport)) = met else { return false };
        (self.sport, self.dport) = (sport, dport);
        if flags != Default::default() {
            (self.flags_mask, self.flags_comp) = (flags.mask, flags.comp);
            self.invert |= if flags.invert { INVERT_FLAGS } else { 0 };
        }
        true
    }
}

impl<W: Word> Facts<W> {
    #[inline(always)]
    fn of(context: &Context<'_>) -> Facts<W> {
        let packet = context.packet;
        let needs = match packet.proto {
            proto::TCP => tcp::HEADER_LEN,
            proto::UDP | proto::ICMP | proto::ICMPV6 => 8,
            proto::UDPLITE | proto::SCTP | DCCP => 4,
            _ => 0,
        };
        let readable = usize::from(packet.l4_len) >= needs && !chain_is_broken(packet);
        Facts {
            src: W::of(packet.src),
            dst: W::of(packet.dst),
            sport: packet.sport,
            dport: packet.dport,
            state: context.info.state_bit(),
            ports: 1 << context.in_port.0 | 1 << (4 + context.out_port.0),
            proto: packet.proto,
            flags: packet.tcp_flags,
            readable,
        }
    }
}

/// Whether the IPv6 header chain ends before its last header (`ipv6_find_hdr` gives -EBADMSG).
#[inline]
fn chain_is_broken(packet: &Packet) -> bool {
    packet.family == Family::V6
        && packet.l4 == L4::Malformed
        && matches!(
            packet.proto,
            proto::HOP_BY_HOP | proto::ROUTING | proto::FRAGMENT | proto::AH | proto::DEST_OPTIONS
        )
}

/// `conntrack_mt`, of what is covered.
fn conntrack(matched: &ConntrackMatch, info: CtInfo, status: CtStatus) -> bool {
    let test = |asked: BitMatch, bits: u16| (asked.bits & bits != 0) != asked.invert;
    let tracked = !matches!(info, CtInfo::Invalid | CtInfo::Untracked);
    let mut bits = info.state_bit();
    if tracked && status.any(CtStatus::SRC_NAT) {
        bits |= state::SNAT;
    }
    if tracked && status.any(CtStatus::DST_NAT) {
        bits |= state::DNAT;
    }
    if !matched.state.is_none_or(|asked| test(asked, bits)) {
        return false;
    }
    if !tracked {
        // Nothing more can be asked: true if the state was, false if only other things were.
        return matched.state.is_some();
    }
    matched.status.is_none_or(|asked| test(asked, status.0))
}

/// `icmp_match`, `icmp6_match`.
fn icmp(matched: &IcmpMatch, packet: &Packet) -> bool {
    let any = packet.family == Family::V4 && matched.kind == 255;
    let code = matched.code.is_none_or(|code| code == packet.icmp_code());
    (any || matched.kind == packet.icmp_type() && code) != matched.invert
}

/// `tcp_mt`, the 20 bytes being there.
fn run_tcp(matched: &TcpMatch, context: &Context<'_>) -> Answer {
    let packet = context.packet;
    let flags = ((packet.tcp_flags & matched.flags.mask) == matched.flags.comp) != matched.flags.invert;
    if !(matched.sport.holds(packet.sport) && matched.dport.holds(packet.dport) && flags) {
        return Answer::No;
    }
    let Some(wanted) = matched.option else { return Answer::Yes };
    let header_len = usize::from(packet.tcp_header_len);
    if header_len < tcp::HEADER_LEN || header_len > usize::from(packet.l4_len) {
        return Answer::Hotdrop;
    }
    let mut options = &packet.l4_bytes(context.frame)[tcp::HEADER_LEN..header_len];
    while let [kind, rest @ ..] = options {
        if *kind == wanted.kind {
            return (!wanted.invert).into();
        }
        // Kinds 0 and 1 are one byte long; a length of 0 counts as 1 (`tcp_find_option`).
        let length = if *kind < 2 { 1 } else { usize::from(rest.first().copied().unwrap_or(1).max(1)) };
        options = options.get(length..).unwrap_or_default();
    }
    wanted.invert.into()
}

/// Source and destination port as `multiport` reads them, the 4 bytes being there. DCCP's are not in the packet's fields,
/// since conntrack knows no ports for it.
#[inline]
fn ports_of(packet: &Packet, frame: &[u8]) -> (u16, u16) {
    if packet.proto != DCCP {
        return (packet.sport, packet.dport);
    }
    let l4 = packet.l4_bytes(frame);
    (crate::wire::get_u16(l4, 0), crate::wire::get_u16(l4, 2))
}

/// `ports_match_v1`.
fn multiport(matched: &MultiportMatch, sport: u16, dport: u16) -> bool {
    let holds = |port: u16| matched.ports.iter().any(|&(low, high)| low <= port && port <= high);
    let found = match matched.side {
        MultiportSide::Source => holds(sport),
        MultiportSide::Destination => holds(dport),
        MultiportSide::Either => holds(sport) || holds(dport),
    };
    found != matched.invert
}

/// What a vector is put together from.
#[derive(Default)]
struct Parts {
    ops: Vec<Op>,
    multiports: Vec<MultiportMatch>,
    buckets: Vec<Bucket>,
    logs: Vec<LogTarget>,
}

impl Parts {
    fn rows<W: Word>(&mut self, ruleset: &Ruleset) -> Vec<Row<W>> {
        let order = ruleset.reachable_from(FORWARD);
        let mut starts = vec![0u32; ruleset.chains.len()];
        let mut next = 0;
        for &chain in &order {
            starts[chain] = next;
            next += ruleset.chains[chain].rules.len() as u32 + 1;
        }
        let mut counters = vec![0u32; ruleset.chains.len()];
        let mut counted = 0;
        for (first, chain) in counters.iter_mut().zip(&ruleset.chains) {
            *first = counted;
            counted += chain.rules.len() as u32;
        }
        let mut rows = Vec::with_capacity(next as usize);
        for chain in order {
            for (index, rule) in ruleset.chains[chain].rules.iter().enumerate() {
                rows.push(self.row(rule, &ruleset.ports, &starts, counters[chain] + index as u32));
            }
            rows.push(Row::any(Action::End));
        }
        rows
    }

    fn row<W: Word>(&mut self, rule: &Rule, ports: &[String], starts: &[u32], counter: u32) -> Row<W> {
        let mut row = Row::any(self.action(&rule.target, starts));
        row.counter = counter;
        let mut address = |matched: &Option<AddrMatch>, bit: u8| match matched {
            None => (W::default(), W::default()),
            Some(AddrMatch { net, mask, invert }) => {
                row.invert |= if *invert { bit } else { 0 };
                (W::of(*net), W::of(*mask))
            }
        };
        let (src, dst) = (address(&rule.src, INVERT_SRC), address(&rule.dst, INVERT_DST));
        (row.src, row.src_mask) = src;
        (row.dst, row.dst_mask) = dst;
        if let Some(matched) = rule.proto {
            (row.proto, row.proto_mask) = (matched.number, 0xff);
            row.invert |= if matched.invert { INVERT_PROTO } else { 0 };
        }
        row.ports = port_bits(&rule.in_interface, ports) | port_bits(&rule.out_interface, ports) << 4;
        if rule.fragment == Some(false) {
            // A fragment never comes this far.
            row.ports = 0;
        }
        self.matches(&rule.matches, &mut row);
        row
    }

    fn action(&mut self, target: &Target, starts: &[u32]) -> Action {
        match target {
            Target::Count => Action::Count,
            Target::Accept => Action::Accept,
            Target::Drop => Action::Drop,
            Target::Return => Action::Return,
            Target::Reject(with) => Action::Reject(*with),
            Target::Jump(chain) => Action::Jump(starts[*chain]),
            Target::Goto(chain) => Action::Goto(starts[*chain]),
            Target::Log(log) => {
                let index = self.logs.iter().position(|known| known == log).unwrap_or_else(|| {
                    self.logs.push(log.clone());
                    self.logs.len() - 1
                });
                Action::Log(index as u32)
            }
        }
    }

    fn matches<W: Word>(&mut self, matches: &[Match], row: &mut Row<W>) {
        row.ops = self.ops.len() as u32;
        let mut pure = true;
        for matched in matches {
            let Some(op) = self.op(matched) else { continue };
            pure = pure && row.inline(&op);
            row.inlined += u8::from(pure);
            row.ops_len += 1;
            self.ops.push(op);
        }
    }

    fn op(&mut self, matched: &Match) -> Option<Op> {
        Some(match matched {
            Match::Comment(_) => return None,
            Match::Tcp(tcp) => Op::Tcp(*tcp),
            Match::Udp(udp) => Op::Udp(*udp),
            Match::Icmp(icmp) => Op::Icmp(*icmp),
            Match::State(asked) => Op::State(states(BitMatch { bits: asked.states, invert: asked.invert })),
            Match::Conntrack(ConntrackMatch { state: Some(asked), status: None })
                if asked.bits & (state::SNAT | state::DNAT) == 0 =>
            {
                Op::State(states(*asked))
            }
            Match::Conntrack(conntrack) => Op::Conntrack(*conntrack),
            Match::Multiport(multiport) => {
                self.multiports.push(multiport.clone());
                Op::Multiport(self.multiports.len() as u32 - 1)
            }
            Match::Limit(limit) => {
                self.buckets.push(Bucket::new(limit));
                Op::Limit(self.buckets.len() as u32 - 1)
            }
        })
    }
}

/// The states that pass.
const fn states(asked: BitMatch) -> u16 {
    if asked.invert { state::STATES & !asked.bits } else { state::STATES & asked.bits }
}

/// Bit `p` is set when port `p` passes; all four when any does.
fn port_bits(matched: &Option<InterfaceMatch>, ports: &[String]) -> u8 {
    let Some(matched) = matched else { return 0x0f };
    let name = |port: PortId| ports.get(port.index()).map_or("", String::as_str);
    let passes = |port: &&PortId| matched.covers(name(**port)) != matched.invert;
    PortId::ALL.iter().filter(passes).fold(0, |bits, port| bits | 1 << port.0)
}
