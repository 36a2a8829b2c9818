//! Routes that the kernel makes with an address of an interface: whether they are there, and how one is
//! made again.
//!
//! A router may have a million routes, through all of which the kernel walks to list those of one
//! interface. So it is asked for one address at a time, and lists them only where that answer is not the
//! route that should be there.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::StreamExt as _;
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::links::into_io;
use super::routes::{MAIN_TABLE, Routes, address_family, none_if_unsupported};
use super::ways::{Matched, interface_of, network_of};
use super::{HostAdapter, Links};
use crate::engine::host::{Family, Found, Interface, KernelRoute, KernelRouteTo, is_labelled};

/// `RT_TABLE_LOCAL` in linux/rtnetlink.h.
const LOCAL_TABLE: u32 = 255;
/// Metric of the kernel's own IPv6 routes (`IP6_RT_PRIO_ADDRCONF` in linux/ipv6_route.h).
const IPV6_METRIC: u32 = 256;

/// Which routes were asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// The interface that was asked for last, where there are more than are asked for at a time.
    last: u32,
    /// Routes that are there, though a lookup finds another: to ask again would not tell more.
    unclear: BTreeSet<KernelRoute>,
}

impl Asked {
    /// How many interfaces a reading asks for.
    const AT_A_TIME: usize = 32;

    /// Notes that anything may have changed.
    pub fn forget(&mut self) {
        self.unclear.clear();
    }

    /// The next of these interfaces, in the order of their indexes.
    fn next(&mut self, mut interfaces: Vec<u32>) -> Vec<u32> {
        interfaces.sort_unstable();
        let after = interfaces.partition_point(|index| *index <= self.last);
        interfaces.rotate_left(after);
        interfaces.truncate(Asked::AT_A_TIME);
        self.last = interfaces.last().copied().unwrap_or_default();
        interfaces
    }
}

impl HostAdapter {
    /// The routes that the kernel made with the addresses of this tunnel's links, and that are gone though
    /// the addresses are there.
    pub(super) async fn lost_routes(&mut self, found: &Found) -> io::Result<BTreeSet<KernelRoute>> {
        let (tunnel, ipip_links) = (&self.reading.tunnel, self.reading.ipip_links);
        let is_of_remote = |interface: &Interface| {
            ipip_links && is_labelled(interface) && interface.link_from(tunnel.port.get()).is_some()
        };
        // A link that is down has no such routes, and a VRF has them in a table of its own.
        let ours = found.interfaces.iter().filter(|i| {
            (i.name == tunnel.device.as_str() || is_of_remote(i)) && i.up && !i.in_vrf()
        });
        let ours = ours.map(|interface| interface.index).collect();
        let asked = self.reading.kernel_routes.next(ours);
        let on_them = found.addresses.iter().filter(|a| asked.contains(&a.interface));
        let mut lost = BTreeSet::new();
        for route in on_them.flat_map(KernelRoute::of) {
            if self.reading.kernel_routes.unclear.contains(&route)
                || self.links.seems_there(&route).await?
            {
                continue;
            }
            if self.routes.has(&route)? {
                self.reading.kernel_routes.unclear.insert(route);
            } else {
                lost.insert(route);
            }
        }
        if lost.is_empty() {
            return Ok(lost);
        }
        // What went with its address, or with its link, after these were read is not lost.
        let addresses = self.links.addresses()?;
        lost.retain(|route| addresses.iter().flat_map(KernelRoute::of).any(|now| now == *route));
        for index in asked {
            if !self.links.at(index).await?.is_some_and(|interface| interface.up) {
                lost.retain(|route| route.interface != index);
            }
        }
        Ok(lost)
    }
}

