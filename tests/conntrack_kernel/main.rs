//! Conntrack against the running kernel's: the same packets through both, compared after each one.
//!
//! Needs root and a kernel with network namespaces and nf_conntrack; says so and passes without them. Three namespaces,
//! client - router - server, are made and removed. Packets are injected at the ends by packet sockets; the router's
//! rules write the conntrack state into DSCP, so the far end tells the class of each packet; ctnetlink tells the entry.
//! A sequence that differs is shrunk and printed. `XROUTER_PARITY_SECONDS` (default 6 per test) and
//! `XROUTER_PARITY_SEED` choose how long and which.

#[path = "../daemon/mod.rs"]
mod daemon;
mod generate;
mod kernel;
#[path = "../../src/conntrack/testing.rs"]
mod testing;
mod tool;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant as Clock};

use generate::{Random, mixed_sequence, sctp_sequence, tcp_sequence};
use kernel::Kernel;
use testing::Segment;
use xrouter::conntrack::{Conntrack, Settings, StateView, Template, Tuple};
use xrouter::device::PortId;
use xrouter::packet::{L4, Packet};
use xrouter::time::Instant;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2));
const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2));
const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 2));

/// One packet of a sequence: which end sends it, and its bytes from the IP header on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    from_client: bool,
    packet: Vec<u8>,
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

/// Runs a sequence through both. `Err`: the step after which they differ, and how.
fn compare(kernel: &Kernel, settings: &Settings, steps: &[Step]) -> Result<(), (usize, String)> {
    kernel.flush();
    kernel.apply(settings);
    let mut ct = Conntrack::new(settings.clone(), [1, 2]);
    let start = Clock::now();
    for (number, step) in steps.iter().enumerate() {
        let now = Instant::from_secs(1000) + start.elapsed().as_nanos() as u64;
        let frame = testing::frame(testing::ANY_HOP, &step.packet);
        let port = if step.from_client { PortId::LAN } else { PortId::WAN };
        let packet = Packet::parse(&frame, port, settings.checksum).expect("only sound IP packets are generated");
        if packet.l4 == L4::PartialChecksum {
            continue; // on a ring it looks like one that a NIC was to finish; the kernel is told that it is not
        }
        let hash = ct.hash(&Tuple::of(&packet));
        let tracked = ct.track(&packet, &frame, hash, Template::DEFAULT, now).expect("room");
        ct.confirm(&tracked, now).expect("no clash");
        let fail = |what: String| Err((number, what));

        let wanted = kernel.send(step).unwrap_or("nothing (it did not arrive)");
        if tracked.info.name() != wanted {
            return fail(format!("the kernel says {wanted}, we say {}", tracked.info.name()));
        }
        let mut views = Vec::new();
        ct.list(0, 1000, now, &mut |view| views.push(*view));
        let count = kernel.count();
        if count != views.len() {
            return fail(format!("the kernel has {count} entries, we have {views:?}"));
        }
        for view in views {
            let Some(entry) = kernel.entry(&view) else { return fail(format!("the kernel has no {view}")) };
            if entry.status & 0xf != u32::from(view.status)
                || entry.timeout.abs_diff(view.timeout) > 1
                || entry.state != view.state.map(|state| state_number(view.proto, state))
            {
                return fail(format!("the kernel has {entry:?}, we have status={:#x} {view}", view.status));
            }
        }
    }
    Ok(())
}

/// Leaves out steps for as long as a difference remains.
fn shrink(kernel: &Kernel, settings: &Settings, mut steps: Vec<Step>) -> Vec<Step> {
    let mut chunk = steps.len();
    while chunk > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(steps.len()));
            match compare(kernel, settings, &fewer) {
                Err((last, _)) => {
                    fewer.truncate(last + 1);
                    steps = fewer;
                }
                Ok(()) => at += chunk,
            }
        }
        chunk /= 2;
    }
    steps
}

