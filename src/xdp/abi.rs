//! What the XDP program and user space agree on: `bpf/abi.h` said again in Rust.
//!
//! The tests hold both together through the BTF of the compiled program. Change the two files in one commit.

use crate::device::PortId;
use std::fmt;

/// Highest number of queues of one port. `XROUTER_MAX_QUEUES`.
pub const MAX_QUEUES: u32 = 64;
/// Highest number of local addresses of each family. `XROUTER_LOCAL_MAX`.
pub const LOCAL_MAX: usize = 4096;
/// Words of 64 bits in the filter over the local addresses. `XROUTER_FILTER_WORDS`.
pub(super) const FILTER_WORDS: usize = 64;
const FILTER_SHIFT: u32 = 20;
const FILTER_FACTOR: u32 = 0x9e37_79b1;
/// Highest number of punters. `XROUTER_MAX_PUNTERS`.
pub const MAX_PUNTERS: usize = 64;
/// Most frames one call gives back to the kernel. `XROUTER_PUNT_BATCH`.
pub const PUNT_BATCH: usize = 64;
/// The longest frame that can be given back, in bytes. `XROUTER_PUNT_BYTES`.
pub const PUNT_BYTES: usize = 3072;
/// Bytes of metadata that mark a punted frame. `XROUTER_PUNT_META`.
pub(super) const PUNT_META: usize = 28;
/// Bytes of packet a punting run starts with. `XROUTER_PUNT_RUN`.
pub(super) const PUNT_RUN: usize = 60;
/// First word of the metadata. `XROUTER_PUNT_MAGIC`.
pub(super) const PUNT_MAGIC: u32 = 0x7872_7074;
/// The port has no IPv4 address yet. `XROUTER_PORT_ADDRESSLESS`.
pub(super) const PORT_ADDRESSLESS: u32 = 1;
/// Connections over IPv4 may be translated. `XROUTER_NAT4`.
pub(super) const NAT4: u32 = 1;
/// Connections over IPv6 may be translated. `XROUTER_NAT6`.
pub(super) const NAT6: u32 = 2;

/// What the program knows of a port. `struct xrouter_port`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Port {
    /// Interface index, host order.
    pub ifindex: u32,
    /// [`PORT_ADDRESSLESS`].
    pub flags: u32,
    /// Six bytes in the order of the wire, then two of zero.
    pub mac: u64,
}

impl Port {
    /// `mac` the way the program compares it.
    pub(super) fn mac_word(mac: [u8; 6]) -> u64 {
        u64::from_ne_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0])
    }
}

/// The program's configuration. `struct xrouter_config`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    /// The ports, by [`PortId`].
    pub port: [Port; PortId::COUNT],
    /// [`NAT4`], [`NAT6`].
    pub nat: u32,
    /// Brings the filter to a multiple of 8 bytes.
    pub reserved: u32,
    /// One-hash Bloom filter over the local addresses: most packets of transit skip the hash maps.
    pub local_filter: [u64; FILTER_WORDS],
    /// Behind a punted frame where the hook is generic, else zero. Drawn for this run.
    pub punt_seal: [u64; 2],
    /// The slot that each punter's next frame takes.
    pub punt_next: [u32; MAX_PUNTERS],
}

/// One frame on its way back to the kernel. `struct xrouter_punt_slot`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct PuntSlot {
    /// Bytes of `bytes` that count.
    pub length: u32,
    /// Makes the size a multiple of 8, at which the kernel lays out an array's elements.
    pub reserved: u32,
    /// The frame, from its Ethernet header.
    pub bytes: [u8; PUNT_BYTES],
}

/// The filter bit of an address folded to 32 bits: (word, bit).
pub(super) fn filter_bit(word: u32) -> (usize, u32) {
    let bit = word.wrapping_mul(FILTER_FACTOR) >> FILTER_SHIFT;
    ((bit >> 6) as usize % FILTER_WORDS, bit & 63)
}

macro_rules! steer {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What the XDP program did with a frame, and why. `enum xrouter_steer`.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u32)]
        pub enum Steer { $($(#[$doc])* $name,)* }

        impl Steer {
            /// All of them, in the program's order.
            pub const ALL: &'static [Steer] = &[$(Steer::$name,)*];

            /// The name in metrics and listings.
            pub const fn name(self) -> &'static str {
                match self { $(Steer::$name => $text,)* }
            }
        }
    };
}

steer! {
    /// To the worker: may have to be forwarded.
    WorkerTransit = "worker_transit",
    /// To the worker: for a local address, but no socket of the host wants it (with NAT: no connected one).
    WorkerLocal = "worker_local",
    /// To the kernel: for another station's MAC.
    HostOtherMac = "host_other_mac",
    /// To the kernel: broadcast or multicast at layer 2.
    HostGroupMac = "host_group_mac",
    /// To the kernel: not IPv4 or IPv6 (ARP, VLAN tags, LLDP ...).
    HostNotIp = "host_not_ip",
    /// To the kernel: IP multicast or the limited broadcast.
    HostMulticast = "host_multicast",
    /// To the kernel: IPv6 link-local destination.
    HostLinkLocal = "host_link_local",
    /// To the kernel: neighbour discovery or MLD to a local address.
    HostNeighbour = "host_neighbour",
    /// To the kernel: DHCP.
    HostDhcp = "host_dhcp",
    /// To the kernel: the host has a socket for it (with NAT: a connected one).
    HostSocket = "host_socket",
    /// To the kernel: echo request to a local address; not with NAT.
    HostEcho = "host_echo",
    /// To the kernel: fragment, options or extension headers to a local address.
    HostFragment = "host_fragment",
    /// To the kernel: another protocol to a local address; not with NAT.
    HostProtocol = "host_protocol",
    /// To the kernel: given back by a worker.
    HostPunted = "host_punted",
    /// Dropped: shorter than an Ethernet header.
    DropRunt = "drop_runt",
    /// Dropped: received on an interface the program does not know.
    DropNoPort = "drop_no_port",
    /// Dropped: no AF_XDP socket is bound for the queue.
    DropNoSocket = "drop_no_socket",
    /// Dropped: a punted frame that could not be rebuilt.
    DropPunt = "drop_punt",
    /// Dropped: tagged with VLAN 0, a mere priority; the kernel would take the tag off and route the packet in it.
    DropPriorityTag = "drop_priority_tag",
}

impl fmt::Display for Steer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
