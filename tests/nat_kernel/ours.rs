//! Our side: the datapath, in memory, with the same rules, addresses, routes and neighbours.

use xrouter::conntrack::{ConnView, Settings};
use xrouter::datapath::{self, Batch, Effects, Shard};
use xrouter::device::{FramePool, PortId};
use xrouter::rules::{self, RuleVector, Ruleset, TableName};
use xrouter::snapshot::{Policy, Routing};
use xrouter::time::Instant;
use xrouter::wire::Family;

use crate::flow::packet_proto;
use crate::kernel::Out;
use crate::place::{PORTS, routing};
use crate::step::{Entry, Side};

const FRAMES: usize = 32;
const FRAME_SIZE: usize = 4096;

pub(crate) struct Ours {
    ruleset: Ruleset,
    family: Family,
    policy: Policy,
    routing: Routing,
    pool: FramePool,
    effects: Effects,
    batch: Batch,
    shard: Shard,
}

/// What became of a packet.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    pub(crate) out: Out,
    /// The host was given it.
    pub(crate) punted: bool,
    /// What came out is an answer of the router's own.
    pub(crate) answered: bool,
    /// That is a reset.
    pub(crate) reset: bool,
    /// After it both sides need not have the same connections.
    pub(crate) parted: bool,
    /// There would have been an answer, but for its rate.
    pub(crate) limited: bool,
}

fn compiled(family: Family, text: &str) -> (Ruleset, RuleVector) {
    let mut ruleset = rules::load("random", text, family, &PORTS).unwrap_or_else(|bad| panic!("{text}\n{bad}"));
    ruleset.give_to_the_host();
    let vector = RuleVector::compile(&ruleset).always_tracking();
    (ruleset, vector)
}

impl Ours {
    pub(crate) fn new() -> Ours {
        let none = |family| compiled(family, "").1;
        let (ruleset, v4) = compiled(Family::V4, "");
        let policy = Policy { generation: 1, v4, v6: none(Family::V6) };
        let shard = Shard::new(Settings { max: 1, ..Settings::default() }, [1, 2], &policy);
        Ours {
            ruleset,
            family: Family::V4,
            policy,
            routing: routing(),
            pool: FramePool::in_memory(FRAMES, FRAME_SIZE),
            effects: Effects::new(datapath::BATCH),
            batch: Batch::default(),
            shard,
        }
    }

    /// Forgets everything, and loads a ruleset.
    pub(crate) fn begin(&mut self, v6: bool, text: &str, settings: &Settings, secret: u64) {
        self.shard.conntrack.check();
        self.family = if v6 { Family::V6 } else { Family::V4 };
        let other = if v6 { Family::V4 } else { Family::V6 };
        let (ruleset, vector) = compiled(self.family, text);
        let (_, none) = compiled(other, "");
        self.ruleset = ruleset;
        let generation = self.policy.generation + 1;
        self.policy = match v6 {
            false => Policy { generation, v4: vector, v6: none },
            true => Policy { generation, v4: none, v6: vector },
        };
        self.shard = Shard::new(settings.clone(), [secret, 2], &self.policy);
    }

    /// Loads another ruleset; connections stay.
    pub(crate) fn change(&mut self, v6: bool, text: &str) {
        let (ruleset, vector) = compiled(self.family, text);
        self.ruleset = ruleset;
        let place = if v6 { &mut self.policy.v6 } else { &mut self.policy.v4 };
        *place = vector;
        self.policy.generation += 1;
        self.shard.follow(&self.policy, &self.routing);
    }

    /// No shortcuts and no foresight until it begins again.
    pub(crate) fn go_the_long_way(&mut self) {
        self.shard.turn_shortcuts_off();
        self.shard.turn_foresight_off();
    }

    /// Several packets of one port at once: what came out of each port, in order.
    pub(crate) fn send_all(&mut self, frames: &[(PortId, Vec<u8>)], now: Instant) -> Out {
        for (port, frame) in frames {
            let mut buffer = self.pool.take().expect("a free frame");
            buffer.fill(frame);
            self.batch.push(*port, buffer);
        }
        self.process(now).out
    }

