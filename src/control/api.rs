//! The control socket: JSON lines over a Unix stream socket, the server for the daemon and the client for the verbs.
//!
//! A client writes one [`Request`] per line. The daemon answers each with [`Reply`] lines: `stats`, `rules`, `get`, `sysctl`,
//! `reload`, `change` and `explain` with one, `conntrack` and `delete` with one per connection and then `end`, `events` and
//! `trace` with one per event or packet for as long as the client stays; whatever goes wrong with one `error`. A request that is
//! too long or no JSON is answered with an error, and after one that is too long the connection ends, since nobody knows where
//! the next begins. Listings are fetched from the workers in bounded pieces that are written before the next is fetched, so a
//! long listing holds no worker up and takes no more memory than a short one, and a client that does not read is given up after
//! [`WRITE_TIME`]. One that listens to events is not given up: it loses events, and is told how many. The server knows the
//! workers only as a [`Backend`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;

use super::change::{ChangeReport, ChangeWish};
use super::explain::{Explanation, Question};
use super::reload::{Refused, ReloadReport, Wish};
use super::startup::Failure;
use super::stats::StatsReport;
use super::trace::{self, TraceNews, TraceReport, TraceStep, TraceWish};
use crate::conntrack::{ConnFilter, ConnView, EventKind, EventMask, ExpectView, Tuple};
use crate::rules::SetSummary;
use crate::wire::Family;
use crate::worker::{Expecting, Walk};

#[cfg(test)]
pub(super) mod tests;

/// The longest request line, in bytes: a change of some hundred thousand rules.
pub const MAX_REQUEST: usize = 16 << 20;

/// Memory for requests that a client keeps between them, in bytes.
const REQUEST_KEPT: usize = 4096;

/// Most clients served at a time; more wait in the listen queue.
const MAX_CLIENTS: usize = 32;

/// Connections fetched from a worker at a time, at most.
pub(super) const PIECE: usize = 1024;

/// Records of a worker's table looked at for a piece, at most.
const BUDGET: usize = 65_536;

/// Bytes of events written at a time, about.
const EVENTS_WRITTEN: usize = 65_536;

/// How long a client may stay silent between requests.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// How long one write to a client may take.
pub const WRITE_TIME: Duration = Duration::from_secs(10);

/// How long a client of ours waits for the daemon's next line.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Where the workers stand behind the control thread. Implemented over the workers' mailboxes, and by a fake in tests.
pub trait Backend {
    /// All counters.
    fn stats(&self) -> impl Future<Output = Result<StatsReport, BackendError>>;

    /// How many workers there are.
    fn workers(&self) -> usize;

    /// Has a worker go on with a walk through its connections; the times in it are since 1970 when it comes back.
    fn walk(&self, worker: usize, walk: Box<Walk>) -> impl Future<Output = Result<Box<Walk>, BackendError>>;

    /// Has a worker go on with a walk through what its connections expect.
    fn expecting(
        &self,
        worker: usize,
        walk: Box<Expecting>,
    ) -> impl Future<Output = Result<Box<Expecting>, BackendError>>;

    /// The connection that has this tuple, in either direction.
    fn get(&self, tuple: &Tuple) -> impl Future<Output = Result<Option<ConnView>, BackendError>>;

    /// What becomes of connections from now on.
    fn events(&self) -> impl Future<Output = Result<broadcast::Receiver<Told>, BackendError>>;

    /// Changes settings (all or none), and tells the values of all.
    fn sysctl(&self, set: &BTreeMap<String, u64>) -> impl Future<Output = Result<BTreeMap<String, u64>, BackendError>>;

    /// What would become of a packet.
    fn explain(&self, question: &Question) -> impl Future<Output = Result<Explanation, BackendError>>;

    /// Begins, goes on with, or ends a trace.
    fn trace(&self, step: TraceStep) -> impl Future<Output = Result<TraceNews, BackendError>>;

    /// The rules with counters, as iptables-save prints them.
    fn rules_text(&self, family: Family) -> impl Future<Output = Result<String, BackendError>>;

    /// The sets, without what is in them.
    fn sets(&self) -> impl Future<Output = Result<Vec<SetSummary>, BackendError>>;

    /// The sets, as `ipset save` prints them.
    fn sets_text(&self) -> impl Future<Output = Result<String, BackendError>>;

    /// Reads rules and configuration again, for process `by`.
    fn reload(&self, wish: &Wish, by: u32) -> impl Future<Output = Result<ReloadReport, Refused>>;

