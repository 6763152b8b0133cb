use super::*;
use crate::conntrack::ConnView;
use crate::conntrack::homes::Homes;
use crate::conntrack::testing::{self, Segment};
use crate::device::PortId;
use crate::steering::Steering;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

mod event;
mod flood;
mod help;
mod model;
mod tcp;
mod template;

/// A tracker and a clock.
struct Lab {
    ct: Conntrack,
    now: Instant,
}

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2));
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 9));
const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2));
const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 2));
const NEIGHBOUR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

impl Lab {
    fn new() -> Lab {
        Lab::with(Settings { max: 64, ..Settings::default() })
    }

    fn with(settings: Settings) -> Lab {
        Lab { ct: Conntrack::new(settings, [0x1234, 0x5678]), now: Instant::from_secs(1000) }
    }

    fn pass_ms(&mut self, milliseconds: u64) {
        self.now = self.now + milliseconds * 1_000_000;
    }

    /// Tracks an IP packet without confirming it.
    fn track(&mut self, packet: &[u8]) -> Result<Tracked, DropReason> {
        let frame = testing::frame(testing::ANY_HOP, packet);
        let packet = Packet::parse(&frame, PortId::LAN, self.ct.settings().checksum).expect("an IP packet");
        let hash = self.ct.hash(&Tuple::of(&packet));
        self.ct.track(&packet, &frame, hash, Template::DEFAULT, self.now)
    }

    /// Tracks and confirms; what the rules would have seen.
    fn pass(&mut self, packet: &[u8]) -> CtInfo {
        let tracked = self.track(packet).expect("room");
        self.ct.confirm(&tracked, self.now).expect("no clash");
        self.ct.check();
        tracked.info
    }

    fn list(&self) -> Vec<ConnView> {
        let mut views = Vec::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = self.ct.list(at, 7, self.now, &mut |view| views.push(*view));
        }
        views
    }

    fn lines(&self) -> Vec<String> {
        self.list().iter().map(|view| view.to_string()).collect()
    }

    /// Seconds left and whether it is ASSURED, of the only connection.
    fn only(&self) -> (u32, bool) {
        let views = self.list();
        assert_eq!(views.len(), 1, "{views:?}");
        (views[0].timeout, CtStatus(views[0].status).any(CtStatus::ASSURED))
    }
}

fn udp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Vec<u8> {
    testing::ip(src, dst, 17, &testing::udp(sport, dport, b"abc"))
}

fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    testing::ip(src, dst, if src.is_ipv4() { 1 } else { 58 }, &testing::icmp(kind, code, rest, payload))
}

#[test]
fn udp_is_new_until_answered() {
    let mut lab = Lab::new();
    assert_eq!(lab.pass(&udp(CLIENT, 1000, SERVER, 53)), CtInfo::New);
    assert_eq!(lab.pass(&udp(CLIENT, 1000, SERVER, 53)), CtInfo::New);
    assert_eq!(lab.pass(&udp(SERVER, 53, CLIENT, 1000)), CtInfo::EstablishedReply);
    assert_eq!(lab.pass(&udp(CLIENT, 1000, SERVER, 53)), CtInfo::Established);
    assert_eq!(
        lab.lines(),
        ["udp      17 30 src=10.1.0.2 dst=10.2.0.2 sport=1000 dport=53 src=10.2.0.2 dst=10.1.0.2 sport=53 dport=1000 \
          mark=0 use=1"]
    );
}

#[test]
fn udp_becomes_a_stream_only_after_two_seconds() {
    let (query, answer) = (udp(CLIENT, 1000, SERVER, 53), udp(SERVER, 53, CLIENT, 1000));
    let mut lab = Lab::new();
    for packet in [&query, &answer, &query, &answer] {
        lab.pass(packet);
        assert_eq!(lab.only(), (30, false));
    }
    lab.pass_ms(2000);
    lab.pass(&query);
    assert_eq!(lab.only(), (30, false), "two seconds to the nanosecond are not more than two seconds");
    lab.pass_ms(1);
    lab.pass(&query);
    assert_eq!(lab.only(), (120, true));

    // The first reply itself never makes a stream, however late.
    let mut lab = Lab::new();
    lab.pass(&query);
    lab.pass_ms(5000);
    lab.pass(&answer);
    assert_eq!(lab.only(), (30, false));
    lab.pass(&answer);
    assert_eq!(lab.only(), (120, true));
}

