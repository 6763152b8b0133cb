//! The seam: [`Frame`] and [`Device`]. Frames come and go through here and nowhere else.
//!
//! A [`Frame`] is a move-only token for one buffer. It is always in exactly one place: a [`FramePool`], a device's
//! fill ring, a batch, a transmit queue, a device's transmit or completion ring, or a neighbour's waiting queue. Whoever
//! holds the token holds the bytes, so two owners of one buffer cannot be written in safe code. A device that gives a
//! frame to the kernel consumes the token and makes it anew when the kernel gives the buffer back. Tokens are never
//! dropped on the floor: a frame nobody wants goes back to the pool, and the sum over all places stays constant.
//!
//! Where packets may be longer than a frame of the device's memory there are *large* frames, too: of ordinary memory, known by
//! their numbers ([`Frame::LARGE`]). A device puts a long packet together in one when it receives, and takes it apart when it
//! sends; in between it is a frame like others. The pool keeps the two kinds apart, and each kind has a sum of its own.

use core::fmt;
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

/// One of the router's ports. 0 is the LAN, 1 is the WAN.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u8);

impl PortId {
    /// The inside port (`--lan`).
    pub const LAN: PortId = PortId(0);
    /// The outside port (`--wan`).
    pub const WAN: PortId = PortId(1);
    /// How many ports there are.
    pub const COUNT: usize = 2;

    /// Both ports.
    pub const ALL: [PortId; PortId::COUNT] = [PortId::LAN, PortId::WAN];

    /// As an array index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "lan",
            1 => "wan",
            _ => "port?",
        })
    }
}

/// A buffer and the packet in it. Move-only; see the module's head.
pub struct Frame {
    buffer: &'static mut [u8],
    number: u32,
    start: u16,
    length: u16,
}

impl Frame {
    /// Numbers from here on are of large frames, which are of no device's memory.
    pub const LARGE: u32 = 1 << 31;

    /// The token for `buffer`, frame `number` of its memory. The packet is empty and starts at `start`.
    ///
    /// Holding the only reference to the buffer is what makes the token unique.
    ///
    /// # Panics
    /// When the buffer is larger than 64 KiB, or `start` lies outside it.
    pub fn new(number: u32, buffer: &'static mut [u8], start: usize) -> Frame {
        assert!(start <= buffer.len() && buffer.len() <= usize::from(u16::MAX) + 1, "frame start or size out of range");
        Frame { buffer, number, start: start as u16, length: 0 }
    }

    /// The number that the frame's memory knows it by.
    #[inline]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether it is a large frame; see the module's head.
    #[inline]
    pub fn is_large(&self) -> bool {
        self.number >= Frame::LARGE
    }

    /// Byte offset of the packet in the buffer.
    #[inline]
    pub fn start(&self) -> usize {
        usize::from(self.start)
    }

    /// Length of the packet in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.length)
    }

    /// Whether the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The longest packet that fits at the present start, in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.buffer.len() - usize::from(self.start)
    }

    /// Sets the packet's length.
    ///
    /// # Panics
    /// When it would reach beyond the buffer.
    #[inline]
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity(), "packet of {length} bytes does not fit its frame");
        self.length = length as u16;
    }

    /// The packet.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[usize::from(self.start)..usize::from(self.start) + usize::from(self.length)]
    }

    /// The packet, to change.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[usize::from(self.start)..usize::from(self.start) + usize::from(self.length)]
    }

    /// The packet and the room behind it, to change; the packet's length stays as it is.
    #[inline]
    pub fn room_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[usize::from(self.start)..]
    }

    /// Puts a copy of `packet` into the frame. For tests, the simulator and capture files; forwarding never copies.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn fill(&mut self, packet: &[u8]) {
        self.set_len(packet.len());
        self.bytes_mut().copy_from_slice(packet);
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame#{}[{}+{}]", self.number, self.start, self.length)
    }
}

/// Frames nobody uses just now. One per worker, shared by all its devices, so that a frame received on one port may be
/// sent on another and reused on either.
#[derive(Debug, Default)]
pub struct FramePool {
    free: Vec<Frame>,
    large: Vec<Frame>,
}

impl FramePool {
    /// An empty pool.
    pub fn new() -> FramePool {
        FramePool::default()
    }

    /// A pool of `count` frames of `size` bytes of ordinary memory that lives as long as the process: for tests, the
    /// simulator, capture files and benchmarks.
    pub fn in_memory(count: usize, size: usize) -> FramePool {
        let memory: &'static mut [u8] = Box::leak(vec![0u8; count * size].into_boxed_slice());
        let free = memory.chunks_exact_mut(size).enumerate().map(|(n, chunk)| Frame::new(n as u32, chunk, 0)).collect();
        FramePool { free, large: Vec::new() }
    }

