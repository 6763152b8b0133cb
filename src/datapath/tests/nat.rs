//! Address translation as packets see it. What Linux does with the same is the scenarios' affair.

use super::*;
use crate::rules::Ruleset;
use crate::wire::{icmp, udp as udp_header};
use std::net::Ipv4Addr;

const WAN: [u8; 4] = [10, 2, 0, 1];
const OTHER: [u8; 4] = [10, 1, 0, 3];

fn ruleset(family: Family, text: &str) -> Ruleset {
    rules::load("test", text, family, &["lan0", "wan0"]).expect("good rules")
}

fn text(nat: &str) -> String {
    format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{nat}COMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
    )
}

/// A router with these nat rules, that forwards all else.
fn router(nat: &str) -> Bench {
    let mut router = Bench::new();
    let load = |family, text: &str| RuleVector::compile(&ruleset(family, text));
    let text = text(nat);
    let v6 = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    router.policy = Policy { generation: 2, v4: load(Family::V4, &text), v6: load(Family::V6, v6) };
    router.builder.add_neighbour(PortId::LAN, ip("10.1.0.3"), CLIENT_MAC);
    for server in ["10.2.0.3", "10.2.0.4", "10.2.0.9"] {
        router.builder.add_neighbour(PortId::WAN, ip(server), SERVER_MAC);
    }
    router.routing = router.builder.build();
    router
}

/// Addresses and ports, after all lengths and checksums were looked at.
fn ends(bytes: &[u8]) -> (String, String) {
    let packet = parse(bytes);
    (format!("{}:{}", packet.src, packet.sport), format!("{}:{}", packet.dst, packet.dport))
}

fn pair(src: &str, dst: &str) -> (String, String) {
    (src.to_owned(), dst.to_owned())
}

#[test]
fn a_source_is_masqueraded_and_the_answer_finds_back() {
    let mut router = router("-A POSTROUTING -o wan0 -j MASQUERADE\n");
    for _ in 0..4 {
        let (port, out) = router.one(PortId::LAN, &query()).expect("forwarded");
        assert_eq!((port, ends(&out)), (PortId::WAN, pair("10.2.0.1:5000", "10.2.0.2:53")));
        let back = udp(PortId::WAN, SERVER, WAN, (53, 5000), 64, 10);
        let (port, out) = router.one(PortId::WAN, &back).expect("forwarded");
        assert_eq!((port, ends(&out)), (PortId::LAN, pair("10.2.0.2:53", "10.1.0.2:5000")));
    }
    assert_eq!(router.shard.shortcuts.learned(), 2, "translated packets take shortcuts");
    let lines = router.seen_connections();
    assert!(
        lines[0]
            .contains("src=10.1.0.2 dst=10.2.0.2 sport=5000 dport=53 src=10.2.0.2 dst=10.2.0.1 sport=53 dport=5000"),
        "{lines:?}"
    );
    // Another client with the same port is given another of its class.
    let (_, out) = router.one(PortId::LAN, &udp(PortId::LAN, OTHER, SERVER, (5000, 53), 64, 10)).expect("forwarded");
    let packet = parse(&out);
    assert!(packet.src == ip("10.2.0.1") && packet.sport >= 1024 && packet.sport != 5000, "{packet:?}");
    // What nobody asked for is the host's.
    let stray = udp(PortId::WAN, SERVER, WAN, (53, 77), 64, 10);
    assert_eq!((router.one(PortId::WAN, &stray), router.effects.punt.len()), (None, 1));
    assert_eq!(router.effects.punt.drain(..).next().expect("one").1.bytes(), stray);
    router.shard.conntrack.check();
}

