//! Sets against the judge: random sets are given to the kernel's ipset, random packets sent through rules that look into them, add
//! to them and delete from them; then the rules' counters and the sets themselves are compared with ours.
//!
//! Needs root, iproute2, iptables and ipset; without root or a kernel with ipset each test says so and passes. Every namespace
//! is this test's own, and traffic goes only between them:
//!
//! ```text
//!     hosts: l0 ──── lan0 :router: wan0 ──── w0 :hosts
//! ```

#[path = "rules_generator/mod.rs"]
mod generator;
#[path = "sets_generator/mod.rs"]
mod sets;

use generator::{ChainLie, Shape, Version};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, sendto, socket};
use nix::unistd::{Pid, Uid};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sets::SetText;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use xrouter::conntrack::{CtInfo, CtStatus, Template};
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::rules::{self, Context, FORWARD, Hook, MANGLE_FORWARD, RuleCounters, RuleVector, SetTable, Told};
use xrouter::time::Instant;
use xrouter::wire::Family;

const PORTS: [&str; 2] = ["lan0", "wan0"];
/// MAC addresses of the router's two ports.
const ROUTER_MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 2, 0]];
const NOW: Instant = Instant::from_secs(1);
/// Sets in one round.
const SETS: usize = 10;

/// One test at a time: packets of one come from one processor.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `program` and gives its output, or what it complained of.
fn attempt(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("writing to the child");
    let output = child.wait_with_output().expect("the child's end");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn run(program: &str, arguments: &[&str], input: &str) -> String {
    attempt(program, arguments, input)
        .unwrap_or_else(|error| panic!("{program} {arguments:?} failed: {error}\n{input}"))
}

/// Two namespaces and what is in them; gone when dropped.
struct Lab {
    router: String,
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
    fn new() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stem = format!("xrs{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
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

    fn inside<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        [&["netns", "exec", self.router.as_str()], words].concat()
    }

    fn tool(&self, family: Family, tool: &str, arguments: &[&str], input: &str) -> String {
        let program = match family {
            Family::V4 => format!("iptables-legacy-{tool}"),
            Family::V6 => format!("ip6tables-legacy-{tool}"),
        };
        run("ip", &self.inside(&[&[program.as_str()], arguments].concat()), input)
    }

    fn ipset(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        attempt("ip", &self.inside(&[&["ipset"], arguments].concat()), input)
    }

    /// Sends the frames one after another, each into its port.
    fn send(&self, frames: &[(PortId, Vec<u8>)]) {
        std::thread::scope(|scope| {
            // A thread of its own, since it changes its namespace and its processor.
            scope.spawn(move || send_inside(&self.hosts, frames)).join().expect("the sender");
        });
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The link-layer address of an interface in this thread's namespace.
fn link(name: &str) -> LinkAddr {
    let all = nix::ifaddrs::getifaddrs().expect("interfaces");
    let mut links =
        all.filter(|entry| entry.interface_name == name).filter_map(|entry| entry.address?.as_link_addr().copied());
    links.next().expect("the interface")
}

fn send_inside(hosts: &str, frames: &[(PortId, Vec<u8>)]) {
    // One processor, so that packets stay in order.
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("processors");
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap_or(false)).expect("a processor");
    one.set(first).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &one).expect("one processor");
    let namespace = File::open(format!("/run/netns/{hosts}")).expect("the namespace");
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
    let fd =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll).expect("a socket");
    let links = [link("l0"), link("w0")];
    for (port, frame) in frames {
        sendto(fd.as_raw_fd(), frame, &links[port.index()], MsgFlags::empty()).expect("sending");
    }
}

/// Frames of the shapes that a router forwards, with what we read of them.
fn frames(shapes: &[Shape]) -> Vec<(PortId, Vec<u8>, Packet)> {
    let read = |(index, shape): (usize, &Shape)| {
        if shape.chain_lie != ChainLie::None {
            return None;
        }
        let port = if shape.outward { PortId::LAN } else { PortId::WAN };
        let frame = shape.frame(index as u16 + 1, ROUTER_MAC[port.index()]);
        let mut packet = Packet::parse(&frame, port, true).ok()?;
        packet.ttl -= 1;
        Some((port, frame, packet))
    };
    shapes.iter().enumerate().filter_map(read).collect()
}

