//! Which packets of a tunnel take the fast path: none that its datapath would not carry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::start::Start;
use super::without_fast_path::{KEEPS, WAYS, WithoutFastPath};
use crate::engine::config::{Datapath, DeviceName, FastPathChoice};
use crate::engine::endpoint::{Endpoint, OVERHEAD_V4, OuterFound};
use crate::engine::host::step::{FastStep, Step};
use crate::engine::host::wanted::Wanted;
use crate::engine::host::{
    Admitted, Family, FastPath, FastPathEnds, FastPathFound, FastPeer, Found, Interface,
    LinkHeader, Master, Takes, is_labelled,
};
use crate::engine::networks::v4;
use crate::engine::peer::Peer;
use crate::engine::peers::Peers;

/// As that of the `ipip` links.
const TIME_TO_LIVE: u8 = 64;

/// The fast path that goes with what the datapath is to have.
///
/// # Errors
/// Why there is none.
pub fn fast_path(
    endpoint: &Endpoint,
    outer: OuterFound,
    wanted: &Wanted,
    peers: &Peers,
    found: &Found,
) -> Result<FastPath, WithoutFastPath> {
    let tunnel = &endpoint.tunnel;
    if tunnel.fast_path == FastPathChoice::Off {
        return Err(WithoutFastPath::NotAsked);
    }
    if !tunnel.may_have_fast_path() {
        return Err(WithoutFastPath::Unbound);
    }
    if found.fast_path == FastPathFound::Unavailable {
        return Err(WithoutFastPath::Unavailable);
    }
    if found.ipsec {
        return Err(WithoutFastPath::Ipsec);
    }
    if found.rules_of_host.selective {
        return Err(WithoutFastPath::SelectiveRules);
    }
    let is_asked_for = tunnel.fast_path == FastPathChoice::On;
    let is_rare = |keepalive: Option<Duration>| keepalive.is_none_or(|every| every > KEEPS);
    if !is_asked_for && found.tracked.contains(&Family::V4) && peers.keepalives().any(is_rare) {
        return Err(WithoutFastPath::Tracked);
    }
    let IpAddr::V4(address) = outer.address else { return Err(WithoutFastPath::OuterIpv6) };
    if tunnel.checksum == Some(true) {
        return Err(WithoutFastPath::Checksums);
    }
    if wanted.forwarding.learn.is_some() {
        return Err(WithoutFastPath::Learns);
    }
    if wanted.forwarding.remotes.values().any(|remote| remote.isolated) {
        return Err(WithoutFastPath::Isolates);
    }
    if outer.bound_to.is_none() && peers.remotes().nth(WAYS).is_some() {
        return Err(WithoutFastPath::ManyWays);
    }
    // The datapath sends from no address that the host has not; the programs would.
    if !found.has_local(outer.address) {
        return Err(WithoutFastPath::NotYet);
    }
    let there = wanted.links.iter().filter_map(|link| found.interface(&link.device));
    let there: Vec<&Interface> = there.collect();
    // Where there are others, those that shape have no peers on it.
    if let Some((link, kind)) = there.first().and_then(|link| Some((link, link.shapes()?)))
        && there.iter().all(|link| link.shapes().is_some())
    {
        return Err(WithoutFastPath::Shaped(link.name.clone(), kind.to_owned()));
    }
    // Without any, the uplink is prepared, as long as no packet of the tunnel is on its way there.
    let links: BTreeSet<u32> = there.into_iter().filter_map(Interface::known_index).collect();
    let uplinks = Uplinks::of(endpoint, outer, &links, found)?;
    let peers = match endpoint.datapath {
        Datapath::Kernel | Datapath::KernelShared => of_kernel(endpoint, wanted, peers, &uplinks),
        Datapath::Tun => of_tun(endpoint, wanted, &uplinks),
    };
    let ends = FastPathEnds {
        outer: address,
        port: tunnel.port.get(),
        mark: tunnel.mark().unwrap_or(0),
        time_to_live: TIME_TO_LIVE,
        takes: uplinks.takes,
    };
    let uplinks =
        uplinks.usable.into_iter().map(|(index, uplink)| (index, uplink.header)).collect();
    Ok(FastPath { ends, uplinks, links, peers: peers.into(), except: except(found) })
}

