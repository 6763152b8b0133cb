//! `-m pkttype`: to whom the frame was addressed on the link (`pkttype_mt` of xt_pkttype.c).

use super::common::put;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::{Family, Mac, ethernet};

const KIND: u8 = 0;

/// Class of a frame (`PACKET_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    /// To the port's own address.
    Unicast,
    Broadcast,
    Multicast,
    /// To somebody else: such a frame comes to no rule.
    OtherHost,
}

/// Every name; the first of a class is the one that is printed.
const NAMES: &[(&str, Class)] = &[
    ("unicast", Class::Unicast),
    ("broadcast", Class::Broadcast),
    ("multicast", Class::Multicast),
    ("otherhost", Class::OtherHost),
    ("host", Class::Unicast),
    ("bcast", Class::Broadcast),
    ("mcast", Class::Multicast),
];

impl Class {
    fn of(destination: Mac) -> Class {
        match destination {
            Mac([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => Class::Broadcast,
            group if group.is_group() => Class::Multicast,
            _ => Class::Unicast,
        }
    }

    fn name(self) -> &'static str {
        NAMES.iter().find(|(_, class)| *class == self).map_or("", |(name, _)| name)
    }
}

/// `-m pkttype [!] --pkt-type CLASS`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PkttypeMatch {
    class: Class,
    invert: bool,
}

impl Extension for PkttypeMatch {
    const NAME: &'static str = "pkttype";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(KIND, &["--pkt-type"]).invertible()];

    fn new(_: Family) -> PkttypeMatch {
        PkttypeMatch { class: Class::Unicast, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        let found = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&token.text));
        let &(_, class) = found.ok_or_else(|| {
            Problem::new(token.span, format!("`{}` is not a packet type", token.text), "expected a type in full")
                .help("types are unicast, broadcast and multicast")
        })?;
        *self = PkttypeMatch { class, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<PkttypeMatch>()
    }

    fn save(&self, out: &mut String, _: Family) {
        put(out, self.invert, format_args!("--pkt-type {}", self.class.name()));
    }
}

impl Matcher for PkttypeMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        ((Class::of(ethernet::destination(context.frame)) == self.class) != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<PkttypeMatch>(
            Family::V4,
            &[
                ("--pkt-type unicast", "--pkt-type unicast"),
                ("--pkt-type host", "--pkt-type unicast"),
                ("! --pkt-type broadcast", "! --pkt-type broadcast"),
                ("--pkt-type MULTICAST", "--pkt-type multicast"),
                ("--pkt-type bcast", "--pkt-type broadcast"),
                ("--pkt-type mcast", "--pkt-type multicast"),
                ("--pkt-type otherhost", "--pkt-type otherhost"),
            ],
        );
        for bad in ["multi", "uni", "outgoing", "loopback", "0", "any", "\"\""] {
            refuses::<PkttypeMatch>(Family::V4, &[&format!("--pkt-type {bad}")]);
        }
        assert!(checked::<PkttypeMatch>(Family::V4, None, "").is_err());
    }

    #[test]
    fn the_frames_destination_tells() {
        let mut frame = v4(17, &[0; 8]);
        assert_eq!(ask::<PkttypeMatch>("--pkt-type unicast", &frame), Answer::Yes);
        assert_eq!(ask::<PkttypeMatch>("--pkt-type otherhost", &frame), Answer::No);
        assert_eq!(ask::<PkttypeMatch>("! --pkt-type multicast", &frame), Answer::Yes);
        frame[0] = 3;
        assert_eq!(ask::<PkttypeMatch>("--pkt-type multicast", &frame), Answer::Yes);
        assert_eq!(ask::<PkttypeMatch>("--pkt-type unicast", &frame), Answer::No);
        frame[..6].fill(0xff);
        assert_eq!(ask::<PkttypeMatch>("--pkt-type broadcast", &frame), Answer::Yes);
        assert_eq!(ask::<PkttypeMatch>("--pkt-type multicast", &frame), Answer::No);
    }
}
