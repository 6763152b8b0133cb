//! `-j TCPMSS`: lowers the segment size that a SYN announces (xt_TCPMSS.c): [`Tcpmss`].
//!
//! A size is never raised. A SYN without the option gets one, with the size that it stands for anyway (RFC 9293 section
//! 3.7.1) where that is lower: the packet grows by four bytes, into the room behind it. A segment that carries data is not
//! made longer, nor one whose header is full.

use super::argument;
use crate::packet::{L4, Packet};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Action, Basis, Extension, Given, HOOKS_ALL, OptionSpec, Outcome, Whole};
use crate::rules::matches::Match;
use crate::rules::registry::Registry;
use crate::rules::rule::Hook;
use crate::verdict::DropReason;
use crate::wire::{Family, checksum, get_u16, get_u32, ipv4, ipv6, proto, put_u16, tcp};
use core::fmt::Write;

const SET: u8 = 1;
const CLAMP: u8 = 2;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: usize = 4;
/// The longest TCP header.
const HEADER_MAX: usize = 60;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tcpmss {
    /// `--set-mss`
    Set(u16),
    /// `--clamp-mss-to-pmtu`: what fits the MTU of both ways.
    Clamp,
}

/// Bytes of the two headers without options: what is left of an MTU is the segment size.
const fn headers(family: Family) -> u32 {
    match family {
        Family::V4 => 40,
        Family::V6 => 60,
    }
}

/// The size that a SYN without the option stands for.
const fn default_size(family: Family) -> u16 {
    match family {
        Family::V4 => 536,
        Family::V6 => 1220,
    }
}

/// The largest `--set-mss` (iptables: 65535 less the IP header).
const fn size_max(family: Family) -> u32 {
    match family {
        Family::V4 => 65_515,
        Family::V6 => 65_495,
    }
}

/// The packet cannot be read, or not be made longer: it is dropped.
struct Broken;

impl Tcpmss {
    /// The size to lower to. `None` where the MTU has no room for a segment.
    fn size(self, context: &Context<'_>, world: &dyn World) -> Option<u16> {
        let Tcpmss::Set(size) = self else {
            // Without a way back, that does not count.
            let back = match world.mtu_back(context) {
                0 => u32::MAX,
                mtu => u32::from(mtu),
            };
            let least = back.min(u32::from(context.out_mtu));
            return least.checked_sub(headers(context.packet.family)).filter(|&size| size > 0).map(|size| size as u16);
        };
        Some(size)
    }

    /// As `tcpmss_mangle_packet`.
    fn lower(self, context: &mut Context<'_>, world: &dyn World) -> Result<(), Broken> {
        let (at, len) = (usize::from(context.packet.l4_at), usize::from(context.packet.l4_len));
        let segment =
            context.frame.get(at..at + len).filter(|segment| segment.len() >= tcp::HEADER_LEN).ok_or(Broken)?;
        let header_len = tcp::header_len(segment);
        if header_len < tcp::HEADER_LEN || header_len > len {
            return Err(Broken);
        }
        let size = self.size(context, world).ok_or(Broken)?;
        let segment = &mut context.frame[at..at + len];
        if let Some(option) = find(&segment[..header_len]) {
            let before = get_u16(segment, option + 2);
            if size < before {
                put_u16(segment, option + 2, size);
                sum_changed(segment, context.packet.l4, u32::from(before), u32::from(size));
            }
            return Ok(());
        }
        if len > header_len || header_len == HEADER_MAX {
            return Ok(());
        }
        insert(context.frame, context.packet, size.min(default_size(context.packet.family)))
    }
}

/// Where the option stands in the header; one of another length is none.
fn find(header: &[u8]) -> Option<usize> {
    let mut at = tcp::HEADER_LEN;
    while at + MSS_LEN <= header.len() {
        if header[at] == MSS && usize::from(header[at + 1]) == MSS_LEN {
            return Some(at);
        }
        at += match (header[at], header[at + 1]) {
            (END | NOP, _) | (_, 0) => 1,
            (_, length) => usize::from(length),
        };
    }
    None
}

/// `csum_replace4`: the checksum field after `old` became `new`. Never 0xffff, whatever it was.
fn replace(check: u16, old: u32, new: u32) -> u16 {
    !checksum::fold(u64::from(!u32::from(check)) + u64::from(!old) + u64::from(new))
}

/// The segment's checksum after `old` became `new` (`inet_proto_csum_replace4`). The kernel takes the place for even; where
/// a NOP before the option makes it odd, the checksum is wrong after it, and so is ours. An unfinished one covers no data.
fn sum_changed(segment: &mut [u8], l4: L4, old: u32, new: u32) {
    if l4 != L4::PartialChecksum {
        let check = replace(get_u16(segment, tcp::CHECKSUM_AT), old, new);
        put_u16(segment, tcp::CHECKSUM_AT, check);
    }
}

