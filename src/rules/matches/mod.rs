//! The matches: one file each, see [`super::extension`]; and [`Match`], which is any of them.
//!
//! A match is registered by one line in the list at the end of this file; reading, printing, evaluation by the oracle and
//! by the vector follow from its `Extension` and `Matcher`.

mod address;
mod addrtype;
mod ah;
mod argument;
mod bpf;
mod comment;
mod common;
mod connbytes;
mod connlimit;
mod connmark;
mod conntrack;
mod ctstate;
mod dccp;
mod dscp;
mod ecn;
mod esp;
mod eui64;
mod extension_header;
mod frag;
mod hashlimit;
mod helper;
mod icmp;
mod iprange;
mod ipv6header;
mod length;
mod limit;
mod lru;
mod mac;
mod mark;
mod mh;
mod multiport;
mod number;
mod opts;
mod pkttype;
mod policy;
mod port;
mod quota;
mod recent;
mod refused;
mod rpfilter;
mod rt;
mod sctp;
pub(super) mod set;
mod statistic;
mod string;
mod tcp;
mod tcpmss;
#[cfg(test)]
mod testing;
mod time;
mod tos;
mod ttl;
mod u32;
mod udp;
mod udplite;

pub use addrtype::AddrtypeMatch;
pub use ah::AhMatch;
pub use bpf::BpfMatch;
pub use comment::CommentMatch;
pub use connbytes::ConnbytesMatch;
pub use connlimit::ConnlimitMatch;
pub use connmark::ConnmarkMatch;
pub use conntrack::{BitMatch, ConntrackMatch, CtExpire, CtProto};
pub use ctstate::{StateMatch, state};
pub use dccp::DccpMatch;
pub use dscp::DscpMatch;
pub use ecn::EcnMatch;
pub use esp::EspMatch;
pub use eui64::Eui64Match;
pub use frag::FragMatch;
pub use hashlimit::HashlimitMatch;
pub use helper::HelperMatch;
pub use icmp::{Icmp6Match, IcmpMatch};
pub use iprange::IprangeMatch;
pub use ipv6header::Ipv6HeaderMatch;
pub use length::LengthMatch;
pub use limit::LimitMatch;
pub use mac::MacMatch;
pub use mark::MarkMatch;
pub use mh::MhMatch;
pub use multiport::{MultiportMatch, MultiportSide};
pub use opts::{DstMatch, HbhMatch};
pub use pkttype::PkttypeMatch;
pub use policy::PolicyMatch;
pub use port::PortRange;
pub use quota::QuotaMatch;
pub use recent::RecentMatch;
pub use rpfilter::RpfilterMatch;
pub use rt::RtMatch;
pub use sctp::SctpMatch;
pub use set::SetMatch;
pub use statistic::StatisticMatch;
pub use string::StringMatch;
pub use tcp::{TcpFlags, TcpMatch, TcpOption};
pub use tcpmss::TcpmssMatch;
pub use time::TimeMatch;
pub use tos::TosMatch;
pub use ttl::{HlMatch, TtlMatch};
pub use u32::U32Match;
pub use udp::UdpMatch;
pub use udplite::UdpliteMatch;

pub(super) use hashlimit::HashlimitTable;
pub(super) use recent::RecentTable;
pub(super) use refused::refused;

use super::context::{Context, World};
use super::diagnostic::Problem;
use super::extension::{Answer, Basis, Extension, Given, Kind, Matcher, Whole};
use super::registry::Registry;
use crate::wire::Family;

