//! Address translation on a packet's way: nat PREROUTING and nat POSTROUTING (nf_nat_core.c, nf_nat_proto.c).
//!
//! The rules of nat are asked once for a connection, by its first packet; where none speaks it is bound to what it has
//! ([`nat::bind_null`]). From then on the connection's two tuples say what each packet becomes. The destination is translated
//! before the route is looked up, the source when all other rules have been asked; an ICMP error about a packet of the
//! connection is translated together with what it quotes.
//!
//! What is for the host itself in the end is never translated here: its own stack answers, and its answers do not come
//! this way. It gets the packet as it came, and translates it by the same rules where it has them
//! ([`crate::snapshot::Policy::host_translates`]).

use super::{Ends, Manip, Passage, Path, Refusal, Resolve};
use crate::conntrack::{ConnRef, CtInfo, CtStatus, Direction, Tracked, Tuple, protocol_name};
use crate::device::{Frame, PortId};
use crate::nat;
use crate::packet::Packet;
use crate::reply;
use crate::rewrite::{self, End, Translation};
use crate::rules::{Hook, NAT_POSTROUTING, NAT_PREROUTING, NatRange};
use crate::time::{Instant, SECOND_NS};
use crate::verdict::DropReason;
use crate::wire::{Addr, Family, icmp, icmpv6, proto};

/// New connections dropped because no port or address was free, since that was last said.
#[derive(Debug, Default)]
pub(super) struct Exhaustion {
    dropped: u64,
    said_at: Option<Instant>,
}

/// Time between two lines about it.
const SAY_INTERVAL_NS: u64 = 10 * SECOND_NS;
/// Syslog's levels.
const WARNING: u8 = 4;
const INFO: u8 = 6;

/// The end of a packet that a translation changes.
const fn end_of(manip: Manip) -> End {
    match manip {
        Manip::Source => End::Source,
        Manip::Destination => End::Destination,
    }
}

/// What the end of a packet that looks like `tuple` has. (An ICMP query's identifier stands at the source, and belongs to
/// either.)
fn at_end(tuple: &Tuple, manip: Manip) -> Translation {
    let is_icmp = matches!(tuple.proto, proto::ICMP | proto::ICMPV6);
    match manip {
        Manip::Source => Translation { addr: tuple.src, port: tuple.sport },
        Manip::Destination if is_icmp => Translation { addr: tuple.dst, port: tuple.sport },
        Manip::Destination => Translation { addr: tuple.dst, port: tuple.dport },
    }
}

/// Whether a packet is an ICMP error that conntrack has found the connection of.
fn is_error(packet: &Packet, tracked: &Tracked) -> bool {
    matches!(tracked.info, CtInfo::Related | CtInfo::RelatedReply) && packet.is_icmp()
}

