//! What the control thread hands to the workers: immutable values, published whole, picked up between bursts.
//!
//! [`Policy`] is the rules. [`Routing`] is the kernel's view of links, addresses, routes and neighbours, brought to the
//! router's two ports. It is made by a [`RoutingBuilder`], which the netlink mirror keeps up to date and tests fill by
//! hand. Successive values share what did not change: a new neighbour costs a copy of the neighbours, not of the
//! routes.

use core::fmt;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::device::PortId;
use crate::route::{
    Action, Change, HostAddress, Kind, Link, Neighbour, NeighbourTable, Prefix, ReversePath, Route, RouteEntry,
    RouteTable, SCOPE_UNIVERSE, Table, Tables, select_v4, select_v6,
};
use crate::rules::RuleVector;
use crate::wire::{Addr, Family, Mac};

/// The rules in force, compiled.
#[derive(Debug)]
pub struct Policy {
    /// Larger than that of every earlier value; never 0.
    pub generation: u64,
    /// The chains of a forwarded packet, for IPv4.
    pub v4: RuleVector,
    /// The chains of a forwarded packet, for IPv6.
    pub v6: RuleVector,
}

impl Policy {
    /// Whether connections of either IP version may be translated.
    pub fn translates(&self) -> bool {
        self.v4.translates() || self.v6.translates()
    }

    /// Whether the kernel has the same nat tables, and translates what is for the host.
    pub fn host_translates(&self, family: Family) -> bool {
        let vector = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        vector.host_translates()
    }
}

/// Reverse path filter of a port: the larger of `conf.all.rp_filter` and `conf.PORT.rp_filter`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RpFilter {
    /// 0: off.
    #[default]
    Off,
    /// 1: the way back must leave through the port (RFC 3704 section 2.2).
    Strict,
    /// 2: there must be some way back (RFC 3704 section 2.4).
    Loose,
}

/// One of the router's interfaces.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Port {
    /// Interface name.
    pub name: String,
    /// Interface index; 0 when there is none.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Device MTU in bytes.
    pub mtu: u16,
    /// Administratively up, with a carrier.
    pub up: bool,
    /// Its addresses, in the kernel's order (IPv4: primaries of a scope in order of configuration).
    pub addresses: Vec<HostAddress>,
    /// `rp_filter` (IPv4 only).
    pub rp_filter: RpFilter,
    /// `accept_local`: packets from the host's own addresses may come in (IPv4 only).
    pub accept_local: bool,
}

/// How many losses a [`Routing`] tells of.
pub const LOSSES: usize = 64;

/// An address that a port had and has no longer, be it that it got the same again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The port.
    pub port: PortId,
    /// The address; `None`: all, since the port was taken down (not: lost its carrier).
    pub addr: Option<Addr>,
}

impl Lost {
    /// Whether it is about this address of a port.
    pub fn has(&self, port: PortId, addr: Addr) -> bool {
        self.port == port && self.addr.is_none_or(|lost| lost == addr)
    }
}

/// Whether the kernel forwards as well (`ip_forward`, `ipv6.conf.all.forwarding`): what is passed to it could then leave
/// again around the rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KernelForwarding {
    /// `net.ipv4.ip_forward`.
    pub v4: bool,
    /// `net.ipv6.conf.all.forwarding`.
    pub v6: bool,
}

/// What is wrong with a packet's source address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadSource {
    /// One of the host's own addresses, or a broadcast address: a martian.
    Martian,
    /// The reverse path filter refuses it.
    ReversePath,
}

/// Links, addresses, routes and neighbours, as the kernel has them. See the module's head.
#[derive(Clone)]
pub struct Routing {
    /// Larger than that of every earlier value.
    pub generation: u64,
    /// Number of the ways that packets go: larger than that of every earlier value by which a packet might have gone
    /// another way. A neighbour that is new, or was not reachable before, leaves it as it is.
    pub ways: u64,
    /// The ports, by [`PortId`].
    pub ports: [Port; PortId::COUNT],
    /// All addresses of the host, on whichever interface, in the kernel's order.
    pub addresses: Arc<[HostAddress]>,
    /// Whether the kernel forwards as well.
    pub kernel_forwarding: KernelForwarding,
    /// How many losses there ever were.
    pub lost: u64,
    /// The last [`LOSSES`] of them, oldest first.
    pub losses: Arc<[Lost]>,
    /// The same addresses, sorted.
    local: Arc<[Addr]>,
    tables: Arc<Tables>,
    neighbours: Arc<NeighbourTable>,
}

