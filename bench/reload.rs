//! How long forwarding stands still when rules change: the real worker, mailbox and control thread, ports in memory.
//!
//! A worker forwards 64-byte UDP packets of established flows back to back. Meanwhile a file of many rules is reloaded over and
//! over (`--established keep`, so that nothing but the change of rules is done). Every burst takes the time of its beginning,
//! on the wall clock and of the processor time that the worker has used; what other processes take of the core shows in
//! the first only. Printed are the longest times between the beginnings of two bursts, at rest and around changes of rules,
//! beside the time for reading, checking and compiling the file.
//!
//! `cargo bench --bench reload -- [RULES [FLOWS]]`; 10,000 rules and 1,024 flows without.
#![allow(clippy::print_stdout)] // its report

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::time::{ClockId, clock_gettime};
use xrouter::conntrack::Settings;
use xrouter::control::api::Backend;
use xrouter::control::backend::{Facts, Published, Workers};
use xrouter::control::config::{Layer, Placed};
use xrouter::control::reload::{self, Established, ReloadReport, Wish};
use xrouter::control::sources::{self, Sources};
use xrouter::datapath::{BATCH, Batch, Effects, Ledger, Shard, process};
use xrouter::device::{Device, Frame, FramePool, Host, PortId};
use xrouter::rules::{self, Previous, Registry, RuleVector};
use xrouter::snapshot::Policy;
use xrouter::wire::{Family, checksum, ipv4};
use xrouter::worker::{Parts, Poll, Worker, mailbox};

mod fixture;

/// Reloads that are measured.
const RELOADS: usize = 30;

/// A port that always has a batch of packets, and whose sent packets are gone at once.
struct Port {
    id: PortId,
    fill: Vec<Frame>,
    sent: Vec<Frame>,
    packets: Arc<Vec<[u8; 60]>>,
    next: usize,
    clock: Option<Clock>,
}

/// The beginnings of bursts.
struct Clock {
    start: Instant,
    /// Odd while rules change.
    stage: Arc<AtomicU64>,
    last: [Duration; 2],
    found: Arc<std::sync::Mutex<Found>>,
    mine: Found,
    /// Bursts until what was found is told.
    untold: u32,
}

/// Time from one burst to the next, wall and processor: the longest and all in sum, while rules stay and around changes.
#[derive(Clone, Copy, Default)]
struct Found {
    at_rest: [Duration; 2],
    at_change: [Duration; 2],
    bursts: u64,
    sum: Duration,
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of this thread").into()
}

impl Clock {
    /// A burst begins.
    fn tick(&mut self) {
        let present = [self.start.elapsed(), processor_time()];
        let took = [0, 1].map(|at| present[at].saturating_sub(self.last[at]));
        self.last = present;
        let changing = self.stage.load(Ordering::Relaxed) % 2 == 1;
        let longest = if changing { &mut self.mine.at_change } else { &mut self.mine.at_rest };
        for at in [0, 1] {
            longest[at] = longest[at].max(took[at]);
        }
        self.mine.bursts += 1;
        self.mine.sum += took[1];
        self.untold += 1;
        if self.untold == 1000 {
            self.untold = 0;
            *self.found.lock().expect("nobody panics") = self.mine;
        }
    }
}

impl Device for Port {
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize, _: &mut FramePool) -> usize {
        if let Some(clock) = &mut self.clock {
            clock.tick();
        }
        let count = max.min(self.fill.len()).min(self.packets.len());
        for mut frame in self.fill.drain(..count) {
            frame.fill(&self.packets[self.next]);
            self.next = (self.next + 1) % self.packets.len();
            into.push(frame);
        }
        count
    }

    fn transmit(&mut self, queue: &mut VecDeque<Frame>, _: &mut FramePool) -> usize {
        let count = queue.len();
        self.sent.extend(queue.drain(..));
        count
    }

    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reclaim(&mut self, pool: &mut FramePool) -> usize {
        let count = self.sent.len();
        self.sent.drain(..).for_each(|frame| pool.put(frame));
        count
    }

    fn refill(&mut self, pool: &mut FramePool) -> usize {
        let before = self.fill.len();
        let wanted = if self.packets.is_empty() { 0 } else { BATCH };
        while self.fill.len() < wanted {
            let Some(frame) = pool.take() else { break };
            self.fill.push(frame);
        }
        self.fill.len() - before
    }
}

