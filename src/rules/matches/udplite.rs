//! `-m udplite`: ports of UDP-Lite (`udp_mt` of xt_tcpudp.c). The kernel has it; iptables 1.8.9 has no words for it, so what
//! is saved is spelled like `-m udp`.

use super::port::PortRange;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::save::save_ports;
use crate::rules::value;
use crate::wire::{Family, get_u16, proto, udp};

const SPORT: u8 = 0;
const DPORT: u8 = 1;

/// `-m udplite [!] --sport PORTS [!] --dport PORTS`: needs all 8 bytes of a header, or drops the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpliteMatch {
    sport: PortRange,
    dport: PortRange,
}

impl Extension for UdpliteMatch {
    const NAME: &'static str = "udplite";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(SPORT, &["--sport", "--source-port"]).invertible(),
        OptionSpec::new(DPORT, &["--dport", "--destination-port"]).invertible(),
    ];

    fn new(_: Family) -> UdpliteMatch {
        UdpliteMatch { sport: PortRange::ANY, dport: PortRange::ANY }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let side = if id == SPORT { &mut self.sport } else { &mut self.dport };
        *side = value::port_range(given.argument(), given.invert)?;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_proto::<UdpliteMatch>(proto::UDPLITE, "-p udplite")
    }

    fn save(&self, out: &mut String, _: Family) {
        save_ports(out, &self.sport, &self.dport);
    }
}

impl Matcher for UdpliteMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// A packet whose header is cut short has no connection.
    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        let Some(header) = context.packet.l4_bytes(context.frame).get(..udp::HEADER_LEN) else {
            return Answer::Hotdrop;
        };
        (self.sport.holds(get_u16(header, 0)) && self.dport.holds(get_u16(header, 2))).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_like_udp() {
        saves::<UdpliteMatch>(
            Family::V4,
            &[
                ("", ""),
                ("--dport 5", "--dport 5"),
                ("--destination-port :6 ! --source-port 7", "! --sport 7 --dport 0:6"),
                ("--sport 0:65535", ""),
            ],
        );
        refuses::<UdpliteMatch>(Family::V4, &["--dport 6:5", "--dport 65536"]);
        assert!(checked::<UdpliteMatch>(Family::V4, Some(17), "--dport 5").is_err());
        assert!(checked::<UdpliteMatch>(Family::V4, Some(136), "--dport 5").is_ok());
    }

    #[test]
    fn ports_are_compared_and_a_short_header_drops() {
        let datagram = [0, 7, 0, 5, 0, 8, 0, 0];
        for frame in [v4(136, &datagram), v6(136, &datagram)] {
            assert_eq!(ask::<UdpliteMatch>("--dport 5", &frame), Answer::Yes);
            assert_eq!(ask::<UdpliteMatch>("--dport 5 ! --sport 7", &frame), Answer::No);
        }
        assert_eq!(ask::<UdpliteMatch>("--dport 6", &v4(136, &datagram[..7])), Answer::Hotdrop);
    }
}
