//! The arguments of options: addresses, ports, flags, names and numbers, read as iptables reads them.
//!
//! Pure functions from a [`Token`] to a value or a [`Problem`] at its place.

use super::diagnostic::{Problem, nearest};
use super::limit::{self, BadRate};
use super::matches::{IcmpMatch, LimitMatch, PortRange, TcpFlags, TcpOption};
use super::names;
use super::rule::AddrMatch;
use super::targets::RejectWith;
use super::token::Token;
use crate::wire::{Addr, Family, tcp};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A number up to `max`, decimal, 0x hexadecimal or 0 octal, as `strtoul` with base 0 reads it.
pub(super) fn unsigned(text: &str, max: u32) -> Option<u32> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    // `from_str_radix` would take a sign.
    let plain = digits.chars().all(|c| c.is_digit(radix));
    u32::from_str_radix(digits, radix).ok().filter(|&number| plain && number <= max)
}

/// The option suffix that takes the other IP version's file: `--rules6` or `--rules`.
pub(super) const fn other_suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "6",
        Family::V6 => "",
    }
}

/// `-s`, `-d`: `address[/mask][,...]`.
pub(super) fn addresses(token: &Token, family: Family, invert: bool) -> Result<Vec<AddrMatch>, Problem> {
    let list: Vec<&str> = token.text.split(',').collect();
    if invert && list.len() > 1 {
        return Err(Problem::new(token.span, "`!` with several addresses", "a list cannot be inverted")
            .help("write one rule for each address, or a user chain"));
    }
    list.into_iter().map(|one| address(one.trim(), token, family, invert)).collect()
}

fn address(text: &str, token: &Token, family: Family, invert: bool) -> Result<AddrMatch, Problem> {
    let (address, mask) = match text.split_once('/') {
        Some((address, mask)) => (address, Some(mask)),
        None => (text, None),
    };
    let parsed = match family {
        Family::V4 => address_v4(address),
        Family::V6 => address.parse::<Ipv6Addr>().ok().map(Addr::from),
    };
    let addr = parsed.ok_or_else(|| bad_address(address, token, family))?;
    let mask = match mask {
        None => Addr::prefix_mask(family, family.bits()),
        Some(text) => mask_of(text, family).ok_or_else(|| {
            Problem::new(token.span, format!("invalid mask `{text}`"), "not a prefix length or a mask")
                .help(format!("a prefix length goes up to {}", family.bits()))
        })?,
    };
    // IPv4 rules look at the low 32 bits alone, so the net is put back into mapped form.
    let net = match family {
        Family::V4 => Addr::from_v4(addr.v4_bits() & mask.v4_bits()),
        Family::V6 => addr.and(mask),
    };
    let mask = match family {
        Family::V4 => Addr::from_v6(u128::from(mask.v4_bits())),
        Family::V6 => mask,
    };
    Ok(AddrMatch { net, mask, invert })
}

/// One to four decimal numbers; those left out are 0, so `10/8` is `10.0.0.0/8`.
fn address_v4(text: &str) -> Option<Addr> {
    let mut bytes = [0u8; 4];
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > 4 {
        return None;
    }
    for (byte, part) in bytes.iter_mut().zip(parts) {
        let plain = part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
        *byte = part.parse().ok().filter(|_| plain)?;
    }
    Some(Addr::from(Ipv4Addr::from(bytes)))
}

fn mask_of(text: &str, family: Family) -> Option<Addr> {
    if let Some(len) = unsigned(text, u32::from(family.bits())) {
        return Some(Addr::prefix_mask(family, len as u8));
    }
    match family {
        Family::V4 => text.parse::<Ipv4Addr>().ok().map(Addr::from),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(Addr::from),
    }
}

fn bad_address(text: &str, token: &Token, family: Family) -> Problem {
    let other = match family {
        Family::V4 => text.parse::<Ipv6Addr>().is_ok(),
        Family::V6 => text.parse::<Ipv4Addr>().is_ok(),
    };
    let (version, tool) = match family {
        Family::V4 => ("IPv4", "ip6tables"),
        Family::V6 => ("IPv6", "iptables"),
    };
    let problem = Problem::new(token.span, format!("`{text}` is not an {version} address"), "expected an address");
    if other {
        return problem.help(format!("give a file made by {tool}-save with --rules{} instead", other_suffix(family)));
    }
    match text.bytes().any(|byte| byte.is_ascii_alphabetic()) && family == Family::V4 {
        true => problem.help("host names are not looked up: write the address"),
        false => problem,
    }
}

fn port(text: &str, token: &Token) -> Result<u16, Problem> {
    if let Some(number) = unsigned(text, 65_535) {
        return Ok(number as u16);
    }
    names::service_port(text).ok_or_else(|| {
        let near = nearest(text, names::service_names());
        Problem::new(token.span, format!("`{text}` is not a port"), "expected a number up to 65535").maybe_help(
            match near {
                Some(near) => Some(format!("did you mean `{near}`?")),
                None => text.bytes().any(|b| b.is_ascii_alphabetic()).then(|| "write the port's number".to_owned()),
            },
        )
    })
}

