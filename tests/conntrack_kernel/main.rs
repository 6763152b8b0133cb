//! Conntrack against the running kernel's: the same packets through both, compared after each one.
//!
//! Needs root and a kernel with network namespaces and nf_conntrack; says so and passes without them. Three namespaces,
//! client - router - server, are made and removed. Packets are injected at the ends by packet sockets and cross the router
//! one at a time; the far end tells whether a packet came through, as which bytes and in which class, ctnetlink tells of
//! every connection.
//!
//! Sequences of packets are named `SEED:NUMBER` and told by that name alone. `scripts/parity` runs as many as it is asked
//! for; without it a fixed share runs. One that differs is made small, printed and can be kept as a scenario.

#[path = "../support/asked.rs"]
mod asked;
mod compare;
mod ctnetlink;
#[path = "../daemon/mod.rs"]
mod daemon;
mod directed;
mod ends;
mod generate;
mod kernel;
mod ours;
mod step;
#[path = "../../src/conntrack/testing.rs"]
mod testing;
mod tool;

use asked::{asked, asked_number, privileged};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant as Clock};

use compare::{Pair, describe};
use step::Step;
use testing::Segment;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2));
const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2));
const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 2));

/// Packets of one seed, about: the last sequence is run to its end.
const PACKETS_OF_A_SEED: usize = 20_000;
/// The share that runs without being asked: so many packets, unless the machine is too slow for it.
const SHARE: usize = 100_000;
const SHARE_SECONDS: u64 = 15;
/// Differences after which a run ends.
const DIFFERENCES_MAX: usize = 10;

/// The number that tells the sequence `seed:number`.
fn name_of(seed: u64, number: u64) -> u64 {
    seed.wrapping_mul(1_000_003).wrapping_add(number)
}

/// A difference, made small; written to the file that `scripts/parity --keep` names.
fn report(pair: &mut Pair, seed: u64, number: u64, last: usize, what: String) -> String {
    let small = pair.shrink(generate::sequence(name_of(seed, number)), last);
    let what = pair.compare(&small.settings, &small.steps).err().map_or(what, |difference| difference.what);
    let list: Vec<String> = small.steps.iter().map(describe).collect();
    let text = format!(
        "sequence {seed}:{number}: after {} packets {what}\nunder {:?}\n  {}",
        list.len(),
        compare::differing(&small.settings),
        list.join("\n  ")
    );
    if let Some(file) = asked("KEEP") {
        let title = format!("Found by scripts/parity as sequence {seed}:{number}; this is what the kernel does.");
        let scenario = pair.scenario(&title, &small);
        std::fs::write(&file, scenario).unwrap_or_else(|error| panic!("{file}: {error}"));
        eprintln!("kept as {file}");
    }
    text
}

