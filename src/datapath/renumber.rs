//! Connections that were given an address which the host has lost: [`Renumbering`] ends them, as nf_nat_masquerade.c does.
//!
//! MASQUERADE gives a connection an address of the port it leaves by. When that address is removed, or the port is taken down,
//! nothing of the connection finds back, so Linux deletes it (`masq_inet_event`, `masq_device_event`); what begins anew is given
//! what there is then. An address that is added changes nothing.
//!
//! Losses come with the [`Routing`]. For each of them every record of the table is looked at once, [`SWEEP`] in a burst, so that no
//! burst waits; Linux leaves it to a work queue. Connections that begin meanwhile have other addresses, unless the address is back
//! already: then they may go with the old, as in Linux.

use crate::conntrack::Conntrack;
use crate::device::PortId;
use crate::snapshot::{LOSSES, Routing};
use crate::time::Instant;
use crate::wire::Addr;

/// Records looked at in a burst: some 30 us where all have to come from memory.
const SWEEP: usize = 1024;

/// What is looked for, each with the number of records yet to be looked at; see the module's head.
#[derive(Debug)]
pub(super) struct Renumbering {
    /// Losses that were heard of.
    heard: u64,
    /// Connections of a port that was taken down.
    down: [usize; PortId::COUNT],
    /// Those with an address that was removed.
    removed: Vec<(PortId, Addr, usize)>,
    /// Those with an address that the port does not have now: more was lost than could be remembered.
    absent: usize,
    /// The next record.
    next: usize,
}

impl Renumbering {
    pub(super) fn new() -> Renumbering {
        Renumbering { heard: 0, down: [0; PortId::COUNT], removed: Vec::with_capacity(LOSSES), absent: 0, next: 0 }
    }

    /// Whether there are records to be looked at.
    pub(super) fn is_under_way(&self) -> bool {
        self.down != [0; PortId::COUNT] || !self.removed.is_empty() || self.absent > 0
    }

    /// Hears of losses, and looks at some records.
    #[inline]
    pub(super) fn follow(&mut self, routing: &Routing, conntrack: &mut Conntrack, now: Instant) {
        if self.heard != routing.lost {
            self.hear(routing, conntrack.capacity());
        }
        if self.is_under_way() {
            self.sweep(routing, conntrack, now);
        }
    }

    #[cold]
    fn hear(&mut self, routing: &Routing, records: usize) {
        let new = usize::try_from(routing.lost - self.heard).unwrap_or(usize::MAX);
        self.heard = routing.lost;
        if new > routing.losses.len() {
            self.absent = records;
        }
        for lost in routing.losses.iter().rev().take(new) {
            let Some(addr) = lost.addr else {
                self.down[lost.port.index()] = records;
                continue;
            };
            let known = self.removed.iter().position(|&(port, before, _)| (port, before) == (lost.port, addr));
            match known {
                Some(at) => self.removed[at].2 = records,
                None if self.removed.len() == LOSSES => self.absent = records,
                None => self.removed.push((lost.port, addr, records)),
            }
        }
    }

    #[cold]
    fn sweep(&mut self, routing: &Routing, conntrack: &mut Conntrack, now: Instant) {
        let Renumbering { down, removed, absent, next, .. } = self;
        let is_lost = |port: PortId, addr: Addr| {
            down[port.index()] > 0
                || removed.iter().any(|&(of, lost, _)| (of, lost) == (port, addr))
                || *absent > 0 && !routing.port(port).addresses.iter().any(|there| there.addr == addr)
        };
        let goes_on = conntrack.end_masqueraded(*next, SWEEP, now, is_lost);
        let looked_at = goes_on.unwrap_or(conntrack.capacity()) - *next;
        *next = goes_on.unwrap_or(0);
        removed.retain_mut(|(_, _, left)| {
            *left = left.saturating_sub(looked_at);
            *left > 0
        });
        down.iter_mut().chain([absent]).for_each(|left| *left = left.saturating_sub(looked_at));
    }
}
