//! [`Ethtool`]: what ethtool(8) asks of a network card and sets on it, by the same ioctl (`SIOCETHTOOL`), as typed values.
//!
//! One socket per interface, opened in the network namespace of the calling thread and good for that one for ever. Nothing is
//! remembered: each call asks the kernel. A card that has no such thing answers `EOPNOTSUPP`, and that is the caller's to explain.
//! Structures of the interface (include/uapi/linux/ethtool.h) are rows of 32-bit words in the machine's byte order here.

use super::interface::{control_socket, ifreq, ioctl};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

// Commands of include/uapi/linux/ethtool.h.
const GDRVINFO: u32 = 0x03;
const GRINGPARAM: u32 = 0x10;
const GSTRINGS: u32 = 0x1b;
const GRXFH: u32 = 0x29;
const SRXFH: u32 = 0x2a;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SFEATURES: u32 = 0x3b;
const GCHANNELS: u32 = 0x3c;
const SCHANNELS: u32 = 0x3d;
const GRSSH: u32 = 0x46;
const SRSSH: u32 = 0x47;

/// The set of strings that names features (`ETH_SS_FEATURES`).
const SS_FEATURES: u32 = 4;
/// Bytes of one such name (`ETH_GSTRING_LEN`).
const STRING: usize = 32;
/// Words of `struct ethtool_drvinfo`, `ethtool_channels`, `ethtool_ringparam`, `ethtool_rxnfc`, and of `ethtool_rxfh` without
/// its tail.
const DRVINFO_WORDS: usize = 49;
const CHANNELS_WORDS: usize = 9;
const RING_WORDS: usize = 9;
const RXNFC_WORDS: usize = 48;
const RXFH_WORDS: usize = 6;
/// "The table stays" (`ETH_RXFH_INDIR_NO_CHANGE`).
const TABLE_STAYS: u32 = u32::MAX;
/// "The transformation stays" (`RXH_XFRM_NO_CHANGE`); kernels before 6.8 want 0 there.
const TRANSFORM_STAYS: u8 = 0xff;
/// No card's table or key is longer; a driver that says so is not believed.
const WORDS_MAX: u32 = 1 << 16;

/// What a driver says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DriverInfo {
    /// Its name, as in `ethtool -i`.
    pub driver: String,
    /// Its version; for drivers of the kernel, the kernel's.
    pub version: String,
    /// Its card's firmware.
    pub firmware: String,
    /// Where the card is, such as `0000:01:00.0`.
    pub bus: String,
}

/// How many queues there are, by kind, and how many there could be (`ethtool -l`). Combined ones receive and transmit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Channels {
    /// Most that only receive.
    pub max_rx: u32,
    /// Most that only transmit.
    pub max_tx: u32,
    /// Most of other kinds.
    pub max_other: u32,
    /// Most that do both.
    pub max_combined: u32,
    /// Those that only receive.
    pub rx: u32,
    /// Those that only transmit.
    pub tx: u32,
    /// Those of other kinds.
    pub other: u32,
    /// Those that do both.
    pub combined: u32,
}

impl Channels {
    /// Queues that receive.
    pub fn receiving(&self) -> u32 {
        self.rx + self.combined
    }

    /// Queues that transmit.
    pub fn transmitting(&self) -> u32 {
        self.tx + self.combined
    }

    /// Most queues that could receive.
    pub fn most(&self) -> u32 {
        self.max_rx.max(self.max_combined)
    }
}

/// As `ethtool -L` takes it.
impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.rx, self.tx, self.combined) {
            (0, 0, combined) => write!(f, "combined {combined}"),
            (rx, tx, 0) => write!(f, "rx {rx} tx {tx}"),
            (rx, tx, combined) => write!(f, "rx {rx} tx {tx} combined {combined}"),
        }
    }
}

/// Entries of a card's own rings (`ethtool -g`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rings {
    /// Most for receiving.
    pub max_rx: u32,
    /// Most for transmitting.
    pub max_tx: u32,
    /// For receiving.
    pub rx: u32,
    /// For transmitting.
    pub tx: u32,
}

