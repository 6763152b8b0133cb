//! Which rules of a new file the old one had, too: [`unchanged`].
//!
//! A rule is the same when its table, its chain and its text (as `iptables-save` prints it) are; where a text stands several
//! times in a chain, the first is the first's successor, the second the second's, and so on. Whether others were put between
//! does not matter: what is counted for a rule, and the credit of its `limit`, stay with it when its place moves.

use std::collections::HashMap;

use super::rule::Ruleset;
use super::save::rule_text;

/// The rules of `ruleset` as text, each with its table's name, by [`Ruleset::counter_index`].
pub fn rule_texts(ruleset: &Ruleset) -> Vec<(&'static str, String)> {
    let mut texts = Vec::with_capacity(ruleset.rule_count());
    for chain in &ruleset.chains {
        for rule in &chain.rules {
            texts.push((chain.table.name(), rule_text(ruleset.family, &chain.name, rule, &ruleset.chains)));
        }
    }
    texts
}

/// For each rule of `new`, the number of the same rule in `old`; numbers are those of [`Ruleset::counter_index`]. No rule of
/// `old` is given twice. Rulesets of different IP versions have nothing in common.
///
/// ```
/// use xrouter::rules::{load, unchanged};
/// use xrouter::wire::Family;
///
/// let file = |rules: &str| {
///     let text = format!("*filter\n:FORWARD DROP [0:0]\n{rules}COMMIT\n");
///     load("x", &text, Family::V4, &[]).expect("good rules")
/// };
/// let old = file("-A FORWARD -p tcp -j ACCEPT\n-A FORWARD -p udp -j ACCEPT\n");
/// let new = file("-A FORWARD -p udp -j ACCEPT\n-A FORWARD -p icmp -j ACCEPT\n-A FORWARD -p tcp -j ACCEPT\n");
/// assert_eq!(unchanged(&old, &new), [Some(1), None, Some(0)]);
/// ```
pub fn unchanged(old: &Ruleset, new: &Ruleset) -> Vec<Option<usize>> {
    let new_texts = rule_texts(new);
    if old.family != new.family {
        return vec![None; new_texts.len()];
    }
    let old_texts = rule_texts(old);
    // The first rule with each text, and for each rule the next one with the same text.
    let mut first: HashMap<&(&'static str, String), usize> = HashMap::with_capacity(old_texts.len());
    let mut next: Vec<Option<usize>> = vec![None; old_texts.len()];
    for (number, text) in old_texts.iter().enumerate().rev() {
        next[number] = first.insert(text, number);
    }
    let mut take = |text: &(&'static str, String)| {
        let place = first.get_mut(text)?;
        let number = *place;
        match next[number] {
            Some(following) => *place = following,
            None => {
                first.remove(text);
            }
        }
        Some(number)
    };
    new_texts.iter().map(&mut take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::generator::{self, Allowed, Version};
    use crate::rules::load;
    use crate::wire::Family;
    use proptest::prelude::*;

    fn ruleset(rules: &str) -> Ruleset {
        let text =
            format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:a - [0:0]\n:b - [0:0]\n{rules}COMMIT\n");
        load("test", &text, Family::V4, &["lan", "wan"]).expect("good rules")
    }

    #[test]
    fn the_same_text_in_another_chain_is_another_rule() {
        let old = ruleset("-A FORWARD -j a\n-A a -p tcp -j DROP\n-A b -p tcp -j DROP\n");
        let new = ruleset("-A FORWARD -j b\n-A FORWARD -j a\n-A b -p tcp -j DROP\n");
        // FORWARD: `-j b` is new, `-j a` was 0; b: was the third.
        assert_eq!(unchanged(&old, &new), [None, Some(0), Some(2)]);
    }

    #[test]
    fn spellings_of_one_rule_are_one_rule() {
        let old = ruleset("-A FORWARD -p 6 -m tcp --dport ssh -j ACCEPT\n");
        let new = ruleset("-A FORWARD -j ACCEPT -p tcp --dport 22:22\n");
        assert_eq!(unchanged(&old, &new), [Some(0)]);
    }

    #[test]
    fn duplicates_follow_each_other_in_order() {
        let old = ruleset("-A a -j DROP\n-A FORWARD -p tcp\n-A FORWARD -p tcp\n-A FORWARD -p udp\n-A FORWARD -p tcp\n");
        let two = ruleset("-A FORWARD -p tcp\n-A FORWARD -p tcp\n");
        assert_eq!(unchanged(&old, &two), [Some(0), Some(1)]);
        let four = ruleset("-A FORWARD -p tcp\n-A FORWARD -p tcp\n-A FORWARD -p tcp\n-A FORWARD -p tcp\n");
        assert_eq!(unchanged(&old, &four), [Some(0), Some(1), Some(3), None]);
    }

    #[test]
    fn versions_have_nothing_in_common() {
        let v4 = ruleset("-A FORWARD -p tcp\n");
        let v6 = load("test", "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -p tcp\nCOMMIT\n", Family::V6, &[]);
        assert_eq!(unchanged(&v4, &v6.expect("good rules")), [None]);
    }

    proptest! {
        #[test]
        fn a_ruleset_is_unchanged_from_itself_and_pairs_are_of_one_text(
            texts in proptest::collection::vec(
                generator::ruleset(Version::V4, Allowed { fast_limits: true, odd: false }), 2..3)
        ) {
            let load = |text: &str| load("test", text, Family::V4, &["lan0", "wan0"]).expect("a generated file is good");
            let (old, new) = (load(&texts[0]), load(&texts[1]));
            prop_assert_eq!(unchanged(&old, &old), (0..old.rule_count()).map(Some).collect::<Vec<_>>());
            let (before, after) = (rule_texts(&old), rule_texts(&new));
            prop_assert_eq!((before.len(), after.len()), (old.rule_count(), new.rule_count()));
            let pairs = unchanged(&old, &new);
            let mut used: Vec<usize> = pairs.iter().copied().flatten().collect();
            for (number, pair) in pairs.iter().enumerate() {
                prop_assert!(pair.is_none_or(|pair| before[pair] == after[number]));
                if pair.is_none() {
                    let left = before.iter().filter(|text| **text == after[number]).count();
                    let wanted = after[..number].iter().filter(|text| **text == after[number]).count();
                    prop_assert!(wanted >= left, "{:?} was there to be had", after[number]);
                }
            }
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(used.len(), pairs.iter().flatten().count());
        }
    }
}
