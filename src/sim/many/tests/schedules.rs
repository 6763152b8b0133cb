//! The workers of [`Many`] as threads of shuttle, which runs one of them at a time and has it drawn at every
//! [`crate::schedule::point`] who goes on: at each use of a ring, of what is published, of a lock, of a counter for all.
//!
//! Each test has [`schedules`] tried of every kind: wholly at random, and by PCT (everybody in an order of ranks, which changes at a
//! few places: what takes few meetings at the wrong moment is found so). `XROUTER_SCHEDULES=n` tries n of each. A run that fails
//! writes its schedule into a file and says where; `XROUTER_SCHEDULE=file` has the same run again, step by step.

use super::*;
use crate::schedule::{self, testing::ByShuttle};
use shuttle::rand::RngCore;
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Places at which PCT lets somebody else go first.
const CHANGES: usize = 4;

/// How many schedules of each kind a test has tried.
fn schedules() -> usize {
    std::env::var("XROUTER_SCHEDULES").ok().and_then(|count| count.parse().ok()).unwrap_or(48)
}

/// Has `run` run by many schedules.
fn under_schedules(run: impl Fn() + Send + Sync + Clone + 'static) {
    fn by(scheduler: impl Scheduler + 'static, run: impl Fn() + Send + Sync + 'static) {
        let mut config = Config::new();
        config.stack_size = 1 << 20;
        config.max_steps = MaxSteps::FailAfter(5_000_000);
        config.silence_warnings = true;
        config.failure_persistence = FailurePersistence::File(Some(std::env::temp_dir()));
        Runner::new(scheduler, config).run(run);
    }
    if let Some(file) = std::env::var_os("XROUTER_SCHEDULE") {
        return by(ReplayScheduler::new_from_file(file).expect("a schedule's file"), run);
    }
    by(RandomScheduler::new(schedules()), run.clone());
    by(PctScheduler::new(CHANGES, schedules()), run);
}

/// A number of this schedule's own.
fn any() -> u64 {
    shuttle::rand::thread_rng().next_u64()
}

/// What is seen of a worker from outside.
#[derive(Debug, Default)]
struct Progress {
    bursts: AtomicUsize,
    was_busy: AtomicBool,
}

/// The world outside while the workers run: one more thread.
struct Outside<'a> {
    wires: &'a [[WireEnd; PortId::COUNT]],
    progress: &'a [Progress],
    clock: &'a AtomicU64,
    policy: &'a ArcSwap<Policy>,
    handles: &'a mut [Handle],
}

impl Outside<'_> {
    /// A packet arrives at some queue.
    fn send(&mut self, port: PortId, packet: &[u8]) {
        let queue = any() as usize % self.wires.len();
        schedule::point();
        self.wires[queue][port.index()].send(packet);
    }

    fn publish(&mut self, policy: Policy) {
        schedule::point();
        self.policy.store(Arc::new(policy));
    }

    fn advance(&mut self, ns: u64) {
        self.clock.fetch_add(ns, Ordering::Relaxed);
    }

    fn left(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let all = self.wires.iter().flat_map(|wires| PortId::ALL.into_iter().zip(wires));
        all.flat_map(|(port, wire)| {
            schedule::point();
            wire.take().into_iter().map(move |frame| (port, frame))
        })
        .collect()
    }

    fn look_anew(&self) {
        for progress in self.progress {
            progress.bursts.store(0, Ordering::Relaxed);
            progress.was_busy.store(false, Ordering::Relaxed);
        }
    }

    /// Shows each packet that leaves to `react`, until nothing is under way any more: every worker has begun and ended a burst
    /// since, and none has met a packet.
    fn until_quiet(&mut self, mut react: impl FnMut(&mut Self, PortId, Vec<u8>)) {
        self.look_anew();
        loop {
            let left = self.left();
            if !left.is_empty() {
                left.into_iter().for_each(|(port, frame)| react(self, port, frame));
                self.look_anew();
            } else if self.progress.iter().all(|it| it.bursts.load(Ordering::Relaxed) >= 2) {
                let busy = self.progress.iter().any(|it| it.was_busy.load(Ordering::Relaxed));
                let pending = self.wires.iter().flatten().any(|wire| wire.pending() > 0);
                if !busy && !pending {
                    return;
                }
                self.look_anew();
            }
            shuttle::thread::yield_now();
        }
    }
}

