//! [`NicRss`]: how a network card spreads packets over its queues, read back after all set-up; and what set-up wants it to be.
//!
//! Two cards bring both directions of a connection to one worker when they hash the same fields with the same key, the hash does
//! not change when source and destination change places, and equal hashes lead to equal workers.

use std::io;

use super::device::Nic;
use crate::steering::{self, Fields, NicHash, RssHash, Transform};
use crate::xdp::{
    FIELD_DESTINATION_PORT, FIELD_SOURCE_PORT, FIELDS_ADDRESSES, FIELDS_ALL, FlowType, HASH_CRC32, HASH_TOEPLITZ,
    HASH_XOR, HashFields, Rss, SYMMETRIC_OR_XOR, SYMMETRIC_XOR,
};

/// The key that makes Toeplitz symmetric: two bytes over and over, so that moving a field by 16 bits, or by any multiple, changes
/// nothing (Woo and Park, "Scalable TCP session monitoring with symmetric receive-side scaling", 2012).
pub const SYMMETRIC_KEY: [u8; 2] = [0x6d, 0x5a];

/// How a card spreads packets; see the module's head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicRss {
    /// The interface.
    pub interface: String,
    /// Queues that receive now.
    pub queues: u32,
    /// Function, key, transformation and table; or why they are not known, as the rest of a sentence that begins with the
    /// interface's name.
    pub rss: Result<Rss, String>,
    /// The fields hashed of each kind of packets; `None` where the driver does not tell.
    pub fields: Vec<(FlowType, Option<HashFields>)>,
}

impl NicRss {
    /// Reads it.
    pub fn read(nic: &dyn Nic) -> NicRss {
        let kinds = FlowType::ALL.into_iter().chain([FlowType::Other4, FlowType::Other6]);
        NicRss {
            interface: nic.interface().name.clone(),
            queues: nic.rx_queues(),
            rss: known(nic.rss()),
            fields: kinds.map(|flow| (flow, nic.hash_fields(flow).ok())).collect(),
        }
    }

    /// What steering is made from. What a driver does not tell of kinds of packets other than TCP and UDP is taken to be the
    /// addresses: where that is wrong such packets are handed over, no more.
    pub fn hash(&self) -> NicHash {
        let known = |flow: FlowType| match self.fields_of(flow) {
            Some(0) => Fields::None,
            Some(FIELDS_ADDRESSES) => Fields::Addresses,
            Some(FIELDS_ALL) => Fields::AddressesAndPorts,
            Some(_) => Fields::Other,
            None if matches!(flow, FlowType::Tcp4 | FlowType::Tcp6 | FlowType::Udp4 | FlowType::Udp6) => Fields::Other,
            None => Fields::Addresses,
        };
        let rss = self.rss.as_ref().map_err(Clone::clone).map(|rss| RssHash {
            function: function_name(rss.function).to_owned(),
            key: rss.key.clone(),
            transform: match rss.transform {
                SYMMETRIC_XOR => Transform::SymmetricXor,
                SYMMETRIC_OR_XOR => Transform::SymmetricOrXor,
                _ => Transform::None,
            },
            table: rss.table.clone(),
            fields: steering::HashFields {
                tcp4: known(FlowType::Tcp4),
                udp4: known(FlowType::Udp4),
                sctp4: known(FlowType::Sctp4),
                other4: known(FlowType::Other4),
                tcp6: known(FlowType::Tcp6),
                udp6: known(FlowType::Udp6),
                sctp6: known(FlowType::Sctp6),
                other6: known(FlowType::Other6),
            },
        });
        NicHash { interface: self.interface.clone(), rss }
    }

    /// The fields hashed of this kind of packets.
    pub fn fields_of(&self, flow: FlowType) -> Option<HashFields> {
        self.fields.iter().find(|(kind, _)| *kind == flow).and_then(|(_, fields)| *fields)
    }

    /// Whether both directions of a flow have the same hash.
    pub fn is_symmetric(&self) -> bool {
        self.rss.as_ref().is_ok_and(is_symmetric)
    }

    /// Whether the ports of UDP count, for both IP versions.
    pub fn hashes_udp_ports(&self) -> bool {
        const ALL: HashFields = FIELDS_ADDRESSES | FIELD_SOURCE_PORT | FIELD_DESTINATION_PORT;
        [FlowType::Udp4, FlowType::Udp6].into_iter().all(|flow| self.fields_of(flow) == Some(ALL))
    }
}

/// ethtool(8)'s name of the function; `unknown` for what it has no name for.
pub fn function_name(function: u8) -> &'static str {
    match function {
        HASH_TOEPLITZ => "toeplitz",
        HASH_XOR => "xor",
        HASH_CRC32 => "crc32",
        _ => "unknown",
    }
}

/// Whether the hash is the same for both directions of a flow.
pub fn is_symmetric(rss: &Rss) -> bool {
    let repeats = rss.key.chunks(2).all(|pair| rss.key.starts_with(pair));
    rss.function == HASH_TOEPLITZ && (rss.transform != 0 || !rss.key.is_empty() && repeats)
}

/// What is known of a card, or the rest of a sentence.
fn known(rss: io::Result<Rss>) -> Result<Rss, String> {
    let rss = rss.map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "has no RSS that it shows".to_owned(),
        _ => format!("does not show its RSS ({error})"),
    })?;
    if rss.key.is_empty() {
        return Err("does not show its RSS key".to_owned());
    }
    if rss.table.is_empty() {
        return Err("does not show its RSS table".to_owned());
    }
    Ok(rss)
}

/// The symmetric key of this length.
pub(super) fn symmetric_key(bytes: usize) -> Vec<u8> {
    SYMMETRIC_KEY.into_iter().cycle().take(bytes).collect()
}

/// A table of `entries` over `workers` queues, which for equal hashes names the same queue as one of `smallest` entries does:
/// the lowest bits of the hash, as many as the smallest table has use for, choose.
pub(super) fn spread(entries: usize, smallest: usize, workers: u32) -> Vec<u32> {
    (0..entries).map(|entry| (entry % smallest.max(1)) as u32 % workers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_two_bytes_over_and_over_is_symmetric() {
        let rss = |key: Vec<u8>, transform| Rss { function: HASH_TOEPLITZ, transform, key, table: vec![0] };
        assert!(is_symmetric(&rss(symmetric_key(40), 0)) && is_symmetric(&rss(symmetric_key(52), 0)));
        let mut other = symmetric_key(40);
        other[39] ^= 1;
        assert!(!is_symmetric(&rss(other.clone(), 0)) && is_symmetric(&rss(other, 1)));
        assert!(!is_symmetric(&rss(Vec::new(), 0)));
        assert!(!is_symmetric(&Rss { function: HASH_XOR, ..rss(symmetric_key(40), 0) }));
    }

    #[test]
    fn tables_of_unequal_size_lead_equal_hashes_to_equal_queues() {
        for workers in 1..=7 {
            let (small, large) = (spread(128, 128, workers), spread(512, 128, workers));
            for hash in 0..2048usize {
                assert_eq!(small[hash % 128], large[hash % 512], "{hash} {workers}");
            }
            assert!((0..workers).all(|queue| small.contains(&queue)));
        }
    }
}
