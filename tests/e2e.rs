//! End to end: the real binary through real AF_XDP sockets on veth, between namespaces, with real programs at both ends.
//!
//! Each test has a network of its own (`tests/support`). They run one at a time: the machine has few cores.

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::{Net, Place, Program, Router, Shape, eventually, must, privileged, random_file, sha256, text};

const SECOND: Duration = Duration::from_secs(1);
/// Size of the files that go through the router.
const FILE_SIZE: u64 = 100_000_000;

/// A web server in a namespace, giving and taking files of the test's folder.
fn web_server(net: &Net, place: Place, port: u16) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/server.py");
    let folder = net.file("web");
    fs::create_dir_all(&folder).expect("a folder");
    let (script, folder, port_text) = (script.display().to_string(), folder.display().to_string(), port.to_string());
    let server = net.start(place, &["python3", &script, &folder, &port_text]);
    net.wait_for_listener(place, port);
    server
}

fn download(net: &Net, from: &str) {
    let into = net.file("copy");
    net.must(Place::Lan, &format!("curl -sS --max-time 60 -o {} http://{from}/file", into.display()));
    assert_eq!(sha256(&into), sha256(&net.file("web/file")), "what came through is not what was sent");
}

fn upload(net: &Net, to: &str) {
    let file = net.file("web/file");
    let sum = net.must(Place::Lan, &format!("curl -sS --max-time 60 -T {} http://{to}/copy", file.display()));
    assert_eq!(sum, sha256(&file), "what came through is not what was sent");
}

/// The lines of `ip link show` say whether an XDP program is attached.
fn has_xdp(net: &Net, port: &str) -> bool {
    net.ip(Place::Router, &format!("link show {port}")).contains("xdp")
}

fn stats(router: &Router) -> serde_json::Value {
    serde_json::from_str(&router.ask(&["stats", "-j"])).expect("stats -j prints JSON")
}

/// The packets the router has dropped, for whatever reason.
fn dropped(router: &Router) -> u64 {
    let workers = stats(router)["workers"].as_array().expect("workers").clone();
    workers.iter().flat_map(|w| w["drops"].as_object().expect("drops").values()).filter_map(|n| n.as_u64()).sum()
}

/// The datagrams that found the buffer of their socket full, in the client's namespace and in the server's
/// (`Udp: RcvbufErrors` of /proc/net/snmp).
fn unread_datagrams(net: &Net) -> u64 {
    let of = |place| {
        let table = net.must(place, "cat /proc/net/snmp");
        let udp = table.lines().rfind(|line| line.starts_with("Udp:")).expect("a line of UDP's counters");
        udp.split_whitespace().nth(5).and_then(|n| n.parse::<u64>().ok()).expect("RcvbufErrors")
    };
    of(Place::Lan) + of(Place::Wan)
}

#[test]
fn pings_pass_up_to_the_mtu() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let router = Router::start(&net, &["--poll", "adaptive"]);
    for destination in ["10.2.0.2", "fd02::2"] {
        assert!(net.pings(Place::Lan, destination), "no ping to {destination}; the router said:\n{}", router.said());
    }
    for size in [0, 1, 100, 1000, 1471, 1472] {
        net.must(Place::Lan, &format!("ping -c 2 -i 0.01 -W 1 -M do -s {size} 10.2.0.2"));
    }
    for size in [0, 1, 100, 1000, 1451, 1452] {
        net.must(Place::Lan, &format!("ping -c 2 -i 0.01 -W 1 -M do -s {size} fd02::2"));
    }
    router.stop();
}

#[test]
fn frames_longer_than_usual_pass_too() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    for port in ["lan", "wan"] {
        net.ip(Place::Router, &format!("link set {port} mtu 3000"));
    }
    for place in [Place::Lan, Place::Wan] {
        net.ip(place, "link set eth0 mtu 3000");
    }
    let router = Router::start(&net, &["--poll", "adaptive"]);
    for size in [1472, 1800, 2972] {
        net.must(Place::Lan, &format!("ping -c 2 -i 0.01 -W 1 -M do -s {size} 10.2.0.2"));
    }
    net.must(Place::Lan, "ping -c 2 -i 0.01 -W 1 -M do -s 2952 fd02::2");
    router.stop();
}

