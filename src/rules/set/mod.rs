//! Sets: lists of addresses, nets, ports and the like that rules look into (`-m set`) and add to (`-j SET`), as the kernel's
//! ipset has them.
//!
//! A text, as `ipset save` prints it, is read line by line ([`parse`], [`element`]) into plain values ([`Sets`]). A [`SetTable`]
//! makes of them what packets are looked up in: [`hash`], [`bitmap`] and [`list`], by the three kinds of storage there are. A
//! [`Question`] is a packet with what a rule asks of it. The semantics are those of net/netfilter/ipset of Linux.
//!
//! Differences from Linux: `forceadd` always finds somebody to make way (Linux only where the hash has somebody in the same
//! bucket); elements that have expired are taken out when others are added, not by the clock; names are not resolved.

mod bitmap;
mod element;
mod entry;
mod extra;
mod handle;
mod hash;
mod header;
mod heap;
mod icmp;
mod key;
mod kind;
mod lengths;
mod list;
mod parse;
mod question;
mod reference;
mod save;
mod settled;
mod table;

#[cfg(test)]
mod tests;

pub use entry::Sets;
pub(super) use handle::NamedSet;
use parse::NAME_MAX;
pub(super) use question::{Compare, Question};
pub(super) use reference::{SetRef, check};
pub(super) use settled::TuplePacket;
pub(super) use table::SetCell;
pub use table::{SetSummary, SetTable};
