//! `xrouter conntrack`: conntrack(8) for a running router. Its letters, its filters, its lines, its exit codes.
//!
//! The daemon does the choosing and deleting, a bounded piece per burst; this end prints. What conntrack(8) can do and this
//! cannot (`-I`, `-A`, `-U`, `-R`, `-z`, tables other than `conntrack`) is refused with the reason.

use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;

use clap::{ArgGroup, Args, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use super::DaemonArgs;
use crate::conntrack::{EventMask, Network};
use crate::control::api::{Client, Reply, Request};
use crate::control::startup::Failure;
use crate::control::stats::StatsReport;

mod expect;
mod filter;
mod print;

use print::Printer;

#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("command").required(true).args([
        "list", "get", "delete", "flush", "count", "stats", "event", "create", "add", "update", "load_file",
    ])),
    override_usage = "xrouter conntrack <-L|-G|-D|-F|-C|-S|-E> [OPTIONS] [TABLE]",
    after_help = "Examples:
  xrouter conntrack -L
  xrouter conntrack -L -f ipv6 -p udp -o extended,id
  xrouter conntrack -L -s 192.168.1.0/24 -o json | jq .
  xrouter conntrack -G -p tcp -s 192.168.1.2 -d 1.1.1.1 --sport 40000 --dport 443
  xrouter conntrack -D -p tcp --dport 22 --state ESTABLISHED
  xrouter conntrack -E -e NEW,DESTROY -o timestamp

Connections go to standard output, their number to standard error. Exit codes are conntrack's: 1 when -D or -G found none."
)]
pub(super) struct ConntrackArgs {
    /// List connections
    #[arg(short = 'L', long = "dump")]
    list: bool,
    /// Show the one connection with this protocol, these addresses and ports
    #[arg(short = 'G', long)]
    get: bool,
    /// Delete connections, all that the filters let through; shows them
    #[arg(short = 'D', long)]
    delete: bool,
    /// Delete all connections
    #[arg(short = 'F', long)]
    flush: bool,
    /// Show how many connections there are
    #[arg(short = 'C', long)]
    count: bool,
    /// Show the counters, one line for each worker
    #[arg(short = 'S', long)]
    stats: bool,
    /// Show what becomes of connections, until interrupted
    #[arg(short = 'E', long)]
    event: bool,
    #[arg(short = 'I', long, hide = true)]
    create: bool,
    #[arg(short = 'A', long, hide = true)]
    add: bool,
    #[arg(short = 'U', long, hide = true)]
    update: bool,
    #[arg(short = 'R', long, hide = true)]
    load_file: bool,
    #[arg(short = 'z', long, hide = true)]
    zero: bool,
    /// The table: conntrack, or expect (with -L, -F, -C, -S): what helpers expect
    #[arg(value_name = "TABLE")]
    table: Option<String>,

