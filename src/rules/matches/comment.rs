//! `-m comment`: says something to the reader, and matches always.

use super::super::context::{Context, World};
use super::super::diagnostic::Problem;
use super::super::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use super::super::registry::Registry;
use super::super::save::{push, string_text};
use super::super::value;
use crate::wire::Family;

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CommentMatch(pub String);

impl Extension for CommentMatch {
    const NAME: &'static str = "comment";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(0, &["--comment"])];

    fn new(_: Family) -> CommentMatch {
        CommentMatch::default()
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        self.0 = value::comment(given.argument())?;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<CommentMatch>()
    }

    fn save(&self, out: &mut String, _: Family) {
        push(out, format_args!(" --comment {}", string_text(&self.0)));
    }
}

impl Matcher for CommentMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, _: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        Answer::Yes
    }
}
