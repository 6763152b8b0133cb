//! One worker's state: [`Shard`]. Nobody else touches it; there is no lock.
//!
//! Made once at start, with all its memory. It outlives every [`Policy`] and [`crate::snapshot::Routing`]: connections
//! stay when rules change. What the rules have counted is in a [`Ledger`], one for each policy: whoever is about to publish a
//! new policy gives the shard its ledger first and fetches the old one afterwards, so that the shard only exchanges the
//! two (and allocates one itself where nobody did so, as in tests).

use crate::conntrack::{Candidate, Conntrack, Homes, Settings};
use crate::device::PortId;
use crate::packet::Packet;
use crate::reply::Limiter;
use crate::rules::{NatRange, RuleCounters};
use crate::snapshot::{Policy, Routing};
use crate::time::{Instant, SECOND_NS};
use crate::verdict::{DropCounters, DropReason};
use crate::wire::{Family, Mac};

use core::sync::atomic::{AtomicI32, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use super::ahead::{Ahead, NOWHERE};
use super::budget::PuntBudget;
use super::dice::Dice;
use super::renumber::Renumbering;
use super::shortcut::{Shortcuts, Traces};
use super::translate::Exhaustion;
use super::waiting::Waiting;
use super::witness::Witness;

/// Packets and bytes (of Ethernet frames, without preamble and FCS) in both directions of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Packets received.
    pub receive_packets: u64,
    /// Bytes received.
    pub receive_bytes: u64,
    /// Packets handed to the port for sending.
    pub transmit_packets: u64,
    /// Bytes handed to the port for sending.
    pub transmit_bytes: u64,
}

impl PortCounters {
    /// A packet that was counted as handed over, and was not taken.
    pub fn take_back(&mut self, bytes: usize) {
        self.transmit_packets -= 1;
        self.transmit_bytes -= bytes as u64;
    }
}

/// What a shard counted.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By port.
    pub ports: [PortCounters; PortId::COUNT],
    /// Packets dropped, by reason.
    pub drops: DropCounters,
    /// Packets handed to the host's own stack.
    pub punted: u64,
    /// Packets that had to wait for a next hop's address.
    pub held: u64,
    /// Packets given to other workers.
    pub handed_over: u64,
    /// Packets that other workers gave.
    pub taken_over: u64,
    /// ICMP errors and TCP resets sent.
    pub replies: u64,
    /// ICMP errors not sent because of their rate limit.
    pub replies_limited: u64,
}

/// What a worker's time is by the calendar. Kept right by the control thread, read by rules with `-m time` only.
#[derive(Debug, Default)]
pub struct WallClock {
    /// Nanoseconds from 1970 (UTC) to the zero of the worker's time.
    zero: AtomicI64,
    /// What the kernel's time zone adds to UTC, in seconds.
    zone: AtomicI32,
}

impl WallClock {
    /// It is `unix` nanoseconds after 1970 (UTC) at `now`; the kernel's time zone adds `zone` seconds.
    pub fn set(&self, unix: i64, zone: i32, now: Instant) {
        self.zero.store(unix.saturating_sub(now.as_ns() as i64), Ordering::Relaxed);
        self.zone.store(zone, Ordering::Relaxed);
    }

    /// Seconds after 1970 (UTC) at `now`, and what the time zone adds.
    pub(super) fn at(&self, now: Instant) -> (i64, i32) {
        let unix = self.zero.load(Ordering::Relaxed).saturating_add(now.as_ns() as i64);
        (unix.div_euclid(SECOND_NS as i64), self.zone.load(Ordering::Relaxed))
    }
}

/// A packet of the batch in hand, between the stages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) packet: Packet,
    /// Of the packet's tuple.
    pub(super) hash: u64,
    /// The connection that it may be of.
    pub(super) candidate: Candidate,
    /// The link-layer address that the frame was sent to.
    pub(super) destination: Mac,
    /// Why it is to be dropped; then the others mean nothing.
    pub(super) unreadable: Option<DropReason>,
    /// The shard's witness goes with it.
    pub(super) witnessed: bool,
    /// Where [`Ahead`] has something for it, if that has anything.
    pub(super) ahead: u16,
}

impl Work {
    /// The place of a packet.
    pub(super) const BLANK: Work = Work {
        packet: Packet::BLANK,
        hash: 0,
        candidate: Candidate::NONE,
        destination: Mac([0; 6]),
        unreadable: None,
        witnessed: false,
        ahead: NOWHERE,
    };
}

