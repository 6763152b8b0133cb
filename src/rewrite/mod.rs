//! Editing a packet that goes on: TTL, unfinished checksums, IPv4 options, link-layer addresses; and translation
//! of addresses and ports (`translate`).
//!
//! Every edit keeps the checksums as Linux keeps them: by delta (RFC 1624), so that a checksum that was wrong stays wrong.

mod translate;

pub use translate::{End, Translation, translate, translate_both_v4, translate_error};

use crate::packet::{L4, Packet};
use crate::wire::{self, Addr, Family, Mac, checksum, ethernet, icmpv6, ipv4, ipv6, proto, tcp, udp};

/// Takes one from the TTL or hop limit, in the frame and in `packet`. The caller has seen that it is above 1.
#[inline]
pub fn decrement_ttl(frame: &mut [u8], packet: &mut Packet) {
    debug_assert!(packet.ttl > 1, "a packet whose TTL is used up is never forwarded");
    packet.ttl -= 1;
    let ip = &mut frame[usize::from(packet.l3_at)..];
    match packet.family {
        Family::V4 => {
            // As `ip_decrease_ttl`: the TTL is a high byte, so the sum falls by 0x0100 and its complement grows by as much.
            let Some(ip) = ip.first_chunk_mut::<{ ipv4::HEADER_LEN }>() else { return };
            ip[ipv4::TTL_AT] = packet.ttl;
            let check = u32::from(wire::get_u16(ip, ipv4::CHECKSUM_AT)) + 0x0100;
            wire::put_u16(ip, ipv4::CHECKSUM_AT, (check + u32::from(check >= 0xffff)) as u16);
        }
        Family::V6 => ip[ipv6::HOP_LIMIT_AT] = packet.ttl,
    }
}

/// Computes the transport checksum that the sender's stack left for a NIC to finish ([`L4::PartialChecksum`]); leaves any
/// other packet as it is.
#[inline]
pub fn finish_checksum(frame: &mut [u8], packet: &mut Packet) {
    if packet.l4 == L4::PartialChecksum {
        write_transport_checksum(frame, packet);
        packet.l4 = L4::Good;
    }
}

/// Writes the checksum of a TCP, UDP or ICMPv6 packet from scratch.
pub fn write_transport_checksum(frame: &mut [u8], packet: &Packet) {
    let at = match packet.proto {
        proto::TCP => tcp::CHECKSUM_AT,
        proto::UDP => udp::CHECKSUM_AT,
        _ => icmpv6::CHECKSUM_AT,
    };
    let l4 = &mut frame[usize::from(packet.l4_at)..usize::from(packet.l4_at) + usize::from(packet.l4_len)];
    let covered = match packet.proto {
        proto::UDP => usize::from(udp::length(l4)).min(l4.len()),
        _ => l4.len(),
    };
    wire::put_u16(l4, at, 0);
    let pseudo = checksum::pseudo_header(packet.family, packet.src, packet.dst, packet.proto, covered as u32);
    let check = match checksum::finish(checksum::sum(pseudo, &l4[..covered])) {
        0 => 0xffff, // for UDP 0 would mean "none" (RFC 768); Linux writes it for none (`skb_checksum_help`)
        check => check,
    };
    wire::put_u16(l4, at, check);
}

/// Writes both Ethernet addresses.
#[inline]
pub fn set_link(frame: &mut [u8], destination: Mac, source: Mac) {
    ethernet::set_addresses(frame, destination, source);
}

/// What a packet's IPv4 options want of a router.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Options {
    /// Nothing: none there, or only such as are carried along (padding, router alert, security, unknown ones).
    Carry,
    /// Record Route, Timestamp, or bytes after the end of the list: [`record_in_options`] has work to do.
    Record,
    /// A source route, which Linux does not follow (`accept_source_route=0`).
    SourceRoute,
    /// Malformed; the offset of the offending byte from the start of the IPv4 header, for the parameter problem message.
    Malformed(u8),
}

const END: u8 = 0;
const NOP: u8 = 1;
const RECORD_ROUTE: u8 = 7;
const TIMESTAMP: u8 = 68;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;
const CIPSO: u8 = 134;
const ROUTER_ALERT: u8 = 148;

/// Reads the IPv4 options of `frame` as Linux's `__ip_options_compile` does.
pub fn check_options(frame: &[u8], packet: &Packet) -> Options {
    if !packet.has_options || packet.family == Family::V6 {
        return Options::Carry;
    }
    let header = &frame[usize::from(packet.l3_at)..usize::from(packet.l4_at)];
    let mut found = Options::Carry;
    let mut seen = [false; 2];
    let mut at = ipv4::HEADER_LEN;
    while at < header.len() {
        let length = match header[at] {
            END => {
                if header[at..].iter().any(|&byte| byte != END) {
                    found = Options::Record;
                }
                break;
            }
            NOP => {
                at += 1;
                continue;
            }
            _ => usize::from(*header.get(at + 1).unwrap_or(&0)),
        };
        if length < 2 || at + length > header.len() {
            return Options::Malformed(at as u8);
        }
        match header[at] {
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Options::SourceRoute,
            // No label has a meaning here, as in Linux without NetLabel's configuration.
            CIPSO => return Options::Malformed(at as u8 + if length < 8 { 1 } else { 2 }),
            ROUTER_ALERT if length < 4 => return Options::Malformed(at as u8 + 1),
            kind @ (RECORD_ROUTE | TIMESTAMP) => {
                if core::mem::replace(&mut seen[usize::from(kind == TIMESTAMP)], true) {
                    return Options::Malformed(at as u8);
                }
                if let Some(wrong) = wrong_list(kind, &header[at..at + length]) {
                    return Options::Malformed(at as u8 + wrong);
                }
                found = Options::Record;
            }
            _ => {}
        }
        at += length;
    }
    found
}

