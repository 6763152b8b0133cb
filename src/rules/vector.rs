//! The fast engine: [`RuleVector`], the chains that a forwarded packet enters and all they can reach, as one flat array of
//! [`Row`]s.
//!
//! Compiled once from a [`Ruleset`] by the control thread, then shared read-only by all workers; only what matches count and
//! remember changes, each with its own atomics or lock, and it is handed on to the next vector for rules that stay
//! ([`Previous`]). Jumps are offsets; the chains open are on a stack of fixed depth, whose bound was checked when the
//! file was loaded. In long chains an index leads past rows that the packet's flow can't match ([`Runs`]).
//!
//! Order matters where a test does more than answer: `limit` spends credit, and a match that cannot read its header drops
//! the packet. So a row's pure tests stand in the row itself only up to the first such match; the rest are [`Op`]s, run in
//! order. A packet whose transport header is cut short takes the careful way: every match in order, as Linux does.
//!
//! [`RuleVector::trace`] also says what the verdict rests on, so that it may be kept for the connection's later packets.

use super::Decision;
use super::ahead::{Asked, Foreseen, Foresight, Place};
use super::compile::Parts;
use super::context::{Context, World};
use super::counter::RuleCounters;
use super::extension::{Answer, Basis, Outcome};
use super::index::{Scratch, V4, V6};
use super::matches::{Match, MatchState, TcpMatch, UdpMatch};
use super::registry::Registry;
use super::row::{Action, DCCP, Facts, INVERT_PROTO, Op, Row, Word, chain_is_broken};
use super::rule::{BUILTIN_CHAINS, ChainIndex, MAX_DEPTH, Policy, Ruleset, TableName};
use super::runs::{self, Runs};
use super::targets::{Target, TargetState, TraceEvent, TracePlace};
use super::trace::{Reads, Trace};
use crate::arch;
use crate::packet::Packet;
use crate::verdict::DropReason;
use crate::wire::{Family, tcp, udp};
use std::sync::Arc;

#[derive(Debug)]
pub(super) enum Rows {
    V4(Box<[Row<u32>]>, Runs<V4>),
    V6(Box<[Row<u128>]>, Runs<V6>),
}

/// What was foreseen for the packet of a number, if something was.
type Numbered<'a, const N: usize> = Option<(&'a Asked<N>, usize)>;

/// A match that is no [`Op`] of its own, and what it counts and remembers.
#[derive(Debug)]
pub(super) struct OtherMatch {
    pub(super) matched: Match,
    pub(super) state: Arc<MatchState>,
    /// The rule's number, and the match's place in it.
    pub(super) place: (u32, u32),
}

/// A target that does something.
#[derive(Debug)]
pub(super) struct RunTarget {
    pub(super) target: Target,
    pub(super) state: Arc<TargetState>,
    pub(super) rule: u32,
}

/// Where a built-in chain begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) start: u32,
    pub(super) policy: Policy,
}

impl Entry {
    fn decision(self) -> Decision {
        match self.policy {
            Policy::Accept => Decision::Accept,
            Policy::Drop => Decision::Drop(DropReason::PolicyDrop),
        }
    }
}

/// Where a row comes from, for packets whose way is told (`-j TRACE`).
#[derive(Clone, Copy, Debug)]
pub(super) struct RowPlace {
    pub(super) chain: u32,
    /// From 1; a chain's end has one more than there are rules.
    pub(super) number: u32,
    pub(super) place: TracePlace,
}

/// A chain's name, and how many rules it has.
#[derive(Debug)]
pub(super) struct ChainName {
    pub(super) table: TableName,
    pub(super) name: Box<str>,
    pub(super) rules: u32,
}

/// The compiled rules of one IP version. See the module's head.
#[derive(Debug)]
pub struct RuleVector {
    pub(super) rows: Rows,
    pub(super) ops: Box<[Op]>,
    pub(super) matches: Box<[OtherMatch]>,
    pub(super) targets: Box<[RunTarget]>,
    /// By chain; none where the file does not have the table, or a forwarded packet does not come.
    pub(super) entries: [Option<Entry>; BUILTIN_CHAINS],
    /// By row.
    pub(super) places: Box<[RowPlace]>,
    /// By chain.
    pub(super) names: Box<[ChainName]>,
    pub(super) rule_count: usize,
    pub(super) chain_count: usize,
    pub(super) wants_conntrack: bool,
    pub(super) only_filters: bool,
    pub(super) translates: bool,
    pub(super) host_translates: bool,
}

