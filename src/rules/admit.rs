//! Whether rules would let a connection begin: [`Judge`], over the typed rules, without packet, counter or clock.
//!
//! Asked of connections that already are there, when rules have changed: would the packet that began it pass FORWARD
//! now (of the mangle, filter and security tables)? What that packet was like is known of its tuple, its state (NEW, or
//! RELATED for one that was expected) and its interfaces; a TCP connection begins with SYN. The rest of it (length,
//! TTL, options, mark) is not known, and neither is what a `limit` would say or what time it would be. So the answer to
//! each match is yes, no or *maybe*, and a rule that may match leads on both ways at once: [`Admits::No`] is said only
//! when no way leads to ACCEPT, so that no connection ends for a match that depends on the single packet, the time or
//! what was counted. Two matches that are not known are taken as independent of each other, which errs on the side of
//! `Depends`.
//!
//! Each chain's set of outcomes depends on nothing but the packet, so every chain is walked once, callees before
//! callers.

use super::matches::{BitMatch, ConntrackMatch, IcmpMatch, Match, MultiportMatch, TcpMatch, state};
use super::row::Word;
use super::rule::{
    AddrMatch, ChainIndex, FORWARD, InterfaceMatch, MANGLE_FORWARD, Policy, Rule, Ruleset, SECURITY_FORWARD,
};
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

/// What may become of a packet in a chain, as a set.
type Outcomes = u8;
const PASSES: Outcomes = 1;
const REFUSED: Outcomes = 2;
/// It goes back to where the last jump came from.
const GOES_BACK: Outcomes = 4;

/// Where the packet has to pass.
const FORWARDS: [ChainIndex; 3] = [MANGLE_FORWARD, FORWARD, SECURITY_FORWARD];

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
    /// Bit `p`: may come in by port `p`; bit `4 + p`: may go out by it.
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
            let name = |port: PortId| ports.get(port.index()).map_or("", String::as_str);
            let passes = |port: &&PortId| asked.as_ref().is_none_or(|asked| asked.covers(name(**port)) != asked.invert);
            PortId::ALL.iter().filter(passes).fold(0u8, |bits, port| bits | 1 << port.0)
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

/// Judges connections by the FORWARD rules of one ruleset.
#[derive(Debug)]
pub struct Judge {
    ruleset: Arc<Ruleset>,
    /// Chains that these reach, callees before callers.
    order: Vec<ChainIndex>,
    gates: Gates,
    /// By chain, its first rule's gate.
    firsts: Vec<usize>,
}

impl Judge {
    /// For these rules.
    pub fn new(ruleset: Arc<Ruleset>) -> Judge {
        let mut rules = 0;
        let mut firsts = Vec::with_capacity(ruleset.chains.len());
        for chain in &ruleset.chains {
            firsts.push(rules);
            rules += chain.rules.len();
        }
        let all = ruleset.chains.iter().flat_map(|chain| &chain.rules);
        let gates = match ruleset.family {
            Family::V4 => Gates::V4(all.map(|rule| Gate::new(rule, &ruleset.ports)).collect()),
            Family::V6 => Gates::V6(all.map(|rule| Gate::new(rule, &ruleset.ports)).collect()),
        };
        Judge { order: callees_first(&ruleset), gates, firsts, ruleset }
    }

    /// Whether the connection that `first` begins may begin.
    pub fn admits(&self, first: &FirstPacket) -> Admits {
        let mut known = vec![0; self.ruleset.chains.len()];
        for &chain in &self.order {
            known[chain] = match &self.gates {
                Gates::V4(gates) => self.chain(chain, gates, first, &known),
                Gates::V6(gates) => self.chain(chain, gates, first, &known),
            };
        }
        let outcomes = FORWARDS.map(|chain| {
            let refuses = self.ruleset.chains[chain].policy == Some(Policy::Drop);
            let policy = if refuses { REFUSED } else { PASSES };
            if known[chain] & GOES_BACK != 0 { known[chain] | policy } else { known[chain] }
        });
        let all_may_pass = outcomes.iter().all(|outcomes| outcomes & PASSES != 0);
        match (all_may_pass, outcomes.iter().any(|outcomes| outcomes & REFUSED != 0)) {
            (true, true) => Admits::Depends,
            (true, false) => Admits::Yes,
            (false, _) => Admits::No,
        }
    }

