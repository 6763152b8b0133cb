//! The counters as one value: [`StatsReport`], what `xrouter stats` shows, the control socket carries, and the metrics
//! page is made from.
//!
//! A report is built whenever somebody asks, out of what each worker answers; it holds plain numbers and names and no
//! reference to anything alive. All counters run from the start of the daemon and never go back. The JSON form carries
//! [`SCHEMA`]; a field may be added under the same number, never renamed or given another meaning.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::verdict::{DropCounters, DropReason};

/// The version of the JSON form.
pub const SCHEMA: u32 = 1;

/// Everything the router counts, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatsReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which build is running.
    pub build: Build,
    /// The daemon's process id.
    pub pid: u32,
    /// Seconds since start-up.
    pub uptime_seconds: u64,
    /// What the sockets got: `zero-copy`, `copy` or `generic`.
    pub mode: String,
    /// What idle workers do: `busy` or `adaptive`.
    pub poll: String,
    /// How often the rules have been published.
    pub policy_generation: u64,
    /// How often other rules were to be published, and could not be.
    #[serde(default)]
    pub reloads_refused: u64,
    /// How often the routes have been published.
    pub routing_generation: u64,
    /// The router's ports, LAN first.
    pub ports: Vec<PortReport>,
    /// The workers, by number.
    pub workers: Vec<WorkerReport>,
    /// The rules' counters, IPv4 before IPv6, in the order of the file; each chain's policy last.
    pub rules: Vec<RuleReport>,
}

/// The program's own facts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// The package's version.
    pub version: String,
    /// `debug` or `release`.
    pub profile: String,
    /// Processor architecture.
    pub arch: String,
}

impl Build {
    /// This build.
    pub fn current() -> Build {
        Build {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
        }
    }
}

/// One port's link, as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// `lan` or `wan`.
    pub role: String,
    /// The interface's name.
    pub device: String,
    /// The interface's number.
    pub ifindex: u32,
    /// The link-layer address.
    pub mac: String,
    /// The largest packet, in bytes without the Ethernet header.
    pub mtu: u32,
    /// Whether the link is up.
    pub up: bool,
}

/// Packets and bytes. Bytes count the whole Ethernet frame without its check sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Traffic {
    fn add(&mut self, other: Traffic) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What the kernel counts for an AF_XDP socket (`struct xdp_statistics`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XskReport {
    /// Dropped for other reasons than an invalid descriptor.
    pub rx_dropped: u64,
    /// Dropped due to an invalid descriptor in the fill ring.
    pub rx_invalid_descs: u64,
    /// Dropped due to an invalid descriptor in the transmit ring.
    pub tx_invalid_descs: u64,
    /// Dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// The fill ring was empty when the driver wanted a buffer.
    pub rx_fill_ring_empty_descs: u64,
    /// The transmit ring was empty when the kernel looked (harmless: it counts idle kicks).
    pub tx_ring_empty_descs: u64,
}

impl XskReport {
    /// Every counter with its name.
    pub fn fields(&self) -> [(&'static str, u64); 6] {
        [
            ("rx_dropped", self.rx_dropped),
            ("rx_invalid_descs", self.rx_invalid_descs),
            ("tx_invalid_descs", self.tx_invalid_descs),
            ("rx_ring_full", self.rx_ring_full),
            ("rx_fill_ring_empty_descs", self.rx_fill_ring_empty_descs),
            ("tx_ring_empty_descs", self.tx_ring_empty_descs),
        ]
    }
}

/// One queue of one port, as its worker counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReport {
    /// `lan` or `wan`.
    pub role: String,
    /// The interface's name.
    pub device: String,
    /// The queue's number.
    pub queue: u32,
    /// Received from the queue.
    pub received: Traffic,
    /// Given to the queue for sending.
    pub transmitted: Traffic,
    /// System calls made to start the kernel sending or receiving.
    pub wakeups: u64,
    /// Longer than a frame, and dropped because no large frame was free.
    #[serde(default)]
    pub rx_no_large_frame: u64,
    /// Dropped because longer than a large frame.
    #[serde(default)]
    pub rx_too_long: u64,
    /// The kernel's own counters of the socket.
    pub xsk: XskReport,
}

/// Drops by reason. Built here it names every [`DropReason`]; read from a daemon of another version it keeps what that said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops(Vec<(String, u64)>);

impl Default for Drops {
    fn default() -> Drops {
        Drops::from(&DropCounters::default())
    }
}

impl From<&DropCounters> for Drops {
    fn from(counters: &DropCounters) -> Drops {
        Drops(counters.iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect())
    }
}

impl Drops {
    /// Every reason's name with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }

    /// All drops.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Drops) {
        for (name, count) in other.iter() {
            match self.0.iter_mut().find(|(mine, _)| mine == name) {
                Some((_, mine)) => *mine += count,
                None => self.0.push((name.to_owned(), count)),
            }
        }
    }
}

