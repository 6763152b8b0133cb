//! `xrouter rules check FILE` and `xrouter rules default`; and how every verb reads its rules.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::control::config::InterfaceName;
use crate::control::startup::{self, Failure};
use crate::rules::{self, Diagnostics, FORWARD, Policy, Ruleset};
use crate::wire::Family;

#[derive(Debug, Args)]
pub(super) struct RulesArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Read a rules file and report everything that is wrong in it, or not covered
    #[command(after_help = "Examples:
  xrouter rules check /etc/iptables/rules.v4
  iptables-save | xrouter rules check -4 --lan eth0 --wan eth1 -

Exit codes: 0 the rules can be used; 2 they cannot, and every bad line is shown.")]
    Check(CheckArgs),
    /// Print the policy that applies without a rules file
    Default(DefaultArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The file, as iptables-save or ip6tables-save writes it; - is standard input
    file: PathBuf,
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    ports: PortArgs,
}

#[derive(Debug, Args)]
struct DefaultArgs {
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    ports: PortArgs,
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
        What::Check(args) => check(&args),
        What::Default(args) => {
            let name =
                |given: Option<InterfaceName>, otherwise: &str| given.map_or(otherwise.to_owned(), |it| it.to_string());
            let family = args.version.family().unwrap_or(Family::V4);
            let text = rules::default_policy(family, &name(args.ports.lan, "lan"), &name(args.ports.wan, "wan"));
            super::print(|out| out.write_all(text.as_bytes()))
        }
    }
}

fn check(args: &CheckArgs) -> Result<(), Failure> {
    let (name, text) = if args.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::Usage(format!("cannot read standard input: {error}")))?;
        ("standard input".to_owned(), text)
    } else {
        (args.file.display().to_string(), startup::read_text("rules check", &args.file)?)
    };
    let ports: Vec<&str> = match (&args.ports.lan, &args.ports.wan) {
        (Some(lan), Some(wan)) => vec![lan.as_str(), wan.as_str()],
        (None, None) => Vec::new(),
        _ => return Err(Failure::Usage("rules check: give both --lan and --wan, or neither".to_owned())),
    };
    let ruleset = load(&name, &text, args.version.family(), &ports).map_err(|wrong| refused(&wrong))?;
    warn(ruleset.warnings());
    let version = if ruleset.family == Family::V4 { "IPv4" } else { "IPv6" };
    let policy = if ruleset.chains[FORWARD].policy == Some(Policy::Drop) { "DROP" } else { "ACCEPT" };
    let count = ruleset.rule_count();
    super::print(|out| {
        writeln!(
            out,
            "{name}: good: {count} {version} rule{}, FORWARD policy {policy}",
            if count == 1 { "" } else { "s" }
        )
    })
}

/// Reads rules for `family`, or for the IP version that they look like.
fn load(name: &str, text: &str, family: Option<Family>, ports: &[&str]) -> Result<Ruleset, Diagnostics> {
    if let Some(family) = family.or_else(|| saved_by(text)) {
        return rules::load(name, text, family, ports);
    }
    // No word about it: whichever version understands more.
    let v4 = match rules::load(name, text, Family::V4, ports) {
        Ok(ruleset) => return Ok(ruleset),
        Err(wrong) => wrong,
    };
    match rules::load(name, text, Family::V6, ports) {
        Err(v6) if v6.errors() >= v4.errors() => Err(v4),
        other => other,
    }
}

/// The IP version that the comment of the saving program tells.
fn saved_by(text: &str) -> Option<Family> {
    text.lines().filter(|line| line.starts_with('#')).find_map(|line| {
        if line.contains("ip6tables") { Some(Family::V6) } else { line.contains("iptables").then_some(Family::V4) }
    })
}

/// The rules that the operator named with `option`, or the built-in policy; for interfaces of these names.
///
/// # Errors
/// [`Failure::Usage`] when the file cannot be read, [`Failure::Report`] with every bad line.
pub(super) fn read(
    option: &str,
    path: Option<&Path>,
    family: Family,
    lan: &str,
    wan: &str,
) -> Result<Ruleset, Failure> {
    let (name, text) = match path {
        Some(path) => (path.display().to_string(), startup::read_text(option, path)?),
        None => ("built-in policy".to_owned(), rules::default_policy(family, lan, wan)),
    };
    let ruleset = rules::load(&name, &text, family, &[lan, wan]).map_err(|wrong| refused(&wrong))?;
    warn(ruleset.warnings());
    Ok(ruleset)
}

fn colours() -> bool {
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
        assert_eq!(load("x", v6, None, &[]).expect("IPv6 rules").family, Family::V6);
        let v4 = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s 10.0.0.0/8 -j ACCEPT\nCOMMIT\n";
        assert_eq!(load("x", v4, None, &[]).expect("IPv4 rules").family, Family::V4);
        assert_eq!(load("x", "nonsense\n", None, &[]).expect_err("no rules").errors(), 1);
    }
}
