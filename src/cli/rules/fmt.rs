//! `xrouter rules fmt FILE`: the file as `iptables-save` would have written it, with its comments where they stand.

use std::path::PathBuf;

use clap::Args;

use super::{VersionArgs, refused, text_of, understand};
use crate::control::startup::Failure;
use crate::rules::{self, Ruleset};

#[derive(Debug, Args)]
pub(super) struct FmtArgs {
    /// The file; - is standard input
    file: PathBuf,
    #[command(flatten)]
    version: VersionArgs,
}

pub(super) fn run(args: &FmtArgs) -> Result<(), Failure> {
    let (name, text) = text_of("rules fmt", &args.file)?;
    let ruleset = understand(&name, &text, args.version.family(), &[]).map_err(|wrong| refused(&wrong))?;
    let formatted = formatted(&ruleset, &text);
    super::super::print(|out| out.write_all(formatted.as_bytes()))
}

/// Line by line, so that comments stay. Where the file has commands besides `-A`, its lines are not its rules: then it is
/// printed whole.
fn formatted(ruleset: &Ruleset, text: &str) -> String {
    let command = |line: &&str| {
        let line = line.trim_start();
        let rule = line.find(']').filter(|_| line.starts_with('[')).map_or(line, |end| line[end + 1..].trim_start());
        rule.starts_with('-') && !rule.starts_with("-A") && !rule.starts_with("--append")
    };
    if text.lines().any(|line| command(&line)) {
        return rules::save(ruleset, None);
    }
    let mut rules: Vec<(usize, String)> = Vec::new();
    for chain in &ruleset.chains {
        for rule in &chain.rules {
            let line = rules::rule_text(ruleset.family, &chain.name, rule, &ruleset.chains);
            rules.push((rule.span.start, line));
        }
    }
    rules.sort_by_key(|&(start, _)| start);
    let mut rules = rules.into_iter().peekable();
    let (mut out, mut at) = (String::new(), 0);
    for line in text.split_inclusive('\n') {
        let end = at + line.len();
        let counters = line.find(']').filter(|_| line.starts_with('[')).map_or("", |close| &line[..=close]);
        let mut is_rule = false;
        while let Some((_, rule)) = rules.next_if(|&(start, _)| start < end) {
            is_rule = true;
            let blank = if counters.is_empty() { "" } else { " " };
            out += &format!("{counters}{blank}{rule}\n");
        }
        match is_rule {
            true => {}
            // A comment is the writer's own.
            false if line.starts_with('#') => out += &format!("{}\n", line.trim_end()),
            false => out += &format!("{}\n", line.split_whitespace().collect::<Vec<_>>().join(" ")),
        }
        at = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Family;

    #[test]
    fn comments_and_counters_stay_and_rules_are_as_saved() {
        let text = "# mine,  all mine\n*filter\n:FORWARD   DROP [1:2]\n\n# lan\n\
                    [3:4] -A FORWARD  -p tcp --dport http -j ACCEPT\n\
                    -A FORWARD -s 10.0.0.1,10.0.0.2 -j DROP \nCOMMIT\n";
        let ruleset = rules::load("t", text, Family::V4, &[]).expect("good rules");
        let expected = "# mine,  all mine\n*filter\n:FORWARD DROP [1:2]\n\n# lan\n\
                        [3:4] -A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT\n\
                        -A FORWARD -s 10.0.0.1/32 -j DROP\n-A FORWARD -s 10.0.0.2/32 -j DROP\nCOMMIT\n";
        assert_eq!(formatted(&ruleset, text), expected);
        let again = rules::load("t", expected, Family::V4, &[]).expect("good rules");
        assert_eq!(formatted(&again, expected), expected);
    }

    #[test]
    fn a_file_with_other_commands_is_printed_whole() {
        let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j ACCEPT\n-I FORWARD -j DROP\nCOMMIT\n";
        let ruleset = rules::load("t", text, Family::V4, &[]).expect("good rules");
        assert!(formatted(&ruleset, text).ends_with("-A FORWARD -j DROP\n-A FORWARD -j ACCEPT\nCOMMIT\n"));
    }
}
