//! `-m connlimit`: how many connections an address (or its network) has open (net/netfilter/xt_connlimit.c and
//! nf_conncount.c).
//!
//! Each rule has a list of connections for each masked address and zone. A connection is put into it by its original tuple
//! when the rule sees it, and leaves it when conntrack does not know it any more or TCP has closed it. That is looked up
//! only when it can change the answer: while the list, gone connections and all, is not above the limit, so is the count.
//! Lists are walked at most once a millisecond, and long ones less often (one millisecond's pause for each thousand
//! connections looked at); in between, gone connections still count, as they do in Linux within one jiffy. Besides, each new
//! connection looks at two that were added long ago, so what is gone does not pile up.
//!
//! Memory for [`CONNECTIONS_MAX`] connections is asked for when the rules are compiled. A packet that finds no room in it is
//! dropped (Linux drops it when it gets no memory).

use super::argument::{number32, push};
use super::lru::{Key, LruTable, SlotNumber};
use crate::conntrack::{Direction, Tuple};
use crate::packet::Packet;
use crate::rules::context::{Context, Liveness, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::limit::jiffies;
use crate::rules::registry::Registry;
use crate::schedule;
use crate::wire::{Addr, Family, proto};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

/// Connections in all lists of one rule: as many as conntrack has where nothing else is said.
const CONNECTIONS_MAX: usize = 262_144;
/// Connections of other packets that a new one looks at, to find those that are gone.
const LOOKED_AT: usize = 2;

/// `-m connlimit`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnlimitMatch {
    family: Family,
    limit: Option<u32>,
    /// `--connlimit-above`, not `--connlimit-upto`.
    above: bool,
    /// Prefix length.
    mask: u8,
    destination: bool,
}

const UPTO: u8 = 1;
const ABOVE: u8 = 2;
const MASK: u8 = 3;
const SADDR: u8 = 4;
const DADDR: u8 = 5;

impl Extension for ConnlimitMatch {
    const NAME: &'static str = "connlimit";
    const WANTS_CONNTRACK: bool = true;
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(UPTO, &["--connlimit-upto"]).invertible().group(1),
        OptionSpec::new(ABOVE, &["--connlimit-above"]).invertible().group(1),
        OptionSpec::new(MASK, &["--connlimit-mask"]),
        OptionSpec::new(SADDR, &["--connlimit-saddr"]).arguments(0).group(2),
        OptionSpec::new(DADDR, &["--connlimit-daddr"]).arguments(0).group(2),
    ];

    fn new(family: Family) -> ConnlimitMatch {
        ConnlimitMatch { family, limit: None, above: false, mask: family.bits(), destination: false }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            UPTO | ABOVE => {
                self.limit = Some(number32(given, 0, u32::MAX)?);
                self.above = (id == ABOVE) != given.invert;
            }
            MASK => self.mask = prefix_length(given)?,
            SADDR => self.destination = false,
            _ => self.destination = true,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match self.limit {
            Some(_) => Ok(()),
            None => Err(whole
                .problem("connlimit without a limit", "incomplete")
                .help("add --connlimit-upto or --connlimit-above")),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        let option = if self.above { "above" } else { "upto" };
        let side = if self.destination { "daddr" } else { "saddr" };
        let (limit, mask) = (self.limit.unwrap_or(0), self.mask);
        push(out, format_args!(" --connlimit-{option} {limit} --connlimit-mask {mask} --connlimit-{side}"));
    }
}

/// A prefix length, or a mask without gaps.
fn prefix_length(given: &Given<'_>) -> Result<u8, Problem> {
    let token = given.argument();
    let bits = match given.family {
        Family::V4 => token.text.parse::<Ipv4Addr>().ok().map(|mask| u128::from(mask.to_bits()) << 96),
        Family::V6 => token.text.parse::<Ipv6Addr>().ok().map(Ipv6Addr::to_bits),
    };
    match bits {
        None => number32(given, 0, given.family.bits().into()).map(|length| length as u8),
        Some(bits) if bits.leading_ones() == bits.count_ones() => Ok(bits.count_ones() as u8),
        Some(_) => Err(Problem::new(token.span, format!("mask `{}` has gaps", token.text), "not a prefix")
            .help("write a prefix length")),
    }
}

/// Whom connections are counted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Owner {
    address: Addr,
    zone: u16,
}

impl Key for Owner {
    fn words(&self) -> [u64; 8] {
        let (high, low) = self.address.words();
        [high, low, self.zone.into(), 0, 0, 0, 0, 0]
    }
}

