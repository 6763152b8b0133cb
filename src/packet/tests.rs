use super::*;
use etherparse::PacketBuilder;
use proptest::prelude::*;

fn udp4(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64)
        .udp(1234, 53);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("writing to memory");
    frame
}

fn tcp6(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv6([0xfd; 16], [0xfe; 16], 64)
        .tcp(1234, 80, 7, 1000)
        .ack(9);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("writing to memory");
    frame
}

fn parse(frame: &[u8]) -> Result<Packet, DropReason> {
    Packet::parse(frame, PortId::LAN, true)
}

/// Changes the IPv4 header and makes its checksum right again.
fn with_header(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut frame[14..]);
    ipv4::set_checksum(&mut frame[14..34]);
    frame
}

#[test]
fn fields_of_a_udp_packet() {
    let packet = parse(&udp4(b"abc")).expect("good packet");
    assert_eq!((packet.sport, packet.dport, packet.ttl, packet.l3_len, packet.l4_len), (1234, 53, 64, 31, 11));
    assert_eq!((packet.l4, packet.family, packet.proto), (L4::Good, Family::V4, proto::UDP));
}

#[test]
fn fields_of_a_tcp_packet_over_ipv6() {
    let packet = parse(&tcp6(b"abc")).expect("good packet");
    assert_eq!((packet.seq, packet.ack, packet.tcp_flags, packet.tcp_payload_len()), (7, 9, tcp::ACK, 3));
    assert_eq!((packet.l4, packet.family, packet.l3_len), (L4::Good, Family::V6, 63));
}

#[test]
fn padding_is_not_part_of_the_packet() {
    let mut frame = udp4(b"abc");
    frame.resize(60, 0xaa);
    assert_eq!(parse(&frame).expect("good packet").frame_len(), 45);
}

#[test]
fn lies_of_the_ipv4_header_are_dropped_by_name() {
    let good = udp4(b"abc");
    let cases: [(Vec<u8>, DropReason); 7] = [
        (good[..13].to_vec(), DropReason::FrameShort),
        (good[..33].to_vec(), DropReason::IpHeaderLength),
        (with_header(good.clone(), |ip| ip[0] = 0x65), DropReason::IpVersion),
        (with_header(good.clone(), |ip| ip[0] = 0x44), DropReason::IpHeaderLength),
        (with_header(good.clone(), |ip| ip[3] = 19), DropReason::IpTotalLength),
        (with_header(good.clone(), |ip| ip[3] = 32), DropReason::IpTotalLength),
        (with_header(good.clone(), |ip| ip[6] = 0x20), DropReason::IpFragment),
    ];
    for (frame, reason) in cases {
        assert_eq!(parse(&frame).expect_err("a bad packet"), reason, "{frame:02x?}");
    }
    let mut wrong = good.clone();
    wrong[24] ^= 1;
    assert_eq!(parse(&wrong).expect_err("a bad packet"), DropReason::IpChecksum);
    let mut arp = good;
    arp[13] = 6;
    assert_eq!(parse(&arp).expect_err("not IP"), DropReason::EtherTypeUnknown);
}

