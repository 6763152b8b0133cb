//! Where a scenario plays: the router's two ports, their addresses, routes, neighbours and MTUs, with the usual ones
//! unless the scenario's header says otherwise. Immutable once the header is read.
//!
//! Every neighbour's MAC address follows from its port and the last byte of its address, so that nobody has to write one.

use std::net::IpAddr;

/// The router's own link-local address, on both ports.
pub(crate) const LINK_LOCAL: &str = "fe80::1";

/// One of the router's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Port {
    /// The inside.
    Lan,
    /// The outside.
    Wan,
}

impl Port {
    pub(crate) const ALL: [Port; 2] = [Port::Lan, Port::Wan];

    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// The port's word in the language, and its usual interface name.
    pub(crate) fn word(self) -> &'static str {
        ["lan", "wan"][self.index()]
    }

    pub(crate) fn from_word(word: &str) -> Option<Port> {
        Port::ALL.into_iter().find(|port| port.word() == word)
    }

    /// The router's own MAC address on this port.
    pub(crate) fn mac(self) -> [u8; 6] {
        [2, 1 + self as u8, 0, 0, 0, 1]
    }

    /// The router's own address on this port.
    pub(crate) fn address(self, v4: bool) -> IpAddr {
        let text = match (self, v4) {
            (Port::Lan, true) => "10.1.0.1",
            (Port::Lan, false) => "fd01::1",
            (Port::Wan, true) => "10.2.0.1",
            (Port::Wan, false) => "fd02::1",
        };
        text.parse().expect("an address")
    }
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// To a next hop.
    Via(IpAddr),
    /// Straight out of a port.
    Dev(Port),
    /// Out of a third interface that is not the router's.
    Elsewhere,
    /// Refused with host unreachable.
    Unreachable,
    /// Refused as administratively prohibited.
    Prohibit,
    /// Swallowed.
    Blackhole,
}

/// A route of the scenario's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) network: IpAddr,
    pub(crate) len: u8,
    pub(crate) target: Target,
    /// Route MTU in bytes.
    pub(crate) mtu: Option<u16>,
}

/// A host the router knows the MAC address of from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) port: Port,
    pub(crate) address: IpAddr,
    pub(crate) mac: [u8; 6],
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    /// Interface names, by port.
    pub(crate) names: [String; 2],
    /// MTUs in bytes, by port.
    pub(crate) mtu: [u16; 2],
    /// `rp_filter`, by port.
    pub(crate) rp_filter: [u8; 2],
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<Neighbour>,
}

impl Default for Topology {
    fn default() -> Topology {
        let mut topology = Topology {
            names: ["lan".into(), "wan".into()],
            mtu: [1500; 2],
            rp_filter: [0; 2],
            routes: Vec::new(),
            neighbours: Vec::new(),
        };
        for port in Port::ALL {
            for host in 2..=9u8 {
                let net = 1 + port as u8;
                topology.add_neighbour(port, IpAddr::from([10, net, 0, host]));
                let v6 = format!("fd0{net}::{host:x}").parse().expect("an address");
                topology.add_neighbour(port, v6);
                topology.add_neighbour(port, format!("fe80::{host:x}").parse().expect("an address"));
            }
        }
        topology
    }
}

impl Topology {
    /// The router's prefix length on both ports.
    pub(crate) fn prefix_len(v4: bool) -> u8 {
        if v4 { 24 } else { 64 }
    }

    /// The router learns where `address` is.
    pub(crate) fn add_neighbour(&mut self, port: Port, address: IpAddr) {
        self.neighbours.push(Neighbour { port, address, mac: mac_of(port, address) });
    }

    /// The MAC address a frame to `destination` leaves `port` with.
    pub(crate) fn next_hop_mac(&self, port: Port, destination: IpAddr) -> [u8; 6] {
        let best = self.routes.iter().filter(|route| covers(route.network, route.len, destination));
        match best.max_by_key(|route| route.len).map(|route| &route.target) {
            Some(Target::Via(gateway)) if !on_link(port, destination) => mac_of(port, *gateway),
            _ => mac_of(port, destination),
        }
    }

    /// The port on whose network a gateway is.
    pub(crate) fn port_of(&self, gateway: IpAddr) -> Port {
        if on_link(Port::Lan, gateway) { Port::Lan } else { Port::Wan }
    }

    /// The MAC address a frame from `source` comes with: its own when it is on the port's network, else that of the
    /// network's host 2.
    pub(crate) fn sender_mac(&self, port: Port, source: IpAddr) -> [u8; 6] {
        match on_link(port, source) {
            true => mac_of(port, source),
            false => mac_of(port, IpAddr::from([0, 0, 0, 2])),
        }
    }
}

/// The MAC address of the host with this address on this port's network.
pub(crate) fn mac_of(port: Port, address: IpAddr) -> [u8; 6] {
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    [2, 1 + port as u8, 0, 0, 0, last]
}

fn on_link(port: Port, address: IpAddr) -> bool {
    let v4 = address.is_ipv4();
    covers(port.address(v4), Topology::prefix_len(v4), address)
}

/// Whether `network`/`len` covers `address`.
pub(crate) fn covers(network: IpAddr, len: u8, address: IpAddr) -> bool {
    let (a, b, bits) = match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    len == 0 || (a ^ b) >> (bits - u32::from(len)) == 0
}
