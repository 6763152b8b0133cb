//! Random rules files and random packets that are likely to meet: the raw material of the property tests of `rules` and
//! of the comparison with the kernel.
//!
//! Knows nothing of the crate: rules are `iptables-save` text, packets are frames. Pools of addresses, ports and names are
//! small, so that rules and packets have much in common.
// Included by unit tests and by tests of their own; none uses all of it.
#![allow(dead_code, unreachable_pub)]

pub mod looks;

use proptest::prelude::*;
use proptest::sample::select;

/// IPv4 or IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What may stand in a file.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// `limit` with rates that refill while a test runs.
    pub fast_limits: bool,
    /// Spellings that legacy iptables reads but saves as something else, or not at all.
    pub odd: bool,
}

/// The user chains; a chain jumps only to later ones, so there is no loop.
const CHAINS: [&str; 4] = ["A", "B", "C", "D"];

fn text(word: impl Into<String>) -> Just<String> {
    Just(word.into())
}

fn one_of(words: &'static [&'static str]) -> BoxedStrategy<String> {
    select(words).prop_map(str::to_owned).boxed()
}

/// `word`, nothing, or the word with `!`.
fn maybe(weight: u32, word: impl Strategy<Value = String> + 'static, invert: bool) -> BoxedStrategy<String> {
    let bang = if invert { 1 } else { 0 };
    let word = word.boxed();
    prop_oneof![
        8 => text(""),
        weight => word.clone(),
        bang => word.prop_map(|word| format!(" !{word}")),
    ]
    .boxed()
}

fn address(version: Version, option: &'static str, odd: bool) -> BoxedStrategy<String> {
    let v4: &[&str] = &[
        "10.1.0.2",
        "10.1.0.3/32",
        "10.1.0.0/24",
        "10.1.0.0/16",
        "10.2.0.0/16",
        "10.2.0.2/32",
        "10.0.0.0/8",
        "0.0.0.2/0.0.0.255",
        "10.0.0.2/255.0.0.255",
        "10.1.0.2/31",
        "192.168.0.0/16",
        "10.2.0.2/255.255.0.0",
    ];
    let v6: &[&str] = &[
        "fd01::2",
        "fd01::3/128",
        "fd01::/64",
        "fd01::/16",
        "fd02::/64",
        "fd02::2/128",
        "fd00::/8",
        "::2/::ff",
        "fd00::2/ff00::ff",
        "fd01::2/127",
        "2001:db8::/32",
        "fd02::2/64",
    ];
    let pool = match version {
        Version::V4 => v4,
        Version::V6 => v6,
    };
    let nothing = if version == Version::V4 { "0.0.0.0/0" } else { "::/0" };
    let plain = select(pool).prop_map(move |addr| format!(" {option} {addr}"));
    let list = (select(pool), select(pool)).prop_map(move |(a, b)| format!(" {option} {a},{b}"));
    let single = maybe(4, plain, true);
    prop_oneof![
        12 => single,
        u32::from(odd) => list,
        u32::from(odd) => text(format!(" ! {option} {nothing}")),
    ]
    .boxed()
}

fn interface(option: &'static str, odd: bool) -> BoxedStrategy<String> {
    let plain: &[&str] = &["lan0", "wan0", "lan+", "wa+", "eth9", "lan", "lan00"];
    let word = select(plain).prop_map(move |name| format!(" {option} {name}"));
    prop_oneof![
        12 => maybe(3, word, true),
        1 => text(format!(" {option} +")),
        u32::from(odd) => text(format!(" ! {option} +")),
    ]
    .boxed()
}

fn ports() -> BoxedStrategy<String> {
    one_of(&["22", "80", "443", "53", "1024:65535", "0:1023", "20:30", "80:80", ":79", "1000:", "0", "65535"])
}

