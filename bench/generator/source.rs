//! Packets from one core at a rate: [`Source`].
//!
//! `BPF_PROG_RUN` runs a small XDP program on live frames that claim to come from an interface; it writes each packet and
//! answers XDP_TX, which sends it out there. The program also hangs on `lo`, in generic mode, as long as the value lives:
//! otherwise each call would wait tens of milliseconds for the kernel to change its XDP dispatcher.

use std::error::Error;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder, ProgramInput, Xdp, XdpFlags};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/generator.bpf.o"));
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
const LO: i32 = 1;

/// What the packets say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flows {
    /// Destination MAC.
    pub(crate) to: [u8; 6],
    /// Source MAC.
    pub(crate) from: [u8; 6],
    /// Source address of flow 0; every 32768 flows take the next.
    pub(crate) source: Ipv4Addr,
    /// Destination address.
    pub(crate) destination: Ipv4Addr,
    /// The first flow.
    pub(crate) first: u32,
    /// How many, one packet of each in turn.
    pub(crate) count: u32,
    /// Ports in no order: sources 1024 to 33791, destinations 1 to 49151 (RFC 4814 section 4.5).
    pub(crate) random_ports: bool,
}

/// When to stop, and how fast to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Packets each second; 0 for as many as go.
    pub(crate) rate: f64,
    /// Packets in all, at most.
    pub(crate) packets: u64,
    /// Time, at most.
    pub(crate) time: Duration,
    /// Packets back to back, at most.
    pub(crate) burst: u32,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Packets.
    pub(crate) packets: u64,
    /// Seconds it took.
    pub(crate) seconds: f64,
}

/// The program, loaded; see the file's head.
#[derive(Debug)]
pub(crate) struct Source {
    object: Object,
    ifindex: u32,
}

impl Source {
    /// Sends out of interface `dev` of this thread's network namespace.
    pub(crate) fn new(dev: &str) -> Result<Source, Box<dyn Error>> {
        let ifindex = xrouter::xdp::ifindex(dev).ok_or_else(|| format!("no interface {dev}"))?;
        let object = ObjectBuilder::default().name("generator")?.open_memory(OBJECT)?.load()?;
        let source = Source { object, ifindex };
        let program = source.object.progs().next().ok_or("the object has no program")?;
        Xdp::new(program.as_fd()).attach(LO, XdpFlags::SKB_MODE | XdpFlags::UPDATE_IF_NOEXIST)?;
        Ok(source)
    }

    /// From now on, these; the first of them is the next.
    pub(crate) fn set(&self, flows: &Flows) -> Result<(), Box<dyn Error>> {
        let mut bytes = Vec::with_capacity(32);
        bytes.extend(flows.to);
        bytes.extend(flows.from);
        bytes.extend(flows.source.octets());
        bytes.extend(flows.destination.octets());
        for word in [flows.first, flows.count.max(1), u32::from(flows.random_ports)] {
            bytes.extend(word.to_ne_bytes());
        }
        self.write(".data.config", &bytes)?;
        self.write(".data.next", &0u32.to_ne_bytes())
    }

    fn write(&self, map: &str, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
        let map = self.object.maps().find(|found| found.name() == map).ok_or("the object has no configuration")?;
        Ok(map.update(&0u32.to_ne_bytes(), bytes, MapFlags::ANY)?)
    }

    /// `count` frames of `size` bytes.
    fn run(&self, size: u32, count: u32) -> Result<(), Box<dyn Error>> {
        let program = self.object.progs_mut().next().ok_or("the object has no program")?;
        let packet = [0u8; 1514];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let words = [0, size, 0, self.ifindex, 0, 0];
        let mut context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(&packet[..size as usize]),
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            repeat: count,
            ..Default::default()
        };
        program.test_run(input)?;
        Ok(())
    }

    /// Sends frames of `sizes` (bytes without the checksum) in turn, changing with each burst.
    pub(crate) fn send(&self, pace: &Pace, sizes: &[u32]) -> Result<Sent, Box<dyn Error>> {
        let begin = Instant::now();
        let mut packets = 0;
        let mut sizes = sizes.iter().cycle();
        while packets < pace.packets && begin.elapsed() < pace.time {
            let due = match pace.rate > 0.0 {
                true => (begin.elapsed().as_secs_f64() * pace.rate) as u64,
                false => u64::MAX,
            };
            let late = due.min(pace.packets).saturating_sub(packets);
            if late < 64.min(pace.packets - packets) {
                // Not asleep: it would wake up 50 us late, and what is due by then would come back to back.
                std::hint::spin_loop();
                continue;
            }
            let burst = late.min(u64::from(pace.burst)) as u32;
            self.run(*sizes.next().ok_or("no size to send")?, burst)?;
            packets += u64::from(burst);
        }
        Ok(Sent { packets, seconds: begin.elapsed().as_secs_f64() })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(program) = self.object.progs().next() {
            let _ = Xdp::new(program.as_fd()).detach(LO, XdpFlags::SKB_MODE);
        }
    }
}
