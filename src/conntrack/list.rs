//! A connection as an operator sees it: [`ConnView`], a value without references that crosses the worker's mailbox and
//! the control socket. How it is written is `text`'s (lines), `xml`'s and `json`'s affair.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::conn::Conn;
use super::helper::Helper;
use super::tuple::{CtStatus, Tuple};
use crate::packet::Packet;
use crate::time::{Instant, SECOND_NS};
use crate::wire::proto;

/// Packets and bytes of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP packets, headers included.
    pub bytes: u64,
}

impl Counter {
    #[inline]
    pub(super) fn count(&mut self, packet: &Packet) {
        self.packets += 1;
        self.bytes += u64::from(packet.l3_len);
    }

    /// Both together.
    pub(super) fn plus(self, other: Counter) -> Counter {
        Counter { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// One tuple. What the two numbers mean depends on the protocol, see [`Tuple`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TupleView {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, ICMP identifier or GRE source key.
    pub sport: u16,
    /// Destination port, ICMP type and code, or GRE destination key.
    pub dport: u16,
    /// Conntrack zone of this direction.
    pub zone: u16,
}

impl From<Tuple> for TupleView {
    fn from(tuple: Tuple) -> TupleView {
        let Tuple { sport, dport, zone, .. } = tuple;
        TupleView { src: ip(tuple.src, &tuple), dst: ip(tuple.dst, &tuple), sport, dport, zone }
    }
}

/// The address in the tuple's own family: an IPv4-mapped address in an IPv6 packet stays IPv6.
fn ip(addr: crate::wire::Addr, tuple: &Tuple) -> IpAddr {
    match tuple.family {
        crate::wire::Family::V4 => addr.to_ip(),
        crate::wire::Family::V6 => IpAddr::V6(addr.bits().into()),
    }
}

/// State of a protocol that has one, under the name it is listed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)] // the names are the documentation
pub enum StateView {
    None,
    SynSent,
    SynRecv,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
    SynSent2,
    Closed,
    CookieWait,
    CookieEchoed,
    ShutdownSent,
    ShutdownRecd,
    ShutdownAckSent,
    HeartbeatSent,
}

impl StateView {
    /// Every state.
    pub const ALL: [StateView; 17] = [
        StateView::None,
        StateView::SynSent,
        StateView::SynRecv,
        StateView::Established,
        StateView::FinWait,
        StateView::CloseWait,
        StateView::LastAck,
        StateView::TimeWait,
        StateView::Close,
        StateView::SynSent2,
        StateView::Closed,
        StateView::CookieWait,
        StateView::CookieEchoed,
        StateView::ShutdownSent,
        StateView::ShutdownRecd,
        StateView::ShutdownAckSent,
        StateView::HeartbeatSent,
    ];

    /// The name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            StateView::None => "NONE",
            StateView::SynSent => "SYN_SENT",
            StateView::SynRecv => "SYN_RECV",
            StateView::Established => "ESTABLISHED",
            StateView::FinWait => "FIN_WAIT",
            StateView::CloseWait => "CLOSE_WAIT",
            StateView::LastAck => "LAST_ACK",
            StateView::TimeWait => "TIME_WAIT",
            StateView::Close => "CLOSE",
            StateView::SynSent2 => "SYN_SENT2",
            StateView::Closed => "CLOSED",
            StateView::CookieWait => "COOKIE_WAIT",
            StateView::CookieEchoed => "COOKIE_ECHOED",
            StateView::ShutdownSent => "SHUTDOWN_SENT",
            StateView::ShutdownRecd => "SHUTDOWN_RECD",
            StateView::ShutdownAckSent => "SHUTDOWN_ACK_SENT",
            StateView::HeartbeatSent => "HEARTBEAT_SENT",
        }
    }
}

/// Everything a listing shows of a connection. Its `Display` is the line of `conntrack -L`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "super::json::ConnJson", from = "super::json::ConnJson")]
pub struct ConnView {
    /// 2 for IPv4, 10 for IPv6 (`AF_INET`, `AF_INET6`).
    pub family: u8,
    /// Transport protocol.
    pub proto: u8,
    /// Whole seconds until it expires.
    pub timeout: u32,
    /// Protocol state, where there is one.
    pub state: Option<StateView>,
    /// GRE's two time-outs, in seconds: without and with replies.
    pub gre_timeouts: Option<[u32; 2]>,
    /// First packet's direction.
    pub original: TupleView,
    /// The other direction.
    pub reply: TupleView,
    /// Per direction, where they are kept.
    pub counters: Option<[Counter; 2]>,
    /// `enum ip_conntrack_status`.
    pub status: u16,
    /// Connection mark.
    pub mark: u32,
    /// What reads its packets.
    pub helper: Option<Helper>,
    /// When it was confirmed, where that is kept: nanoseconds on the tracker's clock, and since 1970 once the control
    /// thread has seen it.
    pub start: Option<u64>,
    /// When it went, likewise; only in the event that says so.
    pub stop: Option<u64>,
    /// Tells connections apart; means nothing else.
    pub id: u32,
}

impl ConnView {
    pub(super) fn new(
        conn: &Conn,
        tuples: [Tuple; 2],
        id: u32,
        counters: Option<[Counter; 2]>,
        start: Option<u64>,
        now: Instant,
    ) -> ConnView {
        ConnView {
            family: conn.family() as u8,
            proto: conn.proto,
            timeout: u32::try_from((conn.expires - now) / SECOND_NS).unwrap_or(u32::MAX),
            state: conn.state_view(),
            gre_timeouts: (conn.proto == proto::GRE).then_some(conn.words),
            original: tuples[0].into(),
            reply: tuples[1].into(),
            counters,
            status: conn.status.0,
            mark: conn.mark,
            helper: None,
            start,
            stop: None,
            id,
        }
    }

    /// Whether any of these status bits is set.
    pub fn has(&self, status: CtStatus) -> bool {
        CtStatus(self.status).any(status)
    }

    /// The zone, where both directions have the same.
    pub fn zone(&self) -> Option<u16> {
        (self.original.zone == self.reply.zone).then_some(self.original.zone)
    }
}

/// DCCP's number. Linux tracks it as a protocol without ports since 6.16; conntrack(8) shows it with ports, which are 0.
pub(super) const DCCP: u8 = 33;

/// The name conntrack(8) has for a protocol it knows the ports of.
pub fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        proto::ICMP => "icmp",
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::GRE => "gre",
        proto::ICMPV6 => "icmpv6",
        proto::SCTP => "sctp",
        proto::UDPLITE => "udplite",
        DCCP => "dccp",
        _ => "unknown",
    }
}
