//! The netlink mirror against the kernel, in network namespaces of its own. Needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN).
//!
//! Each test runs on a thread of its own in a fresh namespace, which the kernel removes with the thread; a second, named
//! namespace for a peer is removed by its guard. Nothing outside is touched.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use xrouter::control::netlink::{Error, Event, Netlink, Request};
use xrouter::device::PortId;
use xrouter::route::{Neighbour, Route};
use xrouter::snapshot::{BadSource, Lost, Routing, RpFilter};
use xrouter::wire::{Addr, Family};

const LAN: PortId = PortId::LAN;
const WAN: PortId = PortId::WAN;
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `test` on a thread in a network namespace of its own, with `lo` up.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root to make a namespace");
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` with these arguments in this thread's namespace.
fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Runs `ip` commands, one a line; failing ones are passed over. Returns stdout and stderr.
fn ip_batch(options: &[&str], lines: &str) -> (String, String) {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("iproute2 is installed");
    let mut stdin = child.stdin.take().expect("a pipe");
    let lines = lines.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let out = child.wait_with_output().expect("ip ends");
    writer.join().expect("no panic").expect("ip reads all");
    (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn set(sysctl: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{sysctl}"), value).unwrap_or_else(|error| panic!("{sysctl}: {error}"));
}

/// A named namespace that goes when this is dropped.
struct Peer(String);

impl Peer {
    fn new() -> Peer {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("xr{}n{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        Peer(name)
    }

    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect(text).into()
}

/// lan0 10.0.0.1/24, 2001:db8:1::1/64 and wan0 192.0.2.1/24, 2001:db8:2::1/64 on veth, their other ends up beside them;
/// other0, not a port, 172.16.0.1/16.
fn gateway() {
    // Without duplicate detection the addresses can be used at once.
    set("ipv6/conf/default/accept_dad", "0");
    for (name, v4, v6) in [("lan0", "10.0.0.1/24", "2001:db8:1::1/64"), ("wan0", "192.0.2.1/24", "2001:db8:2::1/64")] {
        ip(&format!("link add {name} type veth peer name {name}p"));
        ip(&format!("link set {name}p up"));
        ip(&format!("link set {name} up"));
        ip(&format!("addr add {v4} dev {name}"));
        ip(&format!("addr add {v6} dev {name} nodad"));
    }
    ip("link add other0 type veth peer name other0p");
    ip("link set other0p up");
    ip("link set other0 up");
    ip("addr add 172.16.0.1/16 dev other0");
    ip("addr add 2001:db8:3::1/64 dev other0 nodad");
    set("ipv6/conf/all/forwarding", "1");
}

/// A mirror that runs.
struct Running {
    routing: Arc<ArcSwap<Routing>>,
    requests: mpsc::Sender<Request>,
    events: mpsc::UnboundedReceiver<Event>,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start(netlink: Netlink) -> Running {
        let routing = netlink.routing();
        let (requests, receiver) = mpsc::channel(64);
        let (sender, events) = mpsc::unbounded_channel();
        let task = tokio::spawn(netlink.run(receiver, sender));
        Running { routing, requests, events, task }
    }

    fn open() -> Running {
        Running::start(Netlink::open(["lan0", "wan0"]).expect("the mirror opens"))
    }

    fn now(&self) -> Arc<Routing> {
        self.routing.load_full()
    }

    /// Waits until `holds` of the newest value; says how long it took.
    async fn until(&self, what: &str, holds: impl Fn(&Routing) -> bool) -> Duration {
        let begin = Instant::now();
        while !holds(&self.now()) {
            assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}; {:?}", self.now());
            assert!(!self.task.is_finished(), "{what}: the mirror ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        begin.elapsed()
    }

    async fn event(&mut self, expected: Event) {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            match event.unwrap_or_else(|_| panic!("no {expected:?} in {PATIENCE:?}")) {
                Some(event) if event == expected => return,
                Some(_) => {}
                None => panic!("the mirror ended without {expected:?}"),
            }
        }
    }

    async fn ask(&self, request: Request) {
        self.requests.send(request).await.expect("the mirror runs");
    }
}

fn run(test: impl AsyncFnOnce() + Send + 'static) {
    in_namespace(move || {
        gateway();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
}

fn v4(routing: &Routing, dst: &str) -> Route {
    routing.lookup(Family::V4, addr("10.0.0.9"), addr(dst))
}

fn v6(routing: &Routing, dst: &str) -> Route {
    routing.lookup(Family::V6, addr("2001:db8:1::9"), addr(dst))
}

fn forward(port: PortId, gateway: Option<&str>, mtu: u16) -> Route {
    Route::Forward { port, gateway: gateway.map(addr), mtu }
}

/// Random numbers that come again (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}

fn random_v4(random: &mut Random) -> u32 {
    let bytes = [0u8, 0, 0, 0].map(|_| *random.pick(&[0, 1, 2, 127, 128, 254, 255]));
    let first = *random.pick(&[10, 20, 20, 20, 100, 172, 192]);
    u32::from_be_bytes([first, bytes[1], bytes[2], bytes[3]])
}

fn random_v6(random: &mut Random) -> u128 {
    let mut words: [u16; 8] = [0u16; 8].map(|_| *random.pick(&[0u16, 1, 0x8000, 0xffff, 0x00ff]));
    words[0] = *random.pick(&[0x2001, 0x2a00, 0x2a00, 0xfd00]);
    words[1] = *random.pick(&[0xdb8, 0, 1]);
    words.into_iter().fold(0, |all, word| all << 16 | u128::from(word))
}

/// A random route as `ip route` takes it, with the family's gateways.
fn random_route(random: &mut Random, family: Family) -> String {
    let (prefix, lan, wan) = match family {
        Family::V4 => {
            let len = *random.pick(&[0u32, 1, 7, 8, 12, 16, 18, 19, 22, 23, 24, 25, 28, 30, 31, 32]);
            let bits = random_v4(random) & u32::MAX.checked_shl(32 - len).unwrap_or(0);
            (format!("{}/{len}", std::net::Ipv4Addr::from(bits)), "10.0.0.2", "192.0.2.2")
        }
        Family::V6 => {
            let len = *random.pick(&[0u32, 3, 16, 18, 29, 32, 40, 48, 56, 63, 64, 65, 96, 127, 128]);
            let bits = random_v6(random) & u128::MAX.checked_shl(128 - len).unwrap_or(0);
            (format!("{}/{len}", std::net::Ipv6Addr::from(bits)), "2001:db8:1::2", "fe80::2")
        }
    };
    let metric = random.pick(&[10, 100, 1000]);
    let mtu = random.pick(&["", "", "mtu 1300", "mtu 9000"]);
    let way = match random.below(12) {
        0..3 => format!("{prefix} via {lan} dev lan0 {mtu}"),
        3..6 => format!("{prefix} via {wan} dev wan0 {mtu}"),
        6 => format!("{prefix} dev wan0 {mtu}"),
        7 => format!("{prefix} dev other0"),
        8 => format!("unreachable {prefix}"),
        9 => format!("prohibit {prefix}"),
        10 => format!("blackhole {prefix}"),
        _ => format!("throw {prefix}"),
    };
    format!("route add {way} metric {metric}\n")
}

/// What the kernel says of these destinations (`ip route get`), in the words of [`in_words`].
fn kernel_routes(destinations: &[Addr]) -> Vec<String> {
    let lines: String = destinations.iter().map(|dst| format!("route get {dst}\n")).collect();
    let (out, errors) = ip_batch(&["-oneline"], &lines);
    let mut answers = vec![None; destinations.len()];
    let mut last = "";
    for line in errors.lines() {
        match line.strip_prefix("Command failed -:") {
            Some(number) => {
                answers[number.parse::<usize>().expect("a line number") - 1] = Some(refusal(last).to_owned())
            }
            None => last = line,
        }
    }
    let mut routes = out.lines();
    let answers: Vec<_> =
        answers.into_iter().map(|it| it.unwrap_or_else(|| answer(routes.next().expect("one answer each")))).collect();
    assert_eq!(routes.next(), None, "more answers than questions");
    answers
}

fn refusal(error: &str) -> &'static str {
    match error {
        _ if error.ends_with("Network is unreachable") => "NoRoute",
        _ if error.ends_with("No route to host") => "Unreachable",
        _ if error.ends_with("Permission denied") => "Prohibit",
        _ if error.ends_with("Invalid argument") => "Blackhole",
        _ => panic!("ip route get: {error}"),
    }
}

fn answer(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    let after = |key: &str| words.iter().position(|&word| word == key).map(|at| words[at + 1]);
    match words[0] {
        "local" | "anycast" => return "Local".to_owned(),
        "broadcast" => return "Broadcast".to_owned(),
        "multicast" => return "Multicast".to_owned(),
        "unreachable" => return "Unreachable".to_owned(),
        "prohibit" => return "Prohibit".to_owned(),
        "blackhole" => return "Blackhole".to_owned(),
        // What `throw` comes to when no other table knows better.
        "throw" => return "NoRoute".to_owned(),
        _ => {}
    }
    match after("dev") {
        Some(dev @ ("lan0" | "wan0")) => {
            let mtu = after("mtu").map_or(1500, |mtu| mtu.parse::<u16>().expect("an MTU").min(1500));
            format!("{dev} via {} mtu {mtu} src {}", after("via").unwrap_or("-"), after("src").unwrap_or("-"))
        }
        Some("other0") => "Elsewhere".to_owned(),
        _ => panic!("ip route get: {line}"),
    }
}

fn in_words(routing: &Routing, family: Family, dst: Addr) -> String {
    let or_none = |addr: Option<Addr>| addr.map_or("-".to_owned(), |addr| addr.to_string());
    match routing.lookup(family, Addr::ZERO, dst) {
        Route::Forward { port, gateway, mtu } => {
            let source = or_none(routing.source_for(family, dst, port));
            format!("{} via {} mtu {mtu} src {source}", routing.port(port).name, or_none(gateway))
        }
        other => format!("{other:?}"),
    }
}

/// Compares with the kernel at `count` random destinations and at the edges of the networks on the links.
fn compare(routing: &Routing, random: &mut Random, count: usize) {
    for family in [Family::V4, Family::V6] {
        let mut destinations: Vec<Addr> = (0..count)
            .map(|_| match family {
                Family::V4 => Addr::from_v4(random_v4(random)),
                Family::V6 => Addr::from_v6(random_v6(random)),
            })
            .collect();
        let edges: &[&str] = match family {
            Family::V4 => {
                &["10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.0.255", "10.0.1.0", "192.0.2.1", "172.16.255.255"]
            }
            Family::V6 => &["2001:db8:1::", "2001:db8:1::1", "2001:db8:1::2", "2001:db8:2::9", "2001:db8:3::9", "::5"],
        };
        destinations.extend(edges.iter().map(|text| addr(text)));
        let expected = kernel_routes(&destinations);
        for (&dst, expected) in destinations.iter().zip(expected) {
            assert_eq!(in_words(routing, family, dst), expected, "to {dst}");
        }
    }
}

#[test]
fn dump_and_changes_match_the_kernels_lookups() {
    run(async || {
        let mut random = Random(0x5eed);
        for (addr, dev) in [
            ("10.0.5.1/24", "lan0"),
            ("192.0.2.77/24", "wan0"),
            ("192.0.2.1/32", "other0"),
            ("2001:db8:1:5::1/64", "lan0"),
            ("fd00:1::1/64", "wan0"),
            ("2a00::1/64", "lan0"),
        ] {
            ip(&format!("addr add {addr} dev {dev}"));
        }
        let mut routes: Vec<String> = Vec::new();
        for family in [Family::V4, Family::V6] {
            routes.extend((0..250).map(|_| random_route(&mut random, family)));
        }
        ip_batch(&[], &routes.concat());
        let running = Running::open();
        compare(&running.now(), &mut random, 600);

        // Random changes: some routes go, some come, some are replaced; at the end all is as the kernel has it.
        for round in 0..5 {
            let mut changes = String::new();
            for _ in 0..80 {
                let old = random.pick(&routes).clone();
                let family = if random.below(2) == 0 { Family::V4 } else { Family::V6 };
                changes += &match random.below(3) {
                    0 => old.replace("route add", "route del"),
                    1 => random_route(&mut random, family).replace("route add", "route replace"),
                    _ => random_route(&mut random, family),
                };
            }
            let marker = format!("203.0.113.{round}");
            changes += &format!("route add {marker} via 192.0.2.99 dev wan0\n");
            ip_batch(&[], &changes);
            running.until("the last change", |now| v4(now, &marker) == forward(WAN, Some("192.0.2.99"), 1500)).await;
            // An ambiguous change is settled by reading all routes again.
            tokio::time::sleep(Duration::from_millis(200)).await;
            compare(&running.now(), &mut random, 300);
        }
    });
}

#[test]
fn appended_and_multipath_routes_match_the_kernels() {
    run(async || {
        let running = Running::open();
        ip("route add 20.0.0.0/8 nexthop via 10.0.0.2 weight 1 nexthop via 192.0.2.2 weight 3");
        ip("-6 route add 2a00::/16 via 2001:db8:1::2 metric 10");
        ip("-6 route append 2a00::/16 via 2001:db8:2::2 metric 10");
        ip("route add 30.0.0.0/8 via 10.0.0.2");
        ip("route append 30.0.0.0/8 via 192.0.2.2");
        let ways = |now: &Routing, family, dst: &str| {
            let route = |n: u32| now.lookup(family, Addr::from_v4(0x0a00_0000 | n), addr(dst));
            let leaves = |n, through| matches!(route(n), Route::Forward { port, .. } if port == through);
            let through = |port| (0..1000).filter(|&n| leaves(n, port)).count();
            [through(LAN), through(WAN)]
        };
        running
            .until("IPv4 multipath by weight", |now| {
                let [lan, wan] = ways(now, Family::V4, "20.1.2.3");
                lan + wan == 1000 && (180..320).contains(&lan)
            })
            .await;
        running
            .until("IPv6 multipath", |now| {
                let [lan, wan] = ways(now, Family::V6, "2a00::5");
                lan + wan == 1000 && (420..580).contains(&lan)
            })
            .await;
        running.until("the first of two", |now| v4(now, "30.0.0.1") == forward(LAN, Some("10.0.0.2"), 1500)).await;
        // One of several goes.
        ip("-6 route del 2a00::/16 via 2001:db8:1::2 metric 10");
        ip("route del 30.0.0.0/8 via 10.0.0.2");
        running
            .until("the other IPv6 hop", |now| v6(now, "2a00::5") == forward(WAN, Some("2001:db8:2::2"), 1500))
            .await;
        running.until("the second of two", |now| v4(now, "30.0.0.1") == forward(WAN, Some("192.0.2.2"), 1500)).await;
        // A hop whose link is down is not used.
        ip("link set lan0 down");
        running.until("the hop that is left", |now| ways(now, Family::V4, "20.1.2.3") == [0, 1000]).await;
        // IPv4 over an IPv6 gateway, and next-hop objects.
        ip("route add 40.0.0.0/8 via inet6 fe80::77 dev wan0");
        ip("nexthop add id 7 via 192.0.2.7 dev wan0");
        ip("route add 50.0.0.0/8 nhid 7");
        running.until("RFC 5549", |now| v4(now, "40.1.1.1") == forward(WAN, Some("fe80::77"), 1500)).await;
        running.until("next-hop object", |now| v4(now, "50.1.1.1") == forward(WAN, Some("192.0.2.7"), 1500)).await;
        ip("nexthop replace id 7 via 192.0.2.8 dev wan0");
        running.until("changed object", |now| v4(now, "50.1.1.1") == forward(WAN, Some("192.0.2.8"), 1500)).await;
    });
}

#[test]
fn what_the_router_cannot_follow_is_told() {
    run(async || {
        ip("rule add fwmark 7 table 100 priority 500");
        ip("route add 60.0.0.0/8 tos 0x10 via 192.0.2.2");
        ip("-6 route add 2a02::/32 from 2001:db8:1::/64 via 2001:db8:2::2");
        ip("route add 70.0.0.0/8 encap ip id 5 dst 192.0.2.9 dev wan0");
        let mut running = Running::open();
        assert_eq!(v4(&running.now(), "60.0.0.1"), Route::NoRoute);
        assert_eq!(v4(&running.now(), "70.0.0.1"), Route::Elsewhere);
        let mut texts = Vec::new();
        while texts.len() < 4 {
            match tokio::time::timeout(PATIENCE, running.events.recv()).await {
                Ok(Some(Event::Warning(text))) => texts.push(text),
                Ok(Some(_)) => {}
                other => panic!("{other:?} after {texts:?}"),
            }
        }
        for part in ["priority 500", "type of service", "60.0.0.0/8", "source prefix", "2a02::/32", "70.0.0.0/8"] {
            assert!(texts.iter().any(|text| text.contains(part)), "{part} in {texts:?}");
        }
        ip("rule add from 10.0.0.9 table 101 priority 600");
        loop {
            match tokio::time::timeout(PATIENCE, running.events.recv()).await {
                Ok(Some(Event::Warning(text))) if text.contains("priority 600") => break,
                Ok(Some(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn links_and_addresses_are_followed() {
    run(async || {
        let mut running = Running::open();
        let first = running.now();
        assert_eq!((first.port(LAN).name.as_str(), first.port(LAN).mtu, first.port(LAN).up), ("lan0", 1500, true));
        ip("link set lan0 mtu 1400");
        running.until("MTU", |now| v4(now, "10.0.0.7") == forward(LAN, None, 1400) && now.port(LAN).mtu == 1400).await;
        running.event(Event::PortMtu(LAN)).await;
        assert_eq!(v6(&running.now(), "2001:db8:1::7"), forward(LAN, None, 1400));
        ip("link set lan0 mtu 1450");
        running.until("larger MTU", |now| v4(now, "10.0.0.7") == forward(LAN, None, 1450)).await;
        running.until("and for IPv6", |now| v6(now, "2001:db8:1::7") == forward(LAN, None, 1450)).await;
        ip("link set lan0 mtu 1400");
        running.until("and back", |now| v6(now, "2001:db8:1::7") == forward(LAN, None, 1400)).await;
        ip("link set wan0 address 02:00:00:00:00:77");
        running.event(Event::PortMac(WAN)).await;
        assert_eq!(running.now().port(WAN).mac.to_string(), "02:00:00:00:00:77");

        ip("addr add 10.7.0.1/16 dev lan0");
        running.event(Event::Addresses).await;
        running.until("new address", |now| v4(now, "10.7.0.1") == Route::Local && now.is_local(addr("10.7.0.1"))).await;
        running.until("its network", |now| v4(now, "10.7.9.9") == forward(LAN, None, 1400)).await;
        assert_eq!(running.now().source_address(Family::V4, LAN, addr("10.7.9.9")), Some(addr("10.7.0.1")));
        ip("route add 80.0.0.0/8 via 192.0.2.2 src 10.7.0.1");
        running
            .until("preferred source", |now| {
                now.source_for(Family::V4, addr("80.0.0.1"), PortId::LAN) == Some(addr("10.7.0.1"))
            })
            .await;
        ip("addr del 10.7.0.1/16 dev lan0");
        running
            .until("gone address", |now| v4(now, "10.7.0.1") == Route::NoRoute && !now.is_local(addr("10.7.0.1")))
            .await;
        running.until("routes from it", |now| v4(now, "80.0.0.1") == Route::NoRoute).await;

        // IPv4 routes go without a word when a link goes down.
        ip("route add 90.0.0.0/8 via 10.0.0.2");
        running.until("route", |now| v4(now, "90.0.0.1") == forward(LAN, Some("10.0.0.2"), 1400)).await;
        ip("link set lan0 down");
        running.until("down", |now| !now.port(LAN).up && v4(now, "90.0.0.1") == Route::NoRoute).await;
        running.event(Event::PortDown(LAN)).await;
        ip("link set lan0 up");
        running.until("up", |now| now.port(LAN).up && v4(now, "10.0.0.7") == forward(LAN, None, 1400)).await;
        running.event(Event::PortUp(LAN)).await;
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert_eq!(v4(&running.now(), "90.0.0.1"), Route::NoRoute, "the kernel forgot it");
        // Without carrier but up: Linux goes on routing there unless told otherwise.
        ip("link set wan0p down");
        running.event(Event::PortDown(WAN)).await;
        assert_eq!(v4(&running.now(), "192.0.2.7"), forward(WAN, None, 1500));
        set("ipv4/conf/wan0/ignore_routes_with_linkdown", "1");
        running.until("ignored", |now| v4(now, "192.0.2.7") == Route::NoRoute).await;
    });
}

#[test]
fn lost_addresses_are_told_also_when_they_are_back_at_once() {
    run(async || {
        let running = Running::open();
        let lost = |port: PortId, address: Option<&str>| Lost { port, addr: address.map(addr) };
        assert_eq!(running.now().lost, 0);
        let has = |routing: &Routing, wanted: Lost| routing.losses.contains(&wanted);
        let (gone, kept) = (lost(WAN, Some("192.0.2.1")), lost(LAN, Some("10.0.0.1")));
        ip_batch(&[], "addr del 192.0.2.1/24 dev wan0\naddr add 192.0.2.1/24 dev wan0\n");
        running.until("the address was gone", |routing| has(routing, gone)).await;
        running.until("and is back", |routing| routing.is_local(addr("192.0.2.1"))).await;
        // What others lose, and an address that is new, is nobody's loss.
        ip("addr del 172.16.0.1/16 dev other0");
        ip("addr add 192.0.2.2/24 dev wan0");
        ip("addr del 2001:db8:2::1/64 dev wan0");
        running.until("IPv6 too", |routing| has(routing, lost(WAN, Some("2001:db8:2::1")))).await;
        assert!(
            running.now().losses.iter().all(|it| it.port == WAN && it.addr.is_some()),
            "{:?}",
            running.now().losses
        );
        // Without a carrier the address stays; a port that is taken down loses all.
        ip("link set lan0p down");
        running.until("no carrier", |routing| !routing.port(LAN).up).await;
        assert!(!has(&running.now(), lost(LAN, None)) && !has(&running.now(), kept));
        ip_batch(&[], "link set lan0 down\nlink set lan0 up\n");
        running.until("down", |routing| has(routing, lost(LAN, None))).await;
        assert!(!has(&running.now(), kept), "IPv4's address is still there");
    });
}

#[test]
fn settings_are_read_and_followed() {
    run(async || {
        set("ipv4/conf/all/rp_filter", "0");
        set("ipv4/conf/lan0/rp_filter", "0");
        set("ipv4/ip_forward", "0");
        let running = Running::open();
        let first = running.now();
        assert_eq!(first.port(LAN).rp_filter, RpFilter::Off);
        assert!(!first.kernel_forwarding.v4 && first.kernel_forwarding.v6);
        assert_eq!(first.check_source(LAN, addr("192.0.2.9")), Ok(()));
        assert_eq!(first.check_source(LAN, addr("172.16.0.1")), Err(BadSource::Martian), "any interface's address");
        set("ipv4/conf/lan0/rp_filter", "1");
        set("ipv4/ip_forward", "1");
        running.until("settings", |now| now.port(LAN).rp_filter == RpFilter::Strict && now.kernel_forwarding.v4).await;
        assert_eq!(running.now().check_source(LAN, addr("192.0.2.9")), Err(BadSource::ReversePath));
        set("ipv4/conf/all/rp_filter", "2");
        running.until("the larger of two", |now| now.port(LAN).rp_filter == RpFilter::Loose).await;
    });
}

#[test]
fn source_checks_match_the_kernels() {
    run(async || {
        set("ipv4/ip_forward", "1");
        set("ipv4/conf/all/rp_filter", "0");
        ip("route add 20.0.0.0/8 via 10.0.0.2");
        ip("route add 20.1.0.0/16 via 192.0.2.2");
        ip("route add 20.2.0.0/16 dev other0");
        ip("route add unreachable 20.127.0.0/16");
        ip("route add blackhole 20.128.0.0/16");
        ip("route add 100.0.0.0/8 nexthop via 10.0.0.2 nexthop via 192.0.2.2");
        let running = Running::open();
        let mut random = Random(99);
        let edges = ["10.0.0.1", "192.0.2.1", "172.16.0.1", "10.0.0.255", "192.0.2.255", "10.0.0.9", "192.0.2.9"];
        for (rp_filter, accept_local) in [("0", "0"), ("1", "0"), ("2", "0"), ("0", "1"), ("1", "1"), ("2", "1")] {
            set("ipv4/conf/lan0/accept_local", accept_local);
            set("ipv4/conf/lan0/rp_filter", if rp_filter == "0" { "1" } else { "0" });
            set("ipv4/conf/lan0/rp_filter", rp_filter);
            let settings = match rp_filter {
                "0" => RpFilter::Off,
                "1" => RpFilter::Strict,
                _ => RpFilter::Loose,
            };
            running
                .until("settings", |now| {
                    now.port(LAN).rp_filter == settings && now.port(LAN).accept_local == (accept_local == "1")
                })
                .await;
            let now = running.now();
            let mut sources: Vec<Addr> = (0..200).map(|_| Addr::from_v4(random_v4(&mut random))).collect();
            sources.extend(edges.map(addr));
            let lines: String =
                sources.iter().map(|src| format!("route get 192.0.2.9 from {src} iif lan0\n")).collect();
            let (_, errors) = ip_batch(&["-oneline"], &lines);
            let refused: Vec<usize> = errors
                .lines()
                .filter_map(|line| line.strip_prefix("Command failed -:"))
                .map(|number| number.parse::<usize>().expect("a line number") - 1)
                .collect();
            for (at, &src) in sources.iter().enumerate() {
                let ours = now.check_source(LAN, src);
                assert_eq!(
                    ours.is_err(),
                    refused.contains(&at),
                    "{src}, rp_filter {rp_filter}/{accept_local}: {ours:?}"
                );
            }
        }
    });
}

#[test]
fn neighbours_are_resolved_and_found_missing() {
    run(async || {
        let peer = Peer::new();
        ip(&format!("link set wan0p netns {}", peer.0));
        peer.ip("link set wan0p up");
        peer.ip("addr add 192.0.2.2/24 dev wan0p");
        peer.ip("addr add 2001:db8:2::2/64 dev wan0p nodad");
        peer.ip("link set wan0p address 02:00:00:00:00:02");
        ip("neigh add 192.0.2.50 lladdr 02:00:00:00:00:50 dev wan0 nud permanent");
        let running = Running::open();
        let is = |mac: &'static str| move |it: Neighbour| matches!(it, Neighbour::Reachable(m) if m.to_string() == mac);
        let fifty = addr("192.0.2.50");
        assert!(is("02:00:00:00:00:50")(running.now().neighbour(WAN, fifty)), "of the dump");

        for text in ["192.0.2.2", "2001:db8:2::2"] {
            let hop = addr(text);
            assert_eq!(running.now().neighbour(WAN, hop), Neighbour::Unknown);
            running.ask(Request::Resolve(WAN, hop)).await;
            let took = running.until("answer", |now| is("02:00:00:00:00:02")(now.neighbour(WAN, hop))).await;
            assert!(took < Duration::from_millis(500), "a packet waits for {text}: {took:?}");
        }
        // A neighbour changes its address, and is forgotten.
        ip("neigh replace 192.0.2.50 lladdr 02:00:00:00:00:51 dev wan0 nud permanent");
        running.until("new address", |now| is("02:00:00:00:00:51")(now.neighbour(WAN, fifty))).await;
        ip("neigh del 192.0.2.50 dev wan0");
        running.until("forgotten", |now| now.neighbour(WAN, fifty) == Neighbour::Unknown).await;

        // Nobody there: failed after three probes; asked again it is unknown first, then failed again.
        let absent = addr("192.0.2.200");
        for round in ["first", "again"] {
            running.ask(Request::Resolve(WAN, absent)).await;
            running.until(round, |now| now.neighbour(WAN, absent) == Neighbour::Unknown).await;
            let took = running.until(round, |now| now.neighbour(WAN, absent) == Neighbour::Failed).await;
            assert!(took > Duration::from_secs(2) && took < Duration::from_secs(5), "{took:?}");
        }
        // Then it appears.
        peer.ip("addr add 192.0.2.200/24 dev wan0p");
        running.ask(Request::Resolve(WAN, absent)).await;
        running.until("appears", |now| is("02:00:00:00:00:02")(now.neighbour(WAN, absent))).await;
        let before = running.now();
        ip("neigh flush dev wan0");
        running.until("flushed", |now| now.neighbour(WAN, absent) == Neighbour::Unknown).await;
        assert!(before.same_routes(&running.now()), "neighbours alone do not compile routes");
    });
}

#[test]
fn stale_neighbours_in_use_are_confirmed() {
    run(async || {
        let peer = Peer::new();
        ip(&format!("link set wan0p netns {}", peer.0));
        peer.ip("link set wan0p up");
        peer.ip("addr add 192.0.2.2/24 dev wan0p");
        set("ipv4/neigh/wan0/delay_first_probe_time", "0");
        // A stale entry with a wrong address: confirming it finds the right one.
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:99 dev wan0 nud stale");
        peer.ip("link set wan0p address 02:00:00:00:00:02");
        let running = Running::open();
        let hop = addr("192.0.2.2");
        assert!(matches!(running.now().neighbour(WAN, hop), Neighbour::Reachable(_)), "stale is good enough to send");
        running.ask(Request::Use(WAN, hop)).await;
        running.until("confirmed", |now| {
            now.neighbour(WAN, hop).eq(&Neighbour::Failed)
                || matches!(now.neighbour(WAN, hop), Neighbour::Reachable(mac) if mac.to_string() == "02:00:00:00:00:02")
        }).await;
    });
}

#[test]
fn a_vanished_interface_ends_the_run() {
    run(async || {
        let mut running = Running::open();
        ip("link del wan0");
        running.event(Event::PortGone(WAN)).await;
        let ended = tokio::time::timeout(PATIENCE, &mut running.task).await.expect("ends").expect("no panic");
        assert_eq!(ended.expect_err("an error").to_string(), "interface wan0 disappeared");
        let last = running.now();
        assert!(!last.port(WAN).up && v4(&last, "192.0.2.7") == Route::NoRoute);
    });
}

#[test]
fn interfaces_that_will_not_do_are_named() {
    run(async || {
        let refused = |ports| Netlink::open(ports).expect_err("refused").to_string();
        let missing = refused(["lan0", "wan7"]);
        assert!(missing.contains("no interface `wan7`") && missing.contains("wan0"), "{missing}");
        assert!(refused(["lan0", "lan0"]).contains("two different interfaces"));
        assert!(refused(["lan0", "lo"]).contains("not an Ethernet"));
    });
}

#[test]
fn the_run_ends_when_nobody_can_ask() {
    run(async || {
        let Running { requests, task, .. } = Running::open();
        drop(requests);
        tokio::time::timeout(PATIENCE, task).await.expect("ends").expect("no panic").expect("no error");
    });
}

fn many_routes(count: u32, verb: &str) -> String {
    let prefix = |n: u32| std::net::Ipv4Addr::from(0x1400_0000 + (n << 8));
    (0..count).map(|n| format!("route {verb} {}/24 via 192.0.2.2\n", prefix(n))).collect()
}

#[test]
fn twenty_thousand_routes_load_and_go() {
    run(async || {
        ip_batch(&[], &many_routes(20_000, "add"));
        let begin = Instant::now();
        let running = Running::open();
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(5), "opened with 20000 routes in {took:?}");
        let to = forward(WAN, Some("192.0.2.2"), 1500);
        assert_eq!(v4(&running.now(), "20.78.31.1"), to);
        assert_eq!(v4(&running.now(), "20.78.32.1"), Route::NoRoute);
        assert!(running.now().tables().len().0 > 20_000);
        ip_batch(&[], &many_routes(20_000, "del"));
        running.until("all gone", |now| now.tables().len().0 < 100).await;
    });
}

#[test]
fn lost_messages_are_made_up_for() {
    run(async || {
        // Subscribed, but nobody reads: the socket's buffer overflows long before this is over.
        let netlink = Netlink::open(["lan0", "wan0"]).expect("the mirror opens");
        ip_batch(&[], &many_routes(60_000, "add"));
        ip_batch(&[], &many_routes(30_000, "del"));
        ip("addr add 10.9.0.1/16 dev lan0");
        ip("neigh add 192.0.2.50 lladdr 02:00:00:00:00:50 dev wan0 nud permanent");
        let running = Running::start(netlink);
        running
            .until("the routes that are left", |now| {
                now.tables().len().0 > 30_000 && now.tables().len().0 < 30_100 && v4(now, "20.0.0.1") == Route::NoRoute
            })
            .await;
        assert_eq!(v4(&running.now(), "20.200.0.1"), forward(WAN, Some("192.0.2.2"), 1500));
        assert_eq!(v4(&running.now(), "10.9.0.1"), Route::Local);
        assert!(matches!(running.now().neighbour(WAN, addr("192.0.2.50")), Neighbour::Reachable(_)));
        let mut random = Random(7);
        compare(&running.now(), &mut random, 200);
    });
}

/// By hand: `cargo test --release --test netlink -- --ignored --nocapture`. Takes some 400 MB and a minute.
#[test]
#[ignore = "a full BGP table, for figures"]
fn a_million_routes() {
    run(async || {
        let prefix = |n: u32| std::net::Ipv4Addr::from(0x0b00_0000 + (n << 8));
        let lines: String = (0..1_000_000).map(|n| format!("route add {}/24 via 192.0.2.2\n", prefix(n))).collect();
        ip_batch(&[], &lines);
        let begin = Instant::now();
        let mut running = Running::open();
        eprintln!("opened in {:?}", begin.elapsed());
        eprintln!("{:?}, {} MiB", running.now(), running.now().tables().memory_bytes() >> 20);
        ip("route add 5.0.0.0/8 via 192.0.2.2");
        let took = running.until("one more", |now| v4(now, "5.0.0.1") != Route::NoRoute).await;
        eprintln!("one more route after {took:?}");
        let begin = Instant::now();
        ip("addr add 10.9.0.1/16 dev lan0");
        running.event(Event::Addresses).await;
        ip("addr del 10.9.0.1/16 dev lan0");
        running.until("less", |now| !now.is_local(addr("10.9.0.1"))).await;
        eprintln!("an address came and went in {:?}", begin.elapsed());
        let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
        eprintln!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    });
}
