//! Any text as rules: reading it never panics; what loads saves to text that loads as the same rules; and over packets, all the
//! way of a forwarded one, the vector and the oracle say, change, count and write the same.
//!
//! The input is the text, as one for each IP version. What follows its first zero byte are the packets; without one, the
//! text's own bytes are. So every rules file is a seed.
#![no_main]

use std::fmt::Debug;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use xrouter::conntrack::{CtInfo, CtStatus, Direction, Template, Tuple};
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::rules::{
    self, BUILTIN, Context, Decision, Hook, PATH, RuleCounters, RuleVector, Ruleset, SetTable, TableName, Told, oracle,
};
use xrouter::time::Instant;
use xrouter::wire::{Family, ipv4};

const PORTS: [&str; 2] = ["lan0", "wan0"];
/// Sets that the rules may name.
const SETS: &str = include_str!("../seeds/sets/every_kind.ipset");
/// Bytes that make a packet: what it is like, and how it begins after the IP header.
const PACKET: usize = 32;
/// Packets of a case.
const PACKETS: usize = 12;

fuzz_target!(|input: &[u8]| {
    let (text, packets) = match input.iter().position(|&byte| byte == 0) {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, input),
    };
    let text = String::from_utf8_lossy(text);
    for family in [Family::V4, Family::V6] {
        let sets = || {
            let table = SetTable::default();
            table.load("sets", SETS, Instant::ZERO).expect("the fuzzer's sets are good");
            Arc::new(table)
        };
        let load = |text: &str| rules::load_with_sets("fuzz", text, family, &PORTS, &sets());
        match rules::understand_with_sets("fuzz", &text, family, &PORTS, &sets()) {
            Err(wrong) => assert!(wrong.errors() > 0 && !wrong.to_string().is_empty()),
            Ok(ruleset) => drop((ruleset.host_text(), ruleset.warnings().to_string(), rules::save(&ruleset, None))),
        }
        // Each engine has sets of its own: rules change them.
        let (Ok(of_fast), Ok(of_slow)) = (load(&text), load(&text)) else { continue };
        let saved = rules::save(&of_fast, None);
        let again = load(&saved).unwrap_or_else(|wrong| panic!("what was saved does not load: {wrong}\n{saved}"));
        assert!(again == of_fast, "saved as other rules:\n{saved}");
        assert_eq!(rules::save(&again, None), saved);
        // The text in place of itself makes the same rules; on top of itself it makes some, or says why not.
        let replaced = rules::change(&of_fast, "change", &text, true).unwrap_or_else(|wrong| panic!("{wrong}")).ruleset;
        assert!(replaced == of_fast, "replaced by other rules:\n{}", rules::save(&replaced, None));
        match rules::change(&of_fast, "change", &text, false) {
            Err(wrong) => assert!(wrong.errors() > 0 && !wrong.to_string().is_empty()),
            Ok(changed) => drop(load(&rules::save(&changed.ruleset, None)).unwrap_or_else(|wrong| panic!("{wrong}"))),
        }
        agree(&of_fast, &of_slow, packets);
    }
});

/// Both engines over the same packets.
fn agree(of_fast: &Ruleset, of_slow: &Ruleset, packets: &[u8]) {
    let vector = RuleVector::compile(of_fast);
    let (mut fast, mut slow) = (vector.counters(), RuleCounters::new(of_slow));
    let mut memory = oracle::Memory::default();
    let mut now = Instant::from_secs(1000);
    for bytes in packets.chunks(PACKET).take(PACKETS) {
        let mut made = [0; PACKET];
        made[..bytes.len()].copy_from_slice(bytes);
        now = now + u64::from(made[0]) * 10_000_000;
        let frame = frame(of_fast.family, &made);
        let (in_port, out_port) = ways(&made);
        let Ok(packet) = Packet::parse(&frame, in_port, true) else { continue };
        let mut ways = [Way::new(packet, &frame), Way::new(packet, &frame)];
        for chain in PATH {
            let case = Case { chain, in_port, out_port, made: &made, now };
            let [of_vector, of_oracle] = &mut ways;
            let said = of_vector.meet(&case, |context, world| vector.evaluate(chain, context, world, &mut fast));
            let expected = of_oracle
                .meet(&case, |context, world| oracle::evaluate(of_slow, chain, context, world, &mut memory, &mut slow));
            assert_eq!(said, expected, "{:?}", BUILTIN[chain]);
            assert_eq!(of_vector.told(), of_oracle.told(), "{:?}", BUILTIN[chain]);
            assert!(of_vector.frame == of_oracle.frame, "{:?}: packets are changed otherwise", BUILTIN[chain]);
            assert_eq!(fast, slow, "{:?}", BUILTIN[chain]);
            if said != Decision::Accept {
                break;
            }
        }
    }
    let contents = |ruleset: &Ruleset| ruleset.sets().save(now);
    assert_eq!(contents(of_fast), contents(of_slow), "sets");
}

/// Where a packet is.
struct Case<'a> {
    chain: usize,
    in_port: PortId,
    out_port: PortId,
    made: &'a [u8; PACKET],
    now: Instant,
}

/// A packet on its way through one engine.
struct Way {
    packet: Packet,
    frame: Vec<u8>,
    mark: u32,
    conn_mark: u32,
    template: Template,
    traced: bool,
    world: Told,
}

impl Way {
    fn new(packet: Packet, frame: &[u8]) -> Way {
        let (template, world) = (Template::DEFAULT, Told::default());
        Way { packet, frame: frame.to_vec(), mark: 0, conn_mark: 0, template, traced: false, world }
    }

