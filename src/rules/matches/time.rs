//! `-m time`: hours, days and dates (net/netfilter/xt_time.c).
//!
//! Stricter than iptables: a list of days must name one, and dates must exist. iptables takes 30 February for 2 March, and a
//! list without any day for a rule that never matches, which its own `iptables-save` prints so that it cannot be read back.

use super::argument::push;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::Family;

/// Seconds in a day.
const DAY: i64 = 86_400;
/// The last second of a day.
const DAY_END: u32 = 86_399;
/// The last second that a 32-bit time has: `--datestop` where the rule does not say.
const DATE_END: u32 = i32::MAX as u32;
/// Bits of all weekdays: Monday is 1, Sunday 7.
const WEEKDAYS_ALL: u8 = 0xfe;
/// Bits of all days of a month.
const MONTHDAYS_ALL: u32 = 0xffff_fffe;

const WEEKDAY_NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// `-m time`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimeMatch {
    /// Seconds since 1970.
    date_start: u32,
    date_stop: u32,
    /// Seconds of the day.
    time_start: u32,
    time_stop: u32,
    weekdays: u8,
    monthdays: u32,
    kernel_zone: bool,
    contiguous: bool,
}

const DATESTART: u8 = 1;
const DATESTOP: u8 = 2;
const TIMESTART: u8 = 3;
const TIMESTOP: u8 = 4;
const CONTIGUOUS: u8 = 5;
const MONTHDAYS: u8 = 6;
const WEEKDAYS: u8 = 7;
const LOCALTZ: u8 = 8;
const UTC: u8 = 9;

impl Extension for TimeMatch {
    const NAME: &'static str = "time";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(DATESTART, &["--datestart"]),
        OptionSpec::new(DATESTOP, &["--datestop"]),
        OptionSpec::new(TIMESTART, &["--timestart"]),
        OptionSpec::new(TIMESTOP, &["--timestop"]),
        OptionSpec::new(CONTIGUOUS, &["--contiguous"]).arguments(0),
        OptionSpec::new(MONTHDAYS, &["--monthdays"]).invertible(),
        OptionSpec::new(WEEKDAYS, &["--weekdays"]).invertible(),
        OptionSpec::new(LOCALTZ, &["--kerneltz", "--localtz"]).arguments(0).group(1),
        OptionSpec::new(UTC, &["--utc"]).arguments(0).group(1),
    ];

    fn new(_: Family) -> TimeMatch {
        TimeMatch {
            date_start: 0,
            date_stop: DATE_END,
            time_start: 0,
            time_stop: DAY_END,
            weekdays: WEEKDAYS_ALL,
            monthdays: MONTHDAYS_ALL,
            kernel_zone: false,
            contiguous: false,
        }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            DATESTART => self.date_start = date(given)?,
            DATESTOP => self.date_stop = date(given)?,
            TIMESTART => self.time_start = time(given)?,
            TIMESTOP => self.time_stop = time(given)?,
            CONTIGUOUS => self.contiguous = true,
            MONTHDAYS => self.monthdays = days(given, MONTHDAYS_ALL, monthday)?,
            WEEKDAYS => self.weekdays = days(given, WEEKDAYS_ALL.into(), weekday)? as u8,
            LOCALTZ => self.kernel_zone = true,
            _ => self.kernel_zone = false,
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match self.contiguous && self.time_start <= self.time_stop {
            true => Err(whole
                .problem("--contiguous is for times that go beyond midnight", "does not go together")
                .help("--timestop has to be before --timestart, or leave --contiguous out")),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        if self.time_start != 0 || self.time_stop != DAY_END {
            for (option, time) in [("--timestart", self.time_start), ("--timestop", self.time_stop)] {
                push(out, format_args!(" {option} {}", time_text(time)));
            }
        }
        if self.monthdays != MONTHDAYS_ALL {
            let days: Vec<String> =
                (1..32).filter(|day| self.monthdays & 1 << day != 0).map(|day| day.to_string()).collect();
            push(out, format_args!(" --monthdays {}", days.join(",")));
        }
        if self.weekdays != WEEKDAYS_ALL {
            let days = WEEKDAY_NAMES.iter().enumerate().filter(|(day, _)| self.weekdays & 2 << day != 0);
            let days: Vec<&str> = days.map(|(_, name)| *name).collect();
            push(out, format_args!(" --weekdays {}", days.join(",")));
        }
        for (option, date) in [("--datestart", self.date_start), ("--datestop", self.date_stop)] {
            if date != 0 {
                let Date { year, month, day } = Date::of(i64::from(date).div_euclid(DAY));
                let time = time_text(date % DAY as u32);
                push(out, format_args!(" {option} {year:04}-{month:02}-{day:02}T{time}"));
            }
        }
        if self.kernel_zone {
            out.push_str(" --kerneltz");
        }
        if self.contiguous {
            out.push_str(" --contiguous");
        }
    }
}

