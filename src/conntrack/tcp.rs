//! TCP: the state table of both directions, window tracking, RST rules and timeouts (nf_conntrack_proto_tcp.c).
//!
//! [`packet`] is told of each segment of a connection and says what it means: refresh with a timeout, accept without a
//! trace ("ignored": the segment is ESTABLISHED but proves nothing), INVALID, forget the connection, or begin it anew.
//! Sequence numbers are compared in serial arithmetic (RFC 1982). Per-direction fields are arrays indexed by direction:
//! `sender` is the direction of the segment, `receiver` the other.

mod record;

pub(super) use record::TcpRecord;
use record::{Tcp, WSCALE_MAX, flag};

use super::conn::Conn;
use super::list::StateView;
use super::seqadj::SeqAdjust;
use super::settings::Settings;
use super::tracker::Outcome;
use super::tuple::{CtStatus, Direction};
use super::udp::packet_is_sound;
use crate::packet::Packet;
use crate::time::{Instant, SECOND_NS};
use crate::wire::tcp as header;
use crate::wire::{get_u32, proto, tcp};

/// `enum tcp_conntrack`, with Linux's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum TcpState {
    /// Before the first segment.
    None = 0,
    /// SYN seen.
    SynSent = 1,
    /// SYN/ACK seen.
    SynRecv = 2,
    /// Open.
    Established = 3,
    /// FIN seen.
    FinWait = 4,
    /// FIN acknowledged.
    CloseWait = 5,
    /// FIN of the other side seen too.
    LastAck = 6,
    /// Both acknowledged.
    TimeWait = 7,
    /// RST seen.
    Close = 8,
    /// SYN of both sides seen.
    SynSent2 = 9,
}

impl TcpState {
    const ALL: [TcpState; 10] = [
        TcpState::None,
        TcpState::SynSent,
        TcpState::SynRecv,
        TcpState::Established,
        TcpState::FinWait,
        TcpState::CloseWait,
        TcpState::LastAck,
        TcpState::TimeWait,
        TcpState::Close,
        TcpState::SynSent2,
    ];

    /// The state of a TCP connection.
    #[inline]
    pub(super) fn of(conn: &Conn) -> TcpState {
        TcpState::ALL[usize::from(conn.state)]
    }

    /// Before both sides have agreed to talk.
    pub(super) fn is_opening(self) -> bool {
        matches!(self, TcpState::SynSent | TcpState::SynRecv | TcpState::SynSent2)
    }

    /// From the first FIN or RST on (`tcp_can_early_drop`).
    pub(super) fn is_closing(self) -> bool {
        matches!(
            self,
            TcpState::FinWait | TcpState::CloseWait | TcpState::LastAck | TcpState::TimeWait | TcpState::Close
        )
    }

    /// Nothing more will come, but for what is on the way; and Linux's numbers beyond that.
    pub(super) fn is_over(self) -> bool {
        matches!(self, TcpState::TimeWait | TcpState::Close | TcpState::SynSent2)
    }

    /// The state as listed.
    pub(super) fn view(self) -> StateView {
        match self {
            TcpState::None => StateView::None,
            TcpState::SynSent => StateView::SynSent,
            TcpState::SynRecv => StateView::SynRecv,
            TcpState::Established => StateView::Established,
            TcpState::FinWait => StateView::FinWait,
            TcpState::CloseWait => StateView::CloseWait,
            TcpState::LastAck => StateView::LastAck,
            TcpState::TimeWait => StateView::TimeWait,
            TcpState::Close => StateView::Close,
            TcpState::SynSent2 => StateView::SynSent2,
        }
    }
}

/// What a segment is to the state table, by its flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Class {
    Syn = 0,
    SynAck = 1,
    Fin = 2,
    Ack = 3,
    Rst = 4,
    None = 5,
    /// No segment has been remembered yet.
    Unset = 6,
}

impl Class {
    const ALL: [Class; 7] = [Class::Syn, Class::SynAck, Class::Fin, Class::Ack, Class::Rst, Class::None, Class::Unset];

    /// `get_conntrack_index`.
    #[inline]
    fn of(flags: u8) -> Class {
        match flags {
            flags if flags & tcp::RST != 0 => Class::Rst,
            flags if flags & tcp::SYN != 0 && flags & tcp::ACK != 0 => Class::SynAck,
            flags if flags & tcp::SYN != 0 => Class::Syn,
            flags if flags & tcp::FIN != 0 => Class::Fin,
            flags if flags & tcp::ACK != 0 => Class::Ack,
            _ => Class::None,
        }
    }
}

