//! The seam to a network card: [`Nic`], what set-up asks of one and changes on it, and [`KernelNic`], the real one.
//!
//! A `KernelNic` is bound to one interface of the namespace it was opened in and remembers nothing but who that is. What there is
//! of sysfs shows the namespace that mounted it, which need not be ours: it is used only while it shows this very interface.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::xdp::{Channels, Ethtool, Feature, FlowType, HashFields, Interface, Netdev, Rss, RssChange};

/// A number in sysfs that governs when a card's interrupts are taken as a call to work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knob {
    /// How often in a row an empty poll may pass before interrupts are switched on again.
    NapiDeferHardIrqs,
    /// For how long, in nanoseconds.
    GroFlushTimeout,
}

impl Knob {
    /// The file's name in `/sys/class/net/IF`.
    pub const fn file(self) -> &'static str {
        match self {
            Knob::NapiDeferHardIrqs => "napi_defer_hard_irqs",
            Knob::GroFlushTimeout => "gro_flush_timeout",
        }
    }
}

/// An interrupt that tells of a queue's packets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct QueueInterrupt {
    /// The queue.
    pub queue: u32,
    /// The interrupt's number, as in `/proc/irq`.
    pub irq: u32,
}

/// What set-up asks of a network card and changes on it. Errors are the kernel's.
#[allow(missing_docs)] // the names are those of [`Ethtool`]
pub trait Nic {
    /// The interface as it was when this was opened.
    fn interface(&self) -> &Interface;
    fn channels(&self) -> io::Result<Channels>;
    fn set_channels(&self, channels: &Channels) -> io::Result<()>;
    /// Queues that receive now.
    fn rx_queues(&self) -> u32;
    fn rss(&self) -> io::Result<Rss>;
    fn set_rss(&self, change: &RssChange<'_>) -> io::Result<()>;
    fn hash_fields(&self, flow: FlowType) -> io::Result<HashFields>;
    fn set_hash_fields(&self, flow: FlowType, fields: HashFields) -> io::Result<()>;
    fn features(&self) -> io::Result<Vec<Feature>>;
    fn set_feature(&self, name: &str, on: bool) -> io::Result<()>;
    /// The interrupts of the queues; none for a device that has none.
    fn interrupts(&self) -> Vec<QueueInterrupt>;
    /// The CPUs that an interrupt may go to, as the kernel writes them: `2,4-7`.
    fn affinity(&self, irq: u32) -> io::Result<String>;
    fn set_affinity(&self, irq: u32, cpus: &str) -> io::Result<()>;
    /// `NotFound` where sysfs does not show this interface.
    fn knob(&self, knob: Knob) -> io::Result<u64>;
    fn set_knob(&self, knob: Knob, value: u64) -> io::Result<()>;
}

/// See the module's head.
#[derive(Debug)]
pub struct KernelNic {
    interface: Interface,
    ethtool: Ethtool,
    /// Its folder in sysfs, when that shows our namespace.
    sysfs: Option<PathBuf>,
}

impl KernelNic {
    /// The interface `name` of this thread's network namespace.
    ///
    /// # Errors
    /// When there is none, or the kernel does not answer.
    pub fn open(name: &str) -> Result<KernelNic, crate::xdp::EdgeError> {
        let interface = Interface::read(name)?;
        let ethtool = Ethtool::open(name).map_err(|source| crate::xdp::EdgeError::System {
            doing: format!("ask the kernel about {name}"),
            source,
        })?;
        let sysfs = sysfs(&interface);
        Ok(KernelNic { interface, ethtool, sysfs })
    }

    /// Its folder in sysfs; `None` when that shows another namespace, or is not there.
    pub fn sysfs(&self) -> Option<&PathBuf> {
        self.sysfs.as_ref()
    }

    fn knob_path(&self, knob: Knob) -> io::Result<PathBuf> {
        Ok(self.sysfs.as_ref().ok_or(io::ErrorKind::NotFound)?.join(knob.file()))
    }
}

/// The interface's folder in sysfs, when the one of this name there is this very interface.
fn sysfs(interface: &Interface) -> Option<PathBuf> {
    let folder = PathBuf::from("/sys/class/net").join(&interface.name);
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let index = read("ifindex")?.trim().parse::<u32>().ok()?;
    let mac: Vec<u8> =
        read("address")?.trim().split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    (index == interface.ifindex && mac == interface.mac).then_some(folder)
}

/// The queue that an interrupt is for, by its name in `/proc/interrupts`. Drivers call them `eth0-TxRx-3`, `i40e-eth0-TxRx-3`,
/// `eth0-rx-3`, `virtio2-input.3`, `mlx5_comp3@pci:0000:01:00.0`; other interrupts of a card (link, mailbox) have no such word.
fn queue_of(name: &str) -> Option<u32> {
    const WORDS: [&str; 11] = ["txrx", "tx-rx", "rxtx", "rx", "tx", "input", "output", "comp", "queue", "fp", "q"];
    let name = name.split('@').next()?.to_ascii_lowercase();
    let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (head, number) = name.split_at(digits);
    let head = head.trim_end_matches(['-', '.', '_']);
    WORDS.iter().any(|word| head.ends_with(word)).then(|| number.parse().ok()).flatten()
}

/// The queues of a device's interrupts, by the last word of their lines in `/proc/interrupts`.
fn interrupts_in(text: &str, of_device: &[u32]) -> Vec<QueueInterrupt> {
    let mut found: Vec<QueueInterrupt> = text
        .lines()
        .filter_map(|line| {
            let (irq, rest) = line.trim_start().split_once(':')?;
            let irq = irq.parse().ok().filter(|irq| of_device.contains(irq))?;
            Some(QueueInterrupt { queue: queue_of(rest.split_whitespace().next_back()?)?, irq })
        })
        .collect();
    found.sort_unstable();
    found
}

impl Nic for KernelNic {
    fn interface(&self) -> &Interface {
        &self.interface
    }

