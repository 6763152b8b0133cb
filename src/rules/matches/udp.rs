//! `-m udp`: ports. Needs all 8 bytes of a UDP header, or drops the packet (`udp_mt`).

use super::super::context::{Context, World};
use super::super::diagnostic::Problem;
use super::super::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use super::super::registry::Registry;
use super::super::save::save_ports;
use super::super::value;
use super::port::PortRange;
use crate::wire::{Family, get_u16, proto, udp};

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UdpMatch {
    /// `--sport`
    pub sport: PortRange,
    /// `--dport`
    pub dport: PortRange,
}

const SPORT: u8 = 0;
const DPORT: u8 = 1;

impl Extension for UdpMatch {
    const NAME: &'static str = "udp";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SPORT, &["--sport", "--source-port"]).invertible(),
        OptionSpec::new(DPORT, &["--dport", "--destination-port"]).invertible(),
    ];

    fn new(_: Family) -> UdpMatch {
        UdpMatch::default()
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let range = value::port_range(given.argument(), given.invert)?;
        if id == SPORT {
            self.sport = range
        } else {
            self.dport = range
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_proto::<UdpMatch>(proto::UDP, "-p udp")
    }

    fn save(&self, out: &mut String, _: Family) {
        save_ports(out, &self.sport, &self.dport);
    }
}

impl Matcher for UdpMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        match context.packet.l4_bytes(context.frame).get(..udp::HEADER_LEN) {
            Some(header) => (self.sport.holds(get_u16(header, 0)) && self.dport.holds(get_u16(header, 2))).into(),
            None => Answer::Hotdrop,
        }
    }
}
