//! The few packets a router says itself: ICMP and ICMPv6 errors, and TCP resets for REJECT.
//!
//! Each is built in the frame of the packet that caused it, which is gone anyway: no buffer is needed and an answer can
//! never outnumber its causes. Fields are Linux's (`icmp_send`, `icmp6_send`, `nf_send_reset`, `nf_send_reset6`).
//! [`Limiter`] keeps Linux's rates.

use crate::device::Frame;
use crate::packet::{L4, Packet};
use crate::time::{Instant, SECOND_NS};
use crate::wire::{self, Addr, Family, checksum, ethernet, icmp, icmpv6, ipv4, ipv6, proto, tcp, udp};

/// The longest ICMP error in bytes of IP (RFC 1812 section 4.3.2.3).
const ICMP_MAX: usize = 576;
/// The longest ICMPv6 error in bytes of IP: the IPv6 minimum MTU (RFC 4443 section 2.4 (c)).
const ICMPV6_MAX: usize = 1280;
/// The TTL and hop limit of what a router says (`ip_default_ttl`, `hop_limit`).
const TTL: u8 = 64;

/// An ICMP or ICMPv6 error, of the offender's own IP version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error {
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The second word of the header: next-hop MTU, pointer, or 0.
    pub rest: u32,
}

impl Error {
    /// No route to the network.
    pub const fn no_route(family: Family) -> Error {
        match family {
            Family::V4 => Error::unreachable(family, icmp::CODE_NET),
            Family::V6 => Error::unreachable(family, icmpv6::CODE_NO_ROUTE),
        }
    }

    /// The host (or, in a route of type unreachable, whatever lies there) is not reachable. Linux says "no route" for an
    /// IPv6 route of type unreachable; this is the neighbour's failure there.
    pub const fn host_unreachable(family: Family) -> Error {
        match family {
            Family::V4 => Error::unreachable(family, icmp::CODE_HOST),
            Family::V6 => Error::unreachable(family, icmpv6::CODE_ADDR_UNREACHABLE),
        }
    }

    /// A route of type prohibit.
    pub const fn prohibited(family: Family) -> Error {
        match family {
            Family::V4 => Error::unreachable(family, icmp::CODE_ADMIN_PROHIBITED),
            Family::V6 => Error::unreachable(family, icmpv6::CODE_ADMIN_PROHIBITED),
        }
    }

    /// Destination unreachable with this code.
    pub const fn unreachable(family: Family, code: u8) -> Error {
        match family {
            Family::V4 => Error { kind: icmp::DEST_UNREACHABLE, code, rest: 0 },
            Family::V6 => Error { kind: icmpv6::DEST_UNREACHABLE, code, rest: 0 },
        }
    }

    /// TTL or hop limit used up in transit.
    pub const fn time_exceeded(family: Family) -> Error {
        match family {
            Family::V4 => Error { kind: icmp::TIME_EXCEEDED, code: 0, rest: 0 },
            Family::V6 => Error { kind: icmpv6::TIME_EXCEEDED, code: 0, rest: 0 },
        }
    }

    /// Too big for the way out, whose MTU is `mtu` bytes.
    pub const fn too_big(family: Family, mtu: u16) -> Error {
        match family {
            Family::V4 => Error { kind: icmp::DEST_UNREACHABLE, code: icmp::CODE_FRAG_NEEDED, rest: mtu as u32 },
            Family::V6 => Error { kind: icmpv6::PACKET_TOO_BIG, code: 0, rest: mtu as u32 },
        }
    }

    /// The IPv4 header is wrong at this byte offset.
    pub const fn parameter_problem(pointer: u8) -> Error {
        Error { kind: icmp::PARAMETER_PROBLEM, code: 0, rest: (pointer as u32) << 24 }
    }

    /// Whether [`Limiter`] counts it: all but "too big" (`icmp_ratemask`, `net.ipv6.icmp.ratemask`).
    const fn is_limited(self, family: Family) -> bool {
        match family {
            Family::V4 => !(self.kind == icmp::DEST_UNREACHABLE && self.code == icmp::CODE_FRAG_NEEDED),
            Family::V6 => self.kind != icmpv6::PACKET_TOO_BIG,
        }
    }
}

