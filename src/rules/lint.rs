//! What a netfilter expert would say of rules that are right: [`lint`].
//!
//! Runs over a whole ruleset when an operator asks for it; loading does not wait for it. Nothing is said that depends on a
//! guess: a rule is called hidden only when one before it takes every packet that it would take.

use super::diagnostic::{Diagnostics, Problem, Report};
use super::extension::Basis;
use super::matches::{Match, PortRange, state};
use super::rule::{AddrMatch, Chain, InterfaceMatch, PATH, ProtoMatch, Rule, Ruleset};
use super::targets::Target;
use crate::conntrack::Direction;
use crate::wire::{proto, tcp};

/// Rules of one chain up to which each is compared with every other; in a longer chain, with as many of those before it that ask
/// least.
const COMPARED: usize = 2000;

/// Everything doubtful in `ruleset`, which was read from `text`. What loading warns of is not repeated.
pub fn lint(ruleset: &Ruleset, text: &str) -> Diagnostics {
    let mut report = Report::new(&ruleset.file, text);
    for chain in &ruleset.chains {
        hidden_rules(chain, &mut report);
    }
    let mut reached: Vec<usize> = PATH.iter().flat_map(|&chain| ruleset.reachable_from(chain)).collect();
    reached.sort_unstable();
    reached.dedup();
    let chains: Vec<&Chain> = reached.iter().map(|&chain| &ruleset.chains[chain]).collect();
    old_state(&chains, &mut report);
    new_without_syn(&chains, &mut report);
    related_of_helpers(ruleset, &chains, &mut report);
    report.finish_warnings()
}

/// Rules that take no packet, since one before takes them all.
fn hidden_rules(chain: &Chain, report: &mut Report<'_>) {
    let mut decided: Vec<usize> = Vec::new();
    for (index, rule) in chain.rules.iter().enumerate() {
        let hiding = decided.iter().find(|&&before| covers(&chain.rules[before], rule));
        if let Some(&before) = hiding {
            // After an unconditional rule loading has said it already, of all that follow.
            if !chain.rules[before].is_unconditional() {
                let line = report.line_of(chain.rules[before].span.start);
                let message = format!("no packet is left for this rule of {}", chain.name);
                report.warn(Problem::new(rule.span, message, format!("line {line} takes all of them")));
            }
            continue;
        }
        if rule.target.is_final() && is_pure(rule) {
            decided.push(index);
            if decided.len() > COMPARED {
                let widest = |&index: &usize| conditions(&chain.rules[index]);
                let worst = decided.iter().copied().max_by_key(widest);
                decided.retain(|&index| Some(index) != worst);
            }
        }
    }
}

/// How much a rule asks.
fn conditions(rule: &Rule) -> usize {
    let base = [rule.src.is_some(), rule.dst.is_some(), rule.in_interface.is_some(), rule.out_interface.is_some()];
    base.iter().filter(|&&asked| asked).count() + usize::from(rule.proto.is_some()) + rule.matches.len()
}

/// Whether it says the same of the same packet at any time.
fn is_pure(rule: &Rule) -> bool {
    rule.matches.iter().all(|matched| matched.basis() != Basis::Packet)
}

/// Whether every packet that `narrow` takes, `wide` takes.
fn covers(wide: &Rule, narrow: &Rule) -> bool {
    covers_address(&wide.src, &narrow.src)
        && covers_address(&wide.dst, &narrow.dst)
        && covers_interface(&wide.in_interface, &narrow.in_interface)
        && covers_interface(&wide.out_interface, &narrow.out_interface)
        && covers_proto(wide.proto, narrow.proto)
        && (wide.fragment.is_none() || wide.fragment == narrow.fragment)
        && wide.matches.iter().all(|asked| {
            matches!(asked, Match::Comment(_)) || narrow.matches.iter().any(|given| covers_match(asked, given))
        })
}

