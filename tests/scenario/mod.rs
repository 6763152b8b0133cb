//! The scenario runner: a packetdrill-like language for routers (described in `tests/scenarios/README.md`), and the engines
//! it runs on.

pub(crate) mod engine;
pub(crate) mod expression;
pub(crate) mod kernel;
pub(crate) mod ours;
pub(crate) mod packet;
pub(crate) mod parity;
pub(crate) mod run;
pub(crate) mod script;
pub(crate) mod topology;
#[allow(dead_code)] // NICs are for the zero-copy tests alone
pub(crate) mod wire;
mod workers;
