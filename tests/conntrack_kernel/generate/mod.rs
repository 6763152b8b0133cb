//! Random sequences of packets: mostly what a few hosts would say to each other, interleaved, with every field wrong now and
//! then. What is known to be decided elsewhere is not generated: fragments, and options that the router fills in with the
//! time.

pub(crate) mod other;
pub(crate) mod sctp;
pub(crate) mod tcp;

use std::net::IpAddr;

use xrouter::conntrack::Settings;
use xrouter::packet::Packet;
use xrouter::wire::Addr;

use crate::ends::HOSTS;
use crate::step::{DROP, MARKS, NOTRACK, Step, ZONES};
use crate::testing;

/// A small generator of numbers (xorshift64*), so that a seed names a run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }

    pub(crate) fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// A sequence and the settings it runs under, all told by its seed.
pub(crate) struct Sequence {
    pub(crate) settings: Settings,
    pub(crate) steps: Vec<Step>,
}

/// Two hosts and what they speak.
struct Flow {
    client: IpAddr,
    server: IpAddr,
    talk: Talk,
}

enum Talk {
    Tcp(tcp::Talk),
    Sctp(sctp::Talk),
    Other(other::Talk),
}

fn address(v6: bool, inside: bool, host: u8) -> IpAddr {
    let net = if inside { 1 } else { 2 };
    match v6 {
        false => IpAddr::from([10, net, 0, host]),
        true => IpAddr::from([0xfd00 + u16::from(net), 0, 0, 0, 0, 0, 0, u16::from(host)]),
    }
}

impl Flow {
    fn new(random: &mut Random, v6: bool, profile: u64) -> Flow {
        let talk = match profile {
            0 => Talk::Tcp(tcp::Talk::new(random)),
            1 => Talk::Sctp(sctp::Talk::new(random)),
            _ => Talk::Other(other::Talk::new(random)),
        };
        let host = if random.one_in(6) { 3 } else { 2 };
        Flow { client: address(v6, true, host), server: address(v6, false, 2), talk }
    }

    fn next(&mut self, random: &mut Random) -> Step {
        let v6 = self.client.is_ipv6();
        let (from_client, proto, l4) = match &mut self.talk {
            Talk::Tcp(talk) => talk.next(random),
            Talk::Sctp(talk) => talk.next(random),
            Talk::Other(talk) => talk.next(random, v6),
        };
        let (src, dst) = if from_client { (self.client, self.server) } else { (self.server, self.client) };
        let l4 = match proto {
            136 => other::udplite_with_checksum(random, src, dst, l4),
            _ => l4,
        };
        let l4 = if random.one_in(60) { l4[..random.below(l4.len() as u64 + 1) as usize].to_vec() } else { l4 };
        Step::new(from_client, testing::ip(src, dst, proto, &l4))
    }
}

/// Mostly the defaults.
fn settings(random: &mut Random, max: usize) -> Settings {
    let defaults = Settings { max, acct: random.one_in(4), timestamp: random.one_in(4), ..Settings::default() };
    if !random.one_in(4) {
        return defaults;
    }
    Settings {
        checksum: !random.one_in(4),
        tcp_loose: random.one_in(2),
        tcp_be_liberal: random.one_in(2),
        tcp_ignore_invalid_rst: random.one_in(2),
        tcp_max_retrans: random.pick(&[1, 2, 3, 5]),
        tcp_timeout_max_retrans: random.pick(&[300, 300, 20, 500_000]),
        tcp_timeout_unacknowledged: random.pick(&[300, 300, 40, 500_000]),
        ..defaults
    }
}

/// What may be changed while connections are there; counters and start times only to none.
fn other_settings(random: &mut Random, from: &Settings) -> Settings {
    Settings {
        acct: from.acct && random.one_in(2),
        timestamp: from.timestamp && random.one_in(2),
        udp_timeout: random.pick(&[30, 77]),
        icmp_timeout: random.pick(&[30, 78]),
        gre_timeout: random.pick(&[30, 79]),
        gre_timeout_stream: random.pick(&[180, 80]),
        generic_timeout: random.pick(&[600, 81]),
        sctp_timeout_established: random.pick(&[210, 82]),
        tcp_timeout_established: random.pick(&[432_000, 83, 200]),
        ..settings(random, from.max)
    }
}