#[test]
fn log_lines_are_written_and_systemd_is_told() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let rules = net.file("log.v4");
    let policy = "*filter\n:FORWARD ACCEPT [0:0]\n\
                -A FORWARD -i lan -p icmp -m icmp --icmp-type 8 -j LOG --log-prefix \"PING: \"\nCOMMIT\n";
    fs::write(&rules, policy).expect("a file");
    let socket = UnixDatagram::bind(net.file("notify")).expect("a socket");
    socket.set_read_timeout(Some(5 * SECOND)).expect("a timeout");
    let mut command = Router::command(&net, &["--poll", "adaptive", "--rules", &rules.display().to_string()]);
    let router = Router::start_command(&net, command.env("NOTIFY_SOCKET", net.file("notify")));
    let mut message = [0u8; 256];
    let length = socket.recv(&mut message).expect("a word for systemd");
    assert!(text(&message[..length]).contains("READY=1"), "{}", text(&message[..length]));
    net.must(Place::Lan, "ping -c 1 -W 2 -s 56 10.2.0.2");
    let wanted = "SRC=10.1.0.2 DST=10.2.0.2 LEN=84 TOS=0x00 PREC=0x00 TTL=63";
    eventually(3 * SECOND, "the LOG line", || {
        let said = router.said();
        said.lines().any(|line| line.contains("PING: IN=lan OUT=wan MAC=") && line.contains(wanted))
    });
    router.stop();
}

#[test]
fn a_hundred_megabytes_arrive_whole_both_ways() {
    if !privileged() {
        return;
    }
    // The hosts leave their checksums unfinished, as veth's do by default: the router must finish them.
    let net = Net::new(Shape { queues: 2, ..Shape::default() });
    let _server = web_server(&net, Place::Wan, 80);
    random_file(&net.file("web/file"), FILE_SIZE);
    let router = Router::start(&net, &["--poll", "adaptive"]);
    download(&net, "10.2.0.2");
    upload(&net, "10.2.0.2");
    download(&net, "[fd02::2]");
    upload(&net, "[fd02::2]");
    router.stop();
}

#[test]
fn hosts_with_finished_checksums_are_served_too() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape { unfinished_checksums: false, ..Shape::default() });
    let _server = web_server(&net, Place::Wan, 80);
    random_file(&net.file("web/file"), FILE_SIZE / 10);
    let router = Router::start(&net, &["--poll", "busy"]);
    download(&net, "10.2.0.2");
    upload(&net, "[fd02::2]");
    router.stop();
}

#[test]
fn the_generic_mode_forwards_too() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    for place in [Place::Lan, Place::Wan] {
        // In generic mode nothing keeps a veth's peer from sending segments that it leaves to a NIC to cut up: far larger
        // than any frame on a wire.
        net.must(place, "ethtool -K eth0 tso off gso off");
    }
    let _server = web_server(&net, Place::Wan, 80);
    random_file(&net.file("web/file"), FILE_SIZE / 10);
    let router = Router::start(&net, &["--mode", "generic", "--poll", "adaptive"]);
    download(&net, "10.2.0.2");
    upload(&net, "10.2.0.2");
    router.stop();
}

#[test]
fn iperf3_streams_tcp_and_udp() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape { queues: 2, ..Shape::default() });
    let _server = net.start(Place::Wan, &["iperf3", "-s"]);
    net.wait_for_listener(Place::Wan, 5201);
    let router = Router::start(&net, &["--poll", "adaptive"]);
    let received = |words: &str| {
        // The server goes on ending one test for a moment after its client has left, and sends a new client away.
        for _ in 0..50 {
            let report = net.run(Place::Lan, words).stdout;
            let report: serde_json::Value = serde_json::from_slice(&report).expect("iperf3 -J prints JSON");
            match report["error"].as_str() {
                None => return report["end"].clone(),
                Some(error) if error.contains("busy") => thread::sleep(SECOND / 10),
                Some(error) => panic!("{words}: {error}"),
            }
        }
        panic!("{words}: the server stays busy");
    };
    for direction in ["", "-R"] {
        let end = received(&format!("iperf3 -J -c 10.2.0.2 -t 2 -P 2 {direction}"));
        let rate = end["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0);
        assert!(rate > 1e7, "TCP {direction}: {rate} bit/s");
        // What the receiver was too slow to read, its kernel counts; the rest of what is missing was lost on the way.
        let (unread, drops) = (unread_datagrams(&net), dropped(&router));
        let end = received(&format!("iperf3 -J -u -b 50M -l 1200 -c 10.2.0.2 -t 2 {direction}"));
        let packets = end["sum"]["packets"].as_f64().unwrap_or(0.0);
        let lost = end["sum"]["lost_packets"].as_f64().unwrap_or(packets);
        let (unread, drops) = (unread_datagrams(&net) - unread, dropped(&router) - drops);
        let said = format!("{lost} of {packets} packets lost, {unread} of them unread, {drops} dropped by the router");
        assert!(packets > 1000.0 && lost - (unread as f64) < packets * 0.05, "UDP {direction}: {said}");
    }
    router.stop();
}

