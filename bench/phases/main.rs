//! Benchmarks by the book, on veth: the highest rate without loss for each frame size (RFC 2544 section 26.1), and the phases
//! of a stateful gateway (RFC 9693): connections set up, held, taken down. `scripts/bench --search` and `--connections` make
//! the network, start the routers and run this.
//!
//!     phases --near NS --far NS --dev eth0 --to MAC --from MAC --destination 10.77.2.2 search --sizes 60,1514,imix
//!     phases ... connections --count 100000 --flush 'conntrack -F' --table 'conntrack -C'
//!
//! It generates in namespace `--near` and counts in `--far`; both have an interface `--dev`. One line of results for each size or
//! phase, tab-separated. Frames are given without their checksum of 4 bytes, which a veth does not have.
#![allow(clippy::print_stdout, clippy::print_stderr)] // its report

#[path = "../sink/counter.rs"]
mod counter;
mod search;
#[path = "../generator/source.rs"]
mod source;

use std::error::Error;
use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use nix::sched::{CloneFlags, setns};

use counter::Counter;
use source::{Flows, Pace, Sent, Source};

/// Packets back to back at most: what the rings of an AF_XDP socket take without a pause, several times over.
const BURST: u32 = 256;
/// How long the last packets may take (RFC 2544 section 23 has 2 s; here is no wire).
const SETTLE: Duration = Duration::from_millis(300);

/// Benchmarks by the book, between two namespaces.
#[derive(Parser)]
struct Arguments {
    /// The namespace that sends.
    #[arg(long)]
    near: String,
    /// The namespace that receives.
    #[arg(long)]
    far: String,
    /// The interface, in both.
    #[arg(long)]
    dev: String,
    /// Destination MAC: the router's.
    #[arg(long, value_parser = mac)]
    to: [u8; 6],
    /// Source MAC.
    #[arg(long, value_parser = mac)]
    from: [u8; 6],
    /// Source address of the first flow; every 32768 flows take the next.
    #[arg(long, default_value = "198.18.0.1")]
    source: Ipv4Addr,
    /// Destination address.
    #[arg(long)]
    destination: Ipv4Addr,
    /// Seconds a trial takes (RFC 2544 wants 60).
    #[arg(long, default_value_t = 2.0)]
    trial: f64,
    /// Share of the packets that may be lost.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Trials at a rate, one of which has to pass.
    #[arg(long, default_value_t = 2)]
    tries: u32,
    /// The rate to begin at, packets a second; 0 for the highest that the generator reaches.
    #[arg(long, default_value_t = 0.0)]
    top: f64,
    /// How exact the rate is to be, as a share of that.
    #[arg(long, default_value_t = 0.01)]
    resolution: f64,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The highest rate without loss, for each frame size.
    Search {
        /// Bytes of a frame without its checksum; `imix` is 7 of 60, 4 of 590 and 1 of 1514, in bursts.
        #[arg(long, value_delimiter = ',', default_value = "60,124,252,508,1020,1276,1514,imix")]
        sizes: Vec<Size>,
        /// Flows, with ports in no order.
        #[arg(long, default_value_t = 1)]
        flows: u32,
    },
    /// The phases of RFC 9693: set-up rate, rates with the connections there, one way and both ways, take-down rate.
    Connections {
        /// How many.
        #[arg(long, default_value_t = 100_000)]
        count: u32,
        /// The command that empties the router's table.
        #[arg(long)]
        flush: String,
        /// The command that prints how many connections the router has.
        #[arg(long)]
        table: String,
    },
}

#[derive(Clone)]
struct Size(Vec<u32>);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        if text == "imix" {
            return Ok(Size(vec![60, 60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 590]));
        }
        match text.parse() {
            Ok(bytes @ 60..=1514) => Ok(Size(vec![bytes])),
            _ => Err(format!("`{text}` is neither imix nor a number from 60 to 1514")),
        }
    }
}

impl Size {
    /// Bytes on the wire of an average frame: its checksum, and what comes before and between frames.
    fn on_wire(&self) -> f64 {
        f64::from(self.0.iter().sum::<u32>()) / self.0.len() as f64 + 24.0
    }

    fn name(&self) -> String {
        match self.0[..] {
            [bytes] => bytes.to_string(),
            _ => "imix".to_owned(),
        }
    }
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| format!("`{text}` is no MAC"))
}

/// From now on this thread is in the network namespace `name`.
fn enter(name: &str) -> Result<(), Box<dyn Error>> {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
}

/// Generator and counters in their places.
struct Rig<'a> {
    arguments: &'a Arguments,
    source: Source,
    /// At the far end, and where the answers come back.
    far: Counter,
    back: Option<Counter>,
}

