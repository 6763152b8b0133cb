//! A packet parsed once: [`Packet`] holds what every later step needs, copied out of the header, so that the header's
//! cache line is touched again only to be rewritten (headers 2048 or 4096 bytes apart fight for the same L1 sets).
//!
//! [`Packet::parse`] checks every length and the IPv4 header checksum as Linux does on receipt (`ip_rcv_core`,
//! `ip6_rcv_core`), in its order. What it accepts may still have a transport header that is short or lying: then
//! [`Packet::l4`] says so, conntrack calls it INVALID, and a rule that has to read it drops the packet.

use crate::device::PortId;
use crate::verdict::DropReason;
use crate::wire::{self, Addr, Family, checksum, ethernet, icmp, icmpv6, ipv4, ipv6, proto, tcp, udp};

/// What is known of the transport header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum L4 {
    /// Long enough for its protocol's fixed part, its own length fields within the packet, checksum right (or none, or
    /// not checked). Also every protocol that has no header known here.
    #[default]
    Good,
    /// Cut short, or lying about a length.
    Malformed,
    /// Checksum wrong.
    BadChecksum,
    /// Checksum is the bare pseudo-header sum that a sender's stack left for a NIC to finish (veth, virtio). The router
    /// finishes it before sending; otherwise as `Good`.
    PartialChecksum,
}

/// Everything the path wants to know about one packet. Offsets are from the start of the frame, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Sequence number (TCP), else 0.
    pub seq: u32,
    /// Acknowledgement number (TCP), else 0.
    pub ack: u32,
    /// Source port, or ICMP identifier. 0 where the protocol has none, or the header is too short for it.
    pub sport: u16,
    /// Destination port, or ICMP type in the high and code in the low byte.
    pub dport: u16,
    /// Window, unscaled (TCP), else 0.
    pub window: u16,
    /// Where the IP header starts.
    pub l3_at: u16,
    /// Where the transport header starts.
    pub l4_at: u16,
    /// Length of the whole IP packet: IPv4 total length, IPv6 40 + payload length. What `-m length` sees.
    pub l3_len: u16,
    /// Bytes from the transport header to the packet's end.
    pub l4_len: u16,
    /// TCP header length in bytes (data offset times 4), else 0.
    pub tcp_header_len: u8,
    /// TCP flags, CWR highest, else 0.
    pub tcp_flags: u8,
    /// Transport protocol: for IPv6, the last header of the chain.
    pub proto: u8,
    /// TTL or hop limit, as received.
    pub ttl: u8,
    /// TOS or traffic class, whole byte.
    pub tos: u8,
    /// IPv4 or IPv6.
    pub family: Family,
    /// The port it arrived on.
    pub port: PortId,
    /// The transport header's state.
    pub l4: L4,
    /// IPv4: Don't Fragment is set. Always true for IPv6.
    pub dont_fragment: bool,
    /// Whether the IPv4 header has options, or the IPv6 header extension headers.
    pub has_options: bool,
}

/// What the header walk found out before the transport header is looked at.
#[derive(Clone, Copy)]
struct L3 {
    src: Addr,
    dst: Addr,
    family: Family,
    proto: u8,
}

/// What the transport header says; see the fields of [`Packet`].
#[derive(Clone, Copy, Default)]
struct Transport {
    seq: u32,
    ack: u32,
    sport: u16,
    dport: u16,
    window: u16,
    tcp_header_len: u8,
    tcp_flags: u8,
    state: L4,
}

impl Packet {
    /// No packet: what a place for one holds before it is used.
    pub const BLANK: Packet = Packet {
        src: Addr::ZERO,
        dst: Addr::ZERO,
        seq: 0,
        ack: 0,
        sport: 0,
        dport: 0,
        window: 0,
        l3_at: 0,
        l4_at: 0,
        l3_len: 0,
        l4_len: 0,
        tcp_header_len: 0,
        tcp_flags: 0,
        proto: 0,
        ttl: 0,
        tos: 0,
        family: Family::V4,
        port: PortId::LAN,
        l4: L4::Good,
        dont_fragment: false,
        has_options: false,
    };

