//! Other rules in the running daemon: what a client asks ([`Wish`]) and hears ([`ReloadReport`]), and how it is done.
//!
//! 1. The files are read again, checked and compiled beside the rules in force, on a thread of its own: forwarding, netlink and
//!    the log go on. A wrong file ends it here, with every wrong place, and nothing has changed.
//! 2. Every worker gets the ledger that it will count in. Then the policy is published, and each worker changes over between
//!    two bursts: pointers are exchanged, nothing is allocated, added up or freed there.
//! 3. The workers' old ledgers come back, and what they have counted for rules that stay is carried over. Only now the old
//!    policy is freed, here.
//! 4. Connections that the new rules would not let begin are ended, or all, or none: [`Established`].
//!
//! One reload at a time. It may take long in a large table; then it is step 4 that does, in bounded pieces. A reload of the sets
//! alone exchanges their contents instead of steps 1 to 3, and step 4 follows if it is asked for.
//!
//! What a *recheck* ends: a connection whose first packet would surely be refused by one of the chains now in force on a
//! forwarded packet's way (those of raw, mangle, filter and security), whatever is not known of that packet
//! ([`crate::rules::Judge`] says what is). The packet is thought to come in by the port that leads back to its source, and to
//! leave by the port that leads to its destination, by the routes in force; a connection that has no such way now is left
//! alone, since routes come back.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::api::{Backend, BackendError, PIECE};
use super::backend::{Workers, another, family_index};
use super::config::{Config, Track};
use super::host;
use super::sources::{self, Sources};
use super::startup::{self, Failure};
use super::sysctl;
use crate::conntrack::{ConnFilter, ConnView, CtStatus, Settings, Tuple};
use crate::datapath::Ledger;
use crate::route::Route;
use crate::rules::{
    self, Admits, ChainIndex, Diagnostics, FirstPacket, Judge, Previous, Registry, RuleCounters, RuleVector, Ruleset,
    SetTable,
};
use crate::snapshot::{Policy, Routing};
use crate::wire::{Addr, Family, proto};
use crate::worker::{Ending, Reply, Request, Walk};

/// Records of a worker's table looked at for a piece, at most. Just after a change of rules every burst is a long one, and a
/// piece takes as many bursts as it has times [`crate::worker::SLICE`] records: it must come back in time.
const BUDGET: usize = 4096;
/// Lines of a difference that a report has, at most.
const DIFFERENCES: usize = 1000;

/// What becomes of the connections there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Established {
    /// They stay, whatever the new rules say of new ones.
    Keep,
    /// Those stay that the new rules may let begin.
    #[default]
    Recheck,
    /// All are ended.
    Flush,
}

impl Established {
    /// The word for it on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Established::Keep => "keep",
            Established::Recheck => "recheck",
            Established::Flush => "flush",
        }
    }
}

impl FromStr for Established {
    type Err = String;

    fn from_str(text: &str) -> Result<Established, String> {
        let all = [Established::Keep, Established::Recheck, Established::Flush];
        all.into_iter().find(|it| it.name() == text).ok_or_else(|| "allowed: keep, recheck, flush".to_owned())
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// What becomes of the connections there are; without a word, what [`Wish::established`] says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub established: Option<Established>,
    /// Only say what would be.
    #[serde(default)]
    pub dry_run: bool,
    /// Only the sets; rules and all else stay as they are.
    #[serde(default)]
    pub sets: bool,
    /// Diagnostics are for a terminal.
    #[serde(default)]
    pub styled: bool,
}

impl Wish {
    /// What becomes of the connections there are. Without a word, other rules recheck them, and other sets leave them alone, as
    /// on Linux.
    pub fn established(&self) -> Established {
        let unsaid = if self.sets { Established::Keep } else { Established::Recheck };
        self.established.unwrap_or(unsaid)
    }
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A file is wrong: every wrong place.
    Files(String),
    /// The lines of a change are right, but the rules in force are not what they ask for.
    Rules(String),
    /// A worker does not answer.
    Workers(BackendError),
}

impl From<BackendError> for Refused {
    fn from(error: BackendError) -> Refused {
        Refused::Workers(error)
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Refused {
        Refused::Files(failure.to_string())
    }
}

/// One rules file against what was in force. Its JSON names stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// The file, as the operator named it.
    pub file: String,
    /// Rules in it.
    pub rules: usize,
    /// Rules that were not in force before.
    pub added: usize,
    /// Rules that are gone.
    pub removed: usize,
    /// Chains whose policy, or whose order of rules that stay, is another.
    pub altered: Vec<String>,
}

impl FileReport {
    /// Whether it means the same as before.
    pub fn is_unchanged(&self) -> bool {
        self.added == 0 && self.removed == 0 && self.altered.is_empty()
    }
}

/// The sets that were read. Its JSON names stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetsReport {
    /// The file, as the operator named it.
    pub file: String,
    /// Sets in it.
    pub sets: usize,
    /// Elements of all of them.
    pub entries: usize,
}

