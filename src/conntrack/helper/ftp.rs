//! FTP: PORT and EPRT of the client, 227 and 229 of the server (nf_conntrack_ftp.c, nf_nat_ftp.c; RFC 959, RFC 2428).
//!
//! A command is looked for only at the beginning of a segment that begins a line: one whose sequence number directly follows
//! a segment that ended in a newline. So the first segment of each direction with anything in it is never read. A command
//! that stands there and is not whole is dropped: sent again, it may be.

use super::mangle::Text;
use super::{Call, Memory, Refused, search};
use crate::conntrack::expect::Follow;
use crate::conntrack::tuple::Direction;
use crate::wire::{Addr, Family, proto};

/// Sequence numbers at which lines begin, two for each direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::conntrack) struct Lines {
    begins: [[u32; 2]; 2],
    count: [u8; 2],
}

impl Lines {
    /// Whether a line begins at `seq` (`find_nl_seq`).
    fn begin_at(&self, direction: Direction, seq: u32) -> bool {
        let way = direction.index();
        self.begins[way][..usize::from(self.count[way])].contains(&seq)
    }

    /// A line begins at `seq`: it takes the place of the older of two, if it is newer than that (`update_nl_seq`).
    fn remember(&mut self, direction: Direction, seq: u32) {
        let (way, count) = (direction.index(), usize::from(self.count[direction.index()]));
        if self.begin_at(direction, seq) {
            return;
        }
        let begins = &mut self.begins[way];
        if count < begins.len() {
            begins[count] = seq;
            self.count[way] += 1;
            return;
        }
        let before = |a: u32, b: u32| (a.wrapping_sub(b) as i32) < 0;
        let oldest = usize::from(!before(begins[0], begins[1]));
        if before(begins[oldest], seq) {
            begins[oldest] = seq;
        }
    }
}

/// The four ways to say where the data connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Command {
    Port,
    Eprt,
    Pasv,
    Epsv,
}

/// In the order in which they are looked for (`search`).
const COMMANDS: [[Command; 2]; 2] = [[Command::Port, Command::Eprt], [Command::Pasv, Command::Epsv]];

/// An address and a port, and the bytes of the payload that say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Announced {
    command: Command,
    at: usize,
    length: usize,
    /// None where the command has none.
    addr: Option<Addr>,
    port: u16,
}

/// What a command begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Match {
    No,
    Partial,
    Whole(Announced),
}

pub(super) fn help(call: &mut Call<'_>) -> Result<(), Refused> {
    if !call.is_established() {
        return Ok(());
    }
    let direction = call.direction();
    let (seq, payload) = (call.packet.seq, call.payload());
    let Some(last) = payload.last() else { return Ok(()) };
    let next_line = (*last == b'\n').then(|| seq.wrapping_add(payload.len() as u32));
    let Memory::Ftp(lines) = &mut *call.memory else { return Ok(()) };
    let begins = lines.begin_at(direction, seq);
    let mut done = Ok(());
    if begins {
        let family = call.tuples[0].family;
        match look(call.payload(), direction, family) {
            Match::No => {}
            Match::Partial => return Err(Refused::Partial),
            Match::Whole(announced) => done = announce(call, &announced),
        }
    }
    if let (Some(next), Memory::Ftp(lines)) = (next_line, &mut *call.memory) {
        lines.remember(direction, next);
    }
    done
}

fn look(payload: &[u8], direction: Direction, family: Family) -> Match {
    let mut found = Match::No;
    for command in COMMANDS[direction.index()] {
        found = find(payload, command, family);
        if found != Match::No {
            break;
        }
    }
    found
}

/// `find_pattern`.
fn find(payload: &[u8], command: Command, family: Family) -> Match {
    let (pattern, skip): (&[u8], _) = match command {
        Command::Port => (b"PORT", Some(b' ')),
        Command::Eprt => (b"EPRT", Some(b' ')),
        Command::Pasv => (b"227 ", None),
        Command::Epsv => (b"229 ", Some(b'(')),
    };
    let length = payload.len().min(pattern.len());
    if !payload[..length].eq_ignore_ascii_case(&pattern[..length]) {
        return Match::No;
    }
    let rest = &payload[length..];
    let skipped = match skip {
        _ if rest.is_empty() => None,
        // The last byte is not taken for the one that is looked for, unless it is the first.
        Some(skip) => rest.iter().position(|&byte| byte == skip).map(|at| at + 1),
        None => Some(0),
    };
    let Some(skipped) = skipped else { return Match::Partial };
    let text = &rest[skipped..];
    let read = match command {
        Command::Port => rfc959(text, Some(b'\r')).map(|(length, addr, port)| (0, length, Some(addr), port)),
        Command::Eprt => eprt(text, family).map(|(length, addr, port)| (0, length, Some(addr), port)),
        Command::Pasv => rfc1123(text).map(|(at, length, addr, port)| (at, length, Some(addr), port)),
        Command::Epsv => epsv(text).map(|(length, port)| (0, length, None, port)),
    };
    match read {
        Some((offset, length, addr, port)) => {
            let at = pattern.len() + skipped + offset;
            Match::Whole(Announced { command, at, length, addr, port })
        }
        None => Match::Partial,
    }
}

