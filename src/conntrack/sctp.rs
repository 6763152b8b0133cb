//! SCTP (nf_conntrack_proto_sctp.c): the state table of both directions, verification tags, heartbeats of secondary
//! paths, and the CRC32c. Exact; associations of several addresses are, as in Linux, one connection per address pair.

use super::conn::Conn;
use super::list::StateView;
use super::settings::Settings;
use super::tracker::Outcome;
use super::tuple::{CtStatus, Direction};
use crate::packet::{L4, Packet};
use crate::wire;
use crate::wire::sctp::{self, CHECKSUM_AT, HEADER_LEN};

/// `enum sctp_conntrack`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum SctpState {
    None = 0,
    Closed = 1,
    CookieWait = 2,
    CookieEchoed = 3,
    Established = 4,
    ShutdownSent = 5,
    ShutdownRecd = 6,
    ShutdownAckSent = 7,
    HeartbeatSent = 8,
}

impl SctpState {
    const ALL: [SctpState; 9] = [
        SctpState::None,
        SctpState::Closed,
        SctpState::CookieWait,
        SctpState::CookieEchoed,
        SctpState::Established,
        SctpState::ShutdownSent,
        SctpState::ShutdownRecd,
        SctpState::ShutdownAckSent,
        SctpState::HeartbeatSent,
    ];

    /// The state of an SCTP connection.
    pub(super) fn of(conn: &Conn) -> SctpState {
        SctpState::ALL[usize::from(conn.state)]
    }

    /// Before both sides have agreed to talk.
    pub(super) fn is_opening(self) -> bool {
        matches!(self, SctpState::Closed | SctpState::CookieWait | SctpState::CookieEchoed)
    }

    /// From the first SHUTDOWN on (`sctp_can_early_drop`).
    pub(super) fn is_closing(self) -> bool {
        matches!(self, SctpState::ShutdownSent | SctpState::ShutdownRecd | SctpState::ShutdownAckSent)
    }

    /// The state as listed.
    pub(super) fn view(self) -> StateView {
        match self {
            SctpState::None => StateView::None,
            SctpState::Closed => StateView::Closed,
            SctpState::CookieWait => StateView::CookieWait,
            SctpState::CookieEchoed => StateView::CookieEchoed,
            SctpState::Established => StateView::Established,
            SctpState::ShutdownSent => StateView::ShutdownSent,
            SctpState::ShutdownRecd => StateView::ShutdownRecd,
            SctpState::ShutdownAckSent => StateView::ShutdownAckSent,
            SctpState::HeartbeatSent => StateView::HeartbeatSent,
        }
    }

    /// How long an association lives in this state.
    pub(super) fn timeout(self, settings: &Settings) -> u32 {
        match self {
            SctpState::None | SctpState::Closed => settings.sctp_timeout_closed,
            SctpState::CookieWait => settings.sctp_timeout_cookie_wait,
            SctpState::CookieEchoed => settings.sctp_timeout_cookie_echoed,
            SctpState::Established => settings.sctp_timeout_established,
            SctpState::ShutdownSent => settings.sctp_timeout_shutdown_sent,
            SctpState::ShutdownRecd => settings.sctp_timeout_shutdown_recd,
            SctpState::ShutdownAckSent => settings.sctp_timeout_shutdown_ack_sent,
            SctpState::HeartbeatSent => settings.sctp_timeout_heartbeat_sent,
        }
    }
}

/// Chunk types (RFC 9260 section 3.2).
mod chunk {
    pub(super) const DATA: u8 = 0;
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const HEARTBEAT: u8 = 4;
    pub(super) const HEARTBEAT_ACK: u8 = 5;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN: u8 = 7;
    pub(super) const SHUTDOWN_ACK: u8 = 8;
    pub(super) const ERROR: u8 = 9;
    pub(super) const COOKIE_ECHO: u8 = 10;
    pub(super) const COOKIE_ACK: u8 = 11;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
    /// Flag of ABORT and SHUTDOWN COMPLETE: the tag is the sender's own.
    pub(super) const FLAG_T: u8 = 1;
}

