//! `xrouter rules diff OLD NEW`: rules that only one of two files has, table by table and chain by chain.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{VersionArgs, refused, text_of, understand};
use crate::control::startup::Failure;
use crate::rules::{self, Chain, Ruleset};

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The one file; - is standard input
    old: PathBuf,
    /// The other
    new: PathBuf,
    #[command(flatten)]
    version: VersionArgs,
    /// As JSON, on one line
    #[arg(short = 'j', long)]
    json: bool,
}

/// A line that one of the files has.
struct Change {
    table: &'static str,
    /// `-` of the old, `+` of the new.
    sign: char,
    text: String,
}

pub(super) fn run(args: &DiffArgs) -> Result<(), Failure> {
    let read = |file: &PathBuf| {
        let (name, text) = text_of("rules diff", file)?;
        understand(&name, &text, args.version.family(), &[]).map_err(|wrong| refused(&wrong))
    };
    let (old, new) = (read(&args.old)?, read(&args.new)?);
    let changes = changes(&old, &new);
    super::super::print(|out| match args.json {
        true => {
            let list: Vec<_> = changes
                .iter()
                .map(|change| json!({"table": change.table, "change": change.sign.to_string(), "text": change.text}))
                .collect();
            writeln!(out, "{}", json!(list))
        }
        false => {
            let mut table = "";
            for change in &changes {
                if change.table != table {
                    table = change.table;
                    writeln!(out, "*{table}")?;
                }
                writeln!(out, "{}{}", change.sign, change.text)?;
            }
            Ok(())
        }
    })?;
    if changes.is_empty() { Ok(()) } else { Err(Failure::Answer(String::new())) }
}

/// Policies and rules that differ. A rule that only moved within its chain is in both files.
fn changes(old: &Ruleset, new: &Ruleset) -> Vec<Change> {
    let kept = rules::unchanged(old, new);
    let mut stays = vec![false; old.rule_count()];
    kept.iter().flatten().for_each(|&number| stays[number] = true);
    let mut found = Vec::new();
    for &table in rules::TableName::ALL {
        let mut of = |ruleset: &Ruleset, sign: char, is_same: &dyn Fn(usize) -> bool, other: &Ruleset| {
            for (index, chain) in ruleset.chains_of(table) {
                let text = policy_text(chain);
                if !other.chains_of(table).any(|(_, theirs)| policy_text(theirs) == text) {
                    found.push(Change { table: table.name(), sign, text });
                }
                let first = ruleset.counter_index(index, 0);
                for (_, rule) in chain.rules.iter().enumerate().filter(|(place, _)| !is_same(first + place)) {
                    let text = rules::rule_text(ruleset.family, &chain.name, rule, &ruleset.chains);
                    found.push(Change { table: table.name(), sign, text });
                }
            }
        };
        of(old, '-', &|number| stays[number], new);
        of(new, '+', &|number| kept[number].is_some(), old);
    }
    found
}

fn policy_text(chain: &Chain) -> String {
    let policy = match chain.policy {
        None => "-",
        Some(rules::Policy::Accept) => "ACCEPT",
        Some(rules::Policy::Drop) => "DROP",
    };
    format!(":{} {policy}", chain.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Family;

    #[test]
    fn what_only_one_file_has_is_shown_under_its_table() {
        let load = |text: &str| rules::understand("t", text, Family::V4, &[]).expect("good rules");
        let old =
            load("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -p tcp -j ACCEPT\n-A FORWARD -p udp -j ACCEPT\nCOMMIT\n");
        let new =
            load("*filter\n:FORWARD ACCEPT [0:0]\n:U - [0:0]\n-A FORWARD -p udp -j ACCEPT\n-A U -j DROP\nCOMMIT\n");
        let shown: Vec<String> =
            changes(&old, &new).iter().map(|change| format!("{}{}", change.sign, change.text)).collect();
        assert_eq!(
            shown,
            ["-:FORWARD DROP", "--A FORWARD -p tcp -m tcp -j ACCEPT", "+:FORWARD ACCEPT", "+:U -", "+-A U -j DROP"]
                .map(|line| line.replace(" -m tcp", ""))
        );
        assert!(changes(&old, &old).is_empty());
    }
}
