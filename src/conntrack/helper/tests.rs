use super::*;
use crate::conntrack::expect::Follow;
use crate::conntrack::testing::{self, ANY_HOP, Segment, flags};
use crate::device::PortId;
use crate::packet::L4;
use crate::time::SECOND_NS;
use proptest::prelude::*;
use std::net::IpAddr;

const CLIENT: &str = "10.1.0.2";
const SERVER: &str = "10.2.0.2";
const OUTSIDE: &str = "10.2.0.100";
const CLIENT6: &str = "2001:db8:1::2";
const SERVER6: &str = "2001:db8:2::2";
const OUTSIDE6: &str = "2001:db8:2::100";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn addr(text: &str) -> Addr {
    Addr::from(ip(text))
}

/// One control connection, from client to server, and what is expected.
struct Talk {
    helper: Helper,
    tuples: [Tuple; 2],
    status: CtStatus,
    memory: Memory,
    adjust: SeqAdjust,
    expectations: Expectations,
    refresh: Option<u32>,
    seq: [u32; 2],
}

impl Talk {
    /// With a server as `server`, and a client that is seen as `outside`.
    fn new(helper: Helper, [client, server, outside]: [&str; 3]) -> Talk {
        let family = if ip(client).is_ipv4() { Family::V4 } else { Family::V6 };
        let (src, dst) = (addr(client), addr(server));
        let original = Tuple { src, dst, sport: 5000, dport: 21, proto: helper.proto(), family, zone: 0 };
        let reply = Tuple { dst: addr(outside), ..original.inverse().expect("ports") };
        let status = if client == outside { CtStatus(0) } else { CtStatus::SRC_NAT };
        Talk {
            helper,
            tuples: [original, reply],
            status,
            memory: helper.memory(),
            adjust: SeqAdjust::default(),
            expectations: Expectations::new(100, [1, 2]),
            refresh: None,
            seq: [1000, 9000],
        }
    }

    fn plain(helper: Helper) -> Talk {
        Talk::new(helper, [CLIENT, SERVER, CLIENT])
    }

    fn masked(helper: Helper) -> Talk {
        Talk::new(helper, [CLIENT, SERVER, OUTSIDE])
    }

    /// The packet with which `payload` leaves.
    fn frame(&self, direction: Direction, seq: u32, payload: &[u8]) -> Vec<u8> {
        let to = self.tuples[direction.other().index()];
        let (src, dst) = (to.dst.to_ip(), to.src.to_ip());
        let (sport, dport) = (to.dport, to.sport);
        let l4 = match self.helper.proto() {
            6 => {
                let (ack, flags) = (self.seq[direction.other().index()], flags("PA"));
                let segment = Segment { sport, dport, seq, ack, flags, window: 500, options: vec![], payload: 0 };
                [segment.bytes(), payload.to_vec()].concat()
            }
            _ => testing::udp(sport, dport, payload),
        };
        testing::frame(ANY_HOP, &testing::ip(src, dst, self.helper.proto(), &l4))
    }

    fn at(&mut self, direction: Direction, seq: u32, payload: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut frame = self.frame(direction, seq, payload);
        let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
        frame.resize(2048, 0);
        let mut number = 7u32;
        let mut random = || {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            number
        };
        let mut call = Call {
            helper: self.helper,
            info: if direction == Direction::Original { CtInfo::Established } else { CtInfo::EstablishedReply },
            tuples: self.tuples,
            zone: 0,
            status: self.status,
            packet: &mut packet,
            frame: &mut frame,
            master: MasterId(0),
            memory: &mut self.memory,
            adjust: &mut self.adjust,
            expectations: &mut self.expectations,
            random: &mut random,
            now: Instant::from_ns(SECOND_NS),
            keys: &mut Keymap::default(),
            ends: None,
            refresh: None,
        };
        call.run()?;
        (self.status, self.refresh) = (call.status, call.refresh.or(self.refresh));
        frame.truncate(packet.frame_len());
        let read = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
        assert_eq!(read.l4, L4::Good, "checksums are right");
        Ok(call_payload(&read, &frame).to_vec())
    }

