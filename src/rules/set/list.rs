//! Members of a list:set: [`ListStore`], other sets, asked one after another.

use super::entry::{Definition, SkbInfo};
use super::extra::Extra;
use super::header::Header;
use super::question::Question;
use super::table::SetCell;
use crate::time::Instant;
use std::sync::Arc;

/// See the module's head. Packets do not change it: what they add or delete, they add to or delete from its members.
#[derive(Clone, Debug)]
pub(super) struct ListStore {
    members: Vec<(Arc<SetCell>, Extra)>,
}

impl ListStore {
    /// The members of `definition` from `now` on; `find` knows every set that is named.
    pub(super) fn new(definition: &Definition, now: Instant, find: &dyn Fn(&str) -> Option<Arc<SetCell>>) -> ListStore {
        let member = |member: &super::entry::Member| {
            let cell = find(&member.name)?;
            Some((cell, Extra::new(&definition.header, member.given.as_deref(), now)))
        };
        ListStore { members: definition.members.iter().filter_map(member).collect() }
    }

    pub(super) fn members(&self) -> &[(Arc<SetCell>, Extra)] {
        &self.members
    }

    /// The first member that has the packet and counts as met (`list_set_ktest`).
    pub(super) fn test(&self, header: &Header, question: &Question<'_>) -> Option<SkbInfo> {
        let mut below = *question;
        (below.packets, below.bytes) = (None, None);
        below.counts &= below.counts_below;
        self.members.iter().find_map(|(cell, extra)| {
            let found = cell.test(&below)?;
            let skb = if header.skbinfo { extra.skb() } else { found };
            extra.admits(header, question).then_some(skb)
        })
    }

    /// The first member that takes the packet (`list_set_kadd`, `list_set_kdel`).
    pub(super) fn change(
        &self,
        header: &Header,
        question: &Question<'_>,
        change: impl Fn(&SetCell, &Question<'_>) -> bool,
    ) -> bool {
        let alive = |extra: &Extra| header.timeout.is_none() || !extra.is_expired(question.now);
        self.members.iter().any(|(cell, extra)| alive(extra) && change(cell, question))
    }
}
