//! Elements of the hash types: [`HashStore`].
//!
//! Elements lie in one array; an index of chained buckets finds them by their keys. Every bucket says, in a word beside its
//! chain's head, which hashes may be in it, so that a key that is not there is mostly told from the bucket alone: a look for the
//! longest prefix asks once for each prefix length there is, and most of these answers are no. Everything is taken when the
//! store is made; adding and deleting move nothing and leave no marks behind.
//!
//! The hash is a folded multiplication keyed by a secret: what is looked up is chosen by those who send packets.
//!
//! A store that packets add to knows which element expires first (a heap by place), so that one that is full has room again as
//! soon as one has expired, without looking through all of them.

use super::entry::Definition;
use super::extra::Extra;
use super::header::Header;
use super::heap::Heap;
use super::key::{Key, begins_with};
use super::kind::Kind;
use super::lengths::Lengths;
use super::question::Question;
use crate::time::Instant;

/// No place.
pub(super) const END: u32 = u32::MAX;
/// Elements that have expired are taken out with each that is added, up to so many.
const EXPIRED_AT_ONCE: usize = 8;

/// What a look found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    No,
    /// The element at this place.
    Yes(u32),
    /// The exception at this place.
    Nomatch(u32),
}

#[derive(Clone, Debug)]
struct Slot {
    key: Key,
    /// The next in the chain, or of the free places.
    next: u32,
    nomatch: bool,
    wildcard: bool,
    used: bool,
}

