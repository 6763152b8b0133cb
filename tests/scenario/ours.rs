//! Engines *core* and *sim*: xrouter itself, in memory and in virtual time. [`Core`] gives each packet to
//! `datapath::process` alone; [`Sim`] sends it through the real worker loop over simulated ports.
//!
//! Both are opened from the same [`Parts`]: rules, routes and settings of the scenario's header. Time starts at one second
//! and moves only by `advance`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use xrouter::conntrack::Settings;
use xrouter::datapath::{self, Batch, Effects, Resolve, Shard};
use xrouter::device::{FramePool, PortId};
use xrouter::route::{self, Action, Kind as RouteKind, Prefix, RouteEntry, Table};
use xrouter::rules::{self, LogRecord, RuleVector, Ruleset};
use xrouter::sim::{Faults, Simulator};
use xrouter::snapshot::{self, Policy, Routing, RoutingBuilder, RpFilter};
use xrouter::time::{Instant, SECOND_NS};
use xrouter::wire::{Addr, Family, Mac};

use super::engine::Engine;
use super::script::{Rules, Script};
use super::topology::{LINK_LOCAL, Neighbour, Port, Route, Target, Topology};

/// Connections a scenario may have, unless it says otherwise: the table is allocated whole.
const CONNECTIONS: usize = 1024;
/// Larger than any scenario's packet.
const FRAME_SIZE: usize = 9216;
const FRAMES: usize = 64;
/// Connections looked at per expiry: all.
const BUDGET: usize = 1 << 20;

/// What a scenario's header describes.
pub(super) struct Parts {
    pub(super) names: [String; 2],
    pub(super) rulesets: [Ruleset; 2],
    pub(super) policy: Policy,
    /// What the control thread keeps.
    pub(super) builder: RoutingBuilder,
    pub(super) routing: Routing,
    pub(super) settings: Settings,
    /// Next hops asked for, with when. Nobody answers but the scenario.
    pub(super) asked: Vec<(Resolve, Instant)>,
}

/// When the kernel gives up on a neighbour: three questions, a second apart.
const RESOLVE_NS: u64 = 3 * SECOND_NS;

impl Parts {
    pub(super) fn of(script: &Script) -> Result<Parts, String> {
        let names = script.topology.names.clone();
        let v4 = ruleset(script.rules_v4.as_ref(), Family::V4, &names)?;
        let v6 = ruleset(script.rules_v6.as_ref(), Family::V6, &names)?;
        let policy = Policy {
            generation: 1,
            v4: RuleVector::compile(&v4).always_tracking(),
            v6: RuleVector::compile(&v6).always_tracking(),
        };
        let mut builder = builder(&script.topology);
        let (routing, settings) = (builder.build(), settings(&script.conntrack)?);
        Ok(Parts { names, rulesets: [v4, v6], policy, builder, routing, settings, asked: Vec::new() })
    }

    /// The datapath wants a neighbour.
    pub(super) fn ask(&mut self, wanted: Resolve, now: Instant) {
        if !self.asked.iter().any(|(asked, _)| *asked == wanted) {
            self.asked.push((wanted, now));
        }
    }

    /// Neighbours that have not answered in time have failed.
    pub(super) fn give_up(&mut self, now: Instant) {
        let over: Vec<Resolve> =
            self.asked.iter().filter(|(_, since)| now - *since >= RESOLVE_NS).map(|(wanted, _)| *wanted).collect();
        self.asked.retain(|(_, since)| now - *since < RESOLVE_NS);
        for wanted in over {
            self.builder.set_neighbour(wanted.port, wanted.next_hop, route::Neighbour::Failed);
            self.routing = self.builder.build();
        }
    }

    pub(super) fn learn(&mut self, neighbour: &Neighbour) {
        let (port, address) = (id(neighbour.port), Addr::from(neighbour.address));
        self.asked.retain(|(wanted, _)| (wanted.port, wanted.next_hop) != (port, address));
        self.builder.set_neighbour(port, address, route::Neighbour::Reachable(Mac(neighbour.mac)));
        self.routing = self.builder.build();
    }

    pub(super) fn save<'a>(&self, v4: bool, shards: impl IntoIterator<Item = &'a Shard>) -> String {
        let (ruleset, family) = match v4 {
            true => (&self.rulesets[0], Family::V4),
            false => (&self.rulesets[1], Family::V6),
        };
        let mut counters = rules::RuleCounters::new(ruleset);
        shards.into_iter().for_each(|shard| counters.add(&shard.rule_counters(family)));
        rules::save_table(ruleset, rules::TableName::Filter, Some(&counters))
    }

    pub(super) fn line(&self, record: &LogRecord) -> String {
        rules::log_line(record, &[&self.names[0], &self.names[1]])
    }
}

fn ruleset(rules: Option<&Rules>, family: Family, names: &[String; 2]) -> Result<Ruleset, String> {
    let empty = Rules { name: "no rules".into(), text: "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n".into() };
    let Rules { name, text } = rules.unwrap_or(&empty);
    rules::load(name, text, family, &[&names[0], &names[1]]).map_err(|wrong| format!("the rules are refused:\n{wrong}"))
}

