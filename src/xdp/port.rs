//! Opening the two ports: which mode works on them, and which worker gets which of their queues.
//!
//! A mode is tried whole: the program attached to both ports, a umem, a socket on every receive queue of both. Either all
//! of it works, or all of it is undone and the next mode is tried; an attachment that the next mode can use stays, because
//! attaching resets some network cards.

use super::chain::{PARTS_MAX, frames_needed};
use super::program::{Attachment, Hook, Program};
use super::quirks;
use super::socket::{Binding, XdpQueue, bind_error, patiently};
use super::umem::{HEADROOM, Owner, Umem};
use super::{EdgeConfig, EdgeError, EdgeReport, Interface, MAX_PUNTERS, MAX_QUEUES, Mode, Netdev, WorkerQueues};
use crate::device::{Device, FramePool, PortId};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long a busy queue is tried again: the kernel frees it some time after its last owner has gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for the anchor, which can be done without: another xrouter in the namespace may hold its place for good.
const ANCHOR_PATIENCE: Duration = Duration::from_secs(3);
/// The kernel's number for "operation not supported" where POSIX has none. Some drivers answer with it.
const ENOTSUPP: i32 = 524;
/// Bytes of a huge page.
const HUGE_PAGE: u32 = 2 << 20;
/// Bytes that a frame has beyond its interface's MTU, at most: Ethernet's header, two VLAN tags, and the checksum that some cards
/// leave there. The kernel counts so when a zero-copy socket is bound.
pub const LAYER2: u32 = 26;
/// Large frames of a worker, where there are any: for a batch of 64, what waits for sending (512), and what waits for neighbours.
const LARGE_FRAMES: usize = 1024;
/// Bytes that a packet may grow in a large frame (helpers that rewrite addresses in it).
const GROWTH: u32 = 256;

/// What was opened of one port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortReport {
    /// The interface.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// Where the program hangs.
    pub hook: Hook,
    /// Receive queues, each with a socket.
    pub queues: u32,
    /// Whether the kernel says that the sockets don't copy.
    pub zero_copy: bool,
}

/// Reads both interfaces and checks that they can be ports.
pub(super) fn interfaces(config: &EdgeConfig) -> Result<[Interface; PortId::COUNT], EdgeError> {
    let [lan, wan] = &config.ports;
    let interfaces = [Interface::read(lan)?, Interface::read(wan)?];
    if interfaces[0].ifindex == interfaces[1].ifindex {
        return Err(EdgeError::SameInterface { name: lan.clone() });
    }
    for interface in &interfaces {
        if interface.loopback {
            return Err(EdgeError::setting(format!("{} is the loopback: it can't be a port", interface.name)));
        }
        if !interface.up {
            return Err(EdgeError::Down { name: interface.name.clone() });
        }
    }
    Ok(interfaces)
}

/// Checks that every worker gets a queue of each port.
pub(super) fn check_queues(config: &EdgeConfig, interfaces: &[Interface]) -> Result<(), EdgeError> {
    if config.workers == 0 || config.workers > MAX_PUNTERS {
        return Err(EdgeError::setting(format!("{} workers: 1 to {MAX_PUNTERS} are possible", config.workers)));
    }
    for interface in interfaces {
        let (name, queues) = (&interface.name, interface.rx_queues);
        if queues > MAX_QUEUES {
            return Err(EdgeError::setting(format!(
                "{name} has {queues} receive queues, more than {MAX_QUEUES}: `ethtool -L {name} combined {MAX_QUEUES}`"
            )));
        }
        if config.workers > queues as usize {
            return Err(EdgeError::setting(format!(
                "{} workers need as many receive queues, {name} has {queues}: \
                 fewer workers, or `ethtool -L {name} combined {}` if it can",
                config.workers, config.workers
            )));
        }
    }
    Ok(())
}

/// Attached and bound, but with empty rings: no packet moves yet.
#[derive(Debug)]
pub(super) struct Opened {
    mode: Mode,
    refused: Vec<String>,
    /// As they are with the program attached.
    interfaces: [Interface; PortId::COUNT],
    // The order matters on drop: off the interfaces first, then the sockets, then the umem.
    attachments: Vec<Attachment>,
    queues: Vec<XdpQueue>,
    umem: Arc<Umem>,
    anchored: bool,
    /// Bytes of a large frame, if there are any.
    large: Option<u32>,
}

/// What the workers will own.
#[derive(Debug)]
pub(super) struct Shared {
    pub attachments: Vec<Attachment>,
    pub queues: Vec<WorkerQueues>,
    pub umem: Arc<Umem>,
}

