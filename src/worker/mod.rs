//! The poll loop: [`Worker`].
//!
//! One worker per core. It owns the devices of its queues, its frames and its [`Shard`]; it shares nothing but the two
//! published values ([`Policy`], [`Routing`], one atomic load each per burst) and its mailbox. A burst: take back sent frames,
//! give free ones, receive up to `BURST` per device and decide them [`BATCH`] at a time, send, wake the kernel once (what is for
//! the host itself may wait a moment for more of it); then a bounded share of time-outs and of what the control thread
//! asked for. The clock is read once per burst, by [`Worker::run`]; [`Worker::burst`] takes it as an argument, so the simulator
//! runs the same loop in virtual time.

mod links;
mod mailbox;
mod sleeper;
mod tracer;

/// What `sleeper` is made of; its test puts others in their place.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

pub use links::{Links, ring_for};
use mailbox::Turns;
pub use mailbox::{
    COPY_RING, EVENT_RING, Ending, Expecting, Handle, LOG_RING, Line, Mailbox, QueueStats, Reply, Request, SLICE,
    TableCounts, Walk, WorkerStats, mailbox,
};

pub use tracer::{ChainRecord, Losses, Side, TraceFilter, TraceRecord, Tracer};

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::datapath::{self, BATCH, Batch, Effects, Parcel, Shard};
use crate::device::{Device, FramePool, Host, PortId};
use crate::schedule;
use crate::snapshot::{Policy, Routing};
use crate::time::Instant;
use crate::verdict::DropReason;

/// Packets of one device in a burst, decided in batches: what the kernel costs each burst is shared by so many.
const BURST: usize = 4 * BATCH;
/// Frames that may wait for room in a port's transmit ring; what is beyond is dropped as `transmit_full`.
const BACKLOG: usize = 512;
/// Connections looked at for expiry per batch, or burst without packets.
const EXPIRE_BUDGET: usize = 32;
/// Bursts without a packet before an adaptive worker sleeps.
const IDLE_BURSTS: u32 = 256;
/// The longest sleep: how late a request of the control thread may be noticed.
const SLEEP: Duration = Duration::from_millis(50);

/// How long packets for the host wait for others after some were handed over, in nanoseconds. The call costs 11 to 15 us, each
/// packet of it less than 1 us: so calls take no more than a thirteenth of the core, however many bursts have such packets.
const HAND_OVER_NS: u64 = 200_000;

/// How a worker passes idle time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Poll {
    /// Never sleeps: the core is the worker's.
    #[default]
    Busy,
    /// Sleeps in poll(2) when there was nothing to do for a while (`IDLE_BURSTS`). A packet wakes it at once, as does a
    /// request; with neither it looks round every 50 ms (`SLEEP`), or when something is due (`tests/poll.rs`).
    Adaptive,
}

/// A worker that had to stop.
#[derive(Debug)]
pub struct PortLost {
    /// The port whose device failed.
    pub port: PortId,
    /// What the kernel said.
    pub error: io::Error,
}

impl fmt::Display for PortLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {:?} port failed: {}", self.port, self.error)
    }
}

impl std::error::Error for PortLost {}

/// What a worker is made of.
#[derive(Debug)]
pub struct Parts<D, H> {
    /// Every device it reads, with its port. The first of a port also sends.
    pub devices: Vec<(PortId, D)>,
    /// Free frames for them.
    pub pool: FramePool,
    /// The host's own stack.
    pub host: H,
    /// Its connections and counters.
    pub shard: Shard,
    /// The rules in force.
    pub policy: Arc<ArcSwap<Policy>>,
    /// The routes in force.
    pub routing: Arc<ArcSwap<Routing>>,
    /// Its end of the mailbox.
    pub mailbox: Mailbox,
    /// Its ways to the other workers, if there are any; then its tracker knows of them, too.
    pub links: Option<Links>,
}

/// A worker; see the module's head.
#[derive(Debug)]
pub struct Worker<D, H> {
    devices: Vec<(PortId, D)>,
    sender: [usize; PortId::COUNT],
    pool: FramePool,
    host: H,
    shard: Shard,
    policy: Cache<Arc<ArcSwap<Policy>>, Arc<Policy>>,
    routing: Cache<Arc<ArcSwap<Routing>>, Arc<Routing>>,
    mailbox: Mailbox,
    batch: Batch,
    effects: Effects,
    /// Packets and bytes received, by device.
    received_by: Vec<[u64; 2]>,
    bursts: u64,
    busy_bursts: u64,
    /// When packets were last handed over to the host.
    handed_over: Instant,
    /// Whether some were punted since.
    has_punted: bool,
    links: Option<Links>,
    /// Bursts, for who watches whether they go on.
    pulse: Arc<AtomicU64>,
}

/// The present as workers that began at `start` have it: their time begins at second 1.
pub fn since(start: std::time::Instant) -> Instant {
    // 2^64 ns are 584 years.
    Instant::from_secs(1) + start.elapsed().as_nanos() as u64
}

