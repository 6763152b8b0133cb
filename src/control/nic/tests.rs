//! Set-up and undoing on made-up cards: what is set, in which order, what is said of refusals, and that all comes back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::xdp::{
    Channels, FIELDS_ADDRESSES, FIELDS_ALL, Feature, FlowType, HASH_TOEPLITZ, HashFields, Hook, Interface, Rss,
    RssChange, SYMMETRIC_XOR,
};

/// What a made-up card is.
#[derive(Clone, PartialEq, Debug, Default)]
struct Card {
    channels: Option<Channels>,
    rss: Option<Rss>,
    fields: BTreeMap<FlowType, HashFields>,
    features: Vec<Feature>,
    affinities: BTreeMap<u32, String>,
    interrupts: Vec<QueueInterrupt>,
    knobs: Vec<(Knob, u64)>,
}

/// A card that keeps what it is told, but for what it refuses.
struct FakeNic {
    interface: Interface,
    card: RefCell<Card>,
    /// Words that begin what it says no to: `channels`, `key`, `table`, `transform`, `fields`, `affinity`, `knob`, a feature.
    refuses: Vec<&'static str>,
    /// What it was told.
    told: RefCell<Vec<String>>,
}

fn refusal() -> io::Error {
    io::Error::from_raw_os_error(libc::EOPNOTSUPP)
}

impl FakeNic {
    fn heed(&self, what: &str, detail: String) -> io::Result<()> {
        self.told.borrow_mut().push(format!("{what} {detail}"));
        if self.refuses.contains(&what) { Err(refusal()) } else { Ok(()) }
    }
}

impl Nic for FakeNic {
    fn interface(&self) -> &Interface {
        &self.interface
    }

    fn channels(&self) -> io::Result<Channels> {
        self.card.borrow().channels.ok_or_else(refusal)
    }

