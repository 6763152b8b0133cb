//! What the operator asked for: [`Config`], from the command line and a TOML file with the same names.
//!
//! Both sources are read into a [`Layer`] of settings that remember their [`Place`]; the command line's layer is laid over
//! the file's, and [`Config::from_layers`] checks the whole. A `Config` therefore is complete and free of contradictions.
//! Every problem says where it stands, which value is wrong, and what is allowed; a file's problems are all told at once.
//! Whether the interfaces and CPUs exist is a question to the machine, asked by [`super::startup`].

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::wire::Family;

mod file;
#[cfg(test)]
mod tests;

/// Where the note of changed network cards is when nobody says otherwise.
pub const DEFAULT_STATE: &str = "/run/xrouter";

/// Where the control socket is when nobody says otherwise.
pub const DEFAULT_CONTROL: &str = "/run/xrouter/xrouter.sock";

/// How many CPUs a list may name: as many as the kernel's `CONFIG_NR_CPUS` allows on x86-64.
const MAX_CPUS: usize = 8192;

/// Longest interface name (`IFNAMSIZ` less the closing zero).
const MAX_INTERFACE_NAME: usize = 15;

/// How frames cross between the driver and us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// The best that works: zero-copy, then copy, then generic.
    #[default]
    Auto,
    /// The NIC writes into our memory.
    ZeroCopy,
    /// The driver runs the program natively; frames are copied once.
    Copy,
    /// The kernel runs the program on its own packet buffers: works on every driver, slowest.
    Generic,
}

impl Mode {
    /// The word for it on the command line and in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Auto => "auto",
            Mode::ZeroCopy => "zero-copy",
            Mode::Copy => "copy",
            Mode::Generic => "generic",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        [Mode::Auto, Mode::ZeroCopy, Mode::Copy, Mode::Generic]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| "allowed: auto, zero-copy, copy, generic".to_owned())
    }
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Poll {
    /// Looks again at once: lowest latency, the core is always full.
    #[default]
    Busy,
    /// Sleeps in poll(2) when idle.
    Adaptive,
}

impl Poll {
    /// The word for it on the command line and in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Poll::Busy => "busy",
            Poll::Adaptive => "adaptive",
        }
    }
}

impl fmt::Display for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Poll {
    type Err = String;

    fn from_str(text: &str) -> Result<Poll, String> {
        match text {
            "busy" => Ok(Poll::Busy),
            "adaptive" => Ok(Poll::Adaptive),
            _ => Err("allowed: busy, adaptive".to_owned()),
        }
    }
}

/// When connections are tracked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Track {
    /// When a rule needs them, as Linux does.
    #[default]
    Wanted,
    /// Also when none does.
    Always,
}

impl Track {
    /// The word for it on the command line and in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Track::Wanted => "wanted",
            Track::Always => "always",
        }
    }
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Track {
    type Err = String;

    fn from_str(text: &str) -> Result<Track, String> {
        let all = [Track::Wanted, Track::Always];
        all.into_iter().find(|it| it.name() == text).ok_or_else(|| "allowed: wanted, always".to_owned())
    }
}

/// What becomes of the rules that belong to the host itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HostChains {
    /// They are told of.
    #[default]
    Report,
    /// The kernel gets them.
    Apply,
}

impl HostChains {
    /// The word for it on the command line and in the file.
    pub const fn name(self) -> &'static str {
        match self {
            HostChains::Report => "report",
            HostChains::Apply => "apply",
        }
    }
}

impl fmt::Display for HostChains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HostChains {
    type Err = String;

    fn from_str(text: &str) -> Result<HostChains, String> {
        let all = [HostChains::Report, HostChains::Apply];
        all.into_iter().find(|it| it.name() == text).ok_or_else(|| "allowed: report, apply".to_owned())
    }
}

/// Whether network cards are set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NicSetup {
    /// What the run needs is set, and given back at its end.
    #[default]
    Auto,
    /// They are left as they are.
    Off,
}

