//! Somebody who goes with a packet and hears what becomes of it: [`Witness`].
//!
//! A packet with a witness goes the long way, whatever shortcuts there are, and gets the same verdict; it teaches none. While
//! a shard has no witness, that costs one look per batch and one per packet. `xrouter explain` is a witness of one packet in
//! a shard of its own, `xrouter trace` one of the packets that a filter admits.

use core::fmt;

use crate::conntrack::{Conntrack, Manip, Tracked};
use crate::device::PortId;
use crate::packet::Packet;
use crate::reply;
use crate::route::{Neighbour, Route};
use crate::rules::{ChainIndex, Context, Decision, RuleCounters, RuleVector, World};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, proto};

/// See the module's head. For each packet it wants, it is told in this order: that it begins, the route, conntrack, each chain
/// that the packet enters, the exit; what does not happen is not told. Where the destination is translated, it is told the new
/// one's route too, after nat PREROUTING. One packet ends before the next begins.
pub trait Witness: fmt::Debug + Send {
    /// Whether it goes with this packet.
    fn wants(&mut self, packet: &Packet, now: Instant) -> bool;

    /// The packet begins its way.
    fn begin(&mut self, packet: &Packet, now: Instant);

    /// The packet's destination leads here.
    fn route(&mut self, packet: &Packet, route: Route);

    /// One end of the packet has been translated.
    fn translated(&mut self, _manip: Manip, _before: Ends, _after: Ends) {}

    /// conntrack has spoken. An explanation may ask what would be if it had said something else.
    fn tracked(&mut self, tracked: &mut Tracked, conntrack: &Conntrack, now: Instant);

    /// The packet enters a chain. Gives the chain's verdict, as `vector` has it.
    fn chain(&mut self, meeting: Meeting<'_, '_>) -> Decision;

    /// What becomes of it.
    fn exit(&mut self, packet: &Packet, exit: &Exit);
}

/// A packet at a chain.
#[allow(missing_debug_implementations)] // the world is nobody's to print
pub struct Meeting<'a, 'c> {
    /// The rules of the packet's IP version.
    pub vector: &'a RuleVector,
    /// Their policy's generation.
    pub generation: u64,
    /// The chain.
    pub chain: ChainIndex,
    /// The packet.
    pub context: &'a mut Context<'c>,
    /// The router around it.
    pub world: &'a mut dyn World,
    /// What the rules count.
    pub counters: &'a mut RuleCounters,
}

/// One end of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Its address.
    pub addr: Addr,
    /// Its port, or ICMP's identifier; none where it has none.
    pub port: Option<u16>,
}

impl Ends {
    /// The end of a packet that `manip` translates.
    pub(super) fn of(packet: &Packet, manip: Manip) -> Ends {
        let has_ports = proto::has_ports(packet.proto);
        let is_query = packet.is_icmp() && !packet.is_icmp_error();
        let (addr, port) = match manip {
            Manip::Source => (packet.src, packet.sport),
            Manip::Destination if is_query => (packet.dst, packet.sport),
            Manip::Destination => (packet.dst, packet.dport),
        };
        Ends { addr, port: (has_ports || is_query).then_some(port) }
    }
}

/// As in a packet's description: 10.0.0.1:80, [2001:db8::1]:80.
impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.addr.to_ip(), self.port) {
            (addr, None) => addr.fmt(f),
            (addr, Some(port)) => std::net::SocketAddr::new(addr, port).fmt(f),
        }
    }
}

/// How a packet ends its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// It leaves.
    Forward {
        /// Way out.
        port: PortId,
        /// Whom the frame goes to: a gateway, or the destination itself.
        next_hop: Addr,
        /// MTU of the way, in bytes.
        mtu: u16,
        /// What is known of the next hop; while nothing is, the packet waits for it.
        neighbour: Neighbour,
    },
    /// It is the host's.
    Host,
    /// It is dropped.
    Refused {
        /// Why.
        reason: DropReason,
        /// What its sender is told, if that may be sent.
        answer: Answered,
    },
}

/// What the sender of a dropped packet is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// Nothing.
    Nothing,
    /// An ICMP error.
    Error(reply::Error),
    /// A TCP reset.
    Reset,
}
