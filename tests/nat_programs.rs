//! Real programs through translated connections: from behind a masquerading router, to a forwarded port, back in from inside
//! (hairpin), to a service on the router itself, with FTP's and TFTP's helpers, and over a change of the router's address.
//!
//! The server's side has no route to the inside network, so that nothing passes untranslated. Each test has a network of its own
//! (`tests/support`).

#[path = "support/far.rs"]
mod far;
#[allow(dead_code)] // the end-to-end tests use the rest
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use far::Far;
use support::{Net, Place, Program, Router, Shape, eventually, must, privileged, random_file, sha256, text};

/// A network whose outside knows nothing of the inside.
fn private() -> Net {
    let net = Net::new(Shape::default());
    net.ip(Place::Wan, "route del default");
    net.ip(Place::Wan, "-6 route del default");
    net
}

/// A script of `tests/support` with these words, in the background.
fn script(net: &Net, place: Place, name: &str, words: &str) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(name).display().to_string();
    let words = ["python3", &script].into_iter().chain(words.split(' ')).collect::<Vec<_>>();
    net.start(place, &words)
}

/// A web server with one file, `file`, in a folder of its own; its folder.
fn web_server(net: &Net, place: Place, port: u16, size: u64) -> (Program, std::path::PathBuf) {
    let folder = net.file(&format!("web{port}"));
    fs::create_dir_all(&folder).expect("a folder");
    random_file(&folder.join("file"), size);
    let server = script(net, place, "server.py", &format!("{} {port}", folder.display()));
    net.wait_for_listener(place, port);
    (server, folder)
}

/// A router with these rules in a file of its own, and these words.
fn router(net: &Net, rules: &str, words: &[&str]) -> Router {
    let file = net.file("rules.v4");
    fs::write(&file, rules).expect("a file");
    let file = file.display().to_string();
    Router::start(net, &[&["--poll", "adaptive", "--rules", &file], words].concat())
}

/// The lines of the connection table with all these words.
fn entries(router: &Router, words: &[&str]) -> Vec<String> {
    let table = router.ask(&["conntrack", "-L"]);
    let wanted = |line: &&str| words.iter().all(|word| line.contains(word));
    table.lines().filter(wanted).map(str::to_owned).collect()
}

fn drops(router: &Router, reason: &str) -> u64 {
    let stats: serde_json::Value = serde_json::from_str(&router.ask(&["stats", "-j"])).expect("JSON");
    let of = |worker: &serde_json::Value| worker["drops"][reason].as_u64().unwrap_or(0);
    stats["workers"].as_array().expect("workers").iter().map(of).sum()
}

