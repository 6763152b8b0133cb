//! TCP in virtual time, written as scripts: one segment a line, and what becomes of the connection.
//!
//! `c S 0 > NEW SYN_SENT 120` is: the client sends a SYN with sequence number 0; it is NEW, the state becomes SYN_SENT
//! with 120 seconds to live. Numbers are relative to each side's initial sequence number. After the flags come the
//! sequence number, then `N` bytes of payload, `a=N` the acknowledgement (wanted when there is an A flag), `w=N` the
//! window (default 8192), `o=hex` options. After the timeout, `A` means ASSURED. `gone` means that there is no connection
//! left. `+N` alone lets N seconds pass; `reset` is a REJECT with tcp-reset of the last packet.

use super::*;

const CLIENT_ISN: u32 = 0xffff_f000; // wraps around soon
const SERVER_ISN: u32 = 5_000_000;

fn packet_of(text: &str) -> Vec<u8> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let from_client = words[0] == "c";
    let (mine, peers) = if from_client { (CLIENT_ISN, SERVER_ISN) } else { (SERVER_ISN, CLIENT_ISN) };
    let relative = |base: u32, text: &str| base.wrapping_add(text.parse::<i64>().expect("a number") as u32);
    let (sport, dport) = if from_client { (901, 80) } else { (80, 901) };
    let flags = if words[1] == "0" { 0 } else { testing::flags(words[1]) };
    let mut segment = Segment {
        sport,
        dport,
        seq: relative(mine, words[2]),
        ack: 0,
        flags,
        window: 8192,
        options: vec![],
        payload: 0,
    };
    for word in &words[3..] {
        match word.split_once('=') {
            Some(("a", number)) => segment.ack = relative(peers, number),
            Some(("w", number)) => segment.window = number.parse().expect("a window"),
            Some((_, hex)) => {
                let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
                segment.options = (0..hex.len()).step_by(2).map(byte).collect();
            }
            None => segment.payload = word.parse().expect("a length"),
        }
    }
    let (src, dst) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
    testing::ip(src, dst, 6, &segment.bytes())
}

fn outcome(lab: &Lab, info: CtInfo) -> String {
    match &lab.list()[..] {
        [] => format!("{} gone", info.name()),
        [view] => {
            let assured = if CtStatus(view.status).any(CtStatus::ASSURED) { " A" } else { "" };
            let state = view.state.expect("TCP has a state").name();
            format!("{} {state} {}{assured}", info.name(), view.timeout)
        }
        many => panic!("{many:?}"),
    }
}

fn play_with(settings: Settings, script: &str) -> Lab {
    let mut lab = Lab::with(Settings { max: 16, ..settings });
    let mut last = Tracked::INVALID;
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(seconds) = line.strip_prefix('+') {
            lab.pass_ms(seconds.parse::<u64>().expect("seconds") * 1000);
            continue;
        }
        let (segment, wanted) = line.split_once(" > ").expect("what is sent > what is seen");
        if segment == "reset" {
            lab.ct.close_by_reset(last.conn, lab.now);
        } else {
            last = lab.track(&packet_of(segment)).expect("room");
            lab.ct.confirm(&last, lab.now).expect("no clash");
        }
        lab.ct.check();
        assert_eq!(outcome(&lab, last.info), wanted, "after {line:?} of\n{script}");
    }
    lab
}

fn play(script: &str) -> Lab {
    play_with(Settings::default(), script)
}

const OPEN: &str = "
    c S 0 > NEW SYN_SENT 120
    s SA 0 a=1 > ESTABLISHED SYN_RECV 60
    c A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
";

fn play_open(rest: &str) -> Lab {
    play(&format!("{OPEN}{rest}"))
}

