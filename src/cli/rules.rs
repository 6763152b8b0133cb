//! `xrouter rules ...`; and how every verb reads its rules.

pub(super) mod change;
mod check;
mod diff;
mod fmt;
mod live;

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;

use clap::{Args, Subcommand};

use crate::control::config::InterfaceName;
use crate::control::startup::{self, Failure};
use crate::rules::{self, Diagnostics, Ruleset, SetTable};
use crate::time::Instant;
use crate::wire::Family;

#[derive(Debug, Args)]
pub(super) struct RulesArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Read a rules file and report everything that is wrong in it, cannot be done, or is doubtful
    #[command(after_help = "Examples:
  xrouter rules check /etc/iptables/rules.v4
  iptables-save | xrouter rules check -4 --lan eth0 --wan eth1 --masquerade -

Exit codes: 0 the rules can be used; 2 they cannot, and every bad line is shown.")]
    Check(check::CheckArgs),
    /// Print a rules file as iptables-save would, comments kept
    Fmt(fmt::FmtArgs),
    /// Show which rules of one file another does not have
    #[command(after_help = "Exit codes: 0 the same rules; 1 other rules; 2 a file cannot be read.")]
    Diff(diff::DiffArgs),
    /// Show what the running daemon's rules have matched
    Stats(live::StatsArgs),
    /// Print the running daemon's rules, as iptables-save does
    Save(live::SaveArgs),
    /// Give the running daemon the rules of a file, or changes to its rules, as iptables-restore does
    #[command(after_help = "Examples:
  xrouter rules restore --test /etc/iptables/rules.v4
  echo '*filter
  -I FORWARD 1 -s 192.0.2.1 -j DROP
  COMMIT' | xrouter rules restore --noflush

All lines come into force at once, or none. The tables in the file are replaced, and others stay;
with --noflush its lines are done to the rules there are. Connections stay, and are judged by the
new rules packet by packet. The files that the daemon was started with know nothing of it:
`xrouter reload` brings their rules back.

Exit codes: 0 done; 1 there is no such rule or chain, or it failed; 2 the file is wrong; 4 no
daemon. But for 0 nothing was changed.")]
    Restore(change::RestoreArgs),
    /// Print the policy that applies without a rules file
    Default(DefaultArgs),
}

#[derive(Debug, Args)]
struct DefaultArgs {
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    ports: PortArgs,
    /// With the rule that --masquerade brings
    #[arg(long)]
    masquerade: bool,
}

/// Which IP version rules are for.
#[derive(Debug, Args)]
struct VersionArgs {
    /// For IPv4: iptables-save
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// For IPv6: ip6tables-save [a file's version is guessed from its contents without]
    #[arg(short = '6', long)]
    ipv6: bool,
}

impl VersionArgs {
    fn family(&self) -> Option<Family> {
        match (self.ipv4, self.ipv6) {
            (true, _) => Some(Family::V4),
            (_, true) => Some(Family::V6),
            _ => None,
        }
    }
}

/// The interfaces that rules are for.
#[derive(Debug, Args)]
struct PortArgs {
    /// Name of the inside interface
    #[arg(long, value_name = "IF")]
    lan: Option<InterfaceName>,
    /// Name of the outside interface
    #[arg(long, value_name = "IF")]
    wan: Option<InterfaceName>,
}

pub(super) fn run(args: RulesArgs) -> Result<(), Failure> {
    match args.what {
        What::Check(args) => check::run(&args),
        What::Restore(args) => change::restore(&args),
        What::Fmt(args) => fmt::run(&args),
        What::Diff(args) => diff::run(&args),
        What::Stats(args) => live::stats(&args),
        What::Save(args) => live::save(&args),
        What::Default(args) => {
            let name =
                |given: Option<InterfaceName>, otherwise: &str| given.map_or(otherwise.to_owned(), |it| it.to_string());
            let family = args.version.family().unwrap_or(Family::V4);
            let (lan, wan) = (name(args.ports.lan, "lan"), name(args.ports.wan, "wan"));
            let mut text = rules::default_policy(family, &lan, &wan);
            if args.masquerade {
                text += &rules::masquerade_text(&wan);
            }
            super::print(|out| out.write_all(text.as_bytes()))
        }
    }
}

impl PortArgs {
    fn names(&self, verb: &str) -> Result<Vec<&str>, Failure> {
        match (&self.lan, &self.wan) {
            (Some(lan), Some(wan)) => Ok(vec![lan.as_str(), wan.as_str()]),
            (None, None) => Ok(Vec::new()),
            _ => Err(Failure::Usage(format!("{verb}: give both --lan and --wan, or neither"))),
        }
    }
}

