//! The dialogues: what both ends say, under which rules.

use crate::talk::{Line, Talk};

/// Which rules a dialogue goes through, besides those that give helpers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Nat {
    None,
    /// The client is seen as somebody else; in IPv4 that address is longer.
    Source,
    /// The client is seen as the router.
    Masquerade,
    /// The client knows the server by another address.
    Destination,
    /// Both.
    Both,
}

impl Nat {
    pub(crate) const ALL: [Nat; 5] = [Nat::None, Nat::Source, Nat::Masquerade, Nat::Destination, Nat::Both];

    /// The rules, as for iptables-restore. What they see of a connection they write into the TOS.
    pub(crate) fn rules(self) -> String {
        let mut text = String::from(HELPERS);
        text += "*nat\n";
        if matches!(self, Nat::Source | Nat::Both) {
            text += "-4 -A POSTROUTING -o r1 -j SNAT --to-source 10.2.0.100\n";
            text += "-6 -A POSTROUTING -o r1 -j SNAT --to-source fd02::100\n";
        }
        if self == Nat::Masquerade {
            text += "-A POSTROUTING -o r1 -j MASQUERADE\n";
        }
        if matches!(self, Nat::Destination | Nat::Both) {
            text += "-4 -A PREROUTING -d 10.1.0.77 -j DNAT --to-destination 10.2.0.2\n";
            text += "-6 -A PREROUTING -d fd01::77 -j DNAT --to-destination fd02::2\n";
        }
        text + "COMMIT\n"
    }

    /// The address by which the client knows the server.
    fn known(self, v6: bool) -> &'static str {
        match (matches!(self, Nat::Destination | Nat::Both), v6) {
            (true, false) => "10.1.0.77",
            (true, true) => "fd01::77",
            (false, _) => server(v6),
        }
    }
}

const HELPERS: &str = "*raw\n-A PREROUTING -p tcp --dport 21 -j CT --helper ftp\n\
    -A PREROUTING -p udp --dport 69 -j CT --helper tftp\n\
    -A PREROUTING -p udp --dport 10080 -j CT --helper amanda\n\
    -4 -A PREROUTING -p tcp --dport 6667 -j CT --helper irc\n\
    -4 -A PREROUTING -p udp --dport 137 -j CT --helper netbios-ns\n\
    -4 -A PREROUTING -p tcp --dport 1723 -j CT --helper pptp\n\
    -A PREROUTING -p tcp --dport 6566 -j CT --helper sane\nCOMMIT\n\
    *mangle\n-A PREROUTING -p tcp --dport 21 -j CONNMARK --set-mark 5\n\
    -A FORWARD -m conntrack --ctstate RELATED -j TOS --set-tos 0x10/0xff\n\
    -A FORWARD -m conntrack --ctstatus EXPECTED -m helper --helper ftp -j TOS --or-tos 0x20\n\
    -A FORWARD -m helper --helper tftp -j TOS --or-tos 0x40\n\
    -A FORWARD -m connmark --mark 5 -j TOS --or-tos 0x80\n\
    -A FORWARD -m conntrack --ctstate DNAT -j TOS --or-tos 0x4\n\
    -A PREROUTING -m conntrack --ctstate SNAT -j TOS --or-tos 0x8\nCOMMIT\n";

pub(crate) fn client(v6: bool) -> &'static str {
    if v6 { "fd01::2" } else { "10.1.0.2" }
}

pub(crate) fn server(v6: bool) -> &'static str {
    if v6 { "fd02::2" } else { "10.2.0.2" }
}

/// A connection from the client to a port of the server, not opened yet.
pub(crate) fn line(nat: Nat, proto: u8, v6: bool, port: u16) -> Line {
    Line::between(proto, (client(v6), 40_000), (nat.known(v6), port), (server(v6), port))
}

/// An FTP control connection on which commands are read.
pub(crate) fn login(talk: &mut Talk<'_>, nat: Nat, v6: bool) -> Line {
    let mut line = line(nat, 6, v6, 21);
    talk.open(&mut line);
    talk.say(&mut line, false, b"220 ready\r\n");
    talk.say(&mut line, true, b"USER me\r\n");
    talk.say(&mut line, false, b"230 in\r\n");
    line
}

