//! `-m multiport`: a list of ports. Needs the first 4 bytes after the IP header, or drops the packet (`multiport_mt`).

use super::super::context::{Context, World};
use super::super::diagnostic::Problem;
use super::super::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use super::super::registry::Registry;
use super::super::rule::ProtoMatch;
use super::super::save::{bang, push, range_text};
use super::super::value;
use crate::wire::{Family, get_u16, proto};

/// DCCP's protocol number (RFC 4340).
const DCCP: u8 = 33;

/// Which port it looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiportSide {
    /// `--sports`
    Source,
    /// `--dports`
    Destination,
    /// `--ports`: either.
    Either,
}

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultiportMatch {
    /// Which port.
    pub side: MultiportSide,
    /// `!`
    pub invert: bool,
    /// Ports (both ends equal) and ranges, in the order written; at most 15, a range counting twice.
    pub ports: Vec<(u16, u16)>,
}

impl MultiportMatch {
    /// Whether a packet with these ports matches (`ports_match_v1`).
    #[inline]
    pub(in crate::rules) fn holds(&self, sport: u16, dport: u16) -> bool {
        let holds = |port: u16| self.ports.iter().any(|&(low, high)| low <= port && port <= high);
        let found = match self.side {
            MultiportSide::Source => holds(sport),
            MultiportSide::Destination => holds(dport),
            MultiportSide::Either => holds(sport) || holds(dport),
        };
        found != self.invert
    }
}

const SPORTS: u8 = 0;
const DPORTS: u8 = 1;
const PORTS: u8 = 2;

impl Extension for MultiportMatch {
    const NAME: &'static str = "multiport";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(DPORTS, &["--dports", "--destination-ports"]).invertible().group(1),
        OptionSpec::new(SPORTS, &["--sports", "--source-ports"]).invertible().group(1),
        OptionSpec::new(PORTS, &["--ports"]).invertible().group(1),
    ];

    fn new(_: Family) -> MultiportMatch {
        MultiportMatch { side: MultiportSide::Either, invert: false, ports: Vec::new() }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let has_ports = |number| matches!(number, proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP | DCCP);
        if !matches!(given.proto, Some(ProtoMatch { number, invert: false }) if has_ports(number)) {
            let problem = Problem::new(given.owner, "`-m multiport` needs a protocol with ports", "no `-p` before");
            return Err(problem.help("put `-p tcp`, `-p udp`, `-p udplite`, `-p sctp` or `-p dccp` before it"));
        }
        let side = match id {
            SPORTS => MultiportSide::Source,
            DPORTS => MultiportSide::Destination,
            _ => MultiportSide::Either,
        };
        *self = MultiportMatch { side, invert: given.invert, ports: value::port_list(given.argument())? };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<MultiportMatch>()
    }

    fn save(&self, out: &mut String, _: Family) {
        let option = match self.side {
            MultiportSide::Source => "--sports",
            MultiportSide::Destination => "--dports",
            MultiportSide::Either => "--ports",
        };
        let ports: Vec<String> = self.ports.iter().map(|&(low, high)| range_text(low, high)).collect();
        push(out, format_args!("{} {option} {}", bang(self.invert), ports.join(",")));
    }
}

impl Matcher for MultiportMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        match context.packet.l4_bytes(context.frame).get(..4) {
            Some(header) => self.holds(get_u16(header, 0), get_u16(header, 2)).into(),
            None => Answer::Hotdrop,
        }
    }
}
