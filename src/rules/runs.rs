//! The long chains of a vector: [`Runs`], each with an [`Index`] of its rows.
//!
//! Built when the rows are, or made of the indices before by the rules that come and go ([`Before`]); then read-only. A packet
//! that enters a long chain is taken to the first row that its flow's own fields let match, by the index; from there rows are
//! walked one by one for a while, since what follows is often near and a row costs a fraction of a search; then the index is
//! asked again. For packets of a batch the first search may have been made ahead ([`super::Foresight`]). The rows passed over are
//! those of which `RuleVector::test` would say no by addresses, ports, protocol, interfaces and state alone: nothing is counted,
//! read or run by them, so verdicts, counters and traces are the same with runs and without.

use super::ahead::{Asked, Place};
use super::index::{Bounds, Index, Key, NONE, Scratch};
use super::row::{Action, Facts, INVERT_DST, INVERT_PROTO, INVERT_SRC, Row, Span16, Word};
use std::sync::Arc;

/// Rows of a chain that is worth an index: up to 32 are one or two blocks, which take 6 to 16 ns for one packet and 5 to 9 for
/// one of a batch. Walking costs about a nanosecond a row, and a wrong guess of the processor's about where it ends: the
/// whole evaluation of access lists took 35 ns at 8 rows, 44 at 16 and 66 at 32; with an index 27, 27 and 38, and in batches
/// 23, 24 and 28.
const LONG: usize = if cfg!(test) { 3 } else { 8 };
/// Rows walked after one that was searched for.
const STRIDE: usize = if cfg!(test) { 2 } else { 16 };
/// Rows that are looked at for a way to a long chain.
const FOLLOW: usize = 16;
/// No row is so far: for chains without an index.
const NEVER: usize = usize::MAX;

/// An index is changed when at most one in so many of its rows is another, and else built anew. (With 10,000 rows a change costs
/// 20 us and a build 12 ms.)
const CHANGED: usize = if cfg!(test) { 1 } else { 16 };

/// A long chain.
#[derive(Debug)]
struct Run<const N: usize> {
    start: usize,
    /// The row that ends it.
    end: usize,
    /// The next vector has the same, if nothing in it changes.
    index: Arc<Index<N>>,
}

/// All long chains, in the order of their rows. `N`: [`super::index::V4`] or [`super::index::V6`].
#[derive(Debug)]
pub(super) struct Runs<const N: usize>(Box<[Run<N>]>);

impl<const N: usize> Runs<N> {
    /// Of all `rows`, where chains begin at `starts` and are so many rules long; made of those `before`, where that is less work.
    pub(super) fn of<W: Word>(
        rows: &[Row<W>],
        chains: impl Iterator<Item = (usize, usize)>,
        before: Option<&Before<'_, W, N>>,
    ) -> Runs<N> {
        let run = |(start, len): (usize, usize)| {
            let end = start + len;
            let changed = before.and_then(|before| before.changed(&rows[start..end], start));
            let built = || Arc::new(Index::build(&rows[start..end].iter().map(bounds).collect::<Vec<_>>()));
            Run { start, end, index: changed.unwrap_or_else(built) }
        };
        Runs(chains.filter(|&(_, len)| len >= LONG).map(run).collect())
    }

    fn holding(&self, at: usize) -> Option<&Run<N>> {
        let run = self.0.get(self.0.partition_point(|run| run.end < at))?;
        (run.start <= at).then_some(run)
    }

    /// Where to ask an index after a chain was entered at row `at`.
    #[inline(always)]
    pub(super) fn entered(&self, at: usize, readable: bool) -> usize {
        // What can't be read is asked every match, in order.
        if self.0.is_empty() || !readable { NEVER } else { at }
    }

    /// The same after coming back to row `at`.
    #[inline(always)]
    pub(super) fn back(&self, at: usize, readable: bool) -> usize {
        self.entered(at + STRIDE, readable)
    }