fn settings(pairs: &[(String, String)]) -> Result<Settings, String> {
    let mut table = serde_json::Map::new();
    table.insert("max".into(), CONNECTIONS.into());
    for (key, value) in pairs {
        let value: u64 = value.parse().map_err(|_| format!("conntrack {key}={value}: not a number"))?;
        table.insert(key.clone(), value.into());
    }
    serde_json::from_value(table.into()).map_err(|error| format!("conntrack settings: {error}"))
}

pub(super) fn id(port: Port) -> PortId {
    PortId::ALL[port.index()]
}

pub(super) fn port(id: PortId) -> Port {
    Port::ALL[id.index()]
}

fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn builder(topology: &Topology) -> RoutingBuilder {
    let mut builder = RoutingBuilder::new();
    for port in Port::ALL {
        let (name, mtu) = (&topology.names[port.index()], topology.mtu[port.index()]);
        builder.add_port(id(port), name, Mac(port.mac()), mtu);
        let rp_filter = match topology.rp_filter[port.index()] {
            0 => RpFilter::Off,
            1 => RpFilter::Strict,
            _ => RpFilter::Loose,
        };
        let described = snapshot::Port { rp_filter, ..builder.ports()[port.index()].clone() };
        builder.set_port(id(port), described);
        for v4 in [true, false] {
            builder.add_address(id(port), port.address(v4), Topology::prefix_len(v4));
        }
        builder.add_address(id(port), LINK_LOCAL.parse::<IpAddr>().expect("an address"), 64);
    }
    for neighbour in &topology.neighbours {
        builder.add_neighbour(id(neighbour.port), Addr::from(neighbour.address), Mac(neighbour.mac));
    }
    for Route { network, len, target, mtu } in &topology.routes {
        let prefix = Prefix::new(family(*network), Addr::from(*network), *len);
        let ifindex = |port: Port| builder.ports()[port.index()].ifindex;
        let action = match target {
            Target::Dev(port) => Action::unicast(ifindex(*port), None),
            Target::Via(gateway) => Action::unicast(ifindex(topology.port_of(*gateway)), Some(Addr::from(*gateway))),
            Target::Elsewhere => Action::of(RouteKind::Foreign),
            Target::Unreachable => Action::of(RouteKind::Unreachable),
            Target::Prohibit => Action::of(RouteKind::Prohibit),
            Target::Blackhole => Action::of(RouteKind::Blackhole),
        };
        let action = Action { mtu: u32::from(mtu.unwrap_or(0)), ..action };
        builder.put_route(RouteEntry { table: Table::Main, prefix, metric: 0, preference: 0, action }, true);
    }
    builder
}

pub(super) fn drops(shard: &Shard) -> BTreeMap<String, u64> {
    shard.counters.drops.iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect()
}

pub(super) fn listing(shard: &Shard, now: Instant) -> Vec<String> {
    let (mut lines, mut cursor) = (Vec::new(), Some(0));
    while let Some(from) = cursor {
        cursor = shard.conntrack.list(from, 256, now, &mut |view| lines.push(view.to_string()));
    }
    lines
}

/// The datapath alone.
pub(crate) struct Core {
    parts: Parts,
    shard: Shard,
    pool: FramePool,
    effects: Effects,
    now: Instant,
    punted: Vec<Vec<u8>>,
    logs: Vec<String>,
    frames: Vec<(Port, Vec<u8>)>,
}

impl Core {
    /// From a scenario's header.
    pub(crate) fn open(script: &Script) -> Result<Core, String> {
        let parts = Parts::of(script)?;
        let shard = Shard::new(parts.settings.clone(), [1, 2], &parts.policy);
        Ok(Core {
            parts,
            shard,
            pool: FramePool::in_memory(FRAMES, FRAME_SIZE),
            effects: Effects::new(datapath::BATCH),
            now: Instant::from_secs(1),
            punted: Vec::new(),
            logs: Vec::new(),
            frames: Vec::new(),
        })
    }

    /// Lets the datapath see what time and the neighbours brought.
    fn expire(&mut self) {
        let Parts { policy, routing, .. } = &self.parts;
        datapath::expire(&mut self.shard, policy, routing, self.now, BUDGET, &mut self.effects);
        self.carry_out();
    }

    /// Carries out what the datapath wants done.
    fn carry_out(&mut self) {
        for (index, queue) in self.effects.transmit.iter_mut().enumerate() {
            for frame in queue.drain(..) {
                self.frames.push((Port::ALL[index], frame.bytes().to_vec()));
                self.pool.put(frame);
            }
        }
        for (_, frame) in self.effects.punt.drain(..) {
            self.punted.push(frame.bytes().to_vec());
            self.pool.put(frame);
        }
        for frame in self.effects.free.drain(..) {
            self.pool.put(frame);
        }
        for record in self.effects.logs.drain(..) {
            self.logs.push(self.parts.line(&record));
        }
        for wanted in self.effects.resolve.drain(..) {
            self.parts.ask(wanted, self.now);
        }
        assert_eq!(self.pool.len() + self.shard.waiting(), FRAMES, "a frame was lost or made");
        self.shard.conntrack.check();
    }
}

