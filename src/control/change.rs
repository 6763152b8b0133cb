//! The running daemon's rules changed line by line, as `iptables` and `iptables-restore` change the kernel's: what a client asks
//! ([`ChangeWish`]) and hears ([`ChangeReport`]), and how it is done.
//!
//! As a reload (see [`super::reload`]), but for the beginning: no file is read. The text of the request says what is other than in
//! the rules in force, and only that is understood, checked and compiled. All its lines come into force at once, between two
//! bursts, or none of them. Connections stay, and are judged by the new rules packet by packet, as on Linux. The files know
//! nothing of it: the next reload, and the next start, bring their rules back.
//!
//! One request, or reload, at a time. What one costs is mostly by the rules there are and not by its lines (`bench/changes.rs`), so
//! many changes belong in one request.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::api::{Backend, BackendError};
use super::backend::{Workers, family_index};
use super::config::{Config, HostChains};
use super::host;
use super::reload::{Before, Built, Refused, compile_after, milliseconds, plural, untracked};
use super::sources;
use crate::datapath::Ledger;
use crate::rules::{self, Changed, Registry, Ruleset};
use crate::wire::Family;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeWish {
    /// 4 or 6.
    #[serde(default = "super::api::four")]
    pub family: u8,
    /// What messages call the text.
    #[serde(default = "request")]
    pub name: String,
    /// Changes, as `iptables-restore` reads them: `*TABLE`, lines of commands, `COMMIT`.
    pub text: String,
    /// The tables named begin empty; without, as they are.
    #[serde(default)]
    pub flush: bool,
    /// Only say whether it can be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Diagnostics are for a terminal.
    #[serde(default)]
    pub styled: bool,
}

fn request() -> String {
    "the request".to_owned()
}

/// What a change did, or would do. Its JSON names stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// Number of the policy that is in force now (of the one before, for a dry run).
    pub generation: u64,
    /// Nothing was changed.
    pub dry_run: bool,
    /// 4 or 6.
    pub family: u8,
    /// Rules of this IP version in force.
    pub rules: usize,
    /// Rules that were not in force before.
    pub added: usize,
    /// Rules that are gone.
    pub removed: usize,
    /// What else the operator should know.
    pub notes: Vec<String>,
    /// Milliseconds for reading and checking.
    pub read_ms: f64,
    /// Milliseconds for compiling the rules.
    pub compile_ms: f64,
}

/// One line for the log, and for the operator.
impl fmt::Display for ChangeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dry_run {
            false => write!(f, "policy {} is in force: ", self.generation)?,
            true => write!(f, "policy {} stays in force (dry run): ", self.generation)?,
        }
        let (count, version) = (self.rules, self.family);
        write!(f, "{count} IPv{version} rule{} ", plural(count as u64))?;
        write!(f, "({} added, {} removed); connections stay", self.added, self.removed)
    }
}

/// What became of a request.
struct Made {
    rulesets: [Arc<Ruleset>; 2],
    /// Nothing in a dry run.
    built: Option<Built>,
    report: ChangeReport,
}

