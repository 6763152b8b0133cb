//! `-m addrtype`: what an address is to this host (`addrtype_mt_v1` of xt_addrtype.c).
//!
//! IPv4 asks for one of the kinds in the list. IPv6 does not: there each kind in the list is a demand of its own, and only
//! LOCAL, ANYCAST and UNREACHABLE among themselves are alternatives (`match_type6`).

use super::common::{HOOKS_WITH_INPUT, HOOKS_WITH_OUTPUT, need_option, put};
use crate::rules::context::{AddressType, Context, World};
use crate::rules::diagnostic::{Problem, nearest};
use crate::rules::extension::{Answer, Basis, Extension, Given, HOOKS_ALL, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::token::Token;
use crate::wire::{Addr, Family};

const SOURCE: u8 = 0;
const DESTINATION: u8 = 1;
const LIMIT_IN: u8 = 2;
const LIMIT_OUT: u8 = 3;

/// The two limits exclude each other.
const GROUP: u8 = 1;

/// Names by `RTN_*` number, which is also the bit of a list.
const NAMES: &[&str] = &[
    "UNSPEC",
    "UNICAST",
    "LOCAL",
    "BROADCAST",
    "ANYCAST",
    "MULTICAST",
    "BLACKHOLE",
    "UNREACHABLE",
    "PROHIBIT",
    "THROW",
    "NAT",
    "XRESOLVE",
];

/// The kinds IPv6 knows.
const NAMES_V6: &[AddressType] = &[
    AddressType::Unspec,
    AddressType::Unicast,
    AddressType::Local,
    AddressType::Anycast,
    AddressType::Multicast,
    AddressType::Unreachable,
];

const fn bit(kind: AddressType) -> u16 {
    1 << kind as u16
}

/// Kinds asked for, as bits, and `!`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Kinds {
    bits: u16,
    invert: bool,
}

/// Only addresses of one port are LOCAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Limit {
    In,
    Out,
}

/// `-m addrtype [!] --src-type LIST [!] --dst-type LIST [--limit-iface-in|--limit-iface-out]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddrtypeMatch {
    source: Option<Kinds>,
    destination: Option<Kinds>,
    limit: Option<Limit>,
}

/// A list of kinds, any case, each possibly shortened; the first that begins so is meant.
fn read_kinds(token: &Token, family: Family) -> Result<u16, Problem> {
    let mut bits = 0;
    for word in token.text.split(',') {
        let upper = word.to_ascii_uppercase();
        let found = NAMES.iter().position(|name| !word.is_empty() && name.starts_with(&upper));
        let number = found.ok_or_else(|| {
            Problem::new(token.span, format!("`{word}` is not an address type"), "expected a list without blanks")
                .help(format!("types are {}", NAMES.join(", ")))
                .maybe_help(nearest(word, NAMES.iter().copied()).map(|near| format!("did you mean `{near}`?")))
        })?;
        let kind_bit = 1u16 << number;
        if family == Family::V6 && !NAMES_V6.iter().any(|kind| bit(*kind) == kind_bit) {
            let known: Vec<&str> = NAMES_V6.iter().map(|kind| NAMES[*kind as usize]).collect();
            let message = format!("IPv6 has no address type `{}`", NAMES[number]);
            return Err(
                Problem::new(token.span, message, "not in an IPv6 file").help(format!("IPv6 has {}", known.join(", ")))
            );
        }
        bits |= kind_bit;
    }
    Ok(bits)
}

