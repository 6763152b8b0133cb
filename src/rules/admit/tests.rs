//! What the judge says, rule by rule, and that the engine never says what it has ruled out.

use super::*;
use crate::conntrack::{CtInfo, Template};
use crate::packet::Packet;
use crate::rules::generator::{self, Allowed, Cut, Shape, Version};
use crate::rules::{Context, Decision, Hook, NAT_POSTROUTING, NAT_PREROUTING, RuleVector, Told, load};
use crate::time::Instant;
use crate::verdict::DropReason;
use proptest::prelude::*;

fn judged(rules: &str, first: &FirstPacket) -> Admits {
    let text = format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:a - [0:0]\n:b - [0:0]\n{rules}COMMIT\n"
    );
    let ruleset = load("test", &text, Family::V4, &["lan", "wan"]).expect("good rules");
    Judge::new(Arc::new(ruleset)).admits(first)
}

/// To port 80 of 10.2.0.2, from the LAN.
fn web() -> FirstPacket {
    let tuple = Tuple {
        src: Addr::from_v4(0x0a01_0002),
        dst: Addr::from_v4(0x0a02_0002),
        sport: 40000,
        dport: 80,
        proto: proto::TCP,
        family: Family::V4,
        zone: 0,
    };
    FirstPacket { tuple, original: tuple, in_port: PortId::LAN, out_port: PortId::WAN, expected: false, dnat: false }
}

#[test]
fn the_first_packet_is_new_and_a_syn() {
    let established = "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n";
    assert_eq!(judged(established, &web()), Admits::No);
    assert_eq!(judged(established, &FirstPacket { expected: true, ..web() }), Admits::Yes);
    assert_eq!(judged("-A FORWARD -m state --state NEW -j ACCEPT\n", &web()), Admits::Yes);
    assert_eq!(judged("-A FORWARD -p tcp --syn -j ACCEPT\n", &web()), Admits::Yes);
    assert_eq!(judged("-A FORWARD -p tcp ! --syn -j ACCEPT\n", &web()), Admits::No);
    assert_eq!(judged("-A FORWARD -m conntrack --ctstatus ASSURED -j ACCEPT\n", &web()), Admits::No);
    let dnat = "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n";
    assert_eq!((judged(dnat, &web()), judged(dnat, &FirstPacket { dnat: true, ..web() })), (Admits::No, Admits::Yes));
}

#[test]
fn tuples_of_the_connection_are_known() {
    for (rule, said) in [
        ("--ctorigdst 10.2.0.2 --ctorigdstport 80", Admits::Yes),
        ("--ctorigdst 10.2.0.3", Admits::No),
        ("--ctreplsrc 10.2.0.2 --ctrepldstport 40000 --ctdir ORIGINAL --ctproto 6", Admits::Yes),
        ("--ctdir REPLY", Admits::No),
        ("--ctexpire 0", Admits::Yes),
        ("--ctexpire 1:100", Admits::No),
    ] {
        assert_eq!(judged(&format!("-A FORWARD -m conntrack {rule} -j ACCEPT\n"), &web()), said, "{rule}");
    }
    // Before translation it went to 192.0.2.1:8080.
    let original = Tuple { dst: Addr::from_v4(0xc000_0201), dport: 8080, ..web().tuple };
    let translated = FirstPacket { original, dnat: true, ..web() };
    for (rule, said) in
        [("--ctorigdst 192.0.2.1 --ctorigdstport 8080", Admits::Yes), ("--ctreplsrc 192.0.2.1", Admits::No)]
    {
        assert_eq!(judged(&format!("-A FORWARD -m conntrack {rule} -j ACCEPT\n"), &translated), said, "{rule}");
    }
}