/// `-m set` with random options, for the set's sides.
fn match_words(set: &SetText, name: String) -> BoxedStrategy<String> {
    let counted = set.create.contains("counters");
    let compare = (select(&["packets", "bytes"][..]), select(&["-eq", "-lt", "-gt", "!-eq"][..]), 0u64..12);
    let compare = proptest::option::of(compare).prop_map(move |compare| match compare.filter(|_| counted) {
        Some((what, "!-eq", number)) => format!(" ! --{what}-eq {number}"),
        Some((what, how, number)) => format!(" --{what}{how} {number}"),
        None => String::new(),
    });
    let flags = (
        select(&["", "", "! "][..]),
        select(&["", "", " --return-nomatch"][..]),
        select(&["", "", " ! --update-counters"][..]),
        select(&["", " ! --update-subcounters"][..]),
    );
    (sets::sides(set.dimension()), flags, compare)
        .prop_map(move |(sides, (bang, back, counts, below), compare)| {
            format!("-m set {bang}--match-set {name} {sides}{back}{counts}{below}{compare}")
        })
        .boxed()
}

/// `-j SET` that adds or deletes.
fn target_words(set: &SetText, name: String) -> BoxedStrategy<String> {
    let options = select(&["", " --exist", " --timeout 700", " --exist --timeout 0"][..]);
    (sets::sides(set.dimension()), options, select(&[true, true, true, false][..]))
        .prop_map(move |(sides, options, adds)| match adds {
            true => format!("-j SET --add-set {name} {sides}{options}"),
            false => format!("-j SET --del-set {name} {sides}"),
        })
        .boxed()
}

/// One round's sets and rules.
struct Round {
    sets: String,
    rules: String,
}

fn round(runner: &mut TestRunner, kinds: &'static [&'static str], v6: bool) -> Round {
    let (mut texts, mut lines) = (String::new(), Vec::new());
    let one = sets::set(kinds, v6);
    for index in 0..SETS {
        let set = pick(runner, &one);
        let name = format!("s{index}");
        texts += &set.text(&name);
        for _ in 0..2 {
            lines.push(format!("-A FORWARD {}", pick(runner, &match_words(&set, name.clone()))));
        }
        if index % 2 == 0 {
            let protocol = pick(runner, &select(&["", " -p tcp", " -p udp"][..]));
            lines.push(format!("-A FORWARD{protocol} {}", pick(runner, &target_words(&set, name.clone()))));
            lines.push(format!("-A FORWARD {}", pick(runner, &match_words(&set, name))));
        }
    }
    // A list of the first three, whatever they are.
    texts += "create l list:set counters\nadd l s0\nadd l s1\nadd l s2\n";
    for sides in ["src,dst,src", "dst,src,dst", "src,src,src"] {
        lines.push(format!("-A FORWARD -m set --match-set l {sides}"));
    }
    lines.push("-A FORWARD -m set --match-set l src,dst,dst ! --update-subcounters --packets-gt 20".to_owned());
    lines.push("-A FORWARD -p udp -j SET --add-set l src,dst,src".to_owned());
    lines.push("-A FORWARD -m set --match-set l src,dst,src --return-nomatch".to_owned());
    let rules = format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{}\nCOMMIT\n",
        lines.join("\n")
    );
    Round { sets: texts, rules }
}

fn pick<T: std::fmt::Debug>(runner: &mut TestRunner, strategy: &impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).expect("a value").current()
}

/// Rules with their counters.
fn counted(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.starts_with('[')).map(str::to_owned).collect()
}

/// What of a saved set can be compared: no hash's own numbers, and how long an element has left only as whether it expires.
fn comparable(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let (mut words, mut out) = (line.split(' '), Vec::new());
            while let Some(word) = words.next() {
                match word {
                    // ipset 7.17 prints a length behind it that it does not have.
                    "bitmask" => {
                        out.push(word);
                        out.extend(words.next().and_then(|mask| mask.split('/').next()));
                    }
                    "hashsize" | "bucketsize" | "initval" => _ = words.next(),
                    "timeout" if line.starts_with("add") => {
                        let forever = words.next() == Some("0");
                        out.push(if forever { "for-ever" } else { "for-a-while" });
                    }
                    word => out.push(word),
                }
            }
            out.join(" ")
        })
        .collect();
    lines.sort();
    lines
}

/// Fails with the lines that one side has and the other has not.
fn same(ours: &[String], kernels: &[String], about: &str) {
    let missing = |from: &[String], of: &[String]| {
        from.iter().filter(|line| !of.contains(line)).cloned().collect::<Vec<_>>().join("\n")
    };
    let (extra, lacking) = (missing(ours, kernels), missing(kernels, ours));
    assert!(ours == kernels, "ours alone:\n{extra}\nthe kernel's alone:\n{lacking}\n{about}");
}

/// Sends the packets through a chain of ours.
fn walk(
    vector: &RuleVector,
    chain: usize,
    counters: &mut RuleCounters,
    sent: &[(PortId, Vec<u8>, Packet)],
    now: Instant,
) {
    for (port, frame, packet) in sent {
        let (mut packet, mut frame) = (*packet, frame.clone());
        let mut context = Context {
            packet: &mut packet,
            frame: &mut frame,
            hook: Hook::Forward,
            in_port: *port,
            out_port: Some(PortId(1 - port.0)),
            out_mtu: 1500,
            info: CtInfo::New,
            status: CtStatus::default(),
            mark: 0,
            template: Template::DEFAULT,
            traced: false,
            now,
        };
        vector.evaluate(chain, &mut context, &mut Told::default(), counters);
    }
}

