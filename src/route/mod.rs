//! Where a packet goes: routes, next hops, neighbours and the host's addresses, as the Linux kernel would decide.
//!
//! [`RouteTable`] holds routes as the kernel has them and is changed by the control thread. [`Tables`] is compiled from
//! it: immutable, shared with the workers, read without allocation. [`crate::snapshot::Routing`] puts them together with
//! the ports.
//!
//! What Linux does and this does not: rules beyond the three the kernel starts with (`ip rule`), routes for a type of
//! service or from a source prefix, and encapsulating routes. The netlink mirror warns about each.

mod fib;
mod neighbor;
mod nexthop;
mod prefix;
mod source;
mod table;

pub use fib::{Entry as FibEntry, Fib, Key as FibKey, MAX_VALUE as FIB_MAX_VALUE};
pub use neighbor::{Neighbour, NeighbourTable};
pub use nexthop::{Action, Hop, Hops, Kind, Link, Route};
pub use prefix::Prefix;
pub use source::{HostAddress, SCOPE_LINK, SCOPE_UNIVERSE, select_v4, select_v6};
pub(crate) use table::ReversePath;
pub use table::{Change, RouteEntry, RouteTable, Table, Tables};

/// Two words to one, all bits of both in all bits of the result (the folded multiplication of wyhash).
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0xa076_1d64_78bd_642f) * u128::from(b ^ 0xe703_7ed1_a0b4_28db);
    (product >> 64) as u64 ^ product as u64
}
