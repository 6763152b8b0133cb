mod copies;
mod reloads;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::*;
use crate::conntrack::{ConnFilter, Event, EventKind, Tuple, TupleFilter};
use crate::control::api::Backend;
use crate::control::backend::{Facts, Published, Workers};
use crate::control::config::{Layer, Placed};
use crate::control::reload;
use crate::control::sources::{self, Sources};
use crate::packet::Packet;
use crate::rules::{self, Registry, RuleVector, SetTable};
use crate::snapshot::RoutingBuilder;
use crate::verdict::DropReason;
use crate::wire::{Family, Mac};
use crate::worker::{Reply, Request, SLICE, Walk, mailbox};
use etherparse::PacketBuilder;

const LAN_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const WAN_MAC: Mac = Mac([2, 0, 0, 0, 2, 1]);

fn simulator(faults: Faults, seed: u64) -> Simulator {
    sized_simulator(1024, faults, seed)
}

fn routing() -> Routing {
    let addr = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let mut builder = RoutingBuilder::new();
    builder
        .add_port(PortId::LAN, "lan0", LAN_MAC, 1500)
        .add_port(PortId::WAN, "wan0", WAN_MAC, 1500)
        .add_address(PortId::LAN, addr("10.1.0.1"), 24)
        .add_address(PortId::WAN, addr("10.2.0.1"), 24)
        .add_neighbour(PortId::LAN, addr("10.1.0.2").into(), Mac([4; 6]))
        .add_neighbour(PortId::WAN, addr("10.2.0.2").into(), Mac([6; 6]));
    builder.build()
}

fn sized_simulator(max: usize, faults: Faults, seed: u64) -> Simulator {
    let vector = |family| {
        let text = rules::default_policy(family, "lan0", "wan0");
        RuleVector::compile(&rules::load("default", &text, family, &["lan0", "wan0"]).expect("good rules"))
    };
    let policy = Policy { generation: 1, v4: vector(Family::V4), v6: vector(Family::V6) };
    Simulator::new(policy, routing(), Settings { max, ..Settings::default() }, faults, seed)
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
    sim.burst().expect("no port was cut");
    match sim.handle.line.answer().expect("an answer") {
        Reply::Stats(stats) => assert_eq!((stats.entries, stats.counters.ports[0].receive_packets), (100, 100)),
        other => panic!("not stats: {other:?}"),
    }
    let mut original = None;
    sim.shard().conntrack.list(0, usize::MAX, sim.now(), &mut |conn| {
        original = original.or(Some(conn.original));
    });
    let original = original.expect("it is there");
    assert_eq!(original.sport, 1000);
    assert!(sim.handle.line.ask(Request::Get(first_query())));
    sim.burst().expect("no port was cut");
    match sim.handle.line.answer().expect("an answer") {
        Reply::Get(Some(conn)) => assert_eq!(conn.original, original),
        other => panic!("not a connection: {other:?}"),
    }
}

/// The tuple of `query(1000)`.
fn first_query() -> Tuple {
    Tuple::of(&Packet::parse(&query(1000), PortId::LAN, true).expect("a sound packet"))
}

/// Bursts until the walk comes back; how many that took.
fn walk(sim: &mut Simulator, walk: Walk) -> (Box<Walk>, usize) {
    assert!(sim.handle.line.ask(Request::Walk(Box::new(walk))));
    for bursts in 1.. {
        sim.burst().expect("no port was cut");
        match sim.handle.line.answer() {
            None => {}
            Some(Reply::Walk(walk)) => return (walk, bursts),
            Some(other) => panic!("not a walk: {other:?}"),
        }
    }
    unreachable!("a counter does not end")
}

fn whole_table(room: usize) -> Walk {
    let entries = Vec::with_capacity(room);
    Walk { filter: ConnFilter::default(), delete_for: None, cursor: Some(0), budget: usize::MAX, entries }
}