    /// The first row from `at` on, within its chain, that can match, or the chain's end; and where to ask again.
    #[inline(always)]
    pub(super) fn ahead(&self, at: usize, key: &Key<N>, foreseen: Option<(&Asked<N>, usize)>) -> (usize, usize) {
        if let Some((asked, number)) = foreseen
            && let Some(to) = asked.answer(number, at, key)
        {
            return (to, to + STRIDE);
        }
        self.search(at, key)
    }

    #[inline]
    fn search(&self, at: usize, key: &Key<N>) -> (usize, usize) {
        let Some(run) = self.holding(at) else { return (at, NEVER) };
        let to = run.index.next(key, (at - run.start) as u32).map_or(run.end, |found| run.start + found as usize);
        (to, to + STRIDE)
    }

    /// Whether no chain is long.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which long chain begins at row `start`.
    #[inline]
    fn beginning(&self, start: usize) -> Option<usize> {
        self.0.binary_search_by_key(&start, |run| run.start).ok()
    }

    /// Looks up all that is asked, of packets that enter the chain that begins at row `start`.
    pub(super) fn foresee<W: Word>(&self, rows: &[Row<W>], start: usize, asked: &mut Asked<N>, scratch: &mut Scratch) {
        asked.places.clear();
        asked.places.resize(asked.keys.len(), Place::NONE);
        if self.is_empty() {
            return;
        }
        if let Some(run) = self.beginning(start) {
            self.0[run].foresee_all(asked, scratch);
            return;
        }
        for (key, place) in asked.keys.iter().zip(&mut asked.places) {
            if let Some(run) = self.reached(rows, start, &facts(key)) {
                place.from = run as u32;
            }
        }
        self.foresee_reached(asked, scratch);
    }

    /// The long chain that a flow likely comes to first, from row `at` of a short one: rules that match by the row's own fields
    /// alone are followed, of the others it is thought that they don't match.
    fn reached<W: Word>(&self, rows: &[Row<W>], start: usize, facts: &Facts<W>) -> Option<usize> {
        let mut at = start;
        for _ in 0..FOLLOW {
            let row = rows.get(at)?;
            at += 1;
            let alone = row.ops_len == row.inlined && !row.asks_flags();
            if !(alone && row.of_the_flow(facts)) {
                continue;
            }
            match row.action {
                Action::Count => {}
                Action::Jump(to) | Action::Goto(to) => {
                    at = to as usize;
                    if let Some(run) = self.beginning(at) {
                        return Some(run);
                    }
                }
                _ => return None,
            }
        }
        None
    }

    /// Looks up the packets that come to some long chain, chain by chain; until then their places say which.
    fn foresee_reached(&self, asked: &mut Asked<N>, scratch: &mut Scratch) {
        let Asked { keys, places, some_keys, some_found } = asked;
        for at in 0..places.len() {
            let number = places[at].from;
            if places[at].is_found() || number == NONE {
                continue;
            }
            let run = &self.0[number as usize];
            let is_here = |place: &Place| place.from == number && !place.is_found();
            some_keys.clear();
            some_keys.extend(keys.iter().zip(&*places).filter(|(_, place)| is_here(place)).map(|(key, _)| *key));
            some_found.clear();
            some_found.resize(some_keys.len(), 0);
            run.index.first_batch_with(some_keys, some_found, scratch);
            for (place, found) in places.iter_mut().filter(|place| is_here(place)).zip(&*some_found) {
                *place = run.place(*found);
            }
        }
    }
}

impl<const N: usize> Run<N> {
    /// Looks up all packets.
    fn foresee_all(&self, asked: &mut Asked<N>, scratch: &mut Scratch) {
        let Asked { keys, places, some_found, .. } = asked;
        some_found.clear();
        some_found.resize(keys.len(), 0);
        self.index.first_batch_with(keys, some_found, scratch);
        for (place, found) in places.iter_mut().zip(&*some_found) {
            *place = self.place(*found);
        }
    }

