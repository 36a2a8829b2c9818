//! Makes peers of the nodes of a table, one for each remote.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::engine::config::{Datapath, TunnelConfig};
use crate::engine::endpoint::Endpoint;
use crate::engine::links;
use crate::engine::peer::{Locator, Peer};
use crate::engine::report::Unusable;
use crate::engine::table::Node;
use crate::engine::{Action, Engine, Now, Report};

impl Engine {
    /// Takes a new table, and plans for the peers that it names.
    pub(in crate::engine) fn hosts_changed(
        &mut self,
        nodes: Vec<Node>,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Report(Report::HostsChanged(nodes.len())));
        self.table = Some(nodes);
        self.unusable.clear();
        self.take_nodes(actions);
        let steps = self.reconcile(actions);
        actions.extend(Action::apply(steps));
        self.send_due(now, actions);
    }

    /// Makes peers of the table's nodes, and reports those that cannot be used.
    pub(in crate::engine) fn take_nodes(&mut self, actions: &mut Vec<Action>) {
        let (Some(outer), Some(table)) = (self.outer, &self.table) else { return };
        let Endpoint { tunnel, datapath, .. } = &self.endpoint;
        let (peers, unusable) = peers(table, tunnel, *datapath, outer.address);
        self.peers.replace(peers);
        for (node, why) in unusable.iter().filter(|one| !self.unusable.contains(one)) {
            actions.push(Action::Report(Report::NodeUnusable { node: node.clone(), why: *why }));
        }
        self.unusable = unusable;
    }
}

/// A peer for every remote of the table but ourselves, and the nodes that cannot be used. `outer` is
/// our own outer address.
pub fn peers(
    nodes: &[Node],
    tunnel: &TunnelConfig,
    datapath: Datapath,
    outer: IpAddr,
) -> (Vec<Peer>, Vec<(Node, Unusable)>) {
    let own = SocketAddr::new(outer, tunnel.port.get());
    let mut networks: BTreeMap<SocketAddr, Vec<IpNet>> = BTreeMap::new();
    let mut unusable = Vec::new();
    let can = datapath.capabilities();
    let carries = |node: &Node| {
        (can.outer_ipv6 || node.remote.is_ipv4())
            && (can.inner_ipv6 || matches!(node.inner, IpNet::V4(_)))
    };
    for node in nodes {
        // All hosts may share one table.
        if is_network(node) && node.remote == own || is_us(node, tunnel) && !is_network(node) {
            continue;
        }
        // Behind NAT it may be our own entry, whose remote is not our address.
        if is_us(node, tunnel) {
            unusable.push((node.clone(), Unusable::HoldsUs));
            continue;
        }
        if node.remote == own {
            unusable.push((node.clone(), Unusable::LeadsBack));
        } else if !carries(node) {
            unusable.push((node.clone(), Unusable::NotIpv4));
        } else {
            networks.entry(node.remote).or_default().push(node.inner);
        }
    }
    let mut marks = BTreeSet::new();
    let peers = networks.into_iter().map(|(remote, networks)| {
        let mut mark = short_hash(own.port(), remote);
        while !marks.insert(mark) {
            mark = mark.wrapping_add(1);
        }
        Peer {
            device: links::device(tunnel, datapath, mark),
            alternate: links::alternate(mark),
            networks: networks.into(),
            isolated: false,
            conflicting_remote: None,
            locator: Locator::Fixed(remote),
            admission: None,
            prover: None,
        }
    });
    (peers.collect(), unusable)
}

fn is_us(node: &Node, tunnel: &TunnelConfig) -> bool {
    node.inner.contains(&IpAddr::V4(tunnel.inner))
        || tunnel.inner6.is_some_and(|net| node.inner.contains(&IpAddr::V6(net.addr())))
}

/// At our own outer address, a network is one that we are the gateway of.
fn is_network(node: &Node) -> bool {
    node.inner.prefix_len() < node.inner.max_prefix_len()
}

/// Tells remotes apart; the few that it does not get the next free number.
fn short_hash(port: u16, remote: SocketAddr) -> u16 {
    let address = match remote.ip() {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            v6.segments().iter().fold(0u32, |sum, s| sum.wrapping_mul(31).wrapping_add((*s).into()))
        }
    };
    // Knuth's multiplicative hashing: the high bits depend on all of the input.
    let mixed =
        (address ^ (u32::from(remote.port()) << 16) ^ u32::from(port)).wrapping_mul(2_654_435_769);
    u16::try_from(mixed >> 16).unwrap_or_default()
}
