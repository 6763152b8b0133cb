//! Connections that a helper has announced: [`Expectation`], and the bounded table of them, [`Expectations`]
//! (nf_conntrack_expect.c).
//!
//! An expectation is made when a helper reads of a connection to come on its control connection, the *master*. It ends when
//! a packet begins that connection ([`Expectations::take`]; a PERMANENT one stays), when its time is up, when a newer one of
//! the master takes its place, or with the master, whose owner calls [`Expectations::remove_all`] before the master's number
//! is used again. So the number of a master in here is always that of a living one.
//!
//! Slots are in one vector, found through chains by destination (always exact) and through a list for each master, newest
//! first. What has timed out is met by no search; [`Expectations::expire`] collects it.

use super::helper::{Helper, Policy};
use super::homes::Others;
use super::tuple::{Direction, Tuple};
use crate::time::{Instant, SECOND_NS};
use crate::wire::Addr;

/// What a connection with a helper is known by here: the number of its entry among those with helpers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct MasterId(pub u32);

/// Which bits of the source an expectation compares. Destination address and port are always compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SourceMask {
    /// Of the address: all ones, or none.
    pub address: Addr,
    /// Of the port.
    pub port: u16,
}

/// How the expected connection is translated, when its master is (`exp->dir`, `saved_proto`): as the master, so that it gets
/// where the master's packets get (`nf_nat_follow_master`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Follow {
    /// The direction of the master in which the first packet of the expected connection goes.
    pub direction: Direction,
    /// The port its sender is to reach, as the helper read it.
    pub port: u16,
}

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expectation {
    /// Original tuple of the connection to come; its zone is the master's.
    pub tuple: Tuple,
    /// What of the source has to be the same.
    pub mask: SourceMask,
    /// The connection it was read on.
    pub master: MasterId,
    /// One of the helper's classes.
    pub class: u8,
    /// [`Expectation::PERMANENT`], [`Expectation::INACTIVE`].
    pub flags: u8,
    /// The helper that the new connection gets.
    pub helper: Option<Helper>,
    /// How the new connection is translated; nothing: as the nat table says.
    pub follow: Option<Follow>,
    /// When its time is up; set by [`Expectations::insert`].
    pub expires: Instant,
}

impl Expectation {
    /// It stays when it is met.
    pub const PERMANENT: u8 = 1;
    /// It is not met.
    pub const INACTIVE: u8 = 2;

    /// One of class 0 (`nf_ct_expect_init`): from `source` (without one: anybody), from any port, to the destination of `to`.
    /// Of `to`, protocol, family and zone are taken too.
    pub fn new(master: MasterId, source: Option<Addr>, to: Tuple) -> Expectation {
        let (src, address) = match source {
            Some(source) => (source, Addr::prefix_mask(to.family, to.family.bits())),
            None => (Addr::ZERO, Addr::ZERO),
        };
        Expectation {
            tuple: Tuple { src, sport: 0, ..to },
            mask: SourceMask { address, port: 0 },
            master,
            class: 0,
            flags: 0,
            helper: None,
            follow: None,
            expires: Instant::ZERO,
        }
    }

    /// Whether a connection with this original tuple is the expected one (`nf_ct_tuple_mask_cmp`).
    #[inline]
    pub fn is_met_by(&self, tuple: &Tuple) -> bool {
        same_destination(&self.tuple, tuple) && same_source(&self.tuple, tuple, self.mask)
    }

    /// Whether both expect exactly the same (`expect_matches`).
    fn equals(&self, other: &Expectation) -> bool {
        self.tuple == other.tuple && self.mask == other.mask
    }

    /// Whether one packet could be met by both (`expect_clash`).
    fn clashes_with(&self, other: &Expectation) -> bool {
        self.clashes_with_one_of(&other.tuple, other.mask)
    }

