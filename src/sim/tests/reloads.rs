//! Reloads over the real worker in virtual time: what stays, what ends, what is counted.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::control::reload::{Established, Refused, ReloadReport, Wish};

/// A rules file, a simulated router that runs by it, and its control thread.
struct Run {
    sim: Simulator,
    workers: Workers,
    file: PathBuf,
    /// Packets that leave by the WAN, all together.
    left: usize,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
        let _ = std::fs::remove_file(self.sets_file());
    }
}

const ESTABLISHED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
const LAN_TO_WAN: &str = "-A FORWARD -i lan0 -o wan0 -m conntrack --ctstate NEW -j ACCEPT\n";
const KEEP: Wish = Wish { established: Some(Established::Keep), dry_run: false, sets: false, styled: false };
const RECHECK: Wish = Wish { established: Some(Established::Recheck), ..KEEP };
const FLUSH: Wish = Wish { established: Some(Established::Flush), ..KEEP };

fn text(rules: &str) -> String {
    format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n")
}

impl Run {
    /// By these rules of FORWARD, whose policy is DROP.
    fn new(rules: &str) -> Run {
        Run::with_sets(rules, None)
    }

    /// By these rules, which may name these sets.
    fn with_sets(rules: &str, sets: Option<&str>) -> Run {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("xrsim{}-{number}.v4", std::process::id()));
        std::fs::write(&file, text(rules)).expect("a file");
        let beside = file.with_extension("sets");
        if let Some(sets) = sets {
            std::fs::write(&beside, sets).expect("a file");
        }
        let (published, settings) =
            (published(Some(&file), sets.map(|_| &*beside)), Settings { max: 1024, ..Settings::default() });
        let policy = reload::compile(&published.rulesets, published.config.track, &mut Registry::default());
        let mut sim = Simulator::new(policy, routing(), settings.clone(), Faults::default(), 1);
        let line = std::mem::replace(&mut sim.handle, mailbox().expect("a descriptor").1).line;
        let published = Published { policy: sim.policy.clone(), routing: sim.routing.clone(), ..published };
        Run { workers: Workers::new(vec![line], facts(1), settings, published), sim, file, left: 0 }
    }

    fn write(&self, rules: &str) {
        std::fs::write(&self.file, text(rules)).expect("a file");
    }

    fn sets_file(&self) -> PathBuf {
        self.file.with_extension("sets")
    }

    /// Packets that pass of one from each of these ports.
    fn passing(&mut self, ports: std::ops::Range<u16>) -> usize {
        let before = self.left;
        connect(self, ports, false);
        self.left - before
    }

    fn burst(&mut self) {
        self.sim.burst().expect("no port was cut");
        self.left += self.sim.wire(PortId::WAN).take().len();
    }

    fn reload(&mut self, wish: Wish) -> Result<ReloadReport, Refused> {
        self.reload_under(wish, |_| {})
    }

    /// Reloads while `traffic` is made before every burst.
    fn reload_under(&mut self, wish: Wish, mut traffic: impl FnMut(&Simulator)) -> Result<ReloadReport, Refused> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let Run { sim, workers, left, .. } = self;
        runtime.block_on(async {
            let work = async {
                loop {
                    traffic(sim);
                    sim.burst().expect("no port was cut");
                    *left += sim.wire(PortId::WAN).take().len();
                    tokio::time::sleep(std::time::Duration::from_micros(200)).await;
                }
            };
            tokio::select! {
                outcome = workers.reload(&wish, 77) => outcome,
                () = work => unreachable!("it never ends"),
            }
        })
    }
}

/// Connections by the client's port, with a reply each where `answered`.
fn connect(run: &mut Run, ports: std::ops::Range<u16>, answered: bool) {
    for port in ports {
        run.sim.wire(PortId::LAN).send(&query(port));
        run.burst();
        if answered {
            run.sim.wire(PortId::WAN).send(&answer(port));
            run.burst();
        }
    }
    run.sim.wire(PortId::LAN).take();
}

/// The clients' ports of all connections.
fn clients(run: &Run) -> Vec<u16> {
    let mut ports = Vec::new();
    run.sim.shard().conntrack.list(0, usize::MAX, run.sim.now(), &mut |conn| ports.push(conn.original.sport));
    ports.sort_unstable();
    ports
}

