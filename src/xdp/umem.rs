//! [`Umem`]: the memory that packets lie in, shared with the kernel, and who owns each frame of it.
//!
//! Life: mapped and registered with the kernel by [`Umem::new`]; once its sockets are bound, [`Umem::tokens`] makes one
//! [`Frame`] token for each frame. It lives until the last socket on it is gone, when its descriptor is closed. From the
//! making of the tokens on, the memory itself is never unmapped: a token is a `&'static mut [u8]` and may outlive every
//! socket.
//!
//! Invariants, asserted in release builds too: a frame is either *here* (exactly one token exists) or *lent* to the
//! kernel through one ring of one socket (no token exists). It is lent by consuming the token and comes back only
//! through the socket it was lent to. The kernel's word on which frame comes back is checked against this table before any
//! byte is touched.

use super::EdgeError;
use super::socket::Anchor;
use crate::device::Frame;
use std::cell::UnsafeCell;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use xsk_rs::FrameDesc;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};

/// Bytes that the kernel keeps free before a packet. `XDP_PACKET_HEADROOM`.
pub const HEADROOM: usize = 256;

/// The packet goes on in the next descriptor.
const XDP_PKT_CONTD: u32 = 1;

/// A frame's owner: user space (a token exists), or one ring of one socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// A token exists.
    Here,
    /// Lent for receiving, through the fill ring of this socket.
    Fill(u16),
    /// Lent for sending, through the transmit ring of this socket.
    Transmit(u16),
}

impl Owner {
    /// Most sockets there may be.
    pub(super) const SOCKETS: u16 = 1 << 14;

    fn code(self) -> u16 {
        match self {
            Owner::Here => 0,
            Owner::Fill(socket) => 1 << 14 | socket,
            Owner::Transmit(socket) => 2 << 14 | socket,
        }
    }

    fn from_code(code: u16) -> Owner {
        match code >> 14 {
            0 => Owner::Here,
            1 => Owner::Fill(code & (Owner::SOCKETS - 1)),
            _ => Owner::Transmit(code & (Owner::SOCKETS - 1)),
        }
    }
}

/// One entry of the frame table.
struct Entry {
    owner: AtomicU16,
    /// Where the packet starts and xsk-rs's own word for it. Touched only by whoever holds the frame: see `Sync` below.
    desc: UnsafeCell<FrameDesc>,
}

/// The memory that packets lie in. See the module's head.
pub struct Umem {
    inner: &'static xsk_rs::Umem,
    base: *mut u8,
    /// The frame size is 1 << shift bytes.
    shift: u32,
    entries: Box<[Entry]>,
    huge_pages: bool,
    anchor: Mutex<Option<Anchor>>,
    /// The descriptor that libxdp lends to the first socket and would close with its umem, which we may never drop.
    fd: AtomicI32,
    /// Whether tokens exist, so that the memory has to stay.
    tokens: AtomicBool,
    /// Whether the XDP program is being taken off the interfaces for good.
    retiring: AtomicBool,
}

// SAFETY: `base` is an address of memory that is never unmapped. `Entry::desc` is touched only between `give_back` and
// `lend` of the same frame, so by the one thread that holds its token or is just taking it from or giving it to a ring;
// a token moves between threads only by means that order memory (it is an ordinary Rust value).
unsafe impl Sync for Umem {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Umem {}

impl Umem {
    /// Maps `count` frames of `frame_size` bytes, on huge pages where there are enough, and registers them. Sockets made on
    /// it get fill and completion rings of `fill` and `completion` entries.
    ///
    /// # Errors
    /// When there is not enough memory, the process may not lock it, or the kernel has no AF_XDP.
    pub(super) fn new(count: u32, frame_size: u32, fill: u32, completion: u32) -> Result<Umem, EdgeError> {
        let config = config(frame_size, fill, completion)?;
        let number = NonZeroU32::new(count).ok_or_else(|| EdgeError::setting("the number of frames is 0"))?;
        let (inner, descs, huge_pages) = match xsk_rs::Umem::new(config, number, true) {
            Ok((umem, descs)) => (umem, descs, true),
            Err(_) => {
                let (umem, descs) = xsk_rs::Umem::new(config, number, false).map_err(|error| refusal(&error, count))?;
                (umem, descs, false)
            }
        };
        let inner: &'static xsk_rs::Umem = Box::leak(Box::new(inner));
        // SAFETY: the first descriptor is of this umem, and nobody, the kernel included, uses its frame yet.
        let first = unsafe { inner.data(&descs[0]) }.contents().as_ptr();
        let base = first.addr() - descs[0].addr();
        // The region comes from mmap and was passed to the kernel: it is memory of no Rust object, its address is exposed.
        let base = std::ptr::with_exposed_provenance_mut::<u8>(base);
        let entry = |desc| Entry { owner: AtomicU16::new(Owner::Here.code()), desc: UnsafeCell::new(desc) };
        Ok(Umem {
            inner,
            base,
            shift: frame_size.ilog2(),
            entries: descs.into_iter().map(entry).collect(),
            huge_pages,
            anchor: Mutex::new(None),
            fd: AtomicI32::new(-1),
            tokens: AtomicBool::new(false),
            retiring: AtomicBool::new(false),
        })
    }

