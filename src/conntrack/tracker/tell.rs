//! Events of connections, while somebody listens: what is recorded when they begin, change and end.

use super::{ConnRef, Conntrack};
use crate::conntrack::conn::{Conn, ConnId};
use crate::conntrack::event::{Event, EventKind};
use crate::time::Instant;

impl Conntrack {
    /// Begins or ends to record events; what was recorded and not fetched is forgotten.
    pub fn listen(&mut self, on: bool) {
        self.events.listen(on);
    }

    /// Whether events are recorded.
    #[inline]
    pub fn is_listening(&self) -> bool {
        self.events.is_on()
    }

    /// Events since they were last fetched, oldest first: to be drained at least once per batch.
    pub fn events(&mut self) -> &mut Vec<Event> {
        self.events.waiting()
    }

    /// Takes the number of events that found no room.
    pub fn take_events_lost(&mut self) -> u64 {
        self.events.take_lost()
    }

    /// Events of what packets have changed since the last: a packet of the connection leaves.
    #[inline]
    pub fn tell_news(&mut self, conn: ConnRef, now: Instant) {
        if self.events.is_on()
            && let ConnRef::Confirmed(id) = conn
        {
            self.tell_changes(id, now);
        }
    }

    /// Tells what has changed since this was last told, once a packet of the connection leaves
    /// (`nf_ct_deliver_cached_events`). Linux leaves the protocol's state out where that is not what has changed.
    #[cold]
    fn tell_changes(&mut self, id: ConnId, now: Instant) {
        let conn = self.table.get_mut(id);
        let noted = conn.flags & (Conn::CHANGED | Conn::MOVED);
        if noted == 0 || !conn.is_confirmed() {
            return;
        }
        conn.flags &= !noted;
        let mut conn = self.view(id, self.table.get(id), now);
        conn.state = conn.state.filter(|_| noted & Conn::MOVED != 0);
        self.events.record(Event { kind: EventKind::Update, at: now, conn, by: 0 });
    }

    #[inline]
    pub(super) fn tell(&mut self, kind: EventKind, id: ConnId, now: Instant, by: u32) {
        if self.events.is_on() {
            let record = self.table.get(id);
            let mut conn = self.view(id, record, now);
            if kind == EventKind::Destroy && conn.start.is_some() {
                conn.stop = Some(now.min(record.expires()).as_ns());
            }
            self.events.record(Event { kind, at: now, conn, by });
        }
    }
}
