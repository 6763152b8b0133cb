//! What a worker and the control thread say to each other: [`Mailbox`] at the worker, [`Handle`] at the control thread.
//!
//! Two single-producer rings carry requests and replies, a third carries LOG records, a fourth NFLOG copies, a fifth
//! connection events while somebody listens, and a bounded channel the next hops to resolve; an eventfd wakes a worker that
//! sleeps. The worker never waits for any of them: a full ring is a lost log line, copy or event (counted), a neighbour asked
//! for again with the next packet, or a reply that is given up. It serves at most one request per burst. A walk through the
//! connection table takes many bursts, with [`SLICE`] records looked at in each, so that no question disturbs forwarding; it
//! fills memory that came with the request and goes back with the reply, so the worker allocates nothing for it. A change of
//! rules is [`Request::Prepare`] before it and [`Request::LastLedger`] after it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rtrb::{Consumer, Producer, RingBuffer};
use tokio::sync::mpsc;

use crate::conntrack::{ConnCopy, ConnFilter, ConnView, Event, ExpectView, Settings, Statistics, Tuple};
use crate::datapath::{Counters, Effects, Ledger, Resolve, Shard, Witness};
use crate::device::{PortId, QueueStatistics};
use crate::rules::{LogRecord, NflogRecord, RuleCounters};
use crate::schedule;
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::Family;

/// LOG records between worker and control thread.
pub const LOG_RING: usize = 1024;
/// NFLOG copies between worker and control thread; 1.6 kB each.
pub const COPY_RING: usize = 1024;
/// Events between worker and control thread.
pub const EVENT_RING: usize = 16_384;
const REQUEST_RING: usize = 16;
/// Places of the request ring that only settings take: new ones, and the former ones should these be given up.
const FOR_SETTINGS: usize = 2;
const RESOLVE_CHANNEL: usize = 256;

/// Records of the connection table that a walk looks at in one burst.
pub const SLICE: usize = 64;

/// A walk through a worker's connection table, or a part of one. It goes to the worker and comes back with what was found.
#[derive(Debug)]
pub struct Walk {
    /// Which connections.
    pub filter: ConnFilter,
    /// Whether they are deleted, and for which process.
    pub delete_for: Option<u32>,
    /// Where it goes on; 0 at first. `None` after the last record.
    pub cursor: Option<usize>,
    /// How many records may be looked at before it comes back.
    pub budget: usize,
    /// Those found, as many as there is room for; then it comes back early.
    pub entries: Vec<ConnView>,
}

impl Walk {
    /// Goes on for one burst. True when it is to go back.
    fn step(&mut self, shard: &mut Shard, now: Instant) -> bool {
        let Some(cursor) = self.cursor else { return true };
        let room = self.entries.capacity() - self.entries.len();
        let slice = SLICE.min(self.budget).min(room);
        if slice == 0 {
            return true;
        }
        let Walk { filter, entries, .. } = self;
        let mut take = |view: &ConnView| {
            let wanted = filter.admits(view);
            if wanted {
                entries.push(*view);
            }
            wanted
        };
        self.cursor = match self.delete_for {
            Some(by) => shard.conntrack.delete(cursor, slice, now, by, &mut take),
            None => shard.conntrack.list(cursor, slice, now, &mut |view| {
                take(view);
            }),
        };
        self.budget -= slice;
        self.cursor.is_none() || self.budget == 0 || self.entries.len() == self.entries.capacity()
    }
}

/// A walk through what a worker's connections expect. It goes to the worker and comes back with what was found.
#[derive(Debug)]
pub struct Expecting {
    /// All of it ends, and nothing is listed.
    pub clear: bool,
    /// Where it goes on; 0 at first. `None` after the last.
    pub cursor: Option<usize>,
    /// Those found, as many as there is room for; then it comes back early.
    pub entries: Vec<ExpectView>,
}

impl Expecting {
    /// Goes on for one burst. True when it is to go back.
    fn step(&mut self, shard: &mut Shard, now: Instant) -> bool {
        if std::mem::take(&mut self.clear) {
            shard.conntrack.forget_expected();
            self.cursor = None;
        }
        let Some(cursor) = self.cursor else { return true };
        let slice = SLICE.min(self.entries.capacity() - self.entries.len());
        if slice == 0 {
            return true;
        }
        let Expecting { entries, .. } = self;
        self.cursor = shard.conntrack.list_expected(cursor, slice, now, &mut |view| entries.push(*view));
        self.cursor.is_none() || self.entries.len() == self.entries.capacity()
    }
}