/// What a reload did, or would do. Its JSON names stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Number of the policy that is in force now (of the one before, for a dry run).
    pub generation: u64,
    /// Nothing was changed.
    pub dry_run: bool,
    /// The rules: IPv4, IPv6.
    pub files: Vec<FileReport>,
    /// The sets, where there is a file of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sets: Option<SetsReport>,
    /// Rules that are gone (`-A …`, after `- `) and new ones (after `+ `), for a dry run.
    pub differences: Vec<String>,
    /// What became of the connections there were.
    pub established: Established,
    /// Connections looked at.
    pub connections: u64,
    /// Connections ended.
    pub ended: u64,
    /// Why not all of them were looked at, if so.
    #[serde(default)]
    pub unfinished: Option<String>,
    /// Warnings about the files.
    pub warnings: String,
    /// What else the operator should know.
    pub notes: Vec<String>,
    /// Milliseconds for reading and checking the files.
    pub read_ms: f64,
    /// Milliseconds for compiling the rules.
    pub compile_ms: f64,
}

/// One line for the log, and the first for the operator.
impl fmt::Display for ReloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(SetsReport { file, sets, entries }), true) = (&self.sets, self.files.is_empty()) {
            let what = if self.dry_run { "could be in force (dry run)" } else { "in force" };
            let of = format!("{sets} set{} with {entries} elements", plural(*sets as u64));
            write!(f, "sets of {file} {what}: {of}; rules stay (policy {})", self.generation)?;
            return self.connections(f);
        }
        match self.dry_run {
            false => write!(f, "policy {} is in force: ", self.generation)?,
            true => write!(f, "policy {} stays in force (dry run): ", self.generation)?,
        }
        for (number, (file, version)) in self.files.iter().zip(["IPv4", "IPv6"]).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{} {version} rule{}", file.rules, plural(file.rules as u64))?;
            match file.is_unchanged() {
                true => f.write_str(" (unchanged)")?,
                false => write!(f, " ({} added, {} removed)", file.added, file.removed)?,
            }
        }
        if let Some(sets) = &self.sets {
            write!(f, ", {} set{}", sets.sets, plural(sets.sets as u64))?;
        }
        self.connections(f)
    }
}

impl ReloadReport {
    /// What became of the connections, after all else.
    fn connections(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let would = if self.dry_run { "would be ended" } else { "ended" };
        match (self.established, self.connections) {
            (Established::Keep, _) => f.write_str("; connections stay (keep)"),
            (how, count) => {
                let them = if count == 1 { "connection" } else { "connections" };
                write!(f, "; {} of {count} {them} {would} ({})", self.ended, how.name())
            }
        }
    }
}

pub(super) const fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// The wish for a reload, and how many were refused.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    wanted: Notify,
    refused: AtomicU64,
}

