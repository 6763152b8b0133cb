//! Random numbers that may be seen from outside, as a translated port is: [`Dice`].

use crate::conntrack::Manip;
use std::hash::{DefaultHasher, Hasher};

/// SipHash of a secret and a counter: whoever sees its numbers learns nothing of the next (about 20 ns each). What nobody sees
/// comes from [`super::Shard::random`], which is cheaper.
#[derive(Debug)]
pub(super) struct Dice {
    secret: [u64; 2],
    drawn: u64,
    /// Source and destination port that somebody wants drawn.
    wanted: Option<[u16; 2]>,
}

impl Dice {
    /// `secret` is from the system's random source.
    pub(super) fn new(secret: [u64; 2]) -> Dice {
        Dice { secret, drawn: 0, wanted: None }
    }

    /// From now on these are drawn, source and destination port, wherever they are among those that may be.
    pub(super) fn want(&mut self, ports: Option<[u16; 2]>) {
        self.wanted = ports;
    }

    /// How far from the port `low` on the first to try is.
    pub(super) fn draw_port(&mut self, manip: Manip, low: u16) -> u16 {
        match (self.wanted, manip) {
            (Some([port, _]), Manip::Source) | (Some([_, port]), Manip::Destination) => port.wrapping_sub(low),
            (None, _) => self.draw(),
        }
    }

    /// Sixteen random bits.
    pub(super) fn draw(&mut self) -> u16 {
        self.drawn += 1;
        let mut hasher = DefaultHasher::new();
        self.secret.iter().for_each(|word| hasher.write_u64(*word));
        hasher.write_u64(self.drawn);
        hasher.finish() as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_about_as_often() {
        let mut dice = Dice::new([1, 2]);
        let mut seen = [0u32; 16];
        (0..16_000).for_each(|_| seen[usize::from(dice.draw() >> 12)] += 1);
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
        assert_ne!(Dice::new([1, 2]).draw(), Dice::new([1, 3]).draw());
    }
}