fn work(worker: &mut Worker<SimPort, SimHost>, progress: &Progress, clock: &AtomicU64, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let received = worker.burst(Instant::from_ns(clock.load(Ordering::Relaxed))).expect("no port was cut");
        progress.bursts.fetch_add(1, Ordering::Relaxed);
        if received > 0 {
            progress.was_busy.store(true, Ordering::Relaxed);
            schedule::point();
        } else {
            shuttle::thread::yield_now();
        }
    }
}

impl Many {
    /// Lets each worker go on in a thread of shuttle's while `meanwhile` runs in another. Then they stop where they are.
    fn by_shuttle<R>(&mut self, meanwhile: impl FnOnce(&mut Outside<'_>) -> R) -> R {
        /// Sets it whatever happens.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let Many { workers, wires, policy, handles, now, .. } = self;
        let progress: Vec<Progress> = workers.iter().map(|_| Progress::default()).collect();
        let (clock, over) = (AtomicU64::new(now.as_ns()), AtomicBool::new(false));
        let _by_shuttle = ByShuttle::new();
        let outcome = shuttle::thread::scope(|scope| {
            let _over = Over(&over);
            for (worker, progress) in workers.iter_mut().zip(&progress) {
                scope.spawn(|| work(worker, progress, &clock, &over));
            }
            meanwhile(&mut Outside { wires, progress: &progress, clock: &clock, policy, handles })
        });
        *now = Instant::from_ns(clock.into_inner());
        outcome
    }

    /// All time is up: every connection goes, and what was known elsewhere of it goes too.
    fn ends_with_nothing(&mut self) {
        self.settle(400).expect("no port was cut");
        self.shards().for_each(|shard| shard.conntrack.check());
        let (here, there) = self.signposts();
        assert_eq!(here, there, "signposts that lead nowhere, or connections that their home does not know of");
        self.advance(10_000_000 * 1_000_000_000);
        for _ in 0..200 {
            (0..self.count()).for_each(|worker| _ = self.burst(worker).expect("no port was cut"));
        }
        assert_eq!(self.shards().map(|shard| shard.conntrack.len()).sum::<usize>(), 0);
        assert!(self.shards().all(|shard| shard.conntrack.total() == 0), "the count for all is not that of all");
        assert_eq!(self.signposts(), (0, 0));
    }

    fn signposts(&self) -> (usize, usize) {
        let all = self.shards().map(|shard| shard.conntrack.signposts());
        all.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1))
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.shards().map(|shard| shard.counters.drops.get(reason)).sum()
    }
}

/// As many workers as this schedule has, and rings of `between` entries between them.
fn some_workers(rules: &str, max: usize, between: usize) -> Many {
    let (workers, seed) = (2 + (any() % 3) as u16, any());
    let steering = Steering::software(workers, [seed, 9], "there is no NIC");
    Many::with_room(
        Room { between, ..Room::default() },
        steering,
        policy(rules),
        routing(),
        settings(max),
        Faults::default(),
        seed,
    )
}

/// The same, or such that rely on NICs, which bring packets elsewhere than they say.
fn some_workers_of_any_kind(rules: &str) -> Many {
    if any().is_multiple_of(2) {
        return some_workers(rules, 256, 128);
    }
    let steering = nics(2 + (any() % 3) as u16);
    Many::with_room(Room::default(), steering, policy(rules), routing(), settings(256), Faults::default(), any())
}

/// What leaves, each packet once.
type Left = [BTreeSet<Vec<u8>>; 2];

/// Sends what begins `talks`, and answers what comes through as it comes.
fn talk(outside: &mut Outside<'_>, talks: &[Talk], all: &mut Left) {
    for talk in talks {
        outside.send(talk.begins_at(), &talk.first());
    }
    outside.until_quiet(|outside, port, frame| {
        if gist(&frame).1 == 63 && !is_answer(&frame) {
            outside.send(port, &answer(&frame));
        }
        all[port.index()].insert(frame);
    });
}

fn alone(talks: &[Talk]) -> Left {
    converse_alone(talks).map(|frames| frames.into_iter().collect())
}

