//! A packet in words, as a question names it: [`Sketch`]. The words are those of the scenario files:
//! `tcp 10.0.0.5:1234 > 1.1.1.1:443 syn ttl 64`.

use std::net::IpAddr;
use std::str::FromStr;

use crate::conntrack::{CtInfo, Direction};
use crate::packet::Packet;
use crate::wire::{Addr, Family, Mac, checksum, icmp, icmpv6, ipv4, ipv6, proto, tcp, udp};

/// What a question can say; shown by `xrouter explain --help`.
pub const GRAMMAR: &str = "\
A packet is one of
  tcp ADDR:PORT > ADDR:PORT [FLAGS]     FLAGS: syn (default), syn,ack, ack, fin,ack, rst, none, or tcpdump's S, S., F.
  udp ADDR:PORT > ADDR:PORT
  icmp ADDR > ADDR [MESSAGE]            MESSAGE: echo-request (default), echo-reply, port-unreachable,
  icmpv6 ADDR > ADDR [MESSAGE]          ttl-exceeded, too-big, ..., or type N [code N]
  ip ADDR > ADDR proto N
and any of
  ttl N   tos N   len N (of the IP packet)   payload N   df   mark N   from MAC
  seq N   ack N   win N   id N   mtu N
  state NEW|ESTABLISHED|RELATED|INVALID|UNTRACKED [reply]   what if conntrack said this (reply: answering)
  quoting PACKET   what an ICMP error is about; last
IPv6 addresses with a port stand in brackets: [2001:db8::1]:443.";

/// What conntrack is supposed to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Supposed {
    /// Its word. Of the pairs with a reply side, the original one.
    pub(super) info: CtInfo,
    /// Whose packet it is.
    pub(super) direction: Direction,
}

/// What follows the IP header.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Transport {
    Tcp { sport: u16, dport: u16, seq: Option<u32>, ack: Option<u32>, flags: Option<u8>, window: u16 },
    Udp { sport: u16, dport: u16 },
    Icmp { kind: u8, code: u8, rest: u32 },
    Other(u8),
}

/// See the module's head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sketch {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    transport: Transport,
    ttl: u8,
    tos: u8,
    dont_fragment: bool,
    /// Of the whole IP packet.
    length: Option<u16>,
    payload: u16,
    quoted: Option<Box<Sketch>>,
    pub(super) mark: Option<u32>,
    pub(super) from: Option<Mac>,
    pub(super) supposed: Option<Supposed>,
}

/// TCP flags by name and by tcpdump's letter.
const FLAGS: [(&str, char, u8); 8] = [
    ("fin", 'F', tcp::FIN),
    ("syn", 'S', tcp::SYN),
    ("rst", 'R', tcp::RST),
    ("psh", 'P', tcp::PSH),
    ("ack", '.', tcp::ACK),
    ("urg", 'U', tcp::URG),
    ("ece", 'E', tcp::ECE),
    ("cwr", 'W', tcp::CWR),
];

/// Type and code of an ICMP message, where the protocol has it.
type TypeCode = Option<(u8, u8)>;

/// ICMP messages by name: for IPv4, for IPv6.
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
    ("timestamp-request", Some((13, 0)), None),
    ("timestamp-reply", Some((14, 0)), None),
    ("no-route", None, Some((1, 0))),
    ("beyond-scope", None, Some((1, 2))),
    ("addr-unreachable", None, Some((1, 3))),
    ("policy-fail", None, Some((1, 5))),
    ("reject-route", None, Some((1, 6))),
    ("too-big", None, Some((2, 0))),
];

/// The name of an ICMP message.
pub(in crate::control) fn message_name(family: Family, kind: u8, code: u8) -> String {
    let of = |message: &&(&str, TypeCode, TypeCode)| match family {
        Family::V4 => message.1 == Some((kind, code)),
        Family::V6 => message.2 == Some((kind, code)),
    };
    MESSAGES.iter().find(of).map_or_else(|| format!("type {kind} code {code}"), |message| message.0.to_owned())
}

/// The words of a packet, from the left.
struct Words<'a> {
    words: std::iter::Peekable<std::str::SplitWhitespace<'a>>,
}

