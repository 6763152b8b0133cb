//! The workers of a run and their threads: [`Crew`].
//!
//! Built once the sockets are open ([`build`]), started on a core each, and watched: a worker that ends, or that has not finished a
//! burst for [`STALLED`] looks a second apart, ends the run, since its queues would be read by nobody and its connections be
//! nobody's. A worker that stalls cannot be waited for: the run ends without its thread, which ends with the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::config::{self, Config};
use super::startup::{self, Failure};
use crate::conntrack::{Arrivals, Homes, Settings};
use crate::datapath::{Shard, WallClock};
use crate::device::PortId;
use crate::rules::Ruleset;
use crate::snapshot::{Policy, Routing};
use crate::steering::Steering;
use crate::worker::{Handle, Links, Parts, Poll, PortLost, Worker, mailbox, ring_for};
use crate::xdp::{Edge, Interface, MAX_PUNTERS, Punter, XdpQueue};

/// Looks, a second apart, at which a worker may be seen not to have moved before it has stalled. Busy or asleep, it moves 20
/// times a second.
pub const STALLED: u32 = 5;

/// How long workers may take to end: a burst, and what the kernel makes of its calls.
const GRACE: std::time::Duration = std::time::Duration::from_secs(3);

/// The workers' cores: `--cores`; else, for as many workers as wanted, the last that this process may run on (the first ones serve
/// most interrupts). Wanted are `--workers`, or one for each queue that both ports have, leaving a core to everybody else.
///
/// # Errors
/// When there is no core, or the rules want one worker and several were asked for.
pub fn choose_cores(config: &Config, rulesets: &[Ruleset; 2]) -> Result<Vec<usize>, Failure> {
    let alone = rulesets.iter().find_map(Ruleset::wants_one_worker);
    let refused = |asked: String| match &alone {
        Some(rule) => Err(Failure::Usage(format!(
            "{asked}: this rule needs one worker, since what it gives out belongs to all connections of a client, wherever \
             they have their home: {rule}. Give --workers 1, or leave the option away"
        ))),
        None => Ok(()),
    };
    let allowed = sched_getaffinity(Pid::this())
        .map_err(|error| Failure::Running(format!("cannot read this process's CPU affinity: {error}")))?;
    let cores: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    let count = match &config.workers {
        config::Workers::Cores(list) => {
            if list.cpus().len() > 1 {
                refused(format!("--cores {list}"))?;
            }
            return Ok(list.cpus().to_vec());
        }
        config::Workers::Count(count) => {
            if *count > 1 {
                refused(format!("--workers {count}"))?;
            }
            *count
        }
        config::Workers::Auto if alone.is_some() => 1,
        config::Workers::Auto => {
            let queues = |name: &str| Interface::read(name).map_or(1, |interface| interface.rx_queues as usize);
            let queues = queues(config.lan.as_str()).min(queues(config.wan.as_str()));
            queues.min(cores.len().saturating_sub(1)).clamp(1, MAX_PUNTERS)
        }
    };
    match cores.len().checked_sub(count) {
        Some(from) if !cores.is_empty() => Ok(cores[from..].to_vec()),
        _ => Err(Failure::Running(format!(
            "this process may run on {} CPUs, and {count} workers want one each",
            cores.len()
        ))),
    }
}

/// Keeps this thread, and those it will start for reading and judging rules, off the workers' cores, where there are others.
pub fn keep_off(cores: &[usize]) {
    let Ok(mut allowed) = sched_getaffinity(Pid::this()) else { return };
    let others = (0..CpuSet::count()).any(|cpu| !cores.contains(&cpu) && allowed.is_set(cpu).unwrap_or(false));
    if !others {
        return;
    }
    let off = cores.iter().try_for_each(|&core| allowed.unset(core));
    if let Err(error) = off.and_then(|()| sched_setaffinity(Pid::from_raw(0), &allowed)) {
        tracing::warn!("cannot keep the control thread off the workers' cores: {error}");
    }
}

