//! The long chains of a vector: [`Runs`], each with an [`Index`] of its rows.
//!
//! Built when the rows are, then read-only. A packet that enters a long chain is taken to the first row that its flow's own
//! fields let match, by the index; from there rows are walked one by one for a while, since what follows is often near and a
//! row costs a thirtieth of a search; then the index is asked again. The rows passed over are those of which
//! `RuleVector::test` would say no by addresses, ports, protocol, interfaces and state alone: nothing is counted, read or
//! run by them, so verdicts, counters and traces are the same with runs and without.

use super::index::{Bounds, Index, Key};
use super::row::{Facts, INVERT_DST, INVERT_PROTO, INVERT_SRC, Row, Span16, Word};

/// Rows of a chain that is worth an index: a walk through fewer is done sooner (about a nanosecond a row, and a search takes 30).
const LONG: usize = if cfg!(test) { 3 } else { 48 };
/// Rows walked after one that was searched for.
const STRIDE: usize = if cfg!(test) { 2 } else { 16 };
/// No row is so far: for chains without an index.
const NEVER: usize = usize::MAX;

/// A long chain.
#[derive(Debug)]
struct Run<const N: usize> {
    start: usize,
    /// The row that ends it.
    end: usize,
    index: Index<N>,
}

/// All long chains, in the order of their rows. `N`: [`super::index::V4`] or [`super::index::V6`].
#[derive(Debug)]
pub(super) struct Runs<const N: usize>(Box<[Run<N>]>);

impl<const N: usize> Runs<N> {
    /// Of all `rows`, where chains begin at `starts` and are so many rules long.
    pub(super) fn of<W: Word>(rows: &[Row<W>], chains: impl Iterator<Item = (usize, usize)>) -> Runs<N> {
        let run = |(start, len): (usize, usize)| {
            let bounds: Vec<Bounds<N>> = rows[start..start + len].iter().map(bounds).collect();
            Run { start, end: start + len, index: Index::build(&bounds) }
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
    #[inline]
    pub(super) fn ahead(&self, at: usize, key: &Key<N>) -> (usize, usize) {
        let Some(run) = self.holding(at) else { return (at, NEVER) };
        let to = run.index.next(key, (at - run.start) as u32).map_or(run.end, |found| run.start + found as usize);
        (to, to + STRIDE)
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