/// What a client may say, and it is read. IPv4.
pub(crate) const CLIENT_SAYS: &[&str] = &[
    "PORT 10,1,0,2,19,137\r\n",
    "port 10,1,0,2,19,137\r\n",
    "PoRt 10,1,0,2,19,137\r\nNOOP\r\n",
    "PORT  10,1,0,2,19,137\r\n",
    "PORT x10,1,0,2,19,137\r\n",
    "PORTx 10,1,0,2,19,137\r\n",
    "PORT 10,1,0,2,19,137",
    "PORT 10,1,0,2,19,137\n",
    "PORT 10,1,0,2,19,137 \r\n",
    "PORT 10,1,0,2,19\r\n",
    "PORT 10,1,0,2,19,137,5\r\n",
    "PORT 10.1.0.2.19.137\r\n",
    "PORT 10,1,0,2,0,0\r\n",
    "PORT 10,1,0,2,255,255\r\n",
    "PORT 010,001,000,002,019,137\r\n",
    "PORT 266,1,0,2,19,137\r\n",
    "PORT 10,1,0,2,275,137\r\n",
    "PORT 10,1,0,2,19,65673\r\n",
    "PORT 4294967306,1,0,2,19,137\r\n",
    "PORT 10,1,0,9,19,137\r\n",
    "PORT ,,,,,\r\n",
    "PORT ",
    "PORT",
    "PO",
    "p",
    "E",
    "XPORT 10,1,0,2,19,137\r\n",
    "\r\n",
    "STOR PORT 10,1,0,2,19,137\r\n",
    "EPRT |1|10.1.0.2|6446|\r\n",
    "eprt |1|10.1.0.2|6446|\r\n",
    "EPRT !1!10.1.0.2!6446!\r\n",
    "EPRT a1a10.1.0.2a6446a\r\n",
    "EPRT .1.10.1.0.2.6446.\r\n",
    "EPRT |1|10.1.0.2|6446\r\n",
    "EPRT |1|10.1.0.2|6446|",
    "EPRT |1|10.1.0.2|0|\r\n",
    "EPRT |1|10.1.0.2||\r\n",
    "EPRT |1|10.1.0.2|70000|\r\n",
    "EPRT |1|10.1.0.2|65536|\r\n",
    "EPRT |1|10.1.0|6446|\r\n",
    "EPRT |1|10.1.0.9|6446|\r\n",
    "EPRT |2|::1|6446|\r\n",
    "EPRT |2|10.1.0.2|6446|\r\n",
    "EPRT 1110.1.0.216446\r\n",
    "EPRT |1",
    "EPRT |",
    "EPRT",
    "EPSV\r\n",
    "PASV\r\n",
];

/// The same of IPv6.
pub(crate) const CLIENT_SAYS_V6: &[&str] = &[
    "EPRT |2|fd01::2|6446|\r\n",
    "EPRT |2|fd01:0:0:0:0:0:0:2|6446|\r\n",
    "EPRT |2|FD01:0000::0002|6446|\r\n",
    "EPRT |2|fd01:00000::2|6446|\r\n",
    "EPRT |2|fd01::0.0.0.2|6446|\r\n",
    "EPRT |2|fd01::00.00.00.002|6446|\r\n",
    "EPRT |2|fd01::0:2|6446|\r\n",
    "EPRT |2|fd01:::2|6446|\r\n",
    "EPRT |2|fd01::2::|6446|\r\n",
    "EPRT |2|fd01::12345|6446|\r\n",
    "EPRT |2|fd01::2%r0|6446|\r\n",
    "EPRT |2|fd01:0:0:0:0:0:2|6446|\r\n",
    "EPRT |2|fd01:0:0:0:0:0:0:0:2|6446|\r\n",
    "EPRT |2|fd01::2|",
    "EPRT |2|fd01::2",
    "EPRT |2|fd01::3|6446|\r\n",
    "EPRT f2ffd01::2f6446f\r\n",
    "EPRT ~2~fd01::2~6446~\r\n",
    "EPRT |1|10.1.0.2|6446|\r\n",
    "PORT 10,1,0,2,19,137\r\n",
];

/// What a server may answer. IPv4.
pub(crate) const SERVER_SAYS: &[&str] = &[
    "227 Entering Passive Mode (10,2,0,2,19,137).\r\n",
    "227 Entering Passive Mode (10,2,0,2,19,137)",
    "227 Entering Passive Mode (10,2,0,2,19,137",
    "227 =10,2,0,2,19,137\r\n",
    "227 10,2,0,2,19,137\r\n",
    "227 10,2,0,2,19,137x",
    "227  (10, 2,0,2,19,137)\r\n",
    "227 mode 4 (10,2,0,2,19,137)\r\n",
    "227 no digits\r\n",
    "227-Entering (10,2,0,2,19,137)\r\n",
    "227 (10,2,0,9,19,137)\r\n",
    "227 (10,2,0,2,0,0)\r\n",
    "227 ",
    "227",
    "22",
    "2",
    "220 ok\r\n",
    "229 Entering Extended Passive Mode (|||6446|)\r\n",
    "229 Entering Extended Passive Mode (!!!6446!)\r\n",
    "229 Entering Extended Passive Mode |||6446|\r\n",
    "229 (|||0|)\r\n",
    "229 (|||65537|)\r\n",
    "229 (|||6446)\r\n",
    "229 (|1|10.2.0.2|6446|)\r\n",
    "229 (||6446|)\r\n",
    "229 (111664461)\r\n",
    "229 (|||6446|",
    "229 (|||",
    "229 (||",
    "229 (",
    "229 ",
    "229",
];

