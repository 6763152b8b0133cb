//! `-m ecn`: the ECN bits of the IP header and of TCP (`ecn_mt4`, `ecn_mt6` of xt_ecn.c).

use super::common::{need_option, put};
use super::number::number;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::{Family, proto, tcp};

const CWR: u8 = 0;
const ECE: u8 = 1;
const ECT: u8 = 2;

/// `-m ecn [!] --ecn-tcp-ece [!] --ecn-tcp-cwr [!] --ecn-ip-ect N`. A TCP header that is cut short does not match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EcnMatch {
    /// What ECE has to be.
    ece: Option<bool>,
    /// What CWR has to be.
    cwr: Option<bool>,
    /// What the IP header's two bits have to be, and `!`.
    ect: Option<(u8, bool)>,
}

impl Extension for EcnMatch {
    const NAME: &'static str = "ecn";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(CWR, &["--ecn-tcp-cwr"]).arguments(0).invertible(),
        OptionSpec::new(ECE, &["--ecn-tcp-ece"]).arguments(0).invertible(),
        OptionSpec::new(ECT, &["--ecn-ip-ect"]).invertible(),
    ];

    fn new(_: Family) -> EcnMatch {
        EcnMatch { ece: None, cwr: None, ect: None }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        match id {
            CWR => self.cwr = Some(!given.invert),
            ECE => self.ece = Some(!given.invert),
            _ => self.ect = Some((number(given.argument(), 3, "value of the ECN field")? as u8, given.invert)),
        }
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        let wanted = "`--ecn-tcp-ece`, `--ecn-tcp-cwr` or `--ecn-ip-ect`";
        need_option(whole, "ecn", &[CWR, ECE, ECT], wanted)?;
        match self.ece.is_some() || self.cwr.is_some() {
            true => whole.needs_proto::<EcnMatch>(proto::TCP, "-p tcp"),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        for (option, wanted) in [("--ecn-tcp-ece", self.ece), ("--ecn-tcp-cwr", self.cwr)] {
            if let Some(set) = wanted {
                put(out, !set, format_args!("{option}"));
            }
        }
        if let Some((value, invert)) = self.ect {
            put(out, invert, format_args!("--ecn-ip-ect {value}"));
        }
    }
}

impl Matcher for EcnMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        match self.ect {
            Some(_) => Basis::Packet,
            None => {
                let flag = |wanted: Option<bool>, flag| if wanted.is_some() { flag } else { 0 };
                Basis::Flags(flag(self.ece, tcp::ECE) | flag(self.cwr, tcp::CWR))
            }
        }
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        if let Some((value, invert)) = self.ect
            && (context.packet.tos & 3 == value) == invert
        {
            return Answer::No;
        }
        if self.ece.is_none() && self.cwr.is_none() {
            return Answer::Yes;
        }
        let Some(header) = context.packet.l4_bytes(context.frame).get(..tcp::HEADER_LEN) else { return Answer::No };
        let flags = tcp::flags(header);
        let fits = |wanted: Option<bool>, flag| wanted.is_none_or(|set| (flags & flag != 0) == set);
        (fits(self.ece, tcp::ECE) && fits(self.cwr, tcp::CWR)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4, v6};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<EcnMatch>(
            Family::V4,
            &[
                ("--ecn-tcp-ece", "--ecn-tcp-ece"),
                ("! --ecn-tcp-cwr --ecn-tcp-ece", "--ecn-tcp-ece ! --ecn-tcp-cwr"),
                ("--ecn-ip-ect 0x2", "--ecn-ip-ect 2"),
                ("! --ecn-ip-ect 3", "! --ecn-ip-ect 3"),
                ("--ecn-ip-ect 2 ! --ecn-tcp-cwr --ecn-tcp-ece", "--ecn-tcp-ece ! --ecn-tcp-cwr --ecn-ip-ect 2"),
            ],
        );
        refuses::<EcnMatch>(Family::V4, &["--ecn-ip-ect 4"]);
        assert!(checked::<EcnMatch>(Family::V4, None, "").is_err());
        assert!(checked::<EcnMatch>(Family::V4, None, "--ecn-ip-ect 1").is_ok());
        assert!(checked::<EcnMatch>(Family::V4, None, "--ecn-tcp-cwr").is_err());
        assert!(checked::<EcnMatch>(Family::V6, Some(17), "--ecn-tcp-cwr").is_err());
        assert!(checked::<EcnMatch>(Family::V6, Some(6), "--ecn-tcp-cwr").is_ok());
    }

    #[test]
    fn bits_of_both_headers_are_read() {
        let mut segment = [0u8; 20];
        (segment[12], segment[13]) = (0x50, 0x42);
        for frame in [v4(6, &segment), v6(6, &segment)] {
            assert_eq!(ask::<EcnMatch>("--ecn-tcp-ece", &frame), Answer::Yes);
            assert_eq!(ask::<EcnMatch>("--ecn-tcp-cwr", &frame), Answer::No);
            assert_eq!(ask::<EcnMatch>("--ecn-tcp-ece ! --ecn-tcp-cwr --ecn-ip-ect 3", &frame), Answer::Yes);
            assert_eq!(ask::<EcnMatch>("! --ecn-ip-ect 3", &frame), Answer::No);
        }
        assert_eq!(ask::<EcnMatch>("! --ecn-tcp-cwr", &v4(6, &segment[..19])), Answer::No);
    }
}
