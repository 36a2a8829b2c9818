//! Refuses sources at which no remote can be, whatever their packets prove: a tunnel to such an address
//! would lead nowhere, to everybody, or into itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use super::Engine;
use super::endpoint::is_inside;
use super::host::{Found, InterfaceAddress};
use crate::wire::address::is_one_host;

/// The addresses of this host, and those that stand for all hosts of its networks, for a lookup with each
/// packet that may be an authentication.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses(BTreeSet<IpAddr>);

impl OwnAddresses {
    /// Those of a reading.
    pub fn of(found: &Found) -> Self {
        let mut own = OwnAddresses::default();
        found.addresses.iter().for_each(|address| own.add(&address.value));
        own
    }

    /// Adds one, which may have come after it.
    pub fn add(&mut self, address: &InterfaceAddress) {
        self.0.insert(address.local);
        match address.network {
            IpNet::V4(net) if net.prefix_len() <= 30 => {
                self.0.extend([net.broadcast(), net.network()].map(IpAddr::V4));
            }
            IpNet::V4(_) | IpNet::V6(_) => {}
        }
    }
}

impl Engine {
    /// Whether an outer packet from there is forged, or came out of the tunnel. The kernel refuses
    /// some of them by itself; not all, and not on every datapath.
    pub(super) fn cannot_be_remote(&self, from: SocketAddr) -> bool {
        let ip = from.ip();
        let of_no_host = from.port() == 0 || is_of_no_host(ip);
        let inside = || {
            let tunnel = &self.endpoint.tunnel;
            let own = ip == IpAddr::V4(tunnel.inner)
                || tunnel.inner6.is_some_and(|own| IpNet::V6(own).contains(&ip));
            // What is behind members may be around their own remotes; the datapaths take nothing that came
            // out of a tunnel.
            let behind = self.hub.is_none() && is_inside(&self.endpoint, &self.peers, ip);
            own || behind || IpNet::V4(tunnel.inner_peer).contains(&ip)
        };
        of_no_host || inside() || self.own_addresses.0.contains(&ip)
    }
}

/// Whether no host on a network has this address: it is not a unicast address, or it is reserved
/// (240.0.0.0/4, RFC 6890).
fn is_of_no_host(ip: IpAddr) -> bool {
    const RESERVED: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 0);
    !is_one_host(ip) || matches!(ip, IpAddr::V4(v4) if v4 >= RESERVED)
}
