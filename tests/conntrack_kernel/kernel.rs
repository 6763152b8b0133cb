//! The kernel's side: three namespaces, client - router - server, that one packet at a time crosses; what conntrack called
//! it there, and what ctnetlink has of its connection.
//!
//! The router's rules write the state into DSCP, so the far end tells the class of each packet.

use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use xrouter::conntrack::{ConnView, Settings};

use crate::Step;
use crate::testing::{self, Hop};

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0c];
const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];
const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x05];

/// Removes its namespaces when dropped.
struct Namespaces {
    names: [String; 3],
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

fn run(command: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["-c", command]).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn in_namespace<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = format!("/var/run/netns/{name}");
    std::thread::spawn(move || {
        let namespace = File::open(&path).expect("the namespace");
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
        work()
    })
    .join()
    .expect("work in the namespace")
}

const MANGLE: &str = "*mangle\n\
    -A FORWARD -m conntrack --ctstate NEW -j DSCP --set-dscp 1\n\
    -A FORWARD -m conntrack --ctstate ESTABLISHED -j DSCP --set-dscp 2\n\
    -A FORWARD -m conntrack --ctstate RELATED -j DSCP --set-dscp 3\n\
    -A FORWARD -m conntrack --ctstate INVALID -j DSCP --set-dscp 4\n\
    -A FORWARD -m conntrack --ctstate UNTRACKED -j DSCP --set-dscp 5\n\
    COMMIT\n";

/// What a sysctl is set to.
type Value = fn(&Settings) -> u8;

/// Sysctls that a sequence may be run with, and what they are set to.
const SWITCHES: [(&str, Value); 5] = [
    ("checksum", |settings| settings.checksum.into()),
    ("tcp_loose", |settings| settings.tcp_loose.into()),
    ("tcp_be_liberal", |settings| settings.tcp_be_liberal.into()),
    ("tcp_ignore_invalid_rst", |settings| settings.tcp_ignore_invalid_rst.into()),
    ("tcp_max_retrans", |settings| settings.tcp_max_retrans),
];

pub(crate) struct Kernel {
    client: OwnedFd,
    server: OwnedFd,
    netlink: OwnedFd,
    count: File,
    /// The sysctls of [`SWITCHES`], open for writing.
    switches: Vec<File>,
    namespaces: Namespaces,
}

/// A packet socket on `interface`, for receiving and sending.
fn packet_socket(interface: &str) -> OwnedFd {
    let socket = socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll)
        .expect("packet socket");
    // The address of the interface's own link layer, as the kernel lists it, names the interface.
    let address = nix::ifaddrs::getifaddrs()
        .expect("interfaces")
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address.as_ref().and_then(|address| address.as_link_addr()).copied())
        .expect("a link-layer address");
    socket::bind(socket.as_raw_fd(), &address).expect("bind");
    socket
}

