//! The witness of a packet that is explained: [`Narrator`], which writes down what it hears ([`Heard`]).

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use super::packet::{Sketch, Supposed};
use crate::conntrack::{ConnRef, Conntrack, CtInfo, CtStatus, Direction, Manip, Tracked, Tuple};
use crate::datapath::{Ends, Exit, Meeting, Witness};
use crate::packet::Packet;
use crate::route::Route;
use crate::rules::{ChainIndex, Decision, Explainer, RuleStep, Ruleset};
use crate::time::Instant;
use crate::wire::Addr;

/// What a packet met, in order.
#[derive(Clone, Debug)]
pub(super) enum Heard {
    /// Where its destination leads.
    Route(Addr, Route),
    /// An end of it has become another: which, what it was, what it is.
    Translated(Manip, Ends, Ends),
    /// It would begin a connection with this tuple, of another zone than 0: there may be one that nobody has copied.
    Zoned(Tuple),
    /// conntrack's word.
    Tracked(Tracked),
    /// A chain's.
    Chain { chain: ChainIndex, steps: Vec<RuleStep>, decision: Decision },
    /// What becomes of it.
    Exit(Exit),
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Narrator {
    ruleset: Arc<Ruleset>,
    explainer: Explainer,
    supposed: Option<Supposed>,
    /// The mark it is supposed to have when it meets the first rule.
    mark: Option<u32>,
    tell: Sender<Heard>,
}

impl Narrator {
    /// For a packet of the rules' IP version; and where it can be heard.
    pub(super) fn new(ruleset: Arc<Ruleset>, sketch: &Sketch) -> (Narrator, Receiver<Heard>) {
        let (tell, heard) = mpsc::channel();
        let (supposed, mark) = (sketch.supposed, sketch.mark);
        (Narrator { ruleset, explainer: Explainer::default(), supposed, mark, tell }, heard)
    }

    fn tell(&self, heard: Heard) {
        // Whoever asked listens until the packet is gone.
        let _ = self.tell.send(heard);
    }
}

impl Witness for Narrator {
    fn wants(&mut self, _: &Packet, _: Instant) -> bool {
        true
    }

    fn begin(&mut self, _: &Packet, _: Instant) {}

    fn route(&mut self, packet: &Packet, route: Route) {
        self.tell(Heard::Route(packet.dst, route));
    }

    fn translated(&mut self, manip: Manip, before: Ends, after: Ends) {
        self.tell(Heard::Translated(manip, before, after));
    }

    fn tracked(&mut self, tracked: &mut Tracked, conntrack: &Conntrack, _: Instant) {
        if tracked.conn == ConnRef::Prepared
            && let Some(tuple) = conntrack.tuple(tracked.conn, Direction::Original).filter(|tuple| tuple.zone != 0)
        {
            self.tell(Heard::Zoned(tuple));
        }
        if let Some(Supposed { info, direction }) = self.supposed {
            match info {
                CtInfo::Untracked => *tracked = Tracked::UNTRACKED,
                CtInfo::Invalid => *tracked = Tracked::INVALID,
                CtInfo::Related if tracked.conn != ConnRef::None => {
                    let reply = direction == Direction::Reply;
                    tracked.info = if reply { CtInfo::RelatedReply } else { CtInfo::Related };
                    tracked.status = tracked.status.with(CtStatus::EXPECTED);
                }
                CtInfo::New if tracked.conn != ConnRef::None => tracked.info = CtInfo::New,
                // ESTABLISHED is what the packets before have made it.
                _ => {}
            }
        }
        self.tell(Heard::Tracked(*tracked));
    }

    fn chain(&mut self, meeting: Meeting<'_, '_>) -> Decision {
        let Meeting { chain, context, world, .. } = meeting;
        if let Some(mark) = self.mark.take() {
            context.mark = mark;
        }
        let mut steps = Vec::new();
        let decision = self.explainer.explain(&self.ruleset, chain, context, world, &mut steps);
        self.tell(Heard::Chain { chain, steps, decision });
        decision
    }

    fn exit(&mut self, _: &Packet, exit: &Exit) {
        self.tell(Heard::Exit(*exit));
    }
}
