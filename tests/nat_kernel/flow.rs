//! What a sequence is made of. A [`Flow`] is two ends and a protocol as its client knows them; a [`Step`] is something that
//! one of them says, or an ICMP error about it. Which bytes that is depends on what the router has made of the packets
//! before: a reply goes to where the kernel's packet came from. [`Story`] remembers that, and writes the packets.

use std::net::IpAddr;

use xrouter::conntrack::Tuple;
use xrouter::device::PortId;
use xrouter::packet::{L4, Packet};
use xrouter::wire::checksum::crc32c;

use crate::generate::{Random, other};
use crate::place::{address, is_own, mac_text};
use crate::step::Side;
use crate::testing;

pub(crate) const UDPLITE: u8 = 136;
pub(crate) const SCTP: u8 = 132;

/// Two ends, as the client sees them. For ICMP queries `sport` is the identifier.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// The router's port that the client is at.
    pub(crate) from: PortId,
    pub(crate) proto: u8,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
}

/// One packet, or none where it is about something that did not happen.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) flow: usize,
    /// From the server; of an error: about what the server sent.
    pub(crate) back: bool,
    pub(crate) what: What,
    /// What else is random about it.
    pub(crate) seed: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A transport header and what follows it; ports and checksums are filled in.
    Says { l4: Vec<u8>, flaw: Flaw },
    /// An ICMP error about the packet of this flow and direction that came out last.
    Error { kind: u8, code: u8, from: Teller, cut: usize, flaw: Flaw },
}

/// Who sends an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Teller {
    /// Whom the packet was for.
    End,
    /// A router on the way.
    Router,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// UDP without a checksum.
    NoChecksum,
    WrongChecksum,
    /// No hops left at the router.
    NoHops,
    /// Too long for the WAN, and not to be fragmented.
    Big,
    /// IPv4 options, or an extension header.
    Options,
    /// A bit of the transport header (of an error: of the embedded packet) is wrong.
    Bit,
}

/// A flow as it came out at the far end.
#[derive(Clone, Copy, Debug)]
struct Far {
    port: PortId,
    src: IpAddr,
    dst: IpAddr,
    sport: u16,
    dport: u16,
}

/// A packet that came out, and of which port.
type Came = (PortId, Vec<u8>);

/// See the module's head.
pub(crate) struct Story<'a> {
    flows: &'a [Flow],
    far: Vec<Option<Far>>,
    /// By flow and direction, the last packet that came out.
    came: Vec<[Option<Came>; 2]>,
}

