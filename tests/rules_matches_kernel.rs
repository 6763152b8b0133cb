//! The matches that count, remember or search against the judge: their options line by line beside
//! `iptables-legacy-restore` and `-save`, and scripts of packets with pauses between them, after which the kernel's counters
//! of every rule must be ours.
//!
//! Needs root, iproute2 and iptables; without root each test says so and passes.

#[path = "rules_lab/mod.rs"]
mod lab;
#[path = "rules_matches_kernel/lines.rs"]
mod lines;

use lab::{ALONE, Lab, PORTS, ROUTER_MAC, may_run, run};
use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};
use xrouter::conntrack::{CtInfo, CtStatus, Template, Tuple};
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::rules::{self, Context, Decision, FORWARD, Hook, Liveness, RuleVector, TableName, Told};
use xrouter::time::Instant;
use xrouter::wire::Family;

/// What iptables prints of a rule, or `None` when it does not take it.
fn theirs(lab: &Lab, family: Family, text: &str) -> Option<String> {
    let program = if family == Family::V4 { "iptables-legacy-restore" } else { "ip6tables-legacy-restore" };
    let mut child = Command::new("ip")
        .args(["netns", "exec", &lab.router, program])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ip");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("writing to the child");
    let taken = child.wait().expect("the child's end").success();
    taken.then(|| rules_of(&lab.tool(family, "save", &["-t", "filter"], "")))
}

fn rules_of(saved: &str) -> String {
    saved.lines().filter(|line| line.starts_with("-A")).collect::<Vec<_>>().join("\n")
}

#[test]
fn options_are_read_and_printed_as_iptables_does() {
    if !may_run() {
        return;
    }
    let _alone = ALONE.lock();
    let lab = Lab::new();
    let mut wrong = Vec::new();
    let lists = [lines::SAME, lines::ONLY_THEIRS, lines::OTHERWISE_PRINTED];
    for line in lists.into_iter().flatten() {
        let (family, rule) = match line.strip_prefix("6 ") {
            Some(rule) => (Family::V6, rule),
            None => (Family::V4, *line),
        };
        let text = format!("*filter\n-A FORWARD {rule}\nCOMMIT\n");
        let ours = rules::understand("list", &text, family, &PORTS);
        let ours = ours.map(|ruleset| rules_of(&rules::save_table(&ruleset, TableName::Filter, None)));
        let theirs = theirs(&lab, family, &text);
        let fine = match (&theirs, &ours) {
            (Some(theirs), Ok(ours)) => (theirs == ours) != lines::OTHERWISE_PRINTED.contains(line),
            (None, Err(_)) => !lines::ONLY_THEIRS.contains(line),
            (Some(_), Err(_)) => lines::ONLY_THEIRS.contains(line),
            (None, Ok(_)) => false,
        };
        if !fine {
            wrong.push(format!("{line}\n  theirs: {theirs:?}\n  ours:   {:?}", ours.map_err(|bad| bad.to_string())));
        }
    }
    assert!(wrong.is_empty(), "{} lines:\n{}", wrong.len(), wrong.join("\n"));
}

/// A UDP packet from `10.1.0.src` to `10.2.0.dst`.
#[derive(Clone, Copy)]
struct Udp {
    src: u8,
    dst: u8,
    sport: u16,
    dport: u16,
    ttl: u8,
    payload: &'static [u8],
}

const UDP: Udp = Udp { src: 2, dst: 2, sport: 1000, dport: 53, ttl: 64, payload: b"hello" };

impl Udp {
    fn frame(&self) -> Vec<u8> {
        let mut frame = [&ROUTER_MAC[0][..], &[2, 0, 0, 0, 0, 0x0c], &[8, 0]].concat();
        let length = 28 + self.payload.len() as u16;
        let [high, low] = length.to_be_bytes();
        let mut ip = vec![0x45, 0, high, low, 0, 1, 0, 0, self.ttl, 17, 0, 0, 10, 1, 0, self.src, 10, 2, 0, self.dst];
        let mut sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        sum = (sum & 0xffff) + (sum >> 16);
        ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        frame.extend(ip);
        for word in [self.sport, self.dport, length - 20, 0] {
            frame.extend(word.to_be_bytes());
        }
        frame.extend(self.payload);
        frame
    }
}

