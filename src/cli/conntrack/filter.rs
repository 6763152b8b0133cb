//! What the filters on the command line of `xrouter conntrack` mean: values of single options, and the [`ConnFilter`] or
//! tuple that all of them make.

use std::net::IpAddr;
use std::str::FromStr;

use super::{ConntrackArgs, FamilyName};
use crate::conntrack::{ConnFilter, CtStatus, Masked, NatFilter, Network, StateView, TupleFilter};
use crate::control::api::Request;
use crate::control::startup::Failure;
use crate::wire::{Family, proto};

/// Status bits.
pub(super) type Status = Masked<u16>;
/// Bits of the connection mark.
pub(super) type Mark = Masked<u32>;

/// What a translated end became; an empty text says nothing of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nat(pub(super) NatFilter);

impl FromStr for Nat {
    type Err = String;

    fn from_str(text: &str) -> Result<Nat, String> {
        if text.is_empty() { Ok(Nat(NatFilter::default())) } else { text.parse().map(Nat) }
    }
}

/// A protocol by conntrack's name for it, or by number.
pub(super) fn protocol(text: &str) -> Result<u8, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "icmp" => proto::ICMP,
        "icmpv6" | "ipv6-icmp" => proto::ICMPV6,
        "gre" => proto::GRE,
        "sctp" => proto::SCTP,
        "udplite" => proto::UDPLITE,
        "dccp" => 33,
        other => {
            return other
                .parse()
                .map_err(|_| "allowed: tcp, udp, icmp, icmpv6, gre, sctp, udplite or 0 to 255".to_owned());
        }
    })
}

/// A number, decimal or hexadecimal with 0x.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A GRE key.
pub(super) fn key(text: &str) -> Result<u16, String> {
    let key = number(text).and_then(|key| u16::try_from(key).ok());
    key.ok_or_else(|| "allowed: a number from 0 to 0xffff".to_owned())
}

/// `MARK` or `MARK/MASK`.
pub(super) fn mark(text: &str) -> Result<Mark, String> {
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    let mask = mask.map_or(Some(u32::MAX), number);
    let both = number(value).zip(mask).map(|(value, mask)| Masked { value, mask });
    both.ok_or_else(|| "allowed: MARK or MARK/MASK, numbers such as 1 or 0xff".to_owned())
}

/// `ASSURED,SEEN_REPLY`: what is named must be so.
pub(super) fn status(text: &str) -> Result<Status, String> {
    let (mut set, mut clear) = (CtStatus(0), CtStatus(0));
    for name in text.split(',') {
        match name.to_ascii_uppercase().as_str() {
            "ASSURED" => set = set.with(CtStatus::ASSURED),
            "SEEN_REPLY" => set = set.with(CtStatus::SEEN_REPLY),
            "EXPECTED" => set = set.with(CtStatus::EXPECTED),
            "UNREPLIED" => clear = clear.with(CtStatus::SEEN_REPLY),
            "UNSET" if text.contains(',') => return Err("UNSET stands alone: none of the others".to_owned()),
            "UNSET" => clear = CtStatus::ASSURED.with(CtStatus::SEEN_REPLY).with(CtStatus::EXPECTED),
            _ => {
                return Err(format!(
                    "`{name}` is no status; allowed: ASSURED, SEEN_REPLY, UNREPLIED, EXPECTED joined by commas, or UNSET"
                ));
            }
        }
    }
    match set.any(clear) {
        true => Err("SEEN_REPLY and UNREPLIED exclude each other".to_owned()),
        false => Ok(Masked { value: set.0, mask: set.with(clear).0 }),
    }
}

