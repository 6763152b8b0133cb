//! A network in memory: [`SimPort`] behind the [`Device`] seam, [`SimHost`] behind [`Host`], and [`Simulator`], which runs
//! the real worker loop over them in virtual time.
//!
//! What hardware and kernel may do to a router, the ports do on demand and from a seed: lose and reorder packets on
//! arrival, take fewer frames for sending than offered, and hold sent frames back. One seed gives one run.

pub mod many;
pub mod replay;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;

use crate::conntrack::Settings;
use crate::datapath::Shard;
use crate::device::{Device, Frame, FramePool, Host, PortId};
use crate::snapshot::{Policy, Routing};
use crate::time::Instant;
use crate::worker::{Handle, Parts, PortLost, Worker, mailbox};

/// What a port does wrong, in parts of 256 (a probability) or frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Chance that an arriving packet is lost.
    pub lose: u8,
    /// Chance that an arriving packet overtakes the one before it.
    pub reorder: u8,
    /// Chance that a call to send takes nothing: the ring is full.
    pub refuse_transmit: u8,
    /// Chance that sent frames are not given back at this call.
    pub hold_completions: u8,
}

#[derive(Debug, Default)]
struct Wire {
    arriving: VecDeque<Vec<u8>>,
    left: Vec<Vec<u8>>,
    lost: u64,
    gone: bool,
}

/// The other end of a [`SimPort`]: put packets in, take packets out.
#[derive(Clone, Debug, Default)]
pub struct WireEnd(Arc<Mutex<Wire>>);

impl WireEnd {
    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().expect("no thread panics while it holds a simulated wire")
    }

    /// A packet on its way to the router.
    pub fn send(&self, packet: &[u8]) {
        self.lock().arriving.push_back(packet.to_vec());
    }

    /// All packets that left the router since the last call, oldest first.
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.lock().left)
    }

    /// Packets not yet received by the router.
    pub fn pending(&self) -> usize {
        self.lock().arriving.len()
    }

    /// Packets the faults lost.
    pub fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// The interface disappears.
    pub fn cut(&self) {
        self.lock().gone = true;
    }
}

/// Small deterministic generator (SplitMix64): the simulator must not depend on a library's choice of algorithm.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// From a seed.
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True in `chance` of 256 cases.
    pub fn chance(&mut self, chance: u8) -> bool {
        (self.next_u64() as u8) < chance
    }
}

/// A port in memory.
#[derive(Debug)]
pub struct SimPort {
    wire: WireEnd,
    fill: VecDeque<Frame>,
    sent: VecDeque<Frame>,
    ring: usize,
    faults: Faults,
    random: Seeded,
}

impl SimPort {
    /// A port whose rings hold `ring` frames each.
    pub fn new(wire: WireEnd, ring: usize, faults: Faults, seed: u64) -> SimPort {
        SimPort { wire, fill: VecDeque::new(), sent: VecDeque::new(), ring, faults, random: Seeded::new(seed) }
    }

    /// Frames the port holds.
    pub fn frames(&self) -> usize {
        self.fill.len() + self.sent.len()
    }
}

impl Device for SimPort {
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize, _: &mut FramePool) -> usize {
        let mut wire = self.wire.lock();
        let mut count = 0;
        while count < max {
            if self.fill.is_empty() {
                break;
            }
            if wire.arriving.len() > 1 && self.random.chance(self.faults.reorder) {
                wire.arriving.swap(0, 1);
            }
            let Some(packet) = wire.arriving.pop_front() else { break };
            let fits = self.fill.front().is_some_and(|frame| packet.len() <= frame.capacity());
            if !fits || self.random.chance(self.faults.lose) {
                wire.lost += 1;
                continue;
            }
            let mut frame = self.fill.pop_front().expect("checked above");
            frame.fill(&packet);
            into.push(frame);
            count += 1;
        }
        count
    }

    fn transmit(&mut self, queue: &mut VecDeque<Frame>, _: &mut FramePool) -> usize {
        if self.random.chance(self.faults.refuse_transmit) {
            return 0;
        }
        let room = (self.ring - self.sent.len()).min(queue.len());
        let mut wire = self.wire.lock();
        for frame in queue.drain(..room) {
            wire.left.push(frame.bytes().to_vec());
            self.sent.push_back(frame);
        }
        room
    }

    fn kick(&mut self) -> io::Result<()> {
        match self.wire.lock().gone {
            true => Err(io::Error::from_raw_os_error(libc::ENXIO)),
            false => Ok(()),
        }
    }

    fn reclaim(&mut self, pool: &mut FramePool) -> usize {
        if self.random.chance(self.faults.hold_completions) {
            return 0;
        }
        let count = self.sent.len();
        self.sent.drain(..).for_each(|frame| pool.put(frame));
        count
    }

    fn refill(&mut self, pool: &mut FramePool) -> usize {
        let mut count = 0;
        while self.fill.len() < self.ring {
            let Some(frame) = pool.take() else { break };
            self.fill.push_back(frame);
            count += 1;
        }
        count
    }
}