fn tcp() -> BoxedStrategy<String> {
    let flags = one_of(&[
        " --syn",
        " --tcp-flags SYN,ACK SYN",
        " --tcp-flags ALL NONE",
        " --tcp-flags FIN,SYN FIN,SYN",
        " --tcp-flags RST RST",
        " --tcp-flags ACK SYN",
    ]);
    let option = one_of(&[" --tcp-option 2", " --tcp-option 3", " --tcp-option 8"]);
    let load = one_of(&["", " -m tcp"]);
    let sport = maybe(2, ports().prop_map(|p| format!(" --sport {p}")), true);
    let dport = maybe(6, ports().prop_map(|p| format!(" --dport {p}")), true);
    (load, sport, dport, maybe(5, flags, true), maybe(1, option, true))
        .prop_map(|(load, sport, dport, flags, option)| format!("{load}{sport}{dport}{flags}{option}"))
        .boxed()
}

fn udp() -> BoxedStrategy<String> {
    let sport = maybe(3, ports().prop_map(|p| format!(" --sport {p}")), true);
    let dport = maybe(6, ports().prop_map(|p| format!(" --dport {p}")), true);
    (one_of(&["", " -m udp"]), sport, dport).prop_map(|(load, sport, dport)| format!("{load}{sport}{dport}")).boxed()
}

fn multiport() -> BoxedStrategy<String> {
    let lists = one_of(&["80,443", "53,123", "22", "1:1023", "20:25,80,1000:2000", "0,65535"]);
    let side = one_of(&["--sports", "--dports", "--ports"]);
    let bang = one_of(&["", "", " !"]);
    (bang, side, lists).prop_map(|(bang, side, list)| format!(" -m multiport{bang} {side} {list}")).boxed()
}

fn icmp(version: Version) -> BoxedStrategy<String> {
    let (option, kinds): (&'static str, &'static [&'static str]) = match version {
        Version::V4 => (
            "--icmp-type",
            &["8", "0", "3", "3/3", "8/1", "any", "echo-request", "host-unreachable", "11/0", "redirect"],
        ),
        Version::V6 => {
            ("--icmpv6-type", &["128", "129", "1", "1/4", "128/1", "255", "echo-request", "packet-too-big", "3/0"])
        }
    };
    let bang = one_of(&["", "", "", " !"]);
    (bang, one_of(kinds)).prop_map(move |(bang, kind)| format!("{bang} {option} {kind}")).boxed()
}

/// `-p` with the matches that need it.
fn protocol(version: Version) -> BoxedStrategy<String> {
    let own_icmp = if version == Version::V4 { "icmp" } else { "ipv6-icmp" };
    let ported = one_of(&["tcp", "udp", "sctp", "udplite", "dccp"]);
    let multi = (ported, multiport()).prop_map(|(proto, multi)| format!(" -p {proto}{multi}"));
    prop_oneof![
        6 => text(""),
        6 => tcp().prop_map(|tcp| format!(" -p tcp{tcp}")),
        2 => (tcp(), multiport()).prop_map(|(tcp, multi)| format!(" -p tcp{tcp}{multi}")),
        5 => udp().prop_map(|udp| format!(" -p udp{udp}")),
        4 => icmp(version).prop_map(move |icmp| format!(" -p {own_icmp}{icmp}")),
        4 => multi,
        3 => looks::protocol(version),
        2 => one_of(&[" -p gre", " -p 47", " ! -p tcp", " ! -p udp", " -p 99", " -p icmp", " -p ipv6-icmp"]),
    ]
    .boxed()
}

fn states(words: &'static [&'static str]) -> BoxedStrategy<String> {
    proptest::sample::subsequence(words, 1..=3).prop_map(|words| words.join(",")).boxed()
}

