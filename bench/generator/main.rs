//! The packet generator: UDP over IPv4 at several million packets a second from one core, without a NIC and without skbs.
//!
//!     generator --dev eth0 --to MAC --from MAC --source 198.18.0.1 --destination 10.77.2.2 --flows 65536 --seconds 5
//!
//! See [`source`] for how. The peer of a veth must run NAPI to take such frames: `ethtool -K lan0 gro on`, or an XDP program.
//! Run it in a namespace of its own, pinned to a core.
#![allow(clippy::print_stdout)] // its report

mod source;

use clap::Parser;
use source::{Flows, Pace, Source};
use std::error::Error;
use std::net::Ipv4Addr;
use std::time::Duration;

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
    /// Ports in no order, as RFC 4814 wants them.
    #[arg(long)]
    random_ports: bool,
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
    let source = Source::new(&arguments.dev)?;
    source.set(&Flows {
        to: arguments.to,
        from: arguments.from,
        source: arguments.source,
        destination: arguments.destination,
        first: 0,
        count: arguments.flows,
        random_ports: arguments.random_ports,
    })?;
    let pace = Pace {
        rate: arguments.rate as f64,
        packets: u64::MAX,
        time: Duration::from_secs_f64(arguments.seconds),
        burst: if arguments.rate == 0 { 32768 } else { 4096 },
    };
    let sent = source.send(&pace, &[arguments.size])?;
    println!(
        "sent {} packets in {:.3} s, {:.3} Mpps",
        sent.packets,
        sent.seconds,
        sent.packets as f64 / sent.seconds / 1e6
    );
    Ok(())
}
