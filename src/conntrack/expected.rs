//! An expectation as an operator sees it: [`ExpectView`], which crosses mailbox and control socket; its `Display` is the line
//! of `conntrack -L expect` (conntrack-tools 1.4.7). A test compares it with the running kernel's (`tests/helpers_kernel`).

use core::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::expect::Expectation;
use super::helper::Helper;
use super::list::TupleView;
use super::tuple::Tuple;
use crate::time::{Instant, SECOND_NS};
use crate::wire::{Addr, Family, proto};

/// Addresses and ports of one side of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExpectTuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

impl From<TupleView> for ExpectTuple {
    fn from(TupleView { src, dst, sport, dport, .. }: TupleView) -> ExpectTuple {
        ExpectTuple { src, dst, sport, dport }
    }
}

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExpectView {
    /// 2 for IPv4, 10 for IPv6 (`AF_INET`, `AF_INET6`).
    pub family: u8,
    /// Transport protocol of the expected connection.
    pub proto: u8,
    /// Whole seconds until it expires.
    pub timeout: u32,
    /// The expected connection.
    pub tuple: ExpectTuple,
    /// Which bits of it count.
    pub mask: ExpectTuple,
    /// Original tuple of the connection it was read on.
    pub master: ExpectTuple,
    /// PERMANENT is 1, INACTIVE 2.
    pub flags: u8,
    /// The helper's class.
    pub class: u8,
    /// The helper of the connection it was read on.
    pub helper: Helper,
}

impl ExpectView {
    pub(super) fn new(one: &Expectation, master: &Tuple, helper: Helper, now: Instant) -> ExpectView {
        let family = one.tuple.family;
        let all = Addr::prefix_mask(Family::V6, 128);
        let mask = Tuple { src: one.mask.address, dst: all, sport: one.mask.port, dport: u16::MAX, ..one.tuple };
        ExpectView {
            family: family as u8,
            proto: one.tuple.proto,
            timeout: u32::try_from(one.expires.saturating_since(now) / SECOND_NS).unwrap_or(u32::MAX),
            tuple: plain(one.tuple),
            mask: plain(mask),
            master: TupleView::from(*master).into(),
            flags: one.flags,
            class: one.class,
            helper,
        }
    }
}

/// Of IPv4 the low 32 bits count, whatever stands above them (a mask's, or nobody's address).
fn plain(tuple: Tuple) -> ExpectTuple {
    let own = |addr: Addr| match tuple.family {
        Family::V4 => Addr::from_v4(addr.v4_bits()),
        Family::V6 => addr,
    };
    TupleView::from(Tuple { src: own(tuple.src), dst: own(tuple.dst), ..tuple }).into()
}

impl fmt::Display for ExpectView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = |f: &mut fmt::Formatter<'_>, protocol: u8, ExpectTuple { sport, dport, .. }| match protocol {
            proto::GRE => write!(f, "srckey={sport:#x} dstkey={dport:#x} "),
            _ => write!(f, "sport={sport} dport={dport} "),
        };
        let ExpectTuple { src, dst, .. } = self.tuple;
        write!(f, "{} proto={} src={src} dst={dst} ", self.timeout, self.proto)?;
        numbers(f, self.proto, self.tuple)?;
        let ExpectTuple { src, dst, .. } = self.mask;
        write!(f, "mask-src={src} mask-dst={dst} ")?;
        numbers(f, self.proto, self.mask)?;
        let ExpectTuple { src, dst, .. } = self.master;
        write!(f, "master-src={src} master-dst={dst} ")?;
        numbers(f, self.helper.proto(), self.master)?;
        if self.flags & Expectation::PERMANENT != 0 {
            write!(f, "PERMANENT ")?;
        }
        if self.flags & Expectation::INACTIVE != 0 {
            write!(f, "INACTIVE ")?;
        }
        write!(f, "class={} helper={}", self.class, self.helper.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::MasterId;

    #[test]
    fn the_line_is_that_of_conntrack() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().expect("an address"));
        let to = Tuple { dst: addr("10.2.0.100"), dport: 5001, proto: 6, ..Tuple::default() };
        let master = Tuple { src: addr("10.1.0.2"), dst: addr("10.2.0.2"), sport: 40_000, dport: 21, proto: 6, ..to };
        let expires = Instant::from_secs(299);
        let line = |source: Option<Addr>| {
            let one = Expectation { expires, ..Expectation::new(MasterId(0), source, to) };
            ExpectView::new(&one, &master, Helper::Ftp, Instant::ZERO).to_string()
        };
        assert_eq!(
            line(Some(addr("10.2.0.2"))),
            "299 proto=6 src=10.2.0.2 dst=10.2.0.100 sport=0 dport=5001 mask-src=255.255.255.255 \
             mask-dst=255.255.255.255 sport=0 dport=65535 master-src=10.1.0.2 master-dst=10.2.0.2 sport=40000 dport=21 \
             class=0 helper=ftp"
        );
        assert!(line(None).starts_with("299 proto=6 src=0.0.0.0 dst=10.2.0.100 sport=0 dport=5001 mask-src=0.0.0.0 "));
    }
}
