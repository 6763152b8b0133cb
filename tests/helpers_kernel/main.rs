//! Application helpers against the running kernel's: the same dialogues through both, and every packet that comes out
//! compared byte for byte, expectations and connections line for line.
//!
//! `XROUTER_SHOW` prints what the kernel said, `XROUTER_PARITY_ALL` has every dialogue under every translation.
//!
//! Needs root, a kernel with network namespaces and the helpers, iptables-legacy and conntrack; says so and passes without.

#[path = "../support/asked.rs"]
mod asked;
mod dialogues;
mod kernel;
mod ours;
mod pptp;
mod random;
mod talk;
#[path = "../../src/conntrack/testing.rs"]
mod testing;

use asked::{asked_number, privileged};
use kernel::Kernel;
use ours::Ours;
use talk::{Router, Talk};

use dialogues::{
    AMANDA_SAYS, CLIENT_SAYS, CLIENT_SAYS_V6, IRC_SAYS, Nat, SERVER_SAYS, line, login, open_expected, say_and_go_on,
};

/// Both sides, and where they differ.
struct Pair {
    kernel: Kernel,
    ours: Ours,
    count: usize,
    wrong: Vec<String>,
}

impl Pair {
    fn new() -> Pair {
        let kernel = Kernel::new().unwrap_or_else(|error| panic!("cannot set up the namespaces: {error}"));
        Pair { kernel, ours: Ours::new(), count: 0, wrong: Vec::new() }
    }

    fn load(&mut self, rules: &str) {
        self.kernel.load(rules);
        self.ours.load(rules);
    }

    /// Has the dialogue through both.
    fn run(&mut self, name: &str, script: impl Fn(&mut Talk<'_>)) {
        let transcript = |router: &mut dyn Router| {
            let mut talk = Talk::begin(router);
            script(&mut talk);
            talk.transcript
        };
        let (theirs, mine) = (transcript(&mut self.kernel), transcript(&mut self.ours));
        self.count += 1;
        if theirs != mine {
            let at = theirs.iter().zip(&mine).take_while(|(one, other)| one == other).count();
            let line = |lines: &[String]| lines.get(at).cloned().unwrap_or_else(|| "nothing more".to_owned());
            let (theirs, mine) = (line(&theirs), line(&mine));
            self.wrong.push(format!("{name}: line {at}\n  kernel: {theirs}\n  ours:   {mine}"));
        }
        if std::env::var_os("XROUTER_SHOW").is_some() {
            eprintln!("== {name}\n   {}", theirs.join("\n   "));
        }
    }

    fn end(self) {
        eprintln!("{} dialogues, {} differ", self.count, self.wrong.len());
        assert!(
            self.wrong.is_empty(),
            "{} of {} dialogues differ:\n{}",
            self.wrong.len(),
            self.count,
            self.wrong.join("\n")
        );
    }
}

/// Every dialogue under one translation, in turn; all under each if they are asked for.
fn is_wanted(nat: Nat, turn: usize) -> bool {
    Nat::ALL[turn % Nat::ALL.len()] == nat || std::env::var_os("XROUTER_PARITY_ALL").is_some()
}

/// Under every translation, everything that either end may say.
#[test]
fn ftp_commands_are_read_and_written_as_the_kernel_does() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new();
    for nat in Nat::ALL {
        pair.load(&nat.rules());
        let lists = [
            (false, true, CLIENT_SAYS),
            (false, false, SERVER_SAYS),
            (true, true, CLIENT_SAYS_V6),
            (true, false, SERVER_SAYS),
        ];
        for (v6, from_client, list) in lists {
            for (_, text) in list.iter().enumerate().filter(|(turn, _)| is_wanted(nat, *turn)) {
                pair.run(&format!("{nat:?} v6 {v6} {text:?}"), |talk| {
                    let mut line = login(talk, nat, v6);
                    say_and_go_on(talk, &mut line, from_client, text);
                });
            }
        }
    }
    pair.end();
}

