//! Time as a value.
//!
//! The core never reads a clock: the worker reads one per burst and passes an [`Instant`] down, the simulator and
//! the scenarios invent theirs. An `Instant` is nanoseconds since an arbitrary start of the same process (the
//! monotonic clock on a real run); it is never compared with one of another process.

use core::fmt;
use core::ops::{Add, Sub};

/// Nanoseconds in one second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// A point in monotonic time, in nanoseconds since an arbitrary start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant {
    ns: u64,
}

impl Instant {
    /// The start of time.
    pub const ZERO: Instant = Instant { ns: 0 };

    /// From nanoseconds since the start.
    pub const fn from_ns(ns: u64) -> Instant {
        Instant { ns }
    }

    /// From whole seconds since the start.
    pub const fn from_secs(secs: u64) -> Instant {
        Instant { ns: secs * SECOND_NS }
    }

    /// Nanoseconds since the start.
    pub const fn as_ns(self) -> u64 {
        self.ns
    }

    /// Nanoseconds from `earlier` to `self`; 0 when `earlier` is later.
    pub const fn saturating_since(self, earlier: Instant) -> u64 {
        self.ns.saturating_sub(earlier.ns)
    }
}

/// `instant + nanoseconds`, saturating.
impl Add<u64> for Instant {
    type Output = Instant;

    fn add(self, ns: u64) -> Instant {
        Instant { ns: self.ns.saturating_add(ns) }
    }
}

/// `later - earlier` in nanoseconds, saturating at 0.
impl Sub for Instant {
    type Output = u64;

    fn sub(self, earlier: Instant) -> u64 {
        self.saturating_since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.ns / SECOND_NS, self.ns % SECOND_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtraction_saturates_both_ways() {
        let early = Instant::from_secs(1);
        let late = Instant::from_secs(3);
        assert_eq!(late - early, 2 * SECOND_NS);
        assert_eq!(early - late, 0);
        assert_eq!(Instant::from_ns(u64::MAX) + 5, Instant::from_ns(u64::MAX));
    }
}
