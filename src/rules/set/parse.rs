//! The lines of a text of sets, as `ipset save` prints and `ipset restore` reads it: `create`, `add`, `flush`, `destroy`.
//!
//! Every line is read, whatever was wrong with the lines before, so that all bad lines are reported at once. What the kernel
//! would refuse is refused, and what is not covered, too.

use super::element;
use super::entry::{Definition, Entry, Given, Member, Sets};
use super::header::{BITMAP_MAX, HASHSIZE_MIN, Header, Mask, SIZE_MIN, TIMEOUT_MAX};
use super::key::Key;
use super::kind::{Kind, Method};
use crate::rules::diagnostic::{Diagnostics, Problem, Report, Span, nearest};
use crate::rules::token::Token;
use crate::rules::value::unsigned;
use crate::wire::{Addr, Family};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest name of a set in bytes (`IPSET_MAXNAMELEN` less its end).
pub(in crate::rules) const NAME_MAX: usize = 31;
/// Longest comment in bytes (`IPSET_MAX_COMMENT_SIZE`).
const COMMENT_MAX: usize = 255;
/// The most elements that one set may be given: what a slip of the pen cannot fill all memory with.
const ELEMENTS_MAX: usize = 1 << 24;

impl Sets {
    /// Reads `text`, as `ipset save` prints it; `file` is the name to show in messages.
    ///
    /// # Errors
    /// Every line that is wrong or not covered.
    pub fn parse(file: &str, text: &str) -> Result<Sets, Diagnostics> {
        let mut report = Report::new(file, text);
        let mut parser = Parser { sets: Vec::new(), failed: Vec::new() };
        let mut at = 0;
        for line in text.split('\n') {
            if let Err(problem) = parser.line(line, at) {
                report.error(*problem);
            }
            at += line.len() + 1;
        }
        if report.has_errors() {
            return Err(report.finish());
        }
        Ok(Sets { list: parser.sets.into_iter().map(|open| open.definition).collect() })
    }
}

/// A set being read.
struct Open {
    definition: Definition,
    /// Elements seen, with their places: to tell one that is there already.
    seen: BTreeMap<Key, usize>,
}

struct Parser {
    sets: Vec<Open>,
    /// Names of sets whose `create` was wrong: their other lines are not looked at.
    failed: Vec<String>,
}

/// Boxed, since it is large and rare.
type Outcome<T> = Result<T, Box<Problem>>;

fn problem<T>(token: &Token, message: impl Into<String>, label: impl Into<String>) -> Outcome<T> {
    Err(Box::new(Problem::new(token.span, message, label)))
}

fn advice<T>(token: &Token, message: impl Into<String>, label: &str, help: impl Into<String>) -> Outcome<T> {
    Err(Box::new(Problem::new(token.span, message, label).help(help)))
}

/// Cuts a line into words as ipset does: at blanks, with a word in double quotes taken whole. A backslash is a letter.
fn words(line: &str, base: usize) -> Outcome<Vec<Token>> {
    let mut found = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Ok(found);
        }
        let start = base + (line.len() - rest.len());
        if let Some(c) = rest.chars().next().filter(|c| c.is_control()) {
            let span = Span::new(start, start + c.len_utf8());
            let bad = Problem::new(span, "a control character in a line of sets", "here");
            return Err(Box::new(bad.help("are these DOS line endings? convert the file with `dos2unix`")));
        }
        let (text, length) = match rest.strip_prefix('"') {
            Some(quoted) => match quoted.find('"') {
                Some(end) => (&quoted[..end], end + 2),
                None => {
                    let span = Span::new(start, base + line.len());
                    let bad = Problem::new(span, "this quote is never closed", "opened here");
                    return Err(Box::new(bad.help("close it with `\"` on the same line")));
                }
            },
            None => {
                let end = rest.find(|c: char| c == ' ' || c.is_control()).unwrap_or(rest.len());
                (&rest[..end], end)
            }
        };
        found.push(Token { text: text.to_owned(), span: Span::new(start, start + length) });
        rest = &rest[length..];
    }
}

