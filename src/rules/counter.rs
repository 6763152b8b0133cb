//! Packets and bytes per rule and policy: [`RuleCounters`].
//!
//! One per worker and policy generation, made by [`super::RuleVector::counters`]; added up when they are read. Never
//! shared, so counting costs two additions. When the rules change, [`RuleCounters::carry`] takes over what was counted for
//! those that stay.

use super::rule::{BUILTIN_CHAINS, ChainIndex, Ruleset};

/// Packets, and bytes of whole IP packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP header included.
    pub bytes: u64,
}

impl Counter {
    /// One packet of `bytes` more.
    #[inline]
    pub fn count(&mut self, bytes: u16) {
        self.packets += 1;
        self.bytes += u64::from(bytes);
    }

    pub(super) fn add(&mut self, other: &Counter) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Counters of one ruleset. Rules are numbered by [`Ruleset::counter_index`], policies by their chain's index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleCounters {
    pub(super) rules: Box<[Counter]>,
    /// By chain; zero for user chains.
    pub(super) policies: Box<[Counter]>,
}

impl RuleCounters {
    /// All zero, for `ruleset`.
    pub fn new(ruleset: &Ruleset) -> RuleCounters {
        RuleCounters::with_rules(ruleset.rule_count(), ruleset.chains.len())
    }

    pub(super) fn with_rules(rules: usize, chains: usize) -> RuleCounters {
        let zeros = |count| vec![Counter::default(); count].into();
        RuleCounters { rules: zeros(rules), policies: zeros(chains) }
    }

    /// Counter of the rule with this [`Ruleset::counter_index`].
    pub fn rule(&self, index: usize) -> Option<Counter> {
        self.rules.get(index).copied()
    }

    /// Counter of a built-in chain's policy.
    pub fn policy(&self, chain: usize) -> Option<Counter> {
        self.policies.get(chain).copied()
    }

    /// All rules, in order.
    pub fn rules(&self) -> &[Counter] {
        &self.rules
    }

    /// Adds another worker's counts.
    ///
    /// # Panics
    /// When they are not of the same ruleset.
    pub fn add(&mut self, other: &RuleCounters) {
        assert_eq!(self.rules.len(), other.rules.len(), "counters of different rulesets");
        self.rules.iter_mut().zip(&other.rules).for_each(|(mine, theirs)| mine.add(theirs));
        self.policies.iter_mut().zip(&other.policies[..]).for_each(|(mine, theirs)| mine.add(theirs));
    }

    /// The policies of these chains begin at zero.
    pub fn zero_policies(&mut self, chains: &[ChainIndex]) {
        chains.iter().for_each(|&chain| self.policies[chain] = Counter::default());
    }

    /// These counts of `old`'s rules, for the rules of `new`. `pairs` says which of them `old` had ([`super::unchanged`]); the
    /// others begin at zero, and so does a policy that is another now.
    ///
    /// # Panics
    /// When they are not of these rulesets.
    pub fn carry(&self, old: &Ruleset, new: &Ruleset, pairs: &[Option<usize>]) -> RuleCounters {
        let mut carried = RuleCounters::new(new);
        assert_eq!((self.rules.len(), carried.rules.len()), (old.rule_count(), pairs.len()), "of other rulesets");
        for (counter, pair) in carried.rules.iter_mut().zip(pairs) {
            *counter = pair.map_or(Counter::default(), |number| self.rules[number]);
        }
        for chain in 0..BUILTIN_CHAINS {
            if old.chains[chain].policy == new.chains[chain].policy {
                carried.policies[chain] = self.policies[chain];
            }
        }
        carried
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{FORWARD, load, unchanged};
    use crate::wire::Family;

    #[test]
    fn counters_add_up() {
        let mut a = RuleCounters::with_rules(2, 2);
        let mut b = a.clone();
        a.rules[0].count(100);
        b.rules[0].count(60);
        b.policies[1].count(1);
        a.add(&b);
        assert_eq!(a.rule(0), Some(Counter { packets: 2, bytes: 160 }));
        assert_eq!((a.policy(1), a.rule(2)), (Some(Counter { packets: 1, bytes: 1 }), None));
    }

    #[test]
    fn counts_stay_with_their_rules_and_policies() {
        let load = |policy: &str, rules: &str| {
            let text = format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD {policy} [0:0]\n{rules}COMMIT\n");
            load("test", &text, Family::V4, &[]).expect("good rules")
        };
        let old = load("DROP", "-A FORWARD -p tcp -j ACCEPT\n-A FORWARD -p udp -j ACCEPT\n");
        let new = load("DROP", "-A FORWARD -p udp -j ACCEPT\n-A FORWARD -p icmp -j ACCEPT\n");
        let mut counters = RuleCounters::new(&old);
        counters.rules[0].count(100);
        counters.rules[1].count(60);
        counters.policies[FORWARD].count(20);
        let carried = counters.carry(&old, &new, &unchanged(&old, &new));
        let packets: Vec<u64> = carried.rules().iter().map(|counter| counter.packets).collect();
        assert_eq!((packets, carried.policy(FORWARD).expect("a policy").bytes), (vec![1, 0], 20));
        assert_eq!(carried.rule(0), Some(Counter { packets: 1, bytes: 60 }));
        let other = load("ACCEPT", "");
        let carried = counters.carry(&old, &other, &unchanged(&old, &other));
        assert_eq!(carried.policy(FORWARD), Some(Counter::default()));
    }
}
