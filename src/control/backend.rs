//! The workers as the control socket and the metrics page see them: [`Workers`], over their mailboxes.
//!
//! One question is out per worker at a time; several clients take turns. A worker that does not answer within
//! [`PATIENCE`] (it is stuck, or its core is not its own) is reported to the client, never waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use super::api::{Backend, BackendError, Cursor};
use super::stats::{
    Build, ConntrackReport, Drops, PortReport, QueueReport, RuleReport, SCHEMA, StatsReport, Traffic, WorkerReport,
    XskReport,
};
use crate::conntrack::ConnView;
use crate::device::PortId;
use crate::rules::{self, RuleCounters, Ruleset};
use crate::snapshot::{Policy, Routing};
use crate::verdict::DropReason;
use crate::wire::Family;
use crate::worker::{Line, QueueStats, Reply, Request, WorkerStats};

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often its answer is looked for.
const LOOK: Duration = Duration::from_millis(1);
/// Table slots looked at for one piece of a listing.
const PIECE: usize = 1024;

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// When it started.
    pub start: Instant,
    /// Mode of the sockets.
    pub mode: String,
    /// `busy` or `adaptive`.
    pub poll: String,
    /// Core of each worker.
    pub cores: Vec<u32>,
    /// The rules in force, IPv4 and IPv6.
    pub rulesets: [Arc<Ruleset>; 2],
}

/// How full a worker's connection table is.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableCounts {
    /// Connections in it.
    pub(super) entries: usize,
    /// Connections there is room for.
    pub(super) capacity: usize,
    /// New connections that found no room.
    pub(super) refused: u64,
    /// Connections that went to make room.
    pub(super) gave_way: u64,
}

/// The workers; see the module's head.
#[derive(Debug)]
pub struct Workers {
    lines: Vec<Mutex<Line>>,
    facts: Facts,
    policy: Arc<ArcSwap<Policy>>,
    routing: Arc<ArcSwap<Routing>>,
}

impl Workers {
    /// Over these lines, one for each of `facts.cores`.
    pub fn new(
        lines: Vec<Line>,
        facts: Facts,
        policy: Arc<ArcSwap<Policy>>,
        routing: Arc<ArcSwap<Routing>>,
    ) -> Workers {
        Workers { lines: lines.into_iter().map(Mutex::new).collect(), facts, policy, routing }
    }