/// `sctp_conntracks`: new state by direction, row and old state; `None` is INVALID.
#[rustfmt::skip]
const STATES: [[[Option<SctpState>; 9]; 11]; 2] = {
    const CL: Option<SctpState> = Some(SctpState::Closed);
    const CW: Option<SctpState> = Some(SctpState::CookieWait);
    const CE: Option<SctpState> = Some(SctpState::CookieEchoed);
    const ES: Option<SctpState> = Some(SctpState::Established);
    const SS: Option<SctpState> = Some(SctpState::ShutdownSent);
    const SR: Option<SctpState> = Some(SctpState::ShutdownRecd);
    const SA: Option<SctpState> = Some(SctpState::ShutdownAckSent);
    const HS: Option<SctpState> = Some(SctpState::HeartbeatSent);
    const IV: Option<SctpState> = None;
    [
        [ // original direction
            //                   NO  CL  CW  CE  ES  SS  SR  SA  HS
            /*INIT             */[CL, CL, CW, CE, ES, CL, CL, SA, CW],
            /*INIT ACK         */[CL, CL, CW, CE, ES, SS, SR, SA, CL],
            /*ABORT            */[CL, CL, CL, CL, CL, CL, CL, CL, CL],
            /*SHUTDOWN         */[CL, CL, CW, CE, SS, SS, SR, SA, CL],
            /*SHUTDOWN ACK     */[SA, CL, CW, CE, ES, SA, SA, SA, SA],
            /*ERROR            */[CL, CL, CW, CE, ES, SS, SR, SA, CL],
            /*COOKIE ECHO      */[CL, CL, CE, CE, ES, SS, SR, SA, CL],
            /*COOKIE ACK       */[CL, CL, CW, ES, ES, SS, SR, SA, CL],
            /*SHUTDOWN COMPLETE*/[CL, CL, CW, CE, ES, SS, SR, CL, CL],
            /*HEARTBEAT        */[HS, CL, CW, CE, ES, SS, SR, SA, HS],
            /*HEARTBEAT ACK    */[CL, CL, CW, CE, ES, SS, SR, SA, HS],
        ],
        [ // reply direction
            //                   NO  CL  CW  CE  ES  SS  SR  SA  HS
            /*INIT             */[IV, CL, CW, CE, ES, SS, SR, SA, IV],
            /*INIT ACK         */[IV, CW, CW, CE, ES, SS, SR, SA, IV],
            /*ABORT            */[IV, CL, CL, CL, CL, CL, CL, CL, IV],
            /*SHUTDOWN         */[IV, CL, CW, CE, SR, SS, SR, SA, IV],
            /*SHUTDOWN ACK     */[IV, CL, CW, CE, ES, SA, SA, SA, IV],
            /*ERROR            */[IV, CL, CW, CL, ES, SS, SR, SA, IV],
            /*COOKIE ECHO      */[IV, CL, CE, CE, ES, SS, SR, SA, IV],
            /*COOKIE ACK       */[IV, CL, CW, ES, ES, SS, SR, SA, IV],
            /*SHUTDOWN COMPLETE*/[IV, CL, CW, CE, ES, SS, SR, CL, IV],
            /*HEARTBEAT        */[IV, CL, CW, CE, ES, SS, SR, SA, HS],
            /*HEARTBEAT ACK    */[IV, CL, CW, CE, ES, SS, SR, SA, ES],
        ],
    ]
};

/// The new state; `None` is INVALID. Chunks that the table does not know (DATA, SACK ...) change nothing.
fn next_state(direction: Direction, old: SctpState, kind: u8) -> Option<SctpState> {
    let row = match kind {
        chunk::INIT => 0,
        chunk::INIT_ACK => 1,
        chunk::ABORT => 2,
        chunk::SHUTDOWN => 3,
        chunk::SHUTDOWN_ACK => 4,
        chunk::ERROR => 5,
        chunk::COOKIE_ECHO => 6,
        chunk::COOKIE_ACK => 7,
        chunk::SHUTDOWN_COMPLETE => 8,
        chunk::HEARTBEAT => 9,
        chunk::HEARTBEAT_ACK => 10,
        _ => return Some(old),
    };
    STATES[direction.index()][row][old as usize]
}

