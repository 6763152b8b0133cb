//! Every line of doctor, from facts made up to be good, each with one thing wrong.

use super::facts::policy_in;
use super::*;
use crate::control::nic::NicRss;
use crate::snapshot::KernelForwarding;
use crate::xdp::{AttachedProgram, Channels, Feature, Interface, Rings, Rss, XdpFeatures};

fn card() -> Card {
    let interface = Interface {
        name: "eth0".into(),
        driver: "ice".into(),
        mtu: 1500,
        up: true,
        carrier: true,
        loopback: false,
        rx_queues: 4,
        ..Interface::read("lo").expect("lo is there")
    };
    Card {
        interface,
        ethernet: true,
        channels: Some(Channels { max_combined: 8, combined: 4, ..Channels::default() }),
        rings: Some(Rings { rx: 2048, tx: 256, ..Rings::default() }),
        xdp: Some(XdpFeatures { bits: 0x6f, zero_copy_segments: 8 }),
        program: None,
        features: vec![Feature { name: "rx-lro".into(), on: false, wanted: false, changeable: true }],
        rss: NicRss {
            interface: "eth0".into(),
            queues: 4,
            rss: Ok(Rss { function: 1, transform: 0, key: [0x6d, 0x5a].repeat(20), table: vec![0; 128] }),
            fields: vec![(crate::xdp::FlowType::Tcp4, Some(crate::xdp::FIELDS_ALL))],
        },
        node: Some(0),
        local_cpus: "0-7".into(),
    }
}

fn facts() -> Facts {
    Facts {
        release: "6.12.9-amd64".into(),
        lacking: Vec::new(),
        btf: true,
        jit: Some(1),
        cpus: (0..8).collect(),
        workers: 4,
        workers_asked: true,
        isolated: "4-7".into(),
        nohz_full: "4-7".into(),
        governors: [("performance".to_owned(), 8)].into(),
        mitigations: Vec::new(),
        huge_pages: Some(HugePages { total: 64, free: 64 }),
        memlock: None,
        forwarding: KernelForwarding { v4: false, v6: false },
        policies: [Policy::Accept; 2],
        routers: Vec::new(),
        unreadable: Vec::new(),
        irqbalance: false,
        nodes: 1,
        state: None,
        cards: vec![card()],
    }
}

#[test]
fn a_good_machine_is_ok_in_every_line() {
    let report = examine(&facts());
    assert_eq!(report.worst(), Level::Ok, "{report}");
    assert!(report.lines.iter().all(|line| line.fix.is_none()), "{report}");
    let topics: Vec<_> = report.lines.iter().map(|line| (line.subject.as_str(), line.topic)).collect();
    for topic in
        ["kernel", "privileges", "memlock", "cores", "isolation", "governor", "mitigations", "hugepages", "forwarding"]
    {
        assert!(topics.contains(&("machine", topic)), "{topic}");
    }
    for topic in ["link", "driver", "xdp", "zero-copy", "program", "queues", "rss", "mtu", "offloads", "numa"] {
        assert!(topics.contains(&("eth0", topic)), "{topic}");
    }
}

/// The one line that is no longer ok (or, for those that stay ok, the topic's line) after `change`.
#[track_caller]
fn changed(topic: &str, change: impl FnOnce(&mut Facts)) -> Line {
    let mut facts = facts();
    change(&mut facts);
    let report = examine(&facts);
    let bad: Vec<_> = report.lines.iter().filter(|line| line.level != Level::Ok).collect();
    assert!(bad.iter().all(|line| line.topic == topic), "{report}");
    report
        .lines
        .iter()
        .find(|line| line.topic == topic && (bad.is_empty() || line.level != Level::Ok))
        .expect(topic)
        .clone()
}

#[track_caller]
fn says(line: &Line, level: Level, text: &str, command: &str) {
    assert_eq!(line.level, level, "{line:?}");
    assert!(line.text.contains(text), "{line:?}");
    let said = line.fix.as_ref().map_or("", |fix| fix.command.as_str());
    assert!(said.contains(command) && said.is_empty() == command.is_empty(), "{line:?}");
}

