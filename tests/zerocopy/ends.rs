//! The programs at both ends of the wire, as threads that live in a namespace: the guest has no interpreter and no web server.
//!
//! [`start`] makes the servers, which live as long as the process: on both hosts TCP and UDP on [`PORT`], and an FTP server
//! outside. What goes over TCP is a pseudo-random [`Stream`] that both sides know by its seed, so every byte is compared and not
//! only a sum.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::support::{Net, Place};

/// Where both hosts' servers listen.
pub(crate) const PORT: u16 = 7;
/// How long nothing may come before a transfer counts as broken: longer than a restart takes on a machine that is busy.
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes moved at a time.
const PIECE: usize = 16 << 10;
/// Datagrams under way.
const WINDOW: usize = 24;

/// Runs something on a thread in a namespace.
pub(crate) fn inside<T: Send + 'static>(
    net: &Net,
    place: Place,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let file = format!("/run/netns/{}", net.name(place));
    thread::spawn(move || {
        let space = File::open(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        setns(space, CloneFlags::CLONE_NEWNET).expect("a namespace to move to");
        work()
    })
}

/// The same, and waits for it.
pub(crate) fn at<T: Send + 'static>(net: &Net, place: Place, work: impl FnOnce() -> T + Send + 'static) -> T {
    match inside(net, place, work).join() {
        Ok(answer) => answer,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Pseudo-random bytes that both ends can make.
struct Stream {
    state: u64,
}

impl Stream {
    fn new(seed: u64) -> Stream {
        Stream { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// The next bytes; `into` is of whole words.
    fn fill(&mut self, into: &mut [u8]) {
        for word in into.chunks_exact_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes());
        }
    }
}

/// Sends `bytes` of a stream.
fn send_stream(to: &mut TcpStream, seed: u64, bytes: usize) -> Result<(), String> {
    let (mut stream, mut piece) = (Stream::new(seed), [0; PIECE]);
    for number in 0..bytes / PIECE {
        stream.fill(&mut piece);
        to.write_all(&piece).map_err(|error| format!("sending, after {} bytes: {error}", number * PIECE))?;
    }
    Ok(())
}

/// Bytes that servers have taken and found right.
static COMPARED: AtomicU64 = AtomicU64::new(0);

/// How much [`COMPARED`] says.
pub(crate) fn compared() -> u64 {
    COMPARED.load(Ordering::Relaxed)
}

/// Reads a stream of `bytes`, or up to its end, and compares; how much it was.
fn read_stream(from: &mut impl Read, seed: u64, bytes: Option<usize>) -> Result<usize, String> {
    let (mut stream, mut want, mut got, mut all) = (Stream::new(seed), [0; PIECE], [0; PIECE], 0);
    while bytes.is_none_or(|bytes| all < bytes) {
        match from.read_exact(&mut got) {
            Err(error) if bytes.is_none() && error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(all),
            other => other.map_err(|error| format!("reading, after {all} bytes: {error}"))?,
        }
        stream.fill(&mut want);
        if let Some(place) = (0..PIECE).find(|&at| want[at] != got[at]) {
            return Err(format!("byte {} is not what was sent", all + place));
        }
        all += PIECE;
        COMPARED.fetch_add(PIECE as u64, Ordering::Relaxed);
    }
    Ok(all)
}

/// Starts the servers on both hosts.
pub(crate) fn start(net: &Net) {
    for place in [Place::Lan, Place::Wan] {
        let listener = at(net, place, || TcpListener::bind(("::", PORT)).expect("a free port"));
        thread::spawn(move || accept(&listener, serve));
        let socket = at(net, place, || UdpSocket::bind(("::", PORT)).expect("a free port"));
        thread::spawn(move || echo(&socket));
    }
    let listener = at(net, Place::Wan, || TcpListener::bind(("::", 21)).expect("a free port"));
    let file = format!("/run/netns/{}", net.name(Place::Wan));
    thread::spawn(move || {
        // It opens connections of its own.
        setns(File::open(file).expect("the namespace is there"), CloneFlags::CLONE_NEWNET).expect("a namespace");
        accept(&listener, serve_ftp);
    });
}

fn accept(listener: &TcpListener, serve: fn(TcpStream) -> Result<(), String>) {
    for client in listener.incoming().flatten() {
        // A client that has gone is not the server's trouble: it notices itself what is missing.
        thread::spawn(move || serve(client));
    }
}

/// One line asks, `who`, `take SEED` (up to the stream's end) or `give SEED BYTES`; one line answers but the last.
fn serve(client: TcpStream) -> Result<(), String> {
    client.set_read_timeout(Some(SILENCE)).map_err(|error| error.to_string())?;
    let mut writer = client.try_clone().map_err(|error| error.to_string())?;
    let peer = client.peer_addr().map_err(|error| error.to_string())?;
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    reader.read_line(&mut line).map_err(|error| error.to_string())?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).ok_or("no number".to_owned());
    let answer = match words.first() {
        Some(&"who") => canonical(peer).to_string(),
        Some(&"take") => match read_stream(&mut reader, number(1)?, None) {
            Ok(bytes) => format!("{bytes} equal"),
            Err(error) => error,
        },
        Some(&"give") => return send_stream(&mut writer, number(1)?, number(2)? as usize),
        _ => "what?".to_owned(),
    };
    writeln!(writer, "{answer}").map_err(|error| error.to_string())
}

/// Gives back each datagram; one that asks `who` gets the sender's address.
fn echo(socket: &UdpSocket) {
    let mut bytes = [0; 2048];
    while let Ok((length, peer)) = socket.recv_from(&mut bytes) {
        let asked = &bytes[..length] == b"who";
        let name = canonical(peer).to_string();
        let _ = socket.send_to(if asked { name.as_bytes() } else { &bytes[..length] }, peer);
    }
}

/// An IPv4 address as such, and not inside of an IPv6 one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn connect(to: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).map_err(|error| format!("{to}: {error}"))?;
    stream.set_read_timeout(Some(SILENCE)).map_err(|error| error.to_string())?;
    stream.set_write_timeout(Some(SILENCE)).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// Sends `bytes` of a stream to a server, which compares.
pub(crate) fn upload(to: SocketAddr, bytes: usize) -> Result<(), String> {
    let (mut stream, seed) = (connect(to)?, u64::from(to.port()) + bytes as u64);
    stream.write_all(format!("take {seed}\n").as_bytes()).map_err(|error| error.to_string())?;
    send_stream(&mut stream, seed, bytes)?;
    found_equal(stream, bytes)
}

/// Ends a stream of `bytes` and hears what the server says of it.
fn found_equal(stream: TcpStream, bytes: usize) -> Result<(), String> {
    stream.shutdown(Shutdown::Write).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(|error| format!("the server's answer: {error}"))?;
    if answer.trim() == format!("{bytes} equal") { Ok(()) } else { Err(format!("sent {bytes} bytes: {answer:?}")) }
}

/// Has a server send `bytes` of a stream, and compares.
pub(crate) fn download(from: SocketAddr, bytes: usize) -> Result<(), String> {
    let (mut stream, seed) = (connect(from)?, u64::from(from.port()) + 2 * bytes as u64);
    stream.write_all(format!("give {seed} {bytes}\n").as_bytes()).map_err(|error| error.to_string())?;
    read_stream(&mut stream, seed, Some(bytes)).map(|_| ())
}

/// As whom a server sees us over TCP.
pub(crate) fn who(to: SocketAddr) -> Result<SocketAddr, String> {
    let mut stream = connect(to)?;
    stream.write_all(b"who\n").map_err(|error| error.to_string())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(|error| error.to_string())?;
    answer.trim().parse().map_err(|_| format!("the server says: {answer}"))
}

/// As whom a server sees us over UDP.
pub(crate) fn who_udp(to: SocketAddr) -> Result<SocketAddr, String> {
    let socket = udp(to)?;
    socket.send(b"who").map_err(|error| error.to_string())?;
    let mut bytes = [0; 64];
    let length = socket.recv(&mut bytes).map_err(|error| format!("no answer from {to}: {error}"))?;
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    text.parse().map_err(|_| format!("the server says: {text}"))
}

fn udp(to: SocketAddr) -> Result<UdpSocket, String> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).map_err(|error| error.to_string())?;
    socket.connect(to).map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(Duration::from_secs(3))).map_err(|error| error.to_string())?;
    Ok(socket)
}