/// A connection in an owner's list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counted {
    tuple: Tuple,
    owner: Owner,
}

impl Key for Counted {
    fn words(&self) -> [u64; 8] {
        let tuple = &self.tuple;
        let ((a, b), (c, d), (e, f)) = (tuple.src.words(), tuple.dst.words(), self.owner.address.words());
        let ports = u64::from(tuple.sport) << 48 | u64::from(tuple.dport) << 32 | u64::from(tuple.proto) << 16;
        [a, b, c, d, ports | u64::from(tuple.zone), e, f, u64::from(self.owner.zone) << 8 | tuple.family as u64]
    }
}

/// No connection.
const NONE: SlotNumber = SlotNumber::MAX;

/// An owner's list, in order of arrival: doubly linked through [`Link`].
#[derive(Clone, Copy, Debug)]
struct List {
    first: SlotNumber,
    last: SlotNumber,
    count: u32,
    /// The jiffy from which on it may be walked again.
    walk_at: u64,
}

/// A connection's place in its list.
#[derive(Clone, Copy, Debug)]
struct Link {
    before: SlotNumber,
    after: SlotNumber,
}

/// One rule's lists; see the module's head.
#[derive(Debug)]
pub(in crate::rules) struct ConnlimitState {
    lists: Mutex<Lists>,
    mask: Addr,
}

#[derive(Debug)]
struct Lists {
    owners: LruTable<Owner, List>,
    /// In order of when they were last looked at.
    connections: LruTable<Counted, Link>,
}

impl Lists {
    fn new(capacity: usize, secret: [u64; 2]) -> Lists {
        let [first, second] = secret;
        // Other chains for the one than for the other.
        Lists { owners: LruTable::new(capacity, secret), connections: LruTable::new(capacity, [second, !first]) }
    }

    /// Connections of the packet's owner, its own included (`count_tree`), as far as it matters for `limit`; 0 when there is no
    /// room for another.
    fn count(&mut self, this: Counted, limit: u32, now: u64, world: &dyn World) -> u32 {
        let mut own = self.connections.find(&this);
        // One that was not let through before begins anew, at the list's end.
        if let Some(at) = own
            && world.liveness(&this.tuple) == Liveness::Gone
        {
            self.remove(at);
            own = None;
        }
        if own.is_none() {
            self.sweep(&this, world);
            if !self.add(this) {
                return 0;
            }
        }
        let Some(owner) = self.owners.find(&this.owner) else { return 0 };
        if self.owners.value(owner).count > limit && now >= self.owners.value(owner).walk_at {
            let looked_at = self.walk(owner, &this, limit, world);
            self.owners.value_mut(owner).walk_at = now + 1 + u64::from(looked_at) / 1000;
        }
        self.owners.value(owner).count
    }

    /// Removes connections that are gone from a list, up to the packet's own and until it is down to `limit`; how many it
    /// looked at. So what is gone but came after a connection still counts for that one's packets, as in Linux.
    fn walk(&mut self, owner: SlotNumber, this: &Counted, limit: u32, world: &dyn World) -> u32 {
        let mut looked_at = 0;
        let mut at = self.owners.value(owner).first;
        while at != NONE && self.owners.value(owner).count > limit && self.connections.key(at) != this {
            let after = self.connections.value(at).after;
            looked_at += 1;
            self.remove_if_gone(at, this, world);
            at = after;
        }
        looked_at
    }

    /// Looks at connections that nobody has looked at for longest.
    fn sweep(&mut self, this: &Counted, world: &dyn World) {
        for _ in 0..LOOKED_AT {
            let Some(oldest) = self.connections.oldest() else { return };
            if !self.remove_if_gone(oldest, this, world) {
                self.connections.touch(oldest);
            }
        }
    }

    /// The packet's own connection stays: it may not be confirmed yet.
    fn remove_if_gone(&mut self, at: SlotNumber, this: &Counted, world: &dyn World) -> bool {
        let known = *self.connections.key(at);
        if known == *this || world.liveness(&known.tuple) == Liveness::Open {
            return false;
        }
        self.remove(at);
        true
    }

    fn remove(&mut self, at: SlotNumber) {
        let known = *self.connections.key(at);
        let Link { before, after } = *self.connections.value(at);
        if after != NONE {
            self.connections.value_mut(after).before = before;
        }
        if before != NONE {
            self.connections.value_mut(before).after = after;
        }
        self.connections.remove(at);
        if let Some(owner) = self.owners.find(&known.owner) {
            let list = self.owners.value_mut(owner);
            list.count -= 1;
            if list.first == at {
                list.first = after;
            }
            if list.last == at {
                list.last = before;
            }
            if list.count == 0 {
                self.owners.remove(owner);
            }
        }
    }