#[test]
fn the_machine_is_looked_at() {
    use Level::{Ok, Problem, Warning};
    says(&changed("kernel", |it| it.release = "5.10.0".into()), Problem, "wants 5.18", "newer kernel");
    says(&changed("kernel", |it| it.release = "6.1.0-9".into()), Warning, "6.1.0-9", "newer kernel");
    says(&changed("kernel", |it| it.btf = false), Problem, "BTF", "newer kernel");
    let line = changed("privileges", |it| it.lacking = vec!["missing CAP_BPF. Run it as root".into()]);
    says(&line, Problem, "missing CAP_BPF", "");
    says(&changed("jit", |it| it.jit = Some(0)), Warning, "interprets", "sysctl -w net.core.bpf_jit_enable=1");
    says(&changed("memlock", |it| it.memlock = Some(8 << 20)), Problem, "8192 KiB", "ulimit -l unlimited");
    says(&changed("memlock", |it| it.memlock = Some(1 << 30)), Ok, "1024 MiB may be locked, 96 are needed", "");
    says(&changed("cores", |it| it.workers = 4), Ok, "8 cores, 4 of them", "");
    let line = changed("isolation", |it| it.isolated.clear());
    says(&line, Warning, "no core is isolated", "isolcpus=4-7 nohz_full=4-7 rcu_nocbs=4-7");
    says(&changed("isolation", |it| it.nohz_full.clear()), Warning, "timer tick", "nohz_full=4-7");
    let line = changed("governor", |it| it.governors = [("powersave".to_owned(), 8)].into());
    says(&line, Warning, "powersave", "scaling_governor");
    says(&changed("governor", |it| it.governors.clear()), Ok, "does not govern", "");
    says(&changed("mitigations", |it| it.mitigations = vec!["retbleed".into()]), Ok, "retbleed", "");
    // 8 queues of 12 MiB.
    let line = changed("hugepages", |it| it.huge_pages = Some(HugePages { total: 10, free: 6 }));
    says(&line, Warning, "6 free, packet memory would take 48", "sysctl -w vm.nr_hugepages=52");
    says(&changed("hugepages", |it| it.huge_pages = None), Warning, "no huge pages", "");
    let line = changed("irqbalance", |it| it.irqbalance = true);
    says(&line, Warning, "irqbalance runs", "systemctl disable --now irqbalance");
}

#[test]
fn too_few_cores_are_told_of() {
    let report = |cpus: usize, workers| {
        let mut facts = facts();
        (facts.cpus, facts.workers) = ((0..cpus).collect(), workers);
        examine(&facts).lines.into_iter().find(|line| line.topic == "cores").expect("always there")
    };
    says(&report(4, 4), Level::Warning, "none is left", "xrouter --workers 3");
    says(&report(3, 4), Level::Problem, "this process may use 3", "xrouter --workers 3");
    says(&report(1, 1), Level::Warning, "none is left", "");
}

#[test]
fn forwarding_around_the_rules_is_told_of() {
    let with = |policy| {
        move |it: &mut Facts| {
            it.forwarding.v4 = true;
            it.policies[0] = policy;
        }
    };
    let line = changed("forwarding", with(Policy::Accept));
    says(&line, Level::Problem, "net.ipv4.ip_forward=1", "sysctl -w net.ipv4.ip_forward=0");
    assert!(!line.fix.as_ref().expect("it has one").safe, "others may need it");
    says(&changed("forwarding", with(Policy::Drop)), Level::Warning, "drops what no rule", "ip_forward=0");
    says(&changed("forwarding", with(Policy::Unknown)), Level::Problem, "could not be read", "ip_forward=0");
    says(&changed("forwarding", |it| it.forwarding.v6 = true), Level::Problem, "IPv6", "ip6tables -P FORWARD DROP");
    let saved = "*nat\n:FORWARD DROP [0:0]\nCOMMIT\n*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    assert_eq!(policy_in(saved), Policy::Accept);
    assert_eq!(policy_in("*filter\n:FORWARD DROP [1:2]\nCOMMIT\n"), Policy::Drop);
    assert_eq!(policy_in(""), Policy::Accept);
}

#[test]
fn routers_are_told_of() {
    let left = |runs| Leftover { interfaces: vec!["eth0".into(), "eth1".into()], pid: 7, runs };
    says(&changed("routers", |it| it.routers = vec![left(true)]), Level::Ok, "runs on eth0 and eth1 (process 7)", "");
    let line = changed("routers", |it| (it.routers, it.state) = (vec![left(false)], Some("/x".into())));
    says(&line, Level::Warning, "a killed xrouter", "xrouter cleanup --state /x eth0 eth1");
    says(&changed("routers", |it| it.unreadable = vec!["x.json: bad".into()]), Level::Warning, "x.json: bad", "");
}

