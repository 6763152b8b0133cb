//! A full connection table, as the log tells of it: [`watch`].
//!
//! Each second the control thread looks at the workers' counters. When new connections were refused, or others had to give
//! way, it logs one line, and then no more for [`LINE_INTERVAL`]; what happens until then is counted into the next. The
//! line says who fills the table, from a [`Census`] of the listing: up to [`PIECES`] bounded pieces of it, evenly over the
//! table, so in a large table a sample (of 16,384 entries: shares are right to within one percent).

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::backend::Workers;
use crate::conntrack::{ConnView, protocol_name};
use crate::wire::proto;
use crate::worker::TableCounts;

/// How often the counters are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two lines, at least.
const LINE_INTERVAL: Duration = Duration::from_secs(60);
/// Pieces of the listing that a census looks at.
const PIECES: usize = 64;
/// Records in a piece.
const PIECE: usize = 256;

/// Writes log lines about full tables, for ever.
pub async fn watch(workers: &Workers) {
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pressure = Pressure::default();
    loop {
        tick.tick().await;
        // A worker that does not answer is told to whoever asks for statistics.
        let Ok(counts) = workers.table_counts().await else { continue };
        let Some(news) = pressure.hear(&counts, Instant::now()) else { continue };
        match census(workers, &counts).await {
            Ok(census) => tracing::warn!("{news}; {census}"),
            Err(_) => tracing::warn!("{news}"),
        }
    }
}

async fn census(workers: &Workers, counts: &[TableCounts]) -> Result<Census, super::api::BackendError> {
    let mut census = Census::default();
    let pieces = (PIECES / counts.len()).max(1);
    for (worker, count) in counts.iter().enumerate() {
        let stride = count.records.div_ceil(pieces).max(PIECE);
        for position in (0..count.records).step_by(stride) {
            workers.entries_at(worker, position, PIECE).await?.iter().for_each(|conn| census.count(conn));
        }
    }
    Ok(census)
}

/// What is known of full tables, and when it was last said.
#[derive(Debug, Default)]
struct Pressure {
    refused: u64,
    gave_way: u64,
    said_at: Option<Instant>,
}

/// What a line says before it says who.
#[derive(Debug, PartialEq, Eq)]
struct News {
    refused: u64,
    gave_way: u64,
    entries: usize,
    limit: usize,
}

impl Pressure {
    /// Hears the workers' counters; what to say, if it is time to say something.
    fn hear(&mut self, counts: &[TableCounts], now: Instant) -> Option<News> {
        let refused: u64 = counts.iter().map(|it| it.refused).sum();
        let gave_way: u64 = counts.iter().map(|it| it.gave_way).sum();
        let nothing_new = (refused, gave_way) == (self.refused, self.gave_way);
        let too_soon = self.said_at.is_some_and(|at| now.duration_since(at) < LINE_INTERVAL);
        if nothing_new || too_soon {
            return None;
        }
        let news = News {
            refused: refused - self.refused,
            gave_way: gave_way - self.gave_way,
            entries: counts.iter().map(|it| it.entries).sum(),
            limit: counts.iter().map(|it| it.limit).max().unwrap_or(0),
        };
        *self = Pressure { refused, gave_way, said_at: Some(now) };
        Some(news)
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let News { refused, gave_way, entries, limit } = self;
        write!(
            f,
            "connection table full ({entries} of {limit}): since the last such line {refused} new connections were \
             refused, and {gave_way} that were not ASSURED, or closing, gave way"
        )
    }
}

/// Entries by where they come from and go to.
#[derive(Debug, Default)]
struct Census {
    entries: usize,
    sources: HashMap<IpAddr, usize>,
    prefixes: HashMap<IpAddr, usize>,
    destinations: HashMap<IpAddr, usize>,
    services: HashMap<(u8, Option<u16>), usize>,
}

impl Census {
    fn count(&mut self, conn: &ConnView) {
        let original = &conn.original;
        let port = proto::has_ports(conn.proto).then_some(original.dport);
        self.entries += 1;
        *self.sources.entry(original.src).or_default() += 1;
        *self.prefixes.entry(prefix_of(original.src)).or_default() += 1;
        *self.destinations.entry(original.dst).or_default() += 1;
        *self.services.entry((conn.proto, port)).or_default() += 1;
    }

