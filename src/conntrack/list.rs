//! A connection as an operator sees it: [`ConnView`], a value without references that crosses the control socket, and
//! the line that conntrack(8) 1.4.7 prints for it, byte for byte.

use core::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::conn::Conn;
use super::sctp::SctpState;
use super::tcp::TcpState;
use super::tuple::{CtStatus, Direction, Tuple};
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
}

/// One tuple. What the two numbers mean depends on the protocol, see [`Tuple`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TupleView {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, ICMP identifier or GRE source key.
    pub sport: u16,
    /// Destination port, ICMP type and code, or GRE destination key.
    pub dport: u16,
}

impl From<Tuple> for TupleView {
    fn from(tuple: Tuple) -> TupleView {
        TupleView { src: ip(tuple.src, &tuple), dst: ip(tuple.dst, &tuple), sport: tuple.sport, dport: tuple.dport }
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
pub struct ConnView {
    /// 2 for IPv4, 10 for IPv6 (`AF_INET`, `AF_INET6`).
    pub family: u8,
    /// Transport protocol.
    pub proto: u8,
    /// Whole seconds until it expires.
    pub timeout: u32,
    /// Protocol state, where there is one.
    pub state: Option<StateView>,
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
    /// Conntrack zone.
    pub zone: u16,
    /// Tells connections apart; means nothing else.
    pub id: u32,
}

/// Which columns a line has beyond the plain ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LineOptions {
    /// `-o extended`: the network protocol comes first.
    pub extended: bool,
    /// `-o id`: the identifier comes last.
    pub id: bool,
}

impl ConnView {
    pub(super) fn new(
        conn: &Conn,
        tuples: [Tuple; 2],
        id: u32,
        counters: Option<[Counter; 2]>,
        now: Instant,
    ) -> ConnView {
        ConnView {
            family: conn.family() as u8,
            proto: conn.proto,
            timeout: u32::try_from((conn.expires - now) / SECOND_NS).unwrap_or(u32::MAX),
            state: match conn.proto {
                proto::TCP => Some(TcpState::of(conn).view()),
                proto::SCTP => Some(SctpState::of(conn).view()),
                _ => None,
            },
            original: tuples[0].into(),
            reply: tuples[1].into(),
            counters,
            status: conn.status.0,
            mark: conn.mark,
            zone: conn.zone,
            id,
        }
    }

    fn has(&self, status: CtStatus) -> bool {
        CtStatus(self.status).any(status)
    }

    /// The line of `conntrack -L` with these options, without the line's end.
    pub fn line(&self, options: LineOptions) -> impl fmt::Display + '_ {
        Line { view: self, options }
    }

    fn write_line(&self, f: &mut fmt::Formatter<'_>, options: LineOptions) -> fmt::Result {
        if options.extended {
            write!(f, "{:<8} {} ", if self.family == 2 { "ipv4" } else { "ipv6" }, self.family)?;
        }
        write!(f, "{:<8} {} {} ", protocol_name(self.proto), self.proto, self.timeout)?;
        if let Some(state) = self.state {
            write!(f, "{} ", state.name())?;
        }
        self.write_direction(f, Direction::Original)?;
        if !self.has(CtStatus::SEEN_REPLY) {
            f.write_str("[UNREPLIED] ")?;
        }
        self.write_direction(f, Direction::Reply)?;
        if self.has(CtStatus::ASSURED) {
            f.write_str("[ASSURED] ")?;
        }
        write!(f, "mark={} ", self.mark)?;
        if self.zone != 0 {
            write!(f, "zone={} ", self.zone)?;
        }
        f.write_str("use=1")?;
        if options.id {
            write!(f, " id={}", self.id)?;
        }
        Ok(())
    }

    fn write_direction(&self, f: &mut fmt::Formatter<'_>, direction: Direction) -> fmt::Result {
        let tuple = match direction {
            Direction::Original => &self.original,
            Direction::Reply => &self.reply,
        };
        write!(f, "src={} dst={} ", tuple.src, tuple.dst)?;
        match self.proto {
            proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP => {
                write!(f, "sport={} dport={} ", tuple.sport, tuple.dport)?;
            }
            proto::ICMP | proto::ICMPV6 => {
                let [kind, code] = tuple.dport.to_be_bytes();
                write!(f, "type={kind} code={code} id={} ", tuple.sport)?;
            }
            proto::GRE => write!(f, "srckey={:#x} dstkey={:#x} ", tuple.sport, tuple.dport)?,
            _ => {}
        }
        if let Some(counters) = &self.counters {
            let Counter { packets, bytes } = counters[direction.index()];
            write!(f, "packets={packets} bytes={bytes} ")?;
        }
        Ok(())
    }
}

