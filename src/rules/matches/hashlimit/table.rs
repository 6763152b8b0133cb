//! The buckets of hashlimit by key: [`HashlimitTable`].
//!
//! A table belongs to a name and an IP version, has the settings of the rule that named it first, and is shared by all that
//! name it. Its memory is taken when the rules are compiled. A bucket is forgotten at the first multiple of the collection
//! interval (from the table's first packet on) after it was idle for the expiry; since every packet of any key gives its
//! bucket the same time to live, the one idle for longest goes first, and a new one looks at two of those only.

use super::Config;
use super::rate::Bucket;
use crate::packet::Packet;
use crate::rules::matches::argument::push;
use crate::rules::matches::lru::{self, LruTable, SlotNumber};
use crate::rules::matches::recent::long_form;
use crate::schedule;
use crate::wire::{Addr, Family, get_u16, proto};
use std::sync::{Mutex, MutexGuard};

/// Bits of `--hashlimit-mode`.
pub(super) mod mode {
    pub(in super::super) const SRC_ADDR: u8 = 1;
    pub(in super::super) const SRC_PORT: u8 = 2;
    pub(in super::super) const DST_ADDR: u8 = 4;
    pub(in super::super) const DST_PORT: u8 = 8;
    /// Their names, in the order in which they are printed.
    pub(in super::super) const NAMES: &[(&str, u8)] =
        &[("srcip", SRC_ADDR), ("srcport", SRC_PORT), ("dstip", DST_ADDR), ("dstport", DST_PORT)];
}

/// What a bucket is for. What the mode does not ask for is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    src: u128,
    dst: u128,
    sport: u16,
    dport: u16,
}

impl lru::Key for Key {
    fn words(&self) -> [u64; 8] {
        let half = |address: u128| [(address >> 64) as u64, address as u64];
        let ([a, b], [c, d]) = (half(self.src), half(self.dst));
        [a, b, c, d, u64::from(self.sport) << 16 | u64::from(self.dport), 0, 0, 0]
    }
}

impl Key {
    /// The packet's (`hashlimit_init_dst`); `None` where its ports cannot be read.
    pub(super) fn of(packet: &Packet, frame: &[u8], config: &Config) -> Option<Key> {
        let asks = |bit| config.mode & bit != 0;
        let masked = |addr: Addr, len| {
            let masked = addr.and(Addr::prefix_mask(packet.family, len));
            if packet.family == Family::V4 { masked.v4_bits().into() } else { masked.bits() }
        };
        let mut key = Key { src: 0, dst: 0, sport: 0, dport: 0 };
        if asks(mode::SRC_ADDR) {
            key.src = masked(packet.src, config.src_len);
        }
        if asks(mode::DST_ADDR) {
            key.dst = masked(packet.dst, config.dst_len);
        }
        if asks(mode::SRC_PORT | mode::DST_PORT) {
            let (sport, dport) = ports(packet, frame)?;
            key.sport = if asks(mode::SRC_PORT) { sport } else { 0 };
            key.dport = if asks(mode::DST_PORT) { dport } else { 0 };
        }
        Some(key)
    }
}

/// The first two 16-bit words of the transport header, or what Linux takes for them (`proto_ports_offset`): ESP's index, too.
/// Zero for other protocols. `None` where they are not there, or an IPv6 packet has no transport header.
fn ports(packet: &Packet, frame: &[u8]) -> Option<(u16, u16)> {
    let at = match packet.proto {
        proto::TCP | proto::UDP | 33 | 50 | proto::SCTP | proto::UDPLITE => 0,
        proto::AH if packet.family == Family::V4 => 4,
        proto::HOP_BY_HOP | proto::ROUTING | proto::DEST_OPTIONS | proto::AH | 59 if packet.family == Family::V6 => {
            return None;
        }
        _ => return Some((0, 0)),
    };
    let ports = packet.l4_bytes(frame).get(at..at + 4)?;
    Some((get_u16(ports, 0), get_u16(ports, 2)))
}

/// What is known of a key.
#[derive(Clone, Copy, Debug)]
struct Entry {
    bucket: Bucket,
    /// The jiffy after which it may be forgotten.
    expires: u64,
}

/// See the module's head.
#[derive(Debug)]
pub(in crate::rules) struct HashlimitTable {
    family: Family,
    config: Config,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    entries: LruTable<Key, Entry>,
    /// The jiffy from which collections are counted.
    start: Option<u64>,
}

