//! [`Netdev`]: what the kernel says of an interface through the `netdev` family of generic netlink: XDP features (Linux 6.3),
//! real queues with their NAPI instances, and these with their interrupts (6.8).
//!
//! Asks in the network namespace of the thread that opened it, one question at a time. ethtool's channels do not always say how
//! many queues can receive (virtio_net takes more when an XDP program is attached); this does. Layouts and numbers are those of
//! include/uapi/linux/netdev.h and genetlink.h.

use rtnetlink::sys::{Socket, SocketAddr};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

const NETLINK_GENERIC: isize = 16;
/// `GENL_ID_CTRL`, the family that knows the others, with its question and attributes.
const CONTROL: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;

const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
const DEV_ZC_MAX_SEGS: u16 = 4;
const QUEUE_GET: u8 = 10;
const QUEUE_ID: u16 = 1;
const QUEUE_IFINDEX: u16 = 2;
const QUEUE_TYPE: u16 = 3;
const QUEUE_NAPI: u16 = 4;
const QUEUE_TYPE_RX: u32 = 0;
const NAPI_GET: u8 = 11;
const NAPI_IFINDEX: u16 = 1;
const NAPI_ID: u16 = 2;
const NAPI_IRQ: u16 = 3;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
/// Bytes of `struct nlmsghdr`, of that and `struct genlmsghdr`, and of `struct nlattr`.
const HEADER: usize = 16;
const HEADERS: usize = 20;
const ATTRIBUTE: usize = 4;
const BUFFER: usize = 64 << 10;
/// The kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a driver can do with XDP (`enum netdev_xdp_act`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct XdpFeatures {
    /// The bits.
    pub bits: u64,
    /// Most buffers that a frame may take in zero-copy mode; 1 without frags, 0 when the kernel does not tell.
    pub zero_copy_segments: u32,
}

impl XdpFeatures {
    /// Native XDP (`NETDEV_XDP_ACT_BASIC`).
    pub fn native(self) -> bool {
        self.bits & 1 != 0
    }

    /// Redirection, without which there is no native AF_XDP (`NETDEV_XDP_ACT_REDIRECT`).
    pub fn redirect(self) -> bool {
        self.bits & 2 != 0
    }

    /// AF_XDP without copies (`NETDEV_XDP_ACT_XSK_ZEROCOPY`).
    pub fn zero_copy(self) -> bool {
        self.bits & 8 != 0
    }

    /// Frames of several buffers (`NETDEV_XDP_ACT_RX_SG`).
    pub fn frags(self) -> bool {
        self.bits & 32 != 0
    }
}

/// A queue that receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxQueue {
    /// Its number.
    pub queue: u32,
    /// The interrupt that tells of its packets, if the driver tells which.
    pub irq: Option<u32>,
}

/// The open socket. See the module's head.
#[derive(Debug)]
pub struct Netdev {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl Netdev {
    /// Finds the family.
    ///
    /// # Errors
    /// `ENOENT` when the kernel does not have it (before 6.3).
    pub fn open() -> io::Result<Netdev> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let patience = nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0);
        nix::sys::socket::setsockopt(&socket.as_fd(), nix::sys::socket::sockopt::ReceiveTimeout, &patience)?;
        let mut it = Netdev { socket, family: CONTROL, sequence: 0 };
        let name = attribute(CONTROL_FAMILY_NAME, b"netdev\0");
        let mut family = None;
        it.ask(CONTROL_GET_FAMILY, &name, 0, &mut |attributes| {
            family =
                find(attributes, CONTROL_FAMILY_ID).and_then(|value| Some(u16::from_ne_bytes(value.try_into().ok()?)));
        })?;
        it.family = family.ok_or(io::ErrorKind::NotFound)?;
        Ok(it)
    }

    /// The XDP features of the interface with this index.
    ///
    /// # Errors
    /// The kernel's; `ENODEV` when there is none.
    pub fn xdp_features(&mut self, ifindex: u32) -> io::Result<XdpFeatures> {
        let mut features = None;
        self.ask(DEV_GET, &attribute(DEV_IFINDEX, &ifindex.to_ne_bytes()), 0, &mut |attributes| {
            let bits =
                find(attributes, DEV_XDP_FEATURES).and_then(|value| Some(u64::from_ne_bytes(value.try_into().ok()?)));
            let segments = number(attributes, DEV_ZC_MAX_SEGS).unwrap_or(0);
            features = bits.map(|bits| XdpFeatures { bits, zero_copy_segments: segments });
        })?;
        features.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The queues of the interface with this index that can receive now, by number.
    ///
    /// # Errors
    /// The kernel's; `EOPNOTSUPP` before Linux 6.8.
    pub fn rx_queues(&mut self, ifindex: u32) -> io::Result<Vec<RxQueue>> {
        let mut queues: Vec<(u32, Option<u32>)> = Vec::new();
        self.ask(QUEUE_GET, &attribute(QUEUE_IFINDEX, &ifindex.to_ne_bytes()), DUMP, &mut |attributes| {
            if number(attributes, QUEUE_TYPE) == Some(QUEUE_TYPE_RX)
                && let Some(queue) = number(attributes, QUEUE_ID)
            {
                queues.push((queue, number(attributes, QUEUE_NAPI)));
            }
        })?;
        let mut irqs: Vec<(u32, u32)> = Vec::new();
        self.ask(NAPI_GET, &attribute(NAPI_IFINDEX, &ifindex.to_ne_bytes()), DUMP, &mut |attributes| {
            if let (Some(napi), Some(irq)) = (number(attributes, NAPI_ID), number(attributes, NAPI_IRQ)) {
                irqs.push((napi, irq));
            }
        })?;
        let irq = |napi: Option<u32>| irqs.iter().find(|(known, _)| Some(*known) == napi).map(|(_, irq)| *irq);
        let mut queues: Vec<_> = queues.into_iter().map(|(queue, napi)| RxQueue { queue, irq: irq(napi) }).collect();
        queues.sort_unstable_by_key(|it| it.queue);
        Ok(queues)
    }

    /// Asks, and gives `each` the attributes of every answer.
    fn ask(&mut self, command: u8, attributes: &[u8], flags: u16, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.sequence += 1;
        let length = (HEADERS + attributes.len()) as u32;
        let mut request = Vec::with_capacity(length as usize);
        request.extend_from_slice(&length.to_ne_bytes());
        request.extend_from_slice(&self.family.to_ne_bytes());
        request.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        request.extend_from_slice(&self.sequence.to_ne_bytes());
        request.extend_from_slice(&[0, 0, 0, 0, command, 1, 0, 0]);
        request.extend_from_slice(attributes);
        self.socket.send(&request, 0)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            let length = self.socket.recv(&mut buffer, libc::MSG_TRUNC)?;
            if length > buffer.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if take(&buffer, self.sequence, flags & DUMP != 0, each)? {
                return Ok(());
            }
        }
    }
}