/// The state of this name, of TCP or SCTP.
fn state(protocol: Option<u8>, name: &str) -> Result<StateView, Failure> {
    let name = name.to_ascii_uppercase();
    let (tcp, sctp) = (&StateView::ALL[..10], &StateView::ALL[10..]);
    let (title, states) = match protocol {
        Some(proto::TCP) => ("TCP", tcp.to_vec()),
        Some(proto::SCTP) => ("SCTP", [&[StateView::None, StateView::Established][..], sctp].concat()),
        _ => return Err(Failure::Usage("--state needs -p tcp or -p sctp".to_owned())),
    };
    // conntrack(8) still has the name of the state that SYN_SENT2 took the place of.
    let wanted = if name == "LISTEN" { "SYN_SENT2" } else { name.as_str() };
    states.iter().copied().find(|state| state.name() == wanted).ok_or_else(|| {
        let names: Vec<_> = states.iter().map(|state| state.name()).collect();
        Failure::Usage(format!("--state {name}: no state of {title}'s; allowed: {}", names.join(", ")))
    })
}

/// Options that only some protocols have.
fn check_protocol(args: &ConntrackArgs) -> Result<(), Failure> {
    let ports = [proto::TCP, proto::UDP, proto::UDPLITE, proto::SCTP];
    let ours = |all: &[u8]| args.proto.is_some_and(|proto| all.contains(&proto));
    let needs: [(&str, bool, bool, &str); 4] = [
        (
            "--sport, --dport, --reply-port-src and --reply-port-dst",
            args.sport.or(args.dport).or(args.reply_port_src).or(args.reply_port_dst).is_some(),
            ours(&ports),
            "-p tcp, udp, udplite or sctp",
        ),
        (
            "--icmp-type, --icmp-code and --icmp-id",
            args.icmp_id.is_some() || args.icmp_type.or(args.icmp_code).is_some(),
            ours(&[proto::ICMP, proto::ICMPV6]),
            "-p icmp or icmpv6",
        ),
        (
            "--srckey, --dstkey, --reply-key-src and --reply-key-dst",
            args.srckey.or(args.dstkey).or(args.reply_key_src).or(args.reply_key_dst).is_some(),
            ours(&[proto::GRE]),
            "-p gre",
        ),
        ("--state", args.state.is_some(), ours(&[proto::TCP, proto::SCTP]), "-p tcp or sctp"),
    ];
    match needs.iter().find(|(_, given, fits, _)| *given && !*fits) {
        Some((options, _, _, protocols)) => Err(Failure::Usage(format!("{options} need {protocols}"))),
        None => Ok(()),
    }
}

/// The IP version of all addresses and of `-f`.
fn family(args: &ConntrackArgs) -> Result<Option<u8>, Failure> {
    let version = |network: Network| if network.family() == Family::V4 { 4 } else { 6 };
    let given = args.family.map(|family| if family == FamilyName::Ipv4 { 4 } else { 6 });
    let translated = [args.src_nat, args.dst_nat, args.any_nat].into_iter().flatten().filter_map(|Nat(to)| to.addr);
    let addresses = [args.src, args.dst, args.reply_src, args.reply_dst].into_iter().flatten();
    let addresses = addresses.chain(translated.map(Network::host)).map(version);
    let mut all = given.into_iter().chain(addresses);
    let first = all.next();
    match all.all(|version| Some(version) == first) {
        true => Ok(first),
        false => Err(Failure::Usage("mismatched address family: IPv4 and IPv6 in one filter".to_owned())),
    }
}

fn masked(network: Option<Network>, mask: Option<IpAddr>) -> Result<Option<Network>, Failure> {
    match (network, mask) {
        (Some(network), Some(mask)) => network.masked(mask).map(Some).map_err(Failure::Usage),
        (network, _) => Ok(network),
    }
}

/// Whether any filter was given.
pub(super) fn is_given(args: &ConntrackArgs) -> bool {
    args.state.is_some() || of(args).is_ok_and(|filter| filter != ConnFilter::default()) || of(args).is_err()
}