#[test]
fn a_limit_in_another_table_leaves_it_open() {
    let both = |mangle: &str, filter: &str| {
        let mangle = format!("*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n{mangle}COMMIT\n");
        let text = format!("{mangle}*filter\n:FORWARD DROP [0:0]\n{filter}COMMIT\n");
        let ruleset = load("test", &text, Family::V4, &["lan", "wan"]).expect("good rules");
        Judge::new(Arc::new(ruleset)).admits(&web())
    };
    let accept = "-A FORWARD -j ACCEPT\n";
    assert_eq!(both("-A FORWARD -p tcp -j DROP\n", accept), Admits::No);
    assert_eq!(both("-A FORWARD -p udp -j DROP\n", accept), Admits::Yes);
    assert_eq!(both("-A FORWARD -m limit -j DROP\n", accept), Admits::Depends);
    assert_eq!(both("-A FORWARD -j ACCEPT\n", ""), Admits::No);
}

#[test]
fn what_is_not_known_never_refuses_alone() {
    for (rules, said) in [
        ("-A FORWARD -m limit -j ACCEPT\n", Admits::Depends),
        ("-A FORWARD -m limit -j DROP\n-A FORWARD -j ACCEPT\n", Admits::Depends),
        ("-A FORWARD -m limit -j DROP\n", Admits::No),
        ("-A FORWARD -p tcp --tcp-option 3 -j ACCEPT\n", Admits::Depends),
        // Known matches of the same rule still decide.
        ("-A FORWARD -p udp -m limit -j ACCEPT\n", Admits::No),
        ("-A FORWARD -m limit -p tcp --dport 81 -j ACCEPT\n", Admits::No),
        ("-A FORWARD -m limit -j LOG\n-A FORWARD -j ACCEPT\n", Admits::Yes),
        ("-A FORWARD -m limit -j a\n-A a -j ACCEPT\n", Admits::Depends),
        ("-A FORWARD -m limit -j a\n-A FORWARD -j ACCEPT\n-A a -j RETURN\n", Admits::Yes),
    ] {
        assert_eq!(judged(rules, &web()), said, "{rules}");
    }
}

#[test]
fn jumps_come_back_and_gotos_do_not() {
    for (rules, said) in [
        ("-A FORWARD -j a\n-A FORWARD -j ACCEPT\n-A a -p udp -j DROP\n", Admits::Yes),
        ("-A FORWARD -g a\n-A FORWARD -j ACCEPT\n-A a -p udp -j DROP\n", Admits::No),
        ("-A FORWARD -j a\n-A FORWARD -j ACCEPT\n-A a -g b\n-A a -j DROP\n-A b -p udp\n", Admits::Yes),
        ("-A FORWARD -j a\n-A a -j b\n-A a -j ACCEPT\n-A b -j RETURN\n-A b -j DROP\n", Admits::Yes),
        ("-A FORWARD -i lan -o wan -j REJECT\n-A FORWARD -j ACCEPT\n", Admits::No),
        ("-A FORWARD -i wan -o lan -j REJECT\n-A FORWARD -j ACCEPT\n", Admits::Yes),
    ] {
        assert_eq!(judged(rules, &web()), said, "{rules}");
    }
}

/// Jumps may be few and gotos many: a chain of them must not take the stack.
#[test]
fn a_long_chain_of_gotos_is_no_recursion() {
    let mut rules = String::from("*filter\n:FORWARD DROP [0:0]\n");
    (0..2_000).for_each(|n| rules += &format!(":c{n} - [0:0]\n"));
    rules += "-A FORWARD -g c0\n";
    (0..1_999).for_each(|n| rules += &format!("-A c{n} -g c{}\n", n + 1));
    rules += "-A c1999 -j ACCEPT\nCOMMIT\n";
    let ruleset = load("test", &rules, Family::V4, &["lan", "wan"]).expect("good rules");
    assert_eq!(Judge::new(Arc::new(ruleset)).admits(&web()), Admits::Yes);
}

