//! What drivers do otherwise than others, in one table, each with its source: [`DRIVERS`]. The edge asks it when it opens ports,
//! set-up when it changes cards, doctor when it looks at them; `docs/NIC.md` lists it, and a test holds the two equal.
//!
//! Kernel versions are the first with a thing. What a running kernel says itself (the `netdev` family of netlink) is to be
//! believed before this.

/// What is known of a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Driver {
    /// Its name, as in `ethtool -i`; the empty name stands for all that are not in the table.
    pub name: &'static str,
    /// The first kernel whose driver has zero-copy (major, minor); `None` for those without.
    pub zero_copy: Option<(u32, u32)>,
    /// Largest MTU with native XDP and one buffer a frame, on x86-64; `None` when it is not known.
    pub mtu: Option<u32>,
    /// The first kernel with frames of several buffers in native XDP.
    pub frags: Option<(u32, u32)>,
    /// The first kernel with the RSS transformation `symmetric-xor`.
    pub symmetric_xor: Option<(u32, u32)>,
    /// In zero-copy mode it wants frames of 4096 bytes.
    pub large_frames: bool,
    /// An XDP program finds nothing in the first of several buffers, not even the headers.
    pub empty_first_buffer: bool,
    /// The numbers of queues stay where they are enough.
    pub keep_queues: bool,
    /// With an XDP program attached it receives on one more queue for each CPU, where the device has as many to spare; and its
    /// zero-copy sockets on these outlive them.
    pub spare_queues: bool,
    /// It is no hardware: no interrupts, no RSS, and what it does to frames is its peer's doing.
    pub is_virtual: bool,
    /// What zero-copy needs of the device, when it answers `EINVAL`.
    pub zero_copy_needs: Option<&'static str>,
    /// What else it does, as sentences with their sources; empty for nothing.
    pub notes: &'static [&'static str],
}

/// A driver of which nothing is known.
const UNKNOWN: Driver = Driver {
    name: "",
    zero_copy: None,
    mtu: None,
    frags: None,
    symmetric_xor: None,
    large_frames: false,
    empty_first_buffer: false,
    keep_queues: false,
    spare_queues: false,
    is_virtual: false,
    zero_copy_needs: None,
    notes: &[],
};