impl NicSetup {
    /// The word for it on the command line and in the file.
    pub const fn name(self) -> &'static str {
        match self {
            NicSetup::Auto => "auto",
            NicSetup::Off => "off",
        }
    }
}

impl fmt::Display for NicSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NicSetup {
    type Err = String;

    fn from_str(text: &str) -> Result<NicSetup, String> {
        let all = [NicSetup::Auto, NicSetup::Off];
        all.into_iter().find(|it| it.name() == text).ok_or_else(|| "allowed: auto, off".to_owned())
    }
}

/// For which IP versions connections that leave by the outside interface get its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Masquerade {
    /// For none, but for what the rules say.
    #[default]
    No,
    /// For IPv4.
    Ipv4,
    /// For IPv6.
    Ipv6,
    /// For both.
    Both,
}

impl Masquerade {
    /// The word for it on the command line and in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Masquerade::No => "no",
            Masquerade::Ipv4 => "ipv4",
            Masquerade::Ipv6 => "ipv6",
            Masquerade::Both => "both",
        }
    }

    /// Whether it is for this IP version.
    pub const fn is_for(self, family: Family) -> bool {
        match family {
            Family::V4 => matches!(self, Masquerade::Ipv4 | Masquerade::Both),
            Family::V6 => matches!(self, Masquerade::Ipv6 | Masquerade::Both),
        }
    }
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Masquerade {
    type Err = String;

    fn from_str(text: &str) -> Result<Masquerade, String> {
        let all = [Masquerade::No, Masquerade::Ipv4, Masquerade::Ipv6, Masquerade::Both];
        all.into_iter().find(|it| it.name() == text).ok_or_else(|| "allowed: ipv4, ipv6, both, no".to_owned())
    }
}

/// A network interface's name, as Linux allows it (`dev_valid_name` in net/core/dev.c).
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<InterfaceName, String> {
        let wrong = if text.is_empty() {
            "is empty"
        } else if text.len() > MAX_INTERFACE_NAME {
            "is too long"
        } else if text == "." || text == ".." {
            "is a directory"
        } else if text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
            "has a character no interface name may have"
        } else {
            return Ok(InterfaceName(text.to_owned()));
        };
        Err(format!(
            "the name {wrong}; allowed: an interface name of 1 to {MAX_INTERFACE_NAME} bytes without '/', ':' or blanks, \
             as `ip link` shows it"
        ))
    }
}

/// A list of CPUs as the kernel writes it: `2,4-7`. Sorted, each once, never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuList(Vec<usize>);

impl CpuList {
    /// The CPU numbers, rising.
    pub fn cpus(&self) -> &[usize] {
        &self.0
    }
}

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuList, String> {
        let allowed = "allowed: CPU numbers and ranges such as 2,4-7";
        let number = |part: &str| -> Result<usize, String> {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            let cpu = part.parse().ok().filter(|_| digits);
            let cpu: usize = cpu.ok_or_else(|| format!("`{part}` is not a CPU number; {allowed}"))?;
            if cpu < MAX_CPUS { Ok(cpu) } else { Err(format!("CPU {cpu} is beyond {}; {allowed}", MAX_CPUS - 1)) }
        };
        let mut cpus = Vec::new();
        for part in text.split(',').map(str::trim) {
            let range = match part.split_once('-') {
                None => number(part)?..=number(part)?,
                Some((first, last)) => number(first.trim())?..=number(last.trim())?,
            };
            if range.is_empty() {
                return Err(format!("`{part}` runs backwards; {allowed}"));
            }
            for cpu in range {
                if cpus.contains(&cpu) {
                    return Err(format!("CPU {cpu} is named twice; {allowed}"));
                }
                cpus.push(cpu);
            }
        }
        cpus.sort_unstable();
        Ok(CpuList(cpus))
    }
}

