//! [`Engine`]: what a scenario runs on. Opened from a [`Script`]'s header, driven by its lines, dropped at its end.

use std::collections::BTreeMap;

use super::script::{Kind, Script};
use super::topology::{Neighbour, Port};

/// Something that forwards packets by rules: the kernel, the datapath, the simulator.
pub(crate) trait Engine {
    /// A frame arrives on `port`.
    fn inject(&mut self, port: Port, frame: &[u8]) -> Result<(), String>;

    /// Waits until a frame has come out of `port`, or nothing more will; for engines that do not know as soon as the injection
    /// returns.
    fn await_frame(&mut self, _: Port) -> Result<(), String> {
        Ok(())
    }

    /// Waits until everything that earlier injections cause at once is done; for the same.
    fn settle(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// By how many seconds a connection's time-out may be less than a scenario says.
    fn slack(&self) -> i64 {
        1
    }

    /// Frames that came out since the last call, oldest first within each port. After [`Engine::settle`] that is everything
    /// that earlier injections cause at once.
    fn output(&mut self) -> Result<Vec<(Port, Vec<u8>)>, String>;

    /// Time passes.
    fn advance(&mut self, ns: u64) -> Result<(), String>;

    /// The router learns a neighbour's MAC address, as if it had answered.
    fn learn(&mut self, neighbour: &Neighbour) -> Result<(), String>;

    /// Packets dropped so far, by reason; `None` when the engine does not say.
    fn drops(&self) -> Option<BTreeMap<String, u64>>;

    /// Frames handed to the host since the last call; `None` when the engine does not say.
    fn punted(&mut self) -> Option<Vec<Vec<u8>>>;

    /// The connection table, as `conntrack -L` prints it.
    fn conntrack(&mut self) -> Result<Vec<String>, String>;

    /// The filter table with counters, as `iptables-save -c` (`ip6tables-save -c`) prints it.
    fn counters(&mut self, v4: bool) -> Result<String, String>;

    /// Lines of the LOG target so far; `None` when the engine does not log where a test could read it.
    fn logs(&mut self) -> Option<Vec<String>>;
}

/// Opens the engine of this kind for a scenario.
pub(crate) fn open(kind: Kind, script: &Script) -> Result<Box<dyn Engine>, String> {
    match kind {
        Kind::Kernel => Ok(Box::new(super::kernel::Kernel::open(script)?)),
        Kind::Core => Ok(Box::new(super::ours::Core::open(script)?)),
        Kind::Sim => Ok(Box::new(super::ours::Sim::open(script)?)),
        Kind::Workers => Ok(Box::new(super::workers::Workers::open(script)?)),
        Kind::Wire => {
            Err("it lives on a network that is there before: super::wire::Site runs scenarios on it".to_owned())
        }
    }
}
