//! The element of an `add` line, `192.0.2.0/24,tcp:80,198.51.100.1`, read as ipset reads it: one word that may stand for many
//! elements, since addresses and ports may be ranges.

use super::header::Header;
use super::icmp;
use super::key::{Key, mac_bits, name_bits};
use super::kind::{Kind, Part};
use crate::rules::diagnostic::{Problem, nearest};
use crate::rules::names;
use crate::rules::token::Token;
use crate::rules::value::unsigned;
use crate::wire::{Addr, Family, Mac, proto};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest name of an interface in bytes (`IFNAMSIZ` less its end).
const IFACE_MAX: usize = 15;

/// One element, as far as its word goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Element {
    pub(super) key: Key,
    pub(super) unfilled: bool,
    /// The interface ended in `+`.
    pub(super) wildcard: bool,
}

/// What stands for addresses: from the first to the last.
#[derive(Clone, Copy)]
struct Range {
    first: Addr,
    last: Addr,
    /// A single net or address, of this length.
    length: Option<u8>,
}

/// What one part of the word stands for.
#[derive(Clone, Copy)]
enum Meaning {
    Addresses(Range),
    Nets(Range),
    Ports(u8, u16, u16),
    Mac(Option<Mac>),
    Mark(u32),
    Iface { name: Addr, physdev: bool, wildcard: bool },
}

/// Reads the word and gives each element that it stands for to `sink`, which may stop it.
///
/// # Errors
/// What is wrong with the word; what `sink` said.
pub(super) fn read(
    header: &Header,
    token: &Token,
    sink: &mut dyn FnMut(Element) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let parts = header.kind.parts();
    let mut words: Vec<&str> = token.text.splitn(parts.len(), ',').collect();
    if header.kind == Kind::BitmapIpMac && words.len() == 1 {
        words.push("");
    }
    if words.len() < parts.len() || words.last().is_some_and(|word| word.contains(',')) {
        let message = format!("`{}` is no element of a {}", token.text, header.kind.name());
        let expected = format!("expected {} between commas", count(parts.len()));
        return Err(Problem::new(token.span, message, expected)
            .help(format!("an element of this type is `{}`", example(header.kind, header.address_family()))));
    }
    let reader = Reader { header, token };
    let mut meanings = [Meaning::Mark(0); 3];
    for (index, (&part, word)) in parts.iter().zip(words).enumerate() {
        meanings[index] = reader.part(part, index, word)?;
    }
    expand(header, &meanings[..parts.len()], Element::default(), 0, 0, sink)
}

fn count(parts: usize) -> &'static str {
    match parts {
        1 => "one part and nothing",
        2 => "two parts",
        _ => "three parts",
    }
}

/// An element to show.
fn example(kind: Kind, family: Family) -> String {
    let (ip, net) = match family {
        Family::V4 => ("192.0.2.1", "192.0.2.0/24"),
        Family::V6 => ("2001:db8::1", "2001:db8::/32"),
    };
    let word = |part: &Part| match part {
        Part::Ip => ip,
        Part::Net => net,
        Part::Port => "tcp:80",
        Part::Mac => "02:00:00:00:00:01",
        Part::Mark => "0x1",
        Part::Iface => "eth0",
        Part::Set => "another-set",
    };
    kind.parts().iter().map(word).collect::<Vec<_>>().join(",")
}

