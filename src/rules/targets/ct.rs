//! `-j CT`: what conntrack is to do with the packet it has not seen yet (xt_CT.c): [`Ct`].
//!
//! The first CT or NOTRACK rule that a packet meets speaks; later ones find the template attached and leave it.

use super::argument;
use crate::conntrack::{CtInfo, Helper, REFUSED_HELPERS, Template, Zone, ZoneDirection};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::{Problem, nearest};
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::names;
use crate::rules::registry::Registry;
use crate::rules::rule::TableName;
use crate::rules::value;
use crate::wire::{Family, proto};
use core::fmt::Write;

const NOTRACK: u8 = 1;
const HELPER: u8 = 2;
const TIMEOUT: u8 = 3;
const CTEVENTS: u8 = 4;
const EXPEVENTS: u8 = 5;
const ZONE_ORIG: u8 = 6;
const ZONE_REPLY: u8 = 7;
const ZONE: u8 = 8;

/// Longest helper's name (`XT_CT`'s `helper[16]`).
const HELPER_MAX: usize = 15;
/// Longest name of a timeout policy (`timeout[32]`).
const TIMEOUT_MAX: usize = 31;

/// Events in the order they are printed.
const EVENTS: &[&str] =
    &["new", "related", "destroy", "reply", "assured", "protoinfo", "helper", "mark", "natseqinfo", "secmark"];
/// Events of expectations.
const EXPECTATION_EVENTS: &[&str] = &["new"];

const V4: &[Family] = &[Family::V4];
const BOTH: &[Family] = &[Family::V4, Family::V6];

/// Linux's helpers: name, protocol, IP versions (asked of 6.18).
const HELPERS: &[(&str, u8, &[Family])] = &[
    ("ftp", proto::TCP, BOTH),
    ("tftp", proto::UDP, BOTH),
    ("amanda", proto::UDP, BOTH),
    ("irc", proto::TCP, V4),
    ("sip", proto::TCP, BOTH),
    ("sip", proto::UDP, BOTH),
    ("pptp", proto::TCP, V4),
    ("sane", proto::TCP, BOTH),
    ("netbios-ns", proto::UDP, V4),
    ("snmp", proto::UDP, V4),
    ("Q.931", proto::TCP, BOTH),
    ("RAS", proto::UDP, BOTH),
    ("H.245", proto::UDP, BOTH),
];

/// See the module's head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ct {
    /// `--notrack`: the packet is UNTRACKED, and the rest means nothing.
    pub notrack: bool,
    /// `--helper`; empty for none.
    pub helper: String,
    /// `--timeout`; empty for none.
    pub timeout: String,
    /// `--ctevents`: bit n is the n-th of the names; 0 is all.
    pub events: u16,
    /// `--expevents`, likewise.
    pub expectation_events: u16,
    /// `--zone`, `--zone-orig`, `--zone-reply`.
    pub zone: Zone,
    /// The zone's number is the packet's mark.
    pub zone_is_mark: bool,
}

impl Ct {
    fn read_zone(&mut self, given: &Given<'_>, direction: ZoneDirection) -> Result<(), Problem> {
        let token = given.argument();
        self.zone_is_mark = token.text.eq_ignore_ascii_case("mark");
        let id = match self.zone_is_mark {
            true => 0,
            false => value::unsigned(&token.text, u32::from(u16::MAX)).ok_or_else(|| {
                Problem::new(token.span, format!("`{}` is no zone", token.text), "expected a number, 0 to 65535")
                    .help("or `mark`: the zone is the lower half of the packet's mark")
            })?,
        };
        // Zone 0 is that of no option, in whatever direction.
        self.zone = match id != 0 || self.zone_is_mark {
            true => Zone { id: id as u16, direction },
            false => Zone::DEFAULT,
        };
        Ok(())
    }

