//! A tracker among several ([`Homes`]): whose packet one is, and connections that go to another worker before they are confirmed.

use super::{ConnId, ConnRef, Conntrack, Tracked, portless_tuple};
use crate::conntrack::conn::{Prepared, TranslationNote};
use crate::conntrack::extra::Extra;
use crate::conntrack::homes::Sent;
use crate::conntrack::icmp::{self, Message};
use crate::conntrack::list::{Counter, StateView};
use crate::conntrack::tuple::{CtInfo, CtStatus, Direction, Tuple};
use crate::packet::Packet;
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::proto;

/// A prepared connection on its way to the worker that is to own it.
#[derive(Clone, Debug)]
pub struct Emigrant {
    record: Prepared,
    counter: Counter,
    extra: Option<Extra>,
    info: CtInfo,
    serial: u32,
}

impl Emigrant {
    /// The tuple of its first packet, as that came.
    pub fn original(&self) -> Tuple {
        self.record.tuple(Direction::Original)
    }
}

impl Conntrack {
    /// Whether there are others.
    #[inline(always)]
    pub fn is_one_of_many(&self) -> bool {
        self.homes.is_some()
    }

    /// Connections of all workers; the own ones where there are no others.
    pub fn total(&self) -> usize {
        self.homes.as_ref().map_or(self.len(), |homes| homes.total())
    }

    /// Signposts to other workers here, and to here at others.
    pub fn signposts(&self) -> (usize, usize) {
        self.homes.as_ref().map_or((0, 0), |homes| homes.counts())
    }

    /// How the packets that follow have come here; `by_port`: not from another worker.
    #[inline]
    pub fn set_arrival(&mut self, arrival: Sent, by_port: bool) {
        if let Some(homes) = &mut self.homes {
            homes.set_arrival(arrival, by_port);
        }
    }

    /// Letters from and to the other workers.
    #[inline]
    pub fn attend(&mut self, now: Instant) {
        if let Some(homes) = &mut self.homes {
            homes.attend();
            if homes.is_asked_for_room() {
                self.make_room(now);
            }
        }
    }

    /// Whom a packet is to be given to, and how. `None`: it is to be decided here. `missed`: no connection here has its own
    /// tuple.
    pub fn elsewhere(&mut self, packet: &Packet, frame: &[u8], hash: u64, missed: bool) -> Option<(u16, Sent)> {
        let tuple = self.tuple_to_steer_by(packet, frame)?;
        let own = Tuple::of(packet);
        let known = match tuple == own {
            true => !missed && self.table.find(&tuple, hash).is_some(),
            false => self.table.find(&tuple, self.hash(&tuple)).is_some(),
        };
        if known {
            return self.detour(&tuple).map(|home| (home, Sent::Here));
        }
        self.homes.as_mut()?.elsewhere(&tuple, &self.expectations)
    }

    /// Whom a packet of a connection here goes to first, so that none of its flow overtakes another: those that arrive elsewhere
    /// come by the tuple's home.
    #[inline]
    pub fn detour(&self, tuple: &Tuple) -> Option<u16> {
        self.homes.as_ref()?.detour(tuple)
    }

    /// That of its connection; `None` where it is of none.
    fn tuple_to_steer_by(&self, packet: &Packet, frame: &[u8]) -> Option<Tuple> {
        let own = Tuple::of(packet);
        match packet.proto {
            proto::ICMP | proto::ICMPV6 if packet.is_icmp() => match icmp::look(packet, frame, &self.settings) {
                Message::Own => Some(own),
                Message::About(tuple) => Some(self.with_answering_key(tuple)),
                Message::Untracked | Message::Invalid => None,
            },
            proto::ICMP | proto::ICMPV6 => None,
            proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE => (packet.l4_len >= 4).then_some(own),
            _ => portless_tuple(packet, frame, own).map(|found| self.with_source_key(found, packet, frame)),
        }
    }