/// Sends `count` datagrams of all lengths up to `longest` bytes, a few under way at a time, in `flows` flows, and compares what
/// comes back. Each has to.
pub(crate) fn echoes(to: SocketAddr, count: usize, longest: usize, flows: usize) -> Result<(), String> {
    let sockets = (0..flows).map(|_| udp(to)).collect::<Result<Vec<_>, _>>()?;
    let datagram = |number: usize| {
        let mut bytes = vec![0; (longest - number % (longest - 8)) & !7];
        Stream::new(number as u64).fill(&mut bytes);
        bytes.extend_from_slice(&vec![b'.'; (longest - number % (longest - 8)) & 7]);
        bytes
    };
    let mut bytes = [0; 2048];
    for first in (0..count).step_by(WINDOW) {
        let burst = first..count.min(first + WINDOW);
        for number in burst.clone() {
            sockets[number % flows].send(&datagram(number)).map_err(|error| error.to_string())?;
        }
        for number in burst {
            let came = sockets[number % flows].recv(&mut bytes);
            let length = came.map_err(|error| format!("datagram {number} of {count} did not come back: {error}"))?;
            if bytes[..length] != datagram(number) {
                let wanted = datagram(number).len();
                return Err(format!("datagram {number} of {wanted} bytes came back as {length} other ones"));
            }
        }
    }
    Ok(())
}

