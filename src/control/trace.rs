//! What becomes of packets as they come: `xrouter trace`, over a [`Tracer`] in each worker.
//!
//! Life cycle: a client wishes ([`TraceWish`]), the workers get a witness each, and their records are fetched every
//! [`FETCH`] and told as [`TraceReport`]s, until the client goes; then the workers have none again. One client at a time.
//! Every place on the way is bounded (packets in a second, each worker's ring, the rules of a packet), and what is beyond is
//! counted and told.

mod filter;

use core::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rtrb::{Consumer, RingBuffer};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use super::api::{Backend, Reader, Reply, Writer, send};
use super::explain::{VerdictReport, describe, message_name};
use crate::datapath::{Answered, Exit, Witness};
use crate::device::PortId;
use crate::route::Neighbour;
use crate::rules::{BUILTIN, Decision, Policy, Ruleset, rule_text};
use crate::snapshot::Routing;
use crate::verdict::DropReason;
use crate::wire::Family;
use crate::worker::{ChainRecord, Losses, TraceRecord, Tracer};

pub use filter::{GRAMMAR, parse};

/// Records that wait in each worker's ring.
const RING: usize = 1024;
/// How often they are fetched.
const FETCH: Duration = Duration::from_millis(20);
/// Packets in a second that are followed unless a client says otherwise.
pub const RATE_DEFAULT: u32 = 1000;
/// Packets in a second that may be followed.
pub const RATE_MAX: u32 = 20_000;

/// What a client wants to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceWish {
    /// Which packets, in the words of [`GRAMMAR`]; every one without a word.
    #[serde(default)]
    pub filter: String,
    /// How many in a second, at most.
    #[serde(default = "rate_default")]
    pub rate: u32,
}

fn rate_default() -> u32 {
    RATE_DEFAULT
}

/// What is asked of those who trace.
#[derive(Clone, Debug)]
pub enum TraceStep {
    /// To begin.
    Begin(TraceWish),
    /// What there is since the last time.
    Fetch,
    /// To end.
    End,
}

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct TraceNews {
    /// Packets, in order.
    pub reports: Vec<TraceReport>,
    /// Packets that were not told.
    pub lost: u64,
}

/// What became of a packet. Its JSON names stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceReport {
    /// When it was decided, in nanoseconds since 1970.
    pub time: u64,
    /// The packet in words.
    pub packet: String,
    /// Length of the IP packet in bytes.
    pub length: u16,
    /// Its TTL or hop limit as it arrived.
    pub ttl: u8,
    /// The interface it arrived by.
    pub input: String,
    /// What conntrack said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The rules that matched, and policies that decided, in order.
    pub rules: Vec<TracedRule>,
    /// What became of it.
    pub verdict: VerdictReport,
}

/// A rule that a packet matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedRule {
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its number in the chain, from 1; 0 is the policy.
    pub rule: u32,
    /// As `iptables-save` prints it; a policy as `:CHAIN POLICY`.
    pub text: String,
    /// `FILE:LINE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// How many rules matched after this one and before the next, and are not told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u16,
}

// As serde wants it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// A trace under way.
#[derive(Debug)]
pub(super) struct Tracing {
    rings: Vec<Consumer<TraceRecord>>,
    losses: Vec<Arc<Losses>>,
    /// What of the losses has been told.
    told: u64,
}

impl Tracing {
    /// As `wish` says, with a witness for each of so many workers. `ports` are the interfaces' names.
    ///
    /// # Errors
    /// The filter is wrong, or the rate.
    pub(super) fn new(
        wish: &TraceWish,
        ports: [&str; PortId::COUNT],
        workers: usize,
    ) -> Result<(Tracing, Vec<Box<dyn Witness>>), String> {
        let filter = parse(&wish.filter, Some(ports))?;
        if wish.rate == 0 || wish.rate > RATE_MAX {
            return Err(format!("rate {}: 1 to {RATE_MAX} packets in a second", wish.rate));
        }
        let mut tracing = Tracing { rings: Vec::new(), losses: Vec::new(), told: 0 };
        let mut tracers: Vec<Box<dyn Witness>> = Vec::new();
        for _ in 0..workers {
            let (producer, consumer) = RingBuffer::new(RING);
            let losses = Arc::new(Losses::default());
            tracers.push(Box::new(Tracer::new(filter.clone(), wish.rate, producer, losses.clone())));
            tracing.rings.push(consumer);
            tracing.losses.push(losses);
        }
        Ok((tracing, tracers))
    }

