//! What SNAT, DNAT, MASQUERADE and REDIRECT translate to: [`NatRange`], addresses and ports (`nf_nat_range2`).

use super::argument;
use crate::conntrack::{BLOCK_UNIT, BLOCKS_MAX, Manip};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Given, Outcome, Whole};
use crate::rules::names;
use crate::rules::save::address_text;
use crate::rules::token::Token;
use crate::rules::value;
use crate::wire::{Addr, Family, proto};
use core::fmt::Write;

/// DCCP's protocol number.
const DCCP: u8 = 33;

/// Why two addresses in brackets each are no range.
const BRACKETS: &str = "a range stands in one pair of brackets: [fd00::1-fd00::9]:80";

/// A first and a last port, and where the map begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NatPorts {
    /// The first.
    pub low: u16,
    /// The last, not below the first.
    pub high: u16,
    /// `/base` of DNAT: a packet to `base + n` goes to `low + n`.
    pub base: Option<u16>,
}

/// `--port-block-size` and `--port-blocks`: a client is lent blocks of ports, and the log tells of each once (RFC 6888).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocks {
    /// Ports of a block.
    pub size: u16,
    /// Blocks that a client may have.
    pub most: u8,
}

impl Blocks {
    /// Ports that carriers commonly give a block.
    const SIZE: u16 = 512;
    /// What may be asked for: smaller blocks would fill the log as connections do.
    const SIZES: core::ops::RangeInclusive<u32> = 64..=32_768;
}

/// How far a translated port depends on whom a client talks to (RFC 4787 sections 4.1 and 5). Linux knows the first only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord)]
pub enum Independence {
    /// A port may be given to several clients that talk to different ends.
    #[default]
    None,
    /// `--endpoint-independent-mapping`: a client's port has one port outside, whoever it talks to, and nobody else has that.
    Mapping,
    /// `--endpoint-independent-filtering`: and whoever sends there reaches the client, if the filter lets him ("full cone").
    Filtering,
}

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NatRange {
    /// First and last address, the last not below the first.
    pub addresses: Option<(Addr, Addr)>,
    /// Ports, or ICMP identifiers.
    pub ports: Option<NatPorts>,
    /// `--random`
    pub random: bool,
    /// `--random-fully`
    pub random_fully: bool,
    /// `--persistent`
    pub persistent: bool,
    /// Not of Linux: who else may know what is given.
    pub independence: Independence,
    /// Not of Linux: ports are lent in blocks.
    pub blocks: Option<Blocks>,
}

/// Where the addresses are from that a connection is to be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatSource {
    /// The range's; it keeps its own when that has none.
    Range,
    /// MASQUERADE: the port's that the packet leaves by. The range has none.
    OutPort,
    /// REDIRECT: the port's that it came in by. The range has none.
    InPort,
}

/// What a target wants of a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NatRequest<'a> {
    /// Which end is to be translated.
    pub manip: Manip,
    /// To what.
    pub range: &'a NatRange,
    /// Where its address is from.
    pub source: NatSource,
}

impl NatRequest<'_> {
    /// Has it done; the rest of the table is not asked then.
    pub(super) fn run(&self, context: &Context<'_>, world: &mut dyn World) -> Outcome {
        match world.translate(context, self) {
            Ok(()) => Outcome::Accept,
            Err(reason) => Outcome::Drop(reason),
        }
    }
}

fn bad_port(token: &Token, text: &str) -> Problem {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let problem = Problem::new(token.span, format!("`{text}` is not a port"), "expected PORT or FIRST-LAST");
    match text.contains(':') {
        true => problem.help("a range is written with a dash: 1000-2000"),
        false if !digits && !text.is_empty() => problem.help("a range is of numbers; a service stands alone"),
        false => problem,
    }
}

/// One port, by number; by name too where it stands alone.
fn single_port(token: &Token, text: &str) -> Result<u16, Problem> {
    let number = value::unsigned(text, u32::from(u16::MAX)).map(|number| number as u16);
    number.or_else(|| names::service_port(text)).ok_or_else(|| bad_port(token, text))
}

