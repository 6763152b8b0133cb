//! The ABI against the compiled program; the frame table; and the steering, packet by packet, by running the program that
//! the kernel has accepted (`BPF_PROG_RUN`) in a network namespace of its own. The last needs root, and says so otherwise.

use super::abi::{self, Config, PuntSlot};
use super::program::OBJECT;
use super::umem::Owner;
use super::*;
use crate::device::Device;
use libbpf_rs::btf::types::{MemberAttr, Struct};
use libbpf_rs::{Btf, libbpf_sys};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use std::collections::VecDeque;
use std::mem::offset_of;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;

#[test]
fn mode_reads_what_it_writes() {
    for mode in [Mode::Auto, Mode::ZeroCopy, Mode::Copy, Mode::Generic] {
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
    assert!("fast".parse::<Mode>().is_err());
}

/// `#define NAME VALUE` in abi.h.
fn defined(name: &str) -> u64 {
    let header = include_str!("../../bpf/abi.h");
    let words = header.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let value = words.into_iter().find(|words| words.len() >= 3 && words[0] == "#define" && words[1] == name);
    let value = value.unwrap_or_else(|| panic!("abi.h does not define {name}"))[2].trim_end_matches('u');
    value.strip_prefix("0x").map_or_else(|| value.parse(), |hex| u64::from_str_radix(hex, 16)).expect("a number")
}

#[test]
fn numbers_are_those_of_the_header() {
    assert_eq!(defined("XROUTER_PORTS"), PortId::COUNT as u64);
    assert_eq!(defined("XROUTER_MAX_QUEUES"), u64::from(MAX_QUEUES));
    assert_eq!(defined("XROUTER_LOCAL_MAX"), LOCAL_MAX as u64);
    assert_eq!(defined("XROUTER_FILTER_WORDS"), abi::FILTER_WORDS as u64);
    assert_eq!(defined("XROUTER_MAX_PUNTERS"), MAX_PUNTERS as u64);
    assert_eq!(defined("XROUTER_PUNT_BATCH"), PUNT_BATCH as u64);
    assert_eq!(defined("XROUTER_PUNT_BYTES"), PUNT_BYTES as u64);
    assert_eq!(defined("XROUTER_PUNT_META"), abi::PUNT_META as u64);
    assert_eq!(defined("XROUTER_PUNT_RUN"), abi::PUNT_RUN as u64);
    assert_eq!(defined("XROUTER_PUNT_MAGIC"), u64::from(abi::PUNT_MAGIC));
    assert_eq!(defined("XROUTER_PORT_ADDRESSLESS"), u64::from(abi::PORT_ADDRESSLESS));
    assert_eq!(defined("XROUTER_NAT4"), u64::from(abi::NAT4));
    assert_eq!(defined("XROUTER_NAT6"), u64::from(abi::NAT6));
    let bit = (0x0a4d_0101u32.wrapping_mul(defined("XROUTER_FILTER_FACTOR") as u32)) >> defined("XROUTER_FILTER_SHIFT");
    assert_eq!(abi::filter_bit(0x0a4d_0101), ((bit >> 6) as usize, bit & 63));
}

#[test]
fn steering_reasons_are_those_of_the_header_in_its_order() {
    let header = include_str!("../../bpf/abi.h");
    let list = header.split("enum xrouter_steer {").nth(1).and_then(|rest| rest.split("};").next()).expect("the enum");
    let names = list.lines().filter_map(|line| line.trim().strip_prefix("XROUTER_")?.split(',').next());
    let names: Vec<String> = names.map(str::to_lowercase).collect();
    let ours: Vec<&str> = Steer::ALL.iter().map(|steer| steer.name()).chain(["steer_count"]).collect();
    assert_eq!(names, ours);
}

/// A member's offset in bytes, as the compiled program has it.
fn offset(btf: &Btf<'_>, structure: &str, member: &str) -> usize {
    let found: Struct<'_> = btf.type_by_name(structure).unwrap_or_else(|| panic!("no struct {structure} in the BTF"));
    let member = found.iter().find(|m| m.name.is_some_and(|name| name == member)).expect("the member");
    match member.attr {
        MemberAttr::Normal { offset } => offset as usize / 8,
        MemberAttr::BitField { .. } => panic!("a bit field in the ABI"),
    }
}

fn size(btf: &Btf<'_>, structure: &str) -> usize {
    let found: Struct<'_> = btf.type_by_name(structure).unwrap_or_else(|| panic!("no struct {structure} in the BTF"));
    libbpf_rs::HasSize::size(&found)
}

#[test]
fn structures_lie_as_in_the_compiled_program() {
    let btf = Btf::from_raw("xrouter", OBJECT).expect("an object").expect("with BTF");
    assert_eq!(size(&btf, "xrouter_port"), size_of::<abi::Port>());
    assert_eq!(offset(&btf, "xrouter_port", "ifindex"), offset_of!(abi::Port, ifindex));
    assert_eq!(offset(&btf, "xrouter_port", "flags"), offset_of!(abi::Port, flags));
    assert_eq!(offset(&btf, "xrouter_port", "mac"), offset_of!(abi::Port, mac));
    assert_eq!(size(&btf, "xrouter_config"), size_of::<Config>());
    assert_eq!(offset(&btf, "xrouter_config", "port"), offset_of!(Config, port));
    assert_eq!(offset(&btf, "xrouter_config", "nat"), offset_of!(Config, nat));
    assert_eq!(offset(&btf, "xrouter_config", "local_filter"), offset_of!(Config, local_filter));
    assert_eq!(offset(&btf, "xrouter_config", "punt_seal"), offset_of!(Config, punt_seal));
    assert_eq!(offset(&btf, "xrouter_config", "punt_next"), offset_of!(Config, punt_next));
    assert_eq!(size(&btf, "xrouter_punt_slot"), size_of::<PuntSlot>());
    assert_eq!(size_of::<PuntSlot>() % 8, 0, "the kernel lays array elements out at multiples of 8 bytes");
    assert_eq!(offset(&btf, "xrouter_punt_slot", "length"), offset_of!(PuntSlot, length));
    assert_eq!(offset(&btf, "xrouter_punt_slot", "bytes"), offset_of!(PuntSlot, bytes));
    assert_eq!(size(&btf, "xrouter_addr6"), 16);
}

/// Runs `work` in a network namespace of its own, which goes away with the thread. `None` when we may not.
fn in_namespace<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let thread = std::thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: a network namespace needs root ({error})");
            return None;
        }
        Some(work())
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip starts");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const V4: &str = "10.9.1.1";
const V6: &str = "fd09:1::1";

