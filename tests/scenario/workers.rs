//! The engine of four workers: their loops over simulated ports, each packet arriving on a queue drawn at random. What leaves, is
//! dropped, listed and counted has to be the same as with one.

use std::collections::BTreeMap;
use std::sync::Arc;

use xrouter::device::PortId;
use xrouter::sim::Faults;
use xrouter::sim::many::Many;
use xrouter::steering::Steering;

use super::engine::Engine;
use super::ours::{Parts, drops, id, listing, port};
use super::script::Script;
use super::topology::{Neighbour, Port};

/// See the module's head.
pub(crate) struct Workers {
    parts: Parts,
    many: Many,
    punted: Vec<Vec<u8>>,
    logs: Vec<String>,
}

/// Rounds after which everything is expected to have settled.
const ROUNDS: usize = 64;

impl Workers {
    /// From a scenario's header.
    pub(crate) fn open(script: &Script) -> Result<Workers, String> {
        let parts = Parts::of(script)?;
        let Parts { policy, routing, settings, .. } = Parts::of(script)?;
        let seed = std::env::var("WORKERS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        let faults = Faults { refuse_transmit: 64, hold_completions: 64, ..Faults::default() };
        let steering = Steering::software(4, [seed, 3], "there is no NIC");
        let many = Many::new(steering, policy, routing, settings, faults, seed);
        Ok(Workers { parts, many, punted: Vec::new(), logs: Vec::new() })
    }

    fn publish(&self) {
        self.many.routing.store(Arc::new(self.parts.routing.clone()));
    }

    fn settle(&mut self) -> Result<(), String> {
        self.many.settle(ROUNDS).map_err(|lost| format!("{lost:?}"))?;
        for _ in 0..8 {
            self.many.steps().map_err(|lost| format!("{lost:?}"))?;
        }
        self.many.settle(ROUNDS).map_err(|lost| format!("{lost:?}"))?;
        self.punted.extend(self.many.take_punted().into_iter().map(|(_, frame)| frame));
        let now = self.many.now();
        for handle in &mut self.many.handles {
            while let Ok(wanted) = handle.resolve.try_recv() {
                self.parts.ask(wanted, now);
            }
            while let Ok(record) = handle.logs.pop() {
                self.logs.push(self.parts.line(&record));
            }
        }
        Ok(())
    }
}

impl Engine for Workers {
    fn inject(&mut self, port: Port, frame: &[u8]) -> Result<(), String> {
        self.many.send(id(port), frame);
        self.settle()
    }

    fn output(&mut self) -> Result<Vec<(Port, Vec<u8>)>, String> {
        let mut out = Vec::new();
        for of in PortId::ALL {
            out.extend(self.many.take(of).into_iter().map(|frame| (port(of), frame)));
        }
        Ok(out)
    }

    fn advance(&mut self, ns: u64) -> Result<(), String> {
        self.many.advance(ns);
        self.parts.give_up(self.many.now());
        self.publish();
        self.settle()
    }

    fn learn(&mut self, neighbour: &Neighbour) -> Result<(), String> {
        self.parts.learn(neighbour);
        self.publish();
        self.settle()
    }

    fn drops(&self) -> Option<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for (reason, count) in self.many.shards().flat_map(drops) {
            *all.entry(reason).or_default() += count;
        }
        Some(all)
    }

    fn punted(&mut self) -> Option<Vec<Vec<u8>>> {
        Some(std::mem::take(&mut self.punted))
    }

    fn conntrack(&mut self) -> Result<Vec<String>, String> {
        Ok(self.many.shards().flat_map(|shard| listing(shard, self.many.now())).collect())
    }

    fn counters(&mut self, v4: bool) -> Result<String, String> {
        Ok(self.parts.save(v4, self.many.shards()))
    }

    fn logs(&mut self) -> Option<Vec<String>> {
        Some(self.logs.clone())
    }
}
