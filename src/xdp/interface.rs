//! [`Interface`]: what the kernel says of a network interface, read once.
//!
//! Everything is asked in the network namespace of the calling thread. (sysfs is not asked: it shows the namespace it was
//! mounted in, which need not be ours.)

use super::{EdgeError, Ethtool, Netdev};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What the kernel says of an interface at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Longest layer-3 packet in bytes.
    pub mtu: u32,
    /// Whether it is set up (`IFF_UP`); a link may still be missing.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Receive queues in use. Attaching an XDP program may change it.
    pub rx_queues: u32,
    /// Transmit queues in use.
    pub tx_queues: u32,
    /// Its driver's name; empty when it tells none.
    pub driver: String,
    /// Whether it takes frames for everybody (`IFF_PROMISC`).
    pub promiscuous: bool,
    /// Whether there is a link (`IFF_RUNNING`).
    pub carrier: bool,
}

impl Interface {
    /// Asks the kernel about the interface `name`.
    ///
    /// # Errors
    /// When there is none, or the kernel does not answer.
    pub fn read(name: &str) -> Result<Interface, EdgeError> {
        let missing = || EdgeError::NoInterface { name: name.to_string() };
        let ifindex = ifindex(name).ok_or_else(missing)?;
        let ask = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENODEV) => missing(),
            _ => EdgeError::system(format!("ask the kernel about {name}"), error),
        };
        let socket = control_socket().map_err(ask)?;
        let mut request = ifreq(name).ok_or_else(missing)?;
        ioctl(&socket, libc::SIOCGIFFLAGS, &mut request).map_err(ask)?;
        // SAFETY: SIOCGIFFLAGS has just written this member of the union.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        ioctl(&socket, libc::SIOCGIFMTU, &mut request).map_err(ask)?;
        // SAFETY: SIOCGIFMTU has just written this member of the union.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu } as u32;
        ioctl(&socket, libc::SIOCGIFHWADDR, &mut request).map_err(ask)?;
        // SAFETY: SIOCGIFHWADDR has just written this member of the union.
        let hardware = unsafe { request.ifr_ifru.ifru_hwaddr };
        let mut mac = [0u8; 6];
        for (to, from) in mac.iter_mut().zip(hardware.sa_data) {
            *to = from as u8;
        }
        let ethtool = Ethtool::open(name).map_err(ask)?;
        let (rx_queues, tx_queues) = queues(&ethtool, ifindex);
        Ok(Interface {
            name: name.to_string(),
            ifindex,
            mac,
            mtu,
            up: flags & libc::IFF_UP != 0,
            loopback: flags & libc::IFF_LOOPBACK != 0,
            rx_queues,
            tx_queues,
            driver: ethtool.driver_info().map(|info| info.driver).unwrap_or_default(),
            promiscuous: flags & libc::IFF_PROMISC != 0,
            carrier: flags & libc::IFF_RUNNING != 0,
        })
    }
}

/// The index of the interface `name`, if there is one.
pub fn ifindex(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a string that ends in NUL and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

pub(super) fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn ifreq(name: &str) -> Option<libc::ifreq> {
    // SAFETY: an ifreq is plain old data; all zeroes is one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(request)
}

/// The request's answer, which is never negative.
pub(super) fn ioctl(socket: &OwnedFd, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<i32> {
    // SAFETY: every request used here reads and writes one ifreq, and what its ifru_data points to; both live through
    // the call, and the second is as long as the ethtool command in its first word needs.
    match unsafe { libc::ioctl(socket.as_raw_fd(), number, std::ptr::from_mut(request)) } {
        answer @ 0.. => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Receive and transmit queues in use. A driver that does not say has one of each (`lo`, tun without multiqueue). Those that
/// receive are asked for in two ways: drivers with an XDP program may have more than they tell ethtool.
fn queues(ethtool: &Ethtool, ifindex: u32) -> (u32, u32) {
    let (rx, tx) = ethtool.channels().map_or((1, 1), |it| (it.receiving().max(1), it.transmitting().max(1)));
    let real = Netdev::open().and_then(|mut netdev| netdev.rx_queues(ifindex)).map_or(0, |queues| queues.len() as u32);
    (rx.max(real), tx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_read() {
        let lo = Interface::read("lo").expect("every namespace has lo");
        assert!(lo.loopback && lo.rx_queues == 1 && lo.mac == [0; 6] && lo.ifindex == 1, "{lo:?}");
    }

    #[test]
    fn what_is_not_there_is_said() {
        for name in ["xr-nothing", "a-name-longer-than-sixteen-bytes", "", "nul\0inside"] {
            assert!(matches!(Interface::read(name), Err(EdgeError::NoInterface { .. })), "{name:?}");
        }
    }
}
