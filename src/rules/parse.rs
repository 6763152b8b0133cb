//! The lines of an `iptables-save` file: tables, chains with policies, rules, COMMIT.
//!
//! Reads every line, whatever was wrong with the lines before, so that all bad lines are reported at once. The filter
//! table becomes chains; the other tables may be there but may not say anything.

use super::diagnostic::{Problem, Report, Span, nearest};
use super::option::{Scope, read_rule};
use super::rule::{BUILTIN_CHAINS, Chain, Policy, Rule};
use super::token::{Token, tokenize};
use crate::wire::Family;

/// Tables and their built-in chains.
const TABLES: &[(&str, &[&str])] = &[
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
    ("raw", &["PREROUTING", "OUTPUT"]),
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("security", &["INPUT", "FORWARD", "OUTPUT"]),
];

/// Longest name of a user chain in bytes.
const CHAIN_NAME_MAX: usize = 28;

/// What a file holds.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) chains: Vec<Chain>,
    pub(super) empty_tables: Vec<String>,
    pub(super) has_filter: bool,
}

/// A table being read.
struct Table {
    name: &'static str,
    builtin: &'static [&'static str],
    span: Span,
    chains: Vec<String>,
    bodies: Vec<Chain>,
}

/// Reads the whole file. Problems go to `report`.
pub(super) fn parse(text: &str, family: Family, report: &mut Report<'_>) -> Parsed {
    let mut parser = Parser { family, report, table: None, seen: Vec::new(), filter: None, skipping: false };
    let mut at = 0;
    for line in text.split('\n') {
        if let Err(problem) = parser.line(line, at) {
            parser.report.error(problem);
        }
        at += line.len() + 1;
    }
    if let Some(table) = parser.table.take() {
        let message = format!("table {} has no COMMIT", table.name);
        parser.report.error(
            Problem::new(table.span, message, "begins here")
                .help("end it with a line `COMMIT`; is the file cut short?"),
        );
        parser.close(table);
    }
    let has_filter = parser.filter.is_some();
    let chains = sorted(parser.filter.unwrap_or_else(|| Table::new("filter", TABLES[0].1, Span::default()).bodies));
    let empty_tables = parser.seen.into_iter().filter(|name| *name != "filter").map(str::to_owned).collect();
    Parsed { chains, empty_tables, has_filter }
}

impl Table {
    fn new(name: &'static str, builtin: &'static [&'static str], span: Span) -> Table {
        let body = |name: &&str| Chain {
            name: (*name).to_owned(),
            policy: Some(Policy::Accept),
            rules: Vec::new(),
            span: Span::default(),
        };
        let chains = builtin.iter().map(|&name| name.to_owned()).collect();
        Table { name, builtin, span, chains, bodies: builtin.iter().map(body).collect() }
    }
}

struct Parser<'r, 't> {
    family: Family,
    report: &'r mut Report<'t>,
    table: Option<Table>,
    /// Tables seen so far.
    seen: Vec<&'static str>,
    filter: Option<Vec<Chain>>,
    /// Inside a table that is unknown: its lines are not looked at.
    skipping: bool,
}

impl Parser<'_, '_> {
    fn line(&mut self, line: &str, at: usize) -> Result<(), Problem> {
        let trimmed = line.trim_end_matches([' ', '\t']);
        let span = Span::new(at, at + trimmed.len());
        if trimmed.trim_start_matches([' ', '\t']).is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if trimmed == "COMMIT" {
            return self.commit(span);
        }
        if let Some(name) = trimmed.strip_prefix('*') {
            return self.begin(name, span);
        }
        if self.skipping {
            return Ok(());
        }
        if trimmed.ends_with('\r') {
            // One message says it all; the tokenizer's would come for every line.
            tokenize(trimmed, at)?;
        }
        if self.table.is_none() {
            return Err(Problem::new(span, "this line stands outside of any table", "expected `*table` before it")
                .help("a rules file is the output of iptables-save: `*filter`, chains, rules, `COMMIT`"));
        }
        match trimmed.starts_with(':') {
            true => self.chain(trimmed, span),
            false => self.rule(trimmed, span),
        }
    }

