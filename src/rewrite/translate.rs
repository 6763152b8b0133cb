//! Translating an address and a port: of a packet ([`translate`]), and of the packet that an ICMP error quotes
//! ([`translate_error`]). What Linux's `nf_nat_manip_pkt` and `nf_nat_icmp_reply_translation` do, to the bit.
//!
//! Checksums are changed by what changes (RFC 1624), so that a wrong one stays wrong; but SCTP's CRC and that of the ICMP error
//! itself are computed anew, as Linux does. A UDP checksum of 0 stays, and one that would become 0 is written as 0xffff.

use crate::packet::{L4, Packet};
use crate::wire::{self, Addr, Family, checksum, icmp, icmpv6, ipv4, ipv6, proto, sctp, tcp, udp};

/// Which end of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Source address and port.
    Source,
    /// Destination address and port.
    Destination,
}

impl End {
    /// The other one.
    pub const fn other(self) -> End {
        match self {
            End::Source => End::Destination,
            End::Destination => End::Source,
        }
    }
}

/// What an end becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Its address, of the packet's family.
    pub addr: Addr,
    /// Its port, in host order; of ICMP queries the identifier (at either end), of enhanced GRE's destination the call id;
    /// without meaning for other protocols.
    pub port: u16,
}

/// A header that [`manipulate`] works on.
#[derive(Clone, Copy)]
struct Place {
    family: Family,
    proto: u8,
    /// Where the transport header starts; `None` when there is none to change.
    l4_at: Option<usize>,
    /// The transport checksum is not there yet: whoever writes it reads the addresses of then.
    unfinished: bool,
}

/// The difference that an edit makes to a one's-complement sum.
#[derive(Clone, Copy, Default)]
struct Delta(u64);

impl Delta {
    fn of_words(mut self, old: u16, new: u16) -> Delta {
        self.0 += u64::from(!old) + u64::from(new);
        self
    }

    fn of_addresses(self, family: Family, old: Addr, new: Addr) -> Delta {
        let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
        let of_v6 = |addr: Addr| halves(addr.words().0) + halves(addr.words().1);
        Delta(match family {
            // Modulo 0xffff a number and the sum of its halves are the same, and the complement is what is left to all ones.
            Family::V4 => self.0 + u64::from(!old.v4_bits()) + u64::from(new.v4_bits()),
            Family::V6 => self.0 + (4 * 0xffff_ffff - of_v6(old)) + of_v6(new),
        })
    }

    /// The checksum field after the edit.
    fn apply(self, check: u16) -> u16 {
        !checksum::fold(u64::from(!check) + self.0)
    }

    fn write(self, bytes: &mut [u8], at: usize) {
        let check = self.apply(wire::get_u16(bytes, at));
        wire::put_u16(bytes, at, check);
    }
}

/// Gives one end of the packet another address and port, in the frame and in `packet`. `false`: it cannot be done, and the
/// packet is to be dropped.
#[inline]
#[must_use]
pub fn translate(frame: &mut [u8], packet: &mut Packet, end: End, to: Translation) -> bool {
    let l3_at = usize::from(packet.l3_at);
    let place = Place {
        family: packet.family,
        proto: packet.proto,
        l4_at: Some(usize::from(packet.l4_at) - l3_at),
        unfinished: packet.l4 == L4::PartialChecksum,
    };
    if !manipulate(&mut frame[l3_at..l3_at + usize::from(packet.l3_len)], place, end, to) {
        return false;
    }
    let is_icmp = packet.is_icmp();
    let (addr, port) = match end {
        End::Source => (&mut packet.src, &mut packet.sport),
        End::Destination => (&mut packet.dst, &mut packet.dport),
    };
    *addr = to.addr;
    match (packet.proto, end) {
        (proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP, _) => *port = to.port,
        _ if is_icmp && is_query(packet.family, packet.icmp_type()) => packet.sport = to.port,
        _ => {}
    }
    true
}

