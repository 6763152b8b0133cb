//! Random packets and operations: nothing panics, and every invariant holds after each.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    /// A packet, and whether the rules let it pass.
    Packet(Vec<u8>, bool),
    /// Milliseconds go by.
    Wait(u64),
    Expire(usize),
    /// The last packet was rejected with a reset.
    Reset,
}

/// One host on each side and few ports, so that packets meet.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let options = prop::collection::vec(any::<u8>(), 0..20);
    let numbers = (0u32..20_000, 0u32..20_000, 0u16..9000);
    let tcp = (1u16..4, 1u16..4, any::<u8>(), numbers, options).prop_map(
        |(sport, dport, flags, (seq, ack, window), options)| {
            let payload = usize::from(window) % 5;
            (6, Segment { sport, dport, seq, ack, flags, window, options, payload }.bytes())
        },
    );
    let udp = (1u16..4, 1u16..4).prop_map(|(sport, dport)| (17, testing::udp(sport, dport, b"")));
    let icmp = (any::<u8>(), 0u8..2, prop::collection::vec(any::<u8>(), 0..60))
        .prop_map(|(kind, code, payload)| (1, testing::icmp(kind, code, [0, 1, 0, 0], &payload)));
    let echo = any::<bool>().prop_map(|reply| (1, testing::icmp(if reply { 0 } else { 8 }, 0, [0, 1, 0, 0], b"")));
    let raw = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..60));
    let l4 = prop_oneof![6 => tcp, 3 => udp, 1 => icmp, 1 => echo, 2 => raw];
    (l4, any::<bool>(), any::<bool>(), 0usize..40).prop_map(|((proto, l4), back, v6, cut)| {
        let (src, dst) = if v6 { (CLIENT6, SERVER6) } else { (CLIENT, SERVER) };
        let (src, dst) = if back { (dst, src) } else { (src, dst) };
        let proto = if v6 && proto == 1 { 58 } else { proto };
        // One in four is cut short.
        let length = if cut < 10 { l4.len().min(cut) } else { l4.len() };
        testing::ip(src, dst, proto, &l4[..length])
    })
}

fn operations() -> impl Strategy<Value = Vec<Op>> {
    let operation = prop_oneof![
        12 => (packet(), any::<bool>()).prop_map(|(packet, pass)| Op::Packet(packet, pass)),
        1 => (0u64..70_000).prop_map(Op::Wait),
        1 => (0usize..10).prop_map(Op::Expire),
        1 => Just(Op::Reset),
    ];
    prop::collection::vec(operation, 0..120)
}

fn apply_packet(lab: &mut Lab, packet: &[u8], pass: bool) -> Option<Tracked> {
    let frame = testing::frame(testing::ANY_HOP, packet);
    let packet = Packet::parse(&frame, PortId::WAN, lab.ct.settings().checksum).ok()?;
    let hash = lab.ct.hash(&Tuple::of(&packet));
    lab.ct.prefetch_bucket(hash);
    let candidate = lab.ct.prefetch_conn(&packet, hash);
    let before = lab.ct.len();
    let tracked = match lab.ct.track(&packet, &frame, hash, Template::DEFAULT, lab.now) {
        Ok(tracked) => {
            assert!(lab.ct.len() <= before, "tracking alone adds nothing");
            assert_eq!(tracked.conn == ConnRef::None, lab.ct.conn(tracked.conn).is_none());
            if pass {
                lab.ct.confirm(&tracked, lab.now).expect("no clash in one shard");
            }
            Some(tracked)
        }
        Err(reason) => {
            assert_eq!(reason, DropReason::ConntrackFull);
            None
        }
    };
    let found = lab.ct.lookup_candidate(candidate, &packet, hash, lab.now);
    assert_eq!(found, lab.ct.lookup(&Tuple::of(&packet), hash, lab.now), "the candidate of before");
    tracked
}

proptest! {
    #[test]
    fn no_sequence_breaks_an_invariant(operations in operations(), max in 1usize..6, checksum: bool, acct: bool) {
        let mut lab = Lab::with(Settings { max, checksum, acct, ..Settings::default() });
        let mut last = Tracked::INVALID;
        for operation in operations {
            match operation {
                Op::Packet(packet, pass) => last = apply_packet(&mut lab, &packet, pass).unwrap_or(last),
                Op::Wait(milliseconds) => lab.pass_ms(milliseconds),
                Op::Expire(budget) => prop_assert!(lab.ct.expire(lab.now, budget) <= budget),
                Op::Reset => lab.ct.close_by_reset(last.conn, lab.now),
            }
            prop_assert!(lab.ct.len() <= max);
            lab.ct.check();
        }
        // Everything ends.
        lab.pass_ms(500_000_000);
        while lab.ct.expire(lab.now, 3) == 3 {}
        prop_assert!(lab.ct.is_empty());
        prop_assert_eq!(lab.ct.next_deadline(), None);
        lab.ct.check();
    }
}

/// What happens to one of a few flows, or to all.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A packet of flow `number`, by its kind; whether the rules let it pass.
    Packet(u16, Kind, bool),
    Wait(u64),
    Expire(usize),
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    UdpReply,
    Syn,
    SynAck,
    Ack,
    Fin,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop::sample::select(vec![Kind::Udp, Kind::UdpReply, Kind::Syn, Kind::SynAck, Kind::Ack, Kind::Fin]);
    let step = prop_oneof![
        30 => (0u16..24, kind, prop::bool::weighted(0.9)).prop_map(|(flow, kind, pass)| Step::Packet(flow, kind, pass)),
        3 => (0u64..9000).prop_map(Step::Wait),
        1 => (0usize..10).prop_map(Step::Expire),
    ];
    prop::collection::vec(step, 0..300)
}

