use super::*;
use crate::conntrack::Settings;
use crate::device::FramePool;
use crate::packet::L4;
use crate::rules::{self, RuleVector};
use crate::snapshot::RoutingBuilder;
use crate::wire::{checksum, ipv4, proto, tcp};
use etherparse::PacketBuilder;
use std::net::IpAddr;

const LAN_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const WAN_MAC: Mac = Mac([2, 0, 0, 0, 2, 1]);
const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 1, 2]);
const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 2, 2]);
const CLIENT: [u8; 4] = [10, 1, 0, 2];
const SERVER: [u8; 4] = [10, 2, 0, 2];

fn ip(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}

fn routing() -> RoutingBuilder {
    let mut builder = RoutingBuilder::new();
    builder
        .add_port(PortId::LAN, "lan0", LAN_MAC, 1500)
        .add_port(PortId::WAN, "wan0", WAN_MAC, 1400)
        .add_address(PortId::LAN, ip("10.1.0.1").to_ip(), 24)
        .add_address(PortId::WAN, ip("10.2.0.1").to_ip(), 24)
        .add_address(PortId::LAN, ip("fd01::1").to_ip(), 64)
        .add_address(PortId::WAN, ip("fd02::1").to_ip(), 64)
        .add_neighbour(PortId::LAN, ip("10.1.0.2"), CLIENT_MAC)
        .add_neighbour(PortId::WAN, ip("10.2.0.2"), SERVER_MAC)
        .add_neighbour(PortId::LAN, ip("fd01::2"), CLIENT_MAC)
        .add_neighbour(PortId::WAN, ip("fd02::2"), SERVER_MAC);
    builder
}

mod nat;
mod renumber;
mod shortcuts;

/// A router with the default policy, and frames to feed it.
struct Bench {
    shard: Shard,
    policy: Policy,
    routing: Routing,
    builder: RoutingBuilder,
    pool: FramePool,
    effects: Effects,
    now: Instant,
}

impl Bench {
    fn new() -> Bench {
        let vector = |family| {
            let text = rules::default_policy(family, "lan0", "wan0");
            RuleVector::compile(&rules::load("default", &text, family, &["lan0", "wan0"]).expect("good rules"))
        };
        let policy = Policy { generation: 1, v4: vector(Family::V4), v6: vector(Family::V6) };
        let mut builder = routing();
        Bench {
            shard: Shard::new(Settings { max: 64, ..Settings::default() }, [1, 2], &policy),
            policy,
            routing: builder.build(),
            builder,
            pool: FramePool::in_memory(256, 2048),
            effects: Effects::new(BATCH),
            now: Instant::from_secs(1),
        }
    }

    /// Sends packets, those of one port in one batch; what comes out of either port, with that port.
    fn batch(&mut self, packets: &[(PortId, Vec<u8>)]) -> Vec<(PortId, Vec<u8>)> {
        let mut batch = Batch::default();
        for (port, bytes) in packets {
            if !batch.takes(*port) {
                process(&mut self.shard, &self.policy, &self.routing, &mut batch, self.now, &mut self.effects);
            }
            let mut frame = self.pool.take().expect("enough frames");
            frame.fill(bytes);
            batch.push(*port, frame);
        }
        process(&mut self.shard, &self.policy, &self.routing, &mut batch, self.now, &mut self.effects);
        assert!(batch.is_empty());
        self.collect()
    }

    fn expire(&mut self, after_ns: u64) -> Vec<(PortId, Vec<u8>)> {
        self.now = self.now + after_ns;
        expire(&mut self.shard, &self.policy, &self.routing, self.now, 64, &mut self.effects);
        self.collect()
    }

    fn collect(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let mut out = Vec::new();
        for port in PortId::ALL {
            for frame in self.effects.transmit[port.index()].drain(..) {
                out.push((port, frame.bytes().to_vec()));
                self.pool.put(frame);
            }
        }
        self.effects.free.drain(..).for_each(|frame| self.pool.put(frame));
        out
    }

