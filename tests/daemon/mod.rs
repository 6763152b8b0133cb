//! A control socket over a connection table, for tests of the verbs that talk to one: [`Daemon`], which is served until it
//! is dropped. The table is a real tracker's; there is no worker, and time stands still.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use tokio::sync::broadcast;
use xrouter::conntrack::{ConnView, Conntrack, Tuple};
use xrouter::control::api::{Backend, BackendError, ControlSocket, Told};
use xrouter::control::change::{ChangeReport, ChangeWish};
use xrouter::control::explain::{Explanation, Question};
use xrouter::control::reload::{Refused, ReloadReport, Wish};
use xrouter::control::stats::{ConntrackReport, Drops, SCHEMA, StatsReport, WorkerReport};
use xrouter::control::sysctl;
use xrouter::control::trace::{TraceNews, TraceStep};
use xrouter::rules::SetSummary;
use xrouter::time::Instant;
use xrouter::verdict::{DropCounters, DropReason};
use xrouter::wire::Family;
use xrouter::worker::{Expecting, Walk};

/// See the module's head.
pub(crate) struct Daemon {
    /// Of its socket.
    pub(crate) path: String,
    folder: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    /// Serves `table` as it is at `now`; `name` tells it from others of this process.
    pub(crate) fn start(name: &str, table: Conntrack, now: Instant) -> Daemon {
        let folder = std::env::temp_dir().join(format!("xrd{}{name}", std::process::id()));
        let path = folder.join("xrouter.sock");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, wait) = mpsc::channel();
        let at = path.clone();
        let thread = std::thread::spawn(move || serve(&at, table, now, &ready, stopped));
        wait.recv().expect("it listens");
        Daemon { path: path.display().to_string(), folder, stop: Some(stop), thread: Some(thread) }
    }
}

fn serve(
    at: &Path,
    table: Conntrack,
    now: Instant,
    ready: &mpsc::Sender<()>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let socket = ControlSocket::bind(at).expect("a free path");
        ready.send(()).expect("somebody waits");
        let backend = OneTable { table: RefCell::new(table), now, events: broadcast::channel(1).0 };
        tokio::select! {
            () = socket.serve(&backend) => {}
            _ = stopped => {}
        }
    });
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct OneTable {
    table: RefCell<Conntrack>,
    now: Instant,
    events: broadcast::Sender<Told>,
}

impl Backend for OneTable {
    async fn stats(&self) -> Result<StatsReport, BackendError> {
        let mut drops = DropCounters::default();
        drops.count(DropReason::PolicyDrop);
        let table = self.table.borrow();
        let conntrack = ConntrackReport {
            entries: table.len() as u64,
            limit: table.capacity() as u64,
            insert: table.statistics().insert,
            expected: table.expected() as u64,
            expect_create: table.statistics().expect_create,
            ..ConntrackReport::default()
        };
        let worker = WorkerReport { drops: Drops::from(&drops), conntrack, ..WorkerReport::default() };
        Ok(StatsReport { schema: SCHEMA, mode: "copy".into(), workers: vec![worker], ..StatsReport::default() })
    }

    fn workers(&self) -> usize {
        1
    }

    async fn walk(&self, _: usize, mut walk: Box<Walk>) -> Result<Box<Walk>, BackendError> {
        let Walk { filter, delete_for, cursor, entries, .. } = &mut *walk;
        let room = entries.capacity();
        let from = cursor.expect("not at the end");
        let mut take = |conn: &ConnView| {
            let wanted = filter.admits(conn);
            if wanted {
                entries.push(*conn);
            }
            wanted
        };
        *cursor = match delete_for {
            Some(by) => self.table.borrow_mut().delete(from, room, self.now, *by, &mut take),
            None => self.table.borrow().list(from, room, self.now, &mut |conn| {
                take(conn);
            }),
        };
        Ok(walk)
    }

    async fn expecting(&self, _: usize, mut walk: Box<Expecting>) -> Result<Box<Expecting>, BackendError> {
        let Expecting { clear, cursor, entries } = &mut *walk;
        if *clear {
            self.table.borrow_mut().forget_expected();
        }
        let (table, from, room) = (self.table.borrow(), cursor.expect("not at the end"), entries.capacity());
        *cursor = table.list_expected(from, room, self.now, &mut |view| entries.push(*view));
        drop(table);
        Ok(walk)
    }

    async fn get(&self, tuple: &Tuple) -> Result<Option<ConnView>, BackendError> {
        Ok(self.table.borrow_mut().get(tuple, self.now))
    }

    async fn events(&self) -> Result<broadcast::Receiver<Told>, BackendError> {
        Ok(self.events.subscribe())
    }

    async fn sysctl(&self, set: &BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>, BackendError> {
        let changes: Vec<_> = set.clone().into_iter().collect();
        let mut table = self.table.borrow_mut();
        let wanted = sysctl::apply(table.settings(), &changes).map_err(BackendError)?;
        table.set_settings(wanted).map_err(BackendError)?;
        let mut values: BTreeMap<_, _> = sysctl::values(table.settings()).into_iter().collect();
        values.insert(sysctl::COUNT.to_owned(), table.len() as u64);
        Ok(values)
    }

    async fn sets(&self) -> Result<Vec<SetSummary>, BackendError> {
        Ok(vec![SetSummary { name: "blocked".into(), kind: "hash:net".into(), entries: 2 }])
    }

    async fn sets_text(&self) -> Result<String, BackendError> {
        Ok("create blocked hash:net family inet hashsize 1024 maxelem 65536\n".to_owned())
    }

    async fn explain(&self, _: &Question) -> Result<Explanation, BackendError> {
        Err(BackendError("this daemon of a test has no rules".to_owned()))
    }

    async fn trace(&self, _: TraceStep) -> Result<TraceNews, BackendError> {
        Err(BackendError("nothing to trace here".to_owned()))
    }

    async fn rules_text(&self, _: Family) -> Result<String, BackendError> {
        Ok(String::new())
    }

    async fn reload(&self, wish: &Wish, _: u32) -> Result<ReloadReport, Refused> {
        match wish.dry_run {
            true => Err(Refused::Files("error: a line is wrong\n --> rules.v4:7:1".into())),
            false => Ok(ReloadReport {
                generation: 2,
                established: wish.established(),
                connections: self.table.borrow().len() as u64,
                ..ReloadReport::default()
            }),
        }
    }

    async fn change(&self, wish: ChangeWish, _: u32) -> Result<ChangeReport, Refused> {
        match wish.text.contains("wrong") {
            true => Err(Refused::Files(format!("error: a line is wrong\n --> {}:2:1", wish.name))),
            // The text comes back, for the test to see.
            false => Ok(ChangeReport { family: wish.family, notes: vec![wish.text], ..ChangeReport::default() }),
        }
    }
}
