//! Room in a full table (`early_drop`, and the collector's part of it, `gc_worker`).
//!
//! A packet that would begin a connection in a full table needs one that goes for it. A hand goes round the records: from
//! where it stands up to [`REACH`] of them are looked at. One that has expired is removed, and that is room. Otherwise
//! [`Expendable`] says which goes: the first that is half open, else an answered one, else a closing one, of these the
//! one whose last packet is longest ago. It goes when the new one is confirmed: a packet that the rules drop costs nobody
//! anything. The new one gets the record that has become free, just behind the hand, so it is the last that the hand will
//! meet: half-open connections go in the order they came (those of before the table was full: in any), and a flood of SYNs
//! takes the place of its own oldest.
//!
//! A client's handshake is safe for as long as the hand takes to go round: the time in which the flood sends as many SYNs as
//! open connections leave room for (a table of 262,144, half of it open, a million SYNs per second: 0.13 s). A test holds
//! what that is worth: with 50 % or 90 % of the table open connections every SYN finds room, and no handshake is lost that
//! takes up to 85 % of that time, whether the victim answers the flood or not; at 98 %, nine SYNs in ten find room, and
//! their handshakes are as safe. Open connections lose nothing.
//!
//! When there is nothing the packet is dropped, and [`Conntrack::relieve`] goes through the table once, as Linux's
//! collector does then: a bounded piece per call, until the table is 95 % full, it removes what has expired and the
//! connections that are closing.
//!
//! No kind of connection fares worse than under Linux. What goes here is of a kind that Linux removes when its table is
//! full, and there more goes with it: in `early_drop` all that is not ASSURED in the first bucket that has any, before the
//! rules have seen the packet; in the collector all that is not ASSURED. And fewer packets are refused: Linux searches
//! some 16 connections, and refuses a packet if only closing ones are among them. Who does fare worse is a client whose
//! handshake takes longer than the hand's round: it is lost, where a choice at random, as Linux's is, would leave a share of
//! e^-1 at one round and less beyond, but lose a tenth of the handshakes of a tenth of a round.

use super::Conntrack;
use crate::conntrack::conn::{Conn, ConnId};
use crate::conntrack::sctp::SctpState;
use crate::conntrack::settings::Settings;
use crate::conntrack::tcp::TcpState;
use crate::conntrack::tuple::CtStatus;
use crate::time::{Instant, SECOND_NS};
use crate::verdict::DropReason;
use crate::wire::proto;

/// Records that are looked at for one packet, a cache line each. If one in fifty can go, 92 % of the packets find room.
const REACH: usize = 128;
/// How full the table is, in percent, when the collector is content (`nf_conntrack_max95`).
const RELIEVED_PERCENT: usize = 95;

/// Connections that may go for a new one, those that go first first. An ASSURED connection that is not closing is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Expendable {
    /// No reply was seen, or not ASSURED and in a handshake (a SYN flood's that a server answers) or closing.
    HalfOpen,
    /// Answered, but not ASSURED: young UDP, ICMP, protocols that are not known.
    Answered,
    /// ASSURED, but TCP or SCTP is about to end it (`can_early_drop`).
    Closing,
}

impl Expendable {
    fn of(conn: &Conn) -> Option<Expendable> {
        let (opening, closing) = match conn.proto {
            proto::TCP => (TcpState::of(conn).is_opening(), TcpState::of(conn).is_closing()),
            proto::SCTP => (SctpState::of(conn).is_opening(), SctpState::of(conn).is_closing()),
            _ => (false, false),
        };
        if conn.status.any(CtStatus::ASSURED) {
            return closing.then_some(Expendable::Closing);
        }
        match opening || closing || !conn.status.any(CtStatus::SEEN_REPLY) {
            true => Some(Expendable::HalfOpen),
            false => Some(Expendable::Answered),
        }
    }
}

/// The hand that goes round the records, block by block. Its steps are of 0.618 of the round, so that it comes by all parts
/// of the table alike however connections are spread over them, and have no common divisor with the number of blocks, so
/// that it meets all. Records one by one all over a table of a million cost four times as much.
#[derive(Debug)]
pub(super) struct Hand {
    at: usize,
    /// In blocks.
    step: usize,
    capacity: usize,
}

impl Hand {
    /// Records in a block.
    const BLOCK: usize = 16;

    pub(super) fn new(capacity: usize) -> Hand {
        const GOLDEN: f64 = 0.618_033_988_749_894_9;
        let blocks = capacity.div_ceil(Hand::BLOCK);
        let start = (blocks as f64 * GOLDEN) as usize;
        let step = (start..blocks).find(|&step| greatest_common_divisor(step, blocks) == 1);
        Hand { at: 0, step: step.expect("one less than the number has no common divisor with it"), capacity }
    }

    /// The records of the block that comes after the present one.
    fn next_block(&self) -> core::ops::Range<usize> {
        let blocks = self.capacity.div_ceil(Hand::BLOCK);
        // Both are below the number of blocks.
        let next = self.at / Hand::BLOCK + self.step;
        let start = if next < blocks { next } else { next - blocks } * Hand::BLOCK;
        start..self.capacity.min(start + Hand::BLOCK)
    }

