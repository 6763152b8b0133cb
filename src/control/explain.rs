//! What would become of a packet, and why: [`explain`], for `xrouter explain`.
//!
//! The packet goes through the router's own path in a shard made for it, with copies of the connections it may be of, and
//! a witness beside it ([`narrator`]) that writes down what each step says. Where it comes to rules, these are asked one by
//! one by [`crate::rules::Explainer`]. So the order of steps, conntrack, routes and answers are those of the path itself, and
//! nothing of the running router changes: no counter, no limit's credit, no connection.
//!
//! Life cycle: a [`Question`] meets a [`Scene`] (of the running daemon, or of files), and an [`Explanation`] comes out,
//! which crosses the control socket as JSON and prints itself for people ([`show`]).

mod narrator;
mod packet;
mod show;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::conntrack::{ConnCopy, Conntrack, CtInfo, LineOptions, Settings, Template, Tuple};
use crate::datapath::{self, Batch, Effects, Shard};
use crate::device::{Frame, FramePool, PortId};
use crate::packet::Packet;
use crate::route::{Neighbour, Prefix, Route};
use crate::rules::{RuleStep, Ruleset};
use crate::snapshot::{Policy, Routing, RoutingBuilder};
use crate::time::{Instant, SECOND_NS};
use crate::wire::{Addr, Family, Mac};

use narrator::{Heard, Narrator};
pub use packet::{GRAMMAR, Sketch};
pub(super) use packet::{describe, message_name};

#[cfg(test)]
mod tests;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The packet, in words.
    pub packet: String,
    /// The interface it arrives by: its name, or `lan`, `wan`. Without one, where its source is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
}

/// The router that is asked.
#[derive(Debug)]
pub struct Scene {
    /// The rules as read, IPv4 and IPv6.
    pub rulesets: [Arc<Ruleset>; 2],
    /// The same, compiled.
    pub policy: Arc<Policy>,
    /// Routes, neighbours, ports.
    pub routing: Routing,
    /// Whether `routing` is made up, because nobody told any.
    pub routes_assumed: bool,
    /// conntrack's.
    pub settings: Settings,
    /// Connections that the packet may be of.
    pub connections: Vec<ConnCopy>,
    /// The present, in the connections' time.
    pub now: Instant,
    /// The present in seconds since 1970, and what the time zone adds.
    pub unix: (i64, i32),
}

/// The answer. Its JSON names stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Version of these names.
    pub schema: u32,
    /// The packet in words.
    pub packet: String,
    /// Length of the IP packet in bytes.
    pub length: u16,
    /// Its TTL or hop limit as it arrives.
    pub ttl: u8,
    /// The interface it arrives by.
    pub input: String,
    /// Whom was asked: `daemon` or `files`.
    pub asked: String,
    /// What was taken for granted.
    pub notes: Vec<String>,
    /// Its way, in order.
    pub stages: Vec<Stage>,
    /// What becomes of it.
    pub verdict: VerdictReport,
}

/// One step of the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// What it is: `conntrack`, `routing`, `filter FORWARD`.
    pub name: String,
    /// What it says, in a word or two.
    pub says: String,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
    /// The rules' file, where rules were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The rules that were consulted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleStep>,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VerdictReport {
    /// `ACCEPT`, `DROP`, `REJECT`, or `HOST` when it is for the host itself.
    pub verdict: String,
    /// Whether it goes on: out of a port, or to the host.
    pub passes: bool,
    /// The drop reason, by the name that `xrouter stats` has for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What its sender is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The table whose rule decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The rule's chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    /// The rule's number there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// `FILE:LINE` of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The interface it leaves by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Whom the frame goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<String>,
    /// The next hop's Ethernet address, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// Version of the names in an [`Explanation`].
pub const EXPLANATION_SCHEMA: u32 = 1;

/// Bytes of the frame that all explanations share.
const FRAME_SIZE: usize = 16_384;
/// Connections that a shard for one packet has room for.
const ROOM: usize = 64;

/// The router without routes: what arrives by one port leaves by the other, and no link-layer address is known.
pub fn routes_assumed(names: [&str; PortId::COUNT], sketch: &Sketch, input: PortId) -> Routing {
    let output = PortId(1 - input.0);
    let mut builder = RoutingBuilder::new();
    for (port, name) in PortId::ALL.into_iter().zip(names) {
        builder.add_port(port, name, Mac([2, 0, 0, 0, 0, port.0]), 1500);
    }
    // Addresses to answer from that nobody has (RFC 7600, and a documentation prefix).
    builder.add_address(input, [192, 0, 0, 8], 32);
    builder.add_address(input, std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1), 128);
    for (family, any) in [(Family::V4, Addr::from_v4(0)), (Family::V6, Addr::ZERO)] {
        builder.add_route(Prefix::new(family, any, 0), output, None);
    }
    if sketch.src != sketch.dst {
        builder.add_route(Prefix::host(sketch.family(), sketch.src.into()), input, None);
    }
    builder.build()
}

