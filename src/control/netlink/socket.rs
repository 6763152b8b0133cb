//! The two kinds of netlink sockets: [`Requests`], which asks and waits, and [`Events`], which listens.
//!
//! rtnetlink's own connection parses a whole dump into memory before it hands over the first message (several hundred
//! megabytes for a full BGP table), hides that a dump was interrupted, and passes over messages it cannot read with a log
//! line. So the messages are the netlink crates', and the sockets are driven here.

use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;

use super::Error;

/// The kernel's messages are at most 32 KiB, but for links with many virtual functions.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes of events the kernel may keep for us; a flap of a full table is about 200 MB, so it may well overflow.
const EVENT_BUFFER_BYTES: usize = 16 << 20;
/// Bytes of replies; a dump is produced as it is read and needs no more.
const REPLY_BUFFER_BYTES: usize = 1 << 20;
/// The kernel answers at once; seconds without an answer mean it never will.
const REPLY_SECONDS: i64 = 10;

/// How far a dump can be trusted to be whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Dumped {
    /// The tables changed meanwhile (`NLM_F_DUMP_INTR`); something may be missing.
    pub(super) interrupted: bool,
    /// Why the first of the messages that the netlink crates could not read was unreadable.
    pub(super) unreadable: Option<String>,
}

/// Asks the kernel, one request at a time, and waits for the answer.
#[derive(Debug)]
pub(super) struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    pub(super) fn open() -> Result<Requests, Error> {
        let failed = |source| Error::Socket { what: "open a netlink socket", source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        grow(&socket, REPLY_BUFFER_BYTES).map_err(failed)?;
        let patience = TimeVal::seconds(REPLY_SECONDS);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &patience).map_err(|errno| failed(errno.into()))?;
        Ok(Requests { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_BYTES) })
    }

    /// Asks for all of something; `each` gets the answers as they come.
    pub(super) fn dump(
        &mut self,
        what: &'static str,
        request: RouteNetlinkMessage,
        each: &mut dyn FnMut(RouteNetlinkMessage),
    ) -> Result<Dumped, Error> {
        self.send(what, request, NLM_F_DUMP)?;
        let mut dumped = Dumped::default();
        loop {
            self.receive(what)?;
            for message in Messages::of(&self.buffer) {
                let message = match message {
                    Ok(message) => message,
                    Err(unreadable) => {
                        dumped.unreadable.get_or_insert_with(|| unreadable.to_string());
                        continue;
                    }
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                dumped.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(dumped),
                    NetlinkPayload::Done(done) => {
                        return Err(Error::Refused { what, source: io::Error::from_raw_os_error(-done.code) });
                    }
                    NetlinkPayload::Error(error) => return Err(Error::Refused { what, source: error.to_io() }),
                    _ => {}
                }
            }
        }
    }

    /// Asks for something to be done, and waits until it is.
    pub(super) fn execute(
        &mut self,
        what: &'static str,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        self.send(what, request, NLM_F_ACK | flags)?;
        loop {
            self.receive(what)?;
            for message in Messages::of(&self.buffer) {
                let message = message.map_err(|source| Error::Unreadable { what, source: source.to_string() })?;
                match message.payload {
                    _ if message.header.sequence_number != self.sequence => {}
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(Error::Refused { what, source: error.to_io() }),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, what: &'static str, request: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(|source| Error::Socket { what, source })?;
        Ok(())
    }

    fn receive(&mut self, what: &'static str) -> Result<(), Error> {
        self.buffer.clear();
        let length =
            self.socket.recv(&mut self.buffer, libc::MSG_TRUNC).map_err(|source| Error::Socket { what, source })?;
        if length > self.buffer.len() {
            self.buffer.reserve(length);
            return Err(Error::Unreadable { what, source: format!("a message of {length} bytes") });
        }
        Ok(())
    }
}

/// What listening brought.
#[derive(Debug)]
pub(super) enum Heard {
    /// A message, with its header's flags.
    Message(RouteNetlinkMessage, u16),
    /// The kernel changed a setting of an interface (`RTM_NEWNETCONF`, `RTM_DELNETCONF`).
    Setting,
    /// Messages were lost.
    Lost,
    /// A message that the netlink crates cannot read; the text says why.
    Unreadable(String),
}

/// `RTM_NEWNETCONF` and `RTM_DELNETCONF`, which netlink-packet-route does not know.
const RTM_NETCONF: [u16; 2] = [80, 81];

/// Listens for changes.
#[derive(Debug)]
pub(super) struct Events {
    socket: Socket,
}

impl Events {
    /// Subscribes. From here on nothing that changes goes unheard, or it is [`Heard::Lost`].
    pub(super) fn open() -> Result<Events, Error> {
        const GROUPS: [MulticastGroup; 11] = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Ipv6Ifinfo,
            MulticastGroup::Ipv4Netconf,
            MulticastGroup::Ipv6Netconf,
        ];
        let failed = |source| Error::Socket { what: "subscribe to the kernel's routes", source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        grow(&socket, EVENT_BUFFER_BYTES).map_err(failed)?;
        let mask = GROUPS.iter().fold(0, |mask, &group| mask | 1 << (group as u32 - 1));
        socket.bind(&SocketAddr::new(0, mask)).map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        Ok(Events { socket })
    }

    /// For waiting on it; the runtime must be running.
    // What is deprecated about `new` is that an `AsRawFd` may name a descriptor it does not own; this one owns its socket,
    // never gives it out and closes it when it is dropped. The replacement is unsafe.
    #[allow(deprecated)]
    pub(super) fn into_async(self) -> Result<AsyncFd<Events>, Error> {
        AsyncFd::new(self).map_err(|source| Error::Socket { what: "wait for the kernel's routes", source })
    }

    /// Reads one datagram, if there is one, and appends what it says to `into`. Returns whether there was one.
    pub(super) fn read(&self, buffer: &mut Vec<u8>, into: &mut Vec<Heard>) -> io::Result<bool> {
        buffer.clear();
        buffer.reserve(BUFFER_BYTES);
        match self.socket.recv_from(buffer, libc::MSG_TRUNC) {
            // Only the kernel, whose port number is 0, may say what is so.
            Ok((_, from)) if from.port_number() != 0 => Ok(true),
            Ok((length, _)) => {
                into.extend((length > buffer.len()).then_some(Heard::Lost));
                for message in Messages::of(buffer) {
                    into.extend(heard(message));
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                into.push(Heard::Lost);
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }
}

impl Events {
    /// Reads all that is queued, and forgets it. An error comes again with the next [`Events::read`], if it lasts.
    pub(super) fn discard(&self, buffer: &mut Vec<u8>) {
        let mut forgotten = Vec::new();
        while self.read(buffer, &mut forgotten).is_ok_and(|more| more) {
            forgotten.clear();
        }
    }
}

impl std::os::fd::AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

fn heard(message: Result<NetlinkMessage<RouteNetlinkMessage>, Unreadable>) -> Option<Heard> {
    match message {
        Ok(message) => match message.payload {
            NetlinkPayload::InnerMessage(inner) => Some(Heard::Message(inner, message.header.flags)),
            NetlinkPayload::Overrun(_) => Some(Heard::Lost),
            _ => None,
        },
        Err(unreadable) if RTM_NETCONF.contains(&unreadable.message_type) => Some(Heard::Setting),
        Err(unreadable) => Some(Heard::Unreadable(unreadable.to_string())),
    }
}

/// A message that could not be read.
#[derive(Debug)]
struct Unreadable {
    message_type: u16,
    reason: String,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "message of type {}: {}", self.message_type, self.reason)
    }
}

/// The messages of a datagram, one after another.
struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    fn of(datagram: &'a [u8]) -> Messages<'a> {
        Messages { rest: datagram }
    }
}

impl Iterator for Messages<'_> {
    type Item = Result<NetlinkMessage<RouteNetlinkMessage>, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let broken = |message_type, error: DecodeError| Unreadable { message_type, reason: error.to_string() };
        let (length, message_type) = match NetlinkBuffer::new_checked(self.rest) {
            Ok(buffer) => (buffer.length() as usize, buffer.message_type()),
            Err(error) => {
                self.rest = &[];
                return Some(Err(broken(0, error)));
            }
        };
        let (message, _) = self.rest.split_at(length.min(self.rest.len()));
        // Messages are aligned to 4 bytes; the last may lack its padding.
        self.rest = &self.rest[length.next_multiple_of(4).clamp(4, self.rest.len().max(4)).min(self.rest.len())..];
        Some(NetlinkMessage::deserialize(message).map_err(|error| broken(message_type, error)))
    }
}

/// Sets the receive buffer's size, beyond the system's limit where we may (it needs CAP_NET_ADMIN), else up to it.
fn grow(socket: &Socket, bytes: usize) -> io::Result<()> {
    match setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &bytes) {
        Ok(()) => Ok(()),
        Err(_) => Ok(setsockopt(&socket.as_fd(), sockopt::RcvBuf, &bytes)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::route::RouteMessage;

    fn bytes_of(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn datagrams_are_cut_into_messages_and_rubbish_is_said() {
        let route = bytes_of(RouteNetlinkMessage::NewRoute(RouteMessage::default()));
        let mut datagram = route.repeat(2);
        assert_eq!(Messages::of(&datagram).filter(Result::is_ok).count(), 2);
        // A message of unknown type in between is told of, and the next is still read.
        let mut unknown = route.clone();
        unknown[4..6].copy_from_slice(&80u16.to_ne_bytes());
        datagram.extend(&unknown);
        datagram.extend(&route);
        let heard: Vec<_> = Messages::of(&datagram).filter_map(heard).collect();
        assert!(matches!(heard[..], [Heard::Message(..), Heard::Message(..), Heard::Setting, Heard::Message(..)]));
        for cut in 0..datagram.len() {
            let _ = Messages::of(&datagram[..cut]).count();
        }
        for lying in [0u32, 1, 15, 16, 17, 1 << 20, u32::MAX] {
            let mut bytes = route.clone();
            bytes[..4].copy_from_slice(&lying.to_ne_bytes());
            let _ = Messages::of(&bytes).count();
        }
    }
}