/// A rules file's name as shown, and its text; `-` is standard input.
fn text_of(verb: &str, file: &Path) -> Result<(String, String), Failure> {
    if file.as_os_str() != "-" {
        return Ok((file.display().to_string(), startup::read_text(verb, file)?));
    }
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    read.map_err(|error| Failure::Usage(format!("cannot read standard input: {error}")))?;
    Ok(("standard input".to_owned(), text))
}

/// Reads rules for `family`, or for the IP version that they look like.
fn understand(name: &str, text: &str, family: Option<Family>, ports: &[&str]) -> Result<Ruleset, Diagnostics> {
    understand_with_sets(name, text, family, ports, &Arc::default())
}

/// As [`understand`], with sets that the rules may name.
fn understand_with_sets(
    name: &str,
    text: &str,
    family: Option<Family>,
    ports: &[&str],
    sets: &Arc<SetTable>,
) -> Result<Ruleset, Diagnostics> {
    let read = |family| rules::understand_with_sets(name, text, family, ports, sets);
    if let Some(family) = family.or_else(|| saved_by(text)) {
        return read(family);
    }
    // No word about it: whichever version understands more.
    let v4 = match read(Family::V4) {
        Ok(ruleset) => return Ok(ruleset),
        Err(wrong) => wrong,
    };
    match read(Family::V6) {
        Err(v6) if v6.errors() >= v4.errors() => Err(v4),
        other => other,
    }
}

/// The IP version that the comment of the saving program tells.
fn saved_by(text: &str) -> Option<Family> {
    text.lines().filter(|line| line.starts_with("# Generated by ")).find_map(|line| {
        if line.contains("ip6tables") { Some(Family::V6) } else { line.contains("iptables").then_some(Family::V4) }
    })
}

/// The sets of a file that the operator named with `--sets`; none without.
///
/// # Errors
/// [`Failure::Usage`] when the file cannot be read, [`Failure::Report`] with every bad line.
pub(super) fn read_sets(path: Option<&Path>) -> Result<Arc<SetTable>, Failure> {
    let sets = SetTable::new(startup::secret()?);
    if let Some(path) = path {
        let text = startup::read_text("--sets", path)?;
        sets.load(&path.display().to_string(), &text, Instant::ZERO).map_err(|wrong| refused(&wrong))?;
    }
    Ok(Arc::new(sets))
}

/// The rules that the operator named with `option`, or the built-in policy; for interfaces of these names, and with these sets.
///
/// # Errors
/// [`Failure::Usage`] when the file cannot be read, [`Failure::Report`] with every bad line.
pub(super) fn read(
    option: &str,
    path: Option<&Path>,
    family: Family,
    ports: [&str; 2],
    sets: &Arc<SetTable>,
) -> Result<Ruleset, Failure> {
    let [lan, wan] = ports;
    let (name, text) = match path {
        Some(path) => (path.display().to_string(), startup::read_text(option, path)?),
        None => ("built-in policy".to_owned(), rules::default_policy(family, lan, wan)),
    };
    let ruleset = rules::load_with_sets(&name, &text, family, &ports, sets).map_err(|wrong| refused(&wrong))?;
    warn(ruleset.warnings());
    Ok(ruleset)
}

pub(super) fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A rules file that cannot be used.
fn refused(wrong: &Diagnostics) -> Failure {
    Failure::Report(if colours() { wrong.to_styled() } else { wrong.to_string() })
}

fn warn(warnings: &Diagnostics) {
    if !warnings.is_empty() {
        if colours() { super::complain(&warnings.to_styled()) } else { super::complain(warnings) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ip_version_is_guessed() {
        assert_eq!(saved_by("# Generated by ip6tables-save v1.8.9\n*filter\n"), Some(Family::V6));
        assert_eq!(saved_by("\n# Generated by iptables-save v1.8.9 (nf_tables)\n"), Some(Family::V4));
        assert_eq!(saved_by("# my rules\n*filter\n"), None);
        let v6 = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s fd00::/8 -p ipv6-icmp -j ACCEPT\nCOMMIT\n";
        assert_eq!(understand("x", v6, None, &[]).expect("IPv6 rules").family, Family::V6);
        let v4 = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s 10.0.0.0/8 -j ACCEPT\nCOMMIT\n";
        assert_eq!(understand("x", v4, None, &[]).expect("IPv4 rules").family, Family::V4);
        assert_eq!(understand("x", "nonsense\n", None, &[]).expect_err("no rules").errors(), 1);
    }
}
