//! Random sequences of packets: mostly what two hosts would say, with every field wrong now and then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::testing::{self, Segment};
use crate::{CLIENT, CLIENT6, SERVER, SERVER6, Step};

/// A small generator of numbers (xorshift64*), so that a seed names a run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
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
}

/// One end of a TCP connection, as the generator imagines it.
struct Side {
    isn: u32,
    next: u32,
}

fn tcp_options(random: &mut Random, peer: &Side, syn: bool) -> Vec<u8> {
    let near = |random: &mut Random| peer.next.wrapping_add(random.below(4000) as u32).wrapping_sub(2000);
    match (syn, random.below(10)) {
        (true, 0..=3) => [vec![2, 4, 5, 0xb4], vec![4, 2], vec![3, 3, random.below(17) as u8]].concat(),
        (true, 4) => vec![3, 3, random.below(17) as u8],
        (true, 5) => vec![4, 2],
        (false, 0) => {
            [vec![1, 1, 5, 10], near(random).to_be_bytes().into(), near(random).to_be_bytes().into()].concat()
        }
        (false, 1) => {
            let mut two = vec![5, 18];
            for _ in 0..4 {
                two.extend(near(random).to_be_bytes());
            }
            two
        }
        (_, 6) => vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        (_, 7) => (0..random.below(40)).map(|_| random.below(12) as u8).collect(),
        _ => vec![],
    }
}

fn number_near(random: &mut Random, base: u32, window: u32) -> u32 {
    match random.below(16) {
        0 => base.wrapping_sub(1),
        1 => base.wrapping_add(1),
        2 => base.wrapping_add(window),
        3 => base.wrapping_add(window + 1),
        4 => base.wrapping_sub(window),
        5 => base.wrapping_sub(window + 1),
        6 => base.wrapping_add(random.below(70_000) as u32),
        7 => base.wrapping_sub(random.below(140_000) as u32),
        8 => random.next() as u32,
        9 => 0,
        10 => base.wrapping_sub(66_000).wrapping_sub(random.below(3) as u32).wrapping_add(1),
        _ => base,
    }
}

pub(crate) fn tcp_sequence(random: &mut Random) -> Vec<Step> {
    let (v6, ports) = (random.one_in(8), if random.one_in(4) { 2 } else { 1 });
    let mut ends = [0, 1].map(|_| {
        let isn = if random.one_in(4) { u32::MAX - random.below(5000) as u32 } else { random.next() as u32 };
        Side { isn, next: isn }
    });
    let window = random.pick(&[1u32, 100, 8192, 65535]);
    let mut steps = Vec::new();
    let script = random.pick(&[
        "cS sSA c.",
        "cS sSA c. cP. s. sP. c.",
        "cS sSA c. cFA s. sFA c.",
        "cS sSA c. sFA c. cFA s.",
        "cS sSA c. cFA sFA c. s.",
        "cS sSA c. cR",
        "cS sSA c. sR",
        "cS sRA",
        "cS cS sSA",
        "cS sS cSA sSA c. s.",
        "c. s. c.",
        "cS",
        "",
    ]);
    let mut script = script.split_whitespace().map(str::to_owned).collect::<std::collections::VecDeque<_>>();
    let extra = random.below(25);
    for _ in 0..script.len() as u64 + extra {
        // Mostly the script first, with disturbances; then anything.
        let scripted = if random.one_in(6) { None } else { script.pop_front() };
        let exact = scripted.is_some() || random.one_in(2);
        let (from_client, flags) = match scripted {
            Some(word) => (word.starts_with('c'), testing::flags(&word[1..])),
            None => {
                let flags = random.pick(&[
                    "S", "S", "SA", "SA", "F.", "F.", ".", ".", ".", "P.", "P.", "R", "R", "R.", "R.", "F", "", "SF",
                    "SR", "FPU", "S.", "U.", "SU", "SEC", "F.U", "RF", "RU",
                ]);
                (random.one_in(2), testing::flags(flags))
            }
        };
        let (me, peer) = if from_client { (0, 1) } else { (1, 0) };
        let payload = match flags & 0x16 == 0x10 {
            true => random.pick(&[0, 0, 1, 100, 1000]),
            false if random.one_in(10) => 10,
            false => 0,
        };
        let seq = match exact {
            true if flags & 2 != 0 => ends[me].isn,
            true => ends[me].next,
            false if flags & 2 != 0 && random.one_in(2) => random.next() as u32,
            false => number_near(random, ends[me].next, window),
        };
        let ack = match exact {
            true if flags & 0x10 == 0 => 0,
            true => ends[peer].next,
            false => number_near(random, ends[peer].next, window),
        };
        let syn = flags & 2 != 0;
        let segment = Segment {
            sport: 0,
            dport: 0,
            seq,
            ack,
            flags,
            window: if random.one_in(10) { random.pick(&[0u16, 1, 8192, 65535]) } else { window as u16 },
            options: tcp_options(random, &ends[peer], syn),
            payload,
        };
        let end = seq.wrapping_add(payload as u32 + u32::from(syn) + u32::from(flags & 1));
        if exact || (end.wrapping_sub(ends[me].next) as i32) > 0 && random.one_in(4) {
            ends[me].next = end;
            if syn {
                ends[me].isn = seq;
            }
        }
        steps.push(tcp_step(random, v6, ports, from_client, segment));
        if random.one_in(12) {
            let again = random.below(5);
            for _ in 0..again {
                steps.push(steps[steps.len() - 1].clone());
            }
        }
    }
    steps
}

