//! Home by the NICs' own receive-side scaling: [`Nic`], computed as they do, and [`NicHash`], what is known of one.
//!
//! A NIC takes some fields of the packet, hashes them with its key, and the low bits of the hash choose an entry of its
//! indirection table, which names a queue. [`Nic::new`] takes it for steering only where every packet of a flow, in either
//! direction and on either NIC, gets to the same worker; otherwise it says in words what is in the way. What it computes is a
//! home in any case: if a NIC does other than it says, its packets are handed over, not lost.

use super::Flow;
use super::toeplitz::{KEY_LEN, Table};
use crate::wire::{Addr, Family, proto};

/// What `ethtool -n IF rx-flow-hash PROTOCOL` says of one kind of packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fields {
    /// It is not hashed: the hash is 0.
    None,
    /// Source and destination address (`sd`).
    Addresses,
    /// Addresses and ports (`sdfn`).
    AddressesAndPorts,
    /// Something else: one end only, or fields that are not the flow's.
    Other,
}

/// The fields hashed, by kind of packet. `other` is every protocol that has no line of its own, and fragments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashFields {
    /// `tcp4`
    pub tcp4: Fields,
    /// `udp4`
    pub udp4: Fields,
    /// `sctp4`
    pub sctp4: Fields,
    /// IPv4 without any of these.
    pub other4: Fields,
    /// `tcp6`
    pub tcp6: Fields,
    /// `udp6`
    pub udp6: Fields,
    /// `sctp6`
    pub sctp6: Fields,
    /// IPv6 without any of these.
    pub other6: Fields,
}

/// What is done to the fields before they are hashed (`input_xfrm` of ethtool's RSS, kernel 6.8 and later).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// `symmetric-xor` (`RXH_XFRM_SYM_XOR`): both addresses are replaced by source xor destination, so are both ports.
    SymmetricXor,
    /// `symmetric-or-xor` (`RXH_XFRM_SYM_OR_XOR`): the source by source or destination, the destination by source xor
    /// destination; so are the ports.
    SymmetricOrXor,
}

/// Receive-side scaling as `ethtool -x IF` and `ethtool -n IF rx-flow-hash` show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RssHash {
    /// The hash function's name, as in ethtool: `toeplitz`, `xor`, `crc32`.
    pub function: String,
    /// The key.
    pub key: Vec<u8>,
    /// What is done to the fields first.
    pub transform: Transform,
    /// The indirection table: a queue for each entry.
    pub table: Vec<u32>,
    /// The fields.
    pub fields: HashFields,
}

/// What is known of one NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicHash {
    /// The interface's name.
    pub interface: String,
    /// How it chooses a queue; or, as the rest of a sentence that begins with the interface's name, why that is not known
    /// (`does not show its key`).
    pub rss: Result<RssHash, String>,
}

/// Kinds of packets in the order of a row of [`Nic::fields`].
const KINDS: usize = 4;

/// Two like fields, source and destination, hashed as the NIC does: both directions alike.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Pair<const N: usize> {
    xor: Table<N>,
    or: Option<Table<N>>,
}

impl<const N: usize> Pair<N> {
    /// Of fields of `N` bytes that begin at byte `at` of the input; `None` if the directions differ.
    fn new(rss: &RssHash, at: usize) -> Option<Pair<N>> {
        let (first, second) = (Table::new(&rss.key, at), Table::new(&rss.key, at + N));
        match rss.transform {
            // Then the hash of both, being linear, is that of their exclusive or.
            Transform::None => (first == second).then_some(Pair { xor: first, or: None }),
            Transform::SymmetricXor => Some(Pair { xor: first.with(&second), or: None }),
            Transform::SymmetricOrXor => Some(Pair { xor: second, or: Some(first) }),
        }
    }

    #[inline(always)]
    fn hash(&self, a: [u8; N], b: [u8; N]) -> u32 {
        let xor = self.xor.hash(core::array::from_fn(|n| a[n] ^ b[n]));
        match &self.or {
            None => xor,
            Some(or) => xor ^ or.hash(core::array::from_fn(|n| a[n] | b[n])),
        }
    }
}

