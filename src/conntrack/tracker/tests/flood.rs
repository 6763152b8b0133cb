//! A SYN flood that fills the table, in virtual time: who loses, and who gets in.
//!
//! Time is counted in rounds: the time in which the flood sends as many SYNs as the open connections leave room for.

use super::*;
use std::collections::BTreeMap;

/// What the open connections leave room for.
const ROOM: usize = 500;
const ROUND_NS: u64 = 100_000_000;
const ROUNDS: u64 = 8;
/// Clients, each trying once. Few, because those that get in become open connections, and leave less room.
const CLIENTS: u64 = 25;

struct Flood {
    /// How many in a hundred of the table's connections are open when it starts.
    open_percent: usize,
    /// The victim answers each SYN, after a hundredth of a round.
    answered: bool,
    /// Time between a client's SYN and its ACK, in hundredths of a round.
    handshake: u64,
}

struct Outcome {
    /// SYNs of the flood.
    syns: u32,
    /// Those of them that found room: as many as of anybody's.
    admitted: u32,
    /// Clients whose SYN found room.
    begun: u32,
    /// Clients whose connection opened.
    served: u32,
}

#[derive(Clone, Copy)]
enum Event {
    FloodSyn(u32),
    FloodAnswer(u32),
    Syn(u32),
    SynAck(u32),
    Ack(u32),
    /// A packet of an open connection.
    Data(u32),
}

fn address(prefix: u8, number: u32) -> IpAddr {
    IpAddr::from([prefix, (number >> 16) as u8, (number >> 8) as u8, number as u8])
}

/// A segment of client `number` (of those in `prefix`), or to it.
fn segment(prefix: u8, number: u32, from_client: bool, flags: &str) -> Vec<u8> {
    let (client, port) = (address(prefix, number), 40_000);
    let (sport, dport) = if from_client { (port, 443) } else { (443, port) };
    let (seq, ack) = match (from_client, flags) {
        (true, "S") => (100, 0),
        (true, _) => (101, 501),
        (false, _) => (500, 101),
    };
    let tcp =
        Segment { sport, dport, seq, ack, flags: testing::flags(flags), window: 1000, options: vec![], payload: 0 };
    match from_client {
        true => testing::ip(client, SERVER, 6, &tcp.bytes()),
        false => testing::ip(SERVER, client, 6, &tcp.bytes()),
    }
}

impl Flood {
    fn run(&self) -> Outcome {
        let table = ROOM * 100 / (100 - self.open_percent);
        let mut lab = Lab::with(Settings { max: table, checksum: false, ..Settings::default() });
        // The table is full when the flood begins; the connections that are not open lie anywhere between the others.
        let mut random = 7u64;
        let mut open = Vec::new();
        for number in 0..table as u32 {
            lab.send(&segment(10, number, true, "S")).expect("room");
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let to_open = table - ROOM - open.len();
            if (random >> 33) as usize % (table - number as usize) < to_open {
                open.push(number);
                lab.send(&segment(10, number, false, "S.")).expect("known");
                lab.send(&segment(10, number, true, ".")).expect("known");
            }
        }
        let mut events: BTreeMap<(u64, u64), Event> = BTreeMap::new();
        let mut serial = 0;
        let mut at = |events: &mut BTreeMap<_, _>, ns: u64, event| {
            serial += 1;
            events.insert((ns, serial), event);
        };
        let start = lab.now.as_ns();
        for number in 0..ROUNDS * ROOM as u64 {
            at(&mut events, start + number * ROUND_NS / ROOM as u64, Event::FloodSyn(number as u32));
        }
        // All clients have finished before the flood does.
        for number in 0..CLIENTS {
            let ns = start + ROUND_NS + number * (ROUNDS - 2) * ROUND_NS / CLIENTS;
            at(&mut events, ns, Event::Syn(number as u32));
            at(&mut events, ns, Event::Data(open[number as usize * 7 % open.len()]));
        }
        let mut outcome = Outcome { syns: 0, admitted: 0, begun: 0, served: 0 };
        while let Some(((ns, _), event)) = events.pop_first() {
            lab.now = Instant::from_ns(ns);
            match event {
                Event::FloodSyn(number) => {
                    let accepted = lab.send(&segment(66, number, true, "S"));
                    outcome.syns += 1;
                    outcome.admitted += u32::from(accepted.is_ok());
                    if self.answered && accepted == Ok(CtInfo::New) {
                        at(&mut events, ns + ROUND_NS / 100, Event::FloodAnswer(number));
                    }
                }
                Event::FloodAnswer(number) => {
                    let _ = lab.send(&segment(66, number, false, "S."));
                }
                Event::Syn(number) => {
                    if lab.send(&segment(20, number, true, "S")) == Ok(CtInfo::New) {
                        outcome.begun += 1;
                        at(&mut events, ns + self.handshake * ROUND_NS / 200, Event::SynAck(number));
                    }
                }
                Event::SynAck(number) => {
                    if lab.send(&segment(20, number, false, "S.")) == Ok(CtInfo::EstablishedReply) {
                        at(&mut events, ns + self.handshake * ROUND_NS / 200, Event::Ack(number));
                    }
                }
                Event::Ack(number) => {
                    let info = lab.send(&segment(20, number, true, "."));
                    outcome.served += u32::from(info == Ok(CtInfo::Established));
                }
                Event::Data(number) => {
                    let info = lab.send(&segment(10, number, true, "."));
                    assert_eq!(info, Ok(CtInfo::Established), "an open connection lost a packet");
                }
            }
            lab.ct.expire(lab.now, 1);
        }
        for number in open {
            let info = lab.send(&segment(10, number, false, "."));
            assert_eq!(info, Ok(CtInfo::EstablishedReply), "an open connection is gone");
        }
        lab.ct.check();
        assert_eq!(lab.ct.len(), table);
        outcome
    }
}

impl Lab {
    fn send(&mut self, packet: &[u8]) -> Result<CtInfo, DropReason> {
        let tracked = self.track(packet)?;
        self.ct.confirm(&tracked, self.now)?;
        Ok(tracked.info)
    }
}

/// What the head of `eviction` states.
#[test]
fn in_a_syn_flood_open_connections_go_on_and_clients_get_in() {
    for (open_percent, answered) in [(50, false), (90, false), (90, true)] {
        let Outcome { syns, admitted, served, .. } = Flood { open_percent, answered, handshake: 85 }.run();
        assert_eq!((admitted, served), (syns, CLIENTS as u32), "{open_percent} % open, answered: {answered}");
    }
    let Outcome { syns, admitted, begun, served } = Flood { open_percent: 98, answered: true, handshake: 85 }.run();
    assert!(admitted * 100 > syns * 90, "only {admitted} of {syns} found room");
    assert_eq!(served, begun, "who has found room keeps it");
    // Whoever takes longer than a round comes too late.
    let Outcome { served, .. } = Flood { open_percent: 50, answered: false, handshake: 110 }.run();
    assert_eq!(served, 0);
}
