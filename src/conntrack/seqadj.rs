//! Sequence numbers of a TCP connection whose payload changed its length on the way: [`SeqAdjust`] (nf_conntrack_seqadj.c).
//!
//! Each direction remembers one place in its stream, and by how much numbers before and after it are off. That is one change
//! in a window, which is what a dialogue of commands has; a retransmission before the place gets the numbers it had.

use super::tuple::Direction;
use crate::packet::{L4, Packet};
use crate::wire::{checksum, get_u32, put_u16, put_u32, tcp};

/// What one direction's numbers are off by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Way {
    /// Sequence number, as its sender has it, of the segment that was changed last.
    correction: u32,
    /// Up to there.
    before: i32,
    /// Beyond.
    after: i32,
}

impl Way {
    /// Of a number as the sender has it.
    fn offset(&self, seq: u32) -> i32 {
        if is_after(seq, self.correction) { self.after } else { self.before }
    }

    /// A number of this direction as the receiver has it, back to what the sender has.
    fn back(&self, ack: u32) -> u32 {
        ack.wrapping_sub(self.offset(ack.wrapping_sub(self.before as u32)) as u32)
    }
}

/// `a > b` in serial arithmetic.
fn is_after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SeqAdjust {
    ways: [Way; 2],
}

impl SeqAdjust {
    /// The segment at `seq` became longer by `by` (`nf_ct_seqadj_set`). Of a retransmission that is known already.
    pub fn set(&mut self, direction: Direction, seq: u32, by: i32) {
        let way = &mut self.ways[direction.index()];
        if by != 0 && (way.before == way.after || is_after(seq, way.correction)) {
            *way = Way { correction: seq, before: way.after, after: way.after.wrapping_add(by) };
        }
    }

    /// What numbers of `direction` around `seq` are off by, for window tracking (`nf_ct_seq_offset`): asked with a number of
    /// the receiver's side, as Linux does, though the place is known by the sender's.
    #[inline]
    pub fn offset(&self, direction: Direction, seq: u32) -> i32 {
        self.ways[direction.index()].offset(seq)
    }

    /// Writes the receiver's numbers into a segment (`nf_ct_seq_adjust`), its checksum by difference. `false` when its options
    /// are cut short: then it is to be dropped, as Linux drops it.
    #[must_use]
    pub fn adjust(&self, direction: Direction, packet: &mut Packet, frame: &mut [u8]) -> bool {
        let at = usize::from(packet.l4_at);
        let Some(segment) = frame.get_mut(at..at + usize::from(packet.l4_len)) else { return false };
        let header_len = usize::from(packet.tcp_header_len);
        if header_len < tcp::HEADER_LEN || segment.len() < header_len {
            return false;
        }
        let unfinished = packet.l4 == L4::PartialChecksum;
        let (this, other) = (&self.ways[direction.index()], &self.ways[direction.other().index()]);
        packet.seq = packet.seq.wrapping_add(this.offset(packet.seq) as u32);
        replace(segment, 4, packet.seq, unfinished);
        // Without ACK the number means nothing, and nor do options.
        if packet.tcp_flags & tcp::ACK == 0 {
            return true;
        }
        packet.ack = other.back(packet.ack);
        replace(segment, 8, packet.ack, unfinished);
        adjust_sacks(segment, header_len, other, unfinished)
    }
}

/// The blocks of SACK options (`nf_ct_sack_adjust`). `false` at an option that is cut short.
fn adjust_sacks(segment: &mut [u8], header_len: usize, other: &Way, unfinished: bool) -> bool {
    const END_OF_LIST: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const SACK: u8 = 5;
    const BLOCK: usize = 8;
    let mut at = tcp::HEADER_LEN;
    while at < header_len {
        match segment[at] {
            END_OF_LIST => return true,
            NO_OPERATION => at += 1,
            kind => {
                if at + 1 == header_len {
                    return false;
                }
                let length = usize::from(segment[at + 1]);
                if length < 2 || at + length > header_len {
                    return false;
                }
                if kind == SACK && length >= 2 + BLOCK && (length - 2).is_multiple_of(BLOCK) {
                    for edge in (at + 2..at + length).step_by(4) {
                        replace(segment, edge, other.back(get_u32(segment, edge)), unfinished);
                    }
                }
                at += length;
            }
        }
    }
    true
}

