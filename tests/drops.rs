//! Drop reasons that no scenario can bring about, because they are not of the path: a recorded frame larger than any buffer,
//! a frame the kernel does not take back.

use std::sync::Arc;

use arc_swap::ArcSwap;
use xrouter::conntrack::Settings;
use xrouter::datapath::Shard;
use xrouter::device::{FramePool, Host, PortId};
use xrouter::rules::{self, RuleVector};
use xrouter::sim::replay::{Replay, Survey};
use xrouter::sim::{Faults, SimPort, WireEnd};
use xrouter::snapshot::{Policy, RoutingBuilder};
use xrouter::time::Instant;
use xrouter::verdict::DropReason;
use xrouter::wire::{Family, Mac};
use xrouter::worker::{Parts, Worker, mailbox};

fn accept_all() -> Policy {
    let compile = |family| {
        let text = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
        RuleVector::compile(&rules::load("accept", text, family, &["lan", "wan"]).expect("good rules"))
            .always_tracking()
    };
    Policy { generation: 1, v4: compile(Family::V4), v6: compile(Family::V6) }
}

fn settings() -> Settings {
    Settings { max: 64, ..Settings::default() }
}

#[test]
fn a_recorded_frame_beyond_the_buffer_is_counted() {
    let mut replay = Replay::new(accept_all(), &Survey::default(), settings());
    assert!(replay.packet(PortId::LAN, &vec![0u8; 20_000], Instant::from_secs(1)).is_empty());
    assert_eq!(replay.shard().counters.drops.get(DropReason::FrameTooLong), 1);
    assert_eq!(replay.shard().counters.drops.total(), 1);
}

/// A kernel that takes nothing back.
#[derive(Debug, Default)]
struct Refusing {
    refused: u64,
}

impl Host for Refusing {
    fn punt(&mut self, _: PortId, _: &[u8]) {
        self.refused += 1;
    }

    fn flush(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }
}

#[test]
fn what_the_host_does_not_take_is_counted() {
    let wires = [WireEnd::default(), WireEnd::default()];
    let device = |port: PortId| (port, SimPort::new(wires[port.index()].clone(), 8, Faults::default(), 1));
    let mut builder = RoutingBuilder::new();
    builder.add_port(PortId::LAN, "lan", Mac([2, 0, 0, 0, 0, 1]), 1500);
    builder.add_port(PortId::WAN, "wan", Mac([2, 0, 0, 0, 0, 2]), 1500);
    let policy = Arc::new(ArcSwap::from_pointee(accept_all()));
    let mut worker = Worker::new(Parts {
        devices: vec![device(PortId::LAN), device(PortId::WAN)],
        pool: FramePool::in_memory(64, 2048),
        host: Refusing::default(),
        shard: Shard::new(settings(), [1, 2], &policy.load()),
        policy,
        routing: Arc::new(ArcSwap::from_pointee(builder.build())),
        mailbox: mailbox().expect("a descriptor").0,
        links: None,
    });
    // A broadcast frame is the host's.
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 0x08, 0x00, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0]);
    frame.extend([10, 1, 0, 9, 10, 1, 0, 1]);
    let sum: u32 = frame[14..].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let check = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    for turn in 1..=3 {
        wires[0].send(&frame);
        worker.burst(Instant::from_secs(turn)).expect("the ports are there");
        worker.burst(Instant::from_secs(turn)).expect("the ports are there");
    }
    assert_eq!(worker.shard().counters.drops.get(DropReason::PuntFailed), 3);
    assert_eq!(worker.shard().counters.drops.total(), 3);
}
