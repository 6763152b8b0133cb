//! What an operator can set: [`Settings`], under the sysctls' own names (`net.netfilter.nf_conntrack_*` without that
//! prefix) with Linux's defaults.
//!
//! Read at start and swapped whole at run time. A timeout applies from the next packet that refreshes an entry, as in
//! Linux. `max` can be changed at run time up to the capacity the table was built with.

use serde::{Deserialize, Deserializer, Serialize};

use super::tcp::TcpState;

/// The conntrack sysctls. Timeouts are in seconds; a switch is written `true`/`false` or `1`/`0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Most entries, which is also how many are preallocated at start.
    pub max: usize,
    /// Most expectations at a time (connections that helpers have announced).
    pub expect_max: usize,
    /// Packets with a wrong transport checksum are INVALID.
    #[serde(deserialize_with = "switch")]
    pub checksum: bool,
    /// Packets and bytes are counted per entry and direction (entries made while this is off have no counters).
    #[serde(deserialize_with = "switch")]
    pub acct: bool,
    /// When an entry was confirmed is kept, if this is on at start.
    #[serde(deserialize_with = "switch")]
    pub timestamp: bool,
    /// A connection whose beginning was not seen is picked up from an ACK.
    #[serde(deserialize_with = "switch")]
    pub tcp_loose: bool,
    /// Out-of-window segments are not INVALID.
    #[serde(deserialize_with = "switch")]
    pub tcp_be_liberal: bool,
    /// An RST below what the peer has acknowledged is not INVALID.
    #[serde(deserialize_with = "switch")]
    pub tcp_ignore_invalid_rst: bool,
    /// Repetitions of one segment after which `tcp_timeout_max_retrans` applies.
    pub tcp_max_retrans: u8,
    /// SYN seen.
    pub tcp_timeout_syn_sent: u32,
    /// SYN/ACK seen.
    pub tcp_timeout_syn_recv: u32,
    /// Open.
    pub tcp_timeout_established: u32,
    /// First FIN seen.
    pub tcp_timeout_fin_wait: u32,
    /// First FIN acknowledged.
    pub tcp_timeout_close_wait: u32,
    /// Second FIN seen.
    pub tcp_timeout_last_ack: u32,
    /// Second FIN acknowledged.
    pub tcp_timeout_time_wait: u32,
    /// RST seen.
    pub tcp_timeout_close: u32,
    /// `tcp_max_retrans` repetitions, or a zero window.
    pub tcp_timeout_max_retrans: u32,
    /// Data not yet acknowledged.
    pub tcp_timeout_unacknowledged: u32,
    /// One-way or young UDP (and UDP-Lite).
    pub udp_timeout: u32,
    /// UDP answered and still in use after two seconds.
    pub udp_timeout_stream: u32,
    /// ICMP queries.
    pub icmp_timeout: u32,
    /// ICMPv6 queries.
    pub icmpv6_timeout: u32,
    /// GRE without a reply.
    pub gre_timeout: u32,
    /// GRE with replies.
    pub gre_timeout_stream: u32,
    /// Every protocol without a tracker of its own.
    pub generic_timeout: u32,
    /// SCTP: INIT, ABORT or the end of a shutdown seen.
    pub sctp_timeout_closed: u32,
    /// SCTP: INIT ACK seen.
    pub sctp_timeout_cookie_wait: u32,
    /// SCTP: COOKIE ECHO seen.
    pub sctp_timeout_cookie_echoed: u32,
    /// SCTP: open.
    pub sctp_timeout_established: u32,
    /// SCTP: SHUTDOWN from the original side.
    pub sctp_timeout_shutdown_sent: u32,
    /// SCTP: SHUTDOWN from the replying side.
    pub sctp_timeout_shutdown_recd: u32,
    /// SCTP: SHUTDOWN ACK seen.
    pub sctp_timeout_shutdown_ack_sent: u32,
    /// SCTP: a HEARTBEAT without an association.
    pub sctp_timeout_heartbeat_sent: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            max: 262_144,
            expect_max: 4096,
            checksum: true,
            acct: false,
            timestamp: false,
            tcp_loose: true,
            tcp_be_liberal: false,
            tcp_ignore_invalid_rst: false,
            tcp_max_retrans: 3,
            tcp_timeout_syn_sent: 120,
            tcp_timeout_syn_recv: 60,
            tcp_timeout_established: 432_000,
            tcp_timeout_fin_wait: 120,
            tcp_timeout_close_wait: 60,
            tcp_timeout_last_ack: 30,
            tcp_timeout_time_wait: 120,
            tcp_timeout_close: 10,
            tcp_timeout_max_retrans: 300,
            tcp_timeout_unacknowledged: 300,
            udp_timeout: 30,
            udp_timeout_stream: 120,
            icmp_timeout: 30,
            icmpv6_timeout: 30,
            gre_timeout: 30,
            gre_timeout_stream: 180,
            generic_timeout: 600,
            sctp_timeout_closed: 10,
            sctp_timeout_cookie_wait: 3,
            sctp_timeout_cookie_echoed: 3,
            sctp_timeout_established: 210,
            sctp_timeout_shutdown_sent: 3,
            sctp_timeout_shutdown_recd: 3,
            sctp_timeout_shutdown_ack_sent: 3,
            sctp_timeout_heartbeat_sent: 30,
        }
    }
}