/// Answers every line of a TCP connection with the same line, as a shell on the router would.
const ECHO_SERVER: &str = "
import socketserver
class H(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer(('10.1.0.1', 22), H).serve_forever()
";
const ECHO_CLIENT: &str = "
import socket, time
s = socket.create_connection(('10.1.0.1', 22), 5)
f = s.makefile('rwb', buffering=0)
for n in range(200):
    line = b'line %d %s\\n' % (n, b'x' * 500)
    f.write(line)
    assert f.readline() == line
    time.sleep(0.005)
print('all lines came back')
";

#[test]
fn the_host_is_reached_while_transit_flows() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _iperf = net.start(Place::Wan, &["iperf3", "-s"]);
    let _shell = net.start(Place::Router, &["python3", "-c", ECHO_SERVER]);
    net.wait_for_listener(Place::Wan, 5201);
    net.wait_for_listener(Place::Router, 22);
    let router = Router::start(&net, &["--poll", "adaptive"]);
    let mut transit = net.start(Place::Lan, &["iperf3", "-c", "10.2.0.2", "-t", "4"]);
    thread::sleep(SECOND / 2);
    let client = net.command(Place::Lan, "python3").args(["-c", ECHO_CLIENT]).output().expect("python3");
    assert!(client.status.success(), "the shell on the router: {}", text(&client.stderr));
    // The host answers pings, closed ports and traceroutes itself, on both its addresses.
    for address in ["10.1.0.1", "10.2.0.1", "fd01::1", "fd02::1"] {
        assert!(net.pings(Place::Lan, address), "no ping to the router's {address}");
    }
    let refused = net.run(Place::Lan, "curl -sS --max-time 3 http://10.1.0.1:81/");
    // curl's 7 is "failed to connect"; no answer at all would be 28, a timeout.
    assert_eq!(refused.status.code(), Some(7), "a closed port of the host: {}", text(&refused.stderr));
    // The host's own connections to the outside.
    let _server = web_server(&net, Place::Wan, 80);
    fs::write(net.file("web/small"), "hello").expect("a file");
    assert_eq!(net.must(Place::Router, "curl -sS --max-time 3 http://10.2.0.2/small"), "hello");
    assert_eq!(net.must(Place::Router, "curl -sS --max-time 3 http://[fd02::2]/small"), "hello");
    assert!(transit.end(10 * SECOND).success(), "transit: {}", transit.said());
    router.stop();
}

#[test]
fn the_outside_may_not_start() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _inside = web_server(&net, Place::Lan, 8080);
    let router = Router::start(&net, &["--poll", "adaptive"]);
    for destination in ["10.1.0.2", "[fd01::2]"] {
        let refused = net.run(Place::Wan, &format!("curl -sS --connect-timeout 2 http://{destination}:8080/"));
        assert!(!refused.status.success(), "a connection from outside went through");
    }
    assert!(!net.pings(Place::Wan, "10.1.0.2"), "a ping from outside went through");
    let drops = stats(&router).to_string();
    assert!(drops.contains("policy_drop") || drops.contains("rule_drop"), "no drop was counted: {drops}");
    router.stop();
}

#[test]
fn errors_are_told_to_senders() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    net.ip(Place::Router, "route add prohibit 10.62.0.0/16");
    net.ip(Place::Router, "link set wan mtu 1400");
    let router = Router::start(&net, &["--poll", "adaptive"]);
    let ping = |words: &str| text(&net.run(Place::Lan, &format!("ping -c 1 -W 2 {words}")).stdout);
    let said = ping("-t 1 10.2.0.2");
    assert!(said.contains("From 10.1.0.1") && said.contains("Time to live exceeded"), "{said}");
    let said = ping("-t 1 fd02::2");
    assert!(said.contains("From fd01::1") && said.contains("Time exceeded"), "{said}");
    let said = ping("10.60.0.1");
    assert!(said.contains("Destination Net Unreachable"), "{said}");
    let said = ping("10.62.0.1");
    assert!(said.contains("Packet filtered"), "{said}");
    let said = ping("-M do -s 1373 10.2.0.2");
    assert!(said.contains("Frag needed and DF set (mtu = 1400)"), "{said}");
    let said = ping("-M do -s 1353 fd02::2");
    assert!(said.contains("Packet too big: mtu=1400"), "{said}");
    router.stop();
}

