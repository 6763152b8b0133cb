//! ICMP and ICMPv6: queries have connections of their own, errors belong to the connection they report on
//! (nf_conntrack_proto_icmp.c, nf_conntrack_proto_icmpv6.c).
//!
//! Exact for both, Redirect of ICMPv6 included. The packet inside an error is read as Linux reads it: its version is not
//! looked at, its length field and checksums need not fit, its transport header may be cut after the ports.

use super::conn::Conn;
use super::generic;
use super::settings::Settings;
use super::tracker::Outcome;
use super::tuple::Tuple;
use super::udp::packet_is_sound;
use crate::packet::Packet;
use crate::wire::{self, Addr, Family, icmp, icmpv6, ipv4, ipv6, proto};

/// What an ICMP message is to conntrack, before any lookup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// Tracked by its own tuple, like any packet.
    Own,
    /// Reports on a packet; this is the tuple of the packet that would go the other way.
    About(Tuple),
    /// Never tracked.
    Untracked,
    /// No error that Linux could place.
    Invalid,
}

/// ICMPv6 types of multicast listener and neighbour discovery, which are never tracked (`noct_valid_new`).
const fn is_untracked(kind: u8) -> bool {
    matches!(kind, 130..=136 | 143 | 151 | 152)
}

/// The highest ICMP type that is known (`NR_ICMP_TYPES`).
const ICMP_TYPE_MAX: u8 = 18;

/// Looks at an ICMP (over IPv4) or ICMPv6 (over IPv6) message (`nf_conntrack_handle_icmp`).
pub(super) fn look(packet: &Packet, frame: &[u8], settings: &Settings) -> Message {
    let message = packet.l4_bytes(frame);
    if message.len() < icmp::HEADER_LEN || !packet_is_sound(packet, settings) {
        return Message::Invalid;
    }
    let kind = packet.icmp_type();
    match packet.family {
        Family::V4 if kind > ICMP_TYPE_MAX => Message::Invalid,
        Family::V4 if icmp::is_error(kind) => about(Family::V4, &message[icmp::HEADER_LEN..]),
        Family::V4 => Message::Own,
        Family::V6 if is_untracked(kind) => Message::Untracked,
        Family::V6 if kind == icmpv6::REDIRECT => redirect(packet, message),
        Family::V6 if icmpv6::is_error(kind) => about(Family::V6, &message[icmpv6::HEADER_LEN..]),
        Family::V6 => Message::Own,
    }
}

/// A query or an answer to one, in its own connection.
pub(super) fn packet(conn: &Conn, packet: &Packet, settings: &Settings) -> Outcome {
    if !packet.is_icmp() {
        return Outcome::Invalid; // ICMP over IPv6, or ICMPv6 over IPv4
    }
    let kind = (conn.dport >> 8) as u8;
    match packet.family {
        Family::V4 => match kind {
            icmp::ECHO_REQUEST | icmp::TIMESTAMP_REQUEST | icmp::INFO_REQUEST | icmp::MASK_REQUEST => {
                Outcome::Refresh(settings.icmp_timeout)
            }
            _ => Outcome::Invalid,
        },
        Family::V6 => match kind {
            icmpv6::ECHO_REQUEST | icmpv6::NI_QUERY => Outcome::Refresh(settings.icmpv6_timeout),
            _ => Outcome::Invalid,
        },
    }
}

fn about(family: Family, inner: &[u8]) -> Message {
    let tuple = match family {
        Family::V4 => inner_tuple_v4(inner),
        Family::V6 => inner_tuple_v6(inner),
    };
    tuple.and_then(|tuple| tuple.inverse()).map_or(Message::Invalid, Message::About)
}

/// Options of a Redirect start here; the target and destination addresses come before (RFC 4861 section 4.5).
const REDIRECT_OPTIONS_AT: usize = 40;
/// The option that carries the packet in question (RFC 4861 section 4.6.3), and its own header's length.
const REDIRECTED_HEADER: u8 = 4;
const REDIRECTED_HEADER_LEN: usize = 8;

/// RFC 4861 section 8.1: only from the link itself. It must be the first option that holds the packet.
fn redirect(packet: &Packet, message: &[u8]) -> Message {
    if message.len() < REDIRECT_OPTIONS_AT {
        return Message::Invalid;
    }
    if packet.icmp_code() != 0 {
        return Message::Own;
    }
    let link_local = packet.src.bits() >> 118 == 0xfe80 >> 6;
    if packet.ttl != 255 || !link_local {
        return Message::Invalid;
    }
    match message[REDIRECT_OPTIONS_AT..] {
        [_, 0, ..] | [] | [_] => Message::Invalid,
        [REDIRECTED_HEADER, ..] => match message.get(REDIRECT_OPTIONS_AT + REDIRECTED_HEADER_LEN..) {
            Some(inner) => about(Family::V6, inner),
            None => Message::Invalid,
        },
        _ => Message::Own,
    }
}

fn inner_tuple_v4(inner: &[u8]) -> Option<Tuple> {
    if inner.len() < ipv4::HEADER_LEN || ipv4::flags_offset(inner) & ipv4::OFFSET_MASK != 0 {
        return None;
    }
    let l4 = inner.get(ipv4::header_len(inner)..)?;
    inner_tuple(Family::V4, ipv4::src(inner), ipv4::dst(inner), ipv4::protocol(inner), l4)
}

fn inner_tuple_v6(inner: &[u8]) -> Option<Tuple> {
    if inner.len() < ipv6::HEADER_LEN {
        return None;
    }
    let (proto, at) = ipv6::skip_extension_headers(inner)?;
    inner_tuple(Family::V6, ipv6::src(inner), ipv6::dst(inner), proto, inner.get(at..).unwrap_or_default())
}

/// The tuple of an embedded packet (`nf_ct_get_tuple`): ports need 4 bytes, ICMP its 8-byte header.
fn inner_tuple(family: Family, src: Addr, dst: Addr, protocol: u8, l4: &[u8]) -> Option<Tuple> {
    let bare = Tuple { src, dst, sport: 0, dport: 0, proto: protocol, family, zone: 0 };
    match protocol {
        proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP => {
            (l4.len() >= 4).then(|| Tuple { sport: wire::get_u16(l4, 0), dport: wire::get_u16(l4, 2), ..bare })
        }
        proto::ICMP | proto::ICMPV6 => {
            (l4.len() >= 8).then(|| Tuple { sport: wire::get_u16(l4, 4), dport: wire::get_u16(l4, 0), ..bare })
        }
        proto::GRE => generic::gre_tuple(bare, l4),
        _ => Some(bare),
    }
}
