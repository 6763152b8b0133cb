//! Frames for tests, built by hand so that every field can be wrong. Depends on nothing but the standard library, so
//! that tests outside the crate can include the file.
#![allow(unreachable_pub, dead_code, missing_docs)]

use std::net::IpAddr;

/// Where a frame comes from and goes to, on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
}

/// A link without meaning.
pub const ANY_HOP: Hop = Hop { dst_mac: [2, 0, 0, 0, 0, 1], src_mac: [2, 0, 0, 0, 0, 2] };

/// TCP flags by their initials, as packetdrill writes them: `S`, `SA`, `FA`, `R`, `.` (ACK).
pub fn flags(text: &str) -> u8 {
    text.chars().fold(0, |flags, initial| {
        flags
            | match initial {
                'F' => 0x01,
                'S' => 0x02,
                'R' => 0x04,
                'P' => 0x08,
                'A' | '.' => 0x10,
                'U' => 0x20,
                'E' => 0x40,
                'C' => 0x80,
                other => panic!("no TCP flag {other:?}"),
            }
    })
}

/// The one's-complement sum, folded.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u64;
    for part in parts {
        assert!(part.len() % 2 == 0 || core::ptr::eq(*part, *parts.last().expect("a part")), "odd part inside");
        for pair in part.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// A segment to be; see [`Segment::bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: usize,
}

impl Segment {
    /// The TCP header, options padded with NOP in front, and zeroes as payload; checksum 0.
    pub fn bytes(&self) -> Vec<u8> {
        let mut options = vec![1; self.options.len().wrapping_neg() % 4];
        options.extend(&self.options);
        let mut tcp = Vec::new();
        tcp.extend(self.sport.to_be_bytes());
        tcp.extend(self.dport.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.push(((20 + options.len()) / 4) as u8 * 16);
        tcp.push(self.flags);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        tcp.resize(tcp.len() + self.payload, 0);
        tcp
    }
}

/// A UDP header before `payload`; checksum 0.
pub fn udp(sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(sport.to_be_bytes());
    udp.extend(dport.to_be_bytes());
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0; 2]);
    udp.extend(payload);
    udp
}

/// An ICMP or ICMPv6 message; checksum 0.
pub fn icmp(kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut icmp = vec![kind, code, 0, 0];
    icmp.extend(rest);
    icmp.extend(payload);
    icmp
}

/// The IP packet around a transport header, its transport checksum filled in for the protocols that have one.
pub fn ip(src: IpAddr, dst: IpAddr, proto: u8, l4: &[u8]) -> Vec<u8> {
    let mut l4 = l4.to_vec();
    let checksum_at = match proto {
        6 => 16,
        17 => 6,
        1 | 58 => 2,
        _ => usize::MAX,
    };
    let (source, destination): (Vec<u8>, Vec<u8>) = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (src.octets().into(), dst.octets().into()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => (src.octets().into(), dst.octets().into()),
        _ => panic!("two IP versions in one packet"),
    };
    if l4.len() >= checksum_at.saturating_add(2) {
        let pseudo = [0, proto, (l4.len() >> 8) as u8, l4.len() as u8];
        let check = match proto {
            1 => !sum(&[&l4]),
            _ => !sum(&[&source, &destination, &pseudo, &l4]),
        };
        l4[checksum_at..checksum_at + 2].copy_from_slice(&check.to_be_bytes());
    }
    let mut packet = Vec::new();
    if src.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend((20 + l4.len() as u16).to_be_bytes());
        packet.extend([0, 1, 0, 0, 64, proto, 0, 0]);
        packet.extend(source);
        packet.extend(destination);
        let check = !sum(&[&packet]);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend((l4.len() as u16).to_be_bytes());
        packet.extend([proto, 64]);
        packet.extend(source);
        packet.extend(destination);
    }
    packet.extend(l4);
    packet
}

/// The Ethernet frame around an IP packet.
pub fn frame(hop: Hop, packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(hop.dst_mac);
    frame.extend(hop.src_mac);
    frame.extend(if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    frame.extend(packet);
    frame
}