/// UDP, TCP and pings with masquerading, port forwards from outside; rules are published all the while, time goes on.
#[test]
fn each_flow_gets_what_one_worker_gives_it() {
    under_schedules(|| {
        let talks = talks(any(), 24);
        let mut router = some_workers(MASQUERADE, 256, 128);
        let mut all = Left::default();
        router.by_shuttle(|outside| {
            for (round, some) in talks.chunks(8).enumerate() {
                outside.publish(Policy { generation: 2 + round as u64, ..policy(MASQUERADE) });
                outside.advance(1000);
                talk(outside, some, &mut all);
            }
        });
        assert_eq!(router.dropped(DropReason::HandoverFull), 0);
        assert!(all == alone(&talks), "other packets left");
        assert_eq!(router.shards().map(|shard| shard.conntrack.len()).sum::<usize>(), talks.len());
        router.ends_with_nothing();
    });
}

/// Rings of two entries: what finds no room is dropped, counted, and sent again by who misses an answer.
#[test]
fn full_rings_cost_packets_and_nothing_else() {
    let full = Arc::new(AtomicU64::new(0));
    let all_full = full.clone();
    under_schedules(move || {
        let talks = talks(any(), 16);
        let mut router = some_workers(MASQUERADE, 256, 2);
        let mut all = Left::default();
        let wanted = alone(&talks);
        let came = router.by_shuttle(|outside| {
            (0..400).any(|_| {
                // Some at a time: what always comes behind the rest would always find the rings full.
                let some: Vec<Talk> = talks.iter().filter(|_| any().is_multiple_of(4)).copied().collect();
                talk(outside, &some, &mut all);
                all == wanted
            })
        });
        assert!(came, "some never came through");
        all_full.fetch_add(router.dropped(DropReason::HandoverFull), Ordering::Relaxed);
        router.ends_with_nothing();
    });
    assert!(full.load(Ordering::Relaxed) > 0, "no ring was full");
}

/// Clients with the same ports: a tuple is given once, and its answer goes to whom it was given.
#[test]
fn a_tuple_is_given_once() {
    under_schedules(|| {
        let talks: Vec<Talk> =
            (2..8).flat_map(|client| (0..3).map(move |kind| Talk { kind, client, server: 9, port: 1000 })).collect();
        let mut router = some_workers_of_any_kind(MASQUERADE);
        let mut all = Left::default();
        router.by_shuttle(|outside| talk(outside, &talks, &mut all));
        let outwards: BTreeSet<String> = all[1].iter().map(|frame| format!("{:?}", gist(frame).0)).collect();
        assert_eq!(outwards.len(), talks.len(), "a tuple was given twice");
        let inwards: BTreeSet<(u8, u128, u16)> = all[0]
            .iter()
            .map(|frame| {
                let (tuple, ..) = gist(frame);
                (tuple.proto, tuple.dst.bits(), if tuple.proto == 1 { tuple.sport } else { tuple.dport })
            })
            .collect();
        assert_eq!(inwards.len(), talks.len(), "an answer went to another");
        router.ends_with_nothing();
    });
}

/// What rules count for all, they count for all: to the packet, whoever asks them at the same moment.
#[test]
fn what_is_counted_for_all_is_exact() {
    let rules = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n\
        *filter\n:FORWARD DROP [0:0]\n\
        -A FORWARD -p udp --dport 1001 -m limit --limit 1/hour --limit-burst 5 -j ACCEPT\n\
        -A FORWARD -p udp --dport 1002 -m statistic --mode nth --every 4 --packet 0 -j ACCEPT\n\
        -A FORWARD -p udp --dport 1003 -m quota --quota 140 -j ACCEPT\n\
        -A FORWARD -p udp --dport 1004 -m hashlimit --hashlimit-upto 1/hour --hashlimit-burst 5 --hashlimit-name h -j ACCEPT\n\
        -A FORWARD -p udp --dport 1005 -m connlimit --connlimit-upto 5 --connlimit-mask 0 -j ACCEPT\n\
        COMMIT\n";
    under_schedules(move || {
        let mut router = some_workers(rules, 256, 128);
        let mut passed = BTreeMap::<u16, usize>::new();
        router.by_shuttle(|outside| {
            for number in 0..20u16 {
                for dport in 1001..=1005 {
                    let mut bytes = Vec::new();
                    let packet = PacketBuilder::ethernet2(CLIENT, LAN_MAC.0).ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64);
                    packet.udp(3000 + number, dport).write(&mut bytes, &[]).expect("writing to memory");
                    outside.send(PortId::LAN, &bytes);
                }
            }
            outside.until_quiet(|_, _, frame| *passed.entry(gist(&frame).0.dport).or_default() += 1);
        });
        // 140 bytes are five packets.
        assert_eq!(passed.into_iter().collect::<Vec<_>>(), (1001..=1005).map(|port| (port, 5)).collect::<Vec<_>>());
        router.ends_with_nothing();
    });
}

