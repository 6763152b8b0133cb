//! The workers as the control socket and the metrics page see them: [`Workers`], over their mailboxes.
//!
//! Connection events are asked of the workers while a client listens, and of nobody else: [`Workers::serve_events`] fetches
//! them from the workers' rings and hands each to every listener, who is told how many it was too slow for.
//! One question is out per worker at a time; several clients take turns. A worker that does not answer within
//! [`PATIENCE`] (it is stuck, or its core is not its own) is reported to the client, never waited for.
//! What the rules have counted is [`InForce`]'s and the workers': what rules that are unchanged had counted before the
//! last reload, and what each worker has counted since.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rtrb::{Consumer, RingBuffer};
use tokio::sync::{Mutex, Notify, broadcast};
use tokio::time::MissedTickBehavior;

use super::api::{Backend, BackendError, EventReport, Told};
use super::change::{ChangeReport, ChangeWish};
use super::config::Config;
use super::explain::{self, Explanation, Question, Scene, Sketch};
use super::reload::{Refused, ReloadReport, Reloads, Wish};
use super::sources::Sources;
use super::stats::{
    Build, ConntrackReport, Drops, PortReport, QueueReport, RuleReport, SCHEMA, StatsReport, Traffic, WorkerReport,
    XskReport,
};
use super::sysctl;
use super::trace::{TraceNews, TraceStep, Tracing};
use crate::conntrack::{ConnCopy, ConnFilter, ConnView, Event, Settings, Tuple};
use crate::device::PortId;
use crate::rules::{self, Registry, RuleCounters, Ruleset, SetSummary};
use crate::snapshot::{Policy, Routing};
use crate::wire::Family;
use crate::worker::{EVENT_RING, Expecting, Line, QueueStats, Reply, Request, TableCounts, Walk, WorkerStats, since};
use crate::xdp::Steering;

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often its answer is looked for.
const LOOK: Duration = Duration::from_millis(1);
/// How often events are looked for.
const LOOK_FOR_EVENTS: Duration = Duration::from_millis(5);
/// Events that wait for a listener. A slower one loses the oldest.
const EVENTS_KEPT: usize = 16_384;

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// When it started; the workers' time begins there.
    pub start: Instant,
    /// Mode of the sockets.
    pub mode: String,
    /// `busy` or `adaptive`.
    pub poll: String,
    /// Core of each worker.
    pub cores: Vec<u32>,
}

/// What a reload changes. Whoever holds it knows that the workers count for these rules.
#[derive(Debug)]
pub(super) struct InForce {
    /// What they were read by.
    pub(super) config: Config,
    /// The rules, IPv4 and IPv6.
    pub(super) rulesets: [Arc<Ruleset>; 2],
    /// What they had counted when they were published.
    pub(super) counted: [RuleCounters; 2],
}

impl InForce {
    /// Rules that have counted nothing yet.
    fn new(config: Config, rulesets: [Arc<Ruleset>; 2]) -> InForce {
        let counted = rulesets.each_ref().map(|ruleset| RuleCounters::new(ruleset));
        InForce { config, rulesets, counted }
    }

    /// What has been counted in all, by what the workers have counted since.
    fn total(&self, all: &[WorkerStats], family: Family) -> RuleCounters {
        let mut total = self.counted[family_index(family)].clone();
        for stats in all {
            total.add(match family {
                Family::V4 => &stats.rules_v4,
                Family::V6 => &stats.rules_v6,
            });
        }
        total
    }
}

/// The workers; see the module's head.
#[derive(Debug)]
pub struct Workers {
    lines: Vec<Mutex<Line>>,
    facts: Facts,
    /// Those in force.
    pub(super) settings: Mutex<Settings>,
    listening: Mutex<Option<Listening>>,
    /// Told when somebody begins to listen: until then nobody looks for events.
    listened: Notify,
    tracing: Mutex<Option<Tracing>>,
    pub(super) policy: Arc<ArcSwap<Policy>>,
    pub(super) routing: Arc<ArcSwap<Routing>>,
    pub(super) in_force: Mutex<InForce>,
    /// Where rules and configuration are read; held while they are.
    pub(super) sources: Mutex<Sources>,
    /// What rules share by name. It outlives them, as long as some rule uses it.
    pub(super) registry: Arc<std::sync::Mutex<Registry>>,
    pub(super) reloads: Reloads,
    /// The XDP program's ear, where there is one.
    pub(super) steering: Option<Steering>,
}

