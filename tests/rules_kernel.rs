//! The rules against the judge: random rulesets are loaded into a network namespace with `iptables-legacy-restore`, random
//! packets are sent through it, and the kernel's verdicts, counters and log lines are compared with ours.
//!
//! Needs root, iproute2 and iptables; without root each test says so and passes. Every namespace is this test's own, and
//! traffic goes only between them:
//!
//! ```text
//!     hosts: l0 ──── lan0 :router: wan0 ──── w0 :hosts
//! ```

#[path = "rules_generator/mod.rs"]
mod generator;
#[path = "rules_lab/mod.rs"]
mod lab;

use generator::{Allowed, ChainLie, Cut, Shape, Version};
use lab::{ALONE, Lab, PORTS, ROUTER_MAC, may_run, run};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeSet;
use xrouter::conntrack::{CtInfo, CtStatus, Template};
use xrouter::device::PortId;
use xrouter::packet::{L4, Packet};
use xrouter::rules::{self, Context, Decision, FORWARD, Hook, RuleVector, Told};
use xrouter::time::Instant;
use xrouter::verdict::DropReason;
use xrouter::wire::{Family, tcp};

/// What conntrack says of the first packet of a flow.
fn first_packet_info(packet: &Packet) -> CtInfo {
    if packet.l4 != L4::Good {
        return CtInfo::Invalid;
    }
    let new = match packet.proto {
        6 => matches!(
            packet.tcp_flags & !(tcp::PSH | tcp::ECE | tcp::CWR),
            flags if flags == tcp::SYN || flags == tcp::SYN | tcp::URG || flags == tcp::ACK || flags == tcp::ACK | tcp::URG
        ),
        1 if packet.family == Family::V4 => matches!(packet.icmp_type(), 8 | 13 | 15 | 17),
        58 if packet.family == Family::V6 => matches!(packet.icmp_type(), 128 | 139),
        // Their checksums are wrong here.
        132 | 136 => false,
        _ => true,
    };
    if new { CtInfo::New } else { CtInfo::Invalid }
}

/// A packet to send and what we expect of it.
struct Sent {
    port: PortId,
    frame: Vec<u8>,
    packet: Packet,
    info: CtInfo,
}

impl Sent {
    fn again(&self) -> Sent {
        Sent { port: self.port, frame: self.frame.clone(), packet: self.packet, info: self.info }
    }

    fn context(&mut self) -> Context<'_> {
        Context {
            packet: &mut self.packet,
            frame: &mut self.frame,
            hook: Hook::Forward,
            in_port: self.port,
            out_port: Some(PortId(1 - self.port.0)),
            out_mtu: 1500,
            info: self.info,
            status: CtStatus::default(),
            mark: 0,
            template: Template::DEFAULT,
            traced: false,
            now: Instant::from_secs(1),
        }
    }
}

/// Frames of the shapes, each flow once. The number in the IP header is the place in the list.
fn frames(shapes: &[Shape]) -> Vec<Sent> {
    // DCCP and GRE are tracked differently from kernel to kernel; not what is judged here.
    frames_with(shapes, |shape| !matches!(shape.proto, 33 | 47))
}

fn frames_with(shapes: &[Shape], wanted: impl Fn(&Shape) -> bool) -> Vec<Sent> {
    let mut seen = BTreeSet::new();
    let mut sent: Vec<Sent> = Vec::new();
    for shape in shapes.iter().filter(|shape| wanted(shape)) {
        // A protocol without a header, beyond the packet's end: the kernel tracks even that.
        if !matches!(shape.proto, 6 | 17 | 58 | 132 | 136) && shape.chain_lie == ChainLie::Long {
            continue;
        }
        let port = if shape.outward { PortId::LAN } else { PortId::WAN };
        let frame = shape.frame(sent.len() as u16 + 1, ROUTER_MAC[port.index()]);
        let Ok(mut packet) = Packet::parse(&frame, port, true) else { continue };
        packet.ttl -= 1;
        let (sport, dport) =
            if matches!(packet.proto, 6 | 17 | 1 | 58) { (packet.sport, packet.dport) } else { (0, 0) };
        let flow = |a, b, c, d| (packet.proto, a, b, c, d);
        let icmp = packet.is_icmp();
        let there = flow(packet.src, packet.dst, sport, if icmp { 0 } else { dport });
        let back = flow(packet.dst, packet.src, if icmp { sport } else { dport }, if icmp { 0 } else { sport });
        if seen.contains(&back) || !seen.insert(there) {
            continue;
        }
        let info = first_packet_info(&packet);
        sent.push(Sent { port, frame, packet, info });
    }
    sent
}