fn tcp_step(random: &mut Random, v6: bool, ports: u64, from_client: bool, segment: Segment) -> Step {
    let port = 4000 + random.below(ports) as u16;
    let (sport, dport) = if from_client { (port, 80) } else { (80, port) };
    let mut bytes = Segment { sport, dport, ..segment }.bytes();
    if random.one_in(60) {
        bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
    }
    if random.one_in(60) && bytes.len() > 12 {
        bytes[12] = (random.below(16) as u8) << 4;
    }
    let (client, server) = if v6 { (CLIENT6, SERVER6) } else { (CLIENT, SERVER) };
    let (src, dst) = if from_client { (client, server) } else { (server, client) };
    let mut packet = testing::ip(src, dst, 6, &bytes);
    if random.one_in(60) {
        let last = packet.len() - 1;
        packet[last] ^= 1;
        if last < 20 {
            packet[last] ^= 1; // that was the IP header's own
        }
    }
    Step { from_client, packet }
}

/// A packet of any protocol, between the two hosts or, for errors, about a packet that came before.
pub(crate) fn mixed_sequence(random: &mut Random) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let v6 = random.one_in(2);
    let kinds =
        random.pick(&[&[0u64, 7][..], &[1, 7], &[2, 7], &[3], &[4, 7], &[5, 7], &[6, 7], &[0, 1, 2, 3, 4, 5, 6, 7]]);
    let (client, server) = if v6 { (CLIENT6, SERVER6) } else { (CLIENT, SERVER) };
    for _ in 0..1 + random.below(16) {
        let from_client = random.one_in(2);
        let (src, dst) = if from_client { (client, server) } else { (server, client) };
        let port = 4000 + random.below(2) as u16;
        let (sport, dport) = if from_client { (port, 80) } else { (80, port) };
        let (proto, l4) = match random.pick(kinds) {
            0 => (17, testing::udp(sport, dport, &vec![7; random.below(3) as usize])),
            1 => (if v6 { 58 } else { 1 }, query(random, v6, from_client)),
            2 => (47, gre(random)),
            3 => (if v6 { 58 } else { 1 }, query(random, v6, from_client)),
            4 => (random.pick(&[50, 2, 33, 254, 1, 58, 6, 59, 4]), vec![0x55; random.below(24) as usize]),
            5 => (136, udplite(random, sport, dport, src, dst)),
            6 => (17, testing::udp(sport, sport, &[1, 2, 3])),
            _ => {
                steps.extend(error(random, v6, from_client, &steps));
                continue;
            }
        };
        let mut packet = match random.one_in(40) {
            true => testing::ip(src, dst, proto, &l4[..random.below(l4.len() as u64 + 1) as usize]),
            false => testing::ip(src, dst, proto, &l4),
        };
        if proto != 136 {
            disturb(random, v6, &mut packet);
        }
        steps.push(Step { from_client, packet });
        if random.one_in(5) {
            steps.push(steps[steps.len() - 1].clone());
        }
    }
    steps
}

