//! `-m hashlimit`: a rate for each address, port, or group of them (net/netfilter/xt_hashlimit.c, revision 3): what the rule
//! says ([`HashlimitMatch`]). The buckets are in [`table`], the arithmetic in [`rate`].
//!
//! What is read stays as given until all options are known, since a rate's unit, the burst and the mode decide together
//! what the kernel is told ([`HashlimitMatch::config`]); two rules are equal when that is.
//!
//! Stricter than iptables: a rate is a number and its unit and nothing else, where iptables ignores what it does not
//! understand (`5kb` without `/s` is five packets a second there).

#[path = "hashlimit/rate.rs"]
mod rate;
#[path = "hashlimit/table.rs"]
mod table;

pub(in crate::rules) use table::HashlimitTable;

use super::argument::{bare, number32, push, table_name};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::limit::jiffies;
use crate::rules::registry::Registry;
use crate::rules::token::Token;
use crate::wire::Family;
use rate::{BURST_MAX, Rate};
use std::sync::Arc;
use table::{Key, mode};

/// Longest name in bytes (`NAME_MAX` of the kernel, less its end).
const NAME_MAX: usize = 254;
/// Most buckets and entries (`HASHLIMIT_MAX_SIZE`).
const SIZE_MAX: u32 = 1_048_576;
/// Buckets where the rule does not say, on machines with more than 1 GiB of memory.
const SIZE_DEFAULT: u32 = 8192;
/// `--hashlimit-htable-gcinterval` where the rule does not say.
const GC_INTERVAL_MS: u32 = 1000;

/// What the kernel is told (`struct hashlimit_cfg3`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Config {
    rate: Rate,
    above: bool,
    /// Bits of [`mode`].
    mode: u8,
    size: u32,
    max: u32,
    gc_interval_ms: u32,
    expire_ms: u32,
    src_len: u8,
    dst_len: u8,
}

/// `-m hashlimit`.
#[derive(Clone, Debug)]
pub struct HashlimitMatch {
    family: Family,
    name: String,
    average: Option<rate::Average>,
    above: bool,
    burst: Option<u64>,
    mode: u8,
    size: u32,
    max: u32,
    gc_interval_ms: u32,
    expire_ms: Option<u32>,
    src_len: u8,
    dst_len: u8,
    rate_match: bool,
    interval: Option<u32>,
}

impl PartialEq for HashlimitMatch {
    fn eq(&self, other: &HashlimitMatch) -> bool {
        self.name == other.name && self.config() == other.config()
    }
}

impl Eq for HashlimitMatch {}

const UPTO: u8 = 1;
const ABOVE: u8 = 2;
const MODE: u8 = 3;
const SRCMASK: u8 = 4;
const DSTMASK: u8 = 5;
const NAME: u8 = 6;
const BURST: u8 = 7;
const HTABLE_SIZE: u8 = 8;
const HTABLE_MAX: u8 = 9;
const GCINTERVAL: u8 = 10;
const EXPIRE: u8 = 11;
const RATE_MATCH: u8 = 12;
const INTERVAL: u8 = 13;

