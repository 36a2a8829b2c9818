//! Makes, changes, checks and removes the fast path of a tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use ipnet::Ipv4Net;

use super::call::{self, LoadError};
use super::compiled::{EGRESS, INGRESS};
use super::filters::{Filters, Hook};
use super::maps::{Maps, Peer, Sender};
use super::program::{Constants, load};
use crate::engine::host::{FastPath, FastPathEnds, FastPathFound, FastPeer, Traffic};
use crate::host::absent_is_fine;

/// The least room of the maps. When there are more entries, maps with twice as much take their place.
const ROOM: u32 = 64;
/// `ETH_HLEN` in linux/if_ether.h.
const ETHERNET: u8 = 14;

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
    made: Option<Made>,
}

/// What is in the kernel.
struct Made {
    now: FastPath,
    maps: Maps,
    room: u32,
    /// The number by which a peer is counted.
    ids: BTreeMap<SocketAddrV4, u32>,
    /// Where which program is attached.
    attached: Vec<(u32, Hook, u32)>,
}

impl FastPathAdapter {
    pub fn of(tunnel: &str) -> Self {
        FastPathAdapter { filters: Filters::of(tunnel), made: None }
    }

    /// What is there of what this process made. The maps are known to nobody else.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read(&mut self) -> io::Result<FastPathFound> {
        let Some(made) = &self.made else { return Ok(FastPathFound::Missing) };
        for (interface, hook, program) in &made.attached {
            let there = self.filters.find(*interface, *hook)?;
            if there.is_none_or(|filter| filter.program != *program) {
                return Ok(FastPathFound::Unknown);
            }
        }
        Ok(FastPathFound::Intact(made.now.clone()))
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
        let Some(made) = self.made.take() else { return Ok(()) };
        let mut result = Ok(());
        for (interface, hook, _) in made.attached {
            result = result.and(absent_is_fine(self.filters.detach(interface, hook)));
        }
        result.map_err(FastPathError::Filter)
    }

    /// What was carried from and to each remote.
    pub fn traffic(&self) -> BTreeMap<SocketAddrV4, Traffic> {
        let Some(made) = &self.made else { return BTreeMap::new() };
        let of =
            |(remote, id): (&SocketAddrV4, &u32)| Some((*remote, made.maps.counts.of(*id).ok()?));
        made.ids.iter().filter_map(of).collect()
    }

    fn attach(&mut self) -> Result<(), FastPathError> {
        let Some(made) = &mut self.made else { return Ok(()) };
        let ends = &made.now.ends;
        let uplink = constants(ends, link_header(ends.uplink).map_err(FastPathError::Uplink)?);
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

    fn fill(&mut self, wanted: &FastPath) -> Result<(), FastPathError> {
        self.fill_maps(wanted).map_err(FastPathError::Entry)
    }

    /// What is no longer right goes first.
    fn fill_maps(&mut self, wanted: &FastPath) -> io::Result<()> {
        for remote in self.now.without(wanted) {
            self.take_out(remote)?;
        }
        for net in wanted.except.difference(&self.now.except) {
            self.maps.peers.put_nobody(*net)?;
        }
        let gone: Vec<Ipv4Net> = self.now.except.difference(&wanted.except).copied().collect();
        for net in gone {
            absent_is_fine(self.maps.peers.remove(net))?;
        }
        self.now.except.clone_from(&wanted.except);
        for (remote, peer) in &wanted.peers {
            if self.now.peers.get(remote) != Some(peer) {
                self.put(*remote, peer)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, remote: SocketAddrV4, peer: &FastPeer) -> io::Result<()> {
        let free =
            || (1..).find(|id| !self.ids.values().any(|used| used == id)).unwrap_or_default();
        let id = self.ids.get(&remote).copied().unwrap_or_else(free);
        self.ids.insert(remote, id);
        // Noted before: what is half there is taken out as well.
        self.now.peers.insert(remote, peer.clone());
        let FastPeer { networks, link, mtu } = peer;
        self.maps.remotes.put(remote, Sender { link: *link, id })?;
        let entry = Peer { remote, mtu: *mtu, uplink: self.now.ends.uplink, id };
        for network in networks.iter().filter(|net| !self.now.except.contains(net)) {
            self.maps.peers.put(*network, &entry)?;
        }
        Ok(())
    }

    fn take_out(&mut self, remote: SocketAddrV4) -> io::Result<()> {
        let Some(peer) = self.now.peers.get(&remote) else { return Ok(()) };
        absent_is_fine(self.maps.remotes.remove(remote))?;
        for network in peer.networks.iter() {
            absent_is_fine(self.maps.peers.remove(*network))?;
        }
        self.now.peers.remove(&remote);
        Ok(())
    }
}

/// Bytes of the header that an interface's packets have before IP.
fn link_header(interface: u32) -> io::Result<u8> {
    /// Of modems (linux/if_arp.h).
    const ARPHRD_RAWIP: libc::sa_family_t = 519;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let name = rustix::net::netdevice::index_to_name(&socket, interface)?;
    // SAFETY: a structure of numbers and unions of these.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let to = request.ifr_name.iter_mut();
    to.zip(name.bytes()).for_each(|(to, from)| *to = from.cast_signed());
    // SAFETY: the structure is that of netdevice(7), and the name, of 15 bytes at most, ends with zero.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled in an address.
    match unsafe { request.ifr_ifru.ifru_hwaddr.sa_family } {
        libc::ARPHRD_ETHER => Ok(ETHERNET),
        libc::ARPHRD_PPP | libc::ARPHRD_NONE | ARPHRD_RAWIP => Ok(0),
        _ => Err(io::ErrorKind::Unsupported.into()),
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
