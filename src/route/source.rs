//! The address the host speaks with: [`select_v4`] and [`select_v6`], over the host's [`HostAddress`]es.

use super::prefix::Prefix;
use crate::wire::{Addr, Family};

/// Scope of an address valid everywhere (`RT_SCOPE_UNIVERSE`).
pub const SCOPE_UNIVERSE: u8 = 0;
/// Scope of an address valid on its link only (`RT_SCOPE_LINK`).
pub const SCOPE_LINK: u8 = 253;

/// One address of the host, on any of its interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostAddress {
    /// The address.
    pub addr: Addr,
    /// The network it is on (behind a point-to-point link: the peer's).
    pub subnet: Prefix,
    /// Index of its interface.
    pub ifindex: u32,
    /// Kernel's scope of the address, `RT_SCOPE_*`: 0 everywhere, 253 link, 254 host.
    pub scope: u8,
    /// IPv4: another address of the subnet comes before it. IPv6: temporary (RFC 8981).
    pub secondary: bool,
    /// Past its preferred lifetime.
    pub deprecated: bool,
    /// Duplicate detection is not over, or found a double: not to be used yet.
    pub tentative: bool,
}

impl HostAddress {
    /// The address's family.
    pub fn family(&self) -> Family {
        self.subnet.family()
    }
}

/// The IPv4 address the kernel would speak with to `next_hop` through interface `ifindex` (`inet_select_addr` with
/// universe scope): the primary address of the subnet of `next_hop`, else the interface's first, else some other
/// interface's. `next_hop` is None for a route without gateway.
pub fn select_v4(addresses: &[HostAddress], ifindex: u32, next_hop: Option<Addr>) -> Option<Addr> {
    let primary = |a: &&HostAddress| a.family() == Family::V4 && !a.secondary;
    let here = || addresses.iter().filter(primary).filter(|a| a.ifindex == ifindex);
    let within = |limit: u8| {
        let mut candidates = here().filter(|a| a.scope <= limit);
        let first = candidates.clone().next();
        candidates.find(|a| next_hop.is_some_and(|hop| a.subnet.contains(hop))).or(first)
    };
    let elsewhere = || addresses.iter().filter(primary).find(|a| a.scope < SCOPE_LINK);
    within(SCOPE_UNIVERSE).or_else(|| within(SCOPE_LINK)).or_else(elsewhere).map(|a| a.addr)
}

/// The IPv6 address the kernel would speak with to `destination` through interface `ifindex` (RFC 6724 section 5 as
/// `ipv6_dev_get_saddr` has it, without mobility and privacy preferences).
pub fn select_v6(addresses: &[HostAddress], ifindex: u32, destination: Addr) -> Option<Addr> {
    let scope = ipv6_scope(destination);
    // To a link or its multicast groups only an address of that link will do.
    let link_only = scope <= LINK_LOCAL || is_multicast(destination);
    addresses
        .iter()
        .filter(|a| a.family() == Family::V6 && !a.tentative && ipv6_scope(a.addr) > INTERFACE_LOCAL)
        .filter(|a| !link_only || a.ifindex == ifindex)
        .rev() // max_by_key takes the last of equals; the kernel keeps the first
        .max_by_key(|a| rank(a, ifindex, destination, scope))
        .map(|a| a.addr)
}

/// A candidate's standing, rule by rule; the larger wins.
fn rank(a: &HostAddress, ifindex: u32, destination: Addr, scope: i16) -> impl Ord + use<> {
    let own = ipv6_scope(a.addr);
    let rule2 = if own >= scope { -own } else { own - 128 };
    let common = (a.addr.bits() ^ destination.bits()).leading_zeros() as u8;
    (
        a.addr == destination,
        rule2,
        !a.deprecated,
        a.ifindex == ifindex,
        label(a.addr) == label(destination),
        !a.secondary,
        common.min(a.subnet.len()),
    )
}

const INTERFACE_LOCAL: i16 = 1;
const LINK_LOCAL: i16 = 2;
const SITE_LOCAL: i16 = 5;
const GLOBAL: i16 = 14;

fn is_multicast(addr: Addr) -> bool {
    addr.bits() >> 120 == 0xff
}