struct Nobody;

impl Host for Nobody {
    fn punt(&mut self, _: PortId, _: &[u8]) {}

    fn flush(&mut self) -> u64 {
        0
    }
}

/// Flow `n`'s packet, as `port` receives it.
fn packet(n: usize, port: PortId) -> [u8; 60] {
    let (client, server) = (0x0a01_0000 | (n as u32 & 0xfff0) | 4, 0x0a02_0064u32);
    let (sport, dport) = (1024 + (n >> 16) as u16, 53 + (n & 0xf) as u16);
    let (src, dst, sport, dport) =
        if port == PortId::LAN { (client, server, sport, dport) } else { (server, client, dport, sport) };
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&fixture::PORT_MAC[port.index()].0);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..];
    (ip[0], ip[3], ip[8], ip[9]) = (0x45, 46, 64, 17);
    ip[12..16].copy_from_slice(&src.to_be_bytes());
    ip[16..20].copy_from_slice(&dst.to_be_bytes());
    ipv4::set_checksum(&mut ip[..20]);
    ip[20..22].copy_from_slice(&sport.to_be_bytes());
    ip[22..24].copy_from_slice(&dport.to_be_bytes());
    ip[25] = 26;
    let addresses = u64::from(src) + u64::from(dst);
    let check = checksum::finish(checksum::sum(addresses + 17 + 26, &ip[20..46]));
    ip[26..28].copy_from_slice(&check.to_be_bytes());
    frame
}

/// What is established passes by the first rule; then as many others as wanted, of which `round` changes one.
fn rules_text(count: usize, round: usize) -> String {
    let mut text = String::from("*filter\n:FORWARD DROP [0:0]\n");
    text += "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    for n in 2..count {
        let (a, b, port) = (n >> 8 & 0xff, n & 0xff, 1000 + n % 5000);
        let target = if n % 3 == 0 { "DROP" } else { "ACCEPT" };
        let net = 16 + (n >> 16 & 0xf);
        text += &format!("-A FORWARD -s 172.{net}.{a}.0/24 -d 198.51.{b}.0/25 -p tcp -m tcp --dport {port} ");
        text += &format!("-m conntrack --ctstate NEW -j {target}\n");
    }
    text + &format!("-A FORWARD -i lan0 -o wan0 -m comment --comment \"round {round}\" -j ACCEPT\nCOMMIT\n")
}

struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|word| word.parse().ok());
    let (count, flows) = (numbers.next().unwrap_or(10_000), numbers.next().unwrap_or(1024));
    let file = File(std::env::temp_dir().join(format!("xrbench{}.v4", std::process::id())));
    std::fs::write(&file.0, rules_text(count, 0)).expect("a file");
    alone(count, flows);
    let published = published(&file);
    let settings = Settings { max: (flows * 2).max(1024), ..Settings::default() };
    let (mailbox, handle) = mailbox().expect("a descriptor");
    let found = Arc::new(std::sync::Mutex::new(Found::default()));
    let stage = Arc::new(AtomicU64::new(0));
    let port = |id: PortId| {
        // Only the LAN receives once all flows are established.
        let packets = Arc::new((0..flows).map(|n| packet(n, id)).collect());
        Port { id, fill: Vec::new(), sent: Vec::new(), packets, next: 0, clock: None }
    };
    let parts = Parts {
        devices: PortId::ALL.map(|id| (id, port(id))).into(),
        pool: FramePool::in_memory(1024, 2048),
        host: Nobody,
        shard: Shard::new(settings.clone(), [1, 2], &published.policy.load()),
        policy: published.policy.clone(),
        routing: published.routing.clone(),
        mailbox,
        links: None,
    };
    let start = Instant::now();
    let facts = Facts { start, mode: "copy".into(), poll: "busy".into(), cores: vec![0] };
    let workers = Workers::new(vec![handle.line], facts, settings, published);
    let stop = Arc::new(AtomicBool::new(false));
    let (until, clock) = (stop.clone(), (stage.clone(), found.clone()));
    let thread = std::thread::spawn(move || {
        let mut worker = Worker::new(parts);
        for _ in 0..4 * flows.div_ceil(BATCH) {
            worker.burst(xrouter::worker::since(start)).expect("no port goes");
        }
        for (_, port) in worker.devices_mut() {
            match port.id {
                PortId::LAN => {
                    let (stage, found) = clock.clone();
                    let last = [start.elapsed(), processor_time()];
                    port.clock = Some(Clock { start, stage, last, found, mine: Found::default(), untold: 0 });
                }
                _ => port.packets = Arc::default(),
            }
        }
        worker.run(Poll::Busy, start, &until).expect("no port goes");
    });
    let reports = run(&workers, &file, count, &stage);
    let rechecked = recheck(&workers);
    std::thread::sleep(Duration::from_millis(200));
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("the worker does not panic");
    tell(&reports, &found.lock().expect("nobody panics"), count, flows);
    let (report, took) = rechecked;
    println!(
        "  recheck of {} connections: {:.1} ms, reading and compiling included",
        report.connections,
        took.as_secs_f64() * 1e3
    );
}

/// Judges all connections once, without publishing anything.
fn recheck(workers: &Workers) -> (ReloadReport, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let start = Instant::now();
    let wish = Wish { dry_run: true, ..Wish::default() };
    (runtime.block_on(workers.reload(&wish, 0)).expect("good rules"), start.elapsed())
}

/// What each step takes of the processor when nothing else is done: loading, pairing and compiling, the exchange in the
/// worker, and the burst after it, in which every flow asks the rules again.
fn alone(count: usize, flows: usize) {
    let load = |round: usize| {
        rules::load("bench", &rules_text(count, round), Family::V4, &["lan0", "wan0"])
            .expect("the bench's rules are good")
    };
    let v6 = || RuleVector::compile(&rules::load("bench", "*filter\nCOMMIT\n", Family::V6, &[]).expect("no rules"));
    let start = processor_time();
    let (old, new) = (load(0), load(1));
    let loaded = (processor_time() - start) / 2;
    let mut policy = Policy { generation: 1, v4: RuleVector::compile(&old), v6: v6() };
    let start = processor_time();
    let unchanged = rules::unchanged(&old, &new);
    let paired = processor_time() - start;
    let start = processor_time();
    let previous = Previous { vector: &policy.v4, unchanged: &unchanged };
    RuleVector::compile_after(&new, &mut Registry::default(), Some(previous));
    let compiled = processor_time() - start;
    let routing = fixture::routing();
    let settings = Settings { max: (flows * 2).max(1024), ..Settings::default() };
    let mut shard = Shard::new(settings, [1, 2], &policy);
    let (mut pool, mut effects, mut batch) = (FramePool::in_memory(512, 2048), Effects::new(BATCH), Batch::default());
    let (mut next, mut now) = (0, xrouter::time::Instant::from_secs(1));
    let mut burst = |shard: &mut Shard, policy: &Policy, port: PortId| {
        for _ in 0..BATCH {
            let mut frame = pool.take().expect("all frames came back");
            frame.fill(&packet(next % flows, port));
            next += 1;
            batch.push(port, frame);
        }
        now = now + 1000;
        let start = Instant::now();
        process(shard, policy, &routing, &mut batch, now, &mut effects);
        let took = start.elapsed();
        effects.transmit.iter_mut().for_each(|queue| queue.drain(..).for_each(|frame| pool.put(frame)));
        took
    };
    for port in PortId::ALL {
        (0..flows.div_ceil(BATCH)).for_each(|_| _ = burst(&mut shard, &policy, port));
    }
    let (mut exchange, mut after, mut usual) = (Vec::new(), Vec::new(), Vec::new());
    for generation in 2..1002 {
        (0..2 * flows.div_ceil(BATCH)).for_each(|_| usual.push(burst(&mut shard, &policy, PortId::LAN)));
        policy.generation = generation;
        shard.prepare(Box::new(Ledger::new(&policy)));
        let start = Instant::now();
        shard.follow(&policy, &routing);
        exchange.push(start.elapsed());
        after.push(burst(&mut shard, &policy, PortId::LAN));
        drop(shard.take_last_ledger());
    }
    let at = |all: &mut Vec<Duration>, share: usize| {
        all.sort_unstable();
        all[(all.len() - 1) * share / 1000].as_secs_f64() * 1e6
    };
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    println!("{count} rules, {flows} established flows, bursts of {BATCH}; each step alone");
    println!(
        "  processor time: load and check {:.1} ms, pair {:.1} ms, compile {:.1} ms",
        millis(loaded),
        millis(paired),
        millis(compiled)
    );
    for (what, all) in [("exchange", &mut exchange), ("burst after it", &mut after), ("other bursts", &mut usual)] {
        println!("  {what}: median {:.2} us, 90 % {:.2} us, 99 % {:.2} us", at(all, 500), at(all, 900), at(all, 990));
    }
}

