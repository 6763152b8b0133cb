//! Home by a hash of our own: [`Software`], for NICs whose hash is not known or not symmetric.
//!
//! Both ends of the flow (address and port) are hashed with a secret, added, so that it does not matter which is the source,
//! and mixed again. The secret is this run's: who sends packets cannot tell which of them go to one worker.

use super::Flow;
use crate::wire::{Addr, proto};

/// DCCP's protocol number (RFC 4340).
const DCCP: u8 = 33;

/// Which worker a flow's home is, by a keyed hash; see the module's head.
#[derive(Clone, PartialEq, Eq)]
pub struct Software {
    workers: u16,
    keys: [u64; 4],
    why: String,
}

/// One end without its port, hashed.
#[derive(Clone, Copy, Debug)]
pub(super) struct End(u64);

/// `a * b` in 128 bits, its halves xored.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// What the flow's protocol has for ports: source and destination, or one number that both directions carry, or nothing.
#[inline(always)]
pub(super) fn ports(flow: &Flow) -> Ports {
    match flow.proto {
        proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP | DCCP => Ports::Both,
        proto::ICMP | proto::ICMPV6 => Ports::One,
        _ => Ports::None,
    }
}

/// See [`ports`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ports {
    /// Source and destination port.
    Both,
    /// The identifier of ICMP, the same in the answer.
    One,
    /// Addresses only.
    None,
}

impl Software {
    /// For `workers` workers; `why` says what keeps the NICs' hash from being used.
    pub(super) fn new(workers: u16, secret: [u64; 2], why: String) -> Software {
        // splitmix64's output function: independent keys from one secret.
        let mut state = secret[0];
        let keys = core::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state ^ secret[1].rotate_left(31);
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            // Odd: a factor of 0 would make all ends one.
            (z ^ z >> 31) | 1
        });
        Software { workers, keys, why }
    }

    /// How many workers there are.
    pub fn workers(&self) -> u16 {
        self.workers
    }

    /// What keeps the NICs' hash from being used.
    pub fn why(&self) -> &str {
        &self.why
    }

    #[inline(always)]
    pub(super) fn end(&self, addr: Addr) -> End {
        let (hi, lo) = addr.words();
        End(fold(hi ^ self.keys[0], lo ^ self.keys[1]))
    }

    #[inline(always)]
    fn with_port(&self, end: End, port: u16) -> u64 {
        fold(end.0 ^ u64::from(port), self.keys[2])
    }

    /// The home of what goes between two ends, in whichever direction.
    #[inline(always)]
    pub(super) fn between(&self, ends: [End; 2], ports: [u16; 2], proto: u8) -> u16 {
        let sum = self.with_port(ends[0], ports[0]).wrapping_add(self.with_port(ends[1], ports[1]));
        let mixed = fold(sum ^ u64::from(proto), self.keys[3]);
        // Once more, for the high bits that choose are those of a sum of products.
        let hash = fold(mixed ^ self.keys[1], self.keys[2]);
        // A share of the range for each worker: no division, and even for any number of them.
        ((u128::from(hash) * u128::from(self.workers)) >> 64) as u16
    }

    #[inline]
    pub(super) fn home(&self, flow: &Flow) -> u16 {
        let numbers = match ports(flow) {
            Ports::Both => [flow.sport, flow.dport],
            Ports::One => [flow.sport; 2],
            Ports::None => [0; 2],
        };
        self.between([self.end(flow.src), self.end(flow.dst)], numbers, flow.proto)
    }

    #[inline]
    pub(super) fn home_of_fragment(&self, flow: &Flow) -> u16 {
        self.between([self.end(flow.src), self.end(flow.dst)], [0; 2], flow.proto)
    }
}

impl core::fmt::Debug for Software {
    /// Without the keys: a log is no place for them.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Software").field("workers", &self.workers).field("why", &self.why).finish_non_exhaustive()
    }
}
