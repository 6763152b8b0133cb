//! [`Mirror`]: the kernel's links, addresses, routes and neighbours as heard, and what has to be done about a change.
//!
//! No sockets and no clock here: messages go in, and [`Due`] says what has to be read again or published. What the
//! kernel does without a word, and what is therefore read again:
//! - IPv4 routes that go when a link goes down or an address is removed (`fib_flush` does not notify), and the dead flags
//!   of a multipath route's hops: all routes, some time after the change.
//! - The order of addresses, and secondaries that become primary: all addresses.
//! - What is to become of several routes of one prefix and metric: see [`Change::Ambiguous`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use netlink_packet_core::NLM_F_REPLACE;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::convert::{self, RouteMeaning};
use super::socket::Dumped;
use super::{Error, Event, sysctl};
use crate::device::PortId;
use crate::route::{Change, HostAddress, Kind, Link, Neighbour, RouteEntry, RouteTable};
use crate::snapshot::{Lost, Port, RoutingBuilder};
use crate::wire::{Addr, Mac};

/// What has to be done because of what was heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Due {
    /// Read all addresses again.
    pub(super) addresses: bool,
    /// Read all rules again.
    pub(super) rules: bool,
    /// Read the settings in `/proc/sys` again.
    pub(super) settings: bool,
    /// And after a while.
    pub(super) settings_later: bool,
    /// Read all routes again.
    pub(super) routes: bool,
    /// And once more after a while: the change the kernel told of may still be under way.
    pub(super) routes_twice: bool,
    /// Read everything again: messages were lost.
    pub(super) everything: bool,
    /// Publish, soon.
    pub(super) publish: bool,
    /// Publish the neighbours, at once: packets may be waiting.
    pub(super) neighbours: bool,
}

impl std::ops::BitOr for Due {
    type Output = Due;

    fn bitor(self, other: Due) -> Due {
        Due {
            addresses: self.addresses | other.addresses,
            rules: self.rules | other.rules,
            settings: self.settings | other.settings,
            settings_later: self.settings_later | other.settings_later,
            routes: self.routes | other.routes,
            routes_twice: self.routes_twice | other.routes_twice,
            everything: self.everything | other.everything,
            publish: self.publish | other.publish,
            neighbours: self.neighbours | other.neighbours,
        }
    }
}

/// All that the kernel can be asked for, but routes, which may be many.
#[derive(Debug, Default)]
pub(super) struct Everything {
    pub(super) links: Vec<LinkMessage>,
    pub(super) addresses: Vec<HostAddress>,
    pub(super) neighbours: Vec<NeighbourMessage>,
    pub(super) rules: Vec<String>,
}

/// Routes as read in one go.
#[derive(Debug, Default)]
pub(super) struct RoutesRead {
    pub(super) table: RouteTable,
    /// What could not be followed: what it is, and the first such route.
    pub(super) unsupported: BTreeMap<&'static str, String>,
}

impl RoutesRead {
    pub(super) fn add(&mut self, message: &RouteMessage) {
        match convert::route(message) {
            RouteMeaning::Entry(route) => {
                if route.action.kind == Kind::Foreign {
                    self.unsupported.entry(FOREIGN).or_insert_with(|| route.prefix.to_string());
                }
                self.table.append(route);
            }
            RouteMeaning::Unsupported(what) => {
                self.unsupported.entry(what).or_insert_with(|| in_words(message));
            }
            RouteMeaning::Nothing => {}
        }
    }
}

/// A route by its destination, for a warning.
fn in_words(message: &RouteMessage) -> String {
    use netlink_packet_route::route::{RouteAddress, RouteAttribute};
    let len = message.header.destination_prefix_length;
    let addr = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(addr.to_string()),
        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(addr.to_string()),
        _ => None,
    });
    addr.map_or_else(|| "default".to_owned(), |addr| format!("{addr}/{len}"))
}

const FOREIGN: &str = "through an encapsulation or a next-hop object the router has no means for";

