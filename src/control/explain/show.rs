//! An explanation in sentences: what was heard of the packet, stage by stage ([`Told`]), and how that is printed.

use core::fmt;

use super::narrator::Heard;
use super::packet::message_name;
use super::{Explanation, Stage, Told, VerdictReport};
use crate::conntrack::{ConnRef, CtInfo, Direction, Manip, Tracked};
use crate::datapath::{Answered, Ends, Exit};
use crate::device::PortId;
use crate::route::{Neighbour, Route};
use crate::rules::{BUILTIN, Decision, Hook, RuleStep, decision_text};
use crate::verdict::DropReason;

impl Told<'_> {
    /// The way, in the packet's order.
    pub(super) fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        let mut routed = false;
        for heard in &self.heard {
            let past_routing = match heard {
                Heard::Chain { chain, .. } => matches!(BUILTIN[*chain].1, Hook::Forward | Hook::Postrouting),
                Heard::Exit(_) => true,
                _ => false,
            };
            if past_routing && !routed {
                routed = true;
                if !self.stopped_before_routing() {
                    stages.extend(self.routing());
                }
            }
            match heard {
                Heard::Route(..) | Heard::Zoned(_) => {}
                Heard::Translated(manip, before, after) => stages.push(self.translation(*manip, before, after)),
                Heard::Tracked(tracked) => stages.push(self.conntrack(tracked)),
                Heard::Chain { chain, steps, decision } => stages.push(self.chain(*chain, steps, *decision)),
                Heard::Exit(exit) => stages.extend(self.exit(exit)),
            }
        }
        stages
    }

    /// Whether a rule of PREROUTING has ended its way.
    fn stopped_before_routing(&self) -> bool {
        let last = self.heard.iter().rev().find_map(|heard| match heard {
            Heard::Chain { chain, decision, .. } => Some((BUILTIN[*chain].1, *decision)),
            _ => None,
        });
        last.is_some_and(|(hook, decision)| hook == Hook::Prerouting && decision != Decision::Accept)
    }

    fn name(&self, port: PortId) -> &str {
        &self.scene.routing.port(port).name
    }

    fn conntrack(&self, tracked: &Tracked) -> Stage {
        let untracked = tracked.conn == ConnRef::None && !self.wants_conntrack;
        let says = if untracked { "not tracked" } else { tracked.info.name() };
        let mut lines = Vec::new();
        match tracked.conn {
            ConnRef::None if untracked => {
                lines.push("no rule needs connections, and so none is tracked, as on Linux".to_owned());
            }
            ConnRef::None if tracked.info == CtInfo::Untracked => {
                lines.push("it was taken out of conntrack".to_owned())
            }
            ConnRef::None => lines.push("no connection can be made of it".to_owned()),
            ConnRef::Prepared => {
                lines.push("no connection has its addresses and ports; if it passes, it begins one:".to_owned());
                lines.extend(self.after.clone());
                if self.after.is_none() {
                    lines[0] = "no connection has its addresses and ports; it would begin one, if it passed".to_owned();
                }
            }
            ConnRef::Confirmed(_) | ConnRef::Ended => {
                let of = match (tracked.info, tracked.info.direction()) {
                    (CtInfo::Related | CtInfo::RelatedReply, _) => "it belongs to a connection",
                    (_, Direction::Original) => "it is of a connection, in its original direction",
                    (_, Direction::Reply) => "it is of a connection, in its reply direction",
                };
                lines.push(match &self.before {
                    Some(_) => format!("{of}:"),
                    None => of.to_owned(),
                });
                lines.extend(self.before.clone());
                if self.after != self.before {
                    lines.extend(self.after.iter().map(|after| format!("and after it: {after}")));
                }
            }
        }
        Stage { lines, ..plain("conntrack", says, "") }
    }

    fn routing(&self) -> Option<Stage> {
        // Asked twice where the destination was translated; the last counts.
        let (to, route) = self.heard.iter().rev().find_map(|heard| match heard {
            Heard::Route(to, route) => Some((to.to_ip(), *route)),
            _ => None,
        })?;
        let says = match route {
            Route::Forward { port, gateway, .. } => match gateway {
                Some(gateway) => format!("{} via {}", self.name(port), gateway.to_ip()),
                None => self.name(port).to_owned(),
            },
            Route::Local => "the host's own address".to_owned(),
            Route::Broadcast => "a broadcast address".to_owned(),
            Route::Multicast => "a group".to_owned(),
            Route::Elsewhere => "an interface that is not the router's".to_owned(),
            Route::Unreachable => "unreachable".to_owned(),
            Route::Prohibit => "prohibited".to_owned(),
            Route::Blackhole => "blackhole".to_owned(),
            Route::NoRoute => "no route".to_owned(),
        };
        let mut stage = plain("routing", &says, "");
        let assumed = if self.scene.routes_assumed { " (assumed)" } else { "" };
        stage.lines.push(format!("the way to {to}{assumed}"));
        if let Route::Forward { mtu, .. } = route {
            let fit = if self.packet.l3_len <= mtu { "fit" } else { "are more than" };
            stage.lines.push(format!("{} bytes {fit} the MTU of {mtu}", self.packet.l3_len));
            let ttl = self.packet.ttl;
            stage.lines.push(match ttl {
                0 | 1 => format!("ttl {ttl}: used up"),
                ttl => format!("ttl {ttl} becomes {}", ttl - 1),
            });
        }
        Some(stage)
    }

    fn chain(&self, chain: usize, steps: &[RuleStep], decision: Decision) -> Stage {
        let (table, hook) = BUILTIN[chain];
        let name = format!("{} {}", table.name(), hook.chain_name());
        let (rules, file) = (steps.to_vec(), Some(self.ruleset.file.clone()));
        Stage { rules, file, ..plain(&name, &decision_text(decision), "") }
    }

    /// What translation has made of one end.
    fn translation(&self, manip: Manip, before: &Ends, after: &Ends) -> Stage {
        let name = match manip {
            Manip::Source => "nat source",
            Manip::Destination => "nat destination",
        };
        let begins = self
            .heard
            .iter()
            .any(|heard| matches!(heard, Heard::Tracked(tracked) if tracked.conn == ConnRef::Prepared));
        let line = match manip {
            _ if self.packet.is_icmp_error() => "and in the packet that it quotes",
            // Other connections are not asked.
            Manip::Source if begins => "if no other connection has that by then",
            _ => "",
        };
        plain(name, &format!("{before} becomes {after}"), line)
    }

    /// What is left of the way behind the last chain.
    fn exit(&self, exit: &Exit) -> Vec<Stage> {
        let Exit::Forward { port, next_hop, neighbour, .. } = *exit else { return Vec::new() };
        if self.scene.routes_assumed {
            return Vec::new();
        }
        let hop = next_hop.to_ip();
        let (says, line) = match neighbour {
            Neighbour::Reachable(mac) => (format!("{hop} is {mac}"), String::new()),
            Neighbour::Failed => {
                (format!("{hop} did not answer"), "it is asked for again, and the packet waits".to_owned())
            }
            Neighbour::Unknown => (format!("{hop} is not known"), "it is asked for, and the packet waits".to_owned()),
        };
        vec![plain("next hop", &format!("{says} on {}", self.name(port)), &line)]
    }

    /// What becomes of it.
    pub(super) fn verdict(&self) -> VerdictReport {
        let exit = self.heard.iter().rev().find_map(|heard| match heard {
            Heard::Exit(exit) => Some(*exit),
            _ => None,
        });
        let mut report = VerdictReport { verdict: "ACCEPT".to_owned(), passes: true, ..VerdictReport::default() };
        match exit {
            Some(Exit::Forward { port, next_hop, neighbour, .. }) => {
                report.output = Some(self.name(port).to_owned());
                if !self.scene.routes_assumed {
                    report.next_hop = Some(next_hop.to_ip().to_string());
                }
                if let Neighbour::Reachable(mac) = neighbour {
                    report.mac = Some(mac.to_string());
                }
                self.name_rule(&mut report, |hook, _| hook == Hook::Forward);
            }
            Some(Exit::Host) => report.verdict = "HOST".to_owned(),
            Some(Exit::Refused { reason, answer }) => self.refused(&mut report, reason, answer),
            None => report.passes = false,
        }
        report
    }

    fn refused(&self, report: &mut VerdictReport, reason: DropReason, answer: Answered) {
        report.passes = false;
        report.verdict = if reason == DropReason::RuleReject { "REJECT" } else { "DROP" }.to_owned();
        report.reason = Some(reason.name().to_owned());
        report.answer = match answer {
            _ if !self.answered => None,
            Answered::Nothing => None,
            Answered::Reset => Some("tcp-reset".to_owned()),
            Answered::Error(error) => Some(message_name(self.packet.family, error.kind, error.code)),
        };
        let by_rule = [DropReason::RuleDrop, DropReason::RuleReject, DropReason::RuleHotdrop, DropReason::PolicyDrop];
        if by_rule.contains(&reason) {
            self.name_rule(report, |_, decision| decision != Decision::Accept);
        }
    }

    /// Names the rule that decided in the last chain that `which` picks.
    fn name_rule(&self, report: &mut VerdictReport, which: impl Fn(Hook, Decision) -> bool) {
        let found = self.heard.iter().rev().find_map(|heard| match heard {
            Heard::Chain { chain, steps, decision } if which(BUILTIN[*chain].1, *decision) => {
                steps.last().map(|step| (BUILTIN[*chain].0, step))
            }
            _ => None,
        });
        let Some((table, step)) = found else { return };
        report.table = Some(table.name().to_owned());
        report.chain = Some(step.chain.clone());
        report.rule = (!step.text.starts_with(':')).then_some(step.rule);
        report.place = step.line.map(|line| format!("{}:{line}", self.ruleset.file));
    }
}