    async fn ask(&self, worker: usize, request: Request) -> Result<Reply, BackendError> {
        let silent = || BackendError(format!("worker {worker} does not answer; is its core its own?"));
        let mut line = self.lines[worker].lock().await;
        if !line.ask(request) {
            return Err(silent());
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(reply) = line.answer() {
                return Ok(reply);
            }
            if Instant::now() > deadline {
                return Err(silent());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn worker_stats(&self, worker: usize) -> Result<WorkerStats, BackendError> {
        match self.ask(worker, Request::Stats).await? {
            Reply::Stats(stats) => Ok(*stats),
            Reply::Conntrack { .. } => Err(BackendError(format!("worker {worker} answered another question"))),
        }
    }

    /// How full each worker's connection table is.
    pub(super) async fn table_counts(&self) -> Result<Vec<TableCounts>, BackendError> {
        let counts = |stats: &WorkerStats| TableCounts {
            entries: stats.entries,
            capacity: stats.entries_limit,
            refused: stats.counters.drops.get(DropReason::ConntrackFull),
            gave_way: stats.conntrack.early_drop,
        };
        Ok(self.all_stats().await?.iter().map(counts).collect())
    }

    /// The connections in `count` records of a worker's table, from number `position` on.
    pub(super) async fn entries_at(
        &self,
        worker: usize,
        position: usize,
        count: usize,
    ) -> Result<Vec<ConnView>, BackendError> {
        match self.ask(worker, Request::Conntrack { cursor: position, budget: count }).await? {
            Reply::Conntrack { entries, .. } => Ok(entries),
            Reply::Stats(_) => Err(BackendError(format!("worker {worker} answered another question"))),
        }
    }

    async fn all_stats(&self) -> Result<Vec<WorkerStats>, BackendError> {
        let mut all = Vec::with_capacity(self.lines.len());
        for worker in 0..self.lines.len() {
            all.push(self.worker_stats(worker).await?);
        }
        Ok(all)
    }
}

impl Backend for Workers {
    type Conn = ConnView;

    async fn stats(&self) -> Result<StatsReport, BackendError> {
        let all = self.all_stats().await?;
        let routing = self.routing.load();
        let workers = all.iter().zip(&self.facts.cores).map(|(stats, core)| worker_report(stats, *core, &routing));
        Ok(StatsReport {
            schema: SCHEMA,
            build: Build::current(),
            pid: std::process::id(),
            uptime_seconds: self.facts.start.elapsed().as_secs(),
            mode: self.facts.mode.clone(),
            poll: self.facts.poll.clone(),
            policy_generation: self.policy.load().generation,
            routing_generation: routing.generation,
            ports: PortId::ALL.map(|port| port_report(port, &routing)).into(),
            workers: workers.collect(),
            rules: rule_reports(&self.facts.rulesets, &all),
        })
    }

    async fn conntrack(&self, cursor: Cursor) -> Result<(Vec<ConnView>, Option<Cursor>), BackendError> {
        let worker = cursor.worker;
        if worker >= self.lines.len() {
            return Ok((Vec::new(), None));
        }
        let request = Request::Conntrack { cursor: cursor.position, budget: PIECE };
        match self.ask(worker, request).await? {
            Reply::Conntrack { entries, next: Some(position) } => Ok((entries, Some(Cursor { worker, position }))),
            Reply::Conntrack { entries, next: None } => {
                let more = worker + 1 < self.lines.len();
                Ok((entries, more.then_some(Cursor { worker: worker + 1, position: 0 })))
            }
            Reply::Stats(_) => Err(BackendError(format!("worker {worker} answered another question"))),
        }
    }

    async fn rules_text(&self, family: Family) -> Result<String, BackendError> {
        let all = self.all_stats().await?;
        let index = family_index(family);
        Ok(rules::save(&self.facts.rulesets[index], Some(&merged(&all, family))))
    }
}

const fn family_index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// The counters of all workers together.
fn merged(all: &[WorkerStats], family: Family) -> RuleCounters {
    let of = |stats: &'_ WorkerStats| match family {
        Family::V4 => stats.rules_v4.clone(),
        Family::V6 => stats.rules_v6.clone(),
    };
    let all = all.iter().map(of);
    all.reduce(|mut sum, counters| {
        sum.add(&counters);
        sum
    })
    .expect("there is at least one worker")
}

fn rule_reports(rulesets: &[Arc<Ruleset>; 2], all: &[WorkerStats]) -> Vec<RuleReport> {
    let mut reports = Vec::new();
    for (family, number) in [(Family::V4, 4), (Family::V6, 6)] {
        let counters = merged(all, family);
        let ruleset = &rulesets[family_index(family)];
        let text = rules::save(ruleset, None);
        let mut lines = text.lines().filter(|line| line.starts_with("-A "));
        let report = |chain: &str, rule: usize, text: &str, counter: Option<rules::Counter>| {
            let counter = counter.unwrap_or_default();
            RuleReport {
                family: number,
                table: "filter".to_owned(),
                chain: chain.to_owned(),
                rule: rule as u32,
                text: text.to_owned(),
                matched: Traffic { packets: counter.packets, bytes: counter.bytes },
            }
        };
        for (at, chain) in ruleset.chains.iter().enumerate() {
            for rule in 0..chain.rules.len() {
                let counter = counters.rule(ruleset.counter_index(at, rule));
                reports.push(report(&chain.name, rule + 1, lines.next().unwrap_or_default(), counter));
            }
            if let Some(policy) = chain.policy {
                reports.push(report(&chain.name, 0, &policy_text(&chain.name, policy), counters.policy(at)));
            }
        }
    }
    reports
}

fn policy_text(chain: &str, policy: rules::Policy) -> String {
    match policy {
        rules::Policy::Accept => format!(":{chain} ACCEPT"),
        rules::Policy::Drop => format!(":{chain} DROP"),
    }
}

fn role(port: PortId) -> String {
    format!("{port:?}")
}

fn port_report(port: PortId, routing: &Routing) -> PortReport {
    let it = routing.port(port);
    PortReport {
        role: role(port),
        device: it.name.clone(),
        ifindex: it.ifindex,
        mac: it.mac.to_string(),
        mtu: u32::from(it.mtu),
        up: it.up,
    }
}

fn worker_report(stats: &WorkerStats, core: u32, routing: &Routing) -> WorkerReport {
    let counters = &stats.counters;
    let conntrack = &stats.conntrack;
    // A port's first queue is the one its worker sends by.
    let mut sends = [true; PortId::COUNT];
    let queues = stats.queues.iter().map(|queue| {
        let first = std::mem::take(&mut sends[queue.port.index()]);
        let port = &counters.ports[queue.port.index()];
        let transmitted = Traffic { packets: port.transmit_packets, bytes: port.transmit_bytes };
        queue_report(queue, if first { transmitted } else { Traffic::default() }, routing)
    });
    WorkerReport {
        core,
        queues: queues.collect(),
        forwarded: counters
            .ports
            .iter()
            .map(|port| port.transmit_packets)
            .sum::<u64>()
            .saturating_sub(counters.replies),
        punted: counters.punted,
        held: counters.held,
        waiting: stats.waiting as u64,
        replies: counters.replies,
        log_lost: stats.logs_lost,
        drops: Drops::from(&counters.drops),
        conntrack: ConntrackReport {
            entries: stats.entries as u64,
            limit: stats.entries_limit as u64,
            found: conntrack.found,
            invalid: conntrack.invalid,
            insert: conntrack.insert,
            insert_failed: conntrack.insert_failed,
            drop: conntrack.drop,
            early_drop: conntrack.early_drop,
            error: conntrack.error,
            expired: conntrack.expired,
        },
        bursts: stats.busy_bursts,
        idle_polls: stats.bursts - stats.busy_bursts,
        busy_ratio: if stats.bursts == 0 { 0.0 } else { stats.busy_bursts as f64 / stats.bursts as f64 },
        free_frames: stats.free_frames as u64,
    }
}

fn queue_report(stats: &QueueStats, transmitted: Traffic, routing: &Routing) -> QueueReport {
    let device = &stats.device;
    QueueReport {
        role: role(stats.port),
        device: routing.port(stats.port).name.clone(),
        queue: device.queue,
        received: Traffic { packets: stats.receive_packets, bytes: stats.receive_bytes },
        transmitted,
        wakeups: device.wakeups,
        xsk: XskReport {
            rx_dropped: device.rx_dropped,
            rx_invalid_descs: device.rx_invalid_descs,
            tx_invalid_descs: device.tx_invalid_descs,
            rx_ring_full: device.rx_ring_full,
            rx_fill_ring_empty_descs: device.rx_fill_ring_empty_descs,
            tx_ring_empty_descs: device.tx_ring_empty_descs,
        },
    }
}
