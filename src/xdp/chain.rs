//! Packets in several frames of the umem (XDP multi-buffer): [`Chain`] puts one together in a large frame, [`scatter`] takes
//! one apart.
//!
//! The kernel marks the descriptors of all frames of a packet but the last (`XDP_PKT_CONTD`). A chain is read as it comes, which
//! may be in several turns of `receive`: what there is of it stays in the queue's [`Chain`]. Each of its frames goes back to
//! the pool as soon as it is copied. A packet that finds no large frame, or is longer than one, is dropped whole and counted.

use super::LAYER2;
use super::umem::HEADROOM;
use crate::device::{Frame, FramePool};

/// Most descriptors of a packet that the kernel sends in copy mode: `MAX_SKB_FRAGS` pages. (Most drivers' packets have a head
/// besides, for one more.)
pub(super) const PARTS_MAX: usize = 17;

/// Bytes at the end of a frame that the kernel keeps for itself in zero-copy mode, where packets may take several
/// (`xsk_pool_get_tailroom`).
const TAILROOM: u32 = 320;

/// Frames of `frame_size` bytes that the longest packet at an MTU of `mtu` takes when it is received, as
/// `xsk_pool_get_rx_frame_size` has it.
pub fn frames_needed(mtu: u32, frame_size: u32, zero_copy: bool) -> u32 {
    let room = frame_size - HEADROOM as u32;
    let (length, room) = (mtu + LAYER2, if zero_copy { (room - TAILROOM) & !127 } else { room });
    length.div_ceil(room)
}

/// The packet that a queue is receiving.
#[derive(Debug, Default)]
pub(super) struct Chain {
    state: State,
    /// Packets dropped because no large frame was free.
    pub no_large_frame: u64,
    /// Packets dropped because they are longer than a large frame.
    pub too_long: u64,
}

#[derive(Debug, Default)]
enum State {
    /// The next frame begins a packet.
    #[default]
    Between,
    /// What there is of a packet.
    Inside(Frame),
    /// The rest of a packet that is dropped.
    Dropping,
}

impl Chain {
    /// Takes the next frame received; `more`: its packet goes on in the one after it. Returns the packet when this was its last
    /// frame: the frame itself when it was also its first.
    pub(super) fn take(&mut self, part: Frame, more: bool, pool: &mut FramePool) -> Option<Frame> {
        let whole = match std::mem::take(&mut self.state) {
            State::Between if !more => return Some(part),
            State::Between => {
                let large = pool.take_large();
                self.no_large_frame += u64::from(large.is_none());
                large.map(|mut large| {
                    large.set_len(0);
                    large
                })
            }
            State::Inside(large) => Some(large),
            State::Dropping => None,
        };
        let whole = whole.and_then(|large| self.append(large, &part, pool));
        pool.put(part);
        match whole {
            Some(large) if more => self.state = State::Inside(large),
            None if more => self.state = State::Dropping,
            whole => return whole,
        }
        None
    }

    fn append(&mut self, mut large: Frame, part: &Frame, pool: &mut FramePool) -> Option<Frame> {
        let (from, to) = (large.len(), large.len() + part.len());
        if to > large.capacity() {
            self.too_long += 1;
            pool.put(large);
            return None;
        }
        large.set_len(to);
        large.bytes_mut()[from..].copy_from_slice(part.bytes());
        Some(large)
    }

    /// Whether it holds a large frame.
    pub(super) fn holds(&self) -> bool {
        matches!(self.state, State::Inside(_))
    }
}

