//! `-m hbh` and `-m dst`: IPv6's hop-by-hop and destination options (`hbh_mt6` of ip6t_hbh.c).

use super::common::put;
use super::extension_header::{self, Found};
use super::number::number;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec};
use crate::rules::registry::Registry;
use crate::rules::value;
use crate::wire::{Family, proto};

const LENGTH: u8 = 0;
const OPTIONS: u8 = 1;

/// Most options to ask for (`IP6T_OPTS_OPTSNR`).
const OPTIONS_MAX: usize = 16;
/// A length that is not looked at.
const ANY_LENGTH: u8 = 255;

/// An option asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Wanted {
    kind: u8,
    /// [`ANY_LENGTH`] is any.
    length: u8,
}

/// `-m hbh [!] --hbh-len BYTES --hbh-opts TYPE[:LENGTH],...`, or the same with `dst`: the header's length, and the options it
/// begins with. A header that is longer than the packet drops it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OptsMatch<const HEADER: u8> {
    length: Option<(u32, bool)>,
    options: Vec<Wanted>,
}

/// `-m hbh`
pub type HbhMatch = OptsMatch<{ proto::HOP_BY_HOP }>;
/// `-m dst`
pub type DstMatch = OptsMatch<{ proto::DEST_OPTIONS }>;

impl<const HEADER: u8> OptsMatch<HEADER> {
    fn read_options(&mut self, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        for item in token.text.split(',') {
            let (kind, length) = item.split_once(':').map_or((item, None), |(kind, length)| (kind, Some(length)));
            let byte = |text: &str| {
                value::unsigned(text, 255).map(|byte| byte as u8).ok_or_else(|| {
                    Problem::new(token.span, format!("`{item}` is not an option"), "expected TYPE or TYPE:LENGTH")
                        .help("both are numbers up to 255; several are separated by commas")
                })
            };
            let length = length.map_or(Ok(ANY_LENGTH), byte)?;
            self.options.push(Wanted { kind: byte(kind)?, length });
        }
        match self.options.len() > OPTIONS_MAX {
            true => Err(Problem::new(token.span, format!("more than {OPTIONS_MAX} options"), "too many")),
            false => Ok(()),
        }
    }

    /// Whether `rest`, the options of a header, begins with those asked for. The packet's end is not before theirs.
    fn options_fit(&self, mut rest: &[u8]) -> bool {
        for (n, wanted) in self.options.iter().enumerate() {
            let Some(&kind) = rest.first().filter(|kind| **kind == wanted.kind) else { return false };
            let size = match kind {
                0 => 1,
                _ => match rest.get(1) {
                    Some(&length) if [ANY_LENGTH, length].contains(&wanted.length) => usize::from(length) + 2,
                    _ => return false,
                },
            };
            let is_last = n + 1 == self.options.len();
            match rest.get(size..) {
                Some(behind) => rest = behind,
                // The last one may reach beyond the header.
                None => return is_last,
            }
        }
        true
    }
}

impl<const HEADER: u8> Extension for OptsMatch<HEADER> {
    const NAME: &'static str = if HEADER == proto::HOP_BY_HOP { "hbh" } else { "dst" };
    const FAMILIES: &'static [Family] = &[Family::V6];
    const OPTIONS: &'static [OptionSpec] = if HEADER == proto::HOP_BY_HOP {
        &[OptionSpec::new(LENGTH, &["--hbh-len"]).invertible(), OptionSpec::new(OPTIONS, &["--hbh-opts"])]
    } else {
        &[OptionSpec::new(LENGTH, &["--dst-len"]).invertible(), OptionSpec::new(OPTIONS, &["--dst-opts"])]
    };

    fn new(_: Family) -> Self {
        OptsMatch { length: None, options: Vec::new() }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            LENGTH => self.length = Some((number(given.argument(), u32::MAX, "length")?, given.invert)),
            _ => self.read_options(given)?,
        }
        Ok(())
    }

    fn save(&self, out: &mut String, _: Family) {
        if let Some((length, invert)) = self.length {
            put(out, invert, format_args!("--{}-len {length}", Self::NAME));
        }
        if !self.options.is_empty() {
            let text = |wanted: &Wanted| match wanted.length {
                ANY_LENGTH => wanted.kind.to_string(),
                length => format!("{}:{length}", wanted.kind),
            };
            let list: Vec<String> = self.options.iter().map(text).collect();
            put(out, false, format_args!("--{}-opts {}", Self::NAME, list.join(",")));
        }
    }
}

