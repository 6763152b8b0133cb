//! Engine *wire*: the real xrouter, forwarding by real AF_XDP sockets. Frames go in and are captured by packet sockets at the far
//! ends of its links; what it hands to the host is seen by packet sockets on its own ports. Everything else is asked as an operator
//! would: connections, settings, rules and counters over the control socket, LOG lines in what the daemon prints.
//!
//! A frame that is expected is waited for. Where a scenario wants to know that all is done (it says `nothing`, names a drop, asks
//! what there is, lets time pass) markers are sent on the ports that were used: a frame for each queue, which a worker drops before
//! rules and connections see it ([`Marker`]), and one that the XDP program gives to the host. When all are counted, the workers have
//! done with everything before; and since `stats` is answered between two bursts, it says how many frames they have sent. So many
//! must come out at the far ends, so `nothing` is sure without a wait. What a scenario does not look into is looked into at its next
//! such line, at the latest at its end.

mod site;

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use xrouter::control::api::{Reply, Request};
use xrouter::control::stats::StatsReport;

use super::engine::Engine;
use super::kernel::{is_housekeeping, mac_text, run};
use super::script::{Rules, Script, Step};
use super::topology::{Neighbour, Port};
use crate::support::{Net, Place};
pub(crate) use site::Site;
use site::{PATIENCE, Running, inside};

/// The longest that a scenario may take in all; its time is real here.
const LONGEST: Duration = Duration::from_secs(15);
/// Ethernet header in bytes, the shortest frame that NICs send, and the longest that they take at an MTU of 1500.
const ETH: usize = 14;
const SHORTEST: usize = 60;
const LONGEST_FRAME: usize = 1514;
/// By how many seconds time-outs may be less than they should, on NICs.
const SLACK: i64 = 15;
/// A frame that is expected mostly comes out within this; what does not is looked into.
const SOON: Duration = Duration::from_millis(250);
/// Between two looks.
const TURN: Duration = Duration::from_micros(300);
/// LOG lines are printed this long after their packets, at most.
const LOGGED: Duration = Duration::from_millis(250);
/// Of markers for the host (IEEE's for experiments).
const HOST_MARKER: [u8; 2] = [0x88, 0xb5];
/// Markers tried until each queue has had one.
const TRIES: u8 = 64;

/// Why a scenario cannot be run, if so: what its text says, and what follows from it; more of it on NICs than on veth.
pub(crate) fn unfit(script: &Script, nics: bool) -> Option<String> {
    if let Some(why) = &script.not_on_wire {
        return Some(why.clone());
    }
    let takes: u64 = script.lines.iter().map(|line| line.wait_ns).sum();
    if Duration::from_nanos(takes) > LONGEST {
        return Some(format!("it takes {} s, and its time is real here", takes / 1_000_000_000));
    }
    let frames = script.lines.iter().filter_map(|line| match &line.step {
        Step::Inject { frame, .. } => Some(frame),
        _ => None,
    });
    for frame in frames {
        if frame.len() < ETH {
            return Some("a frame is shorter than its header".to_owned());
        }
        if nics && frame.len() > LONGEST_FRAME {
            return Some("a frame is longer than its NIC takes".to_owned());
        }
        if nics && frame.len() < SHORTEST && is_cut(frame) {
            return Some("a NIC fills up its short frames, so that they are not cut any more".to_owned());
        }
    }
    let rations = |rules: &Option<Rules>| rules.as_ref().is_some_and(|rules| rules.text.contains("limit --"));
    if nics && (rations(&script.rules_v4) || rations(&script.rules_v6)) {
        return Some("its rules ration packets, and an emulated NIC is slower than they are".to_owned());
    }
    if nics && takes > 0 {
        return Some("time passes in it, and an emulated NIC needs more of it".to_owned());
    }
    if nics && site::at_start(script).next().is_some() {
        return Some("a setting is for a daemon of its own, whose start takes seconds on a NIC".to_owned());
    }
    let elsewhere = script.topology.routes.iter().any(|route| route.target == super::topology::Target::Elsewhere);
    (nics && elsewhere).then(|| "there is no third NIC".to_owned())
}

