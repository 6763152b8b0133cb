//! [`XdpQueue`]: one AF_XDP socket on one queue of one port, with its four rings, as a [`Device`].
//!
//! Life: bound by [`super::Edge::open`], used by one worker, closed when dropped (frames that are in its rings then are
//! lost to the process: the kernel may still have them in hand). A link that goes down and comes back needs nothing; an
//! interface that is deleted is told by [`Device::kick`] and [`XdpQueue::alive`], once and for all.
//!
//! No call blocks. The kernel is entered from `kick` only, and only when a ring asks for it (need_wakeup), something waits
//! to be sent, or preferred busy polling is on, where the socket's own calls are what drives the driver.
//!
//! Where an MTU is larger than a frame (`large`), a packet may be several descriptors each way; see [`super::chain`]. A queue
//! without that has loops of its own, which do not look for it.

use super::chain::{Chain, scatter};
use super::umem::{Owner, Umem};
use super::{EdgeError, Mode};
use crate::device::{Device, Frame, FramePool, PortId, QueueStatistics};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue};

/// Descriptors moved between a ring and us at a time.
const CHUNK: usize = 64;
/// Kicks in a row that send nothing of what waits, until it is tried without preferred busy polling, or with it again.
const KICKS_IN_VAIN: u32 = 64;

const SOL_XDP: libc::c_int = 283;
const XDP_OPTIONS: libc::c_int = 8;
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
const XDP_OPTIONS_ZEROCOPY: u32 = 1;
const SO_BUSY_POLL: libc::c_int = 46;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// Preferred busy polling, for drivers and kernels that know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusyPoll {
    /// `SO_BUSY_POLL`, in microseconds.
    pub micros: u32,
    /// `SO_BUSY_POLL_BUDGET`, in packets.
    pub budget: u32,
}

impl Default for BusyPoll {
    fn default() -> BusyPoll {
        BusyPoll { micros: 20, budget: 256 }
    }
}

/// How a socket is to be bound.
#[derive(Clone, Debug)]
pub(super) struct Binding<'a> {
    pub port: PortId,
    pub name: &'a str,
    pub queue: u32,
    /// The socket's own number, for the frame table.
    pub number: u16,
    /// Whether it is the first socket on its umem, which alone may say the mode.
    pub first: Option<Mode>,
    /// Whether packets may be longer than a frame.
    pub large: bool,
    pub rx_size: u32,
    pub tx_size: u32,
    pub busy_poll: Option<BusyPoll>,
}

/// `XDP_STATISTICS` of one socket, since it was bound. Packets, except where said.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RingStatistics {
    /// Dropped on receive for other reasons (too long for a frame, mostly).
    pub rx_dropped: u64,
    /// Descriptors in the fill ring that the kernel refused.
    pub rx_invalid_descs: u64,
    /// Descriptors in the transmit ring that the kernel refused.
    pub tx_invalid_descs: u64,
    /// Dropped on receive because the receive ring was full.
    pub rx_ring_full: u64,
    /// Times the kernel wanted a frame to receive into and found none.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the kernel looked for something to send and found nothing. Harmless.
    pub tx_ring_empty_descs: u64,
}

/// Where the frames of one socket are. `filling + sending + held elsewhere` is constant over all sockets.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RingFill {
    /// Frames lent to the kernel for receiving.
    pub filling: usize,
    /// Frames lent to the kernel for sending.
    pub sending: usize,
}

/// One AF_XDP socket. See the module's head.
#[derive(Debug)]
pub struct XdpQueue {
    // The rings come first: the socket closes before the umem's last reference goes.
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    umem: Arc<Umem>,
    scratch: Box<[FrameDesc; CHUNK]>,
    port: PortId,
    queue: u32,
    number: u16,
    name: String,
    lent: RingFill,
    tx_size: u32,
    zero_copy: bool,
    busy_poll: bool,
    /// For packets of several frames, where there may be some.
    chain: Option<Chain>,
    /// The frames of a packet that is being sent, between two lines of code.
    parts: Vec<Frame>,
    /// Whether busy polling is preferred just now: see [`XdpQueue::change_preference`].
    preferred: bool,
    /// Kicks that sent nothing, since one did.
    in_vain: u32,
    gone: bool,
    wakeups: u64,
}

