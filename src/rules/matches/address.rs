//! Addresses in options of matches, read as `xtables_numeric_to_ipaddr` and `xtables_numeric_to_ip6addr` read them.

use crate::rules::diagnostic::Problem;
use crate::rules::token::Token;
use crate::wire::{Addr, Family};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The address `text`, a part of `token`.
///
/// # Errors
/// It is none of this IP version.
pub(super) fn read(text: &str, token: &Token, family: Family) -> Result<Addr, Problem> {
    let found = match family {
        Family::V4 => read_v4(text),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(Addr::from),
    };
    let version = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    found.ok_or_else(|| {
        Problem::new(token.span, format!("`{text}` is not an {version} address"), "expected an address")
            .help("host names are not looked up: write the address")
    })
}

/// One to four decimal numbers; those left out are 0, so `10.1` is `10.1.0.0`.
fn read_v4(text: &str) -> Option<Addr> {
    let mut bytes = [0u8; 4];
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > 4 {
        return None;
    }
    for (byte, part) in bytes.iter_mut().zip(parts) {
        // A leading zero would be octal for some and decimal for others.
        let plain = part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
        *byte = part.parse().ok().filter(|_| plain)?;
    }
    Some(Addr::from(Ipv4Addr::from(bytes)))
}
