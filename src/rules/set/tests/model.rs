//! Looking up against a slow model: every element is compared with the packet, part by part, as its text says.

use super::{Match, parsed, table};
use crate::packet::Packet;
use crate::rules::generator::{self, Shape, Version};
use crate::rules::set_generator::{self as sets, SetText};
use crate::time::Instant;
use crate::wire::{Addr, Family};
use proptest::prelude::*;
use std::net::IpAddr;

const NOW: Instant = Instant::from_secs(1);

/// Whether `part` of an element fits the side of the packet; the length of its prefix.
fn fits(part: &str, word: &str, packet: &Packet, frame: &[u8], src: bool, mark: u32, create: &str) -> Option<u8> {
    let addr = if src { packet.src } else { packet.dst };
    let bits = packet.family.bits();
    let option = |name: &str| create.split(' ').skip_while(|word| *word != name).nth(1);
    match part {
        "ip" => {
            let wanted = Addr::from(word.parse::<IpAddr>().expect("an address"));
            let mask = match (option("netmask"), option("bitmask")) {
                (Some(length), _) => Addr::prefix_mask(packet.family, length.parse().expect("a length")).bits(),
                (_, Some(mask)) => match mask.parse::<IpAddr>().expect("a mask") {
                    IpAddr::V4(mask) => u128::MAX << 32 | u128::from(mask.to_bits()),
                    IpAddr::V6(mask) => mask.to_bits(),
                },
                _ => u128::MAX,
            };
            (wanted.bits() & mask == addr.bits() & mask).then_some(bits)
        }
        "net" => {
            let (net, length) = word.split_once('/').expect("a prefix");
            let (net, length) =
                (Addr::from(net.parse::<IpAddr>().expect("an address")), length.parse::<u8>().expect("a length"));
            let shift = 128 - u32::from(length) - if packet.family == Family::V4 { 96 } else { 0 };
            (net.bits() >> shift == addr.bits() >> shift).then_some(length)
        }
        "port" => {
            let l4 = packet.l4_bytes(frame);
            let number =
                |at: usize, needed: usize| (l4.len() >= needed).then(|| u16::from_be_bytes([l4[at], l4[at + 1]]));
            let (name, port) = word.split_once(':').unwrap_or(("", word));
            let at = if src { 0 } else { 2 };
            let (protocol, found) = match packet.proto {
                6 => ("tcp", number(at, 20)),
                17 => ("udp", number(at, 8)),
                132 => ("sctp", number(at, 12)),
                136 => ("udplite", number(at, 8)),
                1 => ("icmp", number(0, 8)),
                58 => ("icmpv6", number(0, 8)),
                47 => ("gre", Some(0)),
                33 => ("33", Some(0)),
                99 => ("99", Some(0)),
                _ => ("", None),
            };
            let wanted = match port {
                "echo-request" if name == "icmp" => 8 << 8,
                "echo-request" => 128 << 8,
                "echo-reply" => 0,
                _ => match port.split_once('/') {
                    Some((kind, code)) => {
                        kind.parse::<u16>().expect("a type") << 8 | code.parse::<u16>().expect("a code")
                    }
                    None => port.parse().expect("a port"),
                },
            };
            let protocol = if name.is_empty() { matches!(protocol, "tcp" | "udp") } else { protocol == name };
            (protocol && found == Some(wanted)).then_some(0)
        }
        "mac" => {
            let mac: Vec<u8> = word.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
            let at = if src { 6 } else { 0 };
            (frame[at..at + 6] == mac[..]).then_some(0)
        }
        "mark" => {
            let hex = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).expect("a number");
            let mask = option("markmask").map_or(u32::MAX, hex);
            (hex(word) & mask == mark & mask).then_some(0)
        }
        "iface" => {
            let name = if src { "lan0" } else { "wan0" };
            (name == word).then_some(0)
        }
        _ => unreachable!("{part}"),
    }
}

/// What the set says, element by element: the longest prefixes win, and an exception is no.
fn slow(set: &SetText, sides: &str, packet: &Packet, frame: &[u8], mark: u32) -> bool {
    let sides: Vec<bool> = sides.split(',').map(|side| side == "src").collect();
    let parts: Vec<&str> = set.kind.split([':', ',']).skip(1).collect();
    let mut best: Option<(Vec<u8>, bool)> = None;
    // hash:net,iface: the longest prefix with any element decides.
    let mut longest = None;
    for element in &set.elements {
        let word = element.split(' ').next().expect("a word");
        let words: Vec<&str> = word.splitn(parts.len(), ',').collect();
        let flag = |name: &str| element.split(' ').any(|word| word == name);
        if set.kind == "hash:net,iface" && !word.contains("physdev") {
            longest = longest.max(fits("net", words[0], packet, frame, sides[0], mark, &set.create));
        }
        let lengths: Option<Vec<u8>> = parts
            .iter()
            .zip(&words)
            .enumerate()
            .map(|(index, (part, word))| match *part {
                "iface" if flag("wildcard") => {
                    let name = if sides[index] { "lan0" } else { "wan0" };
                    (!word.contains(':') && name.starts_with(word)).then_some(0)
                }
                part => fits(part, word, packet, frame, sides[index], mark, &set.create),
            })
            .collect();
        let Some(lengths) = lengths else { continue };
        if best.as_ref().is_none_or(|best| lengths > best.0) {
            best = Some((lengths, !flag("nomatch")));
        }
    }
    best.is_some_and(|(lengths, yes)| yes && longest.is_none_or(|longest| longest == lengths[0]))
}

fn agree(set: &SetText, sides: &str, shapes: &[Shape], mark: u32) -> Result<(), TestCaseError> {
    let text = set.text("x");
    let table = table(&text, NOW);
    for shape in shapes {
        let frame = shape.frame(1, [2, 0, 0, 0, 1, 0]);
        let Ok(packet) = Packet::parse(&frame, crate::device::PortId::LAN, true) else { continue };
        let rule = Match::new(&table, packet.family, &format!("--match-set x {sides}"));
        let expected = slow(set, sides, &packet, &frame, mark);
        prop_assert_eq!(rule.holds(&frame, mark, NOW), expected, "{} {} {:?}", text, sides, parsed(&frame));
    }
    Ok(())
}

fn case(v6: bool) -> impl Strategy<Value = (SetText, String, Vec<Shape>, u32)> {
    let version = if v6 { Version::V6 } else { Version::V4 };
    let set = prop_oneof![sets::set(sets::COMMON, v6), sets::set(sets::RARE, v6)];
    set.prop_flat_map(move |set| {
        let sides = sets::sides(set.dimension());
        (Just(set), sides, proptest::collection::vec(generator::shape(version), 40), 0u32..4)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn lookups_are_those_of_the_slow_model_v4((set, sides, shapes, mark) in case(false)) {
        // An element without a hardware address learns; that has a test of its own.
        let mut set = set;
        set.elements.retain(|element| set.kind != "bitmap:ip,mac" || element.contains(','));
        agree(&set, &sides, &shapes, mark)?;
    }

    #[test]
    fn lookups_are_those_of_the_slow_model_v6((set, sides, shapes, mark) in case(true)) {
        agree(&set, &sides, &shapes, mark)?;
    }
}
