//! `-m mh`: the type of an IPv6 mobility header (`mh_mt6` of ip6t_mh.c, RFC 6275 section 6.1).

use super::common::put;
use super::number::Range;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::{Problem, nearest};
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::token::Token;
use crate::rules::value;
use crate::wire::{Family, proto};

const TYPE: u8 = 0;

/// The mobility header's protocol number.
const MH: u8 = 135;
/// Payload protocol, length, type, reserved, checksum.
const HEADER_LEN: usize = 6;

/// Names of types.
const NAMES: &[(&str, u8)] = &[
    ("binding-refresh-request", 0),
    ("brr", 0),
    ("home-test-init", 1),
    ("hoti", 1),
    ("careof-test-init", 2),
    ("coti", 2),
    ("home-test", 3),
    ("hot", 3),
    ("careof-test", 4),
    ("cot", 4),
    ("binding-update", 5),
    ("bu", 5),
    ("binding-acknowledgement", 6),
    ("ba", 6),
    ("binding-error", 7),
    ("be", 7),
];

/// Every type.
const ANY: Range = Range { low: 0, high: 255 };

/// `-m mh [!] --mh-type TYPE[:TYPE]`: needs 6 bytes of a header that nothing follows, or drops the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MhMatch {
    kinds: Range,
    invert: bool,
}

/// A name (any case, possibly shortened: the first that begins so is meant, unless one is exactly so), or a number.
fn read_type(text: &str, token: &Token) -> Result<u32, Problem> {
    let lower = text.to_ascii_lowercase();
    let exact = NAMES.iter().find(|(name, _)| *name == lower);
    let begins = || NAMES.iter().find(|(name, _)| !lower.is_empty() && name.starts_with(&lower));
    let named = exact.or_else(begins).map(|(_, kind)| u32::from(*kind));
    named.or_else(|| value::unsigned(text, 255)).ok_or_else(|| {
        let near = nearest(text, NAMES.iter().map(|(name, _)| *name));
        Problem::new(token.span, format!("unknown mobility header type `{text}`"), "expected a name or a number")
            .help("types go up to 255; names are binding-update, home-test-init and others of RFC 6275")
            .maybe_help(near.map(|near| format!("did you mean `{near}`?")))
    })
}

impl Extension for MhMatch {
    const NAME: &'static str = "mh";
    const FAMILIES: &'static [Family] = &[Family::V6];
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(TYPE, &["--mh-type"]).invertible()];

    fn new(_: Family) -> MhMatch {
        MhMatch { kinds: ANY, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        let end = |text: &str, open: u32| if text.is_empty() { Ok(open) } else { read_type(text, token) };
        let kinds = match token.text.split_once(':') {
            Some((low, high)) => Range { low: end(low, 0)?, high: end(high, 255)? },
            None => {
                let single = read_type(&token.text, token)?;
                Range { low: single, high: single }
            }
        };
        if kinds.low > kinds.high {
            return Err(Problem::new(token.span, "this range of types ends before it begins", "must rise"));
        }
        *self = MhMatch { kinds, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_proto::<MhMatch>(MH, "-p mh")
    }

    /// As for `-m esp`: iptables would leave out a whole range that is inverted.
    fn save(&self, out: &mut String, _: Family) {
        if self.kinds != ANY || self.invert {
            put(out, self.invert, format_args!("--mh-type {}", self.kinds));
        }
    }
}

impl Matcher for MhMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        match context.packet.l4_bytes(context.frame).get(..HEADER_LEN) {
            Some(header) if header[0] == proto::NO_NEXT => {
                (self.kinds.holds(u32::from(header[2])) != self.invert).into()
            }
            _ => Answer::Hotdrop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<MhMatch>(
            Family::V6,
            &[
                ("", ""),
                ("--mh-type binding-update", "--mh-type 5"),
                ("! --mh-type 1:3", "! --mh-type 1:3"),
                ("--mh-type BRR:HOTI", "--mh-type 0:1"),
                ("--mh-type :3", "--mh-type 0:3"),
                ("--mh-type 3:", "--mh-type 3:255"),
                ("--mh-type 0:255", ""),
                ("--mh-type bind", "--mh-type 0"),
                ("--mh-type home-test", "--mh-type 3"),
                ("--mh-type binding-update:binding-error", "--mh-type 5:7"),
            ],
        );
        let bad = ["3:1", "256", "care-of-test", "foo"];
        for kind in bad {
            refuses::<MhMatch>(Family::V6, &[&format!("--mh-type {kind}")]);
        }
        assert!(checked::<MhMatch>(Family::V6, None, "").is_err());
        assert!(checked::<MhMatch>(Family::V6, Some(135), "--mh-type 1").is_ok());
    }

    #[test]
    fn the_type_is_compared_and_a_bad_header_drops() {
        let header = [59, 0, 5, 0, 0, 0, 0, 0];
        assert_eq!(ask::<MhMatch>("--mh-type bu", &v6(135, &header)), Answer::Yes);
        assert_eq!(ask::<MhMatch>("! --mh-type 5:6", &v6(135, &header)), Answer::No);
        assert_eq!(ask::<MhMatch>("", &v6(135, &header[..5])), Answer::Hotdrop);
        assert_eq!(ask::<MhMatch>("", &v6(135, &[17, 0, 5, 0, 0, 0, 0, 0])), Answer::Hotdrop);
    }
}