impl<'a> Rig<'a> {
    /// With `answers` the far end sends every packet back.
    fn new(arguments: &'a Arguments, answers: bool) -> Result<Rig<'a>, Box<dyn Error>> {
        enter(&arguments.far)?;
        let far = Counter::new(&arguments.dev, answers)?;
        enter(&arguments.near)?;
        let back = if answers { Some(Counter::new(&arguments.dev, false)?) } else { None };
        let source = Source::new(&arguments.dev)?;
        Ok(Rig { arguments, source, far, back })
    }

    fn flows(&self, count: u32) -> Flows {
        let Arguments { to, from, source, destination, .. } = *self.arguments;
        Flows { to, from, source, destination, first: 0, count, random_ports: count > 1 }
    }

    /// Packets that have got where they should so far.
    fn arrived(&self) -> Result<u64, Box<dyn Error>> {
        self.back.as_ref().unwrap_or(&self.far).count()
    }

    /// Sends, lets the last packets arrive, and says what was sent and how many of them arrived.
    fn trial(&self, flows: u32, pace: &Pace, size: &Size) -> Result<(Sent, u64), Box<dyn Error>> {
        self.source.set(&self.flows(flows))?;
        let before = self.arrived()?;
        let sent = self.source.send(pace, &size.0)?;
        std::thread::sleep(SETTLE);
        Ok((sent, self.arrived()? - before))
    }

    /// Whether no more than the bound was lost, and the generator kept the rate.
    fn passes(&self, rate: f64, sent: Sent, arrived: u64) -> bool {
        let lost = sent.packets.saturating_sub(arrived);
        // Sends come in bursts of 64 at least, so the last may be due still.
        let kept = (sent.packets + 64) as f64 >= 0.98 * rate * sent.seconds;
        eprintln!(
            "  {:.3} Mpps: {} sent, {lost} lost{}",
            rate / 1e6,
            sent.packets,
            if kept { "" } else { ", too slow" }
        );
        kept && lost as f64 <= self.arguments.loss * sent.packets as f64
    }

    /// Where a search begins: at what it was told, or as many as the generator can send, whatever becomes of them.
    fn top(&self, flows: u32, size: &Size) -> Result<f64, Box<dyn Error>> {
        if self.arguments.top > 0.0 {
            return Ok(self.arguments.top);
        }
        let time = Duration::from_secs_f64(self.arguments.trial.min(1.0));
        let pace = Pace { rate: 0.0, packets: u64::MAX, time, burst: BURST };
        let (sent, _) = self.trial(flows, &pace, size)?;
        Ok(sent.packets as f64 / sent.seconds)
    }

    /// The highest rate without loss at which `flows` flows are sent for the time of a trial.
    fn throughput(&self, flows: u32, size: &Size) -> Result<f64, Box<dyn Error>> {
        let time = Duration::from_secs_f64(self.arguments.trial);
        let top = self.top(flows, size)?;
        search::search(top, self.arguments.resolution, self.arguments.tries, |rate| {
            let (sent, arrived) = self.trial(flows, &Pace { rate, packets: u64::MAX, time, burst: BURST }, size)?;
            Ok(self.passes(rate, sent, arrived))
        })
    }

    /// One packet of each of `count` connections.
    fn fill(&self, count: u32, rate: f64) -> Result<(Sent, u64), Box<dyn Error>> {
        let pace = Pace { rate, packets: u64::from(count), time: Duration::from_secs(600), burst: BURST };
        self.trial(count, &pace, &Size(vec![60]))
    }
}

fn search_sizes(arguments: &Arguments, sizes: &[Size], flows: u32) -> Result<(), Box<dyn Error>> {
    let rig = Rig::new(arguments, false)?;
    for size in sizes {
        eprintln!("frames of {}, {flows} flows", size.name());
        let rate = rig.throughput(flows, size)?;
        println!("{}\t{:.4}\t{:.3}", size.name(), rate / 1e6, rate * size.on_wire() * 8.0 / 1e9);
    }
    Ok(())
}

fn shell(command: &str) -> Result<String, Box<dyn Error>> {
    let output = Command::new("sh").args(["-c", command]).output()?;
    if !output.status.success() {
        return Err(format!("`{command}`: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn connections(arguments: &Arguments, count: u32, flush: &str, table: &str) -> Result<(), Box<dyn Error>> {
    let one_way = Rig::new(arguments, false)?;
    shell(flush)?;
    eprintln!("set-up, {count} connections");
    let top = one_way.top(1, &Size(vec![60]))?;
    let rate = search::search(top, arguments.resolution, arguments.tries, |rate| {
        shell(flush)?;
        let (sent, arrived) = one_way.fill(count, rate)?;
        Ok::<_, Box<dyn Error>>(one_way.passes(rate, sent, arrived))
    })?;
    println!("set-up\t{:.4}", rate / 1e6);
    if rate == 0.0 {
        return Err("not one trial without loss: there is no table to go on with".into());
    }
    shell(flush)?;
    let wanted = (f64::from(count) * (1.0 - arguments.loss)) as u32;
    let mut there: u32 = 0;
    for _ in 0..arguments.tries.max(1) {
        one_way.fill(count, rate / 2.0)?;
        there = shell(table)?.parse().map_err(|error| format!("`{table}`: {error}"))?;
        if there >= wanted {
            break;
        }
    }
    if there < wanted {
        return Err(format!("only {there} of {count} connections are in the table: is it large enough?").into());
    }
    eprintln!("hold, one way");
    println!("hold\t{:.4}", one_way.throughput(count, &Size(vec![60]))? / 1e6);
    drop(one_way);
    eprintln!("hold, answered");
    let both_ways = Rig::new(arguments, true)?;
    println!("hold-answered\t{:.4}", both_ways.throughput(count, &Size(vec![60]))? / 1e6);
    there = shell(table)?.parse()?;
    let begin = Instant::now();
    shell(flush)?;
    let seconds = begin.elapsed().as_secs_f64();
    println!("take-down\t{:.4}", f64::from(there) / seconds / 1e6);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    match &arguments.what {
        What::Search { sizes, flows } => search_sizes(&arguments, sizes, *flows),
        What::Connections { count, flush, table } => connections(&arguments, *count, flush, table),
    }
}
