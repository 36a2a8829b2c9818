//! Adapters to the kernel: verbs with typed results, and no decisions.
//!
//! [`HostAdapter`] reads what is there and applies one step at a time.

mod answers;
mod conntrack;
mod dump;
mod elements;
mod events;
mod expression;
mod fou;
mod gateway;
mod judgement;
mod links;
mod lock;
mod modules;
mod namespace;
mod netlink;
mod port;
pub mod program;
mod queue;
mod quoted;
mod raw;
mod reading;
mod rewriting;
mod routes;
mod rules;
mod ruleset;
mod transaction;

use std::io;

use crate::engine::config::{Datapath, DeviceName, TunnelConfig};
use crate::engine::host::RulesFound;
use crate::engine::plan::{LinkKind, Step, WantedLink};
use crate::engine::surroundings::Surroundings;

pub use dump::close_memory;
pub use elements::RuleCounter;
pub use events::{Changed, Changes};
pub use links::Links;
pub use lock::{Doubt, Holder, Lock, lock_file};
pub use modules::{ModuleError, require_modules};
pub use namespace::Namespace;
pub use port::{PortUser, probe_port, user_of_port};
pub use queue::{Queue, QueueError, Queued};
pub use raw::RawSender;
pub use reading::{Question, WayTo};
pub use rules::RulesError;

use fou::Fou;
use gateway::Gateway;
use routes::Routes;
use rules::Rules;

/// Everything of the network namespace that a tunnel is made of.
pub struct HostAdapter {
    links: Links,
    /// `None` where the packets take the userspace datapath.
    fou: Option<Fou>,
    rules: Rules,
    routes: Routes,
    gateway: Gateway,
    reading: reading::State,
}

