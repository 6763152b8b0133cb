//! One shard's connection tracking: [`Conntrack`].
//!
//! A packet is told to [`Conntrack::track`], which classifies it (`nf_conntrack_in`) and updates its connection. The first
//! packet of a connection only *prepares* one; [`Conntrack::confirm`] puts it into the table when the packet leaves
//! (`__nf_conntrack_confirm`), so one that a rule drops leaves nothing behind. There is one prepared connection: a packet
//! is confirmed, or not, before the next is tracked. [`Conntrack::expire`] collects what has timed out, a bounded piece
//! at a time; what it has not got to yet is matched by no lookup.
//!
//! Differences from Linux, all wanted; this is their one list:
//! - When the table is full, one connection goes for each new one, not a whole bucket of them; it goes only when the rules
//!   have let the new one pass, and which one goes is not left to chance (`eviction` says more).
//! - An insertion cannot clash with another processor's: there is none.
//! - DESTROY events are told when a connection is removed, which here is soon after it timed out, in Linux within a minute.
//! - UDP-Lite's checksum is verified with its own protocol number (RFC 3828). Linux verifies it with UDP's, so it calls
//!   every right one INVALID.
//! - A transport checksum that is the bare sum of the pseudo-header is taken for one that a NIC was to finish, as veth and
//!   virtio hand packets over. Linux knows from its own records whether it is, and would call it INVALID where it is not.
//! - Zones of one direction allow two connections of which a packet could be either, in opposite directions. Linux takes
//!   the younger; here it may be either.
//! - Time is counted in nanoseconds, in Linux in ticks of one to ten milliseconds.
//! - Packets are tracked whether or not a rule asks about connections; Linux tracks where one does.
//! - The router's own packets (ICMP errors, resets) begin no connection and change none. On Linux they pass the table in OUTPUT.
//! - Fragments are dropped before conntrack until reassembly is there.

mod ask;
mod clash;
mod copy;
mod eviction;
mod help;
mod home;
mod show;
mod tell;
mod translate;

pub use copy::ConnCopy;
use eviction::Hand;
pub use help::FollowMaster;
pub use home::Emigrant;
pub use translate::Manip;

use super::blocks::Blocks;
use super::conn::{Conn, ConnId, Prepared, UNLINKED};
use super::event::{EventKind, Recorder};
use super::expect::{Expectations, MasterId};
use super::extra::Extras;
use super::homes::Homes;
use super::icmp::{self, Message};
use super::keymap::Keymap;
use super::list::{ConnView, Counter, StateView};
use super::mapping::Mappings;
use super::seqadj::SeqAdjust;
use super::settings::Settings;
use super::source::Sources;
use super::statistics::{Memory, Statistics};
use super::table::{Candidate, Table};
use super::tcp::TcpRecord;
use super::template::{Template, Zone, ZoneDirection};
use super::tuple::{CtInfo, CtStatus, Direction, Tuple};
use super::wheel::Wheel;
use super::{generic, sctp, tcp, udp};
use crate::packet::Packet;
use crate::time::{Instant, SECOND_NS};
use crate::verdict::DropReason;
use crate::wire::{Family, proto, tcp as tcp_flags};

/// What a protocol makes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Accepted; the connection lives for this many seconds from now.
    Refresh(u32),
    /// Accepted without a trace.
    Accept,
    /// Not part of the connection.
    Invalid,
    /// Accepted, and the connection is over at once.
    Forget,
    /// The connection is over, and the packet begins a new one.
    Reopen,
}

/// The connection a packet belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnRef {
    /// None: INVALID or UNTRACKED.
    None,
    /// One in the table.
    Confirmed(ConnId),
    /// The one that this packet would begin.
    Prepared,
    /// One that this packet has ended: it is in the table no more, and still says what becomes of the packet.
    Ended,
}

/// What conntrack says about a packet. `info` holds for all later rules, whatever becomes of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tracked {
    /// How it relates to its connection.
    pub info: CtInfo,
    /// Which connection.
    pub conn: ConnRef,
    /// The connection's status bits after this packet; empty without one.
    pub status: CtStatus,
}