/// Attaches and binds in the mode asked for, or in the best that works.
pub(super) fn open(
    config: &EdgeConfig,
    interfaces: &[Interface; PortId::COUNT],
    program: &Program,
    large: Option<u32>,
) -> Result<Opened, EdgeError> {
    let tried: &[Mode] = match config.mode {
        Mode::Auto => &[Mode::ZeroCopy, Mode::Copy, Mode::Generic],
        Mode::ZeroCopy => &[Mode::ZeroCopy],
        Mode::Copy => &[Mode::Copy],
        Mode::Generic => &[Mode::Generic],
    };
    let mut attachments: Vec<Attachment> = Vec::new();
    let mut refused = Vec::new();
    for mode in tried {
        let hook = if *mode == Mode::Generic { Hook::Generic } else { Hook::Native };
        if hook == Hook::Generic {
            program.seal_punts();
        }
        match attach(program, interfaces, hook, &mut attachments)? {
            Err(reason) => refused.push(format!("{mode}: {reason}")),
            Ok(()) => {
                // Drivers may have other queues now than before.
                let [lan, wan] = interfaces;
                let interfaces = [Interface::read(&lan.name)?, Interface::read(&wan.name)?];
                check_queues(config, &interfaces)?;
                if *mode == Mode::ZeroCopy
                    && let Some(grown) = grown([lan, wan], &interfaces)
                {
                    refused.push(format!("{mode}: {grown}"));
                    continue;
                }
                // Generic mode is the last: rather without long packets than not at all.
                let lengths = if *mode == Mode::Generic && large.is_some() { &[large, None][..] } else { &[large] };
                for large in lengths {
                    match bind_all(config, &interfaces, *mode, *large)? {
                        Err(reason) => refused.push(format!("{mode}: {reason}")),
                        Ok((umem, queues, anchored)) => {
                            let (mode, large) = (*mode, *large);
                            return Ok(Opened {
                                mode,
                                refused,
                                interfaces,
                                attachments,
                                queues,
                                umem,
                                anchored,
                                large,
                            });
                        }
                    }
                }
            }
        }
    }
    refused.dedup();
    Err(EdgeError::Refused { mode: config.mode, reasons: refused })
}

