//! Sets as texts and as what packets are looked up in.

mod change;
mod model;
mod reload;
mod rules;
mod text;

use super::SetTable;
use crate::device::PortId;
use crate::packet::Packet;
use crate::rules::context::Context;
use crate::rules::extension::{Action, Matcher};
use crate::rules::extension_testing::{self as testing, Told};
use crate::rules::generator::{ChainLie, Cut, Shape, Version};
use crate::rules::matches::set::SetMatch;
use crate::rules::registry::Registry;
use crate::rules::targets::set::SetTarget;
use crate::time::Instant;
use crate::wire::Family;
use std::sync::Arc;

const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfeed_f00d_dead_beef];

/// A table of these sets.
fn table(text: &str, now: Instant) -> Arc<SetTable> {
    let table = SetTable::new(SECRET);
    table.load("sets", text, now).unwrap_or_else(|bad| panic!("{text}\n{bad}"));
    Arc::new(table)
}

fn registry(table: &Arc<SetTable>) -> Registry {
    Registry { sets: Arc::clone(table), ports: vec!["lan0".to_owned(), "wan0".to_owned()], ..Registry::default() }
}

/// A `-m set` rule, compiled.
struct Match {
    matcher: SetMatch,
    state: <SetMatch as Matcher>::State,
}

impl Match {
    fn new(table: &Arc<SetTable>, family: Family, words: &str) -> Match {
        let matcher: SetMatch = testing::read(family, words).unwrap_or_else(|bad| panic!("{words}: {bad}"));
        let state = matcher.state(&mut registry(table));
        Match { matcher, state }
    }

    fn holds(&self, frame: &[u8], mark: u32, now: Instant) -> bool {
        let (mut packet, mut frame) = (parsed(frame), frame.to_vec());
        let context = Context { mark, ..testing::context(&mut packet, &mut frame, now) };
        self.matcher.test(&context, &Told::default(), &self.state) == crate::rules::extension::Answer::Yes
    }
}

/// A `-j SET` rule, compiled.
struct Target {
    target: SetTarget,
    state: <SetTarget as Action>::State,
}

impl Target {
    fn new(table: &Arc<SetTable>, family: Family, words: &str) -> Target {
        let target: SetTarget = testing::read(family, words).unwrap_or_else(|bad| panic!("{words}: {bad}"));
        let state = target.state(&mut registry(table));
        Target { target, state }
    }

    /// Runs it, and gives the packet's mark after.
    fn run(&self, frame: &[u8], mark: u32, now: Instant) -> u32 {
        let (mut packet, mut frame) = (parsed(frame), frame.to_vec());
        let mut context = Context { mark, ..testing::context(&mut packet, &mut frame, now) };
        self.target.run(&mut context, &mut Told::default(), &self.state);
        context.mark
    }
}

fn parsed(frame: &[u8]) -> Packet {
    Packet::parse(frame, PortId::LAN, true).expect("a packet")
}

/// A TCP packet from `10.1.0.SRC` to `10.2.0.DST`, or `fd01::SRC` to `fd02::DST`, from hardware address 02:00:00:00:00:0c.
fn tcp(version: Version, src: u8, dst: u8, sport: u16, dport: u16) -> Vec<u8> {
    shaped(version, 6, src, dst, sport, dport)
}

fn shaped(version: Version, proto: u8, src: u8, dst: u8, sport: u16, dport: u16) -> Vec<u8> {
    let shape = Shape {
        version,
        outward: true,
        src,
        dst,
        proto,
        sport,
        dport,
        flags: 2,
        options: Vec::new(),
        doff_lie: 0,
        cut: Cut::Whole,
        payload: 0,
        extensions: Vec::new(),
        chain_lie: ChainLie::None,
        tos: 0,
        body: Vec::new(),
        odd_extensions: false,
    };
    shape.frame(1, [2, 0, 0, 0, 1, 0])
}

/// Sets for rules to name.
const SETS: &str = "create a hash:ip\ncreate c hash:net\ncreate d hash:ip,port\ncreate six hash:ip family inet6\n\
    create m hash:ip skbinfo\ncreate huge hash:ip maxelem 4194305\ncreate of-huge list:set\nadd of-huge huge\n";