/// The family's place in an array.
#[inline]
pub(super) const fn family_index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// What one worker counted under one policy. Made and read by the control thread; in between it is the worker's.
#[derive(Debug)]
pub struct Ledger {
    generation: u64,
    rules: [RuleCounters; 2],
    traces: Traces,
}

impl Ledger {
    /// With nothing counted, for `policy`.
    pub fn new(policy: &Policy) -> Ledger {
        let rules = [policy.v4.counters(), policy.v6.counters()];
        Ledger { generation: policy.generation, rules, traces: Traces::new() }
    }

    /// The policy's generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Packets and bytes per rule.
    pub fn counters(&self, family: Family) -> RuleCounters {
        let mut counters = self.rules[family_index(family)].clone();
        self.traces.add_uses(family, &mut counters);
        counters
    }
}

/// One worker's state; see the module's head.
#[derive(Debug)]
pub struct Shard {
    /// The connections that have their home here.
    pub conntrack: Conntrack,
    /// What was counted.
    pub counters: Counters,
    /// What the rules counted, but for the packets that took a shortcut.
    pub(super) rules: [RuleCounters; 2],
    pub(super) shortcuts: Shortcuts,
    policy_generation: u64,
    /// For a policy that is about to be published.
    next_ledger: Option<Box<Ledger>>,
    /// Of the policy before.
    last_ledger: Option<Box<Ledger>>,
    pub(super) waiting: Waiting,
    pub(super) punts: PuntBudget,
    pub(super) asked_at: Instant,
    /// Of all workers: the rates are the router's.
    pub(super) limiter: Arc<Mutex<Limiter>>,
    pub(super) ip_id: u16,
    /// The calendar, for rules with `-m time`.
    pub wall: Arc<WallClock>,
    /// Where the next random number comes from; never 0.
    random: u64,
    /// Where the ports of translated connections come from.
    pub(super) dice: Dice,
    pub(super) exhaustion: Exhaustion,
    /// Who goes with packets, while somebody does.
    pub(super) witness: Option<Box<dyn Witness>>,
    /// A place for each packet of a batch.
    pub(super) work: Vec<Work>,
    pub(super) ahead: Ahead,
    pub(super) renumbering: Renumbering,
    /// What the last source was to be translated to, for a worker that has to choose again.
    pub(super) source_range: NatRange,
}

impl Shard {
    /// A shard without connections. `secret` keys the connection table's hash.
    pub fn new(settings: Settings, secret: [u64; 2], policy: &Policy) -> Shard {
        Shard::over(Conntrack::new(settings, secret), secret, policy)
    }

