//! The control thread's rooms: configuration, what start-up checks and says, the kernel's routes and neighbours, the
//! counters as values, the control socket, and the metrics page. Nothing here touches a packet; workers answer through a
//! mailbox. [`daemon::run`] is a whole run.

pub mod api;
pub mod backend;
pub mod change;
pub mod config;
pub mod crew;
pub mod daemon;
pub mod doctor;
pub mod explain;
pub mod host;
pub mod metrics;
pub mod netlink;
pub mod nflog;
pub mod nic;
pub mod reload;
pub mod sources;
pub mod startup;
pub mod stats;
pub mod sysctl;
pub mod table_full;
pub mod trace;
