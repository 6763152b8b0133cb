//! Which connections somebody asks for: [`ConnFilter`], the filters of conntrack(8), over [`ConnView`]s.
//!
//! A value of fixed size that crosses the control socket and the worker's mailbox; what is not set does not matter, and
//! everything that is set must hold. Numbers of a tuple's two parts mean what they mean in [`Tuple`](super::Tuple):
//! ports, ICMP's identifier, GRE's keys; ICMP's type and code have fields of their own.

use core::fmt;
use core::str::FromStr;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::list::{ConnView, StateView, TupleView};
use super::tuple::CtStatus;
use crate::wire::{Addr, Family, proto};

/// An address and which of its bits count. Its text is `ADDR`, `ADDR/LENGTH` or `ADDR/MASK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    mask: Addr,
}

impl Network {
    /// The address alone.
    pub fn host(address: IpAddr) -> Network {
        Network { address, mask: Addr::prefix_mask(family_of(address), family_of(address).bits()) }
    }

    /// The same address, but only the bits of `mask` count.
    ///
    /// # Errors
    /// When the mask is of the other IP version.
    pub fn masked(self, mask: IpAddr) -> Result<Network, String> {
        if family_of(mask) != self.family() {
            return Err(format!("the mask {mask} is of another IP version than the address {}", self.address));
        }
        // The mapped form of an IPv4 address has bits above it, which always count.
        let mask = match mask {
            IpAddr::V4(v4) => Addr::from_v6(u128::MAX << 32 | u128::from(u32::from(v4))),
            IpAddr::V6(v6) => Addr::from_v6(v6.into()),
        };
        Ok(Network { mask, ..self })
    }

    /// IP version.
    pub fn family(self) -> Family {
        family_of(self.address)
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        family_of(address) == self.family()
            && Addr::from(self.address).and(self.mask) == Addr::from(address).and(self.mask)
    }

    /// The address, whatever counts of it.
    pub fn address(self) -> IpAddr {
        self.address
    }
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = || {
            format!(
                "`{text}` is no address; allowed: ADDR, ADDR/LENGTH or ADDR/MASK such as 10.0.0.0/8, fd00::1 or \
                 10.0.0.0/255.0.0.0"
            )
        };
        let (address, rest) = text.split_once('/').map_or((text, None), |(address, rest)| (address, Some(rest)));
        let host = Network::host(address.parse().map_err(|_| wrong())?);
        let Some(rest) = rest else { return Ok(host) };
        if let Ok(mask) = rest.parse::<IpAddr>() {
            return host.masked(mask);
        }
        let digits = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
        let length = rest.parse().ok().filter(|&length: &u8| digits && length <= host.family().bits());
        Ok(Network { mask: Addr::prefix_mask(host.family(), length.ok_or_else(wrong)?), ..host })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.mask.bits();
        if bits.leading_ones() + bits.trailing_zeros() >= 128 {
            let length = bits.leading_ones() - (128 - u32::from(self.family().bits()));
            return write!(f, "{}/{length}", self.address);
        }
        match self.family() {
            Family::V4 => write!(f, "{}/{}", self.address, std::net::Ipv4Addr::from(bits as u32)),
            Family::V6 => write!(f, "{}/{}", self.address, std::net::Ipv6Addr::from(bits)),
        }
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Network, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

/// What one direction's tuple must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TupleFilter {
    /// Source address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<Network>,
    /// Destination address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<Network>,
    /// Source port, ICMP identifier or GRE source key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination port or GRE destination key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// ICMP type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
}

impl TupleFilter {
    fn admits(&self, protocol: u8, tuple: &TupleView) -> bool {
        let is_icmp = matches!(protocol, proto::ICMP | proto::ICMPV6);
        let [kind, code] = tuple.dport.to_be_bytes();
        self.src.is_none_or(|network| network.contains(tuple.src))
            && self.dst.is_none_or(|network| network.contains(tuple.dst))
            && self.sport.is_none_or(|sport| sport == tuple.sport)
            && self.dport.is_none_or(|dport| !is_icmp && dport == tuple.dport)
            && self.icmp_type.is_none_or(|wanted| is_icmp && wanted == kind)
            && self.icmp_code.is_none_or(|wanted| is_icmp && wanted == code)
    }
}

/// What a translated end must have become; nothing said, whatever it became.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatFilter {
    /// The address, which must be another than before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<IpAddr>,
    /// The port, which must be another than before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl NatFilter {
    fn admits(&self, before: (IpAddr, u16), after: (IpAddr, u16)) -> bool {
        self.addr.is_none_or(|addr| addr == after.0 && addr != before.0)
            && self.port.is_none_or(|port| port == after.1 && port != before.1)
    }

    /// Whether the source is translated, to this.
    fn admits_source(&self, conn: &ConnView) -> bool {
        let (original, reply) = (&conn.original, &conn.reply);
        conn.has(CtStatus::SRC_NAT) && self.admits((original.src, original.sport), (reply.dst, reply.dport))
    }

    /// Whether the destination is translated, to this.
    fn admits_destination(&self, conn: &ConnView) -> bool {
        let (original, reply) = (&conn.original, &conn.reply);
        conn.has(CtStatus::DST_NAT) && self.admits((original.dst, original.dport), (reply.src, reply.sport))
    }
}

