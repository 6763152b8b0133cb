//! Rulesets and headers like ClassBench's (Taylor and Turner, 2007), the same each time: three flavours (access lists,
//! firewalls, IP chains), two families, any number of rules.
//!
//! As there, addresses come from nested networks that rules share, rules are in order of scope (those that ask for more
//! first, so that none hides another), and each header is inside a rule drawn at random. Seeds are of this file, not
//! ClassBench's filter sets: shares of wildcards, prefix lengths and port classes are those its authors give, roughly.
#![allow(unreachable_pub)]

use std::collections::HashSet;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use xrouter::rules::index::{Bounds, Key};

/// Random numbers that come again (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 20) % limit
    }

    /// A thing by its share.
    fn share<T: Copy>(&mut self, shares: &[(T, u64)]) -> T {
        let mut at = self.below(shares.iter().map(|(_, share)| share).sum());
        for &(thing, share) in shares {
            if at < share {
                return thing;
            }
            at -= share;
        }
        shares[0].0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PortClass {
    Any,
    /// 1024 and above.
    High,
    /// Below 1024.
    Low,
    Range,
    Exact,
}
use PortClass::{Any, Exact, High, Low, Range};

/// Shares in percent. Prefix lengths are IPv4's; IPv6's are the same shares of the lengths in [`Network`]'s order.
struct Flavour {
    src: &'static [(u8, u64)],
    dst: &'static [(u8, u64)],
    sport: &'static [(PortClass, u64)],
    dport: &'static [(PortClass, u64)],
    proto: &'static [(Option<u8>, u64)],
}

const ACL: Flavour = Flavour {
    src: &[(0, 20), (16, 4), (20, 6), (24, 25), (26, 5), (28, 10), (30, 5), (32, 25)],
    dst: &[(0, 5), (16, 3), (20, 5), (24, 22), (26, 8), (28, 12), (30, 10), (32, 35)],
    sport: &[(Any, 100)],
    dport: &[(Any, 10), (High, 8), (Low, 2), (Range, 10), (Exact, 70)],
    proto: &[(Some(6), 68), (Some(17), 20), (Some(1), 5), (None, 7)],
};

const FW: Flavour = Flavour {
    src: &[(0, 40), (8, 5), (16, 10), (24, 20), (28, 5), (32, 20)],
    dst: &[(0, 25), (8, 3), (16, 7), (24, 20), (28, 10), (32, 35)],
    sport: &[(Any, 50), (High, 20), (Low, 5), (Range, 10), (Exact, 15)],
    dport: &[(Any, 20), (High, 15), (Low, 5), (Range, 20), (Exact, 40)],
    proto: &[(Some(6), 55), (Some(17), 25), (Some(1), 5), (None, 15)],
};

const IPC: Flavour = Flavour {
    src: &[(0, 12), (8, 3), (16, 10), (20, 5), (24, 30), (28, 10), (32, 30)],
    dst: &[(0, 12), (8, 3), (16, 10), (20, 5), (24, 30), (28, 10), (32, 30)],
    sport: &[(Any, 60), (High, 10), (Low, 3), (Range, 7), (Exact, 20)],
    dport: &[(Any, 35), (High, 8), (Low, 4), (Range, 8), (Exact, 45)],
    proto: &[(Some(6), 50), (Some(17), 30), (Some(1), 6), (None, 14)],
};

/// Ports that services have.
const SERVICES: [u16; 24] = [
    20, 21, 22, 23, 25, 53, 80, 110, 123, 143, 161, 179, 389, 443, 445, 514, 993, 1433, 1521, 3306, 3389, 5060, 8080,
    8443,
];

/// A set: its name ("acl", "fw", "ipc"), family and size say all.
pub(crate) struct Set<const N: usize> {
    pub(crate) rules: Vec<Bounds<N>>,
    pub(crate) headers: Vec<Key<N>>,
}

/// What IPv4's prefix lengths stand for in IPv6.
fn length_v6(len: u8) -> u32 {
    match len {
        0 => 0,
        8 => 24,
        16 => 32,
        20 => 40,
        24 => 48,
        26 => 56,
        28 => 64,
        30 => 124,
        _ => 128,
    }
}

/// The mask of a prefix, in words.
fn mask_words(words: usize, len: u32) -> Vec<u32> {
    (0..words as u32).map(|word| !u32::MAX.checked_shr(len.saturating_sub(32 * word).min(32)).unwrap_or(0)).collect()
}

/// An address in the networks that the rules of a set share: some /8 (IPv6: /24), each with a few hundred /24 (/48) in it,
/// more rules in some than in others.
fn address(words: usize, sites: u64, side: u64, random: &mut Random) -> Vec<u32> {
    let site = random.below(sites).min(random.below(sites));
    // The site's own random numbers.
    let mut fixed = Random(0x9e37_79b9_7f4a_7c15 ^ (site + 1) << 8 ^ side);
    fixed.next();
    let region = [10, 24, 57, 91, 112, 143, 172, 198, 203, 217][fixed.below(10) as usize];
    let network = region << 24 | (fixed.next() as u32 >> 12 & 0xffff) << 8;
    let host = random.below(200) as u32 + 1;
    if words == 1 {
        return vec![network | host];
    }
    let subnet = random.below(16) as u32;
    // 2001:d00::/24 and so on: region and network in the first 48 bits.
    vec![0x2000_0000 | region << 16 | network >> 8 & 0xffff, (network & 0xff00) << 16 | subnet, 0, host]
}

fn ports(class: PortClass, random: &mut Random) -> (u16, u16) {
    match class {
        Any => (0, u16::MAX),
        High => (1024, u16::MAX),
        Low => (0, 1023),
        Exact => {
            let port = match random.below(4) {
                0 => random.below(30_000) as u16 + 1,
                _ => SERVICES[random.below(SERVICES.len() as u64) as usize],
            };
            (port, port)
        }
        Range => {
            let low = random.below(40_000) as u16 + 1;
            let span = [3, 10, 100, 1000, 20_000][random.below(5) as usize];
            (low, low + random.below(span) as u16 + 1)
        }
    }
}

fn rule<const N: usize>(flavour: &Flavour, sites: u64, random: &mut Random) -> Bounds<N> {
    let mut bounds = Bounds::ANY;
    for (side, lengths) in [(0, flavour.src), (1, flavour.dst)] {
        let len = random.share(lengths);
        let len = if N == 2 { len.into() } else { length_v6(len) };
        let (address, mask) = (address(N / 2, sites, side, random), mask_words(N / 2, len));
        for word in 0..N / 2 {
            bounds.values[side as usize * (N / 2) + word] = address[word] & mask[word];
            bounds.masks[side as usize * (N / 2) + word] = mask[word];
        }
    }
    bounds.proto = random.share(flavour.proto);
    if matches!(bounds.proto, Some(6 | 17)) {
        bounds.sport = ports(random.share(flavour.sport), random);
        bounds.dport = ports(random.share(flavour.dport), random);
    }
    bounds
}

/// How much a rule lets pass, in bits.
fn scope<const N: usize>(bounds: &Bounds<N>) -> u32 {
    let span = |(low, high): (u16, u16)| (f64::from(high - low) + 1.0).log2() * 8.0;
    let addresses: u32 = bounds.masks.iter().map(|mask| mask.count_zeros() * 8).sum();
    addresses + span(bounds.sport) as u32 + span(bounds.dport) as u32 + if bounds.proto.is_some() { 0 } else { 64 }
}

fn header<const N: usize>(bounds: &Bounds<N>, random: &mut Random) -> Key<N> {
    let mut port = |(low, high): (u16, u16)| low + random.below(u64::from(high - low) + 1) as u16;
    let (sport, dport) = (port(bounds.sport), port(bounds.dport));
    Key {
        words: core::array::from_fn(|word| bounds.values[word] | random.next() as u32 & !bounds.masks[word]),
        sport,
        dport,
        states: 1,
        ports: 0x21,
        proto: bounds.proto.unwrap_or([6, 17, 1][random.below(3) as usize]),
    }
}

/// The set of a flavour with so many rules. `shuffled`: not in order of scope.
pub(crate) fn set<const N: usize>(flavour: &str, count: usize, headers: usize, shuffled: bool) -> Set<N> {
    let (flavour, seed) = match flavour {
        "acl" => (ACL, 1),
        "fw" => (FW, 2),
        "ipc" => (IPC, 3),
        other => panic!("no flavour {other}: acl, fw or ipc"),
    };
    let mut random = Random(seed * 1_000_003 + count as u64 * 17 + N as u64);
    let sites = (count as u64 / 12).max(8);
    let mut seen = HashSet::new();
    let mut rules = Vec::new();
    while rules.len() < count {
        let rule: Bounds<N> = rule(&flavour, sites, &mut random);
        if seen.insert(format!("{rule:?}")) {
            rules.push(rule);
        }
    }
    if !shuffled {
        rules.sort_by_key(scope);
    }
    let headers = (0..headers).map(|_| header(&rules[random.below(count as u64) as usize], &mut random)).collect();
    Set { rules, headers }
}

fn text(words: &[u32]) -> String {
    match words {
        [word] => Ipv4Addr::from(*word).to_string(),
        _ => Ipv6Addr::from(words.iter().fold(0, |bits, &word| bits << 32 | u128::from(word))).to_string(),
    }
}

/// An address of a rule as prefix.
pub(crate) fn prefix<const N: usize>(rule: &Bounds<N>, half: std::ops::Range<usize>) -> String {
    let len: u32 = rule.masks[half.clone()].iter().map(|mask| mask.leading_ones()).sum();
    format!("{}/{len}", text(&rule.values[half]))
}

/// The rules in ClassBench's format, as `dpdk-test-acl` reads it.
pub(crate) fn rules_file<const N: usize>(rules: &[Bounds<N>]) -> String {
    let mut file = String::new();
    for rule in rules {
        let (src, dst) = (prefix(rule, 0..N / 2), prefix(rule, N / 2..N));
        let ((s1, s2), (d1, d2)) = (rule.sport, rule.dport);
        let proto = rule.proto.map_or("0x00/0x00".to_owned(), |proto| format!("0x{proto:02x}/0xff"));
        writeln!(file, "@{src}\t{dst}\t{s1} : {s2}\t{d1} : {d2}\t{proto}").expect("a String takes all");
    }
    file
}

/// The headers in the format of the same program: numbers for IPv4, addresses for IPv6.
pub(crate) fn headers_file<const N: usize>(headers: &[Key<N>]) -> String {
    let mut file = String::new();
    for key in headers {
        let address = |words: &[u32]| if N == 2 { words[0].to_string() } else { text(words) };
        let (src, dst) = (address(&key.words[..N / 2]), address(&key.words[N / 2..]));
        writeln!(file, "{src} {dst} {} {} {}", key.sport, key.dport, key.proto).expect("a String takes all");
    }
    file
}

/// The set as rules of a chain that accepts what matches.
pub fn rules_text<const N: usize>(rules: &[Bounds<N>]) -> String {
    let mut text = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n".to_owned();
    for rule in rules {
        let [src, dst] = [0..N / 2, N / 2..N].map(|half| prefix(rule, half));
        text += &format!("-A FORWARD -s {src} -d {dst}");
        if let Some(number) = rule.proto {
            text += &format!(" -p {number}");
        }
        if let Some(proto) = rule.proto.filter(|proto| [6, 17].contains(proto)) {
            let ((s1, s2), (d1, d2)) = (rule.sport, rule.dport);
            let name = if proto == 6 { "tcp" } else { "udp" };
            text += &format!(" -m {name} --sport {s1}:{s2} --dport {d1}:{d2}");
        }
        text += " -j ACCEPT\n";
    }
    text + "COMMIT\n"
}