fn time_text(seconds: u32) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Date {
    year: i64,
    month: i64,
    day: i64,
}

impl Date {
    /// From days since 1970-01-01.
    fn of(days: i64) -> Date {
        // Eras of 400 years, years that begin in March.
        let days = days + 719_468;
        let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let march = (5 * of_year + 2) / 153;
        let month = if march < 10 { march + 3 } else { march - 9 };
        let day = of_year - (153 * march + 2) / 5 + 1;
        Date { year: era * 400 + year + i64::from(month <= 2), month, day }
    }

    /// Days since 1970-01-01; `None` for a day that does not exist.
    fn days(self) -> Option<i64> {
        let year = self.year - i64::from(self.month <= 2);
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let march = (self.month + 9) % 12;
        let of_year = (153 * march + 2) / 5 + self.day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        (Date::of(days) == self).then_some(days)
    }
}

/// One or two digits (or four, of a year) up to `max`.
fn digits(text: &str, longest: usize, max: i64) -> Option<i64> {
    let plain = (1..=longest).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&number| plain && number <= max)
}

/// `hh:mm[:ss]`: seconds of the day.
fn clock(text: &str) -> Option<u32> {
    let mut parts = text.split(':');
    let hours = digits(parts.next()?, 2, 23)?;
    let minutes = digits(parts.next()?, 2, 59)?;
    let seconds = parts.next().map_or(Some(0), |seconds| digits(seconds, 2, 59))?;
    parts.next().is_none().then_some((hours * 3600 + minutes * 60 + seconds) as u32)
}

fn time(given: &Given<'_>) -> Result<u32, Problem> {
    let token = given.argument();
    clock(&token.text).ok_or_else(|| {
        Problem::new(token.span, format!("bad time `{}`", token.text), "expected hh:mm or hh:mm:ss")
            .help("from 00:00:00 to 23:59:59")
    })
}

/// `YYYY[-MM[-DD[Thh[:mm[:ss]]]]]`: seconds since 1970.
fn timestamp(text: &str) -> Option<u32> {
    let (date, clock_text) = match text.split_once('T') {
        Some((date, clock_text)) => (date, clock_text),
        None => (text, ""),
    };
    let mut parts = date.split('-');
    let year = digits(parts.next()?, 4, 2038).filter(|&year| year >= 1970)?;
    let month = parts.next().map_or(Some(1), |month| digits(month, 2, 12))?;
    let day = parts.next();
    if parts.next().is_some() || (text.contains('T') && day.is_none()) {
        return None;
    }
    let day = day.map_or(Some(1), |day| digits(day, 2, 31))?;
    let seconds = match clock_text {
        "" => 0,
        hour if !hour.contains(':') => digits(hour, 2, 23)? as u32 * 3600,
        text => clock(text)?,
    };
    Some((Date { year, month, day }.days()? * DAY) as u32 + seconds)
}

fn date(given: &Given<'_>) -> Result<u32, Problem> {
    let token = given.argument();
    let seconds = timestamp(&token.text).filter(|&seconds| seconds != 0 || given.name == "--datestart");
    seconds.ok_or_else(|| {
        Problem::new(token.span, format!("bad date `{}`", token.text), "expected YYYY[-MM[-DD[Thh[:mm[:ss]]]]]")
            .help("a day that exists, from 1970 to 2038")
    })
}

