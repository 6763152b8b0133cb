//! PPTP: the GRE tunnel of a call (nf_conntrack_pptp.c, nf_nat_pptp.c; RFC 2637).
//!
//! The client (PNS) calls the server (PAC), or the other way, over the control connection; each side gives the call a number of
//! its own, which stands in the GRE packets sent to it. One call at a time is known for a control connection. Where the client
//! is translated, the server is told the client's port outside instead of its number.

use super::{Call, Memory, Refused};
use crate::conntrack::expect::{Expectation, Follow, SourceMask};
use crate::conntrack::tuple::{Direction, Tuple};
use crate::wire::{get_u16, get_u32, proto};

const CONTROL: u16 = 1;
const MAGIC: u32 = 0x1a2b_3c4d;
/// What comes before the message's own fields.
const HEADER: usize = 12;
/// Where the message's number stands.
const MESSAGE_AT: usize = 8;

const START_SESSION_REQUEST: u16 = 1;
const START_SESSION_REPLY: u16 = 2;
const STOP_SESSION_REQUEST: u16 = 3;
const STOP_SESSION_REPLY: u16 = 4;
const ECHO_REQUEST: u16 = 5;
const ECHO_REPLY: u16 = 6;
const OUT_CALL_REQUEST: u16 = 7;
const OUT_CALL_REPLY: u16 = 8;
const IN_CALL_REQUEST: u16 = 9;
const IN_CALL_REPLY: u16 = 10;
const IN_CALL_CONNECT: u16 = 11;
const CALL_CLEAR_REQUEST: u16 = 12;
const CALL_DISCONNECT_NOTIFY: u16 = 13;
const WAN_ERROR_NOTIFY: u16 = 14;
const SET_LINK_INFO: u16 = 15;

/// By number of the message: bytes of its fields (`pptp_msg_size`).
const SIZES: [usize; 16] = [0, 144, 144, 4, 4, 0, 0, 156, 20, 208, 12, 16, 4, 136, 28, 12];
/// Result codes of all kinds for "yes".
const YES: u8 = 1;

/// `enum pptp_ctrlsess_state`, in its order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug, Default)]
enum Control {
    #[default]
    None,
    Error,
    StopRequested,
    Requested,
    Confirmed,
}

/// `enum pptp_ctrlcall_state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    None,
    OutRequested,
    OutConfirmed,
    InRequested,
    InReplied,
    InConfirmed,
    ClearRequested,
}

/// What is known of a control connection and its call. Call numbers are in host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::conntrack) struct Session {
    control: Control,
    state: State,
    /// The client's number, as the server knows it.
    pns: u16,
    /// The server's number.
    pac: u16,
    /// The client's number as it is inside; and the server's when the call was expected. Of translated connections only.
    inside_pns: u16,
    inside_pac: u16,
}

impl Session {
    /// The tuples of the call's tunnel that end with the control connection (`pptp_destroy_siblings`).
    pub(in crate::conntrack) fn siblings(&self, tuples: &[Tuple; 2]) -> [Tuple; 2] {
        let [original, reply] = *tuples;
        [
            Tuple { proto: proto::GRE, sport: self.pns, dport: self.pac, ..original },
            Tuple { proto: proto::GRE, sport: self.pac, dport: self.pns, ..reply },
        ]
    }

    /// The tuple by which the other direction of the tunnel is expected, which ends when one has begun (`pptp_expectfn`,
    /// `pptp_nat_expected`).
    pub(in crate::conntrack) fn partner(&self, met: &Expectation, tuples: &[Tuple; 2]) -> Option<Tuple> {
        let zone = met.tuple.zone;
        let Some(follow) = met.follow else { return met.tuple.inverse() };
        let other = tuples[follow.direction.other().index()];
        let (sport, dport) = match follow.direction {
            Direction::Original => (self.pac, self.pns),
            // Linux looks for its numbers where those of the new connection would be, which has none: the other stays.
            Direction::Reply => (0, 0),
        };
        Some(Tuple { proto: proto::GRE, sport, dport, zone, ..other })
    }
}

pub(super) fn help(call: &mut Call<'_>) -> Result<(), Refused> {
    if !call.is_established() {
        return Ok(());
    }
    let Memory::Pptp(mut session) = *call.memory else { return Ok(()) };
    let payload = call.payload();
    let Some((header, fields)) = payload.split_at_checked(HEADER) else { return Ok(()) };
    if get_u16(header, 2) != CONTROL || get_u32(header, 4) != MAGIC {
        return Ok(());
    }
    let message = get_u16(header, MESSAGE_AT);
    if SIZES.get(usize::from(message)).is_some_and(|&size| fields.len() < size) {
        return Ok(());
    }
    let mut start = [0; 5];
    let known = fields.len().min(start.len());
    start[..known].copy_from_slice(&fields[..known]);
    let understood = match call.direction() {
        Direction::Original => outbound(&mut session, message, &start),
        Direction::Reply => inbound(call, &mut session, message, &start),
    };
    let rewritten = match understood && call.is_translated() {
        true => translated(call, &mut session, message),
        false => None,
    };
    *call.memory = Memory::Pptp(session);
    match rewritten {
        Some((at, number)) => call.rewrite(HEADER + at, &number.to_be_bytes()),
        None => Ok(()),
    }
}

