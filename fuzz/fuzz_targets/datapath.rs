//! Any sequence of frames, batches, time, changes of routes and neighbours, through the whole core: nothing panics, no
//! frame is lost or made, every packet that goes in is forwarded, punted, held or dropped for a reason, and nothing that
//! leaves is malformed.
#![no_main]

use std::cell::Cell;
use std::net::IpAddr;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use xrouter::conntrack::Settings;
use xrouter::datapath::{self, BATCH, Batch, Effects, Shard};
use xrouter::device::{FramePool, PortId};
use xrouter::packet::Packet;
use xrouter::route::Neighbour;
use xrouter::rules::{self, RuleVector};
use xrouter::snapshot::{Policy, Routing, RoutingBuilder};
use xrouter::time::Instant;
use xrouter::wire::{Addr, Family, Mac, ipv4};

const FRAMES: usize = 256;
const PORT_MAC: [Mac; 2] = [Mac([2, 0, 0, 0, 1, 1]), Mac([2, 0, 0, 0, 2, 1])];
const RULES: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:new - [0:0]\n\
    -A FORWARD -m conntrack --ctstate INVALID -m limit --limit 10/sec -j LOG --log-prefix \"INVALID: \" --log-tcp-options\n\
    -A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
    -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i lan0 -j new\n\
    -A FORWARD -p tcp -j REJECT --reject-with tcp-reset\n\
    -A FORWARD -p udp -j REJECT\n\
    -A new -p tcp -m tcp ! --syn -j RETURN\n\
    -A new -p udp -m multiport --dports 53,123 -j ACCEPT\n\
    -A new -m state --state NEW -j ACCEPT\nCOMMIT\n";

/// With everything translated that can be, helpers, scarce ports, and ports lent in blocks.
const TRANSLATING: &str = "*raw\n:PREROUTING ACCEPT [0:0]\n\
    -A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp\n\
    -A PREROUTING -p udp -m udp --dport 69 -j CT --helper tftp\n\
    -A PREROUTING -p udp -m udp --dport 10080 -j CT --helper amanda\n\
    -A PREROUTING -p tcp -m tcp --dport 6667 -j CT --helper irc\n\
    -A PREROUTING -p tcp -m tcp --dport 1723 -j CT --helper pptp\n\
    -A PREROUTING -p tcp -m tcp --dport 6566 -j CT --helper sane\nCOMMIT\n\
    *nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
    -A PREROUTING -i wan0 -d 10.2.0.1/32 -p tcp -j DNAT --to-destination 10.1.0.2\n\
    -A PREROUTING -i wan0 -p udp -m udp --dport 1000:2000 -j DNAT --to-destination 10.1.0.2-10.1.0.3:500-600/1000\n\
    -A PREROUTING -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 80\n\
    -A POSTROUTING -o wan0 -p udp -m udp --dport 53 -j SNAT --to-source 10.2.0.1:1024-1151 --port-block-size 64 --port-blocks 2\n\
    -A POSTROUTING -o wan0 -p udp -m udp --dport 54 -j MASQUERADE --endpoint-independent-filtering\n\
    -A POSTROUTING -s 10.1.0.8/29 -o wan0 -j NETMAP --to 10.2.0.8/29\n\
    -A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n\
    *filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";
const TRANSLATING6: &str = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp\nCOMMIT\n\
    *nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
    -A PREROUTING -i wan0 -d fd02::1/128 -j DNAT --to-destination fd01::2\n\
    -A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n\
    *filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";

thread_local! {
    /// Frames live as long as the process: one set serves every case.
    static POOL: Cell<Option<FramePool>> = const { Cell::new(None) };
}

#[derive(Arbitrary, Debug)]
enum Op {
    /// Any bytes.
    Raw {
        wan: bool,
        frame: Vec<u8>,
    },
    /// A frame that gets past the link layer, with an IPv4 header whose checksum is right.
    Ipv4 {
        wan: bool,
        proto: u8,
        ends: u8,
        ttl: u8,
        options: u8,
        payload: Vec<u8>,
        finish: bool,
    },
    /// The same for IPv6.
    Ipv6 {
        wan: bool,
        next: u8,
        ends: u8,
        hops: u8,
        payload: Vec<u8>,
    },
    /// What the last packet that left is answered with, by TCP or UDP over IPv4.
    Answer {
        flags: u8,
        payload: Vec<u8>,
    },
    /// The batch so far is processed.
    Process,
    Wait {
        milliseconds: u16,
    },
    Neighbour {
        wan: bool,
        host: u8,
        state: u8,
    },
}

