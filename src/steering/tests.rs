use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::wire::proto;

const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
const DCCP: u8 = 33;

/// 0x6d5a again and again: the key with which both directions have one hash (Woo and Park, 2012).
fn symmetric_key(len: usize) -> Vec<u8> {
    [0x6d, 0x5a].into_iter().cycle().take(len).collect()
}

/// 52 bytes without a pattern.
fn random_key() -> Vec<u8> {
    (0..52u32).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect()
}

fn all(fields: Fields) -> HashFields {
    HashFields {
        tcp4: fields,
        udp4: fields,
        sctp4: fields,
        other4: Fields::Addresses,
        tcp6: fields,
        udp6: fields,
        sctp6: fields,
        other6: Fields::Addresses,
    }
}

fn rss(key: Vec<u8>, transform: Transform, entries: u32, queues: u32) -> RssHash {
    RssHash {
        function: "toeplitz".to_owned(),
        key,
        transform,
        table: (0..entries).map(|entry| entry % queues).collect(),
        fields: all(Fields::AddressesAndPorts),
    }
}

fn nic(interface: &str, rss: RssHash) -> NicHash {
    NicHash { interface: interface.to_owned(), rss: Ok(rss) }
}

fn by_nics(workers: u16, rss: &RssHash) -> Steering {
    let steering = Steering::from_nics(workers, SECRET, &[nic("eth0", rss.clone()), nic("eth1", rss.clone())]);
    assert!(matches!(steering, Steering::Nic(_)), "{steering}");
    steering
}

/// Every kind of steering there is.
static KINDS: LazyLock<Vec<Steering>> = LazyLock::new(|| {
    let random = random_key();
    let mut two_tuple = rss(symmetric_key(40), Transform::None, 128, 4);
    two_tuple.fields.udp4 = Fields::Addresses;
    two_tuple.fields.other6 = Fields::None;
    vec![
        Steering::Alone,
        Steering::software(4, SECRET, "test"),
        Steering::software(3, SECRET, "test"),
        by_nics(4, &rss(symmetric_key(40), Transform::None, 128, 4)),
        by_nics(4, &rss(symmetric_key(52), Transform::None, 512, 16)),
        by_nics(4, &rss(random.clone(), Transform::SymmetricXor, 64, 4)),
        by_nics(3, &rss(random, Transform::SymmetricOrXor, 64, 4)),
        by_nics(4, &two_tuple),
    ]
});

fn inverse(flow: &Flow) -> Flow {
    let swapped = Flow { src: flow.dst, dst: flow.src, ..*flow };
    match ports(flow) {
        // The type is not looked at; whatever it is in the answer.
        Ports::One => Flow { dport: !flow.dport, ..swapped },
        _ => Flow { sport: flow.dport, dport: flow.sport, ..swapped },
    }
}

fn flows() -> impl Strategy<Value = Flow> {
    let protos =
        [proto::TCP, proto::UDP, proto::UDPLITE, proto::SCTP, DCCP, proto::ICMP, proto::ICMPV6, proto::GRE, proto::ESP];
    let addrs = prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(a, b)| (Family::V4, Addr::from_v4(a), Addr::from_v4(b))),
        (any::<u128>(), any::<u128>()).prop_map(|(a, b)| (Family::V6, Addr::from_v6(a), Addr::from_v6(b))),
    ];
    (addrs, any::<(u16, u16)>(), prop::sample::select(protos.to_vec()))
        .prop_map(|((family, src, dst), (sport, dport), proto)| Flow { src, dst, sport, dport, proto, family })
}