    /// The same with another worker's.
    pub(super) fn clashes_with_one_of(&self, tuple: &Tuple, mask: SourceMask) -> bool {
        let both = SourceMask { address: self.mask.address.and(mask.address), port: self.mask.port & mask.port };
        same_destination(&self.tuple, tuple) && same_source(&self.tuple, tuple, both)
    }
}

#[inline]
fn same_destination(a: &Tuple, b: &Tuple) -> bool {
    (a.dport, a.proto, a.family, a.zone, a.dst) == (b.dport, b.proto, b.family, b.zone, b.dst)
}

#[inline]
fn same_source(a: &Tuple, b: &Tuple, mask: SourceMask) -> bool {
    a.src.and(mask.address) == b.src.and(mask.address) && a.sport & mask.port == b.sport & mask.port
}

/// Why nothing is expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unexpected {
    /// Another one could be met by the same packet (EBUSY).
    Busy,
    /// The same is expected in another class (EALREADY).
    Already,
    /// No room: that of the master's class, or that of the table (EMFILE).
    Full,
}

/// Ends a chain.
const END: u32 = u32::MAX;

/// A place for one expectation, and its neighbours in both lists.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// `None`: free, and `next` leads to the next free one.
    expectation: Option<Expectation>,
    next: u32,
    next_of_master: u32,
}

/// The table; see the module's head.
#[derive(Debug)]
pub struct Expectations {
    /// `nf_conntrack_expect_max`.
    max: usize,
    key: [u64; 2],
    slots: Vec<Slot>,
    free: u32,
    len: usize,
    buckets: Vec<u32>,
    /// By number of the master: its newest expectation.
    masters: Vec<u32>,
    /// Nothing expires before.
    earliest: Option<Instant>,
    /// Where [`Expectations::expire`] goes on, and what it has found to be the earliest so far.
    hand: usize,
    found_earliest: Option<Instant>,
    created: u64,
    deleted: u64,
    /// What other workers expect.
    others: Option<Others>,
}

impl Expectations {
    /// An empty table for `max` of them. `key` keys its hash. Memory for up to 4096 is taken at once.
    pub fn new(max: usize, key: [u64; 2]) -> Expectations {
        let room = max.min(4096);
        Expectations {
            max,
            key,
            slots: Vec::with_capacity(room),
            free: END,
            len: 0,
            buckets: vec![END; (room / 2).next_power_of_two().max(16)],
            masters: Vec::new(),
            earliest: None,
            hand: 0,
            found_earliest: None,
            created: 0,
            deleted: 0,
            others: None,
        }
    }

    /// From now on nothing is expected that another worker expects as well.
    pub(super) fn set_others(&mut self, others: Others) {
        self.others = Some(others);
    }

    /// Another `nf_conntrack_expect_max`. What is there stays.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// How many there are; some may have timed out and not been collected yet.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many were ever made and how many have ended (`expect_create`, `expect_delete`).
    pub fn counts(&self) -> (u64, u64) {
        (self.created, self.deleted)
    }

    fn bucket(&self, tuple: &Tuple) -> usize {
        let (hi, lo) = tuple.dst.words();
        let rest = u64::from(tuple.dport) << 16 | u64::from(tuple.proto) << 8 | u64::from(tuple.family as u8);
        let mix = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        let hash = mix(mix(hi ^ self.key[0], lo ^ self.key[1]) ^ rest, self.key[0] | 1);
        hash as usize & (self.buckets.len() - 1)
    }

    fn at(&self, slot: u32) -> Option<&Expectation> {
        self.slots.get(slot as usize)?.expectation.as_ref()
    }

