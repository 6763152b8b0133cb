//! Any text as sets: reading it never panics; what is read saves to text that is read as the same sets, from the file and from
//! the table in use; rules that ask every set, add to it and delete from it never panic; and one text after another is
//! taken or refused, never half of it.
//!
//! The input is text as `ipset save` prints it. What follows its first zero byte is a second one, loaded after it.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use xrouter::conntrack::{CtInfo, CtStatus, Template};
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::rules::{self, Context, FORWARD, Hook, RuleVector, SetTable, Sets, Told};
use xrouter::time::Instant;
use xrouter::wire::{Family, ipv4};

/// Packets: UDP over IPv4 and IPv6 from the first host to the second, headers finished below.
const HOSTS: [u8; 2] = [2, 3];
/// Sets of a case that rules are made for.
const NAMED: usize = 4;

fuzz_target!(|input: &[u8]| {
    let (first, second) = match input.iter().position(|&byte| byte == 0) {
        Some(at) => (&input[..at], Some(String::from_utf8_lossy(&input[at + 1..]))),
        None => (input, None),
    };
    let first = String::from_utf8_lossy(first);
    match Sets::parse("fuzz", &first) {
        Err(wrong) => return assert!(wrong.errors() > 0 && !wrong.to_string().is_empty()),
        Ok(sets) => {
            let saved = sets.save();
            let again = Sets::parse("saved", &saved).unwrap_or_else(|wrong| panic!("not read again: {wrong}\n{saved}"));
            // Elements are sorted and time-outs written out by then.
            assert_eq!(again.save(), saved);
        }
    }
    let now = Instant::from_secs(1);
    let table = Arc::new(SetTable::default());
    if table.load("fuzz", &first, now).is_err() {
        return;
    }
    holds(&table, now);
    ask(&table, now);
    holds(&table, now + 5_000_000_000);
    if let Some(second) = second {
        let before = table.save(now);
        let next = table.successor("second", &second, now);
        assert_eq!(next.is_err(), Sets::parse("second", &second).is_err());
        if table.load("second", &second, now).is_err() {
            assert_eq!(table.save(now), before, "refused, and changed");
        }
        holds(&table, now);
    }
});

/// What the table says it holds can be read, and gives a table that says the same.
fn holds(table: &SetTable, now: Instant) {
    let saved = table.save(now);
    let again = SetTable::default();
    again
        .load("again", &saved, now)
        .unwrap_or_else(|wrong| panic!("what is in use is not read again: {wrong}\n{saved}"));
    assert_eq!(again.names(), table.names());
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&again.save(now)), lines(&saved));
}

/// Rules that ask some of the sets, add to them and delete from them, over a packet of each kind.
fn ask(table: &Arc<SetTable>, now: Instant) {
    let names = table.names();
    let plain = |name: &&String| name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let mut lines = Vec::new();
    for name in names.iter().filter(plain).take(NAMED) {
        for sides in ["src", "dst,src", "src,dst,src"] {
            lines.push(format!("-A FORWARD -m set --match-set {name} {sides}\n"));
            lines.push(format!("-A FORWARD -m set ! --match-set {name} {sides} --return-nomatch\n"));
            lines.push(format!("-A FORWARD -j SET --add-set {name} {sides} --exist\n"));
            lines.push(format!("-A FORWARD -j SET --add-set {name} {sides} --timeout 3\n"));
            lines.push(format!("-A FORWARD -j SET --del-set {name} {sides}\n"));
            lines.push(format!("-A FORWARD -m set --match-set {name} {sides} --packets-gt 0\n"));
        }
    }
    for family in [Family::V4, Family::V6] {
        // A line that does not suit its set is left out.
        let load = |rules: &str| {
            rules::load_with_sets("fuzz", &format!("*filter\n{rules}COMMIT\n"), family, &["lan0", "wan0"], table)
        };
        let good: String = lines.iter().filter(|line| load(line).is_ok()).map(String::as_str).collect();
        let ruleset = load(&good).expect("lines that are good one by one");
        let vector = RuleVector::compile(&ruleset);
        let mut counters = vector.counters();
        for proto in [17, 1, 58, 6] {
            let mut frame = frame(family, proto);
            let Ok(mut packet) = Packet::parse(&frame, PortId::LAN, false) else { continue };
            let mut context = Context {
                packet: &mut packet,
                frame: &mut frame,
                hook: Hook::Forward,
                in_port: PortId::LAN,
                out_port: Some(PortId::WAN),
                out_mtu: 1500,
                info: CtInfo::New,
                status: CtStatus::default(),
                mark: 1,
                template: Template::DEFAULT,
                traced: false,
                now,
            };
            vector.evaluate(FORWARD, &mut context, &mut Told::default(), &mut counters);
        }
    }
}

fn frame(family: Family, proto: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 1, 1, 4, 4, 4, 4, 4, 4];
    let l4 = [0, 22, 0, 80, 0, 24, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    match family {
        Family::V4 => {
            frame.extend([8, 0, 0x45, 0, 0, 44, 0, 1, 0x40, 0, 64, proto, 0, 0]);
            frame.extend([10, 1, 0, HOSTS[0], 10, 2, 0, HOSTS[1]]);
            ipv4::set_checksum(&mut frame[14..34]);
        }
        Family::V6 => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, proto, 64]);
            for (net, host) in [(1, HOSTS[0]), (2, HOSTS[1])] {
                frame.extend([0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
        }
    }
    frame.extend(l4);
    frame.resize(frame.len() + 16, 0);
    frame
}