/// Copies `packet` to frames of the pool, each filled before the next, and appends them to `parts`. Whether the pool had enough;
/// if not, it has them back.
pub(super) fn scatter(packet: &[u8], pool: &mut FramePool, parts: &mut Vec<Frame>) -> bool {
    let before = parts.len();
    let mut rest = packet;
    while !rest.is_empty() || parts.len() == before {
        let Some(mut part) = pool.take() else {
            parts.drain(before..).for_each(|part| pool.put(part));
            return false;
        };
        let (now, later) = rest.split_at(rest.len().min(part.capacity()));
        part.fill(now);
        parts.push(part);
        rest = later;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PART: usize = 100;
    const LARGE: usize = 1000;

    fn pool(parts: usize, large: usize) -> FramePool {
        let mut pool = FramePool::in_memory(parts, PART);
        pool.add_large(large, LARGE, 0);
        pool
    }

    fn packet(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n % 251) as u8).collect()
    }

    /// Sends `packet` through a chain, in frames as full as can be. What comes out, and goes back to the pool.
    fn through(chain: &mut Chain, packet: &[u8], pool: &mut FramePool) -> Option<(Vec<u8>, bool)> {
        let mut parts = Vec::new();
        assert!(scatter(packet, pool, &mut parts), "the test's pool is large enough");
        let last = parts.len() - 1;
        let mut out = None;
        for (at, part) in parts.into_iter().enumerate() {
            assert!(out.is_none(), "a packet ends with its last frame");
            out = chain.take(part, at < last, pool);
        }
        out.map(|frame| {
            let got = (frame.bytes().to_vec(), frame.is_large());
            pool.put(frame);
            got
        })
    }

    proptest! {
        #[test]
        fn what_is_taken_apart_comes_together_again(lengths in proptest::collection::vec(0..=LARGE, 1..20)) {
            let (mut pool, mut chain) = (pool(12, 2), Chain::default());
            for length in lengths {
                let got = through(&mut chain, &packet(length), &mut pool);
                prop_assert_eq!(got, Some((packet(length), length > PART)));
                prop_assert_eq!((pool.len(), pool.large(), chain.holds()), (12, 2, false));
            }
            prop_assert_eq!((chain.no_large_frame, chain.too_long), (0, 0));
        }
    }

    /// What the two copies of a packet of 9014 bytes cost, from frames that were just written and to frames taken in turn from so
    /// many: the figures in docs/NIC.md.
    #[test]
    #[ignore = "a measurement"]
    fn what_a_long_packet_costs() {
        const BATCH: usize = 21;
        for frames in [256, 6144] {
            let mut pool = FramePool::in_memory(frames, 3840);
            pool.add_large(1024, 9280, 0);
            let mut turn: std::collections::VecDeque<Frame> = std::iter::from_fn(|| pool.take()).collect();
            let (mut chain, mut best) = (Chain::default(), [u128::MAX; 2]);
            for _ in 0..400 {
                turn.drain(..3 * BATCH).for_each(|frame| pool.put(frame));
                let mut parts = Vec::new();
                (0..BATCH).for_each(|_| assert!(scatter(&packet(9014), &mut pool, &mut parts)));
                let (mut received, start) = (Vec::with_capacity(BATCH), std::time::Instant::now());
                for (at, part) in parts.drain(..).enumerate() {
                    received.extend(chain.take(part, at % 3 < 2, &mut pool));
                }
                best[0] = best[0].min(start.elapsed().as_nanos() / BATCH as u128);
                turn.extend(std::iter::from_fn(|| pool.take()));
                turn.drain(..3 * BATCH).for_each(|frame| pool.put(frame));
                let start = std::time::Instant::now();
                for large in received {
                    assert!(scatter(large.bytes(), &mut pool, &mut parts));
                    pool.put(large);
                }
                best[1] = best[1].min(start.elapsed().as_nanos() / BATCH as u128);
                turn.extend(parts);
            }
            eprintln!("{frames} frames: together {} ns, apart {} ns", best[0], best[1]);
        }
    }

    #[test]
    fn long_packets_take_so_many_frames() {
        let needed =
            |mtu| (frames_needed(mtu, 4096, false), frames_needed(mtu, 4096, true), frames_needed(mtu, 2048, false));
        assert_eq!(needed(1500), (1, 1, 1));
        assert_eq!(needed(3814), (1, 2, 3));
        assert_eq!(needed(3815), (2, 2, 3));
        assert_eq!(needed(9000), (3, 3, 6));
        assert_eq!(needed(65_535), (18, 19, 37));
    }

    #[test]
    fn frames_are_filled_one_after_the_other() {
        for (length, expected) in [(0, vec![0]), (100, vec![100]), (101, vec![100, 1]), (350, vec![100, 100, 100, 50])]
        {
            let (mut pool, mut parts) = (pool(4, 0), Vec::new());
            assert!(scatter(&packet(length), &mut pool, &mut parts));
            assert_eq!(parts.iter().map(Frame::len).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_pool_with_too_few_frames_keeps_them() {
        let mut pool = pool(3, 0);
        let mut parts = vec![pool.take().expect("three")];
        assert!(!scatter(&packet(201), &mut pool, &mut parts));
        assert_eq!((parts.len(), pool.len()), (1, 2));
        assert!(scatter(&packet(200), &mut pool, &mut parts));
        assert_eq!((parts.len(), pool.len()), (3, 0));
    }

    #[test]
    fn what_finds_no_large_frame_or_is_longer_is_dropped_whole() {
        let (mut pool, mut chain) = (pool(20, 1), Chain::default());
        assert_eq!(through(&mut chain, &packet(LARGE + 1), &mut pool), None);
        assert_eq!((pool.len(), pool.large(), chain.too_long), (20, 1, 1));
        let taken = pool.take_large().expect("one");
        assert_eq!(through(&mut chain, &packet(300), &mut pool), None);
        assert_eq!((pool.len(), chain.no_large_frame, chain.holds()), (20, 1, false));
        // Short ones go on, and long ones as soon as there is a frame again.
        assert_eq!(through(&mut chain, &packet(80), &mut pool), Some((packet(80), false)));
        pool.put(taken);
        assert_eq!(through(&mut chain, &packet(300), &mut pool), Some((packet(300), true)));
        assert_eq!((pool.len(), pool.large(), chain.no_large_frame, chain.too_long), (20, 1, 1, 1));
    }

    #[test]
    fn what_there_is_of_a_packet_is_kept_for_the_next_turn() {
        let (mut pool, mut parts, mut chain) = (pool(10, 1), Vec::new(), Chain::default());
        assert!(scatter(&packet(250), &mut pool, &mut parts));
        let mut parts = parts.into_iter();
        let mut next = |more, pool: &mut FramePool| chain.take(parts.next().expect("three"), more, pool);
        assert!(next(true, &mut pool).is_none() && next(true, &mut pool).is_none());
        assert_eq!((pool.len(), pool.large()), (9, 0), "its frames are free, the large one is not");
        let whole = next(false, &mut pool).expect("the last");
        assert_eq!(whole.bytes(), packet(250));
        assert!(!chain.holds());
    }

    #[test]
    fn a_large_frame_that_was_shortened_is_sent_in_one() {
        let (mut pool, mut parts) = (pool(2, 1), Vec::new());
        let mut large = pool.take_large().expect("one");
        large.fill(&packet(60));
        assert!(scatter(large.bytes(), &mut pool, &mut parts));
        assert_eq!((parts.len(), parts[0].bytes().to_vec()), (1, packet(60)));
    }
}
