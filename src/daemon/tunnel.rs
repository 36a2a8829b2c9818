//! The loop of a tunnel process: every event goes to the engine, and every action is done, one
//! after the other.

use std::collections::VecDeque;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep_until;

use super::carrier::Carrier;
use super::clock::Clock;
use super::control::{ControlSocket, answer};
use super::dns::Dns;
use super::hosts::Hosts;
use super::memory::MemoryFile;
use super::preflight::{kernel, open_host};
use super::settling::Settling;
use super::signals::{Caught, Signals};
use super::{Failure, Settings, names};
use crate::auth::Reject;
use crate::engine::config::{Host as ServerHost, Outer, Role};
use crate::engine::host::{NameServers, RulesFound};
use crate::engine::hosts::Node;
use crate::engine::plan::Step;
use crate::engine::{Action, Engine, Event, Report};
use crate::kernel::{Host, StepError, WayTo};
use crate::observe::rate::Limiter;
use crate::observe::status::{Dropped, ProcessStatus, RemoteStatus, TunnelStatus};

/// One line per kind and interval about what repeats.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Where programs look up who resolves names (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often the host is read again within one event, while steps fail.
const MAX_ROUNDS: usize = 6;

/// Is a tunnel until SIGTERM or SIGINT.
///
/// # Errors
/// Why it could not start, or what it could not clean up.
pub fn run(settings: &Settings) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(kernel)?
        .block_on(serve(settings))
}

async fn serve(settings: &Settings) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(kernel)?;
    let mut changes = Settling::open().map_err(kernel)?;
    let hosts = match &settings.role {
        Role::Node(node) => Some(Hosts::load(node.hosts.clone(), &settings.state_dir).await?),
        Role::Server(_) | Role::Client(_) => None,
    };
    let mut daemon = Daemon::open(settings).await?;
    let control = open_control(settings);
    let (mut answers, look_up_now) = keep_looking(&settings.role);
    let mut tables = keep_table(settings, hosts, &look_up_now);
    if let Some(table) = next_table(&mut tables, &settings.role).await {
        // Before the host is read: what an earlier process made for these nodes is kept.
        daemon.handle(Event::Hosts(table)).await;
    }

    daemon.start().await?;
    daemon.notify_ready();
    loop {
        let deadline = daemon.clock.instant(daemon.engine.next_deadline());
        let done = tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Caught::End => daemon.end().await.map(|()| true)?,
                Caught::Reauthenticate => {
                    look_up_now.notify_one();
                    match settings.role {
                        Role::Server(_) | Role::Client(_) => {
                            daemon.handle(Event::ReauthRequested).await
                        }
                        Role::Node(_) => false, // its table is read again
                    }
                }
                Caught::Ignored(name) => {
                    tracing::warn!("{name} means nothing to ipipou: ignored");
                    false
                }
            },
            datagram = daemon.carrier.next() => match datagram {
                Some((from, payload)) => {
                    daemon.handle(Event::Datagram { from, payload: &payload }).await
                }
                None => {
                    let _ = daemon.end().await;
                    return Err(Failure::Generic("the NFQUEUE broke; see above".to_owned()));
                }
            },
            () = sleep_until(deadline) => daemon.handle(Event::Deadline).await,
            Some(addresses) = answers.recv() => daemon.handle(Event::Resolved(addresses)).await,
            Some(table) = next_table(&mut tables, &settings.role) => {
                daemon.handle(Event::Hosts(table)).await
            }
            () = changes.settled(daemon.clock) => daemon.read_host().await,
            Some(stream) = next_asker(control.as_ref()) => daemon.tell(stream).await,
        };
        if done {
            return Ok(());
        }
    }
}

/// Without a control socket a tunnel still works.
fn open_control(settings: &Settings) -> Option<ControlSocket> {
    ControlSocket::open(&settings.runtime_dir)
        .inspect_err(|e| {
            tracing::warn!(
                "{}: {e}: `ipipou show` will not see this tunnel; see --runtime-dir",
                settings.runtime_dir.display()
            );
        })
        .ok()
}

fn keep_looking(role: &Role) -> (mpsc::Receiver<Vec<IpAddr>>, Arc<Notify>) {
    let (sender, answers) = mpsc::channel(1);
    let now = Arc::new(Notify::new());
    match role {
        Role::Client(client) => match &client.server.host {
            ServerHost::Name(name) => {
                let (name, now) = (name.clone(), Arc::clone(&now));
                tokio::spawn(async move { names::keep_looking(name, sender, &now).await });
            }
            ServerHost::Address(_) => {}
        },
        Role::Server(_) | Role::Node(_) => {}
    }
    (answers, now)
}

