//! Application helpers on a packet's way: an expected connection is translated as its master is, and what leaves is read by
//! its connection's helper (`nf_nat_follow_master`, `nf_confirm`).

use super::{Passage, Path, Refusal, Way};
use crate::conntrack::{ConnRef, CtStatus, FollowMaster, Manip};
use crate::device::Frame;
use crate::nat;
use crate::packet::Packet;
use crate::reply;
use crate::rules::{NatPorts, NatRange};
use crate::verdict::DropReason;

impl Path<'_> {
    /// A connection has begun that may have been expected by one that is translated: then it goes where that goes, and the
    /// rules of nat are not asked.
    #[inline]
    pub(super) fn follow_master(&mut self, passage: &mut Passage) {
        if passage.tracked.conn == ConnRef::Prepared
            && let Some(follow) = self.shard.conntrack.take_follow()
        {
            self.follow(follow, passage);
        }
    }

    #[cold]
    fn follow(&mut self, follow: FollowMaster, passage: &mut Passage) {
        let super::Shard { conntrack, dice, .. } = &mut *self.shard;
        let FollowMaster { source, source_port, destination, port } = follow;
        for (manip, addr, port) in [(Manip::Source, source, source_port), (Manip::Destination, destination, port)] {
            let ports = port.map(|port| NatPorts { low: port, high: port, base: None });
            let range = NatRange { addresses: Some((addr, addr)), ports, ..NatRange::default() };
            nat::bind(conntrack, manip, &range, &mut |low| dice.draw_port(manip, low), self.now);
        }
        passage.tracked.status = conntrack.conn(ConnRef::Prepared).map_or(CtStatus::default(), |conn| conn.status());
    }

    /// The last step: the helper reads the packet, which may grow by that; then its connection becomes visible.
    #[inline]
    pub(super) fn leave(
        &mut self,
        frame: &mut Frame,
        packet: &mut Packet,
        passage: &Passage,
        way: &Way,
    ) -> Result<(), Refusal> {
        let helped = self.shard.conntrack.wants_help(&passage.tracked);
        if helped {
            self.help(frame, packet, passage)?;
        }
        self.shard.conntrack.confirm(&passage.tracked, self.now)?;
        match helped && packet.l3_len > way.mtu {
            true => Err(Refusal { tracked: passage.tracked, ..outgrown(packet, way.mtu) }),
            false => Ok(()),
        }
    }

    #[cold]
    fn help(&mut self, frame: &mut Frame, packet: &mut Packet, passage: &Passage) -> Result<(), DropReason> {
        let super::Shard { conntrack, dice, .. } = &mut *self.shard;
        let random = &mut || u32::from(dice.draw()) << 16 | u32::from(dice.draw());
        let helped = conntrack.help(&passage.tracked, packet, frame.room_mut(), random, self.now);
        if packet.frame_len() > frame.len() {
            frame.set_len(packet.frame_len());
        }
        helped
    }
}

/// A packet that fitted before the helper wrote into it (`ip_fragment`, `ip6_fragment`).
#[cold]
fn outgrown(packet: &Packet, mtu: u16) -> Refusal {
    match packet.dont_fragment {
        true => Refusal::with(DropReason::PacketTooBig, reply::Error::too_big(packet.family, mtu)),
        false => DropReason::PacketTooBig.into(),
    }
}
