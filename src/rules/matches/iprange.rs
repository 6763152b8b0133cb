//! `-m iprange`: source or destination between two addresses, both included (`iprange_mt4`, `iprange_mt6` of xt_iprange.c).

use super::address;
use super::common::{need_option, put};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::save::address_text;
use crate::wire::{Addr, Family};

const SOURCE: u8 = 0;
const DESTINATION: u8 = 1;

/// Addresses from one to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Addresses {
    first: Addr,
    last: Addr,
    invert: bool,
}

impl Addresses {
    fn read(given: &Given<'_>) -> Result<Addresses, Problem> {
        let token = given.argument();
        let (first, last) = token.text.split_once('-').unwrap_or((&token.text, &token.text));
        let end = |text| {
            address::read(text, token, given.family)
                .map_err(|problem| problem.help("a range is written FIRST-LAST, two addresses without blanks"))
        };
        Ok(Addresses { first: end(first)?, last: end(last)?, invert: given.invert })
    }

    /// One that ends before it begins holds nothing, as in Linux.
    fn holds(&self, addr: Addr) -> bool {
        (self.first.bits() <= addr.bits() && addr.bits() <= self.last.bits()) != self.invert
    }
}

/// `-m iprange [!] --src-range FIRST-LAST [!] --dst-range FIRST-LAST`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IprangeMatch {
    source: Option<Addresses>,
    destination: Option<Addresses>,
}

impl Extension for IprangeMatch {
    const NAME: &'static str = "iprange";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SOURCE, &["--src-range"]).invertible(),
        OptionSpec::new(DESTINATION, &["--dst-range"]).invertible(),
    ];

    fn new(_: Family) -> IprangeMatch {
        IprangeMatch { source: None, destination: None }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let side = if id == SOURCE { &mut self.source } else { &mut self.destination };
        *side = Some(Addresses::read(given)?);
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        need_option(whole, "iprange", &[SOURCE, DESTINATION], "`--src-range` or `--dst-range`")
    }

    fn save(&self, out: &mut String, family: Family) {
        for (option, side) in [("--src-range", &self.source), ("--dst-range", &self.destination)] {
            if let Some(side) = side {
                let (first, last) = (address_text(side.first, family), address_text(side.last, family));
                put(out, side.invert, format_args!("{option} {first}-{last}"));
            }
        }
    }
}

impl Matcher for IprangeMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let source = self.source.is_none_or(|side| side.holds(context.packet.src));
        (source && self.destination.is_none_or(|side| side.holds(context.packet.dst))).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<IprangeMatch>(
            Family::V4,
            &[
                ("--src-range 10.0.0.1-10.0.0.9", "--src-range 10.0.0.1-10.0.0.9"),
                (
                    "! --src-range 10.0.0.1-10.0.0.9 --dst-range 1.2.3.4",
                    "! --src-range 10.0.0.1-10.0.0.9 --dst-range 1.2.3.4-1.2.3.4",
                ),
                ("--src-range 10.0.0.9-10.0.0.1", "--src-range 10.0.0.9-10.0.0.1"),
                ("--src-range 10.1-10.2", "--src-range 10.1.0.0-10.2.0.0"),
                (
                    "--dst-range 10.0.0.1-10.0.0.9 --src-range 10.0.0.3-10.0.0.4",
                    "--src-range 10.0.0.3-10.0.0.4 --dst-range 10.0.0.1-10.0.0.9",
                ),
            ],
        );
        saves::<IprangeMatch>(
            Family::V6,
            &[
                ("! --dst-range fd00::1", "! --dst-range fd00::1-fd00::1"),
                ("--dst-range ::10.0.0.1-::ffff:10.0.0.1", "--dst-range ::10.0.0.1-::ffff:10.0.0.1"),
            ],
        );
        let bad =
            ["10.0.0.1-", "-10.0.0.1", "10.0.0.1-2-3", "localhost-10.0.0.1", "fd00::1-fd00::9", "10.0.0.1 - 10.0.0.2"];
        for range in bad {
            refuses::<IprangeMatch>(Family::V4, &[&format!("--src-range \"{range}\"")]);
        }
        refuses::<IprangeMatch>(Family::V6, &["--dst-range 10.0.0.1-10.0.0.9"]);
        assert!(checked::<IprangeMatch>(Family::V4, None, "").is_err());
    }

    #[test]
    fn both_ends_are_in_the_range() {
        let frame = v4(17, &[0; 8]);
        let cases = [
            ("--src-range 10.1.0.2-10.1.0.9", Answer::Yes),
            ("--src-range 10.0.0.0-10.1.0.2", Answer::Yes),
            ("--src-range 10.1.0.3-10.1.0.9", Answer::No),
            ("! --src-range 10.1.0.3-10.1.0.9", Answer::Yes),
            ("--src-range 10.1.0.9-10.1.0.1", Answer::No),
            ("! --src-range 10.1.0.9-10.1.0.1", Answer::Yes),
            ("--src-range 10.1.0.2 --dst-range 10.2.0.3-10.2.0.4", Answer::No),
            ("--src-range 10.1.0.2 --dst-range 10.2.0.0-10.2.0.4", Answer::Yes),
        ];
        for (words, answer) in cases {
            assert_eq!(ask::<IprangeMatch>(words, &frame), answer, "{words}");
        }
        let frame = v6(17, &[0; 8]);
        assert_eq!(ask::<IprangeMatch>("--dst-range fd02::1-fd02::2", &frame), Answer::Yes);
        assert_eq!(ask::<IprangeMatch>("--dst-range fd02::3-fd03::", &frame), Answer::No);
    }
}
