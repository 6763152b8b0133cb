//! A scenario as read from its file: [`Script`] is the header and the timed [`Line`]s, frames already built.
//!
//! The language is described in `tests/scenarios/README.md`. A mistake in a scenario ends its reading with file and line.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use xrouter::rules;
use xrouter::wire::Family;

use super::expression::{self, Described, Scope, Words};
use super::packet::Mask;
use super::topology::{Neighbour, Port, Route, Target, Topology, mac_of};

/// What a scenario runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The datapath alone.
    Core,
    /// Workers over simulated ports.
    Sim,
    /// The running kernel, the judge.
    Kernel,
    /// Four workers over simulated ports, packets arriving on queues drawn at random. Runs what is written for [`Kind::Sim`].
    Workers,
    /// The program itself on real sockets, its frames captured at the other ends of its links. Runs what is written for
    /// [`Kind::Sim`], but for what [`Script::not_on_wire`] or [`super::wire::unfit`] leaves out.
    Wire,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Core, Kind::Sim, Kind::Kernel];

    /// Whose lines it reads.
    pub(crate) fn reads(self) -> Kind {
        if matches!(self, Kind::Workers | Kind::Wire) { Kind::Sim } else { self }
    }

    pub(crate) fn word(self) -> &'static str {
        ["core", "sim", "kernel", "workers", "wire"][self as usize]
    }
}

/// One thing a scenario does or wants.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A frame arrives on a port.
    Inject { port: Port, frame: Vec<u8> },
    /// The next frame out of a port is this one.
    Expect { port: Port, frame: Vec<u8>, mask: Mask },
    /// Nothing came out.
    Nothing,
    /// So many packets were dropped for this reason since the last injection (core and sim).
    Drop { reason: String, count: u64 },
    /// So many packets were handed to the host since the last injection (core and sim).
    Punt { count: usize },
    /// The next packet handed to the host is this one (core and sim).
    Host { frame: Vec<u8> },
    /// The listing has exactly one line with these words in this order.
    Conntrack { words: Vec<String> },
    /// The listing has no line with these words in this order.
    NoConntrack { words: Vec<String> },
    /// The listing has so many lines.
    ConntrackCount { count: usize },
    /// A rule's (or the policy's, with `None`) counters.
    Counter { v4: bool, chain: String, rule: Option<usize>, packets: Option<u64>, bytes: Option<u64> },
    /// This line was logged since the start (engines that log).
    Log { text: String },
    /// A neighbour answers.
    Learn(Neighbour),
    /// Nothing but the wait.
    Wait,
}

/// A step, when and where.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Line number in the file.
    pub(crate) number: usize,
    /// Nanoseconds to wait before it.
    pub(crate) wait_ns: u64,
    /// Engines it is for.
    pub(crate) engines: Vec<Kind>,
    pub(crate) step: Step,
}

/// A rules file's name and text.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// A whole scenario.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// File name for reports.
    pub(crate) file: String,
    pub(crate) topology: Topology,
    pub(crate) rules_v4: Option<Rules>,
    pub(crate) rules_v6: Option<Rules>,
    /// `nf_conntrack_` settings, less the prefix.
    pub(crate) conntrack: Vec<(String, String)>,
    pub(crate) engines: Vec<Kind>,
    /// Whether several workers are to do the same as one.
    pub(crate) for_workers: bool,
    /// Why it does not hold on a wire, if so.
    pub(crate) not_on_wire: Option<String>,
    pub(crate) lines: Vec<Line>,
}

impl Script {
    /// Reads a scenario file.
    pub(crate) fn load(path: &Path) -> Result<Script, String> {
        let file =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Script::parse(&file, &text)
    }

    /// Reads a scenario's text.
    pub(crate) fn parse(file: &str, text: &str) -> Result<Script, String> {
        let mut reader = Reader::new(file);
        let mut lines = text.lines().enumerate();
        while let Some((index, line)) = lines.next() {
            let number = index + 1;
            let located = |error: String| format!("{file}:{number}: {error}\n    {line}");
            let mut words = Words::split(line).map_err(located)?;
            if words.is_empty() {
                continue;
            }
            if let Some(end) = words.heredoc() {
                let body: Vec<&str> =
                    lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != end).collect();
                words.push(body.join("\n") + "\n");
            }
            reader.line(number, &mut words).map_err(located)?;
            words.finish().map_err(located)?;
        }
        reader.finish()
    }
}

