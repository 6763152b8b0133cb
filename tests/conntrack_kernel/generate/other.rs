//! Everything but TCP and SCTP: UDP, UDP-Lite, ICMP and ICMPv6 queries, GRE, protocols without a tracker; and ICMP errors
//! about any packet.

use std::net::IpAddr;

use super::{Random, address};
use crate::step::Step;
use crate::testing;

#[derive(Clone, Copy)]
enum Kind {
    Udp,
    UdpLite,
    Query,
    Gre,
    Plain(u8),
    Any,
}

pub(crate) struct Talk {
    kind: Kind,
    ports: u64,
}

impl Talk {
    pub(crate) fn new(random: &mut Random) -> Talk {
        let plain = random.pick(&[50, 51, 2, 33, 254, 89, 4, 41, 0, 59, 1, 58]);
        let kind = random.pick(&[
            Kind::Udp,
            Kind::Udp,
            Kind::UdpLite,
            Kind::Query,
            Kind::Query,
            Kind::Gre,
            Kind::Gre,
            Kind::Plain(plain),
            Kind::Any,
        ]);
        Talk { kind, ports: 1 + random.below(2) }
    }

    pub(crate) fn next(&mut self, random: &mut Random, v6: bool) -> (bool, u8, Vec<u8>) {
        let from_client = random.one_in(2);
        let port = 4000 + random.below(self.ports) as u16;
        let service = if random.one_in(8) { port } else { 53 };
        let (sport, dport) = if from_client { (port, service) } else { (service, port) };
        let kind = match self.kind {
            Kind::Any => random.pick(&[Kind::Udp, Kind::UdpLite, Kind::Query, Kind::Gre, Kind::Plain(50)]),
            kind => kind,
        };
        let (proto, l4) = match kind {
            Kind::Udp => (17, udp(random, sport, dport)),
            Kind::UdpLite => (136, testing::udp(sport, dport, &[])),
            Kind::Query => (if v6 { 58 } else { 1 }, query(random, v6, from_client)),
            Kind::Gre => (47, gre(random)),
            Kind::Plain(proto) => {
                let length = random.below(24);
                (proto, random.bytes(length))
            }
            Kind::Any => unreachable!("chosen above"),
        };
        (from_client, proto, l4)
    }
}

fn udp(random: &mut Random, sport: u16, dport: u16) -> Vec<u8> {
    let mut l4 = testing::udp(sport, dport, &vec![7; random.below(4) as usize]);
    if random.one_in(20) {
        l4[4..6].copy_from_slice(&(random.below(14) as u16).to_be_bytes());
    }
    if random.one_in(20) {
        // Longer than the datagram says it is.
        l4.extend([0; 4]);
    }
    l4
}

/// A whole datagram of UDP-Lite, its checksum right for its coverage, or not (RFC 3828).
pub(crate) fn udplite_with_checksum(random: &mut Random, src: IpAddr, dst: IpAddr, header: Vec<u8>) -> Vec<u8> {
    let mut l4 = header;
    let length = random.below(12);
    l4.extend(random.bytes(length));
    let covered = match random.below(6) {
        0 => 8,
        1 => 8 + random.below(length + 1) as usize,
        2 => l4.len(),
        3 => random.below(20) as usize,
        _ => 0,
    };
    l4[4..6].copy_from_slice(&(covered as u16).to_be_bytes());
    l4[6..8].fill(0);
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let part = if covered == 0 { l4.len() } else { covered.min(l4.len()) };
    let pseudo = [0, 136, (l4.len() >> 8) as u8, l4.len() as u8];
    let check = !testing::sum(&[&octets(src), &octets(dst), &pseudo, &l4[..part]]);
    let check = if check == 0 { 0xffff } else { check };
    l4[6..8].copy_from_slice(&check.to_be_bytes());
    match random.below(16) {
        0 => l4[6..8].fill(0),
        1 => l4[7] ^= 1,
        2 if part < l4.len() => l4[part] ^= 1,
        _ => {}
    }
    l4
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
    let mut message = testing::icmp(kind, code, [0, random.below(2) as u8, 0, 1], &[0; 8][..random.below(9) as usize]);
    if v6 && kind == 137 {
        redirect(random, &mut message);
    }
    message
}

