//! What the rules say of a packet, rule by rule, and why: [`Explainer`].
//!
//! A third interpreter of the typed rules, beside the vector and the oracle: it tells of every rule that the packet meets
//! whether it matched, and if not, which part of it said no. It takes no counter and no limit with it: what matches remember
//! between packets begins anew with each explanation, and what that means is said beside the rule. Its verdict is the
//! vector's, which a property test holds.
//!
//! Life cycle: one for each packet explained; it goes with the packet from chain to chain, as targets may change it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::context::{Context, World};
use super::extension::{Answer, Outcome};
use super::matches::{ConntrackMatch, Match, MatchState, PortRange, TcpFlags, TcpMatch, UdpMatch};
use super::names;
use super::registry::Registry;
use super::rule::{BUILTIN, Chain, ChainIndex, InterfaceMatch, Policy, Rule, Ruleset};
use super::save::{address_text, flag_words, rule_text, words};
use super::targets::{Target, TargetState};
use super::{Decision, RejectWith};
use crate::conntrack::Direction;
use crate::device::PortId;
use crate::packet::L4;
use crate::verdict::DropReason;
use crate::wire::{Addr, Family, ethernet, get_u16, proto};

/// What one rule, or the end of a chain, said of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStep {
    /// The chain it is in.
    pub chain: String,
    /// Its number there, from 1; a chain's end has one more than there are rules.
    pub rule: u32,
    /// How many jumps led here.
    pub depth: u32,
    /// As `iptables-save` prints it; a chain's end as its `:CHAIN POLICY`.
    pub text: String,
    /// Line in the file, from 1.
    pub line: Option<u32>,
    /// Whether it matched.
    pub matched: bool,
    /// Which part of it said no.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why_not: Option<String>,
    /// What was taken for granted, and what the target changed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
    /// What comes of it, when it matched.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub then: Option<String>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Explainer {
    registry: Registry,
    matches: HashMap<(usize, usize, usize), MatchState>,
    targets: HashMap<(usize, usize), TargetState>,
}

/// What a rule's conditions said.
enum Said {
    Yes,
    No(String),
    /// The packet is dropped at once, and why.
    Hotdrop(String),
}

impl Explainer {
    /// One built-in chain's word on the packet, with a step for every rule that was consulted, in order. What targets do to
    /// the packet and to `world` is done.
    pub fn explain(
        &mut self,
        ruleset: &Ruleset,
        entry: ChainIndex,
        context: &mut Context<'_>,
        world: &mut dyn World,
        steps: &mut Vec<RuleStep>,
    ) -> Decision {
        if !ruleset.has(BUILTIN[entry].0) {
            return Decision::Accept;
        }
        let mut callers: Vec<(ChainIndex, usize)> = Vec::new();
        let (mut chain, mut index) = (entry, 0);
        loop {
            let here = Place { ruleset, chain, index, depth: callers.len() };
            let Some(rule) = ruleset.chains[chain].rules.get(index) else {
                let mut step = here.end();
                match callers.pop() {
                    Some(caller) => {
                        step.then = Some(format!("back to {}", ruleset.chains[caller.0].name));
                        (chain, index) = caller;
                        steps.push(step);
                        continue;
                    }
                    None if chain != entry => {
                        step.then = Some(format!("to the policy of {}", ruleset.chains[entry].name));
                        (chain, index) = (entry, ruleset.chains[entry].rules.len());
                        steps.push(step);
                        continue;
                    }
                    None => return policy(&ruleset.chains[entry], step, steps),
                }
            };
            index += 1;
            let mut step = here.step(rule);
            match self.consult(&here, rule, context, world, &mut step.notes) {
                Said::Yes => step.matched = true,
                Said::No(why) => {
                    step.why_not = Some(why);
                    steps.push(step);
                    continue;
                }
                Said::Hotdrop(why) => {
                    step.why_not = Some(why);
                    step.then = Some("DROP: Linux drops a packet that a match cannot read".to_owned());
                    steps.push(step);
                    return Decision::Drop(DropReason::RuleHotdrop);
                }
            }
            let ended = match &rule.target {
                Target::Count => done(&mut step, "counted, nothing more".to_owned(), None),
                Target::Accept => done(&mut step, "ACCEPT".to_owned(), Some(Decision::Accept)),
                Target::Drop => done(&mut step, "DROP".to_owned(), Some(Decision::Drop(DropReason::RuleDrop))),
                Target::Jump(to) | Target::Goto(to) => {
                    let name = &ruleset.chains[*to].name;
                    if matches!(rule.target, Target::Jump(_)) {
                        callers.push((chain, index));
                    }
                    (chain, index) = (*to, 0);
                    done(&mut step, format!("to chain {name}"), None)
                }
                Target::Return => {
                    let back = match callers.pop() {
                        Some(caller) => {
                            (chain, index) = caller;
                            format!("RETURN: back to {}", ruleset.chains[caller.0].name)
                        }
                        None => {
                            index = ruleset.chains[entry].rules.len();
                            chain = entry;
                            "RETURN: to the policy".to_owned()
                        }
                    };
                    done(&mut step, back, None)
                }
                target => self.run(&here, target, context, world, &mut step),
            };
            steps.push(step);
            if let Some(decision) = ended {
                return decision;
            }
        }
    }

