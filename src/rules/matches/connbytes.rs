//! `-m connbytes`: how much a connection has transferred (net/netfilter/xt_connbytes.c).
//!
//! In Linux such a rule switches conntrack's accounting on (`nf_ct_force_acct`); without accounting it never matches.

use super::argument::{bang, push, unsigned};
use crate::conntrack::Direction;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::token::Token;
use crate::wire::Family;

/// `--connbytes-mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Packets,
    Bytes,
    Average,
}

/// `--connbytes-dir`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Original,
    Reply,
    Both,
}

const MODES: [(&str, Mode); 3] = [("packets", Mode::Packets), ("bytes", Mode::Bytes), ("avgpkt", Mode::Average)];
const SIDES: [(&str, Side); 3] = [("original", Side::Original), ("reply", Side::Reply), ("both", Side::Both)];

/// `-m connbytes`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnbytesMatch {
    /// `u64::MAX` where it has no end.
    range: Option<(u64, u64)>,
    invert: bool,
    mode: Option<Mode>,
    side: Option<Side>,
}

const CONNBYTES: u8 = 1;
const MODE: u8 = 2;
const DIR: u8 = 3;

impl Extension for ConnbytesMatch {
    const NAME: &'static str = "connbytes";
    const WANTS_CONNTRACK: bool = true;
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(CONNBYTES, &["--connbytes"]).invertible(),
        OptionSpec::new(MODE, &["--connbytes-mode"]),
        OptionSpec::new(DIR, &["--connbytes-dir"]),
    ];

    fn new(_: Family) -> ConnbytesMatch {
        ConnbytesMatch { range: None, invert: false, mode: None, side: None }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        match id {
            CONNBYTES => {
                let (from, to) = range(token)?;
                // The kernel is told an inverted range by its ends changing places, and so not of a single number.
                (self.range, self.invert) = (Some((from, to)), given.invert && from != to);
            }
            MODE => self.mode = Some(word(token, &MODES, "packets, bytes or avgpkt")?),
            _ => self.side = Some(word(token, &SIDES, "original, reply or both")?),
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match (self.range, self.mode, self.side) {
            (Some(_), Some(_), Some(_)) => Ok(()),
            _ => Err(whole
                .problem("connbytes needs --connbytes, --connbytes-mode and --connbytes-dir", "incomplete")
                .help("as in `--connbytes 1000000: --connbytes-mode bytes --connbytes-dir both`")),
        }
    }

    /// iptables prints 0:0 as 0, which reads back as everything; it is printed in full here.
    fn save(&self, out: &mut String, _: Family) {
        let (from, to) = self.range.unwrap_or((0, u64::MAX));
        push(out, format_args!("{} --connbytes {from}", bang(self.invert)));
        if to != u64::MAX {
            push(out, format_args!(":{to}"));
        }
        let mode = MODES.iter().find(|one| Some(one.1) == self.mode).map_or("", |one| one.0);
        let side = SIDES.iter().find(|one| Some(one.1) == self.side).map_or("", |one| one.0);
        push(out, format_args!(" --connbytes-mode {mode} --connbytes-dir {side}"));
    }
}

/// `from[:[to]]`.
fn range(token: &Token) -> Result<(u64, u64), Problem> {
    let end = |text: &str, default| if text.is_empty() { Some(default) } else { unsigned(text, u64::MAX) };
    let ends = match token.text.split_once(':') {
        None => unsigned(&token.text, u64::MAX).map(|from| (from, u64::MAX)),
        Some((from, to)) => end(from, 0).zip(end(to, u64::MAX)),
    };
    match ends {
        None => Err(Problem::new(token.span, format!("bad range `{}`", token.text), "expected FROM or FROM:TO")),
        Some((from, to)) if from > to => Err(Problem::new(token.span, "this range ends before it begins", "must rise")),
        Some(ends) => Ok(ends),
    }
}

fn word<T: Copy>(token: &Token, known: &[(&str, T)], names: &str) -> Result<T, Problem> {
    known.iter().find(|one| one.0 == token.text).map(|one| one.1).ok_or_else(|| {
        Problem::new(token.span, format!("unknown word `{}`", token.text), "not known").help(format!("write {names}"))
    })
}