/// What a client says on IRC after the handshake.
pub(crate) const IRC_SAYS: &[&str] = &[
    "PRIVMSG bob :\u{1}DCC SEND file 167837698 5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC CHAT chat 167837698 5001\u{1}\n",
    "privmsg bob :\u{1}DCC SEND file 167837698 5001 1234\u{1}\r\n",
    "  \r\nPRIVMSG bob :\u{1}DCC MOVE file 167837698 5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC TSEND file 167837698 5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC SCHAT file 167837698 5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC send file 167837698 5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC GET file 167837698 5001 1234\u{1}\r\n",
    "PRIVMSG bob :hello \u{1}DCC SEND file 167837698 5001 1234\u{1}\r\n",
    "NOTICE bob :\u{1}DCC SEND file 167837698 5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC SEND file 16909060 5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC SEND file 167903332 5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC SEND file 167837698 0 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC SEND file 167837698 65537 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC SEND file 167837698    5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC SEND file 167837698 5001\u{1}",
    "PRIVMSG bob :\u{1}DCC SEND f 167837698 5\n",
    "PRIVMSG b :\u{1}DCC CHAT c 167837698 5\u{1}\n",
    "PRIVMSG bob :\u{1}DCC SEND SEND CHAT x 167837698 5001 1234\u{1}\r\n",
    "PRIVMSG bob :\u{1}DCC SEND  167837698 5001 1234 padding padding\u{1}\r\n",
    "PRIVMSG bob :hi\r\nPRIVMSG bob :\u{1}DCC SEND file 167837698 5001 1234\u{1}\r\n",
    "PRIVMSG bob \u{1}DCC SEND file 167837698 5001 1234\u{1}\r\n",
    "x",
];

/// What an Amanda client answers.
pub(crate) const AMANDA_SAYS: &[&str] = &[
    "Amanda 2.3 REP\nCONNECT DATA 6543 MESG 6544 INDEX 6545\nOPTIONS ;\n",
    "CONNECT DATA 6543 MESG 6544 INDEX 6545 STATE 6546\n",
    "CONNECT STATE 1 INDEX 2 MESG 3 DATA 4\n",
    "CONNECT DATA 6543 MESG 6543\n",
    "CONNECT DATA 65537\n",
    "CONNECT DATA 654321 MESG 7\n",
    "CONNECT DATA 0 MESG 7\n",
    "CONNECT DATA  6543 MESG 7\n",
    "CONNECT DATA 6543",
    "CONNECT\nDATA 6543\n",
    "DATA 6543\n",
    "CONNECT MESG 6544\nDATA 6543\n",
    "CONNECT DATA 65",
    "CONNECT DATA \n",
    "CONNECT INDEX 6545\n",
    "",
];

/// One dialogue of many: both sides of a control connection after `text`, and then some.
pub(crate) fn say_and_go_on(talk: &mut Talk<'_>, line: &mut Line, from_client: bool, text: &str) {
    talk.note(text);
    let arrived = talk.say(line, from_client, text.as_bytes()).is_some();
    talk.look();
    if !arrived {
        // Dropped: it is sent again, whole this time.
        line.end(from_client).seq -= text.len() as u32;
    }
    talk.say(line, from_client, b"NOOP 10 20\r\n");
    talk.say(line, !from_client, b"200 ok\r\n");
    talk.ack(line, from_client, &[]);
    talk.look();
}

/// Opens the connection that is expected first, from the side that has to.
pub(crate) fn open_expected(talk: &mut Talk<'_>, proto: u8, from_client: bool, v6: bool) -> Option<Line> {
    let mut expected = if v6 { talk.router.expected_v6() } else { talk.router.expected() };
    // They are listed in no order.
    expected.sort_by_key(|line| line.split_once(' ').map(|(_, rest)| rest.to_owned()));
    let word = |name: &str| {
        let line = expected.first()?;
        line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned)
    };
    let (dst, dport) = (word("dst=")?, word("dport=")?.parse::<u16>().ok()?);
    let opener = if from_client { client(v6) } else { server(v6) };
    let mut line = match from_client {
        true => Line::new(proto, (opener, 50_000), (&dst, dport)),
        false => Line::new(proto, (&dst, dport), (opener, 50_000)),
    };
    match proto {
        6 => {
            talk.open_by(&mut line, from_client);
            talk.say(&mut line, !from_client, b"data");
            talk.say(&mut line, from_client, b"more data");
        }
        _ => {
            talk.say(&mut line, from_client, b"\0\x03\0\x01data");
            talk.say(&mut line, !from_client, b"\0\x04\0\x01");
        }
    }
    talk.look();
    Some(line)
}
