//! `-j NOTRACK`: the packet is UNTRACKED, as with `-j CT --notrack`: [`Notrack`].

use super::ct;
use crate::conntrack::Template;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome};
use crate::rules::registry::Registry;
use crate::rules::rule::TableName;
use crate::wire::Family;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notrack;

impl Extension for Notrack {
    const NAME: &'static str = "NOTRACK";
    const TABLES: &'static [TableName] = &[TableName::Raw];
    const OPTIONS: &'static [OptionSpec] = &[];

    fn new(_: Family) -> Notrack {
        Notrack
    }

    fn read(&mut self, _: u8, _: &Given<'_>) -> Result<(), Problem> {
        Ok(())
    }

    fn save(&self, _: &mut String, _: Family) {}
}

impl Action for Notrack {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// As [`ct::Ct`]'s.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, _: &mut dyn World, (): &()) -> Outcome {
        ct::give(context, Template::NOTRACK);
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context};
    use crate::time::Instant;

    #[test]
    fn the_packet_is_untracked_unless_another_rule_was_first() {
        let mut packet = Packet::BLANK;
        let mut context = context(&mut packet, &mut [], Instant::from_secs(1));
        assert_eq!(Notrack.run(&mut context, &mut Told::default(), &()), Outcome::Continue);
        assert_eq!(context.template, Template::NOTRACK);
        context.template = Template { given: true, ..Template::DEFAULT };
        Notrack.run(&mut context, &mut Told::default(), &());
        assert!(!context.template.notrack);
    }
}
