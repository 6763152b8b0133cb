//! The kernel settings that bear on forwarding, read from `/proc/sys/net` of this thread's network namespace.

use std::fs;

use crate::snapshot::{KernelForwarding, RpFilter};

/// A setting's number; None where the kernel has no such setting (IPv6 switched off, an interface gone).
fn read(path: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?.trim().parse().ok()
}

/// Whether the kernel forwards by itself.
pub(in crate::control) fn kernel_forwarding() -> KernelForwarding {
    let on = |path| read(path).is_some_and(|value| value != 0);
    KernelForwarding { v4: on("ipv4/ip_forward"), v6: on("ipv6/conf/all/forwarding") }
}

/// An interface's reverse path filter: the larger of its own and that of `all`.
pub(super) fn rp_filter(interface: &str) -> RpFilter {
    let of = |name: &str| read(&format!("ipv4/conf/{name}/rp_filter")).unwrap_or(0);
    match of("all").max(of(interface)) {
        0 => RpFilter::Off,
        1 => RpFilter::Strict,
        _ => RpFilter::Loose,
    }
}

/// Whether packets from the host's own addresses may come in: for all interfaces or for this one.
pub(super) fn accept_local(interface: &str) -> bool {
    ["all", interface].into_iter().any(|name| read(&format!("ipv4/conf/{name}/accept_local")).is_some_and(|on| on != 0))
}

/// Whether routes through the interface are left out while it has no carrier, for IPv4 and for IPv6.
pub(super) fn ignore_linkdown(interface: &str) -> [bool; 2] {
    ["ipv4", "ipv6"]
        .map(|family| read(&format!("{family}/conf/{interface}/ignore_routes_with_linkdown")).is_some_and(|on| on != 0))
}

/// The interface's MTU for IPv6, in bytes.
pub(super) fn ipv6_mtu(interface: &str) -> Option<u32> {
    read(&format!("ipv6/conf/{interface}/mtu"))
}
