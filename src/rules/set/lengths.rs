//! Which prefix lengths a set has: [`Lengths`], longest first.

/// How many prefixes of each length there are, and the lengths in use, descending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    count: [u32; 129],
    present: [u8; 129],
    used: u8,
}

impl Default for Lengths {
    fn default() -> Lengths {
        Lengths { count: [0; 129], present: [0; 129], used: 0 }
    }
}

impl Lengths {
    /// The lengths in use, longest first.
    #[inline]
    pub(super) fn present(&self) -> &[u8] {
        &self.present[..usize::from(self.used)]
    }

    /// The longest.
    pub(super) fn longest(&self) -> Option<u8> {
        self.present().first().copied()
    }

    /// One more of this length.
    pub(super) fn add(&mut self, length: u8) {
        let count = &mut self.count[usize::from(length)];
        *count += 1;
        if *count == 1 {
            let used = usize::from(self.used);
            let at = self.present[..used].partition_point(|&other| other > length);
            self.present.copy_within(at..used, at + 1);
            self.present[at] = length;
            self.used += 1;
        }
    }

    /// One less.
    pub(super) fn take(&mut self, length: u8) {
        let count = &mut self.count[usize::from(length)];
        *count -= 1;
        if *count == 0 {
            let used = usize::from(self.used);
            let at = self.present[..used].partition_point(|&other| other > length);
            self.present.copy_within(at + 1..used, at);
            self.used -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_come_longest_first_and_go_with_their_last_prefix() {
        let mut lengths = Lengths::default();
        for length in [24, 0, 128, 24, 8] {
            lengths.add(length);
        }
        assert_eq!(lengths.present(), [128, 24, 8, 0]);
        lengths.take(24);
        lengths.take(128);
        assert_eq!((lengths.present(), lengths.longest()), (&[24, 8, 0][..], Some(24)));
        lengths.take(24);
        assert_eq!(lengths.present(), [8, 0]);
    }
}
