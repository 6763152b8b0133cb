//! A packet for the host that is longer than one punt carries is cut into IP fragments ([`cut`]), which the kernel puts together
//! again before it looks who the packet is for: the host's programs see it whole.

use crate::wire::{get_u16, ipv4, ipv6, proto, put_u16, put_u32};

/// Bytes of an Ethernet header, and of IPv6's fragment header.
const ETHERNET: usize = 14;
const FRAGMENT: usize = 8;
/// IPv6's "more fragments"; the offset is in the bits above it and two of zero.
const MORE6: u16 = 1;

/// Cuts `frame`, an IP packet behind an Ethernet header, into frames of at most `most` bytes, and gives each to `give`, in order.
/// `id`: differs from that of other packets cut about this time. `false`: it cannot be cut (not IP, a fragment, options or
/// extension headers, a length that lies), and nothing was given.
pub(super) fn cut(frame: &[u8], most: usize, id: u16, mut give: impl FnMut(&[u8])) -> bool {
    let Some((ethernet, ip)) = frame.split_at_checked(ETHERNET) else { return false };
    let Some((headers, payload)) = (match get_u16(ethernet, 12) {
        0x0800 => headers4(ethernet, ip, id),
        0x86dd => headers6(ethernet, ip, id),
        _ => None,
    }) else {
        return false;
    };
    let room = (most.saturating_sub(headers.len())) & !7;
    if room == 0 || payload.is_empty() {
        return false;
    }
    let mut piece = Vec::with_capacity(most);
    for (number, part) in payload.chunks(room).enumerate() {
        let offset = number * room;
        piece.clear();
        piece.extend_from_slice(&headers);
        piece.extend_from_slice(part);
        mark(&mut piece[ETHERNET..], offset, offset + part.len() < payload.len());
        give(&piece);
    }
    true
}

/// What each fragment begins with, and the bytes that are shared out.
fn headers4<'a>(ethernet: &[u8], ip: &'a [u8], id: u16) -> Option<(Vec<u8>, &'a [u8])> {
    let (header, _) = ip.split_at_checked(ipv4::HEADER_LEN)?;
    let whole = ipv4::version(header) == 4
        && ipv4::header_len(header) == ipv4::HEADER_LEN
        && ipv4::flags_offset(header) & (ipv4::MF | ipv4::OFFSET_MASK) == 0;
    let payload = ip.get(ipv4::HEADER_LEN..usize::from(ipv4::total_len(header))).filter(|_| whole)?;
    let mut headers = [ethernet, header].concat();
    // A packet with DF may have the identification of another.
    put_u16(&mut headers[ETHERNET..], 4, id);
    Some((headers, payload))
}

fn headers6<'a>(ethernet: &[u8], ip: &'a [u8], id: u16) -> Option<(Vec<u8>, &'a [u8])> {
    let (header, rest) = ip.split_at_checked(ipv6::HEADER_LEN)?;
    let next = ipv6::next_header(header);
    let extensions = [proto::HOP_BY_HOP, proto::ROUTING, proto::FRAGMENT, proto::DEST_OPTIONS];
    let payload = rest.get(..usize::from(ipv6::payload_len(header)))?;
    if ipv6::version(header) != 6 || extensions.contains(&next) {
        return None;
    }
    let mut headers = [ethernet, header, &[next, 0, 0, 0, 0, 0, 0, 0]].concat();
    headers[ETHERNET + 6] = proto::FRAGMENT;
    put_u32(&mut headers[ETHERNET..], ipv6::HEADER_LEN + 4, u32::from(id));
    Some((headers, payload))
}

