//! What was looked up for packets before they meet their chain: [`Foresight`].
//!
//! A search in an index waits for memory several times. One packet alone waits for all of it, sixty-four side by side for hardly
//! more than one does. So whoever has a batch in hand says what its packets will likely be when they come to a chain
//! ([`Foresight::add`]), has all of them looked up together ([`RuleVector::foresee`](super::RuleVector::foresee)), and gives each
//! evaluation what was foreseen for it.
//!
//! It only saves time. The evaluation takes what was foreseen where it stands at the row that was asked about, with just the key
//! that it was asked with: then it is what the index would say. Anything else (another state, another way out, addresses that a
//! rule has changed) is looked up as ever.
//!
//! Good for the vector that was asked, until it is asked again or cleared. All memory is taken at start; what finds no
//! room in it is not foreseen.

use super::index::{Key, NONE, Scratch, V4, V6};
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
    pub(super) scratch: Box<Scratch>,
}

/// The same for one IP version, by number.
#[derive(Debug)]
pub(super) struct Asked<const N: usize> {
    pub(super) keys: Vec<Key<N>>,
    /// None before they are looked up.
    pub(super) places: Vec<Place>,
    /// For a look-up of some of them.
    pub(super) some_keys: Vec<Key<N>>,
    pub(super) some_found: Vec<u32>,
}

/// Where a packet goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The row that was asked about, a chain's first; [`NONE`] if none was.
    pub(super) from: u32,
    /// How many rows further on is the first that can match, or the chain's end; [`NONE`] before it is looked up.
    pub(super) found: u32,
}

impl Place {
    pub(super) const NONE: Place = Place { from: NONE, found: NONE };

    #[inline(always)]
    pub(super) fn is_found(&self) -> bool {
        self.found != NONE
    }
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
        Foresight { v4: Asked::with_room(packets), v6: Asked::with_room(packets), scratch: Box::new(Scratch::new()) }
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
        Asked {
            keys: Vec::with_capacity(packets),
            places: Vec::with_capacity(packets),
            some_keys: Vec::with_capacity(packets),
            some_found: Vec::with_capacity(packets),
        }
    }

    #[inline]
    fn clear(&mut self) {
        self.keys.clear();
        self.places.clear();
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
        let (asked, place) = (self.keys.get(number)?, self.places.get(number)?);
        let is_it = place.is_found() & (place.from as usize == at) & asked.is(key);
        is_it.then_some(at + place.found as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{FORWARD, RuleVector, load};

    fn packet(sport: u16) -> Packet {
        let addr = |last: u32| crate::wire::Addr::from_v4(0x0a00_0000 | last);
        let proto = crate::wire::proto::UDP;
        Packet { src: addr(1), dst: addr(2), sport, dport: 53, proto, l4_len: 8, ..Packet::BLANK }
    }

    /// Where it was foreseen that packets with these source ports go on, by row.
    fn foreseen(rules: &str, sports: &[u16]) -> Vec<Option<u32>> {
        let text = format!("*filter\n:FORWARD DROP [0:0]\n:U - [0:0]\n:V - [0:0]\n{rules}COMMIT\n");
        let vector = RuleVector::compile(&load("test", &text, Family::V4, &["lan", "wan"]).expect("good rules"));
        let mut foresight = Foresight::with_room(sports.len());
        for &sport in sports {
            foresight.add(&packet(sport), Some(PortId::WAN), CtInfo::New);
        }
        vector.foresee(FORWARD, &mut foresight, &vector.counters());
        foresight.v4.places.iter().map(|place| place.is_found().then(|| place.from + place.found)).collect()
    }

    fn long(chain: &str, sports: std::ops::Range<u16>) -> String {
        sports.map(|sport| format!("-A {chain} -p udp -m udp --sport {sport} -j ACCEPT\n")).collect()
    }

    #[test]
    fn a_long_chain_is_looked_into() {
        // Row 20 is the chain's end.
        assert_eq!(foreseen(&long("FORWARD", 0..20), &[0, 19, 7, 20]), [Some(0), Some(19), Some(7), Some(20)]);
    }

    #[test]
    fn the_way_through_a_short_chain_is_followed_to_a_long_one() {
        let short = "-A FORWARD -p udp -m udp --sport 0:9 -j U\n-A FORWARD -g V\n";
        let rules = format!("{short}{}{}", long("U", 0..10), long("V", 10..30));
        // FORWARD has rows 0 to 2, U 3 to 13, V 14 to 34.
        assert_eq!(foreseen(&rules, &[0, 29, 9, 10]), [Some(3), Some(33), Some(12), Some(14)]);
        let ends = format!("-A FORWARD -p udp -m udp --sport 5 -j DROP\n-A FORWARD -j U\n{}", long("U", 0..10));
        assert_eq!(foreseen(&ends, &[5, 4]), [None, Some(7)]);
    }

    #[test]
    fn what_finds_no_room_has_no_number() {
        let mut foresight = Foresight::with_room(1);
        let mut add = |sport| foresight.add(&packet(sport), None, CtInfo::New);
        assert_eq!((add(1), add(2)), (Some(0), None));
        foresight.clear();
        assert!(foresight.is_empty());
        assert_eq!(foresight.add(&packet(3), None, CtInfo::New), Some(0));
    }
}
