//! A world that says what stands in its fields: [`Told`], for rules evaluated without a router around them (explaining, tests).

use super::context::{AddressType, Context, Liveness, World};
use super::log::{LogRecord, LogRequest};
use super::nflog::{NflogRecord, NflogRequest};
use super::targets::TraceEvent;
use crate::conntrack::{Direction, Tuple};
use crate::device::PortId;
use crate::wire::Addr;

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Original and reply tuple of the connection.
    pub tuples: Option<[Tuple; 2]>,
    /// Which of them the packet has.
    pub direction: Option<Direction>,
    /// The connection's mark.
    pub conn_mark: Option<u32>,
    /// Seconds until it expires.
    pub expires_in: u32,
    /// Packets and bytes, by direction.
    pub traffic: Option<[(u64, u64); 2]>,
    /// The helper of the connection that this one was expected by.
    pub master_helper: Option<&'static str>,
    /// Other connections, by original tuple.
    pub alive: Vec<(Tuple, Liveness)>,
    /// What is no unicast address of somebody else's, and whose port it is on.
    pub addresses: Vec<(Addr, Option<PortId>, AddressType)>,
    /// Whether there is a way back.
    pub reverse_path: bool,
    /// MTU of the way back.
    pub mtu_back: u16,
    /// Seconds since 1970, and what the time zone adds.
    pub unix_time: (i64, i32),
    /// The random number.
    pub random: u32,
    /// LOG lines.
    pub logs: Vec<LogRecord>,
    /// NFLOG copies.
    pub copies: Vec<NflogRecord>,
    /// Steps of a traced packet: what their lines begin with.
    pub steps: Vec<String>,
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

    fn master_helper(&self) -> Option<&str> {
        self.master_helper
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

    fn log(&mut self, request: &LogRequest<'_>) {
        self.logs.push(LogRecord::new(request));
    }

    fn nflog(&mut self, request: &NflogRequest<'_>) {
        self.copies.push(NflogRecord::new(request));
    }

    fn trace(&mut self, event: &TraceEvent<'_>) {
        self.steps.push(event.to_string());
    }
}
