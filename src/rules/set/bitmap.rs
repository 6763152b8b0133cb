//! Elements of the bitmap types: [`BitmapStore`], a bit for each address or port of a range.
//!
//! A bitmap:ip,mac learns: an element without a hardware address takes that of the first packet from its address, and its time
//! runs from then on. That is atomic, so that it needs no lock either.

use super::entry::Definition;
use super::extra::{Extra, expiry};
use super::hash::Found;
use super::header::Header;
use super::key::{Key, mac_bits, mac_of};
use super::kind::Kind;
use super::question::Question;
use crate::time::Instant;
use crate::wire::{Addr, Mac};
use core::sync::atomic::{AtomicU64, Ordering};

/// Set in a hardware address that is known.
const FILLED: u64 = 1 << 63;
/// A hardware address that is not known yet.
const UNFILLED: u64 = 0;

/// See the module's head.
#[derive(Debug)]
pub(super) struct BitmapStore {
    members: Box<[u64]>,
    /// By bit; empty in sets without.
    macs: Box<[AtomicU64]>,
    /// By bit; empty when the set has none.
    extras: Vec<Extra>,
}

impl Clone for BitmapStore {
    fn clone(&self) -> BitmapStore {
        let macs = self.macs.iter().map(|mac| AtomicU64::new(mac.load(Ordering::Relaxed))).collect();
        BitmapStore { members: self.members.clone(), macs, extras: self.extras.clone() }
    }
}

impl BitmapStore {
    /// The elements of `definition` from `now` on.
    pub(super) fn new(definition: &Definition, now: Instant) -> BitmapStore {
        let header = &definition.header;
        let bits = header.capacity as usize;
        let macs = if header.kind == Kind::BitmapIpMac { bits } else { 0 };
        let extras = if header.has_extras() { bits } else { 0 };
        let mut store = BitmapStore {
            members: vec![0; bits.div_ceil(64)].into_boxed_slice(),
            macs: (0..macs).map(|_| AtomicU64::new(UNFILLED)).collect(),
            extras: (0..extras).map(|_| Extra::fresh(header, Some(0), now)).collect(),
        };
        for entry in &definition.entries {
            let value = match header.kind {
                Kind::BitmapPort => u32::from(entry.key.port),
                _ => entry.key.first.v4_bits(),
            };
            // The text was checked against the range.
            let Some(bit) = header.bit(value) else { continue };
            store.members[bit / 64] |= 1 << (bit % 64);
            if let Some(extra) = store.extras.get_mut(bit) {
                *extra = Extra::new(header, entry.given.as_deref(), now);
                if entry.unfilled {
                    let timeout = entry.given.as_ref().and_then(|given| given.timeout);
                    extra.set_expires(expiry(header, timeout, Instant::ZERO));
                }
            }
            if let Some(mac) = store.macs.get_mut(bit).filter(|_| !entry.unfilled) {
                *mac.get_mut() = entry.key.second.words().1 | FILLED;
            }
        }
        store
    }

    pub(super) fn len(&self) -> usize {
        self.members.iter().map(|word| word.count_ones() as usize).sum()
    }

    #[inline]
    fn is_member(&self, bit: usize) -> bool {
        self.members[bit / 64] >> (bit % 64) & 1 != 0
    }

    /// The bit that the packet is, and its hardware address where one is asked for.
    #[inline]
    fn bit(&self, header: &Header, question: &Question<'_>) -> Option<(usize, u64)> {
        match header.kind {
            Kind::BitmapPort => Some((header.bit(u32::from(question.plain_port()?))?, 0)),
            Kind::BitmapIpMac => {
                let bit = header.bit(question.plain_address())?;
                Some((bit, question.key(header)?.second.words().1 | FILLED))
            }
            _ => Some((header.bit(question.plain_address())?, 0)),
        }
    }

