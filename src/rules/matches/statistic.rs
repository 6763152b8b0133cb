//! `-m statistic`: some packets, by chance or by number (net/netfilter/xt_statistic.c).

use super::argument::{bang, number32, push};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::schedule;
use crate::wire::Family;
use core::sync::atomic::{AtomicU32, Ordering};

/// What a probability of 1 is (`0x80000000` of libxt_statistic.c).
const CERTAIN: u32 = 1 << 31;

/// `--mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Random,
    Nth,
}

/// `-m statistic`. What the other mode asks for is not kept when the rule is checked: giving it is an error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatisticMatch {
    mode: Option<Mode>,
    invert: bool,
    /// In 1/2^31.
    probability: u32,
    /// Every how many packets; 0 until it is said.
    every: u32,
    /// Which of them, from 0.
    packet: u32,
}

const MODE: u8 = 1;
const PROBABILITY: u8 = 2;
const EVERY: u8 = 3;
const PACKET: u8 = 4;

impl Extension for StatisticMatch {
    const NAME: &'static str = "statistic";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(MODE, &["--mode"]),
        OptionSpec::new(PROBABILITY, &["--probability"]).invertible(),
        OptionSpec::new(EVERY, &["--every"]).invertible(),
        OptionSpec::new(PACKET, &["--packet"]),
    ];

    fn new(_: Family) -> StatisticMatch {
        StatisticMatch { mode: None, invert: false, probability: 0, every: 0, packet: 0 }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            MODE => self.mode = Some(mode(given)?),
            PROBABILITY => (self.probability, self.invert) = (probability(given)?, given.invert),
            EVERY => (self.every, self.invert) = (number32(given, 1, u32::MAX)?, given.invert),
            _ => self.packet = number32(given, 0, u32::MAX)?,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        let needed: &[u8] = match self.mode {
            None => return Err(whole.problem("statistic without --mode", "incomplete").help(MODES)),
            Some(Mode::Random) => &[PROBABILITY],
            Some(Mode::Nth) => &[EVERY, PACKET],
        };
        let given = [PROBABILITY, EVERY, PACKET].iter().filter(|&&id| whole.has(id));
        if !given.eq(needed) {
            return Err(whole.problem("options that do not fit the mode", "does not go together").help(MODES));
        }
        if self.mode == Some(Mode::Nth) && self.packet >= self.every {
            return Err(whole
                .problem(format!("--packet {} is none of {}", self.packet, self.every), "never matches")
                .help("packets are counted from 0"));
        }
        Ok(())
    }

    fn save(&self, out: &mut String, _: Family) {
        let invert = bang(self.invert);
        match self.mode {
            Some(Mode::Random) | None => {
                let probability = f64::from(self.probability) / f64::from(CERTAIN);
                push(out, format_args!(" --mode random{invert} --probability {probability:.11}"));
            }
            Some(Mode::Nth) => {
                push(out, format_args!(" --mode nth{invert} --every {} --packet {}", self.every, self.packet));
            }
        }
    }
}

const MODES: &str = "write `--mode random --probability P` or `--mode nth --every N --packet P`";

fn mode(given: &Given<'_>) -> Result<Mode, Problem> {
    let token = given.argument();
    match token.text.as_str() {
        "random" => Ok(Mode::Random),
        "nth" => Ok(Mode::Nth),
        _ => Err(Problem::new(token.span, format!("unknown mode `{}`", token.text), "not a mode").help(MODES)),
    }
}

/// A number from 0 to 1, rounded to 1/2^31.
fn probability(given: &Given<'_>) -> Result<u32, Problem> {
    let token = given.argument();
    let plain = token.text.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let value = token.text.parse::<f64>().ok().filter(|value| plain && (0.0..=1.0).contains(value));
    value.map(|value| (value * f64::from(CERTAIN)).round() as u32).ok_or_else(|| {
        Problem::new(token.span, format!("bad probability `{}`", token.text), "expected a number")
            .help("a number from 0 to 1, like 0.25")
    })
}

impl Matcher for StatisticMatch {
    /// Packets since the last that matched.
    type State = AtomicU32;