#[test]
fn a_destination_is_translated_before_the_route_is_looked_up() {
    let mut router = router(
        "-A PREROUTING -d 10.2.0.1 -p udp --dport 5353 -j DNAT --to-destination 10.1.0.2:53\n\
         -A POSTROUTING -s 10.1.0.0/24 -d 10.1.0.0/24 -j MASQUERADE\n",
    );
    let (port, out) = router.one(PortId::WAN, &udp(PortId::WAN, SERVER, WAN, (7, 5353), 64, 10)).expect("forwarded");
    assert_eq!((port, ends(&out)), (PortId::LAN, pair("10.2.0.2:7", "10.1.0.2:53")));
    let (port, out) = router.one(PortId::LAN, &udp(PortId::LAN, CLIENT, SERVER, (53, 7), 64, 9)).expect("forwarded");
    assert_eq!((port, ends(&out)), (PortId::WAN, pair("10.2.0.1:5353", "10.2.0.2:7")));
    // Hairpin: from inside, by the outside's address.
    let (port, out) = router.one(PortId::LAN, &udp(PortId::LAN, OTHER, WAN, (9, 5353), 64, 9)).expect("forwarded");
    assert_eq!((port, ends(&out)), (PortId::LAN, pair("10.1.0.1:9", "10.1.0.2:53")));
    let back = udp(PortId::LAN, CLIENT, [10, 1, 0, 1], (53, 9), 64, 9);
    let (port, out) = router.one(PortId::LAN, &back).expect("forwarded");
    assert_eq!((port, ends(&out)), (PortId::LAN, pair("10.2.0.1:5353", "10.1.0.3:9")));
}

#[test]
fn what_is_for_the_host_in_the_end_is_not_translated() {
    let nat = "-A PREROUTING -p udp --dport 53 -j REDIRECT --to-ports 5353\n";
    let mut router = router(nat);
    assert_eq!(router.one(PortId::LAN, &query()), None);
    assert_eq!(router.drops(DropReason::NatToHost), 1);
    let mut given = ruleset(Family::V4, &text(nat));
    given.give_to_the_host();
    router.policy = Policy { generation: 3, v4: RuleVector::compile(&given), ..router.policy };
    assert_eq!(router.one(PortId::LAN, &query()), None);
    assert_eq!(router.effects.punt.drain(..).next().expect("one").1.bytes(), query(), "as it came");
    assert!(router.shard.conntrack.is_empty());
}

#[test]
fn no_port_is_given_twice() {
    let mut router = router("-A POSTROUTING -p udp -j SNAT --to-source 10.2.0.9:2000-2002\n");
    let mut given: Vec<u16> = Vec::new();
    for port in 100..103 {
        let (_, out) =
            router.one(PortId::LAN, &udp(PortId::LAN, CLIENT, SERVER, (port, 53), 64, 10)).expect("forwarded");
        given.push(parse(&out).sport);
    }
    given.sort_unstable();
    assert_eq!(given, [2000, 2001, 2002]);
    let fourth = udp(PortId::LAN, CLIENT, SERVER, (103, 53), 64, 10);
    assert_eq!((router.one(PortId::LAN, &fourth), router.drops(DropReason::NatExhausted)), (None, 1));
    let said = rules::log_line(&router.effects.logs.pop().expect("a line"), &[]);
    assert!(said.starts_with("nat: no free port of 10.2.0.9 for udp to 10.2.0.2 port 53: 1 new"), "{said}");
    let elsewhere = udp(PortId::LAN, CLIENT, SERVER, (103, 54), 64, 10);
    assert!(router.one(PortId::LAN, &elsewhere).is_some(), "to another port all are free");
    router.expire(31_000_000_000);
    assert!(router.one(PortId::LAN, &fourth).is_some(), "they come back");
}

/// An ICMP error from `from` to `to` that quotes `quoted` from its IP header on.
fn error(port: PortId, from: [u8; 4], to: [u8; 4], kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    let check = checksum::finish(checksum::sum(0, &message));
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let builder = PacketBuilder::ethernet2([2; 6], mac_to(port)).ipv4(from, to, 64);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, etherparse::IpNumber::ICMP, &message).expect("writing to memory");
    bytes
}

