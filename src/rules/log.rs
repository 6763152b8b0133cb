//! Log lines: [`LogRequest`] on the packet path, [`LogRecord`] to carry it off, [`log_line`] to write it as the kernel does.
//!
//! A LOG rule calls back with a request that borrows the packet. The worker copies what is needed into a record of fixed
//! size (no allocation), passes it through a ring, and the control side turns it into text (nf_log_syslog.c, field by
//! field; every field is followed by one blank, so the line ends with one).

use super::context::Context;
use super::targets::{LogTarget, TRACE_LOG, TraceEvent, log_flags};
use crate::device::PortId;
use crate::wire::{Addr, Family, ethernet, get_u16, get_u32, icmp, icmpv6, ipv4, ipv6, proto, tcp};
use core::fmt::{self, Write};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

/// How much of a packet a record keeps, from the IP header on. Two full IPv4 headers with options, ICMP and TCP are 188.
const SNAP_LEN: usize = 320;
/// Room for a prefix. A LOG rule's has 29 bytes; that of a traced packet names table, chain and rule.
const PREFIX_ROOM: usize = 64;

/// A LOG rule matched.
#[derive(Clone, Copy, Debug)]
pub struct LogRequest<'a> {
    /// The rule's target.
    pub log: &'a LogTarget,
    /// The packet and where it goes.
    pub context: &'a Context<'a>,
}

/// What is needed to write the line later: plain bytes, no reference.
#[derive(Clone)]
pub struct LogRecord {
    prefix: [u8; PREFIX_ROOM],
    prefix_len: u8,
    /// Syslog level, 0 (emerg) to 7 (debug).
    pub level: u8,
    flags: u8,
    family: Family,
    in_port: PortId,
    out_port: Option<PortId>,
    /// The packet's mark; printed unless 0.
    mark: u32,
    ethernet: [u8; ethernet::HEADER_LEN],
    /// Bytes of `bytes` in use.
    kept: u16,
    /// Length of the IP packet.
    length: u16,
    bytes: [u8; SNAP_LEN],
    /// `bytes` are a line of the router's own, and there is no packet.
    is_line: bool,
}

impl fmt::Debug for LogRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogRecord({:?}, {} bytes)", self.family, self.length)
    }
}

impl LogRecord {
    /// Copies what the line needs. The copied header has the TTL the rules saw.
    pub fn new(request: &LogRequest<'_>) -> LogRecord {
        let Context { ref packet, ref frame, in_port, out_port, mark, .. } = *request.context;
        let ip = packet.l3_bytes(frame);
        let kept = ip.len().min(SNAP_LEN);
        let prefix = request.log.prefix.as_bytes();
        let prefix_len = prefix.len().min(PREFIX_ROOM);
        let mut record = LogRecord {
            prefix: [0; PREFIX_ROOM],
            prefix_len: prefix_len as u8,
            level: request.log.level,
            flags: request.log.flags,
            family: packet.family,
            in_port,
            out_port,
            mark,
            ethernet: [0; ethernet::HEADER_LEN],
            kept: kept as u16,
            length: packet.l3_len,
            bytes: [0; SNAP_LEN],
            is_line: false,
        };
        record.prefix[..prefix_len].copy_from_slice(&prefix[..prefix_len]);
        record.bytes[..kept].copy_from_slice(&ip[..kept]);
        let ttl_at = match packet.family {
            Family::V4 => ipv4::TTL_AT,
            Family::V6 => ipv6::HOP_LIMIT_AT,
        };
        record.bytes[ttl_at] = packet.ttl;
        if let Some(header) = frame.first_chunk() {
            record.ethernet = *header;
        }
        record
    }

    /// The line of a traced packet's step.
    pub fn traced(event: &TraceEvent<'_>) -> LogRecord {
        let mut record = LogRecord::new(&LogRequest { log: &TRACE_LOG, context: event.context });
        let mut room = &mut record.prefix[..];
        // The longest chain's name leaves room for any number of rules; what would not fit is cut.
        let _ = io::Write::write_fmt(&mut room, format_args!("{event}"));
        record.prefix_len = (PREFIX_ROOM - room.len()) as u8;
        record
    }

