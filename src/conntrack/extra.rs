//! What few connections have beside their record: [`Extra`], for those that have a helper, were expected, or have their
//! sequence numbers changed (Linux: `nf_conn_help`, `nf_conn_seqadj`, `ct->master`).
//!
//! An extra is made with the prepared connection and belongs to nobody until that is confirmed ([`Extras::attach`]); it goes
//! with the connection. The connection's status says that it has one (HELPER, EXPECTED, SEQ_ADJUST), so that others are never
//! looked for here. An extra's number is what expectations know their master by. Memory grows with the number of such
//! connections, which the table bounds.

use super::conn::ConnId;
use super::expect::MasterId;
use super::helper::{Helper, Memory};
use super::seqadj::SeqAdjust;
use super::tuple::CtStatus;

/// See the module's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extra {
    /// The helper that a rule gave it.
    pub(super) helper: Option<Helper>,
    /// What that remembers.
    pub(super) memory: Memory,
    /// How its sequence numbers are changed.
    pub(super) adjust: SeqAdjust,
    /// The helper of the connection that it was expected by.
    pub(super) master: Option<Helper>,
    /// That connection's number, and which of those that have had it.
    pub(super) parent: Option<(MasterId, u32)>,
}

impl Extra {
    /// The status of connections that have one.
    pub(super) const STATUS: CtStatus = CtStatus::HELPER.with(CtStatus::EXPECTED).with(CtStatus::SEQ_ADJUST);

    /// With a helper, or without one.
    pub(super) fn new(helper: Option<Helper>, master: Option<Helper>) -> Extra {
        let memory = helper.map_or(Memory::None, Helper::memory);
        Extra { helper, memory, adjust: SeqAdjust::default(), master, parent: None }
    }
}

/// Ends the list of free places.
const END: u32 = u32::MAX;

/// A place for one; or the next of the free ones.
#[derive(Clone, Copy, Debug)]
struct Slot {
    extra: Option<Extra>,
    conn: Option<ConnId>,
    next: u32,
    /// How often the place was used before.
    serial: u32,
}

/// All of a table's connections, found by number.
#[derive(Debug)]
pub(super) struct Extras {
    slots: Vec<Slot>,
    free: u32,
    /// By the connection's number: 1 more than that of its own, 0 without one. Zeroes come from the kernel as pages that exist
    /// once they are written to.
    of_conn: Vec<u32>,
}

impl Extras {
    /// None yet, for a table of so many connections.
    pub(super) fn new(capacity: usize) -> Extras {
        Extras { slots: Vec::new(), free: END, of_conn: vec![0; capacity] }
    }

    /// Adds one that belongs to nobody yet.
    pub(super) fn add(&mut self, extra: Extra) -> MasterId {
        let filled = Slot { extra: Some(extra), conn: None, next: END, serial: 0 };
        match self.slots.get_mut(self.free as usize) {
            Some(slot) => {
                let number = self.free;
                self.free = slot.next;
                *slot = Slot { serial: slot.serial, ..filled };
                MasterId(number)
            }
            None => {
                self.slots.push(filled);
                MasterId((self.slots.len() - 1) as u32)
            }
        }
    }

    /// It belongs to a connection in the table now.
    pub(super) fn attach(&mut self, number: MasterId, conn: ConnId) {
        if let Some(slot) = self.slots.get_mut(number.0 as usize) {
            slot.conn = Some(conn);
            self.of_conn[conn.index()] = number.0 + 1;
        }
    }

    /// That of a connection.
    pub(super) fn of(&self, conn: ConnId) -> Option<MasterId> {
        self.of_conn[conn.index()].checked_sub(1).map(MasterId)
    }

    /// The connection it belongs to, which is in the table.
    pub(super) fn conn(&self, number: MasterId) -> Option<ConnId> {
        self.slots.get(number.0 as usize)?.conn
    }

    pub(super) fn get(&self, number: MasterId) -> Option<&Extra> {
        self.slots.get(number.0 as usize)?.extra.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: MasterId) -> Option<&mut Extra> {
        self.slots.get_mut(number.0 as usize)?.extra.as_mut()
    }

    /// Which of those that have had this number it is.
    pub(super) fn serial(&self, number: MasterId) -> Option<u32> {
        self.slots.get(number.0 as usize).filter(|slot| slot.extra.is_some()).map(|slot| slot.serial)
    }

    /// Its connection is gone, or was never confirmed.
    pub(super) fn remove(&mut self, number: MasterId) {
        let Some(&Slot { extra: Some(_), conn, serial, .. }) = self.slots.get(number.0 as usize) else { return };
        if let Some(conn) = conn {
            self.of_conn[conn.index()] = 0;
        }
        let serial = serial.wrapping_add(1);
        self.slots[number.0 as usize] = Slot { extra: None, conn: None, next: self.free, serial };
        self.free = number.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// With its entry by connection, what the architecture's page says.
    #[test]
    fn a_place_takes_96_bytes_at_most() {
        assert!(size_of::<Slot>() <= 96, "{}", size_of::<Slot>());
    }

    proptest! {
        #[test]
        fn each_connection_finds_its_own(steps in proptest::collection::vec((0u8..4, 0u32..60), 1..200)) {
            let mut extras = Extras::new(1024);
            let mut model = BTreeMap::new();
            for (what, conn) in steps {
                let conn = ConnId(conn * 7);
                if what < 3 && !model.contains_key(&conn) {
                    let number = extras.add(Extra::new(Some(Helper::ALL[what as usize]), None));
                    prop_assert!(extras.conn(number).is_none());
                    extras.attach(number, conn);
                    model.insert(conn, (number, Helper::ALL[what as usize]));
                } else if what == 3 && let Some((number, _)) = model.remove(&conn) {
                    extras.remove(number);
                    prop_assert!(extras.get(number).is_none());
                }
                let used = extras.slots.iter().filter(|slot| slot.extra.is_some()).count();
                prop_assert_eq!(used, model.len());
                for at in 0..60 {
                    let conn = ConnId(at * 7);
                    prop_assert_eq!(extras.of(conn), model.get(&conn).map(|one| one.0));
                    if let Some((number, helper)) = model.get(&conn) {
                        let found = extras.get(*number).and_then(|extra| extra.helper);
                        prop_assert_eq!((found, extras.conn(*number)), (Some(*helper), Some(conn)));
                    }
                }
            }
        }
    }
}