impl Tracked {
    /// Could not be made sense of.
    pub const INVALID: Tracked = Tracked { info: CtInfo::Invalid, conn: ConnRef::None, status: CtStatus(0) };
    /// Not tracked on purpose.
    pub const UNTRACKED: Tracked = Tracked { info: CtInfo::Untracked, conn: ConnRef::None, status: CtStatus(0) };
}

/// See the module's head.
#[derive(Debug)]
pub struct Conntrack {
    settings: Settings,
    /// What `settings.max` was at start.
    most: usize,
    table: Table,
    wheel: Wheel,
    sources: Sources,
    mappings: Mappings,
    blocks: Blocks,
    /// `expires` is the timeout itself until it is confirmed.
    prepared: Option<Prepared>,
    prepared_counter: Counter,
    /// The connection that the packet in hand has ended, and the record it had.
    ended: Option<(ConnId, Prepared)>,
    /// Where the next search for a connection that can go begins.
    hand: Hand,
    /// The connection that goes when the prepared one is confirmed.
    victim: Option<ConnId>,
    /// The next record to look at for something that can go, after a packet found no room.
    relief: Option<usize>,
    /// By record number; empty unless `acct` was on at start.
    counters: Vec<[Counter; 2]>,
    /// When each was confirmed, by record number; empty unless `timestamp` was on at start.
    starts: Vec<Instant>,
    statistics: Statistics,
    events: Recorder,
    /// What connections with a helper, and expected ones, have beside their record.
    extras: Extras,
    expectations: Expectations,
    /// Of the prepared connection.
    keys: Keymap,
    prepared_extra: Option<MasterId>,
    /// How the prepared connection is to be translated, as its master says.
    follow: Option<FollowMaster>,
    /// Where connections live, if there are several workers.
    homes: Option<Box<Homes>>,
}

impl Conntrack {
    /// A tracker for `settings.max` connections, all its memory allocated. `secret` keys the hash; take it from the
    /// system's random source.
    ///
    /// # Panics
    /// When [`Settings::check`] would have refused the settings.
    pub fn new(settings: Settings, secret: [u64; 2]) -> Conntrack {
        let capacity = settings.max;
        Conntrack::with_room(settings, capacity, secret)
    }

    /// One of several trackers, that together have at most `settings.max` connections, and each at most `capacity`.
    ///
    /// # Panics
    /// As [`Conntrack::new`].
    pub fn among(settings: Settings, capacity: usize, secret: [u64; 2], homes: Homes) -> Conntrack {
        let mut tracker = Conntrack::with_room(settings, capacity, secret);
        tracker.expectations.set_others(homes.others());
        tracker.homes = Some(Box::new(homes));
        tracker
    }

