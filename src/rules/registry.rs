//! What rules share by name: [`Registry`], while they are compiled.

use super::rule::Ruleset;
use super::set::SetTable;
use std::sync::Arc;

/// Tables that several rules share by name (hashlimit, recent, sets); one for a whole policy, both IP versions.
#[derive(Debug, Default)]
pub struct Registry {
    /// The sets the rules were checked against. They outlive the rules.
    pub(super) sets: Arc<SetTable>,
    /// Interface names, by [`crate::device::PortId`].
    pub(super) ports: Vec<String>,
}

impl Registry {
    /// Takes what `ruleset`, which is about to be compiled, was loaded with.
    pub(super) fn surround(&mut self, ruleset: &Ruleset) {
        self.sets = Arc::clone(&ruleset.sets);
        self.ports.clone_from(&ruleset.ports);
    }
}