impl Kernel {
    pub(crate) fn new() -> Result<Kernel, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let stem = format!("xr{}k{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let names = ["c", "r", "s"].map(|end| format!("{stem}{end}"));
        let namespaces = Namespaces { names: names.clone() };
        let [c, r, s] = &names;
        let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        let (cm, lm, wm, sm) = (mac(CLIENT_MAC), mac(LAN_MAC), mac(WAN_MAC), mac(SERVER_MAC));
        run(&format!(
            "set -e; ip netns add {c}; ip netns add {r}; ip netns add {s}; \
             for n in {c} {s}; do ip netns exec $n sysctl -qw net.ipv6.conf.all.disable_ipv6=1 \
             net.ipv6.conf.default.disable_ipv6=1; done; \
             ip netns exec {r} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
             net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.default.accept_dad=0; \
             ip link add c0 netns {c} address {cm} type veth peer name r0 netns {r} address {lm}; \
             ip link add s0 netns {s} address {sm} type veth peer name r1 netns {r} address {wm}; \
             ip -n {c} link set c0 up; ip -n {s} link set s0 up; ip -n {r} link set r0 up; ip -n {r} link set r1 up; \
             ip -n {r} addr add 10.1.0.1/24 dev r0; ip -n {r} addr add 10.2.0.1/24 dev r1; \
             ip -n {r} addr add fd01::1/64 dev r0 nodad; ip -n {r} addr add fd02::1/64 dev r1 nodad; \
             ip -n {r} neigh add 10.1.0.2 lladdr {cm} dev r0; ip -n {r} neigh add 10.2.0.2 lladdr {sm} dev r1; \
             ip -n {r} neigh add 10.1.0.3 lladdr {cm} dev r0; ip -n {r} neigh add 10.2.0.3 lladdr {sm} dev r1; \
             ip -n {r} neigh add fd01::3 lladdr {cm} dev r0; ip -n {r} neigh add fd02::3 lladdr {sm} dev r1; \
             ip -n {r} neigh add fd01::2 lladdr {cm} dev r0; ip -n {r} neigh add fd02::2 lladdr {sm} dev r1"
        ))?;
        for restore in ["iptables-restore", "ip6tables-restore"] {
            let mut child = Command::new("ip")
                .args(["netns", "exec", r, restore])
                .stdin(Stdio::piped())
                .spawn()
                .map_err(|error| error.to_string())?;
            child.stdin.take().expect("a pipe").write_all(MANGLE.as_bytes()).map_err(|error| error.to_string())?;
            if !child.wait().map_err(|error| error.to_string())?.success() {
                return Err(format!("{restore} failed"));
            }
        }
        let client = in_namespace(c, || packet_socket("c0"));
        let server = in_namespace(s, || packet_socket("s0"));
        let (netlink, count, switches) = in_namespace(r, || {
            let netlink = socket::socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::empty(),
                SockProtocol::NetlinkNetFilter,
            );
            let count = File::open("/proc/sys/net/netfilter/nf_conntrack_count");
            let open = |name: &str| {
                let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
                File::options().write(true).open(path).expect("a sysctl")
            };
            let switches = SWITCHES.map(|(name, _)| open(name)).into();
            (netlink.expect("netlink socket"), count.expect("nf_conntrack_count"), switches)
        });
        Ok(Kernel { client, server, netlink, count, switches, namespaces })
    }

    /// Sends a packet through the router. What conntrack called it there; `None` when it did not arrive.
    pub(crate) fn send(&self, step: &Step) -> Option<&'static str> {
        let (from, to, hop) = match step.from_client {
            true => (&self.client, &self.server, Hop { dst_mac: LAN_MAC, src_mac: CLIENT_MAC }),
            false => (&self.server, &self.client, Hop { dst_mac: WAN_MAC, src_mac: SERVER_MAC }),
        };
        let mut buffer = [0u8; 4096];
        while socket::recv(to.as_raw_fd(), &mut buffer, MsgFlags::empty()).is_ok() {}
        let frame = testing::frame(hop, &step.packet);
        socket::send(from.as_raw_fd(), &frame, MsgFlags::empty()).expect("send");
        let deadline = Clock::now() + Duration::from_millis(300);
        loop {
            match socket::recv(to.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let arrived = &buffer[14..length];
                    if is_same_packet(&step.packet, arrived) {
                        return Some(class_of(arrived));
                    }
                }
                Err(_) => {
                    let left = deadline.saturating_duration_since(Clock::now());
                    if left.is_zero() {
                        return None;
                    }
                    let timeout = PollTimeout::try_from(left).expect("short");
                    let _ = poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLIN)], timeout);
                }
            }
        }
    }

    pub(crate) fn apply(&self, settings: &Settings) {
        for ((_, value), file) in SWITCHES.iter().zip(&self.switches) {
            file.write_at(format!("{}\n", value(settings)).as_bytes(), 0).expect("writing a sysctl");
        }
    }

    /// Runs a command in the router's namespace.
    pub(crate) fn on_router(&self, words: &[&str]) -> std::process::Output {
        let [_, router, _] = &self.namespaces.names;
        Command::new("ip").args(["netns", "exec", router]).args(words).output().expect("a command")
    }

    /// Starts a command in the router's namespace, its standard output in a pipe.
    pub(crate) fn start_on_router(&self, words: &[&str]) -> std::process::Child {
        let [_, router, _] = &self.namespaces.names;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", router]).args(words).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("a command")
    }

    /// Entries in the router's table.
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
        socket::send(self.netlink.as_raw_fd(), &message, MsgFlags::empty()).expect("netlink send");
        let mut answer = vec![0; 8192];
        let length = socket::recv(self.netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("netlink answer");
        answer.truncate(length);
        answer
    }

    pub(crate) fn flush(&self) {
        const DELETE: u8 = 2;
        const ACK: u16 = 4;
        self.request(DELETE, ACK, 0, &[]);
    }

    /// The entry whose original tuple is that of `view`.
    pub(crate) fn entry(&self, view: &ConnView) -> Option<Entry> {
        const GET: u8 = 1;
        let mut ip = Vec::new();
        let mut l4 = attribute(1, &[view.proto]);
        match (view.original.src, view.original.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                ip.extend(attribute(1, &src.octets()));
                ip.extend(attribute(2, &dst.octets()));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                ip.extend(attribute(3, &src.octets()));
                ip.extend(attribute(4, &dst.octets()));
            }
            _ => return None,
        }
        let [kind, code] = view.original.dport.to_be_bytes();
        match view.proto {
            1 | 58 => {
                let base = if view.proto == 1 { 4 } else { 7 };
                l4.extend(attribute(base, &view.original.sport.to_be_bytes()));
                l4.extend(attribute(base + 1, &[kind]));
                l4.extend(attribute(base + 2, &[code]));
            }
            _ => {
                l4.extend(attribute(2, &view.original.sport.to_be_bytes()));
                l4.extend(attribute(3, &view.original.dport.to_be_bytes()));
            }
        }
        let tuple = [attribute(0x8001, &ip), attribute(0x8002, &l4)].concat();
        Entry::read(&self.request(GET, 0, view.family, &attribute(0x8001, &tuple)))
    }
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