/// The number a frame was given.
fn number(frame: &[u8]) -> Option<u16> {
    let at = match frame.get(12..14)? {
        [8, 0] => 18,
        [0x86, 0xdd] => 16,
        _ => return None,
    };
    Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
}

/// Whether the frame was sent by the router from one side to the other, rather than by us or for itself.
fn was_forwarded(frame: &[u8]) -> bool {
    frame.len() > 22 && ROUTER_MAC.iter().any(|mac| frame[6..12] == mac[..]) && (frame[22] == 63 || frame[21] == 63)
}

/// Lines of `iptables-save -c` that are ours to compare: rules, and FORWARD's policy.
fn comparable(text: &str) -> Vec<String> {
    let mine = |line: &&str| line.starts_with('[') || line.starts_with(":FORWARD");
    text.lines().filter(mine).map(str::to_owned).collect()
}

/// A state's counter in mangle FORWARD: proof that we gave the right states.
const WATCH_STATES: &str =
    "*mangle\n-A FORWARD -m conntrack --ctstate NEW\n-A FORWARD -m conntrack --ctstate INVALID\nCOMMIT\n";

fn state_counts(text: &str) -> Vec<u64> {
    let counts = text.lines().filter(|line| line.starts_with('[') && line.contains("--ctstate"));
    counts.map(|line| line[1..line.find(':').expect("counters")].parse().expect("a number")).collect()
}

/// How often each fate was met.
#[derive(Default, Debug)]
struct Fates {
    accepted: usize,
    dropped: usize,
    hotdropped: usize,
    rejected: usize,
}

fn judge(lab: &Lab, family: Family, text: &str, sent: &[Sent], fates: &mut Fates) {
    judge_verdicts(lab, family, WATCH_STATES, text, sent, fates);
    let states = state_counts(&lab.tool(family, "save", &["-c", "-t", "mangle"], ""));
    let count = |info| sent.iter().filter(|sent| sent.info == info).count() as u64;
    assert_eq!(states, [count(CtInfo::New), count(CtInfo::Invalid)], "the states we assumed");
}

/// The packet's connection, as far as rules ask for it.
fn world(sent: &Sent) -> Told {
    Told { conn_mark: (sent.info == CtInfo::New).then_some(0), ..Told::default() }
}

