//! What rules share by name: [`Registry`], while they are compiled.

/// Tables that several rules share by name (hashlimit, recent, sets); one for a whole policy, both IP versions.
#[derive(Debug, Default)]
pub struct Registry {}
