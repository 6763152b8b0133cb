//! All confirmed connections of one shard: [`Table`], records and the index that finds them by either tuple.
//!
//! Everything is allocated once. Records lie in one array, one cache line each; free ones are chained. Beside it, by the
//! same number, lie what TCP remembers and the addresses of IPv6. The latter is address space given by the kernel at
//! start and memory only from the first IPv6 connection on; free records are used again last in, first out, so it grows
//! no further than the most connections there ever were. Two more arrays of that kind are for translated connections: the
//! addresses of an IPv6 reply, and a byte of notes.
//!
//! The index is an array of buckets of one cache line, each with
//! twelve slots: an 8-bit tag taken from the key's hash, and the record's number with the
//! direction of the key in its top bit. A key lives in its home bucket or, when that is full, in one of the next
//! [`REACH_MAX`]; the home bucket counts the keys that had to go elsewhere and how far, so a lookup reads one bucket
//! unless its home has overflowed, and a miss does not wander. Deleting empties the slot: no tombstones, nothing is ever
//! moved, no pause at any size.
//!
//! The index has half of its slots taken when the table is full (two keys per connection). Then one home bucket in a
//! hundred has overflowed, one in twenty when connections have come and gone for long (a key stays where it was put); a
//! test holds both, and that the farthest key of a table of 200,000 is no more than eight buckets away. That a key finds
//! all 65 of its buckets full is not to be expected in any table that fits into memory; it is an error then, not a loop.
//! One lookup in forty finds its tag with another's key and reads that record for nothing.
//!
//! Hash: addresses, ports, protocol and zone are folded through keyed 64x64-bit multiplications (as wyhash and ahash
//! do), 3 to 4 ns. Keys are chosen by attackers, so the key is a secret of this boot: without it nobody can choose
//! tuples that share a bucket. SipHash, which Linux uses, would cost several times more and protect hash values
//! that are seen from outside, which these never are.
//!
//! Invariants: a record is CONFIRMED exactly when both its keys are in the index; each key is there once.

use super::conn::{Conn, ConnId, END, Prepared, TranslationNote};
use super::tcp::TcpRecord;
use super::tuple::{CtStatus, Direction, Tuple};
use crate::arch;
use crate::wire::{Addr, Family, proto};

/// Slots in a bucket.
const SLOTS: usize = 12;
/// Slots per bucket that are taken when the table is full.
const SLOTS_FILLED: usize = 6;
/// How many buckets beyond its home a key may live.
const REACH_MAX: usize = 64;
/// A slot without a key.
const EMPTY: u32 = u32::MAX;
/// The direction bit of a slot.
const REPLY_BIT: u32 = 1 << 31;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Bucket {
    slots: [u32; SLOTS],
    tags: [u8; SLOTS],
    /// Keys at home here that live in a later bucket.
    overflow: u16,
    /// The farthest of them; 0 again when there are none.
    reach: u16,
}

impl Bucket {
    const EMPTY: Bucket = Bucket { slots: [EMPTY; SLOTS], tags: [0; SLOTS], overflow: 0, reach: 0 };

    /// One bit for each slot whose tag is `tag`. Empty slots have tag 0, which no key has.
    #[inline]
    fn matches(&self, tag: u8) -> u32 {
        // One vector comparison where a loop over the lanes has 25 instructions, twice for each packet.
        let mut lanes = [0; 16];
        lanes[..SLOTS].copy_from_slice(&self.tags);
        arch::equal_lanes(&lanes, tag)
    }
}

/// A slot of the index whose key may be the one looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate(u32);

impl Candidate {
    /// There is none.
    pub const NONE: Candidate = Candidate(EMPTY);
}

/// The connection and the direction of the key that a slot stands for.
#[inline]
fn parts_of(slot: u32) -> (ConnId, Direction) {
    let direction = if slot & REPLY_BIT == 0 { Direction::Original } else { Direction::Reply };
    (ConnId(slot & !REPLY_BIT), direction)
}

/// The index has no room within reach of one of the keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IndexFull;

/// Source and destination of one tuple of a connection over IPv6.
type AddressesV6 = [u128; 2];

