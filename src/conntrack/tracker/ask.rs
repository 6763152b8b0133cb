//! What rules ask about connections, beyond what a packet's own tracking has told. Nothing here changes anything.

use super::{ConnRef, Conntrack, Outcome, Tracked, apply};
use crate::conntrack::conn::{Conn, Prepared};
use crate::conntrack::list::{Counter, StateView};
use crate::conntrack::template::Zone;
use crate::conntrack::tuple::{CtInfo, Direction, Tuple};
use crate::packet::Packet;
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

    /// What [`Conntrack::track`] would say of a packet, if it is of a connection in the table: else INVALID. Nothing changes.
    pub fn peek(&mut self, packet: &Packet, frame: &[u8], now: Instant) -> Tracked {
        if packet.is_icmp() {
            return self.look_at_icmp(packet, frame, Zone::DEFAULT, now).unwrap_or(Tracked::INVALID);
        }
        let tuple = Tuple::of(packet);
        let Some((id, direction)) = self.lookup(&tuple, self.hash(&tuple), now) else { return Tracked::INVALID };
        let Prepared { mut conn, mut tcp, .. } = self.record(id);
        let status = conn.status;
        let adjust = self.seq_adjust(id);
        match apply((&mut conn, &mut tcp), direction, packet, frame, &self.settings, adjust.as_ref(), now) {
            Outcome::Invalid | Outcome::Reopen => Tracked::INVALID,
            _ if direction == Direction::Reply => {
                Tracked { info: CtInfo::EstablishedReply, conn: ConnRef::Confirmed(id), status }
            }
            _ => Tracked { info: CtInfo::Established, conn: ConnRef::Confirmed(id), status },
        }
    }

    /// Whether a live connection has this original tuple; and if so, whether TCP has closed it (TIME_WAIT, CLOSE).
    pub fn is_closing(&self, original: &Tuple, now: Instant) -> Option<bool> {
        let Some((id, direction)) = self.find(original, self.hash(original)) else {
            return self.homes.as_ref()?.roster().is_closing(original);
        };
        let conn = self.conn(ConnRef::Confirmed(id)).filter(|conn| !conn.is_expired(now))?;
        let closing = matches!(conn.state_view(), Some(StateView::TimeWait | StateView::Close));
        (direction == Direction::Original).then_some(closing)
    }
}
