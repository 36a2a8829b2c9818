//! The endpoint is our end of all links: its outer address as it is now, and what follows from it for
//! every link.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::config::{
    Config, Datapath, DeviceName, Expects, LEAST_MTU, LEAST_MTU_V6, MOST_MTU, Outer, PeerSource,
    TunnelConfig,
};
use super::host::wanted::{Mtu, MtuFrom};
use super::host::{
    Control, Family, Found, Interface, InterfaceAddress, LinkForwarding, PacketShape, Way, gateway,
};
use super::peers::Peers;
use crate::auth::hint;

/// Bytes around an inner packet: IP and UDP headers.
pub const OVERHEAD_V4: u32 = 20 + 8;
const OVERHEAD_V6: u32 = 40 + 8;
/// The MTU of an uplink that cannot be found.
const USUAL_MTU: u32 = 1500;

/// Our side of the outer packets, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterFound {
    pub address: IpAddr,
    /// Index of the interface that listener and tunnel are bound to.
    pub bound_to: Option<u32>,
}

/// Our side of the outer packets; `None` while the host has no such address or interface. `family`
/// is that of the other end, `way` the one to it, `in_use` the address until now. It is never one of
/// the tunnel itself, whose interfaces are `inside`.
pub fn find_outer(
    outer: &Outer,
    (family, way): (Family, Option<Way>),
    in_use: Option<IpAddr>,
    inside: &[DeviceName],
    found: &Found,
) -> Option<OuterFound> {
    let outer = match outer {
        Outer::Address(address) => {
            found.can_use(*address).then_some(OuterFound { address: *address, bound_to: None })
        }
        Outer::AddressOn(address, device) => {
            let bound_to = Some(found.interface(device)?.index);
            found.can_use(*address).then_some(OuterFound { address: *address, bound_to })
        }
        Outer::Device(device) => {
            let index = found.interface(device)?.index;
            let routed = way.map(|way| way.source);
            let address = found.outer_address(index, family, in_use, routed)?;
            Some(OuterFound { address, bound_to: Some(index) })
        }
        Outer::Route => {
            let way = way.filter(|way| !found.is_one_of(way.interface, inside));
            way.map(|way| OuterFound { address: way.source, bound_to: None })
        }
    };
    outer.filter(|outer| !found.is_only_on(outer.address, inside))
}

/// Our end of all tunnels of a process.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub tunnel: TunnelConfig,
    pub datapath: Datapath,
    pub control: Control,
}

/// What happens to packets that are not data.
pub fn control(config: &Config) -> Control {
    let server = config.shows().and_then(|shows| shows.server.as_ref());
    let shape = match (&config.peers, config.expects(), server) {
        (PeerSource::Hub(hub), ..) => match hub.public_key() {
            Some(key) => PacketShape::Hellos { receiver: hint(&key) },
            None => return Control::Refuse,
        },
        (PeerSource::One(_) | PeerSource::Table(_), Some(expects), _) => control_shape(expects),
        (PeerSource::One(_) | PeerSource::Table(_), None, Some(_)) => PacketShape::Answers,
        (PeerSource::One(_) | PeerSource::Table(_), None, None) => return Control::Refuse,
    };
    config.queue().map_or(Control::Refuse, |queue| Control::Queue { queue, shape })
}

/// How a server tells authentication packets from data.
fn control_shape(Expects { policy, .. }: &Expects) -> PacketShape {
    match policy.proof.lengths() {
        Some(lengths) => PacketShape::of_lengths(lengths),
        None => PacketShape::FromRemote { ip: policy.remote_ip, port: policy.remote_port },
    }
}

/// Our outer address of this family by this reading of the host; `None` while there is none.
pub fn outer_address(outer: &Outer, family: Family, found: &Found) -> Option<IpAddr> {
    find_outer(outer, (family, found.way), None, &[], found).map(|outer| outer.address)
}

/// The family of our outer addresses, where the address of the other end does not settle it.
pub fn outer_family(outer: &Outer, datapath: Datapath, found: &Found) -> Family {
    match outer {
        Outer::Address(address) | Outer::AddressOn(address, _) => Family::of(*address),
        Outer::Device(device) if datapath.capabilities().outer_ipv6 => found.family_on(device),
        // Without a server there is no route.
        Outer::Device(_) | Outer::Route => Family::V4,
    }
}

