//! [`RouteTable`], routes as the kernel has them, and [`Tables`], what is compiled of them for lookups.
//!
//! Order of routes, first to last, is the kernel's. IPv4: without rules of the administrator's own the tables `local` and
//! `main` are one, the longest prefix wins, within a prefix `local` goes before `main`, then the smaller metric; if that
//! gives no way out, table `default` is asked (`fib_lookup`). IPv6: all of `local`, then all of `main`
//! (`fib6_rule_lookup`). Routes none of whose hops can be used are as if they were not there.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use super::fib::{Entry, Fib};
use super::mix;
use super::nexthop::{Action, Hops, Kind, Leaf, Link, Path, Route};
use super::prefix::Prefix;
use crate::device::PortId;
use crate::wire::{Addr, Family};

/// The tables that are looked into, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// `RT_TABLE_LOCAL`, 255.
    Local,
    /// `RT_TABLE_MAIN`, 254.
    Main,
    /// `RT_TABLE_DEFAULT`, 253 (IPv4 only).
    Default,
}

/// A route as the kernel has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteEntry {
    /// Its table.
    pub table: Table,
    /// What it is for.
    pub prefix: Prefix,
    /// `RTA_PRIORITY`: the smaller goes first.
    pub metric: u32,
    /// Among IPv6 routes of one metric the smaller goes first (0 high, 1 medium, 2 low; RFC 4191). 0 for IPv4.
    pub preference: u8,
    /// What it says.
    pub action: Action,
}

/// A route's place. Its order is that of lookups within a prefix; `order` tells routes apart that differ in nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct RouteKey {
    family: Family,
    bits: u128,
    len: u8,
    table: Table,
    metric: u32,
    preference: u8,
    order: u16,
}

impl RouteKey {
    fn of(route: &RouteEntry) -> RouteKey {
        let RouteEntry { table, prefix, metric, preference, .. } = *route;
        RouteKey {
            family: prefix.family(),
            bits: left_aligned(prefix),
            len: prefix.len(),
            table,
            metric,
            preference,
            order: 0,
        }
    }

    /// This place and all that differ in `order` only.
    fn equals(self) -> RangeInclusive<RouteKey> {
        RouteKey { order: 0, ..self }..=RouteKey { order: u16::MAX, ..self }
    }
}

fn left_aligned(prefix: Prefix) -> u128 {
    match prefix.family() {
        Family::V4 => u128::from(prefix.addr().v4_bits()) << 96,
        Family::V6 => prefix.addr().bits(),
    }
}

/// What a change did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing: it was so before.
    Same,
    /// The table is different now.
    Changed,
    /// The table is unchanged, because what is to become of several routes with one prefix and metric cannot be told from
    /// the kernel's message. All routes have to be read again.
    Ambiguous,
}

/// Routes as the kernel has them. A million of them take about 100 MB.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    routes: BTreeMap<RouteKey, u32>,
    actions: Actions,
}