/// A list of days as bits; all the others where the option is inverted.
fn days(given: &Given<'_>, all: u32, day: impl Fn(&str) -> Option<u32>) -> Result<u32, Problem> {
    let token = given.argument();
    let mut bits = 0;
    for word in token.text.split(',') {
        let number = day(word).ok_or_else(|| {
            Problem::new(token.span, format!("`{word}` is not a day"), "expected a list without blanks")
                .help("days of a month are 1 to 31; weekdays are Mon, Tue, Wed, Thu, Fri, Sat, Sun, or 1 to 7")
        })?;
        bits |= 1 << number;
    }
    let bits = if given.invert { all & !bits } else { bits };
    match bits {
        0 => Err(Problem::new(token.span, "this leaves no day", "never matches")),
        bits => Ok(bits),
    }
}

fn monthday(word: &str) -> Option<u32> {
    digits(word, 2, 31).filter(|&day| day >= 1).map(|day| day as u32)
}

/// A number, or a name of which the first two letters count.
fn weekday(word: &str) -> Option<u32> {
    let named = WEEKDAY_NAMES.iter().position(|name| word.starts_with(&name[..2])).map(|day| day as u32 + 1);
    named.or_else(|| digits(word, 1, 7).filter(|&day| day >= 1).map(|day| day as u32))
}

impl TimeMatch {
    /// `time_mt`, for seconds since 1970 in UTC and what the kernel's zone adds to them.
    fn covers(&self, utc: i64, zone: i32) -> bool {
        let mut stamp = if self.kernel_zone { utc + i64::from(zone) } else { utc };
        if stamp < self.date_start.into() || stamp > self.date_stop.into() {
            return false;
        }
        let time = stamp.rem_euclid(DAY) as u32;
        if self.time_start < self.time_stop {
            if time < self.time_start || time > self.time_stop {
                return false;
            }
        } else {
            if time < self.time_start && time > self.time_stop {
                return false;
            }
            // The hours after midnight belong to the day before.
            if self.contiguous && time <= self.time_stop {
                stamp -= DAY;
            }
        }
        let day = stamp.div_euclid(DAY);
        // The first of 1970 was a Thursday.
        let weekday = (3 + day).rem_euclid(7) + 1;
        let monthday = || Date::of(day).day;
        self.weekdays >> weekday & 1 != 0 && (self.monthdays == MONTHDAYS_ALL || self.monthdays >> monthday() & 1 != 0)
    }
}

