//! What it costs to say which worker is a flow's home: no NIC, no kernel. Medians, in nanoseconds a flow.
//!
//! `bit by bit` is the Toeplitz hash as the specification has it, `12 tables` the same by a look-up for each byte; `home` is
//! what a packet costs, `with port` what one more port costs to whoever is looking for one.
//!
//! `cargo bench --bench steering`

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use xrouter::steering::{Fields, Flow, HashFields, NicHash, RssHash, Steering, Transform, toeplitz};
use xrouter::wire::{Addr, Family, proto};

const FLOWS: u32 = 1 << 16;
const ROUNDS: usize = 21;

fn flows(family: Family) -> Vec<Flow> {
    let addr = |number: u32| match family {
        Family::V4 => Addr::from_v4(number),
        Family::V6 => Addr::from_v6(0x2001_0db8 << 96 | u128::from(number)),
    };
    let flow = |n: u32| Flow {
        src: addr(0x0a00_0000 + n.wrapping_mul(0x9e37_79b1) % FLOWS),
        dst: addr(0xc633_6401),
        sport: 1024 + (n % 60_000) as u16,
        dport: 443,
        proto: proto::TCP,
        family,
    };
    (0..FLOWS).map(flow).collect()
}

fn nic_hash(transform: Transform) -> NicHash {
    let (all, addresses) = (Fields::AddressesAndPorts, Fields::Addresses);
    let fields = HashFields {
        tcp4: all,
        udp4: all,
        sctp4: all,
        other4: addresses,
        tcp6: all,
        udp6: all,
        sctp6: all,
        other6: addresses,
    };
    let key = [0x6d, 0x5a].into_iter().cycle().take(40).collect();
    let table = (0..128).map(|entry| entry % 4).collect();
    NicHash {
        interface: "eth0".to_owned(),
        rss: Ok(RssHash { function: "toeplitz".to_owned(), key, transform, table, fields }),
    }
}

/// The median over the rounds of what `work` takes for one of `count`.
fn measure(name: &str, count: usize, mut work: impl FnMut() -> u32) {
    let mut each: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            black_box(work());
            start.elapsed().as_nanos() as f64 / count as f64
        })
        .collect();
    each.sort_by(f64::total_cmp);
    println!("{name:<44} {:8.2} ns", each[ROUNDS / 2]);
}

fn input(flow: &Flow) -> [u8; 12] {
    let mut bytes = [0; 12];
    flow.src.write(Family::V4, &mut bytes, 0);
    flow.dst.write(Family::V4, &mut bytes, 4);
    bytes[8..10].copy_from_slice(&flow.sport.to_be_bytes());
    bytes[10..].copy_from_slice(&flow.dport.to_be_bytes());
    bytes
}

fn main() {
    let v4 = flows(Family::V4);
    let key: Vec<u8> = [0x6d, 0x5a].into_iter().cycle().take(40).collect();
    let few = &v4[..1024];
    measure("Toeplitz, IPv4 4-tuple, bit by bit", few.len(), || {
        few.iter().fold(0, |sum, flow| sum ^ toeplitz::hash(&key, &input(flow)))
    });
    let table = toeplitz::Table::<12>::new(&key, 0);
    measure("Toeplitz, IPv4 4-tuple, 12 tables", v4.len(), || {
        v4.iter().fold(0, |sum, flow| sum ^ table.hash(input(flow)))
    });
    let nics = |transform| [nic_hash(transform), nic_hash(transform)];
    let kinds = [
        ("alone", Steering::Alone),
        ("NIC, symmetric key", Steering::from_nics(4, [1, 2], &nics(Transform::None))),
        ("NIC, symmetric-or-xor", Steering::from_nics(4, [1, 2], &nics(Transform::SymmetricOrXor))),
        ("software", Steering::software(4, [1, 2], "measured")),
    ];
    for family in [Family::V4, Family::V6] {
        let flows = flows(family);
        for (name, steering) in &kinds {
            measure(&format!("home, {family:?}, {name}"), flows.len(), || {
                flows.iter().fold(0, |sum, flow| sum + u32::from(steering.home(flow)))
            });
            let prepared = steering.prepare(&flows[0]);
            measure(&format!("with port, {family:?}, {name}"), usize::from(u16::MAX), || {
                (1..=u16::MAX).fold(0, |sum, port| sum + u32::from(steering.home_with_port(&prepared, port)))
            });
        }
    }
}