    /// Makes the tokens of all frames. Once.
    ///
    /// # Panics
    /// The second time.
    pub(super) fn tokens(&self) -> Vec<Frame> {
        assert!(!self.tokens.swap(true, Ordering::Relaxed), "the tokens of a umem are made once");
        // SAFETY: every frame is here, and each number is taken once.
        (0..self.entries.len() as u32).map(|number| unsafe { self.token(number, HEADROOM) }).collect()
    }

    /// Binds the umem's idle first socket; `large`: packets may take several frames.
    ///
    /// # Errors
    /// When the loopback is down, or another umem is anchored there: then a port's socket has to be the first.
    pub(super) fn anchor(&self, large: bool) -> io::Result<()> {
        let anchor = Anchor::bind(self, large)?;
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Some(anchor);
        Ok(())
    }

    pub(super) fn inner(&self) -> &'static xsk_rs::Umem {
        self.inner
    }

    /// The descriptor of the first socket is the umem's own: it is closed when the last user of the umem is gone.
    pub(super) fn own_fd(&self, fd: RawFd) {
        self.fd.store(fd, Ordering::Relaxed);
    }

    /// From here on the interfaces have no XDP program any more, and their drivers may refuse whatever its sockets ask.
    pub(super) fn retire(&self) {
        self.retiring.store(true, Ordering::Release);
    }

