//! A run of the router, from checked configuration to the interfaces given back: [`run`].
//!
//! The order is [`super::startup`]'s: whatever an operator can get wrong is told before anything is changed. Then this
//! thread is the control thread: it follows the kernel's routes and neighbours, keeps the XDP program's addresses up to
//! date, writes LOG lines, answers the control socket and the metrics page, reads the rules again when SIGHUP or a client
//! says so, and waits for a signal to end, for a worker that had to stop or has stalled, or for an interface that disappears. The
//! workers run on cores of their own ([`crew`]).

use std::io::IsTerminal;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rtrb::Consumer;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::api::ControlSocket;
use super::backend::{Facts, Published, Workers};
use super::config::{self, Config};
use super::crew;
use super::metrics;
use super::netlink::{self, Netlink};
use super::nflog::NflogWriter;
use super::nic;
use super::reload;
use super::sources::Sources;
use super::startup::{self, Failure, Ready};
use super::sysctl;
use super::table_full;
use crate::datapath::{Resolve, WallClock};
use crate::device::PortId;
use crate::route::Neighbour;
use crate::rules::{self, LogRecord, NflogRecord, Registry, Ruleset};
use crate::snapshot::Routing;
use crate::steering::Steering as Homes;
use crate::worker::{self, Handle, Line};
use crate::xdp::{BusyPoll, Edge, EdgeConfig, EdgeError, Mode};

/// Neighbour requests on their way to the kernel.
const REQUESTS: usize = 1024;
/// How often the kernel is told which neighbours are in use.
const USE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the worker's calendar is set by the system's clock, which may be turned.
const WALL_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether the workers move.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How often LOG records are looked for.
const LOG_INTERVAL: Duration = Duration::from_millis(20);

/// Runs with these rules (IPv4, IPv6), which `sources` gave as they gave `config`, until a signal ends it. The configuration has
/// been checked against the machine.
///
/// # Errors
/// Why it could not start, or had to stop.
pub fn run(sources: Sources, config: &Config, rulesets: [Ruleset; 2]) -> Result<(), Failure> {
    let cores = crew::choose_cores(config, &rulesets)?;
    crew::keep_off(&cores);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Running(format!("cannot make the control thread's runtime: {error}")))?;
    runtime.block_on(serve(sources, config, &cores, rulesets.map(Arc::new)))
}

impl From<EdgeError> for Failure {
    fn from(error: EdgeError) -> Failure {
        match error.is_machine_limit() {
            true => Failure::Machine(error.to_string()),
            false => Failure::Running(error.to_string()),
        }
    }
}

impl From<netlink::Error> for Failure {
    fn from(error: netlink::Error) -> Failure {
        match error {
            netlink::Error::NoInterface { .. } | netlink::Error::SameInterface { .. } => {
                Failure::Usage(error.to_string())
            }
            netlink::Error::NotEthernet { .. } => Failure::Machine(error.to_string()),
            netlink::Error::PortGone { .. } => {
                Failure::Running(format!("{error}. When it is back, start xrouter again"))
            }
            other => Failure::Running(other.to_string()),
        }
    }
}

/// Tells the kernel that the ports' neighbours are in use. The kernel itself sees no packet sent to them, would let them
/// go stale and never notice that one died; told, it confirms a stale one as it does for its own traffic.
/// Half of the channel is left to questions; `round` is where the last call stopped, and the next one goes on.
fn keep_neighbours(routing: &Routing, ask: &mpsc::Sender<netlink::Request>, round: &mut usize) {
    let reachable = routing.neighbours().filter(|(_, _, it)| matches!(it, Neighbour::Reachable(_)));
    for (port, next_hop, _) in reachable.skip(*round) {
        if ask.capacity() < REQUESTS / 2 || ask.try_send(netlink::Request::Use(port, next_hop)).is_err() {
            return;
        }
        *round += 1;
    }
    *round = 0;
}