/// Goes through all that the parts stand for.
fn expand(
    header: &Header,
    rest: &[Meaning],
    so_far: Element,
    addresses: usize,
    nets: usize,
    sink: &mut dyn FnMut(Element) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let Some((&meaning, rest)) = rest.split_first() else { return sink(so_far) };
    let mut next = |element: Element, addresses, nets| expand(header, rest, element, addresses, nets, sink);
    let mut element = so_far;
    let put = |element: &mut Element, addr: Addr| match addresses {
        0 => element.key.first = addr,
        _ => element.key.second = addr,
    };
    match meaning {
        Meaning::Addresses(range) => {
            let mask = if addresses == 0 { header.first_mask() } else { None };
            let step = u128::from(step_of(header, addresses));
            let mut at = range.first.bits();
            while at <= range.last.bits() {
                let addr = Addr::from_v6(at);
                put(&mut element, mask.map_or(addr, |mask| addr.and(mask)));
                next(element, addresses + 1, nets)?;
                let Some(following) = at.checked_add(step) else { break };
                at = following;
            }
        }
        Meaning::Nets(Range { first, length: Some(length), .. }) => {
            let family = header.address_family();
            put(&mut element, first.and(Addr::prefix_mask(family, length)));
            element.key.lengths[nets] = length;
            next(element, addresses + 1, nets + 1)?;
        }
        Meaning::Nets(range) => {
            let (mut at, last) = (range.first.v4_bits(), range.last.v4_bits());
            loop {
                let (end, length) = largest_net(at, last);
                put(&mut element, Addr::from_v4(at));
                element.key.lengths[nets] = length;
                next(element, addresses + 1, nets + 1)?;
                if end >= last {
                    break;
                }
                at = end + 1;
            }
        }
        Meaning::Ports(protocol, first, last) => {
            element.key.proto = protocol;
            for port in first..=last {
                element.key.port = port;
                next(element, addresses, nets)?;
            }
        }
        Meaning::Mac(mac) => {
            element.unfilled = mac.is_none();
            element.key.second = mac.map_or(Addr::ZERO, mac_bits);
            next(element, addresses, nets)?;
        }
        Meaning::Mark(mark) => {
            element.key.mark = mark;
            next(element, addresses, nets)?;
        }
        Meaning::Iface { name, physdev, wildcard } => {
            element.key.second = name;
            element.key.physdev = physdev;
            element.wildcard = wildcard;
            next(element, addresses, nets)?;
        }
    }
    Ok(())
}

/// How far the next address of a range is: a netmask makes one element of many.
fn step_of(header: &Header, addresses: usize) -> u32 {
    match header.mask {
        Some(super::header::Mask::Net(length)) if addresses == 0 && header.family == Some(Family::V4) => {
            1u32.checked_shl(32 - u32::from(length)).unwrap_or(u32::MAX)
        }
        _ => 1,
    }
}

/// The largest net that begins at `at` and does not reach beyond `last` (`ip_set_range_to_cidr`): its end and length.
fn largest_net(at: u32, last: u32) -> (u32, u8) {
    let fits = |length: &u8| {
        let hosts = u32::MAX.checked_shr(u32::from(*length)).unwrap_or(0);
        at & hosts == 0 && at | hosts <= last
    };
    let length = (1..32).find(fits).unwrap_or(32);
    (at | u32::MAX.checked_shr(u32::from(length)).unwrap_or(0), length)
}

/// Reads one part after another.
struct Reader<'a> {
    header: &'a Header,
    token: &'a Token,
}

