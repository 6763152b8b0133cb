//! A worker's ways to the others: [`Links`].
//!
//! Between any two workers there are two rings in each direction, of one writer and one reader: one for what is handed over, one
//! for frames that come back. Nothing here waits: what finds a ring full is dropped by whoever hands it over, and counted there.
//!
//! Frames change their worker with the packets in them. Whoever has taken frames over owes as many to the giver, and gives
//! free ones of the same kind back as he has them; so each worker has, in the long run, as many as at the start, whichever way
//! packets go.
//!
//! A worker that sleeps is woken by who hands it something ([`Sleeper`]).

use std::collections::VecDeque;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use rtrb::{Consumer, Producer, PushError, RingBuffer};

use super::sleeper::Sleeper;
use crate::datapath::{Effects, Parcel};
use crate::device::{Frame, FramePool};
use crate::schedule;

/// Frames that are owed before they are given back, where something else is to be done.
const GIVE_BACK: usize = 32;

/// A worker, as far as others may have to wake it.
#[derive(Debug)]
struct Reader {
    sleeper: Sleeper,
    wake: Arc<EventFd>,
}

/// To and from one other worker.
#[derive(Debug)]
struct Link {
    parcels: Producer<Parcel>,
    incoming: Consumer<Parcel>,
    frames: Producer<Frame>,
    returned: Consumer<Frame>,
    /// Frames that it has given and not got back, large ones aside.
    owed: usize,
    /// Large frames that it has given and not got back.
    owed_large: usize,
    /// Frames that found no room in the ring.
    waiting: VecDeque<Frame>,
    reader: Option<Arc<Reader>>,
    /// It has been given something since it was last looked whether it sleeps.
    is_news: bool,
}

impl Link {
    /// Gives back up to `owed` frames, as far as there is room and `take` has any; returns how many.
    fn give_back(&mut self, owed: usize, mut take: impl FnMut() -> Option<Frame>) -> usize {
        let mut given = 0;
        while given < owed
            && self.frames.slots() > 0
            && let Some(frame) = take()
        {
            given += 1;
            if let Err(PushError::Full(frame)) = pushed(&mut self.frames, frame) {
                self.waiting.push_back(frame);
            }
        }
        given
    }
}

/// Puts something into a ring.
fn pushed<T>(ring: &mut Producer<T>, one: T) -> Result<(), PushError<T>> {
    schedule::point();
    ring.push(one)
}

/// See the module's head.
#[derive(Debug)]
pub struct Links {
    /// By worker; none to itself.
    links: Vec<Option<Link>>,
    me: usize,
    own: Option<Arc<Reader>>,
    /// Whom it begins with the next time: nobody is always first.
    turn: usize,
}

/// Entries of a ring for what is handed over, between two of so many workers.
pub const fn ring_for(workers: usize) -> usize {
    let share = 16_384 / if workers == 0 { 1 } else { workers };
    if share > 2048 {
        2048
    } else if share < 256 {
        256
    } else {
        share
    }
}

impl Links {
    /// Between `workers` workers, by number; rings of `ring` entries.
    pub fn between(workers: usize, ring: usize) -> Vec<Links> {
        let mut all: Vec<Links> = (0..workers)
            .map(|me| Links { links: (0..workers).map(|_| None).collect(), me, own: None, turn: 0 })
            .collect();
        for one in 0..workers {
            for other in one + 1..workers {
                let [(give, take), (give_too, take_too)] = [RingBuffer::new(ring), RingBuffer::new(ring)];
                let [(back, got), (back_too, got_too)] = [RingBuffer::new(ring), RingBuffer::new(ring)];
                let link = |parcels, incoming, frames, returned| Link {
                    parcels,
                    incoming,
                    frames,
                    returned,
                    owed: 0,
                    owed_large: 0,
                    waiting: VecDeque::new(),
                    reader: None,
                    is_news: false,
                };
                all[one].links[other] = Some(link(give, take_too, back, got_too));
                all[other].links[one] = Some(link(give_too, take, back_too, got));
            }
        }
        all
    }

