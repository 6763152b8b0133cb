//! The connection table alone, in memory: nanoseconds per lookup (hit, miss, with and without the prefetch stages),
//! insertion with removal, a whole tracked packet, and expiry, at 64 k and 1 M connections in a table that is full.
//!
//! `cargo bench --bench table`. Keys are visited in random order, so nothing is in cache by luck.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant as Clock};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use xrouter::conntrack::{Conntrack, CtInfo, Settings, Template, Tuple};
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::time::Instant;
use xrouter::wire::{Addr, Family, proto};

/// Packets in a batch of the datapath.
const BATCH: usize = 64;
const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

/// The UDP packet of flow `number`; `extra` makes a flow that is not in the table.
fn packet_of(number: u32, extra: bool) -> Packet {
    let frame = udp_frame();
    let mut packet = Packet::parse(&frame, PortId::LAN, false).expect("a good packet");
    packet.src = Addr::from_v4(0x0a00_0000 | number >> 12);
    packet.sport = 1024 + (number & 0xfff) as u16;
    packet.dport = if extra { 54 } else { 53 };
    packet
}

fn udp_frame() -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = [0x45, 0, 0, 32, 0, 1, 0, 0, 64, proto::UDP, 0, 0, 10, 0, 0, 1, 10, 99, 0, 1];
    frame[14..34].copy_from_slice(&ip);
    xrouter::wire::ipv4::set_checksum(&mut frame[14..34]);
    frame[34..42].copy_from_slice(&[4, 0, 0, 53, 0, 12, 0, 0]);
    frame
}

/// A tracker full of `size` connections, and their numbers in random order.
fn full(size: usize) -> (Conntrack, Vec<u32>) {
    let settings = Settings { max: size, checksum: false, udp_timeout: 1_000_000, ..Settings::default() };
    let mut ct = Conntrack::new(settings, SECRET);
    let frame = udp_frame();
    for number in 0..size as u32 {
        let packet = packet_of(number, false);
        let hash = ct.hash(&Tuple::of(&packet));
        let tracked = ct.track(&packet, &frame, hash, Template::DEFAULT, Instant::ZERO).expect("room");
        ct.confirm(&tracked, Instant::ZERO).expect("room");
    }
    assert_eq!(ct.len(), size);
    let mut order: Vec<u32> = (0..size as u32).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for at in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, ((state >> 33) % (at as u64 + 1)) as usize);
    }
    (ct, order)
}

/// Packets of a few batches, far apart in the table, used in turn.
fn batches(order: &[u32], extra: bool) -> Vec<Vec<Packet>> {
    order.chunks_exact(BATCH).take(4096).map(|batch| batch.iter().map(|&n| packet_of(n, extra)).collect()).collect()
}

fn track(criterion: &mut Criterion) {
    let frame = udp_frame();
    let mut group = criterion.benchmark_group("track");
    group.throughput(Throughput::Elements(BATCH as u64)).warm_up_time(Duration::from_secs(1));
    for size in [65_536, 1_048_576] {
        let (mut ct, order) = full(size);
        for (name, extra, staged) in
            [("hit/staged", false, true), ("hit/one by one", false, false), ("miss/staged", true, true)]
        {
            let batches = batches(&order, extra);
            let mut turn = 0;
            // A miss in a full table that may not drop early is a lookup that fails, nothing more.
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| {
                    let batch = &batches[turn];
                    turn = (turn + 1) % batches.len();
                    let mut hashes = [0; BATCH];
                    for (hash, packet) in hashes.iter_mut().zip(batch) {
                        *hash = ct.hash(&Tuple::of(packet));
                        if staged {
                            ct.prefetch_bucket(*hash);
                        }
                    }
                    if staged {
                        hashes.iter().zip(batch).for_each(|(&hash, packet)| ct.prefetch_conn(packet, hash));
                    }
                    for (&hash, packet) in hashes.iter().zip(batch) {
                        if extra {
                            black_box(ct.find(&Tuple::of(packet), hash));
                        } else {
                            let tracked = ct
                                .track(packet, &frame, hash, Template::DEFAULT, Instant::from_secs(1))
                                .expect("known");
                            debug_assert_eq!(tracked.info, CtInfo::New);
                            black_box(tracked);
                        }
                    }
                });
            });
        }
    }
    group.finish();
}

fn table(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    group.throughput(Throughput::Elements(1)).warm_up_time(Duration::from_secs(1));
    let key = Tuple::of(&packet_of(1, false));
    let (ct, _) = full(1);
    group.bench_function("hash/v4", |bencher| bencher.iter(|| ct.hash(black_box(&key))));
    let v6 = Tuple { family: Family::V6, src: Addr::from_v6(1 << 99 | 7), dst: Addr::from_v6(3 << 99), ..key };
    group.bench_function("hash/v6", |bencher| bencher.iter(|| ct.hash(black_box(&v6))));
    group.finish();
}

/// New connections into an empty table until it is full, and their expiry, all at once.
fn fill_and_expire(criterion: &mut Criterion) {
    let frame = udp_frame();
    let mut group = criterion.benchmark_group("whole table");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    for size in [65_536usize, 1_048_576] {
        group.throughput(Throughput::Elements(size as u64));
        let (mut ct, order) = full(size);
        let mut now = Instant::from_secs(10_000_000);
        while ct.expire(now, 1024) > 0 {}
        let packets: Vec<Packet> = order.iter().map(|&number| packet_of(number, false)).collect();
        for expiry in [false, true] {
            let name = if expiry { "expire" } else { "insert" };
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut total = Duration::ZERO;
                    for _ in 0..rounds {
                        let start = Clock::now();
                        for packet in &packets {
                            let hash = ct.hash(&Tuple::of(packet));
                            let tracked = ct.track(packet, &frame, hash, Template::DEFAULT, now).expect("room");
                            ct.confirm(&tracked, now).expect("room");
                        }
                        let filled = Clock::now();
                        now = now + 2_000_000 * 1_000_000_000;
                        while ct.expire(now, 1024) > 0 {}
                        assert!(ct.is_empty());
                        total += if expiry { filled.elapsed() } else { filled - start };
                    }
                    total
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, table, track, fill_and_expire);
criterion_main!(benches);
