//! Connections that cannot be confirmed, mostly since another has their tuple (`nf_ct_resolve_clash`).

use super::Conntrack;
use crate::conntrack::conn::{Conn, ConnId, Prepared};
use crate::conntrack::tuple::Direction;
use crate::verdict::DropReason;
use crate::wire::proto;

impl Conntrack {
    /// Another connection has one of the two tuples (`nf_ct_resolve_clash`). A packet joins it if the other tuple is the same
    /// too and its protocol does not retransmit; else it is dropped. Packet by packet only a reply tuple can be taken: by
    /// address translation, or by zones of one direction.
    #[cold]
    pub(super) fn resolve_clash(&mut self, new: &Prepared, winner: ConnId) -> Result<(), DropReason> {
        let conn = &new.conn;
        let retransmits = matches!(conn.proto, proto::TCP | proto::SCTP | proto::ICMP | proto::ICMPV6);
        let same = |way| new.tuple(way) == self.table.tuple(winner, way);
        let same = same(Direction::Original) && same(Direction::Reply) && self.table.get(winner).zone() == conn.zone();
        if !retransmits && same {
            self.statistics.clash_resolve += 1;
            let count = self.prepared_counter;
            if conn.flags & Conn::COUNTED != 0
                && let Some([original, _]) = self.counters_of(winner)
            {
                *original = original.plus(count);
            }
            return Ok(());
        }
        self.refuse_new(DropReason::ConntrackClash)
    }

    pub(super) fn refuse_new(&mut self, reason: DropReason) -> Result<(), DropReason> {
        self.statistics.insert_failed += 1;
        self.statistics.drop += 1;
        Err(reason)
    }
}
