//! [`Prefix`]: a network address and its length, such as `10.0.0.0/8`.

use core::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::wire::{Addr, Family};

/// A prefix of one family. The bits beyond the length are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    family: Family,
    addr: Addr,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits that `addr` lies in; a length beyond the family's is cut to it.
    pub fn new(family: Family, addr: Addr, len: u8) -> Prefix {
        let len = len.min(family.bits());
        Prefix { family, addr: addr.and(Addr::prefix_mask(family, len)), len }
    }

    /// The prefix of `addr` alone.
    pub fn host(family: Family, addr: Addr) -> Prefix {
        Prefix::new(family, addr, family.bits())
    }

    /// The prefix of everything.
    pub fn default_route(family: Family) -> Prefix {
        Prefix::new(family, if family == Family::V4 { Addr::from_v4(0) } else { Addr::ZERO }, 0)
    }

    /// Its family.
    pub fn family(self) -> Family {
        self.family
    }

    /// Its first address.
    pub fn addr(self) -> Addr {
        self.addr
    }

    /// Its length in bits of its family.
    // A length of zero bits is the default route, not emptiness.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether `addr`, of the same family, lies in it.
    pub fn contains(self, addr: Addr) -> bool {
        addr.and(Addr::prefix_mask(self.family, self.len)) == self.addr
    }

    /// Its last address (for IPv4 the directed broadcast address).
    pub fn last(self) -> Addr {
        match self.family {
            Family::V4 => Addr::from_v4(self.addr.v4_bits() | u32::MAX.checked_shr(self.len.into()).unwrap_or(0)),
            Family::V6 => Addr::from_v6(self.addr.bits() | u128::MAX.checked_shr(self.len.into()).unwrap_or(0)),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An IPv6 prefix of IPv4-mapped addresses must not print as IPv4.
        match self.family {
            Family::V4 => write!(f, "{}/{}", self.addr, self.len),
            Family::V6 => write!(f, "{}/{}", std::net::Ipv6Addr::from(self.addr.bits()), self.len),
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Splits `10.0.0.1/24` or `10.0.0.1` (then the full length) into family, address and length.
pub(super) fn parse_with_len(text: &str) -> Result<(Family, Addr, u8), String> {
    let (addr, len) = match text.split_once('/') {
        Some((addr, len)) => (addr, Some(len)),
        None => (text, None),
    };
    let addr: IpAddr = addr.parse().map_err(|_| format!("`{addr}` is not an IP address"))?;
    let family = if addr.is_ipv4() { Family::V4 } else { Family::V6 };
    let len = match len {
        None => family.bits(),
        Some(len) => {
            len.parse().ok().filter(|&n| n <= family.bits()).ok_or_else(|| format!("`{len}` is not a prefix length"))?
        }
    };
    Ok((family, addr.into(), len))
}

impl FromStr for Prefix {
    type Err = String;

    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or an address alone.
    fn from_str(text: &str) -> Result<Prefix, String> {
        let (family, addr, len) = parse_with_len(text)?;
        let prefix = Prefix::new(family, addr, len);
        if prefix.addr == addr { Ok(prefix) } else { Err(format!("`{text}` has bits beyond its length")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_read_print_and_contain() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.1/32", "::/0", "2001:db8::/33", "::ffff:0.0.0.0/96"] {
            assert_eq!(text.parse::<Prefix>().expect(text).to_string(), text);
        }
        for text in ["10.0.0.1/8", "10.0.0.0/33", "x", "::/129", "10.0.0.0/"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        let net: Prefix = "10.0.4.0/22".parse().expect("a prefix");
        assert_eq!(net.last(), Addr::from_v4(0x0a00_07ff));
        assert!(net.contains(net.last()) && !net.contains(Addr::from_v4(0x0a00_0800)));
    }
}