/// What is remembered of an association over one pair of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sctp {
    /// The verification tag that packets of each direction carry; 0: not known yet.
    vtag: [u32; 2],
    /// An INIT of this direction is waiting for its INIT ACK.
    init: [bool; 2],
    /// A heartbeat of `last_dir` had another tag: perhaps the association has moved.
    heartbeat_failed: bool,
    last_dir: Direction,
    state: SctpState,
}

impl Sctp {
    /// Of a connection in the table: the tags are in its `words`, the flags are the bits of `extra`.
    fn load(conn: &Conn) -> Sctp {
        let bit = |at: u8| conn.extra >> at & 1 == 1;
        Sctp {
            vtag: conn.words,
            init: [bit(0), bit(1)],
            heartbeat_failed: bit(2),
            last_dir: if bit(3) { Direction::Reply } else { Direction::Original },
            state: SctpState::of(conn),
        }
    }

    /// The reverse of [`Sctp::load`].
    fn store(&self, conn: &mut Conn) {
        conn.words = self.vtag;
        conn.state = self.state as u8;
        conn.extra = u8::from(self.init[0])
            | u8::from(self.init[1]) << 1
            | u8::from(self.heartbeat_failed) << 2
            | (self.last_dir as u8) << 3;
        debug_assert_eq!(Sctp::load(conn), *self, "a field has outgrown its place");
    }
}

/// Common header length in bytes.
/// Bytes of an INIT or INIT ACK after the chunk header (RFC 9260 section 3.3.2).
const INIT_LEN: usize = 16;

/// A chunk as far as it matters: type, flags, length field, and what follows its header to the packet's end.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    kind: u8,
    flags: u8,
    length: u16,
    rest: &'a [u8],
}

impl Chunk<'_> {
    /// The initiate tag of an INIT or INIT ACK.
    fn init_tag(&self) -> Option<u32> {
        (self.rest.len() >= INIT_LEN).then(|| wire::get_u32(self.rest, 0))
    }
}

/// The chunks of a packet; ends where a chunk header is cut short. A length of 0 would never end: see [`kinds_of`].
fn chunks(sctp: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut bytes = &sctp[HEADER_LEN..];
    core::iter::from_fn(move || {
        let [kind, flags, high, low, rest @ ..] = bytes else { return None };
        let length = u16::from_be_bytes([*high, *low]);
        bytes = bytes.get((usize::from(length) + 3) & !3..).unwrap_or_default();
        Some(Chunk { kind: *kind, flags: *flags, length, rest })
    })
}

/// The set of chunk types in a packet.
#[derive(Clone, Copy, Default)]
struct Kinds([u64; 4]);

impl Kinds {
    fn add(&mut self, kind: u8) {
        self.0[usize::from(kind >> 6)] |= 1 << (kind & 63);
    }

    fn any(&self, kinds: &[u8]) -> bool {
        kinds.iter().any(|kind| self.0[usize::from(kind >> 6)] >> (kind & 63) & 1 == 1)
    }
}

/// Which chunks there are, if they may stand together (`do_basic_checks`).
fn kinds_of(sctp: &[u8]) -> Option<Kinds> {
    let mut kinds = Kinds::default();
    let mut must_be_alone = false;
    let mut count = 0;
    for chunk in chunks(sctp) {
        must_be_alone |= matches!(chunk.kind, chunk::INIT | chunk::INIT_ACK | chunk::SHUTDOWN_COMPLETE);
        let must_be_first = matches!(chunk.kind, chunk::COOKIE_ACK | chunk::COOKIE_ECHO);
        if count > 0 && (must_be_alone || must_be_first) || chunk.length == 0 {
            return None;
        }
        kinds.add(chunk.kind);
        count += 1;
    }
    (count > 0).then_some(kinds)
}