/// Odd flows are of IPv6.
fn bytes_of(flow: u16, kind: Kind) -> Vec<u8> {
    let (client, server) = if flow % 2 == 1 { (CLIENT6, SERVER6) } else { (CLIENT, SERVER) };
    let from_client = !matches!(kind, Kind::UdpReply | Kind::SynAck);
    let (src, dst) = if from_client { (client, server) } else { (server, client) };
    let (sport, dport) = if from_client { (1000 + flow, 80) } else { (80, 1000 + flow) };
    let (flags, seq, ack) = match kind {
        Kind::Udp | Kind::UdpReply => return testing::ip(src, dst, 17, &testing::udp(sport, dport, b"")),
        Kind::Syn => ("S", 1, 0),
        Kind::SynAck => ("S.", 100, 2),
        Kind::Ack => (".", 2, 101),
        Kind::Fin => ("F.", 2, 101),
    };
    let flags = testing::flags(flags);
    let segment = Segment { sport, dport, seq, ack, flags, window: 1000, options: vec![], payload: 0 };
    testing::ip(src, dst, 6, &segment.bytes())
}

/// The same by flow and protocol.
type Entries = std::collections::BTreeMap<(u16, u8), ConnView>;

fn entries(lab: &Lab) -> Entries {
    let key = |view: &ConnView| {
        (if view.original.sport == 80 { view.original.dport } else { view.original.sport }, view.proto)
    };
    let views = lab.list();
    let entries: Entries = views.iter().map(|view| (key(view), *view)).collect();
    assert_eq!(entries.len(), views.len(), "one flow, two connections");
    entries
}

/// 0: not ASSURED, and unanswered or in a handshake or closing; 1: not ASSURED; 2: closing; 3: not to be given up.
fn worth(view: &ConnView) -> u8 {
    let has = |status| CtStatus(view.status).any(status);
    let state = view.state.map_or("", |state| state.name());
    let closing = matches!(state, "FIN_WAIT" | "CLOSE_WAIT" | "LAST_ACK" | "TIME_WAIT" | "CLOSE");
    let opening = matches!(state, "SYN_SENT" | "SYN_RECV");
    match (has(CtStatus::ASSURED), closing, opening || !has(CtStatus::SEEN_REPLY)) {
        (true, false, _) => 3,
        (true, true, _) => 2,
        (false, false, false) => 1,
        (false, ..) => 0,
    }
}

/// One packet through the tracker; `before` is what a listing shows just before it.
fn check_packet(lab: &mut Lab, before: &Entries, flow: u16, kind: Kind, pass: bool) {
    let max = lab.ct.settings().max;
    let proto = if matches!(kind, Kind::Udp | Kind::UdpReply) { 17 } else { 6 };
    let key = (1000 + flow, proto);
    let (held, early_drops) = (lab.ct.len(), lab.ct.statistics().early_drop);
    let tracked = lab.track(&bytes_of(flow, kind));
    let confirmed = pass && tracked.is_ok_and(|tracked| lab.ct.confirm(&tracked, lab.now) == Ok(()));
    let begins = tracked.is_ok_and(|tracked| tracked.conn == ConnRef::Prepared);
    let after = entries(lab);
    // A SYN may end the flow's own connection to begin it anew; of the others:
    let lost = |entry: &(&(u16, u8), &ConnView)| *entry.0 != key && !after.contains_key(entry.0);
    let gone: Vec<&ConnView> = before.iter().filter(lost).map(|(_, view)| view).collect();
    assert!(after.keys().all(|it| *it == key || before.contains_key(it)), "out of nothing: {after:?}");
    if tracked == Err(DropReason::ConntrackFull) {
        assert!(
            before.len() == max && before.values().all(|view| worth(view) == 3),
            "refused for no reason: {before:?}"
        );
    }
    match begins && confirmed {
        true => assert!(after.contains_key(&key)),
        false => assert!(gone.is_empty() && (before.contains_key(&key) || !after.contains_key(&key)), "{gone:?}"),
    }
    assert_eq!(lab.ct.statistics().early_drop - early_drops, gone.len() as u64);
    if let [victim] = gone[..] {
        // What has expired and not been met yet takes room too.
        assert_eq!((held, lab.ct.len()), (max, max), "given up without need");
        let least = before.values().map(worth).min();
        assert!(Some(worth(victim)) == least && least < Some(3), "{victim} before one worth less: {before:?}");
    }
    assert!(gone.len() <= 1, "more than one given up: {gone:?}");
}

proptest! {
    /// Full tables most of the time: who comes, who goes, and why.
    #[test]
    fn a_full_table_gives_up_no_more_than_it_must(steps in steps(), max in 1usize..30) {
        let mut lab = Lab::with(Settings { max, ..Settings::default() });
        for step in steps {
            let before = entries(&lab);
            match step {
                Step::Packet(flow, kind, pass) => check_packet(&mut lab, &before, flow, kind, pass),
                Step::Wait(milliseconds) => lab.pass_ms(milliseconds),
                Step::Expire(budget) => {
                    lab.ct.expire(lab.now, budget);
                    for (key, view) in &before {
                        // The collector, after a refusal, may take closing connections; nothing else that lives.
                        prop_assert!(entries(&lab).contains_key(key) || worth(view) == 2);
                    }
                }
            }
            lab.ct.check();
        }
    }
}