/// An edge on two veth pairs whose other ends go nowhere, with addresses, so that the program can be run on any packet.
struct Bench {
    edge: Edge,
    worker: WorkerQueues,
}

impl Bench {
    fn new() -> Bench {
        let quick = Command::new("sysctl").args(["-qw", "net.ipv6.conf.default.accept_dad=0"]).status();
        assert!(quick.expect("sysctl starts").success());
        ip("link set lo up");
        for (port, end) in [("p0", "e0"), ("p1", "e1")] {
            ip(&format!("link add {port} type veth peer name {end}"));
            ip(&format!("link set {end} up"));
        }
        ip("link set p0 address 02:00:00:00:00:01");
        ip(&format!("addr add {V4}/24 dev p0"));
        ip(&format!("addr add {V6}/64 dev p0"));
        ip("link set p0 up");
        ip("link set p1 up");
        let config = EdgeConfig { rx_ring: 64, tx_ring: 64, mode: Mode::Copy, ..EdgeConfig::new("p0", "p1") };
        let mut edge = Edge::open(&config).expect("the edge opens");
        edge.set_local_addresses(&[V4.parse().expect("v4"), V6.parse().expect("v6")]).expect("two addresses");
        let worker = edge.take_worker(0).expect("there is one");
        Bench { edge, worker }
    }

    /// Runs the program on `frame` as received on the LAN port: the XDP action, and the one reason that was counted.
    fn steer(&self, frame: &[u8]) -> (u32, Steer) {
        let before = self.edge.steered(PortId::LAN).expect("counts");
        let context = libbpf_sys::xdp_md {
            data_end: frame.len() as u32,
            ingress_ifindex: self.edge.interfaces()[0].ifindex,
            ..Default::default()
        };
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            data_in: frame.as_ptr().cast(),
            data_size_in: frame.len() as u32,
            ctx_in: std::ptr::from_ref(&context).cast(),
            ctx_size_in: size_of::<libbpf_sys::xdp_md>() as u32,
            repeat: 1,
            ..Default::default()
        };
        let program = self.edge.program.fd();
        // SAFETY: frame and context live through the call, and their sizes are given.
        let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program, std::ptr::from_mut(&mut options)) };
        assert_eq!(result, 0, "BPF_PROG_RUN of {} bytes", frame.len());
        // The kernel's own traffic (router solicitations of the far ends) counts too, but only as group traffic.
        let after = self.edge.steered(PortId::LAN).expect("counts");
        let mut changed = before.iter().zip(&after).filter(|(old, new)| old.1 != new.1).map(|(_, new)| new.0);
        let first = changed.next().expect("the frame was counted");
        (
            options.retval,
            changed.next().map_or(first, |second| if first == Steer::HostGroupMac { second } else { first }),
        )
    }
}

fn ethernet(to: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &PEER, &ethertype.to_be_bytes(), payload].concat()
}

fn ipv4(to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let to: Ipv4Addr = to.parse().expect("an address");
    let length = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 9, 1, 77];
    header[2..4].copy_from_slice(&length.to_be_bytes());
    ethernet(OWN, 0x0800, &[&header[..], &to.octets(), payload].concat())
}

fn ipv6(to: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to): (Ipv6Addr, Ipv6Addr) = ("fd09:1::77".parse().expect("an address"), to.parse().expect("an address"));
    let mut header = [0x60, 0, 0, 0, 0, 0, next, 64];
    header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    ethernet(OWN, 0x86dd, &[&header[..], &from.octets(), &to.octets(), payload].concat())
}

