//! For tests of the matches: tables of what is read and printed, and packets to ask them about.

use crate::device::PortId;
use crate::packet::Packet;
use crate::rules::context::Context;
use crate::rules::diagnostic::Span;
use crate::rules::extension::{Answer, Extension, Matcher, Whole};
use crate::rules::extension_testing::{Told, context, read, saved};
use crate::rules::rule::{ProtoMatch, Rule, TableName};
use crate::time::Instant;
use crate::wire::{Family, ethernet, ipv4};

/// Each pair: what is read, and what `iptables-save` 1.8.9 printed for it. What is printed reads back as the same.
pub(super) fn saves<E: Extension>(family: Family, pairs: &[(&str, &str)]) {
    for (words, printed) in pairs {
        let value = read::<E>(family, words).unwrap_or_else(|bad| panic!("{words}: {bad}"));
        assert_eq!(saved(&value, family), *printed, "{words}");
        assert_eq!(read::<E>(family, printed).as_ref(), Ok(&value), "{words}");
    }
}

/// Words that iptables refuses, or that we do.
pub(super) fn refuses<E: Extension>(family: Family, lines: &[&str]) {
    for words in lines {
        let value = read::<E>(family, words);
        assert!(value.is_err(), "{words} is read as {value:?}");
    }
}

/// What [`Extension::check`] says of `words` in a rule with this `-p`.
pub(super) fn checked<E: Extension>(family: Family, proto: Option<u8>, words: &str) -> Result<(), String> {
    let value = read::<E>(family, words)?;
    let given = |name: &str| words.split(' ').any(|word| word == name);
    let seen: Vec<u8> =
        E::OPTIONS.iter().filter(|spec| spec.names.iter().any(|name| given(name))).map(|spec| spec.id).collect();
    let proto = proto.map(|number| ProtoMatch { number, invert: false });
    let rule = Rule { proto, ..Rule::default() };
    let whole = Whole { seen: &seen, span: Span::default(), family, table: TableName::Mangle, rule: &rule };
    value.check(&whole).map_err(|problem| problem.message)
}

const FROM: [u8; 6] = [2, 0, 0, 0, 0, 0xc];
const TO: [u8; 6] = [2, 0, 0, 0, 0, 0xa];

/// An IPv4 frame from 10.1.0.2 to 10.2.0.2, TTL 64, TOS 0x0b.
pub(super) fn v4(proto: u8, l4: &[u8]) -> Vec<u8> {
    let mut frame = [&TO[..], &FROM, &[8, 0]].concat();
    frame.extend([0x45, 0x0b, 0, 20 + l4.len() as u8, 0, 1, 0x40, 0, 64, proto, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2]);
    ipv4::set_checksum(&mut frame[14..]);
    frame.extend(l4);
    frame
}

/// An IPv6 frame from fd01::2 to fd02::2, hop limit 64, traffic class 0x0b; `next` is the first header of `rest`.
pub(super) fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut frame = [&TO[..], &FROM, &[0x86, 0xdd, 0x60, 0xb0, 0, 0, 0, rest.len() as u8, next, 64]].concat();
    for net in [1, 2] {
        frame.extend([0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }
    frame.extend(rest);
    frame
}

/// The word of the match `words` on `frame`.
pub(super) fn ask<M: Matcher<State = ()>>(words: &str, frame: &[u8]) -> Answer {
    ask_with::<M>(words, frame, |_, _| {})
}

/// The same, once `set` has changed what it likes.
pub(super) fn ask_with<M: Matcher<State = ()>>(
    words: &str,
    frame: &[u8],
    set: impl FnOnce(&mut Context<'_>, &mut Told),
) -> Answer {
    let family = match ethernet::ethertype(frame) {
        ethernet::IPV4 => Family::V4,
        _ => Family::V6,
    };
    let matched = read::<M>(family, words).unwrap_or_else(|bad| panic!("{words}: {bad}"));
    let mut packet = Packet::parse(frame, PortId::LAN, true).expect("a packet");
    let (mut frame, mut world) = (frame.to_vec(), Told::default());
    let mut context = context(&mut packet, &mut frame, Instant::from_secs(1));
    set(&mut context, &mut world);
    matched.test(&context, &world, &())
}
