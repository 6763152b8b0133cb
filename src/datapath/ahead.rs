//! What is looked up for the new flows of a batch before the first of its packets is decided: [`Ahead`].
//!
//! The first packet of a connection asks the routes and all the rules. Both wait for memory, and neither needs to wait for the
//! packet before: so, where a batch has several such packets, they are looked up side by side ([`Foresight`]). Which packets
//! those are is a guess (conntrack has no candidate for them), and so is what they will be at the rules (NEW, and not changed on
//! the way); a wrong guess costs a lookup and changes nothing.
//!
//! Measured (`bench/rules.rs`, the whole evaluation one by one and in batches): 44 and 28 ns at 100 rules, 98 and 74 at 10,000.

use crate::conntrack::{Candidate, CtInfo};
use crate::route::Route;
use crate::rules::{FORWARD, Foreseen, Foresight, RuleCounters, RuleVector};
use crate::snapshot::{Policy, Routing};
use crate::wire::Family;

use super::BATCH;
use super::shard::{Work, family_index};

/// New flows of a batch for which it is worth it.
pub(super) const WORTH: usize = 2;

/// A packet's place in [`Ahead`], when it has none.
pub(super) const NOWHERE: u16 = u16::MAX;

/// What was found for one packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Where its destination leads.
    pub(super) route: Route,
    /// Its number in the foresight.
    pub(super) number: Option<usize>,
}

/// See the module's head. Good for one batch.
#[derive(Debug)]
pub(super) struct Ahead {
    list: Vec<Seen>,
    foresight: Foresight,
    off: bool,
}

impl Ahead {
    /// Of nothing, with room for a batch.
    pub(super) fn new() -> Ahead {
        Ahead { list: Vec::with_capacity(BATCH), foresight: Foresight::with_room(BATCH), off: false }
    }

    /// From now on nothing is looked up; for tests and comparisons.
    pub(super) fn turn_off(&mut self) {
        self.off = true;
    }

    /// Packets of the last batch for which something was looked up.
    #[cfg(test)]
    pub(super) fn foreseen_count(&self) -> usize {
        self.list.iter().filter(|seen| seen.number.is_some()).count()
    }

    /// Forgets the batch before.
    #[inline]
    pub(super) fn clear(&mut self) {
        if !self.list.is_empty() {
            self.list.clear();
            self.foresight.clear();
        }
    }

    /// What was found for the packet at `place`.
    #[inline]
    pub(super) fn get(&self, place: u16) -> Option<Seen> {
        self.list.get(usize::from(place)).copied()
    }

    /// What the rules have for a packet.
    #[inline]
    pub(super) fn foreseen(&self, number: Option<usize>) -> Option<Foreseen<'_>> {
        number.map(|number| self.foresight.of(number))
    }

    /// Looks up the new flows of a batch.
    #[inline(never)]
    pub(super) fn look(&mut self, policy: &Policy, routing: &Routing, rules: &[RuleCounters; 2], batch: &mut [Work]) {
        let vectors = [&policy.v4, &policy.v6];
        let wanted = vectors.map(|vector| vector.foresees(FORWARD) && !self.off);
        if wanted == [false; 2] {
            return;
        }
        let infos = vectors.map(first_info);
        for work in batch {
            work.ahead = NOWHERE;
            let family = family_index(work.packet.family);
            let is_new = work.unreadable.is_none() && work.candidate == Candidate::NONE;
            if is_new && wanted[family] && self.list.len() < BATCH {
                work.ahead = self.add(routing, work, infos[family]);
            }
        }
        for (family, vector) in [Family::V4, Family::V6].into_iter().zip(vectors) {
            if self.foresight.len(family) >= WORTH {
                vector.foresee(FORWARD, &mut self.foresight, &rules[family_index(family)]);
            }
        }
    }

    #[inline(always)]
    fn add(&mut self, routing: &Routing, work: &Work, info: CtInfo) -> u16 {
        let packet = &work.packet;
        if work.destination != routing.ports[packet.port.index()].mac {
            return NOWHERE;
        }
        let route = routing.lookup(packet.family, packet.src, packet.dst);
        let number = match route {
            Route::Forward { port, .. } => self.foresight.add(packet, Some(port), info),
            _ => None,
        };
        self.list.push(Seen { route, number });
        self.list.len() as u16 - 1
    }
}

/// What conntrack will say of a flow's first packet.
fn first_info(vector: &RuleVector) -> CtInfo {
    if vector.wants_conntrack() { CtInfo::New } else { CtInfo::Invalid }
}
