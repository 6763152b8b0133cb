//! The house rules, held: what may import what, where `unsafe` lives, that every drop reason is produced and expected
//! somewhere, that every file says what it is, and that the README names only what exists.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use xrouter::verdict::DropReason;

/// The modules in the order a packet meets them. A module imports only those of a lower rank.
const RANKS: &[(&str, u8)] = &[
    ("time", 0),
    ("arch", 0),
    ("schedule", 0),
    ("wire", 1),
    ("verdict", 2),
    ("device", 3),
    ("xdp", 4),
    ("packet", 5),
    ("steering", 6),
    ("rewrite", 6),
    ("conntrack", 7),
    ("rules", 8),
    ("nat", 9),
    ("route", 10),
    ("reply", 11),
    ("snapshot", 12),
    ("datapath", 13),
    ("worker", 14),
    ("control", 15),
    ("sim", 16),
    ("cli", 17),
];

/// Modules that import less than their rank allows.
const NARROW: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("verdict", &[]),
    ("device", &["time"]),
    ("xdp", &["device", "wire", "time", "arch"]),
    ("steering", &["packet", "wire"]),
    ("conntrack", &["packet", "steering", "rewrite", "wire", "verdict", "device", "time", "arch", "schedule"]),
    ("route", &["wire", "verdict", "device"]),
];

/// The core: no clock, thread, file, socket or log.
const SANS_IO: &[&str] = &["packet", "steering", "rewrite", "conntrack", "rules", "nat", "route", "reply", "datapath"];
const IO: &[&str] =
    &["std::fs", "std::net::Udp", "std::net::Tcp", "std::thread", "std::env", "Instant::now", "SystemTime"];

/// Lines of a source file before it should be two; a test's table may be longer.
const LINES_MAX: usize = 900;
const TEST_LINES_MAX: usize = 1000;
/// `cargo fmt` holds code to 120 columns; this is for what it leaves alone, comments and long strings.
const COLUMNS_MAX: usize = 132;
/// Of tests: what goes in and what comes out stand on one line each.
const TEST_COLUMNS_MAX: usize = 200;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with this ending, with its path from the package's root.
fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("a readable folder").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                let name = path.strip_prefix(root()).expect("below the root").display().to_string();
                found.push((name, fs::read_to_string(&path).expect("a text file")));
            }
        }
    }
    found.sort();
    found
}

/// `src/rules/parse.rs` and `src/rules.rs` belong to `rules`.
fn module_of(file: &str) -> &str {
    let inside = file.trim_start_matches("src/");
    inside.split(['/', '.']).next().unwrap_or(inside)
}

/// A source text without comments (strings stay; none of what is looked for stands in one).
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// Whether a file is of tests only.
fn is_test_file(file: &str) -> bool {
    Path::new(file).components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

/// A file's code for production, and its code for tests (from `#[cfg(test)]` on, where a module follows with a body).
fn split_tests(file: &str, text: &str) -> (String, String) {
    if is_test_file(file) {
        return (String::new(), text.to_owned());
    }
    let at = text.match_indices("#[cfg(test)]").map(|(at, _)| at).find(|&at| {
        let following = text[at..].lines().find(|line| line.trim_start().starts_with("mod ")).unwrap_or("");
        following.contains('{')
    });
    match at {
        Some(at) => (text[..at].to_owned(), text[at..].to_owned()),
        None => (text.to_owned(), String::new()),
    }
}

/// The modules that a text names after `crate::`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, mark) in text.match_indices("crate::") {
        let preceded = text[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$');
        let rest = &text[at + mark.len()..];
        if preceded {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(group) => found.extend(heads_of_group(group)),
            None => found.push(identifier(rest)),
        }
    }
    found
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first names of each item of `a, b::c, d::{e, f}}`.
fn heads_of_group(text: &str) -> Vec<String> {
    let (mut depth, mut heads, mut at_start) = (0, Vec::new(), true);
    for (index, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if at_start && !c.is_whitespace() => {
                heads.push(identifier(&text[index..]));
                at_start = false;
            }
            _ => {}
        }
    }
    heads
}