/// Numbers with `separator` between and `end` behind (any byte but a digit and the separator, without one): the bytes they
/// take, and they themselves (`try_number`). What is too large loses its highest bits.
fn numbers<const N: usize>(text: &[u8], separator: u8, end: Option<u8>) -> Option<(usize, [u32; N])> {
    let mut numbers = [0u32; N];
    let mut index = 0;
    for (length, &byte) in text.iter().enumerate() {
        if byte.is_ascii_digit() {
            let number = numbers.get_mut(index)?;
            *number = number.wrapping_mul(10).wrapping_add(u32::from(byte - b'0'));
        } else if byte == separator {
            index += 1;
            if index == N {
                return None;
            }
        } else {
            let is_end = end.is_none_or(|end| byte == end) && index == N - 1;
            return (is_end && length > 0).then_some((length, numbers));
        }
    }
    None
}

fn address(numbers: &[u32]) -> Addr {
    Addr::from_v4(numbers.iter().take(4).zip([24, 16, 8, 0]).fold(0, |bits, (number, by)| bits | number << by))
}

/// `h1,h2,h3,h4,p1,p2`.
fn rfc959(text: &[u8], end: Option<u8>) -> Option<(usize, Addr, u16)> {
    let (length, numbers) = numbers::<6>(text, b',', end)?;
    Some((length, address(&numbers), (numbers[4] << 8 | numbers[5]) as u16))
}

/// As [`rfc959`], from the first digit on, and with anything behind it (RFC 1123 section 4.1.2.6).
fn rfc1123(text: &[u8]) -> Option<(usize, usize, Addr, u16)> {
    let at = text.iter().position(u8::is_ascii_digit)?;
    let (length, addr, port) = rfc959(&text[at..], None)?;
    Some((at, length, addr, port))
}

fn is_delimiter(byte: u8) -> bool {
    byte.is_ascii_graphic() && !byte.is_ascii_digit()
}

/// The port that begins at `start`, and where what follows its delimiter begins (`get_port`). 0 is none.
fn port(text: &[u8], start: usize, delimiter: u8) -> Option<(usize, u16)> {
    let mut port = 0u16;
    for (at, &byte) in text.iter().enumerate().skip(start) {
        if byte == delimiter {
            return (port != 0).then_some((at + 1, port));
        }
        if !byte.is_ascii_digit() {
            return None;
        }
        port = port.wrapping_mul(10).wrapping_add(u16::from(byte - b'0'));
    }
    None
}

/// `|1|10.0.0.1|6275|` or `|2|2001:db8::1|6275|`.
fn eprt(text: &[u8], family: Family) -> Option<(usize, Addr, u16)> {
    let &[delimiter, version, second, ref rest @ ..] = text else { return None };
    if rest.is_empty() || !is_delimiter(delimiter) || second != delimiter {
        return None;
    }
    let (length, addr) = match (version, family) {
        (b'1', Family::V4) => numbers::<4>(rest, b'.', Some(delimiter)).map(|(length, n)| (length, address(&n)))?,
        (b'2', Family::V6) => search::ipv6(rest, delimiter).map(|(addr, length)| (length, addr))?,
        _ => return None,
    };
    let (length, port) = port(text, 3 + length + 1, delimiter)?;
    Some((length, addr, port))
}

/// `|||6275|`.
fn epsv(text: &[u8]) -> Option<(usize, u16)> {
    let &[delimiter, second, third, _, ..] = text else { return None };
    (is_delimiter(delimiter) && second == delimiter && third == delimiter).then_some(())?;
    port(text, 3, delimiter)
}

/// Expects the data connection, and tells its real end where the control connection is translated.
fn announce(call: &mut Call<'_>, announced: &Announced) -> Result<(), Refused> {
    let direction = call.direction();
    let (sender, peer) = (*call.tuple(direction), *call.tuple(direction.other()));
    // Somebody else's address: no hole is opened to it (`loose` is off).
    if announced.addr.is_some_and(|addr| addr != sender.src) {
        return Ok(());
    }
    let mut expected = call.expectation(proto::TCP, Some(peer.src), peer.dst, announced.port);
    if !call.is_translated() {
        return call.expect(&expected);
    }
    expected.follow = Some(Follow { direction: direction.other(), port: announced.port });
    let port = call.expect_at_free_port(&mut expected)?;
    let text = write(announced.command, peer.family, peer.dst, port);
    call.announce(announced.at, announced.length, text.bytes(), &expected)
}

/// How the command says it (`nf_nat_ftp_fmt_cmd`). An IPv6 address is written with all its digits.
fn write(command: Command, family: Family, addr: Addr, port: u16) -> Text {
    let [a, b, c, d] = addr.v4_bits().to_be_bytes();
    match (command, family) {
        (Command::Port | Command::Pasv, _) => Text::new(format_args!("{a},{b},{c},{d},{},{}", port >> 8, port & 0xff)),
        (Command::Eprt, Family::V4) => Text::new(format_args!("|1|{a}.{b}.{c}.{d}|{port}|")),
        (Command::Eprt, Family::V6) => {
            let [a, b, c, d, e, f, g, h] = [7, 6, 5, 4, 3, 2, 1, 0].map(|at| (addr.bits() >> (16 * at)) as u16);
            let address = format_args!("{a:04x}:{b:04x}:{c:04x}:{d:04x}:{e:04x}:{f:04x}:{g:04x}:{h:04x}");
            Text::new(format_args!("|2|{address}|{port}|"))
        }
        (Command::Epsv, _) => Text::new(format_args!("|||{port}|")),
    }
}
