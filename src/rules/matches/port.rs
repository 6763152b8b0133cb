//! An inclusive range of ports: [`PortRange`].

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// First.
    pub low: u16,
    /// Last; not below `low`.
    pub high: u16,
    /// `!`
    pub invert: bool,
}

impl PortRange {
    /// Every port.
    pub const ANY: PortRange = PortRange { low: 0, high: u16::MAX, invert: false };

    /// Whether `port` fits, `!` included.
    #[inline]
    pub const fn holds(&self, port: u16) -> bool {
        (self.low <= port && port <= self.high) != self.invert
    }
}

impl Default for PortRange {
    fn default() -> PortRange {
        PortRange::ANY
    }
}
