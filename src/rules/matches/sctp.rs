//! `-m sctp`: ports of SCTP, and which chunks a packet carries (`sctp_mt` of xt_sctp.c).

use super::common::put;
use super::port::PortRange;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::{Problem, nearest};
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::save::range_text;
use crate::rules::token::Token;
use crate::rules::value;
use crate::wire::{Family, get_u16, proto};

const SPORT: u8 = 0;
const DPORT: u8 = 1;
const CHUNKS: u8 = 2;

/// Ports, verification tag, checksum (RFC 9260 section 3.1).
const HEADER_LEN: usize = 12;
/// Type, flags, length.
const CHUNK_HEADER_LEN: usize = 4;

/// Chunk types by number: name, and the letters of its flags from bit 0 up.
const TYPES: &[(u8, &str, &str)] = &[
    (0, "DATA", "EBUI"),
    (1, "INIT", ""),
    (2, "INIT_ACK", ""),
    (3, "SACK", ""),
    (4, "HEARTBEAT", ""),
    (5, "HEARTBEAT_ACK", ""),
    (6, "ABORT", "T"),
    (7, "SHUTDOWN", ""),
    (8, "SHUTDOWN_ACK", ""),
    (9, "ERROR", ""),
    (10, "COOKIE_ECHO", ""),
    (11, "COOKIE_ACK", ""),
    (12, "ECN_ECNE", ""),
    (13, "ECN_CWR", ""),
    (14, "SHUTDOWN_COMPLETE", "T"),
    (64, "I_DATA", ""),
    (128, "ASCONF_ACK", ""),
    (130, "RE_CONFIG", ""),
    (132, "PAD", ""),
    (192, "FORWARD_TSN", ""),
    (193, "ASCONF", ""),
    (194, "I_FORWARD_TSN", ""),
];

/// What is to be true of the chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Quantity {
    /// One of those listed is there.
    Any,
    /// All of those listed are there.
    All,
    /// No other is there.
    Only,
}

const QUANTITIES: &[(&str, Quantity)] = &[("any", Quantity::Any), ("all", Quantity::All), ("only", Quantity::Only)];

/// Flags a chunk has to have: `(flags & mask) == set`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flags {
    kind: u8,
    mask: u8,
    set: u8,
}

/// `--chunk-types`
#[derive(Clone, PartialEq, Eq, Debug)]
struct Chunks {
    quantity: Quantity,
    /// One bit for each type.
    kinds: [u64; 4],
    /// At most one for a type, by type.
    flags: Vec<Flags>,
    invert: bool,
}

/// A type's bit in a map of all 256: the word, and the bit in it.
const fn place(kind: u8) -> (usize, u64) {
    ((kind / 64) as usize, 1 << (kind % 64))
}

/// `-m sctp [!] --sport PORTS [!] --dport PORTS [!] --chunk-types any|all|only LIST`: needs all 12 bytes of a header, or drops
/// the packet, as do chunks that are cut short or say that they are 0 bytes long, where chunks are asked for. (With `!` before
/// `--chunk-types` Linux also counts the rule for such a packet, and runs its target, before it drops it.)
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SctpMatch {
    sport: Option<PortRange>,
    dport: Option<PortRange>,
    chunks: Option<Chunks>,
}