/// What raw and mangle do to packets of a sequence.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Raw {
    Nothing,
    /// A template or an action now and then.
    Sometimes,
    /// Every direction of every flow has a zone.
    Zones,
}

/// The sequence of this seed.
pub(crate) fn sequence(seed: u64) -> Sequence {
    let random = &mut Random::new(seed);
    let settings = settings(random, 64);
    let profile = random.pick(&[0, 0, 0, 1, 2, 2, 3]);
    let raw = random.pick(&[Raw::Nothing, Raw::Nothing, Raw::Nothing, Raw::Nothing, Raw::Sometimes, Raw::Zones]);
    let v6 = random.one_in(3);
    let mut flows = Vec::new();
    for _ in 0..random.pick(&[1u64, 1, 1, 2, 2, 3, 4]) {
        let profile = if profile == 3 { random.below(3) } else { profile };
        let v6 = if random.one_in(10) { !v6 } else { v6 };
        flows.push(Flow::new(random, v6, profile));
    }
    // Zones that the two directions and the flows are in; mostly one that makes sense.
    let zones = random.pick(&[[33, 33], [33, 34], [35, 0], [0, 37], [35, 37], [36, 35], [38, 36], [33, 35], [33, 0]]);
    let mut steps: Vec<Step> = Vec::new();
    let mut at = 0;
    for _ in 0..4 + random.below(36) {
        if random.one_in(3) {
            at = random.below(flows.len() as u64) as usize;
        }
        if random.one_in(9)
            && let Some(step) = other::error(random, &steps)
        {
            steps.push(step);
            continue;
        }
        let mut step = flows[at].next(random);
        disturb(random, &mut step);
        if raw != Raw::Nothing && is_plain(&step) {
            instruct(random, raw, zones, at, &mut step);
        }
        steps.push(step);
        if random.one_in(12) {
            for _ in 0..random.below(5) {
                steps.push(steps[steps.len() - 1].clone());
            }
        }
    }
    if random.one_in(8) {
        let at = random.below(steps.len() as u64) as usize;
        steps[at].settings = Some(other_settings(random, &settings));
    }
    steps.retain(|step| !step.looks_unfinished());
    Sequence { settings, steps }
}

/// Whether nothing but raw, conntrack and mangle decides about it.
fn is_plain(step: &Step) -> bool {
    let plain = if step.is_v6() { step.packet[6] != 0 } else { step.packet[0] == 0x45 };
    let known = |packet: &Packet| {
        let hosts = HOSTS.map(|host| Addr::from(address(step.is_v6(), !step.from_client, host)));
        hosts.contains(&packet.dst)
    };
    plain && step.parse().is_some_and(|packet| known(&packet))
}

/// Writes into the TOS what raw and mangle shall do.
fn instruct(random: &mut Random, raw: Raw, zones: [u8; 2], flow: usize, step: &mut Step) {
    let mut dscp = 0;
    if raw == Raw::Zones {
        dscp = zones[usize::from(!step.from_client)];
        if flow % 2 == 1 && random.one_in(2) {
            dscp = random.pick(&[0, 33, 35, 36]);
        }
    }
    if random.one_in(8) {
        dscp = random.pick(&[NOTRACK, NOTRACK, 0, ZONES[random.0 as usize % ZONES.len()].0]);
    }
    let action = if random.one_in(6) { random.pick(&[MARKS[0].0, MARKS[1].0, DROP]) } else { 0 };
    step.set_tos(dscp << 2 | action);
}