#[test]
fn imports_point_up_the_list_only() {
    let ranks: BTreeMap<&str, u8> = RANKS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, text) in files("src", "rs") {
        let module = module_of(&file).to_owned();
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let Some(&rank) = ranks.get(module.as_str()) else {
            wrong.push(format!("{file}: {module} is not in the list of modules"));
            continue;
        };
        let narrow = NARROW.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
        for import in imports(&without_comments(&text)) {
            let Some(&other) = ranks.get(import.as_str()) else { continue };
            let allowed = import == module || other < rank && narrow.is_none_or(|list| list.contains(&import.as_str()));
            if !allowed && !is_test_file(&file) {
                wrong.push(format!("{file}: {module} imports {import}"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the list:\n{}", wrong.join("\n"));
}

#[test]
fn the_core_knows_no_outside_world() {
    let mut wrong = Vec::new();
    for (file, text) in files("src", "rs").into_iter().filter(|(file, _)| SANS_IO.contains(&module_of(file))) {
        let (code, _) = split_tests(&file, &without_comments(&text));
        for word in IO.iter().filter(|word| code.contains(**word)) {
            wrong.push(format!("{file}: {word}"));
        }
    }
    assert!(wrong.is_empty(), "the core reaches outside:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_lives_in_two_places_only() {
    let mut wrong = Vec::new();
    for (file, text) in files("src", "rs").into_iter().chain(files("tests", "rs")) {
        if file.starts_with("src/xdp/") || file == "src/arch.rs" || file == "tests/tidy.rs" {
            continue;
        }
        for (number, line) in without_comments(&text).lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.any(|word| word == "unsafe") || line.contains("allow(unsafe_code)") {
                wrong.push(format!("{file}:{}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside src/xdp and src/arch.rs:\n{}", wrong.join("\n"));
}

/// The reason a scenario's line expects: `[ours:] [+SECONDS] drop REASON [N]`.
fn expected_drop(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip_while(|word| *word == "ours:" || word.starts_with('+'));
    words.next().filter(|word| *word == "drop").and(words.next())
}

#[test]
fn every_drop_reason_is_produced_and_expected() {
    let (mut code, mut tests) = (String::new(), String::new());
    for (file, text) in files("src", "rs") {
        if file == "src/verdict.rs" {
            continue;
        }
        let (for_production, for_tests) = split_tests(&file, &without_comments(&text));
        code.push_str(&for_production);
        tests.push_str(&for_tests);
    }
    let mut scenarios = Vec::new();
    for (_, text) in files("tests", "scn") {
        scenarios.extend(text.lines().filter_map(expected_drop).map(str::to_owned));
    }
    for (file, text) in files("tests", "rs") {
        if file != "tests/tidy.rs" {
            tests.push_str(&without_comments(&text));
        }
    }
    // A name with no letter before or after it. What a match only looks at is not produced.
    let names = |text: &str, word: &str, produced: bool| {
        text.match_indices(word).any(|(at, _)| {
            let (before, after) = (text[..at].chars().next_back(), &text[at + word.len()..]);
            let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            let is_pattern = after.trim_start().starts_with("=>") || after.trim_start().starts_with('|');
            !(inside(before) || inside(after.chars().next()) || produced && is_pattern)
        })
    };
    let mut wrong = Vec::new();
    for &reason in DropReason::ALL {
        let variant = format!("DropReason::{reason:?}");
        if !names(&code, &variant, true) {
            wrong.push(format!("{variant} is produced nowhere"));
        }
        if !names(&tests, &variant, false) && !scenarios.iter().any(|name| name == reason.name()) {
            wrong.push(format!("{variant} ({reason}) is expected by no test"));
        }
    }
    assert!(wrong.is_empty(), "drop reasons:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_and_is_not_too_long() {
    let mut wrong = Vec::new();
    for (file, text) in files("src", "rs").into_iter().chain(files("tests", "rs")).chain(files("bench", "rs")) {
        let generated_or_test_part = is_test_file(&file) && file.starts_with("src/");
        if !text.starts_with("//!") && !generated_or_test_part {
            wrong.push(format!("{file}: does not begin with a //! comment on what it is"));
        }
        let (lines_max, columns_max) = match is_test_file(&file) {
            true => (TEST_LINES_MAX, TEST_COLUMNS_MAX),
            false => (LINES_MAX, COLUMNS_MAX),
        };
        let lines = text.lines().count();
        if lines > lines_max {
            wrong.push(format!("{file}: {lines} lines, more than {lines_max}"));
        }
        for (number, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > columns_max {
                wrong.push(format!("{file}:{}: {columns} columns", number + 1));
            }
            let unfinished =
                ["todo!(", "unimplemented!(", "FIXME", "TODO", "XXX"].iter().any(|word| line.contains(word));
            if unfinished && file != "tests/tidy.rs" {
                wrong.push(format!("{file}:{}: unfinished", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "files:\n{}", wrong.join("\n"));
}

#[test]
fn the_documents_name_only_what_exists() {
    let mut wrong = Vec::new();
    for document in ["README.md", "docs/ARCHITECTURE.md", "tests/scenarios/README.md"] {
        let Ok(text) = fs::read_to_string(root().join(document)) else {
            wrong.push(format!("{document} is missing"));
            continue;
        };
        for word in text.split(|c: char| c.is_whitespace() || "`()[]<>,;:\"'*|".contains(c)) {
            let path = word.trim_start_matches("./").trim_end_matches(['.', '/']);
            let ours = ["scripts/", "configs/", "docs/", "bench/", "tests/", "bpf/", "src/"]
                .iter()
                .any(|at| path.starts_with(at));
            if ours && !path.contains(['{', '…']) && !root().join(path).exists() {
                wrong.push(format!("{document}: {path} does not exist"));
            }
        }
    }
    assert!(wrong.is_empty(), "documents:\n{}", wrong.join("\n"));
}

#[test]
fn every_ruleset_in_configs_has_its_scenario() {
    let scenarios: String = files("tests/scenarios", "scn").into_iter().map(|(_, text)| text).collect();
    let mut wrong = Vec::new();
    for ending in ["v4", "v6", "rules"] {
        for (file, _) in files("configs", ending) {
            if !scenarios.contains(&file) {
                wrong.push(file);
            }
        }
    }
    assert!(wrong.is_empty(), "rulesets no scenario uses:\n{}", wrong.join("\n"));
}

#[test]
fn the_import_reader_reads_imports() {
    let text = "use crate::wire::{self, Addr};\nuse crate::{time, rules::{a, b}, verdict::DropReason};\nlet x = crate::nat::go();";
    assert_eq!(imports(text), ["wire", "time", "rules", "verdict", "nat"]);
    assert_eq!(module_of("src/rules/parse.rs"), "rules");
    assert_eq!(module_of("src/reply.rs"), "reply");
}

/// The list of surprises names scenarios that exist, is numbered without a gap, and leaves out none about connections.
#[test]
fn every_surprise_is_held_by_a_scenario() {
    let readme = fs::read_to_string(root().join("tests/scenarios/README.md")).expect("the scenarios' README");
    let scenarios: Vec<String> = files("tests/scenarios", "scn")
        .into_iter()
        .map(|(name, _)| name.trim_start_matches("tests/scenarios/").trim_end_matches(".scn").to_owned())
        .collect();
    let (_, section) = readme.split_once("## What surprises").expect("the list of surprises");
    let mut named = Vec::new();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #"));
    for (at, row) in rows.enumerate() {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, _, held] = cells[..] else { panic!("three cells: {row}") };
        assert_eq!(number, (at + 1).to_string(), "the number of {row}");
        for name in held.split(", ") {
            let name = name.trim_matches('`');
            assert!(scenarios.iter().any(|scenario| scenario == name), "no scenario {name}: {row}");
            named.push(name);
        }
    }
    assert!(named.len() >= 20, "{named:?}");
    // Of these the name says all.
    const PLAIN: [&str; 3] = ["ct_generic", "ct_tcp_life", "ct_udp_expires"];
    for scenario in scenarios.iter().filter(|name| name.starts_with("ct_") && !PLAIN.contains(&name.as_str())) {
        assert!(named.contains(&scenario.as_str()), "{scenario} is not in the list of tests/scenarios/README.md");
    }
}
