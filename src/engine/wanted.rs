//! What the host should have, given the peers and who proved what.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::config::{Outer, PrivateAddress, RulesConfig, TunnelConfig};
use super::host::{Admitted, Encapsulation, Found, InterfaceKind, IpipLink, Listener};
use super::peer::Peer;
use super::plan::{Control, RuleSpec, Wanted, WantedLink};

/// TTL of the outer packets. The kernel's default, the inner packet's TTL, would let a routing
/// protocol's packets (TTL 1) die at the first hop.
const OUTER_TTL: u8 = 64;

/// Our side of the outer packets, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterFound {
    pub address: Ipv4Addr,
    /// Index of the interface that listener and tunnel are bound to.
    pub bound_to: Option<u32>,
}

/// Our side of the outer packets; `None` while the host has no such address or interface.
pub fn find_outer(outer: &Outer, found: &Found) -> Option<OuterFound> {
    match outer {
        Outer::Address(address) => Some(OuterFound { address: *address, bound_to: None }),
        Outer::AddressOn(address, device) => {
            let bound_to = Some(found.interface(device)?.index);
            Some(OuterFound { address: *address, bound_to })
        }
        Outer::Device(device) => {
            let index = found.interface(device)?.index;
            let address = found.first_address(index)?;
            Some(OuterFound { address, bound_to: Some(index) })
        }
        Outer::Route => found.route_source.map(|address| OuterFound { address, bound_to: None }),
    }
}

/// What all tunnels of a process share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub outer: Outer,
    pub port: u16,
    pub rules: RulesConfig,
    pub control: Control,
}

/// Everything that `peers` need at `endpoint`, whose address is `outer` now.
pub fn wanted(endpoint: &Endpoint, outer: OuterFound, peers: &[Peer], found: &Found) -> Wanted {
    let port = endpoint.port;
    let listener = |local| Listener { port, local: Some(local), bound_to: outer.bound_to };
    let mut wanted = Wanted {
        rules: Some(RuleSpec {
            table: endpoint.rules.table.clone(),
            outer: outer.address,
            port,
            private: peers.iter().map(|p| p.tunnel.private.address()).collect(),
            control: endpoint.control,
            counters: endpoint.rules.counters,
        }),
        listeners: BTreeSet::from([listener(outer.address)]),
        ..Wanted::default()
    };
    for peer in peers {
        let Some(remote) = peer.remote() else {
            wanted.unwanted.push(peer.tunnel.device.clone());
            continue;
        };
        let private = private_for(peer, *remote.ip(), outer, found);
        if let Some(address) = private {
            wanted.private.insert(address);
            wanted.listeners.insert(listener(address));
        }
        if let Some(remote) = peer.admitted() {
            wanted.admitted.insert(Admitted { remote, private });
        }
        wanted.links.push(link(&peer.tunnel, remote, outer, private));
    }
    wanted
}

/// The private address, when this peer's link needs one: the kernel tells `ipip` links apart by
/// local and remote address only (`ip_tunnel_find` in net/ipv4/ip_tunnel.c).
fn private_for(
    peer: &Peer,
    remote: Ipv4Addr,
    outer: OuterFound,
    found: &Found,
) -> Option<Ipv4Addr> {
    let private = match peer.tunnel.private {
        PrivateAddress::Always(address) => return Some(address),
        PrivateAddress::WhenTaken(address) => address,
    };
    let mut ipip = found.interfaces.iter().filter_map(|i| match i.kind {
        InterfaceKind::Ipip(link) => Some((i.name.as_str(), link)),
        InterfaceKind::Other => None,
    });
    // Once private, it stays so while the remote stays: no need to disturb a working tunnel.
    let needed = peer.taken_for == Some(remote)
        || ipip.any(|(name, link)| {
            let own = name == peer.tunnel.device.as_str();
            let local = if own { private } else { outer.address };
            link.remote == remote && link.local == local
        });
    needed.then_some(private)
}

fn link(
    tunnel: &TunnelConfig,
    remote: SocketAddrV4,
    outer: OuterFound,
    private: Option<Ipv4Addr>,
) -> WantedLink {
    WantedLink {
        device: tunnel.device.clone(),
        link: IpipLink {
            local: private.unwrap_or(outer.address),
            remote: *remote.ip(),
            bound_to: outer.bound_to,
            ttl: OUTER_TTL,
            path_mtu_discovery: true,
            encapsulation: Encapsulation::Fou {
                source_port: tunnel.port.get(),
                destination_port: remote.port(),
                // Without the flag the kernel sends checksum 0. And so it must where the rules
                // rewrite the source: they would spoil the sum that covers an inner one which is
                // not yet computed (`inet_proto_csum_replace4` with CHECKSUM_PARTIAL, as
                // `udp_set_csum` leaves it).
                checksum: tunnel.checksum.unwrap_or(false) && private.is_none(),
            },
        },
        inner: tunnel.inner,
        inner_peer: tunnel.inner_peer,
        source_check: tunnel.source_check,
    }
}