    fn with_room(settings: Settings, capacity: usize, secret: [u64; 2]) -> Conntrack {
        let table = Table::new(capacity, secret);
        let counters = if settings.acct { vec![[Counter::default(); 2]; capacity] } else { Vec::new() };
        let hand = Hand::new(capacity);
        let extras = Extras::new(capacity);
        let expectations = Expectations::new(settings.expect_max, secret);
        let starts = if settings.timestamp { vec![Instant::ZERO; capacity] } else { Vec::new() };
        let sources = Sources::new(capacity);
        let mappings = Mappings::new(capacity);
        let blocks = Blocks::new(capacity);
        let most = settings.max;
        Conntrack {
            settings,
            most,
            table,
            wheel: Wheel::new(),
            sources,
            mappings,
            blocks,
            prepared: None,
            prepared_counter: Counter::default(),
            ended: None,
            hand,
            victim: None,
            relief: None,
            counters,
            starts,
            statistics: Statistics::default(),
            events: Recorder::new(),
            extras,
            expectations,
            keys: Keymap::default(),
            prepared_extra: None,
            follow: None,
            homes: None,
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Puts other settings in force; no connection is lost. `max` cannot grow beyond the capacity the tracker was built
    /// with, and `acct` and `timestamp` cannot be turned on if they were off then.
    ///
    /// # Errors
    /// Which setting needs a restart.
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), String> {
        settings.check()?;
        if settings.max > self.most {
            return Err(format!(
                "nf_conntrack_max = {}: the table was built for {}; needs a restart to become larger",
                settings.max, self.most
            ));
        }
        if settings.acct && self.counters.is_empty() {
            return Err("nf_conntrack_acct = 1: memory for counters is taken at start; needs a restart".into());
        }
        if settings.timestamp && self.starts.is_empty() {
            return Err("nf_conntrack_timestamp = 1: memory for start times is taken at start; needs a restart".into());
        }
        self.expectations.set_max(settings.expect_max);
        self.settings = settings;
        Ok(())
    }

    /// The keyed hash that [`Conntrack::track`] and the prefetches want.
    #[inline]
    pub fn hash(&self, tuple: &Tuple) -> u64 {
        self.table.hash(tuple)
    }

    /// First stage of a batch: asks for the index's cache line.
    #[inline]
    pub fn prefetch_bucket(&self, hash: u64) {
        self.table.prefetch_bucket(hash);
    }

    /// Second stage of a batch: asks for what this packet reads of its connection, and says which that may be.
    #[inline]
    pub fn prefetch_conn(&self, packet: &Packet, hash: u64) -> Candidate {
        self.table.prefetch_conn(hash, packet.family, packet.proto)
    }

    /// [`Conntrack::lookup`] of [`Tuple::of`] a packet, by what [`Conntrack::prefetch_conn`] has said. (It saves the index a
    /// second look, and a packet the making of its tuple.)
    #[inline(always)]
    pub fn lookup_candidate(
        &mut self,
        candidate: Candidate,
        packet: &Packet,
        hash: u64,
        now: Instant,
    ) -> Option<(ConnId, Direction)> {
        match self.table.confirm_candidate(candidate, &Tuple::of(packet)) {
            Some((id, direction)) if !self.table.get(id).is_expired(now) => Some((id, direction)),
            _ => self.lookup(&Tuple::of(packet), hash, now),
        }
    }

    /// Classifies a packet and updates its connection, or prepares a new one. `hash` is that of [`Tuple::of`] the packet;
    /// `template` is what raw PREROUTING said.
    ///
    /// # Errors
    /// [`DropReason::ConntrackFull`], when a new connection finds no room.
    pub fn track(
        &mut self,
        packet: &Packet,
        frame: &[u8],
        hash: u64,
        template: Template,
        now: Instant,
    ) -> Result<Tracked, DropReason> {
        self.forget_prepared();
        self.victim = None;
        if template.notrack {
            return Ok(Tracked::UNTRACKED);
        }
        let mut tuple = Tuple::of(packet);
        let mut hash = hash;
        match packet.proto {
            proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE => {
                if packet.l4_len < 4 {
                    return Ok(self.invalid());
                }
            }
            proto::ICMP | proto::ICMPV6 => {
                if let Some(tracked) = self.look_at_icmp(packet, frame, template.zone, now) {
                    return Ok(tracked);
                }
            }
            _ => match portless_tuple(packet, frame, tuple).map(|found| self.with_source_key(found, packet, frame)) {
                Some(found) if found == tuple => {}
                Some(found) => {
                    tuple = found;
                    hash = self.hash(&tuple);
                }
                None => return Ok(self.invalid()),
            },
        }
        loop {
            let found = match template.zone {
                Zone::DEFAULT => self.lookup(&tuple, hash, now),
                zone => self.lookup_in(zone, tuple, now),
            };
            let tracked = match found {
                Some((id, direction)) => self.update(id, direction, packet, frame, now),
                None => Some(self.prepare(tuple, template, packet, frame, now)?),
            };
            if let Some(tracked) = tracked {
                return Ok(tracked);
            }
        }
    }

    /// [`Conntrack::track`] for a TCP or UDP packet whose connection [`Conntrack::lookup`] has just found.
    ///
    /// # Errors
    /// As [`Conntrack::track`].
    #[inline(always)]
    pub fn track_known(
        &mut self,
        known: (ConnId, Direction),
        packet: &Packet,
        frame: &[u8],
        hash: u64,
        now: Instant,
    ) -> Result<Tracked, DropReason> {
        match self.track_further(known, packet, frame, now) {
            Some(tracked) => Ok(tracked),
            None => self.track(packet, frame, hash, Template::DEFAULT, now),
        }
    }

    /// The same, unless the packet begins the connection anew: `None`, and it is to be tracked as if nothing was known.
    #[inline(always)]
    pub fn track_further(
        &mut self,
        known: (ConnId, Direction),
        packet: &Packet,
        frame: &[u8],
        now: Instant,
    ) -> Option<Tracked> {
        self.forget_prepared();
        self.update(known.0, known.1, packet, frame, now)
    }

    /// For a packet that is not tracked: what was prepared for the one before is not its.
    #[inline]
    pub fn forget_prepared(&mut self) {
        if self.homes.is_some()
            && let Some(new) = self.prepared.take()
        {
            self.leave_roster(&new);
        }
        self.prepared = None;
        self.forget_extra();
    }

    /// What the datapath has noted for one direction of a connection; 0 at first.
    #[inline]
    pub fn shortcut(&self, (id, direction): (ConnId, Direction)) -> u32 {
        self.table.get(id).shortcut[direction.index()]
    }

    /// Notes a number for one direction of a connection.
    #[inline]
    pub fn set_shortcut(&mut self, (id, direction): (ConnId, Direction), number: u32) {
        self.table.get_mut(id).shortcut[direction.index()] = number;
    }

    /// Takes the notes of up to `count` records away, from record `from` on. Returns where to go on, `None` at the end.
    pub fn clear_shortcuts(&mut self, from: usize, count: usize) -> Option<usize> {
        let end = from.saturating_add(count).min(self.capacity());
        self.table.records_mut().get_mut(from..end)?.iter_mut().for_each(|conn| conn.shortcut = [0; 2]);
        (end < self.capacity()).then_some(end)
    }

    /// Makes the prepared connection visible in both directions. Does nothing for any other packet.
    ///
    /// # Errors
    /// The packet is to be dropped: another connection has taken the tuple, or the index has no room.
    #[inline]
    pub fn confirm(&mut self, tracked: &Tracked, now: Instant) -> Result<(), DropReason> {
        match tracked.conn {
            ConnRef::Prepared => self.confirm_prepared(now),
            conn => {
                self.tell_news(conn, now);
                Ok(())
            }
        }
    }

    /// [`Conntrack::confirm`] of a packet that begins a connection.
    fn confirm_prepared(&mut self, now: Instant) -> Result<(), DropReason> {
        let Some(mut new) = self.prepared.take() else { return Ok(()) };
        if new.exhausted {
            self.leave_roster(&new);
            return self.refuse_new(DropReason::NatExhausted);
        }
        for direction in [Direction::Original, Direction::Reply] {
            let tuple = new.tuple(direction);
            let taken = match new.conn.zone().direction {
                ZoneDirection::Both => self.lookup(&tuple, self.hash(&tuple), now),
                _ => self.lookup_of(&tuple, direction, now),
            };
            if let Some((id, _)) = taken {
                if self.table.tuple(id, Direction::Original) != new.tuple(Direction::Original) {
                    self.leave_roster(&new);
                }
                return self.resolve_clash(&new, id);
            }
            let posted =
                direction == Direction::Reply && self.homes.as_ref().is_some_and(|homes| homes.is_posted(&tuple));
            if posted {
                self.leave_roster(&new);
                return self.refuse_new(DropReason::ConntrackClash);
            }
        }
        let counted = self.victim.take().is_some_and(|victim| self.give_way(victim, now)) || self.reserve();
        if !counted {
            // Another worker has taken the last place since.
            self.leave_roster(&new);
            self.miss_room();
            return Err(DropReason::ConntrackFull);
        }
        new.conn.expires = now + new.conn.expires.as_ns();
        let Some(id) = self.insert(&new) else {
            self.statistics.chaintoolong += 1;
            self.leave_roster(&new);
            return self.refuse_new(DropReason::ConntrackFull);
        };
        if let Some(counters) = self.counters.get_mut(id.index()) {
            *counters = [self.prepared_counter, Counter::default()];
        }
        if let Some(start) = self.starts.get_mut(id.index()) {
            *start = if self.settings.timestamp { now } else { Instant::ZERO };
        }
        let record = self.table.get_mut(id);
        if record.link == UNLINKED {
            self.wheel.hang(record, id, now);
        }
        self.note_source(id, true);
        self.hold_mappings(id, &new);
        self.attach_extra(id);
        self.note_begin(id);
        self.statistics.insert += 1;
        self.tell(EventKind::New, id, now, 0);
        Ok(())
    }

    /// Removes what has timed out, and after a packet found no room what can go, looking at up to `budget` records. Returns
    /// how many it looked at: less than `budget` when nothing more is to be done now.
    pub fn expire(&mut self, now: Instant, budget: usize) -> usize {
        if !self.expectations.is_empty() {
            self.expectations.expire(now, budget);
            self.count_expectations();
        }
        for looked in 0..budget {
            let Some(id) = self.wheel.take_due(self.table.records_mut(), now) else {
                return looked + self.relieve(now, budget - looked);
            };
            let conn = self.table.get_mut(id);
            if !conn.is_confirmed() {
                continue; // a free record; it hangs again when it is next used
            }
            if conn.is_expired(now) {
                self.remove(id, now, 0);
                self.statistics.expired += 1;
            } else {
                self.wheel.hang(conn, id, now);
            }
        }
        budget
    }

    /// When [`Conntrack::expire`] will next have something to look at.
    pub fn next_deadline(&self) -> Option<Instant> {
        let next = if self.relief.is_some() { Some(Instant::ZERO) } else { self.wheel.next_deadline() };
        [next, self.expectations.next_deadline()].into_iter().flatten().min()
    }

    /// A REJECT answered a packet of this connection with a TCP reset: it is over.
    pub fn close_by_reset(&mut self, conn: ConnRef, now: Instant) {
        let ConnRef::Confirmed(id) = conn else { return };
        let listening = self.events.is_on();
        let conn = self.table.get_mut(id);
        if conn.is_confirmed() {
            let before = if listening { Some(standing(conn)) } else { None };
            tcp::close(conn, &self.settings, now);
            note_changes(conn, before, false);
            self.tell_roster(id);
        }
    }

    /// The connection with this tuple, live or expired and not yet collected. Changes nothing; for tests and benchmarks.
    #[inline]
    pub fn find(&self, tuple: &Tuple, hash: u64) -> Option<(ConnId, Direction)> {
        self.table.find(tuple, hash)
    }

    /// Sets the mark of a packet's connection (CONNMARK). `false` when it has none.
    #[inline]
    pub fn set_mark(&mut self, conn: ConnRef, mark: u32) -> bool {
        let listening = self.events.is_on();
        let record = match conn {
            ConnRef::None => None,
            ConnRef::Confirmed(id) => Some(self.table.get_mut(id)).filter(|conn| conn.is_confirmed()),
            ConnRef::Prepared => self.prepared.as_mut().map(|new| &mut new.conn),
            ConnRef::Ended => self.ended.as_mut().map(|(_, old)| &mut old.conn),
        };
        let Some(conn) = record else { return false };
        if conn.mark != mark {
            conn.mark = mark;
            // Of a new connection NEW will tell it.
            conn.flags |= if listening && conn.is_confirmed() { Conn::CHANGED } else { 0 };
        }
        true
    }

    /// The record of a packet's connection.
    pub fn conn(&self, conn: ConnRef) -> Option<&Conn> {
        match conn {
            ConnRef::None => None,
            ConnRef::Confirmed(id) => Some(self.table.get(id)).filter(|conn| conn.is_confirmed()),
            ConnRef::Prepared => self.prepared.as_ref().map(|new| &new.conn),
            ConnRef::Ended => self.ended.as_ref().map(|(_, old)| &old.conn),
        }
    }

    /// The tuple of one direction of a packet's connection.
    pub fn tuple(&self, conn: ConnRef, direction: Direction) -> Option<Tuple> {
        match conn {
            ConnRef::None => None,
            ConnRef::Confirmed(id) => self.table.get(id).is_confirmed().then(|| self.table.tuple(id, direction)),
            ConnRef::Prepared => self.prepared.as_ref().map(|new| new.tuple(direction)),
            ConnRef::Ended => self.ended.as_ref().map(|(_, old)| old.tuple(direction)),
        }
    }

    /// Connections in the table. Some may have expired and not been collected yet, as in Linux's own count.
    #[inline]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Connections there is memory for.
    pub fn capacity(&self) -> usize {
        self.table.capacity()
    }

    /// What it takes of the machine's memory.
    pub fn memory(&self) -> Memory {
        let (start, v6) = self.table.memory_bytes();
        let beside = self.counters.len() * size_of::<[Counter; 2]>() + self.starts.len() * size_of::<Instant>();
        let start_bytes = start + beside + size_of::<Conntrack>();
        let nat_bytes = self.table.translated_bytes() + self.sources.memory_bytes();
        let nat_bytes = nat_bytes + self.mappings.memory_bytes() + self.blocks.memory_bytes();
        Memory { entries: self.capacity(), start_bytes, v6_bytes: v6, nat_bytes }
    }

    /// Counters.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Takes a connection out, and tells so.
    fn remove(&mut self, id: ConnId, now: Instant, by: u32) {
        self.tell(EventKind::Destroy, id, now, by);
        self.note_source(id, false);
        self.release_mappings(id);
        self.remove_extra(id, now);
        self.note_end(id);
        self.table.remove(id);
    }

    fn view(&self, id: ConnId, conn: &Conn, now: Instant) -> ConnView {
        let counters = match conn.flags & Conn::COUNTED {
            0 => None,
            _ => self.counters.get(id.index()).copied(),
        };
        // An identifier that does not tell where the record lies, as Linux's.
        let tuples = [Direction::Original, Direction::Reply].map(|direction| self.table.tuple(id, direction));
        let name = (self.table.hash(&tuples[0]) >> 16) as u32 ^ id.0;
        let start = self.starts.get(id.index()).filter(|start| **start != Instant::ZERO);
        let helper = if conn.status.any(CtStatus::HELPER) { self.helper(ConnRef::Confirmed(id)) } else { None };
        let view = ConnView::new(conn, tuples, name, counters, start.map(|start| start.as_ns()), now);
        ConnView { helper, ..view }
    }

    /// Checks every invariant of table and wheel, slowly.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check(&self) {
        self.table.check();
        for conn in self.table.records() {
            assert!(!conn.is_confirmed() || conn.link != UNLINKED, "a connection the wheel does not know of");
        }
        self.check_translations();
        self.check_help();
    }

