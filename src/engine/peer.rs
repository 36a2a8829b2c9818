//! A peer is who is at the other end: where it is, what it proves to us and we to it, and its link.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Now;
use super::admission::Admission;
use super::config::{AlternateAddress, DeviceName, PeerConfig, TunnelConfig};
use super::memory::Memory;
use super::prover::{Access, Prover};
use super::servers::{Place, Servers};

/// One peer.
#[derive(Debug)]
pub struct Peer {
    /// The link to it; a datapath may have one link for all.
    pub device: DeviceName,
    pub alternate: AlternateAddress,
    /// Inner addresses behind it, as far as a table says.
    pub networks: Arc<[IpNet]>,
    /// It reaches us and what is behind us, and no other peer.
    pub isolated: bool,
    /// The kernel refused our outer address for this remote: somebody else's tunnel has the pair.
    pub conflicting_remote: Option<IpAddr>,
    pub locator: Locator,
    /// What it has to prove. `None`: its address is enough. Boxed: of a hub's thousands, none has any.
    pub admission: Option<Box<Admission>>,
    /// What we prove to it.
    pub prover: Option<Box<Prover>>,
}

/// A packet that authenticates us.
#[derive(Debug)]
pub struct DuePacket {
    pub to: SocketAddr,
    pub payload: Vec<u8>,
    /// Whether the memory is to be written before it is sent.
    pub must_write: bool,
}

/// Where a peer is.
#[derive(Debug)]
pub enum Locator {
    /// Where its last authentication came from.
    Sessions,
    /// Where a table says.
    Fixed(SocketAddr),
    /// Where a server is: one of several, each at one of the addresses of its name.
    Servers(Servers),
}

impl Peer {
    /// The peer of a tunnel between two hosts, or the one that many hosts share. `memory` is an earlier
    /// process'.
    pub fn new(config: PeerConfig, tunnel: &TunnelConfig, memory: &mut Memory, now: &Now) -> Self {
        let standby = config.shows.as_ref().and_then(|shows| shows.server.as_ref());
        let standby = standby.into_iter().flat_map(|server| &server.standby);
        let standby = standby.map(|server| server.at.clone());
        if config.expects.is_some() {
            memory.begin_at(tunnel.port.get());
        }
        Peer {
            device: tunnel.device.clone(),
            alternate: tunnel.alternate,
            networks: Arc::default(),
            isolated: false,
            conflicting_remote: None,
            locator: config
                .at
                .map_or(Locator::Sessions, |first| Locator::Servers(Servers::new(first, standby))),
            admission: config.expects.map(|expects| Box::new(Admission::new(expects, memory, now))),
            prover: config.shows.map(|shows| Box::new(Prover::new(shows, memory, now))),
        }
    }

    /// Where data goes, as far as it is known. Of a peer that several hosts share, that depends on the
    /// inner address.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.sole().map(|(remote, _)| remote)
    }

    /// The remote whose packets may come in, of a peer that is alone.
    pub fn admitted(&self) -> Option<SocketAddr> {
        self.sole().filter(|(_, admitted)| *admitted).map(|(remote, _)| remote)
    }

    fn sole(&self) -> Option<(SocketAddr, bool)> {
        self.remotes().next().filter(|_| !self.is_shared())
    }

    /// Every remote of it, and whether its packets may come in.
    pub fn remotes(&self) -> impl Iterator<Item = (SocketAddr, bool)> {
        let located = match &self.locator {
            Locator::Sessions => None,
            Locator::Fixed(remote) => Some(*remote),
            Locator::Servers(servers) => servers.in_use().remote(),
        };
        let sessions = match self.locator {
            Locator::Sessions => self.admission.as_deref(),
            Locator::Fixed(_) | Locator::Servers(_) => None,
        };
        let located = located.map(|remote| (remote, true));
        located.into_iter().chain(sessions.into_iter().flat_map(Admission::remotes))
    }

    /// Whether data from this remote may come in.
    pub fn admits(&self, remote: SocketAddr) -> bool {
        match (&self.locator, &self.admission) {
            (Locator::Sessions, Some(admission)) => admission.admits(remote),
            (Locator::Sessions, None) => false,
            (Locator::Fixed(_) | Locator::Servers(_), _) => self.remote() == Some(remote),
        }
    }

    /// Whether it is a server of this name and port, or several of which one is.
    pub fn has_server(&self, name: &str) -> bool {
        match &self.locator {
            Locator::Servers(servers) => servers.iter().any(|place| place.name.to_string() == name),
            Locator::Sessions | Locator::Fixed(_) => false,
        }
    }

    /// Whether several hosts share it.
    pub fn is_shared(&self) -> bool {
        self.admission.as_ref().is_some_and(|admission| admission.learn().is_some())
    }

    /// Unix time of the last authentication: accepted by us, or sent.
    pub fn last_authentication(&self) -> Option<u64> {
        let accepted = self.admission.as_deref().and_then(Admission::last_authentication);
        accepted.max(self.prover.as_deref().and_then(Prover::last_sent))
    }

    /// The earliest time something is due. What is to be sent waits while `can_send` is false.
    pub fn next_deadline(&self, can_send: bool) -> Option<Duration> {
        let sends = self.prover.as_deref().filter(|_| can_send && self.remote().is_some());
        let expiry = self.admission.as_deref().and_then(Admission::next_expiry);
        let turn = self.prover.as_deref().and_then(Prover::turn_deadline);
        sends.and_then(Prover::next_deadline).into_iter().chain(expiry).chain(turn).min()
    }

    /// The authentication packets that are due. `access`: how they get to each of several servers.
    pub fn due_packets(&mut self, access: &[Access], now: &Now) -> Vec<DuePacket> {
        let remote = self.remote();
        let Some(prover) = self.prover.as_mut().filter(|_| remote.is_some()) else {
            return Vec::new();
        };
        let due = prover.due_packets(access, now);
        let to = |server| match &self.locator {
            Locator::Servers(servers) => servers.get(server).and_then(Place::remote),
            Locator::Sessions | Locator::Fixed(_) => remote,
        };
        let due = due.into_iter().filter_map(|(server, payload)| Some((to(server)?, payload)));
        due.map(|(to, payload)| DuePacket { to, payload, must_write: prover.must_write() })
            .collect()
    }

    /// The numbers of the servers that are at this remote.
    pub fn servers_at(&self, remote: SocketAddr) -> Vec<usize> {
        match &self.locator {
            Locator::Servers(servers) => {
                let at = servers.iter().map(Place::remote).enumerate();
                at.filter(|(_, at)| *at == Some(remote)).map(|(number, _)| number).collect()
            }
            Locator::Sessions | Locator::Fixed(_) => Vec::new(),
        }
    }

    /// Takes over the tunnel to `remote` that an earlier process left running.
    pub fn adopt(&mut self, remote: SocketAddr, memory: &Memory, now: &Now) {
        match &mut self.locator {
            Locator::Sessions => {
                if let Some(admission) = &mut self.admission {
                    admission.adopt(remote, memory, now);
                }
            }
            // Until the name is looked up.
            Locator::Servers(servers) => {
                if let (Some(server), Some(prover)) =
                    (servers.adopt(remote, memory.server.as_ref()), &mut self.prover)
                {
                    prover.adopt(server);
                }
            }
            Locator::Fixed(_) => {}
        }
    }

    /// Puts into the memory what a restart must not forget.
    pub fn remember(&self, memory: &mut Memory) {
        if let Some(admission) = &self.admission {
            admission.remember(memory);
        }
        if let Some(prover) = &self.prover {
            prover.remember(memory);
        }
    }
}
