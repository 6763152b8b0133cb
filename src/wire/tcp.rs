//! TCP header fields (RFC 9293). Slices start at the header.

use super::{get_u16, get_u32};

/// Header length without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Byte offset of the checksum.
pub const CHECKSUM_AT: usize = 16;
/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// PSH flag.
pub const PSH: u8 = 0x08;
/// ACK flag.
pub const ACK: u8 = 0x10;
/// URG flag.
pub const URG: u8 = 0x20;
/// ECE flag.
pub const ECE: u8 = 0x40;
/// CWR flag.
pub const CWR: u8 = 0x80;

/// Sequence number.
#[inline]
pub fn seq(tcp: &[u8]) -> u32 {
    get_u32(tcp, 4)
}

/// Acknowledgement number.
#[inline]
pub fn ack(tcp: &[u8]) -> u32 {
    get_u32(tcp, 8)
}

/// Header length with options, in bytes (the data offset times four).
#[inline]
pub fn header_len(tcp: &[u8]) -> usize {
    usize::from(tcp[12] >> 4) * 4
}

/// The eight flags, CWR highest.
#[inline]
pub fn flags(tcp: &[u8]) -> u8 {
    tcp[13]
}

/// Window, unscaled.
#[inline]
pub fn window(tcp: &[u8]) -> u16 {
    get_u16(tcp, 14)
}