    /// Reads the frame that arrived on `port`. With `verify`, transport checksums are computed and compared
    /// (`nf_conntrack_checksum=1`); without, only an unfinished one is recognised.
    ///
    /// # Errors
    /// The reason to drop it, where the IP header itself is not to be trusted.
    pub fn parse(frame: &[u8], port: PortId, verify: bool) -> Result<Packet, DropReason> {
        let mut packet = Packet::BLANK;
        packet.read(frame, port, verify)?;
        Ok(packet)
    }

    /// [`Packet::parse`] into a place that is there already, as the datapath has one for each packet of a batch. (A packet
    /// that is copied while it is being put together costs more than its 64 bytes: to read sixteen bytes right after they were
    /// written in pieces takes a dozen cycles each time. Together with inlining what a known connection's packet goes through:
    /// 287 TSC ticks a packet before, 225 after, of 65,536 flows.)
    ///
    /// # Errors
    /// As [`Packet::parse`]; what is in the place then means nothing.
    #[inline(always)]
    pub fn read(&mut self, frame: &[u8], port: PortId, verify: bool) -> Result<(), DropReason> {
        if frame.len() < ethernet::HEADER_LEN {
            return Err(DropReason::FrameShort);
        }
        let at = ethernet::HEADER_LEN;
        match ethernet::ethertype(frame) {
            ethernet::IPV4 => self.read_ipv4(frame, at, port, verify),
            ethernet::IPV6 => self.read_ipv6(frame, at, port, verify),
            _ => Err(DropReason::EtherTypeUnknown),
        }
    }

    #[inline(always)]
    fn read_ipv4(&mut self, frame: &[u8], at: usize, port: PortId, verify: bool) -> Result<(), DropReason> {
        let all = &frame[at..];
        // A header of known length: its fields are read without a check each.
        let Some(ip) = all.first_chunk::<{ ipv4::HEADER_LEN }>() else {
            return Err(DropReason::IpHeaderLength);
        };
        if ipv4::version(ip) != 4 {
            return Err(DropReason::IpVersion);
        }
        let header_len = ipv4::header_len(ip);
        if header_len < ipv4::HEADER_LEN || header_len > all.len() {
            return Err(DropReason::IpHeaderLength);
        }
        let sum_is_right = match header_len == ipv4::HEADER_LEN {
            true => checksum::is_right(0, ip),
            false => checksum::is_right(0, &all[..header_len]),
        };
        if !sum_is_right {
            return Err(DropReason::IpChecksum);
        }
        let total_len = usize::from(ipv4::total_len(ip));
        if total_len < header_len || total_len > all.len() {
            return Err(DropReason::IpTotalLength);
        }
        let flags_offset = ipv4::flags_offset(ip);
        if flags_offset & (ipv4::MF | ipv4::OFFSET_MASK) != 0 {
            return Err(DropReason::IpFragment);
        }
        let (src, dst, proto) = (ipv4::src(ip), ipv4::dst(ip), ipv4::protocol(ip));
        let l4 = &all[header_len..total_len];
        let transport = Transport::read(l4, L3 { src, dst, family: Family::V4, proto }, verify);
        *self = Packet {
            src,
            dst,
            seq: transport.seq,
            ack: transport.ack,
            sport: transport.sport,
            dport: transport.dport,
            window: transport.window,
            l3_at: at as u16,
            l4_at: (at + header_len) as u16,
            l3_len: total_len as u16,
            l4_len: l4.len() as u16,
            tcp_header_len: transport.tcp_header_len,
            tcp_flags: transport.tcp_flags,
            proto,
            ttl: ipv4::ttl(ip),
            tos: ipv4::tos(ip),
            family: Family::V4,
            port,
            l4: transport.state,
            dont_fragment: flags_offset & ipv4::DF != 0,
            has_options: header_len > ipv4::HEADER_LEN,
        };
        Ok(())
    }

