//! `-m rt`: IPv6's routing header (`rt_mt6` of ip6t_rt.c).

use super::address;
use super::common::put;
use super::extension_header::{self, Found};
use super::number::{Range, number};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec};
use crate::rules::registry::Registry;
use crate::rules::save::address_text;
use crate::wire::{Addr, Family, get_u32, proto};

const TYPE: u8 = 0;
const SEGMENTS: u8 = 1;
const LENGTH: u8 = 2;
const RESERVED: u8 = 3;
const ADDRESSES: u8 = 4;
const NOT_STRICT: u8 = 5;

/// Next header, length, type, segments left.
const HEADER_LEN: usize = 4;
/// Where a type 0 header has its addresses (RFC 2460 section 4.4).
const ADDRESSES_AT: usize = 8;
const ADDRESS_LEN: usize = 16;
/// Most addresses to ask for (`IP6T_RT_HOPS`).
const ADDRESSES_MAX: usize = 16;

/// Every number of segments.
const ANY: Range = Range { low: 0, high: u32::MAX };

/// `-m rt [!] --rt-type N [!] --rt-segsleft N[:N] [!] --rt-len N`, and after `--rt-type 0` also `--rt-0-res` (reserved field is 0)
/// and `--rt-0-addrs LIST [--rt-0-not-strict]`: these addresses and no other, or these in this order among others.
/// A header that is longer than the packet drops it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RtMatch {
    kind: Option<(u32, bool)>,
    segments: Range,
    invert_segments: bool,
    length: Option<(u32, bool)>,
    reserved: bool,
    addresses: Vec<Addr>,
    not_strict: bool,
}

impl RtMatch {
    fn read_addresses(&mut self, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        let list: Result<Vec<Addr>, Problem> =
            token.text.split(',').map(|text| address::read(text, token, Family::V6)).collect();
        self.addresses = list?;
        match self.addresses.len() > ADDRESSES_MAX {
            true => Err(Problem::new(token.span, format!("more than {ADDRESSES_MAX} addresses"), "too many")),
            false => Ok(()),
        }
    }

    /// Whether the addresses in a type 0 header `body` long are as asked for; `None` where they are beyond the packet.
    fn addresses_fit(&self, header: &[u8], length: usize) -> Option<bool> {
        let count = (length - ADDRESSES_AT) / ADDRESS_LEN;
        if self.addresses.len() > count {
            return Some(false);
        }
        let nth = |n: usize| {
            let at = ADDRESSES_AT + n * ADDRESS_LEN;
            header.get(at..at + ADDRESS_LEN).map(|bytes| Addr::read_v6(bytes, 0))
        };
        if !self.not_strict {
            for (n, wanted) in self.addresses.iter().enumerate() {
                if nth(n)? != *wanted {
                    return Some(false);
                }
            }
            return Some(self.addresses.len() == count);
        }
        let mut wanted = self.addresses.iter();
        let mut next = wanted.next();
        for n in 0..count {
            if next == Some(&nth(n)?) {
                next = wanted.next();
            }
            if next.is_none() {
                break;
            }
        }
        Some(next.is_none())
    }

    fn test_header(&self, header: &[u8]) -> Answer {
        let length = extension_header::length(header);
        if header.len() < length {
            return Answer::Hotdrop;
        }
        let fits = |asked: Option<(u32, bool)>, value| asked.is_none_or(|(wanted, invert)| (wanted == value) != invert);
        let segments = self.segments.holds(u32::from(header[3])) != self.invert_segments;
        if !(segments && fits(self.length, length as u32) && fits(self.kind, u32::from(header[2]))) {
            return Answer::No;
        }
        if self.reserved && get_u32(header, HEADER_LEN) != 0 {
            return Answer::No;
        }
        match self.addresses.is_empty() {
            true => Answer::Yes,
            false => self.addresses_fit(header, length).map_or(Answer::Hotdrop, Answer::from),
        }
    }
}

impl Extension for RtMatch {
    const NAME: &'static str = "rt";
    const FAMILIES: &'static [Family] = &[Family::V6];
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(TYPE, &["--rt-type"]).invertible(),
        OptionSpec::new(SEGMENTS, &["--rt-segsleft"]).invertible(),
        OptionSpec::new(LENGTH, &["--rt-len"]).invertible(),
        OptionSpec::new(RESERVED, &["--rt-0-res"]).arguments(0),
        OptionSpec::new(ADDRESSES, &["--rt-0-addrs"]),
        OptionSpec::new(NOT_STRICT, &["--rt-0-not-strict"]).arguments(0),
    ];

    fn new(_: Family) -> RtMatch {
        RtMatch {
            kind: None,
            segments: ANY,
            invert_segments: false,
            length: None,
            reserved: false,
            addresses: Vec::new(),
            not_strict: false,
        }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let needs = |wanted: &str, place: &str| {
            let message = format!("`{}` needs `{wanted}`", given.name);
            Problem::new(given.span, message, place).help(format!("put `{wanted}` before it"))
        };
        if matches!(id, RESERVED | ADDRESSES | NOT_STRICT) && self.kind != Some((0, false)) {
            return Err(needs("--rt-type 0", "only headers of type 0 have these fields"));
        }
        match id {
            TYPE => self.kind = Some((number(given.argument(), u32::MAX, "routing type")?, given.invert)),
            SEGMENTS => {
                self.segments = Range::read(given.argument(), u32::MAX, "number of segments")?;
                self.invert_segments = given.invert;
            }
            LENGTH => self.length = Some((number(given.argument(), u32::MAX, "length")?, given.invert)),
            RESERVED => self.reserved = true,
            ADDRESSES => self.read_addresses(given)?,
            _ if self.addresses.is_empty() => return Err(needs("--rt-0-addrs LIST", "no addresses before it")),
            _ => self.not_strict = true,
        }
        Ok(())
    }

    /// As for `-m esp`: iptables would leave out a whole range that is inverted.
    fn save(&self, out: &mut String, family: Family) {
        if let Some((kind, invert)) = self.kind {
            put(out, invert, format_args!("--rt-type {kind}"));
        }
        if self.segments != ANY || self.invert_segments {
            put(out, self.invert_segments, format_args!("--rt-segsleft {}", self.segments));
        }
        if let Some((length, invert)) = self.length {
            put(out, invert, format_args!("--rt-len {length}"));
        }
        if self.reserved {
            put(out, false, format_args!("--rt-0-res"));
        }
        if !self.addresses.is_empty() {
            let list: Vec<String> = self.addresses.iter().map(|addr| address_text(*addr, family)).collect();
            put(out, false, format_args!("--rt-0-addrs {}", list.join(",")));
        }
        if self.not_strict {
            put(out, false, format_args!("--rt-0-not-strict"));
        }
    }
}

