//! Reloads end to end: the real binary on veth, with real programs at both ends while its rules change.

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::{Net, Place, Program, Router, Shape, eventually, privileged, random_file, sha256, text};

const SECOND: Duration = Duration::from_secs(1);
const ESTABLISHED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
const LAN_TO_WAN: &str = "-A FORWARD -i lan -o wan -m conntrack --ctstate NEW -j ACCEPT\n";

fn rules(net: &Net, forward: &str) -> String {
    let file = net.file("rules.v4");
    let text = format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n{forward}COMMIT\n");
    fs::write(&file, text).expect("a file");
    file.display().to_string()
}

fn script(net: &Net, place: Place, name: &str, words: &str) -> Program {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(name).display().to_string();
    let words: Vec<&str> = ["python3", &path].into_iter().chain(words.split(' ')).collect();
    net.start(place, &words)
}

fn says(program: &Program, word: &str) {
    eventually(10 * SECOND, word, || program.said().lines().any(|line| line == word));
}

fn stats(router: &Router) -> serde_json::Value {
    serde_json::from_str(&router.ask(&["stats", "-j"])).expect("stats -j prints JSON")
}

/// Packets that the rule with this in its text has counted.
fn counted(router: &Router, part: &str) -> u64 {
    let stats = stats(router);
    let rules = stats["rules"].as_array().expect("rules");
    let rule = rules.iter().find(|rule| {
        rule["family"] == 4 && rule["rule"] != 0 && rule["text"].as_str().is_some_and(|text| text.contains(part))
    });
    rule.and_then(|rule| rule["packets"].as_u64()).unwrap_or_else(|| panic!("no rule with {part}"))
}

/// Exit code, standard output, standard error of `xrouter reload`.
fn reload(router: &Router, words: &[&str]) -> (i32, String, String) {
    let output = router.verb(&[&["reload"], words].concat()).output().expect("the program starts");
    (output.status.code().expect("it exits by itself"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn no_packet_and_no_count_is_lost_while_rules_change_under_load() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let file = rules(&net, &format!("{ESTABLISHED}{LAN_TO_WAN}"));
    let echo = script(&net, Place::Wan, "load.py", "echo 9000");
    says(&echo, "ready");
    let server = script(&net, Place::Wan, "server.py", &format!("{} 80", net.file("web").display()));
    fs::create_dir_all(net.file("web")).expect("a folder");
    random_file(&net.file("web/file"), 200_000_000);
    net.wait_for_listener(Place::Wan, 80);
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file]);
    // The neighbours are known before anything is counted.
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    let accepted = || counted(&router, "ESTABLISHED") + counted(&router, "NEW");
    let (before, accepted_before) = (stats(&router), accepted());
    let mut load = script(&net, Place::Lan, "load.py", "send 10.2.0.2 9000 8 1");
    let copy = net.file("copy");
    let mut download = net.start(
        Place::Lan,
        &[
            "curl",
            "-sS",
            "--limit-rate",
            "20M",
            "--max-time",
            "60",
            "-o",
            &copy.display().to_string(),
            "http://10.2.0.2/file",
        ],
    );
    for round in 0..30 {
        let extra = match round % 3 {
            0 => String::new(),
            1 => "-A FORWARD -p tcp -m tcp --dport 81 -j DROP\n".to_owned(),
            _ => (1..2000).map(|n| format!("-A FORWARD -s 192.0.2.1/32 -p udp -m udp --dport {n} -j DROP\n")).collect(),
        };
        rules(&net, &format!("{extra}{ESTABLISHED}{LAN_TO_WAN}"));
        let (code, said, complaints) = reload(&router, &[]);
        assert_eq!((code, complaints.as_str()), (0, ""), "{said}");
        assert!(said.starts_with(&format!("policy {} is in force: ", round + 2)), "{said}");
        assert!(said.contains("; 0 of "), "a connection that may begin was ended: {said}");
        std::thread::sleep(SECOND / 10);
    }
    assert!(load.end(20 * SECOND).success() && download.end(60 * SECOND).success(), "{}", download.said());
    let said = load.said();
    let number = |at: usize| said.split_whitespace().nth(at).and_then(|n| n.parse::<u64>().ok()).expect("a number");
    let (sent, back) = (number(1), number(3));
    assert!(sent > 2000 && said.trim_end().ends_with("twice 0"), "{said}");
    assert_eq!(sent, back, "datagrams were lost; {}", router.ask(&["stats"]));
    assert_eq!(sha256(&copy), sha256(&net.file("web/file")));
    // Every packet forwarded was counted by one of the two rules that stayed all the time.
    let after = stats(&router);
    let sum = |stats: &serde_json::Value, key: &str| stats["workers"][0][key].as_u64().expect("a number");
    let forwarded = sum(&after, "forwarded") - sum(&before, "forwarded");
    assert!(forwarded > 2 * sent, "{forwarded} packets");
    assert_eq!(forwarded, accepted() - accepted_before);
    drop(server);
    router.stop();
}

