//! `-j DSCP`: sets the upper six bits of the TOS byte, or of the traffic class, and leaves ECN's two (`dscp_tg`, `dscp_tg6`
//! in xt_DSCP.c): [`Dscp`].

use super::{argument, tos};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::{Problem, nearest};
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::TableName;
use crate::wire::Family;
use core::fmt::Write;

const SET: u8 = 1;
const SET_CLASS: u8 = 2;

/// Classes by name (libxt_dscp's dscp_helper.c of 1.8.9).
const CLASSES: &[(&str, u8)] = &[
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

/// See the module's head. The number is 0 to 63.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dscp(pub u8);

fn class(given: &Given<'_>) -> Result<u8, Problem> {
    let token = given.argument();
    let found = CLASSES.iter().find(|class| class.0.eq_ignore_ascii_case(&token.text));
    found.map(|class| class.1).ok_or_else(|| {
        let near = nearest(&token.text.to_ascii_uppercase(), CLASSES.iter().map(|class| class.0));
        Problem::new(token.span, format!("unknown DSCP class `{}`", token.text), "not a class").help(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "classes are BE, EF, CS0 to CS7, AF11 to AF43; --set-dscp takes a number".to_owned(),
        })
    })
}

impl Extension for Dscp {
    const NAME: &'static str = "DSCP";
    const TABLES: &'static [TableName] = &[TableName::Mangle];
    const OPTIONS: &'static [OptionSpec] =
        &[OptionSpec::new(SET, &["--set-dscp"]).group(1), OptionSpec::new(SET_CLASS, &["--set-dscp-class"]).group(1)];

    fn new(_: Family) -> Dscp {
        Dscp(0)
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        self.0 = match id {
            SET => argument::number(given, 0, 63)? as u8,
            _ => class(given)?,
        };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match whole.seen.is_empty() {
            true => Err(whole
                .problem("DSCP without a value", "which one?")
                .help("add --set-dscp NUMBER or --set-dscp-class CLASS")),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        write!(out, " --set-dscp 0x{:02x}", self.0).unwrap_or_default();
    }
}

impl Action for Dscp {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Every packet has to be changed: a verdict kept from an earlier one would leave that out.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, _: &mut dyn World, (): &()) -> Outcome {
        let byte = context.packet.tos & 0x03 | self.0 << 2;
        tos::write(context.frame, context.packet, byte);
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PortId;
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;
    use crate::wire::ipv4;
    use etherparse::PacketBuilder;

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then.
    const SAVED: &[(&str, &str)] = &[
        ("--set-dscp 10", "--set-dscp 0x0a"),
        ("--set-dscp 0x3f", "--set-dscp 0x3f"),
        ("--set-dscp 0", "--set-dscp 0x00"),
        ("--set-dscp-class EF", "--set-dscp 0x2e"),
        ("--set-dscp-class ef", "--set-dscp 0x2e"),
        ("--set-dscp-class BE", "--set-dscp 0x00"),
        ("--set-dscp-class AF41", "--set-dscp 0x22"),
        ("--set-dscp-class CS7", "--set-dscp 0x38"),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, expected) in SAVED {
            let dscp: Dscp = read(Family::V4, words).expect(words);
            assert_eq!(saved(&dscp, Family::V4), *expected, "{words}");
            assert_eq!(read::<Dscp>(Family::V4, expected).as_ref(), Ok(&dscp), "{expected}");
        }
        for words in ["--set-dscp 64", "--set-dscp-class XX", "--set-dscp-class VA", "--set-dscp-class LE"] {
            assert!(read::<Dscp>(Family::V4, words).is_err(), "{words}");
        }
    }

    #[test]
    fn ecn_is_left_alone() {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64).udp(1, 2);
        builder.write(&mut frame, b"abc").expect("writing to memory");
        frame[15] = 0xfe;
        ipv4::set_checksum(&mut frame[14..34]);
        let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
        let mut context = context(&mut packet, &mut frame, Instant::from_secs(1));
        Dscp(0x0a).run(&mut context, &mut Told::default(), &());
        assert_eq!(packet.tos, 0x2a);
        assert_eq!(Packet::parse(&frame, PortId::LAN, true).expect("still good").tos, 0x2a);
    }
}
