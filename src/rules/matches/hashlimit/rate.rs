//! The rates of hashlimit: as written ([`Average`]), as the kernel is told ([`Rate`]), and counted ([`Bucket`]).
//!
//! HZ is 1000 here. Costs, caps and initial credits are those of HZ = 250 too, to the unit (HZ times credits per jiffy is the
//! same product); that kernel only looks at the clock in steps of 4 ms. Unlike Linux, where the 64-bit product of a pause
//! of more than 37 hours wraps, such a pause fills the bucket.

use crate::rules::limit::HZ;

/// Units of an average in one second (`XT_HASHLIMIT_SCALE_v2`).
pub(super) const SCALE: u64 = 1_000_000;
/// Credit that comes back every jiffy (`CREDITS_PER_JIFFY` of xt_hashlimit.c for this HZ).
const CREDITS_PER_JIFFY: u64 = 1 << 37;
/// The same when bytes are counted (`CREDITS_PER_JIFFY_BYTES`).
const BYTE_CREDITS_PER_JIFFY: u64 = 1 << 22;
/// All the credit there is when bytes are counted: one second's.
const BYTE_CREDIT_MAX: u64 = BYTE_CREDITS_PER_JIFFY * HZ as u64;
/// Bytes are counted in chunks of 16 (`XT_HASHLIMIT_BYTE_SHIFT`).
const CHUNK_SHIFT: u32 = 4;
/// The largest burst in packets.
pub(super) const BURST_MAX: u64 = 1_000_000;
/// The burst in packets where the rule does not say.
pub(super) const BURST_DEFAULT: u64 = 5;

/// Units of a rate, largest first: name, and seconds.
const UNITS: [(&str, u64); 4] = [("day", 86_400), ("hour", 3600), ("min", 60), ("sec", 1)];
/// Units that are read, each also shortened.
const UNIT_WORDS: [(&str, u64); 4] = [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400)];

/// A rate as written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Average {
    /// Time between two packets in 1/1000000 s, and the seconds of the unit it was given in.
    Packets { average: u64, unit: u64 },
    /// Cost of a chunk (`bytes_to_cost`).
    Bytes { cost: u32 },
}

/// Why there is no rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadRate {
    Syntax,
    TooFast,
}

impl BadRate {
    pub(super) const fn reason(self) -> &'static str {
        match self {
            BadRate::Syntax => "not a number and a unit",
            BadRate::TooFast => "too fast to be counted",
        }
    }
}

/// Bytes per second that a chunk of this cost stands for (`cost_to_bytes`).
const fn cost_to_bytes(cost: u32) -> u64 {
    ((u32::MAX / cost - 1) as u64) << CHUNK_SHIFT
}

impl Average {
    /// Reads a rate (`parse_bytes` and `parse_rate`).
    pub(super) fn parse(text: &str) -> Result<Average, BadRate> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(BadRate::Syntax);
        }
        // More digits than fit are a rate too fast whatever they are.
        let number: u64 = number.parse().map_err(|_| BadRate::TooFast)?;
        if number == 0 {
            return Err(BadRate::Syntax);
        }
        let factor = match unit.strip_suffix("ec").unwrap_or(unit) {
            "b/s" => 1,
            "kb/s" => 1 << 10,
            "mb/s" => 1 << 20,
            _ => return Average::packets(number, unit),
        };
        let chunks = number.checked_mul(factor).ok_or(BadRate::TooFast)? >> CHUNK_SHIFT;
        let chunks = u32::try_from(chunks).ok().and_then(|chunks| chunks.checked_add(1)).ok_or(BadRate::TooFast)?;
        Ok(Average::Bytes { cost: u32::MAX / chunks })
    }

    fn packets(number: u64, unit: &str) -> Result<Average, BadRate> {
        let unit = match unit.strip_prefix('/') {
            None if unit.is_empty() => 1,
            Some(word) if !word.is_empty() => {
                let word = word.to_ascii_lowercase();
                UNIT_WORDS.iter().find(|one| one.0.starts_with(&word)).ok_or(BadRate::Syntax)?.1
            }
            _ => return Err(BadRate::Syntax),
        };
        match SCALE * unit / number {
            0 => Err(BadRate::TooFast),
            average => Ok(Average::Packets { average, unit }),
        }
    }
}

