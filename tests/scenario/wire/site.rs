//! Where the engine *wire* lives: [`Site`], a network and the daemon that runs on it, scenario after scenario.
//!
//! On veth each scenario gets links and a daemon of its own, so none sees what another left. Real NICs take seconds to start, so
//! there a daemon serves all scenarios that want the same of it (names and MTUs of its ports, one worker or several): between two of them its connections are
//! ended, its settings put back, and the rules reloaded (an empty table in between where a scenario reads counters, which rules
//! that stay would keep). What is carried over is the allowance for ICMP errors: [`Site::may_run`] says when it is whole again.
//!
//! The router's kernel is hushed: it hears and takes what is the host's, and answers ARP, but a policy rule keeps all else that it
//! would say from leaving. So what comes out is xrouter's. (xrouter follows no policy rules, and says so once.)
//!
//! Dropped, it leaves NICs and their namespaces as they were.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use xrouter::conntrack::ConnFilter;
use xrouter::control::api::{Client, Reply, Request};
use xrouter::control::reload::{Established, Wish};
use xrouter::control::stats::StatsReport;

use super::super::kernel::{addresses, mac_text, packet_socket, routes, run, write_setting};
use super::super::run::run_on;
use super::super::script::{Kind, Rules, Script, Step};
use super::super::topology::{Neighbour, Port, Target, Topology};
use super::Wire;
use crate::support::{Net, Place, Router};

/// How long something that is under way may take: the emulator of the zero-copy test is slow.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A scenario that took this much longer than it lets pass was slowed down.
const SLOW: Duration = Duration::from_millis(500);
/// Connections a daemon has room for, unless the scenario says otherwise.
const CONNECTIONS: u64 = 1024;
/// After this long a destination's allowance for ICMP errors is whole again: six of them, one a second.
const ALLOWANCE: Duration = Duration::from_secs(6);
/// Changes of routes are published within a fraction of this.
const PUBLISHED: Duration = Duration::from_millis(100);
const NO_RULES: &str = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
/// What the router's kernel would say. (By protocol: the kernel asks the rules about a route's gateway, too.)
const HUSH: [&str; 4] = [
    "-4 rule {} pref 1 iif lo ipproto 6 blackhole",
    "-4 rule {} pref 1 iif lo ipproto 1 blackhole",
    "-6 rule {} pref 1 iif lo ipproto 6 blackhole",
    "-6 rule {} pref 1 iif lo ipproto 58 blackhole",
];
/// Settings that a daemon takes (all of) at its start only.
const AT_START: [&str; 3] = ["acct", "max", "timestamp"];

/// See the module's head.
pub(crate) struct Site<'n> {
    net: &'n Net,
    kind: Links,
    /// Further options of every daemon.
    options: Vec<String>,
    /// How many workers a daemon may have.
    workers: usize,
    running: Option<Running>,
    /// When the router may last have said an ICMP error over IPv4.
    error_said: Option<Instant>,
}

/// What the router's ports are.
enum Links {
    /// A veth pair each, made for each scenario.
    Veth,
    /// NICs, with their names and MAC addresses of now and of before.
    Nics { names: [String; 2], before: [(String, String); 2] },
}

/// A daemon, and what is asked of it.
pub(super) struct Running {
    /// What it was started for: see [`Site::key`].
    key: String,
    pub(super) router: Router,
    client: Client,
    pub(super) sockets: Sockets,
    /// Its settings at its start.
    settings: BTreeMap<String, u64>,
    /// Per port, the numbers of markers that reach each of its queues; found out by the first scenario.
    pub(super) markers: Option<[Vec<u8>; 2]>,
}

/// Packet sockets at the far ends of the router's ports, and on the ports themselves. Closing one takes the kernel a while.
pub(super) struct Sockets {
    pub(super) ends: [OwnedFd; 2],
    pub(super) host: [OwnedFd; 2],
}

impl Sockets {
    fn open(net: &Net, names: &[String; 2]) -> Result<Sockets, String> {
        let end = |port: Port| inside(net, far_end(port), || packet_socket("eth0"));
        let own = |port: Port| inside(net, Place::Router, || packet_socket(&names[port.index()]));
        Ok(Sockets { ends: [end(Port::Lan)?, end(Port::Wan)?], host: [own(Port::Lan)?, own(Port::Wan)?] })
    }
}