    fn check_helper(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        let name = self.helper.as_str();
        let mut known = HELPERS.iter().filter(|helper| helper.0 == name).peekable();
        if known.peek().is_none() {
            let near = nearest(name, HELPERS.iter().map(|helper| helper.0));
            let all: Vec<&str> = HELPERS.iter().map(|helper| helper.0).collect();
            return Err(whole.problem(format!("there is no helper `{name}`"), "not one of Linux").help(match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known are {}", all.join(", ")),
            }));
        }
        let protos: Vec<u8> = known.filter(|helper| helper.2.contains(&whole.family)).map(|helper| helper.1).collect();
        if protos.is_empty() {
            return Err(whole.problem(format!("the helper `{name}` is for IPv4 alone"), "not for this file"));
        }
        if !protos.iter().any(|&number| whole.is_proto(number)) {
            let wanted: Vec<String> =
                protos.iter().map(|&number| format!("-p {}", names::protocol_name(number))).collect();
            return Err(whole
                .problem(format!("the helper `{name}` needs its protocol in the rule"), "which protocol?")
                .help(format!("add {}", wanted.join(" or "))));
        }
        Ok(())
    }
}

/// Names of a list to bits.
fn events(given: &Given<'_>, known: &[&str]) -> Result<u16, Problem> {
    let token = given.argument();
    let mut bits = 0;
    for word in token.text.split(',') {
        let at = known.iter().position(|name| *name == word).ok_or_else(|| {
            Problem::new(token.span, format!("unknown event `{word}`"), "expected a list without blanks").help(
                match nearest(word, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known are {}", known.join(", ")),
                },
            )
        })?;
        bits |= 1 << at;
    }
    Ok(bits)
}

fn event_names(bits: u16, known: &[&str]) -> String {
    let set: Vec<&str> =
        known.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1).map(|(_, name)| *name).collect();
    set.join(",")
}

/// A name of at most `max` bytes.
fn short_name(given: &Given<'_>, max: usize) -> Result<String, Problem> {
    let token = given.argument();
    match token.text.len() > max {
        true => Err(Problem::new(token.span, format!("this name is longer than {max} bytes"), "too long")),
        false => Ok(token.text.clone()),
    }
}

