//! Whether rules would let a connection begin: [`Judge`], over the typed rules, without packet, counter or clock.
//!
//! Asked of connections that already are there, when rules or sets have changed: would the packet that began it pass every
//! chain on a forwarded packet's way now, in order: raw PREROUTING, mangle PREROUTING, FORWARD of mangle, filter and security,
//! mangle POSTROUTING ([`PATH`] without nat, which does not refuse)? What that packet was like is known of its tuple, its
//! state (NEW, or RELATED for one that was expected; INVALID in raw, before conntrack has seen it), its marks (none) and its
//! interfaces; a TCP connection begins with SYN. Before it is routed it has no way out, and the destination that it was sent
//! to. The rest of it (length, TTL, options) is not known, and neither is what a `limit` would say or what time it would be.
//! Of a set it is known whether the packet is in it, unless its elements expire, rules change them, or it looks at more than the
//! tuple and the interfaces. So the answer to each match is yes, no or *maybe*, and a rule that may match leads on both ways at
//! once: [`Admits::No`] is said only when no way leads through all chains, so that no connection ends for a match that
//! depends on the single packet, the time or what was counted. Two matches that are not known are taken as independent of each
//! other, which errs on the side of `Depends`.
//!
//! Some targets change what later rules read. From a MARK, CONNMARK or SET that may have run, marks are not known any more;
//! from a NOTRACK or `CT --notrack`, the state and all else of the connection. Ways with such a past are told from those
//! without as *worlds*: four of them, by the two things that are known no more.
//!
//! Each chain's set of outcomes depends on nothing but the packet, the hook it was entered from and the world, so that every
//! chain is walked once for each of these, callees before callers.

use super::matches::{BitMatch, ConntrackMatch, IcmpMatch, Match, MultiportMatch, TcpMatch, state};
use super::row::{NO_PORT, Word};
use super::rule::{AddrMatch, BUILTIN, ChainIndex, Hook, InterfaceMatch, PATH, Policy, Rule, Ruleset, TableName};
use super::set::{SetCell, SetTable, TuplePacket};
use super::targets::Target;
use crate::conntrack::{CtStatus, Direction, Tuple};
use crate::device::PortId;
use crate::wire::{Addr, Family, proto, tcp};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The packet that begins a connection, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstPacket {
    /// As FORWARD sees it: the destination is the translated one, the source is not translated yet.
    pub tuple: Tuple,
    /// As the connection's original tuple has it.
    pub original: Tuple,
    /// The port it comes in by.
    pub in_port: PortId,
    /// The port it would leave by.
    pub out_port: PortId,
    /// Its connection was expected: it is RELATED, not NEW.
    pub expected: bool,
    /// Its destination is a translated one.
    pub dnat: bool,
}

/// Whether a connection may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admits {
    /// Its first packet passes, whatever it is like.
    Yes,
    /// Its first packet is refused, whatever it is like.
    No,
    /// That depends on what is not known of the packet.
    Depends,
}

/// What a match says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Says {
    No,
    Maybe,
    Yes,
}

impl From<bool> for Says {
    fn from(yes: bool) -> Says {
        if yes { Says::Yes } else { Says::No }
    }
}

/// What rules before have made unknown, as bits.
type World = u8;
/// Marks of packet and connection.
const MARKS: World = 1;
/// Whether the packet is tracked.
const TRACKING: World = 2;
/// How many worlds there are.
const WORLDS: usize = 4;

/// A set of worlds: bit `w` for world `w`.
type Worlds = u8;

/// The worlds of a set.
fn each(worlds: Worlds) -> impl Iterator<Item = World> {
    (0..WORLDS as World).filter(move |world| worlds & 1 << world != 0)
}

/// What may become of a packet in a chain.
#[derive(Clone, Copy, Default, Debug)]
struct Outcomes {
    /// It passes the table, in these worlds.
    passes: Worlds,
    /// It goes back to where the last jump came from.
    back: Worlds,
    /// It is refused.
    refused: bool,
}

/// A chain on the packet's way that has a say.
#[derive(Debug)]
struct Stage {
    entry: ChainIndex,
    hook: Hook,
    /// Before conntrack.
    raw: bool,
    /// What it leads to, callees before callers.
    callees: Vec<ChainIndex>,
    /// What its rules may make unknown.
    touches: World,
    /// Its policy is DROP.
    drops: bool,
}

