//! Packets of the scenario language: [`Spec`] is a packet as its author described it, every field free to lie;
//! [`Spec::build`] makes the frame. Nothing here uses the router's own parser or checksum code: the judge's ruler is its own.
//!
//! Life cycle: the parser makes a `Spec`, the runner fills in what depends on the port (MAC addresses), builds the frame,
//! and compares. [`Mask`] names the few bytes of an expected frame that a router may choose freely.

use std::net::IpAddr;

/// How a checksum field is filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Csum {
    /// Computed over what was built.
    #[default]
    Good,
    /// Computed, then changed.
    Bad,
    /// The bare pseudo-header sum, as a sending stack leaves it for its NIC to finish.
    Partial,
    /// Zero: none (UDP).
    None,
    /// This value.
    Value(u16),
}

/// What follows the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum L4 {
    /// TCP segment.
    Tcp(Tcp),
    /// UDP datagram.
    Udp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Length field, where it lies.
        length: Option<u16>,
        /// Bytes after the header.
        payload: Vec<u8>,
    },
    /// ICMP or ICMPv6 message: type, code, the four bytes after the checksum, and the rest.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Bytes 4 to 7.
        rest: u32,
        /// Bytes from 8 on.
        payload: Vec<u8>,
    },
    /// Any other protocol.
    Raw(Vec<u8>),
}

/// A TCP segment's fields.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Tcp {
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    /// The four reserved bits below the data offset.
    pub(crate) reserved: u8,
    /// Data offset in words, where it lies.
    pub(crate) offset: Option<u8>,
    /// Options; padded to a multiple of four with zeros.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// A packet as described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// Ethernet source; the runner fills in the usual one.
    pub(crate) eth_src: Option<[u8; 6]>,
    /// Ethernet destination; the runner fills in the usual one.
    pub(crate) eth_dst: Option<[u8; 6]>,
    /// EtherType, where it lies.
    pub(crate) ethertype: Option<u16>,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    /// IPv4 identification; `None`: any (expected packets only).
    pub(crate) id: Option<u16>,
    pub(crate) dont_fragment: bool,
    pub(crate) more_fragments: bool,
    /// The reserved flag bit of IPv4.
    pub(crate) evil: bool,
    /// Fragment offset in units of 8 bytes.
    pub(crate) offset: u16,
    /// Version field, where it lies.
    pub(crate) version: Option<u8>,
    /// IPv4 header length in words, where it lies.
    pub(crate) header_words: Option<u8>,
    /// Total length (IPv6: payload length), where it lies.
    pub(crate) length: Option<u16>,
    /// IPv4 header checksum.
    pub(crate) ip_csum: Csum,
    /// IPv4 options; padded to a multiple of four with zeros.
    pub(crate) ip_options: Vec<u8>,
    /// IPv6 flow label; `None`: any (expected packets only).
    pub(crate) flow: Option<u32>,
    /// IPv6 extension headers: their protocol number and bytes (the next header field is filled in).
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Protocol field of the IP header (the last header's, with extensions).
    pub(crate) proto: u8,
    pub(crate) csum: Csum,
    pub(crate) l4: L4,
    /// Cuts the IP packet to so many bytes, lengths and checksums having been written before.
    pub(crate) cut: Option<usize>,
    /// Cuts the IP packet to so many bytes and corrects the IP length: a truthful short packet.
    pub(crate) snip: Option<usize>,
    /// Bytes of link-layer padding behind the IP packet.
    pub(crate) pad: usize,
    /// Via this next hop (expected packets): whose MAC address the frame goes to.
    pub(crate) via: Option<IpAddr>,
}

/// Bytes of an expected frame that the router may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask {
    /// IPv4 identification, and with it the header checksum (which must still be right).
    pub(crate) id: bool,
    /// IPv6 flow label.
    pub(crate) flow: bool,
}

/// Ethernet header length.
pub(crate) const ETH: usize = 14;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

