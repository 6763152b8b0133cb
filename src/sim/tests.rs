use super::*;
use crate::rules::{self, RuleVector};
use crate::snapshot::RoutingBuilder;
use crate::verdict::DropReason;
use crate::wire::{Family, Mac};
use crate::worker::{Reply, Request};
use etherparse::PacketBuilder;

const LAN_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const WAN_MAC: Mac = Mac([2, 0, 0, 0, 2, 1]);

fn simulator(faults: Faults, seed: u64) -> Simulator {
    let addr = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let mut builder = RoutingBuilder::new();
    builder
        .add_port(PortId::LAN, "lan0", LAN_MAC, 1500)
        .add_port(PortId::WAN, "wan0", WAN_MAC, 1500)
        .add_address(PortId::LAN, addr("10.1.0.1"), 24)
        .add_address(PortId::WAN, addr("10.2.0.1"), 24)
        .add_neighbour(PortId::LAN, addr("10.1.0.2").into(), Mac([4; 6]))
        .add_neighbour(PortId::WAN, addr("10.2.0.2").into(), Mac([6; 6]));
    let vector = |family| {
        let text = rules::default_policy(family, "lan0", "wan0");
        RuleVector::compile(&rules::load("default", &text, family, &["lan0", "wan0"]).expect("good rules"))
    };
    let policy = Policy { generation: 1, v4: vector(Family::V4), v6: vector(Family::V6) };
    Simulator::new(policy, builder.build(), Settings { max: 1024, ..Settings::default() }, faults, seed)
}

fn query(sport: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([4; 6], LAN_MAC.0).ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64).udp(sport, 53);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"question").expect("writing to memory");
    bytes
}

fn answer(sport: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([6; 6], WAN_MAC.0).ipv4([10, 2, 0, 2], [10, 1, 0, 2], 64).udp(53, sport);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"answer").expect("writing to memory");
    bytes
}

#[test]
fn the_worker_forwards_both_ways() {
    let mut sim = simulator(Faults::default(), 1);
    sim.wire(PortId::LAN).send(&query(1000));
    sim.settle(10).expect("no port was cut");
    assert_eq!(sim.wire(PortId::WAN).take().len(), 1);
    sim.wire(PortId::WAN).send(&answer(1000));
    sim.settle(10).expect("no port was cut");
    assert_eq!(sim.wire(PortId::LAN).take().len(), 1);
}

#[test]
fn faults_lose_packets_but_never_frames_and_never_pass_what_is_refused() {
    for seed in 0..20 {
        let faults = Faults { lose: 30, reorder: 60, refuse_transmit: 100, hold_completions: 100 };
        let mut sim = simulator(faults, seed);
        for round in 0..50u16 {
            for n in 0..20 {
                sim.wire(PortId::LAN).send(&query(1000 + round * 20 + n));
                sim.wire(PortId::WAN).send(&answer(40_000 + n)); // nobody asked
            }
            sim.advance(1_000_000);
            sim.burst().expect("no port was cut");
        }
        sim.settle(200).expect("no port was cut");
        let drops = &sim.shard().counters.drops;
        let refused = drops.get(DropReason::RuleDrop) + drops.get(DropReason::PolicyDrop);
        let (lan, wan) = (sim.wire(PortId::LAN).clone(), sim.wire(PortId::WAN).clone());
        assert!(lan.take().is_empty(), "seed {seed}: a refused packet passed");
        assert_eq!(refused + wan.lost(), 1000, "seed {seed}");
        let forwarded = wan.take().len() as u64;
        assert!(forwarded + lan.lost() + drops.get(DropReason::TransmitFull) <= 1000, "seed {seed}");
        assert!(forwarded > 500, "seed {seed}: only {forwarded} of 1000 passed");
    }
}

#[test]
fn a_port_that_disappears_ends_the_run() {
    let mut sim = simulator(Faults::default(), 1);
    sim.wire(PortId::WAN).cut();
    let lost = sim.burst().expect_err("the port is gone");
    assert_eq!((lost.port, lost.to_string().contains("wan port failed")), (PortId::WAN, true));
}

#[test]
fn the_mailbox_answers_between_bursts() {
    let mut sim = simulator(Faults::default(), 1);
    for sport in 0..100 {
        sim.wire(PortId::LAN).send(&query(1000 + sport));
    }
    sim.settle(10).expect("no port was cut");
    assert!(sim.handle.line.ask(Request::Stats));
    let (mut cursor, mut seen) = (Some(0), 0);
    sim.burst().expect("no port was cut");
    match sim.handle.line.answer().expect("an answer") {
        Reply::Stats(stats) => assert_eq!((stats.entries, stats.counters.ports[0].receive_packets), (100, 100)),
        other => panic!("not stats: {other:?}"),
    }
    while let Some(at) = cursor {
        assert!(sim.handle.line.ask(Request::Conntrack { cursor: at, budget: 7 }));
        sim.burst().expect("no port was cut");
        match sim.handle.line.answer().expect("an answer") {
            Reply::Conntrack { entries, next } => (cursor, seen) = (next, seen + entries.len()),
            other => panic!("not a listing: {other:?}"),
        }
    }
    assert_eq!(seen, 100);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut sim = simulator(Faults { lose: 80, reorder: 80, ..Faults::default() }, seed);
        (0..200).for_each(|n| sim.wire(PortId::LAN).send(&query(1000 + n)));
        sim.settle(50).expect("no port was cut");
        sim.wire(PortId::WAN).take()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}
