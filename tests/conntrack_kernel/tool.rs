//! `xrouter conntrack` beside conntrack(8): the same packets through a kernel and a tracker, then the same command lines
//! to both, compared in what they print, say and return. And the events of both, packet sequence by packet sequence.
//!
//! The seconds left and the identifiers are left out of the comparison, as is the order of a listing.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Output};
use std::time::Duration;

use crate::asked::asked_number;
use crate::compare::describe;
use crate::daemon::Daemon;
use crate::generate;
use crate::kernel::Kernel;
use crate::ours::Ours;
use crate::step::Step;
use crate::testing::{self, Segment};
use crate::{CLIENT, SERVER, name_of, some_of_everything};
use xrouter::conntrack::{Conntrack, LineOptions, Settings, Template, Tuple, ZoneDirection};
use xrouter::device::PortId;
use xrouter::packet::{L4, Packet};
use xrouter::time::Instant;

const NOW: Instant = Instant::from_secs(1000);

/// Root, and conntrack(8): else the test says so and passes.
fn can_run(name: &str) -> bool {
    let can = nix::unistd::geteuid().is_root() && Command::new("conntrack").arg("-V").output().is_ok();
    if !can {
        eprintln!("{name}: needs root and conntrack(8); not run");
    }
    can
}

/// Shows a packet to the tracker; false when the kernel is not to see it either.
fn show(table: &mut Conntrack, step: &Step, now: Instant) -> bool {
    let frame = testing::frame(testing::ANY_HOP, &step.packet);
    let packet = Packet::parse(&frame, PortId::LAN, table.settings().checksum).expect("sound IP");
    if packet.l4 == L4::PartialChecksum {
        return false;
    }
    let hash = table.hash(&Tuple::of(&packet));
    let tracked = table.track(&packet, &frame, hash, Template::DEFAULT, now).expect("room");
    table.confirm(&tracked, now).expect("no clash");
    true
}

/// The same connections in the kernel's table and in ours.
fn filled(kernel: &Kernel, settings: Settings) -> Conntrack {
    kernel.table.flush();
    let mut table = Conntrack::new(settings, [1, 2]);
    for step in some_of_everything() {
        kernel.send(&step).0.expect("forwarded");
        assert!(show(&mut table, &step, NOW), "{}", describe(&step));
    }
    assert_eq!(kernel.table.count(), table.len());
    table
}

/// A line without what differs from one moment and one machine to the next: time-outs and identifiers.
fn stable(line: &str) -> String {
    if line.starts_with("<flow") {
        let mut line = line.to_owned();
        for (open, close) in [("<timeout>", "</timeout>"), ("<id>", "</id>")] {
            let (start, end) = (line.find(open).expect(open) + open.len(), line.find(close).expect(close));
            line.replace_range(start..end, "N");
        }
        return line;
    }
    let mut words: Vec<&str> = line.split(' ').collect();
    let numbers: Vec<usize> = (0..words.len()).filter(|&at| words[at].parse::<u32>().is_ok()).collect();
    // The number of the IP version where it is shown, that of the protocol, and then the seconds.
    let seconds = if line.starts_with("ipv") { 2 } else { 1 };
    if let Some(&at) = numbers.get(seconds) {
        words[at] = "N";
    }
    let last = words.len() - 1;
    if words[last].starts_with("id=") {
        words[last] = "id=N";
    }
    words.join(" ")
}

/// Exit code, sorted stable lines, and what was said without the name of who says it.
type Outcome = (Option<i32>, Vec<String>, String);

/// conntrack's XML has TCP's names for the states of SCTP, which is not copied: that element is left out.
fn outcome(output: &Output) -> Outcome {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| !(line.starts_with("<flow") && line.contains("sctp")));
    let mut lines: Vec<String> = lines.map(stable).collect();
    lines.sort();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = said.split_once(": ").map_or(said.clone(), |(_, rest)| rest.to_owned());
    (output.status.code(), lines, said)
}

fn ours(daemon: &Daemon, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xrouter"));
    command.arg("conntrack").args(words).args(["--control", &daemon.path]).output().expect("it starts")
}

fn theirs(kernel: &Kernel, words: &[&str]) -> Output {
    kernel.on_router(&[&["conntrack"], words].concat())
}

#[track_caller]
fn same(kernel: &Kernel, daemon: &Daemon, line: &str) -> usize {
    let words: Vec<&str> = line.split_whitespace().collect();
    compare(line, outcome(&ours(daemon, &words)), outcome(&theirs(kernel, &words)))
}