fn judge_verdicts(lab: &Lab, family: Family, beside: &str, text: &str, sent: &[Sent], fates: &mut Fates) {
    let ruleset = rules::load("random", text, family, &PORTS).unwrap_or_else(|bad| panic!("{text}\n{bad}"));
    let vector = RuleVector::compile(&ruleset);
    lab.tool(family, "restore", &[], &format!("{beside}{text}"));
    run("ip", &["netns", "exec", &lab.router, "conntrack", "-F"], "");
    let frames: Vec<(PortId, Vec<u8>)> = sent.iter().map(|sent| (sent.port, sent.frame.clone())).collect();
    let received = lab.send(&frames);
    let arrived: BTreeSet<u16> =
        received.iter().filter(|frame| was_forwarded(frame)).filter_map(|frame| number(frame)).collect();

    let mut counters = vector.counters();
    let mut expected = BTreeSet::new();
    for (index, sent) in sent.iter().enumerate() {
        match vector.evaluate(FORWARD, &mut sent.again().context(), &mut world(sent), &mut counters) {
            Decision::Accept => {
                fates.accepted += 1;
                expected.insert(index as u16 + 1);
            }
            Decision::Drop(DropReason::RuleHotdrop) => fates.hotdropped += 1,
            Decision::Drop(_) => fates.dropped += 1,
            Decision::Reject(_) => fates.rejected += 1,
        }
    }
    for (index, one) in sent.iter().enumerate() {
        let id = index as u16 + 1;
        let (ours, kernel) = (expected.contains(&id), arrived.contains(&id));
        assert_eq!(ours, kernel, "packet {:?}\n{:x?}\n{text}", one.packet, one.frame);
    }
    let kernel = comparable(&lab.tool(family, "save", &["-c", "-t", "filter"], ""));
    assert_eq!(comparable(&rules::save(&ruleset, Some(&counters))), kernel, "{text}");
}

/// Random values, the same on every run unless XR_SEED says otherwise.
fn runner() -> TestRunner {
    let seed = std::env::var("XR_SEED").ok().and_then(|seed| seed.parse::<u64>().ok()).unwrap_or(1);
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn pick<T: std::fmt::Debug>(runner: &mut TestRunner, strategy: &impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).expect("a value").current()
}