/// A step that the kernel, or `nft`, refused.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("{0}")]
    Link(#[source] io::Error),
    #[error("{0}")]
    Address(#[source] io::Error),
    #[error("{}", fou::explain(.0))]
    Listener(#[source] io::Error),
    /// The userspace datapath's socket.
    #[error("{}", fou::explain(.0))]
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
    Rules(#[from] RulesError),
}

impl StepError {
    /// Whether the kernel said that such a thing exists already.
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
    /// Opens the netlink sockets. With `rules` off, nothing guards the tunnel. The userspace datapath
    /// needs neither rules nor FOU.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open(datapath: Datapath, tunnel: &TunnelConfig, rules: bool) -> io::Result<Self> {
        let kernel = datapath == Datapath::Kernel;
        let table = &tunnel.rules.table;
        Ok(HostAdapter {
            links: Links::open()?,
            fou: kernel.then(Fou::default),
            rules: if kernel && rules { Rules::in_table(table) } else { Rules::unavailable() },
            routes: Routes::open()?,
            gateway: Gateway::in_table(&tunnel.gateway_table()),
            reading: reading::State::new(tunnel),
        })
    }

    /// Applies one step. Removing what is not there is no error.
    ///
    /// # Errors
    /// What the kernel or `nft` said.
    pub async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        self.reading.expect_changes();
        let links = &self.links;
        match step {
            Step::InstallRules(spec, admitted) => Ok(self.rules.install(spec, admitted)?),
            Step::Admit(admitted) => Ok(self.rules.admit(admitted)?),
            Step::RemoveRules => Ok(self.rules.remove()?),
            Step::AddListener(listener) => match &mut self.fou {
                Some(fou) => fou.add(listener).map_err(StepError::Listener),
                None => Ok(()),
            },
            Step::RemoveListener(listener) => match &mut self.fou {
                Some(fou) => absent_is_fine(fou.remove(listener)).map_err(StepError::Listener),
                None => Ok(()),
            },
            Step::CreateLink(wanted) => create(links, wanted).await.map_err(StepError::Link),
            Step::ChangeLink(wanted) => links.change(wanted).await.map_err(StepError::Link),
            Step::ConfigureLink(wanted) => links.dress(wanted).await.map_err(StepError::Link),
            Step::SetMtu(device, mtu) => links.set_mtu(device, *mtu).await.map_err(StepError::Link),
            Step::RemoveLink(device) => {
                absent_is_fine(links.remove(device).await).map_err(StepError::Link)
            }
            Step::AddInnerAddress(device, address) => {
                links.add_inner(device, *address).await.map_err(StepError::Address)
            }
            Step::RemoveInnerAddress(address) => {
                absent_is_fine(links.remove_address(address).await).map_err(StepError::Address)
            }
            Step::AddAlternateAddress(alternate) => {
                links.add_alternate(*alternate).await.map_err(StepError::Address)
            }
            Step::RemoveAlternateAddress(alternate) => {
                absent_is_fine(links.remove_alternate(*alternate).await).map_err(StepError::Address)
            }
            Step::AddRoute(route) => self.routes.add_route(route).await.map_err(StepError::Route),
            Step::RemoveRoute(route) => {
                self.routes.remove_route(route).await.map_err(StepError::Route)
            }
            Step::AddPolicyRule(rule) => {
                self.routes.add_policy_rule(rule).await.map_err(StepError::Route)
            }
            Step::RemovePolicyRule(rule) => {
                self.routes.remove_policy_rule(rule).await.map_err(StepError::Route)
            }
            Step::InstallGateway(spec) => Ok(self.gateway.install(spec)?),
            Step::RemoveGateway => Ok(self.gateway.remove()?),
            Step::SetForwarding { interface, on } => {
                // With an interface its settings go.
                absent_is_fine(links.set_forwarding(interface, *on).await)
                    .map_err(StepError::Setting)
            }
            Step::SetRpFilter { interface, value } => {
                absent_is_fine(links.set_rp_filter(interface, *value).await)
                    .map_err(StepError::Setting)
            }
            // The daemon and the userspace datapath do these.
            Step::Bind(_) | Step::Forward(_) | Step::UseNameServers | Step::RestoreNameServers => {
                Ok(())
            }
        }
    }

    /// What the userspace datapath has to know of the host.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn surroundings(&self) -> io::Result<Surroundings> {
        let tunnels = self.links.tunnels().await?;
        Ok(Surroundings::of(&tunnels, &self.links.addresses()?))
    }

    /// Checks that nobody but us reads and writes a TUN interface of which we hold so many queues. Until
    /// it had an owner another program may have attached one: then the interface is removed, since
    /// nothing else detaches it.
    ///
    /// # Errors
    /// When it is so, or the kernel refuses to tell.
    pub async fn check_queues(&self, device: &DeviceName, held: usize) -> Result<(), StepError> {
        let attached = self.links.tun_queues(device).await.map_err(StepError::Tun)?;
        if attached.is_none_or(|attached| attached as usize <= held) {
            return Ok(());
        }
        absent_is_fine(self.links.remove(device).await).map_err(StepError::Tun)?;
        let why = "another program attached a queue of its own to it: removed";
        Err(StepError::Tun(io::Error::other(why)))
    }

    /// What our rules dropped, by counter; empty without counters.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn rule_counters(&mut self) -> io::Result<Vec<RuleCounter>> {
        self.rules.counters()
    }

    /// Checks, without changing anything, that FOU can be used.
    ///
    /// # Errors
    /// `NotFound` when the kernel has no FOU, `PermissionDenied` without CAP_NET_ADMIN.
    pub fn probe_fou() -> io::Result<()> {
        Fou::default().listeners().map(drop)
    }

    /// Checks, without changing anything, that `nft` runs and may list our table.
    ///
    /// # Errors
    /// When it is not installed, or refuses.
    pub fn probe_rules(&mut self) -> Result<RulesFound, RulesError> {
        self.rules.probe()
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

/// What to do about an error of a route or a policy rule, for a person.
fn explain_route(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AlreadyExists => "somebody else has made it already; see `ip route show \
             table all` and `ip rule`, and remove it or leave the option out"
            .to_owned(),
        _ => error.to_string(),
    }
}

/// An opened TUN interface lacks nothing but its MTU.
async fn create(links: &Links, wanted: &WantedLink) -> io::Result<()> {
    match wanted.kind {
        LinkKind::Ipip(_) => links.create(wanted).await,
        LinkKind::Tun => links.set_mtu(&wanted.device, wanted.mtu.bytes).await,
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
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
