//! Arguments that several targets have in common, read and printed: numbers, marks with a mask, names, addresses.

use crate::rules::diagnostic::Problem;
use crate::rules::extension::Given;
use crate::rules::save::string_text;
use crate::rules::value;
use crate::wire::{Addr, Family};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A number from `low` to `high`.
pub(super) fn number(given: &Given<'_>, low: u32, high: u32) -> Result<u32, Problem> {
    let token = given.argument();
    value::unsigned(&token.text, high).filter(|&number| number >= low).ok_or_else(|| {
        let message = format!("`{}` is no number for `{}`", token.text, given.name);
        let expected = match (low, high) {
            (0, u32::MAX) => "expected a number of 32 bits".to_owned(),
            _ => format!("expected a number, {low} to {high}"),
        };
        Problem::new(token.span, message, expected)
    })
}

/// `value[/mask]`, both of 32 bits; without a mask, all of it is meant.
pub(super) fn marked(given: &Given<'_>) -> Result<(u32, u32), Problem> {
    let token = given.argument();
    let (mark, mask) = match token.text.split_once('/') {
        Some((mark, mask)) => (mark, value::unsigned(mask, u32::MAX)),
        None => (token.text.as_str(), Some(u32::MAX)),
    };
    value::unsigned(mark, u32::MAX).zip(mask).ok_or_else(|| {
        let message = format!("`{}` is no mark for `{}`", token.text, given.name);
        Problem::new(token.span, message, "expected VALUE or VALUE/MASK")
            .help("both are numbers of 32 bits, as 0x10/0xff")
    })
}

/// A name that is printed bare, unless it would not read back so.
pub(super) fn name(text: &str) -> String {
    if text.contains([' ', '\t', '"']) { string_text(text) } else { text.to_owned() }
}

/// An address of this IP version, written in full.
pub(super) fn address(text: &str, family: Family) -> Option<Addr> {
    match family {
        Family::V4 => text.parse::<Ipv4Addr>().ok().map(Addr::from),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(Addr::from),
    }
}
