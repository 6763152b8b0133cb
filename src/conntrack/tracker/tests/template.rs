//! What raw PREROUTING says: zones, NOTRACK; and marks and start times. `scripts/parity` holds the same against the kernel's.

use super::*;

impl Lab {
    /// Tracks and confirms under a template.
    fn pass_as(&mut self, packet: &[u8], template: Template) -> Result<CtInfo, DropReason> {
        let frame = testing::frame(testing::ANY_HOP, packet);
        let parsed = Packet::parse(&frame, PortId::LAN, true).expect("an IP packet");
        let hash = self.ct.hash(&Tuple::of(&parsed));
        let tracked = self.ct.track(&parsed, &frame, hash, template, self.now)?;
        self.ct.confirm(&tracked, self.now)?;
        self.ct.check();
        Ok(tracked.info)
    }
}

fn zone(id: u16, direction: ZoneDirection) -> Template {
    Template { zone: Zone { id, direction }, ..Template::DEFAULT }
}

const BOTH: ZoneDirection = ZoneDirection::Both;
const ORIGINAL: ZoneDirection = ZoneDirection::Original;
const REPLY: ZoneDirection = ZoneDirection::Reply;

#[test]
fn a_packet_that_is_not_to_be_tracked_leaves_no_trace() {
    let mut lab = Lab::new();
    let query = udp(CLIENT, 1, SERVER, 53);
    assert_eq!(lab.pass_as(&query, Template::NOTRACK), Ok(CtInfo::Untracked));
    assert_eq!(lab.ct.len(), 0);
    // Nor does it belong to a connection that is there.
    lab.pass(&query);
    assert_eq!(lab.pass_as(&udp(SERVER, 53, CLIENT, 1), Template::NOTRACK), Ok(CtInfo::Untracked));
    assert_eq!(lab.pass(&query), CtInfo::New, "the reply was not seen");
}

#[test]
fn a_zone_is_a_table_of_its_own() {
    let mut lab = Lab::new();
    let (query, answer) = (udp(CLIENT, 1, SERVER, 53), udp(SERVER, 53, CLIENT, 1));
    assert_eq!(lab.pass(&query), CtInfo::New);
    assert_eq!(lab.pass_as(&query, zone(7, BOTH)), Ok(CtInfo::New));
    assert_eq!(lab.ct.len(), 2);
    assert_eq!(lab.pass(&answer), CtInfo::EstablishedReply);
    assert_eq!(lab.pass_as(&query, zone(7, BOTH)), Ok(CtInfo::New), "the answer was another zone's");
    assert_eq!(lab.pass_as(&answer, zone(7, BOTH)), Ok(CtInfo::EstablishedReply));
    let lines = lab.lines();
    assert!(lines.iter().any(|line| line.ends_with(" mark=0 zone=7 use=1")), "{lines:?}");
}

#[test]
fn in_a_zone_of_one_direction_only_replies_are_in_the_way_of_a_translation() {
    let mut lab = Lab::new();
    let (query, answer) = (udp(CLIENT, 1, SERVER, 53), udp(SERVER, 53, CLIENT, 1));
    let parse = |packet: &[u8]| Packet::parse(&testing::frame(testing::ANY_HOP, packet), PortId::LAN, true);
    let wanted = Tuple::of(&parse(&query).expect("a packet"));
    // Whether a new connection from the same port to another server could come to have the tuple of the query.
    let is_taken = |lab: &mut Lab, template: Template| {
        let packet = udp(CLIENT, 1, "10.2.0.9".parse().expect("an address"), 53);
        let (frame, now) = (testing::frame(testing::ANY_HOP, &packet), lab.now);
        let parsed = parse(&packet).expect("a packet");
        let hash = lab.ct.hash(&Tuple::of(&parsed));
        lab.ct.track(&parsed, &frame, hash, template, now).expect("room");
        lab.ct.is_taken(&wanted, now)
    };
    assert_eq!(lab.pass_as(&answer, zone(1, ORIGINAL)), Ok(CtInfo::New));
    assert!(!is_taken(&mut lab, zone(1, ORIGINAL)), "what the server began is in zone 1, the reply would be in zone 0");
    let mut lab = Lab::new();
    assert_eq!(lab.pass_as(&query, zone(2, ORIGINAL)), Ok(CtInfo::New));
    assert!(is_taken(&mut lab, zone(1, ORIGINAL)), "its reply is in zone 0 too");
}

#[test]
fn a_zone_of_the_original_direction_is_answered_from_zone_0() {
    let mut lab = Lab::new();
    let (query, answer) = (udp(CLIENT, 1, SERVER, 53), udp(SERVER, 53, CLIENT, 1));
    assert_eq!(lab.pass_as(&query, zone(7, ORIGINAL)), Ok(CtInfo::New));
    assert_eq!(lab.pass(&answer), CtInfo::EstablishedReply);
    assert_eq!(lab.pass_as(&query, zone(7, ORIGINAL)), Ok(CtInfo::Established));
    let line = &lab.lines()[0];
    assert!(line.contains(" sport=1 dport=53 zone-orig=7 src=10.2.0.2 ") && line.ends_with(" mark=0 use=1"), "{line}");
    // Another zone's connection would be answered by the same packets: it is dropped.
    assert_eq!(lab.pass_as(&query, zone(8, ORIGINAL)), Err(DropReason::ConntrackClash));
    let statistics = lab.ct.statistics();
    assert_eq!((statistics.insert_failed, statistics.drop, lab.ct.len()), (1, 1, 1));
}

