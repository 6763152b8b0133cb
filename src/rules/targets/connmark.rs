//! `-j CONNMARK`: changes the connection's mark, or takes it over into the packet's (`connmark_tg_shift` in
//! xt_connmark.c): [`Connmark`]. A packet without a connection is left alone.

use super::argument;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::wire::Family;
use core::fmt::Write;

const SET_XMARK: u8 = 1;
const SET_MARK: u8 = 2;
const AND_MARK: u8 = 3;
const OR_MARK: u8 = 4;
const XOR_MARK: u8 = 5;
const SAVE_MARK: u8 = 6;
const RESTORE_MARK: u8 = 7;
const LEFT_SHIFT: u8 = 8;
const RIGHT_SHIFT: u8 = 9;
const CTMASK: u8 = 10;
const NFMASK: u8 = 11;
const MASK: u8 = 12;

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// `connection = (connection & !ctmask) ^ value`
    Set(u32),
    /// `connection = (connection & !ctmask) ^ (packet & nfmask)`
    Save,
    /// `packet = (packet & !nfmask) ^ (connection & ctmask)`
    Restore,
}

/// Where bits go before they are stored (the second operand of save and restore, the result of set).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shift {
    /// To the left by 0 to 31.
    Left(u8),
    /// To the right by 1 to 31.
    Right(u8),
}

impl Shift {
    const fn apply(self, bits: u32) -> u32 {
        match self {
            Shift::Left(by) => bits << by,
            Shift::Right(by) => bits >> by,
        }
    }
}

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connmark {
    /// What is done.
    pub mode: Mode,
    /// Bits of the connection's mark.
    pub ctmask: u32,
    /// Bits of the packet's mark; all for [`Mode::Set`], which has no use for it.
    pub nfmask: u32,
    /// None is `Left(0)`.
    pub shift: Shift,
}

impl Connmark {
    fn set(&mut self, value: u32, ctmask: u32) {
        *self = Connmark { mode: Mode::Set(value), ctmask, nfmask: u32::MAX, shift: self.shift };
    }

    fn set_nfmask(&mut self, mask: u32) {
        if !matches!(self.mode, Mode::Set(_)) {
            self.nfmask = mask;
        }
    }

    fn set_shift(&mut self, given: &Given<'_>, right: bool) -> Result<(), Problem> {
        // iptables reads 32, too; the kernel refuses it.
        self.shift = match (argument::number(given, 0, 31)? as u8, right) {
            (by @ 1.., true) => Shift::Right(by),
            (by, _) => Shift::Left(by),
        };
        Ok(())
    }
}

