//! [`State`]: a router's note on disk of who it is and what it has changed on its network cards, so that nothing is lost when it
//! is killed.
//!
//! One file for each running router, in `/run/xrouter` unless `--state` says otherwise:
//! `restore-<network namespace>-<lan>-<wan>.json`. (Interfaces of one name are in many namespaces, so the namespace's number is in
//! the name, and a number is given to another namespace once the first is gone, so interfaces are known by index and address
//! too.) It is made when the router starts, written anew before every change (a temporary file, fsync, rename: there is never
//! half a file), and removed when all is undone. Its owner is a process that still runs, by number and start time; of a dead one's
//! file the changes are undone by the next start or by `xrouter cleanup`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::change::Change;
use crate::xdp::Interface;

/// Version of the file. Another one is not understood.
const SCHEMA: u32 = 1;

/// An interface as it was when the router started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
}

impl Known {
    /// This interface.
    pub fn of(interface: &Interface) -> Known {
        Known { name: interface.name.clone(), ifindex: interface.ifindex, mac: interface.mac }
    }
}

/// A process, for as long as this kernel runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub started: u64,
    /// This run of the kernel: `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

impl Owner {
    /// The calling process.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn this() -> io::Result<Owner> {
        let pid = std::process::id();
        let started = started(pid).ok_or_else(|| io::Error::other("/proc does not show this process"))?;
        Ok(Owner { pid, started, boot: boot()? })
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        boot().is_ok_and(|boot| boot == self.boot) && started(self.pid) == Some(self.started)
    }
}

/// This run of the kernel.
fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When a process started; `None` for one that is no more, or that is dead and only not waited for.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and parentheses; it ends with the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

/// The number of this thread's network namespace.
///
/// # Errors
/// When /proc is not there.
pub(super) fn namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// What a state file says. See the module's head.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    schema: u32,
    /// Whose it is.
    pub owner: Owner,
    /// Its network namespace.
    pub namespace: u64,
    /// Its ports.
    pub interfaces: Vec<Known>,
    /// What it has changed, or was about to, in order.
    pub changes: Vec<Change>,
}

impl State {
    /// Of the calling process, which has changed nothing yet.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn new(interfaces: Vec<Known>) -> io::Result<State> {
        let (owner, namespace) = (Owner::this()?, namespace()?);
        Ok(State { schema: SCHEMA, owner, namespace, interfaces, changes: Vec::new() })
    }

    /// Takes over what could not be undone of the file that is at its place.
    pub fn inherit(&mut self, folder: &Path) {
        if let Ok(before) = read(&self.path(folder))
            && before.interfaces == self.interfaces
        {
            self.changes = before.changes;
        }
    }

    /// Its file in `folder`.
    pub fn path(&self, folder: &Path) -> PathBuf {
        let names: Vec<&str> = self.interfaces.iter().map(|known| known.name.as_str()).collect();
        folder.join(format!("{}{}.json", prefix(self.namespace), names.join("-")))
    }

    /// Writes it, whole or not at all. The folder is made when it is missing.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        let path = self.path(folder);
        let temporary = path.with_extension(format!("json.{}", self.owner.pid));
        let written = self.write(&temporary).and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary); // what is left of it is of no use
        }
        written?;
        File::open(folder)?.sync_all()
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o644).open(path)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.sync_all()
    }

    /// Removes its file.
    ///
    /// # Errors
    /// The file system's; that it is gone already is none.
    pub fn remove(&self, folder: &Path) -> io::Result<()> {
        match fs::remove_file(self.path(folder)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn prefix(namespace: u64) -> String {
    format!("restore-{namespace}-")
}

/// The state files of this thread's network namespace in `folder`, each with its path; the error of one that cannot be read
/// or is not understood.
///
/// # Errors
/// When the folder cannot be read; that it is not there is no error.
pub fn all_here(folder: &Path) -> io::Result<Vec<(PathBuf, io::Result<State>)>> {
    let (prefix, mut found) = (prefix(namespace()?), Vec::new());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name.ends_with(".json") {
            found.push((entry.path(), read(&entry.path())));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

fn read(path: &Path) -> io::Result<State> {
    let state: State = serde_json::from_slice(&fs::read(path)?)?;
    match state.schema {
        SCHEMA => Ok(state),
        other => Err(io::Error::other(format!("written by another xrouter (schema {other}, this one knows {SCHEMA})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::change::{Setting, Value};
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xrstate{}{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    fn state() -> State {
        let known = |name: &str, ifindex| Known { name: name.into(), ifindex, mac: [2, 0, 0, 0, 0, ifindex as u8] };
        State::new(vec![known("eth0", 2), known("eth1", 3)]).expect("/proc is there")
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let folder = folder("again");
        assert!(all_here(&folder).expect("no folder is no error").is_empty());
        let mut state = state();
        let rss =
            |key: &str| Value::Rss { function: 1, transform: 0, key: key.into(), table: vec![0, 1], default: false };
        let change = |setting, before, after| Change { interface: "eth0".into(), setting, before, after };
        let channels = |combined| Value::Channels { rx: 0, tx: 0, other: 1, combined };
        state.changes = vec![
            change(Setting::Channels, channels(8), channels(2)),
            change(Setting::Feature("rx-lro".into()), Value::On(true), Value::On(false)),
            change(Setting::Rss, rss("01:02"), rss("6d:5a")),
            change(Setting::HashFields("udp4".into()), Value::Fields(0x30), Value::Fields(0xf0)),
            change(Setting::Affinity(38), Value::Cpus("0-3".into()), Value::Cpus("2".into())),
        ];
        state.save(&folder).expect("a folder of ours");
        let found = all_here(&folder).expect("it is there");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].1.as_ref().expect("as written"), &state);
        // Nothing else is left lying about, and removing twice is no error.
        assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 1);
        state.remove(&folder).expect("it is there");
        state.remove(&folder).expect("it is gone already");
        fs::remove_dir_all(&folder).expect("it is empty");
    }

    #[test]
    fn a_file_that_is_no_state_is_told_of() {
        let folder = folder("rubbish");
        let state = state();
        state.save(&folder).expect("a folder of ours");
        let path = state.path(&folder);
        for rubbish in ["", "{", "{\"schema\":1}", "[]"] {
            fs::write(&path, rubbish).expect("ours");
            assert!(all_here(&folder).expect("readable")[0].1.is_err(), "{rubbish}");
        }
        let text = serde_json::to_string(&State { schema: 99, ..state }).expect("JSON");
        fs::write(&path, text).expect("ours");
        let error = all_here(&folder).expect("readable")[0].1.as_ref().expect_err("another schema").to_string();
        assert!(error.contains("schema 99"), "{error}");
        fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn an_owner_is_known_by_number_and_start() {
        let this = Owner::this().expect("/proc is there");
        assert!(this.runs());
        assert!(!Owner { started: this.started + 1, ..this.clone() }.runs());
        assert!(!Owner { boot: "another".into(), ..this.clone() }.runs());
        assert!(!Owner { pid: u32::MAX, ..this }.runs());
    }
}
