//! Directed sequences: every cell of the state tables, every combination of TCP flags in every state, and every timeout.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant as Clock};

use xrouter::conntrack::Settings;
use xrouter::time::Instant;

use crate::asked::privileged;
use crate::compare::{Pair, describe, kernels_clock};
use crate::step::{Entry, Step};
use crate::testing::{self, Segment};
use crate::{CLIENT, CLIENT6, SERVER, SERVER6};

fn plain() -> Settings {
    Settings { max: 1000, ..Settings::default() }
}

/// How a state is reached: the segments or chunks, `c` for the client's and `s` for the server's.
type Path = (&'static str, &'static str);

/// States of TCP in the order of the table's columns, with their numbers.
const TCP_STATES: [Path; 10] = [
    ("NO", ""),
    ("SS", "cS"),
    ("SR", "cS sSA"),
    ("ES", "cS sSA cA"),
    ("FW", "cS sSA cA cFA"),
    ("CW", "cS sSA cA cFA sA"),
    ("LA", "cS sSA cA cFA sFA"),
    ("TW", "cS sSA cA cFA sFA cA"),
    ("CL", "cS sSA cA cR"),
    ("S2", "cS sS"),
];

/// Classes of segments and how the table has them, from the client and from the server. IG: let through, nothing changes.
/// IV: INVALID. `--`: let through, the connection is gone, because there was no reply yet.
const TCP_TABLE: [(&str, &str, &str); 6] = [
    //      NO SS SR ES FW CW LA TW CL S2    NO SS SR ES FW CW LA TW CL S2
    ("S", "SS SS IG IG IG IG IG SS SS S2", "SS S2 IV IV IV IV IV SS IV S2"),
    ("SA", "IV IV SR IV IV IV IV IV IV SR", "IV SR IG IG IG IG IG IG IG SR"),
    ("FA", "IV IV FW FW LA LA LA TW CL IV", "IV IV FW FW LA LA LA TW CL IV"),
    ("A", "ES IV ES ES CW CW TW TW CL IV", "ES IG SR ES CW CW TW TW CL IG"),
    ("R", "IV -- CL CL CL CL CL CL CL CL", "IV -- CL CL CL CL CL CL CL CL"),
    ("P", "IV IV IV IV IV IV IV IV IV IV", "IV IV IV IV IV IV IV IV IV IV"),
];

/// Two ends of a TCP connection that send what the other expects.
struct Ends {
    next: [u32; 2],
}

const ISN: [u32; 2] = [1_000_000, 5_000_000];

impl Ends {
    fn new() -> Ends {
        Ends { next: ISN }
    }

    fn segment(&mut self, word: &str) -> Step {
        let from_client = word.starts_with('c');
        self.send(from_client, testing::flags(&word[1..]))
    }

    fn send(&mut self, from_client: bool, flags: u8) -> Step {
        let (me, peer) = if from_client { (0, 1) } else { (1, 0) };
        let syn = flags & 2 != 0;
        let seq = if syn { ISN[me] } else { self.next[me] };
        let ack = if flags & 0x10 != 0 { self.next[peer] } else { 0 };
        let (sport, dport) = if from_client { (4000, 80) } else { (80, 4000) };
        let end = seq.wrapping_add(u32::from(syn) + u32::from(flags & 1));
        if end.wrapping_sub(self.next[me]) as i32 > 0 {
            self.next[me] = end;
        }
        let bytes = Segment { sport, dport, seq, ack, flags, window: 8192, options: vec![], payload: 0 }.bytes();
        let (src, dst) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        Step::new(from_client, testing::ip(src, dst, 6, &bytes))
    }

    fn path(&mut self, path: &str) -> Vec<Step> {
        path.split_whitespace().map(|word| self.segment(word)).collect()
    }
}

/// Both sides after these steps; fails where they differ. The class of the last packet, and the connections.
fn run(pair: &mut Pair, settings: &Settings, steps: &[Step]) -> (Option<&'static str>, Vec<Entry>) {
    let listed = || steps.iter().map(describe).collect::<Vec<_>>().join("\n  ");
    pair.kernel.table.flush();
    pair.kernel.apply(settings);
    pair.ours.begin(settings);
    let now = Instant::from_secs(1000);
    let mut class = None;
    for step in steps {
        match pair.send(step, now) {
            Ok(seen) => class = seen,
            Err(what) => panic!("{what}\n  {}", listed()),
        }
    }
    (class, pair.ours.entries(now))
}

