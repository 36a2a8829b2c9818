//! The configuration of what goes through a tunnel beside the inner addresses of its ends.

use std::net::IpAddr;

use ipnet::IpNet;

use super::names::DeviceName;

/// What goes through the tunnel beside the other end's own address, and what the host does for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Networks behind the other end.
    pub routes: Vec<IpNet>,
    /// Everything but our own outer packets goes through the tunnel.
    pub default_route: bool,
    /// The firewall mark on outer packets, and the number of the routing table for all others, for
    /// routes that the remote's own address is in: outer packets must not enter the tunnel they make.
    pub mark: u32,
    /// Name servers while the tunnel is up.
    pub dns: Vec<IpAddr>,
    /// IPv4 packets are forwarded between the tunnel and other interfaces.
    pub forward: bool,
    /// Source addresses of the tunnel are replaced by ours on the way out.
    pub masquerade: Option<Masquerade>,
}

impl GatewayConfig {
    /// The mark on outer packets, where routes could lead them into the tunnel.
    pub fn mark(&self) -> Option<u32> {
        (self.default_route || !self.routes.is_empty()).then_some(self.mark)
    }
}

/// Where packets leave with our address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Masquerade {
    /// By any interface but the tunnel's.
    Anywhere,
    /// By this interface alone.
    By(DeviceName),
}