/// Whether a frame ends before its packet does.
fn is_cut(frame: &[u8]) -> bool {
    let word = |at: usize| usize::from(frame[at]) << 8 | usize::from(frame[at + 1]);
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.len() < ETH + 20 || word(ETH + 2) > frame.len() - ETH,
        Some([0x86, 0xdd]) => frame.len() < ETH + 40 || word(ETH + 4) > frame.len() - ETH - 40,
        _ => false,
    }
}

/// See the module's head.
pub(crate) struct Wire<'s> {
    net: &'s Net,
    running: &'s mut Running,
    names: [String; 2],
    /// Ports that frames were given since the last time all was done.
    unsettled: [bool; 2],
    /// Whether the links are NICs.
    nics: bool,
    marker: Marker,
    /// Markers per port, one for each queue at least.
    markers: [Vec<u8>; 2],
    /// Markers sent.
    marked: u64,
    host_marked: [u32; 2],
    host_heard: [u32; 2],
    /// What the daemon had counted before, and has now.
    before: Totals,
    now: Totals,
    /// Frames captured at each far end.
    captured: [u64; 2],
    frames: Vec<(Port, Vec<u8>)>,
    punted: Vec<Vec<u8>>,
    /// Frames that have come to the host, in all.
    heard: u64,
    /// The same when all was done the last time.
    settled_heard: u64,
    /// Whether LOG lines have been waited for since.
    log_complete: bool,
    /// Lines the daemon had printed before.
    lines_before: usize,
}

/// Why a worker drops markers, before rules and connection tracking see them: for their IP header's checksum or, in scenarios that
/// drop packets for that, for their length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    Checksum,
    Length,
}

impl Marker {
    fn of(script: &Script) -> Marker {
        let checksum = Marker::Checksum.reason();
        let taken = |line: &super::script::Line| matches!(&line.step, Step::Drop { reason, .. } if reason == checksum);
        if script.lines.iter().any(taken) { Marker::Length } else { Marker::Checksum }
    }

    fn reason(self) -> &'static str {
        match self {
            Marker::Checksum => "ip_checksum",
            Marker::Length => "ip_total_length",
        }
    }

    /// The frame: different numbers are different flows.
    fn frame(self, port: Port, number: u8) -> Vec<u8> {
        let (wrong, length) = if self == Marker::Checksum { (1, 60) } else { (0, 19) };
        let net = 1 + port as u8;
        let mut packet = vec![0x45, 0, 0, length, 0, 0, 0, 0, 64, 17, 0, 0, 10, net, 0, number, 198, 18, 0, 1];
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[10..12].copy_from_slice(&(sum ^ wrong).to_be_bytes());
        // Not the address's last word: symmetric hashes cancel what is twice the same.
        packet.extend_from_slice(&[number, 0, 0, 9, 0, 40, 0, 0]);
        packet.resize(60, 0);
        [&port.mac()[..], &[2, net, 0, 0, 0, 0xfe], &[0x08, 0x00], &packet].concat()
    }
}

/// What the daemon counts, of all workers.
#[derive(Clone, Debug, Default)]
struct Totals {
    drops: BTreeMap<String, u64>,
    /// Frames sent, by port.
    sent: [u64; 2],
    /// Packets received, by port and queue.
    received: BTreeMap<(String, u32), u64>,
    /// Packets that workers gave to the host.
    punted: u64,
    /// Packets that workers gave to others, and those of them that are still under way.
    handed: u64,
    between: u64,
    /// Packets that wait for a neighbour.
    waiting: u64,
}

impl Totals {
    fn of(report: &StatsReport) -> Totals {
        let mut totals = Totals::default();
        totals.drops.extend(report.drops().iter().map(|(reason, count)| (reason.to_owned(), count)));
        for worker in &report.workers {
            totals.waiting += worker.waiting;
            totals.punted += worker.punted;
            for queue in &worker.queues {
                if let Some(port) = Port::from_word(&queue.role) {
                    totals.sent[port.index()] += queue.transmitted.packets;
                }
                totals.received.insert((queue.role.clone(), queue.queue), queue.received.packets);
            }
        }
        totals.handed = report.workers.iter().map(|worker| worker.handed_over).sum();
        let taken: u64 = report.workers.iter().map(|worker| worker.taken_over).sum();
        totals.between = totals.handed.saturating_sub(taken);
        totals
    }

