//! The router on real drivers: igb and virtio-net, in zero-copy and in copy mode. Runs in the guest that
//! `scripts/test-zerocopy` boots (docs/ZEROCOPY.md); elsewhere there are no such NICs, and every test passes over.
//!
//! The guest's four NICs are the network, once for all tests: `nic0` and `nic1`, of the driver in hand, are the router's `lan`
//! and `wan`; `nic2` and `nic3` the hosts'. Each test starts the router, and leaves the network as it was. One at a time.

mod ends;
#[path = "../scenario/mod.rs"]
#[allow(dead_code)] // the scenarios' own tests use the rest
mod scenario;
#[path = "../support/mod.rs"]
#[allow(dead_code)] // the end-to-end tests use the rest
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use ends::{PORT, Traffic, at};
use nix::sys::signal::Signal;
use scenario::script::Script;
use scenario::wire::{Site, unfit};
use support::{Net, Place, Router, text};
use xrouter::xdp::{Edge, EdgeConfig, Mode};

const SECOND: Duration = Duration::from_secs(1);
/// Bytes of the longest transfer that is compared. The emulator runs a debug build at some hundred kilobytes a second.
const TRANSFER: usize = 1 << 20;

/// The driver in hand, `igb` or `virtio`; `None` outside of the guest.
fn driver() -> Option<String> {
    let driver = env::var("XROUTER_ZC_DRIVER").ok();
    if driver.is_none() {
        eprintln!("passed over: this needs the guest of scripts/test-zerocopy");
    }
    driver
}

/// Says how long it took.
fn step<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let done = work();
    eprintln!("  {what}: {:.1} s", started.elapsed().as_secs_f32());
    done
}

/// The guest's network, and the servers on it.
static NET: LazyLock<&Net> = LazyLock::new(|| {
    let net = Box::leak(Box::new(Net::of_nics(["nic0", "nic1"], ["nic2", "nic3"])));
    for port in ["lan", "wan"] {
        // As the README says for ports: whole frames.
        net.run(Place::Router, &format!("ethtool -K {port} gro off lro off"));
    }
    for place in [Place::Lan, Place::Wan] {
        // After an outage TCP would try again only after as long a time once more.
        net.must(place, "sysctl -qw net.ipv4.tcp_rto_max_ms=1000");
        // And it would give up after 15 times, which are 15 seconds then: a restart on a busy machine takes longer.
        net.must(place, "sysctl -qw net.ipv4.tcp_retries2=100");
    }
    ends::start(net);
    net
});

/// Receive queues of each of the router's ports.
fn queues(driver: &str) -> usize {
    if driver == "igb" { 2 } else { 1 }
}

/// How many workers there can be.
fn workers(driver: &str) -> String {
    match queues(driver) {
        1 => "1".to_owned(),
        _ => env::var("XROUTER_ZC_WORKERS").unwrap_or("2".to_owned()),
    }
}

/// A router in `mode` with these rules for IPv4, read again from the same file by a reload. One that polls busily has one worker:
/// the guest has two CPUs.
fn router(driver: &str, mode: &str, poll: &str, rules: &str) -> Router {
    let (rules, config) = (write_rules(rules), NET.file("small.toml"));
    // A reload looks through the whole table, and this is slow under an emulator.
    fs::write(&config, "[conntrack]\nnf_conntrack_max = 2000\n").expect("a file");
    let (config, workers) =
        (config.display().to_string(), if poll == "busy" { "1".to_owned() } else { workers(driver) });
    let words = ["--mode", mode, "--poll", poll, "--workers", &workers, "--rules", &rules, "--config", &config];
    let started = Instant::now();
    let router = Router::start(&NET, &words);
    eprintln!("  ready in {mode} mode after {:.1} s", started.elapsed().as_secs_f32());
    let ready = router.said().lines().find(|line| line.starts_with("xrouter ready")).expect("it is there").to_owned();
    assert!(ready.contains(&format!("mode={mode} ")), "{}", router.said());
    router
}