/// Packets at once, and the milliseconds before them.
type Step = (u64, Vec<Udp>);

/// Our side of a script: connections as conntrack would have them, and the rules.
struct Ours {
    vector: RuleVector,
    counters: rules::RuleCounters,
    world: Told,
    traffic: HashMap<Tuple, (u64, u64)>,
}

impl Ours {
    fn new(ruleset: &rules::Ruleset) -> Ours {
        let vector = RuleVector::compile(ruleset);
        let counters = vector.counters();
        Ours { vector, counters, world: Told::default(), traffic: HashMap::new() }
    }

    fn send(&mut self, frame: &[u8], now: Instant) {
        let mut packet = Packet::parse(frame, PortId::LAN, true).expect("a good packet");
        packet.ttl -= 1;
        let tuple = Tuple::of(&packet);
        let seen = self.traffic.entry(tuple).or_default();
        let counted = (seen.0 + 1, seen.1 + u64::from(packet.l3_len));
        self.world.tuples = Some([tuple, tuple.inverse().expect("UDP has an inverse")]);
        self.world.traffic = Some([counted, (0, 0)]);
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        self.world.unix_time = (unix.as_secs() as i64, 0);
        let mut frame = frame.to_vec();
        let mut context = Context {
            packet: &mut packet,
            frame: &mut frame,
            hook: Hook::Forward,
            in_port: PortId::LAN,
            out_port: Some(PortId::WAN),
            out_mtu: 1500,
            info: CtInfo::New,
            status: CtStatus(0),
            mark: 0,
            template: Template::DEFAULT,
            traced: false,
            now,
        };
        if self.vector.evaluate(FORWARD, &mut context, &mut self.world, &mut self.counters) == Decision::Accept {
            self.traffic.insert(tuple, counted);
            self.world.alive.push((tuple, Liveness::Open));
        }
    }
}

fn counters(text: &str) -> Vec<String> {
    let mine = |line: &&str| line.starts_with('[') || line.starts_with(":FORWARD");
    text.lines().filter(mine).map(str::to_owned).collect()
}

/// Runs a script through the kernel and through us; the counters of all rules must be the same.
fn judge(lab: &Lab, rules_text: &[&str], script: &[Step]) {
    let lines: String = rules_text.iter().map(|rule| format!("-A FORWARD {rule}\n")).collect();
    let text = format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{lines}COMMIT\n");
    let ruleset = rules::load("script", &text, Family::V4, &PORTS).unwrap_or_else(|bad| panic!("{text}\n{bad}"));
    // Named tables live as long as a rule names them.
    lab.tool(Family::V4, "restore", &[], "*filter\nCOMMIT\n");
    // A rule that needs conntrack, since without one Linux tracks nothing.
    let tracked = "*mangle\n-A PREROUTING -m conntrack --ctstate NEW\nCOMMIT\n";
    lab.tool(Family::V4, "restore", &[], &format!("{tracked}{text}"));
    run("ip", &["netns", "exec", &lab.router, "conntrack", "-F"], "");
    let mut ours = Ours::new(&ruleset);
    let start = std::time::Instant::now();
    for (pause, packets) in script {
        std::thread::sleep(Duration::from_millis(*pause));
        let now = Instant::from_secs(1000) + start.elapsed().as_nanos() as u64;
        let frames: Vec<(PortId, Vec<u8>)> = packets.iter().map(|packet| (PortId::LAN, packet.frame())).collect();
        lab.send(&frames);
        for (_, frame) in &frames {
            ours.send(frame, now);
        }
    }
    let kernel = counters(&lab.tool(Family::V4, "save", &["-c", "-t", "filter"], ""));
    assert_eq!(counters(&rules::save(&ruleset, Some(&ours.counters))), kernel, "ours, then the kernel's\n{text}");
}