/// What is wrong with a Record Route or Timestamp option: the offset of the byte that a parameter problem points at. The
/// third byte is the next free slot, counted from 1; one beyond the option means that the list is full.
fn wrong_list(kind: u8, option: &[u8]) -> Option<u8> {
    let (shortest, first_slot) = if kind == RECORD_ROUTE { (3, 4) } else { (4, 5) };
    if option.len() < shortest {
        return Some(1);
    }
    let slot = usize::from(option[2]);
    let overlaps_end = slot <= option.len() && slot + 3 > option.len();
    (slot < first_slot || overlaps_end).then_some(2)
}

/// Writes `address` (that of the port the packet leaves by) into the next free slot of a Record Route option, and blanks what
/// follows the end of the list. A packet that carries a Timestamp option is not rewritten: the return value is false, and
/// it must not be forwarded.
pub fn record_in_options(frame: &mut [u8], packet: &Packet, address: Addr) -> bool {
    let header = &mut frame[usize::from(packet.l3_at)..usize::from(packet.l4_at)];
    let mut at = ipv4::HEADER_LEN;
    while at < header.len() && header[at] != END {
        if header[at] == NOP {
            at += 1;
            continue;
        }
        let length = usize::from(header[at + 1]);
        match header[at] {
            TIMESTAMP => return false,
            RECORD_ROUTE => {
                let slot = usize::from(header[at + 2]); // counted from 1, from the option's first byte
                if slot >= 4 && slot + 3 <= length {
                    address.write(Family::V4, header, at + slot - 1);
                    header[at + 2] += 4;
                }
            }
            _ => {}
        }
        at += length;
    }
    if let Some(rest) = header.get_mut(at..) {
        rest.fill(END);
    }
    ipv4::set_checksum(header);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PortId;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn udp4(ttl: u8, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 2], [10, 2, 0, 2], ttl).udp(1234, 53);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).expect("writing to memory");
        frame
    }

    /// A UDP packet with these IPv4 options (a multiple of four bytes).
    fn with_options(options: &[u8]) -> Vec<u8> {
        let mut frame = udp4(64, b"x");
        frame.splice(34..34, options.iter().copied());
        frame[14] = 0x45 + (options.len() / 4) as u8;
        let total = frame.len() as u16 - 14;
        wire::put_u16(&mut frame, 16, total);
        let header = 34 + options.len();
        ipv4::set_checksum(&mut frame[14..header]);
        frame
    }

    fn parse(frame: &[u8]) -> Packet {
        Packet::parse(frame, PortId::LAN, true).expect("a good packet")
    }

    proptest! {
        #[test]
        fn ttl_delta_equals_full_checksum(ttl in 2u8.., id: u16) {
            let mut frame = udp4(ttl, b"abc");
            wire::put_u16(&mut frame, 18, id);
            ipv4::set_checksum(&mut frame[14..34]);
            let mut packet = parse(&frame);
            decrement_ttl(&mut frame, &mut packet);
            let by_delta = frame[14..34].to_vec();
            ipv4::set_checksum(&mut frame[14..34]);
            prop_assert_eq!((&by_delta[..], ttl - 1), (&frame[14..34], frame[22]));
        }

        #[test]
        fn a_partial_checksum_is_finished(payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let good = udp4(64, &payload);
            let mut frame = good.clone();
            let packet = parse(&good);
            let pseudo = checksum::pseudo_header(Family::V4, packet.src, packet.dst, proto::UDP, u32::from(packet.l4_len));
            wire::put_u16(&mut frame, 40, checksum::fold(pseudo));
            let mut packet = parse(&frame);
            finish_checksum(&mut frame, &mut packet);
            prop_assert_eq!(frame, good);
        }
    }

    #[test]
    fn options_are_read_as_linux_reads_them() {
        let cases: [(&[u8], Options); 6] = [
            (&[1, 1, 1, 0], Options::Carry),
            (&[148, 4, 0, 0], Options::Carry),
            (&[131, 3, 4, 0], Options::SourceRoute),
            (&[7, 7, 4, 0, 0, 0, 0, 0], Options::Record),
            (&[7, 9, 4, 0], Options::Malformed(20)),
            (&[1, 148, 1, 0], Options::Malformed(21)),
        ];
        for (options, expected) in cases {
            let frame = with_options(options);
            assert_eq!(check_options(&frame, &parse(&frame)), expected, "{options:?}");
        }
    }

    #[test]
    fn record_route_gets_the_outgoing_address() {
        let mut frame = with_options(&[7, 7, 4, 0, 0, 0, 0, 0]);
        let packet = parse(&frame);
        assert!(record_in_options(&mut frame, &packet, Addr::from_v4(0x0a020001)));
        assert_eq!(frame[34..42], [7, 7, 8, 10, 2, 0, 1, 0]);
        parse(&frame);
        let mut stamp = with_options(&[68, 8, 5, 0, 0, 0, 0, 0]);
        let packet = parse(&stamp);
        assert!(!record_in_options(&mut stamp, &packet, Addr::from_v4(1)));
    }
}
