//! [`Program`]: the XDP program, loaded into the kernel, and its maps.
//!
//! Life: loaded once by [`Program::load`]; attached to each port by [`Program::attach`] as an XDP link, which goes away
//! with the process however that ends; detached when the [`Attachment`] drops, so the interface is as it was. Addresses and
//! MACs may change while it runs.

use super::abi::{self, Config, Steer};
use super::{EdgeError, Interface};
use crate::device::PortId;
use libbpf_rs::libbpf_sys;
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder, PrintLevel};
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::mem::offset_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::{Mutex, Once, PoisonError};

pub(super) static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/xrouter.bpf.o"));

/// The name of the program in `bpftool prog`.
pub const PROGRAM_NAME: &str = "xrouter_xdp";

/// What libbpf said last, for the error of a load that failed.
static LIBBPF_SAID: Mutex<String> = Mutex::new(String::new());

/// How the program is attached to an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// In the driver, before the kernel makes an skb.
    Native,
    /// After the skb is made; every driver can.
    Generic,
}

impl Hook {
    fn flags(self) -> u32 {
        match self {
            Hook::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Hook::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        }
    }
}

/// The XDP program and its maps. See the module's head.
#[derive(Debug)]
pub struct Program {
    object: Object,
    xsks: MapHandle,
    steered: MapHandle,
    local4: MapHandle,
    local6: MapHandle,
    config_map: MapHandle,
    config: Mapped,
    punted: MapHandle,
}

// SAFETY: libbpf's object may be used from any one thread at a time; after loading only descriptors are used.
unsafe impl Send for Program {}

impl Program {
    /// Loads the program with room for `punters` punters. `large`: drivers may give it packets in several buffers, of which it
    /// looks into the first.
    ///
    /// # Errors
    /// When the process may not, or the kernel refuses the program.
    pub fn load(punters: usize, large: bool) -> Result<Program, EdgeError> {
        listen_to_libbpf();
        let refused = |what: &str, error: &libbpf_rs::Error| refusal(what, error);
        let mut open = ObjectBuilder::default()
            .name("xrouter")
            .and_then(|builder| builder.open_memory(OBJECT))
            .map_err(|error| refused("open", &error))?;
        for mut map in open.maps_mut() {
            if map.name() == "xrouter_punted" {
                map.set_max_entries((punters.max(1) * abi::PUNT_BATCH) as u32).map_err(|e| refused("size", &e))?;
            }
        }
        for mut program in open.progs_mut().filter(|_| large) {
            program.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
        }
        let object = open.load().map_err(|error| refused("load", &error))?;
        let map = |name: &str| {
            let found = object.maps().find(|map| map.name() == name);
            let found = found.unwrap_or_else(|| panic!("the XDP object has no map {name}"));
            MapHandle::try_from(&found).map_err(|error| refused("use the maps of", &error))
        };
        let config = map(".data.config")?;
        assert!(config.value_size() as usize == size_of::<Config>(), "abi.h and abi.rs differ");
        Ok(Program {
            xsks: map("xrouter_xsks")?,
            steered: map("xrouter_steered")?,
            local4: map("xrouter_local4")?,
            local6: map("xrouter_local6")?,
            punted: map("xrouter_punted")?,
            config: Mapped::new(config.as_fd(), size_of::<Config>())
                .map_err(|error| EdgeError::system("map the XDP program's configuration", error))?,
            config_map: config,
            object,
        })
    }

    /// The program's descriptor.
    pub(super) fn fd(&self) -> RawFd {
        let program = self.object.progs().find(|program| program.name() == PROGRAM_NAME);
        program.expect("the XDP object has its program").as_fd().as_raw_fd()
    }

    pub(super) fn punted(&self) -> &MapHandle {
        &self.punted
    }

    /// The configuration, mapped once more.
    pub(super) fn map_config(&self) -> io::Result<Mapped> {
        Mapped::new(self.config_map.as_fd(), size_of::<Config>())
    }

    /// Tells the program about a port. Before that it drops all that comes from it.
    pub fn set_port(&self, port: PortId, ifindex: u32, mac: [u8; 6]) {
        self.set_mac(port, mac);
        self.config.store(port_offset(port) + offset_of!(abi::Port, ifindex), ifindex);
    }

    /// The port's MAC has changed.
    pub fn set_mac(&self, port: PortId, mac: [u8; 6]) {
        self.config.store(port_offset(port) + offset_of!(abi::Port, mac), abi::Port::mac_word(mac));
    }