/// Writes length, offset and "more" of the fragment `ip`.
fn mark(ip: &mut [u8], offset: usize, more: bool) {
    let length = ip.len();
    if ipv4::version(ip) == 4 {
        let df = ipv4::flags_offset(ip) & ipv4::DF;
        put_u16(ip, 2, length as u16);
        put_u16(ip, 6, df | if more { ipv4::MF } else { 0 } | (offset / 8) as u16);
        ipv4::set_checksum(&mut ip[..ipv4::HEADER_LEN]);
    } else {
        debug_assert!(length >= ipv6::HEADER_LEN + FRAGMENT);
        put_u16(ip, 4, (length - ipv6::HEADER_LEN) as u16);
        put_u16(ip, ipv6::HEADER_LEN + 2, offset as u16 | if more { MORE6 } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum;
    use proptest::prelude::*;

    fn packet(v6: bool, payload: &[u8]) -> Vec<u8> {
        let (mut header, kind) = if v6 {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, proto::UDP, 64];
            header.extend([7; 32]);
            put_u16(&mut header, 4, payload.len() as u16);
            (header, [0x86, 0xdd])
        } else {
            let mut header = vec![0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, proto::UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
            put_u16(&mut header, 2, (20 + payload.len()) as u16);
            ipv4::set_checksum(&mut header);
            (header, [8, 0])
        };
        header.extend_from_slice(payload);
        [&[2; 12][..], &kind, &header].concat()
    }

    /// What a host makes of fragments that come in order: the payload.
    fn together(pieces: &[Vec<u8>], most: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            assert!(piece.len() <= most);
            let (ip, last) = (&piece[ETHERNET..], number + 1 == pieces.len());
            let (offset, more, part) = if ipv4::version(ip) == 4 {
                let (header, part) = ip.split_at(20);
                assert_eq!(checksum::fold(checksum::sum(0, header)), 0xffff);
                assert_eq!((usize::from(ipv4::total_len(ip)), ipv4::id(ip)), (ip.len(), 77));
                let word = ipv4::flags_offset(ip);
                (usize::from(word & ipv4::OFFSET_MASK) * 8, word & ipv4::MF != 0, part)
            } else {
                let part = &ip[48..];
                assert_eq!((ip[6], ip[40], ip[47]), (proto::FRAGMENT, proto::UDP, 77));
                assert_eq!(usize::from(ipv6::payload_len(ip)), ip.len() - 40);
                let word = get_u16(ip, 42);
                (usize::from(word & !7), word & MORE6 != 0, part)
            };
            assert_eq!((offset, more), (payload.len(), !last));
            payload.extend_from_slice(part);
        }
        payload
    }

    proptest! {
        #[test]
        fn fragments_make_the_packet(v6: bool, length in 1usize..20_000, most in 100usize..4000, padding in 0usize..20) {
            let payload: Vec<u8> = (0..length).map(|n| (n % 253) as u8).collect();
            let (mut frame, mut pieces) = (packet(v6, &payload), Vec::new());
            frame.resize(frame.len() + padding, 0);
            prop_assert!(cut(&frame, most, 77, |piece| pieces.push(piece.to_vec())));
            prop_assert_eq!(together(&pieces, most), payload);
        }

        #[test]
        fn rubbish_is_survived(frame in proptest::collection::vec(any::<u8>(), 0..200), v6: bool) {
            let mut frame = frame;
            if let Some(kind) = frame.get_mut(12..14) {
                kind.copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
            }
            cut(&frame, 100, 1, |piece| assert!(piece.len() <= 100));
        }
    }

    #[test]
    fn what_cannot_be_cut_is_left() {
        let refused = |change: &dyn Fn(&mut Vec<u8>), v6: bool| {
            let mut frame = packet(v6, &[1; 4000]);
            change(&mut frame);
            !cut(&frame, 3072, 1, |_| panic!("given, although refused"))
        };
        assert!(refused(&|it| it[12] = 0x81, false), "not IP");
        assert!(refused(&|it| it[14] = 0x46, false), "options");
        assert!(refused(&|it| it[20] |= 0x20, false), "a fragment");
        assert!(refused(&|it| it[16] = 0x7f, false), "longer than it is");
        assert!(refused(&|it| it[20] = proto::HOP_BY_HOP, true), "extension headers");
        assert!(refused(&|it| it.truncate(60), true), "cut short");
    }
}