/// Bytes of the file that the FTP server has.
const FTP_FILE: usize = 4 * PIECE;

/// An FTP server that knows the active way only: it connects to where PORT says.
fn serve_ftp(client: TcpStream) -> Result<(), String> {
    client.set_read_timeout(Some(SILENCE)).map_err(|error| error.to_string())?;
    let mut writer = client.try_clone().map_err(|error| error.to_string())?;
    let mut data = None;
    writer.write_all(b"220 ready\r\n").map_err(|error| error.to_string())?;
    for line in BufReader::new(client).lines() {
        let line = line.map_err(|error| error.to_string())?;
        let answer = match line.split_once(' ') {
            Some(("PORT", numbers)) => {
                let numbers: Vec<u8> = numbers.split(',').filter_map(|number| number.parse().ok()).collect();
                let [a, b, c, d, high, low] = numbers[..] else { return Err("a wrong PORT".to_owned()) };
                data = Some(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low]))));
                format!("200 {}", data.expect("just set"))
            }
            Some(("RETR", _)) => {
                let to = data.take().ok_or("no PORT before it")?;
                match connect(to).and_then(|mut to| send_stream(&mut to, 21, FTP_FILE)) {
                    Ok(()) => "226 sent".to_owned(),
                    Err(error) => format!("425 {error}"),
                }
            }
            Some(("USER", _)) => "230 welcome".to_owned(),
            _ => "500 what?".to_owned(),
        };
        writer.write_all(format!("{answer}\r\n").as_bytes()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Fetches the FTP server's file the active way, from this host's `own` address; the address that the server was told.
pub(crate) fn fetch_by_ftp(server: SocketAddr, own: [u8; 4]) -> Result<SocketAddr, String> {
    let mut control = connect(server)?;
    let mut answers = BufReader::new(control.try_clone().map_err(|error| error.to_string())?).lines();
    let mut answer = |code: &str| match answers.next() {
        Some(Ok(line)) if line.starts_with(code) => Ok(line),
        other => Err(format!("not {code} but {other:?}")),
    };
    answer("220")?;
    // A helper reads commands from the second on, as Linux's: before a line it wants to have seen the end of another.
    control.write_all(b"USER anonymous\r\n").map_err(|error| error.to_string())?;
    answer("230")?;
    let listener = TcpListener::bind(("0.0.0.0", 0)).map_err(|error| error.to_string())?;
    let [high, low] = listener.local_addr().map_err(|error| error.to_string())?.port().to_be_bytes();
    let [a, b, c, d] = own;
    // In one segment: a helper reads no command that comes in pieces.
    let command = format!("PORT {a},{b},{c},{d},{high},{low}\r\n");
    control.write_all(command.as_bytes()).map_err(|error| error.to_string())?;
    let told = answer("200")?;
    control.write_all(b"RETR file\r\n").map_err(|error| error.to_string())?;
    let received = thread::spawn(move || -> Result<usize, String> {
        let (mut data, _) = listener.accept().map_err(|error| error.to_string())?;
        read_stream(&mut data, 21, Some(FTP_FILE))
    });
    answer("226")?;
    received.join().map_err(|_| "the reader's panic".to_owned())??;
    told[4..].parse().map_err(|_| format!("no address in {told}"))
}

/// An upload that goes on until its end is asked for.
pub(crate) struct Traffic {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Traffic {
    /// Starts one from a host, of some hundred kilobytes a second.
    pub(crate) fn start(net: &Net, from: Place, to: SocketAddr) -> Traffic {
        let enough = Arc::new(AtomicBool::new(false));
        let told = enough.clone();
        Traffic { enough, thread: inside(net, from, move || upload_until(to, &told)) }
    }

    /// Ends it.
    pub(crate) fn end(self) -> Result<(), String> {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the sender's panic".to_owned())?
    }
}

fn upload_until(to: SocketAddr, enough: &AtomicBool) -> Result<(), String> {
    let (mut to, mut stream, mut piece, mut sent) = (connect(to)?, Stream::new(1), [0; PIECE], 0);
    to.write_all(b"take 1\n").map_err(|error| error.to_string())?;
    while !enough.load(Ordering::Relaxed) {
        stream.fill(&mut piece);
        to.write_all(&piece).map_err(|error| format!("sending, after {sent} bytes: {error}"))?;
        sent += PIECE;
        thread::sleep(Duration::from_millis(50));
    }
    found_equal(to, sent)
}