    /// Whether the port has no IPv4 address, so that DHCP answers to an offered one are the host's.
    pub fn set_addressless(&self, port: PortId, addressless: bool) {
        let flags = if addressless { abi::PORT_ADDRESSLESS } else { 0 };
        self.config.store(port_offset(port) + offset_of!(abi::Port, flags), flags);
    }

    /// From now on a frame that is given back to the kernel carries a seal, drawn for this run, by which the program knows it on
    /// the generic hook: there it comes by once more.
    pub(super) fn seal_punts(&self) {
        let drawn = || RandomState::new().build_hasher().finish();
        let at = offset_of!(Config, punt_seal);
        self.config.store(at + size_of::<u64>(), drawn());
        // The program looks whether this one is zero.
        self.config.store(at, drawn() | 1);
    }

    /// Replaces the set of local addresses. No packet to an address that stays is steered wrongly meanwhile.
    ///
    /// # Errors
    /// When there are more than [`abi::LOCAL_MAX`] of a family, or the kernel is out of memory.
    pub fn set_local_addresses(&self, addresses: &[IpAddr]) -> Result<(), EdgeError> {
        let keys4: HashSet<Vec<u8>> = addresses.iter().filter_map(|a| v4_key(*a)).collect();
        let keys6: HashSet<Vec<u8>> = addresses.iter().filter_map(|a| v6_key(*a)).collect();
        for (keys, family) in [(&keys4, "IPv4"), (&keys6, "IPv6")] {
            if keys.len() > abi::LOCAL_MAX {
                let what = format!("{} local {family} addresses, at most {} are steered", keys.len(), abi::LOCAL_MAX);
                return Err(EdgeError::setting(what));
            }
        }
        let filter = filter(keys4.iter().chain(&keys6));
        // First more than needed, then the exact maps, then the exact filter.
        for (word, bits) in filter.iter().enumerate() {
            self.config.store(filter_offset(word), self.config.load::<u64>(filter_offset(word)) | bits);
        }
        replace_keys(&self.local4, &keys4)?;
        replace_keys(&self.local6, &keys6)?;
        for (word, bits) in filter.iter().enumerate() {
            self.config.store(filter_offset(word), *bits);
        }
        Ok(())
    }

    /// Gives the packets of a port's queue to a socket.
    pub(super) fn set_socket(&self, port: PortId, queue: u32, socket: RawFd) -> Result<(), EdgeError> {
        let key = (port.index() as u32 * abi::MAX_QUEUES + queue).to_ne_bytes();
        self.xsks.update(&key, &socket.to_ne_bytes(), MapFlags::ANY).map_err(|error| {
            EdgeError::system(format!("give queue {queue} of the {port:?} port to its socket"), into_io(&error))
        })
    }

    /// How many frames of `port` were steered where, since the program was loaded, in the order of [`Steer::ALL`].
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn steered(&self, port: PortId) -> io::Result<Vec<(Steer, u64)>> {
        let mut counts = Vec::with_capacity(Steer::ALL.len());
        for steer in Steer::ALL {
            let key = (port.index() * Steer::ALL.len()) as u32 + *steer as u32;
            let values = self.steered.lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY).map_err(|e| into_io(&e))?;
            let word = |value: Vec<u8>| value.try_into().map_or(0, u64::from_ne_bytes);
            counts.push((*steer, values.unwrap_or_default().into_iter().map(word).sum()));
        }
        Ok(counts)
    }

    /// Attaches the program to `interface`.
    ///
    /// # Errors
    /// [`EdgeError::OtherProgram`] when there is one already, [`EdgeError::System`] with the kernel's answer otherwise.
    pub(super) fn attach(&self, interface: &Interface, hook: Hook) -> Result<Attachment, EdgeError> {
        if let Some(id) = attached(interface.ifindex) {
            return Err(EdgeError::OtherProgram { name: interface.name.clone(), id, program: program_name(id) });
        }
        match self.attach_link(interface, hook) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                // A kernel without XDP links (before 5.9), or a driver that refuses the program: ask the older way.
                self.attach_netlink(interface, hook)
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let id = attached(interface.ifindex).unwrap_or(0);
                Err(EdgeError::OtherProgram { name: interface.name.clone(), id, program: program_name(id) })
            }
            Err(error) => Err(EdgeError::system(format!("attach the XDP program to {}", interface.name), error)),
            Ok(link) => Ok(Attachment { ifindex: interface.ifindex, hook, held: Held::Link(link) }),
        }
    }

    fn attach_link(&self, interface: &Interface, hook: Hook) -> io::Result<OwnedFd> {
        let options = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
            flags: hook.flags(),
            ..Default::default()
        };
        // SAFETY: the options live through the call and carry their size.
        let fd = unsafe {
            libbpf_sys::bpf_link_create(
                self.fd(),
                interface.ifindex as i32,
                libbpf_sys::BPF_XDP,
                std::ptr::from_ref(&options),
            )
        };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn attach_netlink(&self, interface: &Interface, hook: Hook) -> Result<Attachment, EdgeError> {
        let flags = hook.flags() | libbpf_sys::XDP_FLAGS_UPDATE_IF_NOEXIST;
        // SAFETY: no options are passed.
        let result =
            unsafe { libbpf_sys::bpf_xdp_attach(interface.ifindex as i32, self.fd(), flags, std::ptr::null()) };
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            return Err(EdgeError::system(format!("attach the XDP program to {}", interface.name), error));
        }
        Ok(Attachment { ifindex: interface.ifindex, hook, held: Held::Netlink })
    }
}

