//! A shard that takes shortcuts and looks ahead against one that does neither: same packets out, same drops, same counters, same connections.

use super::*;
use crate::rules::generator::{self, Allowed, Cut, Shape, Version};
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// A packet of one of the flows.
    Packet { flow: Index, back: bool, flags: u8, ttl: u8, payload: usize, spoil: bool, other_port: bool },
    /// Time passes, and what is due happens.
    Wait { milliseconds: u64 },
    /// A neighbour has another address.
    Neighbour { byte: u8 },
    /// The same rules again, as a reload makes them.
    Reload,
    /// The numbers of shortcuts are nearly used up.
    Age,
}

fn step() -> impl Strategy<Value = Step> {
    let packet = (
        any::<Index>(),
        any::<bool>(),
        select(&[2u8, 0x12, 0x10, 0x10, 0x18, 0x11, 4][..]),
        select(&[64u8, 64, 64, 2, 1, 0][..]),
        select(&[0usize, 0, 10, 200, 1300, 1390][..]),
        prop::bool::weighted(0.05),
        prop::bool::weighted(0.05),
    );
    prop_oneof![
        40 => packet.prop_map(|(flow, back, flags, ttl, payload, spoil, other_port)| {
            Step::Packet { flow, back, flags, ttl, payload, spoil, other_port }
        }),
        4 => select(&[1u64, 1500, 2500, 29_000, 121_000][..]).prop_map(|milliseconds| Step::Wait { milliseconds }),
        1 => any::<u8>().prop_map(|byte| Step::Neighbour { byte }),
        1 => Just(Step::Reload),
        1 => Just(Step::Age),
    ]
}

/// Rules that keep their verdicts, and rules that must not.
const RULES: [&str; 5] = [
    "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -m conntrack --ctstate NEW -j ACCEPT\n",
    "-A FORWARD -p tcp -m tcp ! --syn -m conntrack --ctstate NEW -j DROP\n-A FORWARD -j ACCEPT\n",
    "-A FORWARD -m conntrack --ctstate ESTABLISHED -m limit --limit 1/sec --limit-burst 3 -j ACCEPT\n\
     -A FORWARD -m conntrack --ctstate NEW -j ACCEPT\n-A FORWARD -j LOG --log-prefix \"x \"\n",
    "-A FORWARD -p tcp -m tcp --tcp-flags PSH PSH -j DROP\n-A FORWARD -j ACCEPT\n",
    "-A FORWARD -m conntrack --ctstatus ASSURED -j ACCEPT\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\n-A FORWARD -j ACCEPT\n",
];

/// Tables besides filter: what they do to connections and packets is done to each, or need not be.
const TABLES: [&str; 7] = [
    // Some packets of a connection are seen by a rule that gives it a helper, and some are not.
    "*raw\n-A PREROUTING -i lan0 -p tcp -j CT --helper ftp\n-A PREROUTING -i lan0 -p udp -j CT --helper tftp\nCOMMIT\n\
     *filter\n:FORWARD DROP [0:0]\n-A FORWARD -m helper --helper tftp -j ACCEPT\n\
     -A FORWARD -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n",
    "*mangle\n-A PREROUTING -j CONNMARK --restore-mark\n-A PREROUTING -m mark ! --mark 0x0 -j ACCEPT\n\
     -A PREROUTING -p udp -j MARK --set-xmark 0x7/0xffffffff\n-A PREROUTING -j CONNMARK --save-mark\n\
     -A FORWARD -m connmark --mark 0x7 -j TOS --set-tos 0x10/0x3f\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\n\
     -A FORWARD -m connmark --mark 0x7 -j ACCEPT\n-A FORWARD -p tcp -j ACCEPT\nCOMMIT\n",
    "*mangle\n-A POSTROUTING -m conntrack --ctdir REPLY -j CONNMARK --set-xmark 0x1/0x0\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n\
     -A FORWARD -m connmark --mark 0x1 -m conntrack --ctdir ORIGINAL -j DROP\nCOMMIT\n",
    "*raw\n-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack\n-A PREROUTING -i wan0 -j CT --zone-reply 3\nCOMMIT\n\
     *filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate UNTRACKED\nCOMMIT\n",
    "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --tcp-flags FIN FIN -j NOTRACK\nCOMMIT\n*mangle\n\
     -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 900\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\n\
     -A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT\nCOMMIT\n*security\n-A FORWARD -j ACCEPT\nCOMMIT\n",
    "*nat\n-A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\n\
     -A FORWARD -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n",
    "*nat\n-A PREROUTING -i lan0 -d SERVER2 -j DNAT --to-destination SERVER3\n-A POSTROUTING -s CLIENT2 -j SNAT --to-source CLIENT3\nCOMMIT\n\
     *filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstatus SEEN_REPLY --ctstate SNAT,DNAT -m statistic --mode nth --every 7 \
     --packet 0 -j DROP\nCOMMIT\n",
];

