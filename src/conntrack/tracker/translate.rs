//! What address translation asks of connection tracking, and does to a connection that is not confirmed yet
//! (nf_nat_core.c's half of it). Which tuple a connection gets is `nat`'s affair.

use super::{ConnRef, Conntrack, Tracked};
use crate::conntrack::blocks::{BlockEvent, Owner, PortBlock};
use crate::conntrack::conn::{Conn, ConnId, EndsV4, Prepared, TranslationNote};
use crate::conntrack::mapping::Side;
use crate::conntrack::tcp::TcpState;
use crate::conntrack::template::{Zone, ZoneDirection};
use crate::conntrack::tuple::{CtStatus, Direction, Tuple};
use crate::device::PortId;
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, proto};

/// Which end of a packet is translated (`enum nf_nat_manip_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manip {
    /// POSTROUTING and INPUT.
    Source,
    /// PREROUTING and OUTPUT.
    Destination,
}

impl Manip {
    /// The other one.
    #[inline]
    pub const fn other(self) -> Manip {
        match self {
            Manip::Source => Manip::Destination,
            Manip::Destination => Manip::Source,
        }
    }

    /// The status bit of a connection that has it.
    #[inline]
    pub const fn status(self) -> CtStatus {
        match self {
            Manip::Source => CtStatus::SRC_NAT,
            Manip::Destination => CtStatus::DST_NAT,
        }
    }

    /// The status bit of a connection for which it has been decided.
    const fn done(self) -> CtStatus {
        match self {
            Manip::Source => CtStatus::SRC_NAT_DONE,
            Manip::Destination => CtStatus::DST_NAT_DONE,
        }
    }

    /// Of packets in `direction`, the one whose undoing, or doing, this is.
    #[inline]
    pub const fn in_direction(self, direction: Direction) -> Manip {
        match direction {
            Direction::Original => self,
            Direction::Reply => self.other(),
        }
    }
}

/// Connections of one source that are looked at for its mapping. Linux looks at all; a client that has more from one port,
/// none of which the rule would have mapped like this, gets a new mapping.
const SOURCES_MAX: usize = 64;

impl Conntrack {
    /// Whether there are connections for which translation was decided; their packets are looked for also where they are
    /// addressed to the host.
    #[inline]
    pub fn translates(&self) -> bool {
        self.sources.len() > 0
    }

    /// What the first packet of the prepared connection looks like with what has been translated so far: the inverse of the
    /// reply tuple.
    pub fn prepared_tuple(&self) -> Option<Tuple> {
        self.prepared.as_ref()?.tuple(Direction::Reply).inverse()
    }

    /// Whether it has been decided for the prepared connection; true for every other packet.
    pub fn is_bound(&self, manip: Manip) -> bool {
        self.prepared.as_ref().is_none_or(|new| new.conn.status.any(manip.done()))
    }

    /// The zone of the prepared connection.
    pub fn prepared_zone(&self) -> Zone {
        self.prepared.as_ref().map_or(Zone::DEFAULT, |new| new.conn.zone())
    }

    /// Whether the prepared connection was expected.
    pub fn is_expected(&self) -> bool {
        self.prepared.as_ref().is_some_and(|new| new.conn.status.any(CtStatus::EXPECTED))
    }

    /// Whether a prepared connection looking like `tuple` would be taken for another: its reply tuple is one of a live
    /// connection in the zone already (`nf_nat_used_tuple`); or its source belongs to another.
    pub fn is_taken(&mut self, tuple: &Tuple, now: Instant) -> bool {
        match self.is_for_another(tuple) {
            Some(taken) => taken,
            None => self.is_mapped(tuple) || self.is_posted(tuple) || self.holder(tuple, now).is_some(),
        }
    }

    /// Whether another worker has a connection with the reply tuple of a prepared one that looks like `tuple`.
    fn is_posted(&self, tuple: &Tuple) -> bool {
        let homes = self.homes.as_ref();
        homes.is_some_and(|homes| tuple.inverse().is_some_and(|reply| homes.is_posted(&reply)))
    }

    fn holder(&mut self, tuple: &Tuple, now: Instant) -> Option<(ConnId, Direction)> {
        let zone = self.prepared.as_ref()?.conn.zone();
        let reply = tuple.inverse()?;
        let found = match zone.direction {
            ZoneDirection::Both => self.lookup_in(zone, reply, now),
            // Of other originals Linux sees only those in the zone of replies (`nf_conntrack_tuple_taken`), which is another.
            _ => self.lookup_of(&Tuple { zone: zone.of(Direction::Reply), ..reply }, Direction::Reply, now),
        };
        self.statistics.found += u64::from(found.is_some());
        found
    }

