//! Connection tracking, in nf_conntrack's own terms.
//!
//! [`Conntrack`] is one shard's tracker: [`Conntrack::track`] classifies a packet, [`Conntrack::confirm`] makes its
//! connection visible once the packet may leave, [`Conntrack::expire`] forgets. Behind it: `table` finds connections by
//! tuple, `wheel` knows when to look at them again, and `tcp`, `udp`, `icmp`, `sctp`, `generic` know the protocols. What
//! an operator sees is a [`ConnView`] (`list`), chosen by a [`ConnFilter`] and written by `text`, `xml`, `json`.

mod blocks;
mod conn;
mod event;
mod expect;
mod expected;
mod extra;
mod filter;
mod generic;
mod helper;
mod homes;
mod icmp;
mod json;
mod keymap;
mod list;
mod mapping;
mod published;
mod roster;
mod sctp;
mod seqadj;
mod settings;
mod source;
mod statistics;
mod table;
mod tcp;
mod template;
#[cfg(test)]
mod testing;
mod text;
mod total;
mod tracker;
mod tuple;
mod udp;
mod wheel;
mod xml;

/// What `total` and `published` are made of; their tests put others in their place.
mod atomic {
    pub(super) use crate::schedule::{lock, point, read, write};
    pub(super) use std::sync::atomic::{AtomicUsize, Ordering};
    pub(super) use std::sync::{Mutex, RwLock};
}

pub use blocks::{BLOCK_UNIT, BLOCKS_MAX, BlockEvent, PortBlock};
pub use conn::{Conn, ConnId, EndsV4};
pub use event::{Event, EventKind, EventMask};
pub use expect::{Expectation, Expectations, Follow, MasterId, SourceMask, Unexpected};
pub use expected::{ExpectTuple, ExpectView};
pub use filter::{ConnFilter, Masked, NatFilter, Network, TupleFilter};
pub use helper::{Helper, Policy, REFUSED as REFUSED_HELPERS};
pub use homes::{Arrivals, Homes, Sent};
pub use list::{ConnView, Counter, StateView, TupleView, protocol_name};
pub use seqadj::SeqAdjust;
pub use settings::Settings;
pub use statistics::{Memory, Statistics};
pub use table::Candidate;
pub use template::{Template, Zone, ZoneDirection};
pub use text::LineOptions;
pub use tracker::{ConnCopy, ConnRef, Conntrack, Emigrant, FollowMaster, Manip, Tracked};
pub use tuple::{CtInfo, CtStatus, Direction, Tuple};
pub use xml::{XML_HEAD, XML_TAIL};