/// How many lines there are, if all is the same.
#[track_caller]
fn compare(line: &str, ours: Outcome, theirs: Outcome) -> usize {
    let only = |mine: &[String], other: &[String]| {
        mine.iter().filter(|line| !other.contains(line)).cloned().collect::<Vec<_>>().join("\n  ")
    };
    let difference = format!("ours:\n  {}\ntheirs:\n  {}", only(&ours.1, &theirs.1), only(&theirs.1, &ours.1));
    assert!(ours.1 == theirs.1, "conntrack {line}: {difference}");
    assert_eq!((ours.0, ours.2), (theirs.0, theirs.2), "conntrack {line}");
    ours.1.len()
}

/// What selects something and what selects nothing, of each kind.
const FILTERS: &[&str] = &[
    "-f ipv4",
    "-f ipv6",
    "-p tcp",
    "--proto udp",
    "--protonum 50",
    "-p 99",
    "-p icmp",
    "-p icmpv6",
    "-p gre",
    "-p sctp",
    "-s 10.1.0.2",
    "--src 10.1.0.0/24",
    "--orig-src 10.0.0.0/8 -p udp",
    "-s 10.9.9.9",
    "-s 10.1.0.9 --mask-src 255.255.255.0",
    "-s fd01::2",
    "-s fd01::/64",
    "-d 10.2.0.2 -p tcp",
    "--orig-dst fd02::2",
    "-r 10.2.0.2",
    "--reply-src 10.1.0.2",
    "-q 10.1.0.2 -p icmp",
    "--reply-dst fd01::2 -p 58",
    "-p tcp --sport 901",
    "-p tcp --orig-port-src 902 --dport 80",
    "-p tcp --orig-port-dst 81",
    "-p udp --sport 3000 --dport 53",
    "-p udp --reply-port-src 53 --reply-port-dst 3100",
    "-p sctp --sport 4000",
    "-p tcp --state ESTABLISHED",
    "-p tcp --state SYN_SENT",
    "-p tcp --state CLOSE",
    "-p sctp --state CLOSED",
    "-p icmp --icmp-type 8",
    "-p icmp --icmp-type 8 --icmp-code 5 --icmp-id 79",
    "-p icmpv6 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 77",
    "-u SEEN_REPLY",
    "-u ASSURED",
    "-u UNREPLIED",
    "-u SEEN_REPLY,ASSURED",
    "-u assured -p tcp",
    "-m 0",
    "-m 1",
    "-m 0/0xff",
    "-m 0x10/0x10",
    "-w 0",
    "-w 1",
    "--any-nat",
    "-n",
    "-g",
];

#[test]
fn listings_are_those_of_conntrack() {
    if !can_run("listings_are_those_of_conntrack") {
        return;
    }
    let kernel = Kernel::new().expect("namespaces");
    for accounting in [false, true] {
        kernel.on_router(&["sysctl", "-qw", &format!("net.netfilter.nf_conntrack_acct={}", u8::from(accounting))]);
        let settings = Settings { max: 1000, acct: accounting, ..Settings::default() };
        let table = filled(&kernel, settings);
        let all = table.len();
        let daemon = Daemon::start(if accounting { "acct" } else { "plain" }, table, NOW);
        for form in ["", "-o extended", "-o id", "-o extended,id", "-o id -o ktimestamp,timestamp", "conntrack"] {
            assert_eq!(same(&kernel, &daemon, &format!("-L {form}")), all);
        }
        // Two lines before and one after; one for SCTP.
        assert_eq!(same(&kernel, &daemon, "-L -o xml"), all - 1 + 3);
        let proc = kernel.on_router(&["cat", "/proc/net/nf_conntrack"]);
        let (_, lines, said) = outcome(&ours(&daemon, &["-L", "--proc"]));
        assert_eq!(said, format!("{all} flow entries have been shown.\n"));
        assert_eq!(compare("--proc", (Some(0), lines, String::new()), outcome(&proc)), all);
    }
}