    /// Changes rules, for process `by`.
    fn change(&self, wish: ChangeWish, by: u32) -> impl Future<Output = Result<ChangeReport, Refused>>;
}

/// What a listener hears.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// Something happened to a connection.
    Event(EventReport),
    /// So many events came too fast for the control thread.
    Lost(u64),
}

/// A connection event. Its JSON names stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventReport {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// When, in nanoseconds since 1970.
    pub time: u64,
    /// The process that wanted it; none when packets or time were the cause.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub portid: Option<u32>,
    /// The connection.
    pub conn: ConnView,
}

/// A worker that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError(pub String);

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BackendError {}

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// All counters.
    Stats {},
    /// The rules with their counters.
    Rules {
        /// 4 or 6.
        #[serde(default = "four")]
        family: u8,
    },
    /// The sets.
    Sets {
        /// With what is in them, as `ipset save` prints it.
        #[serde(default)]
        save: bool,
    },
    /// The connections.
    Conntrack {
        /// Which of them.
        #[serde(default)]
        filter: ConnFilter,
    },
    /// One connection.
    Get {
        /// IP version 4 or 6.
        family: u8,
        /// Transport protocol's number.
        proto: u8,
        /// Source address.
        src: IpAddr,
        /// Destination address.
        dst: IpAddr,
        /// Source port, ICMP identifier or GRE source key.
        #[serde(default)]
        sport: u16,
        /// Destination port, ICMP type and code (the type times 256 and the code), or GRE destination key.
        #[serde(default)]
        dport: u16,
        /// Zone.
        #[serde(default)]
        zone: u16,
    },
    /// Delete connections; those deleted are listed.
    Delete {
        /// Which of them.
        #[serde(default)]
        filter: ConnFilter,
        /// List none, only count them.
        #[serde(default)]
        quiet: bool,
    },
    /// What connections expect (the table `expect` of conntrack(8)).
    Expect {
        /// End all of it, and list nothing.
        #[serde(default)]
        flush: bool,
    },
    /// What becomes of connections, from now on until the client goes.
    Events {
        /// Which connections.
        #[serde(default)]
        filter: ConnFilter,
        /// Which events.
        #[serde(default)]
        events: EventMask,
    },
    /// The conntrack settings.
    Sysctl {
        /// Those to change, by name.
        #[serde(default)]
        set: BTreeMap<String, u64>,
    },
    /// Read rules and configuration again.
    Reload(Wish),
    /// Change rules line by line.
    Change(ChangeWish),
    /// What would become of a packet, and why.
    Explain(Question),
    /// What becomes of packets, from now on until the client goes.
    Trace(TraceWish),
}

pub(super) fn four() -> u8 {
    4
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The answer to `stats`: a [`StatsReport`].
    Stats(serde_json::Value),
    /// The answer to `rules`.
    Rules(String),
    /// The answer to `sets`.
    Sets(Vec<SetSummary>),
    /// The answer to `sets` with `save`.
    Saved(String),
    /// A connection.
    Conn(ConnView),
    /// A connection that is expected.
    Expected(ExpectView),
    /// There is no such connection.
    None {},
    /// What happened to a connection.
    Event(EventReport),
    /// Events follow from here on.
    Listening {},
    /// Events were lost: they came too fast, or the client was too slow.
    Lost {
        /// How many.
        count: u64,
    },
    /// The values of all settings, by name.
    Sysctl(BTreeMap<String, u64>),
    /// The listing is complete.
    End {
        /// How many connections it had.
        count: u64,
    },
    /// The answer to `reload`.
    Reloaded(ReloadReport),
    /// The answer to `change`.
    Changed(ChangeReport),
    /// A file is wrong, and nothing was changed: every wrong place, to be shown as it is.
    Refused(String),
    /// The rules in force are not what a change asks for (there is no such rule, or a chain of that name), and nothing was
    /// changed: what is missing, to be shown as it is.
    Conflict(String),
    /// The answer to `explain`.
    Explained(Box<Explanation>),
    /// What became of a packet.
    Traced(Box<TraceReport>),
    /// It cannot be done, and why.
    Error(String),
}

