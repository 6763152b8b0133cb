//! Ethernet II: destination (6), source (6), EtherType (2).

use super::{Mac, get_u16};

/// Header length in bytes.
pub const HEADER_LEN: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// Destination address.
#[inline]
pub fn destination(frame: &[u8]) -> Mac {
    Mac(frame[0..6].try_into().expect("six bytes"))
}

/// Source address.
#[inline]
pub fn source(frame: &[u8]) -> Mac {
    Mac(frame[6..12].try_into().expect("six bytes"))
}

/// EtherType.
#[inline]
pub fn ethertype(frame: &[u8]) -> u16 {
    get_u16(frame, 12)
}

/// Writes both addresses; the EtherType stays.
#[inline]
pub fn set_addresses(frame: &mut [u8], destination: Mac, source: Mac) {
    frame[0..6].copy_from_slice(&destination.0);
    frame[6..12].copy_from_slice(&source.0);
}