impl XdpQueue {
    /// Binds a socket, once: the caller retries.
    pub(super) fn bind(umem: &Arc<Umem>, binding: &Binding<'_>) -> Result<XdpQueue, io::Error> {
        let size = |entries| QueueSize::new(entries).map_err(io::Error::other);
        let flags = match binding.first {
            Some(mode) => first_flags(mode, binding.large),
            // A socket that shares a umem takes all this from the umem's first; naming any is an error.
            None => BindFlags::empty(),
        };
        let config = SocketConfig::builder()
            .rx_queue_size(size(binding.rx_size)?)
            .tx_queue_size(size(binding.tx_size)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags)
            .build();
        let (tx, rx, fill, completion) = bind(umem, config, binding.name, binding.queue)?;
        let fd = rx.fd().as_raw_fd();
        if binding.first.is_some() {
            umem.own_fd(fd);
        }
        // Newer kernels send more than 32 frames a call when told to; older ones are kicked several times instead.
        let _ = set_option(fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, binding.tx_size);
        let busy_poll = binding.busy_poll.is_some_and(|busy_poll| set_busy_poll(fd, busy_poll));
        let zero_copy = get_option(fd, SOL_XDP, XDP_OPTIONS).is_ok_and(|flags| flags & XDP_OPTIONS_ZEROCOPY != 0);
        Ok(XdpQueue {
            rx,
            tx,
            fill,
            completion,
            umem: umem.clone(),
            scratch: Box::new([FrameDesc::default(); CHUNK]),
            port: binding.port,
            queue: binding.queue,
            number: binding.number,
            name: binding.name.to_string(),
            lent: RingFill::default(),
            tx_size: binding.tx_size,
            zero_copy,
            busy_poll,
            chain: binding.large.then(Chain::default),
            parts: Vec::new(),
            preferred: busy_poll,
            in_vain: 0,
            gone: false,
            wakeups: 0,
        })
    }

    /// The port it is of.
    pub fn port(&self) -> PortId {
        self.port
    }

    /// The port's queue it is bound to.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// The interface's name when it was bound.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the driver moves packets without copying (`XDP_OPTIONS_ZEROCOPY`).
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Whether the kernel took preferred busy polling.
    pub fn busy_poll(&self) -> bool {
        self.busy_poll
    }

    /// The socket, for `poll(2)`: readable when there are packets to receive. A deleted interface wakes nobody: ask
    /// [`XdpQueue::alive`] from time to time.
    pub fn fd(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }

    /// Frames this socket has lent to the kernel.
    pub fn lent(&self) -> RingFill {
        self.lent
    }

    /// Large frames it holds: one while it has a part of a packet.
    pub fn large_held(&self) -> usize {
        usize::from(self.chain.as_ref().is_some_and(Chain::holds))
    }

    /// Whether packets wait to be received, without receiving them.
    pub fn readable(&mut self) -> bool {
        self.rx.nb_avail(1) > 0
    }