impl Stage {
    fn new(ruleset: &Ruleset, entry: ChainIndex) -> Stage {
        let (table, hook) = BUILTIN[entry];
        let callees = callees_first(ruleset, entry);
        let all = callees.iter().chain([&entry]).flat_map(|&chain| &ruleset.chains[chain].rules);
        Stage {
            entry,
            hook,
            raw: table == TableName::Raw,
            touches: all.fold(0, |touches, rule| touches | makes_unknown(&rule.target)),
            callees,
            drops: ruleset.chains[entry].policy == Some(Policy::Drop),
        }
    }

    /// The worlds that a packet may come into here from these.
    fn worlds(&self, live: Worlds) -> Worlds {
        let touched = (0..WORLDS as World).filter(|touched| touched & !self.touches == 0);
        touched.fold(0, |all, touched| each(live).fold(all, |all, world| all | 1 << (world | touched)))
    }
}

/// What is not known any more once it has run.
fn makes_unknown(target: &Target) -> World {
    match target {
        Target::Mark(_) | Target::Connmark(_) | Target::Set(_) => MARKS,
        target if target.takes_out() => TRACKING,
        _ => 0,
    }
}

/// The packet as the chains of one stage meet it.
struct View<'a> {
    first: &'a FirstPacket,
    tuple: &'a Tuple,
    /// As [`Gate::ports`].
    ports: u8,
    /// Its destination has been translated.
    dnat: bool,
    /// Before conntrack.
    raw: bool,
    /// The sets that it is known to be in or not.
    sets: &'a HashMap<String, Arc<SetCell>>,
    /// What they are asked about; none where there are no such sets.
    packet: Option<TuplePacket>,
}

impl<'a> View<'a> {
    fn of(first: &'a FirstPacket, stage: &Stage, judge: &'a Judge) -> View<'a> {
        let routed = stage.hook != Hook::Prerouting;
        let out_port = if routed { first.out_port.0 } else { NO_PORT };
        let tuple = if routed { &first.tuple } else { &first.original };
        let packet = || TuplePacket::new(tuple, first.in_port, routed.then_some(first.out_port), &judge.ruleset.ports);
        View {
            first,
            tuple,
            sets: &judge.sets,
            packet: (!judge.sets.is_empty()).then(packet),
            ports: 1 << first.in_port.0 | 1 << (4 + out_port),
            dnat: routed && first.dnat,
            raw: stage.raw,
        }
    }
}

/// What a rule asks of addresses, protocol and interfaces: nearly all rules say no to a connection here.
#[derive(Clone, Debug)]
struct Gate<W> {
    src: W,
    src_mask: W,
    dst: W,
    dst_mask: W,
    proto: u8,
    /// 0xff, or 0 when any protocol passes.
    proto_mask: u8,
    /// Bit `p`: may come in by port `p`; bit `4 + p`: may go out by it, or with [`NO_PORT`] is not routed yet.
    ports: u8,
    /// Bit 0: not this source; bit 1: not this destination; bit 2: not this protocol.
    invert: u8,
}

impl<W: Word> Gate<W> {
    fn new(rule: &Rule, ports: &[String]) -> Gate<W> {
        let address = |asked: &Option<AddrMatch>| {
            asked.map_or_else(Default::default, |asked| (W::of(asked.net) & W::of(asked.mask), W::of(asked.mask)))
        };
        let ((src, src_mask), (dst, dst_mask)) = (address(&rule.src), address(&rule.dst));
        let (proto, proto_mask) = rule.proto.map_or((0, 0), |asked| (asked.number, 0xff));
        let bit = |invert: Option<bool>, bit: u8| if invert == Some(true) { 1 << bit } else { 0 };
        let invert = bit(rule.src.map(|asked| asked.invert), 0)
            | bit(rule.dst.map(|asked| asked.invert), 1)
            | bit(rule.proto.map(|asked| asked.invert), 2);
        let bits = |asked: &Option<InterfaceMatch>| {
            let name = |port: u8| ports.get(usize::from(port)).map_or("", String::as_str);
            let passes = |port: &u8| asked.as_ref().is_none_or(|asked| asked.covers(name(*port)) != asked.invert);
            (0..=NO_PORT).filter(passes).fold(0u8, |bits, port| bits | 1 << port)
        };
        // A tracked packet is whole: `-f` never matches.
        let whole = rule.fragment != Some(false);
        let ports = if whole { bits(&rule.in_interface) | bits(&rule.out_interface) << 4 } else { 0 };
        Gate { src, src_mask, dst, dst_mask, proto, proto_mask, ports, invert }
    }