/// The remotes that packets leave for by an interface that the routes tell: of a tunnel that is bound to
/// none, as long as there are few of them.
pub fn by_route(outer: OuterFound, peers: &Peers) -> BTreeSet<IpAddr> {
    let remotes = || peers.remotes().map(|(remote, _)| remote.ip());
    match outer.bound_to {
        None if remotes().nth(WAYS).is_none() => remotes().collect(),
        None | Some(_) => BTreeSet::new(),
    }
}

/// By which interfaces outer packets come and go.
struct Uplinks<'a> {
    bound_to: Option<u32>,
    /// Those that a fast path is for.
    usable: BTreeMap<u32, Uplink>,
    /// The process is faster where one of them gets packets one by one.
    takes: Takes,
    found: &'a Found,
}

/// An interface that a fast path is for.
struct Uplink {
    header: LinkHeader,
    /// Bytes of the largest inner packet that leaves there in one piece: the tunnel's MTU is larger where
    /// the uplink is too narrow for IPv6.
    most: u32,
}

impl<'a> Uplinks<'a> {
    /// By which of them packets may go of a tunnel with these links.
    ///
    /// # Errors
    /// Why a fast path is for none of them.
    fn of(
        endpoint: &Endpoint,
        outer: OuterFound,
        links: &BTreeSet<u32>,
        found: &'a Found,
    ) -> Result<Self, WithoutFastPath> {
        let is_asked_for = endpoint.tunnel.fast_path == FastPathChoice::On;
        let takes_any = is_asked_for || !endpoint.datapath.capabilities().merged_datagrams;
        let usable = |index: u32| {
            let uplink = found.interface_at(index).ok_or(WithoutFastPath::NotYet)?;
            // What comes out of there is refused by the datapath.
            if links.contains(&index) || (is_labelled(uplink) && !found.is_on(outer.address, index))
            {
                return Err(WithoutFastPath::IntoTunnel(uplink.name.clone()));
            }
            // The programs come before it (`sch_handle_ingress` and `rx_handler` in net/core/dev.c).
            if uplink.master == Some(Master::Switch) {
                return Err(WithoutFastPath::Port(uplink.name.clone()));
            }
            let Some(header) = found.link_headers.get(&index).copied() else {
                return Err(WithoutFastPath::UnknownHeader(uplink.name.clone()));
            };
            Ok((index, Uplink { header, most: uplink.mtu.saturating_sub(OVERHEAD_V4) }))
        };
        let by_route = found.uplinks.values().filter(|_| outer.bound_to.is_none());
        let all: BTreeSet<u32> = outer.bound_to.iter().chain(by_route).copied().collect();
        let mut why = WithoutFastPath::NotYet;
        let usable = all.into_iter().map(usable);
        let usable = usable.filter_map(|one| one.map_err(|error| why = error).ok());
        let usable: BTreeMap<u32, Uplink> = usable.collect();
        let takes = match takes_any || usable.keys().all(|index| found.superpackets.contains(index))
        {
            true => Takes::All,
            false => Takes::Unchecked,
        };
        let uplinks = Uplinks { bound_to: outer.bound_to, usable, takes, found };
        if uplinks.usable.is_empty() { Err(why) } else { Ok(uplinks) }
    }

    /// A peer with these networks, behind this interface of the tunnel. What is longer than the narrowest
    /// part of the path is refused, or fragmented, by the datapath. The programs come before an interface's
    /// queueing discipline.
    fn peer(
        &self,
        remote: SocketAddrV4,
        networks: Arc<[Ipv4Net]>,
        device: &DeviceName,
    ) -> Option<FastPeer> {
        if networks.is_empty() || self.found.translated.contains(&remote) {
            return None;
        }
        let by_route = || self.found.uplinks.get(&IpAddr::V4(*remote.ip())).copied();
        let uplink = self.bound_to.or_else(by_route)?;
        let there = self.found.interface(device).filter(|there| there.shapes().is_none())?;
        let most = self.usable.get(&uplink)?.most;
        let fits = u16::try_from(most.min(there.mtu)).unwrap_or(u16::MAX);
        let all_there = SocketAddrV4::new(*remote.ip(), 0);
        let said = [remote, all_there].map(|at| self.found.narrow.get(&at.into()).copied());
        let narrow = said.into_iter().flatten().min();
        let narrow = narrow.and_then(|most| u16::try_from(most).ok());
        let mtu = narrow.map_or(fits, |most| most.min(fits));
        Some(FastPeer { networks, link: there.known_index()?, uplink, mtu })
    }
}