#[test]
fn from_behind_one_address_all_is_as_ever() {
    if !privileged() {
        return;
    }
    let net = private();
    let (_web, folder) = web_server(&net, Place::Wan, 80, 20_000_000);
    let names = script(&net, Place::Wan, "talk.py", "names 53");
    eventually(Duration::from_secs(5), "a name server", || names.said().contains("ready"));
    let _iperf = net.start(Place::Wan, &["iperf3", "-s"]);
    net.wait_for_listener(Place::Wan, 5201);
    let router = Router::start(&net, &["--poll", "adaptive", "--masquerade=both"]);
    for host in ["10.2.0.2", "[fd02::2]"] {
        let copy = net.file("copy");
        net.must(Place::Lan, &format!("curl -sS --max-time 60 -o {} http://{host}/file", copy.display()));
        assert_eq!(sha256(&copy), sha256(&folder.join("file")), "what came through is not what was sent");
        let up = net.must(Place::Lan, &format!("curl -sS --max-time 60 -T {} http://{host}/up", copy.display()));
        assert_eq!(up, sha256(&copy));
        let bare = host.trim_matches(['[', ']']);
        assert!(net.pings(Place::Lan, bare));
        for (how, enough) in [("", 10.0), ("-u -b 20M", 15.0)] {
            let said = net.must(Place::Lan, &format!("iperf3 -c {bare} -t 2 -J {how}"));
            let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
            let end = &report["end"];
            let sum = if how.is_empty() { &end["sum_received"] } else { &end["sum"] };
            let mbit = sum["bits_per_second"].as_f64().unwrap_or(0.0) / 1e6;
            assert!(mbit > enough, "iperf3 {how} {bare}: {mbit} Mbit/s\n{report}\n{}", router.ask(&["stats"]));
        }
    }
    assert_eq!(net.must(Place::Lan, "dig +tries=1 +time=3 +short @10.2.0.2 a.test A").trim(), "192.0.2.7");
    let line = entries(&router, &["udp ", "src=10.1.0.2 dst=10.2.0.2", "dport=53 "]).pop().expect("an entry");
    assert!(line.contains("src=10.2.0.2 dst=10.2.0.1 sport=53"), "{line}");
    let line = entries(&router, &["tcp ", "src=fd01::2 dst=fd02::2"]).pop().expect("an entry");
    assert!(line.contains("src=fd02::2 dst=fd02::1"), "{line}");
    // All of it is translated, and the tool finds it by that.
    let count = |words: &[&str]| router.ask(&[&["conntrack", "-L"], words].concat()).lines().count();
    assert_eq!(count(&["-n", "10.2.0.1", "-f", "ipv4"]), count(&["-f", "ipv4"]));
    assert_eq!((count(&["-g"]), count(&["-n", "10.2.0.9"])), (0, 0));
    // The rule is told as any other is.
    let rule = "-A POSTROUTING -o wan -j MASQUERADE";
    assert!(router.ask(&["iptables", "-t", "nat", "-S", "POSTROUTING"]).contains(rule));
    assert!(router.ask(&["ip6tables", "-t", "nat", "-S", "POSTROUTING"]).contains(rule));
    let told = router.ask(&["explain", "-i", "lan", "tcp 10.1.0.2:1234 > 10.2.0.2:80 syn"]);
    assert!(told.contains("MASQUERADE"), "{told}");
    router.ask(&["reload"]);
    assert!(router.ask(&["iptables", "-t", "nat", "-S", "POSTROUTING"]).contains(rule));
    router.stop();
}

#[test]
fn traceroute_sees_through_the_translation() {
    if !privileged() {
        return;
    }
    let net = private();
    let _echo = script(&net, Place::Wan, "talk.py", "echo 80");
    net.wait_for_listener(Place::Wan, 80);
    let router = Router::start(&net, &["--poll", "adaptive", "--masquerade=both"]);
    for (gateway, host) in [("10.1.0.1", "10.2.0.2"), ("fd01::1", "fd02::2")] {
        for how in ["", "-I", "-T -p 80", "-T -p 81"] {
            let hops = || -> Vec<String> {
                let said = net.must(Place::Lan, &format!("traceroute -n -q 1 -N 1 -w 2 -m 4 {how} {host}"));
                said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
            };
            // Several tries, as `tests/programs.rs` says of the same without translation.
            let found = (0..5).any(|_| hops() == [gateway, host]);
            assert!(found, "traceroute {how} {host}: {:?}", hops());
        }
    }
    router.stop();
}

#[test]
fn the_path_mtu_is_found_from_behind() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape { unfinished_checksums: false, ..Shape::default() });
    let far = Far::new(&net);
    // The hosts outside know the router's address only.
    net.ip(Place::Wan, "route del default");
    let folder = net.file("web");
    fs::create_dir_all(&folder).expect("a folder");
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/server.py").display().to_string();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &far.name, "python3", &server, &folder.display().to_string(), "8080"]);
    let _server = Program::start(&mut command);
    eventually(Duration::from_secs(10), "a web server", || {
        must(Command::new("ip").args(["netns", "exec", &far.name, "ss", "-Hltn"])).contains(":8080 ")
    });
    let body = net.file("body");
    random_file(&body, 200_000);
    let router = Router::start(&net, &["--poll", "adaptive", "--masquerade"]);
    let upload = format!("curl -sS --max-time 10 -T {} http://10.3.0.2:8080/x", body.display());
    assert_eq!(net.must(Place::Lan, &upload), sha256(&body));
    let route = net.ip(Place::Lan, "route get 10.3.0.2");
    assert!(route.contains("mtu 1300"), "{route}");
    let said = text(&net.run(Place::Lan, "ping -c 1 -W 1 -M do -s 1400 10.3.0.2").stderr);
    assert!(said.contains("mtu=1300"), "{said}");
    router.stop();
}

