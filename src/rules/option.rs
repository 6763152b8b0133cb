//! The options of one rule: words to a typed [`Rule`], as iptables' own parser reads them (`do_parse` in xshared.c and the
//! extensions' parsers).
//!
//! A [`Reader`] lives for one line. It looks an option up among the base options, then the target's, then those of the
//! matches loaded so far, newest first; if none has it and `-p` names a protocol with a match of its own, that match is
//! loaded (so `-p tcp --dport 80` needs no `-m tcp`). The first problem of a line ends its reading.

use super::diagnostic::{Problem, Report, Span, nearest};
use super::names;
use super::rule::{AddrMatch, InterfaceMatch, LogTarget, Match, ProtoMatch, RejectWith, Rule, Target};
use super::rule::{ConntrackMatch, IcmpMatch, LimitMatch, MultiportMatch, MultiportSide, TcpMatch, UdpMatch};
use super::rule::{StateMatch, log_flags};
use super::token::Token;
use super::value;
use super::{limit, rule};
use crate::wire::{Family, proto};

/// Matches one rule may have (Linux has a limit in bytes, which is about this).
const MATCHES_MAX: usize = 128;

/// Every option that is covered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opt {
    Source,
    Destination,
    InInterface,
    OutInterface,
    Protocol,
    Match,
    Jump,
    Goto,
    Fragment,
    Sport,
    Dport,
    Syn,
    TcpFlags,
    TcpOption,
    IcmpType,
    State,
    CtState,
    CtStatus,
    Sports,
    Dports,
    Ports,
    Limit,
    LimitBurst,
    Comment,
    RejectWith,
    LogPrefix,
    LogLevel,
    LogFlag(u8),
}

/// An option as written, and which it is.
type Spec = (&'static str, Opt);

const BASE: &[Spec] = &[
    ("-s", Opt::Source),
    ("--source", Opt::Source),
    ("--src", Opt::Source),
    ("-d", Opt::Destination),
    ("--destination", Opt::Destination),
    ("--dst", Opt::Destination),
    ("-i", Opt::InInterface),
    ("--in-interface", Opt::InInterface),
    ("-o", Opt::OutInterface),
    ("--out-interface", Opt::OutInterface),
    ("-p", Opt::Protocol),
    ("--protocol", Opt::Protocol),
    ("-m", Opt::Match),
    ("--match", Opt::Match),
    ("-j", Opt::Jump),
    ("--jump", Opt::Jump),
    ("-g", Opt::Goto),
    ("--goto", Opt::Goto),
    ("-f", Opt::Fragment),
    ("--fragment", Opt::Fragment),
    ("--fragments", Opt::Fragment),
];

const TCP: &[Spec] = &[
    ("--source-port", Opt::Sport),
    ("--sport", Opt::Sport),
    ("--destination-port", Opt::Dport),
    ("--dport", Opt::Dport),
    ("--syn", Opt::Syn),
    ("--tcp-flags", Opt::TcpFlags),
    ("--tcp-option", Opt::TcpOption),
];

const UDP: &[Spec] = &[
    ("--source-port", Opt::Sport),
    ("--sport", Opt::Sport),
    ("--destination-port", Opt::Dport),
    ("--dport", Opt::Dport),
];

const CONNTRACK: &[Spec] = &[("--ctstate", Opt::CtState), ("--ctstatus", Opt::CtStatus)];

const MULTIPORT: &[Spec] = &[
    ("--source-ports", Opt::Sports),
    ("--sports", Opt::Sports),
    ("--destination-ports", Opt::Dports),
    ("--dports", Opt::Dports),
    ("--ports", Opt::Ports),
];

const LOG: &[Spec] = &[
    ("--log-prefix", Opt::LogPrefix),
    ("--log-level", Opt::LogLevel),
    ("--log-tcp-sequence", Opt::LogFlag(log_flags::TCP_SEQUENCE)),
    ("--log-tcp-options", Opt::LogFlag(log_flags::TCP_OPTIONS)),
    ("--log-ip-options", Opt::LogFlag(log_flags::IP_OPTIONS)),
    ("--log-uid", Opt::LogFlag(log_flags::UID)),
    ("--log-macdecode", Opt::LogFlag(log_flags::MACDECODE)),
];

/// The options of a match.
const fn match_options(name: &str) -> &'static [Spec] {
    match name.as_bytes() {
        b"tcp" => TCP,
        b"udp" => UDP,
        b"icmp" => &[("--icmp-type", Opt::IcmpType)],
        b"icmp6" => &[("--icmpv6-type", Opt::IcmpType)],
        b"state" => &[("--state", Opt::State)],
        b"conntrack" => CONNTRACK,
        b"multiport" => MULTIPORT,
        b"limit" => &[("--limit", Opt::Limit), ("--limit-burst", Opt::LimitBurst)],
        b"comment" => &[("--comment", Opt::Comment)],
        _ => &[],
    }
}

