//! A router of several workers in memory: [`Many`], the real worker loops, hand-over included, in virtual time and in an order
//! drawn from a seed.
//!
//! Every worker has a queue of each port. A burst of one worker is a step; which worker takes the next one is chance, as is the
//! queue of a packet whose sender does not choose it. So a seed is a schedule. Frames are counted over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use super::{Faults, Seeded, SimHost, SimPort, WireEnd};
use crate::conntrack::{Homes, Settings};
use crate::datapath::Shard;
use crate::device::{FramePool, PortId};
use crate::snapshot::{Policy, Routing};
use crate::steering::Steering;
use crate::time::Instant;
use crate::worker::{Handle, Links, Parts, PortLost, Worker, mailbox};

const FRAME_SIZE: usize = 1792;

/// How much room there is.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Frames of a port's queue.
    pub ring: usize,
    /// Entries of a ring between two workers.
    pub between: usize,
    /// Frames of each worker.
    pub frames: usize,
}

impl Default for Room {
    fn default() -> Room {
        Room { ring: 64, between: 128, frames: 512 }
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Many {
    workers: Vec<Worker<SimPort, SimHost>>,
    wires: Vec<[WireEnd; PortId::COUNT]>,
    /// Publishes rules.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Publishes routes and neighbours.
    pub routing: Arc<ArcSwap<Routing>>,
    /// The control thread's ends of the workers' mailboxes.
    pub handles: Vec<Handle>,
    left: [Vec<Vec<u8>>; PortId::COUNT],
    random: Seeded,
    now: Instant,
    /// Of each worker.
    frames: usize,
}

impl Many {
    /// As many workers as `steering` says, at second 1 of their time.
    ///
    /// # Panics
    /// When the process has no descriptor left.
    pub fn new(
        steering: Steering,
        policy: Policy,
        routing: Routing,
        settings: Settings,
        faults: Faults,
        seed: u64,
    ) -> Many {
        Many::with_room(Room::default(), steering, policy, routing, settings, faults, seed)
    }

    /// The same with more room, or less.
    ///
    /// # Panics
    /// When the process has no descriptor left.
    pub fn with_room(
        room: Room,
        steering: Steering,
        policy: Policy,
        routing: Routing,
        settings: Settings,
        faults: Faults,
        seed: u64,
    ) -> Many {
        let count = usize::from(steering.workers());
        let mut random = Seeded::new(seed);
        let homes = Homes::of_all(&Arc::new(steering), Shard::capacity_among(settings.max, count));
        let shards = Shard::among(&settings, [random.next_u64(), random.next_u64()], &policy, homes);
        let (policy, routing) = (Arc::new(ArcSwap::from_pointee(policy)), Arc::new(ArcSwap::from_pointee(routing)));
        let wires: Vec<[WireEnd; PortId::COUNT]> = (0..count).map(|_| Default::default()).collect();
        let (mut workers, mut handles) = (Vec::new(), Vec::new());
        for ((shard, links), wires) in shards.into_iter().zip(Links::between(count, room.between)).zip(&wires) {
            let (mailbox, handle) = mailbox().expect("a descriptor for the mailbox");
            let device = |port: PortId| SimPort::new(wires[port.index()].clone(), room.ring, faults, random.next_u64());
            workers.push(Worker::new(Parts {
                devices: PortId::ALL
                    .map(device)
                    .into_iter()
                    .zip(PortId::ALL)
                    .map(|(device, port)| (port, device))
                    .collect(),
                pool: FramePool::in_memory(room.frames, FRAME_SIZE),
                host: SimHost::default(),
                shard,
                policy: policy.clone(),
                routing: routing.clone(),
                mailbox,
                links: Some(links),
            }));
            handles.push(handle);
        }
        let left = Default::default();
        Many { workers, wires, policy, routing, handles, left, random, now: Instant::from_secs(1), frames: room.frames }
    }

    /// How many workers there are.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// A packet on its way to a queue of a port.
    pub fn send_to(&self, port: PortId, queue: usize, packet: &[u8]) {
        self.wires[queue][port.index()].send(packet);
    }

    /// A packet on its way to some queue of a port.
    pub fn send(&mut self, port: PortId, packet: &[u8]) {
        let queue = self.random.next_u64() as usize % self.count();
        self.send_to(port, queue, packet);
    }

    /// All packets that left by a port since the last call, oldest first.
    pub fn take(&mut self, port: PortId) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.left[port.index()])
    }

