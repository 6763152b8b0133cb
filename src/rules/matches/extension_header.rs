//! Finding one of IPv6's extension headers, as Linux's `ipv6_find_hdr` does (net/ipv6/exthdrs_core.c).

use crate::wire::{ipv6, proto};

/// What came of the search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// It begins at this byte of the IPv6 packet.
    At(usize),
    /// The packet has none.
    Missing,
    /// The packet ends before that is known.
    Broken,
}

/// Looks for the first header of kind `wanted` in `ip`, an IPv6 packet.
pub(super) fn find(ip: &[u8], wanted: u8) -> Found {
    let (mut next, mut at) = (ipv6::next_header(ip), ipv6::HEADER_LEN);
    while matches!(next, proto::HOP_BY_HOP | proto::ROUTING | proto::FRAGMENT | proto::AH | proto::DEST_OPTIONS) {
        let least = if matches!(next, proto::ROUTING | proto::FRAGMENT) { 4 } else { 2 };
        let Some(header) = ip.get(at..at + least) else { return Found::Broken };
        if next == wanted {
            return Found::At(at);
        }
        let later_fragment = next == proto::FRAGMENT && (header[2], header[3] & !7) != (0, 0);
        if later_fragment {
            return Found::Missing;
        }
        at += match next {
            proto::FRAGMENT => 8,
            proto::AH => usize::from(header[1]) * 4 + 8,
            _ => length(header),
        };
        next = header[0];
    }
    Found::Missing
}

/// Length in bytes of an options or routing header (`ipv6_optlen`).
pub(super) fn length(header: &[u8]) -> usize {
    usize::from(header[1]) * 8 + 8
}

#[cfg(test)]
mod tests {
    use super::super::testing::v6;
    use super::*;

    #[test]
    fn a_header_is_found_behind_others_and_a_cut_one_is_noticed() {
        let hop = [60, 0, 1, 4, 0, 0, 0, 0];
        let dst = [6, 0, 1, 4, 0, 0, 0, 0];
        let frame = v6(0, &[hop, dst].concat());
        let ip = &frame[14..];
        assert_eq!(find(ip, 0), Found::At(40));
        assert_eq!(find(ip, 60), Found::At(48));
        assert_eq!(find(ip, 43), Found::Missing);
        assert_eq!(find(&ip[..48], 60), Found::Broken);
        assert_eq!(find(&ip[..48], 43), Found::Broken);
        assert_eq!(find(&ip[..50], 60), Found::At(48));
    }

    #[test]
    fn behind_a_later_fragment_nothing_is_looked_for() {
        let frame = v6(44, &[60, 0, 0, 8, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(find(&frame[14..], 60), Found::Missing);
        assert_eq!(find(&frame[14..], 44), Found::At(40));
        let first = v6(44, &[60, 0, 0, 1, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(find(&first[14..], 60), Found::At(48));
    }
}
