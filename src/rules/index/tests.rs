//! The index beside a plain walk over the bounds: same positions, in order, whatever was built, inserted or removed.

use super::*;
use proptest::prelude::*;

/// Values close together, so that rules overlap, and far apart.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        (0..4u32).prop_map(|low| 0x0a00_0000 | low),
        (0..4u32, 0..4u32).prop_map(|(high, low)| 0x0a00_0000 | high << 16 | low << 8),
        prop_oneof![Just(0), Just(u32::MAX)],
        any::<u32>(),
    ]
}

fn mask() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => (0..=32u32).prop_map(|len| !u32::MAX.checked_shr(len).unwrap_or(0)),
        2 => Just(u32::MAX),
        2 => Just(0),
        1 => prop_oneof![Just(0xff00_ff00), Just(0x0000_00ff), Just(1), any::<u32>()],
    ]
}

fn range() -> impl Strategy<Value = (u16, u16)> {
    prop_oneof![
        2 => Just((0, u16::MAX)),
        3 => prop_oneof![Just(22), Just(53), Just(80), 0..8u16, any::<u16>()].prop_map(|port| (port, port)),
        2 => (0..100u16, 0..2000u16).prop_map(|(low, span)| (low, low + span)),
        1 => Just((1024, u16::MAX)),
        // Round over the end.
        1 => (any::<u16>(), any::<u16>()),
    ]
}

fn bounds<const N: usize>() -> impl Strategy<Value = Bounds<N>> {
    let words = proptest::collection::vec((word(), mask()), N);
    let proto = prop_oneof![Just(None), Just(Some(6)), Just(Some(17)), any::<u8>().prop_map(Some)];
    let ports = prop_oneof![3 => Just(0xff), 1 => any::<u8>()];
    let states = prop_oneof![3 => Just(u16::MAX), 1 => 0..32u16];
    (words, range(), range(), proto, ports, states).prop_map(|(words, sport, dport, proto, ports, states)| Bounds {
        values: core::array::from_fn(|at| words[at].0 & words[at].1),
        masks: core::array::from_fn(|at| words[at].1),
        sport,
        dport,
        proto,
        ports,
        states,
    })
}

fn key<const N: usize>() -> impl Strategy<Value = Key<N>> {
    let words = proptest::collection::vec(word(), N);
    let port = || prop_oneof![0..8u16, Just(80), Just(1024), any::<u16>()];
    let proto = prop_oneof![Just(6), Just(17), any::<u8>()];
    (words, port(), port(), proto, 0..4u8, 0..4u8, 0..5u32).prop_map(|(words, sport, dport, proto, from, to, state)| {
        Key {
            words: core::array::from_fn(|at| words[at]),
            sport,
            dport,
            states: 1 << state,
            ports: 1 << from | 1 << (4 + to),
            proto,
        }
    })
}

/// A key inside a rule's bounds where that is possible, for more hits than chance gives.
fn into<const N: usize>(bounds: &Bounds<N>, key: &Key<N>) -> Key<N> {
    Key {
        words: core::array::from_fn(|at| key.words[at] & !bounds.masks[at] | bounds.values[at]),
        sport: bounds.sport.0,
        dport: bounds.dport.1,
        proto: bounds.proto.unwrap_or(key.proto),
        ..*key
    }
}

fn agree<const N: usize>(index: &Index<N>, rules: &[Bounds<N>], keys: &[Key<N>]) -> Result<(), TestCaseError> {
    prop_assert_eq!(index.len(), rules.len());
    let mut found = vec![0; keys.len()];
    index.first_batch(keys, &mut found);
    for (key, found) in keys.iter().zip(found) {
        let plain: Vec<u32> = (0..).zip(rules).filter(|(_, rule)| rule.hold(key)).map(|(at, _)| at).collect();
        let mut named = Vec::new();
        while let Some(at) = index.next(key, named.last().map_or(0, |last| last + 1)) {
            named.push(at);
        }
        prop_assert_eq!(&named, &plain);
        prop_assert_eq!(found, plain.first().copied().unwrap_or(NONE));
    }
    Ok(())
}

/// A change: the place in thousandths, and the rule to insert there, or none to remove.
type Change<const N: usize> = (u32, Option<Bounds<N>>);

