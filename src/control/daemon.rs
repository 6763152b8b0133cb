//! A run of the router, from checked configuration to the interfaces given back: [`run`].
//!
//! The order is [`super::startup`]'s: whatever an operator can get wrong is told before anything is changed. Then this
//! thread is the control thread: it follows the kernel's routes and neighbours, keeps the XDP program's addresses up to
//! date, writes LOG lines, answers the control socket and the metrics page, reads the rules again when SIGHUP or a client
//! says so, and waits for a signal to end, for a worker that had to stop, or for an interface that disappears. The worker
//! runs on its own pinned core.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rtrb::Consumer;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::api::ControlSocket;
use super::backend::{Facts, Published, Workers};
use super::config::{self, Config};
use super::metrics;
use super::netlink::{self, Netlink};
use super::nflog::NflogWriter;
use super::reload;
use super::sources::Sources;
use super::startup::{self, Failure, Ready};
use super::sysctl;
use super::table_full;
use crate::conntrack::Settings;
use crate::datapath::{Shard, WallClock};
use crate::device::PortId;
use crate::route::Neighbour;
use crate::rules::{self, LogRecord, NflogRecord, Registry, Ruleset};
use crate::snapshot::{Policy, Routing};
use crate::worker::{self, Handle, Parts, Poll, PortLost, Worker, mailbox};
use crate::xdp::{BusyPoll, Edge, EdgeConfig, EdgeError, Mode, Punter, XdpQueue};

/// Neighbour requests on their way to the kernel.
const REQUESTS: usize = 1024;
/// How often the kernel is told which neighbours are in use.
const USE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the worker's calendar is set by the system's clock, which may be turned.
const WALL_INTERVAL: Duration = Duration::from_secs(1);
/// How often LOG records are looked for.
const LOG_INTERVAL: Duration = Duration::from_millis(20);

/// Runs with these rules (IPv4, IPv6), which `sources` gave as they gave `config`, until a signal ends it. The configuration has
/// been checked against the machine.
///
/// # Errors
/// Why it could not start, or had to stop.
pub fn run(sources: Sources, config: &Config, rulesets: [Ruleset; 2]) -> Result<(), Failure> {
    let core = choose_core(config)?;
    keep_off(core);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Running(format!("cannot make the control thread's runtime: {error}")))?;
    runtime.block_on(serve(sources, config, core, rulesets.map(Arc::new)))
}

/// The worker's core: the first of `--cores`, else the last this process may run on (the first ones serve most interrupts).
fn choose_core(config: &Config) -> Result<usize, Failure> {
    let several = |what: String| {
        Failure::Usage(format!(
            "{what}: this version runs one worker, which serves all queues; packets of one connection may arrive on \
             different queues, and workers cannot hand them over to each other yet. Give one"
        ))
    };
    match &config.workers {
        config::Workers::Cores(list) if list.cpus().len() > 1 => return Err(several(format!("--cores {list}"))),
        config::Workers::Count(count) if *count > 1 => return Err(several(format!("--workers {count}"))),
        config::Workers::Cores(list) => return Ok(list.cpus()[0]),
        config::Workers::Count(_) | config::Workers::Auto => {}
    }
    let allowed = sched_getaffinity(Pid::this())
        .map_err(|error| Failure::Running(format!("cannot read this process's CPU affinity: {error}")))?;
    let last = (0..CpuSet::count()).rev().find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    last.ok_or_else(|| Failure::Running("this process may run on no CPU".to_owned()))
}

/// Keeps this thread, and those it will start for reading and judging rules, off the worker's core, where there is another.
fn keep_off(core: usize) {
    let Ok(mut allowed) = sched_getaffinity(Pid::this()) else { return };
    let others = (0..CpuSet::count()).filter(|&cpu| cpu != core && allowed.is_set(cpu).unwrap_or(false)).count();
    if others == 0 {
        return;
    }
    if let Err(error) = allowed.unset(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &allowed)) {
        tracing::warn!("cannot keep the control thread off the worker's core {core}: {error}");
    }
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

