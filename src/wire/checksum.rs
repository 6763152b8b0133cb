//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).

use super::{Addr, Family};

/// One's-complement sum of `bytes`, taken as big-endian 16-bit words (an odd last byte is padded with zero), added to
/// `initial`. Not folded to 16 bits and not complemented: see [`fold`].
#[inline]
pub fn sum(initial: u64, bytes: &[u8]) -> u64 {
    initial + u64::from(u16::from_be(fold(sum_native(0, bytes))))
}

/// Whether a checksum that covers `bytes` and data whose [`sum`] is `initial` is right: both together, with the checksum
/// field, give all ones. As `fold(sum(initial, bytes)) == 0xffff`, in one fold less than that takes. `initial` is below 2^56.
#[inline]
pub fn is_right(initial: u64, bytes: &[u8]) -> bool {
    // Swapping the bytes of each 16-bit word multiplies a sum by 2^8, modulo 2^16 - 1.
    let initial = if cfg!(target_endian = "little") { initial << 8 } else { initial };
    fold(sum_native(initial, bytes)) == 0xffff
}

/// The sum of `initial` and `bytes` as native-endian words: words of any size, swapped once at the end, give the same sum
/// (RFC 1071 section 2 (A) and (B)). Long data goes in lanes, which the compiler makes vectors of; for a header their
/// set-up costs more than the sum.
#[inline(always)]
fn sum_native(initial: u64, bytes: &[u8]) -> u64 {
    let (lanes, rest) = if bytes.len() < LANES_FROM { (0, bytes) } else { sum_in_lanes(bytes) };
    let mut native = initial;
    let mut add = |word: u64| {
        let (sum, carry) = native.overflowing_add(word);
        native = sum + u64::from(carry);
    };
    add(lanes);
    let (words, mut rest) = rest.as_chunks::<8>();
    for word in words {
        add(u64::from_ne_bytes(*word));
    }
    if let Some((four, after)) = rest.split_first_chunk::<4>() {
        add(u64::from(u32::from_ne_bytes(*four)));
        rest = after;
    }
    if let Some((two, after)) = rest.split_first_chunk::<2>() {
        add(u64::from(u16::from_ne_bytes(*two)));
        rest = after;
    }
    if let [last] = rest {
        add(u64::from(u16::from_ne_bytes([*last, 0])));
    }
    native
}

/// Bytes from which lanes pay.
const LANES_FROM: usize = 128;

/// The native-endian sum of all whole blocks of 32 bytes, and what is left of `bytes`.
#[inline(never)]
fn sum_in_lanes(bytes: &[u8]) -> (u64, &[u8]) {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0u64; 8];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    (lanes.iter().sum(), rest)
}

/// Folds a sum to 16 bits with end-around carry. Not complemented.
#[inline]
pub const fn fold(sum: u64) -> u16 {
    // A sum that carried is not all ones, so its carry fits.
    let (half, carry) = ((sum >> 32) as u32).overflowing_add(sum as u32);
    let half = half + carry as u32;
    let (quarter, carry) = ((half >> 16) as u16).overflowing_add(half as u16);
    quarter + carry as u16
}

/// The sum of the TCP/UDP/ICMPv6 pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1); `length` is that of the
/// upper-layer packet in bytes.
#[inline]
pub fn pseudo_header(family: Family, src: Addr, dst: Addr, proto: u8, length: u32) -> u64 {
    let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
    let addresses = match family {
        Family::V4 => u64::from(src.v4_bits()) + u64::from(dst.v4_bits()),
        Family::V6 => {
            let (a, b) = src.words();
            let (c, d) = dst.words();
            halves(a) + halves(b) + halves(c) + halves(d)
        }
    };
    addresses + u64::from(proto) + u64::from(length)
}

/// The checksum field after the 16-bit word `old` of the covered data became `new`: RFC 1624, `HC' = ~(~HC + ~m + m')`.
/// A wrong checksum stays wrong by as much.
#[inline]
pub const fn update(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u64 + !old as u64 + new as u64)
}

/// The checksum field for a sum over data whose checksum field was taken as zero.
#[inline]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// CRC32c (RFC 3720 appendix B.4, as SCTP uses it): `crc` is `!0` to begin with, and the result is `!crc` at the end.
pub const fn crc32c(mut crc: u32, bytes: &[u8]) -> u32 {
    let mut at = 0;
    while at < bytes.len() {
        crc = crc >> 8 ^ CRC32C[((crc ^ bytes[at] as u32) & 0xff) as usize];
        at += 1;
    }
    crc
}

const CRC32C: [u32; 256] = {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        fold(sum)
    }

    #[test]
    fn example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(0, &data)), 0xddf2);
    }

    #[test]
    fn crc32c_of_the_check_string() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn fast_sum_equals_plain_sum(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (fast, slow) = (fold(sum(0, &bytes)), plain(&bytes));
            // 0 and 0xffff are the same number in one's complement.
            prop_assert!(fast == slow || (fast ^ slow) == 0xffff && (fast == 0 || slow == 0));
        }

        #[test]
        fn right_is_what_sums_to_all_ones(
            mut bytes in proptest::collection::vec(any::<u8>(), 2..200),
            initial in 0u64..1 << 40,
            make_right: bool,
        ) {
            if make_right {
                bytes[..2].fill(0);
                let check = finish(sum(initial, &bytes));
                bytes[..2].copy_from_slice(&check.to_be_bytes());
            }
            let all_ones = fold(sum(initial, &bytes)) == 0xffff;
            prop_assert_eq!(is_right(initial, &bytes), all_ones);
            prop_assert!(all_ones || !make_right);
        }

        #[test]
        fn update_equals_full_computation(mut bytes in proptest::collection::vec(1u8.., 20), at in 0usize..10, new: u16) {
            let at = at * 2;
            let before = finish(sum(0, &bytes));
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), finish(sum(0, &bytes)));
        }
    }
}
