//! SCTP: associations from scripts, then any chunks with any tags.

use std::collections::VecDeque;

use super::Random;

pub(crate) struct Talk {
    script: VecDeque<(bool, u8)>,
    tags: [u32; 2],
}

const SCRIPTS: [&[(bool, u8)]; 9] = [
    &[(true, 1), (false, 2), (true, 10), (false, 11)],
    &[(true, 1), (false, 2), (true, 10), (false, 11), (true, 0), (false, 3), (true, 4), (false, 5)],
    &[(true, 1), (false, 2), (true, 10), (false, 11), (true, 7), (false, 8), (true, 14)],
    &[(true, 1), (false, 2), (true, 10), (false, 11), (false, 7), (true, 8), (false, 14)],
    &[(true, 1), (false, 2), (true, 10), (false, 11), (true, 1), (false, 2), (true, 10), (false, 11)],
    &[(true, 1), (true, 1), (false, 1), (false, 2), (true, 2)],
    &[(true, 4), (false, 5), (true, 0)],
    &[(true, 1), (false, 6)],
    &[],
];

impl Talk {
    pub(crate) fn new(random: &mut Random) -> Talk {
        let tags = if random.one_in(4) { [0, 0x2222_2222] } else { [0x1111_1111, 0x2222_2222] };
        Talk { script: random.pick(&SCRIPTS).iter().copied().collect(), tags }
    }

    pub(crate) fn next(&mut self, random: &mut Random) -> (bool, u8, Vec<u8>) {
        let scripted = if random.one_in(5) { None } else { self.script.pop_front() };
        let (from_client, kind) = scripted.unwrap_or_else(|| {
            let kind = random.pick(&[0, 0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 14, 77, 192, 255]);
            (random.one_in(2), kind)
        });
        let (me, peer) = if from_client { (0, 1) } else { (1, 0) };
        let vtag = match random.below(12) {
            0 => 0,
            1 => self.tags[me],
            2 => random.next() as u32,
            _ if kind == 1 => 0,
            _ => self.tags[peer],
        };
        let mut chunks = chunk(random, kind, self.tags[me]);
        while random.one_in(5) {
            let more = random.pick(&[0, 3, 4, 5, 7, 9, 10, 11, 6, 1, 14, 2]);
            chunks.extend(chunk(random, more, self.tags[me]));
        }
        if random.one_in(40) {
            chunks.truncate(random.below(chunks.len() as u64 + 1) as usize);
        }
        let (sport, dport) = if from_client { (4000u16, 5000u16) } else { (5000, 4000) };
        let mut sctp = Vec::new();
        sctp.extend(sport.to_be_bytes());
        sctp.extend(dport.to_be_bytes());
        sctp.extend(vtag.to_be_bytes());
        sctp.extend([0; 4]);
        sctp.extend(chunks);
        let crc = !xrouter::wire::checksum::crc32c(!0, &sctp);
        sctp[8..12].copy_from_slice(&crc.to_le_bytes());
        if random.one_in(40) {
            sctp[9] ^= 1;
        }
        (from_client, 132, sctp)
    }
}

fn chunk(random: &mut Random, kind: u8, tag: u32) -> Vec<u8> {
    let mut value = match kind {
        1 | 2 => [tag.to_be_bytes().to_vec(), vec![0; 12]].concat(),
        0 => vec![0; 16],
        _ => vec![0; random.pick(&[4, 4, 4, 0, 3, 9])],
    };
    if random.one_in(4) && kind == 2 {
        value[0] ^= 1;
    }
    if random.one_in(40) {
        value.truncate(random.below(value.len() as u64 + 1) as usize);
    }
    let length = if random.one_in(60) { random.below(24) as u16 } else { 4 + value.len() as u16 };
    let mut chunk = vec![kind, u8::from(random.one_in(4)), (length >> 8) as u8, length as u8];
    chunk.extend(value);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}
