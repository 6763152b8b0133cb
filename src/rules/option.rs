//! The options of one rule: words to a typed [`Rule`], as iptables' own parser reads them (`do_parse` in xshared.c and the
//! extensions' parsers).
//!
//! A [`Reader`] lives for one line. It looks an option up among the base options, then the target's, then those of the
//! matches loaded so far, newest first; if none has it and `-p` names a protocol with a match of its own, that match is
//! loaded (so `-p tcp --dport 80` needs no `-m tcp`). The first problem of a line ends its reading.

use super::diagnostic::{Problem, Report, Span, nearest};
use super::extension::{Given, Kind, OptionSpec, Whole};
use super::matches::{self, Match};
use super::rule::{AddrMatch, Hook, InterfaceMatch, ProtoMatch, Rule, TableName};
use super::table::Table;
use super::targets::{Target, refused};
use super::token::Token;
use super::{names, value};
use crate::wire::{Family, proto};

/// Matches one rule may have (Linux has a limit in bytes, which is about this).
const MATCHES_MAX: usize = 128;

/// The mobility header's protocol number (RFC 6275); its match has another name.
const MOBILITY: u8 = 135;

const SOURCE: u8 = 0;
const DESTINATION: u8 = 1;
const IN_INTERFACE: u8 = 2;
const OUT_INTERFACE: u8 = 3;
const PROTOCOL: u8 = 4;
const MATCH: u8 = 5;
const JUMP: u8 = 6;
const GOTO: u8 = 7;
const FRAGMENT: u8 = 8;

/// The options of every rule.
const BASE: &[OptionSpec] = &[
    OptionSpec::new(SOURCE, &["-s", "--source", "--src"]).invertible(),
    OptionSpec::new(DESTINATION, &["-d", "--destination", "--dst"]).invertible(),
    OptionSpec::new(IN_INTERFACE, &["-i", "--in-interface"]).invertible(),
    OptionSpec::new(OUT_INTERFACE, &["-o", "--out-interface"]).invertible(),
    OptionSpec::new(PROTOCOL, &["-p", "--protocol"]).invertible(),
    OptionSpec::new(MATCH, &["-m", "--match"]),
    OptionSpec::new(JUMP, &["-j", "--jump"]).group(1),
    OptionSpec::new(GOTO, &["-g", "--goto"]).group(1),
    OptionSpec::new(FRAGMENT, &["-f", "--fragments", "--fragment"]).invertible().arguments(0),
];

/// How many words follow an option of rules, whichever match or target it is of; an abbreviation is one of the first that
/// begins so. None of what is no option.
pub fn option_arguments(name: &str) -> Option<usize> {
    let specs = || {
        let matches = Match::KINDS.iter().flat_map(|kind| kind.options);
        BASE.iter().chain(matches).chain(Target::KINDS.iter().flat_map(|kind| kind.options))
    };
    let whole = specs().find(|spec| spec.names.contains(&name));
    let begun = || specs().find(|spec| name.len() > 2 && spec.names.iter().any(|full| full.starts_with(name)));
    whole.or_else(begun).map(|spec| usize::from(spec.arguments))
}

/// A match being filled.
#[derive(Debug)]
struct Loaded {
    kind: &'static Kind<Match>,
    span: Span,
    value: Match,
    seen: Vec<u8>,
}

/// A target being filled.
#[derive(Debug)]
struct Aim {
    /// Without one it is a verdict or a chain, and has no options.
    kind: Option<&'static Kind<Target>>,
    span: Span,
    value: Target,
    seen: Vec<u8>,
}

/// Where the line stands.
pub(super) struct Scope<'a> {
    pub(super) family: Family,
    /// Its table, as far as it is read.
    pub(super) table: &'a Table,
    /// The hook of the chain the rule is appended to, if it is a built-in one.
    pub(super) hook: Option<Hook>,
}

/// Reads the options of one rule.
pub(super) struct Reader<'a, 'r, 't> {
    scope: &'a Scope<'a>,
    report: &'r mut Report<'t>,
    tokens: &'a [Token],
    next: usize,
    invert: Option<Span>,
    sources: Vec<AddrMatch>,
    destinations: Vec<AddrMatch>,
    rule: Rule,
    loaded: Vec<Loaded>,
    aim: Option<Aim>,
    base_seen: Vec<u8>,
}