    fn set_channels(&self, wanted: &Channels) -> io::Result<()> {
        self.heed("channels", wanted.to_string())?;
        let mut card = self.card.borrow_mut();
        let queues = wanted.receiving();
        let old = card.channels.ok_or_else(refusal)?.receiving();
        if let Some(rss) = &mut card.rss {
            // As the kernel has it: a table that somebody has set must name only queues that stay.
            let is_default = rss.table.iter().zip(0u32..).all(|(queue, at)| *queue == at % old);
            match is_default {
                true => rss.table = (0..rss.table.len() as u32).map(|at| at % queues).collect(),
                false if rss.table.iter().any(|queue| *queue >= queues) => {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                false => {}
            }
        }
        card.channels = Some(*wanted);
        if self.interface.driver == "virtio_net" {
            // As virtnet_set_affinity does: one CPU each for the queues in use.
            (0..queues).for_each(|queue| drop(card.affinities.insert(40 + queue, queue.to_string())));
        }
        Ok(())
    }

    fn rx_queues(&self) -> u32 {
        self.card.borrow().channels.map_or(1, |channels| channels.receiving())
    }

    fn rss(&self) -> io::Result<Rss> {
        self.card.borrow().rss.clone().ok_or_else(refusal)
    }

    fn set_rss(&self, change: &RssChange<'_>) -> io::Result<()> {
        if let Some(key) = change.key {
            self.heed("key", format!("{:02x}{:02x}", key[0], key[1]))?;
        }
        if let Some(transform) = change.transform {
            self.heed("transform", transform.to_string())?;
        }
        if let Some(table) = change.table {
            self.heed("table", format!("{table:?}"))?;
        }
        let mut card = self.card.borrow_mut();
        let queues = card.channels.map_or(1, |channels| channels.receiving());
        let rss = card.rss.as_mut().ok_or_else(refusal)?;
        rss.key = change.key.map_or(rss.key.clone(), <[u8]>::to_vec);
        rss.function = change.function.unwrap_or(rss.function);
        rss.transform = change.transform.unwrap_or(rss.transform);
        match change.table {
            Some([]) => rss.table = (0..rss.table.len() as u32).map(|at| at % queues).collect(),
            Some(table) => rss.table = table.to_vec(),
            None => {}
        }
        Ok(())
    }

    fn hash_fields(&self, flow: FlowType) -> io::Result<HashFields> {
        self.card.borrow().fields.get(&flow).copied().ok_or_else(refusal)
    }

    fn set_hash_fields(&self, flow: FlowType, fields: HashFields) -> io::Result<()> {
        self.heed("fields", format!("{} {fields:#x}", flow.name()))?;
        self.card.borrow_mut().fields.insert(flow, fields);
        Ok(())
    }

    fn features(&self) -> io::Result<Vec<Feature>> {
        Ok(self.card.borrow().features.clone())
    }

    fn set_feature(&self, name: &str, on: bool) -> io::Result<()> {
        self.heed(name, on.to_string())?;
        let mut card = self.card.borrow_mut();
        let feature = card.features.iter_mut().find(|feature| feature.name == name).ok_or_else(refusal)?;
        feature.on = on;
        Ok(())
    }

    fn interrupts(&self) -> Vec<QueueInterrupt> {
        self.card.borrow().interrupts.clone()
    }

    fn affinity(&self, irq: u32) -> io::Result<String> {
        self.card.borrow().affinities.get(&irq).cloned().ok_or_else(refusal)
    }

    fn set_affinity(&self, irq: u32, cpus: &str) -> io::Result<()> {
        self.heed("affinity", format!("{irq} {cpus}"))?;
        self.card.borrow_mut().affinities.insert(irq, cpus.to_owned());
        Ok(())
    }

    fn knob(&self, knob: Knob) -> io::Result<u64> {
        self.card.borrow().knobs.iter().find(|(known, _)| *known == knob).map(|(_, value)| *value).ok_or_else(refusal)
    }

    fn set_knob(&self, knob: Knob, value: u64) -> io::Result<()> {
        self.heed("knob", format!("{} {value}", knob.file()))?;
        let mut card = self.card.borrow_mut();
        card.knobs.iter_mut().find(|(known, _)| *known == knob).ok_or_else(refusal)?.1 = value;
        Ok(())
    }
}

/// A card of 8 queues with everything that set-up changes, as drivers begin; `entries` in its RSS table.
fn card(entries: u32) -> Card {
    let feature = |name: &str, on, changeable| Feature { name: name.into(), on, wanted: on, changeable };
    Card {
        channels: Some(Channels { max_combined: 8, max_other: 1, other: 1, combined: 8, ..Channels::default() }),
        rss: Some(Rss {
            function: HASH_TOEPLITZ,
            transform: 0,
            key: (0..40).collect(),
            table: (0..entries).map(|at| at % 8).collect(),
        }),
        fields: FlowType::ALL
            .into_iter()
            .map(|flow| match flow {
                FlowType::Tcp4 | FlowType::Tcp6 => (flow, FIELDS_ALL),
                _ => (flow, FIELDS_ADDRESSES),
            })
            .collect(),
        features: vec![
            feature("rx-lro", true, true),
            feature("rx-gro", true, true),
            feature("rx-gro-hw", false, true),
            feature("rx-vlan-hw-parse", true, true),
        ],
        interrupts: (0..8).map(|queue| QueueInterrupt { queue, irq: 40 + queue }).collect(),
        affinities: (0..8).map(|queue| (40 + queue, "0-7".to_owned())).collect(),
        knobs: vec![(Knob::NapiDeferHardIrqs, 0), (Knob::GroFlushTimeout, 0)],
    }
}

fn nic(name: &str, card: Card, refuses: &[&'static str]) -> FakeNic {
    let interface =
        Interface { name: name.into(), driver: "ixgbe".into(), ..Interface::read("lo").expect("lo is there") };
    FakeNic { interface, card: RefCell::new(card), refuses: refuses.to_vec(), told: RefCell::default() }
}

/// A folder that is removed with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("xrnic{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Folder(std::env::temp_dir().join(name))
    }

