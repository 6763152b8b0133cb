//! Rules changed line by line: the lines do what `iptables-restore --noflush` makes of them in the kernel, and the real binary's
//! rules change on veth while it forwards.

#[allow(dead_code)] // other tests use the rest
mod rules_lab;
#[allow(dead_code)]
mod support;

use std::io::Write;
use std::process::Stdio;
use std::time::Instant;

use rules_lab::{ALONE, Lab, PORTS, may_run};
use support::{Net, Place, Router, Shape, privileged, text};
use xrouter::rules::{change, load, save};
use xrouter::wire::Family;

const BASE: &str = "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                    :POSTROUTING ACCEPT [0:0]\n-A FORWARD -j MARK --set-xmark 0x1/0xffffffff\nCOMMIT\n\
                    *filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:b - [0:0]\n:a - [0:0]\n\
                    -A FORWARD -p tcp -j a\n-A FORWARD -p udp -j b\n-A FORWARD -p icmp -j ACCEPT\n-A FORWARD -p udp -j b\n\
                    -A a -p tcp -m tcp --dport 22 -j ACCEPT\n-A b -j DROP\nCOMMIT\n";

/// Texts for `iptables-restore`, one after the other; with `true`, tables are flushed first.
const CHANGES: &[(bool, &str)] = &[
    (
        false,
        "*filter\n-A FORWARD -s 10.1.0.2 -j DROP\n-I FORWARD -s 10.1.0.3 -j DROP\n-I FORWARD 3 -s 10.1.0.4 -j a\nCOMMIT\n",
    ),
    (false, "*filter\n-D FORWARD -p udp -j b\n-D FORWARD 1\n-R FORWARD 2 -p tcp -g a\nCOMMIT\n"),
    // A chain between the two others, in order of names, and jumps to all.
    (false, "*filter\n:ab - [0:0]\n-A ab -j a\n-A FORWARD -j ab\n-N c\n-A c -j RETURN\n-A FORWARD -j c\nCOMMIT\n"),
    // A chain that is declared again is emptied.
    (false, "*filter\n:a - [0:0]\n-A a -p tcp -m tcp --dport 443 -j ACCEPT\nCOMMIT\n"),
    (false, "*filter\n-P FORWARD ACCEPT\n:INPUT DROP [0:0]\n-E c d\n-F d\n-D FORWARD -j d\n-X d\nCOMMIT\n"),
    (false, "*raw\n-A PREROUTING -p udp -j CT --notrack\nCOMMIT\n*mangle\n-F\nCOMMIT\n"),
    (false, "*filter\n-F FORWARD\n-F ab\n-X ab\n-I FORWARD 1 -m limit --limit 5/sec -j a\nCOMMIT\n"),
    // One line, two rules; texts that were put together; a chain that is declared twice.
    (false, "*filter\n-A FORWARD -s 10.1.0.5,10.1.0.6 -j ACCEPT\n-A FORWARD -s 10.1.0.7 -j ACCEPT\nCOMMIT\n"),
    (false, "*filter\n-D FORWARD -s 10.1.0.5,10.1.0.7 -j ACCEPT\n-C FORWARD -s 10.1.0.6 -j ACCEPT\nCOMMIT\n"),
    (false, "*filter\n-N e\n-A e -j ACCEPT\nCOMMIT\n*mangle\nCOMMIT\n*filter\n-A e -j DROP\n-A FORWARD -j e\nCOMMIT\n"),
    (false, "*filter\n:e - [0:0]\n-A e -j ACCEPT\n:e - [0:0]\n-A e -j RETURN\nCOMMIT\n"),
    // Without --noflush: what the table had is gone, other tables stay.
    (true, "*filter\n:FORWARD DROP [0:0]\n:new - [0:0]\n-A FORWARD -j new\nCOMMIT\n"),
    (
        false,
        "*filter\n-A new -p tcp -j REJECT --reject-with tcp-reset\nCOMMIT\n*mangle\n-A FORWARD -j DSCP --set-dscp 0x08\nCOMMIT\n",
    ),
];

/// Texts that the kernel's tools refuse as a whole.
const REFUSED: &[&str] = &[
    "*filter\n-A FORWARD -j ACCEPT\n-D FORWARD -s 9.9.9.9 -j DROP\nCOMMIT\n",
    "*filter\n-I FORWARD 99 -j ACCEPT\nCOMMIT\n",
    "*filter\n-A nowhere -j ACCEPT\nCOMMIT\n",
    "*filter\n-X new\nCOMMIT\n",
    "*filter\n-N new\nCOMMIT\n",
    // A loop through a rule there was.
    "*filter\n-A new -j other\nCOMMIT\n",
    "*filter\n:other - [0:0]\n-A new -j other\n-A other -j new\nCOMMIT\n",
    "*filter\n-A new -s 10.1.0.5 -j DROP\n-D new -s 10.1.0.5,10.1.0.6 -j DROP\nCOMMIT\n",
    "*filter\n-A new -s 10.1.0.5 -j DROP\n-C new -s 10.1.0.5,10.1.0.6 -j DROP\nCOMMIT\n",
];

