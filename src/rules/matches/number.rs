//! Numbers as options of several matches take them: plain, as a range, or under a mask. Read as iptables reads them
//! (`xtopt_parse_int`, `xtopt_parse_mint`, `xtopt_parse_markmask` of its xtoptions.c), printed as `iptables-save` prints them.

use crate::rules::diagnostic::Problem;
use crate::rules::token::Token;
use crate::rules::value;
use core::fmt;

/// One number up to `max`; `what` says what it is, for the message.
///
/// # Errors
/// It is not a number, or too large.
pub(super) fn number(token: &Token, max: u32, what: &str) -> Result<u32, Problem> {
    value::unsigned(&token.text, max).ok_or_else(|| bad_number(token, &token.text, max, what))
}

fn bad_number(token: &Token, text: &str, max: u32, what: &str) -> Problem {
    Problem::new(token.span, format!("`{text}` is not a {what}"), format!("expected a number, 0 to {max}"))
}

/// An inclusive range of numbers. iptables takes one that ends before it begins, too: nothing is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::rules) struct Range {
    /// First.
    pub(super) low: u32,
    /// Last.
    pub(super) high: u32,
}

impl Range {
    /// Whether `value` is in it.
    pub(super) const fn holds(self, value: u32) -> bool {
        self.low <= value && value <= self.high
    }

    /// Reads `N`, `A:B`, `A:` (up to `max`), `:B` (from 0), or `:` (all).
    ///
    /// # Errors
    /// An end is not a number, or too large.
    pub(super) fn read(token: &Token, max: u32, what: &str) -> Result<Range, Problem> {
        let end = |text: &str, open: u32| match text {
            "" => Ok(open),
            _ => value::unsigned(text, max)
                .ok_or_else(|| bad_number(token, text, max, what).help("a range is written FIRST:LAST")),
        };
        match token.text.split_once(':') {
            Some((low, high)) => Ok(Range { low: end(low, 0)?, high: end(high, max)? }),
            None => number(token, max, what).map(|single| Range { low: single, high: single }),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.low == self.high {
            true => write!(f, "{}", self.low),
            false => write!(f, "{}:{}", self.low, self.high),
        }
    }
}

/// A value under a mask: what it asks is `number & mask == value`. A value with bits outside the mask never fits, as in Linux.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::rules) struct Masked {
    /// The value.
    pub(super) value: u32,
    /// Which bits are compared.
    pub(super) mask: u32,
}

impl Masked {
    /// Whether `number` fits.
    pub(super) const fn holds(self, number: u32) -> bool {
        number & self.mask == self.value
    }

    /// Reads `VALUE[/MASK]`.
    ///
    /// # Errors
    /// Either is not a number of 32 bits.
    pub(super) fn read(token: &Token) -> Result<Masked, Problem> {
        let (value, mask) = token.text.split_once('/').map_or((token.text.as_str(), None), |(v, m)| (v, Some(m)));
        let bits = |text: &str| {
            value::unsigned(text, u32::MAX).ok_or_else(|| {
                Problem::new(token.span, format!("`{text}` is not a mark"), "expected VALUE or VALUE/MASK")
                    .help("both are numbers of 32 bits: `0x1`, `0x10/0xff`")
            })
        };
        Ok(Masked { value: bits(value)?, mask: mask.map_or(Ok(u32::MAX), bits)? })
    }
}

impl fmt::Display for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mask {
            u32::MAX => write!(f, "{:#x}", self.value),
            mask => write!(f, "{:#x}/{mask:#x}", self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::diagnostic::Span;

    fn token(text: &str) -> Token {
        Token { text: text.to_owned(), span: Span::default() }
    }

    #[test]
    fn ranges_read_and_print_as_iptables_does() {
        let range = |text: &str| Range::read(&token(text), 255, "number").map(|range| range.to_string()).ok();
        let cases = [
            ("5", "5"),
            ("0x10:20", "16:20"),
            (":9", "0:9"),
            ("9:", "9:255"),
            (":", "0:255"),
            ("7:7", "7"),
            ("9:5", "9:5"),
        ];
        for (read, printed) in cases {
            assert_eq!(range(read).as_deref(), Some(printed), "{read}");
        }
        for bad in ["", "256", "1:256", "-1", "1:2:3", "x", "08"] {
            assert_eq!(range(bad), None, "{bad}");
        }
        assert!(!Range { low: 9, high: 5 }.holds(7));
    }

    #[test]
    fn marks_read_and_print_as_iptables_does() {
        let mark = |text: &str| Masked::read(&token(text)).map(|mark| mark.to_string()).ok();
        let cases = [
            ("1", "0x1"),
            ("0x10/0xff", "0x10/0xff"),
            ("0x1ff/0xff", "0x1ff/0xff"),
            ("010/0xffffffff", "0x8"),
            ("0", "0x0"),
            ("0/0", "0x0/0x0"),
        ];
        for (read, printed) in cases {
            assert_eq!(mark(read).as_deref(), Some(printed), "{read}");
        }
        for bad in ["4294967296", "1/4294967296", "-1", "5/", "5x", "5/6/7", "", "/1", "0x", "08"] {
            assert_eq!(mark(bad), None, "{bad}");
        }
    }
}