/// `ADDR`, or `ADDR:PORT` (`[ADDR]:PORT`).
impl FromStr for NatFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<NatFilter, String> {
        if let Ok(addr) = text.parse() {
            return Ok(NatFilter { addr: Some(addr), port: None });
        }
        let both: Result<SocketAddr, _> = text.parse();
        both.map(|it| NatFilter { addr: Some(it.ip()), port: Some(it.port()) }).map_err(|_| {
            "allowed: an address such as 192.0.2.1 or fd00::1, or with a port 192.0.2.1:80 or [fd00::1]:80".to_owned()
        })
    }
}

/// A number of which only some bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masked<T> {
    /// What they are.
    pub value: T,
    /// Which bits count.
    pub mask: T,
}

/// Which connections somebody asks for; see the module's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnFilter {
    /// 4 or 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<u8>,
    /// Transport protocol's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<u8>,
    /// The original direction.
    pub original: TupleFilter,
    /// The reply direction.
    pub reply: TupleFilter,
    /// Protocol state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<StateView>,
    /// Status bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Masked<u16>>,
    /// Source or destination translated: any of these status bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any_status: Option<u16>,
    /// Source translated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_nat: Option<NatFilter>,
    /// Destination translated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_nat: Option<NatFilter>,
    /// Either translated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any_nat: Option<NatFilter>,
    /// Connection mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<Masked<u32>>,
    /// Zone of both directions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<u16>,
    /// Zone of the original direction, where the reply's is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orig_zone: Option<u16>,
    /// Zone of the reply direction, where the original's is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_zone: Option<u16>,
    /// Whole seconds left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// Identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
}

