//! The lines of an `iptables-save` file: tables, chains with policies, rules, COMMIT.
//!
//! Reads every line, whatever was wrong with the lines before, so that all bad lines are reported at once. While a table is
//! read its chains are numbered in order of declaration, built-in ones first; at the end all tables' chains become one list.

use super::command::{self, Line};
use super::diagnostic::{Problem, Report, Span, nearest};
use super::rule::{Policy, Ruleset, TableName};
use super::table::{Flat, Table, flatten};
use super::targets::Target;
use super::token::{Token, tokenize};
use crate::wire::Family;

/// Longest name of a user chain in bytes.
const CHAIN_NAME_MAX: usize = 28;

/// What a file holds.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) flat: Flat,
    /// In the file's order.
    pub(super) tables: Vec<TableName>,
}

/// What a text changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base<'a> {
    pub(super) ruleset: &'a Ruleset,
    /// Tables that the text has begin empty.
    pub(super) flush: bool,
}

/// Reads the whole file: new tables, or changes to those of `base`. Problems go to `report`.
pub(super) fn parse(text: &str, family: Family, base: Option<Base<'_>>, report: &mut Report<'_>) -> Parsed {
    let mut at = report.first_place();
    let mut parser = Parser { family, base, report, table: None, seen: Vec::new(), done: Vec::new(), skipping: false };
    for line in text.split('\n') {
        if let Err(problem) = parser.line(line, at) {
            parser.report.error(problem);
        }
        at += line.len() + 1;
    }
    if let Some(table) = parser.table.take() {
        let message = format!("table {} has no COMMIT", table.name.name());
        parser.report.error(
            Problem::new(table.span, message, "begins here")
                .help("end it with a line `COMMIT`; is the file cut short?"),
        );
        parser.done.push(table);
    }
    let (mut tables, mut done) = (parser.seen, parser.done);
    if let Some(Base { ruleset, .. }) = base {
        let (others, seen) = ruleset.tables.iter().partition::<Vec<_>, _>(|table| !tables.contains(table));
        done.extend(others.iter().map(|&table| Table::of(ruleset, table, Span::default())));
        // Those there were stay where they were.
        let new = tables.into_iter().filter(|table| !seen.contains(table));
        tables = ruleset.tables.iter().copied().chain(new).collect();
    }
    Parsed { flat: flatten(done), tables }
}

struct Parser<'r, 't> {
    family: Family,
    base: Option<Base<'r>>,
    report: &'r mut Report<'t>,
    table: Option<Table>,
    /// Tables seen so far.
    seen: Vec<TableName>,
    /// Tables read.
    done: Vec<Table>,
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
            let message = format!("table {} has no COMMIT", table.name.name());
            self.report.error(
                Problem::new(span, message, "the next table begins here").help("put a line `COMMIT` before this one"),
            );
            self.done.push(table);
        }
        self.skipping = true;
        let Some(&known) = TableName::ALL.iter().find(|table| table.name() == name) else {
            let names: Vec<&str> = TableName::ALL.iter().map(|table| table.name()).collect();
            let near = nearest(name, names.iter().copied());
            return Err(Problem::new(span, format!("unknown table `{}`", name.escape_debug()), "no such table").help(
                near.map_or_else(
                    || format!("tables are {}", names.join(", ")),
                    |near| format!("did you mean `*{near}`?"),
                ),
            ));
        };
        let again = self.done.iter().position(|table| table.name == known);
        if let (Some(Base { flush: false, .. }), Some(at)) = (self.base, again) {
            // Texts that were put together: the second goes on where the first ended.
            self.skipping = false;
            self.table = Some(self.done.remove(at));
            return Ok(());
        }
        if self.seen.contains(&known) {
            let message = format!("table {} appears twice", known.name());
            return Err(Problem::new(span, message, "begun before")
                .help("iptables-restore would throw the first one away; keep one of them"));
        }
        self.seen.push(known);
        self.skipping = false;
        self.table = Some(match self.base {
            Some(Base { ruleset, flush: false }) => Table::of(ruleset, known, span),
            Some(Base { ruleset, flush: true }) => Table::emptied(ruleset, known, span),
            None => Table::new(known, span),
        });
        Ok(())
    }

    fn commit(&mut self, span: Span) -> Result<(), Problem> {
        match self.table.take() {
            Some(table) => self.done.push(table),
            None if self.skipping => {}
            None => return Err(Problem::new(span, "COMMIT without a table", "no `*table` line before it")),
        }
        self.skipping = false;
        Ok(())
    }

    /// `:NAME POLICY [packets:bytes]`
    fn chain(&mut self, line: &str, span: Span) -> Result<(), Problem> {
        let mut words = tokenize(&line[1..], span.start + 1)?.into_iter();
        let Some(name) = words.next() else {
            return Err(Problem::new(span, "a chain line without a name", "expected `:NAME POLICY [0:0]`"));
        };
        let Some(table) = &mut self.table else { return Ok(()) };
        // The chain is there even when its line is wrong, so that its rules are not reported too.
        let index = match table.find(&name.text) {
            Some(index) if index < table.builtin => index,
            // Emptied, as by `iptables-restore --noflush`.
            Some(index) if matches!(self.base, Some(Base { flush: false, .. })) => {
                table.flush(index);
                index
            }
            Some(_) => {
                return Err(Problem::new(
                    name.span,
                    format!("chain {} is declared twice", name.text),
                    "declared before",
                ));
            }
            None => table.declare(&name.text),
        };
        table.chains[index].span = name.span;
        let builtin = index < table.builtin;
        if !builtin {
            check_chain_name(&name)?;
        }
        let Some(policy) = words.next() else {
            return Err(Problem::new(
                name.span,
                format!("chain {} has no policy", name.text),
                "expected a policy after it",
            )
            .help(if builtin { "ACCEPT or DROP" } else { "`-` for a user chain" }));
        };
        let policy = chain_policy(table.name, &name.text, builtin, &policy)?;
        table.set_policy(index, policy);
        if !matches!(self.base, Some(Base { flush: false, .. })) {
            table.mark_declared(index);
        }
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
        let Some(table) = &mut self.table else { return Ok(()) };
        let line = Line { family: self.family, command, rest, end: span.end };
        command::run(&line, table, self.report)
    }
}

pub(super) fn check_chain_name(name: &Token) -> Result<(), Problem> {
    let bad = |what: &str| Err(Problem::new(name.span, format!("invalid chain name `{}`", name.text), what));
    match name.text.as_str() {
        "" => bad("empty"),
        text if text.len() > CHAIN_NAME_MAX => bad("longer than 28 bytes"),
        text if text.starts_with(['-', '!']) => bad("may not begin with `-` or `!`"),
        text if text.contains([' ', '\t', '"']) => bad("no blanks or quotes in a name"),
        text if is_target(text) => bad("a target is called so"),
        _ => Ok(()),
    }
}

fn is_target(name: &str) -> bool {
    let known = Target::KINDS.iter().any(|kind| kind.name == name);
    known || matches!(name, "ACCEPT" | "DROP" | "RETURN") || super::targets::refused::reason(name).is_some()
}

pub(super) fn chain_policy(
    table: TableName,
    chain: &str,
    builtin: bool,
    policy: &Token,
) -> Result<Option<Policy>, Problem> {
    match (policy.text.as_str(), builtin) {
        ("-", false) => Ok(None),
        ("ACCEPT", true) => Ok(Some(Policy::Accept)),
        ("DROP", true) if table == TableName::Nat => {
            Err(Problem::new(policy.span, "the nat table takes no policy DROP", "not a place to drop")
                .help("use the filter table's policy"))
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
