//! `-m conntrack`: the packet's connection. Without one (INVALID, UNTRACKED) only `--ctstate` is asked, and everything else,
//! inverted or not, is false (`conntrack_mt`).

use super::super::context::{Context, World};
use super::super::diagnostic::{Problem, nearest};
use super::super::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use super::super::names;
use super::super::registry::Registry;
use super::super::rule::AddrMatch;
use super::super::save::{address_text, bang, mask_text, push, range_text, words};
use super::super::token::Token;
use super::super::value;
use super::ctstate::state;
use super::port::PortRange;
use crate::conntrack::{CtInfo, CtStatus, Direction};
use crate::wire::{Addr, Family};

/// A set of bits asked for, with `!`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitMatch {
    /// Matches when any of these is set.
    pub bits: u16,
    /// `!`
    pub invert: bool,
}

impl BitMatch {
    const fn holds(self, bits: u16) -> bool {
        (self.bits & bits != 0) != self.invert
    }
}

/// `--ctproto`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtProto {
    /// The original tuple's protocol.
    pub number: u8,
    /// `!`
    pub invert: bool,
}

/// `--ctexpire`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtExpire {
    /// Least, in whole seconds.
    pub low: u32,
    /// Most.
    pub high: u32,
    /// `!`
    pub invert: bool,
}

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ConntrackMatch {
    /// `--ctstate`: bits of [`state`].
    pub state: Option<BitMatch>,
    /// `--ctproto`
    pub proto: Option<CtProto>,
    /// `--ctorigsrc`, `--ctorigdst`, `--ctreplsrc`, `--ctrepldst`
    pub addresses: [Option<AddrMatch>; 4],
    /// `--ctorigsrcport`, `--ctorigdstport`, `--ctreplsrcport`, `--ctrepldstport`
    pub ports: [Option<PortRange>; 4],
    /// `--ctstatus`: bits of [`CtStatus`]. NONE is no bit.
    pub status: Option<BitMatch>,
    /// `--ctexpire`
    pub expire: Option<CtExpire>,
    /// `--ctdir`
    pub direction: Option<Direction>,
}

const STATE: u8 = 0;
const PROTO: u8 = 1;
const ADDRESSES: u8 = 2;
const PORTS: u8 = 6;
const STATUS: u8 = 10;
const EXPIRE: u8 = 11;
const DIRECTION: u8 = 12;

const ADDRESS_NAMES: [&str; 4] = ["--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst"];
const PORT_NAMES: [&str; 4] = ["--ctorigsrcport", "--ctorigdstport", "--ctreplsrcport", "--ctrepldstport"];

impl ConntrackMatch {
    /// Whether nothing but states that exclude each other is asked; what conntrack says of the packet then answers.
    pub(in crate::rules) fn states_alone(&self) -> Option<BitMatch> {
        let alone = ConntrackMatch { state: self.state, ..ConntrackMatch::default() } == *self;
        self.state.filter(|asked| alone && asked.bits & (state::SNAT | state::DNAT) == 0)
    }

    fn of_the_tuples(&self, world: &dyn World) -> bool {
        let [Some(original), Some(reply)] = [Direction::Original, Direction::Reply].map(|way| world.tuple(way)) else {
            return true;
        };
        let proto = self.proto.is_none_or(|asked| (original.proto == asked.number) != asked.invert);
        let addresses = [original.src, original.dst, reply.src, reply.dst];
        let ports = [original.sport, original.dport, reply.sport, reply.dport];
        let held = |asked: &Option<AddrMatch>, addr: Addr| {
            let low = |addr: Addr, mask: Addr| addr.bits() & mask.bits();
            asked.is_none_or(|asked| (low(addr, asked.mask) == low(asked.net, asked.mask)) != asked.invert)
        };
        proto
            && self.addresses.iter().zip(addresses).all(|(asked, addr)| held(asked, addr))
            && self.ports.iter().zip(ports).all(|(asked, port)| asked.is_none_or(|asked| asked.holds(port)))
    }
}

