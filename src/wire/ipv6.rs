//! IPv6 header fields (RFC 8200). Slices start at the header.

use super::{Addr, get_u16, get_u32, proto};

/// Header length in bytes.
pub const HEADER_LEN: usize = 40;
/// Byte offset of the hop limit.
pub const HOP_LIMIT_AT: usize = 7;
/// Byte offset of the source address.
pub const SRC_AT: usize = 8;
/// Byte offset of the destination address.
pub const DST_AT: usize = 24;

/// Version field.
#[inline]
pub fn version(ip: &[u8]) -> u8 {
    ip[0] >> 4
}

/// Traffic class, whole byte (DSCP and ECN).
#[inline]
pub fn traffic_class(ip: &[u8]) -> u8 {
    ip[0] << 4 | ip[1] >> 4
}

/// Flow label, 20 bits.
#[inline]
pub fn flow_label(ip: &[u8]) -> u32 {
    get_u32(ip, 0) & 0x000f_ffff
}

/// Payload length in bytes: all that follows the fixed header.
#[inline]
pub fn payload_len(ip: &[u8]) -> u16 {
    get_u16(ip, 4)
}

/// Next header.
#[inline]
pub fn next_header(ip: &[u8]) -> u8 {
    ip[6]
}

/// Hop limit.
#[inline]
pub fn hop_limit(ip: &[u8]) -> u8 {
    ip[HOP_LIMIT_AT]
}

/// Source address.
#[inline]
pub fn src(ip: &[u8]) -> Addr {
    Addr::read_v6(ip, SRC_AT)
}

/// Destination address.
#[inline]
pub fn dst(ip: &[u8]) -> Addr {
    Addr::read_v6(ip, DST_AT)
}

/// The transport protocol and where it starts, which may be the packet's end (`ipv6_skip_exthdr`). A fragment that is not
/// the first has none.
pub fn skip_extension_headers(ip: &[u8]) -> Option<(u8, usize)> {
    let mut next = next_header(ip);
    let mut at = HEADER_LEN;
    loop {
        match next {
            proto::HOP_BY_HOP | proto::ROUTING | proto::DEST_OPTIONS | proto::AH | proto::FRAGMENT => {}
            proto::NO_NEXT => return None,
            _ => return Some((next, at)),
        }
        let header = ip.get(at..at + 2)?;
        at += match next {
            proto::FRAGMENT => {
                const OFFSET_MASK: u16 = !7;
                if get_u16(ip.get(at + 2..at + 4)?, 0) & OFFSET_MASK != 0 {
                    return None;
                }
                8
            }
            proto::AH => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        next = header[0];
    }
}