/// The words after the command, taken one by one.
struct Rest<'a> {
    words: core::slice::Iter<'a, Token>,
    /// The word before the next one: where to point when there is none.
    last: &'a Token,
}

impl<'a> Rest<'a> {
    fn next(&mut self) -> Option<&'a Token> {
        let token = self.words.next()?;
        self.last = token;
        Some(token)
    }

    fn argument(&mut self, what: &str) -> Outcome<&'a Token> {
        let last = self.last;
        match self.next() {
            Some(token) => Ok(token),
            None => problem(last, format!("`{}` needs {what}", last.text), "the line ends here"),
        }
    }

    fn number(&mut self, max: u32) -> Outcome<u32> {
        let token = self.argument("a number")?;
        match unsigned(&token.text, max) {
            Some(number) => Ok(number),
            None => problem(token, format!("`{}` is not a number up to {max}", token.text), "expected a number"),
        }
    }

    /// A counter: 64 bits, of which the highest number stands for none.
    fn counter(&mut self) -> Outcome<u64> {
        let token = self.argument("a number")?;
        let plain = token.text.bytes().all(|byte| byte.is_ascii_digit());
        let number = token.text.parse::<u64>().ok().filter(|&number| plain && number != u64::MAX);
        match number {
            Some(number) => Ok(number),
            None => problem(token, format!("`{}` is not a counter", token.text), "expected a number"),
        }
    }
}

impl Parser {
    fn line(&mut self, line: &str, at: usize) -> Outcome<()> {
        if line.starts_with('#') {
            return Ok(());
        }
        let mut tokens = words(line, at)?;
        let exist = |token: &Token| matches!(token.text.as_str(), "-exist" | "-!" | "--exist");
        let may_exist = tokens.iter().any(exist);
        tokens.retain(|token| !exist(token));
        let Some((command, rest)) = tokens.split_first() else { return Ok(()) };
        let mut rest = Rest { words: rest.iter(), last: command };
        match command.text.as_str() {
            "create" | "-N" | "--create" | "n" => self.create(&mut rest, may_exist),
            "add" | "-A" | "--add" => self.add(&mut rest, may_exist),
            "flush" | "-F" | "--flush" => self.flush(&mut rest),
            "destroy" | "-X" | "--destroy" | "x" => self.destroy(&mut rest),
            "COMMIT" => end(&mut rest),
            other => {
                let near = nearest(other, ["create", "add", "flush", "destroy"]);
                let bad = Problem::new(command.span, format!("`{other}` is no line of a text of sets"), "not covered");
                let help = near.map_or_else(
                    || "lines are `create`, `add`, `flush` and `destroy`, as `ipset save` prints them".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                );
                Err(Box::new(bad.help(help)))
            }
        }
    }

