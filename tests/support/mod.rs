//! What tests with real processes need: a network of three namespaces ([`Net`]), the router as a process ([`Router`]),
//! other programs in the background ([`Program`]).
//!
//! Names are unique (`xr`, process id, counter, one letter), and every value takes what it made away when it is dropped,
//! also when the test panics. What a killed run left is swept by the next one.

mod asked;

#[allow(unused_imports)] // each test uses what it needs
pub(crate) use asked::privileged;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Which namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The host inside: 10.1.0.2, fd01::2.
    Lan,
    /// The router: 10.1.0.1 and fd01::1 on `lan`, 10.2.0.1 and fd02::1 on `wan`.
    Router,
    /// The host outside: 10.2.0.2, fd02::2.
    Wan,
}

/// How the network is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Queues of every interface.
    pub(crate) queues: u32,
    /// Whether the hosts leave checksums unfinished, as veth does unless told otherwise.
    pub(crate) unfinished_checksums: bool,
    /// Whether the kernel forwards in the router's namespace too.
    pub(crate) kernel_forwards: bool,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { queues: 1, unfinished_checksums: true, kernel_forwards: false }
    }
}

/// Three namespaces and two links.
#[derive(Debug)]
pub(crate) struct Net {
    prefix: String,
    folder: PathBuf,
    /// One network at a time: the machine has few cores, and the tests measure.
    _turn: Option<MutexGuard<'static, ()>>,
}

static TURN: Mutex<()> = Mutex::new(());
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// With `XROUTER_TEST_WORKERS=N` every router has so many workers, and every interface twice as many queues.
fn workers() -> Option<u32> {
    std::env::var("XROUTER_TEST_WORKERS").ok().and_then(|workers| workers.parse().ok())
}

