//! Packets that are decided together: [`Batch`]. Filled by a worker from a port or with what another worker gives, emptied by
//! [`super::process`]; all of it has come by one port and in one way.

use crate::arch;
use crate::conntrack::Sent;
use crate::device::{Frame, PortId};

/// Packets of a batch. 64 is where the cost per packet stops falling (VPP's graph: 128 gains nothing more).
pub const BATCH: usize = 64;

/// Packets in hand that one port has received, oldest first.
#[derive(Debug)]
pub struct Batch {
    pub(super) port: PortId,
    pub(super) sent: Sent,
    /// By another worker, which has counted them.
    pub(super) given: bool,
    pub(super) frames: Vec<Frame>,
    /// Of all frames, in sum.
    pub(super) bytes: u64,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { port: PortId::LAN, sent: Sent::Here, given: false, frames: Vec::with_capacity(BATCH), bytes: 0 }
    }
}

impl Batch {
    /// Takes what `receive` puts into the list, as `port` has received it; returns how many packets and bytes.
    ///
    /// # Panics
    /// When there are packets in hand.
    #[inline]
    pub fn fill(&mut self, port: PortId, receive: impl FnOnce(&mut Vec<Frame>) -> usize) -> (usize, u64) {
        assert!(self.is_empty(), "the last batch was processed");
        (self.port, self.sent, self.given) = (port, Sent::Here, false);
        let count = receive(&mut self.frames);
        for frame in &self.frames {
            // Somebody else has just written the header; all of a batch's are fetched before the first is read.
            arch::prefetch(frame.bytes());
            self.bytes += frame.len() as u64;
        }
        (count, self.bytes)
    }

    /// Whether a packet that `port` has received can be appended.
    pub fn takes(&self, port: PortId) -> bool {
        self.port == port || self.is_empty()
    }

    /// Appends a packet that `port` has received.
    ///
    /// # Panics
    /// When there are packets of another port in hand.
    pub fn push(&mut self, port: PortId, frame: Frame) {
        assert!(self.takes(port), "a batch is of one port");
        (self.port, self.sent, self.given) = (port, Sent::Here, false);
        self.bytes += frame.len() as u64;
        self.frames.push(frame);
    }

    /// Appends a packet that another worker has received on `port`, and sent like this. `Some`: it does not belong with those in
    /// hand, or there are enough.
    pub fn give(&mut self, port: PortId, sent: Sent, frame: Frame) -> Option<Frame> {
        let fits = self.is_empty() || self.given && (self.port, self.sent) == (port, sent) && self.len() < BATCH;
        if !fits {
            return Some(frame);
        }
        (self.port, self.sent, self.given) = (port, sent, true);
        self.frames.push(frame);
        None
    }

    /// Packets in hand.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
