//! `-m u32`: comparisons of four bytes somewhere in the packet (net/netfilter/xt_u32.c).
//!
//! A test reads a 32-bit number in network order at an offset from the IP header, goes through operations (mask, shift, move
//! on and read again), and compares with ranges. All tests must hold. What lies beyond the packet makes the whole false,
//! which `!` turns into true.

use super::argument::{bang, push, unsigned};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::{Problem, Span};
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::{Family, get_u32};
use core::fmt;

/// Numbers of a location, values of a test, and tests (`XT_U32_MAXSIZE`).
const SIZE_MAX: usize = 10;

/// What is done with the number read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    And(u32),
    Left(u32),
    Right(u32),
    /// Moves on by it, and reads at this offset from there.
    At(u32),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Test {
    offset: u32,
    operations: Vec<Operation>,
    /// First and last; a range that ends before it begins holds nothing.
    values: Vec<(u32, u32)>,
}

/// `-m u32`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct U32Match {
    tests: Vec<Test>,
    invert: bool,
}

const U32: u8 = 1;

impl Extension for U32Match {
    const NAME: &'static str = "u32";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(U32, &["--u32"]).invertible()];

    fn new(_: Family) -> U32Match {
        U32Match { tests: Vec::new(), invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        let mut reader = Reader { text: &token.text, at: 0 };
        self.tests = reader.tests().map_err(|why| {
            // Inside the quotes, where there are any and nothing is escaped.
            let inside = token.span.end - token.span.start == token.text.len() + 2;
            let at = token.span.start + usize::from(inside) + reader.at;
            let span = if inside { Span::new(at, (at + 1).min(token.span.end)) } else { token.span };
            Problem::new(span, format!("bad test: {why}"), "not understood from here on")
                .help("a test is OFFSET[&MASK][>>N][<<N][@OFFSET]=VALUE[:VALUE][,...], several are joined with &&")
        })?;
        self.invert = given.invert;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match self.tests.is_empty() {
            true => Err(whole.problem("u32 without --u32", "incomplete").help("as in `--u32 \"6&0xff=1\"`")),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        let tests: Vec<String> = self.tests.iter().map(Test::to_string).collect();
        push(out, format_args!("{} --u32 \"{}\"", bang(self.invert), tests.join("&&")));
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.offset)?;
        for operation in &self.operations {
            match operation {
                Operation::And(mask) => write!(f, "&{mask:#x}")?,
                Operation::Left(bits) => write!(f, "<<{bits:#x}")?,
                Operation::Right(bits) => write!(f, ">>{bits:#x}")?,
                Operation::At(offset) => write!(f, "@{offset:#x}")?,
            }
        }
        for (place, (first, last)) in self.values.iter().enumerate() {
            write!(f, "{}{first:#x}", if place == 0 { "=" } else { "," })?;
            if first != last {
                write!(f, ":{last:#x}")?;
            }
        }
        Ok(())
    }
}

/// Reads the tests as `u32_parse` of libxt_u32.c does.
#[derive(Debug)]
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&mut self) -> &str {
        let blanks = self.text[self.at..].bytes().take_while(u8::is_ascii_whitespace).count();
        self.at += blanks;
        &self.text[self.at..]
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn number(&mut self) -> Result<u32, &'static str> {
        let rest = self.rest();
        let length = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let number = unsigned(&rest[..length], u32::MAX.into()).ok_or("not a number of 32 bits")?;
        self.at += length;
        Ok(number as u32)
    }

    fn tests(&mut self) -> Result<Vec<Test>, &'static str> {
        let mut tests = Vec::new();
        loop {
            if tests.len() == SIZE_MAX {
                return Err("more than ten tests");
            }
            tests.push(self.test()?);
            match self.take("&&") {
                true => {}
                false if self.rest().is_empty() => return Ok(tests),
                false => return Err("expected `,` or `&&`"),
            }
        }
    }

    fn test(&mut self) -> Result<Test, &'static str> {
        let mut test = Test { offset: self.number()?, operations: Vec::new(), values: Vec::new() };
        while !self.take("=") {
            let operation: fn(u32) -> Operation = match () {
                () if self.take("&") => Operation::And,
                () if self.take("<<") => Operation::Left,
                () if self.take(">>") => Operation::Right,
                () if self.take("@") => Operation::At,
                () => return Err("expected an operation or `=`"),
            };
            if test.operations.len() + 1 == SIZE_MAX {
                return Err("more than nine operations");
            }
            let operation = operation(self.number()?);
            if matches!(operation, Operation::Left(bits) | Operation::Right(bits) if bits > 31) {
                return Err("a shift is by 31 bits at most");
            }
            test.operations.push(operation);
        }
        loop {
            if test.values.len() == SIZE_MAX {
                return Err("more than ten values");
            }
            let first = self.number()?;
            let last = if self.take(":") { self.number()? } else { first };
            test.values.push((first, last));
            if !self.take(",") {
                return Ok(test);
            }
        }
    }
}

