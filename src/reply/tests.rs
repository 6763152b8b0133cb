use super::*;
use crate::device::{FramePool, PortId};
use etherparse::PacketBuilder;

fn in_frame(build: impl FnOnce(&mut Vec<u8>)) -> (Frame, Packet) {
    let mut bytes = Vec::new();
    build(&mut bytes);
    let mut frame = FramePool::in_memory(1, 2048).take().expect("a frame");
    frame.fill(&bytes);
    let packet = Packet::parse(frame.bytes(), PortId::LAN, true).expect("a good packet");
    (frame, packet)
}

fn udp4(payload: usize) -> (Frame, Packet) {
    in_frame(|bytes| {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 2], [10, 2, 0, 2], 1).udp(1234, 53);
        builder.write(bytes, &vec![7; payload]).expect("writing to memory");
    })
}

fn tcp4(flags: u8, payload: &[u8]) -> (Frame, Packet) {
    in_frame(|bytes| {
        let mut header = etherparse::TcpHeader::new(1000, 80, 500, 1024);
        header.syn = flags & tcp::SYN != 0;
        header.ack = flags & tcp::ACK != 0;
        header.rst = flags & tcp::RST != 0;
        header.acknowledgment_number = if header.ack { 900 } else { 0 };
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 2], [10, 2, 0, 2], 9).tcp_header(header);
        builder.write(bytes, payload).expect("writing to memory");
    })
}

const ROUTER: Addr = Addr::from_v4(0x0a01_0001);

#[test]
fn time_exceeded_quotes_the_offender() {
    let (mut frame, packet) = udp4(4);
    let quoted = packet.l3_bytes(frame.bytes()).to_vec();
    icmp_error(&mut frame, &packet, Error::time_exceeded(Family::V4), ROUTER, 77);
    let answer = Packet::parse(frame.bytes(), PortId::LAN, true).expect("a good packet");
    assert_eq!((answer.l4, answer.src, answer.dst), (L4::Good, ROUTER, packet.src));
    assert_eq!((answer.icmp_type(), answer.icmp_code(), answer.ttl, answer.tos), (11, 0, 64, 0xc0));
    assert_eq!(answer.l4_bytes(frame.bytes())[8..], quoted);
}

#[test]
fn a_long_offender_is_cut_to_576_bytes_and_1280_for_ipv6() {
    let (mut frame, packet) = udp4(1400);
    icmp_error(&mut frame, &packet, Error::too_big(Family::V4, 1300), ROUTER, 1);
    let answer = Packet::parse(frame.bytes(), PortId::LAN, true).expect("a good packet");
    assert_eq!((answer.l3_len, wire::get_u32(answer.l4_bytes(frame.bytes()), 4)), (576, 1300));

    let (mut frame, packet) = in_frame(|bytes| {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([0xfd; 16], [0xfe; 16], 1).udp(1, 2);
        builder.write(bytes, &[0; 1400]).expect("writing to memory");
    });
    icmp_error(&mut frame, &packet, Error::too_big(Family::V6, 1300), packet.dst, 1);
    let answer = Packet::parse(frame.bytes(), PortId::LAN, true).expect("a good packet");
    assert_eq!((answer.l3_len, answer.l4, answer.icmp_type()), (1280, L4::Good, icmpv6::PACKET_TOO_BIG));
}

#[test]
fn resets_carry_the_numbers_linux_gives_them() {
    for (flags, seq, ack, answer_flags) in
        [(tcp::SYN, 0, 501, tcp::RST | tcp::ACK), (tcp::ACK, 900, 0, tcp::RST), (0, 0, 503, tcp::RST | tcp::ACK)]
    {
        let payload: &[u8] = if flags == 0 { b"abc" } else { b"" };
        let (mut frame, packet) = tcp4(flags, payload);
        assert!(tcp_reset(&mut frame, &packet));
        let answer = Packet::parse(frame.bytes(), PortId::LAN, true).expect("a good packet");
        assert_eq!((answer.seq, answer.ack, answer.tcp_flags), (seq, ack, answer_flags));
        assert_eq!((answer.l4, answer.l3_len, answer.window, answer.dont_fragment), (L4::Good, 40, 0, true));
        assert_eq!((answer.src, answer.sport, answer.dport), (packet.dst, 80, 1000));
    }
    let (mut frame, packet) = tcp4(tcp::RST, b"");
    assert!(!tcp_reset(&mut frame, &packet));
}