async fn serve(sources: Sources, config: &Config, cores: &[usize], rulesets: [Arc<Ruleset>; 2]) -> Result<(), Failure> {
    let mut settings = sysctl::at_start(config.sysctl_from_kernel, &config.conntrack)?;
    if !settings.acct && rulesets.iter().any(|ruleset| ruleset.wants_accounting()) {
        // As Linux does when such a rule is loaded.
        settings.acct = true;
        tracing::info!("nf_conntrack_acct = 1: a rule asks with `-m connbytes` what connections have carried");
    }
    let control = ControlSocket::bind(&config.control)?;
    let mut nflog = match &config.nflog {
        Some(path) => Some(NflogWriter::open(path)?),
        None => None,
    };
    let listener = match config.metrics {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    let mut signals = Signals::listen()?;
    let netlink = Netlink::open([config.lan.as_str(), config.wan.as_str()])?;
    let routing = netlink.routing();
    warn_of_kernel_forwarding(&routing.load());
    let mut cards = nic::take(config, cores)?;
    let mut edge = Edge::open(&edge_config(config, cores.len()))?;
    let spreading = cards.attached(&edge)?.map(|rss| rss.hash());
    let mut mirror = Mirror::default();
    mirror.follow(&edge, &routing.load())?;
    let steering = edge.steering()?;
    steering.expect_translations(rulesets[0].translates(), rulesets[1].translates());
    for line in edge.report().refused.iter().chain(&edge.report().notes) {
        tracing::info!("{line}");
    }
    for line in &edge.report().warnings {
        tracing::warn!("{line}");
    }

    let mut registry = Registry::new(startup::secret()?);
    let policy = Arc::new(ArcSwap::from_pointee(reload::compile(&rulesets, config.track, &mut registry)));
    if let Some(told) = reload::untracked(&policy.load()) {
        tracing::info!("{told}");
    }
    let secret = startup::secret()?;
    let homes = Homes::from_nics(cores.len() as u16, secret, &spreading);
    if cores.len() > 1 {
        tracing::info!("{homes}");
    }
    let mut built = crew::build(&settings, homes, &mut edge, &policy, &routing)?;
    let (lines, mut letters) = Letters::of(std::mem::take(&mut built.handles));
    let (walls, mut verification) = (std::mem::take(&mut built.walls), built.verification.take());
    let facts = facts(config, cores, &edge);
    let start = facts.start;
    set_walls(&walls, start);
    let ready = ready(config, cores, &edge, &rulesets);
    let (routing_too, config_too) = (routing.clone(), config.clone());
    let steering = Some(steering);
    let published =
        Published { policy, routing: routing_too, sources, config: config_too, rulesets, registry, steering };
    let workers = Workers::new(lines, facts, settings, published);
    let mut crew = built.start(cores, poll(config), start)?;
    ready.announce();

    let (tell, mut events) = mpsc::unbounded_channel();
    let (ask, asked) = mpsc::channel(REQUESTS);
    let follow = netlink.run(asked, tell);
    tokio::pin!(follow);
    let log_ports = [config.lan.as_str(), config.wan.as_str()];
    let mut log_tick = tokio::time::interval(LOG_INTERVAL);
    let mut wall_tick = tokio::time::interval(WALL_INTERVAL);
    let mut watch_tick = tokio::time::interval(WATCH_INTERVAL);
    watch_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut use_tick = tokio::time::interval(USE_INTERVAL);
    let mut round = 0;
    let serve_metrics = async {
        match listener {
            Some(listener) => metrics::serve(listener, &workers).await,
            None => std::future::pending().await,
        }
    };
    let serve_control = control.serve(&workers);
    let watch_table = table_full::watch(&workers);
    let serve_events = workers.serve_events();
    let serve_reloads = workers.serve_reloads();
    tokio::pin!(serve_metrics, serve_control, serve_events, serve_reloads, watch_table);
    let mut log = Log::default();
    let outcome = loop {
        tokio::select! {
            heard = signals.next() => match heard {
                Heard::End(name) => {
                    tracing::info!("{name}: giving the interfaces back");
                    break Ok(());
                }
                Heard::Reload => workers.want_reload(),
            },
            // Also when the channel closes without a word: then the worker panicked.
            // Why is said when all have ended, and the program is off the interfaces.
            _ = crew.ended.recv() => break Ok(()),
            ended = &mut follow => break ended.map_err(Failure::from),
            Some(event) = events.recv() => {
                if let Err(failure) = mirror.hear(&event, &edge, &routing.load()) {
                    break Err(failure);
                }
            }
            Some(wanted) = letters.wanted() => {
                // A full channel is no loss: whoever still waits asks again within a second.
                let _ = ask.try_send(netlink::Request::Resolve(wanted.port, wanted.next_hop));
            }
            _ = watch_tick.tick() => {
                if let Some(verification) = &mut verification {
                    verification.look();
                }
                if let Err(failure) = crew.look() {
                    break Err(failure);
                }
            }
            _ = use_tick.tick() => keep_neighbours(&routing.load(), &ask, &mut round),
            _ = wall_tick.tick() => set_walls(&walls, start),
            _ = log_tick.tick() => {
                letters.write(&mut log, log_ports, nflog.as_mut(), start);
            }
            () = &mut serve_metrics => {}
            () = &mut serve_control => {}
            () = &mut watch_table => {}
            () = &mut serve_events => {}
            () = &mut serve_reloads => {}
        }
    };
    startup::announce_stopping();
    // The program first: from here on packets are the kernel's. Then the sockets, with the worker that owns them. Then the cards.
    cards.detaching();
    edge.detach();
    let ended = crew.finish();
    drop(edge);
    cards.give_back();
    letters.write(&mut log, log_ports, nflog.as_mut(), start);
    outcome.and(ended)
}

/// Takes the NFLOG copies that are there, and writes them where they are wanted.
fn write_copies(copies: &mut Consumer<NflogRecord>, mut writer: Option<&mut NflogWriter>, start: std::time::Instant) {
    if copies.is_empty() {
        return;
    }
    let zero = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(start.elapsed());
    // No more than there are now: rules may copy as fast as this writes.
    for _ in 0..copies.slots() {
        let Ok(record) = copies.pop() else { break };
        if let Some(writer) = &mut writer {
            writer.write(&record, zero + Duration::from_nanos(record.when.as_ns()));
        }
    }
    if let Some(writer) = writer {
        writer.flush();
    }
}

/// What the workers have to say.
struct Letters {
    logs: Vec<Consumer<LogRecord>>,
    copies: Vec<Consumer<NflogRecord>>,
    resolve: Vec<mpsc::Receiver<Resolve>>,
}

impl Letters {
    fn of(handles: Vec<Handle>) -> (Vec<Line>, Letters) {
        let mut lines = Vec::new();
        let mut letters = Letters { logs: Vec::new(), copies: Vec::new(), resolve: Vec::new() };
        for Handle { line, logs, copies, resolve } in handles {
            lines.push(line);
            letters.logs.push(logs);
            letters.copies.push(copies);
            letters.resolve.push(resolve);
        }
        (lines, letters)
    }

    /// The next neighbour that some worker wants.
    async fn wanted(&mut self) -> Option<Resolve> {
        std::future::poll_fn(|context| {
            for resolve in &mut self.resolve {
                if let Poll::Ready(Some(wanted)) = resolve.poll_recv(context) {
                    return Poll::Ready(Some(wanted));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn write(
        &mut self,
        log: &mut Log,
        ports: [&str; PortId::COUNT],
        mut nflog: Option<&mut NflogWriter>,
        start: std::time::Instant,
    ) {
        log.write(&mut self.logs, ports);
        for copies in &mut self.copies {
            write_copies(copies, nflog.as_deref_mut(), start);
        }
    }
}

/// Tells the workers what time it is by the calendar.
fn set_walls(walls: &[Arc<WallClock>], start: std::time::Instant) {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    for wall in walls {
        wall.set(unix as i64, crate::arch::kernel_time_zone(), worker::since(start));
    }
}

fn edge_config(config: &Config, workers: usize) -> EdgeConfig {
    EdgeConfig {
        workers,
        mode: match config.mode {
            config::Mode::Auto => Mode::Auto,
            config::Mode::ZeroCopy => Mode::ZeroCopy,
            config::Mode::Copy => Mode::Copy,
            config::Mode::Generic => Mode::Generic,
        },
        // A worker that sleeps leaves the driver to its interrupts.
        busy_poll: (config.poll == config::Poll::Busy).then(BusyPoll::default),
        ..EdgeConfig::new(config.lan.as_str(), config.wan.as_str())
    }
}

const fn poll(config: &Config) -> worker::Poll {
    match config.poll {
        config::Poll::Busy => worker::Poll::Busy,
        config::Poll::Adaptive => worker::Poll::Adaptive,
    }
}

fn facts(config: &Config, cores: &[usize], edge: &Edge) -> Facts {
    Facts {
        start: std::time::Instant::now(),
        mode: edge.report().mode.to_string(),
        poll: config.poll.name().to_owned(),
        cores: cores.iter().map(|&core| core as u32).collect(),
    }
}

fn ready(config: &Config, cores: &[usize], edge: &Edge, rulesets: &[Arc<Ruleset>; 2]) -> Ready {
    let list: Vec<String> = cores.iter().map(ToString::to_string).collect();
    Ready {
        mode: edge.report().mode.to_string(),
        queues: edge.report().ports.iter().map(|port| port.queues as usize).max().unwrap_or(0),
        cores: list.join(",").parse().expect("cores' numbers are a list"),
        rules: rulesets[0].rule_count(),
        rules6: rulesets[1].rule_count(),
        lan: config.lan.to_string(),
        wan: config.wan.to_string(),
        control: Some(config.control.clone()),
        metrics: config.metrics,
    }
}

/// What is passed to the host could leave again around the rules, if the host forwards.
fn warn_of_kernel_forwarding(routing: &Routing) {
    let on = routing.kernel_forwarding;
    for (is_on, name, family) in
        [(on.v4, "net.ipv4.ip_forward", "IPv4"), (on.v6, "net.ipv6.conf.all.forwarding", "IPv6")]
    {
        if is_on {
            tracing::warn!(
                "the kernel forwards {family} as well ({name}=1): frames that are the host's business (VLAN tags, other \
                 interfaces) can leave again around these rules. If nothing else needs it: sysctl -w {name}=0"
            );
        }
    }
}

/// What the XDP program was last told of the host's addresses.
#[derive(Default)]
struct Mirror {
    addresses: Vec<IpAddr>,
}

impl Mirror {
    /// Brings the XDP program up to date.
    fn follow(&mut self, edge: &Edge, routing: &Routing) -> Result<(), Failure> {
        let mut addresses: Vec<IpAddr> = routing.addresses.iter().map(|address| address.addr.to_ip()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if self.addresses != addresses {
            edge.set_local_addresses(&addresses)?;
            self.addresses = addresses;
        }
        for port in PortId::ALL {
            let it = routing.port(port);
            edge.set_mac(port, it.mac.0);
            edge.set_addressless(port, !it.addresses.iter().any(|address| address.addr.is_v4()));
        }
        Ok(())
    }

    /// Something changed.
    fn hear(&mut self, event: &netlink::Event, edge: &Edge, routing: &Routing) -> Result<(), Failure> {
        // More addresses than the program has room for is an error at start; now it must not end a running router. An
        // address it does not know still reaches the worker, which hands the packet back to the host.
        if let Err(failure) = self.follow(edge, routing) {
            tracing::error!("the XDP program keeps the addresses it has: {failure}");
        }
        match event {
            netlink::Event::PortUp(port) => {
                tracing::info!("{}: link is up", routing.port(*port).name);
                Ok(())
            }
            netlink::Event::PortDown(port) => {
                tracing::warn!("{}: link is down; forwarding goes on when it is back", routing.port(*port).name);
                Ok(())
            }
            netlink::Event::Warning(text) => {
                tracing::warn!("{text}");
                Ok(())
            }
            netlink::Event::PortMtu(port) => {
                let (it, longest) = (routing.port(*port), edge.report().longest_mtu());
                if u32::from(it.mtu) > longest {
                    tracing::warn!(
                        "{}: the MTU is {} now: packets over {longest} bytes are dropped when received, until a restart",
                        it.name,
                        it.mtu
                    );
                }
                Ok(())
            }
            // `follow` above was all there is to do, or `Netlink::run` ends with an error.
            netlink::Event::PortGone(_) | netlink::Event::PortMac(_) | netlink::Event::Addresses => Ok(()),
        }
    }
}

/// LOG lines to the journal or standard error, at most [`Log::PER_TICK`] each [`LOG_INTERVAL`].
#[derive(Default)]
struct Log {
    suppressed: u64,
}

impl Log {
    const PER_TICK: usize = 50;

    fn write(&mut self, workers: &mut [Consumer<LogRecord>], ports: [&str; PortId::COUNT]) {
        let mut left = Log::PER_TICK;
        let before = self.suppressed;
        for records in workers {
            while let Ok(record) = records.pop() {
                match left.checked_sub(1) {
                    Some(less) => {
                        left = less;
                        startup::log_packet(record.level, &rules::log_line(&record, &ports));
                    }
                    None => self.suppressed += 1,
                }
            }
        }
        if before == self.suppressed && before > 0 {
            tracing::warn!("LOG: {} lines suppressed", std::mem::take(&mut self.suppressed));
        }
    }
}

/// What a signal wants.
enum Heard {
    /// The end; the signal's name.
    End(&'static str),
    /// Rules read again.
    Reload,
}

/// SIGTERM, SIGINT, and SIGHUP. The last means a reload, but the end when it comes because the terminal is gone.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    on_terminal: bool,
}

impl Signals {
    fn listen() -> Result<Signals, Failure> {
        let failed = |error| Failure::Running(format!("cannot listen for signals: {error}"));
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            hangup: signal(SignalKind::hangup()).map_err(failed)?,
            on_terminal: std::io::stdin().is_terminal(),
        })
    }

    /// The next one.
    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::End("SIGTERM"),
            _ = self.interrupt.recv() => Heard::End("SIGINT"),
            // One that hung up is no terminal any more (isatty fails with EIO).
            _ = self.hangup.recv() => match self.on_terminal && !std::io::stdin().is_terminal() {
                true => Heard::End("SIGHUP, and the terminal is gone"),
                false => Heard::Reload,
            },
        }
    }
}
