//! What the kernel's datapath should have: listeners, `ipip` links, and the remotes that its rules let
//! in.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use super::start::Start;
use crate::engine::config::{AlternateAddress, DeviceName, TunnelConfig};
use crate::engine::endpoint::{Endpoint, addresses, forwards, link_addresses, mtu};
use crate::engine::host::plan::plan_link;
use crate::engine::host::step::{HostStep, KernelStep, Step};
use crate::engine::host::wanted::{LinkKind, Mtu, Wanted, WantedLink};
use crate::engine::host::{
    Admitted, Encapsulation, Found, Interface, InterfaceKind, IpipLink, LinkForwarding, Listener,
    RuleSpec, RulesFound, is_labelled,
};
use crate::engine::links;
use crate::engine::peer::Peer;
use crate::engine::peers::Peers;

/// TTL of the outer packets. The kernel's default, the inner packet's TTL, would let a routing
/// protocol's packets (TTL 1) die at the first hop.
const OUTER_TTL: u8 = 64;

/// Our outer address in the kernel's datapath, which is IPv4.
#[derive(Debug, Clone, Copy)]
pub struct Outer4 {
    /// The source address of outer packets, where no alternate address replaces it.
    pub address: Ipv4Addr,
    /// Index of the interface that listener and links are bound to; `None`: any.
    pub bound_to: Option<u32>,
}

/// What the datapath is to have for these peers.
pub fn wanted(
    endpoint: &Endpoint,
    outer: Outer4,
    mtu: Mtu,
    peers: &Peers,
    outside: &BTreeSet<IpAddr>,
    found: &Found,
) -> Wanted {
    let tunnel = &endpoint.tunnel;
    let mut wanted = Wanted {
        rules: Some(rules(endpoint, outer, peers, found)),
        listeners: BTreeSet::from([listener(tunnel, outer)]),
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
            wanted.listeners.insert(listener(tunnel, Outer4 { address, ..outer }));
        }
        if peer.admitted().is_some() {
            wanted.admitted.insert(Admitted { alternate, ..Admitted::direct(remote) });
        }
        let kind = LinkKind::Ipip(link(tunnel, remote, outer, alternate));
        wanted.links.push(wanted_link(endpoint, peer, kind, mtu, outside));
    }
    if let Some(rules) = &mut wanted.rules {
        rules.alternate.clone_from(&wanted.alternate);
    }
    if tunnel.is_network() {
        let stay: BTreeSet<&DeviceName> = wanted.links.iter().map(|link| &link.device).collect();
        let there = links::interfaces(found, tunnel);
        wanted.unwanted = there.into_iter().filter(|device| !stay.contains(device)).collect();
    }
    wanted.unwanted.extend(renamed);
    wanted
}

/// The FOU listener at this address.
pub fn listener(tunnel: &TunnelConfig, outer: Outer4) -> Listener {
    Listener { port: tunnel.port.get(), local: Some(outer.address), bound_to: outer.bound_to }
}

/// What the rules depend on, but for alternate addresses.
pub fn rules(endpoint: &Endpoint, outer: Outer4, peers: &Peers, found: &Found) -> RuleSpec {
    let tunnel = &endpoint.tunnel;
    let port = tunnel.port.get();
    let (inside, inside_too) = inside(tunnel, peers, outer.address, found);
    RuleSpec {
        table: tunnel.rules.table.clone(),
        outer: outer.address,
        port,
        alternate: BTreeSet::new(),
        // A listener that was found and serves as well may be bound to none.
        bound: outer.bound_to.is_some()
            && !found.listeners.iter().any(|l| l.port == port && l.bound_to.is_none()),
        inside,
        inside_too,
        shared: None,
        silenced: peers.iter().filter_map(silenced).collect(),
        answering: peers.answering().into_iter().filter_map(v4).collect(),
        untracked: found.tracks && !peers.has_prover(),
        control: endpoint.control,
        counters: tunnel.rules.counters,
    }
}

fn wanted_link(
    endpoint: &Endpoint,
    peer: &Peer,
    kind: LinkKind,
    mtu: Mtu,
    outside: &BTreeSet<IpAddr>,
) -> WantedLink {
    let tunnel = &endpoint.tunnel;
    WantedLink {
        device: peer.device.clone(),
        kind,
        mtu,
        addresses: match tunnel.is_network() {
            false => addresses(tunnel, &BTreeSet::new()),
            true => link_addresses(tunnel.inner.into(), &peer.networks, outside),
        },
        source_check: tunnel.source_check,
        forwards: forwards(endpoint),
    }
}