macro_rules! matches {
    ($($(#[$doc:meta])* $variant:ident($type:ty),)*) => {
        /// A `-m` match and its options.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Match {
            $($(#[$doc])* $variant($type),)*
        }

        /// What changes with packets, of any match.
        #[derive(Debug)]
        pub(super) enum MatchState {
            $($variant(<$type as Matcher>::State),)*
        }

        impl Match {
            /// Every match there is.
            pub(super) const KINDS: &[Kind<Match>] = &[$(Kind::of::<$type>(|family| Match::$variant(<$type>::new(family))),)*];

            /// Its name after `-m`.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Match::$variant(_) => <$type as Extension>::NAME,)*
                }
            }

            pub(super) fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
                match self {
                    $(Match::$variant(matched) => matched.read(id, given),)*
                }
            }

            pub(super) fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
                match self {
                    $(Match::$variant(matched) => matched.check(whole),)*
                }
            }

            pub(super) fn wants_conntrack(&self) -> bool {
                match self {
                    $(Match::$variant(_) => <$type as Extension>::WANTS_CONNTRACK,)*
                }
            }

            pub(super) fn hooks(&self) -> u8 {
                match self {
                    $(Match::$variant(matched) => matched.hooks(),)*
                }
            }

            pub(super) fn not_honoured(&self) -> Option<String> {
                match self {
                    $(Match::$variant(matched) => matched.not_honoured(),)*
                }
            }

            pub(super) fn save(&self, out: &mut String, family: Family) {
                match self {
                    $(Match::$variant(matched) => matched.save(out, family),)*
                }
            }

            pub(super) fn state(&self, registry: &mut Registry) -> MatchState {
                match self {
                    $(Match::$variant(matched) => MatchState::$variant(matched.state(registry)),)*
                }
            }

            pub(super) fn basis(&self) -> Basis {
                match self {
                    $(Match::$variant(matched) => matched.basis(),)*
                }
            }

            /// # Panics
            /// When `state` is another match's.
            pub(super) fn test(&self, context: &Context<'_>, world: &dyn World, state: &MatchState) -> Answer {
                match (self, state) {
                    $((Match::$variant(matched), MatchState::$variant(state)) => matched.test(context, world, state),)*
                    #[allow(unreachable_patterns)]
                    _ => panic!("the state of another match"),
                }
            }
        }
    };
}

matches! {
    /// `-m tcp`
    Tcp(TcpMatch),
    /// `-m udp`
    Udp(UdpMatch),
    /// `-m icmp`
    Icmp(IcmpMatch),
    /// `-m icmp6`
    Icmp6(Icmp6Match),
    /// `-m state`
    State(StateMatch),
    /// `-m conntrack`
    Conntrack(ConntrackMatch),
    /// `-m multiport`
    Multiport(MultiportMatch),
    /// `-m limit`
    Limit(LimitMatch),
    /// `-m comment`
    Comment(CommentMatch),
    /// `-m addrtype`
    Addrtype(AddrtypeMatch),
    /// `-m mark`
    Mark(MarkMatch),
    /// `-m connmark`
    Connmark(ConnmarkMatch),
    /// `-m iprange`
    Iprange(IprangeMatch),
    /// `-m pkttype`
    Pkttype(PkttypeMatch),
    /// `-m length`
    Length(LengthMatch),
    /// `-m ttl`
    Ttl(TtlMatch),
    /// `-m hl`
    Hl(HlMatch),
    /// `-m mac`
    Mac(MacMatch),
    /// `-m dscp`
    Dscp(DscpMatch),
    /// `-m tos`
    Tos(TosMatch),
    /// `-m tcpmss`
    Tcpmss(TcpmssMatch),
    /// `-m sctp`
    Sctp(SctpMatch),
    /// `-m udplite`
    Udplite(UdpliteMatch),
    /// `-m esp`
    Esp(EspMatch),
    /// `-m ah`
    Ah(AhMatch),
    /// `-m ecn`
    Ecn(EcnMatch),
    /// `-m rpfilter`
    Rpfilter(RpfilterMatch),
    /// `-m helper`
    Helper(HelperMatch),
    /// `-m policy`
    Policy(PolicyMatch),
    /// `-m dccp`
    Dccp(DccpMatch),
    /// `-m frag`
    Frag(FragMatch),
    /// `-m ipv6header`
    Ipv6Header(Ipv6HeaderMatch),
    /// `-m rt`
    Rt(RtMatch),
    /// `-m hbh`
    Hbh(HbhMatch),
    /// `-m dst`
    Dst(DstMatch),
    /// `-m eui64`
    Eui64(Eui64Match),
    /// `-m mh`
    Mh(MhMatch),
    /// `-m set`
    Set(SetMatch),
    /// `-m recent`
    Recent(RecentMatch),
    /// `-m hashlimit`
    Hashlimit(HashlimitMatch),
    /// `-m connlimit`
    Connlimit(ConnlimitMatch),
    /// `-m statistic`
    Statistic(StatisticMatch),
    /// `-m time`
    Time(TimeMatch),
    /// `-m connbytes`
    Connbytes(ConnbytesMatch),
    /// `-m string`
    String(StringMatch),
    /// `-m u32`
    U32(U32Match),
    /// `-m quota`
    Quota(QuotaMatch),
    /// `-m bpf`
    Bpf(BpfMatch),
}
