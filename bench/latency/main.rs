//! One-way latency between two namespaces, through whatever forwards between them: `scripts/bench --latency` runs it.
//!
//!     latency --near NS --far NS --destination 10.77.2.2 --rates 100,1000,20000 --seconds 4
//!
//! One thread sends UDP datagrams with the time in them from `--near` and spins on a socket in `--far`, so both ends read one
//! clock and neither sleeps: what is measured is the two stacks' work (the same for whatever is between) and the way through
//! the router, its waking up included. It wants a core of its own. One line for each rate, tab-separated: packets a second,
//! p50, p99, p99.9 and longest in microseconds, packets received, packets lost.
#![allow(clippy::print_stdout)] // its report

use std::error::Error;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use nix::sched::{CloneFlags, setns};

/// Bytes of a datagram: a count and a time.
const LEN: usize = 16;
/// How long the last packets may take.
const SETTLE: Duration = Duration::from_millis(200);
/// Packets sent before measuring, one in 10 ms: neighbours are known then, and the connection is there.
const WARM: u64 = 20;

/// One-way latency between two namespaces.
#[derive(Parser)]
struct Arguments {
    /// The namespace that sends.
    #[arg(long)]
    near: String,
    /// The namespace that receives.
    #[arg(long)]
    far: String,
    /// The receiver's address.
    #[arg(long)]
    destination: Ipv4Addr,
    /// The receiver's port.
    #[arg(long, default_value_t = 4242)]
    port: u16,
    /// Packets a second, one run for each.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,20000")]
    rates: Vec<f64>,
    /// How long a run takes.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
}

/// A socket of network namespace `name`.
fn socket(name: &str, address: Ipv4Addr, port: u16) -> Result<UdpSocket, Box<dyn Error>> {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    let socket = UdpSocket::bind((address, port))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sender and receiver, and what they measured.
struct Run<'a> {
    sender: &'a UdpSocket,
    receiver: &'a UdpSocket,
    start: Instant,
    /// The first count of this run: what is of an earlier one comes too late and is not looked at.
    first: u64,
    /// Nanoseconds.
    histogram: Histogram<u64>,
}

impl Run<'_> {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn send(&self, count: u64) -> Result<(), Box<dyn Error>> {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&count.to_be_bytes());
        bytes[8..].copy_from_slice(&self.now().to_be_bytes());
        match self.sender.send(&bytes) {
            // No room at the sender: lost there. To wait would hide what is slow.
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes what has arrived.
    fn receive(&mut self) -> Result<(), Box<dyn Error>> {
        let mut bytes = [0; LEN];
        loop {
            match self.receiver.recv(&mut bytes) {
                Ok(LEN) => {
                    let now = self.now();
                    let [count, sent] = [&bytes[..8], &bytes[8..]]
                        .map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes")));
                    if count >= self.first {
                        self.histogram.record(now.saturating_sub(sent).max(1))?;
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// `count` packets, evenly over time.
    fn run(&mut self, count: u64, rate: f64) -> Result<(), Box<dyn Error>> {
        let begin = Instant::now();
        for n in 0..count {
            let due = Duration::from_secs_f64(n as f64 / rate);
            while begin.elapsed() < due {
                self.receive()?;
            }
            self.send(self.first + n)?;
            self.receive()?;
        }
        let end = Instant::now();
        while end.elapsed() < SETTLE {
            self.receive()?;
        }
        self.first += count;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let receiver = socket(&arguments.far, arguments.destination, arguments.port)?;
    let sender = socket(&arguments.near, Ipv4Addr::UNSPECIFIED, 0)?;
    sender.connect((arguments.destination, arguments.port))?;
    let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let mut run = Run { sender: &sender, receiver: &receiver, start: Instant::now(), first: 0, histogram };
    run.run(WARM, 100.0)?;
    if run.histogram.is_empty() {
        return Err("nothing arrives".into());
    }
    for &rate in &arguments.rates {
        run.histogram.reset();
        let count = (rate * arguments.seconds).max(1.0) as u64;
        run.run(count, rate)?;
        let received = run.histogram.len();
        let at = |quantile: f64| run.histogram.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "{rate}\t{:.1}\t{:.1}\t{:.1}\t{:.1}\t{received}\t{}",
            at(0.5),
            at(0.99),
            at(0.999),
            run.histogram.max() as f64 / 1e3,
            count.saturating_sub(received)
        );
    }
    Ok(())
}
