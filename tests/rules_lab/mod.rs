//! Where rules meet their judge: two network namespaces of this run's own, and traffic only between them. For the tests that
//! compare with the kernel.
//!
//! ```text
//!     hosts: l0 ──── lan0 :router: wan0 ──── w0 :hosts
//! ```

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::unistd::{Pid, Uid};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use xrouter::device::PortId;
use xrouter::wire::Family;

pub(crate) const PORTS: [&str; 2] = ["lan0", "wan0"];
/// MAC addresses of the router's two ports.
pub(crate) const ROUTER_MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 2, 0]];

/// One test at a time: the kernel's log is one for all, and so is the processor the packets are sent on.
pub(crate) static ALONE: Mutex<()> = Mutex::new(());

/// Runs `program` and gives its output.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> String {
    try_run(program, arguments, input)
        .unwrap_or_else(|error| panic!("{program} {arguments:?} failed: {error}\n{input}"))
}

/// The same of a program that may fail: then what it complains of.
fn try_run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("writing to the child");
    let output = child.wait_with_output().expect("the child's end");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

/// Two namespaces and what is in them; gone when dropped.
pub(crate) struct Lab {
    pub(crate) router: String,
    hosts: String,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.router, &self.hosts] {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

impl Lab {
    pub(crate) fn new() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stem = format!("xr{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lab = Lab { router: format!("{stem}r"), hosts: format!("{stem}h") };
        let (router, hosts) = (&lab.router, &lab.hosts);
        for name in [router, hosts] {
            run("ip", &["netns", "add", name], "");
        }
        let links = format!(
            "link add lan0 address 02:00:00:00:01:00 netns {router} type veth peer name l0 netns {hosts}\n\
             link add wan0 address 02:00:00:00:02:00 netns {router} type veth peer name w0 netns {hosts}\n"
        );
        run("ip", &["-batch", "-"], &links);
        for (namespace, settings) in [
            (router, &["ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1", "ipv6.conf.default.accept_dad=0"][..]),
            (hosts, &["ipv6.conf.all.disable_ipv6=1", "ipv6.conf.default.disable_ipv6=1"][..]),
        ] {
            for setting in settings {
                run("ip", &["netns", "exec", namespace, "sysctl", "-qw", &format!("net.{setting}")], "");
            }
        }
        let mut inside = String::from("link set lo up\n");
        for (port, net) in [("lan0", 1), ("wan0", 2)] {
            inside += &format!(
                "addr add 10.{net}.0.1/24 dev {port}\naddr add fd0{net}::1/64 dev {port} nodad\nlink set {port} up\n"
            );
            for host in 2..8 {
                inside += &format!("neigh add 10.{net}.0.{host} lladdr 02:00:00:00:00:0c dev {port} nud permanent\n");
                inside += &format!("neigh add fd0{net}::{host} lladdr 02:00:00:00:00:0c dev {port} nud permanent\n");
            }
        }
        run("ip", &["-n", hosts, "-batch", "-"], "link set l0 up\nlink set w0 up\n");
        run("ip", &["-n", router, "-batch", "-"], &inside);
        std::thread::sleep(Duration::from_millis(300));
        lab
    }

    pub(crate) fn tool(&self, family: Family, tool: &str, arguments: &[&str], input: &str) -> String {
        self.try_tool(family, tool, arguments, input)
            .unwrap_or_else(|error| panic!("iptables-{tool} {arguments:?} failed: {error}\n{input}"))
    }

    /// The same of a tool that may refuse: then what it complains of.
    pub(crate) fn try_tool(
        &self,
        family: Family,
        tool: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, String> {
        let program = match family {
            Family::V4 => format!("iptables-legacy-{tool}"),
            Family::V6 => format!("ip6tables-legacy-{tool}"),
        };
        let words = [&["netns", "exec", self.router.as_str(), program.as_str()], arguments].concat();
        try_run("ip", &words, input)
    }

    /// Sends the frames one after another, each into its port, and gives back what came out of the other one.
    pub(crate) fn send(&self, frames: &[(PortId, Vec<u8>)]) -> Vec<Vec<u8>> {
        let hosts = self.hosts.clone();
        std::thread::scope(|scope| {
            // A thread of its own, since it changes its namespace and its processor.
            scope.spawn(move || send_inside(&hosts, frames)).join().expect("the sender")
        })
    }
}

fn packet_socket(hosts: &str) -> OwnedFd {
    let namespace = File::open(format!("/run/netns/{hosts}")).expect("the namespace");
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
    let fd =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll).expect("a socket");
    setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20)).expect("a large buffer");
    fd
}

/// The link-layer address of an interface in this thread's namespace.
fn link(name: &str) -> LinkAddr {
    let all = nix::ifaddrs::getifaddrs().expect("interfaces");
    let mut links =
        all.filter(|entry| entry.interface_name == name).filter_map(|entry| entry.address?.as_link_addr().copied());
    links.next().expect("the interface")
}

fn send_inside(hosts: &str, frames: &[(PortId, Vec<u8>)]) -> Vec<Vec<u8>> {
    // One processor, so that packets stay in order.
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("processors");
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap_or(false)).expect("a processor");
    one.set(first).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &one).expect("one processor");
    let fd = packet_socket(hosts);
    let links = [link("l0"), link("w0")];
    let mut received = Vec::new();
    let mut buffer = [0u8; 4096];
    let mut drain = |received: &mut Vec<Vec<u8>>| {
        while let Ok(length) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            received.push(buffer[..length].to_vec());
        }
    };
    for (port, frame) in frames {
        sendto(fd.as_raw_fd(), frame, &links[port.index()], MsgFlags::empty()).expect("sending");
        drain(&mut received);
    }
    std::thread::sleep(Duration::from_millis(50));
    drain(&mut received);
    received
}

pub(crate) fn may_run() -> bool {
    let root = Uid::effective().is_root();
    if !root {
        eprintln!("skipped: needs root, to make network namespaces");
    }
    root
}
