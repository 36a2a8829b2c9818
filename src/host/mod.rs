//! Adapters to what every datapath uses of a host: links, addresses, routes, nftables, name servers,
//! clocks and files. They are verbs with typed results, and decide nothing.
//!
//! [`HostAdapter`] reads what is there and makes the changes of [`HostStep`] and [`NatStep`];
//! [`Datapath`] is what carries the packets.

mod addresses;
mod answers;
pub mod asked;
pub mod atomic_file;
mod changes;
pub mod clock;
pub mod conntrack;
pub mod datapath;
mod directories;
pub mod dns;
mod dump;
pub mod expression;
pub mod heap;
pub mod ipsec;
mod kernel_routes;
mod link_message;
mod links;
mod lock;
mod lock_file;
mod modules;
pub mod namespace;
mod nat;
pub(crate) mod netlink;
pub mod nft;
pub mod open_files;
mod port;
pub mod program;
mod reading;
pub mod release;
mod resolv_file;
mod resolvconf;
mod resolved;
mod routes;
pub mod rules_of_host;
pub mod table;
mod transaction;
pub mod translated;
mod ways;

use std::io;

pub use changes::{Changed, Changes, Subjects};
pub use datapath::Datapath;
pub use directories::{Directories, make_private};
pub use dump::close_memory;
pub use links::{Links, all_interfaces};
pub use lock::{Doubt, Holder, Lock, of_interface};
pub use lock_file::LockFile;
pub use modules::{ModuleError, require_modules};
pub use namespace::Namespace;
pub use port::{PortUser, probe_port, user_of_port};
pub use reading::Question;
pub use ways::WayTo;

use crate::engine::config::TunnelConfig;
use crate::engine::host::step::{HostStep, NatStep};
use crate::engine::host::surroundings::Surroundings;
use nat::Nat;
use nft::NftError;
use routes::Routes;

/// Everything of the network namespace that a tunnel needs, except its datapath.
pub struct HostAdapter {
    links: Links,
    routes: Routes,
    nat: Nat,
    reading: reading::State,
}

