//! Protocols without a tracker of their own, and GRE (nf_conntrack_proto_generic.c, nf_conntrack_proto_gre.c).
//!
//! Generic is exact: one connection per address pair and protocol, 600 seconds, never ASSURED. A GRE packet's source key is
//! not in the packet; `keymap` knows it where a PPTP helper has told.

use super::conn::Conn;
use super::settings::Settings;
use super::tracker::Outcome;
use super::tuple::{CtStatus, Tuple};
use crate::wire;

/// A packet of a protocol that nothing is known about.
pub(super) fn packet(settings: &Settings) -> Outcome {
    Outcome::Refresh(settings.generic_timeout)
}

/// A GRE packet of `conn`.
pub(super) fn packet_gre(conn: &mut Conn, settings: &Settings) -> Outcome {
    if !conn.is_confirmed() {
        conn.words = [settings.gre_timeout, settings.gre_timeout_stream]; // as in Linux: those of its beginning
    }
    let [timeout, stream_timeout] = conn.words;
    if !conn.status.any(CtStatus::SEEN_REPLY) {
        return Outcome::Refresh(timeout);
    }
    conn.status = conn.status.with(CtStatus::ASSURED);
    Outcome::Refresh(stream_timeout)
}

/// Version bits of GRE's first word.
const GRE_VERSION_MASK: u16 = 0x0007;
/// Enhanced GRE (RFC 2637).
const GRE_VERSION_1: u16 = 1;
/// The protocol that enhanced GRE carries: PPP.
const GRE_PROTOCOL_PPP: u16 = 0x880b;

/// Whether a GRE packet has a call number (`GRE_VERSION_1`).
pub(super) fn is_enhanced(gre: &[u8]) -> bool {
    gre.len() >= 8 && wire::get_u16(gre, 0) & GRE_VERSION_MASK == GRE_VERSION_1
}

/// Adds a GRE packet's keys to its tuple: the call id of version 1 as destination key, 0 for the rest
/// (`gre_pkt_to_tuple`). `None` where Linux finds no tuple.
pub(super) fn gre_tuple(tuple: Tuple, gre: &[u8]) -> Option<Tuple> {
    if gre.len() < 4 || wire::get_u16(gre, 0) & GRE_VERSION_MASK != GRE_VERSION_1 {
        return Some(tuple);
    }
    if gre.len() < 8 {
        return Some(tuple);
    }
    if wire::get_u16(gre, 2) != GRE_PROTOCOL_PPP {
        return None;
    }
    Some(Tuple { dport: wire::get_u16(gre, 6), ..tuple })
}
