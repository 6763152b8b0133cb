//! UDP header fields (RFC 768). Slices start at the header.

use super::get_u16;

/// Header length in bytes.
pub const HEADER_LEN: usize = 8;
/// Byte offset of the checksum.
pub const CHECKSUM_AT: usize = 6;

/// Length in bytes, header included.
#[inline]
pub fn length(udp: &[u8]) -> u16 {
    get_u16(udp, 4)
}

/// Checksum field; 0 means "none" on IPv4.
#[inline]
pub fn checksum(udp: &[u8]) -> u16 {
    get_u16(udp, CHECKSUM_AT)
}
