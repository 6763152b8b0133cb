//! Any sequence of packets and operations: the tracker does not panic, adds nothing by looking, never holds more than it
//! may, and its table's invariants hold at every moment.
#![no_main]

#[path = "../../src/conntrack/testing.rs"]
mod testing;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use testing::Segment;
use xrouter::conntrack::{ConnRef, Conntrack, Settings, Template, Tracked, Tuple};
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::time::Instant;
use xrouter::verdict::DropReason;

#[derive(Arbitrary, Debug)]
struct Way {
    back: bool,
    v6: bool,
    port: u8,
    /// The rules let the packet pass.
    pass: bool,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Raw { frame: Vec<u8>, pass: bool },
    Tcp { way: Way, flags: u8, seq: u16, ack: u16, window: u16, options: [u8; 8], payload: u8 },
    Udp { way: Way },
    Other { way: Way, proto: u8, l4: Vec<u8> },
    Icmp { way: Way, kind: u8, code: u8, payload: Vec<u8> },
    /// An ICMP error about the last packet, cut after so many bytes.
    About { way: Way, kind: u8, cut: u8 },
    Wait { milliseconds: u32 },
    Expire { budget: u8 },
    Reset,
    List { budget: u8 },
}

#[derive(Arbitrary, Debug)]
struct Case {
    max: u8,
    checksum: bool,
    acct: bool,
    loose: bool,
    liberal: bool,
    operations: Vec<Op>,
}

struct World {
    ct: Conntrack,
    now: Instant,
    last: Tracked,
    last_packet: Vec<u8>,
}

impl World {
    fn ip(&mut self, way: &Way, proto: u8, l4: &[u8]) {
        let (client, server) = match way.v6 {
            false => (IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)), IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2))),
            true => (
                IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2)),
                IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 2)),
            ),
        };
        let (src, dst) = if way.back { (server, client) } else { (client, server) };
        let l4 = &l4[..l4.len().min(2000)];
        self.last_packet = testing::ip(src, dst, proto, l4);
        let frame = testing::frame(testing::ANY_HOP, &self.last_packet);
        self.frame(&frame, way.pass);
    }

    fn frame(&mut self, frame: &[u8], pass: bool) {
        let Ok(packet) = Packet::parse(frame, PortId::LAN, self.ct.settings().checksum) else { return };
        let hash = self.ct.hash(&Tuple::of(&packet));
        self.ct.prefetch_bucket(hash);
        self.ct.prefetch_conn(&packet, hash);
        let before = self.ct.len();
        match self.ct.track(&packet, frame, hash, Template::DEFAULT, self.now) {
            Ok(tracked) => {
                assert!(self.ct.len() <= before);
                assert_eq!(tracked.conn == ConnRef::None, self.ct.conn(tracked.conn).is_none());
                if pass {
                    self.ct.confirm(&tracked, self.now).expect("no clash in one shard");
                }
                self.last = tracked;
            }
            Err(reason) => assert_eq!(reason, DropReason::ConntrackFull),
        }
    }

    fn apply(&mut self, operation: Op) {
        match operation {
            Op::Raw { frame, pass } => self.frame(&frame, pass),
            Op::Tcp { way, flags, seq, ack, window, options, payload } => {
                let port = 1 + u16::from(way.port % 3);
                let (sport, dport) = if way.back { (80, port) } else { (port, 80) };
                let segment = Segment {
                    sport,
                    dport,
                    seq: u32::from(seq),
                    ack: u32::from(ack),
                    flags,
                    window,
                    options: options.into(),
                    payload: payload.into(),
                };
                self.ip(&way, 6, &segment.bytes());
            }
            Op::Udp { way } => {
                let port = 1 + u16::from(way.port % 3);
                let (sport, dport) = if way.back { (53, port) } else { (port, 53) };
                self.ip(&way, 17, &testing::udp(sport, dport, b""));
            }
            Op::Other { way, proto, l4 } => self.ip(&way, proto, &l4),
            Op::Icmp { way, kind, code, payload } => {
                let message = testing::icmp(kind, code, [0, way.port % 3, 0, 1], &payload);
                self.ip(&way, if way.v6 { 58 } else { 1 }, &message);
            }
            Op::About { way, kind, cut } => {
                let inner = self.last_packet[..self.last_packet.len().min(cut.into())].to_vec();
                let message = testing::icmp(kind, 0, [0; 4], &inner);
                self.ip(&way, if way.v6 { 58 } else { 1 }, &message);
            }
            Op::Wait { milliseconds } => self.now = self.now + u64::from(milliseconds) * 1_000_000,
            Op::Expire { budget } => assert!(self.ct.expire(self.now, budget.into()) <= budget.into()),
            Op::Reset => self.ct.close_by_reset(self.last.conn, self.now),
            Op::List { budget } => {
                let mut cursor = Some(0);
                while let Some(at) = cursor {
                    cursor = self.ct.list(at, budget.into(), self.now, &mut |view| assert!(view.to_string().len() > 60));
                }
            }
        }
    }
}

fuzz_target!(|case: Case| {
    let max = 1 + usize::from(case.max % 12);
    let settings = Settings {
        max,
        checksum: case.checksum,
        acct: case.acct,
        tcp_loose: case.loose,
        tcp_be_liberal: case.liberal,
        ..Settings::default()
    };
    let ct = Conntrack::new(settings, [1, 2]);
    let mut world = World { ct, now: Instant::from_secs(1), last: Tracked::INVALID, last_packet: vec![0; 20] };
    for operation in case.operations {
        world.apply(operation);
        assert!(world.ct.len() <= max);
        world.ct.check();
    }
});
