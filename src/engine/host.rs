//! What is on the host, as far as it concerns a tunnel: facts, read by `kernel`, judged here.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use ipnet::{IpNet, Ipv4Net};

use super::config::DeviceName;

/// One reading of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub interfaces: Vec<Interface>,
    pub addresses: Vec<Address>,
    pub listeners: BTreeSet<Listener>,
    pub rules: RulesFound,
    /// The source address the kernel would choose towards the server, when that was asked.
    pub route_source: Option<Ipv4Addr>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub loopback: bool,
    /// `IFLA_IFALIAS`, where we leave our mark.
    pub label: Option<String>,
    /// `rp_filter` of this interface; `None` when the kernel did not tell.
    pub rp_filter: Option<u32>,
    pub kind: InterfaceKind,
    pub traffic: Traffic,
}

/// Only one kind matters to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceKind {
    Ipip(IpipLink),
    Other,
}

/// What an `ipip` link is made of, found or wanted (`IFLA_IPTUN_*` in linux/if_tunnel.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpipLink {
    pub local: Ipv4Addr,
    pub remote: Ipv4Addr,
    /// Index of the interface its outer packets leave by.
    pub bound_to: Option<u32>,
    /// TTL of the outer packets; 0 means the inner packet's.
    pub ttl: u8,
    pub path_mtu_discovery: bool,
    pub encapsulation: Encapsulation,
}

/// What is put around the IPIP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    Fou { source_port: u16, destination_port: u16, checksum: bool },
    NoneOrOther,
}

/// A route of ours; by [`ROUTE_PROTOCOL`] we know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub destination: IpNet,
    /// Number of the routing table.
    pub table: u32,
    pub target: RouteTarget,
    /// Preferred source address.
    pub source: Option<IpAddr>,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteTarget {
    /// Index of an interface.
    Interface(u32),
    /// Nowhere: the sender is told that the host is unreachable.
    Unreachable,
}

/// A routing policy rule of ours (ip-rule(8)); by [`ROUTE_PROTOCOL`] we know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    pub family: Family,
    pub priority: u32,
    pub kind: PolicyRuleKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// The two rules that send everything but marked packets into a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyRuleKind {
    /// `not fwmark MARK lookup TABLE`
    UnlessMarked { mark: u32, table: u32 },
    /// `lookup main suppress_prefixlength 0`: all routes of the main table but its default.
    MainButDefault,
}

/// The number in `rtm_protocol` and `FRA_PROTOCOL` of what we made (linux/rtnetlink.h: numbers that
/// the kernel leaves to others, none that another routing daemon is known to use).
pub const ROUTE_PROTOCOL: u8 = 105;

/// The nftables rules of a gateway, a table of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySpec {
    pub table: String,
    /// The tunnel's interface.
    pub device: DeviceName,
    /// Sources in the tunnel that leave with our address, and by which interface they leave; any but
    /// the tunnel's if `None`.
    pub masquerade: Option<(BTreeSet<Ipv4Net>, Option<DeviceName>)>,
    /// Interfaces that forward only because we turned it on: from them nothing may go anywhere but
    /// into the tunnel.
    pub turned_on: BTreeSet<String>,
}

/// An IPv4 address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub interface: u32,
    pub local: Ipv4Addr,
    /// The other end of a point-to-point address; equal to `local` otherwise.
    pub peer: Ipv4Addr,
    pub prefix: u8,
}

/// A FOU listener for IPIP: UDP port in, IP protocol 4 out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
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

/// Our nftables table.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Admitted {
    pub remote: SocketAddrV4,
    /// The private local address that its packets are given; `None`: they keep our outer address.
    pub private: Option<Ipv4Addr>,
}

/// What an interface carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
}

impl Found {
    pub fn interface(&self, name: &DeviceName) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name.as_str())
    }

    /// The first IPv4 address of an interface, in the kernel's order.
    pub fn first_address(&self, index: u32) -> Option<Ipv4Addr> {
        self.addresses.iter().find(|a| a.interface == index).map(|a| a.local)
    }

    /// Index of the loopback interface.
    pub fn loopback(&self) -> Option<u32> {
        self.interfaces.iter().find(|i| i.loopback).map(|i| i.index)
    }

    pub fn has_local(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|a| a.local == address)
    }
}

impl fmt::Display for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.private {
            None => write!(f, "{}", self.remote),
            Some(private) => write!(f, "{} as {private}", self.remote),
        }
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

impl fmt::Display for IpipLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "local {} remote {}", self.local, self.remote)?;
        if let Encapsulation::Fou { destination_port, .. } = self.encapsulation {
            write!(f, ":{destination_port}")?;
        }
        self.bound_to.map_or(Ok(()), |index| write!(f, " on interface {index}"))
    }
}
