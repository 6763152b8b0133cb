//! `-j DNAT`: the destination becomes another address (xt_nat.c): [`Dnat`].

use super::nat_range::{NatRange, NatRequest, NatSource};
use crate::conntrack::Manip;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::{Hook, TableName};
use crate::wire::Family;

const TO: u8 = 1;
const RANDOM: u8 = 2;
const PERSISTENT: u8 = 3;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dnat(pub NatRange);

impl Extension for Dnat {
    const NAME: &'static str = "DNAT";
    const WANTS_CONNTRACK: bool = true;
    const TABLES: &'static [TableName] = &[TableName::Nat];
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(TO, &["--to-destination"]),
        OptionSpec::new(RANDOM, &["--random"]).arguments(0),
        OptionSpec::new(PERSISTENT, &["--persistent"]).arguments(0),
    ];

    fn new(_: Family) -> Dnat {
        Dnat(NatRange::default())
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            TO => self.0.read_to(given, true)?,
            RANDOM => self.0.random = true,
            _ => self.0.persistent = true,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match whole.has(TO) {
            true => self.0.check_ports(whole),
            false => {
                Err(whole.problem("DNAT without an address", "to which one?").help("add --to-destination ADDRESS"))
            }
        }
    }

    fn hooks(&self) -> u8 {
        Hook::Prerouting.bit() | Hook::Output.bit()
    }

    fn save(&self, out: &mut String, family: Family) {
        out.push_str(" --to-destination ");
        out.push_str(&self.0.to_text(family));
        self.0.save_flags(out);
    }
}

impl Action for Dnat {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Once for a connection.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, (): &()) -> Outcome {
        NatRequest { manip: Manip::Destination, range: &self.0, source: NatSource::Range }.run(context, world)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then.
    const SAVED: &[(Family, &str, &str)] = &[
        (Family::V4, "--to-destination 1.2.3.4", "--to-destination 1.2.3.4"),
        (Family::V4, "--to-destination 1.2.3.4:80", "--to-destination 1.2.3.4:80"),
        (Family::V4, "--to-destination 1.2.3.4:80-90", "--to-destination 1.2.3.4:80-90"),
        (Family::V4, "--to-destination 1.2.3.4:80-90/100", "--to-destination 1.2.3.4:80-90/100"),
        (Family::V4, "--to-destination 1.2.3.4:80-90/http", "--to-destination 1.2.3.4:80-90/80"),
        (Family::V4, "--to-destination 1.2.3.4:80-80/100", "--to-destination 1.2.3.4:80/100"),
        (Family::V4, "--to-destination :80-90/100", "--to-destination :80-90/100"),
        (Family::V4, "--to-destination :8080", "--to-destination :8080"),
        (Family::V4, "--to-destination 1.2.3.4:http", "--to-destination 1.2.3.4:80"),
        (Family::V4, "--to-destination 1.2.3.4:0-5", "--to-destination 1.2.3.4:0-5"),
        (Family::V4, "--to-destination 1.2.3.4-1.2.3.9:80", "--to-destination 1.2.3.4-1.2.3.9:80"),
        (Family::V4, "--to-destination 1.2.3.4-1.2.3.4:80", "--to-destination 1.2.3.4:80"),
        (Family::V4, "--to-destination 1.2.3.4:0x50", "--to-destination 1.2.3.4:80"),
        (Family::V4, "--to-destination 1.2.3.4:010", "--to-destination 1.2.3.4:8"),
        (
            Family::V4,
            "--to-destination 1.2.3.4 --persistent --random",
            "--to-destination 1.2.3.4 --random --persistent",
        ),
        (Family::V6, "--to-destination fd00::1", "--to-destination fd00::1"),
        (Family::V6, "--to-destination [fd00::1]:80", "--to-destination [fd00::1]:80"),
        (Family::V6, "--to-destination [fd00::1]:80-90/100", "--to-destination [fd00::1]:80-90/100"),
        (Family::V6, "--to-destination [fd00::1-fd00::4]:80", "--to-destination [fd00::1-fd00::4]:80"),
        (Family::V6, "--to-destination fd00::1-fd00::4", "--to-destination fd00::1-fd00::4"),
        (Family::V6, "--to-destination fd00::1-fd00::1", "--to-destination fd00::1"),
        (Family::V6, "--to-destination :80", "--to-destination :80"),
        (Family::V6, "--to-destination []:80", "--to-destination :80"),
        (Family::V6, "--to-destination [fd00::1]", "--to-destination fd00::1"),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (family, words, expected) in SAVED {
            let target: Dnat = read(*family, words).expect(words);
            assert_eq!(saved(&target, *family), *expected, "{words}");
            assert_eq!(read::<Dnat>(*family, expected).as_ref(), Ok(&target), "{expected}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let wrong: &[(Family, &str)] = &[
            (Family::V4, "--to-destination 1.2.3.4:80-90/"),
            (Family::V4, "--to-destination 1.2.3.4:80-90/0"),
            (Family::V4, "--to-destination 1.2.3.4:80-90/65536"),
            (Family::V4, "--to-destination 1.2.3.4:http-90"),
            (Family::V4, "--to-destination 1.2.3.4:90-80"),
            (Family::V4, "--to-destination 1.2.3.4:"),
            (Family::V4, "--to-destination 1.2.3.4:80-"),
            (Family::V4, "--to-destination 1.2.3.4:-80"),
            (Family::V4, "--to-destination 1.2.3.4:-"),
            (Family::V4, "--to-destination 1.2.3.4:80:90"),
            (Family::V4, "--to-destination :"),
            (Family::V4, "--to-destination 1.2.3.4-1.2.3.9-1.2.3.10"),
            (Family::V6, "--to-destination [fd00::1]-[fd00::4]:80"),
            (Family::V6, "--to-destination [fd00::1]x"),
            (Family::V6, "--to-destination fd00::1]:5"),
            (Family::V6, "--to-destination fd00:80"),
            (Family::V4, "--to-destination 1.2.3.4 --random-fully"),
        ];
        for (family, words) in wrong {
            assert!(read::<Dnat>(*family, words).is_err(), "{words}");
        }
    }
}
