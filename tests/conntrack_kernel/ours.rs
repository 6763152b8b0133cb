//! Our side: the datapath, in memory. A packet that the router's raw and mangle rules would do something to (zones,
//! NOTRACK, marks, drops; these tables do not run yet) is given to the tracker itself, with what they would have said.

use std::net::IpAddr;

use xrouter::conntrack::{ConnView, Conntrack, CtInfo, Settings, StateView};
use xrouter::datapath::{self, Batch, Effects, Shard};
use xrouter::device::{FramePool, PortId};
use xrouter::packet::Packet;
use xrouter::rewrite;
use xrouter::rules::{self, RuleVector};
use xrouter::snapshot::{Policy, Routing, RoutingBuilder};
use xrouter::time::Instant;
use xrouter::wire::{Addr, Family, Mac};

use crate::ends::{HOSTS, LAN_MAC, WAN_MAC, host_mac};
use crate::step::{Action, Entry, Seen, Side, Step, for_kernel};
use crate::testing::{self, Hop};

/// The classes, in the order of the rules that count them.
const CLASSES: [&str; 5] = ["NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"];
const FRAMES: usize = 4;
const FRAME_SIZE: usize = 4096;

pub(crate) struct Ours {
    policy: Policy,
    routing: Routing,
    pool: FramePool,
    effects: Effects,
    batch: Batch,
    shard: Shard,
}

fn ruleset(family: Family) -> RuleVector {
    let mut text = String::from("*filter\n:FORWARD ACCEPT [0:0]\n");
    for class in CLASSES {
        text += &format!("-A FORWARD -m conntrack --ctstate {class} -j ACCEPT\n");
    }
    text += "COMMIT\n";
    RuleVector::compile(&rules::load("classes", &text, family, &["lan", "wan"]).expect("rules")).always_tracking()
}