    fn add(&mut self, this: Counted) -> bool {
        if self.connections.is_full() {
            return false;
        }
        // There are never more owners than connections.
        let known = self.owners.find(&this.owner);
        let owner =
            known.or_else(|| self.owners.insert(this.owner, List { first: NONE, last: NONE, count: 0, walk_at: 0 }));
        let Some(owner) = owner else { return false };
        let last = self.owners.value(owner).last;
        let Some(at) = self.connections.insert(this, Link { before: last, after: NONE }) else { return false };
        let list = self.owners.value_mut(owner);
        (list.last, list.count) = (at, list.count + 1);
        match last {
            NONE => list.first = at,
            last => self.connections.value_mut(last).after = at,
        }
        true
    }
}

/// The packet's own tuple, where it has no connection (`nf_ct_get_tuplepr`); `None` when its header is cut short.
fn tuple_of(packet: &Packet) -> Option<Tuple> {
    let needed = match (packet.proto, packet.family) {
        (proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP, _) => 4,
        (proto::ICMP, Family::V4) | (proto::ICMPV6, Family::V6) => 8,
        _ => 0,
    };
    (packet.l4_len >= needed).then(|| Tuple::of(packet))
}

impl Matcher for ConnlimitMatch {
    type State = ConnlimitState;

