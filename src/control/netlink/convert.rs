//! The kernel's messages as the router's values.

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RoutePreference, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::route::{Action, Hop, HostAddress, Kind, Neighbour, Prefix, RouteEntry, Table};
use crate::wire::{Addr, Family, Mac};

/// What a route message is to us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RouteMeaning {
    /// A route of one of the tables that are looked into.
    Entry(RouteEntry),
    /// Nothing: a cache entry, another table, another family.
    Nothing,
    /// A route the router cannot follow; the words say what it is.
    Unsupported(&'static str),
}

const RT_TABLE_DEFAULT: u32 = 253;
const RT_TABLE_MAIN: u32 = 254;
const RT_TABLE_LOCAL: u32 = 255;

/// Reads a route.
pub(super) fn route(message: &RouteMessage) -> RouteMeaning {
    let header = &message.header;
    let family = match header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return RouteMeaning::Nothing,
    };
    let read = Attributes::of(&message.attributes);
    let table = match read.table.unwrap_or(header.table.into()) {
        RT_TABLE_LOCAL => Table::Local,
        RT_TABLE_MAIN => Table::Main,
        RT_TABLE_DEFAULT => Table::Default,
        _ => return RouteMeaning::Nothing,
    };
    if header.flags.contains(RouteFlags::Cloned) {
        return RouteMeaning::Nothing;
    }
    if header.tos != 0 {
        return RouteMeaning::Unsupported("for a type of service");
    }
    if header.source_prefix_length != 0 {
        return RouteMeaning::Unsupported("from a source prefix");
    }
    let kind = match header.kind {
        RouteType::Unicast if read.encapsulates => Kind::Foreign,
        RouteType::Unicast => Kind::Unicast,
        RouteType::Local | RouteType::Anycast => Kind::Local,
        RouteType::Broadcast => Kind::Broadcast,
        RouteType::Multicast => Kind::Multicast,
        RouteType::BlackHole => Kind::Blackhole,
        RouteType::Unreachable => Kind::Unreachable,
        RouteType::Prohibit => Kind::Prohibit,
        RouteType::Throw => Kind::Throw,
        _ => return RouteMeaning::Unsupported("of a type the router does not know"),
    };
    let hops = match kind {
        Kind::Unicast => hops(&read, header.flags.contains(RouteFlags::Dead)),
        _ => Vec::new(),
    };
    // A next-hop object the kernel does not spell out (`nexthop_compat_mode` is 0).
    let kind = if kind == Kind::Unicast && hops.is_empty() { Kind::Foreign } else { kind };
    let first = if family == Family::V4 { Addr::from_v4(0) } else { Addr::ZERO };
    RouteMeaning::Entry(RouteEntry {
        table,
        prefix: Prefix::new(family, read.destination.unwrap_or(first), header.destination_prefix_length),
        metric: read.metric,
        preference: read.preference,
        action: Action { kind, hops: hops.into(), mtu: read.mtu, prefsrc: read.prefsrc },
    })
}

/// The attributes of a route, or of one of its hops.
#[derive(Default)]
struct Attributes<'a> {
    destination: Option<Addr>,
    gateway: Option<Addr>,
    oif: Option<u32>,
    table: Option<u32>,
    metric: u32,
    mtu: u32,
    prefsrc: Option<Addr>,
    preference: u8,
    many: &'a [RouteNextHop],
    encapsulates: bool,
}

