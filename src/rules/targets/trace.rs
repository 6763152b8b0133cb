//! `-j TRACE`: every rule, return and policy that the packet meets from here on is told: [`TraceTarget`]; what is told then:
//! [`TraceEvent`].
//!
//! The kernel writes a LOG line for each, with a prefix that says where (`trace_packet` in ip_tables.c):
//! `TRACE: table:chain:rule:N `. Whoever walks the rules makes the events; [`crate::rules::LogRecord::traced`] makes the line.

use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome};
use crate::rules::registry::Registry;
use crate::rules::rule::{Rule, TableName};
use crate::rules::targets::{LogTarget, Target, log_flags};
use crate::wire::Family;
use core::fmt;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceTarget;

impl Extension for TraceTarget {
    const NAME: &'static str = "TRACE";
    const TABLES: &'static [TableName] = &[TableName::Raw];
    const OPTIONS: &'static [OptionSpec] = &[];

    fn new(_: Family) -> TraceTarget {
        TraceTarget
    }

    fn read(&mut self, _: u8, _: &Given<'_>) -> Result<(), Problem> {
        Ok(())
    }

    fn save(&self, _: &mut String, _: Family) {}
}

impl Action for TraceTarget {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Each packet's way is told: one that took a kept verdict would have none.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, _: &mut dyn World, (): &()) -> Outcome {
        context.traced = true;
        Outcome::Continue
    }
}

/// What a traced packet met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TracePlace {
    /// A rule that matched.
    Rule,
    /// The end of a user chain, or a rule of one that says ACCEPT, DROP or RETURN to every packet.
    Return,
    /// The policy of a built-in chain, or such a rule of one.
    Policy,
}

impl TracePlace {
    /// What the kernel calls a rule that matched. It knows a chain's end only by its being a bare verdict that asks
    /// nothing (`get_chainname_rulenum`), so a rule that looks like one is called so, too. A match, be it `comment`, makes
    /// it a rule again.
    pub fn of(rule: &Rule, builtin: bool) -> TracePlace {
        let verdict = matches!(rule.target, Target::Accept | Target::Drop | Target::Return);
        match (verdict && rule.is_unconditional() && rule.matches.is_empty(), builtin) {
            (false, _) => TracePlace::Rule,
            (true, false) => TracePlace::Return,
            (true, true) => TracePlace::Policy,
        }
    }

    /// The end of a chain.
    pub const fn end(builtin: bool) -> TracePlace {
        if builtin { TracePlace::Policy } else { TracePlace::Return }
    }

    const fn word(self) -> &'static str {
        match self {
            TracePlace::Rule => "rule",
            TracePlace::Return => "return",
            TracePlace::Policy => "policy",
        }
    }
}

/// A step of a traced packet.
#[derive(Clone, Copy, Debug)]
pub struct TraceEvent<'a> {
    /// The table.
    pub table: TableName,
    /// The chain the packet is in.
    pub chain: &'a str,
    /// What it met.
    pub place: TracePlace,
    /// The rule's number in its chain, from 1; a chain's end is one more than it has rules.
    pub number: u32,
    /// The packet as the rule saw it: its target has not run.
    pub context: &'a Context<'a>,
}

/// What the line begins with, the blank included.
impl fmt::Display for TraceEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TRACE: {}:{}:{}:{} ", self.table.name(), self.chain, self.place.word(), self.number)
    }
}

/// How the rest of the line is written: as a LOG rule with all fields, at level 4.
pub const TRACE_LOG: LogTarget = LogTarget {
    prefix: String::new(),
    level: 4,
    flags: log_flags::TCP_SEQUENCE | log_flags::TCP_OPTIONS | log_flags::IP_OPTIONS | log_flags::UID,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context, read};
    use crate::rules::matches::{CommentMatch, Match};
    use crate::rules::rule::ProtoMatch;
    use crate::time::Instant;

    #[test]
    fn a_traced_packet_says_where_it_is() {
        let mut packet = Packet::BLANK;
        let mut context = context(&mut packet, &mut [], Instant::from_secs(1));
        let mut world = Told::default();
        assert_eq!(TraceTarget.run(&mut context, &mut world, &()), Outcome::Continue);
        assert!(context.traced);
        let event = TraceEvent {
            table: TableName::Filter,
            chain: "FORWARD",
            place: TracePlace::Policy,
            number: 3,
            context: &context,
        };
        world.trace(&event);
        assert_eq!(world.steps, ["TRACE: filter:FORWARD:policy:3 "]);
    }

    #[test]
    fn a_bare_verdict_passes_for_a_chains_end() {
        let bare = Rule { target: Target::Drop, ..Rule::default() };
        assert_eq!(TracePlace::of(&bare, true), TracePlace::Policy);
        assert_eq!(TracePlace::of(&bare, false), TracePlace::Return);
        let comment = read::<CommentMatch>(Family::V4, "--comment x").expect("good");
        let rules = [
            Rule { target: Target::Jump(3), ..Rule::default() },
            Rule { target: Target::Count, ..Rule::default() },
            Rule { proto: Some(ProtoMatch { number: 6, invert: false }), ..bare.clone() },
            Rule { matches: vec![Match::Comment(comment)], ..bare },
        ];
        assert!(rules.iter().all(|rule| TracePlace::of(rule, true) == TracePlace::Rule));
    }
}
