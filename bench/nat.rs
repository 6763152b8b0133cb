//! Address translation alone: no NIC, no kernel. What 64-byte UDP packets cost in `datapath::process`, translated and not, in one
//! run and interleaved: medians over batches of 64, in nanoseconds a packet.
//!
//! `out` and `back` are packets of established flows in either direction, every flow once per cycle and in another order than
//! they were made in; `new` has a new connection with each packet. `search` is a new connection's packet to a server to which so
//! many in 100 of the ports of a `SNAT --to-source ADDRESS:1024-65535` are in use already: `found` is how many found one, and the
//! slowest in a hundred is shown beside the median.
//!
//! `cargo bench --bench nat [-- FLOWS...]`; without numbers 1, 65536 and 1048576 flows (16777216 take 5 GB).

use xrouter::conntrack::Settings;
use xrouter::datapath::{BATCH, Batch, Effects, Shard, expire, process};
use xrouter::device::{FramePool, PortId};
use xrouter::rules::{self, RuleVector};
use xrouter::snapshot::{Policy, Routing};
use xrouter::time::{Instant, SECOND_NS};
use xrouter::wire::{Family, checksum, ipv4};

mod fixture;

const SERVER: u32 = 0x0a02_0064;
const OUTSIDE: u32 = 0x0a02_0001;
/// Ports of the widest class.
const PORTS: usize = 64_512;

const PLAIN: &str = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                     -A FORWARD -i lan0 -j ACCEPT\nCOMMIT\n";

fn masqueraded() -> String {
    format!("*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n{PLAIN}")
}

/// From source to destination, addresses and ports in host order.
#[derive(Clone, Copy)]
struct Ends {
    src: u32,
    dst: u32,
    sport: u16,
    dport: u16,
}

/// Every flow differs from all others in what is left of it when its source has become the router's.
fn flow(n: usize) -> Ends {
    let client = 0x0a01_0000 | (n as u32).wrapping_mul(0x9e37_79b1) >> 16;
    Ends { src: client, dst: SERVER, sport: 1024 + (n % PORTS) as u16, dport: 1 + (n / PORTS) as u16 }
}

struct Rig {
    shard: Shard,
    policy: Policy,
    routing: Routing,
    pool: FramePool,
    effects: Effects,
    batch: Batch,
    order: Vec<u32>,
    next: usize,
    translated: bool,
    now: Instant,
}

impl Rig {
    fn new(room: usize, text: &str) -> Rig {
        let vector = |text: &str, family| {
            RuleVector::compile(&rules::load("bench", text, family, &["lan0", "wan0"]).expect("good rules"))
        };
        let (v4, v6) = (vector(text, Family::V4), vector(PLAIN, Family::V6));
        let policy = Policy { generation: 1, v4, v6 };
        let settings = Settings { max: room, ..Settings::default() };
        Rig {
            shard: Shard::new(settings, [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210], &policy),
            policy,
            routing: fixture::routing(),
            pool: FramePool::in_memory(512, 2048),
            effects: Effects::new(BATCH),
            batch: Batch::default(),
            order: Vec::new(),
            next: 0,
            translated: text.contains("MASQUERADE"),
            now: Instant::from_secs(1),
        }
    }

    /// With so many flows, all established, in random order.
    fn established(flows: usize, text: &str) -> Rig {
        let mut rig = Rig::new(flows.max(64) * 5 / 4, text);
        rig.order = (0..flows as u32).collect();
        for port in [PortId::LAN, PortId::WAN, PortId::LAN, PortId::WAN] {
            for _ in 0..flows.div_ceil(BATCH) {
                rig.step(port);
            }
            rig.next = 0;
        }
        rig.shuffle();
        rig
    }

    fn shuffle(&mut self) {
        let mut state = 0x9e37_79b9u64;
        for index in (1..self.order.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.order.swap(index, (state >> 33) as usize % (index + 1));
        }
    }

    /// A batch of the next flows' packets through the datapath; nanoseconds a packet.
    fn step(&mut self, port: PortId) -> f64 {
        for _ in 0..BATCH {
            let ends = flow(self.order[self.next] as usize);
            self.next = (self.next + 1) % self.order.len();
            let outside = if self.translated { OUTSIDE } else { ends.src };
            let ends = match port {
                PortId::LAN => ends,
                _ => Ends { src: ends.dst, dst: outside, sport: ends.dport, dport: ends.sport },
            };
            self.push(port, &ends);
        }
        let (took, sent) = self.process();
        assert_eq!(sent, BATCH, "every packet is forwarded");
        took / BATCH as f64
    }

    fn push(&mut self, port: PortId, ends: &Ends) {
        let mut frame = self.pool.take().expect("all frames came back");
        frame.set_len(60);
        write_packet(frame.bytes_mut(), ends, port);
        self.batch.push(port, frame);
    }

    /// Nanoseconds, and packets that left.
    fn process(&mut self) -> (f64, usize) {
        let start = std::time::Instant::now();
        process(&mut self.shard, &self.policy, &self.routing, &mut self.batch, self.now, &mut self.effects);
        let took = start.elapsed().as_nanos() as f64;
        self.now = self.now + 1000;
        let mut sent = 0;
        for queue in &mut self.effects.transmit {
            sent += queue.len();
            queue.drain(..).for_each(|frame| self.pool.put(frame));
        }
        self.effects.free.drain(..).for_each(|frame| self.pool.put(frame));
        (took, sent)
    }