#[test]
fn a_connection_opens_and_closes() {
    play_open(
        "c FA 1 a=1 > ESTABLISHED FIN_WAIT 120 A
         s A 1 a=2 > ESTABLISHED CLOSE_WAIT 60 A
         s FA 1 a=2 > ESTABLISHED LAST_ACK 30 A
         c A 2 a=2 > ESTABLISHED TIME_WAIT 120 A
         +120
         c A 2 a=2 > NEW ESTABLISHED 300",
    );
}

/// The state table as it is documented: rows are classes, columns are old states.
const TABLE: [(&str, &str); 2] = [
    (
        "c",
        "syn    SS SS IG IG IG IG IG SS SS S2
         synack IV IV SR IV IV IV IV IV IV SR
         fin    IV IV FW FW LA LA LA TW CL IV
         ack    ES IV ES ES CW CW TW TW CL IV
         rst    IV CL CL CL CL CL CL CL CL CL
         none   IV IV IV IV IV IV IV IV IV IV",
    ),
    (
        "s",
        "syn    IV S2 IV IV IV IV IV SS IV S2
         synack IV SR IG IG IG IG IG IG IG SR
         fin    IV IV FW FW LA LA LA TW CL IV
         ack    IV IG SR ES CW CW TW TW CL IG
         rst    IV CL CL CL CL CL CL CL CL CL
         none   IV IV IV IV IV IV IV IV IV IV",
    ),
];

/// How each state is reached, and the next sequence numbers of client and server there.
const STATES: [(&str, &str, &str, [u32; 2]); 10] = [
    ("NO", "NONE", "", [0, 0]),
    ("SS", "SYN_SENT", "c S 0", [1, 0]),
    ("SR", "SYN_RECV", "c S 0; s SA 0 a=1", [1, 1]),
    ("ES", "ESTABLISHED", "c S 0; s SA 0 a=1; c A 1 a=1", [1, 1]),
    ("FW", "FIN_WAIT", "c S 0; s SA 0 a=1; c A 1 a=1; c FA 1 a=1", [2, 1]),
    ("CW", "CLOSE_WAIT", "c S 0; s SA 0 a=1; c A 1 a=1; c FA 1 a=1; s A 1 a=2", [2, 1]),
    ("LA", "LAST_ACK", "c S 0; s SA 0 a=1; c A 1 a=1; c FA 1 a=1; s FA 1 a=2", [2, 2]),
    ("TW", "TIME_WAIT", "c S 0; s SA 0 a=1; c A 1 a=1; c FA 1 a=1; s FA 1 a=2; c A 2 a=2", [2, 2]),
    ("CL", "CLOSE", "c S 0; s SA 0 a=1; c A 1 a=1; c R 1", [1, 1]),
    ("S2", "SYN_SENT2", "c S 0; s S 0", [1, 1]),
];