#[derive(Arbitrary, Debug)]
struct Case {
    max: u8,
    checksum: bool,
    translates: bool,
    operations: Vec<Op>,
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn routing() -> RoutingBuilder {
    let mut builder = RoutingBuilder::new();
    builder
        .add_port(PortId::LAN, "lan0", PORT_MAC[0], 1500)
        .add_port(PortId::WAN, "wan0", PORT_MAC[1], 1280)
        .add_address(PortId::LAN, addr("10.1.0.1"), 24)
        .add_address(PortId::WAN, addr("10.2.0.1"), 24)
        .add_address(PortId::LAN, addr("fd01::1"), 64)
        .add_address(PortId::WAN, addr("fd02::1"), 64)
        .add_neighbour(PortId::LAN, addr("10.1.0.2").into(), Mac([4; 6]))
        .add_neighbour(PortId::WAN, addr("10.2.0.2").into(), Mac([6; 6]))
        .add_neighbour(PortId::LAN, addr("fd01::2").into(), Mac([4; 6]))
        .add_neighbour(PortId::WAN, addr("fd02::2").into(), Mac([6; 6]));
    builder
}

struct World {
    shard: Shard,
    policy: Policy,
    builder: RoutingBuilder,
    routing: Routing,
    pool: FramePool,
    batch: Batch,
    effects: Effects,
    now: Instant,
    sent_in: u64,
    /// The last packet that left, and by which port.
    last: Option<(bool, Vec<u8>)>,
}

impl World {
    fn new(case: &Case) -> World {
        let vector = |text: &str, family| {
            RuleVector::compile(
                &rules::load("fuzz", text, family, &["lan0", "wan0"]).expect("the fuzzer's rules are good"),
            )
        };
        let policy = Policy {
            generation: 1,
            v4: vector(if case.translates { TRANSLATING } else { RULES }, Family::V4),
            v6: match case.translates {
                true => vector(TRANSLATING6, Family::V6),
                false => vector(&rules::default_policy(Family::V6, "lan0", "wan0"), Family::V6),
            },
        };
        let settings = Settings { max: usize::from(case.max) + 1, checksum: case.checksum, ..Settings::default() };
        let mut builder = routing();
        World {
            shard: Shard::new(settings, [7, 9], &policy),
            policy,
            routing: builder.build(),
            builder,
            pool: POOL.take().unwrap_or_else(|| FramePool::in_memory(FRAMES, 2048)),
            batch: Batch::default(),
            effects: Effects::new(BATCH),
            now: Instant::from_secs(1),
            sent_in: 0,
            last: None,
        }
    }

    fn push(&mut self, wan: bool, bytes: &[u8]) {
        let port = if wan { PortId::WAN } else { PortId::LAN };
        if !self.batch.takes(port) {
            self.process();
        }
        let Some(mut frame) = self.pool.take() else { return };
        frame.fill(&bytes[..bytes.len().min(1800)]);
        self.batch.push(port, frame);
        self.sent_in += 1;
        if self.batch.len() == BATCH {
            self.process();
        }
    }

    fn process(&mut self) {
        datapath::process(&mut self.shard, &self.policy, &self.routing, &mut self.batch, self.now, &mut self.effects);
        self.collect();
    }

    fn collect(&mut self) {
        for port in PortId::ALL {
            for frame in self.effects.transmit[port.index()].drain(..) {
                let packet = Packet::parse(frame.bytes(), port, false).expect("what leaves is a good packet");
                assert!(packet.ttl > 0 && packet.frame_len() == frame.len());
                self.last = Some((port == PortId::WAN, frame.bytes().to_vec()));
                self.pool.put(frame);
            }
        }
        for frame in self.effects.free.drain(..).chain(self.effects.punt.drain(..).map(|(_, frame)| frame)) {
            self.pool.put(frame);
        }
        for record in self.effects.logs.drain(..) {
            let line = rules::log_line(&record, &["lan0", "wan0"]);
            assert!(line.starts_with("INVALID: IN=") || line.starts_with("nat: "), "{line}");
        }
        self.effects.resolve.clear();
        assert_eq!(self.pool.len() + self.shard.waiting() + self.batch.len(), FRAMES, "a frame was lost or made");
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Raw { wan, frame } => self.push(*wan, frame),
            Op::Ipv4 { wan, proto, ends, ttl, options, payload, finish } => {
                let words = usize::from(options % 11);
                let mut bytes = link(*wan, 0x0800);
                let header = 20 + words * 4;
                let total = (header + payload.len()) as u16;
                let (src, dst) = ends_v4(*wan, *ends);
                bytes.extend([0x45 + words as u8, 0]);
                bytes.extend(total.to_be_bytes());
                bytes.extend([0, 1, 0x40, 0, *ttl, *proto, 0, 0]);
                bytes.extend(src.to_be_bytes());
                bytes.extend(dst.to_be_bytes());
                bytes.extend(payload.iter().chain(std::iter::repeat(&1)).take(words * 4));
                ipv4::set_checksum(&mut bytes[14..14 + header]);
                bytes.extend(payload);
                if *finish {
                    finish_checksum(&mut bytes);
                }
                self.push(*wan, &bytes);
            }
            Op::Ipv6 { wan, next, ends, hops, payload } => {
                let mut bytes = link(*wan, 0x86dd);
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend((payload.len() as u16).to_be_bytes());
                bytes.extend([*next, *hops]);
                let (src, dst) = if *wan { (0xfd02_u128, 0xfd01_u128) } else { (0xfd01, 0xfd02) };
                bytes.extend((src << 112 | u128::from(ends & 15)).to_be_bytes());
                bytes.extend((dst << 112 | u128::from(ends >> 4)).to_be_bytes());
                bytes.extend(payload);
                self.push(*wan, &bytes);
            }
            Op::Answer { flags, payload } => {
                self.process();
                if let Some((wan, answer)) =
                    self.last.as_ref().and_then(|(wan, frame)| Some((*wan, answer(*wan, frame, *flags, payload)?)))
                {
                    self.push(wan, &answer);
                }
            }
            Op::Process => self.process(),
            Op::Wait { milliseconds } => {
                self.process();
                self.now = self.now + u64::from(*milliseconds) * 1_000_000;
                datapath::expire(&mut self.shard, &self.policy, &self.routing, self.now, 64, &mut self.effects);
                self.collect();
            }
            Op::Neighbour { wan, host, state } => {
                let (port, net) = if *wan { (PortId::WAN, 0x0a02_0000) } else { (PortId::LAN, 0x0a01_0000) };
                let known = match state % 3 {
                    0 => Neighbour::Unknown,
                    1 => Neighbour::Failed,
                    _ => Neighbour::Reachable(Mac([8, 0, 0, 0, 0, *host])),
                };
                self.builder.set_neighbour(port, Addr::from_v4(net | u32::from(host & 15)), known);
                self.routing = self.builder.build();
            }
        }
    }
}