    /// [`Conntrack::is_taken`], but a TCP connection that is over gives way to a later one (`nf_nat_used_tuple_harder`): one
    /// translated at its source, in TIME_WAIT or CLOSE, whose last sequence number the new SYN is beyond.
    pub fn is_taken_for_good(&mut self, tuple: &Tuple, now: Instant) -> bool {
        if let Some(taken) = self.is_for_another(tuple) {
            return taken;
        }
        if self.is_mapped(tuple) || self.is_posted(tuple) {
            return true;
        }
        let Some((id, direction)) = self.holder(tuple, now) else { return false };
        let Some(Prepared { conn: new, tcp, .. }) = &self.prepared else { return true };
        let begins = new.proto == proto::TCP && TcpState::of(new) == TcpState::SynSent;
        let old = self.table.get(id);
        let gives_way = begins
            && direction == Direction::Reply
            && old.status.any(CtStatus::SRC_NAT)
            && old.flags & Conn::FIXED_TIMEOUT == 0
            && TcpState::of(old).is_over()
            && tcp.has_advanced(&self.table.tcp(id));
        if gives_way {
            self.remove(id, now, 0);
        }
        !gives_way
    }

    /// Asks for what [`Conntrack::is_taken`] reads to be brought close.
    pub fn prefetch_taken(&self, tuple: &Tuple) {
        if let Some(reply) = tuple.inverse() {
            self.prefetch_bucket(self.hash(&reply));
        }
    }

    /// The next step of the same: of the records that the bucket names.
    pub fn prefetch_holder(&self, tuple: &Tuple) {
        if let Some(reply) = tuple.inverse() {
            self.table.prefetch_conn(self.hash(&reply), reply.family, 0);
        }
    }

    /// The source that a connection from the source of `tuple` has been given and that `suits` takes, put into `tuple`; the
    /// youngest such connection's (`find_appropriate_src`).
    pub fn mapping_of_source(&self, tuple: &Tuple, suits: impl Fn(&Tuple) -> bool) -> Option<Tuple> {
        let zone = self.prepared.as_ref()?.conn.zone().of(Direction::Original);
        let source = source_of(&Tuple { zone, ..*tuple });
        self.sources.of(self.hash(&source)).take(SOURCES_MAX).find_map(|id| {
            if source_of(&self.table.tuple(id, Direction::Original)) != source {
                return None;
            }
            let Tuple { src, sport, .. } = self.table.tuple(id, Direction::Reply).inverse()?;
            Some(Tuple { src, sport, ..*tuple }).filter(&suits)
        })
    }

    /// From now on the prepared connection looks like `tuple`: what comes back is its inverse. The end `manip` is decided
    /// (`nf_nat_setup_info`, `nf_conntrack_alter_reply`).
    pub fn bind(&mut self, manip: Manip, tuple: &Tuple) {
        let Some(new) = &mut self.prepared else { return };
        let before = new.tuple(Direction::Reply);
        if let Some(reply) = tuple.inverse().filter(|reply| *reply != before) {
            new.set_reply(&reply);
            new.conn.status = new.conn.status.with(manip.status());
        }
        new.conn.status = new.conn.status.with(manip.done());
    }

    /// No tuple is free for the prepared connection: its packet will be dropped for that, unless a later translation finds
    /// one.
    pub fn set_exhausted(&mut self, exhausted: bool) {
        if let Some(new) = &mut self.prepared {
            new.exhausted = exhausted;
        }
    }

    /// The source outside that belongs to the prepared connection's source, put into `tuple`.
    pub fn mapped_source(&self, tuple: &Tuple) -> Option<Tuple> {
        let outer = self.mappings.outer(&self.prepared_source()?)?;
        Some(Tuple { src: outer.addr, sport: outer.port, ..*tuple })
    }

    /// Whether the source of `tuple` belongs to another than the prepared connection's source.
    fn is_mapped(&self, tuple: &Tuple) -> bool {
        let owner = || self.mappings.inner(&Side { zone: self.prepared_zone().id, ..source_side(tuple) });
        !self.mappings.is_empty() && owner().is_some_and(|inner| Some(inner) != self.prepared_source())
    }

    /// Whom the destination of `tuple` belongs to, if others may begin connections through it; put into `tuple`.
    pub fn opened_destination(&self, tuple: &Tuple) -> Option<Tuple> {
        if self.mappings.is_empty() {
            return None;
        }
        let outer = Side { zone: self.prepared_zone().id, ..destination_side(tuple) };
        let inner = self.mappings.open(&outer)?;
        Some(Tuple { dst: inner.addr, dport: inner.port, ..*tuple })
    }

