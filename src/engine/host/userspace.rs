//! The UDP socket of the userspace datapath, and its table of remotes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::rules::PacketShape;
use crate::engine::config::{DeviceName, TunnelConfig};

/// A UDP socket as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSpec {
    /// Our outer address and UDP port, which it is bound to.
    pub address: SocketAddr,
    /// Bound to this interface (`SO_BINDTODEVICE`).
    pub device: Option<DeviceName>,
    /// Firewall mark of what it sends (`SO_MARK`).
    pub mark: Option<u32>,
    /// UDP checksum of what it sends over IPv4; `None` leaves it to the kernel.
    pub checksum: Option<bool>,
}

impl SocketSpec {
    /// The socket of a tunnel at this outer address.
    pub fn of(tunnel: &TunnelConfig, address: IpAddr) -> Self {
        SocketSpec {
            address: SocketAddr::new(address, tunnel.port.get()),
            device: tunnel.outer.device().cloned(),
            mark: tunnel.mark(),
            checksum: tunnel.checksum,
        }
    }
}

impl fmt::Display for SocketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.device.as_ref().map_or(Ok(()), |device| write!(f, " on {device}"))
    }
}

/// What the userspace datapath forwards: which inner addresses are behind which remote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerTable {
    /// How authentication packets differ from data; `None`: they are not read.
    pub control: Option<PacketShape>,
    /// What goes to and may come from each remote that is known by now.
    pub remotes: BTreeMap<SocketAddr, RemoteSpec>,
    /// The networks of all peers that files name, connected or not, each with whether its peer reaches no other.
    /// Empty where every peer may reach every other.
    pub named: Arc<[(IpNet, bool)]>,
    /// Remotes that are not admitted and whose answers are read all the same: those of several servers.
    pub answering: BTreeSet<SocketAddr>,
    /// How inner addresses are learned; `None`: they are all known.
    pub learn: Option<LearnSpec>,
}

/// What goes to one remote, and what may come from it. There may be thousands, and a reading of the host
/// has them, too: networks are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteSpec {
    /// Inner addresses that are reached through it.
    pub destinations: Arc<[IpNet]>,
    /// Inner addresses that its packets may come from; none: its packets are not taken.
    pub sources: Arc<[IpNet]>,
    /// It reaches no other remote.
    pub isolated: bool,
}

/// Which inner addresses may be learned, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnSpec {
    /// Only addresses of these networks …
    pub within: Vec<IpNet>,
    /// … but for our own.
    pub except: Vec<IpAddr>,
    /// How many addresses are learned at most.
    pub limit: usize,
    /// How long an address may be silent before it is forgotten, and free for another remote.
    pub lifetime: Duration,
    /// Whether remotes are taken that did not authenticate.
    pub from_anybody: bool,
    /// What an earlier process learned: taken over before anything is forwarded.
    pub before: Arc<BTreeMap<IpAddr, SocketAddr>>,
}
