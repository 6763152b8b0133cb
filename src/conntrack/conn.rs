//! One connection: [`Conn`], the record of exactly one cache line that every packet reads, and [`Prepared`], a connection
//! that is not in the table yet.
//!
//! What does not fit into the line, or is not always needed, lies in arrays beside it, by the same number (see `table`):
//! what TCP remembers ([`TcpRecord`], 40 bytes) and the addresses of an IPv6 connection (32 bytes). So a packet of IPv4
//! without TCP touches one line, and an IPv4 connection takes 104 bytes and its share of the index.
//!
//! Life cycle: *prepared* by the first packet (in the tracker, not in the table), *confirmed* (copied into the table,
//! CONFIRMED set, both keys findable), *expired* when `expires` has passed (no lookup matches it any more), *free* once
//! removed. While prepared, `expires` holds the timeout itself and starts to count when the record is confirmed.
//!
//! Both tuples are stored, since address translation makes the reply's another than the original's inverse: those of IPv4
//! whole in the line. Of IPv6 the reply's addresses lie in one more array, which is used only where they are translated
//! (SRC_NAT, DST_NAT); its ports are in the line.

use super::blocks::PortBlock;
use super::list::StateView;
use super::sctp::SctpState;
use super::tcp::{TcpRecord, TcpState};
use super::template::{Zone, ZoneDirection};
use super::tuple::{CtStatus, Direction, Tuple};
use crate::device::PortId;
use crate::time::Instant;
use crate::wire::{Addr, Family, proto};

/// Number of a confirmed connection in its shard's table. Reused once the connection is gone, so it is good only until
/// the tracker is next told of a packet or of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u32);

impl ConnId {
    /// As an index into the table's records.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// End of a chain of records (wheel slot, free list).
pub(super) const END: u32 = u32::MAX;
/// `link` of a record that no wheel slot holds.
pub(super) const UNLINKED: u32 = u32::MAX - 1;

/// A connection's record: one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Conn {
    /// Addresses of the original tuple; 0 for IPv6, whose addresses lie beside.
    pub(super) src: u32,
    pub(super) dst: u32,
    pub(super) sport: u16,
    pub(super) dport: u16,
    pub(super) zone: u16,
    pub(super) proto: u8,
    /// [`Conn::COUNTED`], [`Conn::FIXED_TIMEOUT`], [`Conn::CHANGED`], [`Conn::MOVED`], [`Conn::NOTED`], [`Conn::V6`].
    pub(super) flags: u8,
    pub(super) expires: Instant,
    pub(super) status: CtStatus,
    /// TCP's or SCTP's state, by its number.
    pub(super) state: u8,
    /// TCP: repetitions of the last segment. SCTP: its flags.
    pub(super) extra: u8,
    pub(super) mark: u32,
    /// By direction: the datapath's own number for the way its packets go; 0 without one, as in a new connection.
    pub(super) shortcut: [u32; 2],
    /// UDP: when it becomes a stream. GRE: both timeouts. SCTP: both verification tags. TCP: both `maxack`.
    pub(super) words: [u32; 2],
    /// Next record in the same wheel slot; [`UNLINKED`] when in none.
    pub(super) link: u32,
    /// Addresses of the reply tuple; 0 for IPv6. While the record is free, `reply_src` is the next free record.
    pub(super) reply_src: u32,
    pub(super) reply_dst: u32,
    pub(super) reply_sport: u16,
    pub(super) reply_dport: u16,
}

impl Conn {
    /// Counters are kept for it (`acct` was on when it was made).
    pub(super) const COUNTED: u8 = 1;
    /// Its timeout is not renewed by packets (Linux's IPS_FIXED_TIMEOUT).
    pub(super) const FIXED_TIMEOUT: u8 = 2;
    /// Its status has changed, and no event has told so yet.
    pub(super) const CHANGED: u8 = 4;
    /// Its protocol's state has changed, and no event has told so yet.
    pub(super) const MOVED: u8 = 8;
    /// Its zone is that of the original tuple only.
    const ZONE_ORIGINAL: u8 = 0x10;
    /// Its zone is that of the reply tuple only.
    const ZONE_REPLY: u8 = 0x20;
    /// Something of its translation is noted beside ([`TranslationNote`]).
    pub(super) const NOTED: u8 = 0x40;
    /// It is of IPv6.
    const V6: u8 = 0x80;

