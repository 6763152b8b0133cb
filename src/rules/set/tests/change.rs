//! Adding, deleting and expiring against a slow model.

use super::{Match, Target, table, tcp};
use crate::rules::generator::Version::V4;
use crate::time::Instant;
use crate::wire::Family;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What happens to a set.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// `--add-set`, with `--exist` and a time-out or not, by a packet from this host.
    Add { host: u8, exist: bool, timeout: bool },
    /// `--del-set`
    Delete(u8),
    /// Seconds go by.
    Wait(u64),
    /// Its text is loaded again.
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (2u8..12, any::<bool>(), any::<bool>()).prop_map(|(host, exist, timeout)| Step::Add { host, exist, timeout }),
        2 => (2u8..12).prop_map(Step::Delete),
        3 => (0u64..12).prop_map(Step::Wait),
        1 => Just(Step::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_set_that_packets_change_is_the_slow_model(
        steps in proptest::collection::vec(step(), 1..80),
        (timeout, capacity) in (prop_oneof![Just(None), Just(Some(0u64)), Just(Some(10))], 1usize..8),
    ) {
        let option = timeout.map_or_else(String::new, |seconds| format!(" timeout {seconds}"));
        let text = format!("create a hash:ip maxelem {capacity}{option}\n");
        let mut now = Instant::from_secs(1);
        let table = table(&text, now);
        let there = Match::new(&table, Family::V4, "--match-set a src");
        let add = |exist: bool, timeout: bool| {
            let words = format!("--add-set a src{}{}", if exist { " --exist" } else { "" }, if timeout { " --timeout 4" } else { "" });
            Target::new(&table, Family::V4, &words)
        };
        let adds = [[add(false, false), add(false, true)], [add(true, false), add(true, true)]];
        let delete = Target::new(&table, Family::V4, "--del-set a src");
        // When each host's element expires; u64::MAX seconds is never.
        let mut model: BTreeMap<u8, u64> = BTreeMap::new();
        for step in steps {
            let seconds = now.as_ns() / 1_000_000_000;
            let alive = |expires: &u64| seconds <= *expires;
            match step {
                Step::Add { host, exist, timeout: own } => {
                    adds[usize::from(exist)][usize::from(own)].run(&tcp(V4, host, 2, 1, 2), 0, now);
                    model.retain(|_, expires| alive(expires));
                    let expires = match (timeout, own) {
                        (None, _) | (Some(0), false) => u64::MAX,
                        (Some(_), true) => seconds + 4,
                        (Some(default), false) => seconds + default,
                    };
                    if model.contains_key(&host) {
                        if exist {
                            model.insert(host, expires);
                        }
                    } else if model.len() < capacity {
                        model.insert(host, expires);
                    }
                }
                Step::Delete(host) => {
                    delete.run(&tcp(V4, host, 2, 1, 2), 0, now);
                    model.remove(&host);
                }
                Step::Wait(seconds) => now = now + seconds * 1_000_000_000,
                Step::Reload => table.load("sets", &text, now).expect("the same sets"),
            }
            let seconds = now.as_ns() / 1_000_000_000;
            for host in 2..12 {
                let expected = model.get(&host).is_some_and(|expires| seconds <= *expires);
                prop_assert_eq!(there.holds(&tcp(V4, host, 2, 1, 2), 0, now), expected, "host {} after {:?}", host, step);
            }
            prop_assert!(table.len_of("a").expect("it is there") <= capacity);
        }
    }
}