/// `port`, `first:last`, `:last`, `first:`.
pub(super) fn port_range(token: &Token, invert: bool) -> Result<PortRange, Problem> {
    let (low, high) = match token.text.split_once(':') {
        None => {
            let single = port(&token.text, token)?;
            (single, single)
        }
        Some((low, high)) => (
            if low.is_empty() { 0 } else { port(low, token)? },
            if high.is_empty() { u16::MAX } else { port(high, token)? },
        ),
    };
    if low > high {
        return Err(Problem::new(token.span, "this port range ends before it begins", "first greater than last"));
    }
    Ok(PortRange { low, high, invert })
}

/// Slots of a multiport list (`XT_MULTI_PORTS`).
const MULTIPORT_SLOTS: usize = 15;

/// `--dports` and its like: ports and ranges separated by commas.
pub(super) fn port_list(token: &Token) -> Result<Vec<(u16, u16)>, Problem> {
    let mut ports = Vec::new();
    let mut slots = 0;
    for item in token.text.split(',') {
        let range = match item.split_once(':') {
            None => {
                let single = port(item, token)?;
                (single, single)
            }
            Some((low, high)) => {
                let range = (port(low, token)?, port(high, token)?);
                if range.0 >= range.1 {
                    return Err(Problem::new(token.span, format!("invalid port range `{item}`"), "must rise"));
                }
                range
            }
        };
        slots += if range.0 == range.1 { 1 } else { 2 };
        ports.push(range);
    }
    match slots > MULTIPORT_SLOTS {
        true => Err(Problem::new(token.span, format!("more than {MULTIPORT_SLOTS} ports"), "a range counts as two")
            .help("write two rules")),
        false => Ok(ports),
    }
}

/// What `--syn` stands for: `--tcp-flags FIN,SYN,RST,ACK SYN`.
pub(super) const fn syn(invert: bool) -> TcpFlags {
    TcpFlags { mask: tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK, comp: tcp::SYN, invert }
}

/// `--tcp-flags MASK COMP`.
pub(super) fn tcp_flags(mask: &Token, comp: &Token, invert: bool) -> Result<TcpFlags, Problem> {
    Ok(TcpFlags { mask: flag_list(mask)?, comp: flag_list(comp)?, invert })
}

fn flag_list(token: &Token) -> Result<u8, Problem> {
    let mut flags = 0;
    for word in token.text.split(',').filter(|word| !word.is_empty()) {
        flags |= match word.to_ascii_uppercase().as_str() {
            "ALL" => names::TCP_FLAGS_ALL,
            "NONE" => 0,
            name => names::TCP_FLAGS.iter().find(|flag| flag.0 == name).map(|flag| flag.1).ok_or_else(|| {
                Problem::new(token.span, format!("unknown TCP flag `{word}`"), "not a flag")
                    .help("flags are FIN, SYN, RST, PSH, ACK, URG, ALL, NONE")
            })?,
        };
    }
    Ok(flags)
}

/// `--tcp-option N`.
pub(super) fn tcp_option(token: &Token, invert: bool) -> Result<TcpOption, Problem> {
    match unsigned(&token.text, 255) {
        Some(kind) if kind != 0 => Ok(TcpOption { kind: kind as u8, invert }),
        _ => Err(Problem::new(token.span, format!("bad TCP option `{}`", token.text), "expected a number, 1 to 255")),
    }
}

/// `--icmp-type`, `--icmpv6-type`: a name, a type, or `type/code`.
pub(super) fn icmp_type(token: &Token, family: Family, invert: bool) -> Result<IcmpMatch, Problem> {
    let text = token.text.to_ascii_lowercase();
    let known = names::icmp_names(family);
    let begins = |name: &str| name.to_ascii_lowercase().starts_with(&text);
    let mut found = known.iter().filter(|entry| !text.is_empty() && begins(entry.0));
    if let Some(first) = found.next() {
        // As iptables: an exact name needs no second look, otherwise only one may begin so.
        let exact = known.iter().find(|entry| entry.0.eq_ignore_ascii_case(&text));
        if let (None, Some(second)) = (exact, found.next()) {
            let message = format!("`{}` could be `{}` or `{}`", token.text, first.0, second.0);
            return Err(Problem::new(token.span, message, "write it in full"));
        }
        let &(_, kind, code) = exact.unwrap_or(first);
        return Ok(IcmpMatch { kind, code, invert });
    }
    let (kind, code) = match text.split_once('/') {
        Some((kind, code)) => (kind, Some(code)),
        None => (text.as_str(), None),
    };
    let unknown = || {
        let near = nearest(&token.text, known.iter().map(|entry| entry.0));
        Problem::new(token.span, format!("unknown ICMP type `{}`", token.text), "expected a name, TYPE or TYPE/CODE")
            .maybe_help(near.map(|near| format!("did you mean `{near}`?")))
    };
    let kind = unsigned(kind, 255).ok_or_else(unknown)? as u8;
    let code = match code {
        Some(code) => Some(unsigned(code, 255).ok_or_else(unknown)? as u8),
        None => None,
    };
    // For IPv4 type 255 is "any", whatever code it has.
    let code = if family == Family::V4 && kind == 255 { None } else { code };
    Ok(IcmpMatch { kind, code, invert })
}