/// Reads the table of a node, again and again.
fn keep_table(
    settings: &Settings,
    hosts: Option<Hosts>,
    now: &Arc<Notify>,
) -> mpsc::Receiver<Vec<Node>> {
    let (sender, tables) = mpsc::channel(1);
    if let Some(hosts) = hosts {
        let (tunnel, now) = (settings.tunnel(), Arc::clone(now));
        let usable: fn(&IpAddr) -> bool = match &tunnel.outer {
            Outer::Address(own) | Outer::AddressOn(own, _) if own.is_ipv6() => IpAddr::is_ipv6,
            Outer::Address(_) | Outer::AddressOn(..) | Outer::Device(_) | Outer::Route => {
                IpAddr::is_ipv4
            }
        };
        let port = tunnel.port;
        tokio::spawn(async move { hosts.keep(port, usable, sender, &now).await });
    }
    tables
}

async fn next_table(tables: &mut mpsc::Receiver<Vec<Node>>, role: &Role) -> Option<Vec<Node>> {
    match role {
        Role::Node(_) => tables.recv().await,
        Role::Server(_) | Role::Client(_) => None,
    }
}

async fn next_asker(control: Option<&ControlSocket>) -> Option<UnixStream> {
    match control {
        Some(control) => control.accept().await.ok(),
        None => pending().await,
    }
}

struct Daemon<'a> {
    settings: &'a Settings,
    clock: Clock,
    engine: Engine,
    host: Host,
    carrier: Carrier,
    dns: Dns,
    memory: MemoryFile,
    rejections: Limiter<Reject>,
    failures: Limiter<String>,
    /// The first failure counts until the tunnel has been set up once.
    starting: Option<Option<Failure>>,
    adopted: bool,
    rules: &'static str,
}

impl<'a> Daemon<'a> {
    async fn open(settings: &'a Settings) -> Result<Self, Failure> {
        let clock = Clock::start();
        let (host, datapath) = open_host(settings).await?;
        let tunnel = settings.tunnel();
        let carrier = Carrier::open(datapath, &settings.role, tunnel)?;
        let file = MemoryFile::in_directory(&settings.state_dir);
        let memory = file.load().unwrap_or_else(|e| {
            tracing::warn!(
                "{}: {e}: packets that were accepted before may be accepted once more",
                file.path().display()
            );
            crate::engine::Memory::default()
        });
        let now = clock.moment().map_err(kernel)?;
        Ok(Daemon {
            settings,
            clock,
            engine: Engine::new(settings.role.clone(), datapath, memory, &now),
            host,
            carrier,
            dns: Dns::new(
                RESOLV_CONF.into(),
                settings.state_dir.clone(),
                tunnel.device.clone(),
                tunnel.gateway.dns.clone(),
            ),
            memory: file,
            rejections: Limiter::new(LOG_EVERY),
            failures: Limiter::new(LOG_EVERY),
            starting: Some(None),
            adopted: false,
            rules: "missing",
        })
    }

    /// Makes the host as it should be for the first time.
    async fn start(&mut self) -> Result<(), Failure> {
        self.read_host().await;
        let Some(Some(failure)) = self.starting.take() else { return Ok(()) };
        // A tunnel that was running before us is better left than taken away.
        if !self.adopted {
            let _ = self.end().await;
        }
        Err(failure)
    }

    /// Removes everything of ours.
    async fn end(&mut self) -> Result<(), Failure> {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let found = self.read().await.map_err(kernel)?;
        let mut actions = Vec::new();
        let now = self.clock.moment().map_err(kernel)?;
        self.engine.handle(Event::Shutdown(found), &now, &mut actions);
        let mut failed = 0;
        for action in actions {
            match action {
                Action::Apply(step) => {
                    tracing::debug!("{step}");
                    if let Err(error) = self.try_apply(&step).await {
                        tracing::error!("cannot {step}: {error}");
                        failed += 1;
                    }
                }
                Action::Remember(memory) => self.remember(&memory),
                Action::Send(_) | Action::ReadHost | Action::Report(_) | Action::Exit => {}
            }
        }
        match failed {
            0 => Ok(()),
            _ => Err(Failure::Cleanup(failed)),
        }
    }