/// Reads, checks and compiles; nothing is in force yet.
fn build(
    wish: &ChangeWish,
    before: &Before,
    registry: &std::sync::Mutex<Registry>,
    workers: usize,
) -> Result<Made, Refused> {
    let family = if wish.family == 6 { Family::V6 } else { Family::V4 };
    let (at, other) = (family_index(family), 1 - family_index(family));
    let start = Instant::now();
    let changed =
        rules::change(&before.rulesets[at], &wish.name, &wish.text, wish.flush).map_err(|wrong| {
            match wrong.are_about_rules() {
                true => Refused::Rules(sources::shown(&wrong, wish.styled)),
                false => Refused::Files(sources::shown(&wrong, wish.styled)),
            }
        })?;
    let read = start.elapsed();
    let stay = changed.kept.iter().flatten().count();
    let mut report = ChangeReport {
        generation: before.policy.generation,
        dry_run: wish.dry_run,
        family: wish.family,
        rules: changed.kept.len(),
        added: changed.kept.len() - stay,
        removed: before.rulesets[at].rule_count() - stay,
        read_ms: milliseconds(read),
        ..ChangeReport::default()
    };
    report.notes.extend(left_to_the_host(&changed, &before.config, family));
    report.notes.extend(redirected(&changed, &before.config, family));
    let mut rulesets = before.rulesets.clone();
    rulesets[at] = Arc::new(changed.ruleset);
    report.notes.extend(sources::lacking(&before.config, [&rulesets[0], &rulesets[1]]));
    if wish.dry_run {
        return Ok(Made { rulesets, built: None, report });
    }
    let start = Instant::now();
    let same = (0..rulesets[other].rule_count()).map(Some).collect::<Vec<_>>();
    let mut kept = [same.clone(), same];
    kept[at] = changed.kept;
    let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner).successor();
    let policy = compile_after(&rulesets, before.config.track, &mut registry, &before.policy, &kept);
    report.compile_ms = milliseconds(start.elapsed());
    report.generation = policy.generation;
    let tracked = |policy: &crate::snapshot::Policy| [policy.v4.wants_conntrack(), policy.v6.wants_conntrack()];
    if tracked(&before.policy) != tracked(&policy) {
        report.notes.extend(untracked(&policy));
    }
    kept[at] = changed.counted;
    let mut zeroed = [Vec::new(), Vec::new()];
    zeroed[at] = changed.zeroed;
    let ledgers = (0..workers).map(|_| Ledger::new(&policy)).collect();
    let (config, policy) = (before.config.clone(), Arc::new(policy));
    let built = Built { config, rulesets: rulesets.clone(), counted: kept, zeroed, policy, registry, ledgers };
    Ok(Made { rulesets, built: Some(built), report })
}

/// What is to be said of changes to chains that are the host's.
fn left_to_the_host(changed: &Changed, config: &Config, family: Family) -> Option<String> {
    let chains = changed.of_the_host();
    if chains.is_empty() || host::has_rules(config, family) {
        return None;
    }
    let chains = chains.join(", ");
    let how = match config.host_chains {
        HostChains::Report => "start with `--host-chains apply`, or use the host's own iptables",
        HostChains::Apply => {
            "the built-in policy is never given to the host: use its own iptables, or name a rules file"
        }
    };
    Some(format!("{chains}: the host's own packets come here, and the router does not filter those; {how}"))
}

/// What is to be said of new rules that lead packets to the host, where the kernel does not get them.
fn redirected(changed: &Changed, config: &Config, family: Family) -> Option<String> {
    let new = changed.ruleset.redirected().find(|it| changed.kept[it.number].is_none())?;
    if host::has_rules(config, family) {
        return None;
    }
    let how = match config.host_chains {
        HostChains::Report => "start with `--host-chains apply`",
        HostChains::Apply => "the built-in policy is never given to the host: name a rules file",
    };
    Some(format!("REDIRECT in {}: such packets are dropped, since the kernel does not have the rule; {how}", new.chain))
}

impl Workers {
    /// Does what process `by` wishes, and tells the log.
    pub(super) async fn change_now(&self, wish: ChangeWish, by: u32) -> Result<ChangeReport, Refused> {
        // Nobody reads other rules meanwhile.
        let _alone = self.sources.lock().await;
        let before = self.before().await;
        let (registry, workers) = (self.registry.clone(), self.workers());
        let lost = |error| BackendError(format!("the rules could not be compiled: {error}"));
        let made = tokio::task::spawn_blocking(move || build(&wish, &before, &registry, workers));
        let Made { rulesets, built, report } = made.await.map_err(lost)??;
        self.check_needs(&rulesets).await?;
        let Some(built) = built else { return Ok(report) };
        let config = built.config.clone();
        let applied = tokio::task::spawn_blocking(move || host::apply(&config, [&rulesets[0], &rulesets[1]]));
        applied.await.map_err(lost)??;
        self.publish(built).await?;
        tracing::info!("rules changed by process {by}: {report}");
        report.notes.iter().for_each(|note| tracing::warn!("rules changed: {note}"));
        Ok(report)
    }
}
