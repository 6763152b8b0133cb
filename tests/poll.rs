//! What `--poll adaptive` promises: an idle router takes next to nothing of its core, and the packet that ends the idleness is
//! forwarded at once, not when a timer of the worker's comes round.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

#[allow(dead_code)] // the end-to-end tests use the rest
mod support;

use support::{Net, Place, Router, Shape, privileged};

/// Seconds of CPU that all threads of a process have had.
fn cpu_seconds(process: u32) -> f64 {
    let line = fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    // After the name, which is in brackets and may have anything in it, user and system time are the 12th and 13th word.
    let (_, rest) = line.rsplit_once(')').expect("a name");
    let ticks = rest.split_whitespace().skip(11).take(2).map(|word| word.parse::<u32>().expect("ticks"));
    // USER_HZ is 100 on every architecture that Linux gives a choice of it.
    f64::from(ticks.sum::<u32>()) / 100.0
}

/// Round trips in milliseconds, shortest first, of pings so far apart that the worker sleeps in between.
fn round_trips(net: &Net) -> Vec<f64> {
    let said = net.must(Place::Lan, "ping -n -c 20 -i 0.15 -W 2 10.2.0.2");
    let times = said.lines().filter_map(|line| line.split_once("time=")).map(|(_, rest)| rest);
    let mut trips: Vec<f64> = times.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
    trips.sort_by(f64::total_cmp);
    assert_eq!(trips.len(), 20, "{said}");
    trips
}

#[test]
fn an_idle_adaptive_worker_sleeps_and_a_packet_wakes_it() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let mut router = Router::start(&net, &["--poll", "adaptive"]);
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    thread::sleep(Duration::from_millis(300));

    let process = router.program().id();
    let (began, before) = (Instant::now(), cpu_seconds(process));
    thread::sleep(Duration::from_secs(3));
    let share = (cpu_seconds(process) - before) / began.elapsed().as_secs_f64();
    assert!(share < 0.05, "idle, it took {:.1} % of a core", 100.0 * share);

    // A worker that only its timer of 50 ms woke would take 25 ms each way in the middle. The slowest say how busy the machine is.
    let trips = round_trips(&net);
    assert!(trips[10] < 5.0, "after idleness: {trips:?} ms");
    router.stop();
}