impl Matcher for TimeMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, _: &Context<'_>, world: &dyn World, (): &()) -> Answer {
        let (utc, zone) = world.unix_time();
        self.covers(utc, zone).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};
    use proptest::prelude::*;

    fn rule(words: &str) -> TimeMatch {
        read(Family::V4, words).unwrap_or_else(|bad| panic!("{words}: {bad}"))
    }

    /// Asked from iptables-legacy 1.8.9; all but the last two end with the default `--datestop`.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, printed) in [
            ("", ""),
            ("--timestart 08:00", "--timestart 08:00:00 --timestop 23:59:59 "),
            ("--timestart 22:00:05 --timestop 6:0:1", "--timestart 22:00:05 --timestop 06:00:01 "),
            ("--weekdays Mon,Tue,Fri", "--weekdays Mon,Tue,Fri "),
            ("--weekdays 1,2,7", "--weekdays Mon,Tue,Sun "),
            ("! --weekdays Sa,Su", "--weekdays Mon,Tue,Wed,Thu,Fri "),
            ("--weekdays Monday,Mondo", "--weekdays Mon "),
            ("--monthdays 1,15,31", "--monthdays 1,15,31 "),
            ("! --weekdays Mon --monthdays 1", "--monthdays 1 --weekdays Tue,Wed,Thu,Fri,Sat,Sun "),
            ("--datestart 2026-01-01", "--datestart 2026-01-01T00:00:00 "),
            ("--datestart 2026", "--datestart 2026-01-01T00:00:00 "),
            ("--datestart 2026-1-1T", "--datestart 2026-01-01T00:00:00 "),
            ("--datestart 2026-01-01T12", "--datestart 2026-01-01T12:00:00 "),
            ("--datestart 2026-01-01T12:30", "--datestart 2026-01-01T12:30:00 "),
            ("--datestart 1970-01-01", ""),
            ("--utc", ""),
            ("--timestart 00:00:00", ""),
            ("--weekdays Mon,Tue,Wed,Thu,Fri,Sat,Sun", ""),
            ("--timestart 10:00 --timestop 10:00", "--timestart 10:00:00 --timestop 10:00:00 "),
        ] {
            let printed = format!("{printed}--datestop 2038-01-19T03:14:07");
            assert_eq!(saved(&rule(words), Family::V4), printed, "{words}");
            assert_eq!(rule(&printed), rule(words), "{words}");
        }
        let dates = "--datestart 2026-01-01T12:30:15 --datestop 2026-12-31T23:59:59";
        assert_eq!(saved(&rule(dates), Family::V4), dates);
        let beyond = "--timestart 22:00:00 --timestop 06:00:00 --datestop 2038-06-01T00:00:00 --kerneltz --contiguous";
        assert_eq!(saved(&rule(beyond), Family::V4), beyond);
    }

    #[test]
    fn bad_times_and_days_are_refused() {
        for words in [
            "--weekdays Foo",
            "--weekdays 8",
            "--weekdays 0",
            "--weekdays M",
            "--weekdays mon",
            "--weekdays Mon,,Tue",
            "--weekdays \"\"",
            "! --weekdays 1,2,3,4,5,6,7",
            "--monthdays 0",
            "--monthdays 32",
            "--monthdays 1,x",
            "--timestart 24:00",
            "--timestart 23:60",
            "--timestart 8",
            "--timestart 08:00:60",
            "--datestart 1969-01-01",
            "--datestart 2026-13-01",
            "--datestart 2026-02-30",
            "--datestart 2026-01-00",
            "--datestart 2026-01-01t12",
            "--datestart 2026-01-01T12:30:15Z",
            "--datestart 2026-01-01T24:00",
            "--datestart 2026T12",
            "--datestop 2040",
            "--datestop 1970",
        ] {
            assert!(read::<TimeMatch>(Family::V4, words).is_err(), "{words}");
        }
    }

    /// Seconds since 1970 of a time in 2026.
    fn at(text: &str) -> i64 {
        timestamp(&format!("2026-{text}")).expect("a time").into()
    }

    #[test]
    fn times_of_the_day_include_both_ends_and_may_go_beyond_midnight() {
        let day = rule("--timestart 08:00 --timestop 17:30");
        assert!(day.covers(at("11-21T08:00:00"), 0) && day.covers(at("11-21T17:30:00"), 0));
        assert!(!day.covers(at("11-21T07:59:59"), 0) && !day.covers(at("11-21T17:30:01"), 0));
        let night = rule("--timestart 22:00 --timestop 06:00");
        assert!(night.covers(at("11-21T23:00"), 0) && night.covers(at("11-21T06:00"), 0));
        assert!(!night.covers(at("11-21T12:00"), 0));
        assert!(rule("--timestart 10:00 --timestop 10:00").covers(at("11-21T12:00"), 0), "all day, as in Linux");
    }

    #[test]
    fn contiguous_counts_the_morning_to_the_day_before() {
        // 2026-11-21 is a Saturday.
        let plain = rule("--timestart 22:00 --timestop 06:00 --weekdays Fri");
        let contiguous = rule("--timestart 22:00 --timestop 06:00 --weekdays Fri --contiguous");
        for (text, expected) in [
            ("11-20T23:00", [true, true]),
            ("11-21T05:00", [false, true]),
            ("11-20T05:00", [true, false]),
            ("11-21T23:00", [false, false]),
        ] {
            assert_eq!([plain.covers(at(text), 0), contiguous.covers(at(text), 0)], expected, "{text}");
        }
    }

    #[test]
    fn days_dates_and_the_kernels_zone() {
        let first = rule("--monthdays 1");
        assert!(first.covers(at("03-01T00:00"), 0) && !first.covers(at("02-28T23:59:59"), 0));
        let dates = rule("--datestart 2026-03-01 --datestop 2026-03-01T12:00");
        assert!(dates.covers(at("03-01"), 0) && dates.covers(at("03-01T12:00"), 0));
        assert!(!dates.covers(at("03-01") - 1, 0) && !dates.covers(at("03-01T12:00:01"), 0));
        let local = rule("--kerneltz --monthdays 1");
        assert!(local.covers(at("02-28T23:30"), 3600) && !first.covers(at("02-28T23:30"), 3600));
    }

    proptest! {
        #[test]
        fn a_day_and_its_number_are_the_same(days in 0i64..30_000) {
            let date = Date::of(days);
            prop_assert_eq!(date.days(), Some(days));
            let next = Date::of(days + 1);
            prop_assert!(next.day == date.day + 1 || next.day == 1);
        }
    }
}
