//! `-m length`: the IP packet's length as its header says, header included (`length_mt`, `length_mt6` of xt_length.c).

use super::common::put;
use super::number::Range;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::{Family, ipv4, ipv6};

const LENGTH: u8 = 0;

/// `-m length [!] --length BYTES[:BYTES]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LengthMatch {
    bytes: Range,
    invert: bool,
}

impl Extension for LengthMatch {
    const NAME: &'static str = "length";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(LENGTH, &["--length"]).invertible()];

    fn new(_: Family) -> LengthMatch {
        LengthMatch { bytes: Range { low: 0, high: u32::from(u16::MAX) }, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        *self =
            LengthMatch { bytes: Range::read(given.argument(), u32::from(u16::MAX), "length")?, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<LengthMatch>()
    }

    fn save(&self, out: &mut String, _: Family) {
        put(out, self.invert, format_args!("--length {}", self.bytes));
    }
}

impl Matcher for LengthMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let ip = context.packet.l3_bytes(context.frame);
        // Not `Packet::l3_len`: that is the frame's where an IPv6 header says 0.
        let length = match context.packet.family {
            Family::V4 => u32::from(ipv4::total_len(ip)),
            Family::V6 => u32::from(ipv6::payload_len(ip)) + ipv6::HEADER_LEN as u32,
        };
        (self.bytes.holds(length) != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<LengthMatch>(
            Family::V4,
            &[
                ("--length 100", "--length 100"),
                ("--length 100:", "--length 100:65535"),
                ("--length :100", "--length 0:100"),
                ("--length :", "--length 0:65535"),
                ("--length 100:100", "--length 100"),
                ("! --length 0x10:20", "! --length 16:20"),
                ("--length 200:100", "--length 200:100"),
            ],
        );
        refuses::<LengthMatch>(Family::V4, &["--length 65536", "--length 1:2:3", "--length x"]);
        assert!(checked::<LengthMatch>(Family::V4, None, "").is_err());
    }

    #[test]
    fn both_ends_count() {
        let v4 = v4(17, &[0; 8]);
        assert_eq!(ask::<LengthMatch>("--length 28", &v4), Answer::Yes);
        assert_eq!(ask::<LengthMatch>("--length 29:", &v4), Answer::No);
        assert_eq!(ask::<LengthMatch>("! --length :27", &v4), Answer::Yes);
        assert_eq!(ask::<LengthMatch>("! --length 200:100", &v4), Answer::Yes);
        let v6 = v6(17, &[0; 8]);
        assert_eq!(ask::<LengthMatch>("--length 48", &v6), Answer::Yes);
        assert_eq!(ask::<LengthMatch>("--length 28", &v6), Answer::No);
    }
}
