//! One rule as the fast engine compares it: [`Row`], and what it is compared with, [`Facts`].
//!
//! A row holds everything a rule asks about a packet's addresses, interfaces, protocol, ports, TCP flags and conntrack state, with
//! masks and ranges that let pass what the rule does not care about, so that one row is compared without branching on
//! what it asks. What does not fit stays an [`Op`], run in the rule's order after it.

use super::context::Context;
use super::matches::{IcmpMatch, MultiportMatch, PortRange, TcpMatch, UdpMatch, state};
use crate::conntrack::CtInfo;
use crate::device::PortId;
use crate::packet::{L4, Packet};
use crate::wire::{Addr, Family, proto, tcp};
use core::ops::{BitAnd, BitXor};

/// Stands for the way out before a packet is routed.
pub(super) const NO_PORT: u8 = 3;

/// DCCP's protocol number (RFC 4340).
pub(super) const DCCP: u8 = 33;

/// An address as one machine word of its family.
pub(super) trait Word: Copy + Eq + Default + BitAnd<Output = Self> + BitXor<Output = Self> {
    fn of(addr: Addr) -> Self;
    /// The address 32 bits at a time, the most significant first.
    fn word(self, at: usize) -> u32;
    /// The address whose [`Word::word`]s these are.
    fn of_words(words: &[u32]) -> Self;
}

impl Word for u32 {
    #[inline(always)]
    fn of(addr: Addr) -> u32 {
        addr.v4_bits()
    }

    #[inline(always)]
    fn word(self, _: usize) -> u32 {
        self
    }

    #[inline(always)]
    fn of_words(words: &[u32]) -> u32 {
        words.first().copied().unwrap_or_default()
    }
}

impl Word for u128 {
    #[inline(always)]
    fn of(addr: Addr) -> u128 {
        addr.bits()
    }

    #[inline(always)]
    fn word(self, at: usize) -> u32 {
        (self >> (96 - 32 * at)) as u32
    }

    #[inline(always)]
    fn of_words(words: &[u32]) -> u128 {
        words.iter().fold(0, |bits, &word| bits << 32 | u128::from(word))
    }
}

/// What a row does when it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Count,
    Accept,
    Drop,
    Return,
    /// Index of the target.
    Run(u32),
    /// Offset of the chain's first row.
    Jump(u32),
    /// Offset of the chain's first row.
    Goto(u32),
    /// Not a rule: the chain ends here.
    End,
}

/// A port range as first and length: `port - low <= span` in wrapping arithmetic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span16 {
    pub(super) low: u16,
    pub(super) span: u16,
}

impl Span16 {
    pub(super) const ANY: Span16 = Span16 { low: 0, span: u16::MAX };

    #[inline(always)]
    pub(super) const fn holds(self, value: u16) -> bool {
        value.wrapping_sub(self.low) <= self.span
    }

    /// What both hold, or `None` when that is nothing.
    pub(super) fn meet(self, low: u16, high: u16) -> Option<Span16> {
        let first = self.low.max(low);
        let last = (self.low + self.span).min(high);
        (first <= last).then(|| Span16 { low: first, span: last - first })
    }
}

/// `Row::invert` bits.
pub(super) const INVERT_SRC: u8 = 1;
pub(super) const INVERT_DST: u8 = 2;
pub(super) const INVERT_PROTO: u8 = 4;
pub(super) const INVERT_FLAGS: u8 = 8;

/// One rule, or the end of a chain. 48 bytes for IPv4.
#[derive(Clone, Debug)]
#[repr(C)]
pub(super) struct Row<W> {
    pub(super) src: W,
    pub(super) src_mask: W,
    pub(super) dst: W,
    pub(super) dst_mask: W,
    pub(super) sport: Span16,
    pub(super) dport: Span16,
    /// State bits that pass.
    pub(super) states: u16,
    /// Bit `p`: may come in by port `p`; bit `4 + p`: may go out by it, or with [`NO_PORT`] is not routed yet.
    pub(super) ports: u8,
    pub(super) proto: u8,
    /// 0xff, or 0 when any protocol passes.
    pub(super) proto_mask: u8,
    pub(super) flags_mask: u8,
    pub(super) flags_comp: u8,
    pub(super) invert: u8,
    /// First of the rule's matches in `RuleVector::ops`.
    pub(super) ops: u32,
    /// How many there are.
    pub(super) ops_len: u8,
    /// How many of them the row's own fields stand for.
    pub(super) inlined: u8,
    pub(super) action: Action,
    pub(super) counter: u32,
}

/// A match by itself, in the order of the rule.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Tcp(TcpMatch),
    Udp(UdpMatch),
    Icmp(IcmpMatch),
    /// State bits that pass.
    State(u16),
    Multiport(MultiportMatch),
    /// Any other: index of it.
    Other(u32),
}

/// What the rows compare with, taken from the context once per packet.
#[derive(Clone, Copy)]
pub(super) struct Facts<W> {
    pub(super) src: W,
    pub(super) dst: W,
    pub(super) sport: u16,
    pub(super) dport: u16,
    /// One bit of [`state::STATES`].
    pub(super) state: u16,
    pub(super) ports: u8,
    pub(super) proto: u8,
    pub(super) flags: u8,
    /// Whether every match that fits the protocol can read its header.
    pub(super) readable: bool,
}

impl<W: Word> Row<W> {
    /// Addresses, interfaces, protocol.
    #[inline(always)]
    pub(super) fn base(&self, facts: &Facts<W>) -> bool {
        let src = ((facts.src & self.src_mask) == self.src) != (self.invert & INVERT_SRC != 0);
        let dst = ((facts.dst & self.dst_mask) == self.dst) != (self.invert & INVERT_DST != 0);
        let proto = ((facts.proto & self.proto_mask) == self.proto) != (self.invert & INVERT_PROTO != 0);
        let ports = facts.ports & self.ports == facts.ports;
        src & dst & proto & ports
    }