/// The kernel's notation, ranges joined.
impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        while let Some(&first) = rest.first() {
            let run = rest.iter().enumerate().take_while(|&(n, &cpu)| cpu == first + n).count();
            if rest.len() < self.0.len() {
                f.write_str(",")?;
            }
            match run {
                1 => write!(f, "{first}")?,
                _ => write!(f, "{first}-{}", first + run - 1)?,
            }
            rest = &rest[run..];
        }
        Ok(())
    }
}

/// How many workers, and where they run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Workers {
    /// As many as the ports have queues and the machine has cores for.
    #[default]
    Auto,
    /// This many, on cores of our choice.
    Count(usize),
    /// One on each of these.
    Cores(CpuList),
}

impl Workers {
    /// A worker count from its text.
    ///
    /// # Errors
    /// When it is not a number from 1 to the most CPUs a kernel can have.
    pub fn parse_count(text: &str) -> Result<usize, String> {
        text.parse().ok().filter(|count| (1..=MAX_CPUS).contains(count)).ok_or_else(|| {
            format!("allowed: a number of workers from 1 to {MAX_CPUS}, at most one for each queue of the interfaces")
        })
    }
}

/// An address to serve metrics on.
///
/// # Errors
/// When `text` is no `ADDR:PORT`, with what is allowed.
pub fn parse_metrics(text: &str) -> Result<SocketAddr, String> {
    let allowed = "allowed: ADDR:PORT such as 127.0.0.1:9630 or [::1]:9630";
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address.port() {
            0 => Err(format!("port 0 means none; {allowed}")),
            _ => Ok(address),
        };
    }
    if let Some(("localhost", port)) = text.rsplit_once(':') {
        let found =
            ("localhost", port.parse().map_err(|_| format!("`{port}` is not a port; {allowed}"))?).to_socket_addrs();
        return found.ok().and_then(|mut all| all.next()).ok_or_else(|| format!("localhost has no address; {allowed}"));
    }
    Err(format!("not an address and port; {allowed}"))
}

/// A path from its text.
///
/// # Errors
/// When it is empty, or no path can be this.
pub fn parse_path(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("the path is empty; allowed: the path of a file".to_owned()),
        text if text.contains('\0') => Err("the path has a zero byte; allowed: the path of a file".to_owned()),
        text => Ok(PathBuf::from(text)),
    }
}

/// A path for a Unix socket, from its text.
///
/// # Errors
/// When it is empty or longer than `sun_path`.
pub fn parse_socket_path(text: &str) -> Result<PathBuf, String> {
    match text.len() {
        0 => Err("the path is empty; allowed: a path for a Unix socket".to_owned()),
        1..=107 => parse_path(text),
        length => {
            Err(format!("the path is {length} bytes long; allowed: a path for a Unix socket of at most 107 bytes"))
        }
    }
}

/// Where a setting was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// By this option, e.g. `--lan`.
    CommandLine(&'static str),
    /// In the configuration file, at these bytes.
    File(Range<usize>),
}

/// A value and where it was set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where it was set.
    pub place: Place,
}

impl<T> Placed<T> {
    /// A value from the command line.
    pub fn option(option: &'static str, value: T) -> Placed<T> {
        Placed { value, place: Place::CommandLine(option) }
    }
}