    /// In percent, rounded.
    fn share(&self, count: usize) -> usize {
        (100 * count + self.entries / 2) / self.entries
    }
}

/// The /24 or /64 of an address.
fn prefix_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::from((v4.to_bits() & !0xff).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

/// The most frequent, and how often; of equals the smallest.
fn most<K: Copy + Ord + Hash>(counts: &HashMap<K, usize>) -> Option<(K, usize)> {
    counts.iter().map(|(&key, &count)| (key, count)).min_by_key(|&(key, count)| (usize::MAX - count, key))
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(source), Some(prefix), Some(destination), Some(service)) =
            (most(&self.sources), most(&self.prefixes), most(&self.destinations), most(&self.services))
        else {
            return f.write_str("no entry lives any more");
        };
        let length = if prefix.0.is_ipv4() { 24 } else { 64 };
        write!(
            f,
            "of {} entries looked at {} % are from {}/{length} ({} % from {}) and {} % go to ",
            self.entries,
            self.share(prefix.1),
            prefix.0,
            self.share(source.1),
            source.0,
            self.share(service.1)
        )?;
        match service.0 {
            (protocol, Some(port)) => write!(f, "{} port {port}", protocol_name(protocol))?,
            (protocol, None) => write!(f, "protocol {protocol}")?,
        }
        write!(f, " ({} % to {})", self.share(destination.1), destination.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::TupleView;

    fn conn(src: [u8; 4], protocol: u8, dport: u16) -> ConnView {
        let (src, dst) = (IpAddr::from(src), IpAddr::from([198, 51, 100, 1]));
        ConnView {
            family: 2,
            proto: protocol,
            timeout: 100,
            state: None,
            original: TupleView { src, dst, sport: 1, dport, zone: 0 },
            reply: TupleView { src: dst, dst: src, sport: dport, dport: 1, zone: 0 },
            counters: None,
            status: 8,
            mark: 0,
            helper: None,
            gre_timeouts: None,
            start: None,
            stop: None,
            id: 0,
        }
    }

    #[test]
    fn a_census_names_the_largest() {
        let mut census = Census::default();
        assert_eq!(census.to_string(), "no entry lives any more");
        for host in 0..180 {
            census.count(&conn([203, 0, 113, host % 90], proto::TCP, 443));
        }
        for host in 0..20 {
            census.count(&conn([10, host, 0, 7], proto::ICMP, 8 << 8));
        }
        assert_eq!(
            census.to_string(),
            "of 200 entries looked at 90 % are from 203.0.113.0/24 (1 % from 203.0.113.0) and 90 % go to tcp port 443 \
             (100 % to 198.51.100.1)"
        );
        let mut census = Census::default();
        let v6 = ConnView { proto: proto::ICMPV6, ..conn([0; 4], 0, 128 << 8) };
        let src = "2001:db8:1:2:3:4:5:6".parse().expect("an address");
        census.count(&ConnView { original: TupleView { src, ..v6.original }, ..v6 });
        let said = census.to_string();
        assert!(said.contains("100 % are from 2001:db8:1:2::/64 (100 % from 2001:db8:1:2:3:4:5:6)"), "{said}");
        assert!(said.contains("100 % go to protocol 58"), "{said}");
    }

    #[test]
    fn one_line_in_a_while_tells_all_that_happened() {
        let counts = |refused, gave_way| [TableCounts { entries: 9, limit: 10, records: 16, refused, gave_way }];
        let start = Instant::now();
        let mut pressure = Pressure::default();
        assert_eq!(pressure.hear(&counts(0, 0), start), None);
        let first = pressure.hear(&counts(3, 1), start).expect("at once");
        assert_eq!((first.refused, first.gave_way, first.entries, first.limit), (3, 1, 9, 10));
        assert_eq!(pressure.hear(&counts(4, 1), start + LINE_INTERVAL / 2), None);
        let second = pressure.hear(&counts(4, 9), start + LINE_INTERVAL).expect("it is time");
        assert_eq!((second.refused, second.gave_way), (1, 8));
        assert_eq!(pressure.hear(&counts(4, 9), start + 10 * LINE_INTERVAL), None, "nothing has happened since");
        assert!(second.to_string().starts_with("connection table full (9 of 10): since the last such line 1 new"));
    }
}
