//! A line cut into words as `iptables-restore` cuts it (`add_param_to_argv` in iptables' xshared.c): [`Token`].
//!
//! Words are separated by blanks and tabs. A double quote opens a quoted stretch, in which a backslash takes the next
//! character as it is; the closing quote ends the word, also when no blank follows. Single quotes mean nothing.

use super::diagnostic::{Problem, Span};

/// One word of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    /// The word, quotes and escapes removed.
    pub(super) text: String,
    /// Where it stands in the file, quotes included.
    pub(super) span: Span,
}

/// Cuts `line`, which starts at byte `base` of the file.
///
/// # Errors
/// A quote that is never closed (which `iptables-restore` would read on beyond the line), or a control character.
pub(super) fn tokenize(line: &str, base: usize) -> Result<Vec<Token>, Problem> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    let mut start = None;
    let mut quote: Option<usize> = None;
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        let here = base + at;
        if c.is_control() && c != '\t' {
            return Err(control_character(c, here));
        }
        if quote.is_some() {
            match c {
                _ if escaped => {
                    word.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    let span = Span::new(start.take().unwrap_or(here), here + 1);
                    tokens.push(Token { text: core::mem::take(&mut word), span });
                    quote = None;
                }
                _ => word.push(c),
            }
            continue;
        }
        match c {
            '"' => {
                quote = Some(here);
                start.get_or_insert(here);
            }
            ' ' | '\t' => {
                if let Some(from) = start.take() {
                    tokens.push(Token { text: core::mem::take(&mut word), span: Span::new(from, here) });
                }
            }
            _ => {
                start.get_or_insert(here);
                word.push(c);
            }
        }
    }
    let end = base + line.len();
    if let Some(at) = quote {
        return Err(Problem::new(Span::new(at, end), "this quote is never closed", "opened here")
            .help("close it with `\"` on the same line"));
    }
    if let Some(from) = start {
        tokens.push(Token { text: word, span: Span::new(from, end) });
    }
    Ok(tokens)
}

fn control_character(c: char, at: usize) -> Problem {
    let span = Span::new(at, at + c.len_utf8());
    match c {
        '\r' => Problem::new(span, "this line has a carriage return", "here")
            .help("the file has DOS line endings; convert it with `dos2unix` or `sed -i 's/\\r$//'`"),
        _ => Problem::new(span, format!("control character {:#04x} in a rule", u32::from(c)), "here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        tokenize(line, 0).expect("a good line").into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn words_are_cut_as_iptables_restore_cuts_them() {
        assert_eq!(words("  -A FORWARD\t-j ACCEPT  "), ["-A", "FORWARD", "-j", "ACCEPT"]);
        assert_eq!(words(r#"--comment "a b \"q\" \'x\' \\ end" -j"#), ["--comment", r#"a b "q" 'x' \ end"#, "-j"]);
        assert_eq!(words(r#"a"b c"d "" x"#), ["ab c", "d", "", "x"]);
        assert_eq!(words("'a b'"), ["'a", "b'"]);
    }

    #[test]
    fn spans_cover_the_quotes() {
        let line = r#"-m "x y" z"#;
        let spans: Vec<&str> =
            tokenize(line, 100).expect("good").iter().map(|t| &line[t.span.start - 100..t.span.end - 100]).collect();
        assert_eq!(spans, ["-m", r#""x y""#, "z"]);
    }

    #[test]
    fn bad_lines_are_refused_with_a_place() {
        assert_eq!(tokenize("-A \"abc", 0).expect_err("open quote").span.start, 3);
        assert!(tokenize("-A x\r", 0).expect_err("carriage return").help.is_some());
        assert!(tokenize("-A \u{0}", 0).is_err());
    }
}
