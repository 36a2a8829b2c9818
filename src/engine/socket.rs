//! The UDP socket of the userspace datapath.

use std::fmt;
use std::net::SocketAddr;

use super::config::DeviceName;

/// A UDP socket as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSpec {
    pub address: SocketAddr,
    /// Bound to this interface (`SO_BINDTODEVICE`).
    pub device: Option<DeviceName>,
    /// Firewall mark of what it sends (`SO_MARK`).
    pub mark: Option<u32>,
    /// UDP checksum of what it sends over IPv4; `None` leaves it to the kernel.
    pub checksum: Option<bool>,
}

impl fmt::Display for SocketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.device.as_ref().map_or(Ok(()), |device| write!(f, " on {device}"))
    }
}
