//! By what the parts of a tunnel are recognised as its own, those included that it had before it was
//! configured otherwise.

use std::num::NonZeroU16;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::interface::Interface;
use super::label::is_labelled;
use super::routing::{PolicyRule, PolicyRuleKind, Route, RouteTarget};
use crate::engine::config::{TunnelConfig, gateway_table};

/// The names and numbers of a tunnel's parts on its host, kept in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its interface.
    pub device: String,
    /// Its UDP port, in host byte order.
    pub port: NonZeroU16,
    /// The nftables table of its rules.
    pub table: String,
    /// The number of its routing table, and the firewall mark of its outer packets.
    pub mark: u32,
    /// The network of its inner addresses.
    pub inner: Ipv4Net,
}

impl Identity {
    /// That of the tunnel as it is configured.
    pub fn of(tunnel: &TunnelConfig) -> Self {
        Identity {
            device: tunnel.device.to_string(),
            port: tunnel.port,
            table: tunnel.rules.table.clone(),
            mark: tunnel.gateway.mark,
            inner: tunnel.inner_peer.trunc(),
        }
    }

    /// The name of the nftables table of its gateway.
    pub fn gateway_table(&self) -> String {
        gateway_table(&self.table)
    }

    /// Whether this is its interface.
    pub(super) fn has_link(&self, interface: &Interface) -> bool {
        interface.name == self.device
            && is_labelled(interface)
            && interface.link_from(self.port.get()).is_some()
    }
}

/// A tunnel, and what it was before.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// The tunnel as it is configured.
    pub tunnel: &'a TunnelConfig,
    /// Other identities, of which something may be left.
    pub former: &'a [Identity],
}

impl Own<'_> {
    /// Whether a routing table is or was the tunnel's.
    pub fn has_table(&self, table: u32) -> bool {
        table == self.tunnel.gateway.mark || self.former.iter().any(|f| f.mark == table)
    }

    /// Whether a network is or was that of the inner addresses.
    pub fn has_network(&self, network: Ipv4Net) -> bool {
        network == self.tunnel.inner_peer.trunc() || self.former.iter().any(|f| f.inner == network)
    }

    /// Whether only a former identity has this rule.
    pub fn is_former_rule(&self, rule: &PolicyRule) -> bool {
        match rule.kind {
            PolicyRuleKind::UnlessMarked { table, .. } => self.is_former_table(table),
            PolicyRuleKind::MainButDefault | PolicyRuleKind::FromOwn(_) => false,
        }
    }

    /// Whether only a former identity has this route.
    pub fn is_former_route(&self, route: &Route) -> bool {
        match route.target {
            RouteTarget::Interface(_) | RouteTarget::Remote(..) => {
                self.is_former_table(route.table)
            }
            RouteTarget::Unreachable => route.destination != self.tunnel.inner_peer.trunc().into(),
        }
    }

    fn is_former_table(&self, table: u32) -> bool {
        self.has_table(table) && table != self.tunnel.gateway.mark
    }
}
