//! What is on the host, as far as it concerns a tunnel: facts, read by `kernel`, judged here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::config::DeviceName;
use super::forwarding::PeerTable;
use super::socket::SocketSpec;

/// One reading of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Shared: there may be thousands, and from one reading to the next few change.
    pub interfaces: Vec<Arc<Interface>>,
    pub addresses: Vec<Address>,
    pub listeners: BTreeSet<Listener>,
    pub rules: RulesFound,
    /// Whether something tracks connections here. Read for the kernel's datapath.
    pub tracks: bool,
    /// Families whose connections are known to be tracked. Read where routes lead into the tunnel.
    pub tracked: BTreeSet<Family>,
    /// Routes and policy rules of ours.
    pub routes: BTreeSet<Route>,
    pub policy_rules: BTreeSet<PolicyRule>,
    pub gateway: GatewayFound,
    /// The kernel's way to the server, when that was asked.
    pub way: Option<Way>,
    /// Its ways to other addresses of the server's name, as far as there are any.
    pub other_ways: BTreeMap<IpAddr, Way>,
    /// The addresses of a name with several that no route leads to: a way there may be a guess.
    pub unrouted: BTreeSet<IpAddr>,
    /// Its way to the other end's address inside the tunnel, when that was asked.
    pub inner_way: Option<Way>,
    /// `rp_filter` of all interfaces (`net.ipv4.conf.all`): the stricter of it and an interface's
    /// own counts (ip-sysctl.rst).
    pub rp_filter_of_all: u32,
    /// Whether the host as a whole is a router (`net.ipv4.ip_forward`). Read for gateways, as the
    /// one before.
    pub ip_forward: bool,
    /// The userspace datapath, if it is the one in use.
    pub userspace: Userspace,
    pub name_servers: NameServers,
    /// Packets that came from the other end and were no data, where the interface's counters leave
    /// them out: those of the kernel's datapath do not (`ip_tunnel_rcv` counts before it looks inside).
    pub answers: u64,
}

/// How outer packets go to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The source address the kernel would choose.
    pub source: IpAddr,
    /// Index of the interface they leave by.
    pub interface: u32,
    /// The router they are given to.
    pub router: Option<IpAddr>,
}

/// What of the userspace datapath is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Userspace {
    pub socket: Option<SocketSpec>,
    /// Whether the TUN interface is there and ours.
    pub interface: bool,
    pub forwarding: PeerTable,
    /// How long ago something came from the remotes behind which inner addresses were learned.
    pub silent: BTreeMap<SocketAddr, Duration>,
}

/// Whose name servers the host uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NameServers {
    #[default]
    Theirs,
    /// Not those of this process, but there is something to put back.
    Changed,
    Ours,
}

/// The nftables table of a gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GatewayFound {
    #[default]
    Missing,
    /// Not, or not any more, what this process installed.
    Unknown,
    Intact,
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
    /// Whether IPv4 packets that come in by it are forwarded; `None` when the kernel did not tell.
    pub forwarding: Option<bool>,
    pub mtu: u32,
    /// Whether it is in a VRF, whose routing tables are its own.
    pub in_vrf: bool,
    pub kind: InterfaceKind,
    pub traffic: Traffic,
}

/// Two kinds matter to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceKind {
    Ipip(IpipLink),
    /// A TUN or TAP interface.
    Tun,
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
    /// Firewall mark of the outer packets; 0 is none.
    pub mark: u32,
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

/// The rules that send everything but marked packets into a tunnel, and leave alone what answers
/// others by the uplink's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyRuleKind {
    /// `not fwmark MARK/MASK lookup TABLE`
    UnlessMarked { mark: u32, mask: u32, table: u32 },
    /// `lookup main suppress_prefixlength 0`: all routes of the main table but its default.
    MainButDefault,
    /// `from ADDRESS lookup main`: no packet has an address yet when it is the kernel's to choose.
    FromOwn(IpAddr),
}

/// The number in `rtm_protocol` and `FRA_PROTOCOL` of what we made (linux/rtnetlink.h: numbers that
/// the kernel leaves to others, none that another routing daemon is known to use).
pub const ROUTE_PROTOCOL: u8 = 105;