#[test]
fn a_recheck_ends_exactly_the_connections_that_may_not_begin_any_more() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let file = rules(&net, &format!("{ESTABLISHED}{LAN_TO_WAN}"));
    let servers = ["5001", "5002"].map(|port| script(&net, Place::Wan, "talk.py", &format!("echo {port}")));
    for port in [5001, 5002] {
        net.wait_for_listener(Place::Wan, port);
    }
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file]);
    let session = |words: &str| {
        let program = script(&net, Place::Lan, "talk.py", &format!("session {words} 4"));
        says(&program, "open");
        program
    };
    let (stays, ends, six) = (session("10.2.0.2 5001"), session("10.2.0.2 5002"), session("fd02::2 5002"));
    rules(&net, &format!("{ESTABLISHED}-A FORWARD -i lan -p tcp -m tcp --dport 5001 --syn -j ACCEPT\n"));
    let (code, said, _) = reload(&router, &["--dry-run"]);
    assert!(
        code == 0 && said.contains("policy 1 stays in force") && said.contains("1 of 3 connections would be ended"),
        "{said}"
    );
    assert!(said.contains("- -A FORWARD -i lan -o wan") && said.contains("+ -A FORWARD -i lan -p tcp"), "{said}");
    let (code, said, _) = reload(&router, &["-j"]);
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        (code, &report["connections"], &report["ended"], &report["generation"]),
        (0, &3.into(), &1.into(), &2.into())
    );
    let table = router.ask(&["conntrack", "-L", "-f", "ipv4"]);
    assert!(table.contains("dport=5001 ") && !table.contains("dport=5002 "), "{table}");
    assert!(router.ask(&["conntrack", "-L", "-f", "ipv6"]).contains("dport=5002 "));
    says(&stays, "alive");
    says(&six, "alive");
    says(&ends, "lost");
    assert!(
        router.said().contains("reload: policy 2 is in force: 2 IPv4 rules (1 added, 1 removed)"),
        "{}",
        router.said()
    );
    // Flush ends the rest, keep ends nothing.
    let (code, said, _) = reload(&router, &["--established", "keep"]);
    assert!(code == 0 && said.contains("connections stay (keep)"), "{said}");
    assert!(router.ask(&["conntrack", "-L"]).contains("dport=5001 "));
    let (code, _, _) = reload(&router, &["--established", "flush"]);
    assert_eq!((code, router.ask(&["conntrack", "-L"]).as_str()), (0, ""));
    drop(servers);
    router.stop();
}