fn conntrack() -> BoxedStrategy<String> {
    let state = states(&["INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED"]);
    let ctstate = states(&["INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"]);
    let status = states(&["EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED", "NONE"]);
    let state = state.prop_map(|list| format!(" --state {list}"));
    let ctstate = ctstate.prop_map(|list| format!(" --ctstate {list}")).boxed();
    let status = status.prop_map(|list| format!(" --ctstatus {list}")).boxed();
    let bang = || one_of(&["", "", " !"]);
    prop_oneof![
        4 => (bang(), state).prop_map(|(bang, list)| format!(" -m state{bang}{list}")),
        4 => (bang(), ctstate.clone()).prop_map(|(bang, list)| format!(" -m conntrack{bang}{list}")),
        1 => (bang(), status.clone()).prop_map(|(bang, list)| format!(" -m conntrack{bang}{list}")),
        1 => (bang(), ctstate, bang(), status).prop_map(|(b1, list, b2, status)| format!(" -m conntrack{b1}{list}{b2}{status}")),
    ]
    .boxed()
}

fn limit(allowed: Allowed) -> BoxedStrategy<String> {
    let slow = one_of(&["1/hour --limit-burst 1", "2/hour --limit-burst 3", "1/hour --limit-burst 7"]);
    let fast = one_of(&[
        "60/minute --limit-burst 30",
        "10/sec --limit-burst 3",
        "1000/sec",
        "7/min --limit-burst 2",
        "5000/s",
    ]);
    prop_oneof![3 => slow, u32::from(allowed.fast_limits) * 6 => fast]
        .prop_map(|rate| format!(" -m limit --limit {rate}"))
        .boxed()
}

fn comment() -> BoxedStrategy<String> {
    one_of(&[
        " -m comment --comment plain",
        r#" -m comment --comment "two words""#,
        r#" -m comment --comment "a \"q\" \\ b""#,
    ])
}

fn target(version: Version, chain: usize) -> BoxedStrategy<String> {
    let reject: &'static [&'static str] = match version {
        Version::V4 => &["", " --reject-with icmp-host-prohibited", " --reject-with icmp-net-unreachable"],
        Version::V6 => &["", " --reject-with icmp6-adm-prohibited", " --reject-with icmp6-no-route"],
    };
    let log = one_of(&["", " --log-prefix P", r#" --log-prefix "two words: ""#, " --log-level 6 --log-ip-options"]);
    // Chain 0 is FORWARD; user chain n stands at CHAINS[n - 1].
    let later: Vec<&'static str> = CHAINS[chain.min(CHAINS.len() - 1)..].to_vec();
    let jumps = if chain < CHAINS.len() { 5 } else { 0 };
    let to = select(later);
    prop_oneof![
        3 => text(" -j ACCEPT"),
        3 => text(" -j DROP"),
        2 => text(" -j RETURN"),
        2 => text(""),
        1 => one_of(reject).prop_map(|with| format!(" -j REJECT{with}")),
        1 => log.prop_map(|options| format!(" -j LOG{options}")),
        jumps => (one_of(&["-j", "-j", "-g"]), to).prop_map(|(how, chain)| format!(" {how} {chain}")),
    ]
    .boxed()
}

fn rule(version: Version, chain: usize, allowed: Allowed) -> BoxedStrategy<String> {
    let addresses = (address(version, "-s", allowed.odd), address(version, "-d", allowed.odd));
    let interfaces = (interface("-i", allowed.odd), interface("-o", allowed.odd));
    let extras = (
        maybe(6, conntrack(), false),
        maybe(1, limit(allowed), false),
        maybe(1, comment(), false),
        looks::anywhere(version),
    );
    let fragment =
        if version == Version::V4 { one_of(&["", "", "", "", "", "", "", " -f", " ! -f"]) } else { text("").boxed() };
    (addresses, interfaces, protocol(version), fragment, extras, any::<bool>(), target(version, chain))
        .prop_map(
            move |((src, dst), (input, output), proto, fragment, (ct, limit, comment, looks), ct_first, target)| {
                let name = if chain == 0 { "FORWARD" } else { CHAINS[chain - 1] };
                // `-p` comes first of all, or the options of its match would not be known.
                let matches = match ct_first {
                    true => format!("{ct}{limit}{looks}{proto}{comment}"),
                    false => format!("{proto}{ct}{comment}{looks}{limit}"),
                };
                let reset = target.ends_with("-j REJECT") && proto.starts_with(" -p tcp") && ct_first;
                let reset = if reset { " --reject-with tcp-reset" } else { "" };
                format!("-A {name}{src}{dst}{input}{output}{fragment}{matches}{target}{reset}")
            },
        )
        .boxed()
}

/// A filter table with up to five rules in each of its chains.
pub fn ruleset(version: Version, allowed: Allowed) -> BoxedStrategy<String> {
    let chain = move |index: usize| proptest::collection::vec(rule(version, index, allowed), 0..6);
    let chains = (chain(0), chain(1), chain(2), chain(3), chain(4));
    (one_of(&["ACCEPT", "DROP"]), chains)
        .prop_map(|(policy, (forward, a, b, c, d))| {
            let mut text = format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD {policy} [0:0]\n:OUTPUT ACCEPT [0:0]\n");
            CHAINS.iter().for_each(|chain| text += &format!(":{chain} - [0:0]\n"));
            for rule in [forward, a, b, c, d].concat() {
                text += &rule;
                text.push('\n');
            }
            text + "COMMIT\n"
        })
        .boxed()
}

/// What of the transport header is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// All of it.
    Whole,
    /// So many bytes.
    At(usize),
}