impl Matcher for ConnbytesMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, _: &Context<'_>, world: &dyn World, (): &()) -> Answer {
        let traffic = |direction| world.traffic(direction);
        let counted = match self.side {
            Some(Side::Original) => traffic(Direction::Original),
            Some(Side::Reply) => traffic(Direction::Reply),
            Some(Side::Both) | None => traffic(Direction::Original)
                .zip(traffic(Direction::Reply))
                .map(|(there, back)| (there.0.saturating_add(back.0), there.1.saturating_add(back.1))),
        };
        // Without a connection it is never true, not even inverted.
        let Some((packets, bytes)) = counted else { return Answer::No };
        let value = match self.mode {
            Some(Mode::Packets) => packets,
            Some(Mode::Bytes) | None => bytes,
            Some(Mode::Average) => bytes.checked_div(packets).unwrap_or(0),
        };
        let (from, to) = self.range.unwrap_or((0, u64::MAX));
        ((from..=to).contains(&value) != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;

    /// Asked from iptables-legacy 1.8.9, but for 0:0.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (range, printed) in [
            ("--connbytes 100", "--connbytes 100"),
            ("--connbytes 100:200", "--connbytes 100:200"),
            ("! --connbytes 100:200", "! --connbytes 100:200"),
            ("--connbytes :200", "--connbytes 0:200"),
            ("--connbytes 100:", "--connbytes 100"),
            ("--connbytes :", "--connbytes 0"),
            ("--connbytes 5:18446744073709551615", "--connbytes 5"),
            ("--connbytes 0x10:020", "--connbytes 16:16"),
            ("! --connbytes 5:5", "--connbytes 5:5"),
            ("! --connbytes 5", "! --connbytes 5"),
            ("! --connbytes 0:", "! --connbytes 0"),
            ("--connbytes 0:0", "--connbytes 0:0"),
        ] {
            let words = format!("{range} --connbytes-dir both --connbytes-mode avgpkt");
            let value = read::<ConnbytesMatch>(Family::V4, &words).expect("good");
            let printed = format!("{printed} --connbytes-mode avgpkt --connbytes-dir both");
            assert_eq!(saved(&value, Family::V4), printed, "{words}");
            assert_eq!(read::<ConnbytesMatch>(Family::V4, &printed), Ok(value));
        }
        for words in [
            "--connbytes 200:100",
            "--connbytes 18446744073709551616",
            "--connbytes 1:2:3",
            "--connbytes \"\"",
            "--connbytes-dir foo",
            "--connbytes-mode foo",
        ] {
            assert!(read::<ConnbytesMatch>(Family::V4, words).is_err(), "{words}");
        }
    }

    fn ask(words: &str, traffic: Option<[(u64, u64); 2]>) -> bool {
        let rule = read::<ConnbytesMatch>(Family::V4, words).expect("good");
        let world = Told { traffic, ..Told::default() };
        rule.test(&context(&mut Packet { ..Packet::BLANK }, &mut [], Instant::ZERO), &world, &()) == Answer::Yes
    }

    #[test]
    fn modes_and_directions() {
        let traffic = Some([(4, 400), (2, 3000)]);
        for (words, expected) in [
            ("--connbytes 4:4 --connbytes-mode packets --connbytes-dir original", true),
            ("--connbytes 3000 --connbytes-mode bytes --connbytes-dir reply", true),
            ("--connbytes 3401 --connbytes-mode bytes --connbytes-dir both", false),
            ("! --connbytes 3401 --connbytes-mode bytes --connbytes-dir both", true),
            ("--connbytes 566:566 --connbytes-mode avgpkt --connbytes-dir both", true),
            ("--connbytes 1500 --connbytes-mode avgpkt --connbytes-dir reply", true),
        ] {
            assert_eq!(ask(words, traffic), expected, "{words}");
        }
        assert!(ask("--connbytes :0 --connbytes-mode avgpkt --connbytes-dir reply", Some([(1, 60), (0, 0)])));
        assert!(!ask("! --connbytes 1: --connbytes-mode bytes --connbytes-dir both", None), "no connection");
    }
}