/// What the kernel has of a connection.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) status: u32,
    pub(crate) timeout: u32,
    /// TCP's or SCTP's.
    pub(crate) state: Option<u8>,
}

impl Entry {
    fn read(answer: &[u8]) -> Option<Entry> {
        const ERROR: u16 = 2;
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        if kind == ERROR {
            return None;
        }
        let attributes = &answer[20..];
        let number =
            |path: &[u16]| find(attributes, path).map(|value| u32::from_be_bytes(value.try_into().expect("4")));
        Some(Entry {
            status: number(&[3])?,
            timeout: number(&[7])?,
            state: find(attributes, &[4, 1, 1]).or_else(|| find(attributes, &[4, 3, 1])).map(|value| value[0]),
        })
    }
}

/// Whether `arrived` is `sent` after a router: all but traffic class, hop limit and header checksum.
fn is_same_packet(sent: &[u8], arrived: &[u8]) -> bool {
    let mask = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        match packet[0] >> 4 {
            4 => [1, 8, 10, 11].iter().for_each(|&at| packet[at] = 0),
            _ => {
                packet[0] = 0x60;
                packet[1] &= 0x0f;
                packet[7] = 0;
            }
        }
        packet
    };
    sent.len() == arrived.len() && sent[0] >> 4 == arrived[0] >> 4 && mask(sent) == mask(arrived)
}

fn class_of(packet: &[u8]) -> &'static str {
    let tos = if packet[0] >> 4 == 4 { packet[1] } else { packet[0] << 4 | packet[1] >> 4 };
    match tos >> 2 {
        1 => "NEW",
        2 => "ESTABLISHED",
        3 => "RELATED",
        4 => "INVALID",
        5 => "UNTRACKED",
        _ => "no class",
    }
}
