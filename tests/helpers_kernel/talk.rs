//! Two ends that talk through a router: [`Talk`]. Each end answers to what reaches it, as a real one would, so that the same
//! dialogue goes through any router, whatever it makes of addresses, ports and sequence numbers. All that arrives is written
//! down, and the two transcripts are compared.

use std::net::IpAddr;

use crate::testing::{self, Segment, flags};

/// A packet that the router has sent, from its IP header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) to_client: bool,
    pub(crate) packet: Vec<u8>,
}

/// A router under test.
pub(crate) trait Router {
    /// Has these rules from now on (`-4` and `-6` before a rule: for that IP version only).
    fn load(&mut self, rules: &str);
    /// Forgets all connections and what is expected.
    fn forget(&mut self);
    /// Sends a packet through it.
    fn send(&mut self, from_client: bool, packet: &[u8]) -> Vec<Arrived>;
    /// Deletes all connections of TCP.
    fn end_tcp(&mut self);
    /// As `conntrack -L expect` prints them.
    fn expected(&mut self) -> Vec<String>;
    /// The same with `-f ipv6`.
    fn expected_v6(&mut self) -> Vec<String>;
    /// As `conntrack -L` prints them.
    fn connections(&mut self) -> Vec<String>;
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) addr: IpAddr,
    pub(crate) port: u16,
    /// Where its packets go, as far as it knows.
    pub(crate) peer: IpAddr,
    pub(crate) peer_port: u16,
    /// TCP: of the next byte it sends.
    pub(crate) seq: u32,
    /// TCP: of the next byte it wants.
    pub(crate) wants: u32,
}

/// A packet taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) seq: u32,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn read(packet: &[u8]) -> Read {
    let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen");
    let (src, dst, proto, l4) = match packet[0] >> 4 {
        4 => {
            let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("four"));
            (v4(12), v4(16), packet[9], usize::from(packet[0] & 15) * 4)
        }
        _ => (IpAddr::from(octets(8)), IpAddr::from(octets(24)), packet[6], 40),
    };
    let l4 = &packet[l4..];
    let word = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
    let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
    let header = if proto == 6 { usize::from(l4[12] >> 4) * 4 } else { 8 };
    let tcp = proto == 6;
    Read {
        src,
        dst,
        sport: word(0),
        dport: word(2),
        seq: if tcp { long(4) } else { 0 },
        flags: if tcp { l4[13] } else { 0 },
        payload: l4[header..].to_vec(),
    }
}

/// A dialogue under way, and what was seen of it.
pub(crate) struct Talk<'a> {
    pub(crate) router: &'a mut dyn Router,
    pub(crate) transcript: Vec<String>,
}

/// A connection between two ends, of which the client's began it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) proto: u8,
    /// Server, client: as indexed by "from client".
    pub(crate) ends: [End; 2],
}

impl Line {
    pub(crate) fn new(proto: u8, client: (&str, u16), server: (&str, u16)) -> Line {
        Line::between(proto, client, server, server)
    }

    /// The client knows the server by another address.
    pub(crate) fn between(proto: u8, client: (&str, u16), known: (&str, u16), server: (&str, u16)) -> Line {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let end = |addr: (&str, u16), peer: (&str, u16), seq| {
            let (peer_port, peer) = (peer.1, ip(peer.0));
            End { addr: ip(addr.0), port: addr.1, peer, peer_port, seq, wants: 0 }
        };
        Line { proto, ends: [end(server, client, 900_000), end(client, known, 100_000)] }
    }

    pub(crate) fn end(&mut self, client: bool) -> &mut End {
        &mut self.ends[usize::from(client)]
    }
}