impl Serialize for Drops {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, count) in &self.0 {
            map.serialize_entry(name, count)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Drops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Drops, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Drops;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of drop reasons to counts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Drops, A::Error> {
                let mut drops = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    drops.push(entry);
                }
                Ok(Drops(drops))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// One worker's shard of the connection table; names as `conntrack -S` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackReport {
    /// Connections in the table now.
    pub entries: u64,
    /// The most it holds: `nf_conntrack_max` in force (lowered at run time, it may be less than `entries` for a while).
    pub limit: u64,
    /// Lookups that found a connection.
    pub found: u64,
    /// Packets that could not be tracked.
    pub invalid: u64,
    /// Connections put into the table.
    pub insert: u64,
    /// Connections that could not be put into the table.
    pub insert_failed: u64,
    /// Packets dropped because of the table.
    pub drop: u64,
    /// Connections removed early to make room.
    pub early_drop: u64,
    /// ICMP errors that were wrong in themselves.
    pub error: u64,
    /// Lookups begun again: always 0, a shard has one owner.
    #[serde(default)]
    pub search_restart: u64,
    /// Packets that joined the connection which had taken their tuple.
    #[serde(default)]
    pub clash_resolve: u64,
    /// Connections for which the index had no room.
    #[serde(default)]
    pub chaintoolong: u64,
    /// Connections that timed out.
    pub expired: u64,
    /// Connection events that nobody took in time, while somebody listened.
    #[serde(default)]
    pub events_lost: u64,
    /// Connections that are expected now.
    #[serde(default)]
    pub expected: u64,
    /// Connections that were expected.
    #[serde(default)]
    pub expect_new: u64,
    /// Expectations made.
    #[serde(default)]
    pub expect_create: u64,
    /// Expectations that have ended.
    #[serde(default)]
    pub expect_delete: u64,
}