    /// What there is since the last time. `rulesets` are those of policy `generation`; `date` makes nanoseconds since 1970 of
    /// the workers' time.
    pub(super) fn fetch(
        &mut self,
        routing: &Routing,
        rulesets: &[Arc<Ruleset>; 2],
        generation: u64,
        date: &dyn Fn(u64) -> u64,
    ) -> TraceNews {
        let mut news = TraceNews::default();
        for ring in &mut self.rings {
            while let Ok(record) = ring.pop() {
                let ruleset = match record.packet.family {
                    Family::V4 => &rulesets[0],
                    Family::V6 => &rulesets[1],
                };
                let in_force = record.generation == generation || record.chains[0].is_none();
                let told = Told { record: &record, routing, ruleset: in_force.then_some(ruleset.as_ref()) };
                news.reports.push(told.report(date(record.at.as_ns())));
            }
        }
        let lost = |losses: &Arc<Losses>| losses.skipped.load(Ordering::Relaxed) + losses.lost.load(Ordering::Relaxed);
        let lost: u64 = self.losses.iter().map(lost).sum();
        news.lost = lost - std::mem::replace(&mut self.told, lost);
        news
    }
}

/// A record, and what it takes to say it in words.
struct Told<'a> {
    record: &'a TraceRecord,
    routing: &'a Routing,
    /// None when the rules have changed since.
    ruleset: Option<&'a Ruleset>,
}

impl Told<'_> {
    fn report(&self, time: u64) -> TraceReport {
        let TraceRecord { packet, info, .. } = self.record;
        let rules: Vec<TracedRule> = self.record.chains.iter().flatten().flat_map(|chain| self.rules(chain)).collect();
        TraceReport {
            time,
            packet: describe(packet),
            length: packet.l3_len,
            ttl: packet.ttl,
            input: self.routing.port(packet.port).name.clone(),
            state: info.map(|info| info.name().to_owned()),
            verdict: self.verdict(&rules),
            rules,
        }
    }

    fn rules(&self, record: &ChainRecord) -> Vec<TracedRule> {
        let (table, hook) = BUILTIN[record.chain];
        let Some(ruleset) = self.ruleset else {
            let text = "the rules have been replaced since".to_owned();
            let (table, chain) = (table.name().to_owned(), hook.chain_name().to_owned());
            return vec![TracedRule { table, chain, rule: 0, text, place: None, left_out: 0 }];
        };
        let mut rules: Vec<TracedRule> =
            record.trace.rules().iter().filter_map(|&number| named(ruleset, number as usize)).collect();
        // Those that found no room stood between the last two.
        if let [.., before, _] = &mut rules[..] {
            before.left_out = record.trace.left_out();
        }
        if record.trace.has_policy(record.chain) {
            let chain = &ruleset.chains[record.chain];
            let policy = if chain.policy == Some(Policy::Drop) { "DROP" } else { "ACCEPT" };
            rules.push(TracedRule {
                table: table.name().to_owned(),
                chain: chain.name.clone(),
                rule: 0,
                text: format!(":{} {policy}", chain.name),
                place: ruleset.line(chain.span).map(|line| format!("{}:{line}", ruleset.file)),
                left_out: 0,
            });
        }
        rules
    }

    fn verdict(&self, rules: &[TracedRule]) -> VerdictReport {
        let mut report = VerdictReport { verdict: "ACCEPT".to_owned(), passes: true, ..VerdictReport::default() };
        let name = |port: PortId| self.routing.port(port).name.clone();
        match self.record.exit {
            Exit::Forward { port, next_hop, neighbour, .. } => {
                report.output = Some(name(port));
                report.next_hop = Some(next_hop.to_ip().to_string());
                if let Neighbour::Reachable(mac) = neighbour {
                    report.mac = Some(mac.to_string());
                }
            }
            Exit::Host => report.verdict = "HOST".to_owned(),
            Exit::Refused { reason, answer } => {
                report.passes = false;
                report.verdict = if reason == DropReason::RuleReject { "REJECT" } else { "DROP" }.to_owned();
                report.reason = Some(reason.name().to_owned());
                report.answer = match answer {
                    Answered::Nothing => None,
                    Answered::Reset => Some("tcp-reset".to_owned()),
                    Answered::Error(error) => Some(message_name(self.record.packet.family, error.kind, error.code)),
                };
            }
        }
        let last = self.record.chains.iter().flatten().last();
        if last.is_some_and(|chain| chain.decision != Decision::Accept)
            && let Some(rule) = rules.last()
        {
            report.table = Some(rule.table.clone());
            report.chain = Some(rule.chain.clone());
            report.rule = (rule.rule > 0).then_some(rule.rule);
            report.place = rule.place.clone();
        }
        report
    }
}

