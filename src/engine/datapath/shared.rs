//! What the kernel's datapath should have where all peers share one link: `ipip` without a remote, a route to
//! each peer's networks that names its outer address as the gateway, and rules that tell the peers apart.
//!
//! For a link without a remote the kernel sends to the gateway of the inner packet's route (`ip_tunnel_xmit` in
//! net/ipv4/ip_tunnel.c calls this NBMA), and to the port that the link has for all: a rule puts in that of the
//! peer. Nothing of it needs more than Linux 5.6, and adding a peer adds no interface.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::kernel::{self, Outer4};
use super::start::Start;
use crate::engine::config::{DeviceName, TunnelConfig};
use crate::engine::endpoint::{Endpoint, forwards};
use crate::engine::host::plan::exchange;
use crate::engine::host::step::{HostStep, Step};
use crate::engine::host::wanted::{LinkKind, Mtu, Wanted, WantedLink};
use crate::engine::host::{
    Admitted, Found, InterfaceAddress, LinkForwarding, Route, RouteTarget, RuleSpec, RulesFound,
    SharedLink, gateway, is_labelled,
};
use crate::engine::links;
use crate::engine::networks::v4;
use crate::engine::peer::Peer;
use crate::engine::peers::Peers;

/// What the datapath is to have for these peers.
pub fn wanted(
    endpoint: &Endpoint,
    outer: Outer4,
    mtu: Mtu,
    peers: &Peers,
    found: &Found,
) -> Wanted {
    let tunnel = &endpoint.tunnel;
    let mut rules = kernel::rules(endpoint, outer, peers, found);
    // Before it is there, so that the rules stay when it is.
    rules.inside.insert(tunnel.device.to_string());
    let alternate = tunnel.alternate.address();
    rules.alternate.insert(alternate);
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, tunnel.port.get());
    let shared = SharedLink { device: tunnel.device.clone(), alternate };
    let link = WantedLink {
        device: tunnel.device.clone(),
        kind: LinkKind::Ipip(kernel::link(tunnel, any, outer, Some(alternate))),
        mtu,
        addresses: vec![own_address(tunnel)],
        source_check: tunnel.source_check,
        forwards: forwards(endpoint),
    };
    Wanted {
        rules: Some(RuleSpec { shared: Some(shared), ..rules }),
        admitted: peers.iter().filter_map(admitted).collect(),
        // Before it is rewritten, a packet looks for the first of these (`udp_gro_receive`).
        listeners: [outer.address, alternate]
            .map(|address| kernel::listener(tunnel, Outer4 { address, ..outer }))
            .into(),
        alternate: BTreeSet::from([alternate]),
        links: vec![link],
        unwanted: former(tunnel, alternate, found),
        ..Wanted::default()
    }
}

/// Our inner address alone: a route to a network around it would lead to no peer.
fn own_address(tunnel: &TunnelConfig) -> InterfaceAddress {
    let inner = IpAddr::V4(tunnel.inner);
    InterfaceAddress::new(inner, inner.into())
}

/// What the rules let in of a connected peer.
fn admitted(peer: &Peer) -> Option<Admitted> {
    let SocketAddr::V4(remote) = peer.admitted()? else { return None };
    // Of one without networks nothing could come.
    let networks = Some(apart(&peer.networks)).filter(|networks| !networks.is_empty())?;
    Some(Admitted { networks: Some(networks), ..Admitted::direct(remote) })
}

/// The networks of IPv4. One in another of the same peer has no element of its own.
fn apart(networks: &[IpNet]) -> Arc<[Ipv4Net]> {
    Ipv4Net::aggregate(&v4(networks).collect()).into()
}

/// Links of this tunnel from when each peer had its own, and one that somebody gave another name.
fn former(tunnel: &TunnelConfig, alternate: Ipv4Addr, found: &Found) -> Vec<DeviceName> {
    let renamed = found.interfaces.ipip_to(Ipv4Addr::UNSPECIFIED).filter(|(interface, _)| {
        is_labelled(interface)
            && interface.name != tunnel.device.as_str()
            && interface.link_from(tunnel.port.get()).is_some_and(|link| link.local == alternate)
    });
    let renamed = renamed.filter_map(|(interface, _)| interface.name.parse().ok());
    links::interfaces(found, tunnel).into_iter().chain(renamed).collect()
}

/// The steps for members of a hub: what lets each in, and the routes to the networks behind it.
pub fn delta(start: Start<'_>) -> Option<Vec<Step>> {
    let Start { endpoint, peers, changed, found, .. } = start;
    let RulesFound::Intact(let_in) = &found.rules else { return None };
    if forwards(endpoint) != LinkForwarding::AmongClients {
        return None;
    }
    let index = found.interface(&endpoint.tunnel.device)?.known_index()?;
    let (mut come, mut gone, mut behind) = (Vec::new(), Vec::new(), BTreeMap::new());
    for remote in &changed.remotes {
        let SocketAddr::V4(remote) = *remote else { return None };
        let member = peers.member(remote.into());
        let wanted = member.and_then(admitted);
        let from = Admitted::direct(remote);
        let there = let_in.range(&from..).take_while(|one| one.remote == remote);
        let there: Vec<&Admitted> = there.collect();
        gone.extend(there.iter().filter(|one| Some(**one) != wanted.as_ref()).copied().cloned());
        let networks = member.into_iter().flat_map(|member| member.networks.iter());
        behind.extend(networks.map(|network| (*network, *remote.ip())));
        come.extend(wanted.filter(|wanted| !there.contains(&wanted)));
    }
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for network in &changed.networks {
        let there = Route::of_remote(&found.routes, *network, gateway::MAIN).copied();
        let target = behind.get(network).map(|remote| RouteTarget::Remote(index, *remote));
        let wanted = target.map(|to| gateway::route_into(&endpoint.tunnel, *network, to));
        match (there, wanted) {
            (Some(there), Some(wanted)) if there == wanted => {}
            (Some(_), Some(wanted)) => added.push(HostStep::ReplaceRoute(wanted).into()),
            (None, Some(wanted)) => added.push(HostStep::AddRoute(wanted).into()),
            // Another member may have it, which did not change.
            (Some(_), None) if peers.have_network(*network) => return None,
            (Some(there), None) => removed.push(HostStep::RemoveRoute(there).into()),
            (None, None) => {}
        }
    }
    Some(removed.into_iter().chain(exchange(gone, come)).chain(added).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_in_another_one_of_the_same_peer_is_left_out() {
        let networks = ["10.1.0.0/16", "10.1.2.0/24", "172.28.0.9/32", "fd00::9/128"];
        let networks: Vec<IpNet> = networks.iter().map(|net| net.parse().unwrap()).collect();
        let kept: Vec<String> = apart(&networks).iter().map(ToString::to_string).collect();
        assert_eq!(kept, ["10.1.0.0/16", "172.28.0.9/32"]);
    }
}
