use super::*;
use crate::cli::capture::tests::{Folder, pcap, read_all};
use crate::verdict::DropReason;

/// Sends every frame out of the other port with the count of frames so far appended; drops frames that begin with 0.
#[derive(Default)]
struct Echo {
    seen: Vec<(PortId, u64, u8)>,
    totals: ReplayTotals,
}

impl ReplayCore for Echo {
    fn packet(&mut self, port: PortId, frame: &[u8], now: Instant) -> Vec<(PortId, Vec<u8>)> {
        self.seen.push((port, now.as_ns(), frame[0]));
        if frame[0] == 0 {
            self.totals.drops.count(DropReason::RuleDrop);
            return Vec::new();
        }
        let other = if port == PortId::LAN { PortId::WAN } else { PortId::LAN };
        vec![(other, [frame, &[self.seen.len() as u8]].concat())]
    }

    fn totals(&self) -> ReplayTotals {
        self.totals.clone()
    }
}

#[test]
fn captures_are_merged_by_time() {
    let folder = Folder::new("merge");
    let lan = folder.file("lan", &pcap(&[(10, vec![1; 60]), (20, vec![2; 60]), (15, vec![3; 60])]));
    let wan = folder.file("wan", &pcap(&[(5, vec![4; 60]), (10, vec![5; 60]), (30, vec![0; 60])]));
    let out = folder.path("out");
    let mut core = Echo::default();
    replay(&mut core, &lan, &wan, &out).expect("two good captures");
    let (l, w) = (PortId::LAN, PortId::WAN);
    let us = |n: u64| n * 1000;
    let wanted = [(w, us(5), 4), (l, us(10), 1), (w, us(10), 5), (l, us(20), 2), (l, us(20), 3), (w, us(30), 0)];
    assert_eq!(core.seen, wanted);
    let written = read_all(&out).expect("our own file");
    let ends: Vec<_> = written.iter().map(|packet| (packet.when.as_ns(), packet.frame[0], packet.frame[60])).collect();
    assert_eq!(ends, [(us(5), 4, 1), (us(10), 1, 2), (us(10), 5, 3), (us(20), 2, 4), (us(20), 3, 5)]);
}

#[test]
fn nothing_is_written_before_the_captures_are_seen_to_be_good() {
    let folder = Folder::new("good");
    let lan = folder.file("lan", &pcap(&[]));
    let wan = folder.file("wan", b"nonsense");
    let out = folder.path("out");
    let failure = replay(&mut Echo::default(), &lan, &wan, &out).expect_err("no capture");
    assert!(failure.message().contains("--wan-pcap") && failure.message().contains("no pcap"), "{failure}");
    assert!(!out.exists());
}

#[test]
fn an_input_is_never_overwritten() {
    let folder = Folder::new("same");
    let lan = folder.file("lan", &pcap(&[(1, vec![1; 60])]));
    let wan = folder.file("wan", &pcap(&[]));
    let failure = replay(&mut Echo::default(), &lan, &wan, &lan).expect_err("it would be lost");
    assert!(failure.message().contains("also an input"), "{failure}");
    assert_eq!(read_all(&lan).expect("still a capture").len(), 1);
}