    fn dropped(&self, marker: Marker) -> u64 {
        self.drops.get(marker.reason()).copied().unwrap_or(0)
    }
}

impl<'s> Wire<'s> {
    /// Takes over a daemon that has the scenario's rules.
    fn open(net: &'s Net, running: &'s mut Running, script: &Script, nics: bool) -> Result<Wire<'s>, String> {
        let names = script.topology.names.clone();
        for socket in running.sockets.ends.iter().chain(&running.sockets.host) {
            receive(socket)?;
        }
        let before = Totals::of(&running.stats()?);
        let lines_before = running.router.said().lines().count();
        let known = running.markers.clone();
        let mut wire = Wire {
            net,
            running,
            names,
            unsettled: [true; 2],
            nics,
            marker: Marker::of(script),
            markers: known.clone().unwrap_or_default(),
            marked: 0,
            host_marked: [0; 2],
            host_heard: [0; 2],
            now: before.clone(),
            before,
            captured: [0; 2],
            frames: Vec::new(),
            punted: Vec::new(),
            heard: 0,
            settled_heard: 0,
            log_complete: false,
            lines_before,
        };
        if known.is_none() {
            wire.find_markers()?;
            wire.running.markers = Some(wire.markers.clone());
        }
        wire.settle()?;
        wire.frames.clear();
        wire.punted.clear();
        Ok(wire)
    }

    /// Tries markers until each queue has received one.
    fn find_markers(&mut self) -> Result<(), String> {
        for port in Port::ALL {
            let mut queues: Vec<_> =
                self.now.received.keys().filter(|(role, _)| role == port.word()).cloned().collect();
            for number in 1..=TRIES {
                if queues.is_empty() {
                    break;
                }
                let before = self.now.received.clone();
                self.mark(port, number)?;
                self.until_counted()?;
                let reached = |queue: &(String, u32)| self.now.received.get(queue) > before.get(queue);
                if queues.iter().any(reached) {
                    self.markers[port.index()].push(number);
                }
                queues.retain(|queue| self.now.received.get(queue) <= before.get(queue));
            }
            if !queues.is_empty() {
                return Err(format!("of {TRIES} flows none reached {queues:?}"));
            }
        }
        Ok(())
    }

    /// Waits until the daemon is done with everything that came in, and what it sent has come out.
    fn all_done(&mut self) -> Result<(), String> {
        let ports: Vec<Port> = Port::ALL.into_iter().filter(|port| self.unsettled[port.index()]).collect();
        let (started, mut handed_before) = (Instant::now(), self.now.handed);
        let (punted_before, heard_before) = (self.now.punted, self.settled_heard);
        for &port in &ports {
            self.mark_host(port)?;
        }
        loop {
            for &port in &ports {
                for number in self.markers[port.index()].clone() {
                    self.mark(port, number)?;
                }
            }
            self.until_host_hears(&ports, 0)?;
            self.until_counted()?;
            // What one worker has handed to another is in a ring now, and done with after another round.
            if self.now.handed == handed_before && self.now.between == 0 {
                break;
            }
            handed_before = self.now.handed;
            if started.elapsed() > PATIENCE {
                return Err(format!("{} packets are still between workers", self.now.between));
            }
        }
        self.until_host_hears(&[], heard_before + self.now.punted - punted_before)?;
        self.settled_heard = self.heard;
        self.until_captured()?;
        self.unsettled = [false; 2];
        Ok(())
    }

    fn mark(&mut self, port: Port, number: u8) -> Result<(), String> {
        self.marked += 1;
        self.send(port, &self.marker.frame(port, number))
    }

    /// Waits until all markers are dropped.
    fn until_counted(&mut self) -> Result<(), String> {
        let (started, wanted) = (Instant::now(), self.before.dropped(self.marker) + self.marked);
        loop {
            self.now = Totals::of(&self.running.stats()?);
            if self.now.dropped(self.marker) >= wanted {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                let missing = wanted - self.now.dropped(self.marker);
                return Err(format!("{missing} of {} markers were not received within {PATIENCE:?}", self.marked));
            }
            thread::sleep(TURN);
        }
    }

    fn mark_host(&mut self, port: Port) -> Result<(), String> {
        self.host_marked[port.index()] += 1;
        let number = self.host_marked[port.index()].to_be_bytes();
        let mut frame = [&port.mac()[..], &[2, 1 + port as u8, 0, 0, 0, 0xfe], &HOST_MARKER, &number].concat();
        frame.resize(SHORTEST, 0);
        self.send(port, &frame)
    }

    /// Waits until the markers for the host have come to it by these ports, and so many other frames in all: workers hand over
    /// several at a time.
    fn until_host_hears(&mut self, ports: &[Port], wanted: u64) -> Result<(), String> {
        let started = Instant::now();
        loop {
            for port in Port::ALL {
                self.hear_host(port)?;
            }
            let marked = |port: &Port| self.host_heard[port.index()] == self.host_marked[port.index()];
            if ports.iter().all(marked) && self.heard >= wanted {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                let missing = wanted.saturating_sub(self.heard);
                return Err(format!("what is for the host has not come to it within {PATIENCE:?} ({missing} frames)"));
            }
            thread::sleep(TURN);
        }
    }

    /// Takes what has come to the host by a port.
    fn hear_host(&mut self, port: Port) -> Result<(), String> {
        for frame in receive(&self.running.sockets.host[port.index()])? {
            if frame.get(12..14) == Some(&HOST_MARKER) {
                let number = frame.get(14..18).and_then(|number| number.try_into().ok()).map(u32::from_be_bytes);
                self.host_heard[port.index()] = number.unwrap_or(0);
            } else if frame.get(6..12) != Some(&port.mac()) && !is_housekeeping(&frame) {
                self.heard += 1;
                self.punted.push(self.unfilled(frame));
            }
        }
        Ok(())
    }

    /// A frame without what a NIC has filled it up with.
    fn unfilled(&self, mut frame: Vec<u8>) -> Vec<u8> {
        if self.nics && frame.len() == SHORTEST && frame[12..15] == [0x08, 0x00, 0x45] {
            let length = ETH + (usize::from(frame[ETH + 2]) << 8 | usize::from(frame[ETH + 3]));
            if frame.get(length..).is_some_and(|rest| rest.iter().all(|&byte| byte == 0)) {
                frame.truncate(length);
            }
        }
        frame
    }

    /// Takes what has come out.
    fn capture(&mut self) -> Result<(), String> {
        for port in Port::ALL {
            for frame in receive(&self.running.sockets.ends[port.index()])? {
                if !is_housekeeping(&frame) && frame.get(6..12) == Some(&port.mac()) {
                    self.captured[port.index()] += 1;
                    self.frames.push((port, self.unfilled(frame)));
                }
            }
        }
        Ok(())
    }

    /// Waits until all that the daemon sent has come out.
    fn until_captured(&mut self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            self.capture()?;
            let sent = [0, 1].map(|port: usize| self.now.sent[port] - self.before.sent[port]);
            if self.captured == sent {
                return Ok(());
            }
            let more = self.captured[0] > sent[0] || self.captured[1] > sent[1];
            if more || started.elapsed() > PATIENCE {
                let captured = self.captured;
                return Err(format!("{sent:?} frames were sent out of lan and wan, and {captured:?} came out"));
            }
            thread::sleep(TURN);
        }
    }

    fn send(&mut self, port: Port, frame: &[u8]) -> Result<(), String> {
        self.unsettled[port.index()] = true;
        let started = Instant::now();
        loop {
            match send(self.running.sockets.ends[port.index()].as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                // The link's queue is full.
                Err(Errno::ENOBUFS) if started.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(format!("{} does not take this frame: {error}", port.word())),
            }
        }
    }
}

