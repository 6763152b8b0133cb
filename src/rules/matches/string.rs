//! `-m string`: bytes anywhere in the packet (net/netfilter/xt_string.c).
//!
//! The packet is searched from its IP header on; what is found has to begin at `--from` or later and to end at `--to` or
//! before (`skb_find_text` since Linux 6.6). The two algorithms find the same: the kernel's Boyer-Moore misses what lies
//! across two pieces of a packet in memory, which there are none of here. `--icase` is the kernel's `toupper`, which knows
//! Latin-1 too.

use super::argument::{bang, number32, push, quoted};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::Family;

/// Longest pattern in bytes (`XT_STRING_MAX_PATTERN_SIZE`).
const PATTERN_MAX: usize = 128;
/// The last place in a packet: `--to` where the rule does not say.
const TO_DEFAULT: u32 = 65_535;

/// `--algo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Algorithm {
    BoyerMoore,
    KnuthMorrisPratt,
}

/// `-m string`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StringMatch {
    pattern: Vec<u8>,
    invert: bool,
    algorithm: Option<Algorithm>,
    from: u32,
    to: u32,
    ignore_case: bool,
}

const FROM: u8 = 1;
const TO: u8 = 2;
const ALGO: u8 = 3;
const STRING: u8 = 4;
const HEX_STRING: u8 = 5;
const ICASE: u8 = 6;

impl Extension for StringMatch {
    const NAME: &'static str = "string";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(FROM, &["--from"]),
        OptionSpec::new(TO, &["--to"]),
        OptionSpec::new(ALGO, &["--algo"]),
        OptionSpec::new(STRING, &["--string"]).invertible().group(1),
        OptionSpec::new(HEX_STRING, &["--hex-string"]).invertible().group(1),
        OptionSpec::new(ICASE, &["--icase"]).arguments(0),
    ];

    fn new(_: Family) -> StringMatch {
        StringMatch { pattern: Vec::new(), invert: false, algorithm: None, from: 0, to: TO_DEFAULT, ignore_case: false }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            FROM => self.from = number32(given, 0, TO_DEFAULT)?,
            TO => self.to = number32(given, 0, TO_DEFAULT)?,
            ALGO => self.algorithm = Some(algorithm(given)?),
            STRING | HEX_STRING => {
                let token = given.argument();
                let pattern = match id {
                    STRING => Ok(token.text.as_bytes().to_vec()),
                    _ => hexadecimal(token.text.as_bytes()),
                };
                let pattern = pattern.and_then(|pattern| match pattern.len() {
                    0 => Err("nothing to look for"),
                    length if length > PATTERN_MAX => Err("longer than 128 bytes"),
                    _ => Ok(pattern),
                });
                let bad = |why| Problem::new(token.span, format!("bad pattern `{}`", token.text), why);
                (self.pattern, self.invert) = (pattern.map_err(bad)?, given.invert);
            }
            _ => self.ignore_case = true,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        if self.pattern.is_empty() {
            return Err(whole.problem("string without a pattern", "incomplete").help("add --string or --hex-string"));
        }
        if self.algorithm.is_none() {
            return Err(whole.problem("string without --algo", "incomplete").help("add `--algo bm` or `--algo kmp`"));
        }
        match self.from > self.to {
            true => Err(whole.problem("--to is before --from", "nothing is searched")),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        let printable = self.pattern.iter().all(|byte| (0x20..0x7f).contains(byte));
        let invert = bang(self.invert);
        match printable && self.pattern.last() != Some(&b'\\') {
            true => push(out, format_args!("{invert} --string {}", quoted(&self.pattern))),
            false => {
                let digits: String = self.pattern.iter().map(|byte| format!("{byte:02x}")).collect();
                push(out, format_args!("{invert} --hex-string \"|{digits}|\""));
            }
        }
        let algorithm = match self.algorithm {
            Some(Algorithm::BoyerMoore) | None => "bm",
            Some(Algorithm::KnuthMorrisPratt) => "kmp",
        };
        push(out, format_args!(" --algo {algorithm}"));
        if self.from != 0 {
            push(out, format_args!(" --from {}", self.from));
        }
        if self.to != TO_DEFAULT {
            push(out, format_args!(" --to {}", self.to));
        }
        if self.ignore_case {
            out.push_str(" --icase");
        }
    }
}

