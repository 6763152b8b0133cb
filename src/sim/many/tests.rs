use super::*;
use std::collections::BTreeMap;

use crate::conntrack::{ConnFilter, Tuple};
use crate::packet::Packet;
use crate::rules::{self, RuleVector};
use crate::sim::Simulator;
use crate::snapshot::RoutingBuilder;
use crate::steering::{Fields, Flow, HashFields, NicHash, RssHash, Transform};
use crate::verdict::DropReason;
use crate::wire::{Family, Mac};
use crate::worker::{Request, Walk};
use etherparse::PacketBuilder;

const LAN_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const WAN_MAC: Mac = Mac([2, 0, 0, 0, 2, 1]);
const CLIENT: [u8; 6] = [4; 6];
const SERVER: [u8; 6] = [6; 6];

const MASQUERADE: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
    -A PREROUTING -i wan0 -p tcp --dport 8080 -j DNAT --to-destination 10.1.0.20:80\n\
    -A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n\
    *filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i lan0 -j ACCEPT\n-A FORWARD -p tcp --dport 80 -j ACCEPT\nCOMMIT\n";

fn routing() -> Routing {
    let addr = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let mut builder = RoutingBuilder::new();
    builder
        .add_port(PortId::LAN, "lan0", LAN_MAC, 1500)
        .add_port(PortId::WAN, "wan0", WAN_MAC, 1500)
        .add_address(PortId::LAN, addr("10.1.0.1"), 24)
        .add_address(PortId::WAN, addr("10.2.0.1"), 24);
    for host in 2..60u8 {
        builder.add_neighbour(PortId::LAN, addr(&format!("10.1.0.{host}")).into(), Mac(CLIENT));
        builder.add_neighbour(PortId::WAN, addr(&format!("10.2.0.{host}")).into(), Mac(SERVER));
    }
    builder.build()
}

fn policy(v4: &str) -> Policy {
    let vector = |text: &str, family| {
        RuleVector::compile(&rules::load("rules", text, family, &["lan0", "wan0"]).expect("good rules"))
    };
    let v6 = rules::default_policy(Family::V6, "lan0", "wan0");
    Policy { generation: 1, v4: vector(v4, Family::V4), v6: vector(&v6, Family::V6) }
}

fn settings(max: usize) -> Settings {
    Settings { max, ..Settings::default() }
}

fn many(workers: u16, rules: &str, max: usize, seed: u64) -> Many {
    let steering = Steering::software(workers, [seed, 9], "there is no NIC");
    Many::new(steering, policy(rules), routing(), settings(max), Faults::default(), seed)
}

/// What a flow is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Talk {
    kind: u8,
    client: u8,
    server: u8,
    port: u16,
}

impl Talk {
    fn any(random: &mut Seeded, number: u16) -> Talk {
        let bits = random.next_u64();
        Talk {
            kind: (bits % 4) as u8,
            client: 2 + (bits >> 8) as u8 % 50,
            server: 2 + (bits >> 16) as u8 % 50,
            port: 2000 + number,
        }
    }

    /// Which way its first packet goes.
    fn begins_at(&self) -> PortId {
        if self.kind == 3 { PortId::WAN } else { PortId::LAN }
    }

    fn first(&self) -> Vec<u8> {
        let (client, server) = ([10, 1, 0, self.client], [10, 2, 0, self.server]);
        let out = PacketBuilder::ethernet2(CLIENT, LAN_MAC.0).ipv4(client, server, 64);
        let mut bytes = Vec::new();
        let written = match self.kind {
            0 => out.udp(self.port, 53).write(&mut bytes, b"question"),
            1 => out.tcp(self.port, 443, 7, 1000).syn().write(&mut bytes, b""),
            2 => out.icmpv4_echo_request(self.port, 1).write(&mut bytes, b"ping"),
            // A port forward, from outside.
            _ => {
                let inwards = PacketBuilder::ethernet2(SERVER, WAN_MAC.0).ipv4(server, [10, 2, 0, 1], 64);
                inwards.tcp(self.port, 8080, 7, 1000).syn().write(&mut bytes, b"")
            }
        };
        written.expect("writing to memory");
        bytes
    }
}

