//! Something for each of many networks; a lookup costs the length of an address, not their number.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// Networks, of which the longest matching prefix wins.
#[derive(Debug)]
pub struct Networks<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
}

/// Those of IPv4, without bits behind the prefix.
pub fn v4(networks: &[IpNet]) -> impl Iterator<Item = Ipv4Net> {
    networks.iter().filter_map(|network| match network {
        IpNet::V4(network) => Some(network.trunc()),
        IpNet::V6(_) => None,
    })
}

impl<T> Default for Networks<T> {
    fn default() -> Self {
        Networks { v4: PrefixMap::new(), v6: PrefixMap::new() }
    }
}

impl<T> Networks<T> {
    /// Adds a network, or exchanges what is there for it. Bits behind the prefix do not count.
    pub fn insert(&mut self, network: IpNet, value: T) {
        match network {
            IpNet::V4(network) => drop(self.v4.insert(network.trunc(), value)),
            IpNet::V6(network) => drop(self.v6.insert(network.trunc(), value)),
        }
    }

    /// Removes a network; those inside and around it stay.
    pub fn remove(&mut self, network: IpNet) {
        match network {
            IpNet::V4(network) => drop(self.v4.remove(&network.trunc())),
            IpNet::V6(network) => drop(self.v6.remove(&network.trunc())),
        }
    }

    /// What is there for the smallest network around an address.
    pub fn get(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&address.into()).map(|(_, value)| value),
            IpAddr::V6(address) => self.v6.get_lpm(&address.into()).map(|(_, value)| value),
        }
    }

    /// What is there for this network itself.
    pub fn get_exact(&self, network: IpNet) -> Option<&T> {
        match network {
            IpNet::V4(network) => self.v4.get(&network.trunc()),
            IpNet::V6(network) => self.v6.get(&network.trunc()),
        }
    }
}
