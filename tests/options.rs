//! What rules need beside themselves, end to end: sets, a place for copies, tracking without need, and the host's own chains.

#[allow(dead_code)] // the other tests use the rest
mod support;

use std::fs;
use std::time::Duration;

use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use support::{Net, Place, Router, Shape, eventually, privileged, text};

const SECOND: Duration = Duration::from_secs(1);

/// A file of the test's, by its path.
fn file(net: &Net, name: &str, text: &str) -> String {
    let file = net.file(name);
    fs::write(&file, text).expect("a file");
    file.display().to_string()
}

#[test]
fn sets_change_in_a_running_router() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let allowed = |addr: &str| {
        file(&net, "sets", &format!("create allowed hash:net family inet hashsize 64 maxelem 64\nadd allowed {addr}\n"))
    };
    let rules = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
                 -A FORWARD -m set --match-set allowed dst -j ACCEPT\nCOMMIT\n";
    let (sets, rules) = (allowed("192.0.2.0/24"), file(&net, "rules.v4", rules));
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &rules, "--sets", &sets]);
    assert!(!net.pings(Place::Lan, "10.2.0.2"));
    allowed("10.2.0.0/24");
    let said = router.ask(&["reload", "--sets"]);
    assert!(said.starts_with("sets of ") && said.contains("1 set with 1 elements; rules stay (policy 1)"), "{said}");
    eventually(5 * SECOND, "a ping", || net.pings(Place::Lan, "10.2.0.2"));
    // Its connections end with it, for those who want that.
    let tracked = || router.ask(&["conntrack", "-L", "-f", "ipv4"]).contains("dst=10.2.0.2 ");
    allowed("192.0.2.0/24");
    let said = router.ask(&["reload", "--sets"]);
    assert!(said.ends_with("; connections stay (keep)\n") && tracked(), "{said}");
    let said = router.ask(&["reload", "--sets", "--established", "recheck"]);
    assert!(said.contains(" ended (recheck)") && !said.contains("; 0 of") && !tracked(), "{said}");
    allowed("10.2.0.0/24");
    router.ask(&["reload", "--sets"]);
    eventually(5 * SECOND, "a ping", || net.pings(Place::Lan, "10.2.0.2"));
    let listed = router.ask(&["sets"]);
    assert!(listed.lines().any(|line| line.split_whitespace().eq(["allowed", "hash:net", "1"])), "{listed}");
    assert!(router.ask(&["sets", "--save"]).contains("\nadd allowed 10.2.0.0/24\n"));
    allowed("nonsense");
    for words in [&["reload", "--sets"][..], &["reload"]] {
        let output = router.verb(words).output().expect("the program starts");
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(complaint.contains("/sets:2:"), "{complaint}");
    }
    assert!(net.pings(Place::Lan, "10.2.0.2"), "as before");
    router.stop();
}

#[test]
fn copies_come_into_a_file_and_connections_are_tracked_without_need() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i lan -p icmp -j NFLOG --nflog-prefix echo\nCOMMIT\n";
    let rules = file(&net, "rules.v4", rules);
    let router = Router::start(&net, &["--poll", "adaptive", "--rules", &rules]);
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    assert_eq!(router.ask(&["conntrack", "-L"]).matches("10.2.0.2").count(), 0, "no rule needs it");
    let said = router.said();
    assert!(said.contains("NFLOG rules, and their copies go nowhere"), "{said}");
    assert!(said.contains("IPv4 connections are not tracked"), "{said}");
    router.stop();

    let copies = net.file("copies.pcapng");
    let nflog = copies.display().to_string();
    let words = ["--poll", "adaptive", "--rules", &rules, "--nflog", &nflog, "--track", "always"];
    let router = Router::start(&net, &words);
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    assert!(router.ask(&["conntrack", "-L"]).contains("dst=10.2.0.2"));
    let said = router.said();
    assert!(!said.contains("go nowhere") && !said.contains("not tracked"), "{said}");
    router.stop();
    let bytes = fs::read(&copies).expect("it was made");
    let mut reader = PcapNgReader::new(&bytes[..]).expect("a capture");
    let mut packets = 0;
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.expect("a whole block") else { continue };
        assert_eq!(packet.options, [EnhancedPacketOption::Comment("echo".into())]);
        assert_eq!((packet.interface_id, &packet.data[30..34]), (0, &[10, 2, 0, 2][..]));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let when = packet.timestamp;
        assert!(when < now + SECOND && now < when + 60 * SECOND, "{when:?}, and it is {now:?}");
        packets += 1;
    }
    assert!(packets > 0);
}