/// See the module's head.
#[derive(Debug)]
pub(super) struct Table {
    keys: [u64; 5],
    buckets: Vec<Bucket>,
    records: Vec<Conn>,
    /// By record number; of TCP connections only.
    tcp: Vec<TcpRecord>,
    /// Of the original tuple, by record number; of IPv6 connections only.
    v6: Vec<AddressesV6>,
    /// Of the reply tuple, by record number; of translated IPv6 connections only.
    v6_reply: Vec<AddressesV6>,
    /// By record number; of connections that have one only.
    notes: Vec<u8>,
    free: u32,
    len: usize,
}

/// `a * b` in 128 bits, its halves xored.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Five independent keys from a 128-bit secret (splitmix64's output function).
fn spread(secret: [u64; 2]) -> [u64; 5] {
    let mut state = secret[0];
    core::array::from_fn(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state ^ secret[1].rotate_left(29);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    })
}

/// `count` copies of `value`, on huge pages if there are any.
fn allocate<T: Copy>(count: usize, value: T) -> Vec<T> {
    // Mappings of whole huge pages are aligned to one (Linux 6.13); the allocator adds less than a page of its own. What is
    // beyond `count` is never touched.
    const HUGE: usize = 2 << 20;
    let bytes = count * size_of::<T>();
    let room = if bytes < HUGE { bytes } else { (bytes + 4096).next_multiple_of(HUGE) - 4096 };
    let mut memory = Vec::with_capacity(room / size_of::<T>());
    arch::advise_huge_pages(memory.spare_capacity_mut());
    memory.resize(count, value);
    memory
}

impl Table {
    /// A table for `capacity` connections. All memory is allocated, and all but that of IPv6's addresses touched.
    ///
    /// # Panics
    /// When the capacity is 0 or above [`super::Settings::MAX_LIMIT`].
    pub(super) fn new(capacity: usize, secret: [u64; 2]) -> Table {
        assert!((1..=super::Settings::MAX_LIMIT).contains(&capacity), "table capacity {capacity} out of range");
        let buckets = (2 * capacity).div_ceil(SLOTS_FILLED).max(REACH_MAX + 1);
        let mut records = allocate(capacity, Conn::FREE);
        for (index, conn) in records.iter_mut().enumerate() {
            conn.reply_src = if index + 1 < capacity { index as u32 + 1 } else { END };
        }
        Table {
            keys: spread(secret),
            buckets: allocate(buckets, Bucket::EMPTY),
            records,
            tcp: allocate(capacity, TcpRecord::BLANK),
            // Zeroes come from the kernel as pages that exist once they are written to. Small pages: to be given one takes
            // less than a microsecond, a huge one a hundred, and this happens while packets are forwarded.
            v6: vec![[0; 2]; capacity],
            v6_reply: vec![[0; 2]; capacity],
            notes: vec![0; capacity],
            free: 0,
            len: 0,
        }
    }

    /// The keyed hash of a tuple.
    #[inline]
    pub(super) fn hash(&self, tuple: &Tuple) -> u64 {
        let (src_hi, src_lo) = tuple.src.words();
        let (dst_hi, dst_lo) = tuple.dst.words();
        let rest = u64::from(tuple.sport) << 48
            | u64::from(tuple.dport) << 32
            | u64::from(tuple.zone) << 16
            | u64::from(tuple.family as u8) << 8
            | u64::from(tuple.proto);
        let [a, b, c, d, e] = self.keys;
        let src = fold(src_hi ^ a, src_lo ^ b);
        let dst = fold(dst_hi ^ c, dst_lo ^ d);
        // Different rotations: the hash must tell a tuple from its inverse.
        fold(fold(src.rotate_left(17) ^ rest, dst ^ e) ^ a, src.wrapping_add(dst.rotate_left(32)) ^ c)
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize
    }

    /// The bucket `distance` beyond `home`.
    #[inline]
    fn beyond(&self, home: usize, distance: usize) -> usize {
        let at = home + distance;
        if at < self.buckets.len() { at } else { at - self.buckets.len() }
    }

    #[inline]
    fn tag(hash: u64) -> u8 {
        (hash as u8).max(1)
    }