/// How much there was to compare.
#[derive(Default, Debug)]
struct Seen {
    rules_met: usize,
    rules_missed: usize,
    elements_added: usize,
    elements_deleted: usize,
}

impl Seen {
    fn count(&mut self, counted: &[String], before: &[String], after: &[String]) {
        let met = counted.iter().filter(|line| !line.starts_with("[0:0]")).count();
        self.rules_met += met;
        self.rules_missed += counted.len() - met;
        let words = |lines: &[String]| -> Vec<String> {
            lines.iter().map(|line| line.splitn(4, ' ').take(3).collect::<Vec<_>>().join(" ")).collect()
        };
        let (before, after) = (words(before), words(after));
        self.elements_added += after.iter().filter(|line| !before.contains(line)).count();
        self.elements_deleted += before.iter().filter(|line| !after.contains(line)).count();
    }
}

fn judge(lab: &Lab, family: Family, round: &Round, sent: &[(PortId, Vec<u8>, Packet)], seen: &mut Seen) {
    let Round { sets, rules } = round;
    lab.tool(family, "restore", &[], "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n");
    // The list holds the others. In the first round there is none.
    let _ = lab.ipset(&["destroy", "l"], "");
    lab.ipset(&["destroy"], "").expect("no sets left");
    lab.ipset(&["restore"], sets).unwrap_or_else(|error| panic!("{error}\n{sets}"));
    let table = Arc::new(SetTable::new([1, 2]));
    table.load("sets", sets, NOW).unwrap_or_else(|bad| panic!("{sets}\n{bad}"));
    let kernel = lab.ipset(&["save"], "").expect("saved sets");
    let before = comparable(&kernel);
    same(&comparable(&table.save(NOW)), &before, &format!("as loaded:\n{sets}"));
    // What the kernel prints, we read.
    SetTable::new([1, 2]).load("saved", &kernel, NOW).unwrap_or_else(|bad| panic!("{kernel}\n{bad}"));

    lab.tool(family, "restore", &[], rules);
    lab.send(&sent.iter().map(|(port, frame, _)| (*port, frame.clone())).collect::<Vec<_>>());
    let ruleset = rules::load_with_sets("random", rules, family, &PORTS, &table);
    let ruleset = ruleset.unwrap_or_else(|bad| panic!("{sets}{rules}\n{bad}"));
    let vector = RuleVector::compile(&ruleset);
    let mut counters = vector.counters();
    walk(&vector, FORWARD, &mut counters, sent, NOW);
    let counts = counted(&lab.tool(family, "save", &["-c", "-t", "filter"], ""));
    same(&counted(&rules::save(&ruleset, Some(&counters))), &counts, &format!("{sets}{rules}"));
    let after = comparable(&lab.ipset(&["save"], "").expect("saved sets"));
    same(&comparable(&table.save(NOW)), &after, &format!("after the packets:\n{sets}{rules}"));
    seen.count(&counts, &before, &after);
}

/// Random values, the same on every run unless XR_SEED says otherwise.
fn runner() -> TestRunner {
    let seed = std::env::var("XR_SEED").ok().and_then(|seed| seed.parse::<u64>().ok()).unwrap_or(1);
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// The types that this kernel has, out of those a generator knows.
fn kinds(lab: &Lab) -> &'static [&'static str] {
    let has = |kind: &&&str| {
        let range = match **kind {
            "bitmap:port" => "range 1-2",
            kind if kind.starts_with("bitmap") => "range 10.0.0.0/24",
            _ => "",
        };
        let made = lab.ipset(&["restore"], &format!("create probe {kind} {range}\n")).is_ok();
        let _ = lab.ipset(&["destroy", "probe"], "");
        made
    };
    let found: Vec<&'static str> = sets::COMMON.iter().chain(sets::RARE).filter(has).copied().collect();
    Vec::leak(found)
}