    /// All that is of the flow: [`Row::base`], ports and state.
    #[inline(always)]
    pub(super) fn of_the_flow(&self, facts: &Facts<W>) -> bool {
        let ports = self.sport.holds(facts.sport) & self.dport.holds(facts.dport);
        self.base(facts) & ports & (facts.state & self.states != 0)
    }

    /// TCP flags.
    #[inline(always)]
    pub(super) fn flags_hold(&self, facts: &Facts<W>) -> bool {
        ((facts.flags & self.flags_mask) == self.flags_comp) != self.inverts_flags()
    }

    /// Whether the flags must not be as the row says.
    #[inline(always)]
    pub(super) fn inverts_flags(&self) -> bool {
        self.invert & INVERT_FLAGS != 0
    }

    /// Whether the row's own fields ask for TCP flags.
    #[inline(always)]
    pub(super) fn asks_flags(&self) -> bool {
        self.flags_mask | self.flags_comp | self.invert & INVERT_FLAGS != 0
    }

    pub(super) fn all(&self) -> core::ops::Range<usize> {
        self.ops as usize..self.ops as usize + usize::from(self.ops_len)
    }

    #[inline(always)]
    pub(super) fn rest(&self) -> core::ops::Range<usize> {
        self.ops as usize + usize::from(self.inlined)..self.ops as usize + usize::from(self.ops_len)
    }

    /// Matches every packet.
    pub(super) fn any(action: Action) -> Row<W> {
        Row {
            src: W::default(),
            src_mask: W::default(),
            dst: W::default(),
            dst_mask: W::default(),
            sport: Span16::ANY,
            dport: Span16::ANY,
            states: state::STATES,
            ports: 0xff,
            proto: 0,
            proto_mask: 0,
            flags_mask: 0,
            flags_comp: 0,
            invert: 0,
            ops: 0,
            ops_len: 0,
            inlined: 0,
            action,
            counter: 0,
        }
    }

    /// Takes one pure match into the row's own fields, if it fits there beside what is there already.
    pub(super) fn inline(&mut self, op: &Op) -> bool {
        let (sport, dport, flags) = match op {
            Op::State(states) => {
                self.states &= states;
                return true;
            }
            Op::Tcp(tcp) if tcp.option.is_none() => (tcp.sport, tcp.dport, tcp.flags),
            Op::Udp(udp) => (udp.sport, udp.dport, Default::default()),
            // 255 is any type for IPv4 and an ordinary one for IPv6: left to the match itself.
            Op::Icmp(icmp) if !icmp.invert && icmp.kind != 255 => {
                let (low, high) = match icmp.code {
                    Some(code) => (code, code),
                    None => (0, u8::MAX),
                };
                let kind = u16::from(icmp.kind) << 8;
                (
                    PortRange::ANY,
                    PortRange { low: kind | u16::from(low), high: kind | u16::from(high), invert: false },
                    Default::default(),
                )
            }
            _ => return false,
        };
        if sport.invert || dport.invert {
            return false;
        }
        let free = self.flags_mask == 0 && self.flags_comp == 0 && self.invert & INVERT_FLAGS == 0;
        if flags != Default::default() && !free {
            return false;
        }
        let met = self.sport.meet(sport.low, sport.high).zip(self.dport.meet(dport.low, dport.high));
        let Some((sport, dport)) = met else { return false };
        (self.sport, self.dport) = (sport, dport);
        if flags != Default::default() {
            (self.flags_mask, self.flags_comp) = (flags.mask, flags.comp);
            self.invert |= if flags.invert { INVERT_FLAGS } else { 0 };
        }
        true
    }
}

/// Bytes of the transport header that matches for a protocol read. (A table, since nobody foresees a packet's protocol.)
const NEEDS: [u8; 256] = {
    let mut needs = [0; 256];
    needs[proto::TCP as usize] = tcp::HEADER_LEN as u8;
    needs[proto::UDP as usize] = 8;
    needs[proto::ICMP as usize] = 8;
    needs[proto::ICMPV6 as usize] = 8;
    needs[proto::UDPLITE as usize] = 4;
    needs[proto::SCTP as usize] = 4;
    needs[DCCP as usize] = 4;
    needs
};

impl<W: Word> Facts<W> {
    #[inline(always)]
    pub(super) fn of(context: &Context<'_>) -> Facts<W> {
        Facts::of_packet(context.packet, context.in_port, context.out_port, context.info)
    }

    #[inline(always)]
    pub(super) fn of_packet(packet: &Packet, in_port: PortId, out_port: Option<PortId>, info: CtInfo) -> Facts<W> {
        let needs = NEEDS[usize::from(packet.proto)];
        let readable = packet.l4_len >= u16::from(needs) && !chain_is_broken(packet);
        Facts {
            src: W::of(packet.src),
            dst: W::of(packet.dst),
            sport: packet.sport,
            dport: packet.dport,
            state: info.state_bit(),
            ports: 1 << in_port.0 | 1 << (4 + out_port.map_or(NO_PORT, |port| port.0)),
            proto: packet.proto,
            flags: packet.tcp_flags,
            readable,
        }
    }
}

/// Whether the IPv6 header chain ends before its last header (`ipv6_find_hdr` gives -EBADMSG).
#[inline]
pub(super) fn chain_is_broken(packet: &Packet) -> bool {
    packet.family == Family::V6
        && packet.l4 == L4::Malformed
        && matches!(
            packet.proto,
            proto::HOP_BY_HOP | proto::ROUTING | proto::FRAGMENT | proto::AH | proto::DEST_OPTIONS
        )
}
