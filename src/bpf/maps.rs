//! The maps that both programs read (`fast_path.c` has their C): who has which inner address, who is at
//! which remote, and what was carried.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipnet::Ipv4Net;

use super::call::{self, MapKind, MapSpec};
use crate::engine::host::Traffic;

/// Who has the addresses of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub remote: SocketAddrV4,
    /// Bytes of the largest inner packet that fits on the way there.
    pub mtu: u16,
    /// Index of the interface by which outer packets leave.
    pub uplink: u32,
    pub id: u32,
}

/// Who is at a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// Index of the interface at which its inner packets arrive.
    pub link: u32,
    pub id: u32,
}

pub struct Maps {
    pub peers: Peers,
    pub remotes: Remotes,
    pub counts: Counts,
    pub lease: Lease,
}

impl Maps {
    /// Makes empty maps: for as many networks, for as many remotes, and for ids below that number. Only
    /// the counts take their memory at once.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn create(room: u32) -> io::Result<Self> {
        let (peers, remotes) = (Peers::create(room)?, Remotes::create(room)?);
        Ok(Maps { peers, remotes, counts: Counts::create(room)?, lease: Lease::create()? })
    }
}

/// A map with keys and values of these sizes in bytes.
struct Map<const KEY: usize, const VALUE: usize>(OwnedFd);

impl<const KEY: usize, const VALUE: usize> Map<KEY, VALUE> {
    #[allow(clippy::cast_possible_truncation)] // a few bytes
    fn create(name: &'static str, kind: MapKind, entries: u32) -> io::Result<Self> {
        let (key, value) = (KEY as u32, VALUE as u32);
        call::create_map(&MapSpec { name, kind, key, value, entries }).map(Map)
    }

    fn put(&self, key: &[u8; KEY], value: &[u8; VALUE]) -> io::Result<()> {
        // SAFETY: the map was made for these lengths.
        unsafe { call::update(self.0.as_fd(), key, value) }
    }

    fn remove(&self, key: &[u8; KEY]) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { call::delete(self.0.as_fd(), key) }
    }
}

/// The map `peers`.
pub struct Peers(Map<8, 16>);

impl Peers {
    fn create(room: u32) -> io::Result<Self> {
        Map::create("peers", MapKind::LpmTrie, room).map(Peers)
    }

    /// Says who has the addresses of a network, but for those of smaller networks in it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn put(&self, network: Ipv4Net, peer: &Peer) -> io::Result<()> {
        let mut value = [0; 16];
        value[..4].copy_from_slice(&peer.remote.ip().octets());
        value[4..6].copy_from_slice(&peer.remote.port().to_be_bytes());
        value[6..8].copy_from_slice(&peer.mtu.to_ne_bytes());
        value[8..12].copy_from_slice(&peer.uplink.to_ne_bytes());
        value[12..].copy_from_slice(&peer.id.to_ne_bytes());
        self.0.put(&key(network), &value)
    }

    /// Says that nobody has them: they are the datapath's.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn put_nobody(&self, network: Ipv4Net) -> io::Result<()> {
        // No packet is as short as MTU 0, and no sender has id 0.
        self.0.put(&key(network), &[0; 16])
    }

    /// # Errors
    /// What the kernel said.
    pub fn remove(&self, network: Ipv4Net) -> io::Result<()> {
        self.0.remove(&key(network))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

fn key(network: Ipv4Net) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&u32::from(network.prefix_len()).to_ne_bytes());
    key[4..].copy_from_slice(&network.network().octets());
    key
}

/// The map `remotes`.
pub struct Remotes(Map<8, 8>);

impl Remotes {
    fn create(room: u32) -> io::Result<Self> {
        Map::create("remotes", MapKind::Hash, room).map(Remotes)
    }

    /// Lets a remote in.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn put(&self, remote: SocketAddrV4, sender: Sender) -> io::Result<()> {
        let mut value = [0; 8];
        value[..4].copy_from_slice(&sender.link.to_ne_bytes());
        value[4..].copy_from_slice(&sender.id.to_ne_bytes());
        self.0.put(&remote_key(remote), &value)
    }

    /// # Errors
    /// What the kernel said.
    pub fn remove(&self, remote: SocketAddrV4) -> io::Result<()> {
        self.0.remove(&remote_key(remote))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

fn remote_key(remote: SocketAddrV4) -> [u8; 8] {
    let [a, b, c, d]: [u8; 4] = Ipv4Addr::octets(remote.ip());
    let [high, low] = remote.port().to_be_bytes();
    [a, b, c, d, high, low, 0, 0]
}

/// The map `lease`: until when the programs take packets.
pub struct Lease(Map<4, 8>);

impl Lease {
    /// It is over.
    fn create() -> io::Result<Self> {
        Map::create("lease", MapKind::Array, 1).map(Lease)
    }

    /// Puts off the end to this nanosecond of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn until(&self, last: u64) -> io::Result<()> {
        self.0.put(&[0; 4], &last.to_ne_bytes())
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// The map `counts`, in which every possible processor has its own.
pub struct Counts {
    map: OwnedFd,
    processors: usize,
}

/// Four numbers of eight bytes: packets and bytes that came in, and that went out.
const COUNT: usize = 32;

impl Counts {
    fn create(room: u32) -> io::Result<Self> {
        let spec = MapSpec {
            name: "counts",
            kind: MapKind::PerCpuArray,
            key: 4,
            #[allow(clippy::cast_possible_truncation)] // 32
            value: COUNT as u32,
            entries: room,
        };
        Ok(Counts { map: call::create_map(&spec)?, processors: possible_processors()? })
    }

    /// What was carried from and to the peers with the ids below this number, by id.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn first(&self, count: usize) -> io::Result<Vec<Traffic>> {
        let length = COUNT * self.processors;
        let mut values = vec![0; count * length];
        // SAFETY: the keys of an array have four bytes, and the kernel writes a value for each possible
        // processor.
        unsafe { call::look_up_first(self.map.as_fd(), count, &mut values)? };
        Ok(values.chunks_exact(length).map(sum).collect())
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// Adds up what the processors counted.
fn sum(values: &[u8]) -> Traffic {
    let mut sum = Traffic::default();
    for value in values.chunks_exact(COUNT) {
        let number = |at: usize| {
            let bytes = value.get(8 * at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
        };
        sum += Traffic {
            rx_packets: number(0),
            rx_bytes: number(1),
            tx_packets: number(2),
            tx_bytes: number(3),
        };
    }
    sum
}

/// How many processors the kernel makes room for: one more than the last in
/// /sys/devices/system/cpu/possible, a list such as `0-3`.
fn possible_processors() -> io::Result<usize> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = list.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
