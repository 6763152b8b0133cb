use super::*;
use crate::device::PortId;
use crate::rewrite;
use crate::rules::diagnostic::Span;
use crate::rules::extension_testing::{Told, context, read, saved};
use crate::rules::matches::{TcpFlags, TcpMatch};
use crate::rules::rule::{ProtoMatch, Rule, TableName};
use crate::time::Instant;
use crate::wire::put_u32;
use proptest::prelude::*;

#[test]
fn it_is_saved_as_iptables_saves_it() {
    let cases = [
        (Family::V4, "--clamp-mss-to-pmtu", "--clamp-mss-to-pmtu"),
        (Family::V4, "--set-mss 1400", "--set-mss 1400"),
        (Family::V4, "--set-mss 0", "--set-mss 0"),
        (Family::V4, "--set-mss 65515", "--set-mss 65515"),
        (Family::V6, "--set-mss 65495", "--set-mss 65495"),
        (Family::V4, "--set-mss 3 --clamp-mss-to-pmtu", "--clamp-mss-to-pmtu"),
        (Family::V4, "--clamp-mss-to-pmtu --set-mss 3", "--set-mss 3"),
    ];
    for (family, words, expected) in cases {
        assert_eq!(saved(&read::<Tcpmss>(family, words).expect(words), family), expected);
    }
    assert!(read::<Tcpmss>(Family::V4, "--set-mss 65516").is_err());
    assert!(read::<Tcpmss>(Family::V6, "--set-mss 65496").is_err());
}

/// As iptables-legacy-restore and 6.18 took or refused it.
#[test]
fn only_a_rule_for_syn_packets_may_hold_it() {
    let flags = |mask, comp, invert| {
        vec![Match::Tcp(TcpMatch { flags: TcpFlags { mask, comp, invert }, ..TcpMatch::default() })]
    };
    let tcp = Some(ProtoMatch { number: proto::TCP, invert: false });
    let cases = [
        (tcp, flags(tcp::SYN | tcp::RST, tcp::SYN, false), true),
        (tcp, flags(tcp::ACK, tcp::SYN, false), true),
        (tcp, flags(tcp::SYN | tcp::ACK, tcp::SYN | tcp::ACK, false), true),
        (tcp, [flags(tcp::SYN, tcp::SYN, false), vec![Match::Tcp(TcpMatch::default())]].concat(), true),
        (tcp, flags(tcp::SYN, tcp::SYN, true), false),
        (tcp, vec![Match::Tcp(TcpMatch::default())], false),
        (tcp, vec![], false),
        (None, flags(tcp::SYN, tcp::SYN, false), false),
    ];
    for (proto, matches, good) in cases {
        let rule = Rule { proto, matches, ..Rule::default() };
        let whole =
            Whole { seen: &[CLAMP], span: Span::default(), family: Family::V4, table: TableName::Mangle, rule: &rule };
        assert_eq!(Tcpmss::Clamp.check(&whole).is_ok(), good, "{rule:?}");
    }
    assert_eq!(Tcpmss::Clamp.hooks() & (Hook::Prerouting.bit() | Hook::Input.bit()), 0);
    assert_eq!(Tcpmss::Set(1).hooks(), HOOKS_ALL);
}

/// A SYN with these options (a multiple of four bytes) and this payload; all checksums right, or the transport's left
/// unfinished.
fn syn(family: Family, options: &[u8], payload: &[u8], partial: bool) -> Vec<u8> {
    let l4_len = tcp::HEADER_LEN + options.len() + payload.len();
    let mut frame = vec![2; 14];
    let l3_len = match family {
        Family::V4 => {
            put_u16(&mut frame, 12, 0x0800);
            frame.extend([0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, proto::TCP, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2]);
            put_u16(&mut frame, 16, (20 + l4_len) as u16);
            ipv4::set_checksum(&mut frame[14..34]);
            20
        }
        Family::V6 => {
            put_u16(&mut frame, 12, 0x86dd);
            frame.extend([0x60, 0, 0, 0, 0, 0, proto::TCP, 64]);
            frame.extend([[0xfd; 16], [0xfe; 16]].concat());
            put_u16(&mut frame, 18, l4_len as u16);
            40
        }
    };
    let at = 14 + l3_len;
    frame.extend([0; tcp::HEADER_LEN]);
    put_u32(&mut frame, at, 0x1234_0050);
    frame[at + 12] = ((tcp::HEADER_LEN + options.len()) as u8) << 2;
    frame[at + 13] = tcp::SYN;
    frame.extend(options);
    frame.extend(payload);
    let mut packet = Packet::parse(&frame, PortId::LAN, false).expect("a good packet");
    rewrite::write_transport_checksum(&mut frame, &packet);
    if partial {
        let pseudo = checksum::pseudo_header(family, packet.src, packet.dst, proto::TCP, l4_len as u32);
        put_u16(&mut frame, at + tcp::CHECKSUM_AT, checksum::fold(pseudo));
    }
    packet.read(&frame, PortId::LAN, true).expect("a good packet");
    assert_eq!(packet.l4, if partial { L4::PartialChecksum } else { L4::Good });
    frame
}

