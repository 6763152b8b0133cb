//! `-j SNAT`: the source becomes another address (xt_nat.c): [`Snat`].

use super::nat_range::{Independence, NatRange, NatRequest, NatSource};
use crate::conntrack::Manip;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::{Hook, TableName};
use crate::wire::Family;

const TO: u8 = 1;
const RANDOM: u8 = 2;
const RANDOM_FULLY: u8 = 3;
/// Not of Linux.
const MAPPING: u8 = 5;
/// Not of Linux.
const FILTERING: u8 = 6;
/// Not of Linux.
const BLOCK_SIZE: u8 = 7;
/// Not of Linux.
const BLOCKS_MOST: u8 = 8;
const PERSISTENT: u8 = 4;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snat(pub NatRange);

impl Extension for Snat {
    const NAME: &'static str = "SNAT";
    const WANTS_CONNTRACK: bool = true;
    const TABLES: &'static [TableName] = &[TableName::Nat];
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(TO, &["--to-source"]),
        OptionSpec::new(RANDOM, &["--random"]).arguments(0),
        OptionSpec::new(RANDOM_FULLY, &["--random-fully"]).arguments(0),
        OptionSpec::new(MAPPING, &["--endpoint-independent-mapping"]).arguments(0),
        OptionSpec::new(FILTERING, &["--endpoint-independent-filtering"]).arguments(0),
        OptionSpec::new(BLOCK_SIZE, &["--port-block-size"]),
        OptionSpec::new(BLOCKS_MOST, &["--port-blocks"]),
        OptionSpec::new(PERSISTENT, &["--persistent"]).arguments(0),
    ];

    fn new(_: Family) -> Snat {
        Snat(NatRange::default())
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            TO => self.0.read_to(given, false)?,
            RANDOM => self.0.random = true,
            MAPPING => self.0.independence = self.0.independence.max(Independence::Mapping),
            FILTERING => self.0.independence = Independence::Filtering,
            BLOCK_SIZE => self.0.read_block_size(given)?,
            BLOCKS_MOST => self.0.read_blocks_most(given)?,
            RANDOM_FULLY => self.0.random_fully = true,
            _ => self.0.persistent = true,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match whole.has(TO) {
            true => self.0.check_ports(whole),
            false => Err(whole.problem("SNAT without an address", "to which one?").help("add --to-source ADDRESS")),
        }
    }

    fn hooks(&self) -> u8 {
        Hook::Input.bit() | Hook::Postrouting.bit()
    }

    fn save(&self, out: &mut String, family: Family) {
        out.push_str(" --to-source ");
        out.push_str(&self.0.to_text(family));
        self.0.save_flags(out);
    }
}

