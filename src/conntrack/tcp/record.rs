//! What TCP remembers of a connection: [`Tcp`], laid out for work, and [`TcpRecord`], as the table keeps it.
//!
//! A segment's `Tcp` is loaded from [`Conn`] and `TcpRecord`, judged and changed, and stored again. Together the two
//! records have no bit to spare: whoever adds a field finds a place for it in both directions, and a debug build checks
//! with every segment that nothing was lost.

use super::super::conn::Conn;
use super::super::tuple::Direction;
use super::{Class, TcpState};

/// Bits of [`Tcp::flags`] (`IP_CT_TCP_FLAG_*`), one byte per direction, and of [`Tcp::last_flags`].
pub(super) mod flag {
    /// This side offered window scaling.
    pub(in super::super) const WINDOW_SCALE: u8 = 0x01;
    /// This side offered SACK.
    pub(in super::super) const SACK_PERM: u8 = 0x02;
    /// This side sent the first FIN.
    pub(in super::super) const CLOSE_INIT: u8 = 0x04;
    /// Out-of-window segments of this side are taken as they are.
    pub(in super::super) const BE_LIBERAL: u8 = 0x08;
    /// This side has sent data that the other has not acknowledged.
    pub(in super::super) const DATA_UNACK: u8 = 0x10;
    /// `maxack` of this side means something.
    pub(in super::super) const MAXACK_SET: u8 = 0x20;
    /// What a SYN offers.
    pub(in super::super) const OFFERED: u8 = WINDOW_SCALE | SACK_PERM;
    /// `last_flags`: a SYN was let through in LAST_ACK; a challenge ACK may answer it (RFC 5961).
    pub(in super::super) const EXPECT_CHALLENGE: u8 = 0x40;
    /// `last_flags`: both sides sent a SYN.
    pub(in super::super) const SIMULTANEOUS_OPEN: u8 = 0x80;
}

/// Window scaling beyond this is taken as this (RFC 7323 section 2.3).
pub(super) const WSCALE_MAX: u8 = 14;

/// What is remembered of a TCP connection, laid out for work; [`TcpRecord`] is how it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tcp {
    /// Highest sequence number sent, plus one.
    pub(super) end: [u32; 2],
    /// Highest sequence number the other side has allowed, plus one.
    pub(super) maxend: [u32; 2],
    /// Largest window offered; 0: nothing seen of this side yet.
    pub(super) maxwin: [u32; 2],
    /// Highest acknowledgement sent.
    pub(super) maxack: [u32; 2],
    pub(super) last_seq: u32,
    pub(super) last_ack: u32,
    pub(super) last_end: u32,
    pub(super) last_win: u16,
    pub(super) scale: [u8; 2],
    pub(super) flags: [u8; 2],
    pub(super) last_flags: u8,
    pub(super) last_wscale: u8,
    pub(super) last_class: Class,
    pub(super) last_dir: Direction,
    /// Repetitions of the last pure segment.
    pub(super) retrans: u8,
    pub(super) state: TcpState,
}

impl Tcp {
    pub(super) const BLANK: Tcp = Tcp {
        end: [0; 2],
        maxend: [0; 2],
        maxwin: [0; 2],
        maxack: [0; 2],
        last_seq: 0,
        last_ack: 0,
        last_end: 0,
        last_win: 0,
        scale: [0; 2],
        flags: [0; 2],
        last_flags: 0,
        last_wscale: 0,
        last_class: Class::Unset,
        last_dir: Direction::Original,
        retrans: 0,
        state: TcpState::None,
    };

    /// Of a connection in the table.
    #[inline]
    pub(super) fn load(conn: &Conn, record: &TcpRecord) -> Tcp {
        let bits = |at: u32, count: u32| (record.bits >> at & ((1 << count) - 1)) as u8;
        let last_flags = bits(20, 4);
        Tcp {
            end: record.end,
            maxend: record.maxend,
            maxwin: record.maxwin,
            maxack: conn.words,
            last_seq: record.last_seq,
            last_ack: record.last_ack,
            last_end: record.last_seq.wrapping_add(u32::from(record.last_length)),
            last_win: record.last_win,
            scale: [bits(0, 4), bits(4, 4)],
            flags: [bits(8, 6), bits(14, 6)],
            last_flags: last_flags & flag::OFFERED | (last_flags & !flag::OFFERED) << 4,
            last_wscale: bits(24, 4),
            last_class: Class::ALL[usize::from(bits(28, 3))],
            last_dir: if bits(31, 1) == 0 { Direction::Original } else { Direction::Reply },
            retrans: conn.extra,
            state: TcpState::of(conn),
        }
    }