    /// Sends the next bytes of a direction; gives them as they arrive.
    fn say(&mut self, direction: Direction, payload: &str) -> Result<String, Refused> {
        let seq = self.seq[direction.index()];
        self.seq[direction.index()] = seq.wrapping_add(payload.len() as u32);
        let said = self.at(direction, seq, payload.as_bytes())?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    fn client(&mut self, payload: &str) -> Result<String, Refused> {
        self.say(Direction::Original, payload)
    }

    fn server(&mut self, payload: &str) -> Result<String, Refused> {
        self.say(Direction::Reply, payload)
    }

    fn expected(&self) -> Vec<Expectation> {
        let mut all = Vec::new();
        self.expectations.list(0, 1000, Instant::from_ns(SECOND_NS), &mut |one| all.push(*one));
        all
    }

    /// Source, destination and port of what is expected, and how it is translated.
    fn tuples(&self) -> Vec<(Addr, Addr, u16, Option<Follow>)> {
        let mut all: Vec<_> =
            self.expected().iter().map(|one| (one.tuple.src, one.tuple.dst, one.tuple.dport, one.follow)).collect();
        all.sort_by_key(|one| one.2);
        all
    }
}

fn call_payload<'a>(packet: &Packet, frame: &'a [u8]) -> &'a [u8] {
    let header = if packet.proto == proto::TCP { usize::from(packet.tcp_header_len) } else { 8 };
    &packet.l4_bytes(frame)[header..]
}

/// An FTP dialogue up to where commands are read.
fn logged_in(mut talk: Talk) -> Talk {
    talk.server("220 ready\r\n").expect("passes");
    talk.client("USER me\r\n").expect("passes");
    talk.server("230 in\r\n").expect("passes");
    talk
}

#[test]
fn names_lead_to_helpers_and_refused_ones_are_not_among_them() {
    for &helper in Helper::ALL {
        assert_eq!(Helper::from_name(helper.name()), Some(helper));
    }
    for (name, reason) in REFUSED {
        assert!(Helper::from_name(name).is_none() && !reason.is_empty(), "{name}");
    }
}

#[test]
fn ftp_port_is_expected_as_it_stands_without_translation() {
    let mut talk = logged_in(Talk::plain(Helper::Ftp));
    assert_eq!(talk.client("PORT 10,1,0,2,19,137\r\n").as_deref(), Ok("PORT 10,1,0,2,19,137\r\n"));
    assert_eq!(talk.tuples(), [(addr(SERVER), addr(CLIENT), 5001, None)]);
    assert_eq!(talk.client("port 10,1,0,2,19,138\r\n").as_deref(), Ok("port 10,1,0,2,19,138\r\n"));
    assert_eq!(talk.tuples(), [(addr(SERVER), addr(CLIENT), 5002, None)], "one at a time, the newest");
}

#[test]
fn ftp_commands_are_rewritten_with_translation() {
    let port = |port| Some(Follow { direction: Direction::Reply, port });
    let mut talk = logged_in(Talk::masked(Helper::Ftp));
    assert_eq!(talk.client("PORT 10,1,0,2,19,137\r\n").as_deref(), Ok("PORT 10,2,0,100,19,137\r\n"));
    assert_eq!(talk.tuples(), [(addr(SERVER), addr(OUTSIDE), 5001, port(5001))]);
    assert!(talk.status.any(CtStatus::SEQ_ADJUST));
    assert_eq!(talk.adjust.offset(Direction::Original, talk.seq[0]), 2);
    assert_eq!(talk.client("EPRT |1|10.1.0.2|6446|\r\n").as_deref(), Ok("EPRT |1|10.2.0.100|6446|\r\n"));
    assert_eq!(talk.tuples(), [(addr(SERVER), addr(OUTSIDE), 6446, port(6446))]);
    assert_eq!(
        talk.server("227 Entering Passive Mode (10,2,0,2,4,1).\r\n").as_deref(),
        Ok("227 Entering Passive Mode (10,2,0,2,4,1).\r\n")
    );
    assert_eq!(
        talk.tuples(),
        [(addr(CLIENT), addr(SERVER), 1025, Some(Follow { direction: Direction::Original, port: 1025 }))]
    );
    let mut talk = logged_in(Talk::masked(Helper::Ftp));
    assert_eq!(talk.server("229 ok (|||6446|)\r\n").as_deref(), Ok("229 ok (|||6446|)\r\n"));
    assert!(!talk.status.any(CtStatus::SEQ_ADJUST), "the same length");
    assert_eq!(talk.tuples()[0].2, 6446);
}

