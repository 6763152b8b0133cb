//! `xrouter trace FILTER`: what becomes of a running router's packets as they come, with the rules they meet.

use std::io::{self, Write};

use chrono::{Local, TimeZone};
use clap::Args;

use super::DaemonArgs;
use crate::control::api::{Client, Reply, Request};
use crate::control::startup::Failure;
use crate::control::trace::{self, GRAMMAR, RATE_DEFAULT, TraceReport, TraceWish};
use crate::time::SECOND_NS;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:
  xrouter trace tcp host 10.0.0.5 port 443
  xrouter trace -c 1 'in lan and udp and not port 53'

For each packet: when, what and where it arrived, what conntrack says; the rules that matched, as
`-j TRACE` and `nft monitor trace` tell them, with file and line; the verdict, and the next hop.
Packets that are traced go the long way through the router, with the same verdict; others are not
touched, and those beyond --rate are counted. It ends with ^C. `xrouter trace --help` has the filter's words.",
    after_long_help = GRAMMAR
)]
pub(super) struct TraceArgs {
    /// Which packets, as tcpdump says it; without it, all
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// End after so many packets
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// Follow so many packets in a second, at most
    #[arg(long, value_name = "N", default_value_t = RATE_DEFAULT)]
    rate: u32,
    /// As JSON, a line for each packet
    #[arg(short = 'j', long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(super) fn run(args: &TraceArgs) -> Result<(), Failure> {
    let filter = args.filter.join(" ");
    trace::parse(&filter, None).map_err(|wrong| Failure::Usage(format!("`{filter}`: {wrong}\n\n{GRAMMAR}")))?;
    if args.rate == 0 || args.rate > trace::RATE_MAX {
        return Err(Failure::Usage(format!("--rate {}: 1 to {} packets in a second", args.rate, trace::RATE_MAX)));
    }
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Trace(TraceWish { filter, rate: args.rate }))?;
    let mut outcome = Ok(());
    super::print(|out| {
        outcome = follow(&mut client, args, out)?;
        Ok(())
    })?;
    outcome
}

/// Copies reports to `out` until there are enough, or nobody reads them.
fn follow(client: &mut Client, args: &TraceArgs, out: &mut dyn Write) -> io::Result<Result<(), Failure>> {
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        match client.answer() {
            Ok(Reply::Listening {}) => {
                super::complain(&"tracing; ^C ends it");
                if let Err(failure) = client.listen() {
                    return Ok(Err(failure));
                }
            }
            Ok(Reply::Traced(report)) => {
                show(out, &report, args.json)?;
                left -= 1;
            }
            Ok(Reply::Lost { count }) => {
                let packets = if count == 1 { "packet was" } else { "packets were" };
                super::complain(&format!("{count} more {packets} not shown: too many in a second (see --rate)"));
            }
            Ok(_) => return Ok(Err(client.unexpected())),
            Err(failure) => return Ok(Err(failure)),
        }
        if !client.has_answer() {
            out.flush()?;
        }
    }
    Ok(Ok(()))
}

fn show(out: &mut dyn Write, report: &TraceReport, json: bool) -> io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, report)?;
        return writeln!(out);
    }
    let (seconds, rest) = (report.time / SECOND_NS, report.time % SECOND_NS);
    let time = Local.timestamp_opt(seconds as i64, rest as u32).single();
    let time = time.map_or_else(String::new, |time| time.format("%H:%M:%S%.6f ").to_string());
    write!(out, "{time}{report}")
}
