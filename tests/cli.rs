//! The command line's contract, held on the built program: exit codes, what goes to which stream, and what messages say.
//!
//! The verbs that talk to a daemon are held against the real control socket with a backend of a few connections.

mod daemon;
#[path = "../src/conntrack/testing.rs"]
mod testing;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use daemon::Daemon;
use xrouter::conntrack::{Conntrack, Helper, Settings, Template, Tuple};
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::time::Instant;
use xrouter::verdict::DropReason;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xrouter"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Exit code, standard output, standard error.
fn xrouter(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(args).output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code().expect("it exits by itself"), text(stdout), text(stderr))
}

/// Runs the program, which must say nothing on standard output, exit with `code`, and say each of `parts` on standard error.
#[track_caller]
fn refused(args: &[&str], code: i32, parts: &[&str]) {
    let (got, stdout, stderr) = xrouter(args);
    assert_eq!(got, code, "{args:?}: {stderr}");
    assert_eq!(stdout, "", "{args:?}");
    assert!(stderr.starts_with("error"), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: no {part:?} in:\n{stderr}");
    }
}

/// A directory of its own that goes away with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("xrcli{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a place for files");
        Folder(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a plain path").to_owned()
    }

    fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).expect("written");
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn help_and_version_are_no_failures() {
    for args in [&["-h"][..], &["--help"], &["conntrack", "-h"], &["replay", "-h"], &["stats", "--help"]] {
        let (code, stdout, stderr) = xrouter(args);
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
        assert!(stdout.contains("Usage: xrouter"), "{stdout}");
    }
    let (_, help, _) = xrouter(&["-h"]);
    for part in ["Examples:", "--lan <IF>", "--metrics <ADDR:PORT>", "Exit codes:", "xrouter ready"] {
        assert!(help.contains(part) || part == "xrouter ready", "no {part} in {help}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert!(xrouter(&["version"]).1.starts_with(&format!("xrouter {version} (")));
    assert_eq!(xrouter(&["--version"]).1, format!("xrouter {version}\n"));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    refused(&[], 2, &["--lan is missing", "--wan is missing", "--help"]);
    refused(&["--lan", "lo"], 2, &["--wan is missing"]);
    refused(&["--lan", "a", "--wan", "a"], 2, &["--wan a: lan is the same interface"]);
    refused(&["--lan", "no/where", "--wan", "a"], 2, &["no/where", "1 to 15 bytes"]);
    refused(&["--lan", "sixteen-letters-", "--wan", "a"], 2, &["too long"]);
    refused(&["--mode", "fast"], 2, &["fast", "auto, zero-copy, copy, generic"]);
    refused(&["--poll", "lazy"], 2, &["busy, adaptive"]);
    refused(&["--workers", "0"], 2, &["from 1 to"]);
    refused(&["--cores", "3-1"], 2, &["runs backwards"]);
    refused(&["--workers", "1", "--cores", "1"], 2, &["cannot be used with"]);
    refused(&["--metrics", "9630"], 2, &["ADDR:PORT"]);
    refused(&["--metrics", "localhost:x"], 2, &["`x` is not a port"]);
    refused(&["--control", ""], 2, &["path is empty"]);
    refused(&["--frobnicate"], 2, &["--frobnicate"]);
    refused(&["dance"], 2, &["dance"]);
    refused(&["stats", "--lan", "a"], 2, &["--lan"]);
    refused(&["conntrack"], 2, &["--dump"]);
    refused(&["conntrack", "-L", "-s", "home"], 2, &["`home` is no address"]);
    refused(&["conntrack", "-L", "-p", "tpc"], 2, &["tcp, udp"]);
    refused(&["replay"], 2, &["--lan-pcap"]);
}

#[test]
fn interfaces_that_cannot_be_are_exit_code_2() {
    refused(&["--lan", "xr-no-such-1", "--wan", "xr-no-such-2"], 2, &["--lan xr-no-such-1", "no such interface"]);
    refused(&["--lan", "lo", "--wan", "xr-no-such-2"], 2, &["--lan lo", "loopback"]);
}

#[test]
fn configuration_errors_show_the_line() {
    let folder = Folder::new();
    let config = folder.file("x.toml", "lan = \"eth0\"\nmdoe = \"copy\"\n[conntrack]\nnf_conntrack_max = -1\n");
    let places = [format!("{config}:2:1"), format!("{config}:4:20")];
    let wanted = ["unknown key `mdoe`; did you mean `mode`?", "mdoe = \"copy\"", "^^^^", "nf_conntrack_max = -1"];
    refused(&["--config", &config], 2, &[&wanted[..], &[&places[0], &places[1]]].concat());
    refused(&["--config", &folder.path("none.toml")], 2, &["none.toml: cannot read the file", "No such file"]);
    let binary = folder.path("binary.toml");
    std::fs::write(&binary, b"lan = \"\xff\"").expect("written");
    refused(&["--config", &binary], 2, &["byte 7 is not UTF-8"]);
}

#[test]
fn the_command_line_wins_over_the_file() {
    let folder = Folder::new();
    let config = folder.file("x.toml", "lan = \"xr-file-lan\"\nwan = \"xr-file-wan\"\n");
    refused(&["--config", &config], 2, &["--lan xr-file-lan: there is no such interface"]);
    refused(&["--config", &config, "--lan", "xr-line-lan"], 2, &["--lan xr-line-lan: there is no such interface"]);
    refused(
        &["--config", &config, "--lan", "xr-file-wan"],
        2,
        &["wan = \"xr-file-wan\": lan is the same", "x.toml:2:7"],
    );
}

#[test]
fn no_daemon_is_exit_code_4() {
    let folder = Folder::new();
    let nobody = folder.path("nobody.sock");
    for verb in [&["stats"][..], &["stats", "-j"], &["conntrack", "-L"], &["conntrack", "-E"], &["sysctl", "-a"]] {
        let wanted = [nobody.as_str(), "no xrouter listens", "xrouter --lan IF --wan IF"];
        refused(&[verb, &["--control", &nobody]].concat(), 4, &wanted);
    }
    let file = folder.file("file", "");
    refused(&["stats", "--control", &file], 4, &[&file]);
}

/// A daemon with this many TCP connections from 10.0.0.1 to 1.1.1.1 port 80, open and answered; their source ports count
/// from 1.
fn daemon(name: &str, count: u16) -> Daemon {
    let mut table = Conntrack::new(Settings { max: 65_536, ..Settings::default() }, [1, 2]);
    let now = Instant::from_secs(1000);
    let (inside, outside) = ([10, 0, 0, 1].into(), [1, 1, 1, 1].into());
    let mut track = |src, dst, sport, dport, flags, seq, ack| {
        let flags = testing::flags(flags);
        let segment = testing::Segment { sport, dport, seq, ack, flags, window: 8192, options: vec![], payload: 0 };
        let frame = testing::frame(testing::ANY_HOP, &testing::ip(src, dst, 6, &segment.bytes()));
        let packet = Packet::parse(&frame, PortId::LAN, true).expect("a sound packet");
        let hash = table.hash(&Tuple::of(&packet));
        let tracked = table.track(&packet, &frame, hash, Template::DEFAULT, now).expect("room");
        table.confirm(&tracked, now).expect("room");
    };
    for port in 1..=count {
        track(inside, outside, port, 80, "S", 7, 0);
        track(outside, inside, 80, port, "SA", 77, 8);
        track(inside, outside, port, 80, "A", 8, 78);
    }
    Daemon::start(name, table, now)
}

/// One TFTP request on its way: what it expects is shown, counted and forgotten.
#[test]
fn expectations_are_listed_counted_and_forgotten() {
    let mut table = Conntrack::new(Settings { max: 1000, ..Settings::default() }, [1, 2]);
    let now = Instant::from_secs(1000);
    let request = testing::udp(5000, 69, b"\0\x01file\0octet\0");
    let mut frame =
        testing::frame(testing::ANY_HOP, &testing::ip([10, 0, 0, 1].into(), [1, 1, 1, 1].into(), 17, &request));
    let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a sound packet");
    let template = Template { helper: Helper::from_name("tftp"), ..Template::DEFAULT };
    let tracked = table.track(&packet, &frame, table.hash(&Tuple::of(&packet)), template, now).expect("room");
    table.help(&tracked, &mut packet, &mut frame, &mut || 0, now).expect("understood");
    table.confirm(&tracked, now).expect("room");
    let daemon = Daemon::start("expect", table, now);
    let conntrack = |args: &[&str]| xrouter(&[&["conntrack", "--control", &daemon.path], args].concat());
    let tool = format!("xrouter v{}: ", env!("CARGO_PKG_VERSION"));
    let line = "300 proto=17 src=1.1.1.1 dst=10.0.0.1 sport=0 dport=5000 mask-src=255.255.255.255 mask-dst=255.255.255.255 \
                sport=0 dport=65535 master-src=10.0.0.1 master-dst=1.1.1.1 sport=5000 dport=69 class=0 helper=tftp\n";
    assert_eq!(conntrack(&["-L", "expect"]), (0, line.into(), format!("{tool}1 expectations have been shown.\n")));
    assert_eq!(
        conntrack(&["-L", "exp", "-f", "ipv6"]),
        (0, String::new(), format!("{tool}0 expectations have been shown.\n"))
    );
    let (code, json, _) = conntrack(&["-L", "expect", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((code, &json["helper"], &json["tuple"]["dport"]), (0, &"tftp".into(), &5000.into()));
    assert!(conntrack(&["-L"]).1.ends_with(" mark=0 helper=tftp use=1\n"));
    assert_eq!(conntrack(&["-C", "expect"]), (0, "1\n".into(), String::new()));
    assert_eq!(conntrack(&["-S", "expect"]).1, "cpu=0   \texpect_new=0 expect_create=1 expect_delete=0 \n");
    assert_eq!(
        conntrack(&["-F", "expect"]),
        (0, String::new(), format!("{tool}expectation table has been emptied.\n"))
    );
    assert_eq!(conntrack(&["-C", "expect"]).1, "0\n");
}

#[test]
fn stats_are_shown_for_people_and_for_programs() {
    let daemon = daemon("stats", 0);
    let (code, stdout, stderr) = xrouter(&["stats", "--control", &daemon.path]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("drops        1 packet") && stdout.contains("policy_drop"), "{stdout}");
    assert!(!stdout.contains("ip_fragment"), "reasons without a drop are left out: {stdout}");
    let (code, stdout, _) = xrouter(&["stats", "-j", "--control", &daemon.path]);
    let json: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, stdout.lines().count(), &json["schema"]), (0, 1, &1.into()));
    for reason in DropReason::ALL {
        let count = u64::from(*reason == DropReason::PolicyDrop);
        assert_eq!(json["workers"][0]["drops"][reason.name()], count, "{reason}");
    }
}

#[test]
fn connections_are_listed_as_conntrack_does() {
    let daemon = daemon("list", 250);
    let (code, stdout, stderr) = xrouter(&["conntrack", "-L", "--control", &daemon.path]);
    assert_eq!(code, 0);
    assert_eq!(stderr, format!("xrouter v{}: 250 flow entries have been shown.\n", env!("CARGO_PKG_VERSION")));
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 250);
    let wanted = "tcp      6 432000 ESTABLISHED src=10.0.0.1 dst=1.1.1.1 sport=249 dport=80 src=1.1.1.1 dst=10.0.0.1 \
                  sport=80 dport=249 [ASSURED] mark=0 use=1";
    assert!(lines.contains(&wanted), "{stdout}");
    let list = |args: &[&str]| xrouter(&[&["conntrack", "-L", "--control", &daemon.path], args].concat());
    assert!(list(&["-o", "extended"]).1.starts_with("ipv4     2 tcp      6 432000 ESTABLISHED src="));
    assert!(list(&["--proc"]).1.lines().all(|line| line.ends_with(" [ASSURED] mark=0 zone=0 use=2")));
    let json: serde_json::Value =
        serde_json::from_str(list(&["-o", "json"]).1.lines().next().expect("a line")).expect("JSON");
    assert_eq!((&json["proto"], &json["original"]["dport"]), (&"tcp".into(), &80.into()));
    for (args, count) in [
        (&["-f", "ipv6"][..], 0),
        (&["-f", "ipv4", "-p", "tcp", "-s", "10.0.0.0/8", "-d", "1.1.1.1"], 250),
        (&["-p", "17"], 0),
        (&["-d", "10.0.0.1"], 0),
        (&["-p", "tcp", "--sport", "7", "--state", "established", "-u", "ASSURED"], 1),
    ] {
        let (code, stdout, stderr) = list(args);
        assert_eq!((code, stdout.lines().count()), (0, count), "{args:?}");
        assert!(stderr.contains(&format!(" {count} flow entries")), "{args:?}: {stderr}");
    }
}

#[test]
fn connections_are_got_counted_and_deleted() {
    let daemon = daemon("delete", 250);
    let conntrack = |args: &[&str]| xrouter(&[&["conntrack", "--control", &daemon.path], args].concat());
    let tool = format!("xrouter v{}: ", env!("CARGO_PKG_VERSION"));
    assert_eq!(conntrack(&["-C"]), (0, "250\n".into(), String::new()));
    let (code, stdout, _) = conntrack(&["-S"]);
    let counters = "cpu=0   \tfound=0 invalid=0 insert=250 insert_failed=0 drop=0 early_drop=0 error=0 search_restart=0 \
                    clash_resolve=0 chaintoolong=0 \n";
    assert_eq!((code, stdout.as_str()), (0, counters));
    let tuple = ["-p", "tcp", "-s", "10.0.0.1", "-d", "1.1.1.1", "--dport", "80", "--sport"];
    let (code, stdout, stderr) = conntrack(&[&["-G"], &tuple[..], &["5"]].concat());
    assert_eq!((code, stderr), (0, format!("{tool}1 flow entries have been shown.\n")));
    assert!(stdout.contains("sport=5 ") && stdout.ends_with(" mark=0 use=2\n"), "{stdout}");
    let (code, stdout, stderr) = conntrack(&[&["-G"], &tuple[..], &["500"]].concat());
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert_eq!(stderr, format!("{tool}Operation failed: such conntrack doesn't exist\n"));
    let (code, stdout, stderr) = conntrack(&[&["-D"], &tuple[..], &["5"]].concat());
    assert_eq!((code, stderr), (0, format!("{tool}1 flow entries have been deleted.\n")));
    assert!(stdout.contains("sport=5 ") && stdout.ends_with(" mark=0 use=1\n"), "{stdout}");
    let (code, stdout, stderr) = conntrack(&[&["-D"], &tuple[..], &["5"]].concat());
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert_eq!(stderr, format!("{tool}0 flow entries have been deleted.\n"));
    assert_eq!(conntrack(&["-C"]).1, "249\n");
    let emptied = format!("{tool}connection tracking table has been emptied.\n");
    assert_eq!(conntrack(&["-F"]), (0, String::new(), emptied));
    assert_eq!(conntrack(&["-C"]).1, "0\n");
}

#[test]
fn a_reload_says_what_it_did_and_shows_what_is_wrong() {
    let daemon = daemon("reload", 3);
    let reload = ["reload", "--control", &daemon.path];
    let (code, said, complaints) = xrouter(&reload);
    assert_eq!((code, complaints.as_str()), (0, ""));
    assert_eq!(said, "policy 2 is in force: ; 0 of 3 connections ended (recheck)\n");
    let (_, said, _) = xrouter(&[&reload[..], &["--established", "keep", "-j"]].concat());
    assert!(said.starts_with("{\"generation\":2,") && said.contains("\"established\":\"keep\""), "{said}");
    refused(&[&reload[..], &["--dry-run"]].concat(), 2, &["a line is wrong", "rules.v4:7:1"]);
    refused(&[&reload[..], &["--established", "some"]].concat(), 2, &["allowed: keep, recheck, flush"]);
    refused(&["reload", "--control", "/nowhere/xrouter.sock"], 4, &["no xrouter listens"]);
}

#[test]
fn words_of_iptables_become_lines_for_the_daemon() {
    let daemon = daemon("change", 3);
    let asked = |verb: &str, words: &str| {
        let words: Vec<&str> = words.split('|').collect();
        xrouter(&[&[verb, "--control", &daemon.path], &words[..]].concat())
    };
    // The daemon of this test gives the text back as a note.
    for (verb, words, text) in [
        ("iptables", "-A|FORWARD|-j|DROP", "*filter\n-A FORWARD -j DROP\nCOMMIT"),
        ("ip6tables", "-t|mangle|-w|-F", "*mangle\n-F\nCOMMIT"),
        (
            "iptables",
            "-A|a|-m|comment|--comment|it's \"so\"",
            "*filter\n-A a -m comment --comment \"it\\'s \\\"so\\\"\"\nCOMMIT",
        ),
    ] {
        let (code, said, complaints) = asked(verb, words);
        assert_eq!((code, said.as_str()), (0, ""), "{complaints}");
        assert!(complaints.contains(text), "{text} is not in {complaints}");
    }
    let (_, said, _) = asked("ip6tables", "-v|-F");
    assert!(said.contains("IPv6 rules (0 added, 0 removed)"), "{said}");
    refused(&["iptables", "--control", &daemon.path, "-A", "wrong"], 2, &["a line is wrong", "iptables:2:1"]);
    refused(&["iptables", "--control", &daemon.path, "-t", "fliter", "-F"], 2, &["fliter", "filter, raw, mangle"]);
    refused(&["iptables", "--control", &daemon.path, "-v"], 2, &["no command"]);
    refused(&["iptables", "--control", "/nowhere/xrouter.sock", "-F"], 4, &["no xrouter listens"]);
    refused(&["rules", "restore", "--control", "/nowhere/xrouter.sock", "/dev/null"], 4, &["no xrouter listens"]);
}

#[test]
fn settings_are_shown_and_changed_as_sysctl_does() {
    let daemon = daemon("sysctl", 3);
    let sysctl = |args: &[&str]| xrouter(&[&["sysctl", "--control", &daemon.path], args].concat());
    let (code, all, _) = sysctl(&["-a"]);
    assert_eq!((code, all.lines().count()), (0, xrouter::control::sysctl::values(&Settings::default()).len() + 1));
    assert!(all.contains("net.netfilter.nf_conntrack_max = 65536\n"), "{all}");
    assert!(all.contains("net.netfilter.nf_conntrack_count = 3\n"), "{all}");
    let changed = "net.netfilter.nf_conntrack_max = 1000\nnet.netfilter.nf_conntrack_tcp_loose = 0\n";
    let (code, stdout, _) =
        sysctl(&["-w", "net.netfilter.nf_conntrack_max=1000", "net/netfilter/nf_conntrack_tcp_loose=0"]);
    assert_eq!((code, stdout.as_str()), (0, changed));
    assert_eq!(sysctl(&["-n", "nf_conntrack_max"]).1, "1000\n");
    let control = ["sysctl", "--control", &daemon.path];
    refused(
        &[&control[..], &["nf_conntrack_udp_timeout_steam"]].concat(),
        2,
        &["did you mean `nf_conntrack_udp_timeout_stream`?"],
    );
    refused(
        &[&control[..], &["nf_conntrack_udp_timeout=0"]].concat(),
        2,
        &["nf_conntrack_udp_timeout = 0", "from 1 to"],
    );
    refused(&[&control[..], &["nf_conntrack_count=0"]].concat(), 2, &["cannot be set"]);
    refused(&[&control[..], &["-w", "nf_conntrack_max"]].concat(), 2, &["NAME=VALUE"]);
    refused(&[&control[..], &["nf_conntrack_max=70000"]].concat(), 1, &["built for 65536", "needs a restart"]);
    refused(&[&control[..], &["nf_conntrack_acct=1", "nf_conntrack_max=5"]].concat(), 1, &["needs a restart"]);
    assert_eq!(sysctl(&["-n", "nf_conntrack_max"]).1, "1000\n", "all or none");
}

#[test]
fn what_conntrack_cannot_do_here_says_why() {
    for (args, part) in [
        (&["-I"][..], "made and changed by packets and rules only"),
        (&["-U", "-p", "tcp"], "made and changed by packets and rules only"),
        (&["-L", "-z"], "cannot be set back"),
        (&["-D", "expect"], "can be listed"),
        (&["-L", "exp", "-p", "tcp"], "no filter but --family"),
        (&["-L", "expect", "-o", "xml"], "-o json"),
        (&["-L", "dying"], "there is no other"),
        (&["-L", "foo"], "unknown table `foo`"),
        (&["-L", "-D"], "cannot be used with"),
        (&["-C", "-p", "udp"], "a filter has no meaning with -C"),
        (&["-F", "-s", "1.2.3.4"], "-D deletes what filters let through"),
        (&["-L", "-e", "NEW"], "--event-mask has no meaning with -L"),
        (&["-E", "-e", "FOO"], "`FOO` is no kind of event"),
        (&["-L", "-o", "foo"], "extended"),
        (&["-L", "--sport", "4"], "need -p tcp, udp, udplite or sctp"),
        (&["-L", "-p", "tcp", "--state", "FOO"], "SYN_SENT"),
        (&["-L", "-u", "FOO"], "ASSURED"),
        (&["-L", "-m", "foo"], "MARK/MASK"),
        (&["-L", "-f", "ipv4", "-s", "fd01::2"], "mismatched address family"),
        (&["-L", "-s", "1.2.3.4", "--mask-src", "ffff::"], "another IP version"),
        (&["-G"], "needs --proto"),
        (&["-G", "-p", "udp", "-s", "1.2.3.4", "-d", "1.2.3.5", "--sport", "1"], "needs --sport and --dport"),
        (&["-G", "-p", "50", "-s", "1.2.3.4", "-d", "1.2.3.5", "-m", "1"], "-L has the other filters"),
    ] {
        refused(&[&["conntrack"], args].concat(), 2, &[part]);
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let daemon = daemon("pipe", 20_000);
    let mut child = command(&["conntrack", "-L", "--control", &daemon.path])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut first = [0; 64];
    child.stdout.take().expect("a pipe").read_exact(&mut first).expect("it writes");
    // The pipe is closed now, like `| head -1` does.
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_full_disk_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let output = command(&["version"]).stdout(full).output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write to standard output"), "{stderr}");
}

/// Some rules that are good.
const RULES: &str =
    "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";

#[test]
fn rules_are_checked() {
    let folder = Folder::new();
    let good = folder.file("good.v4", RULES);
    let (code, stdout, stderr) = xrouter(&["rules", "check", &good]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let because = "line 3 needs it (-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT)";
    let tracked = format!("connections are tracked: {because}\n");
    assert_eq!(stdout, format!("{good}: good: 1 IPv4 rule, FORWARD policy DROP\n{tracked}"));
    // Rules that name sets are good with them, and only with them.
    let sets = folder.file("sets", "create bad hash:ip\nadd bad 192.0.2.1\n");
    let naming = folder.file("naming.v4", "*filter\n-A FORWARD -m set --match-set bad src -j DROP\nCOMMIT\n");
    refused(&["rules", "check", &naming], 2, &["there is no set `bad`", "--sets FILE"]);
    let (code, stdout, stderr) = xrouter(&["rules", "check", &naming, "--sets", &sets]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("connections are not tracked: no rule needs it"), "{stdout}");
    let wrong = folder.file("wrong", "create bad hash:ip\nadd bad nonsense\nadd other 192.0.2.1\n");
    refused(&["rules", "check", &naming, "--sets", &wrong], 2, &["wrong:2:", "wrong:3:"]);
    // A doubtful rule is a warning, in front of an error too.
    let doubtful = format!("-A FORWARD -i xr9 -j ACCEPT\n{}", "-A FORWARD -j NOWHERE\n-A FORWARD --frob\n");
    let bad = folder.file("bad.v4", &RULES.replace("COMMIT", &format!("{doubtful}COMMIT")));
    let (code, stdout, stderr) = xrouter(&["rules", "check", &bad, "--lan", "eth0", "--wan", "eth1"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.starts_with("warning: "), "{stderr}");
    for part in [":4:", ":5:", ":6:", "NOWHERE", "--frob", "2 errors"] {
        assert!(stderr.contains(part), "no {part:?} in:\n{stderr}");
    }
    refused(&["rules", "check", &folder.path("none")], 2, &["cannot read the file"]);
    refused(&["rules", "check"], 2, &["<FILE>"]);
    assert_eq!(xrouter(&["rules"]).0, 2);
    refused(&["rules", "check", &good, "--lan", "eth0"], 2, &["both --lan and --wan"]);
}

/// What fuzzing has broken once.
#[test]
fn no_text_that_was_too_much_once_is_too_much_again() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/crashes/rules");
    let files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the folder").map(|file| file.expect("a file").path()).collect();
    assert!(!files.is_empty());
    for file in files.iter().map(|file| file.to_str().expect("a plain path")) {
        for version in ["-4", "-6"] {
            let (code, _, stderr) = xrouter(&["rules", "check", version, file]);
            assert!(matches!(code, 0 | 2), "{file}: {code}: {stderr}");
            assert!(!stderr.contains("panicked"), "{file}: {stderr}");
        }
    }
}

#[test]
fn the_built_in_rules_are_good_rules() {
    let folder = Folder::new();
    for version in ["-4", "-6"] {
        let (code, text, _) = xrouter(&["rules", "default", version, "--lan", "eth7", "--wan", "eth8"]);
        assert_eq!(code, 0);
        assert!(text.contains("-i eth7 -o eth8"), "{text}");
        let file = folder.file("default", &text);
        let (code, stdout, stderr) = xrouter(&["rules", "check", version, &file, "--lan", "eth7", "--wan", "eth8"]);
        // An expert would say one thing of them: as Linux does, they pick up TCP from the middle.
        assert_eq!((code, stderr.matches("warning:").count()), (0, 1), "{stderr}");
        assert!(stderr.contains("NEW is not only a SYN"), "{stderr}");
        assert!(stdout.contains(&format!("IPv{}", &version[1..])), "{stdout}");
    }
}

#[test]
fn rules_are_read_before_anything_is_asked_of_the_machine() {
    let folder = Folder::new();
    let bad = folder.file("bad.v4", "*filter\n-A FORWARD --frob\nCOMMIT\n");
    in_namespace(&folder, "", &["--rules", &bad], |code, stderr| {
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(&format!("{bad}:2:")), "{stderr}");
    });
}

#[test]
fn missing_privileges_are_exit_code_3() {
    let folder = Folder::new();
    let without = "setpriv --bounding-set=-net_admin,-bpf,-sys_admin --inh-caps=-net_admin,-bpf,-sys_admin";
    in_namespace(&folder, without, &[], |code, stderr| {
        assert_eq!(code, 3, "{stderr}");
        assert!(stderr.contains("missing CAP_NET_ADMIN (to attach") && stderr.contains("CAP_BPF"), "{stderr}");
        assert!(!stderr.contains("CAP_NET_RAW"), "{stderr}");
    });
}

#[test]
fn an_interface_that_is_down_is_exit_code_3() {
    in_namespace(&Folder::new(), "ip link set xrw down;", &[], |code, stderr| {
        assert_eq!(code, 3, "{stderr}");
        assert!(stderr.contains("--wan xrw: the interface is down. Do: ip link set xrw up"), "{stderr}");
    });
}

/// Runs the router between `xrl` and `xrw`, the two ends of a veth in a network namespace that ends with it, with `before` in
/// front of the command. Does nothing without the right to make namespaces.
fn in_namespace(folder: &Folder, before: &str, args: &[&str], judge: impl FnOnce(i32, &str)) {
    let script = "ip link add xrl type veth peer name xrw && ip link set xrl up && ip link set xrw up || exit 99";
    let control = folder.path("x.sock");
    let program = env!("CARGO_BIN_EXE_xrouter");
    let script = format!("{script}\n{before} \"$@\"");
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", &script, "sh", program, "--lan", "xrl", "--wan", "xrw", "--control", &control])
        .args(args)
        .output();
    let Ok(output) = output else { return eprintln!("skipped: no unshare(1)") };
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("unshare failed") || output.status.code() == Some(99) {
        return eprintln!("skipped: cannot make a network namespace: {stderr}");
    }
    judge(output.status.code().expect("it exits by itself"), &stderr);
}

/// A pcap file with these frames, microseconds apart as given.
fn pcap(packets: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut file: Vec<u8> =
        [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 262_144, 1].into_iter().flat_map(u32::to_le_bytes).collect();
    for (micros, frame) in packets {
        let length = frame.len() as u32;
        file.extend([0, *micros, length, length].into_iter().flat_map(u32::to_le_bytes));
        file.extend(frame);
    }
    file
}

/// A UDP datagram from `from` (which port it enters by decides the MAC addresses).
fn udp(lan: bool, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let (host, router) =
        if lan { ([2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 1, 1]) } else { ([2, 0, 0, 0, 2, 2], [2, 0, 0, 0, 2, 1]) };
    let mut frame = Vec::new();
    let packet = etherparse::PacketBuilder::ethernet2(host, router).ipv4(from.0, to.0, 64).udp(from.1, to.1);
    packet.write(&mut frame, b"hello").expect("a packet");
    frame
}

#[test]
fn captures_are_replayed_through_rules_and_connections() {
    let folder = Folder::new();
    let (inside, outside, stranger) = ([10, 0, 0, 2], [1, 1, 1, 1], [9, 9, 9, 9]);
    let lan = [(10, udp(true, (inside, 1000), (outside, 53)))];
    // Before the question; the answer; nobody asked.
    let wan = [
        (5, udp(false, (outside, 53), (inside, 1000))),
        (20, udp(false, (outside, 53), (inside, 1000))),
        (30, udp(false, (stranger, 53), (inside, 1000))),
    ];
    for (name, packets) in [("lan.pcap", &lan[..]), ("wan.pcap", &wan[..])] {
        std::fs::write(folder.path(name), pcap(packets)).expect("written");
    }
    let (lan, wan, out) = (folder.path("lan.pcap"), folder.path("wan.pcap"), folder.path("out.pcapng"));
    let files = ["replay", "--lan-pcap", &lan, "--wan-pcap", &wan, "-w", &out];
    let (code, stdout, stderr) = xrouter(&files);
    assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
    assert!(stderr.starts_with("4 packets read, 2 written, 0 for the host itself, 2 dropped\n"), "{stderr}");
    assert!(stderr.contains("2  rule_drop"), "{stderr}");
    let written = std::fs::read(&out).expect("written");
    // The question left with one hop less, to the gateway's address.
    let question = udp(true, (inside, 1000), (outside, 53));
    let found = written
        .windows(question.len())
        .find(|bytes| bytes[12..22] == question[12..22] && bytes[26..] == question[26..]);
    let found = found.expect("the question is in the file");
    assert_eq!((&found[..6], found[22]), (&[2, 0, 0, 0, 2, 2][..], 63));

    // Other rules: nothing may pass.
    let rules = folder.file("none.v4", "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i eth0 -p tcp -j ACCEPT\nCOMMIT\n");
    let (code, _, stderr) = xrouter(&[&files[..], &["--rules", &rules, "--lan", "eth0", "--wan", "eth1"]].concat());
    assert_eq!(code, 0);
    assert!(stderr.contains("0 written") && stderr.contains("4  policy_drop"), "{stderr}");

    refused(&[&files[..], &["--rules", &folder.path("absent")]].concat(), 2, &["--rules", "absent: cannot read"]);
    std::fs::write(&wan, b"not a capture at all, really not").expect("written");
    refused(&files, 2, &["--wan-pcap", "no pcap or pcapng file"]);
}

#[test]
fn masquerading_is_one_rule_more_wherever_it_is_asked_for() {
    let folder = Folder::new();
    let rule = "-A POSTROUTING -o eth8 -j MASQUERADE";
    let (code, text, _) = xrouter(&["rules", "default", "--lan", "eth7", "--wan", "eth8", "--masquerade"]);
    assert!(code == 0 && text.lines().any(|line| line == rule), "{text}");
    // The printed policy has the rule, so that asking for it again adds none.
    let (with, without) =
        (folder.file("with", &text), folder.file("without", "*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n"));
    let check = |file: &str| xrouter(&["rules", "check", "--lan", "eth7", "--wan", "eth8", "--masquerade", file]);
    let (code, said, _) = check(&with);
    assert!(code == 0 && said.contains("5 IPv4 rules") && said.contains("are tracked: line"), "{said}");
    let (code, said, _) = check(&without);
    assert!(code == 0 && said.contains("2 IPv4 rules") && said.contains("--masquerade needs it"), "{said}");
    refused(&["rules", "check", "--masquerade", &without], 2, &["--wan"]);
    let packet = "udp 10.0.0.5:1234 > 192.0.2.1:53";
    for (option, told) in [("--masquerade", true), ("--masquerade=ipv6", false)] {
        let (_, said, _) = xrouter(&["explain", "-i", "lan", "--lan", "eth7", "--wan", "eth8", option, packet]);
        assert_eq!(said.contains("MASQUERADE"), told, "{option}: {said}");
    }
    refused(
        &["--lan", "eth7", "--wan", "eth8", "--masquerade=wan"],
        2,
        &["--masquerade", "allowed: ipv4, ipv6, both, no"],
    );
}
