//! A connection taken along to another tracker: [`ConnCopy`], so that what a packet would do to it can be tried without
//! touching it.

use super::{ConnRef, Conntrack};
use crate::conntrack::conn::{Conn, ConnId, Prepared, UNLINKED};
use crate::conntrack::extra::Extra;
use crate::conntrack::list::{ConnView, Counter};
use crate::conntrack::tuple::{Direction, Tuple};
use crate::time::Instant;

/// All that a tracker knows of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnCopy {
    record: Prepared,
    counters: Option<[Counter; 2]>,
    start: Option<Instant>,
    extra: Option<Extra>,
    /// As a listing shows it.
    pub view: ConnView,
}

impl Conntrack {
    /// The live connection that has this tuple, in either direction. Nothing changes.
    pub fn copy(&self, tuple: &Tuple, now: Instant) -> Option<ConnCopy> {
        let (id, _) = self.find(tuple, self.hash(tuple))?;
        let conn = self.table.get(id);
        if !conn.is_confirmed() || conn.is_expired(now) {
            return None;
        }
        Some(ConnCopy {
            record: self.record(id),
            counters: self.counters.get(id.index()).copied(),
            start: self.starts.get(id.index()).copied(),
            extra: self.extra(ConnRef::Confirmed(id)).copied(),
            view: self.view(id, conn, now),
        })
    }

    /// All of a connection in the table, but for where it hangs and what the datapath has noted.
    pub(super) fn record(&self, id: ConnId) -> Prepared {
        let tuples = [Direction::Original, Direction::Reply].map(|direction| self.table.tuple(id, direction));
        Prepared {
            addresses: tuples.map(|tuple| [tuple.src, tuple.dst]),
            conn: Conn { shortcut: [0; 2], link: UNLINKED, ..*self.table.get(id) },
            tcp: self.table.tcp(id),
            note: self.table.note(id),
            opens: false,
            block: None,
            exhausted: false,
        }
    }

    /// Adds a connection as another tracker had it. Does nothing when there is no room, or its tuple is taken.
    pub fn put_copy(&mut self, copy: &ConnCopy, now: Instant) {
        let tuples = [Direction::Original, Direction::Reply].map(|direction| copy.record.tuple(direction));
        let taken = tuples.iter().any(|tuple| self.find(tuple, self.hash(tuple)).is_some());
        if taken || !self.reserve() {
            return;
        }
        let record = Prepared { note: copy.record.note.without_loans(), ..copy.record };
        let Some(id) = self.insert(&record) else { return };
        self.note_source(id, true);
        self.note_begin(id);
        if let Some(extra) = copy.extra {
            let number = self.extras.add(extra);
            self.extras.attach(number, id);
        }
        if let (Some(place), Some(counters)) = (self.counters.get_mut(id.index()), copy.counters) {
            *place = counters;
        }
        if let (Some(place), Some(start)) = (self.starts.get_mut(id.index()), copy.start) {
            *place = start;
        }
        let record = self.table.get_mut(id);
        if record.link == UNLINKED {
            self.wheel.hang(record, id, now);
        }
    }
}
