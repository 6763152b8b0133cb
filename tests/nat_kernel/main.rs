//! NAT against the running kernel's: random rulesets, and the same packets through both, compared byte for byte after each
//! one, with the connection it is of; at the end of a sequence every connection and what every rule has counted.
//!
//! Needs root and a kernel with network namespaces and iptables-legacy; says so and passes without them. Packets are
//! injected at the ends by packet sockets and cross the router one at a time (see `conntrack_kernel`, whose namespaces, questions
//! to ctnetlink and talk of TCP and SCTP these are).
//!
//! A sequence is named `SEED:NUMBER` and told by that name alone, but for the ports that the kernel draws. `scripts/parity --nat`
//! runs as many as it is asked for; without it a fixed share runs.

#[path = "../support/asked.rs"]
mod asked;
mod compare;
#[path = "../conntrack_kernel/ctnetlink.rs"]
#[allow(dead_code)]
mod ctnetlink;
#[path = "../conntrack_kernel/ends.rs"]
#[allow(dead_code)]
mod ends;
mod flow;
#[path = "../conntrack_kernel/generate/mod.rs"]
#[allow(dead_code)]
mod generate;
mod kernel;
mod ours;
mod place;
mod rules;
mod sequence;
#[path = "../conntrack_kernel/step.rs"]
#[allow(dead_code)]
mod step;
#[path = "../../src/conntrack/testing.rs"]
mod testing;

use asked::{asked, asked_number, privileged};
use std::time::{Duration, Instant as Clock};

use compare::Pair;
use ours::Ours;
use xrouter::device::PortId;
use xrouter::rules::TableName;

/// Packets of one seed, about: the last sequence is run to its end.
const PACKETS_OF_A_SEED: u64 = 20_000;
/// The share that runs without being asked: so many packets, unless the machine is too slow for it.
const SHARE: u64 = 40_000;
const SHARE_SECONDS: u64 = 15;
/// Differences after which a run ends.
const DIFFERENCES_MAX: usize = 10;

/// The number that tells the sequence `seed:number`.
fn name_of(seed: u64, number: u64) -> u64 {
    seed.wrapping_mul(1_000_003).wrapping_add(number)
}

/// A difference, made small.
fn report(pair: &mut Pair, seed: u64, number: u64, last: usize, what: String) -> String {
    let whole = sequence::sequence(name_of(seed, number));
    let small = pair.shrink(whole, last);
    let what = pair.compare(&small).err().map_or(what, |difference| difference.what);
    format!("sequence {seed}:{number}, {} steps: {what}\n{}", small.steps.len(), compare::list(&small))
}

