//! The control socket: JSON lines over a Unix stream socket, the server for the daemon and the client for the verbs.
//!
//! A client writes one [`Request`] per line. The daemon answers each with [`Reply`] lines: `stats` and `rules` with one,
//! `conntrack` with one per connection and then `end`; whatever goes wrong with one `error`. A request that is too long or no
//! JSON is answered with an error, and after one that is too long the connection ends, since nobody knows where the next begins.
//! Listings are fetched from the workers in bounded pieces, so a long listing holds no worker up, and a client that does
//! not read is given up after [`WRITE_TIME`]. The server knows the workers only as a [`Backend`].

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::{UnixListener, UnixStream};

use super::startup::Failure;
use super::stats::StatsReport;
use crate::wire::{Addr, Family};

mod conn;
#[cfg(test)]
pub(super) mod tests;

/// The longest request line, in bytes.
pub const MAX_REQUEST: usize = 4096;

/// Most clients served at a time; more wait in the listen queue.
const MAX_CLIENTS: usize = 32;

/// How long a client may stay silent between requests.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// How long one write to a client may take.
pub const WRITE_TIME: Duration = Duration::from_secs(10);

/// How long a client of ours waits for the daemon's next line.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Where the workers stand behind the control thread. Implemented over the workers' mailboxes, and by a fake in tests.
pub trait Backend {
    /// One connection of a listing.
    type Conn: ListedConn;

    /// All counters.
    fn stats(&self) -> impl Future<Output = Result<StatsReport, BackendError>>;

    /// The next bounded piece of the listing of all connections from `cursor` on (start with the default), and the cursor
    /// for the piece after it, `None` at the end.
    fn conntrack(
        &self,
        cursor: Cursor,
    ) -> impl Future<Output = Result<(Vec<Self::Conn>, Option<Cursor>), BackendError>>;

    /// The rules with counters, as iptables-save prints them.
    fn rules_text(&self, family: Family) -> impl Future<Output = Result<String, BackendError>>;
}

/// What the listing of connections needs to know of one.
pub trait ListedConn {
    /// IP version.
    fn family(&self) -> Family;
    /// Transport protocol.
    fn proto(&self) -> u8;
    /// Source address of the original direction.
    fn src(&self) -> Addr;
    /// Destination address of the original direction.
    fn dst(&self) -> Addr;
    /// Appends the line that `conntrack -L` prints, without a line feed; `extended` is its `-o extended`.
    fn write_line(&self, extended: bool, line: &mut String);
    /// The object that the JSON listing has for it.
    fn to_json(&self) -> serde_json::Value;
}

/// Where a listing goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The worker.
    pub worker: usize,
    /// The worker's own cursor.
    pub position: usize,
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
    /// The connections.
    Conntrack {
        /// What a line of the answer holds.
        #[serde(default)]
        output: Output,
        /// Which of them.
        #[serde(default)]
        filter: ConnFilter,
    },
}

fn four() -> u8 {
    4
}

/// The forms of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// As `conntrack -L`.
    #[default]
    Text,
    /// As `conntrack -L -o extended`.
    Extended,
    /// An object for each connection.
    Json,
}

/// Which connections to list. What is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnFilter {
    /// 4 or 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<u8>,
    /// Transport protocol's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<u8>,
    /// Original source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<Network>,
    /// Original destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<Network>,
}

impl ConnFilter {
    /// Whether `conn` is one of those asked for.
    pub fn admits(&self, conn: &impl ListedConn) -> bool {
        let version = if conn.family() == Family::V4 { 4 } else { 6 };
        self.family.is_none_or(|family| family == version)
            && self.proto.is_none_or(|proto| proto == conn.proto())
            && self.src.is_none_or(|network| network.contains(conn.family(), conn.src()))
            && self.dst.is_none_or(|network| network.contains(conn.family(), conn.dst()))
    }
}

/// An address, or a prefix of them. Its text is `ADDR` or `ADDR/LENGTH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    length: u8,
}

impl Network {
    fn family(self) -> Family {
        if self.address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Whether `addr`, an address of `family`, lies in it.
    pub fn contains(self, family: Family, addr: Addr) -> bool {
        let mask = Addr::prefix_mask(self.family(), self.length);
        self.family() == family && Addr::from(self.address).and(mask) == addr.and(mask)
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = || format!("`{text}` is no address; allowed: ADDR or ADDR/LENGTH such as 10.0.0.0/8 or fd00::1");
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => most,
            Some(length) => length.parse().ok().filter(|&length: &u8| length <= most).ok_or_else(wrong)?,
        };
        Ok(Network { address, length })
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Network, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        format!("{}/{}", network.address, network.length)
    }
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The answer to `stats`: a [`StatsReport`].
    Stats(serde_json::Value),
    /// The answer to `rules`.
    Rules(String),
    /// A connection, as text.
    Line(String),
    /// A connection, as an object.
    Conn(serde_json::Value),
    /// The listing is complete.
    End {
        /// How many connections it had.
        count: u64,
    },
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
    let (read, mut write) = stream.into_split();
    let mut read = AsyncBufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
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
                Ok(request) => answer(&mut write, request, backend).await,
                Err(error) => send(&mut write, &Reply::Error(format!("not a request: {error}"))).await,
            }
        };
        if long || outcome.is_err() {
            return;
        }
    }
}

type Writer = tokio::net::unix::OwnedWriteHalf;

async fn answer<B: Backend>(write: &mut Writer, request: Request, backend: &B) -> io::Result<()> {
    let reply = match request {
        Request::Stats {} => backend.stats().await.map(|report| {
            serde_json::to_value(report).map_or_else(|error| Reply::Error(error.to_string()), Reply::Stats)
        }),
        Request::Rules { family: 4 } => backend.rules_text(Family::V4).await.map(Reply::Rules),
        Request::Rules { family: 6 } => backend.rules_text(Family::V6).await.map(Reply::Rules),
        Request::Rules { family } => Ok(Reply::Error(format!("family {family}: allowed: 4 or 6"))),
        Request::Conntrack { output, filter } => return listing(write, output, &filter, backend).await,
    };
    send(write, &reply.unwrap_or_else(|error| Reply::Error(error.0))).await
}

/// The connections, piece by piece.
async fn listing<B: Backend>(write: &mut Writer, output: Output, filter: &ConnFilter, backend: &B) -> io::Result<()> {
    let mut count = 0;
    let mut cursor = Some(Cursor::default());
    while let Some(from) = cursor {
        let (conns, next) = match backend.conntrack(from).await {
            Ok(piece) => piece,
            Err(error) => return send(write, &Reply::Error(error.0)).await,
        };
        let mut lines = Vec::new();
        for conn in conns.iter().filter(|conn| filter.admits(*conn)) {
            let reply = match output {
                Output::Json => Reply::Conn(conn.to_json()),
                Output::Text | Output::Extended => {
                    let mut line = String::new();
                    conn.write_line(output == Output::Extended, &mut line);
                    Reply::Line(line)
                }
            };
            serde_json::to_writer(&mut lines, &reply)?;
            lines.push(b'\n');
            count += 1;
        }
        write_all(write, &lines).await?;
        cursor = next;
    }
    send(write, &Reply::End { count }).await
}

async fn send(write: &mut Writer, reply: &Reply) -> io::Result<()> {
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
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|error| self.lost(&error))
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