    /// Adds `new` (`nf_ct_expect_related`), with the time its class has. The same one of the same master is replaced; where
    /// the master's class is full, its oldest gives way.
    ///
    /// # Errors
    /// Why it was not added.
    pub fn insert(&mut self, new: Expectation, policy: Policy, now: Instant) -> Result<(), Unexpected> {
        self.check(&new, now)?;
        if policy.max_expected != 0 {
            let (count, oldest) = self.of_class(new.master, new.class, now);
            if count >= usize::from(policy.max_expected)
                && let Some(oldest) = oldest
            {
                self.unlink(oldest);
            }
        }
        if self.len >= self.max && self.earliest.is_some_and(|earliest| earliest <= now) {
            self.sweep(now);
        }
        if self.len >= self.max {
            return Err(Unexpected::Full);
        }
        if self.others.as_ref().is_some_and(|others| !others.claim(&new)) {
            return Err(Unexpected::Busy);
        }
        self.link(Expectation { expires: now + u64::from(policy.timeout) * SECOND_NS, ..new });
        Ok(())
    }

    /// Whether `new` goes with those there are (`__nf_ct_expect_check`). The same one ends.
    fn check(&mut self, new: &Expectation, now: Instant) -> Result<(), Unexpected> {
        if self.others.as_ref().is_some_and(|others| others.clash_with(new)) {
            return Err(Unexpected::Busy);
        }
        let mut slot = self.buckets[self.bucket(&new.tuple)];
        while let Some(old) = self.at(slot) {
            let here = slot;
            slot = self.slots[slot as usize].next;
            if old.expires <= now {
                self.unlink(here);
            } else if old.master == new.master && old.equals(new) {
                if old.class != new.class {
                    return Err(Unexpected::Already);
                }
                self.unlink(here);
                return Ok(());
            } else if old.clashes_with(new) {
                return Err(Unexpected::Busy);
            }
        }
        Ok(())
    }

    /// How many of a class a master has, and the oldest of them.
    fn of_class(&mut self, master: MasterId, class: u8, now: Instant) -> (usize, Option<u32>) {
        let (mut count, mut oldest) = (0, None);
        let mut slot = self.newest_of(master);
        while let Some(one) = self.at(slot) {
            let here = slot;
            let (is_of, is_over) = (one.class == class, one.expires <= now);
            slot = self.slots[slot as usize].next_of_master;
            if is_over {
                self.unlink(here);
            } else if is_of {
                count += 1;
                oldest = Some(here);
            }
        }
        (count, oldest)
    }

    fn newest_of(&self, master: MasterId) -> u32 {
        self.masters.get(master.0 as usize).copied().unwrap_or(END)
    }

    fn link(&mut self, new: Expectation) {
        let bucket = self.bucket(&new.tuple);
        let master = new.master.0 as usize;
        if self.masters.len() <= master {
            self.masters.resize(master + 1, END);
        }
        let filled = Slot { expectation: Some(new), next: self.buckets[bucket], next_of_master: self.masters[master] };
        let slot = match self.slots.get_mut(self.free as usize) {
            Some(place) => {
                let slot = self.free;
                self.free = place.next;
                *place = filled;
                slot
            }
            None => {
                self.slots.push(filled);
                (self.slots.len() - 1) as u32
            }
        };
        self.buckets[bucket] = slot;
        self.masters[master] = slot;
        self.len += 1;
        self.created += 1;
        let sooner = |known: Option<Instant>| Some(known.map_or(new.expires, |known| known.min(new.expires)));
        self.earliest = sooner(self.earliest);
        self.found_earliest = sooner(self.found_earliest);
    }

    /// Takes a slot out of both its lists and frees it.
    fn unlink(&mut self, slot: u32) {
        let Some(&gone) = self.at(slot) else { return };
        let Slot { next, next_of_master, .. } = self.slots[slot as usize];
        let bucket = self.bucket(&gone.tuple);
        let mut at = self.buckets[bucket];
        if at == slot {
            self.buckets[bucket] = next;
        } else {
            while self.slots[at as usize].next != slot {
                at = self.slots[at as usize].next;
            }
            self.slots[at as usize].next = next;
        }
        let master = gone.master.0 as usize;
        let mut at = self.masters[master];
        if at == slot {
            self.masters[master] = next_of_master;
        } else {
            while self.slots[at as usize].next_of_master != slot {
                at = self.slots[at as usize].next_of_master;
            }
            self.slots[at as usize].next_of_master = next_of_master;
        }
        self.slots[slot as usize] = Slot { expectation: None, next: self.free, next_of_master: END };
        self.free = slot;
        self.len -= 1;
        self.deleted += 1;
    }

