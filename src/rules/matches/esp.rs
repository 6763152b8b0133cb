//! `-m esp`: the security parameter index of IPsec ESP (`esp_mt` of xt_esp.c).

use super::common::put;
use super::number::Range;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::{Family, get_u32, proto};

const SPI: u8 = 0;

/// SPI and sequence number (RFC 4303 section 2).
const HEADER_LEN: usize = 8;

/// Every SPI.
const ANY: Range = Range { low: 0, high: u32::MAX };

/// `-m esp [!] --espspi N[:N]`: needs 8 bytes of header, or drops the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EspMatch {
    spi: Range,
    invert: bool,
}

impl Extension for EspMatch {
    const NAME: &'static str = "esp";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(SPI, &["--espspi"]).invertible()];

    fn new(_: Family) -> EspMatch {
        EspMatch { spi: ANY, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        *self = EspMatch { spi: Range::read(given.argument(), u32::MAX, "SPI")?, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_proto::<EspMatch>(proto::ESP, "-p esp")
    }

    /// iptables leaves out every range that is whole, inverted or not; one that is inverted would read back as its opposite, so
    /// it is printed here.
    fn save(&self, out: &mut String, _: Family) {
        if self.spi != ANY || self.invert {
            put(out, self.invert, format_args!("--espspi {}", self.spi));
        }
    }
}

impl Matcher for EspMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// All SPIs between two hosts are one connection.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let Some(header) = context.packet.l4_bytes(context.frame).get(..HEADER_LEN) else { return Answer::Hotdrop };
        (self.spi.holds(get_u32(header, 0)) != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<EspMatch>(
            Family::V4,
            &[
                ("", ""),
                ("--espspi 5", "--espspi 5"),
                ("--espspi 0x100:0x200", "--espspi 256:512"),
                ("! --espspi 5:9", "! --espspi 5:9"),
                ("--espspi 5:", "--espspi 5:4294967295"),
                ("--espspi :5", "--espspi 0:5"),
                ("--espspi 9:5", "--espspi 9:5"),
                ("--espspi 0:4294967295", ""),
            ],
        );
        refuses::<EspMatch>(Family::V4, &["--espspi 4294967296"]);
        assert!(checked::<EspMatch>(Family::V4, None, "--espspi 5").is_err());
        assert!(checked::<EspMatch>(Family::V6, Some(50), "").is_ok());
    }

    #[test]
    fn the_spi_is_compared_and_a_short_header_drops() {
        let packet = [0, 0, 1, 0, 0, 0, 0, 1];
        for frame in [v4(50, &packet), v6(50, &packet)] {
            assert_eq!(ask::<EspMatch>("--espspi 256", &frame), Answer::Yes);
            assert_eq!(ask::<EspMatch>("--espspi 257:", &frame), Answer::No);
            assert_eq!(ask::<EspMatch>("! --espspi 257:", &frame), Answer::Yes);
            assert_eq!(ask::<EspMatch>("! --espspi :", &frame), Answer::No);
            assert_eq!(ask::<EspMatch>("", &frame), Answer::Yes);
        }
        assert_eq!(ask::<EspMatch>("", &v4(50, &packet[..7])), Answer::Hotdrop);
    }
}