    /// A record that nobody uses.
    pub(super) const FREE: Conn = Conn {
        src: 0,
        dst: 0,
        sport: 0,
        dport: 0,
        zone: 0,
        proto: 0,
        flags: 0,
        expires: Instant::ZERO,
        status: CtStatus(0),
        state: 0,
        extra: 0,
        mark: 0,
        shortcut: [0; 2],
        words: [0; 2],
        link: UNLINKED,
        reply_src: 0,
        reply_dst: 0,
        reply_sport: 0,
        reply_dport: 0,
    };

    /// The record of a connection that starts with `tuple`, in `zone`, without a reply tuple yet.
    fn new(tuple: &Tuple, zone: Zone) -> Conn {
        let Tuple { sport, dport, proto, .. } = *tuple;
        let side = match zone.direction {
            ZoneDirection::Both => 0,
            ZoneDirection::Original => Conn::ZONE_ORIGINAL,
            ZoneDirection::Reply => Conn::ZONE_REPLY,
        };
        let conn = Conn { sport, dport, zone: zone.id, proto, flags: side, ..Conn::FREE };
        match tuple.family {
            Family::V4 => Conn { src: tuple.src.v4_bits(), dst: tuple.dst.v4_bits(), ..conn },
            Family::V6 => Conn { flags: side | Conn::V6, ..conn },
        }
    }

    /// Its zone.
    #[inline]
    pub fn zone(&self) -> Zone {
        let direction = match self.flags & (Conn::ZONE_ORIGINAL | Conn::ZONE_REPLY) {
            Conn::ZONE_ORIGINAL => ZoneDirection::Original,
            Conn::ZONE_REPLY => ZoneDirection::Reply,
            _ => ZoneDirection::Both,
        };
        Zone { id: self.zone, direction }
    }

    /// IP version.
    #[inline]
    pub fn family(&self) -> Family {
        if self.flags & Conn::V6 == 0 { Family::V4 } else { Family::V6 }
    }

    /// Transport protocol.
    #[inline]
    pub fn proto(&self) -> u8 {
        self.proto
    }

    /// Makes `reply` the reply tuple; the addresses of IPv6 are the caller's to keep.
    fn set_reply(&mut self, reply: &Tuple) {
        (self.reply_sport, self.reply_dport) = (reply.sport, reply.dport);
        if reply.family == Family::V4 {
            (self.reply_src, self.reply_dst) = (reply.src.v4_bits(), reply.dst.v4_bits());
        }
    }

    /// The tuple of one direction. `v6` gives that direction's source and destination of a connection over IPv6, and is
    /// asked for no other.
    #[inline]
    pub(super) fn tuple(&self, direction: Direction, v6: impl FnOnce() -> [Addr; 2]) -> Tuple {
        let family = self.family();
        let (v4, sport, dport) = match direction {
            Direction::Original => ([self.src, self.dst], self.sport, self.dport),
            Direction::Reply => ([self.reply_src, self.reply_dst], self.reply_sport, self.reply_dport),
        };
        let [src, dst] = match family {
            Family::V4 => v4.map(Addr::from_v4),
            Family::V6 => v6(),
        };
        Tuple { src, dst, sport, dport, proto: self.proto, family, zone: self.zone().of(direction) }
    }

    /// What a packet of TCP or UDP over IPv4 in `direction` leaves with: the inverse of the other direction's tuple.
    #[inline(always)]
    pub(super) fn leaves_as_v4(&self, direction: Direction) -> EndsV4 {
        let (src, dst, sport, dport) = match direction {
            Direction::Original => (self.reply_dst, self.reply_src, self.reply_dport, self.reply_sport),
            Direction::Reply => (self.dst, self.src, self.dport, self.sport),
        };
        EndsV4 { src, dst, sport, dport }
    }

