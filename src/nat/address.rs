//! Which address of a range a connection is given: [`choose`], Linux's `find_best_ips_proto` bit by bit.
//!
//! It is a hash of the source, and unless `--persistent` of the destination, without a secret: a client is always given the
//! same address, also after a restart, and by Linux on another machine.

use crate::conntrack::{Manip, Tuple};
use crate::wire::{Addr, Family};

/// The four words of an address as the kernel has them in memory: network order, read by a little-endian machine; IPv4 has
/// one, and three of zero.
fn words(addr: Addr, family: Family) -> [u32; 4] {
    match family {
        Family::V4 => [addr.v4_bits().swap_bytes(), 0, 0, 0],
        Family::V6 => {
            let bytes = addr.bits().to_be_bytes();
            core::array::from_fn(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[4 * at + byte])))
        }
    }
}

fn addr_of(words: [u32; 4], family: Family) -> Addr {
    match family {
        Family::V4 => Addr::from_v4(words[0].swap_bytes()),
        Family::V6 => Addr::from_v6(words.iter().fold(0, |bits, word| bits << 32 | u128::from(word.swap_bytes()))),
    }
}

/// Bob Jenkins' hash of four words (lookup3's `hashword`; include/linux/jhash.h).
fn jhash2(words: [u32; 4], initial: u32) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(4 << 2).wrapping_add(initial);
    let [mut a, mut b, mut c] = [0, 1, 2].map(|at| start.wrapping_add(words[at]));
    for round in 0..2 {
        let [p, q, r] = if round == 0 { [4, 6, 8] } else { [16, 19, 4] };
        a = a.wrapping_sub(c) ^ c.rotate_left(p);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(q);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(r);
        b = b.wrapping_add(a);
    }
    a = a.wrapping_add(words[3]);
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

/// Gives `tuple`, of a connection in `zone`, an address of the range `first` to `last` at one end.
pub(super) fn choose(tuple: &mut Tuple, zone: u16, manip: Manip, (first, last): (Addr, Addr), persistent: bool) {
    let family = tuple.family;
    if first == last {
        *end_of(tuple, manip) = first;
        return;
    }
    let count = if family == Family::V4 { 1 } else { 4 };
    let [first, last] = [first, last].map(|addr| words(addr, family));
    let destination = words(tuple.dst, family);
    let initial = if persistent { 0 } else { destination[count - 1] ^ u32::from(zone) };
    let mut hash = jhash2(words(tuple.src, family), initial);
    let mut chosen = words(*end_of(tuple, manip), family);
    let mut beyond_first = false;
    for at in 0..count {
        let low = if beyond_first { 0 } else { first[at].swap_bytes() };
        let size = if beyond_first { u32::MAX } else { last[at].swap_bytes().wrapping_sub(low).wrapping_add(1) };
        let offset = ((u64::from(hash) * u64::from(size)) >> 32) as u32;
        chosen[at] = low.wrapping_add(offset).swap_bytes();
        beyond_first |= chosen[at] != last[at];
        if !persistent {
            // As Linux does: where the destination is what is chosen, by what was chosen just now.
            hash ^= if manip == Manip::Destination { chosen[at] } else { destination[at] };
        }
    }
    *end_of(tuple, manip) = addr_of(chosen, family);
}

fn end_of(tuple: &mut Tuple, manip: Manip) -> &mut Addr {
    match manip {
        Manip::Source => &mut tuple.src,
        Manip::Destination => &mut tuple.dst,
    }
}