/// `PORT`, `FIRST-LAST`, and with `shifted` also `FIRST-LAST/BASE`.
fn ports(token: &Token, text: &str, shifted: bool) -> Result<NatPorts, Problem> {
    let (range, base) = match text.split_once('/') {
        Some((range, base)) => (range, Some(base)),
        None => (text, None),
    };
    let number = |text: &str| value::unsigned(text, u32::from(u16::MAX)).map(|number| number as u16);
    let (low, high) = match range.split_once('-') {
        // A service's name may have a dash.
        Some(_) if names::service_port(range).is_some() => (single_port(token, range)?, single_port(token, range)?),
        Some((low, high)) => number(low).zip(number(high)).ok_or_else(|| bad_port(token, range))?,
        None => (single_port(token, range)?, single_port(token, range)?),
    };
    if low > high {
        return Err(Problem::new(token.span, "this port range ends before it begins", "first greater than last"));
    }
    let base = match base {
        None => None,
        Some(_) if !shifted => {
            return Err(Problem::new(token.span, "a shifted range of ports is for DNAT alone", "`/` is not expected")
                .help("leave out what begins with the slash"));
        }
        Some(base) => Some(single_port(token, base)?),
    };
    match base {
        Some(0) => Err(Problem::new(token.span, "ports cannot be shifted from 0", "expected a port after `/`")),
        base => Ok(NatPorts { low, high, base }),
    }
}

/// `ADDRESS` or `FIRST-LAST`.
fn addresses(token: &Token, text: &str, family: Family) -> Result<(Addr, Addr), Problem> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let read = |one: &str| {
        argument::address(one, family).ok_or_else(|| {
            let version = if family == Family::V4 { "IPv4" } else { "IPv6" };
            Problem::new(token.span, format!("`{one}` is not an {version} address"), "expected ADDRESS or FIRST-LAST")
                .maybe_help(match () {
                    () if one.contains('/') => Some("NETMAP takes a network".to_owned()),
                    () if one.contains(['[', ']']) => Some(BRACKETS.to_owned()),
                    () if one.contains(':') && family == Family::V4 => {
                        Some("ports of a range are separated by a dash: 10.0.0.1:1000-2000".to_owned())
                    }
                    () => None,
                })
        })
    };
    let (first, last) = (read(first)?, read(last)?);
    match first > last {
        // Linux takes it and then picks from nearly all addresses there are.
        true => Err(Problem::new(token.span, "this address range ends before it begins", "first greater than last")),
        false => Ok((first, last)),
    }
}

impl NatRange {
    /// Reads `[ADDRESS[-ADDRESS]][:PORT[-PORT[/BASE]]]`; IPv6 addresses stand in brackets where ports follow.
    pub(super) fn read_to(&mut self, given: &Given<'_>, shifted: bool) -> Result<(), Problem> {
        let token = given.argument();
        let text = token.text.as_str();
        let (address, port) = match (given.family, text.strip_prefix('[')) {
            (Family::V6, Some(inside)) => {
                let closed = inside.split_once(']').and_then(|(address, rest)| match rest {
                    "" => Some((address, None)),
                    _ => rest.strip_prefix(':').map(|port| (address, Some(port))),
                });
                closed.ok_or_else(|| {
                    Problem::new(token.span, "these brackets do not end well", "expected [ADDRESS] or [ADDRESS]:PORT")
                        .help(BRACKETS)
                })?
            }
            // One colon alone is before a port; more are an address.
            (Family::V6, None) if text.matches(':').count() != 1 => (text, None),
            _ => match text.split_once(':') {
                Some((address, port)) => (address, Some(port)),
                None => (text, None),
            },
        };
        self.ports = port.map(|port| ports(token, port, shifted)).transpose()?;
        self.addresses = match address.is_empty() && port.is_some() {
            true => None,
            false => Some(addresses(token, address, given.family)?),
        };
        Ok(())
    }

