//! What several matches demand of their rule, and how their options are put into the text.

use crate::rules::diagnostic::Problem;
use crate::rules::extension::{HOOKS_ALL, Whole};
use crate::rules::rule::Hook;
use crate::rules::save::{bang, push};
use core::fmt;

/// Adds ` option`, or ` ! option`.
pub(super) fn put(out: &mut String, invert: bool, option: fmt::Arguments<'_>) {
    push(out, format_args!("{} {option}", bang(invert)));
}

/// Refuses match `name` without any of the options it is made of; `wanted` names them.
///
/// # Errors
/// With advice.
pub(super) fn need_option(whole: &Whole<'_>, name: &str, ids: &[u8], wanted: &str) -> Result<(), Problem> {
    match ids.iter().any(|&id| whole.has(id)) {
        true => Ok(()),
        false => Err(whole.problem(format!("`-m {name}` needs {wanted}"), "no option given")),
    }
}

/// Hooks where a packet has come in by a port: all but POSTROUTING and OUTPUT.
pub(super) const HOOKS_WITH_INPUT: u8 = HOOKS_ALL & !Hook::Postrouting.bit() & !Hook::Output.bit();

/// Hooks where the way out is known: all but PREROUTING and INPUT.
pub(super) const HOOKS_WITH_OUTPUT: u8 = HOOKS_ALL & !Hook::Prerouting.bit() & !Hook::Input.bit();
