//! `-m eui64`: whether an IPv6 source address was made of the MAC address the frame came from (`eui64_mt6` of ip6t_eui64.c).

use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec};
use crate::rules::registry::Registry;
use crate::rules::rule::Hook;
use crate::wire::{Family, Mac, ethernet};

/// `-m eui64`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Eui64Match;

impl Extension for Eui64Match {
    const NAME: &'static str = "eui64";
    const FAMILIES: &'static [Family] = &[Family::V6];
    const OPTIONS: &'static [OptionSpec] = &[];

    fn new(_: Family) -> Eui64Match {
        Eui64Match
    }

    fn read(&mut self, _: u8, _: &Given<'_>) -> Result<(), Problem> {
        Ok(())
    }

    fn hooks(&self) -> u8 {
        Hook::Prerouting.bit() | Hook::Input.bit() | Hook::Forward.bit()
    }

    fn save(&self, _: &mut String, _: Family) {}
}

/// The address's lower half. Linux sets the bit that RFC 4291 appendix A inverts.
fn lower_half(Mac([a, b, c, d, e, f]): Mac) -> u64 {
    u64::from_be_bytes([a | 2, b, c, 0xff, 0xfe, d, e, f])
}

impl Matcher for Eui64Match {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        (context.packet.src.bits() as u64 == lower_half(ethernet::source(context.frame))).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, ask_with, v6};
    use super::*;
    use crate::wire::Addr;

    #[test]
    fn the_address_is_compared_with_the_frames_source() {
        let frame = v6(17, &[0; 8]);
        let from = |low: u64| {
            ask_with::<Eui64Match>("", &frame, |context, _| {
                context.packet.src = Addr::from_v6(0xfd01 << 112 | u128::from(low));
            })
        };
        assert_eq!(from(0x0200_00ff_fe00_000c), Answer::Yes);
        assert_eq!(from(0x0000_00ff_fe00_000c), Answer::No);
        assert_eq!(from(0x0200_00ff_fe00_000d), Answer::No);
        assert_eq!(ask::<Eui64Match>("", &frame), Answer::No);
    }
}