    /// Reads `PORT[-PORT]` of `--to-ports`.
    pub(super) fn read_ports(&mut self, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        self.ports = Some(ports(token, &token.text, false)?);
        Ok(())
    }

    /// Without what Linux does not have.
    pub(super) fn of_linux(self) -> NatRange {
        NatRange { independence: Independence::None, blocks: None, ..self }
    }

    /// Reads `--port-block-size`.
    pub(super) fn read_block_size(&mut self, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        let size = value::unsigned(&token.text, u32::from(u16::MAX))
            .filter(|size| Blocks::SIZES.contains(size) && size.is_multiple_of(u32::from(BLOCK_UNIT)));
        let size = size.ok_or_else(|| {
            Problem::new(
                token.span,
                format!("`{}` is not the size of a block", token.text),
                "expected 64 to 32768 ports, a multiple of 64",
            )
        })?;
        self.blocks = Some(Blocks { size: size as u16, most: self.blocks.map_or(1, |blocks| blocks.most) });
        Ok(())
    }

    /// Reads `--port-blocks`.
    pub(super) fn read_blocks_most(&mut self, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        let most = value::unsigned(&token.text, u32::from(BLOCKS_MAX)).filter(|&most| most > 0);
        let most = most.ok_or_else(|| {
            let label = format!("expected 1 to {BLOCKS_MAX} blocks");
            Problem::new(token.span, format!("`{}` is not a number of blocks", token.text), label)
        })?;
        self.blocks = Some(Blocks { size: self.blocks.map_or(Blocks::SIZE, |blocks| blocks.size), most: most as u8 });
        Ok(())
    }

    /// Ports need a protocol that has them. An inverted `-p` will do, as in iptables.
    pub(super) fn check_ports(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        let has_ports = |number| matches!(number, proto::TCP | proto::UDP | proto::SCTP | DCCP | proto::ICMP);
        match self.ports.is_none() || whole.rule.proto.is_some_and(|proto| has_ports(proto.number)) {
            true => Ok(()),
            false => Err(whole
                .problem("ports need a protocol that has them", "which protocol?")
                .help("add -p tcp, -p udp, -p sctp or -p dccp; for ICMP's identifiers -p icmp")),
        }
    }

    /// As `--to-source` takes it.
    pub(super) fn to_text(self, family: Family) -> String {
        let mut out = String::new();
        if let Some((first, last)) = self.addresses {
            out.push_str(&address_text(first, family));
            if first != last {
                write!(out, "-{}", address_text(last, family)).unwrap_or_default();
            }
            if family == Family::V6 && self.ports.is_some() {
                out = format!("[{out}]");
            }
        }
        if self.ports.is_some() {
            write!(out, ":{}", self.ports_text()).unwrap_or_default();
        }
        out
    }

    /// As `--to-ports` takes them; empty without.
    pub(super) fn ports_text(self) -> String {
        let Some(NatPorts { low, high, base }) = self.ports else { return String::new() };
        let mut out = low.to_string();
        if low != high {
            write!(out, "-{high}").unwrap_or_default();
        }
        if let Some(base) = base {
            write!(out, "/{base}").unwrap_or_default();
        }
        out
    }

    /// The options without an argument.
    pub(super) fn save_flags(self, out: &mut String) {
        let flags =
            [(self.random, " --random"), (self.random_fully, " --random-fully"), (self.persistent, " --persistent")];
        flags.iter().filter(|flag| flag.0).for_each(|flag| out.push_str(flag.1));
        out.push_str(match self.independence {
            Independence::None => "",
            Independence::Mapping => " --endpoint-independent-mapping",
            Independence::Filtering => " --endpoint-independent-filtering",
        });
        if let Some(Blocks { size, most }) = self.blocks {
            write!(out, " --port-block-size {size} --port-blocks {most}").unwrap_or_default();
        }
    }
}
