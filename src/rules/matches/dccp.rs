//! `-m dccp`: ports, packet type and options of DCCP (`dccp_mt` of xt_dccp.c, RFC 4340 section 5).

use super::common::put;
use super::number::{Range, number};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::{Problem, nearest};
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::names;
use crate::rules::registry::Registry;
use crate::rules::token::Token;
use crate::wire::{Family, get_u16};

const SPORT: u8 = 0;
const DPORT: u8 = 1;
const TYPES: u8 = 2;
const OPTION: u8 = 3;

/// DCCP's protocol number.
const DCCP: u8 = 33;
/// The part every packet has.
const HEADER_LEN: usize = 12;

/// Packet types by number.
const NAMES: &[&str] =
    &["REQUEST", "RESPONSE", "DATA", "ACK", "DATAACK", "CLOSEREQ", "CLOSE", "RESET", "SYNC", "SYNCACK", "INVALID"];

/// Ports, and `!`. iptables takes a range that ends before it begins, too: no port is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ports {
    range: Range,
    invert: bool,
}

impl Ports {
    fn read(given: &Given<'_>) -> Result<Ports, Problem> {
        let token = given.argument();
        let end = |text: &str| match names::service_port(text) {
            Some(port) => port.to_string(),
            None => text.to_owned(),
        };
        let text = token.text.split(':').map(end).collect::<Vec<_>>().join(":");
        let range = Range::read(&Token { text, span: token.span }, u32::from(u16::MAX), "port")?;
        Ok(Ports { range, invert: given.invert })
    }

    fn holds(&self, port: u16) -> bool {
        self.range.holds(u32::from(port)) != self.invert
    }
}

/// `-m dccp [!] --sport PORTS [!] --dport PORTS [!] --dccp-types LIST [!] --dccp-option N`: needs 12 bytes of header, and with
/// `--dccp-option` all the options, or drops the packet. (With `!` before `--dccp-option` Linux also counts the rule for such a
/// packet, and runs its target, before it drops it.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DccpMatch {
    sport: Option<Ports>,
    dport: Option<Ports>,
    /// One bit for each type, and `!`.
    types: Option<(u16, bool)>,
    /// The option's number, and `!`.
    option: Option<(u8, bool)>,
}

fn read_types(token: &Token) -> Result<u16, Problem> {
    let mut bits = 0;
    for word in token.text.split(',').filter(|word| !word.is_empty()) {
        let found = NAMES.iter().position(|name| name.eq_ignore_ascii_case(word));
        bits |= 1
            << found.ok_or_else(|| {
                Problem::new(token.span, format!("unknown DCCP type `{word}`"), "expected a list without blanks")
                    .help(format!("types are {}", NAMES.join(", ")))
                    .maybe_help(nearest(word, NAMES.iter().copied()).map(|near| format!("did you mean `{near}`?")))
            })?;
    }
    match bits {
        0 => Err(Problem::new(token.span, "no DCCP type", "expected a list").help("write `--dccp-types REQUEST`")),
        bits => Ok(bits),
    }
}

impl Extension for DccpMatch {
    const NAME: &'static str = "dccp";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SPORT, &["--sport", "--source-port"]).invertible(),
        OptionSpec::new(DPORT, &["--dport", "--destination-port"]).invertible(),
        OptionSpec::new(TYPES, &["--dccp-types"]).invertible(),
        OptionSpec::new(OPTION, &["--dccp-option"]).invertible(),
    ];

    fn new(_: Family) -> DccpMatch {
        DccpMatch { sport: None, dport: None, types: None, option: None }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            SPORT => self.sport = Some(Ports::read(given)?),
            DPORT => self.dport = Some(Ports::read(given)?),
            TYPES => self.types = Some((read_types(given.argument())?, given.invert)),
            _ => match number(given.argument(), 255, "DCCP option")? {
                0 => {
                    let span = given.argument().span;
                    return Err(Problem::new(span, "DCCP option 0 cannot be looked for", "expected 1 to 255"));
                }
                option => self.option = Some((option as u8, given.invert)),
            },
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_proto::<DccpMatch>(DCCP, "-p dccp")
    }

    fn save(&self, out: &mut String, _: Family) {
        for (option, ports) in [("--sport", self.sport), ("--dport", self.dport)] {
            if let Some(ports) = ports {
                put(out, ports.invert, format_args!("{option} {}", ports.range));
            }
        }
        if let Some((bits, invert)) = self.types {
            let set = NAMES.iter().enumerate().filter(|(number, _)| bits & 1 << number != 0);
            let names: Vec<&str> = set.map(|(_, name)| *name).collect();
            put(out, invert, format_args!("--dccp-types {}", names.join(",")));
        }
        if let Some((option, invert)) = self.option {
            put(out, invert, format_args!("--dccp-option {option}"));
        }
    }
}

/// Whether the option is there (`dccp_find_option`); `None` where the options cannot be read.
fn has_option(packet: &[u8], wanted: u8) -> Option<bool> {
    let header = packet.get(..HEADER_LEN)?;
    // Sequence numbers of 48 bits take four bytes more.
    let extended = if header[8] & 1 != 0 { 4 } else { 0 };
    let body = match header[8] >> 1 & 0x0f {
        0 => 4,
        2 => 0,
        3..=6 | 8 | 9 => 8,
        _ => 12,
    };
    let options = packet.get(HEADER_LEN + extended + body..usize::from(header[4]) * 4);
    // Where the offset says there are none, nothing behind the first header is needed.
    let options = match usize::from(header[4]) * 4 == HEADER_LEN + extended + body {
        true => &[],
        false => options?,
    };
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        if kind == wanted {
            return Some(true);
        }
        at += match kind {
            0 | 1 => 1,
            _ => usize::from(*options.get(at + 1).unwrap_or(&1)).max(1),
        };
    }
    Some(false)
}