/// The answer of whoever gets this packet.
fn answer(frame: &[u8]) -> Vec<u8> {
    let packet = Packet::parse(frame, PortId::LAN, true).expect("what leaves a router can be read");
    let addr = |addr: crate::wire::Addr| addr.v4_bits().to_be_bytes();
    let mac = |at: usize| <[u8; 6]>::try_from(&frame[at..at + 6]).expect("six bytes");
    let back = PacketBuilder::ethernet2(mac(0), mac(6)).ipv4(addr(packet.dst), addr(packet.src), 64);
    let mut bytes = Vec::new();
    let (sport, dport) = (packet.sport, packet.dport);
    match packet.proto {
        17 => back.udp(dport, sport).write(&mut bytes, b"answer"),
        1 => back.icmpv4_echo_reply(packet.sport, 1).write(&mut bytes, b"ping"),
        _ => back.tcp(dport, sport, 9, 1000).syn().ack(8).write(&mut bytes, b""),
    }
    .expect("writing to memory");
    bytes
}

/// What a packet says, but for its identification and checksums.
fn gist(frame: &[u8]) -> (Tuple, u8, usize) {
    let packet = Packet::parse(frame, PortId::LAN, true).expect("what leaves a router can be read");
    (Tuple::of(&packet), packet.ttl, frame.len())
}

/// Sends the first packets of `talks` in a few bursts, then the answers; gives what left, sorted, by port.
fn converse(router: &mut Many, talks: &[Talk]) -> [Vec<Vec<u8>>; 2] {
    let mut all: [Vec<Vec<u8>>; 2] = Default::default();
    for some in talks.chunks(40) {
        for talk in some {
            router.send(talk.begins_at(), &talk.first());
        }
        router.settle(400).expect("no port was cut");
        let left = PortId::ALL.map(|port| router.take(port));
        for (port, left) in PortId::ALL.into_iter().zip(&left) {
            left.iter().for_each(|frame| router.send(port, &answer(frame)));
        }
        router.settle(400).expect("no port was cut");
        for ((port, all), left) in PortId::ALL.into_iter().zip(&mut all).zip(left) {
            all.extend(left);
            all.extend(router.take(port));
        }
    }
    all.iter_mut().for_each(|frames| frames.sort());
    all
}

/// The same of one worker.
fn converse_alone(talks: &[Talk]) -> [Vec<Vec<u8>>; 2] {
    let mut router = Simulator::new(policy(MASQUERADE), routing(), settings(4096), Faults::default(), 1);
    let mut all: [Vec<Vec<u8>>; 2] = Default::default();
    for some in talks.chunks(40) {
        for talk in some {
            router.wire(talk.begins_at()).send(&talk.first());
        }
        router.settle(400).expect("no port was cut");
        let left = PortId::ALL.map(|port| router.wire(port).take());
        for (port, left) in PortId::ALL.into_iter().zip(&left) {
            left.iter().for_each(|frame| router.wire(port).send(&answer(frame)));
        }
        router.settle(400).expect("no port was cut");
        for ((port, all), left) in PortId::ALL.into_iter().zip(&mut all).zip(left) {
            all.extend(left);
            all.extend(router.wire(port).take());
        }
    }
    all.iter_mut().for_each(|frames| frames.sort());
    all
}

fn talks(seed: u64, count: u16) -> Vec<Talk> {
    let mut random = Seeded::new(seed);
    (0..count).map(|number| Talk::any(&mut random, number)).collect()
}

