//! Packets for other workers: [`Parcel`].
//!
//! A packet whose connection another worker has, or would have, is handed over as it came, and decided there from the start. A
//! packet that begins a connection whose translated replies will come to another worker is handed over as late as that is
//! known: all rules have been asked, only the source is not translated yet. That worker becomes the connection's owner
//! ([`immigrate`]); it looks whether the tuple chosen is free, has the helper read the packet, confirms and sends it.

use super::{Effects, Passage, Path, Refusal, Shard, Way, Work};
use crate::conntrack::{Emigrant, Manip, Sent, Template};
use crate::device::{Frame, PortId};
use crate::nat;
use crate::packet::Packet;
use crate::rules::NatRange;
use crate::snapshot::{Policy, Routing};
use crate::time::Instant;
use crate::verdict::Verdict;
use crate::wire::Addr;

/// See the module's head.
#[derive(Debug)]
pub enum Parcel {
    /// As `port` has received it.
    Packet {
        /// The port.
        port: PortId,
        /// Why it goes there.
        sent: Sent,
        /// The packet.
        frame: Frame,
    },
    /// With the connection that it begins.
    Connection(Box<Emigration>),
}

impl Parcel {
    /// The packet.
    #[inline]
    pub fn frame(&self) -> &Frame {
        match self {
            Parcel::Packet { frame, .. } => frame,
            Parcel::Connection(emigration) => &emigration.frame,
        }
    }
}

/// A packet that begins a connection, between two workers.
#[derive(Debug)]
pub struct Emigration {
    /// The packet, its destination translated.
    pub frame: Frame,
    /// The connection.
    pub emigrant: Emigrant,
    packet: Packet,
    range: NatRange,
    out: PortId,
    gateway: Option<Addr>,
    mtu: u16,
    mark: u32,
    template: Template,
    traced: bool,
}

impl Path<'_> {
    /// Whom this packet is to be given to, and how; `None`: it is decided here. `missed`: the table has no connection with its
    /// own tuple.
    #[inline]
    pub(super) fn elsewhere(&mut self, frame: &Frame, work: &Work, missed: bool) -> Option<(u16, Sent)> {
        if !self.shard.conntrack.is_one_of_many() || !self.rules(work.packet.family).wants_conntrack() {
            return None;
        }
        let ours = work.destination == self.routing.ports[work.packet.port.index()].mac;
        ours.then(|| self.shard.conntrack.elsewhere(&work.packet, frame.bytes(), work.hash, missed)).flatten()
    }

    pub(super) fn hand_over(&mut self, frame: Frame, port: PortId, worker: u16, sent: Sent) -> Verdict {
        self.shard.counters.handed_over += 1;
        self.effects.parcels.push((worker, Parcel::Packet { port, sent, frame }));
        Verdict::Handover
    }

    /// The connection that a packet begins goes to its owner, with the packet.
    #[cold]
    pub(super) fn emigrate(
        &mut self,
        frame: Frame,
        packet: &Packet,
        worker: u16,
        way: &Way,
        passage: &Passage,
    ) -> Verdict {
        let emigrant = match self.shard.conntrack.emigrate(&passage.tracked, worker, self.now) {
            Ok(emigrant) => emigrant,
            Err(reason) => return self.drop(frame, reason),
        };
        self.shard.counters.handed_over += 1;
        let Passage { mark, template, traced, .. } = *passage;
        let emigration = Emigration {
            frame,
            emigrant,
            packet: *packet,
            range: self.shard.source_range,
            out: way.port,
            gateway: way.gateway,
            mtu: way.mtu,
            mark,
            template,
            traced,
        };
        self.effects.parcels.push((worker, Parcel::Connection(Box::new(emigration))));
        Verdict::Handover
    }

    fn settle(
        &mut self,
        frame: &mut Frame,
        packet: &mut Packet,
        passage: &mut Passage,
        range: &NatRange,
        way: &Way,
    ) -> Result<(), Refusal> {
        let Shard { conntrack, dice, .. } = &mut *self.shard;
        nat::bind_again(conntrack, range, &mut |low| dice.draw_port(Manip::Source, low), self.now);
        passage.tracked.status =
            conntrack.conn(passage.tracked.conn).map_or(passage.tracked.status, |conn| conn.status());
        self.check_masquerade(packet, &passage.tracked, way.port)?;
        self.translate(Manip::Source, frame, packet, &passage.tracked)?;
        self.leave(frame, packet, passage, way)
    }
}

/// Takes over a connection with the packet that begins it. Afterwards the frame is in a queue of `effects` or waits in `shard`.
pub fn immigrate(
    shard: &mut Shard,
    policy: &Policy,
    routing: &Routing,
    emigration: Emigration,
    now: Instant,
    effects: &mut Effects,
) {
    shard.follow(policy, routing);
    shard.counters.taken_over += 1;
    let Emigration { mut frame, emigrant, mut packet, range, out, gateway, mtu, mark, template, traced } = emigration;
    let mut path = Path { shard, policy, routing, now, effects, witnessed: false };
    let way = Way { port: out, gateway, mtu };
    let settled = match path.shard.conntrack.immigrate(&emigrant, now) {
        Ok(tracked) => {
            let mut passage = Passage {
                tracked,
                out_port: Some(out),
                gateway,
                out_mtu: mtu,
                mark,
                template,
                traced,
                ..Passage::START
            };
            path.settle(&mut frame, &mut packet, &mut passage, &range, &way)
        }
        Err(reason) => Err(reason.into()),
    };
    match settled {
        Ok(()) => _ = path.forward(frame, &mut packet, &way),
        Err(refusal) => {
            path.shard.conntrack.send_back(&emigrant);
            path.refuse(frame, &packet, &refusal);
        }
    }
    path.finish_batch();
}
