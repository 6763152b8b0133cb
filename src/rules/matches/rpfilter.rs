//! `-m rpfilter`: whether the way back to the source leads through the port the packet came by (`rpfilter_mt` of
//! ipt_rpfilter.c and ip6t_rpfilter.c).

use super::common::put;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec};
use crate::rules::registry::Registry;
use crate::rules::rule::{Hook, TableName};
use crate::wire::Family;

const LOOSE: u8 = 0;
const VALID_MARK: u8 = 1;
const ACCEPT_LOCAL: u8 = 2;
const INVERT: u8 = 3;

/// `-m rpfilter [--loose] [--validmark] [--accept-local] [--invert]`. No route here depends on a mark, so `--validmark`
/// changes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RpfilterMatch {
    loose: bool,
    valid_mark: bool,
    accept_local: bool,
    invert: bool,
}

impl Extension for RpfilterMatch {
    const NAME: &'static str = "rpfilter";
    const TABLES: &'static [TableName] = &[TableName::Raw, TableName::Mangle];
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(LOOSE, &["--loose"]).arguments(0),
        OptionSpec::new(VALID_MARK, &["--validmark"]).arguments(0),
        OptionSpec::new(ACCEPT_LOCAL, &["--accept-local"]).arguments(0),
        OptionSpec::new(INVERT, &["--invert"]).arguments(0),
    ];

    fn new(_: Family) -> RpfilterMatch {
        RpfilterMatch { loose: false, valid_mark: false, accept_local: false, invert: false }
    }

    fn read(&mut self, id: u8, _: &Given<'_>) -> Result<(), Problem> {
        let flag = match id {
            LOOSE => &mut self.loose,
            VALID_MARK => &mut self.valid_mark,
            ACCEPT_LOCAL => &mut self.accept_local,
            _ => &mut self.invert,
        };
        *flag = true;
        Ok(())
    }

    fn hooks(&self) -> u8 {
        Hook::Prerouting.bit()
    }

    fn save(&self, out: &mut String, _: Family) {
        let flags = [
            (self.loose, "--loose"),
            (self.valid_mark, "--validmark"),
            (self.accept_local, "--accept-local"),
            (self.invert, "--invert"),
        ];
        for (_, option) in flags.iter().filter(|(given, _)| *given) {
            put(out, false, format_args!("{option}"));
        }
    }
}

/// Sources that nobody routes back to and that are let pass: DHCP's 0.0.0.0 to everybody or to the link's groups; IPv6's
/// unspecified address.
fn is_exempt(context: &Context<'_>) -> bool {
    let packet = &context.packet;
    match packet.family {
        Family::V4 => {
            let link_group = packet.dst.v4_bits() >> 8 == 0x00e0_0000;
            packet.src.v4_bits() == 0 && (packet.dst.v4_bits() == u32::MAX || link_group)
        }
        Family::V6 => packet.src.bits() == 0,
    }
}

impl Matcher for RpfilterMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, world: &dyn World, (): &()) -> Answer {
        let back = is_exempt(context) || world.reverse_path(context, self.loose, self.accept_local);
        (back != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask_with, refuses, saves, v4, v6};
    use super::*;
    use crate::wire::Addr;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<RpfilterMatch>(
            Family::V4,
            &[
                ("", ""),
                ("--loose", "--loose"),
                ("--validmark --accept-local --invert --loose", "--loose --validmark --accept-local --invert"),
            ],
        );
        refuses::<RpfilterMatch>(Family::V6, &["! --invert"]);
    }

    #[test]
    fn the_way_back_is_asked_for() {
        let frame = v4(17, &[0; 8]);
        let asked = |words, back| ask_with::<RpfilterMatch>(words, &frame, |_, world| world.reverse_path = back);
        assert_eq!(asked("", true), Answer::Yes);
        assert_eq!(asked("", false), Answer::No);
        assert_eq!(asked("--invert", false), Answer::Yes);
        assert_eq!(asked("--invert", true), Answer::No);
    }

    #[test]
    fn sources_without_a_way_back_are_exempt() {
        let asked = |src: u32, dst: u32| {
            ask_with::<RpfilterMatch>("", &v4(17, &[0; 8]), |context, _| {
                (context.packet.src, context.packet.dst) = (Addr::from_v4(src), Addr::from_v4(dst));
            })
        };
        assert_eq!(asked(0, u32::MAX), Answer::Yes);
        assert_eq!(asked(0, 0xe000_0001), Answer::Yes);
        assert_eq!(asked(0, 0xe000_0101), Answer::No);
        assert_eq!(asked(1, u32::MAX), Answer::No);
        assert_eq!(asked(0, 0x0a02_0002), Answer::No);
        assert_eq!(asked(0x0a01_0002, u32::MAX), Answer::No);
        let unspecified = |context: &mut Context<'_>| context.packet.src = Addr::ZERO;
        let frame = v6(17, &[0; 8]);
        assert_eq!(ask_with::<RpfilterMatch>("", &frame, |context, _| unspecified(context)), Answer::Yes);
    }
}