impl Reloads {
    /// How many changed nothing.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// What was read and compiled, and is not in force yet.
pub(super) struct Built {
    pub(super) config: Config,
    pub(super) rulesets: [Arc<Ruleset>; 2],
    /// By rule: the number of the one in force whose counts go on in it.
    pub(super) counted: [Vec<Option<usize>>; 2],
    /// Built-in chains whose policy counts from zero.
    pub(super) zeroed: [Vec<ChainIndex>; 2],
    pub(super) policy: Arc<Policy>,
    pub(super) registry: Registry,
    pub(super) ledgers: Vec<Ledger>,
}

/// What is in force while others are built.
pub(super) struct Before {
    pub(super) config: Config,
    pub(super) rulesets: [Arc<Ruleset>; 2],
    pub(super) policy: Arc<Policy>,
}

/// The rules compiled, to be the first in force.
pub fn compile(rulesets: &[Arc<Ruleset>; 2], track: Track, registry: &mut Registry) -> Policy {
    let compiled = |ruleset: &Arc<Ruleset>| tracking(RuleVector::compile_after(ruleset, registry, None), track);
    let [v4, v6] = rulesets.each_ref().map(compiled);
    Policy { generation: 1, v4, v6 }
}

fn tracking(vector: RuleVector, track: Track) -> RuleVector {
    match track {
        Track::Wanted => vector,
        Track::Always => vector.always_tracking(),
    }
}

/// What is to be said of connections that are not tracked.
pub(super) fn untracked(policy: &Policy) -> Option<String> {
    let of = |vector: &RuleVector, version| (!vector.wants_conntrack()).then_some(version);
    let versions: Vec<&str> = [of(&policy.v4, "IPv4"), of(&policy.v6, "IPv6")].into_iter().flatten().collect();
    if versions.is_empty() {
        return None;
    }
    let versions = versions.join(" and ");
    Some(format!(
        "{versions} connections are not tracked: no {versions} rule needs them, and `xrouter conntrack -L` will not show \
         them. For connections that are tracked all the same: --track always"
    ))
}

/// The rules compiled, to follow others: rules that stay keep what they have counted and remembered.
pub(super) fn compile_after(
    rulesets: &[Arc<Ruleset>; 2],
    track: Track,
    registry: &mut Registry,
    policy: &Policy,
    pairs: &[Vec<Option<usize>>; 2],
) -> Policy {
    let mut compiled = |at: usize, vector| {
        let previous = Previous { vector, unchanged: &pairs[at] };
        tracking(RuleVector::compile_after(&rulesets[at], registry, Some(previous)), track)
    };
    Policy { generation: policy.generation + 1, v4: compiled(0, &policy.v4), v6: compiled(1, &policy.v6) }
}

/// Steps 1 and what can be made of it without a worker.
fn build(
    sources: &Sources,
    before: &Before,
    registry: &std::sync::Mutex<Registry>,
    workers: usize,
    at: crate::time::Instant,
    wish: &Wish,
) -> Result<(Built, ReloadReport), Failure> {
    let start = Instant::now();
    let config = sources.config()?;
    // The interfaces cannot change, whatever the file says now.
    let names = Config { lan: before.config.lan.clone(), wan: before.config.wan.clone(), ..config.clone() };
    let sets = Arc::new(sources::sets(&config, before.rulesets[0].sets(), at, wish.styled)?);
    let mut rulesets = sources::rulesets(&names, &sets, wish.styled)?;
    rulesets.iter_mut().zip(&before.rulesets).for_each(|(new, old)| new.take_back_changes(old));
    let rulesets = rulesets.map(Arc::new);
    let read = start.elapsed();
    let start = Instant::now();
    let pairs = [0, 1].map(|at| rules::unchanged(&before.rulesets[at], &rulesets[at]));
    let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner).successor();
    // A dry run makes nothing: what rules share by name would notice.
    let policy = match wish.dry_run {
        true => Arc::clone(&before.policy),
        false => Arc::new(compile_after(&rulesets, config.track, &mut registry, &before.policy, &pairs)),
    };
    let compiled = start.elapsed();
    let ledgers = (0..workers).map(|_| Ledger::new(&policy)).collect();
    let mut report = ReloadReport {
        generation: if wish.dry_run { before.policy.generation } else { policy.generation },
        dry_run: wish.dry_run,
        established: wish.established(),
        sets: config.sets.as_ref().map(|file| sets_report(&file.display().to_string(), &sets)),
        read_ms: milliseconds(read),
        compile_ms: milliseconds(compiled),
        ..ReloadReport::default()
    };
    for (at, ruleset) in rulesets.iter().enumerate() {
        let old = &before.rulesets[at];
        report.files.push(file_report(old, ruleset, &pairs[at]));
        if wish.dry_run {
            differences(old, ruleset, &pairs[at], &mut report.differences);
        }
        if !ruleset.warnings().is_empty() {
            report.warnings += &sources::shown(ruleset.warnings(), wish.styled);
            report.warnings += "\n";
        }
    }
    for name in sources::needs_restart(&before.config, &config) {
        report
            .notes
            .push(format!("`{name}` is another in the configuration now; that needs a restart, and stays as it is"));
    }
    // The place of copies stays until a restart.
    report.notes.extend(sources::lacking(&before.config, [&rulesets[0], &rulesets[1]]));
    let tracked = |policy: &Policy| [policy.v4.wants_conntrack(), policy.v6.wants_conntrack()];
    if tracked(&before.policy) != tracked(&policy) {
        report.notes.extend(untracked(&policy));
    }
    let zeroed = Default::default();
    Ok((Built { config, rulesets, counted: pairs, zeroed, policy, registry, ledgers }, report))
}

