//! What a start checks and says: [`Failure`] and its exit codes, the questions to the machine, the log, the one line on
//! standard output, and the words to systemd.
//!
//! The order of a start, first failure ends it: (1) the configuration is read and checked; (2) [`check_interfaces`] and
//! [`check_cores`]; (3) the rules are read and compiled; (4) [`check_kernel`] and [`check_privileges`]; (5) the control
//! socket and the metrics address are bound; (6) program and sockets; (7) routes are mirrored; (8) workers run, and then
//! [`Ready`] is printed and systemd told. So whatever an operator can get wrong is told before anything is changed.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use sd_notify::NotifyState;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::registry::LookupSpan;

use super::config::{Config, CpuList, InterfaceName, Workers};

/// Why the program ends other than well. Each kind has its exit code; the text says what, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Failed while running: 1.
    Running(String),
    /// The answer is no, and nothing is wrong: 1. The text is shown as it is.
    Answer(String),
    /// Usage is wrong: 2.
    Usage(String),
    /// Configuration or rules are wrong: 2. The text is a whole report with every wrong place, shown as it is.
    Report(String),
    /// This machine cannot do it: 3.
    Machine(String),
    /// No daemon to talk to: 4.
    NoDaemon(String),
}

impl Failure {
    /// The process's exit code.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Failure::Running(_) | Failure::Answer(_) => 1,
            Failure::Usage(_) | Failure::Report(_) => 2,
            Failure::Machine(_) => 3,
            Failure::NoDaemon(_) => 4,
        }
    }

    /// What, where, and what to do.
    pub fn message(&self) -> &str {
        match self {
            Failure::Running(text)
            | Failure::Answer(text)
            | Failure::Usage(text)
            | Failure::Report(text)
            | Failure::Machine(text)
            | Failure::NoDaemon(text) => text,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Report(text) | Failure::Answer(text) => f.write_str(text),
            other => write!(f, "error: {}", other.message()),
        }
    }
}

impl std::error::Error for Failure {}

/// Reads a file that the operator named with `option`.
///
/// # Errors
/// [`Failure::Usage`] when it cannot be read or is not text.
pub fn read_text(option: &str, path: &Path) -> Result<String, Failure> {
    let bytes = fs::read(path)
        .map_err(|error| Failure::Usage(format!("{option} {}: cannot read the file: {error}", path.display())))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::Usage(format!("{option} {}: not text: byte {at} is not UTF-8", path.display()))
    })
}

/// A key for hash tables, of this run alone: who sends packets must not know it.
///
/// # Errors
/// When the kernel gives no random numbers.
pub fn secret() -> Result<[u64; 2], Failure> {
    let mut bytes = [0u8; 16];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    read.map_err(|error| Failure::Running(format!("cannot read /dev/urandom: {error}")))?;
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    Ok([word(0), word(8)])
}

/// What the kernel says of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    flags: InterfaceFlags,
    /// ARPHRD_*; 1 is Ethernet.
    hardware: u16,
}

/// Checks that both interfaces exist, are Ethernet, are not the loopback, and are up.
///
/// # Errors
/// [`Failure::Usage`] for a wrong name, [`Failure::Machine`] for an interface that cannot be used as it is.
pub fn check_interfaces(config: &Config) -> Result<(), Failure> {
    let failed = |error| Failure::Running(format!("cannot list the interfaces: {error}"));
    let mut links: Vec<(String, Link)> = Vec::new();
    for interface in getifaddrs().map_err(failed)? {
        if let Some(address) = interface.address.as_ref().and_then(|address| address.as_link_addr()) {
            links.push((interface.interface_name, Link { flags: interface.flags, hardware: address.hatype() }));
        }
    }
    check_link("--lan", &config.lan, &links)?;
    check_link("--wan", &config.wan, &links)
}

fn check_link(option: &str, name: &InterfaceName, links: &[(String, Link)]) -> Result<(), Failure> {
    const ARPHRD_ETHER: u16 = 1;
    let Some((_, link)) = links.iter().find(|(known, _)| known == name.as_str()) else {
        let known: Vec<_> = links.iter().map(|(known, _)| known.as_str()).filter(|&known| known != "lo").collect();
        let known = if known.is_empty() { "no interface but lo".to_owned() } else { known.join(", ") };
        return Err(Failure::Usage(format!("{option} {name}: there is no such interface. This host has {known}")));
    };
    if link.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        return Err(Failure::Usage(format!(
            "{option} {name}: the loopback interface leads nowhere. Give an Ethernet interface"
        )));
    }
    if link.hardware != ARPHRD_ETHER {
        return Err(Failure::Machine(format!(
            "{option} {name}: not an Ethernet interface (hardware type {}). Only Ethernet can be routed",
            link.hardware
        )));
    }
    if !link.flags.contains(InterfaceFlags::IFF_UP) {
        return Err(Failure::Machine(format!("{option} {name}: the interface is down. Do: ip link set {name} up")));
    }
    Ok(())
}