/// Whether an ICMP error may answer `packet` at all: not an ICMP error itself, nor an ICMP type nobody knows, nor one whose
/// source is no single host (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
pub fn may_answer(packet: &Packet) -> bool {
    if packet.is_icmp() {
        // Linux answers the queries it knows; other types, and headers cut short, it does not.
        let known = match packet.family {
            Family::V4 => packet.icmp_type() <= icmp::MASK_REPLY && !icmp::is_error(packet.icmp_type()),
            Family::V6 => !icmpv6::is_error(packet.icmp_type()) && packet.icmp_type() != icmpv6::REDIRECT,
        };
        if !known || packet.l4_len == 0 {
            return false;
        }
    }
    match packet.family {
        Family::V4 => {
            let first = (packet.src.v4_bits() >> 24) as u8;
            first != 0 && first != 127 && first < 224
        }
        Family::V6 => {
            let first = (packet.src.words().0 >> 56) as u8;
            packet.src != Addr::ZERO && first != 0xff
        }
    }
}

/// Whether the transport checksum of `packet` holds, as REJECT asks before it answers with an ICMP error
/// (`nf_reject_verify_csum`, `nf_ip_checksum`, `nf_ip6_checksum`): protocols that it does not know are taken to have one over
/// all of their payload, IPv6 ones with the pseudo-header.
pub fn is_whole(frame: &[u8], packet: &Packet) -> bool {
    let l4 = packet.l4_bytes(frame);
    match packet.proto {
        _ if packet.l4 == L4::PartialChecksum => return true,
        proto::AH | proto::ESP | proto::SCTP | proto::UDPLITE | proto::GRE => return true,
        proto::UDP if l4.len() >= udp::HEADER_LEN && udp::checksum(l4) == 0 => return true,
        _ => {}
    }
    let pseudo = match (packet.family, packet.proto) {
        (Family::V4, proto::TCP | proto::UDP) | (Family::V6, _) => {
            checksum::pseudo_header(packet.family, packet.src, packet.dst, packet.proto, l4.len() as u32)
        }
        (Family::V4, _) => 0,
    };
    checksum::is_right(pseudo, l4)
}

/// Turns `frame`, which holds `packet`, into the ICMP error `error` from `source` to the packet's source. `id` is the IPv4
/// identification to use. Link-layer addresses are left to the sender. The caller has asked [`may_answer`] and [`Limiter`].
pub fn icmp_error(frame: &mut Frame, packet: &Packet, error: Error, source: Addr, id: u16) {
    match packet.family {
        Family::V4 => icmpv4_error(frame, packet, error, source, id),
        Family::V6 => icmpv6_error(frame, packet, error, source),
    }
}

/// Moves the first `quoted` bytes of the offending IP packet to `at`, growing or shrinking the frame to fit.
fn quote(frame: &mut Frame, packet: &Packet, at: usize, quoted: usize) {
    let from = usize::from(packet.l3_at);
    let needed = at + quoted;
    if frame.len() < needed {
        frame.set_len(needed);
    }
    frame.bytes_mut().copy_within(from..from + quoted, at);
    frame.set_len(needed);
}

fn icmpv4_error(frame: &mut Frame, packet: &Packet, error: Error, source: Addr, id: u16) {
    let l3_at = ethernet::HEADER_LEN;
    let head = l3_at + ipv4::HEADER_LEN + icmp::HEADER_LEN;
    let room = (ICMP_MAX - ipv4::HEADER_LEN - icmp::HEADER_LEN).min(frame.capacity() - head);
    let quoted = usize::from(packet.l3_len).min(room);
    quote(frame, packet, head, quoted);
    let bytes = frame.bytes_mut();
    wire::put_u16(bytes, 12, ethernet::IPV4);
    let ip = &mut bytes[l3_at..];
    ip[0] = 0x45;
    ip[1] = packet.tos & 0x1e | 0xc0; // RFC 1812 section 4.3.2.5: precedence "internetwork control"
    wire::put_u16(ip, 2, (ipv4::HEADER_LEN + icmp::HEADER_LEN + quoted) as u16);
    wire::put_u16(ip, 4, id);
    wire::put_u16(ip, 6, 0);
    ip[ipv4::TTL_AT] = TTL;
    ip[9] = proto::ICMP;
    source.write(Family::V4, ip, ipv4::SRC_AT);
    packet.src.write(Family::V4, ip, ipv4::DST_AT);
    ipv4::set_checksum(&mut ip[..ipv4::HEADER_LEN]);
    let icmp = &mut ip[ipv4::HEADER_LEN..];
    icmp[0] = error.kind;
    icmp[1] = error.code;
    wire::put_u16(icmp, icmp::CHECKSUM_AT, 0);
    wire::put_u32(icmp, 4, error.rest);
    let check = checksum::finish(checksum::sum(0, icmp));
    wire::put_u16(icmp, icmp::CHECKSUM_AT, check);
}

