//! IRC: DCC offers of the client (nf_conntrack_irc.c, nf_nat_irc.c).
//!
//! A message is `PRIVMSG nick :\1DCC SEND name address port ...`, the address as one decimal number. It is read only where
//! it is the first of its segment.

use super::mangle::Text;
use super::{Call, Refused, search};
use crate::conntrack::expect::Follow;
use crate::conntrack::tuple::Direction;
use crate::wire::{Addr, proto};

/// What of a segment is looked at (`MAX_SEARCH_SIZE`).
const LOOKED_AT: usize = 4095;
/// The shortest `\1DCC` offer, from its blank and colon on.
const OFFER_MIN: usize = 26;
/// `AAAAAAAA P\1\n`
const NUMBERS_MIN: usize = 12;

const OFFERS: [&[u8]; 5] = [b"SEND ", b"CHAT ", b"MOVE ", b"TSEND ", b"SCHAT "];

/// An offer's address and port, and the bytes of the payload that say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Offer {
    at: usize,
    length: usize,
    addr: Addr,
    port: u16,
}

pub(super) fn help(call: &mut Call<'_>) -> Result<(), Refused> {
    if call.direction() == Direction::Reply || !call.is_established() {
        return Ok(());
    }
    let (original, reply) = (*call.tuple(Direction::Original), *call.tuple(Direction::Reply));
    let is_ours = |offer: &Offer| (offer.addr == original.src || offer.addr == reply.dst) && offer.port != 0;
    let payload = call.payload();
    let Some(offer) = look(&payload[..payload.len().min(LOOKED_AT)], is_ours) else { return Ok(()) };
    let mut expected = call.expectation(proto::TCP, None, reply.dst, offer.port);
    if !call.is_translated() {
        return call.expect(&expected);
    }
    expected.follow = Some(Follow { direction: Direction::Reply, port: offer.port });
    let port = call.expect_at_free_port(&mut expected)?;
    let text = Text::new(format_args!("{} {port}", reply.dst.v4_bits()));
    call.announce(offer.at, offer.length, text.bytes(), &expected)
}

/// The first offer of a segment that `is_ours`.
fn look(text: &[u8], is_ours: impl Fn(&Offer) -> bool) -> Option<Offer> {
    let mut at = 0;
    while at + 10 < text.len() && matches!(text[at], b' ' | b'\r' | b'\n') {
        at += 1;
    }
    if at + 10 < text.len() {
        text[at..at + 8].eq_ignore_ascii_case(b"PRIVMSG ").then_some(())?;
        at += 8;
    }
    while at + OFFER_MIN < text.len() {
        if !text[at..].starts_with(b" :") {
            at += 1;
            continue;
        }
        at += 2;
        text[at..].starts_with(b"\x01DCC ").then_some(())?;
        at += 5;
        // Where one of the words leads nowhere, the others are looked for behind it.
        for word in OFFERS {
            if !text[at..].starts_with(word) {
                continue;
            }
            at += word.len();
            if let Some(offer) = parse(text, at).filter(|offer| is_ours(offer)) {
                return Some(offer);
            }
        }
    }
    None
}

/// The numbers behind the first blank from `at` on (`parse_dcc`).
fn parse(text: &[u8], mut at: usize) -> Option<Offer> {
    while *text.get(at)? != b' ' {
        at += 1;
        // Enough for the rest has to be left.
        (at + NUMBERS_MIN <= text.len()).then_some(())?;
    }
    at += 1;
    text.get(at..)?.contains(&b'\n').then_some(())?;
    let begin = at;
    let (addr, length) = search::decimal(&text[at..]);
    at += length;
    at += text[at..].iter().take_while(|&&byte| byte == b' ').count();
    let (port, length) = search::decimal(&text[at..]);
    at += length;
    Some(Offer { at: begin, length: at - begin, addr: Addr::from_v4(addr as u32), port: port as u16 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &str) -> Option<(String, u32, u16)> {
        let offer = look(text.as_bytes(), |_| true)?;
        let said = String::from_utf8_lossy(&text.as_bytes()[offer.at..offer.at + offer.length]).into_owned();
        Some((said, offer.addr.v4_bits(), offer.port))
    }

    #[test]
    fn offers_are_found_where_linux_finds_them() {
        let whole = |text: &str| found(text).is_some();
        assert_eq!(
            found("PRIVMSG bob :\x01DCC SEND file 167837954 5001 1234\x01\r\n"),
            Some(("167837954 5001".into(), 0x0a01_0102, 5001))
        );
        assert!(whole("privmsg bob :\x01DCC CHAT chat 167837954 5001\x01\n"));
        assert!(whole(" \r\nPRIVMSG bob :\x01DCC TSEND x 167837954 5001\x01\n"));
        assert!(!whole("NOTICE bob :\x01DCC SEND file 167837954 5001 1234\x01\r\n"), "another command");
        assert!(!whole("PRIVMSG bob :hello \x01DCC SEND file 167837954 5001\x01\r\n"), "not at the message's start");
        assert!(!whole("PRIVMSG bob :\x01DCC GIVE file 167837954 5001 1234\x01\r\n"), "no such offer");
        assert!(!whole("PRIVMSG bob :\x01DCC SEND file 167837954 5001 1234\x01"), "no end of line");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(PRIVMSG )?[a ]{0,4}( :)?(\u{1}DCC )?(SEND |CHAT |TSEND )?[a0-9 \n]{0,40}") {
            for end in 0..=text.len() {
                let _ = look(&text.as_bytes()[..end], |offer| offer.port % 2 == 0);
            }
        }
    }
}