    #[inline(always)]
    fn lets_through(&self, tuple: (W, W), proto: u8, ports: u8) -> bool {
        let src = (tuple.0 & self.src_mask == self.src) != (self.invert & 1 != 0);
        let dst = (tuple.1 & self.dst_mask == self.dst) != (self.invert & 2 != 0);
        let proto = (proto & self.proto_mask == self.proto) != (self.invert & 4 != 0);
        src & dst & proto & (self.ports & ports == ports)
    }
}

/// By [`Ruleset::counter_index`].
#[derive(Debug)]
enum Gates {
    V4(Vec<Gate<u32>>),
    V6(Vec<Gate<u128>>),
}

/// Judges connections by the rules of one ruleset.
#[derive(Debug)]
pub struct Judge {
    ruleset: Arc<Ruleset>,
    stages: Vec<Stage>,
    /// Those that rules ask, and whose word the packet's tuple settles.
    sets: HashMap<String, Arc<SetCell>>,
    gates: Gates,
    /// By chain, its first rule's gate.
    firsts: Vec<usize>,
}

impl Judge {
    /// For these rules, and the sets they were loaded with.
    pub fn new(ruleset: Arc<Ruleset>) -> Judge {
        let sets = Arc::clone(ruleset.sets());
        Judge::with_sets(ruleset, &sets)
    }

    /// For these rules, should they find these sets.
    pub fn with_sets(ruleset: Arc<Ruleset>, sets: &SetTable) -> Judge {
        let all = ruleset.chains.iter().flat_map(|chain| &chain.rules);
        let gates = match ruleset.family {
            Family::V4 => Gates::V4(all.map(|rule| Gate::new(rule, &ruleset.ports)).collect()),
            Family::V6 => Gates::V6(all.map(|rule| Gate::new(rule, &ruleset.ports)).collect()),
        };
        let has_a_say = |&chain: &ChainIndex| {
            let (table, it) = (BUILTIN[chain].0, &ruleset.chains[chain]);
            table != TableName::Nat && ruleset.has(table) && (!it.rules.is_empty() || it.policy == Some(Policy::Drop))
        };
        let stages = PATH.into_iter().filter(has_a_say).map(|chain| Stage::new(&ruleset, chain)).collect();
        Judge { stages, sets: settled(&ruleset, sets), gates, firsts: ruleset.first_counters(), ruleset }
    }

    /// Whether the connection that `first` begins may begin.
    pub fn admits(&self, first: &FirstPacket) -> Admits {
        match &self.gates {
            Gates::V4(gates) => self.passes(gates, first),
            Gates::V6(gates) => self.passes(gates, first),
        }
    }

    fn passes<W: Word>(&self, gates: &[Gate<W>], first: &FirstPacket) -> Admits {
        let mut known = vec![[Outcomes::default(); WORLDS]; self.ruleset.chains.len()];
        let (mut live, mut refused) = (1, false);
        for stage in &self.stages {
            let view = View::of(first, stage, self);
            for &chain in &stage.callees {
                for world in each(stage.worlds(live)) {
                    known[chain][usize::from(world)] = self.chain(chain, 1 << world, gates, &view, &known);
                }
            }
            let said = self.chain(stage.entry, live, gates, &view, &known);
            refused |= said.refused || stage.drops && said.back != 0;
            live = said.passes | if stage.drops { 0 } else { said.back };
            if live == 0 {
                return Admits::No;
            }
        }
        if refused { Admits::Depends } else { Admits::Yes }
    }

