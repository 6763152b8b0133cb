//! The packet generator: UDP over IPv4 at several million packets a second from one core, without a NIC and without skbs.
//!
//!     generator --dev eth0 --to MAC --from MAC --source 198.18.0.1 --destination 10.77.2.2 --flows 65536 --seconds 5
//!
//! `BPF_PROG_RUN` runs a small XDP program on live frames that claim to come from `--dev`; it writes each packet and
//! answers XDP_TX, which sends it out there. (The peer of a veth must run NAPI to take such frames: `ethtool -K lan0 gro on`,
//! or an XDP program.) The program also hangs on `lo`, in generic mode, because otherwise each call would wait tens of
//! milliseconds for the kernel to change its XDP dispatcher. Run it in a namespace of its own, pinned to a core.
#![allow(clippy::print_stdout)] // its report

use clap::Parser;
use libbpf_rs::{MapCore, MapFlags, ObjectBuilder, ProgramInput, Xdp, XdpFlags};
use std::error::Error;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/generator.bpf.o"));
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
const LO: i32 = 1;

/// Sends UDP packets out of an interface as fast as one core can.
#[derive(Parser)]
struct Arguments {
    /// The interface to send from.
    #[arg(long)]
    dev: String,
    /// Destination MAC.
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
    /// Flows, one packet of each in turn.
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// Bytes of the frame, without its checksum.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(60..=1514))]
    size: u32,
    /// How long to send.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Packets each second at most, in bursts of 64; 0 for as many as go.
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| format!("`{text}` is no MAC"))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let ifindex = xrouter::xdp::ifindex(&arguments.dev).ok_or_else(|| format!("no interface {}", arguments.dev))?;
    let object = ObjectBuilder::default().name("generator")?.open_memory(OBJECT)?.load()?;
    let config = object.maps().find(|map| map.name() == ".data.config").ok_or("the object has no configuration")?;
    config.update(&0u32.to_ne_bytes(), &configuration(&arguments), MapFlags::ANY)?;
    let program = object.progs_mut().next().ok_or("the object has no program")?;
    let lo = Xdp::new(program.as_fd());
    lo.attach(LO, XdpFlags::SKB_MODE | XdpFlags::UPDATE_IF_NOEXIST)?;

    let packet = vec![0u8; arguments.size as usize];
    let sent = send(&arguments, |repeat| {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let words = [0, packet.len() as u32, 0, ifindex, 0, 0];
        let mut context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(&packet),
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            repeat,
            ..Default::default()
        };
        program.test_run(input).map(|_| ())
    });
    lo.detach(LO, XdpFlags::SKB_MODE)?;
    println!("{}", sent?);
    Ok(())
}

/// The bytes of `struct generator_config`.
fn configuration(arguments: &Arguments) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    bytes.extend(arguments.to);
    bytes.extend(arguments.from);
    bytes.extend(arguments.source.octets());
    bytes.extend(arguments.destination.octets());
    bytes.extend(arguments.flows.max(1).to_ne_bytes());
    bytes.extend((arguments.size - 14).to_ne_bytes());
    bytes
}

/// Sends for as long as asked, and reports.
fn send(arguments: &Arguments, run: impl Fn(u32) -> libbpf_rs::Result<()>) -> Result<String, Box<dyn Error>> {
    let begin = Instant::now();
    let duration = Duration::from_secs_f64(arguments.seconds);
    let mut sent = 0u64;
    while begin.elapsed() < duration {
        let burst = if arguments.rate == 0 {
            32768
        } else {
            let due = (begin.elapsed().as_secs_f64() * arguments.rate as f64) as u64;
            match due.saturating_sub(sent) {
                0..64 => {
                    std::thread::sleep(Duration::from_micros(20));
                    continue;
                }
                late => late.min(4096) as u32,
            }
        };
        run(burst)?;
        sent += u64::from(burst);
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok(format!("sent {sent} packets in {seconds:.3} s, {:.3} Mpps", sent as f64 / seconds / 1e6))
}