fn write_rules(rules: &str) -> String {
    let file = NET.file("rules.v4");
    fs::write(&file, rules).expect("a file");
    file.display().to_string()
}

/// Gives a running router other rules.
fn reload(router: &Router, rules: &str) {
    write_rules(rules);
    router.ask(&["reload"]);
}

fn v4(host: &str, port: u16) -> SocketAddr {
    format!("{host}:{port}").parse().expect("an address")
}

fn stats(router: &Router) -> serde_json::Value {
    serde_json::from_str(&router.ask(&["stats", "-j"])).expect("stats -j prints JSON")
}

/// State is kept: from inside all goes, from outside only what belongs to it.
const STATEFUL: &str = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
    -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A FORWARD -p tcp -m tcp --dport 99 -j REJECT --reject-with tcp-reset\n\
    -A FORWARD -i lan -o wan -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n";

/// The same, behind one address, with one port forwarded and FTP helped.
const TRANSLATING: &str = "*raw\n-A PREROUTING -i lan -p tcp -m tcp --dport 21 -j CT --helper ftp\nCOMMIT\n*nat\n\
    -A PREROUTING -i wan -p tcp -m tcp --dport 8007 -j DNAT --to-destination 10.1.0.2:7\n\
    -A POSTROUTING -o wan -j MASQUERADE\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\n\
    -A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
    -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT\n\
    -A FORWARD -i lan -o wan -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n";

#[test]
fn zero_copy_mode_does_it_all() {
    let Some(driver) = driver() else { return };
    let before = nic_settings();
    let router = router(&driver, "zero-copy", "adaptive", STATEFUL);
    kernel_says(&driver, true);
    first_packets_pass();
    state_is_kept(&router, TRANSFER);
    packets_come_home(&router);
    reload(&router, TRANSLATING);
    connections_are_translated(&router);
    reloads_under_traffic(&router);
    all_queues_worked(&router, &driver);
    reload(&router, STATEFUL);
    restarts_under_traffic(router, &driver);
    assert_eq!(before, nic_settings(), "the NICs are not as they were");
}

#[test]
fn copy_mode_does_it_all() {
    let Some(driver) = driver() else { return };
    let router = router(&driver, "copy", "adaptive", STATEFUL);
    kernel_says(&driver, false);
    first_packets_pass();
    state_is_kept(&router, TRANSFER / 2);
    reload(&router, TRANSLATING);
    connections_are_translated(&router);
    all_queues_worked(&router, &driver);
    router.stop();
}

/// The executable specification (tests/scenarios), as far as NICs and one network for all can run it.
#[test]
fn scenarios_hold_in_zero_copy_mode() {
    let Some(driver) = driver() else { return };
    let workers = workers(&driver).parse().expect("a number");
    let (mut left, mut left_out) = (Vec::new(), Vec::new());
    for script in scripts(&driver) {
        match unfit(&script, true) {
            Some(why) => left_out.push(format!("{}: {why}", script.file)),
            None => left.push(script),
        }
    }
    let (ran, mut failures) = (left.len(), Vec::new());
    let mut site = Site::of_nics(&NET, workers, &["--mode", "zero-copy"]).expect("a network");
    while !left.is_empty() {
        let script = left.remove(next(&site, &left));
        let started = Instant::now();
        failures.extend(site.run(&script).err());
        eprintln!("  {}: {:.1} s", script.file, started.elapsed().as_secs_f32());
    }
    drop(site);
    eprintln!("engine wire: {ran} scenarios, {} failed, {} left out:", failures.len(), left_out.len());
    left_out.iter().for_each(|why| eprintln!("  {why}"));
    assert!(failures.is_empty(), "{} scenarios failed:\n\n{}\n", failures.len(), failures.join("\n\n"));
}

