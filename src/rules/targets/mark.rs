//! `-j MARK`: changes the packet's mark (`mark_tg` in xt_mark.c): [`Mark`].
//!
//! All its options are ways to say two numbers: `mark = (mark & !mask) ^ value`. They are printed as `--set-xmark`.

use super::argument;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::wire::Family;
use core::fmt::Write;

const SET_XMARK: u8 = 1;
const SET_MARK: u8 = 2;
const AND_MARK: u8 = 3;
const OR_MARK: u8 = 4;
const XOR_MARK: u8 = 5;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Bits to flip after those of the mask are cleared.
    pub value: u32,
    /// Bits to clear.
    pub mask: u32,
}

impl Extension for Mark {
    const NAME: &'static str = "MARK";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SET_XMARK, &["--set-xmark"]).group(1),
        OptionSpec::new(SET_MARK, &["--set-mark"]).group(1),
        OptionSpec::new(AND_MARK, &["--and-mark"]).group(1),
        OptionSpec::new(OR_MARK, &["--or-mark"]).group(1),
        OptionSpec::new(XOR_MARK, &["--xor-mark"]).group(1),
    ];

    fn new(_: Family) -> Mark {
        Mark { value: 0, mask: 0 }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        (self.value, self.mask) = match id {
            SET_XMARK => argument::marked(given)?,
            SET_MARK => {
                let (value, mask) = argument::marked(given)?;
                (value, mask | value)
            }
            AND_MARK => (0, !argument::number(given, 0, u32::MAX)?),
            OR_MARK => {
                let bits = argument::number(given, 0, u32::MAX)?;
                (bits, bits)
            }
            _ => (argument::number(given, 0, u32::MAX)?, 0),
        };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match whole.seen.is_empty() {
            true => Err(whole
                .problem("MARK without a mark", "which one?")
                .help("add --set-mark VALUE, --set-xmark, --and-mark, --or-mark or --xor-mark")),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        write!(out, " --set-xmark 0x{:x}/0x{:x}", self.value, self.mask).unwrap_or_default();
    }
}

impl Action for Mark {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// The mark is gone with the packet; only later rules of the same packet read it.
    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn run(&self, context: &mut Context<'_>, _: &mut dyn World, (): &()) -> Outcome {
        context.mark = (context.mark & !self.mask) ^ self.value;
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then.
    const SAVED: &[(&str, &str)] = &[
        ("--set-mark 5", "--set-xmark 0x5/0xffffffff"),
        ("--set-mark 5/0xff", "--set-xmark 0x5/0xff"),
        ("--set-mark 0x500/0xff", "--set-xmark 0x500/0x5ff"),
        ("--set-xmark 5/0xf0", "--set-xmark 0x5/0xf0"),
        ("--set-xmark 5", "--set-xmark 0x5/0xffffffff"),
        ("--and-mark 0xff00", "--set-xmark 0x0/0xffff00ff"),
        ("--or-mark 0x10", "--set-xmark 0x10/0x10"),
        ("--xor-mark 0x10", "--set-xmark 0x10/0x0"),
        ("--set-mark 010/0x0", "--set-xmark 0x8/0x8"),
        ("--set-mark 4294967295", "--set-xmark 0xffffffff/0xffffffff"),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, expected) in SAVED {
            let mark: Mark = read(Family::V4, words).expect(words);
            assert_eq!(saved(&mark, Family::V4), *expected, "{words}");
            assert_eq!(read::<Mark>(Family::V4, expected).as_ref(), Ok(&mark), "{expected}");
        }
    }

    #[test]
    fn what_is_no_mark_is_refused() {
        let wrong = ["4294967296", "-1", "5/", "/5", "\"\"", "0x", "08", "5/4294967296"];
        for words in wrong {
            assert!(read::<Mark>(Family::V4, &format!("--set-mark {words}")).is_err(), "{words}");
        }
        assert!(read::<Mark>(Family::V4, "--and-mark 5/3").is_err());
    }

    #[test]
    fn bits_are_cleared_then_flipped() {
        let cases = [
            ("--set-mark 5", 0xff00, 5),
            ("--set-mark 5/0xff", 0xff0a, 0xff05),
            ("--set-xmark 0x3/0x1", 0x2, 0x1),
            ("--and-mark 0xf0", 0xff, 0xf0),
            ("--or-mark 0xf0", 0x0f, 0xff),
            ("--xor-mark 0xf0", 0xff, 0x0f),
        ];
        for (words, before, after) in cases {
            let mark: Mark = read(Family::V4, words).expect(words);
            let mut packet = Packet::BLANK;
            let mut context = context(&mut packet, &mut [], Instant::from_secs(1));
            context.mark = before;
            assert_eq!(mark.run(&mut context, &mut Told::default(), &()), Outcome::Continue);
            assert_eq!(context.mark, after, "{words}");
        }
    }
}
