//! The words of `iptables` and their numbers: protocols, services, ICMP types, TCP flags, states, log levels, reject types.
//!
//! Constant tables and look-ups, nothing else. `iptables-save` prints mostly numbers; names are for files written by hand.

use super::matches::state;
use super::targets::RejectWith;
use crate::wire::{Family, tcp};

/// Protocols by the name `iptables-save` prints (Debian's /etc/protocols, which has no number twice).
const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ggp", 3),
    ("ipencap", 4),
    ("st", 5),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("pup", 12),
    ("udp", 17),
    ("hmp", 20),
    ("xns-idp", 22),
    ("rdp", 27),
    ("iso-tp4", 29),
    ("dccp", 33),
    ("xtp", 36),
    ("ddp", 37),
    ("idpr-cmtp", 38),
    ("ipv6", 41),
    ("ipv6-route", 43),
    ("ipv6-frag", 44),
    ("idrp", 45),
    ("rsvp", 46),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("skip", 57),
    ("ipv6-icmp", 58),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("rspf", 73),
    ("vmtp", 81),
    ("eigrp", 88),
    ("ospf", 89),
    ("ax.25", 93),
    ("ipip", 94),
    ("etherip", 97),
    ("encap", 98),
    ("pim", 103),
    ("ipcomp", 108),
    ("vrrp", 112),
    ("l2tp", 115),
    ("isis", 124),
    ("sctp", 132),
    ("fc", 133),
    ("mobility-header", 135),
    ("udplite", 136),
    ("mpls-in-ip", 137),
    ("manet", 138),
    ("hip", 139),
    ("shim6", 140),
    ("wesp", 141),
    ("rohc", 142),
    ("ethernet", 143),
];

/// Names that are read but never printed. `all`, `ip` and `hopopt` are 0: any protocol.
const PROTOCOL_ALIASES: &[(&str, u8)] =
    &[("all", 0), ("ip", 0), ("hopopt", 0), ("icmpv6", 58), ("mh", 135), ("ipv6-mh", 135), ("ospfigp", 89)];

/// The protocol's number, by name (any case).
pub(super) fn protocol_number(name: &str) -> Option<u8> {
    let name = name.to_ascii_lowercase();
    PROTOCOLS.iter().chain(PROTOCOL_ALIASES).find(|entry| entry.0 == name).map(|entry| entry.1)
}

/// The protocol as `iptables-save` prints it: its name, or its number when it has none.
pub(super) fn protocol_name(number: u8) -> String {
    PROTOCOLS.iter().find(|entry| entry.1 == number).map_or_else(|| number.to_string(), |entry| entry.0.to_owned())
}

/// All protocol names.
pub(super) fn protocol_names() -> impl Iterator<Item = &'static str> {
    PROTOCOLS.iter().chain(PROTOCOL_ALIASES).map(|entry| entry.0)
}

/// Services that people write by name; the same number for TCP and UDP. /etc/services is not read, so that a file means
/// the same on every machine.
const SERVICES: &[(&str, u16)] = &[
    ("ftp-data", 20),
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("time", 37),
    ("whois", 43),
    ("domain", 53),
    ("bootps", 67),
    ("bootpc", 68),
    ("tftp", 69),
    ("gopher", 70),
    ("finger", 79),
    ("http", 80),
    ("www", 80),
    ("kerberos", 88),
    ("pop3", 110),
    ("sunrpc", 111),
    ("auth", 113),
    ("nntp", 119),
    ("ntp", 123),
    ("netbios-ns", 137),
    ("netbios-dgm", 138),
    ("netbios-ssn", 139),
    ("imap2", 143),
    ("snmp", 161),
    ("snmp-trap", 162),
    ("bgp", 179),
    ("ldap", 389),
    ("https", 443),
    ("microsoft-ds", 445),
    ("submissions", 465),
    ("isakmp", 500),
    ("syslog", 514),
    ("ipp", 631),
    ("ldaps", 636),
    ("submission", 587),
    ("rsync", 873),
    ("ftps", 990),
    ("imaps", 993),
    ("pop3s", 995),
    ("openvpn", 1194),
    ("ms-sql-s", 1433),
    ("l2f", 1701),
    ("radius", 1812),
    ("nfs", 2049),
    ("mysql", 3306),
    ("ms-wbt-server", 3389),
    ("ipsec-nat-t", 4500),
    ("sip", 5060),
    ("sip-tls", 5061),
    ("mdns", 5353),
    ("postgresql", 5432),
    ("http-alt", 8080),
];

