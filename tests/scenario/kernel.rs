//! Engine *kernel*: the running kernel forwards between two veth pairs, and its answers are the judgement.
//!
//! Two anonymous network namespaces are made for each scenario: the router's, where the calling thread then lives, and one for
//! the far ends, which have no addresses: frames go in and out through packet sockets. Nothing has a name, so nothing
//! is left behind, however the test ends. Offloads are off, so that what is captured is what a wire would carry.
//!
//! After every injection an ARP request follows on the same port. The sending thread is pinned to one CPU, whose backlog
//! the kernel works off in order: when the ARP reply has come back, so has everything the packet caused.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket};
use nix::unistd::Pid;

use super::engine::Engine;
use super::script::{Rules, Script, Step};
use super::topology::{LINK_LOCAL, Neighbour, Port, Route, Target, Topology};

/// The kernel as a scenario's engine. Lives on the thread that opened it.
pub(crate) struct Kernel {
    sockets: [OwnedFd; 2],
    frames: Vec<(Port, Vec<u8>)>,
    /// Interface names.
    names: [String; 2],
    log: Option<KernelLog>,
    /// Keeps the far ends' namespace alive.
    _ends: File,
}

/// Who asks the ARP question behind every injection.
const ASKER: u8 = 254;
/// How often a new link is asked before it counts as broken.
const ATTEMPTS: usize = 4;

impl Kernel {
    /// Makes the namespaces and loads everything.
    pub(crate) fn open(script: &Script) -> Result<Kernel, String> {
        pin_to_one_cpu()?;
        let log = match script.lines.iter().any(|line| matches!(line.step, Step::Log { .. })) {
            true => Some(KernelLog::open()?),
            false => None,
        };
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("unshare: {error} (needs root)"))?;
        let ends = current_namespace()?;
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("unshare: {error}"))?;
        let router = current_namespace()?;
        make_links(script, &ends)?;
        set(&ends, &router, "net/ipv6/conf/all/disable_ipv6", "1")?;
        setns(&ends, CloneFlags::CLONE_NEWNET).map_err(|error| format!("setns: {error}"))?;
        run("ip", &["-batch", "-"], "link set lan up\nlink set wan up\n")?;
        setns(&router, CloneFlags::CLONE_NEWNET).map_err(|error| format!("setns: {error}"))?;
        settings(script)?;
        run("ip", &["-batch", "-"], &addresses(script))?;
        run("ip", &["-6", "-batch", "-"], &routes(script, false))?;
        run("ip", &["-4", "-batch", "-"], &routes(script, true))?;
        load_rules(script)?;
        setns(&ends, CloneFlags::CLONE_NEWNET).map_err(|error| format!("setns: {error}"))?;
        let sockets = [packet_socket("lan")?, packet_socket("wan")?];
        setns(&router, CloneFlags::CLONE_NEWNET).map_err(|error| format!("setns: {error}"))?;
        let mut kernel = Kernel { sockets, frames: Vec::new(), names: script.topology.names.clone(), log, _ends: ends };
        kernel.first_barrier(Port::Lan)?;
        kernel.first_barrier(Port::Wan)?;
        kernel.frames.clear();
        Ok(kernel)
    }

    /// The same on a new link, which throws frames away until the kernel has found time to activate it: on a busy machine that is
    /// later than the question.
    fn first_barrier(&mut self, port: Port) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            if self.barrier(port).is_ok() {
                return Ok(());
            }
            // Should the answer only have been late, it is not to be taken for that of the next question.
            thread::sleep(Duration::from_millis(100));
            self.read(port)?;
        }
        self.barrier(port)
    }

    /// Sends an ARP request on `port` and reads until its answer.
    fn barrier(&mut self, port: Port) -> Result<(), String> {
        let request = arp_request(port);
        self.send(port, &request)?;
        let started = Instant::now();
        loop {
            let before = self.frames.len();
            let answered = self.read(port)?;
            if answered {
                // The answer came through this port's queue; the other port's frames were queued before it.
                self.read(if port == Port::Lan { Port::Wan } else { Port::Lan })?;
                return Ok(());
            }
            if started.elapsed() > Duration::from_secs(3) {
                return Err(format!("the kernel did not answer ARP on {} within 3 s", port.word()));
            }
            if self.frames.len() == before {
                thread::sleep(Duration::from_micros(50));
            }
        }
    }

    fn send(&mut self, port: Port, frame: &[u8]) -> Result<(), String> {
        let sent = send(self.sockets[port.index()].as_raw_fd(), frame, MsgFlags::empty());
        sent.map(|_| ()).map_err(|error| format!("the kernel does not take this frame on {}: {error}", port.word()))
    }

    /// Takes what waits in a port's socket; whether the barrier's answer was in it.
    fn read(&mut self, port: Port) -> Result<bool, String> {
        let mut buffer = [0u8; 4096];
        let mut large = Vec::new();
        let mut answered = false;
        loop {
            let fd = self.sockets[port.index()].as_raw_fd();
            let length = match recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                Ok(length) => length,
                Err(nix::errno::Errno::EAGAIN) => return Ok(answered),
                Err(error) => return Err(format!("recv: {error}")),
            };
            if length > buffer.len() {
                return Err(format!("a frame of {length} bytes came out: larger than any scenario's"));
            }
            large.clear();
            large.extend_from_slice(&buffer[..length]);
            if is_barrier_answer(&large) {
                answered = true;
            } else if !is_housekeeping(&large) {
                self.frames.push((port, large.clone()));
            }
        }
    }
}

