//! The kernel's side: three namespaces, client - router - server, that one packet at a time crosses; what conntrack called
//! it there, and what ctnetlink has of every connection.
//!
//! The router's rules write the state into DSCP, so the far end tells the class of each packet. What raw and mangle do to a
//! packet they read from the TOS it comes with (see [`crate::step`]), so no rule changes between sequences. This thread
//! stays on one CPU, whose backlog is worked off in order: the answer to an ARP request sent after a packet says that the
//! packet is through.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::socket::{self, MsgFlags};
use xrouter::conntrack::Settings;

use crate::ctnetlink::Ctnetlink;
use crate::ends::{
    HOSTS, LAN_MAC, Namespaces, Switches, WAN_MAC, drain, fence, host_mac, in_namespace, packet_socket, pin_to_one_cpu,
    run,
};
use crate::step::{DROP, MARKS, NOTRACK, Seen, Step, ZONES, for_kernel, tos};
use crate::testing::{self, Hop};

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

pub(crate) struct Kernel {
    client: OwnedFd,
    server: OwnedFd,
    pub(crate) table: Ctnetlink,
    switches: Switches,
    namespaces: Namespaces,
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
        let (table, switches) = in_namespace(r, || (Ctnetlink::new(), Switches::new()));
        Ok(Kernel { client, server, table, switches, namespaces })
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
        fence(from, step.from_client);
        arrived(to, step).unwrap_or(Seen(None))
    }

    pub(crate) fn apply(&mut self, settings: &Settings) {
        self.switches.apply(settings);
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