/// Which worker a flow's home is, as the NICs have it; see the module's head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    workers: u16,
    addresses_v4: Pair<4>,
    ports_v4: Pair<2>,
    addresses_v6: Pair<16>,
    ports_v6: Pair<2>,
    /// TCP, UDP, SCTP, others; of IPv4, then of IPv6.
    fields: [[Fields; KINDS]; 2],
    /// A worker for each entry of the indirection table; their number is a power of two.
    table: Box<[u16]>,
    transform: Transform,
}

/// The fields of TCP, UDP, SCTP and the rest, of IPv4 and of IPv6.
fn rows(fields: &HashFields) -> [[Fields; KINDS]; 2] {
    let HashFields { tcp4, udp4, sctp4, other4, tcp6, udp6, sctp6, other6 } = *fields;
    [[tcp4, udp4, sctp4, other4], [tcp6, udp6, sctp6, other6]]
}

/// What the operator calls them.
const ROW_NAMES: [[&str; KINDS]; 2] = [
    ["TCP over IPv4", "UDP over IPv4", "SCTP over IPv4", "other IPv4"],
    ["TCP over IPv6", "UDP over IPv6", "SCTP over IPv6", "other IPv6"],
];

fn name(fields: Fields) -> &'static str {
    match fields {
        Fields::None => "not at all",
        Fields::Addresses => "by addresses",
        Fields::AddressesAndPorts => "by addresses and ports",
        Fields::Other => "by something else than addresses and ports",
    }
}

/// What is wrong with one NIC's hash for all workers, as the rest of a sentence that begins with its name.
fn check(rss: &RssHash) -> Result<(), String> {
    if rss.function != "toeplitz" {
        return Err(format!("hashes with {}, not toeplitz", rss.function));
    }
    if rss.key.len() < KEY_LEN {
        return Err(format!("has a key of {} bytes, fewer than {KEY_LEN}", rss.key.len()));
    }
    if !rss.table.len().is_power_of_two() {
        return Err(format!("has an indirection table of {} entries, which is no power of two", rss.table.len()));
    }
    for (fields, names) in rows(&rss.fields).iter().flatten().zip(ROW_NAMES.iter().flatten()) {
        if *fields == Fields::Other {
            return Err(format!("hashes {names} {}", name(*fields)));
        }
    }
    let key = &rss.key;
    let addresses_alike = [alike::<4>(key, 0), alike::<16>(key, 0)];
    let all_alike = addresses_alike == [true; 2] && alike::<2>(key, 8) && alike::<2>(key, 32);
    match rss.transform {
        Transform::None if !all_alike => {
            Err("hashes the two directions of a flow differently (its key is not symmetric)".to_owned())
        }
        Transform::SymmetricXor if addresses_alike != [false; 2] => {
            Err("has a symmetric key and symmetric-xor, which cancel each other out: addresses do not count".to_owned())
        }
        _ => Ok(()),
    }
}

/// Whether the two fields of `N` bytes from byte `at` of the input on may change places without changing the hash.
fn alike<const N: usize>(key: &[u8], at: usize) -> bool {
    Table::<N>::new(key, at) == Table::new(key, at + N)
}

/// The workers of a table, repeated to `len` entries: the low bits of the hash choose the same worker then as before.
fn workers_of(table: &[u32], workers: u16, len: usize) -> Box<[u16]> {
    table.iter().cycle().take(len).map(|queue| (queue % u32::from(workers)) as u16).collect()
}

/// Where two NICs hash different fields, as a clause.
fn difference(a: &NicHash, of_a: &RssHash, b: &NicHash, of_b: &RssHash) -> Option<String> {
    let (fields, others) = (rows(&of_a.fields), rows(&of_b.fields));
    let both = fields.iter().flatten().zip(others.iter().flatten());
    both.zip(ROW_NAMES.iter().flatten()).find(|((one, other), _)| one != other).map(|((one, other), what)| {
        format!("{} hashes {what} {}, {} {}", a.interface, name(*one), b.interface, name(*other))
    })
}

