//! What a route lookup costs: prefix table alone, by number of routes.
//!
//! `throughput` looks up independent addresses, as a batch does; `latency` makes each address depend on the result of the
//! lookup before. Tables have the lengths of a full BGP feed at random places (real feeds cluster, and are kinder).

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use xrouter::route::{Fib, FibEntry, FibKey};

/// Addresses per iteration; more than fit any cache's worth of table lines.
const ADDRESSES: usize = 1 << 16;

/// Random numbers that come again (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 20) % limit
    }

    /// A length by its share in percent.
    fn length(&mut self, shares: &[(u8, u64)]) -> u8 {
        let mut at = self.below(shares.iter().map(|(_, share)| share).sum());
        for &(len, share) in shares {
            if at < share {
                return len;
            }
            at -= share;
        }
        0
    }
}

/// Shares of prefix lengths in the global IPv4 table, roughly.
const LENGTHS_V4: [(u8, u64); 9] = [(24, 60), (23, 10), (22, 11), (21, 5), (20, 5), (19, 3), (18, 2), (17, 1), (16, 3)];
/// Shares of prefix lengths in the global IPv6 table, roughly.
const LENGTHS_V6: [(u8, u64); 6] = [(48, 48), (44, 10), (40, 12), (36, 6), (32, 18), (29, 6)];

fn ipv4_table(count: usize) -> Vec<FibEntry<u64>> {
    let mut random = Random(1);
    let mut prefixes = BTreeMap::from([((0, 0), 1)]);
    while prefixes.len() < count {
        let len = random.length(&LENGTHS_V4);
        // 1.0.0.0 to 223.255.255.255
        let bits = (0x0100_0000 + random.below(0xdf00_0000)) & (u64::MAX << (32 - len));
        prefixes.insert((bits << 32, len), random.below(64) as u32 + 1);
    }
    prefixes.into_iter().map(|((key, len), value)| FibEntry { key, len, value }).collect()
}

fn ipv6_table(count: usize) -> Vec<FibEntry<u128>> {
    let mut random = Random(2);
    let mut prefixes = BTreeMap::from([((0, 0), 1)]);
    while prefixes.len() < count {
        let len = random.length(&LENGTHS_V6);
        // A registry's /12, then anything.
        let top = [0x2001, 0x2400, 0x2600, 0x2800, 0x2a00, 0x2c00][random.below(6) as usize] as u128;
        let bits = (top << 112 | u128::from(random.next()) << 52) & (u128::MAX << (128 - u32::from(len)));
        prefixes.insert((bits, len), random.below(64) as u32 + 1);
    }
    prefixes.into_iter().map(|((key, len), value)| FibEntry { key, len, value }).collect()
}

/// Addresses inside the table's own prefixes, as traffic has them.
fn destinations<K: FibKey>(table: &[FibEntry<K>], inside: impl Fn(&FibEntry<K>, u64) -> K) -> Vec<K> {
    let mut random = Random(3);
    (0..ADDRESSES).map(|_| inside(&table[random.below(table.len() as u64) as usize], random.next())).collect()
}

/// What `times` runs of `work` take of this thread's processor time, so that other work on the machine does not count.
fn cpu_time<T>(times: u64, work: impl Fn() -> T) -> Duration {
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("the kernel counts");
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(micros as u64)
    };
    let begin = used();
    for _ in 0..times {
        black_box(work());
    }
    used() - begin
}

fn measure<K: FibKey>(c: &mut Criterion, group: &str, name: &str, table: &[FibEntry<K>], addresses: &[K]) {
    let fib = Fib::build(table);
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(addresses.len() as u64));
    group.bench_function(BenchmarkId::new("throughput", name), |b| {
        b.iter_custom(|times| {
            cpu_time(times, || addresses.iter().fold(0u32, |sum, &address| sum ^ fib.lookup(black_box(address))))
        });
    });
    group.bench_function(BenchmarkId::new("latency", name), |b| {
        b.iter_custom(|times| {
            cpu_time(times, || {
                // 0 or 1 further on by what was found: the next address is not known before.
                (0..addresses.len() - 1).fold(0usize, |last, at| fib.lookup(addresses[at + (last & 1)]) as usize)
            })
        });
    });
    group.finish();
}

fn lookups(c: &mut Criterion) {
    for (name, count) in [("1", 1), ("1k", 1000), ("100k", 100_000), ("1M", 1_000_000)] {
        let table = ipv4_table(count);
        let addresses = destinations(&table, |entry, random| {
            entry.key | (random & !(u64::MAX.checked_shl(64 - u32::from(entry.len)).unwrap_or(0))) >> 32 << 32
        });
        measure(c, "fib_ipv4", name, &table, &addresses);
    }
    for (name, count) in [("1k", 1000), ("200k", 200_000)] {
        let table = ipv6_table(count);
        let addresses = destinations(&table, |entry, random| {
            let bits = u128::from(random) << 64 | u128::from(random);
            entry.key | (bits & u128::MAX.checked_shr(entry.len.into()).unwrap_or(0))
        });
        measure(c, "fib_ipv6", name, &table, &addresses);
    }
}

fn builds(c: &mut Criterion) {
    let mut group = c.benchmark_group("fib_build");
    group.sample_size(10);
    let few = ipv4_table(10);
    group.bench_function("ipv4_10", |b| b.iter_custom(|n| cpu_time(n, || Fib::build(black_box(&few)))));
    let full = ipv4_table(1_000_000);
    group.bench_function("ipv4_1M", |b| b.iter_custom(|n| cpu_time(n, || Fib::build(black_box(&full)))));
    let full6 = ipv6_table(200_000);
    group.bench_function("ipv6_200k", |b| b.iter_custom(|n| cpu_time(n, || Fib::build(black_box(&full6)))));
    group.finish();
    let sizes = [
        ("10 IPv4", Fib::build(&few).memory_bytes()),
        ("1M IPv4", Fib::build(&full).memory_bytes()),
        ("200k IPv6", Fib::build(&full6).memory_bytes()),
    ];
    for (what, bytes) in sizes {
        eprintln!("{what} routes: {} KiB", bytes >> 10);
    }
}

criterion_group!(benches, lookups, builds);
criterion_main!(benches);