/// What is wrong with the IPv6 extension headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChainLie {
    /// Nothing.
    None,
    /// The last one says it is longer than the packet.
    Long,
    /// The packet ends one byte into the last one.
    Short,
}

/// A packet to build.
#[derive(Clone, Debug)]
pub struct Shape {
    /// IP version.
    pub version: Version,
    /// From the LAN (network 1) to the WAN (network 2), or the other way.
    pub outward: bool,
    /// Last byte of the source address.
    pub src: u8,
    /// Last byte of the destination address.
    pub dst: u8,
    /// Protocol.
    pub proto: u8,
    /// Source port, or ICMP identifier.
    pub sport: u16,
    /// Destination port, or ICMP type and code.
    pub dport: u16,
    /// TCP flags.
    pub flags: u8,
    /// TCP options, up to 40 bytes, padded to four.
    pub options: Vec<u8>,
    /// What to add to the right data offset (TCP).
    pub doff_lie: u8,
    /// Where the transport header ends.
    pub cut: Cut,
    /// Payload length.
    pub payload: usize,
    /// IPv6 extension headers before the transport header: next header numbers.
    pub extensions: Vec<u8>,
    /// What is wrong with them.
    pub chain_lie: ChainLie,
    /// TOS or traffic class.
    pub tos: u8,
    /// What SCTP and DCCP have behind the ports, and ESP, AH and the mobility header have at all.
    pub body: Vec<u8>,
    /// Which of two contents the extension headers have.
    pub odd_extensions: bool,
}

