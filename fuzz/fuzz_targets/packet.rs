//! Any bytes as a frame: the parser neither panics nor points outside the frame. Each frame is tried as it is, and once
//! more with a right IPv4 header checksum, which hardly any mutation would hit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xrouter::device::PortId;
use xrouter::packet::Packet;
use xrouter::wire::{ethernet, ipv4};

fn parse(frame: &[u8]) {
    for verify in [false, true] {
        let Ok(packet) = Packet::parse(frame, PortId::LAN, verify) else { continue };
        assert!(packet.frame_len() <= frame.len());
        assert!(packet.l3_bytes(frame).len() >= ipv4::HEADER_LEN);
        assert!(packet.l4_bytes(frame).len() <= packet.l3_bytes(frame).len());
        assert!(packet.tcp_payload_len() <= packet.l4_len);
        let _ = (packet.is_icmp(), packet.is_icmp_error());
    }
}

fuzz_target!(|frame: &[u8]| {
    parse(frame);
    let Some(header) = frame.get(ethernet::HEADER_LEN..) else { return };
    if ethernet::ethertype(frame) == ethernet::IPV4 && header.len() >= ipv4::HEADER_LEN {
        let length = ipv4::header_len(header);
        if (ipv4::HEADER_LEN..=header.len()).contains(&length) {
            let mut fixed = frame.to_vec();
            ipv4::set_checksum(&mut fixed[ethernet::HEADER_LEN..][..length]);
            parse(&fixed);
        }
    }
});