    /// The outcomes for a packet that enters `chain` in these worlds. `known` has those of every chain that this one leads to.
    fn chain<W: Word>(
        &self,
        chain: ChainIndex,
        mut live: Worlds,
        gates: &[Gate<W>],
        view: &View<'_>,
        known: &[[Outcomes; WORLDS]],
    ) -> Outcomes {
        let addresses = (W::of(view.tuple.src), W::of(view.tuple.dst));
        let rules = &self.ruleset.chains[chain].rules;
        let gates = &gates[self.firsts[chain]..self.firsts[chain] + rules.len()];
        let mut outcomes = Outcomes::default();
        for (gate, rule) in gates.iter().zip(rules) {
            if !gate.lets_through(addresses, view.tuple.proto, view.ports) {
                continue;
            }
            // The worlds in which the next rule is met.
            let mut next = 0;
            for world in each(live) {
                let says = all_say(&rule.matches, view, world);
                next |= if says == Says::Yes { 0 } else { 1 << world };
                next |= if says == Says::No { 0 } else { outcomes.take(&rule.target, world, known) };
            }
            live = next;
            if live == 0 {
                return outcomes;
            }
        }
        outcomes.back |= live;
        outcomes
    }
}

/// The sets that rules ask and do not change, as far as a tuple settles what they say.
fn settled(ruleset: &Ruleset, sets: &SetTable) -> HashMap<String, Arc<SetCell>> {
    let rules = || ruleset.chains.iter().flat_map(|chain| &chain.rules);
    let mut changed = HashSet::new();
    for rule in rules() {
        if let Target::Set(target) = &rule.target {
            changed.extend(target.sets().filter(|(_, changes)| *changes).map(|(set, _)| set.name.as_str()));
        }
    }
    let mut found = HashMap::new();
    for matched in rules().flat_map(|rule| &rule.matches) {
        let Match::Set(asked) = matched else { continue };
        for set in asked.sets().filter(|set| !changed.contains(set.name.as_str())) {
            found.extend(sets.settled(&set.name).map(|cell| (set.name.clone(), cell)));
        }
    }
    found
}

impl Outcomes {
    /// Adds what the target makes of a packet in `world`: the worlds in which it goes on to the next rule.
    fn take(&mut self, target: &Target, world: World, known: &[[Outcomes; WORLDS]]) -> Worlds {
        match target {
            Target::Accept => self.passes |= 1 << world,
            Target::Drop | Target::Reject(_) => self.refused = true,
            Target::Return => self.back |= 1 << world,
            Target::Jump(to) | Target::Goto(to) => {
                let of_chain = known[*to][usize::from(world)];
                self.passes |= of_chain.passes;
                self.refused |= of_chain.refused;
                match target {
                    Target::Jump(_) => return of_chain.back,
                    _ => self.back |= of_chain.back,
                }
            }
            // All others do something, and the next rule follows; a packet that is malformed may end there.
            target => {
                self.refused |= matches!(target, Target::Tcpmss(_));
                return 1 << (world | makes_unknown(target));
            }
        }
        0
    }
}

fn all_say(matches: &[Match], view: &View<'_>, world: World) -> Says {
    let mut all = Says::Yes;
    for matched in matches {
        match asked(matched, view, world) {
            Says::No => return Says::No,
            Says::Maybe => all = Says::Maybe,
            Says::Yes => {}
        }
    }
    all
}

/// What `root` leads to, callees first. The check has made sure that there is no loop.
fn callees_first(ruleset: &Ruleset, root: ChainIndex) -> Vec<ChainIndex> {
    let mut order = Vec::new();
    let mut seen = vec![false; ruleset.chains.len()];
    // Chain, and the rule to look at next. A stack of our own: the file decides how deep it goes.
    let mut path = vec![(root, 0)];
    while let Some((chain, next)) = path.last_mut() {
        let Some(rule) = ruleset.chains[*chain].rules.get(*next) else {
            order.push(*chain);
            path.pop();
            continue;
        };
        *next += 1;
        if let Some(target) = rule.target.chain().filter(|&target| !seen[target]) {
            seen[target] = true;
            path.push((target, 0));
        }
    }
    order.pop();
    order
}

fn address(asked: &Option<AddrMatch>, addr: Addr) -> bool {
    // An IPv4 mask has its upper 96 bits zero, so only the low 32 of the mapped form are left to compare.
    asked.is_none_or(|asked| (addr.bits() & asked.mask.bits() == asked.net.bits() & asked.mask.bits()) != asked.invert)
}

