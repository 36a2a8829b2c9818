//! Makes, changes, checks and removes the fast path of a tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use netlink_socket2::NetlinkSocket;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::time::{ClockId, clock_gettime};

use super::call::{self, LoadError};
use super::compiled::{EGRESS, INGRESS};
use super::filters::{Filters, Hook};
use super::maps::{Maps, Peer, Sender};
use super::program::{Constants, load};
use super::uplink::{self, ETHERNET, PathMtu};
use crate::engine::config::{DeviceName, TunnelConfig};
use crate::engine::host::{FastPath, FastPathEnds, FastPathFound, FastPeer, Found, Traffic};
use crate::host::translated::is_translated;
use crate::host::{absent_is_fine, ipsec, selective_rules};

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

/// How long the programs take packets without hearing of this process, which reads the host every three
/// seconds. Killed or stopped, it leaves all to the datapath, or to whoever has the port then.
const LEASE: Duration = Duration::from_secs(8);
/// After the kernel has refused something, all packets take the datapath for so long.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Of so many remotes the kernel is asked for the connections, at each reading.
const FEW: usize = 256;

/// The fast path of a tunnel.
pub struct FastPathAdapter {
    filters: Filters,
    ethtool: NetlinkSocket,
    /// Whether the kernel takes the programs.
    available: bool,
    /// What it refused last, and until when that counts ([`in_nanoseconds`]).
    refused: Option<(u64, String)>,
    made: Option<Made>,
    /// What an earlier process of the tunnel left attached.
    left: Vec<(u32, Hook)>,
    /// What was counted before there was none.
    kept: Counted,
}

/// What was carried.
#[derive(Default)]
struct Counted {
    /// The peers, by their first networks, which they keep when they move.
    peers: BTreeMap<Ipv4Net, CountedPeer>,
    /// By the numbers of the peers.
    traffic: Vec<Traffic>,
}

/// A peer whose packets are counted.
#[derive(Clone, Copy)]
struct CountedPeer {
    id: u32,
    /// Index of the interface that it was last behind.
    link: u32,
    /// Where it was last.
    remote: SocketAddrV4,
}

