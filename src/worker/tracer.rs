//! What `xrouter trace` sees of the packets that a filter admits: [`Tracer`], a witness that writes one [`TraceRecord`] of
//! fixed size for each into a ring.
//!
//! Life cycle: made by the control thread when somebody traces, lent to the shard, and given back when nobody does any more.
//! It follows so many packets in a second at most; those beyond, and records that found the ring full, are counted in
//! [`Losses`], which the control thread reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rtrb::Producer;

use crate::conntrack::{Conntrack, CtInfo, Tracked};
use crate::datapath::{Exit, Meeting, Witness};
use crate::device::PortId;
use crate::packet::Packet;
use crate::route::Route;
use crate::rules::{ChainIndex, Decision, PATH, Trace};
use crate::time::{Instant, SECOND_NS};
use crate::wire::{Addr, Family};

/// Which packets are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceFilter {
    /// Every one.
    Any,
    /// Of this IP version.
    Family(Family),
    /// Of this protocol.
    Proto(u8),
    /// That arrive here.
    Input(PortId),
    /// From and to these: network, mask, and which side.
    Net(Side, Addr, Addr, Family),
    /// From and to these ports, first and last.
    Port(Side, u16, u16),
    /// What this does not admit.
    Not(Box<TraceFilter>),
    /// What all admit.
    All(Vec<TraceFilter>),
    /// What one admits.
    One(Vec<TraceFilter>),
}

/// Which end of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `src`
    Source,
    /// `dst`
    Destination,
    /// Neither said.
    Either,
}

impl Side {
    fn holds<T>(self, source: T, destination: T, is: impl Fn(T) -> bool) -> bool {
        match self {
            Side::Source => is(source),
            Side::Destination => is(destination),
            Side::Either => is(source) || is(destination),
        }
    }
}

impl TraceFilter {
    /// Whether this packet is followed.
    pub fn admits(&self, packet: &Packet) -> bool {
        match self {
            TraceFilter::Any => true,
            TraceFilter::Family(family) => packet.family == *family,
            TraceFilter::Proto(number) => packet.proto == *number,
            TraceFilter::Input(port) => packet.port == *port,
            TraceFilter::Net(side, net, mask, family) => {
                let within = |addr: Addr| addr.bits() & mask.bits() == net.bits() & mask.bits();
                packet.family == *family && side.holds(packet.src, packet.dst, within)
            }
            TraceFilter::Port(side, low, high) => {
                // An ICMP packet has its identifier, type and code there.
                !packet.is_icmp() && side.holds(packet.sport, packet.dport, |port| (*low..=*high).contains(&port))
            }
            TraceFilter::Not(filter) => !filter.admits(packet),
            TraceFilter::All(filters) => filters.iter().all(|filter| filter.admits(packet)),
            TraceFilter::One(filters) => filters.iter().any(|filter| filter.admits(packet)),
        }
    }
}

/// What was not told.
#[derive(Debug, Default)]
pub struct Losses {
    /// Packets beyond those of a second.
    pub skipped: AtomicU64,
    /// Records that found the ring full.
    pub lost: AtomicU64,
}

/// What one chain said.
#[derive(Clone, Copy, Debug)]
pub struct ChainRecord {
    /// Which.
    pub chain: ChainIndex,
    /// The rules that matched, and whether its policy decided.
    pub trace: Trace,
    /// Its verdict.
    pub decision: Decision,
}

/// What became of one packet.
#[derive(Clone, Copy, Debug)]
pub struct TraceRecord {
    /// When it was decided.
    pub at: Instant,
    /// As it arrived.
    pub packet: Packet,
    /// Generation of the rules it met.
    pub generation: u64,
    /// What conntrack said, if it was asked.
    pub info: Option<CtInfo>,
    /// The chains it entered, in order.
    pub chains: [Option<ChainRecord>; PATH.len()],
    /// How it ended.
    pub exit: Exit,
}

/// See the module's head.
#[derive(Debug)]
pub struct Tracer {
    filter: TraceFilter,
    /// Packets in a second, at most.
    rate: u32,
    /// Packets followed in this second, and when it began.
    followed: u32,
    second: Instant,
    record: TraceRecord,
    ring: Producer<TraceRecord>,
    losses: Arc<Losses>,
}

impl Tracer {
    /// One that follows what `filter` admits, `rate` packets in a second at most.
    pub fn new(filter: TraceFilter, rate: u32, ring: Producer<TraceRecord>, losses: Arc<Losses>) -> Tracer {
        let record = TraceRecord {
            at: Instant::ZERO,
            packet: Packet::BLANK,
            generation: 0,
            info: None,
            chains: [None; PATH.len()],
            exit: Exit::Host,
        };
        Tracer { filter, rate, followed: 0, second: Instant::ZERO, record, ring, losses }
    }
}