/// A home gateway: what is inside may go out, port 8080 of the router leads to a server inside, from wherever.
const GATEWAY: &str = "*nat
-A PREROUTING -d 10.2.0.1 -p tcp --dport 8080 -j DNAT --to-destination 10.1.0.2:80
-A POSTROUTING -o wan -j MASQUERADE
-A POSTROUTING -s 10.1.0.0/24 -o lan -m conntrack --ctstate DNAT -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i lan -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
COMMIT
";

#[test]
fn a_forwarded_port_is_reached_from_outside_and_from_inside() {
    if !privileged() {
        return;
    }
    let net = private();
    let (_web, folder) = web_server(&net, Place::Lan, 80, 1_000_000);
    let router = router(&net, GATEWAY, &[]);
    for place in [Place::Wan, Place::Lan] {
        let copy = net.file("copy");
        net.must(place, &format!("curl -sS --max-time 20 -o {} http://10.2.0.1:8080/file", copy.display()));
        assert_eq!(sha256(&copy), sha256(&folder.join("file")), "{place:?}");
    }
    let outside = entries(&router, &["src=10.2.0.2 dst=10.2.0.1", "dport=8080 src=10.1.0.2 dst=10.2.0.2 sport=80"]);
    assert_eq!(outside.len(), 1, "{}", router.ask(&["conntrack", "-L"]));
    let hairpin = entries(&router, &["src=10.1.0.2 dst=10.2.0.1", "dport=8080 src=10.1.0.2 dst=10.1.0.1 sport=80"]);
    assert_eq!(hairpin.len(), 1, "{}", router.ask(&["conntrack", "-L"]));
    assert_eq!(router.ask(&["conntrack", "-L", "-n", "-g"]).lines().count(), 1, "the hairpin alone is both");
    // Another port of the router is its own, and closed.
    let refused = net.run(Place::Wan, "curl -sS --max-time 5 http://10.2.0.1:8081/");
    assert_eq!(refused.status.code(), Some(7), "{}", text(&refused.stderr));
    // And so is what the router has itself: ping, and a listener.
    assert!(net.pings(Place::Wan, "10.2.0.1") && net.pings(Place::Lan, "10.1.0.1"));
    let (_own, folder) = web_server(&net, Place::Router, 8888, 500_000);
    for (place, host) in [(Place::Lan, "10.1.0.1"), (Place::Wan, "10.2.0.1"), (Place::Lan, "10.2.0.1")] {
        let copy = net.file("copy");
        net.must(place, &format!("curl -sS --max-time 20 -o {} http://{host}:8888/file", copy.display()));
        assert_eq!(sha256(&copy), sha256(&folder.join("file")), "{place:?} {host}");
    }
    assert_eq!((drops(&router, "punt_limited"), drops(&router, "punt_failed")), (0, 0));
    router.stop();
}