impl<D: Device, H: Host> Worker<D, H> {
    /// Puts a worker together.
    ///
    /// # Panics
    /// When a port has no device.
    pub fn new(parts: Parts<D, H>) -> Worker<D, H> {
        let sender = PortId::ALL.map(|port| {
            parts.devices.iter().position(|(of, _)| *of == port).expect("every port has a device to send by")
        });
        Worker {
            sender,
            received_by: vec![[0; 2]; parts.devices.len()],
            devices: parts.devices,
            pool: parts.pool,
            host: parts.host,
            shard: parts.shard,
            policy: Cache::new(parts.policy),
            routing: Cache::new(parts.routing),
            mailbox: parts.mailbox,
            batch: Batch::default(),
            effects: Effects::new(BATCH),
            bursts: 0,
            busy_bursts: 0,
            handed_over: Instant::ZERO,
            has_punted: false,
            links: parts.links,
            pulse: Arc::default(),
        }
    }

    /// A number that grows with every burst; a worker that sleeps has one each [`SLEEP`] at least.
    pub fn pulse(&self) -> Arc<AtomicU64> {
        self.pulse.clone()
    }

    /// Runs until `stop` is set. Its time is [`since`] `start`.
    ///
    /// # Errors
    /// When a port is gone for good.
    pub fn run(&mut self, poll: Poll, start: std::time::Instant, stop: &AtomicBool) -> Result<(), PortLost> {
        let mut idle = 0u32;
        while !stop.load(Ordering::Relaxed) {
            let has_news = self.links.as_ref().is_some_and(Links::has_news);
            if self.burst(since(start))? > 0 || has_news || self.mailbox.is_asked() || self.shard.is_busy() {
                idle = 0;
                continue;
            }
            idle = idle.saturating_add(1);
            if poll == Poll::Adaptive && idle > IDLE_BURSTS {
                self.sleep(since(start));
            } else {
                std::hint::spin_loop();
            }
        }
        Ok(())
    }

    /// One burst at `now`; returns the packets received.
    ///
    /// # Errors
    /// When a port is gone for good.
    pub fn burst(&mut self, now: Instant) -> Result<usize, PortLost> {
        for (_, device) in &mut self.devices {
            device.reclaim(&mut self.pool);
            device.refill(&mut self.pool);
        }
        let mut total = self.take_over(now);
        for index in 0..self.devices.len() {
            total += self.receive_from(index, now);
        }
        schedule::point();
        let (policy, routing) = (self.policy.load(), self.routing.load());
        let budget = EXPIRE_BUDGET * total.div_ceil(BATCH).max(1);
        datapath::expire(&mut self.shard, policy, routing, now, budget, &mut self.effects);
        self.carry_out(now);
        if self.links.is_some() {
            self.shard.conntrack.attend(now);
        }
        self.kick()?;
        if let Some(links) = &mut self.links {
            links.wake();
            links.settle(&mut self.pool, total == 0);
        }
        self.bursts += 1;
        self.pulse.store(self.bursts, Ordering::Relaxed);
        self.busy_bursts += u64::from(total > 0);
        if self.mailbox.is_asked() {
            self.answer(now);
        }
        Ok(total)
    }

    /// Decides what a device has received, batch by batch; returns how many packets.
    fn receive_from(&mut self, index: usize, now: Instant) -> usize {
        let mut received = 0;
        while received < BURST {
            let (port, device) = &mut self.devices[index];
            let (count, bytes) = self.batch.fill(*port, |frames| device.receive(frames, BATCH, &mut self.pool));
            let counted = &mut self.received_by[index];
            counted[0] += count as u64;
            counted[1] += bytes;
            received += count;
            self.decide(now);
            if count < BATCH {
                break;
            }
        }
        received
    }

    /// Decides what other workers have given, at most a burst of each (less than what they can receive in one of theirs, and
    /// rings would fill up); returns how many.
    fn take_over(&mut self, now: Instant) -> usize {
        let Some(links) = &mut self.links else { return 0 };
        let (count, first) = (links.count(), links.next_turn());
        (0..count).map(|at| self.take_over_from((first + at) % count, now)).sum()
    }

    fn take_over_from(&mut self, worker: usize, now: Instant) -> usize {
        let mut taken = 0;
        while taken < BURST
            && let Some(parcel) = self.links.as_mut().and_then(|links| links.take(worker))
        {
            taken += 1;
            match parcel {
                Parcel::Packet { port, sent, frame } => {
                    if let Some(frame) = self.batch.give(port, sent, frame) {
                        self.decide(now);
                        let rest = self.batch.give(port, sent, frame);
                        assert!(rest.is_none(), "an empty batch takes a packet");
                    }
                }
                Parcel::Connection(emigration) => {
                    // After all that was handed over before it.
                    self.decide(now);
                    schedule::point();
                    let (policy, routing) = (self.policy.load(), self.routing.load());
                    datapath::immigrate(&mut self.shard, policy, routing, *emigration, now, &mut self.effects);
                    self.carry_out(now);
                }
            }
        }
        self.decide(now);
        taken
    }