fn rules(version: Version) -> BoxedStrategy<String> {
    // Answers to what is translated are among the flows.
    let nets = if version == Version::V4 { ["10.1.0.", "10.2.0."] } else { ["fd01::", "fd02::"] };
    let tables = select(&TABLES[..]).prop_map(move |text| text.replace("CLIENT", nets[0]).replace("SERVER", nets[1]));
    let fixed = select(&RULES[..]).prop_map(|rules| {
        format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n")
    });
    let random = generator::ruleset(version, Allowed { fast_limits: true, odd: false });
    prop_oneof![fixed, tables, random].boxed()
}

fn flows(version: Version) -> BoxedStrategy<Vec<Shape>> {
    let known = select(&[2u8, 3][..]);
    let flow = (generator::shape(version), known.clone(), known, select(&[6u8, 17, 17, 1][..]));
    let flow = flow.prop_map(|(shape, src, dst, proto)| {
        let proto = if proto == 1 { shape.proto } else { proto };
        Shape { src, dst, proto, options: Vec::new(), doff_lie: 0, cut: Cut::Whole, ..shape }
    });
    proptest::collection::vec(flow, 1..5).boxed()
}

/// What can be seen of a router.
#[derive(PartialEq, Debug)]
struct Seen {
    out: Vec<(PortId, Vec<u8>)>,
    logs: usize,
    punted: Vec<Vec<u8>>,
    drops: Vec<u64>,
    rules: [rules::RuleCounters; 2],
    connections: Vec<String>,
}

impl Bench {
    fn seen(&mut self, out: Vec<(PortId, Vec<u8>)>) -> Seen {
        let mut connections = Vec::new();
        self.shard.conntrack.list(0, usize::MAX, self.now, &mut |view| connections.push(view.to_string()));
        let punted = self.effects.punt.drain(..).map(|(_, frame)| {
            let bytes = frame.bytes().to_vec();
            self.pool.put(frame);
            bytes
        });
        Seen {
            out,
            punted: punted.collect(),
            logs: self.effects.logs.drain(..).count(),
            drops: DropReason::ALL.iter().map(|reason| self.shard.counters.drops.get(*reason)).collect(),
            rules: [self.shard.rule_counters(Family::V4), self.shard.rule_counters(Family::V6)],
            connections,
        }
    }

    fn step(&mut self, step: &Step, flows: &[Shape], text: &str, version: Version) -> Seen {
        let mut out = Vec::new();
        match step {
            Step::Packet { flow, back, flags, ttl, payload, spoil, other_port } => {
                let shape = &flows[flow.index(flows.len())];
                let (port, frame) = frame(shape, *back, *flags, *ttl, *payload, *spoil, *other_port);
                // Twice: the second finds what the first has left. And others between, so that a batch has several new flows.
                let of_others =
                    flows.iter().map(|other| self::frame(other, *back, *flags, *ttl, *payload, false, *other_port));
                let mut packets = vec![(port, frame.clone())];
                packets.extend(of_others);
                packets.push((port, frame));
                out = self.batch(&packets);
            }
            Step::Wait { milliseconds } => out = self.expire(milliseconds * 1_000_000),
            Step::Neighbour { byte } => {
                let known = match *byte {
                    0..20 => Neighbour::Failed,
                    20..40 => Neighbour::Unknown,
                    _ => Neighbour::Reachable(Mac([*byte & 0xfe; 6])),
                };
                for host in ["10.2.0.2", "fd02::2"] {
                    self.builder.set_neighbour(PortId::WAN, ip(host), known);
                }
                self.routing = match byte % 2 {
                    0 => self.builder.build(),
                    _ => self.builder.build_neighbours(&self.routing),
                };
            }
            Step::Reload => self.policy = policy(text, version, self.policy.generation + 1),
            Step::Age => self.shard.shortcuts.age(),
        }
        self.seen(out)
    }
}