/// `--state` and, with `nat`, `--ctstate`.
pub(super) fn states(token: &Token, nat: bool) -> Result<u16, Problem> {
    let known = if nat { names::STATES } else { &names::STATES[..5] };
    bits(token, known, "state")
}

/// `--ctstatus`.
pub(super) fn statuses(token: &Token) -> Result<u16, Problem> {
    bits(token, names::STATUSES, "status")
}

/// Words of a list, each possibly shortened, any case; their bits together.
fn bits(token: &Token, known: &[(&'static str, u16)], what: &str) -> Result<u16, Problem> {
    let mut bits = 0;
    for word in token.text.split(',') {
        let upper = word.to_ascii_uppercase();
        let found = known.iter().find(|entry| !word.is_empty() && entry.0.starts_with(&upper));
        bits |= found.map(|entry| entry.1).ok_or_else(|| {
            let near = nearest(word, known.iter().map(|entry| entry.0));
            let names: Vec<&str> = known.iter().map(|entry| entry.0).collect();
            Problem::new(token.span, format!("bad {what} `{word}`"), "expected a list without blanks").help(
                match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known are {}", names.join(", ")),
                },
            )
        })?;
    }
    Ok(bits)
}

/// `--limit`.
pub(super) fn limit_rate(token: &Token) -> Result<u32, Problem> {
    LimitMatch::parse_rate(&token.text).map_err(|bad| match bad {
        BadRate::Syntax => Problem::new(token.span, format!("bad rate `{}`", token.text), "expected N/unit")
            .help("the unit is second, minute, hour or day: `--limit 60/minute`"),
        BadRate::TooFast => Problem::new(token.span, format!("rate `{}` is too fast", token.text), "over 10000/second"),
    })
}

/// `--limit-burst`.
pub(super) fn limit_burst(token: &Token) -> Result<u32, Problem> {
    unsigned(&token.text, limit::BURST_MAX).ok_or_else(|| {
        Problem::new(token.span, format!("bad burst `{}`", token.text), "expected a number")
            .help(format!("a burst is at most {}", limit::BURST_MAX))
    })
}

/// Longest comment in bytes (`XT_MAX_COMMENT_LEN` less its end).
const COMMENT_MAX: usize = 255;

/// `--comment`.
pub(super) fn comment(token: &Token) -> Result<String, Problem> {
    match token.text.len() > COMMENT_MAX {
        true => Err(Problem::new(token.span, format!("comment longer than {COMMENT_MAX} bytes"), "too long")),
        false => Ok(token.text.clone()),
    }
}

/// Longest log prefix in bytes.
pub(super) const LOG_PREFIX_MAX: usize = 29;

/// `--log-prefix`; what is too long is cut, as iptables does.
pub(super) fn log_prefix(token: &Token) -> Result<String, Problem> {
    if token.text.is_empty() {
        return Err(Problem::new(token.span, "empty log prefix", "expected some text"));
    }
    let cut = (0..=token.text.len().min(LOG_PREFIX_MAX)).rev().find(|&at| token.text.is_char_boundary(at));
    Ok(token.text[..cut.unwrap_or(0)].to_owned())
}

/// `--log-level`: 0 to 7, or a name.
pub(super) fn log_level(token: &Token) -> Result<u8, Problem> {
    if let Some(level) = unsigned(&token.text, 7) {
        return Ok(level as u8);
    }
    names::LOG_LEVELS.iter().find(|level| level.0 == token.text).map(|level| level.1).ok_or_else(|| {
        let near = nearest(&token.text, names::LOG_LEVELS.iter().map(|level| level.0));
        Problem::new(token.span, format!("unknown log level `{}`", token.text), "expected 0 to 7 or a name")
            .maybe_help(near.map(|near| format!("did you mean `{near}`?")))
    })
}

/// `--reject-with`: a name, its short form, or a beginning of either (the first that fits, as iptables).
pub(super) fn reject_with(token: &Token, family: Family) -> Result<RejectWith, Problem> {
    let text = token.text.to_ascii_lowercase();
    let known = names::reject_names(family);
    let fits = |entry: &&(&str, &str, RejectWith)| entry.0.starts_with(&text) || entry.1.starts_with(&text);
    let found = known.iter().find(|entry| !text.is_empty() && fits(entry));
    found.map(|entry| entry.2).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|entry| entry.0).collect();
        Problem::new(token.span, format!("unknown reject type `{}`", token.text), "not for this IP version").help(
            match nearest(&token.text, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known are {}", names.join(", ")),
            },
        )
    })
}