    /// The set's number; `None` when its `create` was wrong.
    fn find(&self, token: &Token) -> Outcome<Option<usize>> {
        if let Some(index) = self.sets.iter().position(|open| open.definition.name == token.text) {
            return Ok(Some(index));
        }
        if self.failed.contains(&token.text) {
            return Ok(None);
        }
        let near = nearest(&token.text, self.sets.iter().map(|open| open.definition.name.as_str()));
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("make it above with `create {} TYPE`", token.text),
        };
        advice(token, format!("there is no set `{}`", token.text), "not created before this line", help)
    }

    fn create(&mut self, rest: &mut Rest<'_>, may_exist: bool) -> Outcome<()> {
        let name = rest.argument("the set's name")?;
        if let Err(bad) = check_name(name) {
            self.failed.push(name.text.clone());
            return Err(bad);
        }
        let known = self.sets.iter().position(|open| open.definition.name == name.text);
        let header = match header(rest) {
            Ok(header) => header,
            Err(bad) => {
                self.failed.push(name.text.clone());
                return Err(bad);
            }
        };
        if let Some(index) = known {
            return match may_exist && self.sets[index].definition.header == header {
                true => Ok(()),
                false => problem(name, format!("set {} is created twice", name.text), "created before"),
            };
        }
        let definition =
            Definition { name: name.text.clone(), header, entries: Vec::new(), members: Vec::new(), span: name.span };
        self.sets.push(Open { definition, seen: BTreeMap::new() });
        Ok(())
    }

    fn add(&mut self, rest: &mut Rest<'_>, may_exist: bool) -> Outcome<()> {
        let name = rest.argument("a set's name")?;
        let found = self.find(name)?;
        let word = rest.argument("an element")?;
        let Some(index) = found else { return Ok(()) };
        let header = &self.sets[index].definition.header;
        let (flags, given) = options(rest, header)?;
        if header.kind == Kind::ListSet {
            return self.add_member(index, word, given, may_exist);
        }
        let open = &mut self.sets[index];
        let Definition { header, entries, .. } = &mut open.definition;
        let seen = &mut open.seen;
        let (span, capacity) = (word.span, (header.capacity as usize).min(ELEMENTS_MAX));
        let header: &Header = header;
        let result = element::read(header, word, &mut |element| {
            check_bitmap(header, element.key, span)?;
            let wildcard = flags.wildcard || element.wildcard;
            let entry = Entry {
                key: element.key,
                nomatch: flags.nomatch,
                wildcard,
                unfilled: element.unfilled,
                given: given.clone(),
            };
            let identity = identity(header, &entry);
            if let Some(&place) = seen.get(&identity) {
                entries[place] = entry;
                return match may_exist {
                    true => Ok(()),
                    false => Err(Problem::new(span, "this element is in the set already", "added before")),
                };
            }
            if entries.len() >= capacity {
                let message = format!("the set is full: it takes {capacity} elements");
                return Err(Problem::new(span, message, "one too many").help("raise `maxelem` in its `create` line"));
            }
            seen.insert(identity, entries.len());
            entries.push(entry);
            Ok(())
        });
        result.map_err(Box::new)
    }

    fn add_member(&mut self, list: usize, word: &Token, given: Option<Box<Given>>, may_exist: bool) -> Outcome<()> {
        let Some(member) = self.find(word)? else { return Ok(()) };
        if self.sets[member].definition.header.kind == Kind::ListSet {
            return problem(word, "a list:set cannot be in a list:set", "a list");
        }
        let definition = &mut self.sets[list].definition;
        if let Some(old) = definition.members.iter_mut().find(|old| old.name == word.text) {
            old.given = given;
            return match may_exist {
                true => Ok(()),
                false => problem(word, "this set is in the list already", "added before"),
            };
        }
        if definition.members.len() >= definition.header.capacity as usize {
            let message = format!("the list is full: it takes {} sets", definition.header.capacity);
            return advice(word, message, "one too many", "raise `size` in its `create` line");
        }
        definition.members.push(Member { name: word.text.clone(), given });
        Ok(())
    }

    fn flush(&mut self, rest: &mut Rest<'_>) -> Outcome<()> {
        let only = match rest.next() {
            Some(name) => match self.find(name)? {
                Some(index) => Some(index),
                None => return Ok(()),
            },
            None => None,
        };
        end(rest)?;
        let chosen = |index: &usize| only.is_none_or(|only| only == *index);
        for (_, open) in self.sets.iter_mut().enumerate().filter(|(index, _)| chosen(index)) {
            open.definition.entries.clear();
            open.definition.members.clear();
            open.seen.clear();
        }
        Ok(())
    }

    fn destroy(&mut self, rest: &mut Rest<'_>) -> Outcome<()> {
        let Some(name) = rest.next() else {
            self.sets.clear();
            self.failed.clear();
            return Ok(());
        };
        let Some(index) = self.find(name)? else { return end(rest) };
        let holds = |open: &&Open| open.definition.members.iter().any(|member| member.name == name.text);
        if let Some(list) = self.sets.iter().find(holds) {
            let message = format!("set {} is in the list {}", name.text, list.definition.name);
            return advice(name, message, "in use", "destroy the list first, or flush it");
        }
        self.sets.remove(index);
        end(rest)
    }
}

/// What tells an entry from another: an interface's name and one that stands for many are two.
fn identity(header: &Header, entry: &Entry) -> Key {
    let mut key = entry.key;
    key.mark ^= u32::from(entry.wildcard && header.kind == Kind::HashNetIface);
    if header.kind == Kind::BitmapIpMac {
        // One bit for each address, whatever hardware address is behind it.
        key.second = Addr::ZERO;
    }
    if header.kind.method() == Method::Bitmap && header.kind != Kind::BitmapPort {
        let bit = header.bit(key.first.v4_bits()).unwrap_or(0);
        key.first = Addr::from_v4(header.at_bit(bit));
    }
    key
}