impl Routing {
    /// The port.
    #[inline]
    pub fn port(&self, port: PortId) -> &Port {
        &self.ports[port.index()]
    }

    /// What becomes of a packet from `src` to `dst`. `src` chooses among the hops of a multipath route.
    #[inline]
    pub fn lookup(&self, family: Family, src: Addr, dst: Addr) -> Route {
        match family {
            Family::V4 if dst.v4_bits() == u32::MAX => Route::Broadcast,
            Family::V4 if dst.v4_bits() >> 28 == 0xe => Route::Multicast,
            Family::V6 if dst.bits() >> 120 == 0xff => Route::Multicast,
            _ => self.tables.lookup(family, src, dst),
        }
    }

    /// What is known of `next_hop` (a route's gateway, else the packet's destination) on `port`.
    #[inline]
    pub fn neighbour(&self, port: PortId, next_hop: Addr) -> Neighbour {
        self.neighbours.get(port, next_hop)
    }

    /// Every neighbour known to be reachable or failed, in no order.
    pub fn neighbours(&self) -> impl Iterator<Item = (PortId, Addr, Neighbour)> + '_ {
        self.neighbours.iter()
    }

    /// Whether `addr` is one of the host's own, on whichever interface.
    #[inline]
    pub fn is_local(&self, addr: Addr) -> bool {
        self.local.binary_search(&addr).is_ok()
    }

    /// The address the kernel would speak with to `next_hop` on `port`: for IPv4 the primary address of its subnet, else
    /// the port's first; for IPv6 by RFC 6724. None when the host has no address that would do.
    pub fn source_address(&self, family: Family, port: PortId, next_hop: Addr) -> Option<Addr> {
        let ifindex = self.port(port).ifindex;
        match family {
            Family::V4 => select_v4(&self.addresses, ifindex, Some(next_hop)),
            Family::V6 => select_v6(&self.addresses, ifindex, next_hop),
        }
    }

    /// The address the kernel would answer `dst` with, whose packet came in by `from`: that of the route there
    /// (`RTA_PREFSRC`), else for IPv4 that of the way out (`fib_result_prefsrc`), for IPv6 that of the way in (`icmp6_send`).
    /// None when no route leads there through a port.
    pub fn source_for(&self, family: Family, dst: Addr, from: PortId) -> Option<Addr> {
        let (route, preferred) = self.tables.lookup_with_source(family, Addr::ZERO, dst);
        let Route::Forward { port, gateway, .. } = route else {
            return preferred.or_else(|| (route == Route::Local).then_some(dst));
        };
        preferred.or_else(|| match family {
            Family::V4 => select_v4(&self.addresses, self.port(port).ifindex, gateway),
            Family::V6 => select_v6(&self.addresses, self.port(from).ifindex, dst),
        })
    }

    /// Whether an IPv4 packet from `src` may come in by `port`, as `fib_validate_source` decides: never from the host's
    /// own address (unless `accept_local`), and by the port's reverse path filter. IPv6 has neither.
    ///
    /// # Errors
    /// What is wrong with it.
    #[inline]
    pub fn check_source(&self, port: PortId, src: Addr) -> Result<(), BadSource> {
        let settings = self.port(port);
        if settings.rp_filter == RpFilter::Off {
            return if self.is_local(src) && !settings.accept_local { Err(BadSource::Martian) } else { Ok(()) };
        }
        match self.tables.reverse_path(Family::V4, src, port) {
            ReversePath::Local if settings.accept_local => {
                // The way back to the host's own address leaves through the interface that has it.
                let here = settings.addresses.iter().any(|own| own.addr == src);
                let loose = settings.rp_filter == RpFilter::Loose && has_v4(settings);
                if here || loose { Ok(()) } else { Err(BadSource::ReversePath) }
            }
            ReversePath::Local | ReversePath::NotUnicast => Err(BadSource::Martian),
            ReversePath::SamePort => Ok(()),
            // A port without an IPv4 address takes only what is routed back through it.
            ReversePath::OtherPort if settings.rp_filter == RpFilter::Loose && has_v4(settings) => Ok(()),
            ReversePath::OtherPort | ReversePath::None => Err(BadSource::ReversePath),
        }
    }

    /// Whether there is a way back to `src` through `port`, or with `loose` through anything (`rpfilter_lookup_reverse`). To the
    /// host's own addresses there is one only with `accept_local`.
    pub fn has_way_back(&self, family: Family, port: PortId, src: Addr, loose: bool, accept_local: bool) -> bool {
        match self.tables.reverse_path(family, src, port) {
            ReversePath::SamePort => true,
            ReversePath::OtherPort => loose,
            ReversePath::Local => {
                let here = self.port(port).addresses.iter().any(|own| own.addr == src);
                accept_local && (here || loose)
            }
            ReversePath::NotUnicast | ReversePath::None => false,
        }
    }

    /// The compiled routes.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Whether both share the same compiled routes, so that only ports, addresses or neighbours may differ.
    pub fn same_routes(&self, other: &Routing) -> bool {
        Arc::ptr_eq(&self.tables, &other.tables)
    }

    /// Whether nothing but neighbours may differ.
    fn same_but_neighbours(&self, other: &Routing) -> bool {
        self.same_routes(other)
            && self.ports == other.ports
            && self.addresses == other.addresses
            && self.kernel_forwarding == other.kernel_forwarding
    }
}