    /// A target that is neither a verdict by name nor a chain.
    fn run(
        &mut self,
        here: &Place<'_>,
        target: &Target,
        context: &mut Context<'_>,
        world: &mut dyn World,
        step: &mut RuleStep,
    ) -> Option<Decision> {
        let Explainer { registry, targets, .. } = self;
        let looking;
        let done_here = match target {
            Target::Set(set) => {
                looking = Target::Set(set.only_looking());
                step.notes.push("asking adds nothing to a set and deletes nothing from one".to_owned());
                &looking
            }
            other => other,
        };
        let state = targets.entry((here.chain, here.index)).or_insert_with(|| {
            registry.surround(here.ruleset);
            done_here.state(registry)
        });
        let before = Changeable::of(context, world);
        let outcome = done_here.run(context, world, state);
        before.tell_changes(&Changeable::of(context, world), &mut step.notes);
        let mut text = target.name().to_owned();
        target.save(&mut text, here.ruleset.family);
        let decision = match outcome {
            Outcome::Continue => None,
            Outcome::Accept => Some(Decision::Accept),
            Outcome::Drop(reason) => Some(Decision::Drop(reason)),
            Outcome::Reject(with) => Some(Decision::Reject(with)),
        };
        done(step, text, decision)
    }

    /// The rule's conditions, in the kernel's order: `ip_packet_match` (`ip6_packet_match`), then its matches.
    fn consult(
        &mut self,
        here: &Place<'_>,
        rule: &Rule,
        context: &Context<'_>,
        world: &dyn World,
        notes: &mut Vec<String>,
    ) -> Said {
        match base(here.ruleset, rule, context) {
            Said::Yes => {}
            other => return other,
        }
        for (number, matched) in rule.matches.iter().enumerate() {
            let Explainer { registry, matches, .. } = self;
            let looking;
            let asked = match matched {
                Match::Set(set) => {
                    looking = Match::Set(set.only_looking());
                    &looking
                }
                other => other,
            };
            let state = matches.entry((here.chain, here.index, number)).or_insert_with(|| {
                registry.surround(here.ruleset);
                asked.state(registry)
            });
            let answer = asked.test(context, world, state);
            if let Some(assumed) = taken_for_granted(matched.name(), answer) {
                notes.push(format!("{}: {assumed}", option_text(matched, here.ruleset.family)));
            }
            match answer {
                Answer::Yes => {}
                Answer::No => return Said::No(why_not(matched, context, world)),
                Answer::Hotdrop => {
                    let name = matched.name();
                    return Said::Hotdrop(format!("-m {name}: the packet ends before what it has to read"));
                }
            }
        }
        Said::Yes
    }
}

fn done(step: &mut RuleStep, then: String, decision: Option<Decision>) -> Option<Decision> {
    step.then = Some(then);
    decision
}

fn policy(chain: &Chain, mut step: RuleStep, steps: &mut Vec<RuleStep>) -> Decision {
    let (word, decision) = match chain.policy {
        Some(Policy::Drop) => ("DROP", Decision::Drop(DropReason::PolicyDrop)),
        _ => ("ACCEPT", Decision::Accept),
    };
    step.then = Some(word.to_owned());
    steps.push(step);
    decision
}

/// Where the packet is.
struct Place<'a> {
    ruleset: &'a Ruleset,
    chain: ChainIndex,
    index: usize,
    depth: usize,
}

