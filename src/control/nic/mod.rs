//! The network cards: set up at the start, given back at the end, and after a crash by the next start or by `xrouter cleanup`.
//!
//! [`take`] comes before the edge is opened, [`Cards::attached`] after, [`Cards::detaching`] before the program goes and
//! [`Cards::give_back`] when the sockets are gone (dropping [`Cards`] does the same). What is changed, and in which order, is in
//! [`Setup`]; the note of it on disk is [`State`]; how the cards spread packets afterwards is [`NicRss`]. Promiscuity is never
//! touched.

use std::fs;
use std::io;
use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

mod change;
mod cleanup;
mod device;
mod rss;
mod setup;
mod state;
#[cfg(test)]
mod tests;

pub use change::{Change, Setting, Undone, Value};
pub use cleanup::{Cleaned, cleanup};
pub use device::{KernelNic, Knob, Nic, QueueInterrupt};
pub use rss::{NicRss, SYMMETRIC_KEY, function_name, is_symmetric};
pub use setup::{HARMFUL, Setup, Told, Wish, wanted_channels};
pub use state::{Known, Owner, State, all_here};

use super::config::{Config, NicSetup, Poll};
use super::startup::Failure;
use crate::device::PortId;
use crate::xdp::Edge;

/// The cards of a run. See the module's head.
#[derive(Debug)]
pub struct Cards {
    setup: Setup<KernelNic>,
    wish: Wish,
    /// Whether anything may be changed.
    change: bool,
    given_back: bool,
}

/// Undoes what a run that crashed has left, and makes the cards ready for the XDP program. `cores` are the workers'.
///
/// # Errors
/// When another xrouter has one of the interfaces, or one of them is not there.
pub fn take(config: &Config, cores: &[usize]) -> Result<Cards, Failure> {
    let names = [config.lan.as_str(), config.wan.as_str()];
    let left = cleanup::leftover(&config.state, &names)?;
    log(&left.said, &left.lost);
    let nics = names.into_iter().map(KernelNic::open).collect::<Result<Vec<_>, _>>()?;
    let known = nics.iter().map(|nic| Known::of(nic.interface())).collect();
    let mut state = State::new(known).map_err(|error| Failure::Running(format!("cannot read /proc: {error}")))?;
    state.inherit(&config.state);
    let mut setup = Setup::new(nics, state, &config.state);
    let wish =
        Wish { cores: cores.to_vec(), others: others(cores), busy: config.poll == Poll::Busy, possible: possible() };
    let mut change = config.nic_setup == NicSetup::Auto;
    if let Err(error) = setup.own() {
        warn_unnoted(&config.state, &error);
        change = false;
    }
    if change && let Err(error) = setup.before_attach(&wish) {
        warn_unnoted(&config.state, &error);
        change = false;
    }
    let mut cards = Cards { setup, wish, change, given_back: false };
    cards.tell();
    Ok(cards)
}

fn warn_unnoted(folder: &Path, error: &io::Error) {
    tracing::warn!(
        "cannot note in {} what is changed on the network cards ({error}): they are left as they are. `--state DIR` names \
         another folder",
        folder.display()
    );
}

/// CPUs that this machine could have; 1 when the kernel does not say.
fn possible() -> u32 {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    list.trim()
        .rsplit(['-', ','])
        .next()
        .and_then(|last| last.parse::<u32>().ok())
        .map_or(1, |last| last.saturating_add(1))
}

/// CPUs of this process that no worker has.
fn others(cores: &[usize]) -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(Pid::this()) else { return Vec::new() };
    (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false) && !cores.contains(cpu)).collect()
}

fn log(said: &[String], lost: &[String]) {
    for line in said {
        tracing::info!("{line}");
    }
    for line in lost {
        tracing::warn!("{line}");
    }
}

impl Cards {
    fn tell(&mut self) {
        log(&std::mem::take(&mut self.setup.said), &std::mem::take(&mut self.setup.lost));
    }

    /// The rest, once the program is attached and the sockets are bound; and how the cards spread packets then, by [`PortId`].
    ///
    /// # Errors
    /// When packets can arrive on a queue that no worker reads.
    pub fn attached(&mut self, edge: &Edge) -> Result<[NicRss; PortId::COUNT], Failure> {
        let ports = &edge.report().ports;
        if self.change {
            let hooks = ports.each_ref().map(|port| port.hook);
            if let Err(error) = self.setup.after_attach(&self.wish, &hooks) {
                tracing::warn!("the network cards stay as they are: what is changed cannot be noted: {error}");
            }
            warn_of_irqbalance(self.setup.changes());
        }
        self.tell();
        let spreading = self.setup.spreading();
        for (rss, port) in spreading.iter().zip(ports) {
            unread(rss, port.queues).map_or(Ok(()), |what| Err(Failure::Machine(what)))?;
        }
        Ok(<[NicRss; PortId::COUNT]>::try_from(spreading).expect("one for each port"))
    }

    /// Gives back what was set after the program was attached. To be called before it goes.
    pub fn detaching(&mut self) {
        self.setup.undo_after_attach();
        self.tell();
    }

    /// Gives all back, once program and sockets are gone.
    pub fn give_back(mut self) {
        self.undo();
    }

    fn undo(&mut self) {
        if !std::mem::replace(&mut self.given_back, true) {
            self.setup.undo();
            self.tell();
        }
    }
}

impl Drop for Cards {
    fn drop(&mut self) {
        self.undo();
    }
}

/// What is wrong when packets can arrive on queues beyond the first `read`.
fn unread(rss: &NicRss, read: u32) -> Option<String> {
    let NicRss { interface, queues, .. } = rss;
    let named = rss.rss.as_ref().ok().and_then(|rss| rss.table.iter().max()).map_or(0, |queue| queue + 1);
    if *queues > read {
        return Some(format!(
            "{interface} has {queues} receive queues, and {read} of them are read: packets on the others would be lost. \
             Do: ethtool -L {interface} combined {read}"
        ));
    }
    (named > read).then(|| {
        format!(
            "the RSS table of {interface} names queue {}, and only the first {read} are read: packets there would be lost. \
             Do: ethtool -X {interface} equal {read}",
            named - 1
        )
    })
}

/// irqbalance moves interrupts where it thinks fit.
fn warn_of_irqbalance(changes: &[Change]) {
    let irqs: Vec<String> = changes
        .iter()
        .filter_map(|change| match change.setting {
            Setting::Affinity(irq) => Some(format!("--banirq={irq}")),
            _ => None,
        })
        .collect();
    if !irqs.is_empty() && runs("irqbalance") {
        tracing::warn!(
            "irqbalance runs, and will move the interrupts away from where they were led: stop it, or start it with {}",
            irqs.join(" ")
        );
    }
}

/// Whether a process of this name runs.
pub fn runs(name: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let comm = |path: &Path| fs::read_to_string(path.join("comm")).unwrap_or_default();
    processes.flatten().any(|entry| comm(&entry.path()).trim() == name)
}
