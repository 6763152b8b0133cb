//! A table while its lines are read: [`Table`]. Targets name chains by their place in it, built-in ones first, then in order of
//! declaration; [`flatten`] makes one list of all tables' chains, as [`super::Ruleset::chains`] has them.

use super::diagnostic::Span;
use super::rule::{BUILTIN, BUILTIN_CHAINS, Chain, ChainIndex, Hook, Policy, Rule, Ruleset, Spoken, TableName};
use super::targets::Target;
use std::collections::HashMap;
use std::sync::Arc;

/// What a rule is in the ruleset that is being changed.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    /// Its number there.
    number: Option<usize>,
    /// Its counters begin anew all the same.
    zeroed: bool,
}

/// What lines have said of a chain.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// Its policy's counters begin anew.
    zeroed: bool,
    /// It has other rules.
    rules: bool,
    /// It is declared, so that it has these rules and no others.
    declared: bool,
    /// Its policy was named.
    policy: bool,
    /// It has another policy.
    other_policy: bool,
}

/// All tables' chains as one list, as in [`super::Ruleset::chains`]. See [`flatten`].
#[derive(Debug)]
pub(super) struct Flat {
    pub(super) chains: Vec<Chain>,
    /// By rule, in their order: its number in the ruleset that is being changed.
    pub(super) kept: Vec<Option<usize>>,
    /// The same of those whose counts go on.
    pub(super) counted: Vec<Option<usize>>,
    /// Chains whose policy's counters begin anew.
    pub(super) zeroed: Vec<ChainIndex>,
    /// Chains that have other rules or another policy.
    pub(super) touched: Vec<ChainIndex>,
    /// What lines have spoken of.
    pub(super) spoken: Spoken,
}

/// See the module's head.
pub(super) struct Table {
    pub(super) name: TableName,
    pub(super) span: Span,
    /// How many of the chains are built in.
    pub(super) builtin: usize,
    /// By place. Changed together with `places`.
    names: Vec<String>,
    places: HashMap<String, usize>,
    pub(super) chains: Vec<Chain>,
    /// By chain and rule.
    kept: Vec<Vec<Kept>>,
    /// By chain.
    marks: Vec<Mark>,
}

/// Places in [`BUILTIN`] of a table's built-in chains, in its order.
fn builtin_of(table: TableName) -> impl Iterator<Item = (ChainIndex, Hook)> {
    BUILTIN.iter().enumerate().filter(move |(_, chain)| chain.0 == table).map(|(index, chain)| (index, chain.1))
}

fn blank_chain(name: &str, table: TableName, policy: Option<Policy>) -> Chain {
    Chain { name: name.to_owned(), table, policy, rules: Vec::new(), span: Span::default() }
}

impl Table {
    pub(super) fn new(name: TableName, span: Span) -> Table {
        let accept = Some(Policy::Accept);
        let chains: Vec<Chain> =
            builtin_of(name).map(|(_, hook)| blank_chain(hook.chain_name(), name, accept)).collect();
        let names: Vec<String> = chains.iter().map(|chain| chain.name.clone()).collect();
        let places = names.iter().cloned().zip(0..).collect();
        let (kept, marks) = (vec![Vec::new(); chains.len()], vec![Mark::default(); chains.len()]);
        Table { name, span, builtin: chains.len(), names, places, chains, kept, marks }
    }

    /// As it is in `ruleset`, to be changed.
    pub(super) fn of(ruleset: &Ruleset, name: TableName, span: Span) -> Table {
        let mut table = Table::new(name, span);
        let first = ruleset.first_counters();
        let mut places = HashMap::new();
        for (index, chain) in ruleset.chains_of(name) {
            let place = table.find(&chain.name).unwrap_or_else(|| table.declare(&chain.name));
            table.chains[place] = chain.clone();
            table.marks[place] = Mark::default();
            let numbers = (first[index]..).take(chain.rules.len());
            table.kept[place] = numbers.map(|number| Kept { number: Some(number), zeroed: false }).collect();
            places.insert(index, place);
        }
        table.retarget(|chain| places[&chain]);
        table
    }

    /// Without the rules and user chains that it has in `ruleset`; policies stay until they are named.
    pub(super) fn emptied(ruleset: &Ruleset, name: TableName, span: Span) -> Table {
        let mut table = Table::new(name, span);
        for (own, (_, chain)) in table.chains.iter_mut().zip(ruleset.chains_of(name)) {
            own.policy = chain.policy;
        }
        table
    }

    /// Rules at the chain's end.
    pub(super) fn append(&mut self, chain: usize, rules: Vec<Rule>) {
        self.marks[chain].rules = true;
        self.kept[chain].extend(rules.iter().map(|_| Kept::default()));
        self.chains[chain].rules.extend(rules.into_iter().map(Arc::new));
    }

    /// A rule before the one at `place`.
    pub(super) fn insert(&mut self, chain: usize, place: usize, rule: Rule) {
        self.marks[chain].rules = true;
        self.kept[chain].insert(place, Kept::default());
        self.chains[chain].rules.insert(place, Arc::new(rule));
    }

    /// Another rule instead of the one at `place`.
    pub(super) fn replace(&mut self, chain: usize, place: usize, rule: Rule) {
        self.marks[chain].rules = true;
        self.kept[chain][place] = Kept::default();
        self.chains[chain].rules[place] = Arc::new(rule);
    }