impl<'a> Story<'a> {
    pub(crate) fn new(flows: &'a [Flow]) -> Story<'a> {
        Story { flows, far: vec![None; flows.len()], came: vec![[None, None]; flows.len()] }
    }

    /// The port that a step's packet is for and the packet, from its IP header on.
    pub(crate) fn packet(&self, step: &Step) -> Option<(PortId, Vec<u8>)> {
        let random = &mut Random::new(step.seed);
        let sent = match &step.what {
            What::Says { l4, flaw } => Some(self.says(random, step, l4, *flaw)),
            What::Error { kind, code, from, cut, flaw } => {
                let (port, about) = self.came[step.flow][usize::from(step.back)].as_ref()?;
                error(random, *port, about, [*kind, *code], *from, *cut, *flaw)
            }
        };
        // Nobody else has the router's own addresses.
        let sent = sent.filter(|(_, packet)| tuple_of(packet).is_none_or(|side| !is_own(side.src)));
        // On a ring such a packet looks like one whose checksum a NIC was to finish.
        sent.filter(|(_, packet)| parse(packet).is_none_or(|packet| packet.l4 != L4::PartialChecksum))
    }

    fn says(&self, random: &mut Random, step: &Step, l4: &[u8], flaw: Flaw) -> (PortId, Vec<u8>) {
        let flow = &self.flows[step.flow];
        let there = Far { port: flow.from, src: flow.src, dst: flow.dst, sport: flow.sport, dport: flow.dport };
        let far = self.far[step.flow].unwrap_or(Far { port: PortId(1 - flow.from.0), ..there });
        let (port, src, dst, sport, dport) = match step.back {
            false => (there.port, there.src, there.dst, there.sport, there.dport),
            // An ICMP query's identifier is the same both ways.
            true if is_icmp(flow.proto) => (far.port, far.dst, far.src, far.sport, far.dport),
            true => (far.port, far.dst, far.src, far.dport, far.sport),
        };
        let mut l4 = l4.to_vec();
        write_ports(flow.proto, sport, dport, &mut l4);
        // The WAN's own link carries none that are too long for it.
        if flaw == Flaw::Big && port == PortId::LAN {
            l4.resize(1390 + random.below(70) as usize, 0);
            if flow.proto == 17 {
                let length = l4.len() as u16;
                l4[4..6].copy_from_slice(&length.to_be_bytes());
            }
        }
        if flow.proto == UDPLITE {
            l4.truncate(8);
            l4 = other::udplite_with_checksum(random, src, dst, l4);
        }
        let mut packet = testing::ip(src, dst, flow.proto, &l4);
        let v6 = src.is_ipv6();
        match (flaw, v6) {
            // Quotes of UDP-Lite are looked for behind plain headers.
            (Flaw::Options, _) if flow.proto == UDPLITE => {}
            (Flaw::Options, false) => options(random, &mut packet),
            (Flaw::Options, true) => extension_header(random, &mut packet),
            _ => {}
        }
        let at = if v6 { 40 } else { 20 };
        match (flaw, flow.proto) {
            (Flaw::NoChecksum, 17) => packet[at + 6..at + 8].fill(0),
            (Flaw::WrongChecksum, 6) if packet.len() >= at + 18 => packet[at + 17] ^= 1 << random.below(8),
            (Flaw::WrongChecksum, 17 | SCTP) if packet.len() >= at + 12 => packet[at + 7] ^= 1 << random.below(8),
            (Flaw::WrongChecksum, 1 | 58) if packet.len() >= at + 4 => packet[at + 3] ^= 1 << random.below(8),
            (Flaw::NoHops, _) => packet[if v6 { 7 } else { 8 }] = 1,
            (Flaw::Big, _) if !v6 => packet[6] |= 0x40,
            (Flaw::Bit, _) if packet.len() > at => {
                let byte = at + random.below((packet.len() - at).min(24) as u64) as usize;
                packet[byte] ^= 1 << random.below(8);
            }
            _ => {}
        }
        fix_header_checksum(&mut packet);
        (port, packet)
    }

    /// What became of a step's packet: it came out of `port`.
    pub(crate) fn came_out(&mut self, step: &Step, port: PortId, packet: &[u8]) {
        if !matches!(step.what, What::Says { .. }) {
            return;
        }
        let flow = &self.flows[step.flow];
        let Some(seen) = tuple_of(packet) else { return };
        if packet_proto(packet) != Some(flow.proto) {
            return; // the router's own answer
        }
        self.came[step.flow][usize::from(step.back)] = Some((port, packet.to_vec()));
        if !step.back {
            let (src, dst) = (seen.src, seen.dst);
            self.far[step.flow] = Some(Far { port, src, dst, sport: seen.sport, dport: seen.dport });
        }
    }
}

fn is_icmp(proto: u8) -> bool {
    matches!(proto, 1 | 58)
}

fn write_ports(proto: u8, sport: u16, dport: u16, l4: &mut [u8]) {
    match proto {
        1 | 58 if l4.len() >= 6 => l4[4..6].copy_from_slice(&sport.to_be_bytes()),
        6 | 17 | UDPLITE if l4.len() >= 4 => {
            l4[..2].copy_from_slice(&sport.to_be_bytes());
            l4[2..4].copy_from_slice(&dport.to_be_bytes());
        }
        SCTP if l4.len() >= 12 => {
            let right = sctp_checksum(l4) == l4[8..12];
            l4[..2].copy_from_slice(&sport.to_be_bytes());
            l4[2..4].copy_from_slice(&dport.to_be_bytes());
            if right {
                let check = sctp_checksum(l4);
                l4[8..12].copy_from_slice(&check);
            }
        }
        _ => {}
    }
}

fn sctp_checksum(l4: &[u8]) -> [u8; 4] {
    let mut blank = l4.to_vec();
    blank[8..12].fill(0);
    (!crc32c(!0, &blank)).to_le_bytes()
}

/// Options that nobody objects to: none, a router alert, a route that is recorded, with room left or without.
fn options(random: &mut Random, packet: &mut Vec<u8>) {
    let options: [&[u8]; 4] =
        [&[1, 1, 1, 0], &[148, 4, 0, 0], &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[7, 7, 8, 10, 9, 9, 9, 0]];
    let options = random.pick(&options);
    packet[0] += (options.len() / 4) as u8;
    let total = (packet.len() + options.len()) as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.splice(20..20, options.iter().copied());
}

/// An extension header that nobody objects to: padding, authentication, a route that is at its end.
fn extension_header(random: &mut Random, packet: &mut Vec<u8>) {
    let (kind, rest): (u8, &[u8]) = random.pick(&[
        (60, &[0, 1, 4, 0, 0, 0, 0][..]),
        (60, &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]),
        (0, &[0, 1, 4, 0, 0, 0, 0][..]),
        (43, &[0, 4, 0, 0, 0, 0, 0][..]),
        (51, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]),
    ]);
    let next = std::mem::replace(&mut packet[6], kind);
    let length = (packet.len() - 40 + 1 + rest.len()) as u16;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet.splice(40..40, [&[next], rest].concat());
}