    fn one(&mut self, port: PortId, packet: &[u8]) -> Option<(PortId, Vec<u8>)> {
        self.batch(&[(port, packet.to_vec())]).pop()
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.shard.counters.drops.get(reason)
    }
}

fn mac_to(port: PortId) -> [u8; 6] {
    if port == PortId::LAN { LAN_MAC.0 } else { WAN_MAC.0 }
}

fn udp(port: PortId, src: [u8; 4], dst: [u8; 4], ports: (u16, u16), ttl: u8, payload: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], mac_to(port)).ipv4(src, dst, ttl).udp(ports.0, ports.1);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &vec![0x5a; payload]).expect("writing to memory");
    bytes
}

fn query() -> Vec<u8> {
    udp(PortId::LAN, CLIENT, SERVER, (5000, 53), 64, 10)
}

fn answer() -> Vec<u8> {
    udp(PortId::WAN, SERVER, CLIENT, (53, 5000), 64, 10)
}

fn parse(bytes: &[u8]) -> Packet {
    let packet = Packet::parse(bytes, PortId::LAN, true).expect("a good packet");
    assert_eq!(packet.l4, L4::Good);
    packet
}

#[test]
fn a_query_goes_out_and_its_answer_comes_back() {
    let mut router = Bench::new();
    let (port, out) = router.one(PortId::LAN, &query()).expect("the query is forwarded");
    assert_eq!((port, &out[..6], &out[6..12]), (PortId::WAN, &SERVER_MAC.0[..], &WAN_MAC.0[..]));
    assert_eq!((parse(&out).ttl, &out[34..]), (63, &query()[34..]));
    let (port, out) = router.one(PortId::WAN, &answer()).expect("the answer is forwarded");
    assert_eq!((port, &out[..6], parse(&out).ttl), (PortId::LAN, &CLIENT_MAC.0[..], 63));
    assert_eq!(router.shard.conntrack.len(), 1);
}

#[test]
fn an_answer_in_the_batch_after_its_query_is_of_its_connection() {
    let mut router = Bench::new();
    let out = router.batch(&[(PortId::LAN, query()), (PortId::LAN, query()), (PortId::WAN, answer())]);
    assert_eq!((out.len(), router.shard.conntrack.len()), (3, 1));
}

#[test]
fn nothing_may_start_from_the_wan_and_a_refused_packet_leaves_nothing() {
    let mut router = Bench::new();
    assert!(router.one(PortId::WAN, &answer()).is_none());
    assert_eq!(
        (router.drops(DropReason::RuleDrop) + router.drops(DropReason::PolicyDrop), router.shard.conntrack.len()),
        (1, 0)
    );
    assert_eq!(router.pool.len(), 256);
}

#[test]
fn a_used_up_ttl_is_answered_from_the_port_it_came_by() {
    let mut router = Bench::new();
    let (port, out) = router.one(PortId::LAN, &udp(PortId::LAN, CLIENT, SERVER, (1, 2), 1, 4)).expect("an answer");
    let error = parse(&out);
    assert_eq!((port, error.icmp_type(), error.src.to_ip()), (PortId::LAN, 11, ip("10.1.0.1").to_ip()));
    assert_eq!((router.drops(DropReason::TtlExceeded), router.shard.conntrack.len()), (1, 0));
}

#[test]
fn too_big_for_the_way_out() {
    let mut router = Bench::new();
    let mut big = udp(PortId::LAN, CLIENT, SERVER, (1, 2), 64, 1380);
    big[20] = 0x40;
    ipv4::set_checksum(&mut big[14..34]);
    let (_, out) = router.one(PortId::LAN, &big).expect("an answer");
    let error = parse(&out);
    assert_eq!((error.icmp_type(), error.icmp_code(), crate::wire::get_u32(error.l4_bytes(&out), 4)), (3, 4, 1400));
    big[20] = 0;
    ipv4::set_checksum(&mut big[14..34]);
    assert!(router.one(PortId::LAN, &big).is_none());
    assert_eq!(router.drops(DropReason::PacketTooBig), 2);
}

