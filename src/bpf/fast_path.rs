//! Makes, changes, checks and removes the fast path of a tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;

use ipnet::Ipv4Net;
use netlink_socket2::NetlinkSocket;

use super::call::{self, LoadError};
use super::compiled::{EGRESS, INGRESS};
use super::filters::{Filters, Hook};
use super::maps::{Maps, Peer, Sender};
use super::program::{Constants, load};
use super::uplink::{self, ETHERNET, PathMtu};
use crate::engine::config::TunnelConfig;
use crate::engine::host::{FastPath, FastPathEnds, FastPathFound, FastPeer, Found, Traffic};
use crate::host::absent_is_fine;

/// The least room of the maps. When there are more entries, maps with twice as much take their place.
const ROOM: u32 = 64;
/// Bytes of the IPv4 and UDP headers around an inner packet.
const OVERHEAD: usize = 20 + 8;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum FastPathError {
    #[error("cannot make a map: {0}")]
    Map(#[source] io::Error),
    #[error("cannot change a map: {0}")]
    Entry(#[source] io::Error),
    #[error(transparent)]
    Program(#[from] LoadError),
    #[error("cannot attach a program: {0}")]
    Filter(#[source] io::Error),
    #[error("the uplink: {0}")]
    Uplink(#[source] io::Error),
}

/// The fast path of a tunnel.
pub struct FastPathAdapter {
    filters: Filters,
    ethtool: NetlinkSocket,
    /// Whether the kernel takes the programs.
    available: bool,
    made: Option<Made>,
    /// What an earlier process of the tunnel left attached.
    left: Vec<(u32, Hook)>,
    /// What was carried by maps that are there no longer, by the index of the tunnel's interface.
    carried: BTreeMap<u32, Traffic>,
}

/// What is in the kernel.
struct Made {
    now: FastPath,
    maps: Maps,
    room: u32,
    /// The number by which a peer is counted, and the interface that it was last behind.
    ids: BTreeMap<SocketAddrV4, (u32, u32)>,
    /// Where which program is attached.
    attached: Vec<(u32, Hook, u32)>,
}

impl FastPathAdapter {
    /// The fast path of this tunnel. `available`: the kernel takes the programs.
    pub fn of(tunnel: &str, available: bool) -> Self {
        let mut filters = Filters::of(tunnel);
        let both = |interface| [(interface, Hook::Ingress), (interface, Hook::Egress)];
        let all = uplink::all_interfaces().unwrap_or_default().into_iter().flat_map(both);
        let is_left = |(at, hook): &(u32, Hook)| matches!(filters.find(*at, *hook), Ok(Some(_)));
        let left = all.filter(is_left).collect();
        let (ethtool, carried) = (NetlinkSocket::new(), BTreeMap::new());
        FastPathAdapter { filters, ethtool, available, made: None, left, carried }
    }

    /// Adds to a reading of the host what is there, what uplinks take, and what was carried: the
    /// interfaces of the tunnel do not count that.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read(&mut self, tunnel: &TunnelConfig, found: &mut Found) -> io::Result<()> {
        found.fast_path = self.found()?;
        if !self.available {
            return Ok(());
        }
        let device = tunnel.outer.device().and_then(|device| found.interface(device));
        let uplinks = device.map(|device| device.index).into_iter();
        for index in uplinks.chain(found.way.map(|way| way.interface)) {
            if uplink::passes_superpackets(&mut self.ethtool, index) {
                found.superpackets.insert(index);
            }
        }
        // The userspace datapath knows its paths; of the kernel's, the kernel does.
        if found.userspace.socket.is_none() {
            self.read_paths(found);
        }
        for (index, traffic) in self.carried() {
            let mut all = found.interfaces.iter_mut();
            if let Some(interface) = all.find(|interface| interface.index == index) {
                Arc::make_mut(interface).traffic += traffic;
            }
        }
        Ok(())
    }

    /// Adds the paths that a router has said to be narrow. As for the links of the datapath, the
    /// kernel's routes are believed; its rules judge the ICMP errors that these come from.
    fn read_paths(&self, found: &mut Found) {
        let Some(FastPath { ends, peers, .. }) = self.made.as_ref().map(|made| &made.now) else {
            return;
        };
        let by_uplink = found.interface_at(ends.uplink).map(|uplink| uplink.mtu);
        let Ok(asked) = PathMtu::of(ends) else { return };
        for remote in peers.keys() {
            // Without a route nothing is sent.
            let Ok(mtu) = asked.to(*remote) else { continue };
            if by_uplink.is_some_and(|most| mtu < most) {
                let fits = usize::try_from(mtu).unwrap_or(usize::MAX).saturating_sub(OVERHEAD);
                found.narrow.insert((*remote).into(), fits);
            }
        }
    }

    /// The maps are known to nobody else, so they are as they were left.
    fn found(&mut self) -> io::Result<FastPathFound> {
        let Some(made) = &self.made else {
            return Ok(match (self.left.is_empty(), self.available) {
                (false, _) => FastPathFound::Unknown,
                (true, true) => FastPathFound::Missing,
                (true, false) => FastPathFound::Unavailable,
            });
        };
        for (interface, hook, program) in &made.attached {
            let there = self.filters.find(*interface, *hook)?;
            if there.is_none_or(|filter| filter.program != *program) {
                return Ok(FastPathFound::Unknown);
            }
        }
        match made.attached.len() == 1 + made.now.ends.links.len() {
            true => Ok(FastPathFound::Intact(made.now.clone())),
            false => Ok(FastPathFound::Unknown),
        }
    }

    /// What the tunnel's interfaces sent and got on the fast path since they were made.
    fn carried(&self) -> BTreeMap<u32, Traffic> {
        let mut carried = self.carried.clone();
        let made = self.made.iter().flat_map(|made| made.carried());
        made.for_each(|(link, traffic)| *carried.entry(link).or_default() += traffic);
        carried
    }

    /// Makes the fast path what it should be.
    ///
    /// # Errors
    /// What the kernel said; what is there then carries no packet that it should not.
    pub fn install(&mut self, wanted: &FastPath) -> Result<(), FastPathError> {
        let room = room_for(wanted);
        let fits = |made: &Made| {
            made.now.ends == wanted.ends && made.room >= room && !made.is_crowded(wanted)
        };
        match &mut self.made {
            Some(made) if fits(made) => made.fill(wanted)?,
            Some(_) | None => {
                // Those of an earlier process are replaced one by one, each at once.
                let mut made = Made::new(wanted, room)?;
                made.fill(wanted)?;
                self.carried = self.carried();
                self.made = Some(made);
            }
        }
        self.attach()
    }

    /// Lets nothing pass from and to these remotes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn withdraw(&mut self, remotes: &BTreeSet<SocketAddrV4>) -> Result<(), FastPathError> {
        let Some(made) = &mut self.made else { return Ok(()) };
        remotes.iter().try_for_each(|remote| made.take_out(*remote)).map_err(FastPathError::Entry)
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the kernel said first; what can be removed is removed.
    pub fn remove(&mut self) -> Result<(), FastPathError> {
        self.carried = self.carried();
        let attached = self.made.take().map(|made| made.attached).unwrap_or_default();
        let attached = attached.into_iter().map(|(interface, hook, _)| (interface, hook));
        let mut result = Ok(());
        for (interface, hook) in std::mem::take(&mut self.left).into_iter().chain(attached) {
            result = result.and(absent_is_fine(self.filters.detach(interface, hook)));
        }
        result.map_err(FastPathError::Filter)
    }

    /// What was carried from and to each remote.
    pub fn traffic(&self) -> BTreeMap<SocketAddrV4, Traffic> {
        let Some(made) = &self.made else { return BTreeMap::new() };
        let all = made.ids.iter();
        all.filter_map(|(remote, (id, _))| Some((*remote, made.maps.counts.of(*id).ok()?)))
            .collect()
    }

    fn attach(&mut self) -> Result<(), FastPathError> {
        let Some(made) = &mut self.made else { return Ok(()) };
        let ends = &made.now.ends;
        let uplink =
            constants(ends, uplink::link_header(ends.uplink).map_err(FastPathError::Uplink)?);
        let mut attached = Vec::new();
        let ingress = load("ingress", &INGRESS, &made.maps, &uplink)?;
        let egress = load("egress", &EGRESS, &made.maps, &constants(ends, 0))?;
        let (into, out) =
            ((ends.uplink, Hook::Ingress, &ingress), |link| (link, Hook::Egress, &egress));
        for (interface, hook, program) in
            [into].into_iter().chain(ends.links.iter().copied().map(out))
        {
            self.filters.attach(interface, hook, program.as_fd()).map_err(FastPathError::Filter)?;
            let id = call::program_id(program.as_fd()).map_err(FastPathError::Filter)?;
            attached.push((interface, hook, id));
        }
        made.attached = attached;
        Ok(())
    }
}

fn constants(ends: &FastPathEnds, link_header: u8) -> Constants {
    Constants {
        outer: ends.outer,
        port: ends.port,
        mark: ends.mark,
        time_to_live: ends.time_to_live,
        link_header,
    }
}

/// Room for all entries, and for as many that come later.
fn room_for(wanted: &FastPath) -> u32 {
    let networks: usize = wanted.peers.values().map(|peer| peer.networks.len()).sum();
    let most = networks.max(wanted.peers.len()) + wanted.except.len();
    u32::try_from(most.next_power_of_two()).unwrap_or(u32::MAX).max(ROOM)
}

impl Made {
    fn new(wanted: &FastPath, room: u32) -> Result<Self, FastPathError> {
        let now =
            FastPath { ends: wanted.ends.clone(), peers: BTreeMap::new(), except: BTreeSet::new() };
        let maps = Maps::create(room).map_err(FastPathError::Map)?;
        Ok(Made { now, maps, room, ids: BTreeMap::new(), attached: Vec::new() })
    }

    /// Whether the ids of those that are here and of those that come are too many.
    fn is_crowded(&self, wanted: &FastPath) -> bool {
        let all = self.ids.keys().chain(wanted.peers.keys()).collect::<BTreeSet<_>>().len();
        u32::try_from(all).is_ok_and(|all| all >= self.room)
    }

    /// What was carried, by the index of the tunnel's interface.
    fn carried(&self) -> Vec<(u32, Traffic)> {
        let of = |(id, link): &(u32, u32)| Some((*link, self.maps.counts.of(*id).ok()?));
        self.ids.values().filter_map(of).collect()
    }

    fn fill(&mut self, wanted: &FastPath) -> Result<(), FastPathError> {
        self.fill_maps(wanted).map_err(FastPathError::Entry)
    }

    /// What is no longer right goes first.
    fn fill_maps(&mut self, wanted: &FastPath) -> io::Result<()> {
        for remote in self.now.without(wanted) {
            self.take_out(remote)?;
        }
        let changed: Vec<Ipv4Net> =
            self.now.except.symmetric_difference(&wanted.except).copied().collect();
        for net in &changed {
            match wanted.except.contains(net) {
                true => self.maps.peers.put_nobody(*net)?,
                false => absent_is_fine(self.maps.peers.remove(*net))?,
            }
        }
        self.now.except.clone_from(&wanted.except);
        for (remote, peer) in &wanted.peers {
            let is_bared = peer.networks.iter().any(|net| changed.contains(net));
            if is_bared || self.now.peers.get(remote) != Some(peer) {
                self.put(*remote, peer)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, remote: SocketAddrV4, peer: &FastPeer) -> io::Result<()> {
        let next = u32::try_from(self.ids.len()).unwrap_or(u32::MAX).saturating_add(1);
        let id = self.ids.get(&remote).map_or(next, |(id, _)| *id);
        self.ids.insert(remote, (id, peer.link));
        // Noted before: what is half there is taken out as well.
        self.now.peers.insert(remote, peer.clone());
        let FastPeer { networks, link, mtu } = peer;
        let entry = Peer { remote, mtu: *mtu, uplink: self.now.ends.uplink, id };
        for network in networks.iter().filter(|net| !self.now.except.contains(net)) {
            self.maps.peers.put(*network, &entry)?;
        }
        self.maps.remotes.put(remote, Sender { link: *link, id })
    }

    fn take_out(&mut self, remote: SocketAddrV4) -> io::Result<()> {
        let Some(peer) = self.now.peers.get(&remote) else { return Ok(()) };
        absent_is_fine(self.maps.remotes.remove(remote))?;
        for network in peer.networks.iter().filter(|net| !self.now.except.contains(net)) {
            absent_is_fine(self.maps.peers.remove(*network))?;
        }
        self.now.peers.remove(&remote);
        Ok(())
    }
}

/// Whether the kernel takes both programs; nothing stays of them.
///
/// # Errors
/// What it said.
pub fn probe() -> Result<(), FastPathError> {
    let maps = Maps::create(1).map_err(FastPathError::Map)?;
    let constants = Constants {
        outer: Ipv4Addr::UNSPECIFIED,
        port: 1,
        mark: 0,
        time_to_live: 1,
        link_header: ETHERNET,
    };
    load("ingress", &INGRESS, &maps, &constants)?;
    load("egress", &EGRESS, &maps, &Constants { link_header: 0, ..constants })?;
    Ok(())
}