/// From the client. Whether it makes sense; if not, it is left alone.
fn outbound(session: &mut Session, message: u16, fields: &[u8; 5]) -> bool {
    let (first, second, result) = (get_u16(fields, 0), get_u16(fields, 2), fields[4]);
    match message {
        START_SESSION_REQUEST if session.control == Control::None => session.control = Control::Requested,
        STOP_SESSION_REQUEST => session.control = Control::StopRequested,
        OUT_CALL_REQUEST if session.control == Control::Confirmed => {
            (session.state, session.pns) = (State::OutRequested, first);
        }
        IN_CALL_REPLY if matches!(session.state, State::InRequested | State::InReplied) && session.pac == second => {
            match result {
                YES => (session.state, session.pns) = (State::InReplied, first),
                _ => session.state = State::None,
            }
        }
        CALL_CLEAR_REQUEST if session.control == Control::Confirmed => session.state = State::ClearRequested,
        SET_LINK_INFO | ECHO_REQUEST | ECHO_REPLY => {}
        _ => return false,
    }
    true
}

/// From the server. Whether it makes sense; if not, it is left alone.
fn inbound(call: &mut Call<'_>, session: &mut Session, message: u16, fields: &[u8; 5]) -> bool {
    let (first, second) = (get_u16(fields, 0), get_u16(fields, 2));
    let confirmed = session.control == Control::Confirmed;
    match message {
        START_SESSION_REPLY if session.control >= Control::Requested => {
            session.control = if fields[2] == YES { Control::Confirmed } else { Control::Error };
        }
        STOP_SESSION_REPLY if session.control <= Control::StopRequested => {
            session.control = if fields[0] == YES { Control::None } else { Control::Error };
        }
        OUT_CALL_REPLY
            if confirmed
                && matches!(session.state, State::OutRequested | State::OutConfirmed)
                && session.pns == second =>
        {
            match fields[4] {
                YES => {
                    (session.state, session.pac) = (State::OutConfirmed, first);
                    expect_tunnel(call, session, first, second);
                }
                _ => session.state = State::None,
            }
        }
        IN_CALL_REQUEST if confirmed => (session.state, session.pac) = (State::InRequested, first),
        IN_CALL_CONNECT
            if confirmed && matches!(session.state, State::InReplied | State::InConfirmed) && session.pns == first =>
        {
            session.state = State::InConfirmed;
            expect_tunnel(call, session, session.pac, first);
        }
        CALL_DISCONNECT_NOTIFY => {
            session.state = State::None;
            call.keys.remove(call.master);
            call.ends = Some(session.siblings(&call.tuples));
        }
        WAN_ERROR_NOTIFY | SET_LINK_INFO | ECHO_REQUEST | ECHO_REPLY => {}
        _ => return false,
    }
    true
}

/// Both directions of the call's tunnel are expected, or none (`exp_gre`).
fn expect_tunnel(call: &mut Call<'_>, session: &mut Session, pac: u16, pns: u16) {
    let one = |call: &Call<'_>, direction: Direction, sport: u16, dport: u16| {
        let tuple = *call.tuple(direction);
        let bare = call.expectation(proto::GRE, Some(tuple.src), tuple.dst, dport);
        let mask = SourceMask { port: u16::MAX, ..bare.mask };
        Expectation { tuple: Tuple { sport, ..bare.tuple }, mask, ..bare }
    };
    let (original, reply) = match call.is_translated() {
        false => (one(call, Direction::Original, pns, pac), one(call, Direction::Reply, pac, pns)),
        true => {
            session.inside_pac = session.pac;
            let &mut Session { pns, pac, inside_pns, inside_pac, .. } = session;
            let follow = |direction, port| Some(Follow { direction, port });
            let original = one(call, Direction::Original, inside_pns, pac);
            let reply = one(call, Direction::Reply, inside_pac, pns);
            (
                Expectation { follow: follow(Direction::Original, pns), ..original },
                Expectation { follow: follow(Direction::Reply, inside_pns), ..reply },
            )
        }
    };
    if call.expect(&original).is_err() {
        return;
    }
    if call.expect(&reply).is_err() {
        call.expectations.remove(&original);
        return;
    }
    let master = call.master;
    let noted = call.keys.add(master, Direction::Original, &original.tuple);
    if noted && call.keys.add(master, Direction::Reply, &reply.tuple) {
        return;
    }
    if noted {
        call.keys.remove(master);
    }
    call.expectations.remove(&reply);
    call.expectations.remove(&original);
}

/// Where the message says the client's number, and what it is to say instead (`pptp_outbound_pkt`, `pptp_inbound_pkt` of
/// nf_nat_pptp.c).
fn translated(call: &Call<'_>, session: &mut Session, message: u16) -> Option<(usize, u16)> {
    match (call.direction(), message) {
        (Direction::Original, OUT_CALL_REQUEST) => {
            session.inside_pns = session.pns;
            session.pns = call.tuple(Direction::Reply).dport;
            Some((0, session.pns))
        }
        (Direction::Original, IN_CALL_REPLY | CALL_CLEAR_REQUEST) => Some((0, session.pns)),
        (Direction::Reply, OUT_CALL_REPLY) => Some((2, session.inside_pns)),
        (Direction::Reply, IN_CALL_CONNECT | WAN_ERROR_NOTIFY | CALL_DISCONNECT_NOTIFY | SET_LINK_INFO) => {
            Some((0, session.inside_pns))
        }
        _ => None,
    }
}
