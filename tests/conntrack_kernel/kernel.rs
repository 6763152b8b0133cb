//! The kernel's side: three namespaces, client - router - server, that one packet at a time crosses; what conntrack called
//! it there, and what ctnetlink has of every connection.
//!
//! The router's rules write the state into DSCP, so the far end tells the class of each packet. What raw and mangle do to a
//! packet they read from the TOS it comes with (see [`crate::step`]), so no rule changes between sequences. This thread
//! stays on one CPU, whose backlog is worked off in order: the answer to an ARP request sent after a packet says that the
//! packet is through.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::unistd::Pid;
use xrouter::conntrack::Settings;

use crate::step::{DROP, Entry, MARKS, NOTRACK, Seen, Side, Step, ZONES, for_kernel, tos};
use crate::testing::{self, Hop};

/// The router's own.
pub(crate) const LAN_MAC: [u8; 6] = [2, 1, 0, 0, 0, 1];
pub(crate) const WAN_MAC: [u8; 6] = [2, 2, 0, 0, 0, 1];
/// Hosts of both networks, by the last byte of their addresses.
pub(crate) const HOSTS: [u8; 3] = [2, 3, 9];
/// Who asks the router by ARP whether it is done.
const ASKER: u8 = 250;

/// As the scenarios have it.
pub(crate) fn host_mac(inside: bool, host: u8) -> [u8; 6] {
    [2, if inside { 1 } else { 2 }, 0, 0, 0, host]
}

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

/// The tables of the router, for both IP versions.
fn tables() -> String {
    let mut text = String::from("*raw\n");
    let _ = writeln!(text, "-A PREROUTING -m dscp --dscp {NOTRACK} -j CT --notrack");
    for (dscp, option, _) in ZONES {
        let _ = writeln!(text, "-A PREROUTING -m dscp --dscp {dscp} -j CT {option}");
    }
    text += "COMMIT\n*mangle\n";
    for (tos, mark) in MARKS {
        let _ = writeln!(text, "-A PREROUTING -m tos --tos {tos}/3 -j CONNMARK --set-mark {mark}");
    }
    let _ = writeln!(text, "-A FORWARD -m tos --tos {DROP}/3 -j DROP");
    for (class, name) in CLASSES {
        let _ = writeln!(text, "-A FORWARD -m conntrack --ctstate {name} -j DSCP --set-dscp {class}");
    }
    text + "COMMIT\n"
}

/// DSCP that a packet leaves with, by class.
const CLASSES: [(u8, &str); 5] = [(1, "NEW"), (2, "ESTABLISHED"), (3, "RELATED"), (4, "INVALID"), (5, "UNTRACKED")];

fn class_of(packet: &[u8]) -> &'static str {
    let dscp = tos(packet) >> 2;
    CLASSES.iter().find(|(class, _)| *class == dscp).map_or("no class", |(_, name)| name)
}

/// The sysctls of a namespace's conntrack, with what they are set to. `max` is the whole machine's.
fn sysctls(settings: &Settings) -> Vec<(String, u64)> {
    let json = serde_json::to_value(settings).expect("settings are a map");
    let number =
        |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| value.as_bool().expect("a switch").into());
    let all = json.as_object().expect("settings are a map").iter();
    all.filter(|(name, _)| *name != "max").map(|(name, value)| (name.clone(), number(value))).collect()
}

pub(crate) struct Kernel {
    client: OwnedFd,
    server: OwnedFd,
    netlink: OwnedFd,
    count: File,
    /// The sysctls of [`sysctls`], open for writing, with what was written last.
    switches: Vec<(File, Option<u64>)>,
    applied: Option<Settings>,
    namespaces: Namespaces,
}

/// The kernel's per-CPU backlog is worked off in order only if this thread stays where it is.
fn pin_to_one_cpu() {
    let me = Pid::from_raw(0);
    let allowed = sched_getaffinity(me).expect("sched_getaffinity");
    let last = (0..CpuSet::count()).rfind(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.expect("a CPU to run on")).expect("a CPU set");
    sched_setaffinity(me, &one).expect("sched_setaffinity");
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

fn setup([c, r, s]: &[String; 3]) -> Result<(), String> {
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let (lan, wan) = (mac(LAN_MAC), mac(WAN_MAC));
    let mut neighbours = String::new();
    for (net, port) in [(1, "r0"), (2, "r1")] {
        for host in HOSTS {
            let address = mac(host_mac(net == 1, host));
            for ip in [format!("10.{net}.0.{host}"), format!("fd0{net}::{host}")] {
                let _ = write!(neighbours, "ip -n {r} neigh add {ip} lladdr {address} dev {port}; ");
            }
        }
    }
    run(&format!(
        "set -e; ip netns add {c}; ip netns add {r}; ip netns add {s}; \
         for n in {c} {s}; do ip netns exec $n sysctl -qw net.ipv6.conf.all.disable_ipv6=1 \
         net.ipv6.conf.default.disable_ipv6=1; done; \
         ip netns exec {r} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
         net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.default.accept_dad=0; \
         ip link add c0 netns {c} type veth peer name r0 netns {r} address {lan}; \
         ip link add s0 netns {s} type veth peer name r1 netns {r} address {wan}; \
         ip -n {c} link set c0 up; ip -n {s} link set s0 up; ip -n {r} link set r0 up; ip -n {r} link set r1 up; \
         ip -n {r} addr add 10.1.0.1/24 dev r0; ip -n {r} addr add 10.2.0.1/24 dev r1; \
         ip -n {r} addr add fd01::1/64 dev r0 nodad; ip -n {r} addr add fd02::1/64 dev r1 nodad; {neighbours}"
    ))?;
    for restore in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
        let mut child = Command::new("ip")
            .args(["netns", "exec", r, restore])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        child.stdin.take().expect("a pipe").write_all(tables().as_bytes()).map_err(|error| error.to_string())?;
        if !child.wait().map_err(|error| error.to_string())?.success() {
            return Err(format!("{restore} failed"));
        }
    }
    Ok(())
}