/// Something below the transport, or a single byte of it, is wrong now and then.
fn disturb(random: &mut Random, step: &mut Step) {
    let v6 = step.is_v6();
    let header = if v6 { 40 } else { 20 };
    if v6 && random.one_in(10) {
        for _ in 0..1 + random.below(3) {
            extension_header(random, &mut step.packet);
        }
    }
    if !v6 && random.one_in(20) {
        ipv4_options(random, &mut step.packet);
    }
    if random.one_in(200) {
        step.set_tos(random.below(32) as u8 * 4);
    }
    let packet = &mut step.packet;
    match random.below(240) {
        0..=5 if packet.len() > header => {
            let at = header + random.below((packet.len() - header) as u64) as usize;
            packet[at] ^= 1 << random.below(8);
        }
        6 => packet[if v6 { 7 } else { 8 }] = random.below(3) as u8,
        7 => packet[if v6 { 7 } else { 8 }] = random.next() as u8,
        9 => shorten(random, packet, v6),
        10 => lengthen(random, packet, v6),
        11 => packet.extend(vec![0; random.below(30) as usize]),
        12 => packet[header - 1] = random.pick(&[2, 3, 9]), // another host
        13 if !v6 => packet[4..6].copy_from_slice(&(random.next() as u16).to_be_bytes()),
        14 if !v6 => packet[6] |= 0x40,
        15 if v6 => packet[2..4].copy_from_slice(&(random.next() as u16).to_be_bytes()),
        16 if v6 => packet[6] = random.next() as u8,
        16 => packet[9] = random.next() as u8,
        17 => {
            // A destination that no route knows, or a source that nobody has asked about.
            let at = random.pick(if v6 { &[25, 20] } else { &[18, 12] });
            packet[at] ^= random.pick(&[1, 0x40]);
        }
        _ => {}
    }
    if v6 && (packet[6] == 44 || has_fragment_header(packet)) {
        packet[6] = 59;
    }
    step.fix_header_checksum();
    if !v6 && random.one_in(200) {
        step.packet[10] ^= 1;
    }
}

fn has_fragment_header(packet: &[u8]) -> bool {
    let (mut next, mut at) = (packet[6], 40);
    while let (0 | 43 | 60 | 51, Some(header)) = (next, packet.get(at..at + 2)) {
        at += if next == 51 { usize::from(header[1]) * 4 + 8 } else { usize::from(header[1]) * 8 + 8 };
        next = header[0];
    }
    next == 44
}

/// The packet says that it is shorter than it is: the rest is padding.
fn shorten(random: &mut Random, packet: &mut [u8], v6: bool) {
    let length = packet.len() as u64 - if v6 { 40 } else { 0 };
    let length = random.below(length + 1) as u16;
    let at = if v6 { 4 } else { 2 };
    packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
}

fn lengthen(random: &mut Random, packet: &mut [u8], v6: bool) {
    let length = packet.len() as u64 - if v6 { 40 } else { 0 };
    let length = (length + random.below(4)) as u16;
    let at = if v6 { 4 } else { 2 };
    packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
}

fn ipv4_options(random: &mut Random, packet: &mut Vec<u8>) {
    if packet[0] & 0x0f != 5 {
        return;
    }
    let mut options = match random.below(8) {
        0 => vec![1, 1, 1, 0],
        1 => vec![148, 4, 0, 0],
        2 => [vec![7, 11, 4], vec![0; 8]].concat(),
        3 => [vec![7, 11, 8], vec![0; 8]].concat(),
        4 => [vec![131, 7, 4], vec![10, 2, 0, 2]].concat(),
        5 => vec![130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        6 => vec![25, random.below(12) as u8, 1, 2, 3, 4],
        _ => (0..random.below(40)).map(|_| random.pick(&[0u8, 1, 2, 3, 4, 7, 8, 11, 25, 130, 134, 148])).collect(),
    };
    options.resize(options.len().next_multiple_of(4), 0);
    packet[0] = 0x45 + (options.len() / 4) as u8;
    let total = (packet.len() + options.len()) as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.splice(20..20, options);
}

/// One more extension header before what is there.
fn extension_header(random: &mut Random, packet: &mut Vec<u8>) {
    let kind = random.pick(&[60u8, 60, 60, 51, 43, 0]);
    let next = std::mem::replace(&mut packet[6], kind);
    let mut extension = match kind {
        51 => [vec![next, 1, 0, 0], vec![0; 8]].concat(),
        43 => vec![next, 0, 4, 0, 0, 0, 0, 0],
        _ => match random.below(6) {
            0 => vec![next, 0, random.next() as u8 & random.pick(&[0xff, 0x3f, 0x07]), 4, 0, 0, 0, 0],
            1 => vec![next, 0, 5, 2, 0, 0, 1, 0],
            3 => [vec![next, 1], (0..14).map(|_| random.pick(&[0, 0, 1, 2, 5, 7, 0x31])).collect()].concat(),
            2 => [vec![next, 1, 1, 12], vec![0; 12]].concat(),
            _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
        },
    };
    if random.one_in(10) {
        extension[1] = random.below(6) as u8;
    }
    let length = (packet.len() - 40 + extension.len()) as u16;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet.splice(40..40, extension);
}