/// One cell of the state table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cell {
    To(TcpState),
    /// Not understood, but not wrong either: passed on and remembered.
    Ignore,
    Invalid,
}

/// `tcp_conntracks`: new state by direction, class and old state.
#[rustfmt::skip]
const STATES: [[[Cell; 10]; 6]; 2] = {
    const SS: Cell = Cell::To(TcpState::SynSent);
    const SR: Cell = Cell::To(TcpState::SynRecv);
    const ES: Cell = Cell::To(TcpState::Established);
    const FW: Cell = Cell::To(TcpState::FinWait);
    const CW: Cell = Cell::To(TcpState::CloseWait);
    const LA: Cell = Cell::To(TcpState::LastAck);
    const TW: Cell = Cell::To(TcpState::TimeWait);
    const CL: Cell = Cell::To(TcpState::Close);
    const S2: Cell = Cell::To(TcpState::SynSent2);
    const IG: Cell = Cell::Ignore;
    const IV: Cell = Cell::Invalid;
    [
        [ // original direction
            //        NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
            /*syn   */[SS, SS, IG, IG, IG, IG, IG, SS, SS, S2],
            /*synack*/[IV, IV, SR, IV, IV, IV, IV, IV, IV, SR],
            /*fin   */[IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
            /*ack   */[ES, IV, ES, ES, CW, CW, TW, TW, CL, IV],
            /*rst   */[IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
            /*none  */[IV, IV, IV, IV, IV, IV, IV, IV, IV, IV],
        ],
        [ // reply direction
            //        NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
            /*syn   */[IV, S2, IV, IV, IV, IV, IV, SS, IV, S2],
            /*synack*/[IV, SR, IG, IG, IG, IG, IG, IG, IG, SR],
            /*fin   */[IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
            /*ack   */[IV, IG, SR, ES, CW, CW, TW, TW, CL, IG],
            /*rst   */[IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
            /*none  */[IV, IV, IV, IV, IV, IV, IV, IV, IV, IV],
        ],
    ]
};

/// An acknowledgement may be this far behind at least (`MAXACKWINCONST`).
const ACK_WINDOW_MIN: u32 = 66_000;

/// The segment at hand.
struct Segment<'a> {
    class: Class,
    flags: u8,
    seq: u32,
    ack: u32,
    /// Sequence number after the last byte, SYN and FIN counted.
    end: u32,
    window: u16,
    options: &'a [u8],
    /// What its acknowledgements are off by, against the sequence numbers its sender's peer has sent.
    back: u32,
}

impl<'a> Segment<'a> {
    fn of(packet: &Packet, frame: &'a [u8]) -> Segment<'a> {
        let flags = packet.tcp_flags;
        let length =
            u32::from(packet.tcp_payload_len()) + u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
        let tcp = packet.l4_bytes(frame);
        Segment {
            class: Class::of(flags),
            flags,
            seq: packet.seq,
            ack: packet.ack,
            end: packet.seq.wrapping_add(length),
            window: packet.window,
            options: &tcp[header::HEADER_LEN..usize::from(packet.tcp_header_len)],
            back: 0,
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// `a < b` in serial arithmetic.
#[inline]
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// `a > b` in serial arithmetic.
#[inline]
fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// The flag combinations a TCP may send (`tcp_valid_flags`); PSH, ECE and CWR do not matter.
#[inline]
fn flags_are_legal(flags: u8) -> bool {
    const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
    const SYN_URG: u8 = tcp::SYN | tcp::URG;
    const RST_ACK: u8 = tcp::RST | tcp::ACK;
    const FIN_ACK_URG: u8 = FIN_ACK | tcp::URG;
    const ACK_URG: u8 = tcp::ACK | tcp::URG;
    matches!(
        flags & !(tcp::PSH | tcp::ECE | tcp::CWR),
        tcp::SYN | SYN_URG | SYN_ACK | tcp::RST | RST_ACK | FIN_ACK | FIN_ACK_URG | tcp::ACK | ACK_URG
    )
}

/// A segment of `conn`, which may be new (`nf_conntrack_tcp_packet`).
pub(super) fn packet(
    conn: &mut Conn,
    record: &mut TcpRecord,
    direction: Direction,
    packet: &Packet,
    frame: &[u8],
    (settings, adjust): (&Settings, Option<&SeqAdjust>),
    now: Instant,
) -> Outcome {
    if !packet_is_sound(packet, settings) || !flags_are_legal(packet.tcp_flags) {
        return Outcome::Invalid;
    }
    let mut segment = Segment::of(packet, frame);
    if let Some(adjust) = adjust {
        segment.back = adjust.offset(direction.other(), segment.ack.wrapping_sub(1)) as u32;
    }
    let tcp = match conn.is_confirmed() {
        true => Some(Tcp::load(conn, record)),
        false => begin(&segment, settings),
    };
    let Some(mut tcp) = tcp else { return Outcome::Invalid };
    let outcome = judge(&mut tcp, conn, direction, &segment, settings, now);
    tcp.store(conn, record);
    outcome
}

/// What the segment means, and what is to be remembered of it.
fn judge(
    tcp: &mut Tcp,
    conn: &mut Conn,
    direction: Direction,
    segment: &Segment<'_>,
    settings: &Settings,
    now: Instant,
) -> Outcome {
    let Conn { status, flags, expires, .. } = conn;
    let fixed = *flags & Conn::FIXED_TIMEOUT != 0;

    let step = match transition(tcp, *status, direction, segment, settings) {
        Ok(step) => step,
        Err(outcome) => return outcome,
    };
    if step.check_window {
        match in_window(tcp, step.old, direction, segment, settings) {
            Window::In => {}
            Window::Ignore => return Outcome::Accept,
            Window::Invalid => {
                if status.any(CtStatus::ASSURED) && !fixed {
                    remember_invalid(tcp, direction, segment.class, expires, settings, now);
                }
                return Outcome::Invalid;
            }
        }
    }
    tcp.last_class = segment.class;
    tcp.last_dir = direction;
    tcp.state = step.new;
    if step.old != step.new && step.new == TcpState::FinWait {
        tcp.flags[direction.index()] |= flag::CLOSE_INIT;
    }
    let mut timeout = choose_timeout(tcp, segment, settings);
    if !status.any(CtStatus::SEEN_REPLY) {
        if segment.has(tcp::RST) {
            return Outcome::Forget;
        }
        if segment.class == Class::Syn && step.old == TcpState::SynSent {
            return Outcome::Accept; // or a client could hold the entry for ever
        }
        if step.new == TcpState::Established {
            timeout = timeout.min(settings.tcp_timeout_unacknowledged);
        }
    } else if matches!(step.old, TcpState::SynRecv | TcpState::Established) && step.new == TcpState::Established {
        *status = status.with(CtStatus::ASSURED);
    }
    Outcome::Refresh(timeout)
}

/// A REJECT with tcp-reset has ended the connection (`nf_ct_set_closing`).
pub(super) fn close(conn: &mut Conn, settings: &Settings, now: Instant) {
    if conn.proto != proto::TCP {
        return;
    }
    let was = TcpState::of(conn);
    conn.state = TcpState::Close as u8;
    if was != TcpState::Close && conn.flags & Conn::FIXED_TIMEOUT == 0 {
        conn.expires = now + u64::from(settings.tcp_timeout_close) * SECOND_NS;
    }
}

/// The first segment of a connection (`tcp_new`): a SYN, or an ACK of one whose beginning was not seen.
fn begin(segment: &Segment<'_>, settings: &Settings) -> Option<Tcp> {
    let mut tcp = Tcp::BLANK;
    let sender = Direction::Original.index();
    tcp.end[sender] = segment.end;
    tcp.maxwin[sender] = u32::from(segment.window).max(1);
    match STATES[sender][segment.class as usize][TcpState::None as usize] {
        Cell::To(TcpState::SynSent) => {
            tcp.maxend[sender] = segment.end;
            read_options(&mut tcp, sender, segment.options);
        }
        Cell::To(_) if settings.tcp_loose => {
            tcp.maxend[sender] = segment.end.wrapping_add(tcp.maxwin[sender]);
            // Scaling was agreed on unseen, so the windows are not to be trusted.
            tcp.flags = [flag::SACK_PERM | flag::BE_LIBERAL; 2];
        }
        _ => return None,
    }
    Some(tcp)
}

/// Where a segment leads, if its window allows.
struct Step {
    old: TcpState,
    new: TcpState,
    check_window: bool,
}

impl Step {
    fn checked(old: TcpState, new: TcpState) -> Step {
        Step { old, new, check_window: true }
    }
}

/// The table and its exceptions. `Err` when the segment's outcome is settled without regard to its window.
fn transition(
    tcp: &mut Tcp,
    status: CtStatus,
    direction: Direction,
    segment: &Segment<'_>,
    settings: &Settings,
) -> Result<Step, Outcome> {
    let old = tcp.state;
    let cell = STATES[direction.index()][segment.class as usize][old as usize];
    match cell {
        Cell::Invalid => Err(Outcome::Invalid),
        Cell::Ignore => ignore(tcp, direction, segment),
        Cell::To(TcpState::SynSent) if old >= TcpState::TimeWait => {
            let closing = (tcp.flags[0] | tcp.flags[1]) & flag::CLOSE_INIT != 0;
            if closing || tcp.last_dir == direction && tcp.last_class == Class::Rst {
                return Err(Outcome::Reopen);
            }
            ignore(tcp, direction, segment)
        }
        Cell::To(TcpState::TimeWait) if is_challenge_ack(tcp, direction, segment) => {
            tcp.last_flags &= !flag::EXPECT_CHALLENGE;
            Err(Outcome::Accept)
        }
        Cell::To(TcpState::SynSent2) => {
            tcp.last_flags |= flag::SIMULTANEOUS_OPEN;
            Ok(Step::checked(old, TcpState::SynSent2))
        }
        Cell::To(TcpState::SynRecv) => {
            let both_open = direction == Direction::Reply
                && segment.class == Class::Ack
                && tcp.last_flags & flag::SIMULTANEOUS_OPEN != 0;
            Ok(Step::checked(old, if both_open { TcpState::Established } else { TcpState::SynRecv }))
        }
        Cell::To(TcpState::Close) if segment.class == Class::Rst => {
            reset(tcp, status, direction, segment, settings).ok_or(Outcome::Invalid)
        }
        Cell::To(new) => Ok(Step::checked(old, new)),
    }
}

/// An ACK in LAST_ACK that answers a SYN we let through, not the FIN.
fn is_challenge_ack(tcp: &Tcp, direction: Direction, segment: &Segment<'_>) -> bool {
    tcp.state == TcpState::LastAck
        && segment.class == Class::Ack
        && tcp.last_dir != direction
        && tcp.last_class == Class::Syn
        && tcp.last_flags & flag::EXPECT_CHALLENGE != 0
}

/// A segment the table has no word for: passed on and remembered, since the answer to it may tell that both ends agree
/// and we are the one who is out of step.
fn ignore(tcp: &mut Tcp, direction: Direction, segment: &Segment<'_>) -> Result<Step, Outcome> {
    let answers_ignored_syn = segment.class == Class::SynAck
        && tcp.last_class == Class::Syn
        && tcp.last_dir != direction
        && segment.ack == tcp.last_end;
    if answers_ignored_syn {
        let (client, server) = (tcp.last_dir.index(), direction.index());
        tcp.end[client] = tcp.last_end;
        tcp.maxend[client] = tcp.last_end;
        tcp.maxwin[client] = u32::from(tcp.last_win).max(1);
        tcp.scale[client] = tcp.last_wscale;
        tcp.last_flags &= !flag::EXPECT_CHALLENGE;
        tcp.flags[client] = tcp.last_flags & flag::OFFERED;
        tcp.end[server] = 0;
        tcp.maxend[server] = 0;
        tcp.maxwin[server] = 0;
        tcp.maxack[server] = 0;
        tcp.scale[server] = 0;
        tcp.flags[server] &= flag::BE_LIBERAL;
        return Ok(Step::checked(TcpState::SynSent, TcpState::SynRecv));
    }
    tcp.last_class = segment.class;
    tcp.last_dir = direction;
    tcp.last_seq = segment.seq;
    tcp.last_end = segment.end;
    tcp.last_win = segment.window;
    if segment.class == Class::Syn && direction == Direction::Original {
        let mut offer = Tcp::BLANK;
        read_options(&mut offer, 0, segment.options);
        tcp.last_flags = offer.flags[0];
        tcp.last_wscale = offer.scale[0];
        if tcp.state == TcpState::LastAck {
            tcp.last_flags |= flag::EXPECT_CHALLENGE;
        }
    }
    if tcp.state == TcpState::SynSent && segment.class == Class::Ack && direction == Direction::Reply {
        tcp.last_ack = segment.ack;
    }
    Err(Outcome::Accept)
}

/// An RST (the CLOSE branch of `nf_conntrack_tcp_packet`; RFC 5961 section 3). `None` when it is INVALID.
fn reset(
    tcp: &Tcp,
    status: CtStatus,
    direction: Direction,
    segment: &Segment<'_>,
    settings: &Settings,
) -> Option<Step> {
    let old = tcp.state;
    let unchecked = Step { old, new: TcpState::Close, check_window: false };
    if matches!(old, TcpState::FinWait | TcpState::CloseWait | TcpState::LastAck | TcpState::TimeWait | TcpState::Close)
    {
        return Some(unchecked); // the ports may be in use again; what is remembered is out of date
    }
    let mut new = TcpState::Close;
    let receiver = direction.other().index();
    if tcp.flags[receiver] & flag::MAXACK_SET != 0 && tcp.last_class != Class::Syn {
        let expected = tcp.maxack[receiver];
        let open = old == TcpState::Established && status.any(CtStatus::ASSURED);
        if segment.seq == 0 && !open {
            return Some(Step::checked(old, new));
        }
        if before(segment.seq, expected) && !settings.tcp_ignore_invalid_rst {
            return None;
        }
        let behind_last_segment =
            tcp.last_class == Class::Ack && tcp.last_dir == direction && segment.seq == tcp.last_end;
        if !open || segment.seq == expected || behind_last_segment {
            return Some(Step::checked(old, new));
        }
        new = old; // the peer will ask again with a challenge ACK
    }
    let answers_ignored_syn =
        status.any(CtStatus::SEEN_REPLY) && tcp.last_class == Class::Syn && tcp.last_dir != direction;
    let answers_ignored_ack = !status.any(CtStatus::ASSURED) && tcp.last_class == Class::Ack;
    if (answers_ignored_syn || answers_ignored_ack) && segment.ack == tcp.last_end {
        return Some(Step { new, ..unchecked });
    }
    let answers_challenge = old == TcpState::SynSent
        && tcp.last_class == Class::Ack
        && tcp.last_dir == Direction::Reply
        && segment.seq == tcp.last_ack;
    Some(Step { old, new, check_window: !answers_challenge })
}

enum Window {
    In,
    Ignore,
    Invalid,
}

/// `tcp_in_window`: compares the segment with what both sides may send, and learns from it if it fits.
fn in_window(tcp: &mut Tcp, old: TcpState, direction: Direction, segment: &Segment<'_>, settings: &Settings) -> Window {
    let (s, r) = (direction.index(), direction.other().index());
    let (mut seq, mut end, mut ack, mut window) = (segment.seq, segment.end, segment.ack, u32::from(segment.window));
    let mut sack = ack;
    if tcp.flags[r] & flag::SACK_PERM != 0 {
        sack = right_edge(segment.options, ack);
    }
    // One offset for both, that of the acknowledgement: a SACK beyond a change in length is off then, as in Linux.
    ack = ack.wrapping_sub(segment.back);
    sack = sack.wrapping_sub(segment.back);

    if tcp.maxwin[s] == 0 {
        if segment.has(tcp::SYN) {
            begin_side(tcp, direction, segment);
            if !segment.has(tcp::ACK) {
                return Window::In; // simultaneous open
            }
        } else {
            tcp.end[s] = end;
            tcp.maxwin[s] = (window << tcp.scale[s]).max(1);
            tcp.maxend[s] = end.wrapping_add(tcp.maxwin[s]);
            if tcp.maxwin[r] == 0 {
                tcp.end[r] = sack;
                tcp.maxend[r] = sack;
            } else if sack == tcp.end[r].wrapping_add(1) {
                tcp.end[r] = tcp.end[r].wrapping_add(1); // the answer to a keep-alive
            }
        }
    } else if segment.has(tcp::SYN) && after(end, tcp.end[s]) && matches!(old, TcpState::SynSent | TcpState::SynRecv) {
        begin_side(tcp, direction, segment); // sent again, with another initial sequence number
        if direction == Direction::Reply && !segment.has(tcp::ACK) {
            return Window::In;
        }
    }

    if !segment.has(tcp::ACK) || segment.has(tcp::RST) && ack == 0 {
        ack = tcp.end[r];
        sack = ack;
    }
    if segment.has(tcp::RST) && seq == 0 && old == TcpState::SynSent {
        seq = tcp.end[s];
        end = seq;
    }

    match fits(tcp, s, r, seq, end, sack) {
        Window::In => {}
        _ if settings.tcp_be_liberal || tcp.flags[s] & flag::BE_LIBERAL != 0 => return Window::In,
        other => return other,
    }

    if !segment.has(tcp::SYN) {
        window <<= tcp.scale[s];
    }
    learn(tcp, (s, r), segment, end, (ack, sack), window);
    if segment.class == Class::Ack {
        count_repetitions(tcp, direction, segment, (seq, ack, end));
    }
    Window::In
}

/// The four bounds of "Real Stateful TCP Packet Filtering in IP Filter" (van Rooij), as Linux has them.
fn fits(tcp: &mut Tcp, s: usize, r: usize, seq: u32, end: u32, sack: u32) -> Window {
    let ack_window = tcp.maxwin[s].max(ACK_WINDOW_MIN);
    let ack_is_recent = after(sack, tcp.end[r].wrapping_sub(ack_window).wrapping_sub(1));
    let above_lower = after(end, tcp.end[s].wrapping_sub(tcp.maxwin[r]).wrapping_sub(1));
    let acks_seen_data = before(sack, tcp.end[r].wrapping_add(1));
    if !before(seq, tcp.maxend[s].wrapping_add(1)) {
        let overshoot = end.wrapping_sub(tcp.maxend[s]).wrapping_add(1);
        let tolerable =
            tcp.maxwin[r] != 0 && above_lower && ack_is_recent && overshoot <= tcp.maxwin[r] && acks_seen_data;
        if !tolerable {
            return Window::Invalid;
        }
        tcp.end[s] = end;
        tcp.flags[s] |= flag::DATA_UNACK;
        return Window::Ignore;
    }
    if !acks_seen_data {
        return Window::Invalid;
    }
    if tcp.maxwin[r] != 0 && !above_lower || !ack_is_recent {
        return Window::Ignore;
    }
    Window::In
}

/// What an in-window segment tells of both sides.
fn learn(tcp: &mut Tcp, (s, r): (usize, usize), segment: &Segment<'_>, end: u32, (ack, sack): (u32, u32), window: u32) {
    tcp.maxwin[s] = tcp.maxwin[s].max(window.wrapping_add(sack.wrapping_sub(ack)));
    if after(end, tcp.end[s]) {
        tcp.end[s] = end;
        tcp.flags[s] |= flag::DATA_UNACK;
    }
    if segment.has(tcp::ACK) {
        if tcp.flags[s] & flag::MAXACK_SET == 0 {
            tcp.maxack[s] = ack;
            tcp.flags[s] |= flag::MAXACK_SET;
        } else if after(ack, tcp.maxack[s]) {
            tcp.maxack[s] = ack;
        }
    }
    if tcp.maxwin[r] != 0 && after(end, tcp.maxend[s]) {
        tcp.maxwin[r] = tcp.maxwin[r].wrapping_add(end.wrapping_sub(tcp.maxend[s]));
    }
    let allowed = sack.wrapping_add(window);
    if after(allowed, tcp.maxend[r].wrapping_sub(1)) {
        tcp.maxend[r] = allowed.wrapping_add(u32::from(window == 0));
    }
    if ack == tcp.end[r] {
        tcp.flags[r] &= !flag::DATA_UNACK;
    }
}

fn count_repetitions(tcp: &mut Tcp, direction: Direction, segment: &Segment<'_>, (seq, ack, end): (u32, u32, u32)) {
    let again = tcp.last_dir == direction
        && tcp.last_seq == seq
        && tcp.last_ack == ack
        && tcp.last_end == end
        && tcp.last_win == segment.window;
    if again {
        tcp.retrans = tcp.retrans.wrapping_add(1);
        return;
    }
    tcp.last_dir = direction;
    tcp.last_seq = seq;
    tcp.last_ack = ack;
    tcp.last_end = end;
    tcp.last_win = segment.window;
    tcp.retrans = 0;
}

/// Begins one side with its SYN or SYN/ACK (`tcp_init_sender`).
fn begin_side(tcp: &mut Tcp, direction: Direction, segment: &Segment<'_>) {
    let s = direction.index();
    tcp.end[s] = segment.end;
    tcp.maxend[s] = segment.end;
    tcp.maxwin[s] = u32::from(segment.window).max(1);
    read_options(tcp, s, segment.options);
    // Scaling holds only if both sides offered it (RFC 7323 section 1.3).
    if direction == Direction::Reply && tcp.flags[0] & tcp.flags[1] & flag::WINDOW_SCALE == 0 {
        tcp.scale = [0; 2];
    }
}

/// The options of a segment as (kind, value); ends at the first that is cut short.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    const END_OF_LIST: u8 = 0;
    const NO_OPERATION: u8 = 1;
    core::iter::from_fn(move || {
        while let [NO_OPERATION, rest @ ..] = bytes {
            bytes = rest;
        }
        let (&kind, &length) = (bytes.first().filter(|&&kind| kind != END_OF_LIST)?, bytes.get(1)?);
        let value = bytes.get(2..usize::from(length))?;
        bytes = &bytes[usize::from(length)..];
        Some((kind, value))
    })
}

/// Takes window scale and SACK permission from a SYN. A SYN without any options changes nothing.
fn read_options(tcp: &mut Tcp, side: usize, bytes: &[u8]) {
    const WINDOW_SCALE: u8 = 3;
    const SACK_PERMITTED: u8 = 4;
    if bytes.is_empty() {
        return;
    }
    tcp.scale[side] = 0;
    tcp.flags[side] &= flag::BE_LIBERAL;
    for (kind, value) in options(bytes) {
        match (kind, value) {
            (WINDOW_SCALE, &[scale]) => {
                tcp.scale[side] = scale.min(WSCALE_MAX);
                tcp.flags[side] |= flag::WINDOW_SCALE;
            }
            (SACK_PERMITTED, &[]) => tcp.flags[side] |= flag::SACK_PERM,
            _ => {}
        }
    }
}

/// The highest right edge of the SACK blocks, if that is beyond `ack` (`tcp_sack`).
fn right_edge(bytes: &[u8], ack: u32) -> u32 {
    const SACK: u8 = 5;
    const BLOCK: usize = 8;
    let blocks = options(bytes).find(|(kind, value)| *kind == SACK && !value.is_empty() && value.len() % BLOCK == 0);
    let Some((_, blocks)) = blocks else { return ack };
    blocks.chunks_exact(BLOCK).map(|block| get_u32(block, 4)).fold(
        ack,
        |high, edge| {
            if after(edge, high) { edge } else { high }
        },
    )
}

/// The timeout after an accepted segment, in seconds: the first rule that applies.
fn choose_timeout(tcp: &Tcp, segment: &Segment<'_>, settings: &Settings) -> u32 {
    let normal = settings.tcp_timeout(tcp.state);
    let unacknowledged = (tcp.flags[0] | tcp.flags[1]) & flag::DATA_UNACK != 0;
    if tcp.retrans >= settings.tcp_max_retrans && normal > settings.tcp_timeout_max_retrans {
        settings.tcp_timeout_max_retrans
    } else if segment.class == Class::Rst {
        settings.tcp_timeout_close
    } else if unacknowledged && normal > settings.tcp_timeout_unacknowledged {
        settings.tcp_timeout_unacknowledged
    } else if tcp.last_win == 0 && normal > settings.tcp_timeout_max_retrans {
        settings.tcp_timeout_max_retrans
    } else {
        normal
    }
}

/// Both ends sent a FIN or RST that we find INVALID: they may know better, so the entry is not kept for days
/// (`nf_tcp_handle_invalid`).
fn remember_invalid(
    tcp: &mut Tcp,
    direction: Direction,
    class: Class,
    expires: &mut Instant,
    settings: &Settings,
    now: Instant,
) {
    const SHORT_NS: u64 = 120 * SECOND_NS;
    if !matches!(class, Class::Rst | Class::Fin) {
        return;
    }
    if tcp.last_dir == direction || !matches!(tcp.last_class, Class::Rst | Class::Fin) {
        tcp.last_class = class;
        tcp.last_dir = direction;
        return;
    }
    let limit = now + u64::from(settings.tcp_timeout_unacknowledged) * SECOND_NS;
    if *expires - now >= SHORT_NS && *expires > limit {
        *expires = limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_classes_are_found_by_their_numbers() {
        for (number, state) in TcpState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
        for (number, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, number);
        }
    }
}