    /// A line that the router itself has to say, cut where there is no room for more.
    pub fn line(level: u8, text: fmt::Arguments<'_>) -> LogRecord {
        let mut bytes = [0; SNAP_LEN];
        let mut room = &mut bytes[..];
        let _ = io::Write::write_fmt(&mut room, text);
        let kept = (SNAP_LEN - room.len()) as u16;
        LogRecord {
            prefix: [0; PREFIX_ROOM],
            prefix_len: 0,
            level,
            flags: 0,
            family: Family::V4,
            in_port: PortId::LAN,
            out_port: None,
            mark: 0,
            ethernet: [0; ethernet::HEADER_LEN],
            kept,
            length: 0,
            bytes,
            is_line: true,
        }
    }
}

/// The line as the kernel writes it (level apart, which is [`LogRecord::level`]): `ports` are interface names by port.
pub fn log_line(record: &LogRecord, ports: &[&str]) -> String {
    if record.is_line {
        return String::from_utf8_lossy(&record.bytes[..usize::from(record.kept)]).into_owned();
    }
    let name = |port: PortId| ports.get(port.index()).copied().unwrap_or_default();
    let prefix = String::from_utf8_lossy(&record.prefix[..usize::from(record.prefix_len)]);
    let out = record.out_port.map_or("", name);
    let mut line = format!("{prefix}IN={} OUT={out} ", name(record.in_port));
    dump_mac(&mut line, record);
    let view = View {
        bytes: &record.bytes[..usize::from(record.kept)],
        length: usize::from(record.length),
        flags: record.flags,
    };
    match record.family {
        Family::V4 => dump_ipv4(&mut line, &view, 0, false),
        Family::V6 => dump_ipv6(&mut line, &view, 0, false),
    }
    if record.mark != 0 {
        put(&mut line, format_args!("MARK={:#x} ", record.mark));
    }
    line
}

/// Writing to a `String` cannot fail.
fn put(line: &mut String, args: fmt::Arguments<'_>) {
    line.write_fmt(args).unwrap_or_default();
}

/// `dump_mac_header`.
fn dump_mac(line: &mut String, record: &LogRecord) {
    let header = &record.ethernet;
    if record.flags & log_flags::MACDECODE != 0 {
        let (source, destination) = (ethernet::source(header), ethernet::destination(header));
        let kind = ethernet::ethertype(header);
        return put(line, format_args!("MACSRC={source} MACDST={destination} MACPROTO={kind:04x} "));
    }
    let bytes: Vec<String> = header.iter().map(|byte| format!("{byte:02x}")).collect();
    put(line, format_args!("MAC={} ", bytes.join(":")));
}

/// The packet as far as it was kept.
struct View<'a> {
    bytes: &'a [u8],
    length: usize,
    flags: u8,
}