    /// Source address (with LENGTH or MASK, those that lie in it) of the original direction
    #[arg(short = 's', long = "src", visible_alias = "orig-src", value_name = "ADDR[/LENGTH]")]
    src: Option<Network>,
    /// Destination address of the original direction
    #[arg(short = 'd', long = "dst", visible_alias = "orig-dst", value_name = "ADDR[/LENGTH]")]
    dst: Option<Network>,
    /// Source address of the reply direction
    #[arg(short = 'r', long, value_name = "ADDR[/LENGTH]")]
    reply_src: Option<Network>,
    /// Destination address of the reply direction
    #[arg(short = 'q', long, value_name = "ADDR[/LENGTH]")]
    reply_dst: Option<Network>,
    /// Which bits of --src count
    #[arg(long, value_name = "MASK", requires = "src")]
    mask_src: Option<IpAddr>,
    /// Which bits of --dst count
    #[arg(long, value_name = "MASK", requires = "dst")]
    mask_dst: Option<IpAddr>,
    /// Protocol: tcp, udp, icmp, icmpv6, gre, sctp, udplite or a number
    #[arg(short, long, visible_alias = "protonum", value_parser = filter::protocol, value_name = "PROTO")]
    proto: Option<u8>,
    /// IP version
    #[arg(short, long, value_enum, value_name = "FAMILY")]
    family: Option<FamilyName>,
    /// Source port of the original direction
    #[arg(long, visible_alias = "orig-port-src", value_name = "PORT")]
    sport: Option<u16>,
    /// Destination port of the original direction
    #[arg(long, visible_alias = "orig-port-dst", value_name = "PORT")]
    dport: Option<u16>,
    /// Source port of the reply direction
    #[arg(long, value_name = "PORT")]
    reply_port_src: Option<u16>,
    /// Destination port of the reply direction
    #[arg(long, value_name = "PORT")]
    reply_port_dst: Option<u16>,
    /// State of TCP or SCTP, such as ESTABLISHED
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// ICMP type, a number
    #[arg(long, visible_alias = "icmpv6-type", value_name = "TYPE")]
    icmp_type: Option<u8>,
    /// ICMP code, a number
    #[arg(long, visible_alias = "icmpv6-code", value_name = "CODE")]
    icmp_code: Option<u8>,
    /// ICMP identifier, a number
    #[arg(long, visible_alias = "icmpv6-id", value_name = "ID")]
    icmp_id: Option<u16>,
    /// GRE source key of the original direction
    #[arg(long, visible_alias = "orig-key-src", value_parser = filter::key, value_name = "KEY")]
    srckey: Option<u16>,
    /// GRE destination key of the original direction
    #[arg(long, visible_alias = "orig-key-dst", value_parser = filter::key, value_name = "KEY")]
    dstkey: Option<u16>,
    /// GRE source key of the reply direction
    #[arg(long, value_parser = filter::key, value_name = "KEY")]
    reply_key_src: Option<u16>,
    /// GRE destination key of the reply direction
    #[arg(long, value_parser = filter::key, value_name = "KEY")]
    reply_key_dst: Option<u16>,
    /// Status, several joined by commas: ASSURED, SEEN_REPLY, UNREPLIED, EXPECTED, UNSET (alone: none of them)
    #[arg(short = 'u', long, value_parser = filter::status, value_name = "STATUS")]
    status: Option<filter::Status>,
    /// Connection mark
    #[arg(short, long, value_parser = filter::mark, value_name = "MARK[/MASK]")]
    mark: Option<filter::Mark>,
    /// Zone of both directions
    #[arg(short = 'w', long, value_name = "ZONE")]
    zone: Option<u16>,
    /// Zone of the original direction alone
    #[arg(long, value_name = "ZONE")]
    orig_zone: Option<u16>,
    /// Zone of the reply direction alone
    #[arg(long, value_name = "ZONE")]
    reply_zone: Option<u16>,
    /// Only those whose source is translated, to this address if one is given
    #[arg(short = 'n', long, value_name = "ADDR[:PORT]", num_args = 0..=1, default_missing_value = "")]
    src_nat: Option<filter::Nat>,
    /// Only those whose destination is translated
    #[arg(short = 'g', long, value_name = "ADDR[:PORT]", num_args = 0..=1, default_missing_value = "")]
    dst_nat: Option<filter::Nat>,
    /// Only those of which either is translated
    #[arg(short = 'j', long, value_name = "ADDR[:PORT]", num_args = 0..=1, default_missing_value = "",
          conflicts_with_all = ["src_nat", "dst_nat"])]
    any_nat: Option<filter::Nat>,
    /// Seconds left, exactly (with -L and -D)
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Identifier, as -o id shows it
    #[arg(short, long, value_name = "ID")]
    id: Option<u32>,

    /// Kinds of events, joined by commas: ALL, NEW, UPDATES, DESTROY (with -E)
    #[arg(short, long, value_name = "EVENTS")]
    event_mask: Option<EventMask>,
    /// Forms, joined by commas: extended (IP version in front), id, ktimestamp (when it began), timestamp (when it happened,
    /// with -E), xml, json (an object on each line)
    #[arg(short, long, value_delimiter = ',', ignore_case = true, value_enum, value_name = "FORM")]
    output: Vec<Form>,
    /// List as /proc/net/nf_conntrack does
    #[arg(long, conflicts_with = "output")]
    proc: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FamilyName {
    Ipv4,
    Ipv6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Extended,
    Id,
    Ktimestamp,
    Timestamp,
    Xml,
    Json,
}

