//! `-m quota`: so many bytes (net/netfilter/xt_quota.c).

use super::argument::{bang, number, push};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::schedule;
use crate::wire::Family;
use core::sync::atomic::{AtomicU64, Ordering};

/// `-m quota`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuotaMatch {
    bytes: Option<u64>,
    invert: bool,
}

const QUOTA: u8 = 1;

impl Extension for QuotaMatch {
    const NAME: &'static str = "quota";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(QUOTA, &["--quota"]).invertible()];

    fn new(_: Family) -> QuotaMatch {
        QuotaMatch { bytes: None, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        (self.bytes, self.invert) = (Some(number(given, 0, u64::MAX)?), given.invert);
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match self.bytes {
            Some(_) => Ok(()),
            None => Err(whole.problem("quota without --quota", "incomplete").help("add --quota and a number of bytes")),
        }
    }

    /// What the rule began with, not what is left, as Linux.
    fn save(&self, out: &mut String, _: Family) {
        push(out, format_args!("{} --quota {}", bang(self.invert), self.bytes.unwrap_or(0)));
    }
}

impl Matcher for QuotaMatch {
    /// Bytes left.
    type State = AtomicU64;

    fn state(&self, _: &mut Registry) -> AtomicU64 {
        AtomicU64::new(self.bytes.unwrap_or(0))
    }

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, state: &AtomicU64) -> Answer {
        let length = u64::from(context.packet.l3_len);
        // What is too long takes all that is left: not even a shorter one passes after it. The closure always gives a value,
        // and nothing else depends on the order.
        let take = |left: u64| Some(left.saturating_sub(length));
        schedule::point();
        let enough = state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok_and(|left| left >= length);
        (enough != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;

    /// Asked from iptables-legacy 1.8.9.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, printed) in [
            ("--quota 1000", "--quota 1000"),
            ("! --quota 0x100", "! --quota 256"),
            ("--quota 0", "--quota 0"),
            ("--quota 18446744073709551615", "--quota 18446744073709551615"),
        ] {
            assert_eq!(saved(&read::<QuotaMatch>(Family::V4, words).expect(words), Family::V4), printed);
        }
        assert!(read::<QuotaMatch>(Family::V4, "--quota 18446744073709551616").is_err());
    }

    #[test]
    fn what_does_not_fit_ends_it() {
        for (words, expected) in
            [("--quota 250", [true, true, false, false]), ("! --quota 250", [false, false, true, true])]
        {
            let rule = read::<QuotaMatch>(Family::V4, words).expect("good");
            let state = rule.state(&mut Registry::default());
            let answers = [100, 150, 1, 0].map(|l3_len| {
                let mut packet = Packet { l3_len: l3_len.max(1), ..Packet::BLANK };
                rule.test(&context(&mut packet, &mut [], Instant::ZERO), &Told::default(), &state) == Answer::Yes
            });
            assert_eq!(answers, expected);
        }
        let rule = read::<QuotaMatch>(Family::V4, "--quota 250").expect("good");
        let state = rule.state(&mut Registry::default());
        let answers = [200, 100, 50].map(|l3_len| {
            let mut packet = Packet { l3_len, ..Packet::BLANK };
            rule.test(&context(&mut packet, &mut [], Instant::ZERO), &Told::default(), &state) == Answer::Yes
        });
        assert_eq!(answers, [true, false, false], "the 50 left are gone with the 100 that were too many");
    }
}