#[test]
fn errors_are_translated_with_what_they_quote() {
    let mut router = router("-A POSTROUTING -o wan0 -j MASQUERADE\n");
    let (_, out) = router.one(PortId::LAN, &query()).expect("forwarded");
    let hop = [10, 2, 0, 77];
    let told = error(PortId::WAN, hop, WAN, icmp::TIME_EXCEEDED, 0, &out[14..]);
    let (port, back) = router.one(PortId::WAN, &told).expect("forwarded");
    let packet = parse(&back);
    assert_eq!((port, packet.src, packet.dst), (PortId::LAN, ip("10.2.0.77"), ip("10.1.0.2")));
    let quoted = &back[42..];
    assert_eq!((ipv4::src(quoted), ipv4::dst(quoted)), (ip("10.1.0.2"), ip("10.2.0.2")));
    assert!(checksum::is_right(0, &quoted[..20]));
    let pseudo = checksum::pseudo_header(Family::V4, ip("10.1.0.2"), ip("10.2.0.2"), proto::UDP, 18);
    assert!(checksum::is_right(pseudo, &quoted[20..38]), "{}", udp_header::checksum(&quoted[20..]));
    // The other way: from a router inside about what came back.
    let answer = udp(PortId::WAN, SERVER, WAN, (53, 5000), 64, 10);
    let (_, inside) = router.one(PortId::WAN, &answer).expect("forwarded");
    let told = error(PortId::LAN, OTHER, SERVER, icmp::DEST_UNREACHABLE, 3, &inside[14..42]);
    let (port, out) = router.one(PortId::LAN, &told).expect("forwarded");
    assert_eq!((port, parse(&out).src), (PortId::WAN, ip("10.2.0.1")));
    assert_eq!(ipv4::dst(&out[42..]), ip("10.2.0.1"));
    // Redirects are for nobody behind it.
    let told = error(PortId::WAN, hop, WAN, icmp::REDIRECT, 1, &out[42..]);
    let about =
        error(PortId::WAN, hop, WAN, icmp::REDIRECT, 1, &router.one(PortId::LAN, &query()).expect("forwarded").1[14..]);
    assert_eq!(router.one(PortId::WAN, &told), None);
    assert_eq!((router.one(PortId::WAN, &about), router.drops(DropReason::NatRedirect)), (None, 1));
}

#[test]
fn the_routers_own_errors_are_translated_too() {
    let mut router = router("-A POSTROUTING -o wan0 -j MASQUERADE\n");
    router.one(PortId::LAN, &query()).expect("forwarded");
    // An answer whose time is up here: the server is told in its own terms.
    let late = udp(PortId::WAN, SERVER, WAN, (53, 5000), 1, 10);
    let (port, told) = router.one(PortId::WAN, &late).expect("an answer");
    let packet = parse(&told);
    assert_eq!((port, packet.src, packet.dst), (PortId::WAN, ip("10.2.0.1"), ip("10.2.0.2")));
    assert_eq!((ipv4::src(&told[42..]), ipv4::dst(&told[42..])), (ip("10.2.0.2"), ip("10.2.0.1")));
}