    /// `known` has the outcomes of every chain that this one leads to.
    fn chain<W: Word>(
        &self,
        chain: ChainIndex,
        gates: &[Gate<W>],
        first: &FirstPacket,
        known: &[Outcomes],
    ) -> Outcomes {
        let addresses = (W::of(first.tuple.src), W::of(first.tuple.dst));
        let ports = 1 << first.in_port.0 | 1 << (4 + first.out_port.0);
        let rules = &self.ruleset.chains[chain].rules;
        let gates = &gates[self.firsts[chain]..self.firsts[chain] + rules.len()];
        let mut outcomes = 0;
        for (gate, rule) in gates.iter().zip(rules) {
            if !gate.lets_through(addresses, first.tuple.proto, ports) {
                continue;
            }
            let says = all_say(&rule.matches, first);
            if says == Says::No {
                continue;
            }
            let (may, goes_on) = match rule.target {
                Target::Count | Target::Log(_) => (0, true),
                Target::Accept => (PASSES, false),
                Target::Drop | Target::Reject(_) => (REFUSED, false),
                Target::Return => (GOES_BACK, false),
                Target::Jump(to) => (known[to] & !GOES_BACK, known[to] & GOES_BACK != 0),
                Target::Goto(to) => (known[to], false),
                // All others do something, and the next rule follows; should one decide, it is not known how.
                #[allow(unreachable_patterns)]
                _ => (if rule.target.is_final() { PASSES | REFUSED } else { 0 }, !rule.target.is_final()),
            };
            outcomes |= may;
            if says == Says::Yes && !goes_on {
                return outcomes;
            }
        }
        outcomes | GOES_BACK
    }
}

fn all_say(matches: &[Match], first: &FirstPacket) -> Says {
    let mut all = Says::Yes;
    for matched in matches {
        match asked(matched, first) {
            Says::No => return Says::No,
            Says::Maybe => all = Says::Maybe,
            Says::Yes => {}
        }
    }
    all
}

/// The three chains and what they reach, callees first. The check has made sure that there is no loop.
fn callees_first(ruleset: &Ruleset) -> Vec<ChainIndex> {
    let mut order = Vec::new();
    let mut seen = vec![false; ruleset.chains.len()];
    for root in FORWARDS {
        // Chain, and the rule to look at next. A stack of our own: the file decides how deep it goes.
        let mut path = vec![(root, 0)];
        seen[root] = true;
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
    }
    order
}

fn address(asked: &Option<AddrMatch>, addr: Addr) -> bool {
    // An IPv4 mask has its upper 96 bits zero, so only the low 32 of the mapped form are left to compare.
    asked.is_none_or(|asked| (addr.bits() & asked.mask.bits() == asked.net.bits() & asked.mask.bits()) != asked.invert)
}

/// A match about what is not known says maybe.
fn asked(matched: &Match, first: &FirstPacket) -> Says {
    let tuple = &first.tuple;
    match matched {
        Match::Comment(_) => Says::Yes,
        Match::State(asked) => ((state_bit(first) & asked.states != 0) != asked.invert).into(),
        Match::Conntrack(asked) => conntrack(asked, first).into(),
        Match::Tcp(asked) => tcp_begins(asked, tuple),
        Match::Udp(asked) => (asked.sport.holds(tuple.sport) && asked.dport.holds(tuple.dport)).into(),
        Match::Icmp(asked) => icmp(asked, tuple).into(),
        Match::Icmp6(asked) => icmp(&asked.0, tuple).into(),
        Match::Multiport(asked) => multiport(asked, tuple),
        // `limit`, and whatever reads the packet, its mark, the time or a table.
        _ => Says::Maybe,
    }
}

