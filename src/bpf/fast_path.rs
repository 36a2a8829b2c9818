//! Makes, changes, checks and removes the fast path of a tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ipnet::Ipv4Net;
use netlink_socket2::NetlinkSocket;
use rustix::net::netdevice::{index_to_name, name_to_index};

use super::call::{self, LoadError};
use super::compiled::{EGRESS, INGRESS};
use super::filters::{Filters, Hook};
use super::maps::{Maps, Peer, Sender};
use super::program::{Constants, load};
use super::uplink::{self, ETHERNET, PathMtu};
use crate::engine::config::{DeviceName, TunnelConfig};
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
    ingress: Program,
    egress: Program,
    /// The number by which a peer is counted, and the interface that it was last behind. A peer that moves
    /// keeps its first network.
    ids: BTreeMap<Ipv4Net, (u32, u32)>,
    /// How many networks the peers have, together.
    networks: usize,
}

/// A program, and the number by which filters name it.
struct Program {
    fd: OwnedFd,
    id: u32,
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

    /// Whether the kernel takes the programs.
    pub fn is_available(&self) -> bool {
        self.available
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
        let uplinks = found.uplinks.values().copied().chain(device.map(|device| device.index));
        for index in uplinks.collect::<BTreeSet<u32>>() {
            if uplink::link_header(index).is_ok_and(|header| header == ETHERNET) {
                found.ethernet.insert(index);
            }
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
        let Some(FastPath { ends, uplinks, peers, .. }) = self.made.as_ref().map(|made| &made.now)
        else {
            return;
        };
        for uplink in uplinks {
            let Some(most) = found.interface_at(*uplink).map(|uplink| uplink.mtu) else { continue };
            let Ok(asked) = PathMtu::of(ends, *uplink) else { continue };
            for (remote, _) in peers.iter().filter(|(_, peer)| peer.uplink == *uplink) {
                // Without a route nothing is sent.
                let Ok(mtu) = asked.to(*remote) else { continue };
                if mtu < most {
                    let fits = usize::try_from(mtu).unwrap_or(usize::MAX).saturating_sub(OVERHEAD);
                    found.narrow.insert((*remote).into(), fits);
                }
            }
        }
    }

    /// The maps are known to nobody else, so they are as they were left.
    pub(super) fn found(&mut self) -> io::Result<FastPathFound> {
        let Some(made) = &self.made else {
            return Ok(match (self.left.is_empty(), self.available) {
                (false, _) => FastPathFound::Unknown,
                (true, true) => FastPathFound::Missing,
                (true, false) => FastPathFound::Unavailable,
            });
        };
        for (interface, hook, program) in made.hooks() {
            let there = self.filters.find(interface, hook)?;
            if there.is_none_or(|filter| filter.program != program.id) {
                return Ok(FastPathFound::Unknown);
            }
        }
        Ok(FastPathFound::Intact(made.now.clone()))
    }

    /// What the tunnel's interfaces sent and got on the fast path since they were made.
    pub(super) fn carried(&self) -> BTreeMap<u32, Traffic> {
        let mut carried = self.carried.clone();
        let made = self.made.iter().flat_map(|made| made.carried());
        made.for_each(|(link, traffic)| *carried.entry(link).or_default() += traffic);
        carried
    }

    /// Prepares an interface of the tunnel that is not up yet. Later that would lose packets: the kernel
    /// stops an interface that gets a queueing discipline, with what waits there (`qdisc_graft` in
    /// net/sched/sch_api.c).
    pub fn prepare(&mut self, link: &DeviceName) {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok().filter(|_| self.available);
        let index = socket.and_then(|socket| name_to_index(&socket, link.as_str()).ok());
        let prepared = index.map(|index| self.filters.prepare(index));
        if let Some(Err(error)) = prepared {
            // Who attaches a program there is told it again.
            tracing::debug!("no queueing discipline for the fast path at {link}: {error}");
        }
    }

    /// Makes the fast path what it should be.
    ///
    /// # Errors
    /// What the kernel said; what is there then carries no packet that it should not.
    pub fn install(&mut self, wanted: &FastPath) -> Result<(), FastPathError> {
        match &mut self.made {
            Some(made) if made.now.ends == wanted.ends && made.has_room_for(wanted) => {
                made.fill(wanted)?;
                let links = made.now.links.difference(&wanted.links);
                let links = links.map(|link| (*link, Hook::Egress));
                let uplinks = made.now.uplinks.difference(&wanted.uplinks);
                for (interface, hook) in uplinks.map(|link| (*link, Hook::Ingress)).chain(links) {
                    absent_is_fine(self.filters.detach(interface, hook))
                        .map_err(FastPathError::Filter)?;
                }
                made.now.links.clone_from(&wanted.links);
                made.now.uplinks.clone_from(&wanted.uplinks);
            }
            Some(_) | None => {
                // The filters of the former one are replaced one by one, each at once.
                let mut made = Made::new(wanted)?;
                made.fill(wanted)?;
                self.carried = self.carried();
                self.made = Some(made);
            }
        }
        let Some(made) = &self.made else { return Ok(()) };
        for (interface, hook, program) in made.hooks() {
            let filters = &mut self.filters;
            let there = filters.find(interface, hook).map_err(FastPathError::Filter)?;
            if there.is_none_or(|filter| filter.program != program.id) {
                filters
                    .attach(interface, hook, program.fd.as_fd())
                    .map_err(FastPathError::Filter)?;
            }
        }
        Ok(())
    }

    /// Puts a remote on it. Where there is no room, it waits for a plan, which makes room.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add(&mut self, remote: SocketAddrV4, peer: &FastPeer) -> Result<(), FastPathError> {
        match &mut self.made {
            Some(made) if made.has_room_for_one(peer) => {
                made.put(remote, peer).map_err(FastPathError::Entry)
            }
            Some(_) | None => Ok(()),
        }
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
        let made = self.made.take();
        let hooks = made.iter().flat_map(Made::hooks).map(|(interface, hook, _)| (interface, hook));
        let mut result = Ok(());
        for (interface, hook) in std::mem::take(&mut self.left).into_iter().chain(hooks) {
            result = result.and(absent_is_fine(self.filters.detach(interface, hook)));
        }
        result.map_err(FastPathError::Filter)
    }