#[test]
fn whichever_queues_packets_arrive_on_each_flow_gets_what_one_worker_gives_it() {
    for (seed, workers) in [(1, 2), (2, 3), (3, 4), (4, 4), (5, 8), (6, 16), (7, 64)] {
        let talks = talks(seed, 300);
        let alone = converse_alone(&talks);
        let mut router = many(workers, MASQUERADE, 4096, seed);
        let together = converse(&mut router, &talks);
        for (port, (alone, together)) in PortId::ALL.into_iter().zip(alone.iter().zip(&together)) {
            assert_eq!(alone.len(), together.len(), "{workers} workers, {port:?}");
            assert!(alone == together, "{workers} workers, {port:?}: other packets left");
        }
        let handed: u64 = router.shards().map(|shard| shard.counters.handed_over).sum();
        let taken: u64 = router.shards().map(|shard| shard.counters.taken_over).sum();
        assert_eq!(handed, taken, "{workers} workers");
        assert!(handed > 300, "{workers} workers: hardly anything was handed over");
        let connections: usize = router.shards().map(|shard| shard.conntrack.len()).sum();
        assert_eq!(connections, talks.len(), "{workers} workers");
        assert!(router.shards().all(|shard| shard.conntrack.total() == connections));
        router.shards().for_each(|shard| shard.conntrack.check());
    }
}

/// Clients that all use the same ports: a tuple is given once, whoever gives it, and everybody gets his own answers.
#[test]
fn no_two_workers_give_out_the_same_tuple() {
    for (seed, workers) in [(1, 2), (2, 4), (3, 7)] {
        let mut router = many(workers, MASQUERADE, 4096, seed);
        let mut random = Seeded::new(seed);
        let mut talks = Vec::new();
        for client in 2..52 {
            for kind in 0..3 {
                talks.push(Talk { kind, client, server: 9, port: 1000 + (random.next_u64() % 2) as u16 });
            }
        }
        let left = converse(&mut router, &talks);
        let outwards: Vec<Tuple> = left[1].iter().map(|frame| gist(frame).0).collect();
        let mut once = outwards.clone();
        once.sort_by_key(|tuple| (tuple.proto, tuple.dst.bits(), tuple.sport, tuple.dport));
        once.dedup();
        assert_eq!((outwards.len(), once.len()), (talks.len(), talks.len()), "{workers} workers");
        let mut answered: BTreeMap<(u8, u128, u16), usize> = BTreeMap::new();
        for frame in &left[0] {
            let (tuple, ..) = gist(frame);
            let port = if tuple.proto == 1 { tuple.sport } else { tuple.dport };
            *answered.entry((tuple.proto, tuple.dst.bits(), port)).or_default() += 1;
        }
        assert_eq!(answered.len(), talks.len(), "{workers} workers");
        assert!(answered.values().all(|count| *count == 1), "{workers} workers");
    }
}

/// NICs whose hash is known, both with a symmetric key.
fn nics(workers: u16) -> Steering {
    let key: Vec<u8> = [0x6d, 0x5a].repeat(20);
    let (both, only) = (Fields::AddressesAndPorts, Fields::Addresses);
    let fields = HashFields {
        tcp4: both,
        udp4: both,
        sctp4: both,
        other4: only,
        tcp6: both,
        udp6: both,
        sctp6: both,
        other6: only,
    };
    let table: Vec<u32> = (0..128).map(|entry| entry % u32::from(workers)).collect();
    let function = "toeplitz".to_owned();
    let rss = RssHash { function, key, transform: Transform::None, fields, table };
    let nic = |name: &str| NicHash { interface: name.to_owned(), rss: Ok(rss.clone()) };
    Steering::from_nics(workers, [1, 2], &[nic("lan0"), nic("wan0")])
}

