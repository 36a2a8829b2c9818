//! What the userspace datapath should have: a UDP socket, a TUN interface, and a table of remotes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::start::Start;
use crate::engine::config::{SourceCheck, TunnelConfig};
use crate::engine::endpoint::{Endpoint, OuterFound, addresses, forwards, mtu, through};
use crate::engine::host::step::{Step, TunStep};
use crate::engine::host::wanted::{LinkKind, Wanted, WantedLink};
use crate::engine::host::{
    Control, Found, LearnSpec, LinkForwarding, PeerTable, RemoteSpec, SocketSpec,
};
use crate::engine::peer::Peer;
use crate::engine::peers::Peers;

/// What the datapath is to have for these peers.
pub fn wanted(
    endpoint: &Endpoint,
    outer: OuterFound,
    peers: &Peers,
    outside: &BTreeSet<IpAddr>,
    found: &Found,
) -> Wanted {
    let tunnel = &endpoint.tunnel;
    let mut forwarding = PeerTable {
        control: match endpoint.control {
            Control::Refuse => None,
            Control::Queue { shape, .. } => Some(shape),
        },
        answering: peers.answering(),
        named: Arc::clone(peers.named_networks()),
        ..PeerTable::default()
    };
    let is_network = tunnel.is_network();
    for peer in peers.iter() {
        // The socket sends to its own family only.
        let of_family =
            |(remote, _): &(SocketAddr, bool)| remote.is_ipv4() == outer.address.is_ipv4();
        for (remote, admitted) in peer.remotes().filter(of_family) {
            let spec = match is_network {
                false => only_remote(tunnel, admitted),
                true => of_networks(peer),
            };
            forwarding.remotes.insert(remote, spec);
        }
    }
    let shared = peers.shared().and_then(|shared| Some((shared, shared.learn()?)));
    if let Some((shared, learn)) = shared {
        forwarding.learn = Some(LearnSpec {
            within: inside(endpoint, peers).collect(),
            except: addresses(tunnel, outside).iter().map(|address| address.local).collect(),
            limit: learn.limit,
            lifetime: learn.lifetime,
            from_anybody: shared.takes_anybody(),
            before: shared.learned().given(),
        });
    }
    let link = WantedLink {
        device: tunnel.device.clone(),
        kind: LinkKind::Tun,
        mtu: mtu(tunnel, outer, found),
        addresses: match is_network {
            false => addresses(tunnel, &BTreeSet::new()),
            true => addresses(tunnel, outside),
        },
        source_check: tunnel.source_check,
        forwards: match forwards(endpoint) {
            LinkForwarding::HostDefault if shared.is_some() => LinkForwarding::AmongClients,
            gateway => gateway,
        },
    };
    // A name that is not looked up yet is somebody's: the interface of an earlier process stays for it.
    let goes_on = peers.servers().is_some() && found.userspace.interface;
    let known = is_network || peers.remotes().next().is_some() || goes_on;
    // It was another peer's at this port, and may have an address that is in somebody's way.
    let is_nobodys = !known && shared.is_none() && found.userspace.interface;
    Wanted {
        unwanted: is_nobodys.then(|| tunnel.device.clone()).into_iter().collect(),
        socket: Some(SocketSpec::of(tunnel, outer.address)),
        forwarding,
        links: known.then_some(link).into_iter().collect(),
        ..Wanted::default()
    }
}

/// The inner addresses of the other ends, of both families.
fn inside(endpoint: &Endpoint, peers: &Peers) -> impl Iterator<Item = IpNet> {
    through(endpoint, peers).into_iter().chain(endpoint.tunnel.inner6.map(IpNet::V6))
}

/// The steps for remotes of a peer that several hosts share, or for members of a hub: one entry of the
/// table each.
pub fn delta(start: Start<'_>) -> Option<Vec<Step>> {
    let Start { outer, peers, changed, found, .. } = start;
    let there = &found.userspace.forwarding.remotes;
    let of_family = changed.remotes.iter().filter(|a| a.is_ipv4() == outer.address.is_ipv4());
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for remote in of_family {
        let wanted = match peers.member(*remote) {
            Some(member) => Some(of_networks(member)),
            None => peers.own_admit(*remote).then(RemoteSpec::default),
        };
        match (wanted, there.get(remote)) {
            (Some(spec), found) if found != Some(&spec) => {
                added.push(TunStep::AddRemote(*remote, spec).into());
            }
            (None, Some(_)) => removed.push(TunStep::RemoveRemote(*remote).into()),
            (Some(_), _) | (None, None) => {}
        }
    }
    // What goes from one remote to another is there at any time.
    Some(added.into_iter().chain(removed).collect())
}

/// The remote of a peer whose networks are known.
fn of_networks(peer: &Peer) -> RemoteSpec {
    RemoteSpec {
        destinations: Arc::clone(&peer.networks),
        sources: Arc::clone(&peer.networks),
        isolated: peer.isolated,
    }
}

/// The remote of a tunnel with one peer: everything goes there, IPv6 only if it is asked for. The
/// kernel sends some IPv6 packets into every interface by itself, and a peer whose datapath is the
/// kernel's, which carries IPv4 only, would take them for authentication packets. The kernel's reverse
/// path filter judges the sources of IPv4 packets that arrive. It has none for IPv6: there, only the
/// networks that this tunnel routes to the peer may be sources.
fn only_remote(tunnel: &TunnelConfig, admitted: bool) -> RemoteSpec {
    let all_v4 = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into();
    let all_v6 = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into();
    let everything: Vec<IpNet> =
        [all_v4].into_iter().chain(tunnel.inner6.map(|_| all_v6)).collect();
    // Nothing is sent to a remote that is not admitted.
    let destinations = if admitted { everything.clone() } else { Vec::new() };
    let sources = match (admitted, tunnel.source_check) {
        (false, _) => Vec::new(),
        (true, SourceCheck::Off | SourceCheck::Loose) => everything.clone(),
        (true, SourceCheck::Strict) if tunnel.gateway.default_route => everything.clone(),
        // A filter that the host as a whole has loosened would let it send as any of the other peers.
        (true, SourceCheck::Strict) if tunnel.beside.is_some() => {
            let own = IpNet::V4(tunnel.inner_peer);
            [own].into_iter().chain(tunnel.gateway.routes.iter().copied()).collect()
        }
        (true, SourceCheck::Strict) => {
            let routes = tunnel.gateway.routes.iter().filter(|net| matches!(net, IpNet::V6(_)));
            let on_link = tunnel.inner6.map(IpNet::V6);
            [all_v4].into_iter().chain(on_link).chain(routes.copied()).collect()
        }
    };
    RemoteSpec { destinations: destinations.into(), sources: sources.into(), isolated: false }
}
