//! The network cards' settings around a real router, on veth pairs in namespaces of its own: set at the start, given back at the
//! end, and after a kill by `xrouter cleanup` or the next start. What ethtool(8) shows is compared whole.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

#[allow(dead_code)] // other tests use the rest
mod support;
use support::{Net, Place, Router, Shape, eventually, privileged, text};

/// All that ethtool(8) shows of both ports and that the router could change.
fn shown(net: &Net) -> String {
    let mut all = String::new();
    for port in ["lan", "wan"] {
        for question in ["-l", "-k", "-g", "-c", "-x"] {
            let output = net.run(Place::Router, &format!("ethtool {question} {port}"));
            all += &format!("{question} {port}\n{}{}", text(&output.stdout), text(&output.stderr));
        }
        all += &net.must(Place::Router, &format!("ip -d link show {port}"));
    }
    // How many frames there have been is not a setting.
    all
}

/// A network whose ports have fewer queues than they could.
fn net() -> Net {
    let net = Net::new(Shape { queues: 4, ..Shape::default() });
    // The hosts' transmit queues bound how few receive queues native XDP takes.
    for place in [Place::Lan, Place::Wan] {
        net.must(place, "ethtool -L eth0 rx 4 tx 1");
    }
    for port in ["lan", "wan"] {
        net.must(Place::Router, &format!("ethtool -L {port} rx 1 tx 1"));
    }
    net
}

fn state(net: &Net) -> String {
    net.file("state").display().to_string()
}

fn notes(net: &Net) -> usize {
    std::fs::read_dir(net.file("state")).map_or(0, |entries| entries.count())
}

fn cleanup(net: &Net, words: &str) -> (Option<i32>, String) {
    let line = format!("{} cleanup --state {} {words}", env!("CARGO_BIN_EXE_xrouter"), state(net));
    let output = net.run(Place::Router, &line);
    (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
}

/// What stands for a change that a crash has left: a note by a process that is no more.
fn leave(net: &Net, port: &str) {
    let inode = net.must(Place::Router, "stat -Lc %i /proc/self/ns/net");
    let index = net.must(Place::Router, &format!("cat /sys/class/net/{port}/ifindex"));
    let mac = net.must(Place::Router, &format!("cat /sys/class/net/{port}/address"));
    let mac: Vec<String> =
        mac.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte").to_string()).collect();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux");
    let channels = |queues: u32| format!(r#"{{"channels":{{"rx":{queues},"tx":{queues},"other":0,"combined":0}}}}"#);
    let note = format!(
        r#"{{"schema":1,"owner":{{"pid":4194305,"started":1,"boot":"{}"}},"namespace":{},
            "interfaces":[{{"name":"{port}","ifindex":{},"mac":[{}]}}],
            "changes":[{{"interface":"{port}","setting":"channels","before":{},"after":{}}}]}}"#,
        boot.trim(),
        inode.trim(),
        index.trim(),
        mac.join(","),
        channels(1),
        channels(3)
    );
    std::fs::create_dir_all(net.file("state")).expect("ours");
    std::fs::write(net.file("state").join(format!("restore-{}-{port}.json", inode.trim())), note).expect("ours");
}

#[test]
fn a_router_that_ends_leaves_no_trace() {
    if !privileged() {
        return;
    }
    let net = net();
    let before = shown(&net);
    let router = Router::start(&net, &["--state", &state(&net)]);
    assert_eq!(notes(&net), 1);
    assert!(router.said().contains("lan: rx-vlan-hw-parse: on -> off"), "{}", router.said());
    assert!(shown(&net).contains("rx-vlan-offload: off"));
    router.stop();
    assert_eq!(shown(&net), before);
    assert_eq!(notes(&net), 0);
}

#[test]
fn as_many_queues_as_workers_and_back() {
    if !privileged() || std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        return;
    }
    let net = net();
    let before = shown(&net);
    let mut router = Router::start(&net, &["--state", &state(&net), "--workers", "2", "--poll", "adaptive"]);
    for port in ["lan", "wan"] {
        assert!(router.said().contains(&format!("{port}: queues: rx 1 tx 1 -> rx 2 tx 2")), "{}", router.said());
    }
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    router.program().signal(Signal::SIGKILL);
    router.program().end(Duration::from_secs(10));
    assert!(net.must(Place::Router, "ethtool -l lan").contains("RX:\t\t2"));
    let (code, said) = cleanup(&net, "");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(shown(&net), before);
    // The same once more, ended as it should be.
    let router = Router::start(&net, &["--state", &state(&net), "--workers", "2", "--poll", "adaptive"]);
    assert_ne!(shown(&net), before);
    router.stop();
    assert_eq!(shown(&net), before);
    assert_eq!(notes(&net), 0);
}

