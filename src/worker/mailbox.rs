//! What a worker and the control thread say to each other: [`Mailbox`] at the worker, [`Handle`] at the control thread.
//!
//! Two single-producer rings carry requests and replies, a third carries LOG records, and a bounded channel the next hops
//! to resolve; an eventfd wakes a worker that sleeps. The worker never waits for any of them: a full ring is a lost log
//! line (counted), a neighbour asked for again with the next packet, or a reply that is given up. It serves at most one
//! request per burst, and a listing in pieces, so that no question disturbs forwarding.

use std::io;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rtrb::{Consumer, Producer, RingBuffer};
use tokio::sync::mpsc;

use crate::conntrack::{ConnView, Statistics};
use crate::datapath::{Counters, Effects, Resolve, Shard};
use crate::device::{PortId, QueueStatistics};
use crate::rules::{LogRecord, RuleCounters};
use crate::snapshot::Policy;
use crate::time::Instant;
use crate::wire::Family;

/// LOG records between worker and control thread.
pub const LOG_RING: usize = 1024;
const REQUEST_RING: usize = 16;
const RESOLVE_CHANNEL: usize = 256;

/// A question of the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// All counters.
    Stats,
    /// A piece of the connection table.
    Conntrack {
        /// Where to go on; 0 at first.
        cursor: usize,
        /// Entries to look at, at most.
        budget: usize,
    },
}

/// A worker's answer.
#[derive(Debug)]
pub enum Reply {
    /// To [`Request::Stats`].
    Stats(Box<WorkerStats>),
    /// To [`Request::Conntrack`].
    Conntrack {
        /// The connections of this piece.
        entries: Vec<ConnView>,
        /// Where the next piece starts; `None` at the end.
        next: Option<usize>,
    },
}

/// One device of a worker.
#[derive(Clone, Copy, Debug)]
pub struct QueueStats {
    /// Its port.
    pub port: PortId,
    /// Packets received.
    pub receive_packets: u64,
    /// Bytes received.
    pub receive_bytes: u64,
    /// What the device and the kernel counted.
    pub device: QueueStatistics,
}

/// What the poll loop itself counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turns {
    pub(super) bursts: u64,
    pub(super) busy_bursts: u64,
    pub(super) free_frames: usize,
}

/// A worker's counters at one moment.
#[derive(Clone, Debug)]
pub struct WorkerStats {
    /// Packets, drops, replies.
    pub counters: Counters,
    /// What `conntrack -S` shows.
    pub conntrack: Statistics,
    /// Connections in the table.
    pub entries: usize,
    /// Connections the table may hold.
    pub entries_limit: usize,
    /// Bytes the table takes.
    pub table_bytes: usize,
    /// Packets waiting for a neighbour now.
    pub waiting: usize,
    /// Generation of the rules that the next two belong to.
    pub policy_generation: u64,
    /// Per rule, IPv4.
    pub rules_v4: RuleCounters,
    /// Per rule, IPv6.
    pub rules_v6: RuleCounters,
    /// Turns of the poll loop.
    pub bursts: u64,
    /// Turns that had a packet.
    pub busy_bursts: u64,
    /// LOG lines lost because nobody took them in time.
    pub logs_lost: u64,
    /// Frames free just now.
    pub free_frames: usize,
    /// By device.
    pub queues: Vec<QueueStats>,
}

/// The worker's end.
#[derive(Debug)]
pub struct Mailbox {
    requests: Consumer<Request>,
    replies: Producer<Reply>,
    logs: Producer<LogRecord>,
    resolve: mpsc::Sender<Resolve>,
    wake: Arc<EventFd>,
    logs_lost: u64,
}

/// The control thread's end.
#[derive(Debug)]
pub struct Handle {
    /// Questions and answers.
    pub line: Line,
    /// LOG records.
    pub logs: Consumer<LogRecord>,
    /// Next hops to resolve.
    pub resolve: mpsc::Receiver<Resolve>,
}