    async fn read(&mut self) -> std::io::Result<crate::engine::host::Found> {
        let mark = self.settings.tunnel().gateway.mark().unwrap_or(0);
        let way_to = self.engine.way_to().map(|destination| WayTo { destination, mark });
        let mut found = self.host.read(way_to).await?;
        self.carrier.read(&mut found);
        found.name_servers = match (self.dns.is_applied(), self.dns.needs_restoring()) {
            (true, _) => NameServers::Ours,
            (false, true) => NameServers::Changed,
            (false, false) => NameServers::Theirs,
        };
        self.rules = match found.rules {
            RulesFound::Missing | RulesFound::Unknown => "missing",
            RulesFound::Intact(_) => "installed",
            RulesFound::Unavailable => "unavailable",
        };
        Ok(found)
    }

    async fn read_host(&mut self) -> bool {
        match self.read().await {
            Ok(found) => self.handle(Event::HostRead(found)).await,
            Err(e) => {
                self.complain(format!("cannot read the state of the host: {e}"));
                false
            }
        }
    }

    /// Hands an event to the engine and does what it says; true at the end.
    async fn handle(&mut self, event: Event<'_>) -> bool {
        let mut work = VecDeque::new();
        self.feed(event, &mut work);
        let (mut rounds, mut applied, mut failed) = (0, false, false);
        while let Some(action) = work.pop_front() {
            match action {
                Action::Apply(step) if failed => tracing::trace!("not tried: {step}"),
                Action::Apply(step) => match self.apply(&step).await {
                    Ok(()) => applied = true,
                    Err(taken) => {
                        failed = true;
                        self.feed(Event::StepFailed { step, taken }, &mut work);
                    }
                },
                Action::Send(out) => {
                    if let Err(e) = self.carrier.send(&out) {
                        self.complain(format!("cannot send to {}: {e}", out.to));
                    }
                }
                Action::ReadHost if rounds < MAX_ROUNDS => {
                    rounds += 1;
                    (applied, failed) = (false, false);
                    match self.read().await {
                        Ok(found) => self.feed(Event::HostRead(found), &mut work),
                        Err(e) => self.complain(format!("cannot read the host: {e}")),
                    }
                }
                // The engine reads again by itself in a while.
                Action::ReadHost => {}
                Action::Remember(memory) => self.remember(&memory),
                Action::Report(report) => self.report(&report),
                Action::Exit => return true,
            }
            if applied && !failed && !work.iter().any(|a| matches!(a, Action::Apply(_))) {
                applied = false;
                self.feed(Event::Applied, &mut work);
            }
        }
        false
    }

    fn feed(&mut self, event: Event<'_>, work: &mut VecDeque<Action>) {
        let mut actions = Vec::new();
        match self.clock.moment() {
            Ok(now) => self.engine.handle(event, &now, &mut actions),
            Err(e) => tracing::error!("no random numbers: {e}"),
        }
        work.extend(actions);
    }

    fn remember(&mut self, memory: &crate::engine::Memory) {
        if let Err(e) = self.memory.save(memory) {
            let path = self.memory.path().display();
            self.complain(format!("{path}: {e}: a restart will forget replays"));
        }
    }

    async fn try_apply(&mut self, step: &Step) -> Result<(), StepError> {
        self.carrier.apply(step)?;
        match step {
            Step::UseNameServers => self.dns.apply().map_err(StepError::Dns),
            Step::RestoreNameServers => self.dns.restore().map_err(StepError::Dns),
            _ => self.host.apply(step).await,
        }
    }

    /// Applies a step; an error tells whether the kernel said that it exists already.
    async fn apply(&mut self, step: &Step) -> Result<(), bool> {
        tracing::debug!("{step}");
        let Err(error) = self.try_apply(step).await else { return Ok(()) };
        let taken = error.is_taken();
        let is_link = matches!(error, StepError::Link(_));
        if taken && is_link {
            tracing::info!("another tunnel has these addresses: using a private one");
        } else if let Some(first @ None) = &mut self.starting {
            *first = Some(Failure::Step { step: Box::new(step.clone()), error });
        } else {
            self.complain(format!("cannot {step}: {error}; trying again"));
        }
        Err(taken)
    }

    fn complain(&mut self, text: String) {
        // The texts hold our own addresses and a few errors: their number is bounded.
        if self.failures.pass(text.clone(), self.clock.elapsed()).is_some() {
            tracing::error!("{text}");
        }
    }