#[test]
fn connections_counters_and_metrics_are_shown() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _server = web_server(&net, Place::Wan, 80);
    fs::write(net.file("web/small"), "hello").expect("a file");
    let router = Router::start(&net, &["--poll", "adaptive", "--metrics", "127.0.0.1:9630"]);
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    net.must(Place::Lan, "curl -sS --max-time 5 -o /dev/null http://10.2.0.2/small");
    let table = router.ask(&["conntrack", "-L"]);
    let icmp = table.lines().find(|line| line.starts_with("icmp "));
    assert!(icmp.is_some_and(|line| line.contains("src=10.1.0.2 dst=10.2.0.2 type=8 code=0")), "{table}");
    let tcp = table.lines().find(|line| line.starts_with("tcp "));
    let tcp = tcp.unwrap_or_else(|| panic!("no TCP connection in the table:\n{table}"));
    assert!(tcp.contains("dport=80") && tcp.contains("[ASSURED]"), "{table}");
    let stats = stats(&router);
    assert!(stats.is_object(), "{stats}");
    let metrics = net.must(Place::Router, "curl -sS --max-time 5 http://127.0.0.1:9630/metrics");
    assert!(metrics.lines().filter(|line| line.starts_with("# TYPE ")).count() > 5, "{metrics}");
    assert!(metrics.contains("xrouter"), "{metrics}");
    router.stop();
}

/// Fills the table from ten addresses: 300 one-way flows.
const UDP_FLOOD: &str = "
import socket, time
for n in range(300):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(('10.1.0.%d' % (100 + n % 10), 10000 + n))
    s.sendto(b'x', ('10.2.0.2', 4444))
    s.close()
    time.sleep(0.002)
";

#[test]
fn a_full_table_says_who_fills_it_and_open_connections_go_on() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    for host in 100..110 {
        net.ip(Place::Lan, &format!("address add 10.1.0.{host}/24 dev eth0"));
    }
    let config = net.file("small.toml");
    fs::write(&config, "[conntrack]\nnf_conntrack_max = 100\n").expect("a file");
    let _server = net.start(Place::Wan, &["iperf3", "-s"]);
    net.wait_for_listener(Place::Wan, 5201);
    let router = Router::start(&net, &["--poll", "adaptive", "--config", &config.display().to_string()]);
    let said = router.said();
    assert!(said.contains("connection table: 100 entries, "), "{said}");
    let mut open = net.start(Place::Lan, &["iperf3", "-c", "10.2.0.2", "-b", "1M", "-t", "5"]);
    thread::sleep(SECOND);
    let flood = net.command(Place::Lan, "python3").args(["-c", UDP_FLOOD]).output().expect("python3");
    assert!(flood.status.success(), "{}", text(&flood.stderr));
    eventually(5 * SECOND, "the line", || router.said().contains("connection table full (100 of 100): "));
    let said = router.said();
    let line = said.lines().find(|line| line.contains("connection table full")).expect("it was there");
    assert!(line.contains(" are from 10.1.0.0/24 (") && line.contains(" go to udp port 4444 ("), "{line}");
    assert!(line.contains(" 0 new connections were refused, and "), "{line}");
    // A client gets in, and who was in stays.
    assert!(net.pings(Place::Lan, "10.2.0.2"), "no ping while the table is full");
    assert!(open.end(10 * SECOND).success(), "the open connection: {}", open.said());
}

/// A TCP connection that stays open, one that was closed, a ping, and a question that nobody answers.
const SOME_FLOWS: &str = "
import socket, time
held = socket.create_connection(('10.2.0.2', 80), 5)
socket.create_connection(('10.2.0.2', 80), 5).close()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'?', ('10.2.0.2', 4242))
print('made', flush=True)
time.sleep(600)
";

/// What stands after `name=` in a line of `conntrack`, the first time.
fn column(line: &str, name: &str) -> String {
    let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name}= in {line}")).to_owned()
}