impl Engine for Kernel {
    fn inject(&mut self, port: Port, frame: &[u8]) -> Result<(), String> {
        self.send(port, frame)?;
        self.barrier(port)
    }

    fn output(&mut self) -> Result<Vec<(Port, Vec<u8>)>, String> {
        self.read(Port::Lan)?;
        self.read(Port::Wan)?;
        Ok(std::mem::take(&mut self.frames))
    }

    fn advance(&mut self, ns: u64) -> Result<(), String> {
        thread::sleep(Duration::from_nanos(ns));
        Ok(())
    }

    fn learn(&mut self, neighbour: &Neighbour) -> Result<(), String> {
        let name = &self.names[neighbour.port.index()];
        let (address, mac) = (neighbour.address, mac_text(neighbour.mac));
        run("ip", &["-batch", "-"], &format!("neigh replace {address} lladdr {mac} dev {name} nud permanent\n"))?;
        self.barrier(neighbour.port)
    }

    fn drops(&self) -> Option<BTreeMap<String, u64>> {
        None
    }

    fn punted(&mut self) -> Option<Vec<Vec<u8>>> {
        None
    }

    fn conntrack(&mut self) -> Result<Vec<String>, String> {
        let text = run("conntrack", &["-L"], "")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn counters(&mut self, v4: bool) -> Result<String, String> {
        run(if v4 { "iptables-legacy-save" } else { "ip6tables-legacy-save" }, &["-c", "-t", "filter"], "")
    }

    fn logs(&mut self) -> Option<Vec<String>> {
        self.log.as_mut().map(KernelLog::lines)
    }
}

/// The kernel's log from the moment of opening. The LOG target is silent in namespaces unless a setting of the whole machine
/// allows it: allowed while this lives.
struct KernelLog {
    messages: File,
    lines: Vec<String>,
    /// The namespace where the setting is, and what it was.
    origin: File,
    before: String,
}

const LOG_IN_NAMESPACES: &str = "net/netfilter/nf_log_all_netns";

impl KernelLog {
    fn open() -> Result<KernelLog, String> {
        let path = "/dev/kmsg";
        let opened = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let mut messages = opened.map_err(|error| format!("{path}: {error}"))?;
        messages.seek(SeekFrom::End(0)).map_err(|error| format!("{path}: {error}"))?;
        let before = fs::read_to_string(format!("/proc/sys/{LOG_IN_NAMESPACES}"));
        let before = before.map_err(|error| format!("{LOG_IN_NAMESPACES}: {error}"))?;
        write_setting(LOG_IN_NAMESPACES, "1")?;
        Ok(KernelLog { messages, lines: Vec::new(), origin: current_namespace()?, before })
    }