    /// Decides the batch in hand, if there is one.
    fn decide(&mut self, now: Instant) {
        if self.batch.is_empty() {
            return;
        }
        schedule::point();
        let (policy, routing) = (self.policy.load(), self.routing.load());
        datapath::process(&mut self.shard, policy, routing, &mut self.batch, now, &mut self.effects);
        self.carry_out(now);
    }

    /// Gives other workers what is theirs.
    fn hand_parcels_over(&mut self) {
        let (shard, pool) = (&mut self.shard, &mut self.pool);
        let refuse = |parcel: Parcel| {
            shard.counters.drops.count(DropReason::HandoverFull);
            shard.counters.handed_over -= 1;
            pool.put(match parcel {
                Parcel::Packet { frame, .. } => frame,
                Parcel::Connection(emigration) => {
                    shard.conntrack.stay(&emigration.emigrant);
                    emigration.frame
                }
            });
        };
        match &mut self.links {
            Some(links) => links.send(&mut self.effects, refuse),
            None => self.effects.parcels.drain(..).map(|(_, parcel)| parcel).for_each(refuse),
        }
    }

    /// Answers one request of the control thread, which may rely on it that the last policy published is in force by then.
    fn answer(&mut self, now: Instant) {
        schedule::point();
        self.shard.follow(self.policy.load(), self.routing.load());
        let queues = self.devices.iter().zip(&self.received_by).map(|((port, device), counted)| QueueStats {
            port: *port,
            receive_packets: counted[0],
            receive_bytes: counted[1],
            device: device.statistics(),
        });
        let turns = Turns {
            bursts: self.bursts,
            busy_bursts: self.busy_bursts,
            free_frames: self.pool.len(),
            free_large_frames: self.pool.large(),
        };
        self.mailbox.serve(&mut self.shard, turns, queues, now);
    }

    /// Does what the core wants done.
    fn carry_out(&mut self, now: Instant) {
        for (port, frame) in self.effects.punt.drain(..) {
            self.host.punt(port, frame.bytes());
            self.pool.put(frame);
            self.has_punted = true;
        }
        if self.has_punted && now - self.handed_over >= HAND_OVER_NS {
            self.hand_over(now);
        }
        if !self.effects.parcels.is_empty() {
            self.hand_parcels_over();
        }
        for port in PortId::ALL {
            let queue = &mut self.effects.transmit[port.index()];
            if queue.is_empty() {
                continue;
            }
            self.devices[self.sender[port.index()]].1.transmit(queue, &mut self.pool);
            while queue.len() > BACKLOG {
                let frame = queue.pop_back().expect("longer than its limit");
                self.shard.counters.drops.count(DropReason::TransmitFull);
                self.shard.counters.ports[port.index()].take_back(frame.len());
                self.pool.put(frame);
            }
        }
        for frame in self.effects.free.drain(..) {
            self.pool.put(frame);
        }
        self.mailbox.forward(&mut self.effects);
        if self.shard.conntrack.is_listening() {
            self.mailbox.forward_events(&mut self.shard);
        }
    }

    /// The host takes what was punted.
    fn hand_over(&mut self, now: Instant) {
        self.shard.counters.drops.count_many(DropReason::PuntFailed, self.host.flush());
        (self.handed_over, self.has_punted) = (now, false);
    }

    fn kick(&mut self) -> Result<(), PortLost> {
        for (port, device) in &mut self.devices {
            device.kick().map_err(|error| PortLost { port: *port, error })?;
        }
        Ok(())
    }

    /// Sleeps until a packet comes, or something is due.
    fn sleep(&mut self, now: Instant) {
        if self.has_punted {
            self.hand_over(now);
        }
        let mut fds: Vec<PollFd<'_>> = self
            .devices
            .iter()
            .filter_map(|(_, device)| device.readiness())
            .chain([self.mailbox.wake().as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let due = datapath::next_deadline(&self.shard, now).map_or(SLEEP, |at| Duration::from_nanos(at - now));
        let due = if self.shard.waiting() > 0 { Duration::from_millis(1) } else { due.min(SLEEP) };
        let timeout = PollTimeout::try_from(due.max(Duration::from_millis(1))).unwrap_or(PollTimeout::from(50u16));
        if self.links.as_ref().is_none_or(Links::fall_asleep) {
            // An error here (a signal) only ends the sleep early; a port that is gone shows in the next kick.
            let _ = poll(&mut fds, timeout);
        }
        if let Some(links) = &self.links {
            links.wake_up();
        }
        // Not set is the rule: only a request sets it.
        let _ = self.mailbox.wake().read();
    }

    /// Its connections and counters.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Frames that are in the pool, in transmit queues, on their way here from other workers, or waiting for a neighbour: all
    /// that are not in a device.
    pub fn frames_at_hand(&self) -> usize {
        let queued: usize = self.effects.transmit.iter().map(|queue| queue.len()).sum();
        let between = self.links.as_ref().map_or(0, Links::frames);
        self.pool.len() + self.pool.large() + queued + self.shard.waiting() + between
    }

    /// Its devices, for those who made them.
    pub fn devices_mut(&mut self) -> &mut [(PortId, D)] {
        &mut self.devices
    }

    /// The host it punts to.
    pub fn host_mut(&mut self) -> &mut H {
        &mut self.host
    }
}
