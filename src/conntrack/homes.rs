//! Where connections live when several workers track them: [`Homes`].
//!
//! Every tuple has a *home*: the worker that [`Steering`] names, the same for a tuple and its inverse. The worker that has a
//! connection in its table is its *owner*, and for nearly every connection that is the home of both its tuples. Where it is
//! not (a translation gave the reply tuple another home and no port could be chosen for it; the connection was expected, and
//! lives with its master) the home of such a tuple has a *signpost* to the owner. So the home of a tuple always knows of it, and
//! is the one that says whether it is taken: a connection whose translation is not decided at the home of its reply tuple
//! emigrates there, before it is confirmed.
//!
//! Workers share nothing but rings. What is to be known elsewhere goes as a [`Letter`], before the packet leaves that may
//! cause an answer; and a home reads its letters before it takes a packet for the first of a connection. So no answer can
//! come before the letter about it. Each signpost has a serial number of who set it up, so that news of an old one
//! takes no new one away. What helpers expect is published for all to read ([`Published`]): a lock, taken for first packets
//! only, while something is expected by another worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashMap;
use rtrb::{Consumer, Producer, RingBuffer};
use std::collections::VecDeque;

use super::expect::{Expectation, Expectations, SourceMask};
use super::published::Published;
use super::roster::Roster;
use super::total::Total;
use super::tuple::Tuple;
use crate::schedule;
use crate::steering::{Flow, Steering};
use crate::wire::proto;

/// How a packet came to a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sent {
    /// From a port, or from the worker that had it from a port.
    #[default]
    Here,
    /// From the home of its tuple, by the signpost with this number.
    ToOwner(u32),
    /// From whom the signpost with this number led to: that worker does not have the connection any more.
    Back(u32),
}

/// News of a tuple for its home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Letter {
    /// The sender has its connection.
    Post {
        /// The tuple.
        tuple: Tuple,
        /// The signpost's number.
        serial: u32,
    },
    /// The sender has it no more.
    Unpost {
        /// The tuple.
        tuple: Tuple,
        /// The signpost's number.
        serial: u32,
    },
}

/// Who has a tuple's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Signpost {
    owner: u16,
    serial: u32,
}

/// What all workers expect.
type Expected = Published<(Tuple, SourceMask)>;

/// What all workers but one expect.
#[derive(Debug)]
pub(super) struct Others {
    me: u16,
    published: Arc<Expected>,
}

impl Others {
    /// Whether a packet could be met by this one and by one of theirs.
    pub(super) fn clash_with(&self, new: &Expectation) -> bool {
        self.published.find(usize::from(self.me), |one| clashes(new, one)).is_some()
    }

    /// From now on the others know that this one is expected here; `false`: one of theirs could be met by the same packet. What is
    /// claimed is expected then: [`Homes::publish`] says so again.
    pub(super) fn claim(&self, new: &Expectation) -> bool {
        if new.flags & Expectation::INACTIVE != 0 {
            return !self.clash_with(new);
        }
        self.published.claim(usize::from(self.me), (new.tuple, new.mask), |one| clashes(new, one))
    }
}

fn clashes(new: &Expectation, (tuple, mask): &(Tuple, SourceMask)) -> bool {
    new.clashes_with_one_of(tuple, *mask)
}

/// Whether NICs bring packets where [`Steering`] says that they do: the first [`Arrivals::LOOKED_AT`] of each worker that began
/// a flow are looked at.
#[derive(Debug, Default)]
pub struct Arrivals {
    at_home: AtomicU64,
    astray: AtomicU64,
}

impl Arrivals {
    /// First packets of flows that each worker looks at.
    pub const LOOKED_AT: u32 = 256;

    /// Packets that arrived at the worker that is their home, and at others, so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.at_home.load(Ordering::Relaxed), self.astray.load(Ordering::Relaxed))
    }
}