    /// Asks for the home bucket of a key to be brought close.
    #[inline]
    pub(super) fn prefetch_bucket(&self, hash: u64) {
        arch::prefetch(&self.buckets[self.home(hash)]);
    }

    /// Asks for what a packet of this family and protocol reads of the records that may have its key, and says which of
    /// them is the first. Reads the home bucket only.
    #[inline]
    pub(super) fn prefetch_conn(&self, hash: u64, family: Family, protocol: u8) -> Candidate {
        let bucket = &self.buckets[self.home(hash)];
        let mut mask = bucket.matches(Table::tag(hash));
        let first = if mask == 0 { Candidate::NONE } else { Candidate(bucket.slots[mask.trailing_zeros() as usize]) };
        while mask != 0 {
            let slot = bucket.slots[mask.trailing_zeros() as usize];
            let index = (slot & !REPLY_BIT) as usize;
            arch::prefetch(&self.records[index]);
            // These two lie across two lines as often as not.
            if protocol == proto::TCP {
                self.tcp[index].ends().into_iter().for_each(arch::prefetch);
            }
            if family == Family::V6 {
                self.v6[index].iter().for_each(arch::prefetch);
            }
            mask &= mask - 1;
        }
        first
    }

    /// The candidate, if it has the key: a connection that [`Table::find`] may find, without the index, whatever has happened
    /// to the table since. (It is the one that `find` finds, but where zones of one direction let two have the key.) Only for
    /// TCP and UDP over IPv4, and for connections with one zone.
    #[inline(always)]
    pub(super) fn confirm_candidate(&self, candidate: Candidate, tuple: &Tuple) -> Option<(ConnId, Direction)> {
        let (id, direction) = parts_of(candidate.0);
        let conn = self.records.get(id.index())?;
        (conn.is_confirmed() && conn.has_v4(direction, tuple) == Some(true)).then_some((id, direction))
    }

    /// Asks for both buckets that hold a connection's keys to be brought close.
    pub(super) fn prefetch_keys(&self, id: ConnId) {
        for direction in [Direction::Original, Direction::Reply] {
            self.prefetch_bucket(self.hash(&self.tuple(id, direction)));
        }
    }

    /// Asks for a record's cache line to be brought close.
    #[inline]
    pub(super) fn prefetch_record(&self, id: ConnId) {
        arch::prefetch(&self.records[id.index()]);
    }

    /// Asks for what an insertion writes to be brought close: the bucket of the reply's key, whose hash this is, and the
    /// record that will be used.
    #[inline]
    pub(super) fn prefetch_insert(&self, reply_hash: u64) {
        self.prefetch_bucket(reply_hash);
        if let Some(record) = self.records.get(self.free as usize) {
            arch::prefetch(record);
        }
    }

    /// The tuple of one direction of a connection.
    #[inline]
    pub(super) fn tuple(&self, id: ConnId, direction: Direction) -> Tuple {
        let conn = &self.records[id.index()];
        conn.tuple(direction, || match direction {
            Direction::Original => self.v6[id.index()].map(Addr::from_v6),
            Direction::Reply if conn.is_translated() => self.v6_reply[id.index()].map(Addr::from_v6),
            Direction::Reply => {
                let [src, dst] = self.v6[id.index()];
                [dst, src].map(Addr::from_v6)
            }
        })
    }

    /// Notes one more thing.
    pub(super) fn set_note(&mut self, id: ConnId, bit: u8) {
        if self.get(id).flags & Conn::NOTED == 0 {
            self.notes[id.index()] = 0;
        }
        self.get_mut(id).flags |= Conn::NOTED;
        self.notes[id.index()] |= bit;
    }

    /// This is not so after all.
    pub(super) fn clear_note(&mut self, id: ConnId, bit: u8) {
        self.notes[id.index()] &= !bit;
    }

    /// What is noted of a connection's translation.
    pub(super) fn note(&self, id: ConnId) -> TranslationNote {
        let conn = &self.records[id.index()];
        match conn.flags & Conn::NOTED {
            0 => TranslationNote::NONE,
            _ => TranslationNote(self.notes[id.index()]),
        }
    }

