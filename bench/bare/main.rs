//! The yardstick: a forwarder on the same edge as xrouter's that looks at nothing. It writes the far side's MACs and sends.
//!
//!     bare --lan lan0 --wan wan0 --lan-host MAC --wan-host MAC --core 1
//!
//! What xrouter forwards next to this, in the same run, is what its own work costs. It ends on SIGTERM or SIGINT, with a line.
#![allow(clippy::print_stdout)] // its report

use clap::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use xrouter::device::{Device, PortId};
use xrouter::xdp::{BusyPoll, Edge, EdgeConfig, Mode, WorkerQueues};

/// Forwards everything between two interfaces through AF_XDP.
#[derive(Parser)]
struct Arguments {
    /// The inside interface.
    #[arg(long)]
    lan: String,
    /// The outside interface.
    #[arg(long)]
    wan: String,
    /// The MAC that frames sent to the inside get.
    #[arg(long, value_parser = mac)]
    lan_host: [u8; 6],
    /// The MAC that frames sent to the outside get.
    #[arg(long, value_parser = mac)]
    wan_host: [u8; 6],
    /// The core to run on.
    #[arg(long)]
    core: Option<usize>,
    /// Preferred busy polling, as `xrouter --poll busy` has it.
    #[arg(long)]
    busy_poll: bool,
    /// auto, zero-copy, copy or generic.
    #[arg(long, default_value = "auto")]
    mode: Mode,
    /// Packets received at a time, and the driver's budget when it is busy-polled.
    #[arg(long, default_value_t = 256)]
    burst: u16,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| format!("`{text}` is no MAC"))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let stop = stop_on_signals()?;
    if let Some(core) = arguments.core {
        let mut cores = CpuSet::new();
        cores.set(core)?;
        sched_setaffinity(Pid::from_raw(0), &cores)?;
    }
    let busy_poll = arguments.busy_poll.then(|| BusyPoll { budget: u32::from(arguments.burst), ..BusyPoll::default() });
    let config = EdgeConfig { mode: arguments.mode, busy_poll, ..EdgeConfig::new(&arguments.lan, &arguments.wan) };
    let mut edge = Edge::open(&config)?;
    let mut worker = edge.take_worker(0).ok_or("there is a first worker")?;
    let macs = edge.interfaces().each_ref().map(|interface| interface.mac);
    println!("bare ready: mode {}", edge.report().mode);
    let hosts = [arguments.lan_host, arguments.wan_host];
    let forwarded = forward(&mut worker, &macs, &hosts, usize::from(arguments.burst), &stop)?;
    println!("forwarded {forwarded} packets");
    Ok(())
}

/// A flag that SIGTERM and SIGINT set.
fn stop_on_signals() -> Result<Arc<AtomicBool>, Box<dyn Error>> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    std::thread::spawn(move || {
        let _ = signals.wait();
        told.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

fn forward(
    worker: &mut WorkerQueues,
    macs: &[[u8; 6]; 2],
    hosts: &[[u8; 6]; 2],
    burst: usize,
    stop: &AtomicBool,
) -> std::io::Result<u64> {
    let mut batch = Vec::with_capacity(burst);
    let mut out = VecDeque::with_capacity(burst);
    let mut forwarded = 0;
    while !stop.load(Ordering::Relaxed) {
        for port in PortId::ALL {
            let other = PortId(1 - port.0).index();
            for queue in 0..worker.ports[port.index()].len() {
                worker.ports[port.index()][queue].receive(&mut batch, burst, &mut worker.pool);
                for mut frame in batch.drain(..) {
                    let bytes = frame.bytes_mut();
                    bytes[..6].copy_from_slice(&hosts[other]);
                    bytes[6..12].copy_from_slice(&macs[other]);
                    out.push_back(frame);
                }
                forwarded += worker.ports[other][0].transmit(&mut out, &mut worker.pool) as u64;
                // No room: the frame is dropped, as a full queue does everywhere.
                out.drain(..).for_each(|frame| worker.pool.put(frame));
            }
        }
        for queue in worker.ports.iter_mut().flatten() {
            queue.kick()?;
            queue.reclaim(&mut worker.pool);
            queue.refill(&mut worker.pool);
        }
    }
    Ok(forwarded)
}
