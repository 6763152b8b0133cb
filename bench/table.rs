//! The connection table alone, in memory, at 64 k, 1 M and 16 M connections, full, beside hashbrown's map with the same keys:
//! nanoseconds per lookup (found, not found), tracked packet, new connection, expiry, packet that finds the table full;
//! and bytes per connection.
//!
//! `cargo bench --bench table` for all sizes (16 M needs 8 GB), `cargo bench --bench table -- 65536` for some. Keys are
//! visited in random order, so nothing is in cache by luck. *Staged* is as the datapath does it, in batches of 64: hash and
//! prefetch all, then look at all. Each figure is the best of three rounds and the ticks of the time-stamp counter that are
//! as long, for comparison with what counts in them (DPDK's `hash_perf_autotest`).
//!
//! The table asks for huge pages. hashbrown gets them too with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment; the
//! head of the output says which. hashbrown's map has two entries for each connection, as the table has two keys, and its
//! default hasher (foldhash); the connections are in an array beside it, and a lookup that finds one reads it.
#![allow(missing_docs, clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant as Clock};

use hashbrown::HashMap;
use xrouter::arch;
use xrouter::conntrack::{self, ConnRef, Conntrack, Settings, Tracked, Tuple};
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::time::{Instant, SECOND_NS};
use xrouter::verdict::DropReason;
use xrouter::wire::{Addr, proto, tcp};

/// Packets in a batch of the datapath.
const BATCH: usize = 64;
/// Batches of a round of lookups.
const BATCHES: usize = 8192;
const ROUNDS: usize = 3;
const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
/// Longer than the bench takes.
const LIFE: u32 = 1_000_000;

/// A packet as it came, to make the packets of all flows from.
struct Template {
    packet: Packet,
    frame: Vec<u8>,
}

impl Template {
    fn new(protocol: u8, flags: u8, seq: u32, ack: u32) -> Template {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        let length = if protocol == proto::TCP { 40 } else { 32 };
        let ip = [0x45, 0, 0, length, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 99, 0, 1];
        frame[14..34].copy_from_slice(&ip);
        xrouter::wire::ipv4::set_checksum(&mut frame[14..34]);
        if protocol == proto::TCP {
            frame[34..38].copy_from_slice(&[4, 0, 0, 53]);
            frame[38..42].copy_from_slice(&seq.to_be_bytes());
            frame[42..46].copy_from_slice(&ack.to_be_bytes());
            frame[46..50].copy_from_slice(&[0x50, flags, 100, 0]);
        } else {
            frame[34..42].copy_from_slice(&[4, 0, 0, 53, 0, 12, 0, 0]);
        }
        let packet = Packet::parse(&frame, PortId::LAN, false).expect("a good packet");
        Template { packet, frame }
    }

    fn udp() -> Template {
        Template::new(proto::UDP, 0, 0, 0)
    }

    /// The packet of flow `number`.
    fn of(&self, number: u32) -> Packet {
        let src = Addr::from_v4(0x0a00_0000 | number >> 12);
        Packet { src, sport: 1024 + (number & 0xfff) as u16, ..self.packet }
    }

    /// A packet the other way.
    fn back(&self, number: u32) -> Packet {
        let Packet { src, dst, sport, dport, .. } = self.of(number);
        Packet { src: dst, dst: src, sport: dport, dport: sport, ..self.packet }
    }
}

/// A packet of a flow that is in no table; of another for each `port` but 53.
fn stranger(packet: &Packet, port: u16) -> Packet {
    Packet { dport: port, ..*packet }
}

fn track(ct: &mut Conntrack, packet: &Packet, frame: &[u8], hash: u64, now: Instant) -> Result<Tracked, DropReason> {
    ct.track(packet, frame, hash, conntrack::Template::DEFAULT, now)
}

fn pass(ct: &mut Conntrack, packet: &Packet, frame: &[u8], hash: u64, now: Instant) {
    let tracked = track(ct, packet, frame, hash, now).expect("room");
    ct.confirm(&tracked, now).expect("no clash");
    assert_ne!(tracked.conn, ConnRef::None);
}

/// Hashes of a batch, with the prefetch stages or without.
fn hash_all(ct: &Conntrack, batch: &[Packet], staged: bool) -> [u64; BATCH] {
    let mut hashes = [0; BATCH];
    for (hash, packet) in hashes.iter_mut().zip(batch) {
        *hash = ct.hash(&Tuple::of(packet));
        if staged {
            ct.prefetch_bucket(*hash);
        }
    }
    if staged {
        for (&hash, packet) in hashes.iter().zip(batch) {
            let _ = ct.prefetch_conn(packet, hash);
        }
    }
    hashes
}

fn tracker(size: usize) -> Conntrack {
    let settings = Settings {
        max: size,
        checksum: false,
        udp_timeout: LIFE,
        tcp_timeout_syn_sent: LIFE,
        tcp_timeout_established: LIFE,
        ..Settings::default()
    };
    Conntrack::new(settings, SECRET)
}