fn routing() -> Routing {
    let mut builder = RoutingBuilder::new();
    for (port, name, mac, net) in [(PortId::LAN, "lan", LAN_MAC, 1u8), (PortId::WAN, "wan", WAN_MAC, 2)] {
        builder.add_port(port, name, Mac(mac), 1500);
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

impl Ours {
    pub(crate) fn new() -> Ours {
        let policy = Policy { generation: 1, v4: ruleset(Family::V4), v6: ruleset(Family::V6) };
        let shard = Shard::new(Settings { max: 1, ..Settings::default() }, [1, 2], &policy);
        Ours {
            policy,
            routing: routing(),
            pool: FramePool::in_memory(FRAMES, FRAME_SIZE),
            effects: Effects::new(datapath::BATCH),
            batch: Batch::default(),
            shard,
        }
    }

    /// Forgets everything.
    pub(crate) fn begin(&mut self, settings: &Settings) {
        self.shard.conntrack.check();
        self.shard = Shard::new(settings.clone(), [1, 2], &self.policy);
    }

    /// Puts other settings in force.
    pub(crate) fn set(&mut self, settings: &Settings) {
        self.shard.conntrack.set_settings(settings.clone()).expect("settings that need no restart");
    }

    pub(crate) fn send(&mut self, step: &Step, now: Instant) -> Seen {
        let (port, mac) = if step.from_client { (PortId::LAN, LAN_MAC) } else { (PortId::WAN, WAN_MAC) };
        let frame = testing::frame(Hop { dst_mac: mac, src_mac: host_mac(step.from_client, 2) }, &step.packet);
        match step.tos() >> 2 >= crate::step::NOTRACK || step.action() != Action::Pass {
            true => self.track(step, port, &frame, now),
            false => self.process(port, &frame, now),
        }
    }

    fn process(&mut self, port: PortId, frame: &[u8], now: Instant) -> Seen {
        let before = self.classes();
        let mut buffer = self.pool.take().expect("a free frame");
        buffer.fill(frame);
        self.batch.push(port, buffer);
        datapath::process(&mut self.shard, &self.policy, &self.routing, &mut self.batch, now, &mut self.effects);
        let class = (0..CLASSES.len()).find(|&at| self.classes()[at] != before[at]);
        let mut seen = Seen(None);
        for (index, queue) in self.effects.transmit.iter_mut().enumerate() {
            for frame in queue.drain(..) {
                if index != port.index() {
                    let class = class.expect("what is forwarded has passed a rule");
                    seen = Seen::forwarded(CLASSES[class], &for_kernel(&frame.bytes()[14..]));
                }
                self.pool.put(frame);
            }
        }
        for frame in self.effects.free.drain(..).chain(self.effects.punt.drain(..).map(|(_, frame)| frame)) {
            self.pool.put(frame);
        }
        assert_eq!(self.pool.len(), FRAMES, "a frame was lost or waits for a neighbour");
        seen
    }

    fn classes(&self) -> [u64; 5] {
        let count = |index: usize| {
            let of = |family| self.shard.rule_counters(family).rule(index).expect("a rule").packets;
            of(Family::V4) + of(Family::V6)
        };
        [0, 1, 2, 3, 4].map(count)
    }

    /// The same path by hand: raw, conntrack, mangle, confirm.
    fn track(&mut self, step: &Step, port: PortId, frame: &[u8], now: Instant) -> Seen {
        let ct = &mut self.shard.conntrack;
        let verify = ct.settings().checksum;
        let mut packet = Packet::parse(frame, port, verify).expect("sound where rules do something");
        let hash = ct.hash(&xrouter::conntrack::Tuple::of(&packet));
        let Ok(tracked) = ct.track(&packet, frame, hash, step.template(), now) else { return Seen(None) };
        match step.action() {
            Action::Mark(mark) => {
                let has = ct.set_mark(tracked.conn, mark);
                let may = !matches!(tracked.info, CtInfo::Invalid | CtInfo::Untracked);
                assert!(has == may || ct.conn(tracked.conn).is_none(), "{tracked:?} marked: {has}");
            }
            Action::Drop => return Seen(None),
            Action::Pass => {}
        }
        if packet.ttl <= 1 || ct.confirm(&tracked, now).is_err() {
            return Seen(None);
        }
        let mut frame = frame[..packet.frame_len()].to_vec();
        rewrite::decrement_ttl(&mut frame, &mut packet);
        Seen::forwarded(tracked.info.name(), &for_kernel(&frame[14..]))
    }

    /// Packets of its own since it began.
    pub(crate) fn answers(&self) -> u64 {
        self.shard.counters.replies
    }

    /// The connection table.
    pub(crate) fn table(&mut self) -> &mut Conntrack {
        &mut self.shard.conntrack
    }

    pub(crate) fn entries(&self, now: Instant) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            cursor = self.shard.conntrack.list(from, 4096, now, &mut |view| entries.push(entry(view)));
        }
        entries
    }
}

fn entry(view: &ConnView) -> Entry {
    let side = |tuple: &xrouter::conntrack::TupleView| Side {
        src: tuple.src,
        dst: tuple.dst,
        sport: tuple.sport,
        dport: tuple.dport,
        zone: tuple.zone,
    };
    Entry {
        proto: view.proto,
        original: side(&view.original),
        reply: side(&view.reply),
        status: u32::from(view.status),
        timeout: view.timeout,
        state: view.state.map(|state| state_number(view.proto, state)),
        mark: view.mark,
        counters: view.counters.map(|both| both.map(|counter| (counter.packets, counter.bytes))),
        has_start: view.start.is_some(),
    }
}

/// The number ctnetlink has for a state of `proto`.
fn state_number(proto: u8, state: StateView) -> u8 {
    const TCP: [&str; 10] = [
        "NONE",
        "SYN_SENT",
        "SYN_RECV",
        "ESTABLISHED",
        "FIN_WAIT",
        "CLOSE_WAIT",
        "LAST_ACK",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
    ];
    const SCTP: [&str; 9] = [
        "NONE",
        "CLOSED",
        "COOKIE_WAIT",
        "COOKIE_ECHOED",
        "ESTABLISHED",
        "SHUTDOWN_SENT",
        "SHUTDOWN_RECD",
        "SHUTDOWN_ACK_SENT",
        "HEARTBEAT_SENT",
    ];
    let names = if proto == 6 { &TCP[..] } else { &SCTP[..] };
    names.iter().position(|name| state.name() == *name).expect("a state of the protocol") as u8
}