/// Rules of several tables, `*TABLE` before each one's; all built-in chains but filter's FORWARD pass.
fn judged_all(rules: &str, first: &FirstPacket) -> Admits {
    let mut text = String::new();
    for table in rules.split('*').skip(1) {
        let (name, rules) = table.split_once('\n').expect("a line for the table");
        let policy = if name == "filter" { "DROP" } else { "ACCEPT" };
        let chains: &[&str] = match name {
            "raw" => &["PREROUTING"],
            "mangle" => &["PREROUTING", "FORWARD", "POSTROUTING"],
            _ => &["FORWARD"],
        };
        text += &format!("*{name}\n");
        chains.iter().for_each(|chain| text += &format!(":{chain} {policy} [0:0]\n"));
        text += &format!(":a - [0:0]\n:b - [0:0]\n{rules}COMMIT\n");
    }
    let ruleset = load("test", &text, Family::V4, &["lan", "wan"]).expect("good rules");
    Judge::new(Arc::new(ruleset)).admits(first)
}

#[test]
fn every_chain_on_the_way_has_its_say() {
    let passes = "*filter\n-A FORWARD -j ACCEPT\n";
    for (rules, said) in [
        ("*raw\n-A PREROUTING -p tcp -m tcp --dport 80 -j DROP\n", Admits::No),
        ("*raw\n-A PREROUTING -p udp -j DROP\n", Admits::Yes),
        ("*raw\n-A PREROUTING -j a\n-A a -i lan -j DROP\n", Admits::No),
        ("*raw\n-A PREROUTING -m limit -j DROP\n", Admits::Depends),
        ("*mangle\n-A PREROUTING -s 10.1.0.2 -j DROP\n", Admits::No),
        ("*mangle\n-A PREROUTING -m conntrack --ctstate NEW -j DROP\n", Admits::No),
        ("*mangle\n-A PREROUTING -m conntrack --ctstate ESTABLISHED -j DROP\n", Admits::Yes),
        ("*mangle\n-A FORWARD -o wan -j DROP\n", Admits::No),
        ("*mangle\n-A POSTROUTING -o wan -j DROP\n", Admits::No),
        ("*mangle\n-A POSTROUTING -o lan -j DROP\n", Admits::Yes),
        // One chain from two hooks.
        ("*mangle\n-A PREROUTING -j a\n-A POSTROUTING -p tcp -j a\n-A a -o wan -j DROP\n", Admits::No),
        ("*mangle\n-A PREROUTING -j a\n-A POSTROUTING -p udp -j a\n-A a -o wan -j DROP\n", Admits::Yes),
        ("*security\n-A FORWARD -p tcp -j DROP\n", Admits::No),
        ("*security\n-A FORWARD -d 10.9.0.0/16 -j DROP\n", Admits::Yes),
        // Each may refuse, none surely.
        ("*raw\n-A PREROUTING -m limit -j DROP\n*security\n-A FORWARD -m limit -j DROP\n", Admits::Depends),
    ] {
        assert_eq!(judged_all(&format!("{rules}{passes}"), &web()), said, "{rules}");
    }
    // A policy is a say, too.
    let text =
        "*security\n:FORWARD DROP [0:0]\n-A FORWARD -p udp -j ACCEPT\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    let ruleset = load("test", text, Family::V4, &["lan", "wan"]).expect("good rules");
    assert_eq!(Judge::new(Arc::new(ruleset)).admits(&web()), Admits::No);
}

#[test]
fn what_is_known_depends_on_the_hook() {
    let passes = "*filter\n-A FORWARD -j ACCEPT\n";
    let original = Tuple { dst: Addr::from_v4(0xc000_0201), dport: 8080, ..web().tuple };
    let translated = FirstPacket { original, dnat: true, ..web() };
    for (rules, said) in [
        // Before its destination is translated, and after.
        ("*raw\n-A PREROUTING -p tcp -d 192.0.2.1 -m tcp --dport 8080 -j DROP\n", Admits::No),
        ("*mangle\n-A PREROUTING -d 10.2.0.2 -j DROP\n", Admits::Yes),
        ("*mangle\n-A PREROUTING -m conntrack --ctstate DNAT -j DROP\n", Admits::Yes),
        ("*mangle\n-A FORWARD -m conntrack --ctstate DNAT -j DROP\n", Admits::No),
        ("*mangle\n-A POSTROUTING -p tcp -d 10.2.0.2 -m tcp --dport 80 -j DROP\n", Admits::No),
        // Before conntrack has seen it.
        ("*raw\n-A PREROUTING -m conntrack --ctstate NEW -j DROP\n", Admits::Yes),
        ("*raw\n-A PREROUTING -m state --state INVALID -j DROP\n", Admits::No),
        ("*raw\n-A PREROUTING -m conntrack --ctdir ORIGINAL -j DROP\n", Admits::Yes),
        ("*raw\n-A PREROUTING -m connmark ! --mark 0x1 -j DROP\n", Admits::Yes),
        ("*mangle\n-A PREROUTING -m connmark ! --mark 0x1 -j DROP\n", Admits::No),
        // Before it has a way out.
        ("*raw\n-A PREROUTING -j a\n-A a -o wan -j DROP\n", Admits::Yes),
    ] {
        assert_eq!(judged_all(&format!("{rules}{passes}"), &translated), said, "{rules}");
    }
}

