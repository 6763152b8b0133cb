//! `xrouter sysctl`: the conntrack settings of a running router, shown and changed as sysctl(8) does the kernel's.

use std::collections::BTreeMap;

use clap::Args;

use super::DaemonArgs;
use crate::control::api::{Client, Reply, Request};
use crate::control::startup::Failure;
use crate::control::sysctl::{self, Setting};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xrouter sysctl -a
  xrouter sysctl net.netfilter.nf_conntrack_max
  xrouter sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=7200

What is changed holds until the router ends; the configuration file is left as it is. No connection is lost. A time-out
applies to a connection from its next packet on.")]
pub(super) struct SysctlArgs {
    /// Show all settings
    #[arg(short, long, visible_short_alias = 'A')]
    all: bool,
    /// Change settings: every argument must be NAME=VALUE
    #[arg(short, long)]
    write: bool,
    /// Show values only
    #[arg(short = 'n', long)]
    values: bool,
    /// Settings to show, or to change: net.netfilter.nf_conntrack_…, or the last part alone
    #[arg(value_name = "NAME[=VALUE]", required_unless_present = "all", conflicts_with = "all")]
    settings: Vec<String>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// The last part of a sysctl's name, however it is written.
fn last_part(name: &str) -> String {
    let name = name.trim().replace('/', ".");
    let bare = name.strip_prefix(sysctl::PATH).or_else(|| name.strip_prefix("net."));
    bare.unwrap_or(&name).to_owned()
}

/// What to change, and what to show afterwards.
fn read(args: &SysctlArgs) -> Result<(BTreeMap<String, u64>, Vec<String>), Failure> {
    let wrong = |what: String| Err(Failure::Usage(what));
    let (mut set, mut shown) = (BTreeMap::new(), Vec::new());
    for argument in &args.settings {
        let (name, value) = argument.split_once('=').map_or((&**argument, None), |(name, value)| (name, Some(value)));
        let name = last_part(name);
        if name == sysctl::COUNT {
            match value {
                Some(_) => return wrong(format!("{name} cannot be set: it counts")),
                None => shown.push(name),
            }
            continue;
        }
        let setting = match Setting::find(&name) {
            Ok(setting) => setting,
            Err(unknown) => return wrong(unknown.to_string()),
        };
        match value.map(str::trim) {
            None if args.write => return wrong(format!("-w {argument}: give NAME=VALUE")),
            None => {}
            Some(text) => match text.parse().ok().filter(|&value| setting.allows(value)) {
                Some(value) => {
                    set.insert(name.clone(), value);
                }
                None => return wrong(format!("{name} = {text}: allowed: {}", setting.allowed())),
            },
        }
        shown.push(name);
    }
    Ok((set, shown))
}

pub(super) fn run(args: &SysctlArgs) -> Result<(), Failure> {
    let (set, mut shown) = read(args)?;
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Sysctl { set })?;
    let Reply::Sysctl(values) = client.answer()? else { return Err(client.unexpected()) };
    if args.all {
        shown = values.keys().cloned().collect();
    }
    super::print(|out| {
        for name in &shown {
            match values.get(name) {
                Some(value) if args.values => writeln!(out, "{value}")?,
                Some(value) => writeln!(out, "{}{name} = {value}", sysctl::PATH)?,
                None => super::complain(&format!("error: this router does not know {name}")),
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_people_write_them() {
        for name in [
            "net.netfilter.nf_conntrack_max",
            "net/netfilter/nf_conntrack_max",
            "net.nf_conntrack_max",
            "nf_conntrack_max",
        ] {
            assert_eq!(last_part(name), "nf_conntrack_max");
        }
    }
}