    pub(crate) fn send(&mut self, port: PortId, frame: &[u8], chosen: Option<&Entry>, now: Instant) -> Fate {
        self.shard.draw_ports(chosen.map(ports_of));
        let (answers, limited) = (self.shard.counters.replies, self.shard.counters.replies_limited);
        let mut buffer = self.pool.take().expect("a free frame");
        buffer.fill(frame);
        self.batch.push(port, buffer);
        let fate = self.process(now);
        let answered = self.shard.counters.replies > answers;
        let is_tcp = |(_, frame): &(PortId, Vec<u8>)| packet_proto(&frame[14..]) == Some(6);
        Fate {
            answered,
            reset: answered && fate.out.iter().any(is_tcp),
            limited: self.shard.counters.replies_limited > limited,
            ..fate
        }
    }

    fn process(&mut self, now: Instant) -> Fate {
        datapath::process(&mut self.shard, &self.policy, &self.routing, &mut self.batch, now, &mut self.effects);
        let mut fate = Fate::default();
        for port in PortId::ALL {
            for frame in self.effects.transmit[port.index()].drain(..) {
                fate.out.push((port, frame.bytes().to_vec()));
                self.pool.put(frame);
            }
        }
        fate.punted = !self.effects.punt.is_empty();
        for frame in self.effects.free.drain(..).chain(self.effects.punt.drain(..).map(|(_, frame)| frame)) {
            self.pool.put(frame);
        }
        let asked = &self.effects.resolve;
        assert_eq!(self.pool.len(), FRAMES, "a frame was lost or waits for a neighbour: {asked:?}");
        fate
    }

    /// Whether the source of a connection was given its port before, by another connection.
    pub(crate) fn has_mapping(&self, new: &Entry, now: Instant) -> bool {
        let source = |entry: &Entry| (entry.proto, entry.original.src, entry.original.sport);
        let given = |entry: &Entry| (entry.reply.dst, ports_of(entry)[0]);
        let same = |old: &Entry| source(old) == source(new) && given(old) == given(new);
        self.entries(now).iter().any(same)
    }

    /// What iptables-save would tell of a table, with counters.
    pub(crate) fn saved(&self, table: TableName) -> String {
        rules::save_table(&self.ruleset, table, Some(&self.shard.rule_counters(self.family)))
    }

    /// Why packets were dropped, for a person.
    pub(crate) fn dropped(&self) -> Vec<(&'static str, u64)> {
        let drops = self.shard.counters.drops.iter().filter(|(_, count)| *count > 0);
        drops.map(|(reason, count)| (reason.name(), count)).collect()
    }

    /// The same for a person.
    pub(crate) fn drops(&self) -> String {
        self.dropped().iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn entries(&self, now: Instant) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            cursor = self.shard.conntrack.list(from, 4096, now, &mut |view| entries.push(entry(view)));
        }
        entries
    }
}

/// Source and destination port that a connection was given.
fn ports_of(entry: &Entry) -> [u16; 2] {
    match entry.proto {
        1 | 58 => [entry.reply.sport; 2],
        _ => [entry.reply.dport, entry.reply.sport],
    }
}

fn entry(view: &ConnView) -> Entry {
    let side = |tuple: &xrouter::conntrack::TupleView| Side {
        src: tuple.src,
        dst: tuple.dst,
        sport: tuple.sport,
        dport: tuple.dport,
        zone: tuple.zone,
    };
    Entry {
        proto: view.proto,
        original: side(&view.original),
        reply: side(&view.reply),
        status: u32::from(view.status),
        timeout: view.timeout,
        // conntrack_kernel compares states.
        state: None,
        mark: view.mark,
        counters: view.counters.map(|both| both.map(|counter| (counter.packets, counter.bytes))),
        has_start: view.start.is_some(),
    }
}
