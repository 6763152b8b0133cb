//! The edge: AF_XDP sockets on both ports, the XDP program that steers packets to them, and the way back to the host.
//!
//! Beside it, for those who set up and look at network cards: what ethtool(8) asks and sets ([`Ethtool`]), what the kernel says of
//! XDP features and queues ([`Netdev`]), and what drivers do otherwise ([`quirks`]).
//!
//! [`Edge::open`] does all that is needed, in this order: check the machine and the interfaces, load the program, attach
//! it (from here on packets that may need forwarding are dropped: it fails closed), bind a socket to every receive queue,
//! fill the rings, give the program the sockets. [`Edge::take_worker`] then hands each worker its queues and its share of
//! the frames. Dropping the `Edge` takes the program off the interfaces; the sockets close with the workers' queues.
//!
//! Everything happens in the network namespace of the thread that calls [`Edge::open`]; [`Punter`]s too must be used there.
//!
//! This is one of the two places where `unsafe` may stand (the other is `arch`), and the only one that knows xsk-rs and
//! libbpf-rs. How the two crates' limits shape it: one umem for all sockets takes its mode from its first socket (so
//! zero-copy and copy never mix), that first socket can't be bound again (so it is an idle one on `lo`, where copying
//! makes that possible), and frames are named by our own numbers, never by an address that comes back.
#![allow(unsafe_code)]

mod abi;
mod chain;
mod error;
mod ethtool;
mod fragment;
mod interface;
mod netdev;
mod port;
mod program;
mod punt;
pub mod quirks;
mod socket;
mod umem;

pub use abi::{LOCAL_MAX, MAX_PUNTERS, MAX_QUEUES, PUNT_BATCH, PUNT_BYTES, Steer};
pub use chain::frames_needed;
pub use error::EdgeError;
pub use ethtool::{
    Channels, DriverInfo, Ethtool, FIELD_DESTINATION, FIELD_DESTINATION_PORT, FIELD_SOURCE, FIELD_SOURCE_PORT,
    FIELDS_ADDRESSES, FIELDS_ALL, Feature, FlowType, HASH_CRC32, HASH_TOEPLITZ, HASH_XOR, HashFields, Rings, Rss,
    RssChange, SYMMETRIC_OR_XOR, SYMMETRIC_XOR,
};
pub use interface::{Interface, ifindex};
pub use netdev::{Netdev, RxQueue, XdpFeatures};
pub use port::{LAYER2, PortReport};
pub use program::{
    AttachedProgram, Attachment, Hook, PROGRAM_NAME, Program, Steering, attached_program, detach_program,
};
pub use punt::{PuntCounters, Punter};
pub use socket::{BusyPoll, RingFill, RingStatistics, XdpQueue};
pub use umem::{HEADROOM, Umem};

use crate::device::{FramePool, PortId};
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::{fmt, io};

/// How packets get from the driver to user space and back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// The best that works, in the order below.
    Auto,
    /// The driver receives into and sends from our memory.
    ZeroCopy,
    /// The program runs in the driver; the kernel copies each packet once each way.
    Copy,
    /// The program runs behind the driver, on skbs. Slow; works with every driver.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Auto => "auto",
            Mode::ZeroCopy => "zero-copy",
            Mode::Copy => "copy",
            Mode::Generic => "generic",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        [Mode::Auto, Mode::ZeroCopy, Mode::Copy, Mode::Generic]
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| format!("`{text}` is none of auto, zero-copy, copy, generic"))
    }
}

/// What [`Edge::open`] is to open. `EdgeConfig::new` has good values for all but the interfaces.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// The interfaces' names, by [`PortId`].
    pub ports: [String; PortId::COUNT],
    /// How many workers will share the queues. Queue q of each port goes to worker q modulo `workers`.
    pub workers: usize,
    /// How packets are to move.
    pub mode: Mode,
    /// Bytes of a frame: 2048, 4096, or 0 to choose by the ports' drivers and MTUs.
    pub frame_size: u32,
    /// Frames for each worker; 0 for as many as its rings can hold, and half as many more. Rounded up to whole huge pages.
    pub frames: u32,
    /// Entries of the receive and fill rings of each queue, a power of two.
    pub rx_ring: u32,
    /// Entries of the transmit and completion rings of each queue, a power of two.
    pub tx_ring: u32,
    /// Preferred busy polling, where the kernel takes it.
    pub busy_poll: Option<BusyPoll>,
}

impl EdgeConfig {
    /// One worker between `lan` and `wan`, the best mode, 2048 entries a ring.
    pub fn new(lan: &str, wan: &str) -> EdgeConfig {
        EdgeConfig {
            ports: [lan.to_string(), wan.to_string()],
            workers: 1,
            mode: Mode::Auto,
            frame_size: 0,
            frames: 0,
            rx_ring: 2048,
            tx_ring: 2048,
            busy_poll: None,
        }
    }
}

/// What [`Edge::open`] got, for the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EdgeReport {
    /// The mode of the sockets: [`Mode::ZeroCopy`], [`Mode::Copy`], or [`Mode::Generic`] when a port has the generic hook.
    pub mode: Mode,
    /// One sentence for each better mode, why it is not in use. Empty when the best one, or the one asked for, is.
    pub refused: Vec<String>,
    /// The ports.
    pub ports: [PortReport; PortId::COUNT],
    /// Whether packet memory lies on huge pages.
    pub huge_pages: bool,
    /// Bytes of a frame.
    pub frame_size: u32,
    /// The longest packet that is taken in several frames, in bytes with its Ethernet header; 0 where one frame is enough.
    pub large: u32,
    /// Frames in all.
    pub frames: u32,
    /// Whether the umem hangs on an idle socket on `lo`; if not, a port that is deleted ends both.
    pub anchored: bool,
    /// Whether every socket took preferred busy polling.
    pub busy_poll: bool,
    /// Other things worth a line in the log: sentences.
    pub notes: Vec<String>,
    /// What will be lost, as sentences.
    pub warnings: Vec<String>,
}