    /// Whether this is the tuple of one direction of a connection.
    #[inline(always)]
    fn has(&self, id: ConnId, direction: Direction, tuple: &Tuple) -> bool {
        self.records[id.index()].has_v4(direction, tuple).unwrap_or_else(|| self.has_whole(id, direction, tuple))
    }

    #[inline(never)]
    fn has_whole(&self, id: ConnId, direction: Direction, tuple: &Tuple) -> bool {
        self.tuple(id, direction) == *tuple
    }

    /// The connection that has this key, and the direction of the key. Knows nothing of time.
    #[inline]
    pub(super) fn find(&self, tuple: &Tuple, hash: u64) -> Option<(ConnId, Direction)> {
        self.find_where(tuple, hash, |_| true)
    }

    /// [`Table::find`] among the keys of one direction.
    pub(super) fn find_of(&self, tuple: &Tuple, hash: u64, direction: Direction) -> Option<(ConnId, Direction)> {
        self.find_where(tuple, hash, |found| found == direction)
    }

    #[inline(always)]
    fn find_where(
        &self,
        tuple: &Tuple,
        hash: u64,
        is_wanted: impl Fn(Direction) -> bool + Copy,
    ) -> Option<(ConnId, Direction)> {
        let home = self.home(hash);
        let tag = Table::tag(hash);
        let bucket = &self.buckets[home];
        match self.find_in(bucket, tag, tuple, is_wanted) {
            None if bucket.reach > 0 => self.find_beyond(home, tag, tuple, is_wanted),
            found => found,
        }
    }

    #[inline(always)]
    fn find_in(
        &self,
        bucket: &Bucket,
        tag: u8,
        tuple: &Tuple,
        is_wanted: impl Fn(Direction) -> bool,
    ) -> Option<(ConnId, Direction)> {
        let mut mask = bucket.matches(tag);
        while mask != 0 {
            let slot = bucket.slots[mask.trailing_zeros() as usize];
            mask &= mask - 1;
            let (id, direction) = parts_of(slot);
            if is_wanted(direction) && self.has(id, direction, tuple) {
                return Some((id, direction));
            }
        }
        None
    }

    #[cold]
    fn find_beyond(
        &self,
        home: usize,
        tag: u8,
        tuple: &Tuple,
        is_wanted: impl Fn(Direction) -> bool + Copy,
    ) -> Option<(ConnId, Direction)> {
        let reach = usize::from(self.buckets[home].reach);
        (1..=reach).find_map(|distance| self.find_in(&self.buckets[self.beyond(home, distance)], tag, tuple, is_wanted))
    }

    /// Puts a connection into the table, findable by both tuples, and marks it CONFIRMED. Neither key may be there yet in
    /// its direction, and the table may not be full.
    ///
    /// # Errors
    /// [`IndexFull`]; nothing has changed then.
    ///
    /// # Panics
    /// When the table is full: the caller has looked.
    pub(super) fn insert(&mut self, new: &Prepared) -> Result<ConnId, IndexFull> {
        assert!(self.free != END, "insert into a full table");
        let id = ConnId(self.free);
        let (original, reply) = (new.tuple(Direction::Original), new.tuple(Direction::Reply));
        // A tuple that is its own inverse is found as a reply, as in Linux: its key goes in first.
        self.insert_key(id, &reply, Direction::Reply)?;
        if let Err(full) = self.insert_key(id, &original, Direction::Original) {
            self.remove_key(id, &reply, Direction::Reply);
            return Err(full);
        }
        let record = &mut self.records[id.index()];
        self.free = record.reply_src;
        // The wheel may still hold the record from its former life.
        let link = record.link;
        *record = Conn { status: new.conn.status.with(CtStatus::CONFIRMED), link, ..new.conn };
        if original.proto == proto::TCP {
            self.tcp[id.index()] = new.tcp;
        }
        if original.family == Family::V6 {
            self.v6[id.index()] = [original.src, original.dst].map(Addr::bits);
            if new.conn.is_translated() {
                self.v6_reply[id.index()] = [reply.src, reply.dst].map(Addr::bits);
            }
        }
        if new.note != TranslationNote::NONE {
            self.records[id.index()].flags |= Conn::NOTED;
            self.notes[id.index()] = new.note.0;
        }
        self.len += 1;
        Ok(id)
    }