/// The frame as far as it goes, after `target`; out and back have these MTUs.
fn after(frame: &[u8], target: Tcpmss, mtu: (u16, u16)) -> Result<Vec<u8>, DropReason> {
    let mut packet = Packet::parse(frame, PortId::LAN, true).expect("a good packet");
    let mut room = frame.to_vec();
    room.extend([0xee; 100]);
    let mut context = context(&mut packet, &mut room, Instant::from_secs(1));
    context.out_mtu = mtu.0;
    let mut world = Told { mtu_back: mtu.1, ..Told::default() };
    match target.run(&mut context, &mut world, &()) {
        Outcome::Drop(reason) => return Err(reason),
        outcome => assert_eq!(outcome, Outcome::Continue),
    }
    room.truncate(packet.frame_len());
    let again = Packet::parse(&room, PortId::LAN, true).expect("still a good packet");
    let told = |packet: &Packet| (packet.l3_len, packet.l4_len, packet.tcp_header_len, packet.l4, packet.tcp_flags);
    assert_eq!(told(&again), told(&packet), "what the packet says is what the frame says");
    Ok(room)
}

const CLAMPED: Tcpmss = Tcpmss::Clamp;
const V4: Family = Family::V4;
const V6: Family = Family::V6;

#[test]
fn a_size_is_lowered_and_never_raised() {
    let mss = |size: u16| [[2, 4], size.to_be_bytes()].concat();
    for (family, headers) in [(V4, 40), (V6, 60)] {
        for partial in [false, true] {
            let frame = |size| syn(family, &mss(size), &[], partial);
            let of = |mtu: u16| mtu - headers;
            assert_eq!(after(&frame(1460), CLAMPED, (1400, 1500)), Ok(frame(of(1400))));
            assert_eq!(after(&frame(1460), CLAMPED, (1500, 1400)), Ok(frame(of(1400))));
            assert_eq!(after(&frame(1460), CLAMPED, (1400, 0)), Ok(frame(of(1400))));
            assert_eq!(after(&frame(1000), CLAMPED, (1400, 1400)), Ok(frame(1000)));
            assert_eq!(after(&frame(1460), Tcpmss::Set(1200), (0, 0)), Ok(frame(1200)));
            assert_eq!(after(&frame(1000), Tcpmss::Set(1200), (0, 0)), Ok(frame(1000)));
            // With data, too.
            let with_data = |size| syn(family, &mss(size), b"data", partial);
            assert_eq!(after(&with_data(1460), Tcpmss::Set(1200), (0, 0)), Ok(with_data(1200)));
        }
    }
}

#[test]
fn a_missing_option_is_added_before_the_others() {
    let scale = [1, 3, 3, 7];
    for partial in [false, true] {
        for (family, size) in [(V4, 536u16), (V6, 1220)] {
            let frame = |options: &[u8]| syn(family, options, &[], partial);
            let added = [[2, 4], size.to_be_bytes()].concat();
            assert_eq!(after(&frame(&[]), CLAMPED, (1500, 1500)), Ok(frame(&added)));
            assert_eq!(after(&frame(&scale), CLAMPED, (1500, 1500)), Ok(frame(&[&added[..], &scale].concat())));
            let low = [[2, 4], 100u16.to_be_bytes()].concat();
            assert_eq!(after(&frame(&[]), Tcpmss::Set(100), (0, 0)), Ok(frame(&low)));
            // Data, or a header that is full.
            let with_data = syn(family, &scale, b"x", partial);
            assert_eq!(after(&with_data, Tcpmss::Set(100), (0, 0)), Ok(with_data.clone()));
            let full = frame(&[1; 40]);
            assert_eq!(after(&full, Tcpmss::Set(100), (0, 0)), Ok(full.clone()));
        }
    }
}

