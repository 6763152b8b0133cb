//! [`Netlink`]: the kernel's links, addresses, routes and neighbours, followed by rtnetlink and published as
//! [`Routing`].
//!
//! Life: [`Netlink::open`] subscribes first and then reads everything, so that nothing is missed, and publishes the first
//! value. [`Netlink::run`] follows changes until nobody can ask it anything any more. Lost messages (the socket's
//! buffer overflowed) are answered by reading everything again.
//!
//! Bursts are gathered: a change is published some milliseconds after it was heard, and compiling routes takes at most a
//! fifth of the time. A neighbour that answers, or is found not to, is published at once.

mod convert;
mod mirror;
mod socket;
pub(super) mod sysctl;

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::device::PortId;
use crate::route::{HostAddress, Neighbour};
use crate::snapshot::Routing;
use crate::wire::Addr;
use mirror::{Due, Everything, Mirror, RoutesRead};
use socket::{Dumped, Events, Heard, Requests};

/// A change waits this long for others to join it.
const GATHER: Duration = Duration::from_millis(10);
/// A second reading of the routes comes this long after the first: by then the kernel is done with what it told of.
const SECOND_READING: Duration = Duration::from_secs(1);
/// Between two publications of changed routes lie at least this many times what compiling took.
const COMPILE_SHARE: u32 = 4;
/// A stale neighbour in use is confirmed at most this often. The kernel takes 5 s (`delay_first_probe_time`) before it probes.
const CONFIRM_EVERY: Duration = Duration::from_secs(10);
/// Settings are read again this often: of some (`accept_local`) the kernel does not tell.
const SETTINGS_EVERY: Duration = Duration::from_secs(10);
/// Settings that change with a link have done so after this long.
const SETTINGS_AFTER_LINK: Duration = Duration::from_millis(100);
/// A dump that was interrupted is tried this often before it is taken as it is.
const DUMP_ATTEMPTS: usize = 4;
/// Datagrams handled before requests get their turn.
const DATAGRAMS_PER_TURN: usize = 64;