/// The inner addresses of the other ends.
pub fn through(endpoint: &Endpoint, peers: &Peers) -> Vec<IpNet> {
    let inner_peer = IpNet::V4(endpoint.tunnel.inner_peer);
    let mut through: Vec<_> =
        [inner_peer].into_iter().filter(|net| !net.addr().is_unspecified()).collect();
    let all = peers.iter().flat_map(|p| p.networks.iter().copied());
    through.extend(all.filter(|net| !inner_peer.contains(net)));
    through
}

/// Whether an address is one of the other ends inside the tunnel, or of our own network there.
pub fn is_inside(endpoint: &Endpoint, peers: &Peers, address: IpAddr) -> bool {
    let tunnel = &endpoint.tunnel;
    IpNet::V4(tunnel.inner_peer).contains(&address)
        || tunnel.inner6.is_some_and(|net| IpNet::V6(net).contains(&address))
        || peers.are_around(address)
}

/// Our addresses on the one interface of a tunnel.
pub fn addresses(tunnel: &TunnelConfig, outside: &BTreeSet<IpAddr>) -> Vec<InterfaceAddress> {
    let v4 = match tunnel.inner.is_unspecified() {
        true => Vec::new(),
        false => link_addresses(tunnel.inner.into(), &[tunnel.inner_peer.into()], outside),
    };
    let v6 = tunnel.inner6.map(|net| link_addresses(net.addr().into(), &[net.into()], outside));
    v4.into_iter().chain(v6.into_iter().flatten()).collect()
}

/// Our addresses on a link that leads to these networks. The kernel routes the network of an address
/// to its link, outer packets too: one around the outer addresses `outside` is left to the routes.
pub fn link_addresses(
    inner: IpAddr,
    networks: &[IpNet],
    outside: &BTreeSet<IpAddr>,
) -> Vec<InterfaceAddress> {
    let (around, beside): (Vec<&IpNet>, Vec<&IpNet>) =
        networks.iter().partition(|net| gateway::holds_any(net, outside));
    let own = (!around.is_empty()).then(|| InterfaceAddress::new(inner, inner.into()));
    own.into_iter()
        .chain(beside.into_iter().map(|net| InterfaceAddress::new(inner, *net)))
        .collect()
}

/// What the links forward: on a server whose peers are named in files, packets from one of them to another.
pub fn forwards(endpoint: &Endpoint) -> LinkForwarding {
    let TunnelConfig { gateway, beside, .. } = &endpoint.tunnel;
    let is_hub = endpoint.control.is_hub() || beside.is_some();
    match (gateway.forward || gateway.masquerade.is_some(), is_hub) {
        (true, _) => LinkForwarding::Gateway,
        (false, true) => LinkForwarding::AmongClients,
        (false, false) => LinkForwarding::HostDefault,
    }
}

/// What is asked for, or what fits into a packet of the interface that outer packets leave by.
pub fn mtu(tunnel: &TunnelConfig, outer: OuterFound, found: &Found) -> Mtu {
    if let Some(bytes) = tunnel.mtu {
        return Mtu { bytes, from: MtuFrom::Option };
    }
    let overhead = match outer.address {
        IpAddr::V4(_) => OVERHEAD_V4,
        IpAddr::V6(_) => OVERHEAD_V6,
    };
    // Where a route leads into the tunnel itself, it would get smaller with every look.
    let is_other = |interface: &&Interface| {
        let rest = interface.name.strip_prefix(tunnel.device.as_str());
        !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let bound = outer.bound_to.and_then(|index| found.interface_at(index));
    let by_route = || found.way.and_then(|way| found.interface_at(way.interface));
    let by_address = || found.interface_of(outer.address);
    let uplink = bound
        .or_else(|| by_route().filter(is_other))
        .or_else(by_address)
        .filter(|interface| !interface.loopback && is_other(interface))
        .map_or(USUAL_MTU, |interface| interface.mtu);
    // With less the kernel takes IPv6 away from an interface (`addrconf_notify`).
    let least = if tunnel.inner6.is_some() { LEAST_MTU_V6 } else { LEAST_MTU };
    Mtu { bytes: uplink.saturating_sub(overhead).clamp(least, MOST_MTU), from: MtuFrom::Uplink }
}