    fn begin(&mut self, name: &str, span: Span) -> Result<(), Problem> {
        if let Some(table) = self.table.take() {
            let message = format!("table {} has no COMMIT", table.name);
            self.report.error(
                Problem::new(span, message, "the next table begins here").help("put a line `COMMIT` before this one"),
            );
            self.close(table);
        }
        self.skipping = true;
        let Some(&(known, builtin)) = TABLES.iter().find(|table| table.0 == name) else {
            let near = nearest(name, TABLES.iter().map(|table| table.0));
            let names: Vec<&str> = TABLES.iter().map(|table| table.0).collect();
            return Err(Problem::new(span, format!("unknown table `{}`", name.escape_debug()), "no such table").help(
                near.map_or_else(
                    || format!("tables are {}", names.join(", ")),
                    |near| format!("did you mean `*{near}`?"),
                ),
            ));
        };
        if self.seen.contains(&known) {
            return Err(Problem::new(span, format!("table {known} appears twice"), "begun before")
                .help("iptables-restore would throw the first one away; keep one of them"));
        }
        self.seen.push(known);
        self.skipping = false;
        self.table = Some(Table::new(known, builtin, span));
        Ok(())
    }

    fn commit(&mut self, span: Span) -> Result<(), Problem> {
        match self.table.take() {
            Some(table) => self.close(table),
            None if self.skipping => {}
            None => return Err(Problem::new(span, "COMMIT without a table", "no `*table` line before it")),
        }
        self.skipping = false;
        Ok(())
    }

    fn close(&mut self, table: Table) {
        if table.name == "filter" {
            self.filter = Some(table.bodies);
        }
    }

    /// `:NAME POLICY [packets:bytes]`
    fn chain(&mut self, line: &str, span: Span) -> Result<(), Problem> {
        let mut words = tokenize(&line[1..], span.start + 1)?.into_iter();
        let Some(name) = words.next() else {
            return Err(Problem::new(span, "a chain line without a name", "expected `:NAME POLICY [0:0]`"));
        };
        let Some(table) = &mut self.table else { return Ok(()) };
        let builtin = table.builtin.iter().position(|&builtin| builtin == name.text);
        // The chain is there even when its line is wrong, so that its rules are not reported too.
        let index = match (builtin, table.chains.iter().position(|chain| *chain == name.text)) {
            (Some(index), _) => index,
            (None, Some(_)) => {
                return Err(Problem::new(
                    name.span,
                    format!("chain {} is declared twice", name.text),
                    "declared before",
                ));
            }
            (None, None) => {
                table.chains.push(name.text.clone());
                table.bodies.push(Chain { name: name.text.clone(), policy: None, rules: Vec::new(), span: name.span });
                table.chains.len() - 1
            }
        };
        table.bodies[index].span = name.span;
        if builtin.is_none() {
            check_chain_name(&name)?;
        }
        let Some(policy) = words.next() else {
            return Err(Problem::new(
                name.span,
                format!("chain {} has no policy", name.text),
                "expected a policy after it",
            )
            .help(if builtin.is_some() { "ACCEPT or DROP" } else { "`-` for a user chain" }));
        };
        table.bodies[index].policy = chain_policy(table.name, &name.text, builtin.is_some(), &policy)?;
        if let Some(counters) = words.next() {
            check_counters(&counters)?;
        }
        match words.next() {
            Some(extra) => Err(Problem::new(extra.span, "too much on a chain line", "expected the end of the line")),
            None => Ok(()),
        }
    }