#[test]
fn behind_an_expired_connection_another_may_have_the_tuple() {
    let mut lab = Lab::new();
    let (query, crossing) = (udp(CLIENT, 1, SERVER, 53), udp(SERVER, 53, CLIENT, 1));
    assert_eq!(lab.pass_as(&query, zone(7, REPLY)), Ok(CtInfo::New));
    lab.pass_ms(20_000);
    // What answers this one looks as what began the first.
    assert_eq!(lab.pass_as(&crossing, zone(8, ORIGINAL)), Ok(CtInfo::New));
    lab.pass_ms(15_000);
    assert_eq!((lab.ct.len(), lab.pass(&query)), (2, CtInfo::EstablishedReply));
    assert_eq!((lab.ct.len(), lab.ct.statistics().expired), (1, 1));
}

#[test]
fn a_zone_of_the_reply_direction_is_where_answers_are_looked_up() {
    let mut lab = Lab::new();
    let (query, answer) = (udp(CLIENT, 1, SERVER, 53), udp(SERVER, 53, CLIENT, 1));
    assert_eq!(lab.pass_as(&query, zone(7, REPLY)), Ok(CtInfo::New));
    assert_eq!(lab.pass(&query), CtInfo::New);
    assert_eq!((lab.ct.len(), lab.pass_as(&answer, zone(7, REPLY))), (1, Ok(CtInfo::EstablishedReply)));
    assert!(lab.lines()[0].contains(" sport=53 dport=1 zone-reply=7 mark=0 "), "{:?}", lab.lines());
    // From zone 0 it would begin a connection whose reply tuple is taken.
    assert_eq!(lab.pass_as(&answer, Template::DEFAULT), Err(DropReason::ConntrackClash));
    assert_eq!(lab.ct.len(), 1);
}

#[test]
fn an_error_is_related_within_its_zone() {
    let mut lab = Lab::new();
    let query = udp(CLIENT, 1, SERVER, 53);
    let error = icmp(ROUTER, CLIENT, 3, 3, [0; 4], &query);
    lab.pass_as(&query, zone(7, BOTH)).expect("room");
    assert_eq!(lab.pass(&error), CtInfo::Invalid);
    assert_eq!(lab.pass_as(&error, zone(7, BOTH)), Ok(CtInfo::RelatedReply));
    let mut lab = Lab::new();
    lab.pass_as(&query, zone(7, ORIGINAL)).expect("room");
    assert_eq!(lab.pass(&error), CtInfo::RelatedReply, "it goes the way of a reply");
}

#[test]
fn a_mark_is_the_connections() {
    let mut lab = Lab::new();
    let query = udp(CLIENT, 1, SERVER, 53);
    let tracked = lab.track(&query).expect("room");
    assert!(lab.ct.set_mark(tracked.conn, 5), "a prepared connection can be marked");
    lab.ct.confirm(&tracked, lab.now).expect("no clash");
    let again = lab.track(&udp(SERVER, 53, CLIENT, 1)).expect("room");
    assert_eq!(lab.ct.conn(again.conn).map(Conn::mark), Some(5));
    assert!(lab.ct.set_mark(again.conn, 6));
    assert!(lab.lines()[0].contains(" mark=6 "), "{:?}", lab.lines());
    assert!(!lab.ct.set_mark(ConnRef::None, 7));
}

#[test]
fn start_times_are_kept_when_asked_for_at_start() {
    let settings = Settings { max: 8, timestamp: true, ..Settings::default() };
    let mut lab = Lab::with(settings.clone());
    let confirmed = lab.now;
    lab.pass(&udp(CLIENT, 1, SERVER, 53));
    lab.pass_ms(3);
    lab.pass(&udp(CLIENT, 1, SERVER, 53));
    assert_eq!(lab.list()[0].start, Some(confirmed.as_ns()));
    // Off, a connection has none; on again, those made since have.
    lab.ct.set_settings(Settings { timestamp: false, ..settings.clone() }).expect("may be turned off");
    lab.pass(&udp(CLIENT, 2, SERVER, 53));
    lab.ct.set_settings(settings).expect("and on again");
    let starts: Vec<bool> = lab.list().iter().map(|view| view.start.is_some()).collect();
    assert_eq!(starts.iter().filter(|has| **has).count(), 1, "{starts:?}");

    let mut lab = Lab::new();
    lab.pass(&udp(CLIENT, 1, SERVER, 53));
    assert_eq!(lab.list()[0].start, None);
    let on = Settings { timestamp: true, ..lab.ct.settings().clone() };
    assert!(lab.ct.set_settings(on).is_err_and(|why| why.contains("restart")));
}
