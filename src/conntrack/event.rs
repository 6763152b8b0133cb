//! What becomes of connections, for those who listen: [`Event`], and the [`Recorder`] that a tracker writes them into.
//!
//! An event is what ctnetlink multicasts: NEW when a connection is confirmed, UPDATE when a packet of it leaves after its
//! protocol state or its status has changed (`IPCT_PROTOINFO`, `IPCT_REPLY`, `IPCT_ASSURED`), DESTROY when it is removed.
//! While nobody listens, all that it costs is to see that. While somebody does, events wait here for the worker to fetch
//! them once per burst; the room is bounded and taken at start, and what finds none is counted as lost.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::list::ConnView;
use crate::time::Instant;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// Confirmed.
    New,
    /// Its protocol state or its status has changed.
    Update,
    /// Removed.
    Destroy,
}

impl EventKind {
    /// The name that `-o xml` has for it.
    pub const fn name(self) -> &'static str {
        match self {
            EventKind::New => "new",
            EventKind::Update => "update",
            EventKind::Destroy => "destroy",
        }
    }

    pub(super) const fn bracketed(self) -> &'static str {
        match self {
            EventKind::New => "[NEW]",
            EventKind::Update => "[UPDATE]",
            EventKind::Destroy => "[DESTROY]",
        }
    }
}

/// Which kinds somebody wants; the text is that of `conntrack -e`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventMask(u8);

impl EventMask {
    /// Every kind.
    pub const ALL: EventMask = EventMask(7);

    /// Whether this kind is wanted.
    pub const fn admits(self, kind: EventKind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }
}

impl Default for EventMask {
    fn default() -> EventMask {
        EventMask::ALL
    }
}

impl FromStr for EventMask {
    type Err = String;

    fn from_str(text: &str) -> Result<EventMask, String> {
        let bits = text.split(',').map(|name| match name.to_ascii_uppercase().as_str() {
            "ALL" => Ok(EventMask::ALL.0),
            "NEW" => Ok(1),
            "UPDATES" => Ok(2),
            "DESTROY" => Ok(4),
            _ => Err(format!("`{name}` is no kind of event; allowed: ALL, NEW, UPDATES, DESTROY, joined by commas")),
        });
        bits.reduce(|a, b| Ok(a? | b?)).expect("a split has at least one part").map(EventMask)
    }
}

impl fmt::Display for EventMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(1, "NEW"), (2, "UPDATES"), (4, "DESTROY")];
        let names: Vec<&str> = names.into_iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, name)| name).collect();
        f.write_str(&names.join(","))
    }
}

impl TryFrom<String> for EventMask {
    type Error = String;

    fn try_from(text: String) -> Result<EventMask, String> {
        text.parse()
    }
}

impl From<EventMask> for String {
    fn from(mask: EventMask) -> String {
        mask.to_string()
    }
}

/// Something that happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// When.
    pub at: Instant,
    /// The connection after it.
    pub conn: ConnView,
    /// Who asked for it: a process's number; 0 when packets or time were the cause.
    pub by: u32,
}

/// Events that may wait for the worker: those of a batch in which every packet makes room by several connections, begins
/// one, and of the expiry that follows, are fewer.
const ROOM: usize = 512;

/// Where a tracker's events wait.
#[derive(Debug)]
pub(super) struct Recorder {
    listening: bool,
    waiting: Vec<Event>,
    lost: u64,
}

impl Recorder {
    pub(super) fn new() -> Recorder {
        Recorder { listening: false, waiting: Vec::with_capacity(ROOM), lost: 0 }
    }

    pub(super) fn listen(&mut self, on: bool) {
        self.listening = on;
        self.waiting.clear();
    }

    /// Whether anybody listens.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.listening
    }

    pub(super) fn record(&mut self, event: Event) {
        if self.waiting.len() < ROOM {
            self.waiting.push(event);
        } else {
            self.lost += 1;
        }
    }

    pub(super) fn waiting(&mut self) -> &mut Vec<Event> {
        &mut self.waiting
    }

    /// Takes the count of those that found no room.
    pub(super) fn take_lost(&mut self) -> u64 {
        core::mem::take(&mut self.lost)
    }
}
