//! The world as rules see it from a packet's way: [`Surroundings`], made anew for every chain a packet enters.

use core::cell::Cell;

use crate::conntrack::{ConnRef, Conntrack, Direction, Manip, Tuple};
use crate::device::PortId;
use crate::nat;
use crate::route::Route;
use crate::rules::{
    AddressType, Context, Liveness, LogRequest, NatRange, NatRequest, NatSource, NflogRequest, TraceEvent, World,
};
use crate::snapshot::Routing;
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, Family};

use super::dice::Dice;
use super::effects::Effects;
use super::shard::WallClock;

/// See the module's head.
pub(super) struct Surroundings<'a> {
    pub(super) conntrack: &'a mut Conntrack,
    pub(super) routing: &'a Routing,
    pub(super) effects: &'a mut Effects,
    pub(super) wall: &'a WallClock,
    /// The packet's connection.
    pub(super) conn: ConnRef,
    /// Which of its tuples the packet has.
    pub(super) direction: Direction,
    /// Where the next random number comes from; drawn for this chain, never 0.
    pub(super) random: Cell<u32>,
    /// Whether the connection was put on the roster of those that other workers ask about.
    pub(super) is_on_roster: Cell<bool>,
    /// Where the ports of translated connections come from.
    pub(super) dice: &'a mut Dice,
    /// Where the range of a source's translation is noted.
    pub(super) source_range: &'a mut NatRange,
    /// Whom a packet that is routed goes to, if not to its destination.
    pub(super) gateway: Option<Addr>,
    pub(super) family: Family,
    pub(super) now: Instant,
}

impl World for Surroundings<'_> {
    fn tuple(&self, direction: Direction) -> Option<Tuple> {
        self.conntrack.tuple(self.conn, direction)
    }

    fn direction(&self) -> Option<Direction> {
        (self.conn != ConnRef::None).then_some(self.direction)
    }

    fn conn_mark(&self) -> Option<u32> {
        self.conntrack.conn(self.conn).map(|conn| conn.mark())
    }

    fn set_conn_mark(&mut self, mark: u32) {
        self.conntrack.set_mark(self.conn, mark);
    }

    fn expires_in(&self) -> u32 {
        self.conntrack.expires_in(self.conn, self.now)
    }

    fn traffic(&self, direction: Direction) -> Option<(u64, u64)> {
        self.conntrack.traffic(self.conn, direction).map(|counter| (counter.packets, counter.bytes))
    }

    fn master_helper(&self) -> Option<&str> {
        self.conntrack.master_helper(self.conn).map(|helper| helper.name())
    }

    fn liveness(&self, tuple: &Tuple) -> Liveness {
        match self.conntrack.is_closing(tuple, self.now) {
            None => Liveness::Gone,
            Some(false) => Liveness::Open,
            Some(true) => Liveness::Closing,
        }
    }

    fn put_on_roster(&self) {
        if self.conntrack.is_one_of_many() {
            self.conntrack.put_on_roster(self.conn);
            self.is_on_roster.set(true);
        }
    }

    fn address_type(&self, addr: Addr, on: Option<PortId>) -> AddressType {
        match self.family {
            Family::V4 => address_type_v4(self.routing, addr, on),
            Family::V6 => address_type_v6(self.routing, addr, on),
        }
    }

    fn reverse_path(&self, context: &Context<'_>, loose: bool, accept_local: bool) -> bool {
        self.routing.has_way_back(self.family, context.in_port, context.packet.src, loose, accept_local)
    }

    fn mtu_back(&self, context: &Context<'_>) -> u16 {
        match self.routing.lookup(self.family, context.packet.dst, context.packet.src) {
            Route::Forward { mtu, .. } => mtu,
            _ => 0,
        }
    }

    fn unix_time(&self) -> (i64, i32) {
        self.wall.at(self.now)
    }

    /// Another one each time (xorshift32): a rule must not meet the number that the rule before it met.
    fn random(&self) -> u32 {
        let mut next = self.random.get();
        next ^= next << 13;
        next ^= next >> 17;
        next ^= next << 5;
        self.random.set(next);
        next
    }

    fn translate(&mut self, context: &Context<'_>, request: &NatRequest<'_>) -> Result<(), DropReason> {
        let addr = match request.source {
            NatSource::Range => None,
            // A source that is none yet is not masqueraded, but for IPv6 (`nf_nat_masquerade_ipv4`).
            NatSource::OutPort if context.packet.src == Addr::from_v4(0) => return Ok(()),
            NatSource::OutPort => Some(self.address_to_leave_with(context).ok_or(DropReason::NatNoAddress)?),
            NatSource::InPort => Some(self.address_of(context.in_port).ok_or(DropReason::NatNoAddress)?),
        };
        let addresses = addr.map(|addr| (addr, addr)).or(request.range.addresses);
        let range = NatRange { addresses, ..*request.range };
        if request.manip == Manip::Source {
            *self.source_range = range;
        }
        let dice = &mut *self.dice;
        nat::bind(self.conntrack, request.manip, &range, &mut |low| dice.draw_port(request.manip, low), self.now);
        if request.source == NatSource::OutPort
            && let Some(port) = context.out_port
        {
            self.conntrack.set_masquerade(port);
        }
        Ok(())
    }

    fn log(&mut self, request: &LogRequest<'_>) {
        self.effects.log(request);
    }

    fn nflog(&mut self, request: &NflogRequest<'_>) {
        self.effects.copy(request);
    }

    fn trace(&mut self, event: &TraceEvent<'_>) {
        self.effects.trace(event);
    }
}

