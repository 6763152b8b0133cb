//! What a route says, before and after it is brought to the router's two ports: [`Action`] as the kernel has it, [`Route`]
//! as a packet meets it.

use std::sync::Arc;

use crate::device::PortId;
use crate::wire::{Addr, Family};

/// What becomes of a packet by its destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Route {
    /// Out through `port`, to `gateway` or, without one, to the destination itself.
    Forward {
        /// Way out.
        port: PortId,
        /// Next hop if it is not the destination. May be an IPv6 address for an IPv4 packet (RFC 5549).
        gateway: Option<Addr>,
        /// Largest IP packet in bytes: the route's own MTU, at most the device's.
        mtu: u16,
    },
    /// An address of the host (also IPv6 anycast).
    Local,
    /// A broadcast address of one of the host's networks, or 255.255.255.255.
    Broadcast,
    /// A multicast address.
    Multicast,
    /// Out through an interface that is not one of the router's ports, or in a way the router has no means for.
    Elsewhere,
    /// Route of type `unreachable`.
    Unreachable,
    /// Route of type `prohibit`.
    Prohibit,
    /// Route of type `blackhole`.
    Blackhole,
    /// No route matches.
    NoRoute,
}

impl Route {
    /// Whether it is for the host itself.
    #[inline]
    pub const fn is_to_host(&self) -> bool {
        matches!(self, Route::Local | Route::Broadcast | Route::Multicast)
    }
}

/// The kernel's type of a route (`RTN_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// `RTN_UNICAST`: through one of the hops.
    Unicast,
    /// `RTN_LOCAL`, and IPv6's `RTN_ANYCAST`: to the host.
    Local,
    /// `RTN_BROADCAST`.
    Broadcast,
    /// `RTN_MULTICAST`.
    Multicast,
    /// `RTN_UNREACHABLE`.
    Unreachable,
    /// `RTN_PROHIBIT`.
    Prohibit,
    /// `RTN_BLACKHOLE`.
    Blackhole,
    /// `RTN_THROW`: no match in this table, look in the next.
    Throw,
    /// Of a kind the router has no means for (an encapsulation, MPLS): [`Route::Elsewhere`].
    Foreign,
}

/// One way a unicast route may leave.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Hop {
    /// Interface index.
    pub ifindex: u32,
    /// Next hop if it is not the destination.
    pub gateway: Option<Addr>,
    /// Share among the route's hops, 1 to 256 (`rtnh_hops` plus one).
    pub weight: u16,
    /// The kernel says the hop cannot be used (`RTNH_F_DEAD`).
    pub dead: bool,
}

/// The hops of a route: nearly always one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Hops {
    /// None (reject and local routes need none).
    None,
    /// One.
    One(Hop),
    /// Several, chosen from by a hash of the addresses.
    Many(Arc<[Hop]>),
}

impl Hops {
    /// As a slice.
    pub fn as_slice(&self) -> &[Hop] {
        match self {
            Hops::None => &[],
            Hops::One(hop) => std::slice::from_ref(hop),
            Hops::Many(hops) => hops,
        }
    }
}

impl From<Vec<Hop>> for Hops {
    fn from(hops: Vec<Hop>) -> Hops {
        match hops[..] {
            [] => Hops::None,
            [hop] => Hops::One(hop),
            _ => Hops::Many(hops.into()),
        }
    }
}

/// Everything a route says except for which prefix it says it. Many routes share one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Action {
    /// Its type.
    pub kind: Kind,
    /// Where to.
    pub hops: Hops,
    /// `RTAX_MTU` in bytes; 0 when the route has none of its own.
    pub mtu: u32,
    /// `RTA_PREFSRC`: source of the host's own packets.
    pub prefsrc: Option<Addr>,
}

impl Action {
    /// A route of this type without hops.
    pub fn of(kind: Kind) -> Action {
        Action { kind, hops: Hops::None, mtu: 0, prefsrc: None }
    }

    /// A unicast route through one interface.
    pub fn unicast(ifindex: u32, gateway: Option<Addr>) -> Action {
        let hop = Hop { ifindex, gateway, weight: 1, dead: false };
        Action { kind: Kind::Unicast, hops: Hops::One(hop), mtu: 0, prefsrc: None }
    }
}

/// What resolution needs to know of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Which of the ports it is.
    pub port: Option<PortId>,
    /// MTU in bytes for IPv4.
    pub mtu: u32,
    /// MTU in bytes for IPv6 (a router advertisement may lower it).
    pub mtu6: u32,
    /// Administratively up.
    pub up: bool,
    /// Has a carrier.
    pub carrier: bool,
    /// `ignore_routes_with_linkdown` for IPv4 and for IPv6.
    pub ignore_linkdown: [bool; 2],
}