/// With room for `max` connections, and `count` of them there.
fn filled(max: usize, count: u16) -> Simulator {
    let mut sim = sized_simulator(max, Faults::default(), 1);
    for sport in 0..count {
        sim.wire(PortId::LAN).send(&query(1000 + sport));
    }
    sim.settle(100).expect("no port was cut");
    assert_eq!(sim.shard().conntrack.len(), usize::from(count));
    sim
}

/// However large the table, a burst looks at [`SLICE`] records of it, and the memory for what is found is the asker's own.
#[test]
fn walks_look_at_a_slice_of_the_table_per_burst() {
    let records = 200_000;
    let mut sim = filled(records, 500);
    let asked = whole_table(1000);
    let (memory, room) = (asked.entries.as_ptr(), asked.entries.capacity());
    let (found, bursts) = walk(&mut sim, asked);
    assert_eq!((found.entries.len(), found.cursor), (500, None));
    assert_eq!(bursts, records.div_ceil(SLICE));
    assert_eq!((found.entries.as_ptr(), found.entries.capacity()), (memory, room), "the worker took other memory");

    // Packets are forwarded in between as ever.
    sim.wire(PortId::WAN).take();
    assert!(sim.handle.line.ask(Request::Walk(Box::new(whole_table(1000)))));
    for sport in 0..100 {
        sim.wire(PortId::LAN).send(&query(1000 + sport));
        sim.burst().expect("no port was cut");
        assert_eq!(sim.wire(PortId::WAN).take().len(), 1);
    }
    assert!(sim.handle.line.answer().is_none());
}

/// A walk comes back when there is room for no more, or its budget is used up, and goes on where it was.
#[test]
fn walks_come_in_pieces() {
    let mut sim = filled(10_000, 500);
    let mut ids = std::collections::BTreeSet::new();
    let mut next = whole_table(7);
    while next.cursor.is_some() {
        next.budget = 100;
        next.entries.clear();
        let (found, bursts) = walk(&mut sim, next);
        assert!(found.entries.len() <= 7 && bursts <= 100, "{} in {bursts}", found.entries.len());
        ids.extend(found.entries.iter().map(|conn| conn.id));
        next = *found;
    }
    assert_eq!(ids.len(), 500);
}

#[test]
fn connections_are_deleted_and_events_told() {
    let mut sim = filled(1000, 0);
    let (ring, mut events) = rtrb::RingBuffer::new(64);
    assert!(sim.handle.line.ask(Request::Listen(Some(ring))));
    sim.burst().expect("no port was cut");
    assert!(matches!(sim.handle.line.answer(), Some(Reply::Listening(None))));
    let query_from = |sim: &mut Simulator, ports: std::ops::Range<u16>| {
        ports.for_each(|sport| sim.wire(PortId::LAN).send(&query(sport)));
        sim.settle(9).expect("no port was cut");
    };
    let told = |events: &mut rtrb::Consumer<Event>| {
        let all = std::iter::from_fn(|| events.pop().ok());
        all.map(|event| (event.kind, event.by, event.conn.original.sport)).collect::<Vec<_>>()
    };
    query_from(&mut sim, 1000..1010);
    assert_eq!(told(&mut events), (1000..1010).map(|sport| (EventKind::New, 0, sport)).collect::<Vec<_>>());

    let original = TupleFilter { sport: Some(1003), ..TupleFilter::default() };
    let filter = ConnFilter { original, ..ConnFilter::default() };
    let (found, _) = walk(&mut sim, Walk { filter, delete_for: Some(77), ..whole_table(5) });
    assert_eq!((found.entries.len(), found.entries[0].original.sport), (1, 1003));
    sim.burst().expect("no port was cut");
    assert_eq!(told(&mut events), [(EventKind::Destroy, 77, 1003)]);
    assert_eq!(sim.shard().conntrack.len(), 9);
    sim.shard().conntrack.check();

    // What nobody fetches in time is lost, and counted.
    query_from(&mut sim, 2000..2100);
    assert_eq!((told(&mut events).len(), sim.handle.line.events_lost()), (64, 36));
    assert!(sim.handle.line.ask(Request::Listen(None)));
    sim.burst().expect("no port was cut");
    assert!(matches!(sim.handle.line.answer(), Some(Reply::Listening(Some(_)))));
    query_from(&mut sim, 3000..3100);
    assert_eq!((told(&mut events).len(), sim.handle.line.events_lost()), (0, 36));
}