#[test]
fn one_way_udp_stays_new_and_is_renewed() {
    let mut lab = Lab::new();
    for _ in 0..10 {
        assert_eq!(lab.pass(&udp(CLIENT, 1000, SERVER, 53)), CtInfo::New);
        lab.pass_ms(20_000);
    }
    assert_eq!(lab.only(), (10, false));
}

/// As in Linux, where the maximum is lowered under those that there are: each new one takes an old one's place.
#[test]
fn several_workers_over_a_lowered_maximum_take_new_connections_for_old_ones() {
    let steering = Arc::new(Steering::software(2, [1, 2], "a test"));
    let settings = Settings { max: 90, ..Settings::default() };
    let homes = Homes::of_all(&steering, 128).into_iter().next().expect("two workers");
    let mut lab = Lab { ct: Conntrack::among(settings.clone(), 128, [1, 2], homes), now: Instant::from_secs(1000) };
    for port in 0..60 {
        lab.pass(&udp(CLIENT, 2000 + port, SERVER, 53));
    }
    lab.ct.set_settings(Settings { max: 50, ..settings }).expect("less is possible");
    for port in 0..20 {
        assert_eq!(lab.pass(&udp(CLIENT, 3000 + port, SERVER, 53)), CtInfo::New);
        assert_eq!((lab.ct.total(), lab.ct.len()), (60, 60));
    }
    let counted = lab.ct.statistics();
    assert_eq!((counted.early_drop, counted.drop, counted.chaintoolong), (20, 0, 0));
}

#[test]
fn a_packet_that_is_not_confirmed_leaves_nothing() {
    let mut lab = Lab::new();
    let tracked = lab.track(&udp(CLIENT, 1000, SERVER, 53)).expect("room");
    assert_eq!((tracked.info, tracked.conn, tracked.status), (CtInfo::New, ConnRef::Prepared, CtStatus(0)));
    assert!(lab.ct.conn(ConnRef::Prepared).is_some());
    assert!(lab.ct.is_empty() && lab.list().is_empty());
    // The answer to it is a connection of its own.
    assert_eq!(lab.pass(&udp(SERVER, 53, CLIENT, 1000)), CtInfo::New);
    assert_eq!(lab.ct.len(), 1);
    // What was prepared before that is gone: confirming it late does nothing.
    assert_eq!(lab.ct.confirm(&tracked, lab.now), Ok(()));
    assert_eq!(lab.ct.len(), 1);
}

#[test]
fn the_timeout_starts_to_count_at_confirmation() {
    let mut lab = Lab::new();
    let tracked = lab.track(&udp(CLIENT, 1000, SERVER, 53)).expect("room");
    lab.pass_ms(7000);
    lab.ct.confirm(&tracked, lab.now).expect("room");
    assert_eq!(lab.only(), (30, false));
}

#[test]
fn the_status_is_confirmed_from_the_second_packet() {
    let mut lab = Lab::new();
    lab.pass(&udp(CLIENT, 1000, SERVER, 53));
    let again = lab.track(&udp(CLIENT, 1000, SERVER, 53)).expect("room");
    assert_eq!((again.info, again.status), (CtInfo::New, CtStatus::CONFIRMED));
    let reply = lab.track(&udp(SERVER, 53, CLIENT, 1000)).expect("room");
    assert_eq!(reply.status, CtStatus::CONFIRMED.with(CtStatus::SEEN_REPLY));
}

