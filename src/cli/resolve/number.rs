//! The number of a tunnel gives defaults for everything that must differ between the tunnels of one
//! host.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use super::error::UsageError;
use crate::engine::config::{DeviceName, numbered};

const PORT_BASE: u32 = 10000;
const SERVER_INNER: Ipv4Addr = Ipv4Addr::new(172, 28, 0, 0);
/// A server takes these queue numbers for its tunnel's number too.
const NUMBERING_QUEUES: std::ops::RangeInclusive<u16> = 1..=999;

/// The number of a tunnel on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number(pub u32);

impl Number {
    /// Takes `number` if it was given, otherwise the number of the `queue`, if the tunnel has one.
    pub fn new(number: Option<u32>, queue: Option<u16>) -> Self {
        let queue = queue.filter(|queue| NUMBERING_QUEUES.contains(queue));
        Number(number.or(queue.map(u32::from)).unwrap_or(0))
    }

    pub fn device(self) -> Result<DeviceName, UsageError> {
        format!("ipipou{}", self.0).parse().map_err(|_| self.too_big("tunl-dev", 999_999_999))
    }

    pub fn port(self) -> Result<NonZeroU16, UsageError> {
        let port = self.0.checked_add(PORT_BASE).and_then(|port| u16::try_from(port).ok());
        port.and_then(NonZeroU16::new)
            .ok_or_else(|| self.too_big("fou-local-port", u32::from(u16::MAX) - PORT_BASE))
    }

    pub fn queue(self) -> Result<u16, UsageError> {
        self.below_65536("queue-number")
    }

    /// Returns the name of the nftables table. Unlike the other defaults, it exists for every
    /// number.
    pub fn table(self, name: &str) -> String {
        format!("{name}-{}", self.0)
    }

    /// Returns the alternate address, which is in 172.29.0.0/16.
    pub fn alternate(self) -> Result<Ipv4Addr, UsageError> {
        self.below_65536("fou-local-ip-alt").map(numbered::alternate)
    }

    /// Returns a server's address inside the tunnel. Its peer's, one more, is in 172.28.0.0/16 too.
    pub fn server_inner(self) -> Result<Ipv4Addr, UsageError> {
        const MAX: u32 = u16::MAX as u32 / 2;
        match self.0 {
            n if n <= MAX => Ok(Ipv4Addr::from_bits(SERVER_INNER.to_bits() + 2 * n)),
            _ => Err(self.too_big("tunl-ip", MAX)),
        }
    }

    /// Returns the firewall mark and routing table of a tunnel with `--default-route`. Numbers
    /// above 65535 share one.
    pub fn mark(self) -> u32 {
        numbered::mark(u16::try_from(self.0).unwrap_or(u16::MAX))
    }

    fn below_65536(self, option: &'static str) -> Result<u16, UsageError> {
        u16::try_from(self.0).map_err(|_| self.too_big(option, u16::MAX.into()))
    }

    fn too_big(self, option: &'static str, max: u32) -> UsageError {
        UsageError::NumberTooBig { number: self.0, option, max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_defaults_to_that_of_the_queue() {
        for (number, queue, expected) in [
            (None, None, 0),
            (Some(3), None, 3),
            (Some(3), Some(7), 3),
            (Some(0), Some(7), 0),
            (None, Some(7), 7),
            (None, Some(999), 999),
            (None, Some(1000), 0),
            (None, Some(0), 0),
        ] {
            assert_eq!(Number::new(number, queue), Number(expected));
        }
    }

    #[test]
    fn a_number_beyond_the_range_of_a_default_is_refused() {
        assert_eq!(Number(55_535).port().unwrap().get(), 65_535);
        assert!(Number(55_536).port().is_err());
        assert!(Number(u32::MAX).port().is_err());
        assert_eq!(Number(32_767).server_inner().unwrap(), Ipv4Addr::new(172, 28, 255, 254));
        assert!(Number(32_768).server_inner().is_err());
        assert_eq!(Number(65_535).alternate().unwrap(), Ipv4Addr::new(172, 29, 255, 255));
        assert!(Number(65_536).alternate().is_err());
        assert!(Number(65_536).queue().is_err());
        assert_eq!(Number(65_535).mark(), 0x6970_ffff);
        assert_eq!(Number(65_536).mark(), 0x6970_ffff);
        assert_eq!(Number(999_999_999).device().unwrap().as_str(), "ipipou999999999");
        assert!(Number(1_000_000_000).device().is_err());
    }
}