struct Reader {
    script: Script,
    scope: Scope,
    differs: bool,
}

impl Reader {
    fn new(file: &str) -> Reader {
        let script = Script {
            file: file.to_owned(),
            topology: Topology::default(),
            rules_v4: None,
            rules_v6: None,
            conntrack: Vec::new(),
            engines: Kind::ALL.to_vec(),
            for_workers: true,
            not_on_wire: None,
            lines: Vec::new(),
        };
        Reader { script, scope: Scope { last: None, labels: HashMap::new() }, differs: false }
    }

    fn finish(self) -> Result<Script, String> {
        match self.script.lines.is_empty() {
            true => Err(format!("{}: nothing happens in it", self.script.file)),
            false => Ok(self.script),
        }
    }

    fn line(&mut self, number: usize, words: &mut Words) -> Result<(), String> {
        if self.script.lines.is_empty() && self.header(words)? {
            return Ok(());
        }
        let wait_ns = self.wait(words)?;
        let engines = self.line_engines(words)?;
        let step = if words.is_empty() { Step::Wait } else { self.step(words)? };
        self.script.lines.push(Line { number, wait_ns, engines, step });
        Ok(())
    }

    /// Reads a header line; false when it is none.
    fn header(&mut self, words: &mut Words) -> Result<bool, String> {
        match words.peek() {
            Some("rules") => {
                words.next("rules")?;
                self.rules(words)?;
            }
            Some("conntrack")
                if words.peek_second().is_some_and(|word| word.contains('=') && !word.starts_with("src=")) =>
            {
                words.next("conntrack")?;
                let setting = words.next("a setting")?;
                let (key, value) = setting.split_once('=').ok_or("want KEY=VALUE")?;
                self.script.conntrack.push((key.to_owned(), value.to_owned()));
            }
            Some("ports") => {
                words.next("ports")?;
                self.script.topology.names = [words.next("a LAN name")?, words.next("a WAN name")?];
            }
            Some("mtu") => {
                words.next("mtu")?;
                let port = self.port(words)?;
                self.script.topology.mtu[port.index()] = words.number("an MTU")?;
            }
            Some("rp_filter") => {
                words.next("rp_filter")?;
                let port = self.port(words)?;
                self.script.topology.rp_filter[port.index()] = words.number("0, 1 or 2")?;
            }
            Some("route") => {
                words.next("route")?;
                let route = route(words)?;
                self.script.topology.routes.push(route);
            }
            Some("neighbour") => {
                words.next("neighbour")?;
                let port = self.port(words)?;
                let address = words.next("an address")?.parse().map_err(|_| "want an address")?;
                let mac = match words.is_empty() {
                    true => mac_of(port, address),
                    false => expression::mac(&words.next("a MAC address")?)?,
                };
                self.script.topology.neighbours.push(Neighbour { port, address, mac });
            }
            Some("engines") => {
                words.next("engines")?;
                self.engines(words)?;
            }
            Some("alone") => {
                words.next("alone")?;
                words.next("the reason why several workers do something else")?;
                self.script.for_workers = false;
            }
            Some("not") => {
                for word in ["not", "on", "wire"] {
                    if words.next("not on wire")? != word {
                        return Err("want not on wire \"reason\"".into());
                    }
                }
                self.script.not_on_wire = Some(words.next("the reason")?);
            }
            Some("differs") => {
                words.next("differs")?;
                words.next("the reason")?;
                self.differs = true;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn rules(&mut self, words: &mut Words) -> Result<(), String> {
        let family = words.next("v4 or v6")?;
        let source = words.next("a file, or <<END")?;
        let rules = match source.strip_prefix("<<") {
            Some(_) => Rules { name: format!("{}:{family}", self.script.file), text: words.next("the rules")? },
            None if source == "default" => {
                let [lan, wan] = &self.script.topology.names;
                let of = if family == "v4" { Family::V4 } else { Family::V6 };
                Rules { name: source, text: rules::default_policy(of, lan, wan) }
            }
            None => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&source);
                let text = fs::read_to_string(&path).map_err(|error| format!("{source}: {error}"))?;
                Rules { name: source, text }
            }
        };
        match family.as_str() {
            "v4" => self.script.rules_v4 = Some(rules),
            "v6" => self.script.rules_v6 = Some(rules),
            other => return Err(format!("want v4 or v6, not {other}")),
        }
        Ok(())
    }

    fn engines(&mut self, words: &mut Words) -> Result<(), String> {
        let mut kinds = Vec::new();
        while let Some(kind) = Kind::ALL.into_iter().find(|kind| Some(kind.word()) == words.peek()) {
            words.next("an engine")?;
            kinds.push(kind);
        }
        if kinds.len() < Kind::ALL.len() && words.next("the reason why an engine is left out").is_err() {
            return Err("an engine is left out: say why, in quotes".into());
        }
        self.script.engines = kinds;
        Ok(())
    }

    fn wait(&self, words: &mut Words) -> Result<u64, String> {
        let Some(time) = words.peek().and_then(|word| word.strip_prefix('+')).map(str::to_owned) else { return Ok(0) };
        words.next("a time")?;
        let seconds: f64 = time.parse().map_err(|_| format!("+{time} is no time"))?;
        Ok((seconds * 1e9) as u64)
    }

    fn line_engines(&self, words: &mut Words) -> Result<Vec<Kind>, String> {
        let kinds = match words.peek() {
            Some("linux:") => vec![Kind::Kernel],
            Some("ours:") => vec![Kind::Core, Kind::Sim],
            _ => return Ok(Kind::ALL.to_vec()),
        };
        words.next("an engine")?;
        match self.differs {
            true => Ok(kinds),
            false => Err("a line for one side only: say why in the header, with differs \"reason\"".into()),
        }
    }

    fn port(&self, words: &mut Words) -> Result<Port, String> {
        let word = words.next("lan or wan")?;
        Port::from_word(&word).ok_or_else(|| format!("want lan or wan, not {word}"))
    }

    fn step(&mut self, words: &mut Words) -> Result<Step, String> {
        match words.peek().unwrap_or_default() {
            "lan" | "wan" => self.traffic(words),
            "drop" => {
                words.next("drop")?;
                let reason = words.next("a drop reason")?;
                let count = if words.is_empty() { 1 } else { words.number("a count")? };
                Ok(Step::Drop { reason, count })
            }
            "punt" => {
                words.next("punt")?;
                Ok(Step::Punt { count: if words.is_empty() { 1 } else { words.number("a count")? } })
            }
            "host" => {
                words.next("host")?;
                if words.next("<")? != "<" {
                    return Err("want host < PACKET".into());
                }
                let described = expression::packet(words, &self.scope, false)?;
                Ok(Step::Host { frame: described.build().0 })
            }
            "nothing" => {
                words.next("nothing")?;
                Ok(Step::Nothing)
            }
            "learn" => {
                words.next("learn")?;
                let port = self.port(words)?;
                let address = words.next("an address")?.parse().map_err(|_| "want an address")?;
                Ok(Step::Learn(Neighbour { port, address, mac: mac_of(port, address) }))
            }
            "log" => {
                words.next("log")?;
                Ok(Step::Log { text: words.next("the line")? })
            }
            "no" => {
                words.next("no")?;
                words.next("conntrack")?;
                Ok(Step::NoConntrack { words: words.rest() })
            }
            "conntrack" => {
                words.next("conntrack")?;
                match words.peek() {
                    Some("count") => {
                        words.next("count")?;
                        Ok(Step::ConntrackCount { count: words.number("a count")? })
                    }
                    Some(_) => Ok(Step::Conntrack { words: words.rest() }),
                    None => Err("conntrack what?".into()),
                }
            }
            word @ ("counter" | "counter6") => {
                let v4 = word == "counter";
                words.next("counter")?;
                counter(v4, words)
            }
            other => Err(format!("unknown word {other}")),
        }
    }

    fn traffic(&mut self, words: &mut Words) -> Result<Step, String> {
        let port = self.port(words)?;
        let arrow = words.next("> or <")?;
        if arrow == "<" && words.peek() == Some("nothing") {
            words.next("nothing")?;
            return Ok(Step::Nothing);
        }
        let mut described = expression::packet(words, &self.scope, arrow == "<")?;
        let label = match words.peek() {
            Some("as") => {
                words.next("as")?;
                Some(words.next("a name")?)
            }
            _ => None,
        };
        match arrow.as_str() {
            ">" => {
                described.fill_incoming(port, &self.script.topology);
                let (frame, _) = described.build();
                if let Some(label) = label {
                    self.scope.labels.insert(label, described.clone());
                }
                self.scope.last = Some(described);
                Ok(Step::Inject { port, frame })
            }
            "<" => {
                described.fill_outgoing(port, &self.script.topology);
                let (frame, mask) = described.build();
                if let Some(label) = label {
                    self.scope.labels.insert(label, described);
                }
                Ok(Step::Expect { port, frame, mask })
            }
            other => Err(format!("want > or <, not {other}")),
        }
    }
}

fn counter(v4: bool, words: &mut Words) -> Result<Step, String> {
    let chain = words.next("a chain")?;
    let which = words.next("a rule's number, or policy")?;
    let rule = match which.as_str() {
        "policy" => None,
        number => Some(number.parse().map_err(|_| "want a rule's number, or policy")?),
    };
    let (mut packets, mut bytes) = (None, None);
    while !words.is_empty() {
        let word = words.next("packets=N or bytes=N")?;
        let value = |text: &str| text.parse().map_err(|_| format!("{text} is no number"));
        match word.split_once('=') {
            Some(("packets", text)) => packets = Some(value(text)?),
            Some(("bytes", text)) => bytes = Some(value(text)?),
            _ => return Err(format!("want packets=N or bytes=N, not {word}")),
        }
    }
    Ok(Step::Counter { v4, chain, rule, packets, bytes })
}

fn route(words: &mut Words) -> Result<Route, String> {
    let first = words.next("a prefix or a route type")?;
    let typed = match first.as_str() {
        "unreachable" => Some(Target::Unreachable),
        "prohibit" => Some(Target::Prohibit),
        "blackhole" => Some(Target::Blackhole),
        "elsewhere" => Some(Target::Elsewhere),
        _ => None,
    };
    let prefix = if typed.is_some() { words.next("a prefix")? } else { first };
    let prefix = match prefix.as_str() {
        "default" => "0.0.0.0/0",
        "default6" => "::/0",
        other => other,
    };
    let (network, len) = prefix.split_once('/').ok_or("want PREFIX/LENGTH")?;
    let network = network.parse().map_err(|_| format!("{network} is no address"))?;
    let len = len.parse().map_err(|_| format!("{len} is no prefix length"))?;
    let target = match typed {
        Some(target) => target,
        None => match words.next("via or dev")?.as_str() {
            "via" => Target::Via(words.next("a gateway")?.parse().map_err(|_| "want an address")?),
            "dev" => {
                let word = words.next("lan or wan")?;
                Target::Dev(Port::from_word(&word).ok_or("want lan or wan")?)
            }
            other => return Err(format!("want via or dev, not {other}")),
        },
    };
    let mtu = match words.peek() {
        Some("mtu") => {
            words.next("mtu")?;
            Some(words.number("an MTU")?)
        }
        _ => None,
    };
    Ok(Route { network, len, target, mtu })
}

/// What a packet expression may refer to.
impl Scope {
    /// The packet called `name`.
    pub(crate) fn labelled(&self, name: &str) -> Result<Described, String> {
        self.labels.get(name).cloned().ok_or_else(|| format!("no packet is called {name}"))
    }
}