/// The filter.
pub(super) fn of(args: &ConntrackArgs) -> Result<ConnFilter, Failure> {
    check_protocol(args)?;
    Ok(ConnFilter {
        family: family(args)?,
        proto: args.proto,
        original: TupleFilter {
            src: masked(args.src, args.mask_src)?,
            dst: masked(args.dst, args.mask_dst)?,
            sport: args.sport.or(args.icmp_id).or(args.srckey),
            dport: args.dport.or(args.dstkey),
            icmp_type: args.icmp_type,
            icmp_code: args.icmp_code,
        },
        reply: TupleFilter {
            src: args.reply_src,
            dst: args.reply_dst,
            sport: args.reply_port_src.or(args.reply_key_src),
            dport: args.reply_port_dst.or(args.reply_key_dst),
            icmp_type: None,
            icmp_code: None,
        },
        state: args.state.as_deref().map(|name| state(args.proto, name)).transpose()?,
        status: args.status,
        any_status: None,
        src_nat: args.src_nat.map(|Nat(to)| to),
        dst_nat: args.dst_nat.map(|Nat(to)| to),
        any_nat: args.any_nat.map(|Nat(to)| to),
        mark: args.mark,
        zone: args.zone,
        orig_zone: args.orig_zone,
        reply_zone: args.reply_zone,
        timeout: args.timeout,
        id: args.id,
    })
}

/// The question of `-G`: a whole tuple, and nothing else.
pub(super) fn tuple(args: &ConntrackArgs) -> Result<Request, Failure> {
    let filter = of(args)?;
    let needs = |what: &str| Failure::Usage(format!("-G needs {what}"));
    let ConnFilter { original, zone, .. } = filter;
    let protocol = filter.proto.ok_or_else(|| needs("--proto"))?;
    let (Some(src), Some(dst)) = (original.src, original.dst) else { return Err(needs("--src and --dst")) };
    let single = |network: Network| Network::host(network.address()) == network;
    if !single(src) || !single(dst) {
        return Err(needs("whole addresses, without a length or mask"));
    }
    let (sport, dport) = match (protocol, original) {
        (
            proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP,
            TupleFilter { sport: Some(sport), dport: Some(dport), .. },
        ) => (sport, dport),
        (proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP, _) => return Err(needs("--sport and --dport")),
        (proto::ICMP | proto::ICMPV6, TupleFilter { icmp_type: Some(kind), icmp_code: Some(code), .. }) => {
            (original.sport.unwrap_or(0), u16::from_be_bytes([kind, code]))
        }
        (proto::ICMP | proto::ICMPV6, _) => return Err(needs("--icmp-type and --icmp-code")),
        (proto::GRE, _) => (original.sport.unwrap_or(0), original.dport.unwrap_or(0)),
        _ => (0, 0),
    };
    let used = ConnFilter { family: filter.family, proto: filter.proto, original, zone, ..ConnFilter::default() };
    if filter != used {
        return Err(Failure::Usage(
            "-G takes --proto, --src, --dst, ports, ICMP's numbers, keys and --zone only; -L has the other filters"
                .to_owned(),
        ));
    }
    Ok(Request::Get {
        family: if src.family() == Family::V4 { 4 } else { 6 },
        proto: protocol,
        src: src.address(),
        dst: dst.address(),
        sport,
        dport,
        zone: zone.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_strictly() {
        assert_eq!(mark("1/0xff"), Ok(Masked { value: 1, mask: 0xff }));
        assert_eq!(mark("0x10"), Ok(Masked { value: 16, mask: u32::MAX }));
        for wrong in ["", "x", "1/", "/1", "4294967296", "-1"] {
            assert!(mark(wrong).is_err(), "{wrong}");
        }
        assert_eq!(status("assured,SEEN_REPLY"), Ok(Masked { value: 6, mask: 6 }));
        assert_eq!(status("ASSURED,UNREPLIED"), Ok(Masked { value: 4, mask: 6 }));
        assert_eq!(status("UNSET"), Ok(Masked { value: 0, mask: 7 }));
        for wrong in ["", "NONE", "ASSURED,", "UNSET,ASSURED", "SEEN_REPLY,UNREPLIED"] {
            assert!(status(wrong).is_err(), "{wrong}");
        }
        assert_eq!((key("0x1234"), key("65536").is_err()), (Ok(0x1234), true));
        assert_eq!(state(Some(proto::TCP), "listen").expect("a state"), StateView::SynSent2);
        assert!(state(Some(proto::SCTP), "SYN_SENT").is_err() && state(Some(proto::UDP), "NONE").is_err());
    }
}
