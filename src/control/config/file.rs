//! Reads a configuration file into a [`Layer`]: keys and values with their places, every problem collected.

use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigErrors, Layer, Masquerade, Place, Placed, Source, Workers};
use crate::control::sysctl::{self, Setting};

/// The names of the top level.
pub(super) const TOP: &[&str] = &[
    "lan",
    "wan",
    "rules",
    "rules6",
    "sets",
    "masquerade",
    "host_chains",
    "nflog",
    "track",
    "mode",
    "workers",
    "cores",
    "poll",
    "nic_setup",
    "state",
    "metrics",
    "control",
    "sysctl_from_kernel",
    "conntrack",
];

/// The layer that `source` makes.
pub(super) fn read(source: &Source) -> Result<Layer, ConfigErrors> {
    let mut errors = ConfigErrors::new(Some(source.clone()));
    let (document, syntax) = DeTable::parse_recoverable(&source.text);
    for error in syntax {
        let span = clamp(error.span().unwrap_or(0..0), &source.text);
        errors.add(&Place::File(span), format!("not TOML: {}", error.message().replace('\n', "; ")));
    }
    let mut layer = Layer::default();
    if errors.is_empty() {
        let mut entries: Vec<_> = document.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            entry(&mut layer, key, value, &mut errors);
        }
    }
    if errors.is_empty() { Ok(layer) } else { Err(errors) }
}

/// A span that lies in the text and on the boundaries of characters.
fn clamp(span: Range<usize>, text: &str) -> Range<usize> {
    let fit = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let start = fit(span.start);
    start..fit(span.end).max(start)
}

/// One `key = value` of the top level.
fn entry(layer: &mut Layer, key: &Spanned<impl AsRef<str>>, value: &Spanned<DeValue<'_>>, errors: &mut ConfigErrors) {
    let name = key.get_ref().as_ref();
    match name {
        "lan" => layer.lan = parsed(name, value, errors),
        "wan" => layer.wan = parsed(name, value, errors),
        "rules" => layer.rules = text(name, value, errors, super::parse_path),
        "rules6" => layer.rules6 = text(name, value, errors, super::parse_path),
        "sets" => layer.sets = text(name, value, errors, super::parse_path),
        "masquerade" => {
            // Yes and no are what most want to say.
            let place = Place::File(value.span());
            layer.masquerade = match value.get_ref().as_bool() {
                Some(true) => Some(Placed { value: Masquerade::Ipv4, place }),
                Some(false) => Some(Placed { value: Masquerade::No, place }),
                None => parsed(name, value, errors),
            };
        }
        "host_chains" => layer.host_chains = parsed(name, value, errors),
        "nflog" => layer.nflog = text(name, value, errors, super::parse_path),
        "track" => layer.track = parsed(name, value, errors),
        "mode" => layer.mode = parsed(name, value, errors),
        "poll" => layer.poll = parsed(name, value, errors),
        "nic_setup" => layer.nic_setup = parsed(name, value, errors),
        "state" => layer.state = text(name, value, errors, super::parse_path),
        "metrics" => layer.metrics = text(name, value, errors, super::parse_metrics),
        "control" => layer.control = text::<PathBuf>(name, value, errors, super::parse_socket_path),
        "workers" | "cores" => {
            let workers = if name == "workers" { count(value, errors) } else { cores(value, errors) };
            if let (Some(_), Some(_)) = (&layer.workers, &workers) {
                errors.add(
                    &Place::File(key.span()),
                    format!("`{name}` beside its other form; allowed: either workers or cores, not both"),
                );
            }
            layer.workers = workers.or(layer.workers.take());
        }
        "sysctl_from_kernel" => match value.get_ref().as_bool() {
            Some(on) => layer.sysctl_from_kernel = Some(on),
            None => errors.add(
                &Place::File(value.span()),
                format!("sysctl_from_kernel = {}: allowed: true or false", shown(value.get_ref())),
            ),
        },
        "conntrack" => match value.get_ref().as_table() {
            Some(table) => layer.conntrack = conntrack(table, errors),
            None => errors.add(
                &Place::File(value.span()),
                format!("conntrack is a {}; allowed: a table, `[conntrack]`", value.get_ref().type_str()),
            ),
        },
        unknown => unknown_key(unknown, TOP.iter().copied(), key.span(), errors),
    }
}

