//! Connection tracking's settings under the sysctls' own names: [`Setting`], one of them with what it allows.
//!
//! One list serves the `[conntrack]` table of the configuration, `--sysctl-from-kernel` and `xrouter sysctl`: the fields of
//! [`Settings`] with the prefix `nf_conntrack_`, values as numbers, as in /proc/sys/net/netfilter. A switch is 0 or 1.

use std::fmt;
use std::fs;

use serde_json::{Map, Value};

use super::startup::Failure;
use crate::conntrack::Settings;

/// What every name begins with.
const PREFIX: &str = "nf_conntrack_";

/// In front of a name in listings, as sysctl(8) writes it.
pub const PATH: &str = "net.netfilter.";

/// The sysctl that only tells: how many connections there are.
pub const COUNT: &str = "nf_conntrack_count";

/// Sysctls of Linux's that nothing here would heed.
const WITHOUT_MEANING: &[&str] = &[
    "buckets",
    "events",
    "expect_max",
    "frag6_high_thresh",
    "frag6_low_thresh",
    "frag6_timeout",
    "helper",
    "log_invalid",
];

/// The longest time-out, in seconds: what the sysctls take on a kernel with 1000 ticks a second.
const MAX_SECONDS: u64 = 2_147_483;

/// Where the kernel has them.
const KERNEL: &str = "/proc/sys/net/netfilter/";

fn fields(settings: &Settings) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => fields,
        other => unreachable!("a struct of plain fields is an object: {other:?}"),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| u64::from(value.as_bool() == Some(true)))
}

/// Every setting's name and value.
pub fn values(settings: &Settings) -> Vec<(String, u64)> {
    fields(settings).iter().map(|(field, value)| (format!("{PREFIX}{field}"), number(value))).collect()
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    field: String,
    switch: bool,
}

/// A name that is none of a setting's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    name: String,
    hint: String,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.name, self.hint)
    }
}

impl Setting {
    /// The setting of this name.
    ///
    /// # Errors
    /// When there is none, with the name that was probably meant.
    pub fn find(name: &str) -> Result<Setting, UnknownName> {
        let unknown = |hint: String| Err(UnknownName { name: name.to_owned(), hint });
        let fields = fields(&Settings::default());
        let bare = name.strip_prefix(PREFIX);
        if let Some((field, default)) = bare.and_then(|bare| fields.get_key_value(bare)) {
            return Ok(Setting { field: field.clone(), switch: default.is_boolean() });
        }
        if bare.is_some_and(|bare| WITHOUT_MEANING.contains(&bare)) {
            return unknown("is a sysctl of Linux's that has no meaning here; leave it out".to_owned());
        }
        match nearest(name, fields.keys().map(String::as_str)) {
            Some(near) => unknown(format!("is no sysctl; did you mean `{PREFIX}{near}`?")),
            None => unknown(format!("is no sysctl of connection tracking's; they begin with {PREFIX}")),
        }
    }

    /// The setting's name.
    pub fn name(&self) -> String {
        format!("{PREFIX}{}", self.field)
    }

    /// Whether it is on or off.
    pub fn is_switch(&self) -> bool {
        self.switch
    }

    fn range(&self) -> (u64, u64) {
        match self.field.as_str() {
            _ if self.switch => (0, 1),
            "max" => (1, Settings::MAX_LIMIT as u64),
            "expect_max" => (1, Settings::EXPECT_LIMIT as u64),
            "tcp_max_retrans" => (0, u64::from(u8::MAX)),
            _ => (1, MAX_SECONDS),
        }
    }

    /// Whether it may have this value.
    pub fn allows(&self, value: u64) -> bool {
        let (least, most) = self.range();
        (least..=most).contains(&value)
    }

    /// The values it may have, in words.
    pub fn allowed(&self) -> String {
        match self.range() {
            _ if self.switch => "true or false, 1 or 0".to_owned(),
            (least, most) => format!("a whole number from {least} to {most}"),
        }
    }
}