/// The daemon's socket. Removes its file when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl ControlSocket {
    /// Listens at `path`: its directory is made if missing, a socket that a dead daemon left is replaced, and the mode
    /// set to 0660. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a living daemon has the path, when something else than a socket is there, or when it cannot be made.
    pub fn bind(path: &Path) -> Result<ControlSocket, Failure> {
        let shown = path.display();
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(|error| {
                Failure::Running(format!("--control {shown}: cannot make directory {}: {error}", directory.display()))
            })?;
        }
        make_room(path)?;
        let failed = |error: io::Error| Failure::Running(format!("--control {shown}: cannot listen there: {error}"));
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        let inode = identity(path).map_err(failed)?;
        Ok(ControlSocket { listener, path: path.to_owned(), inode })
    }

    /// Answers requests until dropped.
    pub async fn serve<B: Backend>(&self, backend: &B) {
        let mut clients = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if clients.len() < MAX_CLIENTS => match accepted {
                    Ok((stream, _)) => clients.push(client(stream, backend)),
                    Err(error) => {
                        // Out of descriptors, most likely: wait for one rather than spin.
                        tracing::warn!("control socket: cannot accept a connection: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                Some(()) = clients.next(), if !clients.is_empty() => {}
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Only if it is still ours: another daemon may have been given the path by hand.
        if identity(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes sure that nothing stands at `path`: removes a dead socket, refuses anything else.
fn make_room(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::Running(format!("--control {shown}: {error}"))),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Failure::Usage(format!(
                "--control {shown}: there is a file that is no socket, and it is left alone. Give another path"
            )));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(Failure::Running(format!(
            "--control {shown}: another xrouter is running and listens there. Stop it, or give another path"
        ))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(|error| {
            Failure::Running(format!("--control {shown}: cannot remove a dead daemon's socket: {error}"))
        }),
        Err(error) => {
            Err(Failure::Running(format!("--control {shown}: cannot tell whether a daemon listens there: {error}")))
        }
    }
}

/// One client, from its first request to its end.
async fn client<B: Backend>(stream: UnixStream, backend: &B) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok());
    let (read, mut write) = stream.into_split();
    let mut read = AsyncBufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.shrink_to(REQUEST_KEPT);
        let limit = MAX_REQUEST as u64 + 1;
        let got = tokio::time::timeout(IDLE_TIME, (&mut read).take(limit).read_until(b'\n', &mut line)).await;
        if !matches!(got, Ok(Ok(1..))) {
            return;
        }
        let long = line.len() > MAX_REQUEST;
        let outcome = if long {
            send(&mut write, &Reply::Error(format!("request is longer than {MAX_REQUEST} bytes"))).await
        } else if line.trim_ascii().is_empty() {
            Ok(())
        } else {
            match serde_json::from_slice(&line) {
                Ok(Request::Events { filter, events }) => {
                    return tell(&mut write, &mut read, &filter, events, backend).await;
                }
                Ok(Request::Trace(wish)) => return trace::tell(&mut write, &mut read, &wish, backend).await,
                Ok(request) => answer(&mut write, request, pid.unwrap_or(0), backend).await,
                Err(error) => send(&mut write, &Reply::Error(format!("not a request: {error}"))).await,
            }
        };
        if long || outcome.is_err() {
            return;
        }
    }
}

pub(super) type Writer = tokio::net::unix::OwnedWriteHalf;
pub(super) type Reader = AsyncBufReader<tokio::net::unix::OwnedReadHalf>;

async fn answer<B: Backend>(write: &mut Writer, request: Request, pid: u32, backend: &B) -> io::Result<()> {
    let reply = match request {
        Request::Stats {} => backend.stats().await.map(|report| {
            serde_json::to_value(report).map_or_else(|error| Reply::Error(error.to_string()), Reply::Stats)
        }),
        Request::Rules { family: 4 } => backend.rules_text(Family::V4).await.map(Reply::Rules),
        Request::Rules { family: 6 } => backend.rules_text(Family::V6).await.map(Reply::Rules),
        Request::Rules { family } => Ok(Reply::Error(format!("family {family}: allowed: 4 or 6"))),
        Request::Sets { save: false } => backend.sets().await.map(Reply::Sets),
        Request::Sets { save: true } => backend.sets_text().await.map(Reply::Saved),
        Request::Conntrack { filter } => return listing(write, &filter, None, false, backend).await,
        Request::Expect { flush } => return expectations(write, flush, backend).await,
        Request::Delete { filter, quiet } => return listing(write, &filter, Some(pid), quiet, backend).await,
        Request::Get { family, proto, src, dst, sport, dport, zone } => {
            let family = if family == 4 { Family::V4 } else { Family::V6 };
            let tuple = Tuple { src: src.into(), dst: dst.into(), sport, dport, proto, family, zone };
            backend.get(&tuple).await.map(|found| found.map_or(Reply::None {}, Reply::Conn))
        }
        Request::Sysctl { set } => backend.sysctl(&set).await.map(Reply::Sysctl),
        Request::Reload(wish) => done(backend.reload(&wish, pid).await.map(Reply::Reloaded)),
        Request::Change(ChangeWish { family, .. }) if !matches!(family, 4 | 6) => {
            Ok(Reply::Error(format!("family {family}: allowed: 4 or 6")))
        }
        Request::Change(wish) => done(backend.change(wish, pid).await.map(Reply::Changed)),
        Request::Explain(question) => {
            backend.explain(&question).await.map(|explanation| Reply::Explained(Box::new(explanation)))
        }
        Request::Events { .. } | Request::Trace(_) => unreachable!("taken by the caller"),
    };
    send(write, &reply.unwrap_or_else(|error| Reply::Error(error.0))).await
}