impl HashlimitTable {
    pub(super) fn new(family: Family, config: Config, secret: [u64; 2]) -> HashlimitTable {
        let size = if config.size == 0 { super::SIZE_DEFAULT } else { config.size };
        let max = if config.max == 0 { 8 * size } else { config.max.max(size) };
        let entries = LruTable::new(max as usize, secret);
        HashlimitTable { family, config, buckets: Mutex::new(Buckets { entries, start: None }) }
    }

    /// The settings of the rule that named it first.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        // A panic elsewhere leaves nothing half done here that matters.
        schedule::lock(&self.buckets)
    }

    /// Whether a packet of `length` bytes is within its bucket's rate; `None` when there is no room for a new bucket.
    /// `bytes` and `rate_match` are the rule's own.
    pub(super) fn take(&self, key: Key, length: u32, bytes: bool, rate_match: bool, now: u64) -> Option<bool> {
        let mut buckets = self.lock();
        let at = buckets.bucket(key, &self.config, now)?;
        Some(buckets.entries.value_mut(at).bucket.take(length, bytes, rate_match))
    }

    /// The buckets as /proc/net/ipt_hashlimit/NAME (or ip6t_hashlimit) prints them, the one idle for longest first.
    pub(in crate::rules) fn listing(&self, now: u64) -> String {
        let buckets = self.lock();
        let mut out = String::new();
        for at in buckets.entries.iter() {
            let (key, entry) = (buckets.entries.key(at), buckets.entries.value(at));
            if buckets.is_gone(entry.expires, now, self.config.gc_interval_ms) {
                continue;
            }
            let address = |address: u128| match self.family {
                Family::V4 => std::net::Ipv4Addr::from(address as u32).to_string(),
                Family::V6 => long_form(address),
            };
            let mut bucket = entry.bucket;
            bucket.pass(&self.config.rate, now);
            let left = (entry.expires as i64 - now as i64) / 1000;
            push(&mut out, format_args!("{left} {}:{}->", address(key.src), key.sport));
            push(&mut out, format_args!("{}:{} ", address(key.dst), key.dport));
            push(&mut out, format_args!("{} {} {}\n", bucket.credit, bucket.cap, bucket.cost));
        }
        out
    }
}

impl Buckets {
    /// Whether a collection has taken place since `expires`.
    fn is_gone(&self, expires: u64, now: u64, interval: u32) -> bool {
        let (start, interval) = (self.start.unwrap_or(now), u64::from(interval));
        let last = start + now.saturating_sub(start) / interval * interval;
        // None takes place at the start itself.
        last > start && expires <= last
    }