#[test]
fn host_business_is_punted_untouched() {
    let mut router = Bench::new();
    let to_router = udp(PortId::LAN, CLIENT, [10, 1, 0, 1], (1, 2), 64, 4);
    assert!(router.one(PortId::LAN, &to_router).is_none());
    let (port, frame) = router.effects.punt.pop().expect("a punted frame");
    assert_eq!((port, frame.bytes()), (PortId::LAN, &to_router[..]));
    assert_eq!(router.shard.conntrack.len(), 0);
}

#[test]
fn a_flood_to_the_router_is_limited_and_forwarding_goes_on() {
    let mut router = Bench::new();
    let to_router = udp(PortId::LAN, CLIENT, [10, 1, 0, 1], (1, 2), 64, 4);
    let mut punted = 0;
    for _ in 0..3000 {
        router.one(PortId::LAN, &to_router);
        for (_, frame) in router.effects.punt.drain(..) {
            punted += 1;
            router.pool.put(frame);
        }
    }
    assert_eq!((punted, router.drops(DropReason::PuntLimited)), (2000, 1000));
    router.one(PortId::LAN, &query()).expect("a packet for others is none of that");
    router.expire(SECOND_NS);
    router.one(PortId::LAN, &to_router);
    assert_eq!(router.effects.punt.len(), 1);
}

#[test]
fn addresses_nobody_has() {
    let mut router = Bench::new();
    let cases = [
        ([224, 0, 0, 1], SERVER, DropReason::MartianSource),
        ([127, 0, 0, 1], SERVER, DropReason::MartianSource),
        ([10, 2, 0, 1], SERVER, DropReason::MartianSource),
        ([0, 0, 0, 0], SERVER, DropReason::MartianSource),
        (CLIENT, [127, 0, 0, 1], DropReason::MartianDestination),
        (CLIENT, [8, 8, 8, 8], DropReason::NoRoute),
    ];
    for (src, dst, reason) in cases {
        let before = router.drops(reason);
        router.one(PortId::LAN, &udp(PortId::LAN, src, dst, (1, 2), 64, 4));
        assert_eq!(router.drops(reason), before + 1, "{src:?} to {dst:?}");
    }
    let mut stranger = query();
    stranger[5] ^= 0x40;
    router.one(PortId::LAN, &stranger);
    assert_eq!(router.drops(DropReason::NotForUs), 1);
}

#[test]
fn an_unknown_neighbour_is_asked_for_and_waited_for() {
    let mut router = Bench::new();
    let to_cold = udp(PortId::LAN, CLIENT, [10, 2, 0, 77], (1, 2), 64, 4);
    assert!(router.one(PortId::LAN, &to_cold).is_none());
    assert_eq!((router.effects.resolve.len(), router.shard.waiting()), (1, 1));
    assert!(router.expire(1000).is_empty());
    router.builder.add_neighbour(PortId::WAN, ip("10.2.0.77"), SERVER_MAC);
    router.routing = router.builder.build();
    let out = router.expire(1000);
    assert_eq!((out.len(), out[0].0, router.shard.waiting()), (1, PortId::WAN, 0));
}

#[test]
fn a_neighbour_that_fails_is_reported_to_the_sender() {
    let mut router = Bench::new();
    router.one(PortId::LAN, &udp(PortId::LAN, CLIENT, [10, 2, 0, 77], (1, 2), 64, 4));
    router.builder.set_neighbour(PortId::WAN, ip("10.2.0.77"), Neighbour::Failed);
    router.routing = router.builder.build();
    assert!(router.expire(1000).is_empty(), "a failure this early is an old one");
    let out = router.expire(3 * SECOND_NS);
    let error = parse(&out[0].1);
    assert_eq!((out[0].0, error.icmp_type(), error.icmp_code()), (PortId::LAN, 3, 1));
    assert_eq!((router.drops(DropReason::NeighbourFailed), router.pool.len()), (1, 256));
}

#[test]
fn the_queue_for_a_neighbour_is_bounded() {
    let mut router = Bench::new();
    for n in 0..40 {
        router.one(PortId::LAN, &udp(PortId::LAN, CLIENT, [10, 2, 0, 77], (1000 + n, 2), 64, 4));
    }
    assert_eq!((router.shard.waiting(), router.drops(DropReason::NeighbourQueueFull)), (32, 8));
    assert_eq!(router.pool.len(), 256 - 32);
}

