//! Capture files: [`Capture`] reads pcap and pcapng, [`CaptureWriter`] writes pcapng with the router's two ports.
//!
//! A capture gives whole Ethernet frames with the time they were seen. What is no such thing (another link type, a packet
//! that the capture cut short, a file that ends in the middle) is an error with the file's name and the packet's number.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{PcapNgReader, PcapNgWriter};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

use crate::control::startup::Failure;
use crate::device::PortId;
use crate::time::{Instant, SECOND_NS};

/// A frame and when it was seen, in nanoseconds since 1970.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Captured {
    pub(super) when: Instant,
    pub(super) frame: Vec<u8>,
}

enum Format {
    Pcap(PcapReader<File>),
    PcapNg(PcapNgReader<File>),
}

/// A capture file being read.
pub(super) struct Capture {
    format: Format,
    name: String,
    number: u64,
}

/// The first four bytes of a pcapng file, in either byte order.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

impl Capture {
    /// Opens the file that `option` names.
    ///
    /// # Errors
    /// When it cannot be read or is no capture of Ethernet frames.
    pub(super) fn open(option: &str, path: &Path) -> Result<Capture, Failure> {
        let name = format!("{option} {}", path.display());
        let failed = |error: io::Error| Failure::Usage(format!("{name}: cannot read the file: {error}"));
        let mut file = File::open(path).map_err(failed)?;
        let mut magic = Vec::new();
        Read::by_ref(&mut file).take(4).read_to_end(&mut magic).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let no_capture = |error| Failure::Usage(format!("{name}: no pcap or pcapng file ({})", reason(&error)));
        let format = if magic == PCAPNG {
            Format::PcapNg(PcapNgReader::new(file).map_err(no_capture)?)
        } else {
            let reader = PcapReader::new(file).map_err(no_capture)?;
            let link = reader.header().datalink;
            if link != DataLink::ETHERNET {
                return Err(Failure::Usage(format!("{name}: {}", not_ethernet(link))));
            }
            Format::Pcap(reader)
        };
        Ok(Capture { format, name, number: 0 })
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// When the file ends in the middle of a packet, or the packet is not a whole Ethernet frame.
    pub(super) fn next(&mut self) -> Result<Option<Captured>, Failure> {
        let read = match &mut self.format {
            Format::Pcap(reader) => next_pcap(reader),
            Format::PcapNg(reader) => next_pcapng(reader),
        };
        self.number += 1;
        read.map_err(|what| Failure::Usage(format!("{}: packet {}: {what}", self.name, self.number)))
    }
}

fn not_ethernet(link: DataLink) -> String {
    format!("a capture of link type {link:?}, not Ethernet. Capture on an Ethernet interface (not on `any`)")
}

/// What is wrong with a file, in our words.
fn reason(error: &PcapError) -> String {
    match error {
        PcapError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it ends too early, or a length in it is wrong".to_owned()
        }
        PcapError::IoError(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Checks that the capture kept the packet whole.
fn whole(data: &[u8], original: u32) -> Result<(), String> {
    match data.len() as u64 >= u64::from(original) {
        true => Ok(()),
        false => {
            Err(format!("only {} of {original} bytes were captured. Capture whole packets (tcpdump -s 0)", data.len()))
        }
    }
}

fn next_pcap(reader: &mut PcapReader<File>) -> Result<Option<Captured>, String> {
    let resolution = match reader.header().ts_resolution {
        TsResolution::MicroSecond => 1000,
        TsResolution::NanoSecond => 1,
    };
    let Some(packet) = reader.next_raw_packet() else { return Ok(None) };
    let packet = packet.map_err(|error| reason(&error))?;
    whole(&packet.data, packet.orig_len)?;
    let when = Instant::from_secs(u64::from(packet.ts_sec)) + u64::from(packet.ts_frac) * resolution;
    Ok(Some(Captured { when, frame: packet.data.into_owned() }))
}

/// Block types that hold packets (draft-ietf-opsawg-pcapng).
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

fn next_pcapng(reader: &mut PcapNgReader<File>) -> Result<Option<Captured>, String> {
    loop {
        let Some(raw) = reader.next_raw_block() else { return Ok(None) };
        let raw = raw.map_err(|error| reason(&error))?;
        let body = match raw.type_ {
            PACKET => {
                return Err("in a Packet Block, a form out of use. Convert the file with `editcap -F pcap`".to_owned());
            }
            SIMPLE_PACKET => return Err("it has no time stamp (Simple Packet Block)".to_owned()),
            ENHANCED_PACKET => raw.body.into_owned(),
            // Only what holds packets is looked into; interfaces have been noted by the reader.
            _ => continue,
        };
        return enhanced_packet(&body, reader).map(Some);
    }
}

/// An Enhanced Packet Block: interface, time stamp (high, low), captured and original length, data, options.
fn enhanced_packet(body: &[u8], reader: &PcapNgReader<File>) -> Result<Captured, String> {
    let short = || "its block is cut short".to_owned();
    let word = |n: usize| -> Result<u32, String> {
        let bytes: [u8; 4] = body.get(4 * n..4 * n + 4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(short)?;
        Ok(match reader.section().endianness {
            Endianness::Big => u32::from_be_bytes(bytes),
            Endianness::Little => u32::from_le_bytes(bytes),
        })
    };
    let interface = reader.interfaces().get(word(0)? as usize);
    let interface =
        interface.ok_or_else(|| format!("of interface {}, which the file does not describe", word(0).unwrap_or(0)))?;
    if interface.linktype != DataLink::ETHERNET {
        return Err(not_ethernet(interface.linktype));
    }
    let when = pcapng_time(u64::from(word(1)?) << 32 | u64::from(word(2)?), interface)?;
    let data = body.get(20..).and_then(|data| data.get(..word(3).ok()? as usize)).ok_or_else(short)?;
    whole(data, word(4)?)?;
    Ok(Captured { when, frame: data.to_vec() })
}

/// A time stamp of `ticks`, in the unit and from the start that its interface says.
fn pcapng_time(ticks: u64, interface: &InterfaceDescriptionBlock<'_>) -> Result<Instant, String> {
    let (mut unit, mut offset) = (6, 0);
    for option in &interface.options {
        match option {
            InterfaceDescriptionOption::IfTsResol(resolution) => unit = *resolution,
            InterfaceDescriptionOption::IfTsOffset(seconds) => offset = *seconds,
            _ => {}
        }
    }
    let per_second = match unit {
        0x80.. => 2u128.checked_pow(u32::from(unit & 0x7f)),
        _ => 10u128.checked_pow(u32::from(unit)),
    };
    let ns = per_second.map(|per_second| u128::from(ticks) * u128::from(SECOND_NS) / per_second);
    let ns = ns.and_then(|ns| ns.checked_add(u128::from(offset) * u128::from(SECOND_NS)));
    ns.and_then(|ns| u64::try_from(ns).ok())
        .map(Instant::from_ns)
        .ok_or_else(|| "its time stamp is beyond the year 2554".to_owned())
}

/// A capture file being written: pcapng with nanoseconds, and an interface for each port.
pub(super) struct CaptureWriter {
    writer: PcapNgWriter<BufWriter<Box<dyn Write>>>,
    name: String,
}

impl CaptureWriter {
    /// Creates (or empties) the file that `option` names; `-` is standard output.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create(option: &str, path: &Path) -> Result<CaptureWriter, Failure> {
        let name = format!("{option} {}", path.display());
        let out: Box<dyn Write> = match path.as_os_str().as_encoded_bytes() {
            b"-" => Box::new(io::stdout()),
            _ => Box::new(
                File::create(path)
                    .map_err(|error| Failure::Usage(format!("{name}: cannot create the file: {error}")))?,
            ),
        };
        let mut writer = PcapNgWriter::new(BufWriter::new(out)).map_err(|error| cannot_write(&name, &error))?;
        for port in PortId::ALL {
            let options = vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(format!("{port:?}"))),
                InterfaceDescriptionOption::IfTsResol(9),
            ];
            let interface = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options };
            writer.write_pcapng_block(interface).map_err(|error| cannot_write(&name, &error))?;
        }
        Ok(CaptureWriter { writer, name })
    }

    /// Adds a frame that leaves through `port`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&mut self, port: PortId, when: Instant, frame: &[u8]) -> Result<(), Failure> {
        let packet = EnhancedPacketBlock {
            interface_id: u32::from(port.0),
            timestamp: Duration::from_nanos(when.as_ns()),
            original_len: frame.len() as u32,
            data: Cow::Borrowed(frame),
            options: Vec::new(),
        };
        self.writer.write_pcapng_block(packet).map(drop).map_err(|error| cannot_write(&self.name, &error))
    }

    /// Writes out what is still in memory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn finish(self) -> Result<(), Failure> {
        let CaptureWriter { writer, name } = self;
        writer.into_inner().flush().map_err(|error| cannot_write(&name, &PcapError::IoError(error)))
    }
}

fn cannot_write(name: &str, error: &PcapError) -> Failure {
    Failure::Running(format!("{name}: cannot write: {}", reason(error)))
}

#[cfg(test)]
pub(super) mod tests;