impl Surroundings<'_> {
    /// The address to go to the next hop with: MASQUERADE's.
    fn address_to_leave_with(&self, context: &Context<'_>) -> Option<Addr> {
        let destination = context.packet.dst;
        let next_hop = match self.family {
            Family::V4 => self.gateway.filter(|gateway| gateway.is_v4()).unwrap_or(destination),
            Family::V6 => destination,
        };
        self.routing.source_address(self.family, context.out_port?, next_hop)
    }

    /// The first address of a port: REDIRECT's (`nf_nat_redirect_ipv4`, `nf_nat_redirect_ipv6`).
    fn address_of(&self, port: PortId) -> Option<Addr> {
        let mut own = self.routing.port(port).addresses.iter().filter(|own| own.family() == self.family);
        own.find(|own| !own.tentative && !own.deprecated).map(|own| own.addr)
    }
}

/// Whether the host has the address, and on this port if one is named.
fn has_address(routing: &Routing, addr: Addr, on: Option<PortId>) -> bool {
    let ifindex = on.map(|port| routing.port(port).ifindex);
    routing.addresses.iter().any(|own| own.addr == addr && ifindex.is_none_or(|wanted| own.ifindex == wanted))
}

/// `inet_dev_addr_type`: the local table alone is asked.
fn address_type_v4(routing: &Routing, addr: Addr, on: Option<PortId>) -> AddressType {
    let bits = addr.v4_bits();
    match routing.lookup(Family::V4, Addr::ZERO, addr) {
        _ if bits == 0 || bits == u32::MAX => AddressType::Broadcast,
        Route::Multicast => AddressType::Multicast,
        Route::Local if on.is_none() || has_address(routing, addr, on) => AddressType::Local,
        Route::Broadcast if on.is_none() || is_broadcast_of(routing, addr, on) => AddressType::Broadcast,
        _ => AddressType::Unicast,
    }
}

fn is_broadcast_of(routing: &Routing, addr: Addr, on: Option<PortId>) -> bool {
    let ifindex = on.map(|port| routing.port(port).ifindex);
    routing.addresses.iter().any(|own| Some(own.ifindex) == ifindex && own.subnet.last() == addr)
}

/// `ipv6_addr_type`, and a route lookup for what is of the host.
fn address_type_v6(routing: &Routing, addr: Addr, on: Option<PortId>) -> AddressType {
    if addr.bits() == 0 {
        return AddressType::Unspec;
    }
    match routing.lookup(Family::V6, Addr::ZERO, addr) {
        Route::Multicast => AddressType::Multicast,
        Route::Local if on.is_none() || has_address(routing, addr, on) => AddressType::Local,
        Route::NoRoute | Route::Unreachable | Route::Prohibit | Route::Blackhole => AddressType::Unreachable,
        _ => AddressType::Unicast,
    }
}
