//! Our side: the datapath, in memory, with the same rules.

use std::net::IpAddr;
use std::time::Instant as Clock;

use xrouter::conntrack::Settings;
use xrouter::datapath::{self, Batch, Effects, Shard};
use xrouter::device::{FramePool, PortId};
use xrouter::rules::{self, RuleVector};
use xrouter::snapshot::{Policy, Routing, RoutingBuilder};
use xrouter::time::Instant;
use xrouter::wire::{Addr, Family, Mac};

use crate::kernel::{HOSTS, MACS, host_mac};
use crate::talk::{Arrived, Router, of_version};
use crate::testing::{self, Hop};

const FRAMES: usize = 4;
const FRAME_SIZE: usize = 4096;

pub(crate) struct Ours {
    policy: Policy,
    routing: Routing,
    pool: FramePool,
    effects: Effects,
    batch: Batch,
    shard: Shard,
    start: Clock,
}

fn routing() -> Routing {
    let mut builder = RoutingBuilder::new();
    for (port, name, net) in [(PortId::LAN, "r0", 1u8), (PortId::WAN, "r1", 2)] {
        builder.add_port(port, name, Mac(MACS[port.index()]), 1500);
        builder.add_address(port, IpAddr::from([10, net, 0, 1]), 24);
        builder.add_address(port, IpAddr::from([0xfd00 + u16::from(net), 0, 0, 0, 0, 0, 0, 1]), 64);
        for host in HOSTS {
            let mac = Mac(host_mac(port == PortId::LAN, host));
            builder.add_neighbour(port, Addr::from(IpAddr::from([10, net, 0, host])), mac);
            let v6: IpAddr = [0xfd00 + u16::from(net), 0, 0, 0, 0, 0, 0, u16::from(host)].into();
            builder.add_neighbour(port, Addr::from(v6), mac);
        }
    }
    builder.build()
}

fn policy(text: &str) -> Policy {
    let vector = |family, version| {
        let text = of_version(text, version);
        let ruleset = rules::load("dialogue", &text, family, &["r0", "r1"]).unwrap_or_else(|wrong| panic!("{wrong}"));
        RuleVector::compile(&ruleset).always_tracking()
    };
    Policy { generation: 1, v4: vector(Family::V4, 4), v6: vector(Family::V6, 6) }
}

fn shard(policy: &Policy) -> Shard {
    Shard::new(Settings { max: 1000, ..Settings::default() }, [1, 2], policy)
}

impl Ours {
    pub(crate) fn new() -> Ours {
        let policy = policy("");
        let shard = shard(&policy);
        Ours {
            policy,
            routing: routing(),
            pool: FramePool::in_memory(FRAMES, FRAME_SIZE),
            effects: Effects::new(datapath::BATCH),
            batch: Batch::default(),
            shard,
            start: Clock::now(),
        }
    }

    fn now(&self) -> Instant {
        Instant::from_secs(1000) + self.start.elapsed().as_nanos() as u64
    }
}

impl Router for Ours {
    fn load(&mut self, rules: &str) {
        self.policy = policy(rules);
    }

    fn forget(&mut self) {
        self.shard.conntrack.check();
        self.shard = shard(&self.policy);
    }

    fn send(&mut self, from_client: bool, packet: &[u8]) -> Vec<Arrived> {
        let port = if from_client { PortId::LAN } else { PortId::WAN };
        let hop = Hop { dst_mac: MACS[port.index()], src_mac: host_mac(from_client, 2) };
        let mut buffer = self.pool.take().expect("a free frame");
        buffer.fill(&testing::frame(hop, packet));
        self.batch.push(port, buffer);
        let now = self.now();
        datapath::process(&mut self.shard, &self.policy, &self.routing, &mut self.batch, now, &mut self.effects);
        let mut arrived = Vec::new();
        for (index, queue) in self.effects.transmit.iter_mut().enumerate() {
            for frame in queue.drain(..) {
                arrived.push(Arrived { to_client: index == PortId::LAN.index(), packet: frame.bytes()[14..].to_vec() });
                self.pool.put(frame);
            }
        }
        for frame in self.effects.free.drain(..).chain(self.effects.punt.drain(..).map(|(_, frame)| frame)) {
            self.pool.put(frame);
        }
        assert_eq!(self.pool.len(), FRAMES, "a frame was lost or waits for a neighbour");
        self.shard.conntrack.check();
        arrived
    }

    fn end_tcp(&mut self) {
        let now = self.now();
        self.shard.conntrack.delete(0, 10_000, now, 0, &mut |view| view.proto == 6);
    }

    fn expected(&mut self) -> Vec<String> {
        let (mut lines, now) = (Vec::new(), self.now());
        // conntrack(8) shows those of IPv4, unless told otherwise.
        let end = self.shard.conntrack.list_expected(0, 10_000, now, &mut |view| {
            if view.family == 2 {
                lines.push(view.to_string());
            }
        });
        assert_eq!(end, None);
        lines
    }

    fn expected_v6(&mut self) -> Vec<String> {
        let (mut lines, now) = (Vec::new(), self.now());
        self.shard.conntrack.list_expected(0, 10_000, now, &mut |view| {
            if view.family == 10 {
                lines.push(view.to_string());
            }
        });
        lines
    }

    fn connections(&mut self) -> Vec<String> {
        let (mut lines, now) = (Vec::new(), self.now());
        let end = self.shard.conntrack.list(0, 10_000, now, &mut |view| lines.push(view.to_string()));
        assert_eq!(end, None);
        lines
    }
}
