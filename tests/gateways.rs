//! Rules of gateways as they are found: dumps by `iptables-save` and `ip6tables-save` of hosts run by ufw, fail2ban, firewalld,
//! Shorewall, Docker, kube-proxy, OpenWrt's fw3, and by hand.
//!
//! `gateways/NAME.v4` and `NAME.v6` are what Linux printed (1.8.9; `-nft`: by the nf_tables variant) after it had loaded the
//! rules, with its chains' counters at zero. Beside each stands `NAME.v4.expected`: a line `LINE: MESSAGE` for all that is
//! refused, and nothing else may be. What is left without those lines is printed again as Linux printed it, byte by byte.
//!
//! A message that changes on purpose: `xrouter rules check -4 -j FILE` has the new one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use xrouter::rules::{self, Diagnostics, Severity};
use xrouter::wire::Family;

/// A dump, and what is expected of it.
struct Gateway {
    name: String,
    family: Family,
    text: String,
    expected: String,
}

impl Gateway {
    fn read(path: &Path) -> Option<Gateway> {
        let family = match path.extension()?.to_str()? {
            "v4" => Family::V4,
            "v6" => Family::V6,
            _ => return None,
        };
        let name = path.file_name()?.to_str()?.to_owned();
        let text = fs::read_to_string(path).expect("a dump");
        let expected = path.with_file_name(format!("{name}.expected"));
        let expected = fs::read_to_string(&expected).unwrap_or_else(|why| panic!("{}: {why}", expected.display()));
        Some(Gateway { name, family, text, expected })
    }

    /// All of them, by name.
    fn all() -> Vec<Gateway> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateways");
        let entries = fs::read_dir(&folder).expect("tests/gateways");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        let gateways: Vec<Gateway> = paths.iter().filter_map(|path| Gateway::read(path)).collect();
        assert!(gateways.len() >= 18, "only {} dumps in {}", gateways.len(), folder.display());
        gateways
    }

    /// Everything refused: wrong for us, or right and not to be done.
    fn refused(&self) -> Diagnostics {
        match rules::understand(&self.name, &self.text, self.family, &[]) {
            Ok(ruleset) => ruleset.not_honoured().clone(),
            Err(wrong) => wrong,
        }
    }

    /// The dump without the lines that are refused, and without comments.
    fn rest(&self) -> String {
        let number =
            |line: &str| -> usize { line.split(':').next().and_then(|text| text.parse().ok()).expect("a number") };
        let refused: BTreeSet<usize> = self.expected.lines().map(number).collect();
        let lines = self.text.lines().zip(1..);
        let kept = lines.filter(|(line, number)| !line.starts_with('#') && !refused.contains(number));
        kept.map(|(line, _)| format!("{line}\n")).collect()
    }
}

/// As in a `.expected` file.
fn errors(diagnostics: &Diagnostics) -> String {
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
    errors.map(|error| format!("{}: {}\n", error.line, error.message)).collect()
}

/// The lines that only one of the texts has, after the sign of their side.
fn difference(expected: &str, found: &str) -> String {
    let only = |sign: char, of: &str, not: &str| -> String {
        let not: BTreeSet<&str> = not.lines().collect();
        of.lines().filter(|line| !not.contains(line)).map(|line| format!("  {sign} {line}\n")).collect()
    };
    only('-', expected, found) + &only('+', found, expected)
}

#[test]
fn nothing_is_refused_but_what_is_expected() {
    let mut wrong = String::new();
    for gateway in Gateway::all() {
        let refused = errors(&gateway.refused());
        if refused != gateway.expected {
            wrong += &format!("{}:\n{}", gateway.name, difference(&gateway.expected, &refused));
        }
    }
    assert!(wrong.is_empty(), "- expected, + refused:\n{wrong}");
}

#[test]
fn the_rest_is_used_and_printed_as_linux_does() {
    let mut wrong = String::new();
    for gateway in Gateway::all() {
        let rest = gateway.rest();
        match rules::load(&gateway.name, &rest, gateway.family, &[]) {
            Ok(ruleset) => {
                let printed = rules::save(&ruleset, None);
                if printed != rest {
                    wrong += &format!("{}:\n{}", gateway.name, difference(&rest, &printed));
                }
            }
            Err(refused) => wrong += &format!("{}:\n{refused}\n", gateway.name),
        }
    }
    assert!(wrong.is_empty(), "- Linux, + printed here:\n{wrong}");
}

/// A dump says which program printed it; without its comments the rules must still be told apart.
#[test]
fn a_dump_is_not_taken_for_the_other_ip_version() {
    for gateway in Gateway::all().into_iter().filter(|gateway| gateway.name.starts_with("home.")) {
        let other = if gateway.family == Family::V4 { Family::V6 } else { Family::V4 };
        let read = rules::load(&gateway.name, &gateway.rest(), other, &[]);
        assert!(read.is_err(), "{} is good as {other:?}", gateway.name);
    }
}
