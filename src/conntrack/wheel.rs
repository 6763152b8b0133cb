//! When to look at a record again: [`Wheel`], a lazy timing wheel.
//!
//! A packet only writes `expires` into its record; the wheel is not told. Each record hangs in at most one slot, chained
//! through [`Conn::link`]. When a slot's time comes its records are taken out one by one: an expired one is removed,
//! one that lives on is hung where it would expire now, a free one is let go. A record is looked at again after at most
//! 63.5 seconds, whatever it was hung for; so one whose timeout was cut short, or whose record was given to a new
//! connection, is found at most that late (Linux's collector: up to 60 seconds). Lookups read `expires` themselves and
//! never depend on the wheel.

use super::conn::{Conn, ConnId, END, UNLINKED};
use crate::time::Instant;

/// Slots in the wheel.
const SLOTS: usize = 128;
/// Time between slots, in nanoseconds.
const TICK_NS: u64 = 500_000_000;

/// The slots and the tick that is being worked on.
#[derive(Debug)]
pub(super) struct Wheel {
    heads: [u32; SLOTS],
    /// All slots of earlier ticks are empty, unless the wheel has lagged behind by a whole turn.
    tick: u64,
    linked: usize,
}

impl Wheel {
    pub(super) fn new() -> Wheel {
        Wheel { heads: [END; SLOTS], tick: 0, linked: 0 }
    }

    /// Hangs the record where its time is up, seen from the tick that is being worked on. It must hang nowhere.
    #[inline]
    pub(super) fn hang(&mut self, conn: &mut Conn, id: ConnId, now: Instant) {
        debug_assert_eq!(conn.link, UNLINKED, "hung twice");
        if self.linked == 0 {
            self.tick = self.tick.max(now.as_ns() / TICK_NS);
        }
        // The tick after the one that contains the moment: its time has fully passed when the slot is worked on.
        let due = conn.expires.as_ns() / TICK_NS + 1;
        let tick = due.clamp(self.tick + 1, self.tick + SLOTS as u64 - 1);
        let head = &mut self.heads[(tick % SLOTS as u64) as usize];
        conn.link = *head;
        *head = id.0;
        self.linked += 1;
    }

    /// Takes the next record whose slot's time has come.
    pub(super) fn take_due(&mut self, records: &mut [Conn], now: Instant) -> Option<ConnId> {
        let now_tick = now.as_ns() / TICK_NS;
        if self.linked == 0 {
            self.tick = self.tick.max(now_tick);
            return None;
        }
        // After a lag of a whole turn every slot is due; one more turn finds them all.
        self.tick = self.tick.max(now_tick.saturating_sub(SLOTS as u64 - 1));
        loop {
            let head = &mut self.heads[(self.tick % SLOTS as u64) as usize];
            if *head != END {
                let id = ConnId(*head);
                let conn = &mut records[id.index()];
                *head = conn.link;
                conn.link = UNLINKED;
                self.linked -= 1;
                return Some(id);
            }
            if self.tick >= now_tick {
                return None;
            }
            self.tick += 1;
        }
    }

    /// When the next slot that holds a record is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        (self.tick..self.tick + SLOTS as u64)
            .find(|tick| self.heads[(tick % SLOTS as u64) as usize] != END)
            .map(|tick| Instant::from_ns(tick * TICK_NS))
    }

    /// Records that hang in a slot.
    #[cfg(test)]
    pub(super) fn linked(&self) -> usize {
        self.linked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::SECOND_NS;
    use proptest::prelude::*;

    fn records(expiries: &[u64]) -> Vec<Conn> {
        expiries.iter().map(|&ns| Conn { expires: Instant::from_ns(ns), ..Conn::FREE }).collect()
    }

    fn hang_all(wheel: &mut Wheel, records: &mut [Conn]) {
        for (index, conn) in records.iter_mut().enumerate() {
            wheel.hang(conn, ConnId(index as u32), Instant::ZERO);
        }
    }

    #[test]
    fn nothing_is_due_before_its_time_and_everything_soon_after() {
        let mut records = records(&[SECOND_NS, 10 * SECOND_NS, 3_000 * SECOND_NS]);
        let mut wheel = Wheel::new();
        hang_all(&mut wheel, &mut records);
        assert_eq!(wheel.next_deadline(), Some(Instant::from_ns(SECOND_NS + TICK_NS)));
        assert_eq!(wheel.take_due(&mut records, Instant::from_ns(SECOND_NS)), None);
        assert_eq!(wheel.take_due(&mut records, Instant::from_ns(SECOND_NS + TICK_NS)), Some(ConnId(0)));
        assert_eq!(wheel.take_due(&mut records, Instant::from_secs(9)), None);
        assert_eq!(wheel.take_due(&mut records, Instant::from_secs(11)), Some(ConnId(1)));
        // The far one is looked at early, and hung again.
        assert_eq!(wheel.take_due(&mut records, Instant::from_ns((SLOTS as u64 - 1) * TICK_NS)), Some(ConnId(2)));
        wheel.hang(&mut records[2], ConnId(2), Instant::from_secs(63));
        assert_eq!((wheel.take_due(&mut records, Instant::from_secs(90)), wheel.linked()), (None, 1));
    }

    proptest! {
        #[test]
        fn every_record_is_found_in_time(
            expiries in proptest::collection::vec(0u64..400 * SECOND_NS, 1..40),
            steps in proptest::collection::vec(1u64..90 * SECOND_NS, 1..60),
        ) {
            let mut records = records(&expiries);
            let mut wheel = Wheel::new();
            hang_all(&mut wheel, &mut records);
            let mut gone = vec![false; records.len()];
            let mut now = Instant::ZERO;
            for step in steps {
                now = now + step;
                let mut looked = 0;
                while let Some(id) = wheel.take_due(&mut records, now) {
                    looked += 1;
                    prop_assert!(looked <= 4 * records.len(), "the wheel does not end");
                    if records[id.index()].is_expired(now) {
                        gone[id.index()] = true;
                    } else {
                        wheel.hang(&mut records[id.index()], id, now);
                    }
                }
                for (conn, gone) in records.iter().zip(&gone) {
                    prop_assert!(*gone || conn.expires + TICK_NS > now, "{:?} still hangs at {:?}", conn.expires, now);
                    prop_assert!(!*gone || conn.expires <= now);
                }
                prop_assert!(wheel.next_deadline().is_none_or(|deadline| deadline > now));
            }
        }
    }
}
