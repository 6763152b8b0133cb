//! TFTP: the answer to a request comes from another port of the server (nf_conntrack_tftp.c, nf_nat_tftp.c; RFC 1350).

use super::{Call, Refused};
use crate::conntrack::expect::Follow;
use crate::conntrack::tuple::Direction;
use crate::wire::proto;

const READ: u8 = 1;
const WRITE: u8 = 2;

pub(super) fn help(call: &mut Call<'_>) -> Result<(), Refused> {
    let [0, READ | WRITE, ..] = call.payload() else { return Ok(()) };
    let (original, reply) = (*call.tuple(Direction::Original), *call.tuple(Direction::Reply));
    let mut expected = call.expectation(proto::UDP, Some(reply.src), reply.dst, reply.dport);
    if call.is_translated() {
        expected.follow = Some(Follow { direction: Direction::Reply, port: original.sport });
    }
    call.expect(&expected)
}
