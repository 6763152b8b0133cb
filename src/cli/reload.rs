//! `xrouter reload`: other rules in a running router.

use std::io;

use clap::Args;

use super::DaemonArgs;
use crate::control::api::{Client, Reply, Request};
use crate::control::reload::{Established, ReloadReport, Wish};
use crate::control::startup::Failure;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xrouter reload
  xrouter reload --dry-run
  xrouter reload --established keep
  xrouter reload --sets
  xrouter reload --sets --established recheck

The router reads the files again that it was started with: --config, and the files of rules and sets that it or the
command line names.
The new rules come into force between two packets, or not at all: a file that is wrong changes nothing, and every wrong
line is shown. No packet is lost. Counters and limits of rules that are unchanged go on.

--established says what becomes of the connections there are:
  recheck  those end whose first packet a chain on its way (raw, mangle, filter, security) would refuse now, whatever
           matches say that depend on the single packet or the time (limit, length, ...); the others stay
  keep     all stay, as with iptables-restore and ipset, and are judged by the new rules packet by packet
  flush    all end
The first packet after its end makes a connection anew, if the rules let it.

--sets leaves the rules alone, which then must find their sets as they were: by name, type and IP version. It leaves
the connections alone, too, unless --established says otherwise.

SIGHUP does the same as `xrouter reload`.

Exit codes: 0 done; 1 failed; 2 a file is wrong, and nothing was changed; 4 no daemon.")]
pub(super) struct ReloadArgs {
    /// What becomes of the connections there are: recheck, keep, flush [default: recheck; with --sets: keep]
    #[arg(long, value_name = "HOW")]
    established: Option<Established>,
    /// Only say what would change, and how many connections would end
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Only the sets (--sets): other contents between two packets, rules as they are
    #[arg(long)]
    sets: bool,
    /// As JSON, on one line
    #[arg(short = 'j', long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(super) fn run(args: &ReloadArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.daemon.control)?;
    let styled = super::rules::colours();
    let (established, dry_run, sets) = (args.established, args.dry_run, args.sets);
    client.ask(&Request::Reload(Wish { established, dry_run, sets, styled }))?;
    // Many rules and many connections take their time.
    client.listen()?;
    let Reply::Reloaded(report) = client.answer()? else { return Err(client.unexpected()) };
    if !report.warnings.is_empty() {
        super::complain(&report.warnings.trim_end());
    }
    report.notes.iter().for_each(|note| super::complain(&format!("note: {note}")));
    if args.json {
        let line = serde_json::to_string(&report).map_err(|_| client.unexpected())?;
        super::print(|out| writeln!(out, "{line}"))?;
    } else {
        super::print(|out| show(&report, out))?;
    }
    report.unfinished.map_or(Ok(()), |what| Err(Failure::Running(what)))
}

fn show(report: &ReloadReport, out: &mut dyn io::Write) -> io::Result<()> {
    for line in &report.differences {
        writeln!(out, "{line}")?;
    }
    for file in report.files.iter().filter(|file| !file.altered.is_empty()) {
        writeln!(out, "{}: another order or policy in {}", file.file, file.altered.join(", "))?;
    }
    writeln!(out, "{report}")
}
