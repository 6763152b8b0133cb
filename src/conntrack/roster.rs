//! Connections that other workers ask about ([`Roster`]): those that `-m connlimit` counts, which counts over all workers.
//!
//! A connection is put in by the worker that has it when a rule counts it, before it is confirmed; it leaves with the connection,
//! or with the packet that did not begin one after all. It is under locks, each for a part: taken when such a connection
//! begins, ends, is closed by TCP, or is asked about by another worker.

use std::sync::{Mutex, MutexGuard};

use hashbrown::HashMap;

use super::tuple::Tuple;
use crate::schedule;

const PARTS: usize = 64;

/// See the module's head. Original tuples with their zones, and whether TCP has closed them.
#[derive(Debug)]
pub(super) struct Roster {
    parts: [Mutex<HashMap<Tuple, bool>>; PARTS],
}

impl Default for Roster {
    fn default() -> Roster {
        Roster { parts: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Roster {
    fn part(&self, tuple: &Tuple) -> MutexGuard<'_, HashMap<Tuple, bool>> {
        let ((_, src), (_, dst)) = (tuple.src.words(), tuple.dst.words());
        let ports = u64::from(tuple.sport) << 16 | u64::from(tuple.dport);
        let at = (src ^ dst.rotate_left(32) ^ ports).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        schedule::lock(&self.parts[at as usize])
    }

    /// It is there, open or closed.
    pub(super) fn put(&self, original: &Tuple, closing: bool) {
        self.part(original).insert(*original, closing);
    }

    /// It is gone.
    pub(super) fn remove(&self, original: &Tuple) {
        self.part(original).remove(original);
    }

    /// Whether it is there; and if so, whether TCP has closed it.
    pub(super) fn is_closing(&self, original: &Tuple) -> Option<bool> {
        self.part(original).get(original).copied()
    }
}
