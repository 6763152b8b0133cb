//! What a connection is known by: [`Tuple`], its [`Direction`], and the words conntrack says about a packet:
//! [`CtInfo`] and [`CtStatus`] (include/uapi/linux/netfilter/nf_conntrack_common.h).

use crate::packet::Packet;
use crate::wire::{Addr, Family, proto};

/// Which of a connection's two tuples a packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[repr(u8)]
pub enum Direction {
    /// As the first packet.
    #[default]
    Original = 0,
    /// The other way.
    Reply = 1,
}

impl Direction {
    /// The other direction.
    #[inline]
    pub const fn other(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }

    /// As an array index.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// One direction of a connection: 40 bytes.
///
/// For ICMP and ICMPv6 `sport` is the identifier and `dport` the type (high byte) and code (low byte); protocols without
/// ports have 0 in both. Ports are in host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[repr(C)]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port or ICMP identifier.
    pub sport: u16,
    /// Destination port, or ICMP type and code.
    pub dport: u16,
    /// Transport protocol.
    pub proto: u8,
    /// IP version.
    pub family: Family,
    /// Conntrack zone.
    pub zone: u16,
}

impl Tuple {
    /// The tuple that `packet` carries, in zone 0. Says nothing about whether the packet may be tracked.
    #[inline]
    pub fn of(packet: &Packet) -> Tuple {
        Tuple {
            src: packet.src,
            dst: packet.dst,
            sport: packet.sport,
            dport: packet.dport,
            proto: packet.proto,
            family: packet.family,
            zone: 0,
        }
    }

    /// The tuple of the reply, or `None` where Linux knows none (ICMP types without a counterpart).
    #[inline]
    pub fn inverse(&self) -> Option<Tuple> {
        let swapped = Tuple { src: self.dst, dst: self.src, ..*self };
        match (self.proto, self.family) {
            (proto::ICMP, Family::V4) | (proto::ICMPV6, Family::V6) => {
                let kind = inverse_icmp_type(self.family, (self.dport >> 8) as u8)?;
                Some(Tuple { dport: u16::from(kind) << 8 | self.dport & 0xff, ..swapped })
            }
            _ => Some(Tuple { sport: self.dport, dport: self.sport, ..swapped }),
        }
    }
}

/// The type that answers `kind` (`invmap` in nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c).
fn inverse_icmp_type(family: Family, kind: u8) -> Option<u8> {
    Some(match (family, kind) {
        (Family::V4, 0) => 8,
        (Family::V4, 8) => 0,
        (Family::V4, 13) => 14,
        (Family::V4, 14) => 13,
        (Family::V4, 15) => 16,
        (Family::V4, 16) => 15,
        (Family::V4, 17) => 18,
        (Family::V4, 18) => 17,
        (Family::V6, 128) => 129,
        (Family::V6, 129) => 128,
        (Family::V6, 139) => 140,
        (Family::V6, 140) => 139,
        _ => return None,
    })
}

/// How a packet relates to its connection: `enum ip_conntrack_info`, with INVALID (Linux: no connection attached) as a
/// value of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum CtInfo {
    /// Original direction, and a reply has been seen.
    Established = 0,
    /// An ICMP error in the original direction, or the first packets of an expected connection.
    Related = 1,
    /// Original direction, no reply seen yet.
    New = 2,
    /// Reply direction.
    EstablishedReply = 3,
    /// An ICMP error in the reply direction.
    RelatedReply = 4,
    /// Not tracked on purpose.
    Untracked = 7,
    /// Could not be made sense of.
    Invalid = 8,
}

impl CtInfo {
    /// The bit that `-m state` and `--ctstate` test: INVALID 1, ESTABLISHED 2, RELATED 4, NEW 8, UNTRACKED 64
    /// (`XT_CONNTRACK_STATE_*`).
    #[inline]
    pub const fn state_bit(self) -> u16 {
        match self {
            CtInfo::Invalid => 1,
            CtInfo::Established | CtInfo::EstablishedReply => 1 << 1,
            CtInfo::Related | CtInfo::RelatedReply => 1 << 2,
            CtInfo::New => 1 << 3,
            CtInfo::Untracked => 1 << 6,
        }
    }

