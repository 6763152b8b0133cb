//! `-m icmp` and `-m icmp6`: type and code. Needs 8 bytes of header, or drops the packet (`icmp_match`, `icmp6_match`).

use super::super::context::{Context, World};
use super::super::diagnostic::Problem;
use super::super::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use super::super::registry::Registry;
use super::super::save::{bang, push};
use super::super::value;
use crate::wire::{Family, proto};

/// `-m icmp`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpMatch {
    /// The type. For IPv4, 255 is any type.
    pub kind: u8,
    /// The code, or `None` for any.
    pub code: Option<u8>,
    /// `!`
    pub invert: bool,
}

/// `-m icmp6`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp6Match(pub IcmpMatch);

const BLANK: IcmpMatch = IcmpMatch { kind: 0, code: None, invert: false };

impl IcmpMatch {
    fn type_text(&self, family: Family) -> String {
        match (family, self.kind, self.code) {
            (Family::V4, 255, _) => "any".to_owned(),
            (_, kind, None) => kind.to_string(),
            (_, kind, Some(code)) => format!("{kind}/{code}"),
        }
    }

    fn holds(&self, context: &Context<'_>) -> Answer {
        let Some(header) = context.packet.l4_bytes(context.frame).get(..8) else { return Answer::Hotdrop };
        let same = header[0] == self.kind && self.code.is_none_or(|code| code == header[1]);
        let any = context.packet.family == Family::V4 && self.kind == 255;
        ((same || any) != self.invert).into()
    }
}

impl Extension for IcmpMatch {
    const NAME: &'static str = "icmp";
    const FAMILIES: &'static [Family] = &[Family::V4];
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(0, &["--icmp-type"]).invertible()];

    fn new(_: Family) -> IcmpMatch {
        BLANK
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        *self = value::icmp_type(given.argument(), Family::V4, given.invert)?;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_proto::<IcmpMatch>(proto::ICMP, "-p icmp")?;
        whole.needs_option::<IcmpMatch>()
    }

    fn save(&self, out: &mut String, family: Family) {
        push(out, format_args!("{} --icmp-type {}", bang(self.invert), self.type_text(family)));
    }
}

impl Matcher for IcmpMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        self.holds(context)
    }
}

impl Extension for Icmp6Match {
    const NAME: &'static str = "icmp6";
    const FAMILIES: &'static [Family] = &[Family::V6];
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(0, &["--icmpv6-type"]).invertible()];

    fn new(_: Family) -> Icmp6Match {
        Icmp6Match(BLANK)
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        self.0 = value::icmp_type(given.argument(), Family::V6, given.invert)?;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_proto::<Icmp6Match>(proto::ICMPV6, "-p ipv6-icmp")?;
        whole.needs_option::<Icmp6Match>()
    }

    fn save(&self, out: &mut String, family: Family) {
        push(out, format_args!("{} --icmpv6-type {}", bang(self.0.invert), self.0.type_text(family)));
    }
}

impl Matcher for Icmp6Match {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        self.0.holds(context)
    }
}
