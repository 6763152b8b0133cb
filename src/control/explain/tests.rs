//! What an explanation says beside what the datapath does: the same packets, the same verdicts.

use super::*;
use crate::rules::{self, RuleVector};
use crate::snapshot::RpFilter;
use crate::verdict::DropReason;
use proptest::prelude::*;

const LAN_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const WAN_MAC: Mac = Mac([2, 0, 0, 0, 2, 1]);
const GATEWAY_MAC: Mac = Mac([2, 0, 0, 0, 2, 9]);

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().expect("an address").into()
}

fn routing() -> Routing {
    let mut builder = RoutingBuilder::new();
    let gateway = addr("192.0.2.1");
    builder
        .add_port(PortId::LAN, "lan0", LAN_MAC, 1500)
        .add_port(PortId::WAN, "wan0", WAN_MAC, 1400)
        .add_address(PortId::LAN, [10, 1, 0, 1], 16)
        .add_address(PortId::WAN, [192, 0, 2, 9], 24)
        .add_address(PortId::LAN, addr("fd01::1").to_ip(), 64)
        .add_address(PortId::WAN, addr("fd02::1").to_ip(), 64)
        .add_route("0.0.0.0/0".parse().expect("a prefix"), PortId::WAN, Some(gateway))
        .add_special_route("198.51.100.0/24".parse().expect("a prefix"), crate::route::Kind::Blackhole)
        .add_neighbour(PortId::WAN, gateway, GATEWAY_MAC)
        .add_neighbour(PortId::LAN, addr("10.1.0.5"), Mac([2, 0, 0, 0, 1, 5]));
    let mut port = builder.ports()[1].clone();
    port.rp_filter = RpFilter::Strict;
    builder.set_port(PortId::WAN, port);
    builder.build()
}

fn scene(v4: &str, v6: &str) -> Scene {
    let load = |name, text: &str, family| {
        Arc::new(rules::load(name, text, family, &["lan0", "wan0"]).unwrap_or_else(|bad| panic!("{bad}")))
    };
    let rulesets = [load("home.v4", v4, Family::V4), load("home.v6", v6, Family::V6)];
    let [v4, v6] = rulesets.each_ref().map(|ruleset| RuleVector::compile(ruleset));
    Scene {
        rulesets,
        policy: Arc::new(Policy { generation: 1, v4, v6 }),
        routing: routing(),
        routes_assumed: false,
        settings: Settings::default(),
        connections: Vec::new(),
        now: Instant::from_secs(1000),
        unix: (1_700_000_000, 0),
    }
}

fn home() -> Scene {
    scene(include_str!("../../../configs/home-gateway.v4"), include_str!("../../../configs/home-gateway.v6"))
}

fn ask(scene: &Scene, input: &str, packet: &str) -> Explanation {
    let question = Question { packet: packet.to_owned(), input: Some(input.to_owned()) };
    explain(&question, scene).unwrap_or_else(|wrong| panic!("{packet}: {wrong}"))
}

/// What the datapath does: `leaves`, `waits`, `host`, or the drop reason; and whether the sender is answered.
fn verdict_of(shard: &mut Shard, scene: &Scene, input: PortId, bytes: &[u8], pool: &mut FramePool) -> (String, bool) {
    let mut frame = pool.take().expect("a frame");
    frame.fill(bytes);
    let counted = shard.counters.clone();
    let mut effects = pass(shard, scene, input, frame);
    let answered = shard.counters.replies > counted.replies;
    let dropped = DropReason::ALL.iter().find(|&&reason| shard.counters.drops.get(reason) > counted.drops.get(reason));
    let word = match dropped {
        Some(reason) => reason.name(),
        None if !effects.punt.is_empty() => "host",
        None if effects.transmit.iter().any(|queue| !queue.is_empty()) => "leaves",
        None => "waits",
    };
    let sent = effects.transmit.iter_mut().find_map(std::collections::VecDeque::pop_front);
    let back = sent.or_else(|| effects.free.pop()).or_else(|| effects.punt.pop().map(|(_, frame)| frame));
    // What waits is not missed: there are frames enough for the test.
    back.into_iter().for_each(|frame| pool.put(frame));
    (word.to_owned(), answered)
}

fn said(explanation: &Explanation) -> (String, bool) {
    let verdict = &explanation.verdict;
    let word = match (&verdict.reason, verdict.verdict.as_str()) {
        (Some(reason), _) => reason.as_str(),
        (None, "HOST") => "host",
        (None, _) if verdict.mac.is_some() => "leaves",
        (None, _) => "waits",
    };
    (word.to_owned(), verdict.answer.is_some())
}

