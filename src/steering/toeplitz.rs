//! The Toeplitz hash of receive-side scaling: [`hash`], bit by bit as the specification has it ("RSS Hashing Functions" of
//! Microsoft's NDIS documentation), and [`Table`], the same by one look-up for each byte of input.
//!
//! The hash of an input is the exclusive or, over its bits that are set, of the 32 bits of the key that begin at the bit's own
//! place; the first bit is the highest of the first byte. So it is linear: the hash of two inputs' exclusive or is the
//! exclusive or of their hashes, and every byte may be looked up by itself. Values only; nothing here changes once made.

/// Bytes of the longest input: two IPv6 addresses and two ports.
pub const INPUT_MAX: usize = 36;
/// Bytes of a key that an input of [`INPUT_MAX`] bytes reads. NICs with longer keys (52 bytes) use the rest for more fields.
pub const KEY_LEN: usize = INPUT_MAX + 4;

/// The 32 bits of `key` that begin at bit `at`, the first as the highest. Beyond its end the key is zero.
fn window(key: &[u8], at: usize) -> u32 {
    let byte = |index: usize| u64::from(key.get(index).copied().unwrap_or(0));
    let bytes = (0..5).fold(0, |bits, n| bits << 8 | byte(at / 8 + n));
    (bytes >> (8 - at % 8)) as u32
}

/// The hash of `input`, bit by bit. Slow; [`Table`] is held against it.
pub fn hash(key: &[u8], input: &[u8]) -> u32 {
    let bits = (0..8 * input.len()).filter(|bit| input[bit / 8] & (0x80 >> (bit % 8)) != 0);
    bits.fold(0, |hash, bit| hash ^ window(key, bit))
}

/// The hashes of all that `N` bytes at a certain place of the input can be: 1 KiB a byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Table<const N: usize> {
    bytes: Box<[[u32; 256]; N]>,
}

impl<const N: usize> Table<N> {
    /// Of the bytes of the input from byte `at` on.
    pub fn new(key: &[u8], at: usize) -> Table<N> {
        let of_byte = |byte: usize| {
            let mut hashes = [0; 256];
            for value in 1..256usize {
                // One bit more than a value that is there already.
                let lowest = value.trailing_zeros() as usize;
                hashes[value] = hashes[value & (value - 1)] ^ window(key, 8 * byte + 7 - lowest);
            }
            hashes
        };
        Table { bytes: Box::new(core::array::from_fn(|n| of_byte(at + n))) }
    }

    /// The hash of input that has the same bytes at the place of this table and at that of the other.
    pub fn with(&self, other: &Table<N>) -> Table<N> {
        let both = |n: usize| core::array::from_fn(|value| self.bytes[n][value] ^ other.bytes[n][value]);
        Table { bytes: Box::new(core::array::from_fn(both)) }
    }

    /// What these bytes add to the hash (by exclusive or).
    #[inline(always)]
    pub fn hash(&self, input: [u8; N]) -> u32 {
        (0..N).fold(0, |hash, n| hash ^ self.bytes[n][usize::from(input[n])])
    }
}

impl<const N: usize> core::fmt::Debug for Table<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Table<{N}>")
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;

    use super::*;

    /// The key of the specification's verification suite.
    const KEY: [u8; KEY_LEN] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    /// The verification suite: destination, source, hash of the addresses, hash of addresses and ports.
    const SUITE: [(&str, &str, u32, u32); 8] = [
        ("161.142.100.80:1766", "66.9.149.187:2794", 0x323e_8fc2, 0x51cc_c178),
        ("65.69.140.83:4739", "199.92.111.2:14230", 0xd718_262a, 0xc626_b0ea),
        ("12.22.207.184:38024", "24.19.198.95:12898", 0xd2d0_a5de, 0x5c2b_394a),
        ("209.142.163.6:2217", "38.27.205.30:48228", 0x8298_9176, 0xafc7_327f),
        ("202.188.127.2:1303", "153.39.163.191:44251", 0x5d18_09c5, 0x10e8_28a2),
        ("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x2cc1_8cd5, 0x4020_7d3d),
        ("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0x0f0c_461c, 0xdde5_1bbf),
        ("[fe80::200:f8ff:fe21:67cf]:38024", "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251", 0x4b61_e985, 0x02d1_feef),
    ];

    fn bytes(addr: IpAddr) -> Vec<u8> {
        match addr {
            IpAddr::V4(addr) => addr.octets().to_vec(),
            IpAddr::V6(addr) => addr.octets().to_vec(),
        }
    }

    #[test]
    fn the_verification_suite_of_the_specification() {
        for (dst, src, of_addresses, of_all) in SUITE {
            let [dst, src]: [SocketAddr; 2] = [dst, src].map(|end| end.parse().expect("an address and a port"));
            let mut input = bytes(src.ip());
            input.extend(bytes(dst.ip()));
            assert_eq!(hash(&KEY, &input), of_addresses, "{src} to {dst}, addresses");
            input.extend(src.port().to_be_bytes());
            input.extend(dst.port().to_be_bytes());
            assert_eq!(hash(&KEY, &input), of_all, "{src} to {dst}, addresses and ports");
        }
    }

    proptest! {
        #[test]
        fn a_table_is_the_hash(
            key in prop::collection::vec(any::<u8>(), KEY_LEN),
            input in any::<[u8; 12]>(),
            at in 0usize..=24,
        ) {
            let mut padded = vec![0; at];
            padded.extend(input);
            let table = Table::<12>::new(&key, at);
            prop_assert_eq!(table.hash(input), hash(&key, &padded));
            let twice = table.with(&Table::new(&key, 0));
            let mut front = vec![0; at + 12];
            front[..12].copy_from_slice(&input);
            prop_assert_eq!(twice.hash(input), hash(&key, &padded) ^ hash(&key, &front));
        }
    }
}
