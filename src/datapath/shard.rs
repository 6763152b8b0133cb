//! One worker's state: [`Shard`]. Nobody else touches it; there is no lock.
//!
//! Made once at start, with all its memory. It outlives every [`Policy`] and [`crate::snapshot::Routing`]: connections
//! stay when rules change.

use crate::conntrack::{Conntrack, Settings};
use crate::device::PortId;
use crate::packet::Packet;
use crate::reply::Limiter;
use crate::rules::RuleCounters;
use crate::snapshot::Policy;
use crate::time::Instant;
use crate::verdict::DropCounters;

use super::waiting::Waiting;

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
    /// ICMP errors and TCP resets sent.
    pub replies: u64,
    /// ICMP errors not sent because of their rate limit.
    pub replies_limited: u64,
}

/// A packet of the batch in hand, between the stages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) packet: Packet,
    pub(super) hash: u64,
}

/// One worker's state; see the module's head.
#[derive(Debug)]
pub struct Shard {
    /// The connections that have their home here.
    pub conntrack: Conntrack,
    /// What was counted.
    pub counters: Counters,
    /// Packets and bytes per rule of the policy in force, IPv4.
    pub rules_v4: RuleCounters,
    /// Packets and bytes per rule of the policy in force, IPv6.
    pub rules_v6: RuleCounters,
    pub(super) policy_generation: u64,
    pub(super) waiting: Waiting,
    pub(super) asked_at: Instant,
    pub(super) limiter: Limiter,
    pub(super) ip_id: u16,
    pub(super) work: Vec<Result<Work, crate::verdict::DropReason>>,
}

impl Shard {
    /// A shard without connections. `secret` keys the connection table's hash.
    pub fn new(settings: Settings, secret: [u64; 2], policy: &Policy) -> Shard {
        Shard {
            conntrack: Conntrack::new(settings, secret),
            counters: Counters::default(),
            rules_v4: policy.v4.counters(),
            rules_v6: policy.v6.counters(),
            policy_generation: policy.generation,
            waiting: Waiting::new(),
            asked_at: Instant::ZERO,
            limiter: Limiter::new(),
            ip_id: secret[0] as u16,
            work: Vec::with_capacity(super::BATCH),
        }
    }

    /// Frames that wait for a next hop's address.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Makes room for the counters of a policy not seen before.
    pub(super) fn follow(&mut self, policy: &Policy) {
        if self.policy_generation != policy.generation {
            self.rules_v4 = policy.v4.counters();
            self.rules_v6 = policy.v6.counters();
            self.policy_generation = policy.generation;
        }
    }

    /// An identification for a packet of our own: never 0, as Linux's.
    pub(super) fn next_ip_id(&mut self) -> u16 {
        self.ip_id = self.ip_id.checked_add(1).unwrap_or(1).max(1);
        self.ip_id
    }
}