/// The rule that has this number in all of the file.
fn named(ruleset: &Ruleset, number: usize) -> Option<TracedRule> {
    let mut first = 0;
    for chain in &ruleset.chains {
        if let Some(rule) = chain.rules.get(number - first) {
            return Some(TracedRule {
                table: chain.table.name().to_owned(),
                chain: chain.name.clone(),
                rule: (number - first) as u32 + 1,
                text: rule_text(ruleset.family, &chain.name, rule, &ruleset.chains),
                place: ruleset.line(rule.span).map(|line| format!("{}:{line}", ruleset.file)),
                left_out: 0,
            });
        }
        first += chain.rules.len();
    }
    None
}

/// A line for the packet, one for each rule, and one for the verdict. The time is whoever prints its to add.
impl fmt::Display for TraceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TraceReport { packet, length, ttl, input, state, rules, verdict, .. } = self;
        write!(f, "{input}: {packet}, {length} bytes, ttl {ttl}")?;
        match state {
            Some(state) => writeln!(f, ", {state}")?,
            None => writeln!(f)?,
        }
        for TracedRule { table, chain, rule, text, place, left_out } in rules {
            let what = if *rule == 0 { "policy".to_owned() } else { format!("rule:{rule}") };
            write!(f, "  {table}:{chain}:{what}  {text}")?;
            match place {
                Some(place) => writeln!(f, "  [{place}]")?,
                None => writeln!(f)?,
            }
            match left_out {
                0 => {}
                1 => writeln!(f, "  ... 1 more rule that matched is left out here")?,
                &u16::MAX => writeln!(f, "  ... {left_out} or more rules that matched are left out here")?,
                _ => writeln!(f, "  ... {left_out} more rules that matched are left out here")?,
            }
        }
        writeln!(f, "  {verdict}")
    }
}

/// Tells a client what becomes of packets, until it goes.
pub(super) async fn tell<B: Backend>(write: &mut Writer, read: &mut Reader, wish: &TraceWish, backend: &B) {
    if let Err(error) = backend.trace(TraceStep::Begin(wish.clone())).await {
        // A client that is gone by now hears nothing.
        return send(write, &Reply::Error(error.0)).await.unwrap_or_default();
    }
    let stream = async {
        send(write, &Reply::Listening {}).await?;
        loop {
            tokio::time::sleep(FETCH).await;
            let Ok(news) = backend.trace(TraceStep::Fetch).await else { return Ok::<_, std::io::Error>(()) };
            for report in news.reports {
                send(write, &Reply::Traced(Box::new(report))).await?;
            }
            if news.lost > 0 {
                send(write, &Reply::Lost { count: news.lost }).await?;
            }
        }
    };
    let mut byte = [0];
    tokio::select! {
        // Gone, or not to be written to any more.
        _ = stream => {}
        // Gone, or says something, which nobody expects.
        _ = read.read(&mut byte) => {}
    }
    // Nothing to fetch is no failure.
    let _ = backend.trace(TraceStep::End).await;
}
