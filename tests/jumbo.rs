//! Packets longer than a frame, end to end: the real router on veths with an MTU of 9000, real programs at both ends, in copy
//! mode with the XDP program in the driver, and in generic mode. What comes through is compared byte for byte; afterwards every
//! frame, large or not, is where it was before.

#[path = "support/far.rs"]
mod far;
#[allow(dead_code)] // the end-to-end tests use the rest
mod support;

use std::path::Path;
use std::time::Duration;

use far::Far;
use support::{Net, Place, Program, Router, Shape, eventually, must, privileged, random_file, sha256, text};

/// `large` frames of each worker.
const LARGE_FRAMES: u64 = 1024;

/// A network of these MTUs: of the link inside, of the router's end outside, of the host's there.
fn net(queues: u32, [lan, wan, host]: [u32; 3]) -> Net {
    let net = Net::new(Shape { queues, ..Shape::default() });
    for (place, interface, mtu) in [
        (Place::Lan, "eth0", lan),
        (Place::Router, "lan", lan),
        (Place::Router, "wan", wan),
        (Place::Wan, "eth0", host),
    ] {
        net.ip(place, &format!("link set {interface} mtu {mtu}"));
    }
    net
}

/// A web server with one file of random bytes, `file`.
fn web_server(net: &Net, size: u64) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/server.py").display().to_string();
    let folder = net.file("web");
    std::fs::create_dir_all(&folder).expect("a folder");
    random_file(&folder.join("file"), size);
    let server = net.start(Place::Wan, &["python3", &script, &folder.display().to_string(), "80"]);
    net.wait_for_listener(Place::Wan, 80);
    server
}

/// Sends datagrams of these lengths from the inside to an echo outside, which must come back as they were.
fn datagrams(net: &Net, host: &str, lengths: &str) {
    let family = if host.contains(':') { "AF_INET6" } else { "AF_INET" };
    let echo = format!(
        "import socket\ns = socket.socket(socket.{family}, socket.SOCK_DGRAM)\ns.bind(('', 7009))\nprint('ready', flush=True)\n\
         while True:\n    data, who = s.recvfrom(65535)\n    s.sendto(data, who)\n"
    );
    let echo = net.start(Place::Wan, &["python3", "-c", &echo]);
    eventually(Duration::from_secs(5), "an echo", || echo.said().contains("ready"));
    let send = format!(
        "import os, socket\ns = socket.socket(socket.{family}, socket.SOCK_DGRAM)\ns.settimeout(3)\n\
         for length in {lengths}:\n    data = os.urandom(length)\n    s.sendto(data, ('{host}', 7009))\n    \
         assert s.recv(65535) == data, length\n"
    );
    must(net.command(Place::Lan, "python3").args(["-c", &send]));
}

fn stats(router: &Router) -> serde_json::Value {
    serde_json::from_str(&router.ask(&["stats", "-j"])).expect("stats -j prints JSON")
}

/// A counter of each worker.
fn of_each(router: &Router, name: &str) -> Vec<u64> {
    let stats = stats(router);
    stats["workers"].as_array().expect("workers").iter().map(|worker| worker[name].as_u64().expect("a count")).collect()
}

/// A counter over all queues of one port.
fn of_port(router: &Router, role: &str, value: impl Fn(&serde_json::Value) -> Option<u64>) -> u64 {
    let stats = stats(router);
    let workers = stats["workers"].as_array().expect("workers").iter();
    let queues = workers.flat_map(|worker| worker["queues"].as_array().expect("queues").iter());
    queues.filter(|queue| queue["role"] == role).map(|queue| value(queue).expect("a count")).sum()
}

/// Traffic of all kinds passes whole, and in long packets; then all frames are free again.
fn all_passes(net: &Net, router: &Router, workers: usize) {
    let idle = of_each(router, "free_frames");
    assert_eq!(of_each(router, "free_large_frames"), vec![LARGE_FRAMES; workers]);
    for (host, most) in [("10.2.0.2", 8972), ("fd02::2", 8952)] {
        let said = net.run(Place::Lan, &format!("ping -c 3 -i 0.05 -W 2 -M do -s {most} {host}"));
        assert!(said.status.success(), "{host}: {}", text(&said.stdout));
        datagrams(net, host, "(1, 3000, 3798, 3799, 7638, 7639, 8000, 8952)");
    }
    for host in ["10.2.0.2", "[fd02::2]"] {
        let counted = |role| {
            let of = |name: &'static str| of_port(router, role, move |queue| queue["received"][name].as_u64());
            (of("packets"), of("bytes"))
        };
        let (before, into) = (counted("wan"), net.file("copy").display().to_string());
        net.must(Place::Lan, &format!("curl -sS --max-time 60 -o {into} http://{host}/file"));
        let sent = sha256(&net.file("web/file"));
        assert_eq!(sha256(&net.file("copy")), sent, "what came through is not what was sent");
        let up = net.must(Place::Lan, &format!("curl -sS --max-time 60 -T {into} http://{host}/up"));
        assert_eq!(up, sent);
        let after = counted("wan");
        let each = (after.1 - before.1) / (after.0 - before.0);
        assert!(each > 2000, "{each} bytes a packet, acknowledgements included: the segments were short");
    }
    // Those that went to another worker with a packet have come back, too.
    eventually(Duration::from_secs(5), "all frames are free again", || {
        of_each(router, "free_large_frames") == vec![LARGE_FRAMES; workers] && of_each(router, "free_frames") == idle
    });
    for name in ["rx_no_large_frame", "rx_too_long"] {
        assert_eq!(of_port(router, "wan", |queue| queue[name].as_u64()), 0, "{name}");
    }
    assert_eq!(of_port(router, "wan", |queue| queue["xsk"]["tx_invalid_descs"].as_u64()), 0);
}