fn compare_with_kernel(version: Version, family: Family) {
    if !Uid::effective().is_root() {
        eprintln!("skipped: needs root, to make network namespaces");
        return;
    }
    let _alone = ALONE.lock();
    let lab = Lab::new();
    if let Err(why) = lab.ipset(&["list", "-name"], "") {
        eprintln!("skipped: no ipset here: {why}");
        return;
    }
    let kinds = kinds(&lab);
    eprintln!("this kernel has {}", kinds.join(", "));
    assert!(kinds.contains(&"hash:ip") && kinds.contains(&"hash:net"), "a kernel with ipset has these");
    let mut runner = runner();
    let shape = generator::shape(version);
    let rounds = std::env::var("XR_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(25);
    let (mut packets, mut seen) = (0, Seen::default());
    for _ in 0..rounds {
        let round = round(&mut runner, kinds, version == Version::V6);
        let shapes: Vec<Shape> = (0..200).map(|_| pick(&mut runner, &shape)).collect();
        let sent = frames(&shapes);
        packets += sent.len();
        judge(&lab, family, &round, &sent, &mut seen);
    }
    eprintln!("{rounds} rounds of {SETS} sets, {packets} packets: counters and sets as the kernel's: {seen:?}");
    assert!(seen.rules_met > rounds && seen.elements_added > rounds && seen.elements_deleted > 0, "{seen:?}");
}

#[test]
fn sets_are_the_kernels_v4() {
    compare_with_kernel(Version::V4, Family::V4);
}

#[test]
fn sets_are_the_kernels_v6() {
    compare_with_kernel(Version::V6, Family::V6);
}

/// Marks that elements give, and elements that expire, are added again and begin anew. The kernel's clock is asked, so seconds go by.
#[test]
fn marks_and_times_are_the_kernels() {
    if !Uid::effective().is_root() {
        eprintln!("skipped: needs root, to make network namespaces");
        return;
    }
    let _alone = ALONE.lock();
    let lab = Lab::new();
    if let Err(why) = lab.ipset(&["list", "-name"], "") {
        eprintln!("skipped: no ipset here: {why}");
        return;
    }
    const SETS: &str = "create m hash:net skbinfo\nadd m 10.1.0.0/30 skbmark 0x10/0xf0\nadd m 10.1.0.4 skbmark 0x25\n\
        add m 10.1.0.5 nomatch skbmark 0x70\ncreate n hash:ip skbinfo\nadd n 10.1.0.2 skbmark 0x11/0xf0\nadd n 10.1.0.5\n\
        create l list:set\nadd l n\nadd l m\n\
        create t hash:ip timeout 1\nadd t 10.1.0.3 timeout 5\nadd t 10.1.0.4 timeout 0\n\
        create e hash:ip timeout 3\nadd e 10.1.0.2\nadd e 10.1.0.3\ncreate j bitmap:ip,mac range 10.1.0.0/29 timeout 2\nadd j 10.1.0.3\n";
    let mut rules = String::from("*mangle\n:FORWARD ACCEPT [0:0]\n");
    for map in [
        "-j SET --map-set m src --map-mark",
        "-j SET --map-set l src --map-mark",
        "-j MARK --set-xmark 0x3f/0xffffffff",
    ] {
        rules += &format!("-A FORWARD {map}\n");
        for mark in ["0x0", "0x10", "0x11", "0x25", "0x35", "0x3f", "0x70"] {
            rules += &format!("-A FORWARD -m mark --mark {mark}\n");
        }
    }
    rules += "-A FORWARD -j SET --map-set n src --map-mark\n-A FORWARD -m mark --mark 0x1e\n-A FORWARD -m mark --mark 0x3f\n\
        -A FORWARD -m set --match-set t src\n-A FORWARD -m set --match-set e src\n-A FORWARD -m set --match-set j src,src\n\
        -A FORWARD -j SET --add-set t src\n-A FORWARD -j SET --add-set e src --exist --timeout 4\nCOMMIT\n";
    lab.ipset(&["restore"], SETS).expect("good sets");
    lab.tool(Family::V4, "restore", &[], &rules);
    let table = Arc::new(SetTable::new([1, 2]));
    table.load("sets", SETS, NOW).unwrap_or_else(|bad| panic!("{bad}"));
    let ruleset =
        rules::load_with_sets("rules", &rules, Family::V4, &PORTS, &table).unwrap_or_else(|bad| panic!("{bad}"));
    let vector = RuleVector::compile(&ruleset);
    let mut counters = vector.counters();
    let mut runner = runner();
    let shape = generator::shape(Version::V4);
    let begun = std::time::Instant::now();
    for pause in [0, 1500, 1000, 2000] {
        std::thread::sleep(Duration::from_millis(pause));
        let shapes: Vec<Shape> = (0..20).map(|_| pick(&mut runner, &shape)).collect();
        let sent: Vec<_> = frames(&shapes).into_iter().filter(|sent| sent.0 == PortId::LAN).collect();
        lab.send(&sent.iter().map(|(port, frame, _)| (*port, frame.clone())).collect::<Vec<_>>());
        walk(&vector, MANGLE_FORWARD, &mut counters, &sent, NOW + begun.elapsed().as_nanos() as u64);
        let kernel = counted(&lab.tool(Family::V4, "save", &["-c", "-t", "mangle"], ""));
        same(&counted(&rules::save(&ruleset, Some(&counters))), &kernel, &format!("after {pause} ms"));
    }
}
