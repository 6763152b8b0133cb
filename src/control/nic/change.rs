//! [`Change`]: one thing set on a network card, with what it was before, so that it can be made undone.
//!
//! A change is recorded before it is made. Undoing compares with what there is now: what is again as before needs nothing, and
//! what somebody else has changed meanwhile stays theirs.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use super::device::{Knob, Nic};
use super::rss::function_name;
use crate::xdp::{Channels, FlowType, Rss, RssChange};

/// Letters of a key that are shown: four bytes.
const BYTES_SHOWN: usize = 11;

/// A thing that can be read and set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// How many queues there are.
    Channels,
    /// A feature, by its name.
    Feature(String),
    /// RSS: function, key, table.
    Rss,
    /// Which fields of a kind of packets are hashed, by ethtool's word for it.
    HashFields(String),
    /// Where an interrupt goes.
    Affinity(u32),
    /// A number in sysfs.
    Knob(Knob),
}

/// What a [`Setting`] is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Value {
    /// Of [`Setting::Channels`].
    Channels {
        /// Queues that only receive.
        rx: u32,
        /// Queues that only transmit.
        tx: u32,
        /// Queues of other kinds.
        other: u32,
        /// Queues that do both.
        combined: u32,
    },
    /// Of [`Setting::Feature`].
    On(bool),
    /// Of [`Setting::Rss`].
    Rss {
        /// The function's bit; 0 when it is not shown.
        function: u8,
        /// The transformation.
        transform: u8,
        /// The key, in hexadecimal as ethtool(8) writes it.
        key: String,
        /// The table; left out when it is the driver's default.
        table: Vec<u32>,
        /// Whether the table is the default one, entry i being i modulo the number of queues.
        default: bool,
    },
    /// Of [`Setting::HashFields`].
    Fields(u64),
    /// Of [`Setting::Affinity`].
    Cpus(String),
    /// Of [`Setting::Knob`].
    Number(u64),
}

/// Something that was changed, or is about to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// On which interface.
    pub interface: String,
    /// What.
    pub setting: Setting,
    /// What it was.
    pub before: Value,
    /// What it was made.
    pub after: Value,
}

/// What came of undoing a [`Change`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Undone {
    /// It is as before.
    Back,
    /// It was as before already.
    Already,
    /// Somebody has changed it meanwhile, to this: it stays.
    Theirs(Value),
}

impl Setting {
    /// What it is now.
    ///
    /// # Errors
    /// The kernel's; `NotFound` for a feature that is not there.
    pub fn read(&self, nic: &dyn Nic) -> io::Result<Value> {
        Ok(match self {
            Setting::Channels => Value::of_channels(&nic.channels()?),
            Setting::Feature(name) => {
                let found = nic.features()?.into_iter().find(|feature| feature.name == *name);
                Value::On(found.ok_or(io::ErrorKind::NotFound)?.on)
            }
            Setting::Rss => Value::of_rss(&nic.rss()?, nic.channels().map_or(0, |it| it.receiving())),
            Setting::HashFields(flow) => Value::Fields(nic.hash_fields(flow_named(flow)?)?),
            Setting::Affinity(irq) => Value::Cpus(nic.affinity(*irq)?),
            Setting::Knob(knob) => Value::Number(nic.knob(*knob)?),
        })
    }