/// The steps for members of a hub: the link of each, and what lets it in. Where several are at one
/// address, or another link there has our outer address, alternate addresses, listeners and rules follow,
/// too.
pub fn delta(start: Start<'_>) -> Option<Vec<Step>> {
    let Start { endpoint, outer, peers, changed, found, owned } = start;
    let config = &endpoint.tunnel.gateway;
    let is_plain = config.routes.is_empty()
        && config.dns.is_empty()
        && forwards(endpoint) == LinkForwarding::AmongClients;
    let let_in = match &found.rules {
        RulesFound::Intact(admitted) => Some(admitted),
        RulesFound::Unavailable => None,
        RulesFound::Missing | RulesFound::Unknown => return None,
    };
    let IpAddr::V4(address) = outer.address else { return None };
    if !is_plain {
        return None;
    }
    let own = Outer4 { address, bound_to: outer.bound_to };
    let mtu = mtu(&endpoint.tunnel, outer, found);
    let (mut links, mut used, mut steps) = (Vec::new(), BTreeSet::new(), Vec::new());
    let (mut come, mut gone) = (Vec::new(), Vec::new());
    for remote in &changed.remotes {
        let SocketAddr::V4(remote) = *remote else { return None };
        let here = peers.member(remote.into());
        let is_let_in = let_in.is_none_or(|all| all.contains(&Admitted::direct(remote)));
        match (here, is_let_in) {
            (Some(_), false) => come.push(KernelStep::AdmitToo(Admitted::direct(remote)).into()),
            (None, true) if let_in.is_some() => {
                gone.push(KernelStep::AdmitNoMore(Admitted::direct(remote)).into());
            }
            (Some(_), true) | (None, _) => {}
        }
        let Some(member) = here else { continue };
        let shared = peers.members_within(IpAddr::V4(*remote.ip()).into()).nth(1).is_some();
        if alternate_for(member, *remote.ip(), shared, own, (found, &[])).is_some() {
            return None;
        }
        used.insert(&member.device);
        let kind = LinkKind::Ipip(link(&endpoint.tunnel, remote, own, None));
        links.push(wanted_link(endpoint, member, kind, mtu, &BTreeSet::new()));
    }
    for device in &changed.links {
        let Some(there) = found.interface(device) else { continue };
        let InterfaceKind::Ipip(link) = there.kind else { return None };
        if link.local != address {
            return None;
        }
        if !used.contains(device) && is_labelled(there) {
            steps.push(HostStep::RemoveLink(device.clone()).into());
        }
    }
    links.iter().for_each(|link| plan_link(link, found, owned, &mut steps));
    Some(steps.into_iter().chain(come).chain(gone).collect())
}

/// Links of this tunnel that somebody gave another name: a new one of the right name cannot have their
/// pair of addresses while they are there.
pub fn renamed(
    tunnel: &TunnelConfig,
    outer: Ipv4Addr,
    peers: &Peers,
    found: &Found,
) -> Vec<DeviceName> {
    let names: BTreeSet<&str> = peers.iter().map(|peer| peer.device.as_str()).collect();
    let mut ours: BTreeSet<Ipv4Addr> = peers.iter().map(|p| p.alternate.address()).collect();
    ours.extend([outer, tunnel.alternate.address()]);
    let is_ours = |interface: &Interface| {
        interface.link_from(tunnel.port.get()).is_some_and(|link| ours.contains(&link.local))
    };
    let labelled = found.interfaces.iter();
    let labelled = labelled.filter(|i| is_labelled(i) && !names.contains(i.name.as_str()));
    labelled.filter(|i| is_ours(i)).filter_map(|link| link.name.parse().ok()).collect()
}

/// The interfaces of the tunnels of this and other ipipou processes, except the one that has the outer
/// address: a tunnel may run inside another, but no packet gets from inside one into another. Those of which a
/// server has one for each peer are the second, what their names begin with.
fn inside(
    tunnel: &TunnelConfig,
    peers: &Peers,
    outer: Ipv4Addr,
    found: &Found,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let is_inside = |i: &Interface| is_labelled(i) && !found.is_on(outer.into(), i.index);
    let others = || found.interfaces.iter().filter(|i| is_inside(i));
    let own = tunnel.is_network().then(|| links::prefix(tunnel));
    let mut starts: BTreeSet<String> =
        others().filter_map(|i| links::prefix_of(&i.name)).map(str::to_owned).collect();
    // The host may have an interface with such a name that is none of a tunnel.
    starts.retain(|start| {
        found.interfaces.iter().all(|i| !i.name.starts_with(start.as_str()) || is_inside(i))
    });
    starts.extend(own);
    let names = peers.iter().map(|peer| peer.device.to_string());
    let names = names.chain(others().map(|interface| interface.name.clone()));
    let rest = |name: &String| !starts.iter().any(|start| name.starts_with(start.as_str()));
    (names.filter(rest).collect(), starts)
}

fn v4(remote: SocketAddr) -> Option<SocketAddrV4> {
    match remote {
        SocketAddr::V4(remote) => Some(remote),
        SocketAddr::V6(_) => None,
    }
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
    outer: Outer4,
    (found, going): (&Found, &[DeviceName]),
) -> Option<Ipv4Addr> {
    let alternate = match peer.alternate {
        AlternateAddress::Always(address) => return Some(address),
        AlternateAddress::WhenTaken(address) => address,
    };
    let goes = |interface: &Interface| going.iter().any(|device| device.as_str() == interface.name);
    let of_any = found.interfaces.ipip_to(Ipv4Addr::UNSPECIFIED);
    let mut ipip =
        found.interfaces.ipip_to(remote).chain(of_any).filter(|(interface, _)| !goes(interface));
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
            exactly || takes && interface.up && !is_labelled(interface)
        });
    needed.then_some(alternate)
}

/// The link to a remote.
pub fn link(
    tunnel: &TunnelConfig,
    remote: SocketAddrV4,
    outer: Outer4,
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
