//! What is wrong with a rules file: [`Diagnostic`], one bad place, and [`Diagnostics`], all of them at once.
//!
//! Made while a file is loaded, read by the operator, then thrown away. A diagnostic owns the one line of text it is
//! about, so it outlives the file. Every diagnostic has a line, a column and an underlined piece of that line; its
//! message says what is wrong, the label under the line what was expected there, the help what to write instead.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use core::fmt;

/// Bytes `start..end` of a rules file.
///
/// Two spans are always equal: where a thing was written is no part of what it says, so typed rules compare by meaning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl PartialEq for Span {
    fn eq(&self, _: &Span) -> bool {
        true
    }
}

impl Eq for Span {}

impl Span {
    /// Bytes `start..end`.
    pub const fn new(start: usize, end: usize) -> Span {
        Span { start, end }
    }

    /// From the start of this span to the end of `last`.
    #[must_use]
    pub const fn to(self, last: Span) -> Span {
        Span { start: self.start, end: last.end }
    }
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, but an expert would look twice.
    Warning,
}

/// A problem before it is tied to a file: where, what, and what to do.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) span: Span,
    pub(super) message: String,
    pub(super) label: String,
    pub(super) help: Option<String>,
    /// The line is right for iptables; it only cannot be done here.
    pub(super) is_refusal: bool,
    /// The line is right; the rules it is done to are not what it asks for (there is no such rule, or a chain of that name).
    pub(super) is_about_rules: bool,
}

impl Problem {
    /// `message` is the headline, `label` stands under the underlined text.
    pub(super) fn new(span: Span, message: impl Into<String>, label: impl Into<String>) -> Problem {
        Problem {
            span,
            message: message.into(),
            label: label.into(),
            help: None,
            is_refusal: false,
            is_about_rules: false,
        }
    }

    /// With advice.
    pub(super) fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }

    /// The line is right for iptables; it only cannot be done here.
    pub(super) fn refusal(mut self) -> Problem {
        self.is_refusal = true;
        self
    }

    /// The line is right; the rules it is done to are not what it asks for.
    pub(super) fn about_rules(mut self) -> Problem {
        self.is_about_rules = true;
        self
    }

    /// With advice, when there is any.
    pub(super) fn maybe_help(mut self, help: Option<String>) -> Problem {
        self.help = help.or(self.help);
        self
    }
}

/// One bad (or doubtful) place in a rules file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file's name as the operator gave it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line itself.
    pub text: String,
    /// What is underlined: bytes of `text`.
    pub underlined: core::ops::Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What stands under the underlined text; may be empty.
    pub label: String,
    /// What to do about it, where there is something to say.
    pub help: Option<String>,
    /// The line is right; the rules it is done to are not what it asks for.
    pub about_rules: bool,
}

impl Diagnostic {
    /// One line: `file:line:column: message`.
    pub fn one_line(&self) -> String {
        format!("{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }

    fn render(&self, renderer: &Renderer) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let annotation = AnnotationKind::Primary.span(self.underlined.clone()).label(self.label.as_str());
        let snippet =
            Snippet::source(self.text.as_str()).line_start(self.line).path(self.file.as_str()).annotation(annotation);
        let mut group = level.primary_title(self.message.as_str()).element(snippet);
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        renderer.render(&[group])
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

/// Everything found wrong with a rules file, in order of lines. `Display` prints each with its line, the bad text
/// underlined, and a closing count.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// The diagnostics, in order of lines.
    pub fn iter(&self) -> core::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether every line is right, and only the rules that they would change are not what one asks for.
    pub fn are_about_rules(&self) -> bool {
        let mut errors = self.list.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).peekable();
        errors.peek().is_some() && errors.all(|diagnostic| diagnostic.about_rules)
    }

    /// How many are errors.
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count()
    }

    /// As `Display`, with colours for a terminal.
    pub fn to_styled(&self) -> String {
        self.render(&Renderer::styled())
    }

    /// With those of `more`, in order of lines.
    #[must_use]
    pub fn and(mut self, more: Diagnostics) -> Diagnostics {
        self.list.extend(more.list);
        self.list.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        self
    }

