//! A sequence through both sides at once ([`Pair::compare`]), and a failing one made small ([`Pair::shrink`]).
//!
//! Linux draws some ports at random. Which one it drew is in its connection; ours is told to draw the same, and takes it only
//! if it is one that it could draw and that is free. So there is nothing to rename: all bytes must be equal.

use std::collections::BTreeMap;

use nix::time::{ClockId, clock_gettime};
use xrouter::device::PortId;
use xrouter::rules::TableName;
use xrouter::time::Instant;

use crate::ends::host_mac;
use crate::flow::{Step, Story, UDPLITE, describe, describe_frame, packet_proto, tuple_of};
use crate::kernel::{Kernel, Out};
use crate::ours::{Fate, Ours};
use crate::place::MACS;
use crate::sequence::{Sequence, Zones};
use crate::step::{Entry, Side, for_kernel};
use crate::testing::{self, Hop};

/// Where two sides first differ, and how.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) step: usize,
    pub(crate) what: String,
}

/// The time as conntrack has it, which counts in ticks of the kernel (jiffies), not in nanoseconds.
fn kernels_clock() -> Instant {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    Instant::from_secs(time.tv_sec() as u64) + time.tv_nsec() as u64
}

/// Status bits that tell something: EXPECTED, SEEN_REPLY, ASSURED, CONFIRMED, SRC_NAT, DST_NAT. Not that NAT is done with.
const STATUS: u32 = 0x3f;

/// What rules that draw from few ports have, and those that draw always.
const FEW_PORTS: [&str; 5] = ["--random", "2000-20", ":2000", "5000", "300-30"];

/// Both sides.
pub(crate) struct Pair {
    kernel: Kernel,
    ours: Ours,
    /// Packets by what became of them.
    pub(crate) tally: BTreeMap<&'static str, u64>,
    pub(crate) packets: u64,
    /// Why ours dropped some.
    pub(crate) drops: BTreeMap<&'static str, u64>,
    /// No rule has a port drawn that a source has already, but by accident.
    keeps_ports: bool,
}

impl Pair {
    pub(crate) fn new() -> Result<Pair, String> {
        Ok(Pair {
            kernel: Kernel::new()?,
            ours: Ours::new(),
            tally: BTreeMap::new(),
            packets: 0,
            drops: BTreeMap::new(),
            keeps_ports: false,
        })
    }

    /// Runs the sequence through both.
    pub(crate) fn compare(&mut self, sequence: &Sequence) -> Result<(), Difference> {
        let Sequence { settings, v6, rules, later, zones, flows, steps } = sequence;
        let all_rules = || [rules].into_iter().chain(later.as_ref().map(|(_, rules)| rules));
        self.keeps_ports = all_rules().all(|rules| !FEW_PORTS.iter().any(|word| rules.contains(word)));
        let failed = |step, what| Difference { step, what };
        self.kernel.table.flush();
        self.kernel.switches.apply(settings);
        self.kernel.load(*v6, rules).map_err(|what| failed(0, what))?;
        self.ours.begin(*v6, rules, settings, 1);
        let mut story = Story::new(flows);
        let mut punted = 0;
        let mut host_before = 0;
        for (at, step) in steps.iter().enumerate() {
            if let Some((_, rules)) = later.as_ref().filter(|(number, _)| *number == at) {
                // The rule that counts what is for the host begins anew.
                host_before = punted;
                self.kernel.load(*v6, rules).map_err(|what| failed(at, what))?;
                self.ours.change(*v6, rules);
            }
            let Some((port, packet)) = story.packet(step) else { continue };
            self.packets += 1;
            let (out, fate) = self.send(port, &packet, *zones).map_err(|what| failed(at, what))?;
            punted += u64::from(fate.punted);
            if fate.parted || *zones == Zones::Clients && self.either_would_do() {
                return Ok(());
            }
            self.count(port, &packet, &out, &fate);
            if let ([(port, frame)], false) = (&out[..], fate.answered) {
                story.came_out(step, *port, &frame[14..]);
            }
        }
        for (reason, count) in self.ours.dropped() {
            *self.drops.entry(reason).or_default() += count;
        }
        let end = steps.len().saturating_sub(1);
        self.compare_entries().map_err(|what| failed(end, what))?;
        self.compare_counters(*v6, punted - host_before).map_err(|what| failed(end, what))
    }