impl Extension for HashlimitMatch {
    const NAME: &'static str = "hashlimit";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(UPTO, &["--hashlimit-upto", "--hashlimit"]).invertible().group(1),
        OptionSpec::new(ABOVE, &["--hashlimit-above"]).invertible().group(1),
        OptionSpec::new(MODE, &["--hashlimit-mode"]),
        OptionSpec::new(SRCMASK, &["--hashlimit-srcmask"]),
        OptionSpec::new(DSTMASK, &["--hashlimit-dstmask"]),
        OptionSpec::new(NAME, &["--hashlimit-name"]),
        OptionSpec::new(BURST, &["--hashlimit-burst"]),
        OptionSpec::new(HTABLE_SIZE, &["--hashlimit-htable-size"]),
        OptionSpec::new(HTABLE_MAX, &["--hashlimit-htable-max"]),
        OptionSpec::new(GCINTERVAL, &["--hashlimit-htable-gcinterval"]),
        OptionSpec::new(EXPIRE, &["--hashlimit-htable-expire"]),
        OptionSpec::new(RATE_MATCH, &["--hashlimit-rate-match"]).arguments(0),
        OptionSpec::new(INTERVAL, &["--hashlimit-rate-interval"]),
    ];

    fn new(family: Family) -> HashlimitMatch {
        HashlimitMatch {
            family,
            name: String::new(),
            average: None,
            above: false,
            burst: None,
            mode: 0,
            size: 0,
            max: 0,
            gc_interval_ms: GC_INTERVAL_MS,
            expire_ms: None,
            src_len: family.bits(),
            dst_len: family.bits(),
            rate_match: false,
            interval: None,
        }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            UPTO | ABOVE => {
                self.average = Some(average(given)?);
                self.above = (id == ABOVE) != given.invert;
            }
            MODE => self.mode = modes(given.argument())?,
            SRCMASK => self.src_len = number32(given, 0, given.family.bits().into())? as u8,
            DSTMASK => self.dst_len = number32(given, 0, given.family.bits().into())? as u8,
            NAME => self.name = table_name(given, NAME_MAX)?,
            BURST => self.burst = Some(burst(given.argument())?),
            HTABLE_SIZE => self.size = number32(given, 0, u32::MAX)?.min(SIZE_MAX),
            HTABLE_MAX => self.max = number32(given, 0, u32::MAX)?.min(SIZE_MAX),
            GCINTERVAL => self.gc_interval_ms = number32(given, 1, u32::MAX)?,
            EXPIRE => self.expire_ms = Some(number32(given, 1, u32::MAX)?),
            RATE_MATCH => self.rate_match = true,
            _ => self.interval = Some(number32(given, 1, i32::MAX as u32)?),
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        if self.average.is_none() {
            let help = "add --hashlimit-upto or --hashlimit-above";
            return Err(whole.problem("hashlimit without a rate", "incomplete").help(help));
        }
        if self.name.is_empty() {
            let help = "add --hashlimit-name: rules with the same name share their buckets";
            return Err(whole.problem("hashlimit without a name", "incomplete").help(help));
        }
        self.config().map(drop).map_err(|why| whole.problem(why, "cannot be counted so"))
    }

    fn save(&self, out: &mut String, family: Family) {
        // Checked when it was read.
        let Ok(config) = self.config() else { return };
        let rate = &config.rate;
        let option = if config.above { "--hashlimit-above" } else { "--hashlimit-upto" };
        push(out, format_args!(" {option} {}", rate.text()));
        if let Some(burst) = rate.burst_text() {
            push(out, format_args!(" --hashlimit-burst {burst}"));
        }
        if config.mode != 0 {
            let given: Vec<&str> = mode::NAMES.iter().filter(|one| config.mode & one.1 != 0).map(|one| one.0).collect();
            push(out, format_args!(" --hashlimit-mode {}", given.join(",")));
        }
        push(out, format_args!(" --hashlimit-name {}", bare(&self.name)));
        for (option, value, omitted) in [
            ("htable-size", config.size, 0),
            ("htable-max", config.max, 0),
            ("htable-gcinterval", config.gc_interval_ms, GC_INTERVAL_MS),
            ("htable-expire", config.expire_ms, rate.expire_omitted_ms()),
            ("srcmask", config.src_len.into(), family.bits().into()),
            ("dstmask", config.dst_len.into(), family.bits().into()),
        ] {
            if value != omitted {
                push(out, format_args!(" --hashlimit-{option} {value}"));
            }
        }
        if let Some(interval) = rate.interval {
            out.push_str(" --hashlimit-rate-match");
            if interval != 1 {
                push(out, format_args!(" --hashlimit-rate-interval {interval}"));
            }
        }
    }
}

