//! Connections with a helper, and those that one expects. `tests/helpers_kernel` holds the same against the kernel's.

use super::*;
use crate::conntrack::{Helper, Manip};
use crate::wire::Addr;

/// Room behind a packet.
const ROOM: usize = 64;

struct Talk {
    lab: Lab,
    seq: [u32; 2],
    room: usize,
    /// What the client is seen as.
    outside: IpAddr,
}

impl Talk {
    /// An FTP control connection on which commands are read.
    fn new(settings: Settings, outside: IpAddr) -> Talk {
        let mut talk = Talk { lab: Lab::with(settings), seq: [1000, 9000], room: ROOM, outside };
        for (from_client, flags, text) in [
            (true, "S", ""),
            (false, "SA", ""),
            (true, ".", ""),
            (false, "PA", "220 ready\r\n"),
            (true, "PA", "USER me\r\n"),
            (false, "PA", "230 in\r\n"),
        ] {
            talk.say(from_client, flags, text).expect("passes");
        }
        talk
    }

    fn plain() -> Talk {
        Talk::new(Settings { max: 64, ..Settings::default() }, CLIENT)
    }

    fn segment(&self, from_client: bool, flags: &str, options: Vec<u8>, text: &str) -> Vec<u8> {
        let (src, dst) = if from_client { (CLIENT, SERVER) } else { (SERVER, self.outside) };
        let (sport, dport) = if from_client { (5000, 21) } else { (21, 5000) };
        let [seq, ack] = [self.seq[usize::from(!from_client)], self.seq[usize::from(from_client)]];
        let flags = testing::flags(flags);
        let ack = if flags & 0x10 == 0 { 0 } else { ack };
        let segment = Segment { sport, dport, seq, ack, flags, window: 8000, options, payload: 0 };
        testing::ip(src, dst, 6, &[segment.bytes(), text.as_bytes().to_vec()].concat())
    }

    /// The next segment of one side: what it leaves as, after its IP header.
    fn say(&mut self, from_client: bool, flags: &str, text: &str) -> Result<String, DropReason> {
        let packet = self.segment(from_client, flags, vec![], text);
        self.seq[usize::from(!from_client)] += text.len() as u32 + u32::from(flags.contains(['S', 'F']));
        self.send(&packet)
    }

    fn send(&mut self, packet: &[u8]) -> Result<String, DropReason> {
        let Lab { ct, now } = &mut self.lab;
        let mut frame = testing::frame(testing::ANY_HOP, packet);
        let mut parsed = Packet::parse(&frame, PortId::LAN, true).expect("an IP packet");
        frame.resize(frame.len() + self.room, 0);
        let hash = ct.hash(&Tuple::of(&parsed));
        let template = Template { helper: Helper::from_name("ftp"), ..Template::DEFAULT };
        let tracked = ct.track(&parsed, &frame, hash, template, *now)?;
        if tracked.conn == ConnRef::Prepared && self.outside != CLIENT {
            let tuple = ct.prepared_tuple().expect("a connection");
            ct.bind(Manip::Source, &Tuple { src: Addr::from(self.outside), ..tuple });
        }
        ct.help(&tracked, &mut parsed, &mut frame, &mut || 0x8000_0000, *now)?;
        ct.confirm(&tracked, *now)?;
        ct.check();
        let payload = &parsed.l4_bytes(&frame)[usize::from(parsed.tcp_header_len)..];
        Ok(String::from_utf8_lossy(payload).into_owned())
    }

    fn expected(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.lab.ct.list_expected(0, 100, self.lab.now, &mut |view| lines.push(view.to_string()));
        lines
    }

    /// A connection of the server to this port of whom it takes for the client.
    fn data(&mut self, sport: u16, port: u16) -> Tracked {
        let segment = Segment { flags: 2, window: 8000, sport, dport: port, ..EMPTY };
        let packet = testing::ip(SERVER, self.outside, 6, &segment.bytes());
        self.lab.track(&packet).expect("room")
    }
}

