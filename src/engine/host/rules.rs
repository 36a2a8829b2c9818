//! The FOU listeners of the kernel's datapath, and the rules that guard them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::engine::config::{DeviceName, QueueConfig};

/// A FOU listener for IPIP: UDP port in, IP protocol 4 out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// UDP port in host byte order (`FOU_ATTR_PORT`).
    pub port: u16,
    /// `None`: any local address.
    pub local: Option<Ipv4Addr>,
    /// Index of the interface it is bound to.
    pub bound_to: Option<u32>,
}

impl Listener {
    /// Whether packets for `wanted` end up in this one.
    pub fn serves(&self, wanted: &Listener) -> bool {
        self.port == wanted.port
            && (self.local.is_none() || self.local == wanted.local)
            && (self.bound_to.is_none() || self.bound_to == wanted.bound_to)
    }
}

/// The nftables table of this tunnel, as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RulesFound {
    /// No such table.
    #[default]
    Missing,
    /// A table of our name whose rules are not the ones this process installed.
    Unknown,
    /// The rules this process installed, and the remotes they let in.
    Intact(BTreeSet<Admitted>),
    /// This host cannot have rules (no `nft` on a client); nothing is asked of it.
    Unavailable,
}

/// A remote whose data packets the rules let in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Admitted {
    /// Outer address and UDP port that its packets come from.
    pub remote: SocketAddrV4,
    /// The alternate local address that its packets are given; `None`: they keep our outer address.
    pub alternate: Option<Ipv4Addr>,
    /// The inner networks behind it, if all remotes share a link: none is in another one, of this remote or of
    /// others. `None`: it has a link of its own.
    pub networks: Option<Arc<[Ipv4Net]>>,
}

impl Admitted {
    /// A remote with a link of its own, whose packets keep our outer address.
    pub fn direct(remote: SocketAddrV4) -> Self {
        Admitted { remote, alternate: None, networks: None }
    }
}

impl fmt::Display for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.remote)?;
        if let Some(alternate) = self.alternate {
            write!(f, " as {alternate}")?;
        }
        let Some(networks) = &self.networks else { return Ok(()) };
        for (i, network) in networks.iter().enumerate() {
            write!(f, "{} {network}", if i == 0 { " with" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.local {
            Some(local) => write!(f, "{local}:{}", self.port)?,
            None => write!(f, "*:{}", self.port)?,
        }
        self.bound_to.map_or(Ok(()), |index| write!(f, " on interface {index}"))
    }
}

/// Everything the rules depend on, but for the remotes they let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// Name of the nftables table, in family `ip`.
    pub table: String,
    /// Our outer address, which the guarded listener is on.
    pub outer: Ipv4Addr,
    /// UDP port of the guarded listener, in host byte order.
    pub port: u16,
    /// Alternate local addresses in use; nothing from outside may reach them.
    pub alternate: BTreeSet<Ipv4Addr>,
    /// Whether the listener takes only what comes in by one interface.
    pub bound: bool,
    /// Tunnel interfaces of this and other processes: what comes out of them is not an outer packet
    /// of this tunnel.
    pub inside: BTreeSet<String>,
    /// What the names of links begin with of which a tunnel has one for each remote; they are not in
    /// `inside` then, so that the rules stay while links come and go.
    pub inside_too: BTreeSet<String>,
    /// The link that all remotes share; `None`: each has its own.
    pub shared: Option<SharedLink>,
    /// Remotes that nothing is sent to: they are not admitted any more.
    pub silenced: BTreeSet<SocketAddrV4>,
    /// Remotes that are not admitted and whose answers are queued all the same: those of several servers.
    pub answering: BTreeSet<SocketAddrV4>,
    /// Whether outer packets of admitted remotes are kept from conntrack.
    pub untracked: bool,
    /// What becomes of packets that may be authentication packets.
    pub control: Control,
    /// Whether each kind of dropped packet has a named counter.
    pub counters: bool,
}

/// A link that all remotes share, as the rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedLink {
    /// Name of the interface.
    pub device: DeviceName,
    /// The alternate local address that it always has.
    pub alternate: Ipv4Addr,
}

/// What happens to packets that are not data of an admitted remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// A client expects none.
    Refuse,
    /// A server looks at them in the queue.
    Queue {
        /// The queue that this process reads.
        queue: QueueConfig,
        /// Which packets go there; everything else is dropped.
        shape: PacketShape,
    },
}

impl Control {
    /// Whether this is a client whose server answers.
    pub fn is_client(&self) -> bool {
        matches!(self, Control::Queue { shape: PacketShape::Answers, .. })
    }

    /// Whether this is a server whose peers are named in files.
    pub fn is_hub(&self) -> bool {
        matches!(self, Control::Queue { shape: PacketShape::Hellos { .. }, .. })
    }

    /// Whether the address that a packet comes from is its only proof.
    pub fn proof_is_address(&self) -> bool {
        matches!(self, Control::Queue { shape: PacketShape::FromRemote { .. }, .. })
    }
}

/// How an authentication packet differs from data, without knowing who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketShape {
    /// Anything of at least `length` and at most `longest` payload bytes whose first four bits are not
    /// 4; and packets of exactly `length` bytes that could be taken for IPv4 but for their total
    /// length field.
    NotIpv4 {
        /// Bytes of the payload without a tail.
        length: u16,
        /// Bytes of the longest payload.
        longest: u16,
    },
    /// Hellos of control protocol v2 that name this server: 128 bytes that no inner packet begins with,
    /// and the first eight bytes of the server's key where the receiver is named.
    Hellos {
        /// The first eight bytes of our own public key.
        receiver: [u8; 8],
    },
    /// Answers of control protocol v2 from a remote that is admitted: they begin with 0x80 to 0x8f.
    Answers,
    /// Anything at all from the remote that is let in by its address.
    FromRemote {
        /// Its address; `None`: any.
        ip: Option<IpAddr>,
        /// Its UDP port, in host byte order; `None`: any.
        port: Option<u16>,
    },
}
