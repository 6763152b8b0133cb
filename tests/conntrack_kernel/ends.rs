//! What tests that ask the kernel stand on: namespaces that go away by themselves, packet sockets at the ends, one CPU.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant as Clock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::unistd::Pid;
use xrouter::conntrack::Settings;

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
pub(crate) struct Namespaces {
    pub(crate) names: [String; 3],
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

pub(crate) fn run(command: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["-c", command]).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

pub(crate) fn in_namespace<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
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
pub(crate) fn pin_to_one_cpu() {
    let me = Pid::from_raw(0);
    let allowed = sched_getaffinity(me).expect("sched_getaffinity");
    let last = (0..CpuSet::count()).rfind(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.expect("a CPU to run on")).expect("a CPU set");
    sched_setaffinity(me, &one).expect("sched_setaffinity");
}

/// A packet socket on `interface`, for receiving and sending.
pub(crate) fn packet_socket(interface: &str) -> OwnedFd {
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

pub(crate) fn drain(socket: &OwnedFd) {
    while socket::recv(socket.as_raw_fd(), &mut [0u8; 64], MsgFlags::empty()).is_ok() {}
}

/// Returns once the router is through with all that was sent by `from` so far; what has come to it is lost.
pub(crate) fn fence(from: &OwnedFd, from_client: bool) {
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

/// The sysctls of a namespace's conntrack, with what they are set to. `max` and `expect_max` are the whole
/// machine's.
fn sysctls(settings: &Settings) -> Vec<(String, u64)> {
    let json = serde_json::to_value(settings).expect("settings are a map");
    let number =
        |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| value.as_bool().expect("a switch").into());
    let all = json.as_object().expect("settings are a map").iter();
    all.filter(|(name, _)| !matches!(name.as_str(), "max" | "expect_max"))
        .map(|(name, value)| (name.clone(), number(value)))
        .collect()
}

/// The sysctls of conntrack in a namespace, open for writing, with what was written last.
pub(crate) struct Switches {
    files: Vec<(File, Option<u64>)>,
    applied: Option<Settings>,
}

impl Switches {
    /// Of this thread's namespace.
    pub(crate) fn new() -> Switches {
        let open = |name: &str| {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            File::options().write(true).open(&path).unwrap_or_else(|_| panic!("no {path}"))
        };
        let files = sysctls(&Settings::default()).iter().map(|(name, _)| (open(name), None)).collect();
        Switches { files, applied: None }
    }

    pub(crate) fn apply(&mut self, settings: &Settings) {
        if self.applied.as_ref() == Some(settings) {
            return;
        }
        self.applied = Some(settings.clone());
        for ((_, value), (file, last)) in sysctls(settings).iter().zip(&mut self.files) {
            if last.replace(*value) != Some(*value) {
                file.write_at(format!("{value}\n").as_bytes(), 0).expect("writing a sysctl");
            }
        }
    }
}