fn check_bitmap(header: &Header, key: Key, span: Span) -> Result<(), Problem> {
    if header.kind.method() != Method::Bitmap {
        return Ok(());
    }
    let value = match header.kind {
        Kind::BitmapPort => u32::from(key.port),
        _ => key.first.v4_bits(),
    };
    match header.bit(value) {
        Some(_) => Ok(()),
        None => Err(Problem::new(span, "this element is out of the set's range", "not in the range")
            .help("widen `range` in its `create` line")),
    }
}

fn check_name(token: &Token) -> Outcome<()> {
    match token.text.len() {
        0 => problem(token, "a set needs a name", "empty"),
        1..=NAME_MAX => Ok(()),
        _ => problem(token, format!("a set's name has at most {NAME_MAX} bytes"), "too long"),
    }
}

fn end(rest: &mut Rest<'_>) -> Outcome<()> {
    match rest.next() {
        Some(extra) => problem(extra, format!("`{}` is too much here", extra.text), "expected the end of the line"),
        None => Ok(()),
    }
}

/// Type and options of `create`.
fn header(rest: &mut Rest<'_>) -> Outcome<Header> {
    let word = rest.argument("a type")?;
    let Some(kind) = Kind::by_name(&word.text) else {
        let near = nearest(&word.text, Kind::names());
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("types are {}", Kind::names().collect::<Vec<_>>().join(", ")),
        };
        return advice(word, format!("unknown type of set `{}`", word.text), "no such type", help);
    };
    let mut header = Header::new(kind);
    let mut range = None;
    let mut mask = None;
    while let Some(option) = rest.next() {
        let name = option.text.strip_prefix("--").unwrap_or(&option.text);
        let hash = kind.method() == Method::Hash;
        match name {
            "family" if kind.has_family() => header.family = Some(family(rest)?),
            "hashsize" if hash => {
                header.hashsize = rest.number(1 << 31)?.max(HASHSIZE_MIN).next_power_of_two();
            }
            "maxelem" if hash => header.capacity = rest.number(u32::MAX)?,
            "bucketsize" if hash => header.bucketsize = Some(bucketsize(rest.number(255)?)),
            "initval" if hash => header.initval = Some(rest.number(u32::MAX)?),
            "netmask" | "bitmask" if kind.takes_mask() || kind == Kind::BitmapIp && name == "netmask" => {
                if mask.replace((option, rest.argument("a mask")?)).is_some() {
                    return problem(option, "one netmask or bitmask is enough", "a second one");
                }
            }
            "markmask" if kind == Kind::HashIpMark => header.markmask = rest.number(u32::MAX)?,
            "forceadd" if hash => header.forceadd = true,
            "range" if kind.method() == Method::Bitmap => range = Some(rest.argument("a range")?),
            "size" if kind == Kind::ListSet => header.capacity = rest.number(u32::MAX)?.max(SIZE_MIN),
            "timeout" => header.timeout = Some(rest.number(TIMEOUT_MAX)?),
            "counters" => header.counters = true,
            "comment" => header.comment = true,
            "skbinfo" => header.skbinfo = true,
            _ => return unknown_option(option, name, CREATE_OPTIONS, &format!("`create` of a {}", kind.name())),
        }
    }
    if let Some((option, word)) = mask {
        header.mask = read_mask(&header, option.text.ends_with("bitmask"), word)?;
    }
    if kind.method() == Method::Bitmap {
        let Some(range) = range else {
            return advice(
                word,
                "a bitmap needs a range",
                "no `range`",
                "as in `range 192.0.2.0/24` or `range 1-1024`",
            );
        };
        bitmap_range(&mut header, range)?;
    }
    Ok(header)
}

