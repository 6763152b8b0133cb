//! A set as a compiled rule holds it: [`NamedSet`].

use super::key::name_bits;
use super::question::{PortNames, Question, Sides};
use super::table::SetCell;
use crate::rules::context::Context;
use crate::rules::registry::Registry;
use crate::wire::Addr;
use std::sync::Arc;

/// A set that a rule names, and what the rule's ports are called (for hash:net,iface).
#[derive(Clone, Debug)]
pub(in crate::rules) struct NamedSet {
    pub(in crate::rules) cell: Arc<SetCell>,
    /// By [`crate::device::PortId`].
    ports: Box<[Addr]>,
}

impl NamedSet {
    /// The set called `name`; with `changes`, one that the rule adds to or deletes from.
    ///
    /// # Panics
    /// When there is none: such a rule is refused when it is loaded.
    pub(in crate::rules) fn new(registry: &Registry, name: &str, changes: bool) -> NamedSet {
        let cell = registry.sets.find(name).expect("a rule that names an unknown set was let through");
        if changes {
            cell.make_live();
        }
        NamedSet { cell, ports: registry.ports.iter().map(|port| name_bits(port)).collect() }
    }

    /// A plain question about the packet.
    #[inline]
    pub(in crate::rules) fn question<'a>(&self, context: &'a Context<'_>, sides: Sides) -> Question<'a> {
        let name = |index: usize| self.ports.get(index).copied().unwrap_or(Addr::ZERO);
        let out = context.out_port.map_or(Addr::ZERO, |port| name(port.index()));
        let ports: PortNames = [name(context.in_port.index()), out];
        Question::new(context, ports, sides)
    }
}
