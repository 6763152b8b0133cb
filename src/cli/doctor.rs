//! `xrouter doctor [IF...]`: is this machine ready?

use std::path::PathBuf;

use clap::Args;

use crate::control::config::{self, InterfaceName, Workers};
use crate::control::doctor::{self, Facts, Level, Report};
use crate::control::startup::Failure;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Interfaces; without, all Ethernet interfaces of this network namespace that are up
    #[arg(value_name = "IF")]
    interfaces: Vec<InterfaceName>,
    /// How many workers there are to be [default: as many as queues and cores allow]
    #[arg(long, value_name = "N", value_parser = Workers::parse_count)]
    workers: Option<usize>,
    /// Run the commands that can do no harm, say what came of them, and look again; the interfaces must be named
    #[arg(long, requires = "interfaces")]
    fix: bool,
    /// As JSON
    #[arg(short = 'j', long)]
    json: bool,
    /// Folder of the notes of what routers have changed
    #[arg(long, value_name = "DIR", value_parser = config::parse_path, default_value = config::DEFAULT_STATE)]
    state: PathBuf,
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let names: Vec<&str> = args.interfaces.iter().map(InterfaceName::as_str).collect();
    let workers = args.workers.map(|workers| u32::try_from(workers).unwrap_or(u32::MAX));
    let look = || Facts::gather(&names, workers, &args.state).map(|facts| doctor::examine(&facts));
    let mut report = look()?;
    if args.fix {
        // To standard error: what is on standard output is the report.
        doctor::mend(&report).iter().for_each(|line| super::complain(line));
        report = look()?;
    }
    show(&report, args.json)?;
    // All has been said.
    match report.worst() {
        Level::Ok => Ok(()),
        Level::Warning => Err(Failure::Machine(String::new())),
        Level::Problem => Err(Failure::Answer(String::new())),
    }
}

fn show(report: &Report, json: bool) -> Result<(), Failure> {
    if !json {
        return super::print(|out| write!(out, "{report}"));
    }
    let text =
        serde_json::to_string(report).map_err(|error| Failure::Running(format!("cannot write JSON: {error}")))?;
    super::print(|out| writeln!(out, "{text}"))
}
