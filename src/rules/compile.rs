//! Typed rules to the fast engine's rows: [`Parts`], what a vector is put together from.

use super::matches::state;
use super::matches::{BitMatch, Match};
use super::registry::Registry;
use super::row::{Action, INVERT_DST, INVERT_PROTO, INVERT_SRC, NO_PORT, Op, Row, Word};
use super::rule::{
    AddrMatch, BUILTIN, BUILTIN_CHAINS, Chain, ChainIndex, FORWARD, InterfaceMatch, PATH, Policy, Rule, Ruleset,
    TableName,
};
use super::runs::{Before, Runs};
use super::targets::{Target, TracePlace};
use super::vector::{ChainName, Entry, OtherMatch, Previous, RowPlace, Rows, RuleVector, RunTarget};
use crate::wire::Family;
use std::collections::HashMap;
use std::sync::Arc;

/// What a vector is put together from.
pub(super) struct Parts<'a> {
    ruleset: &'a Ruleset,
    registry: &'a mut Registry,
    previous: Option<Previous<'a>>,
    /// States of the previous vector, by rule and place.
    kept_matches: HashMap<(u32, u32), usize>,
    kept_targets: HashMap<u32, usize>,
    ops: Vec<Op>,
    matches: Vec<OtherMatch>,
    targets: Vec<RunTarget>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(ruleset: &'a Ruleset, registry: &'a mut Registry, previous: Option<Previous<'a>>) -> Parts<'a> {
        registry.surround(ruleset);
        let vector = previous.map(|previous| previous.vector);
        let matches = vector.map_or(&[][..], |vector| &vector.matches);
        let targets = vector.map_or(&[][..], |vector| &vector.targets);
        Parts {
            ruleset,
            registry,
            previous,
            kept_matches: matches.iter().enumerate().map(|(index, other)| (other.place, index)).collect(),
            kept_targets: targets.iter().enumerate().map(|(index, run)| (run.rule, index)).collect(),
            ops: Vec::new(),
            matches: Vec::new(),
            targets: Vec::new(),
        }
    }

    pub(super) fn assemble(mut self) -> RuleVector {
        let ruleset = self.ruleset;
        let (order, starts) = layout(ruleset);
        let rows = match ruleset.family {
            Family::V4 => {
                let rows = self.rows(&order, &starts);
                let before = self.before(&rows, |previous| match previous {
                    Rows::V4(rows, runs) => Some((rows, runs)),
                    Rows::V6(..) => None,
                });
                let runs = Runs::of(&rows, self.chains(&order, &starts), before.as_ref());
                Rows::V4(rows.into(), runs)
            }
            Family::V6 => {
                let rows = self.rows(&order, &starts);
                let before = self.before(&rows, |previous| match previous {
                    Rows::V6(rows, runs) => Some((rows, runs)),
                    Rows::V4(..) => None,
                });
                let runs = Runs::of(&rows, self.chains(&order, &starts), before.as_ref());
                Rows::V6(rows.into(), runs)
            }
        };
        self.name_others(&order);
        let entry = |chain: ChainIndex| {
            let runs = PATH.contains(&chain) && ruleset.has(BUILTIN[chain].0);
            let policy = ruleset.chains[chain].policy.unwrap_or(Policy::Accept);
            runs.then_some(Entry { start: starts[chain], policy })
        };
        let entries: [Option<Entry>; BUILTIN_CHAINS] = std::array::from_fn(entry);
        // nat is asked by a connection's first packet alone.
        let of_every_packet = |chain: usize| chain != FORWARD && BUILTIN[chain].0 != TableName::Nat;
        let others = entries.iter().enumerate().filter(|(chain, entry)| of_every_packet(*chain) && entry.is_some());
        let only_filters = others.count() == 0;
        RuleVector {
            rows,
            ops: self.ops.into(),
            matches: self.matches.into(),
            targets: self.targets.into(),
            entries,
            places: places(ruleset, &order),
            names: names(ruleset),
            rule_count: ruleset.rule_count(),
            chain_count: ruleset.chains.len(),
            wants_conntrack: ruleset.wants_conntrack(),
            only_filters,
            translates: ruleset.translates(),
            host_translates: ruleset.given && ruleset.has(TableName::Nat),
        }
    }

    /// The previous vector, for the indices of `rows`.
    fn before<W: Word, const N: usize>(
        &self,
        rows: &[Row<W>],
        of_family: impl Fn(&'a Rows) -> Option<(&'a Box<[Row<W>]>, &'a Runs<N>)>,
    ) -> Option<Before<'a, W, N>> {
        let Previous { vector, unchanged } = self.previous?;
        let (old, runs) = of_family(&vector.rows)?;
        let mut row_of_rule = vec![None; vector.rule_count];
        for (at, row) in (0..).zip(old.iter()).filter(|(_, row)| row.action != Action::End) {
            row_of_rule[row.counter as usize] = Some(at);
        }
        let is_rule = |row: &&Row<W>| row.action != Action::End;
        let of = |row: &Row<W>| {
            let row = Some(row).filter(is_rule)?;
            row_of_rule[unchanged.get(row.counter as usize).copied()??]
        };
        Some(Before { rows: old, runs, row_before: rows.iter().map(of).collect() })
    }

    /// Rules that no forwarded packet comes to name their tables all the same: those live as long as any rule names them.
    fn name_others(&mut self, order: &[ChainIndex]) {
        let mut reached = vec![false; self.ruleset.chains.len()];
        order.iter().for_each(|&chain| reached[chain] = true);
        let others = self.ruleset.chains.iter().zip(&reached).filter(|(_, reached)| !**reached);
        for matched in others.flat_map(|(chain, _)| &chain.rules).flat_map(|rule| &rule.matches) {
            if matches!(matched, Match::Recent(_) | Match::Hashlimit(_)) {
                drop(matched.state(self.registry));
            }
        }
    }

    /// Where each chain begins, and its length.
    fn chains(&self, order: &[ChainIndex], starts: &[u32]) -> impl Iterator<Item = (usize, usize)> {
        order.iter().map(|&chain| (starts[chain] as usize, self.ruleset.chains[chain].rules.len()))
    }

    fn rows<W: Word>(&mut self, order: &[ChainIndex], starts: &[u32]) -> Vec<Row<W>> {
        let ruleset = self.ruleset;
        let mut counters = vec![0u32; ruleset.chains.len()];
        let mut counted = 0;
        for (first, chain) in counters.iter_mut().zip(&ruleset.chains) {
            *first = counted;
            counted += chain.rules.len() as u32;
        }
        let mut rows = Vec::with_capacity(order.iter().map(|&chain| ruleset.chains[chain].rules.len() + 1).sum());
        for &chain in order {
            for (index, rule) in ruleset.chains[chain].rules.iter().enumerate() {
                rows.push(self.row(rule, starts, counters[chain] + index as u32));
            }
            rows.push(Row::any(Action::End));
        }
        rows
    }

    fn row<W: Word>(&mut self, rule: &Rule, starts: &[u32], counter: u32) -> Row<W> {
        let mut row = Row::any(self.action(&rule.target, starts, counter));
        row.counter = counter;
        let mut address = |matched: &Option<AddrMatch>, bit: u8| match matched {
            None => (W::default(), W::default()),
            Some(AddrMatch { net, mask, invert }) => {
                row.invert |= if *invert { bit } else { 0 };
                (W::of(*net), W::of(*mask))
            }
        };
        let (src, dst) = (address(&rule.src, INVERT_SRC), address(&rule.dst, INVERT_DST));
        (row.src, row.src_mask) = src;
        (row.dst, row.dst_mask) = dst;
        if let Some(matched) = rule.proto {
            (row.proto, row.proto_mask) = (matched.number, 0xff);
            row.invert |= if matched.invert { INVERT_PROTO } else { 0 };
        }
        let ports = &self.ruleset.ports;
        row.ports = port_bits(&rule.in_interface, ports) | port_bits(&rule.out_interface, ports) << 4;
        if rule.fragment == Some(false) {
            // A fragment never comes this far.
            row.ports = 0;
        }
        self.matches(&rule.matches, &mut row);
        row
    }

    fn action(&mut self, target: &Target, starts: &[u32], rule: u32) -> Action {
        match target {
            Target::Count => Action::Count,
            Target::Accept => Action::Accept,
            Target::Drop => Action::Drop,
            Target::Return => Action::Return,
            Target::Jump(chain) => Action::Jump(starts[*chain]),
            Target::Goto(chain) => Action::Goto(starts[*chain]),
            _ => {
                // A set of that name may be another one now.
                let own = self.old_rule(rule).filter(|_| !matches!(target, Target::Set(_)));
                let kept = own.and_then(|old| self.kept_targets.get(&old));
                let state = match (kept, self.previous) {
                    (Some(&index), Some(previous)) => previous.vector.targets[index].state.clone(),
                    _ => Arc::new(target.state(self.registry)),
                };
                self.targets.push(RunTarget { target: target.clone(), state, rule });
                Action::Run(self.targets.len() as u32 - 1)
            }
        }
    }

    /// The number that a rule which stays had before.
    fn old_rule(&self, rule: u32) -> Option<u32> {
        self.previous?.unchanged.get(rule as usize).copied()?.map(|old| old as u32)
    }

    fn matches<W: Word>(&mut self, matches: &[Match], row: &mut Row<W>) {
        row.ops = self.ops.len() as u32;
        let mut pure = true;
        for (place, matched) in matches.iter().enumerate() {
            let Some(op) = self.op(matched, (row.counter, place as u32)) else { continue };
            pure = pure && row.inline(&op);
            row.inlined += u8::from(pure);
            row.ops_len += 1;
            self.ops.push(op);
        }
    }

    fn op(&mut self, matched: &Match, place: (u32, u32)) -> Option<Op> {
        Some(match matched {
            Match::Comment(_) => return None,
            Match::Tcp(tcp) => Op::Tcp(*tcp),
            Match::Udp(udp) => Op::Udp(*udp),
            Match::Icmp(icmp) => Op::Icmp(*icmp),
            Match::Icmp6(icmp) => Op::Icmp(icmp.0),
            Match::State(asked) => Op::State(states(BitMatch { bits: asked.states, invert: asked.invert })),
            Match::Conntrack(conntrack) if conntrack.states_alone().is_some() => {
                Op::State(conntrack.states_alone().map_or(0, states))
            }
            Match::Multiport(multiport) => Op::Multiport(multiport.clone()),
            other => {
                // What has a name is found by it.
                let is_named = matches!(other, Match::Set(_) | Match::Recent(_) | Match::Hashlimit(_));
                let own = self.old_rule(place.0).filter(|_| !is_named);
                let kept = own.and_then(|old| self.kept_matches.get(&(old, place.1)));
                let state = match (kept, self.previous) {
                    (Some(&index), Some(previous)) => previous.vector.matches[index].state.clone(),
                    _ => Arc::new(other.state(self.registry)),
                };
                self.matches.push(OtherMatch { matched: other.clone(), state, place });
                Op::Other(self.matches.len() as u32 - 1)
            }
        })
    }
}

