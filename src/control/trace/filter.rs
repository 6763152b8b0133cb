//! Which packets to trace, in words that tcpdump has: [`parse`].

use std::net::IpAddr;

use crate::device::PortId;
use crate::wire::{Addr, Family, proto};
use crate::worker::{Side, TraceFilter};

/// What a filter can say; shown by `xrouter trace --help`.
pub const GRAMMAR: &str = "\
A filter is made of these, as tcpdump has them:
  tcp  udp  icmp  icmp6  ip  ip6  proto N
  [src|dst] host ADDR      [src|dst] net ADDR/LEN
  [src|dst] port N         [src|dst] portrange N-M
  in IF                    arrives by the interface; lan and wan are names for the two
joined by `and` (which may be left out), `or`, `not`, and parentheses.";

/// Words that a filter may have at most.
const WORDS_MAX: usize = 64;
/// Parentheses and `not`s that may stand within each other.
const DEPTH_MAX: usize = 16;

struct Words<'a> {
    words: Vec<&'a str>,
    at: usize,
    ports: Option<[&'a str; PortId::COUNT]>,
    depth: usize,
}

/// Reads a filter; `ports` are the interfaces' names, if they are known (else every name will do, and the filter is only good
/// to be checked). Without a word it admits every packet.
///
/// # Errors
/// What is not understood.
pub fn parse(text: &str, ports: Option<[&str; PortId::COUNT]>) -> Result<TraceFilter, String> {
    let spaced = text.replace('(', " ( ").replace(')', " ) ").replace('!', " not ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    if words.is_empty() {
        return Ok(TraceFilter::Any);
    }
    if words.len() > WORDS_MAX {
        return Err(format!("a filter of {} words: {WORDS_MAX} at most", words.len()));
    }
    let mut words = Words { words, at: 0, ports, depth: 0 };
    let filter = words.either()?;
    match words.peek() {
        None => Ok(filter),
        Some(word) => Err(format!("`{word}` is not understood here")),
    }
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn next(&mut self, what: &str) -> Result<&'a str, String> {
        let word = self.peek().ok_or_else(|| format!("{what} is missing at the end"))?;
        self.at += 1;
        Ok(word)
    }

    fn takes(&mut self, words: &[&str]) -> bool {
        let found = self.peek().is_some_and(|word| words.contains(&word));
        self.at += usize::from(found);
        found
    }

    fn either(&mut self) -> Result<TraceFilter, String> {
        let mut filters = vec![self.all()?];
        while self.takes(&["or", "||"]) {
            filters.push(self.all()?);
        }
        Ok(one_or(filters, TraceFilter::One))
    }

    fn all(&mut self) -> Result<TraceFilter, String> {
        let mut filters = vec![self.one()?];
        loop {
            let joined = self.takes(&["and", "&&"]);
            if !joined && self.peek().is_none_or(|word| matches!(word, ")" | "or" | "||")) {
                return Ok(one_or(filters, TraceFilter::All));
            }
            filters.push(self.one()?);
        }
    }

    fn one(&mut self) -> Result<TraceFilter, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("parentheses and `not` are more than {DEPTH_MAX} deep"));
        }
        let filter = self.primitive();
        self.depth -= 1;
        filter
    }

    fn primitive(&mut self) -> Result<TraceFilter, String> {
        let side = match self.peek() {
            Some("src") => Side::Source,
            Some("dst") => Side::Destination,
            _ => Side::Either,
        };
        self.at += usize::from(side != Side::Either);
        Ok(match self.next("a filter")? {
            "host" => self.net(side, false)?,
            "net" => self.net(side, true)?,
            "port" => {
                let port = port(self.next("a port")?)?;
                TraceFilter::Port(side, port, port)
            }
            "portrange" => {
                let word = self.next("a range of ports")?;
                let (low, high) = word.split_once('-').ok_or_else(|| format!("`{word}` is not FIRST-LAST"))?;
                TraceFilter::Port(side, port(low)?, port(high)?)
            }
            word if side != Side::Either => {
                return Err(format!("expected host, net, port or portrange after src or dst, not `{word}`"));
            }
            "not" => TraceFilter::Not(Box::new(self.one()?)),
            "(" => {
                let filter = self.either()?;
                match self.takes(&[")"]) {
                    true => filter,
                    false => return Err("a parenthesis is not closed".to_owned()),
                }
            }
            "ip" => TraceFilter::Family(Family::V4),
            "ip6" => TraceFilter::Family(Family::V6),
            "tcp" => TraceFilter::Proto(proto::TCP),
            "udp" => TraceFilter::Proto(proto::UDP),
            "icmp" => TraceFilter::All(vec![TraceFilter::Family(Family::V4), TraceFilter::Proto(proto::ICMP)]),
            "icmp6" => TraceFilter::All(vec![TraceFilter::Family(Family::V6), TraceFilter::Proto(proto::ICMPV6)]),
            "proto" => {
                let word = self.next("a protocol number")?;
                TraceFilter::Proto(word.parse().map_err(|_| format!("`{word}` is no protocol number"))?)
            }
            "in" => self.input()?,
            word => return Err(format!("`{word}` is not understood here")),
        })
    }

    fn input(&mut self) -> Result<TraceFilter, String> {
        let name = self.next("an interface")?;
        let Some(ports) = self.ports else { return Ok(TraceFilter::Input(PortId::LAN)) };
        let by_name = PortId::ALL.into_iter().find(|port| ports[port.index()] == name);
        let port = by_name.or_else(|| PortId::ALL.into_iter().find(|port| format!("{port:?}") == name));
        let [lan, wan] = ports;
        port.map(TraceFilter::Input).ok_or_else(|| format!("in {name}: the router has {lan} (lan) and {wan} (wan)"))
    }

    fn net(&mut self, side: Side, with_length: bool) -> Result<TraceFilter, String> {
        let word = self.next("an address")?;
        let wrong = || format!("`{word}` is no {}", if with_length { "ADDR/LEN" } else { "address" });
        let (address, length) = match word.split_once('/') {
            Some((address, length)) if with_length => (address, Some(length.parse::<u8>().map_err(|_| wrong())?)),
            Some(_) => return Err(wrong()),
            None => (word, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let length = length.unwrap_or(family.bits());
        if length > family.bits() {
            return Err(wrong());
        }
        Ok(TraceFilter::Net(side, address.into(), Addr::prefix_mask(family, length), family))
    }
}

fn port(word: &str) -> Result<u16, String> {
    word.parse().map_err(|_| format!("`{word}` is no port"))
}

fn one_or(mut filters: Vec<TraceFilter>, several: fn(Vec<TraceFilter>) -> TraceFilter) -> TraceFilter {
    match filters.len() {
        1 => filters.remove(0),
        _ => several(filters),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use proptest::prelude::*;

    const PORTS: Option<[&str; 2]> = Some(["eth0", "eth1"]);

    fn admits(filter: &str, packet: &Packet) -> bool {
        parse(filter, PORTS).unwrap_or_else(|wrong| panic!("{filter}: {wrong}")).admits(packet)
    }

    #[test]
    fn words_of_tcpdump_mean_what_they_mean_there() {
        let v4 = |bits: u32| Addr::from_v4(bits);
        let it = Packet {
            src: v4(0x0a00_0005),
            dst: v4(0x0101_0101),
            sport: 1234,
            dport: 443,
            proto: proto::TCP,
            ..Packet::BLANK
        };
        for (filter, wanted) in [
            ("", true),
            ("tcp host 10.0.0.5 port 443", true),
            ("tcp and host 10.0.0.5 and port 80", false),
            ("src host 10.0.0.5", true),
            ("dst host 10.0.0.5", false),
            ("src net 10.0.0.0/8 and not udp", true),
            ("udp or dst port 443", true),
            ("udp or dst port 443 and src port 1", false),
            ("(udp or tcp) and portrange 1200-1300", true),
            ("not (ip and tcp)", false),
            ("! ip6", true),
            ("in eth0", true),
            ("in wan", false),
            ("icmp", false),
            ("proto 6 ip", true),
            ("host fd00::1", false),
        ] {
            assert_eq!(admits(filter, &it), wanted, "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_with_the_word() {
        let deep = "not ".repeat(20) + "tcp";
        let long = "tcp ".repeat(70);
        for (filter, part) in [
            ("tpc", "`tpc` is not understood"),
            ("host", "an address is missing"),
            ("host 10.0.0.0/8", "is no address"),
            ("net 10.0.0.0/33", "is no ADDR/LEN"),
            ("port http", "`http` is no port"),
            ("src tcp", "after src or dst"),
            ("(tcp", "not closed"),
            ("tcp )", "`)` is not understood"),
            ("in eth7", "eth0 (lan) and eth1 (wan)"),
            ("tcp and", "a filter is missing"),
            (deep.as_str(), "16 deep"),
            (long.as_str(), "64 at most"),
        ] {
            let wrong = parse(filter, PORTS).expect_err(filter);
            assert!(wrong.contains(part), "{filter}: {wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(words in proptest::collection::vec(
            "(not|and|or|\\(|\\)|src|dst|host|net|port|tcp|in|1|10.0.0.1|::/0|-|!)",
            0..80,
        )) {
            let _ = parse(&words.join(" "), PORTS);
        }
    }
}