fn covers_address(wide: &Option<AddrMatch>, narrow: &Option<AddrMatch>) -> bool {
    let (Some(wide), Some(narrow)) = (wide, narrow) else { return wide.is_none() };
    let within = |inner: &AddrMatch, outer: &AddrMatch| {
        let (inner_mask, outer_mask) = (inner.mask.bits(), outer.mask.bits());
        inner_mask & outer_mask == outer_mask && inner.net.bits() & outer_mask == outer.net.bits() & outer_mask
    };
    match (wide.invert, narrow.invert) {
        (false, false) => within(narrow, wide),
        (true, true) => within(wide, narrow),
        _ => false,
    }
}

fn covers_interface(wide: &Option<InterfaceMatch>, narrow: &Option<InterfaceMatch>) -> bool {
    let (Some(wide), Some(narrow)) = (wide, narrow) else { return wide.is_none() };
    wide == narrow || !wide.invert && !narrow.invert && !narrow.name.ends_with('+') && wide.covers(&narrow.name)
}

fn covers_proto(wide: Option<ProtoMatch>, narrow: Option<ProtoMatch>) -> bool {
    let (Some(wide), Some(narrow)) = (wide, narrow) else { return wide.is_none() };
    wide == narrow || wide.invert && !narrow.invert && wide.number != narrow.number
}

fn covers_range(wide: &PortRange, narrow: &PortRange) -> bool {
    wide == narrow
        || match (wide.invert, narrow.invert) {
            (false, false) => wide.low <= narrow.low && narrow.high <= wide.high,
            (true, true) => narrow.low <= wide.low && wide.high <= narrow.high,
            (true, false) => narrow.high < wide.low || wide.high < narrow.low,
            (false, true) => *wide == PortRange::ANY,
        }
}

/// Whether a packet that `given` takes is always one that `asked` takes.
fn covers_match(asked: &Match, given: &Match) -> bool {
    match (asked, given) {
        (Match::Tcp(wide), Match::Tcp(narrow)) => {
            covers_range(&wide.sport, &narrow.sport)
                && covers_range(&wide.dport, &narrow.dport)
                && (wide.flags == narrow.flags || wide.flags == Default::default())
                && (wide.option == narrow.option || wide.option.is_none())
        }
        (Match::Udp(wide), Match::Udp(narrow)) => {
            covers_range(&wide.sport, &narrow.sport) && covers_range(&wide.dport, &narrow.dport)
        }
        _ => match (states_of(asked), states_of(given)) {
            (Some(wide), Some(narrow)) => narrow & !wide == 0,
            _ => asked == given,
        },
    }
}

/// The conntrack states that a match lets pass, where it asks nothing else.
fn states_of(matched: &Match) -> Option<u16> {
    let (bits, invert) = match matched {
        Match::State(asked) => (asked.states, asked.invert),
        Match::Conntrack(asked) => asked.states_alone().map(|asked| (asked.bits, asked.invert))?,
        _ => return None,
    };
    Some(if invert { state::STATES & !bits } else { state::STATES & bits })
}

/// The states a rule takes; all of them when it does not ask.
fn states_taken(rule: &Rule) -> u16 {
    let asked = rule.matches.iter().filter_map(|matched| match matched {
        Match::Conntrack(asked) => asked.state.map(|asked| (asked.bits, asked.invert)),
        Match::State(asked) => Some((asked.states, asked.invert)),
        _ => None,
    });
    asked.fold(state::STATES, |taken, (bits, invert)| taken & if invert { !bits } else { bits })
}

fn asks_state(matched: &Match) -> bool {
    match matched {
        Match::State(_) => true,
        Match::Conntrack(asked) => asked.state.is_some(),
        _ => false,
    }
}

fn rules_of<'a>(chains: &'a [&Chain]) -> impl Iterator<Item = &'a Rule> {
    chains.iter().flat_map(|chain| &chain.rules).map(|rule| &**rule)
}