/// Writes a word of the segment and keeps its checksum (`inet_proto_csum_replace4`); one that is not finished yet does not
/// cover it.
fn replace(segment: &mut [u8], at: usize, new: u32, unfinished: bool) {
    let old = get_u32(segment, at);
    put_u32(segment, at, new);
    if old == new || unfinished {
        return;
    }
    // An option may begin at an odd place: then the word's bytes stand in three words of the sum, swapped.
    let swap = |word: u32| if at.is_multiple_of(2) { word } else { word.rotate_left(8) };
    let (old, new) = (swap(old), swap(new));
    let check = crate::wire::get_u16(segment, tcp::CHECKSUM_AT);
    let check = checksum::update(check, (old >> 16) as u16, (new >> 16) as u16);
    put_u16(segment, tcp::CHECKSUM_AT, checksum::update(check, old as u16, new as u16));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::testing::{ANY_HOP, Segment, flags, frame, ip};
    use crate::device::PortId;
    use proptest::prelude::*;

    fn segment(seq: u32, ack: u32, options: Vec<u8>) -> Vec<u8> {
        let segment = Segment { sport: 1, dport: 2, seq, ack, flags: flags("."), window: 9, options, payload: 3 };
        let [src, dst] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().expect("an address"));
        frame(ANY_HOP, &ip(src, dst, 6, &segment.bytes()))
    }

    fn parse(frame: &[u8]) -> Packet {
        Packet::parse(frame, PortId::LAN, true).expect("a good packet")
    }

    /// Sequence and acknowledgement number after adjustment; the checksum is right.
    fn adjusted(adjust: &SeqAdjust, direction: Direction, seq: u32, ack: u32) -> (u32, u32) {
        let mut frame = segment(seq, ack, vec![]);
        let mut packet = parse(&frame);
        assert!(adjust.adjust(direction, &mut packet, &mut frame));
        let after = parse(&frame);
        assert_eq!((after.l4, after.seq, after.ack), (L4::Good, packet.seq, packet.ack));
        (packet.seq, packet.ack)
    }

    #[test]
    fn numbers_after_the_change_are_off_in_both_directions() {
        let mut adjust = SeqAdjust::default();
        adjust.set(Direction::Original, 1000, 2);
        let original = |seq, ack| adjusted(&adjust, Direction::Original, seq, ack);
        let reply = |seq, ack| adjusted(&adjust, Direction::Reply, seq, ack);
        assert_eq!(original(1000, 5), (1000, 5), "the changed segment itself, and sent again");
        assert_eq!(original(1023, 5), (1025, 5));
        assert_eq!(reply(5, 1000), (5, 1000));
        assert_eq!(reply(5, 1025), (5, 1023));
        assert_eq!(reply(5, 1001), (5, 999), "an acknowledgement inside the changed segment");
    }

    #[test]
    fn a_retransmission_changes_nothing_and_a_second_change_adds_up() {
        let mut adjust = SeqAdjust::default();
        adjust.set(Direction::Reply, u32::MAX - 10, 3);
        adjust.set(Direction::Reply, u32::MAX - 10, 3);
        adjust.set(Direction::Reply, u32::MAX - 30, 3);
        assert_eq!((adjust.offset(Direction::Reply, u32::MAX - 10), adjust.offset(Direction::Reply, 20)), (0, 3));
        adjust.set(Direction::Reply, 20, -5);
        assert_eq!((adjust.offset(Direction::Reply, 20), adjust.offset(Direction::Reply, 21)), (3, -2));
        assert_eq!(adjust.offset(Direction::Original, 20), 0);
    }

    #[test]
    fn without_an_acknowledgement_only_the_sequence_number_is_changed() {
        let mut adjust = SeqAdjust::default();
        adjust.set(Direction::Original, 1000, 2);
        adjust.set(Direction::Reply, 10, 5);
        let mut frame = segment(100, 0, vec![8, 10, 0, 0]);
        frame[47] = tcp::RST;
        let mut packet = parse(&frame);
        assert!(adjust.adjust(Direction::Reply, &mut packet, &mut frame), "options are not looked at");
        assert_eq!((packet.seq, packet.ack, frame[42..46].to_vec()), (105, 0, vec![0; 4]));
    }

    #[test]
    fn options_cut_short_end_it() {
        let mut adjust = SeqAdjust::default();
        adjust.set(Direction::Original, 1000, 2);
        for options in [vec![5, 40, 0, 0], vec![1, 1, 1, 8], vec![8, 1, 0, 0]] {
            let mut frame = segment(1, 1, options.clone());
            let mut packet = parse(&frame);
            assert!(!adjust.adjust(Direction::Original, &mut packet, &mut frame), "{options:?}");
        }
    }

    proptest! {
        /// Wherever the SACK option stands, its edges come back and the checksum stays right.
        #[test]
        fn sack_blocks_are_adjusted_and_the_checksum_is_right(
            seq: u32, ack: u32, pad in 0usize..4, edges in proptest::collection::vec(any::<u32>(), 1..4),
            by in -300i32..300, correction: u32,
        ) {
            let mut adjust = SeqAdjust::default();
            adjust.set(Direction::Original, correction, by);
            let mut options = vec![5, (2 + 8 * edges.len()) as u8];
            for edge in &edges {
                options.extend(edge.to_be_bytes());
                options.extend(edge.wrapping_add(100).to_be_bytes());
            }
            options.extend(vec![1; pad]);
            let before = segment(seq, ack, options);
            let mut frame = before.clone();
            let mut packet = parse(&frame);
            prop_assert!(adjust.adjust(Direction::Reply, &mut packet, &mut frame));
            prop_assert_eq!(parse(&frame).l4, L4::Good);
            let at = 54 + (40 - pad - 2 - 8 * edges.len()) % 4;
            let back = |edge: u32| {
                let off = if (correction.wrapping_sub(edge) as i32) < 0 { by } else { 0 };
                edge.wrapping_sub(off as u32)
            };
            for (index, edge) in edges.into_iter().enumerate() {
                let found = [get_u32(&frame, at + 2 + 8 * index), get_u32(&frame, at + 6 + 8 * index)];
                prop_assert_eq!(found, [back(edge), back(edge.wrapping_add(100))]);
            }
        }

        #[test]
        fn random_options_never_panic(options in proptest::collection::vec(any::<u8>(), 0..40), seq: u32, by: i32) {
            let mut adjust = SeqAdjust::default();
            adjust.set(Direction::Original, seq.wrapping_sub(5), by);
            let mut frame = segment(seq, seq, options);
            let mut packet = parse(&frame);
            let _ = adjust.adjust(Direction::Original, &mut packet, &mut frame);
            let _ = adjust.adjust(Direction::Reply, &mut packet, &mut frame);
        }
    }
}
