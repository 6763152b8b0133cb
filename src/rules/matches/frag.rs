//! `-m frag`: IPv6's fragment header (`frag_mt6` of ip6t_frag.c).

use super::common::put;
use super::extension_header::{self, Found};
use super::number::{Range, number};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec};
use crate::rules::registry::Registry;
use crate::wire::{Family, get_u16, get_u32, proto};

const ID: u8 = 0;
const LENGTH: u8 = 1;
const RESERVED: u8 = 2;
const FIRST: u8 = 3;
const MORE: u8 = 4;
const LAST: u8 = 5;

/// `--fragmore` and `--fraglast` exclude each other.
const GROUP: u8 = 1;

/// RFC 8200 section 4.5.
const HEADER_LEN: usize = 8;

/// Every identification.
const ANY: Range = Range { low: 0, high: u32::MAX };

/// `-m frag [!] --fragid N[:N] [!] --fraglen N --fragres --fragfirst [--fragmore|--fraglast]`. Fragments come to no rule (nor do
/// they in Linux where connections are tracked), so it is never true; a packet that ends before it can be said is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragMatch {
    id: Range,
    invert_id: bool,
    /// Kept and printed; Linux never looked at it.
    length: Option<(u32, bool)>,
    reserved: bool,
    first: bool,
    /// Whether more fragments have to follow.
    more: Option<bool>,
}

impl Extension for FragMatch {
    const NAME: &'static str = "frag";
    const FAMILIES: &'static [Family] = &[Family::V6];
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(ID, &["--fragid"]).invertible(),
        OptionSpec::new(LENGTH, &["--fraglen"]).invertible(),
        OptionSpec::new(RESERVED, &["--fragres"]).arguments(0),
        OptionSpec::new(FIRST, &["--fragfirst"]).arguments(0),
        OptionSpec::new(MORE, &["--fragmore"]).arguments(0).group(GROUP),
        OptionSpec::new(LAST, &["--fraglast"]).arguments(0).group(GROUP),
    ];

    fn new(_: Family) -> FragMatch {
        FragMatch { id: ANY, invert_id: false, length: None, reserved: false, first: false, more: None }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            ID => (self.id, self.invert_id) = (Range::read(given.argument(), u32::MAX, "fragment id")?, given.invert),
            LENGTH => self.length = Some((number(given.argument(), u32::MAX, "length")?, given.invert)),
            RESERVED => self.reserved = true,
            FIRST => self.first = true,
            MORE => self.more = Some(true),
            _ => self.more = Some(false),
        }
        Ok(())
    }

    /// As for `-m esp`: iptables would leave out a whole range that is inverted.
    fn save(&self, out: &mut String, _: Family) {
        if self.id != ANY || self.invert_id {
            put(out, self.invert_id, format_args!("--fragid {}", self.id));
        }
        if let Some((length, invert)) = self.length {
            put(out, invert, format_args!("--fraglen {length}"));
        }
        let flags = [
            (self.reserved, "--fragres"),
            (self.first, "--fragfirst"),
            (self.more == Some(true), "--fragmore"),
            (self.more == Some(false), "--fraglast"),
        ];
        for (_, option) in flags.iter().filter(|(given, _)| *given) {
            put(out, false, format_args!("{option}"));
        }
    }
}

impl FragMatch {
    fn fits(&self, header: &[u8]) -> bool {
        let offset = get_u16(header, 2);
        let reserved = header[1] != 0 || offset & 6 != 0;
        self.id.holds(get_u32(header, 4)) != self.invert_id
            && !(self.reserved && reserved)
            && !(self.first && offset & !7 != 0)
            && self.more.is_none_or(|more| (offset & 1 != 0) == more)
    }
}

impl Matcher for FragMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let ip = context.packet.l3_bytes(context.frame);
        match extension_header::find(ip, proto::FRAGMENT) {
            Found::Missing => Answer::No,
            Found::Broken => Answer::Hotdrop,
            Found::At(at) => ip.get(at..at + HEADER_LEN).map_or(Answer::Hotdrop, |header| self.fits(header).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, refuses, saves, v6};
    use super::*;
    use crate::rules::extension_testing::read;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<FragMatch>(
            Family::V6,
            &[
                ("", ""),
                ("--fragid 1", "--fragid 1"),
                ("! --fragid 1:5 --fraglast --fragfirst", "! --fragid 1:5 --fragfirst --fraglast"),
                ("--fragid 1 --fragres --fragfirst --fragmore", "--fragid 1 --fragres --fragfirst --fragmore"),
                ("! --fraglen 8", "! --fraglen 8"),
                ("--fraglen 0", "--fraglen 0"),
                ("--fragid 0:4294967295", ""),
                ("--fragid 5:1", "--fragid 5:1"),
                ("--fragid :5", "--fragid 0:5"),
            ],
        );
        refuses::<FragMatch>(Family::V6, &["! --fragfirst", "--fraglen 4294967296"]);
    }

    #[test]
    fn only_fragments_match_and_there_are_none() {
        assert_eq!(ask::<FragMatch>("", &v6(17, &[0; 8])), Answer::No);
        assert_eq!(ask::<FragMatch>("", &v6(60, &[17, 0, 1, 4, 0, 0, 0, 0])), Answer::No);
        assert_eq!(ask::<FragMatch>("", &v6(60, &[17])), Answer::Hotdrop);
    }

    #[test]
    fn the_headers_fields_are_read() {
        let fits = |words, header: [u8; 8]| read::<FragMatch>(Family::V6, words).expect("good").fits(&header);
        let (first, later) = ([17, 0, 0, 1, 0, 0, 0, 9], [17, 0, 0, 8, 0, 0, 0, 9]);
        assert!(fits("--fragid 9 --fragres --fragfirst --fragmore", first));
        assert!(!fits("--fraglast", first) && !fits("! --fragid 9", first));
        assert!(fits("--fraglast", later) && !fits("--fragfirst", later) && !fits("--fragmore", later));
        assert!(!fits("--fragres", [17, 1, 0, 1, 0, 0, 0, 9]) && !fits("--fragres", [17, 0, 0, 3, 0, 0, 0, 9]));
        assert!(fits("--fraglen 12345", first));
    }
}