impl Chunks {
    fn read(quantity: &Token, list: &Token, invert: bool) -> Result<Chunks, Problem> {
        let found = QUANTITIES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&quantity.text));
        let &(_, quantity) = found.ok_or_else(|| {
            let message = format!("`{}` does not say how many chunks", quantity.text);
            Problem::new(quantity.span, message, "expected `any`, `all` or `only`")
                .help("write `--chunk-types any INIT,INIT_ACK`")
        })?;
        let mut chunks = Chunks { quantity, kinds: [0; 4], flags: Vec::new(), invert };
        match list.text.to_ascii_uppercase().as_str() {
            "ALL" => chunks.kinds = [u64::MAX; 4],
            "NONE" => {}
            _ => list.text.split(',').filter(|item| !item.is_empty()).try_for_each(|item| chunks.add(item, list))?,
        }
        Ok(chunks)
    }

    /// Adds `TYPE[:FLAGS]`: a flag in upper case has to be set, in lower case clear. In both, upper case counts.
    fn add(&mut self, item: &str, token: &Token) -> Result<(), Problem> {
        let (name, letters) = item.split_once(':').unwrap_or((item, ""));
        let found = TYPES.iter().find(|(_, known, _)| known.eq_ignore_ascii_case(name));
        let &(kind, name, known) = found.ok_or_else(|| {
            Problem::new(token.span, format!("unknown SCTP chunk `{name}`"), "expected a list without blanks")
                .help("write ALL, NONE, or types such as DATA, INIT, INIT_ACK, ABORT:T")
                .maybe_help(
                    nearest(name, TYPES.iter().map(|entry| entry.1)).map(|near| format!("did you mean `{near}`?")),
                )
        })?;
        let (word, bit) = place(kind);
        self.kinds[word] |= bit;
        for letter in letters.chars() {
            let bit = known.chars().position(|known| known == letter.to_ascii_uppercase()).ok_or_else(|| {
                let help = match known {
                    "" => "it has no flags that can be asked for".to_owned(),
                    known => format!("its flags are {known}"),
                };
                Problem::new(token.span, format!("`{name}` has no flag `{letter}`"), "not a flag of this chunk")
                    .help(help)
            })?;
            self.demand(kind, 1 << bit, letter.is_ascii_uppercase());
        }
        Ok(())
    }

    fn demand(&mut self, kind: u8, flag: u8, is_set: bool) {
        let at = self.flags.binary_search_by_key(&kind, |flags| flags.kind).unwrap_or_else(|at| {
            self.flags.insert(at, Flags { kind, mask: 0, set: 0 });
            at
        });
        self.flags[at].mask |= flag;
        self.flags[at].set |= if is_set { flag } else { 0 };
    }

    fn text(&self) -> String {
        match self.kinds {
            [0, 0, 0, 0] => return "NONE".to_owned(),
            [u64::MAX, u64::MAX, u64::MAX, u64::MAX] => return "ALL".to_owned(),
            _ => {}
        }
        let asked = TYPES.iter().filter(|(kind, _, _)| {
            let (word, bit) = place(*kind);
            self.kinds[word] & bit != 0
        });
        let words: Vec<String> = asked.map(|(kind, name, letters)| self.with_flags(*kind, name, letters)).collect();
        words.join(",")
    }

    fn with_flags(&self, kind: u8, name: &str, letters: &str) -> String {
        let Some(flags) = self.flags.iter().find(|flags| flags.kind == kind) else { return name.to_owned() };
        let asked = letters.chars().enumerate().filter(|(bit, _)| flags.mask & 1 << bit != 0);
        let cased = asked.map(|(bit, letter)| match flags.set & 1 << bit {
            0 => letter.to_ascii_lowercase(),
            _ => letter,
        });
        let letters: Vec<char> = cased.collect();
        format!("{name}:{}", letters.iter().rev().collect::<String>())
    }

    /// Whether the flags of a chunk are as asked for.
    fn flags_fit(&self, kind: u8, flags: u8) -> bool {
        let asked = self.flags.iter().find(|asked| asked.kind == kind);
        asked.is_none_or(|asked| flags & asked.mask == asked.set)
    }

    /// `match_packet`: whether the chunks in `rest`, which follows the header, are as asked for, before `!`. `None` where they
    /// cannot be read.
    fn test(&self, rest: &[u8]) -> Option<bool> {
        let mut wanted = self.kinds;
        let mut at = 0;
        loop {
            let header = rest.get(at..at + CHUNK_HEADER_LEN)?;
            let (kind, flags, length) = (header[0], header[1], usize::from(get_u16(header, 2)));
            if length == 0 {
                return None;
            }
            at += length.next_multiple_of(4);
            let (word, bit) = place(kind);
            let fits = self.kinds[word] & bit != 0 && self.flags_fit(kind, flags);
            match self.quantity {
                Quantity::Any if fits => return Some(true),
                Quantity::Only if !fits => return Some(false),
                Quantity::All if fits => wanted[word] &= !bit,
                _ => {}
            }
            if at >= rest.len() {
                break;
            }
        }
        Some(match self.quantity {
            Quantity::Any => false,
            Quantity::All => wanted == [0; 4],
            Quantity::Only => true,
        })
    }
}