    /// Every connection expires.
    fn forget(&mut self) {
        self.now = self.now + 3600 * SECOND_NS;
        while !self.shard.conntrack.is_empty() {
            expire(&mut self.shard, &self.policy, &self.routing, self.now, 4096, &mut self.effects);
            self.now = self.now + SECOND_NS;
        }
    }
}

fn write_packet(frame: &mut [u8], ends: &Ends, port: PortId) {
    frame.fill(0);
    frame[..6].copy_from_slice(&fixture::PORT_MAC[port.index()].0);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..];
    (ip[0], ip[3], ip[8], ip[9]) = (0x45, 46, 64, 17);
    ip[12..16].copy_from_slice(&ends.src.to_be_bytes());
    ip[16..20].copy_from_slice(&ends.dst.to_be_bytes());
    ipv4::set_checksum(&mut ip[..20]);
    ip[20..22].copy_from_slice(&ends.sport.to_be_bytes());
    ip[22..24].copy_from_slice(&ends.dport.to_be_bytes());
    ip[25] = 26;
    let pseudo = u64::from(ends.src) + u64::from(ends.dst) + 17 + 26;
    let check = checksum::finish(checksum::sum(pseudo, &ip[20..46]));
    ip[26..28].copy_from_slice(&check.to_be_bytes());
}

/// The value that so many in 100 are not above.
fn percentile(values: &mut [f64], share: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * share / 100]
}

/// Batches of each rig and direction.
const ROUNDS: usize = 20_000;

fn established(flows: usize) {
    let mut rigs = [Rig::established(flows, PLAIN), Rig::established(flows, &masqueraded())];
    let mut took = [[(); 2]; 2].map(|row| row.map(|()| Vec::with_capacity(ROUNDS)));
    for _ in 0..ROUNDS {
        for (rig, took) in rigs.iter_mut().zip(&mut took) {
            for (port, took) in [PortId::LAN, PortId::WAN].into_iter().zip(took) {
                took.push(rig.step(port));
            }
        }
    }
    let [plain, translated] = took.map(|row| row.map(|mut values| percentile(&mut values, 50)));
    eprintln!(
        "{flows:>9} flows: out {:6.1} ns, translated {:6.1} ({:.2}); back {:6.1} ns, translated {:6.1} ({:.2}); \
         {:.2} Mpps translated",
        plain[0],
        translated[0],
        translated[0] / plain[0],
        plain[1],
        translated[1],
        translated[1] / plain[1],
        2000.0 / (translated[0] + translated[1])
    );
}

fn new_flows() {
    const FLOWS: usize = 65_536;
    let mut rigs = [Rig::new(FLOWS * 2, PLAIN), Rig::new(FLOWS * 2, &masqueraded())];
    rigs.iter_mut().for_each(|rig| rig.order = (0..FLOWS as u32).collect());
    rigs.iter_mut().for_each(Rig::shuffle);
    let mut took = [(); 2].map(|()| Vec::new());
    for _ in 0..20 {
        for _ in 0..FLOWS / BATCH {
            for (rig, took) in rigs.iter_mut().zip(&mut took) {
                took.push(rig.step(PortId::LAN));
            }
        }
        rigs.iter_mut().for_each(Rig::forget);
    }
    let [plain, translated] = took.map(|mut values| percentile(&mut values, 50));
    let rate = 1000.0 / translated;
    eprintln!(
        "new: {plain:.1} ns, translated {translated:.1} ({:.2}); {rate:.2} M new translated flows/s",
        translated / plain
    );
}

/// What it takes to find a port when so many in 100 are in use.
fn search(percent: usize) {
    let nat = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wan0 -p udp -j SNAT --to-source 10.2.0.1:1024-65535\nCOMMIT\n";
    let mut rig = Rig::new(4 * PORTS, &format!("{nat}{PLAIN}"));
    // Clients draw theirs at random.
    rig.order = (0..PORTS as u32).collect();
    rig.shuffle();
    rig.order.truncate(PORTS * percent / 100);
    // Each keeps its own port: that many are in use to this server's port.
    for index in 0..rig.order.len() {
        let ends = flow(rig.order[index] as usize);
        rig.push(PortId::LAN, &ends);
        rig.process();
    }
    assert_eq!(rig.shard.conntrack.len(), rig.order.len());
    let (mut took, mut found) = (Vec::new(), 0);
    let tries = 100;
    for n in 0..tries {
        // Of ports in use, so that nobody keeps his own.
        let taken = flow(rig.order[n * 7 % rig.order.len()] as usize);
        rig.push(PortId::LAN, &Ends { src: 0x0a01_8000 + n as u32, ..taken });
        let (ns, sent) = rig.process();
        found += sent;
        took.push(ns);
    }
    eprintln!(
        "search at {percent:>3} %: {:7.0} ns a packet (99 %: {:.0}); found {:.1} %",
        percentile(&mut took, 50),
        percentile(&mut took, 99),
        100.0 * found as f64 / tries as f64
    );
}

fn main() {
    let asked: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let flows = if asked.is_empty() { vec![1, 65_536, 1_048_576] } else { asked };
    flows.into_iter().for_each(established);
    new_flows();
    [1, 50, 90, 99, 100].into_iter().for_each(search);
}
