//! Where it plays, told once for both sides: addresses, routes and neighbours of the router, and the hosts around it.
//!
//! ```text
//!     10.5.0.0/16 -- .9 \                           / .9 -- 10.8.0.0/16
//!        10.1.0.2, 3, 4 -- lan (10.1.0.1, .11)   wan (10.2.0.1, .11, .12; 10.3.0.1) -- 10.2.0.2, 3
//!                                                   \ 10.3.0.9 -- 10.9.0.0/16
//! ```
//! The same for IPv6 with `fd01::/64` for `10.1.0.0/24` and so on. Nobody has 10.x.0.100 to 103 and 10.7.0.0/16: rules do.

use std::fmt::Write as _;
use std::net::IpAddr;

use xrouter::device::PortId;
use xrouter::route::{Kind, Prefix};
use xrouter::snapshot::{Routing, RoutingBuilder};
use xrouter::wire::{Addr, Family, Mac};

use crate::ends::{LAN_MAC, WAN_MAC};

pub(crate) const PORTS: [&str; 2] = ["lan", "wan"];
pub(crate) const MACS: [[u8; 6]; 2] = [LAN_MAC, WAN_MAC];
/// The WAN takes less than the LAN.
pub(crate) const MTU: [u16; 2] = [1500, 1400];

/// Host `host` of network `net`.
pub(crate) fn address(v6: bool, net: u8, host: u8) -> IpAddr {
    match v6 {
        false => IpAddr::from([10, net, 0, host]),
        true => IpAddr::from([0xfd00 + u16::from(net), 0, 0, 0, 0, 0, 0, u16::from(host)]),
    }
}

/// The router's own addresses: port, network, host; the first of a network is its primary one.
const OWN: [(PortId, u8, u8); 6] = [
    (PortId::LAN, 1, 1),
    (PortId::LAN, 1, 11),
    (PortId::WAN, 2, 1),
    (PortId::WAN, 2, 11),
    (PortId::WAN, 2, 12),
    (PortId::WAN, 3, 1),
];

/// Whether the router itself has this address.
pub(crate) fn is_own(ip: IpAddr) -> bool {
    OWN.iter().any(|(_, net, host)| address(ip.is_ipv6(), *net, *host) == ip)
}

/// Networks behind a gateway: port, network, the gateway's network.
const BEHIND: [(PortId, u8, u8); 3] = [(PortId::LAN, 5, 1), (PortId::WAN, 8, 2), (PortId::WAN, 9, 3)];
const GATEWAY: u8 = 9;

/// Networks that nobody is told the way to.
const CLOSED: [(u8, &str, Kind); 2] = [(97, "unreachable", Kind::Unreachable), (98, "prohibit", Kind::Prohibit)];

/// Whose link-layer address is known.
fn neighbours() -> impl Iterator<Item = (PortId, u8, u8)> {
    let hosts = |port, net| (2..=120).map(move |host| (port, net, host));
    let all = hosts(PortId::LAN, 1).chain(hosts(PortId::WAN, 2)).chain(hosts(PortId::WAN, 3));
    all.filter(|host| !OWN.contains(host))
}

fn mac(net: u8, host: u8) -> [u8; 6] {
    [2, net, 0, 0, 0, host]
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// For `ip -batch` in the router's namespace, once its ports are there: what is of one IP version.
pub(crate) fn commands(v6: bool) -> String {
    let mut text = String::from("link set lo up\n");
    for (name, mtu) in PORTS.iter().zip(MTU) {
        let _ = writeln!(text, "link set {name} mtu {mtu} up");
    }
    let (len, wide, nodad) = if v6 { (64, 64, " nodad") } else { (24, 16, "") };
    for (port, net, host) in OWN {
        let _ = writeln!(text, "addr add {}/{len} dev {}{nodad}", address(v6, net, host), PORTS[port.index()]);
    }
    for (port, net, host) in neighbours() {
        let (name, mac) = (PORTS[port.index()], mac_text(mac(net, host)));
        let _ = writeln!(text, "neigh add {} lladdr {mac} dev {name} nud permanent", address(v6, net, host));
    }
    for (_, net, via) in BEHIND {
        let _ = writeln!(text, "route add {}/{wide} via {}", address(v6, net, 0), address(v6, via, GATEWAY));
    }
    for (net, word, _) in CLOSED {
        let _ = writeln!(text, "route add {word} {}/{wide}", address(v6, net, 0));
    }
    text
}

/// The same for us.
pub(crate) fn routing() -> Routing {
    let mut builder = RoutingBuilder::new();
    for port in PortId::ALL {
        builder.add_port(port, PORTS[port.index()], Mac(MACS[port.index()]), MTU[port.index()]);
    }
    for (v6, family) in [(false, Family::V4), (true, Family::V6)] {
        let (len, wide) = if v6 { (64, 64) } else { (24, 16) };
        // As the kernel lists them: IPv6's youngest first.
        let order = |at: usize| if v6 { OWN.len() - 1 - at } else { at };
        for (port, net, host) in (0..OWN.len()).map(|at| OWN[order(at)]) {
            builder.add_address(port, address(v6, net, host), len);
        }
        for (port, net, host) in neighbours() {
            builder.add_neighbour(port, Addr::from(address(v6, net, host)), Mac(mac(net, host)));
        }
        let network = |net| Prefix::new(family, Addr::from(address(v6, net, 0)), wide);
        for (port, net, via) in BEHIND {
            builder.add_route(network(net), port, Some(Addr::from(address(v6, via, GATEWAY))));
        }
        for (net, _, kind) in CLOSED {
            builder.add_special_route(network(net), kind);
        }
    }
    builder.build()
}
