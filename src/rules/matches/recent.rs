//! `-m recent`: lists of addresses seen (net/netfilter/xt_recent.c).
//!
//! A [`RecentTable`] has a name and is shared by all rules that name it, of both IP versions. It remembers
//! [`ADDRESSES_MAX`] addresses, the ones not seen for longest go first, and of each a ring of times as long as the neediest
//! rule asks for. Its mask is the one of the rule that named it first. All its memory is taken when the rules are compiled.
//!
//! Times are jiffies of HZ = 1000, where a kernel with HZ = 250 sees steps of 4 ms. Unlike Linux, where the 65536th time of
//! a ring that long is never counted (a 16-bit number wraps), every place of the ring counts.

use super::argument::{bang, bare, number32, push, table_name};
use super::lru::{Key, LruTable, SlotNumber};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::limit::{HZ, jiffies};
use crate::rules::registry::Registry;
use crate::schedule;
use crate::wire::{Addr, Family};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};

/// Addresses in one list (`ip_list_tot`).
pub(in crate::rules) const ADDRESSES_MAX: usize = 100;
/// Longest name in bytes (`XT_RECENT_NAME_LEN` less its end).
const NAME_MAX: usize = 199;
/// Largest `--hitcount` (below `XT_RECENT_MAX_NSTAMPS`).
const HITS_MAX: u32 = 65_535;
/// Times remembered for rules without `--hitcount`.
const RING_DEFAULT: u32 = 32;

/// What the rule does with the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Set,
    Check,
    Update,
    Remove,
}

/// `-m recent`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecentMatch {
    operation: Option<Operation>,
    invert: bool,
    /// `--seconds`; 0 without.
    seconds: u32,
    reap: bool,
    /// `--hitcount`; 0 without.
    hits: u32,
    ttl: bool,
    name: String,
    /// As Linux has it: 16 bytes, an IPv4 mask in the first four. (All ones also where an IPv4 rule says 255.255.255.255.)
    mask: u128,
    destination: bool,
}

const SET: u8 = 1;
const RCHECK: u8 = 2;
const UPDATE: u8 = 3;
const REMOVE: u8 = 4;
const SECONDS: u8 = 5;
const REAP: u8 = 6;
const HITCOUNT: u8 = 7;
const RTTL: u8 = 8;
const NAME: u8 = 9;
const MASK: u8 = 10;
const RSOURCE: u8 = 11;
const RDEST: u8 = 12;

impl Extension for RecentMatch {
    const NAME: &'static str = "recent";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SET, &["--set"]).arguments(0).invertible().group(1),
        OptionSpec::new(RCHECK, &["--rcheck"]).arguments(0).invertible().group(1),
        OptionSpec::new(UPDATE, &["--update"]).arguments(0).invertible().group(1),
        OptionSpec::new(REMOVE, &["--remove"]).arguments(0).invertible().group(1),
        OptionSpec::new(SECONDS, &["--seconds"]),
        OptionSpec::new(REAP, &["--reap"]).arguments(0),
        OptionSpec::new(HITCOUNT, &["--hitcount"]),
        OptionSpec::new(RTTL, &["--rttl"]).arguments(0),
        OptionSpec::new(NAME, &["--name"]),
        OptionSpec::new(MASK, &["--mask"]),
        OptionSpec::new(RSOURCE, &["--rsource"]).arguments(0),
        OptionSpec::new(RDEST, &["--rdest"]).arguments(0),
    ];

    fn new(_: Family) -> RecentMatch {
        RecentMatch {
            operation: None,
            invert: false,
            seconds: 0,
            reap: false,
            hits: 0,
            ttl: false,
            name: "DEFAULT".to_owned(),
            mask: u128::MAX,
            destination: false,
        }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let operation = match id {
            SET => Operation::Set,
            RCHECK => Operation::Check,
            UPDATE => Operation::Update,
            REMOVE => Operation::Remove,
            _ => return self.read_other(id, given),
        };
        (self.operation, self.invert) = (Some(operation), given.invert);
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        let Some(operation) = self.operation else {
            return Err(whole
                .problem("recent does not say what to do", "incomplete")
                .help("add one of --set, --rcheck, --update or --remove"));
        };
        if self.reap && self.seconds == 0 {
            return Err(whole.problem("--reap needs --seconds", "older than what?"));
        }
        let looks = matches!(operation, Operation::Check | Operation::Update);
        if !looks && (self.seconds != 0 || self.hits != 0 || self.ttl) {
            return Err(whole
                .problem("--set and --remove look at no time, count or TTL", "does not go together")
                .help("--seconds, --hitcount and --rttl are for --rcheck and --update"));
        }
        Ok(())
    }

    fn save(&self, out: &mut String, family: Family) {
        let operation = match self.operation {
            Some(Operation::Set) => "set",
            Some(Operation::Check) => "rcheck",
            Some(Operation::Update) => "update",
            Some(Operation::Remove) | None => "remove",
        };
        push(out, format_args!("{} --{operation}", bang(self.invert)));
        if self.seconds != 0 {
            push(out, format_args!(" --seconds {}", self.seconds));
        }
        if self.reap {
            out.push_str(" --reap");
        }
        if self.hits != 0 {
            push(out, format_args!(" --hitcount {}", self.hits));
        }
        if self.ttl {
            out.push_str(" --rttl");
        }
        let mask = match family {
            Family::V4 => Ipv4Addr::from((self.mask >> 96) as u32).to_string(),
            Family::V6 => Ipv6Addr::from(self.mask).to_string(),
        };
        let side = if self.destination { "--rdest" } else { "--rsource" };
        push(out, format_args!(" --name {} --mask {mask} {side}", bare(&self.name)));
    }
}

