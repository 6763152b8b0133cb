//! IPv4 header fields (RFC 791). Slices start at the header.

use super::{Addr, checksum, get_u16, put_u16};

/// Header length without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Byte offset of the TTL.
pub const TTL_AT: usize = 8;
/// Byte offset of the header checksum.
pub const CHECKSUM_AT: usize = 10;
/// Byte offset of the source address.
pub const SRC_AT: usize = 12;
/// Byte offset of the destination address.
pub const DST_AT: usize = 16;
/// "Don't fragment" in the flags and offset word.
pub const DF: u16 = 0x4000;
/// "More fragments" in the flags and offset word.
pub const MF: u16 = 0x2000;
/// The offset's bits of that word, in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// Version field.
#[inline]
pub fn version(ip: &[u8]) -> u8 {
    ip[0] >> 4
}

/// Header length with options, in bytes.
#[inline]
pub fn header_len(ip: &[u8]) -> usize {
    usize::from(ip[0] & 0x0f) * 4
}

/// Type of service, whole byte (DSCP and ECN).
#[inline]
pub fn tos(ip: &[u8]) -> u8 {
    ip[1]
}

/// Total length in bytes, header included.
#[inline]
pub fn total_len(ip: &[u8]) -> u16 {
    get_u16(ip, 2)
}

/// Identification.
#[inline]
pub fn id(ip: &[u8]) -> u16 {
    get_u16(ip, 4)
}

/// Flags and fragment offset word.
#[inline]
pub fn flags_offset(ip: &[u8]) -> u16 {
    get_u16(ip, 6)
}

/// Time to live.
#[inline]
pub fn ttl(ip: &[u8]) -> u8 {
    ip[TTL_AT]
}

/// Protocol.
#[inline]
pub fn protocol(ip: &[u8]) -> u8 {
    ip[9]
}

/// Source address.
#[inline]
pub fn src(ip: &[u8]) -> Addr {
    Addr::read_v4(ip, SRC_AT)
}

/// Destination address.
#[inline]
pub fn dst(ip: &[u8]) -> Addr {
    Addr::read_v4(ip, DST_AT)
}

/// Sets the header checksum from scratch; `ip` is exactly the header.
pub fn set_checksum(ip: &mut [u8]) {
    put_u16(ip, CHECKSUM_AT, 0);
    let check = checksum::finish(checksum::sum(0, ip));
    put_u16(ip, CHECKSUM_AT, check);
}