/// What a wish for other rules came to.
fn done(outcome: Result<Reply, Refused>) -> Result<Reply, BackendError> {
    match outcome {
        Ok(reply) => Ok(reply),
        Err(Refused::Files(report)) => Ok(Reply::Refused(report)),
        Err(Refused::Rules(report)) => Ok(Reply::Conflict(report)),
        Err(Refused::Workers(error)) => Err(error),
    }
}

/// The connections, piece by piece.
async fn listing<B: Backend>(
    write: &mut Writer,
    filter: &ConnFilter,
    delete_for: Option<u32>,
    quiet: bool,
    backend: &B,
) -> io::Result<()> {
    let mut count = 0;
    let entries = Vec::with_capacity(PIECE);
    let mut walk = Box::new(Walk { filter: *filter, delete_for, cursor: None, budget: 0, entries });
    let mut lines = Vec::new();
    for worker in 0..backend.workers() {
        walk.cursor = Some(0);
        while walk.cursor.is_some() {
            walk.budget = BUDGET;
            walk.entries.clear();
            walk = match backend.walk(worker, walk).await {
                Ok(walk) => walk,
                Err(error) => return send(write, &Reply::Error(error.0)).await,
            };
            count += walk.entries.len() as u64;
            lines.clear();
            for conn in walk.entries.iter().filter(|_| !quiet) {
                serde_json::to_writer(&mut lines, &Reply::Conn(*conn))?;
                lines.push(b'\n');
            }
            write_all(write, &lines).await?;
        }
    }
    send(write, &Reply::End { count }).await
}

/// What is expected, piece by piece; or the end of all of it.
async fn expectations<B: Backend>(write: &mut Writer, flush: bool, backend: &B) -> io::Result<()> {
    let mut count = 0;
    let mut walk = Box::new(Expecting { clear: flush, cursor: None, entries: Vec::with_capacity(PIECE) });
    let mut lines = Vec::new();
    for worker in 0..backend.workers() {
        (walk.clear, walk.cursor) = (flush, Some(0));
        while walk.cursor.is_some() {
            walk.entries.clear();
            walk = match backend.expecting(worker, walk).await {
                Ok(walk) => walk,
                Err(error) => return send(write, &Reply::Error(error.0)).await,
            };
            count += walk.entries.len() as u64;
            lines.clear();
            for view in &walk.entries {
                serde_json::to_writer(&mut lines, &Reply::Expected(*view))?;
                lines.push(b'\n');
            }
            write_all(write, &lines).await?;
        }
    }
    send(write, &Reply::End { count }).await
}