#[test]
fn an_unreachable_next_hop_is_told_to_the_client_behind() {
    let mut router = router("-A POSTROUTING -o wan0 -j MASQUERADE\n");
    let to = Ipv4Addr::new(10, 2, 0, 99).octets();
    assert_eq!(router.one(PortId::LAN, &udp(PortId::LAN, CLIENT, to, (5000, 53), 64, 10)), None);
    router.builder.set_neighbour(PortId::WAN, ip("10.2.0.99"), Neighbour::Failed);
    router.routing = router.builder.build();
    let told = router.expire(3 * SECOND_NS);
    let [(PortId::LAN, told)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((parse(told).dst, ipv4::src(&told[42..])), (ip("10.1.0.2"), ip("10.1.0.2")));
}

#[test]
fn a_port_outside_belongs_to_one_inside_where_that_is_asked() {
    let mut router = router("-A POSTROUTING -o wan0 -j MASQUERADE --endpoint-independent-mapping\n");
    let mut send = |client: [u8; 4], server: [u8; 4]| {
        let packet = udp(PortId::LAN, client, server, (5000, 53), 64, 10);
        parse(&router.one(PortId::LAN, &packet).expect("forwarded").1).sport
    };
    let servers = [SERVER, [10, 2, 0, 3], [10, 2, 0, 4]];
    assert_eq!(servers.map(|server| send(CLIENT, server)), [5000; 3]);
    let [first, second, third] = servers.map(|server| send(OTHER, server));
    assert!(first != 5000 && first == second && second == third, "{first} {second} {third}");
    // Nobody comes in by it.
    let stranger = udp(PortId::WAN, [10, 2, 0, 9], WAN, (7, 5000), 64, 10);
    assert_eq!((router.one(PortId::WAN, &stranger), router.effects.punt.len()), (None, 1));
    router.shard.conntrack.check();
}

#[test]
fn whoever_sends_to_an_opened_port_reaches_the_client() {
    let mut router = router("-A POSTROUTING -o wan0 -p udp -j MASQUERADE --endpoint-independent-filtering\n");
    let stranger = || udp(PortId::WAN, [10, 2, 0, 9], WAN, (7, 5000), 64, 10);
    router.one(PortId::LAN, &query()).expect("forwarded");
    let (port, out) = router.one(PortId::WAN, &stranger()).expect("forwarded");
    assert_eq!((port, ends(&out)), (PortId::LAN, pair("10.2.0.9:7", "10.1.0.2:5000")));
    let back = udp(PortId::LAN, CLIENT, [10, 2, 0, 9], (5000, 7), 64, 10);
    assert_eq!(ends(&router.one(PortId::LAN, &back).expect("forwarded").1), pair("10.2.0.1:5000", "10.2.0.9:7"));
    // While someone inside uses it, and no longer.
    router.expire(29_000_000_000);
    router.one(PortId::WAN, &stranger()).expect("the stranger's connection holds it");
    router.expire(121_000_000_000);
    router.expire(1);
    assert!(router.shard.conntrack.is_empty());
    assert_eq!((router.one(PortId::WAN, &stranger()), router.effects.punt.len()), (None, 1));
}

#[test]
fn clients_are_lent_blocks_of_ports_and_the_log_tells_of_each_once() {
    let mut router = router(
        "-A POSTROUTING -o wan0 -p udp -j SNAT --to-source 10.2.0.9:1024-1279 --port-block-size 64 --port-blocks 2\n",
    );
    router.shard = Shard::new(Settings { max: 1024, ..Settings::default() }, [1, 2], &router.policy);
    let send = |router: &mut Bench, client: [u8; 4], port: u16| {
        let out = router.one(PortId::LAN, &udp(PortId::LAN, client, SERVER, (port, 53), 64, 10));
        let lines: Vec<String> = router.effects.logs.drain(..).map(|record| rules::log_line(&record, &[])).collect();
        (out.map(|(_, out)| parse(&out).sport), lines)
    };
    let (first, lines) = send(&mut router, CLIENT, 7);
    let low = 1024 + (first.expect("a port") - 1024) / 64 * 64;
    let told = |what: &str, client: &str, low: u16| {
        format!("nat: port block {what}: inside={client} outside=10.2.0.9 ports={low}-{}", low + 63)
    };
    assert_eq!(lines, [told("taken", "10.1.0.2", low)]);
    let mut given: Vec<u16> = first.into_iter().collect();
    let mut others = 0;
    for port in 8..200 {
        let (out, lines) = send(&mut router, CLIENT, port);
        others += lines.iter().filter(|line| line.contains("taken")).count();
        given.extend(out);
    }
    let blocks: std::collections::BTreeSet<u16> = given.iter().map(|port| (port - 1024) / 64).collect();
    assert!(others == 1 && blocks.len() == 2 && given.len() > 100, "{others} {blocks:?} {}", given.len());
    given.sort_unstable();
    given.dedup();
    assert!(given.len() <= 128);
    // One client cannot have it all.
    let (other, _) = send(&mut router, OTHER, 7);
    assert!(other.is_some_and(|port| !blocks.contains(&((port - 1024) / 64))));
    router.expire(31_000_000_000);
    for _ in 0..10 {
        router.expire(1);
    }
    let lines: Vec<String> = router.effects.logs.drain(..).map(|record| rules::log_line(&record, &[])).collect();
    assert_eq!((lines.len(), router.shard.conntrack.len()), (3, 0), "{lines:?}");
    assert!(lines.contains(&told("free", "10.1.0.2", low)), "{lines:?}");
}

#[test]
fn a_block_stays_lent_as_long_as_a_mapping_has_a_port_of_it() {
    let mut router = router(
        "-A POSTROUTING -o wan0 -p udp -j SNAT --to-source 10.2.0.9:2048-2111 --port-block-size 64 --endpoint-independent-mapping\n",
    );
    let to = |server: [u8; 4]| udp(PortId::LAN, CLIENT, server, (5000, 53), 64, 10);
    let (_, first) = router.one(PortId::LAN, &to(SERVER)).expect("forwarded");
    router.expire(20 * SECOND_NS);
    let (_, second) = router.one(PortId::LAN, &to([10, 2, 0, 3])).expect("forwarded");
    assert_eq!(parse(&first).sport, parse(&second).sport);
    // The connection that took the block is gone, the mapping is not.
    router.expire(15 * SECOND_NS);
    assert_eq!(router.shard.conntrack.len(), 1);
    let other = udp(PortId::LAN, OTHER, SERVER, (5001, 53), 64, 10);
    assert_eq!((router.one(PortId::LAN, &other), router.drops(DropReason::NatExhausted)), (None, 1));
    router.shard.conntrack.check();
    router.expire(31 * SECOND_NS);
    assert!(router.one(PortId::LAN, &other).is_some());
    router.shard.conntrack.check();
}

#[test]
fn a_full_table_takes_nothing_from_the_host() {
    let mut router = router("-A POSTROUTING -o wan0 -j MASQUERADE\n");
    router.shard = Shard::new(Settings { max: 1, ..Settings::default() }, [1, 2], &router.policy);
    // One connection that stays: answered for two seconds.
    for _ in 0..3 {
        router.one(PortId::LAN, &query()).expect("forwarded");
        router.one(PortId::WAN, &udp(PortId::WAN, SERVER, WAN, (53, 5000), 64, 10)).expect("forwarded");
        router.expire(2 * SECOND_NS);
    }
    let other = udp(PortId::LAN, OTHER, SERVER, (5000, 53), 64, 10);
    assert_eq!((router.one(PortId::LAN, &other), router.drops(DropReason::ConntrackFull)), (None, 1));
    let to_host = udp(PortId::WAN, SERVER, WAN, (53, 77), 64, 10);
    assert_eq!((router.one(PortId::WAN, &to_host), router.effects.punt.len()), (None, 1));
    assert_eq!(router.drops(DropReason::ConntrackFull), 1);
}

#[test]
fn an_error_that_quotes_too_little_goes_no_further() {
    let mut router = router("-A POSTROUTING -o wan0 -j MASQUERADE\n");
    let (_, out) = router.one(PortId::LAN, &query()).expect("forwarded");
    // Ports, but not the eight bytes that every router quotes.
    let told = error(PortId::WAN, SERVER, WAN, icmp::DEST_UNREACHABLE, 3, &out[14..38]);
    assert_eq!((router.one(PortId::WAN, &told), router.drops(DropReason::NatMalformed)), (None, 1));
}

#[test]
fn nothing_is_masqueraded_without_an_address() {
    let mut router = router("-A POSTROUTING -o wan0 -j MASQUERADE\n");
    let mut builder = RoutingBuilder::new();
    builder.add_port(PortId::LAN, "lan0", LAN_MAC, 1500).add_port(PortId::WAN, "wan0", WAN_MAC, 1400).add_route(
        "0.0.0.0/0".parse().expect("a prefix"),
        PortId::WAN,
        Some(ip("10.2.0.2")),
    );
    router.routing = builder.build();
    assert_eq!((router.one(PortId::LAN, &query()), router.drops(DropReason::NatNoAddress)), (None, 1));
}

#[test]
fn a_masqueraded_connection_ends_when_it_would_leave_elsewhere() {
    let mut router = router("-A POSTROUTING -j MASQUERADE\n");
    router.one(PortId::LAN, &query()).expect("forwarded");
    router.builder.add_route("10.2.0.2/32".parse().expect("a prefix"), PortId::LAN, None);
    router.routing = router.builder.build();
    assert_eq!((router.one(PortId::LAN, &query()), router.drops(DropReason::MasqueradeMoved)), (None, 1));
    assert!(router.shard.conntrack.is_empty());
}

/// Rules under which ports are scarce, lent, shared and kept.
const RULES: [&str; 6] = [
    "-A POSTROUTING -o wan0 -p udp -j SNAT --to-source 10.2.0.1:2000-2005\n",
    "-A POSTROUTING -o wan0 -j MASQUERADE\n-A PREROUTING -d 10.2.0.2 -p udp -j DNAT --to-destination 10.2.0.3\n",
    "-A POSTROUTING -o wan0 -p udp -j SNAT --to-source 10.2.0.1-10.2.0.2:2000-2003 --random-fully\n",
    "-A POSTROUTING -o wan0 -j MASQUERADE --endpoint-independent-filtering\n",
    "-A POSTROUTING -o wan0 -p udp -j SNAT --to-source 10.2.0.1:1024-1151 --port-block-size 64\n",
    "-A POSTROUTING -o wan0 -p udp -j SNAT --to-source 10.2.0.1:2000-2191 --endpoint-independent-mapping --port-blocks 2 \
     --port-block-size 64\n",
];

/// A client's packet, or an answer to what came out last, or a stranger's to a port outside; then so many seconds.
type Op = (u8, u8, u8, u8, u8);

fn apply(router: &mut Bench, &(kind, client, port, server, wait): &Op, last: &mut Option<Packet>) {
    let (client, server) = ([10, 1, 0, 2 + client % 2], [10, 2, 0, 2 + server % 3]);
    let port = 2000 + u16::from(port % 8);
    let (from, bytes) = match (kind % 4, *last) {
        (0, Some(out)) => {
            let [src, dst] = [out.dst, out.src].map(|addr| addr.v4_bits().to_be_bytes());
            (PortId::WAN, udp(PortId::WAN, src, dst, (out.dport, out.sport), 64, 4))
        }
        (1, _) => (PortId::WAN, udp(PortId::WAN, server, WAN, (53, port), 64, 4)),
        _ => (PortId::LAN, udp(PortId::LAN, client, server, (port, 53), 64, 4)),
    };
    if let Some((PortId::WAN, out)) = router.one(from, &bytes) {
        *last = Some(parse(&out));
    }
    router.effects.punt.drain(..).for_each(|(_, frame)| router.pool.put(frame));
    router.effects.logs.clear();
    if wait % 8 == 0 {
        router.expire(u64::from(wait) * SECOND_NS / 4);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, ..Default::default() })]

    /// Two live connections never look alike from either side, and in the end nothing is left of them.
    #[test]
    fn ports_are_given_once_and_all_come_back(
        rules in proptest::sample::select(&RULES[..]),
        ops in proptest::collection::vec(proptest::prelude::any::<Op>(), 0..150),
    ) {
        let mut router = router(rules);
        let mut last = None;
        for op in &ops {
            apply(&mut router, op, &mut last);
            let mut seen = std::collections::HashSet::new();
            router.shard.conntrack.list(0, usize::MAX, router.now, &mut |view| {
                for side in [view.original, view.reply] {
                    let is_new = seen.insert((view.proto, side.src, side.dst, side.sport, side.dport));
                    assert!(is_new, "{side:?} twice");
                }
            });
            router.shard.conntrack.check();
        }
        while !router.shard.conntrack.is_empty() {
            router.expire(200 * SECOND_NS);
        }
        router.shard.conntrack.check();
    }
}

impl Bench {
    fn seen_connections(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        self.shard.conntrack.list(0, usize::MAX, self.now, &mut |view| lines.push(view.to_string()));
        lines
    }
}
