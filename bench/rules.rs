//! The rule index alone, in memory: nanoseconds from a packet's key to the first rule whose bounds hold, beside a plain
//! walk; time to build, bytes, changes per second.
//!
//! The last columns are the whole evaluation, and compiling for it: the same rules as `iptables-restore` text, loaded, compiled,
//! and asked what becomes of each header as the first packet of a new connection; one by one, and in batches as the datapath
//! does (what is foreseen of all, then each).
//!
//! `cargo bench --bench rules` for all sets, or name some: `cargo bench --bench rules -- acl4-10000 fw6-1000`; a name that ends
//! in `-shuffled` has its rules in random order. `--write FOLDER` writes the sets and their headers as files for
//! `dpdk-test-acl`, `--answers FOLDER` writes the positions found in the form that program prints, and `--passes N` times so many
//! passes over all headers in one go: for `scripts/bench-acl`. Lookups are in batches of 64 keys, 65,536 different ones in
//! turn; each figure is the best of the rounds.
#![allow(missing_docs, clippy::print_stdout)]

mod classbench;

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant as Clock};

use classbench::{Random, Set};
use xrouter::conntrack::{CtInfo, CtStatus, Template};
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::rules::index::{Bounds, Index, Key, NONE, Scratch};
use xrouter::rules::{Context, FORWARD, Foresight, Hook, RuleVector, Told, load};
use xrouter::time::Instant;
use xrouter::wire::{Addr, Family};

const HEADERS: usize = 65_536;
/// Keys per call, as many packets as a batch of the datapath has.
const BATCH: usize = 64;
const ROUNDS: usize = 15;
/// Changes timed.
const CHANGES: u32 = 2000;