/// More connections than there may be: nobody has too many for a moment, and the count for all stays that of all.
#[test]
fn a_full_table_is_full_for_all() {
    under_schedules(|| {
        const MOST: usize = 12;
        let talks = talks(any(), 40);
        let mut router = some_workers(MASQUERADE, MOST, 128);
        let mut all = Left::default();
        for some in talks.chunks(10) {
            router.by_shuttle(|outside| talk(outside, some, &mut all));
            let connections = router.shards().map(|shard| shard.conntrack.len()).sum::<usize>();
            assert!(connections <= MOST, "{connections}");
            // Stopped in the middle of a burst's letters or not: what is counted is what is there.
            assert!(router.shards().all(|shard| shard.conntrack.total() == connections));
        }
        router.ends_with_nothing();
    });
}

/// Workers that stop under traffic, each where it is, and go on: no packet that is under way gets lost, no frame, no connection.
#[test]
fn workers_that_stop_under_traffic_leave_everything_in_its_place() {
    under_schedules(|| {
        let talks = talks(any(), 16);
        let mut router = some_workers(MASQUERADE, 256, 128);
        let mut all = Left::default();
        for _ in 0..3 {
            router.by_shuttle(|outside| {
                talks.iter().for_each(|talk| outside.send(talk.begins_at(), &talk.first()));
                (0..any() % 64).for_each(|_| shuttle::thread::yield_now());
            });
        }
        router.by_shuttle(|outside| talk(outside, &[], &mut all));
        assert!(all == alone(&talks), "other packets left");
        router.ends_with_nothing();
    });
}

/// Connections are ended by the operator while their packets are under way.
#[test]
fn connections_that_are_ended_under_way_leave_nothing_wrong() {
    under_schedules(|| {
        let talks = talks(any(), 12);
        let mut router = some_workers_of_any_kind(MASQUERADE);
        router.by_shuttle(|outside| {
            for round in 0..6 {
                for talk in talks.iter().filter(|talk| talk.kind != 1) {
                    outside.send(talk.begins_at(), &talk.first());
                }
                if round % 2 == 1 {
                    let worker = any() as usize % outside.handles.len();
                    let (filter, entries) = (ConnFilter::default(), Vec::with_capacity(256));
                    let all = Walk { filter, delete_for: Some(1), cursor: Some(0), budget: 1 << 20, entries };
                    assert!(outside.handles[worker].line.ask(Request::Walk(Box::new(all))));
                }
                (0..any() % 32).for_each(|_| shuttle::thread::yield_now());
                outside.handles.iter_mut().for_each(|handle| while handle.line.answer().is_some() {});
            }
            outside.until_quiet(|_, _, _| ());
        });
        let mut tuples: BTreeMap<String, usize> = BTreeMap::new();
        for shard in router.shards() {
            shard.conntrack.list(0, 1 << 20, router.now(), &mut |view| {
                *tuples.entry(format!("{:?}", view.original)).or_default() += 1;
                *tuples.entry(format!("{:?}", view.reply)).or_default() += 1;
            });
        }
        assert!(tuples.values().all(|count| *count == 1), "a tuple is at two workers");
        router.ends_with_nothing();
    });
}

pub(super) const FTP: &str = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp\nCOMMIT\n\
    *nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wan0 -j SNAT --to-source 10.2.0.100\nCOMMIT\n\
    *filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i lan0 -p tcp -m tcp -m multiport --dports 21,14002 -j ACCEPT\n\
    -A FORWARD -m conntrack --ctstate RELATED -m helper --helper ftp -j ACCEPT\nCOMMIT\n";