    /// The expectation that a connection with this original tuple meets (`nf_ct_find_expectation`). It is over then, unless
    /// it is PERMANENT. `is_confirmed` says of its master whether the other end can know of it: if not, nothing was expected.
    pub fn take(
        &mut self,
        tuple: &Tuple,
        now: Instant,
        is_confirmed: impl FnOnce(MasterId) -> bool,
    ) -> Option<Expectation> {
        if self.is_empty() {
            return None;
        }
        let mut slot = self.buckets[self.bucket(tuple)];
        while let Some(&one) = self.at(slot) {
            let here = slot;
            slot = self.slots[slot as usize].next;
            if one.expires <= now {
                self.unlink(here);
            } else if one.flags & Expectation::INACTIVE == 0 && one.is_met_by(tuple) {
                if !is_confirmed(one.master) {
                    return None;
                }
                if one.flags & Expectation::PERMANENT == 0 {
                    self.unlink(here);
                }
                return Some(one);
            }
        }
        None
    }

    /// The expectation that this tuple would meet; it stays (`nf_ct_expect_find_get`).
    pub fn find(&self, tuple: &Tuple, now: Instant) -> Option<&Expectation> {
        let mut slot = self.buckets[self.bucket(tuple)];
        while let Some(one) = self.at(slot) {
            if one.expires > now && one.is_met_by(tuple) {
                return Some(one);
            }
            slot = self.slots[slot as usize].next;
        }
        None
    }

    /// Ends the newest expectation that expects exactly this, if it is there (`nf_ct_unexpect_related`).
    pub fn remove(&mut self, which: &Expectation) {
        let mut slot = self.newest_of(which.master);
        while let Some(one) = self.at(slot) {
            if one.equals(which) && one.class == which.class {
                return self.unlink(slot);
            }
            slot = self.slots[slot as usize].next_of_master;
        }
    }

    /// Ends all of a master (`nf_ct_remove_expectations`).
    pub fn remove_all(&mut self, master: MasterId) {
        loop {
            match self.newest_of(master) {
                END => return,
                slot => self.unlink(slot),
            }
        }
    }