pub(super) fn run(args: &ConntrackArgs) -> Result<(), Failure> {
    refuse(args)?;
    if is_expect(args) {
        return expect::run(args);
    }
    match args {
        ConntrackArgs { list: true, .. } => list(args, false),
        ConntrackArgs { delete: true, .. } => list(args, true),
        ConntrackArgs { get: true, .. } => get(args),
        ConntrackArgs { flush: true, .. } => flush(args),
        ConntrackArgs { event: true, .. } => events(args),
        _ => counters(args),
    }
}

/// conntrack(8) takes the beginning of the table's name, too.
fn is_expect(args: &ConntrackArgs) -> bool {
    args.table.as_deref().is_some_and(|table| !table.is_empty() && "expect".starts_with(table))
}

/// What conntrack(8) can do and this cannot, and what makes no sense together.
fn refuse(args: &ConntrackArgs) -> Result<(), Failure> {
    let no = |what: String| Err(Failure::Usage(what));
    let makes = [("-I", args.create), ("-A", args.add), ("-U", args.update), ("-R", args.load_file)];
    if let Some((letter, _)) = makes.iter().find(|(_, given)| *given) {
        return no(format!(
            "{letter}: connections are made and changed by packets and rules only; conntrack can list (-L, -G), delete \
             (-D, -F), count (-C, -S) and watch (-E) them"
        ));
    }
    if args.zero {
        return no("-z: counters cannot be set back to zero; they go when their connection goes".to_owned());
    }
    match args.table.as_deref() {
        None | Some("conntrack") => {}
        Some(_) if is_expect(args) => return expect::refuse(args),
        Some(table @ ("dying" | "unconfirmed")) => {
            return no(format!("table {table}: a connection is in the table `conntrack` or gone; there is no other"));
        }
        Some(other) => return no(format!("unknown table `{other}`; allowed: conntrack, expect")),
    }
    let letter = match args {
        ConntrackArgs { flush: true, .. } => "-F",
        ConntrackArgs { count: true, .. } => "-C",
        ConntrackArgs { stats: true, .. } => "-S",
        ConntrackArgs { get: true, .. } => "-G",
        ConntrackArgs { event: true, .. } => "-E",
        ConntrackArgs { delete: true, .. } => "-D",
        _ => "-L",
    };
    let shows = matches!(letter, "-L" | "-D" | "-G" | "-E");
    let without_meaning = [
        ("--output", !args.output.is_empty() && !shows),
        ("--proc", args.proc && letter != "-L"),
        ("--event-mask", args.event_mask.is_some() && letter != "-E"),
        ("--timeout", args.timeout.is_some() && !matches!(letter, "-L" | "-D")),
        ("a filter", !matches!(letter, "-L" | "-D" | "-E" | "-G") && filter::is_given(args)),
    ];
    match without_meaning.iter().find(|(_, wrong)| *wrong) {
        Some((option, _)) if letter == "-F" => no(format!(
            "{option} has no meaning with -F, which deletes everything; -D deletes what filters let through"
        )),
        Some((option, _)) => no(format!("{option} has no meaning with {letter}")),
        None => Ok(()),
    }
}

/// `xrouter v0.1.0: …`, as conntrack(8) begins what it says.
fn said(text: &str) -> String {
    format!("xrouter v{}: {text}", env!("CARGO_PKG_VERSION"))
}

/// `-L` and `-D`.
fn list(args: &ConntrackArgs, delete: bool) -> Result<(), Failure> {
    let filter = filter::of(args)?;
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&match delete {
        true => Request::Delete { filter, quiet: false },
        false => Request::Conntrack { filter },
    })?;
    // A large table may have nothing to show for a while.
    client.listen()?;
    let mut printer = Printer::new(args, 1);
    // What goes wrong with the daemon, beside what goes wrong with standard output.
    let mut outcome = Ok(None);
    super::print(|out| {
        outcome = listing(&mut client, &mut printer, out)?;
        // conntrack -D prints elements without the document around them.
        if delete { Ok(()) } else { printer.finish(out) }
    })?;
    match outcome? {
        None => {}
        Some(0) if delete => return Err(Failure::Answer(said("0 flow entries have been deleted."))),
        Some(count) if delete => super::complain(&said(&format!("{count} flow entries have been deleted."))),
        Some(count) => super::complain(&said(&format!("{count} flow entries have been shown."))),
    }
    Ok(())
}

