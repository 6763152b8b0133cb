//! `xrouter cleanup [IF...]`: what a killed router has left on interfaces, undone.

use std::path::PathBuf;

use clap::Args;

use crate::control::config::{self, InterfaceName};
use crate::control::nic;
use crate::control::startup::Failure;

#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    /// Interfaces; without, all of this network namespace
    #[arg(value_name = "IF")]
    interfaces: Vec<InterfaceName>,
    /// Folder of the notes of what was changed
    #[arg(long, value_name = "DIR", value_parser = config::parse_path, default_value = config::DEFAULT_STATE)]
    state: PathBuf,
}

pub(super) fn run(args: &CleanupArgs) -> Result<(), Failure> {
    let names: Vec<&str> = args.interfaces.iter().map(InterfaceName::as_str).collect();
    let cleaned = nic::cleanup(&args.state, &names)?;
    for line in &cleaned.lost {
        super::complain(line);
    }
    super::print(|out| {
        cleaned.said.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        match cleaned.said.is_empty() && cleaned.lost.is_empty() {
            true => writeln!(out, "nothing to undo"),
            false => Ok(()),
        }
    })?;
    match cleaned.failed {
        0 => Ok(()),
        // What they are has been told.
        _ => Err(Failure::Answer(String::new())),
    }
}
