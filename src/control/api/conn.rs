//! A connection in a listing: its line is conntrack's own, its JSON object has these names, which stay.

use serde_json::{Map, Value, json};

use super::ListedConn;
use crate::conntrack::{ConnView, CtStatus, LineOptions, TupleView, protocol_name};
use crate::wire::{Addr, Family, proto};

impl ListedConn for ConnView {
    fn family(&self) -> Family {
        if self.family == Family::V6 as u8 { Family::V6 } else { Family::V4 }
    }

    fn proto(&self) -> u8 {
        self.proto
    }

    fn src(&self) -> Addr {
        self.original.src.into()
    }

    fn dst(&self) -> Addr {
        self.original.dst.into()
    }

    fn write_line(&self, extended: bool, line: &mut String) {
        *line += &self.line(LineOptions { extended, id: false }).to_string();
    }

    fn to_json(&self) -> Value {
        let has = |status| CtStatus(self.status).any(status);
        let side = |number: usize, tuple: &TupleView| {
            let mut side = tuple_json(self.proto, tuple);
            if let Some(counters) = &self.counters {
                side.insert("packets".to_owned(), counters[number].packets.into());
                side.insert("bytes".to_owned(), counters[number].bytes.into());
            }
            side
        };
        json!({
            "family": if ListedConn::family(self) == Family::V4 { "ipv4" } else { "ipv6" },
            "proto": protocol_name(self.proto),
            "protonum": self.proto,
            "timeout": self.timeout,
            "state": self.state.map(|state| state.name()),
            "original": side(0, &self.original),
            "reply": side(1, &self.reply),
            "unreplied": !has(CtStatus::SEEN_REPLY),
            "assured": has(CtStatus::ASSURED),
            "status": self.status,
            "mark": self.mark,
            "zone": self.zone,
            "id": self.id,
        })
    }
}

/// A tuple, with the names that its protocol has for its numbers.
fn tuple_json(protocol: u8, tuple: &TupleView) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
    put("src", tuple.src.to_string().into());
    put("dst", tuple.dst.to_string().into());
    match protocol {
        proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP => {
            put("sport", tuple.sport.into());
            put("dport", tuple.dport.into());
        }
        proto::ICMP | proto::ICMPV6 => {
            let [kind, code] = tuple.dport.to_be_bytes();
            put("type", kind.into());
            put("code", code.into());
            put("id", tuple.sport.into());
        }
        proto::GRE => {
            put("srckey", tuple.sport.into());
            put("dstkey", tuple.dport.into());
        }
        _ => {}
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::StateView;

    #[test]
    fn json_has_the_names_of_the_protocol() {
        let tuple = |sport, dport| TupleView { src: [10, 0, 0, 1].into(), dst: [1, 1, 1, 1].into(), sport, dport };
        let view = ConnView {
            family: 2,
            proto: proto::TCP,
            timeout: 299,
            state: Some(StateView::Established),
            original: tuple(1234, 80),
            reply: tuple(80, 1234),
            counters: None,
            status: CtStatus::SEEN_REPLY.with(CtStatus::ASSURED).0,
            mark: 0,
            zone: 0,
            id: 7,
        };
        assert_eq!(
            view.to_json().to_string(),
            "{\"family\":\"ipv4\",\"proto\":\"tcp\",\"protonum\":6,\"timeout\":299,\"state\":\"ESTABLISHED\",\
             \"original\":{\"src\":\"10.0.0.1\",\"dst\":\"1.1.1.1\",\"sport\":1234,\"dport\":80},\
             \"reply\":{\"src\":\"10.0.0.1\",\"dst\":\"1.1.1.1\",\"sport\":80,\"dport\":1234},\
             \"unreplied\":false,\"assured\":true,\"status\":6,\"mark\":0,\"zone\":0,\"id\":7}"
        );
        let echo = ConnView { proto: proto::ICMP, state: None, original: tuple(77, 8 << 8), ..view };
        let json = echo.to_json();
        assert_eq!(
            (&json["original"]["type"], &json["original"]["id"], &json["state"]),
            (&8.into(), &77.into(), &Value::Null)
        );
    }
}