    /// Gives each worker what wakes the others; `wakes` are the workers' own, by number.
    pub fn introduce(all: &mut [Links], wakes: Vec<Arc<EventFd>>) {
        let reader = |wake| Arc::new(Reader { sleeper: Sleeper::new(), wake });
        let readers: Vec<Arc<Reader>> = wakes.into_iter().map(reader).collect();
        for links in all {
            links.own = readers.get(links.me).cloned();
            for (link, reader) in links.links.iter_mut().zip(&readers) {
                if let Some(link) = link {
                    link.reader = Some(reader.clone());
                }
            }
        }
    }

    /// Sends what goes to other workers. What finds its ring full is given to `refuse`.
    pub(super) fn send(&mut self, effects: &mut Effects, mut refuse: impl FnMut(Parcel)) {
        for (worker, parcel) in effects.parcels.drain(..) {
            match self.links.get_mut(usize::from(worker)) {
                Some(Some(link)) => match pushed(&mut link.parcels, parcel) {
                    Ok(()) => link.is_news = true,
                    Err(PushError::Full(parcel)) => refuse(parcel),
                },
                _ => refuse(parcel),
            }
        }
    }

    /// Wakes who was given something and sleeps.
    pub(super) fn wake(&mut self) {
        for link in self.links.iter_mut().flatten().filter(|link| link.is_news) {
            link.is_news = false;
            if let Some(reader) = link.reader.as_ref().filter(|reader| reader.sleeper.is_to_be_woken()) {
                // Set already is as good.
                let _ = reader.wake.write(1);
            }
        }
    }

    /// Whether others have given something that is not taken yet.
    pub(super) fn has_news(&self) -> bool {
        schedule::point();
        self.links.iter().flatten().any(|link| !link.incoming.is_empty())
    }

    /// Others are told that this worker sleeps from now on. `false`: it may not, they have given something.
    pub(super) fn fall_asleep(&self) -> bool {
        self.own.as_ref().is_none_or(|own| own.sleeper.fall_asleep(|| self.has_news()))
    }

    pub(super) fn wake_up(&self) {
        if let Some(own) = &self.own {
            own.sleeper.wake_up();
        }
    }

    /// Workers there are.
    pub(super) fn count(&self) -> usize {
        self.links.len()
    }

    /// The next one to be served of `count` in turn, after those served in this burst.
    pub(super) fn next_turn(&mut self) -> usize {
        self.turn = (self.turn + 1) % self.links.len().max(1);
        self.turn
    }

    /// The next that `worker` has given.
    #[inline]
    pub(super) fn take(&mut self, worker: usize) -> Option<Parcel> {
        let link = self.links.get_mut(worker)?.as_mut()?;
        schedule::point();
        let parcel = link.incoming.pop().ok()?;
        match parcel.frame().is_large() {
            false => link.owed += 1,
            true => link.owed_large += 1,
        }
        Some(parcel)
    }

    /// Takes frames back, and gives back what is owed, as far as the pool has any. `all`: few, too.
    pub(super) fn settle(&mut self, pool: &mut FramePool, all: bool) {
        let least = if all { 1 } else { GIVE_BACK };
        for link in self.links.iter_mut().flatten() {
            schedule::point();
            while let Ok(frame) = link.returned.pop() {
                pool.put(frame);
            }
            while let Some(frame) = link.waiting.pop_front() {
                if let Err(PushError::Full(frame)) = pushed(&mut link.frames, frame) {
                    link.waiting.push_front(frame);
                    break;
                }
            }
            if link.owed >= least {
                link.owed -= link.give_back(link.owed, || pool.take());
            }
            if link.owed_large >= least {
                link.owed_large -= link.give_back(link.owed_large, || pool.take_large());
            }
        }
    }

    /// Frames in the rings that lead here, and on their way back; for tests that count frames.
    pub fn frames(&self) -> usize {
        let of = |link: &Link| link.incoming.slots() + link.returned.slots() + link.waiting.len();
        self.links.iter().flatten().map(of).sum()
    }
}