    /// Whether [`Umem::retire`] was called.
    pub(super) fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Acquire)
    }

    /// Whether it lies on huge pages.
    pub fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Bytes of one frame.
    #[inline]
    pub fn frame_size(&self) -> usize {
        1 << self.shift
    }

    /// How many frames there are.
    pub fn frames(&self) -> usize {
        self.entries.len()
    }

    /// Frames that are lent to the kernel just now. Walks the table; for tests and listings.
    pub fn lent(&self) -> usize {
        let lent = |entry: &&Entry| Owner::from_code(entry.owner.load(Ordering::Relaxed)) != Owner::Here;
        self.entries.iter().filter(lent).count()
    }

    /// A token for a frame that has none.
    ///
    /// # Safety
    /// The frame must be owned here, and no token for it may exist.
    unsafe fn token(&self, number: u32, start: usize) -> Frame {
        debug_assert!((number as usize) < self.entries.len());
        // SAFETY: the frame lies in the mapping, which is never unmapped; the caller holds the only right to it.
        let buffer = unsafe {
            std::slice::from_raw_parts_mut(self.base.wrapping_add((number as usize) << self.shift), self.frame_size())
        };
        Frame::new(number, buffer, start)
    }

    /// Ends `frame`'s token and writes the descriptor the kernel is to get. `to` is the ring it goes to.
    ///
    /// # Panics
    /// When the frame is not of this umem, or was not here: a bug.
    #[inline]
    pub(super) fn lend(&self, frame: Frame, to: Owner) -> FrameDesc {
        let entry = self.entries.get(frame.number() as usize);
        let entry = entry.unwrap_or_else(|| panic!("{frame:?} is not of this umem of {} frames", self.entries.len()));
        let owner = entry.owner.load(Ordering::Relaxed);
        assert!(owner == Owner::Here.code(), "{frame:?} is held, yet recorded as {:?}", Owner::from_code(owner));
        let (start, length) = (frame.start(), frame.len());
        let at = (frame.number() as usize) << self.shift;
        let _: Frame = frame; // the token ends here
        entry.owner.store(to.code(), Ordering::Relaxed);
        // SAFETY: we held the frame's token until now, so nobody else looks at its entry.
        let mut desc = unsafe { *entry.desc.get() };
        assert!(desc.addr() == at + start, "frame {} starts at {start}, its descriptor says {}", at, desc.addr());
        desc.set_options(0);
        // SAFETY: the descriptor is of this umem and the token has ended: this is the only access to the frame.
        unsafe { self.inner.data_mut(&mut desc) }.cursor().set_pos(length);
        desc
    }

    /// The same for one frame of a packet, with more of it to follow or not.
    ///
    /// # Panics
    /// As [`Umem::lend`] does.
    #[inline]
    pub(super) fn lend_part(&self, frame: Frame, to: Owner, more: bool) -> FrameDesc {
        let mut desc = self.lend(frame, to);
        desc.set_options(if more { XDP_PKT_CONTD } else { 0 });
        desc
    }

    /// Makes the token of a frame that comes back from the kernel through the ring `from`. On a received frame `desc`
    /// tells where the packet lies.
    ///
    /// # Panics
    /// When the kernel names a frame that it was not lent through this ring, or a packet that does not lie inside one
    /// frame: user space can't know any more which memory is whose, so it must not go on.
    #[inline]
    pub(super) fn give_back(&self, desc: &FrameDesc, from: Owner) -> Frame {
        let number = desc.addr() >> self.shift;
        let entry = self.entries.get(number).unwrap_or_else(|| {
            panic!("the kernel returned address {:#x}, beyond {} frames", desc.addr(), self.entries.len())
        });
        let owner = entry.owner.load(Ordering::Relaxed);
        assert!(
            owner == from.code(),
            "the kernel returned frame {number} through {from:?}, but it was with {:?}",
            Owner::from_code(owner)
        );
        entry.owner.store(Owner::Here.code(), Ordering::Relaxed);
        match from {
            Owner::Fill(_) => {
                let (start, length) = (desc.addr() & (self.frame_size() - 1), desc.lengths().data());
                assert!(
                    start + length <= self.frame_size(),
                    "the kernel returned {length} bytes at {start} of a frame of {}",
                    self.frame_size()
                );
                // SAFETY: the kernel has given the frame back and no token exists yet: nobody else looks at its entry.
                unsafe { *entry.desc.get() = *desc };
                // SAFETY: the same; this is the one token.
                let mut frame = unsafe { self.token(number as u32, start) };
                frame.set_len(length);
                frame
            }
            // An address that comes back from a completion is not to be trusted beyond its frame: take our own.
            Owner::Transmit(_) | Owner::Here => {
                // SAFETY: the kernel has given the frame back and no token exists yet: nobody else looks at its entry.
                let start = unsafe { *entry.desc.get() }.addr() & (self.frame_size() - 1);
                // SAFETY: the same; this is the one token.
                unsafe { self.token(number as u32, start) }
            }
        }
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        // Every other socket holds an Arc of this umem, so the anchor is the last.
        drop(self.anchor.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        if !*self.tokens.get_mut() {
            // SAFETY: `inner` was leaked from a Box by `new`, no socket is left, and no token points into its memory.
            drop(unsafe { Box::from_raw(std::ptr::from_ref(self.inner).cast_mut()) });
            return;
        }
        let fd = *self.fd.get_mut();
        if fd >= 0 {
            // SAFETY: libxdp owns this descriptor and would close it when its umem is deleted; ours never is, so it is
            // closed once, here, after every socket that used it is gone.
            unsafe { libc::close(fd) };
        }
    }
}

impl std::fmt::Debug for Umem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Umem")
            .field("frames", &self.entries.len())
            .field("frame_size", &self.frame_size())
            .field("huge_pages", &self.huge_pages)
            .finish_non_exhaustive()
    }
}

fn config(frame_size: u32, fill: u32, completion: u32) -> Result<UmemConfig, EdgeError> {
    if frame_size != 2048 && frame_size != 4096 {
        return Err(EdgeError::setting(format!("frame size {frame_size} is neither 2048 nor 4096 bytes")));
    }
    let wrong = |what: &dyn std::fmt::Display| EdgeError::setting(what.to_string());
    UmemConfig::builder()
        .frame_size(FrameSize::new(frame_size).map_err(|error| wrong(&error))?)
        .fill_queue_size(QueueSize::new(fill).map_err(|error| wrong(&error))?)
        .comp_queue_size(QueueSize::new(completion).map_err(|error| wrong(&error))?)
        .build()
        .map_err(|error| wrong(&error))
}

fn refusal(error: &xsk_rs::umem::UmemCreateError, count: u32) -> EdgeError {
    let source = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
        .map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
    if source.raw_os_error() == Some(libc::ENOBUFS) {
        let what = format!("the process may not lock the memory of {count} frames (RLIMIT_MEMLOCK)");
        return EdgeError::Privilege { what };
    }
    EdgeError::system(format!("map and register {count} frames of packet memory"), source)
}