/// Packets counted for each rule and for the policy, as `iptables-save -c` would print them.
fn counted(run: &mut Run) -> Vec<(u64, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let Run { sim, workers, .. } = run;
    let text = runtime.block_on(async {
        let work = async {
            loop {
                sim.burst().expect("no port was cut");
                tokio::time::sleep(std::time::Duration::from_micros(200)).await;
            }
        };
        tokio::select! {
            text = workers.rules_text(Family::V4) => text.expect("it answers"),
            () = work => unreachable!("it never ends"),
        }
    });
    let counts = text.lines().filter_map(|line| {
        let (count, rule) = line.strip_prefix('[')?.split_once("] ")?;
        Some((count.split(':').next()?.parse().ok()?, rule.to_owned()))
    });
    counts.collect()
}

#[test]
fn a_recheck_ends_what_the_new_rules_would_refuse_and_nothing_else() {
    let mut run = Run::new(&format!("{ESTABLISHED}{LAN_TO_WAN}"));
    connect(&mut run, 1000..1010, true);
    run.write(&format!("{ESTABLISHED}-A FORWARD -i lan0 -p udp -m udp --sport 1004:1006 -j ACCEPT\n"));
    let report = run.reload(RECHECK).expect("good rules");
    assert_eq!((report.generation, report.connections, report.ended), (2, 10, 7));
    assert_eq!(clients(&run), [1004, 1005, 1006]);
    assert_eq!((report.files[0].added, report.files[0].removed, report.files[1].is_unchanged()), (1, 1, true));
    let line = report.to_string();
    assert_eq!(
        line,
        "policy 2 is in force: 2 IPv4 rules (1 added, 1 removed), 4 IPv6 rules (unchanged); 7 of 10 connections ended (recheck)"
    );
    // Those that stayed go on, and those that ended cannot begin again.
    let before = run.left;
    connect(&mut run, 1003..1005, false);
    assert_eq!((run.left - before, clients(&run)), (1, vec![1004, 1005, 1006]));
}

#[test]
fn a_match_that_depends_on_the_packet_ends_nothing() {
    let mut run = Run::new(&format!("{ESTABLISHED}{LAN_TO_WAN}"));
    connect(&mut run, 1000..1010, true);
    run.write(&format!("{ESTABLISHED}-A FORWARD -p udp -m limit --limit 1/day --limit-burst 1 -j ACCEPT\n"));
    assert_eq!(run.reload(RECHECK).expect("good rules").ended, 0);
    run.write(&format!("{ESTABLISHED}-A FORWARD -p tcp -m limit --limit 1/day --limit-burst 1 -j ACCEPT\n"));
    assert_eq!(run.reload(RECHECK).expect("good rules").ended, 10);
}

#[test]
fn keep_keeps_and_flush_ends_all() {
    let mut run = Run::new(&format!("{ESTABLISHED}{LAN_TO_WAN}"));
    connect(&mut run, 1000..1010, true);
    run.write(ESTABLISHED);
    let report = run.reload(KEEP).expect("good rules");
    assert_eq!((report.ended, clients(&run).len()), (0, 10));
    assert!(report.to_string().ends_with("; connections stay (keep)"), "{report}");
    let before = run.left;
    connect(&mut run, 1005..1015, false);
    assert_eq!(run.left - before, 5, "those that there were go on, and no new one begins");
    let report = run.reload(FLUSH).expect("good rules");
    assert_eq!((report.connections, report.ended, clients(&run).len()), (10, 10, 0));
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut run = Run::new(&format!("{ESTABLISHED}{LAN_TO_WAN}"));
    connect(&mut run, 1000..1010, true);
    run.write(&format!("-A FORWARD -p udp --sport 1000 -j ACCEPT\n{ESTABLISHED}"));
    for (wish, ended) in [(RECHECK, 9), (FLUSH, 10), (KEEP, 0)] {
        let report = run.reload(Wish { dry_run: true, ..wish }).expect("good rules");
        assert_eq!((report.generation, report.ended, clients(&run).len()), (1, ended, 10));
        let differences = ["- ", "+ -A FORWARD -p udp -m udp --sport 1000 -j ACCEPT"];
        assert_eq!(report.differences, [format!("- {}", LAN_TO_WAN.trim()), differences[1].to_owned()]);
    }
    assert_eq!(run.sim.policy.load().generation, 1);
    connect(&mut run, 2000..2001, false);
    assert_eq!(clients(&run).len(), 11);
}