#[test]
fn filters_select_what_conntrack_selects() {
    if !can_run("filters_select_what_conntrack_selects") {
        return;
    }
    let kernel = Kernel::new().expect("namespaces");
    let daemon = Daemon::start("filters", filled(&kernel, Settings { max: 1000, ..Settings::default() }), NOW);
    let counts: Vec<usize> = FILTERS.iter().map(|filter| same(&kernel, &daemon, &format!("-L {filter}"))).collect();
    assert!(counts.iter().filter(|&&count| count > 0).count() > 30, "{counts:?}");
    // conntrack 1.4.7 shows those whose key is 0, whatever key is asked for.
    for key in ["0x1234", "4660"] {
        let (_, lines, _) = outcome(&ours(&daemon, &["-L", "-p", "gre", "--dstkey", key]));
        assert!(lines.len() == 2 && lines.iter().all(|line| line.contains("srckey=0x0 dstkey=0x1234")), "{lines:?}");
    }
    for tuple in [
        "-p tcp -s 10.1.0.2 -d 10.2.0.2 --sport 901 --dport 80",
        "-p tcp -s 10.2.0.2 -d 10.1.0.2 --sport 80 --dport 901",
        "-p tcp -s 10.1.0.2 -d 10.2.0.2 --sport 999 --dport 80",
        "-p udp -s fd01::2 -d fd02::2 --sport 3000 --dport 53 -o extended,id",
        "-p icmp -s 10.1.0.2 -d 10.2.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 77",
    ] {
        same(&kernel, &daemon, &format!("-G {tuple}"));
    }
    for line in [
        "-C",
        "-D -p tcp --sport 902",
        "-D -p tcp --sport 902",
        "-D -s 10.1.0.2 -p udp -o extended",
        "-D -p icmp -o xml",
        "-C",
        "-L",
        "-D -f ipv6",
        "-L",
        "-F",
        "-L",
        "-L -o xml",
        "-D",
        "-C",
    ] {
        same(&kernel, &daemon, line);
    }
}

/// `conntrack -E` in the router's namespace.
struct Listener {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Listener {
    fn start(kernel: &Kernel) -> Listener {
        let mut child = kernel.start_on_router(&["conntrack", "-E"]);
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        // Until it listens; the first sequence would show if that were not so.
        std::thread::sleep(Duration::from_millis(500));
        Listener { child, lines }
    }