#[test]
fn an_expired_connection_is_matched_by_nothing() {
    let mut lab = Lab::new();
    lab.pass(&udp(CLIENT, 1000, SERVER, 53));
    lab.pass_ms(30_000);
    assert!(lab.list().is_empty());
    assert_eq!(lab.ct.len(), 1, "not collected yet");
    let error = icmp(ROUTER, CLIENT, 3, 1, [0; 4], &udp(CLIENT, 1000, SERVER, 53));
    assert_eq!(lab.pass(&error), CtInfo::Invalid);
    assert_eq!(lab.ct.len(), 0, "the lookup removed it");
    lab.pass(&udp(CLIENT, 1000, SERVER, 53));
    lab.pass_ms(30_000);
    assert_eq!(lab.pass(&udp(SERVER, 53, CLIENT, 1000)), CtInfo::New, "no reply to the dead");
    assert_eq!((lab.ct.len(), lab.ct.statistics().expired), (1, 2));
}

#[test]
fn expiry_is_bounded_and_ends() {
    let mut lab = Lab::new();
    for port in 0..50 {
        lab.pass(&udp(CLIENT, port, SERVER, 53));
    }
    assert_eq!(lab.ct.expire(lab.now, 100), 0);
    lab.pass_ms(31_000);
    assert!(lab.ct.next_deadline().is_some_and(|deadline| deadline <= lab.now));
    assert_eq!((lab.ct.expire(lab.now, 20), lab.ct.len()), (20, 30));
    assert_eq!((lab.ct.expire(lab.now, 100), lab.ct.len()), (30, 0));
    assert_eq!((lab.ct.expire(lab.now, 100), lab.ct.next_deadline()), (0, None));
    lab.ct.check();
}

#[test]
fn a_full_table_drops_early_and_then_refuses() {
    let settings = Settings { max: 8, ..Settings::default() };
    let mut lab = Lab::with(settings);
    // Eight that are assured: nothing may be dropped for a ninth.
    for port in 0..8 {
        lab.pass(&udp(CLIENT, port, SERVER, 53));
        lab.pass(&udp(SERVER, 53, CLIENT, port));
    }
    lab.pass_ms(2001);
    for port in 0..8 {
        lab.pass(&udp(CLIENT, port, SERVER, 53));
    }
    assert_eq!(lab.track(&udp(CLIENT, 9, SERVER, 53)), Err(DropReason::ConntrackFull));
    assert_eq!((lab.ct.len(), lab.ct.statistics().drop, lab.ct.statistics().early_drop), (8, 1, 0));
    // What is there goes on, and so does what needs no entry.
    assert_eq!(lab.pass(&udp(SERVER, 53, CLIENT, 3)), CtInfo::EstablishedReply);
    let ns = icmp(CLIENT6, SERVER6, 135, 0, [0; 4], &[0; 16]);
    assert_eq!(lab.pass(&ns), CtInfo::Untracked);
    // Once they have expired there is room without any collection.
    lab.pass_ms(120_000);
    assert_eq!(lab.pass(&udp(CLIENT, 9, SERVER, 53)), CtInfo::New);
}

#[test]
fn early_drop_takes_the_oldest_without_a_reply() {
    let mut lab = Lab::with(Settings { max: 4, ..Settings::default() });
    lab.pass(&udp(CLIENT, 1, SERVER, 53));
    lab.pass(&udp(SERVER, 53, CLIENT, 1));
    lab.pass_ms(1000);
    for port in [2, 3, 4] {
        lab.pass(&udp(CLIENT, port, SERVER, 53));
        lab.pass_ms(1000);
    }
    let ports = |lab: &Lab| {
        let mut ports: Vec<u16> = lab.list().iter().map(|view| view.original.sport).collect();
        ports.sort_unstable();
        ports
    };
    // A packet that the rules drop costs nobody anything.
    let refused = lab.track(&udp(CLIENT, 5, SERVER, 53)).expect("room to be had");
    assert_eq!((refused.conn, ports(&lab)), (ConnRef::Prepared, vec![1, 2, 3, 4]));
    let mut kept = vec![1, 2, 3, 4];
    for port in 5..20 {
        assert_eq!(lab.pass(&udp(CLIENT, port, SERVER, 53)), CtInfo::New);
        let now = ports(&lab);
        kept.retain(|port| now.contains(port));
        lab.pass_ms(10);
    }
    assert_eq!((ports(&lab), kept), (vec![1, 17, 18, 19], vec![1]), "in the order they came");
    assert_eq!(lab.ct.statistics().early_drop, 15);
}

