use super::*;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of its own that goes away with the value.
pub(in crate::cli) struct Folder(PathBuf);

impl Folder {
    pub(in crate::cli) fn new(name: &str) -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("xr{}-{name}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&folder).expect("a place for files");
        Folder(folder)
    }

    pub(in crate::cli) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(in crate::cli) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).expect("written");
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A little-endian pcap file with microseconds, byte by byte as pcap-savefile(5) says.
pub(in crate::cli) fn pcap(packets: &[(u32, Vec<u8>)]) -> Vec<u8> {
    pcap_of(1, packets)
}

fn pcap_of(link: u32, packets: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 262_144, link] {
        file.extend(u32::to_le_bytes(word));
    }
    for (micros, frame) in packets {
        for word in [0, *micros, frame.len() as u32, frame.len() as u32] {
            file.extend(u32::to_le_bytes(word));
        }
        file.extend(frame);
    }
    file
}

/// A pcapng block.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = (12 + body.len()) as u32;
    [&kind.to_le_bytes(), &length.to_le_bytes(), body, &length.to_le_bytes()[..]].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A section header and an Ethernet interface with these options.
fn pcapng(options: &[u8]) -> Vec<u8> {
    [block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX])), block(1, &[&words(&[1, 0]), options].concat())]
        .concat()
}

/// An enhanced packet of interface 0.
fn enhanced(ticks: u64, frame: &[u8], original: u32) -> Vec<u8> {
    let head = words(&[0, (ticks >> 32) as u32, ticks as u32, frame.len() as u32, original]);
    block(6, &[&head, frame].concat())
}

pub(in crate::cli) fn read_all(path: &Path) -> Result<Vec<Captured>, Failure> {
    let mut capture = Capture::open("-r", path)?;
    let mut all = Vec::new();
    while let Some(packet) = capture.next()? {
        all.push(packet);
    }
    Ok(all)
}

fn read(bytes: &[u8]) -> Result<Vec<Captured>, String> {
    let folder = Folder::new("read");
    read_all(&folder.file("x", bytes)).map_err(|failure| failure.message().to_owned())
}

#[test]
fn pcap_is_read_in_both_resolutions() {
    let file = pcap(&[(7, vec![1; 60]), (9, vec![2; 61])]);
    let packets = read(&file).expect("a capture");
    assert_eq!(packets[0], Captured { when: Instant::from_ns(7000), frame: vec![1; 60] });
    assert_eq!(packets[1], Captured { when: Instant::from_ns(9000), frame: vec![2; 61] });
    let mut nanos = file;
    nanos[..4].copy_from_slice(&0xa1b2_3c4d_u32.to_le_bytes());
    assert_eq!(read(&nanos).expect("a capture")[1].when, Instant::from_ns(9));
}

#[test]
fn pcapng_times_follow_the_interfaces_unit() {
    let when = |options: &[u8]| {
        let file = [pcapng(options), enhanced(3_000_000, &[1; 60], 60)].concat();
        read(&file).expect("a capture")[0].when.as_ns()
    };
    assert_eq!(when(&[]), 3_000_000_000);
    assert_eq!(when(&[9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]), 3_000_000);
    assert_eq!(when(&[9, 0, 1, 0, 0x80 | 20, 0, 0, 0, 0, 0, 0, 0]), 2_861_022_949);
    assert_eq!(when(&[14, 0, 8, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 8_000_000_000);
}

#[test]
fn what_is_written_is_read_back() {
    let folder = Folder::new("write");
    let path = folder.path("out");
    let mut writer = CaptureWriter::create("-w", &path).expect("a new file");
    writer.write(PortId::WAN, Instant::from_ns(1_795_248_530_285_991_001), &[3; 61]).expect("written");
    writer.finish().expect("written");
    let packets = read_all(&path).expect("our own file");
    assert_eq!(packets, [Captured { when: Instant::from_ns(1_795_248_530_285_991_001), frame: vec![3; 61] }]);
}

#[test]
fn bad_captures_say_what_and_where() {
    let says = |bytes: &[u8], part: &str| {
        let message = read(bytes).expect_err("a bad capture");
        assert!(message.contains(part), "no {part:?} in: {message}");
    };
    says(b"", "no pcap or pcapng file (it ends too early");
    says(b"hello, world, this is text and long enough", "no pcap or pcapng file");
    let good = pcap(&[(7, vec![1; 60]), (9, vec![2; 60])]);
    says(&good[..good.len() - 1], "packet 2: it ends too early");
    says(&good[..good.len() - 70], "packet 2: it ends too early");
    says(&pcap_of(113, &[]), "not Ethernet");
    let mut cut = good;
    cut[24 + 12] = 200;
    says(&cut, "packet 1: only 60 of 200 bytes were captured");
    let section = pcapng(&[]);
    says(&[&section[..], &enhanced(1, &[1; 60], 1500)].concat(), "only 60 of 1500 bytes");
    says(&[&section[..], &block(3, &words(&[4, 0]))].concat(), "no time stamp");
    says(&[&section[..28], &enhanced(1, &[1; 60], 60)].concat(), "interface 0, which the file does not describe");
    says(&[&section[..], &block(6, &words(&[0, 0, 0, 400, 400]))].concat(), "cut short");
    says(&[&section[..], &enhanced(u64::MAX, &[1; 60], 60)].concat(), "beyond the year 2554");
    let raw_ip = [&section[..28], &block(1, &words(&[101, 0])), &enhanced(1, &[1; 60], 60)].concat();
    says(&raw_ip, "packet 1: a capture of link type RAW, not Ethernet");
    assert!(Capture::open("-r", Path::new("/nonexistent")).is_err());
}

proptest::proptest! {
    #[test]
    fn any_file_is_read_or_refused(
        ng: bool,
        edits in proptest::collection::vec((0usize..400, proptest::prelude::any::<u8>()), 0..12),
        keep in 0usize..400,
    ) {
        let mut file = if ng {
            let statistics = block(5, &words(&[0, 0, 1]));
            let names = block(4, &words(&[1 | 6 << 16, 0x0100_007f, 0x61]));
            let head = pcapng(&[9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
            [head, enhanced(5, &[1; 60], 60), statistics, names, enhanced(6, &[1; 60], 60)].concat()
        } else {
            pcap(&[(7, vec![1; 60]), (9, vec![2; 60]), (9, vec![2; 60])])
        };
        for (at, byte) in edits {
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
        }
        file.truncate(keep);
        let _ = read(&file);
    }
}
