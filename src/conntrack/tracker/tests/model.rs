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
    lab.ct.prefetch_conn(&packet, hash);
    let before = lab.ct.len();
    match lab.ct.track(&packet, &frame, hash, lab.now) {
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
    }
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
                Op::Reset => lab.ct.close_by_reset(&last, lab.now),
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