/// Questions to the worker and its answers, one at a time.
#[derive(Debug)]
pub struct Line {
    requests: Producer<Request>,
    replies: Consumer<Reply>,
    wake: Arc<EventFd>,
    /// Questions not yet answered. All but the last were given up.
    outstanding: usize,
}

impl Line {
    /// Puts a question; one that was not answered yet is given up. False when the worker has not looked at any of the last
    /// sixteen.
    pub fn ask(&mut self, request: Request) -> bool {
        let asked = self.requests.push(request).is_ok();
        self.outstanding += usize::from(asked);
        // A full counter (2^64 - 1 wake-ups unread) wakes as well.
        let _ = self.wake.write(1);
        asked
    }

    /// The answer to the last question, if it is there.
    pub fn answer(&mut self) -> Option<Reply> {
        while let Ok(reply) = self.replies.pop() {
            self.outstanding -= 1;
            if self.outstanding == 0 {
                return Some(reply);
            }
        }
        None
    }
}

/// Both ends of a new mailbox.
///
/// # Errors
/// When the process has no descriptor left.
pub fn mailbox() -> io::Result<(Mailbox, Handle)> {
    let (ask, requests) = RingBuffer::new(REQUEST_RING);
    let (replies, answers) = RingBuffer::new(REQUEST_RING);
    let (logs, log_lines) = RingBuffer::new(LOG_RING);
    let (resolve, wanted) = mpsc::channel(RESOLVE_CHANNEL);
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let mailbox = Mailbox { requests, replies, logs, resolve, wake: wake.clone(), logs_lost: 0 };
    let line = Line { requests: ask, replies: answers, wake, outstanding: 0 };
    Ok((mailbox, Handle { line, logs: log_lines, resolve: wanted }))
}

impl Mailbox {
    /// What a sleeping worker waits on besides packets.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Passes on what the core left in `effects`.
    pub(super) fn forward(&mut self, effects: &mut Effects) {
        for record in effects.logs.drain(..) {
            self.logs_lost += u64::from(self.logs.push(record).is_err());
        }
        self.logs_lost += std::mem::take(&mut effects.logs_lost);
        for request in effects.resolve.drain(..) {
            // A full channel is no loss: whoever still waits asks again within a second.
            let _ = self.resolve.try_send(request);
        }
    }

    /// Whether there is a request, and room for its answer.
    #[inline]
    pub(super) fn is_asked(&self) -> bool {
        !self.requests.is_empty() && !self.replies.is_full()
    }

    /// Answers one request.
    pub(super) fn serve(
        &mut self,
        shard: &Shard,
        policy: &Policy,
        turns: Turns,
        queues: impl Iterator<Item = QueueStats>,
        now: Instant,
    ) {
        let Ok(request) = self.requests.pop() else { return };
        let reply = match request {
            Request::Stats => Reply::Stats(Box::new(self.stats(shard, policy, turns, queues.collect()))),
            Request::Conntrack { cursor, budget } => {
                let mut entries = Vec::with_capacity(budget);
                let next = shard.conntrack.list(cursor, budget, now, &mut |view| entries.push(*view));
                Reply::Conntrack { entries, next }
            }
        };
        // Cannot fail: the ring had room above, and only this side pushes.
        let _ = self.replies.push(reply);
    }

    fn stats(&self, shard: &Shard, policy: &Policy, turns: Turns, queues: Vec<QueueStats>) -> WorkerStats {
        WorkerStats {
            counters: shard.counters.clone(),
            conntrack: *shard.conntrack.statistics(),
            entries: shard.conntrack.len(),
            entries_limit: shard.conntrack.capacity(),
            table_bytes: shard.conntrack.memory().total_bytes(),
            waiting: shard.waiting(),
            policy_generation: policy.generation,
            rules_v4: shard.rule_counters(Family::V4),
            rules_v6: shard.rule_counters(Family::V6),
            bursts: turns.bursts,
            busy_bursts: turns.busy_bursts,
            logs_lost: self.logs_lost,
            free_frames: turns.free_frames,
            queues,
        }
    }
}