fn has_v4(port: &Port) -> bool {
    port.addresses.iter().any(|a| a.family() == Family::V4)
}

impl fmt::Debug for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (v4, v6) = self.tables.len();
        write!(f, "Routing(generation {}, {v4} + {v6} prefixes, {:?})", self.generation, self.neighbours)
    }
}

/// Makes [`Routing`] values, one after another, of what it has been told so far.
///
/// The `add_` functions are the convenient ones, for tests and the simulator; the mirror uses the plain ones below.
///
/// ```
/// use std::net::Ipv4Addr;
/// use xrouter::device::PortId;
/// use xrouter::route::{Neighbour, Route};
/// use xrouter::snapshot::RoutingBuilder;
/// use xrouter::wire::{Addr, Family, Mac};
///
/// let gateway = Addr::from(Ipv4Addr::new(192, 0, 2, 254));
/// let routing = RoutingBuilder::new()
///     .add_port(PortId::LAN, "lan0", Mac([2, 0, 0, 0, 0, 1]), 1500)
///     .add_port(PortId::WAN, "wan0", Mac([2, 0, 0, 0, 0, 2]), 1500)
///     .add_address(PortId::LAN, [10, 0, 0, 1], 24)
///     .add_address(PortId::WAN, [192, 0, 2, 1], 24)
///     .add_route("0.0.0.0/0".parse().expect("a prefix"), PortId::WAN, Some(gateway))
///     .add_neighbour(PortId::WAN, gateway, Mac([2, 0, 0, 0, 0, 9]))
///     .build();
/// let (src, dst) = (Addr::from(Ipv4Addr::new(10, 0, 0, 9)), Addr::from(Ipv4Addr::new(198, 51, 100, 1)));
/// let route = routing.lookup(Family::V4, src, dst);
/// assert_eq!(route, Route::Forward { port: PortId::WAN, gateway: Some(gateway), mtu: 1500 });
/// assert_eq!(routing.neighbour(PortId::WAN, gateway), Neighbour::Reachable(Mac([2, 0, 0, 0, 0, 9])));
/// ```
#[derive(Debug, Default)]
pub struct RoutingBuilder {
    generation: u64,
    /// [`Routing::ways`] of the next value, unless more than neighbours changes.
    ways: u64,
    /// The value built last, neighbours aside.
    last: Option<Routing>,
    secret: [u64; 2],
    ports: [Port; PortId::COUNT],
    links: BTreeMap<u32, Link>,
    addresses: Vec<HostAddress>,
    routes: RouteTable,
    neighbours: BTreeMap<(PortId, Addr), Neighbour>,
    kernel_forwarding: KernelForwarding,
    lost: u64,
    losses: Vec<Lost>,
    /// What was compiled last, while it still holds.
    tables: Option<Arc<Tables>>,
    known: Option<Arc<NeighbourTable>>,
    local: Option<SharedAddresses>,
}