impl RecentMatch {
    fn read_other(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            SECONDS => self.seconds = number32(given, 1, u32::MAX)?,
            REAP => self.reap = true,
            HITCOUNT => self.hits = number32(given, 0, HITS_MAX)?,
            RTTL => self.ttl = true,
            NAME => self.name = table_name(given, NAME_MAX)?,
            MASK => self.mask = mask(given)?,
            RSOURCE => self.destination = false,
            _ => self.destination = true,
        }
        Ok(())
    }

    /// Times the rule needs to be remembered; a power of two.
    fn ring(&self) -> u32 {
        if self.hits == 0 { RING_DEFAULT } else { self.hits.next_power_of_two() }
    }
}

/// `--mask`: an address, no prefix length (`--mask 24` would be 0.0.0.24).
fn mask(given: &Given<'_>) -> Result<u128, Problem> {
    let token = given.argument();
    let bits = match given.family {
        Family::V4 => token.text.parse::<Ipv4Addr>().ok().map(|mask| match mask.to_bits() {
            u32::MAX => u128::MAX,
            bits => u128::from(bits) << 96,
        }),
        Family::V6 => token.text.parse::<Ipv6Addr>().ok().map(Ipv6Addr::to_bits),
    };
    bits.ok_or_else(|| {
        let like = match given.family {
            Family::V4 => "255.255.255.0",
            Family::V6 => "ffff:ffff:ffff:ffff::",
        };
        Problem::new(token.span, format!("`{}` is not a mask", token.text), "expected a mask like an address")
            .help(format!("write it like {like}; a prefix length is not one"))
    })
}

/// An address in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// As [`RecentMatch::mask`].
    address: u128,
    family: Family,
}

impl Key for Seen {
    fn words(&self) -> [u64; 8] {
        [(self.address >> 64) as u64, self.address as u64, self.family as u64, 0, 0, 0, 0, 0]
    }
}

/// What is known of it. Its times are in [`List::stamps`].
#[derive(Clone, Copy, Debug)]
struct Times {
    ttl: u8,
    /// Place after the one written last; from 1 to the ring's length.
    next: u32,
    /// Places of the ring that hold a time.
    count: u32,
}

/// A list by name; see the module's head.
#[derive(Debug)]
pub(in crate::rules) struct RecentTable {
    list: Mutex<List>,
}

#[derive(Debug)]
struct List {
    mask: u128,
    /// Length of each address's ring; a power of two.
    ring: u32,
    entries: LruTable<Seen, Times>,
    /// Jiffies, `ring` for each slot of `entries`.
    stamps: Vec<u64>,
}

impl RecentTable {
    fn new(mask: u128, ring: u32, secret: [u64; 2]) -> RecentTable {
        let entries = LruTable::new(ADDRESSES_MAX, secret);
        RecentTable { list: Mutex::new(List { mask, ring, entries, stamps: vec![0; ADDRESSES_MAX * ring as usize] }) }
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // A panic elsewhere leaves nothing half done here that matters.
        schedule::lock(&self.list)
    }

    /// A rule needs longer rings: the list is emptied, as Linux does.
    fn widen(&self, ring: u32) {
        let mut list = self.lock();
        if ring > list.ring {
            list.entries.clear();
            list.ring = ring;
            list.stamps = vec![0; ADDRESSES_MAX * ring as usize];
        }
    }

