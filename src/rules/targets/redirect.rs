//! `-j REDIRECT`: the destination becomes the router itself (xt_REDIRECT.c): [`Redirect`].

use super::nat_range::{NatRange, NatRequest, NatSource};
use crate::conntrack::Manip;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::{Hook, TableName};
use crate::wire::Family;

const TO_PORTS: u8 = 1;
const RANDOM: u8 = 2;

/// See the module's head. Addresses are not of the rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Redirect(pub NatRange);

impl Extension for Redirect {
    const NAME: &'static str = "REDIRECT";
    const WANTS_CONNTRACK: bool = true;
    const TABLES: &'static [TableName] = &[TableName::Nat];
    const OPTIONS: &'static [OptionSpec] =
        &[OptionSpec::new(TO_PORTS, &["--to-ports"]), OptionSpec::new(RANDOM, &["--random"]).arguments(0)];

    fn new(_: Family) -> Redirect {
        Redirect(NatRange::default())
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            TO_PORTS => self.0.read_ports(given)?,
            _ => self.0.random = true,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        self.0.check_ports(whole)
    }

    fn hooks(&self) -> u8 {
        Hook::Prerouting.bit() | Hook::Output.bit()
    }

    fn save(&self, out: &mut String, _: Family) {
        if self.0.ports.is_some() {
            out.push_str(" --to-ports ");
            out.push_str(&self.0.ports_text());
        }
        self.0.save_flags(out);
    }
}

impl Action for Redirect {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Once for a connection.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, (): &()) -> Outcome {
        NatRequest { manip: Manip::Destination, range: &self.0, source: NatSource::InPort }.run(context, world)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then.
    const SAVED: &[(Family, &str, &str)] = &[
        (Family::V4, "", ""),
        (Family::V4, "--to-ports 80", "--to-ports 80"),
        (Family::V4, "--to-ports 80-90", "--to-ports 80-90"),
        (Family::V4, "--to-ports http", "--to-ports 80"),
        (Family::V4, "--to-ports 80-80", "--to-ports 80"),
        (Family::V4, "--to-ports 0", "--to-ports 0"),
        (Family::V4, "--to-ports 80 --random", "--to-ports 80 --random"),
        (Family::V4, "--random", "--random"),
        (Family::V6, "--random --to-ports 80", "--to-ports 80 --random"),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (family, words, expected) in SAVED {
            let target: Redirect = read(*family, words).expect(words);
            assert_eq!(saved(&target, *family), *expected, "{words}");
            assert_eq!(read::<Redirect>(*family, expected).as_ref(), Ok(&target), "{expected}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let wrong: &[(Family, &str)] = &[
            (Family::V4, "--to-ports http-90"),
            (Family::V4, "--to-ports 90-80"),
            (Family::V4, "--to-ports 80-90/100"),
            (Family::V4, "--to-ports 80:90"),
            (Family::V4, "--persistent"),
            (Family::V4, "--random-fully"),
            (Family::V6, "--to-ports 80-99/100"),
        ];
        for (family, words) in wrong {
            assert!(read::<Redirect>(*family, words).is_err(), "{words}");
        }
    }
}
