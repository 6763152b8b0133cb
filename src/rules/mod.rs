//! The rules: `iptables-save` text to a verdict.
//!
//! Text is cut into words ([`token`]), understood line by line ([`parse`], [`option`], [`value`]), checked as a whole
//! ([`check`]) and kept as typed rules ([`Ruleset`]). From those the fast engine is compiled ([`RuleVector`]: flat, jumps
//! resolved to offsets) and the slow one reads them as they are ([`oracle`]); both give the same verdict and the same
//! counters, which a property test holds. What is not covered is refused with all bad places at once
//! ([`Diagnostics`]); nothing is left out in silence.
//!
//! The semantics are x_tables' own (the legacy kernel engine's, which Linux documents), for the filter table's FORWARD
//! chain. INPUT and OUTPUT are the host's: understood and checked, not evaluated.

mod check;
// Until every extension has moved.
#[allow(dead_code)]
mod context;
mod counter;
mod default;
mod diagnostic;
#[allow(dead_code)]
mod extension;
#[cfg(test)]
#[allow(dead_code)]
mod extension_testing;
pub mod limit;
mod log;
#[allow(dead_code)]
mod matches;
mod names;
mod option;
pub mod oracle;
mod parse;
#[allow(dead_code)]
mod registry;
mod rule;
mod save;
#[allow(dead_code)]
mod targets;
mod token;
mod trace;
mod value;
mod vector;

#[cfg(test)]
#[path = "../../tests/rules_generator/mod.rs"]
pub(crate) mod generator;
#[cfg(test)]
mod tests;

pub use context::{AddressType, Liveness, World};
pub use counter::{Counter, RuleCounters};
pub use default::{DEFAULT_V4, DEFAULT_V6, default_policy};
pub use diagnostic::{Diagnostic, Diagnostics, Severity, Span};
pub use log::{LogRecord, LogRequest, log_line};
pub use rule::*;
pub use save::save;
pub use trace::Trace;
pub use vector::RuleVector;

use crate::conntrack::{CtInfo, CtStatus};
use crate::device::PortId;
use crate::packet::Packet;
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::Family;

/// Reads a rules file: `text` is what `iptables-save` (IPv4) or `ip6tables-save` (IPv6) prints, `file` the name to show
/// in messages, `ports` the interface names by [`PortId`] (empty when they are not known yet).
///
/// # Errors
/// Every line that is wrong or not covered.
pub fn load(file: &str, text: &str, family: Family, ports: &[&str]) -> Result<Ruleset, Diagnostics> {
    let mut report = diagnostic::Report::new(file, text);
    let parsed = parse::parse(text, family, &mut report);
    let mut ruleset = Ruleset {
        family,
        file: file.to_owned(),
        ports: ports.iter().map(|&port| port.to_owned()).collect(),
        chains: parsed.chains,
        empty_tables: parsed.empty_tables,
        warnings: Diagnostics::default(),
    };
    check::check(&ruleset, parsed.has_filter, &mut report);
    if report.has_errors() {
        return Err(report.finish());
    }
    ruleset.warnings = report.finish();
    Ok(ruleset)
}

/// What the rules are asked about: a packet between routing and sending.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The packet. Its `ttl` is the one it will leave with (Linux counts down before FORWARD).
    pub packet: &'a Packet,
    /// The whole frame.
    pub frame: &'a [u8],
    /// The port it came in by.
    pub in_port: PortId,
    /// The port it would leave by.
    pub out_port: PortId,
    /// What conntrack says of it.
    pub info: CtInfo,
    /// Status of its connection; empty when there is none.
    pub status: CtStatus,
    /// The time.
    pub now: Instant,
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