#[test]
fn a_wrong_file_leaves_everything_as_it_is() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let file = rules(&net, &format!("{ESTABLISHED}{LAN_TO_WAN}"));
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file]);
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    let before = (counted(&router, "NEW"), router.ask(&["conntrack", "-L"]).lines().count());
    rules(&net, "-A FORWARD -j NOWHERE\n-A FORWARD -p tcp --dprot 80 -j ACCEPT\n");
    for how in [&[][..], &["--dry-run"], &["--established", "flush"]] {
        let (code, said, complaints) = reload(&router, how);
        assert_eq!((code, said.as_str()), (2, ""), "{complaints}");
        for part in ["NOWHERE", "--dprot", "rules.v4:5:", "rules.v4:6:"] {
            assert!(complaints.contains(part), "no {part} in:\n{complaints}");
        }
    }
    let after = (counted(&router, "NEW"), router.ask(&["conntrack", "-L"]).lines().count());
    assert_eq!((stats(&router)["policy_generation"].as_u64(), after), (Some(1), before));
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    // A dry run is no reload.
    assert_eq!(stats(&router)["reloads_refused"].as_u64(), Some(2));
    assert!(router.said().contains("reload: refused, and the rules are as before"), "{}", router.said());
    router.stop();
}

#[test]
fn a_hangup_reloads_and_systemd_is_told() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let file = rules(&net, &format!("{ESTABLISHED}{LAN_TO_WAN}"));
    let socket = UnixDatagram::bind(net.file("notify")).expect("a socket");
    socket.set_read_timeout(Some(5 * SECOND)).expect("a timeout");
    let hear = || {
        let mut message = [0u8; 512];
        let length = socket.recv(&mut message).expect("a word for systemd");
        text(&message[..length])
    };
    let config = net.file("xrouter.toml");
    fs::write(&config, "poll = \"adaptive\"\n[conntrack]\nnf_conntrack_udp_timeout = 30\n").expect("a file");
    let mut command = Router::command(&net, &["--config", &config.display().to_string(), "--rules", &file]);
    let mut router = Router::start_command(&net, command.env("NOTIFY_SOCKET", net.file("notify")));
    assert!(hear().contains("READY=1"));
    rules(&net, ESTABLISHED);
    fs::write(&config, "poll = \"busy\"\n[conntrack]\nnf_conntrack_udp_timeout = 31\n").expect("a file");
    router.program().signal(Signal::SIGHUP);
    let word = hear();
    assert!(word.contains("RELOADING=1") && word.contains("MONOTONIC_USEC="), "{word}");
    assert!(hear().contains("READY=1"));
    assert_eq!(stats(&router)["policy_generation"].as_u64(), Some(2));
    assert!(!net.pings(Place::Lan, "10.2.0.2"), "the new rules let nothing begin");
    assert_eq!(router.ask(&["sysctl", "-n", "nf_conntrack_udp_timeout"]), "31\n");
    assert!(router.said().contains("`poll` is another in the configuration now"), "{}", router.said());
    // A wrong file is told to the log, for want of anybody else.
    rules(&net, "-A FORWARD -j NOWHERE\n");
    router.program().signal(Signal::SIGHUP);
    assert!(hear().contains("RELOADING=1"));
    let word = hear();
    assert!(word.contains("READY=1") && word.contains("as before"), "{word}");
    eventually(3 * SECOND, "the report", || router.said().contains("NOWHERE"));
    assert_eq!(stats(&router)["policy_generation"].as_u64(), Some(2));
    router.stop();
}

/// Whether one ping from inside is answered.
fn one_ping(net: &Net) -> bool {
    net.run(Place::Lan, "ping -c 1 -W 1 10.2.0.2").status.success()
}

/// Pings that are answered, up to the first that is not.
fn pings_in_a_row(net: &Net) -> usize {
    (0..10).take_while(|_| one_ping(net)).count()
}

/// A reload with these rules, which must be done.
fn reload_with(net: &Net, router: &Router, forward: &str, how: &[&str]) {
    rules(net, forward);
    let (code, said, complaints) = reload(router, how);
    assert_eq!(code, 0, "{said}{complaints}");
}

