//! `-j MASQUERADE`: the source becomes the address of the interface the packet leaves by (xt_MASQUERADE.c): [`Masquerade`].

use super::nat_range::{Independence, NatRange, NatRequest, NatSource};
use crate::conntrack::Manip;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::{Hook, TableName};
use crate::wire::Family;

const TO_PORTS: u8 = 1;
const RANDOM: u8 = 2;
const RANDOM_FULLY: u8 = 3;
/// Not of Linux.
const MAPPING: u8 = 4;
/// Not of Linux.
const FILTERING: u8 = 5;
/// Not of Linux.
const BLOCK_SIZE: u8 = 6;
/// Not of Linux.
const BLOCKS_MOST: u8 = 7;

/// See the module's head. Addresses are not of the rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Masquerade(pub NatRange);

impl Extension for Masquerade {
    const NAME: &'static str = "MASQUERADE";
    const WANTS_CONNTRACK: bool = true;
    const TABLES: &'static [TableName] = &[TableName::Nat];
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(TO_PORTS, &["--to-ports"]),
        OptionSpec::new(RANDOM, &["--random"]).arguments(0),
        OptionSpec::new(RANDOM_FULLY, &["--random-fully"]).arguments(0),
        OptionSpec::new(MAPPING, &["--endpoint-independent-mapping"]).arguments(0),
        OptionSpec::new(FILTERING, &["--endpoint-independent-filtering"]).arguments(0),
        OptionSpec::new(BLOCK_SIZE, &["--port-block-size"]),
        OptionSpec::new(BLOCKS_MOST, &["--port-blocks"]),
    ];

    fn new(_: Family) -> Masquerade {
        Masquerade(NatRange::default())
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            TO_PORTS => self.0.read_ports(given)?,
            RANDOM => self.0.random = true,
            MAPPING => self.0.independence = self.0.independence.max(Independence::Mapping),
            FILTERING => self.0.independence = Independence::Filtering,
            BLOCK_SIZE => self.0.read_block_size(given)?,
            BLOCKS_MOST => self.0.read_blocks_most(given)?,
            _ => self.0.random_fully = true,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        self.0.check_ports(whole)
    }

    fn hooks(&self) -> u8 {
        Hook::Postrouting.bit()
    }

    fn save(&self, out: &mut String, _: Family) {
        if self.0.ports.is_some() {
            out.push_str(" --to-ports ");
            out.push_str(&self.0.ports_text());
        }
        self.0.save_flags(out);
    }
}

impl Action for Masquerade {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Once for a connection.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, (): &()) -> Outcome {
        NatRequest { manip: Manip::Source, range: &self.0, source: NatSource::OutPort }.run(context, world)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then (but for what is not of Linux).
    const SAVED: &[(Family, &str, &str)] = &[
        (Family::V4, "", ""),
        (Family::V4, "--to-ports 1000", "--to-ports 1000"),
        (Family::V4, "--endpoint-independent-mapping --random", "--random --endpoint-independent-mapping"),
        (Family::V4, "--to-ports 1000-2000", "--to-ports 1000-2000"),
        (Family::V4, "--to-ports 1000-1000", "--to-ports 1000"),
        (Family::V4, "--to-ports 0", "--to-ports 0"),
        (Family::V4, "--to-ports http", "--to-ports 80"),
        (Family::V4, "--random", "--random"),
        (Family::V4, "--port-blocks 4", "--port-block-size 512 --port-blocks 4"),
        (Family::V6, "--port-block-size 0x400", "--port-block-size 1024 --port-blocks 1"),
        (Family::V4, "--random-fully", "--random-fully"),
        (Family::V4, "--random-fully --random --to-ports 5-6", "--to-ports 5-6 --random --random-fully"),
        (Family::V6, "", ""),
        (Family::V6, "--to-ports 5-6 --random-fully", "--to-ports 5-6 --random-fully"),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (family, words, expected) in SAVED {
            let target: Masquerade = read(*family, words).expect(words);
            assert_eq!(saved(&target, *family), *expected, "{words}");
            assert_eq!(read::<Masquerade>(*family, expected).as_ref(), Ok(&target), "{expected}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let wrong: &[(Family, &str)] = &[
            (Family::V4, "--to-ports 2000-1000"),
            (Family::V4, "--to-ports 1000:2000"),
            (Family::V4, "--to-ports 1000-"),
            (Family::V4, "--to-ports 65536"),
            (Family::V4, "--to-ports \"\""),
            (Family::V4, "--to-ports 22-ssh"),
            (Family::V4, "--to-ports 5-6/7"),
            (Family::V4, "--persistent"),
            (Family::V4, "--port-block-size 63"),
            (Family::V4, "--port-block-size 100"),
            (Family::V4, "--port-block-size 65535"),
            (Family::V4, "--port-blocks 0"),
            (Family::V4, "--port-blocks 9"),
        ];
        for (family, words) in wrong {
            assert!(read::<Masquerade>(*family, words).is_err(), "{words}");
        }
    }
}