fn state_of(entries: &[Entry]) -> usize {
    match entries {
        [] => 0,
        [entry] => usize::from(entry.state.expect("a state")),
        many => panic!("{many:#?}"),
    }
}

#[test]
fn every_cell_of_the_tcp_table_is_the_kernels() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new().expect("namespaces");
    // What is ignored is not counted.
    let settings = Settings { acct: true, ..plain() };
    let counters = |entries: &[Entry]| entries.iter().map(|entry| entry.counters).collect::<Vec<_>>();
    let name = |number: usize| TCP_STATES[number].0;
    let mut cells = 0;
    for (class, client, server) in TCP_TABLE {
        for (from, row) in [("c", client), ("s", server)] {
            for ((state, path), wanted) in TCP_STATES.iter().zip(row.split_whitespace()) {
                let mut ends = Ends::new();
                let mut steps = ends.path(path);
                let (_, entries) = run(&mut pair, &settings, &steps);
                assert_eq!(name(state_of(&entries)), *state, "the path to {state}");
                steps.push(ends.segment(&format!("{from}{class}")));
                let (seen, after) = run(&mut pair, &settings, &steps);
                let found = match (seen, &after[..]) {
                    (Some("INVALID"), _) => "IV",
                    (_, []) => "--",
                    (_, after) => match name(state_of(after)) {
                        same if same == *state && wanted == "IG" && counters(after) == counters(&entries) => "IG",
                        now => now,
                    },
                };
                assert_eq!(found, wanted, "{class} from {from} in {state}: {after:#?}");
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 120);
}

#[test]
fn every_combination_of_flags_is_the_kernels_in_every_state() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new().expect("namespaces");
    for (_, path) in TCP_STATES {
        for flags in 0..=u8::MAX {
            for from_client in [true, false] {
                let mut ends = Ends::new();
                let mut steps = ends.path(path);
                steps.push(ends.send(from_client, flags));
                if !steps[steps.len() - 1].looks_unfinished() {
                    run(&mut pair, &plain(), &steps);
                }
            }
        }
    }
    assert!(pair.tally["INVALID"] > 2000 && pair.tally["ESTABLISHED"] > 2000, "{:?}", pair.tally);
}

/// States of SCTP by their numbers; a path's words are the chunk's type.
const SCTP_STATES: [Path; 9] = [
    ("none", ""),
    ("closed", "c1"),
    ("cookie wait", "c1 s2"),
    ("cookie echoed", "c1 s2 c10"),
    ("established", "c1 s2 c10 s11"),
    ("shutdown sent", "c1 s2 c10 s11 c7"),
    ("shutdown received", "c1 s2 c10 s11 s7"),
    ("shutdown ack sent", "c1 s2 c10 s11 c7 s8"),
    ("heartbeat sent", "c4"),
];
/// DATA, and every chunk that the table knows.
const SCTP_CHUNKS: [u8; 12] = [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 14];

fn sctp(word: &str) -> Step {
    const TAGS: [u32; 2] = [0x1111_1111, 0x2222_2222];
    let from_client = word.starts_with('c');
    let kind: u8 = word[1..].parse().expect("a chunk type");
    let (me, peer) = if from_client { (0, 1) } else { (1, 0) };
    let (sport, dport) = if from_client { (4000u16, 5000u16) } else { (5000, 4000) };
    let vtag = if kind == 1 { 0 } else { TAGS[peer] };
    let mut packet = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    packet.extend(vtag.to_be_bytes());
    packet.extend([0; 4]);
    let value = if matches!(kind, 1 | 2) { [&TAGS[me].to_be_bytes()[..], &[0; 12]].concat() } else { vec![0; 4] };
    packet.extend([kind, 0, 0, 4 + value.len() as u8]);
    packet.extend(value);
    let crc = !xrouter::wire::checksum::crc32c(!0, &packet);
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    let (src, dst) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
    Step::new(from_client, testing::ip(src, dst, 132, &packet))
}

