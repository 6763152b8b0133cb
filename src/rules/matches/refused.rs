//! Matches that iptables has and that are refused here, with the reason: what they ask is known to the host's kernel only.
//!
//! Linux evaluates most of them for a forwarded packet, too, and they then never match, or always. They are refused all the
//! same: whoever wrote such a rule meant it to do something.

/// Why a match is refused, and what to write instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::rules) struct Refused {
    /// Its name after `-m`.
    pub(in crate::rules) name: &'static str,
    /// Why; follows "`-m NAME` is not possible here:".
    pub(in crate::rules) reason: &'static str,
    /// What to do instead.
    pub(in crate::rules) help: &'static str,
}

const fn refuse(name: &'static str, reason: &'static str, help: &'static str) -> Refused {
    Refused { name, reason, help }
}

/// All of them, by name.
pub(in crate::rules) const REFUSED: &[Refused] = &[
    refuse(
        "cgroup",
        "a forwarded packet belongs to no process of this host, so it never matches one",
        "leave the rule out of this file; what belongs to the host's own traffic stays in the host's rules",
    ),
    refuse(
        "cluster",
        "it shares connections out among hosts that all receive every frame, which the XDP program does not let through",
        "give each host its own part of the addresses with `-s` or `-d`",
    ),
    refuse(
        "connlabel",
        "connections have no labels here, so nothing could be found or set",
        "use a connection mark: `-j CONNMARK --set-xmark` and `-m connmark --mark`",
    ),
    refuse(
        "cpu",
        "packets are not handled by the CPU that the kernel would have chosen",
        "leave it out: the number of workers and their cores are set in the configuration",
    ),
    refuse(
        "devgroup",
        "the groups of the host's interfaces are not known here",
        "name the interface: `-i NAME` or `-o NAME`",
    ),
    refuse("ipcomp", "compressed packets are not looked into", "match the protocol alone: `-p ipcomp`"),
    refuse(
        "ipvs",
        "IPVS runs in the host's kernel, and its packets never come to this path",
        "leave the rule out of the forwarding chains",
    ),
    refuse("l2tp", "L2TP is not looked into", "match its UDP port or protocol: `-p udp --dport 1701`, `-p l2tp`"),
    refuse(
        "nfacct",
        "the named counters are the host kernel's, and could not be counted up from here",
        "count with a rule without a target: its counter is in `xrouter stats`",
    ),
    refuse(
        "osf",
        "the fingerprints of operating systems are loaded into the host's kernel, and not known here",
        "match what you need of the SYN itself: `--tcp-flags`, `-m ttl`, `-m tcpmss`, `-m length`",
    ),
    refuse(
        "owner",
        "a forwarded packet was sent by no process of this host, so it never has an owner",
        "leave the rule out of this file; what belongs to the host's own traffic stays in the host's rules",
    ),
    refuse(
        "physdev",
        "there is no bridge here: packets come in and leave by interfaces of their own, never by a bridge's port",
        "name the interface: `-i NAME` or `-o NAME`",
    ),
    refuse(
        "rateest",
        "the estimators of `-j RATEEST` run in the host's kernel",
        "use `-m hashlimit` with `--hashlimit-above` and a rate in bytes",
    ),
    refuse(
        "realm",
        "the realms of the host's routes are not known here",
        "match the network itself: `-s ADDRESS/LEN` or `-d ADDRESS/LEN`, or a set",
    ),
    refuse(
        "socket",
        "a forwarded packet has no socket on this host, so it never matches; packets that have one go to the host before",
        "leave the rule out; transparent proxying is the host's",
    ),
    refuse("srh", "segment routing headers are not looked into", "match the routing header alone: `-m rt --rt-type 4`"),
];

/// The reason for which the match is refused, if it is.
pub(in crate::rules) fn refused(name: &str) -> Option<&'static Refused> {
    REFUSED.iter().find(|entry| entry.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_rise_and_each_has_a_reason_and_advice() {
        assert!(REFUSED.is_sorted_by(|a, b| a.name < b.name));
        for entry in REFUSED {
            assert!(!entry.reason.is_empty() && !entry.help.is_empty(), "{}", entry.name);
            assert!(!entry.reason.ends_with('.') && !entry.help.ends_with('.'), "{}", entry.name);
        }
        assert_eq!(refused("physdev").map(|entry| entry.name), Some("physdev"));
        assert_eq!(refused("tcp"), None);
    }
}