    /// The reverse of [`Tcp::load`].
    #[inline]
    pub(super) fn store(&self, conn: &mut Conn, record: &mut TcpRecord) {
        conn.words = self.maxack;
        conn.extra = self.retrans;
        conn.state = self.state as u8;
        let last_flags = self.last_flags & flag::OFFERED | self.last_flags >> 4 & !flag::OFFERED;
        let parts = [
            (0, self.scale[0]),
            (4, self.scale[1]),
            (8, self.flags[0]),
            (14, self.flags[1]),
            (20, last_flags),
            (24, self.last_wscale),
            (28, self.last_class as u8),
            (31, self.last_dir as u8),
        ];
        *record = TcpRecord {
            end: self.end,
            maxend: self.maxend,
            maxwin: self.maxwin,
            last_seq: self.last_seq,
            last_ack: self.last_ack,
            last_length: self.last_end.wrapping_sub(self.last_seq) as u16,
            last_win: self.last_win,
            bits: parts.into_iter().fold(0, |bits, (at, part)| bits | u32::from(part) << at),
        };
        debug_assert_eq!(Tcp::load(conn, record), *self, "a field has outgrown its place");
    }
}

/// [`Tcp`] as the table keeps it, 40 bytes; state, repetitions and `maxack` are in [`Conn`]. `last_end` and `last_seq` are
/// always of one segment, so their distance is kept. The small fields share `bits`; [`Tcp::load`] says where each is.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(in super::super) struct TcpRecord {
    end: [u32; 2],
    maxend: [u32; 2],
    maxwin: [u32; 2],
    last_seq: u32,
    last_ack: u32,
    last_length: u16,
    last_win: u16,
    bits: u32,
}

impl TcpRecord {
    /// Of no connection.
    pub(in super::super) const BLANK: TcpRecord = TcpRecord {
        end: [0; 2],
        maxend: [0; 2],
        maxwin: [0; 2],
        last_seq: 0,
        last_ack: 0,
        last_length: 0,
        last_win: 0,
        bits: 0,
    };

    /// One that tells its number.
    #[cfg(test)]
    pub(in super::super) fn numbered(number: u32) -> TcpRecord {
        TcpRecord { end: [number; 2], bits: number, ..TcpRecord::BLANK }
    }

    /// Whether a new connection's first sequence number is beyond all that the initiator of `old` had sent
    /// (`nf_seq_has_advanced`).
    pub(in super::super) fn has_advanced(&self, old: &TcpRecord) -> bool {
        self.end[0].wrapping_sub(old.end[0]).cast_signed() > 0
    }

    /// Its first and its last word: they may be in different cache lines.
    #[inline]
    pub(in super::super) fn ends(&self) -> [&u32; 2] {
        [&self.end[0], &self.bits]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::conn::Prepared;
    use proptest::prelude::*;

    fn remembered() -> impl Strategy<Value = Tcp> {
        let windows: [_; 4] = [(); 4].map(|()| any::<[u32; 2]>());
        let last = (any::<u32>(), any::<u32>(), any::<u16>(), any::<u16>(), 0usize..7, any::<bool>());
        let small = (0..=WSCALE_MAX, 0..=WSCALE_MAX, 0..=WSCALE_MAX, 0u8..64, 0u8..64, 0u8..16);
        (windows, last, small, any::<u8>(), 0usize..10).prop_map(|(windows, last, small, retrans, state)| {
            let [end, maxend, maxwin, maxack] = windows;
            let (last_seq, last_ack, length, last_win, class, back) = last;
            let (scale, reply_scale, last_wscale, flags, reply_flags, last_flags) = small;
            Tcp {
                end,
                maxend,
                maxwin,
                maxack,
                last_seq,
                last_ack,
                last_end: last_seq.wrapping_add(u32::from(length)),
                last_win,
                scale: [scale, reply_scale],
                flags: [flags, reply_flags],
                last_flags: last_flags & flag::OFFERED | (last_flags & !flag::OFFERED) << 4,
                last_wscale,
                last_class: Class::ALL[class],
                last_dir: if back { Direction::Reply } else { Direction::Original },
                retrans,
                state: TcpState::ALL[state],
            }
        })
    }

    proptest! {
        #[test]
        fn nothing_is_lost_in_the_record(tcp in remembered()) {
            let mut new = Prepared::new(Default::default());
            tcp.store(&mut new.conn, &mut new.tcp);
            prop_assert_eq!(Tcp::load(&new.conn, &new.tcp), tcp);
        }
    }
}