/// What waits in a packet socket.
fn receive(socket: &OwnedFd) -> Result<Vec<Vec<u8>>, String> {
    let (mut frames, mut buffer) = (Vec::new(), vec![0; 10_000]);
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => return Err(format!("a frame of {length} bytes came")),
            Ok(length) => frames.push(buffer[..length].to_vec()),
            Err(Errno::EAGAIN) => return Ok(frames),
            Err(error) => return Err(format!("recv: {error}")),
        }
    }
}

impl Engine for Wire<'_> {
    fn inject(&mut self, port: Port, frame: &[u8]) -> Result<(), String> {
        self.log_complete = false;
        self.send(port, frame)
    }

    fn await_frame(&mut self, port: Port) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < SOON {
            self.capture()?;
            if self.frames.iter().any(|(of, _)| *of == port) {
                return Ok(());
            }
            thread::sleep(TURN);
        }
        self.settle()
    }

    fn settle(&mut self) -> Result<(), String> {
        if self.unsettled == [false; 2] { Ok(()) } else { self.all_done() }
    }

    fn slack(&self) -> i64 {
        if self.nics { SLACK } else { 1 }
    }

    fn output(&mut self) -> Result<Vec<(Port, Vec<u8>)>, String> {
        Ok(std::mem::take(&mut self.frames))
    }

    fn advance(&mut self, ns: u64) -> Result<(), String> {
        // What came before it came before it.
        self.settle()?;
        thread::sleep(Duration::from_nanos(ns));
        self.unsettled = [true; 2];
        self.settle()
    }

    fn learn(&mut self, neighbour: &Neighbour) -> Result<(), String> {
        let (name, address, mac) = (&self.names[neighbour.port.index()], neighbour.address, mac_text(neighbour.mac));
        let text = format!("neigh replace {address} lladdr {mac} dev {name} nud permanent\n");
        inside(self.net, Place::Router, || run("ip", &["-batch", "-"], &text))?;
        let started = Instant::now();
        self.now = Totals::of(&self.running.stats()?);
        while self.now.waiting > 0 {
            if started.elapsed() > PATIENCE {
                return Err(format!("{} packets still wait for a neighbour", self.now.waiting));
            }
            self.now = Totals::of(&self.running.stats()?);
        }
        self.unsettled = [true; 2];
        self.settle()
    }

    fn drops(&self) -> Option<BTreeMap<String, u64>> {
        let mut drops = self.now.drops.clone();
        for (reason, count) in &mut drops {
            *count -= self.before.drops.get(reason).copied().unwrap_or(0);
        }
        if let Some(count) = drops.get_mut(self.marker.reason()) {
            *count -= self.marked;
        }
        Some(drops)
    }

    fn punted(&mut self) -> Option<Vec<Vec<u8>>> {
        Some(std::mem::take(&mut self.punted))
    }

    fn conntrack(&mut self) -> Result<Vec<String>, String> {
        let mut lines = Vec::new();
        let mut reply = self.running.ask(&Request::Conntrack { filter: Default::default() })?;
        loop {
            match reply {
                Reply::Conn(conn) => lines.push(conn.to_string()),
                Reply::End { .. } => return Ok(lines),
                other => return Err(format!("asked for connections, it said {other:?}")),
            }
            reply = self.running.more()?;
        }
    }

    fn counters(&mut self, v4: bool) -> Result<String, String> {
        match self.running.ask(&Request::Rules { family: if v4 { 4 } else { 6 } })? {
            Reply::Rules(text) => {
                let filter = text.split_once("*filter\n").ok_or("there is no table filter")?.1;
                Ok(filter.split("COMMIT").next().unwrap_or_default().to_owned())
            }
            other => Err(format!("asked for rules, it said {other:?}")),
        }
    }

    fn logs(&mut self) -> Option<Vec<String>> {
        // As they are printed: a time stamp, and the line.
        if !self.log_complete {
            thread::sleep(LOGGED);
        }
        self.log_complete = true;
        let said = self.running.router.said();
        let lines = said.lines().skip(self.lines_before).filter_map(|line| line.split_once(' '));
        Some(lines.map(|(_, line)| line.to_owned()).collect())
    }
}
