//! `-m mark`: the packet's mark (`skb->mark`), under a mask (`mark_mt` of xt_mark.c).

use super::common::put;
use super::number::Masked;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::Family;

const MARK: u8 = 0;

/// `-m mark [!] --mark VALUE[/MASK]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MarkMatch {
    mark: Masked,
    invert: bool,
}

impl MarkMatch {
    /// What it says of a packet with this mark.
    pub(in crate::rules) const fn holds(self, mark: u32) -> bool {
        self.mark.holds(mark) != self.invert
    }
}

impl Extension for MarkMatch {
    const NAME: &'static str = "mark";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(MARK, &["--mark"]).invertible()];

    fn new(_: Family) -> MarkMatch {
        MarkMatch { mark: Masked { value: 0, mask: 0 }, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        *self = MarkMatch { mark: Masked::read(given.argument())?, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<MarkMatch>()
    }

    fn save(&self, out: &mut String, _: Family) {
        put(out, self.invert, format_args!("--mark {}", self.mark));
    }
}

impl Matcher for MarkMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// A packet's mark is 0 until a rule of the same walk sets it.
    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        self.holds(context.mark).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask_with, checked, refuses, saves, v4};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<MarkMatch>(Family::V4, &[("--mark 1", "--mark 0x1"), ("! --mark 010/0xffffffff", "! --mark 0x8")]);
        refuses::<MarkMatch>(Family::V4, &["--mark", "--mark 5/", "--mark 4294967296"]);
        assert!(checked::<MarkMatch>(Family::V4, None, "").is_err());
        assert!(checked::<MarkMatch>(Family::V4, None, "--mark 1").is_ok());
    }

    #[test]
    fn the_mark_is_compared_under_the_mask() {
        let frame = v4(17, &[0; 8]);
        let marked = |words, mark| ask_with::<MarkMatch>(words, &frame, |context, _| context.mark = mark);
        assert_eq!(marked("--mark 0x10/0xf0", 0x1f), Answer::Yes);
        assert_eq!(marked("--mark 0x10/0xf0", 0x2f), Answer::No);
        assert_eq!(marked("! --mark 0x10/0xf0", 0x2f), Answer::Yes);
        assert_eq!(marked("--mark 0x11/0xf0", 0x11), Answer::No);
    }
}