/// Gives a TCP or UDP packet over IPv4 without options both ends at once: what [`translate`] does twice, in one pass, for the
/// packets that there are most of. Addresses and ports are as in `packet`, in host order.
#[inline]
pub fn translate_both_v4(frame: &mut [u8], packet: &mut Packet, [src, dst]: [u32; 2], [sport, dport]: [u16; 2]) {
    let delta = Delta::default().of_addresses(Family::V4, packet.src, Addr::from_v4(src)).of_addresses(
        Family::V4,
        packet.dst,
        Addr::from_v4(dst),
    );
    let Some(ip) = frame[usize::from(packet.l3_at)..].first_chunk_mut::<{ ipv4::HEADER_LEN + 8 }>() else { return };
    delta.write(ip, ipv4::CHECKSUM_AT);
    wire::put_u32(ip, ipv4::SRC_AT, src);
    wire::put_u32(ip, ipv4::DST_AT, dst);
    let ports_at = ipv4::HEADER_LEN;
    wire::put_u16(ip, ports_at, sport);
    wire::put_u16(ip, ports_at + 2, dport);
    let delta = delta.of_words(packet.sport, sport).of_words(packet.dport, dport);
    if packet.l4 != L4::PartialChecksum {
        let udp = packet.proto == proto::UDP;
        let at = usize::from(packet.l4_at) + if udp { udp::CHECKSUM_AT } else { tcp::CHECKSUM_AT };
        let check = wire::get_u16(frame, at);
        if !udp || check != 0 {
            let check = delta.apply(check);
            wire::put_u16(frame, at, if udp && check == 0 { 0xffff } else { check });
        }
    }
    (packet.src, packet.dst) = (Addr::from_v4(src), Addr::from_v4(dst));
    (packet.sport, packet.dport) = (sport, dport);
}

/// Translates an ICMP error at one hook: the quoted packet's end opposite to `end` becomes `inner`, the error's own `end`
/// becomes `outer`. `false`: it cannot be done, and the packet is to be dropped.
#[must_use]
pub fn translate_error(frame: &mut [u8], packet: &mut Packet, end: End, inner: Translation, outer: Addr) -> bool {
    let message = usize::from(packet.l4_at)..usize::from(packet.l4_at) + usize::from(packet.l4_len);
    let Some(quoted) = frame[message.clone()].get_mut(icmp::HEADER_LEN..) else { return false };
    let Some(place) = place_of_quoted(quoted, packet.family) else { return false };
    if !manipulate(quoted, place, end.other(), inner) {
        return false;
    }
    let bytes = &mut frame[message];
    wire::put_u16(bytes, icmp::CHECKSUM_AT, 0);
    let covered = match packet.family {
        Family::V4 => 0,
        Family::V6 => {
            let length = u32::from(packet.l4_len);
            checksum::pseudo_header(packet.family, packet.src, packet.dst, proto::ICMPV6, length)
        }
    };
    let check = checksum::finish(checksum::sum(covered, bytes));
    wire::put_u16(bytes, icmp::CHECKSUM_AT, check);
    packet.l4 = L4::Good;
    translate(frame, packet, end, Translation { addr: outer, port: 0 })
}

/// Where the headers of a quoted packet are; `None` when it is cut short before its transport header.
fn place_of_quoted(ip: &[u8], family: Family) -> Option<Place> {
    let (proto, l4_at) = match family {
        Family::V4 if ip.len() < ipv4::HEADER_LEN => return None,
        Family::V4 => (ipv4::protocol(ip), Some(ipv4::header_len(ip))),
        Family::V6 if ip.len() < ipv6::HEADER_LEN => return None,
        Family::V6 => match ipv6::skip_extension_headers(ip) {
            Some((proto, at)) => (proto, Some(at)),
            None => (proto::NO_NEXT, None),
        },
    };
    Some(Place { family, proto, l4_at, unfinished: false })
}

/// Changes one end of the IP packet in `ip` (`nf_nat_ipv4_manip_pkt`, `nf_nat_ipv6_manip_pkt`). Headers may be cut short at
/// the slice's end.
#[inline]
fn manipulate(ip: &mut [u8], place: Place, end: End, to: Translation) -> bool {
    let family = place.family;
    let at = match (family, end) {
        (Family::V4, End::Source) => ipv4::SRC_AT,
        (Family::V4, End::Destination) => ipv4::DST_AT,
        (Family::V6, End::Source) => ipv6::SRC_AT,
        (Family::V6, End::Destination) => ipv6::DST_AT,
    };
    let old = match family {
        Family::V4 => Addr::read_v4(ip, at),
        Family::V6 => Addr::read_v6(ip, at),
    };
    let delta = Delta::default().of_addresses(family, old, to.addr);
    if let Some(l4_at) = place.l4_at {
        // Beyond the packet's end there is none; those that are not changed do not miss it.
        let l4 = ip.get_mut(l4_at..).unwrap_or_default();
        if !manipulate_transport(l4, place, end, to.port, delta) {
            return false;
        }
    }
    if family == Family::V4 {
        delta.write(ip, ipv4::CHECKSUM_AT);
    }
    to.addr.write(family, ip, at);
    true
}