#[test]
fn marks_are_known_until_a_rule_may_change_them() {
    let (marked, bare) =
        ("*filter\n-A FORWARD -m mark --mark 0x1 -j ACCEPT\n", "*filter\n-A FORWARD -m mark --mark 0 -j ACCEPT\n");
    for (rules, by_mark, by_none) in [
        ("", Admits::No, Admits::Yes),
        ("*mangle\n-A PREROUTING -p tcp -j MARK --set-mark 1\n", Admits::Depends, Admits::Depends),
        ("*mangle\n-A PREROUTING -m limit -j MARK --set-mark 1\n", Admits::Depends, Admits::Depends),
        ("*mangle\n-A PREROUTING -p udp -j MARK --set-mark 1\n", Admits::No, Admits::Yes),
        ("*mangle\n-A PREROUTING -j CONNMARK --restore-mark\n", Admits::Depends, Admits::Depends),
        (
            "*mangle\n-A PREROUTING -g a\n-A a -p tcp -j b\n-A b -j MARK --set-mark 1\n",
            Admits::Depends,
            Admits::Depends,
        ),
        // Not after it is too late.
        ("*mangle\n-A POSTROUTING -j MARK --set-mark 1\n", Admits::No, Admits::Yes),
    ] {
        assert_eq!(judged_all(&format!("{rules}{marked}"), &web()), by_mark, "{rules}");
        assert_eq!(judged_all(&format!("{rules}{bare}"), &web()), by_none, "{rules}");
    }
    // From there on, and in that chain only on the ways that came past it.
    let before = "*mangle\n-A PREROUTING -m mark --mark 0 -j DROP\n-A PREROUTING -j MARK --set-mark 1\n*filter\n-A FORWARD -j ACCEPT\n";
    assert_eq!(judged_all(before, &web()), Admits::No);
    // One that was expected has its master's mark.
    let connmark = "*filter\n-A FORWARD -m connmark --mark 0x1 -j ACCEPT\n";
    assert_eq!(judged_all(connmark, &web()), Admits::No);
    assert_eq!(judged_all(connmark, &FirstPacket { expected: true, ..web() }), Admits::Depends);
}

#[test]
fn the_state_is_known_until_a_rule_may_leave_the_packet_untracked() {
    let new = "*filter\n-A FORWARD -m conntrack --ctstate NEW -j ACCEPT\n";
    let established = "*filter\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n";
    for (rules, said_new, said_established) in [
        ("", Admits::Yes, Admits::No),
        ("*raw\n-A PREROUTING -j NOTRACK\n", Admits::Depends, Admits::Depends),
        ("*raw\n-A PREROUTING -m limit -j CT --notrack\n", Admits::Depends, Admits::Depends),
        ("*raw\n-A PREROUTING -p udp -j NOTRACK\n", Admits::Yes, Admits::No),
        ("*raw\n-A PREROUTING -j CT --zone 5\n", Admits::Yes, Admits::No),
        ("*raw\n-A PREROUTING -p tcp -j NOTRACK\n-A PREROUTING -p tcp -j DROP\n", Admits::No, Admits::No),
    ] {
        assert_eq!(judged_all(&format!("{rules}{new}"), &web()), said_new, "{rules}");
        assert_eq!(judged_all(&format!("{rules}{established}"), &web()), said_established, "{rules}");
    }
}

