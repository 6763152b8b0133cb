//! What rules ask about connections, beyond what a packet's own tracking has told. Nothing here changes anything.

use super::{ConnRef, Conntrack};
use crate::conntrack::conn::Conn;
use crate::conntrack::list::{Counter, StateView};
use crate::conntrack::tuple::{Direction, Tuple};
use crate::time::{Instant, SECOND_NS};

impl Conntrack {
    /// Whole seconds until a packet's connection expires (`nf_ct_expires`); 0 while it is not confirmed, or without one.
    pub fn expires_in(&self, conn: ConnRef, now: Instant) -> u32 {
        match (conn, self.conn(conn)) {
            (ConnRef::Confirmed(_) | ConnRef::Ended, Some(conn)) => {
                (conn.expires().saturating_since(now) / SECOND_NS) as u32
            }
            _ => 0,
        }
    }

    /// What was counted for one direction of a packet's connection, the packet included; `None` where nothing is
    /// (`nf_conntrack_acct` was off when the connection began).
    pub fn traffic(&self, conn: ConnRef, direction: Direction) -> Option<Counter> {
        match conn {
            ConnRef::None => None,
            ConnRef::Confirmed(id) if self.conn(conn)?.flags & Conn::COUNTED != 0 => {
                self.counters.get(id.index()).map(|counters| counters[direction.index()])
            }
            ConnRef::Confirmed(_) => None,
            // Its counters stand until the record is another's.
            ConnRef::Ended => {
                let (id, old) = self.ended.as_ref()?;
                let counters = self.counters.get(id.index()).filter(|_| old.conn.flags & Conn::COUNTED != 0);
                counters.map(|counters| counters[direction.index()])
            }
            ConnRef::Prepared if self.counters.is_empty() => None,
            ConnRef::Prepared if direction == Direction::Original => Some(self.prepared_counter),
            ConnRef::Prepared => Some(Counter::default()),
        }
    }

    /// Whether a live connection has this original tuple; and if so, whether TCP has closed it (TIME_WAIT, CLOSE).
    pub fn is_closing(&self, original: &Tuple, now: Instant) -> Option<bool> {
        let (id, direction) = self.find(original, self.hash(original))?;
        let conn = self.conn(ConnRef::Confirmed(id)).filter(|conn| !conn.is_expired(now))?;
        let closing = matches!(conn.state_view(), Some(StateView::TimeWait | StateView::Close));
        (direction == Direction::Original).then_some(closing)
    }
}