    fn state(&self, registry: &mut Registry) -> ConnlimitState {
        let lists = Mutex::new(Lists::new(CONNECTIONS_MAX, registry.secret));
        ConnlimitState { lists, mask: Addr::prefix_mask(self.family, self.mask) }
    }

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, world: &dyn World, state: &ConnlimitState) -> Answer {
        let packet = &context.packet;
        let Some(tuple) = world.tuple(Direction::Original).or_else(|| tuple_of(packet)) else { return Answer::Hotdrop };
        let address = if self.destination { packet.dst } else { packet.src };
        let this = Counted { tuple, owner: Owner { address: address.and(state.mask), zone: tuple.zone } };
        let limit = self.limit.unwrap_or(0);
        let mut lists = schedule::lock(&state.lists);
        let count = lists.count(this, limit, jiffies(context.now), world);
        // Before another worker can look at the list.
        world.put_on_roster();
        drop(lists);
        match count {
            0 => Answer::Hotdrop,
            count => ((count > limit) == self.above).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;

    /// Asked from iptables-legacy 1.8.9.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, printed) in [
            ("--connlimit-above 2", "--connlimit-above 2 --connlimit-mask 32 --connlimit-saddr"),
            ("! --connlimit-above 2", "--connlimit-upto 2 --connlimit-mask 32 --connlimit-saddr"),
            ("! --connlimit-upto 2", "--connlimit-above 2 --connlimit-mask 32 --connlimit-saddr"),
            (
                "--connlimit-above 10 --connlimit-mask 24 --connlimit-daddr",
                "--connlimit-above 10 --connlimit-mask 24 --connlimit-daddr",
            ),
            (
                "--connlimit-above 10 --connlimit-mask 255.255.0.0",
                "--connlimit-above 10 --connlimit-mask 16 --connlimit-saddr",
            ),
            ("--connlimit-above 0 --connlimit-mask 0", "--connlimit-above 0 --connlimit-mask 0 --connlimit-saddr"),
            ("--connlimit-above 4294967295", "--connlimit-above 4294967295 --connlimit-mask 32 --connlimit-saddr"),
        ] {
            assert_eq!(saved(&read::<ConnlimitMatch>(Family::V4, words).expect(words), Family::V4), printed, "{words}");
        }
        let v6 = read::<ConnlimitMatch>(Family::V6, "--connlimit-above 10 --connlimit-mask ffff::").expect("good");
        assert_eq!(saved(&v6, Family::V6), "--connlimit-above 10 --connlimit-mask 16 --connlimit-saddr");
        for words in ["--connlimit-above 4294967296", "--connlimit-above 1 --connlimit-mask 33"] {
            assert!(read::<ConnlimitMatch>(Family::V4, words).is_err(), "{words}");
        }
        assert!(read::<ConnlimitMatch>(Family::V4, "--connlimit-mask 255.0.255.0").is_err());
    }

    fn connection(sport: u16) -> Tuple {
        let (src, dst) = (Addr::from_v4(0x0a01_0002), Addr::from_v4(0x0a02_0002));
        Tuple { src, dst, sport, dport: 80, proto: proto::TCP, family: Family::V4, zone: 0 }
    }

    /// What the rule says of a packet of the connection, a second after the one before.
    struct Asked {
        rule: ConnlimitMatch,
        state: ConnlimitState,
        now: Instant,
        world: Told,
    }

    impl Asked {
        fn new(words: &str) -> Asked {
            let rule = read::<ConnlimitMatch>(Family::V4, words).expect("good");
            let state = rule.state(&mut Registry::new([1, 2]));
            Asked { rule, state, now: Instant::from_secs(1), world: Told::default() }
        }

        fn ask(&mut self, tuple: Tuple) -> Answer {
            self.now = self.now + 1_000_000_000;
            self.world.tuples = Some([tuple, tuple]);
            let mut packet = Packet { src: tuple.src, dst: tuple.dst, proto: tuple.proto, ..Packet::BLANK };
            let answer = self.rule.test(&context(&mut packet, &mut [], self.now), &self.world, &self.state);
            self.world.tuples = None;
            answer
        }

        /// The same, and conntrack keeps the connection when it passes.
        fn open(&mut self, sport: u16) -> Answer {
            let answer = self.ask(connection(sport));
            if answer == Answer::No {
                self.world.alive.push((connection(sport), Liveness::Open));
            }
            answer
        }
    }

    /// netfilter's own example: above 2 blocks the third; when one has gone, a new one passes.
    #[test]
    fn above_two_blocks_the_third() {
        let mut asked = Asked::new("--connlimit-above 2");
        assert_eq!([asked.open(1), asked.open(2), asked.open(3)], [Answer::No, Answer::No, Answer::Yes]);
        assert_eq!(asked.open(4), Answer::Yes, "the third does not count");
        // What the kernel says, too: the fourth came after it, and is not looked at.
        assert_eq!(asked.ask(connection(1)), Answer::Yes);
        asked.world.alive.remove(0);
        assert_eq!(asked.open(5), Answer::No);
        asked.world.alive[0].1 = Liveness::Closing;
        assert_eq!(asked.open(6), Answer::No);
        assert_eq!(asked.open(7), Answer::Yes);
    }

    #[test]
    fn owners_are_counted_apart_by_mask_and_zone() {
        let mut asked = Asked::new("--connlimit-upto 1 --connlimit-mask 24");
        let from = |last: u32, zone| Tuple { src: Addr::from_v4(0x0a01_0000 + last), zone, ..connection(1) };
        for tuple in [from(2, 0), from(0x103, 0), from(3, 7)] {
            assert_eq!(asked.ask(tuple), Answer::Yes);
            asked.world.alive.push((tuple, Liveness::Open));
        }
        assert_eq!(asked.ask(from(4, 0)), Answer::No, "the same network");
    }

    #[test]
    fn what_is_gone_leaves_without_being_counted() {
        let mut lists = Lists::new(4, [1, 2]);
        let mut world = Told::default();
        let counted = |sport| {
            let tuple = connection(sport);
            Counted { tuple, owner: Owner { address: Addr::from_v4(sport.into()), zone: 0 } }
        };
        for sport in 0..100 {
            assert_eq!(lists.count(counted(sport), 1000, 1, &world), 1);
        }
        assert!(lists.connections.len() < 4 && lists.owners.len() == lists.connections.len());
        world.alive = (200..204).map(|sport| (connection(sport), Liveness::Open)).collect();
        for sport in 200..204 {
            assert_eq!(lists.count(counted(sport), 1000, 1, &world), 1);
        }
        assert_eq!(lists.count(counted(204), 1000, 1, &world), 0, "no room");
        assert_eq!(lists.count(counted(203), 1000, 1, &world), 1, "but for those that are there");
    }

    #[test]
    fn a_packet_without_a_connection_counts_by_its_own_header() {
        let mut asked = Asked::new("--connlimit-above 0");
        let mut packet = Packet { proto: proto::TCP, l4_len: 3, ..Packet::BLANK };
        let world = Told::default();
        let now = asked.now;
        assert_eq!(asked.rule.test(&context(&mut packet, &mut [], now), &world, &asked.state), Answer::Hotdrop);
        packet.l4_len = 20;
        assert_eq!(asked.rule.test(&context(&mut packet, &mut [], now), &world, &asked.state), Answer::Yes);
        assert_eq!(asked.ask(connection(1)), Answer::Yes);
    }
}