#[test]
fn early_drop_takes_answered_ones_before_closing_ones_and_no_open_one() {
    let segment = |port: u16, from_client: bool, flags: &str| {
        let (seq, ack) = if from_client { (1 + u32::from(flags != "S"), 101) } else { (100, 2) };
        let (sport, dport) = if from_client { (port, 80) } else { (80, port) };
        let flags = testing::flags(flags);
        let bytes = Segment { sport, dport, seq, ack, flags, window: 9, options: vec![], payload: 0 }.bytes();
        if from_client { testing::ip(CLIENT, SERVER, 6, &bytes) } else { testing::ip(SERVER, CLIENT, 6, &bytes) }
    };
    let mut lab = Lab::with(Settings { max: 5, ..Settings::default() });
    for port in [1, 2] {
        for (from_client, flags) in [(true, "S"), (false, "S."), (true, ".")] {
            lab.pass(&segment(port, from_client, flags));
        }
    }
    lab.pass(&segment(2, true, "F."));
    lab.pass_ms(5000);
    for port in [10, 11] {
        lab.pass(&udp(CLIENT, port, SERVER, 53));
        lab.pass(&udp(SERVER, 53, CLIENT, port));
        lab.pass_ms(1000);
    }
    let answered_and_assured = |lab: &mut Lab, port| {
        lab.pass(&udp(CLIENT, port, SERVER, 53));
        lab.pass_ms(2001);
        lab.pass(&udp(SERVER, 53, CLIENT, port));
        lab.pass(&udp(SERVER, 53, CLIENT, port));
    };
    let there = |lab: &Lab, port: u16| lab.list().iter().any(|view| view.original.sport == port);
    for (port, gone) in [(20, None), (21, Some(10)), (22, Some(11)), (23, Some(2))] {
        answered_and_assured(&mut lab, port);
        assert_eq!((lab.ct.len(), gone.filter(|&gone| there(&lab, gone))), (5.min(lab.ct.len()), None), "{port}");
    }
    assert_eq!(lab.track(&udp(CLIENT, 24, SERVER, 53)), Err(DropReason::ConntrackFull));
    assert!([1, 20, 21, 22, 23].into_iter().all(|port| there(&lab, port)));
}

#[test]
fn after_a_refusal_the_collector_makes_room_among_closing_connections() {
    let segment = |number: u32, from_client: bool, flags: &str| {
        let client = IpAddr::from(0x0a01_0000u32.wrapping_add(number).to_be_bytes());
        let (seq, ack) = if from_client { (1 + u32::from(flags != "S"), 101) } else { (100, 2) };
        let (sport, dport) = if from_client { (1000, 80) } else { (80, 1000) };
        let flags = testing::flags(flags);
        let bytes = Segment { sport, dport, seq, ack, flags, window: 9, options: vec![], payload: 0 }.bytes();
        if from_client { testing::ip(client, SERVER, 6, &bytes) } else { testing::ip(SERVER, client, 6, &bytes) }
    };
    const TABLE: u32 = 2000;
    let mut lab = Lab::with(Settings { max: TABLE as usize, ..Settings::default() });
    let send = |lab: &mut Lab, packet: &[u8]| {
        let tracked = lab.track(packet)?;
        lab.ct.confirm(&tracked, lab.now).map(|()| tracked.info)
    };
    for number in 0..TABLE {
        for (from_client, flags) in [(true, "S"), (false, "S."), (true, ".")] {
            send(&mut lab, &segment(number, from_client, flags)).expect("room");
        }
        // So few that a search does not always meet one.
        if number % 200 == 0 {
            send(&mut lab, &segment(number, true, "F.")).expect("known");
        }
    }
    let mut number = TABLE;
    while send(&mut lab, &segment(number, true, "S")).is_ok() {
        number += 1;
        assert!(number < TABLE + 10, "never refused");
        // It opens, or the next would take its place.
        for (from_client, flags) in [(false, "S."), (true, ".")] {
            send(&mut lab, &segment(number - 1, from_client, flags)).expect("known");
        }
    }
    let left = TABLE + 10 - number;
    assert_eq!((lab.ct.len(), lab.ct.next_deadline()), (TABLE as usize, Some(Instant::ZERO)));
    let mut looked = 0;
    while let piece @ 1.. = lab.ct.expire(lab.now, 64) {
        assert!(piece <= 64);
        looked += piece;
    }
    assert_eq!((lab.ct.len(), looked), ((TABLE - left) as usize, TABLE as usize));
    assert!(lab.list().iter().all(|view| view.state == Some(StateView::Established)));
    lab.ct.check();
}

