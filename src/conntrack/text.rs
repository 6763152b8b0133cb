//! A connection as a line: that of `conntrack -L` and `-E` (conntrack-tools 1.4.7) and that of /proc/net/nf_conntrack,
//! byte for byte. A test compares them with the running kernel's (`tests/conntrack_kernel`).

use core::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr};

use super::event::EventKind;
use super::list::{ConnView, Counter, DCCP, TupleView, protocol_name};
use super::tuple::{CtStatus, Direction};
use crate::time::SECOND_NS;
use crate::wire::proto;

/// What a line has beyond the plain columns, and what it takes from outside.
#[derive(Clone, Copy, Debug)]
pub struct LineOptions {
    /// `-o extended`: the network protocol comes first.
    pub extended: bool,
    /// `-o id`: the identifier comes last.
    pub id: bool,
    /// What stands after `use=`: 1 in a listing, 2 where conntrack(8) asked for this one connection.
    pub uses: u8,
    /// The present, in seconds since 1970: `delta-time=` counts to here while the connection lives.
    pub now: u64,
    /// `-o ktimestamp`: how to write a moment, in seconds since 1970.
    pub local_time: Option<fn(u64) -> String>,
}

impl Default for LineOptions {
    fn default() -> LineOptions {
        LineOptions { extended: false, id: false, uses: 1, now: 0, local_time: None }
    }
}

/// The network protocol's name and number, as they stand in front of a line.
fn write_l3(out: &mut String, family: u8) {
    let _ = write!(out, "{:<8} {family} ", if family == 2 { "ipv4" } else { "ipv6" });
}

/// The two numbers of a tuple, under their protocol's names.
fn write_l4(out: &mut String, protocol: u8, tuple: &TupleView) {
    let TupleView { sport, dport, .. } = *tuple;
    let _ = match protocol {
        proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP | DCCP => write!(out, "sport={sport} dport={dport} "),
        proto::ICMP | proto::ICMPV6 => {
            let [kind, code] = dport.to_be_bytes();
            write!(out, "type={kind} code={code} id={sport} ")
        }
        proto::GRE => write!(out, "srckey={sport:#x} dstkey={dport:#x} "),
        _ => Ok(()),
    };
}

fn write_counters(out: &mut String, counter: Counter) {
    let _ = write!(out, "packets={} bytes={} ", counter.packets, counter.bytes);
}

impl ConnView {
    /// Appends the line of `conntrack -L`, without the line's end.
    pub fn write_line(&self, out: &mut String, options: &LineOptions) {
        self.write(out, options, None);
    }

    /// Appends the line of `conntrack -E`, without its time, its end, and the program that caused it.
    pub fn write_event(&self, out: &mut String, kind: EventKind, options: &LineOptions) {
        let _ = write!(out, "{:>9} ", kind.bracketed());
        self.write(out, options, Some(kind));
    }

    /// Events have no `use=`, a mark only when there is one; only the last event has counters, and it has no timeout
    /// when the connection ended because that was over.
    fn write(&self, out: &mut String, options: &LineOptions, event: Option<EventKind>) {
        let last = event == Some(EventKind::Destroy);
        if options.extended {
            write_l3(out, self.family);
        }
        let _ = write!(out, "{:<8} {} ", protocol_name(self.proto), self.proto);
        if !last || self.timeout > 0 {
            let _ = write!(out, "{} ", self.timeout);
        }
        if let Some(state) = self.state {
            let _ = write!(out, "{} ", state.name());
        }
        let counters = self.counters.filter(|_| event.is_none() || last);
        self.write_direction(out, Direction::Original, counters);
        if !self.has(CtStatus::SEEN_REPLY) {
            out.push_str("[UNREPLIED] ");
        }
        self.write_direction(out, Direction::Reply, counters);
        if self.has(CtStatus::ASSURED) {
            out.push_str("[ASSURED] ");
        }
        if event.is_none() || self.mark != 0 {
            let _ = write!(out, "mark={} ", self.mark);
        }
        if let Some(zone @ 1..) = self.zone() {
            let _ = write!(out, "zone={zone} ");
        }
        self.write_times(out, options, event);
        if let Some(helper) = self.helper.filter(|_| event.is_none()) {
            let _ = write!(out, "helper={} ", helper.name());
        }
        if event.is_none() {
            let _ = write!(out, "use={} ", options.uses);
        }
        if options.id {
            let _ = write!(out, "id={} ", self.id);
        }
        out.truncate(out.trim_end_matches(' ').len());
    }

