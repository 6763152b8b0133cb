//! UDP and UDP-Lite (nf_conntrack_proto_udp.c).
//!
//! UDP is exact: 30 seconds, 120 and ASSURED from the first packet that comes more than two seconds after the
//! connection began and after a reply had been seen. UDP-Lite is exact but for one number: its checksum is verified with
//! its own protocol number, as RFC 3828 has it, not with UDP's (see the head of `tracker`).

use super::conn::Conn;
use super::settings::Settings;
use super::tracker::Outcome;
use super::tuple::CtStatus;
use crate::packet::{L4, Packet};
use crate::time::{Instant, SECOND_NS};
use crate::wire::{self, checksum};

/// How old a connection must be to become a stream, in nanoseconds.
const STREAM_AGE_NS: u64 = 2 * SECOND_NS;

/// A UDP packet of `conn`.
#[inline]
pub(super) fn packet(conn: &mut Conn, packet: &Packet, settings: &Settings, now: Instant) -> Outcome {
    if !packet_is_sound(packet, settings) {
        return Outcome::Invalid;
    }
    if !conn.is_confirmed() {
        conn.set_stream_after(now + STREAM_AGE_NS);
    }
    if !conn.status.any(CtStatus::SEEN_REPLY) || now <= conn.stream_after() {
        return Outcome::Refresh(settings.udp_timeout);
    }
    conn.status = conn.status.with(CtStatus::ASSURED);
    Outcome::Refresh(settings.udp_timeout_stream)
}

impl Conn {
    /// A UDP packet after this time makes the connection a stream.
    fn stream_after(&self) -> Instant {
        Instant::from_ns(u64::from(self.words[0]) << 32 | u64::from(self.words[1]))
    }

    fn set_stream_after(&mut self, at: Instant) {
        self.words = [(at.as_ns() >> 32) as u32, at.as_ns() as u32];
    }
}

/// A UDP-Lite packet of `conn`.
pub(super) fn packet_lite(conn: &mut Conn, packet: &Packet, frame: &[u8], settings: &Settings) -> Outcome {
    if packet.l4 == L4::Malformed || !is_sound_lite(packet, packet.l4_bytes(frame), settings.checksum) {
        return Outcome::Invalid;
    }
    if !conn.status.any(CtStatus::SEEN_REPLY) {
        return Outcome::Refresh(settings.udp_timeout);
    }
    conn.status = conn.status.with(CtStatus::ASSURED);
    Outcome::Refresh(settings.udp_timeout_stream)
}

/// Whether the header is whole and honest, and the checksum right if that is asked for.
#[inline]
pub(super) fn packet_is_sound(packet: &Packet, settings: &Settings) -> bool {
    match packet.l4 {
        L4::Good | L4::PartialChecksum => true,
        L4::BadChecksum => !settings.checksum,
        L4::Malformed => false,
    }
}

/// RFC 3828 section 3.1: coverage 0 (all) or 8 to the whole length; the checksum must be there, and right if that is asked
/// for.
fn is_sound_lite(packet: &Packet, udplite: &[u8], verify: bool) -> bool {
    if udplite.len() < 8 {
        return false;
    }
    let coverage = usize::from(wire::get_u16(udplite, 4));
    let coverage = if coverage == 0 { udplite.len() } else { coverage };
    if !(8..=udplite.len()).contains(&coverage) || wire::get_u16(udplite, 6) == 0 {
        return false;
    }
    let length = udplite.len() as u32;
    let pseudo = checksum::pseudo_header(packet.family, packet.src, packet.dst, packet.proto, length);
    !verify || checksum::is_right(pseudo, &udplite[..coverage])
}
