//! What ctnetlink has of the connections of a namespace (linux/netfilter/nfnetlink_conntrack.h): [`Ctnetlink`].

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

use crate::step::{Entry, Side};

/// The attribute of a zone.
const ZONE: u16 = 18;

/// Of the namespace that it was made in.
pub(crate) struct Ctnetlink {
    socket: OwnedFd,
    count: File,
}

impl Ctnetlink {
    /// Of this thread's namespace.
    pub(crate) fn new() -> Ctnetlink {
        let kind = SockProtocol::NetlinkNetFilter;
        let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), kind);
        let count = File::open("/proc/sys/net/netfilter/nf_conntrack_count").expect("nf_conntrack_count");
        Ctnetlink { socket: socket.expect("netlink socket"), count }
    }

    /// Entries in the router's table, expired ones that nobody collected yet among them.
    pub(crate) fn count(&self) -> usize {
        let mut text = [0u8; 16];
        let length = self.count.read_at(&mut text, 0).expect("nf_conntrack_count");
        std::str::from_utf8(&text[..length]).expect("digits").trim().parse().expect("a number")
    }

    fn request(&self, kind: u8, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend((20 + attributes.len() as u32).to_ne_bytes());
        message.extend((1u16 << 8 | u16::from(kind)).to_ne_bytes());
        message.extend((1 | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([family, 0, 0, 0]);
        message.extend(attributes);
        socket::send(self.socket.as_raw_fd(), &message, MsgFlags::empty()).expect("netlink send");
        self.receive()
    }

    pub(crate) fn flush(&self) {
        const DELETE: u8 = 2;
        const ACK: u16 = 4;
        if self.count() > 0 {
            self.request(DELETE, ACK, 0, &[]);
        }
    }

    /// The kernel's connection with the tuples and zones of `like`. With zones of one direction a question by tuple may find
    /// another connection; then all are looked at.
    pub(crate) fn entry(&self, like: &Entry) -> Option<Entry> {
        let (original, reply) = (&like.original, &like.reply);
        let found = match (original.zone, reply.zone) {
            (zone, other) if zone == other => self.find(like.proto, original, true),
            (0, zone) => self.ask(reply, &tuple_attribute(0x8002, like.proto, reply, Some(zone))),
            (_, _) => self.find(like.proto, original, false),
        };
        let is_it = |entry: &Entry| (&entry.original, &entry.reply) == (original, reply);
        found.filter(is_it).or_else(|| self.entries().into_iter().find(is_it))
    }

    /// The connection that has this tuple, as its original one or as that of its replies. Its zone is that of the one direction,
    /// or with `both` of both.
    pub(crate) fn find(&self, proto: u8, tuple: &Side, both: bool) -> Option<Entry> {
        let zone = (!both && tuple.zone != 0).then_some(tuple.zone);
        let mut attributes = tuple_attribute(0x8001, proto, tuple, zone);
        if both {
            attributes.extend(attribute(ZONE, &tuple.zone.to_be_bytes()));
        }
        self.ask(tuple, &attributes)
    }

    fn ask(&self, tuple: &Side, attributes: &[u8]) -> Option<Entry> {
        const GET: u8 = 1;
        let family = if tuple.src.is_ipv4() { 2 } else { 10 };
        read_entry(&self.request(GET, 0, family, attributes))
    }

    /// All the kernel's connections. Slow: it walks a table that all namespaces share.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        const GET: u8 = 1;
        const DUMP: u16 = 0x300;
        const DONE: u16 = 3;
        let mut entries = Vec::new();
        let mut answer = self.request(GET, DUMP, 0, &[]);
        loop {
            let mut messages = &answer[..];
            while messages.len() >= 16 {
                let length = u32::from_ne_bytes([messages[0], messages[1], messages[2], messages[3]]) as usize;
                if u16::from_ne_bytes([messages[4], messages[5]]) == DONE {
                    return entries;
                }
                entries.extend(read_entry(&messages[..length]));
                messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
            answer = self.receive();
        }
    }

    fn receive(&self) -> Vec<u8> {
        let mut answer = vec![0; 32768];
        let length = socket::recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("netlink answer");
        answer.truncate(length);
        answer
    }
}

fn tuple_attribute(kind: u16, proto: u8, side: &Side, zone: Option<u16>) -> Vec<u8> {
    let ip = match (side.src, side.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => [attribute(1, &src.octets()), attribute(2, &dst.octets())].concat(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => [attribute(3, &src.octets()), attribute(4, &dst.octets())].concat(),
        _ => panic!("two IP versions in one tuple"),
    };
    let mut l4 = attribute(1, &[proto]);
    let [icmp_type, code] = side.dport.to_be_bytes();
    match proto {
        1 | 58 => {
            let base = if proto == 1 { 4 } else { 7 };
            l4.extend(attribute(base, &side.sport.to_be_bytes()));
            l4.extend(attribute(base + 1, &[icmp_type]));
            l4.extend(attribute(base + 2, &[code]));
        }
        _ => {
            l4.extend(attribute(2, &side.sport.to_be_bytes()));
            l4.extend(attribute(3, &side.dport.to_be_bytes()));
        }
    }
    let mut tuple = [attribute(0x8001, &ip), attribute(0x8002, &l4)].concat();
    if let Some(zone) = zone {
        tuple.extend(attribute(3, &zone.to_be_bytes()));
    }
    attribute(kind, &tuple)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the attribute `path`, looked up level by level.
fn find<'a>(mut bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        if kind == path[0] {
            return if path.len() == 1 { Some(value) } else { find(value, &path[1..]) };
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// A number of up to eight bytes, in network order.
fn number(attributes: &[u8], path: &[u16]) -> Option<u64> {
    find(attributes, path).map(|value| value.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// A connection from ctnetlink's message (linux/netfilter/nfnetlink_conntrack.h).
fn read_entry(answer: &[u8]) -> Option<Entry> {
    const ERROR: u16 = 2;
    if u16::from_ne_bytes([answer[4], answer[5]]) == ERROR {
        return None;
    }
    let attributes = &answer[20..];
    let side = |tuple: u16| {
        let address = |v4: u16| {
            let bytes = find(attributes, &[tuple, 1, v4]).or_else(|| find(attributes, &[tuple, 1, v4 + 2]))?;
            match <[u8; 4]>::try_from(bytes) {
                Ok(octets) => Some(IpAddr::from(octets)),
                Err(_) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
            }
        };
        let part = |part: u16| number(attributes, &[tuple, 2, part]).map(|number| number as u16);
        let icmp = |part_v4: u16| part(part_v4).or_else(|| part(part_v4 + 3));
        Some(Side {
            src: address(1)?,
            dst: address(2)?,
            sport: icmp(4).or_else(|| part(2)).unwrap_or(0),
            dport: match (icmp(5), icmp(6)) {
                (Some(kind), Some(code)) => kind << 8 | code,
                _ => part(3).unwrap_or(0),
            },
            zone: number(attributes, &[18]).or_else(|| number(attributes, &[tuple, 3])).unwrap_or(0) as u16,
        })
    };
    let count = |direction: u16| Some((number(attributes, &[direction, 1])?, number(attributes, &[direction, 2])?));
    Some(Entry {
        proto: number(attributes, &[1, 2, 1])? as u8,
        original: side(1)?,
        reply: side(2)?,
        status: number(attributes, &[3])? as u32,
        timeout: number(attributes, &[7])? as u32,
        state: number(attributes, &[4, 1, 1]).or_else(|| number(attributes, &[4, 3, 1])).map(|state| state as u8),
        mark: number(attributes, &[8]).unwrap_or(0) as u32,
        counters: count(9).zip(count(10)).map(|(original, reply)| [original, reply]),
        has_start: number(attributes, &[20, 1]).is_some(),
    })
}