#[test]
fn the_hosts_own_chains_are_given_to_the_kernel_or_not_at_all() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let must = |words: &str| net.must(Place::Router, words);
    must("iptables -N mine");
    must("iptables -A mine -s 192.0.2.1 -j ACCEPT");
    must("iptables -A FORWARD -s 192.0.2.2 -j ACCEPT");
    must("iptables -A INPUT -s 192.0.2.3 -j ACCEPT");
    let rules = |last: &str| {
        let text = format!(
            "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -j MARK --set-xmark 0x1/0xffffffff\nCOMMIT\n\
             *filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:mine - [0:0]\n\
             -A INPUT -j mine\n-A mine -p icmp -j ACCEPT\n-A FORWARD -p icmp -j ACCEPT\n{last}COMMIT\n"
        );
        file(&net, "rules.v4", &text)
    };
    let sets = file(&net, "sets", "create nothere hash:ip\n");
    let path = rules("-A OUTPUT -m set --match-set nothere dst -j DROP\n");
    let words = ["--poll", "adaptive", "--rules", &path, "--sets", &sets, "--host-chains", "apply"];
    let before = must("iptables-save");
    let rules_of = |text: &str| {
        let lines: Vec<String> = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        lines.iter().map(|line| line.split(" [").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let output = Router::command(&net, &words).output().expect("the program starts");
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{complaint}");
    assert!(complaint.contains("iptables-restore says:") && complaint.contains("nothere"), "{complaint}");
    assert_eq!(rules_of(&must("iptables-save")), rules_of(&before), "half applied");

    rules("");
    let router = Router::start(&net, &words);
    assert!(!router.said().contains("belongs to the host"), "{}", router.said());
    let after = must("iptables-save");
    for line in [
        "-A INPUT -j mine",
        "-A mine -p icmp -j ACCEPT",
        "-A FORWARD -s 192.0.2.2/32 -j ACCEPT",
        "-A INPUT -p udp -j MARK --set-xmark 0x1/0xffffffff",
    ] {
        assert!(after.lines().any(|it| it == line), "no {line} in\n{after}");
    }
    assert!(after.contains(":INPUT DROP") && after.contains(":FORWARD ACCEPT"), "{after}");
    assert!(!after.contains("192.0.2.3") && !after.contains("192.0.2.1/"), "{after}");
    assert!(!after.contains("-A FORWARD -p icmp"), "{after}");
    // A reload gives the kernel the rest, too, and one that it refuses changes nothing.
    rules("-A OUTPUT -p tcp -m tcp --dport 9 -j DROP\n");
    router.ask(&["reload"]);
    assert!(must("iptables-save").contains("-A OUTPUT -p tcp -m tcp --dport 9 -j DROP"));
    rules("-A OUTPUT -m set --match-set nothere dst -j DROP\n");
    let output = router.verb(&["reload"]).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(must("iptables-save").contains("-A OUTPUT -p tcp -m tcp --dport 9 -j DROP"));
    assert!(net.pings(Place::Lan, "10.2.0.2"));
    router.stop();
}

#[test]
fn the_hosts_tables_change_with_what_else_a_reload_changes_and_nowhere_else() {
    if !privileged() {
        return;
    }
    let net = Net::new(Shape::default());
    let must = |words: &str| net.must(Place::Router, words);
    // The file does not speak of these.
    must("iptables -A OUTPUT -d 192.0.2.3 -j DROP");
    must("iptables -P OUTPUT DROP");
    must("iptables -N others");
    must("iptables -A others -s 192.0.2.4 -j ACCEPT");
    must("iptables -t mangle -A INPUT -s 192.0.2.5 -j MARK --set-mark 5");
    let rules = |last: &str| {
        let text = format!(
            "*filter\n:INPUT DROP [0:0]\n:mine - [0:0]\n:roots - [0:0]\n:through - [0:0]\n\
             -A INPUT -m cpu --cpu 0 -g roots\n-A INPUT -j mine\n-A FORWARD -j through\n\
             -A mine -p icmp -j ACCEPT\n-A roots -p tcp -m tcp --dport 22 -j ACCEPT\n\
             -A roots -m devgroup --src-group 0x1 -j mine\n{last}COMMIT\n"
        );
        file(&net, "rules.v4", &text)
    };
    let path = rules("");
    let config = |settings: &str| file(&net, "xrouter.toml", &format!("[conntrack]\n{settings}"));
    let toml = config("nf_conntrack_udp_timeout = 30\n");
    let words = ["--config", &toml, "--poll", "adaptive", "--rules", &path, "--host-chains", "apply"];
    let router = Router::start(&net, &words);
    let lines = || {
        let text = must("iptables-save");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let first = lines();
    for line in [
        // Given, with chains that only rules lead to which xrouter does not understand.
        "-A INPUT -m cpu --cpu 0 -g roots",
        "-A INPUT -j mine",
        "-A mine -p icmp -j ACCEPT",
        "-A roots -p tcp -m tcp --dport 22 -j ACCEPT",
        "-A roots -m devgroup --src-group 0x1 -j mine",
        ":INPUT DROP",
        // Left alone.
        ":OUTPUT DROP",
        "-A OUTPUT -d 192.0.2.3/32 -j DROP",
        "-A others -s 192.0.2.4/32 -j ACCEPT",
        "-A INPUT -s 192.0.2.5/32 -j MARK --set-xmark 0x5/0xffffffff",
    ] {
        assert!(first.iter().any(|it| it == line), "no {line} in\n{first:#?}");
    }
    assert!(!first.iter().any(|line| line.contains("through")), "only forwarded packets come there: {first:#?}");

    // What is refused for its settings changes nothing, neither here nor in the host.
    let last = "-A INPUT -p tcp -m tcp --dport 9 -j DROP\n";
    rules(last);
    let refused = |part: &str| {
        let output = router.verb(&["reload"]).output().expect("the program starts");
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(complaint.contains(part), "{complaint}");
        assert_eq!(lines(), first, "after: {complaint}");
    };
    config("nf_conntrack_udp_timeout = 30\nnf_conntrack_acct = 1\n");
    refused("[conntrack]");
    config("nf_conntrack_udp_timeout = 30\n");
    rules(&format!(
        "{last}-A FORWARD -m connbytes --connbytes 1 --connbytes-dir both --connbytes-mode bytes -j ACCEPT\n"
    ));
    refused("-m connbytes");
    // What the kernel refuses for the host leaves the settings as they are, too.
    config("nf_conntrack_udp_timeout = 31\n");
    rules("-A OUTPUT -m devgroup --src-group 0x1 -j DROP\n");
    refused("iptables-restore says");
    assert_eq!(router.ask(&["sysctl", "-n", "nf_conntrack_udp_timeout"]), "30\n");
    config("nf_conntrack_udp_timeout = 30\n");
    // A dry run gives the host nothing.
    rules(last);
    router.ask(&["reload", "--dry-run"]);
    assert_eq!(lines(), first);
    router.ask(&["reload"]);
    assert!(lines().iter().any(|line| line == last.trim_end()), "{:#?}", lines());
    router.stop();
}
