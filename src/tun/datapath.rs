//! The userspace datapath as an adapter: its steps, and its state for the engine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use tokio::sync::Notify;

use super::fd_store::{self, Owner, StoredFds};
use super::forwarder::Forwarder;
use crate::engine::Outgoing;
use crate::engine::config::{DeviceName, Outer, TunnelConfig};
use crate::engine::host::step::{Step, TunStep};
use crate::engine::host::surroundings::Surroundings;
use crate::engine::host::{Found, RulesFound, SocketSpec, Userspace};
use crate::host::datapath::{OpenFiles, Statistics, Warnings};
use crate::host::{Datapath, HostAdapter, Links, StepError, absent_is_fine};

/// The userspace datapath in use.
pub struct TunDatapath {
    forwarder: Forwarder,
    links: Links,
    owner: Owner,
}

impl TunDatapath {
    /// Starts the threads of `owner`'s tunnel. `stored` is what an earlier process left: this one goes on where that one
    /// was killed or, where that is impossible, makes everything again. On an error it is still there.
    ///
    /// # Errors
    /// Too many open files, too many threads.
    pub async fn start(
        tunnel: &TunnelConfig,
        host: &HostAdapter,
        (owner, stored): (Owner, &mut StoredFds),
    ) -> io::Result<Self> {
        let forwarder = Forwarder::new(tunnel.queues, owner)?;
        let datapath = TunDatapath { forwarder, links: host.links().clone(), owner };
        if !stored.is_nothing() {
            datapath.take_over(tunnel, std::mem::take(stored));
        }
        if let Err(error) = datapath.check_queues(&tunnel.device).await {
            tracing::warn!("{}, of an earlier process: {error}", tunnel.device);
        }
        Ok(datapath)
    }

    fn take_over(&self, tunnel: &TunnelConfig, stored: StoredFds) {
        let address = match &tunnel.outer {
            Outer::Address(own) | Outer::AddressOn(own, _) => *own,
            Outer::Device(_) | Outer::Route => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        match self.forwarder.take_over(&tunnel.device, &SocketSpec::of(tunnel, address), stored) {
            Ok(()) => {
                tracing::info!("took over the interface and the socket of an earlier process")
            }
            Err(error) => {
                tracing::warn!("cannot use what an earlier process left: {error}");
                let _ = fd_store::forget(self.owner); // `store` reports it when there is something to keep
            }
        }
    }

    async fn apply(&self, step: &TunStep) -> Result<(), StepError> {
        match step {
            TunStep::Bind(spec) => {
                self.forwarder.bind(spec).map_err(StepError::Socket)?;
                self.store();
                Ok(())
            }
            TunStep::Forward(table) => {
                self.forwarder.set_forwarding(table.clone()).map_err(StepError::Tun)
            }
            TunStep::AddRemote(remote, spec) => {
                self.forwarder.add_remote(*remote, spec.clone());
                Ok(())
            }
            TunStep::RemoveRemote(remote) => {
                self.forwarder.remove_remote(*remote);
                Ok(())
            }
            TunStep::CreateLink { device, mtu } => {
                self.forwarder.create_interface(device).map_err(StepError::Tun)?;
                self.store();
                self.check_queues(device).await?;
                self.links.set_mtu(device, *mtu).await.map_err(StepError::Link)
            }
        }
    }

    /// Stores interface and socket with the service manager, for the next process. The tunnel does not
    /// depend on it.
    fn store(&self) {
        if let Err(error) = self.forwarder.keep() {
            tracing::warn!("the service manager does not keep our open files: {error}");
        }
    }

    /// Checks that no other program reads and writes the interface. Before it had an owner, one may
    /// have attached a queue: then the interface is removed, because nothing else detaches it.
    async fn check_queues(&self, device: &DeviceName) -> Result<(), StepError> {
        let held = self.forwarder.offloads().queues;
        if held == 0 {
            return Ok(());
        }
        let attached = self.links.tun_queues(device).await.map_err(StepError::Tun)?;
        if attached.is_none_or(|attached| attached as usize <= held) {
            return Ok(());
        }
        absent_is_fine(self.links.remove(device).await).map_err(StepError::Tun)?;
        let why = "another program attached a queue of its own to it: removed";
        Err(StepError::Tun(io::Error::other(why)))
    }
}

impl Datapath for TunDatapath {
    fn read(&mut self, found: &mut Found) -> io::Result<()> {
        found.rules = RulesFound::Unavailable;
        found.userspace = Userspace {
            socket: self.forwarder.socket(),
            interface: self.forwarder.has_interface(),
            forwarding: self.forwarder.forwarding(),
            silent: self.forwarder.silent(),
            learned: self.forwarder.learned().into_iter().map(|(at, by, _)| (at, by)).collect(),
        };
        found.narrow = self.forwarder.narrow();
        found.answers = self.forwarder.answers();
        Ok(())
    }

    fn apply<'a>(&'a mut self, step: &'a Step) -> LocalBoxFuture<'a, Result<(), StepError>> {
        match step {
            Step::Tun(step) => TunDatapath::apply(self, step).boxed_local(),
            Step::Host(_) | Step::Kernel(_) | Step::Fast(_) | Step::Nat(_) | Step::Dns(_) => {
                std::future::ready(Ok(())).boxed_local()
            }
        }
    }

    fn next_control(&mut self) -> LocalBoxFuture<'_, Option<(SocketAddr, Vec<u8>)>> {
        self.forwarder.control().map(Some).boxed_local()
    }

    fn narrower(&self) -> Option<Arc<Notify>> {
        Some(self.forwarder.narrower())
    }

    fn open_files(&self) -> io::Result<OpenFiles> {
        self.forwarder.open_files()
    }

    fn send(&self, packet: &Outgoing) -> io::Result<()> {
        self.forwarder.send(packet)
    }

    fn peer_alive(&self, remote: SocketAddr) {
        self.forwarder.heard_of(remote);
    }

    fn wants_surroundings(&self) -> bool {
        true
    }

    fn surround(&self, around: Surroundings) {
        self.forwarder.surround(around);
    }

    fn warnings(&mut self) -> Warnings {
        Warnings { leads_back: self.forwarder.leads_back(), ..Warnings::default() }
    }

    fn statistics(&mut self) -> Statistics {
        let offloads = self.forwarder.offloads();
        Statistics {
            offloads: Some(offloads.to_string()),
            offloads_used: offloads.used(),
            dropped: self.forwarder.dropped(),
            learned: self.forwarder.learned(),
            unreachable: self.forwarder.unreachable(),
            by_remote: self.forwarder.traffic(),
            ..Statistics::default()
        }
    }
}
