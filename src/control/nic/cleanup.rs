//! What a router that was killed has left: undone by the next start ([`leftover`]), or by `xrouter cleanup` ([`cleanup`]).
//!
//! Only a dead owner's changes are undone. An interface that is another now (by index and address) needs nothing: its settings
//! went with it.

use std::io;
use std::path::Path;

use super::device::{KernelNic, Nic};
use super::setup::{Told, undo};
use super::state::{Known, Owner, State, all_here};
use crate::control::startup::Failure;
use crate::xdp;

/// What a clean-up found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cleaned {
    /// What is as before; and programs that were taken off.
    pub said: Vec<String>,
    /// What is not, and why.
    pub lost: Vec<String>,
    /// How many things could not be undone; what somebody else has changed since is none.
    pub failed: usize,
}

impl Cleaned {
    fn add(&mut self, told: Told) {
        self.said.extend(told.said);
        self.lost.extend(told.lost);
        self.failed += told.failed;
    }
}

fn living(state: &State) -> Failure {
    let names: Vec<&str> = state.interfaces.iter().map(|known| known.name.as_str()).collect();
    let Owner { pid, .. } = state.owner;
    Failure::Running(format!("{} belong to an xrouter that runs (process {pid}): stop it first", names.join(" and ")))
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!(
        "{}: {error}: what a killed router has changed cannot be undone by it. Look at the cards (`ethtool -l -k -x`), and remove \
         the file",
        path.display()
    )
}

/// Undoes what dead routers on any of the interfaces `names` have left, as noted in `folder`.
///
/// # Errors
/// When one of them lives.
pub(super) fn leftover(folder: &Path, names: &[&str]) -> Result<Cleaned, Failure> {
    let mut cleaned = Cleaned::default();
    let states = match all_here(folder) {
        Ok(states) => states,
        Err(error) => {
            cleaned.lost.push(format!("cannot look into {}: {error}", folder.display()));
            return Ok(cleaned);
        }
    };
    for (path, state) in states {
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                cleaned.lost.push(unreadable(&path, &error));
                cleaned.failed += 1;
                continue;
            }
        };
        if !names.is_empty() && !state.interfaces.iter().any(|known| names.contains(&known.name.as_str())) {
            continue;
        }
        if state.owner.runs() {
            // A number that is another namespace's now: then the interfaces are not these.
            if state.interfaces.iter().any(is_here) {
                return Err(living(&state));
            }
            continue;
        }
        cleaned.add(restore(state, folder, &path));
    }
    Ok(cleaned)
}

/// Whether the interface is the one that is meant.
fn is_here(known: &Known) -> bool {
    KernelNic::open(&known.name).is_ok_and(|nic| Known::of(nic.interface()) == *known)
}

fn restore(mut state: State, folder: &Path, path: &Path) -> Told {
    let mut told = Told::default();
    let nics: Vec<KernelNic> = state
        .interfaces
        .iter()
        .filter_map(|known| KernelNic::open(&known.name).ok().filter(|nic| Known::of(nic.interface()) == *known))
        .collect();
    let nic = |name: &str| nics.iter().find(|nic| nic.interface().name == name);
    undo(&mut state.changes, 0, &nic, &mut told);
    let kept = match state.changes.is_empty() {
        true => std::fs::remove_file(path),
        false => state.save(folder),
    };
    if let Err(error) = kept {
        told.lost.push(format!("{}: {error}", path.display()));
    }
    told
}

/// Undoes all that dead routers have left on `names`, or without names on every interface of this network namespace: settings as
/// noted in `folder`, and an XDP program of ours that is still attached.
///
/// # Errors
/// When one of them lives, or an interface named is not there.
pub fn cleanup(folder: &Path, names: &[&str]) -> Result<Cleaned, Failure> {
    for name in names {
        if xdp::ifindex(name).is_none() {
            return Err(Failure::Usage(format!("there is no interface {name} (`ip link` lists them)")));
        }
    }
    let mut cleaned = leftover(folder, names)?;
    for (name, ifindex) in interfaces(names)? {
        let Some(program) = xdp::attached_program(ifindex).filter(|it| it.name.as_deref() == Some(xdp::PROGRAM_NAME))
        else {
            continue;
        };
        match xdp::detach_program(ifindex) {
            Ok(()) => {
                cleaned.said.push(format!("{name}: XDP program {} (id {}) taken off", xdp::PROGRAM_NAME, program.id))
            }
            Err(error) => {
                let why = match error.raw_os_error() {
                    Some(libc::EBUSY) => "a process that runs holds it (`bpftool link`)".to_owned(),
                    _ => error.to_string(),
                };
                let (program, id) = (xdp::PROGRAM_NAME, program.id);
                cleaned.lost.push(format!("{name}: XDP program {program} (id {id}) stays: {why}"));
                cleaned.failed += 1;
            }
        }
    }
    Ok(cleaned)
}

/// These interfaces, or all, with their indices.
fn interfaces(names: &[&str]) -> Result<Vec<(String, u32)>, Failure> {
    let failed = |error| Failure::Running(format!("cannot list the interfaces: {error}"));
    if !names.is_empty() {
        return Ok(names.iter().filter_map(|name| Some(((*name).to_owned(), xdp::ifindex(name)?))).collect());
    }
    let all = nix::net::if_::if_nameindex().map_err(failed)?;
    Ok(all.iter().map(|it| (it.name().to_string_lossy().into_owned(), it.index())).collect())
}
