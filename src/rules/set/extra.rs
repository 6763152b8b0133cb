//! What elements of a set carry besides themselves, while packets meet them: [`Extra`], one for each element.
//!
//! All of it but the comment is atomic, so that a set which no rule adds to is read without a lock.

use super::entry::{Given, SkbInfo};
use super::header::Header;
use super::question::{Compare, Question};
use crate::time::{Instant, SECOND_NS};
use core::sync::atomic::{AtomicU64, Ordering};

/// A time that never comes.
const NEVER: u64 = u64::MAX;

/// One element's. In a set that has none of it, nobody looks.
#[derive(Debug)]
pub(super) struct Extra {
    /// When it expires, in nanoseconds; [`NEVER`]. For an element of a bitmap:ip,mac that is not filled: how long it is to
    /// live from then on.
    expires: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    skb: SkbInfo,
    pub(super) comment: Option<Box<str>>,
}

impl Clone for Extra {
    fn clone(&self) -> Extra {
        let copy = |number: &AtomicU64| AtomicU64::new(number.load(Ordering::Relaxed));
        Extra {
            expires: copy(&self.expires),
            packets: copy(&self.packets),
            bytes: copy(&self.bytes),
            skb: self.skb,
            comment: self.comment.clone(),
        }
    }
}

impl Extra {
    /// As an element read from a text begins, at `now`.
    pub(super) fn new(header: &Header, given: Option<&Given>, now: Instant) -> Extra {
        let mut extra = Extra::fresh(header, given.and_then(|given| given.timeout), now);
        if let Some(given) = given {
            *extra.packets.get_mut() = given.packets;
            *extra.bytes.get_mut() = given.bytes;
            extra.skb = given.skb;
            extra.comment.clone_from(&given.comment);
        }
        extra
    }

    /// One that lives for `timeout` seconds (by default the set's) and carries nothing.
    pub(super) fn fresh(header: &Header, timeout: Option<u32>, now: Instant) -> Extra {
        Extra {
            expires: AtomicU64::new(expiry(header, timeout, now)),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            skb: SkbInfo::default(),
            comment: None,
        }
    }

    /// One that a packet adds: it is counted at once (`ip_set_init_counter`).
    pub(super) fn of_packet(header: &Header, question: &Question<'_>) -> Extra {
        let mut extra = Extra::fresh(header, question.timeout, question.now);
        *extra.packets.get_mut() = 1;
        *extra.bytes.get_mut() = question.length();
        extra
    }

    /// The packet that filled a bitmap:ip,mac's element is the first it counts.
    pub(super) fn begin_counting(&self, question: &Question<'_>) {
        self.packets.store(1, Ordering::Relaxed);
        self.bytes.store(question.length(), Ordering::Relaxed);
    }

    /// When it expires, in nanoseconds; `u64::MAX` is never.
    pub(super) fn expires(&self) -> u64 {
        self.expires.load(Ordering::Relaxed)
    }

    pub(super) fn set_expires(&self, at: u64) {
        self.expires.store(at, Ordering::Relaxed);
    }

    /// Whether its time is over.
    #[inline]
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        now.as_ns() > self.expires()
    }

    /// Seconds it has left, rounded down but at least one, as listed (`ip_set_timeout_get`); 0 is for ever.
    pub(super) fn seconds_left(&self, now: Instant) -> u32 {
        match self.expires() {
            NEVER => 0,
            at => (at.saturating_sub(now.as_ns()) / SECOND_NS).max(1) as u32,
        }
    }

    pub(super) fn counted(&self) -> (u64, u64) {
        (self.packets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    pub(super) fn skb(&self) -> SkbInfo {
        self.skb
    }

    /// Whether an element that a packet has met counts as met, and with it the packet (`ip_set_match_extensions`).
    #[inline]
    pub(super) fn admits(&self, header: &Header, question: &Question<'_>) -> bool {
        if header.timeout.is_some() && self.is_expired(question.now) {
            return false;
        }
        if !header.counters {
            return true;
        }
        if question.counts {
            self.bytes.fetch_add(question.length(), Ordering::Relaxed);
            self.packets.fetch_add(1, Ordering::Relaxed);
        }
        let (packets, bytes) = self.counted();
        let fits = |compare: Option<Compare>, number| compare.is_none_or(|compare| compare.holds(number));
        fits(question.packets, packets) && fits(question.bytes, bytes)
    }
}

/// When an element added at `now` expires, in nanoseconds; `u64::MAX` is never.
pub(super) fn expiry(header: &Header, timeout: Option<u32>, now: Instant) -> u64 {
    match (header.timeout, timeout) {
        (None, _) | (Some(_), Some(0)) | (Some(0), None) => NEVER,
        (Some(seconds), None) | (Some(_), Some(seconds)) => (now + u64::from(seconds) * SECOND_NS).as_ns(),
    }
}