#[test]
fn a_bad_transport_header_is_told_apart() {
    let good = udp4(b"abc");
    let mut bad_sum = good.clone();
    bad_sum[44] ^= 1;
    assert_eq!(parse(&bad_sum).expect("IP is good").l4, L4::BadChecksum);
    let mut too_long = good.clone();
    too_long[39] = 12;
    assert_eq!(parse(&too_long).expect("IP is good").l4, L4::Malformed);
    let mut no_sum = good.clone();
    no_sum[40..42].fill(0);
    assert_eq!(parse(&no_sum).expect("IP is good").l4, L4::Good);
    let mut partial = good.clone();
    let packet = parse(&good).expect("good packet");
    let pseudo = checksum::pseudo_header(Family::V4, packet.src, packet.dst, proto::UDP, 11);
    wire::put_u16(&mut partial, 40, checksum::fold(pseudo));
    assert_eq!(parse(&partial).expect("IP is good").l4, L4::PartialChecksum);
    // A datagram shorter than its packet: the checksum is held against all of the packet, as Linux does.
    let mut inner = good.clone();
    inner[39] = 10;
    let packet = parse(&good).expect("good packet");
    for (covered, state) in [(11, L4::Good), (10, L4::BadChecksum)] {
        inner[40..42].fill(0);
        let pseudo = checksum::pseudo_header(Family::V4, packet.src, packet.dst, proto::UDP, covered);
        let check = checksum::finish(checksum::sum(pseudo, &inner[34..34 + covered as usize]));
        wire::put_u16(&mut inner, 40, check);
        assert_eq!(parse(&inner).expect("IP is good").l4, state);
    }
    let short = with_header(good[..37].to_vec(), |ip| ip[3] = 23);
    assert_eq!(parse(&short).expect("IP is good").l4, L4::Malformed);
}

#[test]
fn extension_headers_are_followed() {
    let mut frame = tcp6(b"");
    let tcp_header = frame.split_off(54);
    frame[20] = proto::HOP_BY_HOP;
    frame.extend([proto::DEST_OPTIONS, 0, 5, 2, 0, 0, 1, 0]); // router alert, PadN
    frame.extend([proto::TCP, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend(&tcp_header);
    wire::put_u16(&mut frame, 18, 36);
    let packet = parse(&frame).expect("good packet");
    assert_eq!((packet.l4_at, packet.proto, packet.has_options, packet.l4), (70, proto::TCP, true, L4::Good));

    let mut discard = frame.clone();
    discard[56] = 0x80; // an unknown option that asks to be discarded
    assert_eq!(parse(&discard).expect_err("must go"), DropReason::Ipv6HopByHop);
    let mut fragment = frame.clone();
    fragment[54] = proto::FRAGMENT;
    assert_eq!(parse(&fragment).expect_err("a fragment"), DropReason::IpFragment);
    let mut beyond = frame;
    beyond[63] = 200; // destination options longer than the packet
    assert_eq!(parse(&beyond).expect("IP is good").l4, L4::Malformed);
}

#[test]
fn hop_by_hop_options_further_down_the_chain_are_skipped_as_linux_does() {
    let mut frame = tcp6(b"");
    frame[20] = proto::DEST_OPTIONS;
    frame[18..20].copy_from_slice(&36u16.to_be_bytes());
    // Destination options, then hop-by-hop options with one that would ask to discard.
    frame.splice(54..54, [proto::HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0, proto::TCP, 0, 0xc3, 4, 0, 0, 0, 0]);
    let packet = parse(&frame).expect("Linux forwards it");
    assert_eq!((packet.proto, packet.l4_at, packet.l4), (proto::TCP, 70, L4::Good));
}

proptest! {
    #[test]
    fn no_frame_makes_the_parser_panic_or_point_outside(frame in proptest::collection::vec(any::<u8>(), 0..160)) {
        if let Ok(packet) = parse(&frame) {
            prop_assert!(packet.l3_bytes(&frame).len() >= 20);
            let _ = packet.l4_bytes(&frame);
        }
    }

    #[test]
    fn no_change_of_one_byte_makes_the_parser_point_outside(at in 12usize..66, value: u8, v6: bool, cut in 0usize..10) {
        let mut frame = if v6 { tcp6(b"0123") } else { udp4(b"0123456789abcdefghijkl") };
        frame.truncate(frame.len() - cut);
        if at < frame.len() { frame[at] = value; }
        if !v6 && frame.len() >= 34 { ipv4::set_checksum(&mut frame[14..34]); }
        if let Ok(packet) = parse(&frame) {
            let _ = (packet.l3_bytes(&frame), packet.l4_bytes(&frame));
        }
    }
}