/// A TCP or UDP header's worth of bytes with these ports.
fn ports(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 16]].concat()
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const PASS: u32 = libbpf_sys::XDP_PASS;
const DROP: u32 = libbpf_sys::XDP_DROP;
const REDIRECT: u32 = libbpf_sys::XDP_REDIRECT;

/// What follows the EtherType of a tagged frame: the tag's word, and an IPv4 packet.
fn vlan(tci: u16) -> Vec<u8> {
    let mut bytes = tci.to_be_bytes().to_vec();
    bytes.extend([0x08, 0x00]);
    bytes.resize(46, 0);
    bytes
}

/// Frames, what the program must do with each, and why.
fn steering_cases() -> Vec<(&'static str, Vec<u8>, u32, Steer)> {
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let with = |mut frame: Vec<u8>, at: usize, byte: u8| {
        frame[at] = byte;
        frame
    };
    vec![
        ("another station", ethernet(PEER, 0x0800, &[0; 46]), PASS, Steer::HostOtherMac),
        ("broadcast", ethernet([0xff; 6], 0x0806, &[0; 46]), PASS, Steer::HostGroupMac),
        ("layer-2 multicast", ethernet(group, 0x86dd, &[0; 46]), PASS, Steer::HostGroupMac),
        ("ARP to us", ethernet(OWN, 0x0806, &[0; 46]), PASS, Steer::HostNotIp),
        ("a VLAN tag", ethernet(OWN, 0x8100, &vlan(5)), PASS, Steer::HostNotIp),
        ("a service VLAN tag", ethernet(OWN, 0x88a8, &vlan(0x1fff)), PASS, Steer::HostNotIp),
        ("a priority tag", ethernet(OWN, 0x8100, &vlan(0)), DROP, Steer::DropPriorityTag),
        ("a priority tag with a priority", ethernet(OWN, 0x8100, &vlan(0xe000)), DROP, Steer::DropPriorityTag),
        ("a service priority tag", ethernet(OWN, 0x88a8, &vlan(0)), DROP, Steer::DropPriorityTag),
        ("LLDP", ethernet(OWN, 0x88cc, &[0; 46]), PASS, Steer::HostNotIp),
        ("transit UDP", ipv4("192.0.2.1", UDP, &ports(1, 2)), REDIRECT, Steer::WorkerTransit),
        ("transit IPv6", ipv6("2001:db8::1", TCP, &ports(1, 2)), REDIRECT, Steer::WorkerTransit),
        ("transit to IPv4 link-local", ipv4("169.254.169.254", TCP, &ports(1, 80)), REDIRECT, Steer::WorkerTransit),
        ("transit to a port we listen on", ipv4("192.0.2.1", TCP, &ports(1, 2200)), REDIRECT, Steer::WorkerTransit),
        ("transit echo request", ipv4("192.0.2.1", 1, &[8, 0, 0, 0]), REDIRECT, Steer::WorkerTransit),
        ("transit solicitation", ipv6("2001:db8::1", 58, &[135, 0, 0, 0]), REDIRECT, Steer::WorkerTransit),
        ("transit DHCP", ipv4("192.0.2.1", UDP, &ports(67, 68)), REDIRECT, Steer::WorkerTransit),
        ("IPv4 multicast", ipv4("224.0.0.5", 89, &[0; 20]), PASS, Steer::HostMulticast),
        ("limited broadcast", ipv4("255.255.255.255", UDP, &ports(68, 67)), PASS, Steer::HostMulticast),
        ("class E is no multicast", ipv4("240.0.0.1", UDP, &ports(1, 2)), REDIRECT, Steer::WorkerTransit),
        ("IPv6 multicast", ipv6("ff02::1:ff00:1", 58, &[135, 0, 0, 0]), PASS, Steer::HostMulticast),
        ("IPv6 link-local", ipv6("fe80::1", 58, &[136, 0, 0, 0]), PASS, Steer::HostLinkLocal),
        ("fec0 is not link-local", ipv6("fec0::1", 58, &[136, 0, 0, 0]), REDIRECT, Steer::WorkerTransit),
        ("echo request", ipv4(V4, 1, &[8, 0, 0, 0]), PASS, Steer::HostEcho),
        ("echo request v6", ipv6(V6, 58, &[128, 0, 0, 0]), PASS, Steer::HostEcho),
        ("echo reply", ipv4(V4, 1, &[0, 0, 0, 0]), REDIRECT, Steer::WorkerLocal),
        ("port unreachable", ipv4(V4, 1, &[3, 3, 0, 0]), REDIRECT, Steer::WorkerLocal),
        ("packet too big", ipv6(V6, 58, &[2, 0, 0, 0]), REDIRECT, Steer::WorkerLocal),
        ("solicitation for us", ipv6(V6, 58, &[135, 0, 0, 0]), PASS, Steer::HostNeighbour),
        ("MLD report to us", ipv6(V6, 58, &[143, 0, 0, 0]), PASS, Steer::HostNeighbour),
        ("TCP to a listener", ipv4(V4, TCP, &ports(1000, 2200)), PASS, Steer::HostSocket),
        ("TCP to a listener on that address", ipv4(V4, TCP, &ports(1000, 2201)), PASS, Steer::HostSocket),
        ("TCP v6 to a listener", ipv6(V6, TCP, &ports(1000, 2200)), PASS, Steer::HostSocket),
        ("TCP v6 to a listener of v4 only", ipv6(V6, TCP, &ports(1000, 2201)), REDIRECT, Steer::WorkerLocal),
        ("TCP to nobody", ipv4(V4, TCP, &ports(2200, 1000)), REDIRECT, Steer::WorkerLocal),
        ("UDP to a service", ipv4(V4, UDP, &ports(1000, 5300)), PASS, Steer::HostSocket),
        ("UDP v6 to a service", ipv6(V6, UDP, &ports(1000, 5300)), PASS, Steer::HostSocket),
        ("UDP to nobody", ipv4(V4, UDP, &ports(5300, 1000)), REDIRECT, Steer::WorkerLocal),
        ("DHCP to us", ipv4(V4, UDP, &ports(67, 68)), PASS, Steer::HostDhcp),
        ("DHCP request to us", ipv4(V4, UDP, &ports(68, 67)), PASS, Steer::HostDhcp),
        ("DHCPv6 to us", ipv6(V6, UDP, &ports(547, 546)), PASS, Steer::HostDhcp),
        ("OSPF to us", ipv4(V4, 89, &[0; 20]), PASS, Steer::HostProtocol),
        ("ESP to us", ipv6(V6, 50, &[0; 20]), PASS, Steer::HostProtocol),
        ("options to us", with(ipv4(V4, TCP, &ports(1000, 2200)), 14, 0x46), PASS, Steer::HostFragment),
        ("fragment to us", with(ipv4(V4, UDP, &ports(1000, 5300)), 20, 0x20), PASS, Steer::HostFragment),
        ("v6 fragment to us", ipv6(V6, 44, &[17, 0, 0, 1, 0, 0, 0, 1]), PASS, Steer::HostFragment),
        ("hop-by-hop to us", ipv6(V6, 0, &[58, 0, 0, 0, 0, 0, 0, 0]), PASS, Steer::HostFragment),
        ("wrong version", with(ipv4("10.9.9.9", UDP, &ports(1, 2)), 14, 0x65), REDIRECT, Steer::WorkerTransit),
        ("no IPv4 header", ethernet(OWN, 0x0800, &[0x45]), REDIRECT, Steer::WorkerTransit),
        ("no IPv6 header", ethernet(OWN, 0x86dd, &[0x60; 39]), REDIRECT, Steer::WorkerTransit),
        ("no ports", ipv4(V4, TCP, &[0, 22, 0]), REDIRECT, Steer::WorkerLocal),
        ("no ICMP type", ipv6(V6, 58, &[]), REDIRECT, Steer::WorkerLocal),
    ]
}

