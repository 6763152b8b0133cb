//! One connection: [`Conn`], a record of exactly two cache lines, and what each protocol remembers in it: [`Track`].
//!
//! Life cycle: *prepared* by the first packet (in the tracker, not in the table), *confirmed* (copied into the table,
//! CONFIRMED set, both keys findable), *expired* when `expires` has passed (no lookup matches it any more), *free* once
//! removed. While prepared, `expires` holds the timeout itself and starts to count when the record is confirmed.
//!
//! Only the original tuple is stored: the reply tuple is its inverse. `nat` is reserved for the number of a record that
//! says otherwise.

use super::sctp::Sctp;
use super::tcp::Tcp;
use super::tuple::{CtStatus, Direction, Tuple};
use crate::time::Instant;

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

/// What the connection's protocol remembers. The variant goes with `tuple.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Track {
    /// Nothing: ICMP, ICMPv6, UDP-Lite and every protocol without a tracker of its own.
    Plain,
    /// TCP.
    Tcp(Tcp),
    /// UDP: a packet after this time makes the connection a stream.
    Udp { stream_after: Instant },
    /// GRE: timeouts in seconds, taken from the settings at creation.
    Gre { timeout: u32, stream_timeout: u32 },
    /// SCTP.
    Sctp(Sctp),
}

/// A connection. The first cache line is all that a packet without TCP needs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Conn {
    pub(super) tuple: Tuple,
    pub(super) expires: Instant,
    pub(super) status: CtStatus,
    /// Linux's IPS_FIXED_TIMEOUT, and whether the record has counters (see [`Conn::COUNTED`]).
    pub(super) flags: u16,
    pub(super) mark: u32,
    /// By direction: the datapath's own number for the way its packets go; 0 without one.
    pub(super) shortcut: [u32; 2],

    pub(super) track: Track,
    /// Next record in the same wheel slot; [`UNLINKED`] when in none.
    pub(super) link: u32,
    /// Reserved: number of the NAT record. While the record is free: the next free record.
    pub(super) nat: u32,
}

impl Conn {
    /// Counters are kept for it (`acct` was on when it was made).
    pub(super) const COUNTED: u16 = 1;
    /// Its timeout is not renewed by packets.
    pub(super) const FIXED_TIMEOUT: u16 = 2;

    /// A record that nobody uses.
    pub(super) const FREE: Conn = Conn {
        tuple: Tuple {
            src: crate::wire::Addr::ZERO,
            dst: crate::wire::Addr::ZERO,
            sport: 0,
            dport: 0,
            proto: 0,
            family: crate::wire::Family::V4,
            zone: 0,
        },
        expires: Instant::ZERO,
        status: CtStatus(0),
        flags: 0,
        mark: 0,
        shortcut: [0; 2],
        track: Track::Plain,
        link: UNLINKED,
        nat: END,
    };

    /// A connection that starts with `tuple`.
    pub(super) fn new(tuple: Tuple) -> Conn {
        Conn { tuple, ..Conn::FREE }
    }

    /// The tuple of one direction.
    #[inline]
    pub fn tuple(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Original => self.tuple,
            // Only invertible tuples become connections.
            Direction::Reply => self.tuple.inverse().unwrap_or(self.tuple),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn a_record_is_two_cache_lines_and_the_hot_one_comes_first() {
        assert_eq!((size_of::<Conn>(), align_of::<Conn>()), (128, 64));
        assert_eq!(offset_of!(Conn, track), 64);
        assert!(offset_of!(Conn, shortcut) + 8 <= 64);
    }
}
