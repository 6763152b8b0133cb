//! `xrouter conntrack -L`: the daemon's connections, in conntrack(8)'s letters and format.

use std::io;

use clap::{Args, ValueEnum};

use super::DaemonArgs;
use crate::control::api::{Client, ConnFilter, Network, Output, Reply, Request};
use crate::control::startup::Failure;
use crate::wire::proto;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xrouter conntrack -L
  xrouter conntrack -L -f ipv6 -p udp
  xrouter conntrack -L -s 192.168.1.0/24 -o json | jq .

The connections go to standard output, their number to standard error.")]
pub(super) struct ConntrackArgs {
    /// List connections
    #[arg(short = 'L', long = "dump", required = true)]
    list: bool,
    /// Only this IP version
    #[arg(short, long, value_enum, value_name = "FAMILY")]
    family: Option<FamilyName>,
    /// Only this protocol: tcp, udp, icmp, icmpv6, gre, sctp, udplite or a number
    #[arg(short, long, value_parser = protocol, value_name = "PROTO")]
    proto: Option<u8>,
    /// Only with this source address (or prefix) in the original direction
    #[arg(short = 's', long = "src", value_name = "ADDR[/LENGTH]")]
    src: Option<Network>,
    /// Only with this destination address (or prefix) in the original direction
    #[arg(short = 'd', long = "dst", value_name = "ADDR[/LENGTH]")]
    dst: Option<Network>,
    /// extended: with the IP version in front; json: an object on each line
    #[arg(short, long, value_enum, value_name = "FORM")]
    output: Option<Form>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FamilyName {
    Ipv4,
    Ipv6,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    Extended,
    Json,
}

/// A protocol by conntrack's name for it, or by number.
fn protocol(text: &str) -> Result<u8, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "icmp" => proto::ICMP,
        "icmpv6" | "ipv6-icmp" => proto::ICMPV6,
        "gre" => proto::GRE,
        "sctp" => proto::SCTP,
        "udplite" => proto::UDPLITE,
        other => {
            return other
                .parse()
                .map_err(|_| "allowed: tcp, udp, icmp, icmpv6, gre, sctp, udplite or 0 to 255".to_owned());
        }
    })
}

pub(super) fn run(args: &ConntrackArgs) -> Result<(), Failure> {
    let filter = ConnFilter {
        family: args.family.map(|family| match family {
            FamilyName::Ipv4 => 4,
            FamilyName::Ipv6 => 6,
        }),
        proto: args.proto,
        src: args.src,
        dst: args.dst,
    };
    let output = match args.output {
        None => Output::Text,
        Some(Form::Extended) => Output::Extended,
        Some(Form::Json) => Output::Json,
    };
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Conntrack { output, filter })?;
    // What goes wrong with the daemon, beside what goes wrong with standard output.
    let mut outcome = Ok(None);
    super::print(|out| {
        outcome = listing(&mut client, out)?;
        Ok(())
    })?;
    if let Some(count) = outcome? {
        let total = format!("xrouter v{}: {count} flow entries have been shown.", env!("CARGO_PKG_VERSION"));
        super::complain(&total);
    }
    Ok(())
}

/// Copies the listing to `out`; how many the daemon says there were.
fn listing(client: &mut Client, out: &mut dyn io::Write) -> io::Result<Result<Option<u64>, Failure>> {
    loop {
        match client.answer() {
            Ok(Reply::Line(line)) => writeln!(out, "{line}")?,
            Ok(Reply::Conn(conn)) => writeln!(out, "{conn}")?,
            Ok(Reply::End { count }) => return Ok(Ok(Some(count))),
            Ok(_) => return Ok(Err(client.unexpected())),
            Err(failure) => return Ok(Err(failure)),
        }
    }
}