/// Workers not started yet, and the control thread's ends of their mailboxes.
#[derive(Debug)]
pub struct Built {
    workers: Vec<Worker<XdpQueue, Punter>>,
    /// By worker.
    pub handles: Vec<Handle>,
    /// Their calendars.
    pub walls: Vec<Arc<WallClock>>,
    /// Whether packets arrive where the NICs' hash should bring them; `None` where it is not used.
    pub verification: Option<Verification>,
}

/// The steering's rule held against the packets that arrive first: said once, when there are enough of them.
#[derive(Debug)]
pub struct Verification {
    arrivals: Arc<Arrivals>,
    steering: String,
    said: bool,
}

impl Verification {
    /// Packets that are enough.
    const ENOUGH: u64 = 64;

    /// Says what was found, once it is found.
    pub fn look(&mut self) {
        let (at_home, astray) = self.arrivals.counts();
        let all = at_home + astray;
        if self.said || all < Verification::ENOUGH {
            return;
        }
        self.said = true;
        // A few arrive elsewhere with reason: fragments, errors.
        if astray * 10 <= all {
            tracing::info!(
                "{}: verified, {at_home} of the first {all} flows arrived at the worker computed",
                self.steering
            );
        } else {
            tracing::warn!(
                "{}: not so, only {at_home} of the first {all} flows arrived at the worker computed. The others are handed over, \
                 which costs; does something stand before the NIC's hash (ntuple rules, a driver's own table)?",
                self.steering
            );
        }
    }
}

/// Puts the workers together, over the queues of `edge`.
///
/// # Errors
/// When the process runs out of descriptors, or the kernel of memory.
pub fn build(
    settings: &Settings,
    steering: Steering,
    edge: &mut Edge,
    policy: &Arc<ArcSwap<Policy>>,
    routing: &Arc<ArcSwap<Routing>>,
) -> Result<Built, Failure> {
    let count = usize::from(steering.workers());
    let secret = startup::secret()?;
    let mut verification = None;
    let shards = match count {
        1 => vec![Shard::new(settings.clone(), secret, &policy.load())],
        _ => {
            let (words, by_nic) = (steering.to_string(), matches!(steering, Steering::Nic(_)));
            let homes = Homes::of_all(&Arc::new(steering), Shard::capacity_among(settings.max, count));
            let arrivals = homes[0].arrivals();
            verification = by_nic.then_some(Verification { arrivals, steering: words, said: false });
            Shard::among(settings, secret, &policy.load(), homes)
        }
    };
    let each = if count > 1 { format!(" for each of {count} workers") } else { String::new() };
    tracing::info!("connection table: {}{each}", shards[0].conntrack.memory());
    let mut links = Links::between(count, ring_for(count));
    let mut built = Built { workers: Vec::new(), handles: Vec::new(), walls: Vec::new(), verification };
    let mut mailboxes = Vec::new();
    for _ in 0..count {
        let (mailbox, handle) =
            mailbox().map_err(|error| Failure::Running(format!("cannot make a worker's mailbox: {error}")))?;
        mailboxes.push(mailbox);
        built.handles.push(handle);
    }
    Links::introduce(&mut links, mailboxes.iter().map(|mailbox| mailbox.waker()).collect());
    let parts = shards.into_iter().zip(mailboxes).zip(links).enumerate();
    for (number, ((shard, mailbox), links)) in parts {
        let queues = edge.take_worker(number).expect("a worker's queues are taken once");
        let host = edge.punter(number)?;
        let devices = PortId::ALL.into_iter().zip(queues.ports);
        let devices = devices.flat_map(|(port, queues)| queues.into_iter().map(move |queue| (port, queue))).collect();
        built.walls.push(shard.wall.clone());
        let (policy, routing) = (policy.clone(), routing.clone());
        let links = (count > 1).then_some(links);
        let parts = Parts { devices, pool: queues.pool, host, shard, policy, routing, mailbox, links };
        built.workers.push(Worker::new(parts));
    }
    Ok(built)
}