    /// All there are, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Expectation> {
        self.slots.iter().filter_map(|slot| slot.expectation.as_ref())
    }

    /// Ends all there are.
    pub fn clear(&mut self) {
        for slot in 0..self.slots.len() {
            self.unlink(slot as u32);
        }
    }

    /// Whether a master expects anything.
    pub fn has(&self, master: MasterId) -> bool {
        self.newest_of(master) != END
    }

    /// Collects what has timed out, looking at up to `budget` slots. Returns how many it looked at.
    pub fn expire(&mut self, now: Instant, budget: usize) -> usize {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return 0;
        }
        if self.hand == 0 {
            self.found_earliest = None;
        }
        let end = self.hand.saturating_add(budget).min(self.slots.len());
        let looked = end - self.hand;
        for slot in self.hand..end {
            match self.slots[slot].expectation {
                Some(one) if one.expires <= now => self.unlink(slot as u32),
                Some(one) => {
                    let known = self.found_earliest.unwrap_or(one.expires);
                    self.found_earliest = Some(known.min(one.expires));
                }
                None => {}
            }
        }
        self.hand = end;
        if end == self.slots.len() {
            // All were seen; what has come meanwhile was noted as it came.
            (self.hand, self.earliest) = (0, self.found_earliest.take());
        }
        looked
    }

    /// Everything that has timed out goes at once.
    fn sweep(&mut self, now: Instant) {
        let mut earliest: Option<Instant> = None;
        for slot in 0..self.slots.len() {
            let Some(one) = self.slots[slot].expectation else { continue };
            match one.expires <= now {
                true => self.unlink(slot as u32),
                false => earliest = Some(earliest.map_or(one.expires, |known| known.min(one.expires))),
            }
        }
        // Nothing more is to be found until then.
        (self.earliest, self.found_earliest, self.hand) = (earliest, None, 0);
    }

    /// When [`Expectations::expire`] will next have something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.len == 0 { None } else { self.earliest }
    }

    /// Shows up to `budget` slots' expectations from `cursor` (0 at first) to `each`. Returns the next cursor, `None` after
    /// the last.
    pub fn list(
        &self,
        cursor: usize,
        budget: usize,
        now: Instant,
        each: &mut dyn FnMut(&Expectation),
    ) -> Option<usize> {
        let end = cursor.saturating_add(budget.max(1)).min(self.slots.len());
        for slot in self.slots.get(cursor..end)? {
            if let Some(one) = &slot.expectation
                && one.expires > now
            {
                each(one);
            }
        }
        (end < self.slots.len()).then_some(end)
    }

    /// Checks every invariant, slowly.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check_invariants(&self) {
        let used = self.slots.iter().filter(|slot| slot.expectation.is_some()).count();
        assert_eq!(used, self.len, "the count is of the slots in use");
        let mut chained = 0;
        for (bucket, &first) in self.buckets.iter().enumerate() {
            let mut slot = first;
            while let Some(one) = self.at(slot) {
                assert_eq!(self.bucket(&one.tuple), bucket, "an expectation in a strange chain");
                (chained, slot) = (chained + 1, self.slots[slot as usize].next);
            }
        }
        let mut owned = 0;
        for (master, &first) in self.masters.iter().enumerate() {
            let mut slot = first;
            while let Some(one) = self.at(slot) {
                assert_eq!(one.master.0 as usize, master, "an expectation in a strange list");
                (owned, slot) = (owned + 1, self.slots[slot as usize].next_of_master);
            }
        }
        assert_eq!((chained, owned), (self.len, self.len), "each is in both lists once");
        let soonest = self.slots.iter().filter_map(|slot| slot.expectation).map(|one| one.expires).min();
        assert!(soonest.is_none_or(|soonest| self.earliest.is_some_and(|earliest| earliest <= soonest)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Family, proto};
    use proptest::prelude::*;

    const TWO: Policy = Policy { max_expected: 2, timeout: 10 };

    fn at(seconds: u64) -> Instant {
        Instant::from_ns((seconds + 1) * SECOND_NS)
    }

    fn to(dst: u32, dport: u16) -> Tuple {
        let (proto, family) = (proto::TCP, Family::V4);
        Tuple { dst: Addr::from_v4(dst), dport, proto, family, ..Tuple::default() }
    }

    fn one(master: u32, src: Option<u32>, dst: u32, dport: u16) -> Expectation {
        Expectation::new(MasterId(master), src.map(Addr::from_v4), to(dst, dport))
    }

    fn from(src: u32, sport: u16, dst: u32, dport: u16) -> Tuple {
        Tuple { src: Addr::from_v4(src), sport, ..to(dst, dport) }
    }

    #[test]
    fn one_is_met_once_from_any_port_in_its_zone_and_time() {
        let mut table = Expectations::new(8, [1, 2]);
        table.insert(one(0, Some(1), 2, 21), TWO, at(0)).expect("room");
        assert_eq!(table.take(&from(9, 5, 2, 21), at(1), |_| true), None, "another source");
        assert_eq!(table.take(&from(1, 5, 2, 22), at(1), |_| true), None, "another port");
        assert_eq!(table.take(&Tuple { zone: 7, ..from(1, 5, 2, 21) }, at(1), |_| true), None, "another zone");
        assert_eq!(table.take(&from(1, 5, 2, 21), at(1), |_| false), None, "nobody can know of it yet");
        assert!(table.take(&from(1, 5, 2, 21), at(1), |_| true).is_some());
        assert_eq!(table.next_deadline(), None, "nothing is left to wait for");
        assert_eq!(table.take(&from(1, 5, 2, 21), at(1), |_| true), None, "it was met");
        table.insert(one(0, Some(1), 2, 21), TWO, at(0)).expect("room");
        assert_eq!(table.take(&from(1, 5, 2, 21), at(10), |_| true), None, "its time is up");
        assert_eq!((table.counts(), table.len()), ((2, 2), 0));
    }

    #[test]
    fn flags_are_as_linux_has_them() {
        let mut table = Expectations::new(8, [1, 2]);
        table.insert(Expectation { flags: Expectation::PERMANENT, ..one(0, None, 2, 21) }, TWO, at(0)).expect("room");
        table.insert(Expectation { flags: Expectation::INACTIVE, ..one(0, None, 2, 22) }, TWO, at(0)).expect("room");
        assert!(table.take(&from(1, 5, 2, 21), at(1), |_| true).is_some());
        assert!(table.take(&from(7, 5, 2, 21), at(1), |_| true).is_some());
        assert!(table.take(&from(1, 5, 2, 22), at(1), |_| true).is_none());
        assert!(table.find(&from(1, 5, 2, 22), at(1)).is_some());
    }

    #[test]
    fn the_same_is_replaced_and_another_in_its_way_is_busy() {
        let mut table = Expectations::new(8, [1, 2]);
        table.insert(one(0, Some(1), 2, 21), TWO, at(0)).expect("room");
        table.insert(one(0, Some(1), 2, 21), TWO, at(5)).expect("the same again");
        assert_eq!((table.len(), table.counts()), (1, (2, 1)));
        assert!(table.find(&from(1, 5, 2, 21), at(12)).is_some(), "its time began anew");
        assert_eq!(table.insert(one(1, Some(1), 2, 21), TWO, at(5)), Err(Unexpected::Busy), "another master's");
        assert_eq!(table.insert(one(0, None, 2, 21), TWO, at(5)), Err(Unexpected::Busy), "a wider one");
        let other_class = Expectation { class: 1, ..one(0, Some(1), 2, 21) };
        assert_eq!(table.insert(other_class, TWO, at(5)), Err(Unexpected::Already));
        table.insert(one(1, Some(3), 2, 21), TWO, at(5)).expect("another source");
        assert_eq!(table.insert(one(2, Some(3), 2, 21), TWO, at(14)), Err(Unexpected::Busy));
        table.insert(one(2, Some(3), 2, 21), TWO, at(15)).expect("the time of what was in the way is up");
    }

    #[test]
    fn the_oldest_of_a_class_gives_way_and_a_full_table_takes_nothing() {
        let mut table = Expectations::new(3, [1, 2]);
        for port in [1, 2, 3] {
            table.insert(one(0, None, 2, port), TWO, at(0)).expect("room");
        }
        assert!(table.find(&from(1, 5, 2, 1), at(1)).is_none(), "the oldest is gone");
        assert!(table.find(&from(1, 5, 2, 2), at(1)).is_some());
        table.insert(Expectation { class: 1, ..one(0, None, 2, 4) }, TWO, at(0)).expect("another class has its own");
        assert_eq!(table.insert(one(1, None, 2, 5), TWO, at(1)), Err(Unexpected::Full));
        table.insert(one(1, None, 2, 5), TWO, at(10)).expect("all others' time is up");
        table.remove_all(MasterId(1));
        assert!(table.is_empty() && !table.has(MasterId(1)));
        table.check_invariants();
    }

    #[test]
    fn expired_ones_are_collected_piece_by_piece() {
        let mut table = Expectations::new(100, [3, 4]);
        for port in 0..50 {
            table.insert(one(u32::from(port), None, 2, port), TWO, at(u64::from(port % 2))).expect("room");
        }
        assert_eq!((table.expire(at(9), 8), table.next_deadline()), (0, Some(at(10))));
        let looked: Vec<usize> = core::iter::from_fn(|| Some(table.expire(at(10), 20)).filter(|&n| n > 0)).collect();
        assert_eq!((looked, table.len(), table.next_deadline()), (vec![20, 20, 10], 25, Some(at(11))));
        while table.expire(at(11), 7) > 0 {}
        assert_eq!((table.len(), table.next_deadline()), (0, None));
    }

    /// As Linux has it, in the plainest words.
    #[derive(Default)]
    struct Model(Vec<Expectation>);

    impl Model {
        fn insert(&mut self, new: Expectation, now: Instant, max: usize) -> Result<(), Unexpected> {
            self.0.retain(|old| old.expires > now);
            // Newest first, as chains are.
            let same = self.0.iter().rev().find(|old| {
                old.clashes_with(&new) || old.master == new.master && old.tuple == new.tuple && old.mask == new.mask
            });
            match same.copied() {
                Some(old) if old.master == new.master && old.tuple == new.tuple && old.mask == new.mask => {
                    if old.class != new.class {
                        return Err(Unexpected::Already);
                    }
                    self.0.retain(|one| *one != old);
                }
                Some(_) => return Err(Unexpected::Busy),
                None => {}
            }
            let of_class = |one: &Expectation| one.master == new.master && one.class == new.class;
            if self.0.iter().filter(|one| of_class(one)).count() >= usize::from(TWO.max_expected) {
                let oldest = self.0.iter().position(of_class).expect("there are some");
                self.0.remove(oldest);
            }
            if self.0.len() >= max {
                return Err(Unexpected::Full);
            }
            self.0.push(Expectation { expires: now + u64::from(TWO.timeout) * SECOND_NS, ..new });
            Ok(())
        }

        fn take(&mut self, tuple: &Tuple, now: Instant) -> Option<Expectation> {
            self.0.retain(|old| old.expires > now);
            let at = self.0.iter().rposition(|one| one.flags == 0 && one.is_met_by(tuple))?;
            Some(self.0.remove(at))
        }
    }

    proptest! {
        #[test]
        fn it_is_as_a_plain_list_would_be(
            steps in proptest::collection::vec(
                (0u8..6, 0u32..3, proptest::option::of(0u32..3), 0u32..2, 0u16..3, 0u8..2, 0u64..4), 1..120),
        ) {
            const MAX: usize = 6;
            let (mut table, mut model, mut now) = (Expectations::new(MAX, [5, 6]), Model::default(), at(0));
            for (what, master, src, dst, dport, class, later) in steps {
                now = now + later * SECOND_NS;
                match what {
                    0..=2 => {
                        let flags = if what == 2 { Expectation::INACTIVE } else { 0 };
                        let new = Expectation { class, flags, ..one(master, src, dst, dport) };
                        prop_assert_eq!(table.insert(new, TWO, now), model.insert(new, now, MAX));
                    }
                    3 => {
                        let tuple = from(src.unwrap_or(0), 9, dst, dport);
                        prop_assert_eq!(table.take(&tuple, now, |_| true), model.take(&tuple, now));
                    }
                    4 => {
                        table.remove_all(MasterId(master));
                        model.0.retain(|one| one.master != MasterId(master));
                    }
                    _ => {
                        table.expire(now, usize::from(dport));
                    }
                }
                table.check_invariants();
                let mut left = Vec::new();
                prop_assert_eq!(table.list(0, 100, now, &mut |one| left.push(*one)), None);
                model.0.retain(|old| old.expires > now);
                left.sort_by_key(|one| (one.expires, one.tuple.dport, one.tuple.dst, one.tuple.src));
                let mut wanted = model.0.clone();
                wanted.sort_by_key(|one| (one.expires, one.tuple.dport, one.tuple.dst, one.tuple.src));
                prop_assert_eq!(left, wanted);
            }
        }
    }
}
