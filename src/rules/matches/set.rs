//! `-m set`: whether the packet is in a set (xt_set), and with `--packets-eq` and its like how often its element was met.

use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::set::{Compare, NamedSet, Question, SetCell, SetRef, TuplePacket};
use crate::wire::Family;
use core::fmt::Write;

/// See the module's head.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SetMatch {
    /// `--match-set`; always there once the line is read.
    set: Option<SetRef>,
    invert: bool,
    /// `--return-nomatch`: exceptions match and what is no exception does not.
    return_nomatch: bool,
    /// `! --update-counters`
    leaves_counters: bool,
    /// `! --update-subcounters`
    leaves_subcounters: bool,
    packets: Option<Compare>,
    bytes: Option<Compare>,
}

const SET: u8 = 0;
const RETURN_NOMATCH: u8 = 1;
const UPDATE_COUNTERS: u8 = 2;
const UPDATE_SUBCOUNTERS: u8 = 3;
/// From here on, counters: three for packets, three for bytes.
const COUNTERS: u8 = 4;

impl SetMatch {
    /// The same question, asked so that it leaves no trace in the set.
    pub(in crate::rules) fn only_looking(&self) -> SetMatch {
        SetMatch { leaves_counters: true, leaves_subcounters: true, ..self.clone() }
    }

    /// What it says of a packet that no more is known of than its tuple, where that settles it. `set` is the one it names.
    pub(in crate::rules) fn of_tuple(&self, set: &SetCell, packet: &TuplePacket) -> Option<bool> {
        let asked = self.set.as_ref().filter(|_| self.packets.is_none() && self.bytes.is_none())?;
        let question = Question { return_nomatch: self.return_nomatch, ..packet.question(asked.sides) };
        Some(set.test(&question).is_some() != self.invert)
    }

    /// The set it names.
    pub(in crate::rules) fn sets(&self) -> impl Iterator<Item = &SetRef> {
        self.set.iter()
    }
}

impl Extension for SetMatch {
    const NAME: &'static str = "set";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SET, &["--match-set", "--set"]).arguments(2).invertible(),
        OptionSpec::new(RETURN_NOMATCH, &["--return-nomatch"]).arguments(0),
        OptionSpec::new(UPDATE_COUNTERS, &["--update-counters"]).arguments(0).invertible(),
        OptionSpec::new(UPDATE_SUBCOUNTERS, &["--update-subcounters"]).arguments(0).invertible(),
        OptionSpec::new(COUNTERS, &["--packets-eq"]).invertible().group(1),
        OptionSpec::new(COUNTERS + 1, &["--packets-lt"]).group(1),
        OptionSpec::new(COUNTERS + 2, &["--packets-gt"]).group(1),
        OptionSpec::new(COUNTERS + 3, &["--bytes-eq"]).invertible().group(2),
        OptionSpec::new(COUNTERS + 4, &["--bytes-lt"]).group(2),
        OptionSpec::new(COUNTERS + 5, &["--bytes-gt"]).group(2),
    ];

    fn new(_: Family) -> SetMatch {
        SetMatch::default()
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            SET => {
                self.set = Some(SetRef::read(given)?);
                self.invert = given.invert;
            }
            RETURN_NOMATCH => self.return_nomatch = true,
            UPDATE_COUNTERS => self.leaves_counters = given.invert,
            UPDATE_SUBCOUNTERS => self.leaves_subcounters = given.invert,
            id => {
                let number = counter(given)?;
                let compare = match ((id - COUNTERS) % 3, given.invert) {
                    (0, false) => Compare::Equal(number),
                    (0, true) => Compare::NotEqual(number),
                    (1, _) => Compare::Less(number),
                    _ => Compare::Greater(number),
                };
                *(if id < COUNTERS + 3 { &mut self.packets } else { &mut self.bytes }) = Some(compare);
            }
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match &self.set {
            Some(_) => Ok(()),
            None => Err(whole
                .problem("`-m set` without a set", "needs `--match-set`")
                .help("as in `-m set --match-set NAME src`")),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        if let Some(set) = &self.set {
            out.push_str(if self.invert { " ! --match-set " } else { " --match-set " });
            set.save(out);
        }
        for (there, text) in [
            (self.return_nomatch, " --return-nomatch"),
            (self.leaves_counters, " ! --update-counters"),
            (self.leaves_subcounters, " ! --update-subcounters"),
        ] {
            out.push_str(if there { text } else { "" });
        }
        for (what, compare) in [("packets", self.packets), ("bytes", self.bytes)] {
            let _ = match compare {
                None => Ok(()),
                Some(Compare::Equal(number)) => write!(out, " --{what}-eq {number}"),
                Some(Compare::NotEqual(number)) => write!(out, " ! --{what}-eq {number}"),
                Some(Compare::Less(number)) => write!(out, " --{what}-lt {number}"),
                Some(Compare::Greater(number)) => write!(out, " --{what}-gt {number}"),
            };
        }
    }
}

/// A 64-bit number: decimal, 0x hexadecimal or 0 octal.
fn counter(given: &Given<'_>) -> Result<u64, Problem> {
    let token = given.argument();
    let (digits, radix) = match token.text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&token.text[2..], 16),
        [b'0', _, ..] => (&token.text[1..], 8),
        _ => (token.text.as_str(), 10),
    };
    let plain = digits.chars().all(|c| c.is_digit(radix));
    u64::from_str_radix(digits, radix).ok().filter(|_| plain).ok_or_else(|| {
        Problem::new(token.span, format!("`{}` is not a number", token.text), "expected a number of packets or bytes")
    })
}

impl Matcher for SetMatch {
    type State = NamedSet;

    fn state(&self, registry: &mut Registry) -> NamedSet {
        NamedSet::new(registry, self.set.as_ref().map_or("", |set| &set.name), false)
    }

    fn basis(&self) -> Basis {
        // Its contents can be replaced at any time, elements expire, and counters count.
        Basis::Packet
    }

    #[inline]
    fn test(&self, context: &Context<'_>, _: &dyn World, state: &NamedSet) -> Answer {
        let Some(set) = &self.set else { return Answer::No };
        let mut question = state.question(context, set.sides);
        question.return_nomatch = self.return_nomatch;
        question.counts = !self.leaves_counters;
        question.counts_below = !self.leaves_subcounters;
        (question.packets, question.bytes) = (self.packets, self.bytes);
        Answer::from(state.cell.test(&question).is_some() != self.invert)
    }
}