/// What may go wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A socket failed.
    Socket {
        /// What it was to do.
        what: &'static str,
        /// Why it did not.
        source: io::Error,
    },
    /// The kernel refused a request.
    Refused {
        /// The request.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel's answer could not be read.
    Unreadable {
        /// To what.
        what: &'static str,
        /// Why not.
        source: String,
    },
    /// There is no such interface.
    NoInterface {
        /// The name asked for.
        name: String,
        /// Those there are.
        have: Vec<String>,
    },
    /// Both ports are one interface.
    SameInterface {
        /// Its name.
        name: String,
    },
    /// The interface is not an Ethernet.
    NotEthernet {
        /// Its name.
        name: String,
    },
    /// An interface disappeared while running.
    PortGone {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Socket { what, source } => write!(f, "cannot {what}: {source}"),
            Error::Refused { what, source } => write!(f, "the kernel refused to {what}: {source}"),
            Error::Unreadable { what, source } => {
                write!(f, "cannot {what}: the kernel's answer is unreadable: {source}")
            }
            Error::NoInterface { name, have } => {
                write!(f, "there is no interface `{name}`; there are: {}", have.join(", "))
            }
            Error::SameInterface { name } => {
                write!(f, "`{name}` cannot be both --lan and --wan: give two different interfaces")
            }
            Error::NotEthernet { name } => write!(f, "interface `{name}` is not an Ethernet: give one that is"),
            Error::PortGone { name } => write!(f, "interface {name} disappeared"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Socket { source, .. } | Error::Refused { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// What others may want to know. The [`Routing`] that shows it has been published before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The port is up and has a carrier.
    PortUp(PortId),
    /// The port was taken down or lost its carrier.
    PortDown(PortId),
    /// The port's interface disappeared; [`Netlink::run`] ends with [`Error::PortGone`].
    PortGone(PortId),
    /// The port's Ethernet address changed.
    PortMac(PortId),
    /// The port's MTU changed.
    PortMtu(PortId),
    /// The host's addresses changed ([`Routing::addresses`]).
    Addresses,
    /// Something the administrator should know; each text comes once.
    Warning(String),
}

/// What workers ask for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Request {
    /// Find the link-layer address of this next hop. If it had failed before it becomes [`Neighbour::Unknown`] in the next
    /// value, then reachable or failed.
    Resolve(PortId, Addr),
    /// This next hop is in use: keep the kernel from forgetting it. To be said every some seconds while it is so.
    Use(PortId, Addr),
}

/// See the module's head.
#[derive(Debug)]
pub struct Netlink {
    heard: Events,
    requests: Requests,
    dumps: Requests,
    mirror: Mirror,
    published: Arc<ArcSwap<Routing>>,
}

impl Netlink {
    /// Subscribes, reads everything, publishes the first value. `ports` are interface names by [`PortId`], in the network
    /// namespace of the calling thread.
    ///
    /// # Errors
    /// When an interface is not there or not an Ethernet, both are one, or the kernel does not answer.
    pub fn open(ports: [&str; PortId::COUNT]) -> Result<Netlink, Error> {
        if ports[0] == ports[1] {
            return Err(Error::SameInterface { name: ports[0].to_owned() });
        }
        let heard = Events::open()?;
        let mut requests = Requests::open()?;
        let dumps = Requests::open()?;
        let (routes, dumped) = read_routes(&mut requests)?;
        let mut mirror = Mirror::new(ports, secret(), read_all_but_routes(&mut requests)?)?;
        mirror.set_routes(routes);
        mirror.mind(dumped);
        mirror.due.publish = false;
        let published = Arc::new(ArcSwap::from_pointee(mirror.builder.build()));
        Ok(Netlink { heard, requests, dumps, mirror, published })
    }

    /// Where the newest value is to be found.
    pub fn routing(&self) -> Arc<ArcSwap<Routing>> {
        self.published.clone()
    }

    /// Follows the kernel until all senders of `requests` are gone. Call it where a tokio runtime runs (one thread is
    /// enough).
    ///
    /// # Errors
    /// [`Error::PortGone`] when a port's interface disappears; others when a socket fails.
    pub async fn run(
        self,
        mut requests: mpsc::Receiver<Request>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<(), Error> {
        let mut run = Run {
            heard: self.heard.into_async()?,
            requests: self.requests,
            dumps: Some(self.dumps),
            dump: None,
            dump_void: false,
            mirror: self.mirror,
            published: self.published,
            events,
            publish_at: None,
            read_at: None,
            read_again_at: None,
            settings_at: Instant::now() + SETTINGS_EVERY,
            not_before: Instant::now(),
            buffer: Vec::new(),
            batch: Vec::new(),
        };
        run.follow_up()?;
        loop {
            let next = run.next_deadline();
            tokio::select! {
                read = hear(&run.heard, &mut run.buffer, &mut run.batch) => {
                    read?;
                    run.listen();
                }
                request = requests.recv() => match request {
                    Some(request) => run.answer(request),
                    None => return Ok(()),
                },
                done = finished(&mut run.dump), if run.dump.is_some() => run.routes_read(done)?,
                () = tokio::time::sleep_until(next.into()) => {}
            }
            run.follow_up()?;
        }
    }
}

/// The result of a dump of the routes, and its socket back.
type RoutesDump = (Requests, Result<(RoutesRead, Dumped), Error>);

async fn finished(dump: &mut Option<JoinHandle<RoutesDump>>) -> Result<RoutesDump, Error> {
    let Some(task) = dump else { return std::future::pending().await };
    let done = task.await;
    *dump = None;
    done.map_err(|source| Error::Socket { what: "read routes", source: source.into() })
}

/// Waits until there is something to hear, and reads of it what is there, within reason.
async fn hear(heard: &AsyncFd<Events>, buffer: &mut Vec<u8>, batch: &mut Vec<Heard>) -> Result<(), Error> {
    let read = heard.async_io(Interest::READABLE, |events| {
        for count in 0..DATAGRAMS_PER_TURN {
            if !events.read(buffer, batch)? {
                // Nothing at all: wait for more. Something: come back, and find nothing then.
                return if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) };
            }
        }
        Ok(())
    });
    read.await.map_err(|source| Error::Socket { what: "hear of the kernel's routes", source })
}

/// A [`Netlink`] that runs.
struct Run {
    heard: AsyncFd<Events>,
    requests: Requests,
    /// For dumps of the routes, which take long; away while one is under way.
    dumps: Option<Requests>,
    dump: Option<JoinHandle<RoutesDump>>,
    /// Messages were lost since the dump began: what it brings is not to be used.
    dump_void: bool,
    mirror: Mirror,
    published: Arc<ArcSwap<Routing>>,
    events: mpsc::UnboundedSender<Event>,
    publish_at: Option<Instant>,
    read_at: Option<Instant>,
    read_again_at: Option<Instant>,
    settings_at: Instant,
    /// No changed routes are published before.
    not_before: Instant,
    buffer: Vec<u8>,
    batch: Vec<Heard>,
}

impl Run {
    fn next_deadline(&self) -> Instant {
        let reading = if self.dump.is_none() { [self.read_at, self.read_again_at] } else { [None; 2] };
        [self.publish_at].into_iter().chain(reading).flatten().fold(self.settings_at, Instant::min)
    }

    /// Takes in what was heard.
    fn listen(&mut self) {
        if self.batch.iter().any(|heard| matches!(heard, Heard::Lost)) {
            // What is queued is older than what was lost; on top of what is read now it would be wrong. And the kernel drops
            // all that comes until the queue has been empty once (NETLINK_S_CONGESTED), without saying so again.
            self.heard.get_ref().discard(&mut self.buffer);
            self.batch.clear();
            self.mirror.due.everything = true;
            return;
        }
        for heard in self.batch.drain(..) {
            match heard {
                Heard::Message(message, flags) => self.mirror.hear(message, flags),
                Heard::Setting => self.mirror.due.settings = true,
                Heard::Lost => {}
                Heard::Unreadable(what) => {
                    self.mirror.warn(format!("a change the kernel told of could not be read: {what}"));
                    self.mirror.due.everything = true;
                }
            }
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Resolve(port, addr) => {
                if let Neighbour::Reachable(_) = self.published.load().neighbour(port, addr) {
                    return;
                }
                let retried = self.mirror.builder.set_neighbour(port, addr, Neighbour::Unknown).is_some();
                self.mirror.due.neighbours |= retried;
                self.use_neighbour(port, addr);
            }
            Request::Use(port, addr) => {
                if self.mirror.confirm(port, addr, Instant::now(), CONFIRM_EVERY) {
                    self.use_neighbour(port, addr);
                }
            }
        }
    }

    /// Has the kernel act as if it had a packet for the neighbour (`NTF_USE`): it resolves or confirms it as needed.
    fn use_neighbour(&mut self, port: PortId, addr: Addr) {
        let ifindex = self.mirror.builder.ports()[port.index()].ifindex;
        let mut message = NeighbourMessage::default();
        message.header.family = if addr.is_v4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        message.header.kind = RouteType::Unspec;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(addr.to_ip())));
        // Without NLM_F_REPLACE an entry that exists is refused.
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let request = RouteNetlinkMessage::NewNeighbour(message);
        if let Err(error) = self.requests.execute("resolve a neighbour", request, flags) {
            let name = &self.mirror.builder.ports()[port.index()].name;
            self.mirror.warn(format!("{name}: {error}"));
            if self.mirror.builder.set_neighbour(port, addr, Neighbour::Failed).is_some() {
                self.mirror.due.neighbours = true;
            }
        }
    }

    /// Does what is due, or sets the time for it.
    fn follow_up(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let mut due = std::mem::take(&mut self.mirror.due);
        if self.settings_at <= now {
            due.settings = true;
            self.settings_at = now + SETTINGS_EVERY;
        }
        if due.everything {
            let everything = read_all_but_routes(&mut self.requests)?;
            self.mirror.load(everything);
            self.dump_void = self.dump.is_some();
            self.read_at = Some(now);
        } else {
            self.read_small(due)?;
        }
        // Before anything is published: publishing tells what happened, and what was told is no longer there to be found.
        self.gone()?;
        let due = due | std::mem::take(&mut self.mirror.due);
        if due.settings_later {
            self.settings_at = self.settings_at.min(now + SETTINGS_AFTER_LINK);
        }
        if due.routes {
            self.read_at.get_or_insert(now + GATHER);
        }
        if due.routes_twice {
            self.read_again_at = Some(now + SECOND_READING);
        }
        if due.publish {
            self.publish_at.get_or_insert(now + GATHER);
        }
        self.start_reading(now);
        let waits = self.mirror.builder.routes_changed() && now < self.not_before;
        if self.publish_at.is_some_and(|at| at <= now) && !waits {
            self.publish();
        } else {
            if waits {
                self.publish_at = self.publish_at.map(|at| at.max(self.not_before));
            }
            if due.neighbours {
                let routing = self.mirror.builder.build_neighbours(&self.published.load());
                self.published.store(Arc::new(routing));
            }
        }
        if self.publish_at.is_none() {
            self.tell();
        }
        Ok(())
    }

    /// Reads again what is small and due.
    fn read_small(&mut self, due: Due) -> Result<(), Error> {
        if due.addresses {
            let addresses = read_addresses(&mut self.requests)?;
            self.mirror.set_addresses(addresses);
        }
        if due.rules {
            let rules = read_rules(&mut self.requests)?;
            self.mirror.set_rules(rules);
        }
        if due.settings {
            self.mirror.settings();
        }
        Ok(())
    }

    /// Starts to read the routes, when it is time and no reading is under way.
    fn start_reading(&mut self, now: Instant) {
        let reached = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if !(reached(self.read_at) || reached(self.read_again_at)) {
            return;
        }
        let Some(mut requests) = self.dumps.take() else { return };
        self.dump_void = false;
        self.read_at = None;
        self.read_again_at = self.read_again_at.filter(|&at| at > now);
        self.mirror.routes_dump_begins();
        self.dump = Some(tokio::task::spawn_blocking(move || {
            let read = read_routes(&mut requests);
            (requests, read)
        }));
    }

    /// A reading of the routes is over.
    fn routes_read(&mut self, done: Result<RoutesDump, Error>) -> Result<(), Error> {
        let (requests, read) = done?;
        self.dumps = Some(requests);
        let (routes, dumped) = read?;
        if !self.dump_void {
            self.mirror.set_routes(routes);
            self.mirror.mind(dumped);
        }
        Ok(())
    }

    fn publish(&mut self) {
        let compiles = self.mirror.builder.routes_changed();
        let begin = Instant::now();
        let routing = self.mirror.builder.build();
        if compiles {
            let end = Instant::now();
            self.not_before = end + (end - begin) * COMPILE_SHARE;
        }
        self.published.store(Arc::new(routing));
        self.publish_at = None;
        self.tell();
    }

    /// Tells what happened.
    fn tell(&mut self) {
        for event in self.mirror.events.drain(..) {
            // Nobody listens any more: then nobody wants to know.
            let _ = self.events.send(event);
        }
    }

    /// Ends the run when a port is no more.
    fn gone(&mut self) -> Result<(), Error> {
        let gone = |event: &Event| if let Event::PortGone(id) = event { Some(*id) } else { None };
        let Some(id) = self.mirror.events.iter().find_map(gone) else { return Ok(()) };
        self.publish();
        Err(Error::PortGone { name: self.mirror.builder.ports()[id.index()].name.clone() })
    }
}

