//! A connection as a JSON object: our own form, the same on the control socket and from `xrouter conntrack -o json`.
//! conntrack-tools 1.4.7 has none. Its names stay; others may be added.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::helper::Helper;
use super::list::{ConnView, Counter, StateView, TupleView, protocol_name};
use super::tuple::CtStatus;
use crate::wire::proto;

/// The object. `unreplied` and `assured` repeat bits of `status`, `proto` repeats `protonum`, for those who read it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnJson {
    family: FamilyName,
    proto: String,
    protonum: u8,
    timeout: u32,
    state: Option<StateView>,
    original: TupleJson,
    reply: TupleJson,
    unreplied: bool,
    assured: bool,
    status: u16,
    mark: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    helper: Option<Helper>,
    /// The zone of both directions; where they differ, each tuple has its own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    zone: Option<u16>,
    /// GRE: without replies, with replies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    gre_timeouts: Option<[u32; 2]>,
    /// Nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    start: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    stop: Option<u64>,
    id: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FamilyName {
    Ipv4,
    Ipv6,
}

/// A tuple, with the names that its protocol has for its numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct TupleJson {
    src: IpAddr,
    dst: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    dport: Option<u16>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none", default)]
    kind: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    srckey: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    dstkey: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    zone: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    bytes: Option<u64>,
}

impl TupleJson {
    fn new(protocol: u8, tuple: &TupleView, counter: Option<Counter>, zone: Option<u16>) -> TupleJson {
        let bare = TupleJson {
            src: tuple.src,
            dst: tuple.dst,
            sport: None,
            dport: None,
            kind: None,
            code: None,
            id: None,
            srckey: None,
            dstkey: None,
            zone,
            packets: counter.map(|counter| counter.packets),
            bytes: counter.map(|counter| counter.bytes),
        };
        match protocol {
            proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP => {
                TupleJson { sport: Some(tuple.sport), dport: Some(tuple.dport), ..bare }
            }
            proto::ICMP | proto::ICMPV6 => {
                let [kind, code] = tuple.dport.to_be_bytes();
                TupleJson { kind: Some(kind), code: Some(code), id: Some(tuple.sport), ..bare }
            }
            proto::GRE => TupleJson { srckey: Some(tuple.sport), dstkey: Some(tuple.dport), ..bare },
            _ => bare,
        }
    }

    fn view(&self, zone: Option<u16>) -> TupleView {
        let message = self.kind.map(|kind| u16::from_be_bytes([kind, self.code.unwrap_or(0)]));
        TupleView {
            src: self.src,
            dst: self.dst,
            sport: self.sport.or(self.id).or(self.srckey).unwrap_or(0),
            dport: self.dport.or(message).or(self.dstkey).unwrap_or(0),
            zone: zone.or(self.zone).unwrap_or(0),
        }
    }

    fn counter(&self) -> Option<Counter> {
        Some(Counter { packets: self.packets?, bytes: self.bytes? })
    }
}

impl From<ConnView> for ConnJson {
    fn from(view: ConnView) -> ConnJson {
        let zone = view.zone();
        let side = |number: usize, tuple: &TupleView| {
            let counter = view.counters.map(|counters| counters[number]);
            TupleJson::new(view.proto, tuple, counter, zone.is_none().then_some(tuple.zone))
        };
        ConnJson {
            family: if view.family == 2 { FamilyName::Ipv4 } else { FamilyName::Ipv6 },
            proto: protocol_name(view.proto).to_owned(),
            protonum: view.proto,
            timeout: view.timeout,
            state: view.state,
            original: side(0, &view.original),
            reply: side(1, &view.reply),
            unreplied: !view.has(CtStatus::SEEN_REPLY),
            assured: view.has(CtStatus::ASSURED),
            status: view.status,
            mark: view.mark,
            helper: view.helper,
            zone,
            gre_timeouts: view.gre_timeouts,
            start: view.start,
            stop: view.stop,
            id: view.id,
        }
    }
}

impl From<ConnJson> for ConnView {
    fn from(json: ConnJson) -> ConnView {
        let counters = json.original.counter().zip(json.reply.counter());
        ConnView {
            family: match json.family {
                FamilyName::Ipv4 => 2,
                FamilyName::Ipv6 => 10,
            },
            proto: json.protonum,
            timeout: json.timeout,
            state: json.state,
            gre_timeouts: json.gre_timeouts,
            original: json.original.view(json.zone),
            reply: json.reply.view(json.zone),
            counters: counters.map(|(original, reply)| [original, reply]),
            status: json.status,
            mark: json.mark,
            helper: json.helper,
            start: json.start,
            stop: json.stop,
            id: json.id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_the_names_of_their_protocol() {
        let tuple =
            |sport, dport| TupleView { src: [10, 0, 0, 1].into(), dst: [1, 1, 1, 1].into(), sport, dport, zone: 0 };
        let view = ConnView {
            family: 2,
            proto: proto::TCP,
            timeout: 299,
            state: Some(StateView::Established),
            gre_timeouts: None,
            original: tuple(1234, 80),
            reply: tuple(80, 1234),
            counters: None,
            status: CtStatus::SEEN_REPLY.with(CtStatus::ASSURED).0,
            mark: 0,
            helper: None,
            start: None,
            stop: None,
            id: 7,
        };
        assert_eq!(
            serde_json::to_string(&view).expect("serializable"),
            "{\"family\":\"ipv4\",\"proto\":\"tcp\",\"protonum\":6,\"timeout\":299,\"state\":\"ESTABLISHED\",\
             \"original\":{\"src\":\"10.0.0.1\",\"dst\":\"1.1.1.1\",\"sport\":1234,\"dport\":80},\
             \"reply\":{\"src\":\"10.0.0.1\",\"dst\":\"1.1.1.1\",\"sport\":80,\"dport\":1234},\
             \"unreplied\":false,\"assured\":true,\"status\":6,\"mark\":0,\"zone\":0,\"id\":7}"
        );
        let echo = ConnView { proto: proto::ICMP, state: None, original: tuple(77, 8 << 8), ..view };
        let json = serde_json::to_value(echo).expect("serializable");
        assert_eq!(
            (&json["original"]["type"], &json["original"]["id"], &json["state"]),
            (&8.into(), &77.into(), &serde_json::Value::Null)
        );
    }
}