impl Nic {
    /// For `workers` workers, worker `n` reading the queues that leave `n` when divided by their number.
    ///
    /// # Errors
    /// Why these NICs do not bring all packets of a flow to one worker: a clause without a full stop.
    pub(super) fn new(workers: u16, nics: &[NicHash]) -> Result<Nic, String> {
        let mut known = Vec::new();
        for nic in nics {
            let rss = nic.rss.as_ref().map_err(|why| format!("{} {why}", nic.interface))?;
            check(rss).map_err(|why| format!("{} {why}", nic.interface))?;
            known.push((nic, rss));
        }
        let Some(&(first, rss)) = known.first() else { return Err("no NIC is known".to_owned()) };
        let entries = known.iter().map(|(_, rss)| rss.table.len()).max().unwrap_or(1);
        let table = workers_of(&rss.table, workers, entries);
        for &(nic, other) in &known[1..] {
            let (a, b) = (&first.interface, &nic.interface);
            if other.transform != rss.transform {
                return Err(format!("{a} and {b} transform the fields differently before they hash them"));
            }
            if other.key[..KEY_LEN] != rss.key[..KEY_LEN] {
                return Err(format!("{a} and {b} have different keys"));
            }
            if workers_of(&other.table, workers, entries) != table {
                return Err(format!("the indirection tables of {a} and {b} differ"));
            }
            if let Some(difference) = difference(first, rss, nic, other) {
                return Err(difference);
            }
        }
        Nic::from_parts(workers, rss, table).ok_or_else(|| format!("the key of {} is not symmetric", first.interface))
    }

    fn from_parts(workers: u16, rss: &RssHash, table: Box<[u16]>) -> Option<Nic> {
        Some(Nic {
            workers,
            addresses_v4: Pair::new(rss, 0)?,
            ports_v4: Pair::new(rss, 8)?,
            addresses_v6: Pair::new(rss, 0)?,
            ports_v6: Pair::new(rss, 32)?,
            fields: rows(&rss.fields),
            table,
            transform: rss.transform,
        })
    }

    /// How many workers there are.
    pub fn workers(&self) -> u16 {
        self.workers
    }

    /// Entries of the indirection table.
    pub fn entries(&self) -> usize {
        self.table.len()
    }

    /// What makes it symmetric, in ethtool's words.
    pub(super) fn symmetry(&self) -> &'static str {
        match self.transform {
            Transform::None => "symmetric key",
            Transform::SymmetricXor => "symmetric-xor",
            Transform::SymmetricOrXor => "symmetric-or-xor",
        }
    }

    #[inline(always)]
    pub(super) fn fields(&self, family: Family, proto: u8) -> Fields {
        let kind = match proto {
            proto::TCP => 0,
            proto::UDP => 1,
            proto::SCTP => 2,
            _ => 3,
        };
        self.fields[usize::from(family == Family::V6)][kind]
    }

    /// What both addresses add to the hash.
    #[inline(always)]
    pub(super) fn addresses(&self, family: Family, src: Addr, dst: Addr) -> u32 {
        match family {
            Family::V4 => self.addresses_v4.hash(src.v4_bits().to_be_bytes(), dst.v4_bits().to_be_bytes()),
            Family::V6 => self.addresses_v6.hash(src.bits().to_be_bytes(), dst.bits().to_be_bytes()),
        }
    }

    /// What both ports add to the hash.
    #[inline(always)]
    pub(super) fn ports(&self, family: Family, a: u16, b: u16) -> u32 {
        let pair = match family {
            Family::V4 => &self.ports_v4,
            Family::V6 => &self.ports_v6,
        };
        pair.hash(a.to_be_bytes(), b.to_be_bytes())
    }

    /// The worker whose queue the indirection table names.
    #[inline(always)]
    pub(super) fn worker(&self, hash: u32) -> u16 {
        self.table[hash as usize & (self.table.len() - 1)]
    }

    /// The hash the NICs give a flow's packets.
    #[inline]
    pub fn hash(&self, flow: &Flow) -> u32 {
        self.hash_by(flow, self.fields(flow.family, flow.proto))
    }

    #[inline(always)]
    fn hash_by(&self, flow: &Flow, fields: Fields) -> u32 {
        match fields {
            Fields::AddressesAndPorts => {
                self.addresses(flow.family, flow.src, flow.dst) ^ self.ports(flow.family, flow.sport, flow.dport)
            }
            Fields::Addresses => self.addresses(flow.family, flow.src, flow.dst),
            Fields::None | Fields::Other => 0,
        }
    }

    #[inline]
    pub(super) fn home(&self, flow: &Flow) -> u16 {
        self.worker(self.hash(flow))
    }

    #[inline]
    pub(super) fn home_of_fragment(&self, flow: &Flow) -> u16 {
        // Protocol 0, which has no ports here: as every packet without.
        self.worker(self.hash_by(flow, self.fields(flow.family, 0)))
    }
}
