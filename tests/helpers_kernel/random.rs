//! Dialogues made of the words that helpers know, at random; a number tells one from the others.

use crate::dialogues::{Nat, line, login};
use crate::talk::{Line, Talk};

/// SplitMix64.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

const FTP: &[&str] = &[
    "PORT ",
    "EPRT ",
    "port ",
    "227 ",
    "229 ",
    "227 (",
    "229 (",
    "10,1,0,2,",
    "10,2,0,2,",
    "19,137",
    "4,1",
    "|1|10.1.0.2|",
    "|2|fd01::2|",
    "|||",
    "6446|",
    "|",
    ")",
    "\r\n",
    "\n",
    "\r",
    " ",
    "0",
    "1",
    "9",
    ",",
    "(",
    "x",
    "USER",
    "PO",
    "22",
    "!",
];
const IRC: &[&str] = &[
    "PRIVMSG bob",
    " :\u{1}DCC ",
    "SEND ",
    "CHAT ",
    "TSEND ",
    "file ",
    "167837698 ",
    "5001",
    " 1234",
    "\u{1}\r\n",
    "\n",
    " ",
    "0",
    "PRIVMSG",
    ":",
    "MOVE ",
    "padding padding",
    "16",
];
const AMANDA: &[&str] = &[
    "CONNECT ",
    "DATA ",
    "MESG ",
    "INDEX ",
    "STATE ",
    "6543 ",
    "65",
    "1 ",
    "99999",
    "\n",
    "x",
    " ",
    "0",
    "CONNECT DATA 7 MESG 9\n",
];

fn text(dice: &mut Dice, words: &[&str]) -> Vec<u8> {
    let count = 1 + dice.below(9);
    let mut text: Vec<u8> = (0..count).flat_map(|_| words[dice.below(words.len())].bytes()).collect();
    if dice.one_in(12) {
        let at = dice.below(text.len());
        text[at] = dice.below(256) as u8;
    }
    text
}

/// One of them.
pub(crate) fn dialogue(talk: &mut Talk<'_>, nat: Nat, seed: u64) {
    let mut dice = Dice::new(seed);
    let v6 = dice.one_in(3);
    match dice.below(8) {
        0 => {
            let mut line = line(nat, 6, false, 6667);
            talk.open(&mut line);
            speak(talk, &mut line, &mut dice, IRC);
        }
        1 => {
            let mut line = line(nat, 17, v6, 10_080);
            talk.say(&mut line, true, b"REQ\n");
            speak(talk, &mut line, &mut dice, AMANDA);
        }
        _ => {
            let mut line = login(talk, nat, v6);
            speak(talk, &mut line, &mut dice, FTP);
        }
    }
}

/// Both sides say something, now and then again, out of order, or only a part of it.
fn speak(talk: &mut Talk<'_>, line: &mut Line, dice: &mut Dice, words: &[&str]) {
    let mut last: Option<(bool, u32, Vec<u8>)> = None;
    for _ in 0..2 + dice.below(8) {
        let from_client = dice.one_in(2);
        let seq = line.end(from_client).seq;
        if let Some((from_client, seq, text)) = last.clone().filter(|_| dice.one_in(5)) {
            talk.packet(line, from_client, (seq, "PA", &[]), &text);
            continue;
        }
        let text = text(dice, words);
        let arrived = talk.packet(line, from_client, (seq, "PA", &[]), &text).is_some();
        if arrived || dice.one_in(3) {
            line.end(from_client).seq = seq.wrapping_add(text.len() as u32);
        }
        if dice.one_in(2) {
            talk.ack(line, !from_client, &[]);
        }
        last = Some((from_client, seq, text));
        if dice.one_in(3) {
            talk.look();
        }
    }
    talk.look();
}
