//! All that leaves the core: [`Effects`].
//!
//! The core takes frames in and decides; where each goes is written here, and the worker carries it out after the burst.
//! Every frame of a batch is, when `process` returns, in exactly one of these queues or in a neighbour's waiting queue of
//! the shard. The side queues (log records, neighbour requests) are bounded and count what they lose; the core never
//! allocates for them.

use std::collections::VecDeque;

use super::handover::Parcel;
use crate::device::{Frame, PortId};
use crate::rules::{LogRecord, LogRequest, NflogRecord, NflogRequest, TraceEvent};
use crate::wire::{Addr, Family};

/// A next hop whose link-layer address is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resolve {
    /// On the link of this port.
    pub port: PortId,
    /// IP version of the address.
    pub family: Family,
    /// The next hop.
    pub next_hop: Addr,
}

/// What the core wants done; see the module's head.
#[derive(Debug)]
pub struct Effects {
    /// Frames to send, by port, in order.
    pub transmit: [VecDeque<Frame>; PortId::COUNT],
    /// Frames for the host's own stack, with the port they arrived on.
    pub punt: Vec<(PortId, Frame)>,
    /// Frames nobody needs any more.
    pub free: Vec<Frame>,
    /// Lines for LOG, for the steps of traced packets, and what the router itself has to say.
    pub logs: Vec<LogRecord>,
    /// LOG lines that did not fit.
    pub logs_lost: u64,
    /// Copies for NFLOG.
    pub copies: Vec<NflogRecord>,
    /// Copies that did not fit.
    pub copies_lost: u64,
    /// Next hops to ask the kernel for.
    pub resolve: Vec<Resolve>,
    /// What goes to other workers, with their numbers, in order.
    pub parcels: Vec<(u16, Parcel)>,
}

impl Effects {
    /// LOG lines kept until the worker takes them.
    pub const LOGS_MAX: usize = 64;
    /// NFLOG copies kept until the worker takes them.
    pub const COPIES_MAX: usize = 64;
    /// Neighbour requests kept until the worker takes them. One that does not fit is made again with the next packet.
    pub const RESOLVE_MAX: usize = 64;

    /// Empty, with room for bursts of `batch` frames.
    pub fn new(batch: usize) -> Effects {
        Effects {
            transmit: std::array::from_fn(|_| VecDeque::with_capacity(4 * batch)),
            punt: Vec::with_capacity(batch),
            free: Vec::with_capacity(2 * batch),
            logs: Vec::with_capacity(Effects::LOGS_MAX),
            logs_lost: 0,
            copies: Vec::with_capacity(Effects::COPIES_MAX),
            copies_lost: 0,
            resolve: Vec::with_capacity(Effects::RESOLVE_MAX),
            parcels: Vec::with_capacity(batch),
        }
    }

    /// Keeps what a LOG line needs, or counts it lost.
    pub(super) fn log(&mut self, request: &LogRequest<'_>) {
        if self.logs.len() < Effects::LOGS_MAX {
            self.logs.push(LogRecord::new(request));
        } else {
            self.logs_lost += 1;
        }
    }

    /// Keeps a line that tells a step of a traced packet, or counts it lost.
    pub(super) fn trace(&mut self, event: &TraceEvent<'_>) {
        if self.logs.len() < Effects::LOGS_MAX {
            self.logs.push(LogRecord::traced(event));
        } else {
            self.logs_lost += 1;
        }
    }

    /// Keeps a line that the router itself has to say, or counts it lost.
    pub(super) fn say(&mut self, level: u8, text: core::fmt::Arguments<'_>) {
        if self.logs.len() < Effects::LOGS_MAX {
            self.logs.push(LogRecord::line(level, text));
        } else {
            self.logs_lost += 1;
        }
    }

    /// Keeps an NFLOG copy, or counts it lost.
    pub(super) fn copy(&mut self, request: &NflogRequest<'_>) {
        if self.copies.len() < Effects::COPIES_MAX {
            self.copies.push(NflogRecord::new(request));
        } else {
            self.copies_lost += 1;
        }
    }

    /// Asks for a neighbour.
    pub(super) fn ask(&mut self, request: Resolve) {
        if self.resolve.len() < Effects::RESOLVE_MAX {
            self.resolve.push(request);
        }
    }
}