/// The bytes a NIC hashes, as the RSS specification and ethtool's transformations have them.
fn input(flow: &Flow, transform: Transform, with_ports: bool) -> Vec<u8> {
    let (a, b) = (flow.src.bits(), flow.dst.bits());
    let (p, q) = (flow.sport, flow.dport);
    let ((a, b), (p, q)) = match transform {
        Transform::None => ((a, b), (p, q)),
        Transform::SymmetricXor => ((a ^ b, a ^ b), (p ^ q, p ^ q)),
        Transform::SymmetricOrXor => ((a | b, a ^ b), (p | q, p ^ q)),
    };
    let skip = if flow.family == Family::V4 { 12 } else { 0 };
    let mut bytes = a.to_be_bytes()[skip..].to_vec();
    bytes.extend(&b.to_be_bytes()[skip..]);
    if with_ports {
        bytes.extend(p.to_be_bytes());
        bytes.extend(q.to_be_bytes());
    }
    bytes
}

proptest! {
    #[test]
    fn both_directions_have_one_home(flow in flows()) {
        for steering in KINDS.iter() {
            let home = steering.home(&flow);
            prop_assert!(home < steering.workers());
            prop_assert_eq!(home, steering.home(&inverse(&flow)), "{}", steering);
            prop_assert_eq!(steering.home_of_fragment(&flow), steering.home_of_fragment(&inverse(&flow)));
        }
    }

    #[test]
    fn fragments_go_by_addresses(flow in flows(), sport: u16, dport: u16) {
        for steering in KINDS.iter() {
            let other = Flow { sport, dport, ..flow };
            prop_assert_eq!(steering.home_of_fragment(&flow), steering.home_of_fragment(&other));
        }
    }

    #[test]
    fn a_prepared_flow_has_the_home_of_the_flow_with_that_port(flow in flows(), port: u16) {
        for steering in KINDS.iter() {
            let prepared = steering.prepare(&flow);
            let with_port = steering.home(&Flow { sport: port, ..flow });
            prop_assert_eq!(steering.home_with_port(&prepared, port), with_port, "{}", steering);
            prop_assert_eq!(steering.home_with_port(&prepared, flow.sport), steering.home(&flow));
            if let Some(home) = prepared.fixed() {
                prop_assert_eq!(home, with_port);
            }
        }
    }


    #[test]
    fn the_symmetric_key_needs_no_transformation(flow in flows()) {
        let Steering::Nic(nic) = &KINDS[3] else { unreachable!() };
        let with_ports = matches!(flow.proto, proto::TCP | proto::UDP | proto::SCTP);
        prop_assert_eq!(nic.hash(&flow), toeplitz::hash(&symmetric_key(40), &input(&flow, Transform::None, with_ports)));
    }
}

proptest! {
    // Each makes tables anew.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_home_is_what_the_nic_does(
        flow in flows(),
        key in prop::collection::vec(any::<u8>(), 40..=52),
        or in any::<bool>(),
        queues in 1u32..=16,
    ) {
        let transform = if or { Transform::SymmetricOrXor } else { Transform::SymmetricXor };
        let rss = rss(key, transform, 128, queues);
        let Steering::Nic(nic) = by_nics(4, &rss) else { unreachable!() };
        let with_ports = matches!(flow.proto, proto::TCP | proto::UDP | proto::SCTP);
        let hash = toeplitz::hash(&rss.key, &input(&flow, transform, with_ports));
        prop_assert_eq!(nic.hash(&flow), hash);
        prop_assert_eq!(u32::from(nic.home(&flow)), rss.table[hash as usize & 127] % 4);
        let of_fragment = toeplitz::hash(&rss.key, &input(&flow, transform, false));
        prop_assert_eq!(u32::from(nic.home_of_fragment(&flow)), rss.table[of_fragment as usize & 127] % 4);
    }
}

fn v4(src: u32, dst: u32, sport: u16, dport: u16) -> Flow {
    Flow { src: Addr::from_v4(src), dst: Addr::from_v4(dst), sport, dport, proto: proto::TCP, family: Family::V4 }
}

