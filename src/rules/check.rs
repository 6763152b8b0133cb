//! What only shows when all rules are known: loops, depth, chains of the host, rules that no packet reaches.

use super::diagnostic::{Problem, Report, Span};
use super::extension::HOOKS_ALL;
use super::host::{self, Redirected};
use super::rule::{BUILTIN, Hook, InterfaceMatch, MAX_DEPTH, PATH, Policy, Ruleset, TableName};
use super::targets::Target;

/// Refuses loops, jumps that go too deep, and rules where they cannot be.
pub(super) fn check(ruleset: &Ruleset, report: &mut Report<'_>) {
    if !check_loops(ruleset, report) {
        check_depth(ruleset, report);
        check_hooks(ruleset, report);
    }
}

/// Warns of what an expert would look at twice.
pub(super) fn warn(ruleset: &Ruleset, report: &mut Report<'_>) {
    if !ruleset.has(TableName::Filter) {
        let message = format!("{} has no filter table: everything is forwarded", ruleset.file);
        report
            .warn(Problem::new(Span::default(), message, "").help("iptables-save prints it as `*filter` ... `COMMIT`"));
    }
    warn_host_chains(ruleset, report);
    warn_redirected(ruleset, report);
    warn_unreached(ruleset, report);
    warn_interfaces(ruleset, report);
}

/// Reports one rule of each loop. Returns whether there was one.
fn check_loops(ruleset: &Ruleset, report: &mut Report<'_>) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; ruleset.chains.len()];
    let mut found = false;
    for start in 0..ruleset.chains.len() {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        // Chain, and the rule to look at next. A stack of our own: the file decides how deep it goes.
        let mut path = vec![(start, 0)];
        while let Some((chain, next)) = path.last_mut() {
            let Some(rule) = ruleset.chains[*chain].rules.get(*next) else {
                marks[*chain] = Mark::Done;
                path.pop();
                continue;
            };
            *next += 1;
            let Some(target) = rule.target.chain() else { continue };
            let span = rule.target_span;
            match marks[target] {
                Mark::Done => {}
                Mark::New => {
                    marks[target] = Mark::Open;
                    path.push((target, 0));
                }
                Mark::Open => {
                    found = true;
                    let from = path.iter().position(|&(chain, _)| chain == target).unwrap_or(0);
                    let names: Vec<&str> =
                        path[from..].iter().map(|&(chain, _)| ruleset.chains[chain].name.as_str()).collect();
                    let way = format!("{} -> {}", names.join(" -> "), ruleset.chains[target].name);
                    // Of a change, the rule that it brings.
                    let round =
                        path[from..].iter().map(|&(chain, next)| ruleset.chains[chain].rules[next - 1].target_span);
                    let new = round.rev().find(|span| span.start >= report.first_place());
                    report.error(
                        Problem::new(new.unwrap_or(span), format!("loop of chains: {way}"), "closes the loop")
                            .help("a packet would never leave; Linux refuses it where packets can come to it"),
                    );
                }
            }
        }
    }
    found
}

/// The most jumps that can be open at once in each chain, from the leaves up. The chains have no loop.
fn check_depth(ruleset: &Ruleset, report: &mut Report<'_>) {
    let mut depth: Vec<Option<usize>> = vec![None; ruleset.chains.len()];
    for start in 0..ruleset.chains.len() {
        // Chain, the rule to look at next, and the deepest so far. A stack of our own: the file decides how deep it goes.
        let mut path = vec![(start, 0, 0)];
        while let Some((chain, next, deepest)) = path.last_mut() {
            let Some(rule) = ruleset.chains[*chain].rules.get(*next) else {
                depth[*chain] = Some(*deepest);
                path.pop();
                continue;
            };
            let (jump, to) = match &rule.target {
                Target::Jump(to) => (1, *to),
                Target::Goto(to) => (0, *to),
                _ => {
                    *next += 1;
                    continue;
                }
            };
            match depth[to] {
                Some(below) => {
                    *deepest = (*deepest).max(jump + below);
                    *next += 1;
                }
                None => path.push((to, 0, 0)),
            }
        }
        let reached = depth[start].unwrap_or(0);
        if reached > MAX_DEPTH && ruleset.chains[start].policy.is_some() {
            let chain = &ruleset.chains[start];
            let message = format!("chain {} leads {reached} jumps deep", chain.name);
            report.error(Problem::new(chain.span, message, format!("at most {MAX_DEPTH} can be open at once")));
        }
    }
}