fn published(file: &File) -> Published {
    let layer = Layer {
        lan: Some(Placed::option("--lan", "lan0".parse().expect("a name"))),
        wan: Some(Placed::option("--wan", "wan0".parse().expect("a name"))),
        rules: Some(Placed::option("--rules", file.0.clone())),
        ..Layer::default()
    };
    let sources = Sources::new(layer, None);
    let config = sources.config().expect("complete");
    let rulesets = sources::rulesets(&config, &Arc::default(), false).expect("good rules").map(Arc::new);
    let mut registry = Registry::default();
    let policy = Arc::new(ArcSwap::from_pointee(reload::compile(&rulesets, config.track, &mut registry)));
    let routing = Arc::new(ArcSwap::from_pointee(fixture::routing()));
    Published { policy, routing, sources, config, rulesets, registry, steering: None }
}

/// Reloads; `stage` is odd while one is under way.
fn run(workers: &Workers, file: &File, count: usize, stage: &AtomicU64) -> Vec<ReloadReport> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    std::thread::sleep(Duration::from_millis(500));
    let wish = Wish { established: Some(Established::Keep), ..Wish::default() };
    let once = |round: usize| {
        std::fs::write(&file.0, rules_text(count, round)).expect("a file");
        stage.fetch_add(1, Ordering::Relaxed);
        let report = runtime.block_on(workers.reload(&wish, 0)).expect("good rules");
        // The bursts after it count, too.
        std::thread::sleep(Duration::from_millis(5));
        stage.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
        report
    };
    (1..=RELOADS).map(once).collect()
}

fn tell(reports: &[ReloadReport], found: &Found, count: usize, flows: usize) {
    let median = |of: &dyn Fn(&ReloadReport) -> f64| {
        let mut all: Vec<f64> = reports.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!("{} reloads of {count} rules, {flows} established flows, bursts of {BATCH}", reports.len());
    println!(
        "  read and check {:.1} ms, compile {:.1} ms (medians)",
        median(&|r| r.read_ms),
        median(&|r| r.compile_ms)
    );
    println!(
        "  burst: {:.2} us of processor time on average of {}",
        micros(found.sum) / found.bursts as f64,
        found.bursts
    );
    for (what, [wall, own]) in [("at rest", found.at_rest), ("while rules change", found.at_change)] {
        println!(
            "  longest from burst to burst {what}: {:.1} us of processor time, {:.1} us by the clock",
            micros(own),
            micros(wall)
        );
    }
}
