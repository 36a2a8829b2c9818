//! Adapters to the kernel: verbs with typed results, and no decisions.
//!
//! [`Host`] reads what is there and applies one step at a time.

mod elements;
mod events;
mod fou;
mod links;
mod modules;
mod program;
mod queue;
mod raw;
mod rules;
mod ruleset;

use std::io;
use std::net::Ipv4Addr;

use crate::engine::config::DeviceName;
use crate::engine::host::{Found, RulesFound};
use crate::engine::plan::Step;

pub use elements::RuleCounter;
pub use events::Changes;
pub use links::Links;
pub use modules::{ModuleError, require_modules};
pub use queue::{Queue, QueueError, Queued};
pub use raw::RawSender;
pub use rules::RulesError;

use fou::Fou;
use rules::Rules;

/// Everything of the network namespace that a tunnel is made of.
pub struct Host {
    links: Links,
    fou: Fou,
    rules: Rules,
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
            StepError::Rules(_) => false,
        }
    }
}

impl Host {
    /// Opens the netlink sockets. `table` is the name of our nftables table; with `rules` off,
    /// nothing of nftables is ever touched.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open(table: &str, rules: bool) -> io::Result<Self> {
        Ok(Host {
            links: Links::open()?,
            fou: Fou::default(),
            rules: if rules { Rules::in_table(table) } else { Rules::unavailable() },
        })
    }

    /// Reads what is there. `route_to` asks for the source address of the route to there.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn read(&mut self, route_to: Option<Ipv4Addr>) -> io::Result<Found> {
        Ok(Found {
            interfaces: self.links.interfaces().await?,
            addresses: self.links.addresses().await?,
            listeners: self.fou.listeners()?,
            rules: self.rules.read()?,
            route_source: match route_to {
                Some(to) => self.links.route_source(to).await?,
                None => None,
            },
        })
    }

    /// Applies one step. Removing what is not there is no error.
    ///
    /// # Errors
    /// What the kernel or `nft` said.
    pub async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        let links = &self.links;
        match step {
            Step::InstallRules(spec, admitted) => Ok(self.rules.install(spec, admitted)?),
            Step::Admit(admitted) => Ok(self.rules.admit(admitted)?),
            Step::RemoveRules => Ok(self.rules.remove()?),
            Step::AddListener(listener) => self.fou.add(listener).map_err(StepError::Listener),
            Step::RemoveListener(listener) => {
                absent_is_fine(self.fou.remove(listener)).map_err(StepError::Listener)
            }
            Step::CreateLink(wanted) => links.create(wanted).await.map_err(StepError::Link),
            Step::ChangeLink(wanted) => links.change(wanted).await.map_err(StepError::Link),
            Step::DressLink(wanted) => links.dress(wanted).await.map_err(StepError::Link),
            Step::RemoveLink(device) => {
                absent_is_fine(links.remove(device).await).map_err(StepError::Link)
            }
            Step::AddInnerAddress(wanted) => {
                links.add_inner(wanted).await.map_err(StepError::Address)
            }
            Step::RemoveInnerAddress(address) => {
                absent_is_fine(links.remove_address(address).await).map_err(StepError::Address)
            }
            Step::AddPrivateAddress(private) => {
                links.add_private(*private).await.map_err(StepError::Address)
            }
            Step::RemovePrivateAddress(private) => {
                absent_is_fine(links.remove_private(*private).await).map_err(StepError::Address)
            }
        }
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
    pub fn probe_fou(&mut self) -> io::Result<()> {
        self.fou.listeners().map(drop)
    }

    /// Checks, without changing anything, that `nft` runs and may list our table.
    ///
    /// # Errors
    /// When it is not installed, or refuses.
    pub fn probe_rules(&mut self) -> Result<RulesFound, RulesError> {
        self.rules.probe()
    }

    /// Whether the interface exists.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn has_interface(&self, device: &DeviceName) -> io::Result<bool> {
        Ok(self.links.interfaces().await?.iter().any(|i| i.name == device.as_str()))
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(ENOENT | ENODEV | EADDRNOTAVAIL)) => Ok(()),
        other => other,
    }
}

const ENOENT: i32 = 2;
const ENODEV: i32 = 19;
const EADDRNOTAVAIL: i32 = 99;