/// What the workers read, and where it comes from.
#[derive(Debug)]
pub struct Published {
    /// The rules, compiled.
    pub policy: Arc<ArcSwap<Policy>>,
    /// The routes.
    pub routing: Arc<ArcSwap<Routing>>,
    /// Where rules and configuration were read.
    pub sources: Sources,
    /// The configuration.
    pub config: Config,
    /// The rules, IPv4 and IPv6.
    pub rulesets: [Arc<Ruleset>; 2],
    /// What they share by name.
    pub registry: Registry,
    /// The XDP program's ear, where there is one.
    pub steering: Option<Steering>,
}

/// While somebody listens to connection events.
#[derive(Debug)]
struct Listening {
    /// Of each worker.
    rings: Vec<Consumer<Event>>,
    /// What each worker had lost when last looked at.
    lost: Vec<u64>,
    listeners: broadcast::Sender<Told>,
}

impl Workers {
    /// Over these lines, one for each of `facts.cores`. The workers have `settings`, and the rules that `sources` gave with
    /// `config`.
    pub fn new(lines: Vec<Line>, facts: Facts, settings: Settings, published: Published) -> Workers {
        let Published { policy, routing, sources, config, rulesets, registry, steering } = published;
        Workers {
            lines: lines.into_iter().map(Mutex::new).collect(),
            facts,
            settings: Mutex::new(settings),
            listening: Mutex::new(None),
            listened: Notify::new(),
            tracing: Mutex::new(None),
            policy,
            routing,
            in_force: Mutex::new(InForce::new(config, rulesets)),
            sources: Mutex::new(sources),
            registry: Arc::new(registry.into()),
            reloads: Reloads::default(),
            steering,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lines.len()
    }

    /// Brings events from the workers to those who listen, until dropped.
    pub async fn serve_events(&self) {
        let mut tick = tokio::time::interval(LOOK_FOR_EVENTS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let mut listening = self.listening.lock().await;
            let Some(present) = &mut *listening else {
                drop(listening);
                self.listened.notified().await;
                continue;
            };
            self.fetch_events(present).await;
            if present.listeners.receiver_count() == 0 {
                *listening = None;
                self.stop_listening().await;
            }
        }
    }

    /// The connection that has this tuple, from whichever worker has it.
    async fn copy(&self, tuple: &Tuple) -> Result<Vec<ConnCopy>, BackendError> {
        let mut found = Vec::new();
        for worker in 0..self.lines.len() {
            match self.ask(worker, Request::Copy(*tuple)).await? {
                Reply::Copy(copy) => found.extend(copy.map(|copy| *copy)),
                _ => return Err(another(worker)),
            }
        }
        Ok(found)
    }

    async fn end_trace(&self) {
        for worker in 0..self.lines.len() {
            if let Err(error) = self.ask(worker, Request::Witness(None)).await {
                tracing::warn!("trace: {error}");
            }
        }
    }

    async fn stop_listening(&self) {
        for worker in 0..self.lines.len() {
            if let Err(error) = self.ask(worker, Request::Listen(None)).await {
                tracing::warn!("connection events: {error}");
            }
        }
    }

    async fn fetch_events(&self, present: &mut Listening) {
        for (worker, ring) in present.rings.iter_mut().enumerate() {
            for _ in 0..EVENT_RING {
                let Ok(event) = ring.pop() else { break };
                let report = EventReport {
                    kind: event.kind,
                    time: self.wall_time(event.at.as_ns()),
                    portid: (event.by != 0).then_some(event.by),
                    conn: self.dated(event.conn),
                };
                // An error means that nobody listens any more.
                let _ = present.listeners.send(Told::Event(report));
            }
            let lost = self.lines[worker].lock().await.events_lost();
            let before = std::mem::replace(&mut present.lost[worker], lost);
            if lost > before {
                let _ = present.listeners.send(Told::Lost(lost - before));
            }
        }
    }

    /// The workers' time.
    pub(super) fn now(&self) -> crate::time::Instant {
        since(self.facts.start)
    }

    /// A moment of the workers' time, in nanoseconds since 1970.
    fn wall_time(&self, ns: u64) -> u64 {
        let present = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        present.saturating_sub(since(self.facts.start).as_ns().saturating_sub(ns))
    }

    /// The same connection with its times since 1970.
    fn dated(&self, conn: ConnView) -> ConnView {
        ConnView {
            start: conn.start.map(|ns| self.wall_time(ns)),
            stop: conn.stop.map(|ns| self.wall_time(ns)),
            ..conn
        }
    }

    /// Puts settings in force in all workers, or in none: those in force `before` go again to every worker that was asked,
    /// also to one that has not answered and finds both when it does.
    pub(super) async fn put_in_force(&self, settings: &Settings, before: &Settings) -> Result<(), BackendError> {
        for worker in 0..self.lines.len() {
            let Err(error) = self.give_settings(worker, settings).await else { continue };
            for asked in 0..=worker {
                if let Err(again) = self.give_settings(asked, before).await {
                    tracing::error!("conntrack settings: worker {asked} may not have the former ones again: {again}");
                }
            }
            return Err(error);
        }
        Ok(())
    }

    async fn give_settings(&self, worker: usize, settings: &Settings) -> Result<(), BackendError> {
        match self.ask(worker, Request::Settings(Box::new(settings.clone()))).await? {
            Reply::Settings(outcome) => outcome.map_err(BackendError),
            _ => Err(another(worker)),
        }
    }

    pub(super) async fn ask(&self, worker: usize, request: Request) -> Result<Reply, BackendError> {
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
            _ => Err(another(worker)),
        }
    }