fn packet() -> impl Strategy<Value = String> {
    let v4 = [
        "10.1.0.5",
        "10.1.0.6",
        "10.2.0.5",
        "8.8.8.8",
        "192.0.2.9",
        "10.1.0.1",
        "127.0.0.1",
        "198.51.100.7",
        "224.0.0.5",
    ];
    let v6 = ["fd01::5", "fd02::5", "2001:db8::9", "fe80::1", "ff02::1", "::1"];
    let host = |list: &'static [&'static str]| proptest::sample::select(list);
    let pair = prop_oneof![
        4 => (host(Box::leak(Box::new(v4))), host(Box::leak(Box::new(v4)))),
        1 => (host(Box::leak(Box::new(v6))), host(Box::leak(Box::new(v6)))),
    ];
    let port = || proptest::sample::select(&[22u16, 25, 80, 135, 443, 1234][..]);
    let kind = proptest::sample::select(&["tcp", "udp", "icmp", "ip"][..]);
    let flags = proptest::sample::select(&["syn", "ack", "syn,ack", "rst", "none"][..]);
    let fields =
        proptest::sample::select(&["", "", "ttl 1", "ttl 2", "len 1450", "len 1450 df", "len 1600 df", "tos 4"][..]);
    (pair, port(), port(), kind, flags, fields).prop_map(|((src, dst), sport, dport, kind, flags, fields)| {
        let v6 = src.contains(':');
        let end = |host: &str, port| if v6 { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        match kind {
            "tcp" => format!("tcp {} > {} {flags} {fields}", end(src, sport), end(dst, dport)),
            "udp" => format!("udp {} > {} {fields}", end(src, sport), end(dst, dport)),
            "icmp" if v6 => format!("icmpv6 {src} > {dst} {fields}"),
            "icmp" => format!("icmp {src} > {dst} {fields}"),
            _ => format!("ip {src} > {dst} proto 47 {fields}"),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// A router is asked about every packet before it gets it, connections that earlier ones began and all.
    #[test]
    fn what_is_explained_is_what_is_done(packets in proptest::collection::vec((packet(), 0u8..2), 1..30)) {
        let mut scene = home();
        let mut shard = Shard::new(Settings { max: ROOM, ..Settings::default() }, [3, 4], &scene.policy);
        let mut pool = FramePool::in_memory(64, 2048);
        for (text, port) in packets {
            // The rules' limits begin full for every explanation; so be it for the router.
            scene.now = scene.now + 3600 * SECOND_NS / 100;
            let sketch: Sketch = text.parse().expect("a good packet");
            let port = PortId(port);
            scene.connections = tuples_of(&sketch).iter().filter_map(|tuple| shard.conntrack.copy(tuple, scene.now)).collect();
            let before = shard.conntrack.len();
            let question = Question { packet: text.clone(), input: Some(format!("{port:?}")) };
            let explanation = explain(&question, &scene).expect("a good question");
            prop_assert_eq!(shard.conntrack.len(), before);
            let bytes = sketch.frame(scene.routing.port(port).mac, Mac([2, 0, 0, 0, 9, 9]));
            let done = verdict_of(&mut shard, &scene, port, &bytes, &mut pool);
            prop_assert_eq!(said(&explanation), done, "{} at {:?}\n{}", text, port, explanation);
            let json = serde_json::to_string(&explanation).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<Explanation>(&json).expect("the same"), &explanation);
        }
    }
}

#[test]
fn a_packet_on_its_way_out_is_told_all_the_way() {
    let scene = home();
    let explanation = ask(&scene, "lan0", "tcp 10.1.0.5:1234 > 1.1.1.1:443 syn");
    assert_eq!(
        explanation.verdict.to_string(),
        "ACCEPT by filter LAN_OUT rule 6 [home.v4:18]: leaves by wan0 to 192.0.2.1 (02:00:00:00:02:09)"
    );
    let names: Vec<String> = explanation.stages.iter().map(|stage| format!("{}: {}", stage.name, stage.says)).collect();
    assert_eq!(
        names,
        [
            "conntrack: NEW",
            "routing: wan0 via 192.0.2.1",
            "filter FORWARD: ACCEPT",
            "next hop: 192.0.2.1 is 02:00:00:00:02:09 on wan0",
        ]
    );
}

#[test]
fn what_if_conntrack_said_something_else() {
    let scene = home();
    let state = |words: &str| {
        let explanation = ask(&scene, "wan", &format!("tcp 8.8.8.8:443 > 10.1.0.5:1234 {words}"));
        let conntrack = explanation.stages.iter().find(|stage| stage.name == "conntrack").expect("it is asked");
        (conntrack.says.clone(), explanation.verdict.rule, explanation.verdict.passes)
    };
    assert_eq!(state("syn"), ("NEW".to_owned(), Some(4), false));
    assert_eq!(state("state ESTABLISHED reply"), ("ESTABLISHED".to_owned(), Some(2), true));
    assert_eq!(state("state ESTABLISHED"), ("ESTABLISHED".to_owned(), Some(2), true));
    assert_eq!(state("state RELATED"), ("RELATED".to_owned(), Some(2), true));
    assert_eq!(state("state INVALID"), ("INVALID".to_owned(), Some(1), false));
    assert_eq!(state("ack state UNTRACKED"), ("UNTRACKED".to_owned(), Some(4), false));
    let echo = ask(&scene, "wan", "icmp 8.8.8.8 > 10.1.0.5 echo-reply state ESTABLISHED reply");
    assert_eq!((echo.verdict.passes, echo.verdict.rule), (true, Some(2)));
    // An error about a connection that there is not, and one about a connection that a copy brings.
    let error = "icmp 8.8.8.8 > 10.1.0.5 port-unreachable quoting udp 10.1.0.5:5 > 8.8.8.8:53";
    assert_eq!(ask(&scene, "wan", error).verdict.rule, Some(1));
}

#[test]
fn an_error_finds_the_connection_it_is_about() {
    let mut scene = home();
    let mut shard = Shard::new(Settings { max: ROOM, ..Settings::default() }, [3, 4], &scene.policy);
    let udp: Sketch = "udp 10.1.0.5:5 > 8.8.8.8:53".parse().expect("a packet");
    let mut pool = FramePool::in_memory(4, 2048);
    verdict_of(&mut shard, &scene, PortId::LAN, &udp.frame(LAN_MAC, Mac([2; 6])), &mut pool);
    let error = "icmp 8.8.8.8 > 10.1.0.5 port-unreachable quoting udp 10.1.0.5:5 > 8.8.8.8:53";
    let tuples = tuples_of(&error.parse().expect("a packet"));
    scene.connections = tuples.iter().filter_map(|tuple| shard.conntrack.copy(tuple, scene.now)).collect();
    let explanation = ask(&scene, "wan", error);
    assert_eq!(explanation.stages[0].says, "RELATED");
    assert_eq!(explanation.verdict.rule, Some(2));
}

#[test]
fn a_connection_in_a_zone_is_asked_for() {
    let v4 = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j CT --zone 5\nCOMMIT\n\
              *filter\n:FORWARD DROP [0:0]\n-A FORWARD -i lan0 -j ACCEPT\n\
              -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n";
    let mut scene = scene(v4, "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n");
    let mut shard = Shard::new(Settings { max: ROOM, ..Settings::default() }, [3, 4], &scene.policy);
    let udp: Sketch = "udp 10.1.0.5:5 > 8.8.8.8:53".parse().expect("a packet");
    let mut pool = FramePool::in_memory(4, 2048);
    verdict_of(&mut shard, &scene, PortId::LAN, &udp.frame(LAN_MAC, Mac([2; 6])), &mut pool);
    let question = Question { packet: "udp 8.8.8.8:53 > 10.1.0.5:5".to_owned(), input: Some("wan".to_owned()) };
    let (explanation, zoned) = explain_or_ask(&question, &scene).expect("a question");
    assert!(!explanation.verdict.passes, "{explanation}");
    let tuple = zoned.expect("there may be a connection in zone 5");
    assert_eq!(tuple.zone, 5);
    scene.connections.extend(shard.conntrack.copy(&tuple, scene.now));
    let (explanation, zoned) = explain_or_ask(&question, &scene).expect("a question");
    assert!(explanation.verdict.passes && zoned.is_none(), "{explanation}");
}

#[test]
fn what_translation_makes_of_a_packet_is_told() {
    let v4 = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
              -A PREROUTING -i wan0 -p tcp --dport 8080 -j DNAT --to-destination 10.1.0.5:80\n\
              -A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    let scene = scene(v4, "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n");
    let names = |explanation: &Explanation| {
        explanation.stages.iter().map(|stage| format!("{} {}", stage.name, stage.says)).collect::<Vec<_>>()
    };
    let out = names(&ask(&scene, "lan", "tcp 10.1.0.5:1000 > 1.1.1.1:2"));
    assert_eq!(out[out.len() - 3], "nat POSTROUTING ACCEPT", "{out:?}");
    assert_eq!(out[out.len() - 2], "nat source 10.1.0.5:1000 becomes 192.0.2.9:1000");
    let asked = ask(&scene, "wan", "tcp 8.8.8.8:1000 > 192.0.2.9:8080");
    let forwarded = names(&asked);
    assert_eq!(forwarded[2], "nat destination 192.0.2.9:8080 becomes 10.1.0.5:80", "{forwarded:?}");
    assert!(asked.to_string().contains("the way to 10.1.0.5\n"), "{asked}");
}

#[test]
fn targets_tell_what_they_change_and_other_tables_are_met() {
    let v4 = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A PREROUTING -i wan0 -p udp -j DROP\nCOMMIT\n\
              *mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -o wan0 -p tcp\n-A FORWARD -j LOG --log-prefix \"seen \"\nCOMMIT\n\
              *filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    let scene = scene(v4, "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n");
    let names = |explanation: &Explanation| {
        explanation.stages.iter().map(|stage| format!("{} {}", stage.name, stage.says)).collect::<Vec<_>>().join("; ")
    };
    let out = ask(&scene, "lan", "tcp 10.1.0.5:1 > 1.1.1.1:2");
    let text = names(&out);
    assert!(
        text.starts_with("raw PREROUTING ACCEPT; conntrack not tracked; mangle PREROUTING ACCEPT; routing"),
        "{text}"
    );
    assert!(text.contains("routing wan0 via 192.0.2.1; mangle FORWARD ACCEPT; filter FORWARD ACCEPT"), "{text}");
    assert!(out.to_string().contains("no rule needs connections, and so none is tracked, as on Linux"), "{out}");
    let dropped = ask(&scene, "wan", "udp 8.8.8.8:53 > 10.1.0.5:53");
    assert_eq!(names(&dropped), "raw PREROUTING DROP");
    assert_eq!(dropped.verdict.to_string(), "DROP (rule_drop) by raw PREROUTING rule 1 [home.v4:4]");
}

#[test]
fn what_ends_before_the_rules_is_told_too() {
    let scene = home();
    for (input, packet, verdict) in [
        ("lan", "udp 10.1.0.5:1 > 10.1.0.1:53", "HOST: it is for the host itself"),
        (
            "lan",
            "udp 10.1.0.5:1 > 1.1.1.1:53 ttl 1",
            "DROP (ttl_exceeded): TTL or hop limit used up (answered with time exceeded); its sender is told ttl-exceeded",
        ),
        (
            "lan",
            "udp 10.1.0.5:1 > 1.1.1.1:53 len 1450 df",
            "DROP (packet_too_big): Larger than the way out takes (answered with fragmentation needed or packet too big); \
             its sender is told frag-needed",
        ),
        ("lan", "udp 10.1.0.5:1 > 198.51.100.1:53", "DROP (route_blackhole): Route of type blackhole (silent)"),
        (
            "wan",
            "udp 10.1.0.5:1 > 1.1.1.1:53",
            "DROP (reverse_path): The route back to the source does not lead through the port it came by (rp_filter)",
        ),
        (
            "lan",
            "tcp 10.1.0.5:1 > 1.1.1.1:25",
            "REJECT (rule_reject) by filter LAN_OUT rule 2 [home.v4:14]; its sender is told tcp-reset",
        ),
    ] {
        assert_eq!(ask(&scene, input, packet).verdict.to_string(), verdict, "{packet}");
    }
}

#[test]
fn a_port_that_is_not_there_is_refused_and_one_not_named_is_found() {
    let scene = home();
    let question = |input: Option<&str>| Question {
        packet: "udp 10.1.0.5:1 > 1.1.1.1:53".to_owned(),
        input: input.map(str::to_owned),
    };
    let wrong = explain(&question(Some("eth7")), &scene).expect_err("no such port");
    assert_eq!(wrong, "-i eth7: no port of this router; it has lan0 (lan) and wan0 (wan)");
    let explanation = explain(&question(None), &scene).expect("a question");
    assert_eq!(explanation.input, "lan0");
    assert_eq!(explanation.notes, ["taken to arrive by lan0, where its source is; -i says otherwise"]);
}
