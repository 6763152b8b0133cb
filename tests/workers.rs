//! Several workers end to end: the real router on veths of four queues, two workers, real programs at both ends. The kernel
//! spreads what the hosts send over the queues by its own hash, so most packets arrive at a worker that does not have their
//! connection. (`tests/nat_programs.rs` runs whole with two workers too.)

mod support;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use support::{Net, Place, Program, Router, Shape, eventually, must, privileged, random_file, sha256};

const RULES: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wan -j MASQUERADE\nCOMMIT\n\
    *filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i lan -p udp --dport 7777 -m limit --limit 1/hour --limit-burst 20 -j ACCEPT\n\
    -A FORWARD -i lan -p udp --dport 7777 -j DROP\n\
    -A FORWARD -i lan -p tcp --syn --dport 8000 -m connlimit --connlimit-above 5 -j REJECT --reject-with tcp-reset\n\
    -A FORWARD -i lan -j ACCEPT\nCOMMIT\n";

fn net() -> Net {
    Net::new(Shape { queues: 4, ..Shape::default() })
}

fn router(net: &Net, words: &[&str]) -> Router {
    let file = net.file("rules");
    std::fs::write(&file, RULES).expect("a file for the rules");
    let file = file.display().to_string();
    let mut all = vec!["--workers", "2", "--poll", "adaptive", "--rules", file.as_str()];
    all.extend(words);
    Router::start(net, &all)
}

fn web_server(net: &Net, port: u16) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/server.py").display().to_string();
    let folder = net.file("web");
    std::fs::create_dir_all(&folder).expect("a folder");
    let server = net.start(Place::Wan, &["python3", &script, &folder.display().to_string(), &port.to_string()]);
    net.wait_for_listener(Place::Wan, port);
    server
}

fn stats(router: &Router) -> serde_json::Value {
    serde_json::from_str(&router.ask(&["stats", "-j"])).expect("stats -j prints JSON")
}

/// A counter of each worker.
fn of_each(router: &Router, name: &str) -> Vec<u64> {
    let stats = stats(router);
    stats["workers"].as_array().expect("workers").iter().map(|worker| worker[name].as_u64().expect("a count")).collect()
}

fn drops(router: &Router, reason: &str) -> u64 {
    let stats = stats(router);
    let of = |worker: &serde_json::Value| worker["drops"][reason].as_u64().unwrap_or(0);
    stats["workers"].as_array().expect("workers").iter().map(of).sum()
}

#[test]
fn two_workers_share_the_work_and_hand_over_what_is_not_theirs() {
    if !privileged() {
        return;
    }
    let net = net();
    let _server = web_server(&net, 80);
    random_file(&net.file("web/file"), 20_000_000);
    let sum = sha256(&net.file("web/file"));
    let router = router(&net, &[]);
    assert!(router.said().contains("cores=") && router.said().contains("queues=4"), "{}", router.said());
    assert!(net.pings(Place::Lan, "10.2.0.2") && net.pings(Place::Lan, "fd02::2"));
    for at in 0..8 {
        let host = if at % 2 == 0 { "10.2.0.2" } else { "[fd02::2]" };
        let into = net.file("copy");
        net.must(Place::Lan, &format!("curl -sS --max-time 60 -o {} http://{host}/file", into.display()));
        assert_eq!(sha256(&into), sum, "what came through is not what was sent");
    }
    let many = "for n in $(seq 200); do curl -s -o /dev/null --max-time 20 http://10.2.0.2/ || echo failed; done";
    let said = must(net.command(Place::Lan, "sh").args(["-c", many]));
    assert!(!said.contains("failed"), "{said}");
    let (forwarded, given, taken) =
        (of_each(&router, "forwarded"), of_each(&router, "handed_over"), of_each(&router, "taken_over"));
    assert!(forwarded.iter().all(|count| *count > 200), "{forwarded:?}");
    assert!(given.iter().all(|count| *count > 100), "{given:?}");
    assert_eq!(given[0] + given[1], taken[0] + taken[1]);
    // All connections are listed, and one is found and ended wherever it is.
    let listed = router.ask(&["conntrack", "-L", "-p", "tcp"]);
    assert!(listed.lines().filter(|line| line.contains("TIME_WAIT")).count() > 100, "{listed}");
    router.ask(&["conntrack", "-D", "-p", "tcp"]);
    let left = router.ask(&["conntrack", "-L", "-p", "tcp"]);
    assert!(!left.contains("tcp "), "{left}");
    router.stop();
}