fn fix_header_checksum(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let length = usize::from(packet[0] & 0x0f) * 4;
        let check = !testing::sum(&[&packet[..length]]);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    }
}

/// An ICMP error about `about`, which came out of the router's `port`.
fn error(
    random: &mut Random,
    port: PortId,
    about: &[u8],
    [kind, code]: [u8; 2],
    from: Teller,
    cut: usize,
    flaw: Flaw,
) -> Option<(PortId, Vec<u8>)> {
    let seen = tuple_of(about)?;
    let v6 = seen.src.is_ipv6();
    let mut inner = about.to_vec();
    inner.truncate(cut.min(if v6 { 1200 } else { 548 }));
    if flaw == Flaw::Bit {
        let byte = random.below(inner.len() as u64) as usize;
        inner[byte] ^= 1 << random.below(8);
    }
    let net = if port == PortId::LAN { 1 } else { 2 };
    let src = match from {
        Teller::End => seen.dst,
        Teller::Router => address(v6, net, 9),
    };
    let mut l4 = testing::icmp(kind, code, [0, 0, 5, 0], &inner);
    if kind == 137 && v6 {
        // A Redirect has two addresses before its options, of which one is the packet.
        l4.truncate(8);
        l4.extend([0; 32]);
        inner.resize(inner.len().next_multiple_of(8), 0);
        l4.extend([4, (inner.len() / 8 + 1) as u8, 0, 0, 0, 0, 0, 0]);
        l4.extend(inner);
    }
    let proto = if v6 { 58 } else { 1 };
    let mut packet = testing::ip(src, seen.src, proto, &l4);
    let at = if v6 { 40 } else { 20 };
    match flaw {
        Flaw::WrongChecksum => packet[at + 3] ^= 1,
        Flaw::NoHops => packet[if v6 { 7 } else { 8 }] = 1,
        _ => {}
    }
    if v6 && kind == 137 {
        packet[7] = 255;
    }
    fix_header_checksum(&mut packet);
    Some((port, packet))
}

fn parse(packet: &[u8]) -> Option<Packet> {
    Packet::parse(&testing::frame(testing::ANY_HOP, packet), PortId::LAN, true).ok()
}

pub(crate) fn packet_proto(packet: &[u8]) -> Option<u8> {
    parse(packet).map(|packet| packet.proto)
}

/// The tuple that conntrack has for a packet.
pub(crate) fn tuple_of(packet: &[u8]) -> Option<Side> {
    let parsed = parse(packet)?;
    let tuple = Tuple::of(&parsed);
    let ip = xrouter::wire::Addr::to_ip;
    Some(Side { src: ip(tuple.src), dst: ip(tuple.dst), sport: tuple.sport, dport: tuple.dport, zone: 0 })
}

/// A step for a person.
pub(crate) fn describe(flows: &[Flow], step: &Step) -> String {
    let flow = &flows[step.flow];
    let Flow { proto, src, dst, sport, dport, .. } = flow;
    let arrow = if step.back { "<" } else { ">" };
    let what = match &step.what {
        What::Says { l4, flaw } => {
            let flags = match (proto, l4.get(13)) {
                (6, Some(flags)) => "FSRPAUEC"
                    .chars()
                    .enumerate()
                    .filter(|(bit, _)| flags >> bit & 1 == 1)
                    .map(|(_, name)| name)
                    .collect(),
                _ => format!("{} bytes", l4.len()),
            };
            format!("{flags} {flaw:?}")
        }
        What::Error { kind, code, from, cut, flaw } => {
            format!("ICMP {kind}/{code} from {from:?} about it, {cut} bytes, {flaw:?}")
        }
    };
    let from = crate::place::PORTS[flow.from.index()];
    format!("flow {} ({from}) proto {proto} {src}:{sport} {arrow} {dst}:{dport} {what}", step.flow)
}

/// A frame for a person.
pub(crate) fn describe_frame(frame: &[u8]) -> String {
    let hex: String = frame.get(14..).unwrap_or_default().iter().take(140).map(|byte| format!("{byte:02x}")).collect();
    let to = frame.first_chunk::<6>().map(|mac| mac_text(*mac)).unwrap_or_default();
    match frame.get(14..).and_then(tuple_of) {
        Some(Side { src, dst, sport, dport, .. }) => {
            let proto = packet_proto(&frame[14..]).unwrap_or(0);
            format!("to {to}: proto {proto} {src}:{sport} > {dst}:{dport} {hex}")
        }
        None => format!("to {to}: {hex}"),
    }
}
