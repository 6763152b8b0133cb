//! A sequence through both sides at once ([`Pair::compare`]), a failing one made small ([`Pair::shrink`]), described, and
//! kept as a scenario.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nix::time::{ClockId, clock_gettime};
use xrouter::conntrack::Settings;
use xrouter::time::Instant;

use crate::ends::{LAN_MAC, WAN_MAC, host_mac};
use crate::generate::Sequence;
use crate::kernel::Kernel;
use crate::ours::Ours;
use crate::step::{Entry, Step, for_kernel};
use crate::testing::{self, Hop};

/// Where two sides first differ, and how.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) step: usize,
    pub(crate) what: String,
}

/// The time as conntrack has it, which counts in ticks of the kernel (jiffies), not in nanoseconds.
pub(crate) fn kernels_clock() -> Instant {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    Instant::from_secs(time.tv_sec() as u64) + time.tv_nsec() as u64
}

/// Both sides.
pub(crate) struct Pair {
    pub(crate) kernel: Kernel,
    pub(crate) ours: Ours,
    /// Packets that both forwarded, by class, and those that neither did.
    pub(crate) tally: BTreeMap<&'static str, u64>,
}

impl Pair {
    pub(crate) fn new() -> Result<Pair, String> {
        Ok(Pair { kernel: Kernel::new()?, ours: Ours::new(), tally: BTreeMap::new() })
    }

    /// Runs the sequence through both.
    pub(crate) fn compare(&mut self, settings: &Settings, steps: &[Step]) -> Result<(), Difference> {
        self.kernel.table.flush();
        self.kernel.apply(settings);
        self.ours.begin(settings);
        for (step, packet) in steps.iter().enumerate() {
            let now = kernels_clock();
            if let Some(settings) = &packet.settings {
                self.kernel.apply(settings);
                self.ours.set(settings);
            }
            self.send(packet, now).map_err(|what| Difference { step, what })?;
            if self.either_would_do(now) {
                break;
            }
        }
        Ok(())
    }

    /// With zones of one direction a packet may belong to two connections, in opposite directions. Linux takes the younger.
    fn either_would_do(&self, now: Instant) -> bool {
        let entries = self.ours.entries(now);
        let crossed = |one: &Entry| entries.iter().any(|other| other.original == one.reply && one != other);
        entries.iter().any(crossed)
    }

