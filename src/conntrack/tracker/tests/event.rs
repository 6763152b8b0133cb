//! Events, and deletion, which makes one. That they are the kernel's is shown in tests/conntrack_kernel.

use super::*;
use crate::conntrack::EventKind::{self, Destroy, New, Update};

fn listening(settings: Settings) -> Lab {
    let mut lab = Lab::with(settings);
    lab.ct.listen(true);
    lab
}

/// What was told since the last call: kind, who wanted it, source port.
fn told(lab: &mut Lab) -> Vec<(EventKind, u32, u16)> {
    lab.ct.events().drain(..).map(|event| (event.kind, event.by, event.conn.original.sport)).collect()
}

#[test]
fn an_update_is_told_when_a_packet_leaves() {
    let mut lab = listening(Settings { max: 64, ..Settings::default() });
    lab.pass(&udp(CLIENT, 1, SERVER, 53));
    assert_eq!(told(&mut lab), [(New, 0, 1)]);
    lab.pass(&udp(CLIENT, 1, SERVER, 53));
    assert_eq!(told(&mut lab), [], "a packet that changes nothing");
    // A rule drops the answer: the next packet tells of it.
    lab.track(&udp(SERVER, 53, CLIENT, 1)).expect("room");
    assert_eq!(told(&mut lab), []);
    lab.pass(&udp(CLIENT, 1, SERVER, 53));
    assert_eq!(told(&mut lab), [(Update, 0, 1)]);
    lab.pass(&udp(SERVER, 53, CLIENT, 1));
    assert_eq!(told(&mut lab), []);
}

#[test]
fn a_reject_that_closes_a_connection_is_told_once() {
    let mut lab = listening(Settings { max: 64, ..Settings::default() });
    let segment = |flags: &str| {
        let flags = testing::flags(flags);
        Segment { sport: 1, dport: 80, seq: 7, ack: 0, flags, window: 100, options: vec![], payload: 0 }.bytes()
    };
    let syn = testing::ip(CLIENT, SERVER, 6, &segment("S"));
    lab.pass(&syn);
    let conn = lab.track(&syn).expect("room").conn;
    told(&mut lab);
    for wanted in [vec![(Update, 0, 1)], vec![]] {
        lab.ct.close_by_reset(conn, lab.now);
        lab.ct.tell_news(conn, lab.now);
        assert_eq!(told(&mut lab), wanted);
    }
}

#[test]
fn whatever_removes_a_connection_tells() {
    let mut lab = listening(Settings { max: 4, ..Settings::default() });
    for port in 1..=5 {
        lab.pass(&udp(CLIENT, port, SERVER, 53));
    }
    let made: Vec<_> = told(&mut lab);
    assert_eq!(made.iter().filter(|(kind, ..)| *kind == New).count(), 5);
    assert_eq!(made.iter().filter(|(kind, ..)| *kind == Destroy).count(), 1, "one had to go for the fifth");
    let id = lab.list().iter().find(|conn| conn.original.sport == 5).expect("the last").id;
    assert_eq!(lab.ct.delete(0, 100, lab.now, 77, &mut |conn| conn.id == id), None);
    assert_eq!(told(&mut lab), [(Destroy, 77, 5)]);
    lab.ct.check();
    assert_eq!(lab.ct.delete(0, 100, lab.now, 77, &mut |conn| conn.id == id), None);
    assert_eq!((told(&mut lab), lab.ct.len()), (vec![], 3));
    lab.pass_ms(60_000);
    lab.ct.expire(lab.now, 100);
    let gone = told(&mut lab);
    assert!(gone.len() == 3 && gone.iter().all(|&(kind, by, _)| (kind, by) == (Destroy, 0)), "{gone:?}");
}

#[test]
fn there_is_room_for_so_many_and_no_more() {
    let mut lab = Lab::with(Settings { max: 2000, ..Settings::default() });
    lab.pass(&udp(CLIENT, 1, SERVER, 53));
    assert_eq!((told(&mut lab).len(), lab.ct.take_events_lost()), (0, 0), "nobody listens");
    lab.ct.listen(true);
    let room = lab.ct.events().capacity();
    for port in 2..1002 {
        let tracked = lab.track(&udp(CLIENT, port, SERVER, 53)).expect("room");
        lab.ct.confirm(&tracked, lab.now).expect("no clash");
    }
    assert_eq!((told(&mut lab).len(), lab.ct.take_events_lost()), (room, 1000 - room as u64));
    assert_eq!((lab.ct.events().capacity(), lab.ct.take_events_lost()), (room, 0));
}