#[test]
fn every_cell_of_the_state_table() {
    let mut cells = 0;
    for (side, table) in TABLE {
        for row in table.lines().map(str::trim) {
            let mut words = row.split_whitespace();
            let class = words.next().expect("a class");
            for ((_, from, script, next), cell) in STATES.into_iter().zip(words) {
                if from == "NONE" && side == "s" {
                    continue; // whoever comes first is the client
                }
                check_cell(side, class, from, script, next, cell);
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 6 * (10 + 9));
}

fn check_cell(side: &str, class: &str, from: &str, script: &str, next: [u32; 2], cell: &str) {
    let mut lab = Lab::new();
    for segment in script.split(';').filter(|segment| !segment.trim().is_empty()) {
        lab.pass(&packet_of(segment));
    }
    let state = |lab: &Lab| lab.list().first().map(|view| view.state.expect("TCP").name());
    assert_eq!(state(&lab).unwrap_or("NONE"), from, "{script}");
    let (mine, peers) = if side == "c" { (next[0], next[1]) } else { (next[1], next[0]) };
    let segment = match class {
        "syn" => format!("{side} S 0"),
        "synack" => format!("{side} SA 0 a={peers}"),
        "fin" => format!("{side} FA {mine} a={peers}"),
        "ack" => format!("{side} A {mine} a={peers}"),
        "rst" => format!("{side} R {mine}"),
        _ => format!("{side} 0 {mine}"),
    };
    let info = lab.pass(&packet_of(&segment));
    let what = format!("{segment:?} in {from}");
    match cell {
        "IV" => {
            assert_eq!(info, CtInfo::Invalid, "{what}");
            assert_eq!(state(&lab).unwrap_or("NONE"), from, "{what}");
        }
        "IG" => {
            assert!(matches!(info, CtInfo::Established | CtInfo::EstablishedReply), "{what}: {info:?}");
            assert_eq!(state(&lab), Some(from), "{what}");
        }
        // No answer has been seen: an RST ends it at once.
        "CL" if from == "SYN_SENT" => assert_eq!(state(&lab), None, "{what}"),
        _ => {
            let (_, wanted, ..) = STATES.into_iter().find(|(short, ..)| *short == cell).expect("a state");
            assert_eq!(state(&lab), Some(wanted), "{what}");
            let begins = wanted == "SYN_SENT" || from == "NONE";
            assert_eq!(info == CtInfo::New, begins, "{what}: {info:?}");
        }
    }
}

#[test]
fn only_legal_flags_are_tracked() {
    let legal = ["S", "SU", "SA", "R", "RA", "FA", "FAU", "A", "AU"].map(testing::flags);
    for flags in 0..=255u8 {
        let mut lab = play(OPEN);
        let segment = Segment {
            sport: 901,
            dport: 80,
            seq: CLIENT_ISN.wrapping_add(1),
            ack: SERVER_ISN + 1,
            flags,
            window: 8192,
            options: vec![],
            payload: 0,
        };
        let info = lab.pass(&testing::ip(CLIENT, SERVER, 6, &segment.bytes()));
        let without = flags & !testing::flags("PEC");
        // A client's SYN/ACK is INVALID in this state for another reason.
        let wanted = legal.contains(&without) && without != testing::flags("SA");
        assert_eq!(info != CtInfo::Invalid, wanted, "{flags:#x}");
    }
}

#[test]
fn only_syn_and_ack_begin_a_connection() {
    for flags in ["SA", "FA", "R", "RA", "0"] {
        play(&format!("c {flags} 0 > INVALID gone"));
    }
    play_with(Settings { tcp_loose: false, ..Settings::default() }, "c A 0 a=0 > INVALID gone");
}

#[test]
fn low_and_overshooting_segments_prove_nothing() {
    // Windows of 8192: a segment wholly below, one just above the limit, an acknowledgement too old.
    play_open(
        "+100
         c A -9000 10 a=1 > ESTABLISHED ESTABLISHED 431900 A
         c A 8194 10 a=1 > ESTABLISHED ESTABLISHED 431900 A
         c A 1 a=-66001 > ESTABLISHED ESTABLISHED 431900 A
         # wildly too high, and an acknowledgement of what was not sent
         c A 100000 10 a=1 > INVALID ESTABLISHED 431900 A
         c A 1 a=2 > INVALID ESTABLISHED 431900 A",
    );
    let liberal = Settings { tcp_be_liberal: true, ..Settings::default() };
    play_with(liberal, &format!("{OPEN}\n+100\nc A 100000 10 a=1 > ESTABLISHED ESTABLISHED 432000 A"));
}

#[test]
fn a_syn_ack_out_of_place_depends_on_who_sends_it() {
    play_open(
        "c SA 0 a=1 > INVALID ESTABLISHED 432000 A
         s SA 0 a=1 > ESTABLISHED ESTABLISHED 432000 A",
    );
}

#[test]
fn a_syn_after_a_reset_depends_on_who_reset() {
    play_open(
        "s R 1 > ESTABLISHED CLOSE 10 A
         c S 5000 > ESTABLISHED CLOSE 10 A
         +10
         c S 5000 > NEW SYN_SENT 120",
    );
    play_open(
        "c R 1 > ESTABLISHED CLOSE 10 A
         c S 5000 > NEW SYN_SENT 120",
    );
}

#[test]
fn time_wait_is_reopened_by_either_side() {
    const CLOSED: &str = "
        c FA 1 a=1 > ESTABLISHED FIN_WAIT 120 A
        s FA 1 a=2 > ESTABLISHED LAST_ACK 30 A
        c A 2 a=2 > ESTABLISHED TIME_WAIT 120 A
    ";
    play_open(&format!("{CLOSED}\nc S 5000 > NEW SYN_SENT 120"));
    let lab = play_open(&format!("{CLOSED}\ns S 5000 > NEW SYN_SENT 120"));
    assert!(lab.lines()[0].contains(" src=10.2.0.2 dst=10.1.0.2 sport=80 dport=901 [UNREPLIED] "));
}

#[test]
fn an_rst_must_be_exact_to_close() {
    // Inside the window but not where it should be: the state stays, the timeout does not.
    play_open("s R 5 > ESTABLISHED ESTABLISHED 10 A\n c A 1 a=5 > ESTABLISHED ESTABLISHED 432000 A");
    play_open("s R 1 > ESTABLISHED CLOSE 10 A");
    play_open("s R 0 > INVALID ESTABLISHED 432000 A");
    let ignoring = Settings { tcp_ignore_invalid_rst: true, ..Settings::default() };
    play_with(ignoring, &format!("{OPEN}\ns R 0 > ESTABLISHED ESTABLISHED 10 A"));
    // Directly behind data that is not acknowledged yet.
    play_open("s A 1 19 a=1 > ESTABLISHED ESTABLISHED 300 A\n s R 20 > ESTABLISHED CLOSE 10 A");
    // When closing, any RST will do.
    play_open("c FA 1 a=1 > ESTABLISHED FIN_WAIT 120 A\n s R 70000000 > ESTABLISHED CLOSE 10 A");
}

#[test]
fn an_rst_instead_of_an_answer_ends_it_at_once() {
    let lab = play("c S 0 > NEW SYN_SENT 120\n s RA 0 a=1 > ESTABLISHED gone");
    assert!(lab.ct.is_empty());
}

#[test]
fn syn_retransmissions_do_not_extend_it() {
    play("c S 0 > NEW SYN_SENT 120\n +100\n c S 0 > NEW SYN_SENT 20\n +20\n c S 0 > NEW SYN_SENT 120");
}

#[test]
fn unacknowledged_data_and_closed_windows_shorten_it() {
    play_open(
        "c PA 1 100 a=1 > ESTABLISHED ESTABLISHED 300 A
         s A 1 a=101 > ESTABLISHED ESTABLISHED 432000 A
         s A 1 a=101 w=0 > ESTABLISHED ESTABLISHED 300 A
         s A 1 a=101 > ESTABLISHED ESTABLISHED 432000 A",
    );
}

#[test]
fn the_third_repetition_shortens_it() {
    play_open(
        "s A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
         s A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
         s A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
         s A 1 a=1 > ESTABLISHED ESTABLISHED 300 A
         s A 1 a=1 w=8193 > ESTABLISHED ESTABLISHED 432000 A",
    );
}

#[test]
fn a_connection_picked_up_is_lenient_for_life() {
    play(
        "c A 1 a=1 > NEW ESTABLISHED 300
         c A 1 a=1 > NEW ESTABLISHED 300
         s A 1 a=1 > ESTABLISHED ESTABLISHED 300
         c A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
         c A 90000000 10 a=70000000 > ESTABLISHED ESTABLISHED 432000 A",
    );
}

#[test]
fn simultaneous_open() {
    play(
        "c S 0 > NEW SYN_SENT 120
         s S 0 > ESTABLISHED SYN_SENT2 120
         c SA 0 a=1 > ESTABLISHED SYN_RECV 60
         s SA 0 a=1 > ESTABLISHED SYN_RECV 60
         c A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
         s A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A",
    );
}

#[test]
fn in_step_again_after_an_ignored_syn_is_answered() {
    play_open(
        "c S 900000 > ESTABLISHED ESTABLISHED 432000 A
         s SA 700000 a=900001 > ESTABLISHED SYN_RECV 60 A
         c A 900001 a=700001 > ESTABLISHED ESTABLISHED 432000 A",
    );
    // An RST that answers the ignored SYN is the end.
    play_open(
        "c S 900000 > ESTABLISHED ESTABLISHED 432000 A
         s RA 0 a=900001 > ESTABLISHED CLOSE 10 A",
    );
}

#[test]
fn a_challenge_ack_is_not_the_last_ack() {
    play_open(
        "c FA 1 a=1 > ESTABLISHED FIN_WAIT 120 A
         s FA 1 a=2 > ESTABLISHED LAST_ACK 30 A
         c S 900000 > ESTABLISHED LAST_ACK 30 A
         s A 2 a=2 > ESTABLISHED LAST_ACK 30 A
         c A 2 a=2 > ESTABLISHED TIME_WAIT 120 A",
    );
    // In SYN_SENT, the client's RST with the acknowledged number answers it.
    play(
        "c S 0 > NEW SYN_SENT 120
         s A 777 a=5555 > ESTABLISHED SYN_SENT 120
         c R 5555 > ESTABLISHED CLOSE 10",
    );
}

#[test]
fn window_scale_and_sack_are_taken_from_both_syns() {
    const SCALE_7: &str = "o=030307";
    // Agreed on: 8192 << 7 is 1 MiB.
    play(&format!(
        "c S 0 {SCALE_7} > NEW SYN_SENT 120
         s SA 0 a=1 {SCALE_7} > ESTABLISHED SYN_RECV 60
         c A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
         s A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
         c A 1000000 1000 a=1 > ESTABLISHED ESTABLISHED 300 A"
    ));
    // Offered by one side only.
    play(&format!(
        "c S 0 {SCALE_7} > NEW SYN_SENT 120
         s SA 0 a=1 > ESTABLISHED SYN_RECV 60
         c A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
         s A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
         c A 1000000 1000 a=1 > INVALID ESTABLISHED 432000 A"
    ));
    // A SACK of data that was never sent is INVALID, if SACK was permitted; else it is not read.
    let (left, right) = (CLIENT_ISN.wrapping_add(5000), CLIENT_ISN.wrapping_add(6000));
    for (permit, wanted) in [("o=0402", "INVALID"), ("o=01", "ESTABLISHED")] {
        play(&format!(
            "c S 0 {permit} > NEW SYN_SENT 120
             s SA 0 a=1 {permit} > ESTABLISHED SYN_RECV 60
             c A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A
             s A 1 a=1 o=0101050a{left:08x}{right:08x} > {wanted} ESTABLISHED 432000 A"
        ));
    }
}

#[test]
fn invalid_ends_of_both_sides_shorten_it() {
    play_open(
        "c FA 90000000 a=1 > INVALID ESTABLISHED 432000 A
         s FA 90000000 a=1 > INVALID ESTABLISHED 300 A",
    );
}

#[test]
fn reject_with_reset_closes() {
    play_open("+5\n s A 1 a=1 > ESTABLISHED ESTABLISHED 432000 A\n reset > ESTABLISHED CLOSE 10 A");
}

#[test]
fn bad_headers_are_invalid() {
    let mut lab = play(OPEN);
    let good = packet_of("c A 1 4 a=1");
    let mut offset = good.clone();
    offset[32] = 0x40;
    let mut beyond = good.clone();
    beyond[32] = 0xf0;
    let mut checksum = good.clone();
    checksum[43] ^= 1;
    for packet in [offset, beyond, checksum] {
        assert_eq!(lab.pass(&packet), CtInfo::Invalid);
    }
    assert_eq!(lab.pass(&good), CtInfo::Established);
}