/// The numbers of all flows, in random order.
fn shuffled(size: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..size as u32).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for at in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, ((state >> 33) % (at as u64 + 1)) as usize);
    }
    order
}

/// Packets of a round of lookups, far apart in the table.
fn sample(order: &[u32], packet_of: impl Fn(u32) -> Packet) -> Vec<Packet> {
    let count = (BATCHES * BATCH).min(order.len() / BATCH * BATCH);
    order[..count].iter().map(|&number| packet_of(number)).collect()
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Clock::now();
    work();
    start.elapsed()
}

/// Best time of a few rounds, for each of `count` things.
fn best(count: usize, mut round: impl FnMut()) -> f64 {
    per((0..ROUNDS).map(|_| time(&mut round)).min().expect("a round"), count)
}

fn per(time: Duration, count: usize) -> f64 {
    time.as_nanos() as f64 / count as f64
}

/// The output: a line for each thing measured, a column for each size.
#[derive(Default)]
struct Report {
    lines: Vec<(&'static str, Vec<f64>)>,
}

impl Report {
    fn add(&mut self, name: &'static str, value: f64) {
        match self.lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => self.lines.push((name, vec![value])),
        }
        eprintln!("  {name}: {value:.1}");
    }

    fn print(&self, sizes: &[usize], ticks_per_ns: f64) {
        print!("| ns (ticks) each, or bytes | ");
        sizes.iter().for_each(|size| print!("{size} | "));
        println!("\n|---|{}", "---|".repeat(sizes.len()));
        for (name, values) in &self.lines {
            print!("| {name} | ");
            for value in values {
                match name.contains("bytes") {
                    true => print!("{value:.1} | "),
                    false => print!("{value:.1} ({:.0}) | ", value * ticks_per_ns),
                }
            }
            println!();
        }
    }
}

/// UDP: lookups, tracked packets, new connections and expiry.
fn udp(report: &mut Report, size: usize, order: &[u32]) {
    let (mut ct, template) = (tracker(size), Template::udp());
    let memory = ct.memory();
    report.add("xrouter: bytes per IPv4 connection", memory.per_v4());
    report.add("xrouter: bytes per IPv6 connection", memory.per_v6());
    let mut now = Instant::ZERO;
    let mut times = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        times[0] = times[0].min(time(|| fill(&mut ct, &template, order, now)));
        now = now + 2 * u64::from(LIFE) * SECOND_NS;
        times[1] = times[1].min(time(|| while ct.expire(now, 1024) > 0 {}));
        assert!(ct.is_empty());
    }
    report.add("xrouter: new UDP connection, staged", per(times[0], size));
    report.add("xrouter: expiry", per(times[1], size));
    fill(&mut ct, &template, order, now);
    let known = sample(order, |number| template.of(number));
    let strange: Vec<Packet> = known.iter().map(|packet| stranger(packet, 54)).collect();
    for (name, packets, staged) in [
        ("xrouter: lookup, found, staged", &known, true),
        ("xrouter: lookup, found, one by one", &known, false),
        ("xrouter: lookup, not found, staged", &strange, true),
        ("xrouter: lookup, not found, one by one", &strange, false),
    ] {
        let value = best(packets.len(), || {
            for batch in packets.chunks_exact(BATCH) {
                let hashes = hash_all(&ct, batch, staged);
                for (packet, hash) in batch.iter().zip(hashes) {
                    black_box(ct.find(&Tuple::of(packet), hash));
                }
            }
        });
        report.add(name, value);
    }
    for (name, staged) in
        [("xrouter: UDP packet, tracked, staged", true), ("xrouter: UDP packet, tracked, one by one", false)]
    {
        report.add(name, best(known.len(), || track_all(&mut ct, &known, &template.frame, staged, now)));
    }
    // In a full table each new connection takes the place of one that nobody has answered.
    let mut port = 1000;
    let value = best(known.len(), || {
        port += 1;
        for batch in known.chunks_exact(BATCH) {
            let mut packets = [template.packet; BATCH];
            packets.iter_mut().zip(batch).for_each(|(packet, known)| *packet = stranger(known, port));
            let hashes = hash_all(&ct, &packets, true);
            for (packet, hash) in packets.iter().zip(hashes) {
                pass(&mut ct, packet, &template.frame, hash, now);
            }
        }
    });
    report.add("xrouter: new UDP connection in a full table, staged", value);
    assert_eq!((ct.len(), ct.statistics().early_drop), (size, (ROUNDS * known.len()) as u64));
}

/// New connections until the table is full.
fn fill(ct: &mut Conntrack, template: &Template, order: &[u32], now: Instant) {
    for batch in order.chunks(BATCH) {
        let mut packets = [template.packet; BATCH];
        packets.iter_mut().zip(batch).for_each(|(packet, &number)| *packet = template.of(number));
        let packets = &packets[..batch.len()];
        let hashes = hash_all(ct, packets, true);
        for (packet, hash) in packets.iter().zip(hashes) {
            pass(ct, packet, &template.frame, hash, now);
        }
    }
    assert_eq!(ct.len(), order.len());
}