    /// How full each worker's connection table is.
    pub(super) async fn table_counts(&self) -> Result<Vec<TableCounts>, BackendError> {
        let mut all = Vec::with_capacity(self.lines.len());
        for worker in 0..self.lines.len() {
            match self.ask(worker, Request::TableCounts).await? {
                Reply::TableCounts(counts) => all.push(counts),
                _ => return Err(another(worker)),
            }
        }
        Ok(all)
    }

    /// The connections in `count` records of a worker's table, from number `position` on.
    pub(super) async fn entries_at(
        &self,
        worker: usize,
        position: usize,
        count: usize,
    ) -> Result<Vec<ConnView>, BackendError> {
        let (filter, entries) = (ConnFilter::default(), Vec::with_capacity(count));
        let walk = Walk { filter, delete_for: None, cursor: Some(position), budget: count, entries };
        Ok(self.walk(worker, Box::new(walk)).await?.entries)
    }

    async fn all_stats(&self) -> Result<Vec<WorkerStats>, BackendError> {
        let mut all = Vec::with_capacity(self.lines.len());
        for worker in 0..self.lines.len() {
            all.push(self.worker_stats(worker).await?);
        }
        Ok(all)
    }
}

pub(super) fn another(worker: usize) -> BackendError {
    BackendError(format!("worker {worker} answered another question"))
}