fn sets_report(file: &str, sets: &SetTable) -> SetsReport {
    let all = sets.summaries();
    SetsReport { file: file.to_owned(), sets: all.len(), entries: all.iter().map(|set| set.entries).sum() }
}

/// Other contents for the sets in force, while rules are tested against them; for a dry run, the sets that would be.
fn change_sets(
    sources: &Sources,
    before: &Before,
    at: crate::time::Instant,
    wish: &Wish,
) -> Result<(ReloadReport, Option<SetTable>), Failure> {
    let start = Instant::now();
    let config = sources.config()?;
    let Some(file) = &config.sets else {
        let what = "there is no file of sets: xrouter was started without --sets, and the configuration names none";
        return Err(Failure::Usage(format!("{what}. Name one by `sets = \"FILE\"`, and reload all")));
    };
    let (name, text) = sources::sets_text(&config)?;
    let refused = |wrong: Diagnostics| Failure::Report(sources::shown(&wrong, wish.styled));
    let sets = before.rulesets[0].sets();
    let next = match wish.dry_run {
        true => Some(sets.dry_load(&name, &text, at).map_err(refused)?),
        false => {
            sets.load(&name, &text, at).map_err(refused)?;
            None
        }
    };
    let report = ReloadReport {
        generation: before.policy.generation,
        dry_run: wish.dry_run,
        sets: Some(sets_report(&file.display().to_string(), next.as_ref().unwrap_or(sets))),
        established: wish.established(),
        read_ms: milliseconds(start.elapsed()),
        ..ReloadReport::default()
    };
    Ok((report, next))
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn file_report(old: &Ruleset, new: &Ruleset, pairs: &[Option<usize>]) -> FileReport {
    let stay = pairs.iter().flatten().count();
    let mut altered = Vec::new();
    let mut first = 0;
    for chain in &new.chains {
        let own = &pairs[first..first + chain.rules.len()];
        first += chain.rules.len();
        let before = old.chains.iter().find(|known| known.name == chain.name && known.table == chain.table);
        if before.is_some_and(|before| before.policy != chain.policy) || !own.iter().flatten().is_sorted() {
            altered.push(chain.name.clone());
        }
    }
    FileReport {
        file: new.file.clone(),
        rules: pairs.len(),
        added: pairs.len() - stay,
        removed: old.rule_count() - stay,
        altered,
    }
}

fn differences(old: &Ruleset, new: &Ruleset, pairs: &[Option<usize>], lines: &mut Vec<String>) {
    let mut gone = vec![true; old.rule_count()];
    pairs.iter().flatten().for_each(|&number| gone[number] = false);
    let texts = |ruleset: &Ruleset| {
        rules::rule_texts(ruleset).into_iter().map(|(table, text)| match table {
            "filter" => text,
            table => format!("-t {table} {text}"),
        })
    };
    let removed = texts(old).zip(gone).filter(|(_, gone)| *gone).map(|(text, _)| format!("- {text}"));
    let added = texts(new).zip(pairs).filter(|(_, pair)| pair.is_none()).map(|(text, _)| format!("+ {text}"));
    let room = DIFFERENCES.saturating_sub(lines.len());
    let mut all = removed.chain(added);
    lines.extend(all.by_ref().take(room));
    let beyond = all.count();
    if beyond > 0 {
        lines.push(format!("… and {beyond} more"));
    }
}

/// The packet that began this connection, if there is a way for it now.
fn first_packet(conn: &ConnView, routing: &Routing) -> Option<FirstPacket> {
    let family = if conn.family == Family::V4 as u8 { Family::V4 } else { Family::V6 };
    let addr = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => Addr::from(ip),
        IpAddr::V6(ip) => Addr::from_v6(ip.to_bits()),
    };
    let is_icmp = matches!((family, conn.proto), (Family::V4, proto::ICMP) | (Family::V6, proto::ICMPV6));
    let tuple = Tuple {
        src: addr(conn.original.src),
        // After translation; the source is translated later.
        dst: addr(conn.reply.src),
        sport: conn.original.sport,
        dport: if is_icmp { conn.original.dport } else { conn.reply.sport },
        proto: conn.proto,
        family,
        zone: conn.original.zone,
    };
    let port_to = |from: Addr, to: Addr| match routing.lookup(family, from, to) {
        Route::Forward { port, .. } => Some(port),
        _ => None,
    };
    Some(FirstPacket {
        tuple,
        original: identity(conn).0,
        in_port: port_to(tuple.dst, tuple.src)?,
        out_port: port_to(tuple.src, tuple.dst)?,
        expected: conn.has(CtStatus::EXPECTED),
        dnat: conn.has(CtStatus::DST_NAT),
    })
}