impl RouteTable {
    /// Without routes.
    pub fn new() -> RouteTable {
        RouteTable::default()
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Forgets all routes.
    pub fn clear(&mut self) {
        *self = RouteTable::default();
    }

    /// Adds a route after those of the same prefix and metric, as when they are read in the kernel's order.
    pub fn append(&mut self, route: RouteEntry) {
        let key = RouteKey::of(&route);
        let order = self.routes.range(key.equals()).next_back().map_or(0, |(last, _)| last.order.saturating_add(1));
        let action = self.actions.intern(route.action);
        if let Some(old) = self.routes.insert(RouteKey { order, ..key }, action) {
            self.actions.release(old);
        }
    }

    /// The kernel says that this route is there now; `replace` is its `NLM_F_REPLACE`.
    pub fn put(&mut self, route: RouteEntry, replace: bool) -> Change {
        let key = RouteKey::of(&route);
        let mut equals = self.routes.range_mut(key.equals());
        match (equals.next(), equals.next()) {
            (None, _) => {
                self.append(route);
                Change::Changed
            }
            (Some((_, id)), None) if *self.actions.get(*id) == route.action => Change::Same,
            (Some((_, id)), None) if replace => {
                let old = *id;
                *id = self.actions.intern(route.action);
                self.actions.release(old);
                Change::Changed
            }
            _ => Change::Ambiguous,
        }
    }

    /// The kernel says that this route is gone.
    pub fn remove(&mut self, route: &RouteEntry) -> Change {
        let key = RouteKey::of(route);
        let mut equals = self.routes.range(key.equals());
        let Some((&first, &id)) = equals.next() else { return Change::Same };
        if equals.next().is_some() || !same_way(self.actions.get(id), &route.action) {
            return Change::Ambiguous;
        }
        self.routes.remove(&first);
        self.actions.release(id);
        Change::Changed
    }

    /// Compiles for lookups. `link` tells of an interface by its index; `secret` keys the choice among several hops.
    pub fn compile(&self, link: impl Fn(u32) -> Option<Link>, secret: [u64; 2]) -> Tables {
        let mut leaves = Leaves::new(&self.actions);
        let (mut v4, mut v4_default, mut v6) = (Vec::new(), Vec::new(), Vec::new());
        // Last address of the IPv6 prefix of table local that hides the main table's routes inside it.
        let mut hidden_to = None;
        for (key, &id) in &self.routes {
            let list = match (key.family, key.table) {
                (Family::V4, Table::Local | Table::Main) => &mut v4,
                (Family::V4, Table::Default) => &mut v4_default,
                (Family::V6, Table::Local) => &mut v6,
                (Family::V6, Table::Main) if hidden_to.is_none_or(|last| key.bits > last) => &mut v6,
                (Family::V6, _) => continue,
            };
            // The first usable route of a prefix is the prefix's.
            if list.last().is_some_and(|&(bits, len, _)| (bits, len) == (key.bits, key.len)) {
                continue;
            }
            let Some(value) = leaves.value(id, key.family, &link) else { continue };
            if (key.family, key.table) == (Family::V6, Table::Local) {
                if self.actions.get(id).kind == Kind::Throw {
                    continue;
                }
                let last = key.bits | u128::MAX.checked_shr(key.len.into()).unwrap_or(0);
                hidden_to = hidden_to.max(Some(last));
            }
            list.push((key.bits, key.len, value));
        }
        Tables {
            v4: Fib::build(&cut(&v4)),
            v4_default: (!v4_default.is_empty()).then(|| Fib::build(&cut(&v4_default))),
            v6: Fib::build(&v6.iter().map(|&(key, len, value)| Entry { key, len, value }).collect::<Vec<_>>()),
            leaves: leaves.leaves,
            secret,
        }
    }
}

/// IPv4 prefixes as keys of their own width.
fn cut(list: &[(u128, u8, u32)]) -> Vec<Entry<u64>> {
    list.iter().map(|&(bits, len, value)| Entry { key: (bits >> 64) as u64, len, value }).collect()
}

/// Whether both say the same but for what may change while a route dies.
fn same_way(a: &Action, b: &Action) -> bool {
    let ways = |hops: &Hops| hops.as_slice().iter().map(|hop| (hop.ifindex, hop.gateway)).collect::<Vec<_>>();
    a.kind == b.kind && ways(&a.hops) == ways(&b.hops)
}

/// Actions by number, each kept once.
#[derive(Clone, Debug, Default)]
struct Actions {
    list: Vec<(Action, usize)>,
    numbers: HashMap<Action, u32>,
    free: Vec<u32>,
}

impl Actions {
    fn get(&self, id: u32) -> &Action {
        &self.list[id as usize].0
    }

    fn intern(&mut self, action: Action) -> u32 {
        if let Some(&id) = self.numbers.get(&action) {
            self.list[id as usize].1 += 1;
            return id;
        }
        let id = match self.free.pop() {
            Some(id) => {
                self.list[id as usize] = (action.clone(), 1);
                id
            }
            None => {
                self.list.push((action.clone(), 1));
                self.list.len() as u32 - 1
            }
        };
        self.numbers.insert(action, id);
        id
    }

    fn release(&mut self, id: u32) {
        let (action, users) = &mut self.list[id as usize];
        *users -= 1;
        if *users == 0 {
            self.numbers.remove(action);
            self.free.push(id);
        }
    }
}

/// Leaves while compiling: one per distinct meaning, each action resolved once per family.
struct Leaves<'a> {
    actions: &'a Actions,
    leaves: Vec<Leaf>,
    numbers: HashMap<Leaf, u32>,
    resolved: [Vec<Option<Option<u32>>>; 2],
}

impl Leaves<'_> {
    fn new(actions: &Actions) -> Leaves<'_> {
        let none = Leaf::One(Path { route: Route::NoRoute, prefsrc: None });
        let unresolved = vec![None; actions.list.len()];
        let resolved = [unresolved.clone(), unresolved];
        Leaves { actions, leaves: vec![none], numbers: HashMap::new(), resolved }
    }

    /// The value a prefix with this action gets; None when it cannot be used now.
    fn value(&mut self, action: u32, family: Family, link: impl Fn(u32) -> Option<Link>) -> Option<u32> {
        let place = &mut self.resolved[usize::from(family == Family::V6)][action as usize];
        if let Some(known) = *place {
            return known;
        }
        let value = Leaf::resolve(self.actions.get(action), family, link).map(|leaf| {
            *self.numbers.entry(leaf.clone()).or_insert_with(|| {
                self.leaves.push(leaf);
                self.leaves.len() as u32 - 1
            })
        });
        *place = Some(value);
        value
    }
}

