//! Replacing contents, time-outs, and what packets add.

use super::super::SetTable;
use super::{Match, Target, shaped, table, tcp};
use crate::rules::generator::Version::{V4, V6};
use crate::time::Instant;
use crate::wire::Family;

const NOW: Instant = Instant::from_secs(100);

#[test]
fn compiled_rules_see_new_contents_at_once() {
    let table = table("create a hash:net\nadd a 10.1.0.0/24\ncreate l list:set\nadd l a\n", NOW);
    let (direct, listed) =
        (Match::new(&table, Family::V4, "--match-set a src"), Match::new(&table, Family::V4, "--match-set l src"));
    let frame = tcp(V4, 2, 2, 1, 2);
    assert!(direct.holds(&frame, 0, NOW) && listed.holds(&frame, 0, NOW));
    table.load("sets", "create a hash:net\nadd a 10.3.0.0/24\ncreate l list:set\nadd l a\n", NOW).expect("good sets");
    assert!(!direct.holds(&frame, 0, NOW) && !listed.holds(&frame, 0, NOW));
    table.load("sets", "create a hash:net\nadd a 10.1.0.2\ncreate l list:set\n", NOW).expect("good sets");
    assert!(direct.holds(&frame, 0, NOW) && !listed.holds(&frame, 0, NOW));
}

#[test]
fn sets_that_rules_name_stay() {
    let table = table("create a hash:ip\ncreate b hash:ip\n", NOW);
    let kept = Match::new(&table, Family::V4, "--match-set a src");
    let error = table.load("sets", "create b hash:ip\n", NOW).expect_err("a is named");
    assert!(error.to_string().contains("set a is missing"), "{error}");
    let error = table.load("sets", "create a hash:net\n", NOW).expect_err("another type");
    assert!(error.to_string().contains("set a becomes another"), "{error}");
    assert_eq!(table.names(), ["a", "b"]);
    table.load("sets", "create a hash:ip timeout 3\n", NOW).expect("the same type");
    drop(kept);
    table.load("sets", "create b hash:net\n", NOW).expect("nobody names a");
    assert_eq!(table.names(), ["b"]);
}

#[test]
fn what_packets_added_stays_while_the_text_is_the_same() {
    let text = "create a hash:ip\ncreate b hash:ip\n";
    let table = table(text, NOW);
    let add = Target::new(&table, Family::V4, "--add-set a src");
    let there = Match::new(&table, Family::V4, "--match-set a src");
    let frame = tcp(V4, 2, 2, 1, 2);
    add.run(&frame, 0, NOW);
    assert!(there.holds(&frame, 0, NOW));
    table.load("sets", "create a hash:ip\ncreate b hash:ip\nadd b 1.1.1.1\n", NOW).expect("good sets");
    assert!(there.holds(&frame, 0, NOW));
    table.load("sets", "create a hash:ip\nadd a 10.9.0.1\ncreate b hash:ip\n", NOW).expect("good sets");
    assert!(!there.holds(&frame, 0, NOW));
    add.run(&frame, 0, NOW);
    assert!(there.holds(&frame, 0, NOW), "new contents can be added to as well");
}

#[test]
fn elements_expire_and_begin_anew() {
    let table = table("create a hash:ip timeout 10\nadd a 10.1.0.3 timeout 5\nadd a 10.1.0.4 timeout 0\n", NOW);
    let add = Target::new(&table, Family::V4, "--add-set a src");
    let again = Target::new(&table, Family::V4, "--add-set a src --exist --timeout 20");
    let there = Match::new(&table, Family::V4, "--match-set a src");
    let from = |host| tcp(V4, host, 2, 1, 2);
    let at = |seconds: u64| Instant::from_secs(100 + seconds);
    add.run(&from(2), 0, NOW);
    add.run(&from(2), 0, at(5));
    let holds = |seconds: u64| [2, 3, 4].map(|host| there.holds(&from(host), 0, at(seconds)));
    assert_eq!(holds(5), [true, true, true]);
    assert_eq!(holds(6), [true, false, true]);
    assert_eq!(holds(11), [false, false, true], "adding without --exist changed nothing");
    add.run(&from(2), 0, at(12));
    again.run(&from(2), 0, at(13));
    assert_eq!(holds(33), [true, false, true]);
    assert_eq!(holds(34), [false, false, true]);
    assert_eq!(
        table.save(at(20)),
        "create a hash:ip family inet hashsize 1024 maxelem 65536 timeout 10\nadd a 10.1.0.2 timeout 13\nadd a 10.1.0.4 timeout 0\n"
    );
}

