//! The sets that rules look into: [`SetTable`], by name; [`SetCell`], one of them, whose contents can be replaced as a whole while
//! packets are tested against it.
//!
//! A compiled rule keeps the cell, not what is in it, so that new contents take effect without compiling rules again. Contents
//! that no rule adds to are immutable and read without a lock; those of a set that a SET target names are behind one, and take
//! the memory for all elements the set may have when they are made.

use super::bitmap::BitmapStore;
use super::entry::{Definition, Sets, SkbInfo};
use super::hash::{Found, HashStore};
use super::header::Header;
use super::kind::Method;
use super::list::ListStore;
use super::question::Question;
use crate::rules::diagnostic::{Diagnostics, Problem, Report, nearest};
use crate::time::Instant;
use crate::wire::Family;
use arc_swap::ArcSwap;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// The most elements of a set that rules add to: all memory for them is taken at once, up to 170 bytes each.
pub(in crate::rules) const LIVE_MAX: u32 = 1 << 22;

/// Elements, kept in the way of the set's type.
#[derive(Clone, Debug)]
pub(super) enum Store {
    Hash(Box<HashStore>),
    Bitmap(BitmapStore),
    List(ListStore),
}

impl Store {
    /// What the element that the packet meets says of it; `None` when it meets none, or an exception.
    #[inline]
    fn test(&self, header: &Header, question: &Question<'_>) -> Option<SkbInfo> {
        let found = match self {
            Store::Hash(store) => store.test(header, question),
            Store::Bitmap(store) => store.test(header, question),
            Store::List(store) => return store.test(header, question),
        };
        let place = match found {
            Found::Yes(place) if !(question.return_nomatch && header.kind.has_nomatch()) => place,
            Found::Nomatch(place) if question.return_nomatch => place,
            _ => return None,
        };
        let extra = match self {
            Store::Hash(store) if header.skbinfo => store.extra(place),
            Store::Bitmap(store) if header.skbinfo => store.extra(place),
            _ => None,
        };
        Some(extra.map_or_else(SkbInfo::default, super::extra::Extra::skb))
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Store::Hash(store) => store.len(),
            Store::Bitmap(store) => store.len(),
            Store::List(store) => store.members().len(),
        }
    }
}

/// With a lock where packets change it.
#[derive(Debug)]
enum Kept {
    Frozen(Store),
    Live(RwLock<Store>),
}

/// What is in a set.
#[derive(Debug)]
pub(super) struct Content {
    /// The text it was made of.
    pub(super) definition: Arc<Definition>,
    kept: Kept,
}

impl Content {
    /// Whether rules may change the elements.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.kept, Kept::Live(_))
    }

    /// Lets `look` see the elements.
    pub(super) fn see<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        match &self.kept {
            Kept::Frozen(store) => look(store),
            Kept::Live(lock) => look(&read(lock)),
        }
    }
}

fn read(lock: &RwLock<Store>) -> RwLockReadGuard<'_, Store> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// One set, under its name for as long as anybody knows it.
#[derive(Debug)]
pub(in crate::rules) struct SetCell {
    name: String,
    /// Whether a rule adds to it or deletes from it.
    live: AtomicBool,
    content: ArcSwap<Content>,
}

impl SetCell {
    /// With what is written, and nothing that packets added.
    fn new(definition: Definition, secret: [u64; 2], now: Instant, find: &Find<'_>) -> SetCell {
        let name = definition.name.clone();
        let kept = keep(&definition, false, secret, now, find);
        let content = ArcSwap::from_pointee(Content { definition: Arc::new(definition), kept });
        SetCell { name, live: AtomicBool::new(false), content }
    }

    /// Its name.
    pub(in crate::rules) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn content(&self) -> Arc<Content> {
        self.content.load_full()
    }

    /// Whether the packet is in the set (`ip_set_test`), and what the element says of it.
    #[inline]
    pub(in crate::rules) fn test(&self, question: &Question<'_>) -> Option<SkbInfo> {
        let content = self.content.load();
        let header = &content.definition.header;
        if !question.suits(header) {
            return None;
        }
        match &content.kept {
            Kept::Frozen(store) => store.test(header, question),
            Kept::Live(lock) => read(lock).test(header, question),
        }
    }