/// A Redirect's two addresses and options, without a packet that could be found.
fn redirect(random: &mut Random, message: &mut Vec<u8>) {
    let length = random.below(48);
    message.extend(random.bytes(length));
    message.extend([random.pick(&[4u8, 1]), random.below(3) as u8, 0, 0, 0, 0, 0, 0]);
}

fn gre(random: &mut Random) -> Vec<u8> {
    let version = random.pick(&[0u8, 0, 1, 1, 1, 2, 5]);
    let protocol = random.pick(&[[0x88, 0x0b], [0x88, 0x0b], [0x88, 0x0b], [0x08, 0x00]]);
    let key = random.pick(&[[0x12, 0u8], [0x12, 1], [0, 0]]);
    vec![0x20, version, protocol[0], protocol[1], 0, 0, key[0], key[1], 0, 0, 0, 0]
}

/// An ICMP error about one of `steps`.
pub(super) fn error(random: &mut Random, steps: &[Step]) -> Option<Step> {
    if steps.is_empty() {
        return None;
    }
    let v6 = steps[steps.len() - 1].is_v6();
    let from_client = random.one_in(2);
    // Mostly about a packet of the other side, which is who should be told.
    let about = (0..4).map(|_| random.pick(steps)).find(|step| step.from_client != from_client);
    let about = about.unwrap_or_else(|| random.pick(steps));
    // Now and then the packet of the other IP version.
    if about.is_v6() != v6 && !random.one_in(20) {
        return None;
    }
    let mut inner = about.packet;
    inner.truncate(1200);
    match random.below(12) {
        0 => inner.truncate(random.below(inner.len() as u64 + 1) as usize),
        1 => inner.truncate(if v6 { 44 } else { 24 }),
        2 => inner.truncate(if v6 { 48 } else { 28 }),
        3 => {
            let at = random.below(inner.len() as u64) as usize;
            inner[at] ^= 1 << random.below(8);
        }
        4 if !v6 => inner[6..8].copy_from_slice(&[0x20 * random.below(2) as u8, random.below(2) as u8]),
        5 if v6 => fragment_header(random, &mut inner),
        _ => {}
    }
    let kind = match (random.below(6), v6) {
        (0, false) => random.below(20) as u8,
        (0, true) => random.below(128) as u8,
        (_, false) => random.pick(&[3, 3, 4, 5, 11, 12]),
        (_, true) => random.pick(&[1, 2, 3, 4]),
    };
    let src = address(v6, from_client, random.pick(&[2, 9]));
    let dst = address(v6, !from_client, if random.one_in(6) { 3 } else { 2 });
    let mut message = testing::icmp(kind, random.below(5) as u8, [0, 0, 5, 0xdc], &inner);
    if random.one_in(40) {
        message.truncate(random.below(message.len() as u64) as usize);
    }
    let mut step = Step::new(from_client, testing::ip(src, dst, if v6 { 58 } else { 1 }, &message));
    if random.one_in(40) {
        let last = step.packet.len() - 1;
        if last >= 40 {
            step.packet[last] ^= 1;
        }
    }
    // In the zone of what it is about, or in none.
    if random.one_in(2) {
        let tos = crate::step::tos(&inner_or(&step, &inner)) & 0xfc;
        if tos >= crate::step::NOTRACK << 2 && super::is_plain(&step) {
            step.set_tos(tos);
        }
    }
    Some(step)
}

/// The embedded packet where its first bytes are there, else the message itself.
fn inner_or(step: &Step, inner: &[u8]) -> Vec<u8> {
    if inner.len() >= 2 { inner.to_vec() } else { step.packet.clone() }
}

/// The embedded packet is a fragment, the first or another.
fn fragment_header(random: &mut Random, inner: &mut Vec<u8>) {
    if inner.len() < 40 {
        return;
    }
    let next = std::mem::replace(&mut inner[6], 44);
    let offset = random.pick(&[[0u8, 0], [0, 1], [0, 8], [1, 0]]);
    inner.splice(40..40, [next, 0, offset[0], offset[1], 0, 0, 0, 7]);
}