    fn invalid(&mut self) -> Tracked {
        self.statistics.invalid += 1;
        Tracked::INVALID
    }

    /// Finds a live connection; removes expired ones that are in the way.
    pub fn lookup(&mut self, tuple: &Tuple, hash: u64, now: Instant) -> Option<(ConnId, Direction)> {
        while let Some((id, direction)) = self.table.find(tuple, hash) {
            if self.is_live(id, now) {
                return Some((id, direction));
            }
        }
        None
    }

    /// Whether a connection's time is not up. It goes, if it is: behind it another may have the same tuple (in zones of one
    /// direction).
    #[inline]
    fn is_live(&mut self, id: ConnId, now: Instant) -> bool {
        if !self.table.get(id).is_expired(now) {
            return true;
        }
        self.remove(id, now, 0);
        self.statistics.expired += 1;
        false
    }

    /// [`Conntrack::lookup`] in a zone: the original tuple in the zone's part for originals, or the reply tuple in that for
    /// replies (`__nf_conntrack_find_get`).
    #[cold]
    fn lookup_in(&mut self, zone: Zone, tuple: Tuple, now: Instant) -> Option<(ConnId, Direction)> {
        if zone.direction == ZoneDirection::Both {
            let tuple = Tuple { zone: zone.id, ..tuple };
            return self.lookup(&tuple, self.hash(&tuple), now);
        }
        [Direction::Original, Direction::Reply].into_iter().find_map(|direction| {
            let tuple = Tuple { zone: zone.of(direction), ..tuple };
            self.lookup_of(&tuple, direction, now)
        })
    }