    /// `XDP_STATISTICS`.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn statistics(&self) -> io::Result<RingStatistics> {
        let statistics = self.rx.fd().xdp_statistics()?;
        Ok(RingStatistics {
            rx_dropped: statistics.rx_dropped(),
            rx_invalid_descs: statistics.rx_invalid_descs(),
            tx_invalid_descs: statistics.tx_invalid_descs(),
            rx_ring_full: statistics.rx_ring_full(),
            rx_fill_ring_empty_descs: statistics.rx_fill_ring_empty_descs(),
            tx_ring_empty_descs: statistics.tx_ring_empty_descs(),
        })
    }

    /// Fails, now and ever after, when the interface has been deleted (or moved to another network namespace). One cheap
    /// system call: ask about ten times a second. A link that is down is alive.
    ///
    /// # Errors
    /// `ENODEV`, with a sentence.
    pub fn alive(&mut self) -> io::Result<()> {
        // The kernel says ENETDOWN here once, when it unregisters the device; a mere link down says nothing.
        if !self.gone && get_option(self.fd(), libc::SOL_SOCKET, libc::SO_ERROR)? != 0 {
            self.gone = true;
        }
        if self.gone { Err(self.gone_error()) } else { Ok(()) }
    }

    fn gone_error(&self) -> io::Error {
        let what = format!("interface {} (the {:?} port) is gone: deleted, or moved away", self.name, self.port);
        io::Error::new(io::ErrorKind::NotFound, what)
    }

    /// Has the kernel send what is in the transmit ring.
    fn kick_transmit(&mut self) -> io::Result<()> {
        if !(self.busy_poll && self.zero_copy) {
            return self.send();
        }
        let waiting = self.unsent();
        self.send()?;
        let still = self.unsent();
        self.in_vain = if still > 0 && still == waiting { self.in_vain + 1 } else { 0 };
        if self.in_vain >= KICKS_IN_VAIN {
            self.in_vain = 0;
            self.change_preference();
        }
        Ok(())
    }

    /// Frames in the transmit ring that the kernel has not taken.
    fn unsent(&mut self) -> u32 {
        self.tx_size - self.tx.nb_free(self.tx_size).min(self.tx_size)
    }

    /// In zero-copy mode, with busy polling preferred, the kernel's sendmsg polls the receiving side and leaves it at that
    /// (`xsk_no_wakeup`): it relies on drivers that send from the same NAPI. virtio_net does not, nor igb unless it pairs its
    /// queues, and there nothing would ever leave. So where frames go on waiting the preference is taken back: the socket
    /// still polls, and wakes the driver too. (If this does not help either, a link may be down: the next call asks again.)
    fn change_preference(&mut self) {
        let wanted = !self.preferred;
        if set_option(self.fd(), libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, u32::from(wanted)).is_ok() {
            self.preferred = wanted;
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let mut waiting = self.unsent();
        loop {
            self.wakeups += 1;
            // SAFETY: an empty message; no memory is passed.
            let sent = unsafe { libc::sendto(self.fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // The kernel stopped at its budget (before Linux 6.17 that is 32 frames), or the completion ring is full.
                Some(libc::EAGAIN) => {
                    let before = std::mem::replace(&mut waiting, self.unsent());
                    if waiting == 0 || waiting >= before {
                        return Ok(());
                    }
                }
                Some(libc::ENOBUFS | libc::ENOMEM | libc::EBUSY | libc::EINTR) => return Ok(()),
                // The link is down (the frames wait in the ring and leave when it is up again), or the device is gone.
                Some(libc::ENETDOWN) => return self.alive(),
                _ => return self.fail(error),
            }
        }
    }

    /// Has the kernel look at the fill ring, and, when busy polling, poll the driver.
    fn kick_receive(&mut self) -> io::Result<()> {
        self.wakeups += 1;
        // SAFETY: no buffer is passed; AF_XDP's recvmsg moves no bytes.
        let received = unsafe {
            let (none, nowhere) = (std::ptr::null_mut(), std::ptr::null_mut());
            libc::recvfrom(self.fd(), none, 0, libc::MSG_DONTWAIT, nowhere, std::ptr::null_mut())
        };
        if received >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EBUSY | libc::EINTR) => Ok(()),
            Some(libc::ENETDOWN) => self.alive(),
            // A kernel before 5.11 has no recvmsg here; poll(2) does the same.
            Some(libc::EOPNOTSUPP) => self.rx.poll(0).map(|_| ()),
            _ => self.fail(error),
        }
    }

    fn fail(&mut self, error: io::Error) -> io::Result<()> {
        // In zero-copy mode a driver without the program is not to be woken (igb says EINVAL, ixgbe ENXIO): that is no failure
        // of a port that is just being given back.
        if self.umem.is_retiring() {
            return Ok(());
        }
        match error.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV | libc::EBADF) => {
                self.gone = true;
                Err(self.gone_error())
            }
            _ => Err(io::Error::new(error.kind(), format!("queue {} of {}: {error}", self.queue, self.name))),
        }
    }
}