    fn read_ipv6(&mut self, frame: &[u8], at: usize, port: PortId, verify: bool) -> Result<(), DropReason> {
        let all = &frame[at..];
        let Some(ip) = all.first_chunk::<{ ipv6::HEADER_LEN }>() else {
            return Err(DropReason::IpHeaderLength);
        };
        if ipv6::version(ip) != 6 {
            return Err(DropReason::IpVersion);
        }
        // Length 0 before hop-by-hop options may mean that these tell it (RFC 2675); Linux takes the whole frame then, though
        // they do not (`ip6_rcv_core`).
        let l3_len = match (ipv6::payload_len(ip), ipv6::next_header(ip)) {
            (0, proto::HOP_BY_HOP) => all.len(),
            (length, _) => ipv6::HEADER_LEN + usize::from(length),
        };
        if l3_len > all.len() || l3_len > usize::from(u16::MAX) {
            return Err(DropReason::IpTotalLength);
        }
        let chain = walk_extension_headers(&all[..l3_len])?;
        let (src, dst, proto) = (ipv6::src(ip), ipv6::dst(ip), chain.proto);
        let l4_at = if chain.complete { chain.l4_at } else { l3_len };
        let l4 = &all[l4_at..l3_len];
        let transport = match chain.complete {
            true => Transport::read(l4, L3 { src, dst, family: Family::V6, proto }, verify),
            false => Transport { state: L4::Malformed, ..Transport::default() },
        };
        *self = Packet {
            src,
            dst,
            seq: transport.seq,
            ack: transport.ack,
            sport: transport.sport,
            dport: transport.dport,
            window: transport.window,
            l3_at: at as u16,
            l4_at: (at + l4_at) as u16,
            l3_len: l3_len as u16,
            l4_len: l4.len() as u16,
            tcp_header_len: transport.tcp_header_len,
            tcp_flags: transport.tcp_flags,
            proto,
            ttl: ipv6::hop_limit(ip),
            tos: ipv6::traffic_class(ip),
            family: Family::V6,
            port,
            l4: transport.state,
            dont_fragment: true,
            has_options: chain.l4_at > ipv6::HEADER_LEN,
        };
        Ok(())
    }

    /// The ICMP or ICMPv6 type (meaningful for those protocols only).
    #[inline]
    pub fn icmp_type(&self) -> u8 {
        (self.dport >> 8) as u8
    }

    /// The ICMP or ICMPv6 code (meaningful for those protocols only).
    #[inline]
    pub fn icmp_code(&self) -> u8 {
        self.dport as u8
    }

    /// Whether this is ICMP of its own IP version.
    #[inline]
    pub fn is_icmp(&self) -> bool {
        match self.family {
            Family::V4 => self.proto == proto::ICMP,
            Family::V6 => self.proto == proto::ICMPV6,
        }
    }

    /// Whether this is an ICMP error message: nothing may be answered to it (RFC 1122 section 3.2.2, RFC 4443 2.4 (e)).
    #[inline]
    pub fn is_icmp_error(&self) -> bool {
        match self.family {
            Family::V4 => self.proto == proto::ICMP && icmp::is_error(self.icmp_type()),
            Family::V6 => self.proto == proto::ICMPV6 && icmpv6::is_error(self.icmp_type()),
        }
    }

    /// Bytes of TCP payload: IP length less both headers.
    #[inline]
    pub fn tcp_payload_len(&self) -> u16 {
        self.l4_len.saturating_sub(u16::from(self.tcp_header_len))
    }

    /// The transport header and what follows, to the IP packet's end.
    #[inline]
    pub fn l4_bytes<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[usize::from(self.l4_at)..usize::from(self.l4_at) + usize::from(self.l4_len)]
    }

    /// The IP packet: header to the end its own length gives, without link-layer padding.
    #[inline]
    pub fn l3_bytes<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[usize::from(self.l3_at)..usize::from(self.l3_at) + usize::from(self.l3_len)]
    }

    /// Length of the frame without link-layer padding: what is sent on.
    #[inline]
    pub fn frame_len(&self) -> usize {
        usize::from(self.l3_at) + usize::from(self.l3_len)
    }
}

