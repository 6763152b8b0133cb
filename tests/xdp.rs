//! The AF_XDP edge on veth pairs in network namespaces of its own: needs root, touches nothing else.
//!
//!     lan (10.77.1.2, fd77:1::2) --- lan0 [router: 10.77.1.1, 10.77.2.1] wan0 --- wan (10.77.2.2, fd77:2::2)
//!
//! The router's namespace does not forward by itself; a thread there runs a forwarder that only changes MACs, which is all
//! that is needed to see whether the edge moves packets, keeps count of its frames, and leaves the host a host.

#![allow(clippy::print_stdout)] // how a child process tells its parent

use nix::sched::{CloneFlags, setns};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use xrouter::device::{Device, Frame, PortId};
use xrouter::xdp::{
    BusyPoll, Edge, EdgeConfig, EdgeError, Hook, Interface, Mode, Punter, Steer, WorkerQueues, XdpQueue,
};

const LAN_ROUTER: &str = "10.77.1.1";
const LAN_HOST: &str = "10.77.1.2";
const WAN_ROUTER: &str = "10.77.2.1";
const WAN_HOST: &str = "10.77.2.2";
/// Large frames of each worker, where there are any.
const LARGE_FRAMES: usize = 1024;
const LOCAL: [&str; 4] = ["10.77.1.1", "10.77.2.1", "fd77:1::1", "fd77:2::1"];

/// Three namespaces and two veth pairs. Removed when dropped, also when a test fails.
struct Lab {
    name: String,
}

/// One of the lab's namespaces.
#[derive(Clone, Copy)]
enum At {
    Lan,
    Router,
    Wan,
}

impl Lab {
    fn new(queues: u32) -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("xr{}e{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lab = Lab { name };
        for at in [At::Lan, At::Router, At::Wan] {
            run(&["ip", "netns", "add", &lab.namespace(at)]);
            lab.ip(at, &["link", "set", "lo", "up"]);
            // Addresses are usable at once.
            lab.sh(at, "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0");
        }
        lab.wire(At::Lan, "lan0", queues, "1");
        lab.wire(At::Wan, "wan0", queues, "2");
        lab
    }

    /// A veth pair between the router's `port` and `eth0` of a host.
    fn wire(&self, host: At, port: &str, queues: u32, net: &str) {
        let (router, host_namespace) = (self.namespace(At::Router), self.namespace(host));
        let queues = queues.to_string();
        run(&[
            "ip",
            "link",
            "add",
            port,
            "netns",
            &router,
            "numrxqueues",
            &queues,
            "numtxqueues",
            &queues,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &host_namespace,
            "numrxqueues",
            &queues,
            "numtxqueues",
            &queues,
        ]);
        // A host behind a raw-frame forwarder has to finish its own checksums.
        self.sh(host, "ethtool -K eth0 tx off >/dev/null");
        self.ip(At::Router, &["addr", "add", &format!("10.77.{net}.1/24"), "dev", port]);
        self.ip(At::Router, &["addr", "add", &format!("fd77:{net}::1/64"), "dev", port]);
        self.ip(At::Router, &["link", "set", port, "up"]);
        self.ip(host, &["addr", "add", &format!("10.77.{net}.2/24"), "dev", "eth0"]);
        self.ip(host, &["addr", "add", &format!("fd77:{net}::2/64"), "dev", "eth0"]);
        self.ip(host, &["link", "set", "eth0", "up"]);
        self.ip(host, &["route", "add", "default", "via", &format!("10.77.{net}.1")]);
        self.ip(host, &["-6", "route", "add", "default", "via", &format!("fd77:{net}::1")]);
    }

    fn namespace(&self, at: At) -> String {
        let end = match at {
            At::Lan => "lan",
            At::Router => "rtr",
            At::Wan => "wan",
        };
        format!("{}{end}", self.name)
    }

    fn command(&self, at: At, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(at)]).args(arguments);
        command
    }

    fn output(&self, at: At, arguments: &[&str]) -> Output {
        self.command(at, arguments).output().expect("ip netns exec starts")
    }

    fn ip(&self, at: At, arguments: &[&str]) {
        let namespace = self.namespace(at);
        run(&[&["ip", "-n", &namespace], arguments].concat());
    }

    fn sh(&self, at: At, line: &str) -> String {
        let output = self.output(at, &["sh", "-c", line]);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Of both links.
    fn set_mtu(&self, mtu: u32) {
        for (at, name) in [(At::Lan, "eth0"), (At::Router, "lan0"), (At::Router, "wan0"), (At::Wan, "eth0")] {
            self.ip(at, &["link", "set", name, "mtu", &mtu.to_string()]);
        }
    }

    /// Whether a ping is answered within two seconds.
    fn ping(&self, from: At, to: &str) -> bool {
        self.output(from, &["ping", "-c", "1", "-w", "2", to]).status.success()
    }

    /// Runs `work` on a thread of its own in a namespace.
    fn spawn<T: Send + 'static>(&self, at: At, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = format!("/run/netns/{}", self.namespace(at));
        std::thread::spawn(move || {
            let namespace = File::open(path).expect("the namespace exists");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
            work()
        })
    }

    fn run<T: Send + 'static>(&self, at: At, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(at, work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn interface(&self, at: At, name: &'static str) -> Interface {
        self.run(at, move || Interface::read(name).expect("the lab made it"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for at in [At::Lan, At::Router, At::Wan] {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(at)]).stderr(Stdio::null()).status();
        }
    }
}

