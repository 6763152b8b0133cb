//! `xrouter rules check FILE`: can these rules be used, what will be tracked, and what would an expert say?

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{PortArgs, VersionArgs, refused, text_of, understand_with_sets, warn};
use crate::control::startup::Failure;
use crate::rules::{self, Diagnostic, Diagnostics, FORWARD, Policy, Reason, Ruleset, Severity, Tracking};
use crate::wire::Family;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The file, as iptables-save or ip6tables-save writes it; - is standard input
    file: PathBuf,
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    ports: PortArgs,
    /// Sets that the rules name, as `ipset save` writes them
    #[arg(long, value_name = "FILE")]
    sets: Option<PathBuf>,
    /// With the rule that the daemon's --masquerade brings
    #[arg(long, requires = "wan")]
    masquerade: bool,
    /// As JSON, on one line
    #[arg(short = 'j', long)]
    json: bool,
}

pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let (name, text) = text_of("rules check", &args.file)?;
    let ports = args.ports.names("rules check")?;
    let sets = super::read_sets(args.sets.as_deref())?;
    let ruleset = match understand_with_sets(&name, &text, args.version.family(), &ports, &sets) {
        Ok(ruleset) => ruleset,
        Err(wrong) if args.json => return answer_json(&name, None, &wrong, None),
        Err(wrong) => return Err(refused(&wrong)),
    };
    let said = ruleset.warnings().clone().and(rules::lint(&ruleset, &text));
    let tracking = Tracked { masquerade: args.masquerade, by_file: rules::tracking(&ruleset, &text) };
    // What is said of lines is of the file's.
    let ruleset = match &args.ports.wan {
        Some(wan) if args.masquerade => rules::masquerade(ruleset, wan.as_str()).map_err(|wrong| refused(&wrong))?,
        _ => ruleset,
    };
    if args.json {
        return answer_json(&name, Some(&ruleset), &said.and(ruleset.not_honoured().clone()), Some(&tracking));
    }
    if !ruleset.not_honoured().is_empty() {
        return Err(refused(&ruleset.not_honoured().clone().and(said)));
    }
    warn(&said);
    let version = if ruleset.family == Family::V4 { "IPv4" } else { "IPv6" };
    let policy = if ruleset.chains[FORWARD].policy == Some(Policy::Drop) { "DROP" } else { "ACCEPT" };
    let count = ruleset.rule_count();
    let plural = if count == 1 { "" } else { "s" };
    super::super::print(|out| {
        writeln!(out, "{name}: good: {count} {version} rule{plural}, FORWARD policy {policy}")?;
        out.write_all(tracking_text(&tracking).as_bytes())
    })
}

/// Why connections are tracked, if they are.
struct Tracked {
    /// The rule that the file does not have needs them.
    masquerade: bool,
    by_file: Tracking,
}

fn tracking_text(Tracked { masquerade, by_file: tracking }: &Tracked) -> String {
    let mut text = match tracking.wanted_by.first() {
        None if *masquerade => "connections are tracked: --masquerade needs it\n".to_owned(),
        None => return "connections are not tracked: no rule needs it\n".to_owned(),
        Some(Reason { line, rule, .. }) => {
            let more = match tracking.wanted_by.len() - 1 + usize::from(*masquerade) {
                0 => String::new(),
                1 => ", and one rule more".to_owned(),
                n => format!(", and {n} rules more"),
            };
            format!("connections are tracked: line {line} needs it ({rule}){more}\n")
        }
    };
    for Reason { line, rule, .. } in &tracking.taken_out_by {
        text += &format!("  but not what line {line} takes out ({rule})\n");
    }
    text
}

/// The answer as JSON, on standard output; a file that cannot be used is still exit code 2.
fn answer_json(
    name: &str,
    ruleset: Option<&Ruleset>,
    said: &Diagnostics,
    tracking: Option<&Tracked>,
) -> Result<(), Failure> {
    let reasons = |reasons: &[Reason]| -> Vec<Value> {
        reasons.iter().map(|r| json!({"line": r.line, "table": r.table, "rule": r.rule})).collect()
    };
    let good = said.errors() == 0;
    let value = json!({
        "file": name,
        "good": good,
        "family": ruleset.map(|ruleset| if ruleset.family == Family::V4 { 4 } else { 6 }),
        "rules": ruleset.map(Ruleset::rule_count),
        "tracked": tracking.map(|tracking| tracking.masquerade || !tracking.by_file.wanted_by.is_empty()),
        "tracked_because": tracking.map(|tracking| reasons(&tracking.by_file.wanted_by)),
        "untracked_by": tracking.map(|tracking| reasons(&tracking.by_file.taken_out_by)),
        "diagnostics": said.iter().map(diagnostic_json).collect::<Vec<_>>(),
    });
    super::super::print(|out| writeln!(out, "{value}"))?;
    if good { Ok(()) } else { Err(Failure::Report(format!("{name}: {} errors", said.errors()))) }
}

fn diagnostic_json(diagnostic: &Diagnostic) -> Value {
    json!({
        "severity": if diagnostic.severity == Severity::Error { "error" } else { "warning" },
        "line": diagnostic.line,
        "column": diagnostic.column,
        "text": diagnostic.text,
        "underlined": diagnostic.text.get(diagnostic.underlined.clone()),
        "message": diagnostic.message,
        "label": diagnostic.label,
        "help": diagnostic.help,
    })
}