/// Checks that the cores asked for are there and allowed to this process.
///
/// # Errors
/// [`Failure::Usage`] naming those that are not.
pub fn check_cores(config: &Config) -> Result<(), Failure> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| Failure::Running(format!("cannot read /proc/self/status: {error}")))?;
    let allowed = status_field(&status, "Cpus_allowed_list").and_then(|list| list.parse::<CpuList>().ok());
    let Some(allowed) = allowed else {
        return Err(Failure::Running("no Cpus_allowed_list in /proc/self/status".to_owned()));
    };
    cores_allowed(&config.workers, &allowed)
}

fn cores_allowed(workers: &Workers, allowed: &CpuList) -> Result<(), Failure> {
    match workers {
        Workers::Cores(asked) => {
            let missing: Vec<_> = asked.cpus().iter().filter(|cpu| !allowed.cpus().contains(cpu)).collect();
            match missing.first() {
                None => Ok(()),
                Some(cpu) => {
                    Err(Failure::Usage(format!("--cores {asked}: core {cpu} cannot be used; allowed: {allowed}")))
                }
            }
        }
        Workers::Count(count) if *count > allowed.cpus().len() => Err(Failure::Usage(format!(
            "--workers {count}: more workers than cores, and each needs a core of its own; allowed: 1 to {}",
            allowed.cpus().len()
        ))),
        _ => Ok(()),
    }
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The capabilities a run needs: bit, name, and what for.
const CAPABILITIES: [(u32, &str, &str); 4] = [
    (12, "CAP_NET_ADMIN", "attach the XDP program, follow routes and neighbours"),
    (13, "CAP_NET_RAW", "open AF_XDP sockets"),
    (38, "CAP_PERFMON", "let the XDP program compare packet pointers"),
    (39, "CAP_BPF", "load the XDP program"),
];

/// `CAP_SYS_ADMIN` stands in for `CAP_BPF` and `CAP_PERFMON`, as in the kernel.
const CAP_SYS_ADMIN: u32 = 21;

/// Checks that this process may do what a run needs.
///
/// # Errors
/// [`Failure::Machine`] naming every capability that is missing.
pub fn check_privileges() -> Result<(), Failure> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| Failure::Running(format!("cannot read /proc/self/status: {error}")))?;
    privileges(&status)
}

fn privileges(status: &str) -> Result<(), Failure> {
    let effective = status_field(status, "CapEff").and_then(|bits| u64::from_str_radix(bits, 16).ok());
    let Some(effective) = effective else {
        return Err(Failure::Running("no CapEff in /proc/self/status".to_owned()));
    };
    let has = |bit: u32| effective & 1 << bit != 0;
    let granted = |bit: u32| has(bit) || bit > CAP_SYS_ADMIN && has(CAP_SYS_ADMIN);
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|&&(bit, ..)| !granted(bit))
        .map(|(_, name, what)| format!("{name} (to {what})"))
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::Machine(format!(
            "missing {}. Run it as root, or give it these capabilities",
            missing.join(", ")
        ))),
    }
}

/// Checks that the kernel has AF_XDP.
///
/// # Errors
/// [`Failure::Machine`] when it has not.
pub fn check_kernel() -> Result<(), Failure> {
    let protocols = fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel(&protocols, release.trim())
}

fn kernel(protocols: &str, release: &str) -> Result<(), Failure> {
    if protocols.lines().any(|line| line.split_whitespace().next() == Some("XDP")) {
        return Ok(());
    }
    Err(Failure::Machine(format!(
        "this kernel ({release}) has no AF_XDP sockets. It needs CONFIG_XDP_SOCKETS=y, in mainline since 4.18; xrouter \
         wants 5.18 or later"
    )))
}