impl Net {
    /// Makes it, with veth pairs.
    pub(crate) fn new(shape: Shape) -> Net {
        let shape = Shape { queues: shape.queues.max(2 * workers().unwrap_or(0)), ..shape };
        let net = Net::without_links(true);
        for (place, port, number) in [(Place::Lan, "lan", 1), (Place::Wan, "wan", 2)] {
            let queues = format!("numtxqueues {0} numrxqueues {0}", shape.queues);
            let host = net.name(place);
            net.ip(Place::Router, &format!("link add {port} {queues} type veth peer name eth0 {queues} netns {host}"));
            net.link(place, port, number);
            if !shape.unfinished_checksums {
                net.must(place, "ethtool -K eth0 tx off");
            }
        }
        if shape.kernel_forwards {
            net.must(Place::Router, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        }
        net
    }

    /// Makes it of NICs of this machine: the router's `lan` and `wan`, and what the host inside and the one outside have, wired
    /// to them. They are taken from where the test runs.
    #[allow(dead_code)] // only where there are such NICs
    pub(crate) fn of_nics(router: [&str; 2], hosts: [&str; 2]) -> Net {
        let net = Net::without_links(true);
        for (at, place, port) in [(0, Place::Lan, "lan"), (1, Place::Wan, "wan")] {
            for (nic, owner, name) in [(router[at], Place::Router, port), (hosts[at], place, "eth0")] {
                must(Command::new("ip").args(["link", "set", nic, "netns", &net.name(owner), "name", name]));
            }
            net.link(place, port, at as u32 + 1);
        }
        net
    }

    /// Makes the namespaces alone, for a test that makes links of its own and does not measure: any number at a time.
    #[allow(dead_code)] // for few
    pub(crate) fn bare() -> Net {
        Net::without_links(false)
    }

    fn without_links(alone: bool) -> Net {
        let turn = alone.then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
        sweep();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("xr{}n{number}", std::process::id());
        let folder = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&folder).expect("a folder for the test's files");
        let net = Net { prefix, folder, _turn: turn };
        for place in [Place::Lan, Place::Router, Place::Wan] {
            must(Command::new("ip").args(["netns", "add", &net.name(place)]));
            net.ip(place, "link set lo up");
            // Without it IPv6 says nothing for two seconds after an interface is up.
            net.must(place, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        }
        net
    }

    /// Gives a link's two ends their addresses.
    fn link(&self, place: Place, port: &str, number: u32) {
        self.ip(Place::Router, &format!("address add 10.{number}.0.1/24 dev {port}"));
        self.ip(Place::Router, &format!("address add fd0{number}::1/64 dev {port} nodad"));
        self.ip(Place::Router, &format!("link set {port} up"));
        self.ip(place, &format!("address add 10.{number}.0.2/24 dev eth0"));
        self.ip(place, &format!("address add fd0{number}::2/64 dev eth0 nodad"));
        self.ip(place, "link set eth0 up");
        self.ip(place, &format!("route add default via 10.{number}.0.1"));
        self.ip(place, &format!("route add default via fd0{number}::1"));
    }

    /// A namespace's name.
    pub(crate) fn name(&self, place: Place) -> String {
        let letter = match place {
            Place::Lan => 'l',
            Place::Router => 'r',
            Place::Wan => 'w',
        };
        format!("{}{letter}", self.prefix)
    }

    /// A file of this test's own.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A program to run in a namespace.
    pub(crate) fn command(&self, place: Place, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(place), program]).stdin(Stdio::null());
        command
    }

    /// Runs words in a namespace (split at blanks).
    pub(crate) fn run(&self, place: Place, words: &str) -> Output {
        let mut words = words.split_whitespace();
        let mut command = self.command(place, words.next().expect("a program"));
        command.args(words).output().expect("ip netns exec starts")
    }

    /// The same, which must succeed; what it printed.
    pub(crate) fn must(&self, place: Place, words: &str) -> String {
        let output = self.run(place, words);
        assert!(output.status.success(), "{words}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// `ip` in a namespace.
    pub(crate) fn ip(&self, place: Place, words: &str) -> String {
        let mut command = Command::new("ip");
        must(command.args(["-n", &self.name(place)]).args(words.split_whitespace()))
    }

    /// Whether one ping in a few gets through.
    pub(crate) fn pings(&self, place: Place, destination: &str) -> bool {
        self.run(place, &format!("ping -c 3 -i 0.2 -W 1 {destination}")).status.success()
    }

    /// Starts a program in the background.
    pub(crate) fn start(&self, place: Place, words: &[&str]) -> Program {
        let mut command = self.command(place, words[0]);
        Program::start(command.args(&words[1..]))
    }

    /// Waits until something listens on a TCP port of a namespace.
    pub(crate) fn wait_for_listener(&self, place: Place, port: u16) {
        let wanted = format!(":{port} ");
        eventually(Duration::from_secs(10), &format!("a listener on port {port}"), || {
            self.must(place, "ss -Hltn").contains(&wanted)
        });
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in [Place::Lan, Place::Router, Place::Wan] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(place)]).output();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes namespaces of test processes that are no more.
fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((pid, _)) = name.strip_prefix("xr").and_then(|rest| rest.split_once('n')) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
            let _ = fs::remove_dir_all(std::env::temp_dir().join(name.trim_end_matches(['l', 'r', 'w'])));
        }
    }
}

/// A program in the background, ended when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    /// What it has written to standard output and standard error so far.
    said: Arc<Mutex<String>>,
}

impl Program {
    /// Starts it and collects what it says.
    pub(crate) fn start(command: &mut Command) -> Program {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let stderr: OwnedFd = writer.try_clone().expect("a second end").into();
        command.stdin(Stdio::null()).stdout(OwnedFd::from(writer)).stderr(stderr);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // The writing ends now live in the child only, once the command lets go of them.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                heard.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Program { child, said }
    }