/// `--hashlimit-htable-expire` where the rule does not say, in milliseconds.
pub(super) const fn expire_default_ms(average: Average, burst: Option<u64>) -> u32 {
    match (average, burst) {
        (Average::Packets { unit, .. }, _) => unit as u32 * 1000,
        (Average::Bytes { .. }, None) => 15_000,
        (Average::Bytes { .. }, Some(_)) => 60_000,
    }
}

/// A rate as the kernel is told it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rate {
    /// Bytes are counted, not packets.
    pub(super) bytes: bool,
    /// Time between two packets in 1/1000000 s, or the cost of a chunk.
    average: u64,
    /// Packets, or how often the credit may be filled up at once.
    burst: u64,
    /// `--hashlimit-rate-match`: seconds over which the rate is looked at.
    pub(super) interval: Option<u32>,
}

impl Rate {
    /// `interval` is that of `--hashlimit-rate-match`, if there is one.
    ///
    /// # Errors
    /// Why it cannot be counted (Linux refuses the rule with EINVAL or ERANGE).
    pub(super) fn new(average: Average, burst: Option<u64>, interval: Option<Option<u32>>) -> Result<Rate, String> {
        match average {
            Average::Bytes { cost } => {
                let second = cost_to_bytes(cost);
                if burst.is_some_and(|burst| burst < second.max(1)) {
                    return Err(format!("the burst is less than a second's {second} bytes"));
                }
                let burst = burst.map_or(0, |burst| burst.div_ceil(second.max(1)));
                if burst > u32::MAX.into() {
                    return Err("the burst is too large".to_owned());
                }
                if interval.is_none() && byte_cost(cost) == 0 {
                    return Err("the rate is too high".to_owned());
                }
                let interval = interval.map(|seconds| seconds.unwrap_or(1));
                Ok(Rate { bytes: true, average: cost.into(), burst, interval })
            }
            Average::Packets { average, unit } => {
                let burst = burst.unwrap_or(BURST_DEFAULT);
                if burst > BURST_MAX {
                    return Err(format!("the burst is more than {BURST_MAX} packets"));
                }
                let Some(interval) = interval else {
                    // The kernel's own test: a product that wraps to something larger is let through.
                    return match credits(average * burst) < credits(average) {
                        true => Err("the rate is too low for this burst".to_owned()),
                        false => Ok(Rate { bytes: false, average, burst, interval: None }),
                    };
                };
                match average / unit {
                    0 => Err("the rate is too high".to_owned()),
                    average => {
                        Ok(Rate { bytes: false, average, burst, interval: Some(interval.unwrap_or(unit as u32)) })
                    }
                }
            }
        }
    }

    /// As `iptables-save` prints it (`print_rate`, `print_bytes`). The lowest rate in bytes is printed as one that reads back
    /// (iptables prints 0b/s).
    pub(super) fn text(&self) -> String {
        if !self.bytes {
            let (name, seconds) = self.unit();
            return format!("{}/{name}", seconds * SCALE / self.average);
        }
        match cost_to_bytes(self.average as u32) {
            0 => "1b/s".to_owned(),
            bytes => {
                // iptables compares with what the lower 32 bits alone stand for.
                let rounded = |unit: u64| (bytes & u64::from(u32::MAX)) & !(unit - 1);
                let same = |unit: u64| Average::parse(&format!("{}b/s", rounded(unit))) == Ok(self.cost());
                match () {
                    () if bytes >= 1 << 20 && same(1 << 20) => format!("{}mb/s", bytes >> 20),
                    () if bytes >= 1 << 10 && same(1 << 10) => format!("{}kb/s", bytes >> 10),
                    () => format!("{bytes}b/s"),
                }
            }
        }
    }

    fn cost(&self) -> Average {
        Average::Bytes { cost: self.average as u32 }
    }

    /// The largest unit that says the average.
    fn unit(&self) -> (&'static str, u64) {
        let fits = |&&(_, seconds): &&(&str, u64)| {
            let unit = seconds * SCALE;
            self.average <= unit && unit / self.average >= unit % self.average
        };
        *UNITS[1..].iter().take_while(fits).last().unwrap_or(&UNITS[0])
    }