    /// The prepared connection's source belongs from now on to what it has become, whoever is talked to; with `open`, others
    /// may begin connections through it.
    pub fn map_source(&mut self, open: bool) {
        if let Some(new) = &mut self.prepared {
            new.note.0 = new.note.0 & !TranslationNote::BLOCK | TranslationNote::OUTWARD;
            new.opens = open;
        }
    }

    /// The prepared connection comes in through a mapping.
    pub fn use_mapping(&mut self) {
        if let Some(new) = &mut self.prepared {
            new.note.0 |= TranslationNote::INWARD;
        }
    }

    /// The blocks of ports that the prepared connection's source has of an address outside.
    pub fn blocks_of_source(&self, outer: Addr) -> impl Iterator<Item = PortBlock> + use<> {
        let source = self.prepared.as_ref().map_or(Addr::ZERO, |new| new.tuple(Direction::Original).src);
        self.blocks.of(Owner { addr: source, zone: self.prepared_zone().id }, outer)
    }

    /// A block of `size` ports that nobody has, of the ports `low` to `high` of an address outside.
    pub fn find_block(&self, outer: Addr, ports: (u16, u16), size: u16, random: u16) -> Option<PortBlock> {
        self.blocks.find(outer, ports, size, random)
    }

    /// The prepared connection has a port of this block.
    pub fn use_block(&mut self, block: PortBlock) {
        if let Some(new) = &mut self.prepared {
            new.note.0 |= TranslationNote::BLOCK;
            new.block = Some(block);
        }
    }

    /// Blocks taken and given back since they were last fetched, and how many found no room here.
    #[inline]
    pub fn block_events(&mut self) -> (&mut Vec<BlockEvent>, &mut u64) {
        self.blocks.events()
    }

    fn prepared_source(&self) -> Option<Side> {
        let new = self.prepared.as_ref()?;
        Some(Side { zone: new.conn.zone().id, ..source_side(&new.tuple(Direction::Original)) })
    }

    /// Inner and outer side of the mappings that a connection may use: of its source, of its destination.
    fn sides(&self, id: ConnId) -> [(Side, Side); 2] {
        let [original, reply] =
            [Direction::Original, Direction::Reply].map(|direction| self.table.tuple(id, direction));
        let zone = self.table.get(id).zone().id;
        let in_zone = |side: Side| Side { zone, ..side };
        [
            (in_zone(source_side(&original)), in_zone(destination_side(&reply))),
            (in_zone(source_side(&reply)), in_zone(destination_side(&original))),
        ]
    }

    /// A connection comes into the table. Its block of ports is held by its mapping, where it uses one: that may outlive it.
    pub(super) fn hold_mappings(&mut self, id: ConnId, new: &Prepared) {
        let note = self.table.note(id);
        if !note.has(TranslationNote::BORROWS) {
            return;
        }
        let [(inner, outer), inward] = self.sides(id);
        if note.has(TranslationNote::OUTWARD) {
            let begins = !self.mappings.has(&outer);
            let block = new.block.filter(|_| begins);
            let in_block = block.is_some_and(|block| self.blocks.hold(inner.owner(), block));
            if !self.mappings.hold(inner, outer, new.opens, in_block) {
                self.table.clear_note(id, TranslationNote::OUTWARD);
                self.release_block(in_block, inner, outer);
            }
        } else if let Some(block) = new.block
            && !self.blocks.hold(inner.owner(), block)
        {
            self.table.clear_note(id, TranslationNote::BLOCK);
        }
        if note.has(TranslationNote::INWARD) && !self.mappings.hold(inward.0, inward.1, false, false) {
            self.table.clear_note(id, TranslationNote::INWARD);
        }
    }

    /// A connection leaves the table.
    pub(super) fn release_mappings(&mut self, id: ConnId) {
        let note = self.table.note(id);
        if !note.has(TranslationNote::BORROWS) {
            return;
        }
        let [outward, inward] = self.sides(id);
        self.release_block(note.has(TranslationNote::BLOCK), outward.0, outward.1);
        for (bit, (inner, outer)) in [(TranslationNote::OUTWARD, outward), (TranslationNote::INWARD, inward)] {
            let ends_in_block = note.has(bit) && self.mappings.release(inner, outer);
            self.release_block(ends_in_block, inner, outer);
        }
    }

    fn release_block(&mut self, holds: bool, inner: Side, outer: Side) {
        if holds {
            self.blocks.release(inner.owner(), outer.addr, outer.port);
        }
    }

    /// The prepared connection goes when the address of this port does.
    pub fn set_masquerade(&mut self, port: PortId) {
        if let Some(new) = &mut self.prepared {
            new.note.set_masquerade(port);
        }
    }