/// A bucket: where its chain begins, and one bit for each fifth of a hash in it.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    head: u32,
    may_hold: u32,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub(super) struct HashStore {
    secret: [u64; 2],
    slots: Vec<Slot>,
    /// By the elements' places; empty when the set has none.
    extras: Vec<Extra>,
    buckets: Box<[Bucket]>,
    free: u32,
    len: usize,
    capacity: usize,
    /// Prefix lengths of the first net and of the second one.
    lengths: [Lengths; 2],
    /// Whether extras are there.
    has_extras: bool,
    /// Elements by when they expire; none in a store that is only read.
    heap: Option<Heap>,
    /// Where the next one to give way to another is looked for.
    hand: usize,
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The bit of [`Bucket::may_hold`] for a hash.
#[inline(always)]
fn bit_of(hash: u64) -> u32 {
    1 << (hash >> 59)
}

impl HashStore {
    /// The elements of `definition` from `now` on. With `live`, with room for as many as it takes.
    pub(super) fn new(definition: &Definition, live: bool, secret: [u64; 2], now: Instant) -> HashStore {
        let header = &definition.header;
        let capacity = if live { header.capacity as usize } else { definition.entries.len() };
        let mut store = HashStore::empty(header, capacity, live, secret);
        for entry in &definition.entries {
            let extra = store.has_extras.then(|| Extra::new(header, entry.given.as_deref(), now));
            store.insert(header.kind, Slot::new(entry.key, entry.nomatch, entry.wildcard), extra);
        }
        store
    }

    /// The same elements, with room for as many as the set takes.
    pub(super) fn with_room(&self, header: &Header) -> HashStore {
        let mut store = HashStore::empty(header, header.capacity as usize, true, self.secret);
        for (place, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.used) {
            let extra = self.extras.get(place).cloned();
            store.insert(header.kind, Slot::new(slot.key, slot.nomatch, slot.wildcard), extra);
        }
        store
    }

    fn empty(header: &Header, capacity: usize, live: bool, secret: [u64; 2]) -> HashStore {
        let buckets = (capacity.max(4) * 2).next_power_of_two();
        let extras = if header.has_extras() { capacity } else { 0 };
        HashStore {
            secret,
            slots: Vec::with_capacity(capacity),
            extras: Vec::with_capacity(extras),
            buckets: vec![Bucket { head: END, may_hold: 0 }; buckets].into_boxed_slice(),
            free: END,
            len: 0,
            capacity,
            lengths: [Lengths::default(); 2],
            has_extras: header.has_extras(),
            heap: (live && header.timeout.is_some()).then(|| Heap::with_capacity(capacity)),
            hand: 0,
        }
    }

    /// How many elements there are, those included that have expired but were not taken out.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn hash(&self, kind: Kind, key: &Key) -> u64 {
        let (a, b) = key.first.words();
        // Elements of one net with different interfaces are in one chain: they are looked at together.
        let (c, d) = if kind == Kind::HashNetIface { (0, 0) } else { key.second.words() };
        let [k, l] = self.secret;
        let first = fold(a ^ k, b ^ l);
        let second = fold(c ^ l.rotate_left(32), d ^ k.rotate_left(17));
        fold(first.rotate_left(23) ^ key.rest() ^ k, second ^ first ^ l)
    }

    #[inline]
    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    /// The places in the key's bucket, if one with this hash may be there.
    #[inline]
    fn chain(&self, hash: u64) -> impl Iterator<Item = (u32, &Slot)> {
        let bucket = self.buckets[self.bucket(hash)];
        let mut at = if bucket.may_hold & bit_of(hash) == 0 { END } else { bucket.head };
        core::iter::from_fn(move || {
            let place = at;
            let slot = self.slots.get(place as usize)?;
            at = slot.next;
            Some((place, slot))
        })
    }

    /// The place of exactly this element; for interfaces, of one that is the same or stands for it.
    fn find(&self, kind: Kind, key: &Key) -> Option<u32> {
        self.chain(self.hash(kind, key)).find(|(_, slot)| slot.is(kind, key)).map(|found| found.0)
    }

    /// Looks up the element that a packet is: as it is, or by the longest of the prefixes it is in.
    #[inline]
    pub(super) fn test(&self, header: &Header, question: &Question<'_>) -> Found {
        let Some(key) = question.key(header) else { return Found::No };
        match header.kind.nets() {
            0 => self.test_one(header, question, &key).unwrap_or(Found::No),
            1 => self.test_nets(header, question, key),
            _ => self.test_pairs(header, question, key),
        }
    }

    /// `None`: no such element, or one that does not count as met.
    #[inline]
    fn test_one(&self, header: &Header, question: &Question<'_>, key: &Key) -> Option<Found> {
        let hash = self.hash(header.kind, key);
        let met = self.chain(hash).filter(|(_, slot)| slot.is(header.kind, key));
        for (place, slot) in met {
            if !self.has_extras || self.extras[place as usize].admits(header, question) {
                return Some(if slot.nomatch { Found::Nomatch(place) } else { Found::Yes(place) });
            }
        }
        None
    }

    #[inline]
    fn test_nets(&self, header: &Header, question: &Question<'_>, key: Key) -> Found {
        let family = header.address_family();
        let second = header.kind == Kind::HashIpPortNet;
        for &length in self.lengths[0].present() {
            let cut = key.cut(0, second, length, family);
            if let Some(found) = self.test_one(header, question, &cut) {
                return found;
            }
            if header.kind == Kind::HashNetIface && self.decides(header.kind, &cut) {
                return Found::No;
            }
        }
        Found::No
    }

    /// hash:net,iface: the longest prefix that is there decides, though no interface of it fits (`IP_SET_HASH_WITH_MULTI`).
    /// One that fits but does not count as met does not.
    fn decides(&self, kind: Kind, key: &Key) -> bool {
        let mut others = 0;
        for (_, slot) in self.chain(self.hash(kind, key)).filter(|(_, slot)| slot.is_net(key)) {
            others = if slot.is(kind, key) { 0 } else { others + 1 };
        }
        others > 0
    }

    fn test_pairs(&self, header: &Header, question: &Question<'_>, key: Key) -> Found {
        let family = header.address_family();
        for &outer in self.lengths[0].present() {
            let cut = key.cut(0, false, outer, family);
            for &inner in self.lengths[1].present() {
                if let Some(found) = self.test_one(header, question, &cut.cut(1, true, inner, family)) {
                    return found;
                }
            }
        }
        Found::No
    }

    /// The element that a packet stands for when it is added or deleted: prefixes get the longest length there is.
    fn key_to_change(&self, header: &Header, question: &Question<'_>) -> Option<Key> {
        let mut key = question.key(header)?;
        let family = header.address_family();
        let seconds: &[bool] = match header.kind.nets() {
            0 => &[],
            1 if header.kind == Kind::HashIpPortNet => &[true],
            1 => &[false],
            _ => &[false, true],
        };
        for (net, &second) in seconds.iter().enumerate() {
            let length = self.lengths[net].longest().unwrap_or(family.bits());
            if length == 0 {
                return None;
            }
            key = key.cut(net, second, length, family);
        }
        Some(key)
    }

    /// Adds the element that a packet is (`mtype_add`). Whether it did.
    pub(super) fn add(&mut self, header: &Header, question: &Question<'_>) -> bool {
        let Some(key) = self.key_to_change(header, question) else { return false };
        if let Some(place) = self.find(header.kind, &key) {
            let expired = self.has_extras && self.extras[place as usize].is_expired(question.now);
            if !question.exist && !expired {
                return false;
            }
            self.slots[place as usize].nomatch = false;
            if self.has_extras {
                self.extras[place as usize] = Extra::of_packet(header, question);
                self.order(place);
            }
            return true;
        }
        self.make_room(header, question.now);
        if self.len >= self.capacity {
            return false;
        }
        let extra = self.has_extras.then(|| Extra::of_packet(header, question));
        self.insert(header.kind, Slot::new(key, false, false), extra);
        true
    }

    /// Deletes the element that a packet is (`mtype_del`). Whether it was there.
    pub(super) fn delete(&mut self, header: &Header, question: &Question<'_>) -> bool {
        let Some(key) = self.key_to_change(header, question) else { return false };
        let Some(place) = self.find(header.kind, &key) else { return false };
        if self.has_extras && self.extras[place as usize].is_expired(question.now) {
            return false;
        }
        self.remove(header.kind, place);
        true
    }

    /// Takes out some of what has expired, and with `forceadd` somebody else when the set is still full.
    fn make_room(&mut self, header: &Header, now: Instant) {
        for _ in 0..EXPIRED_AT_ONCE {
            let first = self.heap.as_ref().and_then(|heap| heap.first());
            match first.filter(|&place| self.extras[place as usize].is_expired(now)) {
                Some(place) => self.remove(header.kind, place),
                None => break,
            }
        }
        if self.len >= self.capacity && header.forceadd && self.len > 0 {
            let places = self.slots.len();
            let victim = (0..places).map(|step| (self.hand + step) % places).find(|&at| self.slots[at].used);
            if let Some(victim) = victim {
                self.hand = victim + 1;
                self.remove(header.kind, victim as u32);
            }
        }
    }

    fn insert(&mut self, kind: Kind, slot: Slot, extra: Option<Extra>) {
        let key = slot.key;
        let hash = self.hash(kind, &key);
        let bucket = self.bucket(hash);
        let place = match self.free {
            END => {
                self.slots.push(slot);
                self.extras.extend(extra);
                self.slots.len() as u32 - 1
            }
            place => {
                self.free = self.slots[place as usize].next;
                self.slots[place as usize] = slot;
                if let Some(extra) = extra {
                    self.extras[place as usize] = extra;
                }
                place
            }
        };
        // At the end of the chain: of several that a packet meets, the first one added is asked first.
        self.buckets[bucket].may_hold |= bit_of(hash);
        let mut last = END;
        let mut at = self.buckets[bucket].head;
        while at != END {
            last = at;
            at = self.slots[at as usize].next;
        }
        match last {
            END => self.buckets[bucket].head = place,
            last => self.slots[last as usize].next = place,
        }
        self.len += 1;
        for net in 0..kind.nets() {
            self.lengths[net].add(key.lengths[net]);
        }
        self.order(place);
    }

    fn remove(&mut self, kind: Kind, place: u32) {
        let key = self.slots[place as usize].key;
        let bucket = self.bucket(self.hash(kind, &key));
        let next = self.slots[place as usize].next;
        let (mut at, mut may_hold) = (self.buckets[bucket].head, 0);
        if at == place {
            self.buckets[bucket].head = next;
            at = next;
        }
        while at != END {
            if self.slots[at as usize].next == place {
                self.slots[at as usize].next = next;
            }
            may_hold |= bit_of(self.hash(kind, &self.slots[at as usize].key));
            at = self.slots[at as usize].next;
        }
        self.buckets[bucket].may_hold = may_hold;
        let slot = &mut self.slots[place as usize];
        (slot.used, slot.next) = (false, self.free);
        self.free = place;
        self.len -= 1;
        for net in 0..kind.nets() {
            self.lengths[net].take(key.lengths[net]);
        }
        if let Some(heap) = &mut self.heap {
            heap.remove(place);
        }
    }

    /// Puts the element where it belongs among those that expire.
    fn order(&mut self, place: u32) {
        let Some(heap) = &mut self.heap else { return };
        match self.extras[place as usize].expires() {
            u64::MAX => heap.remove(place),
            at => heap.put(place, at),
        }
    }

    /// What stands beside an element.
    pub(super) fn extra(&self, place: u32) -> Option<&Extra> {
        self.extras.get(place as usize)
    }

    /// The elements, with whether they are exceptions and stand for many interfaces.
    pub(super) fn elements(&self) -> impl Iterator<Item = (&Key, bool, bool, Option<&Extra>)> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.used);
        used.map(|(place, slot)| (&slot.key, slot.nomatch, slot.wildcard, self.extras.get(place)))
    }
}

impl Slot {
    fn new(key: Key, nomatch: bool, wildcard: bool) -> Slot {
        Slot { key, next: END, nomatch, wildcard, used: true }
    }

    #[inline]
    fn is(&self, kind: Kind, key: &Key) -> bool {
        if kind != Kind::HashNetIface {
            return self.key == *key;
        }
        self.is_net(key)
            && if self.wildcard { begins_with(key.second, self.key.second) } else { self.key.second == key.second }
    }

    /// The same net, whatever the interface.
    fn is_net(&self, key: &Key) -> bool {
        let Key { first, lengths, physdev, .. } = self.key;
        first == key.first && lengths == key.lengths && physdev == key.physdev
    }
}