#[track_caller]
fn of_card(topic: &str, change: impl FnOnce(&mut Card)) -> Line {
    changed(topic, |facts| change(&mut facts.cards[0]))
}

#[test]
fn an_interface_is_looked_at() {
    use Level::{Ok, Problem, Warning};
    says(&of_card("link", |it| it.interface.up = false), Problem, "down", "ip link set eth0 up");
    says(&of_card("link", |it| it.interface.carrier = false), Warning, "without a link", "cable");
    says(&of_card("link", |it| it.ethernet = false), Problem, "not an Ethernet", "");
    says(
        &of_card("xdp", |it| it.xdp = Some(XdpFeatures { bits: 8, ..XdpFeatures::default() })),
        Warning,
        "no native XDP",
        "card",
    );
    says(
        &of_card("xdp", |it| it.xdp = Some(XdpFeatures { bits: 9, ..XdpFeatures::default() })),
        Warning,
        "redirect",
        "",
    );
    let only_copy = Some(XdpFeatures { bits: 7, zero_copy_segments: 1 });
    let line = of_card("zero-copy", |it| it.xdp = only_copy);
    says(&line, Warning, "the kernel says no for this card", "");
    let of_driver =
        |driver: &str| of_card("zero-copy", |it| (it.interface.driver, it.xdp) = (driver.into(), only_copy));
    says(&of_driver("ena"), Warning, "none known of ena", "another driver");
    says(&of_driver("igb"), Warning, "since Linux 6.14, this is 6.12.9-amd64", "install Linux 6.14");
    says(&of_driver("veth"), Ok, "is software", "");
    says(&of_card("zero-copy", |it| it.interface.driver = "virtio_net".into()), Ok, "virtual IOMMU", "");
    says(
        &of_card("promiscuous", |it| it.interface.promiscuous = true),
        Warning,
        "everybody",
        "ip link set eth0 promisc off",
    );
    says(&of_card("mtu", |it| it.interface.mtu = 3046), Ok, "3046, up to 3046 in one frame", "");
    let line = changed("mtu", |it| (it.release, it.cards[0].interface.mtu) = ("7.1.0".into(), 9000));
    says(&line, Ok, "9000, in up to 3 frames a packet", "");
    says(&of_card("mtu", |it| it.interface.mtu = 9000), Warning, "writes over bytes", "install Linux 7.0");
    let jumbo = |driver: &str, xdp| {
        of_card("mtu", |it| (it.interface.mtu, it.interface.driver, it.xdp) = (9000, driver.into(), xdp))
    };
    let features = |bits, zero_copy_segments| Some(XdpFeatures { bits, zero_copy_segments });
    says(&jumbo("igb", features(0xf, 1)), Warning, "over 3046 bytes only generic mode", "ip link set eth0 mtu 3046");
    says(&jumbo("nfp", features(0xf, 1)), Warning, "over 3814 bytes only generic mode", "mtu 3814");
    says(&jumbo("virtio_net", features(0x6f, 1)), Warning, "3 frames a packet, virtio_net 1", "mtu 3506");
    says(&jumbo("i40e", features(0x6f, 2)), Warning, "i40e 2 in zero-copy mode: copy mode", "mtu 3046");
    says(&jumbo("veth", features(0x67, 1)), Ok, "in up to 3 frames", "");
    says(&jumbo("ice", None), Ok, "in up to 3 frames", "");
    says(&jumbo("mlx5_core", features(0x6f, 1)), Warning, "over 3498 bytes only generic mode", "mtu 3498");
    says(&jumbo("ixgbe", None), Warning, "over 3050 bytes only generic mode", "mtu 3050");
    let mut old = facts();
    (old.release, old.cards[0].interface.mtu) = ("6.1.0".into(), 9000);
    let old = examine(&old).lines.into_iter().find(|line| line.topic == "mtu").expect("the line");
    says(&old, Problem, "before Linux 6.7", "mtu 3046");
    says(&of_card("numa", |it| it.node = None), Ok, "one node", "");
    says(&changed("numa", |it| it.nodes = 2), Ok, "node 0 of 2: its cores are 0-7", "");
}

#[test]
fn kernels_that_do_not_tell_are_judged_by_the_table() {
    let line = of_card("zero-copy", |it| it.xdp = None);
    says(&line, Level::Ok, "ice has it", "");
    let line = of_card("zero-copy", |it| (it.xdp, it.interface.driver) = (None, "idpf".into()));
    says(&line, Level::Warning, "since Linux 6.18", "install Linux 6.18");
}