#[test]
fn ftp_over_ipv6_writes_all_digits() {
    let mut talk = logged_in(Talk::new(Helper::Ftp, [CLIENT6, SERVER6, OUTSIDE6]));
    assert_eq!(
        talk.client("EPRT |2|2001:db8:1::2|5001|\r\n").as_deref(),
        Ok("EPRT |2|2001:0db8:0002:0000:0000:0000:0000:0100|5001|\r\n")
    );
    let follow = Some(Follow { direction: Direction::Reply, port: 5001 });
    assert_eq!(talk.tuples(), [(addr(SERVER6), addr(OUTSIDE6), 5001, follow)]);
    assert_eq!(talk.client("EPRT |1|10.1.0.2|5001|\r\n"), Err(Refused::Partial), "of the other IP version");
}

#[test]
fn ftp_commands_cut_short_are_dropped_and_others_pass() {
    for cut in ["PORT", "po", "PORT 10,1,0", "PORT 10,1,0,2,19,137", "PORT10,1", "EPRT |1|10.1.0.2|0|\r\n", "E"] {
        let mut talk = logged_in(Talk::plain(Helper::Ftp));
        assert_eq!(talk.client(cut), Err(Refused::Partial), "{cut}");
        assert!(talk.expected().is_empty());
    }
    for fine in ["PORTO", "RETR x\r\n", "XPORT 10,1,0,2,19,137\r\n", "PORT 10,9,0,2,19,137\r\n", "\n"] {
        let mut talk = logged_in(Talk::plain(Helper::Ftp));
        let said = talk.client(fine);
        match fine {
            "PORTO" => assert_eq!(said, Err(Refused::Partial), "no blank behind PORT"),
            _ => assert_eq!(said.as_deref(), Ok(fine)),
        }
        assert!(talk.expected().is_empty(), "{fine}: somebody else's address, or no command");
    }
    let mut talk = logged_in(Talk::plain(Helper::Ftp));
    assert_eq!(talk.server("2"), Err(Refused::Partial));
    assert_eq!(talk.server("227 no digits\r\n").as_deref(), Ok("227 no digits\r\n"), "not where a line begins");
}

#[test]
fn ftp_reads_only_where_a_line_begins() {
    let mut talk = Talk::plain(Helper::Ftp);
    talk.client("PORT 10,1,0,2,19,137\r\n").expect("the first is never read");
    assert!(talk.expected().is_empty());
    talk.client("USER ").expect("not a whole line");
    talk.client("PORT 10,1,0,2,19,137\r\n").expect("in the middle of a line");
    assert!(talk.expected().is_empty());
    let at = talk.seq[0];
    talk.client("PORT 10,1,0,2,19,137\r\n").expect("passes");
    assert_eq!(talk.expected().len(), 1);
    talk.expectations.remove_all(MasterId(0));
    talk.at(Direction::Original, at, b"PORT 10,1,0,2,19,137\r\n").expect("sent again");
    assert_eq!(talk.expected().len(), 1);
}