    /// Lets time pass, without a burst.
    pub fn advance(&mut self, ns: u64) {
        self.now = self.now + ns;
    }

    /// The present.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// One burst of one worker.
    ///
    /// # Errors
    /// When a port was cut.
    pub fn burst(&mut self, worker: usize) -> Result<usize, PortLost> {
        let received = self.workers[worker].burst(self.now)?;
        for (left, wire) in self.left.iter_mut().zip(&self.wires[worker]) {
            left.extend(wire.take());
        }
        Ok(received)
    }

    /// As many bursts as there are workers, each of any of them.
    ///
    /// # Errors
    /// When a port was cut.
    pub fn steps(&mut self) -> Result<(), PortLost> {
        for _ in 0..self.count() {
            let worker = self.random.next_u64() as usize % self.count();
            self.burst(worker)?;
        }
        Ok(())
    }

    /// Steps until nothing is under way any more, at most `limit` rounds of them.
    ///
    /// # Errors
    /// When a port was cut.
    ///
    /// # Panics
    /// When a frame was lost or made: the sum over all places must stay.
    pub fn settle(&mut self, limit: usize) -> Result<(), PortLost> {
        let mut quiet = 0;
        for _ in 0..limit {
            self.steps()?;
            let mut received = 0;
            for worker in 0..self.count() {
                received += self.burst(worker)?;
            }
            let pending = self.wires.iter().flatten().any(|wire| wire.pending() > 0);
            quiet = if received == 0 && !pending { quiet + 1 } else { 0 };
            if quiet == 2 {
                break;
            }
        }
        let mut frames = 0;
        for worker in &mut self.workers {
            let in_devices: usize = worker.devices_mut().iter().map(|(_, port)| port.frames()).sum();
            frames += in_devices + worker.frames_at_hand();
        }
        assert_eq!(frames, self.count() * self.frames, "a frame was lost or made");
        Ok(())
    }

    /// Lets each worker go on in a thread of its own, as fast as it can, while `meanwhile` runs; what goes on in which order is the
    /// processor's affair then.
    ///
    /// # Panics
    /// When a port was cut, or a worker panics.
    pub fn in_threads<R>(&mut self, meanwhile: impl FnOnce() -> R) -> R {
        let (now, over) = (self.now, AtomicBool::new(false));
        let outcome = std::thread::scope(|scope| {
            for worker in &mut self.workers {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        if worker.burst(now).expect("no port was cut") == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let outcome = meanwhile();
            over.store(true, Ordering::Relaxed);
            outcome
        });
        for (left, at) in self.left.iter_mut().zip(PortId::ALL) {
            self.wires.iter().for_each(|wires| left.extend(wires[at.index()].take()));
        }
        outcome
    }

    /// A queue's wire, for who sends while the workers have threads.
    pub fn wire(&self, port: PortId, queue: usize) -> WireEnd {
        self.wires[queue][port.index()].clone()
    }

    /// The workers' connections and counters.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.workers.iter().map(Worker::shard)
    }

    /// What was punted since the last call.
    pub fn take_punted(&mut self) -> Vec<(PortId, Vec<u8>)> {
        self.workers.iter_mut().flat_map(|worker| std::mem::take(&mut worker.host_mut().punted)).collect()
    }
}

#[cfg(test)]
mod tests;
