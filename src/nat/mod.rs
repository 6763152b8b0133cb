//! Address translation: which address and port a new connection is given ([`bind`], [`bind_null`]).
//!
//! As nf_nat_core.c, step by step, so that the same rules give the same translation wherever Linux leaves no choice to
//! chance. It works on the one connection that connection tracking holds prepared: nothing is translated once a connection
//! is confirmed. Rewriting packets is `rewrite`'s affair, when to ask the rules the datapath's.
//!
//! `address` picks from a range of addresses, `ports` from a range of ports.
//!
//! Differences from Linux, all wanted:
//! - Of the connections that a source has already, the 64 youngest are looked at for its mapping; Linux looks at all.
//! - The mirror image of a connection that two processors see at once (`nf_nat_used_tuple_new`) cannot arise: there is one.

mod address;
mod bind;
mod ports;

pub use bind::{Random, bind, bind_again, bind_null, bind_opened};