impl View<'_> {
    /// `wanted` bytes at `at`, if they are there (`skb_header_pointer`).
    fn get(&self, at: usize, wanted: usize) -> Option<&[u8]> {
        self.bytes.get(at..at + wanted)
    }

    /// As `get`, with the `INCOMPLETE` word in their place.
    fn header(&self, line: &mut String, at: usize, wanted: usize) -> Option<&[u8]> {
        let found = self.get(at, wanted);
        if found.is_none() {
            self.incomplete(line, at);
        }
        found
    }

    fn incomplete(&self, line: &mut String, at: usize) {
        // Where the header lies beyond the packet the kernel's unsigned difference wraps; so does ours.
        put(line, format_args!("INCOMPLETE [{} bytes] ", (self.length as u32).wrapping_sub(at as u32)));
    }

    fn asks(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// `dump_ipv4_packet`. `inner` is a packet quoted by an ICMP error.
fn dump_ipv4(line: &mut String, view: &View<'_>, at: usize, inner: bool) {
    let Some(ip) = view.get(at, ipv4::HEADER_LEN) else { return line.push_str("TRUNCATED") };
    let (source, destination) = (Ipv4Addr::from(get_u32(ip, 12)), Ipv4Addr::from(get_u32(ip, 16)));
    put(line, format_args!("SRC={source} DST={destination} "));
    let tos = ipv4::tos(ip);
    put(line, format_args!("LEN={} TOS=0x{:02X} PREC=0x{:02X} ", ipv4::total_len(ip), tos & 0x1e, tos & 0xe0));
    put(line, format_args!("TTL={} ID={} ", ipv4::ttl(ip), ipv4::id(ip)));
    let word = ipv4::flags_offset(ip);
    for (bit, name) in [(0x8000, "CE "), (ipv4::DF, "DF "), (ipv4::MF, "MF ")] {
        if word & bit != 0 {
            line.push_str(name);
        }
    }
    let fragment = word & ipv4::OFFSET_MASK;
    if fragment != 0 {
        put(line, format_args!("FRAG:{fragment} "));
    }
    let header_len = ipv4::header_len(ip);
    if view.asks(log_flags::IP_OPTIONS) && header_len > ipv4::HEADER_LEN {
        let options = view.get(at + ipv4::HEADER_LEN, header_len - ipv4::HEADER_LEN);
        let Some(options) = options else { return line.push_str("TRUNCATED") };
        dump_options(line, options);
    }
    let l4 = Transport { at: at + header_len, fragment: fragment != 0 };
    match ipv4::protocol(ip) {
        proto::TCP => dump_tcp(line, view, &l4),
        proto::UDP => dump_udp(line, view, &l4, "UDP"),
        proto::UDPLITE => dump_udp(line, view, &l4, "UDPLITE"),
        proto::ICMP => dump_icmp(line, view, &l4, inner),
        // A later fragment of these two is not even named.
        proto::AH | proto::ESP if l4.fragment => {}
        proto::AH => dump_ipsec(line, view, &l4, "AH", (4, 12)),
        proto::ESP => dump_ipsec(line, view, &l4, "ESP", (0, 8)),
        number => put(line, format_args!("PROTO={number} ")),
    }
}

fn dump_options(line: &mut String, options: &[u8]) {
    line.push_str("OPT (");
    options.iter().for_each(|byte| put(line, format_args!("{byte:02X}")));
    line.push_str(") ");
}

/// A transport header's place.
struct Transport {
    at: usize,
    /// Whether this is not the first fragment.
    fragment: bool,
}

/// `nf_log_dump_tcp_header`.
fn dump_tcp(line: &mut String, view: &View<'_>, l4: &Transport) {
    line.push_str("PROTO=TCP ");
    if l4.fragment {
        return;
    }
    let Some(header) = view.header(line, l4.at, tcp::HEADER_LEN) else { return };
    put(line, format_args!("SPT={} DPT={} ", get_u16(header, 0), get_u16(header, 2)));
    if view.asks(log_flags::TCP_SEQUENCE) {
        put(line, format_args!("SEQ={} ACK={} ", tcp::seq(header), tcp::ack(header)));
    }
    // The reserved bits, shifted as the kernel shifts them. The last of the four became a flag, AE (RFC 9768), and Linux
    // 6.18 names it so; older kernels still count it among the reserved.
    put(line, format_args!("WINDOW={} RES=0x{:02x} ", tcp::window(header), (header[12] & 0x0e) << 2));
    if header[12] & 1 != 0 {
        line.push_str("AE ");
    }
    let flags = tcp::flags(header);
    for (bit, name) in [
        (tcp::CWR, "CWR "),
        (tcp::ECE, "ECE "),
        (tcp::URG, "URG "),
        (tcp::ACK, "ACK "),
        (tcp::PSH, "PSH "),
        (tcp::RST, "RST "),
        (tcp::SYN, "SYN "),
        (tcp::FIN, "FIN "),
    ] {
        if flags & bit != 0 {
            line.push_str(name);
        }
    }
    put(line, format_args!("URGP={} ", get_u16(header, 18)));
    let header_len = tcp::header_len(header);
    if view.asks(log_flags::TCP_OPTIONS) && header_len > tcp::HEADER_LEN {
        match view.bytes.get(l4.at + tcp::HEADER_LEN..l4.at + header_len) {
            Some(options) => dump_options(line, options),
            None => line.push_str("OPT (TRUNCATED)"),
        }
    }
}

/// `nf_log_dump_udp_header`.
fn dump_udp(line: &mut String, view: &View<'_>, l4: &Transport, name: &str) {
    put(line, format_args!("PROTO={name} "));
    if l4.fragment {
        return;
    }
    let Some(header) = view.header(line, l4.at, 8) else { return };
    put(line, format_args!("SPT={} DPT={} LEN={} ", get_u16(header, 0), get_u16(header, 2), get_u16(header, 4)));
}

/// AH, ESP: where the SPI is, and how much of the header must be there.
fn dump_ipsec(line: &mut String, view: &View<'_>, l4: &Transport, name: &str, (spi_at, wanted): (usize, usize)) {
    put(line, format_args!("PROTO={name} "));
    let Some(header) = view.header(line, l4.at, wanted) else { return };
    put(line, format_args!("SPI=0x{:x} ", get_u32(header, spi_at)));
}

/// The ICMP part of `dump_ipv4_packet`.
fn dump_icmp(line: &mut String, view: &View<'_>, l4: &Transport, inner: bool) {
    line.push_str("PROTO=ICMP ");
    if l4.fragment {
        return;
    }
    let Some(header) = view.header(line, l4.at, icmp::HEADER_LEN) else { return };
    let (kind, code) = (header[0], header[1]);
    put(line, format_args!("TYPE={kind} CODE={code} "));
    let needs = match kind {
        _ if icmp::is_error(kind) => icmp::HEADER_LEN + ipv4::HEADER_LEN,
        icmp::TIMESTAMP_REQUEST | icmp::TIMESTAMP_REPLY => 20,
        icmp::MASK_REQUEST | icmp::MASK_REPLY => 12,
        _ => 0,
    };
    if view.length.saturating_sub(l4.at) < needs {
        return view.incomplete(line, l4.at);
    }
    match kind {
        icmp::ECHO_REPLY | icmp::ECHO_REQUEST => {
            put(line, format_args!("ID={} SEQ={} ", get_u16(header, 4), get_u16(header, 6)));
        }
        icmp::PARAMETER_PROBLEM => put(line, format_args!("PARAMETER={} ", header[4])),
        icmp::REDIRECT | icmp::DEST_UNREACHABLE | icmp::SOURCE_QUENCH | icmp::TIME_EXCEEDED => {
            if kind == icmp::REDIRECT {
                put(line, format_args!("GATEWAY={} ", Ipv4Addr::from(get_u32(header, 4))));
            }
            if !inner {
                line.push('[');
                dump_ipv4(line, view, l4.at + icmp::HEADER_LEN, true);
                line.push_str("] ");
            }
            if kind == icmp::DEST_UNREACHABLE && code == icmp::CODE_FRAG_NEEDED {
                put(line, format_args!("MTU={} ", get_u16(header, 6)));
            }
        }
        _ => {}
    }
}

/// All eight groups, four digits each (`%pI6`).
fn full_v6(addr: Addr) -> String {
    let groups: Vec<String> =
        Ipv6Addr::from(addr.bits()).segments().iter().map(|group| format!("{group:04x}")).collect();
    groups.join(":")
}

/// `dump_ipv6_packet`. `inner` is a packet quoted by an ICMPv6 error.
fn dump_ipv6(line: &mut String, view: &View<'_>, at: usize, inner: bool) {
    let Some(ip) = view.get(at, ipv6::HEADER_LEN) else { return line.push_str("TRUNCATED") };
    put(line, format_args!("SRC={} DST={} ", full_v6(ipv6::src(ip)), full_v6(ipv6::dst(ip))));
    let length = usize::from(ipv6::payload_len(ip)) + ipv6::HEADER_LEN;
    let (class, hops) = (ipv6::traffic_class(ip), ipv6::hop_limit(ip));
    put(line, format_args!("LEN={length} TC={class} HOPLIMIT={hops} FLOWLBL={} ", ipv6::flow_label(ip)));
    let mut next = ipv6::next_header(ip);
    let mut l4 = Transport { at: at + ipv6::HEADER_LEN, fragment: false };
    while is_extension_header(next) {
        let Some(header) = view.get(l4.at, 2) else { return line.push_str("TRUNCATED") };
        let Some(length) = dump_extension_header(line, view, &mut l4, next, header[1]) else { return };
        next = header[0];
        l4.at += length;
    }
    match next {
        proto::TCP => dump_tcp(line, view, &l4),
        proto::UDP => dump_udp(line, view, &l4, "UDP"),
        proto::UDPLITE => dump_udp(line, view, &l4, "UDPLITE"),
        proto::ICMPV6 => dump_icmpv6(line, view, &l4, inner),
        number => put(line, format_args!("PROTO={number} ")),
    }
}

/// `nf_ip6_ext_hdr`, less the header that says there is none.
const fn is_extension_header(number: u8) -> bool {
    matches!(
        number,
        proto::HOP_BY_HOP | proto::ROUTING | proto::FRAGMENT | proto::ESP | proto::AH | proto::DEST_OPTIONS
    )
}

/// One extension header, whose second byte is `second`. Its length, or `None` where the kernel stops.
fn dump_extension_header(
    line: &mut String,
    view: &View<'_>,
    l4: &mut Transport,
    kind: u8,
    second: u8,
) -> Option<usize> {
    let options = view.asks(log_flags::IP_OPTIONS);
    let close = if options { ")" } else { "" };
    if options {
        line.push_str("OPT ( ");
    }
    let length = match kind {
        proto::FRAGMENT => {
            line.push_str("FRAG:");
            let Some(header) = view.get(l4.at, 8) else {
                line.push_str("TRUNCATED ");
                return None;
            };
            let word = get_u16(header, 2);
            let more = if word & 1 != 0 { "INCOMPLETE " } else { "" };
            put(line, format_args!("{} {more}ID:{:08x} ", word & 0xfff8, get_u32(header, 4)));
            l4.fragment |= word & 0xfff8 != 0;
            8
        }
        // Without --log-ip-options an ESP packet ends here, unnamed.
        proto::AH | proto::ESP => {
            let (name, spi_at, wanted) = if kind == proto::AH { ("AH", 4, 12) } else { ("ESP", 0, 8) };
            if options {
                put(line, format_args!("{name} "));
                if l4.fragment {
                    line.push_str(close);
                    return None;
                }
                let Some(header) = view.header(line, l4.at, wanted) else {
                    line.push_str(close);
                    return None;
                };
                put(line, format_args!("SPI=0x{:x} ", get_u32(header, spi_at)));
            }
            if kind == proto::ESP {
                line.push_str(close);
                return None;
            }
            usize::from(second) * 4 + 8
        }
        _ if l4.fragment => {
            line.push_str(close);
            return None;
        }
        _ => usize::from(second) * 8 + 8,
    };
    if options {
        line.push_str(") ");
    }
    Some(length)
}

/// The ICMPv6 part of `dump_ipv6_packet`.
fn dump_icmpv6(line: &mut String, view: &View<'_>, l4: &Transport, inner: bool) {
    line.push_str("PROTO=ICMPv6 ");
    if l4.fragment {
        return;
    }
    let Some(header) = view.header(line, l4.at, icmpv6::HEADER_LEN) else { return };
    let kind = header[0];
    put(line, format_args!("TYPE={kind} CODE={} ", header[1]));
    match kind {
        icmpv6::ECHO_REQUEST | icmpv6::ECHO_REPLY => {
            put(line, format_args!("ID={} SEQ={} ", get_u16(header, 4), get_u16(header, 6)));
        }
        icmpv6::PARAMETER_PROBLEM | icmpv6::DEST_UNREACHABLE | icmpv6::PACKET_TOO_BIG | icmpv6::TIME_EXCEEDED => {
            if kind == icmpv6::PARAMETER_PROBLEM {
                put(line, format_args!("POINTER={:08x} ", get_u32(header, 4)));
            }
            if !inner {
                line.push('[');
                dump_ipv6(line, view, l4.at + icmpv6::HEADER_LEN, true);
                line.push_str("] ");
            }
            if kind == icmpv6::PACKET_TOO_BIG {
                put(line, format_args!("MTU={} ", get_u32(header, 4)));
            }
        }
        _ => {}
    }
}
