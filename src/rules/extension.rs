//! What a match (`-m`) and a target (`-j`) are made of: [`Extension`], [`Matcher`], [`Action`].
//!
//! iptables calls them extensions, and so every one of them is a file of its own below `matches/` or `targets/`: a typed value
//! that says what the rule asks, how its options are read and printed, what a verdict that asked it rests on, and what it says
//! of a packet. The value is canonical (two spellings of one thing are equal) and immutable; what changes with packets is
//! its `State`, made when the rules are compiled and shared by all that evaluate them.

use super::context::{Context, World};
use super::diagnostic::{Problem, Span};
use super::registry::Registry;
use super::rule::{Hook, ProtoMatch, Rule, TableName};
use super::targets::RejectWith;
use super::token::Token;
use crate::verdict::DropReason;
use crate::wire::Family;

/// One option of an extension.
#[derive(Clone, Copy, Debug)]
pub(super) struct OptionSpec {
    /// Every spelling; the first is the one that is printed.
    pub(super) names: &'static [&'static str],
    /// The extension's own number for it.
    pub(super) id: u8,
    /// How many words follow it.
    pub(super) arguments: u8,
    /// Whether `!` may stand before it.
    pub(super) can_invert: bool,
    /// Options with the same number exclude each other; 0 excludes only itself.
    pub(super) group: u8,
}

impl OptionSpec {
    /// An option with one argument, not to be inverted.
    pub(super) const fn new(id: u8, names: &'static [&'static str]) -> OptionSpec {
        OptionSpec { names, id, arguments: 1, can_invert: false, group: 0 }
    }

    /// With `!` before it where wanted.
    pub(super) const fn invertible(mut self) -> OptionSpec {
        self.can_invert = true;
        self
    }

    /// With this many arguments.
    pub(super) const fn arguments(mut self, count: u8) -> OptionSpec {
        self.arguments = count;
        self
    }

    /// Excluding the others of the group.
    pub(super) const fn group(mut self, group: u8) -> OptionSpec {
        self.group = group;
        self
    }
}

/// An option as it stands in the line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    /// As written (it may be cut short).
    pub(super) name: &'a str,
    /// Where the option itself stands.
    pub(super) span: Span,
    /// Its arguments, as many as the specification says.
    pub(super) arguments: &'a [Token],
    /// `!` stood before it.
    pub(super) invert: bool,
    /// IP version of the file.
    pub(super) family: Family,
    /// `-p`, as far as the line is read.
    pub(super) proto: Option<ProtoMatch>,
    /// Where the extension is named.
    pub(super) owner: Span,
}

impl<'a> Given<'a> {
    /// The first argument.
    ///
    /// # Panics
    /// When the option has none: a bug in its specification.
    pub(super) fn argument(&self) -> &'a Token {
        &self.arguments[0]
    }
}

/// The rule around an extension, once all of its line is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole<'a> {
    /// Numbers of the options given.
    pub(super) seen: &'a [u8],
    /// Where the extension is named.
    pub(super) span: Span,
    /// IP version of the file.
    pub(super) family: Family,
    /// The table the rule is in.
    pub(super) table: TableName,
    /// The rule; its matches are all there, its target is not yet.
    pub(super) rule: &'a Rule,
}

impl Whole<'_> {
    /// Whether the option was given.
    pub(super) fn has(&self, id: u8) -> bool {
        self.seen.contains(&id)
    }

    /// Refuses a rule whose `-p` does not name the protocol; `wanted` is how to name it.
    pub(super) fn needs_proto<E: Extension>(&self, number: u8, wanted: &str) -> Result<(), Problem> {
        match self.is_proto(number) {
            true => Ok(()),
            false => {
                let message = format!("`{} {}` needs `{wanted}`", E::dash(), E::NAME);
                Err(self.problem(message, format!("this rule has no `{wanted}`")))
            }
        }
    }

    /// Refuses the extension when none of its options was given; the first is named as the one missing.
    pub(super) fn needs_option<E: Extension>(&self) -> Result<(), Problem> {
        match self.seen.is_empty() {
            false => Ok(()),
            true => {
                let message = format!("`{} {}` needs `{}`", E::dash(), E::NAME, E::OPTIONS[0].names[0]);
                Err(self.problem(message, "no option given"))
            }
        }
    }

    /// Whether `-p` names this protocol, not inverted.
    pub(super) fn is_proto(&self, number: u8) -> bool {
        self.rule.proto == Some(ProtoMatch { number, invert: false })
    }

    /// An error at the extension's name.
    pub(super) fn problem(&self, message: impl Into<String>, label: impl Into<String>) -> Problem {
        Problem::new(self.span, message, label)
    }
}

/// Hooks, as bits: [`Hook::bit`].
pub(super) const HOOKS_ALL: u8 = 0x1f;

