//! Interfaces and their addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number in this network namespace (`ifi_index` of rtnetlink(7)), never 0.
    pub index: u32,
    /// Its name, which others may change while it is up.
    pub name: String,
    /// Whether it is set up (`IFF_UP`); a carrier is not asked for.
    pub up: bool,
    /// Whether it is the loopback interface (`IFF_LOOPBACK`).
    pub loopback: bool,
    /// `IFLA_IFALIAS`, where we leave our mark.
    pub label: Option<String>,
    /// `rp_filter` of this interface; `None` when the kernel did not tell.
    pub rp_filter: Option<u32>,
    /// Whether IPv4 packets that come in by it are forwarded; `None` when the kernel did not tell.
    pub forwarding: Option<bool>,
    /// Whether another IPv4 address of the same network takes the place of the first one when that is
    /// removed, instead of going with it (`promote_secondaries` in ip-sysctl.rst); `None` when the
    /// kernel did not tell.
    pub promotes: Option<bool>,
    /// Bytes of the largest packet that it sends, without a link-layer header.
    pub mtu: u32,
    /// What it is a part of.
    pub master: Option<Master>,
    /// The kind of its root queueing discipline (tc(8)); `None` when the kernel did not tell.
    pub queueing: Option<String>,
    /// What made it, as far as that matters here.
    pub kind: InterfaceKind,
    /// What it carried since it was made.
    pub traffic: Traffic,
}

/// What is noted for an interface that was made after the last reading, and for the next of these one
/// more: the kernel's own numbers are positive in an `int`.
pub(super) const UNKNOWN_INDEX: u32 = 1 << 31;

/// The queueing disciplines that send what waits as fast as the interface takes it, and in about the order
/// in which it came: those that the kernel chooses (`net.core.default_qdisc`), and their like. A `fq` may
/// hold back single sockets, which the uplink does as well.
const QUEUES_ONLY: [&str; 12] = [
    "noop",
    "noqueue",
    "pfifo_fast",
    "pfifo",
    "bfifo",
    "mq",
    "sfq",
    "codel",
    "fq_codel",
    "fq",
    "pie",
    "fq_pie",
];

impl Interface {
    /// The queueing discipline that may send packets later than the interface takes them, or other packets
    /// before, because somebody wants that.
    pub fn shapes(&self) -> Option<&str> {
        self.queueing.as_deref().filter(|kind| !QUEUES_ONLY.contains(kind))
    }

    /// Whether it is in a VRF.
    pub fn in_vrf(&self) -> bool {
        self.master == Some(Master::Vrf)
    }

    /// Its number, unless it was made after the last reading.
    pub fn known_index(&self) -> Option<u32> {
        (self.index < UNKNOWN_INDEX).then_some(self.index)
    }
}

/// What an interface may be a part of (`IFLA_INFO_SLAVE_KIND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Master {
    /// A VRF, whose routing tables are its own.
    Vrf,
    /// A bridge, a bond or the like, which gets what comes in by the interface.
    Switch,
}

/// Two kinds matter to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceKind {
    /// An `ipip` link, this program's or another's.
    Ipip(IpipLink),
    /// A TUN or TAP interface.
    Tun,
    /// Any other interface.
    Other,
}

/// What an `ipip` link is made of, found or wanted (`IFLA_IPTUN_*` in linux/if_tunnel.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpipLink {
    /// Source of its outer packets; 0.0.0.0 leaves the choice to the kernel.
    pub local: Ipv4Addr,
    /// Destination of its outer packets; 0.0.0.0 for one that takes from any.
    pub remote: Ipv4Addr,
    /// Index of the interface its outer packets leave by.
    pub bound_to: Option<u32>,
    /// TTL of the outer packets; 0 means the inner packet's.
    pub ttl: u8,
    /// Whether outer packets carry DF (`IFLA_IPTUN_PMTUDISC`).
    pub path_mtu_discovery: bool,
    /// Firewall mark of the outer packets; 0 is none.
    pub mark: u32,
    /// What is put around its IPIP packets.
    pub encapsulation: Encapsulation,
}

impl IpipLink {
    /// The remote that it leads to, if it puts UDP around its packets.
    pub fn fou_remote(&self) -> Option<SocketAddr> {
        match self.encapsulation {
            Encapsulation::Fou { destination_port, .. } => {
                Some(SocketAddr::from((self.remote, destination_port)))
            }
            Encapsulation::NoneOrOther => None,
        }
    }
}