impl EdgeReport {
    /// The largest MTU that fits what packets are received into.
    pub fn longest_mtu(&self) -> u32 {
        let room = if self.large == 0 { self.frame_size - HEADROOM as u32 } else { self.large };
        room - LAYER2
    }
}

/// What one worker owns: its queues of each port (at least one; the first is the one to transmit on) and the frames that
/// are not in their rings.
#[derive(Debug)]
pub struct WorkerQueues {
    /// The queues, by [`PortId`].
    pub ports: [Vec<XdpQueue>; PortId::COUNT],
    /// Free frames.
    pub pool: FramePool,
}

/// The open edge. See the module's head.
#[derive(Debug)]
pub struct Edge {
    // First the program goes off the interfaces, then everything else may.
    attachments: Vec<Attachment>,
    program: Program,
    umem: Arc<Umem>,
    workers: Vec<Option<WorkerQueues>>,
    interfaces: [Interface; PortId::COUNT],
    report: EdgeReport,
}

impl Edge {
    /// Opens both ports. See the module's head for the order of things.
    ///
    /// # Errors
    /// See [`EdgeError`]. Whatever was done until then is undone.
    pub fn open(config: &EdgeConfig) -> Result<Edge, EdgeError> {
        check_machine()?;
        let interfaces = port::interfaces(config)?;
        port::check_queues(config, &interfaces)?;
        let large = port::large(config, &interfaces);
        let program = Program::load(config.workers, large.is_some())?;
        for (port, interface) in PortId::ALL.into_iter().zip(&interfaces) {
            program.set_port(port, interface.ifindex, interface.mac);
        }
        let opened = port::open(config, &interfaces, &program, large)?;
        let interfaces = opened.interfaces().clone();
        let report = opened.report(config);
        let workers = opened.share(config, &program)?;
        Ok(Edge {
            attachments: workers.attachments,
            program,
            umem: workers.umem,
            workers: workers.queues.into_iter().map(Some).collect(),
            interfaces,
            report,
        })
    }

    /// What was opened, and what the kernel refused.
    pub fn report(&self) -> &EdgeReport {
        &self.report
    }

    /// The interfaces as they were when they were opened, by [`PortId`].
    pub fn interfaces(&self) -> &[Interface; PortId::COUNT] {
        &self.interfaces
    }

    /// The packet memory.
    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    /// The queues and frames of worker `worker`; `None` when they were taken before or there is no such worker.
    pub fn take_worker(&mut self, worker: usize) -> Option<WorkerQueues> {
        self.workers.get_mut(worker)?.take()
    }

    /// The punter of worker `worker`, for use in this network namespace.
    ///
    /// # Errors
    /// When the kernel is out of memory or descriptors.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn punter(&self, worker: usize) -> Result<Punter, EdgeError> {
        assert!(worker < self.workers.len(), "there is no worker {worker}");
        Punter::new(&self.program, worker, self.interfaces.each_ref().map(|interface| interface.ifindex))
    }

    /// Replaces the set of addresses that are the host's own, of all its interfaces.
    ///
    /// # Errors
    /// When there are more than [`LOCAL_MAX`] of a family, or the kernel is out of memory.
    pub fn set_local_addresses(&self, addresses: &[IpAddr]) -> Result<(), EdgeError> {
        self.program.set_local_addresses(addresses)
    }

    /// A port's hardware address has changed.
    pub fn set_mac(&self, port: PortId, mac: [u8; 6]) {
        self.program.set_mac(port, mac);
    }

    /// Tells whether a port has no IPv4 address: then the answer of a DHCP server to the address it offers is the host's.
    pub fn set_addressless(&self, port: PortId, addressless: bool) {
        self.program.set_addressless(port, addressless);
    }

    /// For telling the program of rules that translate.
    ///
    /// # Errors
    /// When the kernel is out of memory.
    pub fn steering(&self) -> Result<Steering, EdgeError> {
        Steering::new(&self.program).map_err(|error| EdgeError::system("map the XDP program's configuration", error))
    }

    /// How many frames of `port` the program has steered where.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn steered(&self, port: PortId) -> io::Result<Vec<(Steer, u64)>> {
        self.program.steered(port)
    }

    /// Takes the program off the interfaces now: packets are the kernel's again. The workers may still run: their queues go quiet.
    pub fn detach(&mut self) {
        self.umem.retire();
        self.attachments.clear();
    }
}

/// What this process lacks of the capabilities the edge needs. `CAP_SYS_ADMIN` stands in for those of BPF.
fn missing_capabilities() -> Vec<&'static str> {
    const NEEDED: [(&str, u32); 4] = [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    const SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()) else {
        return Vec::new(); // no /proc: let the kernel say it
    };
    let has = |bit: u32| effective >> bit & 1 == 1;
    NEEDED.into_iter().filter(|(_, bit)| !(has(*bit) || *bit > 13 && has(SYS_ADMIN))).map(|(name, _)| name).collect()
}

fn check_machine() -> Result<(), EdgeError> {
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return Err(EdgeError::Privilege { what: format!("this process lacks {}", missing.join(", ")) });
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(EdgeError::NoBtf);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