/// Tables by name, each with its lines; comments and empty tables aside.
fn tables(saved: &str) -> Vec<String> {
    let lines: Vec<&str> = saved.lines().filter(|line| !line.starts_with('#')).collect();
    let mut tables: Vec<String> = lines.join("\n").split("COMMIT").map(|table| table.trim().to_owned()).collect();
    tables.retain(|table| !table.is_empty());
    tables.sort();
    tables
}

#[test]
fn lines_do_what_they_do_in_the_kernel() {
    if !may_run() {
        return;
    }
    let _alone = ALONE.lock();
    let lab = Lab::new();
    lab.tool(Family::V4, "restore", &[], BASE);
    let mut ruleset = load("base", BASE, Family::V4, &PORTS).expect("good rules");
    for (flush, text) in CHANGES {
        let how: &[&str] = if *flush { &[] } else { &["--noflush"] };
        lab.tool(Family::V4, "restore", how, text);
        ruleset = change(&ruleset, "change", text, *flush).unwrap_or_else(|bad| panic!("{text}\n{bad}")).ruleset;
        assert_eq!(tables(&save(&ruleset, None)), tables(&lab.tool(Family::V4, "save", &[], "")), "{text}");
    }
    let before = tables(&lab.tool(Family::V4, "save", &[], ""));
    for text in REFUSED {
        assert!(lab.try_tool(Family::V4, "restore", &["--noflush"], text).is_err(), "the kernel takes {text}");
        assert_eq!(tables(&lab.tool(Family::V4, "save", &[], "")), before, "{text}");
        let wrong = change(&ruleset, "change", text, false).expect_err(text);
        assert!(wrong.errors() > 0 && wrong.to_string().contains("change:"), "{wrong}");
    }
}

/// A rule that was the host's, and kept as text, may not come into the way of packets.
#[test]
fn packets_are_not_led_to_what_was_left_to_the_host() {
    let base = "*filter\n:FORWARD DROP [0:0]\n:h - [0:0]\n-A INPUT -j h\n-A h -m owner --uid-owner 0 -j DROP\nCOMMIT\n";
    let base = load("base", base, Family::V4, &PORTS).expect("the host's");
    let wrong = change(&base, "change", "*filter\n-A FORWARD -j h\nCOMMIT\n", false).expect_err("not to be done");
    let said = wrong.to_string();
    assert!(said.contains("forwarded packets would come to chain h") && said.contains("change:2:15"), "{said}");
    change(&base, "change", "*filter\n-A h -j ACCEPT\nCOMMIT\n", false).expect("still the host's");
    let own = change(&base, "change", "*filter\n-A FORWARD -m owner --uid-owner 0\nCOMMIT\n", false).expect_err("ours");
    assert!(own.to_string().contains("change:2:"), "{own}");
}

/// What is kept as text is found by it, and follows a chain that gets another name.
#[test]
fn rules_kept_as_text_can_be_deleted_and_lead_on() {
    let base = "*filter\n:FORWARD DROP [0:0]\n:h - [0:0]\n-A INPUT -m owner --uid-owner 0 -j h\n\
                -A h -m owner --uid-owner 1 -j DROP\nCOMMIT\n";
    let base = load("base", base, Family::V4, &PORTS).expect("the host's");
    let after = |lines: &str| {
        let text = format!("*filter\n{lines}\nCOMMIT\n");
        let changed = change(&base, "change", &text, false).unwrap_or_else(|bad| panic!("{bad}"));
        let saved = save(&changed.ruleset, None);
        saved.lines().filter(|line| line.starts_with("-A")).collect::<Vec<_>>().join(";")
    };
    assert_eq!(
        after("-C h -m owner --uid-owner 1 -j DROP\n-D h -m owner --uid-owner 1 -j DROP"),
        "-A INPUT -m owner --uid-owner 0 -j h"
    );
    assert_eq!(after("-F h\n-D INPUT -m owner --uid-owner 0 -j h\n-X h"), "");
    assert_eq!(after("-F h\n-E h other"), "-A INPUT -m owner --uid-owner 0 -j other");
    let wrong =
        change(&base, "change", "*filter\n-D h -m owner --uid-owner 2 -j DROP\nCOMMIT\n", false).expect_err("none");
    assert!(wrong.are_about_rules() && wrong.to_string().contains("no such rule"), "{wrong}");
}