impl Links {
    /// Whether a lookup finds the route, or a longer one by the same interface in its place.
    async fn seems_there(&self, route: &KernelRoute) -> io::Result<bool> {
        for destination in probes(route) {
            let Matched::Route(answer) =
                self.match_route(destination, Some(route.interface)).await?
            else {
                return Ok(false);
            };
            match (route.to, network_of(&answer, destination)) {
                (KernelRouteTo::Address, _) => return Ok(answer.header.kind == RouteType::Local),
                (KernelRouteTo::Network, Some(network)) if network == route.destination() => {
                    return Ok(true);
                }
                (KernelRouteTo::Network, Some(network))
                    if route.destination().contains(&network) => {}
                (KernelRouteTo::Network, _) => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// Addresses that the route is for: the other end, or the neighbours of our own address, which has a
/// route of its own, like the first and the last address of a network.
fn probes(route: &KernelRoute) -> Vec<IpAddr> {
    let (local, network) = (route.address.local, route.address.network);
    if route.to == KernelRouteTo::Address {
        return vec![local];
    }
    if !network.contains(&local) {
        return vec![network.addr()];
    }
    let neighbours = [1, -1].map(|distance: i8| match local {
        IpAddr::V4(v4) => {
            IpAddr::from(Ipv4Addr::from(v4.to_bits().wrapping_add_signed(distance.into())))
        }
        IpAddr::V6(v6) => {
            IpAddr::from(Ipv6Addr::from(v6.to_bits().wrapping_add_signed(distance.into())))
        }
    });
    neighbours.into_iter().filter(|address| network.contains(address)).collect()
}

impl Routes {
    /// Whether the table of its interface has the route, whoever made it.
    fn has(&self, route: &KernelRoute) -> io::Result<bool> {
        let mut request = RouteMessage::default();
        request.header.address_family = address_family(Family::of(route.address.local));
        request.attributes =
            vec![RouteAttribute::Table(table(route.to)), RouteAttribute::Oif(route.interface)];
        let is_it = |found: &RouteMessage| {
            found.header.kind == kind(route.to)
                && interface_of(&found.attributes) == Some(route.interface)
                && network_of(found, route.address.local) == Some(route.destination())
        };
        let found = match self.list(&request, |found| is_it(found).then_some(())) {
            // There is no such table yet.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
            found => none_if_unsupported(found)?,
        };
        Ok(!found.is_empty())
    }

    /// Makes such a route again, as the kernel does: beside one to the same network by another interface.
    ///
    /// # Errors
    /// What the kernel said. It is no error if the route is there.
    pub async fn restore(&self, route: &KernelRoute) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(restored(route));
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        // Of IPv6 routes, that would make one with two ways.
        if route.address.local.is_ipv4() {
            request.header.flags |= NLM_F_APPEND;
        }
        let mut answers = self.handle.clone().request(request).map_err(into_io)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.to_io() {
                    e if e.raw_os_error() == Some(0)
                        || e.kind() == io::ErrorKind::AlreadyExists =>
                    {
                        Ok(())
                    }
                    e => Err(e),
                };
            }
        }
        Ok(())
    }
}

fn table(to: KernelRouteTo) -> u32 {
    match to {
        KernelRouteTo::Address => LOCAL_TABLE,
        KernelRouteTo::Network => MAIN_TABLE,
    }
}

fn kind(to: KernelRouteTo) -> RouteType {
    match to {
        KernelRouteTo::Address => RouteType::Local,
        KernelRouteTo::Network => RouteType::Unicast,
    }
}

/// The route as the kernel makes it: it goes with its address.
fn restored(route: &KernelRoute) -> RouteMessage {
    let destination = route.destination();
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(route.address.local));
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.protocol = RouteProtocol::Kernel;
    message.header.kind = kind(route.to);
    message.attributes = vec![
        RouteAttribute::Table(table(route.to)),
        RouteAttribute::Destination(destination.network().into()),
        RouteAttribute::Oif(route.interface),
    ];
    message.attributes.push(match (destination, route.address.local) {
        (IpNet::V4(_), local) => {
            message.header.scope = match route.to {
                KernelRouteTo::Address => RouteScope::Host,
                KernelRouteTo::Network => RouteScope::Link,
            };
            RouteAttribute::PrefSource(RouteAddress::from(local))
        }
        (IpNet::V6(_), _) => RouteAttribute::Priority(IPV6_METRIC),
    });
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::host::InterfaceAddress;

    fn to_network(local: &str, network: &str) -> KernelRoute {
        let network = network.parse().unwrap();
        let address = InterfaceAddress::new(local.parse().unwrap(), network);
        KernelRoute { interface: 7, address, to: KernelRouteTo::Network }
    }

    #[test]
    fn addresses_that_have_routes_of_their_own_are_not_asked_for() {
        let probes = |local, network| {
            let probes = probes(&to_network(local, network));
            probes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(probes("172.28.0.0", "172.28.0.1/32"), ["172.28.0.1"]);
        assert_eq!(probes("10.8.0.3", "10.8.0.3/24"), ["10.8.0.4", "10.8.0.2"]);
        assert_eq!(probes("10.8.0.0", "10.8.0.0/31"), ["10.8.0.1"]);
        assert_eq!(probes("fd08::1", "fd08::1/64"), ["fd08::2", "fd08::"]);
        assert_eq!(probes("255.255.255.255", "255.255.255.0/24"), ["255.255.255.254"]);
    }

    #[test]
    fn all_of_many_interfaces_are_asked_for_in_turn() {
        let mut asked = Asked::default();
        let all: Vec<u32> = (1..=70).collect();
        assert_eq!(asked.next(all.clone()), (1..=32).collect::<Vec<_>>());
        assert_eq!(asked.next(all.clone()), (33..=64).collect::<Vec<_>>());
        assert_eq!(asked.next(all), (65..=70).chain(1..=26).collect::<Vec<_>>());
        assert_eq!(asked.next(vec![4, 3]), [3, 4]);
        assert_eq!(asked.next(vec![4, 3]), [3, 4]);
        assert_eq!(asked.next(Vec::new()), [0; 0]);
    }
}
