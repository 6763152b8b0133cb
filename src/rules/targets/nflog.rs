//! `-j NFLOG`: a copy of the packet for a group of listeners (xt_NFLOG.c): [`Nflog`]. The copy is in
//! [`crate::rules::nflog`].

use super::argument;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome};
use crate::rules::nflog::NflogRequest;
use crate::rules::registry::Registry;
use crate::rules::save::string_text;
use crate::wire::Family;
use core::fmt::Write;

const GROUP: u8 = 1;
const PREFIX: u8 = 2;
const RANGE: u8 = 3;
const SIZE: u8 = 4;
const THRESHOLD: u8 = 5;

/// Longest prefix in bytes.
pub(in crate::rules) const PREFIX_MAX: usize = 63;

/// See the module's head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nflog {
    /// `--nflog-group`
    pub group: u16,
    /// `--nflog-prefix`, at most 63 bytes.
    pub prefix: String,
    /// `--nflog-size`: bytes of the IP packet to copy; all without it.
    pub size: Option<u32>,
    /// `--nflog-range`: the older word for it, which has never had an effect, and has none here.
    pub range: u32,
    /// `--nflog-threshold`: how many packets the kernel collects before it wakes a listener. Copies are the same.
    pub threshold: u16,
}

impl Nflog {
    fn read_prefix(&mut self, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        if token.text.is_empty() {
            return Err(Problem::new(token.span, "empty NFLOG prefix", "expected some text"));
        }
        // What is too long is cut, as iptables does.
        let cut = (0..=token.text.len().min(PREFIX_MAX)).rev().find(|&at| token.text.is_char_boundary(at));
        self.prefix = token.text[..cut.unwrap_or(0)].to_owned();
        Ok(())
    }
}

impl Extension for Nflog {
    const NAME: &'static str = "NFLOG";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(GROUP, &["--nflog-group"]),
        OptionSpec::new(PREFIX, &["--nflog-prefix"]),
        OptionSpec::new(RANGE, &["--nflog-range"]).group(1),
        OptionSpec::new(SIZE, &["--nflog-size"]).group(1),
        OptionSpec::new(THRESHOLD, &["--nflog-threshold"]),
    ];

    fn new(_: Family) -> Nflog {
        Nflog { group: 0, prefix: String::new(), size: None, range: 0, threshold: 0 }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            GROUP => self.group = argument::number(given, 0, 65_535)? as u16,
            PREFIX => self.read_prefix(given)?,
            RANGE => self.range = argument::number(given, 0, u32::MAX)?,
            SIZE => self.size = Some(argument::number(given, 0, u32::MAX)?),
            _ => self.threshold = argument::number(given, 0, 65_535)? as u16,
        }
        Ok(())
    }

    fn warning(&self, id: u8, given: &Given<'_>) -> Option<Problem> {
        let span = given.argument().span;
        match id {
            PREFIX if self.prefix.len() < given.argument().text.len() => {
                let message = format!("the NFLOG prefix is cut to {PREFIX_MAX} bytes: `{}`", self.prefix);
                Some(Problem::new(span, message, "too long"))
            }
            RANGE => Some(
                Problem::new(span, "`--nflog-range` has never had an effect", "whole packets are copied")
                    .help("write --nflog-size"),
            ),
            _ => None,
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        if !self.prefix.is_empty() {
            write!(out, " --nflog-prefix {}", string_text(&self.prefix)).unwrap_or_default();
        }
        let size = self.size.map(|size| ("--nflog-size", size));
        for (option, number) in [
            (self.group != 0).then_some(("--nflog-group", u32::from(self.group))),
            size.or((self.range != 0).then_some(("--nflog-range", self.range))),
            (self.threshold != 0).then_some(("--nflog-threshold", u32::from(self.threshold))),
        ]
        .into_iter()
        .flatten()
        {
            write!(out, " {option} {number}").unwrap_or_default();
        }
    }
}

impl Action for Nflog {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Each packet is copied: one that took a kept verdict would be missing.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, (): &()) -> Outcome {
        world.nflog(&NflogRequest { nflog: self, context });
        Outcome::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PortId;
    use crate::packet::Packet;
    use crate::rules::extension_testing::{Told, context, read, saved};
    use crate::time::Instant;
    use etherparse::PacketBuilder;

    const DIGITS: &str = "123456789012345678901234567890123456789012345678901234567890123";

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        let long = [format!("--nflog-prefix {DIGITS}4567890"), format!("--nflog-prefix {DIGITS}")];
        // What was asked, and what iptables-legacy-save 1.8.9 printed then.
        let cases = [
            ("", ""),
            ("--nflog-group 0", ""),
            ("--nflog-group 65535", "--nflog-group 65535"),
            ("--nflog-prefix abc", "--nflog-prefix abc"),
            ("--nflog-prefix \"a b: \"", "--nflog-prefix \"a b: \""),
            ("--nflog-prefix a/b", "--nflog-prefix \"a/b\""),
            ("--nflog-prefix \"it's \\\"a\\\" \\\\ b\"", "--nflog-prefix \"it\\'s \\\"a\\\" \\\\ b\""),
            (&long[0], &long[1]),
            ("--nflog-range 64", "--nflog-range 64"),
            ("--nflog-range 0", ""),
            ("--nflog-size 64", "--nflog-size 64"),
            ("--nflog-size 0", "--nflog-size 0"),
            ("--nflog-size 4294967295", "--nflog-size 4294967295"),
            ("--nflog-threshold 1", "--nflog-threshold 1"),
            ("--nflog-threshold 0", ""),
            (
                "--nflog-threshold 5 --nflog-size 70 --nflog-group 2 --nflog-prefix x",
                "--nflog-prefix x --nflog-group 2 --nflog-size 70 --nflog-threshold 5",
            ),
        ];
        for (words, expected) in cases {
            let nflog: Nflog = read(Family::V4, words).expect(words);
            assert_eq!(saved(&nflog, Family::V4), *expected, "{words}");
            assert_eq!(read::<Nflog>(Family::V4, expected).as_ref(), Ok(&nflog), "{expected}");
        }
        for words in ["--nflog-group 65536", "--nflog-prefix \"\"", "--nflog-threshold 65536", "--nflog-size x"] {
            assert!(read::<Nflog>(Family::V4, words).is_err(), "{words}");
        }
    }

    #[test]
    fn a_copy_goes_out() {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64).udp(1, 2);
        builder.write(&mut frame, b"abc").expect("writing to memory");
        let whole = frame.clone();
        let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
        let mut context = context(&mut packet, &mut frame, Instant::from_secs(1));
        let mut world = Told::default();
        let nflog: Nflog = read(Family::V4, "--nflog-group 7 --nflog-prefix seen").expect("good");
        assert_eq!(nflog.run(&mut context, &mut world, &()), Outcome::Continue);
        assert_eq!(world.copies.len(), 1);
        let record = &world.copies[0];
        assert_eq!((record.group, record.prefix().as_str(), record.frame()), (7, "seen", &whole[..]));
    }
}