#[test]
fn ftp_takes_another_port_where_its_own_is_taken() {
    let mut talk = logged_in(Talk::masked(Helper::Ftp));
    let policy = Helper::Ftp.policy();
    let to = Tuple { dst: addr(OUTSIDE), dport: 5001, proto: 6, ..Tuple::default() };
    let other = Expectation::new(MasterId(1), Some(addr(SERVER)), to);
    talk.expectations.insert(other, policy, Instant::from_ns(SECOND_NS)).expect("room");
    let said = talk.client("PORT 10,1,0,2,19,137\r\n").expect("another port is free");
    let [_, (_, _, port, follow)] = talk.tuples()[..] else { panic!("two are expected") };
    assert!(port > 5001, "{port}");
    assert_eq!(follow.map(|follow| follow.port), Some(5001));
    assert_eq!(said, format!("PORT 10,2,0,100,{},{}\r\n", port >> 8, port & 255));

    let mut plain = logged_in(Talk::plain(Helper::Ftp));
    let other = Expectation::new(MasterId(1), Some(addr(SERVER)), Tuple { dst: addr(CLIENT), ..to });
    plain.expectations.insert(other, policy, Instant::from_ns(SECOND_NS)).expect("room");
    assert_eq!(plain.client("PORT 10,1,0,2,19,137\r\n"), Err(Refused::Unexpected));
}

#[test]
fn tftp_requests_are_expected_from_any_port_of_the_server() {
    for (opcode, count) in [(1, 1), (2, 1), (3, 0), (4, 0), (0, 0)] {
        let mut talk = Talk::masked(Helper::Tftp);
        talk.at(Direction::Original, 0, &[0, opcode, b'x', 0]).expect("passes");
        assert_eq!(talk.expected().len(), count, "opcode {opcode}");
    }
    let mut talk = Talk::masked(Helper::Tftp);
    talk.tuples[1].dport = 6000;
    talk.at(Direction::Original, 0, &[0, 1, b'x', 0]).expect("passes");
    let follow = Some(Follow { direction: Direction::Reply, port: 5000 });
    assert_eq!(talk.tuples(), [(addr(SERVER), addr(OUTSIDE), 6000, follow)]);
    talk.at(Direction::Original, 0, &[0]).expect("too short for an opcode");
}

#[test]
fn amanda_ports_are_read_from_the_reply() {
    const TEXT: &str = "Amanda 2.3 REP\nCONNECT DATA 6543 MESG 6544 INDEX 6545 STATE 6546\nOPTIONS ;\n";
    let mut talk = Talk::plain(Helper::Amanda);
    talk.client(TEXT).expect("passes");
    assert_eq!((talk.expected().len(), talk.refresh), (0, None), "only of the client's side");
    assert_eq!(talk.server(TEXT).as_deref(), Ok(TEXT));
    let ports: Vec<u16> = talk.tuples().iter().map(|one| one.2).collect();
    assert_eq!((ports, talk.refresh), (vec![6543, 6544, 6545, 6546], Some(300)));
    assert!(talk.expected().iter().all(|one| (one.tuple.src, one.tuple.dst) == (addr(CLIENT), addr(SERVER))));
    for (text, count) in
        [("CONNECT DATA 1\n", 1), ("CONNECT DATA x MESG 5\n", 0), ("CONNECT DATA 5", 0), ("CONNECT MESG 99999\n", 1)]
    {
        let mut talk = Talk::plain(Helper::Amanda);
        assert_eq!(talk.server(text).as_deref(), Ok(text));
        assert_eq!(talk.expected().len(), count, "{text}");
    }
}

