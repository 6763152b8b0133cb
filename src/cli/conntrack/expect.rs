//! `xrouter conntrack` on the table `expect`: the connections that helpers have announced.

use super::{ConntrackArgs, FamilyName, Form, filter, said};
use crate::cli::{complain, print};
use crate::conntrack::{ConnFilter, ExpectView};
use crate::control::api::{Client, Reply, Request};
use crate::control::startup::Failure;
use crate::control::stats::StatsReport;

/// What makes no sense of expectations, or cannot be done with them.
pub(super) fn refuse(args: &ConntrackArgs) -> Result<(), Failure> {
    let no = |what: &str| Err(Failure::Usage(format!("table expect: {what}")));
    let json_only = args.output.iter().all(|form| *form == Form::Json);
    match args {
        _ if !(args.list || args.flush || args.count || args.stats) => {
            no("it can be listed (-L), counted (-C, -S) and emptied (-F)")
        }
        _ if !takes_all(args) => no("it takes no filter but --family"),
        _ if args.family.is_some() && !args.list => no("--family has a meaning with -L only"),
        _ if args.proc || !json_only || !args.output.is_empty() && !args.list => {
            no("it is shown as lines, or with -L -o json")
        }
        _ if args.event_mask.is_some() || args.timeout.is_some() => no("it takes neither --event-mask nor --timeout"),
        _ => Ok(()),
    }
}

/// Whether no filter is given but the IP version.
fn takes_all(args: &ConntrackArgs) -> bool {
    let of_family = |filter: ConnFilter| filter == ConnFilter { family: filter.family, ..ConnFilter::default() };
    args.state.is_none() && filter::of(args).is_ok_and(of_family)
}

/// Does what was asked.
pub(super) fn run(args: &ConntrackArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.daemon.control)?;
    if args.count || args.stats {
        return counters(args, &mut client);
    }
    client.ask(&Request::Expect { flush: args.flush })?;
    client.listen()?;
    let mut views = Vec::new();
    loop {
        match client.answer()? {
            Reply::Expected(view) => views.push(view),
            Reply::End { .. } => break,
            _ => return Err(client.unexpected()),
        }
    }
    if args.flush {
        complain(&said("expectation table has been emptied."));
        return Ok(());
    }
    // conntrack(8) shows those of IPv4, unless it is asked for others.
    let family = if args.family == Some(FamilyName::Ipv6) { 10 } else { 2 };
    let shown: Vec<&ExpectView> = views.iter().filter(|view| view.family == family).collect();
    print(|out| {
        for view in &shown {
            match args.output.is_empty() {
                true => writeln!(out, "{view}")?,
                false => writeln!(out, "{}", serde_json::to_string(view)?)?,
            }
        }
        Ok(())
    })?;
    complain(&said(&format!("{} expectations have been shown.", shown.len())));
    Ok(())
}

/// `-C` and `-S`.
fn counters(args: &ConntrackArgs, client: &mut Client) -> Result<(), Failure> {
    client.ask(&Request::Stats {})?;
    let Reply::Stats(value) = client.answer()? else { return Err(client.unexpected()) };
    let report: StatsReport = serde_json::from_value(value).map_err(|_| client.unexpected())?;
    print(|out| {
        if args.count {
            return writeln!(out, "{}", report.conntrack().expected);
        }
        for worker in &report.workers {
            write!(out, "cpu={:<4}\t", worker.core)?;
            for (name, count) in worker.conntrack.of_expect() {
                write!(out, "{name}={count} ")?;
            }
            writeln!(out)?;
        }
        Ok(())
    })
}