fn icmpv6_error(frame: &mut Frame, packet: &Packet, error: Error, source: Addr) {
    let l3_at = ethernet::HEADER_LEN;
    let head = l3_at + ipv6::HEADER_LEN + icmpv6::HEADER_LEN;
    let room = (ICMPV6_MAX - ipv6::HEADER_LEN - icmpv6::HEADER_LEN).min(frame.capacity() - head);
    let quoted = usize::from(packet.l3_len).min(room);
    quote(frame, packet, head, quoted);
    let length = (icmpv6::HEADER_LEN + quoted) as u16;
    let bytes = frame.bytes_mut();
    wire::put_u16(bytes, 12, ethernet::IPV6);
    write_ipv6(&mut bytes[l3_at..], proto::ICMPV6, length, source, packet.src);
    let icmp = &mut bytes[l3_at + ipv6::HEADER_LEN..];
    icmp[0] = error.kind;
    icmp[1] = error.code;
    wire::put_u16(icmp, icmpv6::CHECKSUM_AT, 0);
    wire::put_u32(icmp, 4, error.rest);
    let pseudo = checksum::pseudo_header(Family::V6, source, packet.src, proto::ICMPV6, u32::from(length));
    let check = checksum::finish(checksum::sum(pseudo, icmp));
    wire::put_u16(icmp, icmpv6::CHECKSUM_AT, check);
}

fn write_ipv6(ip: &mut [u8], next_header: u8, payload_len: u16, source: Addr, destination: Addr) {
    wire::put_u32(ip, 0, 6 << 28);
    wire::put_u16(ip, 4, payload_len);
    ip[6] = next_header;
    ip[ipv6::HOP_LIMIT_AT] = TTL;
    source.write(Family::V6, ip, ipv6::SRC_AT);
    destination.write(Family::V6, ip, ipv6::DST_AT);
}

/// Turns `frame` into the TCP reset that answers `packet`, as REJECT `--reject-with tcp-reset` does; false, and the frame as
/// it was, where Linux answers nothing (not TCP, itself a reset, header cut short, checksum wrong). What the header says of
/// its own length it need not keep.
pub fn tcp_reset(frame: &mut Frame, packet: &Packet) -> bool {
    let header = packet.l4_bytes(frame.bytes());
    if packet.proto != proto::TCP || header.len() < tcp::HEADER_LEN || !is_whole(frame.bytes(), packet) {
        return false;
    }
    let given = tcp::flags(header);
    if given & tcp::RST != 0 {
        return false;
    }
    let (sport, dport) = (wire::get_u16(header, 0), wire::get_u16(header, 2));
    let (seq, ack, flags) = if given & tcp::ACK != 0 {
        (tcp::ack(header), 0, tcp::RST)
    } else {
        let numbered = u32::from(given & tcp::SYN != 0) + u32::from(given & tcp::FIN != 0);
        let payload = u32::from(packet.l4_len).wrapping_sub(tcp::header_len(header) as u32);
        (0, tcp::seq(header).wrapping_add(numbered).wrapping_add(payload), tcp::RST | tcp::ACK)
    };
    let l3_at = ethernet::HEADER_LEN;
    let l4_at = match packet.family {
        Family::V4 => l3_at + ipv4::HEADER_LEN,
        Family::V6 => l3_at + ipv6::HEADER_LEN,
    };
    frame.set_len(l4_at + tcp::HEADER_LEN);
    let bytes = frame.bytes_mut();
    match packet.family {
        Family::V4 => {
            let ip = &mut bytes[l3_at..l4_at];
            ip.fill(0);
            ip[0] = 0x45;
            wire::put_u16(ip, 2, (ipv4::HEADER_LEN + tcp::HEADER_LEN) as u16);
            wire::put_u16(ip, 6, ipv4::DF);
            ip[ipv4::TTL_AT] = TTL;
            ip[9] = proto::TCP;
            packet.dst.write(Family::V4, ip, ipv4::SRC_AT);
            packet.src.write(Family::V4, ip, ipv4::DST_AT);
            ipv4::set_checksum(ip);
        }
        Family::V6 => {
            write_ipv6(&mut bytes[l3_at..l4_at], proto::TCP, tcp::HEADER_LEN as u16, packet.dst, packet.src);
        }
    }
    let segment = &mut bytes[l4_at..];
    segment.fill(0);
    wire::put_u16(segment, 0, dport);
    wire::put_u16(segment, 2, sport);
    wire::put_u32(segment, 4, seq);
    wire::put_u32(segment, 8, ack);
    segment[12] = 5 << 4;
    segment[13] = flags;
    let pseudo = checksum::pseudo_header(packet.family, packet.dst, packet.src, proto::TCP, tcp::HEADER_LEN as u32);
    let check = match (checksum::finish(checksum::sum(pseudo, segment)), packet.family) {
        // Over IPv4 Linux leaves it to `skb_checksum_help`, which writes no 0.
        (0, Family::V4) => 0xffff,
        (check, _) => check,
    };
    wire::put_u16(segment, tcp::CHECKSUM_AT, check);
    true
}