impl ConnFilter {
    /// Whether `conn` is one of those asked for.
    pub fn admits(&self, conn: &ConnView) -> bool {
        let version = if conn.family == Family::V4 as u8 { 4 } else { 6 };
        let (original, reply) = (conn.original.zone, conn.reply.zone);
        let alone = |wanted: Option<u16>, is: u16| wanted.is_none_or(|wanted| wanted == is && original != reply);
        self.family.is_none_or(|family| family == version)
            && self.proto.is_none_or(|proto| proto == conn.proto)
            && self.original.admits(conn.proto, &conn.original)
            && self.reply.admits(conn.proto, &conn.reply)
            && self.state.is_none_or(|state| conn.state == Some(state))
            && self.status.is_none_or(|status| conn.status & status.mask == status.value)
            && self.any_status.is_none_or(|any| CtStatus(conn.status).any(CtStatus(any)))
            && self.src_nat.is_none_or(|to| to.admits_source(conn))
            && self.dst_nat.is_none_or(|to| to.admits_destination(conn))
            && self.any_nat.is_none_or(|to| to.admits_source(conn) || to.admits_destination(conn))
            && self.mark.is_none_or(|mark| conn.mark & mark.mask == mark.value)
            && self.zone.is_none_or(|zone| original == zone && reply == zone)
            && alone(self.orig_zone, original)
            && alone(self.reply_zone, reply)
            && self.timeout.is_none_or(|timeout| conn.timeout == timeout)
            && self.id.is_none_or(|id| id == conn.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_strictly() {
        let inside = |network: &str, address: &str| {
            network.parse::<Network>().expect("a network").contains(address.parse().expect("an address"))
        };
        assert!(inside("10.0.0.0/8", "10.255.0.1") && !inside("10.0.0.0/8", "11.0.0.1"));
        assert!(inside("0.0.0.0/0", "1.2.3.4") && !inside("0.0.0.0/0", "::1") && !inside("::/0", "1.2.3.4"));
        assert!(inside("::/0", "fe80::1") && inside("1.2.3.4", "1.2.3.4") && !inside("1.2.3.4", "1.2.3.5"));
        assert!(inside("10.9.0.1/255.0.255.0", "10.1.0.2") && !inside("10.9.0.1/255.0.255.0", "10.1.1.2"));
        assert!(
            inside("fd00::5/ffff::", "fd00:1::1") && !inside("::/0", "::ffff:1.2.3.4".trim_start_matches("::ffff:"))
        );
        for wrong in
            ["", "10", "10.0.0.0/33", "10.0.0.0/", "::/129", "host", "10.0.0.0/-1", "10.0.0.0/+8", "::/255.0.0.0"]
        {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    /// As conntrack 1.4.7 finds them; only that it does not read the address of `--src-nat=ADDR`.
    #[test]
    fn translated_ends_are_told_apart() {
        let ip = |host: u8| IpAddr::from([10, 0, 0, host]);
        let tuple = |src: (u8, u16), dst: (u8, u16)| TupleView {
            src: ip(src.0),
            dst: ip(dst.0),
            sport: src.1,
            dport: dst.1,
            zone: 0,
        };
        let conn = |bits: CtStatus, server: (u8, u16), client: (u8, u16)| ConnView {
            family: 2,
            proto: proto::UDP,
            timeout: 29,
            state: None,
            gre_timeouts: None,
            original: tuple((1, 10), (2, 20)),
            reply: tuple(server, client),
            counters: None,
            status: bits.0,
            mark: 0,
            start: None,
            stop: None,
            id: 1,
            helper: None,
        };
        let (source, destination) = (CtStatus::SRC_NAT, CtStatus::DST_NAT);
        let all = [
            conn(source, (2, 20), (3, 30)),
            conn(destination, (4, 21), (1, 10)),
            conn(CtStatus(0), (2, 20), (1, 10)),
            conn(source.with(destination), (5, 20), (3, 31)),
            conn(source, (2, 20), (1, 77)),
        ];
        let found = |letter: &str, what: &str| -> String {
            let to = Some(if what.is_empty() { NatFilter::default() } else { what.parse().expect(what) });
            let none = ConnFilter::default();
            let filter = match letter {
                "n" => ConnFilter { src_nat: to, ..none },
                "g" => ConnFilter { dst_nat: to, ..none },
                "ng" => ConnFilter { src_nat: to, dst_nat: Some(NatFilter::default()), ..none },
                _ => ConnFilter { any_nat: to, ..none },
            };
            (1..).zip(&all).filter(|(_, conn)| filter.admits(conn)).map(|(n, _): (u32, _)| n.to_string()).collect()
        };
        assert_eq!((found("n", ""), found("g", "")), ("145".into(), "24".into()));
        assert_eq!((found("j", ""), found("ng", "")), ("1245".into(), "4".into()));
        assert_eq!((found("n", "10.0.0.3"), found("n", "10.0.0.3:30")), ("14".into(), "1".into()));
        assert_eq!((found("n", "10.0.0.3:99"), found("g", "10.0.0.3")), (String::new(), String::new()));
        assert_eq!((found("j", "10.0.0.3"), found("j", "10.0.0.4:21")), ("14".into(), "2".into()));
        assert_eq!((found("n", "10.0.0.1"), found("n", "10.0.0.1:77")), (String::new(), String::new()), "the same");
        assert_eq!("[fd00::1]:80".parse::<NatFilter>().map(|it| it.port), Ok(Some(80)));
        for wrong in ["", "x", ":30", "10.0.0.0/8", "10.0.0.1:", "fd00::1:80:"] {
            assert!(wrong.parse::<NatFilter>().is_err(), "{wrong}");
        }
    }

    /// As conntrack 1.4.7 and Linux 6.18 have it: -w 6 does not find what has zone 6 in one direction only.
    #[test]
    fn zones_are_of_both_directions_or_of_one() {
        let tuple = |zone| TupleView { src: [10, 0, 0, 1].into(), dst: [10, 0, 0, 2].into(), sport: 1, dport: 2, zone };
        let conn = |original, reply| ConnView {
            family: 2,
            proto: proto::UDP,
            timeout: 29,
            state: None,
            gre_timeouts: None,
            original: tuple(original),
            reply: tuple(reply),
            counters: None,
            status: 0,
            mark: 0,
            helper: None,
            start: None,
            stop: None,
            id: 1,
        };
        let any = ConnFilter::default();
        let (both, original, reply) = (conn(5, 5), conn(6, 0), conn(0, 7));
        let found = |filter: ConnFilter| [both, original, reply].map(|conn| filter.admits(&conn));
        assert_eq!(found(ConnFilter { zone: Some(5), ..any }), [true, false, false]);
        assert_eq!(found(ConnFilter { zone: Some(6), ..any }), [false, false, false]);
        assert_eq!(found(ConnFilter { orig_zone: Some(6), ..any }), [false, true, false]);
        assert_eq!(found(ConnFilter { orig_zone: Some(5), ..any }), [false, false, false]);
        assert_eq!(found(ConnFilter { reply_zone: Some(7), ..any }), [false, false, true]);
    }

    #[test]
    fn networks_are_written_as_they_are_read() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "1.2.3.4/32",
            "10.9.0.1/255.0.255.0",
            "::/0",
            "fd00::1/128",
            "fd00::/0:0:0:ffff::",
        ] {
            let network: Network = text.parse().expect("a network");
            let again: Network = network.to_string().parse().expect("its own text");
            assert_eq!((network, network.to_string().split('/').next()), (again, text.split('/').next()));
            assert!(text.contains("ffff") || network.to_string() == text, "{network}");
        }
    }
}