    /// What it has printed up to the event of this packet, without what others did to the table.
    fn until(&mut self, kernel: &Kernel, marker: u16) -> Vec<String> {
        let packet = testing::ip(CLIENT, SERVER, 17, &testing::udp(marker, 9, b"marker"));
        kernel.send(&Step::new(true, packet));
        let end = format!("sport={marker} dport=9 ");
        let lines = self.lines.by_ref().map(|line| line.expect("a line"));
        lines.take_while(|line| !line.contains(&end)).filter(|line| !line.contains("[USERSPACE]")).collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events since the last call, as lines.
fn told(table: &mut Conntrack) -> Vec<String> {
    let line = |event: xrouter::conntrack::Event| {
        let mut line = String::new();
        event.conn.write_event(&mut line, event.kind, &LineOptions::default());
        line
    };
    table.events().drain(..).map(line).collect()
}

fn segment(flags: &str, seq: u32, ack: u32, from_client: bool) -> Step {
    let (sport, dport) = if from_client { (901, 80) } else { (80, 901) };
    let flags = testing::flags(flags);
    let segment = Segment { sport, dport, seq, ack, flags, window: 8192, options: vec![], payload: 0 };
    let (src, dst) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
    Step::new(from_client, testing::ip(src, dst, 6, &segment.bytes()))
}

#[test]
fn events_are_those_of_conntrack() {
    if !can_run("events_are_those_of_conntrack") {
        return;
    }
    let mut kernel = Kernel::new().expect("namespaces");
    let mut listener = Listener::start(&kernel);
    let mut router = Ours::new();
    let opened = [segment("S", 7, 0, true), segment("SA", 77, 8, false), segment("A", 8, 78, true)];
    let closed = [
        segment("FA", 8, 78, true),
        segment("FA", 78, 9, false),
        segment("A", 9, 79, true),
        // And opened again.
        segment("S", 70_000, 0, true),
    ];
    let sequences: [Vec<Step>; 6] = [
        [&opened[..], &closed].concat(),
        // The first SYN/ACK is lost beyond the router: both are repeated.
        vec![opened[0].clone(), opened[1].clone(), opened[0].clone(), opened[1].clone(), opened[2].clone()],
        [&opened[..], &[segment("R", 8, 0, true)]].concat(),
        vec![opened[0].clone(), segment("R", 8, 0, true)],
        vec![opened[0].clone(), segment("RA", 0, 8, false)],
        some_of_everything(),
    ];
    let mut marker = 10_000;
    let mut run = |name: &str, settings: Settings, steps: &[Step]| {
        kernel.table.flush();
        kernel.apply(&settings);
        marker += 1;
        listener.until(&kernel, marker);
        router.begin(&settings);
        router.table().listen(true);
        for step in steps {
            if let Some(settings) = &step.settings {
                kernel.apply(settings);
                router.set(settings);
            }
            router.send(step, NOW);
            kernel.send(step);
        }
        marker += 1;
        let (ours, theirs) = (told(router.table()), listener.until(&kernel, marker));
        if router.answers() > 0 {
            // An ICMP error carries the news of its connection with it, unless the rate limit keeps it back: the kernel's
            // limit is of the moment.
            return 0;
        }
        let steps = || steps.iter().map(describe).collect::<Vec<_>>().join("\n  ");
        let same = ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(ours, theirs)| is_same(ours, theirs));
        assert!(same, "{name}: ours {ours:#?}\ntheirs {theirs:#?}\nafter these packets\n  {}", steps());
        assert_eq!(router.table().take_events_lost(), 0);
        ours.len()
    };
    let mut events = 0;
    for (number, steps) in sequences.iter().enumerate() {
        events += run(&format!("sequence {number}"), Settings { max: 1000, ..Settings::default() }, steps);
    }
    assert!(events > 40, "{events}");
    let seed = asked_number("SEED").unwrap_or(1);
    for number in 0..asked_number("EVENTS").unwrap_or(60) {
        let sequence = generate::sequence(name_of(seed, number));
        // With a zone in one direction a packet may be of either of two connections.
        if sequence.steps.iter().any(|step| step.template().zone.direction != ZoneDirection::Both) {
            continue;
        }
        events += run(&format!("{seed}:{number}"), sequence.settings, &sequence.steps);
    }
    eprintln!("{events} events, no difference");
}

/// Our time stands still while the kernel's goes on: a second may be missing where a packet did not refresh the
/// connection, and more where it ends.
fn is_same(ours: &str, theirs: &str) -> bool {
    let seconds = |line: &str| line.split_whitespace().nth(3).and_then(|word| word.parse::<i64>().ok());
    let late = seconds(ours).zip(seconds(theirs)).map_or(0, |(ours, theirs)| ours - theirs);
    stable(ours) == stable(theirs) && (ours == theirs || late == 1 || ours.starts_with("[DESTROY]"))
}

/// A connection that times out, and one whose status changes with its age.
#[test]
fn events_of_time_are_those_of_conntrack() {
    if !can_run("events_of_time_are_those_of_conntrack") {
        return;
    }
    let kernel = Kernel::new().expect("namespaces");
    for name in ["icmp_timeout=1", "acct=1"] {
        kernel.on_router(&["sysctl", "-qw", &format!("net.netfilter.nf_conntrack_{name}")]);
    }
    let mut listener = Listener::start(&kernel);
    let settings = Settings { max: 1000, icmp_timeout: 1, acct: true, ..Settings::default() };
    let mut table = Conntrack::new(settings, [1, 2]);
    table.listen(true);
    let udp = |from_client, sport, dport| {
        let (src, dst) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        Step::new(from_client, testing::ip(src, dst, 17, &testing::udp(sport, dport, b"abc")))
    };
    let echo = testing::ip(CLIENT, SERVER, 1, &testing::icmp(8, 0, [0, 77, 0, 1], b""));
    let first = [Step::new(true, echo), udp(true, 3000, 53), udp(false, 53, 3000)];
    let later = [udp(true, 3000, 53), udp(true, 3000, 53)];
    for step in &first {
        show(&mut table, step, NOW);
        kernel.send(step).0.expect("forwarded");
    }
    std::thread::sleep(Duration::from_millis(2200));
    // Has the kernel look at what has timed out.
    kernel.on_router(&["conntrack", "-L"]);
    let now = NOW + 2_200_000_000;
    table.expire(now, 1000);
    for step in &later {
        show(&mut table, step, now);
        kernel.send(step).0.expect("forwarded");
    }
    let (ours, theirs) = (told(&mut table), listener.until(&kernel, 10_000));
    assert_eq!(ours, theirs);
    assert_eq!(ours.iter().filter(|line| line.starts_with("[DESTROY]")).count(), 1, "{ours:?}");
    assert_eq!(
        ours.iter().filter(|line| line.contains("120 src") && line.contains("[ASSURED]")).count(),
        1,
        "{ours:?}"
    );
}
