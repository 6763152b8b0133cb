//! What tells one element of a set from another: [`Key`].

use crate::wire::{Addr, Family, Mac};
use core::num::NonZeroU8;

/// An element, every type's in one form; parts that the set's type has not are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Key {
    /// The first (or only) address or net; in IPv4-mapped form for IPv4.
    pub(super) first: Addr,
    /// The second address or net; or an interface's name, or a hardware address, as [`name_bits`] and [`mac_bits`] have it.
    pub(super) second: Addr,
    /// Port, or ICMP type and code. For a bitmap:port, too.
    pub(super) port: u16,
    /// Protocol.
    pub(super) proto: u8,
    /// `physdev:` before the interface.
    pub(super) physdev: bool,
    /// Prefix length of the first net, and of the second one; 0 where there is no net.
    pub(super) lengths: [u8; 2],
    /// Mark of a hash:ip,mark.
    pub(super) mark: u32,
}

impl Key {
    /// Everything but the addresses, in one word.
    #[inline]
    pub(super) fn rest(&self) -> u64 {
        u64::from(self.port) << 48
            | u64::from(self.proto) << 40
            | u64::from(self.lengths[0]) << 32
            | u64::from(self.mark) ^ u64::from(self.lengths[1]) << 8 ^ u64::from(self.physdev)
    }

    /// With the net of this number cut down to `length` bits.
    #[inline]
    pub(super) fn cut(mut self, net: usize, second: bool, length: u8, family: Family) -> Key {
        let mask = Addr::prefix_mask(family, length);
        match second {
            false => self.first = self.first.and(mask),
            true => self.second = self.second.and(mask),
        }
        self.lengths[net] = length;
        self
    }
}

/// An interface's name in 16 bytes; longer ones are cut.
pub(super) fn name_bits(name: &str) -> Addr {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    Addr::from_v6(u128::from_be_bytes(bytes))
}

/// The name back.
pub(super) fn name_of(bits: Addr) -> String {
    let bytes = bits.bits().to_be_bytes();
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Whether the name `name` begins with `prefix` (both as [`name_bits`]).
#[inline]
pub(super) fn begins_with(name: Addr, prefix: Addr) -> bool {
    let kept = 16 - prefix.bits().trailing_zeros() / 8;
    match NonZeroU8::new(kept as u8) {
        None => true,
        Some(kept) => name.and(Addr::from_v6(u128::MAX << (128 - 8 * u32::from(kept.get())))) == prefix,
    }
}

/// A hardware address as a number.
#[inline]
pub(super) fn mac_bits(mac: Mac) -> Addr {
    let [a, b, c, d, e, f] = mac.0;
    Addr::from_v6(u128::from(u64::from_be_bytes([0, 0, a, b, c, d, e, f])))
}

/// The hardware address back.
pub(super) fn mac_of(bits: Addr) -> Mac {
    let [_, _, a, b, c, d, e, f] = bits.words().1.to_be_bytes();
    Mac([a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_hardware_addresses_come_back() {
        for name in ["", "e", "eth0", "fifteen-letters"] {
            assert_eq!(name_of(name_bits(name)), name);
        }
        let mac = Mac([2, 0, 0xab, 3, 4, 0xff]);
        assert_eq!(mac_of(mac_bits(mac)), mac);
        assert!(begins_with(name_bits("eth0"), name_bits("eth")) && begins_with(name_bits("eth"), name_bits("eth")));
        assert!(!begins_with(name_bits("et"), name_bits("eth")) && !begins_with(name_bits("wth0"), name_bits("eth")));
        assert!(begins_with(name_bits("eth0"), name_bits("")));
        assert!(begins_with(name_bits("fifteen-letters"), name_bits("fifteen-letters")));
    }
}
