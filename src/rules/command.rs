//! The commands of a rules file's lines: `-A` of iptables-save, and what else `iptables-restore` takes, `-I -R -D -C -N -X -F
//! -P -E -Z`.
//!
//! A file begins with empty tables, as for `iptables-restore` without `--noflush`; each command changes the table being read.

use super::diagnostic::{Problem, Report, Span, nearest};
use super::option::{Scope, read_rule};
use super::parse::{chain_policy, check_chain_name};
use super::rule::Rule;
use super::save::word_text;
use super::table::Table;
use super::targets::Target;
use super::token::Token;
use super::value;
use crate::wire::Family;

/// A line that is neither a table nor a chain line, without its counters.
pub(super) struct Line<'a> {
    pub(super) family: Family,
    pub(super) command: &'a Token,
    /// What follows it.
    pub(super) rest: &'a [Token],
    /// Where the line ends.
    pub(super) end: usize,
}

/// Does what the line says to `table`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn run(line: &Line<'_>, table: &mut Table, report: &mut Report<'_>) -> Result<(), Problem> {
    match line.command.text.as_str() {
        "-A" | "--append" => {
            let (chain, options) = line.chain(table)?;
            let rules = line.rules(table, chain, options, report)?;
            table.append(chain, rules);
            Ok(())
        }
        "-I" | "--insert" => line.insert(table, report),
        "-R" | "--replace" => line.replace(table, report),
        "-D" | "--delete" => line.delete(table, report),
        "-C" | "--check" => {
            let (chain, options) = line.chain(table)?;
            let (rules, _) = line.wanted(table, chain, options, report)?;
            rules.iter().try_for_each(|rule| line.place_of(table, chain, rule).map(|_| ()))
        }
        "-N" | "--new-chain" => line.new_chain(table),
        "-X" | "--delete-chain" => line.delete_chains(table),
        "-F" | "--flush" => line.flush(table),
        "-P" | "--policy" => line.policy(table),
        "-E" | "--rename-chain" => line.rename(table),
        "-Z" | "--zero" => line.zero(table),
        "-L" | "-S" | "--list" | "--list-rules" => Err(line.problem("listing is not for a rules file", "leave it out")),
        text => Err(line.problem(&format!("`{text}` is not a command"), "expected `-A CHAIN ...`")),
    }
}

impl<'a> Line<'a> {
    fn problem(&self, message: &str, label: &str) -> Problem {
        Problem::new(self.command.span, message, label)
    }

    /// The chain the line names first, and what follows.
    fn chain(&self, table: &Table) -> Result<(usize, &'a [Token]), Problem> {
        let Some((name, options)) = self.rest.split_first() else {
            return Err(self.problem(&format!("`{}` needs a chain", self.command.text), "the line ends here"));
        };
        let index = table.find(&name.text).ok_or_else(|| {
            let near = nearest(&name.text, table.names().iter().map(String::as_str));
            let message = format!("table {} has no chain `{}`", table.name.name(), name.text);
            let problem = Problem::new(name.span, message, "not declared before this line").about_rules();
            problem.help(near.map_or_else(
                || format!("declare it above with `:{} - [0:0]`", name.text),
                |near| format!("did you mean `{near}`?"),
            ))
        })?;
        Ok((index, options))
    }

    /// The rules that a line brings.
    fn rules(
        &self,
        table: &Table,
        chain: usize,
        options: &[Token],
        report: &mut Report<'_>,
    ) -> Result<Vec<Rule>, Problem> {
        let (rules, cannot) = self.wanted(table, chain, options, report)?;
        // Whether that matters depends on which packets come to it: known when the whole file is read.
        cannot.into_iter().for_each(|problem| report.not_honoured(problem));
        Ok(rules)
    }

