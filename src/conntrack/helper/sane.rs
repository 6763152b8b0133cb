//! SANE: the port at which a scan server sends the picture (nf_conntrack_sane.c). There is no translation of it: what is
//! expected is the connection as the client opens it.

use super::{Call, Memory, Refused};
use crate::conntrack::tuple::Direction;
use crate::wire::{get_u16, get_u32, proto};

/// Length of a request, and of the answer to NET_START.
const MESSAGE: usize = 8;
const NET_START: u32 = 7;
const SUCCESS: u32 = 0;

/// What the client asked for last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::conntrack) struct State {
    start_requested: bool,
}

pub(super) fn help(call: &mut Call<'_>) -> Result<(), Refused> {
    if !call.is_established() || call.payload().is_empty() {
        return Ok(());
    }
    let direction = call.direction();
    let Memory::Sane(mut state) = *call.memory else { return Ok(()) };
    let payload = call.payload();
    let mut port = None;
    match direction {
        Direction::Original if payload.len() == MESSAGE => state.start_requested = get_u32(payload, 0) == NET_START,
        Direction::Original => {}
        Direction::Reply => {
            let is_answer = core::mem::take(&mut state.start_requested) && payload.len() >= MESSAGE;
            // Status, two bytes of zero, port.
            if is_answer && get_u32(payload, 0) == SUCCESS && get_u16(payload, 4) == 0 {
                port = Some(get_u16(payload, 6));
            }
        }
    }
    *call.memory = Memory::Sane(state);
    let Some(port) = port else { return Ok(()) };
    let original = *call.tuple(Direction::Original);
    let expected = call.expectation(proto::TCP, Some(original.src), original.dst, port);
    call.expect(&expected)
}