    /// One of as many shards as there are `homes`, each with a place in what they share.
    pub fn among(settings: &Settings, secret: [u64; 2], policy: &Policy, homes: Vec<Homes>) -> Vec<Shard> {
        let capacity = Shard::capacity_among(settings.max, homes.len());
        let own_secret = |at: usize| [secret[0] ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), secret[1]];
        let one = |(at, homes)| {
            let secret = own_secret(at);
            Shard::over(Conntrack::among(settings.clone(), capacity, secret, homes), secret, policy)
        };
        let mut shards: Vec<Shard> = homes.into_iter().enumerate().map(one).collect();
        let limiter = Arc::<Mutex<Limiter>>::default();
        shards.iter_mut().for_each(|shard| shard.limiter = limiter.clone());
        shards
    }

    /// Connections that one of several workers has room for, when there may be `max` in all: twice its share, since no hash
    /// gives each the same.
    pub fn capacity_among(max: usize, workers: usize) -> usize {
        max.min((2 * max).div_ceil(workers.max(1)).max(1024))
    }

    fn over(conntrack: Conntrack, secret: [u64; 2], policy: &Policy) -> Shard {
        Shard {
            conntrack,
            counters: Counters::default(),
            rules: [policy.v4.counters(), policy.v6.counters()],
            shortcuts: Shortcuts::new(),
            policy_generation: policy.generation,
            next_ledger: None,
            last_ledger: None,
            waiting: Waiting::new(),
            punts: PuntBudget::new(policy.translates()),
            asked_at: Instant::ZERO,
            limiter: Arc::default(),
            ip_id: secret[0] as u16,
            wall: Arc::default(),
            random: (secret[0] ^ secret[1].rotate_left(32)) | 1,
            dice: Dice::new(secret),
            exhaustion: Exhaustion::default(),
            witness: None,
            work: vec![Work::BLANK; super::BATCH],
            ahead: Ahead::new(),
            renumbering: Renumbering::new(),
            source_range: NatRange::default(),
        }
    }

    /// Whether there is work that should not wait until the next packet.
    pub fn is_busy(&self) -> bool {
        self.renumbering.is_under_way()
    }

    /// Frames that wait for a next hop's address.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Packets and bytes per rule of the policy in force.
    pub fn rule_counters(&self, family: Family) -> RuleCounters {
        let mut counters = self.rules[family_index(family)].clone();
        self.shortcuts.traces.add_uses(family, &mut counters);
        counters
    }

    /// The generation that these are of.
    pub fn policy_generation(&self) -> u64 {
        self.policy_generation
    }

    /// Takes the ledger of a policy that is about to be published; gives back one that was not needed.
    pub fn prepare(&mut self, ledger: Box<Ledger>) -> Option<Box<Ledger>> {
        self.next_ledger.replace(ledger)
    }

    /// The ledger of the policy before, once.
    pub fn take_last_ledger(&mut self) -> Option<Box<Ledger>> {
        self.last_ledger.take()
    }

    /// From now on every packet goes the long way. The verdicts are the same; for tests and comparisons.
    pub fn turn_shortcuts_off(&mut self) {
        self.shortcuts.turn_off();
    }

    /// From now on no batch's new flows are looked up together. The verdicts are the same; for tests and comparisons.
    pub fn turn_foresight_off(&mut self) {
        self.ahead.turn_off();
    }

    /// Draws these for translated connections, source and destination port, instead of random ones, wherever they may be
    /// drawn; `None`: random ones again. For comparisons with who has drawn already.
    pub fn draw_ports(&mut self, ports: Option<[u16; 2]>) {
        self.dice.want(ports);
    }

    /// Opens the ledger of a policy not seen before, and forgets what other rules and routes said.
    #[inline]
    pub fn follow(&mut self, policy: &Policy, routing: &Routing) {
        if self.policy_generation != policy.generation {
            self.change_ledgers(policy);
        }
        self.shortcuts.follow(policy, routing, &mut self.conntrack);
    }

    /// From now on this one goes with packets. Gives back who did until now.
    pub fn set_witness(&mut self, witness: Option<Box<dyn Witness>>) -> Option<Box<dyn Witness>> {
        self.work.iter_mut().for_each(|work| work.witnessed = false);
        std::mem::replace(&mut self.witness, witness)
    }

    /// Asks the witness which packets of a batch it goes with.
    #[inline]
    pub(super) fn ask_witness(&mut self, batch: &mut [Work], now: Instant) {
        if let Some(witness) = &mut self.witness {
            for work in batch {
                work.witnessed = work.unreadable.is_none() && witness.wants(&work.packet, now);
            }
        }
    }

    /// A random number that nobody sees whole (xorshift64*).
    pub(super) fn random(&mut self) -> u32 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    #[cold]
    fn change_ledgers(&mut self, policy: &Policy) {
        let prepared = self.next_ledger.take().filter(|ledger| ledger.generation == policy.generation);
        let mut ledger = prepared.unwrap_or_else(|| Box::new(Ledger::new(policy)));
        std::mem::swap(&mut self.rules, &mut ledger.rules);
        std::mem::swap(&mut self.shortcuts.traces, &mut ledger.traces);
        ledger.generation = std::mem::replace(&mut self.policy_generation, policy.generation);
        self.last_ledger = Some(ledger);
        if policy.translates() {
            self.punts.expect_translations();
        }
    }

    /// An identification for a packet of our own: never 0, as Linux's.
    pub(super) fn next_ip_id(&mut self) -> u16 {
        self.ip_id = self.ip_id.checked_add(1).unwrap_or(1).max(1);
        self.ip_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_changes_its_second_when_the_wall_clock_does() {
        let wall = WallClock::default();
        let ms = |ms: u64| Instant::from_ns(ms * 1_000_000);
        // 100.2 s after 1970 at 5.7 s of the worker's time.
        wall.set(100_200_000_000, 3600, ms(5700));
        assert_eq!(wall.at(ms(5700)), (100, 3600));
        assert_eq!(wall.at(ms(6499)), (100, 3600));
        assert_eq!(wall.at(ms(6500)), (101, 3600));
        assert_eq!(wall.at(ms(5499)), (99, 3600));
    }
}
