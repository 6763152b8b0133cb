//! The targets: one file each, see [`super::extension`]; and [`Target`], which is any of them, or a verdict by name, or a
//! chain.
//!
//! A target is registered by one line in the list at the end of this file.

mod argument;
mod checksum;
mod classify;
mod connmark;
mod ct;
mod dnat;
mod dscp;
mod hl;
mod log;
mod mark;
mod masquerade;
mod nat_range;
mod netmap;
pub(super) mod nflog;
mod notrack;
mod redirect;
pub(super) mod refused;
mod reject;
pub(super) mod set;
mod snat;
mod tcpmss;
mod tos;
mod trace;
mod ttl;

pub use log::{LogTarget, log_flags};
pub use nat_range::{Blocks, Independence, NatPorts, NatRange, NatRequest, NatSource};
pub use reject::RejectWith;
pub use set::SetTarget;
pub use trace::{TRACE_LOG, TraceEvent, TracePlace};

use checksum::Checksum;
use classify::Classify;
use connmark::Connmark;
use ct::Ct;
use dnat::Dnat;
use dscp::Dscp;
use hl::Hl;
use mark::Mark;
use masquerade::Masquerade;
use netmap::Netmap;
use nflog::Nflog;
use notrack::Notrack;
use redirect::Redirect;
use snat::Snat;
use tcpmss::Tcpmss;
use tos::Tos;
use trace::TraceTarget;
use ttl::Ttl;

use super::context::{Context, World};
use super::diagnostic::Problem;
use super::extension::{Action, Basis, Extension, Given, Kind, Outcome, Whole};
use super::registry::Registry;
use super::rule::ChainIndex;
use crate::wire::Family;