impl Matcher for RtMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let ip = context.packet.l3_bytes(context.frame);
        match extension_header::find(ip, proto::ROUTING) {
            Found::Missing => Answer::No,
            Found::Broken => Answer::Hotdrop,
            Found::At(at) => self.test_header(&ip[at..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, refuses, saves, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<RtMatch>(
            Family::V6,
            &[
                ("", ""),
                ("! --rt-type 2", "! --rt-type 2"),
                ("--rt-segsleft 1:3", "--rt-segsleft 1:3"),
                ("! --rt-segsleft 1:", "! --rt-segsleft 1:4294967295"),
                ("--rt-segsleft 3:1", "--rt-segsleft 3:1"),
                ("--rt-segsleft 0:4294967295", ""),
                ("--rt-len 0", "--rt-len 0"),
                ("--rt-type 0 --rt-len 24 --rt-segsleft 1", "--rt-type 0 --rt-segsleft 1 --rt-len 24"),
                ("--rt-type 0x0 --rt-0-res", "--rt-type 0 --rt-0-res"),
                ("--rt-type 256", "--rt-type 256"),
                (
                    "--rt-type 0 --rt-0-addrs fd00::1,::10.0.0.1 --rt-0-not-strict --rt-0-res",
                    "--rt-type 0 --rt-0-res --rt-0-addrs fd00::1,::10.0.0.1 --rt-0-not-strict",
                ),
            ],
        );
        refuses::<RtMatch>(
            Family::V6,
            &[
                "--rt-0-res",
                "--rt-0-res --rt-type 0",
                "--rt-type 2 --rt-0-res",
                "! --rt-type 0 --rt-0-addrs fd00::1",
                "--rt-type 0 --rt-0-not-strict",
                "--rt-type 0 --rt-0-not-strict --rt-0-addrs fd00::1",
                "--rt-type 0 ! --rt-0-addrs fd00::1",
                "--rt-type 0 --rt-0-addrs fd00::1/64",
                "--rt-type 4294967296",
            ],
        );
        let many = vec!["fd00::1"; 17].join(",");
        refuses::<RtMatch>(Family::V6, &[&format!("--rt-type 0 --rt-0-addrs {many}")]);
    }

    /// A packet with a routing header of type 0 and these addresses fd00::N.
    fn routed(segments: u8, reserved: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = vec![17, 2 * addresses.len() as u8, 0, segments, 0, 0, 0, reserved];
        for last in addresses {
            header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, *last]);
        }
        v6(43, &[&header[..], &[0; 8]].concat())
    }

    #[test]
    fn the_headers_fields_are_read() {
        let frame = routed(1, 0, &[1, 2]);
        let cases = [
            ("", Answer::Yes),
            ("--rt-type 0", Answer::Yes),
            ("! --rt-type 0", Answer::No),
            ("--rt-type 256", Answer::No),
            ("--rt-segsleft 1", Answer::Yes),
            ("! --rt-segsleft 0:4", Answer::No),
            ("--rt-len 40", Answer::Yes),
            ("! --rt-len 40", Answer::No),
            ("--rt-type 0 --rt-0-res", Answer::Yes),
            ("--rt-type 0 --rt-0-addrs fd00::1,fd00::2", Answer::Yes),
            ("--rt-type 0 --rt-0-addrs fd00::1", Answer::No),
            ("--rt-type 0 --rt-0-addrs fd00::1 --rt-0-not-strict", Answer::Yes),
            ("--rt-type 0 --rt-0-addrs fd00::2 --rt-0-not-strict", Answer::Yes),
            ("--rt-type 0 --rt-0-addrs fd00::2,fd00::1 --rt-0-not-strict", Answer::No),
            ("--rt-type 0 --rt-0-addrs fd00::1,fd00::2,fd00::3 --rt-0-not-strict", Answer::No),
        ];
        for (words, answer) in cases {
            assert_eq!(ask::<RtMatch>(words, &frame), answer, "{words}");
        }
        assert_eq!(ask::<RtMatch>("--rt-type 0 --rt-0-res", &routed(1, 1, &[])), Answer::No);
    }

    #[test]
    fn packets_without_a_whole_header() {
        assert_eq!(ask::<RtMatch>("", &v6(17, &[0; 8])), Answer::No);
        assert_eq!(ask::<RtMatch>("", &v6(43, &[17, 0, 0])), Answer::Hotdrop);
        assert_eq!(ask::<RtMatch>("", &v6(43, &[17, 1, 0, 0, 0, 0, 0, 0])), Answer::Hotdrop);
    }
}