/// The table. Zero-copy and frags: ebpf-docs, "Program type BPF_PROG_TYPE_XDP", of July 2026. MTU: the same, for pages of 4 KiB.
/// `symmetric-xor`: the commit "net: ethtool: add support for symmetric-xor RSS hash" of December 2023, for Linux 6.8.
pub const DRIVERS: &[Driver] = &[
    Driver { name: "atlantic", mtu: Some(2048), frags: Some((5, 19)), ..UNKNOWN },
    Driver { name: "bnxt_en", mtu: Some(3502), frags: Some((5, 19)), ..UNKNOWN },
    Driver { name: "dpaa2-eth", zero_copy: Some((6, 2)), ..UNKNOWN },
    Driver { name: "ena", mtu: Some(3498), ..UNKNOWN },
    Driver { name: "gve", zero_copy: Some((6, 4)), mtu: Some(2032), ..UNKNOWN },
    Driver {
        name: "hv_netvsc",
        mtu: Some(3506),
        notes: &[
            "Native XDP and LRO exclude each other (Documentation/networking/device_drivers/ethernet/microsoft/netvsc.rst).",
        ],
        ..UNKNOWN
    },
    Driver { name: "i40e", zero_copy: Some((4, 20)), mtu: Some(3046), frags: Some((6, 4)), ..UNKNOWN },
    Driver { name: "iavf", symmetric_xor: Some((6, 8)), ..UNKNOWN },
    Driver {
        name: "ice",
        zero_copy: Some((5, 5)),
        mtu: Some(3046),
        frags: Some((6, 3)),
        symmetric_xor: Some((6, 8)),
        ..UNKNOWN
    },
    Driver { name: "icssg-prueth", zero_copy: Some((6, 19)), ..UNKNOWN },
    Driver { name: "idpf", zero_copy: Some((6, 18)), ..UNKNOWN },
    Driver {
        name: "igb",
        zero_copy: Some((6, 14)),
        mtu: Some(3046),
        large_frames: true,
        notes: &[
            "With frames of 2048 bytes zero-copy cuts packets of over 1024 bytes in two: buffers are whole KiB less \
             the headroom, \
             and the end of a packet is not looked at (igb_xsk.c; seen on 6.18 and 7.2).",
            "Attaching and detaching an XDP program resets the card; the link is gone for a second or more.",
            "With an empty fill ring at bind the first frames are lost and reception stands still for seconds (seen on 6.18).",
            "Older kernels neither show nor take an RSS key, which then is random (seen on 6.18 and 7.2; 7.3 has it).",
        ],
        ..UNKNOWN
    },
    Driver { name: "igc", zero_copy: Some((5, 14)), mtu: Some(1500), ..UNKNOWN },
    Driver { name: "ionic", frags: Some((6, 9)), ..UNKNOWN },
    Driver { name: "ixgbe", zero_copy: Some((4, 20)), mtu: Some(3050), ..UNKNOWN },
    Driver { name: "ixgbevf", mtu: Some(3050), ..UNKNOWN },
    Driver { name: "mana", mtu: Some(3506), ..UNKNOWN },
    Driver {
        name: "mlx5_core",
        zero_copy: Some((5, 3)),
        mtu: Some(3498),
        frags: Some((5, 18)),
        empty_first_buffer: true,
        notes: &[
            "Takes `symmetric-or-xor` and not `symmetric-xor` (commit ecdff893384c, Linux 6.15).",
            "With striding receive queues the first buffer that a program for several sees is empty \
             (mlx5e_skb_from_cqe_mpwrq_nonlinear, Linux 6.4): MTUs over its largest for one buffer have generic mode only.",
        ],
        ..UNKNOWN
    },
    Driver { name: "mvneta", frags: Some((5, 18)), ..UNKNOWN },
    Driver { name: "nfp", zero_copy: Some((5, 18)), ..UNKNOWN },
    Driver { name: "stmmac", zero_copy: Some((5, 13)), mtu: Some(1500), ..UNKNOWN },
    Driver { name: "tsnep", zero_copy: Some((6, 4)), ..UNKNOWN },
    Driver { name: "tun", mtu: Some(1500), keep_queues: true, is_virtual: true, ..UNKNOWN },
    Driver {
        name: "veth",
        mtu: Some(3520),
        frags: Some((5, 18)),
        keep_queues: true,
        is_virtual: true,
        notes: &[
            "Native XDP wants at least as many receive queues as the peer has transmit queues, or answers ENOSPC \
             (veth_xdp_set in \
             veth.c).",
            "The peer leaves checksums and segmentation undone unless `ethtool -K PEER tx off tso off` is said in its place.",
        ],
        ..UNKNOWN
    },
    Driver {
        name: "virtio_net",
        zero_copy: Some((6, 11)),
        mtu: Some(3506),
        frags: Some((6, 3)),
        spare_queues: true,
        zero_copy_needs: Some("a virtual IOMMU (iommu_platform=on)"),
        notes: &[
            "Without a virtual IOMMU, bind answers EINVAL to zero-copy, not EOPNOTSUPP (virtnet_xsk_pool_enable; seen on 6.18).",
            "With an XDP program attached it takes one more pair of queues for each CPU, where the device has them, and receives \
             on them too; ethtool's channels do not show that before 7.3 (virtnet_xdp_set). So it is given as many \
             queues before that none are to spare.",
            "When the program goes, so do these queues, but zero-copy sockets on them are not told: the next program \
             that is attached \
             crashes the kernel (xsk_set_rx_need_wakeup in try_fill_recv; seen on 7.3). So they get no zero-copy.",
            "An RSS table set before the program is attached is lost by that (virtnet_rss_update_by_qpairs; seen on 6.18).",
        ],
        ..UNKNOWN
    },
    Driver { name: "vmxnet3", mtu: Some(3494), ..UNKNOWN },
];

/// What every driver does, and the order of things that follows from it: what, then the source.
pub const ALL_DRIVERS: &[&str] = &[
    "The program is attached first, sockets are bound then: zero-copy paths take a program for granted (igb_xsk.c), \
     and the number \
     of queues may change with it.",
    "The link must be up: bind answers ENETDOWN otherwise (xsk_bind), and one driver crashed \
     (github.com/Xilinx-CNS/onload/issues/177).",
    "A driver without zero-copy answers EOPNOTSUPP to it, or ENOTSUPP (524); some say EINVAL, ENOMEM or ENOSPC.",
    "A closed socket's queue is free some time later; until then bind answers EBUSY \
     (github.com/xdp-project/xdp-tutorial/issues/458).",
    "In zero-copy mode, kernels before 7.0, 6.18.24 and 6.12.83 note a packet's further buffers at the end of its first one, over \
     its bytes (commit 1ee1605138fc, \"xsk: respect tailroom for ZC setups\"): there packets of several frames get no zero-copy. \
     (Before them, too, a full receive ring could leave half a packet in it.)",
    "Packets of several frames came with Linux 6.6, but only the first of sockets that share memory took them (mended in 6.7 and \
     6.6.11, commit d609f3d228a8): before, MTUs larger than a frame are served without longer packets, in generic mode.",
];