/// Packets of one frame each: the usual case.
impl XdpQueue {
    fn receive_frames(&mut self, into: &mut Vec<Frame>, max: usize) -> usize {
        let mut received = 0;
        while received < max {
            let chunk = CHUNK.min(max - received);
            // SAFETY: the descriptors are overwritten; what they say is checked by `give_back` before it is used.
            let taken = unsafe { self.rx.consume(&mut self.scratch[..chunk]) };
            let from = Owner::Fill(self.number);
            into.extend(self.scratch[..taken].iter().map(|desc| self.umem.give_back(desc, from)));
            received += taken;
            if taken < chunk {
                break;
            }
        }
        assert!(received <= self.lent.filling, "received {received} frames of {} lent", self.lent.filling);
        self.lent.filling -= received;
        received
    }

    fn transmit_frames(&mut self, queue: &mut VecDeque<Frame>) -> usize {
        let mut room = self.tx.nb_free(queue.len().min(u32::MAX as usize) as u32) as usize;
        let mut sent = 0;
        while room > 0 && !queue.is_empty() {
            let chunk = CHUNK.min(room).min(queue.len());
            for (desc, frame) in self.scratch.iter_mut().zip(queue.drain(..chunk)) {
                *desc = self.umem.lend(frame, Owner::Transmit(self.number));
            }
            // SAFETY: the frames are of this umem and their tokens have ended.
            let produced = unsafe { self.tx.produce(&self.scratch[..chunk]) };
            assert!(produced == chunk, "the transmit ring took {produced} of {chunk} frames it said it had room for");
            room = room.saturating_sub(chunk);
            sent += chunk;
        }
        self.lent.sending += sent;
        sent
    }
}

/// Packets of one or more frames.
impl XdpQueue {
    fn receive_chains(&mut self, chain: &mut Chain, into: &mut Vec<Frame>, max: usize, pool: &mut FramePool) -> usize {
        let (before, mut received) = (into.len(), 0);
        while into.len() - before < max {
            let chunk = CHUNK.min(max - (into.len() - before));
            // SAFETY: the descriptors are overwritten; what they say is checked by `give_back` before it is used.
            let taken = unsafe { self.rx.consume(&mut self.scratch[..chunk]) };
            for desc in &self.scratch[..taken] {
                let part = self.umem.give_back(desc, Owner::Fill(self.number));
                into.extend(chain.take(part, desc.has_more_frames(), pool));
            }
            received += taken;
            if taken < chunk {
                break;
            }
        }
        assert!(received <= self.lent.filling, "received {received} frames of {} lent", self.lent.filling);
        self.lent.filling -= received;
        into.len() - before
    }

    fn transmit_chains(&mut self, queue: &mut VecDeque<Frame>, pool: &mut FramePool) -> usize {
        let mut sent = 0;
        let mut room = self.tx.nb_free(self.tx_size) as usize;
        loop {
            let mut filled = 0;
            while let Some(frame) = queue.pop_front() {
                // All frames of a packet or none, so that the kernel never sees half a packet.
                if let Err(frame) = self.take_apart(frame, CHUNK.min(room) - filled, pool) {
                    queue.push_front(frame);
                    break;
                }
                let last = self.parts.len() - 1;
                for (at, part) in self.parts.drain(..).enumerate() {
                    self.scratch[filled] = self.umem.lend_part(part, Owner::Transmit(self.number), at < last);
                    filled += 1;
                }
                sent += 1;
            }
            if filled == 0 {
                return sent;
            }
            // SAFETY: the frames are of this umem and their tokens have ended.
            let produced = unsafe { self.tx.produce(&self.scratch[..filled]) };
            assert!(produced == filled, "the transmit ring took {produced} of {filled} frames it said it had room for");
            self.lent.sending += filled;
            room -= filled;
        }
    }