#[test]
fn what_is_redirected_reaches_a_service_of_the_router() {
    if !privileged() {
        return;
    }
    let net = private();
    let (_web, real) = web_server(&net, Place::Wan, 80, 300_000);
    let (_proxy, proxied) = web_server(&net, Place::Router, 3128, 500_000);
    let rules = "*nat\n-A PREROUTING -i lan -p tcp --dport 80 -j REDIRECT --to-ports 3128\n\
                 -A PREROUTING -i wan -p tcp --dport 81 -j DNAT --to-destination 10.1.0.1:3128\n\
                 -A POSTROUTING -o wan -j MASQUERADE\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    let get = |place, host: &str| {
        let copy = net.file("copy");
        let _ = fs::remove_file(&copy);
        let told = net.run(place, &format!("curl -sS --max-time 10 -o {} http://{host}/file", copy.display()));
        told.status.success().then(|| sha256(&copy))
    };
    let applied = router(&net, rules, &["--host-chains", "apply"]);
    assert!(!applied.said().contains("REDIRECT"), "{}", applied.said());
    assert_eq!(get(Place::Lan, "10.2.0.2"), Some(sha256(&proxied.join("file"))), "redirected to the router");
    assert_eq!(get(Place::Wan, "10.2.0.1:81"), Some(sha256(&proxied.join("file"))), "to an address of the router");
    // The kernel has translated both, and nothing that is forwarded.
    let kernel = net.must(Place::Router, "conntrack -L");
    assert!(kernel.contains("dst=10.2.0.2 ") && kernel.contains("src=10.1.0.1 dst=10.1.0.2 sport=3128"), "{kernel}");
    assert_eq!(drops(&applied, "nat_to_host"), 0);
    applied.stop();
    net.must(Place::Router, "iptables -t nat -F");

    // Without, it is said, and such packets end, counted; they do not go on to where they were sent.
    let reported = router(&net, rules, &[]);
    let said = reported.said();
    assert!(said.contains("rules.v4:2:") && said.contains("only with `--host-chains apply`"), "{said}");
    assert_eq!(get(Place::Lan, "10.2.0.2"), None);
    assert!(drops(&reported, "nat_to_host") > 0);
    reported.ask(&["iptables", "-t", "nat", "-D", "PREROUTING", "1"]);
    assert_eq!(get(Place::Lan, "10.2.0.2"), Some(sha256(&real.join("file"))));
    reported.stop();
}

#[test]
fn ten_thousand_connections_share_an_address() {
    if !privileged() {
        return;
    }
    let net = private();
    let server = script(&net, Place::Wan, "talk.py", "crowd-server 7000");
    eventually(Duration::from_secs(10), "a server", || server.said().contains("ready"));
    let router = Router::start(&net, &["--poll", "adaptive", "--masquerade"]);
    let mut client = script(&net, Place::Lan, "talk.py", "crowd 10.2.0.2 7000 10000");
    eventually(Duration::from_secs(60), "10,000 open connections", || client.said().contains("open"));
    let there = router.ask(&["conntrack", "-C"]).trim().parse::<u32>().expect("a number");
    let status = client.end(Duration::from_secs(60));
    assert!(status.success(), "{}", client.said());
    assert_eq!(client.said(), "open 10000\nagain 10000\n");
    assert!(there >= 10_000, "{there}");
    let table = router.ask(&["conntrack", "-L", "-n", "10.2.0.1", "-p", "tcp"]);
    let replies: std::collections::BTreeSet<&str> =
        table.lines().filter_map(|line| line.split("src=10.2.0.2 dst=10.2.0.1").nth(1)?.split('[').next()).collect();
    assert_eq!((replies.len(), table.lines().count()), (10_000, 10_000), "no two have the same way back");
    router.stop();
}

