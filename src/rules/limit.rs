//! `-m limit`: the token bucket of xt_limit, bit for bit, with HZ = 1000.
//!
//! Credit is counted in units of which [`CREDITS_PER_JIFFY`] come back every millisecond, up to a cap. A packet costs
//! `cost`; it matches when there is that much. [`Bucket`] is one rule's state, shared by all workers through atomics: each
//! stretch of time is credited exactly once and each credit spent exactly once, whichever worker sees the packet.
//!
//! Linux with HZ = 250 has the same costs and caps (HZ times credits per jiffy is 32000 for both) and only looks at the
//! clock in steps of 4 ms. Unlike Linux, whose 32-bit product wraps, a pause of more than 37 hours still fills the bucket.

use super::matches::LimitMatch;
use crate::schedule;
use crate::time::Instant;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Units of [`LimitMatch::average`] in one second (`XT_LIMIT_SCALE`).
pub const SCALE: u32 = 10_000;
/// Jiffies in one second.
pub const HZ: u32 = 1000;
/// Credit that comes back every jiffy (`CREDITS_PER_JIFFY` of xt_limit.c for this HZ).
pub const CREDITS_PER_JIFFY: u32 = 32;
/// The largest `--limit-burst`.
pub const BURST_MAX: u32 = 10_000;
/// `--limit` when it is not given: 3/hour.
pub const AVERAGE_DEFAULT: u32 = SCALE * 3600 / 3;
/// `--limit-burst` when it is not given.
pub const BURST_DEFAULT: u32 = 5;

/// Units of a rate, largest first: name, and its length in 1/10000 s.
const UNITS: [(&str, u32); 4] = [("day", SCALE * 86_400), ("hour", SCALE * 3600), ("min", SCALE * 60), ("sec", SCALE)];

/// Names that `--limit` takes after the slash, each also shortened.
const UNIT_WORDS: [(&str, u32); 4] =
    [("second", SCALE), ("minute", SCALE * 60), ("hour", SCALE * 3600), ("day", SCALE * 86_400)];

/// Credit worth `period` units of 1/10000 s (`user2credits`).
const fn credits(period: u32) -> u32 {
    if period > u32::MAX / (HZ * CREDITS_PER_JIFFY) {
        (period / SCALE).wrapping_mul(HZ * CREDITS_PER_JIFFY)
    } else {
        period * (HZ * CREDITS_PER_JIFFY) / SCALE
    }
}

/// Why a `--limit` is no rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadRate {
    /// Not `N/unit`.
    Syntax,
    /// More often than 10000 times a second.
    TooFast,
}

impl LimitMatch {
    /// Reads `N[/unit]` (`parse_rate` of iptables' libxt_limit.c): the average.
    pub(super) fn parse_rate(text: &str) -> Result<u32, BadRate> {
        let (number, unit) = match text.split_once('/') {
            Some((number, unit)) if !unit.is_empty() => {
                let unit = unit.to_ascii_lowercase();
                let found = UNIT_WORDS.iter().find(|(word, _)| word.starts_with(&unit)).ok_or(BadRate::Syntax)?;
                (number, found.1)
            }
            Some(_) => return Err(BadRate::Syntax),
            None => (text, SCALE),
        };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(BadRate::Syntax);
        }
        // More digits than fit are a rate too fast whatever they are.
        let number: u32 = number.parse().map_err(|_| BadRate::TooFast)?;
        match number {
            0 => Err(BadRate::Syntax),
            _ if unit / number == 0 => Err(BadRate::TooFast),
            _ => Ok(unit / number),
        }
    }

    /// The average as `iptables-save` prints it (`print_rate`). Where its choice of unit would read back as another
    /// average, the next larger unit is taken.
    pub fn rate(&self) -> String {
        let fits = |&&(_, unit): &&(&str, u32)| self.average <= unit && unit / self.average > unit % self.average;
        let smaller = UNITS[1..].iter().take_while(fits).last();
        let (name, unit) = smaller.unwrap_or(&UNITS[0]);
        format!("{}/{name}", unit / self.average)
    }

    /// Cost of a packet, and the cap, in credits; `None` where Linux refuses the rule with ERANGE (`limit_mt_check`).
    pub fn cost_and_cap(&self) -> Option<(u32, u32)> {
        if self.burst == 0 || self.average.checked_mul(self.burst).is_none() {
            return None;
        }
        Some((credits(self.average), credits(self.average * self.burst)))
    }
}