    /// Adds the packet's element (`ip_set_add`). Whether it did.
    pub(in crate::rules) fn add(&self, question: &Question<'_>) -> bool {
        self.change(question, SetCell::add, |store, header| match store {
            Store::Hash(store) => store.add(header, question),
            Store::Bitmap(store) => store.add(header, question),
            Store::List(_) => false,
        })
    }

    /// Deletes the packet's element (`ip_set_del`). Whether it was there.
    pub(in crate::rules) fn delete(&self, question: &Question<'_>) -> bool {
        self.change(question, SetCell::delete, |store, header| match store {
            Store::Hash(store) => store.delete(header, question),
            Store::Bitmap(store) => store.delete(header, question),
            Store::List(_) => false,
        })
    }

    fn change(
        &self,
        question: &Question<'_>,
        below: fn(&SetCell, &Question<'_>) -> bool,
        own: impl FnOnce(&mut Store, &Header) -> bool,
    ) -> bool {
        let content = self.content.load();
        let header = &content.definition.header;
        if !question.suits(header) {
            return false;
        }
        match &content.kept {
            Kept::Live(lock) => own(&mut lock.write().unwrap_or_else(PoisonError::into_inner), header),
            Kept::Frozen(Store::List(list)) => list.change(header, question, below),
            // Only of a set that no SET target was compiled for.
            Kept::Frozen(_) => false,
        }
    }

    /// From now on packets may change it.
    pub(in crate::rules) fn make_live(&self) {
        let before = self.content.load_full();
        let store = match &before.kept {
            Kept::Frozen(Store::List(list)) => {
                self.live.store(true, Ordering::Relaxed);
                list.members().iter().for_each(|(member, _)| member.make_live());
                return;
            }
            Kept::Frozen(Store::Hash(store)) => Store::Hash(Box::new(store.with_room(&before.definition.header))),
            Kept::Frozen(Store::Bitmap(store)) => Store::Bitmap(store.clone()),
            Kept::Live(_) => return,
        };
        self.live.store(true, Ordering::Relaxed);
        let kept = Kept::Live(RwLock::new(store));
        self.content.store(Arc::new(Content { definition: before.definition.clone(), kept }));
    }
}

fn keep(definition: &Definition, live: bool, secret: [u64; 2], now: Instant, find: &Find<'_>) -> Kept {
    let store = match definition.header.kind.method() {
        Method::List => return Kept::Frozen(Store::List(ListStore::new(definition, now, find))),
        Method::Hash => Store::Hash(Box::new(HashStore::new(definition, live, secret, now))),
        Method::Bitmap => Store::Bitmap(BitmapStore::new(definition, now)),
    };
    if live { Kept::Live(RwLock::new(store)) } else { Kept::Frozen(store) }
}

/// What a rule may know of a set when it is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::rules) struct About {
    /// Its type's name.
    pub(in crate::rules) kind: &'static str,
    /// Its IP version; `None` is both.
    pub(in crate::rules) family: Option<Family>,
    /// How many of `src` and `dst` it wants.
    pub(in crate::rules) dimension: usize,
    /// The most elements that it takes, or of a list the largest of its members.
    pub(in crate::rules) capacity: u32,
}

impl Header {
    fn about(&self) -> About {
        let dimension = self.kind.parts().len();
        About { kind: self.kind.name(), family: self.family, dimension, capacity: self.capacity }
    }
}

type Cells = BTreeMap<String, Arc<SetCell>>;
/// Finds a set by its name.
type Find<'a> = dyn Fn(&str) -> Option<Arc<SetCell>> + 'a;

/// A set in a listing. Its JSON names stay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetSummary {
    /// Its name.
    pub name: String,
    /// Its type, as in `create`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Elements in it, those included that have expired and were not taken out yet.
    pub entries: usize,
}

/// All sets, by name; of one router, both IP versions. Rules are checked and compiled against it, and keep what they name.
pub struct SetTable {
    secret: [u64; 2],
    cells: Mutex<Cells>,
}

impl fmt::Debug for SetTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetTable").field("names", &self.names()).finish_non_exhaustive()
    }
}

impl Default for SetTable {
    /// A table without sets, for rules that name none.
    fn default() -> SetTable {
        SetTable::new([0; 2])
    }
}