    /// The list as /proc/net/xt_recent/NAME prints it, the address not seen for longest first. Times are milliseconds since
    /// the router's start of time.
    pub(in crate::rules) fn listing(&self) -> String {
        let list = self.lock();
        let mut out = String::new();
        for at in list.entries.iter() {
            let (seen, times) = (list.entries.key(at), list.entries.value(at));
            let ring = list.ring_of(at);
            match seen.family {
                Family::V4 => push(&mut out, format_args!("src={}", Ipv4Addr::from((seen.address >> 96) as u32))),
                Family::V6 => push(&mut out, format_args!("src={}", long_form(seen.address))),
            }
            let last = ring[times.next as usize - 1];
            push(&mut out, format_args!(" ttl: {} last_seen: {last} oldest_pkt: {}", times.ttl, times.next));
            for (place, stamp) in ring[..times.count as usize].iter().enumerate() {
                push(&mut out, format_args!("{} {stamp}", if place == 0 { "" } else { "," }));
            }
            out.push('\n');
        }
        out
    }
}

/// All 32 digits, as the kernel's `%pI6` prints an address.
pub(super) fn long_form(address: u128) -> String {
    let groups: Vec<String> = (0..8).map(|group| format!("{:04x}", (address >> (112 - 16 * group)) as u16)).collect();
    groups.join(":")
}

impl List {
    fn ring_of(&self, at: SlotNumber) -> &[u64] {
        let ring = self.ring as usize;
        &self.stamps[at as usize * ring..(at as usize + 1) * ring]
    }

    fn stamp(&mut self, at: SlotNumber, now: u64) {
        let ring = self.ring;
        let times = self.entries.value_mut(at);
        let place = times.next % ring;
        times.next = place + 1;
        times.count = times.count.max(times.next);
        self.stamps[at as usize * ring as usize + place as usize] = now;
        self.entries.touch(at);
    }

    /// `recent_mt`.
    fn test(&mut self, asked: &RecentMatch, seen: Seen, ttl: u8, now: u64) -> bool {
        let seen = Seen { address: seen.address & self.mask, ..seen };
        let same_ttl = |entry: &Times| !asked.ttl || ttl == 0 || entry.ttl == 0 || entry.ttl == ttl;
        let found = self.entries.find(&seen).filter(|&at| same_ttl(self.entries.value(at)));
        let Some(at) = found else {
            if asked.operation != Some(Operation::Set) {
                return asked.invert;
            }
            if self.entries.is_full()
                && let Some(oldest) = self.entries.oldest()
            {
                self.entries.remove(oldest);
            }
            if let Some(at) = self.entries.insert(seen, Times { ttl, next: 0, count: 0 }) {
                self.stamp(at, now);
            }
            return !asked.invert;
        };
        match asked.operation {
            Some(Operation::Set) => {
                self.refresh(at, ttl, now);
                !asked.invert
            }
            Some(Operation::Check | Operation::Update) => self.look(asked, at, ttl, now),
            Some(Operation::Remove) | None => {
                self.entries.remove(at);
                !asked.invert
            }
        }
    }

    fn refresh(&mut self, at: SlotNumber, ttl: u8, now: u64) {
        self.stamp(at, now);
        self.entries.value_mut(at).ttl = ttl;
    }

    fn look(&mut self, asked: &RecentMatch, at: SlotNumber, ttl: u8, now: u64) -> bool {
        // Signed, since the start of time may be less than this long ago.
        let since = now as i64 - i64::from(asked.seconds) * i64::from(HZ);
        let count = self.entries.value(at).count as usize;
        let counts = |stamp: &&u64| asked.seconds == 0 || **stamp as i64 >= since;
        let hits = self.ring_of(at)[..count].iter().filter(counts).take(asked.hits.max(1) as usize).count();
        let answer = (hits >= asked.hits.max(1) as usize) != asked.invert;
        let update = asked.operation == Some(Operation::Update) && answer;
        if asked.reap {
            self.reap(since, at, update);
        }
        if update {
            self.refresh(at, ttl, now);
        }
        answer
    }

    /// Removes the entry seen least recently, if that was before `since`; not one about to be updated.
    fn reap(&mut self, since: i64, working: SlotNumber, update: bool) {
        let Some(oldest) = self.entries.oldest() else { return };
        let last = self.ring_of(oldest)[self.entries.value(oldest).next as usize - 1];
        if !(oldest == working && update) && (last as i64) < since {
            self.entries.remove(oldest);
        }
    }
}