/// One resolved way: what lookups give, and the source address the route prefers for the host's own packets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Path {
    pub(super) route: Route,
    pub(super) prefsrc: Option<Addr>,
}

/// What a prefix's value stands for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Leaf {
    /// One way.
    One(Path),
    /// Several, each with the largest 31-bit hash that still chooses it; the last one's is all ones.
    Many(Arc<[(u32, Path)]>),
    /// Look in the next table.
    Throw,
}

/// Largest IPv4 packet (`IP_MAX_MTU`).
const MAX_MTU: u32 = 0xffff;
/// Smallest IPv6 MTU (RFC 8200 section 5).
const MIN_MTU6: u32 = 1280;

impl Leaf {
    /// Brings a route to the ports. None when no hop can be used: then the kernel goes on with the next route
    /// (`fib_table_lookup`, `find_rr_leaf`).
    pub(super) fn resolve(action: &Action, family: Family, link: impl Fn(u32) -> Option<Link>) -> Option<Leaf> {
        let fixed = |route| Some(Leaf::One(Path { route, prefsrc: action.prefsrc }));
        match action.kind {
            Kind::Local => fixed(Route::Local),
            Kind::Broadcast => fixed(Route::Broadcast),
            Kind::Multicast => fixed(Route::Multicast),
            Kind::Unreachable => fixed(Route::Unreachable),
            Kind::Prohibit => fixed(Route::Prohibit),
            Kind::Blackhole => fixed(Route::Blackhole),
            Kind::Foreign => fixed(Route::Elsewhere),
            Kind::Throw => Some(Leaf::Throw),
            Kind::Unicast => Leaf::unicast(action, family, link),
        }
    }

    fn unicast(action: &Action, family: Family, link: impl Fn(u32) -> Option<Link>) -> Option<Leaf> {
        let mut ways = Vec::new();
        for hop in action.hops.as_slice() {
            let Some(link) = link(hop.ifindex).filter(|link| !hop.dead && usable(link, family)) else { continue };
            let route = match link.port {
                Some(port) => Route::Forward { port, gateway: hop.gateway, mtu: mtu(action, family, &link) },
                None => Route::Elsewhere,
            };
            ways.push((u64::from(hop.weight.max(1)), Path { route, prefsrc: action.prefsrc }));
        }
        match ways[..] {
            [] => None,
            [(_, path)] => Some(Leaf::One(path)),
            _ => Some(Leaf::Many(bounds(&ways))),
        }
    }

    /// Whether `fib_table_lookup` would call it a success: a way out, or the host itself.
    #[inline]
    pub(super) fn is_way(&self) -> bool {
        let fails =
            |route: Route| matches!(route, Route::NoRoute | Route::Unreachable | Route::Prohibit | Route::Blackhole);
        match self {
            Leaf::One(path) => !fails(path.route),
            Leaf::Many(_) => true,
            Leaf::Throw => false,
        }
    }

    /// The way for this hash, of which the upper 31 bits count; None for [`Leaf::Throw`].
    #[inline]
    pub(super) fn path(&self, hash: impl FnOnce() -> u64) -> Option<&Path> {
        match self {
            Leaf::One(path) => Some(path),
            Leaf::Many(ways) => {
                let hash = (hash() >> 33) as u32;
                // The last bound is the largest hash there is.
                ways.iter().find(|(bound, _)| hash <= *bound).map(|(_, path)| path)
            }
            Leaf::Throw => None,
        }
    }
}

/// `fib_lookup_good_nhc`: a link without carrier is left out only where the administrator asked for it.
fn usable(link: &Link, family: Family) -> bool {
    link.up && (link.carrier || !link.ignore_linkdown[usize::from(family == Family::V6)])
}

/// `ip_dst_mtu_maybe_forward` and `ip6_dst_mtu_maybe_forward`: the route's MTU, else the device's. Linux would send
/// beyond the device's MTU if the route said so; a frame of that size does not leave a port here, so the device's is the
/// limit.
fn mtu(action: &Action, family: Family, link: &Link) -> u16 {
    let device = if family == Family::V6 { link.mtu6.min(link.mtu) } else { link.mtu };
    let mtu = if action.mtu == 0 { device } else { action.mtu.min(link.mtu) };
    let mtu = if family == Family::V6 { mtu.max(MIN_MTU6) } else { mtu };
    mtu.min(MAX_MTU) as u16
}

/// `fib_rebalance`: each way's share of the 31-bit hashes, by weight.
fn bounds(ways: &[(u64, Path)]) -> Arc<[(u32, Path)]> {
    let total: u64 = ways.iter().map(|(weight, _)| weight).sum();
    let mut sum = 0;
    let share = |&(weight, path): &(u64, Path)| {
        sum += weight;
        ((((sum << 31) + total / 2) / total - 1) as u32, path)
    };
    ways.iter().map(share).collect()
}
