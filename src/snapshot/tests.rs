use super::*;
use crate::route::Hop;
use std::collections::HashSet;

fn ip(text: &str) -> Addr {
    text.parse::<IpAddr>().expect(text).into()
}

fn net(text: &str) -> Prefix {
    text.parse().expect(text)
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// LAN 10.0.0.1/24 and 2001:db8:1::1/64, WAN 192.0.2.1/24 and 2001:db8:2::1/64, default routes through the WAN.
fn gateway() -> RoutingBuilder {
    let mut builder = RoutingBuilder::new();
    builder
        .add_port(PortId::LAN, "lan0", mac(1), 1500)
        .add_port(PortId::WAN, "wan0", mac(2), 1400)
        .add_address(PortId::LAN, [10, 0, 0, 1], 24)
        .add_address(PortId::LAN, [0x2001, 0xdb8, 1, 0, 0, 0, 0, 1], 64)
        .add_address(PortId::WAN, [192, 0, 2, 1], 24)
        .add_address(PortId::WAN, [0x2001, 0xdb8, 2, 0, 0, 0, 0, 1], 64)
        .add_route(net("0.0.0.0/0"), PortId::WAN, Some(ip("192.0.2.254")))
        .add_route(net("::/0"), PortId::WAN, Some(ip("fe80::9")));
    builder
}

fn v4(routing: &Routing, dst: &str) -> Route {
    routing.lookup(Family::V4, ip("10.0.0.9"), ip(dst))
}

fn v6(routing: &Routing, dst: &str) -> Route {
    routing.lookup(Family::V6, ip("2001:db8:1::9"), ip(dst))
}

fn forward(port: PortId, gateway: Option<&str>, mtu: u16) -> Route {
    Route::Forward { port, gateway: gateway.map(ip), mtu }
}

#[test]
fn addresses_make_the_kernels_routes() {
    let routing = gateway().build();
    assert_eq!(v4(&routing, "10.0.0.7"), forward(PortId::LAN, None, 1500));
    assert_eq!(v4(&routing, "10.0.0.1"), Route::Local);
    assert_eq!(v4(&routing, "10.0.0.255"), Route::Broadcast);
    assert_eq!(v4(&routing, "255.255.255.255"), Route::Broadcast);
    assert_eq!(v4(&routing, "224.0.0.5"), Route::Multicast);
    assert_eq!(v4(&routing, "198.51.100.1"), forward(PortId::WAN, Some("192.0.2.254"), 1400));
    assert_eq!(v6(&routing, "2001:db8:1::7"), forward(PortId::LAN, None, 1500));
    assert_eq!(v6(&routing, "2001:db8:2::1"), Route::Local);
    assert_eq!(v6(&routing, "2001:db8:2::"), Route::Local);
    assert_eq!(v6(&routing, "ff02::1"), Route::Multicast);
    assert_eq!(v6(&routing, "2001:db8:9::"), forward(PortId::WAN, Some("fe80::9"), 1400));
    assert!(routing.is_local(ip("10.0.0.1")) && !routing.is_local(ip("10.0.0.2")));
    assert_eq!(routing.port(PortId::LAN).addresses.len(), 2);
}

#[test]
fn special_routes_and_no_route() {
    let mut builder = gateway();
    builder
        .add_special_route(net("198.51.100.0/24"), Kind::Unreachable)
        .add_special_route(net("198.51.101.0/24"), Kind::Prohibit)
        .add_special_route(net("198.51.102.0/24"), Kind::Blackhole)
        .add_special_route(net("198.51.103.0/24"), Kind::Throw)
        .add_route_elsewhere(net("198.51.104.0/24"));
    let routing = builder.build();
    let expected = [Route::Unreachable, Route::Prohibit, Route::Blackhole, Route::NoRoute, Route::Elsewhere];
    for (third, expected) in (100..).zip(expected) {
        assert_eq!(v4(&routing, &format!("198.51.{third}.9")), expected);
    }
    let empty = RoutingBuilder::new().build();
    assert_eq!((v4(&empty, "10.0.0.1"), v6(&empty, "2001:db8::1")), (Route::NoRoute, Route::NoRoute));
}

#[test]
fn metric_then_usable_hop_decides_within_a_prefix() {
    let mut builder = gateway();
    let entry = |metric, ifindex, gateway: &str| RouteEntry {
        table: Table::Main,
        prefix: net("203.0.113.0/24"),
        metric,
        preference: 0,
        action: Action::unicast(ifindex, Some(ip(gateway))),
    };
    assert_eq!(builder.put_route(entry(200, 3, "192.0.2.3"), false), Change::Changed);
    assert_eq!(builder.put_route(entry(100, 2, "10.0.0.3"), false), Change::Changed);
    assert_eq!(v4(&builder.build(), "203.0.113.1"), forward(PortId::LAN, Some("10.0.0.3"), 1500));
    let down = Link { up: false, ..builder.link(2).expect("the LAN") };
    builder.set_link(2, Some(down));
    assert_eq!(v4(&builder.build(), "203.0.113.1"), forward(PortId::WAN, Some("192.0.2.3"), 1400));
    assert_eq!(v4(&builder.build(), "10.0.0.7"), forward(PortId::WAN, Some("192.0.2.254"), 1400), "shorter prefix");
    builder.set_link(2, Some(Link { up: true, carrier: false, ..down }));
    assert_eq!(v4(&builder.build(), "203.0.113.1"), forward(PortId::LAN, Some("10.0.0.3"), 1500), "Linux's default");
    builder.set_link(2, Some(Link { up: true, carrier: false, ignore_linkdown: [true, false], ..down }));
    assert_eq!(v4(&builder.build(), "203.0.113.1"), forward(PortId::WAN, Some("192.0.2.3"), 1400));
    assert_eq!(builder.remove_route(&entry(200, 3, "192.0.2.3")), Change::Changed);
    assert_eq!(builder.remove_route(&entry(200, 3, "192.0.2.3")), Change::Same);
}

#[test]
fn changes_that_cannot_be_told_apart_are_ambiguous() {
    let mut builder = gateway();
    let entry = |gateway: &str| RouteEntry {
        table: Table::Main,
        prefix: net("203.0.113.0/24"),
        metric: 5,
        preference: 0,
        action: Action::unicast(3, Some(ip(gateway))),
    };
    assert_eq!(builder.put_route(entry("192.0.2.3"), false), Change::Changed);
    assert_eq!(builder.put_route(entry("192.0.2.3"), false), Change::Same);
    assert_eq!(builder.put_route(entry("192.0.2.4"), false), Change::Ambiguous);
    assert_eq!(builder.put_route(entry("192.0.2.4"), true), Change::Changed);
    assert_eq!(builder.remove_route(&entry("192.0.2.3")), Change::Ambiguous);
    let mut routes = builder.routes().clone();
    routes.append(entry("192.0.2.5"));
    builder.set_routes(routes);
    assert_eq!(builder.remove_route(&entry("192.0.2.4")), Change::Ambiguous);
    assert_eq!(v4(&builder.build(), "203.0.113.1"), forward(PortId::WAN, Some("192.0.2.4"), 1400), "first of equals");
}

#[test]
fn local_table_goes_first_as_each_family_has_it() {
    let mut builder = gateway();
    for (table, prefix, action) in [
        (Table::Local, "198.18.0.0/15", Action::of(Kind::Local)),
        (Table::Main, "198.18.1.0/24", Action::unicast(2, None)),
        (Table::Local, "2001:db8:f::/48", Action::of(Kind::Local)),
        (Table::Main, "2001:db8:f:1::/64", Action::unicast(2, None)),
    ] {
        builder.put_route(RouteEntry { table, prefix: net(prefix), metric: 0, preference: 0, action }, false);
    }
    let routing = builder.build();
    assert_eq!(v4(&routing, "198.18.0.1"), Route::Local);
    assert_eq!(v4(&routing, "198.18.1.1"), forward(PortId::LAN, None, 1500), "one trie: the longest prefix");
    assert_eq!(v6(&routing, "2001:db8:f:1::1"), Route::Local, "all of local before all of main");
    assert_eq!(v6(&routing, "2001:db8:10::1"), forward(PortId::WAN, Some("fe80::9"), 1400));
}

#[test]
fn table_default_is_asked_last() {
    let mut builder = RoutingBuilder::new();
    builder.add_port(PortId::LAN, "lan0", mac(1), 1500).add_special_route(net("10.1.0.0/16"), Kind::Throw);
    let action = Action::unicast(2, None);
    let prefix = net("0.0.0.0/0");
    builder.put_route(RouteEntry { table: Table::Default, prefix, metric: 0, preference: 0, action }, false);
    builder.add_special_route(net("10.2.0.0/16"), Kind::Local);
    let routing = builder.build();
    assert_eq!(v4(&routing, "10.1.2.3"), forward(PortId::LAN, None, 1500));
    assert_eq!(v4(&routing, "10.9.2.3"), forward(PortId::LAN, None, 1500));
    assert_eq!(v4(&routing, "10.2.2.3"), Route::Local);
}

#[test]
fn multipath_is_stable_per_pair_and_shares_by_weight() {
    let mut builder = gateway();
    let hop = |ifindex, gateway: &str, weight| Hop { ifindex, gateway: Some(ip(gateway)), weight, dead: false };
    let hops = vec![hop(3, "192.0.2.10", 1), hop(3, "192.0.2.11", 3), hop(99, "192.0.2.12", 5)];
    let action = Action { hops: hops.into(), ..Action::of(Kind::Unicast) };
    let prefix = net("203.0.113.0/24");
    builder.put_route(RouteEntry { table: Table::Main, prefix, metric: 0, preference: 0, action }, false);
    let routing = builder.build();
    let mut first = 0;
    for n in 0..4000 {
        let src = Addr::from_v4(0x0a00_0000 | n);
        let route = routing.lookup(Family::V4, src, ip("203.0.113.1"));
        assert_eq!(route, routing.lookup(Family::V4, src, ip("203.0.113.1")));
        first += usize::from(route == forward(PortId::WAN, Some("192.0.2.10"), 1400));
        assert!(
            [Some(ip("192.0.2.10")), Some(ip("192.0.2.11"))].contains(&if let Route::Forward { gateway, .. } = route {
                gateway
            } else {
                None
            })
        );
    }
    assert!((850..1150).contains(&first), "a quarter of the flows, not {first} of 4000");
}

#[test]
fn mtu_of_route_and_device() {
    let mut builder = gateway();
    let mut put = |prefix: &str, mtu| {
        let action = Action { mtu, ..Action::unicast(3, None) };
        let prefix = net(prefix);
        builder.put_route(RouteEntry { table: Table::Main, prefix, metric: 0, preference: 0, action }, false);
    };
    put("203.0.113.0/24", 1300);
    put("203.0.114.0/24", 9000);
    put("2001:db8:a::/48", 1000);
    let routing = builder.build();
    assert_eq!(v4(&routing, "203.0.113.1"), forward(PortId::WAN, None, 1300));
    assert_eq!(v4(&routing, "203.0.114.1"), forward(PortId::WAN, None, 1400));
    assert_eq!(v6(&routing, "2001:db8:a::1"), forward(PortId::WAN, None, 1280));
}

#[test]
fn sources_are_the_kernels() {
    let mut builder = gateway();
    let action = Action { prefsrc: Some(ip("10.0.0.1")), ..Action::unicast(3, Some(ip("192.0.2.3"))) };
    let prefix = net("203.0.113.0/24");
    builder.put_route(RouteEntry { table: Table::Main, prefix, metric: 0, preference: 0, action }, false);
    let routing = builder.build();
    assert_eq!(routing.source_address(Family::V4, PortId::WAN, ip("192.0.2.254")), Some(ip("192.0.2.1")));
    assert_eq!(routing.source_address(Family::V6, PortId::LAN, ip("2001:db8:1::5")), Some(ip("2001:db8:1::1")));
    assert_eq!(routing.source_for(Family::V4, ip("198.51.100.1"), PortId::LAN), Some(ip("192.0.2.1")));
    assert_eq!(routing.source_for(Family::V4, ip("10.0.0.8"), PortId::LAN), Some(ip("10.0.0.1")));
    assert_eq!(routing.source_for(Family::V4, ip("203.0.113.1"), PortId::LAN), Some(ip("10.0.0.1")), "RTA_PREFSRC");
    let answered_with = |from| routing.source_for(Family::V6, ip("2001:db8:77::1"), from);
    assert_eq!(answered_with(PortId::WAN), Some(ip("2001:db8:2::1")));
    assert_ne!(answered_with(PortId::LAN), Some(ip("2001:db8:2::1")), "the way in counts");
}

#[test]
fn source_checks_follow_fib_validate_source() {
    let with = |rp_filter, accept_local| {
        let mut builder = gateway();
        builder.add_special_route(net("198.51.100.0/24"), Kind::Unreachable);
        let port = Port { rp_filter, accept_local, ..builder.ports()[0].clone() };
        builder.set_port(PortId::LAN, port);
        builder.build()
    };
    let sources = ["10.0.0.9", "203.0.113.1", "198.51.100.1", "192.0.2.1", "10.0.0.255"];
    let check = |routing: &Routing| sources.map(|src| routing.check_source(PortId::LAN, ip(src)));
    let (martian, reverse) = (Err(BadSource::Martian), Err(BadSource::ReversePath));
    assert_eq!(check(&with(RpFilter::Off, false)), [Ok(()), Ok(()), Ok(()), martian, Ok(())]);
    assert_eq!(check(&with(RpFilter::Off, true)), [Ok(()), Ok(()), Ok(()), Ok(()), Ok(())]);
    assert_eq!(check(&with(RpFilter::Strict, false)), [Ok(()), reverse, reverse, martian, martian]);
    assert_eq!(check(&with(RpFilter::Loose, false)), [Ok(()), Ok(()), reverse, martian, martian]);
    assert_eq!(check(&with(RpFilter::Loose, true)), [Ok(()), Ok(()), reverse, Ok(()), martian]);
}

#[test]
fn neighbours_change_without_compiling_routes() {
    let mut builder = gateway();
    let before = builder.build();
    builder.add_neighbour(PortId::WAN, ip("192.0.2.254"), mac(9));
    assert_eq!(builder.set_neighbour(PortId::WAN, ip("fe80::9"), Neighbour::Failed), Some(Neighbour::Unknown));
    assert_eq!(builder.set_neighbour(PortId::WAN, ip("fe80::9"), Neighbour::Failed), None);
    let after = builder.build();
    assert!(before.same_routes(&after) && after.generation > before.generation);
    assert_eq!(before.neighbour(PortId::WAN, ip("192.0.2.254")), Neighbour::Unknown);
    assert_eq!(after.neighbour(PortId::WAN, ip("192.0.2.254")), Neighbour::Reachable(mac(9)));
    assert_eq!(after.neighbour(PortId::LAN, ip("192.0.2.254")), Neighbour::Unknown);
    assert_eq!(after.neighbour(PortId::WAN, ip("fe80::9")), Neighbour::Failed);
    let known: HashSet<_> = after.neighbours().map(|(_, addr, _)| addr).collect();
    assert_eq!(known, HashSet::from([ip("192.0.2.254"), ip("fe80::9")]));
    builder.add_route(net("203.0.113.0/24"), PortId::LAN, None);
    assert!(!after.same_routes(&builder.build()));
}

#[test]
fn ways_change_with_all_but_neighbours_that_packets_did_not_go_to() {
    let mut builder = gateway();
    let hop = ip("192.0.2.254");
    let first = builder.build();
    let mut ways = first.ways;
    let mut moved_on = |routing: Routing| routing.ways > std::mem::replace(&mut ways, routing.ways);
    builder.set_neighbour(PortId::WAN, hop, Neighbour::Failed);
    assert!(!moved_on(builder.build()), "nobody went there");
    builder.set_neighbour(PortId::WAN, hop, Neighbour::Unknown);
    assert!(!moved_on(builder.build_neighbours(&first)));
    builder.set_neighbour(PortId::WAN, hop, Neighbour::Reachable(mac(9)));
    assert!(!moved_on(builder.build()), "it is reachable now");
    builder.set_neighbour(PortId::WAN, hop, Neighbour::Reachable(mac(8)));
    assert!(moved_on(builder.build_neighbours(&first)), "another link-layer address");
    builder.set_neighbour(PortId::WAN, hop, Neighbour::Failed);
    assert!(moved_on(builder.build()), "it was reachable");
    builder.add_neighbour(PortId::WAN, hop, mac(9));
    builder.clear_neighbours();
    assert!(moved_on(builder.build()));
    assert!(!moved_on(builder.build()), "nothing has changed");
    builder.add_route(net("203.0.113.0/24"), PortId::LAN, None);
    assert!(moved_on(builder.build()));
    builder.set_kernel_forwarding(KernelForwarding { v4: true, v6: true });
    assert!(moved_on(builder.build()));
    let port = builder.ports()[0].clone();
    builder.set_port(PortId::LAN, Port { rp_filter: RpFilter::Loose, ..port });
    assert!(moved_on(builder.build()));
    builder.add_address(PortId::LAN, [10, 9, 0, 1], 24);
    assert!(moved_on(builder.build()));
}