#[test]
fn a_tuple_taken_before_confirmation_clashes() {
    // Not possible packet by packet; here the prepared connection is put back after another took its tuple.
    let mut lab = Lab::new();
    let tcp = |flags: &str| {
        let segment = Segment {
            sport: 1,
            dport: 2,
            seq: 0,
            ack: 0,
            flags: testing::flags(flags),
            window: 1,
            options: vec![],
            payload: 0,
        };
        testing::ip(CLIENT, SERVER, 6, &segment.bytes())
    };
    for (packet, wanted) in [(udp(CLIENT, 1, SERVER, 2), Ok(())), (tcp("S"), Err(DropReason::ConntrackClash))] {
        let tracked = lab.track(&packet).expect("room");
        let prepared = lab.ct.prepared;
        lab.ct.confirm(&tracked, lab.now).expect("room");
        lab.ct.prepared = prepared;
        assert_eq!(lab.ct.confirm(&tracked, lab.now), wanted);
    }
    let statistics = lab.ct.statistics();
    assert_eq!((statistics.clash_resolve, statistics.insert_failed, statistics.drop), (1, 1, 1));
    assert_eq!(lab.ct.len(), 2);
}

#[test]
fn echo_request_and_reply_share_identifier_and_code() {
    let mut lab = Lab::new();
    let id = |id: u8| [0, id, 0, 1];
    assert_eq!(lab.pass(&icmp(CLIENT, SERVER, 8, 5, id(79), b"")), CtInfo::New);
    assert_eq!(lab.pass(&icmp(SERVER, CLIENT, 0, 0, id(79), b"")), CtInfo::Invalid, "the code differs");
    assert_eq!(lab.pass(&icmp(SERVER, CLIENT, 0, 5, id(78), b"")), CtInfo::Invalid, "the identifier differs");
    assert_eq!(lab.pass(&icmp(SERVER, CLIENT, 0, 5, id(79), b"")), CtInfo::EstablishedReply);
    assert_eq!(
        lab.lines(),
        ["icmp     1 30 src=10.1.0.2 dst=10.2.0.2 type=8 code=5 id=79 src=10.2.0.2 dst=10.1.0.2 type=0 code=5 id=79 \
          mark=0 use=1"]
    );
}

#[test]
fn icmp_types_are_classified() {
    for kind in 0..=255u8 {
        let mut lab = Lab::new();
        let wanted = if matches!(kind, 8 | 13 | 15 | 17) { CtInfo::New } else { CtInfo::Invalid };
        assert_eq!(lab.pass(&icmp(CLIENT, SERVER, kind, 0, [0; 4], &[0; 28])), wanted, "ICMP type {kind}");
        let mut lab = Lab::new();
        let wanted = match kind {
            128 | 139 => CtInfo::New,
            130..=136 | 143 | 151 | 152 => CtInfo::Untracked,
            _ => CtInfo::Invalid,
        };
        assert_eq!(lab.pass(&icmp(CLIENT6, SERVER6, kind, 0, [0; 4], &[0; 48])), wanted, "ICMPv6 type {kind}");
    }
}