fn sctp_path(path: &str) -> Vec<Step> {
    path.split_whitespace().map(sctp).collect()
}

#[test]
fn every_cell_of_the_sctp_table_is_the_kernels() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new().expect("namespaces");
    for (number, (name, path)) in SCTP_STATES.iter().enumerate() {
        let (_, entries) = run(&mut pair, &plain(), &sctp_path(path));
        assert_eq!(state_of(&entries), number, "the path to {name}");
        for kind in SCTP_CHUNKS {
            for from in ["c", "s"] {
                let mut steps = sctp_path(path);
                steps.push(sctp(&format!("{from}{kind}")));
                run(&mut pair, &plain(), &steps);
            }
        }
    }
}

/// A packet of a protocol without states, from the client or the server, over IPv4 or IPv6.
fn packet(v6: bool, from_client: bool, proto: u8) -> Step {
    let (client, server) = if v6 { (CLIENT6, SERVER6) } else { (CLIENT, SERVER) };
    let (src, dst) = if from_client { (client, server) } else { (server, client) };
    let (sport, dport) = if from_client { (4000, 53) } else { (53, 4000) };
    let l4 = match (proto, from_client) {
        (17, _) => testing::udp(sport, dport, b"abc"),
        (1, true) => testing::icmp(8, 0, [0, 7, 0, 1], &[]),
        (1, false) => testing::icmp(0, 0, [0, 7, 0, 1], &[]),
        (58, true) => testing::icmp(128, 0, [0, 7, 0, 1], &[]),
        (58, false) => testing::icmp(129, 0, [0, 7, 0, 1], &[]),
        (47, _) => vec![0, 0, 8, 0],
        (136, _) => udplite(src, dst, sport, dport),
        _ => vec![1, 2, 3],
    };
    Step::new(from_client, testing::ip(src, dst, proto, &l4))
}

fn udplite(src: std::net::IpAddr, dst: std::net::IpAddr, sport: u16, dport: u16) -> Vec<u8> {
    let mut l4 = testing::udp(sport, dport, b"");
    let octets = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    l4[4..6].fill(0);
    let check = !testing::sum(&[&octets(src), &octets(dst), &[0, 136, 0, 8], &l4]);
    l4[6..8].copy_from_slice(&check.to_be_bytes());
    l4
}

/// Each timeout another number, so that none can stand for another.
fn distinct_timeouts(shorter: [u32; 2]) -> Settings {
    let mut json = serde_json::to_value(plain()).expect("a map");
    let map = json.as_object_mut().expect("a map");
    for (number, (_, value)) in map.iter_mut().filter(|(name, _)| name.contains("timeout")).enumerate() {
        *value = (1000 + 10 * number).into();
    }
    // These two take effect only where they are shorter than the state's own.
    let [retrans, unacknowledged] = shorter;
    map["tcp_timeout_max_retrans"] = retrans.into();
    map["tcp_timeout_unacknowledged"] = unacknowledged.into();
    serde_json::from_value(json).expect("settings")
}

/// The timeouts of all settings.
fn timeouts(settings: &Settings) -> BTreeSet<u32> {
    let json = serde_json::to_value(settings).expect("a map");
    let map = json.as_object().expect("a map");
    let numbers = map.iter().filter(|(name, _)| name.contains("timeout"));
    numbers.map(|(_, value)| value.as_u64().expect("seconds") as u32).collect()
}

