//! The inner addresses that a client's server gives it (`--tunl-ip auto`): each accept has them. The last
//! ones are remembered, so that a restart begins with them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::config::{Datapath, LEAST_MTU_V6, TunnelConfig};
use super::endpoint::Endpoint;
use super::{Action, Engine, Now, Phase, Report};

/// The shortest prefix of a network inside: none for private use is larger than 10.0.0.0/8 (RFC 1918).
const SHORTEST: u8 = 8;

impl Engine {
    /// Takes the inner addresses of the last accept, where they come from the server.
    pub(super) fn take_inner(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let Endpoint { tunnel, datapath, .. } = &self.endpoint;
        if !tunnel.inner_from_server {
            return;
        }
        let connection = self.peers.iter().find_map(|peer| peer.prover.as_ref()?.connection(now));
        let Some(connection) = connection.filter(|c| c.connected_for.is_some()) else { return };
        let (v4, v6) = usable(&connection.inner, tunnel, *datapath);
        if v4.is_none() && v6.is_none() {
            if !std::mem::replace(&mut self.tells_no_inner, true) {
                actions.push(Action::Report(Report::NoInnerGiven));
            }
            return;
        }
        self.tells_no_inner = false;
        let given: Vec<IpNet> = v4.map(IpNet::V4).into_iter().chain(v6.map(IpNet::V6)).collect();
        if own(tunnel) == given {
            return;
        }
        self.owned.given.extend(own(tunnel).iter().map(IpNet::addr));
        self.owned.given.retain(|former| given.iter().all(|address| address.addr() != *former));
        set(&mut self.endpoint.tunnel, &given);
        self.memory.inner.clone_from(&given);
        actions.push(Action::Remember(self.memory()));
        actions.push(Action::Report(Report::InnerGiven(given)));
        self.needs_nothing = None;
        if self.phase == Phase::Settled {
            self.phase = Phase::Settling;
        }
        let steps = self.reconcile(actions);
        actions.extend(Action::apply(steps));
    }

    /// Says that there is no inner address yet.
    pub(super) fn await_inner(&self, actions: &mut Vec<Action>) {
        let tunnel = &self.endpoint.tunnel;
        if tunnel.inner_from_server && own(tunnel).is_empty() {
            actions.push(Action::Report(Report::InnerAwaited));
        }
    }
}

/// The addresses that the tunnel has now, with their networks.
fn own(tunnel: &TunnelConfig) -> Vec<IpNet> {
    let v4 = Ipv4Net::new(tunnel.inner, tunnel.inner_peer.prefix_len());
    let v4 = v4.ok().filter(|v4| !v4.addr().is_unspecified());
    v4.map(IpNet::V4).into_iter().chain(tunnel.inner6.map(IpNet::V6)).collect()
}

/// Gives the tunnel these addresses, which [`usable`] has chosen.
pub fn set(tunnel: &mut TunnelConfig, given: &[IpNet]) {
    let v4 = given.iter().find_map(|address| match address {
        IpNet::V4(v4) => Some(*v4),
        IpNet::V6(_) => None,
    });
    tunnel.inner = v4.map_or(Ipv4Addr::UNSPECIFIED, |v4| v4.addr());
    tunnel.inner_peer = v4.map_or(Ipv4Addr::UNSPECIFIED.into(), |v4| v4.trunc());
    tunnel.inner6 = given.iter().find_map(|address| match address {
        IpNet::V4(_) => None,
        IpNet::V6(v6) => Some(*v6),
    });
}

/// One address of each family that a host can have inside a tunnel.
pub fn usable(
    given: &[IpNet],
    tunnel: &TunnelConfig,
    datapath: Datapath,
) -> (Option<Ipv4Net>, Option<Ipv6Net>) {
    let is_unicast = |ip: IpAddr| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
    let v4 = given.iter().find_map(|address| match address {
        IpNet::V4(v4) if v4.prefix_len() >= SHORTEST && !v4.addr().is_broadcast() => Some(*v4),
        IpNet::V4(_) | IpNet::V6(_) => None,
    });
    let v6 = given.iter().find_map(|address| match address {
        IpNet::V6(v6) if v6.prefix_len() >= SHORTEST && !v6.addr().is_unicast_link_local() => {
            Some(*v6)
        }
        IpNet::V4(_) | IpNet::V6(_) => None,
    });
    let carries_v6 =
        datapath.capabilities().inner_ipv6 && tunnel.mtu.is_none_or(|mtu| mtu >= LEAST_MTU_V6);
    (
        v4.filter(|v4| is_unicast(v4.addr().into())),
        v6.filter(|v6| carries_v6 && is_unicast(v6.addr().into())),
    )
}
