//! Application helpers: which exist ([`Helper`]), what one is called with ([`Call`]) and what it says ([`Refused`]).
//!
//! A helper reads the packets of a control connection for addresses and ports at which another connection will begin, adds
//! an [`Expectation`] for it, and where the control connection is translated writes the translated address and port into
//! the packet. One file each, parser and translation together, exactly as Linux's nf_conntrack_NAME.c and nf_nat_NAME.c do
//! it, down to what they do not find. A helper runs on each packet of its connection after all rules and translations and
//! before the connection is confirmed (`nf_confirm`); it is given to a connection by `-j CT --helper` only.

mod amanda;
mod ftp;
mod irc;
mod mangle;
mod netbios;
mod pptp;
mod sane;
mod search;
mod tftp;

use super::expect::{Expectation, Expectations, MasterId, Unexpected};
use super::keymap::Keymap;
use super::seqadj::SeqAdjust;
use super::tuple::{CtInfo, CtStatus, Direction, Tuple};
use serde::{Deserialize, Serialize};

use crate::packet::Packet;
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, Family, proto, tcp, udp};

/// Linux's helpers that are here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&str", try_from = "String")]
#[repr(u8)]
pub enum Helper {
    /// FTP: PORT, EPRT, 227, 229.
    Ftp,
    /// TFTP: read and write requests.
    Tftp,
    /// Amanda: CONNECT.
    Amanda,
    /// IRC: DCC.
    Irc,
    /// SANE: the data port of a scan.
    Sane,
    /// PPTP: the tunnel of a call.
    Pptp,
    /// NetBIOS name service: answers to broadcasts of the host itself, so nothing of what is forwarded.
    NetbiosNs,
}

/// Linux's helpers that are not here, and what is missing.
pub const REFUSED: &[(&str, &str)] = &[
    ("sip", "media addresses in SIP messages are neither read nor translated"),
    ("snmp", "addresses inside of SNMP messages are not translated"),
    ("RAS", "H.323 messages are neither read nor translated"),
    ("Q.931", "H.323 messages are neither read nor translated"),
    ("H.245", "H.323 messages are neither read nor translated"),
];

/// How many connections of a class may be expected at a time, and for how long (`nf_conntrack_expect_policy`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// At a time, for one master; 0: as many as there are.
    pub max_expected: u8,
    /// Seconds.
    pub timeout: u32,
}

impl Helper {
    /// All of them.
    pub const ALL: &'static [Helper] =
        &[Helper::Ftp, Helper::Tftp, Helper::Amanda, Helper::Irc, Helper::Sane, Helper::Pptp, Helper::NetbiosNs];

    /// The name that `--helper` has for it.
    pub const fn name(self) -> &'static str {
        match self {
            Helper::Ftp => "ftp",
            Helper::Tftp => "tftp",
            Helper::Amanda => "amanda",
            Helper::Irc => "irc",
            Helper::Sane => "sane",
            Helper::Pptp => "pptp",
            Helper::NetbiosNs => "netbios-ns",
        }
    }

    /// The helper of this name.
    pub fn from_name(name: &str) -> Option<Helper> {
        Helper::ALL.iter().copied().find(|helper| helper.name() == name)
    }

    /// The transport protocol of its control connection.
    pub const fn proto(self) -> u8 {
        match self {
            Helper::Ftp | Helper::Irc | Helper::Sane | Helper::Pptp => proto::TCP,
            Helper::Tftp | Helper::Amanda | Helper::NetbiosNs => proto::UDP,
        }
    }

    /// Whether it can be given to connections of this IP version.
    pub const fn serves(self, family: Family) -> bool {
        match self {
            Helper::Irc | Helper::Pptp | Helper::NetbiosNs => matches!(family, Family::V4),
            _ => true,
        }
    }

    /// What it may expect.
    pub const fn policy(self) -> Policy {
        let (max_expected, timeout) = match self {
            Helper::Ftp | Helper::Tftp | Helper::Sane => (1, 300),
            Helper::Amanda => (4, 180),
            Helper::Irc => (8, 300),
            Helper::Pptp => (2, 300),
            Helper::NetbiosNs => (1, 3),
        };
        Policy { max_expected, timeout }
    }

    /// What it remembers of a connection at its beginning.
    pub(in crate::conntrack) fn memory(self) -> Memory {
        match self {
            Helper::Ftp => Memory::Ftp(ftp::Lines::default()),
            Helper::Sane => Memory::Sane(sane::State::default()),
            Helper::Pptp => Memory::Pptp(pptp::Session::default()),
            _ => Memory::None,
        }
    }
}

impl From<Helper> for &str {
    fn from(helper: Helper) -> &'static str {
        helper.name()
    }
}

impl TryFrom<String> for Helper {
    type Error = String;

    fn try_from(name: String) -> Result<Helper, String> {
        Helper::from_name(&name).ok_or_else(|| format!("no helper `{name}`"))
    }
}

/// What a helper remembers of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::conntrack) enum Memory {
    None,
    Ftp(ftp::Lines),
    Sane(sane::State),
    Pptp(pptp::Session),
}

/// Why a packet with a command in it goes no further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::conntrack) enum Refused {
    /// A command is cut short: what follows could not be understood any more.
    Partial,
    /// What it announces cannot be expected.
    Unexpected,
    /// It cannot be written into the packet.
    NoRoom,
}

impl From<Refused> for DropReason {
    fn from(refused: Refused) -> DropReason {
        match refused {
            Refused::Partial => DropReason::HelperPartial,
            Refused::Unexpected => DropReason::HelperUnexpected,
            Refused::NoRoom => DropReason::HelperNoRoom,
        }
    }
}