    /// Puts the packet into `parts`, if there is room for all of it and the pool has enough frames; else it comes back.
    fn take_apart(&mut self, frame: Frame, room: usize, pool: &mut FramePool) -> Result<(), Frame> {
        if room == 0 {
            return Err(frame);
        }
        if !frame.is_large() {
            self.parts.push(frame);
            return Ok(());
        }
        let least = frame.len().div_ceil(self.umem.frame_size());
        if least > room || !scatter(frame.bytes(), pool, &mut self.parts) {
            return Err(frame);
        }
        if self.parts.len() > room {
            self.parts.drain(..).for_each(|part| pool.put(part));
            return Err(frame);
        }
        pool.put(frame);
        Ok(())
    }
}

impl Device for XdpQueue {
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize, pool: &mut FramePool) -> usize {
        match self.chain.take() {
            None => self.receive_frames(into, max),
            Some(mut chain) => {
                let count = self.receive_chains(&mut chain, into, max, pool);
                self.chain = Some(chain);
                count
            }
        }
    }

    fn transmit(&mut self, queue: &mut VecDeque<Frame>, pool: &mut FramePool) -> usize {
        if self.chain.is_some() { self.transmit_chains(queue, pool) } else { self.transmit_frames(queue) }
    }

    fn kick(&mut self) -> io::Result<()> {
        if self.gone {
            return Err(self.gone_error());
        }
        if self.lent.sending > 0 && self.tx.needs_wakeup() {
            self.kick_transmit()?;
        }
        if self.busy_poll || self.fill.needs_wakeup() {
            self.kick_receive()?;
        }
        Ok(())
    }

    fn reclaim(&mut self, pool: &mut FramePool) -> usize {
        let mut reclaimed = 0;
        while reclaimed < self.lent.sending {
            // SAFETY: the descriptors are overwritten; what they say is checked by `give_back` before it is used.
            let taken = unsafe { self.completion.consume(&mut self.scratch[..]) };
            for desc in &self.scratch[..taken] {
                pool.put(self.umem.give_back(desc, Owner::Transmit(self.number)));
            }
            reclaimed += taken;
            if taken < CHUNK {
                break;
            }
        }
        self.lent.sending -= reclaimed;
        reclaimed
    }

    fn refill(&mut self, pool: &mut FramePool) -> usize {
        let mut room = self.fill.nb_free(pool.len().min(u32::MAX as usize) as u32) as usize;
        let mut given = 0;
        while room > 0 {
            let mut chunk = 0;
            while chunk < CHUNK.min(room)
                && let Some(frame) = pool.take()
            {
                self.scratch[chunk] = self.umem.lend(frame, Owner::Fill(self.number));
                chunk += 1;
            }
            if chunk == 0 {
                break;
            }
            // SAFETY: the frames are of this umem and their tokens have ended.
            let produced = unsafe { self.fill.produce(&self.scratch[..chunk]) };
            assert!(produced == chunk, "the fill ring took {produced} of {chunk} frames it said it had room for");
            room -= chunk;
            given += chunk;
        }
        self.lent.filling += given;
        given
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the socket stays open as long as the ring that is borrowed here.
        Some(unsafe { BorrowedFd::borrow_raw(self.fd()) })
    }

    fn statistics(&self) -> QueueStatistics {
        let kernel = XdpQueue::statistics(self).unwrap_or_default();
        QueueStatistics {
            queue: self.queue,
            wakeups: self.wakeups,
            rx_no_large_frame: self.chain.as_ref().map_or(0, |chain| chain.no_large_frame),
            rx_too_long: self.chain.as_ref().map_or(0, |chain| chain.too_long),
            rx_dropped: kernel.rx_dropped,
            rx_invalid_descs: kernel.rx_invalid_descs,
            tx_invalid_descs: kernel.tx_invalid_descs,
            rx_ring_full: kernel.rx_ring_full,
            rx_fill_ring_empty_descs: kernel.rx_fill_ring_empty_descs,
            tx_ring_empty_descs: kernel.tx_ring_empty_descs,
        }
    }
}

