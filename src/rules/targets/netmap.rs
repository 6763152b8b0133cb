//! `-j NETMAP`: a whole network becomes another of the same size, host by host (xt_NETMAP.c): [`Netmap`].

use super::argument;
use super::nat_range::{NatRange, NatRequest, NatSource};
use crate::conntrack::Manip;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::{Hook, TableName};
use crate::rules::save::address_text;
use crate::rules::value;
use crate::wire::Addr;
use crate::wire::Family;
use core::fmt::Write;

const TO: u8 = 1;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Netmap {
    /// The network, host bits zero.
    pub net: Addr,
    /// Bits of its prefix.
    pub len: u8,
}

/// A prefix length, or a mask without holes.
fn prefix_len(text: &str, family: Family) -> Option<u8> {
    if let Some(len) = value::unsigned(text, u32::from(family.bits())) {
        return Some(len as u8);
    }
    let mask = argument::address(text, family)?;
    let bits = mask.bits() << (128 - u32::from(family.bits()));
    (bits.leading_ones() == bits.count_ones()).then(|| bits.count_ones() as u8)
}

impl Extension for Netmap {
    const NAME: &'static str = "NETMAP";
    const WANTS_CONNTRACK: bool = true;
    const TABLES: &'static [TableName] = &[TableName::Nat];
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(TO, &["--to"])];

    fn new(_: Family) -> Netmap {
        Netmap { net: Addr::ZERO, len: 0 }
    }

    /// iptables takes a length beyond the address's as its whole, and misreads a mask with holes; both are refused here.
    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        let (token, family) = (given.argument(), given.family);
        let (address, len) = match token.text.split_once('/') {
            Some((address, len)) => (address, prefix_len(len, family)),
            None => (token.text.as_str(), Some(family.bits())),
        };
        let (net, len) = argument::address(address, family).zip(len).ok_or_else(|| {
            Problem::new(token.span, format!("`{}` is not a network", token.text), "expected ADDRESS/LENGTH")
                .help(format!("the address is written in full, the length goes up to {}", family.bits()))
        })?;
        *self = Netmap { net: net.and(Addr::prefix_mask(family, len)), len };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match whole.has(TO) {
            true => Ok(()),
            false => Err(whole.problem("NETMAP without a network", "to which one?").help("add --to ADDRESS/LENGTH")),
        }
    }

    fn hooks(&self) -> u8 {
        Hook::Prerouting.bit() | Hook::Input.bit() | Hook::Output.bit() | Hook::Postrouting.bit()
    }

    fn save(&self, out: &mut String, family: Family) {
        write!(out, " --to {}/{}", address_text(self.net, family), self.len).unwrap_or_default();
    }
}

impl Action for Netmap {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Once for a connection.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    /// The network is the rule's, the host the packet's (`netmap_tg4`, `netmap_tg6`).
    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, (): &()) -> Outcome {
        let (manip, own) = match context.hook {
            Hook::Prerouting | Hook::Output => (Manip::Destination, context.packet.dst),
            _ => (Manip::Source, context.packet.src),
        };
        let mask = Addr::prefix_mask(context.packet.family, self.len).bits();
        let addr = Addr::from_v6(self.net.bits() & mask | own.bits() & !mask);
        let range = NatRange { addresses: Some((addr, addr)), ..NatRange::default() };
        NatRequest { manip, range: &range, source: NatSource::Range }.run(context, world)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};

    /// What was asked, and what iptables-legacy-save 1.8.9 printed then.
    const SAVED: &[(Family, &str, &str)] = &[
        (Family::V4, "--to 10.0.0.0/24", "--to 10.0.0.0/24"),
        (Family::V4, "--to 10.0.0.5/24", "--to 10.0.0.0/24"),
        (Family::V4, "--to 10.0.0.5", "--to 10.0.0.5/32"),
        (Family::V4, "--to 10.0.0.0/255.255.255.0", "--to 10.0.0.0/24"),
        (Family::V4, "--to 10.0.0.0/0", "--to 0.0.0.0/0"),
        (Family::V6, "--to fd00::/64", "--to fd00::/64"),
        (Family::V6, "--to fd00::5/64", "--to fd00::/64"),
        (Family::V6, "--to fd00::5", "--to fd00::5/128"),
        (Family::V6, "--to fd00::/ffff:ffff::", "--to fd00::/32"),
    ];

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (family, words, expected) in SAVED {
            let target: Netmap = read(*family, words).expect(words);
            assert_eq!(saved(&target, *family), *expected, "{words}");
            assert_eq!(read::<Netmap>(*family, expected).as_ref(), Ok(&target), "{expected}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let wrong: &[(Family, &str)] = &[
            (Family::V4, "--to 10.0.0.0/33"),
            (Family::V4, "--to 10/8"),
            (Family::V4, "--to 10.0.0.0/255.0.255.0"),
            (Family::V4, "--to x"),
            (Family::V4, "--to 10.0.0.0/"),
            (Family::V6, "--to fd00::/129"),
            (Family::V6, "--to fd00::/ffff:0:ffff::"),
            (Family::V6, "--to 10.0.0.0/8"),
        ];
        for (family, words) in wrong {
            assert!(read::<Netmap>(*family, words).is_err(), "{words}");
        }
    }
}