#[test]
fn steering_is_as_designed() {
    in_namespace(|| {
        let bench = Bench::new();
        let _both = TcpListener::bind("[::]:2200").expect("free");
        let _v4 = TcpListener::bind("10.9.1.1:2201").expect("free");
        let _service = UdpSocket::bind("[::]:5300").expect("free");
        for (what, frame, action, reason) in steering_cases() {
            assert_eq!(bench.steer(&frame), (action, reason), "{what}");
        }
    });
}

#[test]
fn an_established_connection_stays_with_its_socket() {
    in_namespace(|| {
        let bench = Bench::new();
        // A connection of the host with itself over its own address: both ends have sockets, the listener is closed.
        let listener = TcpListener::bind("10.9.1.1:2200").expect("free");
        let client = TcpStream::connect("10.9.1.1:2200").expect("connects");
        let (server, peer) = listener.accept().expect("accepts");
        drop(listener);
        let mut to_server = ipv4(V4, TCP, &ports(peer.port(), 2200));
        to_server[26..30].copy_from_slice(&[10, 9, 1, 1]);
        assert_eq!(bench.steer(&to_server), (PASS, Steer::HostSocket));
        // Closing first leaves TIME_WAIT behind, which is still the host's.
        drop(server);
        drop(client);
        assert_eq!(bench.steer(&to_server), (PASS, Steer::HostSocket), "TIME_WAIT");
        to_server[34..36].copy_from_slice(&1u16.to_be_bytes());
        assert_eq!(bench.steer(&to_server), (REDIRECT, Steer::WorkerLocal), "another source port");
    });
}

/// What connections that may be translated make of [`steering_cases`]: the reason, where it is another one.
fn with_nat(what: &str, v4: bool, v6: bool, without: (u32, Steer)) -> (u32, Steer) {
    let is_v6 = what.contains("v6") || what.starts_with("ESP");
    let translated = if is_v6 { v6 } else { v4 };
    match without.1 {
        Steer::HostEcho | Steer::HostSocket | Steer::HostProtocol if translated => (REDIRECT, Steer::WorkerLocal),
        _ => without,
    }
}