fn state_bit(first: &FirstPacket) -> u16 {
    if first.expected { state::RELATED } else { state::NEW }
}

/// The connection is not confirmed: of the status bits, it can have only these, and it expires in no time (`conntrack_mt`). Its
/// source is not translated yet.
fn conntrack(asked: &ConntrackMatch, first: &FirstPacket) -> bool {
    let expected = if first.expected { CtStatus::EXPECTED.0 } else { 0 };
    let (dnat_status, dnat_state) = if first.dnat { (CtStatus::DST_NAT.0, state::DNAT) } else { (0, 0) };
    let holds = |asked: Option<BitMatch>, bits: u16| asked.is_none_or(|asked| (bits & asked.bits != 0) != asked.invert);
    let bits = holds(asked.state, state_bit(first) | dnat_state) && holds(asked.status, expected | dnat_status);
    let expire = asked.expire.is_none_or(|asked| (asked.low == 0) != asked.invert);
    let (original, reply) = (&first.original, first.tuple.inverse().unwrap_or(first.tuple));
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
    use crate::rules::{Context, Decision, Hook, RuleVector, Told, load};
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
    fn every_table_has_its_say() {
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

    /// Against the engine: the verdict on a packet that may begin a connection is one that the judge held possible, and
    /// where no match asks what is not known the judge is certain.
    fn agrees(family: Family, text: &str, shapes: &[Shape], expected: bool) -> Result<(), TestCaseError> {
        let ruleset = load("random", text, family, &["lan0", "wan0"]).expect("a generated file is good");
        let understood = ["comment", "state", "conntrack", "tcp", "udp", "icmp", "icmp6"];
        let mut matches = ruleset.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.matches);
        let unknown = text.contains("--tcp-option") || matches.any(|matched| !understood.contains(&matched.name()));
        let (vector, judge) = (RuleVector::compile(&ruleset), Judge::new(Arc::new(ruleset)));
        for shape in shapes {
            let shape =
                Shape { flags: tcp::SYN, cut: Cut::Whole, doff_lie: 0, extensions: Vec::new(), ..shape.clone() };
            let mut frame = shape.frame(1, [2, 0, 0, 0, 1, 0]);
            let in_port = if shape.outward { PortId::LAN } else { PortId::WAN };
            let out_port = if shape.outward { PortId::WAN } else { PortId::LAN };
            let Ok(mut packet) = Packet::parse(&frame, in_port, true) else { continue };
            packet.ttl -= 1;
            let tuple = Tuple::of(&packet);
            let mut context = Context {
                packet: &mut packet,
                frame: &mut frame,
                hook: Hook::Forward,
                in_port,
                out_port: Some(out_port),
                out_mtu: 1500,
                info: if expected { CtInfo::Related } else { CtInfo::New },
                status: CtStatus(u16::from(expected)),
                mark: 0,
                template: Template::DEFAULT,
                traced: false,
                now: Instant::from_secs(1000),
            };
            let reply = tuple.inverse().unwrap_or(tuple);
            let direction = Some(Direction::Original);
            let mut world = Told { tuples: Some([tuple, reply]), direction, ..Told::default() };
            let decision = vector.evaluate(FORWARD, &mut context, &mut world, &mut vector.counters());
            let passes = match decision {
                Decision::Accept => true,
                // Malformed, which is not known.
                Decision::Drop(DropReason::RuleHotdrop) => continue,
                Decision::Drop(_) | Decision::Reject(_) => false,
            };
            let first = FirstPacket { tuple, original: tuple, in_port, out_port, expected, dnat: false };
            let said = judge.admits(&first);
            prop_assert!(
                said != if passes { Admits::No } else { Admits::Yes },
                "{said:?} but {decision:?}\n{text}\n{first:?}"
            );
            prop_assert!(unknown || said != Admits::Depends, "nothing is unknown in\n{text}\n{first:?}");
        }
        Ok(())
    }

    fn scene(version: Version) -> impl Strategy<Value = (String, Vec<Shape>, bool)> {
        let rules = generator::ruleset(version, Allowed { fast_limits: true, odd: false });
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