#[test]
fn long_packets_pass_as_they_are() {
    if !privileged() {
        return;
    }
    let net = net(1, [9000; 3]);
    let _server = web_server(&net, 6_000_000);
    let router = Router::start(&net, &["--poll", "adaptive", "--workers", "1"]);
    assert!(router.said().contains("mode=copy") && !router.said().contains("WARN"), "{}", router.said());
    all_passes(&net, &router, 1);
    for place in [Place::Lan, Place::Wan] {
        net.must(place, "ethtool -K eth0 tso off gso off gro off tx off");
    }
    all_passes(&net, &router, 1);
    router.stop();
}

#[test]
fn long_packets_pass_translated_and_over_two_workers() {
    if !privileged() {
        return;
    }
    let net = net(4, [9000; 3]);
    net.ip(Place::Wan, "route del default");
    net.ip(Place::Wan, "-6 route del default");
    let _server = web_server(&net, 6_000_000);
    let router = Router::start(&net, &["--poll", "adaptive", "--workers", "2", "--masquerade=both"]);
    for _ in 0..2 {
        all_passes(&net, &router, 2);
    }
    // With NAT the worker sees what is for the host, and gives it back: in fragments, if it must.
    let punted = || of_each(&router, "punted").iter().sum::<u64>();
    for (host, most) in [("10.1.0.1", 8972), ("fd01::1", 8952)] {
        let before = punted();
        let said = net.run(Place::Lan, &format!("ping -c 3 -i 0.05 -W 2 -M do -s {most} {host}"));
        assert!(said.status.success(), "{host}: {}", text(&said.stdout));
        assert!(punted() >= before + 3, "{host} was not asked by way of a worker");
    }
    assert!(
        of_each(&router, "handed_over").iter().sum::<u64>() > 100,
        "long packets went from one worker to the other"
    );
    router.stop();
}

#[test]
fn long_packets_pass_in_generic_mode() {
    if !privileged() {
        return;
    }
    let net = net(1, [9000; 3]);
    for place in [Place::Lan, Place::Wan] {
        net.must(place, "ethtool -K eth0 tso off gso off");
    }
    let _server = web_server(&net, 3_000_000);
    let router = Router::start(&net, &["--poll", "adaptive", "--workers", "1", "--mode", "generic"]);
    assert!(router.said().contains("mode=generic") && !router.said().contains("WARN"), "{}", router.said());
    all_passes(&net, &router, 1);
    router.stop();
}

/// From 9000 to 1500, with a host outside that would take 9000: the router says what fits.
#[test]
fn the_way_out_may_be_narrower() {
    if !privileged() {
        return;
    }
    let net = net(1, [9000, 1500, 9000]);
    let _server = web_server(&net, 1000);
    let router = Router::start(&net, &["--poll", "adaptive", "--workers", "1"]);
    for (host, told) in [("10.2.0.2", "mtu = 1500"), ("fd02::2", "mtu=1500")] {
        let said = net.run(Place::Lan, &format!("ping -c 1 -W 2 -M do -s 8000 {host}"));
        let said = format!("{}{}", text(&said.stdout), text(&said.stderr));
        assert!(said.contains(told), "{host}: {said}");
    }
    net.must(Place::Lan, "ip route flush cache");
    net.must(Place::Lan, "ip -6 route flush cache");
    random_file(&net.file("up"), 5_000_000);
    for host in ["10.2.0.2", "[fd02::2]"] {
        let said =
            net.must(Place::Lan, &format!("curl -sS --max-time 30 -T {} http://{host}/up", net.file("up").display()));
        assert_eq!(said, sha256(&net.file("up")));
        let route = net.ip(Place::Lan, &format!("route get {}", host.trim_matches(['[', ']'])));
        assert!(route.contains("mtu 1500"), "the sender knows: {route}");
    }
    assert_eq!(of_each(&router, "free_large_frames"), [LARGE_FRAMES]);
    router.stop();
}

/// A narrow link far away: its router's word comes back through ours to the sender of packets of 9000 bytes.
#[test]
fn a_narrow_link_far_away_is_found() {
    if !privileged() {
        return;
    }
    let net = net(1, [9000; 3]);
    let far = Far::new(&net);
    must(std::process::Command::new("ip").args(["-n", &far.name, "link", "set", "eth0", "mtu", "9000"]));
    let router = Router::start(&net, &["--poll", "adaptive", "--workers", "1", "--masquerade"]);
    let said = net.run(Place::Lan, "ping -c 1 -W 2 -M do -s 8000 10.3.0.2");
    let said = format!("{}{}", text(&said.stdout), text(&said.stderr));
    assert!(said.contains("mtu = 1300"), "{said}");
    router.stop();
}