#[test]
fn with_nat_only_what_is_surely_the_hosts_goes_past_the_worker() {
    in_namespace(|| {
        let bench = Bench::new();
        let _both = TcpListener::bind("[::]:2200").expect("free");
        let _v4 = TcpListener::bind("10.9.1.1:2201").expect("free");
        let _service = UdpSocket::bind("[::]:5300").expect("free");
        let steering = bench.edge.steering().expect("memory");
        for (v4, v6) in [(true, false), (false, false), (true, true)] {
            steering.expect_translations(v4, v6);
            for (what, frame, action, reason) in steering_cases() {
                // Once expected, always expected.
                assert_eq!(bench.steer(&frame), with_nat(what, true, v6, (action, reason)), "{what}, {v4} {v6}");
            }
        }
    });
    in_namespace(|| {
        let bench = Bench::new();
        let _both = TcpListener::bind("[::]:2200").expect("free");
        let _v4 = TcpListener::bind("10.9.1.1:2201").expect("free");
        let _service = UdpSocket::bind("[::]:5300").expect("free");
        bench.edge.steering().expect("memory").expect_translations(false, true);
        for (what, frame, action, reason) in steering_cases() {
            assert_eq!(bench.steer(&frame), with_nat(what, false, true, (action, reason)), "{what}");
        }
    });
}

#[test]
fn with_nat_a_connected_socket_keeps_its_packets() {
    in_namespace(|| {
        let bench = Bench::new();
        bench.edge.steering().expect("memory").expect_translations(true, true);
        for own in [V4, V6] {
            let own: IpAddr = own.parse().expect("an address");
            let to_host = |protocol, from, to| match own {
                IpAddr::V4(address) => {
                    let mut frame = ipv4(V4, protocol, &ports(from, to));
                    frame[26..30].copy_from_slice(&address.octets());
                    bench.steer(&frame)
                }
                IpAddr::V6(address) => {
                    let mut frame = ipv6(V6, protocol, &ports(from, to));
                    frame[22..38].copy_from_slice(&address.octets());
                    bench.steer(&frame)
                }
            };
            // A connection of the host with itself: both ends have sockets.
            let listener = TcpListener::bind((own, 2200)).expect("free");
            let client = TcpStream::connect((own, 2200)).expect("connects");
            let (server, peer) = listener.accept().expect("accepts");
            assert_eq!(to_host(TCP, peer.port(), 2200), (PASS, Steer::HostSocket), "established");
            assert_eq!(to_host(TCP, 7, 2200), (REDIRECT, Steer::WorkerLocal), "the listener alone");
            drop((server, client));
            assert_eq!(to_host(TCP, peer.port(), 2200), (PASS, Steer::HostSocket), "TIME_WAIT");
            let service = UdpSocket::bind((own, 5300)).expect("free");
            assert_eq!(to_host(UDP, 1000, 5300), (REDIRECT, Steer::WorkerLocal), "not connected");
            service.connect((own, 1000)).expect("connects");
            assert_eq!(to_host(UDP, 1000, 5300), (PASS, Steer::HostSocket), "connected");
            assert_eq!(to_host(UDP, 1001, 5300), (REDIRECT, Steer::WorkerLocal), "connected with another");
        }
    });
}

/// The frames that leave and arrive in this namespace, as long as one comes in a second.
fn frames_seen() -> impl Iterator<Item = Vec<u8>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
    let kind = (AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
    let seen = socket(kind.0, kind.1, kind.2, kind.3).expect("a packet socket");
    let second = nix::sys::time::TimeVal::new(1, 0);
    setsockopt(&seen, sockopt::ReceiveTimeout, &second).expect("a time-out");
    std::iter::from_fn(move || {
        let mut buffer = vec![0; 2048];
        let length = nix::sys::socket::recv(seen.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty()).ok()?;
        buffer.truncate(length);
        Some(buffer)
    })
}

/// A SYN from 10.9.1.77 to 192.0.2.1, ports 1000 to 80, with the right checksums.
fn syn_elsewhere() -> Vec<u8> {
    let mut syn = [&[0x03, 0xe8, 0, 80][..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]].concat();
    let sum = |bytes: &[u8], more: u32| {
        let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum = words.sum::<u32>() + more;
        (!((sum >> 16) + (sum & 0xffff)) as u16).to_be_bytes()
    };
    let frame = ipv4("192.0.2.1", TCP, &syn);
    let of_tcp = sum(&[&frame[26..34], &syn[..]].concat(), u32::from(TCP) + 20);
    syn[16..18].copy_from_slice(&of_tcp);
    let mut frame = ipv4("192.0.2.1", TCP, &syn);
    let of_ip = sum(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&of_ip);
    frame
}

