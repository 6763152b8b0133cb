//! What a verdict rests on: [`Trace`].
//!
//! Linux runs the rules on every packet. The same verdict may be given to a connection's later packets without that, when
//! nothing on the way to it read anything that can differ between them. Addresses, ports, protocol, interfaces and the
//! conntrack state are of the connection and the direction (whoever keeps the verdict compares interfaces and state); TCP
//! options and `limit` are of the packet; TCP flags and the connection's status bits are few enough to be compared, so it
//! is told which were read. A match that was not reached, because something before it in the same rule said no, has read
//! nothing. One trace goes through all chains of a packet's way.
//!
//! The rules that matched are remembered by number, so that counters stay exact: whoever keeps the verdict counts its uses
//! and adds them to every rule of the trace. Of a very long way the first rules are remembered and the last one, which may
//! have decided; how many were left out between them is known, and no such verdict is kept.

use super::counter::{Counter, RuleCounters};
use super::rule::ChainIndex;

/// Rules of a trace, at most. A verdict that took more is not kept.
const RULES: usize = 32;

/// What the evaluation tells on its way.
pub(super) trait Reads {
    /// Something of this packet alone was read, or done.
    fn packet(&mut self);
    /// The connection's status bits were read.
    fn status(&mut self);
    /// These TCP flags were read.
    fn flags(&mut self, mask: u8);
    /// The connection's mark was read, or written.
    fn conn_mark(&mut self);
    /// A rule matched.
    fn rule(&mut self, counter: u32);
    /// The policy of a built-in chain decided.
    fn policy(&mut self, chain: ChainIndex);
}

/// Nobody wants to know.
impl Reads for () {
    #[inline(always)]
    fn packet(&mut self) {}
    #[inline(always)]
    fn status(&mut self) {}
    #[inline(always)]
    fn flags(&mut self, _: u8) {}
    #[inline(always)]
    fn conn_mark(&mut self) {}
    #[inline(always)]
    fn rule(&mut self, _: u32) {}
    #[inline(always)]
    fn policy(&mut self, _: ChainIndex) {}
}

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Trace {
    rules: [u32; RULES],
    len: u8,
    /// Rules that matched before the last one of `rules` and found no room; 65,535 may be more.
    left_out: u16,
    /// Bit `c`: the policy of built-in chain `c` decided.
    policies: u32,
    /// TCP flags that were read.
    flags: u8,
    conn_mark: bool,
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
            None => {
                self.rules[RULES - 1] = counter;
                self.left_out = self.left_out.saturating_add(1);
                self.packet = true;
            }
        }
    }

    fn flags(&mut self, mask: u8) {
        self.flags |= mask;
    }

    fn conn_mark(&mut self) {
        self.conn_mark = true;
    }

    fn policy(&mut self, chain: ChainIndex) {
        self.policies |= 1 << chain;
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

    /// Whether the connection's mark has to be the same, too. The verdict may be kept only if the mark was the same after it as
    /// before: then it will be again.
    #[inline]
    pub fn reads_conn_mark(&self) -> bool {
        self.conn_mark
    }

    /// TCP flags that have to be the same, too.
    #[inline]
    pub fn reads_flags(&self) -> u8 {
        self.flags
    }

    /// The numbers of the rules that matched, in order, but for those that [`Trace::left_out`] tells of.
    pub fn rules(&self) -> &[u32] {
        &self.rules[..usize::from(self.len)]
    }

    /// How many rules matched between the last but one of [`Trace::rules`] and the last, and are not among them.
    pub fn left_out(&self) -> u16 {
        self.left_out
    }

    /// Whether the policy of this built-in chain decided.
    pub fn has_policy(&self, chain: ChainIndex) -> bool {
        self.policies & 1 << chain != 0
    }

    /// Adds `uses` of this trace to every rule on it.
    ///
    /// # Panics
    /// When `counters` are of another ruleset.
    pub fn count(&self, uses: &Counter, counters: &mut RuleCounters) {
        for &rule in &self.rules[..usize::from(self.len)] {
            counters.rules[rule as usize].add(uses);
        }
        for (chain, policy) in counters.policies.iter_mut().enumerate().take(u32::BITS as usize) {
            if self.policies & 1 << chain != 0 {
                policy.add(uses);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_way_keeps_its_beginning_and_its_end() {
        let mut trace = Trace::default();
        (0..RULES as u32).for_each(|rule| trace.rule(rule));
        assert!(trace.holds_for_the_flow() && trace.left_out() == 0);
        (0..70_000).for_each(|rule| trace.rule(1000 + rule));
        assert!(!trace.holds_for_the_flow(), "its rules could not be counted again");
        let (last, first) = trace.rules().split_last().expect("rules");
        assert!(*last == 70_999 && first.iter().copied().eq(0..RULES as u32 - 1));
        assert_eq!(trace.left_out(), u16::MAX);
    }
}
