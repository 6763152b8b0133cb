//! Which traffic a file makes the router track, and why: [`tracking`].
//!
//! As on Linux, connections are tracked as soon as some rule of the file, wherever it stands, needs them; then all are, but
//! for what raw PREROUTING takes out.

use super::rule::{Chain, RAW_PREROUTING, Rule, Ruleset};
use super::save::rule_text;

/// A rule and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Line in the file, from 1.
    pub line: usize,
    /// Table's name.
    pub table: &'static str,
    /// As `iptables-save` prints it.
    pub rule: String,
}

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracking {
    /// Rules that need connections; without one nothing is tracked.
    pub wanted_by: Vec<Reason>,
    /// Rules that take what they match out.
    pub taken_out_by: Vec<Reason>,
}

/// What `ruleset`, read from `text`, makes the router track.
pub fn tracking(ruleset: &Ruleset, text: &str) -> Tracking {
    let reason = |chain: &Chain, rule: &Rule| Reason {
        line: text.as_bytes()[..rule.span.start.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1,
        table: chain.table.name(),
        rule: rule_text(ruleset.family, &chain.name, rule, &ruleset.chains),
    };
    let mut found = Tracking::default();
    for chain in &ruleset.chains {
        let wanting = chain.rules.iter().filter(|rule| rule.wants_conntrack());
        found.wanted_by.extend(wanting.map(|rule| reason(chain, rule)));
    }
    for chain in ruleset.reachable_from(RAW_PREROUTING) {
        let chain = &ruleset.chains[chain];
        let taking = chain.rules.iter().filter(|rule| rule.target.takes_out());
        found.taken_out_by.extend(taking.map(|rule| reason(chain, rule)));
    }
    found.wanted_by.sort_by_key(|reason| reason.line);
    found
}
