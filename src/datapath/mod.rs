//! The path of a packet: [`process`]. Read this file first.
//!
//! A batch goes through three stages. (a) Every packet is parsed and hashed, then every connection-table bucket prefetched.
//! (b) Every bucket is probed and the connection's record prefetched; for several flows that seem new,
//! routes and rules are looked up side by side ([`ahead`]). (c) Every packet is decided, in order of arrival, by
//! `Path::decide`, which is netfilter's order for a forwarded packet and nothing else. A dependent cache miss costs
//! many times an independent one; that is why nothing is looked up one packet at a time. A packet of a known connection
//! mostly takes the [`shortcut`] that an earlier one has found.
//!
//! The core knows no file descriptor, clock, thread, log or environment: time is the argument `now`, and all it wants done
//! it writes into [`Effects`]. So the same code runs on AF_XDP, in the simulator, under the fuzzer, in a benchmark and over
//! capture files.

mod ahead;
mod answer;
mod batch;
mod budget;
mod dice;
mod effects;
mod handover;
mod help;
mod renumber;
mod shard;
mod shortcut;
mod surroundings;
mod translate;
mod waiting;
mod witness;

pub use batch::{BATCH, Batch};
pub use effects::{Effects, Resolve};
pub use handover::{Emigration, Parcel, immigrate};
pub use shard::{Counters, Ledger, PortCounters, Shard, WallClock};
pub use witness::{Answered, Ends, Exit, Meeting, Witness};

use crate::conntrack::{
    Candidate, ConnId, ConnRef, CtInfo, CtStatus, Direction, EndsV4, Manip, Sent, Template, Tracked, Tuple,
};
use crate::device::{Frame, PortId};
use crate::packet::{L4, Packet};
use crate::reply;
use crate::rewrite::{self, Options};
use crate::route::{Neighbour, Route};
use crate::rules::{
    ChainIndex, Context, Decision, FORWARD, Hook, MANGLE_FORWARD, MANGLE_POSTROUTING, MANGLE_PREROUTING,
    RAW_PREROUTING, RuleVector, SECURITY_FORWARD, Trace,
};
use crate::snapshot::{BadSource, Policy, Routing};
use crate::time::{Instant, SECOND_NS};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Addr, Family, Mac, ethernet, proto};

use ahead::Seen;
use shard::{Work, family_index};
use shortcut::Shortcut;
use surroundings::Surroundings;

/// Decides every packet of `batch` and empties it. Afterwards each frame is in a queue of `effects` or waits in `shard`.
pub fn process(
    shard: &mut Shard,
    policy: &Policy,
    routing: &Routing,
    batch: &mut Batch,
    now: Instant,
    effects: &mut Effects,
) {
    shard.follow(policy, routing);
    shard.conntrack.set_arrival(batch.sent, !batch.given);
    let mut places = std::mem::take(&mut shard.work);
    if places.len() < batch.len() {
        places.resize(batch.len(), Work::BLANK);
    }
    let work = &mut places[..batch.len()];
    parse_all(shard, batch, work);
    // In a loop of its own: a prefetch whose page has to be looked up in the page tables holds up what comes after it, and
    // so several are under way at a time (3 % of a packet's whole cost, forwarding on veth; a bucket not asked for is a
    // cache miss in the next loop).
    for work in work.iter() {
        shard.conntrack.prefetch_bucket(work.hash);
    }
    for work in work.iter_mut().filter(|work| work.unreadable.is_none()) {
        work.candidate = shard.conntrack.prefetch_conn(&work.packet, work.hash);
    }
    shard.ahead.clear();
    if work.iter().filter(|work| work.candidate == Candidate::NONE).count() >= ahead::WORTH {
        shard.ahead.look(policy, routing, &shard.rules, work);
    }
    shard.ask_witness(work, now);
    let mut path = Path { shard, policy, routing, now, effects, witnessed: false };
    for (frame, work) in batch.frames.drain(..).zip(work) {
        match work.unreadable {
            None => path.take(frame, work),
            Some(reason) => path.drop(frame, reason),
        };
    }
    path.finish_batch();
    path.shard.work = places;
    batch.bytes = 0;
}