/// Linux's rates for ICMP errors: one token bucket per destination (`inet_peer_xrlim_allow`: burst 6, then one per
/// `icmp_ratelimit` = 1 s; ICMPv6 one per 100 ms, which Linux quarters for a /64) and one for all ICMPv4
/// (`icmp_msgs_per_sec` = 1000, `icmp_msgs_burst` = 50). "Too big" is not limited per destination.
///
/// Destinations share [`Limiter::SLOTS`] direct-mapped buckets; a newcomer evicts, and starts full, as an inet_peer does
/// that was forgotten. One for all workers.
#[derive(Debug)]
pub struct Limiter {
    slots: Box<[Slot]>,
    global_tokens: u64,
    global_stamp: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    host: Addr,
    /// Time saved up, in nanoseconds; one message costs one interval.
    saved_ns: u64,
    stamp: Instant,
    used: bool,
}

impl Limiter {
    /// Buckets for destinations.
    pub const SLOTS: usize = 4096;
    const BURST: u64 = 6;
    const V4_INTERVAL_NS: u64 = SECOND_NS;
    const V6_INTERVAL_NS: u64 = SECOND_NS / 40;
    const GLOBAL_BURST: u64 = 50;
    const GLOBAL_INTERVAL_NS: u64 = SECOND_NS / 1000;

    /// All buckets full.
    pub fn new() -> Limiter {
        Limiter {
            slots: vec![Slot::default(); Limiter::SLOTS].into_boxed_slice(),
            global_tokens: Limiter::GLOBAL_BURST,
            global_stamp: Instant::ZERO,
        }
    }

    /// Whether `error` may be sent to `host` now; takes a token if so.
    pub fn allow(&mut self, family: Family, host: Addr, error: Error, now: Instant) -> bool {
        if !error.is_limited(family) {
            return true;
        }
        if family == Family::V4 && !self.allow_any(now) {
            return false;
        }
        let interval = match family {
            Family::V4 => Limiter::V4_INTERVAL_NS,
            Family::V6 => Limiter::V6_INTERVAL_NS,
        };
        let (hi, lo) = host.words();
        let index = (hi ^ lo).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        let slot = &mut self.slots[index as usize];
        if !slot.used || slot.host != host {
            *slot = Slot { host, saved_ns: Limiter::BURST * interval, stamp: now, used: true };
        }
        slot.saved_ns = (slot.saved_ns + (now - slot.stamp)).min(Limiter::BURST * interval);
        // Workers' clocks may be a little apart.
        slot.stamp = slot.stamp.max(now);
        if slot.saved_ns < interval {
            return false;
        }
        slot.saved_ns -= interval;
        true
    }

    fn allow_any(&mut self, now: Instant) -> bool {
        let earned = (now - self.global_stamp) / Limiter::GLOBAL_INTERVAL_NS;
        if earned > 0 {
            self.global_tokens = (self.global_tokens + earned).min(Limiter::GLOBAL_BURST);
            self.global_stamp = now;
        }
        if self.global_tokens == 0 {
            return false;
        }
        self.global_tokens -= 1;
        true
    }
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter::new()
    }
}

#[cfg(test)]
mod tests;