fn run(arguments: &[&str]) {
    let output = Command::new(arguments[0]).args(&arguments[1..]).output().expect("the command starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn local_addresses() -> Vec<IpAddr> {
    LOCAL.iter().map(|text| text.parse().expect("an address")).collect()
}

fn config(mode: Mode) -> EdgeConfig {
    EdgeConfig { mode, rx_ring: 512, tx_ring: 512, ..EdgeConfig::new("lan0", "wan0") }
}

/// What a forwarder has done.
#[derive(Default, Debug)]
struct Seen {
    forwarded: AtomicU64,
    punted: AtomicU64,
}

/// A thread in the router's namespace that opens the edge and forwards: everything for a local address is punted, all else
/// gets the MACs of the other side.
struct Forwarder {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<Result<Edge, String>>>,
}

impl Forwarder {
    fn start(lab: &Lab, config: EdgeConfig) -> Forwarder {
        let hosts = [lab.interface(At::Lan, "eth0").mac, lab.interface(At::Wan, "eth0").mac];
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let (ready, opened) = std::sync::mpsc::channel();
        let (stopped, saw) = (stop.clone(), seen.clone());
        let thread = lab.spawn(At::Router, move || {
            let mut edge = Edge::open(&config).map_err(|error| error.to_string())?;
            edge.set_local_addresses(&local_addresses()).map_err(|error| error.to_string())?;
            let mut workers: Vec<_> = (0..config.workers)
                .map(|n| (edge.take_worker(n).expect("not taken yet"), edge.punter(n).expect("a punter")))
                .collect();
            let macs = edge.interfaces().each_ref().map(|interface| interface.mac);
            ready.send(()).map_err(|error| error.to_string())?;
            while !stopped.load(Ordering::Relaxed) {
                for (queues, punter) in &mut workers {
                    turn(queues, punter, &macs, &hosts, &saw).map_err(|error| error.to_string())?;
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            check_frames(&edge, &mut workers);
            Ok(edge)
        });
        if opened.recv_timeout(Duration::from_secs(20)).is_err() {
            match thread.join() {
                Ok(Ok(_)) => panic!("the forwarder ended before it was ready"),
                Ok(Err(error)) => panic!("the edge did not open: {error}"),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Forwarder { stop, seen, thread: Some(thread) }
    }

    fn stop(mut self) -> Edge {
        self.stop.store(true, Ordering::Relaxed);
        self.join().unwrap_or_else(|error| panic!("the forwarder failed: {error}"))
    }

    fn join(&mut self) -> Result<Edge, String> {
        let thread = self.thread.take().expect("joined once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The error it ends with by itself.
    fn failure(mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.thread.as_ref().expect("not joined").is_finished() {
            assert!(Instant::now() < deadline, "the forwarder goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.join().expect_err("it ended by itself")
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One burst of one worker.
fn turn(
    worker: &mut WorkerQueues,
    punter: &mut Punter,
    macs: &[[u8; 6]; 2],
    hosts: &[[u8; 6]; 2],
    seen: &Seen,
) -> std::io::Result<()> {
    let mut received: Vec<Frame> = Vec::new();
    for port in PortId::ALL {
        let other = PortId(1 - port.0);
        let mut out = VecDeque::new();
        for queue in &mut worker.ports[port.index()] {
            queue.receive(&mut received, 64, &mut worker.pool);
        }
        for mut frame in received.drain(..) {
            if is_local(frame.bytes()) {
                seen.punted.fetch_add(1, Ordering::Relaxed);
                punter.punt(port, frame.bytes());
                worker.pool.put(frame);
                continue;
            }
            let bytes = frame.bytes_mut();
            bytes[..6].copy_from_slice(&hosts[other.index()]);
            bytes[6..12].copy_from_slice(&macs[other.index()]);
            seen.forwarded.fetch_add(1, Ordering::Relaxed);
            out.push_back(frame);
        }
        worker.ports[other.index()][0].transmit(&mut out, &mut worker.pool);
        out.into_iter().for_each(|frame| worker.pool.put(frame));
    }
    punter.flush();
    for queue in worker.ports.iter_mut().flatten() {
        queue.kick()?;
        queue.alive()?;
        queue.reclaim(&mut worker.pool);
        queue.refill(&mut worker.pool);
    }
    Ok(())
}

fn is_local(frame: &[u8]) -> bool {
    let destination = match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, ip @ ..] if ip.len() >= 20 => {
            IpAddr::from(<[u8; 4]>::try_from(&ip[16..20]).expect("four bytes"))
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ip @ ..] if ip.len() >= 40 => {
            IpAddr::from(<[u8; 16]>::try_from(&ip[24..40]).expect("sixteen bytes"))
        }
        _ => return false,
    };
    local_addresses().contains(&destination)
}

/// Every frame is in the pools or lent, and the table agrees.
fn check_frames(edge: &Edge, workers: &mut [(WorkerQueues, Punter)]) {
    let lent = |queues: &WorkerQueues| -> usize {
        queues.ports.iter().flatten().map(|queue| queue.lent().filling + queue.lent().sending).sum()
    };
    let lent: usize = workers.iter().map(|(queues, _)| lent(queues)).sum();
    let free: usize = workers.iter().map(|(queues, _)| queues.pool.len()).sum();
    let large = |queues: &WorkerQueues| -> usize {
        queues.pool.large() + queues.ports.iter().flatten().map(XdpQueue::large_held).sum::<usize>()
    };
    let large: usize = workers.iter().map(|(queues, _)| large(queues)).sum();
    let expected = if edge.report().large == 0 { 0 } else { LARGE_FRAMES * workers.len() };
    assert_eq!(large, expected, "large frames were lost or invented");
    assert_eq!(lent + free, edge.umem().frames(), "frames were lost or invented");
    assert_eq!(lent, edge.umem().lent(), "the table and the sockets count differently");
}

fn steered(edge: &Edge, port: PortId, steer: Steer) -> u64 {
    let counts = edge.steered(port).expect("the map answers");
    counts.iter().find(|(reason, _)| *reason == steer).map_or(0, |(_, count)| *count)
}

#[test]
fn forwards_both_ways_in_copy_mode() {
    let lab = Lab::new(1);
    let forwarder = Forwarder::start(&lab, config(Mode::Copy));
    for (from, to) in [(At::Lan, WAN_HOST), (At::Wan, LAN_HOST), (At::Lan, "fd77:2::2"), (At::Wan, "fd77:1::2")] {
        assert!(lab.ping(from, to), "no answer from {to}");
    }
    let forwarded = forwarder.seen.forwarded.load(Ordering::Relaxed);
    let edge = forwarder.stop();
    assert!(forwarded >= 8, "{forwarded} packets forwarded");
    assert_eq!(edge.report().mode, Mode::Copy);
    assert!(edge.report().ports.iter().all(|port| port.hook == Hook::Native && !port.zero_copy));
    assert!(steered(&edge, PortId::LAN, Steer::WorkerTransit) >= 4);
}

#[test]
fn generic_mode_works_when_asked_for() {
    let lab = Lab::new(1);
    let forwarder = Forwarder::start(&lab, config(Mode::Generic));
    assert!(lab.ping(At::Lan, WAN_HOST) && lab.ping(At::Wan, "fd77:1::2") && lab.ping(At::Lan, LAN_ROUTER));
    let edge = forwarder.stop();
    assert_eq!((edge.report().mode, edge.report().ports[0].hook), (Mode::Generic, Hook::Generic));
}

#[test]
fn auto_says_what_it_got_and_why_not_better() {
    let lab = Lab::new(1);
    let forwarder = Forwarder::start(&lab, config(Mode::Auto));
    assert!(lab.ping(At::Lan, WAN_HOST));
    let edge = forwarder.stop();
    assert_eq!(edge.report().mode, Mode::Copy);
    assert_eq!(edge.report().refused, ["zero-copy: the driver of lan0 (veth) has no zero-copy"]);
    assert!(edge.report().anchored);
}

#[test]
fn zero_copy_alone_is_refused_as_the_machines_limit() {
    let lab = Lab::new(1);
    let error = lab.run(At::Router, || Edge::open(&config(Mode::ZeroCopy)).expect_err("veth has none"));
    assert!(error.is_machine_limit(), "{error}");
    assert!(error.to_string().contains("the driver of lan0 (veth) has no zero-copy"), "{error}");
    assert_eq!(lab.sh(At::Router, "ip -d link show lan0").matches("xdp").count(), 0, "the program is off again");
}

#[test]
fn wrong_interfaces_are_named() {
    let lab = Lab::new(1);
    let open = |lan: &'static str, wan: &'static str| {
        let error = lab.run(At::Router, move || Edge::open(&EdgeConfig::new(lan, wan)).expect_err("must not open"));
        assert!(!error.is_machine_limit(), "{error}");
        error
    };
    assert!(matches!(open("lan0", "lan0"), EdgeError::SameInterface { .. }));
    assert!(matches!(open("lan0", "nope"), EdgeError::NoInterface { name } if name == "nope"));
    assert!(matches!(open("lo", "wan0"), EdgeError::Setting { .. }));
    lab.ip(At::Router, &["link", "set", "wan0", "down"]);
    assert!(matches!(open("lan0", "wan0"), EdgeError::Down { name } if name == "wan0"));
    let several = EdgeConfig { workers: 2, ..EdgeConfig::new("lan0", "lan0") };
    assert!(lab.run(At::Router, move || Edge::open(&several)).is_err());
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let lab = Lab::new(1);
    for (change, word) in [
        (EdgeConfig { workers: 2, ..config(Mode::Copy) }, "receive queues"),
        (EdgeConfig { workers: 0, ..config(Mode::Copy) }, "workers"),
        (EdgeConfig { frames: 16, ..config(Mode::Copy) }, "too few"),
        (EdgeConfig { frame_size: 3000, ..config(Mode::Copy) }, "frame size"),
        (EdgeConfig { rx_ring: 100, ..config(Mode::Copy) }, "power of two"),
    ] {
        let error = lab.run(At::Router, move || Edge::open(&change).expect_err("must not open"));
        assert!(matches!(error, EdgeError::Setting { .. }) && error.to_string().contains(word), "{error}");
    }
}

#[test]
fn another_program_is_left_alone() {
    let lab = Lab::new(1);
    let first = Forwarder::start(&lab, config(Mode::Copy));
    let error = lab.run(At::Router, || Edge::open(&config(Mode::Auto)).expect_err("the first one is there"));
    assert!(
        matches!(&error, EdgeError::OtherProgram { name, id, program: Some(program) }
            if name == "lan0" && *id != 0 && program == "xrouter_xdp"),
        "{error}"
    );
    assert!(lab.ping(At::Lan, WAN_HOST), "the first one goes on");
    first.stop();
}

/// This very test again, in a process of its own in the router's namespace.
fn child(lab: &Lab, before: &[&str], test: &str) -> Command {
    let me = std::env::current_exe().expect("a path");
    let me = me.to_str().expect("of text");
    let mut command = lab.command(At::Router, &[before, &[me, "--exact", test, "--nocapture"]].concat());
    command.env("XROUTER_TEST_CHILD", "1").stdout(Stdio::piped());
    command
}

fn is_child() -> bool {
    std::env::var_os("XROUTER_TEST_CHILD").is_some()
}

#[test]
fn without_privileges_it_says_so() {
    if is_child() {
        let error = Edge::open(&config(Mode::Auto)).expect_err("it may not");
        println!("machine limit {}: {error}", error.is_machine_limit());
        return;
    }
    let lab = Lab::new(1);
    let bare = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"];
    let output = child(&lab, &bare, "without_privileges_it_says_so").output().expect("the child starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("machine limit true: this process lacks CAP_NET_ADMIN, CAP_NET_RAW"), "{said}");
}

#[test]
fn the_host_answers_what_is_punted_to_it() {
    let lab = Lab::new(1);
    let forwarder = Forwarder::start(&lab, config(Mode::Copy));
    let punted = || forwarder.seen.punted.load(Ordering::Relaxed);
    // TCP to a closed port: the SYN goes to the worker, comes back as a punt, and the kernel refuses it.
    for closed in ["10.77.1.1:9", "[fd77:1::1]:9", "10.77.2.1:9"] {
        let before = punted();
        let error = lab.run(At::Lan, move || {
            let address = closed.parse().expect("an address");
            TcpStream::connect_timeout(&address, Duration::from_secs(2)).expect_err("nobody listens")
        });
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{closed}: {error}");
        assert!(punted() > before, "{closed} was not punted");
    }
    // UDP to a closed port: port unreachable.
    let refused = lab.run(At::Wan, || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect((WAN_ROUTER, 9)).expect("a route");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a time");
        socket.send(b"anybody?").expect("sent");
        socket.recv(&mut [0; 16]).expect_err("nobody listens")
    });
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
    // The host's own ping: the echo replies are punted too.
    let before = punted();
    assert!(lab.ping(At::Router, LAN_HOST) && lab.ping(At::Router, "fd77:2::2"));
    assert!(punted() > before, "echo replies were not punted");
    let edge = forwarder.stop();
    assert!(steered(&edge, PortId::LAN, Steer::HostPunted) >= 3);
    assert_eq!(steered(&edge, PortId::LAN, Steer::DropPunt), 0);
}

#[test]
fn the_host_keeps_its_own() {
    let lab = Lab::new(1);
    let forwarder = Forwarder::start(&lab, config(Mode::Copy));
    // ARP and neighbour discovery, from nothing.
    for at in [At::Lan, At::Router, At::Wan] {
        lab.sh(at, "ip neigh flush all");
    }
    assert!(lab.ping(At::Lan, LAN_ROUTER) && lab.ping(At::Wan, "fd77:2::1") && lab.ping(At::Router, WAN_HOST));
    // A TCP service and a UDP service on the router, for both families, while packets pass through.
    let echo = lab.run(At::Router, || TcpListener::bind("[::]:7007").expect("the port is free"));
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = echo.accept().expect("a caller");
            let mut text = [0; 5];
            stream.read_exact(&mut text).expect("five bytes");
            stream.write_all(&text).expect("and back");
        }
    });
    for address in ["10.77.1.1:7007", "[fd77:1::1]:7007"] {
        let said = lab.run(At::Lan, move || {
            let mut stream = TcpStream::connect_timeout(&address.parse().expect("an address"), Duration::from_secs(2))
                .unwrap_or_else(|error| panic!("{address}: {error}"));
            stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a time");
            stream.write_all(b"hello").expect("sent");
            let mut text = [0; 5];
            stream.read_exact(&mut text).expect("answered");
            text
        });
        assert_eq!(&said, b"hello");
    }
    server.join().expect("both were served");
    let service = lab.run(At::Router, || UdpSocket::bind("[::]:7008").expect("the port is free"));
    service.set_read_timeout(Some(Duration::from_secs(2))).expect("a time");
    for address in ["10.77.2.1:7008", "[fd77:2::1]:7008"] {
        lab.run(At::Wan, move || {
            let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.send_to(b"hello", address).expect("sent");
        });
        let length = service.recv(&mut [0; 16]).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(length, 5);
    }
    assert!(lab.ping(At::Lan, WAN_HOST));
    let edge = forwarder.stop();
    assert!(steered(&edge, PortId::LAN, Steer::HostSocket) >= 6, "TCP segments went to the socket");
    assert!(steered(&edge, PortId::WAN, Steer::HostSocket) >= 2, "datagrams went to the socket");
    assert!(steered(&edge, PortId::LAN, Steer::HostGroupMac) >= 1, "ARP requests went to the host");
    assert!(steered(&edge, PortId::WAN, Steer::HostNotIp) >= 1, "ARP answers went to the host");
    assert!(steered(&edge, PortId::LAN, Steer::HostEcho) >= 1, "echo requests went to the host");
}

#[test]
fn nothing_passes_without_sockets() {
    let lab = Lab::new(1);
    // The worst case: the kernel would forward.
    lab.sh(At::Router, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    assert!(lab.ping(At::Lan, WAN_HOST), "the kernel forwards when we are not there");
    let (edge, dropped) = lab.run(At::Router, || {
        let mut edge = Edge::open(&config(Mode::Copy)).expect("opens");
        edge.set_local_addresses(&local_addresses()).expect("four addresses");
        drop((edge.take_worker(0), ())); // its sockets close: the program is all that is left
        let dropped = steered(&edge, PortId::LAN, Steer::DropNoSocket);
        (edge, dropped)
    });
    assert!(!lab.ping(At::Lan, WAN_HOST), "transit passed without a socket");
    assert!(!lab.ping(At::Wan, "fd77:1::2"), "transit passed without a socket");
    assert!(lab.ping(At::Lan, LAN_ROUTER), "the host is still there");
    assert!(steered(&edge, PortId::LAN, Steer::DropNoSocket) > dropped, "the drops were not counted");
    drop(edge);
    assert!(lab.ping(At::Lan, WAN_HOST), "the kernel forwards again");
}

#[test]
fn a_link_may_go_down_and_come_back() {
    let lab = Lab::new(1);
    let forwarder = Forwarder::start(&lab, config(Mode::Copy));
    assert!(lab.ping(At::Lan, WAN_HOST));
    for (at, name) in [(At::Router, "wan0"), (At::Wan, "eth0"), (At::Router, "lan0")] {
        lab.ip(at, &["link", "set", name, "down"]);
        assert!(!lab.ping(At::Lan, WAN_HOST), "{name} is down");
        lab.ip(at, &["link", "set", name, "up"]);
        lab.sh(At::Wan, "ip route replace default via 10.77.2.1");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !lab.ping(At::Lan, WAN_HOST) {
            assert!(Instant::now() < deadline, "no traffic after {name} came back");
        }
    }
    forwarder.stop();
}

#[test]
fn a_deleted_interface_is_told() {
    for deleted in ["wan0", "lan0"] {
        let lab = Lab::new(1);
        let forwarder = Forwarder::start(&lab, config(Mode::Copy));
        assert!(lab.ping(At::Lan, WAN_HOST));
        lab.ip(At::Router, &["link", "del", deleted]);
        let error = forwarder.failure();
        assert!(error.contains(&format!("interface {deleted}")) && error.contains("is gone"), "{error}");
        // A new one of that name is as good as any.
        let (host, net) = if deleted == "wan0" { (At::Wan, "2") } else { (At::Lan, "1") };
        lab.wire(host, deleted, 1, net);
        let forwarder = Forwarder::start(&lab, config(Mode::Copy));
        assert!(lab.ping(At::Lan, WAN_HOST));
        forwarder.stop();
    }
}

#[test]
fn starts_and_stops_again_and_again() {
    let lab = Lab::new(2);
    for round in 0..8 {
        let two = EdgeConfig { workers: 1 + round % 2, ..config(Mode::Auto) };
        let forwarder = Forwarder::start(&lab, two);
        assert!(lab.ping(At::Lan, WAN_HOST), "round {round}");
        let edge = forwarder.stop();
        assert!(edge.report().anchored, "round {round}: the anchor of the last round is still there");
        drop(edge);
        assert_eq!(lab.sh(At::Router, "ip -d link show").matches("prog/xdp").count(), 0, "round {round}");
    }
}

#[test]
fn all_queues_are_read_and_frames_kept() {
    let lab = Lab::new(3);
    let forwarder = Forwarder::start(&lab, EdgeConfig { workers: 2, ..config(Mode::Copy) });
    let received = lab.run(At::Wan, || UdpSocket::bind("0.0.0.0:7009").expect("the port is free"));
    received.set_read_timeout(Some(Duration::from_millis(300))).expect("a time");
    const FLOWS: usize = 60;
    let sender = lab.spawn(At::Lan, || {
        for flow in 0..FLOWS {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            for _ in 0..5 {
                socket.send_to(&[flow as u8; 200], (WAN_HOST, 7009)).expect("sent");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let mut flows = std::collections::HashSet::new();
    let mut buffer = [0; 300];
    let mut count = 0;
    while let Ok(length) = received.recv(&mut buffer) {
        assert!(length == 200 && buffer[..length].iter().all(|byte| *byte == buffer[0]), "bytes were changed");
        flows.insert(buffer[0]);
        count += 1;
    }
    sender.join().expect("all sent");
    assert_eq!((flows.len(), count), (FLOWS, FLOWS * 5), "queues without a reader, or lost packets");
    forwarder.stop(); // checks the frames
}

#[test]
fn jumbo_frames_get_bigger_buffers() {
    let lab = Lab::new(1);
    lab.set_mtu(3000);
    let forwarder = Forwarder::start(&lab, config(Mode::Auto));
    let big = lab.output(At::Lan, &["ping", "-c", "2", "-w", "2", "-M", "do", "-s", "2900", WAN_HOST]);
    assert!(big.status.success(), "{}", String::from_utf8_lossy(&big.stdout));
    let edge = forwarder.stop();
    assert_eq!((edge.report().frame_size, edge.report().large), (4096, 0));
}

#[test]
fn packets_longer_than_a_frame_pass_whole() {
    for (mode, frame_size) in [(Mode::Copy, 0), (Mode::Copy, 2048), (Mode::Generic, 0)] {
        let lab = Lab::new(2);
        lab.set_mtu(9000);
        let forwarder = Forwarder::start(&lab, EdgeConfig { workers: 2, frame_size, ..config(mode) });
        // Lengths around those of one, two and three frames of either size; ping compares every byte that comes back.
        for size in [64, 1750, 1764, 3542, 3556, 3784, 3798, 3812, 7624, 7638, 8952, 8972] {
            for (from, to) in [(At::Lan, WAN_HOST), (At::Wan, "fd77:1::2")] {
                let size = if to == WAN_HOST { size } else { size.min(8952) }.to_string();
                let said = lab.output(from, &["ping", "-c", "1", "-W", "5", "-M", "do", "-s", &size, to]);
                let text = String::from_utf8_lossy(&said.stdout);
                let sound = said.status.success() && text.contains(" 0% packet loss") && !text.contains("wrong data");
                assert!(sound, "{mode}, {size} bytes to {to}: {text}");
            }
        }
        let edge = forwarder.stop(); // checks the frames
        assert_eq!((edge.report().mode, edge.report().large > 9018), (mode, true), "{:?}", edge.report());
        assert!(edge.report().warnings.is_empty(), "{:?}", edge.report());
    }
}

/// veth takes a program that knows one buffer up to 3520 bytes, and up to 3822 a packet would fit a frame.
#[test]
fn what_fits_a_frame_but_not_the_drivers_buffer_passes() {
    let lab = Lab::new(1);
    lab.set_mtu(3700);
    let forwarder = Forwarder::start(&lab, config(Mode::Copy));
    for size in ["3450", "3500", "3672"] {
        let said = lab.output(At::Lan, &["ping", "-c", "2", "-i", "0.01", "-W", "2", "-M", "do", "-s", size, WAN_HOST]);
        assert!(said.status.success(), "{size}: {}", String::from_utf8_lossy(&said.stdout));
    }
    let edge = forwarder.stop();
    assert_eq!((edge.report().mode, edge.report().warnings.len()), (Mode::Copy, 0));
}

/// A worker of one queue a port, in the router's namespace, and one ping of so many bytes from the LAN for each call.
fn with_worker(mtu: u32, test: impl FnOnce(&mut WorkerQueues, &dyn Fn(u32)) + Send + 'static) {
    let lab = Lab::new(1);
    lab.set_mtu(mtu);
    let lan_host = lab.namespace(At::Lan);
    lab.run(At::Router, move || {
        let mut edge = Edge::open(&config(Mode::Copy)).expect("opens");
        let mut worker = edge.take_worker(0).expect("the only one");
        let ping = |size: u32| {
            let size = size.to_string();
            let words = ["netns", "exec", &lan_host, "ping", "-c", "1", "-W", "0.1", "-M", "do", "-s", &size, WAN_HOST];
            Command::new("ip").args(words).output().expect("ping starts");
        };
        test(&mut worker, &ping);
    });
}

#[test]
fn as_many_long_packets_come_as_are_asked_for() {
    with_worker(9000, |worker, ping| {
        (0..30).for_each(|_| ping(8972));
        let (queue, mut received) = (&mut worker.ports[0][0], Vec::new());
        let (free, lent) = (worker.pool.len(), queue.lent().filling);
        for (asked, all) in [(1, 1), (22, 23), (64, 30)] {
            queue.receive(&mut received, asked, &mut worker.pool);
            assert_eq!((received.len(), queue.large_held()), (all, 0));
        }
        assert!(received.iter().all(|frame| frame.is_large() && frame.len() == 9014), "{received:?}");
        assert_eq!((worker.pool.len() - free, lent - queue.lent().filling), (90, 90), "three frames for each");
    });
}

#[test]
fn without_a_large_frame_long_packets_are_dropped_and_counted() {
    with_worker(9000, |worker, ping| {
        let taken: Vec<Frame> = std::iter::from_fn(|| worker.pool.take_large()).collect();
        assert_eq!(taken.len(), LARGE_FRAMES);
        let (queue, mut received) = (&mut worker.ports[0][0], Vec::new());
        let free = worker.pool.len();
        let lent = queue.lent().filling;
        ping(5000);
        ping(500);
        queue.receive(&mut received, 64, &mut worker.pool);
        assert_eq!(received.iter().map(Frame::len).collect::<Vec<_>>(), [542], "a short one comes through");
        assert_eq!(Device::statistics(queue).rx_no_large_frame, 1);
        assert_eq!((worker.pool.len() - free, lent - queue.lent().filling), (2, 3), "its frames are free again");
        taken.into_iter().for_each(|frame| worker.pool.put(frame));
        ping(5000);
        queue.receive(&mut received, 64, &mut worker.pool);
        assert_eq!(
            (received[1].len(), Device::statistics(queue).rx_no_large_frame),
            (5042, 1),
            "and then they come again"
        );
    });
}

#[test]
fn a_long_packet_waits_until_there_is_room_for_all_of_it() {
    with_worker(9000, |worker, _| {
        let (queue, pool) = (&mut worker.ports[1][0], &mut worker.pool);
        let mut out: VecDeque<Frame> = std::iter::from_fn(|| pool.take_large()).take(200).collect();
        // No address that anybody has: they end at the other side.
        out.iter_mut().for_each(|frame| frame.fill(&[0x02; 9014]));
        assert_eq!((queue.transmit(&mut out, pool), out.len()), (170, 30), "512 descriptors, three for each");
        assert_eq!((queue.lent().sending, pool.large()), (510, LARGE_FRAMES - 30));
        queue.kick().expect("the link is up");
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut reclaimed = 0;
        while reclaimed < 510 {
            reclaimed += queue.reclaim(pool);
            assert!(Instant::now() < deadline, "{reclaimed} frames came back");
        }
        // With two free frames left, three are not to be had.
        let mut hidden: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
        hidden.drain(..2).for_each(|frame| pool.put(frame));
        assert_eq!((queue.transmit(&mut out, pool), out.len(), pool.len()), (0, 30, 2));
        hidden.into_iter().for_each(|frame| pool.put(frame));
        assert_eq!((queue.transmit(&mut out, pool), out.len(), pool.large()), (30, 0, LARGE_FRAMES));
        queue.kick().expect("the link is up");
        assert_eq!(queue.statistics().expect("the kernel answers").tx_invalid_descs, 0);
    });
}

#[test]
fn killed_without_warning_it_leaves_nothing_behind() {
    if is_child() {
        let _edge = Edge::open(&config(Mode::Copy)).expect("opens");
        println!("child is open");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let lab = Lab::new(1);
    for _ in 0..3 {
        let mut child =
            child(&lab, &[], "killed_without_warning_it_leaves_nothing_behind").spawn().expect("the child starts");
        let mut said = std::io::BufReader::new(child.stdout.take().expect("piped")).lines();
        assert!(said.any(|line| line.is_ok_and(|line| line.contains("child is open"))), "the child opens the edge");
        assert_eq!(lab.sh(At::Router, "ip -d link show").matches("prog/xdp").count(), 2);
        child.kill().expect("it lives"); // SIGKILL
        child.wait().expect("it dies");
        let deadline = Instant::now() + Duration::from_secs(2);
        while lab.sh(At::Router, "ip -d link show").contains("prog/xdp") {
            assert!(Instant::now() < deadline, "the program is still attached");
        }
    }
    // And the queues are free again.
    let forwarder = Forwarder::start(&lab, config(Mode::Copy));
    assert!(lab.ping(At::Lan, WAN_HOST));
    forwarder.stop();
}

#[test]
fn two_run_side_by_side_in_one_namespace() {
    let lab = Lab::new(1);
    for port in ["a0", "b0"] {
        lab.ip(At::Router, &["link", "add", port, "type", "veth", "peer", "name", &format!("{port}x")]);
        lab.ip(At::Router, &["link", "set", port, "up"]);
    }
    let first = Forwarder::start(&lab, config(Mode::Copy));
    let second = Forwarder::start(&lab, EdgeConfig { ports: ["a0".into(), "b0".into()], ..config(Mode::Copy) });
    assert!(lab.ping(At::Lan, WAN_HOST));
    assert!(first.stop().report().anchored, "the first one has the loopback");
    assert!(!second.stop().report().anchored, "the second one does without");
}

#[test]
fn a_loopback_that_is_down_is_no_obstacle() {
    let lab = Lab::new(1);
    lab.ip(At::Router, &["link", "set", "lo", "down"]);
    let forwarder = Forwarder::start(&lab, config(Mode::Copy));
    assert!(lab.ping(At::Lan, WAN_HOST) && lab.ping(At::Wan, LAN_HOST));
    forwarder.stop();
}

#[test]
fn preferred_busy_polling_is_taken_where_offered() {
    let lab = Lab::new(1);
    let forwarder = Forwarder::start(&lab, EdgeConfig { busy_poll: Some(BusyPoll::default()), ..config(Mode::Copy) });
    assert!(lab.ping(At::Lan, WAN_HOST) && lab.ping(At::Wan, "fd77:1::2"));
    let edge = forwarder.stop();
    assert!(edge.report().busy_poll && edge.report().notes.is_empty(), "{:?}", edge.report());
}

#[test]
fn what_is_too_long_for_a_frame_is_dropped_and_counted() {
    let lab = Lab::new(1);
    let (lan_host, router) = (lab.namespace(At::Lan), lab.namespace(At::Router));
    let dropped = lab.run(At::Router, move || {
        let mut edge = Edge::open(&EdgeConfig { frame_size: 2048, ..config(Mode::Copy) }).expect("opens");
        // Nobody could know.
        for (namespace, name) in [(&lan_host, "eth0"), (&router, "lan0")] {
            run(&["ip", "-n", namespace, "link", "set", name, "mtu", "3000"]);
        }
        let mut worker = edge.take_worker(0).expect("the only one");
        let ping = ["netns", "exec", &lan_host, "ping", "-c", "3", "-i", "0.05", "-w", "1", "-s", "2500", WAN_HOST];
        Command::new("ip").args(ping).output().expect("ping starts");
        let mut received = Vec::new();
        worker.ports[0][0].receive(&mut received, 64, &mut worker.pool);
        assert!(received.is_empty(), "{received:?}");
        worker.ports[0][0].statistics().expect("the kernel answers").rx_dropped
    });
    assert!(dropped >= 3, "{dropped} drops counted");
}

#[test]
fn restarts_under_traffic() {
    let lab = Lab::new(2);
    let mut traffic: Vec<_> = [(At::Lan, WAN_HOST), (At::Wan, LAN_HOST)]
        .into_iter()
        .map(|(from, to)| {
            let ping = ["ping", "-q", "-i", "0.002", "-w", "60", to];
            lab.command(from, &ping).stdout(Stdio::null()).spawn().expect("ping starts")
        })
        .collect();
    for round in 0..4 {
        let forwarder = Forwarder::start(&lab, config(Mode::Copy));
        let deadline = Instant::now() + Duration::from_secs(10);
        while forwarder.seen.forwarded.load(Ordering::Relaxed) < 50 {
            assert!(Instant::now() < deadline, "round {round}: no traffic");
            std::thread::sleep(Duration::from_millis(10));
        }
        forwarder.stop(); // checks that no frame was lost
    }
    for ping in &mut traffic {
        ping.kill().expect("it runs");
        ping.wait().expect("and ends");
    }
}