    fn notes(&self) -> usize {
        fs::read_dir(&self.0).map_or(0, |entries| entries.count())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn setup(nics: Vec<FakeNic>, folder: &Folder) -> Setup<FakeNic> {
    let known = nics.iter().map(|nic| Known::of(nic.interface())).collect();
    let setup = Setup::new(nics, State::new(known).expect("/proc is there"), &folder.0);
    setup.own().expect("a folder of ours");
    setup
}

fn wish(workers: usize, busy: bool) -> Wish {
    Wish { cores: (2..2 + workers).collect(), others: vec![0, 1], busy, possible: 2 }
}

const NATIVE: [Hook; 2] = [Hook::Native; 2];

fn both(lan: FakeNic, wan: FakeNic, wish: &Wish, folder: &Folder) -> Setup<FakeNic> {
    let mut setup = setup(vec![lan, wan], folder);
    setup.before_attach(wish).expect("it can be noted");
    setup.after_attach(wish, &NATIVE).expect("it can be noted");
    setup
}

#[test]
fn all_is_set_in_order_and_comes_back() {
    let folder = Folder::new();
    let mut setup = both(nic("lan", card(128), &[]), nic("wan", card(512), &[]), &wish(3, false), &folder);
    assert_eq!(setup.lost, [""; 0]);
    let [lan, wan] = <[NicRss; 2]>::try_from(setup.spreading()).expect("two");
    assert!(lan.is_symmetric() && wan.is_symmetric() && lan.hashes_udp_ports());
    assert_eq!((lan.queues, wan.queues), (3, 3));
    let tables = [&lan, &wan].map(|it| it.rss.as_ref().expect("shown").table.clone());
    for hash in 0..4096usize {
        assert_eq!(tables[0][hash % 128], tables[1][hash % 512], "{hash}");
    }
    let told = setup.nics()[0].told.borrow().clone();
    let place =
        |what: &str| told.iter().position(|it| it.starts_with(what)).unwrap_or_else(|| panic!("{what}: {told:?}"));
    assert!(place("rx-lro false") < place("channels combined 3"), "{told:?}");
    assert!(place("channels") < place("fields udp4") && place("fields") < place("key 6d5a"), "{told:?}");
    assert!(told.contains(&"affinity 44 3".to_owned()), "queue 4 is worker 1's, on core 3: {told:?}");
    assert!(!told.iter().any(|it| it.starts_with("rx-gro") || it.starts_with("knob")), "{told:?}");
    // The note knows all of it.
    let noted = all_here(&folder.0).expect("readable").remove(0).1.expect("whole");
    assert_eq!(noted.changes, setup.changes());
    assert!(noted.changes.len() > 20);

    setup.undo();
    assert_eq!(setup.lost, [""; 0]);
    for (nic, entries) in setup.nics().iter().zip([128, 512]) {
        assert_eq!(*nic.card.borrow(), card(entries));
    }
    assert_eq!(folder.notes(), 0);
}

#[test]
fn a_busy_worker_keeps_interrupts_off_its_core() {
    let folder = Folder::new();
    let mut setup = both(nic("lan", card(128), &[]), nic("wan", card(128), &[]), &wish(2, true), &folder);
    let told = setup.nics()[0].told.borrow().clone();
    assert!(told.contains(&"affinity 41 1".to_owned()), "beside the worker: {told:?}");
    assert!(told.contains(&"knob gro_flush_timeout 200000".to_owned()), "{told:?}");
    setup.undo();
    assert_eq!(*setup.nics()[0].card.borrow(), card(128));
    // No core is left: then the worker's own.
    let crowded = Wish { others: Vec::new(), ..wish(2, true) };
    let setup = both(nic("lan", card(128), &[]), nic("wan", card(128), &[]), &crowded, &Folder::new());
    assert!(setup.nics()[0].told.borrow().contains(&"affinity 41 3".to_owned()));
}

#[test]
fn a_driver_that_takes_spare_queues_finds_none() {
    let virtio = |possible| {
        let folder = Folder::new();
        let mut lan = nic("lan", card(128), &[]);
        lan.interface.driver = "virtio_net".into();
        let wish = Wish { possible, ..wish(3, false) };
        let setup = both(lan, nic("wan", card(128), &[]), &wish, &folder);
        setup.nics()[0].rx_queues()
    };
    // 8 at most: with 7, or 5, there are not as many to spare as there are CPUs.
    assert_eq!([virtio(2), virtio(4), virtio(64)], [7, 5, 3]);
}

#[test]
fn interrupts_that_the_driver_leads_elsewhere_come_back_too() {
    let folder = Folder::new();
    let mut lan = nic("lan", card(128), &[]);
    lan.interface.driver = "virtio_net".into();
    let mut setup = both(lan, nic("wan", card(128), &[]), &wish(3, false), &folder);
    setup.undo();
    let affinities = setup.nics()[0].card.borrow().affinities.clone();
    // What the driver made of those in use when the queues came back is its own doing, and told of.
    assert_eq!(setup.nics()[0].card.borrow().channels, card(128).channels);
    assert!((0..7).all(|queue| affinities[&(40 + queue)] == "0-7"), "{affinities:?} {:?}", setup.lost);
}

#[test]
fn one_worker_needs_no_spreading() {
    let folder = Folder::new();
    let setup = both(nic("lan", card(128), &[]), nic("wan", card(128), &[]), &wish(1, false), &folder);
    let told = setup.nics()[0].told.borrow().clone();
    assert!(told.contains(&"channels combined 1".to_owned()));
    assert!(!told.iter().any(|it| it.starts_with("key") || it.starts_with("fields")), "{told:?}");
}

#[test]
fn every_refusal_is_one_sentence_and_no_error() {
    let everything =
        ["channels", "key", "table", "transform", "fields", "affinity", "knob", "rx-lro", "rx-vlan-hw-parse"];
    let folder = Folder::new();
    let mut setup = both(nic("lan", card(128), &everything), nic("wan", card(128), &[]), &wish(2, true), &folder);
    let lost = setup.lost.join("\n");
    for part in [
        "lan cannot turn rx-lro off",
        "lan cannot turn rx-vlan-hw-parse off",
        "lan keeps 8 receive queues for 2 workers (`ethtool -L lan combined 2`",
        "`ethtool -N lan rx-flow-hash udp4 sdfn`",
        "lan does not take an RSS table",
        "lan does not take the symmetric RSS key",
        "8 of 8 interrupts of lan",
        "gro_flush_timeout of lan stays",
    ] {
        assert_eq!(lost.matches(part).count(), 1, "{part:?} in:\n{lost}");
    }
    assert!(!lost.contains("wan"), "{lost}");
    setup.undo();
    assert_eq!(*setup.nics()[0].card.borrow(), card(128));
    assert_eq!(*setup.nics()[1].card.borrow(), card(128));
}

#[test]
fn a_card_that_hides_its_key_is_told_of_and_the_other_keeps_its_own() {
    let folder = Folder::new();
    let mut igb = card(128);
    igb.rss.as_mut().expect("it has RSS").key.clear();
    let setup = both(nic("lan", card(128), &[]), nic("wan", igb, &[]), &wish(2, false), &folder);
    assert_eq!(setup.lost, ["wan cannot show its RSS key: packets may arrive at any worker; they are handed over"]);
    let [lan, wan] = <[NicRss; 2]>::try_from(setup.spreading()).expect("two");
    assert_eq!(lan.rss.expect("shown").key, (0..40).collect::<Vec<u8>>());
    assert_eq!(wan.rss, Err("does not show its RSS key".to_owned()));
}

#[test]
fn a_card_that_takes_no_key_may_take_a_transformation() {
    let folder = Folder::new();
    let mut fixed = card(128);
    fixed.rss.as_mut().expect("it has RSS").key = (100..140).collect();
    let setup = both(nic("lan", card(128), &[]), nic("wan", fixed, &["key"]), &wish(2, false), &folder);
    assert_eq!(setup.lost, [""; 0]);
    for nic in setup.nics() {
        let rss = nic.rss().expect("shown");
        assert_eq!((rss.transform, &rss.key), (SYMMETRIC_XOR, &(100..140).collect::<Vec<u8>>()));
    }
}

#[test]
fn a_table_that_holds_queues_is_made_the_default_first() {
    let folder = Folder::new();
    let mut weighted = card(128);
    weighted.rss.as_mut().expect("it has RSS").table = vec![7; 128];
    let mut setup = both(nic("lan", weighted.clone(), &[]), nic("wan", card(128), &[]), &wish(2, false), &folder);
    assert_eq!(setup.lost, [""; 0]);
    assert_eq!(setup.nics()[0].rx_queues(), 2);
    setup.undo();
    assert_eq!(*setup.nics()[0].card.borrow(), weighted);
}

#[test]
fn what_somebody_else_has_changed_stays() {
    let folder = Folder::new();
    let mut setup = both(nic("lan", card(128), &[]), nic("wan", card(128), &[]), &wish(2, false), &folder);
    setup.nics()[0].card.borrow_mut().affinities.insert(40, "5".to_owned());
    setup.nics()[0].card.borrow_mut().features[0].on = true; // as before: nothing to say
    setup.said.clear();
    setup.undo();
    assert_eq!(setup.lost.len(), 1, "{:?}", setup.lost);
    assert!(setup.lost[0].starts_with("lan: CPUs of interrupt 40: left at 5: it was 0-7"), "{:?}", setup.lost);
    assert!(!setup.said.iter().any(|line| line.starts_with("lan: rx-lro")), "{:?}", setup.said);
    assert_eq!(setup.nics()[0].card.borrow().affinities[&40], "5");
    assert_eq!(folder.notes(), 0);
}

#[test]
fn what_cannot_be_given_back_stays_noted() {
    let folder = Folder::new();
    let mut setup = both(nic("lan", card(128), &[]), nic("wan", card(128), &[]), &wish(2, false), &folder);
    setup.nics_mut()[1].refuses.push("rx-lro");
    setup.undo();
    assert_eq!(setup.lost.len(), 1, "{:?}", setup.lost);
    assert!(setup.lost[0].starts_with("wan: rx-lro: cannot be made on again"), "{:?}", setup.lost);
    let noted = all_here(&folder.0).expect("readable").remove(0).1.expect("whole");
    assert_eq!(noted.changes, setup.changes());
    assert_eq!(noted.changes.len(), 1);
}

#[test]
fn a_change_that_cannot_be_noted_is_not_made() {
    let folder = Folder::new();
    fs::write(&folder.0, "a file, not a folder").expect("the temporary folder");
    let nics = vec![nic("lan", card(128), &[])];
    let known = nics.iter().map(|nic| Known::of(nic.interface())).collect();
    let mut setup = Setup::new(nics, State::new(known).expect("/proc is there"), &folder.0);
    assert!(setup.before_attach(&wish(2, false)).is_err());
    assert_eq!(*setup.nics()[0].card.borrow(), card(128));
    assert_eq!(setup.nics()[0].told.borrow().len(), 0);
    let _ = fs::remove_file(&folder.0);
}

#[test]
fn a_driver_that_makes_its_table_anew_is_nobody_else() {
    let folder = Folder::new();
    let mut setup = both(nic("lan", card(128), &[]), nic("wan", card(100), &[]), &wish(3, false), &folder);
    setup.undo_after_attach();
    assert_eq!(setup.nics()[1].card.borrow().channels.expect("set").combined, 3);
    setup.undo();
    assert_eq!(setup.lost, [""; 0]);
    assert_eq!(*setup.nics()[1].card.borrow(), card(100));
    // The driver did it by itself when the program went.
    let mut setup = both(nic("lan", card(128), &[]), nic("wan", card(100), &[]), &wish(3, false), &folder);
    setup.nics()[0].card.borrow_mut().rss.as_mut().expect("it has RSS").table = (0..128).map(|at| at % 3).collect();
    setup.undo();
    assert_eq!(setup.lost, [""; 0]);
    assert_eq!(*setup.nics()[0].card.borrow(), card(128));
}

#[test]
fn the_generic_hook_wants_packets_as_they_came() {
    let folder = Folder::new();
    let mut setup = setup(vec![nic("lan", card(128), &[]), nic("wan", card(128), &[])], &folder);
    setup.after_attach(&wish(1, false), &[Hook::Native, Hook::Generic]).expect("noted");
    let gro = |at: usize| setup.nics()[at].card.borrow().features[1].on;
    assert_eq!([gro(0), gro(1)], [true, false]);
}

#[test]
fn queues_are_asked_for_only_where_that_helps() {
    let combined = |most, now| Channels { max_combined: most, combined: now, ..Channels::default() };
    let apart = |most, rx, tx| Channels { max_rx: most, max_tx: most, rx, tx, ..Channels::default() };
    assert_eq!(wanted_channels(&combined(8, 8), 2, false), Some(combined(8, 2)));
    assert_eq!(wanted_channels(&combined(8, 2), 2, false), None);
    assert_eq!(wanted_channels(&combined(1, 1), 2, false), None);
    assert_eq!(wanted_channels(&apart(4, 1, 1), 2, true), Some(apart(4, 2, 2)));
    assert_eq!(wanted_channels(&apart(4, 4, 4), 2, true), None, "veth keeps what is enough");
    assert_eq!(wanted_channels(&apart(4, 4, 4), 2, false), Some(apart(4, 2, 4)));
    assert_eq!(wanted_channels(&apart(1, 1, 1), 2, true), None);
}

#[test]
fn queues_that_nobody_reads_are_told_with_what_to_do() {
    let mut rss = NicRss::read(&nic("lan", card(128), &[]));
    assert_eq!(unread(&rss, 8), None);
    let what = unread(&rss, 4).expect("four are not read");
    assert!(
        what.contains("lan has 8 receive queues, and 4 of them are read") && what.contains("ethtool -L lan combined 4")
    );
    rss.queues = 4;
    assert!(unread(&rss, 4).expect("the table names queue 7").contains("ethtool -X lan equal 4"));
    rss.rss = Err("shows nothing".into());
    assert_eq!(unread(&rss, 4), None);
}