/// Puts the option before all others.
fn insert(frame: &mut [u8], packet: &mut Packet, size: u16) -> Result<(), Broken> {
    let (at, len) = (usize::from(packet.l4_at), usize::from(packet.l4_len));
    let l3_len = packet.l3_len.checked_add(MSS_LEN as u16).ok_or(Broken)?;
    let segment = frame.get_mut(at..at + len + MSS_LEN).ok_or(Broken)?;
    segment.copy_within(tcp::HEADER_LEN..len, tcp::HEADER_LEN + MSS_LEN);
    let (old_len, new_len) = (len as u32, (len + MSS_LEN) as u32);
    match packet.l4 {
        // The pseudo-header's sum, not complemented; the length is in it.
        L4::PartialChecksum => {
            let sum = u64::from(get_u16(segment, tcp::CHECKSUM_AT)) + u64::from(!(old_len as u16)) + u64::from(new_len);
            put_u16(segment, tcp::CHECKSUM_AT, checksum::fold(sum));
        }
        state => sum_changed(segment, state, old_len, new_len),
    }
    let option = &mut segment[tcp::HEADER_LEN..tcp::HEADER_LEN + MSS_LEN];
    option[..2].copy_from_slice(&[MSS, MSS_LEN as u8]);
    put_u16(option, 2, size);
    let added = get_u32(option, 0);
    sum_changed(segment, packet.l4, 0, added);
    let word = get_u16(segment, 12);
    segment[12] += 0x10;
    let offset = get_u16(segment, 12);
    sum_changed(segment, packet.l4, u32::from(word), u32::from(offset));
    packet.tcp_header_len += MSS_LEN as u8;
    packet.l4_len += MSS_LEN as u16;
    packet.l3_len = l3_len;
    lengthen(&mut frame[usize::from(packet.l3_at)..], packet.family);
    Ok(())
}

/// The IP header's length field, and the IPv4 header's checksum.
fn lengthen(ip: &mut [u8], family: Family) {
    match family {
        Family::V4 => {
            let (before, check) = (ipv4::total_len(ip), get_u16(ip, ipv4::CHECKSUM_AT));
            let after = before.wrapping_add(MSS_LEN as u16);
            put_u16(ip, 2, after);
            put_u16(ip, ipv4::CHECKSUM_AT, checksum::update(check, before, after));
        }
        Family::V6 => {
            let after = ipv6::payload_len(ip).wrapping_add(MSS_LEN as u16);
            put_u16(ip, 4, after);
        }
    }
}

impl Extension for Tcpmss {
    const NAME: &'static str = "TCPMSS";
    /// Of the two, the last one given counts, as in iptables.
    const OPTIONS: &'static [OptionSpec] =
        &[OptionSpec::new(SET, &["--set-mss"]), OptionSpec::new(CLAMP, &["--clamp-mss-to-pmtu"]).arguments(0)];

    fn new(_: Family) -> Tcpmss {
        Tcpmss::Clamp
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        *self = match id {
            SET => Tcpmss::Set(argument::number(given, 0, size_max(given.family))? as u16),
            _ => Tcpmss::Clamp,
        };
        Ok(())
    }

    /// As `find_syn_match`: one `-m tcp` must want SYN set. Its mask does not matter.
    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        if whole.seen.is_empty() {
            return Err(whole
                .problem("TCPMSS without a size", "which one?")
                .help("add --clamp-mss-to-pmtu or --set-mss NUMBER"));
        }
        let wants_syn = |matched: &Match| match matched {
            Match::Tcp(tcp) => tcp.flags.comp & tcp::SYN != 0 && !tcp.flags.invert,
            _ => false,
        };
        match whole.is_proto(proto::TCP) && whole.rule.matches.iter().any(wants_syn) {
            true => Ok(()),
            false => Err(whole
                .problem("TCPMSS works on TCP's SYN packets only", "the rule lets others through")
                .help("add -p tcp --tcp-flags SYN,RST SYN")),
        }
    }

    /// Before routing no MTU is known.
    fn hooks(&self) -> u8 {
        match self {
            Tcpmss::Set(_) => HOOKS_ALL,
            Tcpmss::Clamp => Hook::Forward.bit() | Hook::Output.bit() | Hook::Postrouting.bit(),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        match self {
            Tcpmss::Set(size) => write!(out, " --set-mss {size}").unwrap_or_default(),
            Tcpmss::Clamp => out.push_str(" --clamp-mss-to-pmtu"),
        }
    }
}

impl Action for Tcpmss {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    /// Every SYN has to be changed: a verdict kept from an earlier one would leave that out.
    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn run(&self, context: &mut Context<'_>, world: &mut dyn World, (): &()) -> Outcome {
        match self.lower(context, world) {
            Ok(()) => Outcome::Continue,
            Err(Broken) => Outcome::Drop(DropReason::RuleDrop),
        }
    }
}

#[cfg(test)]
mod tests;
