//! Typed rules back to text: what `iptables-save` (and `-c`) prints for the filter table.

use super::names;
use super::rule::{
    AddrMatch, BitMatch, Chain, IcmpMatch, InterfaceMatch, LogTarget, Match, MultiportMatch, MultiportSide, Policy,
    PortRange, Rule, Ruleset, Target, TcpMatch, log_flags,
};
use super::{Counter, RuleCounters};
use crate::wire::{Addr, Family};
use core::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The filter table as `iptables-save` prints it, without its comment lines. With `counters`, as `iptables-save -c`.
///
/// Loading the text again gives an equal ruleset.
pub fn save(ruleset: &Ruleset, counters: Option<&RuleCounters>) -> String {
    let mut out = String::from("*filter\n");
    for (index, chain) in ruleset.chains.iter().enumerate() {
        let policy = match chain.policy {
            None => "-",
            Some(Policy::Accept) => "ACCEPT",
            Some(Policy::Drop) => "DROP",
        };
        let counter = counters.and_then(|counters| counters.policy(index)).unwrap_or_default();
        push(&mut out, format_args!(":{} {policy} {}\n", chain.name, bracketed(counter)));
    }
    let mut number = 0;
    for chain in &ruleset.chains {
        for rule in &chain.rules {
            if let Some(counters) = counters {
                push(&mut out, format_args!("{} ", bracketed(counters.rule(number).unwrap_or_default())));
            }
            number += 1;
            save_rule(&mut out, ruleset.family, &chain.name, rule, &ruleset.chains);
        }
    }
    out.push_str("COMMIT\n");
    out
}

/// Writing to a `String` cannot fail.
fn push(out: &mut String, args: core::fmt::Arguments<'_>) {
    out.write_fmt(args).unwrap_or_default();
}

fn bracketed(counter: Counter) -> String {
    format!("[{}:{}]", counter.packets, counter.bytes)
}

const fn bang(invert: bool) -> &'static str {
    if invert { " !" } else { "" }
}

fn save_rule(out: &mut String, family: Family, chain: &str, rule: &Rule, chains: &[Chain]) {
    push(out, format_args!("-A {chain}"));
    save_address(out, "-s", &rule.src, family);
    save_address(out, "-d", &rule.dst, family);
    for (option, interface) in [("-i", &rule.in_interface), ("-o", &rule.out_interface)] {
        if let Some(InterfaceMatch { name, invert }) = interface {
            push(out, format_args!("{} {option} {}", bang(*invert), interface_text(name)));
        }
    }
    if let Some(matched) = rule.proto {
        push(out, format_args!("{} -p {}", bang(matched.invert), names::protocol_name(matched.number)));
    }
    if let Some(invert) = rule.fragment {
        push(out, format_args!("{} -f", bang(invert)));
    }
    for matched in &rule.matches {
        save_match(out, matched, family);
    }
    save_target(out, &rule.target, chains);
    out.push('\n');
}

/// An interface name is printed bare, as iptables does; one that would not read back so is quoted.
fn interface_text(name: &str) -> String {
    let plain = !name.contains([' ', '\t', '"']);
    if plain { name.to_owned() } else { quoted(name) }
}

fn save_address(out: &mut String, option: &str, matched: &Option<AddrMatch>, family: Family) {
    let Some(AddrMatch { net, mask, invert }) = matched else { return };
    push(out, format_args!("{} {option} {}/{}", bang(*invert), address_text(*net, family), mask_text(*mask, family)));
}

fn address_text(addr: Addr, family: Family) -> String {
    match family {
        Family::V4 => Ipv4Addr::from(addr.v4_bits()).to_string(),
        // As glibc's inet_ntop: an IPv4-compatible address ends in dotted form.
        Family::V6 if addr.bits() >> 32 == 0 && addr.bits() > 0xffff => {
            format!("::{}", Ipv4Addr::from(addr.bits() as u32))
        }
        Family::V6 => Ipv6Addr::from(addr.bits()).to_string(),
    }
}

/// The prefix length, or the mask itself when it is not contiguous.
fn mask_text(mask: Addr, family: Family) -> String {
    let bits = mask.bits() << (128 - u32::from(family.bits()));
    match bits.leading_ones() == bits.count_ones() {
        true => bits.count_ones().to_string(),
        false => address_text(mask, family),
    }
}

fn save_match(out: &mut String, matched: &Match, family: Family) {
    match matched {
        Match::Tcp(tcp) => save_tcp(out, tcp),
        Match::Udp(udp) => {
            out.push_str(" -m udp");
            save_ports(out, &udp.sport, &udp.dport);
        }
        Match::Icmp(icmp) => save_icmp(out, icmp, family),
        Match::State(asked) => {
            push(out, format_args!(" -m state{} --state {}", bang(asked.invert), words(names::STATES, asked.states)));
        }
        Match::Conntrack(asked) => {
            out.push_str(" -m conntrack");
            for (option, known, asked) in
                [("--ctstate", names::STATES, asked.state), ("--ctstatus", names::STATUSES, asked.status)]
            {
                if let Some(BitMatch { bits, invert }) = asked {
                    push(out, format_args!("{} {option} {}", bang(invert), words(known, bits)));
                }
            }
        }
        Match::Multiport(asked) => save_multiport(out, asked),
        Match::Limit(limit) => {
            push(out, format_args!(" -m limit --limit {}", limit.rate()));
            if limit.burst != super::limit::BURST_DEFAULT {
                push(out, format_args!(" --limit-burst {}", limit.burst));
            }
        }
        Match::Comment(text) => push(out, format_args!(" -m comment --comment {}", string_text(text))),
    }
}

