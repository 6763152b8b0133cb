//! `xrouter explain` and `xrouter trace` on the built program: exact text of files, and what a running router says, which
//! must be what it then does.

#[allow(dead_code)] // other tests use the rest
mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{Net, Place, Program, Router, Shape, eventually, privileged, text};

/// Exit code, standard output, standard error.
fn xrouter(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xrouter"));
    let output = command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).output();
    let output = output.expect("the program starts");
    (output.status.code().expect("it exits by itself"), text(&output.stdout), text(&output.stderr))
}

/// Asks the home gateway of the examples.
fn home(rest: &[&str]) -> (i32, String, String) {
    let files = ["explain", "--rules", "configs/home-gateway.v4", "--rules6", "configs/home-gateway.v6"];
    xrouter(&[&files[..], &["--lan", "lan0", "--wan", "wan0"], rest].concat())
}

#[test]
fn the_example_gateway_explains_itself() {
    let (code, stdout, stderr) = home(&["-i", "wan", "tcp 8.8.8.8:53 > 10.1.0.2:22 ack ttl 9"]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    let expected = "\
tcp 8.8.8.8:53 > 10.1.0.2:22 ack, 40 bytes, ttl 9, arrives by wan0
  (no routes were asked: what arrives by wan0 is taken to leave by lan0, with an MTU of 1500 bytes)

conntrack: NEW
  no connection has its addresses and ports; it would begin one, if it passed

routing: lan0
  the way to 10.1.0.2 (assumed)
  40 bytes fit the MTU of 1500
  ttl 9 becomes 8

filter FORWARD: DROP
     1 -A FORWARD -m conntrack --ctstate INVALID -j DROP  [configs/home-gateway.v4:9]
        no: --ctstate INVALID: it is NEW
     2 -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT  [configs/home-gateway.v4:10]
        no: --ctstate RELATED,ESTABLISHED: it is NEW
     3 -A FORWARD -i lan0 -o wan0 -m comment --comment \"from the inside\" -g LAN_OUT  [configs/home-gateway.v4:11]
        no: -i lan0: it came in by wan0
*    4 -A FORWARD -i wan0 -o lan0 -m comment --comment \"from the outside\" -j WAN_IN  [configs/home-gateway.v4:12]
        => to chain WAN_IN
       1 -A WAN_IN -d 10.1.0.2/32 -p tcp -m tcp --dport 22 --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW \
-m comment --comment ssh -j ACCEPT  [configs/home-gateway.v4:19]
          no: --tcp-flags FIN,SYN,RST,ACK SYN: its flags are ACK
       2 -A WAN_IN -p icmp -m icmp --icmp-type 8 -m limit --limit 5/sec --limit-burst 10 -j ACCEPT  \
[configs/home-gateway.v4:20]
          no: -p icmp: it is tcp
*      3 -A WAN_IN -m limit --limit 10/min -j LOG --log-prefix \"WAN refused: \"  [configs/home-gateway.v4:21]
          --limit 10/min: taken as within the limit
          => LOG --log-prefix \"WAN refused: \"
*      4 -A WAN_IN -j DROP  [configs/home-gateway.v4:22]
          => DROP

DROP (rule_drop) by filter WAN_IN rule 4 [configs/home-gateway.v4:22]
";
    assert_eq!(stdout, expected);
}

#[test]
fn only_what_matched_if_that_is_wanted() {
    let (code, stdout, stderr) = home(&["-m", "-i", "lan", "udp 10.1.0.5:53 > 1.1.1.1:53"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let rules = stdout.split("filter FORWARD").nth(1).expect("the stage");
    let expected = ": ACCEPT
*    3 -A FORWARD -i lan0 -o wan0 -m comment --comment \"from the inside\" -g LAN_OUT  [configs/home-gateway.v4:11]
        => to chain LAN_OUT
*    6 -A LAN_OUT -m conntrack --ctstate NEW -j ACCEPT  [configs/home-gateway.v4:18]
        => ACCEPT

ACCEPT by filter LAN_OUT rule 6 [configs/home-gateway.v4:18]: leaves by wan0
";
    assert_eq!(rules, expected);
}

#[test]
fn programs_read_json() {
    let (code, stdout, _) = home(&["-j", "-i", "lan", "tcp [fd01::5]:1 > [2001:db8::1]:25"]);
    let json: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, stdout.lines().count(), &json["schema"]), (1, 1, &1.into()));
    let verdict = &json["verdict"];
    assert_eq!(verdict["verdict"], "REJECT", "{json:#}");
    assert_eq!((&verdict["reason"], &verdict["passes"]), (&"rule_reject".into(), &false.into()));
    let rules = json["stages"].as_array().expect("stages").iter().find(|stage| stage["name"] == "filter FORWARD");
    let rules = rules.expect("rules were asked")["rules"].as_array().expect("rules");
    let last = rules.last().expect("one of them");
    assert_eq!((&last["matched"], &last["rule"]), (&true.into(), &verdict["rule"]));
    assert!(rules[0]["why_not"].as_str().expect("a reason").contains("it is NEW"), "{json:#}");
}

#[test]
fn without_a_file_the_built_in_policy_is_asked() {
    let (code, stdout, _) = xrouter(&["explain", "--lan", "eth0", "--wan", "eth1", "tcp 10.0.0.5:1 > 1.1.1.1:443"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("arrives by eth0") && stdout.contains("[built-in policy:"), "{stdout}");
    let (code, stdout, _) =
        xrouter(&["explain", "--lan", "eth0", "--wan", "eth1", "-i", "eth1", "tcp 1.1.1.1:1 > 10.0.0.5:22"]);
    assert_eq!(code, 1, "{stdout}");
    assert!(stdout.contains("DROP (rule_drop) by filter FORWARD rule 4 [built-in policy:9]"), "{stdout}");
}

#[test]
fn wrong_questions_are_exit_code_2_and_no_daemon_4() {
    let refused = |args: &[&str], code: i32, parts: &[&str]| {
        let (got, stdout, stderr) = xrouter(args);
        assert_eq!((got, stdout.as_str()), (code, ""), "{args:?}: {stderr}");
        parts.iter().for_each(|part| assert!(stderr.contains(part), "{args:?}: no {part:?} in:\n{stderr}"));
    };
    refused(&["explain"], 2, &["PACKET"]);
    refused(&["explain", "--lan", "a", "tpc 1.1.1.1:1 > 2.2.2.2:2"], 2, &["`tpc` is no packet", "A packet is one of"]);
    let wrong_port = ["explain", "--lan", "a", "--wan", "b", "-i", "c", "udp 1.1.1.1:1 > 2.2.2.2:2"];
    refused(&wrong_port, 2, &["-i c: no port of this router; it has a (lan) and b (wan)"]);
    refused(&["explain", "--rules", "/no/such", "udp 1.1.1.1:1 > 2.2.2.2:2"], 2, &["/no/such"]);
    let nobody = ["explain", "--control", "/no/such.sock", "udp 1.1.1.1:1 > 2.2.2.2:2"];
    refused(&nobody, 4, &["no xrouter listens", "--rules FILE"]);
}

/// Rules of a running router, one of which lets only a few through.
const RULES: &str = "*filter\n:FORWARD DROP [0:0]\n\
    -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i lan -p icmp -m limit --limit 1/hour --limit-burst 2 -j ACCEPT\n\
    -A FORWARD -i lan -p tcp --dport 80 -j ACCEPT\nCOMMIT\n";

#[test]
fn a_running_router_explains_what_it_does_and_changes_nothing() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let rules = net.file("rules.v4");
    std::fs::write(&rules, RULES).expect("a file");
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &rules.display().to_string()]);
    let ask = |packet: &str| {
        let output = router.verb(&["explain", "-j", "-i", "lan", packet]).output().expect("it starts");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
    };
    let ping = "icmp 10.1.0.2 > 10.2.0.2 echo-request id 7";
    for _ in 0..4 {
        let json = ask(ping);
        assert_eq!(json["verdict"]["verdict"], "ACCEPT", "asking takes no credit: {json:#}");
        assert_eq!(json["verdict"]["output"], "wan");
    }
    assert!(router.ask(&["conntrack", "-L"]).is_empty(), "asking makes no connection");
    net.must(Place::Lan, "ping -c 1 -W 2 10.2.0.2");
    let mac = net.ip(Place::Wan, "-br link show eth0");
    let mac = mac.split_whitespace().nth(2).expect("an address");
    let json = ask("tcp 10.1.0.2:999 > 10.2.0.2:80 syn");
    assert_eq!((&json["verdict"]["next_hop"], &json["verdict"]["mac"]), (&"10.2.0.2".into(), &mac.into()), "{json:#}");
    let json = ask("tcp 10.1.0.2:999 > 10.2.0.2:81 syn");
    assert_eq!((&json["verdict"]["reason"], &json["verdict"]["passes"]), (&"policy_drop".into(), &false.into()));

    // A real connection: both of its directions are known, and a segment from beside its window is not of it.
    let _server = net.start(Place::Wan, &["iperf3", "-s", "-p", "80"]);
    net.wait_for_listener(Place::Wan, 80);
    let client =
        net.start(Place::Lan, &["iperf3", "-c", "10.2.0.2", "-p", "80", "-t", "30", "-b", "1k", "--cport", "5555"]);
    eventually(Duration::from_secs(5), "a connection", || {
        router.ask(&["conntrack", "-L", "-p", "tcp", "--sport", "5555"]).contains("ESTABLISHED")
    });
    let json = ask("tcp 10.1.0.2:5555 > 10.2.0.2:80 rst seq 1");
    let state = json["stages"].as_array().expect("stages").iter().find(|stage| stage["name"] == "conntrack");
    assert_eq!(state.expect("conntrack is asked")["says"], "INVALID", "{json:#}");
    let listed = router.ask(&["conntrack", "-L", "-p", "tcp", "--sport", "5555"]);
    assert!(listed.contains("ESTABLISHED") && listed.contains("ASSURED"), "it is as it was: {listed}");
    let human = router.ask(&["explain", "-i", "lan", "tcp 10.1.0.2:5555 > 10.2.0.2:80 syn"]);
    assert!(human.contains("it is of a connection, in its original direction:\n  tcp      6 "), "{human}");
    drop(client);
    let before = router.ask(&["stats", "-j"]);
    let counted = |json: &str| serde_json::from_str::<Value>(json).expect("JSON")["rules"].clone();
    ask("tcp 10.1.0.2:999 > 10.2.0.2:80 syn");
    // Packets of the real connection may be counted meanwhile, by the rule for those alone.
    assert_eq!(counted(&before)[2], counted(&router.ask(&["stats", "-j"]))[2], "asking counts nothing");
    router.stop();
}

