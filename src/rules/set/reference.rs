//! A set's name as a rule writes it: [`SetRef`], `NAME src,dst,...`.

use super::NAME_MAX;
use super::question::Sides;
use super::table::{LIVE_MAX, SetCell, SetTable};
use crate::rules::diagnostic::{Problem, Report, Span};
use crate::rules::extension::Given;
use crate::rules::{Match, Ruleset, Target};
use crate::wire::Family;
use std::sync::Arc;

/// The most sides (`IPSET_DIM_MAX`).
const SIDES_MAX: u8 = 6;

/// A set and which side of the packet is looked at for each part of its elements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::rules) struct SetRef {
    pub(in crate::rules) name: String,
    pub(in crate::rules) sides: Sides,
    /// Where the name stands.
    pub(in crate::rules) span: Span,
}

impl SetRef {
    /// Reads the two words after `--match-set` and its like.
    pub(in crate::rules) fn read(given: &Given<'_>) -> Result<SetRef, Problem> {
        let [name, sides] = given.arguments else {
            return Err(Problem::new(
                given.span,
                format!("`{}` needs a set and its sides", given.name),
                "expected two words",
            ));
        };
        if name.text.is_empty() || name.text.len() > NAME_MAX {
            let message = format!("a set's name has 1 to {NAME_MAX} bytes");
            return Err(Problem::new(name.span, message, "not a set's name"));
        }
        let mut read = Sides::default();
        for word in sides.text.split(',') {
            if read.count == SIDES_MAX {
                return Err(Problem::new(sides.span, format!("more than {SIDES_MAX} sides"), "too many"));
            }
            match word {
                "src" => read.src |= 1 << read.count,
                "dst" => {}
                _ => {
                    return Err(Problem::new(
                        sides.span,
                        format!("`{word}` is no side of a packet"),
                        "expected src or dst",
                    )
                    .help("one for each part of the set's elements, as in `src,dst`"));
                }
            }
            read.count += 1;
        }
        Ok(SetRef { name: name.text.clone(), sides: read, span: name.span })
    }

    /// As printed: the name and the sides.
    pub(in crate::rules) fn save(&self, out: &mut String) {
        out.push_str(&self.name);
        for index in 0..self.sides.count {
            out.push(if index == 0 { ' ' } else { ',' });
            out.push_str(if self.sides.src >> index & 1 != 0 { "src" } else { "dst" });
        }
    }

    /// Checks it against the sets there are, for a rules file of `family`; with `changes`, as one that the rule adds to or
    /// deletes from.
    fn check(&self, sets: &SetTable, family: Family, changes: bool, report: &mut Report<'_>) {
        let Some(about) = sets.about(&self.name) else { return self.unknown(sets, report) };
        if let Some(other) = about.family.filter(|&other| other != family) {
            let version = |family| if family == Family::V4 { "IPv4" } else { "IPv6" };
            let message = format!("set {} holds {} addresses", self.name, version(other));
            report.error(Problem::new(self.span, message, format!("these are rules for {}", version(family))));
        } else if usize::from(self.sides.count) < about.dimension {
            let message = format!("set {} is a {}: it wants {} sides", self.name, about.kind, about.dimension);
            report.warn(
                Problem::new(self.span, message, "this never matches").help("as in `src,dst`, one for each part"),
            );
        }
        if changes && about.capacity > LIVE_MAX {
            let message = format!("set {} takes {} elements, more than rules may add to", self.name, about.capacity);
            let help = format!("its memory is taken at once; make its `maxelem` {LIVE_MAX} at most");
            report.error(Problem::new(self.span, message, "too large to add to").help(help));
        }
    }

    fn unknown(&self, sets: &SetTable, report: &mut Report<'_>) {
        let problem = Problem::new(self.span, format!("there is no set `{}`", self.name), "not in the sets");
        if sets.names().is_empty() {
            // The rules alone are right: who only prints or compares them needs no sets.
            return report.not_honoured(
                problem.help("no sets were given; `ipset save` writes them to a file, for `--sets FILE`"),
            );
        }
        report.error(problem.help(match sets.nearest(&self.name) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("make it with a line `create {} TYPE`", self.name),
        }));
    }
}

/// Checks all names of sets in the rules against the sets there are, and gives the sets named: while somebody holds one, no new
/// sets can come without it.
pub(in crate::rules) fn check(ruleset: &Ruleset, report: &mut Report<'_>) -> Vec<Arc<SetCell>> {
    let mut named = Vec::new();
    let mut one = |set: &SetRef, changes| {
        named.extend(ruleset.sets.find(&set.name));
        set.check(&ruleset.sets, ruleset.family, changes, report);
    };
    for rule in ruleset.chains.iter().flat_map(|chain| &chain.rules) {
        for matched in &rule.matches {
            if let Match::Set(matched) = matched {
                matched.sets().for_each(|set| one(set, false));
            }
        }
        if let Target::Set(target) = &rule.target {
            target.sets().for_each(|(set, changes)| one(set, changes));
        }
    }
    named
}