/// What the receiver of a frame sends back: addresses, ports and sequence numbers that fit, the rest as asked.
fn answer(wan: bool, frame: &[u8], flags: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let packet = Packet::parse(frame, PortId::LAN, false).ok()?;
    if packet.family != Family::V4 || packet.l4_len < 8 {
        return None;
    }
    let mut l4 = [packet.dport.to_be_bytes(), packet.sport.to_be_bytes()].concat();
    match packet.proto {
        6 => {
            let syn_or_fin = u32::from(packet.tcp_flags & 3 != 0);
            let ack = packet.seq.wrapping_add(u32::from(packet.tcp_payload_len())).wrapping_add(syn_or_fin);
            l4.extend(packet.ack.to_be_bytes());
            l4.extend(ack.to_be_bytes());
            l4.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
        }
        17 => {
            l4.extend((8 + payload.len() as u16).to_be_bytes());
            l4.extend([0; 2]);
        }
        _ => return None,
    }
    l4.extend(&payload[..payload.len().min(1400)]);
    let mut bytes = link(wan, 0x0800);
    bytes.extend([0x45, 0]);
    bytes.extend((20 + l4.len() as u16).to_be_bytes());
    bytes.extend([0, 1, 0x40, 0, 64, packet.proto, 0, 0]);
    bytes.extend(packet.dst.v4_bits().to_be_bytes());
    bytes.extend(packet.src.v4_bits().to_be_bytes());
    ipv4::set_checksum(&mut bytes[14..34]);
    bytes.extend(l4);
    finish_checksum(&mut bytes);
    Some(bytes)
}

fn link(wan: bool, ethertype: u16) -> Vec<u8> {
    let mut bytes = PORT_MAC[usize::from(wan)].0.to_vec();
    bytes.extend([4; 6]);
    bytes.extend(ethertype.to_be_bytes());
    bytes
}

fn ends_v4(wan: bool, ends: u8) -> (u32, u32) {
    let (src, dst) = if wan { (0x0a02_0000, 0x0a01_0000) } else { (0x0a01_0000, 0x0a02_0000) };
    (src | u32::from(ends & 15), dst | u32::from(ends >> 4))
}

/// Makes the transport checksum right, where there is a header for it: deeper states are reached by good packets.
fn finish_checksum(bytes: &mut [u8]) {
    if let Ok(packet) = Packet::parse(bytes, PortId::LAN, false) {
        let needed = if packet.proto == 6 { 20 } else { 8 };
        if matches!(packet.proto, 6 | 17) && usize::from(packet.l4_len) >= needed {
            xrouter::rewrite::write_transport_checksum(bytes, &packet);
        }
    }
}

fuzz_target!(|case: Case| {
    let mut world = World::new(&case);
    for op in &case.operations {
        world.step(op);
    }
    world.process();
    world.shard.conntrack.check();
    let counters = &world.shard.counters;
    let received: u64 = counters.ports.iter().map(|port| port.receive_packets).sum();
    assert_eq!(received, world.sent_in);
    // No neighbour is waited for that long: every frame comes home.
    for _ in 0..2 {
        world.step(&Op::Wait { milliseconds: 10_000 });
    }
    assert_eq!(world.pool.len(), FRAMES);
    POOL.set(Some(world.pool));
});