impl Extension for Connmark {
    const NAME: &'static str = "CONNMARK";
    const WANTS_CONNTRACK: bool = true;
    /// Of the two shifts, the last one given counts, as in iptables.
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SET_XMARK, &["--set-xmark"]).group(1),
        OptionSpec::new(SET_MARK, &["--set-mark"]).group(1),
        OptionSpec::new(AND_MARK, &["--and-mark"]).group(1),
        OptionSpec::new(OR_MARK, &["--or-mark"]).group(1),
        OptionSpec::new(XOR_MARK, &["--xor-mark"]).group(1),
        OptionSpec::new(SAVE_MARK, &["--save-mark"]).arguments(0).group(1),
        OptionSpec::new(RESTORE_MARK, &["--restore-mark"]).arguments(0).group(1),
        OptionSpec::new(LEFT_SHIFT, &["--left-shift-mark"]),
        OptionSpec::new(RIGHT_SHIFT, &["--right-shift-mark"]),
        OptionSpec::new(CTMASK, &["--ctmask"]),
        OptionSpec::new(NFMASK, &["--nfmask"]),
        OptionSpec::new(MASK, &["--mask"]),
    ];

    /// `Save` stands for "nothing yet": the masks are kept, and `check` wants one of the seven.
    fn new(_: Family) -> Connmark {
        Connmark { mode: Mode::Save, ctmask: u32::MAX, nfmask: u32::MAX, shift: Shift::Left(0) }
    }

    /// Masks count in the order given: one before `--set-mark` is forgotten, one after it replaces its own.
    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            SET_XMARK => {
                let (value, mask) = argument::marked(given)?;
                self.set(value, mask);
            }
            SET_MARK => {
                let (value, mask) = argument::marked(given)?;
                self.set(value, mask | value);
            }
            AND_MARK => self.set(0, !argument::number(given, 0, u32::MAX)?),
            OR_MARK => {
                let bits = argument::number(given, 0, u32::MAX)?;
                self.set(bits, bits);
            }
            XOR_MARK => self.set(argument::number(given, 0, u32::MAX)?, 0),
            SAVE_MARK => self.mode = Mode::Save,
            RESTORE_MARK => self.mode = Mode::Restore,
            LEFT_SHIFT => self.set_shift(given, false)?,
            RIGHT_SHIFT => self.set_shift(given, true)?,
            CTMASK => self.ctmask = argument::number(given, 0, u32::MAX)?,
            NFMASK => self.set_nfmask(argument::number(given, 0, u32::MAX)?),
            _ => {
                self.ctmask = argument::number(given, 0, u32::MAX)?;
                self.set_nfmask(self.ctmask);
            }
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        if !whole.seen.iter().any(|&id| id <= RESTORE_MARK) {
            return Err(whole
                .problem("CONNMARK without anything to do", "what with the mark?")
                .help("add --set-mark VALUE, --save-mark, --restore-mark, --and-mark, --or-mark or --xor-mark"));
        }
        match whole.has(MASK) && (whole.has(CTMASK) || whole.has(NFMASK)) {
            true => Err(whole
                .problem("`--mask` together with `--ctmask` or `--nfmask`", "it stands for both of them")
                .help("write --ctmask and --nfmask alone")),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        let Connmark { mode, ctmask, nfmask, shift } = self;
        let written = match mode {
            Mode::Set(value) => write!(out, " --set-xmark 0x{value:x}/0x{ctmask:x}"),
            Mode::Save => write!(out, " --save-mark --nfmask 0x{nfmask:x} --ctmask 0x{ctmask:x}"),
            Mode::Restore => write!(out, " --restore-mark --nfmask 0x{nfmask:x} --ctmask 0x{ctmask:x}"),
        };
        written
            .and_then(|()| match shift {
                Shift::Left(0) => Ok(()),
                Shift::Left(by) => write!(out, " --left-shift-mark {by}"),
                Shift::Right(by) => write!(out, " --right-shift-mark {by}"),
            })
            .unwrap_or_default();
    }
}