/// Connections to delete, one by one. It goes to the worker and comes back when all are looked for.
#[derive(Debug)]
pub struct Ending {
    /// The original tuple of each, and its identifier as listed.
    pub which: Vec<(Tuple, u32)>,
    /// For which process.
    pub by: u32,
    /// How many were looked for.
    pub done: usize,
    /// How many of them were there still.
    pub ended: usize,
}

impl Ending {
    /// Goes on for one burst. True when it is to go back.
    fn step(&mut self, shard: &mut Shard, now: Instant) -> bool {
        let conntrack = &mut shard.conntrack;
        for (tuple, id) in self.which.iter().skip(self.done).take(SLICE) {
            self.done += 1;
            let Some((at, _)) = conntrack.lookup(tuple, conntrack.hash(tuple), now) else { continue };
            let mut found = false;
            conntrack.delete(at.index(), 1, now, self.by, &mut |view| {
                found = view.id == *id;
                found
            });
            self.ended += usize::from(found);
        }
        self.done >= self.which.len()
    }
}

/// A question of the control thread.
#[derive(Debug)]
pub enum Request {
    /// All counters.
    Stats,
    /// How full the connection table is: nothing of it is allocated.
    TableCounts,
    /// A part of the connection table. With room for no entry or no budget it comes back as it is.
    Walk(Box<Walk>),
    /// A part of what is expected. With room for none it comes back as it is.
    Expecting(Box<Expecting>),
    /// One connection, by a tuple of it.
    Get(Tuple),
    /// All that is known of one connection, by a tuple of it.
    Copy(Tuple),
    /// Events go into this ring from now on; into none.
    Listen(Option<Producer<Event>>),
    /// This one goes with packets from now on; none does.
    Witness(Option<Box<dyn Witness>>),
    /// Put these settings in force.
    Settings(Box<Settings>),
    /// Delete these connections.
    End(Box<Ending>),
    /// The ledger of a policy that will be published when this is answered.
    Prepare(Box<Ledger>),
    /// What was counted under the policy before the one that is published.
    LastLedger,
}

/// A worker's answer.
#[derive(Debug)]
pub enum Reply {
    /// To [`Request::Stats`].
    Stats(Box<WorkerStats>),
    /// To [`Request::TableCounts`].
    TableCounts(TableCounts),
    /// To [`Request::Walk`].
    Walk(Box<Walk>),
    /// To [`Request::Expecting`].
    Expecting(Box<Expecting>),
    /// To [`Request::Get`].
    Get(Option<ConnView>),
    /// To [`Request::Copy`].
    Copy(Option<Box<ConnCopy>>),
    /// To [`Request::Listen`]: done, and the ring that was in use until now.
    Listening(Option<Producer<Event>>),
    /// To [`Request::Witness`]: done, and who did so until now.
    Witness(Option<Box<dyn Witness>>),
    /// To [`Request::Settings`]: done, or why not.
    Settings(Result<(), String>),
    /// To [`Request::End`].
    End(Box<Ending>),
    /// To [`Request::Prepare`]: done, and the ledger of a policy that was never published.
    Prepared(Option<Box<Ledger>>),
    /// To [`Request::LastLedger`]; none when it was fetched already.
    LastLedger(Option<Box<Ledger>>),
}

/// How full a worker's connection table is.
#[derive(Clone, Copy, Debug)]
pub struct TableCounts {
    /// Connections in it.
    pub entries: usize,
    /// Connections it may hold.
    pub limit: usize,
    /// Records it has, of which a walk looks at each.
    pub records: usize,
    /// New connections that found no room.
    pub refused: u64,
    /// Connections that went to make room.
    pub gave_way: u64,
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
    pub(super) free_large_frames: usize,
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
    /// Connections that are expected.
    pub expected: usize,
    /// Connections the table may hold.
    pub entries_limit: usize,
    /// Bytes the table takes.
    pub table_bytes: usize,
    /// Packets waiting for a neighbour now.
    pub waiting: usize,
    /// Generation of the policy that the rules' counters are of.
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
    /// NFLOG copies lost because nobody took them in time.
    pub copies_lost: u64,
    /// Connection events lost because nobody took them in time.
    pub events_lost: u64,
    /// Frames free just now.
    pub free_frames: usize,
    /// Large frames free just now.
    pub free_large_frames: usize,
    /// By device.
    pub queues: Vec<QueueStats>,
}