    /// With zones of one direction a packet may belong to two connections, in opposite directions. Linux takes the younger.
    fn either_would_do(&self) -> bool {
        let entries = self.ours.entries(kernels_clock());
        let crossed = |one: &Entry| entries.iter().any(|other| other.original == one.reply && one != other);
        entries.iter().any(crossed)
    }

    fn count(&mut self, from: PortId, packet: &[u8], out: &Out, fate: &Fate) {
        let name = match &out[..] {
            _ if fate.punted => "for the host",
            [] => "dropped",
            _ if fate.answered => "answered",
            [(port, frame)] => {
                let before = (tuple_of(packet), packet_proto(packet));
                let after = (tuple_of(&frame[14..]), packet_proto(&frame[14..]));
                match (before != after, *port == from) {
                    (true, true) => "translated, back out",
                    (true, false) => "translated",
                    (false, _) => "forwarded as it was",
                }
            }
            _ => "several",
        };
        *self.tally.entry(name).or_default() += 1;
    }

    /// One packet through both.
    fn send(&mut self, port: PortId, packet: &[u8], zones: Zones) -> Result<(Out, Fate), String> {
        let now = kernels_clock();
        let theirs = self.kernel.send(port, &frame(port, &for_kernel(packet)));
        let tuple = tuple_of(packet).map(|side| Side { zone: zones.of(side.src), ..side }).zip(packet_proto(packet));
        let entry = tuple.as_ref().and_then(|(side, proto)| self.kernel.table.find(*proto, side, zones == Zones::One));
        let new = entry.as_ref().filter(|entry| tuple.as_ref().is_some_and(|(side, _)| entry.original == *side));
        // A port that the source has already with another destination is none that was drawn: ours must come to it alone.
        let drawn = new.filter(|entry| !(self.keeps_ports && self.ours.has_mapping(entry, now)));
        let mine = self.ours.send(port, &frame(port, packet), drawn, now);
        let sent = || describe_frame(&frame(port, packet));
        let told = |out: &Out| match &out[..] {
            [] => "nothing came out".to_owned(),
            out => out
                .iter()
                .map(|(port, frame)| format!("{port:?} {}", describe_frame(frame)))
                .collect::<Vec<_>>()
                .join("; "),
        };
        if !is_wanted(packet, &theirs, &mine)
            && comparable(&theirs, mine.answered, false) != comparable(&mine.out, mine.answered, true)
        {
            let (drops, punted) = (self.ours.drops(), mine.punted);
            return Err(format!(
                "in by {port:?} {}\n  the kernel: {}\n  we: {} (for the host: {punted}; {drops})\n  the kernel's entry: {entry:?}\n  ours: {:?}",
                sent(),
                told(&theirs),
                told(&mine.out),
                self.ours.entries(now)
            ));
        }
        if mine.reset && self.tables_differ(now) {
            return Ok((theirs, Fate { parted: true, ..mine }));
        }
        let count = self.kernel.table.count();
        let entries = self.ours.entries(now);
        if count != entries.len() {
            return Err(format!("after {}: the kernel has {count} entries ({entry:?}), we have {entries:#?}", sent()));
        }
        if let Some(kernels) = entry {
            let same = entries.iter().find(|one| one.proto == kernels.proto && one.original == kernels.original);
            if same.is_some_and(|ours| drew_twice(&kernels, ours)) {
                return Ok((theirs, Fate { parted: true, ..mine }));
            }
            if !same.is_some_and(|ours| agrees(&kernels, ours)) {
                return Err(format!("after {}: the kernel has {kernels:?}\nwe have {same:?}", sent()));
            }
        }
        Ok((theirs, mine))
    }

    /// Wanted: a reset of our own changes no connection but that of the packet it answers. Linux's may end another, that the packet
    /// was no part of (the scenario `reject_reset_of_invalid`).
    fn tables_differ(&mut self, now: Instant) -> bool {
        self.kernel.table.count() != self.ours.entries(now).len() || self.compare_entries().is_err()
    }