    fn meet(&mut self, case: &Case<'_>, ask: impl FnOnce(&mut Context<'_>, &mut Told) -> Decision) -> Decision {
        let (table, hook) = BUILTIN[case.chain];
        let state = match case.made[1] % 6 {
            0 => CtInfo::Established,
            1 => CtInfo::EstablishedReply,
            2 => CtInfo::Related,
            3 => CtInfo::Invalid,
            _ => CtInfo::New,
        };
        let info = match table {
            _ if self.template.notrack => CtInfo::Untracked,
            TableName::Raw => CtInfo::Invalid,
            _ => state,
        };
        let tracked = !matches!(info, CtInfo::Invalid | CtInfo::Untracked);
        let direction = info.direction();
        let tuple = Tuple::of(&self.packet);
        let reply = tuple.inverse().unwrap_or(tuple);
        let tuples = if direction == Direction::Reply { [reply, tuple] } else { [tuple, reply] };
        let routed = hook != Hook::Prerouting;
        self.world = Told {
            tuples: tracked.then_some(tuples),
            direction: tracked.then_some(direction),
            conn_mark: tracked.then_some(self.conn_mark),
            expires_in: u32::from(case.made[2]),
            traffic: tracked.then_some([(u64::from(case.made[3]), u64::from(case.made[4]) * 100), (1, 60)]),
            reverse_path: case.made[5] & 1 == 0,
            mtu_back: 1400,
            unix_time: (1_700_000_000 + i64::from(case.made[0]) * 3600, 0),
            random: u32::from_be_bytes([case.made[6], case.made[7], case.made[0], case.made[1]]),
            ..Told::default()
        };
        let mut context = Context {
            packet: &mut self.packet,
            frame: &mut self.frame,
            hook,
            in_port: case.in_port,
            out_port: routed.then_some(case.out_port),
            out_mtu: if routed { 1500 } else { 0 },
            info,
            status: if tracked { CtStatus(u16::from(case.made[2])) } else { CtStatus::default() },
            mark: self.mark,
            template: self.template,
            traced: self.traced,
            now: case.now,
        };
        let decision = ask(&mut context, &mut self.world);
        (self.mark, self.template, self.traced) = (context.mark, context.template, context.traced);
        self.conn_mark = self.world.conn_mark.unwrap_or(self.conn_mark);
        decision
    }

    /// All that one can tell two ways apart by.
    fn told(&self) -> impl Debug + PartialEq {
        let logs: Vec<String> = self.world.logs.iter().map(|record| rules::log_line(record, &PORTS)).collect();
        let packet = format!("{:?}", self.packet);
        let rest = (self.mark, self.conn_mark, self.template, self.traced);
        (packet, rest, logs, self.world.copies.len(), self.world.steps.clone())
    }
}

/// In and out.
fn ways(made: &[u8; PACKET]) -> (PortId, PortId) {
    if made[8] & 1 == 0 { (PortId::LAN, PortId::WAN) } else { (PortId::WAN, PortId::LAN) }
}

/// A frame with a right IP header, from few addresses and protocols, and room to grow into behind the packet.
fn frame(family: Family, made: &[u8; PACKET]) -> Vec<u8> {
    let protocols: [u8; 16] =
        [6, 17, 6, 17, if family == Family::V4 { 1 } else { 58 }, 132, 136, 33, 47, 50, 51, 0, 60, 43, 135, 2];
    let proto = protocols[usize::from(made[9] % 16)];
    let l4 = l4(proto, made);
    let mut frame = vec![2, 0, 0, 0, 1, 1, 4, 4, 4, 4, 4, 4];
    let host = |which: u8| 2 + (which & 3);
    let (near, far) = if made[8] & 1 == 0 { (1, 2) } else { (2, 1) };
    match family {
        Family::V4 => {
            frame.extend([8, 0, 0x45, made[10]]);
            frame.extend((20 + l4.len() as u16).to_be_bytes());
            frame.extend([0, made[11], 0x40, 0, made[12].max(2), proto, 0, 0]);
            frame.extend([10, near, 0, host(made[13]), 10, far, 0, host(made[13] >> 2)]);
            ipv4::set_checksum(&mut frame[14..34]);
        }
        Family::V6 => {
            frame.extend([0x86, 0xdd, 0x60 | made[10] >> 4, made[10] << 4, 0, made[11]]);
            frame.extend((l4.len() as u16).to_be_bytes());
            frame.extend([proto, made[12].max(2)]);
            for (net, host) in [(near, host(made[13])), (far, host(made[13] >> 2))] {
                frame.extend([0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
        }
    }
    frame.extend(l4);
    frame.resize(frame.len() + 64, 0);
    frame
}

/// What stands behind the IP header.
fn l4(proto: u8, made: &[u8; PACKET]) -> Vec<u8> {
    const KNOWN: [u16; 8] = [22, 53, 80, 443, 123, 8080, 40_000, 1];
    let port = |which: u8| KNOWN[usize::from(which & 7)].to_be_bytes();
    let rest = &made[16..];
    let mut bytes = Vec::new();
    match proto {
        6 => {
            bytes.extend(port(made[14]));
            bytes.extend(port(made[14] >> 3));
            bytes.extend([0, 0, 0, made[2], 0, 0, 0, made[3]]);
            let words = usize::from(made[15] % 4);
            bytes.extend([(5 + words as u8) << 4, rest[0], 1, 0, 0, 0, 0, 0]);
            bytes.extend(&rest[1..1 + words * 4]);
        }
        17 | 33 | 132 | 136 => {
            bytes.extend(port(made[14]));
            bytes.extend(port(made[14] >> 3));
        }
        _ => {}
    }
    bytes.extend(&rest[..rest.len() - usize::from(made[15] >> 4)]);
    if matches!(proto, 17 | 136) && bytes.len() >= 6 {
        let length = bytes.len() as u16;
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
    }
    bytes
}