fn frame(
    shape: &Shape,
    back: bool,
    flags: u8,
    ttl: u8,
    payload: usize,
    spoil: bool,
    other_port: bool,
) -> (PortId, Vec<u8>) {
    let mut shape = Shape { flags, payload, ..shape.clone() };
    if back {
        shape.outward = !shape.outward;
        std::mem::swap(&mut shape.src, &mut shape.dst);
        if !matches!(shape.proto, 1 | 58) {
            std::mem::swap(&mut shape.sport, &mut shape.dport);
        }
    }
    let from_lan = shape.outward != other_port;
    let port = if from_lan { PortId::LAN } else { PortId::WAN };
    let mut frame = shape.frame(1, mac_to(port));
    match shape.version {
        Version::V4 => {
            frame[22] = ttl;
            ipv4::set_checksum(&mut frame[14..34]);
        }
        Version::V6 => frame[21] = ttl,
    }
    if spoil {
        *frame.last_mut().expect("a frame has bytes") ^= 0x55;
    }
    (port, frame)
}

fn policy(text: &str, version: Version, generation: u64) -> Policy {
    let family = if version == Version::V4 { Family::V4 } else { Family::V6 };
    let vector = |of: Family| {
        let default = rules::default_policy(of, "lan0", "wan0");
        let text = if of == family { text } else { &default };
        RuleVector::compile(&rules::load("test", text, of, &["lan0", "wan0"]).expect("a generated file is good"))
            .always_tracking()
    };
    Policy { generation, v4: vector(Family::V4), v6: vector(Family::V6) }
}

fn router(text: &str, version: Version, liberal: bool) -> Bench {
    let mut router = Bench::new();
    let settings = Settings { max: 64, tcp_be_liberal: liberal, acct: true, ..Settings::default() };
    router.policy = policy(text, version, 1);
    router.shard = Shard::new(settings, [1, 2], &router.policy);
    router.builder.add_neighbour(PortId::LAN, ip("10.1.0.3"), CLIENT_MAC).add_neighbour(
        PortId::LAN,
        ip("fd01::3"),
        CLIENT_MAC,
    );
    router.routing = router.builder.build();
    router
}

fn compare(version: Version, text: &str, flows: &[Shape], steps: &[Step], liberal: bool) -> Result<(), TestCaseError> {
    let [mut short, mut long, mut watched] = [(); 3].map(|()| router(text, version, liberal));
    long.shard.turn_shortcuts_off();
    long.shard.turn_foresight_off();
    watched.shard.set_witness(Some(Box::new(Sometimes::default())));
    for step in steps {
        let (with, without) = (short.step(step, flows, text, version), long.step(step, flows, text, version));
        let seen = watched.step(step, flows, text, version);
        prop_assert_eq!(&seen, &without, "watched, after {:?} under\n{}", step, text);
        prop_assert_eq!(with, without, "after {:?} under\n{}", step, text);
    }
    Ok(())
}

/// Goes with two packets of three, and hears that all happens in order.
#[derive(Debug, Default)]
struct Sometimes {
    asked: u32,
    chains: Option<u32>,
}

impl Witness for Sometimes {
    fn wants(&mut self, _: &Packet, _: Instant) -> bool {
        self.asked += 1;
        !self.asked.is_multiple_of(3)
    }

    fn begin(&mut self, _: &Packet, _: Instant) {
        assert!(self.chains.replace(0).is_none(), "the packet before has ended");
    }

    fn route(&mut self, _: &Packet, _: Route) {
        assert!(self.chains.is_some());
    }

    fn tracked(&mut self, _: &mut Tracked, _: &crate::conntrack::Conntrack, _: Instant) {
        assert!(self.chains.is_some());
    }

    fn chain(&mut self, meeting: Meeting<'_, '_>) -> Decision {
        self.chains = self.chains.map(|chains| chains + 1);
        let Meeting { vector, chain, context, world, counters, .. } = meeting;
        vector.trace(chain, context, world, counters, &mut Trace::default())
    }