    /// [`Conntrack::lookup`] among the tuples of one direction.
    fn lookup_of(&mut self, tuple: &Tuple, direction: Direction, now: Instant) -> Option<(ConnId, Direction)> {
        let hash = self.hash(tuple);
        while let Some((id, direction)) = self.table.find_of(tuple, hash, direction) {
            if self.is_live(id, now) {
                return Some((id, direction));
            }
        }
        None
    }

    /// The counters of a confirmed connection, where they are kept.
    #[inline]
    fn counters_of(&mut self, id: ConnId) -> Option<&mut [Counter; 2]> {
        match self.table.get(id).flags & Conn::COUNTED {
            0 => None,
            _ => self.counters.get_mut(id.index()),
        }
    }

    /// `None` when the message is tracked by its own tuple.
    fn look_at_icmp(&mut self, packet: &Packet, frame: &[u8], zone: Zone, now: Instant) -> Option<Tracked> {
        if !packet.is_icmp() {
            // ICMP of the other IP version never becomes a connection.
            return Some(self.invalid());
        }
        match icmp::look(packet, frame, &self.settings) {
            Message::Own => None,
            Message::Untracked => Some(Tracked::UNTRACKED),
            Message::Invalid => Some(self.icmp_error()),
            Message::About(tuple) => Some(self.relate(packet, tuple, zone, now)),
        }
    }

