//! Connection tracking, in nf_conntrack's own terms.
//!
//! [`Conntrack`] is one shard's tracker: [`Conntrack::track`] classifies a packet, [`Conntrack::confirm`] makes its
//! connection visible once the packet may leave, [`Conntrack::expire`] forgets. Behind it: `table` finds connections by
//! tuple, `wheel` knows when to look at them again, and `tcp`, `udp`, `icmp`, `sctp`, `generic` know the protocols.

mod conn;
mod generic;
mod icmp;
mod list;
mod sctp;
mod settings;
mod table;
mod tcp;
#[cfg(test)]
mod testing;
mod tracker;
mod tuple;
mod udp;
mod wheel;

pub use conn::{Conn, ConnId};
pub use list::{ConnView, Counter, LineOptions, StateView, TupleView, protocol_name};
pub use settings::Settings;
pub use tracker::{ConnRef, Conntrack, Memory, Statistics, Tracked};
pub use tuple::{CtInfo, CtStatus, Direction, Tuple};
