//! The kernel's datapath: FOU listeners and `ipip` links carry the packets, nftables rules judge what
//! reaches them, and an NFQUEUE delivers what may be an authentication packet.
//!
//! Its rules are drawn in [`ruleset`]; no packet of the tunnel passes through this process.

mod behind;
mod control;
mod elements;
mod entries;
mod fou;
mod judgement;
mod one;
mod queue;
mod queue_socket;
mod quoted;
mod raw;
mod rewriting;
mod rules;
mod ruleset;
mod shared;
mod words;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use crate::engine::Outgoing;
use crate::engine::config::{QueueConfig, TunnelConfig};
use crate::engine::host::step::{KernelStep, Step};
use crate::engine::host::{Family, Found, RulesFound};
use crate::host::datapath::{Statistics, Warnings};
use crate::host::nft::NftError;
use crate::host::table::{RuleCounter, Table};
use crate::host::{Datapath, HostAdapter, Links, StepError, absent_is_fine, conntrack};
use fou::Fou;
use queue::Queue;
use rules::Rules;

pub use queue::{QueueError, Queued};
pub use raw::RawSender;
pub use shared::probe as probe_shared_rules;

/// The name of the counter of ICMP errors that were not believed.
const ICMP_ERRORS: &str = "icmp_error";

/// What the kernel's datapath has on a host; it can be read before the datapath is in use.
pub struct KernelState {
    links: Links,
    fou: Fou,
    rules: Rules,
}

/// The kernel's datapath in use.
pub struct KernelDatapath {
    state: KernelState,
    /// The queue from which a server reads authentication packets.
    queue: Option<Queue>,
    sender: RawSender,
}

/// Why the datapath cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("cannot send: {0}")]
    Sending(#[source] io::Error),
}

impl KernelState {
    /// The state of a tunnel's listeners, links and rules.
    pub fn of(tunnel: &TunnelConfig, host: &HostAdapter) -> Self {
        KernelState {
            links: host.links().clone(),
            fou: Fou::default(),
            rules: Rules::in_table(&tunnel.rules.table),
        }
    }

    /// Goes on without rules: from now on nothing guards the tunnel.
    pub fn go_without_rules(&mut self) {
        self.rules = Rules::unavailable();
    }

    /// Checks, without changing anything, that `nft` runs and may list our table.
    ///
    /// # Errors
    /// When it is not installed, or refuses.
    pub fn probe_rules(&mut self) -> Result<RulesFound, NftError> {
        self.rules.probe()
    }

    /// Adds listeners and rules to a reading of the host.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read(&mut self, found: &mut Found) -> io::Result<()> {
        found.listeners = self.fou.listeners()?;
        found.rules = self.rules.read()?;
        found.admitted_before = self.rules.left_by_another(&found.rules)?;
        found.tracks = conntrack::is_in_use();
        Ok(())
    }

    /// Opens the queue, and the socket that sends packets from the port of the tunnel: by its device, if it is
    /// bound to one.
    ///
    /// # Errors
    /// When another process reads the queue, or the kernel refuses a socket.
    pub fn start(
        self,
        queue: Option<QueueConfig>,
        tunnel: &TunnelConfig,
    ) -> Result<KernelDatapath, StartError> {
        Ok(KernelDatapath {
            state: self,
            queue: queue.map(|queue| Queue::bind(queue, tunnel.port)).transpose()?,
            sender: RawSender::open(tunnel.outer.device()).map_err(StartError::Sending)?,
        })
    }

    async fn apply(&mut self, step: &KernelStep) -> Result<(), StepError> {
        let (links, fou, rules) = (&self.links, &mut self.fou, &mut self.rules);
        match step {
            KernelStep::InstallRules(spec, admitted) => Ok(rules.install(spec, admitted)?),
            KernelStep::Admit(admitted) => Ok(rules.admit(admitted)?),
            KernelStep::AdmitToo(one) => Ok(rules.exchange(None, Some(one))?),
            KernelStep::AdmitNoMore(one) => Ok(rules.exchange(Some(one), None)?),
            KernelStep::AdmitInstead { old, new } => Ok(rules.exchange(Some(old), Some(new))?),
            KernelStep::RemoveRules => Ok(rules.remove()?),
            KernelStep::AddListener(listener) => fou.add(listener).map_err(StepError::Listener),
            KernelStep::RemoveListener(listener) => {
                absent_is_fine(fou.remove(listener)).map_err(StepError::Listener)
            }
            KernelStep::CreateLink(link) => links.create(link).await.map_err(StepError::Link),
            KernelStep::ChangeLink(link) => links.change(link).await.map_err(StepError::Link),
            KernelStep::AddAlternateAddress(alternate) => {
                links.add_alternate(*alternate).await.map_err(StepError::Address)
            }
            KernelStep::RemoveAlternateAddress(alternate) => {
                absent_is_fine(links.remove_alternate(*alternate).await).map_err(StepError::Address)
            }
        }
    }
}