#[test]
fn what_only_the_operator_puts_into_a_set_is_known() {
    let sets = "create plain hash:net family inet\nadd plain 10.2.0.0/16\nadd plain 10.2.9.0/24 nomatch\n\
        create pairs hash:ip,port family inet counters\nadd pairs 10.2.0.2,tcp:80\n\
        create by hash:net,iface family inet\nadd by 10.2.0.0/16,wan\n\
        create odd bitmap:port range 0-100\nadd odd 81\n\
        create brief hash:ip family inet timeout 60\nadd brief 10.2.0.2\n\
        create grows hash:ip family inet\nadd grows 10.2.0.2\n\
        create cards hash:ip,mac family inet\nadd cards 10.2.0.2,02:00:00:00:00:01\n\
        create all list:set\nadd all plain\n";
    let table = Arc::new(SetTable::default());
    table.load("sets", sets, Instant::ZERO).expect("good sets");
    let judge = |rules: &str| {
        let text = format!("*filter\n:FORWARD DROP [0:0]\n{rules}COMMIT\n");
        let ruleset = crate::rules::load_with_sets("test", &text, Family::V4, &["lan", "wan"], &table);
        Judge::new(Arc::new(ruleset.expect("good rules")))
    };
    let grows = "-A FORWARD -p udp -j SET --add-set grows src\n";
    for (asked, said) in [
        ("--match-set plain dst", Admits::Yes),
        ("! --match-set plain dst", Admits::No),
        ("--match-set plain src", Admits::No),
        ("--match-set pairs dst,dst", Admits::Yes),
        ("--match-set pairs dst,src", Admits::No),
        ("--match-set pairs dst,dst --packets-gt 3", Admits::Depends),
        ("--match-set by dst,dst", Admits::Yes),
        ("--match-set by dst,src", Admits::No),
        ("--match-set odd dst", Admits::No),
        ("--match-set brief dst", Admits::Depends),
        ("--match-set grows dst", Admits::Depends),
        ("--match-set cards dst,dst", Admits::Depends),
        ("--match-set all dst", Admits::Depends),
    ] {
        assert_eq!(judge(&format!("{grows}-A FORWARD -m set {asked} -j ACCEPT\n")).admits(&web()), said, "{asked}");
    }
    // Before its destination is translated, it is another.
    let early = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m set --match-set plain dst -j DROP\nCOMMIT\n";
    let original = Tuple { dst: Addr::from_v4(0xc000_0201), ..web().tuple };
    for (first, said) in [(web(), Admits::No), (FirstPacket { original, dnat: true, ..web() }, Admits::Yes)] {
        let text = format!("{early}*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n");
        let ruleset = crate::rules::load_with_sets("test", &text, Family::V4, &["lan", "wan"], &table);
        assert_eq!(Judge::new(Arc::new(ruleset.expect("good rules"))).admits(&first), said);
    }
    // Other contents, in force and not.
    let judge = judge("-A FORWARD -m set --match-set plain dst -j ACCEPT\n");
    let emptied = sets.replace("add plain 10.2.0.0/16\n", "");
    let next = table.dry_load("sets", &emptied, Instant::ZERO).expect("good sets");
    assert_eq!(judge.admits(&web()), Admits::Yes);
    assert_eq!(Judge::with_sets(judge.ruleset.clone(), &next).admits(&web()), Admits::No);
    table.load("sets", &emptied, Instant::ZERO).expect("good sets");
    assert_eq!(judge.admits(&web()), Admits::No);
}

const INTERFACES: [&str; 2] = ["lan0", "wan0"];

/// Chains of the packet's way, and the hook it has there.
fn way() -> impl Iterator<Item = (ChainIndex, Hook)> {
    PATH.into_iter().filter(|chain| ![NAT_PREROUTING, NAT_POSTROUTING].contains(chain)).map(|at| (at, BUILTIN[at].1))
}

