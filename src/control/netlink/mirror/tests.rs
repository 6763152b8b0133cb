use super::*;
use crate::route::Route;
use crate::wire::Family;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RoutePreference, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use std::net::Ipv4Addr;
use std::time::Duration;

const LAN_INDEX: u32 = 4000;
const WAN_INDEX: u32 = 4001;

fn link(ifindex: u32, name: &str, up: bool) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.link_layer_type = LinkLayerType::Ether;
    if up {
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    }
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(1500),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, ifindex as u8]),
    ];
    message
}

fn mirror() -> Mirror {
    let links = vec![link(LAN_INDEX, "xrtest0", true), link(WAN_INDEX, "xrtest1", true)];
    let everything = Everything { links, ..Everything::default() };
    let mut mirror = Mirror::new(["xrtest0", "xrtest1"], [1, 2], everything).expect("both are there");
    mirror.due = Due::default();
    mirror
}

fn route_to(dst: [u8; 4], len: u8, gateway: [u8; 4]) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: len,
        table: 254,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(Ipv4Addr::from(dst).into()),
        RouteAttribute::Gateway(Ipv4Addr::from(gateway).into()),
        RouteAttribute::Oif(WAN_INDEX),
    ];
    message
}

fn lookup(mirror: &mut Mirror, dst: [u8; 4]) -> Route {
    mirror.builder.build().lookup(Family::V4, Addr::from_v4(0), Ipv4Addr::from(dst).into())
}

fn through(gateway: [u8; 4]) -> Route {
    Route::Forward { port: PortId::WAN, gateway: Some(Ipv4Addr::from(gateway).into()), mtu: 1500 }
}

#[test]
fn routes_come_are_replaced_and_go() {
    let mut mirror = mirror();
    mirror.hear(RouteNetlinkMessage::NewRoute(route_to([20, 0, 0, 0], 8, [10, 0, 0, 2])), 0);
    assert!(mirror.due.publish);
    assert_eq!(lookup(&mut mirror, [20, 1, 1, 1]), through([10, 0, 0, 2]));
    mirror.hear(RouteNetlinkMessage::NewRoute(route_to([20, 0, 0, 0], 8, [10, 0, 0, 3])), NLM_F_REPLACE);
    assert_eq!(lookup(&mut mirror, [20, 1, 1, 1]), through([10, 0, 0, 3]));
    mirror.hear(RouteNetlinkMessage::DelRoute(route_to([20, 0, 0, 0], 8, [10, 0, 0, 3])), 0);
    assert_eq!(lookup(&mut mirror, [20, 1, 1, 1]), Route::NoRoute);
    assert!(!mirror.due.routes);
    mirror.hear(RouteNetlinkMessage::NewRoute(route_to([20, 0, 0, 0], 8, [10, 0, 0, 2])), 0);
    mirror.hear(RouteNetlinkMessage::NewRoute(route_to([20, 0, 0, 0], 8, [10, 0, 0, 3])), 0);
    assert!(mirror.due.routes, "which of the two goes first only the kernel knows");
}

#[test]
fn changes_heard_during_a_dump_are_repeated_on_what_it_brings() {
    let mut mirror = mirror();
    mirror.hear(RouteNetlinkMessage::NewRoute(route_to([20, 0, 0, 0], 8, [10, 0, 0, 2])), 0);
    mirror.routes_dump_begins();
    let mut read = RoutesRead::default();
    read.add(&route_to([20, 0, 0, 0], 8, [10, 0, 0, 2]));
    mirror.hear(RouteNetlinkMessage::DelRoute(route_to([20, 0, 0, 0], 8, [10, 0, 0, 2])), 0);
    mirror.hear(RouteNetlinkMessage::NewRoute(route_to([30, 0, 0, 0], 8, [10, 0, 0, 2])), 0);
    mirror.set_routes(read);
    assert_eq!(lookup(&mut mirror, [20, 1, 1, 1]), Route::NoRoute);
    assert_eq!(lookup(&mut mirror, [30, 1, 1, 1]), through([10, 0, 0, 2]));
}

#[test]
fn a_link_that_goes_down_has_the_routes_read_twice() {
    let mut mirror = mirror();
    mirror.hear(RouteNetlinkMessage::NewLink(link(LAN_INDEX, "xrtest0", false)), 0);
    assert!(mirror.due.routes && mirror.due.routes_twice && mirror.due.publish);
    assert_eq!(mirror.events, [Event::PortDown(PortId::LAN)]);
    // A message about the same interface as a bridge's member says nothing of the link itself.
    let mut member = link(WAN_INDEX, "xrtest1", false);
    member.header.interface_family = AddressFamily::Bridge;
    mirror.hear(RouteNetlinkMessage::DelLink(member), 0);
    assert_eq!(mirror.events.len(), 1);
    mirror.hear(RouteNetlinkMessage::DelLink(link(WAN_INDEX, "xrtest1", false)), 0);
    assert_eq!(mirror.events.last(), Some(&Event::PortGone(PortId::WAN)));
}

