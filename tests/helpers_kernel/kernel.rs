//! The kernel's side: three namespaces, client - router - server, with the rules of a dialogue on the router. Packets are
//! injected and captured at the ends by packet sockets.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::unistd::Pid;

use crate::talk::{Arrived, Router, of_version};
use crate::testing::{self, Hop};

/// The router's own.
pub(crate) const MACS: [[u8; 6]; 2] = [[2, 1, 0, 0, 0, 1], [2, 2, 0, 0, 0, 1]];
/// Hosts of both networks, by the last number of their addresses; 77 and 100 stand for nobody, but are translated to.
pub(crate) const HOSTS: [u8; 5] = [2, 3, 9, 77, 100];
/// Who asks the router by ARP whether it is done.
const ASKER: u8 = 250;

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
    let [lan, wan] = MACS.map(mac);
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
         net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.default.accept_dad=0 \
         net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0; \
         ip link add c0 netns {c} type veth peer name r0 netns {r} address {lan}; \
         ip link add s0 netns {s} type veth peer name r1 netns {r} address {wan}; \
         ip -n {c} link set c0 up; ip -n {s} link set s0 up; ip -n {r} link set r0 up; ip -n {r} link set r1 up; \
         ip -n {r} addr add 10.1.0.1/24 dev r0; ip -n {r} addr add 10.2.0.1/24 dev r1; \
         ip -n {r} addr add fd01::1/64 dev r0 nodad; ip -n {r} addr add fd02::1/64 dev r1 nodad; \
         for d in r0 r1; do ip netns exec {r} ethtool -K $d tx off >/dev/null 2>&1; done; {neighbours}"
    ))
}

pub(crate) struct Kernel {
    client: OwnedFd,
    server: OwnedFd,
    namespaces: Namespaces,
}

impl Kernel {
    pub(crate) fn new() -> Result<Kernel, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        pin_to_one_cpu();
        let stem = format!("xr{}t{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespaces = Namespaces { names: ["c", "r", "s"].map(|end| format!("{stem}{end}")) };
        setup(&namespaces.names)?;
        let [c, _, s] = &namespaces.names;
        let client = in_namespace(c, || packet_socket("c0"));
        let server = in_namespace(s, || packet_socket("s0"));
        Ok(Kernel { client, server, namespaces })
    }

    /// Runs a command in the router's namespace, and gives what it prints.
    fn on_router(&self, words: &[&str], input: &str) -> String {
        let [_, router, _] = &self.namespaces.names;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", router]).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a command");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("writing to the child");
        let output = child.wait_with_output().expect("the child's end");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}\n{input}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns once the router is through with all that was sent by `from` so far. What comes meanwhile is in `arrived`.
    fn fence(&self, from: &OwnedFd, from_client: bool, arrived: &mut Vec<Arrived>) {
        let net = if from_client { 1 } else { 2 };
        let asker = [2, net, 0, 0, 0, ASKER];
        let mut request = [[0xff; 6], asker].concat();
        request.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        request.extend(asker);
        request.extend([10, net, 0, ASKER, 0, 0, 0, 0, 0, 0, 10, net, 0, 1]);
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
                    keep(answer, from_client, arrived);
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
}

/// A forwarded packet goes into the list; what the router asks of neighbours does not, nor do resets of its own (of a packet
/// that is not translated it may find itself the destination).
fn keep(frame: &[u8], to_client: bool, arrived: &mut Vec<Arrived>) {
    let is_ip = matches!(frame.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd]));
    let is_routers = frame.get(6..12) == Some(&MACS[usize::from(!to_client)][..]);
    let is_group = frame[0] & 1 == 1;
    let is_own = frame.get(22..24) == Some(&[64, 6]);
    if is_ip && is_routers && !is_group && !is_own {
        arrived.push(Arrived { to_client, packet: frame[14..].to_vec() });
    }
}

fn drain(socket: &OwnedFd, to_client: bool, arrived: &mut Vec<Arrived>) {
    let mut buffer = [0u8; 4096];
    while let Ok(length) = socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        keep(&buffer[..length], to_client, arrived);
    }
}

impl Router for Kernel {
    fn load(&mut self, rules: &str) {
        // Of a table that is not named, nothing may be left of the dialogue before.
        let mut text = String::new();
        for table in ["raw", "mangle", "nat", "filter"] {
            let given = rules.split("COMMIT\n").find(|part| part.contains(&format!("*{table}\n")));
            match given {
                Some(part) => text += &format!("{part}COMMIT\n"),
                None => text += &format!("*{table}\nCOMMIT\n"),
            }
        }
        self.on_router(&["iptables-legacy-restore"], &of_version(&text, 4));
        self.on_router(&["ip6tables-legacy-restore"], &of_version(&text, 6));
    }

    fn forget(&mut self) {
        self.on_router(&["sh", "-c", "conntrack -F 2>/dev/null; conntrack -F expect 2>/dev/null; true"], "");
        let mut nobody = Vec::new();
        drain(&self.client, true, &mut nobody);
        drain(&self.server, false, &mut nobody);
    }

    fn send(&mut self, from_client: bool, packet: &[u8]) -> Vec<Arrived> {
        let (from, to, mac) = match from_client {
            true => (&self.client, &self.server, MACS[0]),
            false => (&self.server, &self.client, MACS[1]),
        };
        let hop = Hop { dst_mac: mac, src_mac: host_mac(from_client, 2) };
        let mut arrived = Vec::new();
        socket::send(from.as_raw_fd(), &testing::frame(hop, packet), MsgFlags::empty()).expect("send");
        self.fence(from, from_client, &mut arrived);
        drain(to, !from_client, &mut arrived);
        arrived
    }

    fn end_tcp(&mut self) {
        self.on_router(&["conntrack", "-D", "-p", "tcp"], "");
    }

    fn expected(&mut self) -> Vec<String> {
        let text = self.on_router(&["sh", "-c", "conntrack -L expect 2>/dev/null || true"], "");
        text.lines().map(str::to_owned).collect()
    }

    fn expected_v6(&mut self) -> Vec<String> {
        let text = self.on_router(&["sh", "-c", "conntrack -L expect -f ipv6 2>/dev/null || true"], "");
        text.lines().map(str::to_owned).collect()
    }

    fn connections(&mut self) -> Vec<String> {
        let text = self.on_router(&["sh", "-c", "conntrack -L 2>/dev/null || true"], "");
        text.lines().map(str::to_owned).collect()
    }
}
