//! What the host should have: the nouns of a plan.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::fast_path::FastPath;
use super::interface::{InterfaceAddress, IpipLink};
use super::label::LinkForwarding;
use super::routing::{GatewaySpec, PolicyRule, Route};
use super::rules::{Admitted, Listener, RuleSpec};
use super::userspace::{PeerTable, SocketSpec};
use crate::engine::config::{DeviceName, SourceCheck};

/// What the host should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The rules that guard the listeners; `None` where none are needed.
    pub rules: Option<RuleSpec>,
    /// The remotes that these rules let in.
    pub admitted: BTreeSet<Admitted>,
    /// Alternate local addresses, on the loopback interface.
    pub alternate: BTreeSet<Ipv4Addr>,
    /// The FOU listeners: one on the outer address, and one on each alternate address.
    pub listeners: BTreeSet<Listener>,
    /// The tunnel's interfaces.
    pub links: Vec<WantedLink>,
    /// Links of this tunnel to remove: no remote is known for them, or they have a wrong name.
    pub unwanted: Vec<DeviceName>,
    /// The UDP socket of the userspace datapath.
    pub socket: Option<SocketSpec>,
    /// The table of remotes of the userspace datapath.
    pub forwarding: PeerTable,
    /// The fast path on top of them; `None`: none.
    pub fast_path: Option<FastPath>,
    /// Routes, rules and settings around the tunnel.
    pub gateway: WantedAround,
}

/// A tunnel interface as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedLink {
    /// Its name, by which it is found.
    pub device: DeviceName,
    /// Which datapath it belongs to, and what it is made of.
    pub kind: LinkKind,
    /// The size of its largest packet, and why.
    pub mtu: Mtu,
    /// Its inner addresses. One that shares an address or a network with these, and is not one of
    /// them, is removed; others stay.
    pub addresses: Vec<InterfaceAddress>,
    /// How strictly the sources of inner packets are checked.
    pub source_check: SourceCheck,
    /// Where what comes out of it is forwarded to; its label tells this to others.
    pub forwards: LinkForwarding,
}

/// What kind of interface a tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// An `ipip` link of the kernel's datapath.
    Ipip(IpipLink),
    /// A TUN interface of this process.
    Tun,
}

/// How large packets inside a tunnel may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mtu {
    /// Bytes of the largest inner packet.
    pub bytes: u32,
    /// Whether it was asked for, or worked out.
    pub from: MtuFrom,
}

/// Where an MTU comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtuFrom {
    /// `--mtu`: nobody else may change it.
    Option,
    /// It follows the uplink's. If it is changed by hand, it stays so until the uplink's changes.
    Uplink,
}

/// What the host around the tunnel should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedAround {
    /// Routes into the tunnel, in the main table or in the tunnel's own.
    pub routes: BTreeSet<Route>,
    /// Policy rules that lead to the tunnel's own table.
    pub policy_rules: BTreeSet<PolicyRule>,
    /// The gateway's nftables table; `None`: none is needed.
    pub rules: Option<GatewaySpec>,
    /// Interfaces that should forward the IPv4 packets that come in by them.
    pub forwarding: BTreeSet<String>,
    /// Interfaces that should check sources loosely (`rp_filter` 2).
    pub loose: BTreeSet<String>,
    /// Whether the host should use the name servers of `--dns`.
    pub name_servers: bool,
}

/// The value of `rp_filter` that a check asks for (ip-sysctl.rst); `None` leaves it alone.
pub fn rp_filter(check: SourceCheck) -> Option<u32> {
    match check {
        SourceCheck::Off => None,
        SourceCheck::Strict => Some(1),
        SourceCheck::Loose => Some(2),
    }
}