#[test]
fn other_helpers_read_and_write_as_the_kernel_does() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new();
    for nat in Nat::ALL {
        pair.load(&nat.rules());
        for (_, text) in IRC_SAYS.iter().enumerate().filter(|(turn, _)| is_wanted(nat, *turn)) {
            pair.run(&format!("{nat:?} irc {text:?}"), |talk| {
                let mut line = line(nat, 6, false, 6667);
                talk.open(&mut line);
                talk.say(&mut line, false, b":server 001 me :hi\r\n");
                say_and_go_on(talk, &mut line, true, text);
                open_expected(talk, 6, false, false);
            });
        }
        let twice = AMANDA_SAYS.iter().flat_map(|text| [(false, text), (true, text)]);
        for (_, (v6, text)) in twice.enumerate().filter(|(turn, _)| is_wanted(nat, *turn)) {
            pair.run(&format!("{nat:?} amanda v6 {v6} {text:?}"), |talk| {
                let mut line = line(nat, 17, v6, 10_080);
                talk.say(&mut line, true, b"Amanda 2.3 REQ\nCONNECT DATA 1\n");
                talk.say(&mut line, false, text.as_bytes());
                talk.look();
                open_expected(talk, 6, true, v6);
            });
        }
        for (v6, opcode) in (0..6).flat_map(|opcode| [(false, opcode), (true, opcode)]) {
            pair.run(&format!("{nat:?} tftp v6 {v6} {opcode}"), |talk| {
                let mut line = line(nat, 17, v6, 69);
                talk.say(&mut line, true, &[0, opcode, b'x', 0]);
                talk.look();
                open_expected(talk, 17, false, v6);
                talk.say(&mut line, true, &[0, opcode]);
                talk.say(&mut line, true, &[0]);
                talk.look();
            });
        }
        for (v6, code, answer) in [
            (false, 7, &[0, 0, 0, 0, 0, 0, 0x19, 0x64][..]),
            (true, 7, &[0, 0, 0, 0, 0, 0, 0x19, 0x64, 1, 2, 3]),
            (false, 6, &[0, 0, 0, 0, 0, 0, 0x19, 0x64]),
            (false, 7, &[0, 0, 0, 1, 0, 0, 0x19, 0x64]),
            (false, 7, &[0, 0, 0, 0, 0, 1, 0x19, 0x64]),
            (false, 7, &[0, 0, 0, 0, 0, 0, 0x19]),
            (false, 7, &[0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            pair.run(&format!("{nat:?} sane {code} {answer:?}"), |talk| {
                let mut line = line(nat, 6, v6, 6566);
                talk.open(&mut line);
                talk.say(&mut line, true, &[0, 0, 0, code, 0, 0, 0, 1]);
                talk.say(&mut line, false, answer);
                talk.look();
                open_expected(talk, 6, true, v6);
                talk.say(&mut line, false, answer);
                talk.look();
            });
        }
        pair.run(&format!("{nat:?} netbios"), |talk| {
            let mut line = line(nat, 17, false, 137);
            talk.say(&mut line, true, b"who");
            talk.say(&mut line, false, b"me");
            talk.look();
        });
    }
    pair.end();
}

/// Two control connections announce the same port, and a command grows beyond what the way out takes.
#[test]
fn conflicts_end_as_the_kernels_end() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new();
    for nat in Nat::ALL {
        pair.load(&nat.rules());
        pair.run(&format!("{nat:?} twice the same port"), |talk| {
            let mut first = login(talk, nat, false);
            talk.say(&mut first, true, b"PORT 10,1,0,2,19,137\r\n");
            let mut second = line(nat, 6, false, 21);
            second.ends[1].port = 40_001;
            second.ends[0].peer_port = 40_001;
            talk.open(&mut second);
            talk.say(&mut second, true, b"USER me\r\n");
            let before = talk.transcript.len();
            let arrived = talk.say(&mut second, true, b"PORT 10,1,0,2,19,137\r\n");
            if let Some(read) = arrived {
                // Another port, left to chance.
                talk.transcript.truncate(before);
                let text = String::from_utf8_lossy(&read.payload).into_owned();
                let numbers: Vec<u32> =
                    text.split(|byte: char| !byte.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
                let [.., high, low] = numbers[..] else { panic!("{text}") };
                assert!(high * 256 + low > 5001 && high < 256 && low < 256, "{text}");
                talk.note(&format!("told {:?}", &numbers[..4]));
                let count = talk.router.expected().len();
                talk.note(&format!("{count} expected"));
            } else {
                talk.look();
            }
            talk.say(&mut first, false, b"200 ok\r\n");
        });
        for (length, dont_fragment) in [(1498, true), (1499, true), (1500, true)] {
            pair.run(&format!("{nat:?} {length} bytes, DF {dont_fragment}"), |talk| {
                let mut line = login(talk, nat, false);
                let mut text = b"PORT 10,1,0,2,19,137\r\n".to_vec();
                text.resize(length - 40, b'x');
                let end = *line.end(true);
                let segment = testing::Segment {
                    sport: end.port,
                    dport: end.peer_port,
                    seq: end.seq,
                    ack: end.wants,
                    flags: testing::flags("PA"),
                    window: 64_000,
                    options: Vec::new(),
                    payload: 0,
                };
                let mut packet = testing::ip(end.addr, end.peer, 6, &[segment.bytes(), text].concat());
                packet[6] |= 0x40;
                packet[10..12].fill(0);
                let check = !testing::sum(&[&packet[..20]]);
                packet[10..12].copy_from_slice(&check.to_be_bytes());
                talk.send(true, &packet);
                talk.look();
                talk.say(&mut line, false, b"200 ok\r\n");
            });
        }
    }
    pair.end();
}

/// Dialogues at random; `XROUTER_PARITY_COUNT` says how many, `XROUTER_PARITY_SEED` from which number on.
#[test]
fn random_dialogues_go_as_through_the_kernel() {
    if !privileged() {
        return;
    }
    let (first, count) = (asked_number("SEED").unwrap_or(1), asked_number("COUNT").unwrap_or(60));
    let mut pair = Pair::new();
    let each = Nat::ALL.len() as u64;
    for nat in Nat::ALL {
        pair.load(&nat.rules());
        for seed in (first..first + count).filter(|seed| Nat::ALL[(seed % each) as usize] == nat) {
            pair.run(&format!("{nat:?} random {seed}"), |talk| random::dialogue(talk, nat, seed));
        }
    }
    pair.end();
}

/// PPTP's calls, and tunnels that both ends begin.
#[test]
fn tunnels_of_calls_go_where_the_kernels_go() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new();
    for nat in Nat::ALL {
        pair.load(&nat.rules());
        for (name, case) in pptp::CASES {
            pair.run(&format!("{nat:?} pptp: {name}"), |talk| case(talk, nat));
        }
    }
    pair.end();
}