impl Action for Snat {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Once for a connection.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, (): &()) -> Outcome {
        NatRequest { manip: Manip::Source, range: &self.0, source: NatSource::Range }.run(context, world)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then (but for what is not of Linux).
    const SAVED: &[(Family, &str, &str)] = &[
        (Family::V4, "--to-source 1.2.3.4", "--to-source 1.2.3.4"),
        (Family::V4, "--to-source 1.2.3.4-1.2.3.9", "--to-source 1.2.3.4-1.2.3.9"),
        (Family::V4, "--to-source 1.2.3.4-1.2.3.4", "--to-source 1.2.3.4"),
        (Family::V4, "--to-source 1.2.3.4:1000", "--to-source 1.2.3.4:1000"),
        (
            Family::V4,
            "--endpoint-independent-filtering --to-source 1.2.3.4 --endpoint-independent-mapping",
            "--to-source 1.2.3.4 --endpoint-independent-filtering",
        ),
        (Family::V4, "--to-source 1.2.3.4:1000-2000", "--to-source 1.2.3.4:1000-2000"),
        (Family::V4, "--to-source 1.2.3.4:1000-1000", "--to-source 1.2.3.4:1000"),
        (Family::V4, "--to-source :1000-2000", "--to-source :1000-2000"),
        (Family::V4, "--to-source :1000", "--to-source :1000"),
        (Family::V4, "--to-source 1.2.3.4:0", "--to-source 1.2.3.4:0"),
        (Family::V4, "--to-source 1.2.3.4:http", "--to-source 1.2.3.4:80"),
        (Family::V4, "--to-source 0.0.0.0", "--to-source 0.0.0.0"),
        (Family::V4, "--to-source 1.2.3.4 --random-fully", "--to-source 1.2.3.4 --random-fully"),
        (
            Family::V4,
            "--to-source 1.2.3.4 --persistent --random-fully --random",
            "--to-source 1.2.3.4 --random --random-fully --persistent",
        ),
        (Family::V4, "--random --to-source 1.2.3.4", "--to-source 1.2.3.4 --random"),
        (Family::V6, "--to-source 2001:db8::1", "--to-source 2001:db8::1"),
        (Family::V6, "--to-source [2001:db8::1]", "--to-source 2001:db8::1"),
        (Family::V6, "--to-source [2001:db8::1]:80", "--to-source [2001:db8::1]:80"),
        (Family::V6, "--to-source [2001:db8::1]:80-90", "--to-source [2001:db8::1]:80-90"),
        (Family::V6, "--to-source [2001:db8::1-2001:db8::5]:80-90", "--to-source [2001:db8::1-2001:db8::5]:80-90"),
        (Family::V6, "--to-source 2001:db8::1-2001:db8::5", "--to-source 2001:db8::1-2001:db8::5"),
        (Family::V6, "--to-source [2001:db8::1-2001:db8::5]", "--to-source 2001:db8::1-2001:db8::5"),
        (Family::V6, "--to-source :80", "--to-source :80"),
        (Family::V6, "--to-source []:80", "--to-source :80"),
        (Family::V6, "--to-source 2001:db8::1:80", "--to-source 2001:db8::1:80"),
        (Family::V6, "--to-source ::ffff:1.2.3.4", "--to-source ::ffff:1.2.3.4"),
        (Family::V6, "--to-source ::1.2.3.4", "--to-source ::1.2.3.4"),
        (
            Family::V6,
            "--to-source 2001:db8::1 --random-fully --persistent",
            "--to-source 2001:db8::1 --random-fully --persistent",
        ),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (family, words, expected) in SAVED {
            let target: Snat = read(*family, words).expect(words);
            assert_eq!(saved(&target, *family), *expected, "{words}");
            assert_eq!(read::<Snat>(*family, expected).as_ref(), Ok(&target), "{expected}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let wrong: &[(Family, &str)] = &[
            (Family::V4, "--to-source 1.2.3.4:1000:2000"),
            (Family::V4, "--to-source 1.2.3.4:2000-1000"),
            (Family::V4, "--to-source 1.2.3.4:65536"),
            (Family::V4, "--to-source 1.2.3.4:1-2/3"),
            (Family::V4, "--to-source 1.2.3"),
            (Family::V4, "--to-source example"),
            (Family::V4, "--to-source 1.2.3.4/24"),
            (Family::V4, "--to-source \"\""),
            (Family::V4, "--to-source 1.2.3.4-"),
            (Family::V4, "--to-source 1.2.3.4:"),
            (Family::V4, "--to-source 1.2.3.4:5-"),
            (Family::V4, "--to-source :"),
            (Family::V4, "--to-source 0x01020304:1"),
            (Family::V4, "--to-source 1.2.3.4:80-http"),
            (Family::V4, "--to-source 1.2.3.9-1.2.3.4"),
            (Family::V6, "--to-source [2001:db8::1]-[2001:db8::5]:80-90"),
            (Family::V6, "--to-source [2001:db8::1"),
            (Family::V6, "--to-source 2001:db8::1]:80"),
            (Family::V6, "--to-source [2001:db8::1]80"),
            (Family::V6, "--to-source fd00:80"),
            (Family::V6, "--to-source 2001:db8::5-2001:db8::1"),
            (Family::V6, "--to-source []"),
        ];
        for (family, words) in wrong {
            assert!(read::<Snat>(*family, words).is_err(), "{words}");
        }
    }

    /// As iptables-legacy-restore took or refused it.
    #[test]
    fn ports_need_a_protocol() {
        use crate::rules::diagnostic::Span;
        use crate::rules::rule::{ProtoMatch, Rule};
        let snat: Snat = read(Family::V4, "--to-source 1.2.3.4:1").expect("good");
        let cases = [(6, true), (17, true), (132, true), (33, true), (1, true), (136, false), (47, false), (58, false)];
        let checked = |proto: Option<ProtoMatch>, seen: &[u8]| {
            let rule = Rule { proto, ..Rule::default() };
            snat.check(&Whole { seen, span: Span::default(), family: Family::V4, table: TableName::Nat, rule: &rule })
                .is_ok()
        };
        for (number, good) in cases {
            assert_eq!(checked(Some(ProtoMatch { number, invert: false }), &[TO]), good, "{number}");
        }
        assert!(checked(Some(ProtoMatch { number: 6, invert: true }), &[TO]));
        assert!(!checked(None, &[TO]));
        assert!(!checked(Some(ProtoMatch { number: 6, invert: false }), &[RANDOM]));
    }
}