#[test]
fn connections_are_listed_got_deleted_and_counted() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _server = web_server(&net, Place::Wan, 80);
    let router = Router::start(&net, &["--poll", "adaptive"]);
    assert!(net.pings(Place::Lan, "10.2.0.2") && net.pings(Place::Lan, "fd02::2"));
    let flows = net.start(Place::Lan, &["python3", "-c", SOME_FLOWS]);
    eventually(5 * SECOND, "the flows", || flows.said().contains("made"));
    let conntrack = |words: &str| {
        let words: Vec<&str> = ["conntrack"].into_iter().chain(words.split_whitespace()).collect();
        let output = router.verb(&words).output().expect("it starts");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let count = |words: &str| {
        let (code, lines, said) = conntrack(words);
        let count = lines.lines().count();
        assert_eq!(code, Some(0), "{words}: {said}");
        assert!(said.ends_with(&format!(": {count} flow entries have been shown.\n")), "{words}: {said}");
        count
    };
    let all = count("-L");
    assert_eq!(conntrack("-C").1, format!("{all}\n"));
    assert_eq!((count("-L -p tcp --dport 80"), count("-L -p tcp --state ESTABLISHED")), (2, 1));
    assert_eq!((count("-L -p udp --dport 4242 -u UNREPLIED"), count("-L -p udp -u SEEN_REPLY")), (1, 0));
    assert_eq!((count("-L -f ipv6 -p icmpv6 --icmpv6-type 128"), count("-L -s 10.9.0.0/16")), (1, 0));
    assert_eq!(count("-L -s 10.1.0.0/24 -q 10.1.0.2 -d 10.2.0.0/24"), count("-L -f ipv4"));
    assert_eq!(count("-L --proc"), all);
    assert_eq!(count("-L -o json"), all);
    let (_, counters, _) = conntrack("-S");
    assert!(counters.starts_with("cpu=") && counters.contains("\tfound=0 "), "{counters}");

    let (_, line, _) = conntrack("-L -p tcp --state ESTABLISHED -o id");
    let (port, id) = (column(&line, "sport"), column(line.trim_end(), "id"));
    let tuple = format!("-p tcp -s 10.1.0.2 -d 10.2.0.2 --sport {port} --dport 80");
    let (code, got, _) = conntrack(&format!("-G {tuple} -o id"));
    assert_eq!((code, column(got.trim_end(), "id")), (Some(0), id));
    let (code, gone, said) = conntrack(&format!("-D {tuple}"));
    assert_eq!((code, gone.lines().count()), (Some(0), 1), "{said}");
    let (code, none, said) = conntrack(&format!("-D {tuple}"));
    assert_eq!((code, none.as_str()), (Some(1), ""));
    assert!(said.ends_with(": 0 flow entries have been deleted.\n"), "{said}");
    let (code, _, said) = conntrack(&format!("-G {tuple}"));
    assert!(code == Some(1) && said.ends_with(": Operation failed: such conntrack doesn't exist\n"), "{said}");
    let (code, _, said) = conntrack("-F");
    assert!(code == Some(0) && said.ends_with(": connection tracking table has been emptied.\n"), "{said}");
    assert_eq!(conntrack("-C").1, "0\n");
    router.stop();
}

#[test]
fn events_are_shown_as_they_happen() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _server = web_server(&net, Place::Wan, 80);
    fs::write(net.file("web/small"), "hello").expect("a file");
    let router = Router::start(&net, &["--poll", "adaptive"]);
    router.ask(&["sysctl", "-w", "net.netfilter.nf_conntrack_icmp_timeout=1"]);
    let mut all = Program::start(&mut router.verb(&["conntrack", "-E", "-o", "timestamp,id"]));
    let mut some = Program::start(&mut router.verb(&["conntrack", "-E", "-p", "tcp", "-e", "NEW,DESTROY"]));
    eventually(5 * SECOND, "the first event", || {
        net.pings(Place::Lan, "10.2.0.2") && all.said().contains("[NEW] icmp     1 1 src=10.1.0.2")
    });
    eventually(5 * SECOND, "the end of a ping", || all.said().contains("[DESTROY] icmp     1 src=10.1.0.2"));
    net.must(Place::Lan, "curl -sS --max-time 5 -o /dev/null http://10.2.0.2/small");
    let wanted = [
        "[NEW] tcp      6 120 SYN_SENT src=10.1.0.2 dst=10.2.0.2 sport=",
        "[UPDATE] tcp      6 60 SYN_RECV src=10.1.0.2 dst=10.2.0.2 sport=",
        "[UPDATE] tcp      6 432000 ESTABLISHED src=10.1.0.2 dst=10.2.0.2 sport=",
        "[UPDATE] tcp      6 120 FIN_WAIT src=10.1.0.2 dst=10.2.0.2 sport=",
        "[UPDATE] tcp      6 30 LAST_ACK src=10.1.0.2 dst=10.2.0.2 sport=",
        "[UPDATE] tcp      6 120 TIME_WAIT src=10.1.0.2 dst=10.2.0.2 sport=",
    ];
    let events = |program: &Program| program.said().lines().map(str::to_owned).collect::<Vec<_>>();
    eventually(5 * SECOND, "the events of a connection", || wanted.iter().all(|line| all.said().contains(line)));
    router.ask(&["conntrack", "-D", "-p", "tcp"]);
    eventually(5 * SECOND, "the end of a connection", || some.said().contains("[DESTROY] tcp"));
    eventually(5 * SECOND, "the same", || all.said().contains("[DESTROY] tcp"));
    for (program, least) in [(&mut all, 8), (&mut some, 2)] {
        program.signal(Signal::SIGINT);
        assert_eq!(program.end(5 * SECOND).code(), Some(0), "{}", program.said());
        let lines = events(program);
        let (last, lines) = lines.split_last().expect("a line");
        let count = format!(": {} flow events have been shown.", lines.len());
        assert!(lines.len() >= least && last.ends_with(&count), "{last}, and\n{}", lines.join("\n"));
    }
    let (all, some) = (events(&all), events(&some));
    let tcp: Vec<_> = all.iter().filter(|line| line.contains(" tcp ")).collect();
    for (line, wanted) in tcp.iter().zip(wanted) {
        let (time, rest) = line.split_once('\t').expect("a time in front");
        assert!(time.starts_with('[') && rest.trim_start().starts_with(wanted), "{line}");
        assert_eq!(column(line, "id"), column(tcp[0], "id"));
    }
    assert!(tcp.last().is_some_and(|line| line.contains("[USERSPACE] portid=")), "{tcp:?}");
    let kinds: Vec<_> = some.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(kinds[..2], ["[NEW]", "[DESTROY]"], "{some:?}");
    // Nobody listens any more: nothing is lost, since nothing is kept.
    net.must(Place::Lan, "curl -sS --max-time 5 -o /dev/null http://10.2.0.2/small");
    assert_eq!(stats(&router)["workers"][0]["conntrack"]["events_lost"], 0);
    router.stop();
}