/// Nanoseconds for each of `count` of what `work` does, the best of the rounds.
fn measure(count: usize, mut work: impl FnMut()) -> f64 {
    work();
    let rounds = (0..ROUNDS).map(|_| {
        let start = Clock::now();
        work();
        start.elapsed().as_nanos() as f64 / count as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn batches<const N: usize>(index: &Index<N>, headers: &[Key<N>]) -> u64 {
    let mut found = [0; BATCH];
    let mut scratch = Scratch::new();
    let mut sum = 0;
    for keys in headers.chunks_exact(BATCH) {
        index.first_batch_with(keys, &mut found, &mut scratch);
        sum += u64::from(found[0]);
    }
    sum
}

fn walk<const N: usize>(rules: &[Bounds<N>], key: &Key<N>) -> u32 {
    rules.iter().position(|rule| rule.hold(key)).map_or(NONE, |at| at as u32)
}

/// What index and walk find for the same keys.
fn compare<const N: usize>(index: &Index<N>, set: &Set<N>) {
    let some = (20_000_000 / set.rules.len()).clamp(64, set.headers.len()) / 64 * 64;
    let mut found = vec![0; some];
    index.first_batch(&set.headers[..some], &mut found);
    for (key, found) in set.headers.iter().zip(found) {
        assert_eq!(found, walk(&set.rules, key), "{key:?}");
        assert_eq!(index.next(key, 0).unwrap_or(NONE), found, "{key:?}");
    }
}

/// Changes per second: a rule removed at random, and inserted again elsewhere.
fn changes<const N: usize>(index: &Index<N>, set: &Set<N>) -> f64 {
    let mut random = Random(5);
    let mut index = index.clone();
    let start = Clock::now();
    for _ in 0..CHANGES / 2 {
        let len = set.rules.len() as u64;
        index.remove(random.below(len) as u32);
        index.insert(random.below(len) as u32, &set.rules[random.below(len) as usize]);
    }
    f64::from(CHANGES) / start.elapsed().as_secs_f64()
}

/// The packet of a header; for all of it that rules of these sets ask.
fn packet<const N: usize>(key: &Key<N>, blank: &Packet) -> Packet {
    let bits = |half: &[u32]| half.iter().fold(0u128, |bits, &word| bits << 32 | u128::from(word));
    let [src, dst] = [&key.words[..N / 2], &key.words[N / 2..]].map(|half| match N {
        2 => Addr::from_v4(half[0]),
        _ => Addr::from_v6(bits(half)),
    });
    let family = if N == 2 { Family::V4 } else { Family::V6 };
    Packet { family, src, dst, sport: key.sport, dport: key.dport, proto: key.proto, l4_len: 20, ..*blank }
}

/// What the whole evaluation costs.
struct Whole {
    /// Nanoseconds for a packet of a new connection, by itself.
    one: f64,
    /// The same in batches.
    batch: f64,
    /// Milliseconds to compile the rules.
    compile: f64,
}

/// A packet as the datapath brings it to FORWARD.
fn context<'a>(packet: &'a mut Packet, frame: &'a mut [u8]) -> Context<'a> {
    Context {
        packet,
        frame,
        hook: Hook::Forward,
        in_port: PortId::LAN,
        out_port: Some(PortId::WAN),
        out_mtu: 1500,
        info: CtInfo::New,
        status: CtStatus::default(),
        mark: 0,
        template: Template::DEFAULT,
        traced: false,
        now: Instant::default(),
    }
}

fn evaluate<const N: usize>(set: &Set<N>) -> Whole {
    let family = if N == 2 { Family::V4 } else { Family::V6 };
    let ruleset = load("bench", &classbench::rules_text(&set.rules), family, &["lan0", "wan0"]).expect("good rules");
    let compile = measure(1, || drop(black_box(RuleVector::compile(&ruleset)))) / 1e6;
    let vector = RuleVector::compile(&ruleset);
    let mut counters = vector.counters();
    let mut world = Told::default();
    let mut frame = vec![0; 64];
    frame[12..34].copy_from_slice(&[8, 0, 0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    xrouter::wire::ipv4::set_checksum(&mut frame[14..34]);
    frame[34..42].copy_from_slice(&[4, 0, 0, 53, 0, 12, 0, 0]);
    let blank = Packet::parse(&frame, PortId::LAN, false).expect("a good packet");
    let mut packets: Vec<Packet> = set.headers.iter().map(|key| packet(key, &blank)).collect();
    let one = measure(packets.len(), || {
        for packet in &mut packets {
            let mut context = context(packet, &mut frame);
            black_box(vector.evaluate(FORWARD, &mut context, &mut world, &mut counters));
        }
    });
    let mut foresight = Foresight::with_room(BATCH);
    let batch = measure(packets.len(), || {
        for batch in packets.chunks_mut(BATCH) {
            foresight.clear();
            for packet in &*batch {
                foresight.add(packet, Some(PortId::WAN), CtInfo::New);
            }
            vector.foresee(FORWARD, &mut foresight, &counters);
            for (number, packet) in batch.iter_mut().enumerate() {
                let mut context = context(packet, &mut frame);
                let foreseen = Some(foresight.of(number));
                black_box(vector.evaluate_foreseen(FORWARD, &mut context, &mut world, &mut counters, foreseen));
            }
        }
    });
    Whole { one, batch, compile }
}

fn run<const N: usize>(name: &str, set: &Set<N>) {
    let build = measure(1, || drop(black_box(Index::build(&set.rules)))) / 1e6;
    let index = Index::build(&set.rules);
    compare(&index, set);
    let batch = measure(HEADERS, || {
        black_box(batches(&index, &set.headers));
    });
    let single = measure(HEADERS, || {
        black_box(set.headers.iter().map(|key| u64::from(index.next(key, 0).unwrap_or(0))).sum::<u64>());
    });
    let some = &set.headers[..(4_000_000 / set.rules.len()).clamp(16, HEADERS)];
    let plain = measure(some.len(), || {
        black_box(some.iter().map(|key| u64::from(walk(&set.rules, key))).sum::<u64>());
    });
    let (nodes, blocks, depth) = index.shape();
    let whole = evaluate(set);
    let start = Clock::now();
    let copy = black_box(index.clone());
    let copying = start.elapsed();
    drop(copy);
    println!(
        "{name:<18} {batch:>7.1} {single:>7.1} {plain:>9.1} {build:>8.2} {:>7.0} {:>7.0} {:>6} {nodes:>6} {blocks:>6} \
         {depth:>3} {:>8.1} {:>8.1} {:>8.1}",
        changes(&index, set) / 1e3,
        index.bytes() as f64 / set.rules.len() as f64,
        Duration::as_micros(&copying),
        whole.one,
        whole.batch,
        whole.compile,
    );
}

/// Nanoseconds for a lookup, the mean of so many passes.
fn passes<const N: usize>(set: &Set<N>, count: usize) {
    let index = Index::build(&set.rules);
    let start = Clock::now();
    for _ in 0..count {
        black_box(batches(&index, &set.headers));
    }
    println!("{:.2}", start.elapsed().as_nanos() as f64 / (count * HEADERS) as f64);
}

fn files<const N: usize>(name: &str, set: &Set<N>, Wanted { write, answers, .. }: &Wanted) {
    let put = |folder: &PathBuf, ending: &str, text: String| {
        std::fs::write(folder.join(format!("{name}.{ending}")), text).expect("the folder can be written to");
    };
    if let Some(folder) = write {
        put(folder, "rules", classbench::rules_file(&set.rules));
        put(folder, "headers", classbench::headers_file(&set.headers));
    }
    if let Some(folder) = answers {
        let mut found = vec![0; set.headers.len()];
        Index::build(&set.rules).first_batch(&set.headers, &mut found);
        let family = if N == 2 { 4 } else { 6 };
        let line =
            |(at, found): (usize, &u32)| format!("ipv{family}_5tuple: {}, category: 0, result: {found}\n", at + 1);
        put(folder, "answers", found.iter().enumerate().map(line).collect());
    }
}

/// What the command line asks for.
#[derive(Default)]
struct Wanted {
    write: Option<PathBuf>,
    answers: Option<PathBuf>,
    passes: Option<usize>,
    names: Vec<String>,
}

impl Wanted {
    fn read() -> Wanted {
        let mut wanted = Wanted::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {}
                "--write" => wanted.write = arguments.next().map(PathBuf::from),
                "--answers" => wanted.answers = arguments.next().map(PathBuf::from),
                "--passes" => wanted.passes = arguments.next().and_then(|count| count.parse().ok()),
                name => wanted.names.push(name.to_owned()),
            }
        }
        if wanted.names.is_empty() {
            for family in [4, 6] {
                for flavour in ["acl", "fw", "ipc"] {
                    let name = |count| format!("{flavour}{family}-{count}");
                    wanted.names.extend([100, 1000, 10_000, 100_000].map(name));
                }
            }
        }
        wanted
    }
}

fn one<const N: usize>(name: &str, flavour: &str, count: usize, wanted: &Wanted) {
    let set = classbench::set::<N>(flavour, count, HEADERS, name.ends_with("-shuffled"));
    match wanted {
        Wanted { passes: Some(count), .. } => passes(&set, *count),
        Wanted { write: None, answers: None, .. } => run(name, &set),
        _ => files(name, &set, wanted),
    }
}

fn main() {
    let wanted = Wanted::read();
    if wanted.write.is_none() && wanted.answers.is_none() && wanted.passes.is_none() {
        println!(
            "{:<18} {:>7} {:>7} {:>9} {:>8} {:>7} {:>7} {:>6} {:>6} {:>6} {:>3} {:>8} {:>8} {:>8}",
            "set",
            "batch",
            "one",
            "walk ns",
            "build ms",
            "kchg/s",
            "B/rule",
            "copy us",
            "nodes",
            "blocks",
            "dep",
            "rules 1",
            "rules 64",
            "comp. ms"
        );
    }
    for name in &wanted.names {
        let mut parts = name.split('-');
        let (Some(kind), Some(Ok(count))) = (parts.next(), parts.next().map(str::parse)) else {
            panic!("{name}: want a flavour, a family and a number, as in acl4-1000");
        };
        match kind.split_at(kind.len() - 1) {
            (flavour, "4") => one::<2>(name, flavour, count, &wanted),
            (flavour, "6") => one::<8>(name, flavour, count, &wanted),
            _ => panic!("{name}: the family is 4 or 6"),
        }
    }
}