fn compare_with_kernel(version: Version, family: Family) {
    if !may_run() {
        return;
    }
    let _alone = ALONE.lock();
    let lab = Lab::new();
    let mut runner = runner();
    // Buckets that refill while we send would make the kernel's clock part of the question.
    let rulesets = generator::ruleset(version, Allowed { fast_limits: false, odd: false });
    let shape = generator::shape(version);
    let rounds = std::env::var("XR_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(25);
    let mut packets = 0;
    let mut fates = Fates::default();
    for _ in 0..rounds {
        let text = pick(&mut runner, &rulesets);
        let shapes: Vec<Shape> = (0..300).map(|_| pick(&mut runner, &shape)).collect();
        let sent = frames(&shapes);
        packets += sent.len();
        judge(&lab, family, &text, &sent, &mut fates);
    }
    eprintln!("{rounds} rulesets, {packets} packets: verdicts and counters as the kernel's: {fates:?}");
    assert!(fates.accepted > 0 && fates.dropped > 0 && fates.hotdropped > 0, "{fates:?}");
}

#[test]
fn verdicts_and_counters_are_the_kernels_v4() {
    compare_with_kernel(Version::V4, Family::V4);
}

#[test]
fn verdicts_and_counters_are_the_kernels_v6() {
    compare_with_kernel(Version::V6, Family::V6);
}

/// Each match that only looks, by itself, against many packets that it may find something in.
fn compare_each(version: Version, family: Family) {
    if !may_run() {
        return;
    }
    let _alone = ALONE.lock();
    let lab = Lab::new();
    let mut runner = runner();
    let shape = generator::shape(version);
    let shapes: Vec<Shape> = (0..3000).map(|_| pick(&mut runner, &shape)).collect();
    let mut fates = Fates::default();
    let rules = generator::looks::each(version);
    for words in &rules {
        let proto = |name: &str| words.starts_with(&format!("-p {name} "));
        let sent = frames_with(&shapes, |shape| match shape.proto {
            6 => !["sctp", "dccp", "esp", "ah", "mh"].into_iter().any(proto),
            33 => proto("dccp"),
            47 => false,
            _ => true,
        });
        let text = format!(
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A FORWARD {words} -j DROP\nCOMMIT\n"
        );
        judge_verdicts(&lab, family, "", &text, &sent, &mut fates);
    }
    eprintln!("{} matches by themselves are as the kernel's: {fates:?}", rules.len());
}

#[test]
fn each_match_is_the_kernels_v4() {
    compare_each(Version::V4, Family::V4);
}

#[test]
fn each_match_is_the_kernels_v6() {
    compare_each(Version::V6, Family::V6);
}

/// Lets LOG speak in namespaces while it lives.
struct LogEverywhere {
    before: String,
}

const LOG_ALL: &str = "/proc/sys/net/netfilter/nf_log_all_netns";

impl LogEverywhere {
    fn new() -> LogEverywhere {
        let before = std::fs::read_to_string(LOG_ALL).expect("the setting");
        std::fs::write(LOG_ALL, "1").expect("setting it");
        LogEverywhere { before }
    }
}

impl Drop for LogEverywhere {
    fn drop(&mut self) {
        let _ = std::fs::write(LOG_ALL, self.before.trim());
    }
}

/// Puts `inner` (an IP packet) into an ICMP error of this type and code with this second word.
fn icmp_error(version: Version, kind: u8, code: u8, word: u32, inner: &[u8], id: u16) -> Vec<u8> {
    let shape = Shape {
        version,
        outward: true,
        src: 2,
        dst: 2,
        proto: if version == Version::V4 { 1 } else { 58 },
        sport: (word >> 16) as u16,
        dport: u16::from(kind) << 8 | u16::from(code),
        flags: 0,
        options: Vec::new(),
        doff_lie: 0,
        cut: Cut::Whole,
        payload: inner.len(),
        extensions: Vec::new(),
        chain_lie: ChainLie::None,
        tos: 0,
        body: Vec::new(),
        odd_extensions: false,
    };
    let mut frame = shape.frame(id, ROUTER_MAC[0]);
    let at = frame.len() - inner.len();
    frame[at - 2..at].copy_from_slice(&(word as u16).to_be_bytes());
    frame[at..].copy_from_slice(inner);
    frame
}

/// Frames with what random shapes do not have: ICMP errors, IPv4 options, TOS, IPsec.
fn special_frames(version: Version, shapes: &[Shape]) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    for (n, shape) in shapes.iter().enumerate() {
        let inner = shape.frame(7, ROUTER_MAC[0])[14..].to_vec();
        let keep = inner.len().min(20 + n * 3);
        let kinds: &[(u8, u8)] = match version {
            Version::V4 => &[(3, 1), (3, 4), (5, 1), (11, 0), (12, 0), (4, 0), (13, 0)],
            Version::V6 => &[(1, 4), (2, 0), (3, 0), (4, 1), (100, 0), (129, 0)],
        };
        let (kind, code) = kinds[n % kinds.len()];
        list.push(icmp_error(version, kind, code, 0x0102_0578, &inner[..keep], 100 + n as u16));
        // The same as a later fragment of something, and as a first one.
        let mut fragment = inner.clone();
        if version == Version::V4 {
            (fragment[6], fragment[7]) = if n % 2 == 0 { (0x20, 0xb9) } else { (0x20, 0) };
            fragment[9] = [1, 6, 17, 50, 51, 99][n % 6];
        } else {
            let mut header = vec![fragment[6], 0, 0, if n % 2 == 0 { 0xb9 } else { 1 }, 0, 0, 0, 9];
            header[0] = [58, 6, 17, 50, 51, 60][n % 6];
            fragment.splice(40..40, header);
            fragment[6] = 44;
        }
        let (kind, code) = if version == Version::V4 { (11, 1) } else { (3, 1) };
        list.push(icmp_error(version, kind, code, 0, &fragment, 160 + n as u16));
    }
    let mut reserved =
        Shape { proto: 6, cut: Cut::Whole, doff_lie: 0, outward: true, ..shapes[0].clone() }.frame(90, ROUTER_MAC[0]);
    let at = reserved.len() - shapes[0].payload - shapes[0].options.len() - 20 + 12;
    // Not the lowest of the four: kernels differ in whether it has a name.
    reserved[at] |= 0x0c;
    list.push(reserved);
    let plain = |proto: u8| Shape { proto, cut: Cut::Whole, doff_lie: 0, extensions: Vec::new(), ..shapes[0].clone() };
    for proto in [50, 51, 59, 136, 2, 1, 58, 47] {
        list.push(Shape { outward: true, ..plain(proto) }.frame(200, ROUTER_MAC[0]));
    }
    if version == Version::V4 {
        // Four bytes of IP options (no operation), TOS with all bits, the reserved flag, no DF.
        let mut frame = Shape { outward: true, ..plain(17) }.frame(300, ROUTER_MAC[0]);
        frame.splice(34..34, [1, 1, 1, 0]);
        (frame[14], frame[15], frame[20]) = (0x46, 0xff, 0x80);
        let total = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[24..26].fill(0);
        let mut sum: u32 = frame[14..38].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        list.push(frame);
    } else {
        let mut frame = Shape { outward: true, ..plain(6) }.frame(0x2345, ROUTER_MAC[0]);
        (frame[14], frame[15]) = (0x6f, 0xe1);
        list.push(frame);
    }
    list
}