/// One worker's way to another's letter box, and that one's to here.
#[derive(Debug)]
struct Post {
    out: Producer<Letter>,
    waiting: VecDeque<Letter>,
    incoming: Consumer<Letter>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Homes {
    me: u16,
    steering: Arc<Steering>,
    /// By worker; none to itself.
    posts: Vec<Option<Post>>,
    /// Tuples whose home this is, of connections that others have.
    signposts: HashMap<Tuple, Signpost>,
    most_signposts: usize,
    /// Tuples of own connections whose home is elsewhere, with the numbers of their signposts.
    abroad: HashMap<Tuple, u32>,
    serial: u32,
    published: Arc<Expected>,
    published_counts: (u64, u64),
    /// Connections of all workers.
    total: Arc<Total>,
    roster: Arc<Roster>,
    /// By worker: others have found no room, and no connection of theirs that could go.
    asked_for_room: Arc<[AtomicBool]>,
    /// Candidates of other homes count as taken.
    strict: bool,
    /// How the packet in hand came.
    arrival: Sent,
    /// Whether it came by a port.
    by_port: bool,
    arrivals: Arc<Arrivals>,
    /// Arrivals still to be looked at.
    to_look_at: u32,
}

impl Homes {
    /// For as many workers as `steering` knows, each with room for `capacity` connections.
    pub fn of_all(steering: &Arc<Steering>, capacity: usize) -> Vec<Homes> {
        let workers = usize::from(steering.workers());
        let ring = (4096 / workers.max(1)).clamp(64, 1024);
        let mut outgoing: Vec<Vec<Option<Producer<Letter>>>> = Vec::with_capacity(workers);
        let mut incoming: Vec<Vec<Option<Consumer<Letter>>>> = (0..workers).map(|_| Vec::new()).collect();
        for from in 0..workers {
            let mut row = Vec::with_capacity(workers);
            for (to, box_of) in incoming.iter_mut().enumerate() {
                let (out, inward) = RingBuffer::new(ring);
                row.push((from != to).then_some(out));
                box_of.push((from != to).then_some(inward));
            }
            outgoing.push(row);
        }
        let published = Arc::new(Published::new(workers));
        let asked_for_room: Arc<[AtomicBool]> = (0..workers).map(|_| AtomicBool::new(false)).collect();
        let (total, roster) = (Arc::new(Total::new()), Arc::<Roster>::default());
        let arrivals = Arc::<Arrivals>::default();
        let pairs = outgoing.into_iter().zip(incoming).enumerate();
        let one = |(me, (out, inward)): (usize, (Vec<_>, Vec<_>))| Homes {
            me: me as u16,
            steering: steering.clone(),
            posts: out
                .into_iter()
                .zip(inward)
                .map(|(out, incoming)| {
                    let (Some(out), Some(incoming)) = (out, incoming) else { return None };
                    Some(Post { out, waiting: VecDeque::new(), incoming })
                })
                .collect(),
            signposts: HashMap::with_capacity(capacity.min(1 << 20)),
            most_signposts: 2 * capacity,
            abroad: HashMap::with_capacity(capacity.min(1 << 18)),
            serial: me as u32,
            published: published.clone(),
            published_counts: (0, 0),
            total: total.clone(),
            roster: roster.clone(),
            asked_for_room: asked_for_room.clone(),
            strict: false,
            arrival: Sent::Here,
            by_port: true,
            arrivals: arrivals.clone(),
            to_look_at: if matches!(**steering, Steering::Nic(_)) { Arrivals::LOOKED_AT } else { 0 },
        };
        pairs.map(one).collect()
    }

    /// What the others expect.
    pub(super) fn others(&self) -> Others {
        Others { me: self.me, published: self.published.clone() }
    }

    /// The worker.
    pub(super) fn me(&self) -> u16 {
        self.me
    }

    /// Whether packets come home by a NIC's hash.
    pub(super) fn steers_by_nic(&self) -> bool {
        matches!(*self.steering, Steering::Nic(_))
    }

    /// The home of a tuple.
    #[inline]
    pub(super) fn home(&self, tuple: &Tuple) -> u16 {
        let Tuple { src, dst, sport, dport, proto, family, .. } = *tuple;
        self.steering.home(&Flow { src, dst, sport, dport, proto, family })
    }

    /// Whom a packet with this tuple goes to first though its connection is here, so that all of its flow take the same way: where
    /// packets come from any queue, to its home.
    #[inline]
    pub(super) fn detour(&self, tuple: &Tuple) -> Option<u16> {
        if !self.by_port || !matches!(*self.steering, Steering::Software(_)) {
            return None;
        }
        let home = self.home(tuple);
        (home != self.me).then_some(home)
    }

    /// Whether the home of a tuple is another worker.
    #[inline]
    pub(super) fn is_foreign(&self, tuple: &Tuple) -> bool {
        self.home(tuple) != self.me
    }

    /// Whether candidates of other homes count as taken, for now.
    pub(super) fn is_strict(&self) -> bool {
        self.strict
    }

    pub(super) fn set_strict(&mut self, strict: bool) {
        self.strict = strict;
    }

    pub(super) fn set_arrival(&mut self, arrival: Sent, by_port: bool) {
        (self.arrival, self.by_port) = (arrival, by_port);
    }

    pub(super) fn is_by_signpost(&self) -> bool {
        matches!(self.arrival, Sent::ToOwner(_))
    }

