//! Routes that packets take out of this host, looked up for one destination (ip-route(8)).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use rtnetlink::RouteMessageBuilder;
use rustix::io::Errno;

use super::links::{Links, into_io};
use crate::engine::config::TunnelConfig;
use crate::engine::host::Way;

/// A route lookup for packets as the tunnel sends them: policy rules (ip-rule(8)) may match on all of
/// this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayTo {
    pub destination: IpAddr,
    /// Their source address, if it is always the same.
    pub source: Option<IpAddr>,
    /// Firewall mark of the packets; 0 means that they have none.
    pub mark: u32,
}

impl WayTo {
    /// The lookup for packets of this tunnel to `destination`.
    pub fn of_tunnel(tunnel: &TunnelConfig, destination: IpAddr) -> Self {
        WayTo { destination, source: tunnel.outer.address(), mark: tunnel.mark().unwrap_or(0) }
    }
}

impl Links {
    /// How packets get to a destination. `None` without a route, and with one that refuses: `blackhole`
    /// and `prohibit` have errors of their own (`fib_props` in net/ipv4/fib_semantics.c), as has a
    /// kernel without the family. `interface` is the one to which the packets are bound.
    pub async fn way(&self, to: &WayTo, interface: Option<u32>) -> io::Result<Option<Way>> {
        let way = self.ask_way(to, to.source, interface).await?;
        match way {
            // Only now is the source known, which policy rules may match on.
            Some(Way { source, .. }) if to.source.is_none() && interface.is_some() => {
                Ok(self.ask_way(to, Some(source), interface).await?.or(way))
            }
            way => Ok(way),
        }
    }

    /// Whether a route leads to a destination. Packets that are bound to an interface are sent without
    /// a route too: the kernel then takes every IPv4 address for a neighbour
    /// (`ip_route_output_key_hash_rcu` in net/ipv4/route.c).
    pub async fn is_routed(&self, to: &WayTo, interface: Option<u32>) -> io::Result<bool> {
        let mut message = way_message(to, to.source, interface);
        message.header.flags |= RouteFlags::FibMatch;
        Ok(self.ask_route(message).await?.is_some())
    }

    /// The matching route itself for packets to an address. For an address of this host, it names the
    /// interface that has it (`RTM_F_FIB_MATCH` in linux/rtnetlink.h).
    pub async fn matching_route(&self, destination: IpAddr) -> io::Result<Option<Way>> {
        let route = self.match_route(destination, None).await?.route();
        Ok(route.and_then(|route| read_way(&route.attributes, Some(destination))))
    }

    /// The destination and the interface of that route, or of the one by `interface`. An address of this
    /// host has a route of its own, by the interface that has it. Of a route that refuses packets
    /// (`blackhole`, `unreachable`, `prohibit`) the kernel tells no more than that: it is one to the
    /// address alone here, unless it refuses everything that has no other route.
    pub async fn route_of(
        &self,
        destination: IpAddr,
        interface: Option<u32>,
    ) -> io::Result<Option<(IpNet, Option<u32>)>> {
        let route = match self.match_route(destination, interface).await? {
            Matched::Route(route) => route,
            Matched::Nothing => return Ok(None),
            // Without a route by that interface.
            Matched::Refused if interface.is_some() => return Ok(None),
            Matched::Refused => {
                // Of the networks for documentation (RFC 5737, RFC 3849): nobody has a route to it.
                let elsewhere = match destination {
                    IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
                    IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
                };
                let refuses_all =
                    matches!(self.match_route(elsewhere, None).await?, Matched::Refused);
                return Ok((!refuses_all).then(|| (destination.into(), None)));
            }
        };
        let network = network_of(&route, destination);
        Ok(network.map(|network| (network, interface_of(&route.attributes))))
    }

    /// The longest of the routes to an address by these interfaces.
    pub async fn route_by(
        &self,
        destination: IpAddr,
        interfaces: BTreeSet<u32>,
    ) -> io::Result<Option<(IpNet, Option<u32>)>> {
        let mut longest = None;
        for interface in interfaces {
            let route = self.route_of(destination, Some(interface)).await?;
            let length = |route: &Option<(IpNet, _)>| route.map(|(net, _)| net.prefix_len());
            longest = [longest, route].into_iter().max_by_key(length).flatten();
        }
        Ok(longest)
    }