#[test]
fn a_wrong_file_changes_nothing_and_every_wrong_line_is_told() {
    let mut run = Run::new(&format!("{ESTABLISHED}{LAN_TO_WAN}"));
    connect(&mut run, 1000..1003, true);
    let before = counted(&mut run);
    run.write("-A FORWARD -j NOWHERE\n-A FORWARD --frobnicate\n");
    let Err(Refused::Files(report)) = run.reload(RECHECK) else { panic!("the file is wrong") };
    for part in ["NOWHERE", "--frobnicate", ".v4:5:", ".v4:6:"] {
        assert!(report.contains(part), "no {part} in\n{report}");
    }
    std::fs::remove_file(&run.file).expect("it is there");
    let Err(Refused::Files(report)) = run.reload(RECHECK) else { panic!("there is no file") };
    assert!(report.contains("cannot read the file"), "{report}");
    assert_eq!((run.sim.policy.load().generation, clients(&run).len()), (1, 3));
    assert_eq!(counted(&mut run), before);
}

#[test]
fn counts_stay_with_rules_that_are_unchanged() {
    let mut run = Run::new(&format!("{ESTABLISHED}{LAN_TO_WAN}"));
    connect(&mut run, 1000..1010, true);
    // Some that take a shortcut.
    connect(&mut run, 1000..1010, true);
    let of = |counts: &[(u64, String)], part: &str| counts.iter().find(|it| it.1.contains(part)).map(|it| it.0);
    let before = counted(&mut run);
    assert_eq!((of(&before, "RELATED"), of(&before, "NEW")), (Some(30), Some(10)));
    run.write(&format!("-A FORWARD -p udp --sport 9\n{LAN_TO_WAN}-A FORWARD -p tcp\n{ESTABLISHED}"));
    let report = run.reload(RECHECK).expect("good rules");
    assert_eq!((report.ended, report.files[0].altered.clone()), (0, vec!["FORWARD".to_owned()]));
    let after = counted(&mut run);
    assert_eq!((of(&after, "RELATED"), of(&after, "NEW"), of(&after, "tcp")), (Some(30), Some(10), Some(0)));
    connect(&mut run, 1000..1001, true);
    let later = counted(&mut run);
    assert_eq!((of(&later, "RELATED"), of(&later, "NEW")), (Some(32), Some(10)));
}

#[test]
fn no_packet_and_no_count_is_lost_in_fifty_reloads_under_load() {
    let mut run = Run::new(&format!("{ESTABLISHED}{LAN_TO_WAN}"));
    connect(&mut run, 1000..1010, true);
    let (mut sent, before) = (0usize, run.left);
    for round in 0..50u16 {
        // A rule comes or goes.
        let extra = if round % 2 == 0 { "-A FORWARD -p tcp --dport 81 -j DROP\n" } else { "" };
        run.write(&format!("{ESTABLISHED}{extra}{LAN_TO_WAN}"));
        let report = run
            .reload_under(RECHECK, |sim| {
                for n in 0..20 {
                    sim.wire(PortId::LAN).send(&query(1000 + n % 10));
                    sent += 1;
                }
            })
            .expect("good rules");
        assert_eq!((report.generation, report.ended), (u64::from(round) + 2, 0));
    }
    (0..10).for_each(|_| run.burst());
    assert_eq!(run.left - before, sent, "every packet passed");
    let counts = counted(&mut run);
    assert_eq!(counts[0].0 as usize, sent + 10, "and was counted: {counts:?}");
}

#[test]
fn a_worker_that_does_not_answer_keeps_the_rules_as_they_are() {
    let mut run = Run::new(&format!("{ESTABLISHED}{LAN_TO_WAN}"));
    run.write(ESTABLISHED);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome = runtime.block_on(run.workers.reload(&RECHECK, 77));
    let Err(Refused::Workers(error)) = outcome else { panic!("{outcome:?}") };
    assert!(error.0.contains("worker 0 does not answer"), "{error}");
    assert_eq!(run.sim.policy.load().generation, 1);
    // It comes back, finds the ledger of what never came, and the next time all is well.
    let report = run.reload(RECHECK).expect("good rules");
    assert_eq!((report.generation, run.sim.shard().policy_generation()), (2, 2));
}

