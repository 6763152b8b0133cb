//! `-m state`: what conntrack says of the packet.

use super::super::context::{Context, World};
use super::super::diagnostic::Problem;
use super::super::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use super::super::names;
use super::super::registry::Registry;
use super::super::save::{bang, push, words};
use super::super::value;
use crate::wire::Family;

/// What `-m state` and `--ctstate` can ask for, as bits. The first five are [`crate::conntrack::CtInfo::state_bit`]'s.
pub mod state {
    /// INVALID
    pub const INVALID: u16 = 1;
    /// ESTABLISHED
    pub const ESTABLISHED: u16 = 1 << 1;
    /// RELATED
    pub const RELATED: u16 = 1 << 2;
    /// NEW
    pub const NEW: u16 = 1 << 3;
    /// UNTRACKED
    pub const UNTRACKED: u16 = 1 << 6;
    /// SNAT: the source was translated.
    pub const SNAT: u16 = 1 << 7;
    /// DNAT: the destination was translated.
    pub const DNAT: u16 = 1 << 8;
    /// The five states that exclude each other.
    pub const STATES: u16 = INVALID | ESTABLISHED | RELATED | NEW | UNTRACKED;
}

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateMatch {
    /// Bits of [`state`], without SNAT and DNAT.
    pub states: u16,
    /// `!`
    pub invert: bool,
}

impl Extension for StateMatch {
    const NAME: &'static str = "state";
    const WANTS_CONNTRACK: bool = true;
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(0, &["--state"]).invertible()];

    fn new(_: Family) -> StateMatch {
        StateMatch { states: 0, invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        *self = StateMatch { states: value::states(given.argument(), false)?, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<StateMatch>()
    }

    fn save(&self, out: &mut String, _: Family) {
        push(out, format_args!("{} --state {}", bang(self.invert), words(names::STATES, self.states)));
    }
}

impl Matcher for StateMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        ((context.info.state_bit() & self.states != 0) != self.invert).into()
    }
}