impl<'a> Attributes<'a> {
    fn of(attributes: &'a [RouteAttribute]) -> Attributes<'a> {
        let mut read = Attributes::default();
        for attribute in attributes {
            match attribute {
                RouteAttribute::Destination(addr) => read.destination = address(addr),
                RouteAttribute::Gateway(addr) => read.gateway = address(addr),
                RouteAttribute::Via(RouteVia::Inet(addr)) => read.gateway = Some((*addr).into()),
                RouteAttribute::Via(RouteVia::Inet6(addr)) => read.gateway = Some((*addr).into()),
                RouteAttribute::Via(_) | RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => {
                    read.encapsulates = true;
                }
                RouteAttribute::NewDestination(_) => read.encapsulates = true,
                RouteAttribute::Oif(index) => read.oif = Some(*index),
                RouteAttribute::Table(table) => read.table = Some(*table),
                RouteAttribute::Priority(metric) => read.metric = *metric,
                RouteAttribute::PrefSource(addr) => read.prefsrc = address(addr),
                RouteAttribute::Metrics(metrics) => {
                    let mtu =
                        metrics.iter().find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
                    read.mtu = mtu.unwrap_or(0);
                }
                RouteAttribute::Preference(preference) => read.preference = rank(*preference),
                RouteAttribute::MultiPath(hops) => read.many = hops,
                _ => {}
            }
        }
        read.encapsulates |= read.many.iter().any(|hop| Attributes::of(&hop.attributes).encapsulates);
        read
    }
}

/// RFC 4191 section 2.1, as an order: high, medium (also the reserved value), low.
fn rank(preference: RoutePreference) -> u8 {
    match preference {
        RoutePreference::High => 0,
        RoutePreference::Low => 2,
        _ => 1,
    }
}

fn hops(read: &Attributes<'_>, dead: bool) -> Vec<Hop> {
    if let Some(ifindex) = read.oif {
        return vec![Hop { ifindex, gateway: read.gateway, weight: 1, dead }];
    }
    let hop = |hop: &RouteNextHop| Hop {
        ifindex: hop.interface_index,
        gateway: Attributes::of(&hop.attributes).gateway,
        weight: u16::from(hop.hops) + 1,
        dead: hop.flags.contains(RouteNextHopFlags::Dead),
    };
    read.many.iter().map(hop).collect()
}

fn address(addr: &RouteAddress) -> Option<Addr> {
    match addr {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

/// Reads one of the host's addresses.
pub(super) fn host_address(message: &AddressMessage) -> Option<HostAddress> {
    let header = &message.header;
    let family = match header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let (mut local, mut network) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(Addr::from(*addr)),
            AddressAttribute::Address(addr) => network = Some(Addr::from(*addr)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let addr = local.or(network)?;
    let unproven = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    Some(HostAddress {
        addr,
        subnet: Prefix::new(family, network.unwrap_or(addr), header.prefix_len),
        ifindex: header.index,
        scope: header.scope.into(),
        secondary: flags.contains(AddressFlags::Secondary),
        deprecated: flags.contains(AddressFlags::Deprecated),
        tentative: unproven || flags.contains(AddressFlags::Dadfailed),
    })
}

/// A neighbour: interface, address, what is known of it, and whether the kernel would like to see it confirmed (stale).
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(u32, Addr, Neighbour, bool)> {
    let header = &message.header;
    let ours = matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6);
    if !ours || header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut addr, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(it)) => addr = Some(Addr::from(*it)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(it)) => addr = Some(Addr::from(*it)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(Mac),
            _ => {}
        }
    }
    let known = match header.state {
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent
        | NeighbourState::Noarp => mac.map_or(Neighbour::Unknown, Neighbour::Reachable),
        NeighbourState::Failed => Neighbour::Failed,
        _ => Neighbour::Unknown,
    };
    Some((header.ifindex, addr?, known, header.state == NeighbourState::Stale))
}

/// What an `ip rule` says, if it is not one of those the kernel starts with.
pub(super) fn custom_rule(message: &RuleMessage) -> Option<String> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut priority = 0;
    let mut plain = header.src_len == 0 && header.dst_len == 0 && header.tos == 0;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Priority(number) => priority = *number,
            // The kernel sends "no limit" as all ones.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            _ => plain = false,
        }
    }
    let family = if header.family == AddressFamily::Inet6 { "-6 " } else { "" };
    let initial = [(0, RT_TABLE_LOCAL), (32766, RT_TABLE_MAIN), (32767, RT_TABLE_DEFAULT)];
    if plain && header.action == RuleAction::ToTable && initial.contains(&(priority, table)) {
        return None;
    }
    Some(format!("ip {family}rule with priority {priority} (table {table})"))
}
