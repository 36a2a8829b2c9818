//! Plans a change of a few of many peers on a host that is as it was planned for: their entries of
//! a table or their links, what lets them in, and the routes to the networks behind them. It is the
//! part of a whole plan that concerns them, at a cost that does not grow with the number of the
//! others.

use std::net::IpAddr;

use ipnet::IpNet;

pub use super::start::Start;
use super::{fast, kernel, shared, tun};
use crate::engine::config::Datapath;
use crate::engine::endpoint::{Endpoint, is_inside};
use crate::engine::host::step::{HostStep, Step};
use crate::engine::host::{RouteTarget, gateway};
use crate::engine::peers::Changed;

/// More of them are planned for with all others.
const A_FEW: usize = 16;

/// The steps, in the order of a whole plan; `None` where more than the changed peers depends on them.
pub fn delta(start: Start<'_>) -> Option<Vec<Step>> {
    let Start { endpoint, changed, .. } = start;
    if !endpoint.tunnel.is_network() || changed.remotes.len() > A_FEW || is_shared(&start) {
        return None;
    }
    let steps = match endpoint.datapath {
        Datapath::Kernel => kernel::delta(start)?,
        Datapath::KernelShared => shared::delta(start)?,
        Datapath::Tun => {
            let (mut steps, added) = routes(&start)?;
            steps.extend(tun::delta(start)?);
            steps.extend(added);
            steps
        }
    };
    let (before, after) = fast::delta(&start);
    Some(before.into_iter().chain(steps).chain(after).collect())
}

/// Whether addresses, routes or rules that others use, too, follow from the change: a network around an
/// outer address has its route in a table of its own, and no address on a link.
fn is_shared(Start { endpoint, outer, peers, changed, .. }: &Start<'_>) -> bool {
    let config = &endpoint.tunnel.gateway;
    let Changed { remotes, networks, links: _ } = changed;
    let is_around = |remote: &IpAddr| {
        is_inside(endpoint, peers, *remote)
            || config.routes.iter().chain(networks).any(|net| net.contains(remote))
    };
    let is_masqueraded = |net: &IpNet| config.masquerade.is_some() && !is_on_link(endpoint, net);
    config.default_route
        || remotes.iter().any(|remote| is_around(&remote.ip()))
        || networks.iter().any(|net| {
            net.contains(&outer.address)
                || peers.members_within(*net).next().is_some()
                || is_masqueraded(net)
        })
}

/// Whether an address on the link of the tunnel leads to a network.
fn is_on_link(endpoint: &Endpoint, network: &IpNet) -> bool {
    let tunnel = &endpoint.tunnel;
    IpNet::V4(tunnel.inner_peer).contains(network)
        || tunnel.inner6.is_some_and(|own| IpNet::V6(own).contains(network))
}

/// The routes to remove and those to add, where all peers share one link; `None` while it is not there.
fn routes(start: &Start<'_>) -> Option<(Vec<Step>, Vec<Step>)> {
    let Start { endpoint, peers, changed, found, .. } = start;
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    let mut behind = changed.networks.iter().filter(|net| !is_on_link(endpoint, net)).peekable();
    if behind.peek().is_none() {
        return Some((removed, added));
    }
    let index = found.interface(&endpoint.tunnel.device)?.index;
    for network in behind {
        let route = gateway::route_into(&endpoint.tunnel, *network, RouteTarget::Interface(index));
        match (peers.have_network(*network), found.routes.contains(&route)) {
            (true, false) => added.push(HostStep::AddRoute(route).into()),
            (false, true) => removed.push(HostStep::RemoveRoute(route).into()),
            (true, true) | (false, false) => {}
        }
    }
    Some((removed, added))
}