#[test]
fn random_rulesets_translate_as_the_kernel_translates() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new().unwrap_or_else(|error| panic!("cannot set up the namespaces: {error}"));
    if let Some(name) = asked("SEQUENCE") {
        let numbers = name.split_once(':').and_then(|(seed, number)| Some((seed.parse().ok()?, number.parse().ok()?)));
        let (seed, number) = numbers.unwrap_or_else(|| panic!("{name}: not SEED:NUMBER"));
        match pair.compare(&sequence::sequence(name_of(seed, number))) {
            Ok(()) => eprintln!("sequence {name}: {} packets, no difference", pair.packets),
            Err(found) => panic!("{}", report(&mut pair, seed, number, found.step, found.what)),
        }
        return;
    }
    let wanted = asked_number("COUNT");
    let first = asked_number("SEED").unwrap_or(1);
    let (mut packets, mut sequences, mut seed, mut unrepeated, mut found) = (0, 0, first, 0, Vec::new());
    let start = Clock::now();
    loop {
        let mut of_seed = 0;
        for number in 0.. {
            let whole = sequence::sequence(name_of(seed, number));
            sequences += 1;
            pair.packets = 0;
            let mut compared = pair.compare(&whole);
            of_seed += pair.packets;
            if compared.is_err() {
                // A tick of the clock between the two sides makes a difference that does not come again.
                let again = pair.compare(&whole);
                if again.is_ok() {
                    unrepeated += 1;
                    eprintln!("{seed}:{number}, and not again: {}", compared.expect_err("it differed").what);
                }
                compared = again;
            }
            if let Err(difference) = compared {
                let text = report(&mut pair, seed, number, difference.step, difference.what);
                eprintln!("{text}\n");
                found.push(text);
            }
            let late = wanted.is_none() && start.elapsed() > Duration::from_secs(SHARE_SECONDS);
            if of_seed >= PACKETS_OF_A_SEED || found.len() >= DIFFERENCES_MAX || late {
                break;
            }
        }
        packets += of_seed;
        if wanted.is_some() {
            eprintln!("seed {seed}: {of_seed} packets, {} differences so far", found.len());
        }
        let late = wanted.is_none() && start.elapsed() > Duration::from_secs(SHARE_SECONDS);
        if packets >= wanted.unwrap_or(SHARE) || found.len() >= DIFFERENCES_MAX || late {
            break;
        }
        seed += 1;
    }
    eprintln!(
        "parity of NAT: {packets} packets in {sequences} sequences of seeds {first} to {seed}, {} differences ({unrepeated} more did not come again), {:.0} packets/s; {:?}; ours dropped {:?}",
        found.len(),
        packets as f64 / start.elapsed().as_secs_f64(),
        pair.tally,
        pair.drops
    );
    assert!(found.is_empty(), "{} sequences differ from the kernel, the first: {}", found.len(), found[0]);
}

/// What a batch, a shortcut or foresight spares must not change what becomes of a packet: one router sees packets one by one and
/// goes the long way each time, the other gets them as they come.
#[test]
fn batches_and_shortcuts_translate_alike() {
    let mut slow = Ours::new();
    let mut fast = Ours::new();
    let mut translated = 0;
    for number in 0..asked_number("BATCHES").unwrap_or(300) {
        let whole = sequence::sequence(name_of(asked_number("SEED").unwrap_or(1), number));
        let now = xrouter::time::Instant::from_secs(1000);
        slow.begin(whole.v6, &whole.rules, &whole.settings, 1);
        slow.go_the_long_way();
        fast.begin(whole.v6, &whole.rules, &whole.settings, 1);
        let mut story = flow::Story::new(&whole.flows);
        let mut batch: Vec<(PortId, Vec<u8>)> = Vec::new();
        let mut ours: [Vec<Vec<u8>>; 2] = Default::default();
        let mut theirs = ours.clone();
        let mut give = |batch: &mut Vec<(PortId, Vec<u8>)>| {
            fast.send_all(batch, now).into_iter().for_each(|(port, frame)| theirs[port.index()].push(frame));
            batch.clear();
        };
        for step in &whole.steps {
            let Some((port, packet)) = story.packet(step) else { continue };
            let frame = compare::frame(port, &packet);
            if batch.last().is_some_and(|(other, _)| *other != port) || batch.len() == 20 {
                give(&mut batch);
            }
            batch.push((port, frame.clone()));
            let fate = slow.send(port, &frame, None, now);
            if let ([(port, frame)], false) = (&fate.out[..], fate.answered) {
                story.came_out(step, *port, &frame[14..]);
            }
            translated += usize::from(fate.out.iter().any(|(_, out)| out.get(26..34) != frame.get(26..34)));
            fate.out.into_iter().for_each(|(port, frame)| ours[port.index()].push(frame));
        }
        give(&mut batch);
        assert!(ours == theirs, "sequence {number}: what came out differs\n{}", compare::list(&whole));
        assert_eq!(slow.entries(now), fast.entries(now), "sequence {number}");
        for table in [TableName::Nat, TableName::Filter, TableName::Mangle] {
            assert_eq!(slow.saved(table), fast.saved(table), "sequence {number}");
        }
    }
    assert!(translated > 1000, "{translated}");
}
