//! The command line: what `xrouter` understands, and its exit codes. One file per verb; wiring only.
//!
//! Exit codes: 0 done; 1 failed while running; 2 usage, configuration or rules; 3 this machine cannot; 4 no daemon.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::control::config::{
    self, CpuList, HostChains, InterfaceName, Layer, Masquerade, Mode, NicSetup, Placed, Poll, Track, Workers,
};
use crate::control::startup::Failure;
use crate::wire::Family;

mod capture;
mod cleanup;
mod conntrack;
mod doctor;
mod explain;
mod reload;
mod replay;
mod rules;
mod run;
mod sets;
mod stats;
mod sysctl;
mod trace;
mod version;

pub use replay::{ReplayCore, ReplayTotals};

const EXAMPLES: &str = "\
Examples:
  Route between eth0 (inside) and eth1 (outside) with the built-in gateway policy:
      xrouter --lan eth0 --wan eth1
  With the rules of iptables-persistent, two workers on cores 2 and 3, and metrics:
      xrouter --lan eth0 --wan eth1 --rules /etc/iptables/rules.v4 --rules6 /etc/iptables/rules.v6 \\
              --cores 2-3 --metrics 127.0.0.1:9630
  Everything from a file, but another mode:
      xrouter --config /etc/xrouter/xrouter.toml --mode copy
  Check rules, see what passes, list connections:
      xrouter rules check /etc/iptables/rules.v4
      xrouter stats
      xrouter conntrack -L -p tcp -s 192.168.1.0/24
  Why does this connection not come through?
      xrouter explain -i eth0 'tcp 192.168.1.7:1234 > 1.1.1.1:443 syn'
  Change a setting of a running router, as sysctl(8) would:
      xrouter sysctl -w net.netfilter.nf_conntrack_udp_timeout=60
  Change a rule of a running router, as iptables(8) would:
      xrouter iptables -I FORWARD 1 -s 192.0.2.1 -j DROP
  Put other rules in force, without losing a packet:
      xrouter reload --dry-run && xrouter reload

Exit codes:
  0  done
  1  failed while running
  2  usage, configuration or rules are wrong
  3  this machine cannot do it (the message says what is missing and what to do)
  4  no daemon to talk to";