/// Numbers nobody can guess.
fn secret() -> [u64; 2] {
    [RandomState::new(), RandomState::new()].map(|state| state.build_hasher().finish())
}

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Repeats a dump that was interrupted.
fn whole<T>(mut read: impl FnMut() -> Result<(T, Dumped), Error>) -> Result<(T, Dumped), Error> {
    let mut last = read()?;
    for _ in 1..DUMP_ATTEMPTS {
        if !last.1.interrupted {
            break;
        }
        last = read()?;
    }
    Ok(last)
}

fn read_all_but_routes(requests: &mut Requests) -> Result<Everything, Error> {
    let links = read_links(requests)?;
    let addresses = read_addresses(requests)?;
    let neighbours = read_neighbours(requests)?;
    let rules = read_rules(requests)?;
    Ok(Everything { links, addresses, neighbours, rules })
}

fn read_links(requests: &mut Requests) -> Result<Vec<LinkMessage>, Error> {
    let read = || {
        let mut links = Vec::new();
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let dumped = requests.dump("read interfaces", request, &mut |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                links.push(link);
            }
        })?;
        Ok((links, dumped))
    };
    Ok(whole(read)?.0)
}

fn read_addresses(requests: &mut Requests) -> Result<Vec<HostAddress>, Error> {
    let read = || {
        let mut addresses = Vec::new();
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let dumped = requests.dump("read addresses", request, &mut |message| {
            if let RouteNetlinkMessage::NewAddress(address) = message {
                addresses.extend(convert::host_address(&address));
            }
        })?;
        Ok((addresses, dumped))
    };
    Ok(whole(read)?.0)
}

