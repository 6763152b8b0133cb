//! Whether rules would let a connection begin: [`Judge`], over the typed rules, without packet, counter or clock.
//!
//! Asked of connections that already are there, when rules or sets have changed: would the packet that began it pass every
//! chain on a forwarded packet's way now, in order: raw PREROUTING, mangle PREROUTING, FORWARD of mangle, filter and security,
//! mangle POSTROUTING ([`PATH`] without nat, which does not refuse)? What that packet was like is known of its tuple, its
//! state (NEW, or RELATED for one that was expected; INVALID in raw, before conntrack has seen it), its marks (none) and its
//! interfaces; a TCP connection begins with SYN. Before it is routed it has no way out, and the destination that it was sent
//! to. The rest of it (length, TTL, options) is not known, and neither is what a `limit` would say, what is in a set, or what
//! time it would be. So the answer to each match is yes, no or *maybe*, and a rule that may match leads on both ways at once:
//! [`Admits::No`] is said only when no way leads through all chains, so that no connection ends for a match that depends
//! on the single packet, the time or what was counted. Two matches that are not known are taken as independent of each other,
//! which errs on the side of `Depends`.
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
use super::targets::Target;
use crate::conntrack::{CtStatus, Direction, Tuple};
use crate::device::PortId;
use crate::wire::{Addr, Family, proto, tcp};
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
}