#[test]
fn stale_neighbours_are_confirmed_now_and_then() {
    use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourState};
    let mut mirror = mirror();
    let hop = Ipv4Addr::new(192, 0, 2, 9);
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = WAN_INDEX;
    message.header.state = NeighbourState::Stale;
    message.attributes =
        vec![NeighbourAttribute::Destination(hop.into()), NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9])];
    mirror.hear(RouteNetlinkMessage::NewNeighbour(message.clone()), 0);
    assert!(mirror.due.neighbours, "packets may wait for it");
    let (begin, patience) = (Instant::now(), Duration::from_secs(10));
    let confirm = |mirror: &mut Mirror, secs| {
        mirror.confirm(PortId::WAN, hop.into(), begin + Duration::from_secs(secs), patience)
    };
    assert_eq!([0, 1, 9, 10, 11].map(|secs| confirm(&mut mirror, secs)), [true, false, false, true, false]);
    message.header.state = NeighbourState::Reachable;
    mirror.due = Due::default();
    mirror.hear(RouteNetlinkMessage::NewNeighbour(message.clone()), 0);
    assert!(!confirm(&mut mirror, 100) && !mirror.due.neighbours, "the same address is no news");
    mirror.hear(RouteNetlinkMessage::DelNeighbour(message), 0);
    assert_eq!(mirror.builder.build().neighbour(PortId::WAN, hop.into()), Neighbour::Unknown);
}

#[test]
fn what_cannot_be_followed_is_warned_of_once() {
    let mut mirror = mirror();
    for third in 0..3 {
        let mut message = route_to([20, 0, third, 0], 24, [10, 0, 0, 2]);
        message.header.tos = 16;
        mirror.hear(RouteNetlinkMessage::NewRoute(message), 0);
    }
    let [Event::Warning(text)] = &mirror.events[..] else { panic!("{:?}", mirror.events) };
    assert!(text.contains("type of service") && text.contains("20.0.0.0/24"), "{text}");
    assert_eq!(lookup(&mut mirror, [20, 0, 0, 1]), Route::NoRoute);
    // Other tables and cache entries are nobody's business.
    let mut other = route_to([20, 0, 0, 0], 24, [10, 0, 0, 2]);
    other.attributes.push(RouteAttribute::Table(100));
    let mut cached = route_to([20, 0, 0, 0], 24, [10, 0, 0, 2]);
    cached.header.flags = netlink_packet_route::route::RouteFlags::Cloned;
    for message in [other, cached] {
        assert_eq!(convert::route(&message), RouteMeaning::Nothing);
    }
}

#[test]
fn preference_orders_routes_of_one_metric() {
    let mut mirror = mirror();
    for (gateway, preference) in [(2, RoutePreference::Low), (3, RoutePreference::High), (4, RoutePreference::Medium)] {
        let mut message = route_to([20, 0, 0, 0], 8, [10, 0, 0, gateway]);
        message.attributes.push(RouteAttribute::Preference(preference));
        mirror.hear(RouteNetlinkMessage::NewRoute(message), 0);
    }
    assert_eq!(lookup(&mut mirror, [20, 1, 1, 1]), through([10, 0, 0, 3]));
}

#[test]
fn the_kernels_own_rules_are_known() {
    let rule = |priority, table, more: Vec<RuleAttribute>| {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Table(table),
            RuleAttribute::Priority(priority),
            RuleAttribute::SuppressPrefixLen(u32::MAX),
        ];
        message.attributes.extend(more);
        convert::custom_rule(&message)
    };
    assert_eq!(rule(0, 255, vec![]), None);
    assert_eq!(rule(32766, 254, vec![]), None);
    assert_eq!(rule(32767, 253, vec![]), None);
    assert!(rule(100, 254, vec![]).is_some());
    assert!(rule(0, 255, vec![RuleAttribute::FwMark(1)]).expect("custom").contains("priority 0"));
}

#[test]
fn ports_have_to_be_there_and_ethernets() {
    let open = |links: Vec<LinkMessage>| {
        let everything = Everything { links, ..Everything::default() };
        Mirror::new(["xrtest0", "xrtest1"], [1, 2], everything).expect_err("refused").to_string()
    };
    let missing = open(vec![link(1, "xrtest0", true), link(2, "xrtest9", true)]);
    assert!(missing.contains("`xrtest1`") && missing.contains("xrtest0, xrtest9"), "{missing}");
    let mut tunnel = link(2, "xrtest1", true);
    tunnel.header.link_layer_type = LinkLayerType::Tunnel;
    assert!(open(vec![link(1, "xrtest0", true), tunnel]).contains("not an Ethernet"));
}
