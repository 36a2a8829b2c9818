//! What the host should have, given the remotes and who proved what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::config::{
    AlternateAddress, Datapath, DeviceName, LEAST_MTU, LEAST_MTU_V6, MOST_MTU, Outer, SourceCheck,
    TunnelConfig,
};
use super::forwarding::{LearnSpec, PeerTable, RemoteSpec};
use super::gateway;
use super::host::{
    Admitted, Encapsulation, Family, Found, Interface, InterfaceAddress, InterfaceKind, IpipLink,
    Listener, Way,
};
use super::memory::Settings;
use super::nodes;
use super::peer::Peer;
use super::peers::Peers;
use super::plan::{
    self, Control, LinkForwarding, LinkKind, Mtu, MtuFrom, RuleSpec, Wanted, WantedLink,
};

/// TTL of the outer packets. The kernel's default, the inner packet's TTL, would let a routing
/// protocol's packets (TTL 1) die at the first hop.
const OUTER_TTL: u8 = 64;

/// Bytes around an inner packet: IP and UDP headers.
const OVERHEAD_V4: u32 = 20 + 8;
const OVERHEAD_V6: u32 = 40 + 8;
/// Of a network whose interface cannot be found.
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

/// Everything that the remotes need at `endpoint`, whose address is `outer` now.
pub fn wanted(
    endpoint: &Endpoint,
    outer: OuterFound,
    peers: &Peers,
    found: &Found,
    before: &BTreeMap<String, Settings>,
) -> Wanted {
    let own = endpoint.tunnel.is_network().then_some(outer.address);
    let outside: BTreeSet<IpAddr> =
        peers.remotes().map(|(remote, _)| remote.ip()).chain(own).collect();
    let mut wanted = match (endpoint.datapath, outer.address) {
        (Datapath::Kernel, IpAddr::V4(address)) => {
            let own = KernelOuter { address, bound_to: outer.bound_to };
            let mtu = mtu(&endpoint.tunnel, outer, found);
            kernel(endpoint, own, mtu, peers, &outside, found)
        }
        // Nobody can ask for it: `datapath` is the other then.
        (Datapath::Kernel, IpAddr::V6(_)) => Wanted::default(),
        (Datapath::Tun, _) => userspace(endpoint, outer, peers, &outside, found),
    };
    let extent = extent(endpoint, outer, &wanted, peers, outside, found);
    wanted.gateway = gateway::wanted(&endpoint.tunnel, &extent, found, before);
    wanted
}

/// The inner addresses of the other ends.
pub fn through(endpoint: &Endpoint, peers: &Peers) -> Vec<IpNet> {
    let mut through = vec![IpNet::V4(endpoint.tunnel.inner_peer)];
    through.extend(peers.iter().flat_map(|p| p.networks.iter().copied()));
    through
}

fn extent(
    endpoint: &Endpoint,
    outer: OuterFound,
    wanted: &Wanted,
    peers: &Peers,
    outside: BTreeSet<IpAddr>,
    found: &Found,
) -> gateway::Extent {
    let tunnel = &endpoint.tunnel;
    let going = wanted.unwanted.iter().filter(|device| found.interface(device).is_some());
    let own: Vec<_> =
        [IpNet::V4(tunnel.inner_peer)].into_iter().chain(tunnel.inner6.map(IpNet::V6)).collect();
    let is_around = |net: &IpNet| gateway::holds_any(net, &outside);
    let is_on_link = |net: &IpNet| own.iter().any(|own| own.contains(net));
    let of_peers = |is_routed: &dyn Fn(&IpNet) -> bool| -> Vec<_> {
        let all = peers.iter().flat_map(|peer| peer.networks.iter().map(move |net| (peer, *net)));
        let routed = all.filter(|(_, net)| is_routed(net));
        routed.map(|(peer, net)| (net, peer.device.clone())).collect()
    };
    let (mut routed, mut unreachable) = (Vec::new(), None);
    match (tunnel.is_network(), endpoint.datapath) {
        (false, _) => {}
        (true, Datapath::Kernel) => {
            routed = of_peers(&is_around);
            unreachable = Some(tunnel.inner_peer).filter(|net| net.prefix_len() < 32);
        }
        (true, Datapath::Tun) => {
            routed = of_peers(&|net| !is_on_link(net));
            let around = own.iter().filter(|net| is_around(net));
            routed.extend(around.map(|net| (net.trunc(), tunnel.device.clone())));
        }
    }
    let by_way = found.way.map(|way| way.interface);
    let by_address = || found.interface_of(outer.address).map(|interface| interface.index);
    let uplink = match tunnel.is_network() {
        false => by_way,
        true => outer.bound_to.or_else(by_address),
    };
    gateway::Extent {
        devices: wanted.links.iter().map(|link| link.device.clone()).collect(),
        going: going.cloned().collect(),
        through: through(endpoint, peers),
        routed,
        unreachable,
        uplink,
        outer: outside,
    }
}

