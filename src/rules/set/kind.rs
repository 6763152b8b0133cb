//! The types of sets: [`Kind`], and the parts ([`Part`]) that an element of each has.

use crate::wire::Family;

/// One part of an element: one word between its commas, one dimension of the set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// An address.
    Ip,
    /// A prefix.
    Net,
    /// A protocol and its port, or ICMP type and code.
    Port,
    /// A hardware address.
    Mac,
    /// A packet's mark.
    Mark,
    /// An interface.
    Iface,
    /// Another set.
    Set,
}

/// How elements are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Method {
    Bitmap,
    Hash,
    List,
}

/// The type of a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    BitmapIp,
    BitmapIpMac,
    BitmapPort,
    HashIp,
    HashMac,
    HashIpMac,
    HashIpMark,
    HashIpPort,
    HashIpPortIp,
    HashIpPortNet,
    HashNet,
    HashNetIface,
    HashNetNet,
    HashNetPort,
    HashNetPortNet,
    ListSet,
}

/// Each with its name, its parts and the names it had before ipset 6.
type Row = (Kind, &'static str, &'static [Part], &'static [&'static str]);

use Part::{Iface, Ip, Mac, Mark, Net, Port, Set};

const KINDS: &[Row] = &[
    (Kind::BitmapIp, "bitmap:ip", &[Ip], &["ipmap"]),
    (Kind::BitmapIpMac, "bitmap:ip,mac", &[Ip, Mac], &["macipmap"]),
    (Kind::BitmapPort, "bitmap:port", &[Port], &["portmap"]),
    (Kind::HashIp, "hash:ip", &[Ip], &["iphash"]),
    (Kind::HashMac, "hash:mac", &[Mac], &["machash"]),
    (Kind::HashIpMac, "hash:ip,mac", &[Ip, Mac], &["ipmachash"]),
    (Kind::HashIpMark, "hash:ip,mark", &[Ip, Mark], &["ipmarkhash"]),
    (Kind::HashIpPort, "hash:ip,port", &[Ip, Port], &["ipporthash"]),
    (Kind::HashIpPortIp, "hash:ip,port,ip", &[Ip, Port, Ip], &["ipportiphash"]),
    (Kind::HashIpPortNet, "hash:ip,port,net", &[Ip, Port, Net], &["ipportnethash"]),
    (Kind::HashNet, "hash:net", &[Net], &["nethash"]),
    (Kind::HashNetIface, "hash:net,iface", &[Net, Iface], &["netifacehash"]),
    (Kind::HashNetNet, "hash:net,net", &[Net, Net], &["netnethash"]),
    (Kind::HashNetPort, "hash:net,port", &[Net, Port], &["netporthash"]),
    (Kind::HashNetPortNet, "hash:net,port,net", &[Net, Port, Net], &["netportnethash"]),
    (Kind::ListSet, "list:set", &[Set], &["setlist"]),
];

impl Kind {
    /// By its name, also an old one.
    pub(super) fn by_name(name: &str) -> Option<Kind> {
        KINDS.iter().find(|row| row.1 == name || row.3.contains(&name)).map(|row| row.0)
    }

    /// The names, as printed.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|row| row.1)
    }

    fn row(self) -> &'static Row {
        // The rows stand in the order of the variants; a test holds it.
        &KINDS[self as usize]
    }

    /// As `ipset save` prints it.
    pub(super) fn name(self) -> &'static str {
        self.row().1
    }

    /// The parts of an element.
    #[inline]
    pub(super) fn parts(self) -> &'static [Part] {
        self.row().2
    }

    /// How elements are kept.
    pub(super) fn method(self) -> Method {
        match self {
            Kind::BitmapIp | Kind::BitmapIpMac | Kind::BitmapPort => Method::Bitmap,
            Kind::ListSet => Method::List,
            _ => Method::Hash,
        }
    }

    /// How many of the parts are prefixes.
    pub(super) fn nets(self) -> usize {
        self.parts().iter().filter(|&&part| part == Net).count()
    }

    /// Whether elements can be exceptions (`nomatch`; `IPSET_TYPE_NOMATCH`).
    pub(super) fn has_nomatch(self) -> bool {
        self.nets() > 0
    }

    /// Whether `family` can be chosen.
    pub(super) fn has_family(self) -> bool {
        self.method() == Method::Hash && self != Kind::HashMac
    }

    /// The IP version of a set that has no say in it; `None` is both.
    pub(super) fn fixed_family(self) -> Option<Family> {
        match self {
            Kind::BitmapIp | Kind::BitmapIpMac => Some(Family::V4),
            _ => None,
        }
    }

    /// Whether a prefix length of 0 is allowed (`IP_SET_HASH_WITH_NET0`).
    pub(super) fn takes_zero_prefix(self) -> bool {
        self == Kind::HashNetIface
    }

    /// Whether `create` takes `netmask` and `bitmask`.
    pub(super) fn takes_mask(self) -> bool {
        matches!(self, Kind::HashIp | Kind::HashIpPort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_name() {
        for (index, row) in KINDS.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.1);
            assert_eq!(Kind::by_name(row.1), Some(row.0));
            assert_eq!(row.1.split([':', ',']).count() - 1, row.2.len(), "{}", row.1);
        }
        assert_eq!(Kind::by_name("hash:netz"), None);
    }
}
