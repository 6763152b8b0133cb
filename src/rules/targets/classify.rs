//! `-j CLASSIFY`: the packet's class for traffic control (xt_CLASSIFY.c): [`Classify`]. Nothing here reads it.

use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::Hook;
use crate::wire::Family;
use core::fmt::Write;

const SET_CLASS: u8 = 1;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Classify {
    /// `MAJOR`
    pub major: u16,
    /// `MINOR`
    pub minor: u16,
}

impl Extension for Classify {
    const NAME: &'static str = "CLASSIFY";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(SET_CLASS, &["--set-class"])];

    fn new(_: Family) -> Classify {
        Classify { major: 0, minor: 0 }
    }

    /// Hexadecimal, with or without 0x. iptables cuts what is longer than 16 bits; here it is refused.
    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        let half = |text: &str| {
            let digits = text.strip_prefix("0x").unwrap_or(text);
            let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            u16::from_str_radix(digits, 16).ok().filter(|_| plain)
        };
        let class = token.text.split_once(':').and_then(|(major, minor)| half(major).zip(half(minor)));
        (self.major, self.minor) = class.ok_or_else(|| {
            Problem::new(token.span, format!("`{}` is no class", token.text), "expected MAJOR:MINOR")
                .help("both are hexadecimal, up to ffff")
        })?;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match whole.seen.is_empty() {
            true => Err(whole.problem("CLASSIFY without a class", "which one?").help("add --set-class MAJOR:MINOR")),
            false => Ok(()),
        }
    }

    fn hooks(&self) -> u8 {
        Hook::Forward.bit() | Hook::Output.bit() | Hook::Postrouting.bit()
    }

    fn save(&self, out: &mut String, _: Family) {
        write!(out, " --set-class {:04x}:{:04x}", self.major, self.minor).unwrap_or_default();
    }

    fn not_honoured(&self) -> Option<String> {
        Some("packets do not pass Linux's traffic control on their way out, so their class means nothing".to_owned())
    }
}

impl Action for Classify {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn run(&self, _: &mut Context<'_>, _: &mut dyn World, (): &()) -> Outcome {
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, expected) in [("1:2", "0001:0002"), ("0001:ffff", "0001:ffff"), ("0x1:0x2", "0001:0002")] {
            let classify: Classify = read(Family::V4, &format!("--set-class {words}")).expect(words);
            assert_eq!(saved(&classify, Family::V4), format!("--set-class {expected}"));
            assert!(classify.not_honoured().is_some());
        }
        for words in ["1:", ":1", "1", "1:10000", "12345:0", "+1:2"] {
            assert!(read::<Classify>(Family::V4, &format!("--set-class {words}")).is_err(), "{words}");
        }
    }
}
