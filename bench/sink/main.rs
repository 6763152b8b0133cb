//! The far end: counts the UDP packets that arrive at an interface and drops them, before the host's stack works on them.
//!
//!     sink --dev eth0 --after 0.7 --seconds 4
//!
//! prints millions of packets a second, once for each second measured. See [`counter`] for how.
#![allow(clippy::print_stdout)] // its report

mod counter;

use clap::Parser;
use counter::Counter;
use std::error::Error;
use std::time::{Duration, Instant};

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
    let counter = Counter::new(&arguments.dev, false)?;
    std::thread::sleep(Duration::from_secs_f64(arguments.after));
    let mut rates = Vec::new();
    for _ in 0..arguments.seconds {
        let (begin, before) = (Instant::now(), counter.count()?);
        std::thread::sleep(Duration::from_secs(1));
        rates.push((counter.count()? - before) as f64 / begin.elapsed().as_secs_f64() / 1e6);
    }
    let rates: Vec<String> = rates.iter().map(|rate| format!("{rate:.3}")).collect();
    println!("{}", rates.join(" "));
    Ok(())
}
