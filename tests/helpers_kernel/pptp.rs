//! PPTP: calls, and the tunnels of both directions.

use crate::dialogues::{Nat, line};
use crate::talk::{Line, Talk};
use crate::testing;

const GRE: u8 = 47;
/// By number of the message: bytes of its fields.
const SIZES: [usize; 16] = [0, 144, 144, 4, 4, 4, 8, 156, 20, 208, 12, 16, 4, 136, 28, 12];

/// A control message, whose fields begin like this.
fn message(kind: u16, begins: &[u8]) -> Vec<u8> {
    let mut fields = begins.to_vec();
    fields.resize(SIZES.get(usize::from(kind)).copied().unwrap_or(8), 0);
    let mut bytes = Vec::new();
    bytes.extend((12 + fields.len() as u16).to_be_bytes());
    bytes.extend([0, 1, 0x1a, 0x2b, 0x3c, 0x4d]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(fields);
    bytes
}

/// Two call numbers and a result.
fn calls(first: u16, second: u16, result: u8) -> Vec<u8> {
    [&first.to_be_bytes()[..], &second.to_be_bytes(), &[result]].concat()
}

/// A packet of the tunnel for this call; the number it arrives with.
fn tunnel(talk: &mut Talk<'_>, line: &Line, from_client: bool, number: u16) {
    let end = line.ends[usize::from(from_client)];
    let gre = [&[0x30, 1, 0x88, 0x0b, 0, 4][..], &number.to_be_bytes(), &[0, 0, 0, 1], b"data"].concat();
    talk.send(from_client, &testing::ip(end.addr, end.peer, GRE, &gre));
}

/// One control connection, opened and greeted.
fn session(talk: &mut Talk<'_>, nat: Nat) -> Line {
    let mut line = line(nat, 6, false, 1723);
    talk.open(&mut line);
    talk.say(&mut line, true, &message(1, &[1, 0]));
    talk.say(&mut line, false, &message(2, &[1, 0, 1]));
    line
}

/// The client calls; the number that the server has heard of it.
fn call(talk: &mut Talk<'_>, line: &mut Line, inside: u16, server: u16) -> u16 {
    let heard = talk.say(line, true, &message(7, &calls(inside, 1, 0)));
    let heard = heard.map_or(inside, |read| u16::from_be_bytes([read.payload[12], read.payload[13]]));
    talk.say(line, false, &message(8, &calls(server, heard, 1)));
    talk.look();
    heard
}

/// What both sides do, under a translation.
type Case = fn(&mut Talk<'_>, Nat);

/// Every case under one translation.
pub(crate) const CASES: &[(&str, Case)] = &[
    ("the client's tunnel first", |talk, nat| {
        let mut line = session(talk, nat);
        let heard = call(talk, &mut line, 0x1111, 0x2222);
        tunnel(talk, &line, true, 0x2222);
        talk.look();
        tunnel(talk, &line, false, heard);
        tunnel(talk, &line, true, 0x2222);
        talk.look();
        talk.say(&mut line, true, &message(12, &calls(0x1111, 0, 0)));
        talk.say(&mut line, false, &message(13, &calls(heard, 0, 0)));
        talk.look();
        tunnel(talk, &line, true, 0x2222);
        talk.look();
    }),
    ("the server's tunnel first", |talk, nat| {
        let mut line = session(talk, nat);
        let heard = call(talk, &mut line, 0x1111, 0x2222);
        tunnel(talk, &line, false, heard);
        talk.look();
        tunnel(talk, &line, true, 0x2222);
        tunnel(talk, &line, false, heard);
        talk.look();
        // Another call of the same connection.
        let again = call(talk, &mut line, 0x1112, 0x2223);
        tunnel(talk, &line, true, 0x2223);
        tunnel(talk, &line, false, again);
        talk.look();
    }),
    ("no tunnel", |talk, nat| {
        let mut line = session(talk, nat);
        let heard = call(talk, &mut line, 0x1111, 0x2222);
        call(talk, &mut line, 0x1111, 0x2222);
        talk.say(&mut line, false, &message(14, &calls(heard, 0, 0)));
        talk.say(&mut line, true, &message(15, &calls(0x2222, 0, 0)));
        talk.say(&mut line, false, &message(15, &calls(heard, 0, 0)));
        talk.say(&mut line, true, &message(5, &[0, 0, 0, 7]));
        talk.say(&mut line, false, &message(6, &[0, 0, 0, 7, 1]));
        talk.say(&mut line, false, &message(13, &calls(heard, 0, 0)));
        talk.look();
    }),
    ("refused", |talk, nat| {
        let mut line = session(talk, nat);
        let heard = talk.say(&mut line, true, &message(7, &calls(5, 1, 0)));
        let heard = heard.map_or(5, |read| u16::from_be_bytes([read.payload[12], read.payload[13]]));
        talk.say(&mut line, false, &message(8, &calls(6, heard ^ 1, 1)));
        talk.say(&mut line, false, &message(8, &calls(6, heard, 2)));
        talk.say(&mut line, false, &message(8, &calls(6, heard, 1)));
        talk.look();
        talk.say(&mut line, true, &message(3, &[1]));
        talk.say(&mut line, false, &message(4, &[1]));
        talk.say(&mut line, true, &message(7, &calls(8, 1, 0)));
        talk.look();
    }),
    ("the server calls", |talk, nat| {
        let mut line = session(talk, nat);
        talk.say(&mut line, false, &message(9, &calls(0x3333, 1, 0)));
        let heard = talk.say(&mut line, true, &message(10, &calls(0x4444, 0x3333, 1)));
        let heard = heard.map_or(0x4444, |read| u16::from_be_bytes([read.payload[12], read.payload[13]]));
        talk.say(&mut line, false, &message(11, &calls(heard, 0, 0)));
        talk.look();
        tunnel(talk, &line, true, 0x3333);
        tunnel(talk, &line, false, heard);
        talk.look();
    }),
    ("what is no message", |talk, nat| {
        let mut line = session(talk, nat);
        let whole = message(7, &calls(0x1111, 1, 0));
        talk.say(&mut line, true, &whole[..whole.len() - 1]);
        talk.say(&mut line, true, &whole[..11]);
        talk.say(&mut line, true, &[&[0, 0, 0, 2][..], &whole[4..]].concat());
        talk.say(&mut line, true, &message(16, &[1, 2, 3, 4]));
        talk.say(&mut line, false, &message(0, &[1, 2, 3, 4]));
        talk.say(&mut line, false, &message(8, &calls(1, 2, 1)));
        talk.look();
        tunnel(talk, &line, true, 0x2222);
        talk.look();
    }),
    ("the control connection ends", |talk, nat| {
        let mut line = session(talk, nat);
        let heard = call(talk, &mut line, 0x1111, 0x2222);
        tunnel(talk, &line, true, 0x2222);
        tunnel(talk, &line, false, heard);
        talk.router.end_tcp();
        talk.look();
        tunnel(talk, &line, true, 0x2222);
        talk.look();
    }),
    ("an error about the tunnel", |talk, nat| {
        let mut line = session(talk, nat);
        let heard = call(talk, &mut line, 0x1111, 0x2222);
        tunnel(talk, &line, true, 0x2222);
        let (client, server) = (line.ends[1], line.ends[0]);
        let gre = [&[0x30, 1, 0x88, 0x0b, 0, 4][..], &0x2222u16.to_be_bytes(), &[0, 0, 0, 1]].concat();
        let quoted = testing::ip(server.peer, server.addr, GRE, &gre);
        talk.send(false, &testing::ip(server.addr, server.peer, 1, &testing::icmp(3, 3, [0; 4], &quoted)));
        let gre = [&[0x30, 1, 0x88, 0x0b, 0, 4][..], &0x1111u16.to_be_bytes(), &[0, 0, 0, 1]].concat();
        let quoted = testing::ip(client.peer, client.addr, GRE, &gre);
        tunnel(talk, &line, false, heard);
        talk.send(true, &testing::ip(client.addr, client.peer, 1, &testing::icmp(3, 3, [0; 4], &quoted)));
        talk.look();
    }),
];
