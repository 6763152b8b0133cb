//! `-j CHECKSUM`: finishes a checksum that the sender's stack left for a NIC (xt_CHECKSUM.c): [`Checksum`].
//!
//! Nothing is left to do: every packet that leaves has a finished checksum, with this rule and without.

use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::TableName;
use crate::wire::Family;

const FILL: u8 = 1;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checksum;

impl Extension for Checksum {
    const NAME: &'static str = "CHECKSUM";
    const TABLES: &'static [TableName] = &[TableName::Mangle];
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(FILL, &["--checksum-fill"]).arguments(0)];

    fn new(_: Family) -> Checksum {
        Checksum
    }

    fn read(&mut self, _: u8, _: &Given<'_>) -> Result<(), Problem> {
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match whole.seen.is_empty() {
            true => Err(whole.problem("CHECKSUM without anything to do", "what with it?").help("add --checksum-fill")),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        out.push_str(" --checksum-fill");
    }
}

impl Action for Checksum {
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
        let checksum: Checksum = read(Family::V4, "--checksum-fill").expect("good");
        assert_eq!(saved(&checksum, Family::V4), "--checksum-fill");
    }
}
