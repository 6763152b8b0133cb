//! `xrouter rules stats` and `xrouter rules save`: the rules of the running daemon, and what they have matched.

use clap::Args;

use super::VersionArgs;
use crate::cli::DaemonArgs;
use crate::control::api::{Client, Reply, Request};
use crate::control::startup::Failure;
use crate::control::stats::{RuleReport, StatsReport};
use crate::wire::Family;

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Only rules that have matched nothing
    #[arg(long)]
    unused: bool,
    /// As JSON, on one line
    #[arg(short = 'j', long)]
    json: bool,
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Args)]
pub(super) struct SaveArgs {
    /// With counters before the rules
    #[arg(short = 'c', long)]
    counters: bool,
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(super) fn stats(args: &StatsArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Stats {})?;
    let Reply::Stats(value) = client.answer()? else { return Err(client.unexpected()) };
    let mut report: StatsReport = serde_json::from_value(value).map_err(|_| client.unexpected())?;
    let family = args.version.family().map(number);
    report.rules.retain(|rule| family.is_none_or(|family| rule.family == family));
    report.rules.retain(|rule| !args.unused || rule.matched.packets == 0 && rule.rule > 0);
    if args.json {
        let value = serde_json::to_value(&report.rules).map_err(|_| client.unexpected())?;
        return super::super::print(|out| writeln!(out, "{value}"));
    }
    super::super::print(|out| out.write_all(table(&report.rules).as_bytes()))
}

pub(super) const fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// As `iptables -L -v -x --line-numbers` has it: packets, bytes, place, rule.
fn table(rules: &[RuleReport]) -> String {
    let mut text = format!("{:>12} {:>15} {:<24} rule\n", "packets", "bytes", "place");
    for rule in rules {
        let place = format!("IPv{} {} {} {}", rule.family, rule.table, rule.chain, rule.label());
        text += &format!("{:>12} {:>15} {place:<24} {}\n", rule.matched.packets, rule.matched.bytes, rule.text);
    }
    text
}

pub(super) fn save(args: &SaveArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Rules { family: number(args.version.family().unwrap_or(Family::V4)) })?;
    let Reply::Rules(text) = client.answer()? else { return Err(client.unexpected()) };
    let text = if args.counters { text } else { without_counters(&text) };
    super::super::print(|out| out.write_all(text.as_bytes()))
}

/// As `iptables-save` without `-c`: policies keep their counters.
fn without_counters(text: &str) -> String {
    let bare = |line: &str| match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, rule)) => rule.to_owned(),
        None => line.to_owned(),
    };
    text.lines().map(|line| bare(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_rules_go_and_those_of_policies_stay() {
        let text = "*filter\n:FORWARD DROP [5:300]\n[1:60] -A FORWARD -j ACCEPT\nCOMMIT\n";
        assert_eq!(without_counters(text), "*filter\n:FORWARD DROP [5:300]\n-A FORWARD -j ACCEPT\nCOMMIT\n");
    }
}