    fn state(&self, _: &mut Registry) -> AtomicU32 {
        AtomicU32::new(self.every.saturating_sub(1 + self.packet))
    }

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, _: &Context<'_>, world: &dyn World, state: &AtomicU32) -> Answer {
        let yes = match self.mode {
            Some(Mode::Random) | None => world.random() & (CERTAIN - 1) < self.probability,
            Some(Mode::Nth) => {
                let last = self.every.saturating_sub(1);
                let step = |count| Some(if count >= last { 0 } else { count + 1 });
                // Neither order nor visibility of anything else depends on it; the closure always gives a value.
                schedule::point();
                state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok_and(|count| count >= last)
            }
        };
        (yes != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;

    fn rule(words: &str) -> StatisticMatch {
        read(Family::V4, words).unwrap_or_else(|bad| panic!("{words}: {bad}"))
    }

    /// Asked from iptables-legacy 1.8.9.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, printed) in [
            ("--mode random --probability 0.33", "--mode random --probability 0.33000000007"),
            ("--mode random ! --probability 0.5", "--mode random ! --probability 0.50000000000"),
            ("--mode random --probability 0", "--mode random --probability 0.00000000000"),
            ("--mode random --probability 1", "--mode random --probability 1.00000000000"),
            ("--mode random --probability 0.33333333349", "--mode random --probability 0.33333333349"),
            ("--mode random --probability 1e-3", "--mode random --probability 0.00100000016"),
            ("--mode random --probability .25", "--mode random --probability 0.25000000000"),
            ("--mode random --probability 0.0000000004", "--mode random --probability 0.00000000047"),
            ("--mode random --probability 0.99999999999", "--mode random --probability 1.00000000000"),
            ("--mode nth --every 3 --packet 0", "--mode nth --every 3 --packet 0"),
            ("--packet 2 --mode nth ! --every 3", "--mode nth ! --every 3 --packet 2"),
            ("--mode nth --every 4294967295 --packet 5", "--mode nth --every 4294967295 --packet 5"),
        ] {
            assert_eq!(saved(&rule(words), Family::V4), printed, "{words}");
        }
        for words in [
            "--mode foo",
            "--mode random --probability 1.1",
            "--mode random --probability -0.1",
            "--mode random --probability 0.5x",
            "--mode random --probability nan",
            "--mode nth --every 0",
            "--mode nth --every 4294967296",
        ] {
            assert!(read::<StatisticMatch>(Family::V4, words).is_err(), "{words}");
        }
    }

    fn answers(rule: &StatisticMatch, world: &Told, count: usize) -> Vec<bool> {
        let state = rule.state(&mut Registry::default());
        let mut packet = Packet::BLANK;
        let context = context(&mut packet, &mut [], Instant::ZERO);
        (0..count).map(|_| rule.test(&context, world, &state) == Answer::Yes).collect()
    }

    #[test]
    fn the_nth_of_every_so_many() {
        let world = Told::default();
        let first = answers(&rule("--mode nth --every 3 --packet 0"), &world, 6);
        assert_eq!(first, [true, false, false, true, false, false]);
        let third = answers(&rule("--mode nth --every 3 --packet 2"), &world, 6);
        assert_eq!(third, [false, false, true, false, false, true]);
        let others = answers(&rule("--mode nth ! --every 3 --packet 2"), &world, 3);
        assert_eq!(others, [true, true, false]);
        assert_eq!(answers(&rule("--mode nth --every 1 --packet 0"), &world, 2), [true, true]);
    }

    #[test]
    fn chance_is_a_comparison_of_31_bits() {
        let ask = |words, random| answers(&rule(words), &Told { random, ..Told::default() }, 1)[0];
        let half = "--mode random --probability 0.5";
        assert!(ask(half, (1 << 30) - 1) && !ask(half, 1 << 30) && ask(half, 1 << 31));
        assert!(ask("--mode random --probability 1", u32::MAX) && !ask("--mode random --probability 0", 0));
        assert!(!ask("--mode random ! --probability 0.5", 0));
    }
}