const EMPTY: Segment =
    Segment { sport: 0, dport: 0, seq: 7, ack: 0, flags: 0, window: 0, options: Vec::new(), payload: 0 };

#[test]
fn what_is_announced_is_related_once_and_gets_its_masters_mark() {
    let mut talk = Talk::plain();
    assert_eq!(talk.data(20, 5001).info, CtInfo::New);
    talk.say(true, "PA", "PORT 10,1,0,2,19,137\r\n").expect("passes");
    assert_eq!(talk.expected().len(), 1);
    let master = talk.segment(true, ".", vec![], "");
    let tracked = talk.lab.track(&master).expect("known");
    talk.lab.ct.set_mark(tracked.conn, 77);
    let data = talk.data(20, 5001);
    assert_eq!((data.info, data.status), (CtInfo::Related, CtStatus::EXPECTED));
    assert_eq!(talk.lab.ct.master_helper(data.conn), Some(Helper::Ftp));
    assert_eq!(talk.lab.ct.take_follow(), None, "the master is not translated");
    talk.lab.ct.confirm(&data, talk.lab.now).expect("no clash");
    assert_eq!(talk.data(20, 5001).info, CtInfo::Related, "until there is a reply");
    assert_eq!(talk.data(21, 5001).info, CtInfo::New, "nothing more is expected");
    let lines = talk.lab.lines();
    assert!(lines.iter().any(|line| line.contains(" mark=77 use=1")), "{lines:?}");
    assert!(lines.iter().any(|line| line.ends_with(" mark=77 helper=ftp use=1")), "{lines:?}");
    let statistics = talk.lab.ct.statistics();
    assert_eq!((statistics.expect_new, statistics.expect_create, statistics.expect_delete), (1, 1, 1));
}

#[test]
fn what_is_expected_goes_with_time_and_with_its_master() {
    let mut talk = Talk::plain();
    talk.say(true, "PA", "PORT 10,1,0,2,19,137\r\n").expect("passes");
    talk.say(false, ".", "").expect("passes");
    talk.lab.pass_ms(299_999);
    assert_eq!(talk.expected().len(), 1);
    talk.lab.pass_ms(1);
    assert_eq!((talk.expected().len(), talk.lab.ct.expected()), (0, 1));
    assert!(talk.lab.ct.next_deadline().is_some_and(|next| next <= talk.lab.now));
    talk.lab.ct.expire(talk.lab.now, 1000);
    assert_eq!(talk.lab.ct.expected(), 0);
    talk.say(true, "PA", "PORT 10,1,0,2,19,137\r\n").expect("passes");
    assert_eq!(talk.expected().len(), 1);
    talk.lab.ct.delete(0, 64, talk.lab.now, 0, &mut |_| true);
    assert_eq!((talk.lab.ct.len(), talk.lab.ct.expected()), (0, 0));
    assert_eq!(talk.data(20, 5001).info, CtInfo::New);
}

#[test]
fn a_translated_command_is_rewritten_and_its_connection_followed() {
    let mut talk = Talk::new(Settings { max: 64, ..Settings::default() }, ROUTER);
    assert_eq!(talk.say(true, "PA", "PORT 10,1,0,2,19,137\r\n").as_deref(), Ok("PORT 10,9,0,9,19,137\r\n"));
    assert!(talk.expected()[0].contains(" src=10.2.0.2 dst=10.9.0.9 sport=0 dport=5001 "), "{:?}", talk.expected());
    let data = talk.data(20, 5001);
    let follow = talk.lab.ct.take_follow().expect("its master is translated");
    assert_eq!((data.info, follow.source, follow.destination), (CtInfo::Related, SERVER.into(), CLIENT.into()));
    assert_eq!((follow.port, follow.source_port, talk.lab.ct.take_follow()), (Some(5001), None, None));
}