/// Stage (a).
fn parse_all(shard: &mut Shard, batch: &Batch, work: &mut [Work]) {
    let verify = shard.conntrack.settings().checksum;
    if batch.given {
        shard.counters.taken_over += batch.len() as u64;
    } else {
        let counters = &mut shard.counters.ports[batch.port.index()];
        counters.receive_packets += batch.len() as u64;
        counters.receive_bytes += batch.bytes;
    }
    for (frame, work) in batch.frames.iter().zip(work) {
        work.unreadable = work.packet.read(frame.bytes(), batch.port, verify).err();
        if work.unreadable.is_none() {
            work.hash = shard.conntrack.hash(&Tuple::of(&work.packet));
            work.destination = ethernet::destination(frame.bytes());
        }
    }
}

/// What time brings without a packet: neighbours that answered or did not, connections that expired or whose address is gone.
/// Call it once per burst and at [`next_deadline`]; `budget` bounds the connections looked at for expiry.
pub fn expire(
    shard: &mut Shard,
    policy: &Policy,
    routing: &Routing,
    now: Instant,
    budget: usize,
    effects: &mut Effects,
) {
    shard.conntrack.expire(now, budget);
    shard.renumbering.follow(routing, &mut shard.conntrack, now);
    let mut path = Path { shard, policy, routing, now, effects, witnessed: false };
    if !path.shard.waiting.is_empty() {
        path.settle_waiting();
    }
    path.finish_batch();
}

/// When [`expire`] next has something to do.
pub fn next_deadline(shard: &Shard, now: Instant) -> Option<Instant> {
    let waiting = (!shard.waiting.is_empty()).then(|| now + SECOND_NS / 10);
    let renumbering = shard.renumbering.is_under_way().then_some(now);
    [waiting, renumbering, shard.conntrack.next_deadline()].into_iter().flatten().min()
}

/// A connection in the table, and which of its directions a packet has.
type Known = (ConnId, Direction);

/// Whether a packet may take a shortcut, or teach one: it is tracked by its own ports, and nothing in its headers wants a
/// closer look.
#[inline]
fn is_plain(packet: &Packet) -> bool {
    !packet.has_options
        && matches!(packet.proto, proto::TCP | proto::UDP)
        && matches!(packet.l4, L4::Good | L4::PartialChecksum)
}

/// A packet that passed leaves without padding, and with a whole checksum.
#[inline]
fn finish(frame: &mut Frame, packet: &mut Packet) {
    // Mostly there is no padding; a length just written would hold up the frame's move to the queue.
    if frame.len() != packet.frame_len() {
        frame.set_len(packet.frame_len());
    }
    rewrite::finish_checksum(frame.bytes_mut(), packet);
}

/// Whether what was decided for this packet says something about others of the connection.
#[inline]
fn may_teach(tracked: &Tracked, known: Known) -> bool {
    tracked.conn == ConnRef::Confirmed(known.0)
        && matches!(tracked.info, CtInfo::New | CtInfo::Established | CtInfo::EstablishedReply)
}

/// One packet's way; holds what every step needs.
struct Path<'a> {
    shard: &'a mut Shard,
    policy: &'a Policy,
    routing: &'a Routing,
    now: Instant,
    effects: &'a mut Effects,
    /// The shard's witness goes with the packet in hand.
    witnessed: bool,
}

/// Why a packet goes no further, and what its sender is told.
struct Refusal {
    reason: DropReason,
    answer: Answer,
    /// What conntrack has said of it: an answer would belong to the same connection.
    tracked: Tracked,
}

enum Answer {
    Nothing,
    Error(reply::Error),
    Reset,
}

/// Where a packet that passed goes.
struct Way {
    port: PortId,
    gateway: Option<Addr>,
    mtu: u16,
}

/// What a packet carries from chain to chain.
struct Passage {
    tracked: Tracked,
    out_port: Option<PortId>,
    gateway: Option<Addr>,
    out_mtu: u16,
    mark: u32,
    template: Template,
    traced: bool,
    /// Its number in the foresight.
    foreseen: Option<usize>,
}

impl Passage {
    /// Just received.
    const START: Passage = Passage {
        tracked: Tracked::INVALID,
        out_port: None,
        gateway: None,
        out_mtu: 0,
        mark: 0,
        template: Template::DEFAULT,
        traced: false,
        foreseen: None,
    };
}

/// What was found out about a packet before it goes the long way.
struct Before {
    /// A plain packet's connection.
    known: Option<Known>,
    /// What conntrack has said of it already.
    tracked: Option<Tracked>,
    /// What was looked up for the batch.
    seen: Option<Seen>,
}