    /// Makes it `value`.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` when the value is of another setting (a state file somebody wrote).
    pub fn write(&self, nic: &dyn Nic, value: &Value) -> io::Result<()> {
        match (self, value) {
            (Setting::Channels, Value::Channels { rx, tx, other, combined }) => {
                let present = nic.channels()?;
                nic.set_channels(&Channels { rx: *rx, tx: *tx, other: *other, combined: *combined, ..present })
            }
            (Setting::Feature(name), Value::On(on)) => nic.set_feature(name, *on),
            (Setting::Rss, Value::Rss { function, transform, key, table, default }) => {
                let wanted = Rss { function: *function, transform: *transform, key: unhex(key)?, table: table.clone() };
                write_rss(nic, &wanted, *default)
            }
            (Setting::HashFields(flow), Value::Fields(fields)) => nic.set_hash_fields(flow_named(flow)?, *fields),
            (Setting::Affinity(irq), Value::Cpus(cpus)) => nic.set_affinity(*irq, cpus),
            (Setting::Knob(knob), Value::Number(number)) => nic.set_knob(*knob, *number),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Sets what differs, one by one: what a card can't set it is not asked to.
fn write_rss(nic: &dyn Nic, wanted: &Rss, default: bool) -> io::Result<()> {
    let now = nic.rss()?;
    if now.transform != wanted.transform {
        nic.set_rss(&RssChange { transform: Some(wanted.transform), ..RssChange::default() })?;
    }
    let function = (now.function != wanted.function && wanted.function != 0).then_some(wanted.function);
    let key = (now.key != wanted.key && !wanted.key.is_empty()).then_some(&wanted.key[..]);
    if function.is_some() || key.is_some() {
        nic.set_rss(&RssChange { function, key, ..RssChange::default() })?;
    }
    if default {
        nic.set_rss(&RssChange { table: Some(&[]), ..RssChange::default() })?;
    } else if now.table != wanted.table && !wanted.table.is_empty() {
        nic.set_rss(&RssChange { table: Some(&wanted.table), ..RssChange::default() })?;
    }
    Ok(())
}

fn flow_named(name: &str) -> io::Result<FlowType> {
    FlowType::named(name).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Value {
    pub(super) fn of_channels(channels: &Channels) -> Value {
        let Channels { rx, tx, other, combined, .. } = *channels;
        Value::Channels { rx, tx, other, combined }
    }

    /// What the driver shows, with this many queues.
    pub(super) fn of_rss(rss: &Rss, queues: u32) -> Value {
        let Rss { function, transform, ref key, ref table } = *rss;
        let usual = |(at, queue): (usize, &u32)| *queue == at as u32 % queues;
        let default = queues > 0 && !table.is_empty() && table.iter().enumerate().all(usual);
        let table = if default { Vec::new() } else { table.clone() };
        Value::Rss { function, transform, key: hex(key), table, default }
    }

    /// Whether this is `ours`. A driver makes its table anew when queues come or go, as they do with the XDP program.
    fn is_still(&self, ours: &Value) -> bool {
        match (self, ours) {
            (
                Value::Rss { function, transform, key, default: true, .. },
                Value::Rss { function: our_function, transform: our_transform, key: our_key, .. },
            ) => (function, transform, key) == (our_function, our_transform, our_key),
            _ => self == ours,
        }
    }
}

impl Change {
    /// Makes the setting what it was before.
    ///
    /// # Errors
    /// The kernel's.
    pub fn undo(&self, nic: &dyn Nic) -> io::Result<Undone> {
        let now = self.setting.read(nic)?;
        if now == self.before {
            return Ok(Undone::Already);
        }
        if !now.is_still(&self.after) {
            return Ok(Undone::Theirs(now));
        }
        self.setting.write(nic, &self.before)?;
        Ok(Undone::Back)
    }
}

/// As ethtool(8) writes keys.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn unhex(text: &str) -> io::Result<Vec<u8>> {
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidData);
    text.split(':').filter(|byte| !byte.is_empty()).map(|byte| u8::from_str_radix(byte, 16).map_err(wrong)).collect()
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Channels => f.write_str("queues"),
            Setting::Feature(name) => f.write_str(name),
            Setting::Rss => f.write_str("RSS"),
            Setting::HashFields(flow) => write!(f, "hashed fields of {flow}"),
            Setting::Affinity(irq) => write!(f, "CPUs of interrupt {irq}"),
            Setting::Knob(knob) => f.write_str(knob.file()),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Channels { rx, tx, combined, .. } => {
                write!(f, "{}", Channels { rx: *rx, tx: *tx, combined: *combined, ..Channels::default() })
            }
            Value::On(on) => f.write_str(if *on { "on" } else { "off" }),
            Value::Rss { function, transform, key, table, default } => {
                f.write_str(function_name(*function))?;
                match transform {
                    0 => {}
                    other => write!(f, " (transformation {other})")?,
                }
                // Enough of it to tell one from another.
                match key.get(..BYTES_SHOWN) {
                    Some(head) => write!(f, ", key {head}:..., ")?,
                    None => f.write_str(", key hidden, ")?,
                }
                if *default {
                    return f.write_str("default table");
                }
                let queues = table.iter().max().map_or(0, |queue| queue + 1);
                write!(f, "table of {} over {queues} queues", table.len())
            }
            Value::Fields(fields) => write!(f, "{fields:#x}"),
            Value::Cpus(cpus) => f.write_str(cpus),
            Value::Number(number) => write!(f, "{number}"),
        }
    }
}