    fn channels(&self) -> io::Result<Channels> {
        self.ethtool.channels()
    }

    fn set_channels(&self, channels: &Channels) -> io::Result<()> {
        self.ethtool.set_channels(channels)
    }

    fn rx_queues(&self) -> u32 {
        Interface::read(&self.interface.name).map_or(self.interface.rx_queues, |it| it.rx_queues)
    }

    fn rss(&self) -> io::Result<Rss> {
        self.ethtool.rss()
    }

    fn set_rss(&self, change: &RssChange<'_>) -> io::Result<()> {
        self.ethtool.set_rss(change)
    }

    fn hash_fields(&self, flow: FlowType) -> io::Result<HashFields> {
        self.ethtool.hash_fields(flow)
    }

    fn set_hash_fields(&self, flow: FlowType, fields: HashFields) -> io::Result<()> {
        self.ethtool.set_hash_fields(flow, fields)
    }

    fn features(&self) -> io::Result<Vec<Feature>> {
        self.ethtool.features()
    }

    fn set_feature(&self, name: &str, on: bool) -> io::Result<()> {
        self.ethtool.set_feature(name, on)
    }

    fn interrupts(&self) -> Vec<QueueInterrupt> {
        // The names know of transmit interrupts of their own, which the kernel's list of receive queues does not.
        let mut of_device = Vec::new();
        if let Some(sysfs) = &self.sysfs {
            // A virtio device's interrupts are those of the PCI device above it.
            for folder in ["device/msi_irqs", "device/../msi_irqs"] {
                let Ok(entries) = fs::read_dir(sysfs.join(folder)) else { continue };
                of_device.extend(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()));
                break;
            }
        }
        let named = interrupts_in(&fs::read_to_string("/proc/interrupts").unwrap_or_default(), &of_device);
        if !named.is_empty() {
            return named;
        }
        let queues = Netdev::open().and_then(|mut netdev| netdev.rx_queues(self.interface.ifindex)).unwrap_or_default();
        queues.into_iter().filter_map(|it| Some(QueueInterrupt { queue: it.queue, irq: it.irq? })).collect()
    }

    fn affinity(&self, irq: u32) -> io::Result<String> {
        Ok(fs::read_to_string(format!("/proc/irq/{irq}/smp_affinity_list"))?.trim().to_owned())
    }

    fn set_affinity(&self, irq: u32, cpus: &str) -> io::Result<()> {
        fs::write(format!("/proc/irq/{irq}/smp_affinity_list"), cpus)
    }

    fn knob(&self, knob: Knob) -> io::Result<u64> {
        let text = fs::read_to_string(self.knob_path(knob)?)?;
        text.trim().parse().map_err(|_| io::Error::other(format!("{} is {:?}", knob.file(), text.trim())))
    }

    fn set_knob(&self, knob: Knob, value: u64) -> io::Result<()> {
        fs::write(self.knob_path(knob)?, value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_read_from_the_names_of_interrupts() {
        for (name, queue) in [
            ("eth0-TxRx-3", Some(3)),
            ("i40e-enp1s0f0-TxRx-12", Some(12)),
            ("eth0-Tx-Rx-7", Some(7)),
            ("eth0-rx-1", Some(1)),
            ("virtio2-output.5", Some(5)),
            ("virtio2-input.0", Some(0)),
            ("mlx5_comp2@pci:0000:01:00.0", Some(2)),
            ("eth0-fp-2", Some(2)),
            ("ena-mgmnt@pci:0000:00:05.0", None),
            ("mlx5_async0@pci:0000:01:00.0", None),
            ("virtio2-config", None),
            ("virtio4-input", None),
            ("eth0", None),
            ("", None),
        ] {
            assert_eq!(queue_of(name), queue, "{name}");
        }
    }

    #[test]
    fn only_the_devices_own_interrupts_count() {
        let text = "            CPU0       CPU1\n  37: 0 0 PCI-MSIX-0000:00:03.0   0-edge      virtio2-config\n  \
                    39: 5 0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0\n  \
                    38: 0 69 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0\n  \
                    41: 1 0 PCI-MSIX-0000:00:04.0   1-edge      virtio3-input.0\nNMI: 0 0 Non-maskable interrupts\n";
        let of = |queue, irq| QueueInterrupt { queue, irq };
        assert_eq!(interrupts_in(text, &[37, 38, 39]), [of(0, 38), of(0, 39)]);
        assert_eq!(interrupts_in(text, &[]), []);
    }

    #[test]
    fn sysfs_counts_only_while_it_shows_the_same_interface() {
        let mut lo = Interface::read("lo").expect("every namespace has lo");
        let there = std::path::Path::new("/sys/class/net/lo/ifindex").exists();
        assert_eq!(sysfs(&lo).is_some(), there);
        lo.ifindex = 77;
        assert_eq!(sysfs(&lo), None);
        lo.ifindex = 1;
        lo.mac = [2, 0, 0, 0, 0, 1];
        assert_eq!(sysfs(&lo), None);
    }
}
