//! Our side of the outer packets.

use std::net::{IpAddr, Ipv4Addr};

use super::names::DeviceName;

/// Our side of the outer packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outer {
    /// This address, on whatever interface it is.
    Address(IpAddr),
    /// This address; listener and tunnel are bound to the interface.
    AddressOn(IpAddr, DeviceName),
    /// An address of the interface, followed when it changes; listener and tunnel are bound to the
    /// interface. Of several: that of a client's route to its server, otherwise the one in use
    /// while it is there, otherwise the first that is good beyond the link.
    Device(DeviceName),
    /// Whatever address the kernel's route to the server has as its source (`-b @auto`, clients
    /// only): the tunnel follows when the machine moves to another network or interface.
    Route,
}

impl Outer {
    /// The interface that listener and tunnel are bound to.
    pub fn device(&self) -> Option<&DeviceName> {
        match self {
            Outer::Address(_) | Outer::Route => None,
            Outer::AddressOn(_, device) | Outer::Device(device) => Some(device),
        }
    }

    /// The address that outer packets come from, if it is always the same.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Outer::Address(address) | Outer::AddressOn(address, _) => Some(*address),
            Outer::Device(_) | Outer::Route => None,
        }
    }
}

/// The alternate local address of the link, and when it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlternateAddress {
    /// Only when the outer address is taken by another tunnel to the same remote.
    WhenTaken(Ipv4Addr),
    /// `--force-fou-local-ip-alt`.
    Always(Ipv4Addr),
}

impl AlternateAddress {
    /// The address, whenever it is used.
    pub fn address(self) -> Ipv4Addr {
        match self {
            AlternateAddress::WhenTaken(address) | AlternateAddress::Always(address) => address,
        }
    }
}