    /// What a candidate for the prepared connection's translation is whose reply tuple has its home elsewhere: nobody here knows
    /// whether it is taken. `None`: it has its home here.
    pub(super) fn is_for_another(&self, tuple: &Tuple) -> Option<bool> {
        let homes = self.homes.as_ref()?;
        homes.is_foreign(tuple).then(|| homes.is_strict())
    }

    /// Whether the home of a candidate is elsewhere, so that it is not even to be tried now.
    #[inline]
    pub fn is_not_to_be_tried(&self, tuple: &Tuple) -> bool {
        self.homes.as_ref().is_some_and(|homes| homes.is_strict() && homes.is_foreign(tuple))
    }

    /// From now on only translations are to be found whose reply has its home here; or any.
    pub fn only_own_homes(&mut self, strict: bool) {
        if let Some(homes) = &mut self.homes {
            homes.set_strict(strict);
        }
    }

    /// Whether a connection's ports are to be chosen such that its replies come here by themselves: they do where a NIC brings
    /// them. Where all packets are handed over anyway, it keeps what Linux would give it.
    pub fn chooses_ports(&self) -> bool {
        let by_nic = self.homes.as_ref().is_some_and(|homes| homes.steers_by_nic());
        by_nic && !self.is_expected()
    }

    /// The worker that is to own the prepared connection, if that is another. What is expected lives with its master.
    #[inline]
    pub fn owner_to_be(&self, tracked: &Tracked) -> Option<u16> {
        let homes = self.homes.as_ref().filter(|_| tracked.conn == ConnRef::Prepared)?;
        let new = self.prepared.as_ref()?;
        let home = homes.home(&new.tuple(Direction::Reply));
        (home != homes.me() && !new.conn.status.any(CtStatus::EXPECTED) && !new.exhausted).then_some(home)
    }

    /// The prepared connection goes to `owner`; its packets are given to that from now on.
    ///
    /// # Errors
    /// There is no room.
    pub fn emigrate(&mut self, tracked: &Tracked, owner: u16, now: Instant) -> Result<Emigrant, DropReason> {
        let (Some(homes), Some(record)) = (&mut self.homes, self.prepared.take()) else {
            return Err(DropReason::ConntrackFull);
        };
        let original = record.tuple(Direction::Original);
        let serial = match homes.is_foreign(&original) {
            // An old one's packet begins it anew: the new owner tells its home.
            true => Some(homes.next_serial()),
            false => homes.post(&original, owner),
        };
        let extra = self.prepared_extra.and_then(|number| self.extras.get(number)).copied();
        self.forget_extra();
        let Some(serial) = serial else {
            self.leave_roster(&record);
            return Err(DropReason::ConntrackFull);
        };
        if let Some(victim) = self.victim.take() {
            self.drop_early(victim, now);
        }
        Ok(Emigrant { record, counter: self.prepared_counter, extra, info: tracked.info, serial })
    }

    /// One that could not be sent is nowhere.
    pub fn stay(&mut self, emigrant: &Emigrant) {
        self.leave_roster(&emigrant.record);
        if let Some(homes) = &mut self.homes {
            homes.unpost(&emigrant.original(), emigrant.serial);
        }
    }