const ANSWERS: &str = "-A FORWARD -i wan -j ACCEPT\n";

#[test]
fn a_list_of_recent_lives_as_long_as_rules_name_it() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let knock = "-A FORWARD -p udp -m udp --dport 9 -m recent --set --name guests -j DROP\n";
    let named = format!("{ANSWERS}{knock}-A FORWARD -p icmp -m recent --rcheck --name guests -j ACCEPT\n");
    let file = rules(&net, &named);
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file]);
    let knocks = || {
        let mut command = net.command(Place::Lan, "bash");
        assert!(command.args(["-c", "echo hello > /dev/udp/10.2.0.2/9"]).status().expect("bash starts").success());
        eventually(5 * SECOND, "the knock counted", || counted(&router, "--set") > 0);
    };
    assert!(!one_ping(&net), "no guest yet");
    knocks();
    assert!(one_ping(&net));
    // Rules that stay still name it, and rules that come find it.
    reload_with(&net, &router, &named, &[]);
    assert!(one_ping(&net));
    let later =
        format!("{ANSWERS}{knock}-A FORWARD -p icmp -m recent --rcheck --seconds 3600 --name guests -j ACCEPT\n");
    reload_with(&net, &router, &later, &[]);
    assert!(one_ping(&net), "found by its name");
    // A dry run forgets nothing.
    reload_with(&net, &router, ANSWERS, &["--dry-run"]);
    assert!(one_ping(&net));
    reload_with(&net, &router, &named, &[]);
    assert!(one_ping(&net));
    // No rule names it: it is gone, and another one begins empty.
    reload_with(&net, &router, ANSWERS, &[]);
    assert!(!one_ping(&net));
    reload_with(&net, &router, &named, &[]);
    assert!(!one_ping(&net), "a list that no rule named was kept");
    knocks();
    assert!(one_ping(&net));
    router.stop();
}

#[test]
fn a_table_of_hashlimit_lives_as_long_as_rules_name_it() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let limited = |burst: u32, more: &str| {
        format!(
            "{ANSWERS}-A FORWARD -p icmp -m hashlimit --hashlimit-upto 1/hour --hashlimit-burst {burst} \
             --hashlimit-mode srcip --hashlimit-name few{more} -j ACCEPT\n"
        )
    };
    let file = rules(&net, &limited(2, ""));
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file]);
    assert_eq!(pings_in_a_row(&net), 2);
    for (forward, how) in [
        (limited(2, ""), &[][..]),
        (limited(2, " -m comment --comment \"another rule\""), &[]),
        (limited(5, ""), &["--dry-run"]),
        (ANSWERS.to_owned(), &["--dry-run"]),
        (limited(2, ""), &[]),
    ] {
        reload_with(&net, &router, &forward, how);
        assert_eq!(pings_in_a_row(&net), 0, "what was used up is back after {how:?} with\n{forward}");
    }
    reload_with(&net, &router, ANSWERS, &[]);
    // A dry run makes no table that later rules would find.
    reload_with(&net, &router, &limited(1, ""), &["--dry-run"]);
    reload_with(&net, &router, &limited(3, ""), &[]);
    assert_eq!(pings_in_a_row(&net), 3, "not a new table");
    router.stop();
}

