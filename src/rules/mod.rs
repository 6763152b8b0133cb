//! The rules: `iptables-save` text to a verdict.
//!
//! Text is cut into words ([`token`]), understood line by line ([`parse`], [`option`], [`value`]), checked as a whole
//! ([`check`]) and kept as typed rules ([`Ruleset`]). From those the fast engine is compiled ([`RuleVector`]: flat, jumps
//! resolved to offsets) and the slow one reads them as they are ([`oracle`]); both give the same verdict and the same
//! counters, which a property test holds. What is not covered is refused with all bad places at once
//! ([`Diagnostics`]); nothing is left out in silence.
//!
//! The semantics are x_tables' own (the legacy kernel engine's, which Linux documents), for the chains of all tables that a
//! forwarded packet meets ([`PATH`]). INPUT and OUTPUT are the host's: understood and checked, not evaluated.

mod admit;
mod ahead;
mod change;
mod check;
mod command;
mod compile;
mod context;
mod counter;
mod default;
mod diagnostic;
mod explain;
mod extension;
#[cfg(test)]
mod extension_testing;
mod host;
pub mod index;
pub mod limit;
mod lint;
mod log;
mod matches;
mod names;
mod nflog;
mod option;
pub mod oracle;
mod pair;
mod parse;
mod registry;
mod row;
mod rule;
mod runs;
mod save;
mod set;
mod table;
mod targets;
mod token;
mod told;
mod trace;
mod tracking;
mod value;
mod vector;

#[cfg(test)]
#[path = "../../tests/rules_generator/mod.rs"]
pub(crate) mod generator;
#[cfg(test)]
#[path = "../../tests/sets_generator/mod.rs"]
pub(crate) mod set_generator;
#[cfg(test)]
mod tests;

pub use admit::{Admits, FirstPacket, Judge};
pub use ahead::{Foreseen, Foresight};
pub use change::{Changed, change};
pub use context::{AddressType, Context, Liveness, World};
pub use counter::{Counter, RuleCounters};
pub use default::{DEFAULT_V4, DEFAULT_V6, default_policy, masquerade, masquerade_text};
pub use diagnostic::{Diagnostic, Diagnostics, Severity, Span};
pub use explain::{Explainer, RuleStep, decision_text};
pub use host::Redirected;
pub use lint::lint;
pub use log::{LogRecord, LogRequest, log_line};
pub use matches::*;
pub use nflog::{NflogRecord, NflogRequest, packet_block};
pub use option::option_arguments;
pub use pair::{rule_texts, unchanged};
pub use registry::Registry;
pub use rule::*;
pub use save::{line_text, rule_text, save, save_table};
pub use set::{SetSummary, SetTable, Sets};
pub use targets::{Blocks, Independence, NatPorts, NatRange, NatRequest, NatSource};
pub use targets::{LogTarget, RejectWith, SetTarget, TRACE_LOG, Target, TraceEvent, TracePlace, log_flags};
pub use told::Told;
pub use trace::Trace;
pub use tracking::{Reason, Tracking, tracking};
pub use vector::{Previous, RuleVector};

use crate::verdict::DropReason;
use crate::wire::Family;
use std::sync::Arc;

/// Reads a rules file: `text` is what `iptables-save` (IPv4) or `ip6tables-save` (IPv6) prints, `file` the name to show
/// in messages, `ports` the interface names by [`PortId`] (empty when they are not known yet).
///
/// # Errors
/// Every line that is wrong, not covered, or understood and not to be done here.
pub fn load(file: &str, text: &str, family: Family, ports: &[&str]) -> Result<Ruleset, Diagnostics> {
    load_with_sets(file, text, family, ports, &Arc::default())
}

/// Reads a rules file as [`load`] does, whose rules may name these sets (`-m set`, `-j SET`). What is compiled of it looks into
/// them, whatever they are replaced with later.
///
/// # Errors
/// As [`load`]; and every name of a set that there is not, or is of the other IP version.
pub fn load_with_sets(
    file: &str,
    text: &str,
    family: Family,
    ports: &[&str],
    sets: &Arc<SetTable>,
) -> Result<Ruleset, Diagnostics> {
    let ruleset = understand_with_sets(file, text, family, ports, sets)?;
    match ruleset.not_honoured.is_empty() {
        true => Ok(ruleset),
        false => Err(ruleset.not_honoured),
    }
}

/// Reads a rules file as [`load`] does, but takes also what is right and cannot be done here; that is then told by
/// [`Ruleset::not_honoured`]. Such rules can be printed and compared, never evaluated.
///
/// # Errors
/// Every line that is wrong or not covered (with them, all that cannot be done).
pub fn understand(file: &str, text: &str, family: Family, ports: &[&str]) -> Result<Ruleset, Diagnostics> {
    understand_with_sets(file, text, family, ports, &Arc::default())
}

/// As [`understand`], with sets that the rules may name. When there are none at all, a rule that names one is understood and
/// cannot be done.
///
/// # Errors
/// As [`understand`].
pub fn understand_with_sets(
    file: &str,
    text: &str,
    family: Family,
    ports: &[&str],
    sets: &Arc<SetTable>,
) -> Result<Ruleset, Diagnostics> {
    let mut report = diagnostic::Report::new(file, text);
    let parsed = parse::parse(text, family, None, &mut report);
    let mut ruleset = Ruleset {
        family,
        file: file.to_owned(),
        ports: ports.iter().map(|&port| port.to_owned()).collect(),
        chains: parsed.flat.chains,
        tables: parsed.tables,
        sets: Arc::clone(sets),
        named_sets: Vec::new(),
        warnings: Diagnostics::default(),
        not_honoured: Diagnostics::default(),
        line_starts: text.match_indices('\n').map(|(at, _)| at + 1).collect(),
        spoken: parsed.flat.spoken,
        spoken_by_changes: Spoken::default(),
        taken_back: Spoken::default(),
        given: false,
        file_end: text.len() + 1,
        places: text.len() + 1,
    };
    check::check(&ruleset, &mut report);
    check::warn(&ruleset, &mut report);
    ruleset.named_sets = set::check(&ruleset, &mut report);
    let hosts = check::rules_of_the_host(&ruleset);
    report.leave_to_the_host(|place| hosts.iter().any(|rule| rule.start <= place.start && place.end <= rule.end));
    if report.has_errors() {
        return Err(report.finish());
    }
    ruleset.not_honoured = report.finish_not_honoured();
    ruleset.warnings = report.finish_warnings();
    Ok(ruleset)
}

/// What the rules say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It may pass.
    Accept,
    /// It is dropped: by a rule, by the policy, or because a match could not read a header.
    Drop(DropReason),
    /// It is dropped and answered.
    Reject(RejectWith),
}
