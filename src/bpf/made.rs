//! What is in the kernel of a fast path: maps with their entries, and programs.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use rustix::time::{ClockId, clock_gettime};

use super::call::LoadError;
use super::compiled::{EGRESS, INGRESS, INGRESS_BARE};
use super::counted::{Counted, CountedPeer};
use super::filters::Hook;
use super::maps::{Maps, Peer, Sender};
use super::program::{Constants, Program};
use crate::engine::host::{FastPath, FastPathEnds, FastPeer, LinkHeader, Takes, Traffic};
use crate::host::translated::is_translated;
use crate::host::{absent_is_fine, open_files};

/// The least room of the maps. When there are more entries, maps with twice as much take their place.
const ROOM: u32 = 64;
/// With more room, they are made again when most of them went: an entry takes 32 bytes of each processor.
const LARGE: u32 = 4096;
/// How long the programs take packets without hearing of this process, which reads the host every three
/// seconds. Killed or stopped, it leaves all to the datapath, or to the program that has the port then.
pub const LEASE: Duration = Duration::from_secs(8);
/// The most remotes whose connections are asked of the kernel, at each reading.
const FEW: usize = 256;

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
    #[error(
        "this process may have {0} files open (ulimit -n), and the datapaths may need the rest of them"
    )]
    Files(u64),
}

/// What is in the kernel.
pub struct Made {
    pub now: FastPath,
    pub maps: Maps,
    room: u32,
    /// As far as an uplink needs them.
    ingress: BTreeMap<LinkHeader, Program>,
    egress: Program,
    /// As in [`Counted`].
    counted: BTreeMap<Ipv4Net, CountedPeer>,
    /// What was carried before the maps were made: these begin with nothing.
    before: Counted,
    /// How many networks the peers have, together.
    networks: usize,
    /// Remotes to which the host translates what the datapath sends: these are not on it.
    pub translated: BTreeSet<SocketAddrV4>,
}

fn constants(ends: &FastPathEnds) -> Constants {
    Constants {
        outer: ends.outer,
        port: ends.port,
        mark: ends.mark,
        time_to_live: ends.time_to_live,
        left_to_socket: match ends.takes {
            Takes::All => 0,
            Takes::Unchecked => u16::MAX,
        },
    }
}

/// So long after now, by `CLOCK_MONOTONIC`.
pub fn in_nanoseconds(later: Duration) -> u64 {
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
    pub fn new(wanted: &FastPath, before: &Counted) -> Result<Self, FastPathError> {
        let before = before.among(wanted);
        let most = entries(wanted);
        let room = u32::try_from((2 * most).next_power_of_two());
        let room = room.unwrap_or(u32::MAX).max(ROOM);
        let ends = wanted.ends;
        let (uplinks, links) = (BTreeMap::new(), wanted.links.clone());
        let now = FastPath { ends, uplinks, links, peers: Arc::default(), except: BTreeSet::new() };
        let maps = Maps::create(room).map_err(FastPathError::Map)?;
        maps.lease.until(in_nanoseconds(LEASE)).map_err(FastPathError::Entry)?;
        let egress = Program::load("egress", &EGRESS, &maps, &constants(&ends))?;
        // The kernel gives the lowest number that is free.
        let (last, most) = (egress.fd.as_raw_fd().unsigned_abs(), open_files::most());
        if u64::from(last) >= most / 2 {
            return Err(FastPathError::Files(most));
        }
        let counted = before.peers.clone();
        let (ingress, translated) = (BTreeMap::new(), BTreeSet::new());
        let mut made =
            Made { now, maps, room, ingress, egress, counted, before, networks: 0, translated };
        made.set_uplinks(&wanted.uplinks)?;
        Ok(made)
    }

    /// Makes these the uplinks, and loads what they need.
    pub fn set_uplinks(&mut self, uplinks: &BTreeMap<u32, LinkHeader>) -> Result<(), LoadError> {
        for header in uplinks.values() {
            if let Entry::Vacant(missing) = self.ingress.entry(*header) {
                let (name, compiled) = match header {
                    LinkHeader::Ethernet => ("ingress", &INGRESS),
                    LinkHeader::Bare => ("ingress_bare", &INGRESS_BARE),
                };
                let constants = constants(&self.now.ends);
                missing.insert(Program::load(name, compiled, &self.maps, &constants)?);
            }
        }
        self.now.uplinks.clone_from(uplinks);
        Ok(())
    }

    /// Where which program is to be attached.
    pub fn hooks(&self) -> impl Iterator<Item = (u32, Hook, &Program)> {
        let sends = self.now.ends.takes == Takes::All;
        let out = self.now.links.iter().filter(move |_| sends);
        let out = out.map(|link| (*link, Hook::Egress, &self.egress));
        let r#in =
            self.now.uplinks.iter().filter_map(|(link, header)| {
                Some((*link, Hook::Ingress, self.ingress.get(header)?))
            });
        r#in.chain(out)
    }

    pub fn places(&self) -> impl Iterator<Item = (u32, Hook)> {
        self.hooks().map(|(interface, hook, _)| (interface, hook))
    }

    /// Whether these can be put into the maps as they are.
    pub fn suits(&self, wanted: &FastPath) -> bool {
        let is_too_large = self.room > LARGE && entries(wanted) < self.room as usize / 16;
        self.now.ends == wanted.ends && self.has_room_for(wanted) && !is_too_large
    }

    /// Whether the maps have room for these, and whether there is an id for each: those of remotes that
    /// went stay with what was counted.
    fn has_room_for(&self, wanted: &FastPath) -> bool {
        let firsts = wanted.peers.values().filter_map(|peer| peer.networks.first());
        let new = firsts.filter(|first| !self.counted.contains_key(first)).count();
        self.fits(entries(wanted).max(self.counted.len() + new))
    }

    pub fn has_room_for_one(&self, peer: &FastPeer) -> bool {
        let entries = self.networks + self.now.except.len();
        self.fits(entries.max(self.counted.len()) + peer.networks.len())
    }

    fn fits(&self, entries: usize) -> bool {
        u32::try_from(entries).is_ok_and(|entries| entries < self.room)
    }

    /// What was carried.
    pub fn counted(&self) -> Counted {
        let mut traffic = self.maps.counts.first(self.counted.len() + 1).unwrap_or_default();
        traffic.resize(self.counted.len() + 1, Traffic::default());
        traffic.iter_mut().zip(&self.before.traffic).for_each(|(sum, before)| *sum += *before);
        Counted { peers: self.counted.clone(), traffic, gone: self.before.gone.clone() }
    }

    /// Counts what the former one carried until this one, made for these, was attached in its place.
    pub fn follow(&mut self, former: &Made, wanted: &FastPath) {
        // The numbers are the same as when it was made, as the former one got no more peers.
        self.before = former.counted().among(wanted);
    }

    pub fn fill(&mut self, wanted: &FastPath) -> Result<(), FastPathError> {
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
    pub fn read_translated(&mut self) {
        let all: Vec<_> = self.now.peers.keys().chain(&self.translated).copied().collect();
        if all.len() <= FEW {
            for remote in all {
                self.note_translated(remote);
            }
        }
    }

    pub fn put(&mut self, remote: SocketAddrV4, peer: &FastPeer) -> io::Result<()> {
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

    pub fn take_out(&mut self, remote: SocketAddrV4) -> io::Result<()> {
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