    /// The rules that a line names, and why they cannot be done, if so: then there is one, as its text.
    fn wanted(
        &self,
        table: &Table,
        chain: usize,
        options: &[Token],
        report: &mut Report<'_>,
    ) -> Result<(Vec<Rule>, Option<Problem>), Problem> {
        let scope = Scope { family: self.family, table, hook: table.hook(chain) };
        let span = Span::new(self.command.span.start, self.end);
        match read_rule(&scope, options, span, report) {
            Err(problem) if problem.is_refusal => Ok((vec![opaque(options, table, span)], Some(problem))),
            other => other.map(|rules| (rules, None)),
        }
    }

    /// A rule's number, where one stands next, and what follows.
    fn number(options: &'a [Token]) -> Option<(usize, Span, &'a [Token])> {
        let (first, rest) = options.split_first()?;
        let number = value::unsigned(&first.text, u32::MAX)?;
        Some((number as usize, first.span, rest))
    }

    /// `-I CHAIN [NUMBER] RULE`: each rule of a line with several addresses goes to the same number, so the last stands first.
    fn insert(&self, table: &mut Table, report: &mut Report<'_>) -> Result<(), Problem> {
        let (chain, options) = self.chain(table)?;
        let (number, span, options) = Line::number(options).unwrap_or((1, self.command.span, options));
        let rules = self.rules(table, chain, options, report)?;
        let held = table.chains[chain].rules.len();
        if number == 0 || number > held + 1 {
            let message = format!("no place {number} to insert at: the chain has {}", count(held));
            return Err(Problem::new(span, message, "rules are numbered from 1").about_rules());
        }
        rules.into_iter().for_each(|rule| table.insert(chain, number - 1, rule));
        Ok(())
    }

    fn replace(&self, table: &mut Table, report: &mut Report<'_>) -> Result<(), Problem> {
        let (chain, options) = self.chain(table)?;
        let Some((number, span, options)) = Line::number(options) else {
            return Err(self.problem("`-R` needs the number of a rule", "expected `-R CHAIN NUMBER RULE`"));
        };
        let mut rules = self.rules(table, chain, options, report)?;
        let held = table.chains[chain].rules.len();
        if number == 0 || number > held {
            return Err(no_rule(number, held, span));
        }
        match (rules.pop(), rules.is_empty()) {
            (Some(rule), true) => table.replace(chain, number - 1, rule),
            _ => return Err(self.problem("`-R` replaces one rule by one", "several addresses make several rules")),
        }
        Ok(())
    }

    fn delete(&self, table: &mut Table, report: &mut Report<'_>) -> Result<(), Problem> {
        let (chain, options) = self.chain(table)?;
        if let Some((number, span, [])) = Line::number(options) {
            let held = table.chains[chain].rules.len();
            if number == 0 || number > held {
                return Err(no_rule(number, held, span));
            }
            table.delete(chain, number - 1);
            return Ok(());
        }
        for rule in self.wanted(table, chain, options, report)?.0 {
            let place = self.place_of(table, chain, &rule)?;
            table.delete(chain, place);
        }
        Ok(())
    }

    /// The first rule that is the same.
    fn place_of(&self, table: &Table, chain: usize, wanted: &Rule) -> Result<usize, Problem> {
        let found = table.chains[chain].rules.iter().position(|rule| **rule == *wanted);
        found.ok_or_else(|| self.problem("no such rule in the chain", "nothing to delete or check").about_rules())
    }

    fn new_chain(&self, table: &mut Table) -> Result<(), Problem> {
        let [name] = self.rest else {
            return Err(self.problem("`-N` needs one name", "expected `-N CHAIN`"));
        };
        check_chain_name(name)?;
        if table.find(&name.text).is_some() {
            let message = format!("chain {} is declared twice", name.text);
            return Err(Problem::new(name.span, message, "declared before").about_rules());
        }
        let index = table.declare(&name.text);
        table.chains[index].span = name.span;
        Ok(())
    }

