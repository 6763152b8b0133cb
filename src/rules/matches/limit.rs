//! `-m limit`: so many packets in a time, for all that meet the rule together. The arithmetic is in [`super::super::limit`].

use super::super::context::{Context, World};
use super::super::diagnostic::Problem;
use super::super::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use super::super::limit::{AVERAGE_DEFAULT, BURST_DEFAULT, Bucket};
use super::super::registry::Registry;
use super::super::save::push;
use super::super::value;
use crate::wire::Family;

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitMatch {
    /// Time between two packets in 1/10000 s (`XT_LIMIT_SCALE`).
    pub average: u32,
    /// How many packets may come at once.
    pub burst: u32,
}

const RATE: u8 = 0;
const BURST: u8 = 1;

impl Extension for LimitMatch {
    const NAME: &'static str = "limit";
    const OPTIONS: &'static [OptionSpec] =
        &[OptionSpec::new(RATE, &["--limit"]), OptionSpec::new(BURST, &["--limit-burst"])];

    fn new(_: Family) -> LimitMatch {
        LimitMatch { average: AVERAGE_DEFAULT, burst: BURST_DEFAULT }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            RATE => self.average = value::limit_rate(given.argument())?,
            _ => self.burst = value::limit_burst(given.argument())?,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match self.cost_and_cap() {
            Some(_) => Ok(()),
            None => Err(whole
                .problem("this limit is out of range: Linux refuses it", "rate times burst")
                .help("take a smaller --limit-burst (but not 0), or a faster --limit")),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        push(out, format_args!(" --limit {}", self.rate()));
        if self.burst != BURST_DEFAULT {
            push(out, format_args!(" --limit-burst {}", self.burst));
        }
    }
}

impl Matcher for LimitMatch {
    type State = Bucket;

    fn state(&self, _: &mut Registry) -> Bucket {
        Bucket::new(self)
    }

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, bucket: &Bucket) -> Answer {
        bucket.take(context.now).into()
    }
}