/// The workers' side of a run: stops the thread and waits for it, however the run ends.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), PortLost>>>,
    ended: mpsc::Receiver<()>,
}

impl Running {
    fn start(
        mut worker: Worker<XdpQueue, Punter>,
        core: usize,
        poll: Poll,
        start: std::time::Instant,
    ) -> Result<Running, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, ended) = mpsc::channel(1);
        let until = stop.clone();
        let body = move || {
            pin(core);
            let outcome = worker.run(poll, start, &until);
            // The control thread may be gone already: then nobody needs to know.
            let _ = tell.blocking_send(());
            outcome
        };
        let thread = std::thread::Builder::new()
            .name(format!("worker-{core}"))
            .spawn(body)
            .map_err(|error| Failure::Running(format!("cannot start the worker's thread: {error}")))?;
        Ok(Running { stop, thread: Some(thread), ended })
    }

    /// Ends the worker; what it died of, if it did.
    fn finish(&mut self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(lost))) => Err(Failure::Running(lost.to_string())),
            Some(Err(_)) => Err(Failure::Running("the worker panicked; see the message above".to_owned())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(failure) = self.finish() {
            tracing::error!("{failure}");
        }
    }
}

/// Pins the calling thread. A core that went offline since it was checked leaves the thread where it is.
fn pin(core: usize) {
    let mut set = CpuSet::new();
    let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        tracing::warn!("cannot pin the worker to core {core}: {error}; it runs on any");
    }
}

async fn serve(sources: Sources, config: &Config, core: usize, rulesets: [Arc<Ruleset>; 2]) -> Result<(), Failure> {
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
    let mut edge = Edge::open(&edge_config(config))?;
    let mut mirror = Mirror::default();
    mirror.follow(&edge, &routing.load())?;
    let steering = edge.steering()?;
    steering.expect_translations(rulesets[0].translates(), rulesets[1].translates());
    for line in edge.report().refused.iter().chain(&edge.report().notes) {
        tracing::info!("{line}");
    }

    let mut registry = Registry::new(startup::secret()?);
    let policy = Arc::new(ArcSwap::from_pointee(reload::compile(&rulesets, config.track, &mut registry)));
    if let Some(told) = reload::untracked(&policy.load()) {
        tracing::info!("{told}");
    }
    let (worker, handle) = build_worker(settings.clone(), &mut edge, policy.clone(), routing.clone())?;
    let Handle { line, mut logs, mut copies, mut resolve } = handle;
    let facts = facts(config, core, &edge);
    let start = facts.start;
    let wall = worker.shard().wall.clone();
    set_wall(&wall, start);
    let ready = ready(config, core, &edge, &rulesets);
    let (routing_too, config_too) = (routing.clone(), config.clone());
    let steering = Some(steering);
    let published =
        Published { policy, routing: routing_too, sources, config: config_too, rulesets, registry, steering };
    let workers = Workers::new(vec![line], facts, settings, published);
    let mut running = Running::start(worker, core, poll(config), start)?;
    ready.announce();

    let (tell, mut events) = mpsc::unbounded_channel();
    let (ask, asked) = mpsc::channel(REQUESTS);
    let follow = netlink.run(asked, tell);
    tokio::pin!(follow);
    let log_ports = [config.lan.as_str(), config.wan.as_str()];
    let mut log_tick = tokio::time::interval(LOG_INTERVAL);
    let mut wall_tick = tokio::time::interval(WALL_INTERVAL);
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
            _ = running.ended.recv() => break running.finish(),
            ended = &mut follow => break ended.map_err(Failure::from).and_then(|()| running.finish()),
            Some(event) = events.recv() => {
                if let Err(failure) = mirror.hear(&event, &edge, &routing.load()) {
                    break Err(failure);
                }
            }
            Some(wanted) = resolve.recv() => {
                // A full channel is no loss: whoever still waits asks again within a second.
                let _ = ask.try_send(netlink::Request::Resolve(wanted.port, wanted.next_hop));
            }
            _ = use_tick.tick() => keep_neighbours(&routing.load(), &ask, &mut round),
            _ = wall_tick.tick() => set_wall(&wall, start),
            _ = log_tick.tick() => {
                log.write(&mut logs, log_ports);
                write_copies(&mut copies, nflog.as_mut(), start);
            }
            () = &mut serve_metrics => {}
            () = &mut serve_control => {}
            () = &mut watch_table => {}
            () = &mut serve_events => {}
            () = &mut serve_reloads => {}
        }
    };
    startup::announce_stopping();
    // The program first: from here on packets are the kernel's. Then the sockets, with the worker that owns them.
    edge.detach();
    let ended = running.finish();
    log.write(&mut logs, log_ports);
    write_copies(&mut copies, nflog.as_mut(), start);
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