/// Options of `-m conntrack` that are not covered, for the message.
const CONNTRACK_NOT_COVERED: &[&str] = &[
    "--ctproto",
    "--ctorigsrc",
    "--ctorigdst",
    "--ctreplsrc",
    "--ctrepldst",
    "--ctorigsrcport",
    "--ctorigdstport",
    "--ctreplsrcport",
    "--ctrepldstport",
    "--ctexpire",
    "--ctdir",
];

/// A match being filled.
#[derive(Debug)]
struct Loaded {
    name: &'static str,
    span: Span,
    value: Match,
    seen: Vec<Opt>,
}

/// A target being filled.
#[derive(Debug)]
enum Draft {
    Plain(Target),
    Reject(RejectWith),
    Log(LogTarget),
}

/// What the line's table offers: chain names by index, in order of declaration.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    pub(super) family: Family,
    pub(super) chains: &'a [String],
    /// The chain the rule is appended to.
    pub(super) chain: usize,
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
    proto: Option<(ProtoMatch, Span)>,
    loaded: Vec<Loaded>,
    target: Option<(Draft, Span)>,
    target_seen: Vec<Opt>,
    base_seen: Vec<Opt>,
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
        proto: None,
        loaded: Vec::new(),
        target: None,
        target_seen: Vec::new(),
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
        let (owner, opt) = self.look_up(name, token.span)?;
        let arguments = match opt {
            Opt::Fragment | Opt::Syn | Opt::LogFlag(_) => 0,
            Opt::TcpFlags => 2,
            _ => 1,
        };
        if attached.is_some() && arguments == 0 {
            return Err(Problem::new(token.span, format!("`{name}` takes no argument"), "leave out what follows `=`"));
        }
        let argument = match (attached, arguments) {
            (_, 0) => Token { text: String::new(), span: token.span },
            (Some(value), _) => Token { text: value.to_owned(), span: token.span },
            (None, _) => self.take_argument(name, token.span)?.clone(),
        };
        let invert = self.invert.take();
        if let (Some(bang), false) = (invert, can_invert(opt)) {
            return Err(Problem::new(bang, format!("`{name}` cannot be inverted"), "leave out this `!`"));
        }
        self.once(owner, opt, name, token.span)?;
        match owner {
            Owner::Base => self.read_base(opt, &argument, invert.is_some()),
            Owner::Target => self.read_target_option(opt, &argument),
            Owner::Match(index) => self.read_match_option(index, opt, name, &argument, invert.is_some()),
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

    /// Refuses an option given twice.
    fn once(&mut self, owner: Owner, opt: Opt, name: &str, span: Span) -> Result<(), Problem> {
        let seen = match owner {
            Owner::Base => &mut self.base_seen,
            Owner::Target => &mut self.target_seen,
            Owner::Match(index) => &mut self.loaded[index].seen,
        };
        let clashes = |&&before: &&Opt| match (before, opt) {
            (Opt::Match, _) => false,
            (Opt::Jump | Opt::Goto, Opt::Jump | Opt::Goto) => true,
            (Opt::Syn | Opt::TcpFlags, Opt::Syn | Opt::TcpFlags) => true,
            (Opt::Sports | Opt::Dports | Opt::Ports, Opt::Sports | Opt::Dports | Opt::Ports) => true,
            (before, opt) => before == opt,
        };
        if let Some(&before) = seen.iter().find(clashes) {
            let what = match before == opt {
                true => format!("`{name}` is given twice"),
                false => format!("`{name}` excludes an option given before"),
            };
            return Err(Problem::new(span, what, "one too many"));
        }
        seen.push(opt);
        Ok(())
    }

    /// Finds the option, loading the protocol's own match where that helps.
    fn look_up(&mut self, name: &str, span: Span) -> Result<(Owner, Opt), Problem> {
        if let Some(found) = self.find(name, span)? {
            return Ok(found);
        }
        if let Some(implied) = self.implied_match()
            && match_options(implied).iter().any(|&(full, _)| full.starts_with(name) && name.len() > 2)
        {
            self.load_match(implied, span)?;
            if let Some(found) = self.find(name, span)? {
                return Ok(found);
            }
        }
        Err(self.unknown_option(name, span))
    }

    /// The match that `-p` implies, unless it is loaded already.
    fn implied_match(&self) -> Option<&'static str> {
        let (matched, _) = self.proto?;
        let name = match (matched.number, self.scope.family) {
            (proto::TCP, _) => "tcp",
            (proto::UDP, _) => "udp",
            (proto::ICMP, Family::V4) => "icmp",
            (proto::ICMPV6, Family::V6) => "icmp6",
            _ => return None,
        };
        (!self.loaded.iter().any(|loaded| loaded.name == name)).then_some(name)
    }

    /// The options in force: whose, and which.
    fn in_force(&self) -> Vec<(Owner, &'static [Spec])> {
        let mut tables = vec![(Owner::Base, BASE)];
        match &self.target {
            Some((Draft::Log(_), _)) => tables.push((Owner::Target, LOG)),
            Some((Draft::Reject(_), _)) => tables.push((Owner::Target, &[("--reject-with", Opt::RejectWith)])),
            _ => {}
        }
        let newest_first = self.loaded.iter().enumerate().rev();
        tables.extend(newest_first.map(|(index, loaded)| (Owner::Match(index), match_options(loaded.name))));
        tables
    }

    /// An exact name first; else, as getopt does, a beginning that only one option has.
    fn find(&self, name: &str, span: Span) -> Result<Option<(Owner, Opt)>, Problem> {
        let tables = self.in_force();
        for &(owner, specs) in &tables {
            if let Some(&(_, opt)) = specs.iter().find(|spec| spec.0 == name) {
                return Ok(Some((owner, opt)));
            }
        }
        if !name.starts_with("--") || name.len() < 3 {
            return Ok(None);
        }
        let mut found: Option<(&str, Owner, Opt)> = None;
        for &(owner, specs) in &tables {
            for &(full, opt) in specs.iter().filter(|spec| spec.0.starts_with(name)) {
                match found {
                    Some((_, _, before)) if before == opt => {}
                    Some((other, _, _)) => {
                        let message = format!("`{name}` could be `{other}` or `{full}`");
                        return Err(Problem::new(span, message, "write it in full"));
                    }
                    None => found = Some((full, owner, opt)),
                }
            }
        }
        Ok(found.map(|(_, owner, opt)| (owner, opt)))
    }

    fn unknown_option(&self, name: &str, span: Span) -> Problem {
        let conntrack = self.loaded.iter().any(|loaded| loaded.name == "conntrack");
        if conntrack && CONNTRACK_NOT_COVERED.contains(&name) {
            return Problem::new(
                span,
                format!("`{name}` of `-m conntrack` is not covered by this version"),
                "not covered",
            )
            .help("covered are --ctstate and --ctstatus");
        }
        let problem = Problem::new(span, format!("unknown option `{name}`"), "not known here");
        if let Some(help) = missing_owner(name, self.scope.family) {
            return problem.help(help);
        }
        let known = self.in_force().into_iter().flat_map(|(_, specs)| specs.iter().map(|spec| spec.0));
        let implied = self.implied_match().map(match_options).unwrap_or_default().iter().map(|spec| spec.0);
        let near = nearest(name, known.chain(implied).filter(|known| known.len() > 2));
        problem.maybe_help(near.map(|near| format!("did you mean `{near}`?")))
    }

    fn read_base(&mut self, opt: Opt, argument: &Token, invert: bool) -> Result<(), Problem> {
        let family = self.scope.family;
        match opt {
            Opt::Source => self.sources = value::addresses(argument, family, invert)?,
            Opt::Destination => self.destinations = value::addresses(argument, family, invert)?,
            Opt::InInterface => {
                self.check_direction(rule::OUTPUT, "-i", "OUTPUT", argument.span)?;
                self.rule.in_interface = self.interface(argument, invert)?;
            }
            Opt::OutInterface => {
                self.check_direction(rule::INPUT, "-o", "INPUT", argument.span)?;
                self.rule.out_interface = self.interface(argument, invert)?;
            }
            Opt::Protocol => self.read_protocol(argument, invert)?,
            Opt::Match => {
                let name = self.known_match(argument)?;
                self.load_match(name, argument.span)?;
            }
            Opt::Jump => self.read_jump(argument)?,
            Opt::Goto => self.read_goto(argument)?,
            Opt::Fragment if family == Family::V6 => {
                return Err(Problem::new(argument.span, "`-f` does not exist for IPv6", "not in an ip6tables file"));
            }
            Opt::Fragment => self.rule.fragment = Some(invert),
            _ => unreachable!("{opt:?} is no base option"),
        }
        Ok(())
    }

    fn check_direction(&self, chain: usize, option: &str, name: &str, span: Span) -> Result<(), Problem> {
        match self.scope.chain == chain {
            true => Err(Problem::new(span, format!("`{option}` cannot be used in {name}"), "no such interface there")),
            false => Ok(()),
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
            let matched = ProtoMatch { number, invert };
            self.proto = Some((matched, argument.span));
            self.rule.proto = Some(matched);
        }
        let extension_header =
            matches!(number, proto::ROUTING | proto::FRAGMENT | proto::AH | proto::DEST_OPTIONS) && !invert;
        if self.scope.family == Family::V6 && extension_header {
            let message = format!("`-p {}` never matches: `-p` looks at the last header only", argument.text);
            self.report.warn(Problem::new(argument.span, message, "an extension header"));
        }
        Ok(())
    }

    fn known_match(&self, argument: &Token) -> Result<&'static str, Problem> {
        let name = argument.text.as_str();
        let wrong_family = match self.scope.family {
            Family::V4 => "icmp6",
            Family::V6 => "icmp",
        };
        if name == wrong_family {
            let right = if self.scope.family == Family::V4 { "icmp" } else { "icmp6" };
            return Err(Problem::new(argument.span, format!("no match `{name}` for this IP version"), "wrong family")
                .help(format!(
                    "use `-m {right}`, or give the file as --rules{}",
                    value::other_suffix(self.scope.family)
                )));
        }
        if let Some(&known) = names::MATCHES.iter().find(|&&known| known == name) {
            return Ok(known);
        }
        let covered = names::MATCHES.join(", ");
        if names::MATCHES_NOT_COVERED.contains(&name) {
            let message = format!("match `{name}` is not covered by this version");
            return Err(Problem::new(argument.span, message, "not covered").help(format!("covered are: {covered}")));
        }
        let near = nearest(name, names::MATCHES.iter().copied());
        Err(Problem::new(argument.span, format!("unknown match `{name}`"), "no such match")
            .help(near.map_or(format!("covered are: {covered}"), |near| format!("did you mean `{near}`?"))))
    }

    fn load_match(&mut self, name: &'static str, span: Span) -> Result<(), Problem> {
        if self.loaded.len() == MATCHES_MAX {
            return Err(Problem::new(span, format!("more than {MATCHES_MAX} matches in one rule"), "one too many"));
        }
        let value = match name {
            "tcp" => Match::Tcp(TcpMatch::default()),
            "udp" => Match::Udp(UdpMatch::default()),
            "icmp" | "icmp6" => Match::Icmp(IcmpMatch { kind: 0, code: None, invert: false }),
            "state" => Match::State(StateMatch { states: 0, invert: false }),
            "conntrack" => Match::Conntrack(ConntrackMatch::default()),
            "multiport" => {
                Match::Multiport(MultiportMatch { side: MultiportSide::Either, invert: false, ports: Vec::new() })
            }
            "limit" => Match::Limit(LimitMatch { average: limit::AVERAGE_DEFAULT, burst: limit::BURST_DEFAULT }),
            _ => Match::Comment(String::new()),
        };
        self.loaded.push(Loaded { name, span, value, seen: Vec::new() });
        Ok(())
    }

    fn read_jump(&mut self, argument: &Token) -> Result<(), Problem> {
        let name = argument.text.as_str();
        let draft = match name {
            "ACCEPT" => Draft::Plain(Target::Accept),
            "DROP" => Draft::Plain(Target::Drop),
            "RETURN" => Draft::Plain(Target::Return),
            "REJECT" => Draft::Reject(RejectWith::default_for(self.scope.family)),
            "LOG" => Draft::Log(LogTarget { prefix: String::new(), level: 4, flags: 0 }),
            _ => Draft::Plain(Target::Jump(self.user_chain(argument, true)?)),
        };
        self.target = Some((draft, argument.span));
        Ok(())
    }

    fn read_goto(&mut self, argument: &Token) -> Result<(), Problem> {
        let chain = self.user_chain(argument, false)?;
        self.target = Some((Draft::Plain(Target::Goto(chain)), argument.span));
        Ok(())
    }

    fn user_chain(&self, argument: &Token, targets_too: bool) -> Result<usize, Problem> {
        let name = argument.text.as_str();
        let span = argument.span;
        if let Some(index) = self.scope.chains.iter().position(|chain| chain == name) {
            if index < rule::BUILTIN_CHAINS {
                return Err(Problem::new(
                    span,
                    format!("cannot jump to the built-in chain {name}"),
                    "not a user chain",
                ));
            }
            return Ok(index);
        }
        if names::TARGETS_NOT_COVERED.contains(&name) {
            let covered = names::TARGETS.join(", ");
            return Err(Problem::new(span, format!("target `{name}` is not covered by this version"), "not covered")
                .help(format!("covered are {covered} and the file's own chains")));
        }
        let chains = self.scope.chains.iter().skip(rule::BUILTIN_CHAINS).map(String::as_str);
        let near = match targets_too {
            true => nearest(name, chains.chain(names::TARGETS.iter().copied())),
            false => nearest(name, chains),
        };
        let what = if targets_too { "chain or target" } else { "chain" };
        Err(Problem::new(span, format!("no {what} `{name}`"), "not declared before this line").help(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("declare the chain above with `:{name} - [0:0]`"),
        }))
    }

    fn read_target_option(&mut self, opt: Opt, argument: &Token) -> Result<(), Problem> {
        let family = self.scope.family;
        match (&mut self.target, opt) {
            (Some((Draft::Reject(with), _)), Opt::RejectWith) => *with = value::reject_with(argument, family)?,
            (Some((Draft::Log(log), _)), Opt::LogLevel) => log.level = value::log_level(argument)?,
            (Some((Draft::Log(log), _)), Opt::LogFlag(flag)) => log.flags |= flag,
            (Some((Draft::Log(log), _)), Opt::LogPrefix) => {
                log.prefix = value::log_prefix(argument)?;
                if log.prefix.len() < argument.text.len() {
                    let message = format!("the log prefix is cut to 29 bytes: `{}`", log.prefix);
                    self.report.warn(Problem::new(argument.span, message, "too long"));
                }
            }
            _ => unreachable!("{opt:?} is no option of this target"),
        }
        Ok(())
    }

    fn read_match_option(
        &mut self,
        index: usize,
        opt: Opt,
        name: &str,
        argument: &Token,
        invert: bool,
    ) -> Result<(), Problem> {
        let second = match opt {
            Opt::TcpFlags => Some(self.take_argument(name, argument.span)?),
            _ => None,
        };
        let family = self.scope.family;
        if let (Match::Multiport(_), None) = (&self.loaded[index].value, self.multiport_proto()) {
            return Err(Problem::new(
                self.loaded[index].span,
                "`-m multiport` needs a protocol with ports",
                "no `-p` before",
            )
            .help("put `-p tcp`, `-p udp`, `-p udplite`, `-p sctp` or `-p dccp` before it"));
        }
        match &mut self.loaded[index].value {
            Match::Tcp(tcp) => match opt {
                Opt::Sport => tcp.sport = value::port_range(argument, invert)?,
                Opt::Dport => tcp.dport = value::port_range(argument, invert)?,
                Opt::TcpFlags => tcp.flags = value::tcp_flags(argument, second.unwrap_or(argument), invert)?,
                Opt::TcpOption => tcp.option = Some(value::tcp_option(argument, invert)?),
                _ => tcp.flags = value::syn(invert),
            },
            Match::Udp(udp) if opt == Opt::Sport => udp.sport = value::port_range(argument, invert)?,
            Match::Udp(udp) => udp.dport = value::port_range(argument, invert)?,
            Match::Icmp(icmp) => *icmp = value::icmp_type(argument, family, invert)?,
            Match::State(state) => *state = StateMatch { states: value::states(argument, false)?, invert },
            Match::Conntrack(ct) if opt == Opt::CtState => {
                ct.state = Some(rule::BitMatch { bits: value::states(argument, true)?, invert });
            }
            Match::Conntrack(ct) => ct.status = Some(rule::BitMatch { bits: value::statuses(argument)?, invert }),
            Match::Multiport(multiport) => {
                let side = match opt {
                    Opt::Sports => MultiportSide::Source,
                    Opt::Dports => MultiportSide::Destination,
                    _ => MultiportSide::Either,
                };
                *multiport = MultiportMatch { side, invert, ports: value::port_list(argument)? };
            }
            Match::Limit(limit) if opt == Opt::Limit => limit.average = value::limit_rate(argument)?,
            Match::Limit(limit) => limit.burst = value::limit_burst(argument)?,
            Match::Comment(comment) => *comment = value::comment(argument)?,
        }
        Ok(())
    }

    fn multiport_proto(&self) -> Option<u8> {
        const DCCP: u8 = 33;
        let (matched, _) = self.proto?;
        let has_ports =
            matches!(matched.number, proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP | DCCP) && !matched.invert;
        has_ports.then_some(matched.number)
    }

    /// The rules, once every option is read.
    fn finish(mut self) -> Result<Vec<Rule>, Problem> {
        if let Some(bang) = self.invert {
            return Err(Problem::new(bang, "`!` with nothing after it", "expected an option after this"));
        }
        for loaded in &self.loaded {
            self.check_match(loaded)?;
        }
        self.rule.matches = self.loaded.into_iter().map(|loaded| loaded.value).collect();
        if let Some((draft, span)) = self.target {
            self.rule.target_span = span;
            self.rule.target = match draft {
                Draft::Plain(target) => target,
                Draft::Log(log) => Target::Log(log),
                Draft::Reject(with) => {
                    let tcp = Some(ProtoMatch { number: proto::TCP, invert: false });
                    if with == RejectWith::TcpReset && self.rule.proto != tcp {
                        return Err(Problem::new(
                            span,
                            "`--reject-with tcp-reset` needs `-p tcp`",
                            "only TCP can be reset",
                        ));
                    }
                    Target::Reject(with)
                }
            };
        }
        Ok(spread(self.rule, &self.sources, &self.destinations))
    }

    fn check_match(&self, loaded: &Loaded) -> Result<(), Problem> {
        let needs = match (loaded.name, self.scope.family) {
            ("tcp", _) => Some((proto::TCP, "-p tcp")),
            ("udp", _) => Some((proto::UDP, "-p udp")),
            ("icmp", _) => Some((proto::ICMP, "-p icmp")),
            ("icmp6", _) => Some((proto::ICMPV6, "-p ipv6-icmp")),
            _ => None,
        };
        if let Some((number, wanted)) = needs
            && self.rule.proto != Some(ProtoMatch { number, invert: false })
        {
            let message = format!("`-m {}` needs `{wanted}`", loaded.name);
            return Err(Problem::new(loaded.span, message, format!("this rule has no `{wanted}`")));
        }
        let missing = match &loaded.value {
            Match::Icmp(_) if loaded.seen.is_empty() => match_options(loaded.name)[0].0,
            Match::State(_) if loaded.seen.is_empty() => "--state",
            Match::Conntrack(_) if loaded.seen.is_empty() => "--ctstate",
            Match::Multiport(_) if loaded.seen.is_empty() => "--dports",
            Match::Comment(_) if loaded.seen.is_empty() => "--comment",
            Match::Limit(limit) if limit.cost_and_cap().is_none() => {
                return Err(Problem::new(
                    loaded.span,
                    "this limit is out of range: Linux refuses it",
                    "rate times burst",
                )
                .help("take a smaller --limit-burst (but not 0), or a faster --limit"));
            }
            _ => return Ok(()),
        };
        let message = format!("`-m {}` needs `{missing}`", loaded.name);
        Err(Problem::new(loaded.span, message, "no option given"))
    }
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