/// `l4proto_manip_pkt`. `delta` is what the change of the address makes of sums over it.
#[inline]
fn manipulate_transport(l4: &mut [u8], place: Place, end: End, port: u16, delta: Delta) -> bool {
    let at = match end {
        End::Source => 0,
        End::Destination => 2,
    };
    match (place.proto, place.family) {
        (proto::TCP, _) => {
            if l4.len() < 8 {
                return false;
            }
            let delta = delta.of_words(wire::get_u16(l4, at), port);
            wire::put_u16(l4, at, port);
            // In an ICMP error the checksum may be cut off.
            if l4.len() >= tcp::HEADER_LEN && !place.unfinished {
                delta.write(l4, tcp::CHECKSUM_AT);
            }
            true
        }
        (proto::UDP | proto::UDPLITE, _) => {
            if l4.len() < udp::HEADER_LEN {
                return false;
            }
            let delta = delta.of_words(wire::get_u16(l4, at), port);
            wire::put_u16(l4, at, port);
            let check = wire::get_u16(l4, udp::CHECKSUM_AT);
            if !place.unfinished && (check != 0 || place.proto == proto::UDPLITE) {
                let check = match delta.apply(check) {
                    0 => 0xffff,
                    check => check,
                };
                wire::put_u16(l4, udp::CHECKSUM_AT, check);
            }
            true
        }
        (proto::SCTP, _) => {
            if l4.len() < 8 {
                return false;
            }
            wire::put_u16(l4, at, port);
            if l4.len() >= sctp::HEADER_LEN {
                sctp::set_checksum(l4);
            }
            true
        }
        (proto::ICMP, _) => manipulate_icmp(l4, port),
        (proto::ICMPV6, _) => manipulate_icmpv6(l4, port, place, delta),
        (proto::GRE, _) => manipulate_gre(l4, end, port),
        _ => true,
    }
}

fn is_query(family: Family, kind: u8) -> bool {
    match family {
        Family::V4 => matches!(kind, 0 | 8 | 13..=18),
        Family::V6 => matches!(kind, icmpv6::ECHO_REQUEST | icmpv6::ECHO_REPLY),
    }
}

fn manipulate_icmp(l4: &mut [u8], id: u16) -> bool {
    if l4.len() < icmp::HEADER_LEN {
        return false;
    }
    if is_query(Family::V4, l4[0]) {
        Delta::default().of_words(wire::get_u16(l4, icmp::ID_AT), id).write(l4, icmp::CHECKSUM_AT);
        wire::put_u16(l4, icmp::ID_AT, id);
    }
    true
}

fn manipulate_icmpv6(l4: &mut [u8], id: u16, place: Place, delta: Delta) -> bool {
    if l4.len() < icmpv6::HEADER_LEN {
        return false;
    }
    let mut delta = delta;
    if is_query(Family::V6, l4[0]) {
        delta = delta.of_words(wire::get_u16(l4, icmpv6::ID_AT), id);
        wire::put_u16(l4, icmpv6::ID_AT, id);
    }
    if !place.unfinished {
        delta.write(l4, icmpv6::CHECKSUM_AT);
    }
    true
}