/// As many sequences as are asked for, each told by seed and number.
#[test]
fn random_sequences_are_seen_as_the_kernel_sees_them() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new().unwrap_or_else(|error| panic!("cannot set up the namespaces: {error}"));
    if let Some(name) = asked("SEQUENCE") {
        let (seed, number) = name.split_once(':').unwrap_or_else(|| panic!("{name}: not SEED:NUMBER"));
        let parse = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}: not SEED:NUMBER"));
        let (seed, number) = (parse(seed), parse(number));
        let sequence = generate::sequence(name_of(seed, number));
        match pair.compare(&sequence.settings, &sequence.steps) {
            Ok(()) => eprintln!("sequence {name}: {} packets, no difference", sequence.steps.len()),
            Err(found) => panic!("{}", report(&mut pair, seed, number, found.step, found.what)),
        }
        return;
    }
    let wanted = asked_number("COUNT").map(|count| count as usize);
    let (mut packets, mut sequences, mut seeds, mut unrepeated, mut found) = (0, 0, 0, 0, Vec::new());
    let start = Clock::now();
    let first = asked_number("SEED").unwrap_or(1);
    'seeds: for seed in first.. {
        let mut of_seed = 0;
        for number in 0.. {
            let sequence = generate::sequence(name_of(seed, number));
            of_seed += sequence.steps.len();
            sequences += 1;
            let mut compared = pair.compare(&sequence.settings, &sequence.steps);
            if compared.is_err() {
                // A tick of the clock between the two sides makes a difference that does not come again.
                compared = pair.compare(&sequence.settings, &sequence.steps);
                unrepeated += usize::from(compared.is_ok());
            }
            if let Err(difference) = compared {
                let text = report(&mut pair, seed, number, difference.step, difference.what);
                eprintln!("{text}\n");
                found.push(text);
            }
            let late = wanted.is_none() && start.elapsed() > Duration::from_secs(SHARE_SECONDS);
            if of_seed >= PACKETS_OF_A_SEED || found.len() >= DIFFERENCES_MAX || late {
                packets += of_seed;
                seeds += 1;
                if wanted.is_some() {
                    eprintln!("seed {seed}: {of_seed} packets, {} differences so far", found.len());
                }
                if packets >= wanted.unwrap_or(SHARE) || found.len() >= DIFFERENCES_MAX || late {
                    break 'seeds;
                }
                break;
            }
        }
    }
    eprintln!(
        "parity: {packets} packets in {sequences} sequences of {seeds} seeds ({first} on), {} differences ({unrepeated} more did not come again), {:.0} packets/s; {:?}",
        found.len(),
        packets as f64 / start.elapsed().as_secs_f64(),
        pair.tally
    );
    assert!(found.is_empty(), "{} sequences differ from the kernel, the first: {}", found.len(), found[0]);
}

/// A few connections of each protocol.
fn some_of_everything() -> Vec<Step> {
    let syn = |flags: &str, ack| Segment {
        sport: 901,
        dport: 80,
        seq: 7,
        ack,
        flags: testing::flags(flags),
        window: 8192,
        options: vec![],
        payload: 0,
    };
    let back = Segment { sport: 80, dport: 901, seq: 77, ..syn("SA", 8) };
    let client = |packet| Step::new(true, packet);
    let server = |packet| Step::new(false, packet);
    let mut steps = Vec::new();
    for (ours, theirs, icmp, request, reply) in [(CLIENT, SERVER, 1, 8, 0), (CLIENT6, SERVER6, 58, 128, 129)] {
        let to = |proto, l4: &[u8]| client(testing::ip(ours, theirs, proto, l4));
        let from = |proto, l4: &[u8]| server(testing::ip(theirs, ours, proto, l4));
        steps.extend([
            to(6, &syn("S", 0).bytes()),
            from(6, &back.bytes()),
            to(6, &Segment { seq: 8, ..syn("A", 78) }.bytes()),
            to(6, &Segment { sport: 902, ..syn("S", 0) }.bytes()),
            to(17, &testing::udp(3000, 53, b"q")),
            from(17, &testing::udp(53, 3000, b"a")),
            to(17, &testing::udp(3100, 53, b"q")),
            to(icmp, &testing::icmp(request, 5, [0, 79, 0, 1], b"")),
            to(icmp, &testing::icmp(request, 0, [0, 77, 0, 1], b"")),
            from(icmp, &testing::icmp(reply, 0, [0, 77, 0, 1], b"")),
            to(50, b"esp"),
            from(50, b"esp"),
            to(33, b"dccp"),
            to(47, &[0x20, 1, 0x88, 0x0b, 0, 0, 0x12, 0x34]),
            to(47, &[0, 0, 8, 0]),
            from(47, &[0, 0, 8, 0]),
        ]);
    }
    let init = [vec![0x0f, 0xa0, 0x13, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 1, 1, 1, 1], vec![0; 12]].concat();
    let mut sctp = init.clone();
    sctp[8..12].copy_from_slice(&(!xrouter::wire::checksum::crc32c(!0, &init)).to_le_bytes());
    steps.push(client(testing::ip(CLIENT, SERVER, 132, &sctp)));
    steps
}