/// How a connection is found again: its original tuple and its identifier.
fn identity(conn: &ConnView) -> (Tuple, u32) {
    let family = if conn.family == Family::V4 as u8 { Family::V4 } else { Family::V6 };
    let of = &conn.original;
    let addr = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => Addr::from(ip),
        IpAddr::V6(ip) => Addr::from_v6(ip.to_bits()),
    };
    let tuple = Tuple {
        src: addr(of.src),
        dst: addr(of.dst),
        sport: of.sport,
        dport: of.dport,
        proto: conn.proto,
        family,
        zone: of.zone,
    };
    (tuple, conn.id)
}

/// Those of `conns` that the rules would not let begin.
fn refused_by(judges: &[Judge; 2], routing: &Routing, conns: &[ConnView]) -> Vec<(Tuple, u32)> {
    let is_refused = |conn: &&ConnView| {
        let Some(first) = first_packet(conn, routing) else { return false };
        judges[family_index(first.tuple.family)].admits(&first) == Admits::No
    };
    conns.iter().filter(is_refused).map(identity).collect()
}

impl Workers {
    /// Does what a client wishes, and tells the log and systemd.
    pub(super) async fn reload_now(&self, wish: &Wish, by: u32) -> Result<ReloadReport, Refused> {
        let sources = self.sources.lock().await;
        if wish.dry_run {
            return self.reload_with(&sources, wish, by).await;
        }
        startup::announce_reloading();
        let outcome = self.reload_with(&sources, wish, by).await;
        self.reloads.refused.fetch_add(u64::from(outcome.is_err()), Ordering::Relaxed);
        match &outcome {
            Ok(report) => {
                tracing::info!("reload: {report}; read in {} ms, compiled in {} ms", report.read_ms, report.compile_ms);
                report.notes.iter().chain(&report.unfinished).for_each(|note| tracing::warn!("reload: {note}"));
            }
            Err(Refused::Files(_) | Refused::Rules(_)) => {
                tracing::error!("reload: refused, and the rules are as before: see the report")
            }
            Err(Refused::Workers(error)) => tracing::error!("reload: {error}"),
        }
        startup::announce_reloaded(outcome.is_ok());
        outcome
    }

    /// Somebody without a line to us wants a reload: a signal.
    pub(super) fn want_reload(&self) {
        self.reloads.wanted.notify_one();
    }

    /// Does what [`Workers::want_reload`] asks for, until dropped.
    pub(super) async fn serve_reloads(&self) {
        loop {
            self.reloads.wanted.notified().await;
            match self.reload_now(&Wish::default(), std::process::id()).await {
                Ok(report) if !report.warnings.is_empty() => tracing::warn!("reload:\n{}", report.warnings.trim_end()),
                // Nobody else hears it.
                Err(Refused::Files(report) | Refused::Rules(report)) => tracing::error!("reload:\n{report}"),
                Ok(_) | Err(Refused::Workers(_)) => {}
            }
        }
    }