fn track_all(ct: &mut Conntrack, packets: &[Packet], frame: &[u8], staged: bool, now: Instant) {
    for batch in packets.chunks_exact(BATCH) {
        let hashes = hash_all(ct, batch, staged);
        for (packet, hash) in batch.iter().zip(hashes) {
            black_box(track(ct, packet, frame, hash, now).expect("known"));
        }
    }
}

/// TCP: segments of open connections, and the packet that finds a table full of them.
fn open_tcp(report: &mut Report, size: usize, order: &[u32]) {
    let mut ct = tracker(size);
    let now = Instant::from_secs(1);
    let syn = Template::new(proto::TCP, tcp::SYN, 100, 0);
    let answer = Template::new(proto::TCP, tcp::SYN | tcp::ACK, 500, 101);
    let ack = Template::new(proto::TCP, tcp::ACK, 101, 501);
    for &number in order {
        for (packet, template) in [(syn.of(number), &syn), (answer.back(number), &answer), (ack.of(number), &ack)] {
            let hash = ct.hash(&Tuple::of(&packet));
            pass(&mut ct, &packet, &template.frame, hash, now);
        }
    }
    let known = sample(order, |number| ack.of(number));
    for (name, staged) in
        [("xrouter: TCP segment, tracked, staged", true), ("xrouter: TCP segment, tracked, one by one", false)]
    {
        report.add(name, best(known.len(), || track_all(&mut ct, &known, &ack.frame, staged, now)));
    }
    let strange: Vec<Packet> = sample(order, |number| stranger(&syn.of(number), 54));
    let value = best(strange.len(), || {
        for batch in strange.chunks_exact(BATCH) {
            let hashes = hash_all(&ct, batch, true);
            for (packet, hash) in batch.iter().zip(hashes) {
                assert_eq!(track(&mut ct, packet, &syn.frame, hash, now), Err(DropReason::ConntrackFull));
            }
        }
    });
    report.add("xrouter: SYN refused, table full of open connections, staged", value);
}

/// hashbrown's map, and an array with a cache line for each connection.
fn hashbrown(report: &mut Report, size: usize, order: &[u32]) {
    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Record {
        mark: u64,
    }
    let template = Template::udp();
    let mut map: HashMap<Tuple, u32> = HashMap::with_capacity(2 * size);
    let records = vec![Record { mark: 1 }; size];
    let keys = |number: u32| {
        let tuple = Tuple::of(&template.of(number));
        [tuple, tuple.inverse().expect("an inverse")]
    };
    let mut times = [Duration::MAX; 2];
    for round in 0..ROUNDS {
        let insert = time(|| {
            for &number in order {
                keys(number).into_iter().for_each(|key| _ = map.insert(key, number));
            }
        });
        assert_eq!(map.len(), 2 * size);
        times[0] = times[0].min(insert);
        if round + 1 == ROUNDS {
            break; // the lookups want it full
        }
        let remove = time(|| {
            for &number in order {
                keys(number).into_iter().for_each(|key| _ = map.remove(&key));
            }
        });
        assert!(map.is_empty());
        times[1] = times[1].min(remove);
    }
    report.add("hashbrown: two keys inserted", per(times[0], size));
    report.add("hashbrown: two keys removed", per(times[1], size));
    let known = sample(order, |number| template.of(number));
    let strange: Vec<Packet> = known.iter().map(|packet| stranger(packet, 54)).collect();
    for (name, packets) in
        [("hashbrown: lookup, found, and its record", &known), ("hashbrown: lookup, not found", &strange)]
    {
        let value = best(packets.len(), || {
            let mut sum = 0;
            for packet in packets {
                if let Some(&number) = map.get(&Tuple::of(packet)) {
                    sum += records[number as usize].mark;
                }
            }
            black_box(sum);
        });
        report.add(name, value);
    }
    report.add(
        "hashbrown: bytes of the map per connection (xrouter's index: 21.3)",
        map.allocation_size() as f64 / size as f64,
    );
}

fn ticks_per_ns() -> f64 {
    let (start, ticks) = (Clock::now(), arch::tsc());
    while start.elapsed() < Duration::from_millis(100) {}
    (arch::tsc() - ticks) as f64 / start.elapsed().as_nanos() as f64
}

fn main() {
    let asked: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if asked.is_empty() { vec![1 << 16, 1 << 20, 1 << 24] } else { asked };
    let mut report = Report::default();
    for &size in &sizes {
        eprintln!("{size} connections");
        let order = shuffled(size);
        udp(&mut report, size, &order);
        open_tcp(&mut report, size, &order);
        hashbrown(&mut report, size, &order);
    }
    let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
    let huge = if tunables.contains("hugetlb=1") { "huge pages" } else { "pages of 4 KiB" };
    println!("Best of {ROUNDS} rounds, keys in random order; hashbrown on {huge}.\n");
    report.print(&sizes, ticks_per_ns());
}