/// Scenarios of state and NAT are run here; of the rest there is no time for all. On virtio, with one queue and one worker, NAT's.
fn scripts(driver: &str) -> Vec<Script> {
    let families: &[&str] = if driver == "igb" { &["ct_", "helper_", "nat_"] } else { &["helper_", "nat_"] };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let wanted = |name: &str| name.ends_with(".scn") && families.iter().any(|family| name.starts_with(family));
    files.retain(|file| file.file_name().is_some_and(|name| wanted(&name.to_string_lossy())));
    files.iter().map(|file| Script::load(file).unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// The scenario to be run next: a start of the daemon takes seconds, and so does its allowance for ICMP errors to fill up.
fn next(site: &Site, left: &[Script]) -> usize {
    loop {
        let served = left.iter().any(|script| site.serves(script));
        match left.iter().position(|script| site.may_run(script) && (site.serves(script) || !served)) {
            Some(at) => return at,
            None => thread::sleep(SECOND / 10),
        }
    }
}

/// The kernel's socket diagnosis has a socket for every queue of both ports, in this mode, with frames long enough for the driver.
fn kernel_says(driver: &str, zero_copy: bool) {
    let listing = NET.must(Place::Router, "ss --xdp --extended --all --no-header");
    let sockets: Vec<&str> =
        listing.split("UNCONN").filter(|it| it.contains(" lan:q") || it.contains(" wan:q")).collect();
    assert_eq!(sockets.len(), 2 * queues(driver), "{listing}");
    let mode = if zero_copy { "zc:1" } else { "zc:0" };
    // igb fills the whole kilobytes of a frame less its headroom, and goes on in the next frame: 2048 bytes hold 1024.
    let frame = if zero_copy && driver == "igb" { "chunk_size:4096" } else { "chunk_size:2048" };
    assert!(sockets.iter().all(|socket| socket.contains(mode) && socket.contains(frame)), "{listing}");
}

/// From `xrouter ready` on nothing is lost: the drivers have their frames and the links are up.
fn first_packets_pass() {
    let said = NET.must(Place::Lan, "ping -q -c 10 -i 0.1 -W 5 10.2.0.2");
    assert!(said.contains("10 packets transmitted, 10 received"), "{said}");
}

/// What a start may change of the ports: queues, offloads, hashing.
fn nic_settings() -> String {
    let words = ["-l", "-k", "-x", "-n", "-g"].map(|what| (what, if what == "-n" { "rx-flow-hash udp4" } else { "" }));
    let asked =
        ["lan", "wan"].into_iter().flat_map(|port| words.map(|(what, more)| format!("ethtool {what} {port} {more}")));
    asked.map(|words| format!("{words}\n{}", text(&NET.run(Place::Router, &words).stdout))).collect()
}

/// Where the NIC's own hash says whose a packet is, none has come to another worker.
fn packets_come_home(router: &Router) {
    let said = router.said();
    let by_nic = said.lines().find(|line| line.contains("home by NIC RSS"));
    let stats = stats(router);
    let workers = stats["workers"].as_array().expect("workers");
    let handed: u64 = workers.iter().filter_map(|worker| worker["handed_over"].as_u64()).sum();
    eprintln!("  {handed} packets handed from worker to worker; {}", by_nic.unwrap_or("no home by the NIC"));
    assert!(by_nic.is_none() || handed == 0, "{handed} packets came to a worker that was not theirs: {stats}");
}

fn state_is_kept(router: &Router, bytes: usize) {
    step("pings", || {
        NET.must(Place::Lan, "ping -c 1 -W 5 fd02::2");
        // Around the lengths at which drivers go over to another buffer, up to the longest.
        for size in [0, 982, 983, 1466, 1468, 1472] {
            NET.must(Place::Lan, &format!("ping -c 1 -W 5 -M do -s {size} 10.2.0.2"));
        }
    });
    let (to, to6) = (v4("10.2.0.2", PORT), SocketAddr::from(([0xfd02, 0, 0, 0, 0, 0, 0, 2], PORT)));
    at(&NET, Place::Lan, move || -> Result<(), String> {
        step("upload", || ends::upload(to, bytes))?;
        step("download", || ends::download(to, bytes))?;
        step("upload over IPv6", || ends::upload(to6, bytes / 4))?;
        step("download over IPv6", || ends::download(to6, bytes / 4))?;
        step("datagrams", || ends::echoes(to, 500, 1472, 16))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", router.ask(&["stats"])));
    // What the router says itself: an error, a reset.
    let expired = text(&NET.run(Place::Lan, "ping -c 1 -W 5 -t 1 10.2.0.2").stdout);
    assert!(expired.contains("From 10.1.0.1") && expired.contains("Time to live exceeded"), "{expired}");
    let reset = at(&NET, Place::Lan, || ends::who(v4("10.2.0.2", 99)));
    assert!(reset.as_ref().is_err_and(|error| error.contains("refused")), "{reset:?}");
    // Nobody outside may begin.
    let refused = at(&NET, Place::Wan, || ends::who(v4("10.1.0.2", PORT)));
    assert!(refused.is_err(), "a connection from outside went through: {refused:?}");
    assert!(
        !NET.run(Place::Wan, "ping -c 2 -i 0.2 -W 1 10.1.0.2").status.success(),
        "a ping from outside went through"
    );
    let stats = stats(router);
    let drops = stats["workers"].as_array().expect("workers").iter().map(|worker| &worker["drops"]["policy_drop"]);
    assert!(drops.filter_map(|count| count.as_u64()).sum::<u64>() >= 3, "{stats}");
}

fn connections_are_translated(router: &Router) {
    let to = v4("10.2.0.2", PORT);
    let seen = at(&NET, Place::Lan, move || -> Result<_, String> {
        step("translated upload", || ends::upload(to, TRANSFER / 4))?;
        step("translated download", || ends::download(to, TRANSFER / 4))?;
        step("translated datagrams", || ends::echoes(to, 100, 1472, 16))?;
        Ok([ends::who(to)?, ends::who_udp(to)?, ends::fetch_by_ftp(v4("10.2.0.2", 21), [10, 1, 0, 2])?])
    });
    let seen = seen.unwrap_or_else(|error| panic!("{error}\n{}", router.ask(&["stats"])));
    assert!(seen.iter().all(|seen| seen.ip() == v4("10.2.0.1", 0).ip()), "the outside saw {seen:?}");
    let from_outside = at(&NET, Place::Wan, || -> Result<_, String> {
        step("upload to a forwarded port", || ends::upload(v4("10.2.0.1", 8007), TRANSFER / 4))?;
        ends::who(v4("10.2.0.1", 8007))
    });
    assert_eq!(from_outside.map(|seen| seen.ip()), Ok(v4("10.2.0.2", 0).ip()));
    let table = router.ask(&["conntrack", "-L", "-p", "tcp"]);
    let forwarded =
        |line: &str| line.contains("dst=10.2.0.1 ") && line.contains("dport=8007") && line.contains("src=10.1.0.2 ");
    assert!(table.lines().any(forwarded), "{table}");
}

/// Every queue received, and the kernel dropped and refused nothing.
fn all_queues_worked(router: &Router, driver: &str) {
    let stats = stats(router);
    let workers = stats["workers"].as_array().expect("workers");
    let queues: Vec<_> = workers.iter().flat_map(|worker| worker["queues"].as_array().expect("queues")).collect();
    assert_eq!(queues.len(), 2 * self::queues(driver), "{stats}");
    for queue in queues {
        assert!(queue["received"]["packets"].as_u64() > Some(0), "a queue had nothing: {queue}");
        for loss in ["rx_dropped", "rx_invalid_descs", "tx_invalid_descs", "rx_ring_full"] {
            assert_eq!(queue["xsk"][loss], 0, "{loss}: {queue}");
        }
    }
}

#[test]
fn igb_is_not_given_frames_that_it_would_cut() {
    if driver().as_deref() != Some("igb") {
        return;
    }
    let config = EdgeConfig { frame_size: 2048, mode: Mode::ZeroCopy, ..EdgeConfig::new("lan", "wan") };
    LazyLock::force(&NET);
    let refused = at(&NET, Place::Router, move || Edge::open(&config).map(|_| ()).map_err(|error| error.to_string()));
    let said = refused.expect_err("2048 bytes hold one kilobyte");
    assert!(said.contains("igb") && said.contains("cuts packets in two with frames of 2048 bytes"), "{said}");
}

/// A translated upload goes on over reloads. (Over a restart it may not: what comes back in between is for the router's own
/// address, and its kernel resets what it does not know.)
fn reloads_under_traffic(router: &Router) {
    let traffic = Traffic::start(&NET, Place::Lan, v4("10.2.0.2", PORT));
    going_on(router);
    for rules in [TRANSLATING, STATEFUL, TRANSLATING] {
        reload(router, rules);
        going_on(router);
    }
    traffic.end().unwrap_or_else(|error| panic!("{error}\n{}", router.ask(&["stats"])));
}

/// An upload goes on over a restart, and over a restart after the router was killed.
fn restarts_under_traffic(mut router: Router, driver: &str) {
    let traffic = Traffic::start(&NET, Place::Lan, v4("10.2.0.2", PORT));
    going_on(&router);
    step("stop", || router.stop());
    // In busy polling the kernel wakes no driver, which must not keep one from sending.
    router = self::router(driver, "zero-copy", "busy", STATEFUL);
    going_on(&router);
    // Killed, it leaves its queues to the kernel, which frees them late.
    router.program().signal(Signal::SIGKILL);
    router.program().end(10 * SECOND);
    drop(router);
    router = self::router(driver, "zero-copy", "adaptive", STATEFUL);
    going_on(&router);
    traffic.end().unwrap_or_else(|error| panic!("{error}\n{}", router.ask(&["stats"])));
    router.stop();
}

/// Waits until the outside has received more.
fn going_on(router: &Router) {
    let (before, limit) = (ends::compared(), Instant::now() + 60 * SECOND);
    while ends::compared() < before + (128 << 10) {
        assert!(Instant::now() < limit, "the upload stands still\n{}", router.ask(&["stats"]));
        thread::sleep(SECOND / 20);
    }
}

/// All four NICs with an MTU of 9000, as long as it lives.
struct Jumbo;

impl Jumbo {
    fn set(mtu: u32) {
        let all = [(Place::Router, "lan"), (Place::Router, "wan"), (Place::Lan, "eth0"), (Place::Wan, "eth0")];
        for (place, name) in all {
            NET.run(place, &format!("ip link set {name} mtu {mtu}"));
        }
    }
}

impl Drop for Jumbo {
    fn drop(&mut self) {
        Jumbo::set(1500);
    }
}

/// Nothing but pings of whole packets of 9000 bytes, each compared.
fn jumbo_pings() {
    for (host, most) in [("10.2.0.2", 8972), ("fd02::2", 8952)] {
        let said = NET.run(Place::Lan, &format!("ping -c 3 -W 5 -M do -s {most} {host}"));
        let said = text(&said.stdout);
        assert!(said.contains(" 3 received") && !said.contains("wrong data"), "{said}");
    }
}

#[test]
fn an_mtu_of_9000_works_in_the_best_mode_that_can() {
    let Some(driver) = driver() else { return };
    let _jumbo = Jumbo;
    Jumbo::set(9000);
    // virtio_net runs the program on packets of several buffers, but has no zero-copy for them; igb does neither.
    let (cannot, best) =
        if driver == "igb" { (&["zero-copy", "copy"][..], "generic") } else { (&["zero-copy"][..], "copy") };
    for mode in cannot {
        let output = Router::command(&NET, &["--mode", mode]).output().expect("it starts");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(&format!("mode {mode} does not work here")) && said.contains("MTU of 9000"), "{said}");
    }
    let router = Router::start(&NET, &["--mode", "auto", "--poll", "adaptive"]);
    let said = router.said();
    assert!(said.contains(&format!("xrouter ready mode={best} ")) && !said.contains("are dropped"), "{said}");
    step("pings of 9000 bytes", jumbo_pings);
    router.stop();
}
