//! Addresses: [`Addr`] for both IP versions, [`Family`], [`Mac`].

use core::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP version. Values are Linux's `AF_INET` and `AF_INET6`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    #[default]
    V4 = 2,
    /// IPv6.
    V6 = 10,
}

impl Family {
    /// Bits in an address of this family.
    pub const fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

/// An IP address of either version in 16 bytes: two native-endian words, high half first. An IPv4 address is kept in its
/// IPv4-mapped form (`::ffff:a.b.c.d`), so that one comparison serves both; the packet's [`Family`] says which it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Addr {
    hi: u64,
    lo: u64,
}

const MAPPED: u64 = 0x0000_ffff_0000_0000;

impl Addr {
    /// All zero: the unspecified IPv6 address.
    pub const ZERO: Addr = Addr { hi: 0, lo: 0 };

    /// An IPv4 address from its number in host order (10.0.0.1 is `0x0a000001`).
    #[inline]
    pub const fn from_v4(bits: u32) -> Addr {
        Addr { hi: 0, lo: MAPPED | bits as u64 }
    }

    /// An IPv6 address from its number in host order.
    #[inline]
    pub const fn from_v6(bits: u128) -> Addr {
        Addr { hi: (bits >> 64) as u64, lo: bits as u64 }
    }

    /// The 4 address bytes at `at`.
    #[inline]
    pub fn read_v4(bytes: &[u8], at: usize) -> Addr {
        Addr::from_v4(super::get_u32(bytes, at))
    }

    /// The 16 address bytes at `at`.
    #[inline]
    pub fn read_v6(bytes: &[u8], at: usize) -> Addr {
        let raw: [u8; 16] = bytes[at..at + 16].try_into().expect("16 bytes");
        Addr::from_v6(u128::from_be_bytes(raw))
    }

    /// Writes the address at `at`: 4 or 16 bytes, as the family has it.
    pub fn write(self, family: Family, bytes: &mut [u8], at: usize) {
        match family {
            Family::V4 => super::put_u32(bytes, at, self.v4_bits()),
            Family::V6 => bytes[at..at + 16].copy_from_slice(&self.bits().to_be_bytes()),
        }
    }

    /// The IPv4 address's number in host order (the low 32 bits, whatever the address is).
    #[inline]
    pub const fn v4_bits(self) -> u32 {
        self.lo as u32
    }

    /// The 128-bit number in host order.
    #[inline]
    pub const fn bits(self) -> u128 {
        (self.hi as u128) << 64 | self.lo as u128
    }

    /// High and low 64 bits in host order: what a hash reads.
    #[inline]
    pub const fn words(self) -> (u64, u64) {
        (self.hi, self.lo)
    }

    /// Whether this is an IPv4 (IPv4-mapped) address.
    #[inline]
    pub const fn is_v4(self) -> bool {
        self.hi == 0 && self.lo >> 32 == 0xffff
    }

    /// As the standard library has it.
    pub fn to_ip(self) -> IpAddr {
        if self.is_v4() { IpAddr::V4(Ipv4Addr::from(self.v4_bits())) } else { IpAddr::V6(Ipv6Addr::from(self.bits())) }
    }

    /// `self & mask`, on all 128 bits.
    #[inline]
    pub const fn and(self, mask: Addr) -> Addr {
        Addr { hi: self.hi & mask.hi, lo: self.lo & mask.lo }
    }

    /// The mask of a prefix of `len` bits in `family`; in IPv4-mapped form the upper 96 bits are set too.
    pub const fn prefix_mask(family: Family, len: u8) -> Addr {
        let keep = match family {
            Family::V4 => 96 + len as u32,
            Family::V6 => len as u32,
        };
        match keep {
            0 => Addr::ZERO,
            keep => Addr::from_v6(u128::MAX << (128 - keep)),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(addr: Ipv4Addr) -> Addr {
        Addr::from_v4(addr.to_bits())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(addr: Ipv6Addr) -> Addr {
        Addr::from_v6(addr.to_bits())
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Addr {
        match addr {
            IpAddr::V4(addr) => addr.into(),
            IpAddr::V6(addr) => addr.into(),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ethernet address, in wire order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// In one word, to be handed on in a register: the first byte is the lowest.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        let Mac([a, b, c, d, e, f]) = self;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// From [`Mac::to_word`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Mac {
        let [a, b, c, d, e, f, ..] = word.to_le_bytes();
        Mac([a, b, c, d, e, f])
    }

    /// Whether the group bit is set (multicast, broadcast).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_through_the_wire() {
        let mut bytes = [0u8; 16];
        let v4 = Addr::from(Ipv4Addr::new(10, 1, 2, 3));
        v4.write(Family::V4, &mut bytes, 0);
        assert_eq!((&bytes[..4], Addr::read_v4(&bytes, 0)), (&[10, 1, 2, 3][..], v4));
        let v6 = Addr::from("2001:db8::1".parse::<Ipv6Addr>().expect("an address"));
        v6.write(Family::V6, &mut bytes, 0);
        assert_eq!((Addr::read_v6(&bytes, 0), v6.to_string().as_str()), (v6, "2001:db8::1"));
        assert!(v4.is_v4() && !v6.is_v4());
    }

    #[test]
    fn prefix_masks_cover_both_families() {
        let net = Addr::from(Ipv4Addr::new(10, 1, 2, 3)).and(Addr::prefix_mask(Family::V4, 8));
        assert_eq!(net, Addr::from(Ipv4Addr::new(10, 0, 0, 0)));
        assert_eq!(Addr::prefix_mask(Family::V6, 0), Addr::ZERO);
        assert_eq!(Addr::prefix_mask(Family::V6, 128).bits(), u128::MAX);
    }
}