macro_rules! targets {
    ($($(#[$doc:meta])* $variant:ident($type:ty),)*) => {
        /// What a rule does with a packet that matches.
        #[derive(Clone, Debug, PartialEq, Eq, Default)]
        pub enum Target {
            /// No `-j`: only counts.
            #[default]
            Count,
            /// Passes this table.
            Accept,
            /// Dropped.
            Drop,
            /// Goes on after the rule that called this chain; in a built-in chain, to the policy.
            Return,
            /// `-j CHAIN`
            Jump(ChainIndex),
            /// `-g CHAIN`: as a jump, but its end returns to where the last jump came from.
            Goto(ChainIndex),
            $($(#[$doc])* $variant($type),)*
        }

        /// What changes with packets, of any target.
        #[derive(Debug)]
        pub(super) enum TargetState {
            /// Of a verdict or a chain.
            None,
            $($variant(<$type as Action>::State),)*
        }

        impl Target {
            /// Every target with a name of its own, besides ACCEPT, DROP and RETURN.
            pub(super) const KINDS: &[Kind<Target>] = &[$(Kind::of::<$type>(|family| Target::$variant(<$type>::new(family))),)*];

            /// Its name after `-j`; empty for a chain and for none.
            pub const fn name(&self) -> &'static str {
                match self {
                    Target::Count | Target::Jump(_) | Target::Goto(_) => "",
                    Target::Accept => "ACCEPT",
                    Target::Drop => "DROP",
                    Target::Return => "RETURN",
                    $(Target::$variant(_) => <$type as Extension>::NAME,)*
                }
            }

            pub(super) fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
                match self {
                    $(Target::$variant(target) => target.read(id, given),)*
                    _ => Ok(()),
                }
            }

            pub(super) fn warning(&self, id: u8, given: &Given<'_>) -> Option<Problem> {
                match self {
                    $(Target::$variant(target) => target.warning(id, given),)*
                    _ => None,
                }
            }

            pub(super) fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
                match self {
                    $(Target::$variant(target) => target.check(whole),)*
                    _ => Ok(()),
                }
            }

            pub(super) fn wants_conntrack(&self) -> bool {
                match self {
                    $(Target::$variant(target) => target.wants_conntrack(),)*
                    _ => false,
                }
            }

            pub(super) fn hooks(&self) -> u8 {
                match self {
                    $(Target::$variant(target) => target.hooks(),)*
                    _ => super::extension::HOOKS_ALL,
                }
            }

            pub(super) fn not_honoured(&self) -> Option<String> {
                match self {
                    $(Target::$variant(target) => target.not_honoured(),)*
                    _ => None,
                }
            }

            pub(super) fn save(&self, out: &mut String, family: Family) {
                match self {
                    $(Target::$variant(target) => target.save(out, family),)*
                    _ => {}
                }
            }

            pub(super) fn state(&self, registry: &mut Registry) -> TargetState {
                match self {
                    $(Target::$variant(target) => TargetState::$variant(target.state(registry)),)*
                    _ => TargetState::None,
                }
            }

            pub(super) fn basis(&self) -> Basis {
                match self {
                    $(Target::$variant(target) => target.basis(),)*
                    _ => Basis::Flow,
                }
            }

            /// Does the work of a target that is neither a verdict by name nor a chain.
            ///
            /// # Panics
            /// When `state` is another target's.
            pub(super) fn run(&self, context: &mut Context<'_>, world: &mut dyn World, state: &TargetState) -> Outcome {
                match (self, state) {
                    $((Target::$variant(target), TargetState::$variant(state)) => target.run(context, world, state),)*
                    _ => panic!("the state of another target"),
                }
            }
        }
    };
}

impl Target {
    /// Whether it gives out what all connections of a client share, wherever they have their home.
    pub(super) fn wants_one_worker(&self) -> bool {
        match self {
            Target::Snat(Snat(range)) | Target::Masquerade(Masquerade(range)) => *range != range.of_linux(),
            _ => false,
        }
    }

    /// As the kernel can be given it: without options that Linux does not have.
    pub(super) fn of_linux(&self) -> Target {
        match self {
            Target::Snat(Snat(range)) => Target::Snat(Snat(range.of_linux())),
            Target::Masquerade(Masquerade(range)) => Target::Masquerade(Masquerade(range.of_linux())),
            other => other.clone(),
        }
    }
}

targets! {
    /// `-j REJECT`: dropped and answered.
    Reject(RejectWith),
    /// `-j LOG`: a line in the log; the next rule follows.
    Log(LogTarget),
    /// `-j MARK`: changes the packet's mark.
    Mark(Mark),
    /// `-j CONNMARK`: changes the connection's mark, or takes it over.
    Connmark(Connmark),
    /// `-j CT`: what conntrack is to do.
    Ct(Ct),
    /// `-j NOTRACK`: conntrack does nothing.
    Notrack(Notrack),
    /// `-j TTL`
    Ttl(Ttl),
    /// `-j HL`
    Hl(Hl),
    /// `-j TOS`
    Tos(Tos),
    /// `-j DSCP`
    Dscp(Dscp),
    /// `-j TCPMSS`: lowers the segment size of a SYN.
    Tcpmss(Tcpmss),
    /// `-j NFLOG`: a copy for a group of listeners.
    Nflog(Nflog),
    /// `-j TRACE`: every rule from here on is told.
    Trace(TraceTarget),
    /// `-j CLASSIFY`
    Classify(Classify),
    /// `-j CHECKSUM`
    Checksum(Checksum),
    /// `-j SNAT`
    Snat(Snat),
    /// `-j DNAT`
    Dnat(Dnat),
    /// `-j MASQUERADE`
    Masquerade(Masquerade),
    /// `-j REDIRECT`
    Redirect(Redirect),
    /// `-j NETMAP`
    Netmap(Netmap),
    /// `-j SET`: adds to a set, deletes from one, or takes a mark from one.
    Set(SetTarget),
}

impl Target {
    /// The chain it leads to.
    pub const fn chain(&self) -> Option<ChainIndex> {
        match self {
            Target::Jump(chain) | Target::Goto(chain) => Some(*chain),
            _ => None,
        }
    }

    /// Whether it takes packets out of connection tracking.
    pub fn takes_out(&self) -> bool {
        match self {
            Target::Notrack(_) => true,
            Target::Ct(ct) => ct.notrack,
            _ => false,
        }
    }

    /// Whether nothing after it in the chain is reached by a packet that matches.
    pub const fn is_final(&self) -> bool {
        let translates = matches!(
            self,
            Target::Snat(_) | Target::Dnat(_) | Target::Masquerade(_) | Target::Redirect(_) | Target::Netmap(_)
        );
        translates
            || matches!(self, Target::Accept | Target::Drop | Target::Return | Target::Reject(_) | Target::Goto(_))
    }
}