impl Spec {
    /// A packet with ordinary fields.
    pub(crate) fn new(src: IpAddr, dst: IpAddr, proto: u8, l4: L4) -> Spec {
        Spec {
            eth_src: None,
            eth_dst: None,
            ethertype: None,
            src,
            dst,
            ttl: 64,
            tos: 0,
            id: Some(1),
            dont_fragment: false,
            more_fragments: false,
            evil: false,
            offset: 0,
            version: None,
            header_words: None,
            length: None,
            ip_csum: Csum::Good,
            ip_options: Vec::new(),
            flow: Some(0),
            extensions: Vec::new(),
            proto,
            csum: Csum::Good,
            l4,
            cut: None,
            snip: None,
            pad: 0,
            via: None,
        }
    }

    /// The same packet one hop further: what a router makes of it.
    pub(crate) fn forwarded(&self) -> Spec {
        let csum = if self.csum == Csum::Partial { Csum::Good } else { self.csum };
        Spec { ttl: self.ttl.saturating_sub(1), pad: 0, eth_src: None, eth_dst: None, csum, ..self.clone() }
    }

    /// The frame, and what of it an expectation leaves free.
    pub(crate) fn build(&self) -> (Vec<u8>, Mask) {
        let mut frame = Vec::new();
        frame.extend_from_slice(&self.eth_dst.unwrap_or([0; 6]));
        frame.extend_from_slice(&self.eth_src.unwrap_or([0; 6]));
        let v4 = self.src.is_ipv4();
        let ethertype = self.ethertype.unwrap_or(if v4 { 0x0800 } else { 0x86dd });
        frame.extend_from_slice(&ethertype.to_be_bytes());
        let mut ip = self.ip_bytes();
        if let Some(length) = self.cut {
            ip.truncate(length);
        }
        frame.extend_from_slice(&ip);
        frame.extend(std::iter::repeat_n(0xee, self.pad));
        (frame, Mask { id: v4 && self.id.is_none(), flow: !v4 && self.flow.is_none() })
    }