/// The port of a service, by name.
pub(super) fn service_port(name: &str) -> Option<u16> {
    SERVICES.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
}

/// All service names.
pub(super) fn service_names() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|entry| entry.0)
}

/// An ICMP type by name: name, type, code (`None` for every code).
type IcmpName = (&'static str, u8, Option<u8>);

/// ICMP types that `--icmp-type` knows (iptables' libxt_icmp.h).
pub(super) const ICMP: &[IcmpName] = &[
    ("any", 255, None),
    ("echo-reply", 0, None),
    ("pong", 0, None),
    ("destination-unreachable", 3, None),
    ("network-unreachable", 3, Some(0)),
    ("host-unreachable", 3, Some(1)),
    ("protocol-unreachable", 3, Some(2)),
    ("port-unreachable", 3, Some(3)),
    ("fragmentation-needed", 3, Some(4)),
    ("source-route-failed", 3, Some(5)),
    ("network-unknown", 3, Some(6)),
    ("host-unknown", 3, Some(7)),
    ("network-prohibited", 3, Some(9)),
    ("host-prohibited", 3, Some(10)),
    ("TOS-network-unreachable", 3, Some(11)),
    ("TOS-host-unreachable", 3, Some(12)),
    ("communication-prohibited", 3, Some(13)),
    ("host-precedence-violation", 3, Some(14)),
    ("precedence-cutoff", 3, Some(15)),
    ("source-quench", 4, None),
    ("redirect", 5, None),
    ("network-redirect", 5, Some(0)),
    ("host-redirect", 5, Some(1)),
    ("TOS-network-redirect", 5, Some(2)),
    ("TOS-host-redirect", 5, Some(3)),
    ("echo-request", 8, None),
    ("ping", 8, None),
    ("router-advertisement", 9, None),
    ("router-solicitation", 10, None),
    ("time-exceeded", 11, None),
    ("ttl-exceeded", 11, None),
    ("ttl-zero-during-transit", 11, Some(0)),
    ("ttl-zero-during-reassembly", 11, Some(1)),
    ("parameter-problem", 12, None),
    ("ip-header-bad", 12, Some(0)),
    ("required-option-missing", 12, Some(1)),
    ("timestamp-request", 13, None),
    ("timestamp-reply", 14, None),
    ("address-mask-request", 17, None),
    ("address-mask-reply", 18, None),
];

/// ICMPv6 types that `--icmpv6-type` knows (iptables' libxt_icmp.h).
pub(super) const ICMPV6: &[IcmpName] = &[
    ("destination-unreachable", 1, None),
    ("no-route", 1, Some(0)),
    ("communication-prohibited", 1, Some(1)),
    ("beyond-scope", 1, Some(2)),
    ("address-unreachable", 1, Some(3)),
    ("port-unreachable", 1, Some(4)),
    ("failed-policy", 1, Some(5)),
    ("reject-route", 1, Some(6)),
    ("packet-too-big", 2, None),
    ("time-exceeded", 3, None),
    ("ttl-exceeded", 3, None),
    ("ttl-zero-during-transit", 3, Some(0)),
    ("ttl-zero-during-reassembly", 3, Some(1)),
    ("parameter-problem", 4, None),
    ("bad-header", 4, Some(0)),
    ("unknown-header-type", 4, Some(1)),
    ("unknown-option", 4, Some(2)),
    ("echo-request", 128, None),
    ("ping", 128, None),
    ("echo-reply", 129, None),
    ("pong", 129, None),
    ("router-solicitation", 133, None),
    ("router-advertisement", 134, None),
    ("neighbour-solicitation", 135, None),
    ("neighbor-solicitation", 135, None),
    ("neighbour-advertisement", 136, None),
    ("neighbor-advertisement", 136, None),
    ("redirect", 137, None),
];

/// The family's ICMP names.
pub(super) const fn icmp_names(family: Family) -> &'static [IcmpName] {
    match family {
        Family::V4 => ICMP,
        Family::V6 => ICMPV6,
    }
}