    async fn reload_with(&self, sources: &Sources, wish: &Wish, by: u32) -> Result<ReloadReport, Refused> {
        let before = self.before().await;
        let (sources, registry, workers, wish) = (sources.clone(), self.registry.clone(), self.workers(), *wish);
        let (at, lost) = (self.now(), |error| BackendError(format!("the rules could not be compiled: {error}")));
        if wish.sets {
            let rulesets = before.rulesets.clone();
            let made = tokio::task::spawn_blocking(move || change_sets(&sources, &before, at, &wish));
            let (report, next) = made.await.map_err(lost)??;
            let judge = |ruleset: &Arc<Ruleset>| match &next {
                Some(next) => Judge::with_sets(ruleset.clone(), next),
                None => Judge::new(ruleset.clone()),
            };
            return Ok(self.end_connections(|| rulesets.each_ref().map(judge), report, by).await);
        }
        let made = tokio::task::spawn_blocking(move || build(&sources, &before, &registry, workers, at, &wish));
        let (built, mut report) = made.await.map_err(lost)??;
        let rulesets = built.rulesets.clone();
        self.check_needs(&rulesets).await?;
        if !wish.dry_run {
            let former = self.change_settings(&built.config, &mut report.notes).await?;
            let (config, of_host) = (built.config.clone(), rulesets.clone());
            let applied = tokio::task::spawn_blocking(move || host::apply(&config, [&of_host[0], &of_host[1]]));
            if let Err(failure) = applied.await.map_err(lost)? {
                self.put_back(former).await;
                return Err(failure.into());
            }
            self.publish(built).await?;
        }
        Ok(self.end_connections(|| rulesets.map(Judge::new), report, by).await)
    }

    /// Step 4, as the report says it is to be.
    async fn end_connections(
        &self,
        judges: impl FnOnce() -> [Judge; 2],
        mut report: ReloadReport,
        by: u32,
    ) -> ReloadReport {
        let outcome = match report.established {
            Established::Keep => Ok(()),
            Established::Recheck => self.recheck(judges(), &mut report, by).await,
            Established::Flush => self.flush(&mut report, by).await,
        };
        // The new rules are in force all the same.
        report.unfinished = outcome.err().map(|error| format!("not every connection was looked at: {error}"));
        report
    }

    /// What is in force.
    pub(super) async fn before(&self) -> Before {
        let in_force = self.in_force.lock().await;
        let (config, rulesets) = (in_force.config.clone(), in_force.rulesets.clone());
        Before { config, rulesets, policy: self.policy.load_full() }
    }

    /// Refuses rules that want packets and bytes counted where the memory for it was not taken at start, and those that want
    /// one worker where there are several.
    pub(super) async fn check_needs(&self, rulesets: &[Arc<Ruleset>; 2]) -> Result<(), Refused> {
        if self.count() > 1
            && let Some(rule) = rulesets.iter().find_map(|ruleset| ruleset.wants_one_worker())
        {
            return Err(Refused::Files(format!(
                "error: this rule needs a restart with --workers 1, since what it gives out belongs to all connections of a \
                 client, wherever they have their home: {rule}"
            )));
        }
        let wanted = rulesets.iter().any(|ruleset| ruleset.wants_accounting());
        match wanted && !self.settings.lock().await.acct {
            false => Ok(()),
            true => Err(Refused::Files(
                "error: `-m connbytes` wants nf_conntrack_acct, whose memory is taken at start: these rules need a restart"
                    .to_owned(),
            )),
        }
    }

    /// Puts conntrack settings in force that the configuration has changed; gives those before, if they were others.
    async fn change_settings(&self, config: &Config, notes: &mut Vec<String>) -> Result<Option<Settings>, Refused> {
        let changes = sources::changed_settings(&self.in_force.lock().await.config, config);
        if changes.is_empty() {
            return Ok(None);
        }
        let mut settings = self.settings.lock().await;
        let wrong = |error: String| Refused::Files(format!("error: [conntrack] {error}"));
        let wanted = sysctl::apply(&settings, &changes).map_err(wrong)?;
        self.put_in_force(&wanted, &settings).await.map_err(|error| wrong(error.0))?;
        for (name, value) in &changes {
            tracing::info!("conntrack settings: {}{name} = {value}, by the configuration", sysctl::PATH);
            notes.push(format!("{}{name} = {value}", sysctl::PATH));
        }
        Ok(Some(std::mem::replace(&mut *settings, wanted)))
    }

    /// The settings before are in force again, since the rest of the reload was refused.
    async fn put_back(&self, former: Option<Settings>) {
        let Some(former) = former else { return };
        let mut settings = self.settings.lock().await;
        match self.put_in_force(&former, &settings).await {
            Ok(()) => {
                tracing::info!("conntrack settings: as before");
                *settings = former;
            }
            Err(error) => tracing::error!("conntrack settings: they may not be what they were: {error}"),
        }
    }