#[test]
fn the_kernel_redirects_what_is_given_back_and_answers_from_the_right_address() {
    in_namespace(|| {
        let bench = Bench::new();
        ip("neigh add 10.9.1.77 lladdr 02:00:00:00:00:09 dev p0");
        let rule = "-t nat -A PREROUTING -i p0 -p tcp --dport 80 -j REDIRECT --to-ports 3128";
        let output = Command::new("iptables").args(rule.split(' ')).output().expect("iptables starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let _proxy = TcpListener::bind("0.0.0.0:3128").expect("free");
        let mut punter = bench.edge.punter(0).expect("a punter");
        let seen = frames_seen();
        assert!(punter.punt(PortId::LAN, &syn_elsewhere()));
        punter.flush();
        let answer = seen.take(50).find(|frame| frame.len() >= 54 && frame[..6] == PEER && frame[12..14] == [8, 0]);
        let answer = answer.expect("an answer");
        assert_eq!((&answer[26..30], &answer[30..34]), (&[192, 0, 2, 1][..], &[10, 9, 1, 77][..]));
        assert_eq!((&answer[34..38], answer[47]), (&[0, 80, 0x03, 0xe8][..], 0x12), "80 to 1000, SYN and ACK");
    });
}

/// What giving a packet back costs, by how many go at once: the figures in the heads of `src/xdp/punt.rs` and
/// `src/datapath/budget.rs`.
#[test]
#[ignore = "a measurement"]
fn what_a_punt_costs() {
    in_namespace(|| {
        let bench = Bench::new();
        let mut punter = bench.edge.punter(0).expect("a punter");
        let service = UdpSocket::bind("10.9.1.1:5300").expect("free");
        let _listener = TcpListener::bind("10.9.1.1:2200").expect("free");
        service.set_nonblocking(true).expect("it can");
        let mut syn = ports(1000, 2200);
        (syn[12], syn[13]) = (0x50, 2);
        let whole = |mut frame: Vec<u8>| {
            let words = frame[14..34].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
            let sum = words.sum::<u32>();
            frame[24..26].copy_from_slice(&(!((sum >> 16) + (sum & 0xffff)) as u16).to_be_bytes());
            frame
        };
        let cases = [
            ("UDP that a socket takes", datagram(100)),
            ("a SYN whose checksum is wrong", whole(ipv4(V4, TCP, &syn))),
            ("an echo request whose checksum is right", whole(ipv4(V4, 1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]))),
        ];
        for size in [1, 8, 64] {
            for (what, frame) in &cases {
                let start = std::time::Instant::now();
                for _ in 0..20_000 / size {
                    (0..size).for_each(|_| assert!(punter.punt(PortId::LAN, frame)));
                    punter.flush();
                }
                let each = start.elapsed().as_nanos() / 20_000;
                eprintln!("{what}, {size} at a time: {each} ns");
                while service.recv(&mut [0; 200]).is_ok() {}
            }
        }
    });
}

#[test]
fn addresses_and_macs_may_change_while_it_runs() {
    in_namespace(|| {
        let bench = Bench::new();
        let other = ipv4("10.9.1.2", 1, &[8, 0, 0, 0]);
        let own = ipv4(V4, 1, &[8, 0, 0, 0]);
        assert_eq!((bench.steer(&other).1, bench.steer(&own).1), (Steer::WorkerTransit, Steer::HostEcho));
        let many: Vec<IpAddr> = (0..3000u32).map(|n| IpAddr::from((0x0a09_0102 + n).to_be_bytes())).collect();
        bench.edge.set_local_addresses(&many).expect("they fit");
        assert_eq!((bench.steer(&other).1, bench.steer(&own).1), (Steer::HostEcho, Steer::WorkerTransit));
        let few: Vec<IpAddr> = [V4, V6].iter().map(|text| text.parse().expect("an address")).collect();
        bench.edge.set_local_addresses(&few).expect("they fit");
        assert_eq!((bench.steer(&other).1, bench.steer(&own).1), (Steer::WorkerTransit, Steer::HostEcho));
        let too_many: Vec<IpAddr> = (0..=LOCAL_MAX as u32).map(|n| IpAddr::from(n.to_be_bytes())).collect();
        assert!(matches!(bench.edge.set_local_addresses(&too_many), Err(EdgeError::Setting { .. })));
        bench.edge.set_mac(PortId::LAN, PEER);
        assert_eq!(bench.steer(&own).1, Steer::HostOtherMac);
        bench.edge.set_mac(PortId::LAN, OWN);
        assert_eq!(bench.steer(&own).1, Steer::HostEcho);
    });
}

#[test]
fn a_dhcp_offer_reaches_a_port_without_address() {
    in_namespace(|| {
        let bench = Bench::new();
        let mut bootp = [0u8; 40];
        bootp[0] = 2;
        bootp[28..34].copy_from_slice(&OWN);
        let offer = |bootp: &[u8]| ipv4("10.9.200.200", UDP, &[&ports(67, 68)[..8], bootp].concat());
        assert_eq!(bench.steer(&offer(&bootp)).1, Steer::WorkerTransit, "the port has an address");
        bench.edge.set_addressless(PortId::LAN, true);
        assert_eq!(bench.steer(&offer(&bootp)), (PASS, Steer::HostDhcp));
        bootp[33] = 7;
        assert_eq!(bench.steer(&offer(&bootp)).1, Steer::WorkerTransit, "for another client");
        bootp[33] = OWN[5];
        bootp[0] = 1;
        assert_eq!(bench.steer(&offer(&bootp)).1, Steer::WorkerTransit, "a request");
        bench.edge.set_addressless(PortId::LAN, false);
        bootp[0] = 2;
        assert_eq!(bench.steer(&offer(&bootp)).1, Steer::WorkerTransit);
    });
}