/// A message about what a change makes of older rules points at the line that makes it.
#[test]
fn errors_point_at_the_lines_of_the_change() {
    let base = "*filter\n:FORWARD DROP [0:0]\n:a - [0:0]\n:b - [0:0]\n-A FORWARD -j b\n-A b -p tcp -j a\nCOMMIT\n";
    let base = load("base", base, Family::V4, &PORTS).expect("good rules");
    let refused = |lines: &str| {
        let wrong = change(&base, "change", &format!("*filter\n{lines}\nCOMMIT\n"), false).expect_err(lines);
        (wrong.are_about_rules(), wrong.to_string())
    };
    let (_, said) = refused("-A FORWARD -j ACCEPT\n-A a -p udp -j b");
    assert!(said.contains("loop of chains") && said.contains("change:3:16"), "{said}");
    // A character of two bytes, where a byte is said to be wrong.
    let (about_rules, said) = refused("-A FORWARD -m u32 --u32 \"0&1é=1\" -j ACCEPT");
    assert!(!about_rules && said.contains("change:2:"), "{said}");
    let changed =
        change(&base, "change", "*filter\n-A a -m comment --comment é -j DROP\nCOMMIT\n", false).expect("good");
    let again = change(&changed.ruleset, "again", "*filter\né\n-A b -j nowhere é\nCOMMIT\n", false).expect_err("wrong");
    assert!(again.to_string().contains("again:2:1") && again.to_string().contains("again:3:"), "{again}");
}

/// Exit code, standard output, standard error.
fn ask(router: &Router, words: &[&str], input: &str) -> (i32, String, String) {
    let mut command = router.verb(words);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    (output.status.code().expect("it exits by itself"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_running_routers_rules_change_line_by_line() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let file = net.file("rules.v4");
    let rules = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                 -A FORWARD -i lan -p icmp -j ACCEPT\nCOMMIT\n";
    std::fs::write(&file, rules).expect("a file");
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file.display().to_string()]);
    let done = |words: &[&str]| {
        let (code, said, complaints) = ask(&router, words, "");
        assert_eq!((code, complaints.as_str()), (0, ""), "{words:?}");
        said
    };
    let reaches = || net.pings(Place::Lan, "10.2.0.2");
    assert!(reaches());
    // Silent, as iptables is; in force when it returns; ahead of what lets known connections pass.
    assert_eq!(done(&["iptables", "-I", "FORWARD", "-s", "10.1.0.2", "-j", "DROP"]), "");
    assert!(!reaches());
    assert_eq!(
        done(&["iptables", "-S"]),
        "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-A FORWARD -s 10.1.0.2/32 -j DROP\n\
         -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -i lan -p icmp -j ACCEPT\n"
    );
    let counted = |part: &str| {
        let all = done(&["iptables", "-S", "FORWARD", "-v"]);
        let line = all.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part} in {all}"));
        let counts = line.split(" -c ").nth(1).and_then(|counts| counts.split(' ').next());
        counts.and_then(|count| count.parse::<u64>().ok()).expect("a count")
    };
    let (dropped, passed) = (counted("-j DROP"), counted("-p icmp"));
    assert!(dropped > 0 && passed > 0);
    // Counts stay with their rules, until they are to begin anew.
    done(&["iptables", "-A", "FORWARD", "-p", "tcp", "-m", "comment", "--comment", "two words", "-j", "REJECT"]);
    assert_eq!((counted("-j DROP"), counted("-p icmp"), counted("\"two words\"")), (dropped, passed, 0));
    done(&["iptables", "-Z", "FORWARD", "1"]);
    assert_eq!((counted("-j DROP"), counted("-p icmp")), (0, passed));
    done(&["iptables", "-Z"]);
    assert_eq!((counted("-p icmp"), counted("-P FORWARD")), (0, 0));
    done(&["iptables", "-C", "FORWARD", "-s", "10.1.0.2", "-j", "DROP"]);
    done(&["iptables", "-D", "FORWARD", "-s", "10.1.0.2", "-j", "DROP"]);
    assert!(reaches());
    // As iptables: 1 for what is not there, 2 for what is wrong.
    for line in [
        "iptables -C FORWARD -s 10.1.0.2 -j DROP",
        "iptables -D FORWARD 9",
        "ip6tables -t mangle -A NOWHERE -j DROP",
        "iptables -N NOWHERE -X NOWHERE",
    ] {
        let (code, said, complaints) = ask(&router, &line.split(' ').collect::<Vec<_>>(), "");
        let wrong = if line.contains("-X") { 2 } else { 1 };
        assert_eq!((code, said.as_str()), (wrong, ""), "{line}: {complaints}");
    }
    for (words, part) in [
        (&["iptables", "-A", "FORWARD", "--dprot", "80"][..], "iptables:2:"),
        (&["iptables", "-L"], "rules stats"),
        (
            &["iptables", "-A", "FORWARD", "-m", "connbytes", "--connbytes", "1", "--connbytes-dir", "both"][..],
            "--connbytes-mode",
        ),
        (
            &"iptables -A FORWARD -m connbytes --connbytes 1 --connbytes-dir both --connbytes-mode bytes"
                .split(' ')
                .collect::<Vec<_>>(),
            "these rules need a restart",
        ),
    ] {
        let (code, said, complaints) = ask(&router, words, "");
        assert!(code == 2 && said.is_empty() && complaints.contains(part), "{words:?}: {code} {complaints}");
    }
    let (code, _, complaints) = ask(&router, &["iptables", "-S", "NOWHERE"], "");
    assert!(code == 1 && complaints.contains("no chain NOWHERE"), "{complaints}");
    assert_eq!(done(&["iptables", "-t", "nat", "-S", "POSTROUTING"]), "-P POSTROUTING ACCEPT\n");
    assert_eq!(done(&["iptables", "-nvS", "FORWARD", "2"]).lines().count(), 1);
    // What is the host's is told to be left alone.
    let (code, _, complaints) = ask(&router, &["iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP"], "");
    assert!(
        code == 0 && complaints.contains("note: INPUT: the host's own packets") && complaints.contains("--host-chains"),
        "{complaints}"
    );
    done(&["reload"]);
    // Nothing of the host's is another by this.
    done(&["iptables", "-Z"]);
    done(&["iptables", "-P", "INPUT", "ACCEPT"]);
    done(&["iptables", "-F", "OUTPUT"]);
    // A table that was not there, for the other IP version too.
    done(&["ip6tables", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "CT", "--notrack"]);
    assert!(done(&["ip6tables", "-t", "raw", "-S"]).ends_with("-A PREROUTING -p udp -j CT --notrack\n"));
    // The file brings its rules back.
    done(&["iptables", "-A", "FORWARD", "-j", "DROP"]);
    assert!(done(&["reload"]).contains("2 IPv4 rules (0 added, 1 removed)"));
    router.stop();
}

