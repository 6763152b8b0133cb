//! Runs a [`Script`] on an [`Engine`] and reports the first thing that is not as written, with file, line, what was
//! expected and what came.
//!
//! Strict by default: before every injection and at the end nothing may be left over, neither a frame that no line asked
//! for nor (where the engine counts them) a drop or a punt that no line named.

use std::collections::BTreeMap;

use super::engine::{Engine, open};
use super::packet::{self, Mask};
use super::script::{Kind, Line, Script, Step};
use super::topology::Port;

/// Runs the whole scenario on an engine of this kind.
pub(crate) fn run(script: &Script, kind: Kind) -> Result<(), String> {
    let mut engine = open(kind, script).map_err(|error| format!("{}: engine {}: {error}", script.file, kind.word()))?;
    run_on(script, kind, engine.as_mut())
}

/// Runs the whole scenario on this engine, which is of this kind and was opened for it.
pub(crate) fn run_on(script: &Script, kind: Kind, engine: &mut dyn Engine) -> Result<(), String> {
    let mut runner = Runner { engine, pending: [Vec::new(), Vec::new()], drops: BTreeMap::new(), host: Vec::new() };
    let mut last = 0;
    for line in script.lines.iter().filter(|line| line.engines.contains(&kind.reads())) {
        runner.step(line).map_err(|error| located(script, kind, line.number, &error))?;
        last = line.number;
    }
    let left = runner.engine.settle().and_then(|()| runner.nothing_left());
    left.map_err(|error| located(script, kind, last, &format!("after the last line: {error}")))
}

fn located(script: &Script, kind: Kind, number: usize, error: &str) -> String {
    format!("{}:{number} [{}]: {error}", script.file, kind.word())
}

struct Runner<'e> {
    engine: &'e mut dyn Engine,
    /// Frames that came out and no line has claimed, by port.
    pending: [Vec<Vec<u8>>; 2],
    /// Drops that lines have claimed, by reason.
    drops: BTreeMap<String, u64>,
    /// Frames handed to the host that no line has claimed.
    host: Vec<Vec<u8>>,
}