/// The vector in force, and which of its rules stay: by number of the new rule, the number it has there.
#[derive(Clone, Copy, Debug)]
pub struct Previous<'a> {
    /// In force.
    pub vector: &'a RuleVector,
    /// By number of the new rule.
    pub unchanged: &'a [Option<usize>],
}

impl RuleVector {
    /// Compiles `ruleset` by itself.
    pub fn compile(ruleset: &Ruleset) -> RuleVector {
        RuleVector::compile_after(ruleset, &mut Registry::default(), None)
    }

    /// Compiles `ruleset`. What rules share by name is in `registry`; what a rule has counted and remembered is taken from
    /// the `previous` vector where the rule stays.
    pub fn compile_after(ruleset: &Ruleset, registry: &mut Registry, previous: Option<Previous<'_>>) -> RuleVector {
        Parts::new(ruleset, registry, previous).assemble()
    }

    /// Counters to evaluate with, all zero.
    pub fn counters(&self) -> RuleCounters {
        RuleCounters::with_rules(self.rule_count, self.chain_count)
    }

    /// Rows, ends of chains included.
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::V4(rows, _) => rows.len(),
            Rows::V6(rows, _) => rows.len(),
        }
    }

    /// Whether there is no rule on the forwarding path.
    pub fn is_empty(&self) -> bool {
        self.len() <= self.entries.iter().flatten().count()
    }

    /// Whether some rule of the file needs connections to be tracked; Linux tracks only then.
    pub fn wants_conntrack(&self) -> bool {
        self.wants_conntrack
    }

    /// Whether connections may be translated: [`Ruleset::translates`].
    pub fn translates(&self) -> bool {
        self.translates
    }

    /// Whether the kernel has nat as it is here, so that it can translate what its own sockets get and answer.
    pub fn host_translates(&self) -> bool {
        self.host_translates
    }

    /// The same rules, with connections tracked whether a rule needs it or not.
    pub fn always_tracking(self) -> RuleVector {
        RuleVector { wants_conntrack: true, ..self }
    }

    /// Whether packets meet the chain: its table is in the file.
    #[inline]
    pub fn has(&self, chain: ChainIndex) -> bool {
        self.entries[chain].is_some()
    }

    /// Whether filter FORWARD is the only chain that a forwarded packet meets.
    #[inline]
    pub fn only_filters(&self) -> bool {
        self.only_filters
    }

    /// The word of one built-in chain on a packet. Each rule that matches counts it. No allocation.
    ///
    /// # Panics
    /// When `counters` are not this vector's, or the packet is of the other IP version: both are bugs.
    #[inline]
    pub fn evaluate(
        &self,
        chain: ChainIndex,
        context: &mut Context<'_>,
        world: &mut dyn World,
        counters: &mut RuleCounters,
    ) -> Decision {
        self.run_rows(chain, context, world, counters, None, &mut ())
    }

    /// The same, sooner, where the packet is what was foreseen for it by [`RuleVector::foresee`] of this very vector.
    ///
    /// # Panics
    /// As [`RuleVector::evaluate`].
    #[inline]
    pub fn evaluate_foreseen(
        &self,
        chain: ChainIndex,
        context: &mut Context<'_>,
        world: &mut dyn World,
        counters: &mut RuleCounters,
        foreseen: Option<Foreseen<'_>>,
    ) -> Decision {
        if let Some(foreseen) = foreseen
            && let Some(decision) = self.decide_at_once(chain, context, counters, foreseen)
        {
            return decision;
        }
        self.run_rows(chain, context, world, counters, foreseen, &mut ())
    }

    /// Whether there is something to foresee of packets that enter the chain.
    #[inline]
    pub fn foresees(&self, chain: ChainIndex) -> bool {
        self.entries[chain].is_some()
            && match &self.rows {
                Rows::V4(_, runs) => !runs.is_empty(),
                Rows::V6(_, runs) => !runs.is_empty(),
            }
    }

    /// Looks up what all packets of `foresight` that are of this IP version will meet in the chain.
    pub fn foresee(&self, chain: ChainIndex, foresight: &mut Foresight, counters: &RuleCounters) {
        let Some(Entry { start, .. }) = self.entries[chain] else { return };
        let scratch = &mut *foresight.scratch;
        match &self.rows {
            Rows::V4(rows, runs) => foresee((rows, runs), start as usize, (&mut foresight.v4, scratch), counters),
            Rows::V6(rows, runs) => foresee((rows, runs), start as usize, (&mut foresight.v6, scratch), counters),
        }
    }

    /// As [`RuleVector::evaluate`], and `trace` tells what the word rests on, together with what it has told of chains before.
    ///
    /// # Panics
    /// As [`RuleVector::evaluate`].
    pub fn trace(
        &self,
        chain: ChainIndex,
        context: &mut Context<'_>,
        world: &mut dyn World,
        counters: &mut RuleCounters,
        trace: &mut Trace,
    ) -> Decision {
        self.run_rows(chain, context, world, counters, None, trace)
    }

    /// The commonest case: the row that was foreseen matches by its own fields alone, and is the last. `None` leaves all to be
    /// done by [`RuleVector::walk`], which would come to the same.
    #[inline]
    fn decide_at_once(
        &self,
        chain: ChainIndex,
        context: &Context<'_>,
        counters: &mut RuleCounters,
        foreseen: Foreseen<'_>,
    ) -> Option<Decision> {
        let Foreseen { foresight, number } = foreseen;
        let entry = self.entries[chain]?;
        assert_eq!(counters.rules.len(), self.rule_count, "counters of another ruleset");
        let action = match &self.rows {
            Rows::V4(rows, _) => last_row(rows, entry.start, context, &foresight.v4, number),
            Rows::V6(rows, _) => last_row(rows, entry.start, context, &foresight.v6, number),
        };
        let (action, rule) = action?;
        if action == Action::End {
            counters.policies[chain].count(context.packet.l3_len);
            return Some(entry.decision());
        }
        counters.rules[rule as usize].count(context.packet.l3_len);
        Some(if action == Action::Accept { Decision::Accept } else { Decision::Drop(DropReason::RuleDrop) })
    }

    #[inline]
    fn run_rows<R: Reads>(
        &self,
        chain: ChainIndex,
        context: &mut Context<'_>,
        world: &mut dyn World,
        counters: &mut RuleCounters,
        foreseen: Option<Foreseen<'_>>,
        reads: &mut R,
    ) -> Decision {
        assert_eq!(counters.rules.len(), self.rule_count, "counters of another ruleset");
        if self.entries[chain].is_none() {
            return Decision::Accept;
        }
        match (&self.rows, context.packet.family) {
            (Rows::V4(rows, runs), Family::V4) => {
                let foreseen = foreseen.map(|foreseen| (&foreseen.foresight.v4, foreseen.number));
                self.walk((rows, runs, foreseen), chain, context, world, counters, reads)
            }
            (Rows::V6(rows, runs), Family::V6) => {
                let foreseen = foreseen.map(|foreseen| (&foreseen.foresight.v6, foreseen.number));
                self.walk((rows, runs, foreseen), chain, context, world, counters, reads)
            }
            (_, family) => panic!("an {family:?} packet at the other family's rules"),
        }
    }

    #[inline]
    fn walk<W: Word, const N: usize, R: Reads>(
        &self,
        (rows, runs, foreseen): (&[Row<W>], &Runs<N>, Numbered<'_, N>),
        chain: ChainIndex,
        context: &mut Context<'_>,
        world: &mut dyn World,
        counters: &mut RuleCounters,
        reads: &mut R,
    ) -> Decision {
        let Some(entry) = self.entries[chain] else { return Decision::Accept };
        let mut facts = Facts::<W>::of(context);
        let mut stack = [0u32; MAX_DEPTH];
        let mut depth = 0;
        let mut key = runs::key(&facts);
        let mut at = entry.start as usize;
        let mut ask_at = runs.entered(at, facts.readable);
        loop {
            if at >= ask_at {
                (at, ask_at) = runs.ahead(at, &key, foreseen);
            }
            let row = &rows[at];
            at += 1;
            let answer = match facts.readable {
                true => self.test(row, &facts, context, world, reads),
                false => {
                    reads.packet();
                    self.test_careful(row, &facts, context, world)
                }
            };
            match answer {
                Answer::No => continue,
                Answer::Hotdrop => return Decision::Drop(DropReason::RuleHotdrop),
                Answer::Yes => {}
            }
            if context.traced {
                self.tell_step(at - 1, context, world);
            }
            if row.action != Action::End {
                counters.rules[row.counter as usize].count(context.packet.l3_len);
                reads.rule(row.counter);
            }
            match row.action {
                Action::Count => {}
                Action::Accept => return Decision::Accept,
                Action::Drop => return Decision::Drop(DropReason::RuleDrop),
                Action::Run(index) => match self.run_target(index, context, world, reads) {
                    Outcome::Continue if context.info.state_bit() == facts.state => {}
                    Outcome::Continue => {
                        facts.state = context.info.state_bit();
                        key = runs::key(&facts);
                    }
                    Outcome::Accept => return Decision::Accept,
                    Outcome::Drop(reason) => return Decision::Drop(reason),
                    Outcome::Reject(with) => return Decision::Reject(with),
                },
                Action::Goto(to) => {
                    at = to as usize;
                    ask_at = runs.entered(at, facts.readable);
                }
                Action::Jump(to) => {
                    stack[depth] = at as u32;
                    depth += 1;
                    at = to as usize;
                    ask_at = runs.entered(at, facts.readable);
                }
                Action::Return | Action::End if depth > 0 => {
                    depth -= 1;
                    at = stack[depth] as usize;
                    ask_at = runs.back(at, facts.readable);
                }
                Action::Return | Action::End => {
                    counters.policies[chain].count(context.packet.l3_len);
                    reads.policy(chain);
                    if context.traced && (self.places[at - 1].chain as usize != chain || row.action != Action::End) {
                        self.tell_policy(chain, context, world);
                    }
                    return entry.decision();
                }
            }
        }
    }

    /// A traced packet has met a row.
    #[cold]
    #[inline(never)]
    fn tell_step(&self, row: usize, context: &Context<'_>, world: &mut dyn World) {
        let RowPlace { chain, number, place } = self.places[row];
        let ChainName { table, name, .. } = &self.names[chain as usize];
        world.trace(&TraceEvent { table: *table, chain: name, place, number, context });
    }

    /// A traced packet goes to a policy from elsewhere than the chain's end.
    #[cold]
    #[inline(never)]
    fn tell_policy(&self, chain: ChainIndex, context: &Context<'_>, world: &mut dyn World) {
        let ChainName { table, name, rules } = &self.names[chain];
        let (place, number) = (TracePlace::Policy, rules + 1);
        world.trace(&TraceEvent { table: *table, chain: name, place, number, context });
    }

    fn run_target<R: Reads>(
        &self,
        index: u32,
        context: &mut Context<'_>,
        world: &mut dyn World,
        reads: &mut R,
    ) -> Outcome {
        let RunTarget { target, state, .. } = &self.targets[index as usize];
        tell(target.basis(), reads);
        target.run(context, world, state)
    }

    /// The row against a packet whose headers can be read.
    #[inline(always)]
    fn test<W: Word, R: Reads>(
        &self,
        row: &Row<W>,
        facts: &Facts<W>,
        context: &Context<'_>,
        world: &dyn World,
        reads: &mut R,
    ) -> Answer {
        let of_the_flow = row.of_the_flow(facts);
        if of_the_flow && row.asks_flags() {
            reads.flags(row.flags_mask);
        }
        if !(of_the_flow & row.flags_hold(facts)) {
            return Answer::No;
        }
        match row.ops_len == row.inlined {
            true => Answer::Yes,
            false => self.run_ops(&self.ops[row.rest()], context, world, reads),
        }
    }

    /// The row against any packet: every match, in order.
    #[cold]
    #[inline(never)]
    fn test_careful<W: Word>(
        &self,
        row: &Row<W>,
        facts: &Facts<W>,
        context: &Context<'_>,
        world: &dyn World,
    ) -> Answer {
        if row.proto_mask != 0 && chain_is_broken(context.packet) {
            // `ip6_packet_match`: addresses and interfaces first, then the walk to the last header.
            let without_proto = Row { proto_mask: 0, proto: 0, invert: row.invert & !INVERT_PROTO, ..row.clone() };
            return if without_proto.base(facts) { Answer::Hotdrop } else { Answer::No };
        }
        match row.base(facts) {
            true => self.run_ops(&self.ops[row.all()], context, world, &mut ()),
            false => Answer::No,
        }
    }

    fn run_ops<R: Reads>(&self, ops: &[Op], context: &Context<'_>, world: &dyn World, reads: &mut R) -> Answer {
        for op in ops {
            match op {
                Op::Tcp(tcp) if tcp.option.is_some() => reads.packet(),
                Op::Tcp(tcp) => reads.flags(tcp.flags.mask),
                // Its ports are in no tuple.
                Op::Multiport(_) if context.packet.proto == DCCP => reads.packet(),
                Op::Other(index) => tell(self.matches[*index as usize].matched.basis(), reads),
                Op::Udp(_) | Op::Icmp(_) | Op::State(_) | Op::Multiport(_) => {}
            }
            let answer = self.run(op, context, world);
            if answer != Answer::Yes {
                return answer;
            }
        }
        Answer::Yes
    }

    fn run(&self, op: &Op, context: &Context<'_>, world: &dyn World) -> Answer {
        let packet = &*context.packet;
        match op {
            Op::State(states) => (context.info.state_bit() & states != 0).into(),
            Op::Other(index) => {
                let OtherMatch { matched, state, .. } = &self.matches[*index as usize];
                matched.test(context, world, state)
            }
            Op::Tcp(matched) if usize::from(packet.l4_len) >= tcp::HEADER_LEN => run_tcp(matched, context),
            Op::Udp(matched) if usize::from(packet.l4_len) >= udp::HEADER_LEN => udp_holds(matched, packet).into(),
            Op::Icmp(matched) if packet.l4_len >= 8 => icmp(matched, packet).into(),
            Op::Multiport(matched) if packet.l4_len >= 4 => {
                let (sport, dport) = ports_of(packet, context.frame);
                matched.holds(sport, dport).into()
            }
            Op::Tcp(_) | Op::Udp(_) | Op::Icmp(_) | Op::Multiport(_) => Answer::Hotdrop,
        }
    }
}

