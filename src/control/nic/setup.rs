//! [`Setup`]: what a run sets on its network cards, in order, and how it gives them back.
//!
//! Before the XDP program is attached: queues as many as workers, and offloads off that break raw forwarding. After it, when
//! drivers have made of their queues what they will: RSS, interrupts, NAPI. Each thing is read first, left alone where it is as
//! wanted, and otherwise noted in the [`State`] before it is set. What a card refuses is said in one sentence with what is lost;
//! only queues that nobody would read are an error. [`Setup::undo`] goes the same way back.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::change::{Change, Setting, Undone, Value};
use super::device::{Knob, Nic};
use super::rss::{NicRss, is_symmetric, spread, symmetric_key};
use super::state::State;
use crate::xdp::{Channels, FIELDS_ALL, FlowType, HASH_TOEPLITZ, Hook, Rss, SYMMETRIC_XOR, quirks};

/// Offloads that make of frames what they were not on the wire, or keep parts of them: by the kernel's names.
pub const HARMFUL: [&str; 4] = ["rx-lro", "rx-gro-hw", "rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
/// The kernel puts packets together before a program on the generic hook sees them.
const GENERIC_HARMFUL: &str = "rx-gro";
/// How often an empty poll may pass, and for how long in nanoseconds, before a busy-polled queue is the interrupt's again
/// (Documentation/networking/napi.rst, and DPDK's AF_XDP driver).
const KNOBS: [(Knob, u64); 2] = [(Knob::NapiDeferHardIrqs, 2), (Knob::GroFlushTimeout, 200_000)];
/// How long queues may be refused while the kernel closes sockets behind us.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the run is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The workers' cores; worker `n` has queue `n`.
    pub cores: Vec<usize>,
    /// Cores that no worker has and that this process may use: for interrupts, where workers poll without pause.
    pub others: Vec<usize>,
    /// Whether workers poll without pause.
    pub busy: bool,
    /// CPUs that this machine could have: drivers count by them.
    pub possible: u32,
}

impl Wish {
    fn workers(&self) -> u32 {
        self.cores.len() as u32
    }

