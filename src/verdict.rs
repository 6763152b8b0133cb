//! What became of a packet: [`Verdict`], the reason of every drop, and the counters.
//!
//! A [`DropReason`]'s name is the metric's label, the word in `xrouter stats`, and the word a capture or `explain`
//! prints. Nothing is dropped without one. `tests/tidy.rs` holds that each is produced somewhere in the source and
//! expected by some test.

use core::fmt;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet went no further.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in order of declaration (the order a packet can meet them).
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The stable name: metric label, stats line, scenario word.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// One line for an operator.
            pub const fn describe(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// The reason of this name.
            pub fn from_name(name: &str) -> Option<DropReason> {
                match name { $($name => Some(DropReason::$variant),)+ _ => None }
            }
        }
    };
}

drop_reasons! {
    /// Frame shorter than an Ethernet header.
    FrameShort = "frame_short",
    /// Frame longer than a packet buffer (a capture file's; the kernel drops such frames before they reach us).
    FrameTooLong = "frame_too_long",
    /// EtherType the router does not forward and the host was not given.
    EtherTypeUnknown = "ethertype_unknown",
    /// Destination MAC address is not this port's.
    NotForUs = "not_for_us",
    /// IP version field does not fit the EtherType.
    IpVersion = "ip_version",
    /// IP header cut short, or its length field below 20 bytes or beyond the packet.
    IpHeaderLength = "ip_header_length",
    /// IP total length (IPv6: payload length) below the header or beyond the frame.
    IpTotalLength = "ip_total_length",
    /// IPv4 header checksum wrong.
    IpChecksum = "ip_checksum",
    /// IPv4 options that source-route, or that this version cannot rewrite as Linux would.
    IpOptions = "ip_options",
    /// Fragment: reassembly is not there yet.
    IpFragment = "ip_fragment",
    /// IPv6 hop-by-hop options cut short, or with an option that asks to discard.
    Ipv6HopByHop = "ipv6_hop_by_hop",
    /// Source address no packet may have (multicast, broadcast, loopback, unspecified, or our own).
    MartianSource = "martian_source",
    /// The route back to the source does not lead through the port it came by (rp_filter).
    ReversePath = "reverse_path",
    /// Destination address that is never forwarded (unspecified, loopback, broadcast, multicast, link-local).
    MartianDestination = "martian_destination",
    /// New connection while the connection table is full.
    ConntrackFull = "conntrack_full",
    /// New connection whose tuple was taken before it was confirmed.
    ConntrackClash = "conntrack_clash",
    /// New connection for which address translation found no port or address that is free.
    NatExhausted = "nat_exhausted",
    /// MASQUERADE on a port that has no address.
    NatNoAddress = "nat_no_address",
    /// Packet of a masqueraded connection that would leave by another port than the one it was masqueraded on.
    MasqueradeMoved = "masquerade_moved",
    /// ICMP redirect about a translated connection: what it says holds for the other addresses.
    NatRedirect = "nat_redirect",
    /// Packet of a translated connection, or ICMP error about one, with a header that is cut short or wrong.
    NatMalformed = "nat_malformed",
    /// Redirected or translated to the host itself, whose own rules are not applied (`--host-chains apply`).
    NatToHost = "nat_to_host",
    /// No route to the destination (answered with network unreachable).
    NoRoute = "no_route",
    /// Route of type unreachable (answered with host unreachable).
    RouteUnreachable = "route_unreachable",
    /// Route of type prohibit (answered with administratively prohibited).
    RouteProhibit = "route_prohibit",
    /// Route of type blackhole (silent).
    RouteBlackhole = "route_blackhole",
    /// Route leaves through an interface that is not one of the router's two.
    RouteElsewhere = "route_elsewhere",
    /// TTL or hop limit used up (answered with time exceeded).
    TtlExceeded = "ttl_exceeded",
    /// Larger than the way out takes (answered with fragmentation needed or packet too big).
    PacketTooBig = "packet_too_big",
    /// Link-local source beyond its link (answered with beyond scope).
    BeyondScope = "beyond_scope",
    /// A rule said DROP.
    RuleDrop = "rule_drop",
    /// A rule said REJECT.
    RuleReject = "rule_reject",
    /// A match could not read the header it needs; Linux drops such a packet at once.
    RuleHotdrop = "rule_hotdrop",
    /// The chain's policy said DROP.
    PolicyDrop = "policy_drop",
    /// A command of a helper's protocol is cut short: what it announces could not be expected.
    HelperPartial = "helper_partial",
    /// A command announces a connection that cannot be expected: its port is taken, or too many are expected.
    HelperUnexpected = "helper_unexpected",
    /// A translated address is longer than the packet has room for.
    HelperNoRoom = "helper_no_room",
    /// TCP options cut short in a connection whose sequence numbers are changed.
    SeqAdjust = "seq_adjust",
    /// Next hop did not answer ARP or neighbour discovery (answered with host unreachable).
    NeighbourFailed = "neighbour_failed",
    /// Too many packets wait for the next hop's address.
    NeighbourQueueFull = "neighbour_queue_full",
    /// The ring to the worker that has its connection was full.
    HandoverFull = "handover_full",
    /// The port's transmit ring stayed full.
    TransmitFull = "transmit_full",
    /// For the host's own stack, which was given its share already (20,000 packets a second for each worker).
    PuntLimited = "punt_limited",
    /// The frame could not be handed to the host's own stack.
    PuntFailed = "punt_failed",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A packet's fate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Out through a port, rewritten.
    Forward,
    /// Gone, for this reason (a [`crate::reply`] may have been sent in its frame).
    Drop(DropReason),
    /// The host's own: handed to the kernel as if it had just arrived.
    Punt,
    /// Waits for the next hop's link-layer address.
    Hold,
    /// Another worker's.
    Handover,
}

/// Drops by reason, in packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropCounters {
    by_reason: [u64; DropReason::ALL.len()],
}

impl Default for DropCounters {
    fn default() -> Self {
        DropCounters { by_reason: [0; DropReason::ALL.len()] }
    }
}

impl DropCounters {
    /// One more packet dropped for `reason`.
    #[inline]
    pub fn count(&mut self, reason: DropReason) {
        self.by_reason[reason as usize] += 1;
    }

    /// `packets` more dropped for `reason`.
    #[inline]
    pub fn count_many(&mut self, reason: DropReason, packets: u64) {
        self.by_reason[reason as usize] += packets;
    }

    /// Packets dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.by_reason[reason as usize]
    }

    /// All packets dropped.
    pub fn total(&self) -> u64 {
        self.by_reason.iter().sum()
    }

    /// Every reason with its count, in declaration order.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.get(reason)))
    }

    /// Adds another worker's counts.
    pub fn add(&mut self, other: &DropCounters) {
        for (mine, theirs) in self.by_reason.iter_mut().zip(other.by_reason) {
            *mine += theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_round_trip() {
        for &reason in DropReason::ALL {
            assert_eq!(DropReason::from_name(reason.name()), Some(reason));
            assert!(!reason.describe().is_empty());
        }
        assert_eq!(DropReason::from_name("nonsense"), None);
    }

    #[test]
    fn counters_count_what_they_are_told() {
        let mut counters = DropCounters::default();
        counters.count(DropReason::NoRoute);
        counters.count(DropReason::NoRoute);
        let mut sum = DropCounters::default();
        sum.count(DropReason::PolicyDrop);
        sum.add(&counters);
        assert_eq!((sum.get(DropReason::NoRoute), sum.total()), (2, 3));
    }
}