    fn icmp_error(&mut self) -> Tracked {
        self.statistics.error += 1;
        Tracked::INVALID
    }

    /// An ICMP error about a packet; `tuple` is the inverse of that packet's (`nf_conntrack_inet_error`).
    fn relate(&mut self, packet: &Packet, tuple: Tuple, zone: Zone, now: Instant) -> Tracked {
        let tuple = self.with_answering_key(tuple);
        let Some((id, direction)) = self.lookup_in(zone, tuple, now) else { return self.icmp_error() };
        if self.table.tuple(id, direction).dst != packet.dst {
            return self.icmp_error(); // not meant for the sender of the packet in question
        }
        let info = match direction {
            Direction::Original => CtInfo::Related,
            Direction::Reply => CtInfo::RelatedReply,
        };
        Tracked { info, conn: ConnRef::Confirmed(id), status: self.table.get(id).status }
    }

    /// A packet of a connection in the table. `None`: that connection is gone, look again.
    #[inline(always)]
    fn update(
        &mut self,
        id: ConnId,
        direction: Direction,
        packet: &Packet,
        frame: &[u8],
        now: Instant,
    ) -> Option<Tracked> {
        let listening = self.events.is_on();
        let adjust = self.seq_adjust(id);
        let (conn, tcp) = self.table.get_with_tcp_mut(id);
        // Looked at only when somebody listens: the state of before, and the status.
        let before = if listening { Some(standing(conn)) } else { None };
        let info = match direction {
            Direction::Reply => CtInfo::EstablishedReply,
            Direction::Original if conn.status.any(CtStatus::SEEN_REPLY) => CtInfo::Established,
            Direction::Original if conn.status.any(CtStatus::EXPECTED) => CtInfo::Related,
            Direction::Original => CtInfo::New,
        };
        let was_over = packet.proto == proto::TCP && tcp::TcpState::of(conn).is_over();
        let outcome = apply((conn, tcp), direction, packet, frame, &self.settings, adjust.as_ref(), now);
        match outcome {
            Outcome::Invalid => {
                // What an SCTP packet's first chunks have changed stays.
                note_changes(conn, before, false);
                return Some(self.invalid());
            }
            Outcome::Reopen => {
                self.remove(id, now, 0);
                return None;
            }
            Outcome::Refresh(seconds) => {
                if conn.flags & Conn::FIXED_TIMEOUT == 0 {
                    conn.expires = now + u64::from(seconds) * SECOND_NS;
                }
            }
            Outcome::Accept | Outcome::Forget => {}
        }
        if outcome != Outcome::Accept
            && conn.flags & Conn::COUNTED != 0
            && let Some(counters) = self.counters.get_mut(id.index())
        {
            counters[direction.index()].count(packet);
        }
        let seen = if info == CtInfo::EstablishedReply { CtStatus::SEEN_REPLY } else { CtStatus(0) };
        let status = conn.status.with(seen);
        if outcome == Outcome::Forget {
            self.ended = Some((id, self.record(id)));
            self.remove(id, now, 0);
            return Some(Tracked { info, conn: ConnRef::Ended, status });
        }
        conn.status = status;
        note_changes(conn, before, is_resync(outcome, direction, packet));
        if self.homes.is_some()
            && packet.proto == proto::TCP
            && tcp::TcpState::of(self.table.get(id)).is_over() != was_over
        {
            self.tell_roster(id);
        }
        Some(Tracked { info, conn: ConnRef::Confirmed(id), status })
    }

