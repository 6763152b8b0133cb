//! `xrouter stats [-j]`: the daemon's counters.

use clap::Args;

use super::DaemonArgs;
use crate::control::api::{Client, Reply, Request};
use crate::control::startup::Failure;
use crate::control::stats::StatsReport;

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// As JSON, on one line, with every counter
    #[arg(short = 'j', long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(super) fn run(args: &StatsArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Stats {})?;
    let Reply::Stats(value) = client.answer()? else { return Err(client.unexpected()) };
    if args.json {
        // As the daemon said it, also when that is another version.
        return super::print(|out| writeln!(out, "{value}"));
    }
    let report: StatsReport = serde_json::from_value(value).map_err(|_| client.unexpected())?;
    super::print(|out| write!(out, "{report}"))
}