    #[inline(always)]
    fn place(&self, found: u32) -> Place {
        let found = if found == NONE { self.end - self.start } else { found as usize };
        Place { from: self.start as u32, found: found as u32 }
    }
}

/// What a key is of.
fn facts<W: Word, const N: usize>(key: &Key<N>) -> Facts<W> {
    let (src, dst) = key.words.split_at(N / 2);
    Facts {
        src: W::of_words(src),
        dst: W::of_words(dst),
        sport: key.sport,
        dport: key.dport,
        state: key.states,
        ports: key.ports,
        proto: key.proto,
        flags: 0,
        readable: true,
    }
}

/// The vector before, whose indices may be changed into those wanted.
pub(super) struct Before<'a, W, const N: usize> {
    pub(super) rows: &'a [Row<W>],
    pub(super) runs: &'a Runs<N>,
    /// By row: the same rule's row before.
    pub(super) row_before: Vec<Option<u32>>,
}

impl<W: Word, const N: usize> Before<'_, W, N> {
    /// The index of these rows, the first of which is row `start`; none if it is better built.
    fn changed(&self, rows: &[Row<W>], start: usize) -> Option<Arc<Index<N>>> {
        let before = &self.row_before[start..start + rows.len()];
        let first = before.iter().flatten().next()?;
        let run = self.runs.holding(*first as usize)?;
        // Rows that stay, in their order, are found in the old index; the others of it go, the others here come.
        let mut goes = vec![true; run.end - run.start];
        let mut comes = Vec::new();
        let mut next = run.start;
        for (position, (row, before)) in rows.iter().zip(before).enumerate() {
            let bounds: Bounds<N> = bounds(row);
            let stays = |&before: &usize| {
                (next..run.end).contains(&before) && self::bounds::<W, N>(&self.rows[before]) == bounds
            };
            match before.map(|before| before as usize).filter(stays) {
                Some(before) => {
                    goes[before - run.start] = false;
                    next = before + 1;
                }
                None => comes.push((position as u32, bounds)),
            }
        }
        let gone = goes.iter().filter(|goes| **goes).count();
        if (gone + comes.len()) * CHANGED > rows.len() {
            return None;
        }
        let mut index = Arc::clone(&run.index);
        if gone + comes.len() > 0 {
            let index = Arc::make_mut(&mut index);
            (0..goes.len()).rev().filter(|&at| goes[at]).for_each(|at| index.remove(at as u32));
            comes.iter().for_each(|(position, bounds)| index.insert(*position, bounds));
        }
        Some(index)
    }
}

/// What a row's own fields ask of the flow.
fn bounds<W: Word, const N: usize>(row: &Row<W>) -> Bounds<N> {
    let range = |span: Span16| (span.low, span.low.wrapping_add(span.span));
    let mut bounds = Bounds {
        values: words(row.src, row.dst),
        masks: words(row.src_mask, row.dst_mask),
        sport: range(row.sport),
        dport: range(row.dport),
        proto: (row.proto_mask != 0 && row.invert & INVERT_PROTO == 0).then_some(row.proto),
        ports: row.ports,
        states: row.states,
    };
    for (bit, half) in [(INVERT_SRC, 0..N / 2), (INVERT_DST, N / 2..N)] {
        if row.invert & bit != 0 {
            bounds.values[half.clone()].fill(0);
            bounds.masks[half].fill(0);
        }
    }
    bounds
}

/// What a packet has to compare with the bounds.
#[inline(always)]
pub(super) fn key<W: Word, const N: usize>(facts: &Facts<W>) -> Key<N> {
    Key {
        words: words(facts.src, facts.dst),
        sport: facts.sport,
        dport: facts.dport,
        states: facts.state,
        ports: facts.ports,
        proto: facts.proto,
    }
}

#[inline(always)]
fn words<W: Word, const N: usize>(src: W, dst: W) -> [u32; N] {
    core::array::from_fn(|at| if at < N / 2 { src.word(at) } else { dst.word(at - N / 2) })
}
