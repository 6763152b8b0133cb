//! What was looked up for packets before they meet their chain: [`Foresight`].
//!
//! A search in an index waits for memory several times. One packet alone waits for all of it, sixty-four side by side for hardly
//! more than one does. So whoever has a batch in hand says what its packets will likely be when they come to a chain ([`Foresight::add`]),
//! has all of them looked up together ([`RuleVector::foresee`]), and gives each evaluation what was foreseen for it.
//!
//! It only saves time. The evaluation takes what was foreseen where it stands at the row that was asked about, with just the key
//! that it was asked with: then it is what the index would say. Anything else (another state, another way out, addresses that a
//! rule has changed) is looked up as ever.
//!
//! Good for the vector that was asked, until it is asked again or cleared. All memory is taken at start; what finds no
//! room in it is not foreseen.

use super::index::{Key, NONE, V4, V6};
use super::row::{Facts, Word};
use super::runs;
use crate::conntrack::CtInfo;
use crate::device::PortId;
use crate::packet::Packet;
use crate::wire::Family;

/// What packets of a batch are thought to be, and what was found for them. See the module's head.
#[derive(Debug)]
pub struct Foresight {
    pub(super) v4: Asked<V4>,
    pub(super) v6: Asked<V6>,
}

/// The same for one IP version, by number.
#[derive(Debug)]
pub(super) struct Asked<const N: usize> {
    pub(super) keys: Vec<Key<N>>,
    /// Positions in the chain, [`NONE`] for its end. None before they are looked up.
    pub(super) found: Vec<u32>,
    /// The first row that was asked about, and the chain's end.
    pub(super) from: usize,
    pub(super) end: usize,
}

/// What was foreseen for one packet.
#[derive(Clone, Copy, Debug)]
pub struct Foreseen<'a> {
    pub(super) foresight: &'a Foresight,
    pub(super) number: usize,
}

impl Foresight {
    /// Of nothing, with room for so many packets of each IP version.
    pub fn with_room(packets: usize) -> Foresight {
        Foresight { v4: Asked::with_room(packets), v6: Asked::with_room(packets) }
    }

    /// Forgets everything.
    #[inline]
    pub fn clear(&mut self) {
        self.v4.clear();
        self.v6.clear();
    }

    /// A packet will likely come with this state and, once it is routed, leave by this port. Gives its number among those of
    /// its IP version, if there is room.
    #[inline]
    pub fn add(&mut self, packet: &Packet, out_port: Option<PortId>, info: CtInfo) -> Option<usize> {
        match packet.family {
            Family::V4 => self.v4.add(&Facts::<u32>::of_packet(packet, packet.port, out_port, info)),
            Family::V6 => self.v6.add(&Facts::<u128>::of_packet(packet, packet.port, out_port, info)),
        }
    }

    /// How many packets of an IP version have a number.
    #[inline]
    pub fn len(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.keys.len(),
            Family::V6 => self.v6.keys.len(),
        }
    }

    /// Whether no packet has a number.
    pub fn is_empty(&self) -> bool {
        self.v4.keys.is_empty() && self.v6.keys.is_empty()
    }

    /// What was foreseen for the packet of this number.
    #[inline]
    pub fn of(&self, number: usize) -> Foreseen<'_> {
        Foreseen { foresight: self, number }
    }
}

impl<const N: usize> Asked<N> {
    fn with_room(packets: usize) -> Asked<N> {
        Asked { keys: Vec::with_capacity(packets), found: Vec::with_capacity(packets), from: 0, end: 0 }
    }

    #[inline]
    fn clear(&mut self) {
        self.keys.clear();
        self.found.clear();
    }

    #[inline(always)]
    fn add<W: Word>(&mut self, facts: &Facts<W>) -> Option<usize> {
        let number = self.keys.len();
        if number == self.keys.capacity() {
            return None;
        }
        self.keys.push(runs::key(facts));
        Some(number)
    }

    /// The row that a packet with this key goes to from row `at`, if that was asked.
    #[inline(always)]
    pub(super) fn answer(&self, number: usize, at: usize, key: &Key<N>) -> Option<usize> {
        let (asked, found) = (self.keys.get(number)?, *self.found.get(number)?);
        if (at != self.from) | (asked != key) {
            return None;
        }
        Some(if found == NONE { self.end } else { self.from + found as usize })
    }
}