impl Extension for ConntrackMatch {
    const NAME: &'static str = "conntrack";
    const WANTS_CONNTRACK: bool = true;
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(STATE, &["--ctstate"]).invertible(),
        OptionSpec::new(PROTO, &["--ctproto"]).invertible(),
        OptionSpec::new(ADDRESSES, &["--ctorigsrc"]).invertible(),
        OptionSpec::new(ADDRESSES + 1, &["--ctorigdst"]).invertible(),
        OptionSpec::new(ADDRESSES + 2, &["--ctreplsrc"]).invertible(),
        OptionSpec::new(ADDRESSES + 3, &["--ctrepldst"]).invertible(),
        OptionSpec::new(PORTS, &["--ctorigsrcport"]).invertible(),
        OptionSpec::new(PORTS + 1, &["--ctorigdstport"]).invertible(),
        OptionSpec::new(PORTS + 2, &["--ctreplsrcport"]).invertible(),
        OptionSpec::new(PORTS + 3, &["--ctrepldstport"]).invertible(),
        OptionSpec::new(STATUS, &["--ctstatus"]).invertible(),
        OptionSpec::new(EXPIRE, &["--ctexpire"]).invertible(),
        OptionSpec::new(DIRECTION, &["--ctdir"]),
    ];

    fn new(_: Family) -> ConntrackMatch {
        ConntrackMatch::default()
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let (argument, invert) = (given.argument(), given.invert);
        match id {
            STATE => self.state = Some(BitMatch { bits: value::states(argument, true)?, invert }),
            STATUS => self.status = Some(BitMatch { bits: value::statuses(argument)?, invert }),
            PROTO => self.proto = Some(CtProto { number: read_proto(argument, invert)?, invert }),
            EXPIRE => self.expire = Some(read_expire(argument, invert)?),
            DIRECTION => self.direction = Some(read_direction(argument)?),
            PORTS.. => self.ports[usize::from(id - PORTS)] = Some(value::port_range(argument, invert)?),
            _ => self.addresses[usize::from(id - ADDRESSES)] = Some(read_address(given)?),
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<ConntrackMatch>()
    }

    fn save(&self, out: &mut String, family: Family) {
        if let Some(BitMatch { bits, invert }) = self.state {
            push(out, format_args!("{} --ctstate {}", bang(invert), words(names::STATES, bits)));
        }
        if let Some(CtProto { number, invert }) = self.proto {
            push(out, format_args!("{} --ctproto {number}", bang(invert)));
        }
        for (name, asked) in ADDRESS_NAMES.iter().zip(self.addresses) {
            let Some(AddrMatch { net, mask, invert }) = asked else { continue };
            let length = mask_text(mask, family);
            let host = length == family.bits().to_string();
            let text = if host { String::new() } else { format!("/{length}") };
            push(out, format_args!("{} {name} {}{text}", bang(invert), address_text(net, family)));
        }
        for (name, asked) in PORT_NAMES.iter().zip(self.ports) {
            let Some(PortRange { low, high, invert }) = asked else { continue };
            push(out, format_args!("{} {name} {}", bang(invert), range_text(low, high)));
        }
        if let Some(BitMatch { bits, invert }) = self.status {
            push(out, format_args!("{} --ctstatus {}", bang(invert), words(names::STATUSES, bits)));
        }
        if let Some(CtExpire { low, high, invert }) = self.expire {
            let text = if low == high { low.to_string() } else { format!("{low}:{high}") };
            push(out, format_args!("{} --ctexpire {text}", bang(invert)));
        }
        match self.direction {
            Some(Direction::Original) => out.push_str(" --ctdir ORIGINAL"),
            Some(Direction::Reply) => out.push_str(" --ctdir REPLY"),
            None => {}
        }
    }
}

fn read_proto(argument: &Token, invert: bool) -> Result<u8, Problem> {
    let number = value::unsigned(&argument.text, 255).map(|number| number as u8);
    let number = number.or_else(|| names::protocol_number(&argument.text)).ok_or_else(|| {
        let near = nearest(&argument.text, names::protocol_names());
        Problem::new(argument.span, format!("unknown protocol `{}`", argument.text), "not a protocol")
            .maybe_help(near.map(|near| format!("did you mean `{near}`? A number up to 255 does as well")))
    })?;
    match number == 0 && invert {
        true => Err(Problem::new(argument.span, "`! --ctproto all` matches no packet", "never true")),
        false => Ok(number),
    }
}

fn read_address(given: &Given<'_>) -> Result<AddrMatch, Problem> {
    match value::addresses(given.argument(), given.family, given.invert)?.as_slice() {
        [one] => Ok(*one),
        _ => Err(Problem::new(given.argument().span, format!("`{}` takes one address", given.name), "a list")
            .help("write one rule for each address, or a user chain")),
    }
}

fn read_expire(argument: &Token, invert: bool) -> Result<CtExpire, Problem> {
    let bad = || Problem::new(argument.span, format!("bad time `{}`", argument.text), "expected SECONDS or FROM:TO");
    let seconds = |text: &str| value::unsigned(text, u32::MAX).ok_or_else(bad);
    let (low, high) = match argument.text.split_once(':') {
        None => (seconds(&argument.text)?, seconds(&argument.text)?),
        Some((low, high)) => {
            (if low.is_empty() { 0 } else { seconds(low)? }, if high.is_empty() { u32::MAX } else { seconds(high)? })
        }
    };
    if low > high {
        return Err(Problem::new(argument.span, "this range ends before it begins", "first greater than last"));
    }
    Ok(CtExpire { low, high, invert })
}

fn read_direction(argument: &Token) -> Result<Direction, Problem> {
    match argument.text.to_ascii_uppercase().as_str() {
        "ORIGINAL" => Ok(Direction::Original),
        "REPLY" => Ok(Direction::Reply),
        _ => Err(Problem::new(argument.span, format!("bad direction `{}`", argument.text), "ORIGINAL or REPLY")),
    }
}

impl Matcher for ConntrackMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        let asks_status = self.state.is_some_and(|asked| asked.bits & (state::SNAT | state::DNAT) != 0);
        match (self.expire, self.status.is_some() || asks_status) {
            (Some(_), _) => Basis::Packet,
            (None, true) => Basis::Status,
            (None, false) => Basis::Flow,
        }
    }

    fn test(&self, context: &Context<'_>, world: &dyn World, (): &()) -> Answer {
        let tracked = !matches!(context.info, CtInfo::Invalid | CtInfo::Untracked);
        let mut bits = context.info.state_bit();
        if tracked && context.status.any(CtStatus::SRC_NAT) {
            bits |= state::SNAT;
        }
        if tracked && context.status.any(CtStatus::DST_NAT) {
            bits |= state::DNAT;
        }
        if self.state.is_some_and(|asked| !asked.holds(bits)) {
            return Answer::No;
        }
        if !tracked {
            return self.state.is_some().into();
        }
        let direction = self.direction.is_none_or(|asked| world.direction() == Some(asked));
        let status = self.status.is_none_or(|asked| asked.holds(context.status.0));
        let expire = self.expire.is_none_or(|asked| {
            let left = world.expires_in();
            (asked.low <= left && left <= asked.high) != asked.invert
        });
        (direction && status && expire && self.of_the_tuples(world)).into()
    }
}