impl Witness for Tracer {
    fn wants(&mut self, packet: &Packet, now: Instant) -> bool {
        if !self.filter.admits(packet) {
            return false;
        }
        if now.saturating_since(self.second) >= SECOND_NS {
            (self.second, self.followed) = (now, 0);
        }
        if self.followed >= self.rate {
            self.losses.skipped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.followed += 1;
        true
    }

    fn begin(&mut self, packet: &Packet, now: Instant) {
        let TraceRecord { exit, generation, .. } = self.record;
        self.record =
            TraceRecord { at: now, packet: *packet, generation, info: None, chains: [None; PATH.len()], exit };
    }

    fn route(&mut self, _: &Packet, _: Route) {}

    fn tracked(&mut self, tracked: &mut Tracked, _: &Conntrack, _: Instant) {
        self.record.info = Some(tracked.info);
    }

    fn chain(&mut self, meeting: Meeting<'_, '_>) -> Decision {
        let Meeting { vector, generation, chain, context, world, counters } = meeting;
        let mut trace = Trace::default();
        let decision = vector.trace(chain, context, world, counters, &mut trace);
        self.record.generation = generation;
        if let Some(place) = self.record.chains.iter_mut().find(|place| place.is_none()) {
            *place = Some(ChainRecord { chain, trace, decision });
        }
        decision
    }

    fn exit(&mut self, _: &Packet, exit: &Exit) {
        let record = TraceRecord { exit: *exit, ..self.record };
        if self.ring.push(record).is_err() {
            self.losses.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto;

    fn packet(src: [u8; 4], sport: u16, proto: u8) -> Packet {
        let src = Addr::from_v4(u32::from_be_bytes(src));
        Packet { src, dst: Addr::from_v4(0x0101_0101), sport, dport: 443, proto, ..Packet::BLANK }
    }

    #[test]
    fn filters_admit_what_they_say() {
        let net = |side, net: [u8; 4], len| {
            let mask = Addr::prefix_mask(Family::V4, len);
            TraceFilter::Net(side, Addr::from_v4(u32::from_be_bytes(net)), mask, Family::V4)
        };
        let it = packet([10, 0, 0, 5], 1234, proto::TCP);
        for (filter, admitted) in [
            (TraceFilter::Any, true),
            (TraceFilter::Family(Family::V6), false),
            (TraceFilter::Proto(proto::TCP), true),
            (TraceFilter::Input(PortId::WAN), false),
            (net(Side::Either, [1, 1, 1, 1], 32), true),
            (net(Side::Source, [1, 1, 1, 1], 32), false),
            (net(Side::Source, [10, 0, 0, 0], 8), true),
            (TraceFilter::Port(Side::Either, 443, 443), true),
            (TraceFilter::Port(Side::Destination, 1000, 2000), false),
            (TraceFilter::Not(Box::new(TraceFilter::Any)), false),
            (TraceFilter::All(vec![TraceFilter::Any, TraceFilter::Proto(proto::UDP)]), false),
            (TraceFilter::One(vec![TraceFilter::Proto(proto::UDP), TraceFilter::Any]), true),
        ] {
            assert_eq!(filter.admits(&it), admitted, "{filter:?}");
        }
        let ping = Packet { sport: 443, ..packet([10, 0, 0, 5], 443, proto::ICMP) };
        assert!(!TraceFilter::Port(Side::Either, 443, 443).admits(&ping), "an identifier is no port");
    }

    #[test]
    fn so_many_packets_in_a_second_and_what_is_beyond_is_counted() {
        let (ring, mut records) = rtrb::RingBuffer::new(2);
        let losses = Arc::new(Losses::default());
        let mut tracer = Tracer::new(TraceFilter::Any, 3, ring, losses.clone());
        let it = packet([10, 0, 0, 5], 1, proto::UDP);
        let mut send = |at: Instant| {
            let wanted = tracer.wants(&it, at);
            if wanted {
                tracer.begin(&it, at);
                tracer.exit(&it, &Exit::Host);
            }
            wanted
        };
        let begin = Instant::from_secs(7);
        let wanted: Vec<bool> = (0..5).map(|n| send(begin + n)).collect();
        assert_eq!(wanted, [true, true, true, false, false]);
        assert_eq!(losses.skipped.load(Ordering::Relaxed), 2);
        assert_eq!(losses.lost.load(Ordering::Relaxed), 1, "two fit into the ring");
        assert_eq!(records.pop().map(|record| record.at), Ok(begin));
        assert!(send(begin + SECOND_NS), "a new second");
    }
}
