//! Judges which address of those that a server gives this host can have, without losing anything
//! that it has or needs.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::engine::config::{Datapath, LEAST_MTU_V6, TunnelConfig};
use crate::engine::host::Found;
use crate::wire::address::{is_link_local_v6, is_one_host};

/// The shortest prefix of a network inside: none for private use is larger than 10.0.0.0/8 (RFC 1918).
const SHORTEST: u8 = 8;

/// Networks for private use (RFC 1918, RFC 6598, RFC 4193).
const PRIVATE: [IpNet; 5] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([100, 64, 0, 0], 10),
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7)),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), prefix))
}

/// Whether all of a network is for private use.
pub fn is_private(network: &IpNet) -> bool {
    PRIVATE.iter().any(|private| private.contains(network))
}

/// What stands against an address, or against its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Outer packets come from there or go there.
    Outer(IpAddr),
    /// Another interface has it.
    OfHost(IpAddr),
    /// Outer packets are given to this router.
    Router(IpAddr),
    /// The host asks it for names.
    NameServer(IpAddr),
    /// Another interface has addresses of this network.
    Overlaps(IpNet),
    /// Another tunnel of this host has this network, or had it until not long ago: it may be restarted
    /// at the moment.
    OfTunnel(IpNet),
    /// The host has a route to this network, which is not the default route.
    Routed(IpNet),
    /// The host had such an interface or route until not long ago: it may come back in a moment, as a bridge
    /// whose manager is restarted.
    HadByHost(IpNet),
    /// It is not for private use.
    Public,
    /// The kernel refused the address.
    Kernel,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Obstacle::Outer(ip) => write!(f, "packets of the tunnel itself go to or from {ip}"),
            Obstacle::OfHost(ip) => write!(f, "another interface of this host has {ip}"),
            Obstacle::Router(ip) => write!(f, "{ip} is the router on the way to the server"),
            Obstacle::NameServer(ip) => write!(f, "{ip} is a name server of this host"),
            Obstacle::Overlaps(net) => write!(f, "another interface has the network {net}"),
            Obstacle::OfTunnel(net) => {
                write!(
                    f,
                    "another tunnel of this host has had the network {net} within an hour: of several \
                     that are given one network, the first to start has it"
                )
            }
            Obstacle::Routed(net) => write!(f, "this host has a route to {net}"),
            Obstacle::HadByHost(net) => {
                write!(f, "this host has had the network {net}, or a route to it, within an hour")
            }
            Obstacle::Public => write!(f, "it is not for private use"),
            Obstacle::Kernel => write!(f, "the kernel refuses it"),
        }
    }
}

/// Something that the server gave and that is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotTaken {
    /// The address, with its network.
    pub given: IpNet,
    /// Whether only the network is left out.
    pub only_network: bool,
    /// Why.
    pub obstacle: Obstacle,
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let NotTaken { given, only_network, obstacle } = self;
        match only_network {
            true => write!(f, "{} is taken without its network: {obstacle}", given.addr())?,
            false => write!(f, "{given} is not taken: {obstacle}")?,
        }
        match obstacle {
            // What the user names is taken even so.
            Obstacle::Overlaps(_)
            | Obstacle::OfTunnel(_)
            | Obstacle::Routed(_)
            | Obstacle::HadByHost(_)
            | Obstacle::Public => {
                write!(f, "; --route {} takes it nevertheless", given.trunc())
            }
            Obstacle::Outer(_)
            | Obstacle::OfHost(_)
            | Obstacle::Router(_)
            | Obstacle::NameServer(_)
            | Obstacle::Kernel => Ok(()),
        }
    }
}

/// The facts by which an address is judged.
#[derive(Debug)]
pub struct Facts<'a> {
    pub tunnel: &'a TunnelConfig,
    pub found: &'a Found,
    /// The addresses of all servers, and our outer ones.
    pub outer: BTreeSet<IpAddr>,
    /// Addresses that the kernel refused.
    pub refused: BTreeSet<IpAddr>,
    /// Networks that other tunnels of this host have, or had until not long ago.
    pub of_tunnels: BTreeSet<IpNet>,
    /// Networks and routes of the host that stood in the way until not long ago.
    pub had: BTreeSet<IpNet>,
    /// What this process had in full: it comes back as soon as nothing stands in its way.
    pub held: &'a BTreeSet<IpNet>,
}