/// The line on standard output when packets flow: `xrouter ready` and `key=value` words, in this order, none left out but
/// the last two. Values with blanks stand in double quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// What the sockets got: `zero-copy`, `copy` or `generic`.
    pub mode: String,
    /// Queues bound on each port.
    pub queues: usize,
    /// The workers' cores.
    pub cores: CpuList,
    /// IPv4 rules in force.
    pub rules: usize,
    /// IPv6 rules in force.
    pub rules6: usize,
    /// The inside interface.
    pub lan: String,
    /// The outside interface.
    pub wan: String,
    /// The control socket.
    pub control: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ready { mode, queues, cores, rules, rules6, lan, wan, .. } = self;
        write!(
            f,
            "xrouter ready mode={mode} queues={queues} cores={cores} rules={rules} rules6={rules6} lan={lan} wan={wan}"
        )?;
        if let Some(control) = &self.control {
            let path = control.display().to_string();
            let plain = !path.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"');
            if plain { write!(f, " control={path}") } else { write!(f, " control={path:?}") }?;
        }
        match self.metrics {
            Some(metrics) => write!(f, " metrics={metrics}"),
            None => Ok(()),
        }
    }
}

impl Ready {
    /// Prints the line and tells systemd. A closed standard output is nothing to stop for.
    pub fn announce(&self) {
        let mut stdout = io::stdout().lock();
        let _ = writeln!(stdout, "{self}").and_then(|()| stdout.flush());
        let status = format!("routing {} <-> {}, {} mode", self.lan, self.wan, self.mode);
        notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }
}

/// Tells systemd that files are being read again.
pub fn announce_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now, NotifyState::Status("reading the rules again")]),
        Err(error) => tracing::warn!("cannot read the monotonic clock: {error}"),
    }
}

/// Tells systemd that this is over.
pub fn announce_reloaded(well: bool) {
    let status =
        if well { "routing, with rules read again" } else { "routing, with the rules as before: a reload was refused" };
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd that the end has begun.
pub fn announce_stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("giving the interfaces back")]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("cannot reach systemd's notification socket: {error}");
    }
}

/// Sends the log to standard error: in the journal's own form when that is where standard error leads, with a time stamp
/// and the level otherwise. Does nothing the second time.
pub fn start_log() {
    let journal = to_journal();
    let _ = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_writer(io::stderr)
        .with_ansi(false)
        // It would be written to standard error, too, and with a panic when that is gone.
        .log_internal_errors(false)
        .event_format(LogLine { journal })
        .try_init();
}

/// Writes the line of a LOG rule, at a syslog level of 0 to 7, where the log goes.
pub fn log_packet(level: u8, line: &str) {
    let mut text = String::with_capacity(line.len() + 40);
    let head = if to_journal() {
        fmt::Write::write_fmt(&mut text, format_args!("<{}>", level.min(7)))
    } else {
        let mut writer = Writer::new(&mut text);
        SystemTime.format_time(&mut writer).and_then(|()| writer.write_char(' '))
    };
    head.expect("a String takes whatever is written");
    text.push_str(line.trim_end());
    text.push('\n');
    // Nobody is left to tell when standard error is closed.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Whether standard error leads to the journal; found out once.
fn to_journal() -> bool {
    static JOURNAL: OnceLock<bool> = OnceLock::new();
    *JOURNAL
        .get_or_init(|| leads_to_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), Path::new("/proc/self/fd/2")))
}

/// Whether `stream` (device and inode, as systemd gives it) is what `stderr` is (systemd.exec(5), `$JOURNAL_STREAM`).
fn leads_to_journal(stream: Option<&str>, stderr: &Path) -> bool {
    let same = |stream: &str| {
        let (device, inode) = stream.split_once(':')?;
        let metadata = fs::metadata(stderr).ok()?;
        Some(device.parse() == Ok(metadata.dev()) && inode.parse() == Ok(metadata.ino()))
    };
    stream.and_then(same).unwrap_or(false)
}