#[test]
fn by_the_nics_hash_replies_of_translated_connections_come_home_by_themselves() {
    for workers in [2u16, 4, 16] {
        let steering = nics(workers);
        assert!(matches!(steering, Steering::Nic(_)), "{steering}");
        let mut router =
            Many::new(steering.clone(), policy(MASQUERADE), routing(), settings(4096), Faults::default(), 5);
        let arrive = |router: &Many, port: PortId, frame: &[u8]| {
            let packet = Packet::parse(frame, port, true).expect("a packet");
            router.send_to(port, usize::from(steering.home(&Flow::of(&packet))), frame);
        };
        let talks: Vec<Talk> = talks(11, 400).into_iter().filter(|talk| talk.kind < 2).collect();
        for some in talks.chunks(20) {
            some.iter().for_each(|talk| arrive(&router, PortId::LAN, &talk.first()));
            router.settle(200).expect("no port was cut");
            for frame in router.take(PortId::WAN) {
                arrive(&router, PortId::WAN, &answer(&frame));
            }
            router.settle(200).expect("no port was cut");
        }
        assert_eq!(router.take(PortId::LAN).len(), talks.len(), "{workers} workers");
        let handed: u64 = router.shards().map(|shard| shard.counters.handed_over).sum();
        assert_eq!(handed, 0, "{workers} workers");
        // Forwarded ports keep the port that the client has, as nobody asks for another.
        let forwards: Vec<Talk> = (2..50).map(|client| Talk { kind: 3, client, server: client, port: 999 }).collect();
        forwards.iter().for_each(|talk| arrive(&router, PortId::WAN, &talk.first()));
        router.settle(200).expect("no port was cut");
        let inwards = router.take(PortId::LAN);
        assert!(inwards.len() == forwards.len() && inwards.iter().all(|frame| gist(frame).0.sport == 999));
        // An identifier does not bring a ping's answer home, since the NIC does not look at it: it finds its owner all the same.
        let pings: Vec<Talk> = (2..50).map(|client| Talk { kind: 2, client, server: 9, port: 1 }).collect();
        pings.iter().for_each(|talk| arrive(&router, PortId::LAN, &talk.first()));
        router.settle(200).expect("no port was cut");
        let out = router.take(PortId::WAN);
        assert_eq!(out.len(), pings.len(), "{workers} workers");
        out.iter().for_each(|frame| arrive(&router, PortId::WAN, &answer(frame)));
        router.settle(200).expect("no port was cut");
        assert_eq!(router.take(PortId::LAN).len(), pings.len(), "{workers} workers");
    }
}

/// A worker takes over in a burst what another can have received in one of its own.
#[test]
fn bursts_of_many_packets_do_not_fill_the_rings_between_workers() {
    let steering = Steering::software(2, [5, 9], "there is no NIC");
    let room = Room { ring: 512, between: 1024, frames: 4096 };
    let mut router =
        Many::with_room(room, steering, policy(MASQUERADE), routing(), settings(4096), Faults::default(), 5);
    let flows: Vec<Vec<u8>> =
        (0..256).map(|number| Talk { kind: 0, client: 2, server: 2, port: 2000 + number }.first()).collect();
    let mut received = 0;
    for _ in 0..50 {
        for queue in 0..2 {
            flows.iter().for_each(|packet| router.send_to(PortId::LAN, queue, packet));
        }
        for worker in 0..2 {
            received += router.burst(worker).expect("no port was cut");
        }
    }
    let full: u64 = router.shards().map(|shard| shard.counters.drops.get(DropReason::HandoverFull)).sum();
    assert!(received > 20_000, "{received} packets and parcels");
    assert_eq!(full, 0, "of {received}");
}

#[test]
fn a_full_ring_is_a_counted_drop_and_no_frame_is_lost() {
    let mut router = many(2, MASQUERADE, 4096, 3);
    for number in 0..600u16 {
        router.send_to(PortId::LAN, 0, &Talk { kind: 0, client: 2, server: 2, port: 2000 + number }.first());
        // The other worker never gets a turn.
        if number % 32 == 31 {
            router.burst(0).expect("no port was cut");
        }
    }
    for _ in 0..20 {
        router.burst(0).expect("no port was cut");
    }
    let full: u64 = router.shards().map(|shard| shard.counters.drops.get(DropReason::HandoverFull)).sum();
    assert!(full > 100, "{full}");
    router.settle(400).expect("no port was cut");
    let left = router.take(PortId::WAN).len() as u64;
    let lost: u64 = router.wires.iter().flatten().map(WireEnd::lost).sum();
    assert_eq!(left + full + lost, 600);
    router.shards().for_each(|shard| shard.conntrack.check());
}