fn save_tcp(out: &mut String, tcp: &TcpMatch) {
    out.push_str(" -m tcp");
    save_ports(out, &tcp.sport, &tcp.dport);
    if let Some(option) = tcp.option {
        push(out, format_args!("{} --tcp-option {}", bang(option.invert), option.kind));
    }
    if tcp.flags.mask != 0 || tcp.flags.comp != 0 || tcp.flags.invert {
        let (mask, comp) = (flag_words(tcp.flags.mask), flag_words(tcp.flags.comp));
        push(out, format_args!("{} --tcp-flags {mask} {comp}", bang(tcp.flags.invert)));
    }
}

fn save_ports(out: &mut String, sport: &PortRange, dport: &PortRange) {
    for (option, range) in [("--sport", sport), ("--dport", dport)] {
        if *range != PortRange::ANY {
            push(out, format_args!("{} {option} {}", bang(range.invert), range_text(range.low, range.high)));
        }
    }
}

fn range_text(low: u16, high: u16) -> String {
    if low == high { low.to_string() } else { format!("{low}:{high}") }
}

fn save_icmp(out: &mut String, icmp: &IcmpMatch, family: Family) {
    let (name, option) = match family {
        Family::V4 => ("icmp", "--icmp-type"),
        Family::V6 => ("icmp6", "--icmpv6-type"),
    };
    let kind = match (family, icmp.kind, icmp.code) {
        (Family::V4, 255, _) => "any".to_owned(),
        (_, kind, None) => kind.to_string(),
        (_, kind, Some(code)) => format!("{kind}/{code}"),
    };
    push(out, format_args!(" -m {name}{} {option} {kind}", bang(icmp.invert)));
}

fn save_multiport(out: &mut String, asked: &MultiportMatch) {
    let option = match asked.side {
        MultiportSide::Source => "--sports",
        MultiportSide::Destination => "--dports",
        MultiportSide::Either => "--ports",
    };
    let ports: Vec<String> = asked.ports.iter().map(|&(low, high)| range_text(low, high)).collect();
    push(out, format_args!(" -m multiport{} {option} {}", bang(asked.invert), ports.join(",")));
}

fn save_target(out: &mut String, target: &Target, chains: &[Chain]) {
    match target {
        Target::Count => {}
        Target::Accept => out.push_str(" -j ACCEPT"),
        Target::Drop => out.push_str(" -j DROP"),
        Target::Return => out.push_str(" -j RETURN"),
        Target::Reject(with) => push(out, format_args!(" -j REJECT --reject-with {}", with.name())),
        Target::Jump(chain) => push(out, format_args!(" -j {}", chains[*chain].name)),
        Target::Goto(chain) => push(out, format_args!(" -g {}", chains[*chain].name)),
        Target::Log(log) => save_log(out, log),
    }
}

fn save_log(out: &mut String, log: &LogTarget) {
    out.push_str(" -j LOG");
    if !log.prefix.is_empty() {
        push(out, format_args!(" --log-prefix {}", string_text(&log.prefix)));
    }
    if log.level != 4 {
        push(out, format_args!(" --log-level {}", log.level));
    }
    for (flag, option) in [
        (log_flags::TCP_SEQUENCE, " --log-tcp-sequence"),
        (log_flags::TCP_OPTIONS, " --log-tcp-options"),
        (log_flags::IP_OPTIONS, " --log-ip-options"),
        (log_flags::UID, " --log-uid"),
        (log_flags::MACDECODE, " --log-macdecode"),
    ] {
        if log.flags & flag != 0 {
            out.push_str(option);
        }
    }
}

/// Names of the bits that are set; the name of no bit when none is.
fn words(known: &[(&str, u16)], bits: u16) -> String {
    let set: Vec<&str> = known.iter().filter(|entry| entry.1 & bits != 0).map(|entry| entry.0).collect();
    if set.is_empty() { "NONE".to_owned() } else { set.join(",") }
}

fn flag_words(flags: u8) -> String {
    let set: Vec<&str> = names::TCP_FLAGS.iter().filter(|entry| entry.1 & flags != 0).map(|entry| entry.0).collect();
    if set.is_empty() { "NONE".to_owned() } else { set.join(",") }
}

/// A string argument: quoted unless all of it is letters, digits, `_` and `-` (`xtables_save_string`).
fn string_text(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match !text.is_empty() && text.bytes().all(plain) {
        true => text.to_owned(),
        false => quoted(text),
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        if matches!(c, '"' | '\'' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}