    /// The IP packet.
    pub(crate) fn ip_bytes(&self) -> Vec<u8> {
        let l4 = self.l4_bytes();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.ipv4_bytes(src.octets(), dst.octets(), &l4),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.ipv6_bytes(src.octets(), dst.octets(), &l4),
            _ => panic!("the parser refuses mixed addresses"),
        }
    }

    fn ipv4_bytes(&self, src: [u8; 4], dst: [u8; 4], l4: &[u8]) -> Vec<u8> {
        let mut options = self.ip_options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let header_len = 20 + options.len();
        let full = self.snip.unwrap_or(header_len + l4.len()).min(header_len + l4.len());
        let mut ip = vec![0u8; header_len];
        let words = self.header_words.unwrap_or((header_len / 4) as u8);
        ip[0] = self.version.unwrap_or(4) << 4 | words & 0x0f;
        ip[1] = self.tos;
        ip[2..4].copy_from_slice(&self.length.unwrap_or(full as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&self.id.unwrap_or(0).to_be_bytes());
        let flags = u16::from(self.evil) << 15
            | u16::from(self.dont_fragment) << 14
            | u16::from(self.more_fragments) << 13
            | self.offset & 0x1fff;
        ip[6..8].copy_from_slice(&flags.to_be_bytes());
        ip[8] = self.ttl;
        ip[9] = self.proto;
        ip[12..16].copy_from_slice(&src);
        ip[16..20].copy_from_slice(&dst);
        ip[20..].copy_from_slice(&options);
        let check = match self.ip_csum {
            Csum::Good | Csum::Partial => !fold(sum(&ip)),
            Csum::Bad => !fold(sum(&ip)) ^ 0x5555,
            Csum::None => 0,
            Csum::Value(value) => value,
        };
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        ip.extend_from_slice(l4);
        ip.truncate(full);
        ip
    }

    fn ipv6_bytes(&self, src: [u8; 16], dst: [u8; 16], l4: &[u8]) -> Vec<u8> {
        let mut rest = Vec::new();
        for (index, (_, body)) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(index + 1).map_or(self.proto, |next| next.0);
            rest.push(next);
            rest.extend_from_slice(body);
        }
        rest.extend_from_slice(l4);
        if let Some(length) = self.snip {
            rest.truncate(length.saturating_sub(40));
        }
        let mut ip = vec![0u8; 40];
        let first = u32::from(self.version.unwrap_or(6)) << 28 | u32::from(self.tos) << 20 | self.flow.unwrap_or(0);
        ip[0..4].copy_from_slice(&first.to_be_bytes());
        ip[4..6].copy_from_slice(&self.length.unwrap_or(rest.len() as u16).to_be_bytes());
        ip[6] = self.extensions.first().map_or(self.proto, |first| first.0);
        ip[7] = self.ttl;
        ip[8..24].copy_from_slice(&src);
        ip[24..40].copy_from_slice(&dst);
        ip.extend_from_slice(&rest);
        ip
    }

    fn l4_bytes(&self) -> Vec<u8> {
        match &self.l4 {
            L4::Tcp(tcp) => self.with_checksum(tcp.bytes(), 16, true),
            L4::Udp { sport, dport, length, payload } => {
                let mut bytes = Vec::with_capacity(8 + payload.len());
                bytes.extend_from_slice(&sport.to_be_bytes());
                bytes.extend_from_slice(&dport.to_be_bytes());
                bytes.extend_from_slice(&length.unwrap_or((8 + payload.len()) as u16).to_be_bytes());
                bytes.extend_from_slice(&[0, 0]);
                bytes.extend_from_slice(payload);
                // A datagram's checksum covers what its own length says, where that is possible.
                let covered = length.map_or(bytes.len(), |length| usize::from(length).clamp(8, bytes.len()));
                let tail = bytes.split_off(covered);
                let mut bytes = self.with_checksum(bytes, 6, true);
                if self.csum == Csum::Good && bytes[6..8] == [0, 0] {
                    bytes[6..8].copy_from_slice(&[0xff, 0xff]);
                }
                bytes.extend_from_slice(&tail);
                bytes
            }
            L4::Icmp { kind, code, rest, payload } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend_from_slice(&rest.to_be_bytes());
                bytes.extend_from_slice(payload);
                self.with_checksum(bytes, 2, self.proto == ICMPV6)
            }
            L4::Raw(bytes) => bytes.clone(),
        }
    }

    fn with_checksum(&self, mut bytes: Vec<u8>, at: usize, pseudo: bool) -> Vec<u8> {
        let base = if pseudo { self.pseudo_sum(bytes.len()) } else { 0 };
        let good = !fold(base + sum(&bytes));
        let value = match self.csum {
            Csum::Good => good,
            Csum::Bad => good ^ 0x5555,
            Csum::Partial => fold(base),
            Csum::None => 0,
            Csum::Value(value) => value,
        };
        bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        bytes
    }

    fn pseudo_sum(&self, length: usize) -> u32 {
        let addresses = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => sum(&src.octets()) + sum(&dst.octets()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => sum(&src.octets()) + sum(&dst.octets()),
            _ => panic!("the parser refuses mixed addresses"),
        };
        addresses + u32::from(self.proto) + length as u32
    }
}