impl Extension for Ct {
    const NAME: &'static str = "CT";
    const TABLES: &'static [TableName] = &[TableName::Raw];
    /// Linux lets several zone options stand in a row and puts them together in a way nobody would guess (`--zone-orig 7
    /// --zone-reply 8` is zone 8 for both). They exclude each other here.
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(NOTRACK, &["--notrack"]).arguments(0),
        OptionSpec::new(HELPER, &["--helper"]),
        OptionSpec::new(TIMEOUT, &["--timeout"]),
        OptionSpec::new(CTEVENTS, &["--ctevents"]),
        OptionSpec::new(EXPEVENTS, &["--expevents"]),
        OptionSpec::new(ZONE_ORIG, &["--zone-orig"]).group(1),
        OptionSpec::new(ZONE_REPLY, &["--zone-reply"]).group(1),
        OptionSpec::new(ZONE, &["--zone"]).group(1),
    ];

    fn new(_: Family) -> Ct {
        Ct {
            notrack: false,
            helper: String::new(),
            timeout: String::new(),
            events: 0,
            expectation_events: 0,
            zone: Zone::DEFAULT,
            zone_is_mark: false,
        }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            NOTRACK => self.notrack = true,
            HELPER => self.helper = short_name(given, HELPER_MAX)?,
            TIMEOUT => self.timeout = short_name(given, TIMEOUT_MAX)?,
            CTEVENTS => self.events = events(given, EVENTS)?,
            EXPEVENTS => self.expectation_events = events(given, EXPECTATION_EVENTS)?,
            ZONE_ORIG => self.read_zone(given, ZoneDirection::Original)?,
            ZONE_REPLY => self.read_zone(given, ZoneDirection::Reply)?,
            _ => self.read_zone(given, ZoneDirection::Both)?,
        }
        Ok(())
    }

    /// What an untracked packet would have had is not looked at (`xt_ct_tg_check`).
    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match self.notrack || self.helper.is_empty() {
            true => Ok(()),
            false => self.check_helper(whole),
        }
    }

    /// As `xt_ct_tg_check`: only to leave packets alone takes no conntrack.
    fn wants_conntrack(&self) -> bool {
        !self.notrack
    }

    fn save(&self, out: &mut String, _: Family) {
        if self.notrack {
            out.push_str(" --notrack");
        }
        for (option, name) in [("--helper", &self.helper), ("--timeout", &self.timeout)] {
            if !name.is_empty() {
                write!(out, " {option} {}", argument::name(name)).unwrap_or_default();
            }
        }
        for (option, bits, known) in
            [("--ctevents", self.events, EVENTS), ("--expevents", self.expectation_events, EXPECTATION_EVENTS)]
        {
            if bits != 0 {
                write!(out, " {option} {}", event_names(bits, known)).unwrap_or_default();
            }
        }
        if self.zone_is_mark || self.zone.id != 0 {
            out.push_str(match self.zone.direction {
                ZoneDirection::Both => " --zone ",
                ZoneDirection::Original => " --zone-orig ",
                ZoneDirection::Reply => " --zone-reply ",
            });
            match self.zone_is_mark {
                true => out.push_str("mark"),
                false => write!(out, "{}", self.zone.id).unwrap_or_default(),
            }
        }
    }

    fn not_honoured(&self) -> Option<String> {
        if self.notrack {
            return None;
        }
        let mut left_out = Vec::new();
        if let Some((_, reason)) = REFUSED_HELPERS.iter().find(|(name, _)| *name == self.helper) {
            left_out.push(format!("--helper {}: {reason}", self.helper));
        }
        if !self.timeout.is_empty() {
            left_out.push(format!("--timeout {}: timeouts are those of the configuration", self.timeout));
        }
        if self.events != 0 {
            left_out.push("--ctevents: listeners are told all events".to_owned());
        }
        if self.expectation_events != 0 {
            left_out.push("--expevents: expectations have no events".to_owned());
        }
        (!left_out.is_empty()).then(|| left_out.join("; "))
    }
}

/// Leaves `template` for conntrack, unless a rule before has left one.
pub(super) fn give(context: &mut Context<'_>, template: Template) {
    if !context.template.given {
        if template.notrack {
            // At once, also for rules that follow in raw.
            context.info = CtInfo::Untracked;
        }
        context.template = Template { given: true, ..template };
    }
}