    /// The burst as printed; `None` where it is not.
    pub(super) fn burst_text(&self) -> Option<String> {
        if !self.bytes {
            return Some(self.burst.to_string());
        }
        let bytes = cost_to_bytes(self.average as u32) * self.burst;
        match bytes {
            0 => None,
            bytes if bytes >= 1 << 20 => Some(format!("{}mb", bytes >> 20)),
            bytes if bytes >= 1 << 10 => Some(format!("{}kb", bytes >> 10)),
            bytes => Some(format!("{bytes}b")),
        }
    }

    /// The expiry that is not printed, in milliseconds.
    pub(super) fn expire_omitted_ms(&self) -> u32 {
        match (self.bytes, self.burst) {
            (true, 0) => 15_000,
            (true, _) => 60_000,
            (false, _) => self.unit().1 as u32 * 1000,
        }
    }
}

/// Credit worth `user` units of an average, modulo 2^64 (`user2credits`).
const fn credits(user: u64) -> u64 {
    user.wrapping_mul(HZ as u64 * CREDITS_PER_JIFFY / SCALE)
}

/// Credit worth a chunk (`user2credits_byte`).
const fn byte_cost(user: u32) -> u64 {
    (user as u64 * BYTE_CREDIT_MAX) >> 32
}

/// One key's share (`rateinfo`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bucket {
    /// The last jiffy that was credited, or in which an interval began.
    since: u64,
    /// Credit, or what was seen in this interval.
    pub(super) credit: u64,
    /// Most credit, or how often it may still be filled up, or the burst.
    pub(super) cap: u64,
    /// Cost of a packet or chunk, or the rate to compare with.
    pub(super) cost: u64,
    /// The interval before was over the rate.
    was_over: bool,
}

impl Bucket {
    /// A new one (`rateinfo_init`).
    pub(super) fn new(rate: &Rate, now: u64) -> Bucket {
        let (credit, cap, cost) = match (rate.interval, rate.bytes) {
            (Some(_), true) => {
                let second = cost_to_bytes(rate.average as u32);
                (0, second.saturating_mul(rate.burst.max(1)), second)
            }
            (Some(_), false) => (0, rate.burst + SCALE / rate.average, SCALE / rate.average),
            (None, true) => (BYTE_CREDIT_MAX, rate.burst, byte_cost(rate.average as u32)),
            (None, false) => {
                let all = credits(rate.average * rate.burst);
                (all, all, credits(rate.average))
            }
        };
        Bucket { since: now, credit, cap, cost, was_over: false }
    }

    /// Lets time pass (`rateinfo_recalc`).
    pub(super) fn pass(&mut self, rate: &Rate, now: u64) {
        let elapsed = now.saturating_sub(self.since);
        if elapsed == 0 {
            return;
        }
        if let Some(seconds) = rate.interval {
            let interval = u64::from(seconds) * u64::from(HZ);
            if elapsed >= interval {
                self.since = now;
                self.was_over =
                    u128::from(self.credit) * u128::from(interval) > u128::from(elapsed) * u128::from(self.cost);
                self.credit = 0;
            }
            return;
        }
        self.since = now;
        let (each, most) = match rate.bytes {
            true => (BYTE_CREDITS_PER_JIFFY, BYTE_CREDIT_MAX),
            false => (CREDITS_PER_JIFFY, self.cap),
        };
        self.credit = self.credit.saturating_add(elapsed.saturating_mul(each)).min(most);
    }

    /// Takes a packet of `length` bytes: whether it is within the rate. The rule's own words decide what is counted, the
    /// table's what credit there is.
    pub(super) fn take(&mut self, length: u32, bytes: bool, rate_match: bool) -> bool {
        if rate_match {
            self.credit = self.credit.saturating_add(if bytes { u64::from(length) } else { 1 });
            return !self.was_over && self.credit <= self.cap;
        }
        let cost = if bytes { self.byte_cost(length) } else { self.cost };
        let within = self.credit >= cost;
        self.credit -= if within { cost } else { 0 };
        within
    }