const fn can_invert(opt: Opt) -> bool {
    !matches!(
        opt,
        Opt::Match
            | Opt::Jump
            | Opt::Goto
            | Opt::Limit
            | Opt::LimitBurst
            | Opt::Comment
            | Opt::RejectWith
            | Opt::LogPrefix
            | Opt::LogLevel
            | Opt::LogFlag(_)
    )
}

/// What would have to stand before this option for it to be known.
fn missing_owner(name: &str, family: Family) -> Option<String> {
    let has = |specs: &[Spec]| specs.iter().any(|spec| spec.0 == name);
    let icmp = if family == Family::V4 { ("icmp", "-p icmp") } else { ("icmp6", "-p ipv6-icmp") };
    Some(match name {
        _ if has(UDP) => "it needs `-p tcp` or `-p udp` before it".to_owned(),
        _ if has(TCP) => "it needs `-p tcp` before it".to_owned(),
        _ if has(match_options(icmp.0)) => format!("it needs `{}` before it", icmp.1),
        _ if has(LOG) => "it belongs behind `-j LOG`".to_owned(),
        "--reject-with" => "it belongs behind `-j REJECT`".to_owned(),
        "-t" | "--table" => "the table is named by a `*table` line".to_owned(),
        "-c" | "--set-counters" => "counters stand before the rule: `[packets:bytes] -A CHAIN`".to_owned(),
        "-4" | "--ipv4" | "-6" | "--ipv6" => "put the rules of each IP version into a file of its own".to_owned(),
        _ => {
            let owner = names::MATCHES.iter().find(|&&candidate| has(match_options(candidate)))?;
            format!("it needs `-m {owner}` before it")
        }
    })
}