/// Addresses and ports as they are in a network, where they count up.
fn counting(n: u32) -> [(&'static str, Flow); 6] {
    let (client, server) = (0x0a00_0001, 0xc633_6401);
    let port = 1024 + (n % 64_000) as u16;
    let v6 = |n: u32| Addr::from_v6(0x2001_0db8 << 96 | u128::from(n));
    [
        ("clients", v4(client + n, server, 40_000, 443)),
        ("servers", v4(client, server + n, 40_000, 443)),
        ("ports", v4(client + n / 64_000, server, port, 443)),
        ("both", v4(client + n, server, port, 443)),
        ("IPv6", Flow { src: v6(n), dst: v6(0x100_0000), family: Family::V6, ..v4(0, 0, 40_000, 443) }),
        ("echo", Flow { proto: proto::ICMP, ..v4(client, server, n as u16, 0x0800) }),
    ]
}

#[test]
fn what_counts_up_is_spread_evenly() {
    const FLOWS: u32 = 40_000;
    for workers in [2u16, 3, 4, 8, 64] {
        for secret in [SECRET, [0, 0], [u64::MAX, 7]] {
            let steering = Steering::software(workers, secret, "test");
            let mut counts = [(); 6].map(|()| vec![0u32; usize::from(workers)]);
            for n in 0..FLOWS {
                for ((_, flow), counts) in counting(n).iter().zip(&mut counts) {
                    counts[usize::from(steering.home(flow))] += 1;
                }
            }
            let expected = f64::from(FLOWS) / f64::from(workers);
            for ((what, _), counts) in counting(0).iter().zip(&counts) {
                let chi_square: f64 = counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
                // Its mean is the degrees of freedom, its variance twice that; less often than once in 10^5 beyond this.
                let freedom = f64::from(workers - 1);
                let bound = freedom + 6.0 * (2.0 * freedom).sqrt() + 12.0;
                assert!(chi_square < bound, "{what} over {workers}: {chi_square:.1}, {counts:?}");
            }
        }
    }
}

#[test]
fn another_secret_gives_other_homes() {
    let [a, b] = [[1, 2], [1, 3]].map(|secret| Steering::software(2, secret, "test"));
    let same = (0..10_000).filter(|n| a.home(&counting(*n)[0].1) == b.home(&counting(*n)[0].1)).count();
    assert!((4_700..5_300).contains(&same), "{same}");
}

#[test]
fn ports_are_found_for_a_home() {
    for steering in KINDS.iter() {
        let flow = v4(0x0a00_0001, 0xc633_6401, 40_000, 443);
        let prepared = steering.prepare(&flow);
        let mut found = BTreeSet::new();
        for home in 0..steering.workers() {
            let port = steering.ports_at(&prepared, home, 1024..).next().expect("one of all ports");
            assert_eq!(steering.home(&Flow { sport: port, ..flow }), home, "{steering}");
            found.insert(port);
        }
        assert_eq!(found.len(), usize::from(steering.workers()));
        // Where the port makes no difference there are all or none.
        let gre = Flow { proto: proto::GRE, sport: 0, dport: 0, ..flow };
        let (prepared, home) = (steering.prepare(&gre), steering.home(&gre));
        assert_eq!(prepared.fixed(), Some(home));
        assert_eq!(steering.ports_at(&prepared, home, 1..10).count(), 9);
        assert_eq!(steering.ports_at(&prepared, home + 1, 1..10).count(), 0);
    }
}

#[test]
fn tables_of_different_sizes_may_agree() {
    let key = symmetric_key(40);
    let (small, large) = (rss(key.clone(), Transform::None, 64, 4), rss(key, Transform::None, 512, 4));
    let steering = Steering::from_nics(4, SECRET, &[nic("eth0", small), nic("eth1", large)]);
    assert_eq!(steering.to_string(), "home by NIC RSS: Toeplitz, symmetric key, 512 entries");
    // Queues that are of one worker are one.
    let [four, eight] = [4, 8].map(|queues| rss(random_key(), Transform::SymmetricXor, 128, queues));
    let steering = Steering::from_nics(4, SECRET, &[nic("eth0", four), nic("eth1", eight)]);
    assert_eq!(steering.to_string(), "home by NIC RSS: Toeplitz, symmetric-xor, 128 entries");
}

#[test]
fn one_worker_asks_nobody() {
    let unknown = NicHash { interface: "eth0".to_owned(), rss: Err("does not show its key".to_owned()) };
    let steering = Steering::from_nics(1, SECRET, &[unknown]);
    assert_eq!((&steering, steering.workers()), (&Steering::Alone, 1));
    assert_eq!(steering.to_string(), "one worker is the home of everything");
}

/// What `change` makes of the second NIC, both being fine before.
fn reason(change: impl Fn(&mut RssHash)) -> String {
    let good = rss(symmetric_key(40), Transform::None, 128, 4);
    let mut other = good.clone();
    change(&mut other);
    let steering = Steering::from_nics(4, SECRET, &[nic("eth0", good), nic("eth1", other)]);
    assert_eq!(steering.workers(), 4);
    let text = steering.to_string();
    text.strip_prefix("home by software hash: ").unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn what_keeps_the_nics_hash_from_being_used_is_told() {
    let hidden = NicHash { interface: "eth0".to_owned(), rss: Err("does not show its key".to_owned()) };
    let steering = Steering::from_nics(2, SECRET, &[hidden]);
    assert_eq!(steering.to_string(), "home by software hash: eth0 does not show its key");
    let told = [
        (reason(|nic| nic.function = "crc32".to_owned()), "eth1 hashes with crc32, not toeplitz"),
        (reason(|nic| nic.key.truncate(32)), "eth1 has a key of 32 bytes, fewer than 40"),
        (reason(|nic| nic.table.truncate(96)), "eth1 has an indirection table of 96 entries, which is no power of two"),
        (reason(|nic| nic.table.clear()), "eth1 has an indirection table of 0 entries, which is no power of two"),
        (
            reason(|nic| nic.fields.tcp6 = Fields::Other),
            "eth1 hashes TCP over IPv6 by something else than addresses and ports",
        ),
        (
            reason(|nic| nic.key[7] ^= 1),
            "eth1 hashes the two directions of a flow differently (its key is not symmetric)",
        ),
        (
            reason(|nic| nic.key[39] ^= 2),
            "eth1 hashes the two directions of a flow differently (its key is not symmetric)",
        ),
        (
            reason(|nic| nic.transform = Transform::SymmetricXor),
            "eth1 has a symmetric key and symmetric-xor, which cancel each other out: addresses do not count",
        ),
        (
            reason(|nic| nic.transform = Transform::SymmetricOrXor),
            "eth0 and eth1 transform the fields differently before they hash them",
        ),
        (reason(|nic| nic.key = [1, 2].into_iter().cycle().take(40).collect()), "eth0 and eth1 have different keys"),
        (reason(|nic| nic.table[5] = 2), "the indirection tables of eth0 and eth1 differ"),
        (
            reason(|nic| nic.fields.udp4 = Fields::Addresses),
            "eth0 hashes UDP over IPv4 by addresses and ports, eth1 by addresses",
        ),
    ];
    for (told, expected) in told {
        assert_eq!(told, expected);
    }
}

/// With a key that is not symmetric the two directions do have different hashes: the refusal is not out of caution.
#[test]
fn a_key_that_is_not_symmetric_parts_the_directions() {
    let mut key = symmetric_key(40);
    key[7] ^= 1;
    let flow = v4(u32::from(Ipv4Addr::new(10, 0, 0, 1)), u32::from(Ipv4Addr::new(198, 51, 100, 7)), 40_000, 443);
    let hashes = [flow, inverse(&flow)].map(|flow| toeplitz::hash(&key, &input(&flow, Transform::None, true)));
    assert_ne!(hashes[0], hashes[1]);
}
