//! [`Facts`]: all that doctor looks at, as values; gathering them changes nothing on the machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::net::if_::InterfaceFlags;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::Pid;

use crate::control::config::DEFAULT_STATE;
use crate::control::netlink::sysctl::kernel_forwarding;
use crate::control::nic::{self, KernelNic, Nic, NicRss};
use crate::control::startup::{self, Failure};
use crate::snapshot::KernelForwarding;
use crate::xdp::{self, AttachedProgram, Channels, Feature, Interface, Netdev, Rings, XdpFeatures};

/// Huge pages of 2 MiB.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HugePages {
    /// Reserved.
    pub total: u64,
    /// Of these, free.
    pub free: u64,
}

/// What the kernel's FORWARD chain does with what no rule decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// It passes, or there is no such chain.
    Accept,
    /// It is dropped.
    Drop,
    /// iptables-save(8) did not say.
    Unknown,
}

/// A note of a router on network cards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leftover {
    /// Its interfaces.
    pub interfaces: Vec<String>,
    /// Its process.
    pub pid: u32,
    /// Whether that runs.
    pub runs: bool,
}

/// What was seen of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Card {
    /// The interface.
    pub interface: Interface,
    /// Whether it is Ethernet.
    pub ethernet: bool,
    /// Its queues; `None` where the driver does not tell.
    pub channels: Option<Channels>,
    /// Its own rings; `None` where the driver does not tell.
    pub rings: Option<Rings>,
    /// What the kernel says of XDP; `None` before Linux 6.3.
    pub xdp: Option<XdpFeatures>,
    /// The XDP program on it.
    pub program: Option<AttachedProgram>,
    /// Its features.
    pub features: Vec<Feature>,
    /// How it spreads packets.
    pub rss: NicRss,
    /// The NUMA node it is at; `None` where there is none, or sysfs shows another namespace.
    pub node: Option<i32>,
    /// The CPUs of that node, as the kernel writes them.
    pub local_cpus: String,
}

/// What was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The kernel's release, such as `6.12.9-amd64`.
    pub release: String,
    /// What lacks for AF_XDP and for privileges, in the words of a start.
    pub lacking: Vec<String>,
    /// Whether the kernel has BTF of itself.
    pub btf: bool,
    /// `net.core.bpf_jit_enable`; `None` where there is no such setting.
    pub jit: Option<u32>,
    /// CPUs that this process may use.
    pub cpus: Vec<usize>,
    /// How many workers there are to be.
    pub workers: u32,
    /// Whether somebody said how many.
    pub workers_asked: bool,
    /// Isolated CPUs as the kernel writes them; empty for none.
    pub isolated: String,
    /// CPUs without a tick; empty for none.
    pub nohz_full: String,
    /// Frequency governors: how many CPUs have which. Empty where the kernel does not govern.
    pub governors: BTreeMap<String, usize>,
    /// Flaws of the processor that the kernel works around at a price.
    pub mitigations: Vec<String>,
    /// Huge pages; `None` where the kernel has none of 2 MiB.
    pub huge_pages: Option<HugePages>,
    /// Bytes of memory that may be locked; `None` for no limit.
    pub memlock: Option<u64>,
    /// Whether the kernel forwards by itself.
    pub forwarding: KernelForwarding,
    /// What its FORWARD chains do then, for IPv4 and IPv6.
    pub policies: [Policy; 2],
    /// Routers that run, or were killed.
    pub routers: Vec<Leftover>,
    /// Notes that could not be read.
    pub unreadable: Vec<String>,
    /// Whether irqbalance runs.
    pub irqbalance: bool,
    /// NUMA nodes.
    pub nodes: usize,
    /// The folder of the notes, when it is not the usual one.
    pub state: Option<String>,
    /// The interfaces.
    pub cards: Vec<Card>,
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

impl Facts {
    /// Looks at the machine and at the interfaces `names`, or all Ethernet ones of this network namespace that are up; `workers` is
    /// how many there are to be, if that is known, and `state` the folder of the notes of what was changed.
    ///
    /// # Errors
    /// When an interface named is not there, or none is.
    pub fn gather(names: &[&str], workers: Option<u32>, state: &Path) -> Result<Facts, Failure> {
        let cards = cards(names)?;
        let cpus = sched_getaffinity(Pid::this())
            .map_err(|error| Failure::Running(format!("cannot read this process's CPU affinity: {error}")))?;
        let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu).unwrap_or(false)).collect();
        let lacking = [startup::check_kernel(), startup::check_privileges()];
        let lacking = lacking.into_iter().filter_map(Result::err).map(|failure| failure.message().to_owned());
        let (routers, unreadable) = routers(state);
        let possible = cards.iter().map(most_queues).min().unwrap_or(1).min(cpus.len().saturating_sub(1) as u32).max(1);
        Ok(Facts {
            release: text("/proc/sys/kernel/osrelease"),
            lacking: lacking.collect(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            jit: text("/proc/sys/net/core/bpf_jit_enable").parse().ok(),
            workers: workers.unwrap_or(possible),
            workers_asked: workers.is_some(),
            cpus,
            isolated: text("/sys/devices/system/cpu/isolated"),
            nohz_full: text("/sys/devices/system/cpu/nohz_full").replace("(null)", ""),
            governors: governors(),
            mitigations: mitigations(),
            huge_pages: huge_pages(),
            memlock: memlock(),
            forwarding: kernel_forwarding(),
            policies: ["iptables-save", "ip6tables-save"].map(policy),
            routers,
            unreadable,
            irqbalance: nic::runs("irqbalance"),
            nodes: count_nodes(),
            state: (state != Path::new(DEFAULT_STATE)).then(|| state.display().to_string()),
            cards,
        })
    }
}

