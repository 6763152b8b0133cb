//! Rules that name sets: read, checked, printed.

use super::{SETS, table};
use crate::rules::{self, Ruleset};
use crate::time::Instant;
use crate::wire::Family;

fn load(family: Family, rules: &[&str]) -> Result<Ruleset, String> {
    load_in("filter", family, rules)
}

fn load_in(name: &str, family: Family, rules: &[&str]) -> Result<Ruleset, String> {
    let text = format!("*{name}\n:FORWARD ACCEPT [0:0]\n{}\nCOMMIT\n", rules.join("\n"));
    let sets = table(SETS, Instant::ZERO);
    rules::load_with_sets("rules", &text, family, &["lan0", "wan0"], &sets).map_err(|bad| bad.to_string())
}

#[test]
fn rules_are_printed_as_iptables_save_prints_them() {
    // The second is how it is printed, where that differs.
    for (line, printed) in [
        ("-m set --match-set a src", ""),
        ("-m set ! --match-set d src,dst", ""),
        ("-m set --set a src", "-m set --match-set a src"),
        ("-m set --match-set a src,dst,src,dst,src,src", ""),
        ("-m set --match-set a src -m set --match-set c src", ""),
        (
            "-m set --match-set d src,dst --return-nomatch ! --update-counters ! --update-subcounters --packets-gt 3 ! --bytes-eq 4",
            "",
        ),
        ("-m set --match-set a src --update-counters --packets-lt 0x10", "-m set --match-set a src --packets-lt 16"),
        ("-j SET --add-set a src", ""),
        (
            "-j SET --exist --del-set c dst --timeout 30 --add-set a src",
            "-j SET --add-set a src --exist --timeout 30 --del-set c dst",
        ),
    ] {
        let line = format!("-A FORWARD {line}");
        let ruleset = load(Family::V4, &[&line]).unwrap_or_else(|bad| panic!("{bad}"));
        let printed = if printed.is_empty() { line } else { format!("-A FORWARD {printed}") };
        let saved = rules::save(&ruleset, None);
        assert!(saved.lines().any(|line| line == printed), "{printed} is missing in:\n{saved}");
    }
    let line = "-A FORWARD -j SET --add-set a src --del-set c dst --map-set m src --map-mark";
    assert!(rules::save(&load_in("mangle", Family::V4, &[line]).expect("good"), None).contains(line));
}

#[test]
fn what_cannot_be_is_refused() {
    for (line, message) in [
        ("-m set", "without a set"),
        ("-m set --match-set a source", "no side of a packet"),
        ("-m set --match-set a ,src", "no side of a packet"),
        ("-m set --match-set a src,dst,src,dst,src,src,dst", "more than 6 sides"),
        ("-m set --match-set aa src", "did you mean `a`?"),
        ("-m set --match-set six src", "holds IPv6 addresses"),
        ("-m set --match-set a src --packets-eq x", "not a number"),
        ("-m set ! --match-set a src --packets-eq 1 --packets-lt 2", "--packets-"),
        ("-m set --match-set a src ! --packets-lt 2", "--packets-lt"),
        ("-m set --match-set a-name-of-more-than-thirty-one-bytes src", "1 to 31 bytes"),
        ("-j SET", "without a set"),
        ("-j SET --del-set a src --exist", "`--exist` without `--add-set`"),
        ("-j SET --del-set a src --timeout 3", "`--timeout` without `--add-set`"),
        ("-j SET --add-set a src --timeout 4294967295", "not a time-out"),
        ("-j SET --add-set huge src", "more than rules may add to"),
        ("-j SET --add-set of-huge src", "more than rules may add to"),
        ("-j SET --map-set m src --map-mark", "table mangle only"),
        ("-j SET --map-set m src", "`--map-set` without `--map-mark`"),
        ("-j SET --add-set a src --map-mark", "`--map-mark` without `--map-set`"),
        ("-j SET --add-set nowhere src", "there is no set `nowhere`"),
    ] {
        let bad = load(Family::V4, &[&format!("-A FORWARD {line}")]).expect_err(line);
        assert!(bad.contains(message), "{line}: {bad}");
    }
    let map = "-A FORWARD -j SET --map-set m src --map-mark --map-prio";
    let bad = load_in("mangle", Family::V4, &[map]).expect_err("no priority here");
    assert!(bad.contains("no priority"), "{bad}");
}

#[test]
fn too_few_sides_are_warned_of_since_linux_takes_them() {
    let ruleset = load(Family::V4, &["-A FORWARD -m set --match-set d src"]).expect("Linux takes it");
    assert!(ruleset.warnings().to_string().contains("wants 2 sides"), "{}", ruleset.warnings());
}

#[test]
fn without_sets_rules_are_understood_and_not_loaded() {
    let text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m set --match-set a src\nCOMMIT\n";
    let error = rules::load("rules", text, Family::V4, &[]).expect_err("no sets").to_string();
    assert!(error.contains("there is no set `a`") && error.contains("no sets were given"), "{error}");
    rules::understand("rules", text, Family::V4, &[]).expect("the rules alone are right");
}

#[test]
fn sets_that_a_ruleset_names_cannot_go() {
    let sets = table(SETS, Instant::ZERO);
    let text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m set --match-set a src\nCOMMIT\n";
    let ruleset = rules::load_with_sets("rules", text, Family::V4, &[], &sets).expect("good rules");
    assert!(sets.load("sets", "create c hash:net\n", Instant::ZERO).is_err());
    drop(ruleset);
    sets.load("sets", "create c hash:net\n", Instant::ZERO).expect("nobody names a");
}