impl<'a> Words<'a> {
    fn next(&mut self, what: &str) -> Result<&'a str, String> {
        self.words.next().ok_or_else(|| format!("{what} is missing at the end"))
    }

    fn peek(&mut self) -> Option<&'a str> {
        self.words.peek().copied()
    }

    fn number<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, String> {
        let word = self.next(what)?;
        let value = match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => word.parse().ok(),
        };
        value.and_then(|value| T::try_from(value).ok()).ok_or_else(|| format!("`{word}` is not {what}"))
    }

    fn arrow(&mut self) -> Result<(), String> {
        match self.next("`>`")? {
            ">" | "->" => Ok(()),
            other => Err(format!("expected `>` between source and destination, not `{other}`")),
        }
    }

    fn endpoints(&mut self) -> Result<[(IpAddr, u16); 2], String> {
        let src = endpoint(self.next("a source ADDR:PORT")?)?;
        self.arrow()?;
        let dst = endpoint(self.next("a destination ADDR:PORT")?)?;
        same_family(src.0, dst.0)?;
        Ok([src, dst])
    }

    fn addresses(&mut self) -> Result<[IpAddr; 2], String> {
        let src = address(self.next("a source address")?)?;
        self.arrow()?;
        let dst = address(self.next("a destination address")?)?;
        same_family(src, dst)?;
        Ok([src, dst])
    }
}

fn address(word: &str) -> Result<IpAddr, String> {
    let bare = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).unwrap_or(word);
    IpAddr::from_str(bare).map_err(|_| format!("`{word}` is no address"))
}

fn endpoint(word: &str) -> Result<(IpAddr, u16), String> {
    let wrong = || format!("`{word}` is not ADDR:PORT (IPv6: [ADDR]:PORT)");
    let (host, port) = word.rsplit_once(':').ok_or_else(wrong)?;
    if host.contains(':') && !host.starts_with('[') {
        return Err(wrong());
    }
    Ok((address(host)?, port.parse().map_err(|_| format!("`{port}` is no port"))?))
}

fn same_family(src: IpAddr, dst: IpAddr) -> Result<(), String> {
    match src.is_ipv4() == dst.is_ipv4() {
        true => Ok(()),
        false => Err(format!("{src} and {dst} are of different IP versions")),
    }
}

/// `syn,ack`, `S.`, `none`, or nothing that is flags.
fn flags(word: &str) -> Option<u8> {
    if matches!(word, "none" | "-") {
        return Some(0);
    }
    let named = |name: &str| FLAGS.iter().find(|flag| flag.0.eq_ignore_ascii_case(name)).map(|flag| flag.2);
    let by_name = word.split([',', '-', '+']).map(named).try_fold(0, |all, flag| flag.map(|flag| all | flag));
    let letter = |letter: char| match letter {
        'A' => Some(tcp::ACK),
        letter => FLAGS.iter().find(|flag| flag.1 == letter).map(|flag| flag.2),
    };
    by_name.or_else(|| word.chars().map(letter).try_fold(0, |all, flag| flag.map(|flag| all | flag)))
}