/// A match about what is not known says maybe.
fn asked(matched: &Match, view: &View<'_>, world: World) -> Says {
    let tuple = view.tuple;
    match matched {
        Match::Comment(_) => Says::Yes,
        Match::State(_) | Match::Conntrack(_) | Match::Connmark(_) if world & TRACKING != 0 => Says::Maybe,
        Match::State(asked) => ((state_bit(view) & asked.states != 0) != asked.invert).into(),
        Match::Conntrack(asked) => conntrack(asked, view).into(),
        Match::Connmark(_) if view.raw => Says::No,
        Match::Connmark(_) if view.first.expected => Says::Maybe,
        Match::Mark(_) | Match::Connmark(_) if world & MARKS != 0 => Says::Maybe,
        Match::Mark(asked) => asked.holds(0).into(),
        Match::Connmark(asked) => asked.holds(0).into(),
        Match::Tcp(asked) => tcp_begins(asked, tuple),
        Match::Udp(asked) => (asked.sport.holds(tuple.sport) && asked.dport.holds(tuple.dport)).into(),
        Match::Icmp(asked) => icmp(asked, tuple).into(),
        Match::Icmp6(asked) => icmp(&asked.0, tuple).into(),
        Match::Multiport(asked) => multiport(asked, tuple),
        Match::Set(asked) => {
            let set = asked.sets().find_map(|set| view.sets.get(&set.name));
            let said = set.zip(view.packet.as_ref()).and_then(|(set, packet)| asked.of_tuple(set, packet));
            said.map_or(Says::Maybe, Says::from)
        }
        // `limit`, and whatever reads the packet, the time or a table.
        _ => Says::Maybe,
    }
}

fn state_bit(view: &View<'_>) -> u16 {
    match view.first.expected {
        _ if view.raw => state::INVALID,
        true => state::RELATED,
        false => state::NEW,
    }
}

/// The connection is not confirmed: of the status bits, it can have only these, and it expires in no time (`conntrack_mt`). Its
/// source is not translated yet. In raw there is none, and only states can be asked for.
fn conntrack(asked: &ConntrackMatch, view: &View<'_>) -> bool {
    let holds = |asked: Option<BitMatch>, bits: u16| asked.is_none_or(|asked| (bits & asked.bits != 0) != asked.invert);
    if view.raw {
        return asked.state.is_some() && holds(asked.state, state_bit(view));
    }
    let expected = if view.first.expected { CtStatus::EXPECTED.0 } else { 0 };
    let (dnat_status, dnat_state) = if view.dnat { (CtStatus::DST_NAT.0, state::DNAT) } else { (0, 0) };
    let bits = holds(asked.state, state_bit(view) | dnat_state) && holds(asked.status, expected | dnat_status);
    let expire = asked.expire.is_none_or(|asked| (asked.low == 0) != asked.invert);
    let (original, reply) = (&view.first.original, view.tuple.inverse().unwrap_or(*view.tuple));
    let addresses = [original.src, original.dst, reply.src, reply.dst];
    let ports = [original.sport, original.dport, reply.sport, reply.dport];
    bits && expire
        && asked.direction.is_none_or(|asked| asked == Direction::Original)
        && asked.proto.is_none_or(|asked| (original.proto == asked.number) != asked.invert)
        && asked.addresses.iter().zip(addresses).all(|(asked, addr)| address(asked, addr))
        && asked.ports.iter().zip(ports).all(|(asked, port)| asked.is_none_or(|asked| asked.holds(port)))
}

fn tcp_begins(asked: &TcpMatch, tuple: &Tuple) -> Says {
    let flags = (tcp::SYN & asked.flags.mask == asked.flags.comp) != asked.flags.invert;
    match asked.sport.holds(tuple.sport) && asked.dport.holds(tuple.dport) && flags {
        false => Says::No,
        true if asked.option.is_some() => Says::Maybe,
        true => Says::Yes,
    }
}

fn icmp(asked: &IcmpMatch, tuple: &Tuple) -> bool {
    let [kind, code] = tuple.dport.to_be_bytes();
    let same = kind == asked.kind && asked.code.is_none_or(|wanted| wanted == code);
    (same || tuple.family == Family::V4 && asked.kind == 255) != asked.invert
}

fn multiport(asked: &MultiportMatch, tuple: &Tuple) -> Says {
    // DCCP has ports, but its connections are tracked without them.
    match tuple.proto {
        proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP => asked.holds(tuple.sport, tuple.dport).into(),
        _ => Says::Maybe,
    }
}

#[cfg(test)]
mod tests;