impl Action for Connmark {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// What it writes follows from the connection's mark and the packet's own, which rules before have set.
    fn basis(&self) -> Basis {
        Basis::ConnMark
    }

    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, (): &()) -> Outcome {
        let Some(connection) = world.conn_mark() else { return Outcome::Continue };
        match self.mode {
            Mode::Set(value) => world.set_conn_mark(self.shift.apply((connection & !self.ctmask) ^ value)),
            Mode::Save => {
                let saved = self.shift.apply(context.mark & self.nfmask);
                world.set_conn_mark((connection & !self.ctmask) ^ saved);
            }
            Mode::Restore => {
                let restored = self.shift.apply(connection & self.ctmask);
                context.mark = (context.mark & !self.nfmask) ^ restored;
            }
        }
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then.
    const SAVED: &[(&str, &str)] = &[
        ("--set-mark 5", "--set-xmark 0x5/0xffffffff"),
        ("--set-mark 5/0xf", "--set-xmark 0x5/0xf"),
        ("--set-mark 0x50/0xf", "--set-xmark 0x50/0x5f"),
        ("--set-xmark 0x50/0xf", "--set-xmark 0x50/0xf"),
        ("--set-xmark 0x50", "--set-xmark 0x50/0xffffffff"),
        ("--and-mark 0x50", "--set-xmark 0x0/0xffffffaf"),
        ("--or-mark 0x50", "--set-xmark 0x50/0x50"),
        ("--xor-mark 0x50", "--set-xmark 0x50/0x0"),
        ("--save-mark", "--save-mark --nfmask 0xffffffff --ctmask 0xffffffff"),
        ("--save-mark --mask 0xff", "--save-mark --nfmask 0xff --ctmask 0xff"),
        ("--save-mark --nfmask 0xff --ctmask 0xf0", "--save-mark --nfmask 0xff --ctmask 0xf0"),
        ("--save-mark --ctmask 0xf0", "--save-mark --nfmask 0xffffffff --ctmask 0xf0"),
        ("--restore-mark", "--restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"),
        ("--restore-mark --mask 255", "--restore-mark --nfmask 0xff --ctmask 0xff"),
        ("--restore-mark --nfmask 255", "--restore-mark --nfmask 0xff --ctmask 0xffffffff"),
        ("--mask 255 --restore-mark", "--restore-mark --nfmask 0xff --ctmask 0xff"),
        ("--set-mark 1 --mask 255", "--set-xmark 0x1/0xff"),
        ("--mask 255 --set-mark 1", "--set-xmark 0x1/0xffffffff"),
        ("--set-mark 1 --ctmask 255", "--set-xmark 0x1/0xff"),
        ("--set-xmark 0x300/0xff --nfmask 255", "--set-xmark 0x300/0xff"),
        ("--save-mark --left-shift-mark 4", "--save-mark --nfmask 0xffffffff --ctmask 0xffffffff --left-shift-mark 4"),
        ("--set-mark 3 --right-shift-mark 8", "--set-xmark 0x3/0xffffffff --right-shift-mark 8"),
        ("--set-mark 1 --left-shift-mark 0", "--set-xmark 0x1/0xffffffff"),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (words, expected) in SAVED {
            let connmark: Connmark = read(Family::V4, words).expect(words);
            assert_eq!(saved(&connmark, Family::V4), *expected, "{words}");
            assert_eq!(read::<Connmark>(Family::V4, expected).as_ref(), Ok(&connmark), "{expected}");
        }
        assert!(read::<Connmark>(Family::V4, "--set-mark 1 --left-shift-mark 32").is_err());
    }

    /// The packet's mark and the connection's, after a rule.
    fn after(words: &str, packet_mark: u32, conn_mark: Option<u32>) -> (u32, Option<u32>) {
        let connmark: Connmark = read(Family::V4, words).expect(words);
        let mut packet = Packet::BLANK;
        let mut context = context(&mut packet, &mut [], Instant::from_secs(1));
        context.mark = packet_mark;
        let mut world = Told { conn_mark, ..Told::default() };
        assert_eq!(connmark.run(&mut context, &mut world, &()), Outcome::Continue);
        (context.mark, world.conn_mark)
    }

    #[test]
    fn marks_go_where_they_are_sent() {
        assert_eq!(after("--set-mark 5", 1, Some(0xff)), (1, Some(5)));
        assert_eq!(after("--set-xmark 0x300/0xff", 1, Some(0x1ff)), (1, Some(0x200)));
        assert_eq!(after("--save-mark", 7, Some(0)), (7, Some(7)));
        assert_eq!(after("--save-mark --nfmask 0xff --ctmask 0xf0", 0x1234, Some(0xffff)), (0x1234, Some(0xff3b)));
        assert_eq!(after("--restore-mark", 7, Some(9)), (9, Some(9)));
        assert_eq!(after("--restore-mark --nfmask 0xf0 --ctmask 0xff", 0x1234, Some(0x56)), (0x1252, Some(0x56)));
        assert_eq!(after("--set-mark 3 --left-shift-mark 4", 0, Some(0)), (0, Some(0x30)));
        assert_eq!(after("--save-mark --left-shift-mark 8", 3, Some(0)), (3, Some(0x300)));
        assert_eq!(after("--restore-mark --right-shift-mark 8", 0, Some(0x300)), (3, Some(0x300)));
    }

    #[test]
    fn without_a_connection_nothing_is_done() {
        assert_eq!(after("--restore-mark", 7, None), (7, None));
        assert_eq!(after("--save-mark", 7, None), (7, None));
    }
}