#[test]
fn an_icmp_error_is_related_to_what_it_reports_on() {
    let mut lab = Lab::new();
    let (query, answer) = (udp(CLIENT, 1000, SERVER, 53), udp(SERVER, 53, CLIENT, 1000));
    let about = |src, dst, kind, inner: &[u8]| icmp(src, dst, kind, 0, [0; 4], inner);
    assert_eq!(lab.pass(&about(SERVER, CLIENT, 3, &query)), CtInfo::Invalid, "no connection yet");
    lab.pass(&query);
    for kind in [3, 4, 5, 11, 12] {
        assert_eq!(lab.pass(&about(SERVER, CLIENT, kind, &query)), CtInfo::RelatedReply);
    }
    assert_eq!(lab.pass(&about(ROUTER, CLIENT, 3, &query)), CtInfo::RelatedReply, "whoever reports");
    assert_eq!(lab.pass(&about(CLIENT, SERVER, 3, &answer)), CtInfo::Related, "about the other direction");
    assert_eq!(lab.pass(&about(ROUTER, SERVER, 3, &query)), CtInfo::Invalid, "not told to the sender");
    assert_eq!(lab.pass(&about(ROUTER, CLIENT, 3, &query[..24])), CtInfo::RelatedReply, "ports are enough");
    assert_eq!(lab.pass(&about(ROUTER, CLIENT, 3, &query[..23])), CtInfo::Invalid);
    let mut fragment = query.clone();
    fragment[7] = 1;
    assert_eq!(lab.pass(&about(ROUTER, CLIENT, 3, &fragment)), CtInfo::Invalid, "about a later fragment");
    fragment[6..8].copy_from_slice(&[0x20, 0]);
    assert_eq!(lab.pass(&about(ROUTER, CLIENT, 3, &fragment)), CtInfo::RelatedReply, "about a first fragment");
    assert_eq!((lab.ct.len(), lab.ct.statistics().error), (1, 4));
    assert_eq!(lab.only(), (30, false));
    assert!(!CtStatus(lab.list()[0].status).any(CtStatus::SEEN_REPLY), "an error is no reply");
}