#[test]
fn what_has_no_room_is_dropped() {
    let frame = syn(V4, &[], &[], false);
    assert_eq!(after(&frame, CLAMPED, (40, 1500)), Err(DropReason::RuleDrop));
    assert_eq!(after(&frame, CLAMPED, (1500, 39)), Err(DropReason::RuleDrop));
    assert!(after(&frame, CLAMPED, (41, 1500)).is_ok());
    let mut packet = Packet::parse(&frame, PortId::LAN, true).expect("a good packet");
    let mut tight = frame;
    tight.extend([0; 3]);
    let mut context = context(&mut packet, &mut tight, Instant::from_secs(1));
    assert_eq!(Tcpmss::Set(100).run(&mut context, &mut Told::default(), &()), Outcome::Drop(DropReason::RuleDrop));
}

#[test]
fn a_header_that_lies_is_dropped() {
    for offset in [0x40, 0x60] {
        let mut frame = syn(V4, &[], &[], false);
        frame[14 + 20 + 12] = offset;
        assert_eq!(after(&frame, Tcpmss::Set(100), (0, 0)), Err(DropReason::RuleDrop), "{offset:#x}");
    }
    let mut short = syn(V4, &[], &[], false);
    put_u16(&mut short, 16, 39);
    ipv4::set_checksum(&mut short[14..34]);
    assert_eq!(after(&short, Tcpmss::Set(100), (0, 0)), Err(DropReason::RuleDrop));
}

#[test]
fn options_are_walked_as_the_kernel_walks_them() {
    // One of another length is none; length 0 counts as 1; the end of the list is one byte like any other.
    assert_eq!(find(&[&[0; 20][..], &[2, 3, 1, 2, 4, 5, 180, 0]].concat()), Some(23));
    assert_eq!(find(&[&[0; 20][..], &[9, 0, 2, 4, 5, 180, 0, 0]].concat()), Some(22));
    assert_eq!(find(&[&[0; 20][..], &[0, 0, 2, 4, 5, 180, 0, 0]].concat()), Some(22));
    assert_eq!(find(&[&[0; 20][..], &[4, 2, 2, 4]].concat()), None);
    assert_eq!(find(&[&[0; 20][..], &[4, 255, 2, 4, 1, 1, 1, 1]].concat()), None);
}

proptest! {
    /// Whatever the options are: no panic, checksums that were right stay right (but for an option at an odd place), and
    /// what follows the option is not touched.
    #[test]
    fn any_options_do(words in proptest::collection::vec(any::<[u8; 4]>(), 0..=10), size: u16, v6: bool, partial: bool) {
        let options: Vec<u8> = words.concat();
        let frame = syn(if v6 { V6 } else { V4 }, &options, &[], partial);
        let at = if v6 { 54 } else { 34 };
        let found = find(&frame[at..]);
        prop_assume!(found.is_none_or(|option| option % 2 == 0));
        let mut changed = after(&frame, Tcpmss::Set(size.min(65_495)), (0, 0)).expect("not dropped");
        let mut packet = Packet::parse(&changed, PortId::LAN, true).expect("a good packet");
        prop_assert!(matches!(packet.l4, L4::Good | L4::PartialChecksum), "{:?}", packet.l4);
        rewrite::finish_checksum(&mut changed, &mut packet);
        let again = Packet::parse(&changed, PortId::LAN, true).expect("a good packet");
        prop_assert_eq!(again.l4, L4::Good);
        let grown = changed.len() - frame.len();
        prop_assert_eq!(grown, if found.is_some() || options.len() == 40 { 0 } else { 4 });
        if grown == 4 {
            prop_assert_eq!(&changed[at + 24..], &options[..]);
        }
    }
}