impl ConntrackReport {
    /// The counters of `conntrack -S`, in its order.
    pub fn of_conntrack(&self) -> [(&'static str, u64); 10] {
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
    }

    /// The counters of `conntrack -S expect`, in its order.
    pub fn of_expect(&self) -> [(&'static str, u64); 3] {
        [("expect_new", self.expect_new), ("expect_create", self.expect_create), ("expect_delete", self.expect_delete)]
    }

    /// Every counter with its name.
    pub fn counters(&self) -> [(&'static str, u64); 14] {
        [
            ("found", self.found),
            ("invalid", self.invalid),
            ("insert", self.insert),
            ("insert_failed", self.insert_failed),
            ("drop", self.drop),
            ("early_drop", self.early_drop),
            ("error", self.error),
            ("clash_resolve", self.clash_resolve),
            ("chaintoolong", self.chaintoolong),
            ("expired", self.expired),
            ("events_lost", self.events_lost),
            ("expect_new", self.expect_new),
            ("expect_create", self.expect_create),
            ("expect_delete", self.expect_delete),
        ]
    }

    fn add(&mut self, other: &ConntrackReport) {
        self.entries += other.entries;
        // It is all workers' together.
        self.limit = self.limit.max(other.limit);
        self.found += other.found;
        self.invalid += other.invalid;
        self.insert += other.insert;
        self.insert_failed += other.insert_failed;
        self.drop += other.drop;
        self.early_drop += other.early_drop;
        self.error += other.error;
        self.search_restart += other.search_restart;
        self.clash_resolve += other.clash_resolve;
        self.chaintoolong += other.chaintoolong;
        self.expired += other.expired;
        self.events_lost += other.events_lost;
        self.expected += other.expected;
        self.expect_new += other.expect_new;
        self.expect_create += other.expect_create;
        self.expect_delete += other.expect_delete;
    }
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// The core it is pinned to.
    pub core: u32,
    /// The queues it serves.
    pub queues: Vec<QueueReport>,
    /// Packets forwarded.
    pub forwarded: u64,
    /// Packets given to the host's own stack.
    pub punted: u64,
    /// Packets that had to wait for a neighbour's address, in all.
    pub held: u64,
    /// Packets waiting for a neighbour's address now.
    pub waiting: u64,
    /// Packets the router made itself (ICMP errors, TCP resets).
    pub replies: u64,
    /// Packets given to other workers, since those have their connections.
    #[serde(default)]
    pub handed_over: u64,
    /// Packets that other workers gave.
    #[serde(default)]
    pub taken_over: u64,
    /// Log lines that LOG rules asked for and the rate limit swallowed.
    pub log_lost: u64,
    /// Copies that NFLOG rules asked for and nobody took in time.
    #[serde(default)]
    pub nflog_lost: u64,
    /// Drops by reason.
    pub drops: Drops,
    /// The shard's connections.
    pub conntrack: ConntrackReport,
    /// Bursts with packets in them.
    pub bursts: u64,
    /// Looks that found nothing to do.
    pub idle_polls: u64,
    /// Share of the looks since start-up that found packets, 0 to 1.
    pub busy_ratio: f64,
    /// Frames nobody uses now.
    pub free_frames: u64,
    /// Large frames nobody uses now; 0 too where there are none, because the MTUs fit a frame.
    #[serde(default)]
    pub free_large_frames: u64,
}

/// One rule's counters, or a policy's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// 4 or 6.
    pub family: u8,
    /// The table, e.g. `filter`.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's number in its chain from 1; 0 is the chain's policy.
    pub rule: u32,
    /// The rule as iptables-save has it.
    pub text: String,
    /// What matched.
    #[serde(flatten)]
    pub matched: Traffic,
}

impl RuleReport {
    /// The rule's number, or `policy`.
    pub fn label(&self) -> String {
        if self.rule == 0 { "policy".to_owned() } else { self.rule.to_string() }
    }
}

impl StatsReport {
    /// All workers' drops.
    pub fn drops(&self) -> Drops {
        let mut sum = Drops::default();
        self.workers.iter().for_each(|worker| sum.add(&worker.drops));
        sum
    }

    /// All workers' connections.
    pub fn conntrack(&self) -> ConntrackReport {
        let mut sum = ConntrackReport::default();
        self.workers.iter().for_each(|worker| sum.add(&worker.conntrack));
        sum
    }

    /// Every queue of every worker.
    pub fn queues(&self) -> impl Iterator<Item = &QueueReport> {
        self.workers.iter().flat_map(|worker| &worker.queues)
    }

    /// What a port received and sent.
    fn port_traffic(&self, port: &PortReport) -> (Traffic, Traffic) {
        let (mut received, mut transmitted) = (Traffic::default(), Traffic::default());
        for queue in self.queues().filter(|queue| queue.device == port.device) {
            received.add(queue.received);
            transmitted.add(queue.transmitted);
        }
        (received, transmitted)
    }

    fn received_in_all(&self) -> u64 {
        self.queues().map(|queue| queue.received.packets).sum()
    }

    fn sum(&self, field: impl Fn(&WorkerReport) -> u64) -> u64 {
        self.workers.iter().map(field).sum()
    }

    /// Rules that matched something.
    fn write_rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in [4, 6] {
            let rules = || self.rules.iter().filter(|rule| rule.family == family);
            let silent = rules().filter(|rule| rule.rule > 0 && rule.matched.packets == 0).count();
            let note = if silent == 0 { String::new() } else { format!(" ({silent} matched nothing)") };
            writeln!(f, "IPv{family} rules   {}{note}", rules().filter(|rule| rule.rule > 0).count())?;
            for rule in rules().filter(|rule| rule.matched.packets > 0) {
                let Traffic { packets, bytes } = rule.matched;
                writeln!(f, "  {packets:>14} packets  {:>10}  {}", Bytes(bytes), rule.text)?;
            }
        }
        Ok(())
    }

    fn write_trouble(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let drops = self.drops();
        match drops.total() {
            0 => writeln!(f, "drops        none")?,
            total => writeln!(f, "drops        {}", counted(total, "packet"))?,
        }
        let mut by_count: Vec<_> = drops.iter().filter(|&(_, count)| count > 0).collect();
        by_count.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        for (name, count) in by_count {
            let meaning = DropReason::from_name(name).map_or("", DropReason::describe);
            writeln!(f, "  {count:>14}  {name:<20}  {meaning}")?;
        }
        for queue in self.queues() {
            // An empty transmit ring is what an idle port looks like.
            for (name, count) in queue.xsk.fields().into_iter().filter(|&(name, _)| name != "tx_ring_empty_descs") {
                if count > 0 {
                    writeln!(f, "  {count:>14}  {name:<20}  {} queue {}, by the kernel", queue.device, queue.queue)?;
                }
            }
            for (name, count, why) in [
                ("rx_no_large_frame", queue.rx_no_large_frame, "more long packets than large frames"),
                ("rx_too_long", queue.rx_too_long, "longer than the MTUs at start"),
            ] {
                if count > 0 {
                    writeln!(f, "  {count:>14}  {name:<20}  {} queue {}, {why}", queue.device, queue.queue)?;
                }
            }
        }
        let (log_lost, nflog_lost) = (self.sum(|worker| worker.log_lost), self.sum(|worker| worker.nflog_lost));
        if nflog_lost > 0 {
            let what = "copies of NFLOG rules beyond what is written in time (no packet lost)";
            writeln!(f, "  {nflog_lost:>14}  {:<20}  {what}", "nflog_lost")?;
        }
        match log_lost {
            0 => Ok(()),
            lost => writeln!(f, "  {lost:>14}  {:<20}  log lines beyond the rate limit (no packet lost)", "log_lost"),
        }
    }
}

/// For people: trouble first, then what passed, zeroes left out where they say nothing.
impl fmt::Display for StatsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "xrouter {} ({}), process {}, up {}, mode {}, poll {}, {}",
            self.build.version,
            self.build.profile,
            self.pid,
            Span(self.uptime_seconds),
            self.mode,
            self.poll,
            counted(self.workers.len() as u64, "worker"),
        )?;
        self.write_trouble(f)?;
        for port in &self.ports {
            let (received, transmitted) = self.port_traffic(port);
            let state = if port.up { "up" } else { "DOWN" };
            writeln!(f, "{:<12} {} {state}, {}, mtu {}", port.role, port.device, port.mac, port.mtu)?;
            writeln!(f, "  received     {:>14} packets  {:>10}", received.packets, Bytes(received.bytes))?;
            writeln!(f, "  transmitted  {:>14} packets  {:>10}", transmitted.packets, Bytes(transmitted.bytes))?;
        }
        writeln!(
            f,
            "packets      {} forwarded, {} to the host, {} answered, {} waited for a neighbour ({} now)",
            self.sum(|worker| worker.forwarded),
            self.sum(|worker| worker.punted),
            self.sum(|worker| worker.replies),
            self.sum(|worker| worker.held),
            self.sum(|worker| worker.waiting),
        )?;
        if self.workers.len() > 1 {
            let (given, received) = (self.sum(|worker| worker.handed_over), self.received_in_all());
            let share = if received == 0 { 0.0 } else { 100.0 * given as f64 / received as f64 };
            writeln!(f, "             {given} handed from worker to worker, {share:.1} in 100 received")?;
        }
        let conntrack = self.conntrack();
        let full = 100.0 * conntrack.entries as f64 / conntrack.limit.max(1) as f64;
        writeln!(f, "conntrack    {} of {} entries ({full:.1} % full)", conntrack.entries, conntrack.limit)?;
        let counters = conntrack.counters().map(|(name, count)| format!("{name}={count}"));
        writeln!(f, "  {}", counters.join(" "))?;
        for worker in &self.workers {
            writeln!(
                f,
                "core {:<7} {:.0} % busy, {} bursts, {} idle polls, {} connections, {} free frames",
                worker.core,
                100.0 * worker.busy_ratio,
                worker.bursts,
                worker.idle_polls,
                worker.conntrack.entries,
                worker.free_frames,
            )?;
        }
        self.write_rules(f)
    }
}

