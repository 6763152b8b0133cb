//! `-m ah`: the IPsec authentication header: behind an IPv4 header (`ah_mt` of ipt_ah.c), or anywhere among IPv6's extension
//! headers (`ah_mt6` of ip6t_ah.c), where it is looked for and its length and reserved field may be asked for, too.

use super::common::put;
use super::extension_header::{self, Found};
use super::number::{Range, number};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::{Family, get_u16, get_u32, proto};

const SPI: u8 = 0;
const LENGTH: u8 = 1;
const RESERVED: u8 = 2;

/// The fixed part (RFC 4302 section 2).
const HEADER_LEN: usize = 12;

/// Every SPI.
const ANY: Range = Range { low: 0, high: u32::MAX };

/// `-m ah [!] --ahspi N[:N]`, for IPv6 also `[!] --ahlen BYTES` and `--ahres` (the reserved field is 0). A header that is cut
/// short drops the packet, for IPv6 also one that says that it is longer than the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AhMatch {
    spi: Range,
    invert_spi: bool,
    /// 0 is any length, inverted or not, as in Linux.
    length: u32,
    invert_length: bool,
    reserved: bool,
}

impl Extension for AhMatch {
    const NAME: &'static str = "ah";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SPI, &["--ahspi"]).invertible(),
        OptionSpec::new(LENGTH, &["--ahlen"]).invertible(),
        OptionSpec::new(RESERVED, &["--ahres"]).arguments(0),
    ];

    fn new(_: Family) -> AhMatch {
        AhMatch { spi: ANY, invert_spi: false, length: 0, invert_length: false, reserved: false }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        if id != SPI && given.family == Family::V4 {
            let message = format!("`{}` is for IPv6", given.name);
            return Err(Problem::new(given.span, message, "not in an IPv4 file").help("IPv4 has `--ahspi` only"));
        }
        match id {
            SPI => (self.spi, self.invert_spi) = (Range::read(given.argument(), u32::MAX, "SPI")?, given.invert),
            LENGTH => {
                self.length = number(given.argument(), u32::MAX, "length")?;
                self.invert_length = given.invert;
            }
            _ => self.reserved = true,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match whole.family {
            Family::V4 => whole.needs_proto::<AhMatch>(proto::AH, "-p ah"),
            Family::V6 => Ok(()),
        }
    }

    /// As for `-m esp`: iptables would leave out a whole range that is inverted.
    fn save(&self, out: &mut String, _: Family) {
        if self.spi != ANY || self.invert_spi {
            put(out, self.invert_spi, format_args!("--ahspi {}", self.spi));
        }
        if self.length != 0 || self.invert_length {
            put(out, self.invert_length, format_args!("--ahlen {}", self.length));
        }
        if self.reserved {
            put(out, false, format_args!("--ahres"));
        }
    }
}

/// Length in bytes, as the header says (`ipv6_authlen`).
fn length_of(header: &[u8]) -> usize {
    usize::from(header[1]) * 4 + 8
}

impl Matcher for AhMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let header = match context.packet.family {
            Family::V4 => context.packet.l4_bytes(context.frame).get(..HEADER_LEN),
            Family::V6 => {
                let ip = context.packet.l3_bytes(context.frame);
                match extension_header::find(ip, proto::AH) {
                    Found::At(at) => ip.get(at..at + HEADER_LEN).filter(|header| at + length_of(header) <= ip.len()),
                    Found::Missing => return Answer::No,
                    Found::Broken => None,
                }
            }
        };
        let Some(header) = header else { return Answer::Hotdrop };
        let length = length_of(header) as u32;
        let spi = self.spi.holds(get_u32(header, 4)) != self.invert_spi;
        let length = self.length == 0 || (self.length == length) != self.invert_length;
        (spi && length && !(self.reserved && get_u16(header, 2) != 0)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<AhMatch>(
            Family::V4,
            &[
                ("", ""),
                ("! --ahspi 0x5:0x9", "! --ahspi 5:9"),
                ("--ahspi :9", "--ahspi 0:9"),
                ("--ahspi 0:4294967295", ""),
                ("--ahspi 9:5", "--ahspi 9:5"),
            ],
        );
        saves::<AhMatch>(
            Family::V6,
            &[
                ("--ahspi 5:9 --ahlen 24", "--ahspi 5:9 --ahlen 24"),
                ("! --ahspi 5:9 ! --ahlen 24 --ahres", "! --ahspi 5:9 ! --ahlen 24 --ahres"),
                ("--ahres", "--ahres"),
                ("--ahlen 0", ""),
                ("! --ahlen 0", "! --ahlen 0"),
                ("--ahlen 0x18", "--ahlen 24"),
                ("--ahres --ahspi 1", "--ahspi 1 --ahres"),
            ],
        );
        refuses::<AhMatch>(Family::V4, &["--ahlen 24", "--ahres", "--ahspi 4294967296"]);
        refuses::<AhMatch>(Family::V6, &["! --ahres"]);
        assert!(checked::<AhMatch>(Family::V4, None, "--ahspi 5").is_err());
        assert!(checked::<AhMatch>(Family::V4, Some(51), "--ahspi 5").is_ok());
        assert!(checked::<AhMatch>(Family::V6, None, "").is_ok());
    }

    #[test]
    fn in_ipv4_it_follows_the_header() {
        let header = [17, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
        assert_eq!(ask::<AhMatch>("--ahspi 256", &v4(51, &header)), Answer::Yes);
        assert_eq!(ask::<AhMatch>("! --ahspi 256", &v4(51, &header)), Answer::No);
        assert_eq!(ask::<AhMatch>("--ahspi 256", &v4(51, &header[..11])), Answer::Hotdrop);
    }

    #[test]
    fn in_ipv6_it_is_looked_for() {
        let mut chain =
            [60, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
        let asked = |words, chain: &[u8]| ask::<AhMatch>(words, &v6(51, chain));
        assert_eq!(asked("--ahspi 256 --ahlen 16 --ahres", &chain), Answer::Yes);
        assert_eq!(asked("! --ahlen 16", &chain), Answer::No);
        assert_eq!(asked("! --ahlen 0", &chain), Answer::Yes);
        chain[3] = 1;
        assert_eq!(asked("--ahres", &chain), Answer::No);
        assert_eq!(ask::<AhMatch>("", &v6(17, &[0; 8])), Answer::No);
        assert_eq!(asked("", &chain[..11]), Answer::Hotdrop);
        assert_eq!(asked("", &[]), Answer::Hotdrop);
        assert_eq!(asked("", &[17, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]), Answer::Hotdrop);
    }
}