/// A route that came or went.
#[derive(Debug)]
enum RouteHeard {
    New(RouteEntry, bool),
    Gone(RouteEntry),
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) builder: RoutingBuilder,
    names: [String; PortId::COUNT],
    /// Neighbours the kernel has not heard from for a while, and when it was last asked to confirm each.
    stale: HashMap<(PortId, Addr), Option<Instant>>,
    /// Warnings already given.
    warned: BTreeSet<String>,
    /// Route changes heard since a dump of the routes began: they have to be repeated on what it brings.
    since_dump: Option<Vec<RouteHeard>>,
    pub(super) due: Due,
    pub(super) events: Vec<Event>,
}

/// What is read of a link message.
struct LinkRead {
    name: String,
    mac: Mac,
    mtu: u32,
    up: bool,
    carrier: bool,
    ethernet: bool,
}

impl LinkRead {
    fn of(message: &LinkMessage) -> LinkRead {
        let flags = message.header.flags;
        let mut read = LinkRead {
            name: String::new(),
            mac: Mac::default(),
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => read.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => read.mtu = *mtu,
                LinkAttribute::Address(bytes) => {
                    read.mac = <[u8; 6]>::try_from(&bytes[..]).map(Mac).unwrap_or_default();
                }
                _ => {}
            }
        }
        read
    }
}

impl Mirror {
    /// A mirror for these two interfaces, filled for the first time.
    pub(super) fn new(names: [&str; PortId::COUNT], secret: [u64; 2], everything: Everything) -> Result<Mirror, Error> {
        let mut mirror = Mirror {
            builder: RoutingBuilder::with_secret(secret),
            names: names.map(str::to_owned),
            stale: HashMap::new(),
            warned: BTreeSet::new(),
            since_dump: None,
            due: Due::default(),
            events: Vec::new(),
        };
        mirror.find_ports(&everything.links)?;
        mirror.load(everything);
        mirror.events.retain(|event| matches!(event, Event::Warning(_)));
        Ok(mirror)
    }

    /// Finds the ports' interface indices by name.
    fn find_ports(&mut self, links: &[LinkMessage]) -> Result<(), Error> {
        for id in PortId::ALL {
            let name = &self.names[id.index()];
            let found = links.iter().find(|link| LinkRead::of(link).name == *name);
            let Some(link) = found else {
                let have = links.iter().map(|link| LinkRead::of(link).name).collect();
                return Err(Error::NoInterface { name: name.clone(), have });
            };
            if !LinkRead::of(link).ethernet {
                return Err(Error::NotEthernet { name: name.clone() });
            }
            self.builder.set_port(id, Port { name: name.clone(), ifindex: link.header.index, ..Port::default() });
        }
        Ok(())
    }

    /// Takes over all that was read, in place of all that was known. Routes stay, and have to be read afterwards.
    pub(super) fn load(&mut self, everything: Everything) {
        let mut gone: BTreeSet<u32> = self.builder.links().map(|(ifindex, _)| ifindex).collect();
        for message in &everything.links {
            gone.remove(&message.header.index);
            self.link(message);
        }
        for ifindex in gone {
            self.link_gone(ifindex);
        }
        self.set_addresses(everything.addresses);
        self.builder.clear_neighbours();
        self.stale.clear();
        for message in &everything.neighbours {
            self.neighbour(message, true);
        }
        self.set_rules(everything.rules);
        self.settings();
        self.due = Due { publish: true, neighbours: false, ..Due::default() };
    }