/// Starts a trace and waits until the router follows packets for it.
fn tracing(router: &Router, words: &[&str]) -> Program {
    let program = Program::start(&mut router.verb(&[&["trace"], words].concat()));
    eventually(Duration::from_secs(5), "the trace", || program.said().contains("tracing; ^C ends it"));
    program
}

/// The reports of a trace that prints JSON.
fn reports(program: &Program) -> Vec<Value> {
    let lines = program.said();
    lines.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_trace_tells_of_every_packet_also_of_those_that_would_take_a_shortcut() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let rules = net.file("rules.v4");
    std::fs::write(&rules, RULES).expect("a file");
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &rules.display().to_string()]);
    let mut trace = tracing(&router, &["-j", "-c", "30", "tcp", "host", "10.1.0.2", "port", "80"]);
    let second = router.verb(&["trace", "icmp"]).output().expect("it starts");
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("somebody traces already"), "{}", text(&second.stderr));
    let _server = net.start(Place::Wan, &["iperf3", "-s", "-p", "80"]);
    net.wait_for_listener(Place::Wan, 80);
    net.must(Place::Lan, "iperf3 -c 10.2.0.2 -p 80 -n 200k");
    assert_eq!(trace.end(Duration::from_secs(5)).code(), Some(0), "{}", trace.said());
    let seen = reports(&trace);
    assert_eq!(seen.len(), 30, "{}", trace.said());
    let first = &seen[0];
    assert!(first["packet"].as_str().expect("words").starts_with("tcp 10.1.0.2:"), "{first:#}");
    assert!(first["packet"].as_str().expect("words").ends_with(" > 10.2.0.2:80 syn"), "{first:#}");
    assert_eq!((&first["input"], &first["state"], &first["ttl"]), (&"lan".into(), &"NEW".into(), &64.into()));
    assert_eq!(first["rules"].as_array().map(Vec::len), Some(1), "{first:#}");
    assert_eq!((&first["rules"][0]["chain"], &first["rules"][0]["rule"]), (&"FORWARD".into(), &3.into()));
    assert_eq!(first["rules"][0]["place"], format!("{}:5", rules.display()));
    assert_eq!((&first["verdict"]["verdict"], &first["verdict"]["next_hop"]), (&"ACCEPT".into(), &"10.2.0.2".into()));
    assert_eq!((&seen[1]["input"], &seen[1]["state"]), (&"wan".into(), &"ESTABLISHED".into()), "{:#}", seen[1]);
    for report in &seen[1..] {
        let rule = &report["rules"][0]["rule"];
        assert!(report["state"] == "ESTABLISHED" && *rule == 1 || report["state"] == "NEW" && *rule == 3, "{report:#}");
        assert_eq!(report["verdict"]["passes"], true, "{report:#}");
    }
    // What is dropped, and by whom; a filter that does not fit hears nothing of it.
    let text = tracing(&router, &["in", "lan", "and", "not", "tcp"]);
    net.run(Place::Lan, "iperf3 -c 10.2.0.2 -p 82 --connect-timeout 200");
    // Each has an identifier of its own: a new connection, of which two are let in.
    for _ in 0..3 {
        net.run(Place::Lan, "ping -c 1 -W 1 10.2.0.2");
    }
    let wanted = "DROP (policy_drop) by the policy of filter FORWARD";
    eventually(Duration::from_secs(5), "a drop", || text.said().contains(wanted));
    let said = text.said();
    assert!(said.contains("lan: icmp 10.1.0.2 > 10.2.0.2 echo-request, 84 bytes, ttl 64, NEW\n"), "{said}");
    assert!(said.contains("  filter:FORWARD:rule:2  -A FORWARD -i lan -p icmp -m limit"), "{said}");
    assert!(said.contains("  filter:FORWARD:policy  :FORWARD DROP  ["), "{said}");
    assert!(!said.contains("tcp 10.1.0.2"), "{said}");
    drop(text);
    // The one before has gone: another may come, and is told what it does not see.
    let mut busy = None;
    eventually(Duration::from_secs(5), "room for another trace", || {
        let program = Program::start(&mut router.verb(&["trace", "--rate", "2"]));
        std::thread::sleep(Duration::from_millis(200));
        let listens = program.said().contains("tracing");
        busy = Some(program);
        listens
    });
    net.run(Place::Lan, "ping -c 20 -i 0.01 -W 1 10.2.0.2");
    let busy = busy.expect("started");
    eventually(Duration::from_secs(5), "word of what is not shown", || {
        busy.said().contains("not shown: too many in a second")
    });
    router.stop();
}

