//! Random sets, as `ipset` reads them, whose elements are likely to meet the packets of `rules_generator`.
//!
//! Knows nothing of the crate.
// Included by unit tests and by tests of their own; none uses all of it.
#![allow(dead_code, unreachable_pub)]

use proptest::prelude::*;
use proptest::sample::select;

/// A set: its `create` line and the elements to add, each with what stands behind it.
#[derive(Clone, Debug)]
pub struct SetText {
    /// The type.
    pub kind: &'static str,
    /// Behind `create NAME `.
    pub create: String,
    /// Behind `add NAME `; no element twice.
    pub elements: Vec<String>,
}

impl SetText {
    /// As `ipset restore` reads it.
    pub fn text(&self, name: &str) -> String {
        let mut text = format!("create {name} {}\n", self.create);
        for element in &self.elements {
            text += &format!("add {name} {element}\n");
        }
        text
    }

    /// How many of `src` and `dst` it wants.
    pub fn dimension(&self) -> usize {
        self.kind.split([':', ',']).count() - 1
    }
}

/// Types that every kernel with ipset has.
pub const COMMON: &[&str] = &[
    "hash:ip",
    "hash:net",
    "hash:ip,port",
    "hash:net,port",
    "hash:ip,port,ip",
    "hash:ip,port,net",
    "hash:net,iface",
    "bitmap:ip",
    "bitmap:ip,mac",
    "bitmap:port",
];

/// Types that not every kernel has.
pub const RARE: &[&str] = &["hash:mac", "hash:ip,mac", "hash:ip,mark", "hash:net,net", "hash:net,port,net"];

fn part(part: &str, v6: bool, bitmap: bool) -> BoxedStrategy<String> {
    let hosts = (select(&[1u8, 2][..]), 2u8..6);
    let address = move |net: u8, host: u8| match v6 {
        false => format!("10.{net}.0.{host}"),
        true => format!("fd0{net}::{host}"),
    };
    match part {
        "ip" if bitmap => (2u8..6).prop_map(|host| format!("10.1.0.{host}")).boxed(),
        "ip" => hosts.prop_map(move |(net, host)| address(net, host)).boxed(),
        "net" => {
            let lengths: &[u8] =
                if v6 { &[128, 127, 126, 125, 112, 64, 16, 8, 7] } else { &[32, 31, 30, 29, 24, 16, 14, 8, 1] };
            (hosts, select(lengths))
                .prop_map(move |((net, host), length)| format!("{}/{length}", address(net, host)))
                .boxed()
        }
        "port" => {
            let number = select(&[22u16, 80, 443, 53, 123, 25, 1024, 1500, 40000, 0, 65535, 79, 1023][..]);
            let icmp: &[&str] = match v6 {
                false => &["icmp:echo-request", "icmp:8/1", "icmp:echo-reply", "icmp:3/3", "icmp:255/0", "icmp:5/1"],
                true => &["icmpv6:echo-request", "icmpv6:128/1", "icmpv6:1/4", "icmpv6:2/0", "icmpv6:255/0"],
            };
            if bitmap {
                return number.prop_map(|port| port.to_string()).boxed();
            }
            let with_port = (select(&["tcp", "tcp", "udp", "udp", "sctp", "udplite"][..]), number);
            prop_oneof![
                8 => with_port.prop_map(|(protocol, port)| format!("{protocol}:{port}")),
                3 => select(icmp).prop_map(str::to_owned),
                1 => select(&["gre:0", "33:0", "99:0"][..]).prop_map(str::to_owned),
            ]
            .boxed()
        }
        "mac" => select(&["02:00:00:00:00:0c", "02:00:00:00:01:00", "02:00:00:00:02:00", "02:00:00:00:00:99"][..])
            .prop_map(str::to_owned)
            .boxed(),
        "mark" => (0u8..4).prop_map(|mark| format!("{mark:#x}")).boxed(),
        "iface" => select(&["lan0", "wan0", "lan1", "physdev:lan0"][..]).prop_map(str::to_owned).boxed(),
        other => unreachable!("no such part: {other}"),
    }
}

/// What tells one element from another, as far as a generator needs to know: its words, with host bits that a mask hides cut
/// off by not being there in the first place.
fn identity(kind: &str, element: &str) -> String {
    let word = element.split(' ').next().unwrap_or(element);
    let word = if kind == "bitmap:ip,mac" { word.split(',').next().unwrap_or(word) } else { word };
    word.replace("icmp:8/0", "icmp:echo-request")
}

/// Clears the host bits of the prefixes in `word`, so that equal nets are spelled the same.
fn canonical(word: &str) -> String {
    let cut = |part: &str| -> String {
        let Some((address, length)) = part.split_once('/') else { return part.to_owned() };
        let Ok(length) = length.parse::<u32>() else { return part.to_owned() };
        if let Ok(v4) = address.parse::<std::net::Ipv4Addr>() {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            return format!("{}/{length}", std::net::Ipv4Addr::from(v4.to_bits() & mask));
        }
        match address.parse::<std::net::Ipv6Addr>() {
            Ok(v6) => {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                format!("{}/{length}", std::net::Ipv6Addr::from(v6.to_bits() & mask))
            }
            Err(_) => part.to_owned(),
        }
    };
    word.split(',').map(cut).collect::<Vec<_>>().join(",")
}