    /// What a lookup finds for an address.
    pub(super) async fn match_route(
        &self,
        destination: IpAddr,
        interface: Option<u32>,
    ) -> io::Result<Matched> {
        let mut message = route_to(destination);
        message.attributes.extend(interface.map(RouteAttribute::Oif));
        message.header.flags |= RouteFlags::FibMatch;
        self.look_up(message).await
    }

    async fn ask_way(
        &self,
        to: &WayTo,
        source: Option<IpAddr>,
        interface: Option<u32>,
    ) -> io::Result<Option<Way>> {
        let route = self.ask_route(way_message(to, source, interface)).await?;
        Ok(route.and_then(|route| read_way(&route.attributes, source)))
    }

    async fn ask_route(&self, message: RouteMessage) -> io::Result<Option<RouteMessage>> {
        Ok(self.look_up(message).await?.route())
    }

    async fn look_up(&self, message: RouteMessage) -> io::Result<Matched> {
        match self.handle.route().get(message).execute().try_next().await {
            Ok(route) => Ok(route.map_or(Matched::Nothing, Matched::Route)),
            // The errors of `fib_props` in net/ipv4/fib_semantics.c, and of `ip6_rt_type_to_error`.
            Err(rtnetlink::Error::NetlinkError(message)) => {
                let error = message.to_io().raw_os_error().map(Errno::from_raw_os_error);
                Ok(match error {
                    Some(Errno::INVAL | Errno::HOSTUNREACH | Errno::ACCESS) => Matched::Refused,
                    _ => Matched::Nothing,
                })
            }
            Err(e) => Err(into_io(e)),
        }
    }
}

/// What the kernel says of the route to an address.
pub(super) enum Matched {
    Route(RouteMessage),
    /// One that refuses packets.
    Refused,
    /// There is none, or none of this family.
    Nothing,
}

impl Matched {
    fn route(self) -> Option<RouteMessage> {
        match self {
            Matched::Route(route) => Some(route),
            Matched::Refused | Matched::Nothing => None,
        }
    }
}

fn route_to(destination: IpAddr) -> RouteMessage {
    match destination {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
        IpAddr::V6(v6) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build()
        }
    }
}

/// Builds the route lookup for the tunnel's packets.
fn way_message(to: &WayTo, source: Option<IpAddr>, interface: Option<u32>) -> RouteMessage {
    let mut message = route_to(to.destination);
    message.attributes.push(RouteAttribute::Mark(to.mark));
    if let Some(source) = source {
        message.header.source_prefix_length = IpNet::from(source).prefix_len();
        message.attributes.push(RouteAttribute::Source(match source {
            IpAddr::V4(v4) => RouteAddress::Inet(v4),
            IpAddr::V6(v6) => RouteAddress::Inet6(v6),
        }));
    }
    message.attributes.extend(interface.map(RouteAttribute::Oif));
    message
}

/// Reads the answer. The kernel does not repeat a source that was in the request (`rt_fill_info` in
/// net/ipv4/route.c).
fn read_way(attributes: &[RouteAttribute], asked: Option<IpAddr>) -> Option<Way> {
    let preferred = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(source) => address(source),
        _ => None,
    });
    let source = asked.or(preferred)?;
    let router = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(router) => address(router),
        _ => None,
    });
    Some(Way { source, interface: interface_of(attributes)?, router })
}

/// The network that a route leads to, in the family of `destination`.
pub(super) fn network_of(route: &RouteMessage, destination: IpAddr) -> Option<IpNet> {
    let network = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(network) => address(network),
        _ => None,
    });
    // A default route has no destination.
    let unspecified = match destination {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let length = route.header.destination_prefix_length;
    IpNet::new(network.unwrap_or(unspecified), length).ok()
}

pub(super) fn interface_of(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