    /// Keeps only those.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Diagnostic) -> bool) {
        self.list.retain(keep);
    }

    fn render(&self, renderer: &Renderer) -> String {
        let mut out: Vec<String> = self.list.iter().map(|diagnostic| diagnostic.render(renderer)).collect();
        let errors = self.errors();
        if let Some(first) = self.list.iter().find(|diagnostic| diagnostic.severity == Severity::Error) {
            let noun = if errors == 1 { "error" } else { "errors" };
            out.push(format!("{}: {errors} {noun}; the rules were not loaded", first.file));
        }
        out.join("\n\n")
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

impl core::error::Error for Diagnostics {}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = core::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Collects problems while one file is read.
#[derive(Debug)]
pub(super) struct Report<'t> {
    file: &'t str,
    text: &'t str,
    /// Places begin here: those below are of what the text changes, and shown as its beginning.
    first: usize,
    line_starts: Vec<usize>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    not_honoured: Vec<Problem>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Report<'t> {
        Report::after(0, file, text)
    }

    /// Of a text whose places begin at `first`.
    pub(super) fn after(first: usize, file: &'t str, text: &'t str) -> Report<'t> {
        let breaks = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| at + 1);
        let line_starts = core::iter::once(0).chain(breaks).collect();
        Report { file, text, first, line_starts, errors: Vec::new(), warnings: Vec::new(), not_honoured: Vec::new() }
    }

    /// Where the text's places begin.
    pub(super) fn first_place(&self) -> usize {
        self.first
    }

    pub(super) fn error(&mut self, problem: Problem) {
        self.errors.push(problem);
    }

    pub(super) fn warn(&mut self, problem: Problem) {
        self.warnings.push(problem);
    }

    /// Understood, but not to be done.
    pub(super) fn not_honoured(&mut self, problem: Problem) {
        self.not_honoured.push(problem);
    }

    /// Makes warnings of what cannot be done, where `is_the_hosts` says so of its place: no forwarded packet comes there.
    pub(super) fn leave_to_the_host(&mut self, is_the_hosts: impl Fn(Span) -> bool) {
        let (left, kept) = core::mem::take(&mut self.not_honoured).into_iter().partition(|it| is_the_hosts(it.span));
        self.not_honoured = kept;
        let said = |problem: Problem| {
            let message = format!("{}; it is left to the host", problem.message);
            Problem { message, label: "no forwarded packet comes here".to_owned(), help: None, ..problem }
        };
        self.warnings.extend(Vec::into_iter(left).map(said));
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    pub(super) fn has_not_honoured(&self) -> bool {
        !self.not_honoured.is_empty()
    }

    /// The line (from 1) that holds byte `at`.
    pub(super) fn line_of(&self, at: usize) -> usize {
        let at = at.saturating_sub(self.first);
        self.line_starts.partition_point(|&start| start <= at)
    }

    /// Errors, and all that cannot be done as errors, and warnings.
    pub(super) fn finish(&self) -> Diagnostics {
        self.placed(&[(&self.errors, Severity::Error), (&self.not_honoured, Severity::Error)], true)
    }

    /// What is understood and cannot be done, as errors.
    pub(super) fn finish_not_honoured(&self) -> Diagnostics {
        self.placed(&[(&self.not_honoured, Severity::Error)], false)
    }

    /// The warnings alone.
    pub(super) fn finish_warnings(&self) -> Diagnostics {
        self.placed(&[], true)
    }

    fn placed(&self, lists: &[(&Vec<Problem>, Severity)], warnings: bool) -> Diagnostics {
        let warnings = warnings.then_some((&self.warnings, Severity::Warning));
        let all = lists.iter().copied().chain(warnings);
        let mut list: Vec<Diagnostic> = all
            .flat_map(|(problems, severity)| problems.iter().map(move |problem| self.place(problem, severity)))
            .collect();
        list.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        Diagnostics { list }
    }

    fn place(&self, problem: &Problem, severity: Severity) -> Diagnostic {
        let line = self.line_of(problem.span.start);
        let start = problem.span.start.saturating_sub(self.first).min(self.text.len());
        let line_start = self.line_starts[line - 1];
        let text = self.text[line_start..].split('\n').next().unwrap_or_default();
        // Whole characters: who says which byte is wrong need not know where a character begins.
        let is_boundary = |at: &usize| text.is_char_boundary(*at);
        let from = (0..=start - line_start).rfind(is_boundary).unwrap_or(0);
        let to = problem.span.end.saturating_sub(self.first + line_start).clamp(from, text.len());
        let to = (to..=text.len()).find(is_boundary).unwrap_or(text.len());
        Diagnostic {
            severity,
            file: self.file.to_owned(),
            line,
            column: text[..from].chars().count() + 1,
            text: text.to_owned(),
            underlined: from..to,
            message: problem.message.clone(),
            label: problem.label.clone(),
            help: problem.help.clone(),
            about_rules: problem.is_about_rules,
        }
    }
}

/// The candidate nearest to `word`, when it is near enough to be what was meant: at most two edits, and fewer than half
/// of the word.
pub(super) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let limit = (word.chars().count() / 2).min(2);
    let word = word.to_ascii_lowercase();
    let scored = candidates.into_iter().map(|candidate| (edits(&word, &candidate.to_ascii_lowercase()), candidate));
    scored.filter(|&(distance, _)| distance <= limit).min_by_key(|&(distance, _)| distance).map(|(_, near)| near)
}

/// Levenshtein distance, in characters; words longer than 64 are never near.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(65).collect();
    if b.len() > 64 || a.chars().count() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_points_at_line_and_column() {
        let text = "*filter\n-A FORWARD -j NOPE\nCOMMIT\n";
        let mut report = Report::new("rules.v4", text);
        let at = text.find("NOPE").expect("it is there");
        report.error(Problem::new(Span::new(at, at + 4), "no such target", "not a chain").help("declare it"));
        let diagnostics = report.finish();
        let first = diagnostics.iter().next().expect("one");
        assert_eq!((first.line, first.column, first.one_line().as_str()), (2, 15, "rules.v4:2:15: no such target"));
        let shown = diagnostics.to_string();
        for part in ["error: no such target", "rules.v4:2:15", "^^^^ not a chain", "help: declare it", "1 error;"] {
            assert!(shown.contains(part), "{part:?} is missing in:\n{shown}");
        }
    }

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        assert_eq!(nearest("ACCPET", ["ACCEPT", "DROP"]), Some("ACCEPT"));
        assert_eq!(nearest("--dprot", ["--dport", "--sport"]), Some("--dport"));
        assert_eq!(nearest("XY", ["ACCEPT", "DROP"]), None);
    }
}