impl Runner<'_> {
    fn step(&mut self, line: &Line) -> Result<(), String> {
        if line.wait_ns > 0 {
            self.engine.advance(line.wait_ns)?;
        }
        if !matches!(line.step, Step::Inject { .. } | Step::Expect { .. } | Step::Learn(_) | Step::Wait) {
            self.engine.settle()?;
        }
        match &line.step {
            Step::Inject { port, frame } => {
                self.nothing_left().map_err(|error| format!("before this packet: {error}"))?;
                self.engine.inject(*port, frame)
            }
            Step::Expect { port, frame, mask } => self.expect(*port, frame, *mask),
            Step::Nothing => {
                self.collect()?;
                self.no_frames()
            }
            Step::Drop { reason, count } => self.claim_drops(reason, *count),
            Step::Punt { count } => self.claim_punts(*count),
            Step::Host { frame } => self.expect_punt(frame),
            Step::Conntrack { words } => {
                let (lines, slack) = (self.engine.conntrack()?, self.engine.slack());
                match lines.iter().filter(|line| line_has(line, words, slack)).count() {
                    1 => Ok(()),
                    count => Err(listing(&format!("{count} conntrack lines like this, not one"), words, &lines)),
                }
            }
            Step::NoConntrack { words } => {
                let (lines, slack) = (self.engine.conntrack()?, self.engine.slack());
                match lines.iter().any(|line| line_has(line, words, slack)) {
                    false => Ok(()),
                    true => Err(listing("there is a conntrack line like this", words, &lines)),
                }
            }
            Step::ConntrackCount { count } => {
                let lines = self.engine.conntrack()?;
                match lines.len() == *count {
                    true => Ok(()),
                    false => Err(listing(&format!("{} conntrack lines, not {count}", lines.len()), &[], &lines)),
                }
            }
            Step::Counter { v4, chain, rule, packets, bytes } => {
                let save = self.engine.counters(*v4)?;
                let (got_packets, got_bytes) = counters_of(&save, chain, *rule)?;
                match packets.is_none_or(|want| want == got_packets) && bytes.is_none_or(|want| want == got_bytes) {
                    true => Ok(()),
                    false => {
                        Err(format!("the counters are packets={got_packets} bytes={got_bytes}; all of them:\n{save}"))
                    }
                }
            }
            Step::Log { text } => match self.engine.logs() {
                Some(logs) if !logs.iter().any(|line| line.trim() == text.trim()) => {
                    Err(format!("this line was not logged; logged were:\n    {}", logs.join("\n    ")))
                }
                _ => Ok(()),
            },
            Step::Learn(neighbour) => self.engine.learn(neighbour),
            Step::Wait => Ok(()),
        }
    }

    fn collect(&mut self) -> Result<(), String> {
        for (port, frame) in self.engine.output()? {
            self.pending[port.index()].push(frame);
        }
        self.host.extend(self.engine.punted().unwrap_or_default());
        Ok(())
    }

    fn expect(&mut self, port: Port, frame: &[u8], mask: Mask) -> Result<(), String> {
        self.collect()?;
        if self.pending[port.index()].is_empty() {
            self.engine.await_frame(port)?;
            self.collect()?;
        }
        let other = if port == Port::Lan { Port::Wan } else { Port::Lan };
        if self.pending[port.index()].is_empty() {
            let elsewhere: Vec<String> =
                self.pending[other.index()].iter().map(|frame| packet::describe(frame)).collect();
            let elsewhere = match elsewhere.is_empty() {
                true => String::new(),
                false => format!("; out of {} came: {}", other.word(), elsewhere.join(", ")),
            };
            let happened = self.unclaimed_drops();
            let what = packet::describe(frame);
            return Err(format!("expected out of {}: {what}\n    got nothing{elsewhere}{happened}", port.word()));
        }
        let got = self.pending[port.index()].remove(0);
        match packet::same(frame, &got, mask) {
            true => Ok(()),
            false => Err(format!(
                "out of {} came something else\n    expected {}\n    got      {}\n{}",
                port.word(),
                packet::describe(frame),
                packet::describe(&got),
                packet::dump(frame, &got)
            )),
        }
    }

    fn claim_drops(&mut self, reason: &str, count: u64) -> Result<(), String> {
        let Some(drops) = self.engine.drops() else { return Ok(()) };
        let claimed = self.drops.entry(reason.to_owned()).or_default();
        *claimed += count;
        let got = drops.get(reason).copied().unwrap_or(0);
        match got >= *claimed {
            true => Ok(()),
            false => {
                *claimed -= count;
                Err(format!("expected {count} dropped for {reason}{}", self.unclaimed_drops()))
            }
        }
    }

    fn claim_punts(&mut self, count: usize) -> Result<(), String> {
        self.collect()?;
        if self.engine.punted().is_none() {
            return Ok(());
        }
        match self.host.len() >= count {
            true => {
                self.host.drain(..count);
                Ok(())
            }
            false => {
                Err(format!("expected {count} handed to the host, got {}{}", self.host.len(), self.unclaimed_drops()))
            }
        }
    }

    fn expect_punt(&mut self, frame: &[u8]) -> Result<(), String> {
        self.collect()?;
        if self.engine.punted().is_none() {
            return Ok(());
        }
        if self.host.is_empty() {
            return Err(format!("expected for the host: {}\n    got nothing", packet::describe(frame)));
        }
        let got = self.host.remove(0);
        match got == frame {
            true => Ok(()),
            false => Err(format!("for the host came something else\n{}", packet::dump(frame, &got))),
        }
    }

    fn unclaimed_drops(&self) -> String {
        let Some(drops) = self.engine.drops() else { return String::new() };
        let mut text = String::new();
        for (reason, count) in drops {
            let new = count - self.drops.get(&reason).copied().unwrap_or(0).min(count);
            if new > 0 {
                text.push_str(&format!("; dropped {new} for {reason}"));
            }
        }
        for frame in &self.host {
            text.push_str(&format!("; handed to the host: {}", packet::describe(frame)));
        }
        text
    }

    fn no_frames(&self) -> Result<(), String> {
        let mut text = String::new();
        for port in Port::ALL {
            for frame in &self.pending[port.index()] {
                text.push_str(&format!(
                    "\n    out of {}: {}\n{}",
                    port.word(),
                    packet::describe(frame),
                    packet::dump(frame, frame)
                ));
            }
        }
        match text.is_empty() {
            true => Ok(()),
            false => Err(format!("nobody expected{text}")),
        }
    }

    fn nothing_left(&mut self) -> Result<(), String> {
        self.collect()?;
        self.no_frames()?;
        let drops = self.unclaimed_drops();
        if !drops.is_empty() {
            return Err(format!("nobody expected{}", drops.trim_start_matches(';')));
        }
        Ok(())
    }
}

/// Whether a `conntrack -L` line has these words in this order. A number that stands where the line has its timeout may
/// be off by `slack` seconds downwards; a flag in brackets that the line has must be among the words.
fn line_has(line: &str, words: &[String], slack: i64) -> bool {
    let tokens: Vec<&str> = line.split_whitespace().collect();
    let mut wanted = words.iter().peekable();
    for (index, token) in tokens.iter().enumerate() {
        let Some(want) = wanted.peek() else { break };
        let timeout = index == 2
            && matches!((token.parse::<i64>(), want.parse::<i64>()), (Ok(got), Ok(want)) if (want - slack..=want).contains(&got));
        if token == want || timeout {
            wanted.next();
        }
    }
    let flags_named =
        tokens.iter().filter(|token| token.starts_with('[')).all(|flag| words.iter().any(|word| word == flag));
    wanted.peek().is_none() && flags_named
}

fn listing(what: &str, words: &[String], lines: &[String]) -> String {
    format!("{what}: {}\n    listed:\n      {}", words.join(" "), lines.join("\n      "))
}

/// The counters of rule number `rule` of `chain` (from 1), or of its policy, in an `iptables-save -c` text.
fn counters_of(save: &str, chain: &str, rule: Option<usize>) -> Result<(u64, u64), String> {
    let line = match rule {
        None => {
            save.lines().find(|line| line.strip_prefix(':').is_some_and(|rest| rest.split(' ').next() == Some(chain)))
        }
        Some(number) => {
            let of_chain = |line: &&str| line.starts_with('[') && line.split(' ').nth(2) == Some(chain);
            save.lines().filter(of_chain).nth(number.max(1) - 1)
        }
    };
    let line = line.ok_or_else(|| format!("no such rule or chain; there are:\n{save}"))?;
    let inside = line.split('[').nth(1).and_then(|rest| rest.split(']').next()).ok_or("no counters")?;
    let (packets, bytes) = inside.split_once(':').ok_or("no counters")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text} is no number"));
    Ok((number(packets)?, number(bytes)?))
}