    /// How a packet in `direction` of this connection leaves, if something of it is translated: the inverse of the other
    /// direction's tuple.
    #[inline]
    pub fn translation(&self, conn: ConnRef, direction: Direction) -> Option<Tuple> {
        if !self.conn(conn)?.is_translated() {
            return None;
        }
        self.tuple(conn, direction.other())?.inverse()
    }

    /// A packet of a masqueraded connection leaves by `out`; if that is another port than the one it is masqueraded on, the
    /// connection ends here (`nf_nat_oif_changed`).
    ///
    /// # Errors
    /// The packet is to be dropped.
    pub fn check_masquerade(&mut self, tracked: &Tracked, out: PortId, now: Instant) -> Result<(), DropReason> {
        let ConnRef::Confirmed(id) = tracked.conn else { return Ok(()) };
        if tracked.info.direction() == Direction::Reply
            || self.table.note(id).masquerade().is_none_or(|port| port == out)
        {
            return Ok(());
        }
        self.remove(id, now, 0);
        Err(DropReason::MasqueradeMoved)
    }

    /// Ends the masqueraded connections of up to `count` records, from record `from` on, whose port and address `is_lost`
    /// says of (`nf_ct_iterate_cleanup_net` with `device_cmp` and `inet_cmp`). Returns where to go on, `None` at the end.
    pub fn end_masqueraded(
        &mut self,
        from: usize,
        count: usize,
        now: Instant,
        is_lost: impl Fn(PortId, Addr) -> bool,
    ) -> Option<usize> {
        let end = from.saturating_add(count).min(self.capacity());
        for id in (from..end).map(|index| ConnId(index as u32)) {
            let conn = self.table.get(id);
            if conn.is_confirmed()
                && !conn.is_expired(now)
                && let Some(port) = self.table.note(id).masquerade()
                && is_lost(port, self.table.tuple(id, Direction::Reply).dst)
            {
                self.remove(id, now, 0);
            }
        }
        (end < self.capacity()).then_some(end)
    }

    /// Checks that what is kept beside the table is of connections in it.
    pub(super) fn check_translations(&self) {
        let confirmed = || self.table.records().iter().enumerate().filter(|(_, conn)| conn.is_confirmed());
        let noted = |bit: u8| confirmed().filter(|&(at, _)| self.table.note(ConnId(at as u32)).has(bit)).count();
        let bound = confirmed().filter(|(_, conn)| conn.status.any(CtStatus::SRC_NAT_DONE)).count();
        assert_eq!(self.sources.len(), bound, "sources");
        let mapped = noted(TranslationNote::OUTWARD) + noted(TranslationNote::INWARD);
        assert_eq!(self.mappings.uses(), mapped, "mappings");
        assert_eq!(self.blocks.uses(), noted(TranslationNote::BLOCK) + self.mappings.in_blocks(), "blocks");
    }

    /// Asks for what [`Conntrack::mapping_of_source`] reads first, where connections are translated.
    #[inline]
    pub(super) fn prefetch_source(&self, original: &Tuple) {
        if self.translates() {
            self.sources.prefetch(self.hash(&source_of(original)));
        }
    }

    /// How a packet of TCP or UDP over IPv4 in `direction` of a connection in the table leaves. (Its four fields are in the
    /// record's own line; [`Conntrack::translation`] makes two tuples of them.)
    #[inline(always)]
    pub fn translation_v4(&self, (id, direction): (ConnId, Direction)) -> EndsV4 {
        self.table.get(id).leaves_as_v4(direction)
    }

    /// A connection comes into the table, or leaves it.
    pub(super) fn note_source(&mut self, id: ConnId, comes: bool) {
        if !self.table.get(id).status.any(CtStatus::SRC_NAT_DONE) {
            return;
        }
        let hash = self.hash(&source_of(&self.table.tuple(id, Direction::Original)));
        match comes {
            true => self.sources.insert(id, hash),
            false => self.sources.remove(id, hash),
        }
    }
}

fn source_side(tuple: &Tuple) -> Side {
    Side { addr: tuple.src, port: tuple.sport, proto: tuple.proto, zone: 0 }
}

/// An ICMP query's identifier is both ends'.
fn destination_side(tuple: &Tuple) -> Side {
    let port = match tuple.proto {
        proto::ICMP | proto::ICMPV6 => tuple.sport,
        _ => tuple.dport,
    };
    Side { addr: tuple.dst, port, proto: tuple.proto, zone: 0 }
}

/// Of an original tuple, what `same_src` compares.
fn source_of(original: &Tuple) -> Tuple {
    let Tuple { src, sport, proto, family, zone, .. } = *original;
    Tuple { src, sport, proto, family, zone, ..Tuple::default() }
}
