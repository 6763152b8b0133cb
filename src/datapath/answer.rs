//! What the sender of a refused packet is told: an ICMP error or a TCP reset, in the packet's own frame. It leaves as a packet of
//! the same connection.

use super::waiting::{self, Outcome};
use super::{Answer, Path, Refusal, Resolve, is_link_local_v6};

use crate::conntrack::Tracked;
use crate::device::{Frame, PortId};
use crate::packet::Packet;
use crate::reply;
use crate::route::Route;
use crate::schedule;
use crate::time::SECOND_NS;
use crate::verdict::{DropReason, Verdict};
use crate::wire::Family;

impl Path<'_> {
    /// Counts the drop and answers the sender in the packet's own frame, where there is an answer.
    pub(super) fn refuse(&mut self, mut frame: Frame, packet: &Packet, refusal: &Refusal) -> Verdict {
        if refusal.reason == DropReason::NatExhausted {
            self.tell_exhausted(packet);
        }
        let answered = match refusal.answer {
            Answer::Nothing => None,
            Answer::Reset => self.way_back(packet, &refusal.tracked).filter(|_| reply::tcp_reset(&mut frame, packet)),
            Answer::Error(error) => self.answer(&mut frame, packet, error, &refusal.tracked),
        };
        let Some(hop) = answered.and_then(|hop| self.translate_answer(&mut frame, packet, &refusal.tracked, hop))
        else {
            return self.drop(frame, refusal.reason);
        };
        self.shard.counters.drops.count(refusal.reason);
        self.shard.counters.replies += 1;
        if matches!(refusal.answer, Answer::Reset) {
            self.shard.conntrack.close_by_reset(refusal.tracked.conn, self.now);
        }
        // The answer leaves as a packet of the connection (`nf_ct_attach`).
        self.shard.conntrack.tell_news(refusal.tracked.conn, self.now);
        self.emit(frame, hop);
        Verdict::Drop(refusal.reason)
    }

    /// Turns `frame` into the ICMP error, if one may be sent now; gives where it goes.
    fn answer(&mut self, frame: &mut Frame, packet: &Packet, error: reply::Error, of: &Tracked) -> Option<Resolve> {
        if !reply::may_answer(packet) {
            return None;
        }
        let hop = self.way_back(packet, of)?;
        let source = self.routing.source_for(packet.family, packet.src, packet.port)?;
        // Clients behind one address are not one host.
        let host = self.answered_address(packet, of);
        let mut limiter = schedule::lock(&self.shard.limiter);
        let allowed = limiter.allow(packet.family, host, error, self.now);
        drop(limiter);
        if !allowed {
            self.shard.counters.replies_limited += 1;
            return None;
        }
        let id = self.shard.next_ip_id();
        reply::icmp_error(frame, packet, error, source, id);
        Some(hop)
    }

    /// The next hop back to the packet's sender.
    pub(super) fn way_back(&self, packet: &Packet, tracked: &Tracked) -> Option<Resolve> {
        let sender = self.answered_address(packet, tracked);
        if packet.family == Family::V6 && is_link_local_v6(sender) {
            return Some(waiting::next_hop(packet.family, packet.port, None, sender));
        }
        match self.routing.lookup(packet.family, packet.dst, sender) {
            Route::Forward { port, gateway, .. } => Some(waiting::next_hop(packet.family, port, gateway, sender)),
            _ => None,
        }
    }

    /// Frees every waiting frame whose neighbour answered or failed, and asks again, once a second, for the others.
    pub(super) fn settle_waiting(&mut self) {
        while let Some((hop, outcome, mut frames)) = self.shard.waiting.settle(self.routing, self.now) {
            for frame in frames.drain(..) {
                match outcome {
                    Outcome::Send(mac) => self.send(frame, hop.port, mac),
                    Outcome::Fail => self.give_up(frame, hop.port),
                };
            }
            self.shard.waiting.recycle(frames);
        }
        if self.now - self.shard.asked_at >= SECOND_NS {
            self.shard.asked_at = self.now;
            for request in self.shard.waiting.requests() {
                self.effects.ask(request);
            }
        }
    }

    /// The next hop of this packet does not answer: its sender is told, unless it is a message of our own.
    fn give_up(&mut self, frame: Frame, port: PortId) -> Verdict {
        match Packet::parse(frame.bytes(), port, false) {
            Ok(packet) => {
                let error = reply::Error::host_unreachable(packet.family);
                let tracked = self.connection_of_translated(&packet);
                // Which port it came in by is not known any more: the one that leads back.
                let back = self.way_back(&packet, &tracked).map_or(port, |hop| hop.port);
                let packet = Packet { port: back, ..packet };
                self.refuse(frame, &packet, &Refusal { tracked, ..Refusal::with(DropReason::NeighbourFailed, error) })
            }
            Err(reason) => self.drop(frame, reason),
        }
    }
}
