//! `-m tcp`: ports, flags, options. Needs all 20 bytes of a TCP header, or drops the packet (`tcp_mt`).

use super::super::context::{Context, World};
use super::super::diagnostic::Problem;
use super::super::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use super::super::registry::Registry;
use super::super::save::{bang, flag_words, push, save_ports};
use super::super::value;
use super::port::PortRange;
use crate::wire::{Family, get_u16, proto, tcp};

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpMatch {
    /// `--sport`
    pub sport: PortRange,
    /// `--dport`
    pub dport: PortRange,
    /// `--tcp-flags`, `--syn`
    pub flags: TcpFlags,
    /// `--tcp-option`
    pub option: Option<TcpOption>,
}

/// `(flags & mask) == comp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpFlags {
    /// Which flags are looked at.
    pub mask: u8,
    /// Which of them must be set.
    pub comp: u8,
    /// `!`
    pub invert: bool,
}

/// `--tcp-option`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOption {
    /// The option's kind, not 0.
    pub kind: u8,
    /// `!`
    pub invert: bool,
}

const SPORT: u8 = 0;
const DPORT: u8 = 1;
const SYN: u8 = 2;
const FLAGS: u8 = 3;
const OPTION: u8 = 4;

impl Extension for TcpMatch {
    const NAME: &'static str = "tcp";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SPORT, &["--sport", "--source-port"]).invertible(),
        OptionSpec::new(DPORT, &["--dport", "--destination-port"]).invertible(),
        OptionSpec::new(SYN, &["--syn"]).invertible().arguments(0).group(1),
        OptionSpec::new(FLAGS, &["--tcp-flags"]).invertible().arguments(2).group(1),
        OptionSpec::new(OPTION, &["--tcp-option"]).invertible(),
    ];

    fn new(_: Family) -> TcpMatch {
        TcpMatch::default()
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            SPORT => self.sport = value::port_range(given.argument(), given.invert)?,
            DPORT => self.dport = value::port_range(given.argument(), given.invert)?,
            FLAGS => self.flags = value::tcp_flags(&given.arguments[0], &given.arguments[1], given.invert)?,
            OPTION => self.option = Some(value::tcp_option(given.argument(), given.invert)?),
            _ => self.flags = value::syn(given.invert),
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_proto::<TcpMatch>(proto::TCP, "-p tcp")
    }

    fn save(&self, out: &mut String, _: Family) {
        save_ports(out, &self.sport, &self.dport);
        if let Some(option) = self.option {
            push(out, format_args!("{} --tcp-option {}", bang(option.invert), option.kind));
        }
        if self.flags != TcpFlags::default() {
            let (mask, comp) = (flag_words(self.flags.mask), flag_words(self.flags.comp));
            push(out, format_args!("{} --tcp-flags {mask} {comp}", bang(self.flags.invert)));
        }
    }
}

impl Matcher for TcpMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        match (self.option, self.flags == TcpFlags::default()) {
            (None, true) => Basis::Flow,
            (None, false) => Basis::Flags(self.flags.mask),
            (Some(_), _) => Basis::Packet,
        }
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let segment = context.packet.l4_bytes(context.frame);
        let Some(header) = segment.get(..tcp::HEADER_LEN) else { return Answer::Hotdrop };
        if !self.sport.holds(get_u16(header, 0)) || !self.dport.holds(get_u16(header, 2)) {
            return Answer::No;
        }
        if (header[13] & self.flags.mask == self.flags.comp) == self.flags.invert {
            return Answer::No;
        }
        let Some(wanted) = self.option else { return Answer::Yes };
        let length = usize::from(header[12] >> 4) * 4;
        let Some(mut options) = segment.get(tcp::HEADER_LEN..length) else { return Answer::Hotdrop };
        while let [kind, rest @ ..] = options {
            if *kind == wanted.kind {
                return (!wanted.invert).into();
            }
            // Kinds 0 and 1 are one byte long; a length of 0 counts as 1 (`tcp_find_option`).
            let length = if *kind < 2 { 1 } else { usize::from(rest.first().copied().unwrap_or(1).max(1)) };
            options = options.get(length..).unwrap_or_default();
        }
        wanted.invert.into()
    }
}