/// An SCTP packet of `conn`, which may be new (`nf_conntrack_sctp_packet`).
pub(super) fn packet(
    conn: &mut Conn,
    direction: Direction,
    packet: &Packet,
    frame: &[u8],
    settings: &Settings,
) -> Outcome {
    let sctp = packet.l4_bytes(frame);
    let crc_is_right = || sctp[CHECKSUM_AT..HEADER_LEN] == sctp::checksum(sctp);
    if packet.l4 == L4::Malformed || sctp.len() < HEADER_LEN || settings.checksum && !crc_is_right() {
        return Outcome::Invalid;
    }
    let Some(kinds) = kinds_of(sctp) else { return Outcome::Invalid };
    let confirmed = conn.is_confirmed();
    if !confirmed && kinds.any(&[chunk::ABORT, chunk::SHUTDOWN_COMPLETE, chunk::COOKIE_ACK]) {
        return Outcome::Invalid;
    }
    let track = if confirmed { Some(Sctp::load(conn)) } else { begin(sctp) };
    let Some(mut track) = track else { return Outcome::Invalid };
    let outcome = judge(&mut track, conn, direction, sctp, kinds, settings);
    track.store(conn);
    outcome
}

/// What the packet means, and what is to be remembered of it.
fn judge(
    track: &mut Sctp,
    conn: &mut Conn,
    direction: Direction,
    sctp: &[u8],
    kinds: Kinds,
    settings: &Settings,
) -> Outcome {
    let confirmed = conn.is_confirmed();
    const TAG_OF_THEIR_OWN: [u8; 7] = [
        chunk::INIT,
        chunk::SHUTDOWN_COMPLETE,
        chunk::COOKIE_ECHO,
        chunk::ABORT,
        chunk::SHUTDOWN_ACK,
        chunk::HEARTBEAT,
        chunk::HEARTBEAT_ACK,
    ];
    let vtag = wire::get_u32(sctp, 4);
    if !kinds.any(&TAG_OF_THEIR_OWN) && vtag != track.vtag[direction.index()] {
        return Outcome::Invalid;
    }
    let mut refresh = true;
    for chunk in chunks(sctp) {
        match tag_is_right(track, direction, vtag, &chunk, kinds, refresh) {
            Tag::Right => {}
            Tag::Tolerated => {
                refresh = false;
                continue;
            }
            Tag::Wrong => return Outcome::Invalid,
        }
        let old = track.state;
        let Some(new) = next_state(direction, old, chunk.kind) else { return Outcome::Invalid };
        if !note_init(track, direction, &chunk) {
            return Outcome::Invalid;
        }
        let repeated = chunk.kind == chunk::INIT && old == SctpState::Closed && new == SctpState::Closed;
        refresh &= !(repeated && confirmed); // or a client could hold the entry for ever
        track.state = new;
        if old != new && new == SctpState::Established {
            conn.status = conn.status.with(CtStatus::ASSURED);
        }
    }
    match refresh {
        true => Outcome::Refresh(track.state.timeout(settings)),
        false => Outcome::Accept,
    }
}

/// The first packet (`sctp_new`).
fn begin(sctp: &[u8]) -> Option<Sctp> {
    let vtag = wire::get_u32(sctp, 4);
    let mut track = Sctp {
        vtag: [0; 2],
        init: [false; 2],
        heartbeat_failed: false,
        last_dir: Direction::Original,
        state: SctpState::None,
    };
    for chunk in chunks(sctp) {
        match next_state(Direction::Original, SctpState::None, chunk.kind)? {
            SctpState::None => return None,
            _ => match chunk.kind {
                chunk::INIT => track.vtag[Direction::Reply.index()] = chunk.init_tag()?,
                chunk::HEARTBEAT => track.vtag[Direction::Original.index()] = vtag,
                // Out of the blue; its answer, SHUTDOWN COMPLETE, will carry the same tag (section 8.4).
                chunk::SHUTDOWN_ACK => track.vtag[Direction::Reply.index()] = vtag,
                _ => {}
            },
        }
    }
    Some(track)
}

