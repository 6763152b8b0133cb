//! `-m ttl` (IPv4) and `-m hl` (IPv6): the hops left (`ttl_mt`, `hl_mt6` of xt_hl.c).

use super::common::{need_option, put};
use super::number::number;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::Family;

const EQUAL: u8 = 0;
const LESS: u8 = 1;
const GREATER: u8 = 2;

/// One of the three excludes the others.
const GROUP: u8 = 1;

/// How it is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    Greater,
}

/// `-m ttl --ttl-eq|--ttl-lt|--ttl-gt N`, and for IPv6 `-m hl --hl-eq|--hl-lt|--hl-gt N`. From FORWARD on the number is the one
/// the packet leaves with: Linux counts down before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HopsMatch<const V6: bool> {
    compare: Compare,
    hops: u8,
}

/// `-m ttl`
pub type TtlMatch = HopsMatch<false>;
/// `-m hl`
pub type HlMatch = HopsMatch<true>;

impl<const V6: bool> Extension for HopsMatch<V6> {
    const NAME: &'static str = if V6 { "hl" } else { "ttl" };
    const FAMILIES: &'static [Family] = if V6 { &[Family::V6] } else { &[Family::V4] };
    const OPTIONS: &'static [OptionSpec] = if V6 {
        &[
            OptionSpec::new(EQUAL, &["--hl-eq", "--hl"]).invertible().group(GROUP),
            OptionSpec::new(LESS, &["--hl-lt"]).group(GROUP),
            OptionSpec::new(GREATER, &["--hl-gt"]).group(GROUP),
        ]
    } else {
        &[
            OptionSpec::new(EQUAL, &["--ttl-eq", "--ttl"]).invertible().group(GROUP),
            OptionSpec::new(LESS, &["--ttl-lt"]).group(GROUP),
            OptionSpec::new(GREATER, &["--ttl-gt"]).group(GROUP),
        ]
    };

    fn new(_: Family) -> Self {
        HopsMatch { compare: Compare::Equal, hops: 0 }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let compare = match id {
            EQUAL if given.invert => Compare::NotEqual,
            EQUAL => Compare::Equal,
            LESS => Compare::Less,
            _ => Compare::Greater,
        };
        let what = if V6 { "hop limit" } else { "TTL" };
        *self = HopsMatch { compare, hops: number(given.argument(), u32::from(u8::MAX), what)? as u8 };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        let wanted = if V6 { "`--hl-eq`, `--hl-lt` or `--hl-gt`" } else { "`--ttl-eq`, `--ttl-lt` or `--ttl-gt`" };
        need_option(whole, Self::NAME, &[EQUAL, LESS, GREATER], wanted)
    }

    fn save(&self, out: &mut String, _: Family) {
        let how = match self.compare {
            Compare::Equal | Compare::NotEqual => "eq",
            Compare::Less => "lt",
            Compare::Greater => "gt",
        };
        put(out, self.compare == Compare::NotEqual, format_args!("--{}-{how} {}", Self::NAME, self.hops));
    }
}

impl<const V6: bool> Matcher for HopsMatch<V6> {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let left = context.packet.ttl;
        Answer::from(match self.compare {
            Compare::Equal => left == self.hops,
            Compare::NotEqual => left != self.hops,
            Compare::Less => left < self.hops,
            Compare::Greater => left > self.hops,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<TtlMatch>(
            Family::V4,
            &[
                ("--ttl-eq 64", "--ttl-eq 64"),
                ("! --ttl 64", "! --ttl-eq 64"),
                ("--ttl-lt 64", "--ttl-lt 64"),
                ("--ttl-gt 0x40", "--ttl-gt 64"),
            ],
        );
        saves::<HlMatch>(
            Family::V6,
            &[("--hl 3", "--hl-eq 3"), ("! --hl-eq 3", "! --hl-eq 3"), ("--hl-gt 255", "--hl-gt 255")],
        );
        refuses::<TtlMatch>(Family::V4, &["! --ttl-lt 64", "! --ttl-gt 64", "--ttl-gt 256", "--hl-eq 3"]);
        refuses::<HlMatch>(Family::V6, &["! --hl-lt 64", "--hl-eq 256", "--ttl-eq 3"]);
        assert!(checked::<TtlMatch>(Family::V4, None, "").is_err());
        assert!(checked::<HlMatch>(Family::V6, None, "--hl-lt 3").is_ok());
    }

    #[test]
    fn hops_are_compared() {
        let frame = v4(17, &[0; 8]);
        let cases = [
            ("--ttl-eq 64", Answer::Yes),
            ("! --ttl-eq 64", Answer::No),
            ("--ttl-lt 64", Answer::No),
            ("--ttl-lt 65", Answer::Yes),
            ("--ttl-gt 64", Answer::No),
            ("--ttl-gt 63", Answer::Yes),
        ];
        for (words, answer) in cases {
            assert_eq!(ask::<TtlMatch>(words, &frame), answer, "{words}");
        }
        assert_eq!(ask::<HlMatch>("! --hl-eq 63", &v6(17, &[0; 8])), Answer::Yes);
    }
}
