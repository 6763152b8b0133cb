//! `xrouter replay`: two capture files, merged by time, through the router's core, and what leaves it into a third.
//!
//! The core is behind [`ReplayCore`], so that this file knows capture files and order only. No privileges, no interfaces, no
//! clock: the time is the capture's.

use std::path::{Path, PathBuf};

use clap::Args;

use super::capture::{Capture, CaptureWriter, Captured};
use super::rules;
use crate::conntrack::Settings;
use crate::control::config::InterfaceName;
use crate::control::startup::Failure;
use crate::device::PortId;
use crate::rules::RuleVector;
use crate::sim::replay::{Replay, Survey};
use crate::snapshot::Policy;
use crate::time::Instant;
use crate::verdict::DropCounters;
use crate::wire::Family;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  xrouter replay --rules rules.v4 --lan eth0 --wan eth1 \\
                 --lan-pcap eth0.pcap --wan-pcap eth1.pcap -w out.pcapng

The captures (pcap or pcapng) hold the packets that arrive at the two interfaces. They are taken in
the order of their time stamps, the inside first among equals. Every source seen inside is reached
inside, all else outside. The output is pcapng with two interfaces, lan and wan; what became of the
other packets is told on standard error.")]
pub(super) struct ReplayArgs {
    /// IPv4 rules, as iptables-save writes them [default: the built-in policy]
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// IPv6 rules, as ip6tables-save writes them [default: the built-in policy]
    #[arg(long, value_name = "FILE")]
    rules6: Option<PathBuf>,
    /// Sets that the rules name, as `ipset save` writes them
    #[arg(long, value_name = "FILE")]
    sets: Option<PathBuf>,
    /// Name that the rules have for the inside interface
    #[arg(long, value_name = "IF", default_value = "lan")]
    lan: InterfaceName,
    /// Name that the rules have for the outside interface
    #[arg(long, value_name = "IF", default_value = "wan")]
    wan: InterfaceName,
    /// Packets that arrive from the inside
    #[arg(long, value_name = "FILE")]
    lan_pcap: PathBuf,
    /// Packets that arrive from the outside
    #[arg(long, value_name = "FILE")]
    wan_pcap: PathBuf,
    /// Where to write the packets that leave; - is standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
}

/// The router's core, as a replay sees it.
pub trait ReplayCore {
    /// `frame` arrives at `port` at `now`, never earlier than the one before. Returns the frames that leave for it, each with
    /// its port. A frame too large for the core is dropped there and counted.
    fn packet(&mut self, port: PortId, frame: &[u8], now: Instant) -> Vec<(PortId, Vec<u8>)>;

    /// What became of all packets.
    fn totals(&self) -> ReplayTotals;
}

/// What became of a replay's packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayTotals {
    /// Packets that would have gone to the host itself.
    pub punted: u64,
    /// Packets dropped, by reason.
    pub drops: DropCounters,
}

pub(super) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    let ports = [args.lan.as_str(), args.wan.as_str()];
    let sets = rules::read_sets(args.sets.as_deref())?;
    let v4 = rules::read("--rules", args.rules.as_deref(), Family::V4, ports, &sets)?;
    let v6 = rules::read("--rules6", args.rules6.as_deref(), Family::V6, ports, &sets)?;
    let mut survey = Survey::default();
    for (port, option, path) in [(PortId::LAN, LAN, &args.lan_pcap), (PortId::WAN, WAN, &args.wan_pcap)] {
        let mut capture = Capture::open(option, path)?;
        while let Some(packet) = capture.next()? {
            survey.see(port, &packet.frame);
        }
    }
    let policy = Policy { generation: 1, v4: RuleVector::compile(&v4), v6: RuleVector::compile(&v6) };
    let mut core = Replay::new(policy, &survey, Settings::default());
    replay(&mut core, &args.lan_pcap, &args.wan_pcap, &args.write)
}

const LAN: &str = "--lan-pcap";
const WAN: &str = "--wan-pcap";

impl ReplayCore for Replay {
    fn packet(&mut self, port: PortId, frame: &[u8], now: Instant) -> Vec<(PortId, Vec<u8>)> {
        Replay::packet(self, port, frame, now)
    }

    fn totals(&self) -> ReplayTotals {
        let counters = &self.shard().counters;
        ReplayTotals { punted: counters.punted, drops: counters.drops.clone() }
    }
}

/// Reads both captures, puts every packet through `core` in the order of time, and writes what leaves.
fn replay(core: &mut impl ReplayCore, lan: &Path, wan: &Path, write: &Path) -> Result<(), Failure> {
    let mut captures = [Capture::open(LAN, lan)?, Capture::open(WAN, wan)?];
    for input in [lan, wan] {
        let same = std::fs::canonicalize(write)
            .is_ok_and(|output| std::fs::canonicalize(input).is_ok_and(|input| input == output));
        if same {
            let name = write.display();
            return Err(Failure::Usage(format!(
                "-w {name}: that is also an input, and would be lost. Give another file"
            )));
        }
    }
    let mut heads: [Option<Captured>; 2] = [captures[0].next()?, captures[1].next()?];
    let mut output = CaptureWriter::create("-w", write)?;
    let (mut read, mut written, mut now) = (0u64, 0u64, Instant::ZERO);
    loop {
        let port = match &heads {
            [None, None] => break,
            [Some(lan), Some(wan)] if wan.when < lan.when => PortId::WAN,
            [None, Some(_)] => PortId::WAN,
            [Some(_), _] => PortId::LAN,
        };
        let next = captures[port.index()].next()?;
        let Some(packet) = std::mem::replace(&mut heads[port.index()], next) else { break };
        // A capture's own order is kept, also where its clock was set back.
        now = now.max(packet.when);
        read += 1;
        for (port, frame) in core.packet(port, &packet.frame, now) {
            output.write(port, now, &frame)?;
            written += 1;
        }
    }
    output.finish()?;
    summarize(read, written, &core.totals());
    Ok(())
}

/// Tells on standard error what became of the packets.
fn summarize(read: u64, written: u64, totals: &ReplayTotals) {
    let mut text = format!(
        "{read} packets read, {written} written, {} for the host itself, {} dropped",
        totals.punted,
        totals.drops.total()
    );
    for (reason, count) in totals.drops.iter().filter(|&(_, count)| count > 0) {
        text += &format!("\n  {count:>10}  {:<20}  {}", reason.name(), reason.describe());
    }
    super::complain(&text);
}

#[cfg(test)]
mod tests;