    /// A message heard; `flags` are its header's.
    pub(super) fn hear(&mut self, message: RouteNetlinkMessage, flags: u16) {
        match message {
            RouteNetlinkMessage::NewLink(link) => match link.header.interface_family {
                AddressFamily::Unspec => self.link(&link),
                AddressFamily::Inet6 => self.due.settings = true,
                _ => {}
            },
            RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                self.link_gone(link.header.index);
            }
            RouteNetlinkMessage::NewAddress(_) => self.due.addresses = true,
            RouteNetlinkMessage::DelAddress(address) => {
                self.due.addresses = true;
                self.read_routes_twice();
                // It may be back by the time that all are read.
                if let Some(port) = self.port_of(address.header.index)
                    && let Some(addr) = convert::host_address(&address).map(|address| address.addr)
                {
                    self.builder.lose(Lost { port, addr: Some(addr) });
                    self.due.publish = true;
                }
            }
            RouteNetlinkMessage::NewRoute(route) => self.route(&route, true, flags & NLM_F_REPLACE != 0),
            RouteNetlinkMessage::DelRoute(route) => self.route(&route, false, false),
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.neighbour(&neighbour, true),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.neighbour(&neighbour, false),
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => self.due.rules = true,
            _ => {}
        }
    }

    /// Warns, once per text.
    pub(super) fn warn(&mut self, text: String) {
        if self.warned.insert(text.clone()) {
            self.events.push(Event::Warning(text));
        }
    }

    fn read_routes_twice(&mut self) {
        self.due.routes = true;
        self.due.routes_twice = true;
    }

    /// The port that an interface is.
    pub(super) fn port_of(&self, ifindex: u32) -> Option<PortId> {
        PortId::ALL.into_iter().find(|id| self.builder.ports()[id.index()].ifindex == ifindex && ifindex != 0)
    }

    fn link(&mut self, message: &LinkMessage) {
        let ifindex = message.header.index;
        let read = LinkRead::of(message);
        let port = self.port_of(ifindex);
        let before = self.builder.link(ifindex);
        let mtu6 = port.and_then(|_| sysctl::ipv6_mtu(&read.name)).unwrap_or(read.mtu);
        let ignore_linkdown = port.map_or([false; 2], |_| sysctl::ignore_linkdown(&read.name));
        let LinkRead { mtu, up, carrier, .. } = read;
        let link = match port {
            Some(_) => Link { port, mtu, mtu6, up, carrier, ignore_linkdown },
            // Of others it only matters that they are there and up; the rest need not compile the routes again.
            None => Link { port, mtu: 0, mtu6: 0, up, carrier: true, ignore_linkdown },
        };
        if self.builder.set_link(ifindex, Some(link)) {
            self.due.publish = true;
        }
        if before.is_some_and(|before| before.up != up) {
            self.read_routes_twice();
        }
        if let Some(id) = port {
            // The kernel tells of a new MTU before it sets the one for IPv6.
            self.due.settings_later = true;
            self.port(id, &read);
        }
    }

    /// Brings a port up to date and tells what changed.
    fn port(&mut self, id: PortId, read: &LinkRead) {
        let before = self.builder.ports()[id.index()].clone();
        let mtu = u16::try_from(read.mtu).unwrap_or(u16::MAX);
        let now = Port { mac: read.mac, mtu, up: read.up && read.carrier, ..before.clone() };
        if now == before {
            return;
        }
        self.due.publish = true;
        if now.up != before.up {
            self.events.push(if now.up { Event::PortUp(id) } else { Event::PortDown(id) });
        }
        if now.mac != before.mac {
            self.events.push(Event::PortMac(id));
        }
        if now.mtu != before.mtu {
            self.events.push(Event::PortMtu(id));
        }
        self.builder.set_port(id, now);
    }

    fn link_gone(&mut self, ifindex: u32) {
        if let Some(id) = self.port_of(ifindex) {
            let before = &self.builder.ports()[id.index()];
            let gone = Port { name: before.name.clone(), ..Port::default() };
            self.builder.set_port(id, gone);
            self.events.push(Event::PortGone(id));
        }
        if self.builder.set_link(ifindex, None) {
            self.due.publish = true;
            self.due.addresses = true;
            self.read_routes_twice();
        }
    }

    /// All addresses, as read.
    pub(super) fn set_addresses(&mut self, addresses: Vec<HostAddress>) {
        if self.builder.addresses() != addresses {
            self.builder.set_addresses(addresses);
            self.events.push(Event::Addresses);
            self.due.publish = true;
        }
    }

    /// What the rules beyond the kernel's own say.
    pub(super) fn set_rules(&mut self, rules: Vec<String>) {
        for rule in rules {
            self.warn(format!("{rule}: policy routing is not followed; only tables local, main and default are"));
        }
    }

    /// Reads the settings again.
    pub(super) fn settings(&mut self) {
        let mut changed = self.builder.set_kernel_forwarding(sysctl::kernel_forwarding());
        for id in PortId::ALL {
            let before = self.builder.ports()[id.index()].clone();
            let name = &before.name;
            if let Some(link) = self.builder.link(before.ifindex) {
                let mtu6 = sysctl::ipv6_mtu(name).unwrap_or(link.mtu);
                let ignore_linkdown = sysctl::ignore_linkdown(name);
                changed |= self.builder.set_link(before.ifindex, Some(Link { mtu6, ignore_linkdown, ..link }));
            }
            let (rp_filter, accept_local) = (sysctl::rp_filter(name), sysctl::accept_local(name));
            let now = Port { rp_filter, accept_local, ..before.clone() };
            if now != before {
                self.builder.set_port(id, now);
                changed = true;
            }
        }
        self.due.publish |= changed;
    }

    fn route(&mut self, message: &RouteMessage, new: bool, replace: bool) {
        let route = match convert::route(message) {
            RouteMeaning::Entry(route) => route,
            RouteMeaning::Nothing => return,
            RouteMeaning::Unsupported(what) => {
                if new {
                    self.warn_unsupported(what, &in_words(message));
                }
                return;
            }
        };
        if new && route.action.kind == Kind::Foreign {
            self.warn_unsupported(FOREIGN, &route.prefix.to_string());
        }
        let heard = if new { RouteHeard::New(route, replace) } else { RouteHeard::Gone(route) };
        self.apply(&heard);
        if let Some(since) = &mut self.since_dump {
            since.push(heard);
        }
    }

    fn apply(&mut self, heard: &RouteHeard) {
        let change = match heard {
            RouteHeard::New(route, replace) => self.builder.put_route(route.clone(), *replace),
            RouteHeard::Gone(route) => self.builder.remove_route(route),
        };
        match change {
            Change::Same => {}
            Change::Changed => self.due.publish = true,
            Change::Ambiguous => self.due.routes = true,
        }
    }

    fn warn_unsupported(&mut self, what: &'static str, first: &str) {
        // One warning per kind: the text of the first would differ from that of the next.
        if self.warned.insert(what.to_owned()) {
            let text = format!("routes {what} are not followed; the first is {first}");
            self.events.push(Event::Warning(text));
        }
    }

    /// A dump of the routes begins now; changes heard until [`Mirror::set_routes`] are repeated on what it brings.
    pub(super) fn routes_dump_begins(&mut self) {
        self.since_dump = Some(Vec::new());
    }

    /// All routes, as read.
    pub(super) fn set_routes(&mut self, read: RoutesRead) {
        self.builder.set_routes(read.table);
        for (what, first) in read.unsupported {
            self.warn_unsupported(what, &first);
        }
        for heard in self.since_dump.take().unwrap_or_default() {
            self.apply(&heard);
        }
        self.due.publish = true;
    }

    /// What is to be said of a dump of the routes, and done about it.
    pub(super) fn mind(&mut self, dumped: Dumped) {
        if let Some(what) = dumped.unreadable {
            self.warn(format!("a route could not be read: {what}"));
        }
        self.due.routes_twice |= dumped.interrupted;
    }

    fn neighbour(&mut self, message: &NeighbourMessage, there: bool) {
        let Some((ifindex, addr, mut known, stale)) = convert::neighbour(message) else { return };
        let Some(port) = self.port_of(ifindex) else { return };
        if !there {
            known = Neighbour::Unknown;
        }
        if there && stale {
            self.stale.entry((port, addr)).or_insert(None);
        } else {
            self.stale.remove(&(port, addr));
        }
        match self.builder.set_neighbour(port, addr, known) {
            None => {}
            Some(_) if known == Neighbour::Unknown => self.due.publish = true,
            Some(_) => self.due.neighbours = true,
        }
    }

    /// Whether a next hop that is in use should be confirmed now: it is stale, and `patience` has passed since it was last
    /// asked for. Then the asking counts as done.
    pub(super) fn confirm(&mut self, port: PortId, addr: Addr, now: Instant, patience: std::time::Duration) -> bool {
        let Some(asked) = self.stale.get_mut(&(port, addr)) else { return false };
        if asked.is_some_and(|then| now.saturating_duration_since(then) < patience) {
            return false;
        }
        *asked = Some(now);
        true
    }
}

#[cfg(test)]
mod tests;