/// Sometimes a wrong byte after the IP header, or, for IPv6, an extension header before the transport.
fn disturb(random: &mut Random, v6: bool, packet: &mut Vec<u8>) {
    let header = if v6 { 40 } else { 20 };
    if random.one_in(30) && packet.len() > header {
        let at = header + random.below((packet.len() - header) as u64) as usize;
        packet[at] ^= 1 << random.below(8);
    }
    if v6 && random.one_in(10) {
        let kind = random.pick(&[60u8, 60, 51, 43]);
        let next = std::mem::replace(&mut packet[6], kind);
        let mut extension = vec![next, 0, 1, 4, 0, 0, 0, 0];
        if kind == 51 {
            extension = [vec![next, 1, 0, 0], vec![0; 8]].concat();
        }
        if kind == 43 {
            extension = vec![next, 0, 4, 0, 0, 0, 0, 0];
        }
        if random.one_in(6) {
            extension[1] = random.below(6) as u8;
        }
        let length = (packet.len() - 40 + extension.len()) as u16;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet.splice(40..40, extension);
    }
}

fn query(random: &mut Random, v6: bool, from_client: bool) -> Vec<u8> {
    let kind = match (random.below(8), v6, from_client) {
        (0, _, _) => random.next() as u8,
        (1, false, _) => random.below(21) as u8,
        (1, true, _) => 126 + random.below(30) as u8,
        (2, false, true) => random.pick(&[13, 15, 17]),
        (2, false, false) => random.pick(&[14, 16, 18]),
        (2, true, true) => 139,
        (2, true, false) => 140,
        (_, false, true) => 8,
        (_, false, false) => 0,
        (_, true, true) => 128,
        (_, true, false) => 129,
    };
    let code = if random.one_in(4) { random.below(3) as u8 } else { 0 };
    testing::icmp(kind, code, [0, random.below(2) as u8, 0, 1], &[0; 8][..random.below(9) as usize])
}

fn gre(random: &mut Random) -> Vec<u8> {
    let version = random.pick(&[0u8, 0, 1, 1, 1, 2, 5]);
    let protocol = random.pick(&[[0x88, 0x0b], [0x88, 0x0b], [0x08, 0x00]]);
    vec![0x20, version, protocol[0], protocol[1], 0, 0, 0x12, random.below(2) as u8, 0, 0, 0, 0]
}

/// With a checksum over UDP's protocol number, as Linux wants it to be.
fn udplite(random: &mut Random, sport: u16, dport: u16, src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let like_udp = testing::ip(src, dst, 17, &testing::udp(sport, dport, b"abcd"));
    let mut l4 = like_udp[like_udp.len() - 12..].to_vec();
    match random.below(8) {
        1 => l4[6..8].fill(0),                  // none
        2 => l4[5] = 1 + random.below(7) as u8, // too little
        3 => l4[5] = 13,                        // too much
        _ => {}
    }
    l4
}

/// An ICMP error about one of `steps`.
fn error(random: &mut Random, v6: bool, from_client: bool, steps: &[Step]) -> Option<Step> {
    if steps.is_empty() {
        return None;
    }
    // Mostly about a packet of the other side, which is who should be told.
    let about =
        (0..4).map(|_| random.pick(steps)).find(|step| step.from_client != from_client).unwrap_or(steps[0].clone());
    let mut inner = about.packet;
    match random.below(8) {
        0 => inner.truncate(random.below(inner.len() as u64 + 1) as usize),
        1 => inner.truncate(if v6 { 44 } else { 24 }),
        2 => {
            let at = random.below(inner.len() as u64) as usize;
            inner[at] ^= 1 << random.below(8);
        }
        3 if !v6 => inner[6..8].copy_from_slice(&[0x20 * random.below(2) as u8, random.below(2) as u8]),
        _ => {}
    }
    let kind = match (random.below(6), v6) {
        (0, false) => random.below(20) as u8,
        (0, true) => random.below(128) as u8,
        (_, false) => random.pick(&[3, 3, 4, 5, 11, 12]),
        (_, true) => random.pick(&[1, 2, 3, 4]),
    };
    let outer = |client: bool, last: u16| match (v6, client) {
        (false, true) => IpAddr::V4(Ipv4Addr::new(10, 1, 0, last as u8)),
        (false, false) => IpAddr::V4(Ipv4Addr::new(10, 2, 0, last as u8)),
        (true, true) => IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, last)),
        (true, false) => IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, last)),
    };
    let src = outer(from_client, random.pick(&[2, 9]));
    let dst = outer(!from_client, if random.one_in(6) { 3 } else { 2 });
    let message = testing::icmp(kind, random.below(5) as u8, [0, 0, 5, 0xdc], &inner);
    Some(Step { from_client, packet: testing::ip(src, dst, if v6 { 58 } else { 1 }, &message) })
}