    /// The name `--ctstate` has for it.
    pub const fn name(self) -> &'static str {
        match self {
            CtInfo::Invalid => "INVALID",
            CtInfo::Established | CtInfo::EstablishedReply => "ESTABLISHED",
            CtInfo::Related | CtInfo::RelatedReply => "RELATED",
            CtInfo::New => "NEW",
            CtInfo::Untracked => "UNTRACKED",
        }
    }

    /// Direction of the packet.
    #[inline]
    pub const fn direction(self) -> Direction {
        match self {
            CtInfo::EstablishedReply | CtInfo::RelatedReply => Direction::Reply,
            _ => Direction::Original,
        }
    }
}

/// `enum ip_conntrack_status`: a bit set, with Linux's own numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct CtStatus(pub u16);

impl CtStatus {
    /// It was expected.
    pub const EXPECTED: CtStatus = CtStatus(1 << 0);
    /// A reply has been seen.
    pub const SEEN_REPLY: CtStatus = CtStatus(1 << 1);
    /// Not to be dropped early.
    pub const ASSURED: CtStatus = CtStatus(1 << 2);
    /// In the table.
    pub const CONFIRMED: CtStatus = CtStatus(1 << 3);
    /// Its source is translated.
    pub const SRC_NAT: CtStatus = CtStatus(1 << 4);
    /// Its destination is translated.
    pub const DST_NAT: CtStatus = CtStatus(1 << 5);
    /// It has been decided whether its source is translated.
    pub const SRC_NAT_DONE: CtStatus = CtStatus(1 << 7);
    /// It has been decided whether its destination is translated.
    pub const DST_NAT_DONE: CtStatus = CtStatus(1 << 8);
    /// SRC_NAT or DST_NAT (`IPS_NAT_MASK`).
    pub const NAT: CtStatus = CtStatus::SRC_NAT.with(CtStatus::DST_NAT);
    /// Its sequence numbers are changed.
    pub const SEQ_ADJUST: CtStatus = CtStatus(1 << 6);
    /// A rule gave it a helper.
    pub const HELPER: CtStatus = CtStatus(1 << 13);

    /// Whether any bit of `other` is set.
    #[inline]
    pub const fn any(self, other: CtStatus) -> bool {
        self.0 & other.0 != 0
    }

    /// With the bits of `other` set too.
    #[inline]
    #[must_use]
    pub const fn with(self, other: CtStatus) -> CtStatus {
        CtStatus(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverse_swaps_ports_and_maps_icmp_types() {
        let tcp = Tuple {
            sport: 1,
            dport: 2,
            proto: proto::TCP,
            src: Addr::from_v4(1),
            dst: Addr::from_v4(2),
            ..Tuple::default()
        };
        let back = tcp.inverse().expect("TCP has an inverse");
        assert_eq!((back.sport, back.dport, back.src, back.dst), (2, 1, Addr::from_v4(2), Addr::from_v4(1)));
        assert_eq!(back.inverse(), Some(tcp));
        let echo = Tuple { sport: 77, dport: 8 << 8 | 5, proto: proto::ICMP, ..Tuple::default() };
        let reply = echo.inverse().expect("echo has an inverse");
        assert_eq!((reply.sport, reply.dport), (77, 5));
        assert_eq!(Tuple { dport: 3 << 8, ..echo }.inverse(), None);
        // ICMP's number means nothing under IPv6: a plain protocol without ports.
        assert!(Tuple { family: Family::V6, ..echo }.inverse().is_some());
    }

    #[test]
    fn a_tuple_is_forty_bytes() {
        assert_eq!(size_of::<Tuple>(), 40);
    }
}