/// The worker's end.
#[derive(Debug)]
pub struct Mailbox {
    requests: Consumer<Request>,
    replies: Producer<Reply>,
    logs: Producer<LogRecord>,
    copies: Producer<NflogRecord>,
    resolve: mpsc::Sender<Resolve>,
    wake: Arc<EventFd>,
    logs_lost: u64,
    copies_lost: u64,
    events: Option<Producer<Event>>,
    events_lost: Arc<AtomicU64>,
    /// Work in progress. It is always what the last request brought, and its reply has room.
    task: Option<Task>,
}

/// What takes more than one burst.
#[derive(Debug)]
enum Task {
    Walk(Box<Walk>),
    Expecting(Box<Expecting>),
    End(Box<Ending>),
}

impl Task {
    /// Goes on for one burst. True when it is to go back.
    fn step(&mut self, shard: &mut Shard, now: Instant) -> bool {
        match self {
            Task::Walk(walk) => walk.step(shard, now),
            Task::Expecting(walk) => walk.step(shard, now),
            Task::End(ending) => ending.step(shard, now),
        }
    }
}

impl From<Task> for Reply {
    fn from(task: Task) -> Reply {
        match task {
            Task::Walk(walk) => Reply::Walk(walk),
            Task::Expecting(walk) => Reply::Expecting(walk),
            Task::End(ending) => Reply::End(ending),
        }
    }
}

/// The control thread's end.
#[derive(Debug)]
pub struct Handle {
    /// Questions and answers.
    pub line: Line,
    /// LOG records.
    pub logs: Consumer<LogRecord>,
    /// NFLOG copies.
    pub copies: Consumer<NflogRecord>,
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
    events_lost: Arc<AtomicU64>,
}

impl Line {
    /// Puts a question; one that was not answered yet is given up. False when the worker has not looked at any of the last
    /// fourteen (sixteen, if this is about settings).
    pub fn ask(&mut self, request: Request) -> bool {
        let kept_free = if matches!(request, Request::Settings(_)) { 0 } else { FOR_SETTINGS };
        schedule::point();
        let asked = self.requests.slots() > kept_free && self.requests.push(request).is_ok();
        self.outstanding += usize::from(asked);
        // A full counter (2^64 - 1 wake-ups unread) wakes as well.
        let _ = self.wake.write(1);
        asked
    }

    /// Connection events that the worker had no room for, since it started.
    pub fn events_lost(&self) -> u64 {
        self.events_lost.load(Ordering::Relaxed)
    }

    /// The answer to the last question, if it is there.
    pub fn answer(&mut self) -> Option<Reply> {
        schedule::point();
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
    let (copies, copied) = RingBuffer::new(COPY_RING);
    let (resolve, wanted) = mpsc::channel(RESOLVE_CHANNEL);
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let events_lost = Arc::new(AtomicU64::new(0));
    let line =
        Line { requests: ask, replies: answers, wake: wake.clone(), outstanding: 0, events_lost: events_lost.clone() };
    let mailbox = Mailbox {
        requests,
        replies,
        logs,
        copies,
        resolve,
        wake,
        logs_lost: 0,
        copies_lost: 0,
        events: None,
        events_lost,
        task: None,
    };
    Ok((mailbox, Handle { line, logs: log_lines, copies: copied, resolve: wanted }))
}

impl Mailbox {
    /// What a sleeping worker waits on besides packets.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The same, for those who wake the worker.
    pub fn waker(&self) -> Arc<EventFd> {
        self.wake.clone()
    }

    /// Passes on what the core left in `effects`.
    pub(super) fn forward(&mut self, effects: &mut Effects) {
        for record in effects.logs.drain(..) {
            self.logs_lost += u64::from(self.logs.push(record).is_err());
        }
        self.logs_lost += std::mem::take(&mut effects.logs_lost);
        for record in effects.copies.drain(..) {
            self.copies_lost += u64::from(self.copies.push(record).is_err());
        }
        self.copies_lost += std::mem::take(&mut effects.copies_lost);
        for request in effects.resolve.drain(..) {
            // A full channel is no loss: whoever still waits asks again within a second.
            let _ = self.resolve.try_send(request);
        }
    }