impl RoutingBuilder {
    /// Without ports, addresses, routes or neighbours; hashes are keyed with zero.
    pub fn new() -> RoutingBuilder {
        RoutingBuilder::default()
    }

    /// The same with hashes keyed by `secret`, which those on the links must not know.
    pub fn with_secret(secret: [u64; 2]) -> RoutingBuilder {
        RoutingBuilder { secret, ..RoutingBuilder::default() }
    }

    /// A port that is up; its interface index is 2 for the LAN, 3 for the WAN.
    pub fn add_port(&mut self, id: PortId, name: &str, mac: Mac, mtu: u16) -> &mut RoutingBuilder {
        let ifindex = 2 + u32::from(id.0);
        let mtu32 = u32::from(mtu);
        let link =
            Link { port: Some(id), mtu: mtu32, mtu6: mtu32, up: true, carrier: true, ignore_linkdown: [false; 2] };
        self.set_link(ifindex, Some(link));
        self.set_port(id, Port { name: name.to_owned(), ifindex, mac, mtu, up: true, ..Port::default() });
        self
    }

    /// An address on a port, with the routes that the kernel makes for it: the address itself, its network, and for IPv4
    /// the broadcast address, for IPv6 the subnet-router anycast address.
    pub fn add_address(&mut self, port: PortId, addr: impl Into<IpAddr>, len: u8) -> &mut RoutingBuilder {
        let addr: IpAddr = addr.into();
        let family = if addr.is_ipv4() { Family::V4 } else { Family::V6 };
        let (addr, ifindex) = (Addr::from(addr), self.ports[port.index()].ifindex);
        let subnet = Prefix::new(family, addr, len);
        let secondary = family == Family::V4
            && self.addresses.iter().any(|other| other.ifindex == ifindex && other.subnet == subnet);
        let mut addresses = self.addresses.clone();
        let scope = SCOPE_UNIVERSE;
        addresses.push(HostAddress { addr, subnet, ifindex, scope, secondary, deprecated: false, tentative: false });
        self.set_addresses(addresses);
        let mut entry = |table, prefix, metric, action| {
            self.put_route(RouteEntry { table, prefix, metric, preference: 0, action }, true);
        };
        entry(Table::Local, Prefix::host(family, addr), 0, Action::of(Kind::Local));
        if len >= family.bits() {
            return self;
        }
        match family {
            Family::V4 => {
                if len < 31 {
                    entry(Table::Local, Prefix::host(family, subnet.last()), 0, Action::of(Kind::Broadcast));
                }
                if !secondary {
                    let action = Action { prefsrc: Some(addr), ..Action::unicast(ifindex, None) };
                    entry(Table::Main, subnet, 0, action);
                }
            }
            Family::V6 => {
                if len < 127 {
                    entry(Table::Local, Prefix::host(family, subnet.addr()), 0, Action::of(Kind::Local));
                }
                entry(Table::Main, subnet, 256, Action::unicast(ifindex, None));
            }
        }
        self
    }

    /// A route through a port, to a gateway or directly, in place of any before it for this prefix (metric 0).
    pub fn add_route(&mut self, prefix: Prefix, port: PortId, gateway: Option<Addr>) -> &mut RoutingBuilder {
        let action = Action::unicast(self.ports[port.index()].ifindex, gateway);
        self.put_route(RouteEntry { table: Table::Main, prefix, metric: 0, preference: 0, action }, true);
        self
    }