const CREATE_OPTIONS: &[&str] = &[
    "family",
    "hashsize",
    "maxelem",
    "bucketsize",
    "initval",
    "netmask",
    "bitmask",
    "markmask",
    "forceadd",
    "range",
    "size",
    "timeout",
    "counters",
    "comment",
    "skbinfo",
];
const ADD_OPTIONS: &[&str] =
    &["timeout", "nomatch", "packets", "bytes", "comment", "skbmark", "skbprio", "skbqueue", "wildcard"];

fn unknown_option<T>(token: &Token, name: &str, known: &[&str], at: &str) -> Outcome<T> {
    let message = format!("{at} has no option `{name}`");
    match nearest(name, known.iter().copied()).filter(|near| *near != name) {
        Some(near) => advice(token, message, "not an option here", format!("did you mean `{near}`?")),
        None => problem(token, message, "not an option here"),
    }
}

fn family(rest: &mut Rest<'_>) -> Outcome<Family> {
    let token = rest.argument("a family")?;
    match token.text.as_str() {
        "inet" | "ipv4" | "-4" => Ok(Family::V4),
        "inet6" | "ipv6" | "-6" => Ok(Family::V6),
        other => problem(token, format!("unknown family `{other}`"), "expected inet or inet6"),
    }
}

/// As the kernel makes it even and keeps it in bounds (`AHASH_INIT_SIZE`, `AHASH_MAX_TUNED`).
fn bucketsize(given: u32) -> u32 {
    match given {
        0..2 => 2,
        given if given >= 12 => 12,
        given => given.next_multiple_of(2),
    }
}

fn read_mask(header: &Header, bitmask: bool, token: &Token) -> Outcome<Option<Mask>> {
    let family = header.address_family();
    let wrong = |label: &str| problem(token, format!("`{}` is not a mask", token.text), label);
    if !bitmask {
        let bits = u32::from(family.bits());
        return match unsigned(&token.text, bits) {
            Some(length) if length == bits && header.kind != Kind::BitmapIp => Ok(None),
            Some(length) if length > 0 => Ok(Some(Mask::Net(length as u8))),
            _ => wrong(&format!("expected 1 to {bits}")),
        };
    }
    // ipset 7.17 prints a length behind it, of something else, and does not read it.
    let text = token.text.split('/').next().unwrap_or_default();
    let parsed = match family {
        Family::V4 => text.parse::<Ipv4Addr>().ok().map(Addr::from),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(Addr::from),
    };
    match parsed {
        Some(mask) if mask == Addr::ZERO || mask == Addr::from_v4(0) => wrong("nothing would be left"),
        Some(mask) if mask == Addr::from_v4(u32::MAX) || mask.bits() == u128::MAX => Ok(None),
        Some(mask) => Ok(Some(Mask::Bits(mask))),
        None => wrong("expected a mask written as an address"),
    }
}

/// `range` of a bitmap: `first-last`, or for addresses `address/length`.
fn bitmap_range(header: &mut Header, token: &Token) -> Outcome<()> {
    let ports = header.kind == Kind::BitmapPort;
    let read = |text: &str| match ports {
        true => unsigned(text, 65_535),
        false => text.parse::<Ipv4Addr>().ok().map(Ipv4Addr::to_bits),
    };
    let found = match (token.text.split_once('-'), token.text.split_once('/')) {
        (Some((first, last)), _) => read(first).zip(read(last)),
        (None, Some((address, length))) if !ports => {
            let length = unsigned(length, 32).filter(|&length| length > 0);
            read(address).zip(length).map(|(address, length)| {
                let hosts = u32::MAX.checked_shr(length).unwrap_or(0);
                (address & !hosts, address | hosts)
            })
        }
        _ => None,
    };
    let Some((first, last)) = found else {
        let expected = if ports { "expected `1-1024`" } else { "expected `first-last` or `address/length`" };
        return problem(token, format!("`{}` is not a range", token.text), expected);
    };
    header.range = (first.min(last), first.max(last));
    let hosts = header.hosts();
    let (first, last) = header.range;
    if first % hosts != 0 || last.wrapping_add(1) % hosts != 0 {
        return problem(token, "this range does not end with whole nets of the netmask", "out of step");
    }
    let bits = (u64::from(last) - u64::from(first) + 1) / u64::from(hosts);
    if bits > BITMAP_MAX {
        let message = format!("a bitmap has at most {BITMAP_MAX} elements, and this range has {bits}");
        return advice(token, message, "too wide", "use a type of hash");
    }
    header.capacity = bits as u32;
    Ok(())
}