impl Built {
    /// Starts the workers, each on its core. Their time begins at `start`.
    ///
    /// # Errors
    /// When the process may not start a thread.
    pub fn start(&mut self, cores: &[usize], poll: Poll, start: std::time::Instant) -> Result<Crew, Failure> {
        let (tell, ended) = mpsc::channel(1);
        let mut crew = Crew { stop: Arc::default(), threads: Vec::new(), ended, watch: Watch::default() };
        for (worker, &core) in self.workers.drain(..).zip(cores) {
            crew.watch.pulses.push(worker.pulse());
            let (stop, tell) = (crew.stop.clone(), tell.clone());
            let body = move || work(worker, core, poll, start, &stop, &tell);
            let thread = std::thread::Builder::new().name(format!("worker-{core}")).spawn(body);
            let thread =
                thread.map_err(|error| Failure::Running(format!("cannot start a worker's thread: {error}")))?;
            crew.threads.push(Some((core, thread)));
        }
        crew.watch.seen = vec![(0, 0); crew.threads.len()];
        Ok(crew)
    }
}

fn work(
    mut worker: Worker<XdpQueue, Punter>,
    core: usize,
    poll: Poll,
    start: std::time::Instant,
    stop: &AtomicBool,
    tell: &mpsc::Sender<()>,
) -> Result<(), PortLost> {
    /// Says that the thread is over, also when it panics.
    struct Ending<'a>(&'a mpsc::Sender<()>);
    impl Drop for Ending<'_> {
        fn drop(&mut self) {
            // Somebody else has ended already, or the control thread has gone: then nobody needs to know.
            let _ = self.0.try_send(());
        }
    }
    let _ending = Ending(tell);
    pin(core);
    worker.run(poll, start, stop)
}

/// Pins the calling thread. A core that went offline since it was checked leaves the thread where it is.
fn pin(core: usize) {
    let mut set = CpuSet::new();
    let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        tracing::warn!("cannot pin the worker to core {core}: {error}; it runs on any");
    }
}

type Thread = JoinHandle<Result<(), PortLost>>;

/// The workers at work; see the module's head. Stops their threads and waits for them, however the run ends.
#[derive(Debug)]
pub struct Crew {
    stop: Arc<AtomicBool>,
    /// By worker, with its core.
    threads: Vec<Option<(usize, Thread)>>,
    /// Hears when one has ended.
    pub ended: mpsc::Receiver<()>,
    watch: Watch,
}

impl Crew {
    /// Looks whether all of them move; call it once a second.
    ///
    /// # Errors
    /// Which do not. The run is to be ended; their threads will not be waited for.
    pub fn look(&mut self) -> Result<(), Failure> {
        let cores: Vec<usize> =
            self.threads.iter().map(|thread| thread.as_ref().map_or(0, |(core, _)| *core)).collect();
        match said_of(&self.watch.look(), &cores) {
            None => Ok(()),
            Some(words) => Err(Failure::Running(words)),
        }
    }

    /// Ends the workers; what one died of, if one did. One that does not end in time is left alone: it ends with the process.
    ///
    /// # Errors
    /// The first worker's that had to stop.
    pub fn finish(&mut self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let begun = std::time::Instant::now();
        let at_work = |threads: &[Option<(usize, Thread)>]| threads.iter().flatten().any(|(_, it)| !it.is_finished());
        while at_work(&self.threads) && begun.elapsed() < GRACE {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        for (number, place) in self.threads.iter_mut().enumerate() {
            if let Some((core, _)) = place.take_if(|(_, thread)| !thread.is_finished()) {
                tracing::error!(
                    "worker {number} on core {core} does not end; `xrouter cleanup` gives back what it holds"
                );
            }
        }
        let mut outcome = Ok(());
        for (number, thread) in self.threads.iter_mut().enumerate() {
            let Some((core, thread)) = thread.take() else { continue };
            let ended = match thread.join() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(lost)) => Err(Failure::Running(lost.to_string())),
                Err(_) => {
                    Err(Failure::Running(format!("worker {number} on core {core} panicked; see the message above")))
                }
            };
            outcome = outcome.and(ended);
        }
        outcome
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if let Err(failure) = self.finish() {
            tracing::error!("{failure}");
        }
    }
}