    /// Adds `count` large frames of `size` bytes of ordinary memory that lives as long as the process. They get the numbers from
    /// `first` on, which the caller gives to no other large frame.
    ///
    /// # Panics
    /// When the size is 0 or over 64 KiB, or a number too high.
    pub fn add_large(&mut self, count: usize, size: usize, first: u32) {
        assert!(first as usize + count <= Frame::LARGE as usize, "large frame numbers run out");
        let numbers = Frame::LARGE + first..=u32::MAX;
        let memory: &'static mut [u8] = Box::leak(vec![0u8; count * size].into_boxed_slice());
        let frames = memory.chunks_exact_mut(size).zip(numbers).map(|(chunk, number)| Frame::new(number, chunk, 0));
        self.large.extend(frames);
    }

    /// A free frame, if there is one; never a large one.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    /// A free large frame, if there is one.
    pub fn take_large(&mut self) -> Option<Frame> {
        self.large.pop()
    }

    /// A frame comes back, of either kind.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        if frame.is_large() {
            self.large.push(frame);
        } else {
            self.free.push(frame);
        }
    }

    /// Frames free just now, without large ones.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Large frames free just now.
    pub fn large(&self) -> usize {
        self.large.len()
    }

    /// Whether no frame is free, large ones aside.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }
}

/// One end of one queue of one port. Single-threaded; a worker owns its devices.
///
/// Calls never block. A burst goes: `receive`, the core decides, `transmit`, `kick`, `reclaim`, `refill`.
pub trait Device {
    /// Appends up to `max` received packets to `into`, oldest first; returns how many. What is longer than the device's frames
    /// comes in a large frame from `pool`, which gets the device's own back at once.
    fn receive(&mut self, into: &mut Vec<Frame>, max: usize, pool: &mut FramePool) -> usize;

    /// Takes frames from the front of `queue` for sending, as many as there is room for; the rest stays. Returns how many.
    /// Large ones are copied to frames from `pool`, and go back there; they wait when it has too few.
    fn transmit(&mut self, queue: &mut VecDeque<Frame>, pool: &mut FramePool) -> usize;

    /// Tells the other side, where it has to be told, that there is something to send or room to receive. Once per burst.
    ///
    /// # Errors
    /// When the port is gone for good; what is passing (a full queue, a link that is down) is not an error.
    fn kick(&mut self) -> io::Result<()>;

    /// Moves every frame whose sending is over to `pool`; returns how many.
    fn reclaim(&mut self, pool: &mut FramePool) -> usize;

    /// Gives the device free frames to receive into, up to what it has room for; returns how many.
    fn refill(&mut self, pool: &mut FramePool) -> usize;

    /// What poll(2) can wait on for received packets, where there is such a thing.
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What the device and the kernel counted. May cost a system call; not for every burst.
    fn statistics(&self) -> QueueStatistics {
        QueueStatistics::default()
    }
}

/// What one queue's device and the kernel below it counted since it was opened. The last six are the kernel's
/// `struct xdp_statistics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatistics {
    /// The queue's number on its port.
    pub queue: u32,
    /// System calls made to start the kernel sending or receiving.
    pub wakeups: u64,
    /// Received packets longer than a frame that were dropped because no large frame was free.
    pub rx_no_large_frame: u64,
    /// Received packets that were dropped because they are longer than a large frame.
    pub rx_too_long: u64,
    /// Dropped for other reasons than an invalid descriptor.
    pub rx_dropped: u64,
    /// Dropped due to an invalid descriptor in the fill ring.
    pub rx_invalid_descs: u64,
    /// Dropped due to an invalid descriptor in the transmit ring.
    pub tx_invalid_descs: u64,
    /// Dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// The fill ring was empty when the driver wanted a buffer.
    pub rx_fill_ring_empty_descs: u64,
    /// The transmit ring was empty when the kernel looked (harmless: it counts idle kicks).
    pub tx_ring_empty_descs: u64,
}

/// The host's own network stack, as a place to hand packets to.
pub trait Host {
    /// Hands over a copy of `frame`, as if `port` had just received it; at the latest with the next `flush`.
    fn punt(&mut self, port: PortId, frame: &[u8]);

    /// Hands over what `punt` has kept back, to make one system call of several. Returns how many frames the host has not
    /// taken since the last call.
    fn flush(&mut self) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_holds_what_it_is_filled_with() {
        let mut pool = FramePool::in_memory(2, 64);
        let mut frame = pool.take().expect("two frames");
        frame.fill(b"hello");
        assert_eq!((frame.bytes(), frame.len(), pool.len()), (&b"hello"[..], 5, 1));
        pool.put(frame);
        assert_eq!(pool.len(), 2);
    }

    #[test]
    fn large_frames_are_kept_apart() {
        let mut pool = FramePool::in_memory(1, 64);
        pool.add_large(2, 9000, 0);
        pool.add_large(1, 9000, 2);
        assert_eq!((pool.len(), pool.large()), (1, 3));
        let (small, large) = (pool.take().expect("one"), pool.take_large().expect("three"));
        assert_eq!((small.is_large(), large.is_large(), large.number() - Frame::LARGE), (false, true, 2));
        assert_eq!((large.capacity(), pool.take().is_none()), (9000, true));
        pool.put(large);
        assert!(pool.is_empty());
        pool.put(small);
        assert_eq!((pool.len(), pool.large()), (1, 3));
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn frame_refuses_to_grow_beyond_its_buffer() {
        FramePool::in_memory(1, 64).take().expect("one frame").set_len(65);
    }
}