#[test]
fn a_trace_of_a_very_long_way_says_what_it_leaves_out_and_names_the_rule_that_decided() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let rules = net.file("rules.v4");
    let counting: String = (0..40).map(|n| format!("-A FORWARD -p icmp -m comment --comment n{n}\n")).collect();
    let file = format!("*filter\n:FORWARD ACCEPT [0:0]\n{counting}-A FORWARD -p icmp -j DROP\nCOMMIT\n");
    std::fs::write(&rules, file).expect("a file");
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &rules.display().to_string()]);
    let (mut json, ping) =
        (tracing(&router, &["-j", "-c", "1", "icmp"]), || net.run(Place::Lan, "ping -c 1 -W 1 10.2.0.2"));
    ping();
    assert_eq!(json.end(Duration::from_secs(5)).code(), Some(0), "{}", json.said());
    let seen = reports(&json);
    let rules = seen[0]["rules"].as_array().expect("rules");
    let numbers: Vec<u64> = rules.iter().filter_map(|rule| rule["rule"].as_u64()).collect();
    assert_eq!(numbers, (1..32).chain([41]).collect::<Vec<u64>>());
    let left_out: Vec<u64> = rules.iter().map(|rule| rule["left_out"].as_u64().unwrap_or(0)).collect();
    assert_eq!((left_out[30], left_out.iter().sum::<u64>()), (9, 9), "{left_out:?}");
    assert_eq!(seen[0]["verdict"]["rule"], 41, "{:#}", seen[0]);
    let mut text = tracing(&router, &["-c", "1", "icmp"]);
    ping();
    assert_eq!(text.end(Duration::from_secs(5)).code(), Some(0), "{}", text.said());
    let said = text.said();
    assert!(said.contains("  ... 9 more rules that matched are left out here\n  filter:FORWARD:rule:41"), "{said}");
    router.stop();
}