/// One side of an SCTP association, as the generator imagines it.
pub(crate) fn sctp_sequence(random: &mut Random) -> Vec<Step> {
    let script = random.pick(&[
        &[(true, 1u8), (false, 2), (true, 10), (false, 11)][..],
        &[(true, 1), (false, 2), (true, 10), (false, 11), (true, 7), (false, 8), (true, 14)],
        &[(true, 1), (false, 2), (true, 10), (false, 11), (false, 7), (true, 8), (false, 14)],
        &[(true, 1), (true, 1), (false, 1), (false, 2), (true, 2)],
        &[(true, 4), (false, 5), (true, 0)],
        &[(true, 1), (false, 6)],
        &[],
    ]);
    let tags = [0x1111_1111u32, 0x2222_2222];
    let mut script = script.iter();
    let mut steps = Vec::new();
    for _ in 0..3 + random.below(14) {
        let scripted = if random.one_in(5) { None } else { script.next().copied() };
        let (from_client, kind) = scripted.unwrap_or_else(|| {
            (random.one_in(2), random.pick(&[0, 0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 14, 77]))
        });
        let (me, peer) = if from_client { (0, 1) } else { (1, 0) };
        let vtag = match random.below(12) {
            0 => 0,
            1 => tags[me],
            2 => random.next() as u32,
            _ if kind == 1 => 0,
            _ => tags[peer],
        };
        let mut chunks = sctp_chunk(random, kind, tags[me]);
        while random.one_in(5) {
            let more = random.pick(&[0, 3, 4, 5, 7, 9, 10, 11, 6, 1]);
            chunks.extend(sctp_chunk(random, more, tags[me]));
        }
        if random.one_in(40) {
            chunks.truncate(random.below(chunks.len() as u64 + 1) as usize);
        }
        let (sport, dport) = if from_client { (4000u16, 5000u16) } else { (5000, 4000) };
        let mut sctp = Vec::new();
        sctp.extend(sport.to_be_bytes());
        sctp.extend(dport.to_be_bytes());
        sctp.extend(vtag.to_be_bytes());
        sctp.extend([0; 4]);
        sctp.extend(chunks);
        let crc = !xrouter::wire::checksum::crc32c(!0, &sctp);
        sctp[8..12].copy_from_slice(&crc.to_le_bytes());
        if random.one_in(40) {
            sctp[9] ^= 1;
        }
        let (src, dst) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        steps.push(Step { from_client, packet: testing::ip(src, dst, 132, &sctp) });
    }
    steps
}

fn sctp_chunk(random: &mut Random, kind: u8, tag: u32) -> Vec<u8> {
    let mut value = match kind {
        1 | 2 => [tag.to_be_bytes().to_vec(), vec![0; 12]].concat(),
        0 => vec![0; 16],
        _ => vec![0; 4],
    };
    if random.one_in(4) && kind == 2 {
        value[0] ^= 1;
    }
    if random.one_in(40) {
        value.truncate(random.below(value.len() as u64) as usize);
    }
    let length = if random.one_in(60) { random.below(24) as u16 } else { 4 + value.len() as u16 };
    let mut chunk = vec![kind, u8::from(random.one_in(4)), (length >> 8) as u8, length as u8];
    chunk.extend(value);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}