    /// Takes a connection out. It must be confirmed.
    pub(super) fn remove(&mut self, id: ConnId) {
        assert!(self.get(id).is_confirmed(), "removing a free record");
        for direction in [Direction::Reply, Direction::Original] {
            self.remove_key(id, &self.tuple(id, direction), direction);
        }
        let record = &mut self.records[id.index()];
        record.status = CtStatus::default();
        record.reply_src = self.free;
        self.free = id.0;
        self.len -= 1;
    }

    fn insert_key(&mut self, id: ConnId, tuple: &Tuple, direction: Direction) -> Result<(), IndexFull> {
        let hash = self.hash(tuple);
        let home = self.home(hash);
        for distance in 0..=REACH_MAX {
            let at = self.beyond(home, distance);
            let Some(lane) = self.buckets[at].slots.iter().position(|&slot| slot == EMPTY) else { continue };
            let bucket = &mut self.buckets[at];
            bucket.slots[lane] = slot_of(id, direction);
            bucket.tags[lane] = Table::tag(hash);
            if distance > 0 {
                let bucket = &mut self.buckets[home];
                bucket.overflow += 1;
                bucket.reach = bucket.reach.max(distance as u16);
            }
            return Ok(());
        }
        Err(IndexFull)
    }

    fn remove_key(&mut self, id: ConnId, tuple: &Tuple, direction: Direction) {
        let home = self.home(self.hash(tuple));
        let wanted = slot_of(id, direction);
        for distance in 0..=usize::from(self.buckets[home].reach) {
            let at = self.beyond(home, distance);
            let Some(lane) = self.buckets[at].slots.iter().position(|&slot| slot == wanted) else { continue };
            let bucket = &mut self.buckets[at];
            bucket.slots[lane] = EMPTY;
            bucket.tags[lane] = 0;
            if distance > 0 {
                let bucket = &mut self.buckets[home];
                bucket.overflow -= 1;
                if bucket.overflow == 0 {
                    bucket.reach = 0;
                }
            }
            return;
        }
        unreachable!("a confirmed connection has both keys in the index");
    }

    /// A record.
    #[inline]
    pub(super) fn get(&self, id: ConnId) -> &Conn {
        &self.records[id.index()]
    }

    /// A record, to change. Its tuple must stay.
    #[inline]
    pub(super) fn get_mut(&mut self, id: ConnId) -> &mut Conn {
        &mut self.records[id.index()]
    }

    /// What TCP remembers of a connection.
    pub(super) fn tcp(&self, id: ConnId) -> TcpRecord {
        self.tcp[id.index()]
    }

    /// What TCP remembers goes with the record.
    #[inline]
    pub(super) fn get_with_tcp_mut(&mut self, id: ConnId) -> (&mut Conn, &mut TcpRecord) {
        (&mut self.records[id.index()], &mut self.tcp[id.index()])
    }

    /// All records, free ones too, by number.
    #[inline]
    pub(super) fn records(&self) -> &[Conn] {
        &self.records
    }

    #[inline]
    pub(super) fn records_mut(&mut self) -> &mut [Conn] {
        &mut self.records
    }

    /// Connections in the table.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Connections it has room for.
    #[inline]
    pub(super) fn capacity(&self) -> usize {
        self.records.len()
    }

    /// Bytes of memory that are taken at start, and those that IPv6 connections take when they come, at most.
    pub(super) fn memory_bytes(&self) -> (usize, usize) {
        let records = self.capacity() * (size_of::<Conn>() + size_of::<TcpRecord>());
        (self.buckets.len() * size_of::<Bucket>() + records, self.capacity() * size_of::<AddressesV6>())
    }

    /// Bytes of memory that translated connections take when they come, at most.
    pub(super) fn translated_bytes(&self) -> usize {
        self.capacity() * (size_of::<AddressesV6>() + size_of::<TranslationNote>())
    }