impl Backend for Workers {
    async fn stats(&self) -> Result<StatsReport, BackendError> {
        let in_force = self.in_force.lock().await;
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
            reloads_refused: self.reloads.refused(),
            routing_generation: routing.generation,
            ports: PortId::ALL.map(|port| port_report(port, &routing)).into(),
            workers: workers.collect(),
            rules: rule_reports(&in_force, &all),
        })
    }

    fn workers(&self) -> usize {
        self.lines.len()
    }

    async fn walk(&self, worker: usize, walk: Box<Walk>) -> Result<Box<Walk>, BackendError> {
        match self.ask(worker, Request::Walk(walk)).await? {
            Reply::Walk(mut walk) => {
                for conn in walk.entries.iter_mut().filter(|conn| conn.start.is_some()) {
                    *conn = self.dated(*conn);
                }
                Ok(walk)
            }
            _ => Err(another(worker)),
        }
    }

    async fn expecting(&self, worker: usize, walk: Box<Expecting>) -> Result<Box<Expecting>, BackendError> {
        match self.ask(worker, Request::Expecting(walk)).await? {
            Reply::Expecting(walk) => Ok(walk),
            _ => Err(another(worker)),
        }
    }

    async fn get(&self, tuple: &Tuple) -> Result<Option<ConnView>, BackendError> {
        for worker in 0..self.lines.len() {
            match self.ask(worker, Request::Get(*tuple)).await? {
                Reply::Get(None) => {}
                Reply::Get(Some(conn)) => return Ok(Some(self.dated(conn))),
                _ => return Err(another(worker)),
            }
        }
        Ok(None)
    }

    async fn events(&self) -> Result<broadcast::Receiver<Told>, BackendError> {
        let mut listening = self.listening.lock().await;
        if let Some(present) = &*listening {
            return Ok(present.listeners.subscribe());
        }
        let (listeners, receiver) = broadcast::channel(EVENTS_KEPT);
        let mut present = Listening { rings: Vec::new(), lost: Vec::new(), listeners };
        for worker in 0..self.lines.len() {
            let (producer, consumer) = RingBuffer::new(EVENT_RING);
            present.lost.push(self.lines[worker].lock().await.events_lost());
            let outcome = match self.ask(worker, Request::Listen(Some(producer))).await {
                Ok(Reply::Listening(_)) => Ok(()),
                Ok(_) => Err(another(worker)),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                // One that answers late must not go on for nobody.
                self.stop_listening().await;
                return Err(error);
            }
            present.rings.push(consumer);
        }
        *listening = Some(present);
        self.listened.notify_one();
        Ok(receiver)
    }

    async fn sysctl(&self, set: &BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>, BackendError> {
        let mut settings = self.settings.lock().await;
        if !set.is_empty() {
            let changes: Vec<_> = set.iter().map(|(name, value)| (name.clone(), *value)).collect();
            let wanted = sysctl::apply(&settings, &changes).map_err(BackendError)?;
            self.put_in_force(&wanted, &settings).await?;
            for (name, value) in &changes {
                tracing::info!("conntrack settings: {}{name} = {value}, by request", sysctl::PATH);
            }
            *settings = wanted;
        }
        let mut values: BTreeMap<_, _> = sysctl::values(&settings).into_iter().collect();
        let entries = self.all_stats().await?.iter().map(|stats| stats.entries as u64).sum();
        values.insert(sysctl::COUNT.to_owned(), entries);
        Ok(values)
    }

    async fn sets(&self) -> Result<Vec<SetSummary>, BackendError> {
        Ok(self.in_force.lock().await.rulesets[0].sets().summaries())
    }

    async fn sets_text(&self) -> Result<String, BackendError> {
        let (sets, now) = (self.in_force.lock().await.rulesets[0].sets().clone(), self.now());
        let written = tokio::task::spawn_blocking(move || sets.save(now));
        written.await.map_err(|error| BackendError(format!("the sets could not be written out: {error}")))
    }

    async fn explain(&self, question: &Question) -> Result<Explanation, BackendError> {
        let sketch: Sketch = question.packet.parse().map_err(BackendError)?;
        let mut connections = Vec::new();
        for tuple in explain::tuples_of(&sketch) {
            connections.extend(self.copy(&tuple).await?);
        }
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let in_force = self.in_force.lock().await;
        let mut scene = Scene {
            rulesets: in_force.rulesets.clone(),
            policy: self.policy.load_full(),
            routing: Routing::clone(&self.routing.load()),
            routes_assumed: false,
            settings: self.settings.lock().await.clone(),
            connections,
            now: since(self.facts.start),
            unix: (unix, 0),
        };
        drop(in_force);
        let (explanation, zoned) = explain::explain_or_ask(question, &scene).map_err(BackendError)?;
        let Some(tuple) = zoned else { return Ok(explanation) };
        let there = self.copy(&tuple).await?;
        if there.is_empty() {
            return Ok(explanation);
        }
        scene.connections.extend(there);
        explain::explain(question, &scene).map_err(BackendError)
    }

    async fn trace(&self, step: TraceStep) -> Result<TraceNews, BackendError> {
        let mut present = self.tracing.lock().await;
        match step {
            TraceStep::Begin(wish) => {
                if present.is_some() {
                    let message = "somebody traces already, and one at a time can";
                    return Err(BackendError(message.to_owned()));
                }
                let routing = self.routing.load_full();
                let names = PortId::ALL.map(|port| routing.port(port).name.as_str());
                let (tracing, tracers) = Tracing::new(&wish, names, self.lines.len()).map_err(BackendError)?;
                *present = Some(tracing);
                for (worker, tracer) in tracers.into_iter().enumerate() {
                    if let Err(error) = self.ask(worker, Request::Witness(Some(tracer))).await {
                        *present = None;
                        self.end_trace().await;
                        return Err(error);
                    }
                }
                Ok(TraceNews::default())
            }
            TraceStep::Fetch => {
                let routing = self.routing.load();
                let generation = self.policy.load().generation;
                let rulesets = &self.in_force.lock().await.rulesets;
                let date = |ns| self.wall_time(ns);
                Ok(present.as_mut().map(|it| it.fetch(&routing, rulesets, generation, &date)).unwrap_or_default())
            }
            TraceStep::End => {
                *present = None;
                self.end_trace().await;
                Ok(TraceNews::default())
            }
        }
    }

    async fn rules_text(&self, family: Family) -> Result<String, BackendError> {
        let in_force = self.in_force.lock().await;
        let all = self.all_stats().await?;
        Ok(rules::save(&in_force.rulesets[family_index(family)], Some(&in_force.total(&all, family))))
    }

    async fn reload(&self, wish: &Wish, by: u32) -> Result<ReloadReport, Refused> {
        self.reload_now(wish, by).await
    }

    async fn change(&self, wish: ChangeWish, by: u32) -> Result<ChangeReport, Refused> {
        self.change_now(wish, by).await
    }
}