impl SetTable {
    /// A table without sets. `secret` keys the hashes: take it from the system, those who send packets must not know it.
    pub fn new(secret: [u64; 2]) -> SetTable {
        SetTable { secret, cells: Mutex::new(BTreeMap::new()) }
    }

    fn cells(&self) -> MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.cells().keys().cloned().collect()
    }

    /// How many elements a set has.
    pub fn len_of(&self, name: &str) -> Option<usize> {
        self.find(name).map(|cell| cell.content().see(Store::len))
    }

    /// A set, to ask.
    pub(in crate::rules) fn find(&self, name: &str) -> Option<Arc<SetCell>> {
        self.cells().get(name).cloned()
    }

    /// What a rule may know of a set.
    pub(in crate::rules) fn about(&self, name: &str) -> Option<About> {
        let content = self.find(name)?.content();
        let mut about = content.definition.header.about();
        if let Kept::Frozen(Store::List(list)) = &content.kept {
            let of_member = |member: &SetCell| member.content().definition.header.capacity;
            about.capacity = list.members().iter().map(|(member, _)| of_member(member)).max().unwrap_or(0);
        }
        Some(about)
    }

    /// The set that was probably meant.
    pub(in crate::rules) fn nearest(&self, name: &str) -> Option<String> {
        nearest(name, self.cells().keys().map(String::as_str)).map(str::to_owned)
    }

    /// Reads `text` and puts its sets in place of those that are there, at `now`: from the next packet on, compiled rules see
    /// them. A set whose lines are the same as before keeps what packets have added to it, and its time-outs run on.
    ///
    /// # Errors
    /// What [`Sets::parse`] says; a set that compiled rules name is not in the text, or has become another type or another IP
    /// version. Nothing has changed then.
    pub fn load(&self, file: &str, text: &str, now: Instant) -> Result<(), Diagnostics> {
        let sets = Sets::parse(file, text)?;
        let mut cells = self.cells();
        refuse_conflicts(&cells, &sets, file, text)?;
        self.replace(&mut cells, sets, now);
        Ok(())
    }

    /// Reads `text` as [`SetTable::load`] does, and gives what would be, but leaves all as it is.
    ///
    /// # Errors
    /// As [`SetTable::load`].
    pub fn dry_load(&self, file: &str, text: &str, now: Instant) -> Result<SetTable, Diagnostics> {
        refuse_conflicts(&self.cells(), &Sets::parse(file, text)?, file, text)?;
        self.successor(file, text, now)
    }

    /// A table with the sets of `text`, for rules that are to follow those in force; this one stays as it is. A set whose lines are
    /// the same as before is the same set in both: it keeps what packets have added to it, and its time-outs run on.
    ///
    /// # Errors
    /// What [`Sets::parse`] says.
    pub fn successor(&self, file: &str, text: &str, now: Instant) -> Result<SetTable, Diagnostics> {
        let sets = Sets::parse(file, text)?;
        let old = self.cells().clone();
        let next = SetTable::new(self.secret);
        let stays = |cell: &SetCell, definition: &Definition, find: &Find<'_>| {
            *cell.content.load().definition == *definition && members_stay(cell, find)
        };
        let make = |definition: Definition, find: &Find<'_>| match old.get(&definition.name) {
            Some(cell) if stays(cell, &definition, find) => cell.clone(),
            _ => Arc::new(SetCell::new(definition, self.secret, now, find)),
        };
        *next.cells() = arrange(sets, make);
        Ok(next)
    }

    /// What there is, by name.
    pub fn summaries(&self) -> Vec<SetSummary> {
        let summary = |cell: &Arc<SetCell>| {
            let content = cell.content();
            let header = &content.definition.header;
            SetSummary {
                name: cell.name.clone(),
                kind: header.kind.name().to_owned(),
                entries: content.see(Store::len),
            }
        };
        self.cells().values().map(summary).collect()
    }

    /// Puts sets in place of those that are there; see [`SetTable::load`].
    fn replace(&self, cells: &mut Cells, sets: Sets, now: Instant) {
        let fresh = arrange(sets, |definition, find| match cells.remove(&definition.name) {
            Some(cell) => {
                let same = *cell.content.load().definition == definition && members_stay(&cell, find);
                if !same {
                    let live = cell.live.load(Ordering::Relaxed);
                    let kept = keep(&definition, live, self.secret, now, find);
                    cell.content.store(Arc::new(Content { definition: Arc::new(definition), kept }));
                }
                cell
            }
            None => Arc::new(SetCell::new(definition, self.secret, now, find)),
        });
        for cell in fresh.values().filter(|cell| cell.live.load(Ordering::Relaxed)) {
            if let Kept::Frozen(Store::List(list)) = &cell.content.load().kept {
                list.members().iter().for_each(|(member, _)| member.make_live());
            }
        }
        *cells = fresh;
    }
}