/// How a source address stands to the port it came in by (`__fib_validate_source`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReversePath {
    /// The way back leaves through that port.
    SamePort,
    /// There is a way back, through something else.
    OtherPort,
    /// The host's own address.
    Local,
    /// A broadcast or multicast address.
    NotUnicast,
    /// There is no way back.
    None,
}

/// Compiled routes of both families. Immutable, shared by all workers.
#[derive(Debug)]
pub struct Tables {
    v4: Fib<u64>,
    v4_default: Option<Fib<u64>>,
    v6: Fib<u128>,
    leaves: Vec<Leaf>,
    secret: [u64; 2],
}

impl Tables {
    /// What becomes of a packet from `src` to `dst`. `src` matters only where a route has several hops: then it chooses
    /// one, the same for all packets of a pair of addresses (`fib_multipath_hash` with policy 0, layer 3).
    #[inline]
    pub fn lookup(&self, family: Family, src: Addr, dst: Addr) -> Route {
        self.path(family, src, dst).map_or(Route::NoRoute, |path| path.route)
    }

    /// The source the matching route prefers for the host's own packets to `dst` (`RTA_PREFSRC`), beside the route.
    pub(crate) fn lookup_with_source(&self, family: Family, src: Addr, dst: Addr) -> (Route, Option<Addr>) {
        self.path(family, src, dst).map_or((Route::NoRoute, None), |path| (path.route, path.prefsrc))
    }

    #[inline]
    fn path(&self, family: Family, src: Addr, dst: Addr) -> Option<&Path> {
        self.leaf(family, dst).path(|| self.flow_hash(src, dst))
    }

    #[inline]
    fn leaf(&self, family: Family, dst: Addr) -> &Leaf {
        match family {
            Family::V4 => {
                let key = u64::from(dst.v4_bits()) << 32;
                let leaf = &self.leaves[self.v4.lookup(key) as usize];
                match &self.v4_default {
                    Some(default) if !leaf.is_way() => &self.leaves[default.lookup(key) as usize],
                    _ => leaf,
                }
            }
            Family::V6 => &self.leaves[self.v6.lookup(dst.bits()) as usize],
        }
    }

    /// Which way back to `src` there is, seen from `port`.
    pub(crate) fn reverse_path(&self, family: Family, src: Addr, port: PortId) -> ReversePath {
        let through = |route: &Route| matches!(route, Route::Forward { port: out, .. } if *out == port);
        match self.leaf(family, src) {
            Leaf::Throw => ReversePath::None,
            Leaf::Many(ways) if ways.iter().any(|(_, path)| through(&path.route)) => ReversePath::SamePort,
            Leaf::Many(_) => ReversePath::OtherPort,
            Leaf::One(path) => match path.route {
                Route::Forward { .. } if through(&path.route) => ReversePath::SamePort,
                Route::Forward { .. } | Route::Elsewhere => ReversePath::OtherPort,
                Route::Local => ReversePath::Local,
                Route::Broadcast | Route::Multicast => ReversePath::NotUnicast,
                Route::Unreachable | Route::Prohibit | Route::Blackhole | Route::NoRoute => ReversePath::None,
            },
        }
    }

    /// 64 bits that depend on both addresses and on the secret.
    #[inline]
    fn flow_hash(&self, src: Addr, dst: Addr) -> u64 {
        let ((a, b), (c, d)) = (src.words(), dst.words());
        let [k, l] = self.secret;
        mix(mix(a ^ k, b ^ l) ^ c.rotate_left(17), mix(c ^ l, d ^ k) ^ b.rotate_left(29))
    }

    /// Prefixes it was compiled from, IPv4 and IPv6.
    pub fn len(&self) -> (usize, usize) {
        (self.v4.len() + self.v4_default.as_ref().map_or(0, Fib::len), self.v6.len())
    }

    /// Bytes it occupies, without the few next hops.
    pub fn memory_bytes(&self) -> usize {
        self.v4.memory_bytes() + self.v4_default.as_ref().map_or(0, Fib::memory_bytes) + self.v6.memory_bytes()
    }
}