/// What stands behind an element besides its extensions.
#[derive(Clone, Copy, Default)]
struct Flags {
    nomatch: bool,
    wildcard: bool,
}

/// Options of `add`.
fn options(rest: &mut Rest<'_>, header: &Header) -> Outcome<(Flags, Option<Box<Given>>)> {
    let mut flags = Flags::default();
    let mut given = Given::default();
    while let Some(option) = rest.next() {
        let name = option.text.strip_prefix("--").unwrap_or(&option.text);
        let needs = match name {
            "timeout" if header.timeout.is_none() => Some("timeout"),
            "packets" | "bytes" if !header.counters => Some("counters"),
            "comment" if !header.comment => Some("comment"),
            "skbmark" | "skbprio" | "skbqueue" if !header.skbinfo => Some("skbinfo"),
            _ => None,
        };
        if let Some(needs) = needs {
            let message = format!("`{name}` in a set without {needs}");
            return advice(option, message, "not kept here", format!("put `{needs}` into its `create` line"));
        }
        match name {
            "timeout" => given.timeout = Some(rest.number(TIMEOUT_MAX)?),
            "packets" => given.packets = rest.counter()?,
            "bytes" => given.bytes = rest.counter()?,
            "comment" => given.comment = comment(rest)?,
            "skbmark" => (given.skb.mark, given.skb.mask) = skbmark(rest)?,
            "skbprio" => given.skb.prio = skbprio(rest)?,
            "skbqueue" => given.skb.queue = rest.number(65_535)? as u16,
            "nomatch" if header.kind.has_nomatch() => flags.nomatch = true,
            "wildcard" if header.kind == Kind::HashNetIface => flags.wildcard = true,
            "before" | "after" if header.kind == Kind::ListSet => {
                let help = "write the `add` lines in the order that is wanted";
                return advice(option, format!("`{name}` is not covered"), "not covered", help);
            }
            _ => return unknown_option(option, name, ADD_OPTIONS, &format!("`add` to a {}", header.kind.name())),
        }
    }
    let plain = given == Given::default();
    Ok((flags, (!plain).then(|| Box::new(given))))
}

fn comment(rest: &mut Rest<'_>) -> Outcome<Option<Box<str>>> {
    let token = rest.argument("a text")?;
    match token.text.len() {
        0 => Ok(None),
        1..=COMMENT_MAX if !token.text.contains('"') => Ok(Some(token.text.as_str().into())),
        1..=COMMENT_MAX => problem(token, "a comment cannot have a quote in it", "a quote"),
        _ => problem(token, format!("a comment has at most {COMMENT_MAX} bytes"), "too long"),
    }
}

/// Hexadecimal with or without `0x`.
fn hex(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16).ok().filter(|_| plain)
}

/// `mark` or `mark/mask`, with `0x`.
fn skbmark(rest: &mut Rest<'_>) -> Outcome<(u32, u32)> {
    let token = rest.argument("a mark")?;
    let (mark, mask) = token.text.split_once('/').unwrap_or((&token.text, "0xffffffff"));
    let read = |text: &str| text.starts_with("0x").then(|| hex(text)).flatten();
    match read(mark).zip(read(mask)) {
        Some(pair) => Ok(pair),
        None => problem(token, format!("`{}` is not a mark", token.text), "expected `0x1` or `0x1/0xff`"),
    }
}

/// `major:minor`, both hexadecimal without `0x`.
fn skbprio(rest: &mut Rest<'_>) -> Outcome<u32> {
    let token = rest.argument("a class")?;
    let half = |text: &str| hex(text).filter(|&number| number <= 0xffff && !text.starts_with("0x"));
    match token.text.split_once(':').and_then(|(major, minor)| half(major).zip(half(minor))) {
        Some((major, minor)) => Ok(major << 16 | minor),
        None => problem(token, format!("`{}` is not a class", token.text), "expected `major:minor`"),
    }
}