#[test]
fn a_full_set_takes_no_more_until_something_expires() {
    let table = table("create a hash:ip maxelem 2 timeout 10\ncreate f hash:ip maxelem 2 forceadd\n", NOW);
    let add = Target::new(&table, Family::V4, "--add-set a src");
    let force = Target::new(&table, Family::V4, "--add-set f src");
    for host in 2..=4 {
        add.run(&tcp(V4, host, 2, 1, 2), 0, NOW + u64::from(host));
        force.run(&tcp(V4, host, 2, 1, 2), 0, NOW);
    }
    let there = Match::new(&table, Family::V4, "--match-set a src");
    let forced = Match::new(&table, Family::V4, "--match-set f src");
    let holds = |rule: &Match, now| [2, 3, 4].map(|host| rule.holds(&tcp(V4, host, 2, 1, 2), 0, now));
    assert_eq!(holds(&there, NOW), [true, true, false]);
    assert_eq!((holds(&forced, NOW)[2], table.len_of("f")), (true, Some(2)));
    let later = Instant::from_secs(111);
    add.run(&tcp(V4, 4, 2, 1, 2), 0, later);
    assert_eq!(holds(&there, later), [false, false, true]);
    assert_eq!(table.len_of("a"), Some(1), "all that had expired was taken out");
}

#[test]
fn a_hardware_address_is_learnt_from_the_first_packet() {
    let table = table(
        "create j bitmap:ip,mac range 10.1.0.0/24 timeout 9\nadd j 10.1.0.2\nadd j 10.1.0.3,02:00:00:00:00:0d\n",
        NOW,
    );
    let there = Match::new(&table, Family::V4, "--match-set j src,src");
    assert!(!there.holds(&tcp(V4, 3, 2, 1, 2), 0, NOW), "another hardware address");
    let late = Instant::from_secs(1000);
    assert!(there.holds(&tcp(V4, 2, 2, 1, 2), 0, late), "its time begins now");
    assert_eq!(
        table.save(late),
        "create j bitmap:ip,mac range 10.1.0.0-10.1.0.255 timeout 9\nadd j 10.1.0.2,02:00:00:00:00:0C timeout 9\n"
    );
    let other = Match::new(&table, Family::V4, "--match-set j src,dst");
    assert!(!other.holds(&tcp(V4, 2, 2, 1, 2), 0, late));
    assert!(!there.holds(&tcp(V4, 2, 2, 1, 2), 0, Instant::from_secs(1010)));
}

#[test]
fn nets_are_added_with_the_longest_prefix_there_is() {
    let table = table("create c hash:net\nadd c 192.168.0.0/24\nadd c 192.0.0.0/8\ncreate e hash:net\n", NOW);
    Target::new(&table, Family::V4, "--add-set c src").run(&tcp(V4, 2, 2, 1, 2), 0, NOW);
    Target::new(&table, Family::V4, "--add-set e dst").run(&tcp(V4, 2, 2, 1, 2), 0, NOW);
    let saved = table.save(NOW);
    assert!(saved.contains("add c 10.1.0.0/24\n") && saved.contains("add e 10.2.0.2\n"), "{saved}");
    Target::new(&table, Family::V4, "--del-set c src").run(&tcp(V4, 3, 2, 1, 2), 0, NOW);
    assert!(!table.save(NOW).contains("add c 10.1.0.0/24\n"));
}