    /// `[packets:bytes] -A CHAIN options`
    fn rule(&mut self, line: &str, span: Span) -> Result<(), Problem> {
        let tokens = tokenize(line, span.start)?;
        let mut rest = &tokens[..];
        // Only at the very start of the line is `[` a counter; its end need not be followed by a blank.
        let stripped;
        if line.starts_with('[') {
            let end = line.find(']').map_or(line.len(), |at| at + 1);
            let text = line[..end].to_owned();
            check_counters(&Token { text, span: Span::new(span.start, span.start + end) })?;
            stripped = tokenize(&line[end..], span.start + end)?;
            rest = &stripped;
        }
        let Some((command, rest)) = rest.split_first() else {
            return Err(Problem::new(span, "counters without a rule", "expected `-A CHAIN` after them"));
        };
        if command.text != "-A" && command.text != "--append" {
            return Err(bad_command(command));
        }
        let Some((chain, options)) = rest.split_first() else {
            return Err(Problem::new(command.span, "`-A` needs a chain", "the line ends here"));
        };
        let Some(table) = &mut self.table else { return Ok(()) };
        let Some(index) = table.chains.iter().position(|name| *name == chain.text) else {
            let near = nearest(&chain.text, table.chains.iter().map(String::as_str));
            let message = format!("table {} has no chain `{}`", table.name, chain.text);
            return Err(Problem::new(chain.span, message, "not declared before this line").help(near.map_or_else(
                || format!("declare it above with `:{} - [0:0]`", chain.text),
                |near| format!("did you mean `{near}`?"),
            )));
        };
        if table.name != "filter" {
            let message = format!("rules in table {} are not covered by this version", table.name);
            return Err(Problem::new(Span::new(command.span.start, span.end), message, "not covered")
                .help("this version evaluates the filter table only"));
        }
        let scope = Scope { family: self.family, chains: &table.chains, chain: index };
        let rules = read_rule(&scope, options, Span::new(command.span.start, span.end), self.report)?;
        table.bodies[index].rules.extend(rules);
        Ok(())
    }
}

fn bad_command(command: &Token) -> Problem {
    match command.text.as_str() {
        "-I" | "-D" | "-R" | "-N" | "-X" | "-F" | "-P" | "-Z" | "-E" | "-L" | "-S" | "-C" => {
            Problem::new(command.span, format!("command `{}` is not taken from a rules file", command.text), "not `-A`")
                .help("iptables-save writes only `-A`; load the file once and save it to get its plain form")
        }
        _ => Problem::new(command.span, format!("`{}` is not a command", command.text), "expected `-A CHAIN ...`"),
    }
}

fn check_chain_name(name: &Token) -> Result<(), Problem> {
    let bad = |what: &str| Err(Problem::new(name.span, format!("invalid chain name `{}`", name.text), what));
    match name.text.as_str() {
        "" => bad("empty"),
        text if text.len() > CHAIN_NAME_MAX => bad("longer than 28 bytes"),
        text if text.starts_with(['-', '!']) => bad("may not begin with `-` or `!`"),
        text if text.contains([' ', '\t', '"']) => bad("no blanks or quotes in a name"),
        text if super::names::TARGETS.iter().chain(super::names::TARGETS_NOT_COVERED).any(|&target| target == text) => {
            bad("a target is called so")
        }
        _ => Ok(()),
    }
}

fn chain_policy(table: &str, chain: &str, builtin: bool, policy: &Token) -> Result<Option<Policy>, Problem> {
    let accepts_only = table != "filter";
    match (policy.text.as_str(), builtin) {
        ("-", false) => Ok(None),
        ("ACCEPT", true) => Ok(Some(Policy::Accept)),
        ("DROP", true) if accepts_only => {
            let message = format!("policy DROP in table {table} is not covered by this version");
            Err(Problem::new(policy.span, message, "not covered").help("use the filter table's policy"))
        }
        ("DROP", true) => Ok(Some(Policy::Drop)),
        (_, true) => Err(Problem::new(policy.span, format!("bad policy `{}`", policy.text), "expected ACCEPT or DROP")),
        (_, false) => {
            let message = format!("user chain {chain} cannot have a policy");
            Err(Problem::new(policy.span, message, "expected `-`"))
        }
    }
}

/// `[packets:bytes]`: checked and, as by `iptables-restore` without `-c`, not used.
fn check_counters(token: &Token) -> Result<(), Problem> {
    let inner = token.text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let numbers = inner.and_then(|inner| inner.split_once(':'));
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok();
    match numbers.is_some_and(|(packets, bytes)| number(packets) && number(bytes)) {
        true => Ok(()),
        false => Err(Problem::new(token.span, "bad counters", "expected `[packets:bytes]`")),
    }
}

/// Built-in chains first, user chains by name, as `iptables-save` prints them; targets follow.
fn sorted(mut chains: Vec<Chain>) -> Vec<Chain> {
    let mut order: Vec<usize> = (0..chains.len()).collect();
    order[BUILTIN_CHAINS..].sort_by(|&a, &b| chains[a].name.cmp(&chains[b].name));
    let mut place = vec![0; chains.len()];
    for (new, &old) in order.iter().enumerate() {
        place[old] = new;
    }
    for rule in chains.iter_mut().flat_map(|chain| &mut chain.rules) {
        retarget(rule, &place);
    }
    let mut keyed: Vec<(usize, Chain)> =
        chains.into_iter().enumerate().map(|(old, chain)| (place[old], chain)).collect();
    keyed.sort_by_key(|&(new, _)| new);
    keyed.into_iter().map(|(_, chain)| chain).collect()
}

fn retarget(rule: &mut Rule, place: &[usize]) {
    use super::rule::Target::{Goto, Jump};
    if let Jump(chain) | Goto(chain) = &mut rule.target {
        *chain = place[*chain];
    }
}