/// Every timeout there is, told apart by its number: each is seen on both sides, and is the same.
#[test]
fn every_timeout_is_the_kernels() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new().expect("namespaces");
    let rounds = [distinct_timeouts([500, 600]), distinct_timeouts([100_500, 100_600])];
    let mut seen = BTreeSet::new();
    let mut paths: Vec<Vec<Step>> = TCP_STATES.iter().map(|(_, path)| Ends::new().path(path)).collect();
    let again = "cS sSA cA sA sA sA sA sA";
    let mut data = Ends::new();
    let mut unacknowledged = data.path("cS sSA cA");
    unacknowledged.push(with_payload(&data));
    // The second SYN of a simultaneous open does not renew the timeout; the third does.
    paths.extend([Ends::new().path(again), Ends::new().path("cS sS cS"), unacknowledged]);
    paths.extend(SCTP_STATES.iter().map(|(_, path)| sctp_path(path)));
    for (v6, proto) in [(false, 17), (false, 1), (true, 58), (false, 136), (true, 136), (false, 47), (true, 50)] {
        let (ask, answer) = (packet(v6, true, proto), packet(v6, false, proto));
        paths.push(vec![ask.clone()]);
        paths.push(vec![ask.clone(), answer, ask]);
    }
    for settings in &rounds {
        for steps in &paths {
            for length in 1..=steps.len() {
                let (_, entries) = run(&mut pair, settings, &steps[..length]);
                seen.extend(entries.iter().map(|entry| entry.timeout));
            }
        }
    }
    let settings = &rounds[0];
    // SYN_SENT2 has no setting.
    let mut wanted = timeouts(settings);
    wanted.insert(120);
    // UDP in use for longer than two seconds is the next test's.
    wanted.remove(&settings.udp_timeout_stream);
    seen.remove(&settings.udp_timeout_stream); // UDP-Lite's
    assert_eq!(seen, wanted);
}

fn with_payload(ends: &Ends) -> Step {
    let [seq, ack] = ends.next;
    let flags = testing::flags("PA");
    let segment = Segment { sport: 4000, dport: 80, seq, ack, flags, window: 8192, options: vec![], payload: 10 };
    Step::new(true, testing::ip(CLIENT, SERVER, 6, &segment.bytes()))
}

/// Real seconds: UDP in use for more than two becomes a stream; and what has timed out begins anew, on both sides alike.
#[test]
fn connections_expire_when_the_kernels_do() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new().expect("namespaces");
    let mut json = serde_json::to_value(plain()).expect("a map");
    for (name, value) in json.as_object_mut().expect("a map").iter_mut().filter(|(name, _)| name.contains("timeout")) {
        *value = if name.starts_with("udp") { 30 } else { 1 }.into();
    }
    let settings: Settings = serde_json::from_value(json).expect("settings");
    pair.kernel.table.flush();
    pair.kernel.apply(&settings);
    pair.ours.begin(&settings);
    let start = Clock::now();
    let mut sent = Vec::new();
    let mut send = |pair: &mut Pair, step: &Step, wanted: &str| {
        let now = kernels_clock();
        sent.push(format!("{:?} {}", start.elapsed(), describe(step)));
        let seen = pair.send(step, now).unwrap_or_else(|what| panic!("{what}\n  {}", sent.join("\n  ")));
        assert_eq!(seen, Some(wanted), "{}", sent.join("\n  "));
        pair.ours.entries(now)
    };
    let protocols = [(false, 1u8), (true, 58), (false, 47), (true, 50)];
    let mut ends = Ends::new();
    for (word, class) in [("cS", "NEW"), ("sSA", "ESTABLISHED"), ("cA", "ESTABLISHED")] {
        send(&mut pair, &ends.segment(word), class);
    }
    for (v6, proto) in protocols {
        send(&mut pair, &packet(v6, true, proto), "NEW");
    }
    for (from_client, class) in [(true, "NEW"), (false, "ESTABLISHED"), (true, "ESTABLISHED")] {
        let entries = send(&mut pair, &packet(false, from_client, 17), class);
        assert!(entries.iter().all(|entry| entry.proto != 17 || entry.timeout == 30 && entry.status & 4 == 0));
    }
    sleep(Duration::from_millis(2200));
    pair.kernel.table.entries(); // the walk removes what has expired, so that the count is right
    let entries = send(&mut pair, &packet(false, true, 17), "ESTABLISHED");
    assert!(entries.iter().all(|entry| entry.status & 4 != 0), "UDP is a stream now: {entries:#?}");
    assert_eq!(entries.len(), 1, "all others have expired: {entries:#?}");
    for (v6, proto) in protocols {
        let answer = if proto == 47 || proto == 50 { "NEW" } else { "INVALID" };
        send(&mut pair, &packet(v6, false, proto), answer);
    }
    // A TCP connection goes on as one picked up in its middle.
    let entries = send(&mut pair, &ends.segment("cA"), "NEW");
    assert!(entries.iter().any(|entry| entry.proto == 6 && entry.state == Some(3)));
}