/// Attaches the program to both ports at `hook`, keeping what is attached there already. The inner error is a sentence
/// why this hook is not to be had; the outer one ends the start.
fn attach(
    program: &Program,
    interfaces: &[Interface],
    hook: Hook,
    attachments: &mut Vec<Attachment>,
) -> Result<Result<(), String>, EdgeError> {
    if attachments.len() == interfaces.len() && attachments.iter().all(|attachment| attachment.hook() == hook) {
        return Ok(Ok(()));
    }
    attachments.clear();
    for interface in interfaces {
        match program.attach(interface, hook) {
            Ok(attachment) => attachments.push(attachment),
            Err(EdgeError::System { source, .. }) if hook == Hook::Native => {
                attachments.clear();
                return Ok(Err(native_refusal(interface, &source)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Ok(()))
}

fn native_refusal(interface: &Interface, error: &io::Error) -> String {
    let (name, driver) = (&interface.name, driver(interface));
    let most = quirks::of(&interface.driver).mtu.map_or(String::new(), |mtu| format!(" (its driver takes {mtu})"));
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | ENOTSUPP) => format!("the driver of {name}{driver} has no native XDP"),
        Some(libc::EINVAL | libc::ERANGE | libc::EFBIG) => format!(
            "the driver of {name}{driver} refuses XDP with its present settings ({error}): \
             its MTU of {} may be too large{most}, or LRO or GRO-HW be on",
            interface.mtu
        ),
        Some(libc::ENOMEM | libc::ENOSPC) => {
            format!("the driver of {name}{driver} has no rings or memory left for XDP ({error}): fewer queues may help")
        }
        _ => format!("native XDP on {name}{driver}: {error}"),
    }
}

/// Why there can be no zero-copy on a driver whose queues are more with the program than `before`.
fn grown(before: [&Interface; PortId::COUNT], now: &[Interface; PortId::COUNT]) -> Option<String> {
    let grew = |(before, now): &(&Interface, &Interface)| {
        quirks::of(&now.driver).spare_queues && now.rx_queues > before.rx_queues
    };
    let (before, now) = before.into_iter().zip(now).find(grew)?;
    let (name, driver, had, has) = (&now.name, driver(now), before.rx_queues, now.rx_queues);
    Some(format!(
        "the driver of {name}{driver} has {has} receive queues with the program and {had} without, and kernels crash \
         when those are \
         given back after zero-copy: `ethtool -L {name} combined {has}` before the start"
    ))
}

fn driver(interface: &Interface) -> String {
    if interface.driver.is_empty() { String::new() } else { format!(" ({})", interface.driver) }
}

type Bound = (Arc<Umem>, Vec<XdpQueue>, bool);

/// Binds a socket to every queue of both ports. The inner error is a sentence why the mode is not to be had.
fn bind_all(
    config: &EdgeConfig,
    interfaces: &[Interface],
    mode: Mode,
    large: Option<u32>,
) -> Result<Result<Bound, String>, EdgeError> {
    let frame_size = frame_size(config, interfaces, mode);
    if large.is_some()
        && let Some(reason) = takes_no_long_packets(interfaces, mode)
    {
        return Ok(Err(reason));
    }
    if mode == Mode::ZeroCopy
        && large.is_some()
        && let Some(reason) = too_long_for_zero_copy(config, interfaces, frame_size)
    {
        return Ok(Err(reason));
    }
    if mode == Mode::ZeroCopy
        && frame_size < 4096
        && let Some(cuts) = interfaces.iter().find(|interface| quirks::of(&interface.driver).large_frames)
    {
        let (name, driver) = (&cuts.name, driver(cuts));
        return Ok(Err(format!("the driver of {name}{driver} cuts packets in two with frames of {frame_size} bytes")));
    }
    let sockets: u32 = interfaces.iter().map(|interface| interface.rx_queues).sum();
    // Whole huge pages, whether there are any or not.
    let count = frames(config, sockets)?.next_multiple_of(HUGE_PAGE / frame_size.max(1));
    let (umem, anchored) = umem(config, count, frame_size, mode, large.is_some())?;
    let mut queues = Vec::with_capacity(sockets as usize);
    for (port, interface) in PortId::ALL.into_iter().zip(interfaces) {
        for queue in 0..interface.rx_queues {
            let binding = Binding {
                port,
                name: &interface.name,
                queue,
                number: queues.len() as u16,
                first: (queues.is_empty() && !anchored).then_some(mode),
                large: large.is_some(),
                rx_size: config.rx_ring,
                tx_size: config.tx_ring,
                busy_poll: config.busy_poll,
            };
            match patiently(PATIENCE, || XdpQueue::bind(&umem, &binding)) {
                Ok(socket) => queues.push(socket),
                Err(error) if mode == Mode::ZeroCopy && is_refusal(&error) => {
                    return Ok(Err(zero_copy_refusal(interface, &error)));
                }
                Err(error) if large.is_some() && error.raw_os_error() == Some(libc::EINVAL) => {
                    return Ok(Err(format!(
                        "queue {queue} of {} takes no packets of several frames: {error}",
                        interface.name
                    )));
                }
                Err(error) => return Err(bind_error(&binding, error)),
            }
        }
    }
    debug_assert!(queues.len() < usize::from(Owner::SOCKETS));
    if mode == Mode::ZeroCopy
        && let Some(copying) = queues.iter().find(|queue| !queue.zero_copy())
    {
        return Ok(Err(format!("the kernel bound {} in zero-copy mode, but copies", copying.name())));
    }
    Ok(Ok((umem, queues, anchored)))
}

/// A umem, and whether it hangs on an anchor. Zero-copy is what the first socket makes it, so that has to be a port's.
fn umem(
    config: &EdgeConfig,
    count: u32,
    frame_size: u32,
    mode: Mode,
    large: bool,
) -> Result<(Arc<Umem>, bool), EdgeError> {
    let new = || Umem::new(count, frame_size, config.rx_ring, config.tx_ring);
    let umem = new()?;
    if mode == Mode::ZeroCopy {
        return Ok((Arc::new(umem), false));
    }
    if patiently(ANCHOR_PATIENCE, || umem.anchor(large)).is_ok() {
        return Ok((Arc::new(umem), true));
    }
    // libxdp has given the failed socket's small rings to the umem: it can't be used for another.
    drop(umem);
    Ok((Arc::new(new()?), false))
}

/// Whether the error is the driver's no to zero-copy. (virtio without an IOMMU says EINVAL.)
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | ENOTSUPP | libc::EINVAL | libc::ENOMEM | libc::ENOSPC))
}