#[test]
fn the_credit_of_a_limit_stays_with_its_rule() {
    let limited = "-A FORWARD -p udp -m limit --limit 1/hour --limit-burst 3 -j ACCEPT\n";
    let mut run = Run::new(limited);
    connect(&mut run, 1000..1010, false);
    assert_eq!(run.left, 3);
    run.write(&format!("-A FORWARD -p tcp -j ACCEPT\n{limited}"));
    run.reload(RECHECK).expect("good rules");
    connect(&mut run, 1000..1010, false);
    assert_eq!(run.left, 3, "the rule stays, and so does what it has spent");
    run.write(&limited.replace("burst 3", "burst 4"));
    run.reload(RECHECK).expect("good rules");
    connect(&mut run, 1000..1010, false);
    assert_eq!(run.left, 7, "another rule begins anew");
}

/// A file may go from one table to several, and counts of each table's chains stay apart.
#[test]
fn tables_may_come_and_go() {
    let mut run = Run::new("-A FORWARD -p udp -j ACCEPT\n");
    connect(&mut run, 1000..1005, false);
    let mangle = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n-A FORWARD -p udp -j ACCEPT\nCOMMIT\n";
    std::fs::write(&run.file, format!("{mangle}{}", text("-A FORWARD -p udp -j ACCEPT\n"))).expect("a file");
    let report = run.reload(RECHECK).expect("good rules");
    assert_eq!((report.files[0].added, report.files[0].removed), (1, 0));
    let udp = |run: &mut Run| counted(run).into_iter().map(|(count, _)| count).collect::<Vec<_>>();
    assert_eq!(udp(&mut run), [0, 5]);
    connect(&mut run, 1005..1010, false);
    assert_eq!(udp(&mut run), [5, 10]);
    run.write("-A FORWARD -p udp -j ACCEPT\n");
    assert_eq!(run.reload(RECHECK).expect("good rules").files[0].removed, 1);
    assert_eq!(udp(&mut run), [10]);
}