impl Running {
    /// Asks; the first line of the answer.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Reply, String> {
        self.client.ask(request).map_err(|error| error.to_string())?;
        self.client.answer().map_err(|error| error.to_string())
    }

    /// The next line of an answer.
    pub(super) fn more(&mut self) -> Result<Reply, String> {
        self.client.answer().map_err(|error| error.to_string())
    }

    fn settings_now(&mut self) -> Result<BTreeMap<String, u64>, String> {
        match self.ask(&Request::Sysctl { set: BTreeMap::new() })? {
            Reply::Sysctl(values) => Ok(values),
            other => Err(format!("asked for its settings, it said {other:?}")),
        }
    }

    pub(super) fn stats(&mut self) -> Result<StatsReport, String> {
        match self.ask(&Request::Stats {})? {
            Reply::Stats(value) => serde_json::from_value(value).map_err(|error| format!("stats: {error}")),
            other => Err(format!("asked for stats, it said {other:?}")),
        }
    }
}

impl<'n> Site<'n> {
    /// On namespaces without links; each daemon with these further options.
    pub(crate) fn of_veth(net: &'n Net, workers: usize, options: &[&str]) -> Result<Site<'n>, String> {
        for place in [Place::Lan, Place::Wan] {
            inside(net, place, || write_setting("net/ipv6/conf/all/disable_ipv6", "1"))?;
        }
        Site::new(net, Links::Veth, workers, options)
    }

    /// On a network of NICs, `lan` and `wan` the router's.
    pub(crate) fn of_nics(net: &'n Net, workers: usize, options: &[&str]) -> Result<Site<'n>, String> {
        let mac = |name: &str| -> Result<String, String> {
            let text = net.must(Place::Router, &format!("cat /sys/class/net/{name}/address"));
            Ok(text.trim().to_owned())
        };
        let names = ["lan".to_owned(), "wan".to_owned()];
        let before = [("lan".to_owned(), mac("lan")?), ("wan".to_owned(), mac("wan")?)];
        for place in [Place::Lan, Place::Wan] {
            // Frames for hosts that are not there; each as it came.
            net.must(place, "ip link set eth0 promisc on");
            net.must(place, "ethtool -K eth0 gro off");
        }
        Site::new(net, Links::Nics { names, before }, workers, options)
    }

    fn new(net: &'n Net, kind: Links, workers: usize, options: &[&str]) -> Result<Site<'n>, String> {
        for rule in HUSH {
            net.must(Place::Router, &format!("ip {}", rule.replace("{}", "add")));
        }
        inside(net, Place::Router, || {
            write_setting("net/ipv4/conf/all/rp_filter", "0")?;
            write_setting("net/ipv4/conf/default/rp_filter", "0")
        })?;
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Ok(Site { net, kind, options, workers, running: None, error_said: None })
    }

    /// Whether the links are real NICs.
    pub(crate) fn has_nics(&self) -> bool {
        matches!(self.kind, Links::Nics { .. })
    }

    /// Whether a scenario would now be run by the daemon that runs already.
    pub(crate) fn serves(&self, script: &Script) -> bool {
        self.has_nics() && self.running.as_ref().is_some_and(|running| running.key == self.key(script))
    }

    /// What a daemon cannot change while it runs.
    fn key(&self, script: &Script) -> String {
        let Topology { names, mtu, .. } = &script.topology;
        format!("{names:?} {mtu:?} {:?} {}", at_start(script).collect::<Vec<_>>(), self.workers_for(script))
    }

    /// One worker where a scenario says so, and where connections are translated: several choose ports by which answers come to
    /// the right one.
    fn workers_for(&self, script: &Script) -> usize {
        let translates = |rules: &Option<Rules>| rules.as_ref().is_some_and(|rules| rules.text.contains("*nat"));
        let one = !script.for_workers || translates(&script.rules_v4) || translates(&script.rules_v6);
        if one { 1 } else { self.workers }
    }

    /// Whether a scenario finds the allowance for ICMP errors whole.
    pub(crate) fn may_run(&self, script: &Script) -> bool {
        !self.has_nics() || !hears_errors(script) || self.error_said.is_none_or(|then| then.elapsed() >= ALLOWANCE)
    }

    /// Runs a scenario; once more if it fails and took long, since its time is real: after two seconds UDP becomes ASSURED, and what
    /// `limit` rations is there again.
    pub(crate) fn run(&mut self, script: &Script) -> Result<(), String> {
        let waits: u64 = script.lines.iter().map(|line| line.wait_ns).sum();
        let (outcome, took) = self.once(script);
        match &outcome {
            Err(error) if took > Duration::from_nanos(waits) + SLOW => {
                eprintln!("{error}\n    again, because it took {:.1} s", took.as_secs_f32());
                self.once(script).0
            }
            _ => outcome,
        }
    }

    /// Runs it once; how long its lines took.
    fn once(&mut self, script: &Script) -> (Result<(), String>, Duration) {
        let (nics, mut took) = (self.has_nics(), Duration::ZERO);
        let ran = self.prepare(script).and_then(|()| {
            let running = self.running.as_mut().expect("just started");
            let mut wire = Wire::open(self.net, running, script, nics)?;
            let started = Instant::now();
            let ran = run_on(script, Kind::Wire, &mut wire);
            took = started.elapsed();
            ran
        });
        if hears_errors(script) {
            self.error_said = Some(Instant::now());
        }
        let said = self.running.as_ref().map(|running| running.router.said());
        let cleared = self.clear(script);
        let outcome = ran.and(cleared).map_err(|error| {
            let said = said.unwrap_or_default();
            let last: Vec<&str> = said.lines().rev().take(5).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            format!("{}: {error}\n    the daemon said last:\n      {}", script.file, last.join("\n      "))
        });
        (outcome, took)
    }

    fn prepare(&mut self, script: &Script) -> Result<(), String> {
        if !self.serves(script) {
            self.stop();
            self.lay(script)?;
            self.change_routes(script, "add")?;
            self.write_rules(script.rules_v4.as_ref(), script.rules_v6.as_ref())?;
            self.start(script)?;
        } else {
            self.forget(script)?;
            if self.change_routes(script, "add")? {
                self.published()?;
            }
            self.write_rules(script.rules_v4.as_ref(), script.rules_v6.as_ref())?;
            self.reload()?;
        }
        self.set(script)
    }

    /// Gives the ports the names, addresses and MTUs that the scenario wants.
    fn lay(&mut self, script: &Script) -> Result<(), String> {
        let topology = &script.topology;
        let mut text = String::new();
        for port in Port::ALL {
            let (name, mac, mtu) = (&topology.names[port.index()], mac_text(port.mac()), topology.mtu[port.index()]);
            let _ = match &self.kind {
                Links::Veth => writeln!(
                    text,
                    "link add {name} address {mac} mtu {mtu} type veth peer name eth0 mtu 3000 netns {}",
                    self.net.name(far_end(port))
                ),
                Links::Nics { names, .. } => {
                    let now = &names[port.index()];
                    writeln!(text, "link set {now} down\nlink set {now} name {name} address {mac} mtu {mtu}")
                }
            };
        }
        let mut addresses = addresses(script);
        let veth = matches!(self.kind, Links::Veth);
        if veth && topology.routes.iter().any(|route| route.target == Target::Elsewhere) {
            addresses.push_str("link add other type veth peer name other2\nlink set other2 up\nlink set other up\n");
        }
        inside(self.net, Place::Router, || {
            run("ip", &["-batch", "-"], &text)?;
            for name in &topology.names {
                run("ethtool", &["-K", name, "gro", "off"], "")?;
                write_setting(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
                // No link-local address but the scenarios'.
                write_setting(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1")?;
            }
            run("ip", &["-batch", "-"], &addresses)
        })?;
        for place in [Place::Lan, Place::Wan].into_iter().filter(|_| veth) {
            inside(self.net, place, || run("ip", &["link", "set", "eth0", "up"], ""))?;
        }
        if let Links::Nics { names, .. } = &mut self.kind {
            *names = topology.names.clone();
            self.carrier();
        }
        Ok(())
    }

    /// Waits until NICs that were taken down are up again.
    fn carrier(&self) {
        let Links::Nics { names, .. } = &self.kind else { return };
        for name in names {
            let file = format!("cat /sys/class/net/{name}/carrier");
            crate::support::eventually(PATIENCE, &format!("a carrier on {name}"), || {
                self.net.must(Place::Router, &file).trim() == "1"
            });
        }
    }

    /// Adds (`add`) or removes (`del`) what a scenario has beside the usual: routes, neighbours, reverse path filters. Whether
    /// there is any of it.
    fn change_routes(&self, script: &Script, verb: &str) -> Result<bool, String> {
        let topology = &script.topology;
        let filters = topology.rp_filter != [0; 2];
        if topology.routes.is_empty() && !filters {
            return Ok(false);
        }
        inside(self.net, Place::Router, || {
            for v4 in [false, true] {
                let text = routes(script, v4).replace("route add", &format!("route {verb}"));
                run("ip", &[if v4 { "-4" } else { "-6" }, "-batch", "-"], &text)?;
            }
            for (name, wanted) in topology.names.iter().zip(topology.rp_filter).filter(|_| filters) {
                let value = if verb == "add" { wanted } else { 0 };
                write_setting(&format!("net/ipv4/conf/{name}/rp_filter"), &value.to_string())?;
            }
            Ok(true)
        })
    }

    /// Waits until the daemon has taken over routes that were changed just now.
    fn published(&mut self) -> Result<(), String> {
        let running = self.running.as_mut().expect("somebody asks for it");
        let (mut seen, mut since) = (running.stats()?.routing_generation, Instant::now());
        while since.elapsed() < PUBLISHED {
            let now = running.stats()?.routing_generation;
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            thread::sleep(PUBLISHED / 20);
        }
        Ok(())
    }

    fn write_rules(&self, v4: Option<&Rules>, v6: Option<&Rules>) -> Result<(), String> {
        for (file, rules) in [("rules.v4", v4), ("rules.v6", v6)] {
            let text = rules.map_or(NO_RULES, |rules| &rules.text);
            fs::write(self.net.file(file), text).map_err(|error| format!("{file}: {error}"))?;
        }
        Ok(())
    }

    fn start(&mut self, script: &Script) -> Result<(), String> {
        let net = self.net;
        let text = |file: &str| net.file(file).display().to_string();
        let mut config = "[conntrack]\n".to_owned();
        let usual = ("max".to_owned(), CONNECTIONS.to_string());
        let with_max = at_start(script).any(|(key, _)| key == "max");
        for (key, value) in at_start(script).chain((!with_max).then_some(&usual)) {
            let _ = writeln!(config, "nf_conntrack_{key} = {value}");
        }
        fs::write(net.file("wire.toml"), config).map_err(|error| format!("wire.toml: {error}"))?;
        let [lan, wan] = script.topology.names.each_ref();
        let files = [text("control"), text("rules.v4"), text("rules.v6"), text("wire.toml"), text("state")];
        let [control, rules, rules6, config, state] = files.each_ref();
        let words = ["--lan", lan, "--wan", wan, "--control", control, "--rules", rules, "--rules6", rules6];
        let mut command = net.command(Place::Router, env!("CARGO_BIN_EXE_xrouter"));
        command.args(words).args(["--config", config, "--state", state, "--track", "always", "--poll", "adaptive"]);
        command.args(["--workers", &self.workers_for(script).to_string()]);
        let router = Router::start_command(net, command.args(&self.options));
        let client = Client::connect(&PathBuf::from(control)).map_err(|error| error.to_string())?;
        let sockets = Sockets::open(net, &script.topology.names)?;
        let mut running =
            Running { key: self.key(script), router, client, sockets, settings: BTreeMap::new(), markers: None };
        running.settings = running.settings_now()?;
        running.settings.retain(|name, _| name != xrouter::control::sysctl::COUNT);
        self.running = Some(running);
        Ok(())
    }

    /// Has the daemon forget all connections, and what rules have counted.
    fn forget(&mut self, script: &Script) -> Result<(), String> {
        if script.lines.iter().any(|line| matches!(line.step, Step::Counter { .. })) {
            self.write_rules(None, None)?;
            self.reload()?;
        }
        let running = self.running.as_mut().expect("somebody asks for it");
        for request in [Request::Delete { filter: ConnFilter::default(), quiet: true }, Request::Expect { flush: true }]
        {
            let mut reply = running.ask(&request)?;
            while !matches!(reply, Reply::End { .. }) {
                reply = running.more()?;
            }
        }
        Ok(())
    }

    fn reload(&mut self) -> Result<(), String> {
        let running = self.running.as_mut().expect("somebody asks for it");
        let wish = Wish { established: Some(Established::Flush), ..Wish::default() };
        match running.ask(&Request::Reload(wish))? {
            Reply::Reloaded(_) => Ok(()),
            other => Err(format!("reload: {other:?}")),
        }
    }

    /// Gives the daemon the scenario's settings, all others as they were at its start.
    fn set(&mut self, script: &Script) -> Result<(), String> {
        let running = self.running.as_mut().expect("somebody asks for it");
        let mut set = running.settings.clone();
        for (key, value) in &script.conntrack {
            let value = value.parse().map_err(|_| format!("conntrack {key}={value}: not a number"))?;
            set.insert(format!("nf_conntrack_{key}"), value);
        }
        let now = running.settings_now()?;
        let others = set.iter().filter(|(name, value)| now.get(*name) != Some(*value));
        let others = others.map(|(name, value)| (name.clone(), *value)).collect();
        match running.ask(&Request::Sysctl { set: others })? {
            Reply::Sysctl(now) => match set.iter().find(|(name, value)| now.get(*name) != Some(*value)) {
                None => Ok(()),
                Some((name, value)) => Err(format!("{name} was set to {value} and is {:?}", now.get(name))),
            },
            other => Err(format!("sysctl: {other:?}")),
        }
    }

    /// Takes away what only this scenario wanted.
    fn clear(&mut self, script: &Script) -> Result<(), String> {
        self.change_routes(script, "del")?;
        if self.has_nics() {
            return self.unlearn(script);
        }
        self.stop();
        let elsewhere = script.topology.routes.iter().any(|route| route.target == Target::Elsewhere);
        let names = script.topology.names.iter().map(String::as_str).chain(elsewhere.then_some("other"));
        let text: String = names.map(|name| format!("link del {name}\n")).collect();
        inside(self.net, Place::Router, || run("ip", &["-force", "-batch", "-"], &text)).map(|_| ())
    }

    /// Forgets what neighbours answered in a scenario in which some were to.
    fn unlearn(&self, script: &Script) -> Result<(), String> {
        let mut text = String::new();
        let learned = script.lines.iter().filter_map(|line| match &line.step {
            Step::Learn(neighbour) => Some(neighbour),
            _ => None,
        });
        for Neighbour { port, address, .. } in learned {
            let _ = writeln!(text, "neigh del {address} dev {}", script.topology.names[port.index()]);
        }
        if text.is_empty() {
            return Ok(());
        }
        for name in &script.topology.names {
            let _ = writeln!(text, "neigh flush dev {name}");
        }
        inside(self.net, Place::Router, || run("ip", &["-force", "-batch", "-"], &text)).map(|_| ())
    }

    /// Ends the daemon, which must end well.
    fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.router.stop();
        }
    }

    /// Gives NICs back their names and addresses.
    fn restore(&mut self) {
        let Links::Nics { names, before } = &self.kind else { return };
        let (mut text, mut addresses) = (String::new(), String::new());
        for (now, (name, mac)) in names.iter().zip(before) {
            let _ = writeln!(text, "link set {now} down\nlink set {now} name {name} address {mac}");
        }
        for (port, (name, _)) in Port::ALL.into_iter().zip(before) {
            let _ = writeln!(addresses, "link set {name} up\nneigh flush dev {name} nud all");
            let _ = writeln!(addresses, "addr del fe80::1/64 dev {name}");
            let _ = writeln!(addresses, "addr replace {}/24 dev {name}", port.address(true));
            let _ = writeln!(addresses, "addr replace {}/64 dev {name} nodad", port.address(false));
        }
        for rule in HUSH {
            self.net.run(Place::Router, &format!("ip {}", rule.replace("{}", "del")));
        }
        for place in [Place::Lan, Place::Wan] {
            self.net.run(place, "ip link set eth0 promisc off");
            self.net.run(place, "ethtool -K eth0 gro on");
        }
        // What is left undone shows in the next test.
        let _ = inside(self.net, Place::Router, || {
            run("ip", &["-force", "-batch", "-"], &text)?;
            for (name, _) in before {
                write_setting(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "0")?;
            }
            run("ip", &["-force", "-batch", "-"], &addresses)
        });
        if let Links::Nics { names, before } = &mut self.kind {
            *names = before.each_ref().map(|(name, _)| name.clone());
        }
        self.carrier();
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        // Only one that is told to end gives NICs back what it has changed.
        if !thread::panicking() {
            self.stop();
        }
        drop(self.running.take());
        self.restore();
    }
}

/// Its settings that a daemon takes at its start only.
pub(super) fn at_start(script: &Script) -> impl Iterator<Item = &(String, String)> {
    script.conntrack.iter().filter(|(key, _)| AT_START.contains(&key.as_str()))
}

/// Whether the router says ICMP errors in it, of which Linux rations those over IPv4.
fn hears_errors(script: &Script) -> bool {
    script.lines.iter().any(|line| matches!(&line.step, Step::Expect { mask, .. } if mask.id))
}

/// Where a port's other end is.
fn far_end(port: Port) -> Place {
    match port {
        Port::Lan => Place::Lan,
        Port::Wan => Place::Wan,
    }
}

/// Runs something on a thread that lives in one of the namespaces.
pub(super) fn inside<T: Send>(
    net: &Net,
    place: Place,
    work: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, String> {
    let file = format!("/run/netns/{}", net.name(place));
    let there = File::open(&file).map_err(|error| format!("{file}: {error}"))?;
    let there = &there;
    let on_thread = move || {
        setns(there, CloneFlags::CLONE_NEWNET).map_err(|error| format!("setns: {error}"))?;
        work()
    };
    thread::scope(|scope| match scope.spawn(on_thread).join() {
        Ok(answer) => answer,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