#[test]
fn a_dry_run_leaves_limits_and_sets_as_they_are() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let sets = net.file("sets");
    let holding = |addr: &str| {
        let text = format!("create seen hash:ip family inet hashsize 64 maxelem 64\nadd seen {addr}\n");
        fs::write(&sets, text).expect("a file");
    };
    holding("192.0.2.1");
    let limited = "-A FORWARD -p icmp -m limit --limit 1/hour --limit-burst 2 -j ACCEPT\n";
    let adds = "-A FORWARD -p icmp -j SET --add-set seen dst\n";
    let forward = format!("{ANSWERS}{adds}{limited}");
    let file = rules(&net, &forward);
    let path = sets.display().to_string();
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file, "--sets", &path]);
    assert_eq!(pings_in_a_row(&net), 2);
    let saved = || {
        let text = router.ask(&["sets", "--save"]);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = saved();
    assert!(before.iter().any(|line| line == "add seen 10.2.0.2"), "{before:?}");
    holding("192.0.2.2");
    for (forward, how) in [
        (forward.as_str(), &["--dry-run"][..]),
        (ANSWERS, &["--dry-run"]),
        (forward.as_str(), &["--dry-run", "--sets"]),
    ] {
        reload_with(&net, &router, forward, how);
        assert_eq!(saved(), before, "{how:?}");
        assert_eq!(pings_in_a_row(&net), 0, "what was used up is back after {how:?}");
    }
    reload_with(&net, &router, &forward, &[]);
    assert_eq!(pings_in_a_row(&net), 0, "the rule stays");
    assert!(saved().iter().any(|line| line == "add seen 192.0.2.2"), "the file's lines have changed");
    router.stop();
}

#[test]
fn connbytes_counts_from_the_start_or_needs_a_restart() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let counting =
        "-A FORWARD -m connbytes --connbytes 0:1000000 --connbytes-dir both --connbytes-mode bytes -j ACCEPT\n";
    let acct = |router: &Router| router.ask(&["sysctl", "-n", "nf_conntrack_acct"]);
    let file = rules(&net, counting);
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file]);
    assert_eq!(acct(&router), "1\n");
    assert!(router.said().contains("nf_conntrack_acct = 1: a rule asks with `-m connbytes`"), "{}", router.said());
    assert!(one_ping(&net), "the bytes of its connection are counted");
    // Where they are counted, such rules may come and go.
    reload_with(&net, &router, ANSWERS, &[]);
    reload_with(&net, &router, counting, &[]);
    assert!(one_ping(&net));
    router.stop();

    rules(&net, &format!("{ESTABLISHED}{LAN_TO_WAN}"));
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file]);
    assert_eq!(acct(&router), "0\n");
    assert!(one_ping(&net));
    let before = (counted(&router, "NEW"), router.ask(&["conntrack", "-L"]).lines().count());
    rules(&net, counting);
    for how in [&[][..], &["--dry-run"], &["--established", "flush"]] {
        let (code, said, complaints) = reload(&router, how);
        assert_eq!((code, said.as_str()), (2, ""), "{how:?}: {complaints}");
        for part in ["-m connbytes", "nf_conntrack_acct", "restart"] {
            assert!(complaints.contains(part), "no {part} in:\n{complaints}");
        }
    }
    let after = (counted(&router, "NEW"), router.ask(&["conntrack", "-L"]).lines().count());
    assert_eq!((stats(&router)["policy_generation"].as_u64(), after), (Some(1), before));
    assert_eq!(acct(&router), "0\n");
    assert!(one_ping(&net));
    router.stop();
}

/// Runs a router on a terminal, has it reload, and takes the terminal away.
const ON_A_TERMINAL: &str = "
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
said = b''
def hear(word):
    global said
    while word not in said:
        said += os.read(fd, 1000)
hear(b'xrouter ready')
os.kill(pid, 1)
hear(b'policy 2 is in force')
os.close(fd)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

#[test]
fn a_hangup_because_the_terminal_is_gone_ends_the_run() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let mut command = net.command(Place::Router, "python3");
    command.args(["-c", ON_A_TERMINAL, env!("CARGO_BIN_EXE_xrouter"), "--lan", "lan", "--wan", "wan"]);
    let mut program = Program::start(command.arg("--control").arg(net.file("control")).args(["--poll", "adaptive"]));
    let status = program.end(20 * SECOND);
    assert_eq!((status.code(), program.said().trim()), (Some(0), "0"));
    assert!(!net.ip(Place::Router, "link show lan").contains("xdp"), "the interfaces are given back");
}
