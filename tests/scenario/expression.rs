//! Packet expressions: `tcp 10.1.0.2:1000 > 10.2.0.2:80 S seq 1000`, `same ttl 63`, `raw eth 02..`: words in, a
//! [`Described`] packet out. The words are listed in `tests/scenarios/README.md`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;

use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::rewrite;

use super::packet::{Csum, ETH, ICMP, ICMPV6, L4, Mask, Spec, TCP, Tcp, UDP};
use super::topology::{Port, Topology, mac_of};

/// The words of one line, read from the left.
#[derive(Debug)]
pub(crate) struct Words {
    words: std::collections::VecDeque<String>,
}

impl Words {
    /// Splits a line at blanks; `"..."` holds words together; `#` at a word's start begins a comment.
    pub(crate) fn split(line: &str) -> Result<Words, String> {
        let mut words = std::collections::VecDeque::new();
        let mut chars = line.chars().peekable();
        while let Some(&first) = chars.peek() {
            if first.is_whitespace() {
                chars.next();
            } else if first == '#' {
                break;
            } else if first == '"' {
                chars.next();
                let word: String = chars.by_ref().take_while(|&c| c != '"').collect();
                words.push_back(word);
            } else {
                let mut word = String::new();
                while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                    word.push(c);
                }
                words.push_back(word);
            }
        }
        match line.matches('"').count() % 2 {
            0 => Ok(Words { words }),
            _ => Err("a quotation is not closed".into()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    pub(crate) fn peek(&self) -> Option<&str> {
        self.words.front().map(String::as_str)
    }

    pub(crate) fn peek_second(&self) -> Option<&str> {
        self.words.get(1).map(String::as_str)
    }

    pub(crate) fn next(&mut self, what: &str) -> Result<String, String> {
        self.words.pop_front().ok_or_else(|| format!("{what} is missing"))
    }

    /// The next word as a number, decimal or with 0x.
    pub(crate) fn number<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, String> {
        let word = self.next(what)?;
        number(&word).and_then(|value| T::try_from(value).ok()).ok_or_else(|| format!("{word} is not {what}"))
    }

    pub(crate) fn push(&mut self, word: String) {
        self.words.push_back(word);
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        self.words.drain(..).collect()
    }

    /// The end mark of a text that follows the line (`<<END`).
    pub(crate) fn heredoc(&self) -> Option<String> {
        self.words.back().and_then(|word| word.strip_prefix("<<")).map(str::to_owned)
    }

    /// Refuses words nobody read.
    pub(crate) fn finish(&self) -> Result<(), String> {
        match self.peek() {
            None => Ok(()),
            Some(word) => Err(format!("did not expect {word}")),
        }
    }
}

fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

/// A packet in words, or bytes.
#[derive(Clone, Debug)]
pub(crate) enum Described {
    /// In words.
    Packet(Box<Spec>),
    /// The whole frame in hex.
    Frame(Vec<u8>),
    /// The IP packet of such a frame one hop further, until it is known by which port it leaves.
    Onward(Vec<u8>),
}

/// What an expression may refer to.
#[derive(Debug)]
pub(crate) struct Scope {
    /// The packet last injected.
    pub(crate) last: Option<Described>,
    /// Packets with a name.
    pub(crate) labels: HashMap<String, Described>,
}

impl Described {
    /// The frame and what of it is free.
    pub(crate) fn build(&self) -> (Vec<u8>, Mask) {
        match self {
            Described::Packet(spec) => spec.build(),
            Described::Frame(bytes) => (bytes.clone(), Mask::default()),
            Described::Onward(ip) => panic!("it is not known where this leaves: {ip:02x?}"),
        }
    }

    /// The IP packet, as an ICMP error quotes it.
    fn ip_bytes(&self) -> Vec<u8> {
        self.build().0.split_off(ETH)
    }

    /// Fills in the MAC addresses of a frame that arrives at the router.
    pub(crate) fn fill_incoming(&mut self, port: Port, topology: &Topology) {
        if let Described::Packet(spec) = self {
            spec.eth_dst.get_or_insert(port.mac());
            spec.eth_src.get_or_insert(topology.sender_mac(port, spec.src));
        }
    }

    /// Fills in the MAC addresses of a frame that the router sends.
    pub(crate) fn fill_outgoing(&mut self, port: Port, topology: &Topology) {
        if let Described::Packet(spec) = self {
            let next_hop = spec.via.map_or_else(|| topology.next_hop_mac(port, spec.dst), |via| mac_of(port, via));
            spec.eth_dst.get_or_insert(next_hop);
            spec.eth_src.get_or_insert(port.mac());
        }
        if let Described::Onward(ip) = self {
            let (ethertype, dst) = match ip[0] >> 4 {
                4 => ([8, 0], IpAddr::from(<[u8; 4]>::try_from(&ip[16..20]).expect("four bytes"))),
                _ => ([0x86, 0xdd], IpAddr::from(<[u8; 16]>::try_from(&ip[24..40]).expect("sixteen bytes"))),
            };
            let next_hop = topology.next_hop_mac(port, dst);
            *self = Described::Frame([&next_hop[..], &port.mac(), &ethertype, ip].concat());
        }
    }
}

/// Reads one packet expression. `expected`: of a packet that the router sends, so that one of its own making may leave
/// free what it may choose.
pub(crate) fn packet(words: &mut Words, scope: &Scope, expected: bool) -> Result<Described, String> {
    let first = words.next("a packet")?;
    let mut spec = match first.as_str() {
        "raw" => return Ok(Described::Frame(hex(words)?)),
        "same" | "forwarded" => {
            let last = scope.last.clone().ok_or("nothing was injected yet")?;
            if let (Described::Frame(frame), "forwarded", true) = (&last, first.as_str(), expected) {
                return Ok(Described::Onward(onward(frame)?));
            }
            refer(last, first == "forwarded", expected)?
        }
        name if name.starts_with('$') => refer(scope.labelled(&name[1..])?, false, expected)?,
        "tcp" => tcp(words)?,
        "udp" => udp(words)?,
        "icmp" | "icmpv6" => icmp(words, first == "icmp", expected)?,
        "ip" => other(words)?,
        other => return Err(format!("unknown packet {other}")),
    };
    while let Some(word) = words.peek() {
        if word == "as" {
            break;
        }
        let word = words.next("a field")?;
        if word == "quoting" {
            quote(&mut spec, words, scope)?;
        } else {
            field(&mut spec, &word, words)?;
        }
    }
    Ok(Described::Packet(Box::new(spec)))
}

/// What a router makes of the IP packet in a frame: TTL and header checksum, no padding. An unfinished transport checksum
/// is not seen as one.
fn onward(frame: &[u8]) -> Result<Vec<u8>, String> {
    let mut frame = frame.to_vec();
    let mut packet =
        Packet::parse(&frame, PortId::LAN, false).map_err(|why| format!("no router forwards this: {why:?}"))?;
    if packet.ttl < 2 {
        return Err("no router forwards this: its TTL is used up".into());
    }
    rewrite::decrement_ttl(&mut frame, &mut packet);
    Ok(packet.l3_bytes(&frame).to_vec())
}

fn refer(described: Described, forwarded: bool, expected: bool) -> Result<Spec, String> {
    let Described::Packet(spec) = described else { return Err("a raw frame cannot be referred to".into()) };
    let mut spec = if forwarded { spec.forwarded() } else { *spec };
    if expected && !forwarded {
        (spec.eth_src, spec.eth_dst) = (None, None);
    }
    Ok(spec)
}

fn endpoint(word: &str) -> Result<(IpAddr, u16), String> {
    let (address, port) = word.rsplit_once(':').ok_or_else(|| format!("{word}: want ADDRESS:PORT"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let address = address.parse().map_err(|_| format!("{address} is no address"))?;
    Ok((address, port.parse().map_err(|_| format!("{port} is no port"))?))
}

fn arrow(words: &mut Words) -> Result<(), String> {
    match words.next(">")?.as_str() {
        ">" => Ok(()),
        other => Err(format!("want > between source and destination, not {other}")),
    }
}

fn same_family(src: IpAddr, dst: IpAddr) -> Result<(), String> {
    match src.is_ipv4() == dst.is_ipv4() {
        true => Ok(()),
        false => Err("source and destination are of different families".into()),
    }
}

fn endpoints(words: &mut Words) -> Result<[(IpAddr, u16); 2], String> {
    let src = endpoint(&words.next("a source")?)?;
    arrow(words)?;
    let dst = endpoint(&words.next("a destination")?)?;
    same_family(src.0, dst.0)?;
    Ok([src, dst])
}

fn addresses(words: &mut Words) -> Result<(IpAddr, IpAddr), String> {
    let address = |word: String| IpAddr::from_str(&word).map_err(|_| format!("{word} is no address"));
    let src = address(words.next("a source")?)?;
    arrow(words)?;
    let dst = address(words.next("a destination")?)?;
    same_family(src, dst)?;
    Ok((src, dst))
}

fn tcp(words: &mut Words) -> Result<Spec, String> {
    let [src, dst] = endpoints(words)?;
    let flags = flags(&words.next("TCP flags")?)?;
    let tcp = Tcp { sport: src.1, dport: dst.1, flags, window: 8192, ..Tcp::default() };
    Ok(Spec::new(src.0, dst.0, TCP, L4::Tcp(tcp)))
}

fn flags(word: &str) -> Result<u8, String> {
    if let Some(value) = number(word) {
        return u8::try_from(value).map_err(|_| format!("{word} is no flag byte"));
    }
    let mut flags = 0;
    for letter in word.chars() {
        flags |= match letter {
            'F' => 0x01,
            'S' => 0x02,
            'R' => 0x04,
            'P' => 0x08,
            '.' => 0x10,
            'U' => 0x20,
            'E' => 0x40,
            'W' => 0x80,
            '-' => 0,
            other => return Err(format!("{other} is no TCP flag")),
        };
    }
    Ok(flags)
}

fn udp(words: &mut Words) -> Result<Spec, String> {
    let [src, dst] = endpoints(words)?;
    let l4 = L4::Udp { sport: src.1, dport: dst.1, length: None, payload: Vec::new() };
    Ok(Spec::new(src.0, dst.0, UDP, l4))
}

/// Type and code of an ICMP message, where the protocol has it.
type TypeCode = Option<(u8, u8)>;

/// ICMP messages by name: type and code for IPv4, then for IPv6.
const MESSAGES: &[(&str, TypeCode, TypeCode)] = &[
    ("echo-request", Some((8, 0)), Some((128, 0))),
    ("echo-reply", Some((0, 0)), Some((129, 0))),
    ("net-unreachable", Some((3, 0)), None),
    ("host-unreachable", Some((3, 1)), None),
    ("proto-unreachable", Some((3, 2)), None),
    ("port-unreachable", Some((3, 3)), Some((1, 4))),
    ("frag-needed", Some((3, 4)), None),
    ("net-prohibited", Some((3, 9)), None),
    ("host-prohibited", Some((3, 10)), None),
    ("admin-prohibited", Some((3, 13)), Some((1, 1))),
    ("redirect", Some((5, 1)), None),
    ("ttl-exceeded", Some((11, 0)), Some((3, 0))),
    ("param-problem", Some((12, 0)), Some((4, 0))),
    ("no-route", None, Some((1, 0))),
    ("beyond-scope", None, Some((1, 2))),
    ("addr-unreachable", None, Some((1, 3))),
    ("policy-fail", None, Some((1, 5))),
    ("reject-route", None, Some((1, 6))),
    ("too-big", None, Some((2, 0))),
];

fn icmp(words: &mut Words, v4: bool, expected: bool) -> Result<Spec, String> {
    let (src, dst) = addresses(words)?;
    let name = words.next("an ICMP message")?;
    let (kind, code) = match name.as_str() {
        "type" => (words.number("a type")?, 0),
        name => {
            let found = MESSAGES.iter().find(|message| message.0 == name);
            let message = found.ok_or_else(|| format!("unknown ICMP message {name}"))?;
            (if v4 { message.1 } else { message.2 }).ok_or_else(|| format!("{name} is not of this ICMP"))?
        }
    };
    let proto = if v4 { ICMP } else { ICMPV6 };
    let mut spec = Spec::new(src, dst, proto, L4::Icmp { kind, code, rest: 0, payload: Vec::new() });
    let own = Port::ALL.iter().any(|port| port.address(src.is_ipv4()) == src);
    let error = if v4 { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { kind < 128 };
    if expected && own && error {
        // The router's own error: what it may choose is left free, what it must set is set (RFC 1812 section 4.3.2.5).
        spec.id = None;
        spec.flow = None;
        spec.tos = if v4 { 0xc0 } else { 0 };
    }
    Ok(spec)
}

fn other(words: &mut Words) -> Result<Spec, String> {
    let (src, dst) = addresses(words)?;
    match words.next("proto")?.as_str() {
        "proto" => Ok(Spec::new(src, dst, words.number("a protocol number")?, L4::Raw(Vec::new()))),
        word => Err(format!("want proto N, not {word}")),
    }
}

fn hex(words: &mut Words) -> Result<Vec<u8>, String> {
    let mut digits = String::new();
    while words.peek().is_some_and(|word| word.chars().all(|c| c.is_ascii_hexdigit() || c == ':')) {
        digits.push_str(&words.next("hex")?.replace(':', ""));
    }
    if !digits.len().is_multiple_of(2) {
        return Err("an odd number of hex digits".into());
    }
    let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16));
    bytes.collect::<Result<Vec<u8>, _>>().map_err(|_| "bad hex".into())
}

/// A MAC address in text.
pub(crate) fn mac(word: &str) -> Result<[u8; 6], String> {
    let bytes: Vec<u8> = word.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.try_into().map_err(|_| format!("{word} is no MAC address"))
}

/// The pattern that `payload N` stands for.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn payload(spec: &mut Spec) -> &mut Vec<u8> {
    match &mut spec.l4 {
        L4::Tcp(tcp) => &mut tcp.payload,
        L4::Udp { payload, .. } | L4::Icmp { payload, .. } | L4::Raw(payload) => payload,
    }
}

fn csum(words: &mut Words) -> Result<Csum, String> {
    let word = words.next("a checksum")?;
    Ok(match word.as_str() {
        "good" => Csum::Good,
        "bad" => Csum::Bad,
        "partial" => Csum::Partial,
        "none" => Csum::None,
        other => {
            let value = number(other).and_then(|value| u16::try_from(value).ok());
            Csum::Value(value.ok_or_else(|| format!("{other} is no checksum"))?)
        }
    })
}

/// Reads one field of any packet.
fn field(spec: &mut Spec, word: &str, words: &mut Words) -> Result<(), String> {
    match word {
        "from" => spec.eth_src = Some(mac(&words.next("a MAC address")?)?),
        "to" => spec.eth_dst = Some(mac(&words.next("a MAC address")?)?),
        "ethertype" => spec.ethertype = Some(words.number("an EtherType")?),
        "via" => spec.via = Some(words.next("an address")?.parse().map_err(|_| "want an address")?),
        "ttl" => spec.ttl = words.number("a TTL")?,
        "tos" => spec.tos = words.number("a TOS")?,
        "df" => spec.dont_fragment = true,
        "mf" => spec.more_fragments = true,
        "evil" => spec.evil = true,
        "frag" => spec.offset = words.number("a fragment offset")?,
        "ipver" => spec.version = Some(words.number("a version")?),
        "ihl" => spec.header_words = Some(words.number("a header length in words")?),
        "iplen" => spec.length = Some(words.number("an IP length")?),
        "ipcsum" => spec.ip_csum = csum(words)?,
        "ipopt" => spec.ip_options = hex(words)?,
        "flow" if words.peek() == Some("any") => {
            words.next("any")?;
            spec.flow = None;
        }
        "flow" => spec.flow = Some(words.number("a flow label")?),
        "ext" => {
            let proto = words.number("an extension header's number")?;
            spec.extensions.push((proto, hex(words)?));
        }
        "ipproto" => spec.proto = words.number("a protocol number")?,
        "csum" => spec.csum = csum(words)?,
        "payload" => *payload(spec) = pattern(words.number("a length")?),
        "data" => *payload(spec) = words.next("text")?.into_bytes(),
        "hex" => *payload(spec) = hex(words)?,
        "cut" => spec.cut = Some(words.number("a length")?),
        "snip" => spec.snip = Some(words.number("a length")?),
        "pad" => spec.pad = words.number("a length")?,
        _ => return field_of_l4(spec, word, words),
    }
    Ok(())
}

fn field_of_l4(spec: &mut Spec, word: &str, words: &mut Words) -> Result<(), String> {
    let v6 = spec.src.is_ipv6();
    match (&mut spec.l4, word) {
        (L4::Tcp(tcp), "seq") => tcp.seq = words.number("a sequence number")?,
        (L4::Tcp(tcp), "ack") => tcp.ack = words.number("an acknowledgement number")?,
        (L4::Tcp(tcp), "win") => tcp.window = words.number("a window")?,
        (L4::Tcp(tcp), "urg") => tcp.urgent = words.number("an urgent pointer")?,
        (L4::Tcp(tcp), "res") => tcp.reserved = words.number("reserved bits")?,
        (L4::Tcp(tcp), "doff") => tcp.offset = Some(words.number("a data offset")?),
        (L4::Tcp(tcp), "opt") => tcp.options = hex(words)?,
        (L4::Tcp(tcp), "flags") => tcp.flags = flags(&words.next("TCP flags")?)?,
        (L4::Udp { length, .. }, "ulen") => *length = Some(words.number("a length")?),
        (L4::Icmp { code, .. }, "code") => *code = words.number("a code")?,
        (L4::Icmp { rest, .. }, "id") if spec.proto == ICMP || v6 => {
            *rest = *rest & 0xffff | words.number::<u32>("an id")? << 16;
        }
        (L4::Icmp { rest, .. }, "seq") => *rest = *rest & 0xffff_0000 | words.number::<u32>("a sequence number")?,
        (L4::Icmp { rest, .. }, "mtu" | "rest") => *rest = words.number("a number")?,
        (L4::Icmp { rest, .. }, "ptr") => {
            let pointer: u32 = words.number("a pointer")?;
            *rest = if v6 { pointer } else { pointer << 24 };
        }
        (_, "id" | "ipid") if words.peek() == Some("any") => {
            words.next("any")?;
            spec.id = None;
        }
        (_, "id" | "ipid") => spec.id = Some(words.number("an id")?),
        (_, other) => return Err(format!("unknown field {other}")),
    }
    Ok(())
}

/// `quoting [N] PACKET`: the ICMP payload is the packet quoted, or its first N bytes; without N as much as an error of this
/// family may carry (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)).
fn quote(spec: &mut Spec, words: &mut Words, scope: &Scope) -> Result<(), String> {
    let limit = match words.peek().and_then(number) {
        Some(_) => words.number("a length")?,
        None if spec.src.is_ipv4() => 576 - 20 - 8,
        None => 1280 - 40 - 8,
    };
    let mut bytes = packet(words, scope, false)?.ip_bytes();
    bytes.truncate(limit);
    match &mut spec.l4 {
        L4::Icmp { payload, .. } => *payload = bytes,
        _ => return Err("only ICMP quotes".into()),
    }
    Ok(())
}
