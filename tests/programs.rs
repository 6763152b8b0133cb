//! Real programs through the real router, and what its connection table says of them: a session that is silent for longer
//! than its timeout, HTTP that keeps its connection, names, traceroute three ways, path MTU discovery through RELATED, an
//! SCTP association.
//!
//! Each test has a network of its own (`tests/support`). They run one at a time: the machine has few cores.

#[path = "support/far.rs"]
mod far;
#[allow(dead_code)] // the end-to-end tests use the rest
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use far::Far;
use support::{Net, Place, Program, Router, Shape, eventually, must, privileged, text};

/// `tests/support/talk.py` with these words.
fn talk(words: &str) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/talk.py").display().to_string();
    ["python3".to_owned(), script].into_iter().chain(words.split(' ').map(str::to_owned)).collect()
}

fn start(net: &Net, place: Place, words: &str) -> Program {
    let words = talk(words);
    net.start(place, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Runs these on the inside, all at once; what each says to its end, in words.
fn all_say(net: &Net, wanted: &[(&str, &str)]) {
    let mut programs: Vec<Program> = wanted.iter().map(|(words, _)| start(net, Place::Lan, words)).collect();
    for (program, (words, wanted)) in programs.iter_mut().zip(wanted) {
        let status = program.end(Duration::from_secs(20));
        let said = program.said();
        assert!(status.success(), "{words}: {status}\n{said}");
        assert_eq!(said.split_whitespace().collect::<Vec<_>>().join(" "), *wanted, "{words}");
    }
}

/// A router with this `[conntrack]` table.
fn router(net: &Net, conntrack: &str) -> Router {
    let file = net.file("xrouter.toml");
    fs::write(&file, format!("poll = \"adaptive\"\n[conntrack]\n{conntrack}\n")).expect("a file");
    Router::start(net, &["--config", &file.display().to_string()])
}

/// The one line of the table with all these words.
fn entry(router: &Router, words: &[&str]) -> String {
    let table = router.ask(&["conntrack", "-L"]);
    let found: Vec<&str> = table.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect();
    assert_eq!(found.len(), 1, "{words:?} in\n{table}");
    found[0].to_owned()
}

/// Seconds that an entry has left.
fn seconds(line: &str) -> u32 {
    line.split_whitespace().nth(2).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

const SHORT: &str = "nf_conntrack_tcp_timeout_established = 2\n\
     nf_conntrack_tcp_timeout_unacknowledged = 2\nnf_conntrack_tcp_timeout_max_retrans = 2";

#[test]
fn a_silent_session_outlives_its_entry_if_it_may_be_picked_up() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _server = start(&net, Place::Wan, "echo 2222");
    net.wait_for_listener(Place::Wan, 2222);
    let loose = router(&net, SHORT);
    // The client speaks first: its segment is NEW from the inside, which the rules allow. The server speaks first: NEW from
    // outside, which they do not; within the time it is heard.
    all_say(
        &net,
        &[
            ("session 10.2.0.2 2222 4", "open alive"),
            ("session fd02::2 2222 4", "open alive"),
            ("listen 10.2.0.2 2222 4", "deaf"),
            ("listen 10.2.0.2 2222 1", "heard"),
        ],
    );
    loose.stop();

    let strict = router(&net, &format!("{SHORT}\nnf_conntrack_tcp_loose = false"));
    // What keeps a session alive keeps its entry.
    all_say(&net, &[("session 10.2.0.2 2222 4", "open lost"), ("session 10.2.0.2 2222 4 1", "open alive")]);
    strict.stop();
}

#[test]
fn a_silent_session_has_five_days() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _server = start(&net, Place::Wan, "echo 2222");
    net.wait_for_listener(Place::Wan, 2222);
    let router = router(&net, "nf_conntrack_tcp_loose = false");
    let client = start(&net, Place::Lan, "session 10.2.0.2 2222 2");
    eventually(Duration::from_secs(5), "an open session", || client.said().contains("open"));
    std::thread::sleep(Duration::from_secs(1));
    let line = entry(&router, &["tcp ", "dport=2222", "ESTABLISHED", "[ASSURED]"]);
    assert!((431_990..=432_000).contains(&seconds(&line)), "{line}");
    eventually(Duration::from_secs(5), "an answer", || client.said().contains("alive"));
    // The client has gone, and closed.
    eventually(Duration::from_secs(5), "TIME_WAIT", || {
        let line = entry(&router, &["tcp ", "dport=2222"]);
        line.contains("TIME_WAIT") || line.contains("CLOSE_WAIT") || line.contains("LAST_ACK")
    });
    router.stop();
}

#[test]
fn http_keeps_its_connection() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let folder = net.file("web");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("page"), "hello").expect("a file");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/server.py").display().to_string();
    let _server = net.start(Place::Wan, &["python3", &script, &folder.display().to_string(), "8080"]);
    net.wait_for_listener(Place::Wan, 8080);
    let router = router(&net, "nf_conntrack_acct = true");
    let url = "http://10.2.0.2:8080/page";
    let said = net.must(Place::Lan, &format!("curl -sS --max-time 20 --rate 60/m {url} {url} {url} {url}"));
    assert_eq!(said, "hello".repeat(4));
    let line = entry(&router, &["tcp ", "dport=8080", "[ASSURED]"]);
    let packets = line.split("packets=").nth(1).and_then(|rest| rest.split(' ').next());
    let packets: u32 = packets.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{line}"));
    assert!(packets >= 4 + 3, "four requests in one connection: {line}");
    router.stop();
}