    /// What it has said.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).expect("a process id"));
        kill(pid, signal).expect("a child of ours");
    }

    /// Where in the kernel its threads are.
    fn whereabouts(&self) -> String {
        let mut text = String::from("its threads:");
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.child.id())) else { return text };
        for task in tasks.flatten().map(|task| task.path()) {
            let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default().trim().to_owned();
            text.push_str(&format!("\n  {}: {}\n{}", read("comm"), read("wchan"), read("stack")));
        }
        text
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self, limit: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                // What it said last may still be on its way through the pipe.
                thread::sleep(Duration::from_millis(20));
                return status;
            }
            if started.elapsed() >= limit {
                panic!("it did not end within {limit:?}; {}\nit said:\n{}", self.whereabouts(), self.said());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// xrouter in the router's namespace.
#[derive(Debug)]
pub(crate) struct Router {
    program: Program,
    control: PathBuf,
}

/// How long a start may take: a busy socket is retried, and some NICs are reset.
const START: Duration = Duration::from_secs(40);

impl Router {
    /// The command line of a router on `lan` and `wan`, with these further arguments.
    pub(crate) fn command(net: &Net, arguments: &[&str]) -> Command {
        let mut command = net.command(Place::Router, env!("CARGO_BIN_EXE_xrouter"));
        command.args(["--lan", "lan", "--wan", "wan", "--control"]).arg(net.file("control")).args(arguments);
        if let Some(workers) = workers().filter(|_| !arguments.contains(&"--workers")) {
            command.args(["--workers", &workers.to_string()]);
        }
        command
    }

    /// Starts it and waits until packets flow.
    pub(crate) fn start(net: &Net, arguments: &[&str]) -> Router {
        Router::start_command(net, &mut Router::command(net, arguments))
    }

    /// The same from a command line of one's own.
    pub(crate) fn start_command(net: &Net, command: &mut Command) -> Router {
        let mut program = Program::start(command);
        let started = Instant::now();
        while !program.said().lines().any(|line| line.starts_with("xrouter ready")) {
            assert!(program.runs(), "the router ended instead of starting; it said:\n{}", program.said());
            assert!(
                started.elapsed() < START,
                "the router was not ready within {START:?}; it said:\n{}",
                program.said()
            );
            thread::sleep(Duration::from_millis(10));
        }
        Router { program, control: net.file("control") }
    }

    /// Everything it has said.
    pub(crate) fn said(&self) -> String {
        self.program.said()
    }

    /// The process.
    pub(crate) fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Ends it as an operator does; it must end well.
    pub(crate) fn stop(self) {
        self.stop_by(Signal::SIGTERM);
    }

    /// Ends it by this signal; it must end well.
    pub(crate) fn stop_by(mut self, signal: Signal) {
        assert!(self.program.runs(), "the router had ended by itself; it said:\n{}", self.said());
        self.program.signal(signal);
        let status = self.program.end(Duration::from_secs(10));
        assert_eq!(status.code(), Some(0), "{status} (signal {:?}); it said:\n{}", status.signal(), self.said());
    }

    /// One of xrouter's verbs, asking it over its control socket.
    pub(crate) fn verb(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xrouter"));
        command.args(words).arg("--control").arg(&self.control);
        command
    }

    /// The same, which must succeed; what it printed.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        must(&mut self.verb(words))
    }
}

/// Runs a command that must succeed; what it printed.
pub(crate) fn must(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until something is so.
pub(crate) fn eventually(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// SHA-256 of a file, in hex.
pub(crate) fn sha256(file: &Path) -> String {
    let line = must(Command::new("sha256sum").arg(file));
    line.split_whitespace().next().expect("a sum").to_owned()
}

/// A file of random bytes.
pub(crate) fn random_file(file: &Path, size: u64) {
    let mut random = fs::File::open("/dev/urandom").expect("/dev/urandom").take(size);
    let mut into = fs::File::create(file).expect("a file in the temporary folder");
    std::io::copy(&mut random, &mut into).expect("room for it");
}
