//! `-j SET`: adds the packet to a set, deletes it from one, or takes its new mark from one (xt_set).

use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, HOOKS_ALL, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::{Hook, TableName};
use crate::rules::set::{NamedSet, SetRef};
use crate::rules::value::unsigned;
use crate::wire::Family;
use core::fmt::Write;

/// See the module's head. At least one of the three sets is there once the line is read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SetTarget {
    add: Option<SetRef>,
    /// `--exist`: what is there already begins anew.
    exist: bool,
    /// `--timeout`, in seconds.
    timeout: Option<u32>,
    delete: Option<SetRef>,
    map: Option<SetRef>,
    map_mark: bool,
    map_prio: bool,
    map_queue: bool,
}

const ADD: u8 = 0;
const DELETE: u8 = 1;
const MAP: u8 = 2;
const EXIST: u8 = 3;
const TIMEOUT: u8 = 4;
const MAP_MARK: u8 = 5;
const MAP_PRIO: u8 = 6;
const MAP_QUEUE: u8 = 7;

impl SetTarget {
    /// What is left of it when no set may change.
    pub(in crate::rules) fn only_looking(&self) -> SetTarget {
        SetTarget { add: None, delete: None, ..self.clone() }
    }

    /// The sets it names, each with whether it adds to it or deletes from it.
    pub(in crate::rules) fn sets(&self) -> impl Iterator<Item = (&SetRef, bool)> {
        let changed = self.add.iter().chain(&self.delete).map(|set| (set, true));
        changed.chain(self.map.iter().map(|set| (set, false)))
    }

    /// `--map-mark` and its like.
    fn maps(&self) -> bool {
        self.map_mark || self.map_prio || self.map_queue
    }
}

impl Extension for SetTarget {
    const NAME: &'static str = "SET";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(ADD, &["--add-set"]).arguments(2),
        OptionSpec::new(DELETE, &["--del-set"]).arguments(2),
        OptionSpec::new(MAP, &["--map-set"]).arguments(2),
        OptionSpec::new(EXIST, &["--exist"]).arguments(0),
        OptionSpec::new(TIMEOUT, &["--timeout"]),
        OptionSpec::new(MAP_MARK, &["--map-mark"]).arguments(0),
        OptionSpec::new(MAP_PRIO, &["--map-prio"]).arguments(0),
        OptionSpec::new(MAP_QUEUE, &["--map-queue"]).arguments(0),
    ];

    fn new(_: Family) -> SetTarget {
        SetTarget::default()
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            ADD => self.add = Some(SetRef::read(given)?),
            DELETE => self.delete = Some(SetRef::read(given)?),
            MAP => self.map = Some(SetRef::read(given)?),
            EXIST => self.exist = true,
            TIMEOUT => {
                let token = given.argument();
                let seconds = unsigned(&token.text, u32::MAX - 1).ok_or_else(|| {
                    let message = format!("`{}` is not a time-out", token.text);
                    Problem::new(token.span, message, "expected seconds, 0 to 4294967294")
                })?;
                self.timeout = Some(seconds);
            }
            MAP_MARK => self.map_mark = true,
            MAP_PRIO => self.map_prio = true,
            _ => self.map_queue = true,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        if self.add.is_none() && self.delete.is_none() && self.map.is_none() {
            return Err(whole
                .problem("`-j SET` without a set", "needs a set")
                .help("write `--add-set NAME src`, `--del-set NAME src` or `--map-set NAME src`"));
        }
        if self.add.is_none() && (self.exist || self.timeout.is_some()) {
            let option = if self.exist { "--exist" } else { "--timeout" };
            return Err(whole.problem(format!("`{option}` without `--add-set`"), "goes with `--add-set` only"));
        }
        if self.map.is_some() != self.maps() {
            let (one, other) = if self.maps() { ("--map-mark", "--map-set") } else { ("--map-set", "--map-mark") };
            return Err(whole.problem(format!("`{one}` without `{other}`"), "they go together"));
        }
        if self.map.is_some() && whole.table != TableName::Mangle {
            return Err(whole.problem("`--map-set` is for table mangle only", "in another table"));
        }
        Ok(())
    }

    fn not_honoured(&self) -> Option<String> {
        let option = if self.map_prio { "--map-prio" } else { "--map-queue" };
        (self.map_prio || self.map_queue)
            .then(|| format!("packets have no priority and no queue for `{option}` to set"))
    }

    fn hooks(&self) -> u8 {
        match self.map_prio || self.map_queue {
            true => Hook::Forward.bit() | Hook::Output.bit() | Hook::Postrouting.bit(),
            false => HOOKS_ALL,
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        let one = |out: &mut String, option: &str, set: &Option<SetRef>| {
            if let Some(set) = set {
                out.push_str(option);
                set.save(out);
            }
        };
        one(out, " --add-set ", &self.add);
        out.push_str(if self.exist { " --exist" } else { "" });
        if let Some(timeout) = self.timeout {
            let _ = write!(out, " --timeout {timeout}");
        }
        one(out, " --del-set ", &self.delete);
        one(out, " --map-set ", &self.map);
        let maps = [(self.map_mark, " --map-mark"), (self.map_prio, " --map-prio"), (self.map_queue, " --map-queue")];
        maps.iter().filter(|option| option.0).for_each(|option| out.push_str(option.1));
    }
}

/// The sets that a SET target names.
#[derive(Debug)]
pub(in crate::rules) struct SetTargetState {
    add: Option<NamedSet>,
    delete: Option<NamedSet>,
    map: Option<NamedSet>,
}

impl Action for SetTarget {
    type State = SetTargetState;

    fn state(&self, registry: &mut Registry) -> SetTargetState {
        let named = |set: &Option<SetRef>, changes| set.as_ref().map(|set| NamedSet::new(registry, &set.name, changes));
        SetTargetState { add: named(&self.add, true), delete: named(&self.delete, true), map: named(&self.map, false) }
    }

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, _: &mut dyn World, state: &SetTargetState) -> Outcome {
        if let (Some(set), Some(named)) = (&self.add, &state.add) {
            let mut question = named.question(context, set.sides).lasting(self.timeout);
            question.exist = self.exist;
            named.cell.add(&question);
        }
        if let (Some(set), Some(named)) = (&self.delete, &state.delete) {
            named.cell.delete(&named.question(context, set.sides));
        }
        if let (Some(set), Some(named)) = (&self.map, &state.map) {
            let found = named.cell.test(&named.question(context, set.sides));
            if let (Some(skb), true) = (found, self.map_mark) {
                context.mark = context.mark & !skb.mask ^ skb.mark;
            }
        }
        Outcome::Continue
    }
}