#[test]
fn what_a_killed_router_left_is_undone_once() {
    if !privileged() {
        return;
    }
    let net = net();
    let before = shown(&net);
    leave(&net, "lan");
    net.must(Place::Router, "ethtool -L lan rx 3 tx 3");
    assert_ne!(shown(&net), before);
    let (code, said) = cleanup(&net, "");
    assert_eq!((code, said.as_str()), (Some(0), "lan: queues: rx 1 tx 1 again\n"));
    assert_eq!(shown(&net), before);
    assert_eq!(notes(&net), 0);
    assert_eq!(cleanup(&net, "lan wan"), (Some(0), "nothing to undo\n".to_owned()));

    // Somebody has changed it since: theirs, with a word, and no failure.
    leave(&net, "lan");
    net.must(Place::Router, "ethtool -L lan rx 2 tx 2");
    let (code, said) = cleanup(&net, "lan");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("lan: queues: left at rx 2 tx 2: it was rx 1 tx 1, xrouter made it rx 3 tx 3"), "{said}");
    assert_eq!(notes(&net), 0);

    // Another interface of the same name needs nothing.
    leave(&net, "lan");
    net.must(Place::Router, "ip link set lan address 02:00:00:00:00:77");
    net.must(Place::Router, "ethtool -L lan rx 3 tx 3");
    assert_eq!(cleanup(&net, ""), (Some(0), "nothing to undo\n".to_owned()));
    assert!(net.must(Place::Router, "ethtool -l lan").contains("RX:\t\t3"));
    let (code, said) = cleanup(&net, "nothing0");
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn the_next_start_undoes_first() {
    if !privileged() {
        return;
    }
    let net = net();
    let before = shown(&net);
    leave(&net, "wan");
    net.must(Place::Router, "ethtool -L wan rx 3 tx 3");
    let router = Router::start(&net, &["--state", &state(&net)]);
    assert!(router.said().contains("wan: queues: rx 1 tx 1 again"), "{}", router.said());
    router.stop();
    assert_eq!(shown(&net), before);
}

#[test]
fn a_router_that_lives_is_left_alone() {
    if !privileged() {
        return;
    }
    let net = net();
    let before = shown(&net);
    let mut router = Router::start(&net, &["--state", &state(&net)]);
    let (code, said) = cleanup(&net, "lan");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("lan and wan belong to an xrouter that runs"), "{said}");
    let mut second = Command::new("ip");
    second.args([
        "netns",
        "exec",
        &net.name(Place::Router),
        env!("CARGO_BIN_EXE_xrouter"),
        "--lan",
        "lan",
        "--wan",
        "wan",
    ]);
    let second =
        second.args(["--state", &state(&net), "--control"]).arg(net.file("second")).output().expect("it starts");
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("belong to an xrouter that runs"), "{}", text(&second.stderr));
    assert!(net.pings(Place::Lan, "10.2.0.2"), "it still forwards");
    // Killed, it leaves its note, and is not taken for alive.
    router.program().signal(Signal::SIGKILL);
    router.program().end(Duration::from_secs(10));
    assert_eq!(notes(&net), 1);
    let (code, said) = cleanup(&net, "");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(notes(&net), 0);
    eventually(Duration::from_secs(5), "all is as before", || shown(&net) == before);
}

#[test]
fn a_program_that_is_left_is_taken_off_and_others_are_not() {
    if !privileged() {
        return;
    }
    let net = net();
    let object = net.file("x.o");
    for (name, stays) in [("xrouter_xdp", false), ("somebody_else", true)] {
        let source = net.file("x.c");
        let code = format!("__attribute__((section(\"xdp\"), used)) int {name}(void *ctx) {{ return 2; }}\n");
        std::fs::write(&source, code).expect("ours");
        support::must(
            Command::new("clang").args(["-O2", "-g", "-target", "bpf", "-c", "-o"]).arg(&object).arg(&source),
        );
        net.must(Place::Router, &format!("ip link set dev wan xdp obj {} sec xdp", object.display()));
        let (code, said) = cleanup(&net, "");
        assert_eq!(code, Some(0), "{said}");
        let attached = net.must(Place::Router, "ip link show wan").contains("xdp");
        assert_eq!((attached, said.contains("wan: XDP program xrouter_xdp")), (stays, !stays), "{said}");
    }
}

#[test]
fn nothing_is_changed_where_nothing_may_be() {
    if !privileged() {
        return;
    }
    let net = net();
    let router = Router::start(&net, &["--state", &state(&net), "--nic-setup", "off"]);
    assert!(Path::new(&state(&net)).exists(), "it still says that the ports are its own");
    router.stop();
    assert_eq!(notes(&net), 0);
    // A folder that cannot be made: said, and the router runs.
    let router = Router::start(&net, &["--state", "/proc/no/such/place"]);
    assert!(router.said().contains("cannot note in /proc/no/such/place"), "{}", router.said());
    router.stop();
}
