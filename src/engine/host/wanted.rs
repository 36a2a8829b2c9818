//! What the host should have: the nouns of a plan.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::interface::{InterfaceAddress, IpipLink};
use super::label::LinkForwarding;
use super::routing::{GatewaySpec, PolicyRule, Route};
use super::rules::{Admitted, Listener, RuleSpec};
use super::userspace::{PeerTable, SocketSpec};
use crate::engine::config::{DeviceName, SourceCheck};

/// What the host should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub rules: Option<RuleSpec>,
    pub admitted: BTreeSet<Admitted>,
    /// Alternate local addresses, on the loopback interface.
    pub alternate: BTreeSet<Ipv4Addr>,
    pub listeners: BTreeSet<Listener>,
    pub links: Vec<WantedLink>,
    /// Links of ours that should not be: no remote is known for them, or they have a wrong name.
    pub unwanted: Vec<DeviceName>,
    pub socket: Option<SocketSpec>,
    pub forwarding: PeerTable,
    pub gateway: WantedAround,
}

/// A tunnel interface as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedLink {
    pub device: DeviceName,
    pub kind: LinkKind,
    pub mtu: Mtu,
    pub addresses: Vec<InterfaceAddress>,
    pub source_check: SourceCheck,
    pub forwards: LinkForwarding,
}

/// What kind of interface a tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    Ipip(IpipLink),
    /// A TUN interface of this process.
    Tun,
}

/// How large packets inside a tunnel may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mtu {
    pub bytes: u32,
    pub from: MtuFrom,
}

/// Who says so.
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
    pub routes: BTreeSet<Route>,
    pub policy_rules: BTreeSet<PolicyRule>,
    pub rules: Option<GatewaySpec>,
    /// Interfaces that should forward, and that should check sources loosely.
    pub forwarding: BTreeSet<String>,
    pub loose: BTreeSet<String>,
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
