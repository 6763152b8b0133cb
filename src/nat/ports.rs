//! Which port a connection is given, when it cannot keep its own: [`Search::choose_port`], Linux's `nf_nat_l4proto_unique_tuple`.
//!
//! Ports are tried one after the other from a random one on (with DNAT and without `--random` from the first), at most
//! 128; where all are taken, from other random ones, 64, 32, 16 and 8. So a search takes 248 lookups at most, however
//! full the range is, and they do not wait for each other: those ahead are prefetched. Of a range of which 99 in 100
//! are taken it finds a port in 92 of 100 searches; of one that is full, none, and the connection's packet is dropped.
//! What that costs is measured in `bench/nat.rs`.
//!
//! Of no range, a source keeps to the class its port is of: 1 to 511, 600 to 1023, or 1024 to 65535.

use super::bind::Search;
use crate::conntrack::{Conntrack, Manip, Tuple};
use crate::rules::NatPorts;
use crate::wire::proto;

/// Tries of the first round (`NF_NAT_MAX_ATTEMPTS`).
const ATTEMPTS: u32 = 128;
/// From so many tries before a round's end on, connections that are over give way (`NF_NAT_HARDER_THRESH`).
const HARDER: u32 = 32;
/// No round is shorter than half of this.
const LAST_ROUND: u32 = 16;
/// Ports in a row, each with another worker for its home, after which there is none for this one: of 64 workers one port in 64
/// is for this one.
const SKIPPED: u32 = 1024;
/// Buckets asked for ahead.
const AHEAD: u32 = 8;

/// Whether the number of a protocol at one end is within a range of ports (`l4proto_in_range`); true for those without.
pub(super) fn is_within(tuple: &Tuple, manip: Manip, ports: &NatPorts) -> bool {
    let number = match (tuple.proto, manip) {
        (proto::ICMP | proto::ICMPV6, _) => tuple.sport,
        (ported, _) if ported != proto::GRE && !proto::has_ports(ported) => return true,
        (_, Manip::Source) => tuple.sport,
        (_, Manip::Destination) => tuple.dport,
    };
    (ports.low..=ports.high).contains(&number)
}

/// Whether its source has a number that may be changed.
pub(super) fn has_number(tuple: &Tuple) -> bool {
    proto::has_ports(tuple.proto) || matches!(tuple.proto, proto::ICMP | proto::ICMPV6)
}

/// Where the numbers are that may be tried.
struct Span {
    low: u32,
    size: u32,
    /// Which end of the tuple.
    end: Manip,
}

impl Span {
    fn put(&self, tuple: &mut Tuple, offset: u16) {
        let number = (self.low + u32::from(offset) % self.size) as u16;
        match self.end {
            Manip::Source => tuple.sport = number,
            Manip::Destination => tuple.dport = number,
        }
    }
}

impl Search<'_> {
    /// Gives `tuple` a number at one end with which it is not taken. `false`: none was found; the tuple has the last one tried.
    pub(super) fn choose_port(&mut self, tuple: &mut Tuple) -> bool {
        let Some(span) = self.span_of(tuple) else { return !self.conntrack.is_taken(tuple, self.now) };
        let number = if span.end == Manip::Source { tuple.sport } else { tuple.dport };
        let mut offset = match self.range.ports.and_then(|ports| ports.base) {
            Some(base) => number.wrapping_sub(base),
            None if self.range.random || self.range.random_fully || self.manip == Manip::Source => {
                (self.random)(span.low as u16)
            }
            None => 0,
        };
        let mut attempts = span.size.min(ATTEMPTS);
        loop {
            for tried in 0..attempts {
                if tried > 0 {
                    prefetch(self.conntrack, *tuple, &span, offset, tried == 1);
                }
                span.put(tuple, offset);
                let mut skipped = 0;
                while self.conntrack.is_not_to_be_tried(tuple) {
                    if skipped == SKIPPED {
                        return false;
                    }
                    skipped += 1;
                    offset = offset.wrapping_add(1);
                    span.put(tuple, offset);
                }
                let taken = match attempts - tried <= HARDER {
                    true => self.conntrack.is_taken_for_good(tuple, self.now),
                    false => self.conntrack.is_taken(tuple, self.now),
                };
                if !taken {
                    return true;
                }
                offset = offset.wrapping_add(1);
            }
            if attempts >= span.size || attempts < LAST_ROUND {
                return false;
            }
            attempts /= 2;
            offset = (self.random)(span.low as u16);
        }
    }

    /// `None`: the number cannot be changed.
    fn span_of(&self, tuple: &Tuple) -> Option<Span> {
        let size = |low: u16, high: u16| u32::from(high) - u32::from(low) + 1;
        let given = self.range.ports.map(|NatPorts { low, high, .. }| (u32::from(low), size(low, high)));
        let (own, end) = match tuple.proto {
            proto::ICMP | proto::ICMPV6 => ((0, 65_536), Manip::Source),
            // Only a call that PPTP announced has keys that somebody else is told.
            proto::GRE if !self.conntrack.is_expected() => return None,
            proto::GRE => ((1, 65_535), self.manip),
            ported if proto::has_ports(ported) => {
                let own = match (self.manip, tuple.sport) {
                    (Manip::Destination, _) if given.is_none() => return None,
                    (_, 0..512) => (1, 511),
                    (_, 512..1024) => (600, 424),
                    _ => (1024, 64_512),
                };
                (own, self.manip)
            }
            _ => return None,
        };
        let (low, size) = given.unwrap_or(own);
        Some(Span { low, size, end })
    }
}

/// Asks for the buckets of candidates ahead, and for the records of those that are nearer.
fn prefetch(conntrack: &Conntrack, mut tuple: Tuple, span: &Span, offset: u16, begins: bool) {
    let first = if begins { 0 } else { AHEAD };
    for step in first..=AHEAD {
        span.put(&mut tuple, offset.wrapping_add(step as u16));
        conntrack.prefetch_taken(&tuple);
    }
    span.put(&mut tuple, offset.wrapping_add(AHEAD as u16 / 2));
    conntrack.prefetch_holder(&tuple);
}
