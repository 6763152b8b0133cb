//! `-m tcpmss`: the MSS a TCP segment announces (`tcpmss_mt` of xt_tcpmss.c).

use super::common::put;
use super::number::Range;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::{Family, get_u16, proto, tcp};

const MSS: u8 = 0;

/// Kind and length of the option (RFC 9293 section 3.2).
const OPTION_KIND: u8 = 2;
const OPTION_LEN: u8 = 4;

/// `-m tcpmss [!] --mss N[:N]`: false without the option (true when inverted); a header that is cut short or says that it is
/// shorter than 20 bytes drops the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpmssMatch {
    mss: Range,
    invert: bool,
}

impl Extension for TcpmssMatch {
    const NAME: &'static str = "tcpmss";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(MSS, &["--mss"]).invertible()];

    fn new(_: Family) -> TcpmssMatch {
        TcpmssMatch { mss: Range { low: 0, high: u32::from(u16::MAX) }, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        let mss = Range::read(given.argument(), u32::from(u16::MAX), "MSS")?;
        if mss.low > mss.high {
            return Err(Problem::new(given.argument().span, "this range ends before it begins", "must rise"));
        }
        *self = TcpmssMatch { mss, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<TcpmssMatch>()?;
        whole.needs_proto::<TcpmssMatch>(proto::TCP, "-p tcp")
    }

    fn save(&self, out: &mut String, _: Family) {
        put(out, self.invert, format_args!("--mss {}", self.mss));
    }
}

/// The first well-formed MSS option.
fn announced(options: &[u8]) -> Option<u16> {
    let mut at = 0;
    while at < options.len() {
        match options[at..] {
            [OPTION_KIND, OPTION_LEN, _, _, ..] => return Some(get_u16(options, at + 2)),
            [0 | 1, ..] => at += 1,
            // A length of 0 would never end.
            [_, length, ..] => at += usize::from(length).max(1),
            _ => at += 1,
        }
    }
    None
}

impl Matcher for TcpmssMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let segment = context.packet.l4_bytes(context.frame);
        let Some(header) = segment.get(..tcp::HEADER_LEN) else { return Answer::Hotdrop };
        let Some(options) = segment.get(tcp::HEADER_LEN..tcp::header_len(header)) else { return Answer::Hotdrop };
        let fits = announced(options).is_some_and(|mss| self.mss.holds(u32::from(mss)));
        (fits != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<TcpmssMatch>(
            Family::V4,
            &[
                ("--mss 1400", "--mss 1400"),
                ("! --mss 1400:1500", "! --mss 1400:1500"),
                ("--mss 1400:", "--mss 1400:65535"),
                ("--mss :1400", "--mss 0:1400"),
                ("--mss 1400:1400", "--mss 1400"),
            ],
        );
        refuses::<TcpmssMatch>(Family::V4, &["--mss 1500:1400", "--mss 65536"]);
        assert!(checked::<TcpmssMatch>(Family::V4, Some(6), "").is_err());
        assert!(checked::<TcpmssMatch>(Family::V4, None, "--mss 1").is_err());
        assert!(checked::<TcpmssMatch>(Family::V4, Some(6), "--mss 1").is_ok());
    }

    fn segment(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 20];
        bytes[12] = ((20 + options.len()) * 4) as u8;
        bytes[13] = 2;
        bytes.extend(options);
        bytes
    }

    #[test]
    fn the_first_good_option_counts() {
        let yes = |options: &[u8]| ask::<TcpmssMatch>("--mss 1400:1460", &v4(6, &segment(options)));
        assert_eq!(yes(&[2, 4, 5, 0xb4]), Answer::Yes);
        assert_eq!(yes(&[2, 4, 5, 0xb5]), Answer::No);
        assert_eq!(yes(&[1, 3, 3, 7, 2, 4, 5, 0xb4]), Answer::Yes);
        assert_eq!(yes(&[2, 0, 0, 0, 2, 4, 5, 0xb4]), Answer::Yes);
        assert_eq!(yes(&[9, 200, 0, 0, 2, 4, 5, 0xb4]), Answer::No);
        assert_eq!(yes(&[1, 1, 2, 4]), Answer::No);
        assert_eq!(yes(&[1, 1, 1, 2]), Answer::No);
        assert_eq!(yes(&[]), Answer::No);
        assert_eq!(ask::<TcpmssMatch>("! --mss 1400:1460", &v6(6, &segment(&[]))), Answer::Yes);
    }

    #[test]
    fn a_header_cut_short_or_lying_drops() {
        let mut short = segment(&[2, 4, 5, 0xb4]);
        short[12] = 4 << 4;
        assert_eq!(ask::<TcpmssMatch>("--mss 1", &v4(6, &short)), Answer::Hotdrop);
        assert_eq!(ask::<TcpmssMatch>("! --mss 1", &v4(6, &segment(&[1; 4])[..23])), Answer::Hotdrop);
        assert_eq!(ask::<TcpmssMatch>("! --mss 1", &v4(6, &[0; 19])), Answer::Hotdrop);
    }
}
