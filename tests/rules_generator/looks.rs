//! Matches that only look at the packet, and what packets need for them to find something.

use super::Version;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Protocols that only these matches look into.
pub(super) fn proto(version: Version) -> BoxedStrategy<u8> {
    match version {
        Version::V4 => select(&[132u8, 33, 50, 51][..]).boxed(),
        Version::V6 => select(&[132u8, 33, 50, 135][..]).boxed(),
    }
}

/// TOS, or traffic class.
pub(super) fn tos() -> BoxedStrategy<u8> {
    select(&[0u8, 0, 0, 0x10, 0x08, 0x04, 0x02, 0x01, 0x03, 0xb8, 0x28, 0x2a, 0xff][..]).boxed()
}

/// What packets of `proto` have behind the ports, or instead of them.
pub(super) fn body(version: Version, proto: u8, which: Index) -> Vec<u8> {
    let sctp: &[&[u8]] = &[
        &[],
        &[3, 0, 0, 4],
        &[0, 3, 0, 6, 1, 2, 0, 0],
        &[0, 3, 0, 6, 1, 2],
        &[1, 0, 0, 8, 0, 0, 0, 0],
        &[3, 0, 0, 4, 0, 7, 0, 8, 1, 2, 3, 4],
        &[0, 0, 0, 0],
        &[6, 1, 0, 4],
        &[6, 0, 0, 5, 9, 0, 0, 0, 14, 1, 0, 4],
        &[3, 0, 0, 4, 132, 0],
        &[192, 0, 0, 4, 193, 0, 0, 4],
    ];
    let dccp: &[&[u8]] = &[
        &[3, 0, 0, 0, 4, 0, 0, 1],
        &[4, 0, 0, 0, 4, 0, 0, 1, 38, 4, 0, 0],
        &[4, 0, 0, 0, 4, 0, 0, 1, 1, 1, 39, 3],
        &[5, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 38, 2, 0],
        &[3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        &[6, 0, 0, 0, 7, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[200, 0, 0, 0, 4, 0, 0, 1],
        &[9, 0, 0, 0, 15, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 41, 8, 0, 0],
        &[3, 0, 0, 0, 26, 0, 0, 1],
        &[6, 0, 0, 0, 20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    let esp: &[&[u8]] = &[&[0, 0, 1, 0, 0, 0, 0, 1], &[0, 0, 0, 9, 0, 0, 0, 1], &[0, 0, 0, 5, 0, 0, 0], &[0xff; 16]];
    let ah: &[&[u8]] = &[
        &[17, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        &[17, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1],
        &[17, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0],
    ];
    let mh: &[&[u8]] = &[
        &[59, 0, 5, 0, 0, 0, 0, 0],
        &[59, 0, 1, 0, 0, 0, 0, 0],
        &[59, 0, 0, 0, 0, 0],
        &[17, 0, 1, 0, 0, 0, 0, 0],
        &[59, 0, 5, 0, 0],
    ];
    let pick = |pool: &[&[u8]]| pool[which.index(pool.len())].to_vec();
    match (proto, version) {
        (132, _) => [&[0; 8], &pick(sctp)[..]].concat(),
        (33, _) => pick(dccp),
        (50, _) => pick(esp),
        (51, _) => pick(ah),
        (135, _) => pick(mh),
        _ => Vec::new(),
    }
}

/// Matches that stand in any rule.
const ANYWHERE: &[&str] = &[
    "-m mark --mark 0x0",
    "-m mark ! --mark 0x1/0x1",
    "-m mark --mark 0x1/0xff",
    "-m connmark --mark 0x0",
    "-m connmark ! --mark 0x1",
    "-m pkttype --pkt-type unicast",
    "-m pkttype ! --pkt-type unicast",
    "-m pkttype --pkt-type multicast",
    "-m pkttype ! --pkt-type broadcast",
    "-m length --length 40",
    "-m length --length :44",
    "-m length ! --length 48:60",
    "-m length --length 60:40",
    "-m mac --mac-source 02:00:00:00:00:0C",
    "-m mac ! --mac-source 02:00:00:00:00:0c",
    "-m mac --mac-source 2:0:0:0:0:d",
    "-m dscp --dscp 0",
    "-m dscp ! --dscp-class EF",
    "-m dscp --dscp-class AF11",
    "-m tos --tos Minimize-Delay",
    "-m tos ! --tos 0x08",
    "-m tos --tos 0x02/0x03",
    "-m ecn --ecn-ip-ect 0",
    "-m ecn ! --ecn-ip-ect 3",
    "-m addrtype --dst-type UNICAST",
    "-m addrtype ! --src-type LOCAL",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype --src-type UNICAST ! --dst-type MULTICAST",
    "-m addrtype --dst-type LOCAL --limit-iface-out",
    "-m addrtype ! --src-type LOCAL --limit-iface-in",
    "-m helper --helper ftp",
    "-m helper ! --helper ftp",
    "-m policy --dir in --pol none",
    "-m policy --dir out --pol ipsec",
    "-m policy --dir in --pol ipsec --strict ! --proto esp --reqid 5",
];

const ANYWHERE_V4: &[&str] = &[
    "-m iprange --src-range 10.1.0.2-10.1.0.4",
    "-m iprange ! --dst-range 10.1.0.3-10.2.0.3",
    "-m iprange --src-range 10.2.0.0-10.2.255.255 ! --dst-range 10.1.0.2",
    "-m ttl --ttl-eq 63",
    "-m ttl ! --ttl-eq 64",
    "-m ttl --ttl-lt 63",
    "-m ttl --ttl-gt 62",
    "-m addrtype --src-type UNICAST,LOCAL",
    "-m addrtype --dst-type BROADCAST,MULTICAST,BLACKHOLE",
];

const ANYWHERE_V6: &[&str] = &[
    "-m iprange --src-range fd01::2-fd01::4",
    "-m iprange ! --dst-range fd01::3-fd02::3",
    "-m iprange --src-range fd02::-fd02::ffff ! --dst-range fd01::2",
    "-m hl --hl-eq 63",
    "-m hl ! --hl-eq 64",
    "-m hl --hl-lt 63",
    "-m hl --hl-gt 62",
    "-m frag",
    "-m frag ! --fragid 1 --fragfirst",
    "-m ipv6header --header prot",
    "-m ipv6header --header dst,prot",
    "-m ipv6header ! --header route --soft",
    "-m ipv6header --header auth,prot --soft",
    "-m ipv6header ! --header hop,dst,prot",
    "-m ipv6header --header none --soft",
    "-m ipv6header --header esp",
    "-m rt",
    "-m rt --rt-type 4",
    "-m rt ! --rt-type 0 --rt-segsleft 0:4",
    "-m rt --rt-type 0 --rt-0-res",
    "-m rt --rt-type 0 --rt-0-addrs fd01::1 --rt-0-not-strict",
    "-m rt --rt-len 8 ! --rt-segsleft 0",
    "-m hbh",
    "-m hbh --hbh-opts 1:4",
    "-m hbh ! --hbh-len 8",
    "-m dst",
    "-m dst --dst-len 8 --dst-opts 1",
    "-m dst --dst-opts 30:2,0,0",
    "-m dst --dst-opts 30,0,0,0",
    "-m dst --dst-opts 1:4,0",
    "-m ah",
    "-m ah --ahspi 0:8 --ahres",
    "-m ah ! --ahlen 12",
    "-m ah ! --ahspi 0 --ahlen 8",
    "-m eui64",
];

const TCP: &[&str] = &[
    "-p tcp -m tcpmss --mss 1460",
    "-p tcp -m tcpmss ! --mss 1000:1400",
    "-p tcp -m tcpmss --mss 0:1459",
    "-p tcp -m ecn --ecn-tcp-ece",
    "-p tcp -m ecn ! --ecn-tcp-cwr",
    "-p tcp -m ecn --ecn-tcp-cwr ! --ecn-tcp-ece --ecn-ip-ect 0",
];

const OTHERS: &[&str] = &[
    "-p sctp -m sctp",
    "-p sctp -m sctp --dport 1:1023",
    "-p sctp -m sctp ! --sport 22 --dport 0:65535",
    "-p sctp -m sctp --chunk-types any SACK",
    "-p sctp -m sctp --chunk-types any DATA:BE,ABORT:T",
    "-p sctp -m sctp --chunk-types any DATA:Bu,INIT",
    "-p sctp -m sctp --chunk-types all SACK,DATA",
    "-p sctp -m sctp --chunk-types all NONE",
    "-p sctp -m sctp --chunk-types only SACK,DATA:E",
    "-p sctp -m sctp --chunk-types only ABORT,SHUTDOWN_COMPLETE:t",
    "-p sctp -m sctp --dport 1:1023 --chunk-types any ALL",
    "-p sctp -m sctp --chunk-types only FORWARD_TSN,ASCONF",
    "-p dccp -m dccp",
    "-p dccp -m dccp --sport 0:1023 ! --dport 80",
    "-p dccp -m dccp --dccp-types DATA,RESET",
    "-p dccp -m dccp ! --dccp-types REQUEST,INVALID",
    "-p dccp -m dccp --dccp-types INVALID",
    "-p dccp -m dccp --dccp-option 38",
    "-p dccp -m dccp --dccp-types DATA --dccp-option 39",
    "-p esp -m esp",
    "-p esp -m esp --espspi 256",
    "-p esp -m esp ! --espspi 0:9",
];

const OTHERS_V4: &[&str] = &["-p ah -m ah", "-p ah -m ah --ahspi 9", "-p ah -m ah ! --ahspi 0:9"];

const OTHERS_V6: &[&str] = &["-p mh -m mh", "-p mh -m mh --mh-type bu", "-p mh -m mh ! --mh-type 1:4"];

/// Every match by itself, with the `-p` it needs.
pub fn each(version: Version) -> Vec<&'static str> {
    let (anywhere, others) = own(version);
    [ANYWHERE, anywhere, TCP, OTHERS, others].concat()
}

fn own(version: Version) -> (&'static [&'static str], &'static [&'static str]) {
    match version {
        Version::V4 => (ANYWHERE_V4, OTHERS_V4),
        Version::V6 => (ANYWHERE_V6, OTHERS_V6),
    }
}

/// Nothing, or one or two matches that stand in any rule.
pub(super) fn anywhere(version: Version) -> BoxedStrategy<String> {
    let one = move || {
        let own = own(version).0;
        prop_oneof![select(ANYWHERE), select(own)].prop_map(|words| format!(" {words}"))
    };
    let two = (one(), one()).prop_map(|(a, b)| if a == b { a } else { a + &b });
    prop_oneof![8 => Just(String::new()), 3 => one(), 1 => two].boxed()
}

/// `-p` with a match that needs it.
pub(super) fn protocol(version: Version) -> BoxedStrategy<String> {
    let own = own(version).1;
    prop_oneof![3 => select(TCP), 3 => select(OTHERS), 1 => select(own)].prop_map(|words| format!(" {words}")).boxed()
}