fn zero_copy_refusal(interface: &Interface, error: &io::Error) -> String {
    let (name, driver) = (&interface.name, driver(interface));
    match (error.raw_os_error(), quirks::of(&interface.driver).zero_copy_needs) {
        (Some(libc::EOPNOTSUPP | ENOTSUPP), _) => format!("the driver of {name}{driver} has no zero-copy"),
        (Some(libc::EINVAL), Some(needs)) => {
            format!("the driver of {name}{driver} has no zero-copy on this device: it needs {needs}")
        }
        _ => format!("the driver of {name}{driver} refuses zero-copy: {error}"),
    }
}

/// The frame size to use: what was asked for, or 4096 where a driver or MTU needs it, else 2048.
fn frame_size(config: &EdgeConfig, interfaces: &[Interface], mode: Mode) -> u32 {
    if config.frame_size != 0 {
        return config.frame_size;
    }
    let needs_more = |interface: &Interface| {
        interface.mtu + LAYER2 > 2048 - HEADROOM as u32
            || mode == Mode::ZeroCopy && quirks::of(&interface.driver).large_frames
    };
    if interfaces.iter().any(needs_more) { 4096 } else { 2048 }
}

/// The longest packet that one frame takes, in bytes with its Ethernet header.
fn room(frame_size: u32) -> u32 {
    frame_size - HEADROOM as u32
}

/// The largest MTU of a port at which a packet is one frame: of the largest size that may be chosen, and of one buffer of a
/// driver that takes several.
fn one_frame(config: &EdgeConfig, interface: &Interface) -> u32 {
    let most = room(if config.frame_size == 2048 { 2048 } else { 4096 }) - LAYER2;
    let known = quirks::of(&interface.driver);
    known.mtu.filter(|_| known.frags.is_some()).unwrap_or(most).min(most)
}

/// Bytes of a large frame, when an MTU is larger than what one frame takes.
pub(super) fn large(config: &EdgeConfig, interfaces: &[Interface]) -> Option<u32> {
    let room = room(if config.frame_size == 2048 { 2048 } else { 4096 });
    let longest = interfaces.iter().map(|interface| interface.mtu + LAYER2).max()?;
    let parts = (PARTS_MAX as u32).min(config.rx_ring).min(config.tx_ring);
    let is_needed = interfaces.iter().any(|interface| interface.mtu > one_frame(config, interface));
    is_needed.then(|| (longest + GROWTH).next_multiple_of(64).min(parts * room).min(u32::from(u16::MAX)))
}

/// Why packets of several frames would be lost with this kernel or driver.
fn takes_no_long_packets(interfaces: &[Interface], mode: Mode) -> Option<String> {
    let release = release();
    if !quirks::knows_long_packets(&release) {
        return Some(format!(
            "Linux {release} loses packets of several frames on all but the first of sockets that share memory: Linux 6.7 or \
             6.6.11 is needed for MTUs over {}",
            room(4096) - LAYER2
        ));
    }
    let empty = |interface: &&Interface| mode != Mode::Generic && quirks::of(&interface.driver).empty_first_buffer;
    let interface = interfaces.iter().find(empty)?;
    let (name, driver) = (&interface.name, driver(interface));
    Some(format!("the driver of {name}{driver} shows an XDP program no header of packets of several buffers"))
}

/// The kernel's, as `uname -r` has it.
fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Why the ports can't take packets in several frames of this size in zero-copy mode. (A driver without any zero-copy says so
/// itself, when a socket is bound.)
fn too_long_for_zero_copy(config: &EdgeConfig, interfaces: &[Interface], frame_size: u32) -> Option<String> {
    let longest = interfaces.iter().max_by_key(|interface| interface.mtu)?;
    // The kernel wants two of a driver whenever packets may take several.
    let needed = frames_needed(longest.mtu, frame_size, true).max(2);
    let mut netdev = Netdev::open().ok()?;
    for interface in interfaces {
        let Ok(features) = netdev.xdp_features(interface.ifindex) else { continue };
        let most = features.zero_copy_segments;
        if !features.zero_copy() {
            return None;
        }
        if most >= needed {
            continue;
        }
        let (name, driver, fits) = (&interface.name, driver(interface), one_frame(config, longest));
        let takes = if most > 1 { format!("at most {most} frames") } else { "one frame".into() };
        let (wide, mtu) = (&longest.name, longest.mtu);
        return Some(format!(
            "the driver of {name}{driver} puts a packet in {takes} in zero-copy mode, the MTU of {mtu} of {wide} needs {needed}: \
             `ip link set {wide} mtu {fits}`"
        ));
    }
    let release = release();
    (!quirks::leaves_long_packets_whole(&release)).then(|| {
        format!(
            "Linux {} writes over bytes of packets in several frames, which the MTU of {} of {} needs: Linux 7.0, 6.18.24 or \
             6.12.83 do not",
            release,
            longest.mtu,
            longest.name
        )
    })
}

