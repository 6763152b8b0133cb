//! `-m helper`: connections that a helper (`nf_conntrack_ftp` and its like) expected (`helper_mt` of xt_helper.c).

use super::common::put;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::save::string_text;
use crate::wire::Family;

const HELPER: u8 = 0;

/// Longest name in bytes; what is longer is cut, as iptables does.
const NAME_MAX: usize = 29;

/// `-m helper [!] --helper NAME`: the helper of the connection that this one belongs to; the empty name is any.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelperMatch {
    name: String,
    invert: bool,
}

impl Extension for HelperMatch {
    const NAME: &'static str = "helper";
    const WANTS_CONNTRACK: bool = true;
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(HELPER, &["--helper"]).invertible()];

    fn new(_: Family) -> HelperMatch {
        HelperMatch { name: String::new(), invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        let text = &given.argument().text;
        let cut = (0..=text.len().min(NAME_MAX)).rev().find(|&at| text.is_char_boundary(at));
        *self = HelperMatch { name: text[..cut.unwrap_or(0)].to_owned(), invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<HelperMatch>()
    }

    fn save(&self, out: &mut String, _: Family) {
        put(out, self.invert, format_args!("--helper {}", string_text(&self.name)));
    }
}

impl Matcher for HelperMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// A connection belongs to the same one all its life.
    fn basis(&self) -> Basis {
        Basis::Flow
    }

    /// Linux compares only as far as the helper's own name goes, so that `ftp-2121` is met by `ftp`.
    fn test(&self, _: &Context<'_>, world: &dyn World, (): &()) -> Answer {
        let found = world.master_helper().is_some_and(|helper| self.name.is_empty() || self.name.starts_with(helper));
        (found != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask_with, checked, saves, v4};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<HelperMatch>(
            Family::V4,
            &[
                ("--helper ftp", "--helper ftp"),
                ("! --helper ftp-21", "! --helper ftp-21"),
                (r#"--helper """#, r#"--helper """#),
                (r#"--helper "a b""#, r#"--helper "a b""#),
                ("--helper abcdefghijklmnopqrstuvwxyzabcd", "--helper abcdefghijklmnopqrstuvwxyzabc"),
            ],
        );
        assert!(checked::<HelperMatch>(Family::V4, None, "").is_err());
    }

    #[test]
    fn the_helper_is_that_of_the_connection_before() {
        let frame = v4(17, &[0; 8]);
        let asked = |words, helper| ask_with::<HelperMatch>(words, &frame, |_, world| world.master_helper = helper);
        assert_eq!(asked("--helper ftp", Some("ftp")), Answer::Yes);
        assert_eq!(asked("--helper ftp-2121", Some("ftp")), Answer::Yes);
        assert_eq!(asked("--helper sip", Some("ftp")), Answer::No);
        assert_eq!(asked(r#"--helper """#, Some("ftp")), Answer::Yes);
        assert_eq!(asked(r#"--helper """#, None), Answer::No);
        assert_eq!(asked("! --helper ftp", None), Answer::Yes);
        assert_eq!(asked("! --helper ftp", Some("ftp")), Answer::No);
    }
}
