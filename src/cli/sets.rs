//! `xrouter sets`: the sets of a running router, which its rules look into and add to.

use clap::Args;

use super::DaemonArgs;
use crate::control::api::{Client, Reply, Request};
use crate::control::startup::Failure;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xrouter sets
  xrouter sets --save > sets.now

They come from --sets FILE; `xrouter reload --sets` reads the file again.")]
pub(super) struct SetsArgs {
    /// All that is in them, as `ipset save` prints it: also what packets have added
    #[arg(long)]
    save: bool,
    /// As JSON, on one line
    #[arg(short = 'j', long, conflicts_with = "save")]
    json: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(super) fn run(args: &SetsArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Sets { save: args.save })?;
    match client.answer()? {
        Reply::Saved(text) if args.save => super::print(|out| out.write_all(text.as_bytes())),
        Reply::Sets(sets) if args.json => {
            let line = serde_json::to_string(&sets).map_err(|_| client.unexpected())?;
            super::print(|out| writeln!(out, "{line}"))
        }
        Reply::Sets(sets) => super::print(|out| {
            writeln!(out, "{:<32} {:<20} {:>10}", "name", "type", "entries")?;
            sets.iter().try_for_each(|set| writeln!(out, "{:<32} {:<20} {:>10}", set.name, set.kind, set.entries))
        }),
        _ => Err(client.unexpected()),
    }
}