/// The row that was foreseen from row `start` on, if nothing of the packet but what the row's own fields compare is asked before
/// it decides: what it does, and its rule's number.
#[inline(always)]
fn last_row<W: Word, const N: usize>(
    rows: &[Row<W>],
    start: u32,
    context: &Context<'_>,
    asked: &Asked<N>,
    number: usize,
) -> Option<(Action, u32)> {
    let facts = Facts::<W>::of(context);
    let row = rows.get(asked.answer(number, start as usize, &runs::key(&facts))?)?;
    let decides = matches!(row.action, Action::Accept | Action::Drop | Action::End);
    let alone = (row.ops_len == row.inlined) & facts.readable & !context.traced;
    let holds = row.of_the_flow(&facts) & row.flags_hold(&facts);
    (decides & alone & holds).then_some((row.action, row.counter))
}

/// Looks up what is asked, and asks for the memory that the packets' rows and counters are in.
fn foresee<W: Word, const N: usize>(
    (rows, runs): (&[Row<W>], &Runs<N>),
    start: usize,
    (asked, scratch): (&mut Asked<N>, &mut Scratch),
    counters: &RuleCounters,
) {
    runs.foresee(rows, start, asked, scratch);
    for &Place { from, found, .. } in asked.places.iter().filter(|place| place.is_found()) {
        let (first, place) = (from as usize, found as usize);
        let (Some(row), Some(head)) = (rows.get(first.saturating_add(place)), rows.get(first)) else { continue };
        arch::prefetch(row);
        // A chain's rules are counted one after another.
        if let Some(counter) = counters.rules.get(head.counter as usize + place) {
            arch::prefetch(counter);
        }
    }
}

/// Tells what an answer, or a target's work, rests on.
#[inline]
fn tell<R: Reads>(basis: Basis, reads: &mut R) {
    match basis {
        Basis::Flow => {}
        Basis::Status => reads.status(),
        Basis::Flags(mask) => reads.flags(mask),
        Basis::ConnMark => reads.conn_mark(),
        Basis::Packet => reads.packet(),
    }
}

fn udp_holds(matched: &UdpMatch, packet: &Packet) -> bool {
    matched.sport.holds(packet.sport) && matched.dport.holds(packet.dport)
}

/// `icmp_match`, `icmp6_match`.
fn icmp(matched: &super::matches::IcmpMatch, packet: &Packet) -> bool {
    let any = packet.family == Family::V4 && matched.kind == 255;
    let code = matched.code.is_none_or(|code| code == packet.icmp_code());
    (any || matched.kind == packet.icmp_type() && code) != matched.invert
}

/// `tcp_mt`, the 20 bytes being there.
fn run_tcp(matched: &TcpMatch, context: &Context<'_>) -> Answer {
    let packet = &*context.packet;
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