/// Tells the worker what time it is by the calendar.
fn set_wall(wall: &WallClock, start: std::time::Instant) {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    wall.set(unix as i64, crate::arch::kernel_time_zone(), worker::since(start));
}

fn edge_config(config: &Config) -> EdgeConfig {
    EdgeConfig {
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

const fn poll(config: &Config) -> Poll {
    match config.poll {
        config::Poll::Busy => Poll::Busy,
        config::Poll::Adaptive => Poll::Adaptive,
    }
}

fn build_worker(
    settings: Settings,
    edge: &mut Edge,
    policy: Arc<ArcSwap<Policy>>,
    routing: Arc<ArcSwap<Routing>>,
) -> Result<(Worker<XdpQueue, Punter>, Handle), Failure> {
    let queues = edge.take_worker(0).expect("the first worker's queues are taken once");
    let host = edge.punter(0)?;
    let (mailbox, handle) =
        mailbox().map_err(|error| Failure::Running(format!("cannot make the worker's mailbox: {error}")))?;
    let devices = PortId::ALL.into_iter().zip(queues.ports);
    let devices = devices.flat_map(|(port, queues)| queues.into_iter().map(move |queue| (port, queue)));
    let shard = Shard::new(settings, startup::secret()?, &policy.load());
    tracing::info!("connection table: {}", shard.conntrack.memory());
    let parts = Parts { devices: devices.collect(), pool: queues.pool, host, shard, policy, routing, mailbox };
    Ok((Worker::new(parts), handle))
}

fn facts(config: &Config, core: usize, edge: &Edge) -> Facts {
    Facts {
        start: std::time::Instant::now(),
        mode: edge.report().mode.to_string(),
        poll: config.poll.name().to_owned(),
        cores: vec![core as u32],
    }
}

fn ready(config: &Config, core: usize, edge: &Edge, rulesets: &[Arc<Ruleset>; 2]) -> Ready {
    Ready {
        mode: edge.report().mode.to_string(),
        queues: edge.report().ports.iter().map(|port| port.queues as usize).max().unwrap_or(0),
        cores: core.to_string().parse().expect("a core's number is a list of one"),
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
            // `follow` above was all there is to do, or `Netlink::run` ends with an error.
            netlink::Event::PortGone(_)
            | netlink::Event::PortMac(_)
            | netlink::Event::PortMtu(_)
            | netlink::Event::Addresses => Ok(()),
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

    fn write(&mut self, records: &mut Consumer<LogRecord>, ports: [&str; PortId::COUNT]) {
        for _ in 0..Log::PER_TICK {
            let Ok(record) = records.pop() else {
                if self.suppressed > 0 {
                    tracing::warn!("LOG: {} lines suppressed", std::mem::take(&mut self.suppressed));
                }
                return;
            };
            startup::log_packet(record.level, &rules::log_line(&record, &ports));
        }
        while records.pop().is_ok() {
            self.suppressed += 1;
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