    /// A route of another type (`unreachable`, `prohibit`, `blackhole`, ...), in place of any before it for this prefix.
    pub fn add_special_route(&mut self, prefix: Prefix, kind: Kind) -> &mut RoutingBuilder {
        let action = Action::of(kind);
        self.put_route(RouteEntry { table: Table::Main, prefix, metric: 0, preference: 0, action }, true);
        self
    }

    /// A route through an interface that is not one of the ports, in place of any before it for this prefix.
    pub fn add_route_elsewhere(&mut self, prefix: Prefix) -> &mut RoutingBuilder {
        self.add_special_route(prefix, Kind::Foreign)
    }

    /// A neighbour that answered.
    pub fn add_neighbour(&mut self, port: PortId, next_hop: Addr, mac: Mac) -> &mut RoutingBuilder {
        self.set_neighbour(port, next_hop, Neighbour::Reachable(mac));
        self
    }

    /// All of a port but its addresses, which come from [`RoutingBuilder::set_addresses`].
    pub fn set_port(&mut self, id: PortId, port: Port) {
        self.ports[id.index()] = port;
        self.give_addresses_to_ports();
    }

    /// The ports as told so far.
    pub fn ports(&self) -> &[Port; PortId::COUNT] {
        &self.ports
    }

    /// What an interface is like now; None when it is gone. Returns whether that is different from before.
    pub fn set_link(&mut self, ifindex: u32, link: Option<Link>) -> bool {
        let before = match link {
            Some(link) => self.links.insert(ifindex, link),
            None => self.links.remove(&ifindex),
        };
        let changed = before != link;
        if changed {
            self.tables = None;
        }
        if let Some(Link { port: Some(port), up: true, .. }) = before
            && link.is_none_or(|link| !link.up)
        {
            self.lose(Lost { port, addr: None });
        }
        changed
    }

    /// A port has lost an address, or all. What [`RoutingBuilder::set_addresses`] and [`RoutingBuilder::set_link`] are told they
    /// see themselves; what came back in between has to be said.
    pub fn lose(&mut self, lost: Lost) {
        self.lost += 1;
        if self.losses.len() == LOSSES {
            self.losses.remove(0);
        }
        self.losses.push(lost);
    }

    /// What an interface is like.
    pub fn link(&self, ifindex: u32) -> Option<Link> {
        self.links.get(&ifindex).copied()
    }