/// How a card spreads packets over its queues (`ethtool -x`): it hashes some fields, and the hash's low bits name an entry of
/// the table, which names a queue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rss {
    /// The hash function in use, one of the `HASH_` bits; 0 when the driver does not tell.
    pub function: u8,
    /// What is done to the fields before: [`SYMMETRIC_XOR`], [`SYMMETRIC_OR_XOR`], or 0.
    pub transform: u8,
    /// The function's key; empty when the driver does not show one.
    pub key: Vec<u8>,
    /// The queues; empty when the driver does not show them.
    pub table: Vec<u32>,
}

/// Toeplitz (`ETH_RSS_HASH_TOP`).
pub const HASH_TOEPLITZ: u8 = 1;
/// Exclusive or of the fields (`ETH_RSS_HASH_XOR`).
pub const HASH_XOR: u8 = 2;
/// CRC-32 (`ETH_RSS_HASH_CRC32`).
pub const HASH_CRC32: u8 = 4;
/// Source and destination are both replaced by their exclusive or (`RXH_XFRM_SYM_XOR`, Linux 6.8).
pub const SYMMETRIC_XOR: u8 = 1;
/// Source is replaced by both's or, destination by their exclusive or (`RXH_XFRM_SYM_OR_XOR`, Linux 6.15).
pub const SYMMETRIC_OR_XOR: u8 = 2;

/// What of [`Rss`] to change; `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct RssChange<'a> {
    /// The table; an empty one stands for the driver's own default.
    pub table: Option<&'a [u32]>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The function, one of the `HASH_` bits.
    pub function: Option<u8>,
    /// The transformation, or 0 for none.
    pub transform: Option<u8>,
}

/// Kinds of packets whose hashed fields can be chosen (`ethtool -n IF rx-flow-hash KIND`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum FlowType {
    /// TCP over IPv4 (`TCP_V4_FLOW`).
    Tcp4 = 1,
    /// UDP over IPv4 (`UDP_V4_FLOW`).
    Udp4 = 2,
    /// SCTP over IPv4 (`SCTP_V4_FLOW`).
    Sctp4 = 3,
    /// TCP over IPv6 (`TCP_V6_FLOW`).
    Tcp6 = 5,
    /// UDP over IPv6 (`UDP_V6_FLOW`).
    Udp6 = 6,
    /// SCTP over IPv6 (`SCTP_V6_FLOW`).
    Sctp6 = 7,
    /// Other protocols over IPv4 (`IPV4_FLOW`). Few drivers tell, and ethtool(8) has no word for it.
    Other4 = 0x10,
    /// Other protocols over IPv6 (`IPV6_FLOW`).
    Other6 = 0x11,
}

impl FlowType {
    /// All that can be set, TCP first.
    pub const ALL: [FlowType; 6] =
        [FlowType::Tcp4, FlowType::Tcp6, FlowType::Udp4, FlowType::Udp6, FlowType::Sctp4, FlowType::Sctp6];

    /// ethtool(8)'s word for it.
    pub const fn name(self) -> &'static str {
        match self {
            FlowType::Tcp4 => "tcp4",
            FlowType::Udp4 => "udp4",
            FlowType::Sctp4 => "sctp4",
            FlowType::Tcp6 => "tcp6",
            FlowType::Udp6 => "udp6",
            FlowType::Sctp6 => "sctp6",
            FlowType::Other4 => "ip4",
            FlowType::Other6 => "ip6",
        }
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<FlowType> {
        FlowType::ALL.into_iter().find(|flow| flow.name() == name)
    }
}

/// Fields that are hashed, as bits (`RXH_`).
pub type HashFields = u64;
/// Source address (`RXH_IP_SRC`).
pub const FIELD_SOURCE: HashFields = 1 << 4;
/// Destination address (`RXH_IP_DST`).
pub const FIELD_DESTINATION: HashFields = 1 << 5;
/// Source port, the first two bytes of the layer-4 header (`RXH_L4_B_0_1`).
pub const FIELD_SOURCE_PORT: HashFields = 1 << 6;
/// Destination port, the next two (`RXH_L4_B_2_3`).
pub const FIELD_DESTINATION_PORT: HashFields = 1 << 7;
/// Both addresses: `sd` for ethtool(8).
pub const FIELDS_ADDRESSES: HashFields = FIELD_SOURCE | FIELD_DESTINATION;
/// Both addresses and both ports: `sdfn` for ethtool(8).
pub const FIELDS_ALL: HashFields = FIELDS_ADDRESSES | FIELD_SOURCE_PORT | FIELD_DESTINATION_PORT;

