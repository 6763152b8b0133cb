//! Payload of a packet replaced by another, which may be of another length: [`replace`] (`__nf_nat_mangle_tcp_packet`,
//! `nf_nat_mangle_udp_packet`), and the [`Text`] that comes into its place.

use core::fmt;

use crate::packet::{L4, Packet};
use crate::rewrite;
use crate::wire::{Family, ipv4, ipv6, proto, put_u16, tcp, udp};

/// What is written into a packet: text on the stack, as long as the longest command needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    bytes: [u8; Text::MAX],
    length: usize,
}

impl Text {
    /// `|2|`, an IPv6 address with all its digits, `|65535|`, and some to spare.
    const MAX: usize = 64;

    pub(super) fn new(arguments: fmt::Arguments<'_>) -> Text {
        let mut text = Text { bytes: [0; Text::MAX], length: 0 };
        fmt::write(&mut text, arguments).expect("no command is longer");
        text
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let end = self.length + part.len();
        self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(part.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// Puts `with` in the place of `length` payload bytes at `at` (from the first one after the TCP or UDP header), in the frame
/// and in `packet`; the packet may grow as far as `frame` has room. Lengths and checksums are computed anew; a UDP checksum
/// of 0 stays. `false`, and nothing is done, where there is no room.
#[must_use]
pub(super) fn replace(packet: &mut Packet, frame: &mut [u8], at: usize, length: usize, with: &[u8]) -> bool {
    let header = match packet.proto {
        proto::TCP => usize::from(packet.tcp_header_len).max(tcp::HEADER_LEN),
        _ => udp::HEADER_LEN,
    };
    let start = usize::from(packet.l4_at) + header + at;
    let (end, new_end) = (packet.frame_len(), (packet.frame_len() + with.len()).wrapping_sub(length));
    let longest = usize::from(packet.l3_at) + usize::from(u16::MAX);
    if start + length > end || new_end > longest || new_end > frame.len() {
        return false;
    }
    frame.copy_within(start + length..end, start + with.len());
    frame[start..start + with.len()].copy_from_slice(with);
    packet.l3_len = (new_end - usize::from(packet.l3_at)) as u16;
    packet.l4_len = (new_end - usize::from(packet.l4_at)) as u16;
    write_lengths(packet, frame);
    if packet.proto == proto::UDP {
        let datagram = &mut frame[usize::from(packet.l4_at)..new_end];
        put_u16(datagram, 4, packet.l4_len);
        if udp::checksum(datagram) == 0 {
            return true;
        }
    }
    rewrite::write_transport_checksum(frame, packet);
    packet.l4 = L4::Good;
    true
}

/// The IP header's own length field, and IPv4's checksum.
fn write_lengths(packet: &Packet, frame: &mut [u8]) {
    let ip = &mut frame[usize::from(packet.l3_at)..];
    match packet.family {
        Family::V4 => {
            put_u16(ip, 2, packet.l3_len);
            let header = ipv4::header_len(ip);
            ipv4::set_checksum(&mut ip[..header]);
        }
        Family::V6 => put_u16(ip, 4, packet.l3_len - ipv6::HEADER_LEN as u16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::testing::{self, ANY_HOP, Segment, flags};
    use crate::device::PortId;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn packet(v6: bool, is_tcp: bool, payload: &[u8]) -> Vec<u8> {
        let addresses = if v6 { ["2001:db8::1", "2001:db8::2"] } else { ["10.0.0.1", "10.0.0.2"] };
        let [src, dst]: [IpAddr; 2] = addresses.map(|text| text.parse().expect("an address"));
        let l4 = if is_tcp {
            let options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
            let (sport, dport, seq, ack, flags) = (1, 2, 3, 4, flags("."));
            let segment = Segment { sport, dport, seq, ack, flags, window: 5, options, payload: 0 };
            [segment.bytes(), payload.to_vec()].concat()
        } else {
            testing::udp(1, 2, payload)
        };
        testing::frame(ANY_HOP, &testing::ip(src, dst, if is_tcp { 6 } else { 17 }, &l4))
    }

    proptest! {
        /// The packet is the one that would have been sent with the other payload.
        #[test]
        fn it_is_as_if_it_had_been_sent_so(
            v6: bool, is_tcp: bool, before in proptest::collection::vec(any::<u8>(), 0..60), at in 0usize..60,
            length in 0usize..60, with in proptest::collection::vec(any::<u8>(), 0..40), padding in 0usize..9,
        ) {
            let at = at.min(before.len());
            let length = length.min(before.len() - at);
            let after = [&before[..at], &with, &before[at + length..]].concat();
            let mut frame = packet(v6, is_tcp, &before);
            frame.resize(frame.len() + padding, 0xaa);
            let mut read = Packet::parse(&frame, PortId::LAN, true).expect("good");
            frame.resize(2048, 0xbb);
            prop_assert!(replace(&mut read, &mut frame, at, length, &with));
            frame.truncate(read.frame_len());
            prop_assert_eq!(&frame, &packet(v6, is_tcp, &after));
            let again = Packet::parse(&frame, PortId::LAN, true).expect("good");
            prop_assert_eq!((again.l4, again.l4_len, again.l3_len), (L4::Good, read.l4_len, read.l3_len));
        }
    }

    #[test]
    fn without_room_nothing_is_done() {
        let before = packet(false, true, b"PORT 1,2");
        let mut frame = before.clone();
        let mut read = Packet::parse(&frame, PortId::LAN, true).expect("good");
        assert!(!replace(&mut read, &mut frame, 5, 3, b"1,23"), "one byte too many");
        assert!(!replace(&mut read, &mut frame, 5, 4, b"1"), "beyond the payload");
        assert_eq!(frame, before);
        assert!(replace(&mut read, &mut frame, 5, 3, b"3"));
        assert_eq!(&frame[read.frame_len() - 6..read.frame_len()], b"PORT 3");
    }

    #[test]
    fn a_checksum_that_is_not_there_is_not_made() {
        let mut frame = packet(false, false, b"abc");
        put_u16(&mut frame, 40, 0);
        let mut read = Packet::parse(&frame, PortId::LAN, true).expect("good");
        frame.resize(100, 0);
        assert!(replace(&mut read, &mut frame, 0, 1, b"xyz"));
        assert_eq!((&frame[38..42], &frame[42..47]), (&[0, 13, 0, 0][..], &b"xyzbc"[..]));
    }
}