/// A view and how to print it.
struct Line<'a> {
    view: &'a ConnView,
    options: LineOptions,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view.write_line(f, self.options)
    }
}

impl fmt::Display for ConnView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_line(f, LineOptions::default())
    }
}

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
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(protocol: u8, timeout: u32, sport: u16, dport: u16, rsport: u16, rdport: u16) -> ConnView {
        let (a, b) = match protocol {
            proto::ICMPV6 => ("fd01::2".parse().expect("v6"), "fd02::2".parse().expect("v6")),
            _ => (IpAddr::from([10, 1, 0, 2]), IpAddr::from([10, 2, 0, 2])),
        };
        ConnView {
            family: if protocol == proto::ICMPV6 { 10 } else { 2 },
            proto: protocol,
            timeout,
            state: None,
            original: TupleView { src: a, dst: b, sport, dport },
            reply: TupleView { src: b, dst: a, sport: rsport, dport: rdport },
            counters: None,
            status: CtStatus::CONFIRMED.0,
            mark: 0,
            zone: 0,
            id: 0,
        }
    }

    fn replied(view: ConnView) -> ConnView {
        ConnView { status: view.status | CtStatus::SEEN_REPLY.0, ..view }
    }

    /// Lines of conntrack 1.4.7 over Linux 6.18.
    #[test]
    fn lines_are_those_of_conntrack() {
        let tcp = ConnView {
            state: Some(StateView::Established),
            status: 0xe,
            ..view(proto::TCP, 299, 30000, 21, 21, 30000)
        };
        let udp = ConnView {
            mark: 42,
            zone: 5,
            counters: Some([Counter { packets: 1, bytes: 31 }, Counter::default()]),
            ..view(proto::UDP, 29, 3100, 53, 53, 3100)
        };
        let cases = [
            (
                tcp,
                "tcp      6 299 ESTABLISHED src=10.1.0.2 dst=10.2.0.2 sport=30000 dport=21 src=10.2.0.2 dst=10.1.0.2 \
                 sport=21 dport=30000 [ASSURED] mark=0 use=1",
            ),
            (
                replied(view(proto::ICMP, 28, 77, 8 << 8, 77, 0)),
                "icmp     1 28 src=10.1.0.2 dst=10.2.0.2 type=8 code=0 id=77 src=10.2.0.2 dst=10.1.0.2 type=0 code=0 \
                 id=77 mark=0 use=1",
            ),
            (
                view(proto::ICMPV6, 29, 9, 128 << 8, 9, 129 << 8),
                "icmpv6   58 29 src=fd01::2 dst=fd02::2 type=128 code=0 id=9 [UNREPLIED] src=fd02::2 dst=fd01::2 \
                 type=129 code=0 id=9 mark=0 use=1",
            ),
            (
                view(proto::GRE, 29, 0, 0x1234, 0x1234, 0),
                "gre      47 29 src=10.1.0.2 dst=10.2.0.2 srckey=0x0 dstkey=0x1234 [UNREPLIED] src=10.2.0.2 \
                 dst=10.1.0.2 srckey=0x1234 dstkey=0x0 mark=0 use=1",
            ),
            (
                replied(view(proto::ESP, 599, 0, 0, 0, 0)),
                "unknown  50 599 src=10.1.0.2 dst=10.2.0.2 src=10.2.0.2 dst=10.1.0.2 mark=0 use=1",
            ),
            (
                udp,
                "udp      17 29 src=10.1.0.2 dst=10.2.0.2 sport=3100 dport=53 packets=1 bytes=31 [UNREPLIED] \
                 src=10.2.0.2 dst=10.1.0.2 sport=53 dport=3100 packets=0 bytes=0 mark=42 zone=5 use=1",
            ),
        ];
        for (view, line) in cases {
            assert_eq!(view.to_string(), line);
        }
    }

    #[test]
    fn extended_and_id_add_columns() {
        let view = ConnView { id: 7, ..replied(view(proto::ESP, 599, 0, 0, 0, 0)) };
        let line = view.line(LineOptions { extended: true, id: true }).to_string();
        assert!(line.starts_with("ipv4     2 unknown  50 599 src="), "{line}");
        assert!(line.ends_with(" mark=0 use=1 id=7"), "{line}");
        let v6 = ConnView { family: 10, ..view };
        assert!(v6.line(LineOptions { extended: true, id: false }).to_string().starts_with("ipv6     10 unknown"));
    }

    #[test]
    fn a_view_crosses_a_socket_unchanged() {
        let view = ConnView { state: Some(StateView::SynSent2), ..view(proto::TCP, 1, 2, 3, 3, 2) };
        let json = serde_json::to_string(&view).expect("serializable");
        assert!(json.contains("SYN_SENT2"), "{json}");
        assert_eq!(serde_json::from_str::<ConnView>(&json).expect("the same"), view);
    }
}