/// So many packets, each from the next port on.
fn ports(count: u16, first: u16, packet: Udp) -> Vec<Udp> {
    (first..first + count).map(|sport| Udp { sport, ..packet }).collect()
}

fn scripts(list: &[(&[&str], &[Step])]) {
    if !may_run() {
        return;
    }
    let _alone = ALONE.lock();
    let lab = Lab::new();
    for (rules, script) in list {
        judge(&lab, rules, script);
    }
}

#[test]
fn recent_remembers_what_the_kernel_remembers() {
    let other = Udp { src: 3, ..UDP };
    scripts(&[
        (
            &["-m recent --update --seconds 2 --hitcount 3 --name a -j DROP", "-m recent --set --name a -j ACCEPT"],
            &[(0, [[UDP; 6], [other; 6]].concat()), (1000, vec![UDP; 2]), (2500, vec![UDP; 5])],
        ),
        (
            &[
                "-m recent --rcheck --rttl --name b",
                "-m recent ! --rcheck --name b",
                "-p udp --dport 54 -m recent --remove --name b",
                "-p udp --dport 53 -m recent --set --name b",
                "-m recent --rcheck --seconds 1 --reap --name b",
                "-m recent --rcheck --hitcount 5 --rdest --name c",
                "-m recent --set --rdest --name c --mask 255.255.255.254",
            ],
            &[
                (0, vec![UDP, Udp { ttl: 63, ..UDP }, other, Udp { dport: 54, ..UDP }, UDP]),
                (1500, vec![other, Udp { dst: 3, ..UDP }, Udp { dport: 55, ..UDP }]),
            ],
        ),
        // More addresses than a list holds.
        (
            &["-m recent --rcheck --name d", "-m recent --set --name d --rsource"],
            &[(0, (0..250).chain(140..250).chain([1, 2, 249]).map(|src| Udp { src: 2 + src % 250, ..UDP }).collect())],
        ),
    ]);
}

#[test]
fn hashlimit_counts_as_the_kernel_counts() {
    let other = Udp { src: 3, dport: 54, ..UDP };
    let both = |count| [vec![UDP; count], vec![other; count]].concat();
    scripts(&[
        (
            &["-m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 3 --hashlimit-mode srcip --hashlimit-name a \
               --hashlimit-htable-expire 60000"],
            &[(0, both(5)), (1450, both(5)), (4000, both(5))],
        ),
        (
            &[
                "-m hashlimit --hashlimit-above 1/min --hashlimit-mode dstport,srcport --hashlimit-name b",
                "-m hashlimit --hashlimit-above 1/min --hashlimit-mode dstip --hashlimit-dstmask 30 --hashlimit-name c",
                "-m hashlimit --hashlimit-above 100b/s --hashlimit-name d",
                "-m hashlimit --hashlimit-upto 100b/s --hashlimit-burst 300 --hashlimit-name e",
            ],
            &[(0, both(8)), (500, both(8))],
        ),
        // Two keys fit; a third is dropped until something is collected.
        (
            &[
                "-m hashlimit --hashlimit-upto 5/sec --hashlimit-mode srcip --hashlimit-name f --hashlimit-htable-size 2 \
               --hashlimit-htable-max 2",
            ],
            &[(0, (2..8).map(|src| Udp { src, ..UDP }).collect()), (2600, vec![other; 3])],
        ),
        (
            &["-m hashlimit --hashlimit-above 3/sec --hashlimit-burst 2 --hashlimit-rate-match --hashlimit-name g \
               --hashlimit-htable-expire 60000"],
            &[(0, vec![UDP; 60]), (1300, vec![UDP; 2]), (1300, vec![UDP; 2])],
        ),
    ]);
}

