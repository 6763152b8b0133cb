//! The slow engine: typed rules, read as they are. Kept for ever as the judge of [`super::RuleVector`].
//!
//! Written after the kernel's functions rather than after the vector, with nothing precomputed: interface names are
//! compared as names, headers are read from the frame's bytes, chains are a stack of places. It may allocate.

use super::limit::{CREDITS_PER_JIFFY, jiffies};
use super::log::LogRequest;
use super::rule::{
    AddrMatch, FORWARD, IcmpMatch, InterfaceMatch, Match, MultiportMatch, MultiportSide, Policy, Rule, Ruleset, Target,
    TcpMatch, state,
};
use super::{Context, Decision, RuleCounters};
use crate::conntrack::{CtInfo, CtStatus};
use crate::device::PortId;
use crate::verdict::DropReason;
use crate::wire::{Addr, Family, get_u16, ipv4, ipv6, proto};
use std::collections::HashMap;

/// Credit and last jiffy of each `limit`, by chain, rule and place in the rule.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    buckets: HashMap<(usize, usize, usize), (u64, u64)>,
}

/// A match needs bytes that are not there.
struct Hotdrop;

/// The rules' word on a packet, with the same effects on counters and the same calls of `log` as the vector's.
pub fn evaluate(
    ruleset: &Ruleset,
    context: &Context<'_>,
    limits: &mut Limits,
    counters: &mut RuleCounters,
    log: &mut dyn FnMut(&LogRequest<'_>),
) -> Decision {
    let mut walk = Walk { ruleset, context, limits };
    // Places to go on at: (chain, rule).
    let mut callers: Vec<(usize, usize)> = Vec::new();
    let mut place = (FORWARD, 0);
    loop {
        let (chain, index) = place;
        let rule = ruleset.chains[chain].rules.get(index);
        place.1 += 1;
        if let Some(rule) = rule {
            match walk.matches(rule, chain, index) {
                Err(Hotdrop) => return Decision::Drop(DropReason::RuleHotdrop),
                Ok(false) => continue,
                Ok(true) => counters.rules[ruleset.counter_index(chain, index)].count(context.packet.l3_len),
            }
        }
        match rule.map(|rule| &rule.target) {
            Some(Target::Count) => {}
            Some(Target::Accept) => return Decision::Accept,
            Some(Target::Drop) => return Decision::Drop(DropReason::RuleDrop),
            Some(Target::Reject(with)) => return Decision::Reject(*with),
            Some(Target::Log(target)) => log(&LogRequest { log: target, context }),
            Some(Target::Jump(to)) => {
                callers.push(place);
                place = (*to, 0);
            }
            Some(Target::Goto(to)) => place = (*to, 0),
            // RETURN, or the end of the chain.
            Some(Target::Return) | None => match callers.pop() {
                Some(caller) => place = caller,
                None => {
                    counters.policies[FORWARD].count(context.packet.l3_len);
                    return match ruleset.chains[FORWARD].policy {
                        Some(Policy::Drop) => Decision::Drop(DropReason::PolicyDrop),
                        _ => Decision::Accept,
                    };
                }
            },
        }
    }
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    context: &'a Context<'a>,
    limits: &'a mut Limits,
}

impl Walk<'_> {
    fn matches(&mut self, rule: &Rule, chain: usize, index: usize) -> Result<bool, Hotdrop> {
        if !self.base(rule)? {
            return Ok(false);
        }
        for (place, matched) in rule.matches.iter().enumerate() {
            let yes = match matched {
                Match::Comment(_) => true,
                Match::State(asked) => (self.state_bit() & asked.states != 0) != asked.invert,
                Match::Conntrack(asked) => self.conntrack(asked),
                Match::Tcp(asked) => self.tcp(asked)?,
                Match::Udp(asked) => {
                    let header = self.header(8)?;
                    asked.sport.holds(get_u16(header, 0)) && asked.dport.holds(get_u16(header, 2))
                }
                Match::Icmp(asked) => self.icmp(asked)?,
                Match::Multiport(asked) => self.multiport(asked)?,
                Match::Limit(asked) => {
                    let (cost, cap) = asked.cost_and_cap().unwrap_or((1, 0));
                    let now = jiffies(self.context.now);
                    let bucket = self.limits.buckets.entry((chain, index, place)).or_insert((u64::from(cap), now));
                    let gained = now.saturating_sub(bucket.1) * u64::from(CREDITS_PER_JIFFY);
                    bucket.0 = (bucket.0 + gained).min(u64::from(cap));
                    bucket.1 = bucket.1.max(now);
                    let enough = bucket.0 >= u64::from(cost);
                    bucket.0 -= if enough { u64::from(cost) } else { 0 };
                    enough
                }
            };
            if !yes {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `ip_packet_match`, `ip6_packet_match`.
    fn base(&self, rule: &Rule) -> Result<bool, Hotdrop> {
        let ip = self.context.packet.l3_bytes(self.context.frame);
        let (src, dst) = match self.ruleset.family {
            Family::V4 => (ipv4::src(ip), ipv4::dst(ip)),
            Family::V6 => (ipv6::src(ip), ipv6::dst(ip)),
        };
        let ports = self.interface(&rule.in_interface, self.context.in_port)
            && self.interface(&rule.out_interface, self.context.out_port);
        if !(ports && address(&rule.src, src) && address(&rule.dst, dst)) {
            return Ok(false);
        }
        if let Some(asked) = rule.proto
            && (self.last_header()? == asked.number) == asked.invert
        {
            return Ok(false);
        }
        // No fragment comes this far, so `-f` is never true and `! -f` always.
        Ok(rule.fragment != Some(false))
    }

    fn interface(&self, asked: &Option<InterfaceMatch>, port: PortId) -> bool {
        let name = self.ruleset.ports.get(port.index()).map_or("", String::as_str);
        asked.as_ref().is_none_or(|asked| asked.covers(name) != asked.invert)
    }

    /// IPv4: the protocol field. IPv6: the last header, walked to here as `ipv6_find_hdr` does.
    fn last_header(&self) -> Result<u8, Hotdrop> {
        let ip = self.context.packet.l3_bytes(self.context.frame);
        if self.ruleset.family == Family::V4 {
            return Ok(ipv4::protocol(ip));
        }
        let (mut next, mut at) = (ipv6::next_header(ip), ipv6::HEADER_LEN);
        while matches!(next, proto::HOP_BY_HOP | proto::ROUTING | proto::FRAGMENT | proto::AH | proto::DEST_OPTIONS) {
            let header = ip.get(at..at + 2).ok_or(Hotdrop)?;
            at += if next == proto::AH { usize::from(header[1]) * 4 + 8 } else { usize::from(header[1]) * 8 + 8 };
            next = header[0];
        }
        Ok(next)
    }

    /// The first `length` bytes after the IP header.
    fn header(&self, length: usize) -> Result<&[u8], Hotdrop> {
        self.context.packet.l4_bytes(self.context.frame).get(..length).ok_or(Hotdrop)
    }

    fn state_bit(&self) -> u16 {
        self.context.info.state_bit()
    }

    fn conntrack(&self, asked: &super::rule::ConntrackMatch) -> bool {
        let mut bits = self.state_bit();
        let untracked = [CtInfo::Invalid, CtInfo::Untracked].contains(&self.context.info);
        if !untracked {
            bits |= if self.context.status.any(CtStatus::SRC_NAT) { state::SNAT } else { 0 };
            bits |= if self.context.status.any(CtStatus::DST_NAT) { state::DNAT } else { 0 };
        }
        if let Some(state) = asked.state
            && (bits & state.bits != 0) == state.invert
        {
            return false;
        }
        if untracked {
            return asked.state.is_some();
        }
        asked.status.is_none_or(|status| (self.context.status.0 & status.bits != 0) != status.invert)
    }

    fn tcp(&self, asked: &TcpMatch) -> Result<bool, Hotdrop> {
        let header = self.header(20)?;
        if !asked.sport.holds(get_u16(header, 0)) || !asked.dport.holds(get_u16(header, 2)) {
            return Ok(false);
        }
        if (header[13] & asked.flags.mask == asked.flags.comp) == asked.flags.invert {
            return Ok(false);
        }
        let Some(wanted) = asked.option else { return Ok(true) };
        let length = usize::from(header[12] >> 4) * 4;
        if length < 20 {
            return Err(Hotdrop);
        }
        let options = &self.header(length)?[20..];
        let mut at = 0;
        while at < options.len() {
            if options[at] == wanted.kind {
                return Ok(!wanted.invert);
            }
            at += match options[at] {
                0 | 1 => 1,
                _ => usize::from(*options.get(at + 1).unwrap_or(&1)).max(1),
            };
        }
        Ok(wanted.invert)
    }

    fn icmp(&self, asked: &IcmpMatch) -> Result<bool, Hotdrop> {
        let header = self.header(8)?;
        let same = header[0] == asked.kind && asked.code.is_none_or(|code| code == header[1]);
        let any = self.ruleset.family == Family::V4 && asked.kind == 255;
        Ok((same || any) != asked.invert)
    }

    fn multiport(&self, asked: &MultiportMatch) -> Result<bool, Hotdrop> {
        let header = self.header(4)?;
        let holds = |port| asked.ports.iter().any(|&(low, high)| (low..=high).contains(&port));
        let (source, destination) = (holds(get_u16(header, 0)), holds(get_u16(header, 2)));
        let found = match asked.side {
            MultiportSide::Source => source,
            MultiportSide::Destination => destination,
            MultiportSide::Either => source || destination,
        };
        Ok(found != asked.invert)
    }
}

fn address(asked: &Option<AddrMatch>, addr: Addr) -> bool {
    // An IPv4 mask has its upper 96 bits zero, so only the low 32 of the mapped form are left to compare.
    let low = |addr: Addr, mask: Addr| addr.bits() & mask.bits();
    asked.is_none_or(|asked| (low(addr, asked.mask) == low(asked.net, asked.mask)) != asked.invert)
}