    /// All interfaces.
    pub fn links(&self) -> impl Iterator<Item = (u32, Link)> + '_ {
        self.links.iter().map(|(&ifindex, &link)| (ifindex, link))
    }

    /// All addresses of the host, in the kernel's order.
    pub fn set_addresses(&mut self, addresses: Vec<HostAddress>) {
        if self.addresses != addresses {
            let stays =
                |gone: &&HostAddress| addresses.iter().any(|it| (it.ifindex, it.addr) == (gone.ifindex, gone.addr));
            let gone: Vec<Lost> = (self.addresses.iter().filter(|before| !stays(before)))
                .filter_map(|gone| {
                    let port = PortId::ALL.into_iter().find(|id| self.ports[id.index()].ifindex == gone.ifindex)?;
                    Some(Lost { port, addr: Some(gone.addr) })
                })
                .collect();
            gone.into_iter().for_each(|lost| self.lose(lost));
            self.addresses = addresses;
            self.local = None;
            self.give_addresses_to_ports();
        }
    }

    /// All addresses of the host.
    pub fn addresses(&self) -> &[HostAddress] {
        &self.addresses
    }

    fn give_addresses_to_ports(&mut self) {
        for port in &mut self.ports {
            port.addresses = self.addresses.iter().filter(|a| a.ifindex == port.ifindex).copied().collect();
        }
    }

    /// The kernel's forwarding switches. Returns whether they are different from before.
    pub fn set_kernel_forwarding(&mut self, forwarding: KernelForwarding) -> bool {
        std::mem::replace(&mut self.kernel_forwarding, forwarding) != forwarding
    }

    /// All routes anew, in the kernel's order.
    pub fn set_routes(&mut self, routes: RouteTable) {
        self.routes = routes;
        self.tables = None;
    }

    /// A route is there now; see [`RouteTable::put`].
    pub fn put_route(&mut self, route: RouteEntry, replace: bool) -> Change {
        let change = self.routes.put(route, replace);
        if change == Change::Changed {
            self.tables = None;
        }
        change
    }

    /// A route is gone; see [`RouteTable::remove`].
    pub fn remove_route(&mut self, route: &RouteEntry) -> Change {
        let change = self.routes.remove(route);
        if change == Change::Changed {
            self.tables = None;
        }
        change
    }

    /// The routes as told so far.
    pub fn routes(&self) -> &RouteTable {
        &self.routes
    }

    /// What is known of a neighbour now. Returns what was known before, if that was something else.
    pub fn set_neighbour(&mut self, port: PortId, next_hop: Addr, neighbour: Neighbour) -> Option<Neighbour> {
        let before = match neighbour {
            Neighbour::Unknown => self.neighbours.remove(&(port, next_hop)),
            known => self.neighbours.insert((port, next_hop), known),
        }
        .unwrap_or(Neighbour::Unknown);
        if before == neighbour {
            return None;
        }
        self.known = None;
        self.ways += u64::from(matches!(before, Neighbour::Reachable(_)));
        Some(before)
    }

    /// Forgets all neighbours.
    pub fn clear_neighbours(&mut self) {
        self.ways += 1;
        self.neighbours.clear();
        self.known = None;
    }

    /// Whether the next [`RoutingBuilder::build`] has to compile the routes.
    pub fn routes_changed(&self) -> bool {
        self.tables.is_none()
    }

    /// `last` with the neighbours as told so far and nothing else new: what a waiting packet needs, at once.
    ///
    /// # Panics
    /// When `last` has other routes than the value built last: its ways would be told by the wrong number.
    pub fn build_neighbours(&mut self, last: &Routing) -> Routing {
        assert!(self.last.as_ref().is_some_and(|built| built.same_but_neighbours(last)), "not the value built last");
        self.generation += 1;
        Routing { generation: self.generation, ways: self.ways, neighbours: self.neighbour_table(), ..last.clone() }
    }

    fn neighbour_table(&mut self) -> Arc<NeighbourTable> {
        let list = self.neighbours.iter().map(|(&(port, next_hop), &neighbour)| (port, next_hop, neighbour));
        self.known.get_or_insert_with(|| Arc::new(NeighbourTable::build(self.secret, list))).clone()
    }

    /// A value of what has been told so far; what did not change since the last is shared with it.
    pub fn build(&mut self) -> Routing {
        self.generation += 1;
        let (links, routes, secret) = (&self.links, &self.routes, self.secret);
        let compile = || Arc::new(routes.compile(|ifindex| links.get(&ifindex).copied(), secret));
        let tables = self.tables.get_or_insert_with(compile).clone();
        let neighbours = self.neighbour_table();
        let (addresses, local) = self.local.get_or_insert_with(|| sorted(&self.addresses)).clone();
        let mut routing = Routing {
            generation: self.generation,
            ways: self.ways,
            ports: self.ports.clone(),
            addresses,
            kernel_forwarding: self.kernel_forwarding,
            lost: self.lost,
            losses: self.losses.as_slice().into(),
            local,
            tables,
            neighbours,
        };
        if !self.last.as_ref().is_some_and(|last| last.same_but_neighbours(&routing)) {
            self.ways += 1;
            routing.ways = self.ways;
        }
        self.last = Some(routing.clone());
        routing
    }
}

/// Addresses as they are, and sorted.
type SharedAddresses = (Arc<[HostAddress]>, Arc<[Addr]>);

/// The addresses as they are, and sorted for [`Routing::is_local`].
fn sorted(addresses: &[HostAddress]) -> SharedAddresses {
    let mut local: Vec<Addr> = addresses.iter().map(|a| a.addr).collect();
    local.sort_unstable();
    local.dedup();
    (addresses.into(), local.into())
}

#[cfg(test)]
mod tests;