impl HashlimitMatch {
    /// What the kernel is told (`hashlimit_mt_check` of libxt_hashlimit.c).
    ///
    /// # Errors
    /// Why it would be refused.
    fn config(&self) -> Result<Config, String> {
        let average = self.average.ok_or("there is no rate")?;
        let interval = self.rate_match.then_some(self.interval);
        let rate = Rate::new(average, self.burst, interval)?;
        Ok(Config {
            rate,
            above: self.above,
            mode: self.mode,
            size: self.size,
            max: self.max,
            gc_interval_ms: self.gc_interval_ms,
            expire_ms: self.expire_ms.unwrap_or(rate::expire_default_ms(average, self.burst)),
            src_len: self.src_len,
            dst_len: self.dst_len,
        })
    }
}

/// `N[/unit]` in packets or `N[k|m]b/s` in bytes.
fn average(given: &Given<'_>) -> Result<rate::Average, Problem> {
    let token = given.argument();
    rate::Average::parse(&token.text).map_err(|bad| {
        let problem = Problem::new(token.span, format!("bad rate `{}`", token.text), bad.reason());
        problem.help("write packets as N/second, /minute, /hour or /day, bytes as Nb/s, Nkb/s or Nmb/s")
    })
}

/// `srcip,srcport,dstip,dstport`.
fn modes(token: &Token) -> Result<u8, Problem> {
    let words = token.text.split([',', '|']).filter(|word| !word.is_empty());
    words.into_iter().try_fold(0, |bits, word| {
        let known = mode::NAMES.iter().find(|one| one.0 == word);
        known.map(|one| bits | one.1).ok_or_else(|| {
            Problem::new(token.span, format!("unknown mode `{word}`"), "expected a list without blanks")
                .help("known are srcip, srcport, dstip, dstport")
        })
    })
}

/// `N`, or bytes as `Nkb` or `Nmb`.
fn burst(token: &Token) -> Result<u64, Problem> {
    let digits = token.text.find(|c: char| !c.is_ascii_digit()).unwrap_or(token.text.len());
    let (number, unit) = token.text.split_at(digits);
    let factor = match unit {
        "" | "b" => Some(1),
        "k" | "kb" => Some(1 << 10),
        "m" | "mb" => Some(1 << 20),
        _ => None,
    };
    let number = number.parse::<u64>().ok().filter(|&number| number != 0 && (!unit.is_empty() || number <= BURST_MAX));
    number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor)).ok_or_else(|| {
        Problem::new(token.span, format!("bad burst `{}`", token.text), "expected a number")
            .help(format!("packets from 1 to {BURST_MAX}, or bytes as Nb, Nkb or Nmb"))
    })
}

/// A rule's share of its table.
#[derive(Debug)]
pub(in crate::rules) struct HashlimitState {
    table: Arc<HashlimitTable>,
    /// `above`, as the rule itself says it.
    above: bool,
    bytes: bool,
    rate_match: bool,
}

impl Matcher for HashlimitMatch {
    type State = HashlimitState;

    fn state(&self, registry: &mut Registry) -> HashlimitState {
        let config = self.config().expect("a rate out of range was let through");
        let family = self.family;
        let secret = registry.secret;
        let (table, _) =
            registry.hashlimit.named(&self.name, Some(family), || HashlimitTable::new(family, config, secret));
        HashlimitState {
            table,
            above: config.above,
            bytes: config.rate.bytes,
            rate_match: config.rate.interval.is_some(),
        }
    }

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, state: &HashlimitState) -> Answer {
        let table = &state.table;
        let Some(key) = Key::of(context.packet, context.frame, table.config()) else { return Answer::Hotdrop };
        let length = u32::from(context.packet.l3_len);
        match table.take(key, length, state.bytes, state.rate_match, jiffies(context.now)) {
            Some(within) => Answer::from(within != state.above),
            None => Answer::Hotdrop,
        }
    }
}
