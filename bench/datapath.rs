//! The datapath alone: no NIC, no kernel. Nanoseconds and TSC ticks per 64-byte UDP packet through `datapath::process`.
//!
//! A packet of a random established flow per step, every flow once per cycle and in another order than it was made in, in
//! batches of 64, into frames 2048 bytes apart as AF_XDP's are. Writing the packets into the frames is not measured; parsing,
//! checksum verification, conntrack, rules, route, neighbour and rewriting are.
//!
//! `udp64_established` has the built-in policy, with more and more flows; `udp64_established_rules` has 1 rule and 100,000.
//! `udp64_new` has a new connection with each packet, which is met by one of so many rules; `udp64_new_alone` the same, nothing
//! being looked up for a batch together.
//!
//! `cargo bench --bench datapath`; the ticks are printed after each group: medians over batches, which a preempted
//! batch does not move.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use xrouter::arch;
use xrouter::conntrack::Settings;
use xrouter::datapath::{BATCH, Batch, Effects, Shard, expire, process};
use xrouter::device::{FramePool, PortId};
use xrouter::rules::{self, RuleVector};
use xrouter::snapshot::{Policy, Routing};
use xrouter::time::{Instant, SECOND_NS};
use xrouter::wire::{Family, checksum, ipv4};

mod fixture;

/// Flows that begin again and again.
const NEW_FLOWS: usize = 32_768;

/// One flow's two packets differ in addresses and ports only.
#[derive(Clone, Copy)]
struct Flow {
    client: u32,
    server: u32,
    sport: u16,
    dport: u16,
}

struct Rig {
    shard: Shard,
    policy: Policy,
    routing: Routing,
    pool: FramePool,
    effects: Effects,
    batch: Batch,
    flows: Vec<Flow>,
    next: usize,
    now: Instant,
}

impl Rig {
    /// With these flows, all established.
    fn established(flows: usize, ruleset: &str) -> Rig {
        let mut rig = Rig::new((0..flows).map(fixture_flow).collect(), ruleset);
        rig.establish();
        rig.shuffle();
        rig
    }

    /// With flows that are each met by one of so many rules, all established.
    fn established_under(rules: usize) -> Rig {
        let mut rig = Rig::new((0..NEW_FLOWS).map(|n| flow_of_rule(n, rules)).collect(), &ruleset(rules));
        rig.establish();
        rig.shuffle();
        rig
    }

    /// With so many flows that there is none of yet, each met by one of so many rules.
    fn with_new(rules: usize) -> Rig {
        let mut rig = Rig::new((0..NEW_FLOWS).map(|n| flow_of_rule(n, rules)).collect(), &ruleset(rules));
        rig.shuffle();
        rig
    }

    fn new(flows: Vec<Flow>, ruleset: &str) -> Rig {
        let settings = Settings { max: flows.len() * 2, ..Settings::default() };
        let vector = |text: &str, family| {
            let set = rules::load("bench", text, family, &["lan0", "wan0"]).expect("the bench's rules are good");
            RuleVector::compile(&set)
        };
        let policy = Policy {
            generation: 1,
            v4: vector(ruleset, Family::V4),
            v6: vector(&rules::default_policy(Family::V6, "lan0", "wan0"), Family::V6),
        };
        Rig {
            shard: Shard::new(settings, [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210], &policy),
            policy,
            routing: fixture::routing(),
            pool: FramePool::in_memory(512, 2048),
            effects: Effects::new(BATCH),
            batch: Batch::default(),
            flows,
            next: 0,
            now: Instant::from_secs(1),
        }
    }

    /// Every connection expires; the next packet of each flow is its first.
    fn forget(&mut self) {
        self.now = self.now + 3600 * SECOND_NS;
        while !self.shard.conntrack.is_empty() {
            expire(&mut self.shard, &self.policy, &self.routing, self.now, 4096, &mut self.effects);
            self.now = self.now + SECOND_NS;
        }
    }

    /// A packet each way for every flow, and another: all are ESTABLISHED afterwards, and what the rules have to say is known.
    fn establish(&mut self) {
        for port in [PortId::LAN, PortId::WAN, PortId::LAN] {
            for _ in 0..self.flows.len().div_ceil(BATCH) {
                self.load(port);
                self.process();
            }
            self.next = 0;
        }
    }

    fn shuffle(&mut self) {
        let mut state = 0x9e37_79b9u64;
        for index in (1..self.flows.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.flows.swap(index, (state >> 33) as usize % (index + 1));
        }
    }

    /// Fills the batch with the next flows' packets, as `port` receives them.
    fn load(&mut self, port: PortId) {
        for _ in 0..BATCH {
            let flow = self.flows[self.next];
            self.next = (self.next + 1) % self.flows.len();
            let mut frame = self.pool.take().expect("all frames came back");
            frame.set_len(60);
            write_packet(frame.bytes_mut(), &flow, port);
            self.batch.push(port, frame);
        }
    }

    /// As [`Rig::process`], under a name of its own: `valgrind --tool=callgrind --collect-atstart=no
    /// --toggle-collect='*Rig::measure*'` counts these packets and not those that set the flows up.
    #[inline(never)]
    fn measure(&mut self) -> (Duration, u64) {
        self.process()
    }