    /// The first packet of what may become a connection (`init_conntrack`).
    fn prepare(
        &mut self,
        tuple: Tuple,
        template: Template,
        packet: &Packet,
        frame: &[u8],
        now: Instant,
    ) -> Result<Tracked, DropReason> {
        if tuple.inverse().is_none() {
            return Ok(self.invalid());
        }
        if self.is_full() {
            self.victim = self.find_room(now)?;
        }
        let mut new = Prepared::in_zone(tuple, template.zone);
        self.furnish(&mut new, template.helper, now);
        let status = new.conn.status;
        let Prepared { conn, tcp, .. } = &mut new;
        let Outcome::Refresh(seconds) =
            apply((conn, tcp), Direction::Original, packet, frame, &self.settings, None, now)
        else {
            self.forget_extra();
            return Ok(self.invalid());
        };
        conn.expires = Instant::from_ns(u64::from(seconds) * SECOND_NS);
        self.prepared_counter = Counter::default();
        if self.settings.acct {
            conn.flags |= Conn::COUNTED;
            self.prepared_counter.count(packet);
        }
        // The rules come first, so there is time.
        self.table.prefetch_insert(self.hash(&new.tuple(Direction::Reply)));
        self.prefetch_source(&tuple);
        self.prepared = Some(new);
        let info = if status.any(CtStatus::EXPECTED) { CtInfo::Related } else { CtInfo::New };
        Ok(Tracked { info, conn: ConnRef::Prepared, status })
    }
}