/// Four bytes as a number; `None` beyond the packet.
fn read_at(packet: &[u8], at: u64) -> Option<u32> {
    let at = usize::try_from(at).ok()?;
    packet.get(at..at.checked_add(4)?).map(|bytes| get_u32(bytes, 0))
}

impl Test {
    /// `None` beyond the packet.
    fn holds(&self, packet: &[u8]) -> Option<bool> {
        let mut base = 0u64;
        let mut value = read_at(packet, self.offset.into())?;
        for operation in &self.operations {
            match *operation {
                Operation::And(mask) => value &= mask,
                Operation::Left(bits) => value = value.checked_shl(bits)?,
                Operation::Right(bits) => value = value.checked_shr(bits)?,
                Operation::At(offset) => {
                    // At most nine times 32 bits.
                    base += u64::from(value);
                    value = read_at(packet, base + u64::from(offset))?;
                }
            }
        }
        Some(self.values.iter().any(|&(first, last)| (first..=last).contains(&value)))
    }
}

impl Matcher for U32Match {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let packet = context.packet.l3_bytes(context.frame);
        let holds = self.tests.iter().all(|test| test.holds(packet) == Some(true));
        (holds != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};

    fn rule(words: &str) -> U32Match {
        read(Family::V4, words).unwrap_or_else(|bad| panic!("{words}: {bad}"))
    }

    /// Asked from iptables-legacy 1.8.9.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, printed) in [
            ("0>>22&0x3C@12>>26&0x3C@0=0x50415353", "0x0>>0x16&0x3c@0xc>>0x1a&0x3c@0x0=0x50415353"),
            ("6&0xFF=1", "0x6&0xff=0x1"),
            ("6&0xFF=0x1,0x5:0x9&&4=0:0x3fff", "0x6&0xff=0x1,0x5:0x9&&0x4=0x0:0x3fff"),
            ("0<<8=1", "0x0<<0x8=0x1"),
            ("0=5:1", "0x0=0x5:0x1"),
            (" 6 & 0xFF = 1 && 4 & 0x3FFF = 0 ", "0x6&0xff=0x1&&0x4&0x3fff=0x0"),
            ("0=1,2,3,4,5,6,7,8,9,10", "0x0=0x1,0x2,0x3,0x4,0x5,0x6,0x7,0x8,0x9,0xa"),
            ("0&1&1&1&1&1&1&1&1&1=1", "0x0&0x1&0x1&0x1&0x1&0x1&0x1&0x1&0x1&0x1=0x1"),
            ("010=1", "0x8=0x1"),
            ("4294967295=1", "0xffffffff=0x1"),
            ("0>>31=1", "0x0>>0x1f=0x1"),
            ("0@1@2=3", "0x0@0x1@0x2=0x3"),
        ] {
            let value = rule(&format!("--u32 \"{words}\""));
            assert_eq!(saved(&value, Family::V4), format!("--u32 \"{printed}\""), "{words}");
            assert_eq!(rule(&format!("--u32 \"{printed}\"")), value);
        }
        assert_eq!(saved(&rule("! --u32 6=1"), Family::V4), "! --u32 \"0x6=0x1\"");
    }

    #[test]
    fn bad_tests_are_refused() {
        let many = ["0=1"; 11].join("&&");
        for words in [
            "0=:5",
            "0=5:",
            "0",
            "0=",
            "=1",
            "6&0xFF=1&&",
            "6&0xFF=1 2",
            "0=1,2,3,4,5,6,7,8,9,10,11",
            "",
            "0=1!2",
            "0&1&1&1&1&1&1&1&1&1&1=1",
            "0>>32=1",
            "0<<32=1",
            "0x=1",
            "08=1",
            "4294967296=1",
            "0&-1=1",
            "0=1,,2",
            "0=1:2:3",
            many.as_str(),
        ] {
            assert!(read::<U32Match>(Family::V4, &format!("--u32 \"{words}\"")).is_err(), "{words}");
        }
    }

    #[test]
    fn numbers_are_read_where_the_rule_says() {
        // 20 bytes of IPv4 with protocol 6, then a TCP header's first words.
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2];
        packet.extend_from_slice(&[0x04, 0x00, 0x00, 0x50, 0, 0, 0, 1]);
        let holds = |words: &str| {
            let all = rule(&format!("--u32 \"{words}\"")).tests;
            all.iter()
                .map(|test| test.holds(&packet))
                .collect::<Option<Vec<bool>>>()
                .map(|all| all.iter().all(|&yes| yes))
        };
        assert_eq!(holds("6&0xFF=6"), Some(true));
        assert_eq!(holds("6&0xFF=1,5:7&&0>>22&0x3C@0&0xffff=80"), Some(true));
        assert_eq!(holds("0>>22&0x3C@0>>16=0x400:0x3ff"), Some(false));
        assert_eq!((holds("24=1"), holds("25=1"), holds("0xffffffff=0")), (Some(true), None, None));
        assert_eq!(holds("0@0=1"), None, "0x45000028 bytes on");
        assert_eq!(holds("12<<8=0x01000200"), Some(true));
    }
}
