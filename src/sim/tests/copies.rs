//! Copies of NFLOG rules, from the worker to a file or a socket.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::{Block, PcapNgReader};

use super::*;
use crate::control::nflog::NflogWriter;
use crate::rules::NflogRecord;
use crate::worker::COPY_RING;

const RULES: &str = "*filter\n:FORWARD ACCEPT [0:0]\n\
    -A FORWARD -p udp -j NFLOG --nflog-prefix \"seen \" --nflog-size 28\nCOMMIT\n";

fn copying() -> Simulator {
    let load = |family| rules::load("copies", RULES, family, &["lan", "wan"]).expect("good rules");
    let [v4, v6] = [Family::V4, Family::V6].map(|family| RuleVector::compile(&load(family)));
    let policy = Policy { generation: 1, v4, v6 };
    Simulator::new(policy, routing(), Settings { max: 1024, ..Settings::default() }, Faults::default(), 1)
}

/// The first of as many copies as there are queries.
fn copy(sim: &mut Simulator, queries: u16) -> NflogRecord {
    for port in 0..queries {
        sim.wire(PortId::LAN).send(&query(1000 + port));
        sim.burst().expect("no port was cut");
    }
    sim.handle.copies.pop().expect("a copy")
}

struct Path(PathBuf);

impl Path {
    fn new(name: &str) -> Path {
        Path(std::env::temp_dir().join(format!("xrcopies{}-{name}", std::process::id())))
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Interface, time, kept bytes, whole length, and comment of each packet.
fn packets(bytes: &[u8]) -> Vec<(u32, Duration, Vec<u8>, u32, String)> {
    let mut reader = PcapNgReader::new(bytes).expect("a capture");
    let mut found = Vec::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.expect("a whole block") else { continue };
        let comment = packet.options.iter().find_map(|option| match option {
            EnhancedPacketOption::Comment(text) => Some(text.to_string()),
            _ => None,
        });
        let comment = comment.unwrap_or_default();
        found.push((packet.interface_id, packet.timestamp, packet.data.to_vec(), packet.original_len, comment));
    }
    assert_eq!(reader.interfaces().len(), 2);
    found
}

#[test]
fn a_copy_comes_into_the_file_and_over_the_socket() {
    let record = copy(&mut copying(), 1);
    let when = Duration::from_nanos(1_700_000_000_123_456_789);
    let sent = query(1000);
    let length = sent.len() as u32;
    let mut kept = sent[..42].to_vec();
    // As rules of FORWARD see it.
    kept[22] -= 1;
    let wanted = |found: Vec<(u32, Duration, Vec<u8>, u32, String)>| {
        let [(port, time, mut data, whole, comment)] = <[_; 1]>::try_from(found).expect("one packet");
        data[24..26].copy_from_slice(&kept[24..26]); // checksum
        kept[22] = data[22];
        assert_eq!((port, time, whole, comment.as_str()), (0, when, length, "seen "));
        assert_eq!(data, kept);
    };
    let file = Path::new("file");
    let mut writer = NflogWriter::open(&file.0).expect("a file");
    writer.write(&record, when);
    writer.flush();
    let mut wanted = wanted;
    wanted(packets(&std::fs::read(&file.0).expect("it was made")));

    let socket = Path::new("socket");
    let listener = UnixListener::bind(&socket.0).expect("a socket");
    let mut writer = NflogWriter::open(&socket.0).expect("somebody listens");
    let mut heard = listener.accept().expect("it has connected").0;
    writer.write(&record, when);
    drop(writer);
    let mut bytes = Vec::new();
    heard.read_to_end(&mut bytes).expect("all that was sent");
    wanted(packets(&bytes));
}

#[test]
fn a_listener_that_goes_costs_copies_and_nothing_else() {
    let record = copy(&mut copying(), 1);
    let socket = Path::new("gone");
    let listener = UnixListener::bind(&socket.0).expect("a socket");
    let mut writer = NflogWriter::open(&socket.0).expect("somebody listens");
    drop(listener);
    for round in 0..4 {
        writer.write(&record, Duration::from_secs(round));
        writer.flush();
    }
    assert!(writer.lost() >= 3, "{} lost", writer.lost());
    let Err(failure) = NflogWriter::open(&socket.0) else { panic!("nobody listens") };
    assert!(failure.message().contains("nobody listens on this socket") && failure.exit_code() == 2, "{failure}");
    let Err(failure) = NflogWriter::open(std::path::Path::new("/dev/full")) else { panic!("it is full") };
    assert!(failure.message().contains("--nflog /dev/full: cannot write: No space left"), "{failure}");
}

#[test]
fn copies_that_nobody_takes_are_counted() {
    let mut sim = copying();
    copy(&mut sim, COPY_RING as u16 + 5);
    assert!(sim.handle.line.ask(Request::Stats));
    sim.burst().expect("no port was cut");
    let Some(Reply::Stats(stats)) = sim.handle.line.answer() else { panic!("not an answer") };
    assert_eq!(stats.copies_lost, 5);
}