    /// By which interfaces packets come and go on it, and from and to how many remotes.
    pub fn carries(&self) -> (Vec<String>, usize) {
        let Some(made) = &self.made else { return Default::default() };
        let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else {
            return Default::default();
        };
        let name = |uplink: &u32| index_to_name(&socket, *uplink).ok();
        (made.now.uplinks.iter().filter_map(name).collect(), made.now.peers.len())
    }

    /// What was carried from and to each remote.
    pub fn traffic(&self) -> BTreeMap<SocketAddrV4, Traffic> {
        let Some(made) = &self.made else { return BTreeMap::new() };
        let counted = made.counted();
        let of = |(remote, peer): (&SocketAddrV4, &FastPeer)| {
            let (id, _) = made.ids.get(peer.networks.first()?)?;
            Some((*remote, *counted.get(*id as usize)?))
        };
        made.now.peers.iter().filter_map(of).collect()
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

/// Entries of the map that has the most of them.
fn entries(path: &FastPath) -> usize {
    networks(path) + path.except.len()
}

/// How many networks the peers have, together. Each has one at least.
fn networks(path: &FastPath) -> usize {
    path.peers.values().map(|peer| peer.networks.len()).sum()
}

impl Made {
    /// Empty maps with room for all entries and for as many that come later, and programs with these.
    fn new(wanted: &FastPath) -> Result<Self, FastPathError> {
        let room = u32::try_from((2 * entries(wanted)).next_power_of_two());
        let room = room.unwrap_or(u32::MAX).max(ROOM);
        let ends = wanted.ends;
        let (uplinks, links) = (wanted.uplinks.clone(), wanted.links.clone());
        let now = FastPath { ends, uplinks, links, peers: Arc::default(), except: BTreeSet::new() };
        let maps = Maps::create(room).map_err(FastPathError::Map)?;
        let program = |name, compiled, header| {
            let fd = load(name, compiled, &maps, &constants(&ends, header))?;
            let id = call::program_id(fd.as_fd()).map_err(FastPathError::Filter)?;
            Ok::<_, FastPathError>(Program { fd, id })
        };
        let ingress = program("ingress", &INGRESS, ETHERNET)?;
        let egress = program("egress", &EGRESS, 0)?;
        Ok(Made { now, maps, room, ingress, egress, ids: BTreeMap::new(), networks: 0 })
    }

    /// Where which program is to be attached.
    fn hooks(&self) -> impl Iterator<Item = (u32, Hook, &Program)> {
        let out = self.now.links.iter().map(|link| (*link, Hook::Egress, &self.egress));
        let r#in = self.now.uplinks.iter().map(|link| (*link, Hook::Ingress, &self.ingress));
        r#in.chain(out)
    }

    /// Whether the maps have room for these, and whether there is an id for each: those of remotes that
    /// went stay with what was counted.
    fn has_room_for(&self, wanted: &FastPath) -> bool {
        let firsts = wanted.peers.values().filter_map(|peer| peer.networks.first());
        let new = firsts.filter(|first| !self.ids.contains_key(first)).count();
        self.fits(entries(wanted).max(self.ids.len() + new))
    }

    fn has_room_for_one(&self, peer: &FastPeer) -> bool {
        let entries = self.networks + self.now.except.len();
        self.fits(entries.max(self.ids.len()) + peer.networks.len())
    }

    fn fits(&self, entries: usize) -> bool {
        u32::try_from(entries).is_ok_and(|entries| entries < self.room)
    }

    /// What was carried, by the index of the tunnel's interface.
    fn carried(&self) -> Vec<(u32, Traffic)> {
        let counted = self.counted();
        let of = |(id, link): &(u32, u32)| Some((*link, *counted.get(*id as usize)?));
        self.ids.values().filter_map(of).collect()
    }

    /// What was carried, by id.
    fn counted(&self) -> Vec<Traffic> {
        self.maps.counts.first(self.ids.len() + 1).unwrap_or_default()
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
        for (remote, peer) in &*wanted.peers {
            let is_bared = peer.networks.iter().any(|net| changed.contains(net));
            if is_bared || self.now.peers.get(remote) != Some(peer) {
                self.put(*remote, peer)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, remote: SocketAddrV4, peer: &FastPeer) -> io::Result<()> {
        // Nothing goes to who has no network, or comes from there.
        let Some(first) = peer.networks.first() else { return Ok(()) };
        let next = u32::try_from(self.ids.len()).unwrap_or(u32::MAX).saturating_add(1);
        let id = self.ids.get(first).map_or(next, |(id, _)| *id);
        self.ids.insert(*first, (id, peer.link));
        // Noted before: what is half there is taken out as well.
        let former = Arc::make_mut(&mut self.now.peers).insert(remote, peer.clone());
        self.networks += peer.networks.len();
        self.networks -= former.map_or(0, |former| former.networks.len());
        let FastPeer { networks, link, uplink, mtu } = peer;
        let entry = Peer { remote, mtu: *mtu, uplink: *uplink, id };
        for network in networks.iter().filter(|net| !self.now.except.contains(net)) {
            self.maps.peers.put(*network, &entry)?;
        }
        self.maps.remotes.put(remote, Sender { link: *link, id })
    }

    fn take_out(&mut self, remote: SocketAddrV4) -> io::Result<()> {
        let Some(peer) = self.now.peers.get(&remote).cloned() else { return Ok(()) };
        absent_is_fine(self.maps.remotes.remove(remote))?;
        for network in peer.networks.iter().filter(|net| !self.now.except.contains(net)) {
            absent_is_fine(self.maps.peers.remove(*network))?;
        }
        Arc::make_mut(&mut self.now.peers).remove(&remote);
        self.networks -= peer.networks.len();
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
