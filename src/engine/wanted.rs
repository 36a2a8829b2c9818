//! Works out what the host should have for the peers, from where each is and what it has proved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use super::config::Datapath;
use super::datapath;
use super::endpoint::{Endpoint, OuterFound, mtu, through};
use super::host::wanted::Wanted;
use super::host::{Found, gateway};
use super::memory::Settings;
use super::peer::Peer;
use super::peers::Peers;

/// Everything that the remotes need at `endpoint`, whose address is `outer` now.
pub fn wanted(
    endpoint: &Endpoint,
    outer: OuterFound,
    peers: &Peers,
    found: &Found,
    before: &BTreeMap<String, Settings>,
) -> Wanted {
    let own = endpoint.tunnel.is_network().then_some(outer.address);
    let outside: BTreeSet<IpAddr> = peers
        .remotes()
        .map(|(remote, _)| remote)
        .chain(peers.answering())
        .map(|r| r.ip())
        .chain(own)
        .collect();
    let outer4 = |address| datapath::kernel::Outer4 { address, bound_to: outer.bound_to };
    let mtu = || mtu(&endpoint.tunnel, outer, found);
    let mut wanted = match (endpoint.datapath, outer.address) {
        (Datapath::Kernel, IpAddr::V4(address)) => {
            datapath::kernel::wanted(endpoint, outer4(address), mtu(), peers, &outside, found)
        }
        (Datapath::KernelShared, IpAddr::V4(address)) => {
            datapath::shared::wanted(endpoint, outer4(address), mtu(), peers, found)
        }
        // Nobody can ask for it: `datapath` is the other then.
        (Datapath::Kernel | Datapath::KernelShared, IpAddr::V6(_)) => Wanted::default(),
        (Datapath::Tun, _) => datapath::tun::wanted(endpoint, outer, peers, &outside, found),
    };
    let extent = extent(endpoint, outer, &wanted, peers, outside, found);
    wanted.gateway = gateway::wanted(&endpoint.tunnel, &extent, found, before);
    wanted
}

fn extent(
    endpoint: &Endpoint,
    outer: OuterFound,
    wanted: &Wanted,
    peers: &Peers,
    outside: BTreeSet<IpAddr>,
    found: &Found,
) -> gateway::Extent {
    let tunnel = &endpoint.tunnel;
    let going = wanted.unwanted.iter().filter(|device| found.interface(device).is_some());
    let own: Vec<_> =
        [IpNet::V4(tunnel.inner_peer)].into_iter().chain(tunnel.inner6.map(IpNet::V6)).collect();
    let shared = endpoint.datapath == Datapath::KernelShared;
    let is_around = |net: &IpNet| gateway::holds_any(net, &outside);
    let is_on_link = |net: &IpNet| own.iter().any(|own| own.contains(net));
    let of_peers = |is_routed: &dyn Fn(&IpNet) -> bool| -> Vec<_> {
        let all = peers.iter().flat_map(|peer| peer.networks.iter().map(move |net| (peer, *net)));
        let routed = all.filter(|(_, net)| is_routed(net));
        routed.map(|(peer, net)| (net, peer.device.clone(), gateway_to(peer, shared))).collect()
    };
    let routed = match (tunnel.is_network(), endpoint.datapath) {
        (false, _) => Vec::new(),
        (true, Datapath::Kernel) => of_peers(&is_around),
        (true, Datapath::KernelShared) => of_peers(&|_| true),
        (true, Datapath::Tun) => {
            let around = own.iter().filter(|net| is_around(net));
            let around = around.map(|net| (net.trunc(), tunnel.device.clone(), None));
            of_peers(&|net| !is_on_link(net)).into_iter().chain(around).collect()
        }
    };
    // What no peer has of the network; in userspace the interface itself answers for that.
    let of_kernel = tunnel.is_network() && endpoint.datapath != Datapath::Tun;
    let unreachable = Some(tunnel.inner_peer).filter(|net| of_kernel && net.prefix_len() < 32);
    let by_way = found.way.map(|way| way.interface).filter(|_| !tunnel.is_network());
    let by_address = || found.interface_of(outer.address).map(|interface| interface.index);
    let uplink = by_way.or(outer.bound_to).or_else(by_address);
    // An interface that is kept for a name which is not looked up yet carries nothing: what led into it would
    // keep the name from being looked up.
    let leads = wanted.links.iter().filter(|_| tunnel.is_network() || peers.is_anywhere());
    gateway::Extent {
        devices: leads.map(|link| link.device.clone()).collect(),
        going: going.cloned().collect(),
        through: through(endpoint, peers),
        routed,
        unreachable,
        uplink,
        outer: outside,
    }
}

/// What a route to a peer on a `shared` link has to name as its gateway.
fn gateway_to(peer: &Peer, shared: bool) -> Option<Ipv4Addr> {
    match peer.remote() {
        Some(SocketAddr::V4(remote)) if shared => Some(*remote.ip()),
        Some(SocketAddr::V4(_) | SocketAddr::V6(_)) | None => None,
    }
}