/// Frames in all: enough for all rings, and half as many again for packets between them.
fn frames(config: &EdgeConfig, sockets: u32) -> Result<u32, EdgeError> {
    let rings = sockets * (config.rx_ring + config.tx_ring);
    if config.frames == 0 {
        return Ok(rings + rings / 2);
    }
    let asked = config.frames.saturating_mul(config.workers as u32);
    // Short of this a port that is down or slow could keep every frame, and the other would starve.
    let least = rings + 64 * config.workers as u32;
    if asked < least {
        let (workers, least) = (config.workers as u32, least.div_ceil(config.workers as u32));
        return Err(EdgeError::setting(format!(
            "{} frames for each of {workers} workers are too few for the rings of {sockets} queues: at least {least}",
            config.frames
        )));
    }
    Ok(asked)
}

impl Opened {
    /// The interfaces, as they are with the program attached.
    pub(super) fn interfaces(&self) -> &[Interface; PortId::COUNT] {
        &self.interfaces
    }

    pub(super) fn report(&self, config: &EdgeConfig) -> EdgeReport {
        let interfaces = &self.interfaces;
        let (mut notes, mut warnings) = (Vec::new(), Vec::new());
        let room = self.large.unwrap_or(room(self.umem.frame_size() as u32));
        for interface in interfaces {
            if interface.mtu + LAYER2 > room {
                let (name, mtu) = (&interface.name, interface.mtu);
                warnings
                    .push(format!("{name} has an MTU of {mtu}: packets over {room} bytes are dropped when received"));
            }
        }
        if self.mode == Mode::Generic {
            notes.push(
                "generic mode sees what a veth neighbour sends before it is cut to size: turn its TSO off".into(),
            );
        }
        if config.busy_poll.is_some() && !self.queues.iter().all(XdpQueue::busy_poll) {
            notes.push("the kernel does not take preferred busy polling (Linux 5.11 or newer is needed)".to_string());
        }
        let ports = [PortId::LAN, PortId::WAN].map(|port| {
            let (interface, mut queues) = (&interfaces[port.index()], self.queues.iter());
            PortReport {
                name: interface.name.clone(),
                driver: interface.driver.clone(),
                hook: self.attachments[port.index()].hook(),
                queues: interface.rx_queues,
                zero_copy: queues.any(|queue| queue.port() == port && queue.zero_copy()),
            }
        });
        EdgeReport {
            mode: self.mode,
            refused: self.refused.clone(),
            ports,
            huge_pages: self.umem.huge_pages(),
            frame_size: self.umem.frame_size() as u32,
            large: self.large.unwrap_or(0),
            frames: self.umem.frames() as u32,
            anchored: self.anchored,
            busy_poll: self.queues.iter().all(XdpQueue::busy_poll),
            notes,
            warnings,
        }
    }

    /// Shares queues and frames among the workers, fills the rings and gives the program the sockets: packets move.
    pub(super) fn share(self, config: &EdgeConfig, program: &Program) -> Result<Shared, EdgeError> {
        let mut workers: Vec<WorkerQueues> = (0..config.workers)
            .map(|_| WorkerQueues { ports: [Vec::new(), Vec::new()], pool: FramePool::new() })
            .collect();
        let sockets = self.queues.len();
        let mut frames = self.umem.tokens().into_iter();
        // A worker's share is by its sockets: with 3 queues and 2 workers, one has twice as many.
        let each = frames.len() / sockets;
        for queue in self.queues {
            let worker = &mut workers[queue.queue() as usize % config.workers];
            frames.by_ref().take(each).for_each(|frame| worker.pool.put(frame));
            worker.ports[queue.port().index()].push(queue);
        }
        for (number, frame) in frames.enumerate() {
            workers[number % config.workers].pool.put(frame);
        }
        if let Some(size) = self.large {
            for (worker, first) in workers.iter_mut().zip((0..).step_by(LARGE_FRAMES)) {
                worker.pool.add_large(LARGE_FRAMES, size as usize, first);
            }
        }
        for worker in &mut workers {
            for queue in worker.ports.iter_mut().flatten() {
                queue.refill(&mut worker.pool);
                queue.kick().map_err(|error| EdgeError::system(format!("start {}", queue.name()), error))?;
                program.set_socket(queue.port(), queue.queue(), queue.fd())?;
            }
        }
        Ok(Shared { attachments: self.attachments, queues: workers, umem: self.umem })
    }
}