/// One rule's bucket. Starts full.
#[derive(Debug)]
pub(super) struct Bucket {
    cost: u32,
    cap: u32,
    credit: AtomicU32,
    /// The last jiffy that was credited.
    credited: AtomicU64,
}

impl Bucket {
    /// # Panics
    /// For a limit that the check should have refused.
    pub(super) fn new(limit: &LimitMatch) -> Bucket {
        let (cost, cap) = limit.cost_and_cap().expect("a limit out of range was let through");
        Bucket { cost, cap, credit: AtomicU32::new(cap), credited: AtomicU64::new(0) }
    }

    /// Whether a packet at `now` is within the limit (`limit_mt`). Time that passed is credited either way.
    #[inline]
    pub(super) fn take(&self, now: Instant) -> bool {
        let jiffy = jiffies(now);
        // Where a worker's clock reading is older than another's, there is nothing left to credit.
        schedule::point();
        let last = self.credited.fetch_max(jiffy, Ordering::Relaxed);
        let gained = jiffy.saturating_sub(last).saturating_mul(u64::from(CREDITS_PER_JIFFY));
        schedule::point();
        let mut old = self.credit.load(Ordering::Relaxed);
        loop {
            let filled = u64::from(old).saturating_add(gained).min(u64::from(self.cap)) as u32;
            let (passes, new) = match filled.checked_sub(self.cost) {
                Some(rest) => (true, rest),
                None => (false, filled),
            };
            schedule::point();
            match self.credit.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return passes,
                Err(seen) => old = seen,
            }
        }
    }
}

/// The jiffy (millisecond) that `now` lies in.
pub(super) const fn jiffies(now: Instant) -> u64 {
    now.as_ns() / (1_000_000_000 / HZ as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(rate: &str, burst: u32) -> LimitMatch {
        LimitMatch { average: LimitMatch::parse_rate(rate).expect("a rate"), burst }
    }

    #[test]
    fn rates_read_and_print_as_iptables_does() {
        let cases = [
            ("60/minute", "1/sec"),
            ("120/minute", "2/sec"),
            ("10", "10/sec"),
            ("10/M", "10/min"),
            ("100/hour", "100/hour"),
            ("7/min", "7/min"),
            ("61/min", "61/min"),
            ("7000/sec", "10000/sec"),
            ("86400/day", "1/sec"),
            ("3/h", "3/hour"),
            ("1/day", "1/day"),
        ];
        for (read, printed) in cases {
            assert_eq!(limit(read, 5).rate(), printed, "{read}");
        }
        for bad in ["", "/s", "10/", "10/seconds", "0/sec", "-1/sec", "+1/sec", "x/sec"] {
            assert_eq!(LimitMatch::parse_rate(bad), Err(BadRate::Syntax), "{bad}");
        }
        for fast in ["10001/sec", "600001/min", "99999999999999999999/sec"] {
            assert_eq!(LimitMatch::parse_rate(fast), Err(BadRate::TooFast), "{fast}");
        }
    }

    #[test]
    fn limits_that_overflow_are_refused_as_linux_refuses_them() {
        assert!(limit("1/day", 5).cost_and_cap().is_none());
        assert!(limit("1/day", 1).cost_and_cap().is_some());
        assert!(limit("1/sec", 0).cost_and_cap().is_none());
        assert_eq!(limit("60/minute", 30).cost_and_cap(), Some((32_000, 960_000)));
    }

    #[test]
    fn ten_a_second_with_a_burst_of_three() {
        let bucket = Bucket::new(&limit("10/sec", 3));
        let start = Instant::from_secs(100);
        let passed = (0..6).filter(|_| bucket.take(start)).count();
        let later = (0..6).filter(|_| bucket.take(start + 250_000_000)).count();
        assert_eq!((passed, later), (3, 2));
    }

    #[test]
    fn a_clock_reading_from_the_past_credits_nothing() {
        let bucket = Bucket::new(&limit("1/sec", 1));
        assert!(bucket.take(Instant::from_secs(10)));
        assert!(!bucket.take(Instant::from_secs(5)));
        assert!(!bucket.take(Instant::from_ns(10_999_000_000)));
        assert!(bucket.take(Instant::from_secs(11)));
    }

    proptest! {
        #[test]
        fn a_printed_rate_reads_back_as_itself(number in 1u32..20_000, unit in 0usize..4) {
            let Ok(average) = LimitMatch::parse_rate(&format!("{number}/{}", UNIT_WORDS[unit].0)) else { return Ok(()) };
            let limit = LimitMatch { average, burst: 5 };
            prop_assert_eq!(LimitMatch::parse_rate(&limit.rate()), Ok(average));
        }
    }
}