/// The idle socket that a umem is anchored to. libxdp gives the umem's own descriptor to the first socket bound on it and
/// keeps it open with the umem; were that a port's queue, the queue could not be bound again, and deleting the interface
/// would end the umem for the other port too. Held, unused, by the umem.
#[derive(Debug)]
pub(super) struct Anchor {
    _rings: (TxQueue, RxQueue, FillQueue, CompQueue),
}

impl Anchor {
    /// Binds it, in copy mode, to the loopback's only queue: for one umem in a network namespace at a time.
    pub(super) fn bind(umem: &Umem, large: bool) -> io::Result<Anchor> {
        let small = QueueSize::new(64).map_err(io::Error::other)?;
        let config = SocketConfig::builder()
            .rx_queue_size(small)
            .tx_queue_size(small)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(first_flags(Mode::Copy, large))
            .build();
        let (tx, rx, fill, completion) = bind(umem, config, "lo", 0)?;
        umem.own_fd(rx.fd().as_raw_fd());
        Ok(Anchor { _rings: (tx, rx, fill, completion) })
    }
}

/// What the first socket on a umem says for all.
fn first_flags(mode: Mode, large: bool) -> BindFlags {
    let mode = if mode == Mode::ZeroCopy { BindFlags::XDP_ZEROCOPY } else { BindFlags::XDP_COPY };
    let large = if large { BindFlags::XDP_USE_SG } else { BindFlags::empty() };
    mode | large | BindFlags::XDP_USE_NEED_WAKEUP
}

fn bind(
    umem: &Umem,
    config: SocketConfig,
    name: &str,
    queue: u32,
) -> io::Result<(TxQueue, RxQueue, FillQueue, CompQueue)> {
    let interface: Interface = name.parse().map_err(io::Error::other)?;
    // SAFETY: the configuration has INHIBIT_PROG_LOAD set, which is what the function asks for.
    let (tx, rx, rings) = unsafe { Socket::new(config, umem.inner(), &interface, queue) }.map_err(|error| {
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        let number = source.and_then(io::Error::raw_os_error);
        number.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
    })?;
    // A second socket on a queue of one umem would share the first one's rings: to us the queue is busy.
    let (fill, completion) = rings.ok_or_else(|| io::Error::from_raw_os_error(libc::EBUSY))?;
    Ok((tx, rx, fill, completion))
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: u32) -> io::Result<()> {
    let size = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the value is a u32 that lives through the call, and its size is given.
    match unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(&value).cast(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn get_option(fd: RawFd, level: libc::c_int, name: libc::c_int) -> io::Result<u32> {
    let (mut value, mut size) = (0u32, size_of::<u32>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `size` bytes to a u32 that lives through the call.
    match unsafe { libc::getsockopt(fd, level, name, std::ptr::from_mut(&mut value).cast(), &raw mut size) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_busy_poll(fd: RawFd, busy_poll: BusyPoll) -> bool {
    set_option(fd, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1)
        .and_then(|()| set_option(fd, libc::SOL_SOCKET, SO_BUSY_POLL, busy_poll.micros))
        .and_then(|()| set_option(fd, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, busy_poll.budget))
        .is_ok()
}

/// Calls `bind` again and again for a while as long as it says busy: the kernel frees a queue late.
pub(super) fn patiently<T>(patience: Duration, mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match bind() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other,
        }
    }
}

/// What went wrong when binding, when it is not about the mode.
pub(super) fn bind_error(binding: &Binding<'_>, error: io::Error) -> EdgeError {
    let name = binding.name.to_string();
    match error.raw_os_error() {
        Some(libc::EBUSY) => EdgeError::Busy { name, queue: binding.queue },
        Some(libc::ENETDOWN) => EdgeError::Down { name },
        Some(libc::ENODEV | libc::ENXIO) => EdgeError::NoInterface { name },
        _ => EdgeError::system(format!("bind an AF_XDP socket to queue {} of {name}", binding.queue), error),
    }
}