pub(super) const fn family_index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

fn rule_reports(in_force: &InForce, all: &[WorkerStats]) -> Vec<RuleReport> {
    let mut reports = Vec::new();
    for (family, number) in [(Family::V4, 4), (Family::V6, 6)] {
        let counters = in_force.total(all, family);
        let ruleset = &in_force.rulesets[family_index(family)];
        let report = |chain: &rules::Chain, rule: usize, text: String, counter: Option<rules::Counter>| {
            let counter = counter.unwrap_or_default();
            RuleReport {
                family: number,
                table: chain.table.name().to_owned(),
                chain: chain.name.clone(),
                rule: rule as u32,
                text,
                matched: Traffic { packets: counter.packets, bytes: counter.bytes },
            }
        };
        let chains = ruleset.tables.iter().flat_map(|&table| ruleset.chains_of(table));
        for (at, chain) in chains {
            let first = ruleset.counter_index(at, 0);
            for (place, rule) in chain.rules.iter().enumerate() {
                let text = rules::rule_text(family, &chain.name, rule, &ruleset.chains);
                reports.push(report(chain, place + 1, text, counters.rule(first + place)));
            }
            if let Some(policy) = chain.policy {
                reports.push(report(chain, 0, policy_text(&chain.name, policy), counters.policy(at)));
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
        handed_over: counters.handed_over,
        taken_over: counters.taken_over,
        log_lost: stats.logs_lost,
        nflog_lost: stats.copies_lost,
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
            search_restart: conntrack.search_restart,
            clash_resolve: conntrack.clash_resolve,
            chaintoolong: conntrack.chaintoolong,
            expired: conntrack.expired,
            events_lost: stats.events_lost,
            expected: stats.expected as u64,
            expect_new: conntrack.expect_new,
            expect_create: conntrack.expect_create,
            expect_delete: conntrack.expect_delete,
        },
        bursts: stats.busy_bursts,
        idle_polls: stats.bursts - stats.busy_bursts,
        busy_ratio: if stats.bursts == 0 { 0.0 } else { stats.busy_bursts as f64 / stats.bursts as f64 },
        free_frames: stats.free_frames as u64,
        free_large_frames: stats.free_large_frames as u64,
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
        rx_no_large_frame: device.rx_no_large_frame,
        rx_too_long: device.rx_too_long,
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