/// A cell for each set, made by `make`, which can find those before it.
fn arrange(sets: Sets, mut make: impl FnMut(Definition, &Find<'_>) -> Arc<SetCell>) -> Cells {
    let mut fresh = Cells::new();
    // Lists last: they hold the others.
    let (lists, plain): (Vec<Definition>, Vec<Definition>) =
        sets.list.into_iter().partition(|set| set.header.kind.method() == Method::List);
    for definition in plain.into_iter().chain(lists) {
        let name = definition.name.clone();
        let cell = make(definition, &|name| fresh.get(name).cloned());
        fresh.insert(name, cell);
    }
    fresh
}

/// Whether a list's members are still the same sets, not others of the same name.
fn members_stay(cell: &SetCell, find: &Find<'_>) -> bool {
    match &cell.content.load().kept {
        Kept::Frozen(Store::List(list)) => {
            list.members().iter().all(|(member, _)| find(&member.name).is_some_and(|now| Arc::ptr_eq(&now, member)))
        }
        _ => true,
    }
}

fn refuse_conflicts(cells: &Cells, sets: &Sets, file: &str, text: &str) -> Result<(), Diagnostics> {
    let mut report = Report::new(file, text);
    for problem in conflicts(cells, sets, text.len()) {
        report.error(problem);
    }
    if report.has_errors() { Err(report.finish()) } else { Ok(()) }
}

/// What new sets would break for rules that are compiled.
fn conflicts(cells: &Cells, sets: &Sets, end: usize) -> Vec<Problem> {
    let mut found = Vec::new();
    for cell in cells.values().filter(|cell| is_named_by_rules(cells, cell)) {
        let old = cell.content.load();
        let old = old.definition.header.about();
        let Some(new) = sets.find(&cell.name) else {
            let span = crate::rules::diagnostic::Span::new(end, end);
            let message = format!("set {} is missing, and rules name it", cell.name);
            let help = format!("keep `create {} {}`, empty if need be, or load other rules first", cell.name, old.kind);
            found.push(Problem::new(span, message, "not in this file").help(help));
            continue;
        };
        let about = new.header.about();
        let largest = match new.header.kind.method() {
            Method::List => {
                let members = new.members.iter().filter_map(|member| sets.find(&member.name));
                members.map(|member| member.header.capacity).max().unwrap_or(0)
            }
            _ => about.capacity,
        };
        if cell.live.load(Ordering::Relaxed) && largest > LIVE_MAX {
            let message = format!("set {} takes {largest} elements, and rules add to it", cell.name);
            let label = format!("more than {LIVE_MAX}");
            found.push(Problem::new(new.span, message, label).help("give a smaller `maxelem` in its `create` line"));
        }
        if (about.kind, about.family) != (old.kind, old.family) {
            let message = format!("set {} becomes another, and rules name it", cell.name);
            let label = format!("was a {}", old.kind);
            found.push(Problem::new(new.span, message, label).help("load rules first that do not name it"));
        }
    }
    found
}

/// Whether somebody besides the table and its lists holds the cell.
fn is_named_by_rules(cells: &Cells, cell: &Arc<SetCell>) -> bool {
    let in_lists: usize = cells
        .values()
        .map(|list| match &list.content.load().kept {
            Kept::Frozen(Store::List(list)) => {
                list.members().iter().filter(|(member, _)| Arc::ptr_eq(member, cell)).count()
            }
            _ => 0,
        })
        .sum();
    Arc::strong_count(cell) > 1 + in_lists
}
