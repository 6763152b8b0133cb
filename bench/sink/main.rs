//! The far end: counts the UDP packets that arrive at an interface and drops them, before the host's stack works on them.
//!
//!     sink --dev eth0 --after 0.7 --seconds 4
//!
//! prints millions of packets a second, once for each second measured. A tc filter does the counting: with an XDP program
//! there the kernel would have to copy each packet once more (AF_XDP's skbs have no headroom), and that would be measured too.
#![allow(clippy::print_stdout)] // its report

use clap::Parser;
use libbpf_rs::{MapCore, MapFlags, MapHandle, ObjectBuilder, TC_INGRESS, TcHookBuilder};
use std::error::Error;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));

/// Counts and drops the UDP packets that arrive at an interface.
#[derive(Parser)]
struct Arguments {
    /// The interface.
    #[arg(long)]
    dev: String,
    /// Seconds to let pass before counting.
    #[arg(long, default_value_t = 0.0)]
    after: f64,
    /// Seconds to count.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let ifindex = xrouter::xdp::ifindex(&arguments.dev).ok_or_else(|| format!("no interface {}", arguments.dev))?;
    libbpf_rs::set_print(None); // it complains when the hook is there already
    let object = ObjectBuilder::default().name("sink")?.open_memory(OBJECT)?.load()?;
    let counts = MapHandle::try_from(&object.maps().next().ok_or("the object has no map")?)?;
    let program = object.progs().next().ok_or("the object has no program")?;
    let mut hook = TcHookBuilder::new(program.as_fd())
        .ifindex(ifindex as i32)
        .replace(true)
        .handle(1)
        .priority(1)
        .hook(TC_INGRESS);
    hook.create()?.attach()?;
    std::thread::sleep(Duration::from_secs_f64(arguments.after));
    let mut rates = Vec::new();
    for _ in 0..arguments.seconds {
        let (begin, before) = (Instant::now(), count(&counts)?);
        std::thread::sleep(Duration::from_secs(1));
        rates.push((count(&counts)? - before) as f64 / begin.elapsed().as_secs_f64() / 1e6);
    }
    hook.detach()?;
    let rates: Vec<String> = rates.iter().map(|rate| format!("{rate:.3}")).collect();
    println!("{}", rates.join(" "));
    Ok(())
}

fn count(counts: &MapHandle) -> Result<u64, Box<dyn Error>> {
    let values = counts.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)?.ok_or("the map has its one entry")?;
    let mut sum = 0;
    for value in values {
        sum += u64::from_ne_bytes(value.as_slice().try_into()?);
    }
    Ok(sum)
}