/// RFC 4291 section 2.7's number of an address's scope.
fn ipv6_scope(addr: Addr) -> i16 {
    let bits = addr.bits();
    match bits >> 112 {
        _ if bits == 1 => INTERFACE_LOCAL,
        top if top >> 8 == 0xff => (top & 0xf) as i16,
        top if top & 0xffc0 == 0xfe80 => LINK_LOCAL,
        top if top & 0xffc0 == 0xfec0 => SITE_LOCAL,
        _ => GLOBAL,
    }
}

/// The kernel's built-in address labels (`ip6addrlbl_init_table`): first match of the longest prefix.
fn label(addr: Addr) -> u8 {
    let bits = addr.bits();
    match bits {
        1 => 0,
        _ if bits >> 32 == 0xffff => 4,
        _ if bits >> 32 == 0 => 3,
        _ if bits >> 96 == 0x2001_0000 => 6,
        _ if bits >> 100 == 0x200_1001 => 7,
        _ if bits >> 112 == 0x2002 => 2,
        _ if bits >> 112 == 0x3ffe => 12,
        _ if bits >> 118 == 0xfec0 >> 6 => 11,
        _ if bits >> 121 == 0xfc >> 1 => 5,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::prefix::parse_with_len;

    fn address(text: &str, ifindex: u32) -> HostAddress {
        let (family, addr, len) = parse_with_len(text).expect(text);
        HostAddress {
            addr,
            subnet: Prefix::new(family, addr, len),
            ifindex,
            scope: SCOPE_UNIVERSE,
            secondary: false,
            deprecated: false,
            tentative: false,
        }
    }

    fn addr(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().expect(text).into()
    }

    #[test]
    fn ipv4_prefers_the_subnet_then_the_first() {
        let mut list = vec![address("10.0.0.1/24", 2), address("10.0.1.1/24", 2), address("192.0.2.1/24", 3)];
        let pick = |list: &[HostAddress], ifindex, hop: Option<&str>| {
            select_v4(list, ifindex, hop.map(addr)).map(|a| a.to_string())
        };
        assert_eq!(pick(&list, 2, Some("10.0.1.9")).as_deref(), Some("10.0.1.1"));
        assert_eq!(pick(&list, 2, Some("10.9.9.9")).as_deref(), Some("10.0.0.1"));
        assert_eq!(pick(&list, 2, None).as_deref(), Some("10.0.0.1"));
        assert_eq!(pick(&list, 7, None).as_deref(), Some("10.0.0.1"), "an interface without address borrows");
        list[1].secondary = true;
        assert_eq!(pick(&list, 2, Some("10.0.1.9")).as_deref(), Some("10.0.0.1"));
        list[0].scope = SCOPE_LINK;
        assert_eq!(pick(&list, 2, None).as_deref(), Some("10.0.0.1"), "link scope is better than another interface");
        assert_eq!(select_v4(&[], 2, None), None);
    }

    #[test]
    fn ipv6_follows_rfc_6724() {
        let list = vec![
            address("fe80::1/64", 2),
            address("2001:db8:1::1/64", 2),
            address("2001:db8:2::1/64", 3),
            address("fd00::1/64", 2),
            address("::1/128", 1),
        ];
        let pick = |list: &[HostAddress], ifindex, to: &str| {
            select_v6(list, ifindex, addr(to)).map(|a| a.to_string()).unwrap_or_default()
        };
        assert_eq!(pick(&list, 2, "2001:db8:2::9"), "2001:db8:1::1", "the way out goes before the prefix");
        assert_eq!(pick(&list, 3, "2001:db8:1::9"), "2001:db8:2::1");
        assert_eq!(pick(&list, 2, "fe80::9"), "fe80::1");
        assert_eq!(pick(&list, 2, "fd00:5::9"), "fd00::1", "same label");
        assert_eq!(pick(&list, 3, "fe80::9"), "2001:db8:2::1");
        assert_eq!(pick(&list, 9, "fe80::9"), "", "to a link only with an address of that link");
        assert_eq!(pick(&list[..1], 2, "2001:db8::9"), "fe80::1");
        assert_eq!(pick(&list[..3], 9, "2001:db8:2::9"), "2001:db8:2::1", "longest match between equals");
        let mut list = list;
        list[1].tentative = true;
        assert_eq!(pick(&list[..3], 2, "2001:db8:1::9"), "2001:db8:2::1");
    }
}