/// Refuses matches and targets that a packet would meet at a hook where they make no sense.
fn check_hooks(ruleset: &Ruleset, report: &mut Report<'_>) {
    let mut reached = vec![0u8; ruleset.chains.len()];
    for (index, (_, hook)) in BUILTIN.iter().enumerate() {
        for chain in ruleset.reachable_from(index) {
            reached[chain] |= hook.bit();
        }
    }
    for (chain, &from) in ruleset.chains.iter().zip(&reached) {
        for rule in &chain.rules {
            let matches = rule.matches.iter().zip(&rule.match_spans);
            let matches = matches.map(|(matched, &span)| ("match", matched.name(), matched.hooks(), span));
            let target = ("target", rule.target.name(), rule.target.hooks(), rule.target_span);
            for (what, name, allowed, span) in matches.chain([target]) {
                if from & !allowed & HOOKS_ALL == 0 {
                    continue;
                }
                let message = format!("{what} `{name}` works only in {}", hook_names(allowed));
                let label = format!("reached from {}", hook_names(from & !allowed));
                report.error(Problem::new(span, message, label));
            }
        }
    }
}

fn hook_names(bits: u8) -> String {
    let all = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
    let names: Vec<&str> = all.iter().filter(|hook| bits & hook.bit() != 0).map(|hook| hook.chain_name()).collect();
    names.join(", ")
}

/// Places of the rules that no forwarded packet comes to.
pub(super) fn rules_of_the_host(ruleset: &Ruleset) -> Vec<Span> {
    let reached = ruleset.reached_from(PATH);
    let chains = ruleset.chains.iter().zip(&reached).filter(|(_, reached)| !**reached);
    chains.flat_map(|(chain, _)| chain.rules.iter().map(|rule| rule.span)).collect()
}

fn warn_host_chains(ruleset: &Ruleset, report: &mut Report<'_>) {
    for (index, &(table, hook)) in BUILTIN.iter().enumerate() {
        let chain = &ruleset.chains[index];
        let rules = chain.rules.len();
        if PATH.contains(&index) || rules == 0 && chain.policy == Some(Policy::Accept) {
            continue;
        }
        let what = match rules {
            0 => "policy DROP".to_owned(),
            1 => "one rule".to_owned(),
            n => format!("{n} rules"),
        };
        let of_table = if table == TableName::Filter { String::new() } else { format!("{} ", table.name()) };
        let message = format!("{of_table}{} ({what}) belongs to the host: checked, but not applied", hook.chain_name());
        let help = "for the host itself, start with `--host-chains apply`, or load the file with iptables-restore";
        report.warn(Problem::new(chain.span, message, host::LABEL).help(help));
    }
}

/// The answers of the host do not pass the router, so that these rules need the kernel.
fn warn_redirected(ruleset: &Ruleset, report: &mut Report<'_>) {
    for Redirected { chain, rule, .. } in ruleset.redirected() {
        let message = format!("REDIRECT in {chain} leads packets to the host, and the kernel does not have the rule");
        let help = "start with `--host-chains apply`: then the kernel has nat too, and translates what its own sockets get and \
                    answer; without, such packets are dropped and counted";
        report.warn(Problem::new(rule.target_span, message, host::REDIRECT_LABEL).help(help));
    }
}

fn warn_unreached(ruleset: &Ruleset, report: &mut Report<'_>) {
    for chain in &ruleset.chains {
        let last = chain.rules.iter().position(|rule| rule.is_unconditional() && rule.target.is_final());
        let Some(hidden) = last.and_then(|at| chain.rules.get(at + 1..)).filter(|hidden| !hidden.is_empty()) else {
            continue;
        };
        let message = match hidden.len() {
            1 => "no packet reaches this rule".to_owned(),
            n => format!("no packet reaches this rule and the {} after it in {}", n - 1, chain.name),
        };
        let line = report.line_of(chain.rules[last.unwrap_or(0)].span.start);
        report.warn(Problem::new(hidden[0].span, message, format!("line {line} decides every packet")));
    }
}

/// A name that is no port's: most often a slip of the pen.
fn warn_interfaces(ruleset: &Ruleset, report: &mut Report<'_>) {
    if ruleset.ports.is_empty() {
        return;
    }
    let mut reached: Vec<usize> = PATH.iter().flat_map(|&chain| ruleset.reachable_from(chain)).collect();
    reached.sort_unstable();
    reached.dedup();
    let mut told: Vec<(&str, &str)> = Vec::new();
    for index in reached {
        for rule in &ruleset.chains[index].rules {
            for (option, named) in [("-i", &rule.in_interface), ("-o", &rule.out_interface)] {
                let Some(InterfaceMatch { name, invert: false }) = named else { continue };
                let matched = InterfaceMatch { name: name.clone(), invert: false };
                let is_told = told.contains(&(option, name));
                if !is_told && !ruleset.ports.iter().any(|port| matched.covers(port)) {
                    // Once for each name: a file of a host with many interfaces has many rules about them.
                    told.push((option, name));
                    let message = format!("`{option} {name}` never matches a forwarded packet");
                    let label = format!("the router's interfaces are {}", ruleset.ports.join(" and "));
                    report.warn(Problem::new(rule.span, message, label));
                }
            }
        }
    }
}
