//! What rules share by name: [`Registry`], while they are compiled.
//!
//! One for a whole policy, both IP versions. Linux keeps such a table while any rule names it, and new rules name it before
//! the old ones are gone: so a registry begins as its predecessor's [`Registry::successor`], and what no rule has named is
//! forgotten with [`Registry::forget_unused`] once all are compiled.

use super::limit::jiffies;
use super::matches::{HashlimitTable, RecentTable};
use super::rule::Ruleset;
use super::set::SetTable;
use crate::time::Instant;
use crate::wire::Family;
use std::sync::Arc;

/// Tables that several rules share by name.
#[derive(Debug, Default)]
pub struct Registry {
    /// The sets the rules were checked against. They outlive the rules.
    pub(super) sets: Arc<SetTable>,
    /// Interface names, by [`crate::device::PortId`].
    pub(super) ports: Vec<String>,
    /// Keys the hashes over what attackers choose; must not be known to those on the links.
    pub(super) secret: [u64; 2],
    /// `-m recent`: one name space for both IP versions.
    pub(super) recent: Shared<RecentTable>,
    /// `-m hashlimit`: one name space for each IP version.
    pub(super) hashlimit: Shared<HashlimitTable>,
}

/// The tables of one kind.
#[derive(Debug)]
pub(super) struct Shared<T> {
    tables: Vec<Named<T>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared { tables: Vec::new() }
    }
}

#[derive(Debug)]
struct Named<T> {
    name: String,
    family: Option<Family>,
    table: Arc<T>,
    /// A rule of this policy has named it.
    used: bool,
}

impl Registry {
    /// An empty one. `secret` keys the hashes over what attackers choose: those on the links must not know it.
    pub fn new(secret: [u64; 2]) -> Registry {
        Registry { secret, ..Registry::default() }
    }

    /// For the next policy: the same tables, none of them named by a rule yet.
    pub fn successor(&self) -> Registry {
        Registry {
            sets: Arc::clone(&self.sets),
            ports: self.ports.clone(),
            secret: self.secret,
            recent: self.recent.successor(),
            hashlimit: self.hashlimit.successor(),
        }
    }

    /// Takes what `ruleset`, which is about to be compiled, was loaded with.
    pub(super) fn surround(&mut self, ruleset: &Ruleset) {
        self.sets = Arc::clone(&ruleset.sets);
        self.ports.clone_from(&ruleset.ports);
    }

    /// Forgets tables that no rule names.
    pub fn forget_unused(&mut self) {
        self.recent.tables.retain(|named| named.used);
        self.hashlimit.tables.retain(|named| named.used);
    }

    /// Names of the lists of `-m recent`, in order of first mention.
    pub fn recent_names(&self) -> impl Iterator<Item = &str> {
        self.recent.iter().map(|(name, _, _)| name)
    }

    /// A list of `-m recent` as /proc/net/xt_recent/NAME prints it, the address not seen for longest first. Times are
    /// milliseconds since the router's start of time.
    pub fn recent_listing(&self, name: &str) -> Option<String> {
        let mut lists = self.recent.iter().filter(|one| one.0 == name);
        lists.next().map(|(_, _, table)| table.listing())
    }

    /// Names of the tables of `-m hashlimit`, in order of first mention.
    pub fn hashlimit_names(&self) -> impl Iterator<Item = (&str, Family)> {
        self.hashlimit.iter().filter_map(|(name, family, _)| Some((name, family?)))
    }

    /// A table of `-m hashlimit` as /proc/net/ipt_hashlimit/NAME or ip6t_hashlimit/NAME prints it, the bucket idle for longest
    /// first. `now` is the time of the router's own clock.
    pub fn hashlimit_listing(&self, name: &str, family: Family, now: Instant) -> Option<String> {
        let mut tables = self.hashlimit.iter().filter(|one| one.0 == name && one.1 == Some(family));
        tables.next().map(|(_, _, table)| table.listing(jiffies(now)))
    }
}

impl<T> Shared<T> {
    /// The table of this name, made if there is none; and whether it was there.
    pub(super) fn named(&mut self, name: &str, family: Option<Family>, make: impl FnOnce() -> T) -> (Arc<T>, bool) {
        let known = self.tables.iter_mut().find(|named| named.name == name && named.family == family);
        if let Some(named) = known {
            named.used = true;
            return (Arc::clone(&named.table), true);
        }
        let table = Arc::new(make());
        self.tables.push(Named { name: name.to_owned(), family, table: Arc::clone(&table), used: true });
        (table, false)
    }

    /// Names and tables, in order of first mention.
    fn iter(&self) -> impl Iterator<Item = (&str, Option<Family>, &T)> {
        self.tables.iter().map(|named| (named.name.as_str(), named.family, &*named.table))
    }

    fn successor(&self) -> Shared<T> {
        let unused = |named: &Named<T>| Named {
            name: named.name.clone(),
            family: named.family,
            table: Arc::clone(&named.table),
            used: false,
        };
        Shared { tables: self.tables.iter().map(unused).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lives_on_while_rules_name_it() {
        let mut first: Shared<u32> = Shared::default();
        let (one, was_there) = first.named("one", None, || 1);
        assert!(!was_there);
        first.named("two", None, || 2);
        let mut next = Registry { ..Registry::default() };
        let mut second = first.successor();
        let (again, was_there) = second.named("one", None, || 3);
        assert!(was_there && Arc::ptr_eq(&one, &again));
        assert!(!second.named("one", Some(Family::V4), || 4).1, "another name space");
        second.tables.retain(|named| named.used);
        let left: Vec<(&str, u32)> = second.iter().map(|(name, _, table)| (name, *table)).collect();
        assert_eq!(left, [("one", 1), ("one", 4)]);
        next.forget_unused();
        assert_eq!(next.recent.iter().count(), 0);
    }
}