/// The admitted peers whose packets are not rewritten.
fn of_kernel(
    endpoint: &Endpoint,
    wanted: &Wanted,
    peers: &Peers,
    uplinks: &Uplinks<'_>,
) -> BTreeMap<SocketAddrV4, FastPeer> {
    let entry = |peer: &Peer| {
        let Some(SocketAddr::V4(remote)) = peer.remote() else { return None };
        let from = Admitted::direct(remote);
        let mut at = wanted.admitted.range(&from..).take_while(|one| one.remote == remote);
        at.find(|one| one.alternate.is_none())?;
        let networks = match endpoint.tunnel.is_network() {
            true => v4(&peer.networks).collect(),
            false => everything(),
        };
        Some((remote, uplinks.peer(remote, networks, &peer.device)?))
    };
    peers.iter().filter_map(entry).collect()
}

/// The remotes of the table. Where other inner addresses may send than are sent to, the datapath judges
/// packet by packet.
fn of_tun(
    endpoint: &Endpoint,
    wanted: &Wanted,
    uplinks: &Uplinks<'_>,
) -> BTreeMap<SocketAddrV4, FastPeer> {
    let remotes = wanted.forwarding.remotes.iter().filter_map(|(remote, spec)| {
        let SocketAddr::V4(remote) = remote else { return None };
        let to: Arc<[Ipv4Net]> = v4(&spec.destinations).collect();
        let from: Arc<[Ipv4Net]> = v4(&spec.sources).collect();
        if from.is_empty() || to != from {
            return None;
        }
        Some((*remote, uplinks.peer(*remote, to, &endpoint.tunnel.device)?))
    });
    remotes.collect()
}

/// The steps for members of a hub: those before anything else is changed for them, and those after it.
pub fn delta(start: &Start<'_>) -> (Vec<Step>, Vec<Step>) {
    let Start { endpoint, outer, peers, changed, found, .. } = *start;
    // Where there is none, none is wanted, or the next reading leads to it.
    let FastPathFound::Intact(path) = &found.fast_path else { return Default::default() };
    // What an isolated one sends goes by the datapath to the others, and these are off the fast path first.
    let member = |remote: &SocketAddr| peers.member(*remote);
    if changed.remotes.iter().filter_map(member).any(|member| member.isolated) {
        return (vec![FastStep::Remove.into()], Vec::new());
    }
    let Ok(uplinks) = Uplinks::of(endpoint, outer, &path.links, found) else {
        return Default::default();
    };
    let (mut going, mut coming) = (BTreeSet::new(), Vec::new());
    for remote in &changed.remotes {
        let SocketAddr::V4(remote) = *remote else { continue };
        let entry = |member: &Peer| {
            let device = match endpoint.datapath.capabilities().link_per_remote {
                true => &member.device,
                false => &endpoint.tunnel.device,
            };
            let peer = uplinks.peer(remote, v4(&member.networks).collect(), device)?;
            let is_there =
                path.links.contains(&peer.link) && path.uplinks.contains_key(&peer.uplink);
            is_there.then_some(peer)
        };
        let wanted = peers.member(remote.into()).and_then(entry);
        let there = path.peers.get(&remote);
        if there == wanted.as_ref() {
            continue;
        }
        if there.is_some() {
            going.insert(remote);
        }
        coming.extend(wanted.map(|peer| FastStep::Add(remote, peer).into()));
    }
    let before = (!going.is_empty()).then(|| FastStep::Withdraw(going).into());
    (before.into_iter().collect(), coming)
}

fn everything() -> Arc<[Ipv4Net]> {
    [Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)].into()
}

/// Inner addresses that no packet from outside may have, or that are no host's: our own, and those of
/// RFC 1122, 3.2.1.3. The datapath and the kernel judge them.
fn except(found: &Found) -> BTreeSet<Ipv4Net> {
    let own = found.addresses.iter().flat_map(|address| {
        let local = match address.value.local {
            IpAddr::V4(local) => Some(local),
            IpAddr::V6(_) => None,
        };
        let broadcast = match address.value.network {
            IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast()),
            IpNet::V4(_) | IpNet::V6(_) => None,
        };
        local.into_iter().chain(broadcast).map(Ipv4Net::from)
    });
    let nobody = [([0, 0, 0, 0], 8), ([127, 0, 0, 0], 8), ([224, 0, 0, 0], 4)];
    let nobody = nobody.map(|(net, bits)| Ipv4Net::new_assert(Ipv4Addr::from(net), bits));
    own.chain(nobody).chain([Ipv4Net::from(Ipv4Addr::BROADCAST)]).collect()
}