/// Linux has no sysctl for this one.
const TCP_TIMEOUT_SYN_SENT2: u32 = 120;

impl Settings {
    /// The largest `max`: an entry's number and its direction share 32 bits, with room for the marks of lists.
    pub const MAX_LIMIT: usize = (1 << 31) - 8;

    /// The largest `expect_max`.
    pub const EXPECT_LIMIT: usize = 1 << 24;

    /// Whether the tracker can be built with these.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn check(&self) -> Result<(), String> {
        if self.max == 0 {
            return Err(
                "nf_conntrack_max = 0: the table has a fixed size; give the number of entries, e.g. 262144".into()
            );
        }
        if self.max > Settings::MAX_LIMIT {
            return Err(format!("nf_conntrack_max = {}: more than {} entries", self.max, Settings::MAX_LIMIT));
        }
        if !(1..=Settings::EXPECT_LIMIT).contains(&self.expect_max) {
            return Err(format!(
                "nf_conntrack_expect_max = {}: from 1 to {} expectations",
                self.expect_max,
                Settings::EXPECT_LIMIT
            ));
        }
        Ok(())
    }

    /// The timeout of a TCP state, in seconds (nf_conntrack_proto_tcp.c, `tcp_timeouts`).
    #[inline]
    pub(super) fn tcp_timeout(&self, state: TcpState) -> u32 {
        match state {
            TcpState::None | TcpState::SynSent => self.tcp_timeout_syn_sent,
            TcpState::SynRecv => self.tcp_timeout_syn_recv,
            TcpState::Established => self.tcp_timeout_established,
            TcpState::FinWait => self.tcp_timeout_fin_wait,
            TcpState::CloseWait => self.tcp_timeout_close_wait,
            TcpState::LastAck => self.tcp_timeout_last_ack,
            TcpState::TimeWait => self.tcp_timeout_time_wait,
            TcpState::Close => self.tcp_timeout_close,
            TcpState::SynSent2 => TCP_TIMEOUT_SYN_SENT2,
        }
    }
}

/// A sysctl's 0 and 1 mean what `false` and `true` do.
fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected true, false, 1 or 0")]
    enum Switch {
        Bool(bool),
        Number(u8),
    }
    match Switch::deserialize(deserializer)? {
        Switch::Bool(on) => Ok(on),
        Switch::Number(number @ 0..=1) => Ok(number == 1),
        Switch::Number(other) => Err(serde::de::Error::custom(format!("expected true, false, 1 or 0, not {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_sysctls_and_unknown_ones_are_refused() {
        let settings: Settings =
            toml::from_str("max = 1000\nchecksum = 0\ntcp_loose = false\ntcp_timeout_established = 7200")
                .expect("valid");
        assert_eq!((settings.max, settings.checksum, settings.tcp_loose), (1000, false, false));
        assert_eq!((settings.tcp_timeout_established, settings.udp_timeout), (7200, 30));
        assert!(toml::from_str::<Settings>("tcp_timeout_establish = 7200").is_err());
        assert!(toml::from_str::<Settings>("checksum = 2").is_err());
    }

    #[test]
    fn a_table_of_impossible_size_is_refused() {
        assert!(Settings::default().check().is_ok());
        assert!(Settings { max: 0, ..Settings::default() }.check().is_err());
        assert!(Settings { max: usize::MAX, ..Settings::default() }.check().is_err());
    }

    /// The sysctls of the machine the test runs on, where there are any, have the names and (untouched) the defaults.
    #[test]
    fn every_name_is_a_sysctl_of_the_running_kernel() {
        if !std::path::Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() {
            return;
        }
        let json = serde_json::to_value(Settings::default()).expect("serializable");
        for name in json.as_object().expect("a map").keys() {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            assert!(std::path::Path::new(&path).exists(), "{path}");
        }
    }
}