/// `-m state`, once for the file.
fn old_state(chains: &[&Chain], report: &mut Report<'_>) {
    let uses = |rule: &&Rule| rule.matches.iter().any(|matched| matches!(matched, Match::State(_)));
    let found: Vec<&Rule> = rules_of(chains).filter(uses).collect();
    let Some(first) = found.first() else { return };
    let message = match found.len() {
        1 => "`-m state` is the old name".to_owned(),
        n => format!("`-m state` is the old name, here and in {} more rules", n - 1),
    };
    let help = "it works; `-m conntrack --ctstate` says the same, and more (SNAT, DNAT, --ctstatus)";
    report.warn(Problem::new(first.span, message, "meant is `-m conntrack --ctstate`").help(help));
}

/// A TCP connection that is accepted as NEW without a SYN, once for the file.
fn new_without_syn(chains: &[&Chain], report: &mut Report<'_>) {
    let tcp = |rule: &Rule| match rule.proto {
        None => true,
        Some(asked) => (asked.number == proto::TCP) != asked.invert,
    };
    let flags = |rule: &Rule| {
        let of = |matched: &Match| matches!(matched, Match::Tcp(tcp) if tcp.flags != Default::default());
        rule.matches.iter().any(of)
    };
    let refuses_rest = |rule: &Rule| {
        let not_syn = |matched: &Match| match matched {
            Match::Tcp(asked) => asked.flags.invert && asked.flags.mask & tcp::SYN != 0,
            _ => false,
        };
        let ends = matches!(rule.target, Target::Drop | Target::Reject(_) | Target::Jump(_) | Target::Goto(_));
        ends && rule.matches.iter().any(not_syn) && states_taken(rule) & state::NEW != 0
    };
    if rules_of(chains).any(refuses_rest) {
        return;
    }
    let asks = |rule: &Rule| rule.matches.iter().any(asks_state);
    let opens = |rule: &&Rule| {
        rule.target == Target::Accept && tcp(rule) && asks(rule) && states_taken(rule) & state::NEW != 0 && !flags(rule)
    };
    let Some(first) = rules_of(chains).find(opens) else { return };
    let message = "NEW is not only a SYN: TCP connections may be picked up in the middle";
    let help = "put `-p tcp ! --syn -m conntrack --ctstate NEW -j DROP` before it, or set nf_conntrack_tcp_loose to 0";
    report.warn(Problem::new(first.span, message, "accepts any TCP packet of a connection not known").help(help));
}