#[test]
fn settings_change_without_losing_a_connection() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _server = web_server(&net, Place::Wan, 80);
    // What the machine has: in its namespace, before the router starts.
    let kernel = "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=7777 \
                  net.netfilter.nf_conntrack_generic_timeout=88";
    net.must(Place::Router, kernel);
    let config = net.file("x.toml");
    fs::write(&config, "[conntrack]\nnf_conntrack_generic_timeout = 99\nnf_conntrack_max = 5000\n").expect("a file");
    let config = config.display().to_string();
    let router = Router::start(&net, &["--poll", "adaptive", "--config", &config, "--sysctl-from-kernel"]);
    assert!(
        router.said().contains("nf_conntrack_tcp_timeout_established = 7777, from the kernel"),
        "{}",
        router.said()
    );
    let all = router.ask(&["sysctl", "-a"]);
    for line in ["tcp_timeout_established = 7777", "generic_timeout = 99", "max = 5000", "count = 0"] {
        assert!(all.contains(&format!("net.netfilter.nf_conntrack_{line}\n")), "no {line} in\n{all}");
    }
    let flows = net.start(Place::Lan, &["python3", "-c", SOME_FLOWS]);
    eventually(5 * SECOND, "the flows", || flows.said().contains("made"));
    let before = router.ask(&["conntrack", "-C"]);
    let seconds = |protocol: &str| {
        let lines = router.ask(&["conntrack", "-L", "-p", protocol]);
        let times = lines.lines().map(|line| line.split_whitespace().nth(2).expect("seconds").parse::<u32>());
        times.map(|time| time.expect("a number")).max().expect("a connection")
    };
    assert!((7000..=7777).contains(&seconds("tcp")), "{}", seconds("tcp"));
    let set = router.ask(&["sysctl", "-w", "net.netfilter.nf_conntrack_icmp_timeout=300", "nf_conntrack_max=4000"]);
    assert_eq!(set, "net.netfilter.nf_conntrack_icmp_timeout = 300\nnet.netfilter.nf_conntrack_max = 4000\n");
    assert_eq!(router.ask(&["conntrack", "-C"]), before, "a connection was lost");
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    assert!((250..=300).contains(&seconds("icmp")), "{}", seconds("icmp"));
    let refused = router.verb(&["sysctl", "-w", "net.netfilter.nf_conntrack_max=5001"]).output().expect("it starts");
    let said = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("needs a restart"), "{said}");
    assert_eq!(router.ask(&["sysctl", "-n", "nf_conntrack_max"]), "4000\n");
    router.stop();
}

#[test]
fn neighbours_are_resolved_from_cold() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let router = Router::start(&net, &["--poll", "adaptive"]);
    for _ in 0..3 {
        net.ip(Place::Router, "neigh flush dev wan");
        net.ip(Place::Router, "neigh flush dev lan");
        for destination in ["10.2.0.2", "fd02::2"] {
            // The very first packet waits for the address and is not lost.
            net.must(Place::Lan, &format!("ping -c 1 -W 2 {destination}"));
        }
    }
    let said = text(&net.run(Place::Lan, "ping -c 1 -W 5 10.2.0.77").stdout);
    assert!(said.contains("From 10.1.0.1") && said.contains("Destination Host Unreachable"), "{said}");
    router.stop();
}