#[test]
fn names_are_answered_and_closed_ports_say_so() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let server = start(&net, Place::Wan, "names 53");
    eventually(Duration::from_secs(5), "a name server", || server.said().contains("ready"));
    let router = router(&net, "");
    let ask = |server: &str, port: u32| {
        text(&net.run(Place::Lan, &format!("dig +tries=1 +time=3 +short -p {port} @{server} a.test A")).stdout)
    };
    assert_eq!(ask("10.2.0.2", 53).trim(), "192.0.2.7");
    let line = entry(&router, &["udp ", "dst=10.2.0.2", "dport=53 "]);
    assert!(!line.contains("UNREPLIED") && (25..=30).contains(&seconds(&line)), "{line}");
    // Nobody listens: the error is RELATED, so it comes at once.
    let started = std::time::Instant::now();
    let said = ask("10.2.0.2", 5353);
    assert!(said.contains("connection refused") && started.elapsed() < Duration::from_secs(2), "{said}");
    let line = entry(&router, &["udp ", "dport=5353 "]);
    assert!(line.contains("[UNREPLIED]"), "an error is no reply: {line}");
    router.stop();
}

#[test]
fn traceroute_sees_the_router_and_the_host() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _server = start(&net, Place::Wan, "echo 80");
    net.wait_for_listener(Place::Wan, 80);
    let router = router(&net, "");
    for (router, host) in [("10.1.0.1", "10.2.0.2"), ("fd01::1", "fd02::2")] {
        for how in ["", "-I", "-T -p 80", "-T -p 81"] {
            // The router says time exceeded once a second at most after the first few. Up to five tries: when the error comes
            // in on another processor, traceroute may have read it before the kernel (raw_err) sets the socket's error,
            // which then stays; it sees only that and never reads the answers, which are there.
            let try_it = || net.must(Place::Lan, &format!("traceroute -n -q 1 -N 1 -w 2 -m 4 {how} {host}"));
            let hops = |said: &str| -> Vec<String> {
                said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
            };
            let mut said = try_it();
            for _ in 0..4 {
                if hops(&said) == [router, host] {
                    break;
                }
                said = try_it();
            }
            assert_eq!(hops(&said), [router, host], "traceroute {how}:\n{said}");
        }
    }
    router.stop();
}

#[test]
fn the_path_mtu_is_found_through_related() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape { unfinished_checksums: false, ..Shape::default() });
    let far = Far::new(&net);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/server.py").display().to_string();
    let folder = net.file("web");
    fs::create_dir_all(&folder).expect("a folder");
    let mut server = Command::new("ip");
    server.args(["netns", "exec", &far.name, "python3", &script, &folder.display().to_string(), "8080"]);
    let _server = Program::start(&mut server);
    eventually(Duration::from_secs(10), "a web server", || {
        must(Command::new("ip").args(["netns", "exec", &far.name, "ss", "-Hltn"])).contains(":8080 ")
    });
    let body = net.file("body");
    fs::write(&body, vec![7u8; 200_000]).expect("a file");
    let upload = format!("curl -sS --max-time 6 -T {} http://10.3.0.2:8080/x", body.display());

    // Without RELATED the host never hears that its segments are too long.
    let deaf = net.file("deaf.v4");
    let policy = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
                -A FORWARD -i lan -o wan -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n";
    fs::write(&deaf, policy).expect("a file");
    let without = Router::start(&net, &["--poll", "adaptive", "--rules", &deaf.display().to_string()]);
    net.must(Place::Lan, "sysctl -qw net.ipv4.tcp_mtu_probing=0");
    assert!(!net.run(Place::Lan, &upload).status.success(), "an upload through a black hole");
    without.stop();

    let with = router(&net, "");
    let sum = net.must(Place::Lan, &upload);
    assert_eq!(sum, support::sha256(&body));
    let route = net.ip(Place::Lan, "route get 10.3.0.2");
    assert!(route.contains("mtu 1300"), "{route}");
    let said = text(&net.run(Place::Lan, "ping -c 1 -W 1 -M do -s 1400 10.3.0.2").stderr);
    assert!(said.contains("mtu=1300"), "{said}");
    with.stop();
}

#[test]
fn an_sctp_association_is_followed() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let server = start(&net, Place::Wan, "sctp-server");
    eventually(Duration::from_secs(5), "a server", || server.said().contains("ready"));
    let router = router(&net, "");
    let client = start(&net, Place::Lan, "sctp-client 10.2.0.2");
    eventually(Duration::from_secs(5), "an association", || client.said().contains("open"));
    let line = entry(&router, &["sctp ", "ESTABLISHED", "sport=4000 dport=5000", "[ASSURED]"]);
    assert!((200..=210).contains(&seconds(&line)), "{line}");
    eventually(Duration::from_secs(5), "its end", || client.said().contains("closed"));
    assert_eq!(client.said().lines().collect::<Vec<_>>(), ["1 2", "10 11", "0 3", "open", "7 8", "closed"]);
    router.stop();
}