/// `settings` with these changed.
///
/// # Errors
/// What is wrong with the first that is unknown or not allowed.
pub fn apply(settings: &Settings, changes: &[(String, u64)]) -> Result<Settings, String> {
    let mut fields = fields(settings);
    for (name, value) in changes {
        let setting = Setting::find(name).map_err(|unknown| unknown.to_string())?;
        if !setting.allows(*value) {
            return Err(format!("{name} = {value}: allowed: {}", setting.allowed()));
        }
        let value = if setting.switch { Value::from(*value == 1) } else { Value::from(*value) };
        fields.insert(setting.field, value);
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
}

/// What the kernel has now, but for those that are `given` otherwise.
///
/// # Errors
/// When it tracks no connections, or has a value that cannot be taken over.
pub fn of_the_kernel(given: &[(String, u64)]) -> Result<Vec<(String, u64)>, Failure> {
    let max = format!("{KERNEL}{PREFIX}max");
    if let Err(error) = fs::metadata(&max) {
        return Err(Failure::Machine(format!(
            "--sysctl-from-kernel: {max}: {error}. Load the module that has it (modprobe nf_conntrack), or leave the \
             option out"
        )));
    }
    let mut taken = Vec::new();
    for (name, _) in values(&Settings::default()) {
        let path = format!("{KERNEL}{name}");
        if given.iter().any(|(already, _)| *already == name) {
            continue;
        }
        // Not every kernel has every one (SCTP, GRE); the default is Linux's.
        let Ok(text) = fs::read_to_string(&path) else {
            tracing::info!("{path}: not in this kernel; the default stays");
            continue;
        };
        let (text, setting) = (text.trim(), Setting::find(&name).expect("a name of the list"));
        match text.parse().ok().filter(|&value| setting.allows(value)) {
            Some(value) => taken.push((name, value)),
            None => {
                return Err(Failure::Usage(format!(
                    "--sysctl-from-kernel: {path} is {text}, which cannot be taken over; allowed: {}. Say in \
                     [conntrack] what {name} shall be instead",
                    setting.allowed()
                )));
            }
        }
    }
    Ok(taken)
}

/// The settings that a run starts with: Linux's defaults, the kernel's values if they are asked for, and what was given.
/// What comes from the kernel is written to the log.
///
/// # Errors
/// When the kernel's values cannot be taken over.
pub fn at_start(from_kernel: bool, given: &[(String, u64)]) -> Result<Settings, Failure> {
    let mut settings = Settings::default();
    if from_kernel {
        let defaults = values(&settings);
        let taken = of_the_kernel(given)?;
        let changed: Vec<_> = taken.iter().filter(|it| !defaults.contains(it)).collect();
        tracing::info!(
            "conntrack settings: {} taken from the kernel, {} of them other than the default",
            taken.len(),
            changed.len()
        );
        for (name, value) in changed {
            tracing::info!("conntrack settings: {PATH}{name} = {value}, from the kernel");
        }
        settings = apply(&settings, &taken).map_err(Failure::Usage)?;
    }
    apply(&settings, given).map_err(Failure::Usage)
}

/// The known name that takes the fewest edits to make from `name`, if few enough that it was probably meant.
pub fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let name = name.to_lowercase().replace('-', "_");
    let name = name.strip_prefix(PREFIX).unwrap_or(&name);
    let limit = if name.chars().count() < 4 { 1 } else { (name.chars().count() / 3).max(2) };
    known.map(|word| (edits(name, word), word)).filter(|&(edits, _)| edits <= limit).min().map(|(_, word)| word)
}

/// Levenshtein distance in characters. The names compared are short: a long one is cut.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, from) in from.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, &to) in to.iter().enumerate() {
            let cost = diagonal + usize::from(from != to);
            diagonal = row[column + 1];
            row[column + 1] = cost.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_set_by_name() {
        let changes = [("nf_conntrack_max".to_owned(), 7), ("nf_conntrack_tcp_loose".to_owned(), 0)];
        let settings = apply(&Settings::default(), &changes).expect("good values");
        assert_eq!(settings, Settings { max: 7, tcp_loose: false, ..Settings::default() });
        assert_eq!(apply(&Settings::default(), &values(&settings)), Ok(settings));
        for (name, value, said) in [
            ("nf_conntrack_max", 0, "nf_conntrack_max = 0: allowed: a whole number from 1 to"),
            ("nf_conntrack_checksum", 2, "allowed: true or false"),
            ("nf_conntrack_maxx", 2, "did you mean `nf_conntrack_max`?"),
            ("max", 2, "did you mean `nf_conntrack_max`?"),
            ("nf_conntrack_buckets", 2, "has no meaning here"),
            ("zebra", 2, "begin with nf_conntrack_"),
        ] {
            let error = apply(&Settings::default(), &[(name.to_owned(), value)]).expect_err(name);
            assert!(error.contains(said), "{error}");
        }
    }

    /// On a machine without nf_conntrack the error is the test.
    #[test]
    fn the_kernels_values_are_taken_but_for_those_given() {
        let given = [("nf_conntrack_max".to_owned(), 1234)];
        match of_the_kernel(&given) {
            Ok(taken) => {
                assert_eq!(taken.len() + 1, values(&Settings::default()).len(), "{taken:?}");
                assert!(!taken.iter().any(|(name, _)| name == "nf_conntrack_max"));
                assert_eq!(at_start(true, &given).expect("the same").max, 1234);
            }
            Err(failure) => assert!(failure.message().contains("modprobe nf_conntrack"), "{failure}"),
        }
    }
}