/// Reads what follows `-A CHAIN`. One line may be several rules (`-s a,b`).
///
/// # Errors
/// The first problem.
pub(super) fn read_rule(
    scope: &Scope<'_>,
    tokens: &[Token],
    span: Span,
    report: &mut Report<'_>,
) -> Result<Vec<Rule>, Problem> {
    let mut reader = Reader {
        scope,
        report,
        tokens,
        next: 0,
        invert: None,
        sources: Vec::new(),
        destinations: Vec::new(),
        rule: Rule { span, ..Rule::default() },
        loaded: Vec::new(),
        aim: None,
        base_seen: Vec::new(),
    };
    while reader.next < tokens.len() {
        reader.read_option()?;
    }
    reader.finish()
}

/// Where an option was found.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Base,
    Target,
    Match(usize),
}

impl<'a> Reader<'a, '_, '_> {
    fn read_option(&mut self) -> Result<(), Problem> {
        let token = &self.tokens[self.next];
        self.next += 1;
        if token.text == "!" {
            if self.invert.replace(token.span).is_some() {
                return Err(Problem::new(token.span, "`!` twice in a row", "leave one out"));
            }
            return Ok(());
        }
        if !token.text.starts_with('-') || token.text == "-" {
            return Err(self.stray_word(token));
        }
        // `--option=value` is one word for getopt too.
        let (name, attached) = match token.text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (token.text.as_str(), None),
        };
        let (owner, spec) = self.look_up(name, token.span)?;
        let attached = match (attached, spec.arguments) {
            (Some(_), 0) => {
                let problem = Problem::new(token.span, format!("`{name}` takes no argument"), "one too many");
                return Err(problem.help("leave out what follows `=`"));
            }
            (attached, _) => attached.map(|text| Token { text: text.to_owned(), span: token.span }),
        };
        let mut arguments: Vec<Token> = attached.into_iter().collect();
        while arguments.len() < usize::from(spec.arguments) {
            let last = arguments.last().map_or(token.span, |argument| argument.span);
            arguments.push(self.take_argument(name, last)?.clone());
        }
        let invert = self.invert.take();
        if let (Some(bang), false) = (invert, spec.can_invert) {
            return Err(Problem::new(bang, format!("`{name}` cannot be inverted"), "leave out this `!`"));
        }
        self.once(owner, spec, name, token.span)?;
        let given = Given {
            name,
            span: token.span,
            arguments: &arguments,
            invert: invert.is_some(),
            family: self.scope.family,
            proto: self.rule.proto,
            owner: self.span_of(owner).unwrap_or(token.span),
        };
        match owner {
            Owner::Base => self.read_base(spec.id, &given),
            Owner::Target => self.read_target_option(spec.id, &given),
            Owner::Match(index) => self.loaded[index].value.read(spec.id, &given),
        }
    }

    fn span_of(&self, owner: Owner) -> Option<Span> {
        match owner {
            Owner::Base => None,
            Owner::Target => self.aim.as_ref().map(|aim| aim.span),
            Owner::Match(index) => self.loaded.get(index).map(|loaded| loaded.span),
        }
    }

    fn take_argument(&mut self, name: &str, span: Span) -> Result<&'a Token, Problem> {
        let token = self.tokens.get(self.next);
        self.next += 1;
        token.ok_or_else(|| Problem::new(span, format!("`{name}` needs an argument"), "the line ends here"))
    }

    fn stray_word(&self, token: &Token) -> Problem {
        let after_bang = self.next >= 2 && self.tokens[self.next - 2].text == "!";
        let problem = Problem::new(token.span, format!("`{}` is not an option", token.text), "expected an option here");
        match after_bang {
            true => problem.help("`!` stands before the option: `! -s ADDRESS`, not `-s ! ADDRESS`"),
            false => problem.help("an argument with blanks needs double quotes"),
        }
    }

    /// Refuses an option given twice, or with another that excludes it.
    fn once(&mut self, owner: Owner, spec: &'static OptionSpec, name: &str, span: Span) -> Result<(), Problem> {
        let (specs, seen) = match owner {
            Owner::Base => (BASE, &mut self.base_seen),
            Owner::Match(index) => (self.loaded[index].kind.options, &mut self.loaded[index].seen),
            Owner::Target => match &mut self.aim {
                Some(Aim { kind: Some(kind), seen, .. }) => (kind.options, seen),
                _ => unreachable!("an option of a target that has none"),
            },
        };
        let group = |id: u8| specs.iter().find(|spec| spec.id == id).map_or(0, |spec| spec.group);
        let clashes = |&&before: &&u8| before == spec.id || (spec.group != 0 && group(before) == spec.group);
        let may_repeat = matches!(owner, Owner::Base) && spec.id == MATCH;
        if let (Some(&before), false) = (seen.iter().find(clashes), may_repeat) {
            let what = match before == spec.id {
                true => format!("`{name}` is given twice"),
                false => format!("`{name}` excludes an option given before"),
            };
            return Err(Problem::new(span, what, "one too many"));
        }
        seen.push(spec.id);
        Ok(())
    }

    /// Finds the option, loading the protocol's own match where that helps.
    fn look_up(&mut self, name: &str, span: Span) -> Result<(Owner, &'static OptionSpec), Problem> {
        if let Some(found) = self.find(name, span)? {
            return Ok(found);
        }
        if let Some(implied) = self.implied_match()
            && all_names(implied.options).any(|full| full.starts_with(name) && name.len() > 2)
        {
            self.load_match(implied, span)?;
            if let Some(found) = self.find(name, span)? {
                return Ok(found);
            }
        }
        Err(self.unknown_option(name, span))
    }

    /// The match that `-p` implies, unless it is loaded already.
    fn implied_match(&self) -> Option<&'static Kind<Match>> {
        let number = self.rule.proto?.number;
        let name = match number {
            proto::ICMPV6 => "icmp6".to_owned(),
            MOBILITY => "mh".to_owned(),
            number => names::protocol_name(number),
        };
        let kind = known_kind(Match::KINDS, &name, self.scope.family)?;
        (!self.loaded.iter().any(|loaded| loaded.kind.name == name)).then_some(kind)
    }

    /// The options in force: whose, and which.
    fn in_force(&self) -> Vec<(Owner, &'static [OptionSpec])> {
        let mut tables = vec![(Owner::Base, BASE)];
        if let Some(Aim { kind: Some(kind), .. }) = &self.aim {
            tables.push((Owner::Target, kind.options));
        }
        let newest_first = self.loaded.iter().enumerate().rev();
        tables.extend(newest_first.map(|(index, loaded)| (Owner::Match(index), loaded.kind.options)));
        tables
    }

    /// An exact name first; else, as getopt does, a beginning that only one option has.
    fn find(&self, name: &str, span: Span) -> Result<Option<(Owner, &'static OptionSpec)>, Problem> {
        let tables = self.in_force();
        for &(owner, specs) in &tables {
            if let Some(spec) = specs.iter().find(|spec| spec.names.contains(&name)) {
                return Ok(Some((owner, spec)));
            }
        }
        if !name.starts_with("--") || name.len() < 3 {
            return Ok(None);
        }
        let mut found: Option<(&str, Owner, &'static OptionSpec)> = None;
        for &(owner, specs) in &tables {
            for spec in specs {
                for full in spec.names.iter().filter(|full| full.starts_with(name)) {
                    match found {
                        Some((_, _, before)) if core::ptr::eq(before, spec) => {}
                        Some((other, _, before)) if before.names != spec.names => {
                            let message = format!("`{name}` could be `{other}` or `{full}`");
                            return Err(Problem::new(span, message, "write it in full"));
                        }
                        Some(_) => {}
                        None => found = Some((full, owner, spec)),
                    }
                }
            }
        }
        Ok(found.map(|(_, owner, spec)| (owner, spec)))
    }

    fn unknown_option(&self, name: &str, span: Span) -> Problem {
        let problem = Problem::new(span, format!("unknown option `{name}`"), "not known here");
        if let Some(help) = missing_owner(name, self.scope.family) {
            return problem.help(help);
        }
        let known = self.in_force().into_iter().flat_map(|(_, specs)| all_names(specs));
        let implied = self.implied_match().map(|kind| kind.options).unwrap_or_default();
        let near = nearest(name, known.chain(all_names(implied)).filter(|known| known.len() > 2));
        problem.maybe_help(near.map(|near| format!("did you mean `{near}`?")))
    }

    fn read_base(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let family = self.scope.family;
        match id {
            SOURCE => self.sources = value::addresses(given.argument(), family, given.invert)?,
            DESTINATION => self.destinations = value::addresses(given.argument(), family, given.invert)?,
            IN_INTERFACE => {
                self.check_direction(&[Hook::Output, Hook::Postrouting], "-i", given.argument().span)?;
                self.rule.in_interface = self.interface(given.argument(), given.invert)?;
            }
            OUT_INTERFACE => {
                self.check_direction(&[Hook::Prerouting, Hook::Input], "-o", given.argument().span)?;
                self.rule.out_interface = self.interface(given.argument(), given.invert)?;
            }
            PROTOCOL => self.read_protocol(given.argument(), given.invert)?,
            MATCH => {
                let kind = self.known_match(given.argument())?;
                self.load_match(kind, given.argument().span)?;
            }
            JUMP => self.read_jump(given.argument())?,
            GOTO => self.read_goto(given.argument())?,
            _ if family == Family::V6 => {
                return Err(Problem::new(given.span, "`-f` does not exist for IPv6", "not in an ip6tables file"));
            }
            _ => self.rule.fragment = Some(given.invert),
        }
        Ok(())
    }

    fn check_direction(&self, without: &[Hook], option: &str, span: Span) -> Result<(), Problem> {
        match self.scope.hook.filter(|hook| without.contains(hook)) {
            None => Ok(()),
            Some(hook) => {
                let message = format!("`{option}` cannot be used in {}", hook.chain_name());
                Err(Problem::new(span, message, "no such interface there"))
            }
        }
    }

    fn interface(&mut self, argument: &Token, invert: bool) -> Result<Option<InterfaceMatch>, Problem> {
        let name = &argument.text;
        if name.is_empty() {
            return Err(Problem::new(argument.span, "empty interface name", "expected a name"));
        }
        if name.len() > 15 {
            let message = format!("interface name `{name}` is longer than 15 bytes");
            return Err(Problem::new(argument.span, message, "no interface can be called so"));
        }
        if name.contains(['/', ' ']) {
            let message =
                format!("no interface can be called `{name}`: the kernel takes neither `/` nor blanks in a name");
            self.report.warn(Problem::new(argument.span, message, "never matches"));
        }
        // `+` alone is every interface; inverted it is none.
        Ok((name != "+" || invert).then(|| InterfaceMatch { name: name.clone(), invert }))
    }

    fn read_protocol(&mut self, argument: &Token, invert: bool) -> Result<(), Problem> {
        let number = match value::unsigned(&argument.text, 255) {
            Some(number) => number as u8,
            None => names::protocol_number(&argument.text).ok_or_else(|| {
                let near = nearest(&argument.text, names::protocol_names());
                Problem::new(argument.span, format!("unknown protocol `{}`", argument.text), "not a protocol")
                    .maybe_help(near.map(|near| format!("did you mean `{near}`? A number up to 255 does as well")))
            })?,
        };
        if number == 0 && invert {
            return Err(Problem::new(argument.span, "`! -p all` matches no packet", "never true"));
        }
        if number != 0 {
            self.rule.proto = Some(ProtoMatch { number, invert });
        }
        let extension_header =
            matches!(number, proto::ROUTING | proto::FRAGMENT | proto::AH | proto::DEST_OPTIONS) && !invert;
        if self.scope.family == Family::V6 && extension_header {
            let message = format!("`-p {}` never matches: `-p` looks at the last header only", argument.text);
            self.report.warn(Problem::new(argument.span, message, "an extension header"));
        }
        Ok(())
    }

    fn known_match(&self, argument: &Token) -> Result<&'static Kind<Match>, Problem> {
        let name = match argument.text.as_str() {
            "icmpv6" => "icmp6",
            name => name,
        };
        let (family, span) = (self.scope.family, argument.span);
        if let Some(kind) = known_kind(Match::KINDS, name, family) {
            return match kind.tables.contains(&self.scope.table.name) {
                true => Ok(kind),
                false => Err(misplaced("match", name, kind.tables, self.scope.table.name, span)),
            };
        }
        if Match::KINDS.iter().any(|kind| kind.name == name) {
            let problem = Problem::new(span, format!("no match `{name}` for this IP version"), "wrong family");
            let file = format!("give the file as --rules{}", value::other_suffix(family));
            return Err(problem.help(match (name, family) {
                ("icmp6", _) => format!("use `-m icmp`, or {file}"),
                ("icmp", _) => format!("use `-m icmp6`, or {file}"),
                _ => file,
            }));
        }
        if let Some(refused) = matches::refused(name) {
            let message = format!("match `{name}` cannot be honoured: {}", refused.reason);
            return Err(Problem::new(span, message, "not possible here").help(refused.help).refusal());
        }
        let covered = names_of(Match::KINDS, family);
        let near = nearest(name, Match::KINDS.iter().map(|kind| kind.name));
        Err(Problem::new(span, format!("unknown match `{name}`"), "no such match")
            .help(near.map_or(format!("covered are: {covered}"), |near| format!("did you mean `{near}`?"))))
    }

    fn load_match(&mut self, kind: &'static Kind<Match>, span: Span) -> Result<(), Problem> {
        if self.loaded.len() == MATCHES_MAX {
            return Err(Problem::new(span, format!("more than {MATCHES_MAX} matches in one rule"), "one too many"));
        }
        self.loaded.push(Loaded { kind, span, value: (kind.new)(self.scope.family), seen: Vec::new() });
        Ok(())
    }

    fn read_jump(&mut self, argument: &Token) -> Result<(), Problem> {
        let (name, span) = (argument.text.as_str(), argument.span);
        let plain = |value| Aim { kind: None, span, value, seen: Vec::new() };
        self.aim = Some(match name {
            "ACCEPT" => plain(Target::Accept),
            "DROP" => plain(Target::Drop),
            "RETURN" => plain(Target::Return),
            _ => match known_kind(Target::KINDS, name, self.scope.family) {
                Some(kind) if !kind.tables.contains(&self.scope.table.name) => {
                    return Err(misplaced("target", name, kind.tables, self.scope.table.name, span));
                }
                Some(kind) => Aim { kind: Some(kind), span, value: (kind.new)(self.scope.family), seen: Vec::new() },
                None => plain(Target::Jump(self.user_chain(argument, true)?)),
            },
        });
        Ok(())
    }

    fn read_goto(&mut self, argument: &Token) -> Result<(), Problem> {
        let value = Target::Goto(self.user_chain(argument, false)?);
        self.aim = Some(Aim { kind: None, span: argument.span, value, seen: Vec::new() });
        Ok(())
    }

    fn user_chain(&self, argument: &Token, targets_too: bool) -> Result<usize, Problem> {
        let name = argument.text.as_str();
        let span = argument.span;
        if let Some(index) = self.scope.table.find(name) {
            if index < self.scope.table.builtin {
                return Err(Problem::new(
                    span,
                    format!("cannot jump to the built-in chain {name}"),
                    "not a user chain",
                ));
            }
            return Ok(index);
        }
        if let Some(reason) = refused::reason(name).filter(|_| targets_too) {
            let problem = Problem::new(span, format!("target `{name}` is refused"), "not done here");
            return Err(problem.help(reason).refusal());
        }
        let chains = self.scope.table.names().iter().skip(self.scope.table.builtin).map(String::as_str);
        let targets = ["ACCEPT", "DROP", "RETURN"].into_iter().chain(Target::KINDS.iter().map(|kind| kind.name));
        let near = match targets_too {
            true => nearest(name, chains.chain(targets)),
            false => nearest(name, chains),
        };
        let what = if targets_too { "chain or target" } else { "chain" };
        Err(Problem::new(span, format!("no {what} `{name}`"), "not declared before this line").help(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("declare the chain above with `:{name} - [0:0]`"),
        }))
    }

    fn read_target_option(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let Some(aim) = &mut self.aim else { unreachable!("an option of no target") };
        aim.value.read(id, given)?;
        if let Some(problem) = aim.value.warning(id, given) {
            self.report.warn(problem);
        }
        Ok(())
    }

    /// The rules, once every option is read.
    fn finish(self) -> Result<Vec<Rule>, Problem> {
        if let Some(bang) = self.invert {
            return Err(Problem::new(bang, "`!` with nothing after it", "expected an option after this"));
        }
        let (family, table) = (self.scope.family, self.scope.table.name);
        let mut rule = self.rule;
        rule.match_spans = self.loaded.iter().map(|loaded| loaded.span).collect();
        rule.matches = self.loaded.iter().map(|loaded| loaded.value.clone()).collect();
        for loaded in &self.loaded {
            let whole = Whole { seen: &loaded.seen, span: loaded.span, family, table, rule: &rule };
            loaded.value.check(&whole)?;
            if let Some(why) = loaded.value.not_honoured() {
                self.report.not_honoured(not_done(loaded.span, "-m", loaded.kind.name, &why));
            }
        }
        if let Some(aim) = self.aim {
            aim.value.check(&Whole { seen: &aim.seen, span: aim.span, family, table, rule: &rule })?;
            if let Some(why) = aim.value.not_honoured() {
                self.report.not_honoured(not_done(aim.span, "-j", aim.value.name(), &why));
            }
            rule.target_span = aim.span;
            rule.target = aim.value;
        }
        Ok(spread(rule, &self.sources, &self.destinations))
    }
}

