//! `xrouter rules restore [FILE]`, `xrouter iptables ...` and `xrouter ip6tables ...`: the running daemon's rules changed as
//! `iptables-restore` and `iptables` change the kernel's.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{VersionArgs, refused, saved_by, text_of, understand};
use crate::cli::{DaemonArgs, complain};
use crate::control::api::{Client, Reply, Request};
use crate::control::change::{ChangeReport, ChangeWish};
use crate::control::startup::Failure;
use crate::rules::{self, TableName};
use crate::wire::Family;

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// Only read the rules; needs no daemon, but with --noflush
    #[arg(short = 't', long)]
    test: bool,
    /// Leave the rules there are, and do what the lines say to them
    #[arg(short = 'n', long)]
    noflush: bool,
    /// Say what was done
    #[arg(short = 'v', long)]
    verbose: bool,
    /// As JSON, on one line
    #[arg(short = 'j', long, conflicts_with = "verbose")]
    json: bool,
    /// The file [default: standard input]
    #[arg(default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  xrouter iptables -I FORWARD 1 -s 192.0.2.1 -j DROP
  xrouter iptables -t mangle -A FORWARD -p tcp --syn -j TCPMSS --clamp-mss-to-pmtu
  xrouter iptables -D FORWARD -s 192.0.2.1 -j DROP
  xrouter iptables -S FORWARD

Commands: -A -I -R -D -C -N -X -F -P -E -Z, and -S. They change the running router's rules and no
file: the next reload brings back what the files say. To keep them: xrouter rules save > FILE.
Many changes are faster done by one `xrouter rules restore --noflush`. Rules and what they have
matched: xrouter rules stats.

Exit codes: 0 done; 1 there is no such rule or chain (-C, -D, ...), or it failed; 2 the line is
wrong; 4 no daemon. But for 0 nothing was changed.")]
pub(in crate::cli) struct IptablesArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// As for iptables
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "WORDS")]
    words: Vec<String>,
}

/// As `iptables-restore`: nothing is said of what was done.
pub(super) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let (name, text) = text_of("rules restore", &args.file)?;
    if args.test && !args.noflush {
        let ruleset = understand(&name, &text, args.version.family(), &[]).map_err(|wrong| refused(&wrong))?;
        return match ruleset.not_honoured().is_empty() {
            true => Ok(()),
            false => Err(refused(ruleset.not_honoured())),
        };
    }
    let family = args.version.family().or_else(|| saved_by(&text)).unwrap_or(Family::V4);
    let wish = ChangeWish { flush: !args.noflush, dry_run: args.test, ..wish(family, name, text) };
    let mut client = Client::connect(&args.daemon.control)?;
    let report = ask(&mut client, wish)?;
    match (args.json, args.verbose) {
        (true, _) => {
            let line = serde_json::to_string(&report).map_err(|_| client.unexpected())?;
            crate::cli::print(|out| writeln!(out, "{line}"))
        }
        (_, true) => crate::cli::print(|out| writeln!(out, "{report}")),
        _ => Ok(()),
    }
}

fn wish(family: Family, name: String, text: String) -> ChangeWish {
    let family = super::live::number(family);
    ChangeWish { family, name, text, flush: false, dry_run: false, styled: super::colours() }
}

fn ask(client: &mut Client, wish: ChangeWish) -> Result<ChangeReport, Failure> {
    client.ask(&Request::Change(wish))?;
    // Many rules take their time.
    client.listen()?;
    let Reply::Changed(report) = client.answer()? else { return Err(client.unexpected()) };
    report.notes.iter().for_each(|note| complain(&format!("note: {note}")));
    Ok(report)
}

/// What the words ask for, the table aside.
#[derive(Debug, PartialEq, Eq)]
struct Command {
    table: TableName,
    /// The command, its chain and number, then the rule.
    words: Vec<String>,
    verbose: bool,
    /// The daemon's control socket, where it is named among the words.
    control: Option<PathBuf>,
}