/// Random packets of one version.
pub fn shape(version: Version) -> BoxedStrategy<Shape> {
    let icmp = if version == Version::V4 { 1 } else { 58 };
    let proto = prop_oneof![
        6 => Just(6u8), 5 => Just(17), 4 => Just(icmp), 1 => Just(132), 1 => Just(136), 1 => Just(33), 1 => Just(47), 1 => Just(99),
        1 => looks::proto(version),
    ];
    let port = || select(&[22u16, 80, 443, 53, 123, 25, 1024, 1500, 40000, 0, 65535, 79, 1023][..]);
    let kind: &[u16] = match version {
        Version::V4 => &[8 << 8, 8 << 8 | 1, 0, 3 << 8 | 3, 3 << 8 | 1, 11 << 8, 255 << 8, 5 << 8 | 1],
        Version::V6 => &[128 << 8, 128 << 8 | 1, 129 << 8, 1 << 8 | 4, 2 << 8, 3 << 8, 255 << 8],
    };
    let kind = select(kind);
    let flags = select(&[2u8, 0x12, 0x10, 0x18, 1, 0x11, 4, 0x14, 0, 3, 0x29, 0xc2][..]);
    let options: &[&[u8]] = &[
        &[],
        &[],
        &[2, 4, 5, 180],
        &[1, 3, 3, 7],
        &[2, 4, 5, 180, 1, 3, 3, 7],
        &[8, 0, 0, 0],
        &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        &[9, 200, 3, 3],
        &[1, 1, 1, 3],
    ];
    let options = select(options).prop_map(<[u8]>::to_vec);
    let cut = prop_oneof![12 => Just(Cut::Whole), 2 => (0usize..24).prop_map(Cut::At)];
    let lie = prop_oneof![20 => Just(0u8), 1 => Just(15), 1 => Just(1), 1 => Just(12)];
    let extensions: &[&[u8]] = match version {
        Version::V4 => &[&[]],
        Version::V6 => &[&[], &[], &[], &[], &[60], &[43], &[0, 60], &[51]],
    };
    let lies = prop_oneof![8 => Just(ChainLie::None), 1 => Just(ChainLie::Long), 1 => Just(ChainLie::Short)];
    let extensions = (select(extensions).prop_map(<[u8]>::to_vec), lies, any::<bool>());
    let more = (looks::tos(), any::<proptest::sample::Index>());
    let ends = (prop_oneof![3 => Just(true), 1 => Just(false)], 2u8..6, 2u8..6);
    (ends, proto, port(), port(), kind, flags, options, (cut, lie, more), 0usize..24, extensions)
        .prop_map(
            move |(
                (outward, src, dst),
                proto,
                sport,
                dport,
                kind,
                flags,
                options,
                (cut, doff_lie, (tos, body)),
                payload,
                (extensions, chain_lie, odd_extensions),
            )| {
                Shape {
                    version,
                    outward,
                    src,
                    dst,
                    proto,
                    sport,
                    dport: if proto == icmp { kind } else { dport },
                    flags,
                    options,
                    doff_lie,
                    cut,
                    payload,
                    extensions,
                    chain_lie,
                    tos,
                    body: looks::body(version, proto, body),
                    odd_extensions,
                }
            },
        )
        .boxed()
}

