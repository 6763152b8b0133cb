//! How many packets the host is given: [`PuntBudget`].
//!
//! Handing a frame to the host's own stack costs the worker about 1 us, as much as forwarding five, and the call that hands over
//! several 11 us, 5,000 times a second at most. Without NAT, what the host has a socket for never comes this way (the XDP program
//! passes it on), nor does ping; what does is stray: closed ports, ICMP errors. A flood of those to an address of the router must
//! not cost its users their forwarding, so there is a token bucket: 20,000 packets a second, 8 % of a core with the calls, and
//! 2,000 at once. What is beyond is dropped as `punt_limited`. The kernel's own answers to such packets are limited far below that
//! (`icmp_ratelimit`).
//!
//! With NAT the XDP program passes only what a connected socket waits for, and the rest of the host's own business comes this
//! way: handshakes, queries to its DNS server, ping, tunnels (WireGuard, ESP, GRE), and all that clients send to a proxy on the
//! router by way of REDIRECT. 20,000 would throttle these; a tunnel of 1 Gbit/s alone is 85,000 packets of full size. So it is
//! 100,000 a second then, and 10,000 at once. A flood takes 11 to 17 % of a core by that, and leaves the users the rest. It stays
//! so when the rules lose their nat table: what is translated outlives it.

use crate::time::{Instant, SECOND_NS};

/// Packets a second, and ten times as many as may be saved up, where nothing is translated.
const STRAY: u64 = 20_000;
/// The same with NAT.
const WITH_NAT: u64 = 100_000;

/// A token bucket, in time: `paid_until` runs ahead of the clock by the cost of each packet.
#[derive(Debug)]
pub(super) struct PuntBudget {
    paid_until: Instant,
    /// Nanoseconds that a packet costs.
    cost_ns: u64,
}

/// What may be saved up, in nanoseconds: a tenth of a second.
const BURST_NS: u64 = SECOND_NS / 10;

impl PuntBudget {
    /// A full bucket; the larger one where connections may be translated.
    pub(super) fn new(translates: bool) -> PuntBudget {
        let rate = if translates { WITH_NAT } else { STRAY };
        PuntBudget { paid_until: Instant::ZERO, cost_ns: SECOND_NS / rate }
    }

    /// From now on connections may be translated.
    pub(super) fn expect_translations(&mut self) {
        self.cost_ns = SECOND_NS / WITH_NAT;
    }

    /// Whether one more packet may go to the host now; if so, it is counted.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let paid = self.paid_until.max(now) + self.cost_ns;
        let affordable = paid - now <= BURST_NS;
        if affordable {
            self.paid_until = paid;
        }
        affordable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        for (mut budget, burst) in [(PuntBudget::new(false), 2_000), (PuntBudget::new(true), 10_000)] {
            let mut taken_at = |now: Instant| (0..100_000).filter(|_| budget.take(now)).count();
            assert_eq!(taken_at(Instant::from_secs(5)), burst);
            assert_eq!(taken_at(Instant::from_secs(5)), 0);
            assert_eq!(taken_at(Instant::from_secs(5) + SECOND_NS / 100), burst / 10);
            assert_eq!(taken_at(Instant::from_secs(60)), burst);
        }
    }

    #[test]
    fn rules_that_translate_enlarge_it_at_once() {
        let mut budget = PuntBudget::new(false);
        let now = Instant::from_secs(5);
        assert_eq!((0..100_000).filter(|_| budget.take(now)).count(), 2_000);
        budget.expect_translations();
        // What was taken at the old price is paid for.
        assert_eq!((0..100_000).filter(|_| budget.take(now)).count(), 0);
        assert_eq!((0..100_000).filter(|_| budget.take(now + SECOND_NS / 100)).count(), 1_000);
    }
}