/// Commands, and how many words of their own they may have.
const COMMANDS: &[(&[&str], usize)] = &[
    (&["-A", "--append"], 1),
    (&["-I", "--insert"], 2),
    (&["-R", "--replace"], 2),
    (&["-D", "--delete"], 2),
    (&["-C", "--check"], 1),
    (&["-N", "--new-chain"], 1),
    (&["-X", "--delete-chain"], 1),
    (&["-F", "--flush"], 1),
    (&["-P", "--policy"], 2),
    (&["-E", "--rename-chain"], 2),
    (&["-Z", "--zero"], 2),
    (&["-S", "--list-rules"], 2),
    (&["-L", "--list"], 2),
];

/// A word as the words that getopt makes of it: `-nvL` is `-n -v -L`, `-tmangle` is `-t mangle`.
fn spelled_out(word: &str) -> Vec<String> {
    let Some(letters) = word.strip_prefix('-').filter(|letters| letters.len() > 1 && !letters.starts_with('-')) else {
        return vec![word.to_owned()];
    };
    let rest = letters.trim_start_matches(['n', 'v', 'x']);
    let mut words: Vec<String> =
        letters[..letters.len() - rest.len()].chars().map(|letter| format!("-{letter}")).collect();
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match (rest.strip_prefix('t'), rest.strip_prefix('w')) {
        _ if rest.is_empty() => {}
        (Some(table), _) if !table.is_empty() => words.extend(["-t".to_owned(), table.to_owned()]),
        (_, Some(seconds)) if is_number(seconds) => words.push("-w".to_owned()),
        _ => words.push(format!("-{rest}")),
    }
    words
}

/// Takes out what is not of the line itself (`-t TABLE`, how to print and wait), and puts the command first.
fn command(words: &[String], family: Family) -> Result<Command, Failure> {
    let mut command = Command { table: TableName::Filter, words: Vec::new(), verbose: false, control: None };
    let mut first: Option<usize> = None;
    let mut own = 0;
    // Words still to come that belong to the option before them, whatever they look like.
    let mut held = 0;
    let mut words: VecDeque<String> = words.iter().cloned().collect();
    while let Some(word) = words.pop_front() {
        if held > 0 {
            held -= 1;
            command.words.push(word);
            continue;
        }
        let mut pieces = spelled_out(&word).into_iter();
        let word = pieces.next().unwrap_or_default();
        pieces.rev().for_each(|piece| words.push_front(piece));
        let named = word.strip_prefix("--table=").map(str::to_owned);
        match word.as_str() {
            "-v" | "--verbose" => command.verbose = true,
            // There is nobody to wait for, and nothing is ever looked up in the DNS.
            "-w" | "--wait" => {
                next_if(&mut words, |word| word.bytes().all(|byte| byte.is_ascii_digit()));
            }
            "-n" | "--numeric" | "-x" | "--exact" | "--line-numbers" => {}
            "-4" | "--ipv4" if family == Family::V4 => {}
            "-6" | "--ipv6" if family == Family::V6 => {}
            "--control" => command.control = words.pop_front().map(PathBuf::from),
            "-t" | "--table" => command.table = table(&words.pop_front().unwrap_or_default())?,
            _ if named.is_some() => command.table = table(&named.unwrap_or_default())?,
            text => match COMMANDS.iter().find(|(names, _)| names.contains(&text)) {
                Some((_, most)) if first.is_none() => {
                    first = Some(command.words.len());
                    command.words.push(word);
                    while own < *most
                        && let Some(more) = next_if(&mut words, |word| !word.starts_with(['-', '!']))
                    {
                        command.words.push(more);
                        own += 1;
                    }
                }
                _ => {
                    held = rules::option_arguments(text).unwrap_or(0);
                    command.words.push(word);
                }
            },
        }
    }
    if let Some(first) = first {
        command.words[..=first + own].rotate_right(own + 1);
    }
    Ok(command)
}

/// The next word, if it is such a one.
fn next_if(words: &mut VecDeque<String>, is_it: impl Fn(&str) -> bool) -> Option<String> {
    words.front().is_some_and(|word| is_it(word)).then(|| words.pop_front()).flatten()
}

