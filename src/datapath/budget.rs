//! How many packets the host is given: [`PuntBudget`].
//!
//! Handing a frame to the host's own stack costs the worker about 2 us, as much as forwarding ten. What the host has a
//! socket for never comes this way (the XDP program passes it on), nor does ping; what does is stray: closed ports, ICMP errors.
//! A flood of those to an address of the router must not cost its users their forwarding, so there is a token
//! bucket: 20,000 packets a second, 4 % of a core, and 2,000 at once. What is beyond is dropped as `punt_limited`. The
//! kernel's own answers to such packets are limited far below that (`icmp_ratelimit`).

use crate::time::{Instant, SECOND_NS};

/// Nanoseconds per packet: 20,000 a second.
const COST_NS: u64 = SECOND_NS / 20_000;
/// What may be saved up: 2,000 packets.
const BURST_NS: u64 = 2_000 * COST_NS;

/// A token bucket, in time: `paid_until` runs ahead of the clock by the cost of each packet.
#[derive(Debug, Default)]
pub(super) struct PuntBudget {
    paid_until: Instant,
}

impl PuntBudget {
    /// Whether one more packet may go to the host now; if so, it is counted.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let paid = self.paid_until.max(now) + COST_NS;
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
        let mut budget = PuntBudget::default();
        let mut taken_at = |now: Instant| (0..100_000).filter(|_| budget.take(now)).count();
        assert_eq!(taken_at(Instant::from_secs(5)), 2_000);
        assert_eq!(taken_at(Instant::from_secs(5)), 0);
        assert_eq!(taken_at(Instant::from_secs(5) + SECOND_NS / 100), 200);
        assert_eq!(taken_at(Instant::from_secs(60)), 2_000);
    }
}