/// One line of the log.
struct LogLine {
    journal: bool,
}

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // syslog(3) levels, and the words for them.
        let (level, word) = match *event.metadata().level() {
            Level::ERROR => (3, "error"),
            Level::WARN => (4, "warning"),
            Level::INFO => (6, "info"),
            _ => (7, "debug"),
        };
        if self.journal {
            write!(line, "<{level}>")?;
        } else {
            SystemTime.format_time(&mut line)?;
            write!(line, " {word}: ")?;
        }
        context.field_format().format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(flags: InterfaceFlags) -> Link {
        Link { flags, hardware: 1 }
    }

    #[test]
    fn links_are_judged() {
        let up = InterfaceFlags::IFF_UP;
        let links = [
            ("lo".to_owned(), link(up | InterfaceFlags::IFF_LOOPBACK)),
            ("eth0".to_owned(), link(up)),
            ("eth1".to_owned(), link(InterfaceFlags::empty())),
            ("tun0".to_owned(), Link { flags: up, hardware: 65534 }),
        ];
        let check = |name: &str| check_link("--lan", &name.parse().expect("a name"), &links);
        assert_eq!(check("eth0"), Ok(()));
        let code = |name: &str, part: &str| {
            let failure = check(name).expect_err("not usable");
            assert!(failure.message().contains(part), "{failure}");
            failure.exit_code()
        };
        assert_eq!(code("eth9", "This host has eth0, eth1, tun0"), 2);
        assert_eq!(code("lo", "loopback"), 2);
        assert_eq!(code("tun0", "not an Ethernet"), 3);
        assert_eq!(code("eth1", "ip link set eth1 up"), 3);
    }

    #[test]
    fn cores_must_be_ours() {
        let allowed: CpuList = "0-1".parse().expect("a list");
        let cores = |list: &str| cores_allowed(&Workers::Cores(list.parse().expect("a list")), &allowed);
        assert_eq!(cores("1"), Ok(()));
        assert_eq!(cores("0,5").expect_err("no core 5").message(), "--cores 0,5: core 5 cannot be used; allowed: 0-1");
        assert_eq!(cores_allowed(&Workers::Count(2), &allowed), Ok(()));
        assert!(cores_allowed(&Workers::Count(3), &allowed).is_err());
    }

    #[test]
    fn missing_capabilities_are_all_named() {
        assert_eq!(privileges("Name:\tx\nCapEff:\t000001ffffffffff\n"), Ok(()));
        assert_eq!(privileges("CapEff:\t0000000000203000\n"), Ok(()));
        let failure = privileges("CapEff:\t0000000000001000\n").expect_err("three are missing");
        assert!(failure.message().contains("CAP_NET_RAW (to open AF_XDP sockets), CAP_PERFMON (to"), "{failure}");
        assert!(!failure.message().contains("CAP_NET_ADMIN"), "{failure}");
        assert_eq!(failure.exit_code(), 3);
        assert!(privileges("nothing").is_err());
    }

    #[test]
    fn a_kernel_without_af_xdp_is_said() {
        assert_eq!(kernel("protocol  size sockets\nXDP 1024 0\nTCP 1 2\n", "6.1"), Ok(()));
        assert_eq!(kernel("protocol  size\nTCP 1 2\n", "4.9.1").expect_err("no XDP").exit_code(), 3);
    }

    #[test]
    fn the_ready_line_is_stable() {
        let mut ready = Ready {
            mode: "copy".into(),
            queues: 2,
            cores: "0-1".parse().expect("a list"),
            rules: 14,
            rules6: 9,
            lan: "eth0".into(),
            wan: "eth1".into(),
            control: Some("/run/xrouter/xrouter.sock".into()),
            metrics: Some("127.0.0.1:9630".parse().expect("an address")),
        };
        assert_eq!(
            ready.to_string(),
            "xrouter ready mode=copy queues=2 cores=0-1 rules=14 rules6=9 lan=eth0 wan=eth1 \
             control=/run/xrouter/xrouter.sock metrics=127.0.0.1:9630"
        );
        ready.control = Some("/run/my router".into());
        ready.metrics = None;
        assert!(ready.to_string().ends_with(" control=\"/run/my router\""), "{ready}");
    }

    #[test]
    fn the_journal_is_known_by_its_inode() {
        let stderr = Path::new("/proc/self/fd/2");
        let metadata = fs::metadata(stderr).expect("standard error");
        assert!(leads_to_journal(Some(&format!("{}:{}", metadata.dev(), metadata.ino())), stderr));
        assert!(!leads_to_journal(Some("1:1"), stderr));
        assert!(!leads_to_journal(Some("x"), stderr));
        assert!(!leads_to_journal(None, stderr));
    }

    #[test]
    fn a_failure_reads_as_an_error_once() {
        assert_eq!(Failure::Report("warning: x\nerror: y".into()).to_string(), "warning: x\nerror: y");
        assert_eq!(Failure::Running("x".into()).to_string(), "error: x");
    }
}