/// The nftables rules of a gateway, a table of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySpec {
    pub table: String,
    /// The tunnel's interfaces: one, or where the kernel carries many ends, one for each.
    pub devices: BTreeSet<DeviceName>,
    pub forwarding: Option<ForwardingRules>,
    /// Whose connections get their answers by the uplink, though all else goes through the tunnel.
    pub answers: BTreeMap<Family, Answers>,
}

/// Connections from outside that this host forwards, to a container that publishes a port for one,
/// or that it answers by another address than it was asked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The firewall mark of packets that the tunnel's routes are not for.
    pub mark: u32,
    /// The interface that the connections come in by, …
    pub uplink: String,
    /// … and its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// What is forwarded to and from a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardingRules {
    /// Sources in the tunnel that leave with our address, and by which interface they leave; any
    /// but the tunnel's if `None`.
    pub masquerade: Option<(BTreeSet<Ipv4Net>, Option<DeviceName>)>,
    /// Interfaces that forward only because we turned it on: from them nothing may go anywhere but
    /// into the tunnel, and those of other gateways.
    pub turned_on: BTreeSet<String>,
    /// The other gateways' tunnels; they judge themselves what goes into them.
    pub gateways: BTreeSet<String>,
    /// Whether new connections may go into the tunnel; answers always may.
    pub into_tunnel: bool,
}

/// An address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Its index.
    pub interface: u32,
    pub value: InterfaceAddress,
    pub scope: Scope,
    pub state: AddressState,
}

/// How far an address is good (`ifa_scope`, as in rtnetlink(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub local: IpAddr,
    /// The network on the link; that of the other end, if `local` is not in it.
    pub network: IpNet,
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
    /// The alternate local address that its packets are given; `None`: they keep our outer address.
    pub alternate: Option<Ipv4Addr>,
}

/// What an interface carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
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

