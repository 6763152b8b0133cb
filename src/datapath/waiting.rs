//! Packets that wait for their next hop's link-layer address: [`Waiting`].
//!
//! A frame enters here ready to go but for its Ethernet addresses, and leaves when the neighbour is known
//! (sent), when it does not answer (Linux's three probes, one second apart: the sender is told), or when its place is
//! needed: a hop keeps [`Waiting::PER_HOP`] frames and drops the oldest for a newer one, as Linux's `arp_queue` does; there
//! are [`Waiting::HOPS`] hops at most. All memory is taken at start.

use std::collections::VecDeque;

use crate::device::{Frame, PortId};
use crate::route::Neighbour;
use crate::snapshot::Routing;
use crate::time::{Instant, SECOND_NS};
use crate::wire::{Addr, Family, Mac};

use super::effects::Resolve;

/// How long a neighbour may take to answer, in nanoseconds: the kernel sends three probes one second apart.
const PATIENCE_NS: u64 = 3 * SECOND_NS;
/// A failure seen within this time of the question may be the answer to an earlier one.
const SETTLE_NS: u64 = 5 * SECOND_NS / 2;

/// The frames that wait; see the module's head.
#[derive(Debug)]
pub(super) struct Waiting {
    hops: Vec<Hop>,
    spare: Vec<VecDeque<Frame>>,
}

#[derive(Debug)]
struct Hop {
    request: Resolve,
    since: Instant,
    frames: VecDeque<Frame>,
}

/// What became of the frames of one hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Send them to this address.
    Send(Mac),
    /// Nobody answered.
    Fail,
}

impl Waiting {
    /// Frames kept for one next hop.
    pub(super) const PER_HOP: usize = 32;
    /// Next hops waited for at a time.
    pub(super) const HOPS: usize = 128;

    pub(super) fn new() -> Waiting {
        let spare = (0..Waiting::HOPS).map(|_| VecDeque::with_capacity(Waiting::PER_HOP)).collect();
        Waiting { hops: Vec::with_capacity(Waiting::HOPS), spare }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.hops.is_empty()
    }

    /// Frames waiting.
    pub(super) fn len(&self) -> usize {
        self.hops.iter().map(|hop| hop.frames.len()).sum()
    }

    /// Keeps `frame` for `request`. The second value is true when the hop is to be asked for, being new. A frame handed back is
    /// one too many: the hop's oldest, or `frame` itself when there is no room for another hop.
    pub(super) fn hold(&mut self, request: Resolve, frame: Frame, now: Instant) -> (Option<Frame>, bool) {
        if let Some(hop) = self.hops.iter_mut().find(|hop| hop.request == request) {
            let oldest = if hop.frames.len() == Waiting::PER_HOP { hop.frames.pop_front() } else { None };
            hop.frames.push_back(frame);
            return (oldest, false);
        }
        // Without room for the hop the frame goes, but the question is asked: the next packet may find the answer.
        let Some(mut frames) = self.spare.pop() else { return (Some(frame), true) };
        frames.push_back(frame);
        self.hops.push(Hop { request, since: now, frames });
        (None, true)
    }

    /// Takes out one hop whose wait is over by what `routing` knows now, with its frames; give the queue back by
    /// [`Waiting::recycle`].
    pub(super) fn settle(&mut self, routing: &Routing, now: Instant) -> Option<(Resolve, Outcome, VecDeque<Frame>)> {
        let done = |hop: &Hop| {
            let waited = now - hop.since;
            match routing.neighbour(hop.request.port, hop.request.next_hop) {
                Neighbour::Reachable(mac) => Some(Outcome::Send(mac)),
                Neighbour::Failed if waited >= SETTLE_NS => Some(Outcome::Fail),
                _ if waited >= PATIENCE_NS + SECOND_NS => Some(Outcome::Fail),
                _ => None,
            }
        };
        let (index, outcome) = self.hops.iter().enumerate().find_map(|(at, hop)| Some((at, done(hop)?)))?;
        let hop = self.hops.swap_remove(index);
        Some((hop.request, outcome, hop.frames))
    }

    /// An emptied queue comes back.
    pub(super) fn recycle(&mut self, frames: VecDeque<Frame>) {
        debug_assert!(frames.is_empty(), "a recycled queue has no frames");
        self.spare.push(frames);
    }

    /// Every hop still waited for, to be asked again.
    pub(super) fn requests(&self) -> impl Iterator<Item = Resolve> + '_ {
        self.hops.iter().map(|hop| hop.request)
    }
}

/// The next hop towards `destination`: the gateway, or the destination itself on a connected network.
pub(super) fn next_hop(family: Family, port: PortId, gateway: Option<Addr>, destination: Addr) -> Resolve {
    Resolve { port, family, next_hop: gateway.unwrap_or(destination) }
}
