//! Adopts what an earlier process of the same tunnel left running.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::config::TunnelConfig;
use super::host::{
    Encapsulation, Found, Interface, InterfaceKind, Listener, RulesFound, is_labelled,
};
use super::links;
use super::memory::NOBODY;
use super::peer::Peer;
use super::{Action, Engine, Now, Report};

/// Whether an earlier process of this tunnel left something: a link that sends from our port, or the
/// nftables table, without which there is no listener.
pub fn has_leftovers(tunnel: &TunnelConfig, found: &Found) -> bool {
    let from_our_port = |i: &Interface| i.link_from(tunnel.port.get()).is_some();
    let of_peers = links::interfaces(found, tunnel);
    let mut there = of_peers.iter().chain([&tunnel.device]).filter_map(|d| found.interface(d));
    there.any(from_our_port) || found.rules == RulesFound::Unknown
}

impl Engine {
    /// Says at which other port an earlier process of this tunnel listened, before the first event.
    pub fn had_port(&mut self, port: Option<NonZeroU16>) {
        self.owned.former_port = port;
    }

    /// Adopts what an earlier process of this tunnel left running.
    pub(super) fn adopt(&mut self, found: &Found, now: &Now, actions: &mut Vec<Action>) {
        if found.userspace.interface {
            self.adopt_userspace(now, actions);
        }
        let port = self.endpoint.tunnel.port.get();
        for peer in self.peers.own_mut() {
            let Some(interface) = found.interface(&peer.device) else { continue };
            let InterfaceKind::Ipip(link) = interface.kind else { continue };
            let Encapsulation::Fou { source_port, destination_port, .. } = link.encapsulation
            else {
                continue;
            };
            if source_port != port {
                // This is ours from before the port was changed, and so is its listener: nothing guards
                // them any longer.
                if is_labelled(interface) {
                    let old = found.listeners.iter().filter(|l| l.port == source_port);
                    self.owned.listeners.extend(old.filter(|l| l.local == Some(link.local)));
                }
                continue;
            }
            let remote = SocketAddr::new(link.remote.into(), destination_port);
            peer.adopt(remote, &self.memory, now);
            report_adopted(peer, remote, actions);
        }
        // Even if everything else was lost, ours is recognised by these marks: the table's name; a
        // listener on our port that is bound to an address; our alternate address as /32 of the
        // loopback interface.
        self.owned.rules = true;
        // What listens at a former port has nothing to guard it once the rules are those of another one.
        let former = self.owned.former_port.map(NonZeroU16::get);
        let is_ours = |l: &&Listener| l.port == port || Some(l.port) == former;
        let bound = found.listeners.iter().filter(|l| is_ours(l) && l.local.is_some());
        self.owned.listeners.extend(bound);
        // The earlier process may have had links of another kind.
        let tunnel = &self.endpoint.tunnel;
        let of_peers = links::interfaces(found, tunnel).into_iter();
        let of_links = of_peers.chain([tunnel.device.clone()]).filter_map(|device| {
            match found.interface(&device)?.kind {
                InterfaceKind::Ipip(link) => Some(link.local),
                InterfaceKind::Tun | InterfaceKind::Other => None,
            }
        });
        let own = [tunnel.alternate.address()];
        let alternate = self.peers.iter().map(|peer| peer.alternate.address()).chain(own);
        let alternate = alternate.chain(of_links);
        let loopback = found.loopback().map(|index| found.addresses.on(index)).unwrap_or_default();
        let there: BTreeSet<IpNet> = loopback.iter().map(|address| address.value.network).collect();
        let is_there = |alternate: &Ipv4Addr| there.contains(&IpAddr::V4(*alternate).into());
        self.owned.alternate.extend(alternate.filter(is_there));
    }

    /// Adopts the interface and socket of the userspace datapath, in which its packets wait. A remote
    /// that authenticated to the earlier process is still there, and so is the server that had our data.
    pub(super) fn adopt_userspace(&mut self, now: &Now, actions: &mut Vec<Action>) {
        if let Some((name, remote)) = &self.memory.server {
            for peer in self.peers.own_mut().filter(|peer| peer.has_server(name)) {
                peer.adopt(*remote, &self.memory, now);
                report_adopted(peer, *remote, actions);
            }
        }
        let proven = self.memory.authenticated.filter(|(remote, _)| *remote != NOBODY);
        let Some((remote, _)) = proven else { return };
        for peer in self.peers.iter_mut().filter(|p| p.admission.is_some() && !p.is_shared()) {
            peer.adopt(remote, &self.memory, now);
            report_adopted(peer, remote, actions);
        }
    }
}

fn report_adopted(peer: &Peer, remote: SocketAddr, actions: &mut Vec<Action>) {
    actions.push(Action::Report(Report::Adopted(remote)));
    if peer.admitted().is_none() {
        actions.push(Action::Report(Report::Expired(remote)));
    }
}
