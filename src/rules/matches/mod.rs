//! The matches: one file each, see [`super::extension`]; and [`Match`], which is any of them.
//!
//! A match is registered by one line in the list at the end of this file; reading, printing, evaluation by the oracle and
//! by the vector follow from its `Extension` and `Matcher`.

mod comment;
mod conntrack;
mod ctstate;
mod icmp;
mod limit;
mod multiport;
mod port;

mod tcp;
mod udp;

pub use comment::CommentMatch;
pub use conntrack::{BitMatch, ConntrackMatch, CtExpire, CtProto};
pub use ctstate::{StateMatch, state};
pub use icmp::{Icmp6Match, IcmpMatch};
pub use limit::LimitMatch;
pub use multiport::{MultiportMatch, MultiportSide};
pub use port::PortRange;
pub use tcp::{TcpFlags, TcpMatch, TcpOption};
pub use udp::UdpMatch;

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
}