/// Tuples of the connections that a packet may be of: its own, and the one that an ICMP error is about.
pub fn tuples_of(sketch: &Sketch) -> Vec<Tuple> {
    let frame = sketch.frame(Mac::default(), Mac::default());
    let Ok(packet) = Packet::parse(&frame, PortId::LAN, true) else { return Vec::new() };
    let mut tuples = vec![Tuple::of(&packet)];
    if let Some(quoted) = sketch.quoted() {
        tuples.extend(tuples_of(quoted));
    }
    tuples
}

/// The port that a name means, or the one that leads back to the packet's source.
///
/// # Errors
/// The name is no port's.
pub fn input_port(routing: &Routing, question: &Question, sketch: &Sketch) -> Result<(PortId, Option<String>), String> {
    let Some(name) = &question.input else {
        let (dst, src) = (sketch.dst.into(), sketch.src.into());
        let back = match routing.lookup(sketch.family(), dst, src) {
            Route::Forward { port, .. } => port,
            _ => PortId::LAN,
        };
        let note = format!("taken to arrive by {}, where its source is; -i says otherwise", routing.port(back).name);
        return Ok((back, Some(note)));
    };
    let named = |port: &PortId| *name == format!("{port:?}") || *name == routing.port(*port).name;
    // A port's own name comes first: an interface may be called `wan` and be the inside one.
    let by_name = PortId::ALL.into_iter().find(|port| *name == routing.port(*port).name);
    by_name.or_else(|| PortId::ALL.into_iter().find(named)).map(|port| (port, None)).ok_or_else(|| {
        let [lan, wan] = PortId::ALL.map(|port| routing.port(port).name.clone());
        format!("-i {name}: no port of this router; it has {lan} (lan) and {wan} (wan)")
    })
}

/// Explains.
///
/// # Errors
/// What is wrong with the question.
pub fn explain(question: &Question, scene: &Scene) -> Result<Explanation, String> {
    explain_or_ask(question, scene).map(|(explanation, _)| explanation)
}

/// Explains; and if the rules put the packet into a conntrack zone, gives the tuple of the connection there that it may be of.
/// Whoever has that connection adds it to the scene, and explains again.
///
/// # Errors
/// What is wrong with the question.
pub fn explain_or_ask(question: &Question, scene: &Scene) -> Result<(Explanation, Option<Tuple>), String> {
    let sketch: Sketch = question.packet.parse()?;
    let (input, note) = input_port(&scene.routing, question, &sketch)?;
    let settings = Settings { max: ROOM, ..scene.settings.clone() };
    let mut shard = Shard::new(settings, [0x6578_706c, 0x6169_6e00], &scene.policy);
    shard.wall.set(scene.unix.0, scene.unix.1, scene.now);
    scene.connections.iter().for_each(|copy| shard.conntrack.put_copy(copy, scene.now));
    let present = suppose(&sketch, scene, &mut shard.conntrack);

    let of = match sketch.family() {
        Family::V4 => 0,
        Family::V6 => 1,
    };
    let port = scene.routing.port(input);
    let from = match scene.routing.neighbour(input, sketch.src.into()) {
        Neighbour::Reachable(mac) => mac,
        _ => Mac([2, 0, 0, 0, 0, 0xff]),
    };
    let bytes = present.frame(port.mac, from);
    let packet = Packet::parse(&bytes, input, true).map_err(|why| format!("no router takes this packet: {why}"))?;
    let before = listed(&mut shard.conntrack, &packet, scene);
    let (narrator, heard) = Narrator::new(scene.rulesets[of].clone(), &sketch);
    shard.set_witness(Some(Box::new(narrator)));
    let mut shared = shared_frame().lock().unwrap_or_else(PoisonError::into_inner);
    let mut frame = shared.take().ok_or("the frame of the last explanation did not come back; restart xrouter")?;
    frame.fill(&bytes);
    let effects = pass(&mut shard, scene, input, frame);
    let after = listed(&mut shard.conntrack, &packet, scene);
    let answered = shard.counters.replies > 0;
    *shared = recover(&mut shard, scene, effects);
    drop(shared);
    let told = Told {
        heard: heard.try_iter().collect(),
        ruleset: &scene.rulesets[of],
        scene,
        packet,
        before,
        after,
        answered,
        wants_conntrack: [&scene.policy.v4, &scene.policy.v6][of].wants_conntrack(),
    };
    let mut notes: Vec<String> = note.into_iter().collect();
    if let Some(supposed) = sketch.supposed {
        notes.push(format!("what if conntrack says {}: as asked", supposed.info.name()));
    }
    if scene.routes_assumed {
        let [input, output] = [input, PortId(1 - input.0)].map(|port| scene.routing.port(port).name.as_str());
        notes.push(format!(
            "no routes were asked: what arrives by {input} is taken to leave by {output}, with an MTU of 1500 bytes"
        ));
    }
    let zoned = told.heard.iter().find_map(|heard| match heard {
        Heard::Zoned(tuple) => Some(*tuple),
        _ => None,
    });
    let explanation = Explanation {
        schema: EXPLANATION_SCHEMA,
        packet: present.describe(),
        length: packet.l3_len,
        ttl: packet.ttl,
        input: port.name.clone(),
        asked: if scene.routes_assumed { "files" } else { "daemon" }.to_owned(),
        notes,
        stages: told.stages(),
        verdict: told.verdict(),
    };
    Ok((explanation, zoned))
}

