//! What a verdict rests on: [`Trace`].
//!
//! Linux runs the rules on every packet. The same verdict may be given to a connection's later packets without that, when
//! nothing on the way to it read anything that can differ between them. Addresses, ports, protocol, interfaces and the
//! conntrack state are of the connection and the direction (whoever keeps the verdict compares interfaces and state); TCP
//! flags, options and `limit` are of the packet; the status bits change in a connection's life, so it is told whether
//! they were read. A match that was not reached, because something before it in the same rule said no, has read nothing.
//!
//! The rules that matched are remembered by number, so that counters stay exact: whoever keeps the verdict counts its uses
//! and adds them to every rule of the trace.

use super::counter::{Counter, RuleCounters};
use super::rule::FORWARD;

/// Rules of a trace, at most. A verdict that took more is not kept.
const RULES: usize = 24;

/// What the evaluation tells on its way.
pub(super) trait Reads {
    /// Something of this packet alone was read, or done.
    fn packet(&mut self);
    /// The connection's status bits were read.
    fn status(&mut self);
    /// A rule matched.
    fn rule(&mut self, counter: u32);
    /// The chain's policy decided.
    fn policy(&mut self);
}

/// Nobody wants to know.
impl Reads for () {
    #[inline(always)]
    fn packet(&mut self) {}
    #[inline(always)]
    fn status(&mut self) {}
    #[inline(always)]
    fn rule(&mut self, _: u32) {}
    #[inline(always)]
    fn policy(&mut self) {}
}

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Trace {
    rules: [u32; RULES],
    len: u8,
    policy: bool,
    packet: bool,
    status: bool,
}

impl Reads for Trace {
    fn packet(&mut self) {
        self.packet = true;
    }

    fn status(&mut self) {
        self.status = true;
    }

    fn rule(&mut self, counter: u32) {
        match self.rules.get_mut(usize::from(self.len)) {
            Some(place) => {
                *place = counter;
                self.len += 1;
            }
            None => self.packet = true,
        }
    }

    fn policy(&mut self) {
        self.policy = true;
    }
}

impl Trace {
    /// Whether the verdict holds for every packet with the same tuple, interfaces and conntrack state (and status, see
    /// [`Trace::reads_status`]), as long as the rules are the same.
    #[inline]
    pub fn holds_for_the_flow(&self) -> bool {
        !self.packet
    }

    /// Whether the connection's status bits have to be the same, too.
    #[inline]
    pub fn reads_status(&self) -> bool {
        self.status
    }

    /// Adds `uses` of this trace to every rule on it.
    ///
    /// # Panics
    /// When `counters` are of another ruleset.
    pub fn count(&self, uses: &Counter, counters: &mut RuleCounters) {
        for &rule in &self.rules[..usize::from(self.len)] {
            counters.rules[rule as usize].add(uses);
        }
        if self.policy {
            counters.policies[FORWARD].add(uses);
        }
    }
}