/// What was seen of the workers' pulses.
#[derive(Debug, Default)]
struct Watch {
    pulses: Vec<Arc<AtomicU64>>,
    /// By worker: the pulse at the last look, and how many looks ago it was another.
    seen: Vec<(u64, u32)>,
}

impl Watch {
    /// Those that have stalled. It counts looks, not time: a process that was stopped as a whole has not stalled.
    fn look(&mut self) -> Vec<usize> {
        let mut stalled = Vec::new();
        for (number, (pulse, (before, looks))) in self.pulses.iter().zip(&mut self.seen).enumerate() {
            let present = pulse.load(Ordering::Relaxed);
            *looks = if present == *before { *looks + 1 } else { 0 };
            *before = present;
            stalled.extend((*looks >= STALLED).then_some(number));
        }
        stalled
    }
}

/// What an operator is told of workers that have stalled, all of them; `cores` are those of all workers.
fn said_of(stalled: &[usize], cores: &[usize]) -> Option<String> {
    let each: Vec<String> =
        stalled.iter().map(|worker| format!("worker {worker} on core {}", cores[*worker])).collect();
    let (words, which) = match each.split_last()? {
        (last, []) => (format!("{last} has not moved for {STALLED} seconds: its queues are"), "that core"),
        (last, others) => (
            format!("{} and {last} have not moved for {STALLED} seconds: their queues are", others.join(", ")),
            "these cores",
        ),
    };
    Some(format!("{words} read by nobody. Is something with real-time priority on {which}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_move_is_found_and_others_are_not() {
        let pulses: Vec<Arc<AtomicU64>> = (0..3).map(|_| Arc::default()).collect();
        let mut watch = Watch { pulses: pulses.clone(), seen: vec![(0, 0); 3] };
        let beat = |who: &[usize]| who.iter().for_each(|&at| _ = pulses[at].fetch_add(1, Ordering::Relaxed));
        for _ in 0..20 {
            beat(&[0, 1, 2]);
            assert!(watch.look().is_empty());
        }
        for _ in 1..STALLED {
            beat(&[0, 2]);
            assert!(watch.look().is_empty());
        }
        beat(&[0, 2]);
        assert_eq!(watch.look(), [1]);
        // Late is not never.
        beat(&[0, 1, 2]);
        assert!(watch.look().is_empty());
    }

    #[test]
    fn all_that_have_stalled_are_named() {
        let pulses: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::default()).collect();
        let mut watch = Watch { pulses: pulses.clone(), seen: vec![(0, 0); 4] };
        for _ in 1..STALLED {
            pulses[1].fetch_add(1, Ordering::Relaxed);
            assert_eq!(said_of(&watch.look(), &[4, 5, 6, 7]), None);
        }
        pulses[1].fetch_add(1, Ordering::Relaxed);
        let words = said_of(&watch.look(), &[4, 5, 6, 7]).expect("three have stalled");
        assert!(words.starts_with(
            "worker 0 on core 4, worker 2 on core 6 and worker 3 on core 7 have not moved for 5 seconds:"
        ));
        let one = said_of(&[2], &[4, 5, 6, 7]).expect("one has");
        assert!(
            one.starts_with("worker 2 on core 6 has not moved for 5 seconds: its queues are read by nobody."),
            "{one}"
        );
    }
}