    /// Every connection of both.
    fn compare_entries(&mut self) -> Result<(), String> {
        for mine in self.ours.entries(kernels_clock()) {
            match self.kernel.table.find(mine.proto, &mine.original, mine.original.zone == mine.reply.zone) {
                Some(theirs) if agrees(&theirs, &mine) => {}
                theirs => return Err(format!("at the end the kernel has {theirs:?}\nwe have {mine:?}")),
            }
        }
        Ok(())
    }

    /// What rules have counted, and how many packets were the host's.
    fn compare_counters(&mut self, v6: bool, punted: u64) -> Result<(), String> {
        let theirs = self.kernel.saved(v6);
        // Wanted: our own answers meet no rules. Linux shows nat POSTROUTING the reset that REJECT answers a connection's first
        // packet with, in that packet's place; nothing is translated by that.
        let resets = theirs.contains("--reject-with tcp-reset");
        let told_of_resets = |line: &str| resets && (line.contains("-A POSTROUTING") || line.contains("-A last"));
        for (table, name) in [(TableName::Nat, "*nat"), (TableName::Filter, "*filter"), (TableName::Mangle, "*mangle")]
        {
            let lines = |text: &str| -> Vec<String> {
                let own = text.lines().skip_while(|line| *line != name).take_while(|line| *line != "COMMIT");
                let told = |line: &&str| line.starts_with('[') && !line.contains("-A INPUT") && !told_of_resets(line);
                own.filter(told).map(str::to_owned).collect()
            };
            let (theirs, ours) = (lines(&theirs), lines(&self.ours.saved(table)));
            if theirs != ours {
                let only = |these: &[String], those: &[String]| {
                    these.iter().filter(|line| !those.contains(line)).cloned().collect::<Vec<_>>().join("\n    ")
                };
                return Err(format!(
                    "counters of {name}: the kernel has\n    {}\n  we have\n    {}",
                    only(&theirs, &ours),
                    only(&ours, &theirs)
                ));
            }
        }
        let input = theirs.lines().find(|line| line.ends_with("-A INPUT ! -i lo -j DROP"));
        let count = input.and_then(|line| line[1..].split(':').next()).and_then(|count| count.parse().ok());
        match count == Some(punted) {
            true => Ok(()),
            false => Err(format!("{count:?} packets reached the kernel's INPUT, we gave {punted} to the host")),
        }
    }

    /// Leaves out steps and rules for as long as a difference remains.
    pub(crate) fn shrink(&mut self, mut sequence: Sequence, last: usize) -> Sequence {
        sequence.steps.truncate(last + 1);
        let mut chunk = sequence.steps.len();
        while chunk > 0 {
            let mut at = 0;
            while at < sequence.steps.len() {
                let mut fewer = sequence.clone();
                let gone = at..(at + chunk).min(sequence.steps.len());
                if let Some((number, _)) = &mut fewer.later {
                    *number -= (*number).min(gone.end).saturating_sub(at);
                }
                fewer.steps.drain(gone);
                match self.compare(&fewer) {
                    Err(difference) => {
                        fewer.steps.truncate(difference.step + 1);
                        sequence = fewer;
                    }
                    Ok(()) => at += chunk,
                }
            }
            chunk /= 2;
        }
        if sequence.later.is_some() {
            let fewer = Sequence { later: None, ..sequence.clone() };
            sequence = if self.compare(&fewer).is_err() { fewer } else { sequence };
        }
        let mut at = 0;
        while let Some(line) = sequence.rules.lines().nth(at) {
            let mut fewer = sequence.clone();
            if line.starts_with("-A") && !line.contains("--zone") {
                fewer.rules = lines_but(&sequence.rules, at);
                if self.compare(&fewer).is_err() {
                    sequence = fewer;
                    continue;
                }
            }
            at += 1;
        }
        sequence
    }
}

fn lines_but(text: &str, without: usize) -> String {
    let lines = text.lines().enumerate().filter(|(at, _)| *at != without);
    lines.map(|(_, line)| format!("{line}\n")).collect()
}

/// An ICMP query has one identifier for both ends. Where both are translated with new ones, the first that Linux drew is not known;
/// ours drew the last at once, and so had nothing left to change.
fn drew_twice(theirs: &Entry, mine: &Entry) -> bool {
    const SRC_NAT: u32 = 1 << 4;
    let changed = theirs.reply.sport != theirs.original.sport && theirs.reply.dst == theirs.original.src;
    let but_that = Entry { status: mine.status | SRC_NAT, ..mine.clone() };
    matches!(theirs.proto, 1 | 58) && changed && mine.status & SRC_NAT == 0 && agrees(theirs, &but_that)
}