/// Copies the listing to `out`; how many the daemon says there were.
fn listing(
    client: &mut Client,
    printer: &mut Printer,
    out: &mut dyn Write,
) -> io::Result<Result<Option<u64>, Failure>> {
    loop {
        match client.answer() {
            Ok(Reply::Conn(conn)) => printer.conn(out, &conn)?,
            Ok(Reply::End { count }) => return Ok(Ok(Some(count))),
            Ok(_) => return Ok(Err(client.unexpected())),
            Err(failure) => return Ok(Err(failure)),
        }
    }
}

fn get(args: &ConntrackArgs) -> Result<(), Failure> {
    let request = filter::tuple(args)?;
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&request)?;
    let conn = match client.answer()? {
        Reply::Conn(conn) => conn,
        Reply::None {} => {
            return Err(Failure::Answer(said("Operation failed: such conntrack doesn't exist")));
        }
        _ => return Err(client.unexpected()),
    };
    if !filter::of(args)?.admits(&conn) {
        // The tuple is that of its reply.
        return Err(Failure::Answer(said("0 flow entries have been shown.")));
    }
    let mut printer = Printer::new(args, 2);
    super::print(|out| {
        printer.conn(out, &conn)?;
        printer.finish(out)
    })?;
    super::complain(&said("1 flow entries have been shown."));
    Ok(())
}

fn flush(args: &ConntrackArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Delete { filter: filter::of(args)?, quiet: true })?;
    client.listen()?;
    let Reply::End { .. } = client.answer()? else { return Err(client.unexpected()) };
    super::complain(&said("connection tracking table has been emptied."));
    Ok(())
}

/// `-C` and `-S`.
fn counters(args: &ConntrackArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Stats {})?;
    let Reply::Stats(value) = client.answer()? else { return Err(client.unexpected()) };
    let report: StatsReport = serde_json::from_value(value).map_err(|_| client.unexpected())?;
    super::print(|out| {
        if args.count {
            return writeln!(out, "{}", report.conntrack().entries);
        }
        for worker in &report.workers {
            write!(out, "cpu={:<4}\t", worker.core)?;
            for (name, count) in worker.conntrack.of_conntrack() {
                write!(out, "{name}={count} ")?;
            }
            writeln!(out)?;
        }
        Ok(())
    })
}

/// `-E`.
fn events(args: &ConntrackArgs) -> Result<(), Failure> {
    let failed = |error| Failure::Running(format!("cannot listen for signals: {error}"));
    let filter = filter::of(args)?;
    let mut ends = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM].into_iter().for_each(|signal| ends.add(signal));
    ends.thread_block().map_err(failed)?;
    let ends = SignalFd::new(&ends).map_err(failed)?;
    let mut client = Client::connect(&args.daemon.control)?;
    client.ask(&Request::Events { filter, events: args.event_mask.unwrap_or_default() })?;
    client.listen()?;
    let mut printer = Printer::new(args, 1);
    let mut count = 0;
    let mut outcome = Ok(());
    super::print(|out| {
        outcome = follow(&mut client, &ends, &mut printer, &mut count, out)?;
        printer.finish(out)
    })?;
    super::complain(&said(&format!("{count} flow events have been shown.")));
    outcome
}

/// Copies events to `out` until a signal comes.
fn follow(
    client: &mut Client,
    ends: &SignalFd,
    printer: &mut Printer,
    count: &mut u64,
    out: &mut dyn Write,
) -> io::Result<Result<(), Failure>> {
    loop {
        if !client.has_answer() {
            out.flush()?;
            let (daemon, end) = (client.as_fd(), ends.as_fd());
            let mut fds = [PollFd::new(daemon, PollFlags::POLLIN), PollFd::new(end, PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE)?;
            if fds[1].any().unwrap_or(false) {
                return Ok(Ok(()));
            }
        }
        match client.answer() {
            Ok(Reply::Listening {}) => {}
            Ok(Reply::Event(event)) => {
                printer.event(out, &event)?;
                *count += 1;
            }
            Ok(Reply::Lost { count }) => {
                super::complain(&said(&format!(
                    "WARNING: {count} flow events are lost: they came too fast to be told"
                )));
            }
            Ok(_) => return Ok(Err(client.unexpected())),
            Err(failure) => return Ok(Err(failure)),
        }
    }
}