fn flags_text(set: u8) -> String {
    let names: Vec<&str> = FLAGS.iter().filter(|flag| flag.2 & set != 0).map(|flag| flag.0).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

impl FromStr for Sketch {
    type Err = String;

    fn from_str(text: &str) -> Result<Sketch, String> {
        let mut words = Words { words: text.split_whitespace().peekable() };
        let sketch = Sketch::read(&mut words)?;
        sketch.check()?;
        Ok(sketch)
    }
}

impl Sketch {
    fn read(words: &mut Words<'_>) -> Result<Sketch, String> {
        let mut sketch = match words.next("a packet")?.to_ascii_lowercase().as_str() {
            "tcp" => {
                let [src, dst] = words.endpoints()?;
                let flags = words.peek().and_then(flags);
                if flags.is_some() {
                    words.next("TCP flags")?;
                }
                let (sport, dport) = (src.1, dst.1);
                let tcp = Transport::Tcp { sport, dport, seq: None, ack: None, flags, window: 8192 };
                Sketch::new(src.0, dst.0, tcp)
            }
            "udp" => {
                let [src, dst] = words.endpoints()?;
                Sketch::new(src.0, dst.0, Transport::Udp { sport: src.1, dport: dst.1 })
            }
            word @ ("icmp" | "icmpv6") => {
                let [src, dst] = words.addresses()?;
                if src.is_ipv4() != (word == "icmp") {
                    return Err(format!("{word} from {src}: IPv4 has icmp, IPv6 has icmpv6"));
                }
                Sketch::new(src, dst, message(words, src.is_ipv4())?)
            }
            "ip" => {
                let [src, dst] = words.addresses()?;
                match words.next("`proto N`")? {
                    "proto" => Sketch::new(src, dst, Transport::Other(words.number("a protocol number")?)),
                    other => return Err(format!("expected `proto N`, not `{other}`")),
                }
            }
            other => return Err(format!("`{other}` is no packet: it begins with tcp, udp, icmp, icmpv6 or ip")),
        };
        while let Some(word) = words.words.next() {
            sketch.field(word, words)?;
        }
        Ok(sketch)
    }

    fn new(src: IpAddr, dst: IpAddr, transport: Transport) -> Sketch {
        Sketch {
            src,
            dst,
            transport,
            ttl: 64,
            tos: 0,
            dont_fragment: false,
            length: None,
            payload: 0,
            quoted: None,
            mark: None,
            from: None,
            supposed: None,
        }
    }

    fn field(&mut self, word: &str, words: &mut Words<'_>) -> Result<(), String> {
        match (word, &mut self.transport) {
            ("ttl" | "hl", _) => self.ttl = words.number("a TTL (0 to 255)")?,
            ("tos", _) => self.tos = words.number("a TOS byte")?,
            ("len", _) => self.length = Some(words.number("a length")?),
            ("payload", _) => self.payload = words.number("a length")?,
            ("df", _) => self.dont_fragment = true,
            ("mark", _) => self.mark = Some(words.number("a mark")?),
            ("from", _) => self.from = Some(mac(words.next("a MAC address")?)?),
            ("state", _) => self.supposed = Some(supposed(words)?),
            ("quoting", Transport::Icmp { .. }) => self.quoted = Some(Box::new(Sketch::read(words)?)),
            ("seq", Transport::Tcp { seq, .. }) => *seq = Some(words.number("a sequence number")?),
            ("ack", Transport::Tcp { ack, .. }) => *ack = Some(words.number("an acknowledgement number")?),
            ("win", Transport::Tcp { window, .. }) => *window = words.number("a window")?,
            ("flags", Transport::Tcp { flags: set, .. }) => {
                let word = words.next("TCP flags")?;
                *set = Some(flags(word).ok_or_else(|| format!("`{word}` are no TCP flags"))?);
            }
            ("id", Transport::Icmp { rest, .. }) => *rest = *rest & 0xffff | words.number::<u32>("an id")? << 16,
            ("seq", Transport::Icmp { rest, .. }) => {
                *rest = *rest & 0xffff_0000 | u32::from(words.number::<u16>("a sequence number")?);
            }
            ("mtu", Transport::Icmp { rest, .. }) => *rest = words.number("an MTU")?,
            (other, _) => return Err(format!("`{other}` is not understood here")),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let least = self.bytes_with(0).len();
        match self.length {
            Some(length) if usize::from(length) < least => {
                Err(format!("len {length}: its headers alone take {least} bytes"))
            }
            _ if least + usize::from(self.payload) > MAX_LENGTH => Err(format!("longer than {MAX_LENGTH} bytes")),
            Some(length) if usize::from(length) > MAX_LENGTH => Err(format!("longer than {MAX_LENGTH} bytes")),
            _ => Ok(()),
        }
    }

    /// IP version.
    pub(super) fn family(&self) -> Family {
        if self.src.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The packet that an ICMP error is about.
    pub(super) fn quoted(&self) -> Option<&Sketch> {
        self.quoted.as_deref()
    }

    /// The protocol's number.
    fn proto(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => proto::TCP,
            Transport::Udp { .. } => proto::UDP,
            Transport::Icmp { .. } if self.src.is_ipv4() => proto::ICMP,
            Transport::Icmp { .. } => proto::ICMPV6,
            Transport::Other(number) => number,
        }
    }

    /// The flags of a segment: as said, else what fits the state asked for.
    fn flags(&self, said: Option<u8>) -> u8 {
        let established = self.supposed.is_some_and(|supposed| supposed.info == CtInfo::Established);
        said.unwrap_or(if established { tcp::ACK } else { tcp::SYN })
    }

    /// The frame that arrives.
    pub(super) fn frame(&self, to: Mac, from: Mac) -> Vec<u8> {
        let headers = self.bytes_with(0).len();
        let payload = self.length.map_or(usize::from(self.payload), |length| usize::from(length) - headers);
        let ethertype: u16 = if self.src.is_ipv4() { 0x0800 } else { 0x86dd };
        [&to.0[..], &self.from.unwrap_or(from).0, &ethertype.to_be_bytes(), &self.bytes_with(payload)].concat()
    }

    /// The IP packet, with so many bytes behind its headers.
    fn bytes_with(&self, payload: usize) -> Vec<u8> {
        let l4 = self.transport_bytes(payload);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip = vec![0u8; ipv4::HEADER_LEN];
                ip[0] = 0x45;
                ip[1] = self.tos;
                ip[2..4].copy_from_slice(&((ipv4::HEADER_LEN + l4.len()) as u16).to_be_bytes());
                ip[4..6].copy_from_slice(&[0, 1]);
                ip[6] = if self.dont_fragment { 0x40 } else { 0 };
                ip[ipv4::TTL_AT] = self.ttl;
                ip[9] = self.proto();
                ip[ipv4::SRC_AT..ipv4::SRC_AT + 4].copy_from_slice(&src.octets());
                ip[ipv4::DST_AT..ipv4::DST_AT + 4].copy_from_slice(&dst.octets());
                ipv4::set_checksum(&mut ip);
                [ip, l4].concat()
            }
            (src, dst) => {
                let octets = |addr: IpAddr| match addr {
                    IpAddr::V6(addr) => addr.octets(),
                    IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
                };
                let mut ip = vec![0u8; ipv6::HEADER_LEN];
                ip[0..2].copy_from_slice(&(0x6000 | u16::from(self.tos) << 4).to_be_bytes());
                ip[4..6].copy_from_slice(&(l4.len() as u16).to_be_bytes());
                ip[6] = self.proto();
                ip[ipv6::HOP_LIMIT_AT] = self.ttl;
                ip[ipv6::SRC_AT..ipv6::SRC_AT + 16].copy_from_slice(&octets(src));
                ip[ipv6::DST_AT..ipv6::DST_AT + 16].copy_from_slice(&octets(dst));
                [ip, l4].concat()
            }
        }
    }

    fn transport_bytes(&self, payload: usize) -> Vec<u8> {
        let filled = |mut header: Vec<u8>| {
            header.resize(header.len() + payload, 0);
            header
        };
        match self.transport {
            Transport::Tcp { sport, dport, seq, ack, flags, window } => {
                let mut bytes = vec![0u8; tcp::HEADER_LEN];
                bytes[0..2].copy_from_slice(&sport.to_be_bytes());
                bytes[2..4].copy_from_slice(&dport.to_be_bytes());
                bytes[4..8].copy_from_slice(&seq.unwrap_or(0).to_be_bytes());
                bytes[8..12].copy_from_slice(&ack.unwrap_or(0).to_be_bytes());
                bytes[12] = 5 << 4;
                bytes[13] = self.flags(flags);
                bytes[14..16].copy_from_slice(&window.to_be_bytes());
                self.with_checksum(filled(bytes), tcp::CHECKSUM_AT, true)
            }
            Transport::Udp { sport, dport } => {
                let mut bytes = vec![0u8; udp::HEADER_LEN];
                bytes[0..2].copy_from_slice(&sport.to_be_bytes());
                bytes[2..4].copy_from_slice(&dport.to_be_bytes());
                bytes[4..6].copy_from_slice(&((udp::HEADER_LEN + payload) as u16).to_be_bytes());
                self.with_checksum(filled(bytes), udp::CHECKSUM_AT, true)
            }
            Transport::Icmp { kind, code, rest } => {
                let mut bytes = vec![kind, code, 0, 0];
                bytes.extend_from_slice(&rest.to_be_bytes());
                if let Some(quoted) = &self.quoted {
                    bytes.extend_from_slice(&quoted.bytes_with(usize::from(quoted.payload.min(512))));
                }
                let at = if self.src.is_ipv4() { icmp::CHECKSUM_AT } else { icmpv6::CHECKSUM_AT };
                self.with_checksum(filled(bytes), at, self.src.is_ipv6())
            }
            Transport::Other(_) => filled(Vec::new()),
        }
    }

    fn with_checksum(&self, mut bytes: Vec<u8>, at: usize, pseudo: bool) -> Vec<u8> {
        let (src, dst) = (Addr::from(self.src), Addr::from(self.dst));
        let base = match pseudo {
            true => checksum::pseudo_header(self.family(), src, dst, self.proto(), bytes.len() as u32),
            false => 0,
        };
        let check = checksum::finish(checksum::sum(base, &bytes));
        // A datagram whose checksum is zero has none.
        let check = if check == 0 && self.proto() == proto::UDP { 0xffff } else { check };
        bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    /// The same packet the other way.
    fn answering(&self) -> Sketch {
        let transport = match self.transport.clone() {
            Transport::Tcp { sport, dport, seq, ack, flags, window } => {
                Transport::Tcp { sport: dport, dport: sport, seq, ack, flags, window }
            }
            Transport::Udp { sport, dport } => Transport::Udp { sport: dport, dport: sport },
            Transport::Icmp { kind, code, rest } => {
                let pairs = [(8, 0), (13, 14), (15, 16), (17, 18), (128, 129), (139, 140)];
                let other = |pair: &(u8, u8)| match *pair {
                    (ask, tell) if ask == kind => Some(tell),
                    (ask, tell) if tell == kind => Some(ask),
                    _ => None,
                };
                Transport::Icmp { kind: pairs.iter().find_map(other).unwrap_or(kind), code, rest }
            }
            other => other,
        };
        Sketch { src: self.dst, dst: self.src, transport, ..self.clone() }
    }

    /// The packets that make a connection of it, in order, each with whether it is of the original direction; and the packet
    /// itself, as it is then.
    pub(super) fn with_history(&self, direction: Direction) -> (Vec<(bool, Sketch)>, Sketch) {
        let original = if direction == Direction::Original { self.clone() } else { self.answering() };
        let answer = original.answering();
        let Transport::Tcp { .. } = self.transport else {
            return (vec![(true, original), (false, answer)], self.clone());
        };
        let (ours, theirs) = (1000, 5000);
        let history = vec![
            (true, original.segment(tcp::SYN, ours, 0)),
            (false, answer.segment(tcp::SYN | tcp::ACK, theirs, ours + 1)),
            (true, original.segment(tcp::ACK, ours + 1, theirs + 1)),
        ];
        let mut present = self.clone();
        if let Transport::Tcp { seq, ack, .. } = &mut present.transport {
            let (at, of) = if direction == Direction::Original { (ours, theirs) } else { (theirs, ours) };
            seq.get_or_insert(at + 1);
            ack.get_or_insert(of + 1);
        }
        (history, present)
    }

    fn segment(&self, set: u8, at: u32, of: u32) -> Sketch {
        let mut sketch = Sketch { payload: 0, length: None, ..self.clone() };
        if let Transport::Tcp { seq, ack, flags, .. } = &mut sketch.transport {
            (*seq, *ack, *flags) = (Some(at), Some(of), Some(set));
        }
        sketch
    }

    /// In words, with what was left unsaid.
    pub(super) fn describe(&self) -> String {
        let endpoint = |addr: IpAddr, port: u16| match addr {
            IpAddr::V4(addr) => format!("{addr}:{port}"),
            IpAddr::V6(addr) => format!("[{addr}]:{port}"),
        };
        match &self.transport {
            Transport::Tcp { sport, dport, flags, .. } => format!(
                "tcp {} > {} {}",
                endpoint(self.src, *sport),
                endpoint(self.dst, *dport),
                flags_text(self.flags(*flags))
            ),
            Transport::Udp { sport, dport } => {
                format!("udp {} > {}", endpoint(self.src, *sport), endpoint(self.dst, *dport))
            }
            Transport::Icmp { kind, code, .. } => {
                let name = if self.src.is_ipv4() { "icmp" } else { "icmpv6" };
                let about =
                    self.quoted.as_ref().map_or(String::new(), |quoted| format!(" quoting {}", quoted.describe()));
                format!("{name} {} > {} {}{about}", self.src, self.dst, message_name(self.family(), *kind, *code))
            }
            Transport::Other(number) => format!("ip {} > {} proto {number}", self.src, self.dst),
        }
    }
}

/// A packet that there is, in the same words.
pub(in crate::control) fn describe(packet: &Packet) -> String {
    let (src, dst) = match packet.family {
        Family::V4 => (packet.src.to_ip(), packet.dst.to_ip()),
        Family::V6 => (IpAddr::V6(packet.src.bits().into()), IpAddr::V6(packet.dst.bits().into())),
    };
    let Packet { sport, dport, .. } = *packet;
    let transport = match packet.proto {
        proto::TCP => {
            Transport::Tcp { sport, dport, seq: None, ack: None, flags: Some(packet.tcp_flags), window: packet.window }
        }
        proto::UDP => Transport::Udp { sport, dport },
        _ if packet.is_icmp() => Transport::Icmp { kind: packet.icmp_type(), code: packet.icmp_code(), rest: 0 },
        other => Transport::Other(other),
    };
    Sketch::new(src, dst, transport).describe()
}

/// The longest packet that can be asked about, in bytes.
pub(super) const MAX_LENGTH: usize = 9000;

fn message(words: &mut Words<'_>, v4: bool) -> Result<Transport, String> {
    let of = |message: &(&str, TypeCode, TypeCode)| if v4 { message.1 } else { message.2 };
    let known = |word: &str| MESSAGES.iter().find(|message| message.0 == word);
    let (kind, code) = match words.peek() {
        Some("type") => {
            words.next("type")?;
            let kind = words.number("an ICMP type")?;
            let code = match words.peek() {
                Some("code") => {
                    words.next("code")?;
                    words.number("an ICMP code")?
                }
                _ => 0,
            };
            (kind, code)
        }
        Some(word) if known(word).is_some() => {
            words.next("a message")?;
            known(word).and_then(of).ok_or_else(|| format!("`{word}` is no message of this ICMP"))?
        }
        _ if v4 => (icmp::ECHO_REQUEST, 0),
        _ => (128, 0),
    };
    Ok(Transport::Icmp { kind, code, rest: 0 })
}

fn mac(word: &str) -> Result<Mac, String> {
    let bytes: Option<Vec<u8>> = word.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).map(Mac).ok_or_else(|| format!("`{word}` is no MAC address"))
}

