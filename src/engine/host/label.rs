//! The marks by which links of this program are known, whichever process made them.

use super::interface::Interface;

/// The marks on links we made (`IFLA_IFALIAS`, shown by `ip link`), by [`LinkForwarding`]. Only a
/// gateway's own process judges what may go into its link.
const LABEL: &str = "made by ipipou";
const AMONG_CLIENTS_LABEL: &str = "made by ipipou, for many clients";
const GATEWAY_LABEL: &str = "made by ipipou, a gateway";

/// Where what comes out of a tunnel is forwarded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkForwarding {
    /// As the host has it for new interfaces.
    HostDefault,
    /// Clients reach each other.
    AmongClients,
    /// Other interfaces; the gateway's rules judge it.
    Gateway,
}

impl LinkForwarding {
    /// The label of such a link.
    pub fn label(self) -> &'static str {
        match self {
            LinkForwarding::HostDefault => LABEL,
            LinkForwarding::AmongClients => AMONG_CLIENTS_LABEL,
            LinkForwarding::Gateway => GATEWAY_LABEL,
        }
    }
}

/// Whether we made this interface.
pub fn is_labelled(interface: &Interface) -> bool {
    interface.label.as_deref() == Some(LABEL) || forwards_by_us(interface)
}

/// Whether an interface that we made forwards because we said so.
pub(super) fn forwards_by_us(interface: &Interface) -> bool {
    interface.label.as_deref() == Some(AMONG_CLIENTS_LABEL) || is_gateway(interface)
}

/// Whether this interface is the tunnel of a gateway, ours or another process'.
pub fn is_gateway(interface: &Interface) -> bool {
    interface.label.as_deref() == Some(GATEWAY_LABEL)
}