    fn process(&mut self) -> (Duration, u64) {
        let (start, ticks) = (std::time::Instant::now(), arch::tsc());
        process(&mut self.shard, &self.policy, &self.routing, &mut self.batch, self.now, &mut self.effects);
        let took = (start.elapsed(), arch::tsc() - ticks);
        self.now = self.now + 1000;
        let mut sent = 0;
        for queue in &mut self.effects.transmit {
            sent += queue.len();
            queue.drain(..).for_each(|frame| self.pool.put(frame));
        }
        assert_eq!(sent, BATCH, "every packet of the bench is forwarded");
        took
    }
}

fn fixture_flow(n: usize) -> Flow {
    let n = n as u32;
    Flow {
        client: 0x0a01_0000 | (n & 0xfff0) | 4,
        server: 0x0a02_0064,
        sport: 1024 + (n >> 16) as u16,
        dport: 53 + (n & 0xf) as u16,
    }
}

/// A flow that the rule number `n % rules` of [`ruleset`] lets through.
fn flow_of_rule(n: usize, rules: usize) -> Flow {
    let rule = (n % rules) as u32;
    let client = 0x0a01_0000 + (rule & 0xfff0) + 4;
    Flow { client, server: 0x0a02_0064, sport: 1024 + (n / rules) as u16, dport: 53 + (rule & 0xf) as u16 }
}

/// As many rules for new flows, behind one for established ones. From 65,536 on they are for clients that there are not.
fn ruleset(rules: usize) -> String {
    let mut text =
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n".to_owned();
    for rule in 0..rules as u32 {
        let network = if rule < 0x1_0000 { 0x0a01_0000 } else { 0xac10_0000 } + (rule & !0xf);
        let (network, port) = (std::net::Ipv4Addr::from(network), 53 + (rule & 0xf));
        text += &format!("-A FORWARD -s {network}/28 -d 10.2.0.0/16 -i lan0 -p udp -m udp --dport {port} -j ACCEPT\n");
    }
    text + "COMMIT\n"
}

fn write_packet(frame: &mut [u8], flow: &Flow, port: PortId) {
    let (src, dst, sport, dport) = match port {
        PortId::LAN => (flow.client, flow.server, flow.sport, flow.dport),
        _ => (flow.server, flow.client, flow.dport, flow.sport),
    };
    frame.fill(0);
    frame[..6].copy_from_slice(&fixture::PORT_MAC[port.index()].0);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..];
    ip[0] = 0x45;
    ip[3] = 46;
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&src.to_be_bytes());
    ip[16..20].copy_from_slice(&dst.to_be_bytes());
    ipv4::set_checksum(&mut ip[..20]);
    ip[20..22].copy_from_slice(&sport.to_be_bytes());
    ip[22..24].copy_from_slice(&dport.to_be_bytes());
    ip[25] = 26;
    let addresses = u64::from(src) + u64::from(dst);
    let check = checksum::finish(checksum::sum(addresses + 17 + 26, &ip[20..46]));
    ip[26..28].copy_from_slice(&check.to_be_bytes());
}

/// Times a rig's batches; `between` is done before each and not measured.
fn bench(c: &mut Criterion, group: &str, id: usize, make: impl Fn() -> Rig, mut between: impl FnMut(&mut Rig)) {
    let mut criterion = c.benchmark_group(group);
    criterion.throughput(Throughput::Elements(1)).warm_up_time(Duration::from_millis(500));
    // Not made when a filter leaves it out.
    let mut rig = None;
    let mut ticks: Vec<u64> = Vec::new();
    criterion.bench_with_input(BenchmarkId::from_parameter(id), &id, |b, _| {
        let rig = rig.get_or_insert_with(&make);
        b.iter_custom(|iterations| {
            let batches = iterations.div_ceil(BATCH as u64);
            let mut total = Duration::ZERO;
            for _ in 0..batches {
                between(rig);
                rig.load(PortId::LAN);
                let (took, cost) = rig.measure();
                total += took;
                ticks.push(cost);
            }
            total.mul_f64(iterations as f64 / (batches * BATCH as u64) as f64)
        });
    });
    if ticks.is_empty() {
        return;
    }
    ticks.sort_unstable();
    let per_packet = |share: usize| ticks[ticks.len() * share / 100] as f64 / BATCH as f64;
    eprintln!(
        "{group}/{id}: TSC ticks per packet: median {:.1}, 10 % {:.1}, 90 % {:.1} of {} batches",
        per_packet(50),
        per_packet(10),
        per_packet(90),
        ticks.len()
    );
}

fn established(c: &mut Criterion) {
    for flows in [1, 65_536, 1_048_576] {
        let rules = rules::default_policy(Family::V4, "lan0", "wan0");
        bench(c, "udp64_established", flows, || Rig::established(flows, &rules), |_| {});
    }
    for rules in [1, 100_000] {
        bench(c, "udp64_established_rules", rules, || Rig::established_under(rules), |_| {});
    }
}

fn new_flows(c: &mut Criterion) {
    for rules in [1, 32, 1000, 10_000] {
        let all_seen = |rig: &mut Rig| {
            if rig.next == 0 {
                rig.forget();
            }
        };
        bench(c, "udp64_new", rules, || Rig::with_new(rules), all_seen);
        let alone = || {
            let mut rig = Rig::with_new(rules);
            rig.shard.turn_foresight_off();
            rig
        };
        bench(c, "udp64_new_alone", rules, alone, all_seen);
    }
}

criterion_group!(benches, established, new_flows);
criterion_main!(benches);
