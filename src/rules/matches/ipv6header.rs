//! `-m ipv6header`: which headers an IPv6 packet has (`ipv6header_mt6` of ip6t_ipv6header.c).

use super::common::{need_option, put};
use super::extension_header;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::{Problem, nearest};
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::token::Token;
use crate::wire::{Family, ipv6, proto};

const HEADER: u8 = 0;
const SOFT: u8 = 1;

/// Kinds of headers (`MASK_*` of the kernel), highest first as they are printed: bit, name, other names.
const KINDS: &[(u8, &str, &[&str])] = &[
    (HOP_BY_HOP, "hop-by-hop", &["hop", "hopopt", "0"]),
    (DEST_OPTIONS, "ipv6-opts", &["dst", "60"]),
    (ROUTING, "ipv6-route", &["route", "43"]),
    (FRAGMENT, "ipv6-frag", &["frag", "44"]),
    (AH, "ah", &["auth", "51"]),
    (ESP, "esp", &["50"]),
    (NO_NEXT, "ipv6-nonxt", &["none", "59"]),
    (TRANSPORT, "protocol", &["prot", "255"]),
];

const HOP_BY_HOP: u8 = 128;
const DEST_OPTIONS: u8 = 64;
const ROUTING: u8 = 32;
const FRAGMENT: u8 = 16;
const AH: u8 = 8;
const ESP: u8 = 4;
const NO_NEXT: u8 = 2;
/// Anything but an extension header.
const TRANSPORT: u8 = 1;

/// `-m ipv6header [!] --header LIST [--soft]`: exactly these headers, or with `--soft` these and maybe others. A packet that
/// ends within an extension header does not match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6HeaderMatch {
    kinds: u8,
    invert: bool,
    soft: bool,
}

fn read_kinds(token: &Token) -> Result<u8, Problem> {
    let mut kinds = 0;
    for word in token.text.split(',').filter(|word| !word.is_empty()) {
        let found = KINDS.iter().find(|(_, name, others)| *name == word || others.contains(&word));
        kinds |= found.map(|entry| entry.0).ok_or_else(|| {
            let names: Vec<&str> = KINDS.iter().map(|entry| entry.1).collect();
            Problem::new(token.span, format!("unknown IPv6 header `{word}`"), "expected a list without blanks")
                .help(format!("headers are {}", names.join(", ")))
                .maybe_help(nearest(word, names.iter().copied()).map(|near| format!("did you mean `{near}`?")))
        })?;
    }
    match kinds {
        0 => Err(Problem::new(token.span, "no IPv6 header", "expected a list").help("write `--header ipv6-frag`")),
        kinds => Ok(kinds),
    }
}

/// The kinds in `ip`; `None` where it ends within an extension header's first two bytes.
fn kinds_of(ip: &[u8]) -> Option<u8> {
    let (mut next, mut at) = (ipv6::next_header(ip), ipv6::HEADER_LEN);
    let mut kinds = 0;
    loop {
        let kind = match next {
            proto::HOP_BY_HOP => HOP_BY_HOP,
            proto::DEST_OPTIONS => DEST_OPTIONS,
            proto::ROUTING => ROUTING,
            proto::FRAGMENT => FRAGMENT,
            proto::AH => AH,
            proto::ESP => ESP,
            proto::NO_NEXT => return Some(kinds | NO_NEXT),
            _ => return Some(kinds | TRANSPORT),
        };
        let header = ip.get(at..at + 2)?;
        kinds |= kind;
        at += match next {
            proto::ESP => return Some(kinds),
            proto::FRAGMENT => 8,
            proto::AH => usize::from(header[1]) * 4 + 8,
            _ => extension_header::length(header),
        };
        next = header[0];
        // Behind the packet's end Linux looks at no more headers, whatever they would be.
        if at > ip.len() {
            return Some(if matches!(next, proto::NO_NEXT | proto::ESP) { kinds } else { kinds | TRANSPORT });
        }
    }
}

impl Extension for Ipv6HeaderMatch {
    const NAME: &'static str = "ipv6header";
    const FAMILIES: &'static [Family] = &[Family::V6];
    const OPTIONS: &'static [OptionSpec] =
        &[OptionSpec::new(HEADER, &["--header"]).invertible(), OptionSpec::new(SOFT, &["--soft"]).arguments(0)];

