//! Targets of iptables that are refused by name, and why: [`reason`]. What stands neither here nor among the covered ones is
//! not known at all.

/// Name, and a sentence for the operator: why, and what to use instead.
const REFUSED: &[(&str, &str)] = &[
    ("AUDIT", "nothing here is connected to the kernel's audit log; use LOG or NFLOG"),
    ("CLUSTERIP", "Linux has removed it; give each node its own address, and share one with VRRP (keepalived)"),
    ("CONNSECMARK", "packets carry no SELinux label here; use CONNMARK to remember something of a connection"),
    ("DNPT", "a prefix is translated connection by connection here; use -t nat -j NETMAP"),
    ("ECN", "it works around hosts that could not bear ECN twenty years ago; leave the rule out"),
    ("FLOWOFFLOAD", "packets are on the fast path anyway; leave the rule out"),
    ("HMARK", "marks are not computed from addresses by this version; use MARK with rules for each network"),
    ("IDLETIMER", "there is no sysfs for its timers; ask `xrouter conntrack` or the metrics for what is in use"),
    ("IMQ", "packets do not pass Linux's traffic control; leave the rule out"),
    ("LED", "packets do not pass the kernel, so they cannot trigger its LEDs; use the LED's `netdev` trigger"),
    ("MIRROR", "Linux has removed it, because it makes a router attack whom a forged source names; use REJECT"),
    (
        "NFQUEUE",
        "no program can be asked about single packets; decide by rules, or use NFLOG for a program that only looks",
    ),
    (
        "QUEUE",
        "no program can be asked about single packets; decide by rules, or use NFLOG for a program that only looks",
    ),
    ("RATEEST", "rates are not estimated by this version; use `-m hashlimit` or `-m connbytes`"),
    ("SAME", "Linux has removed it; use SNAT with --persistent"),
    ("SECMARK", "packets carry no SELinux label here; use MARK"),
    ("SNPT", "a prefix is translated connection by connection here; use -t nat -j NETMAP"),
    ("SYNPROXY", "handshakes are not answered for others; use `-m connlimit` or `-m hashlimit` against floods of SYNs"),
    ("TARPIT", "connections are not held open for others; use DROP"),
    ("TCPOPTSTRIP", "TCP options are not removed by this version; use TCPMSS for the segment size"),
    ("TEE", "packets are not doubled; use NFLOG for a copy to look at, or mirror the port on the switch"),
    (
        "TPROXY",
        "packets for a local proxy must reach a socket of the host, which this router's path does not; \
      run the proxy on a host of its own and route to it",
    ),
    ("ULOG", "Linux has removed it; use NFLOG"),
];

/// Why the target is refused; `None` when it is not known.
pub(in crate::rules) fn reason(name: &str) -> Option<&'static str> {
    REFUSED.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refused_name_has_a_sentence() {
        assert!(REFUSED.is_sorted_by_key(|entry| entry.0));
        for (name, _) in REFUSED {
            let reason = reason(name).expect("a reason");
            assert!(reason.contains(';'), "{name}: what to do instead?");
            assert!(!reason.contains("  ") && !reason.ends_with('.'), "{name}");
        }
        assert_eq!(reason("nosuch"), None);
    }
}