fn algorithm(given: &Given<'_>) -> Result<Algorithm, Problem> {
    let token = given.argument();
    match token.text.as_str() {
        "bm" => Ok(Algorithm::BoyerMoore),
        "kmp" => Ok(Algorithm::KnuthMorrisPratt),
        _ => Err(Problem::new(token.span, format!("unknown algorithm `{}`", token.text), "not an algorithm")
            .help("write bm or kmp")),
    }
}

/// `--hex-string`: text with pairs of hexadecimal digits between bars, and a backslash before what is to be taken as it is
/// (`parse_hex_string` of libxt_string.c, with its own ideas of what directly follows a bar).
fn hexadecimal(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut pattern = Vec::new();
    let (mut at, mut in_hex) = (0, false);
    while at < text.len() {
        let literal = text[at] == b'\\';
        if literal && in_hex {
            return Err("no backslash between bars");
        }
        if text[at] == b'|' {
            in_hex = !in_hex;
            at += 1;
            while in_hex && text.get(at) == Some(&b' ') {
                at += 1;
            }
            if at >= text.len() {
                return if in_hex && at > 1 && text[at - 1] == b' ' {
                    Err("unfinished hexadecimal")
                } else {
                    Ok(pattern)
                };
            }
        }
        if literal {
            pattern.push(*text.get(at + 1).ok_or("nothing after the backslash")?);
            at += 2;
        } else if in_hex {
            let &[high, low, end, ..] = &text[at..] else { return Err("hexadecimal is pairs of digits between bars") };
            let digit = |byte: u8| char::from(byte).to_digit(16).ok_or("not a hexadecimal digit");
            pattern.push((digit(high)? << 4 | digit(low)?) as u8);
            at += if end == b' ' { 3 } else { 2 };
        } else {
            pattern.push(text[at]);
            at += 1;
        }
    }
    Ok(pattern)
}

/// The kernel's `toupper`: Latin-1.
const fn upper(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' | 0xdf..=0xf6 | 0xf8..=0xff => byte - 0x20,
        byte => byte,
    }
}

impl StringMatch {
    /// Whether the pattern is in `packet` where the rule looks.
    fn is_in(&self, packet: &[u8], skips: &[u8; 256]) -> bool {
        let end = packet.len().min(self.to as usize);
        let Some(searched) = packet.get(self.from as usize..end) else { return false };
        let same = |one: u8, other: u8| one == other || (self.ignore_case && upper(one) == upper(other));
        let (length, mut at) = (self.pattern.len(), 0);
        while let Some(window) = searched.get(at..at + length) {
            if window.iter().zip(&self.pattern).all(|(&one, &other)| same(one, other)) {
                return true;
            }
            at += usize::from(skips[usize::from(window[length - 1])]).max(1);
        }
        false
    }

    /// How far the pattern moves on when this byte stands under its last one (Horspool).
    fn skips(&self) -> [u8; 256] {
        let length = self.pattern.len();
        core::array::from_fn(|byte| {
            let same = |one: u8| one == byte as u8 || (self.ignore_case && upper(one) == upper(byte as u8));
            let last = self.pattern.iter().take(length.saturating_sub(1)).rposition(|&one| same(one));
            // At most 128.
            last.map_or(length, |last| length - 1 - last) as u8
        })
    }
}

impl Matcher for StringMatch {
    /// See [`StringMatch::skips`].
    type State = Box<[u8; 256]>;

