//! `-m dscp`: the upper six bits of TOS or traffic class (`dscp_mt`, `dscp_mt6` of xt_dscp.c).

use super::common::{need_option, put};
use super::number::number;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::diagnostic::nearest;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::Family;

const VALUE: u8 = 0;
const CLASS: u8 = 1;

/// One of the two excludes the other.
const GROUP: u8 = 1;

/// The largest value.
pub(in crate::rules) const DSCP_MAX: u8 = 63;

/// Names of `--dscp-class` (RFC 2474, 2597, 3246), any case.
pub(in crate::rules) const CLASSES: &[(&str, u8)] = &[
    ("CS0", 0x00),
    ("CS1", 0x08),
    ("CS2", 0x10),
    ("CS3", 0x18),
    ("CS4", 0x20),
    ("CS5", 0x28),
    ("CS6", 0x30),
    ("CS7", 0x38),
    ("BE", 0x00),
    ("AF11", 0x0a),
    ("AF12", 0x0c),
    ("AF13", 0x0e),
    ("AF21", 0x12),
    ("AF22", 0x14),
    ("AF23", 0x16),
    ("AF31", 0x1a),
    ("AF32", 0x1c),
    ("AF33", 0x1e),
    ("AF41", 0x22),
    ("AF42", 0x24),
    ("AF43", 0x26),
    ("EF", 0x2e),
];

/// `-m dscp [!] --dscp N`, or `--dscp-class NAME`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DscpMatch {
    value: u8,
    invert: bool,
}

impl Extension for DscpMatch {
    const NAME: &'static str = "dscp";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(VALUE, &["--dscp"]).invertible().group(GROUP),
        OptionSpec::new(CLASS, &["--dscp-class"]).invertible().group(GROUP),
    ];

    fn new(_: Family) -> DscpMatch {
        DscpMatch { value: 0, invert: false }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        let value = match id {
            VALUE => number(token, u32::from(DSCP_MAX), "DSCP value")? as u8,
            _ => {
                let found = CLASSES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&token.text));
                found.map(|(_, value)| *value).ok_or_else(|| {
                    let near = nearest(&token.text, CLASSES.iter().map(|(name, _)| *name));
                    Problem::new(token.span, format!("`{}` is not a DSCP class", token.text), "not a class")
                        .help("classes are CS0 to CS7, BE, AF11 to AF43 and EF; for numbers there is `--dscp`")
                        .maybe_help(near.map(|near| format!("did you mean `{near}`?")))
                })?
            }
        };
        *self = DscpMatch { value, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        need_option(whole, "dscp", &[VALUE, CLASS], "`--dscp` or `--dscp-class`")
    }

    fn save(&self, out: &mut String, _: Family) {
        put(out, self.invert, format_args!("--dscp {:#04x}", self.value));
    }
}

impl Matcher for DscpMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        ((context.packet.tos >> 2 == self.value) != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<DscpMatch>(
            Family::V4,
            &[
                ("--dscp 10", "--dscp 0x0a"),
                ("! --dscp 0x0a", "! --dscp 0x0a"),
                ("--dscp 0", "--dscp 0x00"),
                ("--dscp 63", "--dscp 0x3f"),
                ("--dscp-class EF", "--dscp 0x2e"),
                ("--dscp-class ef", "--dscp 0x2e"),
                ("! --dscp-class AF31", "! --dscp 0x1a"),
                ("--dscp-class BE", "--dscp 0x00"),
                ("--dscp-class CS7", "--dscp 0x38"),
            ],
        );
        refuses::<DscpMatch>(Family::V4, &["--dscp 64", "--dscp-class CS", "--dscp-class AF44", "--dscp-class 10"]);
        assert!(checked::<DscpMatch>(Family::V4, None, "").is_err());
        assert!(checked::<DscpMatch>(Family::V4, None, "--dscp-class EF").is_ok());
    }

    #[test]
    fn the_two_low_bits_do_not_count() {
        for frame in [v4(17, &[0; 8]), v6(17, &[0; 8])] {
            assert_eq!(ask::<DscpMatch>("--dscp 2", &frame), Answer::Yes);
            assert_eq!(ask::<DscpMatch>("! --dscp 2", &frame), Answer::No);
            assert_eq!(ask::<DscpMatch>("--dscp 0x0b", &frame), Answer::No);
        }
    }
}