fn supposed(words: &mut Words<'_>) -> Result<Supposed, String> {
    let word = words.next("a conntrack state")?;
    let info = match word.to_ascii_uppercase().as_str() {
        "NEW" => CtInfo::New,
        "ESTABLISHED" => CtInfo::Established,
        "RELATED" => CtInfo::Related,
        "INVALID" => CtInfo::Invalid,
        "UNTRACKED" => CtInfo::Untracked,
        _ => return Err(format!("`{word}` is none of NEW, ESTABLISHED, RELATED, INVALID, UNTRACKED")),
    };
    let is_reply = words.peek() == Some("reply");
    if is_reply {
        words.next("reply")?;
        if !matches!(info, CtInfo::Established | CtInfo::Related) {
            return Err(format!("state {word} reply: only ESTABLISHED and RELATED packets can be of the reply"));
        }
    }
    let direction = if is_reply { Direction::Reply } else { Direction::Original };
    Ok(Supposed { info, direction })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PortId;
    use crate::packet::L4;

    #[test]
    fn words_become_sound_packets() {
        for (text, described, length) in [
            ("tcp 10.0.0.5:1234 > 1.1.1.1:443", "tcp 10.0.0.5:1234 > 1.1.1.1:443 syn", 40),
            ("tcp 10.0.0.5:1 > 1.1.1.1:443 S. ttl 3 len 1500", "tcp 10.0.0.5:1 > 1.1.1.1:443 syn,ack", 1500),
            ("tcp 10.0.0.5:1 > 1.1.1.1:443 state ESTABLISHED", "tcp 10.0.0.5:1 > 1.1.1.1:443 ack", 40),
            ("tcp [fd00::1]:1 -> [fd00::2]:2 fin,ack payload 7", "tcp [fd00::1]:1 > [fd00::2]:2 fin,ack", 67),
            ("udp 10.0.0.5:53 > 1.1.1.1:53 payload 3", "udp 10.0.0.5:53 > 1.1.1.1:53", 31),
            ("icmp 10.0.0.5 > 1.1.1.1", "icmp 10.0.0.5 > 1.1.1.1 echo-request", 28),
            ("icmpv6 fd00::1 > fd00::2 type 2 mtu 1280", "icmpv6 fd00::1 > fd00::2 too-big", 48),
            ("ip 10.0.0.5 > 1.1.1.1 proto 47", "ip 10.0.0.5 > 1.1.1.1 proto 47", 20),
            (
                "icmp 9.9.9.9 > 10.0.0.5 port-unreachable quoting udp 10.0.0.5:5 > 1.1.1.1:53",
                "icmp 9.9.9.9 > 10.0.0.5 port-unreachable quoting udp 10.0.0.5:5 > 1.1.1.1:53",
                56,
            ),
        ] {
            let sketch: Sketch = text.parse().unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
            assert_eq!(sketch.describe(), described);
            let frame = sketch.frame(Mac([2; 6]), Mac([4; 6]));
            let packet = Packet::parse(&frame, PortId::LAN, true).expect(text);
            assert_eq!((usize::from(packet.l3_len), packet.frame_len()), (length, frame.len()), "{text}");
            assert_eq!(describe(&packet), described.split(" quoting").next().expect("words"));
            assert!(packet.l4 == L4::Good || text.starts_with("ip "), "{text}: {packet:?}");
        }
    }

    #[test]
    fn what_is_no_packet_is_refused_with_the_word() {
        for (text, part) in [
            ("", "a packet is missing"),
            ("tpc 1.1.1.1:1 > 2.2.2.2:2", "`tpc` is no packet"),
            ("tcp 1.1.1.1 > 2.2.2.2:2", "`1.1.1.1` is not ADDR:PORT"),
            ("tcp fd00::1:80 > [fd00::2]:2", "[ADDR]:PORT"),
            ("tcp 1.1.1.1:1 2.2.2.2:2", "expected `>`"),
            ("tcp 1.1.1.1:1 > [fd00::1]:2", "different IP versions"),
            ("tcp 1.1.1.1:1 > 2.2.2.2:70000", "`70000` is no port"),
            ("tcp 1.1.1.1:1 > 2.2.2.2:2 ttl 256", "`256` is not a TTL"),
            ("tcp 1.1.1.1:1 > 2.2.2.2:2 len 39", "40 bytes"),
            ("tcp 1.1.1.1:1 > 2.2.2.2:2 synack", "`synack` is not understood"),
            ("udp 1.1.1.1:1 > 2.2.2.2:2 seq 1", "`seq` is not understood"),
            ("udp 1.1.1.1:1 > 2.2.2.2:2 payload 65000", "longer than 9000"),
            ("icmp fd00::1 > fd00::2", "IPv6 has icmpv6"),
            ("icmp 1.1.1.1 > 2.2.2.2 too-big", "no message of this ICMP"),
            ("ip 1.1.1.1 > 2.2.2.2", "`proto N` is missing"),
            ("tcp 1.1.1.1:1 > 2.2.2.2:2 state OLD", "`OLD` is none of"),
            ("tcp 1.1.1.1:1 > 2.2.2.2:2 state NEW reply", "only ESTABLISHED"),
        ] {
            let wrong = text.parse::<Sketch>().expect_err(text);
            assert!(wrong.contains(part), "{text}: {wrong}");
        }
    }
}
