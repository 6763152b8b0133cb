//! TCP: scripts of usual and unusual connections with disturbances in between, then anything.

use std::collections::VecDeque;

use super::Random;
use crate::testing::{self, Segment};

/// One end, as the generator imagines it.
#[derive(Clone, Copy)]
struct Side {
    isn: u32,
    next: u32,
}

pub(crate) struct Talk {
    script: VecDeque<&'static str>,
    ends: [Side; 2],
    window: u32,
    ports: u64,
    /// How often a field is what the other end expects.
    sober: u64,
}

const SCRIPTS: [&str; 22] = [
    "cS sSA c.",
    "cS sSA c. cP. s. sP. c.",
    "cS sSA c. cFA s. sFA c.",
    "cS sSA c. sFA c. cFA s.",
    "cS sSA c. cFA sFA c. s.",
    "cS sSA c. cFA s. sFA c. cS sSA c.",
    "cS sSA c. cFA s. sFA c. sS cSA s.",
    "cS sSA c. cFA s. sFA cS s. cR cS",
    "cS sSA c. cR",
    "cS sSA c. sR cS sSA c.",
    "cS sSA c. cR cS sSA c.",
    "cS sSA c. cS s. cR cS sSA",
    "cS sSA c. cS sSA c.",
    "cS sRA",
    "cS s. cR cS",
    "cS cS sSA",
    "cS sS cSA sSA c. s.",
    "cS sS s. c. s.",
    "c. s. c.",
    "cP. s. cP. sFA c.",
    "cS",
    "",
];

impl Talk {
    pub(crate) fn new(random: &mut Random) -> Talk {
        let mut ends = [0, 1].map(|_| {
            let isn = if random.one_in(4) { u32::MAX - random.below(5000) as u32 } else { random.next() as u32 };
            Side { isn, next: isn }
        });
        if random.one_in(5) {
            ends[1] = ends[0]; // what is one side's number could be the other's
        }
        Talk {
            script: random.pick(&SCRIPTS).split_whitespace().collect(),
            ends,
            window: random.pick(&[1u32, 100, 8192, 65535]),
            ports: if random.one_in(4) { 2 } else { 1 },
            sober: random.pick(&[0, 1, 1, 3]),
        }
    }

    /// From the client or not, the protocol, and the segment.
    pub(crate) fn next(&mut self, random: &mut Random) -> (bool, u8, Vec<u8>) {
        // Mostly the script first, with disturbances; then anything.
        let scripted = if random.one_in(6) { None } else { self.script.pop_front() };
        let exact = scripted.is_some() || random.below(4) < self.sober;
        let (from_client, flags) = match scripted {
            Some(word) => (word.starts_with('c'), testing::flags(&word[1..])),
            None => {
                let flags = random.pick(&[
                    "S", "S", "SA", "SA", "F.", "F.", ".", ".", ".", ".", "P.", "P.", "R", "R", "R.", "R.", "F", "",
                    "SF", "SR", "FPU", "S.", "U.", "SU", "SEC", "F.U", "RF", "RU",
                ]);
                let flags = if random.one_in(60) { random.next() as u8 } else { testing::flags(flags) };
                (random.one_in(2), flags)
            }
        };
        let (me, peer) = if from_client { (0, 1) } else { (1, 0) };
        let payload = match flags & 0x16 == 0x10 {
            true => random.pick(&[0, 0, 0, 1, 100, 1000]),
            false if random.one_in(10) => 10,
            false => 0,
        };
        let seq = match exact {
            true if flags & 2 != 0 && !random.one_in(4) => self.ends[me].isn,
            true => self.ends[me].next,
            false if flags & 2 != 0 && random.one_in(2) => random.next() as u32,
            false => near(random, self.ends[me].next, self.window),
        };
        let ack = match exact {
            true if flags & 0x10 == 0 => 0,
            true => self.ends[peer].next,
            false => near(random, self.ends[peer].next, self.window),
        };
        let syn = flags & 2 != 0;
        let window = match random.below(12) {
            0 => random.pick(&[0u16, 1, 8192, 65535]),
            1 => random.next() as u16,
            _ => self.window as u16,
        };
        let options = options(random, self.ends[peer].next, syn);
        let port = 4000 + random.below(self.ports) as u16;
        let (sport, dport) = if from_client { (port, 80) } else { (80, port) };
        let mut bytes = Segment { sport, dport, seq, ack, flags, window, options, payload }.bytes();
        let end = seq.wrapping_add(payload as u32 + u32::from(syn) + u32::from(flags & 1));
        if exact || (end.wrapping_sub(self.ends[me].next) as i32) > 0 && random.one_in(4) {
            self.ends[me].next = end;
            if syn {
                self.ends[me].isn = seq;
            }
        }
        if random.one_in(60) {
            bytes[12] = (random.below(16) as u8) << 4 | bytes[12] & 0x0f;
        }
        if random.one_in(60) {
            bytes[12] |= random.below(16) as u8; // the reserved bits
        }
        if random.one_in(60) {
            bytes[18..20].copy_from_slice(&(random.next() as u16).to_be_bytes()); // urgent pointer
        }
        (from_client, 6, bytes)
    }
}

fn near(random: &mut Random, base: u32, window: u32) -> u32 {
    match random.below(18) {
        0 => base.wrapping_sub(1),
        1 => base.wrapping_add(1),
        2 => base.wrapping_add(window),
        3 => base.wrapping_add(window + 1),
        4 => base.wrapping_sub(window),
        5 => base.wrapping_sub(window + 1),
        6 => base.wrapping_add(random.below(70_000) as u32),
        7 => base.wrapping_sub(random.below(140_000) as u32),
        8 => random.next() as u32,
        9 => 0,
        10 => base.wrapping_sub(66_000).wrapping_sub(random.below(3) as u32).wrapping_add(1),
        11 => base.wrapping_add(random.below(3000) as u32),
        12 => base.wrapping_add(0x8000_0000),
        _ => base,
    }
}

/// At most 40 bytes of options.
fn options(random: &mut Random, peer_next: u32, syn: bool) -> Vec<u8> {
    let near = |random: &mut Random| peer_next.wrapping_add(random.below(4000) as u32).wrapping_sub(2000).to_be_bytes();
    let mut bytes: Vec<u8> = Vec::new();
    match random.below(10) {
        0..=2 if syn => bytes = [vec![2, 4, 5, 0xb4], vec![4, 2], vec![3, 3, random.below(17) as u8]].concat(),
        3 => bytes = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        4 => bytes = (0..random.below(40)).map(|_| random.below(12) as u8).collect(),
        5..=6 => {
            for _ in 0..1 + random.below(4) {
                match random.below(12) {
                    0 => bytes.extend([1, 1]),
                    1 => bytes.extend([8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
                    2 => bytes.extend([3, 3, random.below(17) as u8]),
                    3 => bytes.extend([4, 2]),
                    4 => bytes.push(0),
                    5 => bytes.extend([3, random.below(5) as u8, 7]),
                    6 => bytes.extend([30, 4, 0, 1]),
                    7 => bytes.extend([5, random.below(40) as u8]),
                    _ => {
                        let blocks = 1 + random.below(4);
                        bytes.extend([5, 2 + 8 * blocks as u8]);
                        for _ in 0..blocks {
                            bytes.extend(near(random));
                            bytes.extend(near(random));
                        }
                    }
                }
            }
        }
        7 if syn => bytes = vec![3, 3, random.below(17) as u8],
        8 if syn => bytes = vec![4, 2],
        _ => {}
    }
    bytes.truncate(40);
    bytes
}