#[test]
fn rules_are_in_force_also_when_a_worker_falls_silent_afterwards() {
    let mut run = Run::new(&format!("{ESTABLISHED}{LAN_TO_WAN}"));
    connect(&mut run, 1000..1010, true);
    run.write(ESTABLISHED);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let Run { sim, workers, .. } = &mut run;
    let report = runtime.block_on(async {
        let work = async {
            // Until it has changed over and said so.
            while sim.shard().policy_generation() == 1 {
                sim.burst().expect("no port was cut");
                tokio::time::sleep(std::time::Duration::from_micros(200)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = workers.reload(&RECHECK, 77) => outcome.expect("good rules"),
            () = work => unreachable!("it never ends"),
        }
    });
    assert_eq!((report.generation, report.ended), (2, 0));
    assert!(report.unfinished.is_some_and(|why| why.contains("worker 0 does not answer")));
}

const ADD: &str = "create seen hash:ip,port family inet hashsize 64 maxelem 100\n";
const SETS_ONLY: Wish = Wish { sets: true, ..KEEP };

/// `ports` holds these.
fn ports(first: u16, last: u16) -> String {
    let range: String = (first..=last).map(|port| format!("add ports {port}\n")).collect();
    format!("create ports bitmap:port range 0-65535\n{range}{ADD}")
}

#[test]
fn sets_change_alone_and_a_wrong_file_changes_nothing() {
    let rule = "-A FORWARD -p udp -m set --match-set ports src -j ACCEPT\n";
    let mut run = Run::with_sets(rule, Some(&ports(1000, 1003)));
    assert_eq!(run.passing(1000..1010), 4);
    std::fs::write(run.sets_file(), ports(1000, 1006)).expect("a file");
    let dry = run.reload(Wish { dry_run: true, ..SETS_ONLY }).expect("good sets");
    assert_eq!(dry.sets.as_ref().map(|sets| (sets.sets, sets.entries)), Some((2, 7)));
    assert_eq!(run.passing(1000..1010), 4, "a dry run");
    let report = run.reload(SETS_ONLY).expect("good sets");
    assert_eq!((report.generation, run.sim.policy.load().generation), (1, 1), "no rule was compiled");
    let line = report.to_string();
    assert!(
        line.starts_with("sets of ")
            && line.ends_with(": 2 sets with 7 elements; rules stay (policy 1); connections stay (keep)"),
        "{line}"
    );
    assert_eq!(run.passing(1000..1010), 7);
    std::fs::write(run.sets_file(), "create ports bitmap:port range 0-9\nadd ports 10\nadd nobody 1\n")
        .expect("a file");
    for wish in [SETS_ONLY, RECHECK] {
        let Err(Refused::Files(report)) = run.reload(wish) else { panic!("the file is wrong") };
        assert!(report.contains(".sets:2:") && report.contains(".sets:3:"), "{report}");
    }
    // Right in itself, and not what the rules name.
    std::fs::write(run.sets_file(), ADD).expect("a file");
    let Err(Refused::Files(report)) = run.reload(SETS_ONLY) else { panic!("rules name `ports`") };
    assert!(report.contains("set ports is missing, and rules name it"), "{report}");
    assert_eq!(run.passing(1000..1010), 7);
}

#[test]
fn rules_and_sets_change_together() {
    let rule = |set: &str| format!("-A FORWARD -p udp -m set --match-set {set} src -j ACCEPT\n");
    let mut run = Run::with_sets(&rule("ports"), Some(&ports(1000, 1003)));
    assert_eq!(run.passing(1000..1010), 4);
    // The rule stays as it is, and its set does not.
    std::fs::write(run.sets_file(), ports(1000, 1001)).expect("a file");
    let report = run.reload(KEEP).expect("good files");
    assert!(report.files[0].is_unchanged() && report.to_string().contains(", 2 sets"), "{report}");
    assert_eq!(run.passing(1000..1010), 2);
    // The set goes, another comes, of another type.
    std::fs::write(run.sets_file(), "create some hash:ip,port\nadd some 10.1.0.2,udp:1005\n").expect("a file");
    run.write(&rule("some,src").replace(",src src", " src,src"));
    run.reload(KEEP).expect("good files");
    assert_eq!(run.passing(1000..1010), 1);
}

#[test]
fn what_packets_added_stays_while_the_lines_of_the_set_do() {
    let rules = "-A FORWARD -p udp -m set --match-set seen src,src -j DROP\n\
                 -A FORWARD -p udp -j SET --add-set seen src,src\n-A FORWARD -p udp -j ACCEPT\n";
    let mut run = Run::with_sets(rules, Some(&ports(1, 2)));
    assert_eq!((run.passing(1000..1010), run.passing(1000..1010)), (10, 0));
    std::fs::write(run.sets_file(), ports(1, 3)).expect("a file");
    run.reload(SETS_ONLY).expect("good sets");
    assert_eq!(run.passing(1000..1011), 1);
    std::fs::write(run.sets_file(), ports(1, 4)).expect("a file");
    run.reload(KEEP).expect("good files");
    assert_eq!(run.passing(1000..1012), 1);
    std::fs::write(run.sets_file(), ports(1, 4).replace("maxelem 100", "maxelem 50")).expect("a file");
    run.reload(KEEP).expect("good files");
    assert_eq!(run.passing(1000..1012), 12, "another set begins anew");
}

#[test]
fn connections_end_with_the_sets_that_let_them_begin_if_that_is_asked_for() {
    let rules = "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
                 -A FORWARD -p udp -m set --match-set ports src -j ACCEPT\n";
    let mut run = Run::with_sets(rules, Some(&ports(1000, 1005)));
    assert_eq!(run.passing(1000..1010), 6);
    std::fs::write(run.sets_file(), ports(1000, 1003)).expect("a file");
    // Without a word nobody looks at them.
    let unsaid = Wish { established: None, ..SETS_ONLY };
    let (recheck, flush) = (Wish { sets: true, ..RECHECK }, Wish { sets: true, ..FLUSH });
    let dry = run.reload(Wish { dry_run: true, ..recheck }).expect("good sets");
    assert_eq!((dry.connections, dry.ended), (6, 2), "{dry}");
    assert!(dry.to_string().ends_with("; 2 of 6 connections would be ended (recheck)"), "{dry}");
    let kept = run.reload(unsaid).expect("good sets");
    assert_eq!((kept.established, kept.connections, kept.ended), (Established::Keep, 0, 0), "{kept}");
    let ended = run.reload(recheck).expect("good sets");
    assert_eq!((ended.connections, ended.ended), (6, 2), "{ended}");
    assert!(ended.to_string().ends_with("; rules stay (policy 1); 2 of 6 connections ended (recheck)"), "{ended}");
    let flushed = run.reload(flush).expect("good sets");
    assert_eq!((flushed.connections, flushed.ended), (4, 4), "{flushed}");
    assert_eq!(Wish { established: None, ..KEEP }.established(), Established::Recheck);
}
