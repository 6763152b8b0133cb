//! What `create` says of a set: [`Header`].

use super::kind::{Kind, Method};
use crate::wire::{Addr, Family};

/// `timeout` at most, in seconds (`IPSET_MAX_TIMEOUT`).
pub(super) const TIMEOUT_MAX: u32 = 2_147_483;
/// `hashsize` when it is not given.
pub(super) const HASHSIZE_DEFAULT: u32 = 1024;
/// `hashsize` at least.
pub(super) const HASHSIZE_MIN: u32 = 64;
/// `maxelem` when it is not given.
pub(super) const MAXELEM_DEFAULT: u32 = 65_536;
/// `size` of a list:set when it is not given, and at least.
pub(super) const SIZE_DEFAULT: u32 = 8;
pub(super) const SIZE_MIN: u32 = 4;
/// The most elements that a bitmap may have (`IPSET_BITMAP_MAX_RANGE` and one).
pub(super) const BITMAP_MAX: u64 = 65_536;

/// The part of an address that a set looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mask {
    /// `netmask`: this many bits.
    Net(u8),
    /// `bitmask`: these bits.
    Bits(Addr),
}

impl Mask {
    /// As a mask; for IPv4 with the upper 96 bits set.
    pub(super) fn addr(self, family: Family) -> Addr {
        match (self, family) {
            (Mask::Net(length), family) => Addr::prefix_mask(family, length),
            (Mask::Bits(mask), Family::V6) => mask,
            (Mask::Bits(mask), Family::V4) => Addr::from_v6(u128::MAX << 32 | u128::from(mask.v4_bits())),
        }
    }
}

/// Everything that `create` says but the name. Two sets with equal headers are of one make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// IP version; `None` where elements have none, or both.
    pub(super) family: Option<Family>,
    /// Printed again, of no meaning here: as the kernel would round it.
    pub(super) hashsize: u32,
    /// Most elements: `maxelem` of a hash, `size` of a list, the range's of a bitmap.
    pub(super) capacity: u32,
    pub(super) mask: Option<Mask>,
    /// `markmask` of a hash:ip,mark; all ones when not given.
    pub(super) markmask: u32,
    /// `range` of a bitmap: IPv4 addresses or ports.
    pub(super) range: (u32, u32),
    /// Default time-out in seconds. `None`: elements cannot have one; 0: they have none unless told.
    pub(super) timeout: Option<u32>,
    pub(super) counters: bool,
    pub(super) comment: bool,
    pub(super) forceadd: bool,
    pub(super) skbinfo: bool,
    /// Printed again, of no meaning here.
    pub(super) bucketsize: Option<u32>,
    /// Printed again, of no meaning here.
    pub(super) initval: Option<u32>,
}

impl Header {
    pub(super) fn new(kind: Kind) -> Header {
        let capacity = match kind.method() {
            Method::List => SIZE_DEFAULT,
            Method::Hash => MAXELEM_DEFAULT,
            Method::Bitmap => 0,
        };
        Header {
            kind,
            family: if kind.has_family() { Some(Family::V4) } else { kind.fixed_family() },
            hashsize: HASHSIZE_DEFAULT,
            capacity,
            mask: None,
            markmask: u32::MAX,
            range: (0, 0),
            timeout: None,
            counters: false,
            comment: false,
            forceadd: false,
            skbinfo: false,
            bucketsize: None,
            initval: None,
        }
    }

    /// Whether elements carry more than themselves.
    pub(super) fn has_extras(&self) -> bool {
        self.timeout.is_some() || self.counters || self.comment || self.skbinfo
    }

    /// The mask for the first address of an element.
    pub(super) fn first_mask(&self) -> Option<Addr> {
        Some(self.mask?.addr(self.family?))
    }

    /// The family that addresses of elements are read in.
    pub(super) fn address_family(&self) -> Family {
        self.family.unwrap_or(Family::V4)
    }

    /// Addresses for one bit of a bitmap:ip.
    pub(super) fn hosts(&self) -> u32 {
        match self.mask {
            Some(Mask::Net(length)) if self.kind == Kind::BitmapIp => 1 << (32 - u32::from(length.min(32))).min(31),
            _ => 1,
        }
    }

    /// The bit of a bitmap that stands for an address or a port; `None` outside of the range.
    #[inline]
    pub(super) fn bit(&self, value: u32) -> Option<usize> {
        let (first, last) = self.range;
        (first <= value && value <= last).then(|| ((value - first) / self.hosts()) as usize)
    }

    /// The address or port that a bit stands for.
    pub(super) fn at_bit(&self, bit: usize) -> u32 {
        self.range.0 + bit as u32 * self.hosts()
    }
}
