//! Which worker is the home of a flow: [`Steering`].
//!
//! A connection is touched by one worker only, its home. [`Steering::home`] names it from a packet's addresses and ports, the
//! same for both directions. Where the NICs' receive-side scaling is known and symmetric that is the worker whose queue the
//! packets arrive on anyway ([`Nic`]); otherwise a hash of our own ([`Software`]), and packets that arrived elsewhere are
//! handed over. Whoever chooses a port (NAT) asks for many with [`Steering::prepare`].
//!
//! A value made at start and shared by all workers; nothing in it changes. Every home is below [`Steering::workers`].
//!
//! | packets | by the NICs' hash | by our own |
//! |---|---|---|
//! | TCP, UDP, SCTP | addresses and ports, or addresses only, as the NICs say | addresses and ports |
//! | UDP-Lite, DCCP | addresses | addresses and ports |
//! | ICMP, ICMPv6 | addresses | addresses and identifier |
//! | others | addresses | addresses |
//! | fragments ([`Steering::home_of_fragment`]) | addresses | addresses |

mod nic;
mod software;
pub mod toeplitz;

use core::fmt;

pub use nic::{Fields, HashFields, Nic, NicHash, RssHash, Transform};
pub use software::Software;

use crate::packet::Packet;
use crate::wire::{Addr, Family};
use software::{End, Ports, ports};

/// What says whose home a packet has. Ports are in host order, and 0 where the protocol has none; for ICMP and ICMPv6 `sport`
/// is the identifier, and `dport` is not looked at. So a [`Packet`] has them, and a conntrack tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, or ICMP identifier.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Transport protocol.
    pub proto: u8,
    /// IP version.
    pub family: Family,
}

impl Flow {
    /// The flow that `packet` belongs to.
    #[inline]
    pub fn of(packet: &Packet) -> Flow {
        let Packet { src, dst, sport, dport, proto, family, .. } = *packet;
        Flow { src, dst, sport, dport, proto, family }
    }
}

/// The rule by which flows have their homes; see the module's head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Steering {
    /// One worker.
    Alone,
    /// By a keyed hash of our own.
    Software(Software),
    /// By the NICs' hash.
    Nic(Box<Nic>),
}

/// A flow whose source port is still to be chosen; see [`Steering::prepare`].
#[derive(Clone, Copy, Debug)]
pub struct Prepared(Choice);

#[derive(Clone, Copy, Debug)]
enum Choice {
    /// The port makes no difference.
    Fixed(u16),
    /// The hash of what is fixed, and the destination port.
    Nic { family: Family, addresses: u32, dport: u16 },
    /// Source and destination; no destination port where both have the same number.
    Software { ends: [End; 2], dport: Option<u16>, proto: u8 },
}

impl Steering {
    /// By a keyed hash of our own, for `workers` workers. `why` says, as a clause, what keeps the NICs' hash from being used.
    ///
    /// # Panics
    /// With no worker.
    pub fn software(workers: u16, secret: [u64; 2], why: impl Into<String>) -> Steering {
        match workers {
            0 => panic!("no worker"),
            1 => Steering::Alone,
            _ => Steering::Software(Software::new(workers, secret, why.into())),
        }
    }

    /// By the hash of `nics` (one for each port) if they bring all packets of a flow, in both directions, to the same worker,
    /// where worker `n` of `workers` reads queue `n` of every NIC, and those beyond that leave `n` when divided. Otherwise by
    /// our own hash with `secret`, which [`Display`](fmt::Display) then gives the reason for.
    ///
    /// # Panics
    /// With no worker.
    pub fn from_nics(workers: u16, secret: [u64; 2], nics: &[NicHash]) -> Steering {
        if workers <= 1 {
            return Steering::software(workers, secret, "");
        }
        match Nic::new(workers, nics) {
            Ok(nic) => Steering::Nic(Box::new(nic)),
            Err(why) => Steering::software(workers, secret, why),
        }
    }

    /// How many workers there are.
    pub fn workers(&self) -> u16 {
        match self {
            Steering::Alone => 1,
            Steering::Software(software) => software.workers(),
            Steering::Nic(nic) => nic.workers(),
        }
    }

    /// The worker that is the home of `flow`, and of its other direction.
    #[inline]
    pub fn home(&self, flow: &Flow) -> u16 {
        match self {
            Steering::Alone => 0,
            Steering::Software(software) => software.home(flow),
            Steering::Nic(nic) => nic.home(flow),
        }
    }

    /// The worker that is the home of fragments between the two addresses of `flow`; ports are not looked at, since only the
    /// first fragment has them.
    #[inline]
    pub fn home_of_fragment(&self, flow: &Flow) -> u16 {
        match self {
            Steering::Alone => 0,
            Steering::Software(software) => software.home_of_fragment(flow),
            Steering::Nic(nic) => nic.home_of_fragment(flow),
        }
    }

    /// For [`Steering::home_with_port`]: `flow` with any other source port (ICMP: identifier). To choose a destination port,
    /// prepare the flow's other direction.
    pub fn prepare(&self, flow: &Flow) -> Prepared {
        let Flow { src, dst, dport, proto, family, .. } = *flow;
        Prepared(match self {
            Steering::Nic(nic) if nic.fields(family, proto) == Fields::AddressesAndPorts => {
                Choice::Nic { family, addresses: nic.addresses(family, src, dst), dport }
            }
            Steering::Software(software) if ports(flow) != Ports::None => {
                let dport = (ports(flow) == Ports::Both).then_some(dport);
                Choice::Software { ends: [software.end(src), software.end(dst)], dport, proto }
            }
            _ => Choice::Fixed(self.home(flow)),
        })
    }

    /// The home of the flow that `prepared` was made from, by this same value, if its source port was `port`.
    #[inline]
    pub fn home_with_port(&self, prepared: &Prepared, port: u16) -> u16 {
        match (prepared.0, self) {
            (Choice::Fixed(home), _) => home,
            (Choice::Nic { family, addresses, dport }, Steering::Nic(nic)) => {
                nic.worker(addresses ^ nic.ports(family, port, dport))
            }
            (Choice::Software { ends, dport, proto }, Steering::Software(software)) => {
                software.between(ends, [port, dport.unwrap_or(port)], proto)
            }
            _ => unreachable!("prepared by another steering"),
        }
    }

    /// Those of `ports`, in their order, with which the flow's home is `home`: none, if the port makes no difference and it is
    /// another.
    pub fn ports_at<'a>(
        &'a self,
        prepared: &'a Prepared,
        home: u16,
        ports: impl IntoIterator<Item = u16> + 'a,
    ) -> impl Iterator<Item = u16> + 'a {
        let none = matches!(prepared.0, Choice::Fixed(other) if other != home);
        let tried = ports.into_iter().take_while(move |_| !none);
        tried.filter(move |port| self.home_with_port(prepared, *port) == home)
    }
}

impl Prepared {
    /// The home, where no port makes a difference to it.
    #[inline]
    pub fn fixed(&self) -> Option<u16> {
        match self.0 {
            Choice::Fixed(home) => Some(home),
            _ => None,
        }
    }
}

impl fmt::Display for Steering {
    /// For the operator: by what, and if not by the NICs, why.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Steering::Alone => write!(f, "one worker is the home of everything"),
            Steering::Software(software) => write!(f, "home by software hash: {}", software.why()),
            Steering::Nic(nic) => {
                write!(f, "home by NIC RSS: Toeplitz, {}, {} entries", nic.symmetry(), nic.entries())
            }
        }
    }
}

#[cfg(test)]
mod tests;