fn ones_complement(mut sum: u32, bytes: &[u8]) -> u32 {
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    sum
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Shape {
    /// Source and destination address, 4 or 16 bytes each.
    pub fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        let (from, to) = if self.outward { (1, 2) } else { (2, 1) };
        match self.version {
            Version::V4 => (vec![10, from, 0, self.src], vec![10, to, 0, self.dst]),
            Version::V6 => {
                let address = |net: u8, host: u8| {
                    let mut bytes = vec![0u8; 16];
                    (bytes[0], bytes[1], bytes[15]) = (0xfd, net, host);
                    bytes
                };
                (address(from, self.src), address(to, self.dst))
            }
        }
    }

    /// The transport header and payload, checksum right.
    fn transport(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        l4.extend(self.sport.to_be_bytes());
        l4.extend(self.dport.to_be_bytes());
        let payload = vec![0x5a; self.payload];
        let checksum_at = match self.proto {
            6 => {
                let length = 20 + self.options.len();
                let doff = ((length / 4) as u8 + self.doff_lie) & 15;
                l4.extend([0, 0, 0, 1, 0, 0, 0, 0, doff << 4, self.flags, 4, 0, 0, 0, 0, 0]);
                l4.extend(&self.options);
                Some(16)
            }
            17 => {
                l4.extend((8 + self.payload as u16).to_be_bytes());
                l4.extend([0, 0]);
                Some(6)
            }
            1 | 58 => {
                l4.clear();
                l4.extend(self.dport.to_be_bytes());
                l4.extend([0, 0]);
                l4.extend(self.sport.to_be_bytes());
                l4.extend([0, 1]);
                Some(2)
            }
            132 | 33 => {
                l4.extend(&self.body);
                None
            }
            50 | 51 | 135 => {
                l4.clone_from(&self.body);
                None
            }
            _ => {
                l4.extend([0; 8]);
                None
            }
        };
        l4.extend(payload);
        if let Cut::At(length) = self.cut {
            l4.truncate(length);
        }
        if let Some(at) = checksum_at.filter(|at| at + 2 <= l4.len()) {
            let mut sum = 0;
            if self.proto != 1 {
                let (src, dst) = self.addresses();
                sum = ones_complement(ones_complement(0, &src), &dst) + u32::from(self.proto) + l4.len() as u32;
            }
            let check = folded(ones_complement(sum, &l4));
            let check = if self.proto == 17 && check == 0 { 0xffff } else { check };
            l4[at..at + 2].copy_from_slice(&check.to_be_bytes());
        }
        l4
    }

    /// The frame, with `id` in the IP identification (IPv4) or flow label (IPv6), addressed to `mac`.
    pub fn frame(&self, id: u16, mac: [u8; 6]) -> Vec<u8> {
        let mut frame = mac.to_vec();
        frame.extend([2, 0, 0, 0, 0, 0xc]);
        let lie = if self.extensions.is_empty() { ChainLie::None } else { self.chain_lie };
        let l4 = if lie == ChainLie::Short { Vec::new() } else { self.transport() };
        let (src, dst) = self.addresses();
        match self.version {
            Version::V4 => {
                frame.extend([8, 0]);
                let mut ip = vec![0x45, self.tos];
                ip.extend((20 + l4.len() as u16).to_be_bytes());
                ip.extend(id.to_be_bytes());
                ip.extend([0x40, 0, 64, self.proto, 0, 0]);
                ip.extend(src);
                ip.extend(dst);
                let check = folded(ones_complement(0, &ip));
                ip[10..12].copy_from_slice(&check.to_be_bytes());
                frame.extend(ip);
            }
            Version::V6 => {
                frame.extend([0x86, 0xdd, 0x60 | self.tos >> 4, self.tos << 4]);
                frame.extend(id.to_be_bytes());
                let chain = 8 * self.extensions.len() as u16 - if lie == ChainLie::Short { 7 } else { 0 };
                frame.extend((l4.len() as u16 + chain).to_be_bytes());
                frame.extend([*self.extensions.first().unwrap_or(&self.proto), 64]);
                frame.extend(src);
                frame.extend(dst);
                for (index, &kind) in self.extensions.iter().enumerate() {
                    let next = *self.extensions.get(index + 1).unwrap_or(&self.proto);
                    // Eight bytes each: AH counts in fours less two, the others in eights less one. PadN fills options;
                    // a routing header has no segments left.
                    let body: [u8; 7] = match kind {
                        51 if self.odd_extensions => [0, 0, 1, 0, 0, 0, 5],
                        43 if self.odd_extensions => [0, 0, 1, 0, 0, 0, 1],
                        _ if self.odd_extensions => [0, 30, 2, 9, 9, 0, 0],
                        51 => [0, 0, 0, 0, 0, 0, 9],
                        43 => [0, 4, 0, 0, 0, 0, 0],
                        _ => [0, 1, 4, 0, 0, 0, 0],
                    };
                    frame.push(next);
                    frame.extend(body);
                    if index + 1 == self.extensions.len() && lie == ChainLie::Long {
                        let at = frame.len() - 7;
                        frame[at] = 200;
                    }
                }
                if lie == ChainLie::Short {
                    frame.truncate(frame.len() - 7);
                }
            }
        }
        frame.extend(l4);
        frame
    }
}