/// Data connections, in both directions.
#[test]
fn expected_connections_go_where_the_kernels_go() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new();
    for nat in Nat::ALL {
        pair.load(&nat.rules());
        for v6 in [false, true] {
            for (from_client, text) in [
                (true, if v6 { "EPRT |2|fd01::2|5001|\r\n" } else { "PORT 10,1,0,2,19,137\r\n" }),
                (true, if v6 { "EPRT |2|fd01::2|65535|\r\n" } else { "EPRT |1|10.1.0.2|1|\r\n" }),
                (false, "229 ok (|||5001|)\r\n"),
                (false, "227 (10,2,0,2,19,137)\r\n"),
            ] {
                pair.run(&format!("{nat:?} v6 {v6} data of {text:?}"), |talk| {
                    let mut line = login(talk, nat, v6);
                    talk.say(&mut line, from_client, text.as_bytes());
                    open_expected(talk, 6, !from_client, v6);
                    // Nothing is expected twice; the second goes as any other.
                    open_expected(talk, 6, !from_client, v6);
                    talk.say(&mut line, from_client, text.as_bytes());
                    talk.look();
                });
            }
        }
    }
    pair.end();
}

/// Segments again, cut, late, and acknowledged in pieces, around a command that changes its length.
#[test]
fn sequence_numbers_are_those_of_the_kernel() {
    if !privileged() {
        return;
    }
    let mut pair = Pair::new();
    for nat in Nat::ALL {
        pair.load(&nat.rules());
        for text in ["PORT 10,1,0,2,19,137\r\n", "PORT 010,001,000,002,0000019,00000137\r\n"] {
            pair.run(&format!("{nat:?} again {text:?}"), |talk| again(talk, nat, text));
            pair.run(&format!("{nat:?} cut {text:?}"), |talk| cut(talk, nat, text));
            pair.run(&format!("{nat:?} twice {text:?}"), |talk| twice(talk, nat, text));
            for sack in 0..6 {
                pair.run(&format!("{nat:?} sack {sack} {text:?}"), |talk| sacks(talk, nat, text, sack));
            }
        }
    }
    pair.end();
}

