//! What the rules are asked about: a packet at a hook ([`Context`]), and the world around it ([`World`]).

use super::log::LogRequest;
use super::nflog::NflogRequest;
use super::rule::Hook;
use super::targets::{NatRequest, TraceEvent};
use crate::conntrack::{CtInfo, CtStatus, Direction, Template, Tuple};
use crate::device::PortId;
use crate::packet::Packet;
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::Addr;

/// A packet at a hook. Matches read it, targets change it; what they changed goes on to the next table.
#[derive(Debug)]
pub struct Context<'a> {
    /// The packet. From FORWARD on, its `ttl` is the one it will leave with (Linux counts down before).
    pub packet: &'a mut Packet,
    /// The frame's whole buffer from the packet's first byte on; what lies behind the packet is room to grow into.
    pub frame: &'a mut [u8],
    /// Where the packet is.
    pub hook: Hook,
    /// The port it came in by.
    pub in_port: PortId,
    /// The port it would leave by; none before it is routed.
    pub out_port: Option<PortId>,
    /// MTU of the way out in bytes; 0 before it is routed.
    pub out_mtu: u16,
    /// What conntrack says of it; INVALID in raw, where there is no connection yet.
    pub info: CtInfo,
    /// Status of its connection; empty when there is none.
    pub status: CtStatus,
    /// The packet's mark (`skb->mark`).
    pub mark: u32,
    /// What the raw table says to conntrack.
    pub template: Template,
    /// `-j TRACE`: every rule it meets is told.
    pub traced: bool,
    /// The time.
    pub now: Instant,
}

/// What an address is to the host (`RTN_*`), for `-m addrtype`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressType {
    /// Unspecified.
    Unspec,
    /// Somebody else's.
    Unicast,
    /// The host's own.
    Local,
    /// A broadcast address.
    Broadcast,
    /// Anycast.
    Anycast,
    /// A group.
    Multicast,
    /// Routed to nowhere.
    Blackhole,
    /// Routed to an answer.
    Unreachable,
    /// Routed to a refusal.
    Prohibit,
}

/// What is known of another connection, for `-m connlimit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    /// There is none.
    Gone,
    /// There is one, and it is open.
    Open,
    /// There is one, and TCP has closed it (TIME_WAIT, CLOSE).
    Closing,
}

/// What rules ask of the router besides the packet, and what they tell it. Everything about "the connection" is about the
/// packet's own, and nothing (or nothing done) when it has none.
pub trait World {
    /// A tuple of the connection.
    fn tuple(&self, direction: Direction) -> Option<Tuple>;
    /// Which of them the packet has.
    fn direction(&self) -> Option<Direction>;
    /// The connection's mark.
    fn conn_mark(&self) -> Option<u32>;
    /// Sets it.
    fn set_conn_mark(&mut self, mark: u32);
    /// Whole seconds until the connection expires; 0 when it is not confirmed.
    fn expires_in(&self) -> u32;
    /// Packets and bytes counted for it in one direction (`nf_conntrack_acct`), this packet included.
    fn traffic(&self, direction: Direction) -> Option<(u64, u64)>;
    /// The helper of the connection that this one was expected by; none where no helpers are.
    fn master_helper(&self) -> Option<&str> {
        None
    }
    /// What is known of the connection that `tuple` (with its zone) is the original of.
    fn liveness(&self, tuple: &Tuple) -> Liveness;
    /// Others may ask [`World::liveness`] of the packet's connection from now on.
    fn put_on_roster(&self) {}
    /// What `addr` is; with `on`, LOCAL only when it is that port's.
    fn address_type(&self, addr: Addr, on: Option<PortId>) -> AddressType;
    /// Whether the way back to the packet's source leads through the port it came by; with `loose`, whether there is any.
    fn reverse_path(&self, context: &Context<'_>, loose: bool, accept_local: bool) -> bool;
    /// MTU of the way back to the packet's source, in bytes; 0 without one.
    fn mtu_back(&self, context: &Context<'_>) -> u16;
    /// Seconds since 1970 in UTC, and what the kernel's time zone adds to them.
    fn unix_time(&self) -> (i64, i32);
    /// Has the packet's connection translated, which is not confirmed yet (`nf_nat_setup_info`). Where nothing is, so be it.
    ///
    /// # Errors
    /// The packet is to be dropped: there is no address to give it.
    fn translate(&mut self, _context: &Context<'_>, _request: &NatRequest<'_>) -> Result<(), DropReason> {
        Ok(())
    }
    /// A random number.
    fn random(&self) -> u32;
    /// A LOG line.
    fn log(&mut self, request: &LogRequest<'_>);
    /// A copy of the packet for NFLOG's group.
    fn nflog(&mut self, request: &NflogRequest<'_>);
    /// A step of a traced packet.
    fn trace(&mut self, event: &TraceEvent<'_>);
}