impl Place<'_> {
    fn step(&self, rule: &Rule) -> RuleStep {
        let chain = &self.ruleset.chains[self.chain];
        let text = rule_text(self.ruleset.family, &chain.name, rule, &self.ruleset.chains);
        self.blank(text, self.ruleset.line(rule.span), false)
    }

    fn end(&self) -> RuleStep {
        let chain = &self.ruleset.chains[self.chain];
        let policy = match chain.policy {
            None => "-",
            Some(Policy::Accept) => "ACCEPT",
            Some(Policy::Drop) => "DROP",
        };
        self.blank(format!(":{} {policy}", chain.name), self.ruleset.line(chain.span), true)
    }

    fn blank(&self, text: String, line: Option<u32>, matched: bool) -> RuleStep {
        RuleStep {
            chain: self.ruleset.chains[self.chain].name.clone(),
            rule: self.index as u32 + 1,
            depth: self.depth as u32,
            text,
            line,
            matched,
            why_not: None,
            notes: Vec::new(),
            then: None,
        }
    }
}

/// A part of a rule as `iptables-save` prints it, and what the packet is instead.
fn no(family: Family, part: Rule, instead: String) -> Said {
    let text = rule_text(family, "", &part, &[]);
    Said::No(format!("{}: {instead}", text.trim_start_matches("-A ").trim_start()))
}

fn base(ruleset: &Ruleset, rule: &Rule, context: &Context<'_>) -> Said {
    let (family, packet) = (ruleset.family, &*context.packet);
    let name = |port: Option<PortId>| {
        port.and_then(|port| ruleset.ports.get(port.index())).map_or("", String::as_str).to_owned()
    };
    let covers = |asked: &Option<InterfaceMatch>, name: &str| {
        asked.as_ref().is_none_or(|asked| asked.covers(name) != asked.invert)
    };
    let within = |addr: Addr, net: Addr, mask: Addr| addr.bits() & mask.bits() == net.bits() & mask.bits();
    if let Some(asked) = rule.src.filter(|asked| within(packet.src, asked.net, asked.mask) == asked.invert) {
        let part = Rule { src: Some(asked), ..Rule::default() };
        return no(family, part, format!("it comes from {}", address_text(packet.src, family)));
    }
    if let Some(asked) = rule.dst.filter(|asked| within(packet.dst, asked.net, asked.mask) == asked.invert) {
        let part = Rule { dst: Some(asked), ..Rule::default() };
        return no(family, part, format!("it goes to {}", address_text(packet.dst, family)));
    }
    let came_by = name(Some(context.in_port));
    if !covers(&rule.in_interface, &came_by) {
        let part = Rule { in_interface: rule.in_interface.clone(), ..Rule::default() };
        return no(family, part, format!("it came in by {came_by}"));
    }
    let leaves_by = name(context.out_port);
    if !covers(&rule.out_interface, &leaves_by) {
        let instead = match context.out_port {
            Some(_) => format!("it leaves by {leaves_by}"),
            None => "it is not routed yet".to_owned(),
        };
        return no(family, Rule { out_interface: rule.out_interface.clone(), ..Rule::default() }, instead);
    }
    if let Some(asked) = rule.proto {
        let part = Rule { proto: Some(asked), ..Rule::default() };
        if packet.family == Family::V6 && packet.l4 == L4::Malformed && is_extension(packet.proto) {
            let Said::No(text) = no(family, part, "the packet ends inside its extension headers".to_owned()) else {
                return Said::Yes;
            };
            return Said::Hotdrop(text);
        }
        if (packet.proto == asked.number) == asked.invert {
            return no(family, part, format!("it is {}", names::protocol_name(packet.proto)));
        }
    }
    match rule.fragment {
        Some(false) => no(family, Rule { fragment: Some(false), ..Rule::default() }, "it is no fragment".to_owned()),
        _ => Said::Yes,
    }
}

fn is_extension(number: u8) -> bool {
    matches!(number, proto::HOP_BY_HOP | proto::ROUTING | proto::FRAGMENT | proto::AH | proto::DEST_OPTIONS)
}

/// A match as it is printed, without its `-m`.
fn option_text(matched: &Match, family: Family) -> String {
    let mut text = String::new();
    matched.save(&mut text, family);
    match text.trim() {
        "" => format!("-m {}", matched.name()),
        text => text.to_owned(),
    }
}

/// What is said beside a match that remembers packets, since an explanation has none to remember.
fn taken_for_granted(name: &str, answer: Answer) -> Option<&'static str> {
    let yes = answer == Answer::Yes;
    Some(match name {
        "limit" | "hashlimit" if yes => "taken as within the limit",
        "hashlimit" => "taken as the first packet that it counts",
        "recent" => "taken as if its list were empty",
        "connlimit" => "taken as if there were no other connection",
        "statistic" => "taken as the first packet that it counts",
        "quota" => "taken as not used up at all",
        "time" => "by the clock as it is now",
        _ => return None,
    })
}