/// What the packet needs to be what it is supposed to be: an ESTABLISHED one has had packets before it.
fn suppose(sketch: &Sketch, scene: &Scene, conntrack: &mut Conntrack) -> Sketch {
    let Some(supposed) = sketch.supposed.filter(|supposed| supposed.info == CtInfo::Established) else {
        return sketch.clone();
    };
    if !scene.connections.is_empty() {
        return sketch.clone();
    }
    let (history, present) = sketch.with_history(supposed.direction);
    for (_, earlier) in history {
        let frame = earlier.frame(Mac::default(), Mac::default());
        let Ok(packet) = Packet::parse(&frame, PortId::LAN, true) else { continue };
        let hash = conntrack.hash(&Tuple::of(&packet));
        if let Ok(tracked) = conntrack.track(&packet, &frame, hash, Template::DEFAULT, scene.now) {
            // In a table with room, of a tuple that nobody else has.
            let _ = conntrack.confirm(&tracked, scene.now);
        }
    }
    present
}

/// The packet's connection, as `conntrack -L` shows it.
fn listed(conntrack: &mut Conntrack, packet: &Packet, scene: &Scene) -> Option<String> {
    let view = conntrack.get(&Tuple::of(packet), scene.now)?;
    let mut line = String::new();
    view.write_line(&mut line, &LineOptions::default());
    Some(line)
}

/// The frame that all explanations share: frames live as long as the process.
fn shared_frame() -> &'static Mutex<Option<Frame>> {
    static FRAME: OnceLock<Mutex<Option<Frame>>> = OnceLock::new();
    FRAME.get_or_init(|| Mutex::new(FramePool::in_memory(1, FRAME_SIZE).take()))
}

/// The packet goes through the path.
fn pass(shard: &mut Shard, scene: &Scene, input: PortId, frame: Frame) -> Effects {
    let (mut batch, mut effects) = (Batch::default(), Effects::new(1));
    batch.push(input, frame);
    datapath::process(shard, &scene.policy, &scene.routing, &mut batch, scene.now, &mut effects);
    effects
}

/// Gets the frame back, wherever it is; one that waits for a neighbour, by letting time pass.
fn recover(shard: &mut Shard, scene: &Scene, mut effects: Effects) -> Option<Frame> {
    shard.set_witness(None);
    let mut now = scene.now;
    for _ in 0..8 {
        let sent = effects.transmit.iter_mut().find_map(std::collections::VecDeque::pop_front);
        let punted = || effects.punt.pop().map(|(_, frame)| frame);
        if let Some(frame) = sent.or_else(|| effects.free.pop()).or_else(punted) {
            return Some(frame);
        }
        now = now + 10 * SECOND_NS;
        datapath::expire(shard, &scene.policy, &scene.routing, now, ROOM, &mut effects);
    }
    None
}

/// All that was heard of the packet; [`show`] makes sentences of it.
struct Told<'a> {
    heard: Vec<Heard>,
    ruleset: &'a Ruleset,
    scene: &'a Scene,
    packet: Packet,
    before: Option<String>,
    after: Option<String>,
    answered: bool,
    wants_conntrack: bool,
}