impl Action for Ct {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// It decides how conntrack looks at this very packet: a verdict kept from an earlier one would leave that out.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, _: &mut dyn World, (): &()) -> Outcome {
        let template = match self.notrack {
            true => Template::NOTRACK,
            false => {
                let helper = Helper::from_name(&self.helper);
                Template { zone: self.zone, zone_is_mark: self.zone_is_mark, helper, ..Template::DEFAULT }
            }
        };
        give(context, template);
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use crate::rules::diagnostic::Span;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::rules::rule::{ProtoMatch, Rule};
    use crate::time::Instant;

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then.
    const SAVED: &[(&str, &str)] = &[
        ("", ""),
        ("--notrack", "--notrack"),
        ("--notrack --zone 3", "--notrack --zone 3"),
        ("--zone 3", "--zone 3"),
        ("--zone 0", ""),
        ("--zone-orig 0", ""),
        ("--zone 0x10", "--zone 16"),
        ("--zone MARK", "--zone mark"),
        ("--zone-orig 7", "--zone-orig 7"),
        ("--zone-reply 7", "--zone-reply 7"),
        ("--zone-reply mark", "--zone-reply mark"),
        ("--helper ftp", "--helper ftp"),
        ("--helper ftp --notrack", "--notrack --helper ftp"),
        ("--notrack --timeout x", "--notrack --timeout x"),
        ("--helper \"\"", ""),
        ("--ctevents destroy,new", "--ctevents new,destroy"),
        (
            "--ctevents new,related,destroy,reply,assured,protoinfo,helper,mark,natseqinfo,secmark",
            "--ctevents new,related,destroy,reply,assured,protoinfo,helper,mark,natseqinfo,secmark",
        ),
        ("--expevents new,new", "--expevents new"),
        (
            "--zone 3 --expevents new --ctevents new --helper ftp",
            "--helper ftp --ctevents new --expevents new --zone 3",
        ),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, expected) in SAVED {
            let ct: Ct = read(Family::V4, words).expect(words);
            assert_eq!(saved(&ct, Family::V4), *expected, "{words}");
            assert_eq!(read::<Ct>(Family::V4, expected).as_ref(), Ok(&ct), "{expected}");
        }
        for words in [
            "--zone 65536",
            "--zone x",
            "--ctevents new,bad",
            "--ctevents \"\"",
            "--ctevents NEW",
            "--expevents destroy",
        ] {
            assert!(read::<Ct>(Family::V4, words).is_err(), "{words}");
        }
    }

    fn checked(words: &str, family: Family, proto: Option<ProtoMatch>) -> Result<(), String> {
        let ct: Ct = read(family, words).expect(words);
        let rule = Rule { proto, ..Rule::default() };
        let whole = Whole { seen: &[], span: Span::default(), family, table: TableName::Raw, rule: &rule };
        ct.check(&whole).map_err(|problem| problem.message)
    }

    /// Every line as iptables-legacy-restore and 6.18 took or refused it.
    #[test]
    fn a_helper_needs_its_protocol() {
        let is = |number| Some(ProtoMatch { number, invert: false });
        let cases = [
            ("--helper ftp", Family::V4, is(6), true),
            ("--helper ftp", Family::V6, is(6), true),
            ("--helper ftp", Family::V4, is(17), false),
            ("--helper ftp", Family::V4, None, false),
            ("--helper tftp", Family::V4, Some(ProtoMatch { number: 17, invert: true }), false),
            ("--helper sip", Family::V4, is(6), true),
            ("--helper sip", Family::V6, is(17), true),
            ("--helper pptp", Family::V6, is(6), false),
            ("--helper irc", Family::V6, is(6), false),
            ("--helper H.245", Family::V4, is(6), false),
            ("--helper ftp-2121", Family::V4, is(6), false),
            ("--helper nosuch --notrack", Family::V4, is(6), true),
            ("--zone 3", Family::V4, None, true),
        ];
        for (words, family, proto, good) in cases {
            assert_eq!(checked(words, family, proto).is_ok(), good, "{words} {family:?} {proto:?}");
        }
    }

    #[test]
    fn what_is_left_out_is_said() {
        for (words, said) in [
            ("--helper ftp", false),
            ("--helper sip", true),
            ("--timeout x", true),
            ("--ctevents new", true),
            ("--expevents new", true),
            ("--notrack --helper ftp", false),
            ("--zone 3", false),
        ] {
            assert_eq!(read::<Ct>(Family::V4, words).expect(words).not_honoured().is_some(), said, "{words}");
        }
    }

    #[test]
    fn the_first_rule_speaks() {
        let mut packet = Packet::BLANK;
        let mut context = context(&mut packet, &mut [], Instant::from_secs(1));
        let run = |words: &str, context: &mut Context<'_>| {
            let ct: Ct = read(Family::V4, words).expect(words);
            assert_eq!(ct.run(context, &mut Told::default(), &()), Outcome::Continue);
        };
        run("--zone-orig mark", &mut context);
        run("--notrack", &mut context);
        // The mark counts as it is when raw is done.
        context.mark = 0x2_0007;
        let template = context.template.resolved(context.mark);
        assert_eq!((template.zone.id, template.zone.direction), (7, ZoneDirection::Original));
        assert!(!template.notrack);
        context.template = Template::DEFAULT;
        run("--notrack --zone 3", &mut context);
        assert_eq!(context.template, Template::NOTRACK);
    }
}