impl Tcp {
    fn bytes(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let words = self.offset.unwrap_or((5 + options.len() / 4) as u8);
        let mut bytes = Vec::with_capacity(20 + options.len() + self.payload.len());
        bytes.extend_from_slice(&self.sport.to_be_bytes());
        bytes.extend_from_slice(&self.dport.to_be_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.ack.to_be_bytes());
        bytes.push(words << 4 | self.reserved & 0x0f);
        bytes.push(self.flags);
        bytes.extend_from_slice(&self.window.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&self.urgent.to_be_bytes());
        bytes.extend_from_slice(&options);
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// Sum of big-endian 16-bit words, an odd last byte padded with zero.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether two frames are the same but for what `mask` leaves free. A masked IPv4 header's checksum must be right.
pub(crate) fn same(expected: &[u8], got: &[u8], mask: Mask) -> bool {
    if expected.len() != got.len() {
        return false;
    }
    let (mut expected, mut got_copy) = (expected.to_vec(), got.to_vec());
    if mask.id && got.len() >= ETH + 20 {
        let header_len = usize::from(got[ETH] & 0x0f) * 4;
        if got.len() < ETH + header_len || fold(sum(&got[ETH..ETH + header_len])) != 0xffff {
            return false;
        }
        for frame in [&mut expected, &mut got_copy] {
            frame[ETH + 4..ETH + 6].fill(0);
            frame[ETH + 10..ETH + 12].fill(0);
        }
    }
    if mask.flow && got.len() >= ETH + 4 {
        for frame in [&mut expected, &mut got_copy] {
            frame[ETH + 1] &= 0xf0;
            frame[ETH + 2..ETH + 4].fill(0);
        }
    }
    expected == got_copy
}

/// One line on what a frame is, for a failure's report.
pub(crate) fn describe(frame: &[u8]) -> String {
    if frame.len() < ETH + 20 {
        return format!("{} bytes", frame.len());
    }
    let ip = &frame[ETH..];
    let (src, dst, proto, ttl, at) = match ip[0] >> 4 {
        4 => {
            let address = |at: usize| IpAddr::from([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
            (address(12), address(16), ip[9], ip[8], usize::from(ip[0] & 0x0f) * 4)
        }
        6 if ip.len() >= 40 => {
            let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("16 bytes"));
            (address(8), address(24), ip[6], ip[7], 40)
        }
        _ => return format!("{} bytes, ethertype {:02x}{:02x}", frame.len(), frame[12], frame[13]),
    };
    let l4 = ip.get(at..).unwrap_or_default();
    let word = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
    let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
    let what = match proto {
        TCP if l4.len() >= 20 => {
            let flags = flag_letters(l4[13]);
            format!("tcp {} > {} {flags} seq {} ack {} win {}", word(0), word(2), long(4), long(8), word(14))
        }
        UDP if l4.len() >= 8 => format!("udp {} > {} length {}", word(0), word(2), word(4)),
        ICMP | ICMPV6 if l4.len() >= 8 => format!("icmp type {} code {} rest {:#010x}", l4[0], l4[1], long(4)),
        _ => format!("proto {proto}"),
    };
    format!("{src} > {dst} ttl {ttl} {what}, {} bytes", frame.len())
}

/// A TCP flag byte as the language writes it.
pub(crate) fn flag_letters(flags: u8) -> String {
    let letters =
        [(0x02, 'S'), (0x01, 'F'), (0x04, 'R'), (0x08, 'P'), (0x10, '.'), (0x20, 'U'), (0x40, 'E'), (0x80, 'W')];
    let text: String = letters.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| *letter).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Lines of a dump shown before it is cut short.
const DUMP_LINES: usize = 24;

/// Two frames side by side in hex, the lines that differ marked; of long stretches that do not, only the beginning.
pub(crate) fn dump(expected: &[u8], got: &[u8]) -> String {
    let part = |frame: &[u8], line: usize| frame.iter().skip(line * 16).take(16).copied().collect::<Vec<u8>>();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
    let (mut text, mut shown) = (String::new(), 0);
    for line in 0..expected.len().max(got.len()).div_ceil(16) {
        let (mine, theirs) = (part(expected, line), part(got, line));
        let at = line * 16;
        if mine != theirs && shown < DUMP_LINES {
            text.push_str(&format!("    ! {at:04x}  expected  {}\n", hex(&mine)));
            text.push_str(&format!("    ! {at:04x}  got       {}\n", hex(&theirs)));
            shown += 2;
        } else if mine == theirs && line < 6 {
            text.push_str(&format!("      {at:04x}            {}\n", hex(&mine)));
        }
    }
    text
}
