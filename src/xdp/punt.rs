//! [`Punter`]: gives frames back to the kernel as if their interface had just received them.
//!
//! `BPF_PROG_RUN` with live frames runs the XDP program on frames that user space brings, with an interface as their
//! origin; on XDP_PASS they enter the host's stack. One call brings the same bytes many times over, so the program itself
//! swaps them: up to [`PUNT_BATCH`] frames are staged in a map, and each run takes the next. The program is the one that is
//! attached to the ports (it knows such a frame by its metadata), because the kernel makes a call with several runs wait for
//! tens of milliseconds when its program is attached nowhere. On the generic hook a frame that the kernel was given comes to the
//! program once more, which then knows it by a seal behind it ([`Program::seal_punts`]), takes that off and lets it pass.
//!
//! Life: one for each worker, made by [`super::Edge::punter`]. `punt` stages, `flush` calls the kernel, which the worker does not
//! do for every burst. The call runs the host's receive path on the caller's core: 11 to 15 us for one frame, 0.5 to 1.2 us each
//! for 64 (the test `what_a_punt_costs` measures it). A run has room for one page; longer packets go in fragments
//! ([`super::fragment`]).

use super::EdgeError;
use super::abi::{Config, PUNT_BATCH, PUNT_BYTES, PUNT_MAGIC, PUNT_META, PUNT_RUN, PuntSlot};
use super::fragment;
use super::program::{Mapped, Program};
use crate::device::{Host, PortId};
use libbpf_rs::libbpf_sys;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Numbers for packets cut into fragments that a punter has: 64 punters share 16 bits.
const CUTS: usize = 1024;

/// What came of the frames that a punter was given, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PuntCounters {
    /// Handed to the kernel.
    pub punted: u64,
    /// Not taken: shorter than an Ethernet header, or longer than [`PUNT_BYTES`] and not to be cut into fragments.
    pub misfit: u64,
    /// The kernel refused the call.
    pub refused: u64,
}

/// Gives frames back to the kernel. See the module's head.
#[derive(Debug)]
pub struct Punter {
    program: OwnedFd,
    slots: Mapped,
    config: Mapped,
    number: usize,
    ifindex: [u32; PortId::COUNT],
    staged: usize,
    port: PortId,
    counters: PuntCounters,
    /// Packets that were cut into fragments.
    cut: usize,
    /// Losses that [`Host::flush`] has told of.
    told: u64,
}

impl Host for Punter {
    fn punt(&mut self, port: PortId, frame: &[u8]) {
        Punter::punt(self, port, frame);
    }

    fn flush(&mut self) -> u64 {
        Punter::flush(self);
        self.take_lost()
    }
}

impl Punter {
    /// Punter `number` of the program.
    pub(super) fn new(program: &Program, number: usize, ifindex: [u32; PortId::COUNT]) -> Result<Punter, EdgeError> {
        let failed = |error| EdgeError::system("prepare giving packets back to the kernel", error);
        // SAFETY: the descriptor is the program's own and stays open while it is duplicated.
        let fd = unsafe { BorrowedFd::borrow_raw(program.fd()) };
        let config = program.map_config().map_err(failed)?;
        let entries = libbpf_rs::MapCore::max_entries(program.punted()) as usize;
        assert!((number + 1) * PUNT_BATCH <= entries, "punter {number} has no slots");
        Ok(Punter {
            program: fd.try_clone_to_owned().map_err(failed)?,
            slots: Mapped::new(program.punted().as_fd(), entries * size_of::<PuntSlot>()).map_err(failed)?,
            config,
            number,
            ifindex,
            staged: 0,
            port: PortId::LAN,
            counters: PuntCounters::default(),
            cut: 0,
            told: 0,
        })
    }

    /// Stages a copy of `frame` (from its Ethernet header) as received on `port`. Hands over what is staged when it is
    /// of another port, or full. What is longer than [`PUNT_BYTES`] goes in fragments. Returns whether the frame was taken.
    pub fn punt(&mut self, port: PortId, frame: &[u8]) -> bool {
        if (14..=PUNT_BYTES).contains(&frame.len()) {
            self.stage(port, frame);
            return true;
        }
        // Workers that cut at the same time do not take each other's numbers.
        self.cut = (self.cut + 1) % CUTS;
        let taken =
            fragment::cut(frame, PUNT_BYTES, (self.number * CUTS + self.cut) as u16, |piece| self.stage(port, piece));
        self.counters.misfit += u64::from(!taken);
        taken
    }

    fn stage(&mut self, port: PortId, frame: &[u8]) {
        if self.staged == PUNT_BATCH || (self.staged > 0 && self.port != port) {
            self.flush();
        }
        self.port = port;
        let slot = (self.number * PUNT_BATCH + self.staged) * size_of::<PuntSlot>();
        self.slots.copy_in(slot + offset_of!(PuntSlot, bytes), frame);
        self.slots.store(slot + offset_of!(PuntSlot, length), frame.len() as u32);
        self.staged += 1;
    }

    /// Hands over what is staged. A frame that the kernel does not take is counted, nothing more: it was for the host,
    /// and the host loses packets when it can't receive.
    pub fn flush(&mut self) {
        if self.staged == 0 {
            return;
        }
        let staged = std::mem::take(&mut self.staged);
        match self.run(staged) {
            Ok(()) => self.counters.punted += staged as u64,
            Err(_) => self.counters.refused += staged as u64,
        }
    }

    /// What came of the frames so far.
    pub fn counters(&self) -> PuntCounters {
        self.counters
    }

    /// Frames that were not taken, of either kind, since the last call.
    fn take_lost(&mut self) -> u64 {
        let lost = self.counters.misfit + self.counters.refused;
        lost - std::mem::replace(&mut self.told, lost)
    }

    fn run(&mut self, frames: usize) -> io::Result<()> {
        let mut packet = [0u8; PUNT_META + PUNT_RUN];
        packet[..4].copy_from_slice(&PUNT_MAGIC.to_ne_bytes());
        packet[4..8].copy_from_slice(&(self.number as u32).to_ne_bytes());
        // The packet begins behind its metadata; the kernel gives it ours as its interface.
        let context = libbpf_sys::xdp_md {
            data: PUNT_META as u32,
            data_end: packet.len() as u32,
            ingress_ifindex: self.ifindex[self.port.index()],
            ..Default::default()
        };
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            data_in: packet.as_ptr().cast(),
            data_size_in: packet.len() as u32,
            ctx_in: std::ptr::from_ref(&context).cast(),
            ctx_size_in: size_of::<libbpf_sys::xdp_md>() as u32,
            repeat: frames as i32,
            flags: libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES,
            ..Default::default()
        };
        self.config.store(offset_of!(Config, punt_next) + self.number * size_of::<u32>(), 0u32);
        // SAFETY: packet and context live through the call, and their sizes are given.
        let result =
            unsafe { libbpf_sys::bpf_prog_test_run_opts(self.program.as_raw_fd(), std::ptr::from_mut(&mut options)) };
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }
}
