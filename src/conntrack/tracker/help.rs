//! What conntrack does for connections with a helper, and for those that one expects: [`Conntrack::help`].
//!
//! When a connection is prepared, it either is one that was expected, or gets the helper of its template (`init_conntrack`).
//! On its way out each packet of a connection with a helper is read by that, and then gets the sequence numbers that its
//! receiver knows (`nf_confirm`). When the connection goes, what it expects goes too.
//!
//! Differences from Linux, both wanted: an ICMP error about a connection is neither read by its helper nor has its bytes taken
//! for TCP's sequence numbers; and a SACK option at an odd place keeps the checksum right.

use super::{ConnRef, Conntrack, Tracked};
use crate::conntrack::conn::{Conn, ConnId, Prepared};
use crate::conntrack::expect::{Expectation, MasterId};
use crate::conntrack::expected::ExpectView;
use crate::conntrack::extra::Extra;
use crate::conntrack::generic::is_enhanced;
use crate::conntrack::helper::{Call, Helper, Memory};
use crate::conntrack::seqadj::SeqAdjust;
use crate::conntrack::template::Zone;
use crate::conntrack::tuple::{CtStatus, Direction, Tuple};
use crate::packet::Packet;
use crate::time::{Instant, SECOND_NS};
use crate::verdict::DropReason;
use crate::wire::{Addr, proto};

/// How an expected connection is translated, so that it goes where its master goes (`nf_nat_follow_master`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowMaster {
    /// The source it gets.
    pub source: Addr,
    /// The source port (of GRE, the key), if that is given.
    pub source_port: Option<u16>,
    /// The destination it gets.
    pub destination: Addr,
    /// The destination port, if that is given.
    pub port: Option<u16>,
}

impl Conntrack {
    /// A connection is about to be prepared: it may be one that was expected; else it gets `helper`.
    #[inline]
    pub(super) fn furnish(&mut self, new: &mut Prepared, helper: Option<Helper>, now: Instant) {
        if !self.expectations.is_empty() && self.meet(new, now) {
            return;
        }
        if let Some(helper) = helper.filter(|helper| helper.proto() == new.conn.proto) {
            new.conn.status = new.conn.status.with(CtStatus::HELPER);
            self.prepared_extra = Some(self.extras.add(Extra::new(Some(helper), None)));
        }
    }

    /// Whether it is expected; then it is what its master makes of it.
    #[cold]
    fn meet(&mut self, new: &mut Prepared, now: Instant) -> bool {
        let tuple = Tuple { zone: new.conn.zone().id, ..new.tuple(Direction::Original) };
        let extras = &self.extras;
        let met = self.expectations.take(&tuple, now, |master| extras.conn(master).is_some());
        self.count_expectations();
        let Some(expectation) = met else { return false };
        self.statistics.expect_new += 1;
        let Some(master) = self.extras.conn(expectation.master) else { return false };
        let its_helper = self.extras.get(expectation.master).and_then(|extra| extra.helper);
        new.conn.mark = self.table.get(master).mark;
        new.conn.status = new.conn.status.with(CtStatus::EXPECTED);
        if expectation.helper.is_some() {
            new.conn.status = new.conn.status.with(CtStatus::HELPER);
        }
        let parent = self.extras.serial(expectation.master).map(|serial| (expectation.master, serial));
        let extra = Extra { parent, ..Extra::new(expectation.helper, its_helper) };
        self.prepared_extra = Some(self.extras.add(extra));
        self.follow = expectation.follow.map(|follow| {
            let masters = self.table.tuple(master, follow.direction.other());
            // Of a tunnel, the client's end is the one with another number (`pptp_nat_expected`).
            let at_source = its_helper == Some(Helper::Pptp) && follow.direction == Direction::Original;
            let (source_port, port) = if at_source { (Some(follow.port), None) } else { (None, Some(follow.port)) };
            FollowMaster { source: masters.dst, source_port, destination: masters.src, port }
        });
        self.end_partner(master, &expectation, now);
        true
    }

    /// One direction of a tunnel has begun: the other is expected no more.
    fn end_partner(&mut self, master: ConnId, met: &Expectation, now: Instant) {
        let Some(Extra { memory: Memory::Pptp(session), .. }) = self.extras.get(met.master) else { return };
        let tuples = [Direction::Original, Direction::Reply].map(|direction| self.table.tuple(master, direction));
        let other = session.partner(met, &tuples).and_then(|tuple| self.expectations.find(&tuple, now).copied());
        if let Some(other) = other {
            self.expectations.remove(&other);
            self.count_expectations();
        }
    }

    /// A GRE packet's tuple with the source key that a helper has told of.
    pub(super) fn with_source_key(&self, tuple: Tuple, packet: &Packet, frame: &[u8]) -> Tuple {
        match tuple.proto == proto::GRE && !self.keys.is_empty() && is_enhanced(packet.l4_bytes(frame)) {
            true => Tuple { sport: self.keys.source(&tuple), ..tuple },
            false => tuple,
        }
    }

