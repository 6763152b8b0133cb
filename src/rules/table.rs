//! A table while its lines are read: [`Table`]. Targets name chains by their place in it, built-in ones first, then in order of
//! declaration; [`flatten`] makes one list of all tables' chains, as [`super::Ruleset::chains`] has them.

use super::diagnostic::Span;
use super::rule::{BUILTIN, BUILTIN_CHAINS, Chain, ChainIndex, Hook, Policy, Rule, TableName};
use super::targets::Target;
use std::collections::HashMap;

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
        Table { name, span, builtin: chains.len(), names, places, chains }
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
        self.places = self.names.iter().cloned().zip(0..).collect();
        self.retarget(|chain| if chain > index { chain - 1 } else { chain });
    }

    fn retarget(&mut self, place: impl Fn(usize) -> usize) {
        let rules = self.chains.iter_mut().flat_map(|chain| &mut chain.rules);
        for Rule { target, .. } in rules {
            if let Target::Jump(to) | Target::Goto(to) = target {
                *to = place(*to);
            }
        }
    }
}

/// All tables' chains as one list, as in [`super::Ruleset::chains`]; targets follow.
pub(super) fn flatten(tables: Vec<Table>) -> Vec<Chain> {
    let mut chains: Vec<Chain> =
        BUILTIN.iter().map(|&(table, hook)| blank_chain(hook.chain_name(), table, Some(Policy::Accept))).collect();
    let mut user: Vec<(TableName, String)> = Vec::new();
    for table in &tables {
        user.extend(table.names[table.builtin..].iter().map(|name| (table.name, name.clone())));
    }
    user.sort();
    chains.extend(user.iter().map(|(table, name)| blank_chain(name, *table, None)));
    for mut table in tables {
        let builtin: Vec<ChainIndex> = builtin_of(table.name).map(|(index, _)| index).collect();
        let of_user = table.names[table.builtin..].iter().map(|name| {
            let key = (table.name, name.clone());
            BUILTIN_CHAINS + user.binary_search(&key).unwrap_or_else(|_| unreachable!("it was put there"))
        });
        let places: Vec<ChainIndex> = builtin.into_iter().chain(of_user).collect();
        table.retarget(|chain| places[chain]);
        for (chain, &place) in table.chains.into_iter().zip(&places) {
            chains[place] = chain;
        }
    }
    chains
}