/// The settings of one source; what it does not mention is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layer {
    /// `lan`.
    pub lan: Option<Placed<InterfaceName>>,
    /// `wan`.
    pub wan: Option<Placed<InterfaceName>>,
    /// `rules`.
    pub rules: Option<Placed<PathBuf>>,
    /// `rules6`.
    pub rules6: Option<Placed<PathBuf>>,
    /// `sets`.
    pub sets: Option<Placed<PathBuf>>,
    /// `masquerade`.
    pub masquerade: Option<Placed<Masquerade>>,
    /// `host_chains`.
    pub host_chains: Option<Placed<HostChains>>,
    /// `nflog`.
    pub nflog: Option<Placed<PathBuf>>,
    /// `track`.
    pub track: Option<Placed<Track>>,
    /// `mode`.
    pub mode: Option<Placed<Mode>>,
    /// `workers` or `cores`.
    pub workers: Option<Placed<Workers>>,
    /// `poll`.
    pub poll: Option<Placed<Poll>>,
    /// `nic_setup`.
    pub nic_setup: Option<Placed<NicSetup>>,
    /// `state`.
    pub state: Option<Placed<PathBuf>>,
    /// `metrics`.
    pub metrics: Option<Placed<SocketAddr>>,
    /// `control`.
    pub control: Option<Placed<PathBuf>>,
    /// Whether the kernel's present conntrack sysctls are taken over.
    pub sysctl_from_kernel: Option<bool>,
    /// The `[conntrack]` table: sysctls by name, each allowed.
    pub conntrack: Vec<(String, u64)>,
}

impl Layer {
    /// This layer, and where it is silent, `below`.
    #[must_use]
    pub fn over(self, below: Layer) -> Layer {
        Layer {
            lan: self.lan.or(below.lan),
            wan: self.wan.or(below.wan),
            rules: self.rules.or(below.rules),
            rules6: self.rules6.or(below.rules6),
            sets: self.sets.or(below.sets),
            masquerade: self.masquerade.or(below.masquerade),
            host_chains: self.host_chains.or(below.host_chains),
            nflog: self.nflog.or(below.nflog),
            track: self.track.or(below.track),
            mode: self.mode.or(below.mode),
            workers: self.workers.or(below.workers),
            poll: self.poll.or(below.poll),
            nic_setup: self.nic_setup.or(below.nic_setup),
            state: self.state.or(below.state),
            metrics: self.metrics.or(below.metrics),
            control: self.control.or(below.control),
            sysctl_from_kernel: self.sysctl_from_kernel.or(below.sysctl_from_kernel),
            conntrack: below.conntrack.into_iter().chain(self.conntrack).collect(),
        }
    }
}

/// A configuration file's name and text, for messages.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path as the operator gave it.
    pub name: String,
    /// The text.
    pub text: String,
}

impl Source {
    /// Reads the text into a layer.
    ///
    /// # Errors
    /// Every unknown key, wrong type and value not allowed, each with its place.
    pub fn layer(&self) -> Result<Layer, ConfigErrors> {
        file::read(self)
    }
}

/// Everything that was asked for, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The inside interface.
    pub lan: InterfaceName,
    /// The outside interface.
    pub wan: InterfaceName,
    /// IPv4 rules, as iptables-save writes them; the built-in policy without.
    pub rules: Option<PathBuf>,
    /// IPv6 rules, as ip6tables-save writes them; the built-in policy without.
    pub rules6: Option<PathBuf>,
    /// Sets that the rules name, as `ipset save` writes them.
    pub sets: Option<PathBuf>,
    /// For which IP versions the rules get one more, at the end of nat POSTROUTING: `-o WAN -j MASQUERADE`.
    pub masquerade: Masquerade,
    /// What becomes of the rules that belong to the host itself.
    pub host_chains: HostChains,
    /// Where copies of packets go that meet NFLOG rules: a file, or a Unix socket that is there.
    pub nflog: Option<PathBuf>,
    /// When connections are tracked.
    pub track: Track,
    /// How frames cross.
    pub mode: Mode,
    /// How many workers, and where.
    pub workers: Workers,
    /// What an idle worker does.
    pub poll: Poll,
    /// Whether network cards are set up.
    pub nic_setup: NicSetup,
    /// The folder of the note of what is changed on them.
    pub state: PathBuf,
    /// Where to serve metrics, if at all.
    pub metrics: Option<SocketAddr>,
    /// The control socket.
    pub control: PathBuf,
    /// Whether the kernel's present conntrack sysctls are taken over, below those of the next field.
    pub sysctl_from_kernel: bool,
    /// Connection tracking's settings, by sysctl name; each is allowed.
    pub conntrack: Vec<(String, u64)>,
}