#[test]
fn settings_change_while_it_runs() {
    let mut sim = filled(1000, 1);
    let mut set = |settings: Settings| {
        assert!(sim.handle.line.ask(Request::Settings(Box::new(settings))));
        sim.burst().expect("no port was cut");
        let Some(Reply::Settings(outcome)) = sim.handle.line.answer() else { panic!("not an answer") };
        (outcome, sim.shard().conntrack.settings().udp_timeout, sim.shard().conntrack.len())
    };
    let settings = Settings { max: 1000, udp_timeout: 7, ..Settings::default() };
    assert_eq!(set(settings.clone()), (Ok(()), 7, 1));
    let (outcome, timeout, _) = set(Settings { max: 1001, udp_timeout: 8, ..settings });
    assert!(outcome.is_err_and(|error| error.contains("nf_conntrack_max = 1001")) && timeout == 7);
}

/// What workers with the built-in policy run by, or with the IPv4 rules of a file, and with the sets of another.
fn published(file: Option<&Path>, sets: Option<&Path>) -> Published {
    let layer = Layer {
        lan: Some(Placed::option("--lan", "lan0".parse().expect("a name"))),
        wan: Some(Placed::option("--wan", "wan0".parse().expect("a name"))),
        rules: file.map(|path| Placed::option("--rules", path.to_owned())),
        sets: sets.map(|path| Placed::option("--sets", path.to_owned())),
        ..Layer::default()
    };
    let sources = Sources::new(layer, None);
    let config = sources.config().expect("complete");
    let sets = sources::sets(&config, &SetTable::new([1, 2]), Instant::ZERO, false).expect("good sets");
    let rulesets = sources::rulesets(&config, &Arc::new(sets), false).expect("good rules").map(Arc::new);
    let mut registry = Registry::default();
    let policy = Arc::new(ArcSwap::from_pointee(reload::compile(&rulesets, config.track, &mut registry)));
    Published {
        policy,
        routing: Arc::new(ArcSwap::from_pointee(routing())),
        sources,
        config,
        rulesets,
        registry,
        steering: None,
    }
}

fn facts(workers: u32) -> Facts {
    let start = std::time::Instant::now();
    Facts { start, mode: "copy".into(), poll: "busy".into(), cores: (0..workers).collect() }
}

#[test]
fn settings_that_one_worker_does_not_take_are_put_in_force_in_none() {
    let mut sims = [simulator(Faults::default(), 1), simulator(Faults::default(), 2)];
    let take = |sim: &mut Simulator| std::mem::replace(&mut sim.handle, mailbox().expect("a descriptor").1).line;
    let mut lines: Vec<_> = sims.iter_mut().map(take).collect();
    // Whoever asked before has filled what others may fill of the stuck one's mailbox.
    while lines[1].ask(Request::TableCounts) {}
    let before = Settings { max: 1024, ..Settings::default() };
    let workers = Workers::new(lines, facts(2), before.clone(), published(None, None));
    let change = BTreeMap::from([("nf_conntrack_udp_timeout".to_owned(), 7)]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let [awake, stuck] = &mut sims;
    let outcome = runtime.block_on(async {
        let work = async {
            loop {
                awake.burst().expect("no port was cut");
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            outcome = workers.sysctl(&change) => outcome,
            () = work => unreachable!("it never ends"),
        }
    });
    assert!(outcome.expect_err("worker 1 is stuck").0.contains("worker 1 does not answer"));
    // The stuck one comes back and finds both.
    for _ in 0..40 {
        stuck.burst().expect("no port was cut");
    }
    for sim in &sims {
        assert_eq!(*sim.shard().conntrack.settings(), before);
    }
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
