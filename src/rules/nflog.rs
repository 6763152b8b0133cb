//! NFLOG copies: [`NflogRequest`] on the packet path, [`NflogRecord`] to carry one off, [`packet_block`] to write it.
//!
//! As with LOG lines: a rule calls back with a request that borrows the packet, the worker copies what is wanted into a
//! record of fixed size (no allocation), and the control side writes it into a capture file, as ulogd would.

use super::context::Context;
use super::rule::{Hook, PATH, Ruleset};
use super::targets::Target;
use super::targets::nflog::{Nflog, PREFIX_MAX};
use crate::device::PortId;
use crate::time::Instant;
use core::fmt;
use core::time::Duration;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};

/// How much of a frame a record keeps: all of one at an MTU of 1500. What is longer is cut, and says how long it was.
const SNAP_LEN: usize = 1536;

/// An NFLOG rule matched.
#[derive(Clone, Copy, Debug)]
pub struct NflogRequest<'a> {
    /// The rule's target.
    pub nflog: &'a Nflog,
    /// The packet and where it is.
    pub context: &'a Context<'a>,
}

/// What is needed to write the copy later: plain bytes, no reference.
#[derive(Clone)]
pub struct NflogRecord {
    prefix: [u8; PREFIX_MAX],
    prefix_len: u8,
    /// `--nflog-group`
    pub group: u16,
    /// Where the packet was.
    pub hook: Hook,
    /// The port it came in by.
    pub in_port: PortId,
    /// The port it would leave by, when that was known.
    pub out_port: Option<PortId>,
    /// Its mark.
    pub mark: u32,
    /// When.
    pub when: Instant,
    /// Length of the frame without link-layer padding.
    length: u16,
    /// Bytes of `bytes` in use.
    kept: u16,
    bytes: [u8; SNAP_LEN],
}

impl fmt::Debug for NflogRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NflogRecord({}, {:?}, {} of {} bytes)", self.group, self.prefix(), self.kept, self.length)
    }
}

impl NflogRecord {
    /// Copies the link header as received, and of the IP packet as much as `--nflog-size` says. The TTL is the one the
    /// rule saw.
    pub fn new(request: &NflogRequest<'_>) -> NflogRecord {
        let NflogRequest { nflog, context } = request;
        let (packet, frame) = (&*context.packet, &*context.frame);
        let length = packet.frame_len().min(frame.len());
        let wanted = nflog.size.map_or(usize::from(packet.l3_len), |size| size as usize);
        let kept = usize::from(packet.l3_at).saturating_add(wanted).min(length).min(SNAP_LEN);
        let prefix = nflog.prefix.as_bytes();
        let prefix_len = prefix.len().min(PREFIX_MAX);
        let mut record = NflogRecord {
            prefix: [0; PREFIX_MAX],
            prefix_len: prefix_len as u8,
            group: nflog.group,
            hook: context.hook,
            in_port: context.in_port,
            out_port: context.out_port,
            mark: context.mark,
            when: context.now,
            length: length as u16,
            kept: kept as u16,
            bytes: [0; SNAP_LEN],
        };
        record.prefix[..prefix_len].copy_from_slice(&prefix[..prefix_len]);
        record.bytes[..kept].copy_from_slice(&frame[..kept]);
        record
    }

    /// The frame as far as it was kept, from its Ethernet header on.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[..usize::from(self.kept)]
    }

    /// `--nflog-prefix`; what is no UTF-8 is replaced.
    pub fn prefix(&self) -> String {
        String::from_utf8_lossy(&self.prefix[..usize::from(self.prefix_len)]).into_owned()
    }
}

impl Ruleset {
    /// Whether a forwarded packet may meet an NFLOG rule.
    pub fn has_copies(&self) -> bool {
        let mut reached = PATH.iter().flat_map(|&chain| self.reachable_from(chain));
        reached.any(|chain| self.chains[chain].rules.iter().any(|rule| matches!(rule.target, Target::Nflog(_))))
    }
}

/// The copy as a block of a pcapng file that has an interface for each port, in the order of [`PortId::ALL`], with
/// nanoseconds. The prefix is the packet's comment. `since_1970` is the record's `when` on the wall clock.
pub fn packet_block(record: &NflogRecord, since_1970: Duration) -> EnhancedPacketBlock<'_> {
    let prefix = record.prefix();
    let comment = (!prefix.is_empty()).then(|| EnhancedPacketOption::Comment(prefix.into()));
    EnhancedPacketBlock {
        interface_id: u32::from(record.in_port.0),
        timestamp: since_1970,
        original_len: u32::from(record.length),
        data: record.frame().into(),
        options: comment.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;
    use crate::rules::extension_testing::context;
    use etherparse::PacketBuilder;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};
    use pcap_file::{DataLink, Endianness};

    fn record(size: Option<u32>, prefix: &str, payload: usize) -> NflogRecord {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64).udp(1, 2);
        let mut frame = Vec::new();
        builder.write(&mut frame, &vec![7; payload]).expect("writing to memory");
        let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
        frame.extend([0; 30]); // padding
        let mut context = context(&mut packet, &mut frame, Instant::from_secs(5));
        context.mark = 9;
        let nflog = Nflog { group: 3, prefix: prefix.to_owned(), size, range: 0, threshold: 0 };
        NflogRecord::new(&NflogRequest { nflog: &nflog, context: &context })
    }

    #[test]
    fn as_much_is_kept_as_was_asked_for() {
        for (size, payload, kept) in [
            (None, 4, 14 + 32),
            (Some(0), 4, 14),
            (Some(20), 4, 34),
            (Some(u32::MAX), 4, 14 + 32),
            (None, 1600, SNAP_LEN),
        ] {
            let record = record(size, "", payload);
            assert_eq!(record.frame().len(), kept, "{size:?} of {payload}");
            assert_eq!(usize::from(record.length), 14 + 28 + payload);
        }
    }

    #[test]
    fn a_block_can_be_read_again() {
        let record = record(Some(28), "new: ", 10);
        let mut writer = PcapNgWriter::with_endianness(Vec::new(), Endianness::Little).expect("writing to memory");
        let interface = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options: Vec::new() };
        writer.write_pcapng_block(interface).expect("writing to memory");
        let block = packet_block(&record, Duration::from_nanos(1_700_000_000_123_456_789));
        writer.write_pcapng_block(block.clone()).expect("writing to memory");
        let bytes = writer.into_inner();
        let mut reader = PcapNgReader::new(&bytes[..]).expect("a capture");
        assert!(matches!(reader.next_block(), Some(Ok(Block::InterfaceDescription(_)))));
        let Some(Ok(Block::EnhancedPacket(again))) = reader.next_block() else { panic!("no packet") };
        assert_eq!(again, block);
        assert_eq!((again.original_len, again.data.len()), (52, 42));
        assert_eq!(again.options, [EnhancedPacketOption::Comment("new: ".into())]);
    }
}
