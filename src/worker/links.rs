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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::Sent;
    use crate::datapath::BATCH;
    use crate::device::PortId;
    use crate::worker::mailbox;

    /// Each of a worker's frames.
    const FRAMES: usize = 16;
    const ROUNDS: u64 = if cfg!(miri) { 60 } else { 200_000 };

    /// Gives numbered packets to the other, as fast as both can, and looks at the other's. What is left in the pool.
    fn exchange(mut links: Links, other: u16) -> (usize, Links) {
        let mut pool = FramePool::in_memory(FRAMES, 64);
        let mut effects = Effects::new(BATCH);
        let (mut next, mut last) = (1, 0);
        for round in 0..ROUNDS {
            for _ in 0..3 {
                let Some(mut frame) = pool.take() else { break };
                frame.fill(&u64::to_be_bytes(next));
                next += 1;
                effects.parcels.push((other, Parcel::Packet { port: PortId::LAN, sent: Sent::Here, frame }));
            }
            links.send(&mut effects, |refused| match refused {
                Parcel::Packet { frame, .. } => pool.put(frame),
                Parcel::Connection(_) => unreachable!("none was given"),
            });
            links.wake();
            while let Some(parcel) = links.take(usize::from(other)) {
                let Parcel::Packet { frame, .. } = parcel else { unreachable!("none was given") };
                let number = u64::from_be_bytes(frame.bytes().try_into().expect("eight bytes"));
                assert!(number > last, "{number} came after {last}");
                last = number;
                pool.put(frame);
            }
            links.settle(&mut pool, round % 2 == 0);
            if links.fall_asleep() {
                std::hint::spin_loop();
            }
            links.wake_up();
        }
        (pool.len(), links)
    }

    /// Two threads with small rings between them: what arrives is whole and in order, and no frame gets lost. Run it under Miri,
    /// too, which knows what the processor might have done (and to which frames in memory are never given back):
    /// `MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-ignore-leaks' cargo +nightly miri test --lib worker::links`.
    #[test]
    fn two_threads_exchange_packets_and_lose_no_frame() {
        let mut all = Links::between(2, 4);
        let ends: Vec<_> = (0..2).map(|_| mailbox().expect("a descriptor")).collect();
        Links::introduce(&mut all, ends.iter().map(|(mailbox, _)| mailbox.waker()).collect());
        let two = all.pop().expect("two workers");
        let one = all.pop().expect("two workers");
        let thread = std::thread::spawn(move || exchange(two, 0));
        let (here, one) = exchange(one, 1);
        let (there, two) = thread.join().expect("no panic");
        assert_eq!(here + there + one.frames() + two.frames(), 2 * FRAMES);
    }
}