/// A stateful router over AF_XDP: iptables-save rules, nf_conntrack states, one busy-polling worker per NIC queue.
///
/// Forwards IPv4 and IPv6 between two interfaces, in the foreground, until SIGTERM or SIGINT; SIGHUP reads the
/// rules again. Addresses, routes and neighbours stay the kernel's, and so does every packet for the host itself. When packets
/// flow, one line beginning `xrouter ready` appears on standard output; the log goes to standard error.
#[derive(Debug, Parser)]
#[command(
    name = "xrouter",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = EXAMPLES
)]
struct Line {
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// The options of the daemon.
#[derive(Debug, Args)]
struct RunArgs {
    /// Interface to the inside network
    #[arg(long, value_name = "IF")]
    lan: Option<InterfaceName>,
    /// Interface to the outside network
    #[arg(long, value_name = "IF")]
    wan: Option<InterfaceName>,
    /// IPv4 rules, as iptables-save writes them [default: the built-in policy, see `xrouter rules default`]
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// IPv6 rules, as ip6tables-save writes them [default: the built-in policy]
    #[arg(long, value_name = "FILE")]
    rules6: Option<PathBuf>,
    /// Sets that the rules name (-m set, -j SET), as `ipset save` writes them
    #[arg(long, value_name = "FILE")]
    sets: Option<PathBuf>,
    /// Give connections that leave by the outside interface its address: a last rule for nat POSTROUTING, `-o WAN -j
    /// MASQUERADE`, unless it is there; of a rules file or the built-in policy, for ipv4 (when nothing is said), ipv6, both, or no
    #[arg(long, value_name = "VERSION", num_args = 0..=1, require_equals = true, default_missing_value = "ipv4")]
    masquerade: Option<Masquerade>,
    /// What becomes of the files' rules for the host itself (INPUT, OUTPUT): report (they are told of), or apply (the kernel
    /// gets them, by iptables-restore and ip6tables-restore) [default: report]
    #[arg(long, value_name = "HOW")]
    host_chains: Option<HostChains>,
    /// Where copies of packets go that meet an NFLOG rule: a pcapng file, made anew, or a Unix socket that somebody listens on
    #[arg(long, value_name = "PATH")]
    nflog: Option<PathBuf>,
    /// When connections are tracked: wanted (a rule of that IP version needs them, as on Linux) or always [default: wanted]
    #[arg(long, value_name = "WHEN")]
    track: Option<Track>,
    /// Configuration in TOML, with the names of these options; the command line wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How frames cross: auto (the best that works), zero-copy, copy, generic [default: auto]
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    /// Number of workers, each with a queue on both interfaces and a core of its own
    #[arg(long, value_name = "N", value_parser = Workers::parse_count, conflicts_with = "cores")]
    workers: Option<usize>,
    /// Cores to run workers on, such as 2,4-7
    #[arg(long, value_name = "LIST")]
    cores: Option<CpuList>,
    /// What an idle worker does: busy (looks again at once) or adaptive (sleeps until a packet wakes it, which
    /// delays that packet) [default: busy]
    #[arg(long, value_name = "HOW")]
    poll: Option<Poll>,
    /// Whether the interfaces are set up for the run, and given back at its end: auto (queues, RSS, offloads, interrupts), off
    /// [default: auto]
    #[arg(long, value_name = "HOW")]
    nic_setup: Option<NicSetup>,
    /// Folder for the note of what is changed on them, by which it can be undone after a crash [default: /run/xrouter]
    #[arg(long, value_name = "DIR", value_parser = config::parse_path)]
    state: Option<PathBuf>,
    /// Take over the conntrack settings that this machine has now (net.netfilter.nf_conntrack_*); those in the file win
    #[arg(long)]
    sysctl_from_kernel: bool,
    /// Serve Prometheus metrics at http://ADDR:PORT/metrics
    #[arg(long, value_name = "ADDR:PORT", value_parser = config::parse_metrics)]
    metrics: Option<SocketAddr>,
    /// Control socket [default: /run/xrouter/xrouter.sock]
    #[arg(long, value_name = "PATH", value_parser = config::parse_socket_path)]
    control: Option<PathBuf>,
}

impl RunArgs {
    /// The command line's settings, and the configuration file to lay them over.
    fn into_layer(self) -> (Layer, Option<PathBuf>) {
        let workers = self.workers.map(|count| Placed::option("--workers", Workers::Count(count)));
        let cores = self.cores.map(|cores| Placed::option("--cores", Workers::Cores(cores)));
        let layer = Layer {
            lan: self.lan.map(|name| Placed::option("--lan", name)),
            wan: self.wan.map(|name| Placed::option("--wan", name)),
            rules: self.rules.map(|path| Placed::option("--rules", path)),
            rules6: self.rules6.map(|path| Placed::option("--rules6", path)),
            sets: self.sets.map(|path| Placed::option("--sets", path)),
            masquerade: self.masquerade.map(|versions| Placed::option("--masquerade", versions)),
            host_chains: self.host_chains.map(|how| Placed::option("--host-chains", how)),
            nflog: self.nflog.map(|path| Placed::option("--nflog", path)),
            track: self.track.map(|when| Placed::option("--track", when)),
            mode: self.mode.map(|mode| Placed::option("--mode", mode)),
            workers: workers.or(cores),
            poll: self.poll.map(|poll| Placed::option("--poll", poll)),
            nic_setup: self.nic_setup.map(|how| Placed::option("--nic-setup", how)),
            state: self.state.map(|path| Placed::option("--state", path)),
            metrics: self.metrics.map(|address| Placed::option("--metrics", address)),
            control: self.control.map(|path| Placed::option("--control", path)),
            sysctl_from_kernel: self.sysctl_from_kernel.then_some(true),
            conntrack: Vec::new(),
        };
        (layer, self.config)
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check rules, or print the built-in ones
    Rules(rules::RulesArgs),
    /// Show a running router's counters: drops by reason first
    Stats(stats::StatsArgs),
    /// List, delete and watch a running router's connections, as conntrack(8) does
    Conntrack(Box<conntrack::ConntrackArgs>),
    /// Say what would become of a packet, step by step, and why
    Explain(Box<explain::ExplainArgs>),
    /// Show what becomes of packets of a running router as they come, with the rules they meet
    Trace(trace::TraceArgs),
    /// Show and change a running router's conntrack settings, as sysctl(8) does
    Sysctl(sysctl::SysctlArgs),
    /// Change a running router's IPv4 rules, as iptables(8) does
    Iptables(rules::change::IptablesArgs),
    /// Change a running router's IPv6 rules, as ip6tables(8) does
    Ip6tables(rules::change::IptablesArgs),
    /// Have a running router read its rules again
    Reload(reload::ReloadArgs),
    /// Show a running router's sets
    Sets(sets::SetsArgs),
    /// Run captured packets through rules and connection tracking; needs no privileges
    Replay(replay::ReplayArgs),
    /// Look whether this machine and these interfaces are ready, and say what mends what is not
    ///
    /// Ends with 0 when all is well, with 1 when there are problems, with 3 when there are only warnings.
    Doctor(doctor::DoctorArgs),
    /// Undo what a router that was killed has left on its interfaces
    Cleanup(cleanup::CleanupArgs),
    /// Print the version
    Version,
}

/// Where a running daemon is found.
#[derive(Debug, Args)]
struct DaemonArgs {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", value_parser = config::parse_socket_path, default_value = config::DEFAULT_CONTROL)]
    control: PathBuf,
}

/// The whole program: reads the command line, does it, tells what went wrong, and gives the exit code.
pub fn main() -> ExitCode {
    let line = match Line::try_parse() {
        Ok(line) => line,
        Err(message) => {
            // Help and version are messages too, with code 0. A closed pipe is no reason to fail.
            let _ = message.print();
            return ExitCode::from(u8::try_from(message.exit_code()).unwrap_or(2));
        }
    };
    let outcome = match line.verb {
        None => run::run(line.run),
        Some(Verb::Rules(args)) => rules::run(args),
        Some(Verb::Stats(args)) => stats::run(&args),
        Some(Verb::Conntrack(args)) => conntrack::run(&args),
        Some(Verb::Explain(args)) => explain::run(&args),
        Some(Verb::Trace(args)) => trace::run(&args),
        Some(Verb::Sysctl(args)) => sysctl::run(&args),
        Some(Verb::Iptables(args)) => rules::change::iptables(&args, Family::V4),
        Some(Verb::Ip6tables(args)) => rules::change::iptables(&args, Family::V6),
        Some(Verb::Reload(args)) => reload::run(&args),
        Some(Verb::Sets(args)) => sets::run(&args),
        Some(Verb::Replay(args)) => replay::run(&args),
        Some(Verb::Doctor(args)) => doctor::run(&args),
        Some(Verb::Cleanup(args)) => cleanup::run(&args),
        Some(Verb::Version) => version::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // An answer may have been given on standard output.
            if !failure.message().is_empty() {
                complain(&failure);
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Writes to standard error; nobody is left to tell when that fails.
fn complain(text: &dyn Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes to standard output through a buffer. That nobody reads on (`| head`) is no failure.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Running(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}