#[test]
fn irc_offers_are_expected_from_anybody() {
    let mut talk = Talk::masked(Helper::Irc);
    assert_eq!(
        talk.client("PRIVMSG bob :\x01DCC SEND file 167837698 5001 1234\x01\r\n").as_deref(),
        Ok("PRIVMSG bob :\x01DCC SEND file 167903332 5001 1234\x01\r\n")
    );
    let follow = Some(Follow { direction: Direction::Reply, port: 5001 });
    assert_eq!(talk.tuples(), [(Addr::ZERO, addr(OUTSIDE), 5001, follow)]);
    talk.client("PRIVMSG bob :\x01DCC SEND file 16909060 5002 1234\x01\r\n").expect("somebody else's address");
    talk.server("PRIVMSG bob :\x01DCC SEND file 167837698 5003 1234\x01\r\n").expect("of the server");
    assert_eq!(talk.expected().len(), 1);
}

#[test]
fn sane_data_ports_are_expected_after_a_start() {
    let ask = |talk: &mut Talk, code: u8| talk.at(Direction::Original, 1, &[0, 0, 0, code, 0, 0, 0, 1]);
    let answer = |talk: &mut Talk, status: u8, zero: u8| {
        talk.at(Direction::Reply, 1, &[0, 0, 0, status, 0, zero, 0x19, 0x64, 9, 9, 9, 9])
    };
    for (code, status, zero, count) in [(7, 0, 0, 1), (6, 0, 0, 0), (7, 1, 0, 0), (7, 0, 1, 0)] {
        let mut talk = Talk::masked(Helper::Sane);
        ask(&mut talk, code).expect("passes");
        answer(&mut talk, status, zero).expect("passes");
        assert_eq!(talk.expected().len(), count, "{code} {status} {zero}");
        answer(&mut talk, 0, 0).expect("passes");
        assert_eq!(talk.expected().len(), count, "an answer to nothing");
    }
    let mut talk = Talk::masked(Helper::Sane);
    ask(&mut talk, 7).expect("passes");
    answer(&mut talk, 0, 0).expect("passes");
    assert_eq!(talk.tuples(), [(addr(CLIENT), addr(SERVER), 6500, None)]);
}

#[test]
fn pptp_expects_a_tunnel_in_both_directions() {
    let message = |kind: u8, size: usize, fields: [u8; 5]| {
        let mut message = vec![0, 0, 0, 1, 0x1a, 0x2b, 0x3c, 0x4d, 0, kind, 0, 0];
        message.extend(fields);
        message.resize(12 + size, 0);
        message
    };
    let mut talk = Talk::masked(Helper::Pptp);
    talk.tuples[1].dport = 0x7777;
    let (original, reply) = (Direction::Original, Direction::Reply);
    talk.at(original, 1, &message(1, 144, [1, 0, 0, 0, 0])).expect("passes");
    talk.at(reply, 1, &message(2, 144, [1, 0, 1, 0, 0])).expect("passes");
    let asked = talk.at(original, 1, &message(7, 156, [0x11, 0x11, 0, 1, 0])).expect("passes");
    assert_eq!(asked[12..14], [0x77, 0x77], "the number outside is the port's");
    let answered = talk.at(reply, 1, &message(8, 20, [0x22, 0x22, 0x77, 0x77, 1])).expect("passes");
    assert_eq!(answered[14..16], [0x11, 0x11]);
    let follow = |direction, port| Some(Follow { direction, port });
    assert_eq!(
        talk.tuples(),
        [
            (addr(CLIENT), addr(SERVER), 0x2222, follow(original, 0x7777)),
            (addr(SERVER), addr(OUTSIDE), 0x7777, follow(reply, 0x1111)),
        ]
    );
    let sources: Vec<u16> = talk.expected().iter().map(|one| one.tuple.sport).collect();
    assert!(sources.contains(&0x1111) && sources.contains(&0x2222), "{sources:x?}");
}

