//! Arguments that several of these matches read and print alike: numbers, names of tables, quoted text.
//!
//! Pure functions, as those of [`crate::rules::value`].

use crate::rules::diagnostic::Problem;
use crate::rules::extension::Given;

/// A number up to `max`, decimal, 0x hexadecimal or 0 octal, as `strtoull` with base 0 reads it.
pub(super) fn unsigned(text: &str, max: u64) -> Option<u64> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    // `from_str_radix` would take a sign.
    let plain = digits.chars().all(|c| c.is_digit(radix));
    u64::from_str_radix(digits, radix).ok().filter(|&number| plain && number <= max)
}

/// The option's argument as a number from `min` to `max`.
pub(super) fn number(given: &Given<'_>, min: u64, max: u64) -> Result<u64, Problem> {
    let token = given.argument();
    unsigned(&token.text, max).filter(|&number| number >= min).ok_or_else(|| {
        let message = format!("bad value `{}` for {}", token.text, given.name);
        Problem::new(token.span, message, "expected a number").help(format!("a number from {min} to {max}"))
    })
}

/// The same for 32 bits.
pub(super) fn number32(given: &Given<'_>, min: u32, max: u32) -> Result<u32, Problem> {
    number(given, min.into(), max.into()).map(|number| number as u32)
}

/// The name of a table that Linux shows as a file below /proc (`xt_check_proc_name`): up to `longest` bytes.
pub(super) fn table_name(given: &Given<'_>, longest: usize) -> Result<String, Problem> {
    let token = given.argument();
    let bad = |why: &str| Err(Problem::new(token.span, format!("bad name `{}`", token.text), why));
    match token.text.as_str() {
        "" => bad("a name is not empty"),
        "." | ".." => bad("no name of a file"),
        name if name.contains('/') => bad("a name has no `/`"),
        name if name.len() > longest => bad(&format!("longer than {longest} bytes")),
        name => Ok(name.to_owned()),
    }
}

/// A word that iptables prints as it is; one that would not read back so is quoted.
pub(super) fn bare(word: &str) -> String {
    let plain = !word.contains([' ', '\t', '"']);
    if plain { word.to_owned() } else { quoted(word.as_bytes()) }
}

/// Printable text in quotes, with a backslash before quotes and backslashes.
pub(super) fn quoted(text: &[u8]) -> String {
    let mut out = String::from("\"");
    for c in String::from_utf8_lossy(text).chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// Writing to a `String` cannot fail.
pub(super) fn push(out: &mut String, args: core::fmt::Arguments<'_>) {
    core::fmt::Write::write_fmt(out, args).unwrap_or_default();
}

/// ` !`, where the option is inverted.
pub(super) const fn bang(invert: bool) -> &'static str {
    if invert { " !" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_strtoull_reads_them() {
        assert_eq!(unsigned("18446744073709551615", u64::MAX), Some(u64::MAX));
        assert_eq!(unsigned("18446744073709551616", u64::MAX), None);
        assert_eq!((unsigned("0x10", 16), unsigned("010", 16), unsigned("17", 16)), (Some(16), Some(8), None));
        for bad in ["", "-1", "+1", "0x", "08", "1 "] {
            assert_eq!(unsigned(bad, u64::MAX), None, "{bad}");
        }
    }

    #[test]
    fn what_would_not_read_back_is_quoted() {
        assert_eq!(bare("a.b:c"), "a.b:c");
        assert_eq!(bare("a \"b\""), r#""a \"b\"""#);
    }
}