    /// Whether one of its addresses or ports is translated.
    #[inline(always)]
    pub fn is_translated(&self) -> bool {
        self.status.any(CtStatus::NAT)
    }

    /// Whether `tuple`, one of TCP or UDP over IPv4, is that of `direction`; `None` for any other, and for a connection
    /// whose directions are of different zones, which have to be compared whole. (Most packets are of these, and the whole
    /// comparison takes some 60 instructions more.)
    #[inline(always)]
    pub(super) fn has_v4(&self, direction: Direction, tuple: &Tuple) -> Option<bool> {
        let one_sided = self.flags & (Conn::ZONE_ORIGINAL | Conn::ZONE_REPLY) != 0;
        if one_sided || tuple.family != Family::V4 || !matches!(tuple.proto, proto::TCP | proto::UDP) {
            return None;
        }
        let (src, dst) = match direction {
            Direction::Original => ((self.src, self.sport), (self.dst, self.dport)),
            Direction::Reply => ((self.reply_src, self.reply_sport), (self.reply_dst, self.reply_dport)),
        };
        let same_kind = self.flags & Conn::V6 == 0 && self.proto == tuple.proto && self.zone == tuple.zone;
        Some(same_kind && src == (tuple.src.v4_bits(), tuple.sport) && dst == (tuple.dst.v4_bits(), tuple.dport))
    }

    /// Whether the table holds it.
    #[inline]
    pub fn is_confirmed(&self) -> bool {
        self.status.any(CtStatus::CONFIRMED)
    }

    /// Whether its time is up (`nf_ct_is_expired`).
    #[inline]
    pub fn is_expired(&self, now: Instant) -> bool {
        self.expires <= now
    }

    /// The protocol's state as listed, where it has one.
    pub(super) fn state_view(&self) -> Option<StateView> {
        match self.proto {
            proto::TCP => Some(TcpState::of(self).view()),
            proto::SCTP => Some(SctpState::of(self).view()),
            _ => None,
        }
    }

    /// Status bits.
    #[inline]
    pub fn status(&self) -> CtStatus {
        self.status
    }

    /// Connection mark.
    #[inline]
    pub fn mark(&self) -> u32 {
        self.mark
    }

    /// When it expires, if no packet comes.
    #[inline]
    pub fn expires(&self) -> Instant {
        self.expires
    }
}

/// Both ends of a packet over IPv4, in host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the names are the documentation
pub struct EndsV4 {
    pub src: u32,
    pub dst: u32,
    pub sport: u16,
    pub dport: u16,
}

/// What few translated connections have, one byte for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct TranslationNote(pub(super) u8);

impl TranslationNote {
    pub(super) const NONE: TranslationNote = TranslationNote(0);
    /// It uses the mapping of its source.
    pub(super) const OUTWARD: u8 = 4;
    /// It uses the mapping of its destination.
    pub(super) const INWARD: u8 = 8;
    /// It uses a block of ports.
    pub(super) const BLOCK: u8 = 16;
    /// It is on the roster that all workers see.
    pub(super) const ROSTER: u8 = 32;
    /// Something is to be given back when it ends.
    pub(super) const BORROWS: u8 = TranslationNote::OUTWARD | TranslationNote::INWARD | TranslationNote::BLOCK;
    const PORT: u8 = 3;

    /// The port whose address it has been given (MASQUERADE).
    pub(super) fn masquerade(self) -> Option<PortId> {
        (self.0 & TranslationNote::PORT).checked_sub(1).map(PortId)
    }

    pub(super) fn set_masquerade(&mut self, port: PortId) {
        self.0 = self.0 & !TranslationNote::PORT | (port.0 + 1);
    }