    fn write_direction(&self, out: &mut String, direction: Direction, counters: Option<[Counter; 2]>) {
        let (tuple, zone) = match direction {
            Direction::Original => (&self.original, "zone-orig"),
            Direction::Reply => (&self.reply, "zone-reply"),
        };
        let _ = write!(out, "src={} dst={} ", tuple.src, tuple.dst);
        write_l4(out, self.proto, tuple);
        if self.zone().is_none() && tuple.zone != 0 {
            let _ = write!(out, "{zone}={} ", tuple.zone);
        }
        if let Some(counters) = counters {
            write_counters(out, counters[direction.index()]);
        }
    }

    /// The kernel tells the times of connections that are listed, and of those that end.
    fn write_times(&self, out: &mut String, options: &LineOptions, event: Option<EventKind>) {
        let Some(start) = self.start.filter(|_| matches!(event, None | Some(EventKind::Destroy))) else { return };
        let (start, stop) = (start / SECOND_NS, self.stop.map(|stop| stop / SECOND_NS));
        let _ = write!(out, "delta-time={} ", stop.unwrap_or(options.now).saturating_sub(start));
        if let Some(local_time) = options.local_time {
            let _ = write!(out, "[start={}] ", local_time(start));
            if let Some(stop) = stop {
                let _ = write!(out, "[stop={}] ", local_time(stop));
            }
        }
    }

    /// Appends the line of /proc/net/nf_conntrack, without the line's end. `now` is in nanoseconds since 1970.
    pub fn write_proc(&self, out: &mut String, now: u64) {
        write_l3(out, self.family);
        // The kernel itself has forgotten about DCCP.
        let name = if self.proto == DCCP { "unknown" } else { protocol_name(self.proto) };
        let _ = write!(out, "{name:<8} {} {} ", self.proto, self.timeout);
        if let Some(state) = self.state {
            let _ = write!(out, "{} ", state.name());
        }
        if let Some([timeout, stream]) = self.gre_timeouts {
            let _ = write!(out, "timeout={timeout}, stream_timeout={stream} ");
        }
        for (number, (tuple, zone)) in
            [(&self.original, "zone-orig"), (&self.reply, "zone-reply")].into_iter().enumerate()
        {
            let _ = write!(out, "src={} dst={} ", Expanded(tuple.src), Expanded(tuple.dst));
            if self.proto != DCCP {
                write_l4(out, self.proto, tuple);
            }
            if self.zone().is_none() && tuple.zone != 0 {
                let _ = write!(out, "{zone}={} ", tuple.zone);
            }
            if let Some(counters) = self.counters {
                write_counters(out, counters[number]);
            }
            if number == 0 && !self.has(CtStatus::SEEN_REPLY) {
                out.push_str("[UNREPLIED] ");
            }
        }
        if self.has(CtStatus::ASSURED) {
            out.push_str("[ASSURED] ");
        }
        let _ = write!(out, "mark={} ", self.mark);
        if let Some(zone) = self.zone() {
            let _ = write!(out, "zone={zone} ");
        }
        if let Some(start) = self.start {
            let _ = write!(out, "delta-time={} ", now.saturating_sub(start) / SECOND_NS);
        }
        out.push_str("use=2");
    }
}

/// An address as the kernel prints it in /proc: IPv6 with all its zeroes.
struct Expanded(IpAddr);

impl fmt::Display for Expanded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IpAddr::V6(v6) = self.0 else { return self.0.fmt(f) };
        let [a, b, c, d, e, g, h, i] = Ipv6Addr::segments(&v6);
        write!(f, "{a:04x}:{b:04x}:{c:04x}:{d:04x}:{e:04x}:{g:04x}:{h:04x}:{i:04x}")
    }
}