/// Gives `each` the attributes of a datagram's messages; whether it was the last datagram of the answer.
fn take(datagram: &[u8], sequence: u32, dump: bool, each: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
    let mut rest = datagram;
    let mut done = false;
    while let Some(header) = rest.first_chunk::<HEADER>() {
        let [a, b, c, d, e, f, _, _, g, h, i, j, ..] = *header;
        let (length, kind) = (u32::from_ne_bytes([a, b, c, d]) as usize, u16::from_ne_bytes([e, f]));
        if length < HEADER || length > rest.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (message, after) = rest.split_at(length);
        rest = &after[(length.next_multiple_of(4) - length).min(after.len())..];
        if u32::from_ne_bytes([g, h, i, j]) != sequence {
            continue;
        }
        match kind {
            NLMSG_ERROR | NLMSG_DONE => {
                let code = message[HEADER..].first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                if code < 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                done = true;
            }
            _ => {
                each(message.get(HEADERS..).unwrap_or_default());
                done |= !dump;
            }
        }
    }
    Ok(done)
}

/// An attribute with its header, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of this kind.
fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const KIND: u16 = 0x3fff; // the rest says "nested" and "network byte order"
    let mut rest = attributes;
    while let Some([a, b, c, d]) = rest.first_chunk::<ATTRIBUTE>() {
        let (length, kind) = (usize::from(u16::from_ne_bytes([*a, *b])), u16::from_ne_bytes([*c, *d]));
        if length < ATTRIBUTE || length > rest.len() {
            return None;
        }
        if kind & KIND == wanted {
            return Some(&rest[ATTRIBUTE..length]);
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    None
}

fn number(attributes: &[u8], wanted: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(find(attributes, wanted)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_lo_or_has_no_such_family() {
        let Ok(mut netdev) = Netdev::open() else { return };
        let features = netdev.xdp_features(1).expect("lo is there");
        assert!(!features.native() && !features.zero_copy(), "{features:?}");
        assert!(netdev.xdp_features(0x7fff_fff0).is_err());
        if let Ok(queues) = netdev.rx_queues(1) {
            assert_eq!(queues, [RxQueue { queue: 0, irq: None }]);
        }
    }

    fn message(sequence: u32, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::from((HEADER as u32 + body.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn answers_are_cut_into_attributes_and_rubbish_is_survived() {
        let mut body = vec![0; 4];
        body.extend(attribute(7, &[1, 2, 3]));
        body.extend(attribute(QUEUE_ID, &5u32.to_ne_bytes()));
        let mut datagram = message(3, 0x20, &body);
        datagram.extend(message(2, 0x20, &body)); // an answer to somebody else
        datagram.extend(message(3, NLMSG_DONE, &0i32.to_ne_bytes()));
        let mut seen = Vec::new();
        let done = take(&datagram, 3, true, &mut |attributes| {
            seen.push((number(attributes, QUEUE_ID), find(attributes, 7).map(<[u8]>::to_vec)));
        });
        assert!(done.expect("whole"));
        assert_eq!(seen, [(Some(5), Some(vec![1, 2, 3]))]);
        let refused = take(&message(3, NLMSG_ERROR, &(-libc::ENODEV).to_ne_bytes()), 3, false, &mut |_| {});
        assert_eq!(refused.map_err(|error| error.raw_os_error()), Err(Some(libc::ENODEV)));
        for cut in 0..datagram.len() {
            let _ = take(&datagram[..cut], 3, true, &mut |attributes| assert_eq!(number(attributes, 99), None));
        }
        for lying in [0u32, 1, 15, 17, u32::MAX] {
            let mut bytes = datagram.clone();
            bytes[..4].copy_from_slice(&lying.to_ne_bytes());
            let _ = take(&bytes, 3, true, &mut |_| {});
        }
        assert_eq!(find(&[3, 0, 1, 0], 1), None);
    }
}