impl Matcher for DccpMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Conntrack does not look into DCCP: all packets between two hosts are one connection.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let packet = context.packet.l4_bytes(context.frame);
        let Some(header) = packet.get(..HEADER_LEN) else { return Answer::Hotdrop };
        let port = |ports: Option<Ports>, port| ports.is_none_or(|ports| ports.holds(port));
        // What has no name is INVALID, too.
        let kind = (header[8] >> 1 & 0x0f).min(NAMES.len() as u8 - 1);
        let types = self.types.is_none_or(|(bits, invert)| (bits & 1 << kind != 0) != invert);
        if !port(self.sport, get_u16(header, 0)) || !port(self.dport, get_u16(header, 2)) || !types {
            return Answer::No;
        }
        let Some((wanted, invert)) = self.option else { return Answer::Yes };
        has_option(packet, wanted).map_or(Answer::Hotdrop, |found| (found != invert).into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<DccpMatch>(
            Family::V4,
            &[
                ("", ""),
                ("--sport 5:6 ! --dport 7", "--sport 5:6 ! --dport 7"),
                ("--dccp-types request,Sync", "--dccp-types REQUEST,SYNC"),
                ("! --dccp-types DATA", "! --dccp-types DATA"),
                ("--dccp-types REQUEST,", "--dccp-types REQUEST"),
                (
                    "--dccp-option 5 --dccp-types DATA ! --sport 5 --dport :6",
                    "! --sport 5 --dport 0:6 --dccp-types DATA --dccp-option 5",
                ),
                ("! --sport 0:65535", "! --sport 0:65535"),
                ("--sport 6:5", "--sport 6:5"),
                ("--sport http", "--sport 80"),
                ("--dccp-option 255", "--dccp-option 255"),
            ],
        );
        refuses::<DccpMatch>(
            Family::V4,
            &["--dccp-types FOO", "--dccp-option 0", "--dccp-option 256", "--sport 65536"],
        );
        refuses::<DccpMatch>(Family::V4, &[r#"--dccp-types """#]);
        assert!(checked::<DccpMatch>(Family::V4, None, "").is_err());
        assert!(checked::<DccpMatch>(Family::V6, Some(33), "").is_ok());
    }

    /// A packet of this type with short sequence numbers, `offset` words long by its own word, and what follows 12 bytes.
    fn packet(kind: u8, offset: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 80, 0x9c, 0x40, offset, 0, 0, 0, kind << 1, 0, 0, 1];
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn ports_and_types_are_compared() {
        for frame in [v4(33, &packet(3, 5, &[0; 8])), v6(33, &packet(3, 5, &[0; 8]))] {
            assert_eq!(ask::<DccpMatch>("--sport 80 --dport 40000", &frame), Answer::Yes);
            assert_eq!(ask::<DccpMatch>("! --sport 80", &frame), Answer::No);
            assert_eq!(ask::<DccpMatch>("--dccp-types ACK,DATA", &frame), Answer::Yes);
            assert_eq!(ask::<DccpMatch>("! --dccp-types ACK,DATA", &frame), Answer::No);
            assert_eq!(ask::<DccpMatch>("--dccp-types INVALID", &frame), Answer::No);
        }
        assert_eq!(ask::<DccpMatch>("--sport 1", &v4(33, &[0; 11])), Answer::Hotdrop);
        for kind in [10, 13, 15] {
            assert_eq!(ask::<DccpMatch>("--dccp-types INVALID", &v4(33, &packet(kind, 3, &[]))), Answer::Yes);
        }
    }

    #[test]
    fn options_are_looked_for_behind_the_types_header() {
        let asked =
            |kind, offset, rest: &[u8]| ask::<DccpMatch>("--dccp-option 38", &v4(33, &packet(kind, offset, rest)));
        assert_eq!(asked(2, 4, &[38, 4, 0, 0]), Answer::Yes);
        assert_eq!(asked(2, 4, &[0, 1, 38, 2]), Answer::Yes);
        assert_eq!(asked(2, 4, &[39, 4, 38, 2]), Answer::No);
        assert_eq!(asked(2, 4, &[39, 0, 38, 2]), Answer::Yes);
        assert_eq!(asked(2, 4, &[0, 0, 0, 39]), Answer::No);
        assert_eq!(asked(0, 5, &[38, 38, 38, 38, 0, 0, 0, 0]), Answer::No);
        assert_eq!(asked(0, 5, &[0, 0, 0, 0, 38, 2, 0, 0]), Answer::Yes);
        // Shorter than its own header, longer than the packet.
        assert_eq!(asked(0, 3, &[0; 8]), Answer::Hotdrop);
        assert_eq!(asked(2, 5, &[38, 4, 0, 0]), Answer::Hotdrop);
        assert_eq!(asked(2, 3, &[38, 4, 0, 0]), Answer::No);
        assert_eq!(asked(0, 4, &[]), Answer::No);
        let mut long = packet(2, 5, &[0, 0, 0, 0, 38, 4, 0, 0]);
        long[8] |= 1;
        assert_eq!(ask::<DccpMatch>("--dccp-option 38", &v4(33, &long)), Answer::Yes);
        assert_eq!(ask::<DccpMatch>("! --dccp-option 38", &v4(33, &long)), Answer::No);
    }
}