    /// All lines so far, without the kernel's own header of each.
    fn lines(&mut self) -> Vec<String> {
        let mut record = [0u8; 8192];
        // One read, one record; an error means that there is no more, or that old ones were overwritten.
        while let Ok(length) = self.messages.read(&mut record) {
            let text = String::from_utf8_lossy(&record[..length]);
            let line = text.lines().next().and_then(|line| line.split_once(';'));
            self.lines.extend(line.map(|(_, message)| message.to_owned()));
        }
        self.lines.clone()
    }
}

impl Drop for KernelLog {
    fn drop(&mut self) {
        // The setting is of the first namespace only; should it not come back, it does no harm.
        if setns(&self.origin, CloneFlags::CLONE_NEWNET).is_ok() {
            let _ = write_setting(LOG_IN_NAMESPACES, self.before.trim());
        }
    }
}

/// The kernel's per-CPU backlog is worked off in order only if this thread stays where it is.
fn pin_to_one_cpu() -> Result<(), String> {
    let me = Pid::from_raw(0);
    let allowed = sched_getaffinity(me).map_err(|error| format!("sched_getaffinity: {error}"))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    let mut one = CpuSet::new();
    one.set(*cpus.last().ok_or("no CPU to run on")?).map_err(|error| format!("cpu set: {error}"))?;
    sched_setaffinity(me, &one).map_err(|error| format!("sched_setaffinity: {error}"))
}

fn current_namespace() -> Result<File, String> {
    File::open("/proc/thread-self/ns/net").map_err(|error| format!("/proc/thread-self/ns/net: {error}"))
}

/// Writes a setting in another namespace and comes back.
fn set(there: &File, back: &File, key: &str, value: &str) -> Result<(), String> {
    setns(there, CloneFlags::CLONE_NEWNET).map_err(|error| format!("setns: {error}"))?;
    let written = write_setting(key, value);
    setns(back, CloneFlags::CLONE_NEWNET).map_err(|error| format!("setns: {error}"))?;
    written
}

pub(super) fn write_setting(key: &str, value: &str) -> Result<(), String> {
    fs::write(format!("/proc/sys/{key}"), value).map_err(|error| format!("/proc/sys/{key} = {value}: {error}"))
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn make_links(script: &Script, ends: &File) -> Result<(), String> {
    let there = format!("/proc/{}/fd/{}", std::process::id(), ends.as_raw_fd());
    let mut text = String::from("link set lo up\n");
    let mut offloads = Vec::new();
    for port in Port::ALL {
        let name = &script.topology.names[port.index()];
        let (mac, mtu) = (mac_text(port.mac()), script.topology.mtu[port.index()]);
        let end = port.word();
        let _ =
            writeln!(text, "link add {name} address {mac} mtu {mtu} type veth peer name {end} mtu 9000 netns {there}");
        offloads.push(name.clone());
    }
    if script.topology.routes.iter().any(|route| route.target == Target::Elsewhere) {
        text.push_str("link add other type veth peer name other2\nlink set other2 up\nlink set other up\n");
    }
    run("ip", &["-batch", "-"], &text)?;
    for name in offloads {
        run("ethtool", &["-K", &name, "tx", "off", "gro", "off", "gso", "off", "tso", "off"], "")?;
    }
    Ok(())
}

fn settings(script: &Script) -> Result<(), String> {
    write_setting("net/ipv4/ip_forward", "1")?;
    write_setting("net/ipv6/conf/all/forwarding", "1")?;
    for which in ["all", "default"] {
        write_setting(&format!("net/ipv4/conf/{which}/rp_filter"), "0")?;
        write_setting(&format!("net/ipv6/conf/{which}/accept_dad"), "0")?;
    }
    for (name, rp_filter) in script.topology.names.iter().zip(script.topology.rp_filter) {
        write_setting(&format!("net/ipv4/conf/{name}/rp_filter"), &rp_filter.to_string())?;
        write_setting(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
        write_setting(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1")?;
    }
    for (key, value) in &script.conntrack {
        write_setting(&format!("net/netfilter/nf_conntrack_{key}"), value)?;
    }
    Ok(())
}

pub(super) fn addresses(script: &Script) -> String {
    let mut text = String::new();
    for port in Port::ALL {
        let name = &script.topology.names[port.index()];
        let _ = writeln!(text, "link set {name} up");
        for v4 in [true, false] {
            let nodad = if v4 { "" } else { " nodad" };
            let (address, len) = (port.address(v4), Topology::prefix_len(v4));
            let _ = writeln!(text, "addr replace {address}/{len} dev {name}{nodad}");
        }
        let _ = writeln!(text, "addr replace {LINK_LOCAL}/64 dev {name} nodad");
    }
    for neighbour in &script.topology.neighbours {
        let name = &script.topology.names[neighbour.port.index()];
        let (address, mac) = (neighbour.address, mac_text(neighbour.mac));
        let _ = writeln!(text, "neigh replace {address} lladdr {mac} dev {name} nud permanent");
    }
    text
}

pub(super) fn routes(script: &Script, v4: bool) -> String {
    let mut text = String::new();
    for Route { network, len, target, mtu } in &script.topology.routes {
        if network.is_ipv4() != v4 {
            continue;
        }
        let names = &script.topology.names;
        let mtu = mtu.map_or_else(String::new, |mtu| format!(" mtu {mtu}"));
        let _ = match target {
            Target::Via(gateway) => writeln!(text, "route add {network}/{len} via {gateway}{mtu}"),
            Target::Dev(port) => writeln!(text, "route add {network}/{len} dev {}{mtu}", names[port.index()]),
            Target::Elsewhere => writeln!(text, "route add {network}/{len} dev other"),
            Target::Unreachable => writeln!(text, "route add unreachable {network}/{len}"),
            Target::Prohibit => writeln!(text, "route add prohibit {network}/{len}"),
            Target::Blackhole => writeln!(text, "route add blackhole {network}/{len}"),
        };
    }
    text
}

/// Loads the rules; and, since the kernel tracks connections only where a rule needs it, one rule that never matches.
fn load_rules(script: &Script) -> Result<(), String> {
    for (program, rules) in
        [("iptables-legacy-restore", &script.rules_v4), ("ip6tables-legacy-restore", &script.rules_v6)]
    {
        let empty = Rules { name: "no rules".into(), text: "*filter\nCOMMIT\n".into() };
        let Rules { name, text } = rules.as_ref().unwrap_or(&empty);
        run(program, &[], text).map_err(|error| format!("{name}: {error}"))?;
        run(program, &["--noflush"], "*raw\n-A PREROUTING -p 254 -j CT --zone 0\nCOMMIT\n")?;
    }
    Ok(())
}

pub(super) fn packet_socket(name: &str) -> Result<OwnedFd, String> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .map_err(|error| format!("packet socket: {error}"))?;
    let interfaces = getifaddrs().map_err(|error| format!("getifaddrs: {error}"))?;
    let mut found = interfaces.filter(|interface| interface.interface_name == name);
    let address = found.find_map(|interface| interface.address.and_then(|address| address.as_link_addr().copied()));
    bind(fd.as_raw_fd(), &address.ok_or_else(|| format!("no interface {name}"))?)
        .map_err(|error| format!("bind: {error}"))?;
    Ok(fd)
}

/// Runs a program to its end with `input` on stdin; what it prints.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| format!("{program}: {error} (scripts/setup installs it)"))?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    // A program that ends without reading all of it says why itself.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn arp_request(port: Port) -> Vec<u8> {
    let net = 1 + port as u8;
    let asker_mac = [2, net, 0, 0, 0, ASKER];
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&asker_mac);
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&asker_mac);
    frame.extend_from_slice(&[10, net, 0, ASKER]);
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&[10, net, 0, 1]);
    frame
}

fn is_barrier_answer(frame: &[u8]) -> bool {
    frame.len() >= 42 && frame[12..14] == [0x08, 0x06] && frame[21] == 2 && frame[5] == ASKER
}

/// What a host says on its own account: ARP, neighbour discovery, multicast listener reports.
pub(super) fn is_housekeeping(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x06]) => true,
        Some([0x86, 0xdd]) => {
            let (next, destination) = (frame.get(20).copied(), frame.get(38).copied());
            let kind = match next {
                Some(0) => return destination == Some(0xff),
                Some(58) => frame.get(54).copied(),
                _ => None,
            };
            matches!(kind, Some(130..=136 | 143)) && (destination == Some(0xff) || matches!(kind, Some(135 | 136)))
        }
        _ => false,
    }
}