    /// A connection from another worker is the prepared one from now on.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn immigrate(&mut self, emigrant: &Emigrant, now: Instant) -> Result<Tracked, DropReason> {
        let Emigrant { record, counter, extra, info, serial } = *emigrant;
        self.forget_prepared();
        self.victim = None;
        self.set_arrival(Sent::ToOwner(serial), false);
        if self.is_full() {
            self.victim = self.find_room(now).inspect_err(|_| self.leave_roster(&record))?;
        }
        self.prepared_counter = counter;
        // Its master, if it has one, is another worker's.
        self.prepared_extra = extra.map(|extra| self.extras.add(Extra { parent: None, ..extra }));
        let status = record.conn.status;
        self.prepared = Some(record);
        Ok(Tracked { info, conn: ConnRef::Prepared, status })
    }

    /// A packet was refused: what it would have begun is not to be, and nobody else has to know of it. `tuple` is the one that it
    /// came with, where it came by a signpost.
    #[cold]
    pub fn forget_refused(&mut self, tuple: Option<&Tuple>) {
        self.forget_prepared();
        if let (Some(homes), Some(tuple)) = (&mut self.homes, tuple) {
            homes.refuse(tuple);
        }
    }

    /// Whether the packets in hand came by a signpost.
    #[inline]
    pub fn is_by_signpost(&self) -> bool {
        self.homes.as_ref().is_some_and(|homes| homes.is_by_signpost())
    }

    /// The connection that came from another worker is not to be; its home is told.
    pub fn send_back(&mut self, emigrant: &Emigrant) {
        self.forget_prepared();
        if let Some(homes) = &mut self.homes {
            homes.refuse(&emigrant.original());
        }
    }

    /// Other workers may ask about a packet's connection from now on (`-m connlimit` counts it). What is said of it here is to
    /// follow with [`Conntrack::is_on_roster`].
    pub fn put_on_roster(&self, conn: ConnRef) {
        if let (Some(homes), Some(original)) = (&self.homes, self.tuple(conn, Direction::Original)) {
            homes.roster().put(&original, false);
        }
    }

    /// A packet's connection has been put on the roster.
    pub fn is_on_roster(&mut self, conn: ConnRef) {
        match (conn, &mut self.prepared) {
            (ConnRef::Prepared, Some(new)) => new.note.0 |= TranslationNote::ROSTER,
            (ConnRef::Confirmed(id), _) if self.table.get(id).is_confirmed() => {
                self.table.set_note(id, TranslationNote::ROSTER);
                self.tell_roster(id);
            }
            // It is over.
            _ => {
                if let (Some(homes), Some(original)) = (&self.homes, self.tuple(conn, Direction::Original)) {
                    homes.roster().remove(&original);
                }
            }
        }
    }

    /// What the roster says of a connection is so.
    #[inline]
    pub(super) fn tell_roster(&mut self, id: ConnId) {
        if let Some(homes) = &self.homes
            && self.table.note(id).has(TranslationNote::ROSTER)
        {
            let closing = matches!(self.table.get(id).state_view(), Some(StateView::TimeWait | StateView::Close));
            homes.roster().put(&self.table.tuple(id, Direction::Original), closing);
        }
    }

    /// The prepared connection is not to be.
    pub(super) fn leave_roster(&mut self, new: &Prepared) {
        if let Some(homes) = &self.homes
            && new.note.has(TranslationNote::ROSTER)
        {
            homes.roster().remove(&new.tuple(Direction::Original));
        }
    }

    /// Counts one more connection among those of all workers. `false`: there are as many as there may be.
    pub(super) fn reserve(&self) -> bool {
        self.homes.as_ref().is_none_or(|homes| homes.reserve(self.settings.max))
    }

    /// Puts a connection that is counted into the table. `None`: that has no room, and it is counted no more.
    pub(super) fn insert(&mut self, new: &Prepared) -> Option<ConnId> {
        let inserted = (self.table.len() < self.table.capacity()).then(|| self.table.insert(new).ok()).flatten();
        if let (None, Some(homes)) = (inserted, &self.homes) {
            homes.release();
        }
        inserted
    }

    pub(super) fn note_begin(&mut self, id: ConnId) {
        if let Some(homes) = &mut self.homes {
            let [original, reply] = [Direction::Original, Direction::Reply].map(|way| self.table.tuple(id, way));
            homes.begin(&original, &reply);
        }
    }

    pub(super) fn note_end(&mut self, id: ConnId) {
        if let Some(homes) = &mut self.homes {
            let [original, reply] = [Direction::Original, Direction::Reply].map(|way| self.table.tuple(id, way));
            homes.end(&original, &reply);
            if self.table.note(id).has(TranslationNote::ROSTER) {
                homes.roster().remove(&original);
            }
        }
    }
}
