//! `-j TTL` (IPv4): changes the TTL (`ttl_tg` in xt_HL.c): [`Ttl`]. As `-j HL`, see [`Change`].

use super::hl::{Change, DECREASE, INCREASE, SET};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::TableName;
use crate::wire::Family;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ttl(pub Change);

impl Extension for Ttl {
    const NAME: &'static str = "TTL";
    const FAMILIES: &'static [Family] = &[Family::V4];
    const TABLES: &'static [TableName] = &[TableName::Mangle];
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SET, &["--ttl-set"]).group(1),
        OptionSpec::new(DECREASE, &["--ttl-dec"]).group(1),
        OptionSpec::new(INCREASE, &["--ttl-inc"]).group(1),
    ];

    fn new(_: Family) -> Ttl {
        Ttl(Change::Set(0))
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        self.0 = Change::read(id, given)?;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        Change::check(whole, "TTL", "ttl")
    }

    fn save(&self, out: &mut String, _: Family) {
        self.0.save(out, "ttl");
    }
}

impl Action for Ttl {
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
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;
    use crate::wire::ipv4;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for words in ["--ttl-set 64", "--ttl-set 0", "--ttl-set 255", "--ttl-inc 1", "--ttl-dec 1"] {
            let ttl: Ttl = read(Family::V4, words).expect(words);
            assert_eq!(saved(&ttl, Family::V4), words);
        }
        for words in ["--ttl-inc 0", "--ttl-dec 0", "--ttl-set 256", "--ttl-set x"] {
            assert!(read::<Ttl>(Family::V4, words).is_err(), "{words}");
        }
    }

    proptest! {
        #[test]
        fn the_header_checksum_stays_right(ttl: u8, by in 1u8.., word in 0usize..3, id: u16) {
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 2], [10, 2, 0, 2], ttl).udp(1, 2);
            builder.write(&mut frame, b"abc").expect("writing to memory");
            crate::wire::put_u16(&mut frame, 18, id);
            ipv4::set_checksum(&mut frame[14..34]);
            let (words, expected) = [
                (format!("--ttl-set {by}"), by),
                (format!("--ttl-inc {by}"), ttl.saturating_add(by)),
                (format!("--ttl-dec {by}"), ttl.saturating_sub(by)),
            ][word].clone();
            let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
            let mut changed = frame.clone();
            let mut context = context(&mut packet, &mut changed, Instant::from_secs(1));
            let target: Ttl = read(Family::V4, &words).expect("good words");
            prop_assert_eq!(target.run(&mut context, &mut Told::default(), &()), Outcome::Continue);
            prop_assert_eq!(packet.ttl, expected);
            frame[14 + ipv4::TTL_AT] = expected;
            ipv4::set_checksum(&mut frame[14..34]);
            prop_assert_eq!(changed, frame);
        }
    }
}