/// Whether the kernel, given this frame by our program, could forward it.
fn kernel_could_forward(frame: &[u8]) -> bool {
    if frame[..6] != OWN {
        return false;
    }
    match (&frame[12..14], &frame[14..]) {
        ([8, 0], packet) if packet.len() >= 20 => {
            let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
            !(to.is_multicast() || to.is_broadcast() || to.to_string() == V4)
        }
        ([0x86, 0xdd], packet) if packet.len() >= 40 => {
            let to = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40]).expect("16 bytes"));
            !(to.is_multicast() || to.is_unicast_link_local() || to.to_string() == V6)
        }
        _ => false,
    }
}

/// Frames that look like something, with a few bytes changed and cut anywhere; or anything at all.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let base = prop_oneof![
        Just(ipv4(V4, TCP, &ports(1000, 2200))),
        Just(ipv4("192.0.2.1", UDP, &ports(67, 68))),
        Just(ipv4("224.0.0.1", 2, &[0; 8])),
        Just(ipv6(V6, 58, &[135, 0, 0, 0])),
        Just(ipv6("2001:db8::1", 0, &[58, 0, 5, 2, 0, 0, 0, 0])),
        Just(ipv6("fe80::1", UDP, &ports(547, 546))),
        proptest::collection::vec(any::<u8>(), 14..120),
    ];
    let changes = proptest::collection::vec((any::<Index>(), any::<u8>()), 0..6);
    (base, changes, any::<Index>()).prop_map(|(mut frame, changes, cut)| {
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        frame.truncate(14 + cut.index(frame.len() - 13));
        frame
    })
}

#[test]
fn it_fails_closed_on_any_frame() {
    in_namespace(|| {
        let bench = Bench::new();
        let mut runner = TestRunner::new(ProptestConfig::with_cases(4000));
        let closed = |frame: Vec<u8>| {
            let (action, reason) = bench.steer(&frame);
            prop_assert!(action == PASS || action == REDIRECT, "action {action}");
            prop_assert!(
                action == REDIRECT || !kernel_could_forward(&frame),
                "passed to the kernel as {reason}, which could forward it"
            );
            Ok(())
        };
        runner.run(&any_frame(), closed).unwrap_or_else(|error| panic!("{error}"));
    });
}

#[test]
fn what_workers_own_may_go_to_their_threads() {
    fn may_move<T: Send>() {}
    may_move::<WorkerQueues>();
    may_move::<Punter>();
    may_move::<Edge>();
}

/// A umem without a socket: what the table refuses needs none.
fn umem() -> Option<Umem> {
    Umem::new(8, 2048, 64, 64).map_err(|error| eprintln!("skipped: {error}")).ok()
}

#[test]
fn a_frame_is_lent_and_comes_back_as_it_was() {
    let Some(umem) = umem() else { return };
    let mut frames = umem.tokens();
    assert_eq!((frames.len(), umem.lent()), (8, 0));
    let mut frame = frames.remove(3);
    frame.fill(b"a packet");
    let desc = umem.lend(frame, Owner::Transmit(5));
    assert_eq!((desc.addr(), desc.lengths().data(), umem.lent()), (3 * 2048 + HEADROOM, 8, 1));
    let frame = umem.give_back(&desc, Owner::Transmit(5));
    assert_eq!((frame.number(), frame.start(), frame.len(), umem.lent()), (3, HEADROOM, 0, 0));
    let desc = umem.lend(frame, Owner::Fill(1));
    let frame = umem.give_back(&desc, Owner::Fill(1));
    assert_eq!((frame.number(), frame.start()), (3, HEADROOM));
}

/// Lends a frame through `Fill(1)` and has it come back through `from`, once or twice: what the panic says.
fn said_when_returned(from: Owner, times: usize) -> Option<String> {
    let umem = umem().expect("memory");
    let frame = umem.tokens().remove(2);
    let desc = umem.lend(frame, Owner::Fill(1));
    let give_back = || {
        (0..times).for_each(|_| {
            umem.give_back(&desc, from);
        })
    };
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(give_back)).err()?;
    panic.downcast_ref::<String>().cloned()
}

#[test]
fn what_the_kernel_must_not_return_is_caught() {
    if umem().is_none() {
        return;
    }
    assert_eq!(said_when_returned(Owner::Fill(1), 1), None, "the rightful owner");
    for (owner, times) in [(Owner::Fill(2), 1), (Owner::Transmit(1), 1), (Owner::Fill(1), 2)] {
        let said = said_when_returned(owner, times).unwrap_or_default();
        assert!(said.starts_with("the kernel returned frame 2 through"), "{said}");
    }
}

