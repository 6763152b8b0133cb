//! What raw PREROUTING decides about a packet before conntrack looks at it: [`Template`], Linux's template of the CT
//! target. Each packet has its own; without a rule it is [`Template::DEFAULT`].

use serde::{Deserialize, Serialize};

use super::helper::Helper;
use super::tuple::Direction;

/// Which tuples of a connection carry its zone (`nf_conntrack_zone.dir`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZoneDirection {
    /// Both: `CT --zone`.
    #[default]
    Both,
    /// The original tuple: `CT --zone-orig`.
    Original,
    /// The reply tuple: `CT --zone-reply`.
    Reply,
}

/// A conntrack zone. Connections are found only by packets of the same zone; 0 is the one without a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Zone {
    /// Its number.
    pub id: u16,
    /// Where it applies. The other tuple is in zone 0.
    pub direction: ZoneDirection,
}

impl Zone {
    /// No zone was asked for.
    pub const DEFAULT: Zone = Zone { id: 0, direction: ZoneDirection::Both };

    /// The zone of one direction's tuple (`nf_ct_zone_id`).
    #[inline]
    pub const fn of(self, direction: Direction) -> u16 {
        match (self.direction, direction) {
            (ZoneDirection::Original, Direction::Reply) | (ZoneDirection::Reply, Direction::Original) => 0,
            _ => self.id,
        }
    }
}

/// What the CT target said; see the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Template {
    /// `--zone`, `--zone-orig`, `--zone-reply`.
    pub zone: Zone,
    /// `--notrack`: the packet is UNTRACKED.
    pub notrack: bool,
    /// `--zone mark`: the zone's number is the mark the packet has when raw is done, see [`Template::resolved`].
    pub zone_is_mark: bool,
    /// `--helper`: what reads the packets of a connection that this one begins.
    pub helper: Option<Helper>,
    /// A CT or NOTRACK rule has spoken. Those after it say nothing any more (`xt_ct_target`: `skb->_nfct` is set).
    pub given: bool,
}

impl Template {
    /// Tracked, in zone 0.
    pub const DEFAULT: Template =
        Template { zone: Zone::DEFAULT, notrack: false, zone_is_mark: false, helper: None, given: false };
    /// NOTRACK.
    pub const NOTRACK: Template = Template { notrack: true, given: true, ..Template::DEFAULT };

    /// With the zone that it has for conntrack; `mark` is the packet's when the raw table is done (`nf_ct_zone_tmpl`).
    #[inline]
    #[must_use]
    pub const fn resolved(mut self, mark: u32) -> Template {
        if self.zone_is_mark {
            self.zone.id = mark as u16;
        }
        self
    }
}
