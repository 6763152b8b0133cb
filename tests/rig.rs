//! The benchmarks that nobody runs every day still run: the lab's programs of `bench/rig` against stand-ins for TRex and pktgen, and
//! `scripts/bench` with its phases and its latency, for a moment, on veth. What they measure here means nothing.

use std::path::Path;
use std::process::Command;

#[path = "../bench/phases/search.rs"]
mod search;
#[allow(dead_code)] // the end-to-end tests use the rest
mod support;

use support::privileged;

/// Standard output; the command must succeed.
fn run(command: &mut Command) -> String {
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("it starts");
    let [said, complained] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{complained}", output.status);
    said
}

/// `scripts/bench` with the programs of this build, on two routers, as short as it goes.
fn bench(words: &[&str]) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_xrouter")).parent().expect("a folder");
    let systems = ["--systems", "xrouter kernel"];
    for program in ["phases", "latency"] {
        assert!(programs.join("examples").join(program).exists(), "no example {program} yet: cargo build --examples");
    }
    run(Command::new("scripts/bench")
        .args(words)
        .args(systems)
        .env("XROUTER_BENCH_NO_BUILD", "1")
        .env("XROUTER_BENCH_BIN", programs))
}

/// The cells of the row of `system`.
fn row(table: &str, system: &str) -> Vec<String> {
    let line =
        table.lines().find(|line| line.starts_with(&format!("| {system} |"))).unwrap_or_else(|| panic!("{table}"));
    line.trim_matches('|').split('|').skip(1).map(|cell| cell.trim().to_owned()).collect()
}

/// The number a cell begins with.
fn number(cell: &str) -> f64 {
    let word = cell.split_whitespace().next().unwrap_or("");
    word.parse().unwrap_or_else(|_| panic!("no number: {cell}"))
}

#[test]
fn the_search_finds_the_edge() {
    for edge in [0.1, 0.333, 0.5, 0.999] {
        let found = search::search(1.0, 0.001, 1, |rate| Ok::<_, ()>(rate <= edge)).expect("no error");
        assert!(found <= edge && found > edge - 0.0011, "{edge}: {found}");
    }
    assert_eq!(search::search(7.0, 0.01, 1, |_| Ok::<_, ()>(true)), Ok(7.0));
    assert_eq!(search::search(7.0, 0.01, 1, |_| Ok::<_, ()>(false)), Ok(0.0));
    assert_eq!(search::search(7.0, 0.01, 1, |_| Err("broken")), Err("broken"));
    // The second try counts.
    let mut failed = false;
    let found = search::search(1.0, 0.01, 2, |_| Ok::<_, ()>(std::mem::replace(&mut failed, true)));
    assert_eq!(found, Ok(1.0));
}

#[test]
fn the_labs_programs_run_against_stand_ins() {
    run(Command::new("python3").args(["-B", "-W", "error", "bench/rig/test_rig.py"]));
}

#[test]
fn the_benchmark_says_what_it_can_do() {
    let said = run(Command::new("scripts/bench").arg("--help"));
    for word in ["--search", "--connections", "--latency", "--poll busy|adaptive", "RFC 2544", "RFC 9693"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn the_phases_run_on_veth() {
    if !privileged() {
        return;
    }
    let quick = ["--trial", "0.2", "--tries", "3", "--top", "2000", "--resolution", "0.3", "--loss", "0.5"];
    let table = bench(&[&["--search", "60 imix"][..], &quick[..]].concat());
    for system in ["xrouter", "kernel"] {
        let cells = row(&table, system);
        assert_eq!(cells.len(), 2, "{table}");
        assert!(cells.iter().all(|cell| number(cell) > 0.0), "{table}");
    }
    let table = bench(&[&["--connections", "2000", "--nat"][..], &quick[..]].concat());
    for system in ["xrouter", "kernel"] {
        let cells = row(&table, system);
        assert_eq!(cells.len(), 4, "{table}");
        assert!(cells.iter().all(|cell| number(cell) > 0.0), "{table}");
    }
}

#[test]
fn latency_is_measured_on_veth() {
    if !privileged() {
        return;
    }
    let table = bench(&["--latency", "100 1000", "--seconds", "0.3", "--idle", "1", "--poll", "adaptive"]);
    for system in ["xrouter", "kernel"] {
        let cells = row(&table, system);
        assert_eq!(cells.len(), 3, "{table}");
        assert!(cells[..2].iter().all(|cell| number(cell) > 0.0 && cell.ends_with("(0)")), "{table}");
    }
    assert!(number(&row(&table, "xrouter")[2]) < 50.0, "{table}");
}