/// Only enhanced GRE's call id is translated, and only at the destination: the packet has no other.
fn manipulate_gre(l4: &mut [u8], end: End, key: u16) -> bool {
    const CALL_ID_AT: usize = 6;
    if l4.len() < 8 {
        return false;
    }
    match (end, wire::get_u16(l4, 0) & 7) {
        (End::Source, _) | (End::Destination, 0) => true,
        (End::Destination, 1) => {
            wire::put_u16(l4, CALL_ID_AT, key);
            true
        }
        (End::Destination, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PortId;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    #[test]
    fn a_quoted_packet_without_its_transport_header_is_translated_where_there_is_nothing_to_change() {
        const DCCP: u8 = 33;
        // Destination options of 16 bytes, of which 4 are there.
        let quoted = |next: u8| {
            let mut ip = vec![0x60, 0, 0, 0, 0, 37, 60, 63];
            ip.extend([0xfd; 32]);
            ip.extend([next, 1, 1, 12]);
            ip
        };
        let to = Translation { addr: Addr::from_v6(7), port: 9 };
        for (next, done) in [(DCCP, true), (proto::TCP, false), (proto::UDP, false)] {
            let mut ip = quoted(next);
            let place = place_of_quoted(&ip, Family::V6).expect("a header");
            assert_eq!(manipulate(&mut ip, place, End::Source, to), done, "{next}");
            assert_eq!(Addr::read_v6(&ip, ipv6::SRC_AT) == to.addr, done, "{next}");
        }
    }

    fn parse(frame: &[u8], verify: bool) -> Packet {
        Packet::parse(frame, PortId::LAN, verify).expect("a good packet")
    }

    fn frame(is_tcp: bool, ends: ([u8; 4], [u8; 4], u16, u16), payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(ends.0, ends.1, 64);
        let mut frame = Vec::new();
        match is_tcp {
            true => builder.tcp(ends.2, ends.3, 1, 100).write(&mut frame, payload),
            false => builder.udp(ends.2, ends.3).write(&mut frame, payload),
        }
        .expect("writing to memory");
        frame
    }

    proptest! {
        /// Both ends at once, one after the other, and by making the packet anew: three times the same bytes. A wrong checksum
        /// stays wrong, and none stays none.
        #[test]
        fn a_translated_packet_is_the_one_that_would_have_been_sent(
            is_tcp: bool,
            before: ([u8; 4], [u8; 4], u16, u16),
            after: ([u8; 4], [u8; 4], u16, u16),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
            spoil in 0u8..3,
        ) {
            let mut one = frame(is_tcp, before, &payload);
            let at = 34 + if is_tcp { tcp::CHECKSUM_AT } else { udp::CHECKSUM_AT };
            match spoil {
                1 => wire::put_u16(&mut one, at, 0x1234),
                2 if !is_tcp => wire::put_u16(&mut one, at, 0),
                _ => {}
            }
            let (mut both, expected) = (one.clone(), frame(is_tcp, after, &payload));
            let mut packet = parse(&one, false);
            packet.l4 = L4::Good;
            let mut same = packet;
            let [src, dst] = [after.0, after.1].map(u32::from_be_bytes);
            for (end, addr, port) in [(End::Destination, dst, after.3), (End::Source, src, after.2)] {
                let done = translate(&mut one, &mut packet, end, Translation { addr: Addr::from_v4(addr), port });
                prop_assert!(done);
            }
            translate_both_v4(&mut both, &mut same, [src, dst], [after.2, after.3]);
            prop_assert_eq!(&one, &both);
            prop_assert_eq!((packet.src, packet.dport), (same.src, same.dport));
            if spoil == 0 {
                prop_assert_eq!(&one, &expected);
                prop_assert_eq!(parse(&one, true).l4, L4::Good);
            } else if !is_tcp && spoil == 2 {
                prop_assert_eq!(wire::get_u16(&one, at), 0);
            }
        }

        /// Whatever an error quotes, nothing panics, and what is forwarded has a right checksum.
        #[test]
        fn no_quoted_packet_is_too_short(quoted in proptest::collection::vec(any::<u8>(), 0..80), source: bool) {
            let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
            message.extend(&quoted);
            let check = checksum::finish(checksum::sum(0, &message));
            wire::put_u16(&mut message, 2, check);
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            builder.write(&mut frame, etherparse::IpNumber::ICMP, &message).expect("writing to memory");
            let mut packet = parse(&frame, true);
            let end = if source { End::Source } else { End::Destination };
            let inner = Translation { addr: Addr::from_v4(7), port: 9 };
            if translate_error(&mut frame, &mut packet, end, inner, Addr::from_v4(8)) {
                prop_assert_eq!(parse(&frame, true).l4, L4::Good);
            }
        }
    }
}