#[test]
fn queues_are_held_against_workers() {
    use Level::{Ok, Problem, Warning};
    let channels = |most, now| Some(Channels { max_combined: most, combined: now, ..Channels::default() });
    let of =
        |most, now| of_card("queues", move |it| (it.channels, it.interface.rx_queues) = (channels(most, now), now));
    says(&of(8, 8), Ok, "8 of 8; xrouter sets 4", "");
    says(&of(4, 4), Ok, "4 of 4, for 4 workers", "");
    says(&of(2, 2), Problem, "never more than 2, for 4 workers", "xrouter --workers 2");
    says(&of(100, 100), Problem, "more than 64", "ethtool -L eth0 combined 64");
    let line = of_card("queues", |it| {
        (it.channels, it.interface.rx_queues, it.interface.driver) = (None, 1, "tun".into());
    });
    says(&line, Problem, "1 receive queues and never more than 1", "numrxqueues 4");
    // Nobody has said how many workers: fewer queues than cores are a pity.
    let line =
        changed("queues", |it| (it.workers, it.workers_asked, it.cards[0].channels) = (4, false, channels(4, 4)));
    says(&line, Warning, "4 at most, on a machine with 8 cores", "");
    let line = changed("queues", |it| {
        (it.cards[0].channels, it.cards[0].interface.driver, it.workers) = (channels(8, 4), "veth".into(), 2);
    });
    says(&line, Ok, "4 of 8, for 2 workers", "");
}

#[test]
fn spreading_is_looked_at_when_there_are_several_workers() {
    use Level::{Ok, Warning};
    let line = of_card("rss", |it| it.rss.rss = Err("does not show its RSS key".into()));
    says(
        &line,
        Warning,
        "eth0 does not show its RSS key: packets arrive at any worker, and are handed over",
        "--workers 1",
    );
    let line = of_card("rss", |it| it.rss.rss.as_mut().expect("shown").key = (0..40).collect());
    says(&line, Ok, "not symmetric", "");
    let line = changed("rss", |it| {
        (it.workers, it.cards[0].rss.rss) = (1, Err("has no RSS that it shows".into()));
    });
    says(&line, Ok, "not needed", "");
}

#[test]
fn programs_and_offloads_in_the_way_are_told_of() {
    let program = |name: &str| Some(AttachedProgram { id: 9, name: Some(name.into()) });
    let line = of_card("program", |it| it.program = program("xdp_filter"));
    says(&line, Level::Problem, "xdp_filter (id 9)", "ip link set dev eth0 xdp off");
    assert!(!line.fix.as_ref().expect("it has one").safe, "it is somebody else's");
    let line = of_card("program", |it| it.program = program("xrouter_xdp"));
    says(&line, Level::Warning, "no xrouter is known", "xrouter cleanup eth0");
    let runs = Leftover { interfaces: vec!["eth0".into()], pid: 7, runs: true };
    let line = changed("program", |it| (it.cards[0].program, it.routers) = (program("xrouter_xdp"), vec![runs]));
    says(&line, Level::Ok, "xrouter runs", "");

    let on = |changeable| vec![Feature { name: "rx-gro-hw".into(), on: true, wanted: true, changeable }];
    says(&of_card("offloads", |it| it.features = on(true)), Level::Ok, "xrouter turns them off", "");
    says(
        &of_card("offloads", |it| it.features = on(false)),
        Level::Problem,
        "rx-gro-hw on and fixed",
        "module parameter",
    );
    let line = of_card("offloads", |it| (it.features, it.interface.driver) = (on(false), "virtio_net".into()));
    says(&line, Level::Problem, "fixed", "guest_tso4=off");
}

#[test]
fn a_report_is_shown_as_text_and_as_json() {
    let mut facts = facts();
    facts.cards[0].interface.up = false;
    facts.huge_pages = None;
    let report = examine(&facts);
    let text = report.to_string();
    assert!(text.contains("problem  eth0    link: down\n                   do: ip link set eth0 up\n"), "{text}");
    assert!(text.ends_with("1 problems, 1 warnings\n"), "{text}");
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["schema"], 1);
    let link = json["lines"].as_array().expect("lines").iter().find(|line| line["topic"] == "link").expect("link");
    assert_eq!((&link["level"], &link["fix"]["safe"]), (&"problem".into(), &true.into()));
}