impl fmt::Display for ConnView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        self.write_line(&mut line, &LineOptions::default());
        f.write_str(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::{StateView, TupleView};
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
            gre_timeouts: None,
            original: TupleView { src: a, dst: b, sport, dport, zone: 0 },
            reply: TupleView { src: b, dst: a, sport: rsport, dport: rdport, zone: 0 },
            counters: None,
            status: CtStatus::CONFIRMED.0,
            mark: 0,
            helper: None,
            start: None,
            stop: None,
            id: 0,
        }
    }

    fn zoned(view: ConnView, original: u16, reply: u16) -> ConnView {
        let (original, reply) =
            (TupleView { zone: original, ..view.original }, TupleView { zone: reply, ..view.reply });
        ConnView { original, reply, ..view }
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
            counters: Some([Counter { packets: 1, bytes: 31 }, Counter::default()]),
            ..view(proto::UDP, 29, 3100, 53, 53, 3100)
        };
        let udp = zoned(udp, 5, 5);
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

    fn line(view: &ConnView, options: LineOptions) -> String {
        let mut line = String::new();
        view.write_line(&mut line, &options);
        line
    }

    #[test]
    fn options_add_columns() {
        let view = ConnView { id: 7, ..replied(view(proto::ESP, 599, 0, 0, 0, 0)) };
        let text = line(&view, LineOptions { extended: true, id: true, uses: 2, ..LineOptions::default() });
        assert!(text.starts_with("ipv4     2 unknown  50 599 src="), "{text}");
        assert!(text.ends_with(" mark=0 use=2 id=7"), "{text}");
        let v6 = ConnView { family: 10, ..view };
        let text = line(&v6, LineOptions { extended: true, ..LineOptions::default() });
        assert!(text.starts_with("ipv6     10 unknown"), "{text}");
        let begun = ConnView { start: Some(1_795_267_336_809_000_000), ..view };
        let options =
            LineOptions { now: 1_795_267_338, local_time: Some(|time| format!("@{time}")), ..LineOptions::default() };
        let text = line(&begun, options);
        assert!(text.ends_with(" mark=0 delta-time=2 [start=@1795267336] use=1"), "{text}");
    }

    #[test]
    fn zones_of_one_direction_stand_with_its_tuple() {
        let view = view(proto::UDP, 29, 4, 5, 5, 4);
        let original = line(&zoned(view, 6, 0), LineOptions::default());
        assert!(
            original.contains("dport=5 zone-orig=6 [UNREPLIED]") && original.ends_with("mark=0 use=1"),
            "{original}"
        );
        let reply = line(&zoned(view, 0, 7), LineOptions::default());
        assert!(reply.contains("dport=4 zone-reply=7 mark=0"), "{reply}");
        let mut proc = String::new();
        zoned(view, 6, 0).write_proc(&mut proc, 0);
        assert!(proc.contains("dport=5 zone-orig=6 [UNREPLIED]") && proc.ends_with("mark=0 use=2"), "{proc}");
    }

    /// Lines of conntrack 1.4.7 -E over Linux 6.18, with nf_conntrack_acct and nf_conntrack_timestamp.
    #[test]
    fn events_are_those_of_conntrack() {
        let icmp = ConnView {
            counters: Some([Counter { packets: 2, bytes: 168 }; 2]),
            start: Some(1_795_267_336_869_000_000),
            stop: Some(1_795_267_337_900_000_000),
            ..replied(view(proto::ICMP, 0, 30332, 8 << 8, 30332, 0))
        };
        let mut text = String::new();
        icmp.write_event(&mut text, EventKind::Destroy, &LineOptions::default());
        assert_eq!(
            text,
            "[DESTROY] icmp     1 src=10.1.0.2 dst=10.2.0.2 type=8 code=0 id=30332 packets=2 bytes=168 src=10.2.0.2 \
             dst=10.1.0.2 type=0 code=0 id=30332 packets=2 bytes=168 delta-time=1"
        );
        text.clear();
        let begun = ConnView { timeout: 1, status: 0, ..icmp };
        begun.write_event(&mut text, EventKind::New, &LineOptions::default());
        assert_eq!(
            text,
            "    [NEW] icmp     1 1 src=10.1.0.2 dst=10.2.0.2 type=8 code=0 id=30332 [UNREPLIED] src=10.2.0.2 dst=10.1.0.2 \
             type=0 code=0 id=30332"
        );
        text.clear();
        ConnView { mark: 9, ..icmp }.write_event(&mut text, EventKind::Update, &LineOptions::default());
        assert!(text.starts_with(" [UPDATE] icmp     1 0 src=") && text.ends_with("id=30332 mark=9"), "{text}");
    }

    #[test]
    fn views_cross_a_socket_unchanged() {
        let counters = Some([Counter { packets: 1, bytes: 31 }, Counter::default()]);
        let tcp = ConnView { state: Some(StateView::SynSent2), counters, ..view(proto::TCP, 1, 2, 3, 3, 2) };
        let echo = ConnView { start: Some(5), stop: Some(6), ..view(proto::ICMPV6, 29, 9, 128 << 8, 9, 129 << 8) };
        let gre = ConnView { gre_timeouts: Some([30, 180]), ..view(proto::GRE, 29, 0, 0x1234, 0x1234, 0) };
        for view in
            [tcp, echo, gre, zoned(tcp, 5, 5), zoned(tcp, 6, 0), zoned(tcp, 0, 7), view(proto::ESP, 1, 0, 0, 0, 0)]
        {
            let json = serde_json::to_string(&view).expect("serializable");
            assert_eq!(serde_json::from_str::<ConnView>(&json).expect("the same"), view, "{json}");
        }
    }
}