/// The kernels from which on packets of several frames are left whole in zero-copy mode, see [`ALL_DRIVERS`]: of the lines that
/// were mended later, and of all.
const LEFT_WHOLE: [[u32; 3]; 3] = [[6, 12, 83], [6, 18, 24], [7, 0, 0]];

/// Whether this kernel (as `uname -r` has it) leaves packets of several frames whole in zero-copy mode.
pub fn leaves_long_packets_whole(release: &str) -> bool {
    has(release, &LEFT_WHOLE)
}

/// The kernels from which on all sockets on a umem take packets of several frames, see [`ALL_DRIVERS`].
const INHERITED: [[u32; 3]; 2] = [[6, 6, 11], [6, 7, 0]];

/// Whether this kernel (as `uname -r` has it) takes packets of several frames on all sockets of a umem.
pub fn knows_long_packets(release: &str) -> bool {
    has(release, &INHERITED)
}

/// Whether a kernel has what came with these: earlier ones by a line's own mend, the last and all after it.
fn has(release: &str, since: &[[u32; 3]]) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse::<u32>().unwrap_or(0));
    let now: [u32; 3] = std::array::from_fn(|_| numbers.next().unwrap_or(0));
    since.last().is_some_and(|last| now >= *last) || since.iter().any(|it| now[..2] == it[..2] && now >= *it)
}

/// The table as `docs/NIC.md` has it.
pub fn as_markdown() -> String {
    let kernel = |it: Option<(u32, u32)>| it.map_or("-".to_owned(), |(major, minor)| format!("{major}.{minor}"));
    let mut text = "| driver | zero-copy | MTU | frags | symmetric-xor |\n|---|---|---|---|---|\n".to_owned();
    for driver in DRIVERS {
        let mtu = driver.mtu.map_or("-".to_owned(), |mtu| mtu.to_string());
        let (zero_copy, frags, xor) = (kernel(driver.zero_copy), kernel(driver.frags), kernel(driver.symmetric_xor));
        text += &format!("| {} | {zero_copy} | {mtu} | {frags} | {xor} |\n", driver.name);
    }
    text += "\nAll drivers:\n\n";
    ALL_DRIVERS.iter().for_each(|note| text += &format!("- {note}\n"));
    for driver in DRIVERS.iter().filter(|driver| !driver.notes.is_empty()) {
        text += &format!("\n{}:\n\n", driver.name);
        driver.notes.iter().for_each(|note| text += &format!("- {note}\n"));
    }
    text
}

/// What is known of this driver.
pub fn of(driver: &str) -> &'static Driver {
    DRIVERS.iter().find(|known| known.name == driver).unwrap_or(&UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To write it anew: the failing test prints it.
    #[test]
    fn the_documentation_has_the_same_table() {
        let documented = include_str!("../../docs/NIC.md");
        let ours = as_markdown();
        assert!(documented.ends_with(&ours), "docs/NIC.md should end with:\n{ours}");
    }

    #[test]
    fn kernels_that_write_over_packets_are_known() {
        for (release, whole) in [
            ("6.1.0-13-amd64", false),
            ("6.12.9-amd64", false),
            ("6.12.83", true),
            ("6.13.99", false),
            ("6.18.23", false),
            ("6.18.44-fc-v657", true),
            ("6.19.0", false),
            ("7.0.0", true),
            ("7.3.4+deb13-amd64", true),
            ("10.0", true),
            ("", false),
        ] {
            assert_eq!(leaves_long_packets_whole(release), whole, "{release}");
        }
    }

    #[test]
    fn kernels_that_know_packets_of_several_frames_are_known() {
        for (release, knows) in [
            ("6.1.0", false),
            ("6.6.10", false),
            ("6.6.11", true),
            ("6.6.87+deb", true),
            ("6.7.0", true),
            ("7.0", true),
        ] {
            assert_eq!(knows_long_packets(release), knows, "{release}");
        }
    }

    #[test]
    fn drivers_are_in_order_and_none_twice() {
        assert!(DRIVERS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert_eq!((of("igb").large_frames, of("veth").large_frames), (true, false));
        assert_eq!(of("no-such-driver"), &UNKNOWN);
        assert_eq!(of(""), &UNKNOWN);
    }
}