/// Which part of a match said no.
fn why_not(matched: &Match, context: &Context<'_>, world: &dyn World) -> String {
    let family = context.packet.family;
    let says_no = |part: &Match| part.test(context, world, &part.state(&mut Registry::default())) != Answer::Yes;
    let part = parts(matched).into_iter().find(says_no).unwrap_or_else(|| matched.clone());
    format!("{}: {}", option_text(&part, family), instead(&part, context, world))
}

/// The match with one of its options at a time, in the order that the kernel asks them; empty for one that has but one.
fn parts(matched: &Match) -> Vec<Match> {
    match matched {
        Match::Tcp(all) => vec![
            Match::Tcp(TcpMatch { sport: all.sport, ..TcpMatch::default() }),
            Match::Tcp(TcpMatch { dport: all.dport, ..TcpMatch::default() }),
            Match::Tcp(TcpMatch { flags: all.flags, ..TcpMatch::default() }),
            Match::Tcp(TcpMatch { option: all.option, ..TcpMatch::default() }),
        ],
        Match::Udp(all) => vec![
            Match::Udp(UdpMatch { sport: all.sport, ..UdpMatch::default() }),
            Match::Udp(UdpMatch { dport: all.dport, ..UdpMatch::default() }),
        ],
        Match::Conntrack(all) => conntrack_parts(all).into_iter().map(Match::Conntrack).collect(),
        _ => Vec::new(),
    }
}

fn conntrack_parts(all: &ConntrackMatch) -> Vec<ConntrackMatch> {
    let blank = ConntrackMatch::default();
    let mut parts = vec![
        ConntrackMatch { state: all.state, ..blank },
        ConntrackMatch { direction: all.direction, ..blank },
        ConntrackMatch { proto: all.proto, ..blank },
    ];
    for place in 0..all.addresses.len() {
        let mut part = blank;
        part.addresses[place] = all.addresses[place];
        parts.push(part);
    }
    for place in 0..all.ports.len() {
        let mut part = blank;
        part.ports[place] = all.ports[place];
        parts.push(part);
    }
    parts.push(ConntrackMatch { status: all.status, ..blank });
    parts.push(ConntrackMatch { expire: all.expire, ..blank });
    // One that asks nothing says no to a packet without a connection, and is no part of this one.
    parts.retain(|part| *part != blank);
    parts
}

/// What the packet is, where a part of a match wanted something else.
fn instead(part: &Match, context: &Context<'_>, world: &dyn World) -> String {
    let packet = &*context.packet;
    match part {
        Match::Tcp(TcpMatch { option: Some(asked), .. }) => {
            if asked.invert { "it has that option" } else { "it has no such option" }.to_owned()
        }
        Match::Tcp(TcpMatch { flags, .. }) if *flags != TcpFlags::default() => {
            format!("its flags are {}", flag_words(packet.tcp_flags))
        }
        Match::Tcp(TcpMatch { sport, .. }) | Match::Udp(UdpMatch { sport, .. }) if *sport != PortRange::ANY => {
            format!("it is {}", packet.sport)
        }
        Match::Tcp(_) | Match::Udp(_) => format!("it is {}", packet.dport),
        Match::Multiport(_) => match packet.l4_bytes(context.frame).get(..4) {
            Some(header) => format!("its ports are {} > {}", get_u16(header, 0), get_u16(header, 2)),
            None => "it has no ports".to_owned(),
        },
        Match::Conntrack(asked) => of_the_connection(asked, context, world),
        other => observed(other.name(), context, world),
    }
}

fn of_the_connection(asked: &ConntrackMatch, context: &Context<'_>, world: &dyn World) -> String {
    let state = context.info.name();
    let tuples = [Direction::Original, Direction::Reply].map(|way| world.tuple(way));
    match (asked.state.is_some(), tuples) {
        (true, _) => format!("it is {state}"),
        (false, [Some(original), Some(reply)]) => {
            let addresses = [original.src, original.dst, reply.src, reply.dst];
            let ports = [original.sport, original.dport, reply.sport, reply.dport];
            if asked.direction.is_some() {
                return format!("it is of the {:?} direction", context.info.direction()).to_lowercase();
            }
            if asked.proto.is_some() {
                return format!("it is {}", original.proto);
            }
            if let Some(place) = asked.addresses.iter().position(Option::is_some) {
                return format!("it is {}", address_text(addresses[place], context.packet.family));
            }
            if let Some(place) = asked.ports.iter().position(Option::is_some) {
                return format!("it is {}", ports[place]);
            }
            match asked.status.is_some() {
                true => format!("its status is {}", words(names::STATUSES, context.status.0)),
                false => format!("it expires in {} seconds", world.expires_in()),
            }
        }
        (false, _) => format!("it is {state}: there is no connection to ask"),
    }
}