impl Before {
    const NOTHING: Before = Before { known: None, tracked: None, seen: None };
}

/// A packet's decision before it is carried out.
enum Fate {
    Forward(Way),
    /// As a shortcut says: the way out, and the next hop's address ([`Mac::to_word`]).
    Follow(PortId, u64),
    Punt,
    Refuse(Refusal),
    /// Another worker's, as it came.
    HandOver(u16, Sent),
    /// It begins a connection that this worker shall own.
    Emigrate(u16, Way, Passage),
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Refusal {
        Refusal { reason, answer: Answer::Nothing, tracked: Tracked::INVALID }
    }
}

impl Refusal {
    fn with(reason: DropReason, error: reply::Error) -> Refusal {
        Refusal { reason, answer: Answer::Error(error), tracked: Tracked::INVALID }
    }
}

impl Path<'_> {
    /// What happened to the table beside the packets.
    #[inline]
    fn finish_batch(&mut self) {
        if !self.shard.conntrack.block_events().0.is_empty() {
            self.tell_blocks();
        }
    }

    /// Stage (c) for one packet: decide, then carry it out.
    #[inline]
    fn take(&mut self, mut frame: Frame, work: &mut Work) -> Verdict {
        self.witnessed = work.witnessed;
        if work.witnessed
            && let Some((worker, sent)) = self.elsewhere(&frame, work, false)
        {
            // Who goes with packets goes with it there.
            return self.hand_over(frame, work.packet.port, worker, sent);
        }
        if work.witnessed
            && let Some(witness) = &mut self.shard.witness
        {
            witness.begin(&work.packet, self.now);
        }
        let posted = self.shard.conntrack.is_by_signpost().then(|| Tuple::of(&work.packet));
        let fate = self.decide(&mut frame, work);
        if work.witnessed {
            self.tell_exit(&work.packet, &fate);
        }
        match fate {
            Fate::Follow(out_port, neighbour) => {
                finish(&mut frame, &mut work.packet);
                self.send(frame, out_port, Mac::from_word(neighbour))
            }
            Fate::Forward(way) => self.forward(frame, &mut work.packet, &way),
            Fate::Punt if !self.shard.punts.take(self.now) => self.drop(frame, DropReason::PuntLimited),
            Fate::Punt => {
                // What the kernel gets back has left the sender's NIC for it: a bare frame with nothing left to finish.
                rewrite::finish_checksum(frame.bytes_mut(), &mut work.packet);
                self.shard.counters.punted += 1;
                self.effects.punt.push((work.packet.port, frame));
                Verdict::Punt
            }
            Fate::Refuse(refusal) => {
                let verdict = self.refuse(frame, &work.packet, &refusal);
                if self.shard.conntrack.is_one_of_many() {
                    self.shard.conntrack.forget_refused(posted.as_ref());
                }
                verdict
            }
            Fate::HandOver(worker, sent) => self.hand_over(frame, work.packet.port, worker, sent),
            Fate::Emigrate(worker, way, passage) => self.emigrate(frame, &work.packet, worker, &way, &passage),
        }
    }

    /// Only what is addressed to this port is routed; group addresses are the host's. Then the short way or the long one.
    #[inline]
    fn decide(&mut self, frame: &mut Frame, work: &mut Work) -> Fate {
        let Work { packet, hash, candidate, destination, witnessed, .. } = work;
        if *destination != self.routing.ports[packet.port.index()].mac {
            return if destination.is_group() { Fate::Punt } else { Fate::Refuse(DropReason::NotForUs.into()) };
        }
        if is_plain(packet)
            && self.rules(packet.family).wants_conntrack()
            && let Some(known) = self.shard.conntrack.lookup_candidate(*candidate, packet, *hash, self.now)
        {
            if self.shard.conntrack.is_one_of_many()
                && !*witnessed
                && let Some(home) = self.shard.conntrack.detour(&Tuple::of(packet))
            {
                return Fate::HandOver(home, Sent::Here);
            }
            return match *witnessed {
                false => self.decide_known(frame, packet, *hash, known),
                true => self.decide_fully(frame, packet, *hash, &Before { known: Some(known), ..Before::NOTHING }),
            };
        }
        let missed = is_plain(packet);
        if !*witnessed && let Some((worker, sent)) = self.elsewhere(frame, work, missed) {
            return Fate::HandOver(worker, sent);
        }
        let Work { packet, hash, ahead, .. } = work;
        let seen = self.shard.ahead.get(*ahead);
        self.decide_fully(frame, packet, *hash, &Before { seen, ..Before::NOTHING })
    }

    #[inline]
    fn rules(&self, family: Family) -> &RuleVector {
        match family {
            Family::V4 => &self.policy.v4,
            Family::V6 => &self.policy.v6,
        }
    }

    /// A packet of a known connection: where an earlier one went, if nothing speaks against it.
    #[inline]
    fn decide_known(&mut self, frame: &mut Frame, packet: &mut Packet, hash: u64, known: Known) -> Fate {
        let Shard { conntrack, shortcuts, .. } = &mut *self.shard;
        let kept = match shortcuts.get(conntrack.shortcut(known)) {
            Some(kept) if kept.takes(packet) => kept,
            _ => return self.decide_fully(frame, packet, hash, &Before { known: Some(known), ..Before::NOTHING }),
        };
        let Some(Tracked { info, conn, status }) = conntrack.track_further(known, packet, frame.bytes(), self.now)
        else {
            return self.decide_fully(frame, packet, hash, &Before::NOTHING);
        };
        // By its parts: whole, it would lie in memory, written in small pieces and read in large ones, and the processor would wait
        // (a sixth of the time here, with that of the address in `Fate::Follow`).
        let tracked = || Tracked { info, conn, status };
        if conn != ConnRef::Confirmed(known.0) || !kept.agrees(&tracked(), conntrack) {
            let before = Before { known: Some(known), tracked: Some(tracked()), seen: None };
            return self.decide_fully(frame, packet, hash, &before);
        }
        let &Shortcut { out_port, neighbour, mtu, trace, .. } = kept;
        rewrite::decrement_ttl(frame.bytes_mut(), packet);
        if let Some(trace) = trace {
            shortcuts.count(trace, packet.l3_len);
        }
        let mut translated = status.any(CtStatus::NAT);
        if translated && trace.is_some() && packet.family == Family::V4 {
            // Nobody looks at it between the two ends.
            let EndsV4 { src, dst, sport, dport } = self.shard.conntrack.translation_v4(known);
            rewrite::translate_both_v4(frame.bytes_mut(), packet, [src, dst], [sport, dport]);
            translated = false;
        }
        if translated && let Err(reason) = self.translate(Manip::Destination, frame, packet, &tracked()) {
            return Fate::Refuse(reason.into());
        }
        if trace.is_none() {
            let tracked = tracked();
            let mut passage = Passage { tracked, out_port: Some(out_port), out_mtu: mtu, ..Passage::START };
            if let Err(refusal) = self.meet(FORWARD, Hook::Forward, frame, packet, &mut passage, None) {
                return Fate::Refuse(refusal);
            }
        }
        if translated && let Err(reason) = self.translate(Manip::Source, frame, packet, &tracked()) {
            return Fate::Refuse(reason.into());
        }
        // Known as it is, there may be news of it.
        match self.shard.conntrack.confirm(&tracked(), self.now) {
            Ok(()) => Fate::Follow(out_port, neighbour.to_word()),
            Err(reason) => Fate::Refuse(reason.into()),
        }
    }

    /// Netfilter's order.
    #[inline(never)]
    fn decide_fully(&mut self, frame: &mut Frame, packet: &mut Packet, hash: u64, before: &Before) -> Fate {
        // Host business leaves before conntrack, unless translation may make it other business.
        let route = match &before.seen {
            Some(seen) => seen.route,
            None => self.routing.lookup(packet.family, packet.src, packet.dst),
        };
        self.tell_route(packet, route);
        if route.is_to_host() && !(route == Route::Local && self.may_be_translated(packet.family)) {
            return Fate::Punt;
        }
        if packet.family == Family::V6
            && let Err(reason) = self.check_addresses(packet)
        {
            return Fate::Refuse(reason.into());
        }
        let mut trace = Trace::default();
        match self.pass(frame, packet, hash, before, route, &mut trace) {
            Ok(passed) => passed,
            Err(refusal) => Fate::Refuse(refusal),
        }
    }

    /// The chains in their order, with conntrack and the routing decision at their places between them.
    #[inline]
    fn pass(
        &mut self,
        frame: &mut Frame,
        packet: &mut Packet,
        hash: u64,
        &Before { known, tracked, seen }: &Before,
        route: Route,
        trace: &mut Trace,
    ) -> Result<Fate, Refusal> {
        let mut passage = Passage { foreseen: seen.and_then(|seen| seen.number), ..Passage::START };
        // What is not to be kept need not be traced.
        let mut reads = known.filter(|_| !self.witnessed).map(|_| trace);
        self.meet(RAW_PREROUTING, Hook::Prerouting, frame, packet, &mut passage, reads.as_deref_mut())?;
        // A packet that raw takes out, or puts into a zone, is of another connection than the one found without asking raw.
        let known = known.filter(|_| passage.template == Template::DEFAULT);
        let said = self.track(frame, packet, hash, known, tracked, passage.template.resolved(passage.mark));
        if said.is_err() && route.is_to_host() {
            // A full table has room for all that is only handed on.
            return Ok(Fate::Punt);
        }
        passage.tracked = said?;
        self.follow_master(&mut passage);
        if self.witnessed
            && let Some(witness) = &mut self.shard.witness
        {
            witness.tracked(&mut passage.tracked, &self.shard.conntrack, self.now);
        }
        let mark_before = self.conn_mark(passage.tracked.conn);
        let met = self.meet(MANGLE_PREROUTING, Hook::Prerouting, frame, packet, &mut passage, reads.as_deref_mut());
        if route == Route::Local && passage.tracked.conn == ConnRef::None {
            // The host knows what it is: answers to its own packets are INVALID here, where nobody has seen those.
            return Ok(Fate::Punt);
        }
        met?;
        self.bind(Manip::Destination, frame, packet, &mut passage)?;
        let destination = self.translated_destination(packet, &passage.tracked);
        let route = match destination == packet.dst {
            true => route,
            false => self.route_again(packet, destination),
        };
        if route.is_to_host() {
            self.shard.conntrack.forget_prepared();
            let its_own = destination == packet.dst || self.policy.host_translates(packet.family);
            return if its_own { Ok(Fate::Punt) } else { Err(DropReason::NatToHost.into()) };
        }
        self.translate_watched(Manip::Destination, frame, packet, &passage.tracked)?;
        let of_the_conn = |refusal: Refusal, passage: &Passage| Refusal { tracked: passage.tracked, ..refusal };
        if packet.family == Family::V4 {
            self.check_addresses(packet)?;
        }
        let way = self.route(frame, packet, route).map_err(|refusal| of_the_conn(refusal, &passage))?;
        (passage.out_port, passage.gateway, passage.out_mtu) = (Some(way.port), way.gateway, way.mtu);
        rewrite::decrement_ttl(frame.bytes_mut(), packet);
        for chain in [MANGLE_FORWARD, FORWARD, SECURITY_FORWARD] {
            self.meet(chain, Hook::Forward, frame, packet, &mut passage, reads.as_deref_mut())?;
        }
        self.meet(MANGLE_POSTROUTING, Hook::Postrouting, frame, packet, &mut passage, reads.as_deref_mut())?;
        self.bind(Manip::Source, frame, packet, &mut passage)?;
        if let Some(worker) = self.shard.conntrack.owner_to_be(&passage.tracked) {
            return Ok(Fate::Emigrate(worker, way, passage));
        }
        self.check_masquerade(packet, &passage.tracked, way.port)?;
        self.translate_watched(Manip::Source, frame, packet, &passage.tracked)?;
        self.leave(frame, packet, &passage, &way)?;
        let helped = self.shard.conntrack.wants_help(&passage.tracked);
        let learner = known.filter(|known| !helped && may_teach(&passage.tracked, *known));
        if let (Some(known), Some(trace)) = (learner, reads)
            // Where rules have changed the mark, the next packet may go another way.
            && (!trace.reads_conn_mark() || self.conn_mark(passage.tracked.conn) == mark_before)
        {
            self.learn(known, packet, &passage.tracked, &way, trace);
        }
        Ok(Fate::Forward(way))
    }

    /// The route of a packet whose destination is translated.
    fn route_again(&mut self, packet: &Packet, destination: Addr) -> Route {
        let route = self.routing.lookup(packet.family, packet.src, destination);
        self.tell_route(&Packet { dst: destination, ..*packet }, route);
        route
    }

    fn tell_route(&mut self, packet: &Packet, route: Route) {
        if self.witnessed
            && let Some(witness) = &mut self.shard.witness
        {
            witness.route(packet, route);
        }
    }

    /// conntrack, unless it has spoken already, or no rule wants it.
    #[inline]
    fn track(
        &mut self,
        frame: &Frame,
        packet: &Packet,
        hash: u64,
        known: Option<Known>,
        tracked: Option<Tracked>,
        template: Template,
    ) -> Result<Tracked, DropReason> {
        let wanted = self.rules(packet.family).wants_conntrack();
        let conntrack = &mut self.shard.conntrack;
        match (tracked, known) {
            (Some(tracked), _) => Ok(tracked),
            (None, Some(known)) => conntrack.track_known(known, packet, frame.bytes(), hash, self.now),
            (None, None) if !wanted => {
                conntrack.forget_prepared();
                Ok(Tracked::INVALID)
            }
            (None, None) => conntrack.track(packet, frame.bytes(), hash, template, self.now),
        }
    }

    fn conn_mark(&self, conn: ConnRef) -> u32 {
        self.shard.conntrack.conn(conn).map_or(0, |conn| conn.mark())
    }

    /// Keeps the way of a packet that passed, for the next of its connection.
    fn learn(&mut self, known: Known, packet: &Packet, tracked: &Tracked, way: &Way, trace: &Trace) {
        let hop = waiting::next_hop(packet.family, way.port, way.gateway, packet.dst);
        let Neighbour::Reachable(neighbour) = self.routing.neighbour(hop.port, hop.next_hop) else { return };
        let only_filter = self.rules(packet.family).only_filters();
        let conn_mark = self.conn_mark(tracked.conn);
        let shortcuts = &mut self.shard.shortcuts;
        let kept_trace = shortcuts.learn_trace(packet.family, trace);
        if kept_trace.is_none() && !only_filter {
            // Where the rules are asked every time, all chains are, and the packet may have been changed by them.
            return;
        }
        let status_mask = if kept_trace.is_some() && trace.reads_status() { u16::MAX } else { 0 };
        let flags_mask = if kept_trace.is_some() { trace.reads_flags() } else { 0 };
        let number = shortcuts.learn(&Shortcut {
            in_port: packet.port,
            out_port: way.port,
            mtu: way.mtu,
            neighbour,
            info: tracked.info,
            // Where the rules are asked every time, they see the status themselves.
            status_mask,
            status: tracked.status.0 & status_mask,
            flags_mask,
            flags: packet.tcp_flags & flags_mask,
            conn_mark: (kept_trace.is_some() && trace.reads_conn_mark()).then_some(conn_mark),
            trace: kept_trace,
        });
        self.shard.conntrack.set_shortcut(known, number);
    }

    /// Addresses that no forwarded packet has (`ip_route_input_slow`, `fib_validate_source`, `ip6_rcv_core`,
    /// `ip6_forward`).
    #[inline]
    fn check_addresses(&self, packet: &Packet) -> Result<(), DropReason> {
        let (source, destination) = match packet.family {
            Family::V4 => (is_martian_v4(packet.src), is_martian_v4(packet.dst)),
            Family::V6 => (is_martian_v6(packet.src), is_martian_v6(packet.dst)),
        };
        if source {
            return Err(DropReason::MartianSource);
        }
        if destination || packet.family == Family::V6 && is_link_local_v6(packet.dst) {
            return Err(DropReason::MartianDestination);
        }
        match packet.family {
            Family::V4 => self.routing.check_source(packet.port, packet.src).map_err(|bad| match bad {
                BadSource::Martian => DropReason::MartianSource,
                BadSource::ReversePath => DropReason::ReversePath,
            }),
            Family::V6 => Ok(()),
        }
    }

    /// The routing decision and what Linux refuses before FORWARD, in `ip_forward`'s and `ip6_forward`'s order.
    #[inline]
    fn route(&mut self, frame: &Frame, packet: &Packet, route: Route) -> Result<Way, Refusal> {
        let family = packet.family;
        let unreachable = match family {
            Family::V4 => reply::Error::host_unreachable(family),
            Family::V6 => reply::Error::no_route(family),
        };
        let (port, gateway, mtu) = match route {
            Route::Forward { port, gateway, mtu } => (port, gateway, mtu),
            Route::NoRoute => return Err(Refusal::with(DropReason::NoRoute, reply::Error::no_route(family))),
            Route::Unreachable => return Err(Refusal::with(DropReason::RouteUnreachable, unreachable)),
            Route::Prohibit => {
                return Err(Refusal::with(DropReason::RouteProhibit, reply::Error::prohibited(family)));
            }
            Route::Blackhole => return Err(DropReason::RouteBlackhole.into()),
            Route::Elsewhere => return Err(DropReason::RouteElsewhere.into()),
            Route::Local | Route::Broadcast | Route::Multicast => {
                unreachable!("host business was punted before this step")
            }
        };
        match rewrite::check_options(frame.bytes(), packet) {
            Options::Carry | Options::Record => {}
            Options::SourceRoute => return Err(DropReason::IpOptions.into()),
            Options::Malformed(at) => {
                return Err(Refusal::with(DropReason::IpOptions, reply::Error::parameter_problem(at)));
            }
        }
        if packet.ttl <= 1 {
            return Err(Refusal::with(DropReason::TtlExceeded, reply::Error::time_exceeded(family)));
        }
        if family == Family::V6 && is_link_local_v6(packet.src) {
            let error = reply::Error::unreachable(family, crate::wire::icmpv6::CODE_BEYOND_SCOPE);
            return Err(Refusal::with(DropReason::BeyondScope, error));
        }
        if packet.l3_len > mtu {
            // Without DF Linux would fragment; until this router does, the packet goes without an answer.
            return Err(match packet.dont_fragment {
                true => Refusal::with(DropReason::PacketTooBig, reply::Error::too_big(family, mtu)),
                false => DropReason::PacketTooBig.into(),
            });
        }
        Ok(Way { port, gateway, mtu })
    }

    /// One chain's word on the packet, and what its rules do to it.
    #[inline]
    fn meet(
        &mut self,
        chain: ChainIndex,
        hook: Hook,
        frame: &mut Frame,
        packet: &mut Packet,
        passage: &mut Passage,
        trace: Option<&mut Trace>,
    ) -> Result<(), Refusal> {
        let vector = match packet.family {
            Family::V4 => &self.policy.v4,
            Family::V6 => &self.policy.v6,
        };
        if !vector.has(chain) {
            return Ok(());
        }
        let random = self.shard.random();
        let Shard { conntrack, rules, wall, witness, ahead, dice, source_range, .. } = &mut *self.shard;
        let Tracked { info, status, conn } = passage.tracked;
        let mut world = Surroundings {
            conntrack,
            routing: self.routing,
            effects: self.effects,
            wall,
            conn,
            direction: info.direction(),
            random: core::cell::Cell::new(random | 1),
            is_on_roster: core::cell::Cell::new(false),
            dice,
            source_range,
            gateway: passage.gateway,
            family: packet.family,
            now: self.now,
        };
        let counters = &mut rules[family_index(packet.family)];
        let mut context = Context {
            in_port: packet.port,
            packet,
            frame: frame.room_mut(),
            hook,
            out_port: passage.out_port,
            out_mtu: passage.out_mtu,
            info,
            status,
            mark: passage.mark,
            template: passage.template,
            traced: passage.traced,
            now: self.now,
        };
        let witness = witness.as_mut().filter(|_| self.witnessed);
        let decision = match (trace, witness) {
            (_, Some(witness)) => {
                let generation = self.policy.generation;
                witness.chain(Meeting { vector, generation, chain, context: &mut context, world: &mut world, counters })
            }
            (None, None) => {
                let foreseen = ahead.foreseen(passage.foreseen);
                vector.evaluate_foreseen(chain, &mut context, &mut world, counters, foreseen)
            }
            (Some(trace), None) => vector.trace(chain, &mut context, &mut world, counters, trace),
        };
        (passage.mark, passage.template, passage.traced) = (context.mark, context.template, context.traced);
        if world.is_on_roster.get() {
            conntrack.is_on_roster(conn);
        }
        let refusal = match decision {
            Decision::Accept => return Ok(()),
            Decision::Drop(reason) => reason.into(),
            Decision::Reject(with) => match with.icmp() {
                // A transport checksum that is wrong may mean that the ports are: REJECT answers none such.
                Some(_) if !reply::is_whole(frame.bytes(), packet) => DropReason::RuleReject.into(),
                Some((kind, code)) => Refusal::with(DropReason::RuleReject, reply::Error { kind, code, rest: 0 }),
                None => Refusal { answer: Answer::Reset, ..DropReason::RuleReject.into() },
            },
        };
        Err(Refusal { tracked: passage.tracked, ..refusal })
    }

    /// Tells the witness what becomes of its packet.
    #[cold]
    fn tell_exit(&mut self, packet: &Packet, fate: &Fate) {
        let exit = match fate {
            Fate::Forward(Way { port, gateway, mtu }) => {
                let hop = waiting::next_hop(packet.family, *port, *gateway, packet.dst);
                let neighbour = self.routing.neighbour(hop.port, hop.next_hop);
                Exit::Forward { port: *port, next_hop: hop.next_hop, mtu: *mtu, neighbour }
            }
            Fate::Emigrate(_, Way { port, gateway, mtu }, _) => {
                let hop = waiting::next_hop(packet.family, *port, *gateway, packet.dst);
                let neighbour = self.routing.neighbour(hop.port, hop.next_hop);
                Exit::Forward { port: *port, next_hop: hop.next_hop, mtu: *mtu, neighbour }
            }
            // Nobody with a witness takes a shortcut, or gets as far as here before he is handed over.
            Fate::Follow(..) | Fate::HandOver(..) => return,
            Fate::Punt => Exit::Host,
            Fate::Refuse(Refusal { reason, answer, .. }) => {
                let answer = match answer {
                    Answer::Nothing => Answered::Nothing,
                    Answer::Error(error) => Answered::Error(*error),
                    Answer::Reset => Answered::Reset,
                };
                Exit::Refused { reason: *reason, answer }
            }
        };
        if let Some(witness) = &mut self.shard.witness {
            witness.exit(packet, &exit);
        }
    }

    /// Step 10 of a packet that passed: unfinished checksum, options, padding, then the way out.
    #[inline]
    fn forward(&mut self, mut frame: Frame, packet: &mut Packet, way: &Way) -> Verdict {
        finish(&mut frame, packet);
        let hop = waiting::next_hop(packet.family, way.port, way.gateway, packet.dst);
        if packet.has_options && rewrite::check_options(frame.bytes(), packet) == Options::Record {
            let address = self.routing.source_address(packet.family, way.port, hop.next_hop);
            let recorded = address.is_some_and(|own| rewrite::record_in_options(frame.bytes_mut(), packet, own));
            if !recorded {
                return self.drop(frame, DropReason::IpOptions);
            }
        }
        self.emit(frame, hop)
    }

    /// Sends a finished packet to its next hop, or lets it wait for the address.
    #[inline]
    fn emit(&mut self, frame: Frame, hop: Resolve) -> Verdict {
        if let Neighbour::Reachable(mac) = self.routing.neighbour(hop.port, hop.next_hop) {
            return self.send(frame, hop.port, mac);
        }
        let (surplus, is_new) = self.shard.waiting.hold(hop, frame, self.now);
        self.shard.counters.held += 1; // also what is dropped for want of room: it was to be held
        if is_new {
            self.effects.ask(hop);
        }
        if let Some(frame) = surplus {
            self.drop(frame, DropReason::NeighbourQueueFull);
        }
        Verdict::Hold
    }

    #[inline]
    fn send(&mut self, mut frame: Frame, port: PortId, neighbour: Mac) -> Verdict {
        rewrite::set_link(frame.bytes_mut(), neighbour, self.routing.ports[port.index()].mac);
        let counters = &mut self.shard.counters.ports[port.index()];
        counters.transmit_packets += 1;
        counters.transmit_bytes += frame.len() as u64;
        self.effects.transmit[port.index()].push_back(frame);
        Verdict::Forward
    }

    fn drop(&mut self, frame: Frame, reason: DropReason) -> Verdict {
        self.shard.counters.drops.count(reason);
        self.effects.free.push(frame);
        Verdict::Drop(reason)
    }
}

/// 0.0.0.0 (not the rest of 0/8), loopback, multicast and limited broadcast: no source and no forwarded destination.
fn is_martian_v4(addr: Addr) -> bool {
    let bits = addr.v4_bits();
    bits == 0 || bits >> 24 == 127 || bits >> 28 == 14 || bits == u32::MAX
}

/// Unspecified, loopback and multicast.
fn is_martian_v6(addr: Addr) -> bool {
    addr.bits() <= 1 || addr.words().0 >> 56 == 0xff
}

/// fe80::/10.
fn is_link_local_v6(addr: Addr) -> bool {
    addr.words().0 >> 54 == 0xfe80 >> 6
}

#[cfg(test)]
mod tests;