impl Datapath for KernelDatapath {
    fn read(&mut self, found: &mut Found) -> io::Result<()> {
        self.state.read(found)
    }

    fn apply<'a>(&'a mut self, step: &'a Step) -> LocalBoxFuture<'a, Result<(), StepError>> {
        match step {
            Step::Kernel(step) => self.state.apply(step).boxed_local(),
            Step::Host(_) | Step::Tun(_) | Step::Fast(_) | Step::Nat(_) | Step::Dns(_) => {
                std::future::ready(Ok(())).boxed_local()
            }
        }
    }

    fn next_control(&mut self) -> LocalBoxFuture<'_, Option<(SocketAddr, Vec<u8>)>> {
        match &mut self.queue {
            Some(queue) => async {
                let Queued { from, payload } = queue.recv().await?;
                Some((from.into(), payload))
            }
            .boxed_local(),
            None => std::future::pending().boxed_local(),
        }
    }

    fn send(&self, packet: &Outgoing) -> io::Result<()> {
        self.sender.send(packet)
    }

    fn warnings(&mut self) -> Warnings {
        let counters = self.counters();
        let icmp_errors =
            counters.iter().filter(|c| c.name == ICMP_ERRORS).map(|c| c.packets).sum();
        Warnings { icmp_errors: Some(icmp_errors), ..Warnings::default() }
    }

    fn statistics(&mut self) -> Statistics {
        Statistics {
            by_rules: self.counters(),
            queued_by_others: self.queue.as_ref().map_or(0, Queue::foreign),
            ..Statistics::default()
        }
    }
}

impl KernelDatapath {
    /// The counters; empty without rules, or if these have no counters.
    fn counters(&mut self) -> Vec<RuleCounter> {
        self.state.rules.counters().unwrap_or_default()
    }
}

/// The UDP ports of this network namespace at which the kernel has a FOU listener for IPIP; none where it
/// has no FOU.
pub fn listening_ports() -> BTreeSet<u16> {
    let listeners = Fou::default().listeners().unwrap_or_default();
    listeners.into_iter().map(|listener| listener.port).collect()
}

/// The names of all nftables tables of the family `ip`; none where they cannot be read.
pub fn tables() -> Vec<String> {
    Table::new(Family::V4, "").names().unwrap_or_default()
}

/// Removes the table of this name if it judges what comes to this port; false when there is none that does, or
/// none can be read.
///
/// # Errors
/// When `nft` cannot be run, or the kernel refuses.
pub fn remove_rules(table: &str, port: u16) -> Result<bool, NftError> {
    let mut rules = Rules::in_table(table);
    match rules.read() {
        Ok(RulesFound::Missing) | Err(_) => return Ok(false),
        Ok(RulesFound::Unknown | RulesFound::Intact(_) | RulesFound::Unavailable) => {}
    }
    Ok(rules.guard(port)? && rules.remove().map(|()| true)?)
}

/// Checks, without changing anything, that FOU can be used.
///
/// # Errors
/// `NotFound` when the kernel has no FOU, `PermissionDenied` without CAP_NET_ADMIN.
pub fn probe_fou() -> io::Result<()> {
    Fou::default().listeners().map(drop)
}