impl Config {
    /// The configuration that the command line and the file (its layer and text) make together. The command line wins.
    ///
    /// # Errors
    /// When an interface is missing, or both are the same.
    pub fn from_layers(command_line: Layer, file: Option<(Layer, Source)>) -> Result<Config, ConfigErrors> {
        let (below, source) = file.map_or((Layer::default(), None), |(layer, source)| (layer, Some(source)));
        let all = command_line.over(below);
        let mut errors = ConfigErrors::new(source);
        if all.lan.is_none() {
            errors.missing("lan", "which interface faces the inside network?");
        }
        if all.wan.is_none() {
            errors.missing("wan", "which interface faces the outside network?");
        }
        let (Some(lan), Some(wan)) = (all.lan, all.wan) else { return Err(errors) };
        if lan.value == wan.value {
            let given = match wan.place {
                Place::CommandLine(option) => format!("{option} {}", wan.value),
                Place::File(_) => format!("wan = \"{}\"", wan.value),
            };
            errors.add(&wan.place, format!("{given}: lan is the same interface; allowed: two different interfaces"));
            return Err(errors);
        }
        Ok(Config {
            lan: lan.value,
            wan: wan.value,
            rules: all.rules.map(|placed| placed.value),
            rules6: all.rules6.map(|placed| placed.value),
            sets: all.sets.map(|placed| placed.value),
            masquerade: all.masquerade.map(|placed| placed.value).unwrap_or_default(),
            host_chains: all.host_chains.map(|placed| placed.value).unwrap_or_default(),
            nflog: all.nflog.map(|placed| placed.value),
            track: all.track.map(|placed| placed.value).unwrap_or_default(),
            mode: all.mode.map(|placed| placed.value).unwrap_or_default(),
            workers: all.workers.map(|placed| placed.value).unwrap_or_default(),
            poll: all.poll.map(|placed| placed.value).unwrap_or_default(),
            nic_setup: all.nic_setup.map(|placed| placed.value).unwrap_or_default(),
            state: all.state.map_or_else(|| PathBuf::from(DEFAULT_STATE), |placed| placed.value),
            metrics: all.metrics.map(|placed| placed.value),
            control: all.control.map_or_else(|| PathBuf::from(DEFAULT_CONTROL), |placed| placed.value),
            sysctl_from_kernel: all.sysctl_from_kernel.unwrap_or(false),
            conntrack: all.conntrack,
        })
    }
}

/// What is wrong with a configuration: at least one problem, each with its place.
#[derive(Clone, Debug)]
pub struct ConfigErrors {
    source: Option<Source>,
    problems: Vec<(Option<Place>, String)>,
}

impl ConfigErrors {
    fn new(source: Option<Source>) -> ConfigErrors {
        ConfigErrors { source, problems: Vec::new() }
    }

    fn add(&mut self, place: &Place, message: String) {
        self.problems.push((Some(place.clone()), message));
    }

    fn missing(&mut self, key: &str, question: &str) {
        let message =
            format!("--{key} is missing: {question} Give `--{key} IF`, or `{key} = \"IF\"` in a --config file");
        self.problems.push((None, message));
    }

    /// Whether there is none (never so for those that a function returned).
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// How many problems there are.
    pub fn len(&self) -> usize {
        self.problems.len()
    }
}

/// One block per problem: `error: …`, and for a file the line with what is wrong underlined under `file:line:column`.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (place, message)) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            match (place, &self.source) {
                (Some(Place::File(span)), Some(source)) => {
                    let snippet = Snippet::source(source.text.as_str())
                        .path(source.name.as_str())
                        .annotation(AnnotationKind::Primary.span(span.clone()));
                    let report = [Level::ERROR.primary_title(message.as_str()).element(snippet)];
                    f.write_str(&Renderer::plain().render(&report))?;
                }
                _ => write!(f, "error: {message}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