#[test]
fn a_reset_answers_a_header_that_lies_about_its_length_but_no_wrong_checksum() {
    let spoilt = |length: u8, right: bool| {
        let (mut frame, packet) = tcp4(tcp::SYN, b"");
        let at = usize::from(packet.l4_at);
        let bytes = frame.bytes_mut();
        bytes[at + 12] = length << 4;
        // The checksum makes up for it.
        let check = wire::get_u16(bytes, at + tcp::CHECKSUM_AT);
        let more = u32::from(check) + 0xffff - u32::from(length - 5) * 0x1000 + u32::from(!right);
        wire::put_u16(bytes, at + tcp::CHECKSUM_AT, ((more & 0xffff) + (more >> 16)) as u16);
        // Nobody has verified the checksum.
        let packet = Packet::parse(frame.bytes(), PortId::LAN, false).expect("a good IP header");
        (frame, packet)
    };
    let (mut frame, packet) = spoilt(11, true);
    assert_eq!(packet.l4, L4::Malformed);
    assert!(tcp_reset(&mut frame, &packet));
    let answer = Packet::parse(frame.bytes(), PortId::LAN, true).expect("a good packet");
    // Linux counts the missing bytes as less than nothing.
    assert_eq!((answer.ack, answer.sport), (501 - 24, 80));
    let (mut frame, packet) = spoilt(5, false);
    assert!(!tcp_reset(&mut frame, &packet));
}

#[test]
fn errors_are_never_answered_with_errors() {
    let (mut frame, packet) = udp4(4);
    assert!(may_answer(&packet));
    icmp_error(&mut frame, &packet, Error::no_route(Family::V4), ROUTER, 1);
    assert!(!may_answer(&Packet::parse(frame.bytes(), PortId::LAN, true).expect("a good packet")));
}

#[test]
fn six_at_once_then_one_a_second() {
    let mut limiter = Limiter::new();
    let error = Error::time_exceeded(Family::V4);
    let start = Instant::from_secs(100);
    let allowed =
        |limiter: &mut Limiter, at, n| (0..n).filter(|_| limiter.allow(Family::V4, ROUTER, error, at)).count();
    assert_eq!(allowed(&mut limiter, start, 20), 6);
    assert_eq!(allowed(&mut limiter, start + SECOND_NS, 20), 1);
    assert!(limiter.allow(Family::V4, ROUTER, Error::too_big(Family::V4, 1300), start + SECOND_NS));
}

#[test]
fn all_hosts_together_have_a_limit_too() {
    let mut limiter = Limiter::new();
    let error = Error::time_exceeded(Family::V4);
    let now = Instant::from_secs(100);
    let sent = (0..200).filter(|&n| limiter.allow(Family::V4, Addr::from_v4(n), error, now)).count();
    assert_eq!(sent, 50);
}

#[test]
fn a_reset_over_ipv4_never_has_the_checksum_0() {
    let mut highest = 0;
    for low in 0..=u16::MAX {
        let (mut frame, packet) = tcp4(tcp::SYN, b"");
        let at = usize::from(packet.l4_at);
        let bytes = frame.bytes_mut();
        let check = checksum::update(wire::get_u16(bytes, at + tcp::CHECKSUM_AT), wire::get_u16(bytes, at + 6), low);
        wire::put_u16(bytes, at + 6, low);
        wire::put_u16(bytes, at + tcp::CHECKSUM_AT, check);
        assert!(tcp_reset(&mut frame, &packet));
        let check = wire::get_u16(frame.bytes(), at + tcp::CHECKSUM_AT);
        assert_ne!(check, 0, "{low}");
        highest += usize::from(check == 0xffff);
    }
    assert!(highest > 0, "one sequence number comes to it");
}