/// Tells the running program what other rules make of steering. Like [`Program`], for one thread at a time.
#[derive(Debug)]
pub struct Steering {
    config: Mapped,
}

impl Steering {
    pub(super) fn new(program: &Program) -> io::Result<Steering> {
        Ok(Steering { config: program.map_config()? })
    }

    /// From now on connections of these IP versions may be translated, so that the worker sees what is for a local address
    /// and not for a connected socket. There is no way back: connections outlive the rules that have translated them.
    pub fn expect_translations(&self, v4: bool, v6: bool) {
        let place = offset_of!(Config, nat);
        let more = if v4 { abi::NAT4 } else { 0 } | if v6 { abi::NAT6 } else { 0 };
        self.config.store(place, self.config.load::<u32>(place) | more);
    }
}

/// The program on an interface. Dropping it takes the program off.
#[derive(Debug)]
pub struct Attachment {
    ifindex: u32,
    hook: Hook,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Link(#[allow(dead_code)] OwnedFd), // held, never read
    Netlink,
}

impl Attachment {
    /// Where it is attached.
    pub fn hook(&self) -> Hook {
        self.hook
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Held::Netlink = self.held {
            // SAFETY: no options are passed. The interface may be gone, then there is nothing to take off.
            unsafe { libbpf_sys::bpf_xdp_detach(self.ifindex as i32, self.hook.flags(), std::ptr::null()) };
        }
    }
}

/// An XDP program on an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachedProgram {
    /// Its id, as `bpftool prog` shows it.
    pub id: u32,
    /// Its name, when it could be read.
    pub name: Option<String>,
}

/// The XDP program on the interface with this index, if there is one.
pub fn attached_program(ifindex: u32) -> Option<AttachedProgram> {
    attached(ifindex).map(|id| AttachedProgram { id, name: program_name(id) })
}

/// Takes whatever XDP program there is off an interface.
///
/// # Errors
/// The kernel's: `EBUSY` when a process that lives holds it there.
pub fn detach_program(ifindex: u32) -> io::Result<()> {
    for hook in [Hook::Native, Hook::Generic] {
        // SAFETY: no options are passed.
        let result = unsafe { libbpf_sys::bpf_xdp_detach(ifindex as i32, hook.flags(), std::ptr::null()) };
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
    }
    Ok(())
}

/// The id of the XDP program attached to an interface, in whichever way.
fn attached(ifindex: u32) -> Option<u32> {
    let mut id = 0;
    // SAFETY: the kernel's answer goes to a u32 that lives through the call.
    let result = unsafe { libbpf_sys::bpf_xdp_query_id(ifindex as i32, 0, &raw mut id) };
    (result == 0 && id != 0).then_some(id)
}

fn program_name(id: u32) -> Option<String> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut size = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: the kernel writes at most `size` bytes to `info`, which lives through the call.
    let result = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(fd.as_raw_fd(), std::ptr::from_mut(&mut info).cast(), &raw mut size)
    };
    let name: Vec<u8> = info.name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    (result == 0 && !name.is_empty()).then(|| String::from_utf8_lossy(&name).into_owned())
}

/// A memory-mapped map: bytes that user space and the program both see.
pub(super) struct Mapped {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a Mapped is an address of shared memory, good in any thread; all access is volatile, of plain words.
unsafe impl Send for Mapped {}

/// The words that are shared: any bits are a value.
pub(super) trait Word: Copy {}
impl Word for u32 {}
impl Word for u64 {}

impl Mapped {
    pub(super) fn new(map: BorrowedFd<'_>, bytes: usize) -> io::Result<Mapped> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes; it overlaps nothing of ours.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapped { memory, bytes })
    }