impl Extension for SctpMatch {
    const NAME: &'static str = "sctp";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SPORT, &["--sport", "--source-port"]).invertible(),
        OptionSpec::new(DPORT, &["--dport", "--destination-port"]).invertible(),
        OptionSpec::new(CHUNKS, &["--chunk-types"]).arguments(2).invertible(),
    ];

    fn new(_: Family) -> SctpMatch {
        SctpMatch { sport: None, dport: None, chunks: None }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            SPORT => self.sport = Some(value::port_range(given.argument(), given.invert)?),
            DPORT => self.dport = Some(value::port_range(given.argument(), given.invert)?),
            _ => self.chunks = Some(Chunks::read(given.argument(), &given.arguments[1], given.invert)?),
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_proto::<SctpMatch>(proto::SCTP, "-p sctp")
    }

    fn save(&self, out: &mut String, _: Family) {
        for (option, range) in [("--sport", self.sport), ("--dport", self.dport)] {
            if let Some(PortRange { low, high, invert }) = range {
                put(out, invert, format_args!("{option} {}", range_text(low, high)));
            }
        }
        if let Some(chunks) = &self.chunks {
            let known = QUANTITIES.iter().find(|(_, quantity)| *quantity == chunks.quantity);
            let quantity = known.map_or("", |(name, _)| name);
            put(out, chunks.invert, format_args!("--chunk-types {quantity} {}", chunks.text()));
        }
    }
}