/// An element's words, with a net of its own for what stands behind `physdev:`. Linux hashes `physdev`, but counts how many elements
/// have the net before it compares it (`hash_netiface4_data_equal`), and ends its search through the prefixes on that count: with
/// one net in both kinds its answer hangs on whether two hashes with a random seed fell into one bucket (once in 1024 pairs).
fn apart(words: &[String]) -> Vec<String> {
    let [net, iface] = words else { return words.to_vec() };
    match net.split_once('/') {
        Some((address, length)) if iface.starts_with("physdev:") => {
            let long = length.parse::<u8>().map_or(16, |length| length.max(16));
            let own = address.replace("10.1.", "10.8.").replace("10.2.", "10.9.");
            let own = own.replace("fd01:", "fd08:").replace("fd02:", "fd09:");
            vec![format!("{own}/{long}"), iface.clone()]
        }
        _ => words.to_vec(),
    }
}

/// A set of one of these types.
pub fn set(kinds: &'static [&'static str], v6: bool) -> BoxedStrategy<SetText> {
    let usable: Vec<&'static str> =
        kinds.iter().copied().filter(|kind| !(v6 && (*kind == "bitmap:ip" || *kind == "bitmap:ip,mac"))).collect();
    select(usable).prop_flat_map(move |kind| one(kind, v6)).boxed()
}

fn one(kind: &'static str, v6: bool) -> BoxedStrategy<SetText> {
    let bitmap = kind.starts_with("bitmap");
    let parts: Vec<&str> = kind.split([':', ',']).skip(1).collect();
    let nets = parts.contains(&"net");
    let words: Vec<BoxedStrategy<String>> = parts.iter().map(|name| part(name, v6, bitmap)).collect();
    let nomatch = prop_oneof![3 => Just(""), 1 => Just(" nomatch")];
    let wildcard = prop_oneof![3 => Just(""), 1 => Just(" wildcard")];
    let bare = prop_oneof![3 => Just(false), 1 => Just(true)];
    let element = (words, nomatch, wildcard, bare, (0u64..4, 0u64..200)).boxed();
    let elements = proptest::collection::vec(element, 0..14);
    let family = if v6 { " family inet6" } else { "" };
    let masks: &[&str] = match (kind, v6) {
        ("hash:ip", false) => &["", "", " netmask 24", " netmask 31", " bitmask 255.0.0.255"],
        ("hash:ip", true) => &["", "", " netmask 64", " bitmask ffff::ff"],
        ("bitmap:ip", _) => &[" range 10.1.0.0/24", " range 10.1.0.2-10.1.0.4", " range 10.1.0.0/16 netmask 31"],
        ("bitmap:ip,mac", _) => &[" range 10.1.0.0/24", " range 10.1.0.2-10.1.0.5"],
        ("bitmap:port", _) => &[" range 0-65535", " range 22-1024"],
        ("hash:ip,mark", _) => &["", " markmask 0x1"],
        _ => &[""],
    };
    // Small enough for packets to fill.
    let sizes: &[&str] = if bitmap { &[""] } else { &["", " maxelem 16"] };
    let timeouts = select(&["", " timeout 600", " timeout 0"][..]);
    let options = (select(masks), any::<bool>(), timeouts, select(sizes));
    (elements, options)
        .prop_map(move |(elements, (mask, counters, timeout, size))| {
            let family = if bitmap || kind == "hash:mac" { "" } else { family };
            let counts = if counters { " counters" } else { "" };
            let create = format!("{kind}{family}{size}{mask}{timeout}{counts}");
            let mut seen: Vec<String> = Vec::new();
            let mut lines = Vec::new();
            for (words, nomatch, wildcard, bare, (packets, bytes)) in elements {
                let mut word = canonical(&apart(&words).join(","));
                if kind == "bitmap:ip,mac" && bare {
                    word = words[0].clone();
                }
                let id = identity(kind, &word);
                // Masks make one of several, and a name that stands for many hides others: one element is enough then.
                let masked = mask.contains("mask") || !wildcard.is_empty() && kind == "hash:net,iface";
                if seen.contains(&id) || masked && !seen.is_empty() || !in_range(mask, &words[0]) {
                    continue;
                }
                seen.push(id);
                if nets {
                    word += nomatch;
                }
                if kind == "hash:net,iface" {
                    word += wildcard;
                }
                if counters {
                    word += &format!(" packets {packets} bytes {bytes}");
                }
                lines.push(word);
            }
            SetText { kind, create, elements: lines }
        })
        .boxed()
}

/// Whether the word may stand in a bitmap with this range.
fn in_range(range: &str, word: &str) -> bool {
    match range {
        " range 10.1.0.2-10.1.0.4" => matches!(word, "10.1.0.2" | "10.1.0.3" | "10.1.0.4"),
        " range 22-1024" => word.parse::<u16>().is_ok_and(|port| (22..=1024).contains(&port)),
        _ => true,
    }
}

/// `src` and `dst` for a rule, as many as wanted and sometimes one more.
pub fn sides(dimension: usize) -> BoxedStrategy<String> {
    let count = prop_oneof![6 => Just(dimension), 1 => Just(dimension + 1)];
    count
        .prop_flat_map(|count| proptest::collection::vec(select(&["src", "dst"][..]), count))
        .prop_map(|sides| sides.join(","))
        .boxed()
}
