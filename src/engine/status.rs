//! Puts together the status of a tunnel, for `ipipou show`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::config::ServerName;
use super::host::{Interface, InterfaceKind, Traffic};
use super::peer::Peer;
use super::servers::Place;
use super::{Connection, Engine, Now, Status};

/// One of a client's servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// What it is called in the configuration.
    pub name: ServerName,
    /// Where it is; `None`: its name was not looked up.
    pub remote: Option<SocketAddr>,
    /// Whether it has our data.
    pub is_in_use: bool,
}

impl Engine {
    /// The tunnel as it stands.
    pub fn status(&self) -> Status {
        let tunnel = &self.endpoint.tunnel;
        let interfaces = || self.interfaces();
        let local = interfaces().find_map(|i| match i.kind {
            InterfaceKind::Ipip(link) => Some(link.local),
            InterfaceKind::Tun | InterfaceKind::Other => None,
        });
        let only = self.peers.iter().next().filter(|_| !tunnel.is_network());
        let of_peer = |peer: &Peer| {
            let networks = peer.networks.clone();
            peer.remotes().map(move |(remote, _)| (remote, networks.to_vec())).collect::<Vec<_>>()
        };
        let remotes = tunnel.is_network().then(|| self.peers.iter().flat_map(of_peer).collect());
        Status {
            device: tunnel.device.to_string(),
            outer: self.outer.map(|o| SocketAddr::new(o.address, tunnel.port.get())),
            alternate: local.filter(|&l| l == tunnel.alternate.address()).map(IpAddr::V4),
            remote: only.and_then(Peer::remote),
            remotes,
            admitted: only.is_none_or(|peer| peer.admitted().is_some()),
            inner: tunnel.inner.into(),
            inner_peer: tunnel.inner_peer.into(),
            inner6: tunnel.inner6.map(IpNet::V6),
            up: interfaces().any(|i| i.up),
            last_authentication: self.peers.iter().filter_map(Peer::last_authentication).max(),
            contact: only.filter(|peer| peer.prover.is_some()).map(|_| self.heard.contact()),
            last_data: self.heard.last_data(),
            last_reply: self.heard.last_reply(),
            traffic: self.traffic(),
        }
    }

    /// What a client's server has told it; `None` where it tells nothing.
    pub fn connection(&self, now: &Now) -> Option<Connection> {
        self.peers.iter().find_map(|peer| peer.prover.as_ref()?.connection(now))
    }

    /// The servers of a client in the order in which they are tried; none on a server.
    pub fn servers(&self) -> Vec<ServerStatus> {
        let Some(servers) = self.peers.servers() else { return Vec::new() };
        let in_use = servers.number_in_use();
        let status = |(number, place): (usize, &Place)| ServerStatus {
            name: place.name.clone(),
            remote: place.remote(),
            is_in_use: number == in_use,
        };
        servers.iter().enumerate().map(status).collect()
    }

    /// The interfaces of this tunnel, as last read.
    fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        let found = self.found.as_ref();
        let devices = found.map(|found| self.devices(found)).unwrap_or_default();
        devices.into_iter().filter_map(move |device| found?.interface(&device))
    }

    /// What went through them.
    pub(super) fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        self.interfaces().for_each(|interface| traffic += interface.traffic);
        traffic
    }
}