/// One feature (`ethtool -k`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feature {
    /// Its name, such as `rx-lro`.
    pub name: String,
    /// Whether it is on.
    pub on: bool,
    /// Whether it was asked for, also when something stands in its way.
    pub wanted: bool,
    /// Whether it can be changed; if not, ethtool(8) says `[fixed]`.
    pub changeable: bool,
}

/// One interface's questions and settings. See the module's head.
#[derive(Debug)]
pub struct Ethtool {
    socket: OwnedFd,
    name: String,
}

impl Ethtool {
    /// For the interface `name` of this thread's network namespace; whether there is one shows with the first question.
    ///
    /// # Errors
    /// When the process is out of descriptors, or no interface can have this name.
    pub fn open(name: &str) -> io::Result<Ethtool> {
        ifreq(name).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Ethtool { socket: control_socket()?, name: name.to_string() })
    }

    /// Runs the command in `words[0]`. The words must be all that the command reads and writes.
    fn command(&self, words: &mut [u32]) -> io::Result<i32> {
        let mut request = ifreq(&self.name).ok_or(io::ErrorKind::InvalidInput)?;
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        ioctl(&self.socket, libc::SIOCETHTOOL, &mut request)
    }

    /// The driver.
    ///
    /// # Errors
    /// The kernel's.
    pub fn driver_info(&self) -> io::Result<DriverInfo> {
        let mut words = [0; DRVINFO_WORDS];
        words[0] = GDRVINFO;
        self.command(&mut words)?;
        let text = |at: usize| text_of(&words[at..at + 8]);
        Ok(DriverInfo { driver: text(1), version: text(9), firmware: text(17), bus: text(25) })
    }

    /// The queues.
    ///
    /// # Errors
    /// The kernel's; `EOPNOTSUPP` when the driver does not tell.
    pub fn channels(&self) -> io::Result<Channels> {
        let mut words = [0; CHANNELS_WORDS];
        words[0] = GCHANNELS;
        self.command(&mut words)?;
        let [_, max_rx, max_tx, max_other, max_combined, rx, tx, other, combined] = words;
        Ok(Channels { max_rx, max_tx, max_other, max_combined, rx, tx, other, combined })
    }

    /// Sets the numbers of queues (those of `channels` without `max_`). Many cards reset, and lose what is under way.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` for more than there can be, for fewer than the RSS table or an AF_XDP socket needs.
    pub fn set_channels(&self, channels: &Channels) -> io::Result<()> {
        let Channels { rx, tx, other, combined, .. } = *channels;
        self.command(&mut [SCHANNELS, 0, 0, 0, 0, rx, tx, other, combined]).map(drop)
    }

    /// The card's rings.
    ///
    /// # Errors
    /// The kernel's; `EOPNOTSUPP` when the driver does not tell.
    pub fn rings(&self) -> io::Result<Rings> {
        let mut words = [0; RING_WORDS];
        words[0] = GRINGPARAM;
        self.command(&mut words)?;
        let [_, max_rx, _, _, max_tx, rx, _, _, tx] = words;
        Ok(Rings { max_rx, max_tx, rx, tx })
    }

    /// How packets are spread over the queues.
    ///
    /// # Errors
    /// The kernel's; `EOPNOTSUPP` when the driver does not tell.
    pub fn rss(&self) -> io::Result<Rss> {
        let mut sizes = [0; RXFH_WORDS];
        sizes[0] = GRSSH;
        self.command(&mut sizes)?;
        let (entries, key_bytes) = (sizes[2], sizes[3]);
        if entries > WORDS_MAX || key_bytes > WORDS_MAX {
            return Err(io::Error::other(format!("an RSS table of {entries} entries and a key of {key_bytes} bytes")));
        }
        let mut words = vec![0; RXFH_WORDS + entries as usize + (key_bytes as usize).div_ceil(4)];
        words[..4].copy_from_slice(&[GRSSH, 0, entries, key_bytes]);
        self.command(&mut words)?;
        let [function, transform, ..] = words[4].to_ne_bytes();
        let (table, key) = words[RXFH_WORDS..].split_at(entries as usize);
        let mut key: Vec<u8> = key.iter().flat_map(|word| word.to_ne_bytes()).collect();
        key.truncate(key_bytes as usize);
        Ok(Rss { function, transform, key, table: table.to_vec() })
    }

    /// Changes how packets are spread.
    ///
    /// # Errors
    /// The kernel's: `EOPNOTSUPP` or `EINVAL` for what the card cannot do.
    pub fn set_rss(&self, change: &RssChange<'_>) -> io::Result<()> {
        let transform = change.transform.unwrap_or(TRANSFORM_STAYS);
        match self.command(&mut rss_words(change, transform)) {
            // A kernel that knows no transformations wants a 0 there.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && change.transform.is_none() => {
                self.command(&mut rss_words(change, 0)).map(drop)
            }
            outcome => outcome.map(drop),
        }
    }

    /// Which fields of this kind of packets are hashed.
    ///
    /// # Errors
    /// The kernel's; `EOPNOTSUPP` when the driver does not tell.
    pub fn hash_fields(&self, flow: FlowType) -> io::Result<HashFields> {
        let mut words = [0; RXNFC_WORDS];
        (words[0], words[1]) = (GRXFH, flow as u32);
        self.command(&mut words)?;
        Ok(join(words[2], words[3]))
    }

    /// Sets which fields of this kind of packets are hashed.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` for what the card cannot do.
    pub fn set_hash_fields(&self, flow: FlowType, fields: HashFields) -> io::Result<()> {
        let mut words = [0; RXNFC_WORDS];
        (words[0], words[1]) = (SRXFH, flow as u32);
        [words[2], words[3]] = halves(fields);
        self.command(&mut words).map(drop)
    }

    /// All features, in the kernel's order.
    ///
    /// # Errors
    /// The kernel's.
    pub fn features(&self) -> io::Result<Vec<Feature>> {
        let names = self.feature_names()?;
        let blocks = names.len().div_ceil(32);
        let mut words = vec![0; 2 + 4 * blocks];
        (words[0], words[1]) = (GFEATURES, blocks as u32);
        self.command(&mut words)?;
        let feature = |(at, name): (usize, String)| {
            let block = &words[2 + at / 32 * 4..];
            let bit = |word: usize| block[word] >> (at % 32) & 1 == 1;
            // available, requested, active, never_changed
            Feature { name, wanted: bit(1), on: bit(2), changeable: bit(0) && !bit(3) }
        };
        Ok(names.into_iter().enumerate().map(feature).filter(|feature| !feature.name.is_empty()).collect())
    }

    /// Turns a feature on or off. That the call succeeds does not say that it is so now: the driver may have had other ideas.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` when there is no such feature, `EOPNOTSUPP` when it is fixed.
    pub fn set_feature(&self, name: &str, on: bool) -> io::Result<()> {
        /// The driver cannot change it (`ETHTOOL_F_UNSUPPORTED`).
        const UNSUPPORTED: i32 = 1;
        let names = self.feature_names()?;
        let at = names.iter().position(|known| known == name).ok_or(io::ErrorKind::InvalidInput)?;
        let blocks = names.len().div_ceil(32);
        let mut words = vec![0; 2 + 2 * blocks];
        (words[0], words[1]) = (SFEATURES, blocks as u32);
        let place = 2 + at / 32 * 2;
        words[place] = 1 << (at % 32);
        words[place + 1] = u32::from(on) << (at % 32);
        match self.command(&mut words)? {
            answer if answer & UNSUPPORTED != 0 => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            _ => Ok(()),
        }
    }

    /// The features' names by number; some numbers have none.
    fn feature_names(&self) -> io::Result<Vec<String>> {
        let [low, high] = halves(1 << SS_FEATURES);
        let mut info = [GSSET_INFO, 0, low, high, 0];
        self.command(&mut info)?;
        let count = if join(info[2], info[3]) == 0 { 0 } else { info[4] };
        if count == 0 || count > WORDS_MAX {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let mut words = vec![0; 3 + count as usize * STRING / 4];
        words[..3].copy_from_slice(&[GSTRINGS, SS_FEATURES, count]);
        self.command(&mut words)?;
        Ok(words[3..].chunks_exact(STRING / 4).map(text_of).collect())
    }
}