fn check<const N: usize>(
    mut rules: Vec<Bounds<N>>,
    changes: Vec<Change<N>>,
    keys: Vec<Key<N>>,
) -> Result<(), TestCaseError> {
    let aimed = |rules: &[Bounds<N>]| -> Vec<Key<N>> {
        let inside = keys.iter().zip(rules.iter().rev().cycle().step_by(7)).map(|(key, rule)| into(rule, key));
        keys.iter().copied().chain(inside).collect()
    };
    let mut index = Index::build(&rules);
    agree(&index, &rules, &aimed(&rules))?;
    for (place, rule) in changes {
        let place = (rules.len() * place as usize / 1000) as u32;
        match rule {
            Some(rule) => {
                rules.insert(place as usize, rule);
                index.insert(place, &rule);
            }
            None if (place as usize) < rules.len() => {
                rules.remove(place as usize);
                index.remove(place);
            }
            None => {}
        }
    }
    agree(&index, &rules, &aimed(&rules))
}

fn changes<const N: usize>() -> impl Strategy<Value = Vec<Change<N>>> {
    let rule = prop_oneof![2 => bounds::<N>().prop_map(Some), 1 => Just(None)];
    proptest::collection::vec((0..=1000u32, rule), 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn linear_is_index_ipv4(
        rules in proptest::collection::vec(bounds::<V4>(), 0..400),
        changes in changes::<V4>(),
        keys in proptest::collection::vec(key::<V4>(), 80),
    ) {
        check(rules, changes, keys)?;
    }

    #[test]
    fn linear_is_index_ipv6(
        rules in proptest::collection::vec(bounds::<V6>(), 0..300),
        changes in changes::<V6>(),
        keys in proptest::collection::vec(key::<V6>(), 70),
    ) {
        check(rules, changes, keys)?;
    }
}

/// A rule for one port.
fn of_port(port: u16) -> Bounds<V4> {
    Bounds { dport: (port, port), ..Bounds::ANY }
}

fn to_port(port: u16) -> Key<V4> {
    Key { words: [1, 2], sport: 9, dport: port, states: 1, ports: 0x21, proto: 6 }
}

#[test]
fn rules_that_nothing_tells_apart_are_all_found() {
    // More than one leaf can have.
    let mut rules = vec![Bounds::ANY; 9000];
    rules[8999] = of_port(7);
    let mut index = Index::build(&rules);
    assert_eq!(index.next(&to_port(7), 8999), Some(8999));
    assert_eq!(index.next(&to_port(8), 8998), Some(8998));
    assert_eq!(index.next(&to_port(8), 8999), None);
    for _ in 0..40 {
        index.insert(5, &Bounds::ANY);
    }
    assert_eq!(index.next(&to_port(7), 9039), Some(9039));
    for at in (0..9039).rev().step_by(50) {
        index.remove(at);
    }
    assert_eq!(index.next(&to_port(7), 8858), Some(8858));
    assert_eq!(index.next(&to_port(8), 8857), Some(8857));
    assert_eq!(index.next(&to_port(8), 8858), None);
}

#[test]
fn a_chain_can_be_emptied_and_filled_again() {
    let mut index = Index::build(&[]);
    for count in [1, 40, 17] {
        (0..count).for_each(|at| index.insert(at, &of_port(at as u16)));
        assert_eq!(index.next(&to_port(count as u16 - 1), 0), Some(count - 1));
        (0..count).for_each(|_| index.remove(0));
        assert!(index.is_empty());
        assert_eq!(index.next(&to_port(0), 0), None);
    }
}

#[test]
fn a_chain_written_rule_by_rule_is_cut_like_one_read_at_once() {
    let mut index = Index::build(&[]);
    for port in 0..4000 {
        index.insert(u32::from(port), &of_port(port));
    }
    for port in (0..4000).step_by(37) {
        assert_eq!(index.next(&to_port(port), 0), Some(u32::from(port)));
    }
    let (_, blocks, _) = index.shape();
    assert!(blocks < 4000 / 4, "{blocks} blocks");
}

#[test]
fn memory_is_in_proportion_to_rules_that_all_lie_across() {
    // Port ranges of all widths, each across every cut: copying them all would take the square of their number.
    let rules: Vec<Bounds<V4>> =
        (0..4000u16).map(|at| Bounds { dport: (at * 8, 65_535 - at * 8), ..Bounds::ANY }).collect();
    let index = Index::build(&rules);
    let per_rule = index.bytes() / rules.len();
    assert!(per_rule < 512, "{per_rule} bytes a rule");
}
