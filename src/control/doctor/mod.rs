//! `xrouter doctor`: whether this machine and these interfaces are ready, line by line, with the command that mends what is not.
//!
//! Three steps, each a file: [`Facts::gather`] looks and changes nothing; [`examine`] is a pure function from what was seen to a
//! [`Report`]; [`mend`] runs the commands of a report that can do no harm. What xrouter sets by itself at its start
//! ([`super::nic`]) is no fault.

use std::fmt;

use serde::Serialize;

mod facts;
mod fix;
mod interface;
mod machine;
#[cfg(test)]
mod tests;

pub use facts::{Card, Facts, HugePages, Leftover, Policy};
pub use fix::mend;

/// Version of the JSON.
pub const SCHEMA: u32 = 1;

/// How bad something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but could be better.
    Warning,
    /// It does not work, or not safely.
    Problem,
}

impl Level {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// What mends something.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fix {
    /// The command, for a shell; or, where no command can, what to do.
    pub command: String,
    /// Whether `--fix` may run it: it changes only what is looked at, and stops nothing that works.
    pub safe: bool,
}

/// One thing looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Line {
    /// How bad it is.
    pub level: Level,
    /// The interface's name, or `machine`.
    pub subject: String,
    /// What was looked at: one word, the same in every version.
    pub topic: &'static str,
    /// What was seen.
    pub text: String,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
}

impl Line {
    fn new(level: Level, subject: &str, topic: &'static str, text: impl Into<String>) -> Line {
        Line { level, subject: subject.to_owned(), topic, text: text.into(), fix: None }
    }

    fn ok(subject: &str, topic: &'static str, text: impl Into<String>) -> Line {
        Line::new(Level::Ok, subject, topic, text)
    }

    fn warning(subject: &str, topic: &'static str, text: impl Into<String>) -> Line {
        Line::new(Level::Warning, subject, topic, text)
    }

    fn problem(subject: &str, topic: &'static str, text: impl Into<String>) -> Line {
        Line::new(Level::Problem, subject, topic, text)
    }

    /// Mended by a command that `--fix` may run.
    fn mended_by(mut self, command: impl Into<String>) -> Line {
        self.fix = Some(Fix { command: command.into(), safe: true });
        self
    }

    /// Mended by something that an operator has to decide on.
    fn for_the_operator(mut self, command: impl Into<String>) -> Line {
        self.fix = Some(Fix { command: command.into(), safe: false });
        self
    }
}

/// All lines, those of the machine first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// Version of this.
    pub schema: u32,
    /// The lines.
    pub lines: Vec<Line>,
}

/// Judges what was seen.
pub fn examine(facts: &Facts) -> Report {
    let mut lines = machine::examine(facts);
    for card in &facts.cards {
        lines.extend(interface::examine(card, facts));
    }
    Report { schema: SCHEMA, lines }
}

impl Report {
    /// The worst level there is.
    pub fn worst(&self) -> Level {
        self.lines.iter().map(|line| line.level).max().unwrap_or(Level::Ok)
    }

    fn count(&self, level: Level) -> usize {
        self.lines.iter().filter(|line| line.level == level).count()
    }
}

/// A line each, with what mends it below, and how many of each level at the end.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.lines.iter().map(|line| line.subject.chars().count()).max().unwrap_or(0);
        for Line { level, subject, topic, text, fix } in &self.lines {
            writeln!(f, "{:<8} {subject:<width$} {topic}: {text}", level.name())?;
            if let Some(Fix { command, .. }) = fix {
                writeln!(f, "{:<8} {:<width$}   do: {command}", "", "")?;
            }
        }
        let (problems, warnings) = (self.count(Level::Problem), self.count(Level::Warning));
        writeln!(f, "{problems} problems, {warnings} warnings")
    }
}