#[test]
fn thousands_of_changes_come_into_force_at_once_or_not_at_all() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let file = net.file("rules.v4");
    let pings = "-A FORWARD -p icmp -j ACCEPT\n";
    let blocked = |from: usize, count: usize| -> String {
        let rule =
            |n: usize| format!("-A FORWARD -s 198.18.{}.{}/32 -p udp -m udp --dport {n} -j DROP\n", n / 250, n % 250);
        (from..from + count).map(rule).collect()
    };
    std::fs::write(&file, format!("*filter\n:FORWARD DROP [0:0]\n{}{pings}COMMIT\n", blocked(1, 10_000)))
        .expect("a file");
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file.display().to_string()]);
    let mut lines = String::new();
    for n in 1..=5000 {
        lines +=
            &format!("-D FORWARD {n}\n-I FORWARD {n} -s 192.0.2.{}/32 -p tcp -m tcp --dport {n} -j DROP\n", n % 250);
    }
    let restore = ["rules", "restore", "--noflush"];
    let start = Instant::now();
    let (code, said, complaints) =
        ask(&router, &[&restore[..], &["-v"]].concat(), &format!("*filter\n{lines}COMMIT\n"));
    eprintln!("10,000 changes of 10,000 rules: {:?}", start.elapsed());
    assert_eq!((code, complaints.as_str()), (0, ""), "{said}");
    assert!(said.contains("10001 IPv4 rules (5000 added, 5000 removed)"), "{said}");
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    // The last line is wrong: nothing of it is done.
    let all = router.ask(&["rules", "save"]);
    let wrong = format!("*filter\n{}-D FORWARD 1\n-A FORWARD -j NOWHERE\nCOMMIT\n", blocked(1, 300));
    let (code, _, complaints) = ask(&router, &restore, &wrong);
    assert!(code == 2 && complaints.contains("standard input:303:"), "{complaints}");
    assert!(ask(&router, &[&restore[..], &["--test"]].concat(), &format!("*filter\n{pings}COMMIT\n")).0 == 0);
    assert_eq!(router.ask(&["rules", "save"]), all);
    // Whole tables.
    let (code, said, _) =
        ask(&router, &["rules", "restore", "-j"], &format!("*filter\n:FORWARD DROP [0:0]\n{pings}COMMIT\n"));
    assert!(code == 0 && said.contains("\"rules\":1,"), "{said}");
    assert_eq!(router.ask(&["iptables", "-S", "FORWARD"]), "-P FORWARD DROP\n-A FORWARD -p icmp -j ACCEPT\n");
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    router.stop();
}

