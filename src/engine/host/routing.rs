//! Routes, policy rules, and the rules of a gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::interface::{Address, AddressState, InterfaceAddress};
use crate::engine::config::DeviceName;

/// A route that ipipou made; [`ROUTE_PROTOCOL`] marks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The network that it leads to; its host bits are zero.
    pub destination: IpNet,
    /// Number of the routing table.
    pub table: u32,
    /// The interface that it leads into, or that there is none.
    pub target: RouteTarget,
    /// Preferred source address.
    pub source: Option<IpAddr>,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteTarget {
    /// Index of an interface.
    Interface(u32),
    /// Index of an interface that many remotes share, and the outer address of the one.
    Remote(u32, Ipv4Addr),
    /// Nowhere: the sender gets an ICMP error, host unreachable.
    Unreachable,
}

impl Route {
    /// The one of these that leads to a network behind a remote on a shared link: the next one takes its place.
    pub fn of_remote(routes: &BTreeSet<Route>, destination: IpNet, table: u32) -> Option<&Route> {
        let first = Route { destination, table, target: RouteTarget::Interface(0), source: None };
        let alike = routes.range(first..);
        let mut alike =
            alike.take_while(|route| (route.destination, route.table) == (destination, table));
        alike.find(|route| matches!(route.target, RouteTarget::Remote(..)))
    }

    /// The one of these whose place it takes, or that takes its place.
    pub fn exchanged<'a>(&self, routes: &'a BTreeSet<Route>) -> Option<&'a Route> {
        let is_of_remote = matches!(self.target, RouteTarget::Remote(..));
        let other = Route::of_remote(routes, self.destination, self.table);
        other.filter(|other| is_of_remote && *other != self)
    }
}

impl RouteTarget {
    /// Index of the interface that it leads into.
    pub fn interface(self) -> Option<u32> {
        match self {
            RouteTarget::Interface(index) | RouteTarget::Remote(index, _) => Some(index),
            RouteTarget::Unreachable => None,
        }
    }
}

/// A route that the kernel makes with an address of an interface, and that somebody can take away without
/// it (`fib_add_ifaddr` in net/ipv4/fib_frontend.c, `inet6_addr_add` in net/ipv6/addrconf.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelRoute {
    /// Index of the interface.
    pub interface: u32,
    /// The address that it was made with.
    pub address: InterfaceAddress,
    /// What it is for.
    pub to: KernelRouteTo,
}

/// What such a route is for. The network's one names the address as its source, so it comes second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelRouteTo {
    /// The address itself, in the table `local`: packets for it are for this host.
    Address,
    /// The network on the link, or its other end, in the table `main`.
    Network,
}

/// A routing policy rule that ipipou made (ip-rule(8)); [`ROUTE_PROTOCOL`] marks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    /// Whether it is a rule of IPv4 or of IPv6; the kernel keeps two lists.
    pub family: Family,
    /// Its place in the list (`FRA_PRIORITY`): rules of lower numbers are asked first, and of the same
    /// number those that were added first.
    pub priority: u32,
    /// Which packets it is for, and which routing table they are looked up in.
    pub kind: PolicyRuleKind,
}

/// What policy rules of the host that are not ipipou's ask IPv4 packets for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RulesOfHost {
    /// Whether any asks for ports, protocols or users.
    pub selective: bool,
    /// Networks that packets come from.
    pub sources: BTreeSet<Ipv4Net>,
}

impl RulesOfHost {
    /// Where they could not be read, there may be any.
    pub fn unknown() -> Self {
        RulesOfHost { selective: true, sources: BTreeSet::from([Ipv4Net::default()]) }
    }

    /// Whether any asks for a network that one of these addresses is in.
    pub fn ask_for(&self, mut own: impl Iterator<Item = Ipv4Addr>) -> bool {
        own.any(|own| self.sources.iter().any(|from| from.contains(&own)))
    }
}

/// The version of the Internet Protocol, of inner or of outer packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 (`AF_INET`).
    V4,
    /// IPv6 (`AF_INET6`).
    V6,
}

/// The rules that send everything but marked packets into a tunnel, and leave alone what answers others
/// by an address of this host. The one that leads into the tunnel has to be asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyRuleKind {
    /// `from ADDRESS lookup main`: no packet has an address yet when it is the kernel's to choose.
    FromOwn(IpAddr),
    /// `lookup main suppress_prefixlength 0`: all routes of the main table but its default.
    MainButDefault,
    /// `not fwmark MARK/MASK lookup TABLE`
    UnlessMarked {
        /// The firewall mark of packets that the rule leaves alone, …
        mark: u32,
        /// … compared in these bits.
        mask: u32,
        /// Number of the routing table for all others.
        table: u32,
    },
}

