//! Rules changed one by one while thousands are in force, in memory: from the text of a request, as `iptables-restore --noflush`
//! takes it, to the compiled rules that a worker would change over to.
//!
//! `cargo bench --bench changes [-- SET ...]`, sets as in `bench/rules.rs` (10,000 rules of each flavour without). A request has so
//! many changes as the column says, half of them `-D` of a rule at random, half `-I` of one at a random place; each request is
//! understood, checked and compiled by itself on top of the one before, with counters for a worker. Printed are thousands of
//! changes in a second, and for requests of one change the milliseconds they take: the best of the rounds.
#![allow(missing_docs, clippy::print_stdout)]

#[allow(dead_code)] // bench/rules.rs uses the rest
mod classbench;

use std::hint::black_box;
use std::time::{Duration, Instant};

use classbench::Random;
use xrouter::rules::{Previous, Registry, RuleVector, Ruleset, change, load};
use xrouter::wire::Family;

const ROUNDS: usize = 8;
/// Changes of a request.
const SIZES: [usize; 4] = [1, 16, 256, 4096];

/// A request of so many changes to a FORWARD chain that had these rules. Of those with one, each other deletes.
fn request(lines: &[String], round: usize, size: usize, random: &mut Random) -> String {
    let mut text = "*filter\n".to_owned();
    // There is always a rule more or less.
    let place = |random: &mut Random| random.below(lines.len() as u64 - 2) as usize + 1;
    for at in 0..size {
        match (round * size + at) % 2 {
            0 => text += &format!("-D FORWARD {}\n", place(random)),
            _ => {
                let rule = &lines[place(random)]["-A FORWARD".len()..];
                text += &format!("-I FORWARD {}{rule}\n", place(random));
            }
        }
    }
    text + "COMMIT\n"
}

/// What the last request has made.
struct InForce {
    ruleset: Ruleset,
    vector: RuleVector,
}

/// The whole way of a request, and its parts: understood, compiled.
fn serve(in_force: &mut InForce, text: &str) -> (Duration, Duration) {
    let start = Instant::now();
    let changed = change(&in_force.ruleset, "a request", text, false).expect("good changes");
    let understood = start.elapsed();
    let previous = Previous { vector: &in_force.vector, unchanged: &changed.kept };
    let vector = RuleVector::compile_after(&changed.ruleset, &mut Registry::default(), Some(previous));
    black_box(vector.counters());
    *in_force = InForce { ruleset: changed.ruleset, vector };
    (understood, start.elapsed())
}

fn run<const N: usize>(name: &str, flavour: &str, count: usize) {
    let family = if N == 2 { Family::V4 } else { Family::V6 };
    let text = classbench::rules_text(&classbench::set::<N>(flavour, count, 64, false).rules);
    let lines: Vec<String> = text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect();
    let ruleset = load("bench", &text, family, &["lan0", "wan0"]).expect("good rules");
    let vector = RuleVector::compile(&ruleset);
    let mut in_force = InForce { ruleset, vector };
    let mut random = Random(11);
    print!("{name:<14}");
    for size in SIZES {
        let times = (0..ROUNDS).map(|round| serve(&mut in_force, &request(&lines, round, size, &mut random)));
        let (understood, all) = times.min_by_key(|times| times.1).expect("rounds");
        print!(" {:>9.1}", size as f64 / all.as_secs_f64() / 1e3);
        if size == 1 {
            let [understood, all] = [understood, all].map(|time| time.as_secs_f64() * 1e3);
            print!(" ({understood:.2} + {:.2} ms)", all - understood);
        }
    }
    println!();
}

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).filter(|name| name != "--bench").collect();
    if names.is_empty() {
        names = ["acl4", "fw4", "ipc4", "acl6", "fw6"].map(|kind| format!("{kind}-10000")).to_vec();
    }
    println!("{:<14} thousand changes a second, in requests of {SIZES:?} changes", "set");
    for name in &names {
        let mut parts = name.split('-');
        let (Some(kind), Some(Ok(count))) = (parts.next(), parts.next().map(str::parse)) else {
            panic!("{name}: want a flavour, a family and a number, as in acl4-1000");
        };
        match kind.split_at(kind.len() - 1) {
            (flavour, "4") => run::<2>(name, flavour, count),
            (flavour, "6") => run::<8>(name, flavour, count),
            _ => panic!("{name}: the family is 4 or 6"),
        }
    }
}
