//! A connection as an element: what `conntrack -o xml` (conntrack-tools 1.4.7) prints for it, byte for byte; but for the
//! state of an SCTP connection, for which that has the name of the TCP state with the same number.

use core::fmt::Write;

use super::event::EventKind;
use super::list::{ConnView, Counter, DCCP, TupleView, protocol_name};
use super::text::LineOptions;
use super::tuple::CtStatus;
use crate::time::SECOND_NS;
use crate::wire::proto;

/// In front of the first element.
pub const XML_HEAD: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<conntrack>";
/// After the last.
pub const XML_TAIL: &str = "</conntrack>";

impl ConnView {
    /// Appends the element; for an event, its kind is told, and `when` (an element itself, or nothing) stands last.
    pub fn write_xml(&self, out: &mut String, event: Option<EventKind>, when: &str, options: &LineOptions) {
        let last = event == Some(EventKind::Destroy);
        let _ = match event {
            None => write!(out, "<flow>"),
            Some(kind) => write!(out, "<flow type=\"{}\">", kind.name()),
        };
        let counters = self.counters.filter(|_| event.is_none() || last);
        for (number, (direction, tuple)) in
            [("original", &self.original), ("reply", &self.reply)].into_iter().enumerate()
        {
            let _ = write!(out, "<meta direction=\"{direction}\">");
            self.write_layers(out, tuple);
            if self.zone().is_none() && tuple.zone != 0 {
                let _ = write!(out, "<zone>{}</zone>", tuple.zone);
            }
            if let Some(counters) = counters {
                let Counter { packets, bytes } = counters[number];
                let _ = write!(out, "<counters><packets>{packets}</packets><bytes>{bytes}</bytes></counters>");
            }
            out.push_str("</meta>");
        }
        out.push_str("<meta direction=\"independent\">");
        self.write_rest(out, event, options);
        out.push_str("</meta>");
        out.push_str(when);
        out.push_str("</flow>");
    }

    fn write_layers(&self, out: &mut String, tuple: &TupleView) {
        let name = if self.family == 2 { "ipv4" } else { "ipv6" };
        let TupleView { src, dst, sport, dport, .. } = *tuple;
        let _ = write!(
            out,
            "<layer3 protonum=\"{}\" protoname=\"{name}\"><src>{src}</src><dst>{dst}</dst></layer3>",
            self.family
        );
        let _ = write!(out, "<layer4 protonum=\"{}\" protoname=\"{}\">", self.proto, protocol_name(self.proto));
        let _ = match self.proto {
            proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP | DCCP => {
                write!(out, "<sport>{sport}</sport><dport>{dport}</dport>")
            }
            proto::GRE => write!(out, "<srckey>{sport:#x}</srckey><dstkey>{dport:#x}</dstkey>"),
            _ => Ok(()),
        };
        out.push_str("</layer4>");
    }

    fn write_rest(&self, out: &mut String, event: Option<EventKind>, options: &LineOptions) {
        let last = event == Some(EventKind::Destroy);
        if let Some(state) = self.state {
            let _ = write!(out, "<state>{}</state>", state.name());
        }
        if !last || self.timeout > 0 {
            let _ = write!(out, "<timeout>{}</timeout>", self.timeout);
        }
        if event.is_none() || self.mark != 0 {
            let _ = write!(out, "<mark>{}</mark>", self.mark);
        }
        if let Some(zone @ 1..) = self.zone() {
            let _ = write!(out, "<zone>{zone}</zone>");
        }
        if event.is_none() {
            let _ = write!(out, "<use>{}</use>", options.uses);
        }
        let _ = write!(out, "<id>{}</id>", self.id);
        if self.has(CtStatus::ASSURED) {
            out.push_str("<assured/>");
        }
        if !self.has(CtStatus::SEEN_REPLY) {
            out.push_str("<unreplied/>");
        }
        let Some(start) = self.start.filter(|_| event.is_none() || last) else { return };
        if options.local_time.is_some() {
            let _ = write!(out, "<timestamp><start>{start}</start>");
            if let Some(stop) = self.stop {
                let _ = write!(out, "<stop>{stop}</stop>");
            }
            out.push_str("</timestamp>");
        }
        let delta = match self.stop {
            Some(stop) => stop.saturating_sub(start) / SECOND_NS,
            None => options.now.saturating_sub(start / SECOND_NS),
        };
        let _ = write!(out, "<deltatime>{delta}</deltatime>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Elements of conntrack 1.4.7 over Linux 6.18, with nf_conntrack_acct and nf_conntrack_timestamp.
    #[test]
    fn elements_are_those_of_conntrack() {
        let tuple = |a: u8, b: u8, zone| TupleView {
            src: [10, a, 0, 2].into(),
            dst: [10, b, 0, 2].into(),
            sport: 4445,
            dport: 4445,
            zone,
        };
        let view = ConnView {
            family: 2,
            proto: proto::UDP,
            timeout: 29,
            state: None,
            gre_timeouts: None,
            original: tuple(1, 2, 6),
            reply: tuple(2, 1, 0),
            counters: Some([Counter { packets: 1, bytes: 29 }, Counter::default()]),
            status: 0,
            mark: 0,
            helper: None,
            start: Some(1_795_268_181_893_231_298),
            stop: None,
            id: 2_590_399_991,
        };
        let layers = |src, dst| {
            format!(
                "<layer3 protonum=\"2\" protoname=\"ipv4\"><src>{src}</src><dst>{dst}</dst></layer3><layer4 protonum=\"17\" \
                 protoname=\"udp\"><sport>4445</sport><dport>4445</dport></layer4>"
            )
        };
        let (there, back) = (layers("10.1.0.2", "10.2.0.2"), layers("10.2.0.2", "10.1.0.2"));
        let options = LineOptions { now: 1_795_268_182, local_time: Some(|_| String::new()), ..LineOptions::default() };
        let mut xml = String::new();
        view.write_xml(&mut xml, None, "", &options);
        assert_eq!(
            xml,
            format!(
                "<flow><meta direction=\"original\">{there}<zone>6</zone><counters><packets>1</packets><bytes>29</bytes>\
                 </counters></meta><meta direction=\"reply\">{back}<counters><packets>0</packets><bytes>0</bytes></counters>\
                 </meta><meta direction=\"independent\"><timeout>29</timeout><mark>0</mark><use>1</use><id>2590399991</id>\
                 <unreplied/><timestamp><start>1795268181893231298</start></timestamp><deltatime>1</deltatime></meta></flow>"
            )
        );
        xml.clear();
        let (original, reply) = (tuple(1, 2, 5), tuple(2, 1, 5));
        ConnView { original, reply, mark: 9, ..view }.write_xml(&mut xml, Some(EventKind::New), "<when/>", &options);
        assert_eq!(
            xml,
            format!(
                "<flow type=\"new\"><meta direction=\"original\">{there}</meta><meta direction=\"reply\">{back}</meta>\
                 <meta direction=\"independent\"><timeout>29</timeout><mark>9</mark><zone>5</zone><id>2590399991</id>\
                 <unreplied/></meta><when/></flow>"
            )
        );
    }
}