fn describe(step: &Step) -> String {
    let frame = testing::frame(testing::ANY_HOP, &step.packet);
    let side = if step.from_client { "client" } else { "server" };
    match Packet::parse(&frame, PortId::LAN, true) {
        Ok(packet) if packet.proto == 6 => {
            let flags: String = "FSRPAUEC"
                .chars()
                .enumerate()
                .filter(|(bit, _)| packet.tcp_flags >> bit & 1 == 1)
                .map(|(_, name)| name)
                .collect();
            format!(
                "{side} {flags} seq={} ack={} len={} win={} {:?} {:02x?}",
                packet.seq,
                packet.ack,
                packet.tcp_payload_len(),
                packet.window,
                packet.l4,
                &packet.l4_bytes(&frame)[20.min(usize::from(packet.l4_len))
                    ..(packet.tcp_header_len as usize)
                        .clamp(20.min(usize::from(packet.l4_len)), usize::from(packet.l4_len))]
            )
        }
        _ => format!("{side} {:02x?}", step.packet),
    }
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// Mostly the defaults.
fn some_settings(random: &mut Random) -> Settings {
    let defaults = Settings { max: 1000, ..Settings::default() };
    if !random.one_in(4) {
        return defaults;
    }
    Settings {
        checksum: !random.one_in(4),
        tcp_loose: random.one_in(2),
        tcp_be_liberal: random.one_in(2),
        tcp_ignore_invalid_rst: random.one_in(2),
        tcp_max_retrans: random.pick(&[1, 2, 3, 5]),
        ..defaults
    }
}

/// Generates sequences and compares until the time is up.
fn parity(name: &str, generate: impl Fn(&mut Random) -> Vec<Step>) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("{name}: needs root for network namespaces; not run");
        return;
    }
    let kernel = match Kernel::new() {
        Ok(kernel) => kernel,
        Err(error) => panic!("{name}: cannot set up the namespaces: {error}"),
    };
    let seconds = environment("XROUTER_PARITY_SECONDS", 6);
    let mut seed = environment("XROUTER_PARITY_SEED", 1);
    let start = Clock::now();
    let (mut packets, mut sequences) = (0, 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let settings = some_settings(&mut random);
        let steps = generate(&mut random);
        packets += steps.len();
        sequences += 1;
        if let Err((at, what)) = compare(&kernel, &settings, &steps) {
            let fewer = shrink(&kernel, &settings, steps[..=at].to_vec());
            let what = compare(&kernel, &settings, &fewer).err().map_or(what, |(_, what)| what);
            let list: Vec<String> = fewer.iter().map(describe).collect();
            panic!("{name}, seed {seed}: {what}, after these packets under {settings:?}\n  {}", list.join("\n  "));
        }
        seed += 1;
    }
    eprintln!("{name}: {packets} packets in {sequences} sequences, no difference");
}

#[test]
fn every_protocol_is_seen_as_the_kernel_sees_it() {
    parity("mixed", mixed_sequence);
}

#[test]
fn sctp_sequences_are_seen_as_the_kernel_sees_them() {
    parity("sctp", sctp_sequence);
}

#[test]
fn tcp_sequences_are_seen_as_the_kernel_sees_them() {
    parity("tcp", tcp_sequence);
}

/// A few connections of each protocol.
fn some_of_everything() -> Vec<Step> {
    let syn = |flags: &str, ack| Segment {
        sport: 901,
        dport: 80,
        seq: 7,
        ack,
        flags: testing::flags(flags),
        window: 8192,
        options: vec![],
        payload: 0,
    };
    let back = Segment { sport: 80, dport: 901, seq: 77, ..syn("SA", 8) };
    let client = |packet| Step { from_client: true, packet };
    let server = |packet| Step { from_client: false, packet };
    let mut steps = Vec::new();
    for (ours, theirs, icmp, request, reply) in [(CLIENT, SERVER, 1, 8, 0), (CLIENT6, SERVER6, 58, 128, 129)] {
        let to = |proto, l4: &[u8]| client(testing::ip(ours, theirs, proto, l4));
        let from = |proto, l4: &[u8]| server(testing::ip(theirs, ours, proto, l4));
        steps.extend([
            to(6, &syn("S", 0).bytes()),
            from(6, &back.bytes()),
            to(6, &Segment { seq: 8, ..syn("A", 78) }.bytes()),
            to(6, &Segment { sport: 902, ..syn("S", 0) }.bytes()),
            to(17, &testing::udp(3000, 53, b"q")),
            from(17, &testing::udp(53, 3000, b"a")),
            to(17, &testing::udp(3100, 53, b"q")),
            to(icmp, &testing::icmp(request, 5, [0, 79, 0, 1], b"")),
            to(icmp, &testing::icmp(request, 0, [0, 77, 0, 1], b"")),
            from(icmp, &testing::icmp(reply, 0, [0, 77, 0, 1], b"")),
            to(50, b"esp"),
            from(50, b"esp"),
            to(33, b"dccp"),
            to(47, &[0x20, 1, 0x88, 0x0b, 0, 0, 0x12, 0x34]),
            to(47, &[0, 0, 8, 0]),
            from(47, &[0, 0, 8, 0]),
        ]);
    }
    let init = [vec![0x0f, 0xa0, 0x13, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 1, 1, 1, 1], vec![0; 12]].concat();
    let mut sctp = init.clone();
    sctp[8..12].copy_from_slice(&(!xrouter::wire::checksum::crc32c(!0, &init)).to_le_bytes());
    steps.push(client(testing::ip(CLIENT, SERVER, 132, &sctp)));
    steps
}