/// A second may have gone by between two looks.
fn agrees(theirs: &Entry, mine: &Entry) -> bool {
    let plain = |entry: &Entry| Entry { status: entry.status & STATUS, timeout: 0, state: None, ..entry.clone() };
    theirs.timeout.abs_diff(mine.timeout) <= 1 && plain(theirs) == plain(mine)
}

/// Wanted: answers have no options. Linux copies some of those that the packet had (`ip_options_echo`), and REJECT there may take
/// the checksum for wrong once the router has written its address into them.
fn records_route(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4 && packet[0] & 0x0f > 5 && packet[20] == 7
}

/// The frame of a packet for the router's `port`.
pub(crate) fn frame(port: PortId, packet: &[u8]) -> Vec<u8> {
    testing::frame(Hop { dst_mac: MACS[port.index()], src_mac: host_mac(port == PortId::LAN, 2) }, packet)
}

/// Whether they may differ in what comes out.
fn is_wanted(packet: &[u8], theirs: &Out, mine: &Fate) -> bool {
    match (theirs.is_empty(), mine.out.is_empty()) {
        (_, true) => mine.limited || is_redirect(packet),
        (true, false) if is_limited_by_the_kernel(mine) => true,
        (_, false) => mine.answered && records_route(packet),
    }
}

/// Wanted: no ICMPv6 error about a Redirect (RFC 4443 section 2.4 (e.2)); Linux sends one.
fn is_redirect(packet: &[u8]) -> bool {
    packet_proto(packet) == Some(58) && tuple_of(packet).is_some_and(|side| side.dport >> 8 == 137)
}

/// Whether an answer is one of those that Linux sends at most once a second to a source, whatever it is told (`ip_error`): the
/// route is missing, unreachable or prohibited.
fn is_limited_by_the_kernel(fate: &Fate) -> bool {
    let icmp = match &fate.out[..] {
        [(_, frame)] if fate.answered && frame[14] >> 4 == 4 => frame.get(34..36),
        _ => None,
    };
    matches!(icmp, Some([3, 0 | 1 | 13]))
}

/// What came out, but for what is free in an answer of the router's own: IPv4's identification and IPv6's flow label.
fn comparable(out: &Out, answered: bool, ours: bool) -> Out {
    let each = |(port, frame): &(PortId, Vec<u8>)| {
        let mut packet = if ours { for_kernel(&frame[14..]) } else { frame[14..].to_vec() };
        if answered {
            blank_quoted_udplite(&mut packet);
        }
        match packet[0] >> 4 {
            4 if answered => [4, 5, 10, 11].iter().for_each(|&at| packet[at] = 0),
            6 if answered => packet[1..4].fill(0),
            _ => {}
        }
        (*port, [&frame[..14], &packet].concat())
    };
    out.iter().map(each).collect()
}

/// Both sides were sent different checksums of UDP-Lite ([`for_kernel`]), and quote them.
fn blank_quoted_udplite(packet: &mut [u8]) {
    let (header, proto) = if packet[0] >> 4 == 4 { (20, 9) } else { (40, 6) };
    let quoted = header + 8;
    if packet.get(quoted + proto) == Some(&UDPLITE) && packet.len() >= quoted + header + 8 {
        packet[header + 2..header + 4].fill(0);
        packet[quoted + header + 6..quoted + header + 8].fill(0);
    }
}

/// A sequence for a person.
pub(crate) fn list(sequence: &Sequence) -> String {
    let steps: Vec<String> = sequence.steps.iter().map(|step: &Step| describe(&sequence.flows, step)).collect();
    let plain =
        |rules: &str| rules.lines().filter(|line| line.starts_with(['-', '*'])).collect::<Vec<_>>().join("\n  ");
    let mut rules = plain(&sequence.rules);
    if let Some((number, later)) = &sequence.later {
        rules += &format!("\nafter {number} steps:\n  {}", plain(later));
    }
    format!("rules (IPv{}):\n  {rules}\nsteps:\n  {}", if sequence.v6 { 6 } else { 4 }, steps.join("\n  "))
}
