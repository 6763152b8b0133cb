//! Random sequences: a ruleset, flows between few hosts with few ports, so that they get into each other's way, and what is
//! said in them.

use std::net::IpAddr;

use xrouter::conntrack::Settings;
use xrouter::device::PortId;

use crate::flow::{Flaw, Flow, SCTP, Step, Teller, UDPLITE, What};
use crate::generate::{Random, sctp, tcp};
use crate::place::address;
use crate::rules::{self, Flavour};
use crate::testing;

/// See the module's head.
#[derive(Clone)]
pub(crate) struct Sequence {
    pub(crate) settings: Settings,
    /// For IPv6, else IPv4.
    pub(crate) v6: bool,
    /// As iptables-restore reads them.
    pub(crate) rules: String,
    /// Rules that take the place of these before the step of this number: connections keep what they were given.
    pub(crate) later: Option<(usize, String)>,
    pub(crate) zones: Zones,
    pub(crate) flows: Vec<Flow>,
    pub(crate) steps: Vec<Step>,
}

/// The conntrack zones that raw puts packets into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zones {
    None,
    /// All are in this one.
    One,
    /// What two clients send is in a zone of each.
    Clients,
}

impl Zones {
    pub(crate) const ONE: u16 = 7;

    /// The zone of a client's packets.
    pub(crate) fn of_client(v6: bool) -> [(IpAddr, u16); 2] {
        [(address(v6, 1, 2), 1), (address(v6, 1, 3), 2)]
    }

    /// The zone of packets from `src`.
    pub(crate) fn of(self, src: IpAddr) -> u16 {
        let client = Zones::of_client(src.is_ipv6()).into_iter().find(|(client, _)| *client == src);
        match self {
            Zones::None => 0,
            Zones::One => Zones::ONE,
            Zones::Clients => client.map_or(0, |(_, zone)| zone),
        }
    }
}

/// What the ends of a flow have in mind.
enum Talk {
    Tcp(tcp::Talk),
    Sctp(sctp::Talk),
    Udp,
    UdpLite,
    Query(u8),
    Gre(Vec<u8>),
    Plain,
}

/// The sequence of this seed.
pub(crate) fn sequence(seed: u64) -> Sequence {
    let random = &mut Random::new(seed);
    let v6 = random.one_in(3);
    let settings = Settings {
        max: 1000,
        tcp_be_liberal: random.one_in(8),
        checksum: !random.one_in(20),
        acct: random.one_in(10),
        ..Settings::default()
    };
    // Many connections for few ports, which become free as connections end.
    let tight = random.one_in(6);
    let zones = random.pick(&[Zones::None, Zones::None, Zones::None, Zones::None, Zones::One, Zones::Clients]);
    let flavour = Flavour { v6, tight, wide: v6 && random.one_in(4), zones };
    let rules = rules::ruleset(random, flavour);
    let one = random.pick(&[None, None, Some(6u8), Some(6), Some(17)]);
    let mut flows = Vec::new();
    let mut talks = Vec::new();
    for _ in 0..2 + random.below(14) + if tight { 6 } else { 0 } {
        let any = random.pick(&[6u8, 6, 6, 6, 17, 17, 17, 1, 1, SCTP, UDPLITE, 47, 50, 33]);
        let proto = one.filter(|_| !random.one_in(10)).unwrap_or(any);
        let (mut flow, talk) = flow(random, v6, proto);
        if tight && random.one_in(2) {
            let (net, host) = random.pick(&[(2, 2), (2, 2), (2, 3), (9, 2)]);
            flow = Flow { from: PortId::LAN, src: address(v6, 1, 2), dst: address(v6, net, host), dport: 80, ..flow };
        }
        flows.push(flow);
        talks.push(talk);
    }
    let mut steps: Vec<Step> = Vec::new();
    let mut at = 0;
    // With few open at a time they begin and end, with many they meet.
    let few = random.one_in(2);
    for count in 0..20 + random.below(120) * if tight { 3 } else { 1 } {
        if random.one_in(3) {
            let open = if few { (3 + count as usize / 10).min(flows.len()) } else { flows.len() };
            at = (flows.len().min(open) as u64 - 1 - random.below(open as u64)) as usize;
        }
        let step = if random.one_in(10) { error(random, at, v6) } else { says(random, at, &flows[at], &mut talks[at]) };
        steps.push(step);
        if random.one_in(25) {
            steps.extend(vec![steps[steps.len() - 1].clone(); random.below(4) as usize]);
        }
    }
    let later = random.one_in(6).then(|| (random.below(steps.len() as u64) as usize, rules::ruleset(random, flavour)));
    Sequence { settings, v6, rules, later, zones, flows, steps }
}