#[test]
fn route_changes_are_followed() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    net.ip(Place::Wan, "address add 10.9.0.1/32 dev lo");
    net.ip(Place::Wan, "address add fd09::1/128 dev lo");
    let router = Router::start(&net, &["--poll", "adaptive"]);
    let reached = |address: &str| net.run(Place::Lan, &format!("ping -c 1 -W 1 {address}")).status.success();
    for (address, gateway) in [("10.9.0.1", "10.2.0.2"), ("fd09::1", "fd02::2")] {
        assert!(!reached(address), "there is no route to {address} yet");
        net.ip(Place::Router, &format!("route add {address} via {gateway}"));
        eventually(3 * SECOND, "the new route", || reached(address));
        net.ip(Place::Router, &format!("route replace unreachable {address}"));
        net.run(Place::Router, &format!("ip route del {address} via {gateway}"));
        eventually(3 * SECOND, "the route's refusal", || !reached(address));
    }
    router.stop();
}

#[test]
fn a_link_that_goes_down_and_comes_back_is_survived() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let mut router = Router::start(&net, &["--poll", "adaptive"]);
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    for port in ["wan", "lan"] {
        net.ip(Place::Router, &format!("link set {port} down"));
        assert!(!net.run(Place::Lan, "ping -c 1 -W 1 10.2.0.2").status.success());
        assert!(router.program().runs(), "the router ended; it said:\n{}", router.said());
        net.ip(Place::Router, &format!("link set {port} up"));
        // An interface that goes down loses its IPv6 address.
        let number = if port == "lan" { 1 } else { 2 };
        net.run(Place::Router, &format!("ip address add fd0{number}::1/64 dev {port} nodad"));
        for destination in ["10.2.0.2", "fd02::2"] {
            eventually(10 * SECOND, "forwarding again", || net.pings(Place::Lan, destination));
        }
    }
    router.stop();
}

#[test]
fn an_interface_that_disappears_ends_the_run_with_an_error() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let mut router = Router::start(&net, &["--poll", "adaptive"]);
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    net.ip(Place::Router, "link del wan");
    let status = router.program().end(10 * SECOND);
    assert_eq!(status.code(), Some(1), "it said:\n{}", router.said());
    assert!(router.said().lines().last().is_some_and(|line| line.contains("wan")), "it said:\n{}", router.said());
    assert!(!has_xdp(&net, "lan"), "the other interface was not given back");
}

#[test]
fn it_starts_and_stops_twenty_times_and_leaves_nothing() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    for round in 0..20 {
        let router = Router::start(&net, &["--poll", if round % 2 == 0 { "adaptive" } else { "busy" }]);
        assert!(has_xdp(&net, "lan") && has_xdp(&net, "wan"), "round {round}: no program is attached");
        assert!(net.run(Place::Lan, "ping -c 1 -W 2 10.2.0.2").status.success(), "round {round}: {}", router.said());
        router.stop_by(if round % 4 == 3 { Signal::SIGINT } else { Signal::SIGTERM });
        assert!(!has_xdp(&net, "lan") && !has_xdp(&net, "wan"), "round {round}: a program is still attached");
        assert!(!net.file("control").exists(), "round {round}: the control socket is still there");
    }
}

#[test]
fn a_restart_under_traffic_is_short() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let _server = web_server(&net, Place::Wan, 80);
    random_file(&net.file("web/file"), FILE_SIZE);
    let mut router = Router::start(&net, &["--poll", "adaptive"]);
    let mut pings = net.start(Place::Lan, &["ping", "-q", "-i", "0.01", "-c", "600", "-W", "1", "10.2.0.2"]);
    // The sender goes on sending through the gap; a connection picked up in the middle may go on outwards.
    let (file, url) = (net.file("web/file").display().to_string(), "http://10.2.0.2/copy");
    let words = ["curl", "-sS", "--max-time", "60", "--limit-rate", "15M", "-T", &file, url];
    let mut upload = net.start(Place::Lan, &words);
    for _ in 0..2 {
        thread::sleep(SECOND);
        router.stop();
        router = Router::start(&net, &["--poll", "adaptive"]);
    }
    assert!(upload.end(60 * SECOND).success(), "the upload broke: {}", upload.said());
    assert_eq!(upload.said().trim(), sha256(&net.file("web/file")), "what came through is not what was sent");
    pings.end(30 * SECOND);
    let said = pings.said();
    let received = said.split(" received").next().and_then(|text| text.rsplit(' ').next());
    let received: u32 = received.and_then(|text| text.parse().ok()).unwrap_or(0);
    assert!(received > 400, "two restarts lost too much: {said}");
    router.stop();
}

