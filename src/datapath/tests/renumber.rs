//! What becomes of masqueraded connections when their address goes.

use super::*;
use crate::conntrack::EventKind;
use crate::route::Link;
use crate::snapshot::{LOSSES, Lost};

/// Records of the table: several bursts' worth.
const RECORDS: usize = 3000;

/// A router that masquerades what leaves by the WAN and, but for DNS over TCP, is routed there; 10.3.0.0/24 is on the WAN too.
fn router() -> Bench {
    let mut router = Bench::new();
    let load = |family, text: &str| {
        RuleVector::compile(&rules::load("test", text, family, &["lan0", "wan0"]).expect("good rules"))
    };
    let v4 = "*nat\n-A POSTROUTING -p udp --dport 99 -j SNAT --to-source 10.2.0.1\n-A POSTROUTING -o wan0 -j MASQUERADE\n\
              -A POSTROUTING -o lan0 -j MASQUERADE\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    let v6 = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    router.policy = Policy { generation: 2, v4: load(Family::V4, v4), v6: load(Family::V6, v6) };
    router.shard = Shard::new(Settings { max: RECORDS, ..Settings::default() }, [1, 2], &router.policy);
    router.builder.add_address(PortId::WAN, [10, 3, 0, 1], 24).add_neighbour(PortId::WAN, ip("10.3.0.2"), SERVER_MAC);
    router.routing = router.builder.build();
    router.shard.conntrack.listen(true);
    router
}

/// The client begins one connection of each kind: their numbers of the server's port.
fn begin(router: &mut Bench) {
    for (dst, port) in [(SERVER, 53), ([10, 3, 0, 2], 54), (SERVER, 99)] {
        router.one(PortId::LAN, &udp(PortId::LAN, CLIENT, dst, (5000, port), 64, 10)).expect("forwarded");
    }
    // And one the other way, masqueraded on the LAN.
    router.one(PortId::WAN, &udp(PortId::WAN, SERVER, CLIENT, (5000, 55), 64, 10)).expect("forwarded");
    router.shard.conntrack.events().clear();
}

/// The server's ports of the connections there are.
fn there(router: &Bench) -> Vec<u16> {
    let mut ports = Vec::new();
    router.shard.conntrack.list(0, RECORDS, router.now, &mut |conn| ports.push(conn.original.dport));
    ports.sort_unstable();
    ports
}

/// So many bursts, at the same time.
fn bursts(router: &mut Bench, count: usize) {
    (0..count).for_each(|_| drop(router.expire(0)));
}

/// The addresses but those that begin like this.
fn without(router: &mut Bench, gone: &str) {
    let rest = router.builder.addresses().iter().filter(|it| !it.addr.to_string().starts_with(gone)).copied().collect();
    router.builder.set_addresses(rest);
    router.routing = router.builder.build();
}

#[test]
fn connections_end_with_their_address_and_only_these() {
    let mut router = router();
    begin(&mut router);
    without(&mut router, "10.2.0.1");
    bursts(&mut router, 3);
    assert_eq!(there(&router), [54, 55, 99], "another address, another port, and one that SNAT gave");
    let told: Vec<_> = router.shard.conntrack.events().drain(..).map(|it| (it.kind, it.conn.original.dport)).collect();
    assert_eq!(told, [(EventKind::Destroy, 53)]);
    // An address more ends nothing, nor does one of the same subnet on another port.
    router.builder.add_address(PortId::WAN, [10, 2, 0, 7], 24);
    router.routing = router.builder.build();
    without(&mut router, "10.1.0.1");
    bursts(&mut router, 3);
    assert_eq!(there(&router), [54, 99]);
    // What begins anew has the new address.
    let (_, out) = router.one(PortId::LAN, &query()).expect("forwarded");
    assert_eq!(parse(&out).src, ip("10.2.0.7"));
}

#[test]
fn an_address_that_was_gone_for_a_moment_was_gone() {
    let mut router = router();
    begin(&mut router);
    router.builder.lose(Lost { port: PortId::WAN, addr: Some(ip("10.2.0.1")) });
    router.routing = router.builder.build();
    bursts(&mut router, 3);
    assert_eq!(there(&router), [54, 55, 99]);
    assert!(!router.shard.is_busy());
    router.one(PortId::LAN, &query()).expect("forwarded");
    bursts(&mut router, 5);
    assert_eq!(there(&router), [53, 54, 55, 99], "only once");
}

#[test]
fn connections_end_with_their_port_but_not_with_its_carrier() {
    let mut router = router();
    begin(&mut router);
    let ifindex = router.routing.port(PortId::WAN).ifindex;
    let link = router.builder.link(ifindex).expect("there");
    router.builder.set_link(ifindex, Some(Link { carrier: false, ..link }));
    router.routing = router.builder.build();
    bursts(&mut router, 3);
    assert_eq!(there(&router), [53, 54, 55, 99]);
    router.builder.set_link(ifindex, Some(Link { up: false, ..link }));
    router.routing = router.builder.build();
    bursts(&mut router, 3);
    assert_eq!(there(&router), [55, 99]);
}

#[test]
fn a_burst_looks_at_a_part_of_the_table() {
    let mut router = router();
    for port in 0..RECORDS as u16 {
        router.one(PortId::LAN, &udp(PortId::LAN, CLIENT, SERVER, (1024 + port, 53), 64, 10)).expect("forwarded");
    }
    without(&mut router, "10.2.0.1");
    let mut left = Vec::new();
    for _ in 0..3 {
        assert!(left.is_empty() || router.shard.is_busy());
        bursts(&mut router, 1);
        left.push(router.shard.conntrack.len());
    }
    assert_eq!((left, router.shard.is_busy()), (vec![RECORDS - 1024, RECORDS - 2048, 0], false));
    router.shard.conntrack.check();
}

#[test]
fn a_loss_in_the_middle_of_another_is_looked_for_everywhere() {
    let mut router = router();
    for port in 0..RECORDS as u16 / 2 {
        for dst in [SERVER, [10, 3, 0, 2]] {
            router.one(PortId::LAN, &udp(PortId::LAN, CLIENT, dst, (1024 + port, 53), 64, 10)).expect("forwarded");
        }
    }
    without(&mut router, "10.2.0.1");
    bursts(&mut router, 2);
    without(&mut router, "10.3.0.1");
    bursts(&mut router, 3);
    assert_eq!((router.shard.conntrack.len(), router.shard.is_busy()), (0, false));
}

#[test]
fn more_losses_than_are_told_of_end_what_has_no_address_now() {
    let mut router = router();
    begin(&mut router);
    for host in 0..=LOSSES as u8 {
        router.builder.lose(Lost { port: PortId::WAN, addr: Some(Addr::from_v4(0x0a04_0000 | u32::from(host))) });
    }
    router.routing = router.builder.build();
    bursts(&mut router, 4);
    assert_eq!(there(&router), [53, 54, 55, 99]);
    // The first of many, so that it is told of no more.
    router.builder.lose(Lost { port: PortId::WAN, addr: Some(ip("10.3.0.1")) });
    without(&mut router, "10.3.0.1");
    for host in 0..=LOSSES as u8 {
        router.builder.lose(Lost { port: PortId::WAN, addr: Some(Addr::from_v4(0x0a04_0000 | u32::from(host))) });
    }
    router.routing = router.builder.build();
    bursts(&mut router, 4);
    assert_eq!(there(&router), [53, 55, 99]);
}