impl Transport {
    #[inline(always)]
    fn read(l4: &[u8], l3: L3, verify: bool) -> Transport {
        match (l3.proto, l3.family) {
            (proto::TCP, _) => Transport::read_tcp(l4, l3, verify),
            (proto::UDP, _) => Transport::read_udp(l4, l3, verify),
            (proto::ICMP, Family::V4) => Transport::read_icmp(l4, icmp::HEADER_LEN, l3, verify),
            (proto::ICMPV6, Family::V6) => Transport::read_icmp(l4, icmpv6::HEADER_LEN, l3, verify),
            (proto::SCTP | proto::UDPLITE, _) => Transport::read_ports(l4, L4::Good),
            _ => Transport::default(),
        }
    }

    /// The ports, if they are there; the rest of the header is as `state` says.
    fn read_ports(l4: &[u8], state: L4) -> Transport {
        match l4.first_chunk::<4>() {
            Some(ports) => Transport {
                sport: wire::get_u16(ports, 0),
                dport: wire::get_u16(ports, 2),
                state,
                ..Transport::default()
            },
            None => Transport { state: L4::Malformed, ..Transport::default() },
        }
    }

    /// A header cut short, or lying about its length, may still have its ports.
    #[cold]
    fn malformed(l4: &[u8]) -> Transport {
        Transport::read_ports(l4, L4::Malformed)
    }

    #[inline(always)]
    fn read_tcp(l4: &[u8], l3: L3, verify: bool) -> Transport {
        let Some(header) = l4.first_chunk::<{ tcp::HEADER_LEN }>() else { return Transport::malformed(l4) };
        let header_len = tcp::header_len(header);
        let state = match header_len < tcp::HEADER_LEN || header_len > l4.len() {
            true => L4::Malformed,
            false => checksum_state(l4, wire::get_u16(header, tcp::CHECKSUM_AT), l3, verify),
        };
        Transport {
            seq: tcp::seq(header),
            ack: tcp::ack(header),
            sport: wire::get_u16(header, 0),
            dport: wire::get_u16(header, 2),
            window: tcp::window(header),
            tcp_header_len: header_len as u8,
            tcp_flags: tcp::flags(header),
            state,
        }
    }

    #[inline(always)]
    fn read_udp(l4: &[u8], l3: L3, verify: bool) -> Transport {
        let Some(header) = l4.first_chunk::<{ udp::HEADER_LEN }>() else { return Transport::malformed(l4) };
        let length = usize::from(udp::length(header));
        if length < udp::HEADER_LEN || length > l4.len() {
            return Transport::malformed(l4);
        }
        let state = match udp::checksum(header) {
            0 => L4::Good,
            // Linux (nf_checksum) sums to the packet's end, whatever the datagram says of its length.
            check => checksum_state(l4, check, l3, verify),
        };
        Transport { sport: wire::get_u16(header, 0), dport: wire::get_u16(header, 2), state, ..Transport::default() }
    }

    fn read_icmp(l4: &[u8], header_len: usize, l3: L3, verify: bool) -> Transport {
        let kind = l4.first_chunk::<2>().map_or(0, |kind| u16::from_be_bytes(*kind));
        if l4.len() < header_len {
            return Transport { dport: kind, state: L4::Malformed, ..Transport::default() };
        }
        let state = match l3.family {
            Family::V4 if verify && !checksum::is_right(0, l4) => L4::BadChecksum,
            Family::V4 => L4::Good,
            Family::V6 => checksum_state(l4, wire::get_u16(l4, icmpv6::CHECKSUM_AT), l3, verify),
        };
        Transport { sport: wire::get_u16(l4, 4), dport: kind, state, ..Transport::default() }
    }
}

/// The state of a checksum that covers `covered` and a pseudo-header.
#[inline(always)]
fn checksum_state(covered: &[u8], check: u16, l3: L3, verify: bool) -> L4 {
    let pseudo = checksum::pseudo_header(l3.family, l3.src, l3.dst, l3.proto, covered.len() as u32);
    if verify && checksum::is_right(pseudo, covered) {
        return L4::Good;
    }
    // Without `verify` one complete checksum in 65,536 looks unfinished; finishing it computes the same value again.
    match check == checksum::fold(pseudo) {
        true => L4::PartialChecksum,
        false if verify => L4::BadChecksum,
        false => L4::Good,
    }
}