enum Tag {
    Right,
    /// A heartbeat of a path that may have moved: passed on, proves nothing.
    Tolerated,
    Wrong,
}

/// RFC 9260 section 8.5.1, and what a heartbeat tells of its path.
fn tag_is_right(
    track: &mut Sctp,
    direction: Direction,
    vtag: u32,
    chunk: &Chunk<'_>,
    kinds: Kinds,
    refresh: bool,
) -> Tag {
    let (mine, peers) = (direction.index(), direction.other().index());
    let right = match chunk.kind {
        chunk::INIT => vtag == 0,
        chunk::ABORT | chunk::SHUTDOWN_COMPLETE if chunk.flags & chunk::FLAG_T != 0 => vtag == track.vtag[peers],
        chunk::ABORT | chunk::SHUTDOWN_COMPLETE | chunk::COOKIE_ECHO => vtag == track.vtag[mine],
        chunk::COOKIE_ACK => {
            track.init = [false; 2];
            true
        }
        chunk::HEARTBEAT | chunk::HEARTBEAT_ACK if track.vtag[mine] == 0 => {
            track.vtag[mine] = vtag;
            true
        }
        chunk::HEARTBEAT | chunk::HEARTBEAT_ACK if track.vtag[mine] == vtag => {
            track.heartbeat_failed = false;
            true
        }
        chunk::HEARTBEAT => {
            if kinds.any(&[chunk::DATA]) || !refresh {
                return Tag::Wrong;
            }
            track.heartbeat_failed = true;
            track.last_dir = direction;
            return Tag::Tolerated;
        }
        chunk::HEARTBEAT_ACK => {
            let answers = track.heartbeat_failed && track.last_dir != direction;
            if kinds.any(&[chunk::DATA]) || !refresh || !answers {
                return Tag::Wrong;
            }
            track.heartbeat_failed = false;
            track.vtag[mine] = vtag;
            track.vtag[peers] = 0;
            true
        }
        _ => true,
    };
    if right { Tag::Right } else { Tag::Wrong }
}

/// Learns the tag that an INIT or INIT ACK asks the other side to use. False when it may not.
fn note_init(track: &mut Sctp, direction: Direction, chunk: &Chunk<'_>) -> bool {
    let (mine, peers) = (direction.index(), direction.other().index());
    match chunk.kind {
        chunk::INIT => {
            let Some(tag) = chunk.init_tag() else { return false };
            // An INIT with the tag that is known already is stale, or someone else's: it says nothing new.
            if track.state == SctpState::None || tag != track.vtag[peers] {
                if track.init == [true; 2] {
                    track.init[peers] = false;
                }
                track.init[mine] = true;
                track.vtag[peers] = tag;
            }
        }
        chunk::INIT_ACK => {
            let Some(tag) = chunk.init_tag() else { return false };
            let known = track.vtag[peers];
            if !track.init[peers] && known != 0 && known != tag {
                return false;
            }
            if track.init == [true; 2] && known != tag {
                return false; // both sides sent an INIT
            }
            track.vtag[peers] = tag;
        }
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::conn::Prepared;
    use super::*;

    #[test]
    fn nothing_is_lost_in_the_record() {
        for (number, state) in SctpState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
            for bits in 0..16u8 {
                let bit = |at: u8| bits >> at & 1 == 1;
                let last_dir = if bit(3) { Direction::Reply } else { Direction::Original };
                let sctp = Sctp { vtag: [7, !7], init: [bit(0), bit(1)], heartbeat_failed: bit(2), last_dir, state };
                let mut conn = Prepared::new(Default::default()).conn;
                sctp.store(&mut conn);
                assert_eq!(Sctp::load(&conn), sctp);
            }
        }
    }
}
