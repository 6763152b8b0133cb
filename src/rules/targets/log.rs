//! `-j LOG`: a line in the log; the next rule follows. The line itself is written by [`super::super::log_line`].

use super::super::context::{Context, World};
use super::super::diagnostic::Problem;
use super::super::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome};
use super::super::log::LogRequest;
use super::super::registry::Registry;
use super::super::save::{push, string_text};
use super::super::value;
use crate::wire::Family;

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTarget {
    /// `--log-prefix`, at most 29 bytes.
    pub prefix: String,
    /// `--log-level`, 0 (emerg) to 7 (debug); 4 (warning) by default.
    pub level: u8,
    /// Bits of [`log_flags`].
    pub flags: u8,
}

/// What `-j LOG` adds to a line (`NF_LOG_*`).
pub mod log_flags {
    /// `--log-tcp-sequence`
    pub const TCP_SEQUENCE: u8 = 0x01;
    /// `--log-tcp-options`
    pub const TCP_OPTIONS: u8 = 0x02;
    /// `--log-ip-options`
    pub const IP_OPTIONS: u8 = 0x04;
    /// `--log-uid`: nothing to say about a forwarded packet.
    pub const UID: u8 = 0x08;
    /// `--log-macdecode`
    pub const MACDECODE: u8 = 0x20;
}

const PREFIX: u8 = 0;
const LEVEL: u8 = 1;
const FLAGS: u8 = 2;

/// Options that add to the line, in the order they are printed; the option's number is [`FLAGS`] and its place.
const ADDED: [(u8, &str); 5] = [
    (log_flags::TCP_SEQUENCE, " --log-tcp-sequence"),
    (log_flags::TCP_OPTIONS, " --log-tcp-options"),
    (log_flags::IP_OPTIONS, " --log-ip-options"),
    (log_flags::UID, " --log-uid"),
    (log_flags::MACDECODE, " --log-macdecode"),
];

impl Extension for LogTarget {
    const NAME: &'static str = "LOG";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(PREFIX, &["--log-prefix"]),
        OptionSpec::new(LEVEL, &["--log-level"]),
        OptionSpec::new(FLAGS, &["--log-tcp-sequence"]).arguments(0),
        OptionSpec::new(FLAGS + 1, &["--log-tcp-options"]).arguments(0),
        OptionSpec::new(FLAGS + 2, &["--log-ip-options"]).arguments(0),
        OptionSpec::new(FLAGS + 3, &["--log-uid"]).arguments(0),
        OptionSpec::new(FLAGS + 4, &["--log-macdecode"]).arguments(0),
    ];

    fn new(_: Family) -> LogTarget {
        LogTarget { prefix: String::new(), level: 4, flags: 0 }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            PREFIX => self.prefix = value::log_prefix(given.argument())?,
            LEVEL => self.level = value::log_level(given.argument())?,
            _ => self.flags |= ADDED[usize::from(id - FLAGS)].0,
        }
        Ok(())
    }

    fn warning(&self, id: u8, given: &Given<'_>) -> Option<Problem> {
        let cut = id == PREFIX && self.prefix.len() < given.argument().text.len();
        let message = || format!("the log prefix is cut to 29 bytes: `{}`", self.prefix);
        cut.then(|| Problem::new(given.argument().span, message(), "too long"))
    }

    fn save(&self, out: &mut String, _: Family) {
        if !self.prefix.is_empty() {
            push(out, format_args!(" --log-prefix {}", string_text(&self.prefix)));
        }
        if self.level != 4 {
            push(out, format_args!(" --log-level {}", self.level));
        }
        for (flag, option) in ADDED {
            if self.flags & flag != 0 {
                out.push_str(option);
            }
        }
    }
}

impl Action for LogTarget {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Every packet has a line of its own.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, (): &()) -> Outcome {
        world.log(&LogRequest { log: self, context });
        Outcome::Continue
    }
}
