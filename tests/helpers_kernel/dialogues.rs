//! The dialogues: what both ends say, under which rules.

use crate::talk::{Line, Router, Talk};

/// A dialogue and the rules it goes through.
pub(crate) struct Dialogue {
    pub(crate) name: &'static str,
    rules: &'static str,
    script: fn(&mut Talk<'_>),
}

impl Dialogue {
    /// What was seen.
    pub(crate) fn run(&self, router: &mut dyn Router) -> Vec<String> {
        let mut talk = Talk::begin(router, self.rules);
        (self.script)(&mut talk);
        talk.transcript
    }
}

const CLIENT: &str = "10.1.0.2";
const SERVER: &str = "10.2.0.2";
const CLIENT6: &str = "fd01::2";
const SERVER6: &str = "fd02::2";

const HELPERS: &str = "*raw\n-A PREROUTING -p tcp --dport 21 -j CT --helper ftp\n\
    -A PREROUTING -p udp --dport 69 -j CT --helper tftp\n\
    -A PREROUTING -p udp --dport 10080 -j CT --helper amanda\n\
    -4 -A PREROUTING -p tcp --dport 6667 -j CT --helper irc\n\
    -A PREROUTING -p tcp --dport 6566 -j CT --helper sane\nCOMMIT\n";

const SNAT: &str = "*raw\n-A PREROUTING -p tcp --dport 21 -j CT --helper ftp\n\
    -A PREROUTING -p udp --dport 69 -j CT --helper tftp\n\
    -A PREROUTING -p udp --dport 10080 -j CT --helper amanda\n\
    -4 -A PREROUTING -p tcp --dport 6667 -j CT --helper irc\n\
    -A PREROUTING -p tcp --dport 6566 -j CT --helper sane\nCOMMIT\n\
    *nat\n-4 -A POSTROUTING -o r1 -j SNAT --to-source 10.2.0.100\n\
    -6 -A POSTROUTING -o r1 -j SNAT --to-source fd02::100\nCOMMIT\n";

const DNAT: &str = "*raw\n-A PREROUTING -p tcp --dport 21 -j CT --helper ftp\n\
    -A PREROUTING -p udp --dport 69 -j CT --helper tftp\n\
    -A PREROUTING -p udp --dport 10080 -j CT --helper amanda\n\
    -4 -A PREROUTING -p tcp --dport 6667 -j CT --helper irc\n\
    -A PREROUTING -p tcp --dport 6566 -j CT --helper sane\nCOMMIT\n\
    *nat\n-4 -A PREROUTING -d 10.1.0.77 -j DNAT --to-destination 10.2.0.2\n\
    -6 -A PREROUTING -d fd01::77 -j DNAT --to-destination fd02::2\nCOMMIT\n";

/// An FTP control connection on which commands are read.
fn login(talk: &mut Talk<'_>, client: &str, server: &str, known: &str) -> Line {
    let mut line = Line::between(6, (client, 40_000), (known, 21), (server, 21));
    talk.open(&mut line);
    talk.say(&mut line, false, b"220 ready\r\n");
    talk.say(&mut line, true, b"USER me\r\n");
    talk.say(&mut line, false, b"230 in\r\n");
    line
}

/// A data connection of the server to what the client has said.
fn data_back(talk: &mut Talk<'_>, said: &str, port: u16) {
    talk.note(said);
    let to = talk.router.expected();
    talk.note(&format!("{} expected", to.len()));
    let dst = to
        .first()
        .and_then(|line| line.split_whitespace().find_map(|word| word.strip_prefix("dst=")))
        .unwrap_or("10.1.0.2");
    let dst = dst.to_owned();
    let server = if dst.contains(':') { SERVER6 } else { SERVER };
    // The server is the one who opens.
    let mut line = Line::new(6, (server, 20), (&dst, port));
    let seq = line.ends[1].seq;
    let end = line.ends[1];
    let _ = (seq, end);
    reversed(talk, &mut line);
}

/// A handshake that the outside begins.
fn reversed(talk: &mut Talk<'_>, line: &mut Line) {
    let opener = line.ends[1];
    let mut swapped = Line { proto: 6, ends: [opener, line.ends[0]] };
    let (seq, flag) = (swapped.ends[0].seq, "S");
    if talk.packet(&mut swapped, false, (seq, flag, &[]), b"").is_some() {
        swapped.ends[0].seq += 1;
        // The inner end has the address at which the packet came.
        swapped.ends[1].addr = inner(talk);
        let seq = swapped.ends[1].seq;
        talk.packet(&mut swapped, true, (seq, "SA", &[]), b"");
        swapped.ends[1].seq += 1;
        talk.ack(&mut swapped, false, &[]);
    }
}

fn inner(talk: &mut Talk<'_>) -> std::net::IpAddr {
    let _ = talk;
    CLIENT.parse().expect("an address")
}

pub(crate) const ALL: &[Dialogue] = &[
    Dialogue {
        name: "ftp PORT without NAT",
        rules: HELPERS,
        script: |talk| {
            let mut line = login(talk, CLIENT, SERVER, SERVER);
            talk.look();
            talk.say(&mut line, true, b"PORT 10,1,0,2,19,137\r\n");
            talk.look();
            data_back(talk, "data", 5001);
            talk.look();
        },
    },
    Dialogue {
        name: "ftp PORT with SNAT",
        rules: SNAT,
        script: |talk| {
            let mut line = login(talk, CLIENT, SERVER, SERVER);
            talk.say(&mut line, true, b"PORT 10,1,0,2,19,137\r\n");
            talk.look();
            talk.say(&mut line, false, b"200 ok\r\n");
            data_back(talk, "data", 5001);
            talk.look();
            talk.say(&mut line, true, b"RETR x\r\n");
        },
    },
    Dialogue {
        name: "ftp EPRT v6 with SNAT",
        rules: SNAT,
        script: |talk| {
            let mut line = login(talk, CLIENT6, SERVER6, SERVER6);
            talk.say(&mut line, true, b"EPRT |2|fd01::2|5001|\r\n");
            talk.look();
        },
    },
    Dialogue {
        name: "ftp PASV with DNAT",
        rules: DNAT,
        script: |talk| {
            let mut line = login(talk, CLIENT, SERVER, "10.1.0.77");
            talk.say(&mut line, true, b"PASV\r\n");
            talk.say(&mut line, false, b"227 Entering Passive Mode (10,2,0,2,19,137).\r\n");
            talk.look();
            let mut data = Line::between(6, (CLIENT, 40_001), ("10.1.0.77", 5001), (SERVER, 5001));
            talk.open(&mut data);
            talk.look();
        },
    },
    Dialogue {
        name: "amanda v6 with SNAT",
        rules: SNAT,
        script: |talk| {
            let mut line = Line::new(17, (CLIENT6, 40_000), (SERVER6, 10_080));
            talk.say(&mut line, true, b"Amanda REQ\n");
            talk.say(&mut line, false, b"CONNECT DATA 6543 MESG 6544 INDEX 6545 STATE 6546\nx");
            talk.look();
        },
    },
    Dialogue {
        name: "tftp with SNAT",
        rules: SNAT,
        script: |talk| {
            let mut line = Line::new(17, (CLIENT, 40_000), (SERVER, 69));
            talk.say(&mut line, true, b"\0\x01file\0octet\0");
            talk.look();
            let mut data = Line { proto: 17, ends: [line.ends[0], line.ends[1]] };
            data.ends[0].port = 3333;
            talk.say(&mut data, false, b"\0\x03\0\x01data");
            talk.look();
            talk.say(&mut data, true, b"\0\x04\0\x01");
            talk.look();
        },
    },
];