/// What is put around the IPIP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    /// Foo-over-UDP: a UDP header directly before the inner packet (linux/fou.h).
    Fou {
        /// Source UDP port of outer packets, in host byte order.
        source_port: u16,
        /// Destination UDP port of outer packets, in host byte order.
        destination_port: u16,
        /// Whether outer packets have a UDP checksum (`TUNNEL_ENCAP_FLAG_CSUM`).
        checksum: bool,
    },
    /// Plain IPIP, GUE, or a kind that this program does not make.
    NoneOrOther,
}

/// What an interface carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that came in (`struct rtnl_link_stats64`).
    pub rx_bytes: u64,
    /// Packets that came in.
    pub rx_packets: u64,
    /// Bytes that went out.
    pub tx_bytes: u64,
    /// Packets that went out.
    pub tx_packets: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, more: Traffic) {
        self.rx_bytes += more.rx_bytes;
        self.rx_packets += more.rx_packets;
        self.tx_bytes += more.tx_bytes;
        self.tx_packets += more.tx_packets;
    }
}

/// An address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Its index.
    pub interface: u32,
    /// The address itself, with its network.
    pub value: InterfaceAddress,
    /// How far from here it means this host.
    pub scope: Scope,
    /// Whether it can be used, and how gladly.
    pub state: AddressState,
}

/// How far an address is good (`ifa_scope`, as in rtnetlink(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere.
    #[default]
    Global,
    /// On this link only.
    Link,
    /// In this host only.
    Host,
}

/// What the kernel thinks of an address (`IFA_F_*` in linux/if_addr.h), from the best to the worst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressState {
    /// Good for everything, and the first choice for new connections.
    #[default]
    Preferred,
    /// Another address of its network is the primary one. The same bit marks a temporary IPv6
    /// address (RFC 8981).
    Secondary,
    /// For what uses it already, and for nothing new (RFC 4862).
    Deprecated,
    /// Not usable: nobody knows yet whether another host has it, or one has.
    Tentative,
}

/// An address as an interface has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// The host's own address (`IFA_LOCAL`; for IPv6 without a peer, `IFA_ADDRESS`).
    pub local: IpAddr,
    /// The network on the link; that of the other end, if `local` is not in it.
    pub network: IpNet,
}

impl Interface {
    /// The `ipip` link that this is, if it sends its packets from this UDP port.
    pub fn link_from(&self, port: u16) -> Option<IpipLink> {
        let InterfaceKind::Ipip(link) = self.kind else { return None };
        match link.encapsulation {
            Encapsulation::Fou { source_port, .. } => (source_port == port).then_some(link),
            Encapsulation::NoneOrOther => None,
        }
    }
}

impl Address {
    /// An address without flags and limits.
    pub fn new(interface: u32, value: InterfaceAddress) -> Self {
        Address { interface, value, scope: Scope::Global, state: AddressState::Preferred }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.state != AddressState::Tentative
    }

    /// Neither of link scope nor from a network that no router forwards (RFC 3927, RFC 4291).
    pub(super) fn is_known_beyond_link(&self) -> bool {
        self.scope != Scope::Link
            && match self.value.local {
                IpAddr::V4(v4) => !v4.is_link_local(),
                IpAddr::V6(v6) => !v6.is_unicast_link_local(),
            }
    }
}

impl InterfaceAddress {
    /// The address of a point-to-point link, or one among others in `network`.
    pub fn new(local: IpAddr, network: IpNet) -> Self {
        // The kernel keeps the host bits of a network that the address is in (IFA_ADDRESS is
        // IFA_LOCAL then), and drops them nowhere else.
        let network = if network.contains(&local) {
            IpNet::new(local, network.prefix_len()).unwrap_or(network)
        } else {
            network
        };
        InterfaceAddress { local, network }
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network.addr() == self.local {
            true => write!(f, "{}", self.network),
            false if self.network.prefix_len() == self.network.max_prefix_len() => {
                write!(f, "{} peer {}", self.local, self.network.addr())
            }
            false => write!(f, "{} peer {}", self.local, self.network),
        }
    }
}

impl fmt::Display for IpipLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "local {} remote {}", self.local, self.remote)?;
        if let Encapsulation::Fou { destination_port, .. } = self.encapsulation {
            write!(f, ":{destination_port}")?;
        }
        self.bound_to.map_or(Ok(()), |index| write!(f, " on interface {index}"))
    }
}