/// A step that the kernel or `nft` refused.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("{0}")]
    Link(#[source] io::Error),
    #[error("{}", explain_address(.0))]
    Address(#[source] io::Error),
    /// The kernel datapath's listener.
    #[error("{}", port::explain(.0))]
    Listener(#[source] io::Error),
    /// The userspace datapath's socket.
    #[error("{}", port::explain(.0))]
    Socket(#[source] io::Error),
    /// The userspace datapath's interface.
    #[error("{}", explain_tun(.0))]
    Tun(#[source] io::Error),
    #[error("{}", explain_route(.0))]
    Route(#[source] io::Error),
    #[error("{0}")]
    Setting(#[source] io::Error),
    /// The name servers.
    #[error("{0}")]
    Dns(#[source] io::Error),
    #[error(transparent)]
    Rules(#[from] NftError),
}

impl StepError {
    /// Whether the kernel said that such an object exists already.
    pub fn is_taken(&self) -> bool {
        match self {
            StepError::Link(e) | StepError::Address(e) | StepError::Listener(e) => {
                e.kind() == io::ErrorKind::AlreadyExists
            }
            StepError::Rules(_)
            | StepError::Socket(_)
            | StepError::Tun(_)
            | StepError::Route(_)
            | StepError::Setting(_)
            | StepError::Dns(_) => false,
        }
    }
}

impl HostAdapter {
    /// Opens the netlink sockets. `ipip_links`: the datapath makes `ipip` links, so all of that
    /// kind are read.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open(tunnel: &TunnelConfig, ipip_links: bool) -> io::Result<Self> {
        Ok(HostAdapter {
            links: Links::open()?,
            routes: Routes::open()?,
            nat: Nat::in_table(&tunnel.gateway_table()),
            reading: reading::State::new(tunnel, ipip_links),
        })
    }

    /// The adapter of links, which datapaths use too.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Makes one change. Removing what is not there is not an error.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn apply(&mut self, step: &HostStep) -> Result<(), StepError> {
        let (links, routes) = (&self.links, &self.routes);
        match step {
            HostStep::ConfigureLink(wanted) => {
                links.configure(wanted).await.map_err(StepError::Link)
            }
            HostStep::SetMtu(device, mtu) => {
                links.set_mtu(device, *mtu).await.map_err(StepError::Link)
            }
            HostStep::RemoveLink(device) => {
                absent_is_fine(links.remove(device).await).map_err(StepError::Link)
            }
            HostStep::AddInnerAddress(device, address) => {
                links.add_inner(device, *address).await.map_err(StepError::Address)
            }
            HostStep::RemoveInnerAddress(address) => {
                absent_is_fine(links.remove_address(address).await).map_err(StepError::Address)
            }
            HostStep::RestoreRoute(_, route) => {
                routes.restore(route).await.map_err(StepError::Route)
            }
            HostStep::AddRoute(route) => routes.add_route(route).await.map_err(StepError::Route),
            HostStep::ReplaceRoute(route) => {
                routes.replace_route(route).await.map_err(StepError::Route)
            }
            HostStep::RemoveRoute(route) => {
                routes.remove_route(route).await.map_err(StepError::Route)
            }
            HostStep::AddPolicyRule(rule) => {
                routes.add_policy_rule(rule).await.map_err(StepError::Route)
            }
            HostStep::RemovePolicyRule(rule) => {
                routes.remove_policy_rule(rule).await.map_err(StepError::Route)
            }
            // The settings of an interface are gone with it.
            HostStep::SetForwarding { interface, on } => {
                absent_is_fine(links.set_forwarding(interface, *on).await)
                    .map_err(StepError::Setting)
            }
            HostStep::SetRpFilter { interface, value } => {
                absent_is_fine(links.set_rp_filter(interface, *value).await)
                    .map_err(StepError::Setting)
            }
        }
    }

    /// Installs or removes the rules of a gateway.
    ///
    /// # Errors
    /// What the kernel, or `nft`, said.
    pub fn apply_nat(&mut self, step: &NatStep) -> Result<(), StepError> {
        match step {
            NatStep::Install(spec) => Ok(self.nat.install(spec)?),
            NatStep::Remove => Ok(self.nat.remove()?),
        }
    }

    /// Reads what a datapath that judges packets itself has to know of the host.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn surroundings(&self) -> io::Result<Surroundings> {
        let tunnels = self.links.tunnels()?;
        Ok(Surroundings::of(&tunnels, &self.links.addresses()?))
    }
}

/// What to do about an error of a TUN interface, for a person.
fn explain_tun(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ResourceBusy => "another program has an interface of that name; choose \
             another with --tunl-dev, see `ip tuntap`"
            .to_owned(),
        io::ErrorKind::PermissionDenied => "CAP_NET_ADMIN is needed: run as root".to_owned(),
        _ => error.to_string(),
    }
}

/// What to do about an error of an address, for a person.
fn explain_address(error: &io::Error) -> String {
    match error.raw_os_error() {
        // `addrconf_add_dev` in net/ipv6/addrconf.c.
        Some(libc::EACCES) => "new interfaces have no IPv6 on this host: `sysctl -w \
             net.ipv6.conf.default.disable_ipv6=0`, or do without IPv6 in the tunnel"
            .to_owned(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => {
            "this kernel has no IPv6, or was started with ipv6.disable=1: do without it in the tunnel"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

/// What to do about an error of a route or a policy rule, for a person.
fn explain_route(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AlreadyExists => "somebody else has made it already; see `ip route show \
             table all` and `ip rule`, and remove it or leave the option out"
            .to_owned(),
        _ => error.to_string(),
    }
}

/// The result of removing something that may be gone already.
///
/// # Errors
/// Any other than that there is no such thing.
pub fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENOENT | libc::ENODEV | libc::EADDRNOTAVAIL)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}