    /// `hashlimit_byte_cost`.
    fn byte_cost(&mut self, length: u32) -> u64 {
        let chunks = u64::from(length >> CHUNK_SHIFT) + 1;
        let cost = chunks.saturating_mul(self.cost).min(BYTE_CREDIT_MAX);
        if self.credit < cost && self.cap != 0 {
            self.cap -= 1;
            self.credit = BYTE_CREDIT_MAX;
        }
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(text: &str, burst: Option<u64>) -> Rate {
        Rate::new(Average::parse(text).expect("a rate"), burst, None).expect("in range")
    }

    /// The kernel's own numbers (/proc/net/ipt_hashlimit, HZ = 250).
    #[test]
    fn five_a_second_with_a_burst_of_three() {
        let rate = rate("5/sec", Some(3));
        let mut bucket = Bucket::new(&rate, 0);
        assert_eq!((bucket.cost, bucket.cap), (27_487_790_600_000, 3 * 27_487_790_600_000));
        let within: Vec<bool> = (0..5).map(|_| bucket.take(100, false, false)).collect();
        assert_eq!(within, [true, true, true, false, false]);
        bucket.pass(&rate, 199);
        assert!(!bucket.take(100, false, false));
        bucket.pass(&rate, 201);
        assert!(bucket.take(100, false, false));
    }

    #[test]
    fn bytes_are_counted_in_chunks_of_a_second() {
        let rate = rate("1kb/s", None);
        let mut bucket = Bucket::new(&rate, 0);
        // 65 chunks a second; 100 bytes are 7.
        let within = (0..20).filter(|_| bucket.take(100, true, false)).count();
        assert_eq!(within, 9);
        bucket.pass(&rate, 1000);
        assert!(bucket.take(1000, true, false) && !bucket.take(1000, true, false));
    }

    #[test]
    fn a_burst_of_bytes_fills_the_credit_up() {
        let rate = rate("1kb/s", Some(2048));
        assert_eq!(rate.burst, 2);
        let mut bucket = Bucket::new(&rate, 0);
        let within = (0..60).filter(|_| bucket.take(100, true, false)).count();
        assert_eq!(within, 27);
    }

    #[test]
    fn a_matched_rate_is_that_of_the_interval_before() {
        let rate = Rate::new(Average::parse("10/sec").expect("a rate"), Some(5), Some(None)).expect("in range");
        let mut bucket = Bucket::new(&rate, 0);
        let within = (0..20).filter(|_| bucket.take(100, false, true)).count();
        assert_eq!(within, 15, "the rate and the burst");
        bucket.pass(&rate, 1000);
        assert!(!bucket.take(100, false, true), "the second before was over it");
        bucket.pass(&rate, 2000);
        assert!(bucket.take(100, false, true));
    }

    #[test]
    fn rates_out_of_range_are_refused() {
        for (text, bad) in [
            ("", BadRate::Syntax),
            ("0/s", BadRate::Syntax),
            ("5kb", BadRate::Syntax),
            ("5/fortnight", BadRate::Syntax),
            ("5/", BadRate::Syntax),
            ("1000001/sec", BadRate::TooFast),
            ("99999999999999999999/s", BadRate::TooFast),
            ("99999999999999999mb/s", BadRate::TooFast),
        ] {
            assert_eq!(Average::parse(text), Err(bad), "{text}");
        }
        let low = Average::parse("5/day").expect("a rate");
        assert!(Rate::new(low, Some(1_000_000), None).is_err() && Rate::new(low, Some(5), None).is_ok());
        let wraps = Rate::new(Average::parse("5/sec").expect("a rate"), Some(1_000_000), None);
        assert!(wraps.is_ok(), "as Linux");
        let bytes = Average::parse("100kb/s").expect("a rate");
        assert!(Rate::new(bytes, Some(99 << 10), None).is_err() && Rate::new(bytes, Some(100 << 10), None).is_ok());
    }

    proptest! {
        #[test]
        fn a_printed_rate_of_bytes_reads_back_as_itself(number in 1u64..5_000_000_000) {
            let average = Average::parse(&format!("{number}b/s")).expect("a rate");
            let rate = Rate::new(average, None, None).expect("in range");
            prop_assert_eq!(Average::parse(&rate.text()), Ok(average));
        }
    }
}