/// Whether the engine lets the packet that this shape begins a connection with through all chains; none if it is malformed.
fn engine(vector: &RuleVector, shape: &Shape, expected: bool) -> Option<(FirstPacket, bool)> {
    let shape = Shape { flags: tcp::SYN, cut: Cut::Whole, doff_lie: 0, extensions: Vec::new(), ..shape.clone() };
    let mut frame = shape.frame(1, [2, 0, 0, 0, 1, 0]);
    let (in_port, out_port) = if shape.outward { (PortId::LAN, PortId::WAN) } else { (PortId::WAN, PortId::LAN) };
    let mut packet = Packet::parse(&frame, in_port, true).ok()?;
    let tuple = Tuple::of(&packet);
    let reply = tuple.inverse().unwrap_or(tuple);
    let first = FirstPacket { tuple, original: tuple, in_port, out_port, expected, dnat: false };
    let (mut mark, mut template, mut conn_mark) = (0, Template::DEFAULT, 0);
    let state = if expected { CtInfo::Related } else { CtInfo::New };
    for (chain, hook) in way() {
        let is_raw = BUILTIN[chain].0 == TableName::Raw;
        let info = match (is_raw, template.notrack) {
            (_, true) => CtInfo::Untracked,
            (true, _) => CtInfo::Invalid,
            (false, _) => state,
        };
        let tracked = !is_raw && !template.notrack;
        if hook == Hook::Forward && chain == crate::rules::MANGLE_FORWARD {
            packet.ttl -= 1;
        }
        let routed = hook != Hook::Prerouting;
        let mut context = Context {
            packet: &mut packet,
            frame: &mut frame,
            hook,
            in_port,
            out_port: routed.then_some(out_port),
            out_mtu: if routed { 1500 } else { 0 },
            info,
            status: CtStatus(u16::from(expected && tracked)),
            mark,
            template,
            traced: false,
            now: Instant::from_secs(1000),
        };
        let mut world = Told {
            tuples: tracked.then_some([tuple, reply]),
            direction: tracked.then_some(Direction::Original),
            conn_mark: tracked.then_some(conn_mark),
            ..Told::default()
        };
        let decision = vector.evaluate(chain, &mut context, &mut world, &mut vector.counters());
        (mark, template, conn_mark) = (context.mark, context.template, world.conn_mark.unwrap_or(conn_mark));
        match decision {
            Decision::Accept => {}
            // Malformed, which is not known.
            Decision::Drop(DropReason::RuleHotdrop) => return None,
            Decision::Drop(_) | Decision::Reject(_) => return Some((first, false)),
        }
    }
    Some((first, true))
}

/// Against the engine: the verdict on a packet that may begin a connection is one that the judge held possible, and
/// where no match asks what is not known, and no target makes it so, the judge is certain.
fn agrees(family: Family, text: &str, shapes: &[Shape], expected: bool) -> Result<(), TestCaseError> {
    let ruleset = load("random", text, family, &INTERFACES).expect("a generated file is good");
    let understood = ["comment", "state", "conntrack", "tcp", "udp", "icmp", "icmp6", "mark"];
    let rules = || ruleset.chains.iter().flat_map(|chain| &chain.rules);
    let mut matches = rules().flat_map(|rule| &rule.matches);
    let unknown = text.contains("--tcp-option")
        || matches.any(|matched| !understood.contains(&matched.name()))
        || rules().any(|rule| makes_unknown(&rule.target) != 0);
    let (vector, judge) = (RuleVector::compile(&ruleset), Judge::new(Arc::new(ruleset)));
    for shape in shapes {
        let Some((first, passes)) = engine(&vector, shape, expected) else { continue };
        let said = judge.admits(&first);
        prop_assert!(
            said != if passes { Admits::No } else { Admits::Yes },
            "{said:?} but it {}\n{text}\n{first:?}",
            if passes { "passes" } else { "is refused" }
        );
        prop_assert!(unknown || said != Admits::Depends, "nothing is unknown in\n{text}\n{first:?}");
    }
    Ok(())
}