fn table(name: &str) -> Result<TableName, Failure> {
    let known = TableName::ALL.iter().find(|table| table.name() == name);
    known.copied().ok_or_else(|| Failure::Usage(format!("-t {name}: no such table; there are {}", all_tables())))
}

fn all_tables() -> String {
    TableName::ALL.iter().map(|table| table.name()).collect::<Vec<_>>().join(", ")
}

/// `xrouter iptables` and `xrouter ip6tables`.
pub(in crate::cli) fn iptables(args: &IptablesArgs, family: Family) -> Result<(), Failure> {
    let name = if family == Family::V4 { "iptables" } else { "ip6tables" };
    let Command { table, words, verbose, control } = command(&args.words, family)?;
    let control = control.as_ref().unwrap_or(&args.daemon.control);
    match words.first().map(String::as_str) {
        Some("-S" | "--list-rules") => return list(control, family, table, &words[1..], verbose),
        Some("-L" | "--list") => {
            let instead =
                "`xrouter rules stats` lists rules with what they have matched, `xrouter iptables -S` as commands";
            return Err(Failure::Usage(format!("{name} -L is not there: {instead}")));
        }
        Some(_) => {}
        None => return Err(Failure::Usage(format!("{name}: no command; for more information, try '--help'"))),
    }
    let checks = matches!(words[0].as_str(), "-C" | "--check");
    let line = rules::line_text(words.iter().map(String::as_str));
    if line.contains('\n') {
        return Err(Failure::Usage(format!("{name}: a line break in a word")));
    }
    let text = format!("*{}\n{line}\nCOMMIT\n", table.name());
    let mut client = Client::connect(control)?;
    let report = ask(&mut client, ChangeWish { dry_run: checks, ..wish(family, name.to_owned(), text) })?;
    match verbose {
        true => crate::cli::print(|out| writeln!(out, "{report}")),
        false => Ok(()),
    }
}

/// `-S [CHAIN [NUMBER]]`, of one table.
fn list(control: &Path, family: Family, table: TableName, which: &[String], counters: bool) -> Result<(), Failure> {
    let mut client = Client::connect(control)?;
    client.ask(&Request::Rules { family: super::live::number(family) })?;
    let Reply::Rules(text) = client.answer()? else { return Err(client.unexpected()) };
    let chain = which.first().map(String::as_str);
    let number = match which.get(1) {
        None => None,
        Some(word) => match word.parse::<usize>() {
            Ok(number @ 1..) => Some(number),
            _ => return Err(Failure::Usage(format!("-S: `{word}` is no rule's number; they begin at 1"))),
        },
    };
    let lines = commands(&text, table, chain, counters);
    match (lines.is_empty(), chain) {
        (true, Some(chain)) => Err(Failure::Running(format!("table {} has no chain {chain}", table.name()))),
        _ => crate::cli::print(|out| {
            let rule = |number| lines.iter().filter(|line| line.starts_with("-A ")).skip(number - 1).take(1);
            match number {
                None => lines.iter().try_for_each(|line| writeln!(out, "{line}")),
                Some(number) => rule(number).try_for_each(|line| writeln!(out, "{line}")),
            }
        }),
    }
}

/// A table that no rule was loaded for, as `iptables-save -c` prints it.
fn empty(table: TableName) -> String {
    let chains = rules::BUILTIN.iter().filter(|(of, _)| *of == table);
    chains.map(|(_, hook)| format!(":{} ACCEPT [0:0]\n", hook.chain_name())).collect()
}