fn plain(name: &str, says: &str, line: &str) -> Stage {
    let lines = if line.is_empty() { Vec::new() } else { vec![line.to_owned()] };
    Stage { name: name.to_owned(), says: says.to_owned(), lines, file: None, rules: Vec::new() }
}

/// For people: a paragraph for each stage, and the verdict on the last line.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explanation { packet, length, ttl, input, notes, stages, verdict, .. } = self;
        writeln!(f, "{packet}, {length} bytes, ttl {ttl}, arrives by {input}")?;
        for note in notes {
            writeln!(f, "  ({note})")?;
        }
        for stage in stages {
            write!(f, "\n{stage}")?;
        }
        writeln!(f, "\n{verdict}")
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.name, self.says)?;
        for line in &self.lines {
            writeln!(f, "  {line}")?;
        }
        for step in &self.rules {
            self.fmt_step(f, step)?;
        }
        Ok(())
    }
}

impl Stage {
    fn fmt_step(&self, f: &mut fmt::Formatter<'_>, step: &RuleStep) -> fmt::Result {
        let indent = "  ".repeat(step.depth as usize + 1);
        let mark = if step.matched { '*' } else { ' ' };
        let is_end = step.text.starts_with(':');
        let number = if is_end { String::new() } else { step.rule.to_string() };
        let place = match (&self.file, step.line) {
            (Some(file), Some(line)) if !is_end || !step.text.ends_with(" -") => format!("  [{file}:{line}]"),
            _ => String::new(),
        };
        let text = match step.text.strip_suffix(" -") {
            Some(chain) if is_end => format!("end of {}", chain.trim_start_matches(':')),
            _ if is_end => format!("policy {}", step.text),
            _ => step.text.clone(),
        };
        writeln!(f, "{mark}{indent}{number:>3} {text}{place}")?;
        let below = " ".repeat(indent.len() + 6);
        if let Some(why) = &step.why_not {
            writeln!(f, "{below}no: {why}")?;
        }
        for note in &step.notes {
            writeln!(f, "{below}{note}")?;
        }
        match &step.then {
            Some(then) => writeln!(f, "{below}=> {then}"),
            None => Ok(()),
        }
    }
}

/// One line: what, by which rule, and where to.
impl fmt::Display for VerdictReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.verdict)?;
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        if let (Some(table), Some(chain)) = (&self.table, &self.chain) {
            match self.rule {
                Some(rule) => write!(f, " by {table} {chain} rule {rule}")?,
                None => write!(f, " by the policy of {table} {chain}")?,
            }
            if let Some(place) = &self.place {
                write!(f, " [{place}]")?;
            }
        } else if let Some(reason) = self.reason.as_deref().and_then(DropReason::from_name) {
            write!(f, ": {}", reason.describe().trim_end_matches('.'))?;
        }
        if let Some(answer) = &self.answer {
            write!(f, "; its sender is told {answer}")?;
        }
        match (&self.output, &self.next_hop, &self.mac) {
            (Some(output), Some(hop), Some(mac)) => write!(f, ": leaves by {output} to {hop} ({mac})"),
            (Some(output), Some(hop), None) => write!(f, ": leaves by {output} to {hop}"),
            (Some(output), None, _) => write!(f, ": leaves by {output}"),
            _ if self.passes => f.write_str(": it is for the host itself"),
            _ => Ok(()),
        }
    }
}