    /// The rule at `place` goes.
    pub(super) fn delete(&mut self, chain: usize, place: usize) {
        self.marks[chain].rules = true;
        self.kept[chain].remove(place);
        self.chains[chain].rules.remove(place);
    }

    /// The chain's rules go.
    pub(super) fn flush(&mut self, chain: usize) {
        self.marks[chain].rules |= !self.chains[chain].rules.is_empty();
        self.kept[chain].clear();
        self.chains[chain].rules.clear();
    }

    /// What becomes of packets that no rule decides.
    pub(super) fn set_policy(&mut self, chain: usize, policy: Option<Policy>) {
        let is_other = self.chains[chain].policy != policy;
        let mark = &mut self.marks[chain];
        (mark.policy, mark.other_policy) = (true, mark.other_policy | is_other);
        self.chains[chain].policy = policy;
    }

    /// The chain has the rules that follow, and no others.
    pub(super) fn mark_declared(&mut self, chain: usize) {
        self.marks[chain].declared = true;
    }

    /// Counters begin anew: of one rule, or of the chain and its policy.
    pub(super) fn zero(&mut self, chain: usize, place: Option<usize>) {
        let rules = &mut self.kept[chain];
        match place {
            Some(place) => rules[place].zeroed = true,
            None => {
                self.marks[chain].zeroed = true;
                rules.iter_mut().for_each(|kept| kept.zeroed = true);
            }
        }
    }

    /// The hook of a built-in chain.
    pub(super) fn hook(&self, index: usize) -> Option<Hook> {
        builtin_of(self.name).nth(index).map(|(_, hook)| hook)
    }

    /// The place of the chain with this name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// The chains' names, by place.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Gives a chain another name.
    pub(super) fn rename(&mut self, chain: usize, name: &str) {
        self.places.remove(&self.names[chain]);
        self.places.insert(name.to_owned(), chain);
        name.clone_into(&mut self.names[chain]);
        name.clone_into(&mut self.chains[chain].name);
    }

    /// A new user chain; its place.
    pub(super) fn declare(&mut self, name: &str) -> usize {
        self.places.insert(name.to_owned(), self.names.len());
        self.names.push(name.to_owned());
        self.chains.push(blank_chain(name, self.name, None));
        self.kept.push(Vec::new());
        self.marks.push(Mark { rules: true, ..Mark::default() });
        self.names.len() - 1
    }

    /// Rules that lead to the chain.
    pub(super) fn references(&self, chain: usize) -> usize {
        let rules = self.chains.iter().flat_map(|chain| &chain.rules);
        rules.filter(|rule| rule.target.chain() == Some(chain)).count()
    }

    /// Takes a user chain out, which no rule leads to.
    pub(super) fn remove(&mut self, index: usize) {
        self.names.remove(index);
        self.chains.remove(index);
        self.kept.remove(index);
        self.marks.remove(index);
        self.places = self.names.iter().cloned().zip(0..).collect();
        self.retarget(|chain| if chain > index { chain - 1 } else { chain });
    }

    fn retarget(&mut self, place: impl Fn(usize) -> usize) {
        for rule in self.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            if rule.target.chain().is_none_or(|to| place(to) == to) {
                continue;
            }
            if let Target::Jump(to) | Target::Goto(to) = &mut Arc::make_mut(rule).target {
                *to = place(*to);
            }
        }
    }
}

/// All tables' chains as one list; targets follow.
pub(super) fn flatten(tables: Vec<Table>) -> Flat {
    let mut chains: Vec<Chain> =
        BUILTIN.iter().map(|&(table, hook)| blank_chain(hook.chain_name(), table, Some(Policy::Accept))).collect();
    let mut user: Vec<(TableName, String)> = Vec::new();
    for table in &tables {
        user.extend(table.names[table.builtin..].iter().map(|name| (table.name, name.clone())));
    }
    user.sort();
    chains.extend(user.iter().map(|(table, name)| blank_chain(name, *table, None)));
    let mut kept = vec![Vec::new(); chains.len()];
    let (mut zeroed, mut touched, mut spoken) = (Vec::new(), Vec::new(), Spoken::default());
    for mut table in tables {
        let builtin: Vec<ChainIndex> = builtin_of(table.name).map(|(index, _)| index).collect();
        let of_user = table.names[table.builtin..].iter().map(|name| {
            let key = (table.name, name.clone());
            BUILTIN_CHAINS + user.binary_search(&key).unwrap_or_else(|_| unreachable!("it was put there"))
        });
        let places: Vec<ChainIndex> = builtin.into_iter().chain(of_user).collect();
        table.retarget(|chain| places[chain]);
        let those = |is_so: &dyn Fn(&Mark) -> bool| -> Vec<ChainIndex> {
            places.iter().zip(&table.marks).filter(|(_, mark)| is_so(mark)).map(|(&place, _)| place).collect()
        };
        zeroed.extend(those(&|mark| mark.zeroed));
        touched.extend(those(&|mark| mark.rules || mark.other_policy));
        spoken.rules.extend(those(&|mark| mark.rules || mark.declared));
        spoken.policies.extend(those(&|mark| mark.policy));
        for ((chain, of_chain), &place) in table.chains.into_iter().zip(table.kept).zip(&places) {
            (chains[place], kept[place]) = (chain, of_chain);
        }
    }
    let kept = kept.concat();
    let counted = kept.iter().map(|kept| kept.number.filter(|_| !kept.zeroed)).collect();
    Flat { chains, kept: kept.iter().map(|kept| kept.number).collect(), counted, zeroed, touched, spoken }
}
