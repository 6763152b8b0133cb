//! `-j HL` (IPv6): changes the hop limit (`hl_tg6` in xt_HL.c): [`Hl`]; and [`Change`], which `-j TTL` shares.
//!
//! A hop limit of 0 that comes of it is no reason to drop the packet here. Before routing it ends the packet's way there.

use super::argument;
use crate::packet::Packet;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::TableName;
use crate::wire::{Family, checksum, get_u16, ipv4, ipv6, put_u16};
use core::fmt::Write;

/// `--hl-set`, `--ttl-set`
pub(super) const SET: u8 = 1;
/// `--hl-dec`, `--ttl-dec`
pub(super) const DECREASE: u8 = 2;
/// `--hl-inc`, `--ttl-inc`
pub(super) const INCREASE: u8 = 3;

/// What becomes of the TTL or hop limit. Where it would leave 0 to 255, it stays at that end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is this.
    Set(u8),
    /// It grows; not by 0.
    Increase(u8),
    /// It falls; not by 0.
    Decrease(u8),
}

impl Change {
    /// Reads the option of number `id`.
    pub(super) fn read(id: u8, given: &Given<'_>) -> Result<Change, Problem> {
        let low = u32::from(id != SET);
        let number = argument::number(given, low, 255)? as u8;
        Ok(match id {
            SET => Change::Set(number),
            DECREASE => Change::Decrease(number),
            _ => Change::Increase(number),
        })
    }

    /// Without an option there is nothing to do.
    pub(super) fn check(whole: &Whole<'_>, name: &str, option: &str) -> Result<(), Problem> {
        match whole.seen.is_empty() {
            true => Err(whole
                .problem(format!("{name} without anything to do"), "what with it?")
                .help(format!("add --{option}-set, --{option}-inc or --{option}-dec and a number"))),
            false => Ok(()),
        }
    }

    /// `option` is `ttl` or `hl`.
    pub(super) fn save(self, out: &mut String, option: &str) {
        let (word, number) = match self {
            Change::Set(number) => ("set", number),
            Change::Increase(number) => ("inc", number),
            Change::Decrease(number) => ("dec", number),
        };
        write!(out, " --{option}-{word} {number}").unwrap_or_default();
    }

    const fn apply(self, ttl: u8) -> u8 {
        match self {
            Change::Set(number) => number,
            Change::Increase(number) => ttl.saturating_add(number),
            Change::Decrease(number) => ttl.saturating_sub(number),
        }
    }

    /// Changes the frame, its header's checksum and `packet`.
    pub(super) fn write(self, frame: &mut [u8], packet: &mut Packet) {
        let ttl = self.apply(packet.ttl);
        if ttl == packet.ttl {
            return;
        }
        let ip = &mut frame[usize::from(packet.l3_at)..];
        match packet.family {
            Family::V4 => {
                let before = get_u16(ip, ipv4::TTL_AT);
                ip[ipv4::TTL_AT] = ttl;
                let check = checksum::update(get_u16(ip, ipv4::CHECKSUM_AT), before, get_u16(ip, ipv4::TTL_AT));
                put_u16(ip, ipv4::CHECKSUM_AT, check);
            }
            Family::V6 => ip[ipv6::HOP_LIMIT_AT] = ttl,
        }
        packet.ttl = ttl;
    }
}

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hl(pub Change);

impl Extension for Hl {
    const NAME: &'static str = "HL";
    const FAMILIES: &'static [Family] = &[Family::V6];
    const TABLES: &'static [TableName] = &[TableName::Mangle];
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SET, &["--hl-set"]).group(1),
        OptionSpec::new(DECREASE, &["--hl-dec"]).group(1),
        OptionSpec::new(INCREASE, &["--hl-inc"]).group(1),
    ];

    fn new(_: Family) -> Hl {
        Hl(Change::Set(0))
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        self.0 = Change::read(id, given)?;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        Change::check(whole, "HL", "hl")
    }

    fn save(&self, out: &mut String, _: Family) {
        self.0.save(out, "hl");
    }
}

impl Action for Hl {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Every packet has to be changed: a verdict kept from an earlier one would leave that out.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, _: &mut dyn World, (): &()) -> Outcome {
        self.0.write(context.frame, context.packet);
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PortId;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;
    use etherparse::PacketBuilder;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for words in ["--hl-set 0", "--hl-set 4", "--hl-inc 4", "--hl-dec 255"] {
            let hl: Hl = read(Family::V6, words).expect(words);
            assert_eq!(saved(&hl, Family::V6), words);
        }
        for words in ["--hl-dec 0", "--hl-inc 0", "--hl-set 256", "--hl-set x"] {
            assert!(read::<Hl>(Family::V6, words).is_err(), "{words}");
        }
    }

    #[test]
    fn the_hop_limit_changes_and_nothing_else() {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64).udp(1, 2);
        let mut frame = Vec::new();
        builder.write(&mut frame, b"abc").expect("writing to memory");
        for (words, expected) in [("--hl-set 0", 0), ("--hl-inc 200", 255), ("--hl-dec 4", 60), ("--hl-dec 65", 0)] {
            let hl: Hl = read(Family::V6, words).expect(words);
            let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
            let mut changed = frame.clone();
            let mut context = context(&mut packet, &mut changed, Instant::from_secs(1));
            assert_eq!(hl.run(&mut context, &mut Told::default(), &()), Outcome::Continue);
            assert_eq!(packet.ttl, expected, "{words}");
            let mut wanted = frame.clone();
            wanted[14 + 7] = expected;
            assert_eq!(changed, wanted, "{words}");
        }
    }
}