    fn new(_: Family) -> Ipv6HeaderMatch {
        Ipv6HeaderMatch { kinds: 0, invert: false, soft: false }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            HEADER => (self.kinds, self.invert) = (read_kinds(given.argument())?, given.invert),
            _ => self.soft = true,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        need_option(whole, "ipv6header", &[HEADER], "`--header`")
    }

    fn save(&self, out: &mut String, _: Family) {
        let set = KINDS.iter().filter(|(bit, ..)| self.kinds & bit != 0);
        let names: Vec<&str> = set.map(|(_, name, _)| *name).collect();
        put(out, self.invert, format_args!("--header {}", names.join(",")));
        if self.soft {
            put(out, false, format_args!("--soft"));
        }
    }
}

impl Matcher for Ipv6HeaderMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    /// With `--soft`, `!` is meant for each header of the list: none of them may be there.
    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let Some(kinds) = kinds_of(context.packet.l3_bytes(context.frame)) else { return Answer::No };
        Answer::from(match (self.soft, self.invert) {
            (true, false) => kinds & self.kinds == self.kinds,
            (true, true) => kinds & self.kinds == 0,
            (false, invert) => (kinds == self.kinds) != invert,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<Ipv6HeaderMatch>(
            Family::V6,
            &[
                ("--header hop", "--header hop-by-hop"),
                (
                    "--header prot,none,esp,auth,frag,route,dst,hop",
                    "--header hop-by-hop,ipv6-opts,ipv6-route,ipv6-frag,ah,esp,ipv6-nonxt,protocol",
                ),
                ("! --header frag --soft", "! --header ipv6-frag --soft"),
                ("--soft --header frag,frag", "--header ipv6-frag --soft"),
                ("--header 43,44,255", "--header ipv6-route,ipv6-frag,protocol"),
                ("--header 50,51,59,60", "--header ipv6-opts,ah,esp,ipv6-nonxt"),
                ("--header hopopt", "--header hop-by-hop"),
                ("--header 0", "--header hop-by-hop"),
                ("--header frag,", "--header ipv6-frag"),
            ],
        );
        for bad in ["all", "foo", "FRAG", "fra", "6", "tcp", "proto", "ipv6-hop", "\"\""] {
            refuses::<Ipv6HeaderMatch>(Family::V6, &[&format!("--header {bad}")]);
        }
        refuses::<Ipv6HeaderMatch>(Family::V6, &["! --soft"]);
        assert!(checked::<Ipv6HeaderMatch>(Family::V6, None, "--soft").is_err());
    }

    #[test]
    fn headers_are_gathered() {
        let opts = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let both = v6(0, &[&opts(60)[..], &opts(17), &[0; 8]].concat());
        let cases = [
            ("--header hop,dst,prot", Answer::Yes),
            ("--header hop,dst", Answer::No),
            ("! --header hop,dst", Answer::Yes),
            ("--header hop --soft", Answer::Yes),
            ("--header hop,route --soft", Answer::No),
            ("! --header hop,route --soft", Answer::No),
            ("! --header frag,route --soft", Answer::Yes),
        ];
        for (words, answer) in cases {
            assert_eq!(ask::<Ipv6HeaderMatch>(words, &both), answer, "{words}");
        }
        assert_eq!(ask::<Ipv6HeaderMatch>("--header prot", &v6(17, &[0; 8])), Answer::Yes);
        assert_eq!(ask::<Ipv6HeaderMatch>("--header none", &v6(59, &[])), Answer::Yes);
        assert_eq!(ask::<Ipv6HeaderMatch>("--header esp", &v6(50, &[0; 8])), Answer::Yes);
        assert_eq!(ask::<Ipv6HeaderMatch>("--header esp", &v6(50, &[0])), Answer::No);
        assert_eq!(ask::<Ipv6HeaderMatch>("! --header esp", &v6(60, &[0])), Answer::No);
    }

    #[test]
    fn a_header_longer_than_the_packet_ends_the_walk() {
        let long = |next: u8| v6(60, &[next, 2, 1, 4, 0, 0, 0, 0]);
        assert_eq!(ask::<Ipv6HeaderMatch>("--header dst,prot", &long(60)), Answer::Yes);
        assert_eq!(ask::<Ipv6HeaderMatch>("--header dst", &long(59)), Answer::Yes);
        assert_eq!(ask::<Ipv6HeaderMatch>("--header dst", &long(50)), Answer::Yes);
    }
}
