//! `-j TOS`: changes bits of the TOS byte, or the traffic class (`tos_tg`, `tos_tg6` in xt_DSCP.c): [`Tos`]; and
//! [`write`], which `-j DSCP` shares.

use super::argument;
use crate::packet::Packet;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::{Problem, nearest};
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::TableName;
use crate::rules::value;
use crate::wire::{Family, checksum, get_u16, ipv4, put_u16};
use core::fmt::Write;

const SET: u8 = 1;
const AND: u8 = 2;
const OR: u8 = 3;
const XOR: u8 = 4;

/// Names of RFC 1349, with the mask 0x3f.
const NAMES: &[(&str, u8)] = &[
    ("Minimize-Delay", 0x10),
    ("Maximize-Throughput", 0x08),
    ("Maximize-Reliability", 0x04),
    ("Minimize-Cost", 0x02),
    ("Normal-Service", 0x00),
];
const NAMES_MASK: u8 = 0x3f;

/// `tos = (tos & !mask) ^ value`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tos {
    /// Bits to flip after those of the mask are cleared.
    pub value: u8,
    /// Bits to clear.
    pub mask: u8,
}

/// `VALUE`, `VALUE/MASK` or a name.
fn value_and_mask(given: &Given<'_>) -> Result<(u8, u8), Problem> {
    let token = given.argument();
    if let Some(name) = NAMES.iter().find(|name| name.0.eq_ignore_ascii_case(&token.text)) {
        return Ok((name.1, NAMES_MASK));
    }
    let (value, mask) = match token.text.split_once('/') {
        Some((value, mask)) => (value, value::unsigned(mask, 255)),
        None => (token.text.as_str(), Some(255)),
    };
    value::unsigned(value, 255).zip(mask).map(|(value, mask)| (value as u8, mask as u8)).ok_or_else(|| {
        let names: Vec<&str> = NAMES.iter().map(|name| name.0).collect();
        let near = nearest(&token.text, names.iter().copied());
        Problem::new(token.span, format!("`{}` is no TOS", token.text), "expected VALUE, VALUE/MASK or a name").help(
            match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("numbers go up to 255; names are {}", names.join(", ")),
            },
        )
    })
}

/// Sets the TOS or traffic class in the frame (with the IPv4 header's checksum) and in `packet`.
pub(super) fn write(frame: &mut [u8], packet: &mut Packet, tos: u8) {
    if tos == packet.tos {
        return;
    }
    let ip = &mut frame[usize::from(packet.l3_at)..];
    match packet.family {
        Family::V4 => {
            let before = get_u16(ip, 0);
            ip[1] = tos;
            let check = checksum::update(get_u16(ip, ipv4::CHECKSUM_AT), before, get_u16(ip, 0));
            put_u16(ip, ipv4::CHECKSUM_AT, check);
        }
        Family::V6 => {
            ip[0] = ip[0] & 0xf0 | tos >> 4;
            ip[1] = ip[1] & 0x0f | tos << 4;
        }
    }
    packet.tos = tos;
}

impl Extension for Tos {
    const NAME: &'static str = "TOS";
    const TABLES: &'static [TableName] = &[TableName::Mangle];
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SET, &["--set-tos"]).group(1),
        OptionSpec::new(AND, &["--and-tos"]).group(1),
        OptionSpec::new(OR, &["--or-tos"]).group(1),
        OptionSpec::new(XOR, &["--xor-tos"]).group(1),
    ];

    fn new(_: Family) -> Tos {
        Tos { value: 0, mask: 0 }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        (self.value, self.mask) = match id {
            SET => value_and_mask(given)?,
            AND => (0, !(argument::number(given, 0, 255)? as u8)),
            OR => {
                let bits = argument::number(given, 0, 255)? as u8;
                (bits, bits)
            }
            _ => (argument::number(given, 0, 255)? as u8, 0),
        };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match whole.seen.is_empty() {
            true => Err(whole
                .problem("TOS without a value", "which one?")
                .help("add --set-tos VALUE[/MASK], --and-tos, --or-tos or --xor-tos")),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        write!(out, " --set-tos 0x{:02x}/0x{:02x}", self.value, self.mask).unwrap_or_default();
    }
}

impl Action for Tos {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Every packet has to be changed: a verdict kept from an earlier one would leave that out.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, _: &mut dyn World, (): &()) -> Outcome {
        let tos = (context.packet.tos & !self.mask) ^ self.value;
        write(context.frame, context.packet, tos);
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PortId;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;
    use crate::wire::ipv6;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then.
    const SAVED: &[(&str, &str)] = &[
        ("--set-tos 0x10", "--set-tos 0x10/0xff"),
        ("--set-tos 16", "--set-tos 0x10/0xff"),
        ("--set-tos 0x10/0x1c", "--set-tos 0x10/0x1c"),
        ("--set-tos 0xff/0x03", "--set-tos 0xff/0x03"),
        ("--set-tos Minimize-Delay", "--set-tos 0x10/0x3f"),
        ("--set-tos minimize-delay", "--set-tos 0x10/0x3f"),
        ("--set-tos Maximize-Throughput", "--set-tos 0x08/0x3f"),
        ("--set-tos Normal-Service", "--set-tos 0x00/0x3f"),
        ("--and-tos 0xf0", "--set-tos 0x00/0x0f"),
        ("--or-tos 0x0f", "--set-tos 0x0f/0x0f"),
        ("--xor-tos 0x0f", "--set-tos 0x0f/0x00"),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, expected) in SAVED {
            let tos: Tos = read(Family::V4, words).expect(words);
            assert_eq!(saved(&tos, Family::V4), *expected, "{words}");
            assert_eq!(read::<Tos>(Family::V4, expected).as_ref(), Ok(&tos), "{expected}");
        }
        let wrong = ["Normal-Service/0xff", "Minimize", "256", "1/256", "1/", "\"\""];
        for words in wrong {
            assert!(read::<Tos>(Family::V4, &format!("--set-tos {words}")).is_err(), "{words}");
        }
        assert!(read::<Tos>(Family::V4, "--and-tos Minimize-Delay").is_err());
    }

    proptest! {
        #[test]
        fn the_byte_changes_and_the_checksum_stays_right(tos: u8, value: u8, mask: u8, v6: bool) {
            let mut frame = Vec::new();
            let start = PacketBuilder::ethernet2([2; 6], [4; 6]);
            match v6 {
                true => start.ipv6([1; 16], [2; 16], 64).udp(1, 2).write(&mut frame, b"abc"),
                false => start.ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64).udp(1, 2).write(&mut frame, b"abc"),
            }
            .expect("writing to memory");
            if v6 {
                frame[14] |= tos >> 4;
                frame[15] = tos << 4 | 0x0a; // and some flow label
            } else {
                frame[15] = tos;
                ipv4::set_checksum(&mut frame[14..34]);
            }
            let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
            prop_assert_eq!(packet.tos, tos);
            let expected = tos & !mask ^ value;
            let mut context = context(&mut packet, &mut frame, Instant::from_secs(1));
            Tos { value, mask }.run(&mut context, &mut Told::default(), &());
            prop_assert_eq!(packet.tos, expected);
            let again = Packet::parse(&frame, PortId::LAN, true).expect("still a good packet");
            prop_assert_eq!((again.tos, again.family, again.l3_len), (expected, packet.family, packet.l3_len));
            prop_assert!(!v6 || ipv6::flow_label(&frame[14..]) >> 16 == 0x0a);
        }
    }
}