    /// Goes on by a record; true when that is the first of a block.
    fn advance(&mut self) -> bool {
        let next = self.at + 1;
        let within = !next.is_multiple_of(Hand::BLOCK) && next < self.capacity;
        self.at = if within { next } else { self.next_block().start };
        !within
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// When the last packet came that renewed the connection, which is not ASSURED or closing: its timeout before it expires.
/// Only an estimate where the timeout has been shortened, or the settings have changed since.
fn renewed_at(conn: &Conn, settings: &Settings) -> Instant {
    let timeout = match conn.proto {
        proto::TCP => settings.tcp_timeout(TcpState::of(conn)),
        proto::SCTP => SctpState::of(conn).timeout(settings),
        proto::UDP | proto::UDPLITE => settings.udp_timeout,
        proto::ICMP => settings.icmp_timeout,
        proto::ICMPV6 => settings.icmpv6_timeout,
        proto::GRE => conn.words[0],
        _ => settings.generic_timeout,
    };
    Instant::from_ns(conn.expires - Instant::from_ns(u64::from(timeout) * SECOND_NS))
}

impl Conntrack {
    /// Connections the table may hold: `nf_conntrack_max`, at most [`Conntrack::capacity`]; of several workers, the tables of all
    /// together.
    pub fn limit(&self) -> usize {
        match self.homes {
            None => self.settings.max.min(self.table.capacity()),
            Some(_) => self.settings.max,
        }
    }

    /// Whether a new connection finds no room: all workers together have as many as there may be, or the own table is full.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        match &self.homes {
            None => self.table.len() >= self.limit(),
            Some(homes) => homes.total() >= self.settings.max || self.table.len() >= self.table.capacity(),
        }
    }

    /// Looks for room in a table that is full. `None`: something had expired, there is room now. Otherwise the connection
    /// that has to go.
    ///
    /// # Errors
    /// There is none.
    #[cold]
    pub(super) fn find_room(&mut self, now: Instant) -> Result<Option<ConnId>, DropReason> {
        let found = self.find_own_room(now);
        if found.is_err() {
            self.miss_room();
        }
        found
    }

    /// A packet finds no room.
    #[cold]
    pub(super) fn miss_room(&mut self) {
        self.statistics.drop += 1;
        self.relief = self.relief.or(Some(0));
        if let Some(homes) = &mut self.homes {
            // This packet is lost; its repetition is not, if others have connections that can go.
            homes.ask_for_room();
        }
    }

    fn find_own_room(&mut self, now: Instant) -> Result<Option<ConnId>, DropReason> {
        let mut victim: Option<(Expendable, Instant, ConnId)> = None;
        for _ in 0..REACH.min(self.table.capacity()) {
            let id = ConnId(self.hand.at as u32);
            let conn = self.table.get(id);
            if conn.is_confirmed() && conn.is_expired(now) {
                self.remove(id, now, 0);
                self.statistics.expired += 1;
                self.advance();
                return Ok(None);
            }
            if conn.is_confirmed()
                && let Some(expendable) = Expendable::of(conn)
            {
                if expendable == Expendable::HalfOpen {
                    self.table.prefetch_keys(id);
                    return Ok(Some(id)); // the hand stays until it is gone
                }
                let candidate = (expendable, renewed_at(conn, &self.settings), id);
                victim = Some(victim.map_or(candidate, |best| best.min(candidate)));
            }
            self.advance();
        }
        match victim {
            Some((_, _, id)) => Ok(Some(id)),
            None => Err(DropReason::ConntrackFull),
        }
    }

    /// Removes a connection for the sake of a new one, if the table is still full; whether it did. Its place among those of all
    /// workers is the new one's then.
    #[cold]
    pub(super) fn give_way(&mut self, victim: ConnId, now: Instant) -> bool {
        if !self.is_full() || !self.table.get(victim).is_confirmed() {
            return false;
        }
        if let Some(homes) = &self.homes {
            homes.hold();
        }
        self.remove(victim, now, 0);
        self.statistics.early_drop += 1;
        if self.hand.at == victim.index() {
            self.advance();
        }
        true
    }

    /// Removes a connection, if the table is still full; whoever comes first gets its place.
    #[cold]
    pub(super) fn drop_early(&mut self, victim: ConnId, now: Instant) {
        if self.give_way(victim, now)
            && let Some(homes) = &self.homes
        {
            homes.release();
        }
    }

    /// Other workers have asked for room, and there is none: one of the own connections goes, if one can.
    #[cold]
    pub(super) fn make_room(&mut self, now: Instant) {
        if self.is_full()
            && let Ok(Some(victim)) = self.find_own_room(now)
        {
            self.drop_early(victim, now);
        }
    }

    /// Moves the hand on; the block after the one it enters is brought close meanwhile.
    fn advance(&mut self) {
        if self.hand.advance() {
            self.hand.next_block().for_each(|at| self.table.prefetch_record(ConnId(at as u32)));
        }
    }

    /// Goes on through the table, if it had no room for a packet: removes what has expired or is closing, until it is
    /// less full. Looks at up to `budget` records, and returns how many it looked at.
    pub(super) fn relieve(&mut self, now: Instant, budget: usize) -> usize {
        let Some(start) = self.relief else { return 0 };
        let content = self.limit() / 100 * RELIEVED_PERCENT;
        for looked in 0..budget {
            let at = start + looked;
            if at == self.table.capacity() || self.total() <= content {
                self.relief = None;
                return looked;
            }
            let (id, conn) = (ConnId(at as u32), self.table.get(ConnId(at as u32)));
            if !conn.is_confirmed() {
                continue;
            }
            if conn.is_expired(now) {
                self.remove(id, now, 0);
                self.statistics.expired += 1;
            } else if Expendable::of(conn) == Some(Expendable::Closing) {
                self.remove(id, now, 0);
                self.statistics.early_drop += 1;
            }
        }
        self.relief = Some(start + budget);
        budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hand_meets_every_record_once_a_round() {
        for capacity in (1..300).chain([1 << 16, 100_000]) {
            let mut hand = Hand::new(capacity);
            let mut met = vec![0; capacity];
            for _ in 0..2 * capacity {
                met[hand.at] += 1;
                hand.advance();
            }
            assert!(met.iter().all(|&times| times == 2), "{capacity}");
        }
    }
}