/// A worker without room asks the others, and all together never have more than there may be.
#[test]
fn together_they_have_no_more_connections_than_there_may_be() {
    let mut router = many(4, MASQUERADE, 100, 3);
    for number in 0..1000u16 {
        router.send(PortId::LAN, &Talk { kind: 0, client: 2, server: 2, port: 2000 + number }.first());
        router.settle(50).expect("no port was cut");
        assert!(router.shards().map(|shard| shard.conntrack.len()).sum::<usize>() <= 100);
    }
    let full: u64 = router.shards().map(|shard| shard.counters.drops.get(DropReason::ConntrackFull)).sum();
    assert!(full < 20, "{full} found no room though there were connections that could go");
    router.shards().for_each(|shard| shard.conntrack.check());
}

#[test]
fn what_ends_takes_its_signposts_along() {
    let mut router = many(4, MASQUERADE, 4096, 3);
    let talks = talks(5, 400);
    converse(&mut router, &talks);
    let posts = |router: &Many| {
        let all: Vec<(usize, usize)> = router.shards().map(|shard| shard.conntrack.signposts()).collect();
        (all.iter().map(|it| it.0).sum::<usize>(), all.iter().map(|it| it.1).sum::<usize>())
    };
    let (here, there) = posts(&router);
    assert!(here > 50 && here == there, "{here} {there}");
    router.advance(1_000_000 * 1_000_000_000);
    for _ in 0..2000 {
        router.steps().expect("no port was cut");
    }
    assert_eq!(router.shards().map(|shard| shard.conntrack.len()).sum::<usize>(), 0);
    assert_eq!(posts(&router), (0, 0));
}