    /// Looks up the packet (`mtype_test` of ip_set_bitmap_gen.h).
    #[inline]
    pub(super) fn test(&self, header: &Header, question: &Question<'_>) -> Found {
        let Some((bit, mac)) = self.bit(header, question) else { return Found::No };
        if !self.is_member(bit) {
            return Found::No;
        }
        if let Some(known) = self.macs.get(bit) {
            match known.compare_exchange(UNFILLED, mac, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    self.start(header, bit, question);
                    return Found::Yes(bit as u32);
                }
                Err(other) if other != mac => return Found::No,
                Err(_) => {}
            }
        }
        match self.extras.get(bit).is_none_or(|extra| extra.admits(header, question)) {
            true => Found::Yes(bit as u32),
            false => Found::No,
        }
    }

    /// An element has just learnt its hardware address: its time runs, and the packet is its first.
    fn start(&self, header: &Header, bit: usize, question: &Question<'_>) {
        let Some(extra) = self.extras.get(bit) else { return };
        let stored = extra.expires();
        let at = match question.timeout {
            Some(timeout) if header.timeout != Some(timeout) => expiry(header, Some(timeout), question.now),
            _ if stored == u64::MAX => u64::MAX,
            _ => (question.now + stored).as_ns(),
        };
        extra.set_expires(at);
        extra.begin_counting(question);
    }

    /// Adds what the packet is. Whether it did.
    pub(super) fn add(&mut self, header: &Header, question: &Question<'_>) -> bool {
        let Some((bit, mac)) = self.bit(header, question) else { return false };
        if self.is_member(bit) {
            if let Some(known) = self.macs.get_mut(bit) {
                if *known.get_mut() == UNFILLED {
                    *known.get_mut() = mac;
                    self.start(header, bit, question);
                    return true;
                }
                if question.exist {
                    *known.get_mut() = mac;
                }
            }
            let expired = header.timeout.is_some() && self.extras[bit].is_expired(question.now);
            if !question.exist && !expired {
                return false;
            }
        } else if let Some(known) = self.macs.get_mut(bit) {
            *known.get_mut() = mac;
        }
        self.members[bit / 64] |= 1 << (bit % 64);
        if let Some(extra) = self.extras.get_mut(bit) {
            *extra = Extra::of_packet(header, question);
        }
        true
    }

    /// Deletes what the packet is. Whether it was there.
    pub(super) fn delete(&mut self, header: &Header, question: &Question<'_>) -> bool {
        let Some((bit, _)) = self.bit(header, question) else { return false };
        if !self.is_member(bit) {
            return false;
        }
        self.members[bit / 64] &= !(1 << (bit % 64));
        if let Some(mac) = self.macs.get_mut(bit) {
            *mac.get_mut() = UNFILLED;
        }
        header.timeout.is_none() || !self.extras[bit].is_expired(question.now)
    }

    pub(super) fn extra(&self, place: u32) -> Option<&Extra> {
        self.extras.get(place as usize)
    }

    /// The elements, with whether their hardware address is not known yet.
    pub(super) fn elements(&self, header: &Header) -> impl Iterator<Item = (Key, bool, Option<&Extra>)> {
        let bits = (0..header.capacity as usize).filter(|&bit| self.is_member(bit));
        bits.map(|bit| {
            let value = header.at_bit(bit);
            let mac = self.macs.get(bit).map(|mac| mac.load(Ordering::Relaxed));
            let key = match header.kind {
                Kind::BitmapPort => Key { port: value as u16, ..Key::default() },
                _ => Key { first: Addr::from_v4(value), second: mac_bits(mac_behind(mac)), ..Key::default() },
            };
            (key, mac == Some(UNFILLED), self.extras.get(bit))
        })
    }
}

/// The hardware address without the mark that it is known.
fn mac_behind(mac: Option<u64>) -> Mac {
    mac_of(Addr::from_v6(u128::from(mac.unwrap_or(0) & !FILLED)))
}
