//! Sets asked about a tuple instead of a packet: [`TuplePacket`], and the sets whose word it settles ([`SetTable::settled`]).
//!
//! Those that nobody but the operator changes, and that look at nothing but addresses, ports, protocol and interfaces: what such
//! a set says of a connection's first packet is known without it.

use super::key::name_bits;
use super::kind::Part;
use super::question::{PortNames, Question, Sides};
use super::table::{SetCell, SetTable};
use crate::conntrack::Tuple;
use crate::device::PortId;
use crate::packet::Packet;
use crate::time::Instant;
use crate::wire::{Addr, Family, proto};
use std::sync::Arc;

/// Bytes behind the IP header: as many as the longest header that is looked at.
const L4: usize = 20;

/// As much of a packet as its tuple says.
#[derive(Clone, Debug)]
pub(in crate::rules) struct TuplePacket {
    packet: Packet,
    l4: [u8; L4],
    ports: PortNames,
}

impl TuplePacket {
    /// The packet with this tuple that comes in by one port and goes out by another, or is not routed yet. `names` are theirs.
    pub(in crate::rules) fn new(tuple: &Tuple, in_port: PortId, out_port: Option<PortId>, names: &[String]) -> Self {
        let is_icmp = matches!((tuple.family, tuple.proto), (Family::V4, proto::ICMP) | (Family::V6, proto::ICMPV6));
        let mut l4 = [0; L4];
        // Type and code are where other protocols have the source port.
        l4[..2].copy_from_slice(&(if is_icmp { tuple.dport } else { tuple.sport }).to_be_bytes());
        if !is_icmp {
            l4[2..4].copy_from_slice(&tuple.dport.to_be_bytes());
        }
        let name = |port: PortId| names.get(port.index()).map_or(Addr::ZERO, |name| name_bits(name));
        let packet = Packet {
            src: tuple.src,
            dst: tuple.dst,
            proto: tuple.proto,
            family: tuple.family,
            l3_len: L4 as u16,
            l4_len: L4 as u16,
            ..Packet::BLANK
        };
        TuplePacket { packet, l4, ports: [name(in_port), out_port.map_or(Addr::ZERO, name)] }
    }

    /// A question about it that leaves no trace in the set.
    pub(in crate::rules) fn question(&self, sides: Sides) -> Question<'_> {
        Question {
            packet: &self.packet,
            frame: &self.l4,
            ports: self.ports,
            mark: 0,
            now: Instant::ZERO,
            sides,
            return_nomatch: false,
            counts: false,
            counts_below: false,
            packets: None,
            bytes: None,
            timeout: None,
            exist: false,
        }
    }
}

impl SetTable {
    /// The set of this name, if a tuple settles what it says: no element expires, no rule in force changes it, and it looks at no
    /// hardware address, mark or other set.
    pub(in crate::rules) fn settled(&self, name: &str) -> Option<Arc<SetCell>> {
        let cell = self.find(name)?;
        let content = cell.content();
        let header = &content.definition.header;
        let is_told = |part: &Part| !matches!(part, Part::Mac | Part::Mark | Part::Set);
        (!content.is_live() && header.timeout.is_none() && header.kind.parts().iter().all(is_told)).then_some(cell)
    }
}