/// The number in `rtm_protocol` and `FRA_PROTOCOL` of what we made (linux/rtnetlink.h: numbers that
/// the kernel leaves to others, none that another routing daemon is known to use).
pub const ROUTE_PROTOCOL: u8 = 105;

/// The nftables rules of a gateway, a table of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySpec {
    /// Its name
    /// ([`TunnelConfig::gateway_table`](crate::engine::config::TunnelConfig::gateway_table)).
    pub table: String,
    /// The tunnel's interfaces: one, or one for each peer where the kernel carries many.
    pub devices: BTreeSet<DeviceName>,
    /// What is forwarded and masqueraded; `None`: only `answers` are asked for.
    pub forwarding: Option<ForwardingRules>,
    /// Whose connections get their answers by the main table, though all else goes through the tunnel.
    pub answers: BTreeMap<Family, Answers>,
}

/// Connections from outside that this host forwards, to a container that publishes a port for one,
/// or that it answers by another address than it was asked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The firewall mark of packets that the tunnel's routes are not for.
    pub mark: u32,
    /// The interface by which those come in that have no address of this host, while it is known.
    pub uplink: Option<String>,
    /// The addresses of this host that others are asked at.
    pub addresses: BTreeSet<IpAddr>,
}

/// What is forwarded to and from a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardingRules {
    /// Sources in the tunnel that leave with our address, and by which interface they leave; any
    /// but the tunnel's if `None`.
    pub masquerade: Option<(BTreeSet<Ipv4Net>, Option<DeviceName>)>,
    /// Interfaces that forward only because we turned it on: from them nothing may go anywhere but
    /// into the tunnel, and those of other gateways.
    pub turned_on: BTreeSet<String>,
    /// The other gateways' tunnels; they judge themselves what goes into them.
    pub gateways: BTreeSet<String>,
    /// Whether new connections may go into the tunnel; answers always may.
    pub into_tunnel: bool,
}

impl PolicyRule {
    /// Whether it leads into a tunnel. Of the others, only those before it have an effect.
    pub fn leads_into_tunnel(&self) -> bool {
        match self.kind {
            PolicyRuleKind::UnlessMarked { .. } => true,
            PolicyRuleKind::FromOwn(_) | PolicyRuleKind::MainButDefault => false,
        }
    }
}

impl Family {
    /// The family that an address belongs to; an IPv4-mapped one is IPv6.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

impl KernelRoute {
    /// The routes that the kernel makes with this address. The first one of a network has the route to
    /// it, and a single address none.
    pub fn of(address: &Address) -> impl Iterator<Item = Self> {
        let network = address.value.network;
        let is_alone = network == IpNet::from(address.value.local);
        let has_network = !is_alone && address.state != AddressState::Secondary;
        let route = |to| KernelRoute { interface: address.interface, address: address.value, to };
        let network = has_network.then(|| route(KernelRouteTo::Network));
        [route(KernelRouteTo::Address)].into_iter().chain(network)
    }

    /// The network that it leads to; its host bits are zero.
    pub fn destination(&self) -> IpNet {
        match self.to {
            KernelRouteTo::Address => self.address.local.into(),
            KernelRouteTo::Network => self.address.network.trunc(),
        }
    }
}

impl fmt::Display for KernelRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            KernelRouteTo::Address => write!(f, "local route to {}", self.address.local),
            KernelRouteTo::Network => write!(f, "route to {}", self.destination()),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            RouteTarget::Interface(_) => write!(f, "route to {}", self.destination),
            RouteTarget::Remote(_, remote) => {
                write!(f, "route to {} at {remote}", self.destination)
            }
            RouteTarget::Unreachable => write!(f, "unreachable route to {}", self.destination),
        }
    }
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            PolicyRuleKind::UnlessMarked { mark, mask, table } => {
                write!(f, "rule: not fwmark {mark:#x}/{mask:#x} lookup {table}")
            }
            PolicyRuleKind::MainButDefault => {
                f.write_str("rule: lookup main suppress_prefixlength 0")
            }
            PolicyRuleKind::FromOwn(address) => write!(f, "rule: from {address} lookup main"),
        }
    }
}