    /// Checks every invariant, slowly.
    ///
    /// # Panics
    /// When one does not hold.
    pub(super) fn check(&self) {
        let mut keys = 0;
        for (number, bucket) in self.buckets.iter().enumerate() {
            for (&slot, &tag) in bucket.slots.iter().zip(&bucket.tags) {
                assert_eq!(slot == EMPTY, tag == 0, "empty slots and tags differ in bucket {number}");
                keys += usize::from(slot != EMPTY);
            }
            assert_eq!(bucket.overflow == 0, bucket.reach == 0, "reach without overflow in bucket {number}");
        }
        assert_eq!(keys, 2 * self.len, "two keys for each connection");
        let confirmed = self.records.iter().enumerate().filter(|(_, conn)| conn.is_confirmed());
        let mut count = 0;
        for (index, _) in confirmed {
            count += 1;
            for direction in [Direction::Original, Direction::Reply] {
                let tuple = self.tuple(ConnId(index as u32), direction);
                let found = self.find_of(&tuple, self.hash(&tuple), direction).map(|(id, _)| id);
                assert_eq!(found, Some(ConnId(index as u32)), "{tuple:?} not found");
            }
        }
        assert_eq!(count, self.len);
        let mut free = 0;
        let mut next = self.free;
        while next != END {
            assert!(!self.records[next as usize].is_confirmed(), "a free record is confirmed");
            free += 1;
            assert!(free <= self.records.len(), "the free list is a ring");
            next = self.records[next as usize].reply_src;
        }
        assert_eq!(free + self.len, self.records.len(), "a record is neither free nor in use");
    }
}

