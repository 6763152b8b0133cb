//! The slow engine: typed rules, read as they are. Kept for ever as the judge of [`super::RuleVector`].
//!
//! Written after the kernel's functions rather than after the vector, with nothing precomputed: interface names are
//! compared as names, headers are read from the frame's bytes, chains are a stack of places. It may allocate.

use super::context::{Context, World};
use super::extension::{Answer, Outcome};
use super::matches::MatchState;
use super::registry::Registry;
use super::rule::{AddrMatch, BUILTIN, BUILTIN_CHAINS, ChainIndex, InterfaceMatch, Policy, Rule, Ruleset};
use super::targets::{Target, TargetState, TraceEvent, TracePlace};
use super::{Decision, RuleCounters};
use crate::device::PortId;
use crate::verdict::DropReason;
use crate::wire::{Addr, Family, ipv4, ipv6, proto};
use std::collections::HashMap;

/// What matches and targets count and remember, by chain, rule and place in the rule.
#[derive(Debug, Default)]
pub struct Memory {
    registry: Registry,
    matches: HashMap<(usize, usize, usize), MatchState>,
    targets: HashMap<(usize, usize), TargetState>,
}

/// A match needs bytes that are not there.
struct Hotdrop;

/// A built-in chain's word on a packet, with the same effects as the vector's.
pub fn evaluate(
    ruleset: &Ruleset,
    entry: ChainIndex,
    context: &mut Context<'_>,
    world: &mut dyn World,
    memory: &mut Memory,
    counters: &mut RuleCounters,
) -> Decision {
    if !ruleset.has(BUILTIN[entry].0) {
        return Decision::Accept;
    }
    // Places to go on at: (chain, rule).
    let mut callers: Vec<(usize, usize)> = Vec::new();
    let mut place = (entry, 0);
    loop {
        let (chain, index) = place;
        let rule = ruleset.chains[chain].rules.get(index);
        place.1 += 1;
        if let Some(rule) = rule {
            match (Walk { ruleset, context }).matches(rule, (chain, index), world, memory) {
                Answer::Hotdrop => return Decision::Drop(DropReason::RuleHotdrop),
                Answer::No => continue,
                Answer::Yes => counters.rules[ruleset.counter_index(chain, index)].count(context.packet.l3_len),
            }
        }
        if context.traced {
            let builtin = chain < BUILTIN_CHAINS;
            let met = rule.map_or(TracePlace::end(builtin), |rule| TracePlace::of(rule, builtin));
            tell(ruleset, (chain, index), met, context, world);
        }
        match rule.map(|rule| &rule.target) {
            Some(Target::Count) => {}
            Some(Target::Accept) => return Decision::Accept,
            Some(Target::Drop) => return Decision::Drop(DropReason::RuleDrop),
            Some(Target::Jump(to)) => {
                callers.push(place);
                place = (*to, 0);
            }
            Some(Target::Goto(to)) => place = (*to, 0),
            // RETURN, or the end of the chain.
            Some(Target::Return) | None => match callers.pop() {
                Some(caller) => place = caller,
                None => {
                    counters.policies[entry].count(context.packet.l3_len);
                    let end = (entry, ruleset.chains[entry].rules.len());
                    if context.traced && (chain, index) != end {
                        tell(ruleset, end, TracePlace::Policy, context, world);
                    }
                    return match ruleset.chains[entry].policy {
                        Some(Policy::Drop) => Decision::Drop(DropReason::PolicyDrop),
                        _ => Decision::Accept,
                    };
                }
            },
            Some(target) => {
                let Memory { registry, targets, .. } = memory;
                let state = targets.entry((chain, index)).or_insert_with(|| {
                    registry.surround(ruleset);
                    target.state(registry)
                });
                match target.run(context, world, state) {
                    Outcome::Continue => {}
                    Outcome::Accept => return Decision::Accept,
                    Outcome::Drop(reason) => return Decision::Drop(reason),
                    Outcome::Reject(with) => return Decision::Reject(with),
                }
            }
        }
    }
}

/// A traced packet has met a rule, or a chain's end.
fn tell(
    ruleset: &Ruleset,
    (chain, index): (usize, usize),
    place: TracePlace,
    context: &Context<'_>,
    world: &mut dyn World,
) {
    let it = &ruleset.chains[chain];
    world.trace(&TraceEvent { table: it.table, chain: &it.name, place, number: index as u32 + 1, context });
}

struct Walk<'a, 'c> {
    ruleset: &'a Ruleset,
    context: &'a Context<'c>,
}

impl Walk<'_, '_> {
    fn matches(&self, rule: &Rule, place: (usize, usize), world: &dyn World, memory: &mut Memory) -> Answer {
        match self.base(rule) {
            Err(Hotdrop) => return Answer::Hotdrop,
            Ok(false) => return Answer::No,
            Ok(true) => {}
        }
        for (number, matched) in rule.matches.iter().enumerate() {
            let Memory { registry, matches, .. } = memory;
            let state = matches.entry((place.0, place.1, number)).or_insert_with(|| {
                registry.surround(self.ruleset);
                matched.state(registry)
            });
            let answer = matched.test(self.context, world, state);
            if answer != Answer::Yes {
                return answer;
            }
        }
        Answer::Yes
    }

    /// `ip_packet_match`, `ip6_packet_match`.
    fn base(&self, rule: &Rule) -> Result<bool, Hotdrop> {
        let ip = self.context.packet.l3_bytes(self.context.frame);
        let (src, dst) = match self.ruleset.family {
            Family::V4 => (ipv4::src(ip), ipv4::dst(ip)),
            Family::V6 => (ipv6::src(ip), ipv6::dst(ip)),
        };
        let ports = self.interface(&rule.in_interface, Some(self.context.in_port))
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

    fn interface(&self, asked: &Option<InterfaceMatch>, port: Option<PortId>) -> bool {
        let name = port.and_then(|port| self.ruleset.ports.get(port.index())).map_or("", String::as_str);
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
}

fn address(asked: &Option<AddrMatch>, addr: Addr) -> bool {
    // An IPv4 mask has its upper 96 bits zero, so only the low 32 of the mapped form are left to compare.
    let low = |addr: Addr, mask: Addr| addr.bits() & mask.bits();
    asked.is_none_or(|asked| (low(addr, asked.mask) == low(asked.net, asked.mask)) != asked.invert)
}