/// Our addresses on the one interface of a tunnel.
pub fn addresses(tunnel: &TunnelConfig, outside: &BTreeSet<IpAddr>) -> Vec<InterfaceAddress> {
    let v4 = link_addresses(tunnel.inner.into(), &[tunnel.inner_peer.into()], outside);
    let v6 = tunnel.inner6.map(|net| link_addresses(net.addr().into(), &[net.into()], outside));
    v4.into_iter().chain(v6.into_iter().flatten()).collect()
}

/// Our addresses on a link that leads to these networks. The kernel routes the network of an address
/// to its link, outer packets too: one around the outer addresses `outside` is left to the routes.
fn link_addresses(
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

fn userspace(
    endpoint: &Endpoint,
    outer: OuterFound,
    peers: &Peers,
    outside: &BTreeSet<IpAddr>,
    found: &Found,
) -> Wanted {
    let tunnel = &endpoint.tunnel;
    let mut forwarding = PeerTable {
        control: match endpoint.control {
            Control::Refuse => None,
            Control::Queue { shape, .. } => Some(shape),
        },
        ..PeerTable::default()
    };
    let is_network = tunnel.is_network();
    for peer in peers.iter() {
        // The socket sends to its own family only.
        let of_family =
            |(remote, _): &(SocketAddr, bool)| remote.is_ipv4() == outer.address.is_ipv4();
        for (remote, admitted) in peer.remotes().filter(of_family) {
            let networks = || peer.networks.clone();
            let spec = match is_network {
                false => only_remote(tunnel, admitted),
                true => RemoteSpec { destinations: networks(), sources: networks() },
            };
            forwarding.remotes.insert(remote, spec);
        }
    }
    let shared = peers.shared().and_then(|shared| Some((shared, shared.learn()?)));
    if let Some((shared, learn)) = shared {
        forwarding.learn = Some(LearnSpec {
            within: through(endpoint, peers)
                .into_iter()
                .chain(tunnel.inner6.map(IpNet::V6))
                .collect(),
            except: addresses(tunnel, outside).iter().map(|address| address.local).collect(),
            limit: learn.limit,
            lifetime: learn.lifetime,
            from_anybody: shared.takes_anybody(),
        });
    }
    let link = WantedLink {
        device: tunnel.device.clone(),
        kind: LinkKind::Tun,
        mtu: mtu(tunnel, outer, found),
        addresses: match is_network {
            false => addresses(tunnel, &BTreeSet::new()),
            true => addresses(tunnel, outside),
        },
        source_check: tunnel.source_check,
        forwards: match forwards(tunnel) {
            LinkForwarding::HostDefault if shared.is_some() => LinkForwarding::AmongClients,
            gateway => gateway,
        },
    };
    let known = is_network || peers.remotes().next().is_some();
    Wanted {
        socket: Some(tunnel.socket(outer.address)),
        forwarding,
        links: known.then_some(link).into_iter().collect(),
        ..Wanted::default()
    }
}

/// The remote of a tunnel with two ends: everything goes there, IPv6 only if it is asked for. The
/// interface sends some of its own accord, and the other end, where the kernel's carries IPv4 only,
/// would take it for authentication. What may come from there, the kernel's reverse path filter
/// judges for IPv4. For IPv6 it has none: so it is the networks that are routed there by us.
fn only_remote(tunnel: &TunnelConfig, admitted: bool) -> RemoteSpec {
    let all_v4 = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into();
    let all_v6 = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into();
    let everything: Vec<IpNet> =
        [all_v4].into_iter().chain(tunnel.inner6.map(|_| all_v6)).collect();
    // Nothing is sent to who is not admitted.
    let destinations = if admitted { everything.clone() } else { Vec::new() };
    let sources = match (admitted, tunnel.source_check) {
        (false, _) => Vec::new(),
        (true, SourceCheck::Off | SourceCheck::Loose) => everything.clone(),
        (true, SourceCheck::Strict) if tunnel.gateway.default_route => everything.clone(),
        (true, SourceCheck::Strict) => {
            let routes = tunnel.gateway.routes.iter().filter(|net| matches!(net, IpNet::V6(_)));
            let on_link = tunnel.inner6.map(IpNet::V6);
            [all_v4].into_iter().chain(on_link).chain(routes.copied()).collect()
        }
    };
    RemoteSpec { destinations, sources }
}

fn forwards(tunnel: &TunnelConfig) -> LinkForwarding {
    match tunnel.gateway.forward || tunnel.gateway.masquerade.is_some() {
        true => LinkForwarding::Gateway,
        false => LinkForwarding::HostDefault,
    }
}

/// What is asked for, or what fits into a packet of the interface that outer packets leave by.
fn mtu(tunnel: &TunnelConfig, outer: OuterFound, found: &Found) -> Mtu {
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

/// Our outer address in the kernel's datapath, which is IPv4.
#[derive(Debug, Clone, Copy)]
struct KernelOuter {
    address: Ipv4Addr,
    bound_to: Option<u32>,
}

fn kernel(
    endpoint: &Endpoint,
    outer: KernelOuter,
    mtu: Mtu,
    peers: &Peers,
    outside: &BTreeSet<IpAddr>,
    found: &Found,
) -> Wanted {
    let tunnel = &endpoint.tunnel;
    let port = tunnel.port.get();
    let listener = |local| Listener { port, local: Some(local), bound_to: outer.bound_to };
    let mut wanted = Wanted {
        rules: Some(RuleSpec {
            table: tunnel.rules.table.clone(),
            outer: outer.address,
            port,
            alternate: BTreeSet::new(),
            // A listener that was found and serves as well may be bound to none.
            bound: outer.bound_to.is_some()
                && !found.listeners.iter().any(|l| l.port == port && l.bound_to.is_none()),
            inside: inside(peers, outer.address, found),
            silenced: peers.iter().filter_map(silenced).collect(),
            untracked: found.tracks && !peers.has_prover(),
            control: endpoint.control,
            counters: tunnel.rules.counters,
        }),
        listeners: BTreeSet::from([listener(outer.address)]),
        ..Wanted::default()
    };
    let renamed = renamed(tunnel, outer.address, peers, found);
    let mut taken = BTreeSet::new();
    for peer in peers.iter() {
        let Some(SocketAddr::V4(remote)) = peer.remote() else {
            wanted.unwanted.push(peer.device.clone());
            continue;
        };
        // The next peer at this address cannot have our outer address as well.
        let shared = !taken.insert(*remote.ip());
        let alternate = alternate_for(peer, *remote.ip(), shared, outer, (found, &renamed));
        if let Some(address) = alternate {
            wanted.alternate.insert(address);
            wanted.listeners.insert(listener(address));
        }
        if peer.admitted().is_some() {
            wanted.admitted.insert(Admitted { remote, alternate });
        }
        wanted.links.push(WantedLink {
            device: peer.device.clone(),
            kind: LinkKind::Ipip(link(tunnel, remote, outer, alternate)),
            mtu,
            addresses: match tunnel.is_network() {
                false => addresses(tunnel, &BTreeSet::new()),
                true => link_addresses(tunnel.inner.into(), &peer.networks, outside),
            },
            source_check: tunnel.source_check,
            forwards: forwards(tunnel),
        });
    }
    if let Some(rules) = &mut wanted.rules {
        rules.alternate.clone_from(&wanted.alternate);
    }
    if tunnel.is_network() {
        let stays = |device: &DeviceName| wanted.links.iter().any(|link| link.device == *device);
        let there = nodes::interfaces(found, tunnel);
        wanted.unwanted = there.into_iter().filter(|device| !stays(device)).collect();
    }
    wanted.unwanted.extend(renamed);
    wanted
}

/// Links of this tunnel that somebody gave another name: a new one of the right name cannot have their
/// pair of addresses while they are there.
pub fn renamed(
    tunnel: &TunnelConfig,
    outer: Ipv4Addr,
    peers: &Peers,
    found: &Found,
) -> Vec<DeviceName> {
    let has_name = |name: &str| peers.iter().any(|peer| peer.device.as_str() == name);
    let is_our_address =
        |local| local == outer || peers.iter().any(|peer| peer.alternate.address() == local);
    let is_ours = |interface: &Interface| {
        interface.link_from(tunnel.port.get()).is_some_and(|link| is_our_address(link.local))
    };
    let labelled = found.interfaces.iter().filter(|i| plan::is_labelled(i) && !has_name(&i.name));
    labelled.filter(|i| is_ours(i)).filter_map(|link| link.name.parse().ok()).collect()
}

/// The interfaces of this and other processes of ours, but the one that our outer address is on: a
/// tunnel may be in another, but nobody gets into one from inside another.
fn inside(peers: &Peers, outer: Ipv4Addr, found: &Found) -> BTreeSet<String> {
    let has_outer = |interface: &Interface| {
        let outer = IpAddr::V4(outer);
        found.addresses.iter().any(|a| a.interface == interface.index && a.value.local == outer)
    };
    let others = found.interfaces.iter().filter(|i| plan::is_labelled(i) && !has_outer(i));
    let own = peers.iter().map(|peer| peer.device.to_string());
    own.chain(others.map(|interface| interface.name.clone())).collect()
}

/// The remote of a link that is there, whose authentication has run out or does not count.
fn silenced(peer: &Peer) -> Option<SocketAddrV4> {
    match (peer.remote(), peer.admitted()) {
        (Some(SocketAddr::V4(remote)), None) => Some(remote),
        (Some(SocketAddr::V6(_)) | None, None) | (_, Some(_)) => None,
    }
}

/// The alternate address, when this peer's link needs one: the kernel tells `ipip` links apart by
/// local and remote address only (`ip_tunnel_find` in net/ipv4/ip_tunnel.c).
fn alternate_for(
    peer: &Peer,
    remote: Ipv4Addr,
    shared: bool,
    outer: KernelOuter,
    (found, going): (&Found, &[DeviceName]),
) -> Option<Ipv4Addr> {
    let alternate = match peer.alternate {
        AlternateAddress::Always(address) => return Some(address),
        AlternateAddress::WhenTaken(address) => address,
    };
    let goes = |interface: &Interface| going.iter().any(|device| device.as_str() == interface.name);
    let others = found.interfaces.iter().filter(|i| !goes(i));
    let mut ipip = others.filter_map(|i| match i.kind {
        InterfaceKind::Ipip(link) => Some((i, link)),
        InterfaceKind::Tun | InterfaceKind::Other => None,
    });
    // Once alternate, it stays so while the remote stays: no need to disturb a working tunnel.
    let needed = shared
        || peer.conflicting_remote == Some(remote.into())
        || ipip.any(|(interface, link)| {
            if interface.name == peer.device.as_str() {
                return link.remote == remote && link.local == alternate;
            }
            // Plain IPIP of others between the same two hosts, by a link for exactly these or (Calico's
            // `tunl0`) for any: the kernel would give it to ours, which is for exactly these. The
            // module's own `tunl0` is there always, and down.
            let any = |address: Ipv4Addr| address.is_unspecified();
            let exactly = link.remote == remote && link.local == outer.address;
            let takes = (any(link.remote) || link.remote == remote)
                && (any(link.local) || link.local == outer.address);
            exactly || takes && interface.up && !plan::is_labelled(interface)
        });
    needed.then_some(alternate)
}

fn link(
    tunnel: &TunnelConfig,
    remote: SocketAddrV4,
    outer: KernelOuter,
    alternate: Option<Ipv4Addr>,
) -> IpipLink {
    IpipLink {
        local: alternate.unwrap_or(outer.address),
        remote: *remote.ip(),
        bound_to: outer.bound_to,
        ttl: OUTER_TTL,
        path_mtu_discovery: true,
        mark: tunnel.mark().unwrap_or(0),
        encapsulation: Encapsulation::Fou {
            source_port: tunnel.port.get(),
            destination_port: remote.port(),
            // Without the flag the kernel sends checksum 0. And so it must where the rules
            // rewrite the source: they would spoil the sum that covers an inner one which is
            // not yet computed (`inet_proto_csum_replace4` with CHECKSUM_PARTIAL, as
            // `udp_set_csum` leaves it).
            checksum: tunnel.checksum.unwrap_or(false) && alternate.is_none(),
        },
    }
}