fn read_routes(requests: &mut Requests) -> Result<(RoutesRead, Dumped), Error> {
    let read = || {
        let mut routes = RoutesRead::default();
        let mut both = Dumped::default();
        for family in FAMILIES {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let dumped = requests.dump("read routes", RouteNetlinkMessage::GetRoute(request), &mut |message| {
                if let RouteNetlinkMessage::NewRoute(route) = message {
                    routes.add(&route);
                }
            })?;
            both.interrupted |= dumped.interrupted;
            both.unreadable = both.unreadable.or(dumped.unreadable);
        }
        Ok((routes, both))
    };
    whole(read)
}

fn read_neighbours(requests: &mut Requests) -> Result<Vec<NeighbourMessage>, Error> {
    let read = || {
        let mut neighbours = Vec::new();
        let mut both = Dumped::default();
        for family in FAMILIES {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            let request = RouteNetlinkMessage::GetNeighbour(request);
            let dumped = requests.dump("read neighbours", request, &mut |message| {
                if let RouteNetlinkMessage::NewNeighbour(neighbour) = message {
                    neighbours.push(neighbour);
                }
            })?;
            both.interrupted |= dumped.interrupted;
        }
        Ok((neighbours, both))
    };
    Ok(whole(read)?.0)
}

/// The rules beyond the kernel's own, in words.
fn read_rules(requests: &mut Requests) -> Result<Vec<String>, Error> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        let mut request = RuleMessage::default();
        request.header.family = family;
        requests.dump("read rules", RouteNetlinkMessage::GetRule(request), &mut |message| {
            if let RouteNetlinkMessage::NewRule(rule) = message {
                rules.extend(convert::custom_rule(&rule));
            }
        })?;
    }
    Ok(rules)
}
