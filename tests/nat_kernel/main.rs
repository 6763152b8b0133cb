//! NAT against the running kernel's: random rulesets, and the same packets through both, compared byte for byte after each
//! one, with the connection it is of; at the end of a sequence every connection and what every rule has counted.
//!
//! Needs root and a kernel with network namespaces and iptables-legacy; says so and passes without them. Packets are
//! injected at the ends by packet sockets and cross the router one at a time (see `conntrack_kernel`, whose namespaces, questions
//! to ctnetlink and talk of TCP and SCTP these are).
//!
//! A sequence is named `SEED:NUMBER` and told by that name alone, but for the ports that the kernel draws. `scripts/parity --nat`
//! runs as many as it is asked for; without it a fixed share runs.

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

use std::time::{Duration, Instant as Clock};

use compare::Pair;

/// Packets of one seed, about: the last sequence is run to its end.
const PACKETS_OF_A_SEED: u64 = 20_000;
/// The share that runs without being asked: so many packets, unless the machine is too slow for it.
const SHARE: u64 = 40_000;
const SHARE_SECONDS: u64 = 15;
/// Differences after which a run ends.
const DIFFERENCES_MAX: usize = 10;

fn is_root(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("XROUTER_TEST_ROOT").is_none(), "XROUTER_TEST_ROOT is set, but this is not root");
    if !root {
        eprintln!("{name}: needs root for network namespaces; not run");
    }
    root
}

/// A setting of `scripts/parity`.
fn asked(name: &str) -> Option<String> {
    std::env::var(format!("XROUTER_PARITY_{name}")).ok().filter(|value| !value.is_empty())
}

fn asked_number(name: &str) -> Option<u64> {
    asked(name).map(|text| text.parse().unwrap_or_else(|_| panic!("XROUTER_PARITY_{name}: {text} is not a number")))
}

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
    if !is_root("random_rulesets_translate_as_the_kernel_translates") {
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

#[test]
#[ignore]
fn twin() {
    use crate::ends::host_mac;
    let a = kernel::Kernel::new().unwrap();
    let b = kernel::Kernel::new().unwrap();
    let mut tally = std::collections::BTreeMap::<String, u64>::new();
    let start = Clock::now();
    let mut packets = 0;
    for number in 0..asked_number("COUNT").unwrap_or(50) {
        let whole = sequence::sequence(name_of(asked_number("SEED").unwrap_or(1), number));
        for k in [&a, &b] {
            k.table.flush();
            k.load(whole.v6, &whole.rules).unwrap();
        }
        let mut story = flow::Story::new(&whole.flows);
        for step in &whole.steps {
            let Some((port, packet)) = story.packet(step) else {
                *tally.entry("none".into()).or_default() += 1;
                continue;
            };
            packets += 1;
            let hop = testing::Hop { dst_mac: place::MACS[port.index()], src_mac: host_mac(port.0 == 0, 2) };
            let frame = testing::frame(hop, &step::for_kernel(&packet));
            let one = a.send(port, &frame);
            let two = b.send(port, &frame);
            let name = if one == two {
                "same"
            } else if one.len() == two.len() {
                "other bytes"
            } else {
                "other fate"
            };
            *tally.entry(name.into()).or_default() += 1;
            let t = flow::tuple_of(&packet).zip(flow::packet_proto(&packet));
            let e = t.and_then(|(s, p)| a.table.find(p, &s));
            let st = e.map_or(0, |e| e.status);
            *tally
                .entry(format!(
                    "{} out, {} back={}, nat {:x}",
                    one.len(),
                    if matches!(step.what, flow::What::Says { .. }) { "says" } else { "error" },
                    step.back,
                    st & 0x30
                ))
                .or_default() += 1;
            if one != two && asked("VERBOSE").is_some() {
                let d = |o: &kernel::Out| {
                    o.iter().map(|(p, f)| format!("{p:?} {}", flow::describe_frame(f))).collect::<Vec<_>>().join(";")
                };
                eprintln!(
                    "{number}: {}\n  in {}\n A {}\n B {}",
                    flow::describe(&whole.flows, step),
                    flow::describe_frame(&frame),
                    d(&one),
                    d(&two)
                );
                eprintln!(
                    "{}",
                    whole
                        .rules
                        .lines()
                        .filter(|l| l.starts_with("-A P") || l.starts_with("-A first") || l.starts_with("-A last"))
                        .collect::<Vec<_>>()
                        .join("\n")
                );
                break;
            }
            if let [(port, frame)] = &one[..] {
                story.came_out(step, *port, &frame[14..]);
            }
        }
    }
    eprintln!("{packets} in {:?}: {tally:#?}", start.elapsed());
}