    /// Where the interrupts of a queue belong: with the worker that reads it; beside it where that never pauses, as long as
    /// there is a core without a worker.
    fn core_for(&self, queue: u32) -> Option<usize> {
        let at = queue as usize % self.cores.len().max(1);
        match self.busy && !self.others.is_empty() {
            true => self.others.get(at % self.others.len()).copied(),
            false => self.cores.get(at).copied(),
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Setup<N: Nic> {
    nics: Vec<N>,
    state: State,
    folder: PathBuf,
    /// How many changes were made before the XDP program was attached.
    before: usize,
    /// What was set: sentences.
    pub said: Vec<String>,
    /// What could not be, and what is lost by that: sentences.
    pub lost: Vec<String>,
}

impl<N: Nic> Setup<N> {
    /// Of these cards, whose state is kept in `folder`.
    pub fn new(nics: Vec<N>, state: State, folder: &Path) -> Setup<N> {
        Setup { nics, state, folder: folder.to_owned(), before: 0, said: Vec::new(), lost: Vec::new() }
    }

    /// The cards, for a test to look at.
    #[cfg(test)]
    pub(super) fn nics(&self) -> &[N] {
        &self.nics
    }

    #[cfg(test)]
    pub(super) fn nics_mut(&mut self) -> &mut [N] {
        &mut self.nics
    }

    /// Notes whose these cards are. [`Setup::undo`] removes the note.
    ///
    /// # Errors
    /// The file system's.
    pub fn own(&self) -> io::Result<()> {
        self.state.save(&self.folder)
    }

    /// What has been changed until now.
    pub fn changes(&self) -> &[Change] {
        &self.state.changes
    }

    /// Before the XDP program: offloads, then queues.
    ///
    /// # Errors
    /// When a change cannot be noted: then it is not made.
    pub fn before_attach(&mut self, wish: &Wish) -> io::Result<()> {
        for at in 0..self.nics.len() {
            for name in HARMFUL {
                self.feature_off(at, name)?;
            }
            self.queues(at, wish)?;
        }
        self.before = self.state.changes.len();
        Ok(())
    }

    /// After it, with the hook of each port: RSS, interrupts, NAPI.
    ///
    /// # Errors
    /// As for [`Setup::before_attach`].
    pub fn after_attach(&mut self, wish: &Wish, hooks: &[Hook]) -> io::Result<()> {
        for (at, hook) in hooks.iter().enumerate().take(self.nics.len()) {
            if *hook == Hook::Generic && !quirks::of(&self.nics[at].interface().driver).is_virtual {
                self.feature_off(at, GENERIC_HARMFUL)?;
            }
        }
        if wish.workers() > 1 {
            self.rss(wish.workers())?;
        }
        for at in 0..self.nics.len() {
            self.interrupts(at, wish)?;
        }
        Ok(())
    }

    /// How the cards spread packets now.
    pub fn spreading(&self) -> Vec<NicRss> {
        self.nics.iter().map(|nic| NicRss::read(nic)).collect()
    }

    fn name(&self, at: usize) -> String {
        self.nics[at].interface().name.clone()
    }

    /// Sets one thing. The outer error is that it could not be noted, the inner one the card's.
    fn set(&mut self, at: usize, setting: Setting, wanted: &Value) -> io::Result<io::Result<Value>> {
        let before = match setting.read(&self.nics[at]) {
            Ok(before) if before == *wanted => return Ok(Ok(before)),
            Ok(before) => before,
            Err(error) => return Ok(Err(error)),
        };
        let interface = self.name(at);
        let change = Change { interface, setting: setting.clone(), before: before.clone(), after: wanted.clone() };
        self.state.changes.push(change);
        if let Err(error) = self.state.save(&self.folder) {
            self.state.changes.pop();
            return Err(error);
        }
        let outcome = setting.write(&self.nics[at], wanted);
        // What it is now is what counts, whatever the card said.
        let now = setting.read(&self.nics[at]).unwrap_or_else(|_| wanted.clone());
        if now == before {
            self.state.changes.pop();
            self.state.save(&self.folder)?;
        } else if now != *wanted {
            self.state.changes.last_mut().expect("pushed above").after = now.clone();
            self.state.save(&self.folder)?;
        }
        // Interrupts are many, and told of together.
        if now != before && !matches!(setting, Setting::Affinity(_)) {
            self.said.push(format!("{}: {setting}: {before} -> {now}", self.name(at)));
        }
        Ok(outcome.map(|()| now))
    }

    /// Turns a feature off, where there is such a one and it is on.
    fn feature_off(&mut self, at: usize, feature: &str) -> io::Result<()> {
        let known = self.nics[at].features().unwrap_or_default();
        let Some(present) = known.iter().find(|it| it.name == feature && it.on) else { return Ok(()) };
        let refusal = match present.changeable {
            false => "it is fixed".to_owned(),
            true => match self.set(at, Setting::Feature(feature.to_owned()), &Value::On(false))? {
                Ok(Value::On(false)) => return Ok(()),
                Ok(_) => "the driver keeps it on".to_owned(),
                Err(error) => error.to_string(),
            },
        };
        let harm = match feature {
            "rx-vlan-hw-parse" | "rx-vlan-stag-hw-parse" => "a VLAN's frames look untagged to the router",
            _ => "packets that arrive put together are too long to be forwarded, and are dropped",
        };
        self.lost.push(format!("{} cannot turn {feature} off ({refusal}): {harm}", self.name(at)));
        Ok(())
    }

    /// As many queues as workers; for a driver that takes spare ones for the XDP program, so many that none are to spare.
    fn queues(&mut self, at: usize, wish: &Wish) -> io::Result<()> {
        let workers = wish.workers();
        let (name, driver) = (self.name(at), self.nics[at].interface().driver.clone());
        let Ok(now) = self.nics[at].channels() else { return Ok(()) };
        let known = quirks::of(&driver);
        let queues = match known.spare_queues {
            true => workers.max((now.max_combined + 1).saturating_sub(wish.possible)),
            false => workers,
        };
        let Some(wanted) = wanted_channels(&now, queues, known.keep_queues) else { return Ok(()) };
        let value = Value::of_channels(&wanted);
        let (affinities, mark) = (self.affinities(at), self.state.changes.len());
        let Err(mut error) = self.set(at, Setting::Channels, &value)? else {
            return self.note_affinities(at, &affinities, mark);
        };
        // A table that names queues which are to go keeps them.
        if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY)) && self.default_table(at)? {
            match self.set(at, Setting::Channels, &value)? {
                Ok(_) => return self.note_affinities(at, &affinities, mark),
                Err(again) => error = again,
            }
        }
        self.lost.push(format!(
            "{name} keeps {} receive queues for {workers} workers (`ethtool -L {name} {wanted}`: {error})",
            now.receiving()
        ));
        Ok(())
    }

    /// Where a card's interrupts go.
    fn affinities(&self, at: usize) -> Vec<(u32, String)> {
        let nic = &self.nics[at];
        nic.interrupts().iter().filter_map(|it| Some((it.irq, nic.affinity(it.irq).ok()?))).collect()
    }

    /// Some drivers lead the interrupts of new queues somewhere (virtio_net), and leave them there when the queues go. Noted below
    /// change number `mark`, so that they are undone after the queues.
    fn note_affinities(&mut self, at: usize, before: &[(u32, String)], mark: usize) -> io::Result<()> {
        let (now, interface) = (self.affinities(at), self.name(at));
        for (irq, cpus) in before {
            let Some((_, moved)) = now.iter().find(|(known, now)| known == irq && now != cpus) else { continue };
            let (before, after) = (Value::Cpus(cpus.clone()), Value::Cpus(moved.clone()));
            let change = Change { interface: interface.clone(), setting: Setting::Affinity(*irq), before, after };
            self.state.changes.insert(mark, change);
        }
        self.state.save(&self.folder)
    }

    /// Makes the RSS table the driver's own again; whether it had another one.
    fn default_table(&mut self, at: usize) -> io::Result<bool> {
        let Ok(Value::Rss { function, transform, key, default: false, .. }) = Setting::Rss.read(&self.nics[at]) else {
            return Ok(false);
        };
        let wanted = Value::Rss { function, transform, key, table: Vec::new(), default: true };
        Ok(self.set(at, Setting::Rss, &wanted)?.is_ok())
    }

    /// The fields of all kinds of packets, tables, and a hash that is symmetric and the same on all cards.
    fn rss(&mut self, workers: u32) -> io::Result<()> {
        for at in 0..self.nics.len() {
            for flow in FlowType::ALL {
                self.fields(at, flow)?;
            }
        }
        let shown: Vec<Option<Rss>> = self.nics.iter().map(|nic| nic.rss().ok()).collect();
        let smallest = shown.iter().flatten().map(|rss| rss.table.len()).filter(|entries| *entries > 0).min();
        for (at, rss) in shown.iter().enumerate() {
            let Some(entries) = rss.as_ref().map(|rss| rss.table.len()).filter(|entries| *entries > 0) else {
                continue;
            };
            let table = spread(entries, smallest.unwrap_or(entries), workers);
            if let Err(error) = self.change_rss(at, |rss| rss.table = table)? {
                self.lost.push(format!(
                    "{} does not take an RSS table ({error}): packets may arrive at any worker; they are handed over",
                    self.name(at)
                ));
            }
        }
        self.symmetric(&shown)
    }

    /// One way after another to have one symmetric hash on all cards; what did not work is taken back.
    fn symmetric(&mut self, shown: &[Option<Rss>]) -> io::Result<()> {
        let mut refusals = Vec::new();
        for (at, rss) in shown.iter().enumerate() {
            let what = match rss {
                None => "shows no RSS",
                Some(rss) if rss.key.is_empty() => "cannot show its RSS key",
                Some(_) => continue,
            };
            refusals.push(format!("{} {what}", self.name(at)));
        }
        if refusals.is_empty() {
            // A card that takes no key may take a transformation; then all get its key.
            let keys = shown.iter().flatten().filter(|rss| !is_symmetric(rss)).map(|rss| rss.key.clone());
            let ways = std::iter::once((0, None)).chain(keys.map(|key| (SYMMETRIC_XOR, Some(key))));
            for (transform, key) in ways.collect::<Vec<_>>() {
                let mark = self.state.changes.len();
                match self.one_hash(transform, key.as_deref())? {
                    Ok(()) => return Ok(()),
                    Err(refusal) => {
                        self.undo_to(mark)?;
                        refusals.push(refusal);
                    }
                }
            }
        }
        refusals.dedup();
        let refusals = refusals.join("; ");
        self.lost.push(format!("{refusals}: packets may arrive at any worker; they are handed over"));
        Ok(())
    }

    /// Toeplitz with this transformation and key (the symmetric one unless another is given) on all cards; or the first no.
    fn one_hash(&mut self, transform: u8, key: Option<&[u8]>) -> io::Result<Result<(), String>> {
        for at in 0..self.nics.len() {
            let outcome = self.change_rss(at, |rss| {
                let length = rss.key.len();
                let own = || symmetric_key(length);
                rss.key = key.map_or_else(own, |key| key.iter().copied().cycle().take(length).collect());
                (rss.function, rss.transform) = (HASH_TOEPLITZ, transform);
            })?;
            let what = if transform == 0 { "the symmetric RSS key" } else { "symmetric-xor" };
            match outcome {
                Err(error) => return Ok(Err(format!("{} does not take {what} ({error})", self.name(at)))),
                Ok(rss) if !is_symmetric(&rss) => return Ok(Err(format!("{} does not keep {what}", self.name(at)))),
                Ok(_) => {}
            }
        }
        Ok(Ok(()))
    }

    /// Changes what a card shows of its RSS; what it is then.
    fn change_rss(&mut self, at: usize, change: impl FnOnce(&mut Rss)) -> io::Result<io::Result<Rss>> {
        let mut rss = match self.nics[at].rss() {
            Ok(rss) => rss,
            Err(error) => return Ok(Err(error)),
        };
        change(&mut rss);
        let queues = self.nics[at].channels().map_or(0, |channels| channels.receiving());
        let outcome = self.set(at, Setting::Rss, &Value::of_rss(&rss, queues))?;
        Ok(outcome.and_then(|_| self.nics[at].rss()))
    }

    /// Addresses and ports of this kind of packets.
    fn fields(&mut self, at: usize, flow: FlowType) -> io::Result<()> {
        let Ok(now) = self.nics[at].hash_fields(flow) else { return Ok(()) };
        // Few cards know SCTP's ports: nothing is lost to speak of.
        if let Err(error) = self.set(at, Setting::HashFields(flow.name().to_owned()), &Value::Fields(FIELDS_ALL))?
            && !matches!(flow, FlowType::Sctp4 | FlowType::Sctp6)
        {
            let name = self.name(at);
            self.lost.push(format!(
                "{name} hashes fields {now:#x} of {} and no others (`ethtool -N {name} rx-flow-hash {} sdfn`: {error}): packets \
                 between two addresses share a queue",
                flow.name(),
                flow.name()
            ));
        }
        Ok(())
    }

    /// Each queue's interrupts to the core where they belong; and few of them, where workers poll without pause.
    fn interrupts(&mut self, at: usize, wish: &Wish) -> io::Result<()> {
        let interrupts = self.nics[at].interrupts();
        if interrupts.is_empty() {
            return Ok(()); // a device of software
        }
        let (mut refused, mark) = (Vec::new(), self.state.changes.len());
        for interrupt in &interrupts {
            let Some(core) = wish.core_for(interrupt.queue) else { continue };
            if let Err(error) = self.set(at, Setting::Affinity(interrupt.irq), &Value::Cpus(core.to_string()))? {
                refused.push((interrupt.irq, error));
            }
        }
        match self.state.changes.len() - mark {
            0 => {}
            led => {
                self.said.push(format!("{}: {led} interrupts led to the cores of their queues' workers", self.name(at)))
            }
        }
        if let Some((irq, error)) = refused.first() {
            self.lost.push(format!(
                "{} of {} interrupts of {} cannot be led to their workers' cores (interrupt {irq}: {error}): the kernel's share \
                 of the work stays where it is",
                refused.len(),
                interrupts.len(),
                self.name(at)
            ));
        }
        if wish.busy {
            for (knob, value) in KNOBS {
                if let Err(error) = self.set(at, Setting::Knob(knob), &Value::Number(value))? {
                    let (name, file) = (self.name(at), knob.file());
                    self.lost.push(format!(
                        "{file} of {name} stays as it is ({error}): interrupts may come between the worker's polls"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Gives back what was set after the XDP program was attached. It is better done before the program goes: some drivers make
    /// their table anew then.
    pub fn undo_after_attach(&mut self) {
        if let Err(error) = self.undo_to(self.before) {
            self.lost.push(format!("{}: {error}", self.state.path(&self.folder).display()));
        }
    }

    /// Gives all back, last change first, and removes the note when nothing is left to do. What is said, as sentences; `lost`
    /// has what could not be given back.
    pub fn undo(&mut self) {
        let (nics, mut told) = (&self.nics, Told::default());
        let nic = |name: &str| nics.iter().find(|nic| nic.interface().name == name);
        undo(&mut self.state.changes, 0, &nic, &mut told);
        self.said.extend(told.said);
        self.lost.extend(told.lost);
        let kept = match self.state.changes.is_empty() {
            true => self.state.remove(&self.folder),
            false => self.state.save(&self.folder),
        };
        if let Err(error) = kept {
            self.lost.push(format!("{}: {error}", self.state.path(&self.folder).display()));
        }
    }

    /// Takes back the changes from number `mark` on.
    fn undo_to(&mut self, mark: usize) -> io::Result<()> {
        if mark >= self.state.changes.len() {
            return Ok(());
        }
        let (nics, mut told) = (&self.nics, Told::default());
        let nic = |name: &str| nics.iter().find(|nic| nic.interface().name == name);
        undo(&mut self.state.changes, mark, &nic, &mut told);
        self.said.extend(told.said);
        self.lost.extend(told.lost);
        self.state.save(&self.folder)
    }
}

/// What undoing has to say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// What is as before.
    pub said: Vec<String>,
    /// What is not, and why.
    pub lost: Vec<String>,
    /// How many changes the kernel would not take back.
    pub failed: usize,
}

/// Takes back `changes` from number `mark` on, last one first, and removes them; those that the kernel refuses stay. `nic` finds
/// an interface by its name; what is gone needs nothing.
pub(super) fn undo<'n, N: Nic + 'n>(
    changes: &mut Vec<Change>,
    mark: usize,
    nic: &dyn Fn(&str) -> Option<&'n N>,
    told: &mut Told,
) {
    let mut left = Vec::new();
    let mut interrupts: BTreeMap<String, usize> = BTreeMap::new();
    for change in changes.drain(mark..).rev() {
        let Change { interface, setting, before, after } = &change;
        let Some(nic) = nic(interface) else { continue };
        match patiently(&change, nic) {
            Ok(Undone::Already) => {}
            Ok(Undone::Back) if matches!(setting, Setting::Affinity(_)) => {
                *interrupts.entry(interface.clone()).or_insert(0) += 1;
            }
            Ok(Undone::Back) => told.said.push(format!("{interface}: {setting}: {before} again")),
            Ok(Undone::Theirs(now)) => told.lost.push(format!(
                "{interface}: {setting}: left at {now}: it was {before}, xrouter made it {after}, and somebody has changed it since"
            )),
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                told.lost.push(format!("{interface}: {setting}: cannot be made {before} again: {error}"));
                told.failed += 1;
                left.push(change);
            }
        }
    }
    let back = |(interface, count)| format!("{interface}: {count} interrupts go where they went before");
    told.said.extend(interrupts.into_iter().map(back));
    changes.extend(left.into_iter().rev());
}

/// Whether the interface, or the setting with it, is no more.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV) || error.kind() == io::ErrorKind::NotFound
}

/// Undoes one change. Queues that a closing socket holds are asked for again for a while.
fn patiently(change: &Change, nic: &dyn Nic) -> io::Result<Undone> {
    let start = Instant::now();
    loop {
        match change.undo(nic) {
            Err(error)
                if change.setting == Setting::Channels
                    && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY))
                    && start.elapsed() < PATIENCE =>
            {
                thread::sleep(Duration::from_millis(50));
            }
            outcome => return outcome,
        }
    }
}

/// The queues to ask for, if others than there are: one for each worker, combined where the card has such. Fewer than there are
/// only where `keep` does not forbid it. `None` too when the card cannot have as many.
pub fn wanted_channels(now: &Channels, workers: u32, keep: bool) -> Option<Channels> {
    let wanted = match now.max_combined {
        0 => Channels { rx: workers, tx: now.tx.max(workers), ..*now },
        _ => Channels { rx: 0, tx: 0, combined: workers, ..*now },
    };
    let possible = wanted.rx <= now.max_rx && wanted.tx <= now.max_tx && wanted.combined <= now.max_combined;
    let enough = now.receiving() >= workers && now.transmitting() >= workers;
    let fits = possible || now.max_combined > 0 && workers <= now.max_combined;
    (fits && wanted != *now && !(keep && enough)).then_some(wanted)
}
