//! One reading of the host, as far as it concerns a tunnel: adapters read the facts, this judges them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::addresses::Addresses;
use super::fast_path::{FastPathFound, LinkHeader};
use super::interface::{Address, AddressState, Interface, Scope};
use super::interfaces::Interfaces;
use super::routing::{Family, KernelRoute, PolicyRule, Route, RulesOfHost};
use super::rules::{Listener, RulesFound};
use super::userspace::{PeerTable, SocketSpec};
use crate::engine::config::DeviceName;

/// One reading of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Those of the tunnel, and others that matter to it.
    pub interfaces: Interfaces,
    /// Every address of every interface of the namespace (`RTM_GETADDR`).
    pub addresses: Addresses,
    /// The FOU listeners for IPIP, those of other programs too (`FOU_CMD_GET` in linux/fou.h).
    pub listeners: BTreeSet<Listener>,
    /// The nftables table of this tunnel.
    pub rules: RulesFound,
    /// Where an earlier process let peers in by a link that they share, by their inner networks or parts of these.
    pub admitted_before: BTreeMap<Ipv4Net, SocketAddrV4>,
    /// Whether something tracks connections here. Read for the kernel's datapath.
    pub tracks: bool,
    /// Families whose connections are known to be tracked. Read where routes lead into the tunnel, and where
    /// there may be a fast path.
    pub tracked: BTreeSet<Family>,
    /// The routes that carry [`ROUTE_PROTOCOL`](super::ROUTE_PROTOCOL).
    pub routes: BTreeSet<Route>,
    /// Routes that the kernel made with addresses of the tunnel's links, and that are gone without them.
    pub lost_routes: BTreeSet<KernelRoute>,
    /// The policy rules that carry [`ROUTE_PROTOCOL`](super::ROUTE_PROTOCOL), except exceptions that come
    /// after a rule into a tunnel, and so have no effect.
    pub policy_rules: BTreeSet<PolicyRule>,
    /// The nftables table of this tunnel's gateway.
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
    /// The name servers that programs of this host ask. Read where the server gives inner addresses.
    pub asked: BTreeSet<IpAddr>,
    /// The routes, with their interfaces, by which packets would go to addresses that the server gives. The
    /// kernel names no interface of a route with several.
    pub routed: BTreeMap<IpAddr, Option<(IpNet, Option<u32>)>>,
    /// The indexes of the interfaces by which packets leave for remotes of a tunnel that is bound to none.
    /// Read where there may be a fast path.
    pub uplinks: BTreeMap<IpAddr, u32>,
    /// The fast path.
    pub fast_path: FastPathFound,
    /// Indexes of the interfaces, as far as outer packets may leave by them, that take superpackets with
    /// UDP around. Read where there may be a fast path.
    pub superpackets: BTreeSet<u32>,
    /// Indexes of the interfaces, as far as outer packets may leave by them, with what they put before
    /// these, where that is known. Read where there may be a fast path.
    pub link_headers: BTreeMap<u32, LinkHeader>,
    /// Whether the host has IPsec policies. Read where there may be a fast path.
    pub ipsec: bool,
    /// What the host's policy rules ask for. Read for the kernel's datapath, and where there may be a fast path.
    pub rules_of_host: Arc<RulesOfHost>,
    /// Remotes to which the host translates our packets. Read where there is a fast path.
    pub translated: BTreeSet<SocketAddrV4>,
    /// Remotes whose path is known to be narrower than its first interface, each with the bytes of the
    /// longest inner packet that fits. Read where there may be a fast path.
    pub narrow: BTreeMap<SocketAddr, usize>,
    /// Whether `--dns` is in force on the host.
    pub name_servers: NameServers,
    /// Packets that came from the other end and were not data, where the interface's counters leave
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
    /// The UDP socket that is open, as it was asked for.
    pub socket: Option<SocketSpec>,
    /// Whether the TUN interface is there and ours.
    pub interface: bool,
    /// The table of remotes that the datapath uses now.
    pub forwarding: PeerTable,
    /// How long ago something came from the remotes behind which inner addresses were learned.
    pub silent: BTreeMap<SocketAddr, Duration>,
    /// Which inner addresses were learned, and behind which remotes.
    pub learned: BTreeMap<IpAddr, SocketAddr>,
}

/// Whose name servers the host uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NameServers {
    /// Those that the host had without us.
    #[default]
    Theirs,
    /// Not those of this process, but there is something to put back.
    Changed,
    /// Those that this process was asked to use.
    Ours,
}

/// The nftables table of a gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GatewayFound {
    /// There is no such table.
    #[default]
    Missing,
    /// Not, or not any more, what this process installed.
    Unknown,
    /// The table is as this process installed it.
    Intact,
}

impl Found {
    /// The interface of this name.
    pub fn interface(&self, name: &DeviceName) -> Option<&Interface> {
        self.interfaces.named(name.as_str())
    }

    /// Where an earlier process let in whoever has this network, by a link that all share.
    pub fn admitted_before(&self, network: Ipv4Net) -> Option<SocketAddrV4> {
        let first = network.network();
        let (there, remote) = self.admitted_before.range(..=Ipv4Net::from(first)).next_back()?;
        there.contains(&first).then_some(*remote)
    }

    /// The interface of this index (`ifi_index` of rtnetlink(7)).
    pub fn interface_at(&self, index: u32) -> Option<&Interface> {
        self.interfaces.at(index)
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
        let of_family =
            self.addresses.on(index).iter().filter(|a| Family::of(a.value.local) == family);
        let good: Vec<&Address> =
            of_family.filter(|a| a.is_usable() && a.is_known_beyond_link()).collect();
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

    /// Whether an interface of this host has the address.
    pub fn has_local(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.value.local == address)
    }

    /// Whether an interface has the address.
    pub fn is_on(&self, address: IpAddr, interface: u32) -> bool {
        self.addresses.on(interface).iter().any(|a| a.value.local == address)
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