/// Where each row comes from.
fn places(ruleset: &Ruleset, order: &[ChainIndex]) -> Box<[RowPlace]> {
    let of_chain = |&index: &ChainIndex| {
        let rules = &ruleset.chains[index].rules;
        let builtin = index < BUILTIN_CHAINS;
        let kinds = rules.iter().map(move |rule| TracePlace::of(rule, builtin)).chain([TracePlace::end(builtin)]);
        let row = move |(at, place)| RowPlace { chain: index as u32, number: at as u32 + 1, place };
        kinds.enumerate().map(row)
    };
    order.iter().flat_map(of_chain).collect()
}

fn names(ruleset: &Ruleset) -> Box<[ChainName]> {
    let name = |chain: &Chain| ChainName {
        table: chain.table,
        name: chain.name.as_str().into(),
        rules: chain.rules.len() as u32,
    };
    ruleset.chains.iter().map(name).collect()
}

/// The chains that forwarded packets reach, in the order of their rows, and by chain where its rows begin.
fn layout(ruleset: &Ruleset) -> (Vec<ChainIndex>, Vec<u32>) {
    let mut order: Vec<ChainIndex> = Vec::new();
    let mut starts = vec![u32::MAX; ruleset.chains.len()];
    let mut next = 0;
    for entry in PATH.into_iter().filter(|&chain| ruleset.has(BUILTIN[chain].0)) {
        for chain in ruleset.reachable_from(entry) {
            if starts[chain] == u32::MAX {
                starts[chain] = next;
                next += ruleset.chains[chain].rules.len() as u32 + 1;
                order.push(chain);
            }
        }
    }
    (order, starts)
}

/// The states that pass.
const fn states(asked: BitMatch) -> u16 {
    if asked.invert { state::STATES & !asked.bits } else { state::STATES & asked.bits }
}

/// Bit `p` is set when port `p` passes, bit [`NO_PORT`] when no port does; all four when anything does.
fn port_bits(matched: &Option<InterfaceMatch>, ports: &[String]) -> u8 {
    let Some(matched) = matched else { return 0x0f };
    let passes = |port: &u8| {
        let name = if *port == NO_PORT { "" } else { ports.get(usize::from(*port)).map_or("", String::as_str) };
        matched.covers(name) != matched.invert
    };
    (0..=NO_PORT).filter(passes).fold(0, |bits, port| bits | 1 << port)
}