/// A UDP packet to port 5300 of ours with `length` bytes of that value.
fn datagram(length: usize) -> Vec<u8> {
    let mut udp = ports(1000, 5300)[..8].to_vec();
    udp[4..6].copy_from_slice(&((8 + length) as u16).to_be_bytes());
    udp.extend(std::iter::repeat_n(length as u8, length));
    let mut frame = ipv4(V4, UDP, &udp);
    let words = frame[14..34].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>();
    let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn punting_refuses_what_does_not_fit_and_batches_the_rest() {
    in_namespace(|| {
        let bench = Bench::new();
        let mut punter = bench.edge.punter(0).expect("a punter");
        assert!(!punter.punt(PortId::LAN, &[0; 13]) && !punter.punt(PortId::LAN, &[0; PUNT_BYTES + 1]));
        let service = UdpSocket::bind("10.9.1.1:5300").expect("free");
        service.set_nonblocking(true).expect("it can");
        // Every length from nothing to most of a page, in batches that fit and that overflow.
        let lengths: Vec<usize> = (0..150).map(|n| n * 19).collect();
        let mut buffer = [0; 4096];
        for (size, some) in [1, 2, 63, 64].into_iter().cycle().zip(lengths.chunks(30)) {
            for part in some.chunks(size) {
                part.iter().for_each(|length| assert!(punter.punt(PortId::LAN, &datagram(*length))));
                punter.flush();
            }
            for length in some {
                let received = service.recv(&mut buffer).unwrap_or_else(|error| panic!("{length} bytes: {error}"));
                assert_eq!(received, *length);
                assert!(buffer[..received].iter().all(|byte| *byte == *length as u8), "{length} bytes arrived wrong");
            }
        }
        assert!(service.recv(&mut buffer).is_err(), "nothing arrives twice");
        // More than a batch at once: the 65th hands over the 64 before it. (Small ones: a socket holds only so many.)
        let arrives = |n: usize| service.recv(&mut [0; 64]).map_err(|error| panic!("{n}: {error}"));
        (0..65).for_each(|_| assert!(punter.punt(PortId::LAN, &datagram(7))));
        assert_eq!(punter.counters().punted, 150 + 64);
        (0..40).for_each(|n| assert_eq!(arrives(n), Ok::<_, ()>(7)));
        // And so does a frame of the other port, the frame of this one.
        assert!(punter.punt(PortId::WAN, &datagram(7)));
        assert_eq!(punter.counters().punted, 150 + 65);
        punter.flush();
        let counters = punter.counters();
        assert_eq!((counters.punted, counters.misfit, counters.refused), (150 + 66, 2, 0));
    });
}

#[test]
fn what_is_longer_than_a_punt_arrives_whole() {
    in_namespace(|| {
        let bench = Bench::new();
        let mut punter = bench.edge.punter(0).expect("a punter");
        let service = UdpSocket::bind("10.9.1.1:5300").expect("free");
        let service6 = UdpSocket::bind(format!("[{V6}]:5300")).expect("free");
        let mut buffer = vec![0; 10_000];
        for length in [PUNT_BYTES - 42, PUNT_BYTES - 41, 3100, 6064, 6065, 6066, 8972] {
            assert!(punter.punt(PortId::LAN, &datagram(length)));
            // The same over IPv6, with the checksum it must have there.
            let mut udp = datagram(length)[34..].to_vec();
            let head = &ipv6(V6, UDP, &[])[22..];
            let sum = crate::wire::checksum::sum(udp.len() as u64 + u64::from(UDP), head);
            let sum = crate::wire::checksum::sum(sum, &udp);
            udp[6..8].copy_from_slice(&(!crate::wire::checksum::fold(sum)).to_be_bytes());
            assert!(punter.punt(PortId::LAN, &ipv6(V6, UDP, &udp)));
            punter.flush();
            for service in [&service, &service6] {
                service.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("a time");
                assert_eq!(service.recv(&mut buffer).expect("it arrives"), length);
                assert!(buffer[..length].iter().all(|byte| *byte == length as u8), "{length} bytes arrived wrong");
            }
        }
        assert_eq!((punter.counters().misfit, punter.counters().refused), (0, 0));
    });
}

#[test]
fn a_full_ring_leaves_frames_with_the_caller() {
    in_namespace(|| {
        let Bench { mut worker, edge: _edge } = Bench::new();
        let mut out: VecDeque<_> = std::iter::from_fn(|| worker.pool.take()).collect();
        let offered = out.len();
        out.iter_mut().for_each(|frame| frame.fill(&ethernet(PEER, 0x88b5, &[7; 46])));
        let queue = &mut worker.ports[0][0];
        let taken = queue.transmit(&mut out, &mut worker.pool);
        assert_eq!((taken, out.len()), (64, offered - 64), "the ring holds 64");
        queue.kick().expect("the link is up");
        assert_eq!(queue.reclaim(&mut worker.pool), 64);
        assert_eq!(queue.transmit(&mut out, &mut worker.pool), 64.min(offered - 64));
    });
}
