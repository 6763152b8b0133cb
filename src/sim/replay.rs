//! The core over recorded packets: [`Replay`].
//!
//! A capture holds no routes and no neighbours, so they are made of the captures themselves before the first packet is
//! decided ([`Survey`]): a port's own address is the one that most of its IP frames are sent to; every source seen on the
//! LAN is reached there, at the Ethernet address it sent from; all else is reached through the WAN, at the address that
//! most of its frames came from. Addresses of the router itself are not known: a packet to them is routed.

use std::collections::HashMap;

use crate::conntrack::Settings;
use crate::datapath::{self, BATCH, Batch, Effects, Shard};
use crate::device::{FramePool, PortId};
use crate::route::Prefix;
use crate::snapshot::{Policy, Routing, RoutingBuilder};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, Family, Mac, ethernet, ipv4, ipv6};

/// Bytes of a frame: the largest jumbo frame a capture is likely to hold.
const FRAME_SIZE: usize = 16_384;
/// MTU of both ports.
const MTU: u16 = 16_000;

/// What a first reading of the captures finds out.
#[derive(Debug, Default)]
pub struct Survey {
    /// Frames by destination address, for each port.
    to: [HashMap<Mac, u64>; PortId::COUNT],
    /// Frames by source address, for each port.
    from: [HashMap<Mac, u64>; PortId::COUNT],
    /// LAN hosts and where their frames came from.
    hosts: HashMap<(Family, Addr), Mac>,
}

impl Survey {
    /// Looks at a frame that arrives at `port`.
    pub fn see(&mut self, port: PortId, frame: &[u8]) {
        let Some((family, source)) = source(frame) else { return };
        let (to, from) = (ethernet::destination(frame), ethernet::source(frame));
        if to.is_group() {
            return;
        }
        *self.to[port.index()].entry(to).or_default() += 1;
        *self.from[port.index()].entry(from).or_default() += 1;
        if port == PortId::LAN {
            self.hosts.entry((family, source)).or_insert(from);
        }
    }

    /// The routes and neighbours that this makes.
    pub fn routing(&self) -> Routing {
        let mut builder = RoutingBuilder::new();
        for (port, name) in [(PortId::LAN, "lan"), (PortId::WAN, "wan")] {
            builder.add_port(port, name, most(&self.to[port.index()]), MTU);
        }
        let gateways = [(Family::V4, Addr::from_v4(0xc000_0201)), (Family::V6, Addr::from_v6(0xfe80 << 112 | 1))];
        for (family, gateway) in gateways {
            let any = if family == Family::V4 { Addr::from_v4(0) } else { Addr::ZERO };
            builder.add_route(Prefix::new(family, any, 0), PortId::WAN, Some(gateway));
            builder.add_neighbour(PortId::WAN, gateway, most(&self.from[PortId::WAN.index()]));
        }
        for (&(family, host), &mac) in &self.hosts {
            builder.add_route(Prefix::host(family, host), PortId::LAN, None);
            builder.add_neighbour(PortId::LAN, host, mac);
        }
        builder.build()
    }
}

/// The most frequent address, the smallest among equals; one of our own making when there is none.
fn most(seen: &HashMap<Mac, u64>) -> Mac {
    let best = seen.iter().max_by_key(|&(mac, count)| (*count, std::cmp::Reverse(*mac)));
    best.map_or(Mac([2, 0, 0, 0, 0, 1]), |(mac, _)| *mac)
}

fn source(frame: &[u8]) -> Option<(Family, Addr)> {
    let ip = frame.get(ethernet::HEADER_LEN..)?;
    match ethernet::ethertype(frame) {
        ethernet::IPV4 if ip.len() >= ipv4::HEADER_LEN => Some((Family::V4, ipv4::src(ip))),
        ethernet::IPV6 if ip.len() >= ipv6::HEADER_LEN => Some((Family::V6, ipv6::src(ip))),
        _ => None,
    }
}

/// The core over recorded packets; see the module's head.
#[derive(Debug)]
pub struct Replay {
    shard: Shard,
    policy: Policy,
    routing: Routing,
    pool: FramePool,
    batch: Batch,
    effects: Effects,
}

impl Replay {
    /// A router with these rules where `survey` has been. The hash key is fixed: a replay is repeatable.
    pub fn new(policy: Policy, survey: &Survey, settings: Settings) -> Replay {
        Replay {
            shard: Shard::new(settings, [0x7265_706c_6179, 1], &policy),
            policy,
            routing: survey.routing(),
            pool: FramePool::in_memory(256, FRAME_SIZE),
            batch: Batch::default(),
            effects: Effects::new(BATCH),
        }
    }

    /// `frame` arrives at `port` at `now`, never earlier than the one before. Gives the frames that leave for it.
    pub fn packet(&mut self, port: PortId, frame: &[u8], now: Instant) -> Vec<(PortId, Vec<u8>)> {
        // Time before the packet: what expired by now is gone, as many at a time as it takes.
        while self.shard.conntrack.expire(now, 4096) > 0 {}
        let mut token = self.pool.take().expect("every frame comes back below");
        if frame.len() > token.capacity() {
            self.pool.put(token);
            self.shard.counters.drops.count(DropReason::FrameTooLong);
            return Vec::new();
        }
        token.fill(frame);
        self.batch.push(port, token);
        datapath::process(&mut self.shard, &self.policy, &self.routing, &mut self.batch, now, &mut self.effects);
        datapath::expire(&mut self.shard, &self.policy, &self.routing, now, BATCH, &mut self.effects);
        let mut out = Vec::new();
        for port in PortId::ALL {
            for frame in self.effects.transmit[port.index()].drain(..) {
                out.push((port, frame.bytes().to_vec()));
                self.pool.put(frame);
            }
        }
        self.effects.free.drain(..).chain(self.effects.punt.drain(..).map(|(_, frame)| frame)).for_each(|frame| {
            self.pool.put(frame);
        });
        self.effects.logs.clear();
        self.effects.copies.clear();
        self.effects.resolve.clear();
        out
    }

    /// Its connections and counters.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }
}
