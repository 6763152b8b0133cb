//! `-m tos`: bits of TOS or traffic class (`tos_mt` of xt_dscp.c, revision 1).

use super::common::put;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::diagnostic::nearest;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::token::Token;
use crate::rules::value;
use crate::wire::Family;

const TOS: u8 = 0;

/// Names of RFC 1349, any case; they leave the two ECN bits alone.
const NAMES: [(&str, u8); 5] = [
    ("Minimize-Delay", 0x10),
    ("Maximize-Throughput", 0x08),
    ("Maximize-Reliability", 0x04),
    ("Minimize-Cost", 0x02),
    ("Normal-Service", 0x00),
];

/// The mask that belongs to a name.
const NAME_MASK: u8 = 0x3f;

/// A value and a mask as `--tos` and `--set-tos` take them: `VALUE[/MASK]`, or a name.
///
/// # Errors
/// It is neither.
pub(in crate::rules) fn read_tos(token: &Token) -> Result<(u8, u8), Problem> {
    if let Some((_, value)) = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&token.text)) {
        return Ok((*value, NAME_MASK));
    }
    let byte = |text: &str| value::unsigned(text, 255).map(|byte| byte as u8);
    let found = match token.text.split_once('/') {
        Some((value, mask)) => byte(value).zip(byte(mask)),
        None => byte(&token.text).map(|value| (value, u8::MAX)),
    };
    found.ok_or_else(|| {
        let near = nearest(&token.text, NAMES.iter().map(|(name, _)| *name));
        Problem::new(token.span, format!("`{}` is not a TOS value", token.text), "expected VALUE, VALUE/MASK or a name")
            .help(format!("both are numbers up to 255; names are {}", NAMES.map(|(name, _)| name).join(", ")))
            .maybe_help(near.map(|near| format!("did you mean `{near}`?")))
    })
}

/// `-m tos [!] --tos VALUE[/MASK]|NAME`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TosMatch {
    value: u8,
    mask: u8,
    invert: bool,
}

impl Extension for TosMatch {
    const NAME: &'static str = "tos";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(TOS, &["--tos"]).invertible()];

    fn new(_: Family) -> TosMatch {
        TosMatch { value: 0, mask: 0, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        let (value, mask) = read_tos(given.argument())?;
        *self = TosMatch { value, mask, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<TosMatch>()
    }

    fn save(&self, out: &mut String, _: Family) {
        put(out, self.invert, format_args!("--tos {:#04x}/{:#04x}", self.value, self.mask));
    }
}

impl Matcher for TosMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        ((context.packet.tos & self.mask == self.value) != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<TosMatch>(
            Family::V4,
            &[
                ("--tos 0x10", "--tos 0x10/0xff"),
                ("--tos 16/0x3f", "--tos 0x10/0x3f"),
                ("--tos Minimize-Delay", "--tos 0x10/0x3f"),
                ("--tos minimize-delay", "--tos 0x10/0x3f"),
                ("! --tos Maximize-Throughput", "! --tos 0x08/0x3f"),
                ("--tos Maximize-Reliability", "--tos 0x04/0x3f"),
                ("--tos Minimize-Cost", "--tos 0x02/0x3f"),
                ("--tos Normal-Service", "--tos 0x00/0x3f"),
                ("--tos 0xff/0x0f", "--tos 0xff/0x0f"),
                ("--tos 020", "--tos 0x10/0xff"),
            ],
        );
        for bad in ["Normal", "Min", "256", "1/256", "0x10/", "Minimize-Delay/0x3f", "\"\""] {
            refuses::<TosMatch>(Family::V4, &[&format!("--tos {bad}")]);
        }
        assert!(checked::<TosMatch>(Family::V4, None, "").is_err());
    }

    #[test]
    fn bits_under_the_mask_are_compared() {
        for frame in [v4(17, &[0; 8]), v6(17, &[0; 8])] {
            assert_eq!(ask::<TosMatch>("--tos 0x0b", &frame), Answer::Yes);
            assert_eq!(ask::<TosMatch>("--tos 0x08/0x0c", &frame), Answer::Yes);
            assert_eq!(ask::<TosMatch>("! --tos 0x08", &frame), Answer::Yes);
            assert_eq!(ask::<TosMatch>("--tos 0xff/0x0f", &frame), Answer::No);
        }
    }
}
