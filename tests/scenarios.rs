//! The executable specification: every file in `tests/scenarios` on every engine it names.
//!
//! `SCENARIO=text cargo test --test scenarios` runs those whose file name contains the text.

mod scenario;
#[allow(dead_code)] // the end-to-end tests use the rest
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{env, fs, thread};

use scenario::parity;
use scenario::run::run;
use scenario::script::{Kind, Script, Step};
use scenario::wire::{Site, unfit};
use xrouter::verdict::DropReason;

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let wanted = env::var("SCENARIO").unwrap_or_default();
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "scn"));
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().contains(&wanted)));
    files.sort();
    files
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// Runs every scenario on one engine, each on a thread of its own (the kernel engine changes its thread's namespace).
fn all_on(kind: Kind) {
    let (mut ran, mut left_out, mut failures) = (0, 0, Vec::new());
    for file in files() {
        let script = match Script::load(&file) {
            Ok(script) => script,
            Err(error) => {
                failures.push(error);
                continue;
            }
        };
        if !script.engines.contains(&kind.reads()) || kind == Kind::Workers && !script.for_workers {
            left_out += 1;
            continue;
        }
        ran += 1;
        let name = script.file.clone();
        match thread::spawn(move || run(&script, kind)).join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failures.push(error),
            Err(_) => failures.push(format!("{name}: panic")),
        }
    }
    eprintln!("engine {}: {ran} scenarios, {} failed, {left_out} not for this engine", kind.word(), failures.len());
    assert!(failures.is_empty(), "{} scenarios failed:\n\n{}\n", failures.len(), failures.join("\n\n"));
}

#[test]
fn kernel_agrees_with_every_scenario() {
    if !is_root() {
        assert!(env::var_os("XROUTER_TEST_ROOT").is_none(), "XROUTER_TEST_ROOT is set, but this is not root");
        eprintln!("skipped: network namespaces need root");
        return;
    }
    all_on(Kind::Kernel);
}

/// `PARITY_SEED=7` runs one sequence, `PARITY_SEQUENCES=1000` more than usual.
#[test]
fn kernel_and_core_agree_on_random_sequences() {
    if !is_root() {
        assert!(env::var_os("XROUTER_TEST_ROOT").is_none(), "XROUTER_TEST_ROOT is set, but this is not root");
        eprintln!("passed over: network namespaces need root");
        return;
    }
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("PARITY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PARITY_SEQUENCES").unwrap_or(40),
    };
    let mut failures = Vec::new();
    for seed in seeds {
        match thread::spawn(move || parity::run(seed)).join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failures.push(error),
            Err(_) => failures.push(format!("seed {seed}: panic")),
        }
    }
    assert!(failures.is_empty(), "{} sequences differ; the first:\n{}", failures.len(), failures[0]);
}

#[test]
fn core_agrees_with_every_scenario() {
    all_on(Kind::Core);
}

#[test]
fn sim_agrees_with_every_scenario() {
    all_on(Kind::Sim);
}

/// `WORKERS_SEED=7` sends packets to other queues than usual.
#[test]
fn four_workers_agree_with_every_scenario_whatever_queues_packets_arrive_on() {
    all_on(Kind::Workers);
}

/// Networks of the engine *wire* side by side: a scenario mostly waits there.
const LANES: usize = 4;
/// One wire at a time.
static WIRE: Mutex<()> = Mutex::new(());

#[test]
fn the_wire_agrees_with_every_scenario() {
    all_on_wire("copy", |_| true);
}

/// What is for the host comes by the XDP program once more there.
#[test]
fn the_wire_agrees_in_generic_mode_where_the_host_is_given_packets() {
    all_on_wire("generic", |step| matches!(step, Step::Punt { .. } | Step::Host { .. }));
}

/// Runs those scenarios over veth in this mode that have such a step.
fn all_on_wire(mode: &str, has: fn(&Step) -> bool) {
    if !support::privileged() {
        return;
    }
    let _turn = WIRE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut scripts, mut left_out, failures) = (Vec::new(), Vec::new(), Mutex::new(Vec::new()));
    for file in files() {
        let script = Script::load(&file).unwrap_or_else(|error| panic!("{error}"));
        match unfit(&script, false) {
            Some(why) => left_out.push(format!("{}: {why}", script.file)),
            None => scripts.push(script),
        }
    }
    scripts.retain(|script| script.lines.iter().any(|line| has(&line.step)));
    let ran = scripts.len();
    let left = Mutex::new(scripts);
    let lane = || {
        let net = support::Net::bare();
        let mut site = Site::of_veth(&net, 1, &["--mode", mode]).unwrap_or_else(|error| panic!("{error}"));
        loop {
            let Some(script) = left.lock().expect("no panic there").pop() else { return };
            let outcome = catch_unwind(AssertUnwindSafe(|| site.run(&script)));
            let outcome = outcome.unwrap_or_else(|_| Err(format!("{}: panic (see above)", script.file)));
            failures.lock().expect("no panic there").extend(outcome.err());
        }
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().for_each(|lane| lane.join().expect("a network"));
    });
    let failures = failures.into_inner().expect("no panic there");
    eprintln!("engine wire, mode {mode}: {ran} scenarios, {} failed; not on a wire:", failures.len());
    left_out.iter().for_each(|why| eprintln!("  {why}"));
    assert!(failures.is_empty(), "{} scenarios failed:\n\n{}\n", failures.len(), failures.join("\n\n"));
}

#[test]
fn every_scenario_names_drop_reasons_that_exist() {
    for file in files() {
        let script = Script::load(&file).unwrap_or_else(|error| panic!("{error}"));
        for line in &script.lines {
            if let Step::Drop { reason, .. } = &line.step {
                let known = DropReason::from_name(reason).is_some();
                assert!(known, "{}:{}: there is no drop reason {reason}", script.file, line.number);
            }
        }
    }
}