impl Path<'_> {
    /// Whether a packet to the host may be one of a connection that is translated, or become one.
    #[inline]
    pub(super) fn may_be_translated(&self, family: Family) -> bool {
        self.rules(family).has(NAT_PREROUTING) || self.shard.conntrack.translates()
    }

    /// Has the translation of a new connection decided.
    #[inline]
    pub(super) fn bind(
        &mut self,
        manip: Manip,
        frame: &mut Frame,
        packet: &mut Packet,
        passage: &mut Passage,
    ) -> Result<(), Refusal> {
        match passage.tracked.conn == ConnRef::Prepared && self.rules(packet.family).has(NAT_PREROUTING) {
            true => self.bind_new(manip, frame, packet, passage),
            false => Ok(()),
        }
    }

    fn bind_new(
        &mut self,
        manip: Manip,
        frame: &mut Frame,
        packet: &mut Packet,
        passage: &mut Passage,
    ) -> Result<(), Refusal> {
        // That of an expected connection is decided when it begins.
        if self.shard.conntrack.is_bound(manip) {
            return Ok(());
        }
        let (chain, hook) = match manip {
            Manip::Destination => (NAT_PREROUTING, Hook::Prerouting),
            Manip::Source => (NAT_POSTROUTING, Hook::Postrouting),
        };
        self.shard.source_range = NatRange::default();
        self.meet(chain, hook, frame, packet, passage, None)?;
        let super::Shard { conntrack, dice, .. } = &mut *self.shard;
        if manip == Manip::Destination && !conntrack.is_bound(manip) {
            nat::bind_opened(conntrack, &mut |low| dice.draw_port(manip, low), self.now);
        }
        if !conntrack.is_bound(manip) {
            nat::bind_null(conntrack, manip, &mut |low| dice.draw_port(manip, low), self.now);
        }
        passage.tracked.status = conntrack.conn(ConnRef::Prepared).map_or(CtStatus::default(), |conn| conn.status());
        Ok(())
    }

    /// Where a packet goes once its destination is translated.
    #[inline]
    pub(super) fn translated_destination(&self, packet: &Packet, tracked: &Tracked) -> Addr {
        let direction = tracked.info.direction();
        match tracked.status.any(Manip::Destination.in_direction(direction).status()) {
            true => self.shard.conntrack.translation(tracked.conn, direction).map_or(packet.dst, |to| to.dst),
            false => packet.dst,
        }
    }

    /// [`Path::translate`], and the packet's witness is told.
    #[inline]
    pub(super) fn translate_watched(
        &mut self,
        manip: Manip,
        frame: &mut Frame,
        packet: &mut Packet,
        tracked: &Tracked,
    ) -> Result<(), DropReason> {
        let before = self.witnessed.then(|| Ends::of(packet, manip));
        self.translate(manip, frame, packet, tracked)?;
        let after = Ends::of(packet, manip);
        if let (Some(before), Some(witness)) = (before.filter(|before| *before != after), &mut self.shard.witness) {
            witness.translated(manip, before, after);
        }
        Ok(())
    }

    /// Gives one end of a packet what its connection says (`nf_nat_inet_fn` when all is decided, `nf_nat_packet`).
    #[inline]
    pub(super) fn translate(
        &mut self,
        manip: Manip,
        frame: &mut Frame,
        packet: &mut Packet,
        tracked: &Tracked,
    ) -> Result<(), DropReason> {
        if is_error(packet, tracked) {
            return self.translate_error(manip, frame, packet, tracked);
        }
        let direction = tracked.info.direction();
        if !tracked.status.any(manip.in_direction(direction).status()) {
            return Ok(());
        }
        // A connection that says so has a translation; without it the packet would leave as it came.
        let to = self.shard.conntrack.translation(tracked.conn, direction).ok_or(DropReason::NatMalformed)?;
        match rewrite::translate(frame.bytes_mut(), packet, end_of(manip), at_end(&to, manip)) {
            true => Ok(()),
            false => Err(DropReason::NatMalformed),
        }
    }

    /// `nf_nat_icmp_reply_translation`, `nf_nat_icmpv6_reply_translation`.
    #[cold]
    fn translate_error(
        &mut self,
        manip: Manip,
        frame: &mut Frame,
        packet: &mut Packet,
        tracked: &Tracked,
    ) -> Result<(), DropReason> {
        let &Tracked { info, conn, status } = tracked;
        let active = status.any(CtStatus::NAT) || self.rules(packet.family).has(NAT_PREROUTING);
        if !active {
            return Ok(());
        }
        // conntrack has looked at the checksum, unless it was told not to.
        if !self.shard.conntrack.settings().checksum && !reply::is_whole(frame.bytes(), packet) {
            return Err(DropReason::NatMalformed);
        }
        let redirect = match packet.family {
            Family::V4 => icmp::REDIRECT,
            Family::V6 => icmpv6::REDIRECT,
        };
        let done = status.any(CtStatus::SRC_NAT_DONE) && status.any(CtStatus::DST_NAT_DONE);
        if packet.icmp_type() == redirect && (!done || status.any(CtStatus::NAT)) {
            return Err(DropReason::NatRedirect);
        }
        let direction = info.direction();
        if !status.any(manip.in_direction(direction).status()) {
            return Ok(());
        }
        let quoted = self.shard.conntrack.tuple(conn, direction.other()).ok_or(DropReason::NatMalformed)?;
        let outer = match manip {
            Manip::Source => quoted.dst,
            Manip::Destination => quoted.src,
        };
        let inner = at_end(&quoted, manip.other());
        match rewrite::translate_error(frame.bytes_mut(), packet, end_of(manip), inner, outer) {
            true => Ok(()),
            false => Err(DropReason::NatMalformed),
        }
    }

    /// A masqueraded connection's packet leaves by the port whose address it has. (Errors about it may take another way.)
    pub(super) fn check_masquerade(
        &mut self,
        packet: &Packet,
        tracked: &Tracked,
        out: PortId,
    ) -> Result<(), DropReason> {
        match is_error(packet, tracked) {
            true => Ok(()),
            false => self.shard.conntrack.check_masquerade(tracked, out, self.now),
        }
    }

    /// Whom an answer to this packet goes to: the source it had before it was translated.
    pub(super) fn answered_address(&self, packet: &Packet, tracked: &Tracked) -> Addr {
        let back = backwards(tracked);
        let undone = Packet { dst: packet.src, ..*packet };
        self.translated_destination(&undone, &back)
    }

    /// An answer of the router's own on its way through OUTPUT and POSTROUTING, to the next hop `hop`: gives where it goes then.
    /// It leaves as a packet of the connection that the packet is of, the other way (`nf_ct_attach`). Where that is of none
    /// (INVALID, UNTRACKED) conntrack looks at the answer, as at all that a host sends: it may be of a connection even so. But
    /// it changes none: a packet that is no part of a connection shall not have it ended by a reset of our own.
    /// `None`: it cannot be translated.
    #[cold]
    pub(super) fn translate_answer(
        &mut self,
        frame: &mut Frame,
        of: &Packet,
        tracked: &Tracked,
        hop: Resolve,
    ) -> Option<Resolve> {
        let alone = tracked.conn == ConnRef::None && self.rules(of.family).wants_conntrack();
        if !alone && !tracked.status.any(CtStatus::NAT) {
            return Some(hop);
        }
        let mut answer = Packet::parse(frame.bytes(), of.port, false).ok()?;
        let tracked =
            if alone { self.shard.conntrack.peek(&answer, frame.bytes(), self.now) } else { backwards(tracked) };
        let before = answer.dst;
        self.translate(Manip::Destination, frame, &mut answer, &tracked).ok()?;
        // Without a connection nobody could say beforehand whom the answer goes to (`ip_route_me_harder`).
        let hop = match alone && answer.dst != before {
            true => self.way_back(&Packet { src: answer.dst, dst: answer.src, ..*of }, &Tracked::INVALID)?,
            false => hop,
        };
        self.translate(Manip::Source, frame, &mut answer, &tracked).ok()?;
        Some(hop)
    }

    /// No port or address was free for this packet's connection.
    #[cold]
    pub(super) fn tell_exhausted(&mut self, packet: &Packet) {
        let exhaustion = &mut self.shard.exhaustion;
        exhaustion.dropped += 1;
        if exhaustion.said_at.is_some_and(|at| self.now - at < SAY_INTERVAL_NS) {
            return;
        }
        let Exhaustion { dropped, .. } =
            std::mem::replace(exhaustion, Exhaustion { dropped: 0, said_at: Some(self.now) });
        let (src, dst, port, proto) = (packet.src, packet.dst, packet.dport, protocol_name(packet.proto));
        self.effects.say(
            WARNING,
            format_args!(
                "nat: no free port of {src} for {proto} to {dst} port {port}: {dropped} new connections dropped since \
                 the last such line"
            ),
        );
    }

    /// Tells which blocks of ports were taken and given back.
    #[cold]
    pub(super) fn tell_blocks(&mut self) {
        let (events, lost) = self.shard.conntrack.block_events();
        events.drain(..).for_each(|event| self.effects.say(INFO, format_args!("{event}")));
        self.effects.logs_lost += std::mem::take(lost);
    }

    /// The connection of a packet that has been translated already.
    #[cold]
    pub(super) fn connection_of_translated(&mut self, packet: &Packet) -> Tracked {
        let conntrack = &mut self.shard.conntrack;
        let found =
            Tuple::of(packet).inverse().and_then(|back| conntrack.lookup(&back, conntrack.hash(&back), self.now));
        let Some((id, direction)) = found else { return Tracked::INVALID };
        let info = match direction.other() {
            Direction::Original => CtInfo::Established,
            Direction::Reply => CtInfo::EstablishedReply,
        };
        let conn = ConnRef::Confirmed(id);
        let status = conntrack.conn(conn).map_or(CtStatus::default(), |conn| conn.status());
        Tracked { info, conn, status }
    }
}

/// What conntrack would say of the answer to a packet.
fn backwards(tracked: &Tracked) -> Tracked {
    let info = match tracked.info.direction() {
        Direction::Original => CtInfo::RelatedReply,
        Direction::Reply => CtInfo::Related,
    };
    Tracked { info, ..*tracked }
}