impl Extension for AddrtypeMatch {
    const NAME: &'static str = "addrtype";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SOURCE, &["--src-type"]).invertible(),
        OptionSpec::new(DESTINATION, &["--dst-type"]).invertible(),
        OptionSpec::new(LIMIT_IN, &["--limit-iface-in"]).arguments(0).group(GROUP),
        OptionSpec::new(LIMIT_OUT, &["--limit-iface-out"]).arguments(0).group(GROUP),
    ];

    fn new(_: Family) -> AddrtypeMatch {
        AddrtypeMatch { source: None, destination: None, limit: None }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let kinds = || {
            let bits = read_kinds(given.argument(), given.family)?;
            Ok(Some(Kinds { bits, invert: given.invert }))
        };
        match id {
            SOURCE => self.source = kinds()?,
            DESTINATION => self.destination = kinds()?,
            LIMIT_IN => self.limit = Some(Limit::In),
            _ => self.limit = Some(Limit::Out),
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        need_option(whole, "addrtype", &[SOURCE, DESTINATION], "`--src-type` or `--dst-type`")
    }

    fn hooks(&self) -> u8 {
        match self.limit {
            None => HOOKS_ALL,
            Some(Limit::In) => HOOKS_WITH_INPUT,
            Some(Limit::Out) => HOOKS_WITH_OUTPUT,
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        for (option, kinds) in [("--src-type", self.source), ("--dst-type", self.destination)] {
            if let Some(Kinds { bits, invert }) = kinds {
                let set = NAMES.iter().enumerate().filter(|(number, _)| bits & 1 << number != 0);
                let names: Vec<&str> = set.map(|(_, name)| *name).collect();
                put(out, invert, format_args!("{option} {}", names.join(",")));
            }
        }
        match self.limit {
            None => {}
            Some(Limit::In) => put(out, false, format_args!("--limit-iface-in")),
            Some(Limit::Out) => put(out, false, format_args!("--limit-iface-out")),
        }
    }
}

/// `inet_dev_addr_type`: some addresses are what they are whatever the routes say.
fn kind_v4(addr: Addr, ask: impl Fn(Addr) -> AddressType) -> AddressType {
    match addr.v4_bits().to_be_bytes() {
        [0, 0, 0, 0] | [255, 255, 255, 255] => AddressType::Broadcast,
        [224..=239, ..] => AddressType::Multicast,
        _ => ask(addr),
    }
}

/// `match_type6`, with `ipv6_addr_type` for what an address is by itself.
fn fits_v6(addr: Addr, bits: u16, ask: impl Fn(Addr) -> AddressType) -> bool {
    let has = |kind| bits & bit(kind) != 0;
    let multicast = addr.bits() >> 120 == 0xff;
    let unspecified = addr.bits() == 0;
    // What IPv4 is mapped into is neither.
    let unicast = !multicast && !unspecified && !addr.is_v4();
    if has(AddressType::Multicast) && !multicast
        || has(AddressType::Unicast) && !unicast
        || has(AddressType::Unspec) && !unspecified
    {
        return false;
    }
    const ROUTED: u16 = bit(AddressType::Local) | bit(AddressType::Anycast) | bit(AddressType::Unreachable);
    if bits & ROUTED == 0 {
        return true;
    }
    match ask(addr) {
        AddressType::Local => has(AddressType::Local),
        AddressType::Anycast => has(AddressType::Anycast),
        AddressType::Unreachable | AddressType::Blackhole | AddressType::Prohibit => has(AddressType::Unreachable),
        _ => false,
    }
}

impl Matcher for AddrtypeMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, world: &dyn World, (): &()) -> Answer {
        let on = match self.limit {
            None => None,
            Some(Limit::In) => Some(context.in_port),
            Some(Limit::Out) => context.out_port,
        };
        let ask = |addr| world.address_type(addr, on);
        let fits = |kinds: Option<Kinds>, addr: Addr| {
            kinds.is_none_or(|Kinds { bits, invert }| {
                let found = match context.packet.family {
                    Family::V4 => bits & bit(kind_v4(addr, ask)) != 0,
                    Family::V6 => fits_v6(addr, bits, ask),
                };
                found != invert
            })
        };
        (fits(self.source, context.packet.src) && fits(self.destination, context.packet.dst)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask_with, checked, refuses, saves, v4, v6};
    use super::*;
    use crate::device::PortId;
    use crate::rules::extension_testing::read;
    use crate::rules::rule::Hook;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<AddrtypeMatch>(
            Family::V4,
            &[
                ("--src-type LOCAL", "--src-type LOCAL"),
                ("--dst-type local", "--dst-type LOCAL"),
                ("--dst-type U", "--dst-type UNSPEC"),
                (
                    "--src-type UNICAST,LOCAL,BROADCAST ! --dst-type MULTICAST",
                    "--src-type UNICAST,LOCAL,BROADCAST ! --dst-type MULTICAST",
                ),
                (
                    "--dst-type XRESOLVE,NAT,THROW,PROHIBIT,UNREACHABLE,BLACKHOLE,MULTICAST,ANYCAST,BROADCAST,LOCAL,UNICAST,UNSPEC",
                    "--dst-type UNSPEC,UNICAST,LOCAL,BROADCAST,ANYCAST,MULTICAST,BLACKHOLE,UNREACHABLE,PROHIBIT,THROW,NAT,XRESOLVE",
                ),
                ("--limit-iface-in --dst-type LOCAL", "--dst-type LOCAL --limit-iface-in"),
                ("--dst-type LOCAL --limit-iface-out", "--dst-type LOCAL --limit-iface-out"),
            ],
        );
        refuses::<AddrtypeMatch>(
            Family::V4,
            &["--dst-type \"\"", "--dst-type LOCAL,", "--dst-type ,LOCAL", "--dst-type FOO", "! --limit-iface-in"],
        );
        assert!(checked::<AddrtypeMatch>(Family::V4, None, "--limit-iface-in").is_err());
        assert!(checked::<AddrtypeMatch>(Family::V4, None, "--src-type LOCAL").is_ok());
    }

    #[test]
    fn ipv6_has_fewer_types() {
        for kind in ["LOCAL", "MULTICAST", "UNICAST,MULTICAST", "ANYCAST", "UNREACHABLE", "UNSPEC"] {
            saves::<AddrtypeMatch>(Family::V6, &[(&format!("--dst-type {kind}"), &format!("--dst-type {kind}"))]);
        }
        for kind in ["BROADCAST", "BLACKHOLE", "PROHIBIT", "THROW", "NAT", "XRESOLVE"] {
            refuses::<AddrtypeMatch>(Family::V6, &[&format!("--dst-type {kind}")]);
        }
    }

    #[test]
    fn a_limit_needs_its_port() {
        let hooks = |words| read::<AddrtypeMatch>(Family::V4, words).expect("good").hooks();
        assert_eq!(hooks("--dst-type LOCAL"), HOOKS_ALL);
        assert_eq!(hooks("--dst-type LOCAL --limit-iface-in") & Hook::Postrouting.bit(), 0);
        assert_eq!(hooks("--dst-type LOCAL --limit-iface-out") & Hook::Prerouting.bit(), 0);
        assert_ne!(hooks("--dst-type LOCAL --limit-iface-out") & Hook::Forward.bit(), 0);
    }

    #[test]
    fn the_world_is_asked_unless_the_address_says_it_all() {
        let asked = |words, dst: [u8; 4]| {
            let frame = v4(17, &[0; 8]);
            ask_with::<AddrtypeMatch>(words, &frame, |context, world| {
                let own = Addr::from(Ipv4Addr::new(10, 2, 0, 2));
                world.addresses = vec![(own, Some(PortId::WAN), AddressType::Local)];
                context.packet.dst = Addr::from(Ipv4Addr::from(dst));
            })
        };
        assert_eq!(asked("--dst-type LOCAL", [10, 2, 0, 2]), Answer::Yes);
        assert_eq!(asked("--dst-type LOCAL --limit-iface-out", [10, 2, 0, 2]), Answer::Yes);
        assert_eq!(asked("--dst-type LOCAL --limit-iface-in", [10, 2, 0, 2]), Answer::No);
        assert_eq!(asked("! --dst-type LOCAL", [10, 2, 0, 2]), Answer::No);
        assert_eq!(asked("--dst-type UNICAST", [10, 2, 0, 3]), Answer::Yes);
        assert_eq!(asked("--dst-type LOCAL,MULTICAST", [239, 0, 0, 1]), Answer::Yes);
        assert_eq!(asked("--dst-type BROADCAST", [255, 255, 255, 255]), Answer::Yes);
        assert_eq!(asked("--dst-type BROADCAST", [0, 0, 0, 0]), Answer::Yes);
        assert_eq!(asked("--dst-type BROADCAST", [0, 1, 2, 3]), Answer::No);
        assert_eq!(asked("--dst-type UNSPEC", [0, 0, 0, 0]), Answer::No);
        assert_eq!(asked("--src-type LOCAL --dst-type LOCAL", [10, 2, 0, 2]), Answer::No);
    }

    #[test]
    fn in_ipv6_each_type_of_the_list_is_a_demand() {
        let asked = |words, dst: &str, kind| {
            let frame = v6(17, &[0; 8]);
            ask_with::<AddrtypeMatch>(words, &frame, |context, world| {
                context.packet.dst = Addr::from(dst.parse::<Ipv6Addr>().expect("an address"));
                world.addresses = vec![(context.packet.dst, None, kind)];
            })
        };
        let unicast = AddressType::Unicast;
        assert_eq!(asked("--dst-type UNICAST", "fd02::2", unicast), Answer::Yes);
        assert_eq!(asked("--dst-type UNICAST", "::ffff:1.2.3.4", unicast), Answer::No);
        assert_eq!(asked("--dst-type UNICAST,MULTICAST", "fd02::2", unicast), Answer::No);
        assert_eq!(asked("! --dst-type UNICAST,MULTICAST", "ff02::2", unicast), Answer::Yes);
        assert_eq!(asked("--dst-type MULTICAST", "ff02::2", unicast), Answer::Yes);
        assert_eq!(asked("--dst-type UNSPEC", "::", unicast), Answer::Yes);
        assert_eq!(asked("--dst-type LOCAL", "fd02::2", AddressType::Local), Answer::Yes);
        assert_eq!(asked("--dst-type UNICAST,LOCAL", "fd02::2", AddressType::Local), Answer::Yes);
        assert_eq!(asked("--dst-type UNICAST,LOCAL", "fd02::2", unicast), Answer::No);
        assert_eq!(asked("--dst-type LOCAL,UNREACHABLE", "fd02::2", AddressType::Prohibit), Answer::Yes);
        assert_eq!(asked("--dst-type LOCAL,ANYCAST", "fd02::2", AddressType::Anycast), Answer::Yes);
        assert_eq!(asked("--dst-type ANYCAST", "fd02::2", AddressType::Local), Answer::No);
    }
}