#[test]
fn an_icmpv6_error_is_related_too() {
    let mut lab = Lab::new();
    let query = udp(CLIENT6, 1000, SERVER6, 53);
    lab.pass(&query);
    for kind in [1, 2, 3, 4, 100, 127] {
        assert_eq!(lab.pass(&icmp(SERVER6, CLIENT6, kind, 0, [0; 4], &query)), CtInfo::RelatedReply, "{kind}");
    }
    assert_eq!(lab.pass(&icmp(SERVER6, CLIENT6, 1, 0, [0; 4], &query[..43])), CtInfo::Invalid);
    // Behind extension headers, too.
    let mut long = query.clone();
    long[6] = 60;
    long.splice(40..40, [44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(lab.pass(&icmp(SERVER6, CLIENT6, 1, 0, [0; 4], &long)), CtInfo::RelatedReply);
    long[51] = 8;
    assert_eq!(lab.pass(&icmp(SERVER6, CLIENT6, 1, 0, [0; 4], &long)), CtInfo::Invalid, "a later fragment");
}

#[test]
fn a_redirect_must_come_from_the_link() {
    let query = udp(CLIENT6, 1000, SERVER6, 53);
    let redirect = |src, code, hops: u8, option: &[u8]| {
        let mut message = vec![0; 32];
        message.extend(option);
        message.extend(&query);
        let mut packet = icmp(src, CLIENT6, 137, code, [0; 4], &message);
        packet[7] = hops;
        packet
    };
    let header = [4, 8, 0, 0, 0, 0, 0, 0];
    let mut lab = Lab::new();
    lab.pass(&query);
    assert_eq!(lab.pass(&redirect(NEIGHBOUR6, 0, 255, &header)), CtInfo::RelatedReply);
    assert_eq!(lab.pass(&redirect(NEIGHBOUR6, 0, 254, &header)), CtInfo::Invalid);
    assert_eq!(lab.pass(&redirect(SERVER6, 0, 255, &header)), CtInfo::Invalid);
    assert_eq!(lab.pass(&redirect(NEIGHBOUR6, 1, 255, &header)), CtInfo::Invalid);
    assert_eq!(lab.pass(&redirect(NEIGHBOUR6, 0, 255, &[4, 0, 0, 0, 0, 0, 0, 0])), CtInfo::Invalid);
    assert_eq!(lab.pass(&redirect(NEIGHBOUR6, 0, 255, &[2, 1, 0, 0, 0, 0, 0, 0])), CtInfo::Invalid);
}

#[test]
fn checksums_matter_only_if_asked_for() {
    let bad = |mut packet: Vec<u8>| {
        let last = packet.len() - 1;
        packet[last] ^= 1;
        packet
    };
    let packets = [bad(udp(CLIENT, 1, SERVER, 2)), bad(icmp(CLIENT, SERVER, 8, 0, [0; 4], b"abcd"))];
    for packet in &packets {
        assert_eq!(Lab::new().pass(packet), CtInfo::Invalid);
        let mut lab = Lab::with(Settings { max: 8, checksum: false, ..Settings::default() });
        assert_eq!(lab.pass(packet), CtInfo::New);
    }
}

#[test]
fn short_and_headless_packets_are_invalid() {
    let cases = [
        testing::ip(CLIENT, SERVER, 6, &[0; 3]),
        testing::ip(CLIENT, SERVER, 6, &[0; 19]),
        testing::ip(CLIENT, SERVER, 17, &[0; 3]),
        testing::ip(CLIENT, SERVER, 17, &[0; 7]),
        testing::ip(CLIENT, SERVER, 1, &[8, 0, 0, 0, 0, 0, 0]),
        testing::ip(CLIENT, SERVER, 58, &testing::icmp(128, 0, [0; 4], b"")),
        testing::ip(CLIENT6, SERVER6, 1, &testing::icmp(8, 0, [0; 4], b"")),
        testing::ip(CLIENT6, SERVER6, 59, b""),
        testing::ip(CLIENT6, SERVER6, 60, b""),
        testing::ip(CLIENT, SERVER, 132, &[0; 12]),
        testing::ip(CLIENT, SERVER, 47, &[0x20, 1, 8, 0, 0, 0, 0, 1]),
    ];
    for packet in cases {
        let mut lab = Lab::new();
        assert_eq!(lab.pass(&packet), CtInfo::Invalid, "{packet:02x?}");
        assert_eq!((lab.ct.len(), lab.ct.statistics().invalid + lab.ct.statistics().error), (0, 1));
    }
}

#[test]
fn gre_and_generic_protocols_have_their_timeouts() {
    let mut lab = Lab::new();
    let gre = |src, dst| testing::ip(src, dst, 47, &[0, 0, 8, 0]);
    for (packet, wanted) in
        [(gre(CLIENT, SERVER), (30, false)), (gre(SERVER, CLIENT), (30, false)), (gre(CLIENT, SERVER), (180, true))]
    {
        lab.pass(&packet);
        assert_eq!(lab.only(), wanted);
    }
    let mut lab = Lab::new();
    lab.pass(&testing::ip(CLIENT, SERVER, 47, &[0x20, 1, 0x88, 0x0b, 0, 0, 0x12, 0x34]));
    assert!(lab.lines()[0].contains("srckey=0x0 dstkey=0x1234 [UNREPLIED]"), "{:?}", lab.lines());
    let mut lab = Lab::new();
    for (src, dst) in [(CLIENT, SERVER), (SERVER, CLIENT), (CLIENT, SERVER)] {
        lab.pass(&testing::ip(src, dst, 50, b""));
        assert_eq!(lab.only(), (600, false));
    }
}

#[test]
fn an_association_opens_and_closes() {
    let sctp = |client: bool, vtag: u32, chunk: &[u8]| {
        let (sport, dport) = if client { (4000u16, 5000u16) } else { (5000, 4000) };
        let mut l4 = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
        l4.extend(vtag.to_be_bytes());
        l4.extend([0; 4]);
        l4.extend(chunk);
        let crc = !crate::wire::checksum::crc32c(!0, &l4);
        l4[8..12].copy_from_slice(&crc.to_le_bytes());
        let (src, dst) = if client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        testing::ip(src, dst, 132, &l4)
    };
    let init = |kind: u8, tag: u8| [vec![kind, 0, 0, 20, 0, 0, 0, tag], vec![0; 12]].concat();
    let plain = |kind: u8| vec![kind, 0, 0, 4];
    let mut lab = Lab::new();
    assert_eq!(lab.pass(&sctp(true, 7, &plain(0))), CtInfo::Invalid, "data out of the blue");
    let steps = [
        (sctp(true, 0, &init(1, 11)), CtInfo::New, "CLOSED", 10),
        (sctp(false, 11, &init(2, 22)), CtInfo::EstablishedReply, "COOKIE_WAIT", 3),
        (sctp(true, 22, &plain(10)), CtInfo::Established, "COOKIE_ECHOED", 3),
        (sctp(false, 11, &plain(11)), CtInfo::EstablishedReply, "ESTABLISHED", 210),
        (sctp(true, 23, &plain(0)), CtInfo::Invalid, "ESTABLISHED", 210),
        (sctp(true, 22, &plain(7)), CtInfo::Established, "SHUTDOWN_SENT", 3),
        (sctp(false, 11, &plain(8)), CtInfo::EstablishedReply, "SHUTDOWN_ACK_SENT", 3),
        (sctp(true, 22, &plain(14)), CtInfo::Established, "CLOSED", 10),
    ];
    for (number, (packet, info, state, timeout)) in steps.iter().enumerate() {
        assert_eq!(lab.pass(packet), *info, "step {number}");
        let view = lab.list()[0];
        assert_eq!((view.state.map(|state| state.name()), view.timeout), (Some(*state), *timeout), "step {number}");
    }
    assert!(lab.only().1, "assured since it was open");
    let mut wrong = sctp(true, 0, &init(1, 11));
    wrong[29] ^= 1;
    assert_eq!(Lab::new().pass(&wrong), CtInfo::Invalid, "CRC32c");
}

#[test]
fn accounting_counts_what_refreshes() {
    let mut lab = Lab::with(Settings { max: 8, acct: true, ..Settings::default() });
    lab.pass(&udp(CLIENT, 1, SERVER, 2));
    lab.pass(&udp(CLIENT, 1, SERVER, 2));
    lab.pass(&udp(SERVER, 2, CLIENT, 1));
    lab.pass(&icmp(SERVER, CLIENT, 3, 0, [0; 4], &udp(CLIENT, 1, SERVER, 2)));
    let line = &lab.lines()[0];
    assert!(line.contains("dport=2 packets=2 bytes=62 src="), "{line}");
    assert!(line.contains("dport=1 packets=1 bytes=31 mark="), "{line}");
}

#[test]
fn settings_change_without_losing_a_connection() {
    let mut lab = Lab::new();
    lab.pass(&udp(CLIENT, 1, SERVER, 2));
    let settings = Settings { udp_timeout: 7, max: 1, ..lab.ct.settings().clone() };
    lab.ct.set_settings(settings.clone()).expect("possible");
    assert_eq!(lab.only(), (30, false), "from the next packet on");
    lab.pass(&udp(CLIENT, 1, SERVER, 2));
    assert_eq!(lab.only(), (7, false));
    assert!(lab.ct.set_settings(Settings { max: 65, ..settings.clone() }).is_err());
    assert!(lab.ct.set_settings(Settings { acct: true, ..settings }).is_err());
}

#[test]
fn listing_in_pieces_shows_each_once() {
    let mut lab = Lab::new();
    for port in 0..40 {
        lab.pass(&udp(CLIENT, port, SERVER, 53));
    }
    let mut ports: Vec<u16> = lab.list().iter().map(|view| view.original.sport).collect();
    ports.sort_unstable();
    assert_eq!(ports, (0..40).collect::<Vec<_>>());
    let mut ids: Vec<u32> = lab.list().iter().map(|view| view.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 40);
    assert_eq!(lab.ct.list(1000, 5, lab.now, &mut |_| panic!("nothing there")), None);
}

#[test]
fn statistics_have_the_names_of_conntrack() {
    let names: Vec<&str> = Statistics::default().iter().map(|(name, _)| name).collect();
    let line = "found invalid insert insert_failed drop early_drop error search_restart clash_resolve chaintoolong";
    assert_eq!(names.join(" "), line);
    let mut sum = Statistics { invalid: 1, expired: 2, ..Statistics::default() };
    sum.add(&Statistics { invalid: 3, error: 1, ..Statistics::default() });
    assert_eq!((sum.invalid, sum.error, sum.expired), (4, 1, 2));
}