    /// Steps 2 and 3.
    pub(super) async fn publish(&self, built: Built) -> Result<(), Refused> {
        let mut in_force = self.in_force.lock().await;
        for (worker, ledger) in built.ledgers.into_iter().enumerate() {
            match self.ask(worker, Request::Prepare(Box::new(ledger))).await? {
                Reply::Prepared(_) => {}
                _ => return Err(another(worker).into()),
            }
        }
        // Before any rule can translate, so that no packet that may have to be is steered past the worker.
        if let Some(steering) = &self.steering {
            steering.expect_translations(built.rulesets[0].translates(), built.rulesets[1].translates());
        }
        let old = self.policy.swap(built.policy);
        let mut counted =
            std::mem::replace(&mut in_force.counted, built.rulesets.each_ref().map(|it| RuleCounters::new(it)));
        for worker in 0..self.workers() {
            match self.ask(worker, Request::LastLedger).await {
                Ok(Reply::LastLedger(Some(ledger))) if ledger.generation() == old.generation => {
                    for family in [Family::V4, Family::V6] {
                        counted[family_index(family)].add(&ledger.counters(family));
                    }
                }
                Ok(_) => tracing::error!("reload: worker {worker} gave the counts of another policy; they are lost"),
                Err(error) => tracing::error!("reload: what the rules counted until now is lost in part: {error}"),
            }
        }
        for at in [0, 1] {
            let (old, new) = (&in_force.rulesets[at], &built.rulesets[at]);
            let mut carried = counted[at].carry(old, new, &built.counted[at]);
            carried.zero_policies(&built.zeroed[at]);
            in_force.counted[at] = carried;
        }
        (in_force.config, in_force.rulesets) = (built.config, built.rulesets);
        let mut registry = built.registry;
        registry.forget_unused();
        *self.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
        // No worker reads it any more, so it is here that its memory is given back.
        drop(old);
        Ok(())
    }

    /// Ends the connections that the rules would not let begin; only counts them in a dry run.
    async fn recheck(&self, judges: [Judge; 2], report: &mut ReloadReport, by: u32) -> Result<(), BackendError> {
        let judges = Arc::new(judges);
        let entries = Vec::with_capacity(PIECE);
        let filter = ConnFilter::default();
        let mut walk = Box::new(Walk { filter, delete_for: None, cursor: None, budget: 0, entries });
        for worker in 0..self.workers() {
            walk.cursor = Some(0);
            while walk.cursor.is_some() {
                walk.budget = BUDGET;
                walk.entries.clear();
                walk = self.walk(worker, walk).await?;
                report.connections += walk.entries.len() as u64;
                let (judges, routing) = (judges.clone(), self.routing.load_full());
                let (walked, which) = tokio::task::spawn_blocking(move || {
                    let which = refused_by(&judges, &routing, &walk.entries);
                    (walk, which)
                })
                .await
                .map_err(|error| BackendError(format!("the connections could not be judged: {error}")))?;
                walk = walked;
                report.ended += match report.dry_run {
                    true => which.len() as u64,
                    false => self.end(worker, which, by).await?,
                };
            }
        }
        Ok(())
    }

    async fn end(&self, worker: usize, which: Vec<(Tuple, u32)>, by: u32) -> Result<u64, BackendError> {
        if which.is_empty() {
            return Ok(0);
        }
        let ending = Box::new(Ending { which, by, done: 0, ended: 0 });
        match self.ask(worker, Request::End(ending)).await? {
            Reply::End(ending) => Ok(ending.ended as u64),
            _ => Err(another(worker)),
        }
    }

    async fn flush(&self, report: &mut ReloadReport, by: u32) -> Result<(), BackendError> {
        let delete_for = (!report.dry_run).then_some(by);
        let entries = Vec::with_capacity(PIECE);
        let filter = ConnFilter::default();
        let mut walk = Box::new(Walk { filter, delete_for, cursor: None, budget: 0, entries });
        for worker in 0..self.workers() {
            walk.cursor = Some(0);
            while walk.cursor.is_some() {
                walk.budget = BUDGET;
                walk.entries.clear();
                walk = self.walk(worker, walk).await?;
                report.connections += walk.entries.len() as u64;
            }
        }
        report.ended = report.connections;
        Ok(())
    }
}