    /// The key's bucket, made if need be, with its time renewed.
    fn bucket(&mut self, key: Key, config: &Config, now: u64) -> Option<SlotNumber> {
        let interval = config.gc_interval_ms;
        self.start.get_or_insert(now);
        let expires = now + u64::from(config.expire_ms);
        if let Some(at) = self.entries.find(&key) {
            let gone = self.is_gone(self.entries.value(at).expires, now, interval);
            let entry = self.entries.value_mut(at);
            entry.expires = expires;
            match gone {
                true => entry.bucket = Bucket::new(&config.rate, now),
                false => entry.bucket.pass(&config.rate, now),
            }
            self.entries.touch(at);
            return Some(at);
        }
        for _ in 0..2 {
            match self.entries.oldest() {
                Some(oldest) if self.is_gone(self.entries.value(oldest).expires, now, interval) => {
                    self.entries.remove(oldest);
                }
                _ => break,
            }
        }
        self.entries.insert(key, Entry { bucket: Bucket::new(&config.rate, now), expires })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension::Extension;
    use crate::rules::extension_testing::{read, saved};
    use crate::rules::matches::hashlimit::HashlimitMatch;

    fn config(words: &str) -> Config {
        read::<HashlimitMatch>(Family::V4, words).expect("good options").config().expect("in range")
    }

    fn table(words: &str) -> HashlimitTable {
        HashlimitTable::new(Family::V4, config(words), [1, 2])
    }

    fn key(src: u32) -> Key {
        Key { src: src.into(), dst: 0, sport: 0, dport: 0 }
    }

    fn take(table: &HashlimitTable, src: u32, now: u64) -> Option<bool> {
        table.take(key(src), 100, false, false, now)
    }

    #[test]
    fn each_key_has_its_own_bucket() {
        let table = table("--hashlimit-upto 5/sec --hashlimit-burst 3 --hashlimit-mode srcip --hashlimit-name a");
        for src in 1..3 {
            let within: Vec<Option<bool>> = (0..4).map(|_| take(&table, src, 1000)).collect();
            assert_eq!(within, [Some(true), Some(true), Some(true), Some(false)]);
        }
        let line = "1 0.0.0.1:0->0.0.0.0:0 0 82463371800000 27487790600000";
        assert_eq!(table.listing(1000).lines().next(), Some(line));
    }

    #[test]
    fn a_full_table_drops_what_is_new_until_something_is_forgotten() {
        let table =
            table("--hashlimit-upto 5/sec --hashlimit-htable-size 2 --hashlimit-htable-max 2 --hashlimit-name a");
        assert_eq!((take(&table, 1, 0), take(&table, 2, 500), take(&table, 3, 900)), (Some(true), Some(true), None));
        // The first one's second is over at 1000, and there a collection takes place.
        assert_eq!(take(&table, 3, 999), None);
        assert_eq!(take(&table, 3, 1000), Some(true));
        assert_eq!(take(&table, 1, 1000), None);
        assert_eq!(take(&table, 2, 1600), Some(true), "idle for longer than it lives, but not collected");
    }

    #[test]
    fn a_bucket_that_was_forgotten_starts_full() {
        let words = "--hashlimit-upto 1/min --hashlimit-htable-expire 1500 --hashlimit-name a";
        let table = table(words);
        assert_eq!((0..7).filter(|_| take(&table, 1, 0) == Some(true)).count(), 5);
        assert_eq!(take(&table, 1, 1000), Some(false));
        assert_eq!(take(&table, 1, 2900), Some(false), "collected at 3000 only");
        assert_eq!(take(&table, 1, 5000), Some(true));
    }

    /// Asked from iptables-legacy 1.8.9.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, printed) in SAVED {
            let value = read::<HashlimitMatch>(Family::V4, words).unwrap_or_else(|bad| panic!("{words}: {bad}"));
            assert_eq!(saved(&value, Family::V4), *printed, "{words}");
            let again = read::<HashlimitMatch>(Family::V4, printed).expect("what is printed reads back");
            assert_eq!(again.config().map(|config| config.rate), value.config().map(|config| config.rate), "{words}");
        }
        let v6 = "--hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name q --hashlimit-srcmask 64";
        let value = read::<HashlimitMatch>(Family::V6, v6).expect("good");
        assert_eq!(saved(&value, Family::V6), v6);
        assert!(HashlimitMatch::new(Family::V4).config().is_err());
    }

    const SAVED: &[(&str, &str)] = &[
        ("--hashlimit-upto 5/sec --hashlimit-name a", "--hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name a"),
        (
            "--hashlimit 10/min --hashlimit-mode dstport,srcip,dstip,srcport --hashlimit-name b --hashlimit-htable-size 100 \
             --hashlimit-htable-max 200 --hashlimit-htable-gcinterval 500 --hashlimit-htable-expire 5000 \
             --hashlimit-srcmask 24 --hashlimit-dstmask 16",
            "--hashlimit-upto 10/min --hashlimit-burst 5 --hashlimit-mode srcip,srcport,dstip,dstport --hashlimit-name b \
             --hashlimit-htable-size 100 --hashlimit-htable-max 200 --hashlimit-htable-gcinterval 500 \
             --hashlimit-htable-expire 5000 --hashlimit-srcmask 24 --hashlimit-dstmask 16",
        ),
        (
            "--hashlimit-above 100kb/s --hashlimit-mode srcip --hashlimit-name c",
            "--hashlimit-above 100kb/s --hashlimit-mode srcip --hashlimit-name c",
        ),
        (
            "--hashlimit-above 512kb/s --hashlimit-burst 1mb --hashlimit-mode srcip --hashlimit-name d",
            "--hashlimit-above 512kb/s --hashlimit-burst 1mb --hashlimit-mode srcip --hashlimit-name d",
        ),
        ("--hashlimit-upto 1000b/s --hashlimit-name f", "--hashlimit-upto 992b/s --hashlimit-name f"),
        (
            "! --hashlimit-upto 100/day --hashlimit-name h",
            "--hashlimit-above 100/day --hashlimit-burst 5 --hashlimit-name h",
        ),
        (
            "! --hashlimit-above 100/day --hashlimit-name h2",
            "--hashlimit-upto 100/day --hashlimit-burst 5 --hashlimit-name h2",
        ),
        (
            "--hashlimit-above 2/sec --hashlimit-name i --hashlimit-rate-match --hashlimit-rate-interval 10",
            "--hashlimit-above 2/sec --hashlimit-burst 5 --hashlimit-name i --hashlimit-rate-match \
             --hashlimit-rate-interval 10",
        ),
        (
            "--hashlimit-above 2/sec --hashlimit-name j --hashlimit-rate-match",
            "--hashlimit-above 2/sec --hashlimit-burst 5 --hashlimit-name j --hashlimit-rate-match",
        ),
        (
            "--hashlimit-upto 1000000/sec --hashlimit-name k",
            "--hashlimit-upto 1000000/sec --hashlimit-burst 5 --hashlimit-name k",
        ),
        (
            "--hashlimit-upto 7000/sec --hashlimit-name m",
            "--hashlimit-upto 7042/sec --hashlimit-burst 5 --hashlimit-name m",
        ),
        ("--hashlimit-upto 5 --hashlimit-name n", "--hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name n"),
        (
            "--hashlimit-upto 5/s --hashlimit-srcmask 0 --hashlimit-name n",
            "--hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name n --hashlimit-srcmask 0",
        ),
        (
            "--hashlimit-upto 5/s --hashlimit-burst 10kb --hashlimit-name o",
            "--hashlimit-upto 5/sec --hashlimit-burst 10240 --hashlimit-name o",
        ),
        ("--hashlimit-upto 17b/s --hashlimit-name o", "--hashlimit-upto 16b/s --hashlimit-name o"),
        ("--hashlimit-upto 4294967295b/s --hashlimit-name o", "--hashlimit-upto 4581298432b/s --hashlimit-name o"),
        ("--hashlimit-upto 5000mb/s --hashlimit-name o", "--hashlimit-upto 5286113568b/s --hashlimit-name o"),
        ("--hashlimit-upto 5kb/sec --hashlimit-name o", "--hashlimit-upto 5kb/s --hashlimit-name o"),
        (
            "--hashlimit-rate-interval 3 --hashlimit-above 2/sec --hashlimit-name q",
            "--hashlimit-above 2/sec --hashlimit-burst 5 --hashlimit-name q",
        ),
        (
            "--hashlimit-above 100kb/s --hashlimit-rate-match --hashlimit-name q2 --hashlimit-rate-interval 3",
            "--hashlimit-above 100kb/s --hashlimit-name q2 --hashlimit-rate-match --hashlimit-rate-interval 3",
        ),
        (
            "--hashlimit-upto 2/min --hashlimit-rate-match --hashlimit-name q4",
            "--hashlimit-upto 2/sec --hashlimit-burst 5 --hashlimit-name q4 --hashlimit-htable-expire 60000 \
             --hashlimit-rate-match --hashlimit-rate-interval 60",
        ),
        (
            "--hashlimit-upto 1/sec --hashlimit-htable-expire 60000 --hashlimit-name q7",
            "--hashlimit-upto 1/sec --hashlimit-burst 5 --hashlimit-name q7 --hashlimit-htable-expire 60000",
        ),
        (
            "--hashlimit-upto 60/min --hashlimit-name q10",
            "--hashlimit-upto 1/sec --hashlimit-burst 5 --hashlimit-name q10 --hashlimit-htable-expire 60000",
        ),
        (
            "--hashlimit-upto 3kb/s --hashlimit-burst 10kb --hashlimit-name q11",
            "--hashlimit-upto 3kb/s --hashlimit-burst 12kb --hashlimit-name q11",
        ),
        (
            "--hashlimit-upto 3kb/s --hashlimit-burst 1000000 --hashlimit-name q12",
            "--hashlimit-upto 3kb/s --hashlimit-burst 978kb --hashlimit-name q12",
        ),
        (
            "--hashlimit-upto 1500kb/s --hashlimit-burst 5mb --hashlimit-name q13",
            "--hashlimit-upto 1500kb/s --hashlimit-burst 5mb --hashlimit-name q13",
        ),
        (
            "--hashlimit-upto 5/s --hashlimit-name q14 --hashlimit-htable-size 2000000 --hashlimit-htable-max 3000000",
            "--hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name q14 --hashlimit-htable-size 1048576 \
             --hashlimit-htable-max 1048576",
        ),
        (
            "--hashlimit-upto 5/s --hashlimit-name q15 --hashlimit-mode srcip|dstip",
            "--hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip,dstip --hashlimit-name q15",
        ),
        (
            "--hashlimit-upto 86400/day --hashlimit-name q18",
            "--hashlimit-upto 1/sec --hashlimit-burst 5 --hashlimit-name q18 --hashlimit-htable-expire 86400000",
        ),
    ];
}