    fn state(&self, _: &mut Registry) -> Box<[u8; 256]> {
        Box::new(self.skips())
    }

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, skips: &Box<[u8; 256]>) -> Answer {
        (self.is_in(context.packet.l3_bytes(context.frame), skips) != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};
    use proptest::prelude::*;

    fn rule(words: &str) -> StringMatch {
        read(Family::V4, words).unwrap_or_else(|bad| panic!("{words}: {bad}"))
    }

    /// Asked from iptables-legacy 1.8.9.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, printed) in [
            ("--string abc", r#"--string "abc" --algo bm"#),
            ("--string abc --from 10 --to 100", r#"--string "abc" --algo bm --from 10 --to 100"#),
            ("! --string abc --icase", r#"! --string "abc" --algo bm --icase"#),
            (r#"--string "a\"b""#, r#"--string "a\"b" --algo bm"#),
            (r#"--string "a'b""#, r#"--string "a'b" --algo bm"#),
            (r#"--string "a\\b""#, r#"--string "a\\b" --algo bm"#),
            (r#"--string "ab\\""#, r#"--hex-string "|61625c|" --algo bm"#),
            (r#"--string "|61|""#, r#"--string "|61|" --algo bm"#),
            (r#"--string "é""#, r#"--hex-string "|c3a9|" --algo bm"#),
            (r#"--hex-string "|0d 0a|x""#, r#"--hex-string "|0d0a78|" --algo bm"#),
            (r#"--hex-string "| 61 62 |c|64|""#, r#"--string "abcd" --algo bm"#),
            (r#"--hex-string "ab|00|""#, r#"--hex-string "|616200|" --algo bm"#),
            (r#"--hex-string "|61||62|""#, r#"--string "a|62" --algo bm"#),
            (r#"--hex-string "abc|""#, r#"--string "abc" --algo bm"#),
            (r#"--hex-string "a\\b""#, r#"--string "ab" --algo bm"#),
            (r#"--hex-string "a\\|b""#, r#"--string "a|b" --algo bm"#),
            (r#"--hex-string "a|62|\\""#, r#"--hex-string "|61625c|" --algo bm"#),
            (r#"--hex-string "|22|""#, r#"--string "\"" --algo bm"#),
            (r#"--hex-string "|7f|""#, r#"--hex-string "|7f|" --algo bm"#),
            ("--string abc --to 65535 --from 0", r#"--string "abc" --algo bm"#),
            ("--string abc --to 0", r#"--string "abc" --algo bm --to 0"#),
            ("--string a$b", r#"--string "a$b" --algo bm"#),
        ] {
            let value = rule(&format!("{words} --algo bm"));
            assert_eq!(saved(&value, Family::V4), printed, "{words}");
            assert_eq!(rule(printed), value, "{words}");
        }
        assert_eq!(saved(&rule("--string a --algo kmp"), Family::V4), r#"--string "a" --algo kmp"#);
    }

    #[test]
    fn bad_patterns_are_refused() {
        let long = "a".repeat(129);
        for words in [
            r#"--string """#,
            "--algo fsm",
            "--from 65536",
            r#"--hex-string "ab|63""#,
            r#"--hex-string "|6|""#,
            r#"--hex-string "|zz|""#,
            r#"--hex-string "a|b""#,
            r#"--hex-string "||""#,
            r#"--hex-string "ab|6 1|c""#,
            r#"--hex-string "ab|616|c""#,
            r#"--hex-string "a\\""#,
            r#"--hex-string "|61\\|""#,
            &format!("--string {long}"),
        ] {
            assert!(read::<StringMatch>(Family::V4, words).is_err(), "{words}");
        }
    }

    fn is_in(words: &str, packet: &[u8]) -> bool {
        let rule = rule(&format!("{words} --algo bm"));
        rule.is_in(packet, &rule.skips())
    }

    #[test]
    fn it_begins_at_from_and_ends_at_to() {
        let packet = b"....abc...";
        for (from, to, found) in [(4, 7, true), (5, 10, false), (0, 6, false), (0, 65_535, true), (11, 12, false)] {
            assert_eq!(is_in(&format!("--string abc --from {from} --to {to}"), packet), found, "{from} {to}");
        }
        assert!(is_in("--string ABC --icase", packet) && !is_in("--string ABC", packet));
        assert!(is_in("--hex-string |c0| --icase", &[0xe0]) && !is_in("--hex-string |d7| --icase", &[0xf7]));
    }

    proptest! {
        #[test]
        fn it_finds_what_a_plain_search_finds(
            pattern in prop::collection::vec(prop::sample::select(b"aAbB".to_vec()), 1..6),
            packet in prop::collection::vec(prop::sample::select(b"aAbB".to_vec()), 0..40),
            ignore_case: bool,
        ) {
            let rule = StringMatch { pattern, ignore_case, ..StringMatch::new(Family::V4) };
            let same = |window: &[u8]| match ignore_case {
                true => window.eq_ignore_ascii_case(&rule.pattern),
                false => window == rule.pattern,
            };
            let found = packet.windows(rule.pattern.len()).any(same);
            prop_assert_eq!(rule.is_in(&packet, &rule.skips()), found);
        }
    }
}