/// The kernel's log lines with this mark, from the mark on.
fn kernel_lines(mark: &str) -> Vec<String> {
    let log = run("dmesg", &["--notime"], "");
    log.lines().filter_map(|line| line.find(mark).map(|at| line[at..].to_owned())).collect()
}

fn compare_logs(version: Version, family: Family) {
    if !may_run() {
        return;
    }
    let _alone = ALONE.lock();
    let lab = Lab::new();
    let _log = LogEverywhere::new();
    let mut runner = runner();
    let shape = generator::shape(version);
    let mut lines = 0;
    for (round, options) in [
        "",
        " --log-tcp-sequence --log-tcp-options --log-ip-options --log-uid --log-level 5",
        " --log-macdecode --log-tcp-options",
        " --log-ip-options",
    ]
    .into_iter()
    .enumerate()
    {
        let mark = format!("xr{}{family:?}{round}", std::process::id());
        let text = format!(
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
             -A FORWARD -j LOG --log-prefix \"{mark}: \"{options}\nCOMMIT\n"
        );
        let vector = RuleVector::compile(&rules::load("log", &text, family, &PORTS).expect("a good rule"));
        lab.tool(family, "restore", &[], &text);
        let shapes: Vec<Shape> = (0..60).map(|_| pick(&mut runner, &shape)).collect();
        let mut all: Vec<(PortId, Vec<u8>)> =
            special_frames(version, &shapes[..40]).into_iter().map(|frame| (PortId::LAN, frame)).collect();
        for (n, shape) in shapes.iter().enumerate() {
            let port = if shape.outward { PortId::LAN } else { PortId::WAN };
            all.push((port, shape.frame(n as u16, ROUTER_MAC[port.index()])));
        }
        let mut expected = Vec::new();
        let mut counters = vector.counters();
        for (port, frame) in &all {
            let Ok(mut packet) = Packet::parse(frame, *port, true) else { continue };
            packet.ttl -= 1;
            let mut sent = Sent { port: *port, frame: frame.clone(), packet, info: CtInfo::New };
            let mut world = Told::default();
            vector.evaluate(FORWARD, &mut sent.context(), &mut world, &mut counters);
            expected.extend(world.logs.iter().map(|record| (rules::log_line(record, &PORTS), frame)));
        }
        lab.send(&all);
        let kernel = kernel_lines(&mark);
        for ((ours, frame), theirs) in expected.iter().zip(&kernel) {
            assert_eq!(ours, theirs, "{frame:02x?}");
        }
        assert_eq!(expected.len(), kernel.len(), "log lines");
        lines += kernel.len();
    }
    eprintln!("{lines} log lines are the kernel's");
}

#[test]
fn log_lines_are_the_kernels_v4() {
    compare_logs(Version::V4, Family::V4);
}

#[test]
fn log_lines_are_the_kernels_v6() {
    compare_logs(Version::V6, Family::V6);
}