fn flow(random: &mut Random, v6: bool, proto: u8) -> (Flow, Talk) {
    let lan = |random: &mut Random| random.pick(&[(1, 2), (1, 2), (1, 2), (1, 3), (1, 4), (5, 2)]);
    let wan = |random: &mut Random| random.pick(&[(2, 2), (2, 2), (2, 2), (2, 3), (9, 2), (8, 2)]);
    let from = random.pick(&[PortId::LAN, PortId::LAN, PortId::LAN, PortId::WAN, PortId::WAN]);
    let vip = [(2, 100), (2, 100), (2, 101), (2, 102), (2, 1), (2, 11), (1, 100), (1, 1), (3, 1), (7, 2), (7, 3)];
    let src = if from == PortId::LAN { lan(random) } else { wan(random) };
    let dst = match (random.below(10), from) {
        (0..=3, _) => random.pick(&vip),
        (4, PortId::LAN) => lan(random),
        (4, _) => wan(random),
        (5, _) if random.one_in(3) => random.pick(&[(97, 2), (98, 2), (99, 2)]),
        (_, PortId::LAN) => wan(random),
        (_, _) => random.pick(&[(2, 100), (1, 2), (1, 3), (2, 1), (7, 2)]),
    };
    let ip = |(net, host): (u8, u8)| -> IpAddr { address(v6, net, host) };
    let sport = random.pick(&[5000, 5000, 5000, 5001, 5002, 2000, 2001, 700, 300, 80]);
    let dport = random.pick(&[80, 80, 80, 81, 53, 7000, 7001, 7003, 7005, 8080]);
    let query = match v6 {
        true => 128,
        false => random.pick(&[8, 8, 8, 8, 13, 15, 17]),
    };
    let talk = match proto {
        6 => Talk::Tcp(tcp::Talk::new(random)),
        17 => Talk::Udp,
        UDPLITE => Talk::UdpLite,
        SCTP => Talk::Sctp(sctp::Talk::new(random)),
        1 => Talk::Query(query),
        47 => {
            let version = random.pick(&[0u8, 0, 1, 1]);
            let key = random.pick(&[0x12u8, 0x13]);
            let protocol = if version == 1 { [0x88, 0x0b] } else { [0x08, 0x00] };
            Talk::Gre([vec![0x20, version], protocol.to_vec(), vec![0, 0, 0, key, 0, 0, 0, 0]].concat())
        }
        _ => Talk::Plain,
    };
    let (proto, sport) = match (proto, v6) {
        (1, true) => (58, random.pick(&[7, 7, 8, 2001])),
        (1, false) => (1, random.pick(&[7, 7, 8, 2001])),
        (proto, _) => (proto, sport),
    };
    (Flow { from, proto, src: ip(src), dst: ip(dst), sport, dport }, talk)
}

/// The next thing that is said in a flow.
fn says(random: &mut Random, flow: usize, ends: &Flow, talk: &mut Talk) -> Step {
    let mut back = random.one_in(2);
    let l4 = match talk {
        Talk::Tcp(talk) => {
            let (from_client, _, l4) = talk.next(random);
            back = !from_client;
            l4
        }
        Talk::Sctp(talk) => {
            let (from_client, _, l4) = talk.next(random);
            back = !from_client;
            l4
        }
        Talk::Udp => testing::udp(0, 0, &vec![7; random.below(5) as usize]),
        Talk::UdpLite => testing::udp(0, 0, &[]),
        Talk::Query(kind) => {
            let answer = match *kind {
                8 => 0,
                128 => 129,
                other => other + 1,
            };
            testing::icmp(if back { answer } else { *kind }, 0, [0, 0, 0, 1], &[5; 8][..random.below(9) as usize])
        }
        Talk::Gre(header) => header.clone(),
        Talk::Plain => {
            let length = random.below(24);
            random.bytes(length)
        }
    };
    let flaw = match random.below(60) {
        0..=1 => Flaw::WrongChecksum,
        2..=4 if ends.proto == 17 => Flaw::NoChecksum,
        5 => Flaw::NoHops,
        6 if matches!(ends.proto, 6 | 17 | 50) => Flaw::Big,
        7 if random.one_in(3) => Flaw::Bit,
        8 => Flaw::Options,
        _ => Flaw::None,
    };
    Step { flow, back, what: What::Says { l4, flaw }, seed: random.next() }
}

fn error(random: &mut Random, flow: usize, v6: bool) -> Step {
    let kind = match v6 {
        false => random.pick(&[3, 3, 3, 3, 11, 11, 4, 12, 5]),
        true => random.pick(&[1, 1, 1, 2, 3, 3, 4, 137]),
    };
    let header = if v6 { 40 } else { 20 };
    let cut = header + random.pick(&[8, 8, 8, 20, 28, 64, 64, 2000, 2000, 4, 0]);
    let flaw = match random.below(30) {
        0 => Flaw::WrongChecksum,
        1 => Flaw::NoHops,
        2 => Flaw::Bit,
        _ => Flaw::None,
    };
    let from = random.pick(&[Teller::End, Teller::End, Teller::Router]);
    let what = What::Error { kind, code: random.below(5) as u8, from, cut, flaw };
    Step { flow, back: random.one_in(3), what, seed: random.next() }
}