/// Events, until the client goes.
async fn tell<B: Backend>(write: &mut Writer, read: &mut Reader, filter: &ConnFilter, mask: EventMask, backend: &B) {
    let mut events = match backend.events().await {
        Ok(events) => events,
        // A client that is gone by now hears nothing.
        Err(error) => return send(write, &Reply::Error(error.0)).await.unwrap_or_default(),
    };
    let stream = async {
        send(write, &Reply::Listening {}).await?;
        let mut lines = Vec::new();
        loop {
            let mut next = match events.recv().await {
                Err(broadcast::error::RecvError::Closed) => return Ok::<_, io::Error>(()),
                Err(broadcast::error::RecvError::Lagged(count)) => Some(Told::Lost(count)),
                Ok(told) => Some(told),
            };
            lines.clear();
            while let Some(told) = next {
                let reply = match told {
                    Told::Event(event) if mask.admits(event.kind) && filter.admits(&event.conn) => {
                        Some(Reply::Event(event))
                    }
                    Told::Event(_) => None,
                    Told::Lost(count) => Some(Reply::Lost { count }),
                };
                if let Some(reply) = reply {
                    serde_json::to_writer(&mut lines, &reply)?;
                    lines.push(b'\n');
                }
                if lines.len() > EVENTS_WRITTEN {
                    break;
                }
                next = match events.try_recv() {
                    Err(broadcast::error::TryRecvError::Lagged(count)) => Some(Told::Lost(count)),
                    Err(_) => None,
                    Ok(told) => Some(told),
                };
            }
            write.write_all(&lines).await?;
        }
    };
    let mut byte = [0];
    tokio::select! {
        // Gone, or not to be written to any more.
        _ = stream => {}
        // Gone, or says something, which nobody expects.
        _ = read.read(&mut byte) => {}
    }
}

pub(super) async fn send(write: &mut Writer, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    write_all(write, &line).await
}

async fn write_all(write: &mut Writer, bytes: &[u8]) -> io::Result<()> {
    tokio::time::timeout(WRITE_TIME, write.write_all(bytes)).await?
}

/// The verbs' end of the control socket. Blocking.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<std::os::unix::net::UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    /// [`Failure::NoDaemon`] when nobody listens there.
    pub fn connect(path: &Path) -> Result<Client, Failure> {
        let shown = path.display();
        let stream = std::os::unix::net::UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::NoDaemon(format!(
                "no xrouter listens at {shown} ({error}). Start one with `xrouter --lan IF --wan IF`, or say where it \
                 listens with --control PATH"
            )),
            io::ErrorKind::PermissionDenied => Failure::Machine(format!(
                "no permission to talk to {shown}: run this as the user or group that owns it"
            )),
            _ => Failure::NoDaemon(format!("cannot connect to {shown}: {error}. Is this an xrouter's control socket?")),
        })?;
        let client = Client { stream: BufReader::new(stream), path: path.to_owned() };
        client.stream.get_ref().set_read_timeout(Some(ANSWER_TIME)).map_err(|error| client.lost(&error))?;
        Ok(client)
    }

    /// Asks.
    ///
    /// # Errors
    /// When the daemon went away.
    pub fn ask(&mut self, request: &Request) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(request).map_err(|error| self.lost(&error.into()))?;
        if line.len() >= MAX_REQUEST {
            let most = MAX_REQUEST >> 20;
            return Err(Failure::Usage(format!("this is more than the {most} MiB that a request may have: divide it")));
        }
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|error| self.lost(&error))
    }

    /// From now on the daemon may be silent as long as it likes; what it says can be waited for on this socket.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen(&mut self) -> Result<(), Failure> {
        self.stream.get_ref().set_read_timeout(None).map_err(|error| self.lost(&error))
    }

    /// Whether the next answer can be had without waiting for the daemon.
    pub fn has_answer(&self) -> bool {
        self.stream.buffer().contains(&b'\n')
    }

    /// The next line of the answer.
    ///
    /// # Errors
    /// When the daemon reports an error, went away, or does not answer.
    pub fn answer(&mut self) -> Result<Reply, Failure> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line) {
            Ok(0) => return Err(self.lost(&io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"))),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let silent = format!("no answer within {} seconds", ANSWER_TIME.as_secs());
                return Err(self.lost(&io::Error::new(io::ErrorKind::TimedOut, silent)));
            }
            Err(error) => return Err(self.lost(&error)),
            Ok(_) => {}
        }
        match serde_json::from_slice(&line).map_err(|error| self.lost(&error.into()))? {
            Reply::Error(message) => {
                Err(Failure::Running(format!("the daemon at {} says: {message}", self.path.display())))
            }
            Reply::Refused(report) => Err(Failure::Report(report)),
            Reply::Conflict(report) => Err(Failure::Answer(report)),
            reply => Ok(reply),
        }
    }

    fn lost(&self, error: &io::Error) -> Failure {
        Failure::Running(format!("talking to the daemon at {} failed: {error}", self.path.display()))
    }

    /// An answer of the wrong kind.
    pub fn unexpected(&self) -> Failure {
        Failure::Running(format!("the daemon at {} speaks another version's language", self.path.display()))
    }
}

/// To wait for its next answer.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}