#[test]
fn connlimit_counts_what_the_kernel_counts() {
    scripts(&[
        (
            &["-m connlimit --connlimit-above 2 -j DROP"],
            &[
                (0, ports(1, 1, UDP)),
                (0, ports(1, 2, UDP)),
                (0, ports(1, 3, UDP)),
                (0, ports(2, 1, UDP)),
                (0, ports(1, 9, UDP)),
            ],
        ),
        (
            &[
                "-m connlimit --connlimit-upto 3 --connlimit-mask 24 --connlimit-daddr",
                "-m connlimit --connlimit-upto 2",
            ],
            &[
                (0, ports(1, 1, UDP)),
                (0, ports(1, 1, Udp { src: 3, ..UDP })),
                (0, ports(1, 1, Udp { dst: 3, ..UDP })),
                (0, ports(1, 2, Udp { dst: 4, ..UDP })),
                (0, ports(1, 1, UDP)),
            ],
        ),
    ]);
}

#[test]
fn the_others_say_what_the_kernel_says() {
    let text = |payload: &'static [u8]| Udp { payload, ..UDP };
    scripts(&[
        (
            &[
                "-m statistic --mode nth --every 3 --packet 0",
                "-m statistic --mode nth ! --every 4 --packet 2",
                "-m statistic --mode random --probability 1",
                "-m statistic --mode random --probability 0",
                "-m quota --quota 100",
                "-m quota ! --quota 200",
            ],
            &[(0, vec![UDP; 10])],
        ),
        (
            &[
                // The payload begins at 28.
                "-m string --string needle --algo bm",
                "-m string --string NEEDLE --algo kmp --icase",
                "-m string ! --string needle --algo kmp",
                "-m string --string needle --algo bm --from 28 --to 34",
                "-m string --string needle --algo bm --from 29",
                "-m string --string needle --algo bm --to 33",
                "-m string --string needle --algo bm --to 34",
                "-m string --string needle --algo bm --from 34 --to 60",
                "-m string --hex-string |4500| --algo bm --to 2",
                "-m string --hex-string |e0e1| --algo kmp --icase",
            ],
            &[(
                0,
                [b"needle".as_slice(), b"Needle", b"......needle.....", b"nothing", b"needl", b"\xc0\xe1", b""]
                    .map(text)
                    .to_vec(),
            )],
        ),
        (
            &[
                "-m u32 --u32 6&0xFF=17",
                "-m u32 --u32 6&0xFF=17&&0>>22&0x3C@0>>16=1000",
                "-m u32 ! --u32 0>>22&0x3C@8=0x68656c6c",
                "-m u32 --u32 100=0:0xffffffff",
                "-m u32 ! --u32 100=0:0xffffffff",
                "-m u32 --u32 29=0x656c6c6f",
                "-m u32 --u32 30=0:0xffffffff",
                "-m u32 --u32 0@0=0:0xffffffff",
                "-m bpf --bytecode \"4,48 0 0 9,21 0 1 17,6 0 0 1,6 0 0 0\"",
                "-m bpf --bytecode \"5,177 0 0 0,72 0 0 2,21 0 1 53,6 0 0 1,6 0 0 0\"",
                "-m bpf --bytecode \"2,32 0 0 200,6 0 0 1\"",
                "-m time --timestart 00:00 --timestop 23:59:59",
                "-m time --datestop 2020",
                "-m time --weekdays Mon,Tue,Wed",
                "-m time --weekdays Thu,Fri,Sat,Sun",
                "-m time --monthdays 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "-m connbytes --connbytes 3 --connbytes-mode packets --connbytes-dir original",
                "-m connbytes --connbytes 50:70 --connbytes-mode bytes --connbytes-dir both",
                "-m connbytes ! --connbytes 33:33 --connbytes-mode avgpkt --connbytes-dir both",
                "-m connbytes --connbytes 30:36 --connbytes-mode avgpkt --connbytes-dir original",
            ],
            &[(0, [vec![UDP; 4], vec![Udp { sport: 1001, dport: 54, ..UDP }; 2], vec![text(b"")]].concat())],
        ),
    ]);
}