    fn report(&mut self, report: &Report) {
        match report {
            Report::Rejected { reason, .. } => {
                if let Some(more) = self.rejections.pass(*reason, self.clock.elapsed()) {
                    tracing::warn!("{report}{}", also(more));
                }
            }
            Report::Adopted(_) => {
                self.adopted = true;
                tracing::info!("{report}");
            }
            Report::Repairing(_)
            | Report::Expired(_)
            | Report::OuterMissing(_)
            | Report::NodeUnusable { .. } => tracing::warn!("{report}"),
            Report::ReauthIgnored => tracing::warn!("{report}"),
            Report::HostsChanged(_) => tracing::info!("{report}"),
            Report::Refreshed(_) | Report::Sent { .. } => tracing::debug!("{report}"),
            Report::Arrived(_)
            | Report::Moved { .. }
            | Report::ServerMoved(_)
            | Report::OuterAddress(_) => {
                tracing::info!("{report}");
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&report.to_string())]);
            }
        }
    }

    fn notify_ready(&self) {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let (datapath, offloads) = self.carrier.describe();
        let offloads = offloads.map_or_else(String::new, |with| format!(" with {with}"));
        tracing::info!(
            "ready on {} as {}, datapath {datapath}{offloads}",
            self.settings.tunnel().port,
            self.role()
        );
    }

    /// Sends the status to somebody who asked.
    async fn tell(&mut self, stream: UnixStream) -> bool {
        let done = self.read_host().await; // for fresh traffic counters
        answer(stream, &self.status());
        done
    }

    fn role(&self) -> &'static str {
        match self.settings.role {
            Role::Server(_) => "server",
            Role::Client(_) => "client",
            Role::Node(_) => "node",
        }
    }

    fn status(&mut self) -> ProcessStatus {
        let by_rules = self.host.rule_counters().unwrap_or_default();
        let by_rules = by_rules
            .into_iter()
            .map(|c| (c.name, Dropped { packets: c.packets, bytes: Some(c.bytes) }));
        let by_us = self.carrier.dropped().into_iter().map(|(name, packets)| {
            (name, Dropped { packets, bytes: None })
        });
        let (datapath, offloads) = self.carrier.describe();
        let counters = self.engine.counters();
        ProcessStatus {
            datapath: datapath.to_owned(),
            offloads,
            learned: self.carrier.learned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            role: self.role().to_owned(),
            uptime: self.clock.elapsed().as_secs(),
            rules: self.rules.to_owned(),
            tunnels: vec![tunnel_status(self.engine.status())],
            accepted: counters.accepted,
            moved: counters.moved,
            sent: counters.sent,
            repaired: counters.repaired,
            rejected: counters.rejected.iter().map(|(r, n)| (r.name().to_owned(), *n)).collect(),
            dropped: by_rules.chain(by_us).collect(),
        }
    }
}

fn tunnel_status(tunnel: crate::engine::Status) -> TunnelStatus {
    TunnelStatus {
        interface: tunnel.device,
        up: tunnel.up,
        local: tunnel.outer.map(|a| a.to_string()),
        private: tunnel.private.map(|a| a.to_string()),
        remote: tunnel.remote.map(|a| a.to_string()),
        remotes: tunnel.remotes.map(|remotes| {
            let one = |(remote, networks): (std::net::SocketAddr, Vec<ipnet::IpNet>)| RemoteStatus {
                remote: remote.to_string(),
                networks: networks.iter().map(ToString::to_string).collect(),
            };
            remotes.into_iter().map(one).collect()
        }),
        admitted: tunnel.admitted,
        inner: tunnel.inner.to_string(),
        inner_peer: match tunnel.inner_peer.prefix_len() {
            32 => tunnel.inner_peer.addr().to_string(),
            _ => tunnel.inner_peer.trunc().to_string(),
        },
        inner6: tunnel.inner6.map(|net| net.to_string()),
        last_authentication: tunnel.last_authentication,
        rx_bytes: tunnel.traffic.rx_bytes,
        rx_packets: tunnel.traffic.rx_packets,
        tx_bytes: tunnel.traffic.tx_bytes,
        tx_packets: tunnel.traffic.tx_packets,
    }
}

/// How many lines of the kind were not logged.
fn also(more: u64) -> String {
    match more {
        0 => String::new(),
        _ => format!(" ({more} more since the last such line)"),
    }
}