impl Facts<'_> {
    /// What of this can be taken: the address with its network, or alone, or nothing; and why not all.
    pub fn judge(&self, given: IpNet) -> (Option<IpNet>, Option<NotTaken>) {
        let alone = IpNet::from(given.addr());
        let obstacle = |net: &IpNet| {
            self.obstacle(net)
                .or_else(|| self.obstacle_before(net).filter(|_| !self.held.contains(&given)))
        };
        if let Some(obstacle) = obstacle(&alone) {
            return (None, Some(NotTaken { given, only_network: false, obstacle }));
        }
        match obstacle(&given.trunc()) {
            None => (Some(given), None),
            Some(obstacle) => (Some(alone), Some(NotTaken { given, only_network: true, obstacle })),
        }
    }

    /// Whether the user named it.
    fn is_named(&self, net: &IpNet) -> bool {
        self.tunnel.gateway.routes.iter().any(|route| {
            // Half of all addresses names none of them.
            route.prefix_len() >= SHORTEST && route.contains(net)
        })
    }

    fn obstacle_before(&self, net: &IpNet) -> Option<Obstacle> {
        let had = self.had.iter().copied().find(|had| meet(had, net));
        had.filter(|_| !self.is_named(net)).map(Obstacle::HadByHost)
    }

    fn obstacle(&self, net: &IpNet) -> Option<Obstacle> {
        let Facts { tunnel, found, outer, refused, of_tunnels, .. } = self;
        let alone = net.prefix_len() == net.max_prefix_len();
        let meets = |other: &IpNet| meet(other, net);
        let own = found.interface(&tunnel.device).map(|interface| interface.index);
        let others = || found.addresses.iter().filter(|a| Some(a.interface) != own);
        let first = |all: &BTreeSet<IpAddr>| all.iter().copied().find(|ip| net.contains(ip));
        let ways = found.way.into_iter().chain(found.other_ways.values().copied());
        let routers: BTreeSet<IpAddr> = ways.filter_map(|way| way.router).collect();
        let of_others: BTreeSet<IpAddr> = others().map(|other| other.value.local).collect();
        // Those that the user has us put there are asked through the tunnel.
        let name_servers = || {
            let asked = found.asked.iter().filter(|ip| !tunnel.gateway.dns.contains(ip));
            asked.copied().find(|ip| net.contains(ip))
        };
        let is_named = self.is_named(net);
        let overlaps = || {
            let networks = others().map(|other| other.value.network.trunc());
            networks.filter(meets).min_by_key(|network| network.prefix_len())
        };
        let of_tunnel = || of_tunnels.iter().copied().find(meets);
        let routed = || {
            let routes = found.routed.values().flatten();
            let others = routes.filter(|(_, interface)| own.is_none() || *interface != own);
            // Two halves of all addresses are a default route, too.
            let mut others = others.map(|(route, _)| *route);
            others.find(|route| route.prefix_len() >= SHORTEST && meets(route))
        };
        if alone && refused.contains(&net.addr()) {
            return Some(Obstacle::Kernel);
        }
        first(outer)
            .map(Obstacle::Outer)
            .or_else(|| first(&of_others).filter(|_| alone).map(Obstacle::OfHost))
            .or_else(|| first(&routers).map(Obstacle::Router))
            .or_else(|| name_servers().map(Obstacle::NameServer))
            .or_else(|| of_tunnel().filter(|_| !is_named).map(Obstacle::OfTunnel))
            .or_else(|| overlaps().filter(|_| !is_named).map(Obstacle::Overlaps))
            .or_else(|| routed().filter(|_| !is_named).map(Obstacle::Routed))
            .or_else(|| (!is_named && !is_private(net)).then_some(Obstacle::Public))
    }
}

/// Whether two networks have addresses in common.
fn meet(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// The networks of other interfaces, and the routes, that stand in the way of one of these. Those of the
/// uplinks are left out: they change when the host goes elsewhere.
pub fn in_the_way(given: &[IpNet], tunnel: &TunnelConfig, found: &Found) -> BTreeSet<IpNet> {
    let own = found.interface(&tunnel.device).map(|interface| interface.index);
    let uplinks: BTreeSet<u32> =
        found.way.iter().chain(found.other_ways.values()).map(|way| way.interface).collect();
    let is_others = |index: u32| Some(index) != own && !uplinks.contains(&index);
    let others = found.addresses.iter().filter(|a| is_others(a.interface));
    let routes = found.routed.values().flatten().filter(|(route, interface)| {
        route.prefix_len() >= SHORTEST && interface.is_none_or(is_others)
    });
    let networks = others.map(|a| a.value.network.trunc()).chain(routes.map(|(route, _)| *route));
    networks.filter(|net| given.iter().any(|given| meet(net, &given.trunc()))).collect()
}

/// One address of each family that some host can have inside a tunnel.
pub fn usable(given: &[IpNet], tunnel: &TunnelConfig, datapath: Datapath) -> Vec<IpNet> {
    let is_usable = |ip: IpAddr| is_one_host(ip) && !is_link_local_v6(ip);
    let carries_v6 =
        datapath.capabilities().inner_ipv6 && tunnel.mtu.is_none_or(|mtu| mtu >= LEAST_MTU_V6);
    let first = |is_v4: bool| {
        let mut given = given.iter().copied().filter(|net| net.addr().is_ipv4() == is_v4);
        given.find(|net| net.prefix_len() >= SHORTEST && is_usable(net.addr()))
    };
    first(true).into_iter().chain(first(false).filter(|_| carries_v6)).collect()
}