impl Engine for Core {
    fn inject(&mut self, port: Port, frame: &[u8]) -> Result<(), String> {
        let mut batch = Batch::default();
        let mut buffer = self.pool.take().ok_or("no frame is free")?;
        buffer.fill(frame);
        batch.push(id(port), buffer);
        let Parts { policy, routing, .. } = &self.parts;
        datapath::process(&mut self.shard, policy, routing, &mut batch, self.now, &mut self.effects);
        self.carry_out();
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<(Port, Vec<u8>)>, String> {
        Ok(std::mem::take(&mut self.frames))
    }

    fn advance(&mut self, ns: u64) -> Result<(), String> {
        self.now = self.now + ns;
        self.parts.give_up(self.now);
        self.expire();
        Ok(())
    }

    fn learn(&mut self, neighbour: &Neighbour) -> Result<(), String> {
        self.parts.learn(neighbour);
        self.expire();
        Ok(())
    }

    fn drops(&self) -> Option<BTreeMap<String, u64>> {
        Some(drops(&self.shard))
    }

    fn punted(&mut self) -> Option<Vec<Vec<u8>>> {
        Some(std::mem::take(&mut self.punted))
    }

    fn conntrack(&mut self) -> Result<Vec<String>, String> {
        Ok(listing(&self.shard, self.now))
    }

    fn counters(&mut self, v4: bool) -> Result<String, String> {
        Ok(self.parts.save(v4, [&self.shard]))
    }

    fn logs(&mut self) -> Option<Vec<String>> {
        Some(self.logs.clone())
    }
}

/// The worker loop over simulated ports.
pub(crate) struct Sim {
    parts: Parts,
    simulator: Simulator,
    punted: Vec<Vec<u8>>,
    logs: Vec<String>,
}

/// Bursts after which everything is expected to have settled.
const BURSTS: usize = 64;

impl Sim {
    /// From a scenario's header.
    pub(crate) fn open(script: &Script) -> Result<Sim, String> {
        let parts = Parts::of(script)?;
        let Parts { policy, routing, settings, .. } = Parts::of(script)?;
        // Ports that now and then refuse to send or keep what they sent: nothing a scenario could see.
        let faults = Faults { refuse_transmit: 64, hold_completions: 64, ..Faults::default() };
        let simulator = Simulator::new(policy, routing, settings, faults, 7);
        Ok(Sim { parts, simulator, punted: Vec::new(), logs: Vec::new() })
    }

    /// Hands the routes and neighbours to the worker, as the control thread does.
    fn publish(&self) {
        self.simulator.routing.store(Arc::new(self.parts.routing.clone()));
    }

    fn settle(&mut self) -> Result<(), String> {
        self.simulator.settle(BURSTS).map_err(|lost| format!("{lost:?}"))?;
        // What a refusing port left behind needs another turn or two.
        for _ in 0..8 {
            self.simulator.burst().map_err(|lost| format!("{lost:?}"))?;
        }
        self.punted.extend(self.simulator.take_punted().into_iter().map(|(_, frame)| frame));
        while let Ok(wanted) = self.simulator.handle.resolve.try_recv() {
            self.parts.ask(wanted, self.simulator.now());
        }
        while let Ok(record) = self.simulator.handle.logs.pop() {
            self.logs.push(self.parts.line(&record));
        }
        Ok(())
    }
}

impl Engine for Sim {
    fn inject(&mut self, port: Port, frame: &[u8]) -> Result<(), String> {
        self.simulator.wire(id(port)).send(frame);
        self.settle()
    }

    fn output(&mut self) -> Result<Vec<(Port, Vec<u8>)>, String> {
        let of = |port: PortId| self.simulator.wire(port).take().into_iter().map(move |frame| (port, frame));
        Ok(PortId::ALL.into_iter().flat_map(of).map(|(id, frame)| (port(id), frame)).collect())
    }

    fn advance(&mut self, ns: u64) -> Result<(), String> {
        self.simulator.advance(ns);
        self.parts.give_up(self.simulator.now());
        self.publish();
        self.settle()
    }

    fn learn(&mut self, neighbour: &Neighbour) -> Result<(), String> {
        self.parts.learn(neighbour);
        self.publish();
        self.settle()
    }

    fn drops(&self) -> Option<BTreeMap<String, u64>> {
        Some(drops(self.simulator.shard()))
    }

    fn punted(&mut self) -> Option<Vec<Vec<u8>>> {
        Some(std::mem::take(&mut self.punted))
    }

    fn conntrack(&mut self) -> Result<Vec<String>, String> {
        Ok(listing(self.simulator.shard(), self.simulator.now()))
    }

    fn counters(&mut self, v4: bool) -> Result<String, String> {
        Ok(self.parts.save(v4, [self.simulator.shard()]))
    }

    fn logs(&mut self) -> Option<Vec<String>> {
        Some(self.logs.clone())
    }
}