impl<'a> View<'a> {
    fn of(first: &'a FirstPacket, stage: &Stage) -> View<'a> {
        let routed = stage.hook != Hook::Prerouting;
        let out_port = if routed { first.out_port.0 } else { NO_PORT };
        View {
            first,
            tuple: if routed { &first.tuple } else { &first.original },
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
    gates: Gates,
    /// By chain, its first rule's gate.
    firsts: Vec<usize>,
}

impl Judge {
    /// For these rules.
    pub fn new(ruleset: Arc<Ruleset>) -> Judge {
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
        Judge { stages, gates, firsts: ruleset.first_counters(), ruleset }
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
            let view = View::of(first, stage);
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
mod tests {
    use super::*;
    use crate::conntrack::{CtInfo, Template};
    use crate::packet::Packet;
    use crate::rules::generator::{self, Allowed, Cut, Shape, Version};
    use crate::rules::{Context, Decision, Hook, NAT_POSTROUTING, NAT_PREROUTING, RuleVector, Told, load};
    use crate::time::Instant;
    use crate::verdict::DropReason;
    use proptest::prelude::*;

    fn judged(rules: &str, first: &FirstPacket) -> Admits {
        let text = format!(
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:a - [0:0]\n:b - [0:0]\n{rules}COMMIT\n"
        );
        let ruleset = load("test", &text, Family::V4, &["lan", "wan"]).expect("good rules");
        Judge::new(Arc::new(ruleset)).admits(first)
    }

    /// To port 80 of 10.2.0.2, from the LAN.
    fn web() -> FirstPacket {
        let tuple = Tuple {
            src: Addr::from_v4(0x0a01_0002),
            dst: Addr::from_v4(0x0a02_0002),
            sport: 40000,
            dport: 80,
            proto: proto::TCP,
            family: Family::V4,
            zone: 0,
        };
        FirstPacket {
            tuple,
            original: tuple,
            in_port: PortId::LAN,
            out_port: PortId::WAN,
            expected: false,
            dnat: false,
        }
    }

    #[test]
    fn the_first_packet_is_new_and_a_syn() {
        let established = "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n";
        assert_eq!(judged(established, &web()), Admits::No);
        assert_eq!(judged(established, &FirstPacket { expected: true, ..web() }), Admits::Yes);
        assert_eq!(judged("-A FORWARD -m state --state NEW -j ACCEPT\n", &web()), Admits::Yes);
        assert_eq!(judged("-A FORWARD -p tcp --syn -j ACCEPT\n", &web()), Admits::Yes);
        assert_eq!(judged("-A FORWARD -p tcp ! --syn -j ACCEPT\n", &web()), Admits::No);
        assert_eq!(judged("-A FORWARD -m conntrack --ctstatus ASSURED -j ACCEPT\n", &web()), Admits::No);
        let dnat = "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n";
        assert_eq!(
            (judged(dnat, &web()), judged(dnat, &FirstPacket { dnat: true, ..web() })),
            (Admits::No, Admits::Yes)
        );
    }

    #[test]
    fn tuples_of_the_connection_are_known() {
        for (rule, said) in [
            ("--ctorigdst 10.2.0.2 --ctorigdstport 80", Admits::Yes),
            ("--ctorigdst 10.2.0.3", Admits::No),
            ("--ctreplsrc 10.2.0.2 --ctrepldstport 40000 --ctdir ORIGINAL --ctproto 6", Admits::Yes),
            ("--ctdir REPLY", Admits::No),
            ("--ctexpire 0", Admits::Yes),
            ("--ctexpire 1:100", Admits::No),
        ] {
            assert_eq!(judged(&format!("-A FORWARD -m conntrack {rule} -j ACCEPT\n"), &web()), said, "{rule}");
        }
        // Before translation it went to 192.0.2.1:8080.
        let original = Tuple { dst: Addr::from_v4(0xc000_0201), dport: 8080, ..web().tuple };
        let translated = FirstPacket { original, dnat: true, ..web() };
        for (rule, said) in
            [("--ctorigdst 192.0.2.1 --ctorigdstport 8080", Admits::Yes), ("--ctreplsrc 192.0.2.1", Admits::No)]
        {
            assert_eq!(judged(&format!("-A FORWARD -m conntrack {rule} -j ACCEPT\n"), &translated), said, "{rule}");
        }
    }

    #[test]
    fn a_limit_in_another_table_leaves_it_open() {
        let both = |mangle: &str, filter: &str| {
            let mangle = format!("*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n{mangle}COMMIT\n");
            let text = format!("{mangle}*filter\n:FORWARD DROP [0:0]\n{filter}COMMIT\n");
            let ruleset = load("test", &text, Family::V4, &["lan", "wan"]).expect("good rules");
            Judge::new(Arc::new(ruleset)).admits(&web())
        };
        let accept = "-A FORWARD -j ACCEPT\n";
        assert_eq!(both("-A FORWARD -p tcp -j DROP\n", accept), Admits::No);
        assert_eq!(both("-A FORWARD -p udp -j DROP\n", accept), Admits::Yes);
        assert_eq!(both("-A FORWARD -m limit -j DROP\n", accept), Admits::Depends);
        assert_eq!(both("-A FORWARD -j ACCEPT\n", ""), Admits::No);
    }

    #[test]
    fn what_is_not_known_never_refuses_alone() {
        for (rules, said) in [
            ("-A FORWARD -m limit -j ACCEPT\n", Admits::Depends),
            ("-A FORWARD -m limit -j DROP\n-A FORWARD -j ACCEPT\n", Admits::Depends),
            ("-A FORWARD -m limit -j DROP\n", Admits::No),
            ("-A FORWARD -p tcp --tcp-option 3 -j ACCEPT\n", Admits::Depends),
            // Known matches of the same rule still decide.
            ("-A FORWARD -p udp -m limit -j ACCEPT\n", Admits::No),
            ("-A FORWARD -m limit -p tcp --dport 81 -j ACCEPT\n", Admits::No),
            ("-A FORWARD -m limit -j LOG\n-A FORWARD -j ACCEPT\n", Admits::Yes),
            ("-A FORWARD -m limit -j a\n-A a -j ACCEPT\n", Admits::Depends),
            ("-A FORWARD -m limit -j a\n-A FORWARD -j ACCEPT\n-A a -j RETURN\n", Admits::Yes),
        ] {
            assert_eq!(judged(rules, &web()), said, "{rules}");
        }
    }

    #[test]
    fn jumps_come_back_and_gotos_do_not() {
        for (rules, said) in [
            ("-A FORWARD -j a\n-A FORWARD -j ACCEPT\n-A a -p udp -j DROP\n", Admits::Yes),
            ("-A FORWARD -g a\n-A FORWARD -j ACCEPT\n-A a -p udp -j DROP\n", Admits::No),
            ("-A FORWARD -j a\n-A FORWARD -j ACCEPT\n-A a -g b\n-A a -j DROP\n-A b -p udp\n", Admits::Yes),
            ("-A FORWARD -j a\n-A a -j b\n-A a -j ACCEPT\n-A b -j RETURN\n-A b -j DROP\n", Admits::Yes),
            ("-A FORWARD -i lan -o wan -j REJECT\n-A FORWARD -j ACCEPT\n", Admits::No),
            ("-A FORWARD -i wan -o lan -j REJECT\n-A FORWARD -j ACCEPT\n", Admits::Yes),
        ] {
            assert_eq!(judged(rules, &web()), said, "{rules}");
        }
    }

    /// Jumps may be few and gotos many: a chain of them must not take the stack.
    #[test]
    fn a_long_chain_of_gotos_is_no_recursion() {
        let mut rules = String::from("*filter\n:FORWARD DROP [0:0]\n");
        (0..2_000).for_each(|n| rules += &format!(":c{n} - [0:0]\n"));
        rules += "-A FORWARD -g c0\n";
        (0..1_999).for_each(|n| rules += &format!("-A c{n} -g c{}\n", n + 1));
        rules += "-A c1999 -j ACCEPT\nCOMMIT\n";
        let ruleset = load("test", &rules, Family::V4, &["lan", "wan"]).expect("good rules");
        assert_eq!(Judge::new(Arc::new(ruleset)).admits(&web()), Admits::Yes);
    }

    /// Rules of several tables, `*TABLE` before each one's; all built-in chains but filter's FORWARD pass.
    fn judged_all(rules: &str, first: &FirstPacket) -> Admits {
        let mut text = String::new();
        for table in rules.split('*').skip(1) {
            let (name, rules) = table.split_once('\n').expect("a line for the table");
            let policy = if name == "filter" { "DROP" } else { "ACCEPT" };
            let chains: &[&str] = match name {
                "raw" => &["PREROUTING"],
                "mangle" => &["PREROUTING", "FORWARD", "POSTROUTING"],
                _ => &["FORWARD"],
            };
            text += &format!("*{name}\n");
            chains.iter().for_each(|chain| text += &format!(":{chain} {policy} [0:0]\n"));
            text += &format!(":a - [0:0]\n:b - [0:0]\n{rules}COMMIT\n");
        }
        let ruleset = load("test", &text, Family::V4, &["lan", "wan"]).expect("good rules");
        Judge::new(Arc::new(ruleset)).admits(first)
    }

    #[test]
    fn every_chain_on_the_way_has_its_say() {
        let passes = "*filter\n-A FORWARD -j ACCEPT\n";
        for (rules, said) in [
            ("*raw\n-A PREROUTING -p tcp -m tcp --dport 80 -j DROP\n", Admits::No),
            ("*raw\n-A PREROUTING -p udp -j DROP\n", Admits::Yes),
            ("*raw\n-A PREROUTING -j a\n-A a -i lan -j DROP\n", Admits::No),
            ("*raw\n-A PREROUTING -m limit -j DROP\n", Admits::Depends),
            ("*mangle\n-A PREROUTING -s 10.1.0.2 -j DROP\n", Admits::No),
            ("*mangle\n-A PREROUTING -m conntrack --ctstate NEW -j DROP\n", Admits::No),
            ("*mangle\n-A PREROUTING -m conntrack --ctstate ESTABLISHED -j DROP\n", Admits::Yes),
            ("*mangle\n-A FORWARD -o wan -j DROP\n", Admits::No),
            ("*mangle\n-A POSTROUTING -o wan -j DROP\n", Admits::No),
            ("*mangle\n-A POSTROUTING -o lan -j DROP\n", Admits::Yes),
            // One chain from two hooks.
            ("*mangle\n-A PREROUTING -j a\n-A POSTROUTING -p tcp -j a\n-A a -o wan -j DROP\n", Admits::No),
            ("*mangle\n-A PREROUTING -j a\n-A POSTROUTING -p udp -j a\n-A a -o wan -j DROP\n", Admits::Yes),
            ("*security\n-A FORWARD -p tcp -j DROP\n", Admits::No),
            ("*security\n-A FORWARD -d 10.9.0.0/16 -j DROP\n", Admits::Yes),
            // Each may refuse, none surely.
            ("*raw\n-A PREROUTING -m limit -j DROP\n*security\n-A FORWARD -m limit -j DROP\n", Admits::Depends),
        ] {
            assert_eq!(judged_all(&format!("{rules}{passes}"), &web()), said, "{rules}");
        }
        // A policy is a say, too.
        let text = "*security\n:FORWARD DROP [0:0]\n-A FORWARD -p udp -j ACCEPT\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
        let ruleset = load("test", text, Family::V4, &["lan", "wan"]).expect("good rules");
        assert_eq!(Judge::new(Arc::new(ruleset)).admits(&web()), Admits::No);
    }

    #[test]
    fn what_is_known_depends_on_the_hook() {
        let passes = "*filter\n-A FORWARD -j ACCEPT\n";
        let original = Tuple { dst: Addr::from_v4(0xc000_0201), dport: 8080, ..web().tuple };
        let translated = FirstPacket { original, dnat: true, ..web() };
        for (rules, said) in [
            // Before its destination is translated, and after.
            ("*raw\n-A PREROUTING -p tcp -d 192.0.2.1 -m tcp --dport 8080 -j DROP\n", Admits::No),
            ("*mangle\n-A PREROUTING -d 10.2.0.2 -j DROP\n", Admits::Yes),
            ("*mangle\n-A PREROUTING -m conntrack --ctstate DNAT -j DROP\n", Admits::Yes),
            ("*mangle\n-A FORWARD -m conntrack --ctstate DNAT -j DROP\n", Admits::No),
            ("*mangle\n-A POSTROUTING -p tcp -d 10.2.0.2 -m tcp --dport 80 -j DROP\n", Admits::No),
            // Before conntrack has seen it.
            ("*raw\n-A PREROUTING -m conntrack --ctstate NEW -j DROP\n", Admits::Yes),
            ("*raw\n-A PREROUTING -m state --state INVALID -j DROP\n", Admits::No),
            ("*raw\n-A PREROUTING -m conntrack --ctdir ORIGINAL -j DROP\n", Admits::Yes),
            ("*raw\n-A PREROUTING -m connmark ! --mark 0x1 -j DROP\n", Admits::Yes),
            ("*mangle\n-A PREROUTING -m connmark ! --mark 0x1 -j DROP\n", Admits::No),
            // Before it has a way out.
            ("*raw\n-A PREROUTING -j a\n-A a -o wan -j DROP\n", Admits::Yes),
        ] {
            assert_eq!(judged_all(&format!("{rules}{passes}"), &translated), said, "{rules}");
        }
    }

    #[test]
    fn marks_are_known_until_a_rule_may_change_them() {
        let (marked, bare) =
            ("*filter\n-A FORWARD -m mark --mark 0x1 -j ACCEPT\n", "*filter\n-A FORWARD -m mark --mark 0 -j ACCEPT\n");
        for (rules, by_mark, by_none) in [
            ("", Admits::No, Admits::Yes),
            ("*mangle\n-A PREROUTING -p tcp -j MARK --set-mark 1\n", Admits::Depends, Admits::Depends),
            ("*mangle\n-A PREROUTING -m limit -j MARK --set-mark 1\n", Admits::Depends, Admits::Depends),
            ("*mangle\n-A PREROUTING -p udp -j MARK --set-mark 1\n", Admits::No, Admits::Yes),
            ("*mangle\n-A PREROUTING -j CONNMARK --restore-mark\n", Admits::Depends, Admits::Depends),
            (
                "*mangle\n-A PREROUTING -g a\n-A a -p tcp -j b\n-A b -j MARK --set-mark 1\n",
                Admits::Depends,
                Admits::Depends,
            ),
            // Not after it is too late.
            ("*mangle\n-A POSTROUTING -j MARK --set-mark 1\n", Admits::No, Admits::Yes),
        ] {
            assert_eq!(judged_all(&format!("{rules}{marked}"), &web()), by_mark, "{rules}");
            assert_eq!(judged_all(&format!("{rules}{bare}"), &web()), by_none, "{rules}");
        }
        // From there on, and in that chain only on the ways that came past it.
        let before = "*mangle\n-A PREROUTING -m mark --mark 0 -j DROP\n-A PREROUTING -j MARK --set-mark 1\n*filter\n-A FORWARD -j ACCEPT\n";
        assert_eq!(judged_all(before, &web()), Admits::No);
        // One that was expected has its master's mark.
        let connmark = "*filter\n-A FORWARD -m connmark --mark 0x1 -j ACCEPT\n";
        assert_eq!(judged_all(connmark, &web()), Admits::No);
        assert_eq!(judged_all(connmark, &FirstPacket { expected: true, ..web() }), Admits::Depends);
    }

    #[test]
    fn the_state_is_known_until_a_rule_may_leave_the_packet_untracked() {
        let new = "*filter\n-A FORWARD -m conntrack --ctstate NEW -j ACCEPT\n";
        let established = "*filter\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n";
        for (rules, said_new, said_established) in [
            ("", Admits::Yes, Admits::No),
            ("*raw\n-A PREROUTING -j NOTRACK\n", Admits::Depends, Admits::Depends),
            ("*raw\n-A PREROUTING -m limit -j CT --notrack\n", Admits::Depends, Admits::Depends),
            ("*raw\n-A PREROUTING -p udp -j NOTRACK\n", Admits::Yes, Admits::No),
            ("*raw\n-A PREROUTING -j CT --zone 5\n", Admits::Yes, Admits::No),
            ("*raw\n-A PREROUTING -p tcp -j NOTRACK\n-A PREROUTING -p tcp -j DROP\n", Admits::No, Admits::No),
        ] {
            assert_eq!(judged_all(&format!("{rules}{new}"), &web()), said_new, "{rules}");
            assert_eq!(judged_all(&format!("{rules}{established}"), &web()), said_established, "{rules}");
        }
    }

    const INTERFACES: [&str; 2] = ["lan0", "wan0"];

    /// Chains of the packet's way, and the hook it has there.
    fn way() -> impl Iterator<Item = (ChainIndex, Hook)> {
        PATH.into_iter()
            .filter(|chain| ![NAT_PREROUTING, NAT_POSTROUTING].contains(chain))
            .map(|at| (at, BUILTIN[at].1))
    }

    /// Whether the engine lets the packet that this shape begins a connection with through all chains; none if it is malformed.
    fn engine(vector: &RuleVector, shape: &Shape, expected: bool) -> Option<(FirstPacket, bool)> {
        let shape = Shape { flags: tcp::SYN, cut: Cut::Whole, doff_lie: 0, extensions: Vec::new(), ..shape.clone() };
        let mut frame = shape.frame(1, [2, 0, 0, 0, 1, 0]);
        let (in_port, out_port) = if shape.outward { (PortId::LAN, PortId::WAN) } else { (PortId::WAN, PortId::LAN) };
        let mut packet = Packet::parse(&frame, in_port, true).ok()?;
        let tuple = Tuple::of(&packet);
        let reply = tuple.inverse().unwrap_or(tuple);
        let first = FirstPacket { tuple, original: tuple, in_port, out_port, expected, dnat: false };
        let (mut mark, mut template, mut conn_mark) = (0, Template::DEFAULT, 0);
        let state = if expected { CtInfo::Related } else { CtInfo::New };
        for (chain, hook) in way() {
            let is_raw = BUILTIN[chain].0 == TableName::Raw;
            let info = match (is_raw, template.notrack) {
                (_, true) => CtInfo::Untracked,
                (true, _) => CtInfo::Invalid,
                (false, _) => state,
            };
            let tracked = !is_raw && !template.notrack;
            if hook == Hook::Forward && chain == crate::rules::MANGLE_FORWARD {
                packet.ttl -= 1;
            }
            let routed = hook != Hook::Prerouting;
            let mut context = Context {
                packet: &mut packet,
                frame: &mut frame,
                hook,
                in_port,
                out_port: routed.then_some(out_port),
                out_mtu: if routed { 1500 } else { 0 },
                info,
                status: CtStatus(u16::from(expected && tracked)),
                mark,
                template,
                traced: false,
                now: Instant::from_secs(1000),
            };
            let mut world = Told {
                tuples: tracked.then_some([tuple, reply]),
                direction: tracked.then_some(Direction::Original),
                conn_mark: tracked.then_some(conn_mark),
                ..Told::default()
            };
            let decision = vector.evaluate(chain, &mut context, &mut world, &mut vector.counters());
            (mark, template, conn_mark) = (context.mark, context.template, world.conn_mark.unwrap_or(conn_mark));
            match decision {
                Decision::Accept => {}
                // Malformed, which is not known.
                Decision::Drop(DropReason::RuleHotdrop) => return None,
                Decision::Drop(_) | Decision::Reject(_) => return Some((first, false)),
            }
        }
        Some((first, true))
    }

    /// Against the engine: the verdict on a packet that may begin a connection is one that the judge held possible, and
    /// where no match asks what is not known, and no target makes it so, the judge is certain.
    fn agrees(family: Family, text: &str, shapes: &[Shape], expected: bool) -> Result<(), TestCaseError> {
        let ruleset = load("random", text, family, &INTERFACES).expect("a generated file is good");
        let understood = ["comment", "state", "conntrack", "tcp", "udp", "icmp", "icmp6", "mark"];
        let rules = || ruleset.chains.iter().flat_map(|chain| &chain.rules);
        let mut matches = rules().flat_map(|rule| &rule.matches);
        let unknown = text.contains("--tcp-option")
            || matches.any(|matched| !understood.contains(&matched.name()))
            || rules().any(|rule| makes_unknown(&rule.target) != 0);
        let (vector, judge) = (RuleVector::compile(&ruleset), Judge::new(Arc::new(ruleset)));
        for shape in shapes {
            let Some((first, passes)) = engine(&vector, shape, expected) else { continue };
            let said = judge.admits(&first);
            prop_assert!(
                said != if passes { Admits::No } else { Admits::Yes },
                "{said:?} but it {}\n{text}\n{first:?}",
                if passes { "passes" } else { "is refused" }
            );
            prop_assert!(unknown || said != Admits::Depends, "nothing is unknown in\n{text}\n{first:?}");
        }
        Ok(())
    }

    /// The rules of a generated filter table as those of another table, whose chains are these.
    fn elsewhere(filter: &str, table: &str, chains: &[&str]) -> String {
        let mut text = format!("*{table}\n");
        chains.iter().for_each(|chain| text += &format!(":{chain} ACCEPT [0:0]\n"));
        let rules = filter.lines().filter(|line| line.starts_with("-A") || line.ends_with(" - [0:0]"));
        for (number, line) in rules.enumerate() {
            let entry = chains[number % chains.len()];
            // What not every hook takes.
            let barred = if entry == "PREROUTING" { " -o " } else { " -i " };
            let anywhere = ["tcp", "udp", "multiport", "state", "conntrack", "limit", "comment", "length", "dscp"];
            let mut names = line.split(" -m ").skip(1).map(|rest| rest.split(' ').next().unwrap_or_default());
            if names.any(|name| !anywhere.contains(&name)) || line.starts_with("-A FORWARD") && line.contains(barred) {
                continue;
            }
            // Few refuse, so that other tables have their say, too.
            let line = match line.find(" -j REJECT") {
                Some(at) => line[..at].to_owned() + [" -j DROP", " -j RETURN", " -j ACCEPT"][number % 3],
                None => line.replace(" -j DROP", [" -j DROP", " -j RETURN", ""][number % 3]),
            };
            text += &line.replace("-A FORWARD", &format!("-A {entry}"));
            text.push('\n');
        }
        text
    }

    fn with_all_tables(version: Version) -> impl Strategy<Value = String> {
        let one = || generator::ruleset(version, Allowed { fast_limits: true, odd: false });
        let marks = proptest::sample::subsequence(
            vec![
                "-A PREROUTING -p tcp -j MARK --set-xmark 0x1/0x3",
                "-A PREROUTING -m conntrack --ctstate NEW -j CONNMARK --save-mark",
                "-A FORWARD -m mark --mark 0x1 -j DROP",
                "-A FORWARD -m mark ! --mark 0/0x2 -j ACCEPT",
                "-A POSTROUTING -m connmark --mark 0 -j A",
                "-A A -p udp -j MARK --set-xmark 0x2/0x2",
            ],
            0..=6,
        );
        let raw = proptest::sample::subsequence(
            vec![
                "-A PREROUTING -p udp -j NOTRACK",
                "-A PREROUTING -p tcp -m tcp --dport 443 -j CT --notrack",
                "-A PREROUTING -j CT --zone 1",
                "-A PREROUTING -m state --state UNTRACKED -j ACCEPT",
            ],
            0..=4,
        );
        (one(), one(), one(), one(), marks, raw, any::<[bool; 3]>()).prop_map(
            |(filter, mangle, security, early, marks, raw, has)| {
                let mut text = String::new();
                if has[0] {
                    text += &(elsewhere(&early, "raw", &["PREROUTING"]) + &raw.join("\n") + "\nCOMMIT\n");
                }
                if has[1] {
                    let chains = ["PREROUTING", "FORWARD", "POSTROUTING"];
                    text += &(elsewhere(&mangle, "mangle", &chains) + &marks.join("\n") + "\nCOMMIT\n");
                }
                if has[2] {
                    text += &(elsewhere(&security, "security", &["FORWARD"]) + "COMMIT\n");
                }
                text + &filter
            },
        )
    }

    fn scene(version: Version) -> impl Strategy<Value = (String, Vec<Shape>, bool)> {
        let filter = generator::ruleset(version, Allowed { fast_limits: true, odd: false });
        let rules = prop_oneof![filter, with_all_tables(version)];
        (rules, proptest::collection::vec(generator::shape(version), 1..20), any::<bool>())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

        #[test]
        fn the_engine_never_says_what_the_judge_ruled_out_v4((text, shapes, expected) in scene(Version::V4)) {
            agrees(Family::V4, &text, &shapes, expected)?;
        }

        #[test]
        fn the_engine_never_says_what_the_judge_ruled_out_v6((text, shapes, expected) in scene(Version::V6)) {
            agrees(Family::V6, &text, &shapes, expected)?;
        }
    }
}