#[test]
fn a_hop_without_a_place_to_wait_is_asked_for_all_the_same() {
    let mut router = Bench::new();
    let to = |host: u8| udp(PortId::LAN, CLIENT, [10, 2, 0, host], (1, 2), 64, 4);
    for host in 3..131 {
        router.one(PortId::LAN, &to(host));
        router.effects.resolve.clear();
    }
    router.one(PortId::LAN, &to(200));
    assert_eq!((router.drops(DropReason::NeighbourQueueFull), router.effects.resolve.len()), (1, 1));
}

#[test]
fn an_unfinished_checksum_is_finished() {
    let mut router = Bench::new();
    let mut partial = query();
    let packet = parse(&partial);
    let pseudo = checksum::pseudo_header(Family::V4, packet.src, packet.dst, proto::UDP, u32::from(packet.l4_len));
    crate::wire::put_u16(&mut partial, 40, checksum::fold(pseudo));
    let (_, out) = router.one(PortId::LAN, &partial).expect("forwarded");
    assert_eq!(out[34..], query()[34..]);
}

#[test]
fn padding_is_not_sent_on() {
    let mut router = Bench::new();
    let mut padded = query();
    let length = padded.len();
    padded.resize(80, 0xee);
    assert_eq!(router.one(PortId::LAN, &padded).expect("forwarded").1.len(), length);
}

#[test]
fn ipv6_link_local_sources_stay_on_their_link() {
    let mut router = Bench::new();
    let source = "fe80::2".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let target = "fd02::2".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], LAN_MAC.0).ipv6(source, target, 64).udp(1, 2);
    builder.write(&mut bytes, b"x").expect("writing to memory");
    router.one(PortId::LAN, &bytes);
    assert_eq!(router.drops(DropReason::BeyondScope), 1);
}

#[test]
fn no_frame_is_lost_whatever_comes() {
    let mut router = Bench::new();
    let mut state = 7u64;
    for _ in 0..2000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        let mut bytes = match state >> 62 {
            0 => query(),
            1 => answer(),
            _ => tcp_syn((state >> 20) as u16),
        };
        let at = (state >> 33) as usize % bytes.len();
        bytes[at] = (state >> 11) as u8;
        if (state >> 50) & 1 == 1 {
            ipv4::set_checksum(&mut bytes[14..34]);
        }
        router.one(if state & 1024 == 0 { PortId::LAN } else { PortId::WAN }, &bytes);
        for (_, frame) in router.effects.punt.drain(..) {
            router.pool.put(frame);
        }
    }
    assert_eq!(router.pool.len() + router.shard.waiting(), 256);
}

fn tcp_syn(sport: u16) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(sport, 80, 1, 1024);
    header.syn = true;
    let builder = PacketBuilder::ethernet2([2; 6], LAN_MAC.0).ipv4(CLIENT, SERVER, 64).tcp_header(header);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"").expect("writing to memory");
    assert_eq!(bytes[47], tcp::SYN);
    bytes
}

#[test]
fn every_random_match_draws_anew() {
    let mut router = Bench::new();
    let text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m statistic --mode random --probability 0.5 -j ACCEPT\n\
                -A FORWARD -m statistic --mode random --probability 0.5 -j DROP\nCOMMIT\n";
    let rules = rules::load("dice", text, Family::V4, &["lan0", "wan0"]).expect("good rules");
    router.policy = Policy { generation: 2, v4: RuleVector::compile(&rules), ..router.policy };
    let packet = |n: u16| udp(PortId::LAN, [10, 1, 0, 2], SERVER, (1000 + n, 80), 64, 8);
    let dropped = (0..400).filter(|&n| router.one(PortId::LAN, &packet(n)).is_none()).count();
    // A quarter; the same number for both rules would never drop one.
    assert!((60..140).contains(&dropped), "{dropped} of 400");
}