/// What is in the kernel.
struct Made {
    now: FastPath,
    maps: Maps,
    room: u32,
    ingress: Program,
    egress: Program,
    /// As in [`Counted`].
    counted: BTreeMap<Ipv4Net, CountedPeer>,
    /// How many networks the peers have, together.
    networks: usize,
    /// Remotes to which the host translates what the datapath sends: these are not on it.
    translated: BTreeSet<SocketAddrV4>,
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
        let (ethtool, kept) = (NetlinkSocket::new(), Counted::default());
        FastPathAdapter { filters, ethtool, available, refused: None, made: None, left, kept }
    }

    /// Whether the kernel takes the programs, as far as is known.
    pub fn is_available(&self) -> bool {
        let is_over = |(until, _): &(u64, String)| in_nanoseconds(Duration::ZERO) > *until;
        self.available && self.refused.as_ref().is_none_or(is_over)
    }

    /// What the kernel refused, while there is no fast path because of that.
    pub fn refused(&self) -> Option<&str> {
        let refused = self.refused.as_ref().filter(|_| !self.is_available());
        refused.map(|(_, why)| why.as_str())
    }

    /// Leaves all packets to the datapath for a while, after an error; whether that is another one than the
    /// last.
    #[must_use]
    pub fn give_up(&mut self, error: &FastPathError) -> bool {
        if let Err(error) = self.remove() {
            // Its programs take nothing: they have no lease.
            tracing::debug!("cannot remove the fast path: {error}");
        }
        let why = error.to_string();
        let is_news = self.refused.as_ref().is_none_or(|(_, before)| *before != why);
        self.refused = Some((in_nanoseconds(TRY_AGAIN), why));
        is_news
    }

    /// Adds to a reading of the host what is there, what uplinks take, and what was carried: the
    /// interfaces of the tunnel do not count that.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read(&mut self, tunnel: &TunnelConfig, found: &mut Found) -> Result<(), FastPathError> {
        if let Some(made) = &mut self.made {
            // With an interface its filters went, which is no damage.
            let socket =
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(FastPathError::Filter)?;
            let is_there = |index: &u32| index_to_name(&socket, *index).is_ok();
            made.now.links.retain(is_there);
            made.now.uplinks.retain(is_there);
        }
        found.fast_path = self.found()?;
        if let Some(made) = &self.made {
            made.maps.lease.until(in_nanoseconds(LEASE)).map_err(FastPathError::Entry)?;
        }
        if !self.is_available() {
            return Ok(());
        }
        found.ipsec = tunnel.may_have_fast_path() && ipsec::has_policies();
        found.selective_rules = tunnel.may_have_fast_path() && selective_rules::are_there();
        if let Some(made) = &mut self.made {
            made.read_translated();
            found.translated.clone_from(&made.translated);
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
    pub(super) fn found(&mut self) -> Result<FastPathFound, FastPathError> {
        let Some(made) = &self.made else {
            return Ok(match (self.left.is_empty(), self.is_available()) {
                (false, _) => FastPathFound::Unknown,
                (true, true) => FastPathFound::Missing,
                (true, false) => FastPathFound::Unavailable,
            });
        };
        for (interface, hook, program) in made.hooks() {
            let there = self.filters.find(interface, hook).map_err(FastPathError::Filter)?;
            if there.is_none_or(|filter| filter.program != program.id) {
                return Ok(FastPathFound::Unknown);
            }
        }
        Ok(FastPathFound::Intact(made.now.clone()))
    }

    /// What the tunnel's interfaces sent and got on the fast path since they were made.
    pub(super) fn carried(&self) -> BTreeMap<u32, Traffic> {
        let mut carried: BTreeMap<u32, Traffic> = BTreeMap::new();
        self.each_counted(|_, peer, traffic| *carried.entry(peer.link).or_default() += traffic);
        carried
    }

    fn each_counted(&self, mut tell: impl FnMut(&Ipv4Net, &CountedPeer, Traffic)) {
        let counted = self.made.as_ref().map(|made| (&made.counted, made.traffic()));
        let (peers, traffic) = match &counted {
            Some((peers, traffic)) => (*peers, traffic),
            None => (&self.kept.peers, &self.kept.traffic),
        };
        for (first, peer) in peers {
            let of = usize::try_from(peer.id).ok().and_then(|id| traffic.get(id));
            of.into_iter().for_each(|traffic| tell(first, peer, *traffic));
        }
    }

    /// Keeps what was counted, and gives away what is in the kernel.
    fn take(&mut self) -> Option<Made> {
        let mut made = self.made.take()?;
        let traffic = made.traffic();
        self.kept = Counted { peers: std::mem::take(&mut made.counted), traffic };
        Some(made)
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
                let former = self.take();
                let mut made = Made::new(wanted, &self.kept)?;
                made.translated =
                    former.as_ref().map(|former| former.translated.clone()).unwrap_or_default();
                made.fill(wanted)?;
                let stays: Vec<_> = made.places().collect();
                self.made = Some(made);
                for (interface, hook) in former.iter().flat_map(Made::places) {
                    if !stays.contains(&(interface, hook)) {
                        absent_is_fine(self.filters.detach(interface, hook))
                            .map_err(FastPathError::Filter)?;
                    }
                }
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
    /// What the kernel said first; what can be removed is removed, and what stays takes no packet.
    pub fn remove(&mut self) -> Result<(), FastPathError> {
        let made = self.take();
        let mut result = made.iter().try_for_each(|made| made.maps.lease.until(0));
        let places = made.iter().flat_map(Made::places);
        for (interface, hook) in std::mem::take(&mut self.left).into_iter().chain(places) {
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

    /// What was carried from and to each remote, as long as no other peer is there.
    pub fn traffic(&self) -> BTreeMap<SocketAddrV4, Traffic> {
        let at =
            |remote: &SocketAddrV4| self.made.as_ref().and_then(|made| made.now.peers.get(remote));
        let mut traffic = BTreeMap::new();
        self.each_counted(|first, peer, carried| {
            if at(&peer.remote).is_none_or(|there| there.networks.first() == Some(first)) {
                traffic.insert(peer.remote, carried);
            }
        });
        traffic
    }
}

fn constants(ends: &FastPathEnds) -> Constants {
    Constants {
        outer: ends.outer,
        port: ends.port,
        mark: ends.mark,
        time_to_live: ends.time_to_live,
    }
}

/// So long after now, by `CLOCK_MONOTONIC`.
fn in_nanoseconds(later: Duration) -> u64 {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
    u64::try_from((now + later).as_nanos()).unwrap_or(u64::MAX)
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
    /// Maps without entries, with room for all and for as many that come later, and programs with these. They
    /// go on counting from what was counted `before`.
    fn new(wanted: &FastPath, before: &Counted) -> Result<Self, FastPathError> {
        let most = entries(wanted).max(before.peers.len() + wanted.peers.len());
        let room = u32::try_from((2 * most).next_power_of_two());
        let room = room.unwrap_or(u32::MAX).max(ROOM);
        let ends = wanted.ends;
        let (uplinks, links) = (wanted.uplinks.clone(), wanted.links.clone());
        let now = FastPath { ends, uplinks, links, peers: Arc::default(), except: BTreeSet::new() };
        let maps = Maps::create(room).map_err(FastPathError::Map)?;
        maps.counts.begin_with(&before.traffic).map_err(FastPathError::Entry)?;
        maps.lease.until(in_nanoseconds(LEASE)).map_err(FastPathError::Entry)?;
        let program = |name, compiled| {
            let fd = load(name, compiled, &maps, &constants(&ends))?;
            let id = call::program_id(fd.as_fd()).map_err(FastPathError::Filter)?;
            Ok::<_, FastPathError>(Program { fd, id })
        };
        let ingress = program("ingress", &INGRESS)?;
        let egress = program("egress", &EGRESS)?;
        let counted = before.peers.clone();
        let translated = BTreeSet::new();
        Ok(Made { now, maps, room, ingress, egress, counted, networks: 0, translated })
    }

    /// Where which program is to be attached.
    fn hooks(&self) -> impl Iterator<Item = (u32, Hook, &Program)> {
        let out = self.now.links.iter().map(|link| (*link, Hook::Egress, &self.egress));
        let r#in = self.now.uplinks.iter().map(|link| (*link, Hook::Ingress, &self.ingress));
        r#in.chain(out)
    }

    fn places(&self) -> impl Iterator<Item = (u32, Hook)> {
        self.hooks().map(|(interface, hook, _)| (interface, hook))
    }

    /// Whether the maps have room for these, and whether there is an id for each: those of remotes that
    /// went stay with what was counted.
    fn has_room_for(&self, wanted: &FastPath) -> bool {
        let firsts = wanted.peers.values().filter_map(|peer| peer.networks.first());
        let new = firsts.filter(|first| !self.counted.contains_key(first)).count();
        self.fits(entries(wanted).max(self.counted.len() + new))
    }

    fn has_room_for_one(&self, peer: &FastPeer) -> bool {
        let entries = self.networks + self.now.except.len();
        self.fits(entries.max(self.counted.len()) + peer.networks.len())
    }

    fn fits(&self, entries: usize) -> bool {
        u32::try_from(entries).is_ok_and(|entries| entries < self.room)
    }

    /// What was carried, by the numbers of the peers.
    fn traffic(&self) -> Vec<Traffic> {
        self.maps.counts.first(self.counted.len() + 1).unwrap_or_default()
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

    /// Asks whether the host translates what goes to this remote; without an entry, what was known holds.
    fn note_translated(&mut self, remote: SocketAddrV4) -> bool {
        let from = SocketAddrV4::new(self.now.ends.outer, self.now.ends.port);
        match is_translated(from, remote) {
            Some(true) => {
                self.translated.insert(remote);
            }
            Some(false) => {
                self.translated.remove(&remote);
            }
            None => {}
        }
        self.translated.contains(&remote)
    }

    /// Asks for all remotes, as long as there are few. Of many, each was asked for when it was put here.
    fn read_translated(&mut self) {
        let all: Vec<_> = self.now.peers.keys().chain(&self.translated).copied().collect();
        if all.len() <= FEW {
            for remote in all {
                self.note_translated(remote);
            }
        }
    }

    fn put(&mut self, remote: SocketAddrV4, peer: &FastPeer) -> io::Result<()> {
        // Nothing goes to who has no network, or comes from there.
        let Some(first) = peer.networks.first() else { return Ok(()) };
        if self.note_translated(remote) {
            return Ok(());
        }
        let next = u32::try_from(self.counted.len()).unwrap_or(u32::MAX).saturating_add(1);
        let id = self.counted.get(first).map_or(next, |peer| peer.id);
        self.counted.insert(*first, CountedPeer { id, link: peer.link, remote });
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
    let constants = Constants { outer: Ipv4Addr::UNSPECIFIED, port: 1, mark: 0, time_to_live: 1 };
    load("ingress", &INGRESS, &maps, &constants)?;
    load("egress", &EGRESS, &maps, &constants)?;
    Ok(())
}
