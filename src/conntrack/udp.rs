//! UDP and UDP-Lite (nf_conntrack_proto_udp.c).
//!
//! UDP is exact: 30 seconds, 120 and ASSURED from the first packet that comes more than two seconds after the
//! connection began and after a reply had been seen. UDP-Lite: header and coverage are checked; the checksum is not
//! verified. Linux verifies it with UDP's protocol number and so calls every correct one INVALID; that is not copied.

use super::conn::Conn;
use super::settings::Settings;
use super::tracker::Outcome;
use super::tuple::CtStatus;
use crate::packet::{L4, Packet};
use crate::time::{Instant, SECOND_NS};
use crate::wire;

/// How old a connection must be to become a stream, in nanoseconds.
const STREAM_AGE_NS: u64 = 2 * SECOND_NS;

/// A UDP packet of `conn`.
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
    if packet.l4 == L4::Malformed || !coverage_is_sound(packet.l4_bytes(frame)) {
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

/// RFC 3828 section 3.1: coverage 0 (all) or 8 to the whole length; the checksum must be there.
fn coverage_is_sound(udplite: &[u8]) -> bool {
    if udplite.len() < 8 {
        return false;
    }
    let coverage = usize::from(wire::get_u16(udplite, 4));
    let covered = coverage == 0 || (8..=udplite.len()).contains(&coverage);
    covered && wire::get_u16(udplite, 6) != 0
}