    fn delete_chains(&self, table: &mut Table) -> Result<(), Problem> {
        let chains: Vec<usize> = match self.rest {
            [] => (table.builtin..table.chains.len()).rev().collect(),
            _ => vec![self.chain(table)?.0],
        };
        for chain in chains {
            let name = &table.names()[chain];
            let why = match (chain < table.builtin, table.references(chain), table.chains[chain].rules.len()) {
                (true, ..) => Some(format!("chain {name} is built in: it cannot be deleted")),
                (_, 1.., _) => Some(format!("a rule still leads to chain {name}")),
                (_, _, 1..) => Some(format!("chain {name} still has rules")),
                _ => None,
            };
            if let Some(why) = why {
                return Err(self.problem(&why, "Linux refuses this").help("flush first: `-F`").about_rules());
            }
            table.remove(chain);
        }
        Ok(())
    }

    fn flush(&self, table: &mut Table) -> Result<(), Problem> {
        match self.rest {
            [] => (0..table.chains.len()).for_each(|chain| table.flush(chain)),
            _ => table.flush(self.chain(table)?.0),
        }
        Ok(())
    }

    fn zero(&self, table: &mut Table) -> Result<(), Problem> {
        if self.rest.is_empty() {
            (0..table.chains.len()).for_each(|chain| table.zero(chain, None));
            return Ok(());
        }
        let (chain, options) = self.chain(table)?;
        let held = table.chains[chain].rules.len();
        match Line::number(options) {
            Some((number, span, _)) if number == 0 || number > held => return Err(no_rule(number, held, span)),
            number => table.zero(chain, number.map(|(number, ..)| number - 1)),
        }
        Ok(())
    }

    fn policy(&self, table: &mut Table) -> Result<(), Problem> {
        let (chain, rest) = self.chain(table)?;
        let [policy] = rest else {
            return Err(self.problem("`-P` needs a chain and a policy", "expected `-P CHAIN ACCEPT` or `DROP`"));
        };
        if chain >= table.builtin {
            let message = format!("user chain {} cannot have a policy", table.names()[chain]);
            return Err(Problem::new(policy.span, message, "only built-in chains have one"));
        }
        let policy = chain_policy(table.name, &table.names()[chain], true, policy)?;
        table.chains[chain].span = Span::new(self.command.span.start, self.end);
        table.set_policy(chain, policy);
        Ok(())
    }

    fn rename(&self, table: &mut Table) -> Result<(), Problem> {
        let (chain, rest) = self.chain(table)?;
        let [name] = rest else {
            return Err(self.problem("`-E` needs two names", "expected `-E OLD NEW`"));
        };
        check_chain_name(name)?;
        if chain < table.builtin || table.find(&name.text).is_some() {
            let message = format!("chain {} cannot be called {}", table.names()[chain], name.text);
            return Err(Problem::new(name.span, message, "built in, or taken").about_rules());
        }
        table.rename(chain, &name.text);
        Ok(())
    }
}

/// A rule whose words are not understood, but for the chain that it leads to, if any.
fn opaque(options: &[Token], table: &Table, span: Span) -> Rule {
    let found = options.windows(2).enumerate().find_map(|(at, pair)| {
        let chain = table.find(&pair[1].text).filter(|&chain| chain >= table.builtin)?;
        match pair[0].text.as_str() {
            "-j" | "--jump" => Some((at, Target::Jump(chain))),
            "-g" | "--goto" => Some((at, Target::Goto(chain))),
            _ => None,
        }
    });
    let is_target = |at: usize| found.as_ref().is_some_and(|&(first, _)| at == first || at == first + 1);
    let words = options.iter().enumerate().filter(|&(at, _)| !is_target(at));
    let words: Vec<String> = words.map(|(_, option)| word_text(&option.text)).collect();
    let target = found.as_ref().map(|(_, target)| target.clone()).unwrap_or_default();
    Rule { span, target, opaque: Some(words.join(" ")), ..Rule::default() }
}

fn count(rules: usize) -> String {
    match rules {
        0 => "no rules".to_owned(),
        1 => "one rule".to_owned(),
        n => format!("{n} rules"),
    }
}

fn no_rule(number: usize, held: usize, span: Span) -> Problem {
    Problem::new(span, format!("there is no rule {number}: the chain has {}", count(held)), "rules are numbered from 1")
        .about_rules()
}