/// A host that remembers what it was handed.
#[derive(Debug, Default)]
pub struct SimHost {
    /// Every punted frame with its port, oldest first.
    pub punted: Vec<(PortId, Vec<u8>)>,
    /// Frames it will say it has not taken.
    pub refused: u64,
}

impl Host for SimHost {
    fn punt(&mut self, port: PortId, frame: &[u8]) {
        self.punted.push((port, frame.to_vec()));
    }

    fn flush(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }
}

/// The real worker between two simulated ports, in virtual time.
#[derive(Debug)]
pub struct Simulator {
    worker: Worker<SimPort, SimHost>,
    wires: [WireEnd; PortId::COUNT],
    /// Publishes rules.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Publishes routes and neighbours.
    pub routing: Arc<ArcSwap<Routing>>,
    /// The control thread's end of the worker's mailbox.
    pub handle: Handle,
    now: Instant,
    frames: usize,
}

/// Bytes of a simulated frame: those of a 2048-byte UMEM frame behind its headroom.
const FRAME_SIZE: usize = 1792;
const FRAMES: usize = 512;
const RING: usize = 64;

impl Simulator {
    /// A router at second 1 of its time.
    ///
    /// # Panics
    /// When the process has no descriptor left.
    pub fn new(policy: Policy, routing: Routing, settings: Settings, faults: Faults, seed: u64) -> Simulator {
        let wires = [WireEnd::default(), WireEnd::default()];
        let mut random = Seeded::new(seed);
        let devices = PortId::ALL
            .map(|port| (port, SimPort::new(wires[port.index()].clone(), RING, faults, random.next_u64())))
            .into();
        let (mailbox, handle) = mailbox().expect("a descriptor for the mailbox");
        let shard = Shard::new(settings, [random.next_u64(), random.next_u64()], &policy);
        let policy = Arc::new(ArcSwap::from_pointee(policy));
        let routing = Arc::new(ArcSwap::from_pointee(routing));
        let worker = Worker::new(Parts {
            devices,
            pool: FramePool::in_memory(FRAMES, FRAME_SIZE),
            host: SimHost::default(),
            shard,
            policy: policy.clone(),
            routing: routing.clone(),
            mailbox,
            links: None,
        });
        Simulator { worker, wires, policy, routing, handle, now: Instant::from_secs(1), frames: FRAMES }
    }

    /// The other end of a port.
    pub fn wire(&self, port: PortId) -> &WireEnd {
        &self.wires[port.index()]
    }

    /// Lets time pass, without a burst.
    pub fn advance(&mut self, ns: u64) {
        self.now = self.now + ns;
    }

    /// The present.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// One burst at the present.
    ///
    /// # Errors
    /// When a port was cut.
    ///
    /// # Panics
    /// When a frame was lost or made: the sum over all places must stay.
    pub fn burst(&mut self) -> Result<usize, PortLost> {
        let received = self.worker.burst(self.now)?;
        let in_devices: usize = self.worker.devices_mut().iter().map(|(_, port)| port.frames()).sum();
        assert_eq!(in_devices + self.worker.frames_at_hand(), self.frames, "a frame was lost or made");
        Ok(received)
    }

    /// Bursts until nothing arrives any more and all is sent; at most `limit` bursts.
    ///
    /// # Errors
    /// When a port was cut.
    pub fn settle(&mut self, limit: usize) -> Result<(), PortLost> {
        for _ in 0..limit {
            let received = self.burst()?;
            if received == 0 && self.wires.iter().all(|wire| wire.pending() == 0) {
                break;
            }
        }
        // One more turn for what a refusing port left behind.
        self.burst().map(|_| ())
    }

    /// The worker's connections and counters.
    pub fn shard(&self) -> &Shard {
        self.worker.shard()
    }

    /// What was punted since the last call.
    pub fn take_punted(&mut self) -> Vec<(PortId, Vec<u8>)> {
        std::mem::take(&mut self.worker.host_mut().punted)
    }
}

#[cfg(test)]
mod tests;