/// The address as the list has it: 16 bytes, IPv4 in the first four.
fn address(addr: Addr, family: Family) -> u128 {
    match family {
        Family::V4 => u128::from(addr.v4_bits()) << 96,
        Family::V6 => addr.bits(),
    }
}

impl Matcher for RecentMatch {
    type State = Arc<RecentTable>;

    fn state(&self, registry: &mut Registry) -> Arc<RecentTable> {
        let secret = registry.secret;
        let make = || RecentTable::new(self.mask, self.ring(), secret);
        let (table, _) = registry.recent.named(&self.name, None, make);
        table.widen(self.ring());
        table
    }

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, state: &Arc<RecentTable>) -> Answer {
        let packet = &context.packet;
        let addr = if self.destination { packet.dst } else { packet.src };
        let seen = Seen { address: address(addr, packet.family), family: packet.family };
        // As it was before this router counted it down.
        let ttl = if context.out_port.is_some() { packet.ttl.wrapping_add(1) } else { packet.ttl };
        state.lock().test(self, seen, ttl, jiffies(context.now)).into()
    }
}

impl RecentTable {
    /// For tests: what a rule says of an address.
    #[cfg(test)]
    fn ask(&self, asked: &RecentMatch, address: u32, ttl: u8, now: crate::time::Instant) -> bool {
        let seen = Seen { address: u128::from(address) << 96, family: Family::V4 };
        self.lock().test(asked, seen, ttl, jiffies(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};
    use crate::time::Instant;

    fn rule(words: &str) -> RecentMatch {
        read(Family::V4, words).expect("good options")
    }

    fn seconds(secs: f64) -> Instant {
        Instant::from_ns((secs * 1e9) as u64)
    }

    /// Asked from iptables-legacy 1.8.9.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        let all = "--name DEFAULT --mask 255.255.255.255 --rsource";
        for (words, printed) in [
            ("--set", format!("--set {all}")),
            ("--set --name foo --rsource", "--set --name foo --mask 255.255.255.255 --rsource".into()),
            ("--rcheck --seconds 60", format!("--rcheck --seconds 60 {all}")),
            (
                "--update --seconds 60 --hitcount 4 --name SSH --rdest --mask 255.255.255.0",
                "--update --seconds 60 --hitcount 4 --name SSH --mask 255.255.255.0 --rdest".into(),
            ),
            (
                "! --update --seconds 60 --reap --rttl --hitcount 0x10",
                format!("! --update --seconds 60 --reap --hitcount 16 --rttl {all}"),
            ),
            ("! --remove --name x", "! --remove --name x --mask 255.255.255.255 --rsource".into()),
            ("--rcheck --hitcount 0", format!("--rcheck {all}")),
            ("--rcheck --hitcount 65535", format!("--rcheck --hitcount 65535 {all}")),
            ("--set --mask 255.0.255.0", "--set --name DEFAULT --mask 255.0.255.0 --rsource".into()),
            ("--set --rdest --rsource", format!("--set {all}")),
        ] {
            assert_eq!(saved(&rule(words), Family::V4), printed, "{words}");
        }
        let v6 = |words| saved(&read::<RecentMatch>(Family::V6, words).expect("good"), Family::V6);
        let ones = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(v6("--set"), format!("--set --name DEFAULT --mask {ones} --rsource"));
        assert_eq!(v6("--set --mask ffff:ffff::"), "--set --name DEFAULT --mask ffff:ffff:: --rsource");
    }

    #[test]
    fn bad_arguments_are_refused() {
        for words in [
            "--rcheck --seconds 0",
            "--rcheck --hitcount 65536",
            "--set --name a/b",
            "--set --name \"\"",
            "--set --name ..",
            "--set --mask 24",
            "--set --mask ffff::",
        ] {
            assert!(read::<RecentMatch>(Family::V4, words).is_err(), "{words}");
        }
    }

    /// netfilter's own example: three packets in two seconds pass, then the rest is dropped.
    #[test]
    fn update_with_a_hit_count_and_set() {
        let mut registry = Registry::new([1, 2]);
        let (update, set) = (rule("--update --seconds 2 --hitcount 3"), rule("--set"));
        let table = update.state(&mut registry);
        assert!(Arc::ptr_eq(&table, &set.state(&mut registry)));
        let passes = |now| {
            let dropped = table.ask(&update, 1, 64, now);
            if !dropped {
                table.ask(&set, 1, 64, now);
            }
            !dropped
        };
        let passed: Vec<bool> = (0..6).map(|n| passes(seconds(1.0 + f64::from(n) / 10.0))).collect();
        assert_eq!(passed, [true, true, true, false, false, false]);
        // Each that was dropped counted as seen.
        assert!(!passes(seconds(3.25)));
        assert!(passes(seconds(6.0)));
    }

    #[test]
    fn a_check_leaves_no_trace_and_remove_forgets() {
        let (set, check, remove) = (rule("--set"), rule("--rcheck --seconds 10"), rule("--remove"));
        let table = set.state(&mut Registry::new([1, 2]));
        assert!(!table.ask(&check, 7, 64, seconds(1.0)));
        assert!(table.ask(&rule("! --rcheck"), 7, 64, seconds(1.0)), "not found, inverted");
        assert!(table.ask(&set, 7, 64, seconds(1.0)));
        assert!(table.ask(&check, 7, 64, seconds(11.0)) && !table.ask(&check, 7, 64, seconds(11.001)));
        assert!(table.ask(&remove, 7, 64, seconds(11.0)) && !table.ask(&remove, 7, 64, seconds(11.0)));
    }

    #[test]
    fn rttl_asks_for_the_same_ttl() {
        let (set, check) = (rule("--set"), rule("--rcheck --rttl"));
        let table = set.state(&mut Registry::new([1, 2]));
        table.ask(&set, 7, 64, seconds(1.0));
        assert!(table.ask(&check, 7, 64, seconds(1.0)) && !table.ask(&check, 7, 63, seconds(1.0)));
    }

    #[test]
    fn the_address_seen_least_recently_makes_room() {
        let (set, check) = (rule("--set"), rule("--rcheck"));
        let table = set.state(&mut Registry::new([1, 2]));
        for address in 0..100 {
            table.ask(&set, address, 64, seconds(f64::from(address)));
        }
        table.ask(&set, 0, 64, seconds(100.0));
        table.ask(&set, 100, 64, seconds(101.0));
        assert!(table.ask(&check, 0, 64, seconds(102.0)) && !table.ask(&check, 1, 64, seconds(102.0)));
        assert_eq!(table.listing().lines().count(), ADDRESSES_MAX);
    }

    #[test]
    fn reap_removes_the_oldest_when_it_is_too_old() {
        let (set, reap) = (rule("--set"), rule("--rcheck --seconds 5 --reap"));
        let table = set.state(&mut Registry::new([1, 2]));
        table.ask(&set, 1, 64, seconds(1.0));
        table.ask(&set, 2, 64, seconds(2.0));
        table.ask(&reap, 2, 64, seconds(6.5));
        assert_eq!(table.listing(), "src=0.0.0.2 ttl: 64 last_seen: 2000 oldest_pkt: 1 2000\n");
        table.ask(&reap, 2, 64, seconds(7.5));
        assert_eq!(table.listing(), "");
    }

    #[test]
    fn the_ring_is_as_long_as_the_neediest_rule_wants() {
        let mut registry = Registry::new([1, 2]);
        let (set, small, large) = (rule("--set"), rule("--rcheck --hitcount 3"), rule("--rcheck --hitcount 40"));
        let table = small.state(&mut registry);
        assert_eq!(table.lock().ring, 4);
        set.state(&mut registry);
        assert_eq!(table.lock().ring, 32);
        table.ask(&set, 1, 64, seconds(1.0));
        large.state(&mut registry);
        let ring = table.lock().ring;
        assert_eq!((ring, table.listing().as_str()), (64, ""), "emptied");
        let seen: Vec<bool> = (0..40)
            .map(|n| {
                table.ask(&set, 1, 64, seconds(f64::from(n)));
                table.ask(&large, 1, 64, seconds(50.0))
            })
            .collect();
        assert_eq!(seen.iter().filter(|&&yes| yes).count(), 1);
    }

    #[test]
    fn a_ring_that_is_full_goes_round() {
        let set = rule("--set");
        let table = rule("--rcheck --hitcount 2").state(&mut Registry::new([1, 2]));
        for n in 1..4 {
            table.ask(&set, 0x0a01_0002, 63, seconds(f64::from(n)));
        }
        assert_eq!(table.listing(), "src=10.1.0.2 ttl: 63 last_seen: 3000 oldest_pkt: 1 3000, 2000\n");
        assert_eq!(long_form(0x2001_0db8 << 96 | 1), "2001:0db8:0000:0000:0000:0000:0000:0001");
    }
}
