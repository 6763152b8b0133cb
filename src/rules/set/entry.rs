//! What a text of sets says: [`Sets`], each set's [`Definition`] with its [`Entry`]s. Plain values: no time, no lock.

use super::header::Header;
use super::key::Key;
use crate::rules::diagnostic::Span;

/// What a set says of packets that meet one of its elements (`-j SET --map-set`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::rules) struct SkbInfo {
    /// `skbmark`: new mark, and which bits of the old one it replaces.
    pub(in crate::rules) mark: u32,
    pub(in crate::rules) mask: u32,
    /// `skbprio`: a traffic class, major in the upper half.
    pub(in crate::rules) prio: u32,
    /// `skbqueue`
    pub(in crate::rules) queue: u16,
}

/// What stands behind an element.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Given {
    /// `timeout`, in seconds; the set's default when not given.
    pub(super) timeout: Option<u32>,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) comment: Option<Box<str>>,
    pub(super) skb: SkbInfo,
}

/// One `add` line, or one of the elements that it stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    /// An exception.
    pub(super) nomatch: bool,
    /// The interface's name stands for all that begin so.
    pub(super) wildcard: bool,
    /// A bitmap:ip,mac's element whose hardware address is not known yet.
    pub(super) unfilled: bool,
    /// Boxed: most have none.
    pub(super) given: Option<Box<Given>>,
}

/// A member of a list:set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) given: Option<Box<Given>>,
}

/// A set as it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Definition {
    pub(super) name: String,
    pub(super) header: Header,
    /// Elements, in the order written. Empty for a list:set.
    pub(super) entries: Vec<Entry>,
    /// Members of a list:set.
    pub(super) members: Vec<Member>,
    /// Where its name stands.
    pub(super) span: Span,
}

/// Sets as `ipset save` prints them, read and checked. Immutable; [`super::SetTable`] makes something to look up of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sets {
    pub(super) list: Vec<Definition>,
}

impl Sets {
    /// The names, in the order written.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|set| set.name.as_str())
    }

    /// How many sets there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Elements of all sets together.
    pub fn elements(&self) -> usize {
        self.list.iter().map(|set| set.entries.len() + set.members.len()).sum()
    }

    pub(super) fn find(&self, name: &str) -> Option<&Definition> {
        self.list.iter().find(|set| set.name == name)
    }
}