#[test]
fn a_new_address_ends_the_old_connections_and_serves_the_new() {
    if !privileged() {
        return;
    }
    let net = private();
    let _echo = script(&net, Place::Wan, "talk.py", "echo 2222");
    net.wait_for_listener(Place::Wan, 2222);
    let router = Router::start(&net, &["--poll", "adaptive", "--masquerade=both"]);
    let mut events = Program::start(&mut router.verb(&["conntrack", "-E", "-e", "DESTROY"]));
    let mut before: Vec<Program> = ["10.2.0.2", "fd02::2"]
        .iter()
        .map(|host| script(&net, Place::Lan, "talk.py", &format!("session {host} 2222 4")))
        .collect();
    for program in &before {
        eventually(Duration::from_secs(5), "an open session", || program.said().contains("open"));
    }
    assert_eq!(entries(&router, &["dport=2222", "dst=10.2.0.1 sport=2222"]).len(), 1);
    // As a DHCP client does that is given another address; IPv6 keeps its own.
    net.ip(Place::Router, "address del 10.2.0.1/24 dev wan");
    net.ip(Place::Router, "address add 10.2.0.77/24 dev wan");
    eventually(Duration::from_secs(3), "its end", || entries(&router, &["src=10.1.0.2", "dport=2222"]).is_empty());
    eventually(Duration::from_secs(3), "the event", || events.said().contains("dst=10.2.0.1 sport=2222"));
    let statuses: Vec<_> = before.iter_mut().map(|program| program.end(Duration::from_secs(15))).collect();
    let said: Vec<String> = before.iter().map(Program::said).collect();
    assert!(statuses[1].success() && said[1].contains("alive"), "IPv6: {}", said[1]);
    assert!(said[0].lines().all(|line| line != "alive"), "the server was asked from another address: {}", said[0]);
    let mut after = script(&net, Place::Lan, "talk.py", "session 10.2.0.2 2222 0");
    assert!(after.end(Duration::from_secs(10)).success() && after.said().contains("alive"), "{}", after.said());
    assert!(!entries(&router, &["src=10.1.0.2", "dst=10.2.0.77 sport=2222"]).is_empty());
    assert!(events.runs());
    router.stop();
}

/// A gateway whose clients use FTP and TFTP outside; its address is longer than theirs, so that what is announced changes its
/// length.
const HELPERS: &str = "*raw
-A PREROUTING -p tcp --dport 21 -j CT --helper ftp
-A PREROUTING -p udp --dport 69 -j CT --helper tftp
COMMIT
*nat
-A PREROUTING -i wan -p tcp --dport 21 -j DNAT --to-destination <in>
-A POSTROUTING -o wan -j SNAT --to-source <out>
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i lan -m conntrack --ctstate NEW -m multiport -p tcp --dports 21 -j ACCEPT
-A FORWARD -p udp --dport 69 -j ACCEPT
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
COMMIT
";

/// An FTP server, for both IP versions, with a file; the file's folder.
fn ftp_server(net: &Net, place: Place) -> (Program, std::path::PathBuf) {
    let folder = net.file(&format!("ftp{place:?}"));
    let (files, empty) = (folder.join("files"), folder.join("empty"));
    fs::create_dir_all(&files).expect("a folder");
    fs::create_dir_all(&empty).expect("a folder");
    random_file(&files.join("file"), 3_000_000);
    let config = folder.join("vsftpd.conf");
    let text = format!(
        "listen_ipv6=YES\nlisten=NO\nbackground=NO\nanonymous_enable=YES\nno_anon_password=YES\nanon_root={}\n\
         secure_chroot_dir={}\nwrite_enable=YES\nanon_upload_enable=YES\nanon_other_write_enable=YES\n\
         allow_writeable_chroot=YES\nconnect_from_port_20=YES\nseccomp_sandbox=NO\nrun_as_launching_user=YES\n",
        files.display(),
        empty.display()
    );
    fs::write(&config, text).expect("a file");
    let server = net.start(place, &["vsftpd", &config.display().to_string()]);
    net.wait_for_listener(place, 21);
    (server, files)
}

/// Fetches the file twice over one control connection, and brings it once.
fn transfers(net: &Net, place: Place, host: &str, how: &str, files: &Path) {
    let (one, two) = (net.file("one"), net.file("two"));
    let fetch = format!(
        "curl -sS --max-time 20 {how} -o {} ftp://{host}/file -o {} ftp://{host}/file",
        one.display(),
        two.display()
    );
    net.must(place, &fetch);
    let wanted = sha256(&files.join("file"));
    assert_eq!((sha256(&one), sha256(&two)), (wanted.clone(), wanted.clone()), "{how} {host}");
    let _ = fs::remove_file(files.join("new"));
    net.must(place, &format!("curl -sS --max-time 20 {how} -T {} ftp://{host}/new", one.display()));
    assert_eq!(sha256(&files.join("new")), wanted, "{how} {host}");
}