    /// What is seen of whether packets arrive at their homes; of all workers.
    pub fn arrivals(&self) -> Arc<Arrivals> {
        self.arrivals.clone()
    }

    #[cold]
    fn look_at_arrival(&mut self, at_home: bool) {
        self.to_look_at -= 1;
        let counter = if at_home { &self.arrivals.at_home } else { &self.arrivals.astray };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Whom a packet with this tuple, of no connection in the own table, is to be given to. `None`: it is ours.
    pub(super) fn elsewhere(&mut self, tuple: &Tuple, expected: &Expectations) -> Option<(u16, Sent)> {
        let key = key(tuple);
        match self.arrival {
            Sent::Here => {
                let home = self.home(tuple);
                if self.to_look_at > 0 && self.by_port {
                    self.look_at_arrival(home == self.me);
                }
                if home != self.me {
                    return Some((home, Sent::Here));
                }
                self.read_letters();
                // What is of no connection may still be about one: the router's answer to it is translated as that says.
                let known = self.signposts.get(&key).or_else(|| self.signposts.get(&self::key(&tuple.inverse()?)));
                if let Some(Signpost { owner, serial }) = known {
                    return Some((*owner, Sent::ToOwner(*serial)));
                }
                let owner = self.expected_by(tuple)?;
                let serial = self.post(tuple, owner)?;
                Some((owner, Sent::ToOwner(serial)))
            }
            Sent::ToOwner(serial) => {
                let about = tuple.inverse().is_some_and(|back| self.abroad.contains_key(&self::key(&back)));
                let ours = self.abroad.contains_key(&key)
                    || about
                    || expected.iter().any(|one| is_met_by(&one.tuple, one.mask, tuple))
                    || !self.is_foreign(tuple);
                (!ours).then(|| (self.home(tuple), Sent::Back(serial)))
            }
            Sent::Back(serial) => {
                self.read_letters();
                match self.signposts.get(&key) {
                    Some(post) if post.serial == serial => {
                        self.signposts.remove(&key);
                        None
                    }
                    // There is a newer connection; each such turn needs one more.
                    Some(Signpost { owner, serial }) => Some((*owner, Sent::ToOwner(*serial))),
                    None => None,
                }
            }
        }
    }

    /// Whether another worker has a connection with this tuple, whose home is here.
    #[inline]
    pub(super) fn is_posted(&self, tuple: &Tuple) -> bool {
        !self.signposts.is_empty() && self.signposts.contains_key(&key(tuple))
    }

    /// Sets up a signpost here. `None`: there is no room.
    pub(super) fn post(&mut self, tuple: &Tuple, owner: u16) -> Option<u32> {
        if self.signposts.len() >= self.most_signposts {
            return None;
        }
        let serial = self.next_serial();
        self.signposts.insert(key(tuple), Signpost { owner, serial });
        Some(serial)
    }

    /// A number that no other worker gives.
    pub(super) fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(u32::from(self.steering.workers()));
        self.serial
    }

    /// Takes a signpost away that was set up for a packet which did not get there.
    pub(super) fn unpost(&mut self, tuple: &Tuple, serial: u32) {
        if self.signposts.get(&key(tuple)).is_some_and(|post| post.serial == serial) {
            self.signposts.remove(&key(tuple));
        }
    }

    /// One more connection is to be, of at most `max` of all workers; `false`: there are as many. What then has no place in the
    /// own table is given back by [`Homes::release`], and what has one ends with [`Homes::end`].
    pub(super) fn reserve(&self, max: usize) -> bool {
        schedule::point();
        self.total.reserve(max)
    }

    /// One more is to be in the place of one in the own table that goes.
    pub(super) fn hold(&self) {
        self.total.hold();
    }

    /// A connection that was counted is not to be.
    pub(super) fn release(&self) {
        schedule::point();
        self.total.release();
    }

    /// A connection that was counted is in the own table.
    pub(super) fn begin(&mut self, original: &Tuple, reply: &Tuple) {
        for tuple in [original, reply] {
            let home = self.home(tuple);
            if home != self.me {
                let (tuple, serial) = (key(tuple), self.next_serial());
                self.abroad.insert(tuple, serial);
                self.send(home, Letter::Post { tuple, serial });
            }
        }
    }

    /// A connection has left the own table.
    pub(super) fn end(&mut self, original: &Tuple, reply: &Tuple) {
        self.release();
        if self.abroad.is_empty() {
            return;
        }
        for tuple in [original, reply] {
            if let Some(serial) = self.abroad.remove(&key(tuple)) {
                self.send(self.home(tuple), Letter::Unpost { tuple: key(tuple), serial });
            }
        }
    }