/// `struct ethtool_rxfh` for a change.
fn rss_words(change: &RssChange<'_>, transform: u8) -> Vec<u32> {
    let key = change.key.unwrap_or_default();
    let table_size = change.table.map_or(TABLE_STAYS, |table| table.len() as u32);
    let function = u32::from_ne_bytes([change.function.unwrap_or(0), transform, 0, 0]);
    let mut words = vec![SRSSH, 0, table_size, key.len() as u32, function, 0];
    words.extend_from_slice(change.table.unwrap_or_default());
    words.extend(key.chunks(4).map(|bytes| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_ne_bytes(word)
    }));
    words
}

/// A 64-bit word as two in memory.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

fn join(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Bytes up to the first zero.
fn text_of(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lo() -> Ethtool {
        Ethtool::open("lo").expect("every namespace has lo")
    }

    #[test]
    fn features_have_names_and_states() {
        let features = lo().features().expect("lo has features");
        let named = |name: &str| features.iter().find(|feature| feature.name == name).expect(name).clone();
        // drivers/net/loopback.c: loopback and vlan-challenged are never changed; scatter-gather is on.
        assert!(named("loopback").on && !named("loopback").changeable, "{features:?}");
        assert!(named("tx-scatter-gather").on);
        assert!(!named("rx-lro").on);
        assert!(features.len() > 40);
    }

    #[test]
    fn what_a_device_has_not_is_refused() {
        let refused = |error: io::Error| error.raw_os_error();
        assert_eq!(lo().channels().map_err(refused), Err(Some(libc::EOPNOTSUPP)));
        assert_eq!(lo().rss().map_err(refused), Err(Some(libc::EOPNOTSUPP)));
        assert_eq!(lo().hash_fields(FlowType::Udp4).map_err(refused), Err(Some(libc::EOPNOTSUPP)));
        assert!(lo().set_feature("no-such-feature", true).is_err());
        assert!(Ethtool::open("a-name-longer-than-sixteen-bytes").is_err());
        let missing = Ethtool::open("xr-nothing").expect("a name").channels().map_err(refused);
        assert_eq!(missing, Err(Some(libc::ENODEV)));
    }

    #[test]
    fn a_change_of_rss_is_laid_out_as_the_kernel_reads_it() {
        let key = [1, 2, 3, 4, 5, 6];
        let change =
            RssChange { table: Some(&[7, 8]), key: Some(&key), function: Some(HASH_TOEPLITZ), transform: None };
        let words = rss_words(&change, 9);
        assert_eq!(words[..4], [SRSSH, 0, 2, 6]);
        assert_eq!((words[4].to_ne_bytes(), words[5]), ([1, 9, 0, 0], 0));
        assert_eq!(words[6..8], [7, 8]);
        let bytes: Vec<u8> = words[8..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 0, 0]);
        // What is not named stays; an empty table is the driver's default.
        assert_eq!(rss_words(&RssChange::default(), 0), [SRSSH, 0, TABLE_STAYS, 0, 0, 0]);
        assert_eq!(rss_words(&RssChange { table: Some(&[]), ..RssChange::default() }, 0)[2], 0);
    }

    #[test]
    fn channels_are_written_as_ethtool_takes_them() {
        let channels = |rx, tx, combined| Channels { rx, tx, combined, ..Channels::default() }.to_string();
        assert_eq!([channels(0, 0, 4), channels(2, 3, 0)], ["combined 4", "rx 2 tx 3"]);
        assert_eq!(channels(0, 2, 4), "rx 0 tx 2 combined 4");
    }

    #[test]
    fn wide_words_keep_their_bytes() {
        let word = 0x0102_0304_0506_0708;
        let [first, second] = halves(word);
        assert_eq!(join(first, second), word);
    }
}