#[test]
fn it_fails_closed() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let mut router = Router::start(&net, &["--poll", "adaptive"]);
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    router.program().signal(Signal::SIGKILL);
    router.program().end(5 * SECOND);
    // Killed, it could not clean up. No packet may pass now, and the host must still be reached.
    assert!(!net.pings(Place::Lan, "10.2.0.2"), "transit went on without a router");
    assert!(net.pings(Place::Lan, "10.1.0.1"), "the host is out of reach");
    drop(router);
    let router = Router::start(&net, &["--poll", "adaptive"]);
    assert!(net.pings(Place::Lan, "10.2.0.2"), "it does not start over what a killed one left");
    router.stop();
    assert!(!has_xdp(&net, "lan") && !has_xdp(&net, "wan"), "a program is still attached");
}

#[test]
fn kernel_forwarding_beside_it_is_warned_of() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape { kernel_forwards: true, ..Shape::default() });
    let router = Router::start(&net, &["--poll", "adaptive"]);
    assert!(router.said().contains("ip_forward"), "no word on kernel forwarding:\n{}", router.said());
    // While it runs its rules hold all the same.
    assert!(!net.pings(Place::Wan, "10.1.0.2"), "a ping from outside went round the rules");
    router.stop();
}

/// Runs xrouter to its end in the router's namespace: exit code and what it said.
fn attempt(command: &mut Command) -> (Option<i32>, String) {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    assert!(started.elapsed() < 10 * SECOND, "it took {:?}", started.elapsed());
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn wrong_use_ends_with_2_and_says_why() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let xrouter =
        |arguments: &[&str]| attempt(net.command(Place::Router, env!("CARGO_BIN_EXE_xrouter")).args(arguments));
    let (code, said) = xrouter(&["--lan", "lan", "--wan", "lan"]);
    assert!(code == Some(2) && said.contains("lan"), "same interface twice: {code:?} {said}");
    let (code, said) = xrouter(&["--lan", "lan"]);
    assert!(code == Some(2) && said.contains("wan"), "one interface: {code:?} {said}");
    let (code, said) = xrouter(&["--lan", "lan", "--wan", "nosuch0"]);
    assert!(code == Some(2) && said.contains("nosuch0"), "no such interface: {code:?} {said}");
    let (code, said) = xrouter(&["--lan", "lan", "--wan", "wan", "--bogus"]);
    assert!(code == Some(2) && said.contains("--bogus"), "unknown option: {code:?} {said}");
    let rules = net.file("bad.v4");
    fs::write(&rules, "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -p tcp --nonsense 4 -j ACCEPT\nCOMMIT\n")
        .expect("a file");
    let rules = rules.display().to_string();
    let (code, said) = xrouter(&["--lan", "lan", "--wan", "wan", "--rules", &rules]);
    assert!(code == Some(2) && said.contains("bad.v4:3:19"), "bad rules: {code:?} {said}");
    let (code, said) = xrouter(&["--lan", "lan", "--wan", "wan", "--rules", "/nonexistent.v4"]);
    assert!(code == Some(2) && said.contains("/nonexistent.v4"), "no rules file: {code:?} {said}");
    let config = net.file("bad.toml");
    fs::write(&config, "lan = \"lan\"\nwan = \"wan\"\ncolour = \"red\"\n").expect("a file");
    let (code, said) = xrouter(&["--config", &config.display().to_string()]);
    assert!(code == Some(2) && said.contains("colour"), "unknown key: {code:?} {said}");
    assert!(!has_xdp(&net, "lan") && !has_xdp(&net, "wan"));
}

#[test]
fn what_the_machine_lacks_ends_with_3_and_no_daemon_with_4() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let mut command = net.command(Place::Router, "setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    command.args([env!("CARGO_BIN_EXE_xrouter"), "--lan", "lan", "--wan", "wan", "--control", "/tmp/nowhere/control"]);
    let (code, said) = attempt(&mut command);
    assert!(code == Some(3) && said.to_uppercase().contains("CAP_"), "no privileges: {code:?} {said}");
    let mut command = net.command(Place::Router, env!("CARGO_BIN_EXE_xrouter"));
    command.args(["--lan", "lan", "--wan", "wan", "--mode", "zero-copy", "--control"]).arg(net.file("control"));
    let (code, said) = attempt(&mut command);
    assert!(code == Some(3) && said.contains("zero-copy"), "veth has no zero-copy: {code:?} {said}");
    for verb in [&["stats"][..], &["conntrack", "-L"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xrouter"));
        let (code, said) = attempt(command.args(verb).arg("--control").arg(net.file("nobody")));
        assert!(code == Some(4) && said.contains("nobody"), "no daemon: {code:?} {said}");
    }
    must(Command::new(env!("CARGO_BIN_EXE_xrouter")).arg("-h"));
}