/// `1 worker`, `2 workers`.
fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Seconds as people say them.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, hours, minutes, seconds) = (self.0 / 86400, self.0 / 3600 % 24, self.0 / 60 % 60, self.0 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, _) => write!(f, "{minutes} min {seconds} s"),
            (0, _, _) => write!(f, "{hours} h {minutes} min"),
            _ => write!(f, "{days} d {hours} h"),
        }
    }
}

/// Bytes in decimal units.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
        if self.0 < 1000 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64 / 1000.0;
        let mut unit = 0;
        while value >= 999.95 && unit + 1 < UNITS.len() {
            value /= 1000.0;
            unit += 1;
        }
        f.pad(&format!("{value:.1} {}", UNITS[unit]))
    }
}

/// A report with something in every field, for the tests of what is made from one.
#[cfg(test)]
pub(crate) fn sample() -> StatsReport {
    let mut counters = DropCounters::default();
    (0..7).for_each(|_| counters.count(DropReason::PolicyDrop));
    counters.count(DropReason::NoRoute);
    let traffic = |packets| Traffic { packets, bytes: packets * 100 };
    let queue = |role: &str, device: &str, n| QueueReport {
        role: role.into(),
        device: device.into(),
        queue: n,
        received: traffic(1000),
        transmitted: traffic(900),
        wakeups: 5,
        rx_no_large_frame: 0,
        rx_too_long: 0,
        xsk: XskReport { rx_ring_full: 3, tx_ring_empty_descs: 77, ..XskReport::default() },
    };
    let worker = |core| WorkerReport {
        core,
        queues: vec![queue("lan", "eth0", core), queue("wan", "eth1", core)],
        forwarded: 1800,
        punted: 4,
        drops: Drops::from(&counters),
        conntrack: ConntrackReport { entries: 21, limit: 1000, insert: 30, found: 1700, ..ConntrackReport::default() },
        busy_ratio: 0.25,
        ..WorkerReport::default()
    };
    let port = |role: &str, device: &str| PortReport {
        role: role.into(),
        device: device.into(),
        ifindex: 3,
        mac: "02:00:00:00:00:01".into(),
        mtu: 1500,
        up: role == "lan",
    };
    let rule = |rule, text: &str| RuleReport {
        family: 4,
        table: "filter".into(),
        chain: "FORWARD".into(),
        rule,
        text: text.into(),
        matched: traffic(9),
    };
    StatsReport {
        schema: SCHEMA,
        build: Build::current(),
        pid: 4711,
        uptime_seconds: 3725,
        mode: "copy".into(),
        poll: "busy".into(),
        policy_generation: 1,
        reloads_refused: 0,
        routing_generation: 2,
        ports: vec![port("lan", "eth0"), port("wan", "eth1")],
        workers: vec![worker(0), worker(1)],
        rules: vec![rule(1, "-A FORWARD -m comment --comment \"a \\\"b\\\"\" -j ACCEPT"), rule(0, ":FORWARD DROP")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trips_and_names_every_reason() {
        let report = sample();
        let json = serde_json::to_string(&report).expect("plain data");
        assert_eq!(serde_json::from_str::<StatsReport>(&json).expect("our own JSON"), report);
        assert!(json.starts_with("{\"schema\":1,"), "{json}");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        for reason in DropReason::ALL {
            assert!(value["workers"][0]["drops"][reason.name()].is_u64(), "{reason} is missing");
        }
    }

    #[test]
    fn another_versions_reasons_are_kept() {
        let drops: Drops = serde_json::from_str("{\"no_route\":2,\"from_the_future\":3}").expect("a map");
        let mut sum = Drops::default();
        sum.add(&drops);
        assert_eq!((sum.total(), sum.iter().last()), (5, Some(("from_the_future", 3))));
    }

    #[test]
    fn people_see_trouble_first_and_no_zeroes() {
        let text = sample().to_string();
        let order = ["up 1 h 2 min", "16 packets", "policy_drop", "no_route", "rx_ring_full", "eth0 up", "eth1 DOWN"];
        let found: Vec<_> =
            order.iter().map(|word| text.find(word).unwrap_or_else(|| panic!("no {word} in\n{text}"))).collect();
        assert!(found.is_sorted(), "{text}");
        assert!(!text.contains("ip_fragment") && !text.contains("tx_ring_empty"), "{text}");
        assert!(text.contains("42 of 1000 entries (4.2 % full)"), "{text}");
        assert!(text.contains("IPv4 rules   1\n") && text.contains("9 packets       900 B  :FORWARD DROP"), "{text}");
        let mut quiet = StatsReport { rules: sample().rules, ..StatsReport::default() };
        quiet.rules.iter_mut().for_each(|rule| rule.matched = Traffic::default());
        let text = quiet.to_string();
        assert!(text.contains("drops        none") && text.contains("IPv4 rules   1 (1 matched nothing)\n"), "{text}");
        assert!(!text.contains("FORWARD"), "{text}");
    }

    #[test]
    fn bytes_and_spans_read_well() {
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes(1_500).to_string(), "1.5 kB");
        assert_eq!(Bytes(999_999).to_string(), "1.0 MB");
        assert_eq!(Bytes(u64::MAX).to_string(), "18.4 EB");
        assert_eq!((Span(59).to_string(), Span(90061).to_string()), ("59 s".into(), "1 d 1 h".into()));
    }
}