/// What both kinds have in common; see the module's head.
pub(super) trait Extension: Sized + Clone + Eq + core::fmt::Debug {
    /// Its name after `-m` or `-j`.
    const NAME: &'static str;
    /// IP versions that have it.
    const FAMILIES: &'static [Family] = &[Family::V4, Family::V6];
    /// Tables that may hold it.
    const TABLES: &'static [TableName] = TableName::ALL;
    /// Its options.
    const OPTIONS: &'static [OptionSpec];

    /// The value before any option is read.
    fn new(family: Family) -> Self;

    /// Reads one option.
    ///
    /// # Errors
    /// What is wrong with its argument.
    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem>;

    /// What an expert would say of the option just read.
    fn warning(&self, _id: u8, _given: &Given<'_>) -> Option<Problem> {
        None
    }

    /// Why a rule that says this can be understood and not done; `None` when it can be done.
    fn not_honoured(&self) -> Option<String> {
        None
    }

    /// Whether it makes Linux track connections (`nf_ct_netns_get` when it is loaded).
    const WANTS_CONNTRACK: bool = false;

    /// Whether this one does.
    fn wants_conntrack(&self) -> bool {
        Self::WANTS_CONNTRACK
    }

    /// The option that names it: targets have names in capitals.
    fn dash() -> &'static str {
        if Self::NAME.as_bytes()[0].is_ascii_uppercase() { "-j" } else { "-m" }
    }

    /// Checks the whole when all options are read.
    ///
    /// # Errors
    /// An option is missing, or something does not go together.
    fn check(&self, _whole: &Whole<'_>) -> Result<(), Problem> {
        Ok(())
    }

    /// Hooks from which a rule with it may be reached, as bits of [`Hook::bit`].
    fn hooks(&self) -> u8 {
        HOOKS_ALL
    }

    /// Its options as `iptables-save` prints them, each with a blank before it.
    fn save(&self, out: &mut String, family: Family);
}

/// What is known of an extension by its name: `V` is [`super::Match`] or [`super::Target`].
#[derive(Debug)]
pub(super) struct Kind<V: 'static> {
    pub(super) name: &'static str,
    pub(super) families: &'static [Family],
    pub(super) tables: &'static [TableName],
    pub(super) options: &'static [OptionSpec],
    pub(super) new: fn(Family) -> V,
}

impl<V> Kind<V> {
    /// The extension `E`, made by `new`.
    pub(super) const fn of<E: Extension>(new: fn(Family) -> V) -> Kind<V> {
        Kind { name: E::NAME, families: E::FAMILIES, tables: E::TABLES, options: E::OPTIONS, new }
    }
}

/// What a verdict rests on that asked a match, or took a target's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Basis {
    /// What is the same for every packet of a connection and direction: addresses, ports, protocol, interfaces, the conntrack
    /// state, both tuples, and what rules before have made of them.
    Flow,
    /// The connection's status bits, too.
    Status,
    /// These TCP flags, too.
    Flags(u8),
    /// The connection's mark, too; and what is done to it is the same for the same mark.
    ConnMark,
    /// This one packet, the time, or something counted: nothing can be kept.
    Packet,
}

/// What a match said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Yes,
    No,
    /// It could not read what it needs: the packet is dropped (x_tables' `hotdrop`).
    Hotdrop,
}

impl From<bool> for Answer {
    #[inline(always)]
    fn from(yes: bool) -> Answer {
        if yes { Answer::Yes } else { Answer::No }
    }
}

/// A match: `-m NAME`.
pub(super) trait Matcher: Extension {
    /// What changes from packet to packet, with its own lock or atomics. `()` for most.
    type State: core::fmt::Debug + Send + Sync;

    /// A new state. Tables that several rules share by name are in `registry`.
    fn state(&self, registry: &mut Registry) -> Self::State;

    /// What a verdict that asked it rests on.
    fn basis(&self) -> Basis;

    /// Its word on a packet.
    fn test(&self, context: &Context<'_>, world: &dyn World, state: &Self::State) -> Answer;
}

/// What becomes of a packet after a target that is no verdict by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// The next rule.
    Continue,
    /// It may pass this table.
    Accept,
    /// It is dropped.
    Drop(DropReason),
    /// It is dropped and answered.
    Reject(RejectWith),
}

/// A target: `-j NAME`.
pub(super) trait Action: Extension {
    /// As [`Matcher::State`].
    type State: core::fmt::Debug + Send + Sync;

    /// As [`Matcher::state`].
    fn state(&self, registry: &mut Registry) -> Self::State;

    /// [`Basis::Flow`] when running it does no more than change what later rules of the same packet read.
    fn basis(&self) -> Basis;

    /// Does its work.
    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, state: &Self::State) -> Outcome;
}

impl Hook {
    /// As a bit of [`Extension::hooks`].
    pub(super) const fn bit(self) -> u8 {
        1 << self as u8
    }
}