/// A command, what follows it, and both again; acknowledgements of every byte of it.
fn again(talk: &mut Talk<'_>, nat: Nat, text: &str) {
    let mut line = login(talk, nat, false);
    let begin = line.end(true).seq;
    talk.say(&mut line, true, text.as_bytes());
    let middle = line.end(true).seq;
    talk.say(&mut line, true, b"RETR x\r\n");
    talk.packet(&mut line, true, (begin, "PA", &[]), text.as_bytes());
    talk.packet(&mut line, true, (middle, "PA", &[]), b"RETR x\r\n");
    let wanted = line.end(false).wants;
    for acked in (wanted - 45..=wanted + 3).step_by(3) {
        line.end(false).wants = acked;
        talk.ack(&mut line, false, &[]);
    }
    line.end(false).wants = wanted;
    talk.say(&mut line, false, b"200 ok\r\n");
    talk.say(&mut line, true, b"QUIT\r\n");
    let seq = line.end(true).seq;
    talk.packet(&mut line, true, (seq, "FA", &[]), b"");
    talk.look();
}

/// A command in two segments, at every place, then whole.
fn cut(talk: &mut Talk<'_>, nat: Nat, text: &str) {
    let mut line = login(talk, nat, false);
    for at in 1..text.len() {
        let begin = line.end(true).seq;
        talk.packet(&mut line, true, (begin, "PA", &[]), &text.as_bytes()[..at]);
        talk.packet(&mut line, true, (begin + at as u32, "PA", &[]), &text.as_bytes()[at..]);
        talk.look();
    }
    talk.say(&mut line, true, text.as_bytes());
    talk.say(&mut line, true, b"NOOP\r\n");
    talk.say(&mut line, false, b"200 ok\r\n");
    talk.look();
}

/// Two commands, one after the other, and late acknowledgements of the first.
fn twice(talk: &mut Talk<'_>, nat: Nat, text: &str) {
    let mut line = login(talk, nat, false);
    let begin = line.end(true).seq;
    for _ in 0..3 {
        talk.say(&mut line, true, text.as_bytes());
        talk.say(&mut line, false, b"200 ok\r\n");
    }
    let wanted = line.end(false).wants;
    for acked in (wanted - 90..=wanted).step_by(5) {
        line.end(false).wants = acked;
        talk.ack(&mut line, false, &[]);
    }
    talk.packet(&mut line, true, (begin, "PA", &[]), text.as_bytes());
    talk.look();
}

/// The server has not got the command, or what follows it, and says so.
fn sacks(talk: &mut Talk<'_>, nat: Nat, text: &str, case: u32) {
    let mut line = login(talk, nat, false);
    let before = line.end(false).wants;
    talk.say(&mut line, true, text.as_bytes());
    talk.say(&mut line, true, b"RETR x\r\n");
    let after = line.end(false).wants;
    talk.say(&mut line, true, b"RETR y\r\n");
    let end = line.end(false).wants;
    let (acked, blocks) = match case {
        0 => (before, vec![(after, end)]),
        1 => (after, vec![(after, end)]),
        2 => (before, vec![(before, after)]),
        3 => (before + 4, vec![(before + 9, after), (after + 2, end)]),
        4 => (end, vec![(before, after)]),
        _ => (before, vec![(before + 1, before + 3), (after - 1, after), (after + 1, end)]),
    };
    let mut option = vec![1, 1, 5, (2 + 8 * blocks.len()) as u8];
    for (first, last) in blocks {
        option.extend(first.to_be_bytes());
        option.extend(last.to_be_bytes());
    }
    line.end(false).wants = acked;
    talk.ack(&mut line, false, &option);
    line.end(false).wants = end;
    talk.say(&mut line, false, b"200 ok\r\n");
    talk.look();
}