/// The most queues that a card could receive on.
fn most_queues(card: &Card) -> u32 {
    card.channels.map_or(card.interface.rx_queues, |channels| channels.most().max(card.interface.rx_queues))
}

fn cards(names: &[&str]) -> Result<Vec<Card>, Failure> {
    let failed = |error| Failure::Running(format!("cannot list the interfaces: {error}"));
    let mut hardware: BTreeMap<String, (u16, bool)> = BTreeMap::new();
    for it in nix::ifaddrs::getifaddrs().map_err(failed)? {
        if let Some(address) = it.address.as_ref().and_then(|address| address.as_link_addr()) {
            hardware.insert(it.interface_name, (address.hatype(), it.flags.contains(InterfaceFlags::IFF_UP)));
        }
    }
    const ETHER: u16 = 1;
    let all: Vec<&str> = match names.is_empty() {
        true => hardware.iter().filter(|(_, it)| **it == (ETHER, true)).map(|(name, _)| name.as_str()).collect(),
        false => names.to_vec(),
    };
    if all.is_empty() {
        return Err(Failure::Machine("no Ethernet interface is up (`ip link` lists them)".to_owned()));
    }
    for name in &all {
        if !hardware.contains_key(*name) {
            let known: Vec<_> = hardware.keys().map(String::as_str).collect();
            return Err(Failure::Usage(format!("there is no interface {name}. This host has {}", known.join(", "))));
        }
    }
    all.into_iter().map(|name| card(name, hardware.get(name).is_some_and(|(kind, _)| *kind == ETHER))).collect()
}

fn card(name: &str, ethernet: bool) -> Result<Card, Failure> {
    let nic = KernelNic::open(name)?;
    let interface = nic.interface().clone();
    let of_device = |file: &str| nic.sysfs().map(|folder| text(folder.join("device").join(file))).unwrap_or_default();
    // A virtio device's node is that of the PCI device above it.
    let read = |file: &str| {
        Some(of_device(file)).filter(|it| !it.is_empty()).unwrap_or_else(|| of_device(&format!("../{file}")))
    };
    Ok(Card {
        ethernet,
        channels: nic.channels().ok(),
        rings: xdp::Ethtool::open(name).and_then(|ethtool| ethtool.rings()).ok(),
        xdp: Netdev::open().and_then(|mut netdev| netdev.xdp_features(interface.ifindex)).ok(),
        program: xdp::attached_program(interface.ifindex),
        features: nic.features().unwrap_or_default(),
        rss: NicRss::read(&nic),
        node: read("numa_node").parse().ok().filter(|node| *node >= 0),
        local_cpus: read("local_cpulist"),
        interface,
    })
}

fn governors() -> BTreeMap<String, usize> {
    let mut governors = BTreeMap::new();
    let Ok(cpus) = fs::read_dir("/sys/devices/system/cpu") else { return governors };
    for cpu in cpus.flatten() {
        let governor = text(cpu.path().join("cpufreq/scaling_governor"));
        if !governor.is_empty() {
            *governors.entry(governor).or_insert(0) += 1;
        }
    }
    governors
}

fn mitigations() -> Vec<String> {
    let Ok(flaws) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else { return Vec::new() };
    let mitigated = flaws.flatten().filter(|flaw| text(flaw.path()).starts_with("Mitigation"));
    let mut names: Vec<String> = mitigated.map(|flaw| flaw.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn huge_pages() -> Option<HugePages> {
    let folder = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB");
    let number = |file: &str| text(folder.join(file)).parse().ok();
    Some(HugePages { total: number("nr_hugepages")?, free: number("free_hugepages")? })
}

/// CAP_IPC_LOCK stands above the limit.
fn memlock() -> Option<u64> {
    const CAP_IPC_LOCK: u32 = 14;
    let status = text("/proc/thread-self/status");
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    if effective.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1) {
        return None;
    }
    getrlimit(Resource::RLIMIT_MEMLOCK).ok().map(|(soft, _)| soft).filter(|soft| *soft != RLIM_INFINITY)
}

/// The policy of FORWARD in what the tool saves. Without `-t` it makes no table that is not there.
fn policy(tool: &str) -> Policy {
    let output = Command::new(tool).stdin(Stdio::null()).stderr(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => policy_in(&String::from_utf8_lossy(&output.stdout)),
        _ => Policy::Unknown,
    }
}

pub(super) fn policy_in(saved: &str) -> Policy {
    let filter = saved.lines().skip_while(|line| *line != "*filter").take_while(|line| *line != "COMMIT");
    match filter.into_iter().find_map(|line| line.strip_prefix(":FORWARD ")) {
        Some(policy) if policy.starts_with("DROP") => Policy::Drop,
        _ => Policy::Accept,
    }
}

fn routers(folder: &Path) -> (Vec<Leftover>, Vec<String>) {
    let (mut routers, mut unreadable) = (Vec::new(), Vec::new());
    match nic::all_here(folder) {
        Err(error) => unreadable.push(format!("{}: {error}", folder.display())),
        Ok(states) => {
            for (path, state) in states {
                match state {
                    Err(error) => unreadable.push(format!("{}: {error}", path.display())),
                    Ok(state) => routers.push(Leftover {
                        interfaces: state.interfaces.iter().map(|known| known.name.clone()).collect(),
                        pid: state.owner.pid,
                        runs: state.owner.runs(),
                    }),
                }
            }
        }
    }
    (routers, unreadable)
}

fn count_nodes() -> usize {
    let Ok(entries) = fs::read_dir("/sys/devices/system/node") else { return 1 };
    let is_node = |name: &str| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok());
    entries.flatten().filter(|entry| is_node(&entry.file_name().to_string_lossy())).count().max(1)
}