#[test]
fn before_both_sides_have_spoken_nothing_is_read() {
    let mut talk = logged_in(Talk::plain(Helper::Ftp));
    let mut frame = talk.frame(Direction::Original, talk.seq[0], b"PORT 10,1,0,2,19,137\r\n");
    let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
    let mut call = Call {
        helper: Helper::Ftp,
        info: CtInfo::New,
        tuples: talk.tuples,
        zone: 0,
        status: talk.status,
        packet: &mut packet,
        frame: &mut frame,
        master: MasterId(0),
        memory: &mut talk.memory,
        adjust: &mut talk.adjust,
        expectations: &mut talk.expectations,
        random: &mut || 0,
        now: Instant::from_ns(SECOND_NS),
        keys: &mut Keymap::default(),
        ends: None,
        refresh: None,
    };
    call.run().expect("passes");
    assert!(talk.expected().is_empty());
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let words = proptest::sample::select(vec![
        "PORT ",
        "EPRT ",
        "227 ",
        "229 ",
        "(",
        "|",
        "|1|",
        "|2|",
        "10,1,0,2,19,137",
        "10.1.0.2",
        "::1",
        "6446",
        ",",
        "\r\n",
        "\n",
        "PRIVMSG a",
        " :\x01DCC SEND f ",
        "167837698 5001",
        "CONNECT ",
        "DATA ",
        "MESG 65535",
        "INDEX 1",
        "\x01",
        "0",
        " ",
    ]);
    let word = prop_oneof![
        6 => words.prop_map(|word| word.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..9),
    ];
    proptest::collection::vec(word, 0..9).prop_map(|words| words.concat())
}

proptest! {
    /// Whatever is said, nothing panics, checksums are right, and what arrives says where what is expected will come to.
    #[test]
    fn any_text_is_read_and_written_safely(
        helper in proptest::sample::select(Helper::ALL.to_vec()), masked: bool, v6: bool,
        said in proptest::collection::vec((any::<bool>(), text()), 1..8),
    ) {
        let v6 = v6 && helper.serves(Family::V6);
        let ends = match (v6, masked) {
            (false, false) => [CLIENT, SERVER, CLIENT],
            (false, true) => [CLIENT, SERVER, OUTSIDE],
            (true, false) => [CLIENT6, SERVER6, CLIENT6],
            (true, true) => [CLIENT6, SERVER6, OUTSIDE6],
        };
        let mut talk = Talk::new(helper, ends);
        talk.at(Direction::Original, 0, b"\n").expect("passes");
        talk.at(Direction::Reply, 0, b"\n").expect("passes");
        for (back, text) in said {
            let direction = if back { Direction::Reply } else { Direction::Original };
            let before = talk.expectations.counts();
            let arrived = talk.at(direction, 1, &text);
            if !masked {
                prop_assert!(arrived.as_ref().is_ok_and(|arrived| *arrived == text) || arrived.is_err());
            }
            if arrived == Err(Refused::Partial) {
                prop_assert_eq!(before, talk.expectations.counts());
            }
            talk.expectations.check_invariants();
            prop_assert!(talk.expected().len() <= usize::from(helper.policy().max_expected));
        }
    }

    /// Any control messages in any order, cut anywhere.
    #[test]
    fn any_calls_are_followed_safely(
        masked: bool,
        said in proptest::collection::vec((any::<bool>(), 0u8..18, any::<[u8; 8]>(), 0usize..230), 1..20),
    ) {
        let mut talk = if masked { Talk::masked(Helper::Pptp) } else { Talk::plain(Helper::Pptp) };
        for (back, kind, mut fields, length) in said {
            // Few numbers, so that calls meet.
            fields.iter_mut().for_each(|byte| *byte &= 1);
            let mut message = vec![0, 0, 0, 1, 0x1a, 0x2b, 0x3c, 0x4d, 0, kind, 0, 0];
            message.extend(fields);
            message.resize(length, 0);
            let direction = if back { Direction::Reply } else { Direction::Original };
            let arrived = talk.at(direction, 1, &message).expect("no message is dropped");
            prop_assert_eq!(arrived.len(), message.len());
            prop_assert!(masked || arrived == message);
            talk.expectations.check_invariants();
            prop_assert!(talk.expected().len() <= 2);
        }
    }
}