impl Found {
    pub fn interface(&self, name: &DeviceName) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name.as_str()).map(Arc::as_ref)
    }

    pub fn interface_at(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.index == index).map(Arc::as_ref)
    }

    /// The address of an interface that outer packets should have. `in_use` stays while it is there;
    /// `routed`, which the kernel would take for a client, comes before the best of the others.
    pub fn outer_address(
        &self,
        index: u32,
        family: Family,
        in_use: Option<IpAddr>,
        routed: Option<IpAddr>,
    ) -> Option<IpAddr> {
        let good: Vec<&Address> = self
            .addresses
            .iter()
            .filter(|a| a.interface == index && Family::of(a.value.local) == family)
            .filter(|a| a.is_usable() && a.is_known_beyond_link())
            .collect();
        let find = |address: Option<IpAddr>| good.iter().find(|a| Some(a.value.local) == address);
        let chosen = match (find(in_use), find(routed)) {
            // The kernel would take every new temporary address (RFC 8981) at once.
            (Some(in_use), Some(_))
                if family == Family::V6 && in_use.state < AddressState::Deprecated =>
            {
                Some(in_use)
            }
            (_, Some(routed)) => Some(routed),
            (Some(in_use), None) => Some(in_use),
            (None, None) => good.iter().min_by_key(|a| (a.scope == Scope::Host, a.state)),
        };
        chosen.map(|address| address.value.local)
    }

    /// Whether the host may be able to send over IPv6 to others than its neighbours.
    pub fn has_global_ipv6(&self) -> bool {
        self.addresses.iter().any(|a| {
            a.value.local.is_ipv6()
                && !a.value.local.is_loopback()
                && a.is_usable()
                && a.is_known_beyond_link()
        })
    }

    /// The family of the outer addresses that an interface has: IPv4 where there is a choice.
    pub fn family_on(&self, device: &DeviceName) -> Family {
        let has = |family| {
            let index = self.interface(device).map(|interface| interface.index);
            index.is_some_and(|index| self.outer_address(index, family, None, None).is_some())
        };
        match !has(Family::V4) && has(Family::V6) {
            true => Family::V6,
            false => Family::V4,
        }
    }

    /// The addresses of an interface that others can reach.
    pub fn addresses_on(&self, index: Option<u32>, family: Family) -> impl Iterator<Item = IpAddr> {
        let own = self.addresses.iter().filter(move |a| Some(a.interface) == index);
        own.map(|a| a.value.local).filter(move |address| match address {
            IpAddr::V4(_) => family == Family::V4,
            IpAddr::V6(v6) => family == Family::V6 && !v6.is_unicast_link_local(),
        })
    }

    /// The interface that has this address.
    pub fn interface_of(&self, address: IpAddr) -> Option<&Interface> {
        let found = self.addresses.iter().find(|a| a.value.local == address)?;
        self.interface_at(found.interface)
    }

    /// Forgets a way that leads into one of these interfaces: outer packets cannot go by the tunnel that
    /// they make. Tells which one it was.
    pub fn forget_way_into(&mut self, devices: &[DeviceName]) -> Option<DeviceName> {
        let mut other_ways = std::mem::take(&mut self.other_ways);
        other_ways.retain(|_, way| !self.is_one_of(way.interface, devices));
        self.other_ways = other_ways;
        let interface = self.interface_at(self.way?.interface)?;
        let device = devices.iter().find(|device| device.as_str() == interface.name)?.clone();
        self.way = None;
        Some(device)
    }

    /// Whether an interface with this index has one of these names.
    pub fn is_one_of(&self, index: u32, devices: &[DeviceName]) -> bool {
        let interface = self.interface_at(index);
        interface.is_some_and(|i| devices.iter().any(|device| device.as_str() == i.name))
    }

    /// Whether this address is on one of these interfaces, and on no other.
    pub fn is_only_on(&self, address: IpAddr, devices: &[DeviceName]) -> bool {
        let holders: Vec<_> = self.addresses.iter().filter(|a| a.value.local == address).collect();
        !holders.is_empty()
            && holders.iter().all(|holder| self.is_one_of(holder.interface, devices))
    }

    /// Index of the loopback interface.
    pub fn loopback(&self) -> Option<u32> {
        self.interfaces.iter().find(|i| i.loopback).map(|i| i.index)
    }

    pub fn has_local(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.value.local == address)
    }

    /// Whether it stands for all hosts of a network that one of our addresses is in.
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| match a.value.network {
            IpNet::V4(net) if net.prefix_len() <= 30 => {
                address == IpAddr::V4(net.broadcast()) || address == IpAddr::V4(net.network())
            }
            IpNet::V4(_) | IpNet::V6(_) => false,
        })
    }

    /// Takes an address away, as if the host had it not.
    pub fn hide(&mut self, address: IpAddr) {
        self.addresses.retain(|a| a.value.local != address);
        self.way = self.way.filter(|way| way.source != address);
        self.other_ways.retain(|_, way| way.source != address);
    }

    /// Whether packets can have this address as their source.
    pub fn can_use(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.value.local == address && a.is_usable())
    }
}

impl Address {
    /// An address without flags and limits.
    pub fn new(interface: u32, value: InterfaceAddress) -> Self {
        Address { interface, value, scope: Scope::Global, state: AddressState::Preferred }
    }

    fn is_usable(&self) -> bool {
        self.state != AddressState::Tentative
    }

    /// Neither of link scope nor from a network that no router forwards (RFC 3927, RFC 4291).
    fn is_known_beyond_link(&self) -> bool {
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

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
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

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            RouteTarget::Interface(_) => write!(f, "route to {}", self.destination),
            RouteTarget::Unreachable => write!(f, "unreachable route to {}", self.destination),
        }
    }
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            PolicyRuleKind::UnlessMarked { mark, mask, table } => {
                write!(f, "rule: not fwmark {mark:#x}/{mask:#x} lookup {table}")
            }
            PolicyRuleKind::MainButDefault => {
                f.write_str("rule: lookup main suppress_prefixlength 0")
            }
            PolicyRuleKind::FromOwn(address) => write!(f, "rule: from {address} lookup main"),
        }
    }
}

impl fmt::Display for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.alternate {
            None => write!(f, "{}", self.remote),
            Some(alternate) => write!(f, "{} as {alternate}", self.remote),
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