impl Matcher for SctpMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// A packet whose header is cut short has no connection.
    fn basis(&self) -> Basis {
        match self.chunks {
            Some(_) => Basis::Packet,
            None => Basis::Flow,
        }
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let packet = context.packet.l4_bytes(context.frame);
        let Some((header, rest)) = packet.split_at_checked(HEADER_LEN) else { return Answer::Hotdrop };
        let port = |range: Option<PortRange>, port| range.is_none_or(|range| range.holds(port));
        if !port(self.sport, get_u16(header, 0)) || !port(self.dport, get_u16(header, 2)) {
            return Answer::No;
        }
        let Some(chunks) = &self.chunks else { return Answer::Yes };
        chunks.test(rest).map_or(Answer::Hotdrop, |found| (found != chunks.invert).into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<SctpMatch>(
            Family::V4,
            &[
                ("", ""),
                ("--dport 80:90 ! --sport 1", "! --sport 1 --dport 80:90"),
                ("--sport :90 --dport 90:", "--sport 0:90 --dport 90:65535"),
                ("! --sport 0:65535", "! --sport 0:65535"),
                ("--sport 0:65535", "--sport 0:65535"),
                ("--source-port 5 --destination-port 6", "--sport 5 --dport 6"),
                ("--chunk-types all INIT,INIT_ACK", "--chunk-types all INIT,INIT_ACK"),
                ("! --chunk-types only INIT_ACK,INIT", "! --chunk-types only INIT,INIT_ACK"),
                ("--chunk-types ANY init", "--chunk-types any INIT"),
                ("--chunk-types any DATA:Be", "--chunk-types any DATA:Be"),
                ("--chunk-types any DATA:UBEi", "--chunk-types any DATA:iUBE"),
                ("--chunk-types any DATA:ubeiUBEI", "--chunk-types any DATA:IUBE"),
                ("--chunk-types any DATA:", "--chunk-types any DATA"),
                ("--chunk-types any ABORT:T,SHUTDOWN_COMPLETE:t", "--chunk-types any ABORT:T,SHUTDOWN_COMPLETE:t"),
                ("--chunk-types any all", "--chunk-types any ALL"),
                ("--chunk-types only NONE", "--chunk-types only NONE"),
                ("--chunk-types any DATA,DATA:B,DATA:e", "--chunk-types any DATA:Be"),
                ("--chunk-types any DATA, --dport 5", "--dport 5 --chunk-types any DATA"),
                (
                    "--chunk-types any ECN_CWR,SHUTDOWN_COMPLETE,ASCONF,ASCONF_ACK,FORWARD_TSN,I_DATA,RE_CONFIG,PAD,I_FORWARD_TSN",
                    "--chunk-types any ECN_CWR,SHUTDOWN_COMPLETE,I_DATA,ASCONF_ACK,RE_CONFIG,PAD,FORWARD_TSN,ASCONF,I_FORWARD_TSN",
                ),
            ],
        );
        let bad = ["any DATA:x", "any INIT:B", "none INIT", "any 1", "any ALL,DATA:B", "any DATA:-"];
        for chunks in bad {
            refuses::<SctpMatch>(Family::V4, &[&format!("--chunk-types {chunks}")]);
        }
        refuses::<SctpMatch>(Family::V4, &["--sport 90:80", "--chunk-types any"]);
        // iptables takes these and then asks for them of another chunk.
        refuses::<SctpMatch>(Family::V4, &["--chunk-types any I_DATA:Be"]);
        assert!(checked::<SctpMatch>(Family::V4, Some(6), "").is_err());
        assert!(checked::<SctpMatch>(Family::V6, Some(132), "--dport 5").is_ok());
    }

    fn packet(chunks: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0, 80, 0x9c, 0x40, 0, 0, 0, 1, 0, 0, 0, 0];
        bytes.extend(chunks.concat());
        bytes
    }

    const DATA: &[u8] = &[0, 3, 0, 6, 1, 2, 0, 0];
    const SACK: &[u8] = &[3, 0, 0, 4];
    const INIT: &[u8] = &[1, 0, 0, 8, 0, 0, 0, 0];

    #[test]
    fn ports_are_compared_and_a_short_header_drops() {
        for frame in [v4(132, &packet(&[])), v6(132, &packet(&[]))] {
            assert_eq!(ask::<SctpMatch>("--sport 80", &frame), Answer::Yes);
            assert_eq!(ask::<SctpMatch>("--sport 80 ! --dport 40000", &frame), Answer::No);
        }
        assert_eq!(ask::<SctpMatch>("--sport 81", &v4(132, &packet(&[])[..11])), Answer::Hotdrop);
    }

    #[test]
    fn chunks_are_counted_off() {
        let cases = [
            ("any SACK", Answer::Yes),
            ("any INIT", Answer::No),
            ("any DATA:BE", Answer::Yes),
            ("any DATA:Be", Answer::No),
            ("any DATA:Be,SACK", Answer::Yes),
            ("all DATA,SACK", Answer::Yes),
            ("all DATA,SACK,INIT", Answer::No),
            ("all DATA:U,SACK", Answer::No),
            ("only DATA,SACK", Answer::Yes),
            ("only DATA,SACK,INIT", Answer::Yes),
            ("only DATA", Answer::No),
            ("only DATA:I,SACK", Answer::No),
            ("any ALL", Answer::Yes),
            ("all ALL", Answer::No),
            ("only ALL", Answer::Yes),
            ("any NONE", Answer::No),
            ("all NONE", Answer::Yes),
            ("only NONE", Answer::No),
        ];
        let frame = v4(132, &packet(&[SACK, DATA]));
        for (words, answer) in cases {
            assert_eq!(ask::<SctpMatch>(&format!("--chunk-types {words}"), &frame), answer, "{words}");
        }
        assert_eq!(ask::<SctpMatch>("! --chunk-types any INIT", &frame), Answer::Yes);
        assert_eq!(ask::<SctpMatch>("! --chunk-types any SACK", &frame), Answer::No);
    }

    #[test]
    fn chunks_that_cannot_be_read_drop() {
        let asked = |chunks: &[&[u8]]| ask::<SctpMatch>("--chunk-types all SACK,DATA", &v4(132, &packet(chunks)));
        assert_eq!(asked(&[]), Answer::Hotdrop);
        assert_eq!(asked(&[SACK, &[0, 0, 0, 0]]), Answer::Hotdrop);
        assert_eq!(asked(&[SACK, &[0, 3, 0]]), Answer::Hotdrop);
        // The last one may be longer than the packet.
        assert_eq!(asked(&[SACK, &[0, 3, 1, 0]]), Answer::Yes);
        assert_eq!(asked(&[INIT, SACK, DATA]), Answer::Yes);
        // Where the answer is known before, the rest is not looked at.
        assert_eq!(ask::<SctpMatch>("--chunk-types any SACK", &v4(132, &packet(&[SACK, &[0]]))), Answer::Yes);
        assert_eq!(ask::<SctpMatch>("--dport 1 --chunk-types any SACK", &v4(132, &packet(&[]))), Answer::No);
    }
}