/// A segment from one host to another, on its way to the router.
pub(super) fn segment(
    from: ([u8; 4], u16),
    to: ([u8; 4], u16),
    (syn, seq, ack): (bool, u32, Option<u32>),
    data: &[u8],
) -> Vec<u8> {
    let (own, its) = if from.0[1] == 1 { (CLIENT, LAN_MAC.0) } else { (SERVER, WAN_MAC.0) };
    let mut tcp = PacketBuilder::ethernet2(own, its).ipv4(from.0, to.0, 64).tcp(from.1, to.1, seq, 8192);
    tcp = if syn { tcp.syn() } else { tcp };
    tcp = if let Some(ack) = ack { tcp.ack(ack) } else { tcp };
    let mut bytes = Vec::new();
    if data.is_empty() { tcp } else { tcp.psh() }.write(&mut bytes, data).expect("writing to memory");
    bytes
}

/// What a client and its FTP server say when this packet has reached one of them; `true`: the data connection was answered. All
/// clients want the server to connect to the same port; it does so from 10000 more than they talk from.
pub(super) fn ftp(port: PortId, frame: &[u8], send: &mut dyn FnMut(PortId, &[u8])) -> bool {
    const SERVER_ADDRESS: [u8; 4] = [10, 2, 0, 2];
    let packet = Packet::parse(frame, PortId::LAN, true).expect("what leaves a router can be read");
    let host = |addr: crate::wire::Addr| addr.v4_bits().to_be_bytes();
    let (from, to) = ((host(packet.src), packet.sport), (host(packet.dst), packet.dport));
    let data = &packet.l4_bytes(frame)[20..];
    let is_syn = packet.tcp_flags & crate::wire::tcp::SYN != 0;
    let mut say = |at: PortId, from, to, how, data: &[u8]| send(at, &segment(from, to, how, data));
    match (port, is_syn, data) {
        (PortId::WAN, true, _) if to.1 == 21 => say(port, to, from, (true, 900, Some(101)), b""),
        (PortId::LAN, true, _) if from.1 == 21 => {
            say(port, to, from, (false, 101, Some(901)), b"USER me\r\n");
        }
        (PortId::WAN, false, b"USER me\r\n") => say(port, to, from, (false, 901, Some(110)), b""),
        (PortId::LAN, false, _) if from.1 == 21 => {
            let [a, b, c, d] = to.0;
            let command = format!("PORT {a},{b},{c},{d},19,137\r\n");
            say(port, to, from, (false, 110, Some(901)), command.as_bytes());
        }
        (PortId::WAN, false, command) if to.1 == 21 => {
            let text = String::from_utf8_lossy(command);
            let numbers: Vec<u16> =
                text["PORT ".len()..].trim_end().split(',').map(|number| number.parse().expect("a number")).collect();
            let announced = [numbers[0], numbers[1], numbers[2], numbers[3]].map(|number| number as u8);
            say(
                port,
                (SERVER_ADDRESS, 10_000 + from.1),
                (announced, numbers[4] << 8 | numbers[5]),
                (true, 5, None),
                b"",
            );
        }
        (PortId::LAN, true, _) => {
            assert_eq!(from.1, 14_000 + u16::from(to.0[3]), "a data connection goes to another's client");
            say(port, to, from, (true, 7, Some(6)), b"");
        }
        (PortId::WAN, true, _) => return true,
        other => panic!("nobody says {other:?}"),
    }
    false
}

/// What a helper expects is known to all when the packet that announced it leaves: the server's connection, begun at that
/// moment and at any queue, is RELATED, goes where its master goes, and nobody else's packet does.
#[test]
fn what_is_announced_is_expected_by_all_at_once() {
    under_schedules(|| {
        let clients = 4;
        let mut router = some_workers(FTP, 256, 128);
        let mut done = 0;
        router.by_shuttle(|outside| {
            for client in 2..2 + clients {
                outside.send(
                    PortId::LAN,
                    &segment(
                        ([10, 1, 0, client], 4000 + u16::from(client)),
                        ([10, 2, 0, 2], 21),
                        (true, 100, None),
                        b"",
                    ),
                );
            }
            outside.until_quiet(|outside, port, frame| {
                done += u8::from(ftp(port, &frame, &mut |port, frame| outside.send(port, frame)));
            });
        });
        assert_eq!(done, clients, "a data connection did not come through");
        assert_eq!(router.shards().map(|shard| shard.conntrack.len()).sum::<usize>(), 2 * usize::from(clients));
        assert_eq!(router.shards().map(|shard| shard.conntrack.expected()).sum::<usize>(), 0);
        router.ends_with_nothing();
    });
}
