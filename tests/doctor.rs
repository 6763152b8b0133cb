//! `xrouter doctor` on interfaces of namespaces of its own: veth pairs and a tap device, with things put wrong on purpose.

use std::process::Command;

#[allow(dead_code)] // other tests use the rest
mod support;
use support::{Net, Place, Router, Shape, must, privileged, text};

/// Runs it in the router's namespace; its exit code, and the JSON.
fn doctor(net: &Net, words: &str) -> (Option<i32>, serde_json::Value) {
    let state = net.file("state").display().to_string();
    let line = format!("{} doctor -j --state {state} {words}", env!("CARGO_BIN_EXE_xrouter"));
    let output = net.run(Place::Router, &line);
    let said = text(&output.stdout);
    let json = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{}", text(&output.stderr)));
    (output.status.code(), json)
}

/// Has it mend, with the settings of this machine out of reach: only the namespace is the test's own. Its exit code, and what it did.
fn mend(net: &Net, words: &str) -> (Option<i32>, String) {
    let (program, state) = (env!("CARGO_BIN_EXE_xrouter"), net.file("state").display().to_string());
    let line = format!(
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec {program} doctor --state {state} --fix {words}"
    );
    let output =
        net.command(Place::Router, "unshare").args(["--mount", "sh", "-c", &line]).output().expect("unshare starts");
    (output.status.code(), text(&output.stderr))
}

/// The level, text and command of the line of this subject and topic.
fn line(report: &serde_json::Value, subject: &str, topic: &str) -> (String, String, String) {
    let lines = report["lines"].as_array().expect("lines");
    let found = lines.iter().find(|line| line["subject"] == subject && line["topic"] == topic);
    let found = found.unwrap_or_else(|| panic!("no line {subject} {topic} in {report:#}"));
    let word = |value: &serde_json::Value| value.as_str().unwrap_or("").to_owned();
    (word(&found["level"]), word(&found["text"]), word(&found["fix"]["command"]))
}

#[test]
fn what_is_wrong_is_told_with_what_mends_it() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape { kernel_forwards: true, ..Shape::default() });
    net.ip(Place::Router, "tuntap add tap0 mode tap");
    let before = net.must(Place::Router, "ip -d link") + &net.must(Place::Router, "ethtool -k lan");

    // Too few queues, the kernel forwards.
    let (code, report) = doctor(&net, "--workers 2");
    assert_eq!(code, Some(1));
    assert_eq!(line(&report, "lan", "link").0, "ok");
    assert_eq!(line(&report, "lan", "driver").1.split(['.', ',', ';']).next(), Some("veth"));
    assert_eq!(line(&report, "lan", "xdp").0, "ok");
    assert!(line(&report, "lan", "zero-copy").1.contains("software"));
    let (level, said, command) = line(&report, "lan", "queues");
    assert_eq!(level, "problem");
    assert!(said.contains("never more than 1, for 2 workers") && command.contains("numrxqueues 2"), "{said} {command}");
    assert_eq!(line(&report, "lan", "rss").0, "warning");
    let (level, said, command) = line(&report, "machine", "forwarding");
    assert_eq!(level, "problem");
    assert!(
        said.contains("net.ipv4.ip_forward=1") && command.starts_with("sysctl -w net.ipv4.ip_forward=0"),
        "{said} {command}"
    );
    let (_, tap) = doctor(&net, "tap0 --workers 2");
    let (level, _, command) = line(&tap, "tap0", "link");
    assert_eq!((level.as_str(), command.as_str()), ("problem", "ip link set tap0 up"));
    let (code, _) = doctor(&net, "wan --workers 2");
    assert_eq!(code, Some(1));

    // Looking changes nothing.
    let after = net.must(Place::Router, "ip -d link") + &net.must(Place::Router, "ethtool -k lan");
    assert_eq!(after, before);

    // The FORWARD chain that drops makes it a warning.
    net.must(Place::Router, "iptables -P FORWARD DROP");
    net.must(Place::Router, "sysctl -qw net.ipv6.conf.all.forwarding=0");
    assert_eq!(line(&doctor(&net, "lan").1, "machine", "forwarding").0, "warning");
    net.must(Place::Router, "sysctl -qw net.ipv4.ip_forward=0");
    let (code, report) = doctor(&net, "lan wan --workers 1");
    assert_eq!(line(&report, "machine", "forwarding").0, "ok");
    assert_ne!(code, Some(1), "{report:#}");
}

#[test]
fn programs_and_routers_are_known() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let (source, object) = (net.file("x.c"), net.file("x.o"));
    std::fs::write(&source, "__attribute__((section(\"xdp\"), used)) int somebody_else(void *ctx) { return 2; }\n")
        .expect("ours");
    must(Command::new("clang").args(["-O2", "-g", "-target", "bpf", "-c", "-o"]).arg(&object).arg(&source));
    net.must(Place::Router, &format!("ip link set dev wan xdp obj {} sec xdp", object.display()));
    let (code, report) = doctor(&net, "lan wan");
    assert_eq!(code, Some(1));
    let (level, said, command) = line(&report, "wan", "program");
    assert_eq!(level, "problem");
    assert!(said.contains("somebody_else") && command.contains("ip link set dev wan xdp off"), "{said} {command}");
    assert_eq!(line(&report, "lan", "program").0, "ok");
    // What belongs to somebody else is not taken off.
    let (code, said) = mend(&net, "wan");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("xdp off; ip link set dev wan xdpgeneric off: for you to do"), "{said}");
    net.must(Place::Router, "ip link set dev wan xdp off");

    let state = net.file("state").display().to_string();
    let router = Router::start(&net, &["--state", &state]);
    let (_, report) = doctor(&net, "lan");
    assert!(line(&report, "machine", "routers").1.contains("an xrouter runs on lan and wan"), "{report:#}");
    assert_eq!(line(&report, "lan", "program").1, "xrouter's own is attached, and xrouter runs");
    router.stop();
}

#[test]
fn what_is_safe_is_mended() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    net.must(Place::Router, "ip link set wan down");
    let state = net.file("state").display().to_string();
    let program = env!("CARGO_BIN_EXE_xrouter");
    // Without a name nothing may be mended.
    let refused = net.run(Place::Router, &format!("{program} doctor --fix"));
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(net.must(Place::Router, "ip link show wan").contains("state DOWN"));

    // A killed router's note.
    net.must(Place::Router, "ip link set wan up");
    let mut router = Router::start(&net, &["--state", &state]);
    router.program().signal(nix::sys::signal::Signal::SIGKILL);
    router.program().end(std::time::Duration::from_secs(10));
    net.must(Place::Router, "ip link set wan down");
    let (_, report) = doctor(&net, "lan wan");
    assert_eq!(line(&report, "machine", "routers").0, "warning");
    let huge_pages = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").expect("Linux");
    let (_, said) = mend(&net, "lan wan");
    assert_eq!(std::fs::read_to_string("/proc/sys/vm/nr_hugepages").expect("Linux"), huge_pages, "this machine's own");
    assert!(said.contains("wan link: ip link set wan up: done"), "{said}");
    assert!(said.contains(&format!("xrouter cleanup --state {state} lan wan: done")), "{said}");
    assert!(said.contains("isolcpus=") && said.contains("for you to do"), "{said}");
    let (_, report) = doctor(&net, "lan wan");
    assert_eq!(line(&report, "wan", "link").0, "ok");
    assert!(report["lines"].as_array().expect("lines").iter().all(|line| line["topic"] != "routers"), "{report:#}");
}
