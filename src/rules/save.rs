//! Typed rules back to text: what `iptables-save` (and `-c`) prints.

use super::matches::PortRange;
use super::names;
use super::rule::{AddrMatch, Chain, InterfaceMatch, Policy, Rule, Ruleset, TableName};
use super::targets::Target;
use super::{Counter, RuleCounters};
use crate::wire::{Addr, Family};
use core::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

/// All tables as `iptables-save` prints them, without its comment lines. With `counters`, as `iptables-save -c`.
///
/// Loading the text again gives an equal ruleset.
pub fn save(ruleset: &Ruleset, counters: Option<&RuleCounters>) -> String {
    ruleset.tables.iter().map(|&table| save_table(ruleset, table, counters)).collect()
}

/// One table of it.
pub fn save_table(ruleset: &Ruleset, table: TableName, counters: Option<&RuleCounters>) -> String {
    let mut out = format!("*{}\n", table.name());
    for (index, chain) in ruleset.chains_of(table) {
        let policy = match chain.policy {
            None => "-",
            Some(Policy::Accept) => "ACCEPT",
            Some(Policy::Drop) => "DROP",
        };
        let counter = counters.and_then(|counters| counters.policy(index)).unwrap_or_default();
        push(&mut out, format_args!(":{} {policy} {}\n", chain.name, bracketed(counter)));
    }
    let counter_of = ruleset.first_counters();
    for (index, chain) in ruleset.chains_of(table) {
        let first = counter_of[index];
        for (number, rule) in chain.rules.iter().enumerate() {
            if let Some(counters) = counters {
                push(&mut out, format_args!("{} ", bracketed(counters.rule(first + number).unwrap_or_default())));
            }
            out.push_str(&rule_text(ruleset.family, &chain.name, rule, &ruleset.chains));
            out.push('\n');
        }
    }
    out.push_str("COMMIT\n");
    out
}

/// One rule as `iptables-save` prints it, without its counters.
pub fn rule_text(family: Family, chain: &str, rule: &Rule, chains: &[Chain]) -> String {
    let mut out = String::new();
    save_rule(&mut out, family, chain, rule, chains);
    out
}

/// The words of a command line as a line of a rules file.
pub fn line_text<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    words.into_iter().map(word_text).collect::<Vec<_>>().join(" ")
}

/// Writing to a `String` cannot fail.
pub(super) fn push(out: &mut String, args: core::fmt::Arguments<'_>) {
    out.write_fmt(args).unwrap_or_default();
}

fn bracketed(counter: Counter) -> String {
    format!("[{}:{}]", counter.packets, counter.bytes)
}

pub(super) const fn bang(invert: bool) -> &'static str {
    if invert { " !" } else { "" }
}

fn save_rule(out: &mut String, family: Family, chain: &str, rule: &Rule, chains: &[Chain]) {
    push(out, format_args!("-A {chain}"));
    if let Some(words) = &rule.opaque {
        let blank = if words.is_empty() { "" } else { " " };
        push(out, format_args!("{blank}{words}"));
        return save_jump(out, &rule.target, chains);
    }
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
        push(out, format_args!(" -m {}", matched.name()));
        matched.save(out, family);
    }
    match &rule.target {
        Target::Count | Target::Jump(_) | Target::Goto(_) => save_jump(out, &rule.target, chains),
        target => {
            push(out, format_args!(" -j {}", target.name()));
            target.save(out, family);
        }
    }
}

/// To another chain, if that is the target.
fn save_jump(out: &mut String, target: &Target, chains: &[Chain]) {
    match target {
        Target::Jump(chain) => push(out, format_args!(" -j {}", chains[*chain].name)),
        Target::Goto(chain) => push(out, format_args!(" -g {}", chains[*chain].name)),
        _ => {}
    }
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

pub(super) fn address_text(addr: Addr, family: Family) -> String {
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
pub(super) fn mask_text(mask: Addr, family: Family) -> String {
    let bits = mask.bits() << (128 - u32::from(family.bits()));
    match bits.leading_ones() == bits.count_ones() {
        true => bits.count_ones().to_string(),
        false => address_text(mask, family),
    }
}

pub(super) fn save_ports(out: &mut String, sport: &PortRange, dport: &PortRange) {
    for (option, range) in [("--sport", sport), ("--dport", dport)] {
        if *range != PortRange::ANY {
            push(out, format_args!("{} {option} {}", bang(range.invert), range_text(range.low, range.high)));
        }
    }
}

pub(super) fn range_text(low: u16, high: u16) -> String {
    if low == high { low.to_string() } else { format!("{low}:{high}") }
}

/// Names of the bits that are set; the name of no bit when none is.
pub(super) fn words(known: &[(&str, u16)], bits: u16) -> String {
    let set: Vec<&str> = known.iter().filter(|entry| entry.1 & bits != 0).map(|entry| entry.0).collect();
    if set.is_empty() { "NONE".to_owned() } else { set.join(",") }
}

pub(super) fn flag_words(flags: u8) -> String {
    let set: Vec<&str> = names::TCP_FLAGS.iter().filter(|entry| entry.1 & flags != 0).map(|entry| entry.0).collect();
    if set.is_empty() { "NONE".to_owned() } else { set.join(",") }
}

/// A string argument: quoted unless all of it is letters, digits, `_` and `-` (`xtables_save_string`).
pub(super) fn string_text(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match !text.is_empty() && text.bytes().all(plain) {
        true => text.to_owned(),
        false => quoted(text),
    }
}

/// A word of a line that is printed as it was: quoted where it has to be.
pub(super) fn word_text(text: &str) -> String {
    let plain = !text.is_empty() && !text.contains([' ', '\t', '"']);
    if plain { text.to_owned() } else { quoted(text) }
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
