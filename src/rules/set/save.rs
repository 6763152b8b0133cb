//! Sets as `ipset save` prints them. Elements of a set come sorted, not in the order of a hash.

use super::entry::{Definition, Given, Sets, SkbInfo};
use super::extra::Extra;
use super::header::{Header, Mask};
use super::icmp;
use super::key::{Key, mac_of, name_of};
use super::kind::{Kind, Method, Part};
use super::table::{Content, SetTable, Store};
use crate::rules::names;
use crate::time::Instant;
use crate::wire::{Addr, Family, proto};
use core::fmt::Write;
use std::net::Ipv4Addr;

/// One `add` line without its element's extensions.
struct Line<'a> {
    key: Key,
    nomatch: bool,
    wildcard: bool,
    unfilled: bool,
    beside: Beside<'a>,
}

/// What stands behind an element: as it was written, or as it is now.
enum Beside<'a> {
    Written(Option<&'a Given>),
    Now(Option<&'a Extra>, Instant),
}

impl Sets {
    /// As `ipset save` prints them, with time-outs and counters as they were written.
    pub fn save(&self) -> String {
        let mut out = String::new();
        for definition in &self.list {
            create(&mut out, definition);
            let line = |entry: &'_ super::entry::Entry| (entry.key, entry.nomatch, entry.wildcard, entry.unfilled);
            let lines = definition.entries.iter().map(|entry| {
                let (key, nomatch, wildcard, unfilled) = line(entry);
                Line { key, nomatch, wildcard, unfilled, beside: Beside::Written(entry.given.as_deref()) }
            });
            elements(&mut out, definition, lines.collect());
            for member in &definition.members {
                let _ = write!(out, "add {} {}", definition.name, member.name);
                extensions(&mut out, &definition.header, &Beside::Written(member.given.as_deref()), false, false);
                out.push('\n');
            }
        }
        out
    }
}

impl SetTable {
    /// As `ipset save` prints them: with what packets added, what is left of time-outs, and counters. Lists come last.
    pub fn save(&self, now: Instant) -> String {
        let mut out = String::new();
        let cells = self.names().into_iter().filter_map(|name| self.find(&name));
        let mut contents: Vec<_> = cells.map(|cell| cell.content()).collect();
        contents.sort_by_key(|content| content.definition.header.kind == Kind::ListSet);
        for content in contents {
            one(&mut out, &content, now);
        }
        out
    }
}

/// A set with what is in it now.
fn one(out: &mut String, content: &Content, now: Instant) {
    let definition = &*content.definition;
    let header = &definition.header;
    create(out, definition);
    let alive = |extra: &Option<&Extra>| header.timeout.is_none() || extra.is_none_or(|extra| !extra.is_expired(now));
    content.see(|store| match store {
        Store::Hash(store) => {
            let lines = store.elements().filter(|(.., extra)| alive(extra)).map(|(key, nomatch, wildcard, extra)| {
                Line { key: *key, nomatch, wildcard, unfilled: false, beside: Beside::Now(extra, now) }
            });
            elements(out, definition, lines.collect());
        }
        Store::Bitmap(store) => {
            let lines = store.elements(header).filter(|(_, unfilled, extra)| *unfilled || alive(extra));
            let lines = lines.map(|(key, unfilled, extra)| {
                // An element that is not filled has its whole time before it.
                let now = if unfilled { Instant::ZERO } else { now };
                Line { key, nomatch: false, wildcard: false, unfilled, beside: Beside::Now(extra, now) }
            });
            elements(out, definition, lines.collect());
        }
        Store::List(store) => {
            for (cell, extra) in store.members().iter().filter(|(_, extra)| alive(&Some(extra))) {
                let _ = write!(out, "add {} {}", definition.name, cell.name());
                extensions(out, header, &Beside::Now(Some(extra), now), false, false);
                out.push('\n');
            }
        }
    });
}

fn create(out: &mut String, definition: &Definition) {
    let Definition { name, header, .. } = definition;
    let _ = write!(out, "create {name} {}", header.kind.name());
    match header.kind.method() {
        Method::Hash => {
            if let Some(family) = header.family {
                out.push_str(if family == Family::V4 { " family inet" } else { " family inet6" });
            }
            if header.kind == Kind::HashIpMark {
                let _ = write!(out, " markmask {:#010x}", header.markmask);
            }
            let _ = write!(out, " hashsize {} maxelem {}", header.hashsize, header.capacity);
        }
        Method::Bitmap if header.kind == Kind::BitmapPort => {
            let _ = write!(out, " range {}-{}", header.range.0, header.range.1);
        }
        Method::Bitmap => {
            let (first, last) = header.range;
            let _ = write!(out, " range {}-{}", Ipv4Addr::from(first), Ipv4Addr::from(last));
        }
        Method::List => {
            let _ = write!(out, " size {}", header.capacity);
        }
    }
    let late_mask = header.kind == Kind::HashIpPort;
    if !late_mask {
        mask(out, header);
    }
    if let Some(timeout) = header.timeout {
        let _ = write!(out, " timeout {timeout}");
    }
    let flags = [
        (header.counters, " counters"),
        (header.comment, " comment"),
        (header.forceadd, " forceadd"),
        (header.skbinfo, " skbinfo"),
    ];
    flags.iter().filter(|flag| flag.0).for_each(|flag| out.push_str(flag.1));
    if let Some(size) = header.bucketsize {
        let _ = write!(out, " bucketsize {size}");
    }
    if let Some(initval) = header.initval {
        let _ = write!(out, " initval {initval:#010x}");
    }
    if late_mask {
        mask(out, header);
    }
    out.push('\n');
}

fn mask(out: &mut String, header: &Header) {
    let _ = match header.mask {
        Some(Mask::Net(length)) => write!(out, " netmask {length}"),
        Some(Mask::Bits(mask)) => write!(out, " bitmask {}", shown(mask, header.address_family())),
        None => Ok(()),
    };
}

/// An address as ipset prints it.
fn shown(addr: Addr, family: Family) -> String {
    match family {
        Family::V4 => Ipv4Addr::from(addr.v4_bits()).to_string(),
        Family::V6 => std::net::Ipv6Addr::from(addr.bits()).to_string(),
    }
}

fn elements(out: &mut String, definition: &Definition, mut lines: Vec<Line<'_>>) {
    let header = &definition.header;
    lines.sort_by_key(|line| (line.key, line.wildcard));
    for line in lines {
        let _ = write!(out, "add {} ", definition.name);
        element(out, header, &line);
        extensions(out, header, &line.beside, line.nomatch, line.wildcard);
        out.push('\n');
    }
}

/// The element: its parts between commas.
fn element(out: &mut String, header: &Header, line: &Line<'_>) {
    let (key, family) = (&line.key, header.address_family());
    let (mut addresses, mut nets) = (0, 0);
    for (index, part) in header.kind.parts().iter().enumerate() {
        if index > 0 && !(*part == Part::Mac && line.unfilled) {
            out.push(',');
        }
        let addr = if addresses == 0 { key.first } else { key.second };
        match part {
            Part::Ip => {
                out.push_str(&shown(addr, family));
                addresses += 1;
            }
            Part::Net => {
                out.push_str(&shown(addr, family));
                if key.lengths[nets] != family.bits() {
                    let _ = write!(out, "/{}", key.lengths[nets]);
                }
                addresses += 1;
                nets += 1;
            }
            Part::Port if header.kind == Kind::BitmapPort => {
                let _ = write!(out, "{}", key.port);
            }
            Part::Port => {
                let _ = write!(out, "{}:{}", names::protocol_name(key.proto), port(key));
            }
            Part::Mac if line.unfilled => {}
            Part::Mac => out.push_str(&mac_of(key.second).to_string().to_ascii_uppercase()),
            Part::Mark => {
                let _ = write!(out, "{:#010x}", key.mark);
            }
            Part::Iface => {
                out.push_str(if key.physdev { "physdev:" } else { "" });
                out.push_str(&name_of(key.second));
            }
            Part::Set => {}
        }
    }
}

fn port(key: &Key) -> String {
    match key.proto {
        proto::ICMP => icmp::name(key.port, false),
        proto::ICMPV6 => icmp::name(key.port, true),
        _ => key.port.to_string(),
    }
}

fn extensions(out: &mut String, header: &Header, beside: &Beside<'_>, nomatch: bool, wildcard: bool) {
    let blank = Given::default();
    let (timeout, (packets, bytes), comment, skb) = match beside {
        Beside::Written(given) => {
            let given = given.unwrap_or(&blank);
            let timeout = given.timeout.or(header.timeout).unwrap_or(0);
            (timeout, (given.packets, given.bytes), given.comment.as_deref(), given.skb)
        }
        Beside::Now(None, _) => (0, (0, 0), None, SkbInfo::default()),
        Beside::Now(Some(extra), now) => {
            (extra.seconds_left(*now), extra.counted(), extra.comment.as_deref(), extra.skb())
        }
    };
    if header.timeout.is_some() {
        let _ = write!(out, " timeout {timeout}");
    }
    if nomatch {
        out.push_str(" nomatch");
    }
    if wildcard {
        out.push_str(" wildcard");
    }
    if header.counters {
        let _ = write!(out, " packets {packets} bytes {bytes}");
    }
    if let Some(comment) = comment {
        let _ = write!(out, " comment \"{comment}\"");
    }
    if header.skbinfo {
        skbinfo(out, skb);
    }
}

fn skbinfo(out: &mut String, skb: SkbInfo) {
    if skb.mark != 0 || skb.mask != 0 {
        let _ = write!(out, " skbmark {:#x}", skb.mark);
        if skb.mask != u32::MAX {
            let _ = write!(out, "/{:#x}", skb.mask);
        }
    }
    if skb.prio != 0 {
        let _ = write!(out, " skbprio {:x}:{:x}", skb.prio >> 16, skb.prio & 0xffff);
    }
    if skb.queue != 0 {
        let _ = write!(out, " skbqueue {}", skb.queue);
    }
}