/// What the packet is, for matches by name.
fn observed(name: &str, context: &Context<'_>, world: &dyn World) -> String {
    let packet = &*context.packet;
    let address = |addr: Addr| address_text(addr, packet.family);
    match name {
        "icmp" | "icmp6" => format!("it is type {} code {}", packet.icmp_type(), packet.icmp_code()),
        "state" => format!("it is {}", context.info.name()),
        "limit" | "hashlimit" => "the limit is used up".to_owned(),
        "mark" => format!("its mark is {:#x}", context.mark),
        "connmark" => match world.conn_mark() {
            Some(mark) => format!("its connection's mark is {mark:#x}"),
            None => "it has no connection".to_owned(),
        },
        "length" => format!("it is {} bytes long", packet.l3_len),
        "ttl" | "hl" => format!("it is {}", packet.ttl),
        "dscp" => format!("it is {:#04x}", packet.tos >> 2),
        "tos" => format!("it is {:#04x}", packet.tos),
        "ecn" => format!("its ECN bits are {}", packet.tos & 3),
        "mac" => match context.frame.get(..ethernet::HEADER_LEN) {
            Some(header) => format!("it came from {}", ethernet::source(header)),
            None => "it has no Ethernet header".to_owned(),
        },
        "iprange" | "set" => format!("it goes from {} to {}", address(packet.src), address(packet.dst)),
        "addrtype" => {
            let kind = |addr| format!("{:?}", world.address_type(addr, None)).to_uppercase();
            format!("it goes from {} to {}", kind(packet.src), kind(packet.dst))
        }
        "connbytes" => {
            let traffic = [Direction::Original, Direction::Reply].map(|way| world.traffic(way));
            match traffic {
                [Some(there), Some(back)] => {
                    format!("its connection has {} and {} packets, {} and {} bytes", there.0, back.0, there.1, back.1)
                }
                _ => "nothing is counted for its connection".to_owned(),
            }
        }
        "recent" => "its list is taken to be empty".to_owned(),
        "sctp" | "udplite" | "dccp" => format!("its ports are {} > {}", packet.sport, packet.dport),
        "string" => "not found in it".to_owned(),
        "rpfilter" => "its way back says otherwise".to_owned(),
        "helper" => "no connection with that helper expected its connection".to_owned(),
        _ => "the packet is not so".to_owned(),
    }
}

/// What targets can change of a packet.
struct Changeable {
    mark: u32,
    conn_mark: Option<u32>,
    ttl: u8,
    tos: u8,
    length: u16,
    untracked: bool,
    zone: u16,
}

impl Changeable {
    fn of(context: &Context<'_>, world: &dyn World) -> Changeable {
        Changeable {
            mark: context.mark,
            conn_mark: world.conn_mark(),
            ttl: context.packet.ttl,
            tos: context.packet.tos,
            length: context.packet.l3_len,
            untracked: context.template.notrack,
            zone: context.template.zone.id,
        }
    }

    fn tell_changes(&self, now: &Changeable, notes: &mut Vec<String>) {
        let mut tell = |changed: bool, text: String| {
            if changed {
                notes.push(text);
            }
        };
        let conn_mark = |mark: Option<u32>| mark.unwrap_or(0);
        tell(self.mark != now.mark, format!("mark {:#x} becomes {:#x}", self.mark, now.mark));
        tell(
            self.conn_mark != now.conn_mark,
            format!("its connection's mark {:#x} becomes {:#x}", conn_mark(self.conn_mark), conn_mark(now.conn_mark)),
        );
        tell(self.ttl != now.ttl, format!("ttl {} becomes {}", self.ttl, now.ttl));
        tell(self.tos != now.tos, format!("tos {:#04x} becomes {:#04x}", self.tos, now.tos));
        tell(self.length != now.length, format!("length {} becomes {}", self.length, now.length));
        tell(self.untracked != now.untracked, "it is not tracked".to_owned());
        tell(self.zone != now.zone, format!("it is tracked in zone {}", now.zone));
    }
}

/// A decision in the words of a rules file.
pub fn decision_text(decision: Decision) -> String {
    match decision {
        Decision::Accept => "ACCEPT".to_owned(),
        Decision::Drop(_) => "DROP".to_owned(),
        Decision::Reject(with) => reject_text(with),
    }
}

fn reject_text(with: RejectWith) -> String {
    format!("REJECT with {}", with.name())
}