/// The tuple of a protocol that has neither ports nor ICMP's fields; `None` when the packet has no transport at all.
/// Under IPv6 the extension headers' own numbers stand here only when the chain is cut short; when it is merely its last
/// header that reaches beyond the packet, Linux takes the protocol it announces.
fn portless_tuple(packet: &Packet, frame: &[u8], tuple: Tuple) -> Option<Tuple> {
    match packet.proto {
        proto::HOP_BY_HOP | proto::ROUTING | proto::FRAGMENT | proto::AH | proto::DEST_OPTIONS | proto::NO_NEXT
            if packet.family == Family::V6 =>
        {
            None
        }
        proto::GRE => generic::gre_tuple(tuple, packet.l4_bytes(frame)),
        _ => Some(tuple),
    }
}

/// What events tell changes of.
#[cold]
fn standing(conn: &Conn) -> (Option<StateView>, CtStatus) {
    (conn.state_view(), conn.status)
}

/// Notes for [`Conntrack::tell_changes`] how a connection differs from `before`, which is `None` while nobody listens.
#[inline]
fn note_changes(conn: &mut Conn, before: Option<(Option<StateView>, CtStatus)>, is_resync: bool) {
    let Some((state, status)) = before else { return };
    if is_resync || conn.state_view() != state {
        conn.flags |= Conn::MOVED;
    }
    if conn.status != status {
        conn.flags |= Conn::CHANGED;
    }
}

/// A SYN/ACK that is taken for the answer to a repeated SYN sets the state back to what it may have been before; Linux
/// calls that a change too.
fn is_resync(outcome: Outcome, direction: Direction, packet: &Packet) -> bool {
    const SYN_ACK: u8 = tcp_flags::SYN | tcp_flags::ACK;
    packet.proto == proto::TCP
        && direction == Direction::Reply
        && matches!(outcome, Outcome::Refresh(_))
        && packet.tcp_flags & (SYN_ACK | tcp_flags::RST) == SYN_ACK
}

/// Has the packet's protocol look at it (`nf_conntrack_handle_packet`).
#[inline(always)]
fn apply(
    (conn, tcp): (&mut Conn, &mut TcpRecord),
    direction: Direction,
    packet: &Packet,
    frame: &[u8],
    settings: &Settings,
    adjust: Option<&SeqAdjust>,
    now: Instant,
) -> Outcome {
    match packet.proto {
        proto::TCP => tcp::packet(conn, tcp, direction, packet, frame, (settings, adjust), now),
        proto::UDP => udp::packet(conn, packet, settings, now),
        proto::ICMP | proto::ICMPV6 => icmp::packet(conn, packet, settings),
        proto::UDPLITE => udp::packet_lite(conn, packet, frame, settings),
        proto::SCTP => sctp::packet(conn, direction, packet, frame, settings),
        proto::GRE => generic::packet_gre(conn, settings),
        _ => generic::packet(settings),
    }
}

#[cfg(test)]
mod tests;
