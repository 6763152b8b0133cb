//! `-m policy`: whether a packet came, or is going to leave, under IPsec (`policy_mt` of xt_policy.c). Packets under IPsec are
//! the host's, so on the forwarding path none was and none will be: `--pol none` is true and `--pol ipsec` false. What else is
//! asked of the transformation is kept and printed.

use super::address;
use super::common::{HOOKS_WITH_INPUT, HOOKS_WITH_OUTPUT, need_option, put};
use super::number::number;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::names;
use crate::rules::registry::Registry;
use crate::rules::save::address_text;
use crate::rules::value;
use crate::wire::{Addr, Family, proto};
use std::net::IpAddr;

const DIR: u8 = 0;
const POL: u8 = 1;
const STRICT: u8 = 2;
const NEXT: u8 = 3;
const REQID: u8 = 4;
const SPI: u8 = 5;
const PROTO: u8 = 6;
const MODE: u8 = 7;
const TUNNEL_DST: u8 = 8;
const TUNNEL_SRC: u8 = 9;

/// IPComp's protocol number (RFC 3173).
const IPCOMP: u8 = 108;

/// Which transformations are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    In,
    Out,
}

/// How IPsec packs a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Transport,
    Tunnel,
}

/// A value, and `!`.
type Asked<T> = Option<(T, bool)>;

/// An address and the length of its prefix; bits behind the prefix are kept, as iptables keeps them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Net {
    addr: Addr,
    prefix: u8,
}

/// What is asked of one transformation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Element {
    reqid: Asked<u32>,
    spi: Asked<u32>,
    proto: Asked<u8>,
    mode: Asked<Mode>,
    tunnel_dst: Asked<Net>,
    tunnel_src: Asked<Net>,
}

/// `-m policy --dir in|out --pol none|ipsec [--strict] [!] --reqid N ...`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PolicyMatch {
    direction: Direction,
    ipsec: bool,
    strict: bool,
    element: Element,
}

fn one_of<T: Copy>(given: &Given<'_>, known: &[(&str, T)]) -> Result<T, Problem> {
    let token = given.argument();
    let found = known.iter().find(|(name, _)| *name == token.text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<String> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
        let message = format!("`{}` is nothing `{}` knows", token.text, given.name);
        Problem::new(token.span, message, format!("expected {}", names.join(" or ")))
    })
}

fn read_proto(given: &Given<'_>) -> Result<u8, Problem> {
    let token = given.argument();
    let number = names::protocol_number(&token.text).or_else(|| value::unsigned(&token.text, 255).map(|n| n as u8));
    number.filter(|number| [proto::ESP, proto::AH, IPCOMP].contains(number)).ok_or_else(|| {
        let message = format!("`{}` is no protocol of IPsec", token.text);
        Problem::new(token.span, message, "expected `ah`, `esp` or `ipcomp`")
    })
}

fn read_net(given: &Given<'_>) -> Result<Net, Problem> {
    let token = given.argument();
    let bits = given.family.bits();
    let (text, prefix) = token.text.split_once('/').map_or((token.text.as_str(), None), |(a, p)| (a, Some(p)));
    let addr = address::read(text, token, given.family)?;
    let length = |text: &str| {
        let plain = value::unsigned(text, u32::from(bits)).map(|length| length as u8);
        plain.or_else(|| prefix_of(text, given.family)).ok_or_else(|| {
            Problem::new(token.span, format!("`{text}` is not a prefix length"), format!("expected 0 to {bits}"))
        })
    };
    Ok(Net { addr, prefix: prefix.map_or(Ok(bits), length)? })
}

/// Length of a mask that is written out, when it is contiguous.
fn prefix_of(text: &str, family: Family) -> Option<u8> {
    let (ones, length) = match (family, text.parse().ok()?) {
        (Family::V4, IpAddr::V4(mask)) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
        (Family::V6, IpAddr::V6(mask)) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
        _ => return None,
    };
    (ones == length).then_some(ones as u8)
}

fn net_text(net: Net, family: Family) -> String {
    let addr = address_text(net.addr, family);
    if net.prefix == family.bits() { addr } else { format!("{addr}/{}", net.prefix) }
}