impl<const HEADER: u8> Matcher for OptsMatch<HEADER> {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let ip = context.packet.l3_bytes(context.frame);
        let at = match extension_header::find(ip, HEADER) {
            Found::Missing => return Answer::No,
            Found::Broken => return Answer::Hotdrop,
            Found::At(at) => at,
        };
        let length = extension_header::length(&ip[at..]);
        let Some(header) = ip.get(at..at + length) else { return Answer::Hotdrop };
        let fits = self.length.is_none_or(|(wanted, invert)| (wanted == length as u32) != invert);
        (fits && self.options_fit(&header[2..])).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, refuses, saves, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<HbhMatch>(
            Family::V6,
            &[
                ("", ""),
                ("! --hbh-len 8", "! --hbh-len 8"),
                ("--hbh-len 0", "--hbh-len 0"),
                ("--hbh-opts 5:2,6,1:0", "--hbh-opts 5:2,6,1:0"),
                ("--hbh-opts 0x5:0x2 --hbh-len 4294967295", "--hbh-len 4294967295 --hbh-opts 5:2"),
                ("--hbh-opts 5:255", "--hbh-opts 5"),
                (
                    "--hbh-opts 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
                    "--hbh-opts 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
                ),
            ],
        );
        saves::<DstMatch>(Family::V6, &[("--dst-opts 1,2:3 --dst-len 8", "--dst-len 8 --dst-opts 1,2:3")]);
        refuses::<HbhMatch>(
            Family::V6,
            &[
                "--hbh-opts 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17",
                "--hbh-opts \"\"",
                "--hbh-opts 5:",
                "! --hbh-opts 5",
                "--dst-len 8",
                // iptables takes these modulo 256.
                "--hbh-opts 256",
                "--hbh-opts 5:256",
            ],
        );
    }

    #[test]
    fn the_header_begins_with_the_options() {
        let frame = v6(60, &[17, 1, 0, 5, 2, 0, 0, 1, 0, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0]);
        let cases = [
            ("", Answer::Yes),
            ("--dst-len 16", Answer::Yes),
            ("! --dst-len 16", Answer::No),
            ("--dst-opts 0,5:2,1:0", Answer::Yes),
            ("--dst-opts 0,5", Answer::Yes),
            ("--dst-opts 5", Answer::No),
            ("--dst-opts 0,5:3", Answer::No),
            ("--dst-opts 0,5,1,0,1:4", Answer::Yes),
            ("--dst-opts 0,5,1,0,1:4,0", Answer::No),
            ("--dst-len 8 --dst-opts 0,5", Answer::No),
        ];
        for (words, answer) in cases {
            assert_eq!(ask::<DstMatch>(words, &frame), answer, "{words}");
        }
        assert_eq!(ask::<HbhMatch>("", &frame), Answer::No);
    }

    #[test]
    fn the_last_option_may_reach_beyond_the_header() {
        let frame = v6(60, &[17, 0, 1, 1, 0, 30, 9, 0, 0, 0, 0, 0, 0, 8, 0, 0]);
        assert_eq!(ask::<DstMatch>("--dst-opts 1,30:9", &frame), Answer::Yes);
        assert_eq!(ask::<DstMatch>("--dst-opts 1,30:9,0", &frame), Answer::No);
    }

    #[test]
    fn packets_without_a_whole_header() {
        assert_eq!(ask::<DstMatch>("", &v6(60, &[17])), Answer::Hotdrop);
        assert_eq!(ask::<DstMatch>("", &v6(60, &[17, 1, 1, 4, 0, 0, 0, 0])), Answer::Hotdrop);
        assert_eq!(ask::<DstMatch>("", &v6(17, &[0; 8])), Answer::No);
    }
}
