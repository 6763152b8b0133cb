//! `-m connmark`: the connection's mark, under a mask (`connmark_mt` of xt_connmark.c).

use super::common::put;
use super::number::Masked;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::Family;

const MARK: u8 = 0;

/// `-m connmark [!] --mark VALUE[/MASK]`. Without a connection it does not match, inverted or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnmarkMatch {
    mark: Masked,
    invert: bool,
}

impl ConnmarkMatch {
    /// What it says of a connection with this mark.
    pub(in crate::rules) const fn holds(self, mark: u32) -> bool {
        self.mark.holds(mark) != self.invert
    }
}

impl Extension for ConnmarkMatch {
    const NAME: &'static str = "connmark";
    const WANTS_CONNTRACK: bool = true;
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(MARK, &["--mark"]).invertible()];

    fn new(_: Family) -> ConnmarkMatch {
        ConnmarkMatch { mark: Masked { value: 0, mask: 0 }, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        *self = ConnmarkMatch { mark: Masked::read(given.argument())?, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<ConnmarkMatch>()
    }

    fn save(&self, out: &mut String, _: Family) {
        put(out, self.invert, format_args!("--mark {}", self.mark));
    }
}

impl Matcher for ConnmarkMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::ConnMark
    }

    fn test(&self, _: &Context<'_>, world: &dyn World, (): &()) -> Answer {
        world.conn_mark().is_some_and(|mark| self.holds(mark)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask_with, checked, refuses, saves, v4};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<ConnmarkMatch>(
            Family::V6,
            &[
                ("--mark 1", "--mark 0x1"),
                ("! --mark 0x10/0xff", "! --mark 0x10/0xff"),
                ("--mark 0x1ff/0xff", "--mark 0x1ff/0xff"),
            ],
        );
        refuses::<ConnmarkMatch>(Family::V6, &["--mark 5/", "--mark -1"]);
        assert!(checked::<ConnmarkMatch>(Family::V6, None, "").is_err());
    }

    #[test]
    fn without_a_connection_it_is_false_even_inverted() {
        let frame = v4(17, &[0; 8]);
        let marked = |words, mark| ask_with::<ConnmarkMatch>(words, &frame, |_, world| world.conn_mark = mark);
        assert_eq!(marked("--mark 1", Some(1)), Answer::Yes);
        assert_eq!(marked("! --mark 1", Some(1)), Answer::No);
        assert_eq!(marked("! --mark 1", Some(2)), Answer::Yes);
        assert_eq!(marked("! --mark 1", None), Answer::No);
        assert_eq!(marked("--mark 0", None), Answer::No);
    }
}