/// TCP flags by name, in the order `iptables-save` prints them. `--tcp-flags` knows no ECE and CWR.
pub(super) const TCP_FLAGS: &[(&str, u8)] =
    &[("FIN", tcp::FIN), ("SYN", tcp::SYN), ("RST", tcp::RST), ("PSH", tcp::PSH), ("ACK", tcp::ACK), ("URG", tcp::URG)];

/// The six flags of `ALL`.
pub(super) const TCP_FLAGS_ALL: u8 = tcp::FIN | tcp::SYN | tcp::RST | tcp::PSH | tcp::ACK | tcp::URG;

/// States by name, in the order `iptables-save` prints them. SNAT and DNAT are `--ctstate`'s alone.
pub(super) const STATES: &[(&str, u16)] = &[
    ("INVALID", state::INVALID),
    ("NEW", state::NEW),
    ("RELATED", state::RELATED),
    ("ESTABLISHED", state::ESTABLISHED),
    ("UNTRACKED", state::UNTRACKED),
    ("SNAT", state::SNAT),
    ("DNAT", state::DNAT),
];

/// Connection status words of `--ctstatus`, in the order `iptables-save` prints them.
pub(super) const STATUSES: &[(&str, u16)] =
    &[("EXPECTED", 1), ("SEEN_REPLY", 2), ("ASSURED", 4), ("CONFIRMED", 8), ("NONE", 0)];

/// Syslog levels by name.
pub(super) const LOG_LEVELS: &[(&str, u8)] = &[
    ("emerg", 0),
    ("panic", 0),
    ("alert", 1),
    ("crit", 2),
    ("error", 3),
    ("err", 3),
    ("warning", 4),
    ("notice", 5),
    ("info", 6),
    ("debug", 7),
];

/// `--reject-with` of IPv4: name, short name, value.
pub(super) const REJECT_V4: &[(&str, &str, RejectWith)] = &[
    ("icmp-net-unreachable", "net-unreach", RejectWith::IcmpNetUnreachable),
    ("icmp-host-unreachable", "host-unreach", RejectWith::IcmpHostUnreachable),
    ("icmp-proto-unreachable", "proto-unreach", RejectWith::IcmpProtoUnreachable),
    ("icmp-port-unreachable", "port-unreach", RejectWith::IcmpPortUnreachable),
    ("icmp-net-prohibited", "net-prohib", RejectWith::IcmpNetProhibited),
    ("icmp-host-prohibited", "host-prohib", RejectWith::IcmpHostProhibited),
    ("tcp-reset", "tcp-rst", RejectWith::TcpReset),
    ("icmp-admin-prohibited", "admin-prohib", RejectWith::IcmpAdminProhibited),
];

/// `--reject-with` of IPv6: name, short name, value.
pub(super) const REJECT_V6: &[(&str, &str, RejectWith)] = &[
    ("icmp6-no-route", "no-route", RejectWith::Icmp6NoRoute),
    ("icmp6-adm-prohibited", "adm-prohibited", RejectWith::Icmp6AdmProhibited),
    ("icmp6-addr-unreachable", "addr-unreach", RejectWith::Icmp6AddrUnreachable),
    ("icmp6-port-unreachable", "port-unreach", RejectWith::Icmp6PortUnreachable),
    ("tcp-reset", "tcp-reset", RejectWith::TcpReset),
    ("icmp6-policy-fail", "policy-fail", RejectWith::Icmp6PolicyFail),
    ("icmp6-reject-route", "reject-route", RejectWith::Icmp6RejectRoute),
];

/// The family's reject types.
pub(super) const fn reject_names(family: Family) -> &'static [(&'static str, &'static str, RejectWith)] {
    match family {
        Family::V4 => REJECT_V4,
        Family::V6 => REJECT_V6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_names_round_trip() {
        for number in 1..=255u8 {
            let name = protocol_name(number);
            assert_eq!(name.parse().ok().or_else(|| protocol_number(&name)), Some(number));
        }
        assert_eq!(
            (protocol_number("TCP"), protocol_number("all"), protocol_number("bogus")),
            (Some(6), Some(0), None)
        );
    }

    #[test]
    fn reject_names_are_unique_per_family() {
        for family in [Family::V4, Family::V6] {
            for &(name, _, with) in reject_names(family) {
                assert_eq!(with.name(), name);
                assert_eq!(with.icmp().is_none(), with == RejectWith::TcpReset);
            }
        }
    }
}