impl Reader<'_> {
    fn problem(&self, message: String, label: &str) -> Problem {
        Problem::new(self.token.span, message, label)
    }

    fn part(&self, part: Part, index: usize, word: &str) -> Result<Meaning, Problem> {
        match part {
            Part::Ip => self.addresses(index, word),
            Part::Net => self.nets(word),
            Part::Port => self.ports(word),
            Part::Mac if word.is_empty() && self.header.kind == Kind::BitmapIpMac => Ok(Meaning::Mac(None)),
            Part::Mac => self.mac(word),
            Part::Mark => match unsigned(word, u32::MAX) {
                Some(mark) => Ok(Meaning::Mark(mark & self.header.markmask)),
                None => Err(self.problem(format!("`{word}` is not a mark"), "expected a number")),
            },
            Part::Iface => self.iface(word),
            Part::Set => Err(self.problem("a set stands here".to_owned(), "not an element")),
        }
    }

    fn address(&self, word: &str) -> Result<Addr, Problem> {
        let inside = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).unwrap_or(word);
        let family = self.header.address_family();
        let parsed = match family {
            Family::V4 => inside.parse::<Ipv4Addr>().ok().map(Addr::from),
            Family::V6 => inside.parse::<Ipv6Addr>().ok().map(Addr::from),
        };
        parsed.ok_or_else(|| {
            let (version, other) = match family {
                Family::V4 => ("IPv4", inside.parse::<Ipv6Addr>().is_ok()),
                Family::V6 => ("IPv6", inside.parse::<Ipv4Addr>().is_ok()),
            };
            let problem = self.problem(format!("`{word}` is not an {version} address"), "expected an address");
            match other {
                true => {
                    problem.help("a set holds one IP version: `family inet` or `family inet6` in its `create` line")
                }
                false => problem.help("names are not resolved; write the address"),
            }
        })
    }

    fn length(&self, word: &str, zero: bool) -> Result<u8, Problem> {
        let bits = self.header.address_family().bits();
        match unsigned(word, u32::from(bits)) {
            Some(0) if !zero => Err(self
                .problem("a prefix of length 0 cannot be kept in this type of set".to_owned(), "everything")
                .help("write two halves: `0.0.0.0/1` and `128.0.0.0/1`, or `::/1` and `8000::/1`")),
            Some(length) => Ok(length as u8),
            None => Err(self
                .problem(format!("`{word}` is not a prefix length"), "expected a number")
                .help(format!("a prefix length goes up to {bits}"))),
        }
    }

    /// `first-last`, `address/length` or one address.
    fn range(&self, word: &str, zero: bool) -> Result<Range, Problem> {
        let bits = self.header.address_family().bits();
        if let Some((address, length)) = word.split_once('/') {
            let (first, length) = (self.address(address)?, self.length(length, zero)?);
            let mask = Addr::prefix_mask(self.header.address_family(), length);
            let first = first.and(mask);
            return Ok(Range { first, last: Addr::from_v6(first.bits() | !mask.bits()), length: Some(length) });
        }
        if let Some((first, last)) = word.split_once('-').filter(|_| !word.starts_with('[')) {
            if self.header.address_family() == Family::V6 {
                return Err(self
                    .problem("ranges of IPv6 addresses are not taken".to_owned(), "a range")
                    .help("write prefixes, or one line for each address"));
            }
            let (first, last) = (self.address(first)?, self.address(last)?);
            let (first, last) = (first.min(last), first.max(last));
            if zero || self.header.kind.nets() > 0 {
                let all = first.v4_bits() == 0 && last.v4_bits() == u32::MAX;
                if all {
                    return Err(self.problem("this range is everything".to_owned(), "too wide"));
                }
            }
            return Ok(Range { first, last, length: None });
        }
        let address = self.address(word)?;
        Ok(Range { first: address, last: address, length: Some(bits) })
    }

    fn addresses(&self, index: usize, word: &str) -> Result<Meaning, Problem> {
        let range = self.range(word, false)?;
        let many = range.first != range.last;
        if many && self.header.address_family() == Family::V6 {
            return Err(self
                .problem(format!("`{word}` is more than one address"), "expected one IPv6 address")
                .help("a set of type hash:net takes prefixes"));
        }
        if many && index > 0 {
            return Err(self.problem(format!("`{word}` is more than one address"), "expected one address"));
        }
        if many && matches!(self.header.mask, Some(super::header::Mask::Bits(_))) {
            return Err(self
                .problem("a range in a set with a bitmask".to_owned(), "expected one address")
                .help("write one line for each address"));
        }
        if self.header.kind == Kind::HashIp || self.header.mask.is_some() && self.header.kind == Kind::HashIpPort {
            let mask = self.header.first_mask();
            let masked = mask.map_or(range.first, |mask| range.first.and(mask));
            if masked == Addr::from_v4(0) && self.header.address_family() == Family::V4 || masked == Addr::ZERO {
                return Err(self.problem("the null address cannot be kept in this type of set".to_owned(), "null"));
            }
        }
        Ok(Meaning::Addresses(range))
    }

    fn nets(&self, word: &str) -> Result<Meaning, Problem> {
        self.range(word, self.header.kind.takes_zero_prefix()).map(Meaning::Nets)
    }

    fn ports(&self, word: &str) -> Result<Meaning, Problem> {
        let bitmap = self.header.kind == Kind::BitmapPort;
        let (protocol, ports) = match word.split_once(':') {
            None => (proto::TCP, word),
            Some((name, ports)) => (self.protocol(name)?, ports),
        };
        if bitmap && !matches!(protocol, proto::TCP | proto::UDP) {
            return Err(self.problem("a bitmap:port has ports of TCP and UDP".to_owned(), "another protocol"));
        }
        let (first, last) = match protocol {
            proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE => self.port_range(ports)?,
            proto::ICMP | proto::ICMPV6 => {
                let v6 = protocol == proto::ICMPV6;
                if (self.header.address_family() == Family::V6) != v6 {
                    let message = "ICMP of the other IP version".to_owned();
                    return Err(self.problem(message, "not in this set's family"));
                }
                let number = icmp::read(ports, v6).ok_or_else(|| {
                    let near = nearest(ports, icmp::names(v6)).map(|near| format!("did you mean `{near}`?"));
                    self.problem(format!("unknown ICMP type `{ports}`"), "expected a name or TYPE/CODE")
                        .maybe_help(near)
                })?;
                (number, number)
            }
            _ if ports == "0" => (0, 0),
            _ => {
                let message = format!("`{word}`: this protocol has no ports");
                return Err(self.problem(message, "expected `protocol:0`"));
            }
        };
        Ok(Meaning::Ports(if bitmap { 0 } else { protocol }, first, last))
    }

    fn protocol(&self, name: &str) -> Result<u8, Problem> {
        let number = unsigned(name, 255).map(|number| number as u8).or_else(|| names::protocol_number(name));
        number.filter(|&number| number != 0).ok_or_else(|| {
            let near = nearest(name, names::protocol_names()).map(|near| format!("did you mean `{near}`?"));
            self.problem(format!("unknown protocol `{name}`"), "expected a name or a number").maybe_help(near)
        })
    }

    fn port_range(&self, word: &str) -> Result<(u16, u16), Problem> {
        if let Some(port) = self.port(word) {
            return Ok((port, port));
        }
        let range = word.split_once('-').and_then(|(first, last)| Some((self.port(first)?, self.port(last)?)));
        let (first, last) = range.ok_or_else(|| {
            let near = nearest(word, names::service_names()).map(|near| format!("did you mean `{near}`?"));
            self.problem(format!("`{word}` is not a port"), "expected a number up to 65535").maybe_help(near)
        })?;
        Ok((first.min(last), first.max(last)))
    }

    fn port(&self, word: &str) -> Option<u16> {
        let inside = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).unwrap_or(word);
        unsigned(inside, 65_535).map(|port| port as u16).or_else(|| names::service_port(inside))
    }

    fn mac(&self, word: &str) -> Result<Meaning, Problem> {
        let mut mac = [0; 6];
        let mut bytes = word.split(':');
        for byte in &mut mac {
            let number = bytes.next().filter(|text| matches!(text.len(), 1 | 2) && !text.starts_with('+'));
            *byte = number.and_then(|text| u8::from_str_radix(text, 16).ok()).ok_or_else(|| {
                self.problem(format!("`{word}` is not a hardware address"), "expected six bytes, `02:00:00:00:00:01`")
            })?;
        }
        if bytes.next().is_some() {
            return Err(self.problem(format!("`{word}` is not a hardware address"), "more than six bytes"));
        }
        let null = mac == [0; 6] && self.header.kind != Kind::BitmapIpMac;
        match null {
            true => Err(self.problem("the null address cannot be kept in this type of set".to_owned(), "null")),
            false => Ok(Meaning::Mac(Some(Mac(mac)))),
        }
    }

    fn iface(&self, word: &str) -> Result<Meaning, Problem> {
        let (physdev, name) = match word.strip_prefix("physdev:") {
            Some(name) => (true, name),
            None => (false, word),
        };
        let (name, wildcard) = match name.strip_suffix('+') {
            Some(name) => (name, true),
            None => (name, false),
        };
        if name.is_empty() || name.len() > IFACE_MAX {
            let message = format!("`{word}` is not an interface's name");
            return Err(self.problem(message, "expected 1 to 15 characters"));
        }
        Ok(Meaning::Iface { name: name_bits(name), physdev, wildcard })
    }
}