/// RELATED accepted, whatever helper expected it.
fn related_of_helpers(ruleset: &Ruleset, chains: &[&Chain], report: &mut Report<'_>) {
    let assigns = |rule: &Rule| {
        let text = || super::rule_text(ruleset.family, "", rule, &ruleset.chains);
        rule.target.name() == "CT" && text().contains("--helper")
    };
    if !ruleset.chains.iter().flat_map(|chain| &chain.rules).any(|rule| assigns(rule)) {
        return;
    }
    let restricted = |rule: &Rule| {
        let icmp = rule.proto.is_some_and(|asked| matches!(asked.number, proto::ICMP | proto::ICMPV6) && !asked.invert);
        let toward = |matched: &Match| match matched {
            Match::Conntrack(asked) => asked.direction == Some(Direction::Reply),
            matched => matches!(matched.name(), "helper" | "tcp" | "udp" | "multiport"),
        };
        icmp || rule.matches.iter().any(toward)
    };
    let asks = |rule: &Rule| rule.matches.iter().any(|m| matches!(m, Match::State(_) | Match::Conntrack(_)));
    let open = |rule: &&Rule| {
        rule.target == Target::Accept && asks(rule) && states_taken(rule) & state::RELATED != 0 && !restricted(rule)
    };
    let Some(first) = rules_of(chains).find(open) else { return };
    let help = "a helper opens what the packets ask for: name it, `-m helper --helper ftp`, and the ports it may open";
    let message = "RELATED is accepted without saying of which helper";
    report.warn(Problem::new(first.span, message, "any connection that a helper expects passes").help(help));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Diagnostic, load};
    use crate::wire::Family;

    /// What is said of rules of FORWARD, each as its line (from 1) and message.
    fn said(rules: &str) -> Vec<(usize, String)> {
        let text = format!("*filter\n:FORWARD DROP [0:0]\n:U - [0:0]\n{rules}\nCOMMIT\n");
        let ruleset = load("t", &text, Family::V4, &[]).unwrap_or_else(|bad| panic!("{bad}"));
        let said = lint(&ruleset, &text);
        said.iter().map(|Diagnostic { line, message, .. }| (line - 3, message.clone())).collect()
    }

    #[test]
    fn hidden_rules_are_found() {
        for (wide, narrow) in [
            ("-s 10.0.0.0/8", "-s 10.1.0.0/16 -p tcp"),
            ("-p tcp --dport 1:1000", "-p tcp --dport 80 --sport 5"),
            ("-i eth+", "-i eth0 -o eth1"),
            ("! -s 10.1.0.0/16", "! -s 10.0.0.0/8"),
            ("! -p tcp", "-p udp"),
            ("-m conntrack --ctstate NEW,ESTABLISHED", "-m state --state NEW -p tcp ! --syn -s 1.2.3.4"),
            ("-p udp ! --dport 53", "-p udp --dport 54:60"),
            ("-m comment --comment x -p icmp", "-p icmp --icmp-type 8"),
        ] {
            let text = format!("-A FORWARD {wide} -j ACCEPT\n-A FORWARD {narrow} -j DROP");
            let hidden = |(line, message): &(usize, String)| *line == 2 && message.contains("no packet is left");
            assert!(said(&text).iter().any(hidden), "{text}");
            let turned = format!("-A FORWARD {narrow} -j ACCEPT\n-A FORWARD {wide} -j DROP");
            assert!(!said(&turned).iter().any(|(_, message)| message.contains("no packet is left")), "{turned}");
        }
    }

    #[test]
    fn what_may_still_take_packets_is_not_called_hidden() {
        for (first, second) in [
            ("-s 10.0.0.0/8 -m limit --limit 5/sec -j ACCEPT", "-s 10.0.0.0/8 -j DROP"),
            ("-s 10.0.0.0/8 -j LOG", "-s 10.0.0.0/8 -j DROP"),
            ("-s 10.0.0.0/8 -j U", "-s 10.0.0.0/8 -j DROP"),
            ("-i eth0 -j DROP", "-i eth+ -j ACCEPT"),
            ("! -i eth0 -j DROP", "-i eth1 -j ACCEPT"),
            ("-p tcp --tcp-flags SYN SYN -j DROP", "-p tcp --dport 80 -j ACCEPT"),
            ("-s 10.0.0.1/0.0.0.255 -j DROP", "-s 10.0.0.0/24 -j ACCEPT"),
        ] {
            assert_eq!(said(&format!("-A FORWARD {first}\n-A FORWARD {second}")), [], "{first} / {second}");
        }
    }

    #[test]
    fn an_expert_says_it_once_for_a_file() {
        let old = said("-A FORWARD -m state --state RELATED -j ACCEPT\n-A FORWARD -m state --state INVALID -j DROP");
        assert_eq!(old, [(1, "`-m state` is the old name, here and in 1 more rules".to_owned())]);
        let new = "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT";
        assert_eq!(said(new).len(), 1);
        let guarded = format!("-A FORWARD -p tcp ! --syn -m conntrack --ctstate NEW -j DROP\n{new}");
        assert_eq!(said(&guarded), []);
        assert_eq!(said("-A FORWARD -p udp -m conntrack --ctstate NEW -j ACCEPT"), []);
    }
}
