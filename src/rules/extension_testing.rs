//! For tests of single matches and targets: reading one from its words, and a world that says what it is told to.

use super::context::{AddressType, Context, Liveness, World};
use super::extension::{Extension, Given};
use super::log::LogRequest;
use super::rule::Hook;
use super::token::tokenize;
use crate::conntrack::{CtInfo, CtStatus, Direction, Template, Tuple};
use crate::device::PortId;
use crate::packet::Packet;
use crate::time::Instant;
use crate::wire::{Addr, Family};

/// Reads `words` (the options alone) as the extension's; the error is the message. [`Extension::check`] is not asked.
pub(super) fn read<E: Extension>(family: Family, words: &str) -> Result<E, String> {
    let tokens = tokenize(words, 0).map_err(|problem| problem.message)?;
    let mut value = E::new(family);
    let (mut at, mut invert) = (0, false);
    while let Some(token) = tokens.get(at) {
        at += 1;
        if token.text == "!" {
            invert = true;
            continue;
        }
        let spec = E::OPTIONS.iter().find(|spec| spec.names.contains(&token.text.as_str()));
        let spec = spec.ok_or_else(|| format!("unknown option {}", token.text))?;
        let arguments = tokens.get(at..at + usize::from(spec.arguments)).ok_or("an argument is missing")?;
        at += arguments.len();
        if invert && !spec.can_invert {
            return Err(format!("{} cannot be inverted", token.text));
        }
        let given = Given { name: &token.text, span: token.span, arguments, invert, family };
        value.read(spec.id, &given).map_err(|problem| problem.message)?;
        invert = false;
    }
    Ok(value)
}

/// The options as printed, without the blank before the first.
pub(super) fn saved<E: Extension>(value: &E, family: Family) -> String {
    let mut out = String::new();
    value.save(&mut out, family);
    out.trim_start().to_owned()
}

/// A context at FORWARD, from lan to wan, for `frame`, whose `packet` this is.
pub(super) fn context<'a>(packet: &'a mut Packet, frame: &'a mut [u8], now: Instant) -> Context<'a> {
    Context {
        packet,
        frame,
        hook: Hook::Forward,
        in_port: PortId::LAN,
        out_port: Some(PortId::WAN),
        out_mtu: 1500,
        info: CtInfo::New,
        status: CtStatus(0),
        mark: 0,
        template: Template::DEFAULT,
        traced: false,
        now,
    }
}

/// A world that says what stands in its fields.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) tuples: Option<[Tuple; 2]>,
    pub(super) direction: Option<Direction>,
    pub(super) conn_mark: Option<u32>,
    pub(super) expires_in: u32,
    pub(super) traffic: Option<[(u64, u64); 2]>,
    pub(super) alive: Vec<(Tuple, Liveness)>,
    pub(super) addresses: Vec<(Addr, Option<PortId>, AddressType)>,
    pub(super) reverse_path: bool,
    pub(super) mtu_back: u16,
    pub(super) unix_time: (i64, i32),
    pub(super) random: u32,
    pub(super) logged: usize,
}

impl World for Told {
    fn tuple(&self, direction: Direction) -> Option<Tuple> {
        self.tuples.map(|tuples| tuples[direction.index()])
    }

    fn direction(&self) -> Option<Direction> {
        self.direction
    }

    fn conn_mark(&self) -> Option<u32> {
        self.conn_mark
    }

    fn set_conn_mark(&mut self, mark: u32) {
        self.conn_mark = self.conn_mark.map(|_| mark);
    }

    fn expires_in(&self) -> u32 {
        self.expires_in
    }

    fn traffic(&self, direction: Direction) -> Option<(u64, u64)> {
        self.traffic.map(|traffic| traffic[direction.index()])
    }

    fn liveness(&self, tuple: &Tuple) -> Liveness {
        self.alive.iter().find(|(known, _)| known == tuple).map_or(Liveness::Gone, |(_, liveness)| *liveness)
    }

    fn address_type(&self, addr: Addr, on: Option<PortId>) -> AddressType {
        let known = self.addresses.iter().find(|(known, port, _)| *known == addr && (on.is_none() || *port == on));
        known.map_or(AddressType::Unicast, |(_, _, kind)| *kind)
    }

    fn reverse_path(&self, _: &Context<'_>, _: bool, _: bool) -> bool {
        self.reverse_path
    }

    fn mtu_back(&self, _: &Context<'_>) -> u16 {
        self.mtu_back
    }

    fn unix_time(&self) -> (i64, i32) {
        self.unix_time
    }

    fn random(&self) -> u32 {
        self.random
    }

    fn log(&mut self, _: &LogRequest<'_>) {
        self.logged += 1;
    }
}