/// The rules of a generated filter table as those of another table, whose chains are these.
fn elsewhere(filter: &str, table: &str, chains: &[&str]) -> String {
    let mut text = format!("*{table}\n");
    chains.iter().for_each(|chain| text += &format!(":{chain} ACCEPT [0:0]\n"));
    let rules = filter.lines().filter(|line| line.starts_with("-A") || line.ends_with(" - [0:0]"));
    for (number, line) in rules.enumerate() {
        let entry = chains[number % chains.len()];
        // What not every hook takes.
        let barred = if entry == "PREROUTING" { " -o " } else { " -i " };
        let anywhere = ["tcp", "udp", "multiport", "state", "conntrack", "limit", "comment", "length", "dscp"];
        let mut names = line.split(" -m ").skip(1).map(|rest| rest.split(' ').next().unwrap_or_default());
        if names.any(|name| !anywhere.contains(&name)) || line.starts_with("-A FORWARD") && line.contains(barred) {
            continue;
        }
        // Few refuse, so that other tables have their say, too.
        let line = match line.find(" -j REJECT") {
            Some(at) => line[..at].to_owned() + [" -j DROP", " -j RETURN", " -j ACCEPT"][number % 3],
            None => line.replace(" -j DROP", [" -j DROP", " -j RETURN", ""][number % 3]),
        };
        text += &line.replace("-A FORWARD", &format!("-A {entry}"));
        text.push('\n');
    }
    text
}

fn with_all_tables(version: Version) -> impl Strategy<Value = String> {
    let one = || generator::ruleset(version, Allowed { fast_limits: true, odd: false });
    let marks = proptest::sample::subsequence(
        vec![
            "-A PREROUTING -p tcp -j MARK --set-xmark 0x1/0x3",
            "-A PREROUTING -m conntrack --ctstate NEW -j CONNMARK --save-mark",
            "-A FORWARD -m mark --mark 0x1 -j DROP",
            "-A FORWARD -m mark ! --mark 0/0x2 -j ACCEPT",
            "-A POSTROUTING -m connmark --mark 0 -j A",
            "-A A -p udp -j MARK --set-xmark 0x2/0x2",
        ],
        0..=6,
    );
    let raw = proptest::sample::subsequence(
        vec![
            "-A PREROUTING -p udp -j NOTRACK",
            "-A PREROUTING -p tcp -m tcp --dport 443 -j CT --notrack",
            "-A PREROUTING -j CT --zone 1",
            "-A PREROUTING -m state --state UNTRACKED -j ACCEPT",
        ],
        0..=4,
    );
    (one(), one(), one(), one(), marks, raw, any::<[bool; 3]>()).prop_map(
        |(filter, mangle, security, early, marks, raw, has)| {
            let mut text = String::new();
            if has[0] {
                text += &(elsewhere(&early, "raw", &["PREROUTING"]) + &raw.join("\n") + "\nCOMMIT\n");
            }
            if has[1] {
                let chains = ["PREROUTING", "FORWARD", "POSTROUTING"];
                text += &(elsewhere(&mangle, "mangle", &chains) + &marks.join("\n") + "\nCOMMIT\n");
            }
            if has[2] {
                text += &(elsewhere(&security, "security", &["FORWARD"]) + "COMMIT\n");
            }
            text + &filter
        },
    )
}

fn scene(version: Version) -> impl Strategy<Value = (String, Vec<Shape>, bool)> {
    let filter = generator::ruleset(version, Allowed { fast_limits: true, odd: false });
    let rules = prop_oneof![filter, with_all_tables(version)];
    (rules, proptest::collection::vec(generator::shape(version), 1..20), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_never_says_what_the_judge_ruled_out_v4((text, shapes, expected) in scene(Version::V4)) {
        agrees(Family::V4, &text, &shapes, expected)?;
    }

    #[test]
    fn the_engine_never_says_what_the_judge_ruled_out_v6((text, shapes, expected) in scene(Version::V6)) {
        agrees(Family::V6, &text, &shapes, expected)?;
    }
}