    /// Passes on the connection events that wait in the shard.
    #[cold]
    pub(super) fn forward_events(&mut self, shard: &mut Shard) {
        let mut lost = shard.conntrack.take_events_lost();
        for event in shard.conntrack.events().drain(..) {
            lost += u64::from(self.events.as_mut().is_none_or(|ring| ring.push(event).is_err()));
        }
        if lost > 0 {
            // Only this thread writes it.
            self.events_lost.store(self.events_lost.load(Ordering::Relaxed) + lost, Ordering::Relaxed);
        }
    }

    /// Whether there is work in progress, or a request and room for its answer.
    #[inline]
    pub(super) fn is_asked(&self) -> bool {
        schedule::point();
        self.task.is_some() || !self.requests.is_empty() && !self.replies.is_full()
    }

    /// Goes on with the work in progress, or takes up one request.
    pub(super) fn serve(
        &mut self,
        shard: &mut Shard,
        turns: Turns,
        queues: impl Iterator<Item = QueueStats>,
        now: Instant,
    ) {
        if self.task.is_none() {
            let Ok(request) = self.requests.pop() else { return };
            let reply = match request {
                Request::Stats => Some(Reply::Stats(Box::new(self.stats(shard, turns, queues.collect())))),
                Request::TableCounts => Some(Reply::TableCounts(table_counts(shard))),
                Request::Walk(walk) => {
                    self.task = Some(Task::Walk(walk));
                    None
                }
                Request::Expecting(walk) => {
                    self.task = Some(Task::Expecting(walk));
                    None
                }
                Request::End(ending) => {
                    self.task = Some(Task::End(ending));
                    None
                }
                Request::Get(tuple) => Some(Reply::Get(shard.conntrack.get(&tuple, now))),
                Request::Copy(tuple) => Some(Reply::Copy(shard.conntrack.copy(&tuple, now).map(Box::new))),
                Request::Witness(witness) => Some(Reply::Witness(shard.set_witness(witness))),
                Request::Listen(ring) => {
                    shard.conntrack.listen(ring.is_some());
                    Some(Reply::Listening(std::mem::replace(&mut self.events, ring)))
                }
                Request::Settings(settings) => Some(Reply::Settings(shard.conntrack.set_settings(*settings))),
                Request::Prepare(ledger) => Some(Reply::Prepared(shard.prepare(ledger))),
                Request::LastLedger => Some(Reply::LastLedger(shard.take_last_ledger())),
            };
            if let Some(reply) = reply {
                // Cannot fail: the ring had room, and only this side pushes.
                let _ = self.replies.push(reply);
            }
        }
        if self.task.as_mut().is_some_and(|task| task.step(shard, now)) {
            let task = self.task.take().expect("looked at above");
            let _ = self.replies.push(task.into());
        }
    }

    fn stats(&self, shard: &Shard, turns: Turns, queues: Vec<QueueStats>) -> WorkerStats {
        WorkerStats {
            counters: shard.counters.clone(),
            conntrack: *shard.conntrack.statistics(),
            entries: shard.conntrack.len(),
            expected: shard.conntrack.expected(),
            entries_limit: shard.conntrack.limit(),
            table_bytes: shard.conntrack.memory().total_bytes(),
            waiting: shard.waiting(),
            policy_generation: shard.policy_generation(),
            rules_v4: shard.rule_counters(Family::V4),
            rules_v6: shard.rule_counters(Family::V6),
            bursts: turns.bursts,
            busy_bursts: turns.busy_bursts,
            logs_lost: self.logs_lost,
            copies_lost: self.copies_lost,
            events_lost: self.events_lost.load(Ordering::Relaxed),
            free_frames: turns.free_frames,
            free_large_frames: turns.free_large_frames,
            queues,
        }
    }
}

fn table_counts(shard: &Shard) -> TableCounts {
    TableCounts {
        entries: shard.conntrack.len(),
        limit: shard.conntrack.limit(),
        records: shard.conntrack.capacity(),
        refused: shard.counters.drops.get(DropReason::ConntrackFull),
        gave_way: shard.conntrack.statistics().early_drop,
    }
}
