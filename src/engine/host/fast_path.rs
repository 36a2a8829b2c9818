//! The fast path: what two BPF programs on top of a datapath know of a tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ipnet::Ipv4Net;

/// The most remotes that one line of text names.
const SHOWN: usize = 5;

/// The fast path as it should be, or as this process made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FastPath {
    /// Where it is, and what is the same for all packets.
    pub ends: FastPathEnds,
    /// Indexes of the interfaces by which outer packets come and go, with what they put before these.
    pub uplinks: BTreeMap<u32, LinkHeader>,
    /// Indexes of the tunnel's interfaces.
    pub links: BTreeSet<u32>,
    /// Whose packets it carries: no more than those that the datapath lets in.
    pub peers: Arc<BTreeMap<SocketAddrV4, FastPeer>>,
    /// Networks whose inner packets are left to the datapath, even where a peer has a network around them.
    pub except: BTreeSet<Ipv4Net>,
}

/// What an interface puts before its IP packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkHeader {
    /// An Ethernet header, of 14 bytes.
    Ethernet,
    /// Nothing that a program sees, as ppp, WireGuard and the interfaces of tunnels.
    Bare,
}

/// Where a fast path begins and ends. With others it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastPathEnds {
    /// Our outer address.
    pub outer: Ipv4Addr,
    /// Our UDP port, in host byte order.
    pub port: u16,
    /// Firewall mark of outer packets; 0 is none.
    pub mark: u32,
    /// TTL of outer packets.
    pub time_to_live: u8,
    /// Which packets it takes.
    pub takes: Takes,
}

/// Which of the packets that a fast path can carry it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// All, both ways.
    All,
    /// Those that come without a UDP checksum. Linux merges no others for the socket of the userspace datapath
    /// (`udp_gro_receive_segment` in net/ipv4/udp_offload.c), which is faster than the programs with
    /// what was merged, and several times slower without.
    Unchecked,
}

impl Takes {
    /// What is left to the datapath, in words, and why.
    pub fn limit(self) -> Option<&'static str> {
        match self {
            Takes::All => None,
            Takes::Unchecked => Some(
                "only what comes without UDP checksums: packets leave one by one there, so this \
                 process is faster with the rest; --fast-path on insists",
            ),
        }
    }
}

/// A peer at its remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FastPeer {
    /// Its inner addresses.
    pub networks: Arc<[Ipv4Net]>,
    /// Index of the interface that its inner packets come out of.
    pub link: u32,
    /// Index of the interface by which its outer packets come and go.
    pub uplink: u32,
    /// Bytes of the largest inner packet on the way there.
    pub mtu: u16,
}

/// What of a fast path is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FastPathFound {
    /// There can be none here.
    #[default]
    Unavailable,
    /// This process has made none.
    Missing,
    /// Not, or not any more, what this process made.
    Unknown,
    /// As this process made it.
    Intact(FastPath),
}

impl FastPath {
    /// The remotes that are here and not, or not in the same way, in another one.
    pub fn without(&self, other: &FastPath) -> BTreeSet<SocketAddrV4> {
        let stays = |(remote, peer): &(&SocketAddrV4, &FastPeer)| {
            other.peers.get(remote).is_some_and(|there| there == *peer)
        };
        let goes = self.peers.iter().filter(|entry| !stays(entry));
        goes.map(|(remote, _)| *remote).collect()
    }
}

impl fmt::Display for FastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fast path of {}:{}", self.ends.outer, self.ends.port)?;
        for (i, remote) in self.peers.keys().take(SHOWN).enumerate() {
            write!(f, "{} {remote}", if i == 0 { ", for" } else { "," })?;
        }
        match self.peers.len().checked_sub(SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, " and {more} more"),
        }
    }
}