/// A line that is right, and cannot be done here.
fn not_done(span: Span, dash: &str, name: &str, why: &str) -> Problem {
    Problem::new(span, format!("`{dash} {name}`: {why}"), "understood, but it cannot be done here")
        .help("take the line out of this file, and let another router, or the kernel, do what it asks")
}

/// Every spelling of every option.
fn all_names(specs: &'static [OptionSpec]) -> impl Iterator<Item = &'static str> {
    specs.iter().flat_map(|spec| spec.names.iter().copied())
}

fn known_kind<V>(kinds: &'static [Kind<V>], name: &str, family: Family) -> Option<&'static Kind<V>> {
    kinds.iter().find(|kind| kind.name == name && kind.families.contains(&family))
}

fn names_of<V>(kinds: &[Kind<V>], family: Family) -> String {
    let names: Vec<&str> = kinds.iter().filter(|kind| kind.families.contains(&family)).map(|kind| kind.name).collect();
    names.join(", ")
}

fn misplaced(what: &str, name: &str, tables: &[TableName], here: TableName, span: Span) -> Problem {
    let names: Vec<&str> = tables.iter().map(|table| table.name()).collect();
    let message = format!("{what} `{name}` belongs into table {}", names.join(" or "));
    Problem::new(span, message, format!("this is table {}", here.name()))
}

/// One rule for every pair of source and destination, sources outermost.
fn spread(rule: Rule, sources: &[AddrMatch], destinations: &[AddrMatch]) -> Vec<Rule> {
    // A network that holds every address says nothing, unless it is inverted (then it holds none).
    let says = |matched: &AddrMatch| (matched.mask.bits() != 0 || matched.invert).then_some(*matched);
    let list = |matches: &[AddrMatch]| match matches {
        [] => vec![None],
        matches => matches.iter().map(says).collect(),
    };
    let destinations = list(destinations);
    let pairs = list(sources).into_iter().flat_map(|src| destinations.iter().map(move |&dst| (src, dst)));
    pairs.map(|(src, dst)| Rule { src, dst, ..rule.clone() }).collect()
}

/// What would have to stand before this option for it to be known.
fn missing_owner(name: &str, family: Family) -> Option<String> {
    let has = |specs: &'static [OptionSpec]| all_names(specs).any(|full| full == name);
    let known = |match_name| known_kind(Match::KINDS, match_name, family).is_some_and(|kind| has(kind.options));
    Some(match name {
        _ if known("udp") => "it needs `-p tcp` or `-p udp` before it".to_owned(),
        _ if known("tcp") => "it needs `-p tcp` before it".to_owned(),
        _ if known("icmp") => "it needs `-p icmp` before it".to_owned(),
        _ if known("icmp6") => "it needs `-p ipv6-icmp` before it".to_owned(),
        "-t" | "--table" => "the table is named by a `*table` line".to_owned(),
        "-c" | "--set-counters" => "counters stand before the rule: `[packets:bytes] -A CHAIN`".to_owned(),
        "-4" | "--ipv4" | "-6" | "--ipv6" => "put the rules of each IP version into a file of its own".to_owned(),
        _ => {
            let owns = |families: &[Family], options: &'static [OptionSpec]| families.contains(&family) && has(options);
            if let Some(owner) = Match::KINDS.iter().find(|kind| owns(kind.families, kind.options)) {
                return Some(format!("it needs `-m {}` before it", owner.name));
            }
            let owner = Target::KINDS.iter().find(|kind| owns(kind.families, kind.options))?;
            format!("it belongs behind `-j {}`", owner.name)
        }
    })
}