    /// The same of the answer to such a packet, which an ICMP error quotes.
    pub(super) fn with_answering_key(&self, answer: Tuple) -> Tuple {
        let about = answer.inverse().filter(|tuple| tuple.proto == proto::GRE && tuple.dport != 0);
        match about.filter(|_| !self.keys.is_empty()) {
            Some(tuple) => Tuple { dport: self.keys.source(&Tuple { zone: 0, ..tuple }), ..answer },
            None => answer,
        }
    }

    /// How the connection that was just prepared is to be translated, if its master says so; once.
    #[inline]
    pub fn take_follow(&mut self) -> Option<FollowMaster> {
        self.follow.take()
    }

    /// What was prepared will not be confirmed.
    #[inline]
    pub(super) fn forget_extra(&mut self) {
        self.follow = None;
        if let Some(number) = self.prepared_extra.take() {
            self.expectations.remove_all(number);
            self.keys.remove(number);
            self.extras.remove(number);
            self.count_expectations();
        }
    }

    /// What was prepared is in the table now.
    #[inline]
    pub(super) fn attach_extra(&mut self, id: ConnId) {
        if let Some(number) = self.prepared_extra.take() {
            self.extras.attach(number, id);
        }
    }

    /// A connection is about to leave the table.
    #[inline]
    pub(super) fn remove_extra(&mut self, id: ConnId, now: Instant) {
        if self.table.get(id).status.any(Extra::STATUS)
            && let Some(number) = self.extras.of(id)
        {
            self.remove_extra_of(id, number, now);
        }
    }

    #[cold]
    fn remove_extra_of(&mut self, id: ConnId, number: MasterId, now: Instant) {
        let extra = self.extras.get(number).copied();
        self.extras.remove(number);
        self.expectations.remove_all(number);
        self.keys.remove(number);
        match extra {
            Some(Extra { memory: Memory::Pptp(session), .. }) => {
                let tuples = [Direction::Original, Direction::Reply].map(|direction| self.table.tuple(id, direction));
                self.end_siblings(session.siblings(&tuples), self.table.get(id).zone(), now);
            }
            // The tunnel is gone (`destroy_gre_conntrack`).
            Some(Extra { parent: Some((parent, serial)), .. })
                if self.table.get(id).proto == proto::GRE && self.extras.serial(parent) == Some(serial) =>
            {
                self.keys.remove(parent);
            }
            _ => {}
        }
        self.count_expectations();
    }

    /// Connections that go with another, or are expected no more (`destroy_sibling_or_exp`).
    fn end_siblings(&mut self, tuples: [Tuple; 2], zone: Zone, now: Instant) {
        for tuple in tuples {
            let in_zone = Tuple { zone: zone.id, ..tuple };
            if let Some((id, _)) = self.lookup_in(zone, tuple, now) {
                self.remove(id, now, 0);
            } else if let Some(expected) = self.expectations.find(&in_zone, now).copied() {
                self.expectations.remove(&expected);
            }
        }
        self.count_expectations();
    }

    /// Checks that every connection which should have more than its record has it, and what is expected.
    pub(super) fn check_help(&self) {
        self.expectations.check_invariants();
        for (at, conn) in self.table.records().iter().enumerate().filter(|(_, conn)| conn.is_confirmed()) {
            let has = self.extras.of(ConnId(at as u32)).is_some();
            assert_eq!(has, conn.status.any(Extra::STATUS), "what lies beside connection {at}");
        }
    }

    pub(super) fn count_expectations(&mut self) {
        (self.statistics.expect_create, self.statistics.expect_delete) = self.expectations.counts();
        if let Some(homes) = &mut self.homes {
            homes.publish(&self.expectations);
        }
    }

    pub(super) fn extra(&self, conn: ConnRef) -> Option<&Extra> {
        let number = match conn {
            // What a packet has ended has lost what was beside it.
            ConnRef::None | ConnRef::Ended => None,
            ConnRef::Prepared => self.prepared_extra,
            ConnRef::Confirmed(id) if self.table.get(id).status.any(Extra::STATUS) => self.extras.of(id),
            ConnRef::Confirmed(_) => None,
        };
        self.extras.get(number?)
    }

    /// How a connection's sequence numbers are changed.
    #[inline]
    pub(super) fn seq_adjust(&self, id: ConnId) -> Option<SeqAdjust> {
        match self.table.get(id).status.any(CtStatus::SEQ_ADJUST) {
            true => self.extra(ConnRef::Confirmed(id)).map(|extra| extra.adjust),
            false => None,
        }
    }

    /// The helper of a packet's connection.
    pub fn helper(&self, conn: ConnRef) -> Option<Helper> {
        self.extra(conn)?.helper
    }

    /// The helper of the connection that expected a packet's one.
    pub fn master_helper(&self, conn: ConnRef) -> Option<Helper> {
        self.extra(conn)?.master
    }

