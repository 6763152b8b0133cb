//! What a tracker tells about itself: [`Statistics`], which only grow, and [`Memory`], which does not change.

use core::fmt;

/// Counters under the names of `conntrack -S`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Statistics {
    /// Translated tuples that were taken already (NAT).
    pub found: u64,
    /// Packets found INVALID.
    pub invalid: u64,
    /// Connections confirmed. Linux prints the name and never counts.
    pub insert: u64,
    /// Connections that could not be confirmed.
    pub insert_failed: u64,
    /// Packets dropped: table full, or not confirmed.
    pub drop: u64,
    /// Connections removed to make room.
    pub early_drop: u64,
    /// ICMP errors found INVALID.
    pub error: u64,
    /// Lookups begun again. Always 0 here: a shard has one owner.
    pub search_restart: u64,
    /// Packets that joined the connection which had taken their tuple.
    pub clash_resolve: u64,
    /// Connections not confirmed because the index had no room near their home.
    pub chaintoolong: u64,
    /// Connections that were expected.
    #[serde(default)]
    pub expect_new: u64,
    /// Expectations made.
    #[serde(default)]
    pub expect_create: u64,
    /// Expectations that have ended.
    #[serde(default)]
    pub expect_delete: u64,
    /// Connections that timed out (not a name of Linux's).
    pub expired: u64,
}

impl Statistics {
    /// Every name with its count, in the order of `conntrack -S`.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("found", self.found),
            ("invalid", self.invalid),
            ("insert", self.insert),
            ("insert_failed", self.insert_failed),
            ("drop", self.drop),
            ("early_drop", self.early_drop),
            ("error", self.error),
            ("search_restart", self.search_restart),
            ("clash_resolve", self.clash_resolve),
            ("chaintoolong", self.chaintoolong),
        ]
        .into_iter()
    }

    /// The counters of expectations, in the order of `conntrack -S expect`.
    pub fn iter_expect(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [("expect_new", self.expect_new), ("expect_create", self.expect_create), ("expect_delete", self.expect_delete)]
            .into_iter()
    }

    /// Adds another shard's counts.
    pub fn add(&mut self, other: &Statistics) {
        let pairs = [
            (&mut self.found, other.found),
            (&mut self.invalid, other.invalid),
            (&mut self.insert, other.insert),
            (&mut self.insert_failed, other.insert_failed),
            (&mut self.drop, other.drop),
            (&mut self.early_drop, other.early_drop),
            (&mut self.error, other.error),
            (&mut self.search_restart, other.search_restart),
            (&mut self.clash_resolve, other.clash_resolve),
            (&mut self.chaintoolong, other.chaintoolong),
            (&mut self.expect_new, other.expect_new),
            (&mut self.expect_create, other.expect_create),
            (&mut self.expect_delete, other.expect_delete),
            (&mut self.expired, other.expired),
        ];
        for (mine, theirs) in pairs {
            *mine += theirs;
        }
    }
}

/// What a tracker takes of the machine's memory, all of it asked for at start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    pub(super) entries: usize,
    /// Bytes taken at start.
    pub start_bytes: usize,
    /// Bytes taken as IPv6 connections come, at most.
    pub v6_bytes: usize,
    /// Bytes taken as connections are translated, at most.
    pub nat_bytes: usize,
}

impl Memory {
    /// Bytes that each IPv4 connection takes, everything included.
    pub fn per_v4(&self) -> f64 {
        self.start_bytes as f64 / self.entries as f64
    }

    /// Bytes that each IPv6 connection takes, everything included.
    pub fn per_v6(&self) -> f64 {
        self.total_bytes() as f64 / self.entries as f64
    }

    /// Bytes when all connections are of IPv6.
    pub fn total_bytes(&self) -> usize {
        self.start_bytes + self.v6_bytes
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} entries, {} MiB ({:.1} bytes per IPv4 connection), up to {} MiB when all are IPv6 ({:.1} bytes), \
             up to {} MiB more when all are translated",
            self.entries,
            self.start_bytes >> 20,
            self.per_v4(),
            self.total_bytes() >> 20,
            self.per_v6(),
            self.nat_bytes >> 20
        )
    }
}