/// The end of an IPv6 extension header chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Offset of the last header from the start of the IPv6 header.
    pub l4_at: usize,
    /// Protocol of the last header.
    pub proto: u8,
    /// False when the packet ends inside the chain.
    pub complete: bool,
}

/// Follows the chain of `ip`, which starts at the IPv6 header and ends at its payload's end, as Linux's
/// `ipv6_skip_exthdr` does: to its end, since every header takes eight bytes of the packet at least. A fragment header ends
/// in a drop until reassembly is there.
///
/// # Errors
/// [`DropReason::IpFragment`]; [`DropReason::Ipv6HopByHop`] for hop-by-hop options that Linux does not forward.
pub fn walk_extension_headers(ip: &[u8]) -> Result<Chain, DropReason> {
    let mut at = ipv6::HEADER_LEN;
    let mut next = ipv6::next_header(ip);
    loop {
        let unit = match next {
            proto::HOP_BY_HOP | proto::ROUTING | proto::DEST_OPTIONS => 8,
            proto::AH => 4,
            proto::FRAGMENT => return Err(DropReason::IpFragment),
            proto => return Ok(Chain { l4_at: at, proto, complete: true }),
        };
        // Only directly after the IPv6 header does Linux read it (`ipv6_rcv`); further on it is one more header to skip,
        // though RFC 8200 section 4.1 does not allow it there.
        let is_read = next == proto::HOP_BY_HOP && at == ipv6::HEADER_LEN;
        let Some(header) = ip.get(at..at + 2) else {
            if is_read {
                return Err(DropReason::Ipv6HopByHop);
            }
            break;
        };
        let length = match unit {
            8 => usize::from(header[1]) * 8 + 8,
            _ => usize::from(header[1]) * 4 + 8,
        };
        if is_read {
            check_hop_by_hop(ip.get(at..at + length).ok_or(DropReason::Ipv6HopByHop)?)?;
        }
        next = header[0];
        at += length;
        if at > ip.len() {
            break;
        }
    }
    Ok(Chain { l4_at: at.min(ip.len()), proto: next, complete: false })
}

/// What Linux (`ip6_parse_tlv`) drops: options that ask to discard the packet when not understood (RFC 8200 section 4.2: the
/// two high bits are not 00), lengths that reach beyond the header, more padding than aligns anything or with something in
/// it, more than eight options, a Router Alert of another length than its own, a label (no label has a meaning here, as in
/// Linux without NetLabel's configuration), misaligned in-situ OAM. Jumbo payload (RFC 2675) is one of those it takes only
/// with length 0.
fn check_hop_by_hop(header: &[u8]) -> Result<(), DropReason> {
    const PAD1: u8 = 0;
    const PADN: u8 = 1;
    const ROUTER_ALERT: u8 = 5;
    const CALIPSO: u8 = 7;
    const IOAM: u8 = 0x31;
    const PADDING_MAX: usize = 7;
    const OPTIONS_MAX: u32 = 8;
    let mut options = &header[2..];
    let (mut padding, mut count) = (0, 0);
    while let [kind, rest @ ..] = options {
        if *kind == PAD1 {
            padding += 1;
            options = rest;
        } else {
            let length = usize::from(*rest.first().ok_or(DropReason::Ipv6HopByHop)?);
            let value = rest.get(1..1 + length).ok_or(DropReason::Ipv6HopByHop)?;
            let fine = match *kind {
                PADN => value.iter().all(|&byte| byte == 0),
                ROUTER_ALERT => length == 2,
                CALIPSO => false,
                IOAM => (header.len() - options.len()).is_multiple_of(4),
                kind => kind & 0xc0 == 0,
            };
            if *kind == PADN {
                padding += 2 + length;
            } else {
                padding = 0;
                count += 1;
            }
            if !fine || count > OPTIONS_MAX {
                return Err(DropReason::Ipv6HopByHop);
            }
            options = &rest[1 + length..];
        }
        if padding > PADDING_MAX {
            return Err(DropReason::Ipv6HopByHop);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