#[test]
fn commands_that_cannot_be_honoured_are_dropped_for_a_reason() {
    let mut talk = Talk::plain();
    assert_eq!(talk.say(true, "PA", "PORT 10,1,"), Err(DropReason::HelperPartial));
    let mut talk = Talk::new(Settings { max: 64, expect_max: 1, ..Settings::default() }, CLIENT);
    talk.lab.ct.set_settings(Settings { max: 64, expect_max: 0, ..Settings::default() }).expect_err("none at all");
    talk.say(true, "PA", "PORT 10,1,0,2,19,137\r\n").expect("room for one");
    let other = Segment { sport: 5001, dport: 21, seq: 1, flags: 2, window: 8000, ..EMPTY };
    let mut say = |from_client: bool, seq: u32, ack: u32, flags: &str, text: &str| {
        let (src, dst) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        let (sport, dport) = if from_client { (5001, 21) } else { (21, 5001) };
        let segment = Segment { sport, dport, seq, ack, flags: testing::flags(flags), ..other.clone() };
        talk.send(&testing::ip(src, dst, 6, &[segment.bytes(), text.as_bytes().to_vec()].concat()))
    };
    say(true, 1, 0, "S", "").expect("passes");
    say(false, 50, 2, "SA", "").expect("passes");
    say(true, 2, 51, "PA", "\n").expect("passes");
    assert_eq!(say(true, 3, 51, "PA", "PORT 10,1,0,2,19,138\r\n"), Err(DropReason::HelperUnexpected));

    let mut talk = Talk::new(Settings { max: 64, ..Settings::default() }, IpAddr::from([10, 200, 100, 100]));
    talk.room = 5;
    assert_eq!(talk.say(true, "PA", "PORT 10,1,0,2,19,137\r\n"), Err(DropReason::HelperNoRoom));
    assert!(talk.expected().is_empty(), "nobody was told");
}

#[test]
fn options_cut_short_end_a_segment_whose_numbers_change() {
    let mut talk = Talk::new(Settings { max: 64, ..Settings::default() }, IpAddr::from([10, 200, 100, 100]));
    talk.say(true, "PA", "PORT 10,1,0,2,19,137\r\n").expect("passes");
    let packet = talk.segment(true, "PA", vec![8, 10, 0, 0], "NOOP\r\n");
    assert_eq!(talk.send(&packet), Err(DropReason::SeqAdjust));
    let packet = talk.segment(true, "PA", vec![1, 1, 1, 0], "NOOP\r\n");
    assert_eq!(talk.send(&packet).as_deref(), Ok("NOOP\r\n"));
}

#[test]
fn what_was_only_prepared_leaves_nothing() {
    let mut lab = Lab::new();
    let packet = testing::ip(CLIENT, SERVER, 17, &testing::udp(5000, 69, b"\0\x01x\0"));
    let mut frame = testing::frame(testing::ANY_HOP, &packet);
    let mut parsed = Packet::parse(&frame, PortId::LAN, true).expect("an IP packet");
    let hash = lab.ct.hash(&Tuple::of(&parsed));
    let template = Template { helper: Some(Helper::Tftp), ..Template::DEFAULT };
    let tracked = lab.ct.track(&parsed, &frame, hash, template, lab.now).expect("room");
    lab.ct.help(&tracked, &mut parsed, &mut frame, &mut || 0, lab.now).expect("passes");
    assert_eq!(lab.ct.expected(), 1);
    // Its answer comes before it was confirmed: nobody can know of it.
    let answer = testing::ip(SERVER, CLIENT, 17, &testing::udp(7, 5000, b"\0\x03"));
    assert_eq!(lab.track(&answer).expect("room").info, CtInfo::New);
    assert_eq!(lab.ct.expected(), 0, "the request was never confirmed");
    assert_eq!(lab.ct.helper(tracked.conn), None);
}
