//! **xrouter**: the forwarding path of a Linux gateway in user space, over AF_XDP.
//!
//! The modules stand in the order a packet meets them; imports point up this list only (`tests/tidy.rs` holds it, and
//! `docs/ARCHITECTURE.md` explains it). `datapath::process` is the file to read first.

pub mod arch;
pub mod schedule;
pub mod time;
pub mod wire;

pub mod verdict;

pub mod device;

pub mod xdp;

pub mod packet;
pub mod rewrite;
pub mod steering;

pub mod conntrack;

pub mod rules;

pub mod nat;

pub mod route;

pub mod reply;

pub mod snapshot;

pub mod datapath;

pub mod worker;

pub mod control;

pub mod sim;

pub mod cli;