/// A value with its own `FromStr`.
fn parsed<T: FromStr<Err = String>>(
    name: &str,
    value: &Spanned<DeValue<'_>>,
    errors: &mut ConfigErrors,
) -> Option<Placed<T>> {
    text(name, value, errors, T::from_str)
}

/// A value written as a TOML string and understood by `parse`.
fn text<T>(
    name: &str,
    value: &Spanned<DeValue<'_>>,
    errors: &mut ConfigErrors,
    parse: fn(&str) -> Result<T, String>,
) -> Option<Placed<T>> {
    let place = Place::File(value.span());
    let outcome = match value.get_ref().as_str() {
        Some(text) => parse(text).map_err(|wrong| format!("{name} = {text:?}: {wrong}")),
        None => Err(format!("{name} is of type {}; allowed: a string in quotes", value.get_ref().type_str())),
    };
    match outcome {
        Ok(value) => Some(Placed { value, place }),
        Err(message) => {
            errors.add(&place, message);
            None
        }
    }
}

/// `workers = 2`.
fn count(value: &Spanned<DeValue<'_>>, errors: &mut ConfigErrors) -> Option<Placed<Workers>> {
    let place = Place::File(value.span());
    let outcome = match whole(value.get_ref()) {
        Some(number) => {
            Workers::parse_count(&number.to_string()).map_err(|wrong| format!("workers = {number}: {wrong}"))
        }
        None => Err(format!("workers is of type {}; allowed: a whole number", value.get_ref().type_str())),
    };
    match outcome {
        Ok(count) => Some(Placed { value: Workers::Count(count), place }),
        Err(message) => {
            errors.add(&place, message);
            None
        }
    }
}

/// `cores = "2,4-7"`, or `cores = [2, 4]`.
fn cores(value: &Spanned<DeValue<'_>>, errors: &mut ConfigErrors) -> Option<Placed<Workers>> {
    let place = Place::File(value.span());
    let list = match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(_) => whole(value.get_ref()).map(|cpu| cpu.to_string()),
        DeValue::Array(cpus) => {
            let cpus: Option<Vec<String>> =
                cpus.iter().map(|cpu| whole(cpu.get_ref()).map(|n| n.to_string())).collect();
            cpus.map(|cpus| cpus.join(","))
        }
        _ => None,
    };
    let outcome = match list {
        Some(list) => list.parse().map_err(|wrong| format!("cores = {list:?}: {wrong}")),
        None => Err("cores holds what is no CPU number; allowed: a string such as \"2,4-7\"".to_owned()),
    };
    match outcome {
        Ok(list) => Some(Placed { value: Workers::Cores(list), place }),
        Err(message) => {
            errors.add(&place, message);
            None
        }
    }
}

/// A whole number, whatever base it is written in.
fn whole(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
}

/// The `[conntrack]` table: settings under the sysctls' own names.
fn conntrack(table: &DeTable<'_>, errors: &mut ConfigErrors) -> Vec<(String, u64)> {
    let mut values = Vec::new();
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let name = key.get_ref().as_ref();
        let setting = match Setting::find(name) {
            Ok(setting) => setting,
            Err(wrong) => {
                errors.add(&Place::File(key.span()), format!("[conntrack]: {wrong}"));
                continue;
            }
        };
        let switch = value.get_ref().as_bool().filter(|_| setting.is_switch()).map(u64::from);
        let number = whole(value.get_ref()).and_then(|number| u64::try_from(number).ok());
        match switch.or(number).filter(|&number| setting.allows(number)) {
            Some(number) => values.push((name.to_owned(), number)),
            None => {
                let (found, allowed) = (shown(value.get_ref()), setting.allowed());
                errors.add(&Place::File(value.span()), format!("{name} = {found}: allowed: {allowed}"));
            }
        }
    }
    values
}

/// A value as a message shows it.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(on) => on.to_string(),
        other => format!("({})", other.type_str()),
    }
}

fn unknown_key<'k>(
    name: &str,
    known: impl Iterator<Item = &'k str> + Clone,
    span: Range<usize>,
    errors: &mut ConfigErrors,
) {
    let hint = match sysctl::nearest(name, known.clone()) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => format!("; allowed: {}", known.collect::<Vec<_>>().join(", ")),
    };
    errors.add(&Place::File(span), format!("unknown key `{name}`{hint}"));
}