    fn exit(&mut self, _: &Packet, _: &Exit) {
        assert!(self.chains.take().is_some(), "it has begun");
    }
}

fn scene(version: Version) -> impl Strategy<Value = (String, Vec<Shape>, Vec<Step>, bool)> {
    (rules(version), flows(version), proptest::collection::vec(step(), 0..60), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn shortcuts_change_nothing_v4((text, flows, steps, liberal) in scene(Version::V4)) {
        compare(Version::V4, &text, &flows, &steps, liberal)?;
    }

    #[test]
    fn shortcuts_change_nothing_v6((text, flows, steps, liberal) in scene(Version::V6)) {
        compare(Version::V6, &text, &flows, &steps, liberal)?;
    }
}

/// The comparison above would hold as well if no packet ever took one.
#[test]
fn the_second_packet_of_a_state_takes_the_shortcut() {
    let mut router = Bench::new();
    for port in [PortId::LAN, PortId::WAN] {
        let packet = || if port == PortId::LAN { query() } else { answer() };
        for _ in 0..3 {
            router.one(port, &packet()).expect("forwarded");
        }
    }
    router.one(PortId::LAN, &query()).expect("forwarded");
    let learned = router.shard.shortcuts.learned();
    assert_eq!(learned, 3, "query NEW, answer ESTABLISHED, query ESTABLISHED");
    for _ in 0..5 {
        router.one(PortId::LAN, &query()).expect("forwarded");
    }
    let by_hand = router.shard.rules[0].rules().iter().map(|counter| counter.packets).sum::<u64>();
    let in_all = router.shard.rule_counters(Family::V4).rules().iter().map(|counter| counter.packets).sum::<u64>();
    assert!(in_all >= by_hand + 8, "{in_all} counted, {by_hand} of them by running the rules");
    router.builder.set_neighbour(PortId::WAN, ip("10.2.0.77"), Neighbour::Failed);
    router.routing = router.builder.build();
    router.one(PortId::LAN, &query()).expect("forwarded");
    assert_eq!(router.shard.shortcuts.learned(), learned, "a neighbour nobody went to changes nothing");
    router.builder.add_route("203.0.113.0/24".parse().expect("a prefix"), PortId::LAN, None);
    router.routing = router.builder.build();
    router.one(PortId::LAN, &query()).expect("forwarded");
    assert_eq!(router.shard.shortcuts.learned(), 1, "other ways begin with nothing");
}

/// Nor if nothing was ever foreseen.
#[test]
fn the_first_packets_of_a_batch_are_foreseen() {
    let rules =
        (0..40).map(|n| format!("-A FORWARD -p udp -m udp --sport {} -j ACCEPT\n", 5000 + n)).collect::<String>();
    let text = format!("*filter\n:FORWARD DROP [0:0]\n{rules}COMMIT\n");
    let mut router = router(&text, Version::V4, true);
    let query = |port: u16| (PortId::LAN, udp(PortId::LAN, CLIENT, SERVER, (port, 53), 64, 10));
    let out = router.batch(&[query(5001), query(5039), query(4999), query(5001)]);
    assert_eq!((out.len(), router.shard.ahead.foreseen_count()), (3, 4));
    let out = router.batch(&[query(5001), query(5002), query(5039)]);
    assert_eq!((out.len(), router.shard.ahead.foreseen_count()), (3, 0), "one new flow is not worth it");
}

#[test]
fn numbers_start_again_only_when_no_connection_has_an_old_one() {
    let mut router = Bench::new();
    for _ in 0..3 {
        router.one(PortId::LAN, &query()).expect("forwarded");
    }
    router.shard.shortcuts.age();
    router.one(PortId::LAN, &query()).expect("forwarded");
    assert_eq!(router.shard.shortcuts.learned(), 1, "the last numbers are good");
    router.builder.add_route("203.0.113.0/24".parse().expect("a prefix"), PortId::LAN, None);
    router.routing = router.builder.build();
    router.one(PortId::LAN, &query()).expect("forwarded");
    router.one(PortId::LAN, &query()).expect("forwarded");
    assert_eq!(router.shard.shortcuts.learned(), 1, "swept, and from 1 again");
}
