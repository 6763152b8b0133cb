//! Connections shown to an operator, and deleted for one, in bounded pieces.

use super::Conntrack;
use crate::conntrack::conn::ConnId;
use crate::conntrack::list::ConnView;
use crate::conntrack::tuple::Tuple;
use crate::time::Instant;

impl Conntrack {
    /// Shows up to `budget` records from `cursor` (0 at first) to `each`. Returns the cursor of the next piece, `None`
    /// after the last. Connections that come and go between pieces may be shown or not; one that stays is shown once.
    pub fn list(&self, cursor: usize, budget: usize, now: Instant, each: &mut dyn FnMut(&ConnView)) -> Option<usize> {
        let end = cursor.saturating_add(budget.max(1)).min(self.capacity());
        for (offset, conn) in self.table.records().get(cursor..end)?.iter().enumerate() {
            if conn.is_confirmed() && !conn.is_expired(now) {
                each(&self.view(ConnId((cursor + offset) as u32), conn, now));
            }
        }
        (end < self.capacity()).then_some(end)
    }

    /// Removes, of up to `budget` records from `cursor` on, the live ones that `which` says yes to. `by` is the process
    /// that wants it. Returns the next cursor, as [`Conntrack::list`] does.
    pub fn delete(
        &mut self,
        cursor: usize,
        budget: usize,
        now: Instant,
        by: u32,
        which: &mut dyn FnMut(&ConnView) -> bool,
    ) -> Option<usize> {
        let end = cursor.saturating_add(budget.max(1)).min(self.capacity());
        for index in cursor..end {
            let id = ConnId(index as u32);
            let conn = self.table.get(id);
            if conn.is_confirmed() && !conn.is_expired(now) && which(&self.view(id, conn, now)) {
                self.remove(id, now, by);
            }
        }
        (end < self.capacity()).then_some(end)
    }

    /// The live connection that has this tuple, in either direction.
    pub fn get(&mut self, tuple: &Tuple, now: Instant) -> Option<ConnView> {
        let (id, _) = self.lookup(tuple, self.hash(tuple), now)?;
        Some(self.view(id, self.table.get(id), now))
    }
}