#[test]
fn counters_count_and_are_compared() {
    let table = table(
        "create k hash:ip counters\nadd k 10.1.0.2 packets 2 bytes 100\ncreate l list:set counters\nadd l k\n",
        NOW,
    );
    let frame = tcp(V4, 2, 2, 1, 2);
    let rule = |words: &str| Match::new(&table, Family::V4, words);
    assert!(!rule("--match-set k src --packets-gt 3").holds(&frame, 0, NOW), "three with this one");
    assert!(rule("--match-set k src --packets-gt 3 --bytes-eq 180").holds(&frame, 0, NOW));
    assert!(rule("--match-set k src ! --update-counters --packets-eq 4").holds(&frame, 0, NOW));
    assert!(!rule("--match-set k src ! --update-counters ! --packets-eq 4").holds(&frame, 0, NOW));
    assert!(rule("--match-set l src ! --update-subcounters").holds(&frame, 0, NOW));
    assert!(rule("--match-set l src --packets-eq 2").holds(&frame, 0, NOW));
    let saved = table.save(NOW);
    assert!(saved.contains("add k 10.1.0.2 packets 5 bytes 220\n"), "{saved}");
    assert!(saved.contains("add l k packets 2 bytes 80\n"), "{saved}");
}

#[test]
fn exceptions_and_their_return() {
    let table = table("create c hash:net\nadd c 10.1.0.0/24\nadd c 10.1.0.2 nomatch\n", NOW);
    let holds = |words: &str| {
        let rule = Match::new(&table, Family::V4, words);
        [2, 3].map(|host| rule.holds(&tcp(V4, host, 2, 1, 2), 0, NOW))
    };
    assert_eq!(holds("--match-set c src"), [false, true]);
    assert_eq!(holds("! --match-set c src"), [true, false]);
    assert_eq!(holds("--match-set c src --return-nomatch"), [true, false]);
    assert_eq!(holds("--match-set c dst --return-nomatch"), [false, false]);
}

#[test]
fn sides_and_versions_must_suit() {
    let table =
        table("create d hash:ip,port\nadd d 10.1.0.2,tcp:80\ncreate p bitmap:port range 0-100\nadd p 80\n", NOW);
    let frame = tcp(V4, 2, 2, 1, 80);
    let holds = |words: &str, frame: &[u8]| Match::new(&table, Family::V4, words).holds(frame, 0, NOW);
    assert!(holds("--match-set d src,dst", &frame) && holds("--match-set d src,dst,src", &frame));
    assert!(!holds("--match-set d src", &frame) && holds("! --match-set d src", &frame));
    assert!(!holds("--match-set d src,dst", &tcp(V6, 2, 2, 1, 80)));
    assert!(holds("--match-set p dst", &frame) && holds("--match-set p dst", &tcp(V6, 2, 2, 1, 80)));
    assert!(!holds("--match-set p dst", &shaped(V4, 132, 2, 2, 1, 80)), "ports of SCTP are none of a bitmap's");
}

#[test]
fn marks_are_taken_from_a_set() {
    let table = table("create m hash:ip skbinfo\nadd m 10.1.0.2 skbmark 0x10/0xf0\ncreate l list:set\nadd l m\n", NOW);
    for words in ["--map-set m src --map-mark", "--map-set l src --map-mark"] {
        let map = Target::new(&table, Family::V4, words);
        assert_eq!(map.run(&tcp(V4, 2, 2, 1, 2), 0xabcd, NOW), 0xab1d, "{words}");
        assert_eq!(map.run(&tcp(V4, 3, 2, 1, 2), 0xabcd, NOW), 0xabcd, "{words}");
    }
}

#[test]
fn lists_add_to_the_first_member_that_takes_it() {
    let table = table(
        "create a hash:ip maxelem 1\ncreate s hash:ip family inet6\ncreate b hash:ip\ncreate l list:set\nadd l s\nadd l a\nadd l b\n",
        NOW,
    );
    let add = Target::new(&table, Family::V4, "--add-set l src");
    for host in [2, 3] {
        add.run(&tcp(V4, host, 2, 1, 2), 0, NOW);
    }
    let saved = table.save(NOW);
    assert!(saved.contains("add a 10.1.0.2\n") && saved.contains("add b 10.1.0.3\n"), "{saved}");
}

#[test]
fn an_empty_table_knows_no_set() {
    assert_eq!((SetTable::default().names().len(), SetTable::default().len_of("a")), (0, None));
}