    /// What another tracker knows of as well: nothing is borrowed there.
    pub(super) fn without_loans(self) -> TranslationNote {
        TranslationNote(self.0 & !(TranslationNote::BORROWS | TranslationNote::ROSTER))
    }

    pub(super) fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// A connection that the table does not hold: all parts of its record in one place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prepared {
    /// Source and destination of both tuples, by [`Direction`].
    pub(super) addresses: [[Addr; 2]; 2],
    pub(super) conn: Conn,
    pub(super) tcp: TcpRecord,
    pub(super) note: TranslationNote,
    /// If it uses a mapping outwards, it lets others in through it.
    pub(super) opens: bool,
    /// If it uses a block of ports, which.
    pub(super) block: Option<PortBlock>,
    /// Address translation has found no tuple for it that is free.
    pub(super) exhausted: bool,
}

impl Prepared {
    /// A connection that starts with `tuple`, in the tuple's zone.
    #[cfg(test)]
    pub(super) fn new(tuple: Tuple) -> Prepared {
        Prepared::in_zone(tuple, Zone { id: tuple.zone, ..Zone::DEFAULT })
    }

    /// A connection that starts with `tuple`, in `zone`; its reply tuple is the inverse.
    pub(super) fn in_zone(tuple: Tuple, zone: Zone) -> Prepared {
        let conn = Conn::new(&tuple, zone);
        let addresses = [[tuple.src, tuple.dst]; 2];
        let mut new = Prepared {
            addresses,
            conn,
            tcp: TcpRecord::BLANK,
            note: TranslationNote::NONE,
            opens: false,
            block: None,
            exhausted: false,
        };
        // Only invertible tuples become connections.
        new.set_reply(&tuple.inverse().unwrap_or(tuple));
        new
    }

    /// Gives it another reply tuple. Its zone is not looked at.
    pub(super) fn set_reply(&mut self, reply: &Tuple) {
        self.addresses[Direction::Reply.index()] = [reply.src, reply.dst];
        self.conn.set_reply(reply);
    }

    /// The tuple of one direction.
    pub(super) fn tuple(&self, direction: Direction) -> Tuple {
        self.conn.tuple(direction, || self.addresses[direction.index()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_cache_line() {
        assert_eq!((size_of::<Conn>(), align_of::<Conn>()), (64, 64));
        assert!(size_of::<TcpRecord>() <= 40);
    }

    #[test]
    fn a_note_has_room_for_every_port() {
        for port in PortId::ALL {
            let mut note = TranslationNote(TranslationNote::OUTWARD);
            note.set_masquerade(port);
            assert_eq!((note.masquerade(), note.has(TranslationNote::OUTWARD)), (Some(port), true));
        }
        assert_eq!(TranslationNote::NONE.masquerade(), None);
    }

    #[test]
    fn a_record_gives_its_tuple_back() {
        let v4 = Tuple {
            src: Addr::from_v4(0x0a01_0002),
            dst: Addr::from_v4(0xc633_6401),
            sport: 1,
            dport: 2,
            proto: 17,
            family: Family::V4,
            zone: 3,
        };
        let v6 = Tuple { src: Addr::from_v6(1 << 99), dst: Addr::from_v6(2 << 70 | 9), family: Family::V6, ..v4 };
        for tuple in [v4, v6] {
            let new = Prepared::new(tuple);
            assert_eq!((new.conn.family(), new.conn.proto()), (tuple.family, 17));
            assert_eq!(new.tuple(Direction::Original), tuple);
            assert_eq!(Some(new.tuple(Direction::Reply)), tuple.inverse());
        }
        let mut translated = Prepared::new(v6);
        let reply = Tuple { dport: 4, dst: Addr::from_v6(7), ..v6.inverse().expect("an inverse") };
        translated.set_reply(&reply);
        assert_eq!((translated.tuple(Direction::Original), translated.tuple(Direction::Reply)), (v6, reply));
        let nobody = || panic!("asked for the addresses of IPv4");
        assert_eq!(Prepared::new(v4).conn.tuple(Direction::Original, nobody), v4);
    }
}