impl<'a> Talk<'a> {
    /// Of a router that has its rules, and nothing else.
    pub(crate) fn begin(router: &'a mut dyn Router) -> Talk<'a> {
        router.forget();
        Talk { router, transcript: Vec::new() }
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.transcript.push(text.to_owned());
    }

    /// Sends an IP packet as it is; the first thing that arrives.
    pub(crate) fn send(&mut self, from_client: bool, packet: &[u8]) -> Option<Arrived> {
        let mut arrived = self.router.send(from_client, packet);
        arrived.iter_mut().for_each(|one| blank_id(&mut one.packet));
        if arrived.is_empty() {
            self.note("nothing arrives");
        }
        for one in &arrived {
            let to = if one.to_client { "client" } else { "server" };
            let hex: String = one.packet.iter().map(|byte| format!("{byte:02x}")).collect();
            self.note(&format!("to {to}: {hex} {:?}", String::from_utf8_lossy(&read(&one.packet).payload)));
        }
        arrived.into_iter().next()
    }

    /// A segment or datagram of one end; how it arrives at the other.
    pub(crate) fn packet(
        &mut self,
        line: &mut Line,
        from_client: bool,
        (seq, flag, options): (u32, &str, &[u8]),
        payload: &[u8],
    ) -> Option<Read> {
        let end = *line.end(from_client);
        let l4 = match line.proto {
            6 => {
                let (sport, dport) = (end.port, end.peer_port);
                let options = options.to_vec();
                let ack = if flags(flag) & 0x10 != 0 { end.wants } else { 0 };
                let segment =
                    Segment { sport, dport, seq, ack, flags: flags(flag), window: 64_000, options, payload: 0 };
                [segment.bytes(), payload.to_vec()].concat()
            }
            _ => testing::udp(end.port, end.peer_port, payload),
        };
        let proto = line.proto;
        let arrived = self.send(from_client, &testing::ip(end.addr, end.peer, proto, &l4))?;
        if arrived.to_client == from_client {
            return None;
        }
        let read = read(&arrived.packet);
        let other = line.end(!from_client);
        (other.peer, other.peer_port, other.addr, other.port) = (read.src, read.sport, read.dst, read.dport);
        if proto == 6 {
            let length = read.payload.len() as u32 + u32::from(read.flags & 2 != 0) + u32::from(read.flags & 1 != 0);
            if read.flags & 2 != 0 || read.seq == other.wants {
                other.wants = read.seq.wrapping_add(length);
            }
        }
        Some(read)
    }

    /// The handshake of TCP. Whether it went through.
    pub(crate) fn open(&mut self, line: &mut Line) -> bool {
        self.open_by(line, true)
    }

    /// The same, begun by either end.
    pub(crate) fn open_by(&mut self, line: &mut Line, by_client: bool) -> bool {
        // MSS, SACK permitted, window scaling.
        let offer = [2, 4, 5, 0xb4, 4, 2, 3, 3, 7];
        let mut step = |talk: &mut Talk<'_>, client: bool, flag: &str| {
            let seq = line.end(client).seq;
            let options = if flag == "." { &[][..] } else { &offer[..] };
            let arrived = talk.packet(line, client, (seq, flag, options), b"").is_some();
            line.end(client).seq = seq.wrapping_add(u32::from(flag != "."));
            arrived
        };
        step(self, by_client, "S") && step(self, !by_client, "SA") && step(self, by_client, ".")
    }

    /// The next bytes of one end.
    pub(crate) fn say(&mut self, line: &mut Line, from_client: bool, payload: &[u8]) -> Option<Read> {
        let seq = line.end(from_client).seq;
        line.end(from_client).seq = seq.wrapping_add(payload.len() as u32);
        self.packet(line, from_client, (seq, "PA", &[]), payload)
    }

    /// An acknowledgement of what has come.
    pub(crate) fn ack(&mut self, line: &mut Line, from_client: bool, options: &[u8]) -> Option<Read> {
        let seq = line.end(from_client).seq;
        self.packet(line, from_client, (seq, ".", options), b"")
    }

    /// Writes down what is expected and what there is, times left out.
    pub(crate) fn look(&mut self) {
        let mut lines: Vec<String> = self.router.expected().iter().map(|line| without_time(line, 0)).collect();
        lines.extend(self.router.expected_v6().iter().map(|line| without_time(line, 0)));
        lines.sort();
        let mut more: Vec<String> = self.router.connections().iter().map(|line| without_time(line, 2)).collect();
        more.sort();
        self.transcript.extend(lines);
        self.transcript.extend(more);
    }
}

/// The identification of a packet of the router's own is left to chance, and with it the checksum. Of a packet that a helper has
/// changed the kernel quotes a TCP checksum that its NIC was to finish; ours is whole.
fn blank_id(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 && packet[8] == 64 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
        const QUOTED_TCP: usize = 20 + 8 + 20;
        if packet.len() > QUOTED_TCP + 20 && packet[9] == 1 {
            packet[22..24].fill(0);
            packet[QUOTED_TCP + 16..QUOTED_TCP + 18].fill(0);
        }
    }
}

/// The rules of one IP version.
pub(crate) fn of_version(rules: &str, version: u8) -> String {
    let (mark, other) = if version == 4 { ("-4 ", "-6 ") } else { ("-6 ", "-4 ") };
    let lines = rules.lines().filter(|line| !line.starts_with(other));
    lines.fold(String::new(), |text, line| text + line.trim_start_matches(mark) + "\n")
}

/// A line without the seconds that are left, which stand at word `at`; to the nearest ten of them.
fn without_time(line: &str, at: usize) -> String {
    let words = line.split_whitespace().enumerate().map(|(index, word)| match word.parse::<u64>() {
        Ok(seconds) if index == at => format!("~{}", (seconds + 5) / 10 * 10),
        // How often the kernel itself holds a connection.
        _ if word.starts_with("use=") => "use=".to_owned(),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}
