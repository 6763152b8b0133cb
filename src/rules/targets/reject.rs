//! `-j REJECT`: dropped and answered.

use super::super::context::{Context, World};
use super::super::diagnostic::Problem;
use super::super::extension::{Action, Basis, Extension, Given, OptionSpec, Outcome, Whole};
use super::super::names;
use super::super::registry::Registry;
use super::super::rule::{Hook, TableName};
use super::super::save::push;
use super::super::value;
use crate::wire::{Family, proto};

/// How a rejected packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectWith {
    /// `tcp-reset`
    TcpReset,
    /// `icmp-net-unreachable`
    IcmpNetUnreachable,
    /// `icmp-host-unreachable`
    IcmpHostUnreachable,
    /// `icmp-proto-unreachable`
    IcmpProtoUnreachable,
    /// `icmp-port-unreachable`
    IcmpPortUnreachable,
    /// `icmp-net-prohibited`
    IcmpNetProhibited,
    /// `icmp-host-prohibited`
    IcmpHostProhibited,
    /// `icmp-admin-prohibited`
    IcmpAdminProhibited,
    /// `icmp6-no-route`
    Icmp6NoRoute,
    /// `icmp6-adm-prohibited`
    Icmp6AdmProhibited,
    /// `icmp6-addr-unreachable`
    Icmp6AddrUnreachable,
    /// `icmp6-port-unreachable`
    Icmp6PortUnreachable,
    /// `icmp6-policy-fail`
    Icmp6PolicyFail,
    /// `icmp6-reject-route`
    Icmp6RejectRoute,
}

impl RejectWith {
    /// Type and code of the ICMP (IPv4) or ICMPv6 message to answer with; `None` for a TCP reset.
    pub const fn icmp(self) -> Option<(u8, u8)> {
        Some(match self {
            RejectWith::TcpReset => return None,
            RejectWith::IcmpNetUnreachable => (3, 0),
            RejectWith::IcmpHostUnreachable => (3, 1),
            RejectWith::IcmpProtoUnreachable => (3, 2),
            RejectWith::IcmpPortUnreachable => (3, 3),
            RejectWith::IcmpNetProhibited => (3, 9),
            RejectWith::IcmpHostProhibited => (3, 10),
            RejectWith::IcmpAdminProhibited => (3, 13),
            RejectWith::Icmp6NoRoute => (1, 0),
            RejectWith::Icmp6AdmProhibited => (1, 1),
            RejectWith::Icmp6AddrUnreachable => (1, 3),
            RejectWith::Icmp6PortUnreachable => (1, 4),
            RejectWith::Icmp6PolicyFail => (1, 5),
            RejectWith::Icmp6RejectRoute => (1, 6),
        })
    }

    /// The word after `--reject-with`.
    pub fn name(self) -> &'static str {
        names::REJECT_V4.iter().chain(names::REJECT_V6).find(|entry| entry.2 == self).map_or("", |e| e.0)
    }
}

impl Extension for RejectWith {
    const NAME: &'static str = "REJECT";
    const TABLES: &'static [TableName] = &[TableName::Filter];
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(0, &["--reject-with"])];

    /// Port unreachable.
    fn new(family: Family) -> RejectWith {
        match family {
            Family::V4 => RejectWith::IcmpPortUnreachable,
            Family::V6 => RejectWith::Icmp6PortUnreachable,
        }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        *self = value::reject_with(given.argument(), given.family)?;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match *self == RejectWith::TcpReset && !whole.is_proto(proto::TCP) {
            true => Err(whole.problem("`--reject-with tcp-reset` needs `-p tcp`", "only TCP can be reset")),
            false => Ok(()),
        }
    }

    fn hooks(&self) -> u8 {
        Hook::Input.bit() | Hook::Forward.bit() | Hook::Output.bit()
    }

    fn save(&self, out: &mut String, _: Family) {
        push(out, format_args!(" --reject-with {}", self.name()));
    }
}

impl Action for RejectWith {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Flow
    }

    fn run(&self, _: &mut Context<'_>, _: &mut dyn World, (): &()) -> Outcome {
        Outcome::Reject(*self)
    }
}