impl Extension for PolicyMatch {
    const NAME: &'static str = "policy";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(DIR, &["--dir"]),
        OptionSpec::new(POL, &["--pol"]),
        OptionSpec::new(STRICT, &["--strict"]).arguments(0),
        OptionSpec::new(NEXT, &["--next"]).arguments(0),
        OptionSpec::new(REQID, &["--reqid"]).invertible(),
        OptionSpec::new(SPI, &["--spi"]).invertible(),
        OptionSpec::new(PROTO, &["--proto"]).invertible(),
        OptionSpec::new(MODE, &["--mode"]).invertible(),
        OptionSpec::new(TUNNEL_DST, &["--tunnel-dst"]).invertible(),
        OptionSpec::new(TUNNEL_SRC, &["--tunnel-src"]).invertible(),
    ];

    fn new(_: Family) -> PolicyMatch {
        PolicyMatch { direction: Direction::In, ipsec: true, strict: false, element: Element::default() }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let element = &mut self.element;
        let invert = given.invert;
        match id {
            DIR => self.direction = one_of(given, &[("in", Direction::In), ("out", Direction::Out)])?,
            POL => self.ipsec = one_of(given, &[("none", false), ("ipsec", true)])?,
            STRICT => self.strict = true,
            REQID => element.reqid = Some((number(given.argument(), u32::MAX, "request id")?, invert)),
            SPI => element.spi = Some((number(given.argument(), u32::MAX, "SPI")?, invert)),
            PROTO => element.proto = Some((read_proto(given)?, invert)),
            MODE => {
                let modes = [("transport", Mode::Transport), ("tunnel", Mode::Tunnel)];
                element.mode = Some((one_of(given, &modes)?, invert));
            }
            TUNNEL_DST => element.tunnel_dst = Some((read_net(given)?, invert)),
            TUNNEL_SRC => element.tunnel_src = Some((read_net(given)?, invert)),
            _ => {
                return Err(Problem::new(given.span, "`--next` is not covered", "more than one transformation")
                    .help("no packet here is under IPsec: such a rule never matches; leave it out"));
            }
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        need_option(whole, "policy", &[DIR], "`--dir in` or `--dir out`")?;
        let element = &self.element;
        let says_nothing = *element == Element::default();
        if !self.ipsec && (self.strict || !says_nothing) {
            return Err(whole
                .problem("`--pol none` has no transformations to look at", "options for `--pol ipsec`")
                .help("leave out all but `--dir` and `--pol`"));
        }
        if self.strict && says_nothing {
            return Err(whole.problem("`--strict` needs something to be strict about", "nothing is asked").help(
                "give at least one of `--reqid`, `--spi`, `--proto`, `--mode`, `--tunnel-src` and `--tunnel-dst`",
            ));
        }
        let tunnel = matches!(element.mode, Some((Mode::Tunnel, false) | (Mode::Transport, true)));
        if (element.tunnel_dst.is_some() || element.tunnel_src.is_some()) && !tunnel {
            return Err(whole
                .problem("`--tunnel-src` and `--tunnel-dst` are for tunnels", "no `--mode tunnel`")
                .help("add `--mode tunnel`"));
        }
        Ok(())
    }

    fn hooks(&self) -> u8 {
        match self.direction {
            Direction::In => HOOKS_WITH_INPUT,
            Direction::Out => HOOKS_WITH_OUTPUT,
        }
    }

    fn save(&self, out: &mut String, family: Family) {
        let direction = if self.direction == Direction::In { "in" } else { "out" };
        put(out, false, format_args!("--dir {direction}"));
        put(out, false, format_args!("--pol {}", if self.ipsec { "ipsec" } else { "none" }));
        if self.strict {
            put(out, false, format_args!("--strict"));
        }
        let element = &self.element;
        if let Some((reqid, invert)) = element.reqid {
            put(out, invert, format_args!("--reqid {reqid}"));
        }
        if let Some((spi, invert)) = element.spi {
            put(out, invert, format_args!("--spi {spi:#x}"));
        }
        if let Some((number, invert)) = element.proto {
            put(out, invert, format_args!("--proto {}", names::protocol_name(number)));
        }
        if let Some((mode, invert)) = element.mode {
            put(out, invert, format_args!("--mode {}", if mode == Mode::Tunnel { "tunnel" } else { "transport" }));
        }
        for (option, net) in [("--tunnel-dst", element.tunnel_dst), ("--tunnel-src", element.tunnel_src)] {
            if let Some((net, invert)) = net {
                put(out, invert, format_args!("{option} {}", net_text(net, family)));
            }
        }
    }
}

impl Matcher for PolicyMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, _: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        (!self.ipsec).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<PolicyMatch>(
            Family::V4,
            &[
                ("--dir in --pol none", "--dir in --pol none"),
                ("--dir in", "--dir in --pol ipsec"),
                ("--dir out --pol ipsec", "--dir out --pol ipsec"),
                (
                    "--dir in --pol ipsec ! --reqid 5 ! --spi 6 ! --mode transport",
                    "--dir in --pol ipsec ! --reqid 5 ! --spi 0x6 ! --mode transport",
                ),
                (
                    "--dir in --pol ipsec --spi 10 --reqid 0x10 --mode transport --proto ipcomp",
                    "--dir in --pol ipsec --reqid 16 --spi 0xa --proto ipcomp --mode transport",
                ),
                (
                    "--dir in --pol ipsec --mode tunnel ! --tunnel-src 10.0.0.0/255.0.0.0 --tunnel-dst 10.1.2.3/16 --strict",
                    "--dir in --pol ipsec --strict --mode tunnel --tunnel-dst 10.1.2.3/16 ! --tunnel-src 10.0.0.0/8",
                ),
                ("--dir in --pol ipsec ! --proto 50", "--dir in --pol ipsec ! --proto esp"),
            ],
        );
        saves::<PolicyMatch>(
            Family::V6,
            &[(
                "--dir in --pol ipsec --proto ah --tunnel-src fd00::1 --mode tunnel",
                "--dir in --pol ipsec --proto ah --mode tunnel --tunnel-src fd00::1",
            )],
        );
        let bad = [
            "--dir foo",
            "--dir IN",
            "--pol Ipsec",
            "--proto tcp",
            "--spi 10:20",
            "--mode beet",
            "! --dir in",
            "--next",
        ];
        refuses::<PolicyMatch>(Family::V4, &bad);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let check = |words| checked::<PolicyMatch>(Family::V4, None, words);
        assert!(check("--dir in --pol none").is_ok());
        assert!(check("--dir in --pol ipsec --strict --proto esp").is_ok());
        for bad in [
            "--pol none",
            "--dir in --pol none --strict",
            "--dir in --pol none --proto esp",
            "--dir in --pol ipsec --strict",
            "--dir in --pol ipsec --tunnel-src 10.0.0.1",
            "--dir in --pol ipsec --mode transport --tunnel-src 10.0.0.1",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_packet_is_under_ipsec() {
        let frame = v4(17, &[0; 8]);
        assert_eq!(ask::<PolicyMatch>("--dir in --pol none", &frame), Answer::Yes);
        assert_eq!(ask::<PolicyMatch>("--dir out --pol ipsec", &frame), Answer::No);
        assert_eq!(ask::<PolicyMatch>("--dir in --pol ipsec ! --proto esp", &frame), Answer::No);
    }
}
