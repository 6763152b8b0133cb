//! What a sequence is made of ([`Step`]), and what both sides say after each: [`Seen`] of the packet, [`Entry`] of every
//! connection. A difference is a difference between two of these values.

use std::fmt;
use std::net::IpAddr;

use xrouter::conntrack::{Settings, Template, Zone, ZoneDirection};
use xrouter::device::PortId;
use xrouter::packet::{L4, Packet};

use crate::testing;

/// One packet of a sequence: which end sends it, and its bytes from the IP header on (to the frame's end, which may be
/// beyond the packet's).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) from_client: bool,
    pub(crate) packet: Vec<u8>,
    /// Put in force before it.
    pub(crate) settings: Option<Settings>,
}

/// What the router's rules do to a packet, told by the two low bits of its TOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Pass,
    /// Set the connection's mark (mangle PREROUTING).
    Mark(u32),
    /// Drop the packet in FORWARD, before its connection is confirmed.
    Drop,
}

/// The marks of [`Action::Mark`], and the TOS bits that ask for them.
pub(crate) const MARKS: [(u8, u32); 2] = [(1, 0x17), (2, 0xdead_beef)];
/// The TOS bits of [`Action::Drop`].
pub(crate) const DROP: u8 = 3;
/// DSCP of a packet that gets `-j CT --notrack`.
pub(crate) const NOTRACK: u8 = 32;
/// DSCPs of packets that get a zone, with the CT target's option and what it means.
pub(crate) const ZONES: [(u8, &str, Zone); 6] = [
    (33, "--zone 1", Zone { id: 1, direction: ZoneDirection::Both }),
    (34, "--zone 2", Zone { id: 2, direction: ZoneDirection::Both }),
    (35, "--zone-orig 1", Zone { id: 1, direction: ZoneDirection::Original }),
    (36, "--zone-orig 2", Zone { id: 2, direction: ZoneDirection::Original }),
    (37, "--zone-reply 1", Zone { id: 1, direction: ZoneDirection::Reply }),
    (38, "--zone-reply 2", Zone { id: 2, direction: ZoneDirection::Reply }),
];

impl Step {
    pub(crate) fn new(from_client: bool, packet: Vec<u8>) -> Step {
        Step { from_client, packet, settings: None }
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.packet[0] >> 4 == 6
    }

    /// TOS or traffic class.
    pub(crate) fn tos(&self) -> u8 {
        tos(&self.packet)
    }

    pub(crate) fn set_tos(&mut self, tos: u8) {
        match self.is_v6() {
            true => {
                self.packet[0] = 0x60 | tos >> 4;
                self.packet[1] = tos << 4 | self.packet[1] & 0x0f;
            }
            false => {
                self.packet[1] = tos;
                self.fix_header_checksum();
            }
        }
    }

    pub(crate) fn fix_header_checksum(&mut self) {
        let length = usize::from(self.packet[0] & 0x0f) * 4;
        if !self.is_v6() && self.packet.len() >= length && length >= 20 {
            self.packet[10..12].fill(0);
            let check = !testing::sum(&[&self.packet[..length]]);
            self.packet[10..12].copy_from_slice(&check.to_be_bytes());
        }
    }

    /// What raw PREROUTING says to it.
    pub(crate) fn template(&self) -> Template {
        let dscp = self.tos() >> 2;
        match ZONES.iter().find(|(code, ..)| *code == dscp) {
            Some((_, _, zone)) => Template { zone: *zone, ..Template::DEFAULT },
            None if dscp == NOTRACK => Template::NOTRACK,
            None => Template::DEFAULT,
        }
    }

    pub(crate) fn action(&self) -> Action {
        let bits = self.tos() & 3;
        match MARKS.iter().find(|(code, _)| *code == bits) {
            Some((_, mark)) => Action::Mark(*mark),
            None if bits == DROP => Action::Drop,
            None => Action::Pass,
        }
    }

    /// Parsed as our side does, `None` when its IP header is refused.
    pub(crate) fn parse(&self) -> Option<Packet> {
        let frame = testing::frame(testing::ANY_HOP, &self.packet);
        Packet::parse(&frame, PortId::LAN, true).ok()
    }

    /// On a ring such a packet looks like one whose checksum a NIC was to finish; the kernel is told that it is not.
    pub(crate) fn looks_unfinished(&self) -> bool {
        self.parse().is_some_and(|packet| packet.l4 == L4::PartialChecksum)
    }
}

/// TOS or traffic class of a packet.
pub(crate) fn tos(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[1] } else { packet[0] << 4 | packet[1] >> 4 }
}

/// The bytes of the checksum of a UDP-Lite packet, where it is one.
fn udplite_checksum_at(packet: &[u8]) -> Option<usize> {
    const UDPLITE: u8 = 136;
    let frame = testing::frame(testing::ANY_HOP, packet);
    let parsed = Packet::parse(&frame, PortId::LAN, false).ok()?;
    (parsed.proto == UDPLITE && parsed.l4_len >= 8).then(|| usize::from(parsed.l4_at - parsed.l3_at) + 6)
}

/// Linux verifies UDP-Lite as if its protocol number were UDP's. To see all else compared, the kernel gets each such packet
/// with the checksum that says there what the original says here: right stays right, wrong stays wrong, none stays none.
pub(crate) fn for_kernel(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(at) = udplite_checksum_at(&packet) {
        let check = u16::from_be_bytes([packet[at], packet[at + 1]]);
        if check != 0 {
            let more = u32::from(check) + (136 - 17);
            let folded = (more & 0xffff) + (more >> 16);
            packet[at..at + 2].copy_from_slice(&(folded as u16).to_be_bytes());
        }
    }
    packet
}

/// What came of a packet: its class and its bytes as they left, traffic class and IPv4 header checksum blanked. `None`: it
/// was not forwarded.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Seen(pub(crate) Option<(&'static str, Vec<u8>)>);

impl Seen {
    pub(crate) fn forwarded(class: &'static str, packet: &[u8]) -> Seen {
        let mut packet = packet.to_vec();
        match packet[0] >> 4 {
            4 => [1, 10, 11].iter().for_each(|&at| packet[at] = 0),
            _ => {
                packet[0] = 0x60;
                packet[1] &= 0x0f;
            }
        }
        Seen(Some((class, packet)))
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("not forwarded"),
            Some((class, _)) => write!(f, "forwarded as {class}"),
        }
    }
}

/// One tuple of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) zone: u16,
}

/// A connection, as ctnetlink tells it and as our own listing does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) proto: u8,
    pub(crate) original: Side,
    pub(crate) reply: Side,
    pub(crate) status: u32,
    pub(crate) timeout: u32,
    /// TCP's or SCTP's.
    pub(crate) state: Option<u8>,
    pub(crate) mark: u32,
    /// Packets and bytes of both directions.
    pub(crate) counters: Option<[(u64, u64); 2]>,
    /// Whether it is known when it was confirmed.
    pub(crate) has_start: bool,
}

impl Entry {
    /// The same, but that a second may have gone by between two looks.
    pub(crate) fn agrees(&self, other: &Entry) -> bool {
        self.timeout.abs_diff(other.timeout) <= 1 && *self == Entry { timeout: self.timeout, ..other.clone() }
    }
}