impl Kernel {
    pub(crate) fn new() -> Result<Kernel, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        pin_to_one_cpu();
        let stem = format!("xr{}k{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespaces = Namespaces { names: ["c", "r", "s"].map(|end| format!("{stem}{end}")) };
        setup(&namespaces.names)?;
        let [c, r, s] = &namespaces.names;
        let client = in_namespace(c, || packet_socket("c0"));
        let server = in_namespace(s, || packet_socket("s0"));
        let (netlink, count, switches) = in_namespace(r, || {
            let netlink = socket::socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::empty(),
                SockProtocol::NetlinkNetFilter,
            );
            let open = |name: &str| {
                let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
                File::options().read(true).write(name != "count").open(&path).unwrap_or_else(|_| panic!("no {path}"))
            };
            let switches = sysctls(&Settings::default()).iter().map(|(name, _)| (open(name), None)).collect();
            (netlink.expect("netlink socket"), open("count"), switches)
        });
        Ok(Kernel { client, server, netlink, count, switches, applied: None, namespaces })
    }

    /// Sends a packet through the router.
    pub(crate) fn send(&self, step: &Step) -> Seen {
        let (from, to, mac) = match step.from_client {
            true => (&self.client, &self.server, LAN_MAC),
            false => (&self.server, &self.client, WAN_MAC),
        };
        drain(to);
        let hop = Hop { dst_mac: mac, src_mac: host_mac(step.from_client, 2) };
        socket::send(from.as_raw_fd(), &testing::frame(hop, &for_kernel(&step.packet)), MsgFlags::empty())
            .expect("send");
        if let Some(seen) = arrived(to, step) {
            return seen;
        }
        self.fence(from, step.from_client);
        arrived(to, step).unwrap_or(Seen(None))
    }

    /// Returns once the router is through with all that was sent by `from` so far.
    fn fence(&self, from: &OwnedFd, from_client: bool) {
        let net = if from_client { 1 } else { 2 };
        let asker = [2, net, 0, 0, 0, ASKER];
        let mut request = [[0xff; 6], asker].concat();
        request.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        request.extend(asker);
        request.extend([10, net, 0, ASKER, 0, 0, 0, 0, 0, 0, 10, net, 0, 1]);
        drain(from);
        socket::send(from.as_raw_fd(), &request, MsgFlags::empty()).expect("send");
        let deadline = Clock::now() + Duration::from_secs(5);
        let mut buffer = [0u8; 4096];
        loop {
            match socket::recv(from.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let answer = &buffer[..length];
                    if length >= 42 && answer[..6] == asker && answer[12..14] == [0x08, 0x06] && answer[21] == 2 {
                        return;
                    }
                }
                Err(_) => {
                    let left = deadline.saturating_duration_since(Clock::now());
                    assert!(!left.is_zero(), "the router did not answer ARP within five seconds");
                    let timeout = PollTimeout::try_from(left).expect("short");
                    let _ = poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], timeout);
                }
            }
        }
    }

    pub(crate) fn apply(&mut self, settings: &Settings) {
        if self.applied.as_ref() == Some(settings) {
            return;
        }
        self.applied = Some(settings.clone());
        for ((_, value), (file, last)) in sysctls(settings).iter().zip(&mut self.switches) {
            if last.replace(*value) != Some(*value) {
                file.write_at(format!("{value}\n").as_bytes(), 0).expect("writing a sysctl");
            }
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
        socket::send(self.netlink.as_raw_fd(), &message, MsgFlags::empty()).expect("netlink send");
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
        const GET: u8 = 1;
        const ZONE: u16 = 18;
        let family = if like.original.src.is_ipv4() { 2 } else { 10 };
        let (original, reply) = (&like.original, &like.reply);
        let attributes = match (original.zone, reply.zone) {
            (zone, other) if zone == other => {
                let tuple = tuple_attribute(0x8001, like.proto, original, None);
                [tuple, attribute(ZONE, &zone.to_be_bytes())].concat()
            }
            (0, zone) => tuple_attribute(0x8002, like.proto, reply, Some(zone)),
            (zone, _) => tuple_attribute(0x8001, like.proto, original, Some(zone)),
        };
        let is_it = |entry: &Entry| (&entry.original, &entry.reply) == (original, reply);
        match read_entry(&self.request(GET, 0, family, &attributes)).filter(is_it) {
            Some(entry) => Some(entry),
            None => self.entries().into_iter().find(is_it),
        }
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
        let length = socket::recv(self.netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("netlink answer");
        answer.truncate(length);
        answer
    }
}

fn drain(socket: &OwnedFd) {
    while socket::recv(socket.as_raw_fd(), &mut [0u8; 64], MsgFlags::empty()).is_ok() {}
}

/// The packet, if it has come to `socket`: what has its addresses, since nothing that the router says itself does.
fn arrived(socket: &OwnedFd, step: &Step) -> Option<Seen> {
    let addresses = if step.is_v6() { 8..40 } else { 12..20 };
    let mut buffer = [0u8; 4096];
    while let Ok(length) = socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        let packet = &buffer[14..length];
        if packet.get(addresses.clone()) == step.packet.get(addresses.clone()) {
            return Some(Seen::forwarded(class_of(packet), packet));
        }
    }
    None
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