    /// One packet: its class where it is forwarded, or the difference, if there is one afterwards.
    pub(crate) fn send(&mut self, step: &Step, now: Instant) -> Result<Option<&'static str>, String> {
        let ours = self.ours.send(step, now);
        let kernel = self.kernel.send(step);
        if kernel != ours {
            let bytes = match (&kernel.0, &ours.0) {
                (Some((there, theirs)), Some((here, mine))) if there == here => {
                    format!(" with {theirs:02x?} against {mine:02x?}")
                }
                _ => String::new(),
            };
            return Err(format!("the kernel: {kernel:?}; we: {ours:?}{bytes}"));
        }
        let class = kernel.0.map(|(class, _)| class);
        *self.tally.entry(class.unwrap_or("not forwarded")).or_default() += 1;
        self.compare_entries(now)?;
        Ok(class)
    }

    /// Every connection of both.
    fn compare_entries(&mut self, now: Instant) -> Result<(), String> {
        let entries = self.ours.entries(now);
        let count = self.kernel.table.count();
        if count != entries.len() {
            return Err(format!("the kernel has {count} entries, we have {entries:#?}"));
        }
        for mine in entries {
            match self.kernel.table.entry(&mine) {
                None => return Err(format!("the kernel does not have {mine:#?}")),
                Some(theirs) if !theirs.agrees(&mine) => {
                    return Err(format!("the kernel has {theirs:#?}\nwe have {mine:#?}"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Leaves out steps for as long as a difference remains.
    pub(crate) fn shrink(&mut self, sequence: Sequence, last: usize) -> Sequence {
        let Sequence { settings, mut steps } = sequence;
        steps.truncate(last + 1);
        let mut chunk = steps.len();
        while chunk > 0 {
            let mut at = 0;
            while at < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(at..(at + chunk).min(steps.len()));
                match self.compare(&settings, &fewer) {
                    Err(difference) => {
                        fewer.truncate(difference.step + 1);
                        steps = fewer;
                    }
                    Ok(()) => at += chunk,
                }
            }
            chunk /= 2;
        }
        let settings = self.plain_settings(settings, &steps);
        Sequence { settings, steps }
    }

    /// The defaults, if the difference does not need other settings.
    fn plain_settings(&mut self, settings: Settings, steps: &[Step]) -> Settings {
        let plain = Settings { max: settings.max, ..Settings::default() };
        if self.compare(&plain, steps).is_err() { plain } else { settings }
    }

    /// The sequence as a scenario that holds what the kernel did: packets in and out, a rule counting each class, and the
    /// connections after each packet.
    pub(crate) fn scenario(&mut self, title: &str, sequence: &Sequence) -> String {
        let mut text = format!("# {title}\n");
        for (name, value) in differing(&sequence.settings) {
            let _ = writeln!(text, "conntrack {name}={value}");
        }
        for family in ["v4", "v6"] {
            let _ = writeln!(text, "rules {family} <<END\n*filter\n:FORWARD ACCEPT [0:0]");
            for class in ["NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"] {
                let _ = writeln!(text, "-A FORWARD -m conntrack --ctstate {class}");
            }
            text += "COMMIT\nEND\n";
        }
        self.kernel.table.flush();
        self.kernel.apply(&sequence.settings);
        let mut classes: Vec<(bool, usize, u32)> = Vec::new();
        for step in &sequence.steps {
            let (from, to) = if step.from_client { ("lan", "wan") } else { ("wan", "lan") };
            let mac = if step.from_client { LAN_MAC } else { WAN_MAC };
            let frame =
                testing::frame(Hop { dst_mac: mac, src_mac: host_mac(step.from_client, 2) }, &for_kernel(&step.packet));
            let hex: String = frame.iter().map(|byte| format!("{byte:02x} ")).collect();
            if let Some(settings) = &step.settings {
                let _ = writeln!(
                    text,
                    "# other settings from here on, which a scenario cannot say: {:?}",
                    differing(settings)
                );
                self.kernel.apply(settings);
            }
            let _ = writeln!(text, "# {}\n{from} > raw {}", describe(step), hex.trim_end());
            match self.kernel.send(step).0 {
                Some((class, _)) => {
                    let _ = writeln!(text, "{to} < forwarded");
                    let rule = ["NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"].iter();
                    let rule = 1 + rule.clone().position(|name| *name == class).expect("a class");
                    let key = (step.is_v6(), rule);
                    match classes.iter_mut().find(|(v6, rule, _)| (*v6, *rule) == key) {
                        Some((.., count)) => *count += 1,
                        None => classes.push((key.0, key.1, 1)),
                    }
                    let count = classes.iter().find(|(v6, rule, _)| (*v6, *rule) == key).map_or(0, |class| class.2);
                    let word = if step.is_v6() { "counter6" } else { "counter" };
                    let _ = writeln!(text, "{word} FORWARD {rule} packets={count}");
                }
                None => text += "nothing\n",
            }
            let listing = self.kernel.on_router(&["conntrack", "-L"]);
            let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
            let _ = writeln!(text, "conntrack count {}", listing.lines().count());
            for line in listing.lines() {
                let words = line.split_whitespace().filter(|word| !word.starts_with("use="));
                let mut words: Vec<String> = words.map(str::to_owned).collect();
                // Some milliseconds have passed, and the kernel rounds down; a scenario allows a second less, not more.
                if let Some(timeout) = words.get_mut(2)
                    && let Ok(seconds) = timeout.parse::<u64>()
                {
                    *timeout = (seconds + 1).to_string();
                }
                let _ = writeln!(text, "conntrack {}", words.join(" "));
            }
        }
        text
    }
}

/// The settings that are not the defaults, as the scenarios write them.
pub(crate) fn differing(settings: &Settings) -> Vec<(String, String)> {
    let json = |settings: &Settings| match serde_json::to_value(settings) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => panic!("settings are a map"),
    };
    let (ours, defaults) = (json(settings), json(&Settings { max: settings.max, ..Settings::default() }));
    let number = |value: &serde_json::Value| value.as_bool().map_or(value.to_string(), |on| u8::from(on).to_string());
    ours.iter()
        .filter(|(name, value)| defaults.get(*name) != Some(value))
        .map(|(name, value)| (name.clone(), number(value)))
        .collect()
}

/// A packet for a person.
pub(crate) fn describe(step: &Step) -> String {
    let side = if step.from_client { "client" } else { "server" };
    let hex: String = step.packet.iter().map(|byte| format!("{byte:02x}")).collect();
    let side = match &step.settings {
        Some(settings) => format!("(now {:?}) {side}", differing(settings)),
        None => side.to_owned(),
    };
    let Some(packet) = step.parse() else { return format!("{side} {hex}") };
    let (src, dst, tos) = (packet.src, packet.dst, step.tos());
    let mut text = format!("{side} {src} > {dst} proto {} ttl {} tos {tos:#x}", packet.proto, packet.ttl);
    if packet.proto == 6 {
        let flags: String = "FSRPAUEC"
            .chars()
            .enumerate()
            .filter(|(bit, _)| packet.tcp_flags >> bit & 1 == 1)
            .map(|(_, name)| name)
            .collect();
        let _ = write!(
            text,
            " {} > {} {flags} seq={} ack={} len={} win={}",
            packet.sport,
            packet.dport,
            packet.seq,
            packet.ack,
            packet.tcp_payload_len(),
            packet.window
        );
    }
    format!("{text} {:?} {hex}", packet.l4)
}
