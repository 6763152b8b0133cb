//! What helpers look for in text: a place, a decimal number, an IPv6 address.

use crate::wire::Addr;

/// Where `pattern` begins in `text`.
pub(super) fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

/// The decimal number at the beginning of `text`, and its length; 0 and 0 where there is none. It may be larger than its type
/// can hold: then the highest bits are lost (`simple_strtoul` on a machine of 64 bits).
pub(super) fn decimal(text: &[u8]) -> (u64, usize) {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = text[..length].iter().fold(0u64, |value, digit| push_digit(value, *digit));
    (value, length)
}

fn push_digit(value: u64, digit: u8) -> u64 {
    value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))
}

/// An IPv6 address from the beginning of `text` to the first `delimiter` (or a byte of zero, or the end), and its length
/// (`in6_pton`). Leading zeroes are taken in any number, `::` stands for one group at least.
pub(super) fn ipv6(text: &[u8], delimiter: u8) -> Option<(Addr, usize)> {
    let length = text.iter().position(|&byte| byte == delimiter || byte == 0).unwrap_or(text.len());
    let text = core::str::from_utf8(&text[..length]).ok()?;
    let (mut groups, mut count, mut gap) = ([0u16; 8], 0, None);
    let mut rest = text;
    if let Some(after) = text.strip_prefix("::") {
        (gap, rest) = (Some(0), after);
    }
    while !rest.is_empty() {
        let (word, after) = rest.split_once(':').map_or((rest, None), |(word, after)| (word, Some(after)));
        if word.contains('.') {
            let [a, b, c, d] = dotted(word).filter(|_| after.is_none() && count <= 6)?;
            groups[count] = u16::from(a) << 8 | u16::from(b);
            groups[count + 1] = u16::from(c) << 8 | u16::from(d);
            (count, rest) = (count + 2, "");
            continue;
        }
        *groups.get_mut(count)? = group(word)?;
        count += 1;
        rest = match after {
            None => "",
            Some(after) => match after.strip_prefix(':') {
                Some(after) if gap.is_none() => {
                    gap = Some(count);
                    after
                }
                Some(_) => return None,
                None if after.is_empty() => return None,
                None => after,
            },
        };
    }
    let tail = match gap {
        Some(gap) if count < 8 => count - gap,
        None if count == 8 => 0,
        _ => return None,
    };
    let mut whole = [0u16; 8];
    whole[..count - tail].copy_from_slice(&groups[..count - tail]);
    whole[8 - tail..].copy_from_slice(&groups[count - tail..count]);
    let bits = whole.iter().fold(0u128, |bits, group| bits << 16 | u128::from(*group));
    Some((Addr::from_v6(bits), length))
}

/// A group of an IPv6 address: hexadecimal digits, of which four count.
fn group(word: &str) -> Option<u16> {
    let is_hex = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let digits = word.trim_start_matches('0');
    match is_hex {
        true if digits.is_empty() => Some(0),
        true => u16::from_str_radix(digits, 16).ok(),
        false => None,
    }
}

/// Four decimal numbers below 256 with dots between (`in4_pton`).
fn dotted(word: &str) -> Option<[u8; 4]> {
    let mut numbers = word.split('.').map(|number| match number.bytes().all(|byte| byte.is_ascii_digit()) {
        true => number.parse::<u8>().ok(),
        false => None,
    });
    let quad = [numbers.next()??, numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(quad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;

    #[test]
    fn numbers_and_places() {
        assert_eq!((find(b"a CONNECT x", b"CONNECT "), find(b"abc", b"abcd"), find(b"", b"x")), (Some(2), None, None));
        assert_eq!((decimal(b"6543 "), decimal(b"x"), decimal(b"99999")), ((6543, 4), (0, 0), (99999, 5)));
    }

    #[test]
    fn addresses_are_read_as_linux_reads_them() {
        for (text, expected) in [
            ("2001:db8::1|", Some("2001:db8::1")),
            ("::|", Some("::")),
            ("::1|x", Some("::1")),
            ("1::|", Some("1::")),
            ("1:2:3:4:5:6:7::|", Some("1:2:3:4:5:6:7:0")),
            ("1:2:3:4:5:6:7:8|", Some("1:2:3:4:5:6:7:8")),
            ("0001:00002:3:4:5:6:7:8|", Some("1:2:3:4:5:6:7:8")),
            ("::ffff:10.0.0.1|", Some("::ffff:10.0.0.1")),
            ("1:2:3:4:5:6:1.2.3.4|", Some("1:2:3:4:5:6:102:304")),
            ("1:2:3:4:5:6:7|", None),
            ("1:2:3:4:5:6:7:8:9|", None),
            ("1:2:3:4:5:6:7:8::|", None),
            ("1::2::3|", None),
            (":1::2|", None),
            ("1:2:3:4:5:6:7:|", None),
            ("12345::|", None),
            ("g::1|", None),
            ("|", None),
            ("::1%eth0|", None),
            (":::1|", None),
        ] {
            let found = ipv6(text.as_bytes(), b'|').map(|(addr, _)| addr);
            let wanted = expected.map(|text| Addr::from(text.parse::<Ipv6Addr>().expect("an address")));
            assert_eq!(found, wanted, "{text}");
        }
        assert_eq!(ipv6(b"::1|", b'|').map(|found| found.1), Some(3));
        assert_eq!(ipv6(b"::1", b'|').map(|found| found.1), Some(3), "the end is a delimiter, too");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(bits: u128, holes: u8) {
            let bits = (0..8).filter(|at| holes >> at & 1 == 1).fold(bits, |bits, at| bits & !(0xffff << (16 * at)));
            let text = format!("{}|", Ipv6Addr::from(bits));
            prop_assert_eq!(ipv6(text.as_bytes(), b'|'), Some((Addr::from_v6(bits), text.len() - 1)));
        }

        #[test]
        fn nothing_panics(text in "[0-9a-f:.|]{0,30}") {
            let _ = ipv6(text.as_bytes(), b'|');
        }
    }
}