#[test]
fn ftp_passes_actively_and_passively_from_behind_and_to_a_server_behind() {
    if !privileged() {
        return;
    }
    let net = private();
    net.ip(Place::Router, "address add 10.2.0.100/24 dev wan");
    net.ip(Place::Router, "address add fd02::1:2:3:100/64 dev wan nodad");
    let (_outside, files) = ftp_server(&net, Place::Wan);
    let (_inside, inner) = ftp_server(&net, Place::Lan);
    let v6 = net.file("rules.v6");
    fs::write(&v6, HELPERS.replace("<in>", "fd01::2").replace("<out>", "fd02::1:2:3:100")).expect("a file");
    let v4 = HELPERS.replace("<in>", "10.1.0.2").replace("<out>", "10.2.0.100");
    let router = router(&net, &v4, &["--rules6", &v6.display().to_string()]);
    for how in ["", "--disable-epsv", "--ftp-port -", "--ftp-port - --disable-eprt"] {
        transfers(&net, Place::Lan, "10.2.0.2", how, &files);
        transfers(&net, Place::Wan, "10.2.0.1", how, &inner);
    }
    for how in ["", "--ftp-port -"] {
        transfers(&net, Place::Lan, "[fd02::2]", how, &files);
        transfers(&net, Place::Wan, "[fd02::1]", how, &inner);
    }
    assert!(!entries(&router, &["dport=21", "helper=ftp"]).is_empty(), "{}", router.ask(&["conntrack", "-L"]));
    router.stop();
}

#[test]
fn tftp_passes_from_behind() {
    if !privileged() {
        return;
    }
    let net = private();
    net.ip(Place::Router, "address add 10.2.0.100/24 dev wan");
    let folder = net.file("tftp");
    fs::create_dir_all(&folder).expect("a folder");
    random_file(&folder.join("file"), 100_000);
    let _server = net.start(Place::Wan, &["in.tftpd", "-L", "-s", "-u", "root", &folder.display().to_string()]);
    eventually(Duration::from_secs(5), "a TFTP server", || net.must(Place::Wan, "ss -Hlun").contains(":69 "));
    let router = router(&net, &HELPERS.replace("<in>", "10.1.0.2").replace("<out>", "10.2.0.100"), &[]);
    let copy = net.file("copy");
    net.must(Place::Lan, &format!("curl -sS --max-time 20 -o {} tftp://10.2.0.2/file", copy.display()));
    assert_eq!(sha256(&copy), sha256(&folder.join("file")));
    router.stop();
}

#[test]
fn a_port_can_be_forwarded_while_the_router_itself_listens_there() {
    if !privileged() {
        return;
    }
    let net = private();
    let (_inside, inner) = web_server(&net, Place::Lan, 80, 200_000);
    let (_own, own) = web_server(&net, Place::Router, 8080, 100_000);
    let get = || {
        let copy = net.file("copy");
        net.must(Place::Wan, &format!("curl -sS --max-time 10 -o {} http://10.2.0.1:8080/file", copy.display()));
        sha256(&copy)
    };
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    let router = router(&net, rules, &[]);
    assert_eq!(get(), sha256(&own.join("file")));
    // From here on packets to a listener of the host are looked at too.
    let rule = "-t nat -A PREROUTING -i wan -p tcp --dport 8080 -j DNAT --to-destination 10.1.0.2:80";
    router.ask(&[&["iptables"][..], &rule.split(' ').collect::<Vec<_>>()].concat());
    assert_eq!(get(), sha256(&inner.join("file")));
    // And without the rule they are the host's again; the same with rules from a file.
    router.ask(&["iptables", "-t", "nat", "-F"]);
    assert_eq!(get(), sha256(&own.join("file")));
    fs::write(net.file("rules.v4"), format!("*nat\n{}\nCOMMIT\n{rules}", rule.trim_start_matches("-t nat ")))
        .expect("a file");
    router.ask(&["reload"]);
    assert_eq!(get(), sha256(&inner.join("file")));
    router.stop();
}
