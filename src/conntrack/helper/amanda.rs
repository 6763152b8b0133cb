//! Amanda: the ports at which a client waits for the server's data, messages, index and state (nf_conntrack_amanda.c,
//! nf_nat_amanda.c).

use super::mangle::Text;
use super::{Call, Refused, search};
use crate::conntrack::expect::Follow;
use crate::conntrack::tuple::Direction;
use crate::wire::proto;

/// Seconds a connection lives after each packet of the client, which may take its time (`master_timeout`).
const MASTER_TIMEOUT: u32 = 300;
/// Longest number that is read.
const DIGITS_MAX: usize = 5;

pub(super) fn help(call: &mut Call<'_>) -> Result<(), Refused> {
    if call.direction() == Direction::Original {
        return Ok(());
    }
    call.refresh = Some(MASTER_TIMEOUT);
    let payload = call.payload();
    let Some(start) = search::find(payload, b"CONNECT ").map(|at| at + 8) else { return Ok(()) };
    let Some(stop) = search::find(&payload[start..], b"\n").map(|at| start + at) else { return Ok(()) };
    let mut done = Ok(());
    for word in [&b"DATA "[..], b"MESG ", b"INDEX ", b"STATE "] {
        // The line's end stays where it was before the first number was changed, as in Linux.
        let line = call.payload().get(start..stop).unwrap_or(&[]);
        let Some(at) = search::find(line, word).map(|at| at + word.len()) else { continue };
        let (number, length) = search::decimal(&line[at..line.len().min(at + DIGITS_MAX)]);
        let port = number as u16;
        if port == 0 {
            break;
        }
        if call.is_translated() {
            done = announce(call, start + at, length, port);
        } else if let Err(refused) = call.expect(&expectation(call, port)) {
            done = Err(refused);
        }
    }
    done
}

/// A connection of the server to the client's port.
fn expectation(call: &Call<'_>, port: u16) -> crate::conntrack::expect::Expectation {
    let original = *call.tuple(Direction::Original);
    call.expectation(proto::TCP, Some(original.src), original.dst, port)
}

/// Expects it at a port that is free outside, and tells that port.
fn announce(call: &mut Call<'_>, at: usize, length: usize, port: u16) -> Result<(), Refused> {
    let mut expected = expectation(call, port);
    expected.follow = Some(Follow { direction: Direction::Original, port });
    let free = call.expect_at_free_port(&mut expected)?;
    call.announce(at, length, Text::new(format_args!("{free}")).bytes(), &expected)
}