    /// Whether every packet of this connection has to be seen by [`Conntrack::help`].
    #[inline]
    pub fn wants_help(&self, tracked: &Tracked) -> bool {
        const WITH: CtStatus = CtStatus::HELPER.with(CtStatus::SEQ_ADJUST);
        self.conn(tracked.conn).is_some_and(|conn| conn.status.any(WITH))
    }

    /// Has the connection's helper read a packet, as it leaves, and gives it the sequence numbers its receiver knows. The
    /// packet may change, and grow into the room that `frame` has behind it.
    ///
    /// # Errors
    /// The packet is to be dropped.
    #[inline]
    pub fn help(
        &mut self,
        tracked: &Tracked,
        packet: &mut Packet,
        frame: &mut [u8],
        random: &mut dyn FnMut() -> u32,
        now: Instant,
    ) -> Result<(), DropReason> {
        match self.wants_help(tracked) {
            true => self.help_really(tracked, packet, frame, random, now),
            false => Ok(()),
        }
    }

    #[cold]
    fn help_really(
        &mut self,
        tracked: &Tracked,
        packet: &mut Packet,
        frame: &mut [u8],
        random: &mut dyn FnMut() -> u32,
        now: Instant,
    ) -> Result<(), DropReason> {
        let number = match tracked.conn {
            ConnRef::Confirmed(id) => self.extras.of(id),
            ConnRef::Prepared => self.prepared_extra,
            ConnRef::None | ConnRef::Ended => None,
        };
        let (Some(number), Some(conn)) = (number, self.conn(tracked.conn)) else { return Ok(()) };
        let Conn { proto, status, .. } = *conn;
        let zone = conn.zone();
        let tuple = |direction| self.tuple(tracked.conn, direction).unwrap_or_default();
        let tuples = [tuple(Direction::Original), tuple(Direction::Reply)];
        let Some(extra) = self.extras.get_mut(number) else { return Ok(()) };
        if packet.proto != proto {
            return Ok(());
        }
        let adjusts = status.any(CtStatus::SEQ_ADJUST);
        if let Some(helper) = extra.helper {
            let mut call = Call {
                helper,
                info: tracked.info,
                tuples,
                zone: zone.id,
                status,
                packet,
                frame,
                master: number,
                memory: &mut extra.memory,
                adjust: &mut extra.adjust,
                expectations: &mut self.expectations,
                random,
                now,
                keys: &mut self.keys,
                ends: None,
                refresh: None,
            };
            let done = call.run();
            let (status, refresh, ends) = (call.status, call.refresh, call.ends);
            self.keep(tracked.conn, status, refresh, now);
            if let Some(ends) = ends {
                self.end_siblings(ends, zone, now);
            }
            self.count_expectations();
            done?;
        }
        let adjust = self.extras.get(number).filter(|_| adjusts).map(|extra| extra.adjust);
        let fine = adjust.is_none_or(|adjust| adjust.adjust(tracked.info.direction(), packet, frame));
        if !fine {
            self.statistics.drop += 1;
            return Err(DropReason::SeqAdjust);
        }
        Ok(())
    }

    /// What a helper has changed about its connection.
    fn keep(&mut self, conn: ConnRef, status: CtStatus, refresh: Option<u32>, now: Instant) {
        let (record, begin) = match conn {
            ConnRef::Confirmed(id) => (self.table.get_mut(id), now),
            // Its timeout begins when it is confirmed.
            ConnRef::Prepared => match &mut self.prepared {
                Some(new) => (&mut new.conn, Instant::ZERO),
                None => return,
            },
            ConnRef::None | ConnRef::Ended => return,
        };
        record.status = record.status.with(status);
        if let Some(seconds) = refresh.filter(|_| record.flags & Conn::FIXED_TIMEOUT == 0) {
            record.expires = begin + u64::from(seconds) * SECOND_NS;
        }
    }

    /// Expectations there are; some may have timed out and not been collected yet, as in Linux's own count.
    pub fn expected(&self) -> usize {
        self.expectations.len()
    }

    /// Shows up to `budget` expectations from `cursor` (0 at first) to `each`. Returns the cursor of the next piece, `None`
    /// after the last.
    pub fn list_expected(
        &self,
        cursor: usize,
        budget: usize,
        now: Instant,
        each: &mut dyn FnMut(&ExpectView),
    ) -> Option<usize> {
        self.expectations.list(cursor, budget, now, &mut |one| {
            if let Some(view) = self.expect_view(one, now) {
                each(&view);
            }
        })
    }

    fn expect_view(&self, one: &Expectation, now: Instant) -> Option<ExpectView> {
        let master = self.extras.conn(one.master)?;
        let helper = self.extras.get(one.master)?.helper?;
        Some(ExpectView::new(one, &self.table.tuple(master, Direction::Original), helper, now))
    }

    /// Ends all expectations (`conntrack -F expect`).
    pub fn forget_expected(&mut self) {
        self.expectations.clear();
        self.count_expectations();
    }
}