    /// The connection that the packet in hand would have begun here, by a signpost of its home, has not begun.
    pub(super) fn refuse(&mut self, original: &Tuple) {
        if let Sent::ToOwner(serial) = self.arrival
            && self.is_foreign(original)
            && !self.abroad.contains_key(&key(original))
        {
            self.send(self.home(original), Letter::Unpost { tuple: key(original), serial });
        }
    }

    /// Connections of all workers.
    #[inline]
    pub(super) fn total(&self) -> usize {
        schedule::point();
        self.total.get()
    }

    /// Connections that all workers have to know of.
    pub(super) fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Signposts here, and tuples of own connections with a signpost elsewhere.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.signposts.len(), self.abroad.len())
    }

    /// All others are to let a connection go, if they can.
    pub(super) fn ask_for_room(&mut self) {
        schedule::point();
        let others = self.asked_for_room.iter().enumerate().filter(|(at, _)| *at != usize::from(self.me));
        others.for_each(|(_, asked)| asked.store(true, Ordering::Relaxed));
    }

    /// Whether another worker has asked for room since this was last called.
    pub(super) fn is_asked_for_room(&self) -> bool {
        let asked = &self.asked_for_room[usize::from(self.me)];
        schedule::point();
        asked.load(Ordering::Relaxed) && asked.swap(false, Ordering::Relaxed)
    }

    fn send(&mut self, to: u16, letter: Letter) {
        let Some(Some(post)) = self.posts.get_mut(usize::from(to)) else { return };
        schedule::point();
        if !post.waiting.is_empty() {
            post.waiting.push_back(letter);
        } else if let Err(rtrb::PushError::Full(letter)) = post.out.push(letter) {
            post.waiting.push_back(letter);
        }
    }

    /// Sends what found no room before, and reads what has come.
    #[inline]
    pub(super) fn attend(&mut self) {
        for post in self.posts.iter_mut().flatten() {
            while let Some(letter) = post.waiting.pop_front() {
                schedule::point();
                if let Err(rtrb::PushError::Full(letter)) = post.out.push(letter) {
                    post.waiting.push_front(letter);
                    break;
                }
            }
        }
        self.read_letters();
    }

    #[inline]
    fn read_letters(&mut self) {
        for (from, post) in self.posts.iter_mut().enumerate() {
            let Some(post) = post else { continue };
            schedule::point();
            while let Ok(letter) = post.incoming.pop() {
                match letter {
                    Letter::Post { tuple, serial } => {
                        self.signposts.insert(tuple, Signpost { owner: from as u16, serial });
                    }
                    Letter::Unpost { tuple, serial } => {
                        let post = Signpost { owner: from as u16, serial };
                        if self.signposts.get(&tuple) == Some(&post) {
                            self.signposts.remove(&tuple);
                        }
                    }
                }
            }
        }
    }

    /// Publishes what is expected here, if that has changed.
    pub(super) fn publish(&mut self, expectations: &Expectations) {
        let counts = expectations.counts();
        if counts == self.published_counts {
            return;
        }
        self.published_counts = counts;
        let active = expectations.iter().filter(|one| one.flags & Expectation::INACTIVE == 0);
        self.published.publish(usize::from(self.me), active.map(|one| (one.tuple, one.mask)));
    }

    /// Which other worker expects a connection with this original tuple.
    fn expected_by(&self, tuple: &Tuple) -> Option<u16> {
        let met = |(expected, mask): &(Tuple, SourceMask)| is_met_by(expected, *mask, tuple);
        self.published.find(usize::from(self.me), met).map(|owner| owner as u16)
    }
}

/// As [`Expectation::is_met_by`], whatever the zone, and of GRE whatever the source's key.
fn is_met_by(expected: &Tuple, mask: SourceMask, tuple: &Tuple) -> bool {
    let is_gre = tuple.proto == proto::GRE;
    let ports = expected.dport == tuple.dport && (is_gre || (expected.sport ^ tuple.sport) & mask.port == 0);
    (expected.proto, expected.family, expected.dst) == (tuple.proto, tuple.family, tuple.dst)
        && ports
        && expected.src.and(mask.address) == tuple.src.and(mask.address)
}

/// What a signpost is found by: the tuple as any packet shows it, so without zone and without what only a helper knows.
fn key(tuple: &Tuple) -> Tuple {
    match tuple.proto {
        proto::GRE => Tuple { zone: 0, sport: 0, ..*tuple },
        _ => Tuple { zone: 0, ..*tuple },
    }
}