/// The commands that make one table, or one chain of it, of what `iptables-save -c` prints.
fn commands(text: &str, table: TableName, chain: Option<&str>, counters: bool) -> Vec<String> {
    let begin = format!("*{}", table.name());
    let empty = empty(table);
    let lines = if text.lines().any(|line| line == begin) { text } else { &empty };
    let of_table =
        lines.lines().skip_while(|line| lines == text && *line != begin).take_while(|line| *line != "COMMIT");
    let counted = |counts: &str| {
        let counts = counts.trim_matches(['[', ']']).replace(':', " ");
        if counters { format!(" -c {counts}") } else { String::new() }
    };
    let command = |line: &str| {
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split(' ');
            let (name, policy, counts) = (words.next()?, words.next()?, words.next()?);
            let line = match policy {
                "-" => format!("-N {name}"),
                policy => format!("-P {name} {policy}{}", counted(counts)),
            };
            return Some((name.to_owned(), line));
        }
        let (counts, rule) = line.split_once("] ")?;
        let name = rule.split(' ').nth(1)?.to_owned();
        let (chain, rest) = rule.split_at("-A ".len() + name.len());
        Some((name, format!("{chain}{}{rest}", counted(counts))))
    };
    let all = of_table.filter_map(command);
    all.filter(|(name, _)| chain.is_none_or(|chain| chain == name)).map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_table_is_taken_out_of_the_line() {
        let read = |line: &str| command(&words(line), Family::V4).expect("good words");
        let plain = read("-A FORWARD -j DROP");
        assert_eq!((plain.table, plain.words, plain.verbose), (TableName::Filter, words("-A FORWARD -j DROP"), false));
        for line in [
            "-t mangle -w 5 -A FORWARD -j DROP",
            "-w -A FORWARD -j DROP --table=mangle",
            "-A FORWARD -t mangle -j DROP",
            "-j DROP -tmangle -4 -w5 -A FORWARD",
        ] {
            let Command { table, words: rest, .. } = read(line);
            assert_eq!((table, rest), (TableName::Mangle, words("-A FORWARD -j DROP")), "{line}");
        }
        // Words of an option are its own, whatever they look like.
        for line in ["-A a -m comment --comment -t -j b", "-A a -j LOG --log-prefix -w", "-A a --comment -v --syn -j b"]
        {
            assert_eq!(read(line).words, words(line));
        }
        for word in ["-not for guests", "-nv", "-t: ", "-é", "-w5"] {
            let line: Vec<String> = ["-A", "a", "--comment", word, "-j", "DROP"].map(str::to_owned).to_vec();
            assert_eq!(command(&line, Family::V4).expect("good words").words, line);
        }
        assert_eq!(read("-A a -é -j DROP").words, words("-A a -é -j DROP"), "for the daemon to refuse");
        assert_eq!(read("-s 5.5.5.5 -I FORWARD 2 -j DROP").words, words("-I FORWARD 2 -s 5.5.5.5 -j DROP"));
        assert!(read("-nvS FORWARD").verbose && read("-nvS FORWARD").words == words("-S FORWARD"));
        assert!(command(&words("-6 -F"), Family::V4).expect("taken").words == words("-F -6"), "told by the daemon");
        let wrong = command(&words("-t mangel -F"), Family::V4).expect_err("no such table");
        assert!(wrong.message().contains("mangel") && wrong.message().contains("mangle"), "{wrong}");
    }

    #[test]
    fn rules_are_listed_as_commands() {
        let text = "*raw\n:PREROUTING ACCEPT [9:9]\nCOMMIT\n*filter\n:FORWARD DROP [5:300]\n:a - [0:0]\n\
                    [1:60] -A FORWARD -p tcp -j a\n[0:0] -A a -j DROP\nCOMMIT\n";
        let all = commands(text, TableName::Filter, None, false);
        assert_eq!(all, ["-P FORWARD DROP", "-N a", "-A FORWARD -p tcp -j a", "-A a -j DROP"]);
        let one = commands(text, TableName::Filter, Some("FORWARD"), true);
        assert_eq!(one, ["-P FORWARD DROP -c 5 300", "-A FORWARD -c 1 60 -p tcp -j a"]);
        assert_eq!(commands(text, TableName::Mangle, Some("nowhere"), false), [""; 0]);
        // Not loaded yet, and there all the same.
        assert_eq!(commands(text, TableName::Nat, Some("POSTROUTING"), true), ["-P POSTROUTING ACCEPT -c 0 0"]);
        assert_eq!(commands(text, TableName::Raw, None, false), ["-P PREROUTING ACCEPT"]);
    }
}