/// What Linux counts for the whole router is counted for the whole router.
#[test]
fn limits_hold_over_all_workers() {
    if !privileged() {
        return;
    }
    let net = net();
    let router = router(&net, &[]);
    // 20 tokens in all, for flows that live at either worker.
    let send = "import socket\nfor n in range(200):\n    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n    \
                s.sendto(b'x', ('10.2.0.2', 7777))\n";
    must(net.command(Place::Lan, "python3").args(["-c", send]));
    eventually(Duration::from_secs(5), "all datagrams are decided", || drops(&router, "rule_drop") == 180);
    // Five connections at a time, wherever they live; one more when one has closed.
    let _sink = net.start(Place::Wan, &["python3", "-m", "http.server", "8000"]);
    net.wait_for_listener(Place::Wan, 8000);
    let open = "import socket\nheld = []\nrefused = 0\nfor n in range(40):\n    s = socket.socket()\n    s.settimeout(5)\n    try:\n        \
                s.connect(('10.2.0.2', 8000))\n        held.append(s)\n    except ConnectionRefusedError:\n        refused += 1\n\
                print(len(held), refused)\n";
    assert_eq!(must(net.command(Place::Lan, "python3").args(["-c", open])).trim(), "5 35");
    router.stop();
}

#[test]
fn a_reload_under_traffic_loses_nothing() {
    if !privileged() {
        return;
    }
    let net = net();
    let _server = web_server(&net, 80);
    random_file(&net.file("web/file"), 100_000_000);
    let router = router(&net, &[]);
    let into = net.file("copy").display().to_string();
    let mut download =
        net.start(Place::Lan, &["curl", "-sS", "--limit-rate", "40M", "-o", &into, "http://10.2.0.2/file"]);
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(300));
        router.ask(&["reload"]);
    }
    assert!(download.end(Duration::from_secs(30)).success());
    assert_eq!(sha256(&net.file("copy")), sha256(&net.file("web/file")));
    assert!(stats(&router)["policy_generation"].as_u64() > Some(5));
    router.stop();
}

/// The thread of this name in a process.
fn thread_of(process: u32, name: &str) -> u32 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("a process that runs");
    let mut numbers = tasks.map(|task| task.expect("a task").file_name().to_string_lossy().into_owned());
    let named = |number: &String| {
        let comm = std::fs::read_to_string(format!("/proc/{process}/task/{number}/comm")).unwrap_or_default();
        comm.trim().starts_with(name)
    };
    numbers.find(named).expect("such a thread").parse().expect("a number")
}

#[test]
fn a_worker_that_stalls_ends_the_run_with_its_name() {
    if !privileged() {
        return;
    }
    let net = net();
    let mut router = router(&net, &[]);
    let pid = stats(&router)["pid"].as_u64().expect("a pid") as u32;
    let worker = thread_of(pid, "worker-");
    // Held by ptrace (PTRACE_SEIZE, PTRACE_INTERRUPT): only this thread stands still.
    let hold = format!(
        "import ctypes, time\nc = ctypes.CDLL(None, use_errno=True)\n\
         assert c.ptrace(0x4206, {worker}, 0, 0) == 0\nassert c.ptrace(0x4207, {worker}, 0, 0) == 0\nprint('held', flush=True)\ntime.sleep(60)\n"
    );
    let holder = Program::start(Command::new("python3").args(["-c", &hold]));
    eventually(Duration::from_secs(5), "the thread is held", || holder.said().contains("held"));
    eventually(Duration::from_secs(12), "it is noticed", || router.said().contains("has not moved for 5 seconds"));
    // Who holds a thread has to let go of it before its process can be seen to have ended.
    drop(holder);
    let status = router.program().end(Duration::from_secs(10));
    assert_eq!(status.code(), Some(1), "{}", router.said());
    assert!(!net.ip(Place::Router, "link show lan").contains("xdp"), "the program is off the interface");
}