#[inline]
fn slot_of(id: ConnId, direction: Direction) -> u32 {
    match direction {
        Direction::Original => id.0,
        Direction::Reply => id.0 | REPLY_BIT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn tuple(number: u32) -> Tuple {
        Tuple {
            src: Addr::from_v4(0x0a00_0000 | number >> 8),
            dst: Addr::from_v4(0x0a01_0001),
            sport: 1000 + (number & 0xff) as u16,
            dport: 80,
            proto: proto::UDP,
            ..Tuple::default()
        }
    }

    /// One of several kinds: UDP and TCP over IPv4 and IPv6, echo requests over both, and tuples that differ from another
    /// only in the family, or in bits of the address that IPv4 does not have.
    fn mixed(number: u32) -> Tuple {
        let v4 = tuple(number / 8);
        let v6 = |high: u64| Addr::from_v6(u128::from(high) << 64 | u128::from(number / 8));
        let over_v6 = Tuple { src: v6(0xfd01), dst: v6(0xfd02), family: Family::V6, ..v4 };
        match number % 8 {
            0 => v4,
            1 => Tuple { proto: proto::TCP, ..v4 },
            2 => Tuple { proto: proto::ICMP, sport: v4.sport, dport: 8 << 8, ..v4 },
            3 => over_v6,
            4 => Tuple { proto: proto::TCP, ..over_v6 },
            5 => Tuple { proto: proto::ICMPV6, dport: 128 << 8, ..over_v6 },
            6 => Tuple { src: v6(0xfd03), ..over_v6 },
            _ => Tuple { family: Family::V6, ..v4 },
        }
    }

    /// A connection whose every part tells its number.
    fn numbered(number: u32) -> Prepared {
        let mut new = Prepared::new(mixed(number));
        new.conn.mark = number;
        new.tcp = TcpRecord::numbered(number);
        new
    }

    fn find(table: &Table, tuple: &Tuple) -> Option<(ConnId, Direction)> {
        table.find(tuple, table.hash(tuple))
    }

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!((size_of::<Bucket>(), align_of::<Bucket>()), (64, 64));
    }

    #[test]
    fn both_tuples_find_the_connection() {
        let mut table = Table::new(4, [1, 2]);
        let id = table.insert(&Prepared::new(tuple(7))).expect("room");
        let reply = tuple(7).inverse().expect("UDP has an inverse");
        assert_eq!(find(&table, &tuple(7)), Some((id, Direction::Original)));
        assert_eq!(find(&table, &reply), Some((id, Direction::Reply)));
        assert_eq!(find(&table, &tuple(8)), None);
        table.check();
        table.remove(id);
        assert_eq!((find(&table, &tuple(7)), find(&table, &reply), table.len()), (None, None, 0));
        table.check();
    }

    #[test]
    fn a_tuple_that_is_its_own_inverse_is_found_as_a_reply() {
        let land = Tuple { src: Addr::from_v4(1), dst: Addr::from_v4(1), sport: 5, dport: 5, ..tuple(0) };
        let mut table = Table::new(64, [1, 2]);
        let id = table.insert(&Prepared::new(land)).expect("room");
        assert_eq!(find(&table, &land), Some((id, Direction::Reply)));
        table.check();
    }

    #[test]
    fn the_table_fills_to_the_brim_and_keys_stay_close_to_home() {
        let capacity = 200_000;
        let mut table = Table::new(capacity, [3, 4]);
        for number in 0..capacity as u32 {
            table.insert(&Prepared::new(tuple(number))).expect("room within reach");
        }
        table.check();
        let look = |table: &Table| {
            let overflown = table.buckets.iter().filter(|bucket| bucket.overflow > 0).count();
            let reach = table.buckets.iter().map(|bucket| bucket.reach).max();
            assert!(overflown * 15 < table.buckets.len(), "{overflown} of {} buckets overflow", table.buckets.len());
            assert!(reach <= Some(8), "{reach:?}");
        };
        look(&table);
        // It stays so while connections come and go.
        let mut random = 1u64;
        for number in 0..2 * capacity as u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            table.remove(ConnId(((random >> 33) % capacity as u64) as u32));
            let new = Tuple { dport: 81 + (number / capacity as u32) as u16, ..tuple(number % capacity as u32) };
            table.insert(&Prepared::new(new)).expect("room within reach");
        }
        table.check();
        look(&table);
    }

    #[test]
    fn the_hash_depends_on_every_field_and_on_the_secret() {
        let table = Table::new(1, [1, 2]);
        let base = Tuple { src: Addr::from_v6(1 << 70 | 9), dst: Addr::from_v6(2 << 70 | 7), ..tuple(9) };
        let others = [
            base.inverse().expect("an inverse"),
            Tuple { src: base.dst, dst: base.src, ..base },
            Tuple { sport: base.dport, dport: base.sport, ..base },
            Tuple { src: Addr::from_v6(3 << 70 | 9), ..base },
            Tuple { dst: Addr::from_v6(3 << 70 | 7), ..base },
            Tuple { proto: proto::TCP, ..base },
            Tuple { family: Family::V6, ..base },
            Tuple { zone: 1, ..base },
        ];
        for other in others {
            assert_ne!(table.hash(&base), table.hash(&other), "{other:?}");
        }
        for secret in [[1, 3], [2, 2]] {
            assert_ne!(table.hash(&base), Table::new(1, secret).hash(&base));
        }
    }

    #[test]
    fn an_ipv4_connection_takes_128_bytes_at_most() {
        for capacity in [1000, 65_536] {
            let (start, v6) = Table::new(capacity, [1, 2]).memory_bytes();
            assert!(start <= 128 * capacity, "{start} bytes for {capacity}");
            assert_eq!(v6, 32 * capacity);
        }
    }

    #[test]
    fn a_candidate_stands_for_its_key_while_that_is_there() {
        let mut table = Table::new(8, [1, 2]);
        let tuple = Tuple { proto: proto::UDP, ..mixed(0) };
        let tuple = Tuple { family: Family::V4, src: Addr::from_v4(1), dst: Addr::from_v4(2), ..tuple };
        let reply = tuple.inverse().expect("an inverse");
        let ask = |table: &Table, tuple: &Tuple| table.prefetch_conn(table.hash(tuple), tuple.family, tuple.proto);
        assert_eq!(ask(&table, &tuple), Candidate::NONE);
        assert_eq!(table.confirm_candidate(Candidate::NONE, &tuple), None);
        let id = table.insert(&Prepared::new(tuple)).expect("room");
        let (there, back) = (ask(&table, &tuple), ask(&table, &reply));
        assert_eq!(table.confirm_candidate(there, &tuple), Some((id, Direction::Original)));
        assert_eq!(table.confirm_candidate(back, &reply), Some((id, Direction::Reply)));
        assert_eq!(table.confirm_candidate(there, &reply), None, "it is of the other direction");
        table.remove(id);
        assert_eq!(table.confirm_candidate(there, &tuple), None, "the record is free");
        let other = Tuple { sport: tuple.sport ^ 1, ..tuple };
        assert_eq!(table.insert(&Prepared::new(other)), Ok(id));
        assert_eq!(table.confirm_candidate(there, &tuple), None, "the record is another's");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u32),
        Remove(u32),
        Find(u32),
        /// Inserts until there is no room, from this number on.
        Fill(u32),
    }

    /// Few numbers, so that operations meet; and more of them than the table has room for.
    const NUMBERS: u32 = 160;

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            60 => (0..NUMBERS).prop_map(Op::Insert),
            40 => (0..NUMBERS).prop_map(Op::Remove),
            20 => (0..NUMBERS).prop_map(Op::Find),
            1 => (0..NUMBERS).prop_map(Op::Fill),
        ];
        proptest::collection::vec(op, 0..500)
    }

    /// The table, and a map that is told the same.
    struct Pair {
        table: Table,
        model: BTreeMap<u32, ConnId>,
        /// What was said of numbers before.
        candidates: BTreeMap<u32, Candidate>,
    }

    impl Pair {
        /// What was said of this key before, and what is said now, is what the index says, or nothing.
        fn ask_candidates(&mut self, key: u32, tuple: &Tuple) {
            let hash = self.table.hash(tuple);
            let candidate = self.table.prefetch_conn(hash, tuple.family, tuple.proto);
            for candidate in [self.candidates.insert(key, candidate), Some(candidate)].into_iter().flatten() {
                let confirmed = self.table.confirm_candidate(candidate, tuple);
                assert!(confirmed.is_none() || confirmed == find(&self.table, tuple), "a candidate stands for another");
            }
        }

        fn insert(&mut self, number: u32) {
            if self.model.len() == self.table.capacity() || self.model.contains_key(&number) {
                return;
            }
            let before = self.table.len();
            match self.table.insert(&numbered(number)) {
                Ok(id) => assert_eq!(self.model.insert(number, id), None),
                Err(IndexFull) => assert_eq!(self.table.len(), before),
            }
        }

        fn find(&mut self, number: u32) {
            let wanted = self.model.get(&number).copied();
            let tuple = mixed(number);
            let reply = tuple.inverse().expect("an inverse");
            assert_eq!(find(&self.table, &tuple), wanted.map(|id| (id, Direction::Original)));
            assert_eq!(find(&self.table, &reply), wanted.map(|id| (id, Direction::Reply)));
            self.ask_candidates(number, &tuple);
            self.ask_candidates(!number, &reply);
            let Some(id) = wanted else { return };
            assert_eq!(self.table.get(id).mark, number);
            assert_eq!(self.table.tuple(id, Direction::Original), tuple);
            assert_eq!(self.table.tuple(id, Direction::Reply), reply);
            if tuple.proto == proto::TCP {
                assert_eq!(self.table.get_with_tcp_mut(id).1.ends(), TcpRecord::numbered(number).ends());
            }
        }

        fn apply(&mut self, op: &Op) {
            match *op {
                Op::Insert(number) => self.insert(number),
                Op::Remove(number) => {
                    if let Some(id) = self.model.remove(&number) {
                        self.table.remove(id);
                    }
                }
                Op::Find(number) => self.find(number),
                Op::Fill(from) => (from..from + NUMBERS).for_each(|number| self.insert(number % NUMBERS)),
            }
            assert_eq!(self.table.len(), self.model.len());
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(ops in ops(), capacity in 1usize..120, secret: [u64; 2]) {
            let mut pair = Pair { table: Table::new(capacity, secret), model: BTreeMap::new(), candidates: BTreeMap::new() };
            ops.iter().for_each(|op| pair.apply(op));
            (0..NUMBERS).for_each(|number| pair.find(number));
            pair.table.check();
        }
    }
}