/// The same once more with threads of their own, rules being published all the while.
#[test]
fn in_threads_of_their_own_they_do_the_same() {
    for (seed, workers) in [(1, 2), (2, 4)] {
        let talks = talks(seed, 600);
        let mut random = Seeded::new(seed);
        let mut router = many(workers, MASQUERADE, 4096, seed);
        let wires: Vec<[WireEnd; 2]> =
            (0..router.count()).map(|queue| PortId::ALL.map(|port| router.wire(port, queue))).collect();
        let published = router.policy.clone();
        let mut all: [Vec<Vec<u8>>; 2] = Default::default();
        router.in_threads(|| {
            let mut any = |port: PortId| &wires[random.next_u64() as usize % wires.len()][port.index()];
            for (round, some) in talks.chunks(40).enumerate() {
                published.store(Arc::new(Policy { generation: 2 + round as u64, ..policy(MASQUERADE) }));
                some.iter().for_each(|talk| any(talk.begins_at()).send(&talk.first()));
                let mut answered = 0;
                let begun = std::time::Instant::now();
                // Each packet is answered when it has come through; nothing else says when that is.
                while answered < some.len() {
                    assert!(begun.elapsed().as_secs() < 20, "{workers} workers: only {answered} came through");
                    for port in PortId::ALL {
                        for frame in wires.iter().flat_map(|wires| wires[port.index()].take()) {
                            let is_first = gist(&frame).1 == 63 && !is_answer(&frame);
                            if is_first {
                                answered += 1;
                                any(port).send(&answer(&frame));
                            }
                            all[port.index()].push(frame);
                        }
                    }
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        });
        router.settle(400).expect("no port was cut");
        for (port, all) in PortId::ALL.into_iter().zip(&mut all) {
            all.extend(router.take(port));
            all.sort();
        }
        let alone = converse_alone(&talks);
        assert_eq!([all[0].len(), all[1].len()], [alone[0].len(), alone[1].len()], "{workers} workers");
        assert!(all == alone, "{workers} workers: other packets left");
        router.shards().for_each(|shard| shard.conntrack.check());
    }
}

/// Whether the packet is one that [`answer`] has made.
fn is_answer(frame: &[u8]) -> bool {
    let packet = Packet::parse(frame, PortId::LAN, true).expect("what leaves a router can be read");
    match packet.proto {
        17 => packet.sport == 53,
        1 => packet.icmp_type() == 0,
        _ => packet.tcp_flags & crate::wire::tcp::ACK != 0,
    }
}

/// Datagrams of one flow leave in the order in which they came, though the queue they come by is neither that of the flow's home nor,
/// once it is translated, that of its owner; with connections ended and rules published between them.
#[test]
fn a_flows_packets_do_not_overtake_each_other() {
    for (seed, workers) in [(1, 2), (2, 3), (3, 4), (4, 8)] {
        let mut router = many(workers, MASQUERADE, 4096, seed);
        let mut random = Seeded::new(seed);
        let flows: Vec<(Talk, usize)> = (0..60)
            .map(|at| {
                let talk = Talk { kind: 0, client: 2 + at % 40, server: 2 + at % 7, port: 3000 + u16::from(at) };
                (talk, random.next_u64() as usize % usize::from(workers))
            })
            .collect();
        for number in 0..30u8 {
            for (talk, queue) in &flows {
                let mut bytes = Vec::new();
                PacketBuilder::ethernet2(CLIENT, LAN_MAC.0)
                    .ipv4([10, 1, 0, talk.client], [10, 2, 0, talk.server], 64)
                    .udp(talk.port, 53)
                    .write(&mut bytes, &[number])
                    .expect("writing to memory");
                router.send_to(PortId::LAN, *queue, &bytes);
                if random.chance(40) {
                    router.burst(random.next_u64() as usize % usize::from(workers)).expect("no port was cut");
                }
            }
            router.policy.store(Arc::new(Policy { generation: 2 + u64::from(number), ..policy(MASQUERADE) }));
        }
        router.settle(400).expect("no port was cut");
        let mut seen: BTreeMap<(u128, u128, u16), Vec<u8>> = BTreeMap::new();
        for frame in router.take(PortId::WAN) {
            let packet = Packet::parse(&frame, PortId::LAN, true).expect("what leaves a router can be read");
            let payload = packet.l4_bytes(&frame)[8];
            seen.entry((packet.src.bits(), packet.dst.bits(), packet.sport)).or_default().push(payload);
        }
        let full: u64 = router.shards().map(|shard| shard.counters.drops.get(DropReason::HandoverFull)).sum();
        assert_eq!((seen.len(), full), (flows.len(), 0), "{workers} workers");
        for (flow, numbers) in &seen {
            assert_eq!(*numbers, (0..30).collect::<Vec<u8>>(), "{workers} workers, {flow:?}");
        }
    }
}

/// Connections are ended by the operator while their packets are under way between workers: whatever leaves has the translation of
/// a connection, and no tuple is at two workers.
#[test]
fn connections_that_are_ended_under_traffic_leave_nothing_wrong() {
    for seed in 0..6 {
        let mut router = many(4, MASQUERADE, 4096, seed);
        let mut random = Seeded::new(seed);
        let talks = talks(seed, 40);
        for round in 0..120 {
            for talk in talks.iter().filter(|talk| talk.kind != 1) {
                router.send(talk.begins_at(), &talk.first());
            }
            for _ in 0..random.next_u64() % 6 {
                router.steps().expect("no port was cut");
            }
            if round % 5 == 4 {
                let worker = random.next_u64() as usize % 4;
                let (filter, entries) = (ConnFilter::default(), Vec::with_capacity(256));
                let all = Walk { filter, delete_for: Some(1), cursor: Some(0), budget: 1 << 20, entries };
                assert!(router.handles[worker].line.ask(Request::Walk(Box::new(all))));
            }
            for handle in &mut router.handles {
                while handle.line.answer().is_some() {}
            }
        }
        router.settle(400).expect("no port was cut");
        let mut homes: BTreeMap<String, usize> = BTreeMap::new();
        for shard in router.shards() {
            shard.conntrack.check();
            shard.conntrack.list(0, 1 << 20, router.now(), &mut |view| {
                *homes.entry(format!("{:?}", view.original)).or_default() += 1;
                *homes.entry(format!("{:?}", view.reply)).or_default() += 1;
            });
        }
        assert!(homes.values().all(|count| *count == 1), "seed {seed}: a tuple is at two workers");
        let (here, there) = router
            .shards()
            .map(|shard| shard.conntrack.signposts())
            .fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        assert_eq!(here, there, "seed {seed}: signposts that lead nowhere");
    }
}

/// What a rule has refused, or what was ended, is counted by nobody any more, at whichever worker it was.
#[test]
fn refused_connections_do_not_count_for_connlimit() {
    let rules = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n\
        -A FORWARD -p tcp --syn -m connlimit --connlimit-above 3 --connlimit-mask 0 -j DROP\nCOMMIT\n";
    for seed in 0..8 {
        let mut router = many(4, rules, 4096, seed);
        for round in 0..6u16 {
            for number in 0..12 {
                let talk = Talk { kind: 1, client: 2, server: 2, port: 1000 + 100 * round + number };
                router.send(PortId::LAN, &talk.first());
                router.settle(50).expect("no port was cut");
            }
            assert_eq!(router.take(PortId::WAN).len(), 3, "seed {seed}, round {round}");
            for handle in &mut router.handles {
                let (filter, entries) = (ConnFilter::default(), Vec::with_capacity(256));
                let all = Walk { filter, delete_for: Some(1), cursor: Some(0), budget: 1 << 20, entries };
                assert!(handle.line.ask(Request::Walk(Box::new(all))));
            }
            router.settle(200).expect("no port was cut");
            for handle in &mut router.handles {
                while handle.line.answer().is_some() {}
            }
            assert_eq!(router.shards().map(|shard| shard.conntrack.len()).sum::<usize>(), 0);
            // Lists of connections are walked once in a millisecond at most.
            router.advance(10_000_000);
        }
    }
}

/// A connection that was counted and then found the ring to its owner full is counted no more, and its home has no signpost for it.
#[test]
fn what_gets_lost_between_workers_does_not_count_for_connlimit() {
    let rules = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n\
        -A FORWARD -p tcp --syn -m connlimit --connlimit-above 6 --connlimit-mask 0 -j DROP\nCOMMIT\n";
    for seed in 0..8 {
        let steering = Steering::software(2, [seed, 9], "there is no NIC");
        let (policy, settings) = (policy(rules), settings(4096));
        let mut router = Many::with_room(
            Room { between: 2, ..Room::default() },
            steering,
            policy,
            routing(),
            settings,
            Faults::default(),
            seed,
        );
        let syn = |number: u16| Talk { kind: 1, client: 2, server: 2, port: 1000 + number }.first();
        for number in 0..40 {
            // The other worker never gets a turn. (Lists of connections are walked once in a millisecond at most.)
            router.send_to(PortId::LAN, 0, &syn(number));
            router.burst(0).expect("no port was cut");
            router.advance(10_000_000);
        }
        let full: u64 = router.shards().map(|shard| shard.counters.drops.get(DropReason::HandoverFull)).sum();
        assert!(full > 4, "seed {seed}: {full}");
        for number in 40..80 {
            router.send(PortId::LAN, &syn(number));
            router.settle(50).expect("no port was cut");
            router.advance(10_000_000);
        }
        assert_eq!(router.shards().map(|shard| shard.conntrack.len()).sum::<usize>(), 6, "seed {seed}");
        let posts = |of: fn((usize, usize)) -> usize| -> usize {
            router.shards().map(|shard| of(shard.conntrack.signposts())).sum()
        };
        assert_eq!(posts(|it| it.0), posts(|it| it.1), "seed {seed}");
    }
}

/// All that leaves in an FTP session of each of `clients` clients with one server, who all announce the same port.
fn ftp_sessions(router: &mut Many, clients: u8) -> Vec<(PortId, Vec<u8>)> {
    let mut all = Vec::new();
    for client in 2..2 + clients {
        let syn = schedules::segment(
            ([10, 1, 0, client], 4000 + u16::from(client)),
            ([10, 2, 0, 2], 21),
            (true, 100, None),
            b"",
        );
        router.send(PortId::LAN, &syn);
    }
    loop {
        router.settle(50).expect("no port was cut");
        let left: Vec<_> = PortId::ALL
            .into_iter()
            .flat_map(|port| router.take(port).into_iter().map(move |frame| (port, frame)))
            .collect();
        if left.is_empty() {
            return all;
        }
        for (port, frame) in left {
            schedules::ftp(port, &frame, &mut |port, frame| router.send(port, frame));
            all.push((port, frame));
        }
    }
}

/// Who has its tuple from another worker's helper: the home of a tuple knows by its signpost that it is taken, also when it chooses a
/// port for a connection of its own.
#[test]
fn a_tuple_with_a_signpost_is_taken() {
    let mut posted = 0;
    for seed in 0..24 {
        let mut router = many(4, schedules::FTP, 4096, seed);
        ftp_sessions(&mut router, 1);
        // The server's 14002 talks with port 5001 outside, for a client; another client wants just that.
        let own = ([10, 1, 0, 40], 5001);
        router.send(PortId::LAN, &schedules::segment(own, ([10, 2, 0, 2], 14002), (true, 100, None), b""));
        router.settle(50).expect("no port was cut");
        let [frame] = &router.take(PortId::WAN)[..] else { panic!("seed {seed}: it has no port") };
        assert_ne!(gist(frame).0.sport, 5001, "seed {seed}: a tuple is given twice");
        router.shards().for_each(|shard| shard.conntrack.check());
        posted += router.shards().map(|shard| shard.conntrack.signposts().0).sum::<usize>();
    }
    assert!(posted > 0, "nothing has lived away from its home");
}

/// What one worker's helper expects, another's does not expect as well: it announces another port.
#[test]
fn no_two_workers_expect_the_same() {
    for seed in 0..8 {
        let mut router = many(4, schedules::FTP, 4096, seed);
        let all = ftp_sessions(&mut router, 5);
        let of = |at: PortId, is: fn(&Packet) -> bool| {
            let seen = all.iter().filter(|(port, _)| *port == at);
            let packets = seen.map(|(port, frame)| Packet::parse(frame, *port, true).expect("what leaves can be read"));
            packets.filter(is).map(|packet| (packet.dst.bits(), packet.sport, packet.dport)).collect::<Vec<_>>()
        };
        // The server's connections, as they reach the clients; and what these answer, as it reaches the server.
        let [inwards, mut outwards] =
            [of(PortId::LAN, |packet| packet.sport > 14000), of(PortId::WAN, |packet| packet.dport > 14000)];
        let mut clients: Vec<u128> = inwards.iter().map(|(client, ..)| *client).collect();
        clients.sort_unstable();
        clients.dedup();
        outwards.sort_unstable();
        outwards.dedup();
        assert_eq!((clients.len(), outwards.len()), (5, 5), "seed {seed}: {inwards:?} {outwards:?}");
        assert!(inwards.iter().all(|(.., port)| *port == 5001), "seed {seed}");
    }
}

mod schedules;