    fn place<W: Word>(&self, offset: usize) -> *mut W {
        assert!(offset + size_of::<W>() <= self.bytes && offset.is_multiple_of(size_of::<W>()), "outside the map");
        self.memory.as_ptr().wrapping_add(offset).cast()
    }

    /// Writes the word at byte `offset` in one store.
    pub(super) fn store<W: Word>(&self, offset: usize, value: W) {
        // SAFETY: `place` lies inside the mapping and is aligned.
        unsafe { self.place::<W>(offset).write_volatile(value) };
    }

    fn load<W: Word>(&self, offset: usize) -> W {
        // SAFETY: `place` lies inside the mapping and is aligned, and any bits are a W.
        unsafe { self.place::<W>(offset).read_volatile() }
    }

    /// Copies `bytes` to byte `offset`.
    pub(super) fn copy_in(&mut self, offset: usize, bytes: &[u8]) {
        assert!(bytes.len() <= self.bytes && offset <= self.bytes - bytes.len(), "outside the map");
        let place = self.memory.as_ptr().wrapping_add(offset);
        // SAFETY: the destination lies inside the mapping, and no Rust object shares memory with it.
        unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this is our mapping, and nothing borrows from it.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped({} bytes)", self.bytes)
    }
}

/// Byte offset of a port's entry in the configuration.
fn port_offset(port: PortId) -> usize {
    offset_of!(Config, port) + port.index() * size_of::<abi::Port>()
}

fn filter_offset(word: usize) -> usize {
    offset_of!(Config, local_filter) + word * size_of::<u64>()
}

fn v4_key(address: IpAddr) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(address) => Some(address.octets().to_vec()),
        IpAddr::V6(_) => None,
    }
}

fn v6_key(address: IpAddr) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address.octets().to_vec()),
    }
}

/// The filter in which all `keys` have their bit. An IPv6 address folds to the XOR of its words.
fn filter<'a>(keys: impl Iterator<Item = &'a Vec<u8>>) -> [u64; abi::FILTER_WORDS] {
    let mut filter = [0; abi::FILTER_WORDS];
    for key in keys {
        let words = key.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        let (word, bit) = abi::filter_bit(words.fold(0, |folded, word| folded ^ word));
        filter[word] |= 1 << bit;
    }
    filter
}

fn replace_keys(map: &MapHandle, wanted: &HashSet<Vec<u8>>) -> Result<(), EdgeError> {
    let failed = |error: libbpf_rs::Error| EdgeError::system("change the set of local addresses", into_io(&error));
    let present: HashSet<Vec<u8>> = map.keys().collect();
    for key in present.difference(wanted) {
        map.delete(key).map_err(failed)?;
    }
    for key in wanted.difference(&present) {
        map.update(key, &[1], MapFlags::ANY).map_err(failed)?;
    }
    Ok(())
}

/// The operating system's error inside libbpf-rs's.
pub(super) fn into_io(error: &libbpf_rs::Error) -> io::Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(number);
        }
        source = error.source();
    }
    io::Error::other(error.to_string())
}

fn refusal(what: &str, error: &libbpf_rs::Error) -> EdgeError {
    let source = into_io(error);
    if let Some(libc::EPERM | libc::EACCES) = source.raw_os_error()
        && !may_load_programs()
    {
        return EdgeError::Privilege { what: format!("the kernel refused to {what} the XDP program") };
    }
    let said = std::mem::take(&mut *LIBBPF_SAID.lock().unwrap_or_else(PoisonError::into_inner));
    let what =
        format!("the kernel refused to {what} the XDP program (Linux 5.18 or newer is needed): {error:#}\n{said}");
    EdgeError::Kernel { what }
}

fn may_load_programs() -> bool {
    super::missing_capabilities().is_empty()
}

/// Keeps the last few kilobytes of libbpf's complaints (the verifier's log) instead of letting them go to stderr.
fn listen_to_libbpf() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        libbpf_rs::set_print(Some((PrintLevel::Warn, |_, text| {
            const KEPT: usize = 8192;
            let mut said = LIBBPF_SAID.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&text);
            if said.len() > KEPT {
                let from = (said.len() - KEPT..said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(0);
                said.drain(..from);
            }
        })));
    });
}