#[test]
fn a_list_of_recent_stays_while_its_chain_is_out_of_the_way() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let file = net.file("rules.v4");
    let rules = "*filter\n:FORWARD DROP [0:0]\n:k - [0:0]\n-A FORWARD -i wan -j ACCEPT\n-A FORWARD -j k\n\
                 -A k -p udp -m recent --set --name guests -j DROP\n-A k -p icmp -m recent --rcheck --name guests -j ACCEPT\n\
                 COMMIT\n";
    std::fs::write(&file, rules).expect("a file");
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &file.display().to_string()]);
    assert!(!net.run(Place::Lan, "ping -c 1 -W 1 10.2.0.2").status.success(), "no guest yet");
    let mut knock = net.command(Place::Lan, "bash");
    assert!(knock.args(["-c", "echo hello > /dev/udp/10.2.0.2/9"]).status().expect("bash starts").success());
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    router.ask(&["iptables", "-D", "FORWARD", "-j", "k"]);
    assert!(!net.run(Place::Lan, "ping -c 1 -W 1 10.2.0.2").status.success(), "k is out of the way");
    router.ask(&["iptables", "-A", "FORWARD", "-j", "k"]);
    assert!(net.pings(Place::Lan, "10.2.0.2"), "the guest was forgotten");
    router.stop();
}

#[test]
fn the_hosts_chains_follow_every_change_where_they_are_applied() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let must = |words: &str| net.must(Place::Router, words);
    must("iptables -A OUTPUT -d 192.0.2.3 -j DROP");
    let file = net.file("rules.v4");
    std::fs::write(&file, "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n").expect("a file");
    let words = ["--poll", "adaptive", "--rules", &file.display().to_string(), "--host-chains", "apply"];
    let router = Router::start(&net, &words);
    let change = |line: &str| {
        let (code, said, complaints) = ask(&router, &line.split(' ').collect::<Vec<_>>(), "");
        assert_eq!((code, said.as_str(), complaints.as_str()), (0, "", ""), "{line}");
        must("iptables-save")
    };
    let has = |saved: &str, line: &str| saved.lines().any(|it| it == line || it.starts_with(&format!("{line} [")));
    let rule = "-A INPUT -s 192.0.2.9/32 -j DROP";
    assert!(has(&change("iptables -A INPUT -s 192.0.2.9 -j DROP"), rule));
    let saved = change("iptables -D INPUT -s 192.0.2.9 -j DROP");
    assert!(!has(&saved, rule), "taken back here only:\n{saved}");
    assert!(has(&change("iptables -P INPUT DROP"), ":INPUT DROP"));
    let saved = change("iptables -P INPUT ACCEPT");
    assert!(has(&saved, ":INPUT ACCEPT"), "{saved}");
    // Nobody has spoken of OUTPUT, nor of INPUT's policy before.
    assert!(has(&saved, "-A OUTPUT -d 192.0.2.3/32 -j DROP"), "{saved}");
    // A reload takes back what changes have said.
    change("iptables -A INPUT -s 192.0.2.10 -j DROP");
    assert!(has(&change("iptables -P OUTPUT DROP"), ":OUTPUT DROP"));
    router.ask(&["reload"]);
    let saved = must("iptables-save");
    assert!(has(&saved, ":OUTPUT ACCEPT") && !saved.contains("192.0.2.10"), "{saved}");
    assert!(has(&saved, "-A OUTPUT -d 192.0.2.3/32 -j DROP"), "its rules were not spoken of:\n{saved}");
    // What the kernel has of its own stays with a flush of all chains, policies above all.
    must("iptables -P INPUT DROP");
    must("iptables -A INPUT -i lo -j ACCEPT");
    let saved = change("iptables -F");
    assert!(has(&saved, ":INPUT DROP") && has(&saved, "-A INPUT -i lo -j ACCEPT"), "{saved}");
    let saved = change("iptables -A INPUT -s 192.0.2.11 -j ACCEPT");
    assert!(has(&saved, ":INPUT DROP") && has(&saved, "-A INPUT -s 192.0.2.11/32 -j ACCEPT"), "{saved}");
    router.stop();
}
