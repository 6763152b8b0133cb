//! The kernel's side: a router in a namespace of its own between two ends, loaded with one ruleset after another, and asked
//! one packet at a time: what came out where, and which connection it then is of.
//!
//! Nothing reaches the router's own sockets: mangle INPUT counts and drops it, so that no connection of the host's own is
//! made, and no answer (what it says to itself is not seen). What the router says beside answers to packets (neighbour discovery, redirects of IPv6) is not seen.

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, MsgFlags};
use xrouter::device::PortId;

use crate::ctnetlink::Ctnetlink;
use crate::ends::{Namespaces, Switches, in_namespace, packet_socket, pin_to_one_cpu, run};
use crate::place::{MACS, commands, mac_text};

/// Who asks the router by ARP whether it is done.
const ASKER: u8 = 250;

/// What came out: of which port, and the frame.
pub(crate) type Out = Vec<(PortId, Vec<u8>)>;

/// See the module's head.
pub(crate) struct Kernel {
    ends: [OwnedFd; 2],
    pub(crate) table: Ctnetlink,
    pub(crate) switches: Switches,
    namespaces: Namespaces,
}

const SETTINGS: &[&str] = &[
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv4.conf.all.send_redirects=0",
    "net.ipv4.conf.default.send_redirects=0",
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv4.icmp_msgs_per_sec=1000000",
    "net.ipv4.icmp_msgs_burst=1000000",
    "net.ipv6.icmp.ratelimit=0",
    "net.ipv4.icmp_errors_use_inbound_ifaddr=0",
];

fn setup([lan, router, wan]: &[String; 3]) -> Result<(), String> {
    let [lan_mac, wan_mac] = MACS.map(mac_text);
    run(&format!(
        "set -e; for n in {lan} {router} {wan}; do ip netns add $n; done; \
         for n in {lan} {wan}; do ip netns exec $n sysctl -qw net.ipv6.conf.all.disable_ipv6=1 \
         net.ipv6.conf.default.disable_ipv6=1; done; \
         ip netns exec {router} sysctl -qw {}; \
         ip link add e0 netns {lan} type veth peer name lan netns {router} address {lan_mac}; \
         ip link add e1 netns {wan} type veth peer name wan netns {router} address {wan_mac}; \
         for p in lan wan; do ip netns exec {router} ethtool -K $p tx off gro off gso off tso off; done; \
         ip -n {lan} link set e0 up; ip -n {wan} link set e1 up",
        SETTINGS.join(" ")
    ))?;
    for (version, v6) in [("-4", false), ("-6", true)] {
        feed(&format!("ip {version} -n {router} -batch -"), &commands(v6))?;
    }
    Ok(())
}

fn feed(command: &str, input: &str) -> Result<String, String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().map_err(|error| format!("{command}: {error}"))?;
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).map_err(|error| format!("{command}: {error}"))?;
    let output = child.wait_with_output().map_err(|error| format!("{command}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command}: {}\n{input}", String::from_utf8_lossy(&output.stderr))),
    }
}

impl Kernel {
    pub(crate) fn new() -> Result<Kernel, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        pin_to_one_cpu();
        let stem = format!("xr{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespaces = Namespaces { names: ["l", "r", "w"].map(|end| format!("{stem}{end}")) };
        setup(&namespaces.names)?;
        let [lan, router, wan] = &namespaces.names;
        let ends = [in_namespace(lan, || packet_socket("e0")), in_namespace(wan, || packet_socket("e1"))];
        let (table, switches) = in_namespace(router, || (Ctnetlink::new(), Switches::new()));
        let kernel = Kernel { ends, table, switches, namespaces };
        kernel.barrier(PortId::LAN, &mut Out::new());
        Ok(kernel)
    }

    /// Loads a ruleset, and the one rule that keeps packets from the host itself.
    pub(crate) fn load(&self, v6: bool, rules: &str) -> Result<(), String> {
        let rules = rules.replacen("*mangle\n", "*mangle\n:INPUT ACCEPT [0:0]\n-A INPUT ! -i lo -j DROP\n", 1);
        self.tool(if v6 { "ip6tables-legacy-restore -w" } else { "iptables-legacy-restore -w" }, &rules).map(|_| ())
    }

    /// What iptables-save tells, with counters.
    pub(crate) fn saved(&self, v6: bool) -> String {
        let tool = if v6 { "ip6tables-legacy-save -c" } else { "iptables-legacy-save -c" };
        self.tool(tool, "").expect("iptables-save")
    }

    /// Runs a tool on the router.
    fn tool(&self, tool: &str, input: &str) -> Result<String, String> {
        let (tool, input) = (tool.to_owned(), input.to_owned());
        in_namespace(&self.namespaces.names[1], move || feed(&tool, &input))
    }

    /// Sends a frame to the router's `port`, and gives what came out.
    pub(crate) fn send(&self, port: PortId, frame: &[u8]) -> Out {
        let mut out = Out::new();
        self.collect(&mut Out::new());
        socket::send(self.ends[port.index()].as_raw_fd(), frame, MsgFlags::empty()).expect("send");
        self.collect(&mut out);
        if out.is_empty() {
            self.barrier(port, &mut out);
        }
        out
    }

    /// Takes what has come out; whether the answer to [`Kernel::barrier`] was there.
    fn collect(&self, out: &mut Out) -> bool {
        let mut buffer = [0u8; 4096];
        let mut answered = false;
        for port in PortId::ALL {
            while let Ok(length) = socket::recv(self.ends[port.index()].as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                let frame = &buffer[..length];
                answered |= frame[12..14] == [0x08, 0x06] && frame[5] == ASKER;
                if is_an_answer(frame) {
                    out.push((port, frame.to_vec()));
                }
            }
        }
        answered
    }

    /// Returns once the router is through with all that was sent to `port` so far: packets are worked off in order.
    fn barrier(&self, port: PortId, out: &mut Out) {
        let net = port.0 + 1;
        let asker = [2, net, 0, 0, 0, ASKER];
        let mut request = [[0xff; 6], asker].concat();
        request.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        request.extend(asker);
        request.extend([10, net, 0, ASKER, 0, 0, 0, 0, 0, 0, 10, net, 0, 1]);
        let end = &self.ends[port.index()];
        socket::send(end.as_raw_fd(), &request, MsgFlags::empty()).expect("send");
        let deadline = Clock::now() + Duration::from_secs(5);
        while !self.collect(out) {
            let left = deadline.saturating_duration_since(Clock::now());
            assert!(!left.is_zero(), "the router did not answer ARP within five seconds");
            let timeout = PollTimeout::try_from(left).expect("short");
            let _ = poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], timeout);
        }
    }
}

/// IP, and not what a router says by itself.
fn is_an_answer(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x00] => true,
        // From a link-local address, or to a group.
        [0x86, 0xdd] => frame.len() >= 54 && frame[22..24] != [0xfe, 0x80] && frame[38] != 0xff,
        _ => false,
    }
}