/// A packet and all that a helper may know and change. The packet has the addresses it leaves with.
pub(in crate::conntrack) struct Call<'a> {
    pub(in crate::conntrack) helper: Helper,
    pub(in crate::conntrack) info: CtInfo,
    /// Of the connection, by direction.
    pub(in crate::conntrack) tuples: [Tuple; 2],
    /// Number of its zone.
    pub(in crate::conntrack) zone: u16,
    pub(in crate::conntrack) status: CtStatus,
    pub(in crate::conntrack) packet: &'a mut Packet,
    /// The frame and the room behind it.
    pub(in crate::conntrack) frame: &'a mut [u8],
    pub(in crate::conntrack) master: MasterId,
    pub(in crate::conntrack) memory: &'a mut Memory,
    pub(in crate::conntrack) adjust: &'a mut SeqAdjust,
    pub(in crate::conntrack) expectations: &'a mut Expectations,
    pub(in crate::conntrack) random: &'a mut dyn FnMut() -> u32,
    pub(in crate::conntrack) now: Instant,
    /// Source keys of GRE.
    pub(in crate::conntrack) keys: &'a mut Keymap,
    /// Tuples of connections that are over, or expected no more.
    pub(in crate::conntrack) ends: Option<[Tuple; 2]>,
    /// Seconds that the connection is to live from now on; set by a helper that wants other than its protocol's.
    pub(in crate::conntrack) refresh: Option<u32>,
}

impl Call<'_> {
    /// Has the connection's helper look at the packet.
    pub(in crate::conntrack) fn run(&mut self) -> Result<(), Refused> {
        match self.helper {
            Helper::Ftp => ftp::help(self),
            Helper::Tftp => tftp::help(self),
            Helper::Amanda => amanda::help(self),
            Helper::Irc => irc::help(self),
            Helper::Sane => sane::help(self),
            Helper::Pptp => pptp::help(self),
            Helper::NetbiosNs => netbios::help(self),
        }
    }

    fn direction(&self) -> Direction {
        self.info.direction()
    }

    fn tuple(&self, direction: Direction) -> &Tuple {
        &self.tuples[direction.index()]
    }

    /// Traffic has been seen both ways (`ctinfo` is IP_CT_ESTABLISHED or its reply).
    fn is_established(&self) -> bool {
        matches!(self.info, CtInfo::Established | CtInfo::EstablishedReply)
    }

    /// Whether the connection is translated (`IPS_NAT_MASK`).
    fn is_translated(&self) -> bool {
        self.status.any(CtStatus::SRC_NAT.with(CtStatus::DST_NAT))
    }

    /// What comes after the TCP or UDP header, to the IP packet's end; empty where there is no whole header.
    fn payload(&self) -> &[u8] {
        let header = match self.packet.proto {
            proto::TCP if self.packet.tcp_header_len >= tcp::HEADER_LEN as u8 => {
                usize::from(self.packet.tcp_header_len)
            }
            proto::UDP => udp::HEADER_LEN,
            _ => return &[],
        };
        self.packet.l4_bytes(self.frame).get(header..).unwrap_or(&[])
    }

    /// An expectation of class 0 for a TCP or UDP connection from `source` to an address and a port.
    fn expectation(&self, protocol: u8, source: Option<Addr>, dst: Addr, dport: u16) -> Expectation {
        let (family, zone) = (self.tuples[0].family, self.zone);
        let to = Tuple { dst, dport, proto: protocol, family, zone, ..Tuple::default() };
        Expectation::new(self.master, source, to)
    }

    /// Adds an expectation as it is.
    fn expect(&mut self, new: &Expectation) -> Result<(), Refused> {
        let policy = self.helper.policy();
        self.expectations.insert(*new, policy, self.now).map_err(|_| Refused::Unexpected)
    }

    /// Adds an expectation, with another port than its own where that one is taken (`nf_nat_exp_find_port`): up to 128 are
    /// tried at random, none below its own.
    fn expect_at_free_port(&mut self, new: &mut Expectation) -> Result<u16, Refused> {
        const ATTEMPTS: u32 = 128;
        let policy = self.helper.policy();
        let first = new.tuple.dport;
        let range = u32::from(u16::MAX - first);
        for _ in 0..=range.min(ATTEMPTS) {
            match self.expectations.insert(*new, policy, self.now) {
                // Port 0 is what Linux says with when there is none; the expectation is there all the same.
                Ok(()) if new.tuple.dport == 0 => break,
                Ok(()) => return Ok(new.tuple.dport),
                Err(Unexpected::Busy) if range > 0 => {
                    let offset = (u64::from((self.random)()) * u64::from(range)) >> 32;
                    new.tuple.dport = first + offset as u16;
                }
                Err(_) => break,
            }
        }
        Err(Refused::Unexpected)
    }

    /// Writes over bytes of the payload.
    fn rewrite(&mut self, at: usize, with: &[u8]) -> Result<(), Refused> {
        match mangle::replace(self.packet, self.frame, at, with.len(), with) {
            true => Ok(()),
            false => Err(Refused::NoRoom),
        }
    }

    /// Writes `with` in the place of `length` bytes of the payload, and ends `expectation` where that cannot be done.
    fn announce(&mut self, at: usize, length: usize, with: &[u8], expectation: &Expectation) -> Result<(), Refused> {
        let (seq, by) = (self.packet.seq, with.len() as i32 - length as i32);
        if !mangle::replace(self.packet, self.frame, at, length, with) {
            self.expectations.remove(expectation);
            return Err(Refused::NoRoom);
        }
        if self.packet.proto == proto::TCP && by != 0 {
            self.adjust.set(self.info.direction(), seq, by);
            self.status = self.status.with(CtStatus::SEQ_ADJUST);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
