//! What a rule asks of a set about a packet: [`Question`], and the element ([`Key`]) that the packet is for a set.

use super::header::{Header, TIMEOUT_MAX};
use super::key::{Key, mac_bits};
use super::kind::{Kind, Part};
use crate::packet::Packet;
use crate::rules::context::Context;
use crate::time::Instant;
use crate::wire::{self, Addr, Family, Mac, ethernet, proto, tcp, udp};

/// `--packets-eq` and its like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::rules) enum Compare {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    Greater(u64),
}

impl Compare {
    /// Whether a counter is as asked.
    #[inline]
    pub(in crate::rules) fn holds(self, counter: u64) -> bool {
        match self {
            Compare::Equal(number) => counter == number,
            Compare::NotEqual(number) => counter != number,
            Compare::Less(number) => counter < number,
            Compare::Greater(number) => counter > number,
        }
    }
}

/// `src` or `dst` for each part of an element.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::rules) struct Sides {
    /// How many there are, at most six (`IPSET_DIM_MAX`).
    pub(in crate::rules) count: u8,
    /// One bit for each that is `src`, the first one lowest.
    pub(in crate::rules) src: u8,
}

impl Sides {
    #[inline]
    fn is_src(self, part: usize) -> bool {
        self.src >> part & 1 != 0
    }
}

/// Names of the ports in and out, as [`super::key::name_bits`] has them; zero where there is none.
pub(in crate::rules) type PortNames = [Addr; 2];

/// A packet, and how a rule asks about it.
#[derive(Clone, Copy, Debug)]
pub(in crate::rules) struct Question<'a> {
    pub(in crate::rules) packet: &'a Packet,
    pub(in crate::rules) frame: &'a [u8],
    pub(in crate::rules) ports: PortNames,
    pub(in crate::rules) mark: u32,
    pub(in crate::rules) now: Instant,
    pub(in crate::rules) sides: Sides,
    /// `--return-nomatch`
    pub(in crate::rules) return_nomatch: bool,
    /// Counters of the elements met count the packet.
    pub(in crate::rules) counts: bool,
    /// Those of a list's members, too.
    pub(in crate::rules) counts_below: bool,
    pub(in crate::rules) packets: Option<Compare>,
    pub(in crate::rules) bytes: Option<Compare>,
    /// `--timeout` of what is added, in seconds.
    pub(in crate::rules) timeout: Option<u32>,
    /// `--exist`
    pub(in crate::rules) exist: bool,
}

impl<'a> Question<'a> {
    /// A plain question about the packet of `context`.
    #[inline]
    pub(in crate::rules) fn new(context: &'a Context<'_>, ports: PortNames, sides: Sides) -> Question<'a> {
        Question {
            packet: context.packet,
            frame: context.frame,
            ports,
            mark: context.mark,
            now: context.now,
            sides,
            return_nomatch: false,
            counts: true,
            counts_below: true,
            packets: None,
            bytes: None,
            timeout: None,
            exist: false,
        }
    }

    /// With `--timeout`; what is too long becomes the longest there is (`set_target_v3`).
    pub(in crate::rules) fn lasting(mut self, timeout: Option<u32>) -> Question<'a> {
        self.timeout = timeout.map(|seconds| seconds.min(TIMEOUT_MAX));
        self
    }

    /// Bytes that counters count.
    pub(super) fn length(&self) -> u64 {
        u64::from(self.packet.l3_len)
    }

    /// Whether the set can be asked at all: enough sides, and its IP version.
    #[inline]
    pub(super) fn suits(&self, header: &Header) -> bool {
        let family = header.family.is_none_or(|family| family == self.packet.family);
        family && usize::from(self.sides.count) >= header.kind.parts().len()
    }

    /// The element that the packet is; `None` where the set's type refuses the packet.
    #[inline]
    pub(super) fn key(&self, header: &Header) -> Option<Key> {
        let mut key = Key::default();
        let mut addresses = 0;
        for (index, part) in header.kind.parts().iter().enumerate() {
            let src = self.sides.is_src(index);
            match part {
                Part::Ip | Part::Net if addresses == 0 => {
                    key.first = self.address(src);
                    if let Some(mask) = header.first_mask() {
                        key.first = key.first.and(mask);
                    }
                    addresses = 1;
                }
                Part::Ip | Part::Net => key.second = self.address(src),
                Part::Port => (key.proto, key.port) = self.port(src)?,
                Part::Mac => key.second = self.mac(src)?,
                Part::Mark => key.mark = self.mark & header.markmask,
                Part::Iface => key.second = self.interface(src)?,
                Part::Set => return None,
            }
        }
        self.accepts(header, key).then_some(key)
    }

    /// What the types refuse: the null address where it stands for no element.
    #[inline]
    fn accepts(&self, header: &Header, key: Key) -> bool {
        let null = match self.packet.family {
            Family::V4 => key.first.v4_bits() == 0,
            Family::V6 => key.first == Addr::ZERO,
        };
        match header.kind {
            Kind::HashIp => !null,
            Kind::HashIpPort => header.mask.is_none() || !null,
            Kind::HashMac | Kind::HashIpMac | Kind::BitmapIpMac => key.second != Addr::ZERO,
            _ => true,
        }
    }

    #[inline]
    fn address(&self, src: bool) -> Addr {
        if src { self.packet.src } else { self.packet.dst }
    }

    /// The hardware address the frame came with.
    fn mac(&self, src: bool) -> Option<Addr> {
        if usize::from(self.packet.l3_at) < ethernet::HEADER_LEN {
            return None;
        }
        let at = if src { 6 } else { 0 };
        Some(mac_bits(Mac(self.frame.get(at..at + 6)?.try_into().ok()?)))
    }

    fn interface(&self, src: bool) -> Option<Addr> {
        let name = self.ports[usize::from(!src)];
        (name != Addr::ZERO).then_some(name)
    }

    /// Protocol and port, or ICMP type and code (`get_port`); `None` where the header is cut short.
    #[inline]
    fn port(&self, src: bool) -> Option<(u8, u16)> {
        /// Common header of SCTP in bytes.
        const SCTP: usize = 12;
        let protocol = self.packet.proto;
        if self.packet.family == Family::V4 && protocol == 0 {
            return None;
        }
        let l4 = self.packet.l4_bytes(self.frame);
        let (needed, at) = match protocol {
            proto::TCP => (tcp::HEADER_LEN, if src { 0 } else { 2 }),
            proto::UDP | proto::UDPLITE => (udp::HEADER_LEN, if src { 0 } else { 2 }),
            proto::SCTP => (SCTP, if src { 0 } else { 2 }),
            proto::ICMP | proto::ICMPV6 => (8, 0),
            _ => return Some((protocol, 0)),
        };
        (l4.len() >= needed).then(|| (protocol, wire::get_u16(l4, at)))
    }

    /// The port that a bitmap:port looks at: of TCP and UDP alone.
    pub(super) fn plain_port(&self) -> Option<u16> {
        self.port(self.sides.is_src(0))
            .filter(|(protocol, _)| matches!(*protocol, proto::TCP | proto::UDP))
            .map(|it| it.1)
    }

    /// The address that a bitmap looks at.
    pub(super) fn plain_address(&self) -> u32 {
        self.address(self.sides.is_src(0)).v4_bits()
    }
}
